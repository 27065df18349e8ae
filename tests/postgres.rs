//! PostgreSQL, with real servers: every backup here ends in a restore whose content is compared.

use std::path::Path;

use backstay::config::{PostgresConfig, PostgresMethod};
use backstay::error::{ErrorKind, Result};
use backstay::source::postgres::Postgres;
use backstay::source::{Captured, PointReader, RestoreRequest, Source as _};

use crate::common::memory::{Memory, context};
use crate::common::postgres::{Server, server_dir};

#[path = "postgres/connect.rs"]
mod connect;
#[path = "postgres/drill.rs"]
mod drill;
#[path = "postgres/faults.rs"]
mod faults;
#[path = "postgres/hostile.rs"]
mod hostile;
#[path = "postgres/logical.rs"]
mod logical;

/// A backup of a server: its source, what was kept, what was captured.
struct Taken {
    source: Postgres,
    memory: Memory,
    captured: Captured,
    work: tempfile::TempDir,
}

async fn attempt(config: PostgresConfig) -> (Memory, Result<Taken>) {
    let work = tempfile::tempdir().unwrap();
    let source = Postgres::new(config);
    let memory = Memory::default();
    let cx = context("test", work.path());
    source.cleanup(&cx).await.unwrap();
    let result = source.backup(&cx, &memory).await;
    source.cleanup(&cx).await.unwrap();
    let taken = result.map(|captured| Taken { source, memory: memory.clone(), captured, work });
    (memory, taken)
}

async fn take(config: PostgresConfig) -> Taken {
    attempt(config).await.1.unwrap_or_else(|e| panic!("{}", e.report()))
}

impl Taken {
    fn point(&self) -> PointReader {
        self.memory.point(&self.source, &self.captured)
    }
    async fn problems(&self) -> Vec<String> {
        let verified = self.source.verify(&context("test", self.work.path()), &self.point()).await;
        verified.map_or_else(|e| vec![e.chain()], |v| v.problems)
    }
    async fn restore(&self, request: RestoreRequest) -> Result<backstay::source::Restored> {
        self.source.restore(&context("test", self.work.path()), &self.point(), &request).await
    }
}

/// Tables with unusual names and values, a large object, and an unlogged table.
fn fill(server: &Server, database: &str) {
    server.sql(
        database,
        r#"create table t (id int primary key, x text);
           insert into t select n, case when n % 7 = 0 then null else repeat(E'a\\.\n\t', n % 5) end from generate_series(1, 2000) n;
           create schema "S.1";
           create table "S.1"."we ird ""T""" (x text);
           insert into "S.1"."we ird ""T""" values (E'\\.'), ('COPY public.t FROM stdin;');
           create table parent (id int) partition by list (id);
           create table child partition of parent for values in (1, 2);
           insert into parent values (1), (2), (2);
           create table nothing ();
           insert into nothing select from generate_series(1, 3);
           create function f() returns text language sql as $$ select '
COPY public.t (id) FROM stdin;
' $$;
           select lo_from_bytea(4711, 'large');"#,
    );
}

/// One line that says what a database holds.
fn content(server: &Server, database: &str) -> String {
    server.sql(
        database,
        r#"select (select md5(string_agg(id || coalesce(x, '~'), ',' order by id)) from t), (select count(*) from t),
           (select string_agg(x, ',' order by x) from "S.1"."we ird ""T"""), (select count(*) from child), (select count(*) from nothing),
           convert_from(lo_get(4711), 'UTF8')"#,
    )
}

