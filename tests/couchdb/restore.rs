//! Restore of files to the place of a stopped node.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::Path;

use backstay::error::ErrorKind;
use backstay::source::couchdb::{Couchdb, Moment};
use backstay::source::{RestoreRequest, Source as _};

use super::data::{LOW, Taken, config, shard, unpack, unpack_cluster};

/// Every file below a directory, with its content.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(path).unwrap());
            }
        }
    }
    found
}

fn to(dir: &Path) -> RestoreRequest {
    RestoreRequest { to: Some(dir.into()), ..RestoreRequest::default() }
}

/// Settings of a node that is certainly down.
const DOWN: &str = r#", "url": "http://127.0.0.1:9", "node_local_url": "http://127.0.0.1:9""#;

#[tokio::test(flavor = "multi_thread")]
async fn every_file_comes_back_but_never_the_members_of_the_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let low = data.join(shard(LOW, "plain"));
    fs::set_permissions(&low, PermissionsExt::from_mode(0o600)).unwrap();
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let target = dir.path().join("new/data");
    let restored = taken.source.restore(&taken.cx, &taken.point(), &to(&target)).await.unwrap();
    let mut wanted = files(&data);
    assert!(wanted.remove("_nodes.couch").is_some());
    let found = files(&target);
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    assert!(found == wanted, "contents");
    let mode = fs::metadata(target.join(shard(LOW, "plain"))).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(restored.counts["databases"], 11);
    let notes = restored.notes.join("\n");
    assert!(notes.contains("the jobs in _replicator start with the node; --no-replicator leaves them out"), "{notes}");
    assert!(notes.contains("run `backstay restore couchdb test --only-finish`"), "{notes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_moved_aside_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let taken = Taken::of(Couchdb::new(config(&data, DOWN)), dir.path()).await.unwrap();
    fs::write(data.join("shards/newer"), "written since").unwrap();
    let request = RestoreRequest::default();
    let refused = taken.source.restore(&taken.cx, &taken.point(), &request).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    assert!(refused.report().contains("--replace"), "{}", refused.report());
    assert!(data.join("shards/newer").exists());
    let request = RestoreRequest { replace: true, ..request };
    let restored = taken.source.restore(&taken.cx, &taken.point(), &request).await.unwrap();
    let old = restored.old_data.unwrap();
    assert!(old.join("shards/newer").exists() && old.join("_nodes.couch").exists());
    assert!(!data.join("shards/newer").exists() && !data.join("_nodes.couch").exists());
    assert!(files(&data)[&shard(LOW, "plain")] == files(&old)[&shard(LOW, "plain")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_a_process_has_open_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let taken = Taken::of(Couchdb::new(config(&data, DOWN)), dir.path()).await.unwrap();
    let open = fs::File::open(data.join("_dbs.couch")).unwrap();
    let mut other = std::process::Command::new("sleep").arg("600").stdin(open).spawn().unwrap();
    let request = RestoreRequest { replace: true, ..RestoreRequest::default() };
    let refused = taken.source.restore(&taken.cx, &taken.point(), &request).await.unwrap_err();
    other.kill().unwrap();
    other.wait().unwrap();
    assert_eq!(refused.kind, ErrorKind::Refused);
    assert!(refused.report().contains(&format!("process {} has files open in", other.id())), "{}", refused.report());
    taken.source.restore(&taken.cx, &taken.point(), &request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_answers_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let node = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let up = format!(r#", "url": "http://{}""#, node.local_addr().unwrap());
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    // It takes the connection and says nothing: that is up as well.
    let source = Couchdb::new(config(&data, &up));
    let request = RestoreRequest { replace: true, ..RestoreRequest::default() };
    let refused = source.restore(&taken.cx, &taken.point(), &request).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    assert!(refused.report().contains("the node is up, and its files would be replaced"), "{}", refused.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_archive_leaves_the_target_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    taken.sink.change("data.tar", |tar| {
        let at = tar.windows(11).position(|w| w == b"lorem ipsum").unwrap();
        tar[at] ^= 1;
    });
    let target = dir.path().join("target");
    fs::create_dir(&target).unwrap();
    let failed = taken.source.restore(&taken.cx, &taken.point(), &to(&target)).await.unwrap_err();
    assert_eq!(failed.kind, ErrorKind::Corrupt);
    assert!(failed.report().contains("has other content than the inventory says"), "{}", failed.report());
    assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_dropped_meanwhile_is_recorded_and_its_files_do_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    // Dropped after the maps were read: one shard vanishes at once, and the map is gone when they are read again.
    let without = fs::read(data.join("_dbs.couch")).unwrap();
    let gone = data.join(shard(LOW, "plain"));
    let source = Couchdb::new(config(&data, "")).with_hold({
        let dbs = data.join("_dbs.couch");
        move |moment, _| match moment {
            Moment::MapsRead => fs::remove_file(&gone),
            Moment::Read => fs::write(&dbs, older_maps(&without)),
            _ => Ok(()),
        }
    });
    let taken = Taken::of(source, dir.path()).await.unwrap();
    let line = taken.line("db", "plain");
    assert_eq!((&line["dropped"], line.get("damage")), (&true.into(), None));
    assert_eq!(taken.captured.suspect, Vec::<String>::new());
    assert!(taken.told().contains(&"dropped while it was captured: plain".to_owned()), "{:?}", taken.told());
    assert_eq!(taken.verify().await.problems, Vec::<String>::new());
    let target = dir.path().join("target");
    let restored = taken.source.restore(&taken.cx, &taken.point(), &to(&target)).await.unwrap();
    assert!(!files(&target).keys().any(|path| path.contains("/plain.")), "not even the shard that was captured");
    assert!(
        restored.notes.iter().any(|n| n == "database plain was dropped while it was captured and does not come back")
    );
}

/// The maps as they were before any database of a user was made.
fn older_maps(bytes: &[u8]) -> Vec<u8> {
    bytes[..4095].to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_replication_stay_out_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let target = dir.path().join("target");
    let request = RestoreRequest { no_replicator: true, ..to(&target) };
    let restored = taken.source.restore(&taken.cx, &taken.point(), &request).await.unwrap();
    assert!(!files(&target).keys().any(|path| path.contains("_replicator")));
    assert_eq!(restored.counts["databases"], 10);
    assert!(!restored.notes.iter().any(|n| n.contains("start with the node;")), "{:?}", restored.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_point_with_a_damaged_database_restores_the_others_and_ends_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    fs::write(data.join(shard(LOW, "user/foo")), "").unwrap();
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let target = dir.path().join("target");
    let failed = taken.source.restore(&taken.cx, &taken.point(), &to(&target)).await.unwrap_err();
    assert_eq!(failed.kind, ErrorKind::Corrupt);
    assert!(failed.report().contains("databases that the point does not hold whole: user/foo"), "{}", failed.report());
    let there = files(&target);
    assert!(there.contains_key(&shard(LOW, "plain")) && !there.keys().any(|path| path.contains("user/foo.")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_configuration_leaves_the_host_by_an_explicit_word_and_comes_back_beside_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let etc = dir.path().join("etc/local.d");
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("admins.ini"), "[admins]\nadmin = -pbkdf2-x\n").unwrap();
    let more = format!(r#", "etc_dir": {:?}"#, dir.path().join("etc").display().to_string());
    let taken = Taken::of(Couchdb::new(config(&data, &more)), dir.path()).await.unwrap();
    assert_eq!(taken.sink.names(), ["config.tar", "data.tar", "inventory.jsonl"]);
    let target = dir.path().join("target");
    taken.source.restore(&taken.cx, &taken.point(), &to(&target)).await.unwrap();
    let beside = dir.path().join("target.config-20261120T000312Z");
    let text = fs::read_to_string(beside.join("local.d/admins.ini")).unwrap();
    assert_eq!(text, "[admins]\nadmin = -pbkdf2-x\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_every_range_is_enough_for_a_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack_cluster(dir.path(), "copies");
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    assert_eq!(taken.captured.suspect, Vec::<String>::new());
    let attributes = &taken.captured.attributes;
    assert_eq!((attributes["node"].as_str(), attributes["nodes"].as_str()), ("couch-a@127.0.0.1", "2"));
    assert_eq!(taken.verify().await.problems, Vec::<String>::new());
    let restored = taken.source.restore(&taken.cx, &taken.point(), &to(&dir.path().join("target"))).await.unwrap();
    assert_eq!(restored.counts["databases"], 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_has_a_part_of_a_cluster_is_captured_whole_and_not_restored_alone() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack_cluster(dir.path(), "split");
    fs::remove_dir_all(data.join("shards/80000000-ffffffff")).unwrap();
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    assert_eq!(taken.captured.suspect, Vec::<String>::new(), "the other ranges are not this node's");
    assert_eq!(taken.verify().await.problems, Vec::<String>::new());
    let target = dir.path().join("target");
    let refused = taken.source.restore(&taken.cx, &taken.point(), &to(&target)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    let report = refused.report();
    assert!(report.contains("the point holds the shards of node couch-a@127.0.0.1 alone"), "{report}");
    assert!(report.contains("restore the points of all nodes of the cluster by hand"), "{report}");
    assert!(!target.exists());
    let other = Couchdb::new(config(&data, r#", "node": "couch-c@127.0.0.1""#));
    let wrong = Taken::of(other, dir.path()).await.unwrap();
    assert_eq!(wrong.captured.suspect.len(), 1, "nothing of what that node should have is there");
    let nobody = Couchdb::new(config(&data, r#", "node": "nobody@127.0.0.1""#));
    let failed = Taken::of(nobody, dir.path()).await.map(drop).unwrap_err();
    assert!(failed.report().contains("set `node` to the one that this is, of: couch-a@127.0.0.1, couch-c@127.0.0.1"));
}
