//! How the server is reached: TCP and passwords, tools that are not there, versions, languages.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use backstay::config::PostgresConfig;
use backstay::config::PostgresMethod::{self, Databases, Dump, Plain};
use backstay::error::{Error, ErrorKind};
use backstay::source::postgres::Postgres;
use backstay::source::{RestoreRequest, Source as _};
use backstay::units::Bytes;

use super::{attempt, content, fill, take, to};
use crate::common::memory::context;
use crate::common::postgres::{Server, fake_tool, major};

/// A server that also listens on a port of the loopback, where it demands passwords. The role `backup` has one.
fn with_password() -> (Server, u16) {
    let server = Server::start();
    server.sql(
        "postgres",
        "set password_encryption = 'scram-sha-256'; create role backup superuser login password 'right one'",
    );
    server.down();
    let hba = server.data.join("pg_hba.conf");
    std::fs::write(
        &hba,
        "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    let port = server.listen();
    server.up();
    (server, port)
}

fn passfile(dir: &Path, port: u16, password: &str) -> PathBuf {
    let path = PathBuf::from(crate::common::write(dir, "passfile", &format!("127.0.0.1:{port}:*:backup:{password}\n")));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn by_tcp(server: &Server, port: u16, method: PostgresMethod, passfile: Option<PathBuf>) -> PostgresConfig {
    let mut config = server.config(method);
    config.host = Some("127.0.0.1".into());
    config.port = Some(port);
    config.username = Some("backup".into());
    config.passfile = passfile;
    config
}

async fn refusal(config: PostgresConfig) -> Error {
    let (memory, taken) = attempt(config).await;
    assert_eq!(memory.names(), [""; 0]);
    taken.err().expect("must fail")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_comes_from_the_passfile() {
    let (server, port) = with_password();
    fill(&server, "postgres");
    let before = content(&server, "postgres");
    let dir = tempfile::tempdir().unwrap();
    let file = passfile(dir.path(), port, "right one");
    for method in [Plain, Dump, Databases] {
        let taken = take(by_tcp(&server, port, method, Some(file.clone()))).await;
        assert_eq!(taken.problems().await, [""; 0], "{method:?}");
        if method == Databases {
            let one = RestoreRequest {
                database: Some("postgres".into()),
                rename: Some("again".into()),
                ..Default::default()
            };
            taken.restore(one).await.unwrap_or_else(|e| panic!("{}", e.report()));
            assert_eq!(content(&server, "again"), before);
        }
        if method == Plain {
            server.down();
            let restored = taken.restore(RestoreRequest { replace: true, ..to(&server.data) }).await;
            restored.unwrap_or_else(|e| panic!("{}", e.report()));
            assert_eq!(content(&server, "postgres"), before);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_is_named_as_such() {
    let (server, port) = with_password();
    let dir = tempfile::tempdir().unwrap();
    let wrong = passfile(dir.path(), port, "wrong one");
    let err = refusal(by_tcp(&server, port, Plain, Some(wrong.clone()))).await;
    assert_eq!(err.kind, ErrorKind::Denied);
    let report = err.report();
    assert!(report.contains("FATAL:  password authentication failed for user \"backup\""), "{report}");
    assert!(report.ends_with("\nhint: correct the password in the passfile."), "{report}");
    assert!(!report.contains("wrong one"), "{report}");

    let err = refusal(by_tcp(&server, port, Dump, None)).await;
    let report = err.report();
    assert!(err.kind == ErrorKind::Denied && report.contains("fe_sendauth: no password supplied"), "{report}");
    assert!(report.ends_with("\nhint: set passfile, with a line for this host, port, database and user."), "{report}");

    std::fs::set_permissions(&wrong, std::fs::Permissions::from_mode(0o640)).unwrap();
    let err = refusal(by_tcp(&server, port, Dump, Some(wrong.clone()))).await;
    assert_eq!(err.kind, ErrorKind::Config);
    let (file, report) = (wrong.display(), err.report());
    assert_eq!(report, format!("error: the passfile {file} can be read by others\nhint: run chmod 600 {file}."));

    let nobody = RestoreRequest { database: Some("x".into()), ..Default::default() };
    let taken = take(server.config(Databases)).await;
    let source = Postgres::new(by_tcp(&server, port, Databases, Some(wrong)));
    let err = source.restore(&context("test", dir.path()), &taken.point(), &nobody).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::NotFound, "what the point does not hold is said before anything is connected to");
}

/// As root, whom the server does not know: the programs run as the user of the service, in a backup and in a restore.
#[tokio::test(flavor = "multi_thread")]
async fn root_connects_as_the_user_of_the_service() {
    if !nix::unistd::geteuid().is_root() {
        return crate::common::skip("becoming the user of a service: not root");
    }
    let server = Server::start();
    fill(&server, "postgres");
    let before = content(&server, "postgres");
    std::fs::write(server.data.join("pg_hba.conf"), "local all all peer\nlocal replication all peer\n").unwrap();
    server.sql("postgres", "select pg_reload_conf()");
    let peer = |server: &Server, method, run_as: Option<&str>| {
        let mut config = server.config(method);
        config.username = None;
        config.run_as = run_as.map(str::to_owned);
        config
    };
    let err = refusal(peer(&server, Dump, None)).await;
    let report = err.report();
    assert!(err.kind == ErrorKind::Denied && report.contains("FATAL:  role \"root\" does not exist"), "{report}");
    assert!(
        report.contains("\nhint: set `user` of the service to an operating system's user that may log in"),
        "{report}"
    );
    let mut config = peer(&server, Dump, None);
    config.username = Some("postgres".into());
    let report = refusal(config).await.report();
    assert!(
        report.contains("\nhint: set `user` of the service to the operating system's user of that name"),
        "{report}"
    );

    let taken = take(peer(&server, Databases, Some("postgres"))).await;
    assert_eq!(taken.problems().await, [""; 0]);
    let one = RestoreRequest { database: Some("postgres".into()), rename: Some("again".into()), ..Default::default() };
    taken.restore(one).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(content(&server, "again"), before);
    let taken = take(peer(&server, Plain, Some("postgres"))).await;
    server.down();
    let restored = taken.restore(RestoreRequest { replace: true, ..to(&server.data) }).await;
    restored.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(content(&server, "again"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_and_one_that_refuses_are_told_apart() {
    let (server, port) = with_password();
    let mut config = server.config(Plain);
    config.port = Some(1);
    let err = refusal(config).await;
    let report = err.report();
    assert_eq!(err.kind, ErrorKind::Unavailable);
    assert!(report.contains("failed: No such file or directory"), "{report}");
    assert!(
        report.ends_with("\nhint: see whether the server runs, and correct host and port in the configuration."),
        "{report}"
    );
    let mut config = server.config(Plain);
    config.database = "none".into();
    let report = refusal(config).await.report();
    assert!(report.contains("FATAL:  database \"none\" does not exist"), "{report}");
    assert!(
        report.contains("\nhint: see the server's answer above, and correct host, port, username and database"),
        "{report}"
    );
    server.down();
    let dir = tempfile::tempdir().unwrap();
    let err = refusal(by_tcp(&server, port, Dump, Some(passfile(dir.path(), port, "x")))).await;
    assert!(err.report().contains("failed: Connection refused"), "{}", err.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_that_are_missing_or_too_old_are_named() {
    let server = Server::start();
    let mut config = server.config(Plain);
    config.bin_dir = Some("/nonexistent/bin".into());
    let err = refusal(config).await;
    assert_eq!(err.kind, ErrorKind::Config);
    assert_eq!(
        err.report(),
        "error: could not run psql\n  caused by: /nonexistent/bin/psql: No such file or directory (os error 2)\n\
         hint: install the package that has psql, or say where it is in the configuration."
    );
    let mut config = server.config(Databases);
    config.bin_dir = Some(fake_tool(server.dir.path(), "psql", "echo 990001"));
    let report = refusal(config).await.report();
    let expected = format!(
        "error: pg_dump has version {}, the server 99\nhint: install the client programs of the server's version, or set bin_dir.",
        major()
    );
    assert_eq!(report, expected);
    let older = PathBuf::from("/usr/lib/postgresql/15/bin");
    if major() > 15 && older.is_dir() {
        let mut config = server.config(Plain);
        config.bin_dir = Some(older);
        let report = refusal(config).await.report();
        let expected = format!("error: pg_basebackup has version 15, the server {}\n", major());
        assert!(report.starts_with(&expected), "{report}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_is_limited_by_the_server() {
    let server = Server::start();
    fill(&server, "postgres");
    let before = content(&server, "postgres");
    let said = server.dir.path().join("arguments");
    let script = format!("echo \"$@\" >{}; exec $real \"$@\"", said.display());
    let mut config = server.config(Plain);
    config.bin_dir = Some(fake_tool(server.dir.path(), "pg_basebackup", &script));
    config.max_rate = Some(Bytes(50 << 20));
    let taken = take(config).await;
    let arguments = std::fs::read_to_string(&said).unwrap();
    assert!(arguments.split_whitespace().any(|a| a == "--max-rate=51200"), "kilobytes per second: {arguments}");
    server.down();
    taken.restore(RestoreRequest { replace: true, ..to(&server.data) }).await.unwrap();
    assert_eq!(content(&server, "postgres"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_speaks_another_language_is_understood() {
    let server = Server::start();
    fill(&server, "postgres");
    server.sql("postgres", "create role app");
    let before = content(&server, "postgres");
    for method in [Dump, Databases] {
        let taken = take(server.config(method)).await;
        let german = Server::start();
        german.down();
        german.up_in_german();
        let refused = german.try_sql("postgres", "select 1/0").unwrap_err();
        if !refused.contains("FEHLER") {
            return crate::common::skip("a server that speaks German: its translations are not installed");
        }
        if method == Databases {
            german.sql("postgres", "create database app");
        }
        let source = Postgres::new(german.config(method));
        let cx = context("test", taken.work.path());
        let whole = source.restore(&cx, &taken.point(), &RestoreRequest::default()).await;
        if method == Databases {
            whole.unwrap_or_else(|e| panic!("{}", e.report()));
            assert_eq!(content(&german, "postgres"), before);
            continue;
        }
        // The role that runs the restore is in the dump, and its error is no error; any other is one.
        whole.unwrap_or_else(|e| panic!("{}", e.report()));
        assert_eq!(content(&german, "postgres"), before);
        let text = String::from_utf8(taken.memory.bytes("all.sql")).unwrap();
        taken.memory.change("all.sql", |b| *b = text.replace("CREATE FUNCTION", "CREATE FUNKTION").into());
        let other = Server::start();
        other.down();
        other.up_in_german();
        let source = Postgres::new(other.config(method));
        let err = source.restore(&cx, &taken.point(), &RestoreRequest::default()).await.unwrap_err();
        assert!(err.kind == ErrorKind::Failed && err.chain().contains("ERROR:  syntax error"), "{}", err.report());
    }
}
