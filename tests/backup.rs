//! The engine on real directories: what is listed can be restored, what is not whole is not listed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use backstay::catalogue::{self, Catalogue};
use backstay::config::parse;
use backstay::engine::Engine;
use backstay::error::{Error, ErrorKind};
use backstay::lock::Lock;
use backstay::monitor::Silent;
use backstay::pipeline::decode::Identities;
use backstay::restore::{self, Selection};
use backstay::run::{self, RunReport, Wanted};
use backstay::source::RestoreRequest;
use backstay::units::{Cadence, Clock};
use backstay::verify::{self, Level};
use chrono::{DateTime, TimeDelta, Utc};
use tokio_util::sync::CancellationToken;

/// A deployment of one blob directory with a local and a second place, and a clock of its own.
struct Deployment {
    dir: tempfile::TempDir,
    engine: Engine,
    offset: Arc<AtomicI64>,
}

fn start() -> DateTime<Utc> {
    "2026-03-10T12:00:00Z".parse().unwrap()
}

impl Deployment {
    fn new(keep: &str) -> Self {
        Self::with(keep, "[second]")
    }
    fn with(keep: &str, destinations: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().display();
        let text = format!(
            "environment: test\nhost: h1\nstate_dir: {root}/state\n\
             destinations: {{second: {{local: {{path: {root}/second}}}}}}\n\
             services:\n  blobs:\n    blobdir: {{path: {root}/blobs}}\n    backup_dir: {root}/local\n    \
             destinations: {destinations}\n    keep: {keep}\n"
        );
        let config = parse::from_text(&text, "test.yml").unwrap();
        let offset = Arc::new(AtomicI64::new(0));
        let shared = Arc::clone(&offset);
        let engine = Engine {
            config: Arc::new(config),
            clock: Clock::new(move || start() + TimeDelta::seconds(shared.load(Ordering::SeqCst))),
            cancel: CancellationToken::new(),
            monitor: Arc::new(Silent),
            identities: Identities::default(),
        };
        let made = Self { dir, engine, offset };
        made.write("a/one", b"first");
        made.write("a/two", &vec![b'x'; 300_000]);
        made
    }
    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
    fn write(&self, name: &str, content: &[u8]) {
        let path = self.path("blobs").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    fn pass(&self, time: TimeDelta) {
        self.offset.fetch_add(time.num_seconds(), Ordering::SeqCst);
    }
    async fn backup(&self, wanted: Wanted) -> Result<RunReport, Error> {
        run::backup(&self.engine, "blobs", wanted, false).await
    }
    async fn catalogue(&self, place: &str) -> Catalogue {
        let place = self.engine.places_from("blobs", Some(place)).unwrap().remove(0);
        catalogue::read(&place, "h1", "blobs").await.unwrap()
    }
    async fn ids(&self, place: &str) -> Vec<String> {
        self.catalogue(place).await.points.iter().map(|p| p.manifest.id.clone()).collect()
    }
    async fn restore(&self, from: Option<&str>, id: Option<&str>, to: &Path) -> Result<(), Error> {
        let wanted = Selection { id: id.map(str::to_owned), from: from.map(str::to_owned), ..Selection::default() };
        let chosen = restore::choose(&self.engine, "blobs", &wanted).await?;
        let request = RestoreRequest { to: Some(to.to_path_buf()), ..RestoreRequest::default() };
        restore::restore(&self.engine, "blobs", &chosen, &request).await.map(drop)
    }
    fn folder(&self, place: &str, id: &str) -> PathBuf {
        if place == "local" { self.path("local").join(id) } else { self.path("second/test/h1/blobs").join(id) }
    }
}

#[tokio::test]
async fn a_backup_is_listed_and_restores_from_each_place() {
    let d = Deployment::new("{daily: 3}");
    let report = d.backup(Wanted::Due).await.unwrap();
    assert!(report.failure().is_none());
    assert_eq!(report.id.as_deref(), Some("blobs_test_daily_2026_03_10_120000"));
    for place in ["local", "second"] {
        assert_eq!(d.ids(place).await, [report.id.clone().unwrap()]);
        let target = d.path(&format!("out-{place}"));
        d.restore(Some(place), None, &target).await.unwrap();
        assert_eq!(std::fs::read(target.join("a/one")).unwrap(), b"first");
        assert_eq!(std::fs::read(target.join("a/two")).unwrap(), vec![b'x'; 300_000]);
    }
    let mode =
        |p: PathBuf| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(p).unwrap().permissions()) & 0o777;
    let folder = d.folder("local", &report.id.unwrap());
    assert_eq!(mode(folder.clone()), 0o700);
    assert_eq!(mode(folder.join("manifest.json")), 0o600);
}

