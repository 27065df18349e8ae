//! Whole runs of the program against a store that refuses, fails and hangs: exit code, words, and what is left.

#![allow(clippy::disallowed_methods, reason = "the program is run as users run it")]

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use serde_json::Value;

use crate::common::s3_fault::{ACCESS, BUCKET, Fault, FaultServer, SECRET};
use crate::common::{Ran, rgw, run, write};

/// For a service that keeps its points here too.
const LOCAL: &str = "    backup_dir: DIR/local\n";

/// A service of one directory, with places `local` and `offsite`, or only the latter.
struct Deployment {
    dir: tempfile::TempDir,
    config: String,
}

impl Deployment {
    /// `s3` are settings of the destination, `more` those of the service, in which `DIR` is this deployment's own directory.
    fn new(endpoint: &str, bucket: &str, (access, secret): (&str, &str), s3: &str, more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        // What cannot be compressed, for three parts of the smallest size.
        let mut noise = vec![0; 12 << 20];
        getrandom::fill(&mut noise).unwrap();
        std::fs::create_dir(root.join("blobs")).unwrap();
        std::fs::write(root.join("blobs/noise"), noise).unwrap();
        let text = format!(
            "environment: test\nhost: web1\nstate_dir: {root}/state\ndestinations:\n  offsite:\n    \
             s3: {{bucket: {bucket}, endpoint: \"{endpoint}\", part_size: 5MiB, credentials: {{file: {root}/keys}}{s3}}}\n\
             services:\n  blobs:\n    blobdir: {{path: {root}/blobs}}\n    destinations: [offsite]\n    \
             keep: {{daily: 1}}\n    compression: {{algorithm: none}}\n{more}",
            root = root.display(),
        );
        let config = write(root, "backstay.yml", &text.replace("DIR/", &format!("{}/", root.display())));
        let made = Self { dir, config };
        made.keys(access, secret);
        made
    }
    /// The keys that the program uses from now on.
    fn keys(&self, access: &str, secret: &str) {
        let text = format!("[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n");
        let keys = write(self.dir.path(), "keys", &text);
        std::fs::set_permissions(keys, PermissionsExt::from_mode(0o600)).unwrap();
    }
    /// Against a server that fails as told, which makes at most two more tries.
    fn with(server: &FaultServer, more: &str) -> Self {
        Self::new(server.endpoint(), BUCKET, (ACCESS, SECRET), ", retries: 2, call_timeout: 60s", more)
    }
    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
    fn run(&self, args: &[&str]) -> Ran {
        run(&[&["--config", &self.config], args].concat())
    }
    /// Ids of complete points at a place.
    fn listed(&self, place: &str) -> Vec<String> {
        let said = self.run(&["--json", "list", "--from", place]).ok();
        let lines = said.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        lines.filter(|l| l["state"] == "complete").map(|l| l["id"].as_str().unwrap().to_owned()).collect()
    }
    /// A point comes back as it was.
    #[track_caller]
    fn restores(&self, id: &str, from: &str) {
        let to = self.path(&format!("restored-{id}-{from}"));
        let ran = self.run(&["restore", "blobs", id, "--from", from, "--to", to.to_str().unwrap()]);
        assert_eq!(ran.code, 0, "{ran:#?}");
        let same = std::fs::read(to.join("noise")).unwrap() == std::fs::read(self.path("blobs/noise")).unwrap();
        assert!(same, "{id} from {from} is not what was backed up");
    }
}

/// Demands an exit code and what stderr says, `ID` being the new point's id.
#[track_caller]
fn says(ran: &Ran, code: i32, words: &str) {
    assert_eq!(ran.code, code, "{ran:#?}");
    let id = ran.stderr.find("blobs_test_").map(|at| {
        let end = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        ran.stderr[at..].split(end).next().unwrap()
    });
    let said = id.map_or_else(|| ran.stderr.clone(), |id| ran.stderr.replace(id, "ID"));
    assert_eq!(said, words, "{ran:#?}");
}

const NO_POINT: &str = "error: service \"blobs\": no restore point was made\n  \
                        caused by: could not store \"data.tar\" at any destination\n  caused by: offsite: ";
