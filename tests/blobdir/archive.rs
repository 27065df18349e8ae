//! The tar writer and the extraction by themselves: against another reader, and against hostile archives.

use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;

use backstay::error::ErrorKind;
use backstay::pipeline::archive::{Copied, Member, MemberKind, Stamp, TarWriter};
use backstay::pipeline::extract::{Rules, extract, scan};
use proptest::prelude::*;

fn member(path: &[u8], kind: MemberKind, link: &[u8], size: u64) -> Member {
    Member {
        path: path.to_vec(),
        kind,
        mode: 0o644,
        uid: 0,
        gid: 0,
        uname: Vec::new(),
        gname: Vec::new(),
        mtime: Stamp { secs: 1_600_000_000, nanos: 5 },
        size,
        link: link.to_vec(),
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

fn archive(members: &[(&[u8], MemberKind, &[u8])]) -> Vec<u8> {
    let mut tar = TarWriter::new(Vec::new());
    for (path, kind, link) in members {
        let content: &[u8] = if *kind == MemberKind::File { b"evil" } else { b"" };
        tar.append(&member(path, *kind, link, content.len() as u64), content).unwrap();
    }
    tar.finish().unwrap()
}

#[test]
fn hostile_archives_write_nothing_outside() {
    use MemberKind::{Directory, File, Hardlink, Symlink};
    let dir = tempfile::tempdir().unwrap();
    let (outside, target) = (dir.path().join("outside"), dir.path().join("target"));
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    let out = outside.as_os_str().as_bytes();
    let below = [out, b"/file"].concat();
    let secret = [out, b"/secret"].concat();
    let hostile: [&[(&[u8], MemberKind, &[u8])]; 11] = [
        &[(b"../outside/file", File, b"")],
        &[(b"a/../../outside/file", File, b"")],
        &[(&below, File, b"")],
        &[(b"link", Symlink, out), (b"link/file", File, b"")],
        &[(b"link", Symlink, b"../outside"), (b"link", Directory, b""), (b"link/file", File, b"")],
        &[(b"link", Symlink, &below), (b"link", File, b"")],
        &[(b"a", Directory, b""), (b"a/link", Symlink, b"../../outside"), (b"a/link/x/file", File, b"")],
        &[(b"hard", Hardlink, &secret)],
        &[(b"hard", Hardlink, b"../outside/secret")],
        &[(b"link", Symlink, out), (b"hard", Hardlink, b"link/secret")],
        &[(b"..", Directory, b"")],
    ];
    for members in hostile {
        fs::create_dir(&target).unwrap();
        let bytes = archive(members);
        let error = extract(bytes.as_slice(), &target, Rules::default(), &mut |_, _| Ok(())).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{members:?}: {}", error.chain());
        let names: Vec<_> = fs::read_dir(&outside).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["secret"]);
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn a_length_that_does_not_fit_never_harms_the_next_member() {
    let mut tar = TarWriter::new(Vec::new());
    let append = |tar: &mut TarWriter<Vec<u8>>, name: &[u8], mut data: &[u8]| {
        tar.append_reader(&member(name, MemberKind::File, b"", 1000), &mut data, &mut |_| Ok(())).unwrap()
    };
    let short = append(&mut tar, b"short", &[1; 100]);
    let long = append(&mut tar, b"long", &[2; 5000]);
    let exact = append(&mut tar, b"exact", &[3; 1000]);
    assert_eq!(short, Copied { bytes: 1000, padded: 900, grew: false });
    assert_eq!(long, Copied { bytes: 1000, padded: 0, grew: true });
    assert_eq!(exact, Copied { bytes: 1000, padded: 0, grew: false });
    let bytes = tar.finish().unwrap();
    let mut names = Vec::new();
    let done = scan(bytes.as_slice(), &mut |m, _| {
        names.push(m.path.clone());
        Ok(())
    });
    assert_eq!(done.unwrap().counts["bytes"], 3000);
    assert_eq!(names, [&b"short"[..], b"long", b"exact"]);
}

#[test]
fn sizes_and_owners_beyond_ustar_are_kept() {
    let mut big = member(b"big", MemberKind::Hardlink, b"x", 0);
    (big.uid, big.gid) = (u32::MAX - 1, 2_097_152);
    big.mtime = Stamp { secs: -1, nanos: 1 };
    big.xattrs = vec![(b"user.a=\xff".to_vec(), (0..=255).collect())];
    let mut tar = TarWriter::new(Vec::new());
    tar.append(&big, b"").unwrap();
    let mut found = Vec::new();
    scan(tar.finish().unwrap().as_slice(), &mut |m, _| {
        found.push(m.clone());
        Ok(())
    })
    .unwrap();
    let m = &found[0];
    assert_eq!((m.uid, m.gid, m.mtime, &m.xattrs), (big.uid, big.gid, big.mtime, &big.xattrs));
}

#[test]
fn every_cut_archive_is_damaged() {
    let bytes = archive(&[(b"a", MemberKind::File, b""), (b"b", MemberKind::Directory, b"")]);
    for len in 0..bytes.len() {
        assert!(scan(&bytes[..len], &mut |_, _| Ok(())).is_err(), "{len}");
    }
    assert!(scan(bytes.as_slice(), &mut |_, _| Ok(())).is_ok());
}

fn names() -> impl Strategy<Value = Vec<u8>> {
    let part = prop::collection::vec(prop_oneof![8 => b'a'..=b'z', 1 => 1..=255_u8], 1..120)
        .prop_map(|name| name.into_iter().map(|b| if b == b'/' { b'_' } else { b }).collect::<Vec<u8>>())
        .prop_filter("dots", |name| name != b"." && name != b"..");
    prop::collection::vec(part, 1..5).prop_map(|parts| parts.join(&b'/'))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn another_reader_finds_what_was_written(
        files in prop::collection::vec((names(), prop::collection::vec(any::<u8>(), 0..2000), any::<u32>(), any::<i32>()), 1..6)
    ) {
        let mut tar = TarWriter::new(Vec::new());
        for (name, content, uid, secs) in &files {
            let mut m = member(name, MemberKind::File, b"", content.len() as u64);
            m.uid = *uid;
            m.mtime = Stamp { secs: i64::from(*secs), nanos: 0 };
            tar.append(&m, content).unwrap();
        }
        let bytes = tar.finish().unwrap();
        let mut ours = Vec::new();
        scan(bytes.as_slice(), &mut |m, d| {
            ours.push((m.path.clone(), *d.unwrap(), m.uid, m.mtime.secs));
            Ok(())
        }).unwrap();
        let expected: Vec<_> = files.iter().map(|(n, c, u, s)| (n.clone(), blake3::hash(c), *u, i64::from(*s))).collect();
        prop_assert_eq!(ours, expected);
        // The `tar` crate takes a line end for the end of a pax record.
        prop_assume!(files.iter().all(|(name, ..)| !name.contains(&b'\n')));
        let mut theirs = tar::Archive::new(bytes.as_slice());
        let mut at = 0;
        for entry in theirs.entries().unwrap() {
            let mut entry = entry.unwrap();
            let (name, content, uid, _) = &files[at];
            let path = entry.path_bytes().into_owned();
            prop_assert_eq!(&path, name);
            prop_assert_eq!(entry.header().uid().unwrap(), u64::from(*uid));
            let mut read = Vec::new();
            entry.read_to_end(&mut read).unwrap();
            prop_assert_eq!(&read, content);
            at += 1;
        }
        prop_assert_eq!(at, files.len());
    }
}
