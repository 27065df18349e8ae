//! The `blobdir` source: a tree with everything a file system can hold, out and back, by GNU tar and by ourselves.

#![allow(clippy::disallowed_methods, reason = "the tests run GNU tar and setfacl")]
#![allow(
    clippy::unwrap_used,
    clippy::type_complexity,
    unreachable_pub,
    reason = "helpers of tests may panic, and name no types"
)]

mod archive;
mod drill;
mod faults;
mod leftovers;
mod memory;
pub(crate) mod tree;

use std::fs;
use std::path::Path;

use backstay::config::BlobdirConfig;
use backstay::error::ErrorKind;
use backstay::source::blobdir::Blobdir;
use backstay::source::{RestoreRequest, Source};

use memory::{Memory, context};
use tree::{Copy, compare, full_tree, run};

pub(crate) fn config(path: &Path) -> BlobdirConfig {
    BlobdirConfig {
        path: path.into(),
        require_mount: false,
        exclude: Vec::new(),
        cross_file_systems: false,
        readers: 3,
        max_vanished: 10,
    }
}

fn to(dir: &Path) -> RestoreRequest {
    RestoreRequest { to: Some(dir.into()), ..RestoreRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_tree_comes_back_by_gnu_tar_and_by_restore() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, work) = (dir.path().join("tree"), dir.path().join("work"));
    fs::create_dir(&work).unwrap();
    full_tree(&tree);
    let before = Copy::of(&tree);
    let (cx, sink) = (context(&work), Memory::default());
    let source = Blobdir::new(config(&tree));
    let captured = source.backup(&cx, &sink).await.unwrap();
    assert_eq!(captured.warnings, ["1 entries left out: sockets cannot be stored"]);
    assert_eq!(captured.counts["hardlinks"], 2);
    assert_eq!(Copy::of(&tree), before, "a backup changes nothing");

    let tar = dir.path().join("data.tar");
    fs::write(&tar, sink.bytes("data.tar")).unwrap();
    let by_tar = dir.path().join("by-tar");
    fs::create_dir(&by_tar).unwrap();
    let args = ["--xattrs", "--xattrs-include=*", "--acls", "--warning=no-timestamp", "-xpf"];
    let said = run("tar", args.iter().map(AsRef::as_ref).chain([tar.as_ref(), "-C".as_ref(), by_tar.as_ref()]));
    assert_eq!(said, "", "GNU tar has nothing to complain about");
    compare(&before, &Copy::of(&by_tar));

    let point = sink.point(&captured);
    let restored = source.restore(&cx, &point, &to(&dir.path().join("new/by-us"))).await.unwrap();
    compare(&before, &Copy::of(Path::new(&restored.target)));
    assert!(restored.notes.is_empty(), "{:?}", restored.notes);
    for key in ["files", "directories", "symlinks", "hardlinks", "other", "bytes"] {
        assert_eq!(restored.counts.get(key), captured.counts.get(key), "{key}");
    }
    let verified = source.verify(&cx, &point).await.unwrap();
    assert!(verified.problems.is_empty(), "{:?}", verified.problems);

    let again = Memory::default();
    source.backup(&cx, &again).await.unwrap();
    assert!(again.bytes("data.tar") == sink.bytes("data.tar"), "the same tree gives the same archive");
}

