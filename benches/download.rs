//! `cargo bench --bench download -- [--mib 256] [--rounds 3] [--window-kib 1024]`
//!
//! Reading an artefact from a bucket that is far away: in one request, and in ranges, several at once. The bucket is a
//! real gateway (Debian: `tests/run packages`); the distance is a proxy. What goes through it arrives 20 ms later, in both
//! directions, and no more than a window is on its way per connection and direction, as with TCP. The runs are
//! interleaved, one of each per round, after one round that does not count.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr, reason = "a bench talks, and stops at once")]

use std::collections::VecDeque;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use backstay::config::S3Config;
use backstay::destination::s3::{CredentialSource, S3};
use backstay::destination::{Destination as _, Location, PutMode};
use bytes::Bytes;
use futures_util::StreamExt as _;
use sha2::{Digest as _, Sha256};

#[allow(clippy::unwrap_used, dead_code, reason = "each bench uses a part of it")]
#[path = "../tests/common/rgw.rs"]
mod rgw;
#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;

use support::{Numbers, Run, argument, measure, text_argument};

const BUCKET: &str = "download";
/// There and back it takes twice as long.
const ONE_WAY: Duration = Duration::from_millis(20);
/// What is read and handed on at once.
const SEGMENT: usize = 16 << 10;
/// How many ranges are asked for at once. 1 = no ranges.
const AT_ONCE: [u32; 4] = [1, 4, 8, 16];

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    if let Some(endpoint) = text_argument("--read-from") {
        let at_once = u32::try_from(argument("--at-once", 1)).expect("a small number");
        return runtime.block_on(read(&endpoint, at_once));
    }
    let (mib, rounds) = (argument("--mib", 256), argument("--rounds", 3));
    let window = usize::try_from(argument("--window-kib", 1024) << 10).expect("a size");
    eprintln!("storing {mib} MiB");
    runtime.block_on(store(mib));
    let gateway: SocketAddr = rgw::endpoint().trim_start_matches("http://").parse().expect("an address");
    let proxy = format!("http://{}", far_away(gateway, window));
    let dir = tempfile::tempdir().expect("a directory");
    let program = std::env::current_exe().expect("this program");
    let program = program.to_str().expect("a path in UTF-8");
    let run = |n: u32| measure(dir.path(), program, &["--read-from", &proxy, "--at-once", &n.to_string()], &[]);
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); AT_ONCE.len()];
    for round in 0..=rounds {
        for (n, runs) in AT_ONCE.into_iter().zip(&mut runs) {
            let run = run(n);
            eprintln!("round {round}: {n} at once: {:.2} s, CPU {:.2} s, {:.0} MiB", run.wall, run.cpu, run.rss);
            if round > 0 {
                runs.push(run);
            }
        }
    }
    println!("| `download_concurrency` | wall, s (median) | all rounds | MiB/s | CPU, s | peak RSS, MiB | x |");
    println!("|---|---|---|---|---|---|---|");
    let single = median(&runs[0], |r| r.wall);
    for (n, runs) in AT_ONCE.into_iter().zip(&runs) {
        let (wall, cpu, rss) = (median(runs, |r| r.wall), median(runs, |r| r.cpu), median(runs, |r| r.rss));
        let all: Vec<String> = runs.iter().map(|r| format!("{:.2}", r.wall)).collect();
        #[allow(clippy::cast_precision_loss, reason = "a small number")]
        let rate = mib as f64 / wall;
        println!("| {n} | {wall:.2} | {} | {rate:.0} | {cpu:.2} | {rss:.0} | {:.1} |", all.join(" "), single / wall);
    }
}

fn median(runs: &[Run], of: impl Fn(&Run) -> f64) -> f64 {
    let mut numbers: Vec<f64> = runs.iter().map(of).collect();
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

fn bucket(endpoint: &str, at_once: u32) -> S3 {
    let config = serde_json::json!({"bucket": BUCKET, "endpoint": endpoint, "download_concurrency": at_once, "region": "us-east-1"});
    let config: S3Config = serde_json::from_value(config).expect("settings of a bucket");
    let keys = CredentialSource::Static { access: rgw::ACCESS.into(), secret: rgw::SECRET.into(), session: None };
    S3::new("bucket", &config, keys).expect("a client")
}

/// Stores noise, and its digest as its key's end.
async fn store(mib: u64) {
    rgw::make_bucket(BUCKET, false).await;
    let place = bucket(rgw::endpoint(), 1);
    let (mut numbers, mut digest) = (Numbers(4), Sha256::new());
    let mut upload = place.begin("data", PutMode::WriteOnce, Some(mib << 20)).await.expect("an upload");
    for _ in 0..mib {
        let mut chunk = vec![0; 1 << 20];
        numbers.fill(&mut chunk);
        digest.update(&chunk);
        upload.write(Bytes::from(chunk)).await.expect("a part");
    }
    upload.complete().await.expect("an object");
    let sum = hex::encode(digest.finalize());
    let mut upload = place.begin("sum", PutMode::WriteOnce, None).await.expect("an upload");
    upload.write(Bytes::from(sum)).await.expect("a part");
    upload.complete().await.expect("an object");
}

/// Reads it as a restore does: in order, with its digest.
async fn read(endpoint: &str, at_once: u32) {
    let place = bucket(endpoint, at_once);
    let mut sum = place.get(&Location::newest("sum")).await.expect("the digest");
    let sum = sum.next().await.expect("the digest").expect("read");
    let (mut stream, mut digest) = (place.get(&Location::newest("data")).await.expect("opened"), Sha256::new());
    while let Some(chunk) = stream.next().await {
        digest.update(chunk.expect("read"));
    }
    assert_eq!(hex::encode(digest.finalize()).as_bytes(), sum, "other bytes came than were stored");
}

/// A port that leads to `to`, the long way.
fn far_away(to: SocketAddr, window: usize) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            std::thread::spawn(move || connect(&near, to, window));
        }
    });
    address
}

fn connect(near: &TcpStream, to: SocketAddr, window: usize) {
    // The handshake.
    std::thread::sleep(2 * ONE_WAY);
    let Ok(far) = TcpStream::connect(to) else { return };
    for (from, to) in [(near, &far), (&far, near)] {
        let _ = from.set_nodelay(true);
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
        std::thread::spawn(move || carry(from, to, window));
    }
}

/// One direction: what is read leaves one way later, and makes room in the window when its receipt is back.
fn carry(mut from: TcpStream, mut to: TcpStream, window: usize) {
    let (send, receive) = mpsc::sync_channel::<(Instant, Vec<u8>)>(window / SEGMENT + 1);
    std::thread::spawn(move || -> io::Result<()> {
        for (due, bytes) in receive {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            to.write_all(&bytes)?;
        }
        to.shutdown(Shutdown::Write)
    });
    let (mut unacknowledged, mut acknowledged) = (0, VecDeque::<(Instant, usize)>::new());
    loop {
        while let Some(&(at, bytes)) = acknowledged.front()
            && (unacknowledged + SEGMENT > window || at <= Instant::now())
        {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
            unacknowledged -= bytes;
            acknowledged.pop_front();
        }
        let mut bytes = vec![0; SEGMENT];
        let n = from.read(&mut bytes).unwrap_or(0);
        bytes.truncate(n);
        if n == 0 || send.send((Instant::now() + ONE_WAY, bytes)).is_err() {
            return;
        }
        unacknowledged += n;
        acknowledged.push_back((Instant::now() + 2 * ONE_WAY, n));
    }
}
