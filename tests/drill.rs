//! Drills as people run them: what is proven is recorded, what is damaged is named, and nothing is left behind.

#![allow(clippy::disallowed_methods, reason = "the program is run as users run it")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::common::fake::collect;
use crate::common::{Ran, backstay};

#[path = "drill/files.rs"]
mod files;
#[path = "drill/killed.rs"]
mod killed;

/// A directory of blobs with a local place and one more, which counts as remote.
pub(crate) struct Blobs {
    dir: tempfile::TempDir,
}

impl Blobs {
    pub(crate) fn new(service: &str, top: &str) -> Self {
        let made = Self { dir: tempfile::tempdir().unwrap() };
        std::fs::set_permissions(made.dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::create_dir(made.path("blobs")).unwrap();
        for n in 0..20 {
            std::fs::write(made.path("blobs").join(format!("blob{n}")), format!("content of {n}").repeat(n * 50))
                .unwrap();
        }
        made.configure(service, top);
        made
    }
    pub(crate) fn configure(&self, service: &str, top: &str) {
        let root = self.dir.path().display();
        let text = format!(
            "environment: test\nhost: h1\nstate_dir: {root}/state\n\
             destinations: {{second: {{local: {{path: {root}/second}}}}}}\nservices:\n  blobs:\n    \
             blobdir: {{path: {root}/blobs}}\n    backup_dir: {root}/local\n    destinations: [second]\n    \
             keep: {{daily: 7}}\n{service}{top}"
        );
        std::fs::write(self.path("backstay.yml"), text).unwrap();
    }
    pub(crate) fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
    pub(crate) fn run_with(&self, args: &[&str], env: &[(&str, &Path)]) -> Ran {
        let config = self.path("backstay.yml");
        let mut all = vec!["--config", config.to_str().unwrap()];
        all.extend(args);
        let out = backstay(&all).envs(env.iter().copied()).output().unwrap();
        Ran {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8(out.stdout).unwrap(),
            stderr: String::from_utf8(out.stderr).unwrap(),
        }
    }
    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }
    /// The ids that are listed at a place, oldest first.
    pub(crate) fn ids(&self, place: &str) -> Vec<String> {
        let said = self.run(&["--json", "list", "blobs", "--from", place]).ok();
        let lines = said.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines.filter(|l| l["message_type"] == "restore_point").map(|l| l["id"].as_str().unwrap().to_owned()).collect()
    }
    pub(crate) fn folder(&self, id: &str) -> PathBuf {
        self.path("second/test/h1/blobs").join(id)
    }
    /// Records at a place of records, by name.
    pub(crate) fn records(&self, dir: &str) -> BTreeMap<String, Value> {
        let mut files = BTreeMap::new();
        collect(&self.path(dir), &mut files);
        let name = |p: &Path| p.file_name().unwrap().to_str().unwrap().to_owned();
        files.iter().map(|(path, text)| (name(path), serde_json::from_slice(text).unwrap())).collect()
    }
    /// Nothing is left of any drill.
    pub(crate) fn assert_clean(&self) {
        let scratch = std::fs::read_dir(self.path("state/scratch")).into_iter().flatten().flatten();
        assert_eq!(scratch.map(|e| e.path()).collect::<Vec<_>>(), Vec::<PathBuf>::new());
    }
}

const STATE: &str = "state/services/blobs/drills";
const REMOTE: &str = "second/test/h1/blobs/drills";

