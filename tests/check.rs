//! `check-s3` from end to end: the program, Ceph's gateway, a real mail server.

#![allow(clippy::disallowed_methods, reason = "the program is run as users run it")]

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};

use chrono::{TimeDelta, Utc};
use serde_json::Value;

use crate::common::smtpd::Smtpd;
use crate::common::{Ran, rgw, run, write};

mod hosts;

/// The file for people.
const STATUS: &str = "s3_backup_status.txt";

/// A blob directory, a bucket of its own, a mail server.
struct Deployment {
    dir: tempfile::TempDir,
    bucket: String,
    smtpd: Smtpd,
    config: String,
}

impl Deployment {
    /// Service `blobs` of host `web1`; `more` is added to the service, `s3` to the destination.
    async fn new(bucket: &str, s3: &str, more: &str) -> Self {
        rgw::make_bucket(bucket, s3.contains("versioned")).await;
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write(root, "blobs/one", &"one ".repeat(9000));
        write(root, "secret/mail", "pw");
        private(root.join("secret/mail"), 0o600);
        std::fs::create_dir(root.join("local")).unwrap();
        let smtpd = Smtpd::start("starttls");
        let text = format!(
            "environment: test\nhost: web1\nstate_dir: {root}/state\ndestinations:\n  offsite:\n    \
             s3: {{bucket: {bucket}, endpoint: \"{}\", retries: 1, credentials: {{file: {root}/secret/s3}}{s3}}}\n\
             services:\n  blobs:\n    blobdir: {{path: {root}/blobs}}\n    backup_dir: {root}/local\n    \
             destinations: [offsite]\n    keep: {{daily: 7, weekly: 4}}\n{more}\
             check: {{email: [ops@example.com, dba@example.com]}}\n\
             mail: {{smtp: \"smtp://localhost:{}\", ca_file: {:?}, from: backstay@example.com, username: u, \
             password: {{file: {root}/secret/mail}}}}\n",
            rgw::endpoint(),
            smtpd.port,
            smtpd.ca_file(),
            root = root.display(),
        );
        let config = write(root, "backstay.yml", &text);
        let made = Self { config, dir, bucket: bucket.to_owned(), smtpd };
        made.keys(rgw::ACCESS, rgw::SECRET);
        made
    }
    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
    /// The keys that the program uses from now on.
    fn keys(&self, access: &str, secret: &str) {
        let text = format!("[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n");
        write(self.dir.path(), "secret/s3", &text);
        private(self.path("secret/s3"), 0o600);
    }
    fn run(&self, args: &[&str]) -> Ran {
        run(&[&["--config", &self.config], args].concat())
    }
    /// Makes a point; its id.
    fn backup(&self) -> String {
        let said = self.run(&["--json", "backup"]).ok();
        let line: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
        line["id"].as_str().unwrap().to_owned()
    }
    /// The lines of the status file, without its first one.
    fn status(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("local").join(STATUS)).unwrap();
        let mut lines = text.lines().map(str::to_owned);
        let first = lines.next().unwrap();
        assert!(first.starts_with("# checked 20") && first.contains(" UTC by backstay "), "{first}");
        lines.collect()
    }
    /// Subjects of the mails so far. Each must have come over TLS, with a login, to everybody.
    fn subjects(&self) -> Vec<String> {
        let subject = |mail: &String| {
            for line in ["X-Tls: True", "X-Auth: True", "X-Envelope-To: ops@example.com, dba@example.com"] {
                assert!(mail.lines().any(|l| l == line), "{mail}");
            }
            let unfolded = mail.replace("\r\n ", " ");
            unfolded.lines().find_map(|l| l.strip_prefix("Subject: ")).unwrap().to_owned()
        };
        self.smtpd.mails().iter().map(subject).collect()
    }
    /// The key of an artefact of the newest point.
    async fn key_of(&self, name: &str) -> String {
        let found = rgw::client().list_objects_v2().bucket(&self.bucket).send().await.unwrap();
        let mut keys: Vec<String> = found.contents().iter().filter_map(|o| o.key.clone()).collect();
        keys.sort();
        keys.into_iter().rfind(|k| k.ends_with(&format!("/{name}"))).unwrap()
    }
    async fn bytes_of(&self, key: &str) -> Vec<u8> {
        let found = rgw::client().get_object().bucket(&self.bucket).key(key).send().await.unwrap();
        found.body.collect().await.unwrap().to_vec()
    }
    async fn put(&self, key: &str, bytes: Vec<u8>) {
        rgw::client().put_object().bucket(&self.bucket).key(key).body(bytes.into()).send().await.unwrap();
    }
    async fn delete(&self, key: &str) {
        rgw::client().delete_object().bucket(&self.bucket).key(key).send().await.unwrap();
    }
}

