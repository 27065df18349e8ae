//! Drills: points come back in a throw-away cluster, nothing of production runs in it, and what differs is seen.

#![allow(clippy::disallowed_methods, reason = "servers are started as their administrators start them")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use backstay::config::PostgresMethod;
use backstay::error::{ErrorKind, Result};
use backstay::source::postgres::Postgres;
use backstay::source::{DrillLevel, DrillRequest, Drilled, Source as _};

use super::{Taken, fill, take};
use crate::common::memory::context;
use crate::common::postgres::{Server, bin, server_dir};

/// A scratch directory that the server's user may enter; it must be free of processes at the end.
struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        // A path that is too long for a socket in it.
        let dir = tempfile::Builder::new().prefix(&format!("drill-{}", "x".repeat(90))).tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self(dir)
    }
    fn request(&self) -> DrillRequest {
        let scratch = self.0.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        DrillRequest { scratch, stream: false, wait: Duration::from_secs(120) }
    }
    /// Processes that work below it.
    fn processes(&self) -> Vec<PathBuf> {
        let all = std::fs::read_dir("/proc").unwrap().flatten().map(|e| e.path().join("cwd"));
        all.filter_map(|cwd| std::fs::read_link(cwd).ok()).filter(|cwd| cwd.starts_with(self.0.path())).collect()
    }
}