#[test]
fn a_proven_point_is_recorded_here_and_there_and_shown() {
    let d = Blobs::new("    rto: 2h\n", "check: {max_drill_age: 8d}\n");
    d.run(&["backup"]).ok();
    let missing = d.run(&["check-s3"]);
    assert_eq!(missing.code, 2, "{missing:#?}");
    assert!(missing.stdout.contains("blobs: no point was ever proven by a drill, limit 8d"), "{missing:#?}");
    let said = d.run(&["drill"]).ok();
    let id = &d.ids("second")[0];
    assert!(said.starts_with(&format!("{id}: proven from second in ")), "{said}");
    d.assert_clean();
    let (here, there) = (d.records(STATE), d.records(REMOTE));
    assert_eq!(here, there, "nothing differs, so there are no names to keep back");
    let record = here.values().next().unwrap();
    assert_eq!((record["result"].as_str(), record["level"].as_str()), (Some("proven"), Some("files")));
    assert_eq!((record["counts"]["files"].as_u64(), record["rto_seconds"].as_u64()), (Some(20), Some(7200)));
    let parts: f64 = ["fetch", "decompress", "restore", "start", "compare"]
        .map(|p| record["seconds"][p].as_f64().unwrap())
        .iter()
        .sum();
    let total = record["total_seconds"].as_f64().unwrap();
    assert!(parts > 0.0 && parts <= total, "{record}");

    let fresh = d.run(&["check-s3"]);
    assert_eq!(fresh.code, 0, "{fresh:#?}");
    assert!(fresh.stdout.contains("'blobs_drill_second'="), "{fresh:#?}");
    let line = format!("[OK] blobs: last proven: {id} from second, ");
    assert!(fresh.stdout.contains(&line), "{fresh:#?}");
    assert!(std::fs::read_to_string(d.path("local/s3_backup_status.txt")).unwrap().contains(&line));
    let listed = d.run(&["list"]).ok();
    assert_eq!(listed.matches(" proven 0 s ago").count() + listed.matches(" proven 1 s ago").count(), 1, "{listed}");
    // Another host judges by the bucket alone, with the limits that the manifest names.
    std::fs::remove_dir_all(d.path("state")).unwrap();
    d.configure("", "");
    assert!(d.run(&["check-s3", "--all-hosts"]).ok().contains(&line));
    for record in std::fs::read_dir(d.path(REMOTE)).unwrap() {
        std::fs::remove_file(record.unwrap().path()).unwrap();
    }
    let all = d.run(&["check-s3", "--all-hosts"]);
    assert!(all.code == 2 && all.stdout.contains("no point was ever proven by a drill, limit 8d"), "{all:#?}");
}

#[test]
fn every_place_and_way_to_choose_a_point() {
    let d = Blobs::new("", "");
    d.run(&["backup"]).ok();
    d.run(&["backup", "--manual"]).ok();
    let ids = d.ids("second");
    let drilled = |args: &[&str]| {
        let all: Vec<&str> = ["--json", "drill"].iter().chain(args).copied().collect();
        let line: Value = serde_json::from_str(&d.run(&all).ok()).unwrap();
        assert_eq!(line["message_type"], "drill");
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        (text("id"), text("destination"), text("level"))
    };
    let newest = ids[1].clone();
    assert_eq!(drilled(&[]), (newest.clone(), "second".into(), "files".into()), "the remote place is the default");
    assert_eq!(drilled(&["blobs", "--stream"]), (newest.clone(), "second".into(), "stream".into()));
    assert_eq!(drilled(&["--from", "local"]), (newest, "local".into(), "files".into()));
    assert_eq!(drilled(&["blobs", &ids[0]]).0, ids[0]);
    assert!(ids.contains(&drilled(&["--random"]).0));
    assert_eq!(drilled(&["--host", "h1", "--from", "second"]).0, ids[1]);
    let nothing = d.run(&["drill", "--host", "h2", "--from", "second"]);
    assert_eq!(nothing.code, 66, "{nothing:#?}");
    assert!(nothing.stderr.contains("there are points of these hosts: h1"), "{nothing:#?}");
    let unknown = d.run(&["drill", "blobs", "blobs_test_daily_2020_01_01_000000"]);
    assert_eq!(unknown.code, 66, "{unknown:#?}");
    assert_eq!(d.run(&["drill", "blobs", &ids[0], "--random"]).code, 64);
    d.assert_clean();
    assert_eq!(d.records(STATE).len(), 6);
    assert_eq!(d.records(REMOTE).len(), 5, "a drill of the local place leaves nothing elsewhere");
}

