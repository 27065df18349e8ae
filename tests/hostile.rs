//! A place that somebody else can write to: a manifest that is right in itself may not lead out of its folder.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use backstay::manifest::Manifest;

use crate::common::{Ran, run, write};

/// A service with one good point in its own directory and at a second place.
struct Deployment {
    dir: tempfile::TempDir,
    config: String,
    id: String,
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
        run(&["--config", &config, "backup"]).ok();
        let listed = run(&["--config", &config, "--json", "list"]).ok();
        let line: serde_json::Value = serde_json::from_str(listed.lines().next().unwrap()).unwrap();
        Self { config, id: line["id"].as_str().unwrap().to_owned(), dir }
    }
    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
    fn folders(&self) -> [PathBuf; 2] {
        [self.path("local").join(&self.id), self.path("second/test/h1/blobs").join(&self.id)]
    }
    /// Changes the manifest at both places, with a right digest.
    fn forge(&self, change: impl Fn(&mut Manifest, &Path)) {
        for folder in self.folders() {
            let path = folder.join("manifest.json");
            let mut manifest = Manifest::from_text(&std::fs::read_to_string(&path).unwrap()).unwrap();
            change(&mut manifest, &folder);
            std::fs::write(path, manifest.to_text().unwrap()).unwrap();
        }
    }
    fn run(&self, args: &[&str]) -> Ran {
        let mut all = vec!["--config", &self.config];
        all.extend(args);
        run(&all)
    }
    /// Neither restored nor called good, from any place, and nothing is left at the target.
    fn must_be_refused(&self, what: &str) {
        let target = self.path("out");
        for from in ["local", "second"] {
            let to = target.to_str().unwrap();
            let ran = self.run(&["restore", "blobs", &self.id, "--from", from, "--to", to]);
            assert!(ran.code != 0, "{what} at {from}: {ran:#?}");
            assert!(ran.stderr.starts_with("error: ") && !ran.stderr.contains("a bug in backstay"), "{what}: {ran:#?}");
            assert!(!target.exists(), "{what} at {from}: something was left at the target");
            for level in ["present", "digest", "format"] {
                let ran = self.run(&["verify", "blobs", &self.id, "--from", from, "--level", level]);
                assert!(ran.code != 0, "{what} at {from}, {level}: {ran:#?}");
                assert!(!ran.stdout.contains(": good"), "{what} at {from}, {level}: {ran:#?}");
            }
        }
    }
}

#[test]
fn keys_that_lead_out_of_the_folder_are_refused() {
    let d = Deployment::new();
    let secret = write(d.dir.path(), "secret.tar.zst", "not for everybody");
    for key in ["../../etc/passwd", "/etc/passwd", "../secret.tar.zst", "./../secret.tar.zst", "", "..", &secret] {
        d.forge(|manifest, _| {
            let artefact = &mut manifest.artefacts[0];
            artefact.location.key = key.to_owned();
            if let Ok(meta) = std::fs::metadata(&secret) {
                artefact.stored_bytes = meta.len();
            }
        });
        d.must_be_refused(key);
    }
    assert_eq!(std::fs::read_to_string(secret).unwrap(), "not for everybody");
}

#[test]
fn an_artefact_that_is_a_symbolic_link_is_refused_even_if_its_bytes_are_right() {
    let d = Deployment::new();
    for (n, folder) in d.folders().iter().enumerate() {
        let data = folder.join("data.tar.zst");
        let moved = d.path(&format!("elsewhere-{n}"));
        std::fs::rename(&data, &moved).unwrap();
        symlink(&moved, &data).unwrap();
    }
    d.must_be_refused("a symbolic link");
}

#[test]
fn a_folder_that_is_a_symbolic_link_is_no_restore_point() {
    let d = Deployment::new();
    for (n, folder) in d.folders().iter().enumerate() {
        let moved = d.path(&format!("elsewhere-{n}"));
        std::fs::rename(folder, &moved).unwrap();
        symlink(&moved, folder).unwrap();
    }
    d.must_be_refused("a folder that is a symbolic link");
}

#[test]
fn a_manifest_that_names_another_points_artefact_is_not_followed_by_prune() {
    let d = Deployment::new();
    let victim = write(d.dir.path(), "local/victim", "precious");
    d.forge(|manifest, folder| {
        if folder.starts_with(d.path("local")) {
            manifest.artefacts[0].location.key = "victim".to_owned();
            manifest.artefacts[0].stored_bytes = 8;
        }
        manifest.started = "2020-01-01T00:00:00Z".parse().unwrap();
        manifest.id = "blobs_test_daily_2020_01_01_000000".to_owned();
    });
    for _ in 0..8 {
        let _ = d.run(&["backup", "--cadence", "daily"]);
    }
    let _ = d.run(&["prune"]);
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "precious");
}

/// Restore points, the agent's state and live sources are no targets, not even with `--replace`.
#[test]
fn a_restore_does_not_take_what_it_needs_with_it() {
    let d = Deployment::new();
    for (to, what) in [
        ("blobs/restored", "the data of service \"blobs\""),
        ("local", "the restore points of service \"blobs\""),
        ("local/restored", "the restore points of service \"blobs\""),
        ("second/test", "destination \"second\""),
        ("state", "the agent's state"),
        ("", "the agent's state"),
        ("link/restored", "the data of service \"blobs\""),
    ] {
        let link = d.path("link");
        if !link.exists() {
            symlink(d.path("blobs"), &link).unwrap();
        }
        let ran = d.run(&["restore", "blobs", "latest", "--replace", "--to", d.path(to).to_str().unwrap()]);
        assert_eq!(ran.code, 73, "{to}: {ran:#?}");
        assert!(ran.stderr.contains(&format!(" overlaps with {what} in ")), "{to}: {ran:#?}");
        assert!(ran.stderr.ends_with("\nhint: restore into another directory with --to.\n"), "{to}: {ran:#?}");
    }
    assert_eq!(std::fs::read_to_string(d.path("blobs/one")).unwrap(), "one");
    assert_eq!(std::fs::read_dir(d.path("blobs")).unwrap().count(), 1);
    d.run(&["verify", "blobs"]).ok();
    // Its own place by name is its own place.
    std::fs::write(d.path("blobs/one"), "changed").unwrap();
    d.run(&["restore", "blobs", "latest", "--replace", "--to", d.path("blobs").to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(d.path("blobs/one")).unwrap(), "one");
}

/// A service's own directory is not divided by host, so a list of another host's points must look at each.
#[test]
fn points_of_another_host_are_not_listed_as_its_own() {
    let d = Deployment::new();
    assert_eq!(d.run(&["list", "--host", "h2"]).ok(), "blobs on h2: no restore points\n");
    assert_eq!(d.run(&["list", "--host", "h1"]).ok(), d.run(&["list"]).ok());
}
