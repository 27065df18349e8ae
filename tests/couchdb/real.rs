//! Against a real CouchDB: captured while it runs, restored onto a node of another name, compared document by document.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use backstay::error::ErrorKind;
use backstay::source::couchdb::Couchdb;
use backstay::source::{RestoreRequest, Source as _};
use reqwest::Method;
use serde_json::{Value, json};

use super::data::{Taken, config, unpack_cluster};
use super::node::{Node, installation, quote};

/// Restores into a stopped node and lets the restore start it.
fn whole() -> RestoreRequest {
    RestoreRequest { replace: true, start: true, wait: Some(Duration::from_secs(90)), ..RestoreRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_on_a_node_of_another_name() {
    let Some(couchdb) = installation() else { return };
    let dir = tempfile::tempdir().unwrap();
    let old = Node::new(&couchdb, &dir.path().join("old"), "old");
    old.start().await;
    old.fill().await;
    let rows = old.get("/user%2Ffoo/_design/v/_view/by_n").await;
    let mut before = BTreeMap::new();
    for db in old.databases().await {
        before.insert(db.clone(), old.everything(&db).await);
    }
    // The header of a view index is written some seconds after its rows.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let taken = Taken::of(Couchdb::new(config(&old.data(), &old.settings())), dir.path()).await.unwrap();
    assert_eq!(taken.captured.suspect, Vec::<String>::new());
    assert!(taken.captured.server_version.as_deref().is_some_and(|v| v.starts_with("3.")));
    assert_eq!(taken.verify().await.problems, Vec::<String>::new());
    drop(old);

    let new = Node::new(&couchdb, &dir.path().join("new"), "new");
    new.start().await;
    new.put("/only-here", &json!({})).await;
    let source = Couchdb::new(config(&new.data(), &new.settings()));
    let refused = source.restore(&taken.cx, &taken.point(), &RestoreRequest { start: false, ..whole() }).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Refused);
    let restored = source.restore(&taken.cx, &taken.point(), &whole()).await;
    let restored = restored.unwrap_or_else(|e| panic!("{}\n{}", e.report(), new.said()));
    assert_eq!(restored.counts["databases_compared"], before.len() as u64);
    assert!(restored.old_data.unwrap().join("_nodes.couch").exists());
    assert_eq!(new.databases().await, before.keys().cloned().collect::<Vec<_>>());
    for (db, wanted) in &before {
        let found = new.everything(db).await;
        assert!(found == *wanted, "{db}:\n{}", difference(wanted, &found));
    }
    assert_eq!(new.get("/user%2Ffoo/_design/v/_view/by_n").await, rows);
    let login = reqwest::Client::new().get(format!("{}/_session", new.url)).basic_auth("jan", Some("apple"));
    assert_eq!(login.send().await.unwrap().status(), 200, "a user of the old node");
    let members = new.get("/_membership").await;
    assert_eq!(members, json!({"all_nodes": [new.name], "cluster_nodes": [new.name]}));

    one_database(&new, &source, &taken, &before).await;
}

/// Lines of two texts that differ.
fn difference(wanted: &Value, found: &Value) -> String {
    let lines = |v: &Value| serde_json::to_string_pretty(v).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
    let (wanted, found) = (lines(wanted), lines(found));
    let minus = wanted.iter().filter(|l| !found.contains(l)).map(|l| format!("-{l}\n"));
    minus.chain(found.iter().filter(|l| !wanted.contains(l)).map(|l| format!("+{l}\n"))).collect()
}

async fn one_database(new: &Node, source: &Couchdb, taken: &Taken, before: &BTreeMap<String, Value>) {
    let one = |db: &str, name: Option<&str>| RestoreRequest {
        database: Some(db.into()),
        rename: name.map(Into::into),
        ..RestoreRequest::default()
    };
    let refused = source.restore(&taken.cx, &taken.point(), &one("user/foo", None)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    let unknown = source.restore(&taken.cx, &taken.point(), &one("nobody", None)).await.unwrap_err();
    assert_eq!(unknown.kind, ErrorKind::NotFound);
    let name = "user/copy+of$foo";
    source.restore(&taken.cx, &taken.point(), &one("user/foo", Some(name))).await.unwrap();
    assert!(new.everything(name).await == before["user/foo"]);
    assert!(new.databases().await.contains(&name.to_owned()));
    new.put(&format!("/{}/new", quote(name)), &json!({})).await;
    assert!(new.everything("user/foo").await == before["user/foo"], "the original is another one");
    assert_eq!(new.ask(Method::DELETE, "/plain", None).await.0, 200);
    source.restore(&taken.cx, &taken.point(), &one("plain", None)).await.unwrap();
    assert!(new.everything("plain").await == before["plain"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_of_a_cluster_that_had_everything_becomes_a_node_of_its_own() {
    let Some(couchdb) = installation() else { return };
    let dir = tempfile::tempdir().unwrap();
    let data = unpack_cluster(dir.path(), "copies");
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let new = Node::new(&couchdb, &dir.path().join("new"), "new");
    let source = Couchdb::new(config(&new.data(), &new.settings()));
    let restored = source.restore(&taken.cx, &taken.point(), &whole()).await.unwrap();
    assert_eq!(restored.counts["databases_compared"], 11);
    let shards = new.get("/plain/_shards").await;
    assert_eq!(shards["shards"], json!({"00000000-7fffffff": [new.name], "80000000-ffffffff": [new.name]}));
    new.put("/plain/new", &json!({})).await;
}

/// The commands of a document's section "By hand".
fn by_hand() -> Vec<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/couchdb.md")).unwrap();
    let section = page.split("## By hand").nth(1).unwrap();
    section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_document_restore_it_by_hand() {
    let Some(couchdb) = installation() else { return };
    let dir = tempfile::tempdir().unwrap();
    let old = Node::new(&couchdb, &dir.path().join("old"), "old");
    old.start().await;
    old.fill().await;
    let mut before = BTreeMap::new();
    for db in old.databases().await {
        before.insert(db.clone(), old.everything(&db).await);
    }
    let taken = Taken::of(Couchdb::new(config(&old.data(), &old.settings())), dir.path()).await.unwrap();
    drop(old);
    let point = dir.path().join("point");
    std::fs::create_dir(&point).unwrap();
    for name in ["data.tar", "inventory.jsonl"] {
        let packed = zstd::encode_all(taken.sink.bytes(name).as_slice(), 1).unwrap();
        std::fs::write(point.join(format!("{name}.zst")), packed).unwrap();
    }
    let new = Node::new(&couchdb, &dir.path().join("new"), "new");
    let commands = by_hand();
    assert_eq!(commands.len(), 2);
    for (at, script) in commands.iter().enumerate() {
        let login = new.url.replace("http://", "http://admin:secret@");
        let mut bash = std::process::Command::new("bash");
        let bash = bash.args(["-euo", "pipefail", "-c", script]).env("POINT", &point).env("DATA", new.data());
        let out = bash.env("URL", login).output().unwrap();
        assert!(out.status.success(), "{script}\n{}", String::from_utf8_lossy(&out.stderr));
        if at == 0 {
            new.start().await;
        }
    }
    assert_eq!(new.databases().await, before.keys().cloned().collect::<Vec<_>>());
    for (db, wanted) in &before {
        let found = new.everything(db).await;
        assert!(found == *wanted, "{db}:\n{}", difference(wanted, &found));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_short_after_a_restore_is_named() {
    let Some(couchdb) = installation() else { return };
    let dir = tempfile::tempdir().unwrap();
    let old = Node::new(&couchdb, &dir.path().join("old"), "old");
    old.start().await;
    old.fill().await;
    let taken = Taken::of(Couchdb::new(config(&old.data(), &old.settings())), dir.path()).await.unwrap();
    drop(old);
    let new = Node::new(&couchdb, &dir.path().join("new"), "new");
    let source = Couchdb::new(config(&new.data(), &new.settings()));
    let files = RestoreRequest { start: false, no_replicator: true, ..whole() };
    source.restore(&taken.cx, &taken.point(), &files).await.unwrap();
    // Somebody loses a shard before the node starts, and another one is cut to nothing.
    let path = |db: &str| {
        let line =
            taken.lines().into_iter().find(|l| l["path"].as_str().is_some_and(|p| p.contains(&format!("/{db}."))));
        new.data().join(line.unwrap()["path"].as_str().unwrap())
    };
    std::fs::remove_file(path("plain")).unwrap();
    std::fs::OpenOptions::new().write(true).open(path("user/foo")).unwrap().set_len(4096).unwrap();
    new.start().await;
    let finish = RestoreRequest { only_finish: true, no_replicator: true, ..RestoreRequest::default() };
    let short = source.restore(&taken.cx, &taken.point(), &finish).await.unwrap_err();
    assert_eq!(short.kind.exit_code(), 65);
    let report = short.report();
    assert!(report.contains("2 databases are not what was captured"), "{report}");
    assert!(report.contains("plain: shards/") && report.contains("user/foo: shards/"), "{report}");
    assert_eq!(
        new.ask(Method::GET, "/plain", None).await.0,
        500,
        "its map was not rewritten, so no empty file was made"
    );
    assert!(!new.databases().await.contains(&"_replicator".to_owned()));
    assert_eq!(new.get("/a%2Bb%24c_d").await["doc_count"], 90);
}

#[tokio::test(flavor = "multi_thread")]
async fn captures_under_writes_and_compaction_hold_all_that_was_acknowledged() {
    let Some(couchdb) = installation() else { return };
    let rounds = std::env::var("COUCHDB_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(2);
    let dir = tempfile::tempdir().unwrap();
    let old = Arc::new(Node::new(&couchdb, &dir.path().join("old"), "old"));
    old.start().await;
    old.fill().await;
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let load = tokio::spawn(write_on(Arc::clone(&old), Arc::clone(&stop), Arc::clone(&acknowledged)));
    let churn = tokio::spawn(churn_on(Arc::clone(&old), Arc::clone(&stop)));
    let mut taken = Vec::new();
    for _ in 0..rounds {
        while acknowledged.lock().unwrap().len() < 400 * (taken.len() + 1) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let before = acknowledged.lock().unwrap().clone();
        let source = Couchdb::new(config(&old.data(), &old.settings()));
        taken.push((before, Taken::of(source, dir.path()).await.unwrap()));
    }
    stop.store(true, Ordering::Relaxed);
    load.await.unwrap();
    churn.await.unwrap();
    drop(old);
    for (round, (before, taken)) in taken.iter().enumerate() {
        assert_eq!(taken.captured.suspect, Vec::<String>::new(), "{:?}", taken.told());
        assert_eq!(taken.verify().await.problems, Vec::<String>::new());
        let new = Node::new(&couchdb, &dir.path().join(format!("new{round}")), "new");
        let source = Couchdb::new(config(&new.data(), &new.settings()));
        source.restore(&taken.cx, &taken.point(), &whole()).await.unwrap();
        let mut there = std::collections::BTreeSet::new();
        for db in ["plain", "user/foo", "a+b$c_d"] {
            let docs = new.get(&format!("/{}/_all_docs", quote(db))).await;
            there
                .extend(docs["rows"].as_array().unwrap().iter().map(|r| format!("{db} {}", r["id"].as_str().unwrap())));
        }
        let lost: Vec<&String> = before.iter().filter(|id| !there.contains(*id)).collect();
        assert!(lost.is_empty(), "round {round}: {} of {} lost: {:?}", lost.len(), before.len(), lost.first());
        let rows = new.get("/user%2Ffoo/_design/v/_view/by_n?reduce=false").await;
        let docs = there.iter().filter(|id| id.starts_with("user/foo ") && !id.contains("_design")).count();
        assert_eq!(rows["rows"].as_array().unwrap().len(), docs, "the view has every document once");
    }
}

/// Writes documents to three databases until told to stop; remembers what was acknowledged.
async fn write_on(node: Arc<Node>, stop: Arc<AtomicBool>, acknowledged: Arc<std::sync::Mutex<Vec<String>>>) {
    let mut n = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        for db in ["plain", "user/foo", "a+b$c_d"] {
            let id = format!("load-{n:06}");
            node.put(&format!("/{}/{id}", quote(db)), &json!({"n": n, "text": "y".repeat(300)})).await;
            acknowledged.lock().unwrap().push(format!("{db} {id}"));
            n += 1;
        }
    }
}

/// Compacts, makes and drops databases, and asks for the view, until told to stop.
async fn churn_on(node: Arc<Node>, stop: Arc<AtomicBool>) {
    let mut n = 0_u64;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        let db = format!("short-lived-{n}");
        node.put(&format!("/{db}"), &json!({})).await;
        node.put(&format!("/{db}/doc"), &json!({})).await;
        for db in ["plain", "user%2Ffoo", "a%2Bb%24c_d"] {
            node.post(&format!("/{db}/_compact"), &json!({})).await;
        }
        node.get("/user%2Ffoo/_design/v/_view/by_n?limit=1").await;
        if n.is_multiple_of(2) {
            node.ask(Method::DELETE, &format!("/short-lived-{}", n - 1), None).await;
            node.ask(Method::DELETE, &format!("/{db}"), None).await;
        }
    }
}