fn private(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// Demands an exit code; the lines of the answer.
#[track_caller]
fn answered(ran: &Ran, code: i32) -> Vec<String> {
    assert_eq!(ran.code, code, "{ran:#?}");
    assert_eq!(ran.stderr, "", "{ran:#?}");
    ran.stdout.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn fresh_points_are_ok_for_nagios_for_people_and_for_programs() {
    let d = Deployment::new("check-fresh", "", "").await;
    let id = d.backup();
    let lines = answered(&d.run(&["check-s3"]), 0);
    let [first, rest @ ..] = lines.as_slice() else { panic!("{lines:?}") };
    let (text, perf) = first.split_once(" | ").unwrap();
    assert_eq!(text, "BACKSTAY OK - 2 checks, all fresh");
    // An age of less than two minutes, no warning, the limit.
    let perf: Vec<(String, u64, &str)> = perf
        .split(' ')
        .map(|p| {
            let (label, value) = p.split_once('=').unwrap();
            let (age, limits) = value.split_once("s;").unwrap();
            (label.to_owned(), age.parse().unwrap(), limits)
        })
        .collect();
    assert!(perf.iter().all(|p| p.1 < 120), "{perf:?}");
    let named: Vec<(&str, &str)> = perf.iter().map(|p| (p.0.as_str(), p.2)).collect();
    assert_eq!(named, [("'blobs_weekly_offsite'", ";698400"), ("'blobs_daily_offsite'", ";180000")]);
    for (line, (cadence, limit)) in rest.iter().zip([("weekly", "194h"), ("daily", "50h")]) {
        assert!(line.starts_with(&format!("[OK] blobs {cadence} at offsite: ")), "{line}");
        assert!(line.contains(" s old, ") && line.ends_with(&format!(", {id}, limit {limit}")), "{line}");
    }
    assert_eq!((rest.len(), d.status().len()), (2, 2));
    assert!(d.status().iter().all(|l| l.starts_with("[OK] blobs ")), "{:?}", d.status());
    let mode = std::fs::metadata(d.path("local").join(STATUS)).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o644);
    assert_eq!(d.subjects(), [""; 0], "nothing was wrong, nothing is over");

    let said = d.run(&["--json", "check-s3", "blobs"]).ok();
    let line: Value = serde_json::from_str(said.trim_end()).unwrap();
    for (key, value) in
        [("message_type", "freshness"), ("host", "web1"), ("service", "blobs"), ("destination", "offsite")]
    {
        assert_eq!(line[key], value, "{line}");
    }
    let freshness = &line["freshness"];
    assert_eq!((&freshness["state"], &freshness["last_good"]["id"]), (&"ok".into(), &id.as_str().into()), "{line}");
    assert_eq!(
        (&freshness["lines"][1]["cadence"], &freshness["lines"][1]["limit_seconds"]),
        (&"daily".into(), &180_000.into())
    );
    assert_eq!(answered(&d.run(&["--quiet", "check-s3"]), 0), [""; 0]);
}

#[tokio::test]
async fn what_is_removed_or_cut_in_the_bucket_alarms_once_and_its_return_is_told() {
    let d = Deployment::new("check-damage", "", "").await;
    let id = d.backup();
    answered(&d.run(&["check-s3"]), 0);
    let key = d.key_of("data.tar.zst").await;
    let whole = d.bytes_of(&key).await;
    let alert = "[backstay] ALERT web1: blobs has no complete weekly restore point at offsite".to_owned();
    let mut mails = Vec::new();
    for (damage, lack) in
        [(None, "(missing)".to_owned()), (Some(whole[..100].to_vec()), format!("(100 of {} bytes)", whole.len()))]
    {
        match damage {
            None => d.delete(&key).await,
            Some(bytes) => d.put(&key, bytes).await,
        }
        let lines = answered(&d.run(&["check-s3"]), 2);
        assert!(
            lines[0].starts_with("BACKSTAY CRITICAL - web1 blobs at offsite: has no complete weekly restore point"),
            "{}",
            lines[0]
        );
        let damaged = format!("[ALERT] {id}: cannot be restored from offsite: data.tar.zst {lack}; ");
        for lines in [&lines, &d.status()] {
            assert!(lines.iter().any(|l| l.starts_with(&damaged)), "{lines:#?}");
            assert!(lines.iter().all(|l| !l.starts_with("[OK]")), "{lines:#?}");
            assert!(lines.iter().any(|l| l.ends_with("backstay backup blobs --cadence weekly")), "{lines:#?}");
        }
        mails.push(alert.clone());
        assert_eq!(d.subjects(), mails);
        // The same day: still critical, and nobody is told again.
        answered(&d.run(&["check-s3"]), 2);
        assert_eq!(d.subjects(), mails);
        d.put(&key, whole.clone()).await;
        answered(&d.run(&["check-s3"]), 0);
        mails.push("[backstay] OK web1: blobs has fresh restore points again at offsite".to_owned());
        assert_eq!(d.subjects(), mails);
        answered(&d.run(&["check-s3"]), 0);
        assert_eq!(d.subjects(), mails);
    }
    let mail = d.smtpd.mails()[2].replace("=\r\n", "").replace("\r\n", "\n");
    for line in [
        "State:           ALERT since 20",
        "Last good point: none\n",
        &format!("  [ALERT] {id}: cannot be restored from offsite: data.tar.zst (100 of {} bytes); ", whole.len()),
        "\nWhat to do:\n",
        "  on web1, make one and see what fails: backstay backup blobs\n",
        "  look again: backstay check-s3 blobs\n",
    ] {
        assert!(mail.contains(line), "{line:?} is not in\n{mail}");
    }
}

#[tokio::test]
async fn a_new_backup_mends_what_the_local_copy_still_has() {
    let d = Deployment::new("check-mend", "", "").await;
    let id = d.backup();
    let key = d.key_of("data.tar.zst").await;
    let whole = d.bytes_of(&key).await;
    for damage in ["removed", "cut"] {
        match damage {
            "removed" => d.delete(&key).await,
            _ => d.put(&key, whole[..100].to_vec()).await,
        }
        assert_eq!(d.run(&["check-s3"]).code, 2);
        let said = d.run(&["backup"]).ok();
        assert!(said.contains(&format!("  offsite: mended {id}: data.tar.zst (")), "{said}");
        assert!(said.contains(", copied there from local"), "{said}");
        assert!(d.bytes_of(&key).await == whole);
        answered(&d.run(&["check-s3"]), 0);
    }
    let target = d.path("restored");
    let ran = d.run(&["restore", "blobs", &id, "--from", "offsite", "--to", target.to_str().unwrap()]);
    assert_eq!(ran.code, 0, "{ran:#?}");
    assert_eq!(std::fs::read(target.join("one")).unwrap(), std::fs::read(d.path("blobs/one")).unwrap());
}

#[tokio::test]
async fn in_a_versioned_bucket_the_versions_count() {
    let d = Deployment::new("check-versions", ", key_style: versioned", "").await;
    let id = d.backup();
    let key = d.key_of("data.tar.zst").await;
    // A delete marker hides the newest version, and takes nothing away from the manifest, which names it.
    d.delete(&key).await;
    answered(&d.run(&["check-s3"]), 0);
    let versions = rgw::client().list_object_versions().bucket(&d.bucket).prefix(&key).send().await.unwrap();
    let [version] = versions.versions() else { panic!("{versions:?}") };
    let delete = rgw::client().delete_object().bucket(&d.bucket).key(&key);
    delete.set_version_id(version.version_id.clone()).send().await.unwrap();
    let lines = answered(&d.run(&["check-s3"]), 2);
    let damaged = format!("[ALERT] {id}: cannot be restored from offsite: data.tar.zst (missing); ");
    assert!(lines.iter().any(|l| l.starts_with(&damaged)), "{lines:#?}");
}

#[tokio::test]
async fn a_manifest_that_cannot_be_read_alarms() {
    let d = Deployment::new("check-manifest", "", "").await;
    d.backup();
    let key = d.key_of("manifest.json").await;
    let mut bytes = d.bytes_of(&key).await;
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    d.put(&key, bytes).await;
    let lines = answered(&d.run(&["check-s3"]), 2);
    let said = "of blobs at offsite is not counted: the manifest is damaged: its digest does not match";
    assert!(lines.iter().any(|l| l.starts_with("[ALERT] blobs_test_weekly_") && l.ends_with(said)), "{lines:#?}");
}

#[tokio::test]
async fn a_bucket_that_cannot_be_read_is_unknown_and_told() {
    let d = Deployment::new("check-unreadable", "", "").await;
    d.backup();
    answered(&d.run(&["check-s3"]), 0);
    d.keys(rgw::ACCESS, "wrong");
    let lines = answered(&d.run(&["check-s3"]), 3);
    let what = "web1 blobs at offsite: has restore points that could not be read";
    assert_eq!(lines[0], format!("BACKSTAY UNKNOWN - {what}"));
    for lines in [&lines[1..], &d.status()] {
        assert!(
            lines[0].starts_with("[UNKNOWN] blobs has restore points that could not be read at offsite: ")
                && lines[0].contains("SignatureDoesNotMatch"),
            "{lines:#?}"
        );
        assert_eq!(lines[1], "    repair the access, then look again: backstay check-s3 blobs");
    }
    let unknown = "[backstay] UNKNOWN web1: blobs has restore points that could not be read at offsite";
    assert_eq!(d.subjects(), [unknown]);
    answered(&d.run(&["check-s3"]), 3);
    assert_eq!(d.subjects(), [unknown]);
    // The credentials cannot be read at all: the same state, and no second mail.
    std::fs::remove_file(d.path("secret/s3")).unwrap();
    let lines = answered(&d.run(&["check-s3"]), 3);
    assert!(lines[1].contains("could not be read at its destinations: "), "{lines:#?}");
    d.keys(rgw::ACCESS, rgw::SECRET);
    answered(&d.run(&["check-s3"]), 0);
    let told = d.subjects();
    assert_eq!(
        told.last().unwrap(),
        "[backstay] OK web1: blobs has fresh restore points again at offsite",
        "{told:#?}"
    );
}

#[tokio::test]
async fn an_alarm_is_repeated_after_a_day_and_kept_until_it_could_be_told() {
    let d = Deployment::new("check-repeat", "", "").await;
    let lines = answered(&d.run(&["check-s3"]), 2);
    let expected = "[ALERT] blobs has no complete daily restore point at offsite; newest complete: none, limit 50h";
    assert!(lines.iter().any(|l| l == expected), "{lines:#?}");
    assert_eq!(d.subjects().len(), 1);
    // A day passes for the memory of alarms.
    let memory = d.path("state/alarms.json");
    assert_eq!(std::fs::metadata(&memory).unwrap().mode() & 0o777, 0o600);
    let mut alarms: Value = serde_json::from_str(&std::fs::read_to_string(&memory).unwrap()).unwrap();
    let yesterday = (Utc::now() - TimeDelta::hours(25)).to_rfc3339();
    let alarm = &mut alarms["checks"]["web1/blobs@offsite"];
    alarm["since"] = yesterday.as_str().into();
    alarm["last_mailed"] = yesterday.as_str().into();
    std::fs::write(&memory, alarms.to_string()).unwrap();
    answered(&d.run(&["check-s3"]), 2);
    assert_eq!(d.subjects().len(), 2);
    let mail = &d.smtpd.mails()[1];
    assert!(mail.contains("Reminder of:     ALERT, told 20") && mail.contains("(25 h 0 min)"), "{mail}");

    // A memory that makes no sense must not silence an alarm, and mail that fails is said and due again.
    std::fs::write(&memory, "{").unwrap();
    let config = std::fs::read_to_string(&d.config).unwrap();
    let (before, _) = config.split_once("mail: {").unwrap();
    let dead = format!("{before}mail: {{from: backstay@example.com, sendmail: /nonexistent/sendmail}}\n");
    std::fs::write(&d.config, dead).unwrap();
    let ran = d.run(&["check-s3"]);
    assert_eq!(ran.code, 2, "{ran:#?}");
    assert!(ran.stderr.contains("error: 1 of 1 mails could not be sent\n"), "{ran:#?}");
    assert!(ran.stderr.contains("/nonexistent/sendmail"), "{ran:#?}");
    std::fs::write(&d.config, &config).unwrap();
    answered(&d.run(&["check-s3"]), 2);
    assert_eq!(d.subjects().len(), 3);
}

#[tokio::test]
async fn a_status_file_that_cannot_be_written_is_a_warning() {
    let d = Deployment::new("check-status", "", "").await;
    d.backup();
    std::fs::rename(d.path("local"), d.path("moved")).unwrap();
    let ran = d.run(&["check-s3"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.stdout.starts_with("BACKSTAY OK - 2 checks, all fresh | "), "{ran:#?}");
    assert!(ran.stderr.starts_with(&format!("error: could not write {}/", d.path("local").display())), "{ran:#?}");
    assert!(ran.stderr.contains("\nhint: run as the service's user or as root, and see that `backup_dir` exists."));
}

#[tokio::test]
async fn as_root_a_service_of_another_user_keeps_its_files() {
    if !nix::unistd::geteuid().is_root() {
        return crate::common::skip("check-s3 for a service with `user`: only root can become another user");
    }
    let d = Deployment::new("check-user", "", "    user: nobody\n").await;
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
    private(d.dir.path(), 0o755);
    std::os::unix::fs::chown(d.path("local"), Some(uid), Some(gid)).unwrap();
    // Root's file, shared with the group of the service's user.
    std::os::unix::fs::chown(d.path("secret/s3"), None, Some(gid)).unwrap();
    private(d.path("secret/s3"), 0o640);
    let id = d.backup();
    let owner = |path: PathBuf| std::fs::metadata(path).unwrap().uid();
    assert_eq!(owner(d.path("local").join(&id)), uid);
    answered(&d.run(&["check-s3"]), 0);
    let status = std::fs::metadata(d.path("local").join(STATUS)).unwrap();
    assert_eq!((status.uid(), status.mode() & 0o7777), (uid, 0o644));
    assert_eq!(d.status().len(), 2);
    let key = d.key_of("data.tar.zst").await;
    d.delete(&key).await;
    answered(&d.run(&["check-s3"]), 2);
    assert_eq!(d.subjects().len(), 1);
    let said = d.run(&["backup"]).ok();
    assert!(said.contains(&format!("offsite: mended {id}")), "{said}");
    assert_eq!(owner(d.path("local").join(STATUS)), uid);
    answered(&d.run(&["check-s3"]), 0);
}
