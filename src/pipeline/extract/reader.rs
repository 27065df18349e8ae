//! A tar reader for what [`crate::pipeline::archive`] and GNU tar write: ustar, pax, GNU long names, sparse files of
//! GNU PAX 1.0. Values of pax records are bytes: they may hold line ends.

use std::io::{self, BufRead};

use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::archive::{BLOCK, Member, MemberKind, Segment, Stamp, acl};

/// No pax header and no long name is greater; a damaged length must not eat the memory.
const MAX_EXTENSION_BYTES: u64 = 64 << 20;
const MAX_SEGMENTS: u64 = 64 << 20;

/// Reads members one after the other.
#[derive(Debug)]
pub struct TarReader<R> {
    from: R,
    left: u64,
    padding: u64,
    /// Bytes of content that were lent, and are consumed before anything else is read.
    lent: usize,
    strip: Strip,
}

/// Whether all names begin with the path of the directory that was archived, which is taken off.
#[derive(Debug)]
enum Strip {
    No,
    /// The first member will say it.
    FirstMember,
    Prefix(Vec<u8>),
}

impl Strip {
    /// What stands behind the prefix.
    fn rest(&self, path: &[u8]) -> Result<Vec<u8>> {
        let Self::Prefix(prefix) = self else { return Ok(path.to_vec()) };
        match path.strip_prefix(prefix.as_slice()) {
            Some([]) => Ok(b".".to_vec()),
            Some([b'/', rest @ ..]) if !rest.is_empty() => Ok(rest.to_vec()),
            _ => Err(damaged(&format!("{} is not below {}", super::show(path), super::show(prefix)))),
        }
    }
}

/// One member and how its content is laid out.
#[derive(Debug)]
pub struct Found {
    /// Path without leading `./` and trailing slashes, otherwise as it stands: not yet checked. `.` is the root.
    pub member: Member,
    /// Where the content goes, for a sparse file.
    pub segments: Option<Vec<Segment>>,
}

#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Extension {
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.records.iter().rev().find(|(k, _)| k == key).map(|(_, v)| v.as_slice())
    }
    fn number(&self, key: &[u8]) -> Result<Option<u64>> {
        self.get(key).map(|v| decimal(v).ok_or_else(|| damaged("a number in a pax record cannot be read"))).transpose()
    }
}

impl<R: BufRead> TarReader<R> {
    /// Reads from the beginning of an archive.
    pub fn new(from: R) -> Self {
        Self { from, left: 0, padding: 0, lent: 0, strip: Strip::No }
    }

    /// Reads an archive whose first member is the directory that was archived, with its path: absolute, or without
    /// the first slash. That path is taken off all names, and nothing else; a name outside of it is an error.
    pub fn stripped(from: R) -> Self {
        Self { strip: Strip::FirstMember, ..Self::new(from) }
    }

    /// The next member; `None` after the end mark. What is left of the content of the last one is skipped.
    pub fn next_member(&mut self) -> Result<Option<Found>> {
        while self.read_content()?.is_some() {}
        let mut extension = Extension::default();
        loop {
            let header = self.block()?;
            if header.iter().all(|b| *b == 0) {
                if self.block()?.iter().any(|b| *b != 0) {
                    return Err(damaged("a block of zeros stands in the middle"));
                }
                return Ok(None);
            }
            check_sum(&header)?;
            let size = number(&header[124..136]).ok_or_else(|| damaged("a size cannot be read"))?;
            match header[156] {
                b'x' => parse_records(&self.extension(size)?, &mut extension.records)?,
                b'g' => drop(self.extension(size)?),
                b'L' => extension.path = Some(until_nul(&self.extension(size)?).to_vec()),
                b'K' => extension.link = Some(until_nul(&self.extension(size)?).to_vec()),
                flag => {
                    let mut found = self.member(&header, flag, size, &extension)?;
                    self.take_off(&mut found.member)?;
                    return Ok(Some(found));
                }
            }
        }
    }

    fn take_off(&mut self, member: &mut Member) -> Result<()> {
        if matches!(self.strip, Strip::FirstMember) {
            if member.kind != MemberKind::Directory {
                return Err(damaged("it does not begin with the directory that was archived"));
            }
            self.strip = Strip::Prefix(member.path.clone());
        }
        member.path = self.strip.rest(&member.path)?;
        if member.kind == MemberKind::Hardlink {
            member.link = self.strip.rest(&member.link)?;
        }
        Ok(())
    }

    /// The next bytes of the present member's content; `None` at its end.
    pub fn read_content(&mut self) -> Result<Option<&[u8]>> {
        self.take_back();
        if self.left == 0 {
            self.skip_padding()?;
            return Ok(None);
        }
        self.wait()?;
        let bytes = self.from.fill_buf()?;
        let n = usize::try_from(self.left).map_or(bytes.len(), |left| left.min(bytes.len()));
        if n == 0 {
            return Err(damaged("it ends in the middle of a file"));
        }
        self.lent = n;
        self.left -= n as u64;
        Ok(Some(&bytes[..n]))
    }

