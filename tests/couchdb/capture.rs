//! What is captured of a directory that nobody writes to, and what a verification finds.

use std::fs;

use backstay::source::couchdb::Couchdb;

use super::data::{LOW, Taken, config, shard, truth, unpack};

#[tokio::test(flavor = "multi_thread")]
async fn every_shard_is_counted_as_the_node_itself_counts_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    assert_eq!((&taken.captured.suspect, taken.told()), (&vec![], vec![]));
    let truth = truth();
    assert!(truth.len() > 15);
    for (path, said) in &truth {
        let line = taken.line("path", path);
        for key in ["doc_count", "del_count", "update_seq", "uuid", "disk_version"] {
            assert_eq!(line[key], said[key], "{key} of {path}");
        }
        assert_eq!(line["epochs"][0][0], "couch-a@127.0.0.1");
    }
    let counts = &taken.captured.counts;
    let sum = |key: &str| truth.values().map(|v| v[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((counts["databases"], counts["shards"]), (11, truth.len() as u64));
    assert_eq!((counts["documents"], counts["deleted_documents"]), (sum("doc_count"), sum("del_count")));
    assert_eq!(taken.captured.attributes["node"], "couch-a@127.0.0.1");
    assert_eq!(
        taken.captured.warnings,
        ["1 replication documents may hold passwords, and their jobs start with a restored node"]
    );
    let verified = taken.verify().await;
    assert_eq!(verified.problems, Vec::<String>::new());
    for key in ["databases", "shards", "documents", "deleted_documents", "files", "bytes"] {
        assert_eq!(verified.counts[key], counts[key], "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn indexes_come_first_then_the_maps_then_the_shards() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let low = data.join(shard(LOW, "plain"));
    for name in ["compact", "compact.data", "compact.meta"] {
        fs::write(format!("{}.{name}", low.display()), "work").unwrap();
    }
    fs::create_dir_all(data.join(".delete")).unwrap();
    fs::write(data.join(".delete/0123"), "gone").unwrap();
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let members = taken.members();
    let at = |what: &str| members.iter().position(|m| m.starts_with(what)).unwrap();
    let last = |what: &str| members.iter().rposition(|m| m.starts_with(what)).unwrap();
    assert!(last(".shards/") < at("_dbs.couch") && at("_dbs.couch") < at("shards/"), "{members:#?}");
    assert_eq!(taken.captured.counts["views"], 2);
    for part in [".compact", ".delete", "_nodes.couch"] {
        assert!(!members.iter().any(|m| m.contains(part)), "{part} is in {members:#?}");
    }
    let without = Taken::of(Couchdb::new(config(&data, r#", "views": false"#)), dir.path()).await.unwrap();
    assert!(!without.members().iter().any(|m| m.starts_with(".shards")));
    assert_eq!(without.captured.counts["views"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_shards_are_streamed_and_checked_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let (good, bad) = (shard(LOW, "plain"), shard(LOW, "user/foo"));
    // What was written and not committed when the file was opened: CouchDB passes over it, and so do we.
    let tail: Vec<u8> = (0..9_500_000_u32).map(|n| n.to_le_bytes()[1] | 2).collect();
    let whole = fs::read(data.join(&good)).unwrap();
    fs::write(data.join(&good), [&whole, &tail[..]].concat()).unwrap();
    fs::write(data.join(&bad), &tail[..3_000_000]).unwrap();
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let (line, said) = (taken.line("path", &good), truth()[&good].clone());
    assert_eq!((&line["doc_count"], &line["update_seq"]), (&said["doc_count"], &said["update_seq"]));
    assert_eq!(line["size"].as_u64().unwrap(), (whole.len() + tail.len()) as u64);
    assert_eq!(taken.captured.suspect.len(), 1);
    assert_eq!(taken.line("path", &bad)["damage"], "it has no valid header");
    let problems = taken.verify().await.problems;
    assert_eq!(problems, [format!("{bad} is damaged: it has no valid header")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn checking_headers_only_finds_less_and_verification_finds_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let path = shard(LOW, "plain");
    let whole = fs::read(data.join(&path)).unwrap();
    let source = || Couchdb::new(config(&data, r#", "check": "headers""#));
    assert_eq!(Taken::of(source(), dir.path()).await.unwrap().captured.suspect, Vec::<String>::new());
    let mut late = 0;
    for at in (4096..whole.len()).step_by(4096).filter(|at| whole[*at] == 1) {
        let mut holed = whole.clone();
        let end = (at + 1600).min(holed.len());
        holed[(at + 500).min(end)..end].fill(0);
        fs::write(data.join(&path), holed).unwrap();
        let taken = Taken::of(source(), dir.path()).await.unwrap();
        if taken.captured.suspect.is_empty() && !taken.verify().await.problems.is_empty() {
            late += 1;
        }
    }
    assert!(late > 0, "some holes are below the roots");
    fs::write(data.join(&path), "").unwrap();
    assert_eq!(Taken::of(source(), dir.path()).await.unwrap().captured.suspect.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_kept_and_the_order_of_the_archive_does_not_depend_on_threads() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let one = Taken::of(Couchdb::new(config(&data, r#", "readers": 1"#)), dir.path()).await.unwrap();
    let many =
        Taken::of(Couchdb::new(config(&data, r#", "readers": 8, "io_priority": "idle""#)), dir.path()).await.unwrap();
    assert!(one.sink.bytes("data.tar") == many.sink.bytes("data.tar"));
    let bytes = one.captured.counts["bytes"];
    let began = std::time::Instant::now();
    let rate = bytes * 2;
    let paced = format!(r#", "max_rate": "{}KiB""#, rate / 1024);
    Taken::of(Couchdb::new(config(&data, &paced)), dir.path()).await.unwrap();
    // A lower bound only: a slow machine cannot fail it.
    assert!(began.elapsed() >= std::time::Duration::from_millis(490), "{:?}", began.elapsed());
}
