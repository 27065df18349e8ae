//! Extraction of a tar archive into an empty directory, safe against a hostile archive.
//!
//! Nothing is written outside the directory: absolute names and `..` are refused, every folder on the way is opened
//! without following symbolic links, nothing that exists is written over, and hard links lead only to members that
//! were extracted before. Owner, then attributes, then mode, then times; a directory's own when its last member is
//! written.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{BufRead, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};

use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::archive::{Member, MemberKind, Segment, zeros};

mod reader;

pub use reader::{Found, TarReader};

const ACLS: [&[u8]; 2] = [b"system.posix_acl_access", b"system.posix_acl_default"];

/// How to extract.
#[derive(Debug, Clone, Copy, Default)]
pub struct Rules {
    /// Everything belongs to this user and group, whatever the archive says.
    pub owner: Option<(u32, u32)>,
    /// Nothing is set-user-id or set-group-id, whatever the archive says.
    pub no_setid: bool,
}

/// Told every member when it is whole: the digest is that of a regular file's content, holes as zeros.
pub type Observer<'a> = dyn FnMut(&Member, Option<&blake3::Hash>) -> Result<()> + 'a;

/// What was read or written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Extracted {
    /// `files`, `directories`, `symlinks`, `hardlinks`, `other`, `bytes` (holes not counted).
    pub counts: BTreeMap<String, u64>,
    /// What could not be restored as it was, one line per sort of trouble.
    pub notes: Vec<String>,
}

impl Extracted {
    fn count(&mut self, member: &Member, stored: u64) {
        let key = match member.kind {
            MemberKind::File => "files",
            MemberKind::Hardlink => "hardlinks",
            MemberKind::Symlink => "symlinks",
            MemberKind::Directory => "directories",
            _ => "other",
        };
        *self.counts.entry(key.into()).or_default() += 1;
        *self.counts.entry("bytes".into()).or_default() += stored;
    }
}

/// Reads an archive to the very end of its stream without writing anything.
///
/// # Errors
/// `Corrupt` for a damaged archive, and whatever `observer` says.
pub fn scan<R: BufRead>(from: R, observer: &mut Observer<'_>) -> Result<Extracted> {
    let (mut tar, mut done) = (TarReader::new(from), Extracted::default());
    while let Some(found) = tar.next_member()? {
        let mut stored = 0;
        let digest = copy_content(&mut tar, &found, &mut stored, &mut Discard)?;
        done.count(&found.member, stored);
        observer(&found.member, digest.as_ref())?;
    }
    tar.drain()?;
    Ok(done)
}

/// Extracts an archive into `root`, which exists and is empty, and reads its stream to the very end.
///
/// # Errors
/// `Corrupt` for a damaged or hostile archive, the file system's own otherwise, and whatever `observer` says. What
/// was extracted until then stays: the caller removes it.
pub fn extract<R: BufRead>(from: R, root: &Path, rules: Rules, observer: &mut Observer<'_>) -> Result<Extracted> {
    extract_some(from, root, rules, &|_| true, observer)
}

/// As [`extract`], of the members that `wanted` takes; `observer` is not told of the others.
pub fn extract_some<R: BufRead>(
    from: R,
    root: &Path,
    rules: Rules,
    wanted: &dyn Fn(&Member) -> bool,
    observer: &mut Observer<'_>,
) -> Result<Extracted> {
    extract_members(TarReader::new(from), root, rules, wanted, observer)
}

/// As [`extract_some`], of an archive that holds the path of the directory it was made of: see [`TarReader::stripped`].
pub fn extract_stripped<R: BufRead>(
    from: R,
    root: &Path,
    rules: Rules,
    wanted: &dyn Fn(&Member) -> bool,
) -> Result<Extracted> {
    extract_members(TarReader::stripped(from), root, rules, wanted, &mut |_, _| Ok(()))
}

fn extract_members<R: BufRead>(
    mut tar: TarReader<R>,
    root: &Path,
    rules: Rules,
    wanted: &dyn Fn(&Member) -> bool,
    observer: &mut Observer<'_>,
) -> Result<Extracted> {
    let root =
        File::open(root).map_err(|e| Error::io(e, format!("could not open the directory {}", root.display())))?;
    let mut into = Extractor {
        root,
        rules,
        superuser: Uid::effective().is_root(),
        open: Vec::new(),
        notes: BTreeMap::new(),
        owners: BTreeMap::new(),
    };
    let mut done = Extracted::default();
    while let Some(found) = tar.next_member()? {
        if !wanted(&found.member) {
            continue;
        }
        let path = found.member.path.clone();
        let mut stored = 0;
        into.member(&mut tar, found, &mut stored, &mut done, observer)
            .map_err(|e| e.within(format!("could not extract {}", show(&path))))?;
    }
    into.leave(0)?;
    tar.drain()?;
    done.notes = into.notes.into_iter().map(|(what, n)| format!("{what} ({n} times)")).collect();
    Ok(done)
}

