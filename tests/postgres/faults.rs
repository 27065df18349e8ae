//! Programs that fail in every way: none of them may leave something that looks whole.

use std::time::Duration;

use backstay::config::PostgresMethod::{self, Databases, Dump, Plain};
use backstay::error::ErrorKind;
use backstay::source::Source as _;
use backstay::source::postgres::Postgres;

use super::{attempt, fill};
use crate::common::memory::{Memory, context};
use crate::common::postgres::{Server, fake_tool, major};

/// Name, method, program, script, artefacts that may be finished before it failed.
const FAULTS: &[(&str, PostgresMethod, &str, &str, &[&str])] = &[
    ("half and exit 1", Databases, "pg_dump", "$real \"$@\" | head -c 3000; exit 1", &["globals.sql"]),
    ("half and exit 0", Databases, "pg_dump", "$real \"$@\" | head -c 3000; exit 0", &["globals.sql"]),
    ("empty and exit 0", Databases, "pg_dump", "exit 0", &["globals.sql"]),
    ("noise and exit 0", Databases, "pg_dump", "echo hello; exit 0", &["globals.sql"]),
    ("globals cut", Databases, "pg_dumpall", "$real \"$@\" | head -c 300", &[]),
    ("cut and exit 0", Dump, "pg_dumpall", "$real \"$@\" | head -c 3000; exit 0", &[]),
    ("whole and exit 1", Dump, "pg_dumpall", "$real \"$@\"; exit 1", &[]),
    ("empty and exit 0", Dump, "pg_dumpall", "exit 0", &[]),
    ("killed", Dump, "pg_dumpall", "$real \"$@\" | head -c 3000; kill -9 $$", &[]),
    (
        "much to say",
        Dump,
        "pg_dumpall",
        "head -c 5000000 /dev/zero | tr '\\0' 'e' >&2; echo the last word >&2; exit 1",
        &[],
    ),
    ("without its last member", Plain, "pg_basebackup", "$real \"$@\" --no-manifest; exit 0", &[]),
    ("half and exit 0", Plain, "pg_basebackup", "$real \"$@\" | head -c 9000000; exit 0", &[]),
    ("whole and exit 1", Plain, "pg_basebackup", "$real \"$@\"; exit 1", &[]),
    (
        "checksum word, but half",
        Plain,
        "pg_basebackup",
        "$real \"$@\" | head -c 9000000; echo 'checksum error occurred' >&2; exit 1",
        &[],
    ),
    ("empty and exit 0", Plain, "pg_basebackup", "exit 0", &[]),
    ("not there", Plain, "pg_basebackup", "exec /nonexistent", &[]),
];

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_leaves_something_whole() {
    let server = Server::start();
    fill(&server, "postgres");
    for (at, (name, method, tool, script, allowed)) in FAULTS.iter().enumerate() {
        let dir = server.dir.path().join(format!("fault-{at}"));
        std::fs::create_dir(&dir).unwrap();
        let mut config = server.config(*method);
        config.bin_dir = Some(fake_tool(&dir, tool, script));
        let (memory, taken) = attempt(config).await;
        let err = taken.err().unwrap_or_else(|| panic!("{tool} {name}: taken for a success"));
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(memory.names(), *allowed, "{tool} {name}: {}", err.report());
        assert_ne!(err.kind, ErrorKind::Internal, "{tool} {name}: {}", err.report());
        assert!(err.report().len() < 40_000);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_hangs_ends_with_the_run() {
    let server = Server::start();
    for (tool, method) in [("pg_dumpall", Dump), ("pg_basebackup", Plain), ("pg_dump", Databases)] {
        let mut config = server.config(method);
        let pid = server.dir.path().join(format!("{tool}.pid"));
        let script = format!("sleep 600 & echo $! > {}; wait", pid.display());
        config.bin_dir = Some(fake_tool(server.dir.path(), tool, &script));
        let work = tempfile::tempdir().unwrap();
        let (source, memory, cx) = (Postgres::new(config), Memory::default(), context("test", work.path()));
        let cancel = cx.cancel.clone();
        let stop = async {
            while std::fs::read_to_string(&pid).unwrap_or_default().is_empty() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            cancel.cancel();
        };
        let (result, ()) = tokio::join!(source.backup(&cx, &memory), stop);
        assert_eq!(result.unwrap_err().kind, ErrorKind::Cancelled);
        assert!(!memory.names().iter().any(|n| n.ends_with(".tar") || n.ends_with(".dump") || n == "all.sql"));
        let child: i32 = std::fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(stat.is_empty() || stat.contains(") Z"), "{tool}: its child still runs: {stat}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn complaints_say_what_to_do() {
    let server = Server::start();
    server.sql("postgres", "create role plain login; create table t (x int)");
    let complaint = |method, change: fn(&mut backstay::config::PostgresConfig)| {
        let mut config = server.config(method);
        change(&mut config);
        async { attempt(config).await.1.err().expect("must fail") }
    };
    let err = complaint(Plain, |c| c.username = Some("plain".into())).await;
    assert!(err.kind == ErrorKind::Denied && err.hint.as_ref().unwrap().contains("REPLICATION"), "{}", err.report());
    let err = complaint(Dump, |c| c.username = Some("plain".into())).await;
    assert_eq!(err.kind, ErrorKind::Denied, "{}", err.report());
    let err = complaint(Databases, |c| c.port = Some(1)).await;
    assert_eq!(err.kind, ErrorKind::Unavailable, "{}", err.report());
    let err = complaint(Databases, |c| c.include = vec!["none*".into()]).await;
    assert_eq!(err.kind, ErrorKind::Config, "{}", err.report());

    let locker = {
        let conninfo = format!("host={} user=postgres dbname=postgres", server.dir.path().display());
        let program = backstay::exec::Program::new(format!("{}/psql", crate::common::postgres::bin()));
        program
            .args(["-X", "-d", &conninfo, "-c", "begin; lock table t; select pg_sleep(60)"])
            .spawn(std::process::Stdio::null())
    };
    while server.sql(
        "postgres",
        "select count(*) from pg_locks where mode = 'AccessExclusiveLock' and relation = 't'::regclass",
    ) == "0"
    {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let err = complaint(Databases, |c| c.lock_wait = backstay::units::Span::from_secs(1)).await;
    assert!(err.kind == ErrorKind::Unavailable && err.report().contains("lock_wait"), "{}", err.report());
    drop(locker);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_server_is_refused() {
    let server = Server::start();
    let mut config = server.config(Plain);
    config.bin_dir = Some(fake_tool(server.dir.path(), "psql", "echo 120022"));
    let work = tempfile::tempdir().unwrap();
    let err = Postgres::new(config).probe(&context("test", work.path())).await.unwrap_err();
    assert!(err.kind == ErrorKind::Refused && err.message.contains("12.22"), "{}", err.report());
    let probe = Postgres::new(server.config(Plain)).probe(&context("test", work.path())).await.unwrap();
    assert!(
        probe.server_version.unwrap().starts_with(&format!("{}.", major())) && probe.estimated_bytes.unwrap() > 1 << 20
    );
}
