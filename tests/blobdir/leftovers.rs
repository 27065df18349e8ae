//! What a killed restore leaves: told by the next backup, never captured, removed by the next restore.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use backstay::config::BlobdirConfig;
use backstay::error::ErrorKind;
use backstay::source::blobdir::Blobdir;
use backstay::source::{RestoreRequest, Source};

use super::memory::{Memory, context};
use super::tree::{Unmount, run};
use super::{config, to};
use crate::common::fake::{Fake, collect};

const TIME: &str = "20260101T000000Z";

fn make(path: &Path) {
    fs::create_dir_all(path).unwrap();
    fs::write(path.join("file"), "left").unwrap();
}

fn names(sink: &Memory, state: Option<&str>) -> Vec<String> {
    let lines = sink.lines();
    let wanted = lines.iter().filter(|line| line.get("state").and_then(|s| s.as_str()) == state);
    wanted.filter_map(|line| line["path"].as_str().map(ToOwned::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_restore_left_is_told_and_not_captured() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    make(&tree);
    make(&tree.join(format!(".backstay-partial-{TIME}")));
    make(&tree.join(format!(".old-{TIME}")));
    make(&tree.join(".old-stuff"));
    make(&tree.join(format!("below/.old-{TIME}")));
    make(&dir.path().join(format!(".tree.backstay-partial-{TIME}")));
    let (cx, sink) = (context(dir.path()), Memory::default());
    let source = Blobdir::new(config(&tree));
    let captured = source.backup(&cx, &sink).await.unwrap();
    assert_eq!(
        captured.warnings,
        [
            "2 entries left out: folders of restores, old data or what a killed one left; the inventory names them",
            "a killed restore left a folder beside the directory; the next restore removes it"
        ]
    );
    assert_eq!(names(&sink, Some("skipped")), [format!(".backstay-partial-{TIME}"), format!(".old-{TIME}")]);
    let stored = [".", ".old-stuff", ".old-stuff/file", "below", &format!("below/.old-{TIME}")]
        .map(ToOwned::to_owned)
        .into_iter()
        .chain([format!("below/.old-{TIME}/file"), "file".to_owned()]);
    assert_eq!(names(&sink, None), stored.collect::<Vec<_>>());

    let restored = source.restore(&cx, &sink.point(&captured), &to(&dir.path().join("new"))).await.unwrap();
    assert_eq!(restored.counts["files"], 3);
    assert!(restored.notes.iter().all(|note| !note.contains("killed")), "{:?}", restored.notes);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_restore_removes_what_was_left_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (tree, target) = (dir.path().join("tree"), dir.path().join("t"));
    make(&tree);
    let (cx, sink) = (context(dir.path()), Memory::default());
    let source = Blobdir::new(config(&tree));
    let captured = source.backup(&cx, &sink).await.unwrap();
    let left = dir.path().join(format!(".t.backstay-partial-{TIME}"));
    let others: Vec<PathBuf> =
        [".t.backstay-partial-notes", ".u.backstay-partial-20260101T000000Z"].map(|n| dir.path().join(n)).into();
    let busy = dir.path().join(".t.backstay-partial-20260101T000001Z");
    for path in others.iter().chain([&left, &busy]) {
        make(path);
    }
    let held = fs::File::open(&busy).unwrap();
    held.lock().unwrap();
    let restored = source.restore(&cx, &sink.point(&captured), &to(&target)).await.unwrap();
    let note = format!("removed {}, left by a restore that was killed", left.display());
    assert!(restored.notes.contains(&note), "{:?}", restored.notes);
    assert!(!left.exists() && busy.join("file").exists() && others.iter().all(|path| path.join("file").exists()));
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "left");
}

#[tokio::test(flavor = "multi_thread")]
async fn old_data_within_a_mount_point_is_neither_captured_nor_moved_again() {
    if !nix::unistd::Uid::effective().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("mounted");
    fs::create_dir(&target).unwrap();
    run("mount", ["-t", "tmpfs", "none", target.to_str().unwrap()].map(AsRef::as_ref));
    let _unmount = Unmount(target.clone());
    make(&target);
    let before = target.join(format!(".old-{TIME}"));
    make(&before);
    let (cx, sink) = (context(dir.path()), Memory::default());
    let source = Blobdir::new(BlobdirConfig { require_mount: true, ..config(&target) });
    let captured = source.backup(&cx, &sink).await.unwrap();
    assert_eq!(captured.counts["files"], 1);
    let request = RestoreRequest { replace: true, ..RestoreRequest::default() };
    let old = source.restore(&cx, &sink.point(&captured), &request).await.unwrap().old_data.unwrap();
    assert!(before.join("file").exists() && old.join("file").exists() && !old.join(format!(".old-{TIME}")).exists());
    let again = source.backup(&cx, &Memory::default()).await.unwrap();
    assert_eq!(again.counts["files"], 1);
    assert!(again.warnings[0].starts_with("2 entries left out: folders of restores"), "{:?}", again.warnings);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_half_moved_directory_is_not_captured() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    make(&tree);
    let rest = tree.join(format!(".backstay-moving-{TIME}"));
    make(&rest);
    let (cx, source) = (context(dir.path()), Blobdir::new(config(&tree)));
    let said = source.backup(&cx, &Memory::default()).await.unwrap_err();
    assert_eq!(said.kind, ErrorKind::Failed);
    assert_eq!(said.message, format!("a restore was killed while it moved files into place in {}", tree.display()));
    let hint = format!("restore again with `--replace`; the rest of the new data is at {}.", rest.display());
    assert_eq!(said.hint, Some(hint));
    let old = tree.join(format!(".old-{TIME}"));
    make(&old);
    let hint = source.probe(&cx).await.unwrap_err().hint.unwrap();
    let places = format!("; the old data is at {}, the rest of the new at {}.", old.display(), rest.display());
    assert_eq!(hint, format!("restore again with `--replace`{places}"));
}

/// The files of a directory, without what restores made for themselves.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    collect(dir, &mut all);
    let own = |path: &Path| path.to_str().unwrap().contains("/.old-") || path.to_str().unwrap().contains("/.backstay-");
    all.into_iter().filter(|(path, _)| !own(path)).collect()
}

