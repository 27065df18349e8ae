//! A tree with everything in it, and a comparison of all that can be seen of two trees.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;

/// Runs a program that must succeed; what it said on stderr.
pub fn run<'a>(program: &str, args: impl IntoIterator<Item = &'a OsStr>) -> String {
    let out = Command::new(program).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.success(), "{program}: {said}");
    said
}

/// Unmounts at the end of a test.
pub struct Unmount(pub PathBuf);
impl Drop for Unmount {
    fn drop(&mut self) {
        run("umount", [self.0.as_os_str()]);
    }
}

fn touch(path: &Path, secs: i64, nanos: i64) {
    let at = TimeSpec::new(secs, nanos);
    utimensat(nix::fcntl::AT_FDCWD, path, &at, &at, UtimensatFlags::NoFollowSymlink).unwrap();
}

pub fn full_tree(root: &Path) {
    fs::create_dir_all(root.join("a/b/c")).unwrap();
    let write = |path: &str, bytes: &[u8]| fs::write(root.join(path), bytes).unwrap();
    write("empty", b"");
    write("a/one", b"1");
    write("a/block", &[7; 512]);
    write("a/block and one", &[7; 513]);
    write("large", &(0..900_001_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>());
    for mode in [0o000, 0o4755, 0o2711, 0o1644] {
        let path = format!("a/mode-{mode:o}");
        write(&path, b"m");
        chown(root.join(&path), Some(33), Some(3_000_000)).unwrap();
        fs::set_permissions(root.join(&path), PermissionsExt::from_mode(mode)).unwrap();
    }
    names(root);
    links_and_nodes(root);
    sparse(root);
    attributes(root);
    chown(root.join("a/b"), Some(4_000_000_000), Some(12345)).unwrap();
    fs::set_permissions(root.join("a/b/c"), PermissionsExt::from_mode(0o1777)).unwrap();
    fs::set_permissions(root.join("a/b"), PermissionsExt::from_mode(0o2550)).unwrap();
    for (path, secs, nanos) in [
        ("a/one", 1_600_000_000, 123_456_789),
        ("a/block", -2, 500_000_000),
        ("a/block and one", 0, 0),
        ("empty", 10_000_000_000, 1),
        ("symlink", 1_000, 900),
        ("a/b/c", 1_500_000_000, 999_999_999),
        ("a/b", 1_400_000_000, 5),
        ("", 1_300_000_000, 70),
    ] {
        touch(&root.join(path), secs, nanos);
    }
}

fn names(root: &Path) {
    let dir = root.join("names");
    fs::create_dir(&dir).unwrap();
    let long = "x".repeat(255);
    let umlauts = "ü".repeat(127);
    let mut all: Vec<Vec<u8>> =
        ["with\nnewline", "quote'\"", "100%", "-rf", "back\\slash", "space ", "ünïcode", "日本語"]
            .iter()
            .map(|s| s.as_bytes().to_vec())
            .collect();
    all.extend([long.clone().into_bytes(), umlauts.into_bytes()]);
    all.extend([b"\xff\xfe".to_vec(), [&b"\xe9"[..], &[b'y'; 200]].concat(), b"tab\ttab".to_vec()]);
    all.extend((95..105).map(|n| vec![b'n'; n]));
    for name in &all {
        fs::write(dir.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let mut deep = dir.join("d");
    for n in 0..8 {
        deep = deep.join(OsStr::from_bytes(&[&[b'a' + n; 120][..], b"\xfc"].concat()));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "deep").unwrap();
        symlink(OsStr::from_bytes(&[&b"t\xfft"[..], &[b'l'; 150]].concat()), deep.join("link")).unwrap();
    }
    let mut plain = dir.join("e");
    for n in 0..6_u8 {
        plain = plain.join(String::from_utf8(vec![b'a' + n; 45]).unwrap());
        fs::create_dir_all(&plain).unwrap();
        fs::write(plain.join("file"), "plain").unwrap();
        symlink("é".repeat(150), plain.join("link")).unwrap();
    }
    fs::hard_link(deep.join("file"), deep.join("second")).unwrap();
}

fn links_and_nodes(root: &Path) {
    symlink("a/one", root.join("symlink")).unwrap();
    symlink("/nowhere/../at all", root.join("dangling")).unwrap();
    chown_link(&root.join("dangling"), 33, 33);
    fs::hard_link(root.join("a/block"), root.join("z-hard")).unwrap();
    for (name, kind, dev) in [
        ("fifo", SFlag::S_IFIFO, 0),
        ("char", SFlag::S_IFCHR, makedev(1, 3)),
        ("block", SFlag::S_IFBLK, makedev(259, 70_000)),
    ] {
        mknod(&root.join(name), kind, Mode::from_bits_truncate(0o640), dev).unwrap();
        fs::set_permissions(root.join(name), PermissionsExt::from_mode(0o617)).unwrap();
    }
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
}

fn chown_link(path: &Path, uid: u32, gid: u32) {
    std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
}

fn sparse(root: &Path) {
    let make = |name: &str, size: u64, data: &[(u64, &[u8])]| {
        let file = File::create(root.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
        file.sync_all().unwrap();
    };
    make("sparse-hole-only", 3_000_001, &[]);
    make("sparse-small", 60_000, &[(20_000, b"data")]);
    make("sparse-ends-with-hole", 9_000_000, &[(0, b"start"), (5_000_000, &[9; 10_000])]);
    make("sparse-ends-with-data", 12_345_678, &[(1_000_000, b"x"), (12_345_670, b"the end.")]);
    make(
        "names/\u{fc}sparse-with-a-long-name-sparse-with-a-long-name-sparse-with-a-long-name-sparse-with-a-long-name",
        5_000_000,
        &[(2_000_000, b"x")],
    );
    let odd = OsStr::from_bytes(b"names/odd\xffsparse");
    let file = File::create(root.join(odd)).unwrap();
    file.write_all_at(b"tail", 7_000_000).unwrap();
}

fn attributes(root: &Path) {
    let all: Vec<u8> = (0..=255).collect();
    xattr::set(root.join("a/one"), "user.plain", b"value").unwrap();
    xattr::set(root.join("a/one"), "user.every byte", &all).unwrap();
    xattr::set(root.join("a/one"), "user.odd=%3D\u{fc}", b"a\nb=c").unwrap();
    xattr::set(root.join("a/one"), "trusted.secret", b"\n\n").unwrap();
    xattr::set(root.join("empty"), "user.empty", b"").unwrap();
    xattr::set(root.join("sparse-small"), "user.s", b"s").unwrap();
    xattr::set(root.join("large"), "user.s", b"l").unwrap();
    xattr::set(root.join("a/b"), "user.dir", b"d").unwrap();
    xattr::set(root.join("symlink"), "trusted.link", b"l").unwrap();
    // cap_net_bind_service+ep
    let cap = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(root.join("a/block"), "security.capability", &cap).unwrap();
    let acl = |what: &str, path: &str| run("setfacl", ["-m".as_ref(), what.as_ref(), root.join(path).as_os_str()]);
    acl("u:nobody:rwx,g:54321:r-x,m::r-x", "a/block and one");
    acl("u:12345:-w-,d:u:nobody:rx,d:g:adm:rwx,d:m::rwx", "a/b/c");
    acl("u:12345:rw", "fifo");
}

/// All that can be seen of an entry, except its access and change times.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    device: u64,
    size: u64,
    content: Option<blake3::Hash>,
    link: Option<PathBuf>,
    xattrs: BTreeMap<OsString, Vec<u8>>,
    same_as: Option<PathBuf>,
    has_holes: bool,
}

/// A whole tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy(pub BTreeMap<PathBuf, Seen>);

impl Copy {
    pub fn of(root: &Path) -> Self {
        let (mut all, mut inodes) = (BTreeMap::new(), HashMap::new());
        let mut stack = vec![root.to_path_buf()];
        let mut paths = Vec::new();
        while let Some(path) = stack.pop() {
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                stack.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            }
            paths.push(path);
        }
        paths.sort();
        for path in paths {
            let stat = fs::symlink_metadata(&path).unwrap();
            if std::os::unix::fs::FileTypeExt::is_socket(&stat.file_type()) {
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_path_buf();
            let shared = stat.nlink() > 1 && !stat.is_dir();
            let same_as = shared.then(|| inodes.entry(stat.ino()).or_insert_with(|| name.clone()).clone());
            let xattrs = xattr::list(&path).unwrap();
            let seen = Seen {
                mode: stat.mode(),
                owner: (stat.uid(), stat.gid()),
                mtime: (stat.mtime(), stat.mtime_nsec()),
                device: stat.rdev(),
                size: if stat.is_dir() { 0 } else { stat.size() },
                content: stat.is_file().then(|| blake3::hash(&fs::read(&path).unwrap())),
                link: stat.is_symlink().then(|| fs::read_link(&path).unwrap()),
                xattrs: xattrs.map(|n| (n.clone(), xattr::get(&path, &n).unwrap().unwrap())).collect(),
                same_as,
                has_holes: stat.is_file() && stat.blocks() * 512 + 4096 < stat.size(),
            };
            all.insert(name, seen);
        }
        Self(all)
    }
}

pub fn compare(a: &Copy, b: &Copy) {
    for (path, seen) in &a.0 {
        assert_eq!(Some(seen), b.0.get(path), "{}", path.display());
    }
    for path in b.0.keys() {
        assert!(a.0.contains_key(path), "{} was not there before", path.display());
    }
}
