//! A tar writer: PAX format (POSIX.1-2001) as GNU tar 1.34 and newer restores it, over any [`io::Write`].
//!
//! - A member's size is fixed in its header: what a shrinking file lacks is filled with zeros, what a growing one
//!   has more is cut, and both are reported; the next member is never damaged.
//! - Names that fit go into the ustar header byte for byte, whatever their encoding. Longer ones go into a pax
//!   record when they are UTF-8, else into GNU `L`/`K` members, which take any bytes.
//! - Sparse files: GNU PAX 1.0. Extended attributes: `SCHILY.xattr.*`. ACLs: `SCHILY.acl.*`, as text.
//! - Nothing in the bytes depends on the clock or on the process: the same tree gives the same archive.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt as _;

use nix::unistd::{Gid, Group, Uid, User, Whence, lseek};

pub mod acl;
mod header;
mod watched;

use header::{Header, pax_record, pax_time};
pub use watched::{Stopped, Watched, watched};

/// The unit of everything in a tar file.
pub const BLOCK: usize = 512;
const COPY_BYTES: usize = 256 * 1024;
static ZEROS: [u8; 4096] = [0; 4096];

/// What a member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file with content.
    File,
    /// Another name of a member that came before.
    Hardlink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

impl MemberKind {
    pub(crate) fn flag(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::Hardlink => b'1',
            Self::Symlink => b'2',
            Self::CharDevice => b'3',
            Self::BlockDevice => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }
    /// The word in an inventory.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File | Self::Hardlink => "file",
            Self::Symlink => "symlink",
            Self::CharDevice => "char-device",
            Self::BlockDevice => "block-device",
            Self::Directory => "directory",
            Self::Fifo => "fifo",
        }
    }
}

/// A moment with nanoseconds, as the file system keeps it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Seconds since 1970; negative before.
    pub secs: i64,
    /// Nanoseconds after that second.
    pub nanos: u32,
}

/// One extended attribute.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// All but the content of one member.
#[derive(Debug, Clone)]
pub struct Member {
    /// Relative, without a leading or trailing slash; the root directory is `.`.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Permission bits, 12 of them.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name, if the archive has one.
    pub uname: Vec<u8>,
    /// Group's name, if the archive has one.
    pub gname: Vec<u8>,
    /// Modification time.
    pub mtime: Stamp,
    /// Length of the content of a regular file, holes included.
    pub size: u64,
    /// What a symbolic link says, or the earlier member that a hard link is a name of.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u64, u64),
    /// Extended attributes, ACLs in the binary form of the kernel (`system.posix_acl_access`).
    pub xattrs: Vec<Xattr>,
}

impl Member {
    /// A file or directory as its file system tells it, without names of its owners and extended attributes.
    pub fn of(path: &str, kind: MemberKind, meta: &Metadata) -> Self {
        Self {
            path: path.as_bytes().to_vec(),
            kind,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            uname: Vec::new(),
            gname: Vec::new(),
            mtime: Stamp { secs: meta.mtime(), nanos: u32::try_from(meta.mtime_nsec()).unwrap_or(0) },
            size: if kind == MemberKind::File { meta.len() } else { 0 },
            link: Vec::new(),
            device: (0, 0),
            xattrs: Vec::new(),
        }
    }
}

/// A stretch of a sparse file that is not a hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
}

/// What became of a file's content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes of content that the archive holds (holes are not counted).
    pub bytes: u64,
    /// Bytes that the file did not have any more: zeros stand for them.
    pub padded: u64,
    /// The file had more than its declared size; the rest was left out.
    pub grew: bool,
}

