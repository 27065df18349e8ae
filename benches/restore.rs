//! `cargo bench --bench restore -- [--mib 1024] [--rounds 3] [--dir DIR]`
//!
//! A restore of a directory from a directory of points, against `zstd -d | tar -x`, `restic restore` and, where it is
//! installed (`cargo install rustic-rs`), `rustic restore` of the same repository; and a streamed drill against
//! `zstd -t`. The runs are interleaved, one of each per round, after one round that does not count; ratios are taken
//! within each round. Give a directory in memory (`--dir /dev/shm`), or the disk is measured.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr, reason = "a bench talks, and stops at once")]

use std::path::{Path, PathBuf};

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;

use support::{Run, argument, measure, mixed_data, text_argument};

type Bench<'a> = (&'static str, Box<dyn Fn() -> Run + 'a>);

fn main() {
    let (mib, rounds) = (argument("--mib", 1024), usize::try_from(argument("--rounds", 3)).expect("a small number"));
    let base = text_argument("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("backstay-bench-").tempdir_in(base).expect("a directory");
    let at = |name: &str| dir.path().join(name);
    eprintln!("making about {mib} MiB of data, and a point of it");
    mixed_data(&at("data"), mib).expect("room for the data");
    let config = configure(dir.path());
    let backstay = |args: &[&str]| {
        let all = [&["--quiet", "--config", text(&config)], args].concat();
        measure(dir.path(), env!("CARGO_BIN_EXE_backstay"), &all, &[])
    };
    backstay(&["backup", "--manual"]);
    let (repository, cache, data) = (at("restic"), at("cache"), at("data"));
    let env = [("RESTIC_PASSWORD", "bench"), ("RESTIC_CACHE_DIR", text(&cache))];
    let restic = |verb: &[&str]| {
        measure(dir.path(), "restic", &[&["--quiet", "--repo", text(&repository)], verb].concat(), &env)
    };
    restic(&["init"]);
    restic(&["backup", text(&data)]);
    let archive = archive(&at("points"));
    let out = at("out");
    let shell = |script: &str| {
        let script = format!("set -e -o pipefail; {script}");
        measure(dir.path(), "bash", &["-c", &script, "bash", text(&archive), text(&out)], &[])
    };
    let rustic = || {
        let names = ["RUSTIC_REPOSITORY", "RUSTIC_PASSWORD", "RUSTIC_CACHE_DIR"];
        let env: Vec<_> = names.into_iter().zip([text(&repository), "bench", text(&cache)]).collect();
        measure(dir.path(), "rustic", &["--log-level", "error", "--no-progress", "restore", "latest", text(&out)], &env)
    };
    let mut benches: Vec<Bench<'_>> = vec![
        ("backstay restore", Box::new(|| backstay(&["restore", "data", "latest", "--to", text(&out)]))),
        ("zstd -d \\| tar -x", Box::new(|| shell("mkdir \"$2\"; zstd -dcq \"$1\" | tar -x -C \"$2\""))),
        ("restic restore", Box::new(|| restic(&["restore", "latest", "--target", text(&out)]))),
        ("backstay drill --stream", Box::new(|| backstay(&["drill", "data", "--stream"]))),
        ("zstd -t", Box::new(|| shell("zstd -tq \"$1\""))),
    ];
    if std::env::var("PATH").is_ok_and(|path| std::env::split_paths(&path).any(|dir| dir.join("rustic").exists())) {
        benches.push(("rustic restore", Box::new(rustic)));
    }
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); benches.len()];
    for round in 0..=rounds {
        for (n, (name, bench)) in benches.iter().enumerate() {
            drop(std::fs::remove_dir_all(&out));
            let run = bench();
            eprintln!("round {round}: {name}: {:.2} s, CPU {:.2} s, {:.0} MiB", run.wall, run.cpu, run.rss);
            if round > 0 {
                runs[n].push(run);
            }
        }
    }
    print(&benches, &runs);
}

fn print(benches: &[Bench<'_>], runs: &[Vec<Run>]) {
    println!("| program | wall (s) | CPU (s) | memory (MiB) |\n|---|---|---|---|");
    for ((name, _), runs) in benches.iter().zip(runs) {
        let (wall, cpu, rss) = (median(runs, |r| r.wall), median(runs, |r| r.cpu), median(runs, |r| r.rss));
        println!("| {name} | {wall:.2} | {cpu:.2} | {rss:.0} |");
    }
    for (what, mine, theirs) in [("zstd -d | tar -x", 0, 1), ("restic", 0, 2), ("zstd -t, for a streamed drill", 3, 4)]
    {
        let ratios: Vec<f64> = runs[mine].iter().zip(&runs[theirs]).map(|(a, b)| a.wall / b.wall).collect();
        println!("wall against {what}: {:.2}", middle(ratios));
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

fn configure(dir: &Path) -> PathBuf {
    let root = dir.display();
    let path = dir.join("backstay.yml");
    let config = format!(
        "host: bench\nstate_dir: {root}/state\nservices:\n  data:\n    blobdir: {{path: {root}/data}}\n    \
         backup_dir: {root}/points\n    keep: {{daily: 1}}\n"
    );
    std::fs::write(&path, config).expect("room for the configuration");
    path
}

/// The archive of the only point.
fn archive(points: &Path) -> PathBuf {
    let entries = std::fs::read_dir(points).expect("the directory of points").flatten();
    entries.map(|e| e.path().join("data.tar.zst")).find(|p| p.exists()).expect("a point")
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    middle(runs.iter().map(of).collect())
}

fn middle(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}
