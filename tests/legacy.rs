//! Backups that commcare-cloud made, with the commands by which its scripts made them: listed, restored, removed when asked.

#![allow(clippy::disallowed_methods, reason = "backups are made here as the old scripts made them")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_sdk_s3::primitives::ByteStream;
use serde_json::Value;

use crate::common::postgres::{Server, bin};
use crate::common::{Ran, backstay, rgw, write};
use crate::couchdb::data::unpack;

/// A host whose services have directories with old backups, and perhaps a bucket.
struct Host {
    dir: tempfile::TempDir,
}

fn sh(dir: &Path, script: &str) -> String {
    let out = Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

fn files(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![root.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for path in fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

impl Host {
    /// `DIR` in the services is the host's directory.
    fn new(services: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let keys = format!("[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n", rgw::ACCESS, rgw::SECRET);
        let keys = write(dir.path(), "keys", &keys);
        fs::set_permissions(keys, fs::Permissions::from_mode(0o600)).unwrap();
        let text = format!("environment: test\nhost: db1\nstate_dir: DIR/state\n{services}");
        write(dir.path(), "backstay.yml", &text.replace("DIR", dir.path().to_str().unwrap()));
        Self { dir }
    }
    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }
    fn run(&self, args: &[&str]) -> Ran {
        let config = self.path("backstay.yml");
        let out = backstay(&[&["--config", config.to_str().unwrap()], args].concat()).output().unwrap();
        Ran {
            code: out.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        }
    }
    fn sh(&self, script: &str) -> String {
        sh(self.dir.path(), script)
    }
    /// Old backups by id and state, as programs see them.
    fn legacy(&self, args: &[&str]) -> Vec<String> {
        let said = self.run(&[&["--json", "list"], args].concat()).ok();
        let lines = said.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        let lines = lines.filter(|l| l["message_type"] == "legacy");
        lines.map(|l| format!("{} {}", l["id"].as_str().unwrap(), l["state"].as_str().unwrap())).collect()
    }
}

const BLOBS: &str =
    "services:\n  blobdb: {blobdir: {path: DIR/opt/data/blobdb}, backup_dir: DIR/backups, keep: {daily: 3}}\n";

/// Blobs, and their backup by the old script.
fn blobs() -> (Host, BTreeMap<PathBuf, Vec<u8>>) {
    let host = Host::new(BLOBS);
    host.sh("mkdir -p opt/data/blobdb/db backups; cd opt/data/blobdb; echo precious >db/one; ln db/one two; ln -s db/one three
        head -c 300000 /dev/urandom >db/big; printf x >$'a name, with a\nline end'; chmod 640 db/one
        mkdir -p db/long; touch \"db/long/$(printf 'n%.0s' $(seq 200))\"");
    host.sh("tar -Pzcf backups/blobdb_daily_2026_01_02.tar.gz $PWD/opt/data/blobdb");
    let before = files(&host.path("opt/data/blobdb"));
    assert_eq!(before.len(), 6);
    (host, before)
}

#[test]
fn blobs_are_listed_as_legacy_and_come_back_without_the_path_they_were_saved_with() {
    let (host, before) = blobs();
    host.sh("tar -zcf backups/blobdb_weekly_2026_01_04.tar.gz $PWD/opt/data/blobdb 2>/dev/null
        tar -Pzcf backups/blobdb_hourly_2026_01_02_15.tar.gz -T /dev/null; echo OK >backups/s3_backup_status.txt; touch backups/notes");
    let said = host.run(&["list"]).ok();
    let lines: Vec<&str> = said.lines().map(|l| l.split_once("  ").map_or(l, |(_, rest)| rest)).collect();
    assert!(lines[1].starts_with("blobdb_weekly_2026_01_04.tar.gz ") && lines[1].ends_with(" local  legacy"), "{said}");
    assert!(
        lines[2].starts_with("blobdb_hourly_2026_01_02_15.tar.gz ") && lines[2].ends_with("legacy: EMPTY"),
        "{said}"
    );
    assert!(lines[3].starts_with("blobdb_daily_2026_01_02.tar.gz "), "{said}");
    assert!(lines[4].starts_with("local: notes is left alone") && lines.len() == 5, "{said}");
    let listed =
        ["daily_2026_01_02.tar.gz legacy", "hourly_2026_01_02_15.tar.gz empty", "weekly_2026_01_04.tar.gz legacy"];
    assert_eq!(host.legacy(&["blobdb"]), listed.map(|l| format!("blobdb_{l}")));

    for id in ["blobdb_daily_2026_01_02.tar.gz", "blobdb_weekly_2026_01_04.tar.gz"] {
        let to = host.path(id.split('_').nth(1).unwrap());
        let said = host.run(&["restore", "blobdb", id, "--to", to.to_str().unwrap()]).ok();
        assert!(said.contains("nothing was compared"), "{said}");
        assert_eq!(files(&to), before);
        assert_eq!(fs::metadata(to.join("db/one")).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::os::unix::fs::MetadataExt::nlink(&fs::metadata(to.join("two")).unwrap()), 2);
    }
    host.sh("echo spoiled >opt/data/blobdb/db/one");
    let refused = host.run(&["restore", "blobdb", "blobdb_daily_2026_01_02.tar.gz"]);
    assert!(refused.code == 73 && refused.stderr.contains("--replace"), "{refused:?}");
    let said = host.run(&["restore", "blobdb", "blobdb_daily_2026_01_02.tar.gz", "--replace"]).ok();
    assert!(said.contains("the old data is at"), "{said}");
    assert_eq!(files(&host.path("opt/data/blobdb")), before);
    let missing = host.run(&["restore", "blobdb", "blobdb_daily_2025_12_31.tar.gz"]);
    assert!(missing.code == 66 && missing.stderr.contains("backstay list blobdb"), "{missing:?}");
}

#[test]
fn what_is_cut_off_or_leads_elsewhere_is_refused_and_nothing_is_changed() {
    let (host, before) = blobs();
    host.sh("cd backups; data=$PWD/../opt/data/blobdb; data=$(realpath $data)
        head -c -1000 blobdb_daily_2026_01_02.tar.gz >blobdb_daily_2026_01_03.tar.gz
        tar -Pzcf blobdb_daily_2026_01_04.tar.gz $data /etc/hostname
        tar -Pzcf blobdb_daily_2026_01_05.tar.gz $data $data/../blobdb/db/one
        tar -Pzcf blobdb_daily_2026_01_06.tar.gz $data/db/one
        tar -C $data -zcf blobdb_daily_2026_01_07.tar.gz . --transform 's,^./db/one,./../escaped,'
        mkdir ../evil; evil=$(realpath ../evil); ln -s $evil/there $evil/out; tar -Pcf evil.tar $evil
        rm ../evil/out; mkdir ../evil/out; touch ../evil/out/planted; tar -Prf evil.tar $evil/out/planted
        gzip -c evil.tar >blobdb_daily_2026_01_08.tar.gz; rm -r evil.tar ../evil
        head -c 500 /dev/urandom >blobdb_daily_2026_01_09.tar.gz");
    for (day, why) in [
        (3, "is damaged or cut off"),
        (4, "\"/etc/hostname\" is not below"),
        (5, "leads outside"),
        (6, "does not begin with the directory that was archived"),
        (7, "is not below"),
        (8, "its folder is not a directory"),
        (9, "is damaged or cut off"),
    ] {
        let id = format!("blobdb_daily_2026_01_0{day}.tar.gz");
        let ran = host.run(&["restore", "blobdb", &id, "--replace"]);
        assert!(ran.code == 65 && ran.stderr.contains(why), "{id}: {ran:?}");
        assert_eq!(files(&host.path("opt/data/blobdb")), before, "{id}");
    }
    let left = host.sh("ls -A opt/data");
    assert_eq!(left, "blobdb\n");
    assert!(!host.path("escaped").exists() && !host.path("opt/data/escaped").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn undated_keys_of_a_bucket_that_keeps_versions_are_a_backup_each() {
    let bucket = "legacy-versions";
    rgw::make_bucket(bucket, true).await;
    let services = format!(
        "destinations:\n  offsite: {{s3: {{bucket: {bucket}, endpoint: \"{}\", key_style: versioned, credentials: {{file: DIR/keys}}}}}}\n\
         services:\n  blobdb: {{blobdir: {{path: DIR/opt/data/blobdb}}, destinations: [offsite], keep: {{daily: 3}}}}\n",
        rgw::endpoint()
    );
    let host = Host::new(&services);
    host.sh("mkdir -p opt/data/blobdb");
    let put = async |key: &str| {
        host.sh("tar -Pzcf archive $PWD/opt/data/blobdb");
        let body = ByteStream::from(fs::read(host.path("archive")).unwrap());
        let done = rgw::client().put_object().bucket(bucket).key(key).body(body).send().await.unwrap();
        done.version_id().unwrap().to_owned()
    };
    host.sh("seq 9000 >opt/data/blobdb/one");
    let first = put("blobdb_daily_db1.tar.gz").await;
    host.sh("seq 9999 >opt/data/blobdb/one");
    put("blobdb_daily_db1.tar.gz").await;
    put("blobdb_daily_db2.tar.gz").await;
    host.run(&["backup"]).ok();
    let old = format!("blobdb_daily_db1.tar.gz@{first}");
    let mut all = host.legacy(&[]);
    all.sort();
    assert_eq!(all, ["blobdb_daily_db1.tar.gz legacy".to_owned(), format!("{old} legacy")]);
    assert_eq!(host.legacy(&["--all-hosts"]).len(), 3);
    assert!(host.run(&["list", "--host", "db2"]).ok().contains("blobdb_daily_db2.tar.gz"));
    for (id, rows) in [("blobdb_daily_db1.tar.gz", 9999), (&old, 9000)] {
        let to = host.path(&format!("to{rows}"));
        host.run(&["restore", "blobdb", id, "--from", "offsite", "--to", to.to_str().unwrap()]).ok();
        assert_eq!(fs::read_to_string(to.join("one")).unwrap().lines().count(), rows);
    }
    let point = host.run(&["list"]).ok().lines().find(|l| l.contains("complete")).unwrap().to_owned();
    // Undated ones are as old as the store says: just made.
    host.run(&["prune", "--legacy-older-than", "1h"]).ok();
    assert_eq!(host.legacy(&[]).len(), 2);
    host.run(&["prune", "--legacy-older-than", "0s"]).ok();
    assert_eq!(host.legacy(&[]), [""; 0]);
    assert_eq!(host.legacy(&["--all-hosts"]), ["blobdb_daily_db2.tar.gz legacy"]);
    let versions =
        rgw::client().list_object_versions().bucket(bucket).prefix("blobdb_daily_db1.tar").send().await.unwrap();
    assert!(versions.versions().is_empty() && versions.delete_markers().is_empty(), "{versions:?}");
    assert!(host.run(&["list"]).ok().contains(point.split_whitespace().next().unwrap()));
}

#[test]
fn they_age_out_only_when_asked_and_never_before_there_is_a_point() {
    let (host, _) = blobs();
    host.sh("cp backups/blobdb_daily_2026_01_02.tar.gz backups/blobdb_daily_2126_01_02.tar.gz");
    let refused = host.run(&["prune", "--legacy-older-than", "1d"]);
    assert!(
        refused.code == 10 && refused.stderr.contains("there is no complete restore point beside them"),
        "{refused:?}"
    );
    host.run(&["backup"]).ok();
    host.run(&["backup", "--cadence", "daily"]).ok();
    host.run(&["prune"]).ok();
    let said = host.run(&["prune", "--legacy-older-than", "1d", "--dry-run"]).ok();
    assert_eq!(said, "blobdb_daily_2026_01_02.tar.gz at local: would be removed\n");
    assert_eq!(host.legacy(&[]).len(), 2);
    let said = host.run(&["prune", "blobdb", "--legacy-older-than", "1d"]).ok();
    assert_eq!(said, "blobdb_daily_2026_01_02.tar.gz at local: removed\n");
    assert_eq!(host.legacy(&[]), ["blobdb_daily_2126_01_02.tar.gz legacy"]);
    let said = host.run(&["prune", "blobdb", "--legacy-older-than", "1d"]).ok();
    assert_eq!(said, "blobdb at local: no backup of the older system is older than 1d\n");
    assert!(host.run(&["list"]).ok().contains("complete"));
}

#[test]
fn a_copy_of_a_cluster_is_started_and_asked() {
    let server = Server::start();
    server
        .sql("postgres", "create table people as select n id, 'person ' || n as name from generate_series(1, 3000) n");
    let before = server.sql("postgres", "select count(*), md5(string_agg(name, ',' order by id)) from people");
    let host = Host::new(&format!(
        "services:\n  postgres:\n    postgres: {{method: plain, host: {}, username: postgres, bin_dir: {}, data_dir: {}}}\n    \
         backup_dir: DIR/backups\n    keep: {{daily: 3}}\n",
        server.dir.path().display(),
        bin(),
        server.data.display()
    ));
    host.sh("mkdir -m 777 backups");
    let name = "postgres_test_daily_2026_01_02";
    // As the script did: a copy in a directory, then a tar of it by its path.
    host.sh(&format!(
        "{}/pg_basebackup -h {} -U postgres -Fp -Xs -D $PWD/backups/{name}
         tar -czf $PWD/backups/{name}.tar.gz $PWD/backups/{name} 2>/dev/null && rm -rf $PWD/backups/{name}",
        bin(),
        server.dir.path().display()
    ));
    let id = format!("{name}.tar.gz");
    assert_eq!(host.legacy(&["postgres"]), [format!("{id} legacy")]);
    let refused = host.run(&["restore", "postgres", &id, "--replace"]);
    assert!(refused.code == 73 && refused.stderr.contains("a server runs in"), "{refused:?}");
    server.sql("postgres", "drop table people");
    server.down();
    host.sh("cd backups; mkdir x; cd x; mkdir d; touch d/PG_VERSION; tar -Pzcf ../postgres_daily_2026_01_03.tar.gz $PWD/d; rm -r ../x");
    let refused = host.run(&["restore", "postgres", "postgres_daily_2026_01_03.tar.gz", "--replace"]);
    assert!(refused.code == 65 && refused.stderr.contains("is no copy of a cluster"), "{refused:?}");
    let said = host.run(&["restore", "postgres", name, "--replace", "--start"]).ok();
    assert!(said.contains("its recovery has ended"), "{said}");
    assert_eq!(server.sql("postgres", "select count(*), md5(string_agg(name, ',' order by id)) from people"), before);
    assert!(server.sql("postgres", "select pg_is_in_recovery()").starts_with('f'));
}

#[test]
fn a_dump_goes_into_an_empty_cluster_and_counts_only_with_its_end_mark() {
    let server = Server::start();
    server.sql("postgres", "create database orders");
    server.sql("orders", "create table items as select n id from generate_series(1, 500) n");
    let empty = Server::start();
    let host = Host::new(&format!(
        "services:\n  postgres:\n    postgres: {{method: dump, host: {}, username: postgres, bin_dir: {}}}\n    \
         backup_dir: DIR/backups\n    keep: {{daily: 3}}\n",
        empty.dir.path().display(),
        bin()
    ));
    host.sh(&format!(
        "mkdir backups; {0}/pg_dumpall -h {1} -U postgres | gzip >backups/postgres_test_daily_2026_01_02.gz
         {0}/pg_dumpall -h {1} -U postgres | head -n 25 | gzip >backups/postgres_test_daily_2026_01_03.gz || true
         false | gzip >backups/postgres_test_daily_2026_01_04.gz || true",
        bin(),
        server.dir.path().display()
    ));
    let states = ["2026_01_02.gz legacy", "2026_01_03.gz legacy", "2026_01_04.gz empty"];
    assert_eq!(host.legacy(&[]), states.map(|s| format!("postgres_test_daily_{s}")));
    for day in [3, 4] {
        let ran = host.run(&["restore", "postgres", &format!("postgres_test_daily_2026_01_0{day}.gz")]);
        assert!(ran.code == 65 && ran.stderr.contains("has no end mark"), "{ran:?}");
    }
    host.run(&["restore", "postgres", "postgres_test_daily_2026_01_02.gz"]).ok();
    assert_eq!(empty.sql("orders", "select count(*), sum(id) from items"), "500|125250");
    let again = host.run(&["restore", "postgres", "postgres_test_daily_2026_01_02.gz"]);
    assert!(again.code == 73 && again.stderr.contains("the cluster is not empty"), "{again:?}");
}

#[test]
fn a_data_directory_of_couchdb_comes_back_without_the_members_of_its_cluster() {
    let host = Host::new(
        "services:\n  couchdb: {couchdb: {data_dir: DIR/couchdb2, url: \"http://127.0.0.1:9\"}, backup_dir: DIR/backups, keep: {daily: 3}}\n",
    );
    let data = unpack(host.dir.path());
    host.sh(&format!("mkdir backups; tar -Pzcf backups/couchdb_daily_2026_01_02.tar.gz {}", data.display()));
    let mut before = files(&data);
    assert!(before.keys().any(|path| path.starts_with("shards")));
    before.remove(Path::new("_nodes.couch"));
    let said = host.run(&["restore", "couchdb", "couchdb_daily_2026_01_02.tar.gz"]).ok();
    assert!(said.contains("databases open only on a node of that name"), "{said}");
    assert_eq!(files(&host.path("couchdb2")), before);
    host.sh("mkdir some; tar -Pzcf backups/couchdb_daily_2026_01_03.tar.gz $PWD/some");
    let refused = host.run(&["restore", "couchdb", "couchdb_daily_2026_01_03.tar.gz", "--replace"]);
    assert!(refused.code == 65 && refused.stderr.contains("it has no _dbs.couch"), "{refused:?}");
    assert_eq!(files(&host.path("couchdb2")), before);
}
