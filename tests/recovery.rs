//! `docs/recovery.md`, walked word for word: a week of points in a bucket, drills, damage that is found, a host that is
//! lost, and everything back from the bucket alone, on a machine without Backstay.

#![allow(clippy::disallowed_methods, reason = "the page is followed as people follow it")]
#![allow(clippy::print_stdout, reason = "it says how long each step took")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_sdk_s3::primitives::ByteStream;
use serde_json::Value;

use crate::blobdir::tree::{Copy, compare};
use crate::common::fake::collect;
use crate::common::postgres::{Server, bin};
use crate::common::search::{Node, OPENSEARCH, shared};
use crate::common::{Ran, backstay, rgw};
use crate::couchdb::data::unpack;

/// Days of points.
const DAYS: usize = 7;
const SERVICES: [&str; 4] = ["postgres", "blobdb", "couchdb", "search"];
/// What stands in the search's indices.
const INDICES: [(&str, usize); 2] = [("rec-orders", 70), ("rec-blobs", 140)];

/// Four stores. The files of CouchDB are those of a real node, which is not there; the search is a real node, whose
/// repository is a directory that is part of the points.
struct Host {
    dir: tempfile::TempDir,
    server: Server,
    search: Node,
    bucket: String,
}

/// All that must come back.
struct Before {
    blobs: Copy,
    orders: String,
    couchdb: BTreeMap<PathBuf, Vec<u8>>,
    documents: Vec<BTreeMap<String, Value>>,
}