/// What is done to one file of a point.
type Harm = fn(&Path);

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
}

fn remove(path: &Path) {
    std::fs::remove_file(path).unwrap();
}

#[test]
fn every_damage_of_every_object_is_found_and_named() {
    let d = Blobs::new("", "");
    d.run(&["backup"]).ok();
    let id = d.ids("second")[0].clone();
    let mut objects = BTreeMap::new();
    collect(&d.folder(&id), &mut objects);
    assert!(objects.len() >= 4, "{:?}", objects.keys());
    let harms: [(&str, Harm); 3] = [("flip", flip), ("truncate", truncate), ("remove", remove)];
    for (path, good) in &objects {
        let name = path.file_name().unwrap().to_str().unwrap();
        for (harm, apply) in harms {
            if (harm, name) == ("remove", "manifest.json") {
                continue; // Then it is no restore point any more.
            }
            apply(path);
            for args in [&["drill", "blobs"][..], &["drill", "blobs", "--stream"]] {
                let ran = d.run(args);
                assert_eq!(ran.code, 65, "{harm} {name}: {ran:#?}");
                let object = format!("object \"test/h1/blobs/{id}/{name}\" at second");
                assert!(ran.stderr.contains(&object), "{harm} {name}: {ran:#?}");
            }
            d.assert_clean();
            std::fs::write(path, good).unwrap();
        }
    }
    let record = d.records(REMOTE).into_values().next_back().unwrap();
    assert_eq!(record["result"], "damaged");
    assert!(record["object"].as_str().unwrap().starts_with("test/h1/blobs/"), "{record}");
    let alarm = d.run(&["check-s3"]);
    assert_eq!(alarm.code, 2, "{alarm:#?}");
    assert!(alarm.stdout.contains(&format!("a drill found {id} at second damaged: ")), "{alarm:#?}");
    d.run(&["drill"]).ok();
    assert_eq!(d.run(&["check-s3"]).code, 0, "it was proven since");
}

#[test]
fn the_newest_proven_point_is_not_pruned_after_a_drill_that_found_damage() {
    for damaged in [true, false] {
        let d = Blobs::new("", "");
        d.run(&["backup"]).ok();
        d.run(&["drill"]).ok();
        let proven = d.ids("second")[0].clone();
        d.run(&["backup", "--manual"]).ok();
        if damaged {
            flip(&d.folder(&d.ids("second")[1]).join("data.tar.zst"));
            assert_eq!(d.run(&["drill"]).code, 65);
        }
        // Of the same day: it supersedes the first one.
        d.run(&["backup", "--cadence", "daily"]).ok();
        for place in ["local", "second"] {
            assert_eq!(d.ids(place).contains(&proven), damaged, "{place}");
        }
        let reasons = d.run(&["prune", "--dry-run"]).ok();
        assert_eq!(
            reasons.matches(&format!("keep    {proven}  newest proven")).count(),
            if damaged { 2 } else { 0 },
            "{reasons}"
        );
    }
}