#[tokio::test(flavor = "multi_thread")]
async fn data_is_replaced_only_when_asked_and_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("target"));
    for (path, text) in [(&tree, "new"), (&target, "old")] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("file"), text).unwrap();
    }
    let (cx, sink) = (context(dir.path()), Memory::default());
    let source = Blobdir::new(config(&tree));
    let captured = source.backup(&cx, &sink).await.unwrap();
    let point = sink.point(&captured);
    let refused = source.restore(&cx, &point, &to(&target)).await.unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Refused);
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "old");
    let request = RestoreRequest { replace: true, ..to(&target) };
    let restored = source.restore(&cx, &point, &request).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "new");
    let old = restored.old_data.unwrap();
    assert_eq!(old, dir.path().join("target.old-20261120T010203Z"));
    assert_eq!(fs::read_to_string(old.join("file")).unwrap(), "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_point_leaves_the_target_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("target"));
    fs::create_dir_all(&tree).unwrap();
    fs::create_dir_all(&target).unwrap();
    fs::write(tree.join("a"), vec![b'x'; 5000]).unwrap();
    fs::write(tree.join("b"), "b").unwrap();
    fs::write(target.join("file"), "old").unwrap();
    let (cx, sink) = (context(dir.path()), Memory::default());
    let source = Blobdir::new(config(&tree));
    let captured = source.backup(&cx, &sink).await.unwrap();
    let good = sink.bytes("data.tar");
    let flipped = good
        .iter()
        .position(|b| *b == b'x')
        .map(|at| good.windows(9).skip(at).position(|w| w == b"xxxxxxxxx").unwrap() + at);
    let mut bad = good.clone();
    bad[flipped.unwrap()] = b'y';
    let cut = good[..good.len() - 1024].to_vec();
    for damaged in [bad, cut] {
        sink.set("data.tar", damaged);
        let point = sink.point(&captured);
        let request = RestoreRequest { replace: true, ..to(&target) };
        let error = source.restore(&cx, &point, &request).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{}", error.chain());
        assert_eq!(source.verify(&cx, &point).await.unwrap().problems.len(), 1);
        assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
        let beside: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(beside.len(), 2, "nothing is left over: {beside:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_point_stays_and_its_content_is_exchanged() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("mount point"));
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/file"), "new").unwrap();
    fs::set_permissions(&tree, std::os::unix::fs::PermissionsExt::from_mode(0o2751)).unwrap();
    fs::create_dir_all(&target).unwrap();
    run("mount", ["-t", "tmpfs", "none", target.to_str().unwrap()].map(AsRef::as_ref));
    let unmount = tree::Unmount(target.clone());
    fs::write(target.join("file"), "old").unwrap();
    let (cx, sink) = (context(dir.path()), Memory::default());
    let captured = Blobdir::new(config(&tree)).backup(&cx, &sink).await.unwrap();
    let source = Blobdir::new(BlobdirConfig { require_mount: true, ..config(&target) });
    let point = sink.point(&captured);
    assert_eq!(source.restore(&cx, &point, &RestoreRequest::default()).await.unwrap_err().kind, ErrorKind::Refused);
    let request = RestoreRequest { replace: true, ..RestoreRequest::default() };
    let restored = source.restore(&cx, &point, &request).await.unwrap();
    assert_eq!(fs::read_to_string(target.join("sub/file")).unwrap(), "new");
    let old = restored.old_data.unwrap();
    assert_eq!(old, target.join(".old-20261120T010203Z"));
    assert_eq!(fs::read_to_string(old.join("file")).unwrap(), "old");
    fs::remove_dir_all(old).unwrap();
    let mtime = fs::metadata(&tree).unwrap().modified().unwrap();
    fs::File::open(&target).unwrap().set_modified(mtime).unwrap();
    compare(&Copy::of(&tree), &Copy::of(&target));
    source.backup(&cx, &Memory::default()).await.unwrap();
    drop(unmount);
    let error = source.backup(&cx, &Memory::default()).await.unwrap_err();
    assert!(error.message.ends_with("is not a mount point"), "{}", error.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_can_be_asked_for_and_space_is_looked_at_first() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("a"), "a").unwrap();
    let (cx, sink) = (context(dir.path()), Memory::default());
    let source = Blobdir::new(config(&tree));
    let mut captured = source.backup(&cx, &sink).await.unwrap();
    let target = dir.path().join("t");
    let request = RestoreRequest { owner: Some("nobody:12345".into()), ..to(&target) };
    source.restore(&cx, &sink.point(&captured), &request).await.unwrap();
    for path in [target.clone(), target.join("a")] {
        let stat = std::os::unix::fs::MetadataExt::gid(&fs::metadata(&path).unwrap());
        assert_eq!(stat, 12345);
    }
    captured.counts.insert("bytes".into(), 1 << 60);
    let error = source.restore(&cx, &sink.point(&captured), &to(&dir.path().join("u"))).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace);
    assert!(!dir.path().join("u").exists());
}
