//! The format of CouchDB's `.couch` files: blocks of 4096 bytes whose first byte says whether a header begins there,
//! headers with a checksum, and chunks of terms at offsets.
//!
//! - A block's first byte is 1 where a header begins, else 0; it belongs to no payload.
//! - A header: length (32 bits), 16 bytes of checksum, a term. A chunk: length (31 bits) and, with the top bit set, the
//!   checksum, then the payload. Checksums are MD5, or XXH3 (128 bits) from 3.5 on.
//! - A payload is a term: plain (131), deflated (131 80), snappy (1) or zstd.
//! - The newest valid header counts; what follows it was not committed.
//!
//! Safe on any bytes: nothing is read past the length that was given, and memory grows only with what was really read.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use md5::{Digest as _, Md5};
use twox_hash::XxHash3_128;

use crate::error::{Error, ErrorKind, Result};

/// Size of a block.
pub(super) const BLOCK: u64 = 4096;
const CHECKSUM: usize = 16;
/// A header holds a few numbers and the history of node names.
const MAX_HEADER: u64 = 1 << 20;
/// No b-tree node and no shard map comes near; a damaged length must not eat the memory.
const MAX_CHUNK: u64 = 64 << 20;
/// Of a compressed term.
const MAX_TERM: u64 = 256 << 20;
const WINDOW: u64 = 64 * 1024;

/// Damage in a file of CouchDB.
pub(super) fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::Corrupt, why.to_owned())
}

/// Bytes at any offset.
pub(super) trait ReadAt {
    /// As `pread`: how many bytes were read, 0 at the end.
    fn read_some(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;
    /// All of it, where it is in memory.
    fn memory(&self) -> Option<&[u8]> {
        None
    }
}

impl ReadAt for File {
    fn read_some(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.read_at(buf, at)
    }
}

impl ReadAt for [u8] {
    fn read_some(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let rest = usize::try_from(at).ok().and_then(|at| self.get(at..)).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn memory(&self) -> Option<&[u8]> {
        Some(self)
    }
}

/// A file, up to the length that it had when it was opened.
#[derive(Debug)]
pub(super) struct Blocks<'a, R: ReadAt + ?Sized> {
    from: &'a R,
    len: u64,
}

/// A header with a checksum that fits.
#[derive(Debug)]
pub(super) struct Header {
    /// Where its block begins.
    pub(super) offset: u64,
    /// The term.
    pub(super) term: Vec<u8>,
}

impl<'a, R: ReadAt + ?Sized> Blocks<'a, R> {
    pub(super) fn new(from: &'a R, len: u64) -> Self {
        Self { from, len }
    }

    fn fill(&self, buf: &mut [u8], at: u64) -> Result<()> {
        let mut done = 0;
        while done < buf.len() {
            match self.from.read_some(&mut buf[done..], at + done as u64) {
                Ok(0) => return Err(damaged("it is shorter than it was when it was opened")),
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Error::io(e, "could not read it")),
            }
        }
        Ok(())
    }

    /// Appends `n` bytes of payload from `at` on to `out`; returns where it ended.
    fn payload(&self, at: u64, n: u64, end: u64, out: &mut Vec<u8>) -> Result<u64> {
        self.pour(at, n, end, &mut |bytes| out.extend_from_slice(bytes))
    }

