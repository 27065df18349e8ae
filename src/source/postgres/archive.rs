//! Follows the custom format of `pg_dump -Fc -Z0` while it goes by: rows per table, and whether it is whole.
//!
//! Only layouts that are known are followed (archive versions 1.12 to 1.16, PostgreSQL 9 to 18); on others the parser
//! stops with a reason, and the caller warns. No length is trusted: nothing is held but one table-of-contents
//! entry of at most [`ENTRY_LIMIT`] bytes.

use std::collections::BTreeMap;

use super::rows::{Lines, Table};

/// Longest entry of the table of contents that is followed.
const ENTRY_LIMIT: usize = 256 << 20;
const MAX_ENTRIES: i64 = 100_000_000;

/// A parser that is shown the archive in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Archive {
    pending: Vec<u8>,
    state: State,
    int_size: usize,
    off_size: usize,
    version: u32,
    tables: BTreeMap<i64, Table>,
    /// Rows by table, of all tables with data.
    pub(super) rows: BTreeMap<Table, u64>,
    broken: Option<&'static str>,
    /// Why the parser cannot follow this layout, if it cannot.
    pub(super) lost: Option<&'static str>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Head,
    Entries {
        left: i64,
    },
    Block,
    /// Inside a block: the next piece's length follows.
    Piece(Block),
    /// Inside a piece.
    Bytes(Block, u64),
}

#[derive(Debug)]
enum Block {
    Table(Table, Lines),
    Other,
    Object,
    /// Between large objects.
    Objects,
}

/// The bytes are not all there yet, are of another layout, or make no sense.
#[derive(Debug, PartialEq)]
enum Stop {
    More,
    Unknown(&'static str),
    Broken(&'static str),
}

type Step<T> = std::result::Result<T, Stop>;

struct Cursor<'a> {
    data: &'a [u8],
    at: usize,
    int_size: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Step<&'a [u8]> {
        let piece = self.at.checked_add(n).and_then(|end| self.data.get(self.at..end)).ok_or(Stop::More)?;
        self.at += n;
        Ok(piece)
    }
    fn byte(&mut self) -> Step<u8> {
        Ok(self.take(1)?[0])
    }
    fn int(&mut self) -> Step<i64> {
        let negative = self.byte()? != 0;
        let bytes = self.take(self.int_size)?;
        let n = bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let n = i64::try_from(n).map_err(|_| Stop::Broken("a number is out of range"))?;
        Ok(if negative { -n } else { n })
    }
    fn text(&mut self) -> Step<Option<&'a [u8]>> {
        let Ok(n) = usize::try_from(self.int()?) else { return Ok(None) };
        if n > ENTRY_LIMIT {
            return Err(Stop::Broken("a text is too long"));
        }
        self.take(n).map(Some)
    }
    fn words(&mut self, n: usize) -> Step<()> {
        (0..n).try_for_each(|_| self.text().map(|_| ()))
    }
}

impl Archive {
    /// Looks at the next piece.
    pub(super) fn feed(&mut self, data: &[u8]) {
        if self.lost.is_some() || self.broken.is_some() {
            return;
        }
        self.pending.extend_from_slice(data);
        let pending = std::mem::take(&mut self.pending);
        let mut at = 0;
        loop {
            match self.step(&pending[at..]) {
                Ok(n) => at += n,
                Err(Stop::More) => break,
                Err(Stop::Unknown(why)) => {
                    self.lost = Some(why);
                    return;
                }
                Err(Stop::Broken(why)) => {
                    self.broken = Some(why);
                    return;
                }
            }
        }
        let rest = &pending[at..];
        if rest.len() > ENTRY_LIMIT {
            self.broken = Some("an entry is too long");
            return;
        }
        self.pending = rest.to_vec();
    }

