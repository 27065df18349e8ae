//! `docs/recovery.md`, walked word for word: a week of points in a bucket, drills, damage that is found, a host that is
//! lost, and everything back from the bucket alone, on a machine without Backstay.

#![allow(clippy::disallowed_methods, reason = "the page is followed as people follow it")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use aws_sdk_s3::primitives::ByteStream;

use crate::blobdir::tree::{Copy, compare};
use crate::common::postgres::{Server, bin};
use crate::common::{Ran, backstay, rgw};

/// Days of points.
const DAYS: usize = 7;

struct Host {
    dir: tempfile::TempDir,
    server: Server,
    bucket: String,
}

impl Host {
    fn new(bucket: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let server = Server::start();
        server.sql("postgres", "create table orders (id int primary key, blob text)");
        std::fs::create_dir(dir.path().join("blobdb")).unwrap();
        let made = Self { dir, server, bucket: bucket.to_owned() };
        let keys = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", rgw::ACCESS, rgw::SECRET);
        std::fs::write(made.path("keys"), keys).unwrap();
        std::fs::set_permissions(made.path("keys"), std::fs::Permissions::from_mode(0o600)).unwrap();
        made
    }
    fn path(&self, below: &str) -> std::path::PathBuf {
        self.dir.path().join(below)
    }
    /// The configuration of one day: each day is another installation's, or its points would supersede each other.
    fn configure(&self, day: usize) {
        let bin = bin();
        let (root, socket, bucket) = (self.dir.path().display(), self.server.dir.path().display(), &self.bucket);
        let text = format!(
            "environment: production\nhost: db1\nagent_id: day{day}\nstate_dir: {root}/state\ndestinations:\n  offsite:\n    \
             s3: {{bucket: {bucket}, endpoint: \"{}\", credentials: {{file: {root}/keys}}}}\nservices:\n  postgres:\n    \
             postgres: {{method: plain, host: {socket}, port: 5432, username: postgres, bin_dir: {bin}}}\n    \
             destinations: [offsite]\n    keep: {{daily: 7}}\n  blobdb:\n    blobdir: {{path: {root}/blobdb}}\n    \
             after: [postgres]\n    destinations: [offsite]\n    keep: {{daily: 7}}\ncheck: {{max_drill_age: 8d}}\n",
            rgw::endpoint()
        );
        std::fs::write(self.path("backstay.yml"), text).unwrap();
    }
    fn run(&self, args: &[&str]) -> Ran {
        let config = self.path("backstay.yml");
        let all: Vec<&str> = ["--config", config.to_str().unwrap()].into_iter().chain(args.iter().copied()).collect();
        let out = backstay(&all).output().unwrap();
        Ran {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }
    /// A day of work: orders, and the blobs that they name.
    fn work(&self, day: usize) {
        for n in 0..20 {
            let name = format!("day{day}-{n}");
            std::fs::write(self.path("blobdb").join(&name), name.repeat(500)).unwrap();
            self.server.sql("postgres", &format!("insert into orders values ({}, '{name}')", day * 100 + n));
        }
    }
    fn ids(&self, service: &str) -> Vec<String> {
        let said = self.run(&["--json", "list", service]).ok();
        let lines = said.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        lines.filter(|l| l["message_type"] == "restore_point").map(|l| l["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// The commands of the page, by its headings.
fn steps() -> Vec<String> {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recovery.md")).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect()
}

const ORDERS: &str = "select count(*), md5(string_agg(id || blob, ',' order by id)) from orders";

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_the_way_back() {
    let bucket = format!("recovery-{}", std::process::id());
    rgw::make_bucket(&bucket, false).await;
    let host = Host::new(&bucket);
    for day in 1..=DAYS {
        host.work(day);
        host.configure(day);
        host.run(&["backup", "--cadence", "daily"]).ok();
    }
    for service in ["postgres", "blobdb"] {
        assert_eq!(host.ids(service).len(), DAYS);
        let said = host.run(&["drill", service, "--random"]).ok();
        assert!(said.contains(": proven from offsite in "), "{said}");
    }
    let ids = host.ids("blobdb");
    let key = format!("production/db1/blobdb/{}/data.tar.zst", ids[2]);
    damage(&bucket, &key).await;
    let found = host.run(&["drill", "blobdb", &ids[2]]);
    assert!(found.code == 65 && found.stderr.contains(&key), "{found:#?}");
    let alarm = host.run(&["check-s3"]);
    assert!(
        alarm.code == 2 && alarm.stdout.contains(&format!("a drill found {} at offsite damaged", ids[2])),
        "{alarm:#?}"
    );

    let before = (Copy::of(&host.path("blobdb")), host.server.sql("postgres", ORDERS));
    host.server.down();
    tokio::task::spawn_blocking(move || comes_back(&host, &bucket, &before)).await.unwrap();
}

/// Only a flipped bit: its length is right.
async fn damage(bucket: &str, key: &str) {
    let client = rgw::client();
    let object = client.get_object().bucket(bucket).key(key).send().await.unwrap();
    let mut bytes = object.body.collect().await.unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    client.put_object().bucket(bucket).key(key).body(ByteStream::from(bytes)).send().await.unwrap();
}

/// Nothing of the old host is left when this begins, but the directory names.
fn comes_back(host: &Host, bucket: &str, before: &(Copy, String)) {
    let (blobs, data) = (host.path("blobdb"), host.server.data.clone());
    for dir in [&blobs, &data, &host.path("state")] {
        std::fs::remove_dir_all(dir).unwrap();
    }
    let new = tempfile::tempdir().unwrap();
    std::fs::set_permissions(new.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let script = steps().join("\n");
    let out = Command::new("bash")
        .args(["-euxo", "pipefail", "-c", &script])
        .current_dir(new.path())
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
        .env("HOME", new.path())
        .env("AWS_ACCESS_KEY_ID", rgw::ACCESS)
        .env("AWS_SECRET_ACCESS_KEY", rgw::SECRET)
        .env("AWS_ENDPOINT_URL", rgw::endpoint())
        .env("AWS_REGION", "us-east-1")
        .env("BUCKET", bucket)
        .env("BLOBS", &blobs)
        .env("PGDATA", &data)
        .output()
        .unwrap();
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}\n{complained}");
    assert!(said.contains("Backups of host db1 (production)"), "{said}");
    compare(&before.0, &Copy::of(&blobs));
    host.server.up();
    assert_eq!(host.server.sql("postgres", ORDERS), before.1);
}
