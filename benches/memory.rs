//! `cargo bench --bench memory -- [--files 1000000] [--gib 20] [--dir DIR]`
//!
//! The greatest resident size of two things that must not grow with the data: a backup of very many small files, and
//! the upload of a large artefact, in parts of 16 MiB and more, to a server that throws it away. 0 leaves one out.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr, reason = "a bench talks, and stops at once")]

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use backstay::artefact::{ArtefactSink as _, ArtefactSpec};
use backstay::config::S3Config;
use backstay::destination::PutMode;
use backstay::destination::s3::{CredentialSource, S3};
use backstay::manifest::Algorithm;
use backstay::monitor::Silent;
use backstay::pipeline::encrypt::Recipients;
use backstay::pipeline::{Encoding, Leg, PointSink};
use bytes::Bytes;

#[allow(dead_code, reason = "each bench uses a part of it")]
mod support;

use support::{Numbers, Run, argument, many_files, measure, text_argument};

const CHUNK: usize = 512 << 10;

fn main() {
    if let Some(endpoint) = text_argument("--push-to") {
        return push(&endpoint, argument("--gib", 20));
    }
    let base = text_argument("--dir").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::Builder::new().prefix("backstay-bench-").tempdir_in(base).expect("a directory");
    let (files, gib) = (argument("--files", 1_000_000), argument("--gib", 20));
    println!("| | peak RSS, MiB | wall, s | CPU, s |\n|---|---|---|---|");
    if files > 0 {
        row(&format!("`backstay backup` of {files} files"), walk(dir.path(), files));
    }
    if gib > 0 {
        row(&format!("{gib} GiB that cannot be compressed, into a bucket"), upload(dir.path(), gib));
    }
}

fn row(name: &str, run: Run) {
    println!("| {name} | {:.0} | {:.1} | {:.1} |", run.rss, run.wall, run.cpu);
}

fn walk(dir: &Path, files: u64) -> Run {
    eprintln!("making {files} files");
    many_files(&dir.join("data"), files).expect("room for the files");
    let config = dir.join("backstay.yml");
    let yaml = format!(
        "host: bench\nstate_dir: {dir}/state\nservices:\n  files:\n    blobdir: {{path: {dir}/data}}\n    \
         backup_dir: {dir}/points\n    keep: {{daily: 1}}\n    compression: {{algorithm: zstd, level: 3, threads: 2}}\n",
        dir = dir.display()
    );
    std::fs::write(&config, yaml).expect("a configuration");
    let config = config.to_str().expect("a path in UTF-8");
    let program = env!("CARGO_BIN_EXE_backstay");
    measure(dir, program, &["--quiet", "--config", config, "backup", "--manual"], &[])
}

/// The server is here, the client in a process of its own, which alone is measured.
fn upload(dir: &Path, gib: u64) -> Run {
    let server = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}", server.local_addr().expect("a port"));
    std::thread::spawn(move || {
        for client in server.incoming().flatten() {
            std::thread::spawn(move || serve(client));
        }
    });
    let program = std::env::current_exe().expect("this program");
    let program = program.to_str().expect("a path in UTF-8");
    measure(dir, program, &["--push-to", &endpoint, "--gib", &gib.to_string()], &[])
}

/// Sends an artefact through the whole pipeline.
fn push(endpoint: &str, gib: u64) {
    let config = serde_json::json!({"bucket": "bench", "endpoint": endpoint});
    let config: S3Config = serde_json::from_value(config).expect("settings of a bucket");
    let keys = CredentialSource::Static { access: "a".into(), secret: "s".into(), session: None };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let bucket = Arc::new(S3::new("bucket", &config, keys).expect("a client"));
        let leg = Arc::new(Leg::new(bucket, "point".into(), PutMode::WriteOnce));
        let encoding = Encoding::new(Algorithm::Zstd, None, 2, Recipients::default());
        let sink = PointSink::new(vec![leg], encoding, Duration::from_secs(60), Arc::new(Silent), &[]);
        let mut writer = sink.open(ArtefactSpec::data("data", "bin")).await.expect("an artefact");
        let mut numbers = Numbers(3);
        for _ in 0..(gib << 30) / CHUNK as u64 {
            let mut chunk = vec![0; CHUNK];
            numbers.fill(&mut chunk);
            if writer.send(Bytes::from(chunk)).await.is_err() {
                panic!("{}", writer.failure().await.report());
            }
        }
        let info = writer.finish().await.expect("a stored artefact");
        assert!(info.plain_bytes == gib << 30 && info.stored_bytes >= info.plain_bytes, "{info:?}");
        sink.drain().await;
    });
}

/// As much of S3 as an upload needs; what is sent is thrown away.
fn serve(client: TcpStream) {
    if let Err(e) = answer_all(client) {
        eprintln!("a connection ended: {e}");
    }
}

fn answer_all(client: TcpStream) -> io::Result<()> {
    let mut out = client.try_clone()?;
    let mut input = BufReader::with_capacity(256 << 10, client);
    loop {
        let mut request = String::new();
        if input.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut line = String::new();
            input.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if line.starts_with("expect:") {
                out.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
            }
        }
        io::copy(&mut input.by_ref().take(length), &mut io::sink())?;
        let (status, body) = match request.split(' ').next() {
            Some("HEAD") if request.contains("/point/") => ("404 Not Found", ""),
            Some("GET") => ("200 OK", "<ListBucketResult></ListBucketResult>"),
            Some("POST") if request.contains("uploadId=") => (
                "200 OK",
                "<CompleteMultipartUploadResult><Bucket>bench</Bucket><Key>k</Key><ETag>\"e\"</ETag>\
                 </CompleteMultipartUploadResult>",
            ),
            Some("POST") => (
                "200 OK",
                "<InitiateMultipartUploadResult><Bucket>bench</Bucket><Key>k</Key><UploadId>u</UploadId>\
                 </InitiateMultipartUploadResult>",
            ),
            _ => ("200 OK", ""),
        };
        write!(out, "HTTP/1.1 {status}\r\nETag: \"e\"\r\nContent-Length: {}\r\n\r\n{body}", body.len())?;
    }
}