#[test]
fn a_restore_into_a_mount_point_that_is_killed_leaves_old_or_new_or_says_so() {
    let traced = Command::new("strace").args(["-o", "/dev/null", "true"]).status();
    if !nix::unistd::Uid::effective().is_root() || !traced.is_ok_and(|status| status.success()) {
        eprintln!("skipped: it takes root to mount, and strace to kill");
        return;
    }
    let d = Fake::new("");
    let (root, target) = (d.root(), d.path("blobs"));
    d.configure(&format!(
        "host: h1\nstate_dir: {root}/state\nservices:\n  blobs:\n    blobdir: {{path: {root}/blobs}}\n    \
         backup_dir: {root}/local\n    keep: {{daily: 7}}\n"
    ));
    fs::create_dir(&target).unwrap();
    run("mount", ["-t", "tmpfs", "none", target.to_str().unwrap()].map(AsRef::as_ref));
    let _unmount = Unmount(target.clone());
    make(&target.join("sub"));
    fs::write(target.join("a"), "new").unwrap();
    d.run(&["backup", "--manual"]).ok();
    let new = files(&target);
    let id = d.listed().at("local")[0].clone();
    let mut said_so = 0;
    for call in 1..=5 {
        for name in ["a", "b"] {
            fs::write(target.join(name), "old").unwrap();
        }
        let old = files(&target);
        let plain = d.command(&["restore", "blobs", &id, "--replace"]);
        let mut command = Command::new("strace");
        command.args(["-f", "-qqq", "-o", "/dev/null", "-e", "trace=rename"]);
        command.args(["-e", &format!("inject=rename:signal=KILL:when={call}")]);
        command.arg(plain.get_program()).args(plain.get_args()).stdout(Stdio::null()).stderr(Stdio::piped());
        let out = command.output().unwrap();
        assert!(!out.status.success(), "it was not killed at rename {call}: {}", String::from_utf8_lossy(&out.stderr));
        let backup = d.run(&["backup", "--manual"]);
        if backup.code == 0 {
            let found = files(&target);
            assert!(found == old || found == new, "captured though half moved, at rename {call}: {:?}", found.keys());
        } else {
            said_so += 1;
            assert!(backup.stderr.contains("was killed while it moved files into place"), "{}", backup.stderr);
        }
        d.run(&["restore", "blobs", &id, "--replace"]).ok();
        assert_eq!(files(&target), new, "at rename {call}");
        let left: Vec<_> = fs::read_dir(&target).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert!(left.iter().all(|name| !name.to_str().unwrap().starts_with(".backstay-")), "{left:?}");
        for name in left.iter().filter(|name| name.to_str().unwrap().starts_with(".old-")) {
            fs::remove_dir_all(target.join(name)).unwrap();
        }
    }
    assert!(said_so >= 3, "only {said_so} half moves were met");
}
