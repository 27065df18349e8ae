//! The documents of a file: every body that can still be asked for, and every attachment, against the checksums that
//! CouchDB wrote with them.
//!
//! Bodies are read in the order of changes, in which they mostly lie in the file. But CouchDB finds a document by its
//! id: so both trees must name the same bodies.

use std::collections::HashSet;

use md5::{Digest as _, Md5};
use twox_hash::XxHash3_128;

use super::blocks::{ReadAt, damaged, unpack};
use super::etf::{Cursor, Term};
use super::revisions::{Revision, leaves};
use super::tree::Walk;
use crate::error::{Error, Result};

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Revisions that nothing replaced: of each document the winner, conflicts, and signs of deletion.
    pub(super) bodies: u64,
    /// Each once, though several revisions may share it.
    pub(super) attachments: u64,
    /// Sums over all documents of what each tree says of them.
    by_id: u128,
    by_change: u128,
    /// Where the attachments begin that were read.
    streams: HashSet<u64>,
}

/// What the trees say of a document: a number that is the same only if all of it is.
fn fingerprint(id: &[u8], seq: u64, deleted: u64, revisions: &[Revision<'_>]) -> u128 {
    let mut text = Vec::with_capacity(64 + id.len());
    text.extend_from_slice(id);
    for number in [seq, deleted] {
        text.extend_from_slice(&number.to_be_bytes());
    }
    for r in revisions {
        text.extend_from_slice(r.id);
        for number in [r.depth, u64::from(r.deleted), r.body.unwrap_or(u64::MAX)] {
            text.extend_from_slice(&number.to_be_bytes());
        }
    }
    XxHash3_128::oneshot(&text)
}

/// What follows the sequence or the id in an entry: `Deleted, [Sizes,] Revisions`.
fn rest<'a>(entry: &mut Cursor<'a>, arity: usize) -> Result<(u64, Vec<Revision<'a>>)> {
    if !(3..=4).contains(&arity) {
        return Err(damaged("an entry makes no sense"));
    }
    let deleted = entry.number()?;
    if arity == 4 {
        entry.skip()?;
    }
    let mut found = Vec::new();
    leaves(entry, &mut |revision| found.push(revision))?;
    Ok((deleted, found))
}

impl Contents {
    /// Reads an entry of the tree of documents; whether it is of a deleted one.
    pub(super) fn named(&mut self, entry: &mut Cursor<'_>) -> Result<bool> {
        let id = entry.binary()?;
        let arity = entry.tuple()?;
        let seq = entry.number()?;
        let (deleted, revisions) = rest(entry, arity)?;
        self.by_id = self.by_id.wrapping_add(fingerprint(id, seq, deleted, &revisions));
        Ok(deleted != 0)
    }

    /// Reads an entry of the tree of changes, and all of its document.
    pub(super) fn changed<R: ReadAt + ?Sized>(&mut self, entry: &mut Cursor<'_>, walk: &Walk<'_, '_, R>) -> Result<()> {
        let seq = entry.number()?;
        let arity = entry.tuple()?;
        let id = entry.binary()?;
        let (deleted, revisions) = rest(entry, arity)?;
        self.by_change = self.by_change.wrapping_add(fingerprint(id, seq, deleted, &revisions));
        for at in revisions.iter().filter_map(|r| r.body) {
            self.body(at, walk).map_err(|e| {
                e.within(format!("the document {:?} is damaged, at offset {at}", String::from_utf8_lossy(id)))
            })?;
        }
        Ok(())
    }

    /// Whether both trees name the same documents, revisions and bodies.
    pub(super) fn agree(&self) -> bool {
        self.by_id == self.by_change
    }

    /// `{Body, Attachments}`, each plain or packed.
    fn body<R: ReadAt + ?Sized>(&mut self, at: u64, walk: &Walk<'_, '_, R>) -> Result<()> {
        self.bodies += 1;
        let Some(body) = walk.blocks.body(at, walk.end, &walk.budget)? else { return Ok(()) };
        let mut cursor = Cursor::new(&body.term)?;
        if cursor.tuple()? < 2 {
            return Err(damaged("it is no document"));
        }
        if !body.summed && cursor.at_binary() {
            Cursor::new(&unpack(cursor.binary()?.to_vec())?)?.skip()?;
        } else {
            cursor.skip()?;
        }
        let attachments = if cursor.at_binary() {
            Cursor::new(&unpack(cursor.binary()?.to_vec())?)?.term()?
        } else {
            cursor.term()?
        };
        let Term::List(attachments) = attachments else { return Err(damaged("its attachments make no sense")) };
        for term in &attachments {
            let attachment = Attachment::read(term).ok_or_else(|| damaged("an attachment makes no sense"))?;
            let named = |e: Error| {
                e.within(format!("its attachment {:?} is damaged", String::from_utf8_lossy(attachment.name)))
            };
            self.attachment(&attachment, walk).map_err(named)?;
        }
        Ok(())
    }

    fn attachment<R: ReadAt + ?Sized>(&mut self, of: &Attachment<'_>, walk: &Walk<'_, '_, R>) -> Result<()> {
        if let Some(first) = of.stream.first()
            && !self.streams.insert(*first)
        {
            return Ok(());
        }
        self.attachments += 1;
        let (mut md5, mut len) = (Md5::new(), 0_u64);
        for at in &of.stream {
            len += walk.blocks.bytes(*at, walk.end, &walk.budget, &mut |bytes| md5.update(bytes))?;
        }
        if len != of.len {
            return Err(damaged(&format!("it has {len} bytes instead of {}", of.len)));
        }
        // Very old files have none.
        if of.md5.is_empty() || of.md5 == md5.finalize().as_slice() {
            Ok(())
        } else {
            Err(damaged("its checksum does not fit"))
        }
    }
}

/// An attachment, as a document's body names it.
struct Attachment<'a> {
    name: &'a [u8],
    /// Where its parts lie.
    stream: Vec<u64>,
    /// Bytes, as stored.
    len: u64,
    md5: &'a [u8],
}

impl<'a> Attachment<'a> {
    /// `{Name, Type, Parts, Length, PlainLength, Revision, Md5, Encoding}`, or one of the older, shorter forms; since
    /// 2.0 perhaps within a pair whose other half is a list of additions.
    fn read(term: &'a Term) -> Option<Self> {
        let parts = match term.as_tuple()? {
            [Term::Tuple(base), Term::List(_)] => base.as_slice(),
            parts => parts,
        };
        let (name, stream, len, md5) = match parts {
            [name, _, stream, len, _, _, Term::Binary(md5), _] | [name, _, stream, len, _, Term::Binary(md5)] => {
                (name, stream, len, md5.as_slice())
            }
            [name, Term::Tuple(old)] => match old.as_slice() {
                [_, stream, len] => (name, stream, len, [].as_slice()),
                _ => return None,
            },
            _ => return None,
        };
        let (Term::Binary(name), Term::List(stream)) = (name, stream) else { return None };
        let part = |part: &Term| part.as_tuple().map_or(Some(part), <[Term]>::first)?.as_u64();
        Some(Self { name, stream: stream.iter().map(part).collect::<Option<_>>()?, len: len.as_u64()?, md5 })
    }
}
