//! What an operator relies on: a real node with many databases, backed up under load into a bucket, destroyed, and
//! restored from the bucket alone onto a node of another name.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};

use super::node::{Node, installation, quote};
use crate::common::fake::ended;
use crate::common::{Ran, backstay, rgw};

/// Databases, and documents of each before the load begins.
const DATABASES: usize = 50;
const DOCUMENTS: usize = 40;

fn names() -> Vec<String> {
    let name = |n: usize| match n % 6 {
        0 => format!("user/foo{n}"),
        1 => format!("a+b$c_d{n}"),
        2 => format!("deep/er/than_{n}"),
        3 => format!("p(q)r-{n}"),
        4 => format!("x$y/{n}+"),
        _ => format!("{}{n}", "long".repeat(40)),
    };
    (0..DATABASES).map(name).collect()
}

/// A database with all that users put into one.
async fn fill(node: &Node, db: &str) {
    let at = quote(db);
    node.put(&format!("/{at}"), &json!({})).await;
    let docs: Vec<Value> = (0..DOCUMENTS).map(|n| json!({"_id": format!("doc-{n:03}"), "n": n, "db": db})).collect();
    node.post(&format!("/{at}/_bulk_docs"), &json!({"docs": docs})).await;
    let torn = json!({"new_edits": false, "docs": [
        {"_id": "torn", "_rev": "1-a", "v": 1}, {"_id": "torn", "_rev": "1-b", "v": 2},
    ]});
    node.post(&format!("/{at}/_bulk_docs"), &torn).await;
    let gone = node.get(&format!("/{at}/doc-000")).await;
    let path = format!("/{at}/doc-000?rev={}", gone["_rev"].as_str().unwrap());
    assert_eq!(node.ask(Method::DELETE, &path, None).await.0, 200);
    let text = "aGVsbG8g".repeat(4000);
    let files =
        json!({"a b.txt": {"content_type": "text/plain", "data": text}, "c": {"content_type": "x/y", "data": ""}});
    node.put(&format!("/{at}/with-files"), &json!({"_attachments": files})).await;
    let security = json!({"admins": {"names": [db], "roles": []}, "members": {"names": [], "roles": ["_admin"]}});
    node.put(&format!("/{at}/_security"), &security).await;
    let design = json!({"views": {"by_n": {"map": "function(doc){if(doc.n!==undefined)emit(doc.n,null)}"}}});
    node.put(&format!("/{at}/_design/v"), &design).await;
    node.get(&format!("/{at}/_design/v/_view/by_n?limit=1")).await;
}

/// A digest of each document: its content with attachments and conflicts, and all its leaves; of deleted ones, these.
async fn digests(node: &Node, db: &str) -> BTreeMap<String, String> {
    let at = quote(db);
    let changes = node.get(&format!("/{at}/_changes?style=all_docs")).await;
    let mut found = BTreeMap::new();
    for change in changes["results"].as_array().unwrap() {
        let mut leaves: Vec<String> =
            change["changes"].as_array().unwrap().iter().map(|c| c["rev"].as_str().unwrap().to_owned()).collect();
        leaves.sort();
        found.insert(change["id"].as_str().unwrap().to_owned(), leaves.join(" "));
    }
    let docs = node.get(&format!("/{at}/_all_docs?include_docs=true&conflicts=true&attachments=true")).await;
    for row in docs["rows"].as_array().unwrap() {
        let digest = found.get_mut(row["id"].as_str().unwrap()).expect("a change of every document");
        digest.push_str(&blake3::hash(row["doc"].to_string().as_bytes()).to_hex());
    }
    found.remove("_design/_auth");
    found.insert("_security".into(), node.get(&format!("/{at}/_security")).await.to_string());
    found
}

/// What was acknowledged: database, document, revision.
type Acknowledged = Arc<Mutex<Vec<(String, String, String)>>>;

/// Writes documents to all databases, and compacts them, until told to stop.
async fn load(node: Arc<Node>, stop: Arc<AtomicBool>, acknowledged: Acknowledged) {
    let names = names();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let db = &names[n % names.len()];
        let id = format!("load-{n:06}");
        let mut doc = json!({"n": n, "text": "y".repeat(n % 700)});
        if n % 10 == 0 {
            doc["_attachments"] = json!({"f": {"content_type": "x/y", "data": "aGVsbG8g".repeat(n % 97)}});
        }
        let (status, answer) = node.ask(Method::PUT, &format!("/{}/{id}", quote(db)), Some(&doc)).await;
        assert!(status < 300, "{status} {answer}");
        acknowledged.lock().unwrap().push((db.clone(), id, answer["rev"].as_str().unwrap().to_owned()));
        if n % 25 == 0 {
            node.post(&format!("/{}/_compact", quote(db)), &json!({})).await;
        }
    }
}