#[test]
fn what_differs_stays_on_this_host() {
    // The inventory is not encrypted here, so that a test can change what was captured, with all digests right.
    let d = Blobs::new("    compression: {algorithm: none}\n", "");
    d.run(&["backup"]).ok();
    let id = d.ids("second")[0].clone();
    let folder = d.folder(&id);
    let inventory = folder.join("inventory.jsonl");
    let text = std::fs::read_to_string(&inventory).unwrap();
    let at = text.find("\"path\":\"blob7\"").unwrap();
    let line_end = at + text[at..].find('\n').unwrap();
    let key = at + text[at..line_end].find("\"blake3\":\"").unwrap() + 10;
    let digit = if &text[key..=key] == "0" { "1" } else { "0" };
    let changed = format!("{}{digit}{}", &text[..key], &text[key + 1..]);
    std::fs::write(&inventory, &changed).unwrap();
    rewrite_manifest(&folder, "inventory.jsonl", changed.as_bytes());
    let ran = d.run(&["drill"]);
    assert_eq!(ran.code, 65, "{ran:#?}");
    assert!(ran.stderr.contains("\"blob7\" has other content than the inventory says"), "{ran:#?}");
    let (here, there) = (d.records(STATE), d.records(REMOTE));
    assert!(here.values().next().unwrap()["differences"][0].as_str().unwrap().contains("blob7"));
    let there = there.values().next().unwrap();
    assert!(!there.to_string().contains("blob7"), "{there}");
    assert_eq!(there["reason"], "what came back differs from what was captured (1 lines)");
}

