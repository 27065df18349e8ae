//! `cargo bench --bench couchdb -- [--databases 1000] [--rounds 3] [--dir DIR]`
//!
//! A capture of many databases of 8 shards each, with every tree checked and with headers only, against `tar | zstd` of
//! the same directory. The shards are those of a real node, copied under other names. The runs are interleaved, one
//! of each per round, after one round that does not count.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr, reason = "a bench talks, and stops at once")]

use std::fs;
use std::path::{Path, PathBuf};

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;

use support::{Run, argument, measure, text_argument};

const BACKSTAY: &str = env!("CARGO_BIN_EXE_backstay");

fn main() {
    let (databases, rounds) = (argument("--databases", 1000), argument("--rounds", 3));
    let base = text_argument("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("backstay-bench-").tempdir_in(base).expect("a directory");
    let data = dir.path().join("data");
    let (shards, bytes) = make(dir.path(), &data, databases);
    let config = configure(dir.path());
    // No map names the copies, which makes the first point of each service suspect: somebody has looked into it.
    let accept = "\"$1\" --quiet --config \"$2\" backup \"$3\" --manual || [ $? = 10 ]; \
                  \"$1\" --config \"$2\" accept \"$3\" \"$(ls \"$4\")\"";
    for service in ["trees", "headers"] {
        let points = dir.path().join(service);
        let args = ["-euc", accept, "bash", BACKSTAY, text(&config), service, text(&points)];
        measure(dir.path(), "bash", &args, &[]);
    }
    let out = dir.path().join("archive");
    let names = ["check: trees", "check: headers", "tar \\| zstd -3 -T2"];
    let mut runs: [Vec<Run>; 3] = Default::default();
    for round in 0..=rounds {
        for (n, name) in names.iter().enumerate() {
            measure(dir.path(), "sync", &[], &[]);
            let run = match n {
                2 => {
                    let script = "set -e -o pipefail; tar -cf - -C \"$1\" . | zstd -3 -T2 -q > \"$2\"; sync \"$2\"";
                    let _ = fs::remove_file(&out);
                    measure(dir.path(), "bash", &["-c", script, "bash", text(&data), text(&out)], &[])
                }
                _ => {
                    let service = ["trees", "headers"][n];
                    let args = ["--quiet", "--config", text(&config), "backup", service, "--manual"];
                    measure(dir.path(), BACKSTAY, &args, &[])
                }
            };
            eprintln!("round {round}: {name}: {:.2} s, CPU {:.2} s, {:.0} MiB", run.wall, run.cpu, run.rss);
            if round > 0 {
                runs[n].push(run);
            }
        }
    }
    println!("{shards} shards, {} MiB; {rounds} rounds.\n", bytes >> 20);
    println!("| | wall, s (median) | CPU, s | peak RSS, MiB | time, relative to tar |");
    println!("|---|---|---|---|---|");
    for (name, of) in names.iter().zip(&runs) {
        let ratio = median(of, |r| r.wall) / median(&runs[2], |r| r.wall);
        let (wall, cpu, rss) = (median(of, |r| r.wall), median(of, |r| r.cpu), median(of, |r| r.rss));
        println!("| {name} | {wall:.2} | {cpu:.2} | {rss:.0} | {ratio:.2} |");
    }
}

/// A data directory with copies of a real node's shards; how many, and their bytes.
fn make(scratch: &Path, data: &Path, databases: u64) -> (u64, u64) {
    let packed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/couchdb/data/couchdb-3.4.3.tar.zst");
    let packed = zstd::stream::read::Decoder::new(fs::File::open(packed).expect("test data")).expect("zstd");
    tar::Archive::new(packed).unpack(scratch).expect("room for the data");
    let mut originals = Vec::new();
    for range in fs::read_dir(data.join("shards")).expect("shards") {
        for file in fs::read_dir(range.expect("a range").path()).expect("a range") {
            let path = file.expect("a shard").path();
            if path.is_file() {
                originals.push(fs::read(path).expect("a shard"));
            }
        }
    }
    let (mut shards, mut bytes) = (0_u64, 0_u64);
    for range in 0..8_u64 {
        let folder = data.join(format!("shards/{:08x}-{:08x}", range << 29, ((range + 1) << 29) - 1));
        fs::create_dir_all(&folder).expect("a folder");
        for n in 0..databases {
            let at = usize::try_from((n * 8 + range) % originals.len() as u64).expect("a small number");
            fs::write(folder.join(format!("bench-{n:05}.1700000000.couch")), &originals[at])
                .expect("room for the data");
            shards += 1;
            bytes += originals[at].len() as u64;
        }
    }
    (shards, bytes)
}

fn configure(dir: &Path) -> PathBuf {
    let config = dir.join("backstay.yml");
    let service = |name: &str| {
        format!(
            "  {name}:\n    couchdb: {{data_dir: {dir}/data, url: \"http://127.0.0.1:9\", check: {name}}}\n    backup_dir: {dir}/{name}\n    \
             keep: {{daily: 1}}\n    compression: {{algorithm: zstd, level: 3, threads: 2}}\n",
            dir = dir.display()
        )
    };
    let text = format!(
        "host: bench\nstate_dir: {}/state\nservices:\n{}{}",
        dir.display(),
        service("trees"),
        service("headers")
    );
    fs::write(&config, text).expect("a configuration");
    config
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
