//! Drills of PostgreSQL that are stopped or killed in each phase: no server and no directory is left by the next one.

#![allow(clippy::disallowed_methods, reason = "the program is run as users run it")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::common::backstay;
use crate::common::fake::{ended, until};
use crate::common::postgres::{Server, bin, fake_tool, server_dir};
use crate::common::s3_fault::{ACCESS, BUCKET, Fault, FaultServer, SECRET};
use crate::common::write;

/// A server with a point of it, and programs that hold where a test wants.
struct Held {
    dir: tempfile::TempDir,
    server: Server,
}

impl Held {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let server = Server::start();
        server.sql("postgres", "create table t as select generate_series(1, 1000) as n");
        let made = Self { dir, server };
        made.configure(Path::new(bin()));
        ended(made.spawn(&["backup"])).ok();
        made
    }
    fn configure(&self, bin: &Path) {
        server_dir(&self.path("scratch"));
        let (root, socket) = (self.dir.path().display(), self.server.dir.path().display());
        let text = format!(
            "host: h1\nstate_dir: {root}/state\nservices:\n  pg:\n    postgres: {{method: plain, host: {socket}, \
             port: 5432, username: postgres, bin_dir: {}}}\n    backup_dir: {root}/local\n    keep: {{daily: 7}}\n\
             drill: {{scratch_dir: {root}/scratch}}\n",
            bin.display()
        );
        std::fs::write(self.path("backstay.yml"), text).unwrap();
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
    /// The only folder below the scratch directory, if there is one.
    fn scratch(&self) -> Option<PathBuf> {
        std::fs::read_dir(self.path("scratch")).unwrap().flatten().map(|e| e.path()).next()
    }
    fn processes(&self) -> usize {
        let all = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path().join("cwd"));
        all.filter_map(|cwd| std::fs::read_link(cwd).ok()).filter(|cwd| cwd.starts_with(self.path("scratch"))).count()
    }
    /// Starts a drill and waits until `tool` holds; it goes on when its mark is removed.
    fn hold(&self, tool: &str) -> (std::process::Child, tempfile::TempDir) {
        let mark = server_dir(&self.path("marks")).join(tool);
        let mark_path = mark.display();
        let script = format!("touch {mark_path}; while [ -e {mark_path} ]; do sleep 0.05; done; exec $real \"$@\"");
        let tools = tempfile::tempdir().unwrap();
        std::fs::set_permissions(tools.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let bin = fake_tool(tools.path(), tool, &script);
        self.configure(&bin);
        let child = self.spawn(&["drill"]);
        until("the drill holds", || mark.exists());
        self.configure(Path::new(crate::common::postgres::bin()));
        (child, tools)
    }
}

