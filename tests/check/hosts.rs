//! `check-s3 --all-hosts`: what is in the bucket, and what should be.

use serde_json::Value;

use super::{Deployment, answered};
use crate::common::{run, write};

#[tokio::test]
async fn all_hosts_are_found_and_those_that_should_be_there_are_missed() {
    for (bucket, style) in [("hosts-timestamped", ""), ("hosts-versioned", ", key_style: versioned")] {
        let d = Deployment::new(bucket, style, "").await;
        let other = write(d.dir.path(), "other.yml", &{
            let text = std::fs::read_to_string(&d.config).unwrap();
            text.replace("host: web1", "host: db1").replace("  blobs:\n", "  files:\n").replace("/local", "/other")
        });
        d.backup();
        run(&["--config", &other, "backup"]).ok();
        // Another machine: it has keys, and no services.
        let config = std::fs::read_to_string(&d.config).unwrap();
        let (before, after) = (config.find("services:").unwrap(), config.find("check:").unwrap());
        let text = format!("{}{}", &config[..before], &config[after..]).replace("host: web1", "host: monitor");
        let expecting = text.replace("check: {", "check: {expect: {db1: [files, accounts], lost1: [files]}, ");
        let monitor = write(d.dir.path(), "monitor.yml", &text);
        let check = |more: &[&str]| run(&[&["--config", &monitor, "check-s3", "--all-hosts"], more].concat());

        let lines = answered(&check(&[]), 0);
        assert!(lines[0].starts_with("BACKSTAY OK - 4 checks, all fresh | 'db1_files_"), "{lines:#?}");
        assert!(lines[0].contains(" 'web1_blobs_daily_offsite'="), "{lines:#?}");
        assert_eq!(lines.len(), 5);
        assert!(lines[1..].iter().all(|l| l.starts_with("[OK] ")), "{lines:#?}");

        std::fs::write(&monitor, expecting).unwrap();
        let lines = answered(&check(&[]), 2);
        let missing = "has no complete daily restore point";
        let expected =
            format!("BACKSTAY CRITICAL - db1 accounts at offsite: {missing}; lost1 files at offsite: {missing} | ");
        assert!(lines[0].starts_with(&expected), "{lines:#?}");
        // What is there and nobody expects was retired: it is said, and not judged.
        let retired = "[OK] web1 blobs at offsite: not judged, because it is not in check.expect";
        assert_eq!(lines.iter().filter(|l| *l == retired).count(), 1, "{lines:#?}");
        assert_eq!(
            d.subjects(),
            ["db1: accounts", "lost1: files"].map(|who| format!("[backstay] ALERT {who} {missing} at offsite"))
        );
        let ran = check(&["--json"]);
        assert_eq!((ran.code, ran.stderr.as_str()), (2, ""));
        let seen: Vec<(String, String)> = ran
            .stdout
            .lines()
            .map(|l| {
                let line: Value = serde_json::from_str(l).unwrap();
                let text = |v: &Value| v.as_str().unwrap().to_owned();
                (format!("{}/{}", text(&line["host"]), text(&line["service"])), text(&line["freshness"]["state"]))
            })
            .collect();
        let expected = [("db1/accounts", "alert"), ("db1/files", "ok"), ("lost1/files", "alert"), ("web1/blobs", "ok")];
        assert_eq!(seen, expected.map(|(who, state)| (who.to_owned(), state.to_owned())));
        assert_eq!(d.subjects().len(), 2, "told once");

        d.keys(crate::common::rgw::ACCESS, "wrong");
        let lines = answered(&check(&[]), 3);
        let unread = "all hosts all services at offsite: has restore points that could not be read";
        assert_eq!(lines[0], format!("BACKSTAY UNKNOWN - {unread}"));
    }
}
