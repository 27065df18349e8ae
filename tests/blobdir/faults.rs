//! What goes wrong while a directory is read.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use backstay::config::BlobdirConfig;
use backstay::error::ErrorKind;
use backstay::source::Source;
use backstay::source::blobdir::{Blobdir, Moment};

use super::memory::{Memory, context, manifest};
use super::{config, to};

fn tree() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("cache/deep")).unwrap();
    fs::create_dir_all(tree.join("sub")).unwrap();
    for path in ["a", "b", "c.tmp", "sub/d", "sub/e.tmp", "cache/f", "cache/deep/g"] {
        fs::write(tree.join(path), path).unwrap();
    }
    fs::write(tree.join("large"), vec![b'L'; 600_000]).unwrap();
    (dir, tree)
}

async fn round_trip(dir: &Path, source: &Blobdir, sink: &Memory, captured: &backstay::source::Captured) {
    let cx = context(dir);
    let point = sink.point(captured);
    source.restore(&cx, &point, &to(&dir.join("restored"))).await.unwrap();
    assert!(source.verify(&cx, &point).await.unwrap().problems.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_vanishes_is_counted_and_named() {
    let (dir, tree) = tree();
    let gone = tree.clone();
    let hold = move |moment, path: &Path| {
        if moment == Moment::Listed && path == gone.join("sub") {
            fs::remove_file(gone.join("sub/d"))?;
        }
        Ok(())
    };
    let source = Blobdir::new(config(&tree)).with_hold(hold.clone());
    let sink = Memory::default();
    let captured = source.backup(&context(dir.path()), &sink).await.unwrap();
    assert_eq!((captured.counts["vanished"], captured.counts["files"]), (1, 7));
    assert_eq!(sink.line("sub/d")["state"], "vanished");
    assert!(captured.warnings[0].starts_with("1 entries vanished") && !captured.warnings[0].contains("sub"));
    round_trip(dir.path(), &source, &sink, &captured).await;

    fs::write(tree.join("sub/d"), "d").unwrap();
    let strict = Blobdir::new(BlobdirConfig { max_vanished: 0, ..config(&tree) }).with_hold(hold);
    let sink = Memory::default();
    let error = strict.backup(&context(dir.path()), &sink).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(sink.kept.lock().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_file_that_changes_once_is_read_again() {
    let (dir, tree) = tree();
    let times = Arc::new(AtomicU32::new(0));
    let limit = Arc::new(AtomicU32::new(1));
    let (seen, most) = (Arc::clone(&times), Arc::clone(&limit));
    let source = Blobdir::new(config(&tree)).with_hold(move |moment, path| {
        if moment == Moment::Read
            && path.ends_with("b")
            && seen.fetch_add(1, Ordering::SeqCst) < most.load(Ordering::SeqCst)
        {
            fs::File::options().append(true).open(path)?.write_all(b"more")?;
        }
        Ok(())
    });
    let sink = Memory::default();
    let captured = source.backup(&context(dir.path()), &sink).await.unwrap();
    assert_eq!(captured.counts["changed"], 0);
    assert_eq!(sink.line("b")["size"], 5);
    limit.store(10, Ordering::SeqCst);
    let sink = Memory::default();
    let captured = source.backup(&context(dir.path()), &sink).await.unwrap();
    assert_eq!(captured.counts["changed"], 1);
    assert_eq!(sink.line("b")["state"], "changed");
    round_trip(dir.path(), &source, &sink, &captured).await;
    assert_eq!(fs::read(dir.path().join("restored/b")).unwrap(), b"bmoremore");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_that_grows_is_named() {
    let (dir, tree) = tree();
    let source = Blobdir::new(config(&tree)).with_hold(|moment, path| {
        if moment == Moment::Read && path.ends_with("large") {
            fs::File::options().append(true).open(path)?.write_all(b"more")?;
        }
        Ok(())
    });
    let sink = Memory::default();
    let captured = source.backup(&context(dir.path()), &sink).await.unwrap();
    assert_eq!(captured.counts["changed"], 1);
    assert_eq!(sink.line("large")["size"], 600_000);
    assert!(captured.warnings[0].starts_with("1 entries changed"));
    round_trip(dir.path(), &source, &sink, &captured).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_cannot_be_read_fails_the_backup_by_name() {
    let (dir, tree) = tree();
    for (code, kind) in [(5, ErrorKind::Io), (13, ErrorKind::Denied)] {
        let source = Blobdir::new(config(&tree)).with_hold(move |moment, path| {
            let bad = moment == Moment::Open && path.ends_with("sub/d");
            if bad { Err(std::io::Error::from_raw_os_error(code)) } else { Ok(()) }
        });
        let sink = Memory::default();
        let error = source.backup(&context(dir.path()), &sink).await.unwrap_err();
        assert_eq!(error.kind, kind);
        assert!(error.message.ends_with("tree/sub/d"), "{}", error.message);
        assert!(sink.kept.lock().unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_kernel_that_gives_an_error_fails_the_backup() {
    // Written to only: reading it is an error even for root.
    let path = Path::new("/sys/bus/cpu");
    if !path.join("drivers_probe").exists() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let error = Blobdir::new(config(path)).backup(&context(dir.path()), &Memory::default()).await.unwrap_err();
    assert!(error.message.starts_with("could not read /sys/bus/cpu"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_files_where_there_were_some_is_a_failure() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, work) = (dir.path().join("tree"), dir.path().join("work"));
    fs::create_dir_all(tree.join("empty")).unwrap();
    fs::create_dir(&work).unwrap();
    let (source, sink) = (Blobdir::new(config(&tree)), Memory::default());
    let mut cx = context(&work);
    let captured = source.backup(&cx, &sink).await.unwrap();
    assert_eq!(captured.counts["files"], 0);
    round_trip(dir.path(), &source, &sink, &captured).await;
    cx.previous = Some(Arc::new(manifest([("files".to_string(), 3)].into(), Vec::new())));
    let sink = Memory::default();
    let error = source.backup(&cx, &sink).await.unwrap_err();
    assert!(error.message.contains("holds no files, and held 3"), "{}", error.message);
    assert!(sink.kept.lock().unwrap().is_empty());
    fs::remove_dir_all(&tree).unwrap();
    assert_eq!(source.backup(&cx, &sink).await.unwrap_err().kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_must_be_mounted_and_is_not_is_refused() {
    let (dir, tree) = tree();
    let source = Blobdir::new(BlobdirConfig { require_mount: true, ..config(&tree) });
    let cx = context(dir.path());
    assert!(source.backup(&cx, &Memory::default()).await.unwrap_err().message.ends_with("is not a mount point"));
    assert!(source.probe(&cx).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_excluded_is_left_out_whole() {
    let (dir, tree) = tree();
    let exclude = vec!["cache/**".to_string(), "*.tmp".to_string(), "/a".to_string()];
    let source = Blobdir::new(BlobdirConfig { exclude, ..config(&tree) });
    let sink = Memory::default();
    source.backup(&context(dir.path()), &sink).await.unwrap();
    let names: Vec<_> = sink.lines().iter().map(|l| l["path"].as_str().unwrap().to_string()).collect();
    assert_eq!(names, [".", "b", "cache", "large", "sub", "sub/d"]);
    let bad = Blobdir::new(BlobdirConfig { exclude: vec!["a{".into()], ..config(&tree) });
    assert_eq!(bad.probe(&context(dir.path())).await.unwrap_err().kind, ErrorKind::Config);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_file_systems_are_entered_only_when_asked() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let (dir, tree) = tree();
    let inner = tree.join("mounted");
    fs::create_dir(&inner).unwrap();
    super::run("mount", ["-t", "tmpfs", "none", inner.to_str().unwrap()].map(AsRef::as_ref));
    let _unmount = super::tree::Unmount(inner.clone());
    fs::write(inner.join("x"), "x").unwrap();
    let sink = Memory::default();
    let captured = Blobdir::new(config(&tree)).backup(&context(dir.path()), &sink).await.unwrap();
    assert_eq!(captured.counts["files"], 8);
    assert_eq!(sink.line("mounted")["state"], "other-file-system");
    let across = Blobdir::new(BlobdirConfig { cross_file_systems: true, ..config(&tree) });
    let captured = across.backup(&context(dir.path()), &Memory::default()).await.unwrap();
    assert_eq!(captured.counts["files"], 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_and_a_broken_pipeline_end_the_backup() {
    let (dir, tree) = tree();
    let cx = context(dir.path());
    let stop = cx.cancel.clone();
    let source = Blobdir::new(config(&tree)).with_hold(move |_, path| {
        if path.ends_with("b") {
            stop.cancel();
        }
        Ok(())
    });
    let sink = Memory::default();
    assert_eq!(source.backup(&cx, &sink).await.unwrap_err().kind, ErrorKind::Cancelled);
    assert!(sink.kept.lock().unwrap().is_empty());
    fs::write(tree.join("huge"), vec![b'L'; 8_000_000]).unwrap();
    let full = Memory { break_after: Some(1_000_000), ..Memory::default() };
    let error = Blobdir::new(config(&tree)).backup(&context(dir.path()), &full).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{}", error.chain());
}