fn send(child: &std::process::Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn after_kill_9_in_each_phase_the_next_drill_clears_up() {
    let d = Held::new();
    // What was restored is compared; the server starts, recovers, is compared.
    for tool in ["pg_verifybackup", "pg_controldata", "postgres", "psql", "pg_dumpall"] {
        let (child, _tools) = d.hold(tool);
        let left = d.scratch().expect("a copy of production's data");
        assert!(left.join("copy/data/PG_VERSION").exists(), "{tool}");
        send(&child, Signal::SIGKILL);
        assert_eq!(ended(child).code, -1);
        assert!(d.processes() > 0, "{tool}: whatever ran still runs");
        let said = ended(d.spawn(&["drill"])).ok();
        assert!(said.contains(": proven from local in "), "{said}");
        assert_eq!((d.scratch(), d.processes()), (None, 0), "{tool}");
    }
}

#[test]
fn after_kill_9_while_it_reads_the_next_drill_clears_up() {
    let (d, store) = (Held::new(), FaultServer::start());
    let text = std::fs::read_to_string(d.path("backstay.yml")).unwrap();
    let keys = write(
        d.dir.path(),
        "keys",
        &format!("[default]\naws_access_key_id = {ACCESS}\naws_secret_access_key = {SECRET}\n"),
    );
    std::fs::set_permissions(&keys, std::fs::Permissions::from_mode(0o600)).unwrap();
    let offsite = format!(
        "destinations: {{offsite: {{s3: {{bucket: {BUCKET}, endpoint: \"{}\", part_size: 5MiB, download_concurrency: 2, \
         credentials: {{file: {keys}}}}}}}}}\nservices:\n",
        store.endpoint()
    );
    let text = text.replace("services:\n", &offsite);
    let text = text.replace("    keep:", "    destinations: [offsite]\n    compression: {algorithm: none}\n    keep:");
    std::fs::write(d.path("backstay.yml"), text).unwrap();
    ended(d.spawn(&["backup", "--manual"])).ok();
    // The data is longer than all else: its ranges are the second half of what a drill reads.
    let before = store.count("GetObject");
    ended(d.spawn(&["drill"])).ok();
    let reads = u32::try_from(store.count("GetObject") - before).unwrap();
    store.set_fault(Fault::hang("GetObject").after(reads / 2));
    let child = d.spawn(&["drill"]);
    let begun = || d.scratch().is_some_and(|dir| dir.join("copy/data/base").exists());
    until("some of the data has come", begun);
    let left = d.scratch().unwrap();
    assert!(!left.join("copy/data/backup_manifest").exists(), "the last file of the copy has not");
    send(&child, Signal::SIGKILL);
    assert_eq!(ended(child).code, -1);
    assert!(left.exists());
    store.clear_faults();
    let said = ended(d.spawn(&["drill"])).ok();
    assert!(said.contains(": proven from offsite in "), "{said}");
    assert_eq!((d.scratch(), d.processes()), (None, 0));
}

#[test]
fn a_signal_leaves_neither_server_nor_directory() {
    let d = Held::new();
    for (tool, signal, code) in [("pg_verifybackup", Signal::SIGINT, 130), ("pg_dumpall", Signal::SIGTERM, 143)] {
        let (child, _tools) = d.hold(tool);
        send(&child, signal);
        let ran = ended(child);
        assert_eq!(ran.code, code, "{ran:#?}");
        assert!(ran.stderr.contains("stopped"), "{ran:#?}");
        assert_eq!((d.scratch(), d.processes()), (None, 0), "{tool}");
        let records = d.path("state/services/pg/drills");
        assert_eq!(std::fs::read_dir(records).into_iter().flatten().count(), 0, "nothing was found out");
    }
}

#[test]
fn the_data_directory_that_was_captured_is_production_too() {
    let d = Held::new();
    let inside = server_dir(&d.server.data.join("scratch"));
    let text = std::fs::read_to_string(d.path("backstay.yml")).unwrap();
    let text = text.replace(&d.path("scratch").display().to_string(), &inside.display().to_string());
    std::fs::write(d.path("backstay.yml"), text).unwrap();
    let ran = ended(d.spawn(&["drill"]));
    assert_eq!(ran.code, 73, "{ran:#?}");
    assert!(ran.stderr.contains("the scratch directory") && ran.stderr.contains("lies in"), "{ran:#?}");
    assert_eq!(std::fs::read_dir(inside).unwrap().count(), 0);
}

#[test]
fn a_point_that_is_removed_while_it_is_drilled_is_not_damaged() {
    let d = Held::new();
    let (child, _tools) = d.hold("pg_verifybackup");
    for point in std::fs::read_dir(d.path("local")).unwrap().flatten().filter(|e| e.path().is_dir()) {
        std::fs::remove_dir_all(point.path()).unwrap();
    }
    std::fs::remove_file(d.path("marks/pg_verifybackup")).unwrap();
    let ran = ended(child);
    assert_eq!(ran.code, 66, "{ran:#?}");
    assert!(ran.stderr.contains("was removed while it was drilled"), "{ran:#?}");
    assert_eq!((d.scratch(), d.processes()), (None, 0));
}
