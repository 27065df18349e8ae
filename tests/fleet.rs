//! The check of a whole fleet from one host that reads the destinations: who must have what, and where.

use std::path::Path;

use crate::common::{Ran, run, write};

struct Fleet {
    dir: tempfile::TempDir,
}

impl Fleet {
    /// Host db1 has backed `files` up, to destination `near` only.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "data/one", "precious\n");
        let at = dir.path().display();
        let text = format!(
            "host: db1\nstate_dir: {at}/state\ndestinations: {{near: {{local: {{path: {at}/near}}}}}}\n\
             services: {{files: {{blobdir: {{path: {at}/data}}, destinations: [near], keep: {{daily: 1}}}}}}\n"
        );
        let config = write(dir.path(), "db1/backstay.yml", &text);
        run(&["--config", &config, "backup"]).ok();
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The fleet's check, as a monitoring host with this `check:` makes it.
    fn check(&self, check: &str) -> Ran {
        let at = self.path().display();
        let text = format!(
            "host: monitor\nstate_dir: {at}/monitor\ncheck: {check}\n\
             destinations: {{near: {{local: {{path: {at}/near}}}}, far: {{local: {{path: {at}/far}}}}}}\n"
        );
        let config = write(self.path(), "monitor/backstay.yml", &text);
        run(&["--config", &config, "check-s3", "--all-hosts"])
    }
}

#[test]
fn a_service_is_expected_where_it_is_said_to_be() {
    let fleet = Fleet::new();
    let ran = fleet.check("{expect: {db1: [files@near]}}");
    assert_eq!((ran.code, ran.stdout.contains("[OK] files daily at near")), (0, true), "{ran:#?}");
    assert!(!ran.stdout.contains("far"), "{ran:#?}");
    let ran = fleet.check("{expect: {db1: [files]}}");
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(ran.stdout.contains("db1 files at far: has no complete daily restore point"), "{ran:#?}");
}

#[test]
fn a_host_that_never_made_a_backup_alarms_and_a_retired_one_does_not() {
    let fleet = Fleet::new();
    let ran = fleet.check("{expect: {ghost: [files@near]}}");
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(ran.stdout.contains("ghost files at near: has no complete daily restore point"), "{ran:#?}");
    assert!(ran.stdout.contains("[OK] db1 files at near: not judged"), "{ran:#?}");
}

#[test]
fn a_destination_that_is_expected_and_not_configured_is_a_wrong_configuration() {
    let ran = Fleet::new().check("{expect: {db1: [files@nowhere]}}");
    assert_eq!(ran.code, 3, "{ran:#?}");
    assert!(ran.stderr.contains("check.expect.db1.0: there is no destination \"nowhere\""), "{ran:#?}");
}

#[test]
fn what_the_check_found_is_written_for_prometheus() {
    let fleet = Fleet::new();
    let file = fleet.path().join("backstay.prom");
    let ran = fleet
        .check(&format!("{{expect: {{db1: [files@near], ghost: [files@near]}}, metrics_file: {}}}", file.display()));
    assert_eq!(ran.code, 2, "{ran:#?}");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains("backstay_check_state{host=\"db1\",service=\"files\",destination=\"near\"} 0\n"), "{text}");
    assert!(text.contains("backstay_check_state{host=\"ghost\",service=\"files\",destination=\"near\"} 2\n"), "{text}");
    let newest = text.lines().filter(|l| l.starts_with("backstay_newest_point_timestamp_seconds{")).count();
    assert_eq!(newest, 1, "{text}");
    // A file that cannot be written is a warning of its own, and hides nothing.
    let ran = fleet.check("{expect: {db1: [files@near]}, metrics_file: /nonexistent/backstay.prom}");
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("could not write /nonexistent/backstay.prom"), "{ran:#?}");
}