    /// Why the archive is not whole, if it is not; `None` too when the parser gave up (see `lost`).
    pub(super) fn fault(&self) -> Option<&'static str> {
        match self.state {
            _ if self.broken.is_some() => self.broken,
            _ if self.lost.is_some() => None,
            State::Head | State::Entries { .. } => Some("the archive ends inside its table of contents"),
            State::Block if !self.pending.is_empty() => Some("the archive ends inside a block"),
            State::Block if !self.tables.is_empty() => Some("the data of a table is missing"),
            State::Block => None,
            _ => Some("the archive ends inside a block"),
        }
    }

    /// One step; how many bytes it used. Never `Ok(0)` without a change of state.
    fn step(&mut self, data: &[u8]) -> Step<usize> {
        let mut c = Cursor { data, at: 0, int_size: self.int_size };
        let next = match std::mem::take(&mut self.state) {
            State::Head => self.head(&mut c),
            State::Entries { left: 0 } => Ok(State::Block),
            State::Entries { left } => {
                self.entry(&mut c).map(|()| State::Entries { left: left - 1 }).inspect_err(|_| {
                    self.state = State::Entries { left };
                })
            }
            State::Block => self.block(&mut c).inspect_err(|_| {
                self.state = State::Block;
            }),
            State::Piece(block) => match c.int() {
                Ok(n) => self.piece(block, n),
                Err(e) => {
                    self.state = State::Piece(block);
                    Err(e)
                }
            },
            State::Bytes(block, left) => self.bytes(&mut c, block, left),
        };
        self.state = next?;
        Ok(c.at)
    }

    fn head(&mut self, c: &mut Cursor<'_>) -> Step<State> {
        let start = c.take(11)?;
        if &start[..5] != b"PGDMP" {
            return Err(Stop::Broken("it does not begin as an archive"));
        }
        self.version = u32::from(start[5]) << 8 | u32::from(start[6]);
        self.int_size = usize::from(start[8]);
        self.off_size = usize::from(start[9]);
        if !(0x010c..=0x0110).contains(&self.version) || !(4..=8).contains(&self.int_size) || self.off_size > 16 {
            return Err(Stop::Unknown("its format version is unknown"));
        }
        if start[10] != 1 {
            return Err(Stop::Unknown("it is not in the custom format"));
        }
        c.int_size = self.int_size;
        let compression = if self.version >= 0x010f { i64::from(c.byte()?) } else { c.int()? };
        if compression > 0 {
            return Err(Stop::Unknown("it is compressed"));
        }
        (0..7).try_for_each(|_| c.int().map(|_| ()))?;
        c.words(3)?;
        match c.int()? {
            left @ 0..=MAX_ENTRIES => Ok(State::Entries { left }),
            _ => Err(Stop::Broken("its table of contents has no sensible length")),
        }
    }

    fn entry(&mut self, c: &mut Cursor<'_>) -> Step<()> {
        let id = c.int()?;
        let has_data = c.int()? != 0;
        c.words(2)?;
        let tag = c.text()?;
        let desc = c.text()?;
        c.int()?;
        c.words(3)?;
        let schema = c.text()?;
        c.words(if self.version >= 0x010e { 2 } else { 1 })?;
        if self.version >= 0x0110 {
            c.int()?;
        }
        c.words(2)?;
        while c.text()?.is_some() {}
        c.take(1 + self.off_size)?;
        if has_data && desc == Some(b"TABLE DATA") {
            let text = |t: Option<&[u8]>| String::from_utf8_lossy(t.unwrap_or_default()).into_owned();
            self.tables.insert(id, (text(schema), text(tag)));
        }
        Ok(())
    }

    fn block(&mut self, c: &mut Cursor<'_>) -> Step<State> {
        let kind = c.byte()?;
        let id = c.int()?;
        match kind {
            1 => Ok(State::Piece(match self.tables.remove(&id) {
                Some(table) => Block::Table(table, Lines::default()),
                None => Block::Other,
            })),
            3 => Ok(State::Piece(Block::Objects)),
            _ => Err(Stop::Broken("a block has an unknown type")),
        }
    }

    fn piece(&mut self, block: Block, n: i64) -> Step<State> {
        let length = u64::try_from(n).map_err(|_| Stop::Broken("a length is negative"))?;
        Ok(match (block, length) {
            (Block::Objects, 0) | (Block::Other, 0) => State::Block,
            (Block::Objects, _) => State::Piece(Block::Object),
            (Block::Object, 0) => State::Piece(Block::Objects),
            (Block::Table(table, lines), 0) => {
                *self.rows.entry(table).or_default() += lines.rows;
                State::Block
            }
            (block, n) => State::Bytes(block, n),
        })
    }

    fn bytes(&mut self, c: &mut Cursor<'_>, mut block: Block, left: u64) -> Step<State> {
        let n = c.data.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if n == 0 {
            self.state = State::Bytes(block, left);
            return Err(Stop::More);
        }
        let piece = c.take(n)?;
        if let Block::Table(_, lines) = &mut block {
            lines.feed(piece);
        }
        let left = left - n as u64;
        Ok(if left == 0 { State::Piece(block) } else { State::Bytes(block, left) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn int(out: &mut Vec<u8>, n: i32) {
        out.push(u8::from(n < 0));
        out.extend(n.unsigned_abs().to_le_bytes());
    }
    fn text(out: &mut Vec<u8>, s: Option<&str>) {
        int(out, s.map_or(-1, |s| i32::try_from(s.len()).unwrap()));
        out.extend(s.unwrap_or_default().as_bytes());
    }

    /// An archive as version 1.14 writes it: one table, one block of large objects.
    fn sample() -> Vec<u8> {
        let mut a = b"PGDMP\x01\x0e\x00\x04\x08\x01".to_vec();
        (0..8).for_each(|_| int(&mut a, 0));
        (0..3).for_each(|_| text(&mut a, Some("15.1")));
        int(&mut a, 2);
        for (id, tag, desc) in [(7, "t", "TABLE DATA"), (8, "BLOBS", "BLOBS")] {
            int(&mut a, id);
            int(&mut a, 1);
            for s in [Some("0"), Some("0"), Some(tag), Some(desc)] {
                text(&mut a, s);
            }
            int(&mut a, 3);
            for s in [
                Some(""),
                Some(""),
                None,
                Some("public"),
                Some(""),
                Some(""),
                Some("o"),
                Some("false"),
                Some("6"),
                None,
            ] {
                text(&mut a, s);
            }
            a.extend([1; 9]);
        }
        a.push(1);
        int(&mut a, 7);
        for piece in ["a\tb\n", "c", "\td\n", "\\.\n\n\n"] {
            text(&mut a, Some(piece));
        }
        int(&mut a, 0);
        a.push(3);
        int(&mut a, 8);
        int(&mut a, 4711);
        text(&mut a, Some("large"));
        int(&mut a, 0);
        int(&mut a, 0);
        a
    }

    #[test]
    fn rows_are_counted_at_every_split() {
        for step in [1, 3, 64, 100_000] {
            let mut archive = Archive::default();
            sample().chunks(step).for_each(|piece| archive.feed(piece));
            assert_eq!((archive.lost, archive.fault()), (None, None));
            assert_eq!(archive.rows[&("public".to_owned(), "t".to_owned())], 2);
        }
    }

    #[test]
    fn every_cut_is_seen() {
        let whole = sample();
        let objects = whole.len() - (1 + 5 + 5 + 5 + 5 + 5 + 5);
        for end in (0..whole.len()).filter(|end| *end != objects) {
            let mut archive = Archive::default();
            archive.feed(&whole[..end]);
            assert!(archive.fault().is_some(), "cut at {end}");
        }
    }

    proptest! {
        #[test]
        fn nothing_makes_it_panic(flips in prop::collection::vec((0usize..400, any::<u8>()), 0..6), step in 1usize..99) {
            let mut bytes = sample();
            for (at, value) in flips {
                let n = bytes.len();
                bytes[at % n] = value;
            }
            let mut archive = Archive::default();
            bytes.chunks(step).for_each(|piece| archive.feed(piece));
            let _ = archive.fault();
        }
    }
}