async fn drill(taken: &Taken) -> Result<Drilled> {
    let scratch = Scratch::new();
    let drilled = taken.source.drill(&context("test", taken.work.path()), &taken.point(), &scratch.request()).await;
    assert_eq!(scratch.processes(), Vec::<PathBuf>::new(), "the server is gone");
    drilled
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_comes_back_with_every_relation_and_no_production_beside_it() {
    let server = Server::start();
    for name in ["fast", "slow disk"] {
        let dir = server_dir(&server.dir.path().join(name));
        server.sql("postgres", &format!("create tablespace \"{name}\" location '{}'", dir.display()));
    }
    server.sql("postgres", "create database app tablespace fast");
    fill(&server, "app");
    server.sql("app", "create unlogged table fleeting (x int); create materialized view m as select count(*) from t");
    server.sql(
        "app",
        "create table far (x int) tablespace \"slow disk\"; insert into far select generate_series(1, 500)",
    );
    server.sql("postgres", "create role ops login superuser");
    let staging = tempfile::tempdir().unwrap();
    let mut config = server.config(PostgresMethod::Plain);
    config.staging_dir = Some(staging.path().into());
    let taken = take(config).await;
    assert!(taken.captured.counts["relations"] > 1000, "{:?}", taken.captured.counts);
    let before = listing(server.dir.path());
    let drilled = drill(&taken).await.unwrap();
    assert_eq!(drilled.differences, [""; 0]);
    assert_eq!(drilled.notes, [""; 0]);
    assert_eq!((drilled.level, drilled.counts["databases"]), (DrillLevel::Server, 3));
    assert_eq!(drilled.counts["relations"], taken.captured.counts["relations"]);
    assert_eq!(listing(server.dir.path()), before, "production's tablespaces are not touched");
    // The same when production is gone, and its directories are empty: nothing is put there.
    server.down();
    for name in ["data", "fast", "slow disk"] {
        std::fs::remove_dir_all(server.dir.path().join(name)).unwrap();
        std::fs::create_dir(server.dir.path().join(name)).unwrap();
    }
    assert_eq!(drill(&taken).await.unwrap().differences, [""; 0]);
    for name in ["data", "fast", "slow disk"] {
        assert_eq!(std::fs::read_dir(server.dir.path().join(name)).unwrap().count(), 0, "{name}");
    }
}

/// Directories of tablespaces and what is in them.
fn listing(dir: &Path) -> BTreeSet<PathBuf> {
    let mut todo = vec![dir.join("fast"), dir.join("slow disk")];
    let mut found = BTreeSet::new();
    while let Some(dir) = todo.pop() {
        for entry in std::fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            todo.extend(path.is_dir().then(|| path.clone()));
            found.insert(path);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn dumps_are_run_and_counted() {
    let server = Server::start();
    server.sql("postgres", "create role app login password 'x'");
    server.sql("postgres", "create database app owner app");
    fill(&server, "app");
    for method in [PostgresMethod::Dump, PostgresMethod::Databases] {
        let taken = take(server.config(method)).await;
        let drilled = drill(&taken).await.unwrap();
        assert_eq!(drilled.differences, [""; 0], "{method:?}");
        assert_eq!(drilled.counts["rows"], 2000 + 2 + 3 + 3, "{method:?}");
        assert!(drilled.counts["tables"] >= 4, "{method:?}");
        taken.memory.change("inventory.jsonl", |text| {
            let wrong = String::from_utf8(text.clone()).unwrap().replace("\"rows\":2000", "\"rows\":2001");
            *text = wrong.into_bytes();
        });
        let err = drill(&taken).await.unwrap_err();
        assert_eq!(err.kind, ErrorKind::Corrupt, "{err:?}");
        assert!(err.chain().contains("public.t: 2000 rows, 2001 were captured"), "{}", err.chain());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_in_a_dump_is_a_failure() {
    let server = Server::start();
    let taken = take(server.config(PostgresMethod::Dump)).await;
    taken.memory.change("all.sql", |sql| {
        let mut text = b"create table broken (x nonsense);\n".to_vec();
        text.append(sql);
        *sql = text;
    });
    let err = drill(&taken).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Failed);
    assert!(err.chain().contains("type \"nonsense\" does not exist"), "{}", err.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_inside_the_copy_is_found() {
    let server = Server::start();
    fill(&server, "postgres");
    server.sql("postgres", "create index on t (x); checkpoint");
    let index = server.sql("postgres", "select pg_relation_filepath('t_x_idx')");
    let table = server.sql("postgres", "select pg_relation_filepath('t')");
    let taken = take(server.config(PostgresMethod::Plain)).await;
    let good = taken.memory.bytes("data.tar");
    // A table that is shorter than its index knows; checksums of pages cannot see that.
    taken.memory.change("data.tar", |tar| empty_member(tar, &table));
    let drilled = drill(&taken).await.unwrap();
    assert!(drilled.differences[0].contains(&format!("\"{table}\" has size 0 on disk")), "{drilled:?}");
    taken.memory.change("data.tar", |tar| *tar = good.clone());
    // A relation without its file.
    taken.memory.change("data.tar", |tar| rename_member(tar, &index));
    let drilled = drill(&taken).await.unwrap();
    assert!(drilled.differences.iter().any(|d| d.contains(&index)), "{drilled:?}");
    taken.memory.change("data.tar", |tar| *tar = good.clone());
    assert_eq!(drill(&taken).await.unwrap().differences, [""; 0], "it was the damage");
}

fn header_of(tar: &[u8], name: &str) -> usize {
    let name = name.as_bytes();
    let is_it = |at: &usize| {
        let field = &tar[*at..*at + 100];
        let field = field.strip_prefix(b"./").unwrap_or(field);
        field.starts_with(name) && field[name.len()] == 0
    };
    (0..tar.len() / 512).map(|n| n * 512).find(is_it).unwrap()
}

fn set_checksum(tar: &mut [u8], at: usize) {
    tar[at + 148..at + 156].fill(b' ');
    let sum: u32 = tar[at..at + 512].iter().map(|b| u32::from(*b)).sum();
    tar[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Takes the pages away.
fn empty_member(tar: &mut Vec<u8>, name: &str) {
    let at = header_of(tar, name);
    let size = std::str::from_utf8(&tar[at + 124..at + 135]).unwrap().trim_matches(['\0', ' ']).to_owned();
    let size = usize::from_str_radix(&size, 8).unwrap();
    tar[at + 124..at + 135].copy_from_slice(b"00000000000");
    set_checksum(tar, at);
    tar.drain(at + 512..at + 512 + size.div_ceil(512) * 512);
}

fn rename_member(tar: &mut [u8], name: &str) {
    let at = header_of(tar, name);
    let place = at + tar[at..at + 100].iter().position(|b| *b == 0).unwrap() - 1;
    tar[place] = b'x';
    set_checksum(tar, at);
}

/// Puts every trap into a server that a copy of it must not spring: what it would do, by name.
fn set_traps(server: &Server, publisher: &Server) {
    publisher.sql("postgres", "alter system set wal_level = logical");
    publisher.down();
    publisher.up();
    publisher.sql("postgres", "create table watched (x int); create publication p for table watched");
    let conninfo = format!("host={} user=postgres dbname=postgres", publisher.dir.path().display());
    server.sql("postgres", "create table watched (x int)");
    server.sql("postgres", &format!("create subscription s connection '{conninfo}' publication p"));
    server.sql("postgres", "alter database postgres set session_preload_libraries = 'no_such_library'");
}

fn fired(dir: &Path) -> bool {
    dir.join("archived").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn archive_commands_subscriptions_and_libraries_of_production_never_run() {
    let (server, publisher) = (Server::start(), Server::start());
    fill(&server, "postgres");
    server.sql("postgres", "create database quiet");
    let marks = server_dir(&server.dir.path().join("marks"));
    let archive = format!("touch {}/archived", marks.display());
    server.sql("postgres", "alter system set archive_mode = on");
    server.sql("postgres", "alter system set archive_timeout = 1");
    server.sql("postgres", &format!("alter system set archive_command = '{archive}'"));
    server.sql("postgres", "alter system set synchronous_standby_names = 'nobody'");
    server.sql("postgres", "alter system set synchronous_commit = local");
    set_traps(&server, &publisher);
    let taken = take(quiet(&server)).await;
    // Production is stopped, and its preloaded library is missing only now.
    server.sql("quiet", "alter system set shared_preload_libraries = 'no_such_library'");
    let taken_with_library = take(quiet(&server)).await;
    server.down();
    publisher.sql("postgres", "select pg_stat_reset()");
    let _ = std::fs::remove_file(marks.join("archived"));
    let connected = || publisher.sql("postgres", "select count(*) from pg_stat_replication");
    assert_eq!((fired(&marks), connected().as_str()), (false, "0"));

    for taken in [&taken, &taken_with_library] {
        let drilled = drill(taken).await.unwrap();
        assert_eq!(drilled.differences, [""; 0]);
        let active = publisher.sql("postgres", "select active from pg_replication_slots where slot_name = 's'");
        assert_eq!((fired(&marks), active.as_str()), (false, "f"), "a trap was sprung");
    }
    control(&taken, &marks, &publisher).await;
    control_of_libraries(&taken_with_library).await;
}

/// Connects to a database without a trap.
fn quiet(server: &Server) -> backstay::config::PostgresConfig {
    let mut config = server.config(PostgresMethod::Plain);
    config.database = "quiet".into();
    config
}

/// The same copy without the drill's precautions: every trap springs.
async fn control(taken: &Taken, marks: &Path, publisher: &Server) {
    let copy = plain_copy(taken).await;
    copy.up();
    let refused = copy.try_sql("postgres", "select 1").unwrap_err();
    assert!(refused.contains("no_such_library"), "{refused}");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    let mut seen = (false, false);
    while seen != (true, true) {
        assert!(std::time::Instant::now() < deadline, "archived and connected: {seen:?}");
        copy.sql("quiet", "select pg_switch_wal()");
        let active = publisher.sql("postgres", "select active from pg_replication_slots where slot_name = 's'");
        seen = (seen.0 || fired(marks), seen.1 || active == "t");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn plain_copy(taken: &Taken) -> Server {
    let target = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
    server_dir(target.path());
    let source = Postgres::new(taken_config(target.path()));
    let request = super::RestoreRequest { to: Some(target.path().join("data")), ..Default::default() };
    source.restore(&context("test", taken.work.path()), &taken.point(), &request).await.unwrap();
    let copy = Server { data: target.path().join("data"), dir: target };
    copy.settle(copy.dir.path());
    copy
}

/// And a library that is preloaded, but not there, keeps the whole server from starting.
async fn control_of_libraries(taken: &Taken) {
    let copy = plain_copy(taken).await;
    let said = copy.try_up().unwrap_err();
    let log = std::fs::read_to_string(copy.dir.path().join("log")).unwrap_or_default();
    assert!(log.contains("could not access file \"no_such_library\""), "{said}\n{log}");
}

fn taken_config(socket: &Path) -> backstay::config::PostgresConfig {
    serde_json::from_value(
        serde_json::json!({"method": "plain", "host": socket, "username": "postgres", "bin_dir": bin()}),
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_not_installed_is_named() {
    let server = Server::start();
    let mut taken = take(server.config(PostgresMethod::Plain)).await;
    taken.captured.server_version = Some("12.3".into());
    let err = drill(&taken).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Config);
    assert_eq!(err.message, "there is no PostgreSQL 12 on this host to drill with");
    assert!(err.hint.as_ref().unwrap().contains("postgresql-12"), "{err:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_that_is_dropped_leaves_no_server() {
    let server = Server::start();
    let taken = take(server.config(PostgresMethod::Plain)).await;
    let scratch = Scratch::new();
    let request = scratch.request();
    let cx = context("test", taken.work.path());
    let point = taken.point();
    let pid = request.scratch.join("data/postmaster.pid");
    tokio::select! {
        done = taken.source.drill(&cx, &point, &request) => panic!("it was to be stopped, and ended: {done:?}"),
        () = async { while !pid.exists() { tokio::time::sleep(Duration::from_millis(5)).await } } => {}
    }
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !scratch.processes().is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}", scratch.processes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
