//! `list`, as a person reads it and as a program does.

use std::io::Write;
use std::sync::{Arc, Mutex};

use backstay::cli::app::{App, Output, Status};
use backstay::cli::progress::Held;
use backstay::cli::{self, BackupArgs, CadenceChoice, ListArgs};
use backstay::units::Clock;
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::common::write;

/// Standard output that can be read.
#[derive(Debug, Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl Write for Page {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The program, at a moment of the test's choice.
struct Program {
    dir: tempfile::TempDir,
    now: Arc<Mutex<DateTime<Utc>>>,
}

const CONFIG: &str = "environment: test
host: web1
state_dir: DIR/state
destinations:
  offsite: {local: {path: DIR/offsite}}
services:
  blobs: {blobdir: {path: DIR/blobs}, backup_dir: DIR/local, destinations: [offsite], 
          keep: {hourly: 9, daily: 9, weekly: 9}, compression: {algorithm: none}}
  new: {blobdir: {path: DIR/blobs}, backup_dir: DIR/new, keep: {daily: 9}}
  plans: {blobdir: {path: DIR/blobs/a}, destinations: [offsite], keep: {daily: 9}, compression: {algorithm: none}}
";

impl Program {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "blobs/a/one", &"one ".repeat(5 << 18));
        write(dir.path(), "blobs/two", &"two ".repeat(10 << 18));
        write(dir.path(), "backstay.yml", &CONFIG.replace("DIR", dir.path().to_str().unwrap()));
        Self { dir, now: Arc::new(Mutex::new("2026-03-10T12:00:00Z".parse().unwrap())) }
    }
    fn pass(&self, time: TimeDelta) {
        *self.now.lock().unwrap() += time;
    }
    fn app(&self, json: bool) -> (App, Page) {
        let (page, now) = (Page::default(), Arc::clone(&self.now));
        let app = App {
            config_path: Some(self.dir.path().join("backstay.yml")),
            preloaded: None,
            json,
            quiet: false,
            verbose: 0,
            clock: Clock::new(move || *now.lock().unwrap()),
            cancel: CancellationToken::new(),
            out: Output::new(page.clone()),
            status: Status::default(),
            held: Held::default(),
        };
        (app, page)
    }
    async fn backup(&self, service: &str, cadence: CadenceChoice) -> backstay::error::Result<()> {
        let args = BackupArgs { services: vec![service.into()], cadence, manual: false, dry_run: false };
        cli::backup::run(&self.app(false).0, &args).await
    }
    async fn list(&self, json: bool, services: &[&str], from: Option<&str>) -> String {
        let services = services.iter().map(|s| (*s).to_owned()).collect();
        let args = ListArgs { services, from: from.map(str::to_owned), host: None, all_hosts: false };
        let (app, page) = self.app(json);
        cli::list::run(&app, &args).await.unwrap();
        String::from_utf8(page.0.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn points_stand_by_service_newest_first_with_where_they_lie_and_what_is_wrong() {
    let p = Program::new();
    p.backup("blobs", CadenceChoice::Weekly).await.unwrap();
    p.pass(TimeDelta::hours(30));
    p.backup("blobs", CadenceChoice::Daily).await.unwrap();
    p.backup("plans", CadenceChoice::Daily).await.unwrap();
    p.pass(TimeDelta::hours(3));
    std::fs::remove_file(p.dir.path().join("blobs/two")).unwrap();
    let err = p.backup("blobs", CadenceChoice::Hourly).await.unwrap_err();
    assert!(err.message.contains("is suspect"), "{}", err.message);
    p.pass(TimeDelta::minutes(90));
    let at = |place: &str, id: &str| p.dir.path().join(place).join(id);
    std::fs::remove_file(at("local", "blobs_test_daily_2026_03_11_180000").join("data.tar")).unwrap();
    let lost = "test/web1/blobs/blobs_test_weekly_2026_03_10_120000";
    std::fs::remove_file(at("offsite", lost).join("manifest.json")).unwrap();
    write(p.dir.path(), "local/photos/cat.jpg", "meow");
    let said = p.list(false, &[], None).await;
    let expected = "\
blobs on web1                          AGE          STORED    AT              STATE
  blobs_test_hourly_2026_03_11_210000  90 min       5.0 MiB   local, offsite  SUSPECT: it has 33 % of the size of \
blobs_test_daily_2026_03_11_180000: 5.0 MiB after 15.0 MiB
  blobs_test_daily_2026_03_11_180000   4 h 30 min   15.0 MiB  local, offsite  INCOMPLETE at local: data.tar (missing); \
complete at offsite
  blobs_test_weekly_2026_03_10_120000  34 h 30 min  15.0 MiB  local           complete
  local: photos is left alone: not a restore point of this service
  offsite: test/web1/blobs/blobs_test_weekly_2026_03_10_120000 has no manifest: an unfinished or removed point

new on web1: no restore points

plans on web1                          AGE          STORED    AT              STATE
  plans_test_daily_2026_03_11_180000   4 h 30 min   5.0 MiB   offsite         complete
";
    assert_eq!(said, expected, "{said}");
    assert_eq!(p.list(false, &["new"], None).await, "new on web1: no restore points\n");

    let json = p.list(true, &["blobs"], Some("local")).await;
    let lines: Vec<Value> = json.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let short = |l: &Value| format!("{} {} {}", l["id"], l["state"], l["missing"]);
    let points: Vec<String> = lines.iter().filter(|l| l["message_type"] == "restore_point").map(short).collect();
    assert_eq!(
        points,
        [
            r#""blobs_test_weekly_2026_03_10_120000" "complete" []"#,
            r#""blobs_test_daily_2026_03_11_180000" "incomplete" ["data.tar"]"#,
            r#""blobs_test_hourly_2026_03_11_210000" "suspect" []"#,
        ]
    );
    assert_eq!((lines[0]["age_seconds"].as_i64(), &lines[0]["destination"]), (Some(124_200), &"local".into()));
    assert_eq!((&lines[3]["message_type"], &lines[3]["name"]), (&"stranger".into(), &"photos".into()));
}
