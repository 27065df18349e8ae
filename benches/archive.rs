//! `cargo bench --bench archive -- [--mib 1024] [--rounds 3] [--dir DIR] [--no-gzip]`
//!
//! The first backup of a directory, against `tar | zstd`, `tar | gzip` and `restic`. The runs are interleaved, one of
//! each per round, after one round that does not count; ratios are taken within each round. Before each run all that
//! was written is synced, so that no run pays for another one.
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
    eprintln!("making about {mib} MiB of data");
    let made = mixed_data(&at("data"), mib).expect("room for the data");
    let config = configure(dir.path());
    let (data, out) = (at("data"), at("out"));
    let shell = |script: &str| {
        let script = format!("set -e -o pipefail; {script}");
        measure(dir.path(), "bash", &["-c", &script, "bash", text(&data), text(&out.join("archive"))], &[])
    };
    let restic = |verb: &[&str]| {
        let (repository, cache) = (out.join("restic"), out.join("cache"));
        let env = [("RESTIC_PASSWORD", "bench"), ("RESTIC_CACHE_DIR", text(&cache))];
        measure(dir.path(), "restic", &[&["--quiet", "--repo", text(&repository)], verb].concat(), &env)
    };
    let backup = |service: &str| {
        let args = ["--quiet", "--config", text(&config), "backup", service, "--manual"];
        measure(dir.path(), env!("CARGO_BIN_EXE_backstay"), &args, &[])
    };
    let benches: [Bench<'_>; 5] = [
        ("backstay backup", Box::new(|| backup("files"))),
        ("the same with `level: 1`", Box::new(|| backup("fast"))),
        ("tar \\| zstd -3 -T2", Box::new(|| shell("tar -cf - -C \"$1\" . | zstd -3 -T2 -q > \"$2\""))),
        ("the same, then sync", Box::new(|| shell("tar -cf - -C \"$1\" . | zstd -3 -T2 -q > \"$2\"; sync \"$2\""))),
        (
            "restic backup",
            Box::new(|| {
                restic(&["init"]);
                restic(&["backup", text(&data)])
            }),
        ),
    ];
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); benches.len()];
    for round in 0..=rounds {
        for (n, (name, bench)) in benches.iter().enumerate() {
            clear(&out, dir.path());
            let run = bench();
            eprintln!("round {round}: {name}: {:.2} s, CPU {:.2} s, {:.0} MiB", run.wall, run.cpu, run.rss);
            if round > 0 {
                runs[n].push(run);
            }
        }
    }
    println!("{} files, {} MiB; {rounds} rounds.\n", made.files, made.bytes >> 20);
    println!("| | wall, s (median) | all rounds | CPU, s | peak RSS, MiB | time, relative to `backstay backup` |");
    println!("|---|---|---|---|---|---|");
    for ((name, _), runs_of) in benches.iter().zip(&runs) {
        row(name, runs_of, &runs[0]);
    }
    if !std::env::args().any(|arg| arg == "--no-gzip") {
        clear(&out, dir.path());
        let gzip = shell("tar -cf - -C \"$1\" . | gzip > \"$2\"");
        let typical = Run { wall: median(&runs[0], |r| r.wall), ..runs[0][0] };
        row("tar \\| gzip (once)", &[gzip], &[typical]);
    }
}

/// Two services of the same directory that differ in their level.
fn configure(dir: &Path) -> PathBuf {
    let config = dir.join("backstay.yml");
    let service = |name: &str, points: &str, level: i32| {
        format!(
            "  {name}:\n    blobdir: {{path: {dir}/data}}\n    backup_dir: {dir}/out/{points}\n    keep: {{daily: 1}}\n    \
             compression: {{algorithm: zstd, level: {level}, threads: 2}}\n",
            dir = dir.display()
        )
    };
    let services = [service("files", "points", 3), service("fast", "fast", 1)].concat();
    let yaml = format!("host: bench\nstate_dir: {}/state\nservices:\n{services}", dir.display());
    std::fs::write(&config, yaml).expect("a configuration");
    config
}

/// Forgets what the last run left, on disk and in the queue of the disk.
fn clear(out: &Path, scratch: &Path) {
    if out.exists() {
        std::fs::remove_dir_all(out).expect("old output can be removed");
    }
    std::fs::create_dir(out).expect("a directory for output");
    measure(scratch, "sync", &[], &[]);
}

fn row(name: &str, runs: &[Run], reference: &[Run]) {
    let each: Vec<String> = runs.iter().map(|r| format!("{:.2}", r.wall)).collect();
    let mut ratios: Vec<f64> = runs.iter().zip(reference).map(|(run, other)| run.wall / other.wall).collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "| {name} | {:.2} | {} | {:.2} | {:.0} | {:.2} |",
        median(runs, |r| r.wall),
        each.join(" "),
        median(runs, |r| r.cpu),
        median(runs, |r| r.rss),
        ratios[ratios.len() / 2],
    );
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
