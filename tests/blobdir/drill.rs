//! Drills of a directory: what comes back is compared with the inventory, on disk or while it goes by.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use backstay::error::ErrorKind;
use backstay::source::blobdir::Blobdir;
use backstay::source::{Captured, DrillLevel, DrillRequest, Drilled, Source};

use super::config;
use super::memory::{Memory, context};
use super::tree::full_tree;

fn request(dir: &Path, stream: bool) -> DrillRequest {
    let scratch = dir.join(format!("scratch-{stream}"));
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir(&scratch).unwrap();
    DrillRequest { scratch, stream, wait: Duration::from_secs(60) }
}

async fn drill(dir: &Path, sink: &Memory, captured: &Captured, stream: bool) -> backstay::error::Result<Drilled> {
    let source = Blobdir::new(config(&dir.join("tree")));
    source.drill(&context(dir), &sink.point(captured), &request(dir, stream)).await
}

/// Whether anything below is set-user-id or set-group-id.
fn gives_rights(dir: &Path) -> bool {
    fs::read_dir(dir).unwrap().flatten().any(|entry| {
        let meta = entry.metadata().unwrap();
        !meta.is_symlink() && meta.mode() & 0o6000 != 0 || meta.is_dir() && gives_rights(&entry.path())
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_a_file_system_can_hold_comes_back_as_it_was_captured() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    if nix::unistd::Uid::effective().is_root() {
        full_tree(&tree);
    } else {
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("one"), "1").unwrap();
    }
    let (cx, sink) = (context(dir.path()), Memory::default());
    let source = Blobdir::new(config(&tree));
    let captured = source.backup(&cx, &sink).await.unwrap();
    // Production is gone: a drill needs nothing of it.
    fs::rename(&tree, dir.path().join("elsewhere")).unwrap();
    for (stream, level) in [(false, DrillLevel::Files), (true, DrillLevel::Stream)] {
        let drilled = drill(dir.path(), &sink, &captured, stream).await.unwrap();
        assert_eq!(drilled.differences, [""; 0]);
        assert_eq!(drilled.level, level);
        for key in ["files", "directories", "symlinks", "hardlinks", "other", "bytes"] {
            assert_eq!(drilled.counts.get(key), captured.counts.get(key), "{key} {stream}");
        }
        let stored = fs::read_dir(dir.path().join(format!("scratch-{stream}"))).unwrap().count();
        assert_eq!(stored, usize::from(!stream), "only a drill that stores needs the disk");
        let need = source.drill_bytes(&sink.point(&captured).manifest, &request(dir.path(), stream));
        assert_eq!(need > captured.counts["bytes"], !stream);
    }
    assert!(!nix::unistd::Uid::effective().is_root() || gives_rights(&dir.path().join("elsewhere")));
    assert!(!gives_rights(&dir.path().join("scratch-false")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_is_not_in_the_inventory_is_found_though_scratch_has_none() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("program"), "text").unwrap();
    fs::set_permissions(tree.join("program"), fs::Permissions::from_mode(0o4755)).unwrap();
    let sink = Memory::default();
    let captured = Blobdir::new(config(&tree)).backup(&context(dir.path()), &sink).await.unwrap();
    let text = String::from_utf8(sink.bytes("inventory.jsonl")).unwrap();
    assert!(text.contains(r#""mode":"4755""#), "{text}");
    sink.set("inventory.jsonl", text.replace(r#""mode":"4755""#, r#""mode":"0755""#).into_bytes());
    for stream in [false, true] {
        let drilled = drill(dir.path(), &sink, &captured, stream).await.unwrap();
        assert_eq!(drilled.differences.len(), 1, "{drilled:?}");
        assert!(drilled.differences[0].starts_with("\"program\" has another type, owner, mode"), "{drilled:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_differs_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("good"), "same").unwrap();
    fs::write(tree.join("bad"), "before").unwrap();
    let sink = Memory::default();
    let captured = Blobdir::new(config(&tree)).backup(&context(dir.path()), &sink).await.unwrap();
    let mut tar = sink.bytes("data.tar");
    let at = tar.windows(6).position(|w| w == b"before").unwrap();
    tar[at..at + 6].copy_from_slice(b"beyond");
    sink.set("data.tar", tar.clone());
    for stream in [false, true] {
        let drilled = drill(dir.path(), &sink, &captured, stream).await.unwrap();
        assert_eq!(drilled.differences, ["\"bad\" has other content than the inventory says"], "{stream}");
    }
    tar.truncate(1024 + 100);
    sink.set("data.tar", tar);
    for stream in [false, true] {
        assert_eq!(drill(dir.path(), &sink, &captured, stream).await.unwrap_err().kind, ErrorKind::Corrupt, "{stream}");
    }
}