#[tokio::test]
async fn nothing_due_makes_nothing_and_the_next_period_does() {
    let d = Deployment::new("{daily: 3}");
    d.backup(Wanted::Due).await.unwrap();
    let again = d.backup(Wanted::Due).await.unwrap();
    assert_eq!((again.id, again.cadence), (None, None));
    d.pass(TimeDelta::days(1));
    assert!(d.backup(Wanted::Due).await.unwrap().id.is_some());
    assert_eq!(d.ids("local").await.len(), 2);
}

#[tokio::test]
async fn a_place_that_keeps_only_months_is_not_sent_every_day() {
    let d = Deployment::with("{daily: 3, monthly: 2}", "[{name: second, keep: {monthly: 12}}]");
    let first = d.backup(Wanted::Due).await.unwrap();
    assert_eq!(first.cadence, Some(Cadence::Monthly));
    d.pass(TimeDelta::days(1));
    let daily = d.backup(Wanted::Due).await.unwrap();
    assert_eq!(daily.cadence, Some(Cadence::Daily));
    assert!(daily.failure().is_none());
    assert_eq!(daily.places.iter().map(|p| p.wanted).collect::<Vec<_>>(), [true, false]);
    assert_eq!(d.ids("second").await, [first.id.unwrap()]);
    assert_eq!(d.ids("local").await.len(), 2);
    // The month begins: both places get it, and it is what the second restores.
    d.write("a/one", b"april");
    d.pass(TimeDelta::days(30));
    let next = d.backup(Wanted::Due).await.unwrap();
    assert_eq!(d.ids("second").await.last(), next.id.as_ref());
    let target = d.path("out");
    d.restore(Some("second"), None, &target).await.unwrap();
    assert_eq!(std::fs::read(target.join("a/one")).unwrap(), b"april");
}

#[tokio::test]
async fn a_place_whose_last_point_is_damaged_takes_what_comes_next() {
    let d = Deployment::with("{daily: 3, monthly: 2}", "[{name: second, keep: {monthly: 12}}]");
    let first = d.backup(Wanted::Due).await.unwrap().id.unwrap();
    for place in ["local", "second"] {
        std::fs::remove_file(d.folder(place, &first).join("data.tar.zst")).unwrap();
    }
    d.pass(TimeDelta::days(1));
    let daily = d.backup(Wanted::This(Cadence::Daily)).await.unwrap();
    assert_eq!(daily.places.iter().map(|p| p.wanted).collect::<Vec<_>>(), [true, true]);
    let target = d.path("out");
    d.restore(Some("second"), None, &target).await.unwrap();
    assert_eq!(std::fs::read(target.join("a/one")).unwrap(), b"first");
}

#[tokio::test]
async fn a_place_without_any_point_takes_what_comes_first() {
    let d = Deployment::with("{daily: 3}", "[{name: second, keep: {yearly: 2}}]");
    d.backup(Wanted::This(Cadence::Daily)).await.unwrap();
    assert_eq!(d.ids("second").await.len(), 1);
    d.pass(TimeDelta::days(1));
    d.backup(Wanted::This(Cadence::Daily)).await.unwrap();
    assert_eq!(d.ids("second").await.len(), 1);
    // One that was asked for by hand goes everywhere.
    let manual = d.backup(Wanted::This(Cadence::Manual)).await.unwrap();
    assert_eq!(d.ids("second").await, [manual.id.unwrap()], "and is the last complete one, so that the daily may go");
}

#[tokio::test]
async fn retention_keeps_what_the_policy_says_and_manual_points() {
    let d = Deployment::new("{daily: 2}");
    let manual = d.backup(Wanted::This(Cadence::Manual)).await.unwrap().id.unwrap();
    for _ in 0..5 {
        d.pass(TimeDelta::days(1));
        d.backup(Wanted::Due).await.unwrap();
    }
    for place in ["local", "second"] {
        let ids = d.ids(place).await;
        assert_eq!(ids, [manual.as_str(), "blobs_test_daily_2026_03_14_120000", "blobs_test_daily_2026_03_15_120000"]);
    }
}