/// A name for a message.
pub fn show(path: &[u8]) -> String {
    format!("{:?}", OsStr::from_bytes(path))
}

/// A directory on the way to the present member.
struct Open {
    path: Vec<u8>,
    fd: File,
    meta: Option<Member>,
}

/// Sets one extended attribute.
type Setter<'a> = dyn Fn(&[u8], &[u8]) -> std::io::Result<()> + 'a;

struct Extractor {
    root: File,
    rules: Rules,
    superuser: bool,
    open: Vec<Open>,
    notes: BTreeMap<&'static str, u64>,
    owners: BTreeMap<(bool, Vec<u8>), Option<u32>>,
}

impl Extractor {
    fn member<R: BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        found: Found,
        stored: &mut u64,
        done: &mut Extracted,
        observer: &mut Observer<'_>,
    ) -> Result<()> {
        let (folder, name) = split(&found.member.path)?;
        self.enter(&folder)?;
        let digest = match found.member.kind {
            MemberKind::File => Some(self.file(tar, &found, &name, stored)?),
            MemberKind::Hardlink => {
                self.hard_link(&found.member, &name)?;
                None
            }
            MemberKind::Directory => None,
            _ => {
                self.node(&found.member, &name)?;
                None
            }
        };
        done.count(&found.member, *stored);
        observer(&found.member, digest.as_ref())?;
        if found.member.kind == MemberKind::Directory {
            self.directory(found.member, &name)?;
        }
        Ok(())
    }

    fn here(&self) -> &File {
        self.open.last().map_or(&self.root, |open| &open.fd)
    }

    /// Opens the directory `folder` (empty = the root), step by step, and finishes those that are left.
    fn enter(&mut self, folder: &[u8]) -> Result<()> {
        let inside = |open: &Open| {
            open.path == b"."
                || folder == open.path
                || (folder.starts_with(&open.path) && folder[open.path.len()] == b'/')
        };
        let keep = self.open.iter().take_while(|open| inside(open)).count();
        self.leave(keep)?;
        let known = self.open.last().filter(|o| o.path != b".").map_or(0, |o| o.path.len());
        let mut at = known;
        while at < folder.len() {
            let start = if at == 0 { 0 } else { at + 1 };
            let end = folder[start..].iter().position(|b| *b == b'/').map_or(folder.len(), |n| start + n);
            let name = text(&folder[start..end])?;
            match nix::sys::stat::mkdirat(self.here(), name.as_c_str(), Mode::S_IRWXU) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(e.into_error("could not make a folder")),
            }
            let fd = self.open_folder(&name)?;
            self.open.push(Open { path: folder[..end].to_vec(), fd, meta: None });
            at = end;
        }
        Ok(())
    }

    fn open_folder(&self, name: &CString) -> Result<File> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(self.here(), name.as_c_str(), flags, Mode::empty()) {
            Ok(fd) => Ok(File::from(fd)),
            Err(Errno::ELOOP | Errno::ENOTDIR) => Err(hostile("its folder is not a directory but another member")),
            Err(e) => Err(e.into_error("could not open a folder")),
        }
    }

    /// Finishes all but the outermost `keep` of the open directories.
    fn leave(&mut self, keep: usize) -> Result<()> {
        while self.open.len() > keep {
            if let Some(Open { path, fd, meta: Some(meta) }) = self.open.pop() {
                self.metadata(&fd, &meta).map_err(|e| e.within(format!("could not finish {}", show(&path))))?;
            }
        }
        Ok(())
    }

    fn directory(&mut self, member: Member, name: &CString) -> Result<()> {
        if member.path == b"." {
            self.leave(0)?;
            let fd = self.root.try_clone().map_err(|e| Error::io(e, "could not open the target"))?;
            self.open.push(Open { path: b".".to_vec(), fd, meta: Some(member) });
            return Ok(());
        }
        match nix::sys::stat::mkdirat(self.here(), name.as_c_str(), Mode::S_IRWXU) {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(hostile("it is there already")),
            Err(e) => return Err(e.into_error("could not make a directory")),
        }
        let fd = self.open_folder(name)?;
        self.open.push(Open { path: member.path.clone(), fd, meta: Some(member) });
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        tar: &mut TarReader<R>,
        found: &Found,
        name: &CString,
        stored: &mut u64,
    ) -> Result<blake3::Hash> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = match openat(self.here(), name.as_c_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => File::from(fd),
            Err(Errno::EEXIST | Errno::ELOOP) => return Err(hostile("it is there already")),
            Err(e) => return Err(e.into_error("could not make a file")),
        };
        let digest = copy_content(tar, found, stored, &mut file)?;
        if found.segments.is_some() {
            file.set_len(found.member.size).map_err(|e| Error::io(e, "could not set the length"))?;
        }
        self.metadata(&file, &found.member)?;
        digest.ok_or_else(|| Error::new(ErrorKind::Internal, "a file without a digest"))
    }

    fn hard_link(&self, member: &Member, name: &CString) -> Result<()> {
        let (folder, old) = split(&member.link).map_err(|e| e.within("its link leads outside"))?;
        let mut at = self.root.try_clone().map_err(|e| Error::io(e, "could not open the target"))?;
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        for part in folder.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
            let part = text(part)?;
            at = openat(&at, part.as_c_str(), flags, Mode::empty())
                .map(File::from)
                .map_err(|_| hostile("the first name of its hard link is not there"))?;
        }
        match nix::unistd::linkat(&at, old.as_c_str(), self.here(), name.as_c_str(), AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::ENOENT) => Err(hostile("the first name of its hard link is not there")),
            Err(Errno::EEXIST) => Err(hostile("it is there already")),
            Err(e) => Err(e.into_error("could not make a hard link")),
        }
    }

    fn node(&mut self, member: &Member, name: &CString) -> Result<()> {
        let here = self.here();
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let device = nix::sys::stat::makedev(member.device.0, member.device.1);
        let made = match member.kind {
            MemberKind::Symlink => nix::unistd::symlinkat(OsStr::from_bytes(&member.link), here, name.as_c_str()),
            MemberKind::CharDevice => nix::sys::stat::mknodat(here, name.as_c_str(), SFlag::S_IFCHR, mode, device),
            MemberKind::BlockDevice => nix::sys::stat::mknodat(here, name.as_c_str(), SFlag::S_IFBLK, mode, device),
            _ => nix::sys::stat::mknodat(here, name.as_c_str(), SFlag::S_IFIFO, mode, 0),
        };
        match made {
            Ok(()) => {}
            Err(Errno::EEXIST) => return Err(hostile("it is there already")),
            Err(Errno::EPERM) if !self.superuser => {
                self.note("a device could not be made without being root");
                return Ok(());
            }
            Err(e) => return Err(e.into_error("could not make it")),
        }
        self.node_metadata(member, name)
    }

    /// Of what cannot be opened: a link, a pipe, a device.
    fn node_metadata(&mut self, member: &Member, name: &CString) -> Result<()> {
        let fail = |e: Errno| e.into_error("could not restore its owner, mode or time");
        if let Some((uid, gid)) = self.owner(member) {
            let flags = AtFlags::AT_SYMLINK_NOFOLLOW;
            nix::unistd::fchownat(self.here(), name.as_c_str(), Some(uid), Some(gid), flags).map_err(fail)?;
        }
        // The last component is not followed; the one before is a directory that is held open.
        let path = Path::new("/proc/self/fd").join(self.here().as_raw_fd().to_string());
        let path = path.join(OsStr::from_bytes(name.as_bytes()));
        let set = |key: &[u8], value: &[u8]| xattr::set(&path, OsStr::from_bytes(key), value);
        let plain = self.attributes(member, false, &set);
        if member.kind != MemberKind::Symlink {
            let mode = self.mode(member);
            let flags = FchmodatFlags::FollowSymlink;
            nix::sys::stat::fchmodat(self.here(), name.as_c_str(), mode, flags).map_err(fail)?;
        }
        let acls = self.attributes(member, true, &set);
        let (at, nofollow) = (time(member), UtimensatFlags::NoFollowSymlink);
        nix::sys::stat::utimensat(self.here(), name.as_c_str(), &at, &at, nofollow).map_err(fail)?;
        self.note_all(plain + acls, "an extended attribute or ACL could not be set");
        Ok(())
    }

    fn metadata(&mut self, fd: &File, member: &Member) -> Result<()> {
        let fail = |e: Errno| e.into_error("could not restore its owner, mode or time");
        if let Some((uid, gid)) = self.owner(member) {
            nix::unistd::fchown(fd, Some(uid), Some(gid)).map_err(fail)?;
        }
        let set = |key: &[u8], value: &[u8]| xattr::FileExt::set_xattr(fd, OsStr::from_bytes(key), value);
        let plain = self.attributes(member, false, &set);
        nix::sys::stat::fchmod(fd, self.mode(member)).map_err(fail)?;
        let acls = self.attributes(member, true, &set);
        nix::sys::stat::futimens(fd, &time(member), &time(member)).map_err(fail)?;
        self.note_all(plain + acls, "an extended attribute or ACL could not be set");
        Ok(())
    }

    /// Sets those that are ACLs, or those that are not; returns how many could not be set.
    fn attributes(&self, member: &Member, acls: bool, set: &Setter<'_>) -> u64 {
        let wanted = member.xattrs.iter().filter(|(key, _)| ACLS.contains(&key.as_slice()) == acls);
        wanted.filter(|(key, value)| set(key, value).is_err()).count() as u64
    }

    /// Without the right owner, set-user-id would give rights to the wrong one.
    fn mode(&self, member: &Member) -> Mode {
        Mode::from_bits_truncate(if self.superuser && !self.rules.no_setid {
            member.mode
        } else {
            member.mode & 0o1777
        })
    }

    /// Names count before numbers, as for tar: a user may have another number on this host.
    fn owner(&mut self, member: &Member) -> Option<(Uid, Gid)> {
        if !self.superuser {
            return None;
        }
        if let Some((uid, gid)) = self.rules.owner {
            return Some((Uid::from_raw(uid), Gid::from_raw(gid)));
        }
        let mut find = |group: bool, name: &[u8], number: u32| {
            if number == 0 || name.is_empty() {
                return number;
            }
            let known = self.owners.entry((group, name.to_vec())).or_insert_with(|| {
                let name = std::str::from_utf8(name).ok()?;
                if group {
                    nix::unistd::Group::from_name(name).ok().flatten().map(|g| g.gid.as_raw())
                } else {
                    nix::unistd::User::from_name(name).ok().flatten().map(|u| u.uid.as_raw())
                }
            });
            known.unwrap_or(number)
        };
        let uid = find(false, &member.uname, member.uid);
        Some((Uid::from_raw(uid), Gid::from_raw(find(true, &member.gname, member.gid))))
    }

    fn note(&mut self, what: &'static str) {
        self.note_all(1, what);
    }
    fn note_all(&mut self, n: u64, what: &'static str) {
        if n > 0 {
            *self.notes.entry(what).or_default() += n;
        }
    }
}

