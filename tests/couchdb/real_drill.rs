//! Drills on a real CouchDB: a throw-away node hands out every document, connects to nobody, and is never left behind.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use backstay::source::couchdb::Couchdb;
use backstay::source::{DrillLevel, DrillRequest, Drilled, RestoreRequest, Source as _};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::data::{LOW, Taken, config, shard, truth, unpack, unpack_cluster};
use super::drill::damage_document;
use super::node::{Node, installation};
use crate::common::backstay;
use crate::common::fake::{ended, until};

fn settings(couchdb: &Path) -> String {
    format!(r#", "bin_dir": {:?}"#, couchdb.join("bin").display().to_string())
}

async fn drill(taken: &Taken, dir: &Path) -> Drilled {
    let scratch = dir.join("scratch");
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir(&scratch).unwrap();
    let request = DrillRequest { scratch, stream: false, wait: Duration::from_secs(90) };
    taken.source.drill(&taken.cx, &taken.point(), &request).await.unwrap_or_else(|e| panic!("{}", e.report()))
}

/// Processes that work for a drill below a directory.
fn processes(below: &Path) -> usize {
    let mark = format!("BACKSTAY_SCRATCH={}", below.display());
    let all = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path().join("environ"));
    all.filter_map(|path| std::fs::read(path).ok())
        .filter(|text| text.split(|b| *b == 0).any(|line| line.starts_with(mark.as_bytes())))
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_its_own_hands_out_every_document() {
    let Some(couchdb) = installation() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let source = Couchdb::new(config(&data, &settings(&couchdb)));
    let taken = Taken::of(source, dir.path()).await.unwrap();
    std::fs::rename(&data, dir.path().join("elsewhere")).unwrap();
    let drilled = drill(&taken, dir.path()).await;
    assert_eq!(drilled.differences, [""; 0]);
    assert_eq!(drilled.level, DrillLevel::Server);
    let jobs = "1 databases with jobs of replication were not given to the node, only read";
    assert_eq!(drilled.notes, [jobs]);
    let given = truth().into_iter().filter(|(path, _)| !path.contains("_replicator"));
    let given = given.map(|(_, shard)| shard["doc_count"].as_u64().unwrap()).sum::<u64>();
    assert_eq!(drilled.counts["documents_read"], given);
    assert!(drilled.counts["documents"] > given && drilled.counts["bodies"] > drilled.counts["documents"]);
    until("the node is gone", || processes(dir.path()) == 0);
    let log = std::fs::read_to_string(dir.path().join("scratch/run/log")).unwrap();
    assert!(!log.contains("[error]"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_of_its_own_lacks_is_named() {
    let Some(couchdb) = installation() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let taken = Taken::of(Couchdb::new(config(&data, &settings(&couchdb))), dir.path()).await.unwrap();
    taken.sink.change("inventory.jsonl", |text| {
        let lines = String::from_utf8(text.clone()).unwrap();
        let more = lines.lines().map(|line| {
            let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
            if line["db"] == "a+b$c_d" {
                line["doc_count"] = json!(line["doc_count"].as_u64().unwrap() + 1);
            }
            format!("{line}\n")
        });
        *text = more.collect::<String>().into_bytes();
    });
    let drilled = drill(&taken, dir.path()).await;
    let [said] = drilled.differences.as_slice() else { panic!("{:?}", drilled.differences) };
    assert!(said.starts_with("database a+b$c_d: the database has "), "{said}");
    assert_eq!(drilled.level, DrillLevel::Server);

    damage_document(&data.join(shard(LOW, "plain")));
    let taken = Taken::of(Couchdb::new(config(&data, &settings(&couchdb))), dir.path()).await.unwrap();
    let drilled = drill(&taken, dir.path()).await;
    assert!(drilled.differences[0].contains("its checksum does not fit"), "{:?}", drilled.differences);
    assert_eq!(drilled.level, DrillLevel::Files, "no node is started on it");
    until("no node is there", || processes(dir.path()) == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_a_cluster_is_only_read() {
    let Some(couchdb) = installation() else { return };
    let dir = tempfile::tempdir().unwrap();
    let more = format!(r#"{}, "node": "couch-a@127.0.0.1""#, settings(&couchdb));
    let data = unpack_cluster(dir.path(), "split");
    for path in truth().keys().filter(|path| path.starts_with("shards/80000000-ffffffff")) {
        std::fs::remove_file(data.join(path)).unwrap();
    }
    let taken = Taken::of(Couchdb::new(config(&data, &more)), dir.path()).await.unwrap();
    let drilled = drill(&taken, dir.path()).await;
    assert_eq!((drilled.level, drilled.differences), (DrillLevel::Stream, Vec::new()));
    assert!(drilled.notes[0].contains("because the point holds a part of a cluster"), "{:?}", drilled.notes);
}

/// Counts who connects.
fn trap() -> (u16, Arc<AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, met) = (listener.local_addr().unwrap().port(), Arc::new(AtomicU32::new(0)));
    let counter = Arc::clone(&met);
    std::thread::spawn(move || {
        for _ in listener.incoming() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    (port, met)
}

/// Stands between the agent and the node that it starts, and holds the request for all documents of a database.
struct Held {
    dir: PathBuf,
}

impl Held {
    /// A `bin_dir` whose program tells the port that it was to take, and has the real one take the next free one.
    fn new(couchdb: &Path, dir: &Path) -> Self {
        let root = dir.join("installation");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::copy(couchdb.join("etc/default.ini"), root.join("etc/default.ini")).unwrap();
        let real = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let script = format!(
            "ini=${{COUCHDB_ARGS_FILE%/*}}/drill.ini\nport=$(sed -n '/^.chttpd.$/,/^.httpd.$/s/^port = //p' \"$ini\")\n\
             sed -i \"s/^port = $port\\$/port = {real}/\" \"$ini\"\necho \"$port {real}\" >{root}/ports.new\n\
             mv {root}/ports.new {root}/ports\nexec {couchdb}/bin/couchdb \"$@\"",
            root = root.display(),
            couchdb = couchdb.display(),
        );
        std::fs::write(root.join("script.txt"), format!("#!/bin/sh\n{script}\n")).unwrap();
        // Another process writes the program: a descriptor open for writing here could reach a child that another test
        // starts, and the kernel does not run a file that is open for writing.
        let mut install = std::process::Command::new("install");
        let install = install.args(["-D", "-m", "755"]).arg(root.join("script.txt")).arg(root.join("bin/couchdb"));
        assert!(install.status().unwrap().success());
        Self { dir: root }
    }

    /// Waits for the node to be started, then stands in for it, and returns when the agent reads documents.
    fn reached(&self) {
        let ports = self.dir.join("ports");
        until("a node is started", || ports.exists());
        let text = std::fs::read_to_string(&ports).unwrap();
        std::fs::remove_file(&ports).unwrap();
        let (own, real) = text.trim().split_once(' ').unwrap();
        let listener = TcpListener::bind(format!("127.0.0.1:{own}")).unwrap();
        let real = format!("127.0.0.1:{real}");
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Until the node is up there is nobody to ask.
                let Ok(server) = TcpStream::connect(&real) else { continue };
                let (mut back, mut to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || std::io::copy(&mut back, &mut to));
                let tell = tell.clone();
                std::thread::spawn(move || forward(client, server, &tell));
            }
        });
        told.recv_timeout(Duration::from_secs(60)).unwrap();
    }
}

fn forward(mut client: TcpStream, mut server: TcpStream, tell: &std::sync::mpsc::Sender<()>) {
    let mut bytes = [0; 65536];
    while let Ok(n @ 1..) = client.read(&mut bytes) {
        let text = String::from_utf8_lossy(&bytes[..n]);
        if text.contains("/_all_docs?") && !text.contains("_dbs/") {
            let _ = tell.send(());
            return;
        }
        if server.write_all(&bytes[..n]).is_err() {
            return;
        }
    }
}

/// The agent's configuration for a drill of the points in `dir/points`.
fn configure(dir: &Path, more: &str) {
    let root = dir.display();
    std::fs::create_dir_all(dir.join("scratch")).unwrap();
    let text = format!(
        "host: h1\nstate_dir: {root}/state\nservices:\n  couch:\n    couchdb: {{\"data_dir\": \"{root}/old/data\"{more}}}\n    \
         backup_dir: {root}/points\n    keep: {{daily: 7}}\ndrill: {{scratch_dir: {root}/scratch}}\n"
    );
    std::fs::write(dir.join("backstay.yml"), text).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_connects_to_nobody_and_a_killed_one_leaves_no_node() {
    let Some(couchdb) = installation() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (port, met) = trap();
    let old = Node::new(&couchdb, &dir.path().join("old"), "old");
    old.start().await;
    old.fill().await;
    let url = |db: &str| format!("http://127.0.0.1:{port}/{db}");
    old.put("/team%2F_replicator", &json!({})).await;
    for db in ["_replicator", "team/_replicator"] {
        let job = json!({"source": url("a"), "target": url("b"), "continuous": true});
        old.put(&format!("/{}/trap", super::node::quote(db)), &job).await;
    }
    let run = |args: &[&str]| {
        let config = dir.path().join("backstay.yml");
        let all: Vec<&str> = ["--config", config.to_str().unwrap()].iter().chain(args).copied().collect();
        backstay(&all).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    configure(dir.path(), &old.settings());
    ended(run(&["backup"])).ok();
    drop(old);

    let held = Held::new(&couchdb, dir.path());
    configure(dir.path(), &settings(&held.dir));
    let agent = run(&["drill"]);
    held.reached();
    assert!(processes(&dir.path().join("scratch")) > 0);
    // Jobs of a restored node begin some seconds after its maps are right: as they are now.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(met.load(Ordering::Relaxed), 0, "a job of production ran");
    kill(Pid::from_raw(i32::try_from(agent.id()).unwrap()), Signal::SIGKILL).unwrap();
    assert_eq!(ended(agent).code, -1);
    assert!(processes(&dir.path().join("scratch")) > 0, "the node still runs");
    configure(dir.path(), &settings(&couchdb));
    let said = ended(run(&["drill"])).ok();
    assert!(said.contains(": proven from local in "), "{said}");
    assert_eq!(processes(&dir.path().join("scratch")), 0);
    assert_eq!(std::fs::read_dir(dir.path().join("scratch")).unwrap().count(), 0);

    control(&couchdb, dir.path(), &met).await;
}

/// The same point on a node that is restored in earnest: the trap does work.
async fn control(couchdb: &Path, dir: &Path, met: &AtomicU32) {
    let old = Node::new(couchdb, &dir.join("again"), "again");
    let source = Couchdb::new(config(&dir.join("old/data"), &old.settings()));
    let taken = Taken::of(source, dir).await.unwrap();
    old.start().await;
    old.put("/_node/_local/_config/replicator/max_jobs", &json!("500")).await;
    let target = Couchdb::new(config(&old.data(), &old.settings()));
    let request =
        RestoreRequest { replace: true, start: true, wait: Some(Duration::from_secs(90)), ..RestoreRequest::default() };
    target.restore(&taken.cx, &taken.point(), &request).await.unwrap();
    for _ in 0..600 {
        if met.load(Ordering::Relaxed) > 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("the trap was never met, so it proves nothing");
}
