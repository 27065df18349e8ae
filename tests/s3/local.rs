//! What only a directory does.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use backstay::destination::local::Local;
use backstay::destination::{Destination, Location, PutMode};
use backstay::error::ErrorKind;

use super::contract::{self, keys, put, sample};

fn place() -> (tempfile::TempDir, Local) {
    let dir = tempfile::tempdir().expect("a directory");
    let place = Local::new("disk", dir.path().join("deep/root"), false);
    (dir, place)
}

#[tokio::test]
async fn contract() {
    let (_dir, place) = place();
    contract::holds(&place, 5 << 20).await;
    assert_eq!(std::fs::read_dir(place.root()).expect("the root stays").count(), 0, "something was left");
    assert!(!place.keeps_versions().await.expect("asked"));
    let err = place.begin("a", PutMode::Versioned, None).await.expect_err("no versions");
    assert_eq!(err.kind, ErrorKind::Config);
    assert_eq!(err.message, "disk: a directory keeps no versions");
}

#[tokio::test]
async fn only_the_owner_can_read() {
    let (_dir, place) = place();
    put(&place, "h/s/p/data", PutMode::WriteOnce, &sample(5)).await.expect("stored");
    let mode = |p: &Path| std::fs::metadata(p).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&place.root().join("h/s/p/data")), 0o600);
    for dir in ["", "h", "h/s", "h/s/p"] {
        assert_eq!(mode(&place.root().join(dir)), 0o700, "{dir:?}");
    }
}

#[tokio::test]
async fn staged_folders_are_seen_only_by_name() {
    let (_dir, place) = place();
    assert_eq!(place.staging("p"), ".partial-p");
    assert_eq!(place.staging("h/s/p/"), "h/s/.partial-p/");
    put(&place, "h/s/.partial-p/data", PutMode::WriteOnce, &sample(5)).await.expect("stored");
    put(&place, "h/s/q/data", PutMode::WriteOnce, &sample(5)).await.expect("stored");
    assert_eq!(keys(&place.list("h/s/").await.expect("listed")), ["h/s/q/data"]);
    assert_eq!(keys(&place.list("h/s/.partial-p/").await.expect("listed")), ["h/s/.partial-p/data"]);
    assert_eq!(place.folders("h/s/").await.expect("listed"), [".partial-p", "q"]);

    let err = place.publish("h/s/.partial-p/", "h/s/q/").await.expect_err("taken");
    assert_eq!(err.kind, ErrorKind::AlreadyExists);
    assert!(err.message.ends_with("h/s/q is there already"), "{}", err.message);
    std::fs::create_dir(place.root().join("h/s/empty")).expect("a folder");
    let err = place.publish("h/s/.partial-p", "h/s/empty").await.expect_err("taken, though empty");
    assert_eq!(err.kind, ErrorKind::AlreadyExists);
    place.publish("h/s/.partial-p", "h/s/p").await.expect("published");
    assert_eq!(place.publish("h/s/.partial-p", "h/s/r").await.expect_err("gone").kind, ErrorKind::NotFound);
}

#[tokio::test]
async fn keys_lead_nowhere_else() {
    let (_dir, place) = place();
    for key in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "a/", "./a", "a\0b"] {
        for err in [
            place.begin(key, PutMode::Replace, None).await.err(),
            place.get(&Location::newest(key)).await.err(),
            place.delete(&Location::newest(key)).await.err(),
        ] {
            assert_eq!(err.map(|e| e.kind), Some(ErrorKind::Internal), "{key:?}");
        }
    }
    for prefix in ["../", "/etc/", "a/../../", ".."] {
        assert!(place.list(prefix).await.map_or(true, |l| l.is_empty()), "{prefix:?}");
    }
    assert!(place.folders("../").await.is_err());
    let at = Location { key: "a".into(), version: Some("v1".into()) };
    assert_eq!(place.delete(&at).await.expect_err("no versions").kind, ErrorKind::Config);
}

#[tokio::test]
async fn links_are_no_objects() {
    let (dir, place) = place();
    put(&place, "a/b", PutMode::WriteOnce, &sample(5)).await.expect("stored");
    std::fs::write(dir.path().join("secret"), "x").expect("a file");
    std::os::unix::fs::symlink(dir.path().join("secret"), place.root().join("a/link")).expect("a link");
    std::os::unix::fs::symlink(dir.path(), place.root().join("a/up")).expect("a link");
    assert_eq!(keys(&place.list("a/").await.expect("listed")), ["a/b"]);
    assert!(place.folders("a/").await.expect("listed").is_empty());
    let link = Location::newest("a/link");
    assert_eq!(place.head(&link).await.expect("looked at"), None);
    assert_eq!(place.get(&link).await.err().expect("no object").kind, ErrorKind::NotFound);
    place.delete(&link).await.expect("no object");
    assert!(dir.path().join("secret").exists());
}

#[tokio::test]
async fn an_object_that_appears_meanwhile_is_not_replaced() {
    let (_dir, place) = place();
    let mut upload = place.begin("a/b", PutMode::WriteOnce, None).await.expect("begun");
    upload.write(sample(9)).await.expect("written");
    std::fs::write(place.root().join("a/b"), "first").expect("a file");
    let err = upload.complete().await.expect_err("taken");
    assert_eq!(err.kind, ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(place.root().join("a/b")).expect("there"), b"first");
    assert_eq!(std::fs::read_dir(place.root().join("a")).expect("a folder").count(), 1, "a temporary file is left");
}

#[tokio::test]
async fn a_file_that_shrinks_while_it_is_read_is_an_error() {
    use futures_util::StreamExt;
    let (_dir, place) = place();
    let at = put(&place, "a", PutMode::WriteOnce, &sample(2 << 20)).await.expect("stored");
    let mut stream = place.get(&at).await.expect("opened");
    assert_eq!(stream.next().await.expect("a chunk").expect("read").len(), 512 << 10);
    let file = std::fs::OpenOptions::new().write(true).open(place.root().join("a")).expect("the file");
    file.set_len(600 << 10).expect("cut");
    let err = stream.next().await.expect("an error").expect_err("too short");
    assert_eq!(err.kind, ErrorKind::Corrupt);
    assert!(err.message.contains("ends 1482752 bytes early"), "{}", err.message);
}