    /// Reads what follows the end mark, to the very end of the stream.
    pub fn drain(mut self) -> Result<()> {
        self.take_back();
        loop {
            self.wait()?;
            match self.from.fill_buf()?.len() {
                0 => return Ok(()),
                n => self.from.consume(n),
            }
        }
    }

    fn take_back(&mut self) {
        self.from.consume(std::mem::take(&mut self.lent));
    }

    /// Until there are bytes to be had, or the end.
    fn wait(&mut self) -> io::Result<()> {
        loop {
            match self.from.fill_buf() {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                other => return other.map(drop),
            }
        }
    }

    fn skip_padding(&mut self) -> Result<()> {
        let n = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(0);
        self.fill(&mut [0; BLOCK][..n])
    }

    fn fill(&mut self, all: &mut [u8]) -> Result<()> {
        self.take_back();
        self.from.read_exact(all).map_err(|e| match e.kind() {
            io::ErrorKind::UnexpectedEof => damaged("it ends before its end mark"),
            _ => e.into(),
        })
    }

    fn block(&mut self) -> Result<[u8; BLOCK]> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        Ok(block)
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_EXTENSION_BYTES {
            return Err(damaged("an extension is too long"));
        }
        self.begin(size);
        let mut body = Vec::new();
        while let Some(bytes) = self.read_content()? {
            body.extend_from_slice(bytes);
        }
        Ok(body)
    }

    fn member(&mut self, header: &[u8; BLOCK], flag: u8, size: u64, extension: &Extension) -> Result<Found> {
        let kind = kind_of(flag, header)?;
        let size = extension.number(b"size")?.unwrap_or(size);
        let stored = if matches!(kind, MemberKind::File) { size } else { 0 };
        self.begin(if matches!(kind, MemberKind::Hardlink) { size } else { stored });
        let path = match (extension.get(b"GNU.sparse.name"), extension.get(b"path"), &extension.path) {
            (Some(name), _, _) | (None, Some(name), _) => name.to_vec(),
            (None, None, Some(name)) => name.clone(),
            (None, None, None) => ustar_name(header),
        };
        let link = match (extension.get(b"linkpath"), &extension.link) {
            (Some(link), _) => link.to_vec(),
            (None, Some(link)) => link.clone(),
            (None, None) => until_nul(&header[157..257]).to_vec(),
        };
        let id = |range: std::ops::Range<usize>, key: &[u8]| -> Result<u32> {
            let value = extension.number(key)?.or_else(|| number(&header[range]));
            value.and_then(|v| u32::try_from(v).ok()).ok_or_else(|| damaged("an owner cannot be read"))
        };
        let text = |range: std::ops::Range<usize>, key: &[u8]| {
            extension.get(key).unwrap_or_else(|| until_nul(&header[range])).to_vec()
        };
        let mut member = Member {
            path: clean(&path),
            kind,
            mode: u32::try_from(number(&header[100..108]).unwrap_or(0) & 0o7777).unwrap_or(0),
            uid: id(108..116, b"uid")?,
            gid: id(116..124, b"gid")?,
            uname: text(265..297, b"uname"),
            gname: text(297..329, b"gname"),
            mtime: mtime_of(header, extension)?,
            size: stored,
            link: if kind == MemberKind::Hardlink { clean(&link) } else { link },
            device: (number(&header[329..337]).unwrap_or(0), number(&header[337..345]).unwrap_or(0)),
            xattrs: xattrs_of(extension),
        };
        let segments = self.sparse(&mut member, extension)?;
        Ok(Found { member, segments })
    }

    fn sparse(&mut self, member: &mut Member, extension: &Extension) -> Result<Option<Vec<Segment>>> {
        let Some(size) = extension.number(b"GNU.sparse.realsize")? else { return Ok(None) };
        if extension.get(b"GNU.sparse.major") != Some(b"1") || member.kind != MemberKind::File {
            return Err(damaged("a sparse file is in a form that is not understood"));
        }
        let mut text = MapText { block: [0; BLOCK], at: BLOCK };
        let count = text.number(self)?;
        if count > MAX_SEGMENTS {
            return Err(damaged("the map of a sparse file is too long"));
        }
        let (mut segments, mut end) = (Vec::new(), 0_u64);
        for _ in 0..count {
            let segment = Segment { offset: text.number(self)?, len: text.number(self)? };
            let stop = segment.offset.checked_add(segment.len);
            if segment.offset < end || stop.is_none_or(|stop| stop > size) {
                return Err(damaged("the map of a sparse file contradicts itself"));
            }
            end = segment.offset + segment.len;
            segments.push(segment);
        }
        if segments.iter().map(|s| s.len).sum::<u64>() != self.left {
            return Err(damaged("the map of a sparse file does not fit its content"));
        }
        member.size = size;
        Ok(Some(segments))
    }
}

/// The decimal numbers at the beginning of a sparse file's content, a line each, padded to a block.
struct MapText {
    block: [u8; BLOCK],
    at: usize,
}