#[tokio::test]
async fn a_failed_run_lists_nothing_removes_nothing_and_leaves_nothing() {
    let d = Deployment::new("{daily: 1}");
    let good = d.backup(Wanted::Due).await.unwrap().id.unwrap();
    d.pass(TimeDelta::days(1));
    std::fs::rename(d.path("blobs"), d.path("gone")).unwrap();
    let err = d.backup(Wanted::Due).await.unwrap_err();
    assert!(err.chain().contains("no restore point was made"), "{}", err.chain());
    for place in ["local", "second"] {
        let found = d.catalogue(place).await;
        assert_eq!(found.points.iter().map(|p| p.manifest.id.clone()).collect::<Vec<_>>(), std::slice::from_ref(&good));
        assert!(found.orphans.is_empty() && found.strangers.is_empty(), "{found:?}");
    }
}

#[tokio::test]
async fn a_place_that_missed_a_point_is_topped_up() {
    let d = Deployment::new("{daily: 3}");
    std::fs::write(d.path("second"), "a file where a directory should be").unwrap();
    let report = d.backup(Wanted::Due).await.unwrap();
    let failure = report.failure().expect("the second place is not whole");
    assert_eq!(failure.kind, ErrorKind::Incomplete);
    assert!(failure.chain().contains("second"), "{}", failure.chain());
    assert_eq!(d.ids("local").await.len(), 1);
    std::fs::remove_file(d.path("second")).unwrap();
    let next = d.backup(Wanted::Due).await.unwrap();
    assert_eq!(next.id, None, "nothing is due: the day has a point");
    assert_eq!(next.reason, "there are points for 2026-03-10");
    assert_eq!(d.ids("second").await, d.ids("local").await);
    d.restore(Some("second"), None, &d.path("out")).await.unwrap();
    assert_eq!(std::fs::read(d.path("out/a/one")).unwrap(), b"first");
}

#[tokio::test]
async fn a_shrunken_point_is_suspect_evicts_nothing_and_can_be_accepted() {
    let d = Deployment::new("{daily: 1}");
    let good = d.backup(Wanted::Due).await.unwrap().id.unwrap();
    d.pass(TimeDelta::days(1));
    std::fs::remove_file(d.path("blobs/a/two")).unwrap();
    let report = d.backup(Wanted::Due).await.unwrap();
    assert_eq!(report.failure().unwrap().kind, ErrorKind::Incomplete);
    assert!(report.suspect[0].contains("% of the size of"), "{:?}", report.suspect);
    assert_eq!(d.ids("local").await, [good.clone(), report.id.clone().unwrap()]);
    let latest = restore::choose(&d.engine, "blobs", &Selection::default()).await.unwrap();
    assert_eq!(latest.point.manifest.id, good, "latest is the newest complete point");
}

#[tokio::test]
async fn every_kind_of_damage_is_noticed_by_verify_and_refused_by_restore() {
    for file in ["data.tar.zst", "inventory.jsonl.zst", "manifest.json"] {
        for action in ["delete", "truncate", "flip"] {
            let d = Deployment::new("{daily: 1}");
            let id = d.backup(Wanted::Due).await.unwrap().id.unwrap();
            let path = d.folder("local", &id).join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            match action {
                "delete" => std::fs::remove_file(&path).unwrap(),
                "truncate" => std::fs::write(&path, &bytes[..middle]).unwrap(),
                _ => {
                    bytes[middle] ^= 1;
                    std::fs::write(&path, bytes).unwrap();
                }
            }
            let target = d.path("out");
            let err = d.restore(Some("local"), None, &target).await.expect_err("damage must be refused");
            assert!([ErrorKind::Corrupt, ErrorKind::NotFound].contains(&err.kind), "{file} {action}: {}", err.chain());
            assert!(!target.join("a").exists(), "{file} {action}: something was left at the target");
            if file != "manifest.json" {
                let copies = restore::everywhere(&d.engine, "blobs", &Selection::default()).await.unwrap();
                let verdicts: Vec<bool> = {
                    let mut v = Vec::new();
                    for copy in &copies {
                        v.push(
                            verify::verify(&d.engine, "blobs", copy, Level::Digest).await.unwrap().problems.is_empty(),
                        );
                    }
                    v
                };
                assert_eq!(verdicts, [false, true], "{file} {action}");
            }
            d.restore(Some("second"), None, &target).await.unwrap();
        }
    }
}

