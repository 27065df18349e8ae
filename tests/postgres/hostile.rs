//! Restores into places where they would do harm, or cannot end.

use std::path::Path;

use backstay::config::PostgresMethod::Plain;
use backstay::error::{Error, ErrorKind};
use backstay::source::{RestoreRequest, Source as _};

use super::{content, fill, server_guard, take, to};
use crate::common::memory::context;
use crate::common::postgres::{Server, server_dir};
use crate::faults::Mount;

fn over(dir: &Path) -> RestoreRequest {
    RestoreRequest { replace: true, ..to(dir) }
}

fn entries(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|n| !n.starts_with(".s.PGSQL.")).collect();
    names.sort();
    names
}

#[track_caller]
fn expect(err: &Error, kind: ErrorKind, said: &str) {
    assert!(err.kind == kind && err.report().contains(said), "{said}: {}", err.report());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tablespace_of_a_running_server_is_never_moved() {
    let server = Server::start();
    let fast = server_dir(&server.dir.path().join("fast"));
    server.sql("postgres", &format!("create tablespace fast location '{}'", fast.display()));
    server.sql("postgres", "create table far (x int) tablespace fast; insert into far select generate_series(1, 500)");
    let taken = take(server.config(Plain)).await;
    let target = server.dir.path().join("new");
    let err = taken.restore(over(&target)).await.unwrap_err();
    let data = server.data.display();
    expect(&err, ErrorKind::Refused, &format!("the server that runs in {data} (process "));
    expect(&err, ErrorKind::Refused, &format!("has a tablespace in {}", fast.display()));
    expect(&err, ErrorKind::Refused, "with --map OLD=NEW.");
    assert_eq!(entries(server.dir.path()), ["data", "fast", "log"], "nothing was moved, nothing was left");
    server.sql("postgres", "insert into far values (501); checkpoint");
    let map = vec![("/not/there".into(), "/elsewhere".into())];
    let err = taken.restore(RestoreRequest { map, ..over(&target) }).await.unwrap_err();
    expect(&err, ErrorKind::Usage, "no tablespace lies in /not/there");

    server.down();
    taken.restore(over(&server.data)).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(server.sql("postgres", "select count(*) from far"), "500");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_is_no_place_is_refused_before_anything_is_read() {
    let server = Server::start();
    let taken = take(server.config(Plain)).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    let said = "is there, and is neither a directory nor a link to one";
    expect(&taken.restore(over(&file)).await.unwrap_err(), ErrorKind::Refused, said);
    expect(&taken.restore(over(Path::new("/"))).await.unwrap_err(), ErrorKind::Usage, "/ is no place for");
    let owner = RestoreRequest { owner: Some("nobody-has-this-name".into()), ..to(&dir.path().join("x")) };
    expect(&taken.restore(owner).await.unwrap_err(), ErrorKind::Usage, "no such owner: \"nobody-has-this-name\"");
    assert_eq!(entries(dir.path()), ["file"]);
    assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_stays_and_what_it_leads_to_is_replaced() {
    let server = Server::start();
    fill(&server, "postgres");
    let before = content(&server, "postgres");
    let taken = take(server.config(Plain)).await;
    server.down();
    let real = server.dir.path().join("disk");
    std::fs::rename(&server.data, &real).unwrap();
    std::os::unix::fs::symlink(&real, &server.data).unwrap();
    let restored = taken.restore(over(&server.data)).await.unwrap();
    let old = restored.old_data.unwrap();
    assert_eq!(old.parent(), real.parent());
    assert!(server.data.symlink_metadata().unwrap().is_symlink() && old.join("PG_VERSION").is_file());
    assert_eq!(content(&server, "postgres"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_restores_into_one_place_is_refused() {
    let server = Server::start();
    fill(&server, "postgres");
    let before = content(&server, "postgres");
    let taken = take(server.config(Plain)).await;
    server.down();
    let target = server.dir.path().join("new");
    let request = to(&target);
    let cx = context("test", taken.work.path());
    let point = taken.point();
    let one = || taken.source.restore(&cx, &point, &request);
    let (a, b) = tokio::join!(one(), one());
    let (won, lost) = if a.is_ok() { (a, b) } else { (b, a) };
    won.unwrap_or_else(|e| panic!("{}", e.report()));
    let lost = lost.unwrap_err();
    expect(&lost, ErrorKind::Busy, &format!("another restore into {} is under way", target.display()));
    assert_eq!(entries(server.dir.path()), ["data", "log", "new"]);
    let _new = Server { data: target, dir: server_guard(&server) };
    assert_eq!(content(&server, "postgres"), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_and_one_that_cannot_be_written_are_told_at_once() {
    let server = Server::start();
    let taken = take(server.config(Plain)).await;
    let dir = tempfile::tempdir().unwrap();
    let Some(small) = Mount::new(&dir.path().join("small"), "8m") else { return };
    let err = taken.restore(to(&dir.path().join("small/data"))).await.unwrap_err();
    expect(&err, ErrorKind::NoSpace, "free, but ");
    expect(&err, ErrorKind::NoSpace, "\nhint: free space there, or name another directory.");
    assert_eq!(entries(&dir.path().join("small")), [""; 0]);
    let Some(fixed) = Mount::new(&dir.path().join("fixed"), "900m,ro") else { return };
    for target in ["fixed", "fixed/data"] {
        let err = taken.restore(to(&dir.path().join(target))).await.unwrap_err();
        assert!(err.report().contains("Read-only file system"), "{}", err.report());
        assert_eq!(entries(&dir.path().join("fixed")), [""; 0]);
    }
    drop((small, fixed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bind_mount_of_the_same_disk_takes_the_data() {
    let server = Server::start();
    fill(&server, "postgres");
    let before = content(&server, "postgres");
    let taken = take(server.config(Plain)).await;
    server.down();
    let Some(mount) = Mount::bind(&server.data) else { return };
    let restored = taken.restore(over(&server.data)).await.unwrap_or_else(|e| panic!("{}", e.report()));
    assert_eq!(restored.old_data.unwrap(), server.data.join(".old-20261120000312"));
    assert_eq!(content(&server, "postgres"), before);
    server.down();
    drop(mount);
}