fn to(dir: &Path) -> RestoreRequest {
    RestoreRequest { to: Some(dir.into()), start: true, ..RestoreRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_copy_replaces_the_data_and_starts() {
    let server = Server::start();
    fill(&server, "postgres");
    let before = content(&server, "postgres");
    let taken = take(server.config(PostgresMethod::Plain)).await;
    assert_eq!(taken.memory.names(), ["data.tar", "inventory.jsonl"]);
    assert_eq!(taken.captured.attributes["from_standby"], "false");
    assert_eq!(taken.captured.attributes["data_checksums"], "on");
    assert!(taken.captured.suspect.is_empty() && taken.captured.warnings.is_empty(), "{:?}", taken.captured);
    assert!(taken.captured.position.as_ref().unwrap().contains('/'));
    assert!(taken.captured.counts["files"] > 900);
    let verified = taken.source.verify(&context("test", taken.work.path()), &taken.point()).await.unwrap();
    assert_eq!(verified.problems, [""; 0]);
    assert!(verified.counts["checksums"] > 900 && verified.counts["sizes_only"] == 0, "{verified:?}");

    let refused = taken.restore(to(&server.data)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    let refused = taken.restore(RestoreRequest { replace: true, ..to(&server.data) }).await.unwrap_err();
    assert!(refused.message.contains("a server runs in"), "{refused:?}");
    server.sql("postgres", "drop table t");
    server.down();
    let refused = taken.restore(to(&server.data)).await.unwrap_err();
    assert!(refused.message.contains("is not empty"), "{refused:?}");
    let restored = taken.restore(RestoreRequest { replace: true, ..to(&server.data) }).await.unwrap();
    let old = restored.old_data.unwrap();
    assert_eq!(old, server.dir.path().join("data.old-20261120000312"));
    assert!(old.join("PG_VERSION").is_file());
    assert_eq!(content(&server, "postgres"), before);
    assert_eq!(server.sql("postgres", "select pg_is_in_recovery()"), "f");
    assert!(!server.dir.path().join("data.backstay-restore").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_in_another_directory_writes_nothing_into_the_archive_of_its_server() {
    let server = Server::start();
    fill(&server, "postgres");
    let archived = server_dir(&server.dir.path().join("archive"));
    server.sql("postgres", "alter system set archive_mode = on");
    server.sql("postgres", &format!("alter system set archive_command = 'cp %p {}'", archived.display()));
    server.down();
    server.up();
    let before = content(&server, "postgres");
    let taken = take(server.config(PostgresMethod::Plain)).await;
    server.down();
    let segments = || std::fs::read_dir(&archived).unwrap().count();
    let before_start = segments();
    let target = server.dir.path().join("new");
    let restored = taken.restore(to(&target)).await.unwrap();
    assert!(restored.notes.iter().any(|n| n.contains("archive_mode=off")), "{restored:?}");
    let beside = Server { data: target, dir: server_guard(&server) };
    assert_eq!(content(&server, "postgres"), before);
    assert_eq!(server.sql("postgres", "show archive_mode"), "off");
    server.sql("postgres", "select pg_switch_wal(); checkpoint");
    beside.down();
    assert_eq!(segments(), before_start);
    // In its own place it goes on as it did.
    let restored = taken.restore(RestoreRequest { replace: true, ..to(&server.data) }).await.unwrap();
    assert!(!restored.notes.iter().any(|n| n.contains("archive_mode")), "{restored:?}");
    assert_eq!(server.sql("postgres", "show archive_mode"), "on");
    assert_eq!(content(&server, "postgres"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_tablespaces_are_staged_and_relocated() {
    let server = Server::start();
    for name in ["fast", "slow disk"] {
        let dir = server_dir(&server.dir.path().join(name));
        server.sql("postgres", &format!("create tablespace \"{name}\" location '{}'", dir.display()));
    }
    server.sql("postgres", "create database app tablespace fast");
    fill(&server, "app");
    server.sql(
        "app",
        "create table far (x int) tablespace \"slow disk\"; insert into far select generate_series(1, 500)",
    );
    let before = content(&server, "app");
    let staging = tempfile::tempdir().unwrap();
    let mut config = server.config(PostgresMethod::Plain);
    config.staging_dir = Some(staging.path().into());
    let taken = take(config).await;
    let names = taken.memory.names();
    assert_eq!(
        (names.len(), names[2].as_str(), names[4].as_str()),
        (5, "backup_manifest.json", "inventory.jsonl"),
        "{names:?}"
    );
    assert_eq!(std::fs::read_dir(staging.path()).unwrap().count(), 0);
    assert_eq!(taken.problems().await, [""; 0]);
    server.down();
    let target = server.dir.path().join("new");
    let map = ["fast", "slow disk"].map(|n| (server.dir.path().join(n), server.dir.path().join(format!("new-{n}"))));
    let refused = taken.restore(to(&target)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused, "the old tablespaces are still there");
    assert!(!target.exists());
    taken.restore(RestoreRequest { map: map.to_vec(), ..to(&target) }).await.unwrap();
    let new = Server { data: target, dir: server_guard(&server) };
    assert_eq!(server.sql("app", "select count(*) from far"), "500");
    assert_eq!(content(&server, "app"), before);
    let places =
        server.sql("app", "select string_agg(pg_tablespace_location(oid), ',') from pg_tablespace where oid > 16383");
    assert!(places.contains("new-fast") && places.contains("new-slow disk"), "{places}");
    drop(new);
}

/// A directory of its own for a second value over the same socket.
fn server_guard(_: &Server) -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_standby_starts_as_a_server_of_its_own() {
    let server = Server::start();
    fill(&server, "postgres");
    let standby = server.standby();
    let before = content(&server, "postgres");
    let taken = take(standby.config(PostgresMethod::Plain)).await;
    assert_eq!(taken.captured.attributes["from_standby"], "true");
    standby.down();
    let target = standby.dir.path().join("new");
    let restored = taken.restore(to(&target)).await.unwrap();
    let _new = Server { data: target.clone(), dir: server_guard(&server) };
    assert!(restored.notes.iter().any(|n| n.contains("standby.signal")), "{restored:?}");
    assert!(!std::fs::read_to_string(target.join("postgresql.auto.conf")).unwrap().contains("primary_conninfo ="));
    assert_eq!(standby.sql("postgres", "select pg_is_in_recovery()"), "f");
    assert_eq!(content(&standby, "postgres"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_pages_make_the_point_suspect() {
    let server = Server::start();
    fill(&server, "postgres");
    let file = server.data.join(server.sql("postgres", "select pg_relation_filepath('t')"));
    server.down();
    let mut page = std::fs::read(&file).unwrap();
    page[8192 + 5000] ^= 0x55;
    std::fs::write(&file, page).unwrap();
    server.up();
    let taken = take(server.config(PostgresMethod::Plain)).await;
    assert_eq!(taken.captured.suspect.len(), 1, "{:?}", taken.captured);
    assert!(taken.memory.names().contains(&"data.tar".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_sees_what_was_changed() {
    let server = Server::start();
    let taken = take(server.config(PostgresMethod::Plain)).await;
    let whole = taken.memory.bytes("data.tar");
    let at = whole.windows(8).position(|w| w == b"pg_class").unwrap();
    taken.memory.change("data.tar", |bytes| bytes[at] ^= 1);
    assert!(taken.problems().await[0].contains("does not match its checksum"));
    taken.memory.change("data.tar", |bytes| {
        bytes[at] ^= 1;
        bytes.truncate(whole.len() / 2);
    });
    assert!(!taken.problems().await.is_empty());
    let target = server.dir.path().join("new");
    let err = taken.restore(to(&target)).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Corrupt);
    assert!(!target.exists() && !server.dir.path().join("new.backstay-restore").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_outside_the_data_directory_is_kept_too() {
    let server = Server::start();
    server.down();
    let etc = server_dir(&server.dir.path().join("etc"));
    std::fs::rename(server.data.join("postgresql.conf"), etc.join("postgresql.conf")).unwrap();
    crate::common::write(&etc, "conf.d/more.conf", "work_mem = '9MB'\n");
    server.up_with(&format!("-c config_file={}", etc.join("postgresql.conf").display()));
    let taken = take(server.config(PostgresMethod::Plain)).await;
    assert_eq!(taken.memory.names(), ["config.tar", "data.tar", "inventory.jsonl"]);
    assert_eq!(taken.captured.attributes["config_files"], "2");
    assert_eq!(taken.problems().await, [""; 0]);
    let target = server.dir.path().join("new");
    assert_eq!(taken.restore(to(&target)).await.unwrap_err().kind, ErrorKind::Refused);
    taken.restore(RestoreRequest { start: false, ..to(&target) }).await.unwrap();
    let config = server.dir.path().join("new.config-20261120000312").join(etc.strip_prefix("/").unwrap());
    let text = std::fs::read_to_string(config.join("conf.d/more.conf")).unwrap();
    assert_eq!(text, "work_mem = '9MB'\n");
    assert!(target.join("backup_label").is_file() && !target.join("postgresql.conf").exists());
}