#[tokio::test]
async fn foreign_folders_and_manifests_of_a_newer_version_are_listed_and_never_touched() {
    let d = Deployment::new("{daily: 1}");
    let id = d.backup(Wanted::Due).await.unwrap().id.unwrap();
    let copy = d.path("local/blobs_test_daily_2020_01_01_000000");
    std::fs::create_dir(&copy).unwrap();
    let text = std::fs::read_to_string(d.folder("local", &id).join("manifest.json")).unwrap();
    let newer = text.replace("\"format_version\": 1", "\"format_version\": 2");
    let at = newer.rfind("  \"manifest_sha256\"").unwrap();
    let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&newer.as_bytes()[..at]));
    std::fs::write(copy.join("manifest.json"), format!("{}  \"manifest_sha256\": \"{digest}\"\n}}\n", &newer[..at]))
        .unwrap();
    std::fs::create_dir(d.path("local/photos")).unwrap();
    std::fs::write(d.path("local/photos/cat.jpg"), "meow").unwrap();
    for _ in 0..3 {
        d.pass(TimeDelta::days(30));
        d.backup(Wanted::Due).await.unwrap();
    }
    let strangers = d.catalogue("local").await.strangers;
    assert_eq!(strangers.len(), 2, "{strangers:?}");
    assert!(strangers.iter().any(|s| s.reason.contains("format version 2")));
    assert!(copy.join("manifest.json").exists() && d.path("local/photos/cat.jpg").exists());
}

#[tokio::test]
async fn what_a_killed_run_left_is_swept_by_the_next_and_another_agents_is_not() {
    let d = Deployment::new("{daily: 3}");
    let agent = d.engine.agent_id().unwrap();
    let left = |name: &str, owner: &str| {
        let dir = d.path(&format!("local/.partial-{name}"));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(".owner"), format!("{owner}\nh1\n1\n")).unwrap();
        std::fs::write(dir.join("data.tar.zst"), "half").unwrap();
        dir
    };
    let mine = left("blobs_test_daily_2026_03_10_110000", &agent);
    let other = left("blobs_test_daily_2026_03_10_100000", "somebody-else");
    let orphan = d.path("second/test/h1/blobs/blobs_test_daily_2026_03_01_000000");
    let young = d.path("second/test/h1/blobs/blobs_test_daily_2026_03_10_113000");
    for dir in [&orphan, &young] {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join("data.tar.zst"), "half").unwrap();
    }
    assert!(d.ids("local").await.is_empty());
    d.backup(Wanted::Due).await.unwrap();
    assert!(!mine.exists(), "ours goes");
    assert!(other.exists(), "another agent's stays");
    assert!(!orphan.exists(), "older than the grace period goes");
    assert!(young.exists(), "younger than the grace period stays");
}

#[tokio::test]
async fn a_second_run_is_told_who_holds_the_lock() {
    let d = Deployment::new("{daily: 3}");
    let _held = Lock::take(&d.engine.service_dir("blobs"), "blobs", start()).unwrap();
    let err = d.backup(Wanted::Due).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Busy);
    let expected = format!("locked by pid {} since 2026-03-10 12:00:00 UTC", std::process::id());
    assert!(err.message.contains(&expected), "{}", err.message);
}

#[tokio::test]
async fn a_point_from_the_future_is_not_latest_and_is_not_removed() {
    let d = Deployment::new("{daily: 1}");
    d.pass(TimeDelta::days(400));
    let future = d.backup(Wanted::Due).await.unwrap().id.unwrap();
    d.pass(TimeDelta::days(-400));
    let now = d.backup(Wanted::Due).await.unwrap().id.unwrap();
    d.pass(TimeDelta::days(1));
    let last = d.backup(Wanted::Due).await.unwrap().id.unwrap();
    assert!(!d.ids("local").await.contains(&now));
    assert!(d.ids("local").await.contains(&future));
    let latest = restore::choose(&d.engine, "blobs", &Selection::default()).await.unwrap();
    assert_eq!(latest.point.manifest.id, last);
}