fn time(member: &Member) -> TimeSpec {
    TimeSpec::new(member.mtime.secs, i64::from(member.mtime.nanos))
}

/// Folder and last name of a path that stays inside.
fn split(path: &[u8]) -> Result<(Vec<u8>, CString)> {
    if path.starts_with(b"/") {
        return Err(hostile("its name is absolute"));
    }
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return Err(hostile("its name leads outside"));
    }
    let Some((last, folders)) = parts.split_last() else { return Ok((Vec::new(), text(b".")?)) };
    Ok((folders.join(&b'/'), text(last)?))
}

fn text(name: &[u8]) -> Result<CString> {
    CString::new(name).map_err(|_| hostile("its name holds a zero byte"))
}

fn hostile(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the archive is not one of ours or was tampered with: {why}"))
}

/// An errno as an error of ours.
trait IntoError {
    fn into_error(self, message: &str) -> Error;
}
impl IntoError for Errno {
    fn into_error(self, message: &str) -> Error {
        Error::io(self.into(), message)
    }
}

/// Where content goes: a file, whose holes stay holes, or nowhere.
trait Content {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()>;
    fn seek_to(&mut self, at: u64) -> std::io::Result<()>;
}
struct Discard;
impl Content for Discard {
    fn put(&mut self, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
    fn seek_to(&mut self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
}
impl Content for File {
    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.write_all(bytes)
    }
    fn seek_to(&mut self, at: u64) -> std::io::Result<()> {
        self.seek(SeekFrom::Start(at)).map(drop)
    }
}

fn copy_content<R: BufRead>(
    tar: &mut TarReader<R>,
    found: &Found,
    stored: &mut u64,
    to: &mut dyn Content,
) -> Result<Option<blake3::Hash>> {
    if found.member.kind != MemberKind::File {
        return Ok(None);
    }
    let mut digest = blake3::Hasher::new();
    let failed = |e| Error::io(e, "could not write");
    let whole = [Segment { offset: 0, len: found.member.size }];
    let mut segments = found.segments.as_deref().unwrap_or(&whole).iter().filter(|s| s.len > 0);
    let (mut at, mut left) = (0, 0);
    while let Some(mut bytes) = tar.read_content()? {
        while !bytes.is_empty() {
            if left == 0 {
                let segment = segments.next().ok_or_else(|| hostile("its content is longer than it says"))?;
                if segment.offset > at {
                    hash_zeros(&mut digest, segment.offset - at)?;
                    to.seek_to(segment.offset).map_err(failed)?;
                }
                (at, left) = (segment.offset, segment.len);
            }
            let n = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            digest.update(&bytes[..n]);
            to.put(&bytes[..n]).map_err(failed)?;
            (at, left) = (at + n as u64, left - n as u64);
            *stored += n as u64;
            bytes = &bytes[n..];
        }
    }
    hash_zeros(&mut digest, found.member.size - at)?;
    Ok(Some(digest.finalize()))
}

fn hash_zeros(digest: &mut blake3::Hasher, n: u64) -> Result<()> {
    zeros(n, &mut |bytes| {
        digest.update(bytes);
        Ok(())
    })
    .map_err(Error::from)
}
