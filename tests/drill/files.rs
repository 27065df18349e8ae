//! Drills of stores that need no server, as users run them: proven, damaged, and killed while they work.

#![allow(clippy::disallowed_methods, reason = "the program is run as users run it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backstay;
use crate::common::fake::{ended, until};
use crate::couchdb::data::{LOW, shard, unpack};
use crate::couchdb::drill::damage_document;

struct Stores {
    dir: tempfile::TempDir,
}

impl Stores {
    fn new() -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        unpack(made.dir.path());
        fs::create_dir_all(made.path("blobs")).unwrap();
        fs::create_dir(made.path("scratch")).unwrap();
        fs::create_dir(made.path("none")).unwrap();
        let root = made.dir.path().display();
        let text = format!(
            "host: h1\nstate_dir: {root}/state\nservices:\n  couch:\n    couchdb: {{data_dir: {root}/data, url: \
             \"http://127.0.0.1:9\", bin_dir: {root}/none}}\n    backup_dir: {root}/couch\n    keep: {{daily: 7}}\n  blobs:\n    \
             blobdir: {{path: {root}/blobs}}\n    backup_dir: {root}/blob-points\n    keep: {{daily: 7}}\ndrill: {{scratch_dir: \
             {root}/scratch}}\n",
        );
        fs::write(made.path("backstay.yml"), text).unwrap();
        made
    }
    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
    fn spawn(&self, args: &[&str]) -> std::process::Child {
        let config = self.path("backstay.yml");
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(args);
        backstay(&all).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
    fn scratch(&self) -> Vec<PathBuf> {
        fs::read_dir(self.path("scratch")).unwrap().flatten().map(|e| e.path()).collect()
    }
    /// The record of the only drill.
    fn record(&self, service: &str) -> serde_json::Value {
        let dir = self.path(&format!("state/services/{service}/drills"));
        let all: Vec<PathBuf> = fs::read_dir(dir).unwrap().flatten().map(|e| e.path()).collect();
        assert_eq!(all.len(), 1);
        serde_json::from_str(&fs::read_to_string(&all[0]).unwrap()).unwrap()
    }
}

/// Starts a drill and kills it as soon as `reached`, in which it has just written something.
fn killed(stores: &Stores, service: &str, reached: impl Fn(&Path) -> bool) {
    let child = stores.spawn(&["drill", service]);
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    until("the drill is at work", || {
        // Stopped while it is looked at, so that it cannot end in between.
        kill(pid, Signal::SIGSTOP).unwrap();
        let there = stores.scratch().iter().any(|dir| reached(&dir.join("copy")));
        if !there {
            kill(pid, Signal::SIGCONT).unwrap();
        }
        there
    });
    kill(pid, Signal::SIGKILL).unwrap();
    assert_eq!(ended(child).code, -1);
    assert_eq!(stores.scratch().len(), 1, "it could not clear up");
    let said = ended(stores.spawn(&["drill", service])).ok();
    assert!(said.contains(": proven from local in "), "{said}");
    assert_eq!(stores.scratch(), [""; 0].map(PathBuf::from), "the next one did");
}

#[test]
fn a_damaged_document_is_found_by_the_drill_alone() {
    let stores = Stores::new();
    ended(stores.spawn(&["backup", "couch"])).ok();
    ended(stores.spawn(&["drill", "couch"])).ok();
    let record = stores.record("couch");
    assert_eq!((&record["result"], &record["level"]), (&"proven".into(), &"stream".into()), "{record}");
    fs::remove_dir_all(stores.path("state/services/couch/drills")).unwrap();

    let path = shard(LOW, "plain");
    damage_document(&stores.path("data").join(&path));
    ended(stores.spawn(&["backup", "couch", "--manual"])).ok();
    let ran = ended(stores.spawn(&["drill", "couch"]));
    assert_eq!(ran.code, 65, "{ran:#?}");
    assert!(ran.stderr.contains(&format!("{path} is damaged: ")) && ran.stderr.contains("\"doc-"), "{ran:#?}");
    let record = stores.record("couch");
    assert_eq!(record["result"], "damaged");
    assert!(record["differences"][0].as_str().unwrap().starts_with(&path), "{record}");
    assert_eq!(stores.scratch().len(), 0);
}

#[test]
fn after_kill_9_the_next_drill_of_files_clears_up() {
    let stores = Stores::new();
    for n in 0..400 {
        fs::write(stores.path(&format!("blobs/{n:03}")), vec![u8::try_from(n % 256).unwrap(); 50_000]).unwrap();
    }
    ended(stores.spawn(&["backup", "blobs"])).ok();
    killed(&stores, "blobs", |copy| fs::read_dir(copy.join("files")).is_ok_and(|files| files.count() > 5));
}

#[test]
fn after_kill_9_the_next_drill_of_shards_clears_up() {
    let stores = Stores::new();
    ended(stores.spawn(&["backup", "couch"])).ok();
    killed(&stores, "couch", Path::exists);
}
