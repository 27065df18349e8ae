//! What nodes do not do on demand. However a cluster fails, nothing is called whole that is not, nothing that was good is
//! removed, and the person is told why.

use serde_json::{Value, json};

use super::fake::{Fake, Reply, recorded};
use crate::common::search::Deployment;

const SEARCH: &str =
    "      snapshot_timeout: 2s\n      call_timeout: 1s\n      repositories: {r: {fs: {location: r}}}\n";
const KEEP: &str = "    keep: {daily: 1}\n";

fn as_recorded(case: &str) -> Reply {
    let (status, answer) = recorded(case);
    Reply::Json(status, answer)
}

/// A recorded answer to "create and wait" as the answer to "get", with other names of indices.
fn as_seen(case: &str, change: impl Fn(&mut Value)) -> Reply {
    let (_, answer) = recorded(case);
    let mut snapshot =
        if answer["snapshot"].is_object() { answer["snapshot"].clone() } else { answer["snapshots"][0].clone() };
    change(&mut snapshot);
    Reply::Json(200, json!({"snapshots": [snapshot]}))
}

fn both(s: &mut Value) {
    s["indices"] = json!(["a", "lost"]);
}

fn failed(s: &mut Value) {
    both(s);
    s["state"] = json!("FAILED");
}

fn lacks_one(s: &mut Value) {
    *s = json!({"uuid": "u", "state": "SUCCESS", "indices": ["a"], "shards": {"total": 3, "failed": 0}});
}

fn lacks_shards(s: &mut Value) {
    *s = json!({"uuid": "u", "state": "SUCCESS", "indices": ["a", "lost"], "shards": {"total": 2, "failed": 0}});
}

/// What is asked, the answer, the exit code, what is said.
fn faults() -> Vec<(&'static str, Reply, i32, &'static str)> {
    let html = "<html><head><title>502 Bad Gateway</title></head></html>";
    let login = "<html>Please log in</html>";
    let refused = |status: u16| {
        let error =
            json!({"type": "security_exception", "reason": "no permissions for [cluster:admin/snapshot/create]"});
        Reply::Json(status, json!({"error": error, "status": status}))
    };
    let error = json!({"type": "index_not_found_exception", "reason": "no such index [lost]"});
    let deleted = Reply::Json(404, json!({"error": error, "status": 404}));
    vec![
        ("get", as_seen("create-empty-pattern", |_| ()), 69, "it has no shards, whatever its state says"),
        (
            "get",
            as_seen("full-get", both),
            69,
            "all 2 shards failed: index a, shard 0: IOException[No space left on device]",
        ),
        (
            "get",
            as_seen("partial-get", failed),
            69,
            "its state is \"FAILED\": index lost, shard 0: primary shard is not allocated",
        ),
        ("get", as_seen("partial-get", lacks_one), 69, "1 of 2 indices are not in it: lost"),
        ("get", as_seen("partial-get", lacks_shards), 69, "it has 2 shards of 3"),
        ("get", as_recorded("get-missing"), 69, "was accepted, and then it was gone"),
        ("get", as_recorded("slow-get"), 69, "was not done within 2s"),
        ("get", Reply::Half, 69, "caused by: the answer to GET /_snapshot/r/"),
        ("get", Reply::Hang, 69, "the cluster did not answer GET /_snapshot/r/"),
        ("get", Reply::Text(200, login), 69, "it begins with \"<html>Please log in</html>\""),
        ("get", refused(403), 77, "no permissions for [cluster:admin/snapshot/create] (HTTP status 403)"),
        ("create", as_recorded("full-create"), 1, "failed to update snapshot in repository: No space left on device"),
        ("create", as_recorded("readonly-create"), 69, "hint: only one cluster may write a repository"),
        ("create", refused(401), 77, "hint: check `username` and `password`, or `api_key`, of the service."),
        ("create", refused(403), 77, "hint: grant the user what docs/elasticsearch.md lists under \"Rights\"."),
        ("create", refused(500), 69, "no permissions for [cluster:admin/snapshot/create] (HTTP status 500)"),
        ("create", deleted, 66, "no such index [lost] (HTTP status 404)"),
        ("create", Reply::Json(200, json!({})), 69, "the cluster did not accept snapshot"),
        ("create", Reply::Hang, 69, "the cluster did not answer PUT /_snapshot/r/"),
        ("create", Reply::Half, 69, "caused by: could not begin snapshot"),
        ("verify", as_recorded("full-create"), 1, "the cluster could not use repository \"r\""),
        ("verify", Reply::Hang, 69, "the cluster did not answer POST /_snapshot/r/_verify within 1 s"),
        ("running", Reply::Json(200, json!({})), 69, "the answer is not whole"),
        ("nodes", Reply::Text(200, login), 69, "hint: does `url` lead to a proxy, a login page or another program?"),
        (
            "nodes",
            Reply::Text(502, html),
            69,
            "<html><head><title>502 Bad Gateway</title></head></html> (HTTP status 502)",
        ),
        ("nodes", Reply::Json(200, json!({"nodes": {}})), 69, "the answer names no node"),
        ("nodes", refused(401), 77, "could not ask the nodes for their version"),
        ("indices", Reply::Json(200, json!({})), 69, "could not ask the cluster for its indices"),
        ("sizes", Reply::Json(200, json!({})), 69, "could not ask the cluster for the sizes of its indices"),
    ]
}