const ARTEFACT: &str = "s3://backups/test/web1/blobs/ID/data.tar";
const UNREAD: &str = "warning: the catalogue at offsite could not be read: could not read the restore points of \
                      \"blobs\" at offsite: ";

#[tokio::test]
async fn keys_that_can_only_write_make_backups_and_what_they_cannot_do_is_named() {
    for (bucket, style, folder) in [
        ("putonly-timestamped", "", "test/web1/blobs/"),
        ("putonly-versioned", ", key_style: versioned", "test/blobs_manual_web1/"),
    ] {
        rgw::make_bucket_for(bucket, !style.is_empty(), &["s3:PutObject"]).await;
        let s3 = format!("{style}, region: us-east-1");
        let d = Deployment::new(rgw::endpoint(), bucket, (bucket, rgw::SECRET), &s3, LOCAL);
        let denied = format!("cannot list s3://{bucket}/{folder}: AccessDenied (HTTP 403)");
        let mut ids = Vec::new();
        for _ in 0..2 {
            let ran = d.run(&["backup", "--cadence", "daily"]);
            says(&ran, 0, &format!("{UNREAD}{denied}\n"));
            assert!(
                ran.stdout.contains("\n  local: whole\n") && ran.stdout.contains("\n  offsite: whole\n"),
                "{ran:#?}"
            );
            let named = ran.stdout.lines().find(|l| l.starts_with("  offsite: nothing was removed or copied there: "));
            assert!(named.is_some_and(|l| l.ends_with(&denied)), "{ran:#?}");
            ids.extend(d.listed("local"));
        }
        let ran = d.run(&["list", "--from", "offsite"]);
        assert_eq!(ran.code, 77, "{ran:#?}");
        assert!(ran.stderr.contains(&format!("\nhint: allow s3:ListBucket on {bucket}/{folder}.\n")), "{ran:#?}");
        // With more rights all of it is seen, and comes back.
        rgw::allow(bucket, &["s3:List*", "s3:GetObject", "s3:GetObjectVersion"]).await;
        assert_eq!(d.listed("offsite"), ids);
        ids.iter().for_each(|id| d.restores(id, "offsite"));
    }
}

#[test]
fn where_nothing_can_be_seen_every_run_makes_a_point() {
    let server = FaultServer::start();
    let d = Deployment::with(&server, "");
    server.set_fault(Fault::error("ListObjectsV2", 403, "AccessDenied"));
    // Ids tell seconds, and nobody can see which are taken.
    let second = || chrono::Utc::now().timestamp();
    for n in 1..=2 {
        let begun = second();
        let ran = d.run(&["backup"]);
        assert_eq!(ran.code, 0, "{ran:#?}");
        crate::common::fake::until("the next second", || second() > begun);
        server.clear_faults();
        assert_eq!(d.listed("offsite").len(), n);
        server.set_fault(Fault::error("ListObjectsV2", 403, "AccessDenied"));
    }
}

