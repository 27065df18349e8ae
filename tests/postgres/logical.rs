//! SQL dumps and single databases.

use backstay::config::PostgresMethod;
use backstay::error::ErrorKind;
use backstay::source::{RestoreRequest, Source as _};
use backstay::source::postgres::Postgres;

use super::{content, fill, take};
use crate::common::memory::context;
use crate::common::postgres::Server;

const ODD: &str = "o'dd \"name\" ä/..";

fn two_databases() -> Server {
    let server = Server::start();
    server.sql("postgres", "create role app login password 'x'");
    server.sql("postgres", "create database app owner app");
    server.sql("postgres", &format!("create database \"{}\"", ODD.replace('"', "\"\"")));
    server.sql("postgres", "alter database app set work_mem = '7MB'");
    server.sql("postgres", "alter database app set search_path = public, \"S.1\"");
    server.sql("postgres", "alter role app in database app set application_name = 'it''s'");
    server.sql("postgres", "revoke connect on database app from public");
    server.sql("postgres", "comment on database app is 'it''s'");
    fill(&server, "app");
    fill(&server, ODD);
    server.sql("app", "grant usage on schema \"S.1\" to app; alter table t owner to app");
    server
}

/// What a database has besides its content.
fn properties(server: &Server) -> String {
    server.sql(
        "postgres",
        "select pg_get_userbyid(datdba), datcollate, shobj_description(oid, 'pg_database'),
         has_database_privilege('public', oid, 'connect'),
         (select string_agg(setrole::regrole::text || array_to_string(setconfig, ';'), '|' order by setrole) from pg_db_role_setting where setdatabase = d.oid)
         from pg_database d where datname = 'app'",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_fills_an_empty_cluster() {
    let server = two_databases();
    let taken = take(server.config(PostgresMethod::Dump)).await;
    assert_eq!(taken.memory.names(), ["all.sql", "inventory.jsonl"]);
    let each = 2000 + 2 + 3 + 3;
    assert_eq!((taken.captured.counts["rows"], taken.captured.counts["tables"]), (2 * each, 8));
    assert_eq!(taken.problems().await, [""; 0]);
    let refused = taken.restore(RestoreRequest::default()).await.unwrap_err();
    assert!(refused.kind == ErrorKind::Refused && refused.message.contains("app"), "{refused:?}");

    let fresh = Server::start();
    let source = Postgres::new(fresh.config(PostgresMethod::Dump));
    let cx = context("test", taken.work.path());
    let restored = source.restore(&cx, &taken.point(), &RestoreRequest::default()).await.unwrap();
    assert_eq!(restored.counts["rows"], 2 * each);
    for database in ["app", ODD] {
        assert_eq!(content(&fresh, database), content(&server, database));
    }
    assert_eq!(properties(&fresh), properties(&server));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_that_fails_or_is_short_is_no_restore() {
    let server = two_databases();
    let taken = take(server.config(PostgresMethod::Dump)).await;
    let whole = String::from_utf8(taken.memory.bytes("all.sql")).unwrap();
    let cx = context("test", taken.work.path());
    taken.memory.change("all.sql", |b| *b = whole.replace("\n1\ta", "\nx\ta").into());
    let fresh = Server::start();
    let source = Postgres::new(fresh.config(PostgresMethod::Dump));
    let err = source.restore(&cx, &taken.point(), &RestoreRequest::default()).await.unwrap_err();
    assert!(err.kind == ErrorKind::Failed && err.chain().contains("invalid input syntax"), "{}", err.report());
    let row = whole.lines().find(|l| l.starts_with("7\t")).unwrap();
    taken.memory.change("all.sql", |b| *b = whole.replace(&format!("{row}\n"), "").into());
    assert!(taken.problems().await[0].contains("rows instead of"));
    let fresh = Server::start();
    let source = Postgres::new(fresh.config(PostgresMethod::Dump));
    let err = source.restore(&cx, &taken.point(), &RestoreRequest::default()).await.unwrap_err();
    assert_eq!(err.kind, ErrorKind::Corrupt, "{}", err.report());
    taken.memory.change("all.sql", |b| b.truncate(whole.len() - 500));
    assert!(taken.problems().await[0].contains("end mark"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_comes_back_beside_the_old_one_or_in_its_place() {
    let server = two_databases();
    let mut config = server.config(PostgresMethod::Databases);
    config.exclude = vec!["post*".into()];
    let taken = take(config).await;
    let odd = format!("{}.dump", backstay::artefact::artefact_name(ODD));
    let mut names = vec!["app.dump".to_owned(), "globals.sql".into(), "inventory.jsonl".into(), odd];
    names.sort();
    assert_eq!(taken.memory.names(), names);
    assert_eq!(taken.captured.counts["rows"], 2 * 2008);
    assert_eq!(taken.problems().await, [""; 0]);

    let one = |name: &str| RestoreRequest { database: Some(name.into()), ..RestoreRequest::default() };
    assert_eq!(taken.restore(one("app")).await.unwrap_err().kind, ErrorKind::Refused);
    assert_eq!(taken.restore(one("none")).await.unwrap_err().kind, ErrorKind::NotFound);
    let before = content(&server, ODD);
    taken.restore(RestoreRequest { rename: Some("b'eside".into()), ..one(ODD) }).await.unwrap();
    assert_eq!(content(&server, "b'eside"), before);

    let (before, had) = (content(&server, "app"), properties(&server));
    server.sql("app", "delete from t where id > 5");
    let restored = taken.restore(RestoreRequest { replace: true, ..one("app") }).await.unwrap();
    assert!(restored.notes.iter().any(|n| n.contains("app_old_20261120000312")), "{restored:?}");
    assert_eq!((content(&server, "app"), properties(&server)), (before, had));
    assert_eq!(server.sql("app_old_20261120000312", "select count(*) from t"), "5");
    assert_eq!(server.sql("postgres", "select count(*) from pg_database where datname like 'backstay%'"), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_databases_fill_a_fresh_cluster() {
    let server = two_databases();
    server.sql("postgres", "create table in_postgres (x int); insert into in_postgres values (1)");
    let taken = take(server.config(PostgresMethod::Databases)).await;
    let fresh = Server::start();
    let source = Postgres::new(fresh.config(PostgresMethod::Databases));
    let cx = context("test", taken.work.path());
    let restored = source.restore(&cx, &taken.point(), &RestoreRequest::default()).await;
    let restored = restored.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!((restored.counts["databases"], restored.counts["rows"]), (3, 2 * 2008 + 1));
    assert!(restored.notes.iter().all(|n| !n.contains("not restored")), "{restored:?}");
    for database in ["app", ODD] {
        assert_eq!(content(&fresh, database), content(&server, database));
    }
    assert_eq!(fresh.sql("postgres", "select x from in_postgres"), "1");
    assert_eq!(properties(&fresh), properties(&server));
    assert_eq!(fresh.sql("postgres", "select count(*) from pg_database"), "5");

    taken.memory.change("app.dump", |b| b.truncate(b.len() / 2));
    assert!(!taken.problems().await.is_empty());
    let one = RestoreRequest { database: Some("app".into()), rename: Some("cut".into()), ..RestoreRequest::default() };
    assert!(source.restore(&cx, &taken.point(), &one).await.is_err());
    assert_eq!(fresh.sql("postgres", "select count(*) from pg_database"), "5");
}