fn configure(dir: &Path, host: &str, node: &Node, couchdb: &Path) {
    let root = dir.display();
    let keys = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", rgw::ACCESS, rgw::SECRET);
    std::fs::create_dir_all(dir.join("scratch")).unwrap();
    std::fs::write(dir.join("keys"), keys).unwrap();
    std::fs::set_permissions(dir.join("keys"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let text = format!(
        "environment: production\nhost: {host}\nstate_dir: {root}/state\ndestinations:\n  offsite:\n    s3: {{bucket: \
         couchdb-fifty, endpoint: \"{}\", credentials: {{file: {root}/keys}}}}\nservices:\n  couch:\n    couchdb: {{\"data_dir\": \
         {:?}{}, \"bin_dir\": {:?}}}\n    destinations: [offsite]\n    keep: {{daily: 7}}\ndrill: {{scratch_dir: {root}/scratch}}\n",
        rgw::endpoint(),
        node.data().display().to_string(),
        node.settings(),
        couchdb.join("bin").display().to_string(),
    );
    std::fs::write(dir.join("backstay.yml"), text).unwrap();
}

fn run(dir: &Path, args: &[&str]) -> Ran {
    let config = dir.join("backstay.yml");
    let all: Vec<&str> = ["--config", config.to_str().unwrap()].iter().chain(args).copied().collect();
    ended(backstay(&all).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_databases_under_load_come_back_from_the_bucket_on_a_node_of_another_name() {
    let Some(couchdb) = installation() else { return };
    rgw::make_bucket("couchdb-fifty", false).await;
    let dir = tempfile::tempdir().unwrap();
    let host = dir.path().join("db1");
    let old = Arc::new(Node::new(&couchdb, &host.join("node"), "old"));
    old.start().await;
    for db in ["_users", "_replicator"] {
        old.put(&format!("/{db}"), &json!({})).await;
    }
    let mut before = BTreeMap::new();
    for db in names() {
        fill(&old, &db).await;
        before.insert(db.clone(), digests(&old, &db).await);
    }
    configure(&host, "db1", &old, &couchdb);
    let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Acknowledged::default());
    let writers: Vec<_> =
        [tokio::spawn(load(Arc::clone(&old), Arc::clone(&stop), Arc::clone(&acknowledged)))].into_iter().collect();
    while acknowledged.lock().unwrap().len() < 300 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let certain = acknowledged.lock().unwrap().clone();
    let began = Instant::now();
    run(&host, &["backup"]).ok();
    let backup = began.elapsed();
    stop.store(true, Ordering::Relaxed);
    for writer in writers {
        writer.await.unwrap();
    }
    let all = acknowledged.lock().unwrap().len();
    drop(old);
    std::fs::remove_dir_all(&host).unwrap();

    let host = dir.path().join("db2");
    let new = Node::new(&couchdb, &host.join("node"), "new");
    configure(&host, "db2", &new, &couchdb);
    let began = Instant::now();
    let args = ["restore", "couch", "latest", "--from", "offsite", "--host", "db1", "--replace", "--start"];
    run(&host, &args).ok();
    let restore = began.elapsed();
    compare(&new, &before, &certain).await;
    let drilled = run(&host, &["drill", "couch", "--host", "db1"]).ok();
    assert!(drilled.contains(": proven from offsite in "), "{drilled}");
    eprintln!(
        "{} documents in {DATABASES} databases before, {} acknowledged under load before the backup, {all} when it ended; \
         backup {backup:.1?}, restore {restore:.1?}",
        before.values().map(BTreeMap::len).sum::<usize>(),
        certain.len(),
    );
}

/// Every document that was there before the load, and every one that was acknowledged before the backup, is there.
async fn compare(
    new: &Node,
    before: &BTreeMap<String, BTreeMap<String, String>>,
    certain: &[(String, String, String)],
) {
    let there: Vec<String> = new.databases().await.into_iter().filter(|db| !db.starts_with('_')).collect();
    assert_eq!(there, before.keys().cloned().collect::<Vec<_>>());
    for (db, wanted) in before {
        let found = digests(new, db).await;
        for (id, digest) in wanted {
            assert_eq!(found.get(id), Some(digest), "{db} {id}");
        }
        for id in found.keys().filter(|id| !wanted.contains_key(*id)) {
            assert!(id.starts_with("load-"), "{db} {id}");
        }
        for (_, id, rev) in certain.iter().filter(|(of, ..)| of == db) {
            assert!(found.get(id).is_some_and(|digest| digest.starts_with(rev)), "{db} {id} {rev}");
        }
        let rows = new.get(&format!("/{}/_design/v/_view/by_n", quote(db))).await;
        let emitted = found.keys().filter(|id| id.starts_with("load-") || id.starts_with("doc-")).count() - 1;
        assert_eq!(rows["rows"].as_array().unwrap().len(), emitted, "{db}: the deleted one is not in the view");
    }
}
