//! Snapshots that are still running when something happens: others make one, the agent is killed, the server is killed.

#![allow(clippy::disallowed_methods, reason = "processes are killed as an accident would")]

use std::sync::OnceLock;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::common::fake::{alive, ended, until};
use crate::common::search::{Deployment, ELASTICSEARCH, Engine, Node, OPENSEARCH, asked_for, start};

/// A node whose snapshots take long: what is meant to be running must not end by itself.
fn node(engine: Engine) -> Option<Node> {
    let node = start(asked_for().unwrap_or(engine), &[])?;
    node.fill("slow-a", 10, 1);
    let noise: String = (0..40_000u64).map(|n| format!("{:016x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15))).collect();
    node.must("PUT", "/slow-a/_doc/noise?refresh=true", Some(&json!({"noise": noise})));
    Some(node)
}

const SLOW: &str = "      include: ['slow-*']\n      wait_for_others: 1s\n      repositories:\n        \
                    slow: {fs: {location: slow}, settings: {max_snapshot_bytes_per_sec: 10kb}}\n";
const FAST: &str = "      include: ['slow-*']\n      wait_for_others: 1s\n      repositories:\n        \
                    slow: {fs: {location: slow}, settings: {max_snapshot_bytes_per_sec: 40mb}}\n";
const KEEP: &str = "    keep: {daily: 3}\n";

/// The snapshot that runs in a repository.
fn running(node: &Node) -> Option<String> {
    let (status, answer) = node.ask("GET", "/_snapshot/_status", None);
    assert_eq!(status, 200);
    Some(answer["snapshots"][0]["snapshot"].as_str()?.to_owned())
}

/// One node for the tests that only abort what runs there; they come one after the other.
fn shared_node() -> Option<(Node, std::sync::MutexGuard<'static, ()>)> {
    static NODE: OnceLock<Option<Node>> = OnceLock::new();
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let guard = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    Some((NODE.get_or_init(|| node(OPENSEARCH)).clone()?, guard))
}

#[test]
fn another_snapshot_is_waited_for_and_then_named() {
    let Some((node, _guard)) = shared_node() else { return };
    let slow = json!({"type": "fs", "settings": {"location": "others", "max_snapshot_bytes_per_sec": "10kb"}});
    node.must("PUT", "/_snapshot/others", Some(&slow));
    let body = json!({"indices": "slow-a", "include_global_state": false});
    node.must("PUT", "/_snapshot/others/theirs", Some(&body));
    until("their snapshot runs", || running(&node).is_some());
    let at = Deployment::new(&node.url, FAST, KEEP);
    let ran = at.run(&["backup"]);
    assert_eq!(ran.code, 75, "{ran:#?}");
    assert!(ran.stderr.contains("another snapshot is being made: theirs in repository others"), "{ran:#?}");
    assert!(ran.stderr.contains("hint: waited 1s for it; `wait_for_others` sets the limit."), "{ran:#?}");
    assert!(at.points().is_empty());
    node.must("DELETE", "/_snapshot/others/theirs", None);
    at.run(&["backup"]).ok();
    assert_eq!(at.points()[0].1, "complete");
}

#[test]
fn what_a_killed_agent_left_running_is_removed_by_the_next_run() {
    let Some((node, _guard)) = shared_node() else { return };
    let at = Deployment::new(&node.url, SLOW, KEEP);
    let mut child = at.command(&["backup"]).spawn().unwrap();
    let mut left = None;
    until("its snapshot runs", || {
        left = running(&node);
        left.is_some() || child.try_wait().unwrap().is_some()
    });
    let left = left.expect("a snapshot that runs");
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGKILL).unwrap();
    drop(ended(child));
    assert_eq!(running(&node).as_ref(), Some(&left), "the server goes on without the agent");
    at.configure(&node.url, FAST, KEEP);
    at.run(&["backup"]).ok();
    let points = at.points();
    assert_eq!(points.len(), 1);
    let name = at.manifest(&points[0].0)["external"][0]["name"].as_str().unwrap().to_owned();
    assert_ne!(name, left);
    assert!(!node.snapshots("slow").contains(&left), "{left} is still there");
    assert!(node.snapshots("slow").contains(&name));
}

#[test]
fn a_stopped_agent_takes_its_snapshot_with_it() {
    let Some((node, _guard)) = shared_node() else { return };
    let at = Deployment::new(&node.url, SLOW, KEEP);
    let mut child = at.command(&["backup"]).spawn().unwrap();
    until("its snapshot runs", || running(&node).is_some() || child.try_wait().unwrap().is_some());
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let ran = ended(child);
    assert_eq!(ran.code, 143, "{ran:#?}");
    assert_eq!(running(&node), None);
    assert!(at.points().is_empty());
}

#[test]
fn a_snapshot_that_takes_too_long_or_is_aborted_is_none() {
    let Some((node, _guard)) = shared_node() else { return };
    let at = Deployment::new(&node.url, &format!("      snapshot_timeout: 1s\n{SLOW}"), KEEP);
    let ran = at.run(&["backup"]);
    assert_eq!(ran.code, 69, "{ran:#?}");
    assert!(ran.stderr.contains(" was not done within 1s"), "{ran:#?}");
    assert_eq!(running(&node), None, "it was aborted");
    at.configure(&node.url, SLOW, KEEP);
    let mut child = at.command(&["backup"]).spawn().unwrap();
    until("its snapshot runs", || running(&node).is_some() || child.try_wait().unwrap().is_some());
    let name = running(&node).unwrap();
    node.must("DELETE", &format!("/_snapshot/slow/{name}"), None);
    let ran = ended(child);
    assert_eq!(ran.code, 69, "{ran:#?}");
    assert!(ran.stderr.contains(&format!("snapshot {name} was accepted, and then it was gone")), "{ran:#?}");
    assert!(at.points().is_empty());
}

#[test]
fn a_server_that_is_killed_meanwhile_leaves_no_restore_point() {
    let Some(node) = node(ELASTICSEARCH) else { return };
    let at = Deployment::new(&node.url, SLOW, KEEP);
    let mut child = at.command(&["backup"]).spawn().unwrap();
    until("its snapshot runs", || running(&node).is_some() || child.try_wait().unwrap().is_some());
    kill(node.pid(), Signal::SIGKILL).unwrap();
    node.again();
    until("the agent has seen it", || !alive(Pid::from_raw(i32::try_from(child.id()).unwrap())));
    let ran = ended(child);
    assert_eq!(ran.code, 69, "{ran:#?}");
    // Elasticsearch 6 accepts only when the snapshot runs already.
    let early = node.is_old() && ran.stderr.contains("could not begin snapshot");
    assert!(early || ran.stderr.contains("was accepted, and then it was gone"), "{ran:#?}");
    assert!(at.points().is_empty());
    at.configure(&node.url, FAST, KEEP);
    at.run(&["backup"]).ok();
    node.must("DELETE", "/slow-a", None);
    at.run(&["restore", "search", "latest"]).ok();
    assert_eq!(node.documents("slow-a").len(), 11);
}

/// Restores of this node take long, or no longer.
fn slow_restores(node: &Node, slow: bool) {
    let rate = if slow { json!("10kb") } else { serde_json::Value::Null };
    node.must("PUT", "/_cluster/settings", Some(&json!({"transient": {"indices.recovery.max_bytes_per_sec": rate}})));
}

/// Names of indices that begin so.
fn indices(node: &Node, start: &str) -> Vec<String> {
    let found = node.must("GET", "/_cluster/state/metadata?filter_path=metadata.indices.*.state", None);
    let names = found["metadata"]["indices"].as_object().into_iter().flatten().map(|(name, _)| name.clone());
    names.filter(|n| n.starts_with(start)).collect()
}

/// Runs the program until an index is there whose name begins so, and ends it by `signal`; the index.
fn interrupted(node: &Node, at: &Deployment, args: &[&str], start: &str, signal: Signal) -> String {
    let mut child = at.command(args).spawn().unwrap();
    let mut left = Vec::new();
    until("the copy is there", || {
        left = indices(node, start);
        !left.is_empty() || child.try_wait().unwrap().is_some()
    });
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
    let ran = ended(child);
    assert_eq!(ran.code, if signal == Signal::SIGKILL { -1 } else { 143 }, "{ran:#?}");
    left.pop().unwrap()
}

#[test]
fn what_a_killed_drill_left_is_removed_by_the_next() {
    let Some((node, _guard)) = shared_node() else { return };
    let at = Deployment::new(&node.url, FAST, KEEP);
    at.run(&["backup"]).ok();
    slow_restores(&node, true);
    interrupted(&node, &at, &["drill"], "backstay-drill-search_", Signal::SIGTERM);
    assert_eq!(indices(&node, "backstay-"), [""; 0], "a stopped one clears up");
    let left = interrupted(&node, &at, &["drill"], "backstay-drill-search_", Signal::SIGKILL);
    assert_eq!(indices(&node, "backstay-"), [left]);
    slow_restores(&node, false);
    at.run(&["backup", "--manual"]).ok();
    let newest = at.points().pop().unwrap().0;
    assert_eq!(at.manifest(&newest)["counts"]["indices"], 1, "a copy of a drill is not captured");
    at.run(&["drill"]).ok();
    assert_eq!(indices(&node, "backstay-"), [""; 0]);
}

#[test]
fn what_a_killed_restore_left_is_removed_by_the_next_run() {
    let Some((node, _guard)) = shared_node() else { return };
    let at = Deployment::new(&node.url, FAST, KEEP);
    at.run(&["backup"]).ok();
    let before = node.documents("slow-a");
    let foreign = "backstay-restore-search-more_0a1b2c3d_012345_slow-a";
    node.fill(foreign, 1, 1);
    let restore = ["restore", "search", "latest", "--replace"];
    let killed = || {
        slow_restores(&node, true);
        let left = interrupted(&node, &at, &restore, "backstay-restore-search_", Signal::SIGKILL);
        slow_restores(&node, false);
        assert_eq!(indices(&node, "backstay-"), [foreign.to_owned(), left.clone()]);
        left
    };
    killed();
    at.run(&["backup", "--manual"]).ok();
    assert_eq!(indices(&node, "backstay-"), [foreign], "by the next backup");
    killed();
    at.run(&restore).ok();
    assert_eq!((indices(&node, "backstay-"), node.documents("slow-a")), (vec![foreign.to_owned()], before.clone()));

    // It may be all that is left of an index.
    let left = killed();
    node.must("DELETE", "/slow-a", None);
    node.fill("slow-b", 1, 1);
    let ran = at.run(&["backup", "--manual"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    let said = format!("{left} stays: \"slow-a\" is not there, or not whole; reindex or remove it");
    assert!(ran.stderr.contains(&said), "{ran:#?}");
    assert!(indices(&node, "backstay-").contains(&left));
    let point = at.points()[0].0.clone();
    at.run(&["restore", "search", &point]).ok();
    assert_eq!((indices(&node, "backstay-"), node.documents("slow-a")), (vec![foreign.to_owned()], before));
    node.must("DELETE", &format!("/slow-b,{foreign}"), None);
}
