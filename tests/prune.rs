//! `prune` as a person uses it: the reasons, one point by its name, and what is refused.

use crate::common::{Ran, run, write};

struct Deployment {
    dir: tempfile::TempDir,
    config: String,
}

impl Deployment {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let text = format!(
            "environment: test\nhost: h1\nstate_dir: {root}/state\n\
             destinations: {{second: {{local: {{path: {root}/second}}}}}}\nservices:\n  blobs:\n    \
             blobdir: {{path: {root}/blobs}}\n    backup_dir: {root}/local\n    destinations: [second]\n    \
             keep: {{daily: 7}}\n"
        );
        write(dir.path(), "blobs/one", "one");
        let config = write(dir.path(), "backstay.yml", &text);
        Self { dir, config }
    }
    fn run(&self, args: &[&str]) -> Ran {
        let mut all = vec!["--config", &self.config];
        all.extend(args);
        run(&all)
    }
    fn backup(&self, args: &[&str]) -> String {
        let mut all = vec!["--json", "backup"];
        all.extend(args);
        let said = self.run(&all).ok();
        let line: serde_json::Value = serde_json::from_str(said.lines().next().unwrap()).unwrap();
        line["id"].as_str().unwrap().to_owned()
    }
    fn has(&self, id: &str) -> [bool; 2] {
        [
            self.dir.path().join("local").join(id).exists(),
            self.dir.path().join("second/test/h1/blobs").join(id).exists(),
        ]
    }
}

#[test]
fn one_point_is_removed_by_its_name_and_the_rest_still_restores() {
    let d = Deployment::new();
    let manual = d.backup(&["--manual"]);
    write(d.dir.path(), "blobs/one", "newer");
    let daily = d.backup(&[]);
    let dry = d.run(&["prune", "blobs", "--point", &manual, "--dry-run"]).ok();
    assert_eq!(dry, format!("{manual} at local: would be removed\n{manual} at second: would be removed\n"));
    assert_eq!(d.has(&manual), [true, true]);
    d.run(&["prune", "blobs", "--point", &manual, "--from", "second"]).ok();
    assert_eq!(d.has(&manual), [true, false]);
    assert_eq!(d.run(&["prune", "blobs", "--point", &manual]).ok(), format!("{manual} at local: removed\n"));
    assert_eq!((d.has(&manual), d.has(&daily)), ([false, false], [true, true]));
    let out = d.dir.path().join("out");
    d.run(&["restore", "blobs", "latest", "--to", out.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(out.join("one")).unwrap(), "newer");
}

#[test]
fn the_last_complete_point_stays_even_if_named() {
    let d = Deployment::new();
    let only = d.backup(&[]);
    let ran = d.run(&["prune", "blobs", "--point", &only]);
    assert_eq!(ran.code, 73, "{ran:#?}");
    assert!(
        ran.stderr.contains(&format!("{only} stays at local: it is the last complete restore point there")),
        "{ran:#?}"
    );
    assert_eq!(d.has(&only), [true, true]);
}

#[test]
fn a_point_that_is_not_there_and_a_missing_service_are_said() {
    let d = Deployment::new();
    d.backup(&[]);
    let ran = d.run(&["prune", "blobs", "--point", "blobs_test_daily_2020_01_01_000000"]);
    assert_eq!(ran.code, 66, "{ran:#?}");
    assert!(
        ran.stderr.contains("service \"blobs\" has no restore point \"blobs_test_daily_2020_01_01_000000\""),
        "{ran:#?}"
    );
    let ran = d.run(&["prune", "--point", "x"]);
    assert_eq!(ran.code, 64, "{ran:#?}");
    assert!(ran.stderr.contains("hint: write: backstay prune SERVICE --point x"), "{ran:#?}");
}