/// Where the non-holes of a file are; `None` if it has no holes worth the name.
///
/// # Errors
/// What the file system says, except that it does not know holes.
pub fn segments(file: &File, size: u64) -> io::Result<Option<Vec<Segment>>> {
    let end = i64::try_from(size).map_err(io::Error::other)?;
    let (mut found, mut at) = (Vec::<Segment>::new(), 0);
    while at < end {
        let data = match lseek(file, at, Whence::SeekData) {
            Ok(offset) => offset.min(end),
            Err(nix::errno::Errno::ENXIO) => break,
            Err(nix::errno::Errno::EINVAL) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if data >= end {
            break;
        }
        let hole = match lseek(file, data, Whence::SeekHole) {
            Ok(offset) => offset.min(end),
            Err(nix::errno::Errno::ENXIO) => end,
            Err(e) => return Err(e.into()),
        };
        // GNU tar pads every stretch to a block, so all but the last must consist of whole blocks.
        let start = data.cast_unsigned() / BLOCK as u64 * BLOCK as u64;
        let stop = hole.max(data + 1).cast_unsigned().next_multiple_of(BLOCK as u64).min(size);
        match found.last_mut() {
            Some(last) if last.offset + last.len >= start => last.len = stop - last.offset,
            _ => found.push(Segment { offset: start, len: stop - start }),
        }
        at = stop.cast_signed();
    }
    let whole = found.len() == 1 && found[0] == Segment { offset: 0, len: size };
    Ok((!whole).then_some(found))
}

/// Writes members one after the other.
#[derive(Debug)]
pub struct TarWriter<W: Write> {
    out: W,
    head: Vec<u8>,
    pax: Vec<u8>,
    copy: Vec<u8>,
    users: HashMap<u32, Vec<u8>>,
    groups: HashMap<u32, Vec<u8>>,
}

impl<W: Write> TarWriter<W> {
    /// Begins an archive.
    pub fn new(out: W) -> Self {
        Self {
            out,
            head: Vec::with_capacity(4096),
            pax: Vec::new(),
            copy: Vec::new(),
            users: HashMap::new(),
            groups: HashMap::new(),
        }
    }

    /// Adds a member whose content is at hand (empty for all but regular files).
    pub fn append(&mut self, member: &Member, content: &[u8]) -> io::Result<()> {
        self.pax.clear();
        self.write_head(member, &member.path, content.len() as u64)?;
        self.out.write_all(content)?;
        self.pad(content.len() as u64)
    }

    /// Adds a regular file of exactly `member.size` bytes from `source`; `seen` is told every byte that is written.
    ///
    /// # Errors
    /// Of reading or writing; a length that does not fit is not an error, see [`Copied`].
    pub fn append_reader(
        &mut self,
        member: &Member,
        source: &mut dyn Read,
        seen: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Copied> {
        self.pax.clear();
        self.write_head(member, &member.path, member.size)?;
        let mut done = Copied::default();
        self.copy_exact(member.size, &mut |buf, _| source.read(buf), seen, &mut done)?;
        self.pad(member.size)?;
        let mut probe = [0_u8; 1];
        done.grew = done.padded == 0 && retry(|| source.read(&mut probe))? > 0;
        Ok(done)
    }

    /// Adds a file with holes, read by `read_at`; `seen` is told every byte of the content, zeros for the holes.
    ///
    /// # Errors
    /// Of reading or writing; a length that does not fit is not an error, see [`Copied`].
    pub fn append_sparse(
        &mut self,
        member: &Member,
        read_at: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
        segments: &[Segment],
        seen: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<Copied> {
        let map = sparse_map(segments, member.size);
        let data: u64 = segments.iter().map(|s| s.len).sum();
        self.pax.clear();
        pax_record(&mut self.pax, b"GNU.sparse.major", b"1");
        pax_record(&mut self.pax, b"GNU.sparse.minor", b"0");
        pax_record(&mut self.pax, b"GNU.sparse.name", &member.path);
        pax_record(&mut self.pax, b"GNU.sparse.realsize", member.size.to_string().as_bytes());
        let cut = member.path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let (folder, name) = member.path.split_at(cut);
        let mut alias = [folder, b"GNUSparseFile.0/", name].concat();
        alias.truncate(header::NAME_BYTES);
        self.write_head(member, &alias, map.len() as u64 + data)?;
        self.out.write_all(&map)?;
        let (mut done, mut at) = (Copied::default(), 0);
        for segment in segments {
            zeros(segment.offset - at, seen)?;
            let start = segment.offset;
            self.copy_exact(segment.len, &mut |buf, from| read_at(buf, start + from), seen, &mut done)?;
            self.pad(segment.len)?;
            at = segment.offset + segment.len;
        }
        zeros(member.size - at, seen)?;
        done.grew = retry(|| read_at(&mut [0_u8; 1], member.size))? > 0;
        Ok(done)
    }

    /// The end mark; gives the sink back.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&ZEROS[..2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn copy_exact(
        &mut self,
        size: u64,
        read: &mut dyn FnMut(&mut [u8], u64) -> io::Result<usize>,
        seen: &mut dyn FnMut(&[u8]) -> io::Result<()>,
        done: &mut Copied,
    ) -> io::Result<()> {
        if self.copy.is_empty() {
            self.copy.resize(COPY_BYTES, 0);
        }
        let mut at = 0;
        while at < size {
            let want = usize::try_from(size - at).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
            let mut got = retry(|| read(&mut self.copy[..want], at))?;
            if got == 0 {
                self.copy[..want].fill(0);
                done.padded += want as u64;
                got = want;
            }
            seen(&self.copy[..got])?;
            self.out.write_all(&self.copy[..got])?;
            at += got as u64;
        }
        done.bytes += size;
        Ok(())
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if over == 0 { Ok(()) } else { self.out.write_all(&ZEROS[..BLOCK - over]) }
    }

    /// Extension members, if needed, and the ustar header, in one write. `self.pax` may hold records already.
    fn write_head(&mut self, member: &Member, path: &[u8], size: u64) -> io::Result<()> {
        let slash = member.kind == MemberKind::Directory;
        let name = if slash { [path, b"/"].concat() } else { path.to_vec() };
        let uname = self.users.entry(member.uid).or_insert_with(|| user_name(member.uid)).clone();
        let gname = self.groups.entry(member.gid).or_insert_with(|| group_name(member.gid)).clone();
        self.head.clear();
        let mut header = Header::new(member.kind.flag());
        let mut pax = std::mem::take(&mut self.pax);
        if !header.name(&name) {
            long_name(&mut self.head, &mut pax, b'L', b"path", &name);
        }
        if !header.link(&member.link) {
            long_name(&mut self.head, &mut pax, b'K', b"linkpath", &member.link);
        }
        for (fits, key, value) in [
            (header.size(size), "size", size),
            (header.uid(member.uid), "uid", u64::from(member.uid)),
            (header.gid(member.gid), "gid", u64::from(member.gid)),
        ] {
            if !fits {
                pax_record(&mut pax, key.as_bytes(), value.to_string().as_bytes());
            }
        }
        if !header.owner_names(&uname, &gname) {
            for (key, value) in [(&b"uname"[..], &uname), (b"gname", &gname)] {
                if std::str::from_utf8(value).is_ok() {
                    pax_record(&mut pax, key, value);
                }
            }
        }
        if !header.mtime(member.mtime) {
            pax_record(&mut pax, b"mtime", pax_time(member.mtime).as_bytes());
        }
        header.mode(member.mode);
        header.device(member.device);
        self.attributes(member, &mut pax);
        if !pax.is_empty() {
            header::extension(&mut self.head, b'x', &pax_name(path), &pax);
        }
        header.finish(&mut self.head);
        self.pax = pax;
        self.out.write_all(&self.head)
    }

    fn attributes(&mut self, member: &Member, pax: &mut Vec<u8>) {
        for (name, value) in &member.xattrs {
            let key = match name.as_slice() {
                b"system.posix_acl_access" => &b"SCHILY.acl.access"[..],
                b"system.posix_acl_default" => b"SCHILY.acl.default",
                _ => {
                    pax_record(pax, &[b"SCHILY.xattr.", acl::escape(name).as_slice()].concat(), value);
                    continue;
                }
            };
            let (users, groups) = (&mut self.users, &mut self.groups);
            let text = acl::to_text(
                value,
                |uid| users.entry(uid).or_insert_with(|| user_name(uid)).clone(),
                |gid| groups.entry(gid).or_insert_with(|| group_name(gid)).clone(),
            );
            match text {
                Some(text) => pax_record(pax, key, &text),
                None => pax_record(pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value),
            }
        }
    }
}

fn long_name(head: &mut Vec<u8>, pax: &mut Vec<u8>, flag: u8, key: &[u8], value: &[u8]) {
    if std::str::from_utf8(value).is_ok() {
        pax_record(pax, key, value);
    } else {
        header::extension(head, flag, b"././@LongLink", &[value, b"\0"].concat());
    }
}

fn pax_name(path: &[u8]) -> Vec<u8> {
    let base = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    let mut name = [b"PaxHeaders.0/", base].concat();
    name.truncate(header::NAME_BYTES);
    name
}

fn sparse_map(segments: &[Segment], size: u64) -> Vec<u8> {
    let trailing = segments.last().is_none_or(|s| s.offset + s.len < size);
    let mut map = format!("{}\n", segments.len() + usize::from(trailing));
    for segment in segments {
        map.push_str(&format!("{}\n{}\n", segment.offset, segment.len));
    }
    if trailing {
        map.push_str(&format!("{size}\n0\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

pub(crate) fn zeros(mut n: u64, seen: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    while n > 0 {
        let len = usize::try_from(n).map_or(ZEROS.len(), |n| n.min(ZEROS.len()));
        seen(&ZEROS[..len])?;
        n -= len as u64;
    }
    Ok(())
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn user_name(uid: u32) -> Vec<u8> {
    User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|u| u.name.into_bytes()).unwrap_or_default()
}

fn group_name(gid: u32) -> Vec<u8> {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|g| g.name.into_bytes()).unwrap_or_default()
}
