//! One entry of a directory: its metadata, and its content if that is small.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, major, minor};

use super::{Hold, Moment};
use crate::error::{Error, Result};
use crate::pipeline::archive::{Member, MemberKind, Stamp, Xattr};

/// Files up to this size are read ahead.
pub(super) const SMALL_BYTES: u64 = 256 * 1024;

/// An open directory of the walk.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) fd: OwnedFd,
    /// Relative to the root, empty for the root itself.
    pub(super) path: Vec<u8>,
    pub(super) device: u64,
}

impl Node {
    /// The path, relative to the root, of an entry.
    pub(super) fn child(&self, name: &CStr) -> Vec<u8> {
        if self.path.is_empty() { name.to_bytes().to_vec() } else { [&self.path, &b"/"[..], name.to_bytes()].concat() }
    }
}

/// An entry that is to be loaded.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) dir: Arc<Node>,
    pub(super) name: CString,
    /// What the directory says; `false` also if it does not say.
    pub(super) regular: bool,
}

/// What an entry turned out to be.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) member: Member,
    pub(super) inode: (u64, u64),
    pub(super) links: u64,
    pub(super) changed: bool,
}

#[derive(Debug)]
pub(super) enum Outcome {
    /// All but a regular file.
    Node(Box<Loaded>),
    /// A directory that is the root of another file system and is not entered.
    Border(Box<Loaded>),
    /// A small file: its content lies in the batch, from here.
    Small(Box<Loaded>, usize, blake3::Hash),
    /// A file to be read by the writer.
    Large(Job),
    Socket(Vec<u8>),
    /// A folder that a restore made for itself.
    Own(Vec<u8>),
    Vanished(Vec<u8>),
    Failed(Error),
}

/// The contents of a batch, one after the other. Keeps its room.
#[derive(Debug, Default)]
pub(super) struct Arena {
    pub(super) bytes: Vec<u8>,
    used: usize,
}

impl Arena {
    pub(super) fn clear(&mut self) {
        self.used = 0;
    }
    fn room(&mut self, len: usize) -> &mut [u8] {
        if self.bytes.len() < self.used + len {
            self.bytes.resize(self.used + len, 0);
        }
        &mut self.bytes[self.used..self.used + len]
    }
}

/// What all that load share.
#[derive(Debug, Clone)]
pub(super) struct Loader {
    pub(super) root: PathBuf,
    pub(super) hold: Hold,
}

impl Loader {
    pub(super) fn full(&self, path: &[u8]) -> PathBuf {
        self.root.join(OsStr::from_bytes(path))
    }

    pub(super) fn failed(&self, path: &[u8], e: impl Into<io::Error>) -> Error {
        Error::io(e.into(), format!("could not read {}", self.full(path).display()))
            .hint("make it readable for the agent, repair its disk, or exclude it.")
    }

    pub(super) fn load(&self, job: Job, arena: &mut Arena) -> Outcome {
        let path = job.dir.child(&job.name);
        match self.try_load(job, &path, arena) {
            Ok(outcome) => outcome,
            Err(e) if is_gone(&e) => Outcome::Vanished(path),
            Err(e) => Outcome::Failed(self.failed(&path, e)),
        }
    }