impl Host {
    fn new(bucket: &str, search: Node) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let server = Server::start();
        server.sql("postgres", "create table orders (id int primary key, blob text)");
        std::fs::create_dir(dir.path().join("blobdb")).unwrap();
        unpack(dir.path());
        let made = Self { dir, server, search, bucket: bucket.to_owned() };
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
             after: [postgres]\n    destinations: [offsite]\n    keep: {{daily: 7}}\n  couchdb:\n    \
             couchdb: {{data_dir: {root}/data, url: \"http://127.0.0.1:1\"}}\n    destinations: [offsite]\n    keep: {{daily: 7}}\n  \
             search:\n    elasticsearch:\n      url: {}\n      include: ['rec-*']\n      wait_for_others: 5m\n      \
             repositories:\n        rec: {{fs: {{location: rec}}, archive: true}}\n    destinations: [offsite]\n    keep: {{daily: 7}}\n\
             check: {{max_drill_age: 8d}}\n",
            rgw::endpoint(),
            self.search.url
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
        for (index, documents) in INDICES {
            self.search.fill(index, documents * day / DAYS, 1);
        }
    }
    fn repository(&self) -> PathBuf {
        self.search.dir.join("repo/rec")
    }
    fn before(&self) -> Before {
        let mut couchdb = files(&self.path("data"));
        assert!(couchdb.remove(&self.path("data/_nodes.couch")).is_some(), "what names a cluster never comes back");
        Before {
            blobs: Copy::of(&self.path("blobdb")),
            orders: self.server.sql("postgres", ORDERS),
            couchdb,
            documents: INDICES.map(|(index, _)| self.search.documents(index)).into(),
        }
    }
    /// Nothing is left of it but the names of its directories.
    fn destroy(&self) {
        self.server.down();
        for dir in [&self.path("blobdb"), &self.server.data, &self.path("data"), &self.path("state")] {
            std::fs::remove_dir_all(dir).unwrap();
        }
        INDICES.iter().for_each(|(index, _)| drop(self.search.must("DELETE", &format!("/{index}"), None)));
        self.search.must("DELETE", "/_snapshot/rec", None);
        std::fs::remove_dir_all(self.repository()).unwrap();
    }
    fn ids(&self, service: &str) -> Vec<String> {
        let said = self.run(&["--json", "list", service]).ok();
        let lines = said.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        lines.filter(|l| l["message_type"] == "restore_point").map(|l| l["id"].as_str().unwrap().to_owned()).collect()
    }
}

/// The commands of the page, each heading saying when it was reached.
fn steps() -> String {
    let page = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/recovery.md")).unwrap();
    let mut script = String::new();
    for section in page.split("\n## ").skip(1) {
        let heading = section.lines().next().unwrap();
        script.push_str(&format!("echo \"== $SECONDS s: {heading}\"\n"));
        section.split("```sh\n").skip(1).for_each(|rest| script.push_str(rest.split("```").next().unwrap()));
    }
    script + "echo \"== $SECONDS s: end\"\n"
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    collect(dir, &mut found);
    found
}

const ORDERS: &str = "select count(*), md5(string_agg(id || blob, ',' order by id)) from orders";

#[tokio::test(flavor = "multi_thread")]
async fn the_page_is_the_way_back() {
    let Some(search) = tokio::task::spawn_blocking(|| shared(OPENSEARCH)).await.unwrap() else { return };
    let bucket = format!("recovery-{}", std::process::id());
    rgw::make_bucket(&bucket, false).await;
    let host = tokio::task::spawn_blocking(move || a_week(Host::new(&bucket, search))).await.unwrap();
    let id = host.ids("blobdb").swap_remove(2);
    let key = format!("production/db1/blobdb/{id}/data.tar.zst");
    damage(&host.bucket, &key).await;
    let back = move || {
        let found = host.run(&["drill", "blobdb", &id]);
        assert!(found.code == 65 && found.stderr.contains(&key), "{found:#?}");
        let alarm = host.run(&["check-s3"]);
        let said = format!("a drill found {id} at offsite damaged");
        assert!(alarm.code == 2 && alarm.stdout.contains(&said), "{alarm:#?}");
        let before = host.before();
        host.destroy();
        comes_back(&host, &before);
    };
    tokio::task::spawn_blocking(back).await.unwrap();
}

/// Points of each day, and a drill of each service, with its time in the report.
fn a_week(host: Host) -> Host {
    for day in 1..=DAYS {
        host.work(day);
        host.configure(day);
        host.run(&["backup", "--cadence", "daily"]).ok();
    }
    for service in SERVICES {
        assert_eq!(host.ids(service).len(), DAYS, "{service}");
        let said = host.run(&["drill", service, "--random"]).ok();
        assert!(said.contains(": proven from offsite in "), "{said}");
    }
    let report: Value = serde_json::from_str(&host.run(&["--json", "report"]).ok()).unwrap();
    for service in report["services"].as_array().unwrap() {
        let seconds = service["last_proven"]["total_seconds"].as_f64();
        assert!(seconds.is_some_and(|s| s > 0.0), "{service}");
        println!("{}: drilled in {:.1} s", service["name"], seconds.unwrap());
    }
    host
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

/// By the page's words, where Backstay is not.
fn comes_back(host: &Host, before: &Before) {
    let (blobs, couchdb) = (host.path("blobdb"), host.path("data"));
    let new = tempfile::tempdir().unwrap();
    std::fs::set_permissions(new.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let out = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &steps()])
        .current_dir(new.path())
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin")
        .env("HOME", new.path())
        .env("AWS_ACCESS_KEY_ID", rgw::ACCESS)
        .env("AWS_SECRET_ACCESS_KEY", rgw::SECRET)
        .env("AWS_ENDPOINT_URL", rgw::endpoint())
        .env("AWS_REGION", "us-east-1")
        .env("BUCKET", &host.bucket)
        .env("BLOBS", &blobs)
        .env("PGDATA", &host.server.data)
        .env("COUCHDB", &couchdb)
        .env("SEARCH", &host.search.url)
        .env("DIRECTORY", host.repository())
        .output()
        .unwrap();
    let (said, complained) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{said}\n{complained}");
    assert!(said.contains("Backups of host db1 (production)"), "{said}");
    said.lines().filter(|l| l.starts_with("== ")).for_each(|l| println!("{l}"));
    compare(&before.blobs, &Copy::of(&blobs));
    host.server.up();
    assert_eq!(host.server.sql("postgres", ORDERS), before.orders);
    assert!(files(&couchdb) == before.couchdb, "files of CouchDB differ");
    for ((index, _), documents) in INDICES.iter().zip(&before.documents) {
        assert_eq!(&host.search.documents(index), documents, "{index}");
        host.search.must("DELETE", &format!("/{index}"), None);
    }
}