#[test]
fn no_fault_leaves_something_whole_or_removes_what_is_good() {
    let fake = Fake::start();
    let at = Deployment::new(&fake.url, SEARCH, KEEP);
    at.run(&["backup"]).ok();
    let good = at.points();
    let kept = fake.snapshots();
    assert_eq!((good.len(), kept.len()), (1, 1));
    for (question, reply, code, text) in faults() {
        let name = format!("{question} {reply:?}");
        fake.instead(question, reply);
        let ran = at.run(&["backup", "--cadence", "daily"]);
        fake.heal();
        assert_eq!(ran.code, code, "{name}: {ran:#?}");
        assert!(ran.stderr.contains(text), "{name}: {ran:#?}");
        assert_eq!(at.points(), good, "{name}");
        assert!(fake.snapshots().contains(&kept[0]), "{name}: the good one was removed");
    }
    // What faults left is removed by the next run, and the old point only after a new good one.
    at.run(&["backup", "--cadence", "daily"]).ok();
    assert_eq!(fake.snapshots().len(), 1, "{:?}", fake.snapshots());
    assert_ne!(fake.snapshots(), kept);
}

#[test]
fn a_partial_snapshot_makes_a_suspect_point_and_prunes_nothing() {
    let fake = Fake::start();
    let at = Deployment::new(&fake.url, SEARCH, KEEP);
    at.run(&["backup"]).ok();
    let kept = fake.snapshots();
    fake.instead("get", as_recorded("partial-get"));
    let ran = at.run(&["backup", "--cadence", "daily"]);
    assert_eq!(ran.code, 10, "{ran:#?}");
    let text =
        "2 of 3 shards failed: index lost, shard 0: primary shard is not allocated; index lost, shard 1: primary";
    assert!(ran.stderr.contains(text), "{ran:#?}");
    let points = at.points();
    assert_eq!(points.iter().map(|(_, state)| state.as_str()).collect::<Vec<_>>(), ["complete", "suspect"]);
    let manifest = at.manifest(&points[1].0);
    assert_eq!(manifest["suspect_reasons"], json!(["repository r: the snapshot is PARTIAL: 2 of 3 shards failed"]));
    assert!(fake.snapshots().contains(&kept[0]));
}