/// Makes digests of a changed artefact right again, as if it had been captured like that.
fn rewrite_manifest(folder: &Path, name: &str, bytes: &[u8]) {
    use sha2::Digest as _;
    let path = folder.join("manifest.json");
    let mut manifest = backstay::manifest::Manifest::from_text(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let artefact = manifest.artefacts.iter_mut().find(|a| a.name == name).unwrap();
    artefact.sha256 = hex::encode(sha2::Sha256::digest(bytes));
    artefact.blake3 = blake3::hash(bytes).to_hex().to_string();
    std::fs::write(folder.join("SHA256SUMS"), manifest.sums_text()).unwrap();
    std::fs::write(path, manifest.to_text().unwrap()).unwrap();
}

#[test]
fn an_encrypted_point_needs_a_key_that_the_host_should_not_have() {
    let d = Blobs::new("", "");
    let made = std::process::Command::new("age-keygen").arg("-o").arg(d.path("key.txt")).output().unwrap();
    assert!(made.status.success());
    std::fs::set_permissions(d.path("key.txt"), std::fs::Permissions::from_mode(0o600)).unwrap();
    let key = std::fs::read_to_string(d.path("key.txt")).unwrap();
    let recipient = key.lines().find_map(|l| l.strip_prefix("# public key: ")).unwrap();
    let service = format!("    encrypt_to: [{recipient}]\n");
    d.configure(&service, "");
    d.run(&["backup"]).ok();
    let denied = d.run(&["drill"]);
    assert_eq!(denied.code, 77, "{denied:#?}");
    assert!(denied.stderr.contains("is encrypted") && denied.stderr.contains("--host"), "{denied:#?}");
    assert_eq!(d.records(STATE).values().next().unwrap()["result"], "failed");
    d.run(&["drill", "--identity", d.path("key.txt").to_str().unwrap()]).ok();
    d.configure(&service, "drill: {identity: {credential: drill-key}}\n");
    std::fs::create_dir(d.path("credentials")).unwrap();
    std::fs::copy(d.path("key.txt"), d.path("credentials/drill-key")).unwrap();
    d.run_with(&["drill"], &[("CREDENTIALS_DIRECTORY", &d.path("credentials"))]).ok();
    assert_eq!(d.run(&["drill"]).code, 78, "started without systemd, the credential is not there");
    for text in d.records(REMOTE).values().chain(d.records(STATE).values()) {
        assert!(!text.to_string().contains("AGE-SECRET-KEY"), "{text}");
    }
}

#[test]
fn a_scratch_directory_inside_of_production_is_refused() {
    let d = Blobs::new("", "");
    d.run(&["backup"]).ok();
    for dir in ["blobs", "local", "second", "blobs/deeper"] {
        let text = format!("drill: {{scratch_dir: {}}}\n", d.path(dir).display());
        d.configure("", &text);
        let ran = d.run(&["config", "check"]);
        assert_eq!(ran.code, 78, "{ran:#?}");
        assert!(ran.stderr.contains("drill.scratch_dir: \"") && ran.stderr.contains("lies in "), "{ran:#?}");
    }
    // By a link, which only the running program can see.
    std::os::unix::fs::symlink(d.path("blobs"), d.path("link")).unwrap();
    d.configure("", &format!("drill: {{scratch_dir: {}}}\n", d.path("link").display()));
    d.run(&["config", "check"]).ok();
    let ran = d.run(&["drill"]);
    assert_eq!(ran.code, 73, "{ran:#?}");
    assert!(ran.stderr.contains("the scratch directory") && ran.stderr.contains("lies in"), "{ran:#?}");
    assert_eq!(std::fs::read_dir(d.path("blobs")).unwrap().count(), 20);
}

#[test]
fn too_small_a_disk_is_refused_with_figures() {
    if !nix::unistd::geteuid().is_root() {
        return crate::common::skip("too_small_a_disk_is_refused_with_figures: only root can mount a small disk");
    }
    let d = Blobs::new("", "");
    std::fs::write(d.path("blobs/large"), vec![7; 3 << 20]).unwrap();
    let small = d.path("small");
    std::fs::create_dir(&small).unwrap();
    let mount = |args: &[&str]| std::process::Command::new(args[0]).args(&args[1..]).status().unwrap().success();
    assert!(mount(&["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small.to_str().unwrap()]));
    d.configure("    drill: {scratch_dir: ", &format!("{}}}\n", small.display()));
    d.run(&["backup"]).ok();
    let ran = d.run(&["drill"]);
    let streamed = d.run(&["drill", "--stream"]);
    assert!(mount(&["umount", small.to_str().unwrap()]));
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stderr.contains("has 1.0 MiB free, and the drill needs 3."), "{ran:#?}");
    assert!(ran.stderr.contains("--stream"), "{ran:#?}");
    assert_eq!(streamed.code, 0, "{streamed:#?}");
}

#[test]
fn two_drills_do_not_collide_and_a_backup_may_run() {
    let d = Blobs::new("", "");
    d.run(&["backup"]).ok();
    let held = |name: &str| {
        let file = std::fs::File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(d.path("state/services/blobs").join(name));
        let file = file.unwrap();
        file.lock().unwrap();
        file
    };
    let backup = held("blobs.lock");
    d.run(&["drill"]).ok();
    drop(backup);
    let _other = held("blobs.drill.lock");
    let ran = d.run(&["drill"]);
    assert_eq!(ran.code, 75, "{ran:#?}");
    assert!(ran.stderr.contains("the drill of service \"blobs\" is locked by "), "{ran:#?}");
    d.run(&["backup", "--manual"]).ok();
}

#[test]
fn a_record_that_cannot_be_written_there_is_kept_here() {
    let d = Blobs::new("", "");
    d.run(&["backup"]).ok();
    // A file where the folder of records would be.
    std::fs::write(d.path(REMOTE), "").unwrap();
    let ran = d.run(&["drill"]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert!(ran.stderr.contains("the record of the drill is only on this host, not at second: "), "{ran:#?}");
    assert_eq!(d.records(STATE).len(), 1);
}

#[test]
fn a_damaged_drill_of_one_service_is_the_exit_code_of_all() {
    let d = Blobs::new("", "");
    let more = format!(
        "  empty:\n    blobdir: {{path: {0}/blobs}}\n    backup_dir: {0}/empty\n    keep: {{daily: 7}}\n",
        d.dir.path().display()
    );
    d.configure(&more, "");
    d.run(&["backup", "blobs"]).ok();
    flip(&d.folder(&d.ids("second")[0]).join("data.tar.zst"));
    let ran = d.run(&["drill"]);
    assert_eq!(ran.code, 65, "{ran:#?}");
    assert!(ran.stderr.contains("service \"empty\" of host \"h1\" has no complete restore point"), "{ran:#?}");
    assert!(ran.stderr.contains("2 of 2 drills did not go well"), "{ran:#?}");
}