#[tokio::test]
async fn keys_that_cannot_delete_keep_everything_and_say_so() {
    let bucket = "nodelete";
    rgw::make_bucket_for(bucket, false, &["s3:PutObject", "s3:GetObject", "s3:ListBucket"]).await;
    let d = Deployment::new(rgw::endpoint(), bucket, (bucket, rgw::SECRET), "", LOCAL);
    d.run(&["backup", "--cadence", "daily"]).ok();
    let first = d.listed("offsite");
    let ran = d.run(&["backup", "--cadence", "daily"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:#?}");
    let denied = format!("\n  offsite: could not remove {}: cannot delete s3://{bucket}/test/web1/blobs/", first[0]);
    assert!(ran.stdout.contains(&denied), "{ran:#?}");
    assert!(ran.stdout.contains(": AccessDenied (HTTP 403) (these keys may not delete)\n"), "{ran:#?}");
    assert!(ran.stdout.contains(&format!("\n  local: removed {}: superseded by ", first[0])), "{ran:#?}");
    assert_eq!((d.listed("local").len(), d.listed("offsite").len()), (1, 2));
    d.restores(&first[0], "offsite");
}

#[test]
fn a_storm_of_503_is_outlasted_or_said() {
    let server = FaultServer::start();
    let d = Deployment::with(&server, "");
    for op in ["ListObjectsV2", "CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject"] {
        server.set_fault(Fault::error(op, 503, "SlowDown").times(2));
    }
    d.run(&["backup"]).ok();
    let [id] = d.listed("offsite").try_into().unwrap();
    d.restores(&id, "offsite");
    let objects = server.objects().len();

    server.set_fault(Fault::error("UploadPart", 503, "SlowDown"));
    let hint = "hint: wait until the store is well again; `retries` says how often a request is made anew.\n";
    let said =
        format!("could not store \"data.tar\": offsite: gave up after 3 tries: cannot write a part of {ARTEFACT}");
    let words = format!("{NO_POINT}{said}: SlowDown: as told (HTTP 503)\n{hint}");
    says(&d.run(&["backup", "--manual"]), 69, &words);
    assert_eq!((server.objects().len(), server.uploads().len()), (objects, 0), "nothing is left");
    server.set_fault(Fault::error("*", 503, "SlowDown"));
    let ran = d.run(&["check-s3"]);
    assert_eq!(ran.code, 3, "{ran:#?}");
    server.clear_faults();
    assert_eq!(d.listed("offsite"), [id]);
}

#[test]
fn a_connection_that_breaks_in_the_third_part_is_made_anew_or_said() {
    let server = FaultServer::start();
    let d = Deployment::with(&server, "");
    server.set_fault(Fault::reset("UploadPart").after(2).times(1));
    d.run(&["backup"]).ok();
    assert_eq!(server.count("UploadPart"), 4, "three parts, one of them twice");
    let [id] = d.listed("offsite").try_into().unwrap();
    d.restores(&id, "offsite");

    server.clear_faults();
    server.set_fault(Fault::reset("UploadPart").after(2));
    let ran = d.run(&["backup", "--manual"]);
    assert_eq!(ran.code, 69, "{ran:#?}");
    assert!(ran.stderr.contains("offsite: gave up after 3 tries: cannot write a part of s3://backups/"), "{ran:#?}");
    assert!(ran.stderr.ends_with("\nhint: check `endpoint`, the network, and whether the store is up.\n"), "{ran:#?}");
    assert!(server.uploads().is_empty(), "{:?}", server.uploads());
    assert_eq!(d.listed("offsite"), [id]);
}

#[test]
fn a_wrong_clock_is_said_with_what_to_do() {
    let server = FaultServer::start();
    server.set_fault(Fault::error("*", 403, "RequestTimeTooSkewed"));
    let skewed = "RequestTimeTooSkewed: as told (HTTP 403)\n";
    let unread = format!("{UNREAD}cannot list s3://backups/test/web1/blobs/: {skewed}");
    let hint = "hint: the clock of this host and the store's differ by more than 15 minutes: set the clock.";
    let words = format!("{unread}{NO_POINT}cannot start an upload of {ARTEFACT}: {skewed}{hint}\n");
    says(&Deployment::with(&server, "").run(&["backup"]), 78, &words);
    let words = format!(
        "{unread}error: service \"blobs\": restore point ID is incomplete: it is not at offsite\n  caused by: offsite: \
         cannot start an upload of {ARTEFACT}: {skewed}{hint} Then the next run copies the point there.\n"
    );
    says(&Deployment::with(&server, LOCAL).run(&["backup"]), 10, &words);
    assert!(server.objects().is_empty());
}

#[tokio::test]
async fn a_bucket_that_is_not_there_and_keys_that_are_wrong_are_said() {
    rgw::make_bucket("run-errors", false).await;
    let d = Deployment::new(rgw::endpoint(), "run-absent", (rgw::ACCESS, rgw::SECRET), "", "");
    let place = |bucket| format!("s3://{bucket}/test/web1/blobs/");
    let words = |bucket, code: &str, begin: &str, hint: &str| {
        format!("{UNREAD}cannot list {}: {code}\n{NO_POINT}{begin}\nhint: {hint}\n", place(bucket))
    };
    let begin = "could not begin to store \"data.tar\": cannot look at s3://run-absent/: NotFound (HTTP 404)";
    let hint = "create the bucket \"run-absent\", or mend `bucket` and `endpoint`.";
    says(&d.run(&["backup"]), 66, &words("run-absent", "NoSuchBucket (HTTP 404)", begin, hint));
    for (keys, code, hint) in [
        (
            (rgw::ACCESS, "wrong"),
            "SignatureDoesNotMatch (HTTP 403)",
            "the secret key does not belong to the access key, or `region` is wrong: check both.",
        ),
        (
            ("nobody", rgw::SECRET),
            "InvalidAccessKeyId (HTTP 403)",
            "the store does not know this access key: check `credentials` and `endpoint`.",
        ),
    ] {
        let d = Deployment::new(rgw::endpoint(), "run-errors", keys, "", "");
        let begin = format!("cannot start an upload of {}ID/data.tar: {code}", place("run-errors"));
        says(&d.run(&["backup"]), 77, &words("run-errors", code, &begin, hint));
    }
    // Keys that are right, and may do nothing in this bucket.
    rgw::make_bucket_for("run-denied", false, &["s3:ListBucket"]).await;
    let d = Deployment::new(rgw::endpoint(), "run-denied", ("run-denied", rgw::SECRET), "", "");
    let at = format!("{}ID/data.tar", place("run-denied"));
    let hint = "hint: allow s3:PutObject on run-denied/test/web1/blobs/ID/data.tar.";
    let words = format!("{NO_POINT}cannot start an upload of {at}: AccessDenied (HTTP 403)\n{hint}\n");
    says(&d.run(&["backup"]), 77, &words);
}

#[test]
fn a_store_that_hangs_costs_its_own_copy_which_the_next_run_makes_good() {
    for op in ["UploadPart", "*"] {
        let server = FaultServer::start();
        let d = Deployment::with(&server, LOCAL);
        server.set_fault(Fault::hang(op));
        // Patience costs time only where nothing will come.
        let patient = std::fs::read_to_string(&d.config).unwrap();
        std::fs::write(&d.config, patient.replace("60s", "1s")).unwrap();
        let ran = d.run(&["backup"]);
        std::fs::write(&d.config, patient).unwrap();
        assert_eq!(ran.code, 10, "{ran:#?}");
        assert!(ran.stdout.contains("\n  local: whole\n  offsite: FAILED: could not "), "{ran:#?}");
        let said = "is incomplete: it is not at offsite\n  caused by: offsite: could not ";
        assert!(ran.stderr.contains(said), "{ran:#?}");
        assert!(
            ran.stderr.contains("\nhint: ") && ran.stderr.ends_with(" Then the next run copies the point there.\n")
        );
        assert!(server.objects().is_empty(), "{:?}", server.objects());
        let [id] = d.listed("local").try_into().unwrap();
        d.restores(&id, "local");
        server.clear_faults();
        assert!(d.listed("offsite").is_empty());
        let said = d.run(&["backup"]).ok();
        assert!(said.starts_with("blobs: nothing is due: "), "{said}");
        assert!(said.contains(&format!("  offsite: copied {id} there from local, it was missing\n")), "{said}");
        assert_eq!(d.listed("offsite"), [id.as_str()]);
        d.restores(&id, "offsite");
    }
}

#[test]
fn a_store_that_fails_is_not_asked_for_every_point_it_missed() {
    let server = FaultServer::start();
    let d = Deployment::with(&server, LOCAL);
    server.set_fault(Fault::error("CreateMultipartUpload", 503, "SlowDown"));
    for _ in 0..3 {
        assert_eq!(d.run(&["backup", "--manual"]).code, 10);
    }
    let before = server.count("CreateMultipartUpload");
    let said = d.run(&["backup", "--dry-run"]).ok() + &d.run(&["prune"]).ok();
    assert!(!said.contains("could not"), "{said}");
    // A daily point is due: its own three tries, and none for the three points that were missed before.
    assert_eq!(d.run(&["backup"]).code, 10);
    assert_eq!(server.count("CreateMultipartUpload") - before, 3);
    // Nothing is due: three tries for the first of the four.
    let said = d.run(&["backup"]).ok();
    assert_eq!(said.matches("could not copy").count(), 1, "{said}");
    assert_eq!(server.count("CreateMultipartUpload") - before, 6);
    server.clear_faults();
    let said = d.run(&["backup"]).ok();
    assert_eq!(said.matches(" there from local, it was missing").count(), 4, "{said}");
}

#[test]
fn a_point_in_an_archive_class_needs_thaw() {
    for (server, style) in [(FaultServer::start(), ""), (FaultServer::start_versioned(), ", key_style: versioned")] {
        let more = format!(", retries: 2{style}");
        let d = Deployment::new(server.endpoint(), BUCKET, (ACCESS, SECRET), &more, "");
        d.run(&["backup"]).ok();
        d.run(&["drill"]).ok();
        server.freeze("data.tar");
        let list = d.run(&["list"]).ok();
        assert!(list.contains("complete: needs thaw"), "{list}");
        let plan = d.run(&["restore", "blobs", "latest", "--plan"]).ok();
        assert!(plan.contains("   needs thaw, which takes a store hours"), "{plan}");
        assert!(!plan.contains("takes about"), "the last drill says nothing about a store that thaws: {plan}");
        let command =
            plan.lines().find_map(|l| l.strip_prefix("     aws s3api restore-object --bucket backups --key "));
        assert!(command.is_some_and(|c| c.contains("data.tar") && c.ends_with(" --restore-request Days=7")), "{plan}");
        assert_eq!(command.is_some_and(|c| c.contains("--version-id ")), !style.is_empty(), "{plan}");
        let out = d.path("out");
        for args in
            [&["restore", "blobs", "latest", "--to", out.to_str().unwrap()][..], &["drill"], &["drill", "--random"]]
        {
            let ran = d.run(args);
            assert_eq!(ran.code, 69, "{args:?}: {ran:#?}");
            assert!(
                ran.stderr.contains(" needs thaw: 1 of its objects lie in an archive class at offsite"),
                "{ran:#?}"
            );
            assert!(ran.stderr.contains("hours later: `aws s3api restore-object --bucket backups --key "), "{ran:#?}");
        }
        assert!(!out.exists() && server.calls().last() != Some(&"GetObject"), "it is known before anything is read");
        // What a listing did not say is said by the read.
        let verify = d.run(&["verify", "blobs", "--level", "digest"]);
        assert!(verify.code == 69 && verify.stderr.contains("InvalidObjectState"), "{verify:#?}");
        server.thaw();
        assert!(!d.run(&["list"]).ok().contains("thaw"));
        d.run(&["restore", "blobs", "latest", "--to", out.to_str().unwrap()]).ok();
        let read = |dir: &str| std::fs::read(d.path(dir).join("noise")).unwrap();
        assert!(read("out") == read("blobs"));
    }
}

#[test]
fn a_drill_chooses_what_can_be_read_and_a_manifest_in_an_archive_class_hides_no_other_point() {
    let server = FaultServer::start();
    let d = Deployment::with(&server, "");
    d.run(&["backup", "--manual"]).ok();
    let old = d.listed("offsite").remove(0);
    d.run(&["backup", "--manual"]).ok();
    server.freeze(&format!("{old}/data.tar"));
    for _ in 0..5 {
        let said = d.run(&["drill", "--random"]).ok();
        assert!(!said.contains(&old), "{said}");
    }
    let objects = || server.objects().iter().filter(|o| o.key.contains(&old)).count();
    let before = objects();
    server.freeze(&format!("{old}/manifest.json"));
    let list = d.run(&["list"]).ok();
    assert!(list.contains(&format!("{old} is left alone: ")) && list.contains("its manifest needs thaw: "), "{list}");
    assert_eq!(d.listed("offsite").len(), 1);
    d.run(&["prune"]).ok();
    assert_eq!(objects(), before, "what cannot be read is not removed");
}