impl MapText {
    fn number<R: BufRead>(&mut self, from: &mut TarReader<R>) -> Result<u64> {
        let mut digits = Vec::new();
        loop {
            if self.at == BLOCK {
                from.left = from.left.checked_sub(BLOCK as u64).ok_or_else(|| damaged("a sparse map is cut"))?;
                self.block = from.block()?;
                self.at = 0;
            }
            let byte = self.block[self.at];
            self.at += 1;
            if byte == b'\n' {
                return decimal(&digits).ok_or_else(|| damaged("a number in a sparse map cannot be read"));
            }
            if digits.len() >= 20 {
                return Err(damaged("a number in a sparse map is too long"));
            }
            digits.push(byte);
        }
    }
}

fn kind_of(flag: u8, header: &[u8; BLOCK]) -> Result<MemberKind> {
    Ok(match flag {
        // Before ustar, a slash at the end was all that told a directory.
        0 if ustar_name(header).ends_with(b"/") => MemberKind::Directory,
        b'0' | 0 | b'7' => MemberKind::File,
        b'1' => MemberKind::Hardlink,
        b'2' => MemberKind::Symlink,
        b'3' => MemberKind::CharDevice,
        b'4' => MemberKind::BlockDevice,
        b'5' => MemberKind::Directory,
        b'6' => MemberKind::Fifo,
        _ => return Err(damaged("it holds a member of an unknown type")),
    })
}

pub(crate) fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the archive is damaged: {why}"))
}

fn check_sum(header: &[u8; BLOCK]) -> Result<()> {
    let sum: u64 =
        header.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { 32 } else { u64::from(*b) }).sum();
    if number(&header[148..156]) == Some(sum) { Ok(()) } else { Err(damaged("the sum of a header is wrong")) }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|b| *b == 0).next().unwrap_or_default()
}

fn ustar_name(header: &[u8; BLOCK]) -> Vec<u8> {
    let (name, prefix) = (until_nul(&header[..100]), until_nul(&header[345..500]));
    if prefix.is_empty() || &header[257..263] != b"ustar\0" { name.to_vec() } else { [prefix, b"/", name].concat() }
}

/// Without leading `./` and trailing `/`. What is left of an absolute path stays absolute, to be refused later.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut path = path;
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    while path.len() > 1 && path.ends_with(b"/") {
        path = &path[..path.len() - 1];
    }
    if path.is_empty() { b".".to_vec() } else { path.to_vec() }
}

fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let bytes = field.iter().enumerate().map(|(at, b)| if at == 0 { b & 0x7f } else { *b });
        return bytes.into_iter().try_fold(0_u64, |n, b| n.checked_mul(256)?.checked_add(u64::from(b)));
    }
    let text: Vec<u8> = until_nul(field).iter().copied().filter(|b| *b != b' ').collect();
    text.iter().try_fold(0_u64, |n, b| {
        let digit = b.checked_sub(b'0').filter(|d| *d < 8)?;
        n.checked_mul(8)?.checked_add(u64::from(digit))
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn parse_records(mut body: &[u8], records: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
    let bad = || damaged("a pax record cannot be read");
    while !body.is_empty() {
        let space = body.iter().position(|b| *b == b' ').ok_or_else(bad)?;
        let len = decimal(&body[..space]).and_then(|n| usize::try_from(n).ok()).ok_or_else(bad)?;
        if len <= space + 2 || len > body.len() || body[len - 1] != b'\n' {
            return Err(bad());
        }
        let record = &body[space + 1..len - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or_else(bad)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        body = &body[len..];
    }
    Ok(())
}

fn mtime_of(header: &[u8; BLOCK], extension: &Extension) -> Result<Stamp> {
    let bad = || damaged("a time cannot be read");
    let Some(text) = extension.get(b"mtime") else {
        let secs = number(&header[136..148]).and_then(|n| i64::try_from(n).ok()).ok_or_else(bad)?;
        return Ok(Stamp { secs, nanos: 0 });
    };
    let text = std::str::from_utf8(text).map_err(|_| bad())?;
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |rest| (true, rest));
    let (secs, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let secs: i64 = secs.parse().map_err(|_| bad())?;
    let nanos: u32 = format!("{fraction:0<9.9}").parse().map_err(|_| bad())?;
    Ok(match (negative, nanos) {
        (false, nanos) => Stamp { secs, nanos },
        (true, 0) => Stamp { secs: -secs, nanos: 0 },
        (true, nanos) => Stamp { secs: -secs - 1, nanos: 1_000_000_000 - nanos },
    })
}

/// Attributes as the kernel takes them; the text of an ACL that cannot be turned into its binary form stays under
/// its pax key, so that whoever sets it can say so.
fn xattrs_of(extension: &Extension) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    for (key, value) in &extension.records {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            found.push((acl::unescape(name), value.clone()));
        }
        let name = match key.as_slice() {
            b"SCHILY.acl.access" => &b"system.posix_acl_access"[..],
            b"SCHILY.acl.default" => b"system.posix_acl_default",
            _ => continue,
        };
        match acl::from_text(value) {
            Some(binary) => found.push((name.to_vec(), binary)),
            None => found.push((key.clone(), value.clone())),
        }
    }
    found
}