    /// Hands `n` bytes of payload from `at` on to `out`, part by part; returns where it ended.
    fn pour(&self, mut at: u64, n: u64, end: u64, out: &mut dyn FnMut(&[u8])) -> Result<u64> {
        let end = end.min(self.len);
        // Each block of payload has its first byte on top.
        let raw = n.checked_add(n / (BLOCK - 1)).ok_or_else(past_end)?;
        if at > end || raw > end - at {
            return Err(past_end());
        }
        let mut left = n;
        let (mut short, mut long) = ([0_u8; 64], Vec::new());
        while left > 0 {
            let want = (left + left / (BLOCK - 1) + 2).min(WINDOW).min(end.saturating_sub(at));
            if want == 0 {
                return Err(past_end());
            }
            let want = usize::try_from(want).unwrap_or(0);
            let in_memory = self.from.memory().and_then(|all| all.get(usize::try_from(at).ok()?..)?.get(..want));
            let mut rest: &[u8] = match in_memory {
                Some(bytes) => bytes,
                None => {
                    let window = if want <= short.len() {
                        &mut short[..want]
                    } else {
                        long.resize(want, 0);
                        &mut long[..]
                    };
                    self.fill(window, at)?;
                    window
                }
            };
            while !rest.is_empty() && left > 0 {
                if at.is_multiple_of(BLOCK) {
                    rest = &rest[1..];
                    at += 1;
                    continue;
                }
                let n = (BLOCK - at % BLOCK).min(left).min(rest.len() as u64);
                let (head, tail) = rest.split_at(usize::try_from(n).unwrap_or(0));
                out(head);
                (rest, at, left) = (tail, at + n, left - n);
            }
        }
        Ok(at)
    }

    /// The newest header whose checksum fits.
    ///
    /// # Errors
    /// `Corrupt` when there is none: CouchDB would open such a file as an empty database.
    pub(super) fn newest_header(&self) -> Result<Header> {
        if self.len == 0 {
            return Err(damaged("it is empty"));
        }
        let mut block = (self.len - 1) / BLOCK;
        loop {
            let offset = block * BLOCK;
            let mut first = [0_u8];
            self.fill(&mut first, offset)?;
            if first[0] == 1 {
                match self.header_at(offset) {
                    Ok(term) => return Ok(Header { offset, term }),
                    Err(e) if e.kind == ErrorKind::Corrupt => {}
                    Err(e) => return Err(e),
                }
            }
            block = block.checked_sub(1).ok_or_else(|| damaged("it has no valid header"))?;
        }
    }

    fn header_at(&self, offset: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let at = self.payload(offset + 1, 4, self.len, &mut bytes)?;
        let len = u64::from(be32(&bytes));
        if !(CHECKSUM as u64 + 1..=MAX_HEADER).contains(&len) {
            return Err(damaged("a header's length makes no sense"));
        }
        bytes.clear();
        self.payload(at, len, self.len, &mut bytes)?;
        let term = bytes.split_off(CHECKSUM);
        check_sum(&bytes, &term)?;
        Ok(term)
    }

    /// The begin of the chunk at `at`, all of which lies before `end`. `budget` is how many bytes may still be read: the
    /// chunks of a real file do not overlap, so all of them together are no longer than the file.
    fn chunk_head(&self, at: u64, end: u64, budget: &Cell<u64>) -> Result<ChunkHead> {
        let mut bytes = Vec::with_capacity(CHECKSUM);
        let mut start = self.payload(at, 4, end, &mut bytes)?;
        let word = be32(&bytes);
        let len = u64::from(word & 0x7fff_ffff);
        let left = budget.get().checked_sub(len + 4).ok_or_else(|| damaged("its tree goes in circles"))?;
        budget.set(left);
        bytes.clear();
        if word >> 31 == 1 {
            start = self.payload(start, CHECKSUM as u64, end, &mut bytes)?;
        }
        Ok(ChunkHead { start, len, sum: bytes })
    }

    /// Reads the chunk at `at`, and unpacks its term.
    pub(super) fn chunk(&self, at: u64, end: u64, budget: &Cell<u64>) -> Result<Vec<u8>> {
        let head = self.chunk_head(at, end, budget)?;
        if head.len == 0 || head.len > MAX_CHUNK {
            return Err(damaged(&format!(
                "the chunk at offset {at} has a length that makes no sense ({} bytes)",
                head.len
            )));
        }
        // As much as was really there, whatever the length claims.
        let mut bytes = Vec::with_capacity(usize::try_from(head.len.min(WINDOW)).unwrap_or(0));
        self.payload(head.start, head.len, end, &mut bytes)?;
        if !head.sum.is_empty() {
            check_sum(&head.sum, &bytes).map_err(|e| e.within(format!("the chunk at offset {at} is damaged")))?;
        }
        unpack(bytes).map_err(|e| e.within(format!("the chunk at offset {at} cannot be unpacked")))
    }