#[test]
fn the_password_goes_to_the_cluster_and_nowhere_else() {
    let fake = Fake::start();
    let at = Deployment::new(&fake.url, SEARCH, KEEP);
    let secret = at.dir.path().join("password");
    std::fs::write(&secret, "hunter2\n").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let search = format!("      username: backup\n      password: {{file: {}}}\n{SEARCH}", secret.display());
    at.configure(&fake.url, &search, KEEP);
    let ran = at.run(&["-vvv", "backup"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let logins = fake.logins();
    assert!(!logins.is_empty() && logins.len() == fake.asked().len());
    assert!(logins.iter().all(|l| l.ends_with("Basic YmFja3VwOmh1bnRlcjI=")), "{logins:?}");
    let manifest = at.manifest(&at.points()[0].0).to_string();
    for text in [&ran.stdout, &ran.stderr, &manifest] {
        assert!(!text.contains("hunter2") && !text.contains("YmFja3VwOmh1bnRlcjI"), "{text}");
    }
}

#[test]
fn an_api_key_goes_to_the_cluster_and_a_wrong_one_is_told() {
    let fake = Fake::start();
    let at = Deployment::new(&fake.url, SEARCH, KEEP);
    let secret = at.dir.path().join("key");
    std::fs::write(&secret, "aWQ6c2VjcmV0\n").unwrap();
    std::fs::set_permissions(&secret, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    at.configure(&fake.url, &format!("      api_key: {{file: {}}}\n{SEARCH}", secret.display()), KEEP);
    at.run(&["backup"]).ok();
    assert!(fake.logins().iter().all(|l| l.ends_with("ApiKey aWQ6c2VjcmV0")), "{:?}", fake.logins());
    let error = json!({"type": "security_exception", "reason": "unable to authenticate with provided credentials"});
    fake.instead("nodes", Reply::Json(401, json!({"error": error, "status": 401})));
    let ran = at.run(&["-vvv", "backup", "--cadence", "daily"]);
    assert_eq!(ran.code, 77, "{ran:#?}");
    assert!(ran.stderr.contains("unable to authenticate with provided credentials (HTTP status 401)"), "{ran:#?}");
    assert!(ran.stderr.contains("hint: check `username` and `password`, or `api_key`, of the service."), "{ran:#?}");
    assert!(!ran.stderr.contains("aWQ6"), "{ran:#?}");
    fake.heal();
}

#[test]
fn a_restore_that_has_no_room_is_refused_before_it_begins() {
    let fake = Fake::start();
    let at = Deployment::new(&fake.url, SEARCH, KEEP);
    at.run(&["backup"]).ok();
    let ran = at.run(&["restore", "search", "latest", "--replace"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    // Two indices of 1000 bytes, twice for a while, in place of as much; a tenth of what is free stays free.
    assert!(ran.stderr.contains("there is no room: 2.0 KiB are needed, 1.8 KiB may be used"), "{ran:#?}");
    assert!(ran.stderr.contains("hint: choose fewer indices with `--index`, or add room."), "{ran:#?}");
    let drilled = at.run(&["drill"]);
    assert_eq!(drilled.code, 1, "{drilled:#?}");
    assert!(drilled.stderr.contains("there is no room"), "{drilled:#?}");
}

#[test]
fn what_the_store_does_not_say_is_unknown_and_nothing_is_removed() {
    let fake = Fake::start();
    let at = Deployment::new(&fake.url, SEARCH, KEEP);
    at.run(&["backup"]).ok();
    at.run(&["backup", "--manual"]).ok();
    fake.instead("list", Reply::Hang);
    assert!(at.points().iter().all(|(_, state)| state == "unknown"), "{:?}", at.points());
    let checked = at.run(&["check-s3"]);
    assert_eq!(checked.code, 3, "{checked:#?}");
    assert!(checked.stdout.contains("could not be found out: the cluster did not answer"), "{checked:#?}");
    let before = fake.snapshots();
    drop(at.run(&["prune"]));
    assert_eq!(fake.snapshots(), before);
    let oldest = at.points()[0].0.clone();
    let refused = at.run(&["prune", "search", "--point", &oldest]);
    assert_eq!(refused.code, 73, "{refused:#?}");
    let text = format!("{oldest} stays at local: the store could not be asked for its snapshots: ");
    assert!(refused.stderr.contains(&text), "{refused:#?}");
    assert_eq!((fake.snapshots(), at.points().len()), (before, 2));
    fake.heal();
    assert!(at.points().iter().all(|(_, state)| state == "complete"));
    at.run(&["prune", "search", "--point", &oldest]).ok();
    assert_eq!(at.points().len(), 1);
}

/// A server with a certificate of a private authority in `dir`; it ends with its standard input, and answers with a page.
#[allow(clippy::disallowed_methods, reason = "a server of another program")]
fn with_tls(dir: &std::path::Path) -> (String, std::process::Child) {
    use std::process::{Command, Stdio};
    let openssl = |line: &str| {
        let done = Command::new("openssl").args(line.split(' ')).current_dir(dir).output().unwrap();
        assert!(done.status.success(), "{line}: {done:?}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2";
    openssl(&format!("req -x509 {key} -subj /CN=authority -keyout ca.key -out ca.pem"));
    openssl(&format!(
        "req -x509 {key} -subj /CN=node -keyout node.key -out node.pem -CA ca.pem -CAkey ca.key \
         -addext subjectAltName=IP:127.0.0.1 -addext basicConstraints=critical,CA:FALSE"
    ));
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let child = Command::new("openssl")
        .args(["s_server", "-www", "-cert", "node.pem", "-key", "node.key", "-accept", &format!("127.0.0.1:{port}")])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    crate::common::fake::until("the server listens", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    (format!("https://127.0.0.1:{port}"), child)
}

#[test]
fn a_private_authority_is_trusted_only_when_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (url, mut child) = with_tls(dir.path());
    let at = Deployment::new(&url, SEARCH, KEEP);
    let unknown = at.run(&["backup"]);
    let search = format!("      ca_file: {}\n{SEARCH}", dir.path().join("ca.pem").display());
    at.configure(&url, &search, KEEP);
    let known = at.run(&["backup"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(unknown.stderr.contains("could not reach the cluster at https://127.0.0.1:"), "{unknown:#?}");
    assert!(unknown.stderr.contains("UnknownIssuer"), "{unknown:#?}");
    assert!(known.stderr.contains("is not one of Elasticsearch or OpenSearch"), "it has spoken with it: {known:#?}");
}