    fn try_load(&self, job: Job, path: &[u8], arena: &mut Arena) -> io::Result<Outcome> {
        self.hold.at(Moment::Open, || self.full(path))?;
        if job.regular
            && let Some(file) = open_regular(&job)?
        {
            let stat = fstat(&file)?;
            if kind_of(&stat) == Some(MemberKind::File) {
                let holes = stat.st_size > 4096 && has_holes(&stat);
                if stat.st_size.cast_unsigned() > SMALL_BYTES || holes {
                    return Ok(Outcome::Large(job));
                }
                return self.small(&file, stat, path, arena);
            }
        }
        let stat = fstatat(&job.dir.fd, job.name.as_c_str(), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let Some(kind) = kind_of(&stat) else { return Ok(Outcome::Socket(path.to_vec())) };
        match kind {
            MemberKind::File => return self.try_load(Job { regular: true, ..job }, path, arena),
            // It was none when the directory was listed: what was listed is gone.
            MemberKind::Directory => return Ok(Outcome::Vanished(path.to_vec())),
            _ => {}
        }
        let link = if kind == MemberKind::Symlink {
            readlinkat(&job.dir.fd, job.name.as_c_str())?.into_vec()
        } else {
            Vec::new()
        };
        let by_path = Path::new("/proc/self/fd").join(job.dir.fd.as_raw_fd().to_string());
        let by_path = by_path.join(OsStr::from_bytes(job.name.to_bytes()));
        let xattrs = collect(xattr::list(&by_path), |name| xattr::get(&by_path, name))?;
        Ok(Outcome::Node(Box::new(loaded(path, kind, &stat, link, xattrs))))
    }

    /// Reads a small file; once more if it changed meanwhile.
    fn small(&self, file: &File, mut stat: FileStat, path: &[u8], arena: &mut Arena) -> io::Result<Outcome> {
        let start = arena.used;
        for last in [false, true] {
            let expected = usize::try_from(stat.st_size).unwrap_or(0);
            let got = read_small(file, arena, expected)?;
            let xattrs = attributes(file)?;
            self.hold.at(Moment::Read, || self.full(path))?;
            let after = fstat(file)?;
            let changed = got != expected || !same(&stat, &after);
            if changed && !last && after.st_size.cast_unsigned() <= SMALL_BYTES {
                stat = after;
                continue;
            }
            let mut loaded = loaded(path, MemberKind::File, &stat, Vec::new(), xattrs);
            loaded.member.size = got as u64;
            loaded.changed = changed;
            let digest = blake3::hash(&arena.bytes[start..start + got]);
            arena.used = start + got;
            return Ok(Outcome::Small(Box::new(loaded), start, digest));
        }
        Err(io::Error::other("a file was read twice and still not read"))
    }

    /// Opens a file for the writer: nothing but its metadata is read. `None` if it is gone.
    pub(super) fn open_large(&self, job: &Job, path: &[u8]) -> Result<Option<(File, FileStat, Loaded)>> {
        let open = || -> io::Result<Option<_>> {
            let Some(file) = open_regular(job)? else { return Ok(None) };
            let stat = fstat(&file)?;
            if kind_of(&stat) != Some(MemberKind::File) {
                return Ok(None);
            }
            let xattrs = attributes(&file)?;
            let loaded = loaded(path, MemberKind::File, &stat, Vec::new(), xattrs);
            Ok(Some((file, stat, loaded)))
        };
        match open() {
            Ok(found) => Ok(found),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(self.failed(path, e)),
        }
    }

    /// Opens a directory and reads its metadata.
    pub(super) fn directory(&self, at: &OwnedFd, name: &CStr, path: &[u8]) -> io::Result<(File, Loaded)> {
        self.hold.at(Moment::Open, || self.full(path))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = File::from(openat(at, name, flags, Mode::empty())?);
        let stat = fstat(&fd)?;
        let xattrs = attributes(&fd)?;
        let name = if path.is_empty() { b"." } else { path };
        let loaded = loaded(name, MemberKind::Directory, &stat, Vec::new(), xattrs);
        Ok((fd, loaded))
    }
}

/// Whether an entry that was listed is not there any more.
pub(super) fn is_gone(e: &io::Error) -> bool {
    let gone = [Errno::ENOENT, Errno::ESTALE];
    e.raw_os_error().is_some_and(|code| gone.contains(&Errno::from_raw(code)))
}

/// Whether nothing was written to a file between two looks at it.
pub(super) fn same(a: &FileStat, b: &FileStat) -> bool {
    (a.st_size, a.st_mtime, a.st_mtime_nsec, a.st_ctime, a.st_ctime_nsec)
        == (b.st_size, b.st_mtime, b.st_mtime_nsec, b.st_ctime, b.st_ctime_nsec)
}

/// Whether fewer blocks belong to a file than its length asks for.
pub(super) fn has_holes(stat: &FileStat) -> bool {
    stat.st_blocks.saturating_mul(512) < stat.st_size
}

/// `None` if it is not a regular file any more. Without touching the access time, where that is allowed.
fn open_regular(job: &Job) -> io::Result<Option<File>> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut found = openat(&job.dir.fd, job.name.as_c_str(), flags | OFlag::O_NOATIME, Mode::empty());
    if matches!(found, Err(Errno::EPERM)) {
        found = openat(&job.dir.fd, job.name.as_c_str(), flags, Mode::empty());
    }
    match found {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(Errno::ELOOP | Errno::ENXIO) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

fn read_small(file: &File, arena: &mut Arena, expected: usize) -> io::Result<usize> {
    // One byte more, so that one call shows that the file has not grown.
    let room = arena.room(expected + 1);
    let mut got = 0;
    while got < room.len() {
        let n = match file.read_at(&mut room[got..], got as u64) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        got += n;
        if n == 0 || got == expected {
            break;
        }
    }
    Ok(got)
}

fn attributes(file: &File) -> io::Result<Vec<Xattr>> {
    collect(xattr::FileExt::list_xattr(file), |name| xattr::FileExt::get_xattr(file, name))
}

fn collect(
    names: io::Result<xattr::XAttrs>,
    get: impl Fn(&OsStr) -> io::Result<Option<Vec<u8>>>,
) -> io::Result<Vec<Xattr>> {
    let unsupported = |e: &io::Error| {
        e.raw_os_error().is_some_and(|code| [Errno::EOPNOTSUPP, Errno::ENOSYS].contains(&Errno::from_raw(code)))
    };
    let names = match names {
        Ok(names) => names,
        Err(e) if unsupported(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for name in names {
        match get(&name) {
            Ok(Some(value)) => found.push((name.into_vec(), value)),
            Ok(None) => {}
            Err(e) if unsupported(&e) => {}
            Err(e) => return Err(e),
        }
    }
    found.sort();
    Ok(found)
}

fn kind_of(stat: &FileStat) -> Option<MemberKind> {
    Some(match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFREG => MemberKind::File,
        SFlag::S_IFDIR => MemberKind::Directory,
        SFlag::S_IFLNK => MemberKind::Symlink,
        SFlag::S_IFIFO => MemberKind::Fifo,
        SFlag::S_IFCHR => MemberKind::CharDevice,
        SFlag::S_IFBLK => MemberKind::BlockDevice,
        _ => return None,
    })
}

fn loaded(path: &[u8], kind: MemberKind, stat: &FileStat, link: Vec<u8>, xattrs: Vec<Xattr>) -> Loaded {
    let device = matches!(kind, MemberKind::CharDevice | MemberKind::BlockDevice);
    let member = Member {
        path: path.to_vec(),
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        uname: Vec::new(),
        gname: Vec::new(),
        mtime: Stamp { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
        size: if kind == MemberKind::File { stat.st_size.cast_unsigned() } else { 0 },
        link,
        device: if device { (major(stat.st_rdev), minor(stat.st_rdev)) } else { (0, 0) },
        xattrs,
    };
    Loaded { member, inode: (stat.st_dev, stat.st_ino), links: stat.st_nlink, changed: false }
}