    /// Reads the body of a document. One that is too long for the memory is compared with its checksum, and `None`.
    pub(super) fn body(&self, at: u64, end: u64, budget: &Cell<u64>) -> Result<Option<Body>> {
        let left = budget.get();
        let head = self.chunk_head(at, end, budget)?;
        if head.len <= MAX_CHUNK {
            budget.set(left);
            let term = self.chunk(at, end, budget)?;
            return Ok(Some(Body { term, summed: !head.sum.is_empty() }));
        }
        let (mut md5, mut xxh3) = (Md5::new(), XxHash3_128::new());
        self.pour(head.start, head.len, end, &mut |bytes| {
            md5.update(bytes);
            xxh3.write(bytes);
        })?;
        let fits =
            head.sum.is_empty() || head.sum == xxh3.finish_128().to_be_bytes() || head.sum == md5.finalize().as_slice();
        if fits { Ok(None) } else { Err(damaged(&format!("the chunk at offset {at} is damaged"))) }
    }

    /// Hands the bytes of a chunk that is no term to `out`; returns how many there were.
    pub(super) fn bytes(&self, at: u64, end: u64, budget: &Cell<u64>, out: &mut dyn FnMut(&[u8])) -> Result<u64> {
        let head = self.chunk_head(at, end, budget)?;
        self.pour(head.start, head.len, end, out)?;
        Ok(head.len)
    }
}

/// The begin of a chunk.
struct ChunkHead {
    /// Where its payload begins.
    start: u64,
    len: u64,
    /// Empty if it has none.
    sum: Vec<u8>,
}

/// The body of a document, as it is stored.
pub(super) struct Body {
    /// What it is made of.
    pub(super) term: Vec<u8>,
    /// Whether it had a checksum, which fits.
    pub(super) summed: bool,
}

fn past_end() -> Error {
    damaged("something lies past its end, or past its header")
}

pub(super) fn be32(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |four| u32::from_be_bytes(*four))
}

fn check_sum(sum: &[u8], bytes: &[u8]) -> Result<()> {
    // The cheaper one first.
    let fits = sum == XxHash3_128::oneshot(bytes).to_be_bytes() || sum == Md5::digest(bytes).as_slice();
    if fits { Ok(()) } else { Err(damaged("its checksum does not fit")) }
}

/// The plain term, which begins with 131, of a payload.
pub(super) fn unpack(bytes: Vec<u8>) -> Result<Vec<u8>> {
    match bytes.as_slice() {
        [131, 80, rest @ ..] => {
            let mut out = vec![131];
            inflate(flate2::read::ZlibDecoder::new(rest.get(4..).unwrap_or_default()), &mut out)?;
            Ok(out)
        }
        [131, ..] => Ok(bytes),
        [1, rest @ ..] => {
            let claimed =
                snap::raw::decompress_len(rest).map_err(|e| damaged("a snappy stream is damaged").caused_by(e))?;
            // Three bytes of snappy become at most 64: a length that claims more lies.
            if claimed as u64 > 22 * rest.len() as u64 + 64 {
                return Err(damaged("a snappy stream claims to be longer than it can be"));
            }
            let out = snap::raw::Decoder::new().decompress_vec(rest);
            out.map_err(|e| damaged("a snappy stream is damaged").caused_by(e))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut out = Vec::new();
            let decoder = zstd::stream::read::Decoder::new(bytes.as_slice());
            inflate(decoder.map_err(|e| damaged("a zstd stream is damaged").caused_by(e))?, &mut out)?;
            Ok(out)
        }
        _ => Err(damaged("it is neither a term nor a compressed one")),
    }
}

fn inflate(from: impl Read, out: &mut Vec<u8>) -> Result<()> {
    let read = from.take(MAX_TERM + 1).read_to_end(out);
    read.map_err(|e| damaged("a compressed stream is damaged").caused_by(e))?;
    if out.len() as u64 > MAX_TERM {
        Err(damaged("a compressed stream is longer than anything of CouchDB's"))
    } else {
        Ok(())
    }
}
