//! After the files: the shard maps over HTTP, against what a real node was asked and answered.

use std::fs;
use std::path::Path;

use backstay::error::{Error, ErrorKind};
use backstay::source::couchdb::{Couchdb, Moment};
use backstay::source::{RestoreRequest, Restored, Source as _};
use serde_json::{Value, json};

use super::data::{LOW, Taken, config, shard, unpack};
use super::fake::{Exchange, Fake, Instead, recorded};
use crate::common::write;

/// Settings for a node at `url`.
fn settings(dir: &Path, url: &str) -> String {
    let password = write(dir, "password", "secret\n");
    fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let login = format!(r#""username": "admin", "password": {{"file": "{password}"}}"#);
    format!(r#", "url": "{url}", "node_local_url": "{url}", {login}"#)
}

fn finish() -> RestoreRequest {
    RestoreRequest { only_finish: true, no_replicator: true, ..RestoreRequest::default() }
}

/// A captured directory, and a stand-in for the node that was started with it.
struct Scene {
    dir: tempfile::TempDir,
    taken: Taken,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = unpack(dir.path());
        let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
        // As a restore with `--no-replicator` leaves it.
        for range in ["00000000-7fffffff", "80000000-ffffffff"] {
            fs::remove_file(data.join(shard(&format!("shards/{range}"), "_replicator"))).unwrap();
        }
        Self { dir, taken }
    }

    async fn restore(&self, fake: &Fake, request: &RestoreRequest) -> Result<Restored, Error> {
        let data = self.dir.path().join("data");
        let source = Couchdb::new(config(&data, &settings(self.dir.path(), &fake.url)));
        source.restore(&self.taken.cx, &self.taken.point(), request).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn maps_are_rewritten_and_everything_is_counted_as_with_a_real_node() {
    let scene = Scene::new().await;
    let fake = Fake::start(recorded("finish"));
    let restored = scene.restore(&fake, &finish()).await.unwrap();
    fake.assert_all();
    assert_eq!(restored.counts["databases_compared"], 10);
    assert!(
        restored.notes.contains(&"10 shard maps were rewritten from couch-a@127.0.0.1 to couch-b@127.0.0.1".into())
    );
    assert!(
        restored.notes.contains(&"the shard map of database _replicator was removed: it does not come back".into())
    );
    let asked = fake.asked();
    let first = |what: &str| asked.iter().position(|r| r.starts_with(what)).unwrap();
    assert!(first("DELETE") < first("PUT") && first("PUT") < first("GET /_node/_local/shards"), "{asked:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn version_2_has_its_maps_at_the_node_local_port() {
    let scene = Scene::new().await;
    let old = |mut e: Exchange| {
        e.request = e.request.replace("/_node/_local/", "/");
        if e.request == "GET /" {
            e.answer["version"] = json!("2.3.1");
        }
        e
    };
    let fake = Fake::start(recorded("finish").into_iter().map(old).collect());
    scene.restore(&fake, &finish()).await.unwrap();
    fake.assert_all();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_database_gets_a_map_of_its_own_and_files_beside_the_others() {
    let scene = Scene::new().await;
    let fake = Fake::start(recorded("single"));
    let request = RestoreRequest {
        database: Some("user/foo".into()),
        rename: Some("user/copy".into()),
        ..RestoreRequest::default()
    };
    scene.restore(&fake, &request).await.unwrap();
    fake.assert_all();
    let data = scene.dir.path().join("data");
    let copy = data.join(format!("{LOW}/user/copy.1795132992.couch"));
    assert!(fs::read(&copy).unwrap() == fs::read(data.join(shard(LOW, "user/foo"))).unwrap());
    let names = fs::read_dir(&data).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert!(!names.into_iter().any(|n| n.contains("partial")));

    // The name is taken now: nothing is written, neither map nor file.
    let taken = Fake::start(recorded("finish").into_iter().take(2).collect());
    taken.instead("GET /_node/_local/_dbs/", Instead::Text(200, "{}"));
    let refused = scene.restore(&taken, &request).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    assert!(refused.report().contains("hint: restore it under another name with `--as`"), "{}", refused.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_cannot_be_written_leaves_no_files_behind() {
    let scene = Scene::new().await;
    let fake = Fake::start(recorded("single"));
    fake.instead("PUT", Instead::Text(403, r#"{"error":"forbidden","reason":"by_range missing"}"#));
    let request = RestoreRequest {
        database: Some("user/foo".into()),
        rename: Some("user/copy".into()),
        ..RestoreRequest::default()
    };
    let failed = scene.restore(&fake, &request).await.unwrap_err();
    assert!(failed.report().contains("could not write the shard map of database \"user/copy\""), "{}", failed.report());
    let data = scene.dir.path().join("data");
    assert!(!data.join(format!("{LOW}/user/copy.1795132992.couch")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_came_back_short_is_named_and_the_exit_code_is_65() {
    let scene = Scene::new().await;
    let path = shard(LOW, "user/foo");
    let end = path.rsplit('/').next().unwrap().trim_end_matches(".couch").to_owned();
    let less = |mut e: Exchange| {
        if e.request.contains("00000000-7fffffff%2Fuser%2F") && e.request.ends_with(&end) {
            e.answer["doc_count"] = json!(0);
        }
        e
    };
    let fake = Fake::start(recorded("finish").into_iter().map(less).collect());
    let short = scene.restore(&fake, &finish()).await.unwrap_err();
    fake.assert_known();
    assert_eq!(short.kind.exit_code(), 65);
    assert_eq!(
        short.report(),
        format!(
            "error: 1 databases are not what was captured\n  caused by: user/foo: {path} has 0 documents and 0 deleted ones, \
             and 224 and 0 were captured\nhint: keep users away, and restore these from another point with --database."
        )
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_whose_file_is_not_there_is_not_rewritten() {
    let scene = Scene::new().await;
    let path = shard(LOW, "plain");
    fs::remove_file(scene.dir.path().join("data").join(&path)).unwrap();
    let fake = Fake::start(recorded("finish"));
    let short = scene.restore(&fake, &finish()).await.unwrap_err();
    fake.assert_known();
    assert!(short.report().contains(&format!("plain: {path} is not in the data directory")), "{}", short.report());
    assert!(!fake.asked().iter().any(|r| r.contains("plain")), "nothing touches it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_dropped_meanwhile_loses_its_map_before_anything_else_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let (dbs, gone) = (data.join("_dbs.couch"), data.join(shard(LOW, "plain")));
    let kept = fs::read(&dbs).unwrap();
    let source = Couchdb::new(config(&data, "")).with_hold(move |moment, _| match moment {
        Moment::MapsRead => fs::remove_file(&gone),
        Moment::Read => fs::write(&dbs, &kept[..4095]),
        _ => Ok(()),
    });
    let taken = Taken::of(source, dir.path()).await.unwrap();
    for db in ["plain", "_replicator"] {
        fs::remove_file(data.join(shard("shards/80000000-ffffffff", db))).unwrap();
    }
    // What a node makes of a map without a file: a shard without documents.
    fs::copy(data.join(shard(LOW, "empty")), data.join(shard(LOW, "_replicator"))).unwrap();
    let mut known = recorded("finish");
    let rev = |e: &Exchange| e.answer["rows"].as_array().unwrap().iter().find(|r| r["id"] == "plain").cloned();
    let rev = known.iter().filter(|e| e.request.contains("_all_docs")).find_map(rev).unwrap()["value"]["rev"].clone();
    known.push(Exchange {
        request: format!("DELETE /_node/_local/_dbs/plain?rev={}", rev.as_str().unwrap()),
        body: Value::Null,
        status: 200,
        answer: json!({"ok": true}),
    });
    let fake = Fake::start(known);
    let source = Couchdb::new(config(&data, &settings(dir.path(), &fake.url)));
    source.restore(&taken.cx, &taken.point(), &finish()).await.unwrap();
    fake.assert_known();
    let asked = fake.asked();
    let put = asked.iter().position(|r| r.starts_with("PUT")).unwrap();
    assert!(asked[..put].iter().any(|r| r.starts_with("DELETE /_node/_local/_dbs/plain")), "{asked:#?}");
    assert_eq!(asked.iter().filter(|r| r.contains("plain")).count(), 1, "nothing else touches it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_whose_files_hold_documents_is_never_removed() {
    let dir = tempfile::tempdir().unwrap();
    let data = unpack(dir.path());
    let taken = Taken::of(Couchdb::new(config(&data, "")), dir.path()).await.unwrap();
    let fake = Fake::start(recorded("finish"));
    let source = Couchdb::new(config(&data, &settings(dir.path(), &fake.url)));
    let left = source.restore(&taken.cx, &taken.point(), &finish()).await.unwrap_err();
    assert_eq!(left.kind, ErrorKind::Corrupt);
    assert!(left.report().contains("_replicator: shards/80000000-ffffffff/_replicator."), "{}", left.report());
    assert!(!fake.asked().iter().any(|r| r.starts_with("DELETE")), "{:#?}", fake.asked());
    fake.assert_known();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_answer_is_told_with_its_request_and_nothing_is_written_after_it() {
    let scene = Scene::new().await;
    let list = "GET /_node/_local/_dbs/_all_docs";
    let html = "<html>502 Bad Gateway</html>";
    for (how, kind, told) in [
        (
            Instead::Text(401, r#"{"error":"unauthorized","reason":"no"}"#),
            ErrorKind::Denied,
            "set `username` and `password`",
        ),
        (Instead::Text(403, r#"{"error":"forbidden","reason":"no"}"#), ErrorKind::Denied, "403: forbidden: no"),
        (
            Instead::Text(404, r#"{"error":"not_found","reason":"missing"}"#),
            ErrorKind::NotFound,
            "404: not_found: missing",
        ),
        (Instead::Text(500, r#"{"error":"internal","reason":"x"}"#), ErrorKind::Unavailable, "500: internal: x"),
        (Instead::Text(502, html), ErrorKind::Unavailable, "502: an answer that is not JSON"),
        (Instead::Text(200, html), ErrorKind::Failed, "is not JSON"),
        (Instead::Text(200, "{}"), ErrorKind::Failed, "does not list its shard maps"),
        (Instead::Half, ErrorKind::Unavailable, "could not ask the node: GET"),
        (Instead::Hangup, ErrorKind::Unavailable, "could not ask the node: GET"),
    ] {
        let fake = Fake::start(recorded("finish"));
        fake.instead(list, how.clone());
        let failed = scene.restore(&fake, &finish()).await.unwrap_err();
        assert_eq!(failed.kind, kind, "{how:?}: {}", failed.report());
        assert!(failed.report().contains(told), "{how:?}: {}", failed.report());
        assert!(!failed.report().contains("secret"), "{}", failed.report());
        assert!(!fake.asked().iter().any(|r| r.starts_with("PUT") || r.starts_with("DELETE")), "{how:?}");
        fake.assert_known();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_cluster_is_refused() {
    let scene = Scene::new().await;
    let two = |mut e: Exchange| {
        if e.request == "GET /_membership" {
            e.answer["cluster_nodes"] = json!(["couch-b@127.0.0.1", "couch-c@127.0.0.1"]);
        }
        e
    };
    let fake = Fake::start(recorded("finish").into_iter().map(two).collect());
    let refused = scene.restore(&fake, &finish()).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    let report = refused.report();
    assert!(report.contains("the node is one of a cluster: couch-b@127.0.0.1, couch-c@127.0.0.1"), "{report}");
}
