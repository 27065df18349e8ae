//! What a `.couch` file holds, without a CouchDB: its newest header, and its b-trees walked to the last leaf.
//!
//! A header alone proves little: it says nothing of the tree below it. Walking finds every hole in the trees, and
//! counts what the header claims. Children lie before their parents, because the file is only appended to: a walk
//! ends, whatever the bytes are.

use std::cell::Cell;

use super::blocks::{Blocks, Header, ReadAt, damaged};
use super::contents::Contents;
use super::etf::{Cursor, Term};
use super::revisions::winner;
use crate::error::{Error, ErrorKind, Result};

/// Versions of the header that are known: 6 (2.0 to 2.2), 7 (2.3) and 8 (3.0 and newer).
const VERSIONS: std::ops::RangeInclusive<u64> = 6..=8;

/// What a header says of its file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// Where the newest header begins.
    pub(super) header_offset: u64,
    pub(super) disk_version: u64,
    pub(super) update_seq: u64,
    pub(super) doc_count: u64,
    pub(super) del_count: u64,
    pub(super) uuid: Option<String>,
    /// Names of the nodes that owned it, newest first, with the sequence from which on.
    pub(super) epochs: Vec<(String, u64)>,
}

/// The roots of the trees of a header.
#[derive(Debug, Default)]
struct Roots {
    id: Option<Root>,
    seq: Option<Root>,
    /// `_local` documents, and what was purged.
    others: Vec<Root>,
    /// Single terms: the security object, properties, what was purged long ago.
    terms: Vec<u64>,
}

#[derive(Debug)]
struct Root {
    offset: u64,
    reduction: Term,
}

fn no_header(what: &str) -> Error {
    damaged(&format!("its header has no {what}"))
}

/// The root of a tree: `nil`, `{Offset, Reduction}` or `{Offset, Reduction, Size}`.
fn root(term: &Term) -> Result<Option<Root>> {
    if term.is_atom("nil") || term.is_atom("undefined") {
        return Ok(None);
    }
    let parts = term.as_tuple().filter(|p| p.len() >= 2).ok_or_else(|| no_header("readable root of a tree"))?;
    let offset = parts[0].as_u64().ok_or_else(|| no_header("readable root of a tree"))?;
    Ok(Some(Root { offset, reduction: parts[1].clone() }))
}

fn read_header(header: &Header) -> Result<(Facts, Roots)> {
    let term = Cursor::new(&header.term)?.term().map_err(|e| e.within("its header cannot be read"))?;
    let parts = term.as_tuple().unwrap_or_default();
    if !parts.first().is_some_and(|name| name.is_atom("db_header")) {
        return Err(damaged("its header is not that of a database"));
    }
    let disk_version = parts.get(1).and_then(Term::as_u64).ok_or_else(|| no_header("version"))?;
    if !VERSIONS.contains(&disk_version) {
        let (from, to) = (VERSIONS.start(), VERSIONS.end());
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("its header has disk version {disk_version}, and this program knows {from} to {to}"),
        )
        .hint("upgrade backstay on this host."));
    }
    let part = |n: usize| parts.get(n);
    let need = |n: usize, what: &str| part(n).ok_or_else(|| no_header(what));
    let update_seq = need(2, "update sequence")?.as_u64().ok_or_else(|| no_header("update sequence"))?;
    let mut roots =
        Roots { id: root(need(4, "tree of documents")?)?, seq: root(need(5, "tree of changes")?)?, ..Roots::default() };
    roots.others.extend(root(need(6, "tree of local documents")?)?);
    // What was purged: two trees since 2.3; before, and in files that come from there, a number and perhaps a term.
    for term in [part(7), part(8)].into_iter().flatten().filter(|term| term.as_tuple().is_some()) {
        roots.others.extend(root(term)?);
    }
    let purged = part(8).filter(|_| part(7).is_some_and(|number| number.as_u64().is_some()));
    roots.terms.extend([purged, part(9), part(15)].into_iter().flatten().filter_map(Term::as_u64));
    let (doc_count, del_count) = match &roots.id {
        None => (0, 0),
        Some(root) => counts(&root.reduction).ok_or_else(|| no_header("count of documents"))?,
    };
    let uuid = part(11)
        .and_then(|u| if let Term::Binary(b) = u { Some(String::from_utf8_lossy(b).into_owned()) } else { None });
    let epochs = match part(12) {
        Some(Term::List(list)) => list.iter().filter_map(epoch).collect(),
        _ => Vec::new(),
    };
    let facts = Facts { header_offset: header.offset, disk_version, update_seq, doc_count, del_count, uuid, epochs };
    Ok((facts, roots))
}

fn counts(reduction: &Term) -> Option<(u64, u64)> {
    let parts = reduction.as_tuple()?;
    Some((parts.first()?.as_u64()?, parts.get(1)?.as_u64()?))
}

fn epoch(term: &Term) -> Option<(String, u64)> {
    match term.as_tuple()? {
        [Term::Atom(node), seq] => Some((node.clone(), seq.as_u64()?)),
        _ => None,
    }
}

/// Checks the newest header of a file, and that the root of each of its trees is a node.
///
/// # Errors
/// As [`inspect`]; what is damaged below a root is not seen.
pub(super) fn inspect_roots<R: ReadAt + ?Sized>(from: &R, len: u64) -> Result<Facts> {
    let blocks = Blocks::new(from, len);
    let header = blocks.newest_header()?;
    let (facts, roots) = read_header(&header)?;
    let budget = Cell::new(header.offset);
    for root in roots.id.iter().chain(&roots.seq).chain(&roots.others) {
        let bytes = blocks.chunk(root.offset, header.offset, &budget)?;
        let mut skipped = |entry: &mut Cursor<'_>| entry.skip().and_then(|()| entry.skip());
        node(&mut Cursor::new(&bytes)?, root.offset, &mut Vec::new(), &mut skipped)
            .map_err(|e| e.within("the root of a tree is damaged"))?;
    }
    Ok(facts)
}

/// Checks a whole file: its newest header, every node of every tree, and that they add up.
///
/// # Errors
/// `Corrupt`, with the reason, for a file that CouchDB would not open as it was, or would fail on later.
pub(super) fn inspect<R: ReadAt + ?Sized>(from: &R, len: u64) -> Result<Facts> {
    look(from, len, None)
}

/// The same, and every document: its body and its attachments against their checksums, and that both trees say the
/// same of it.
///
/// # Errors
/// As [`inspect`], naming the document.
pub(super) fn inspect_documents<R: ReadAt + ?Sized>(from: &R, len: u64) -> Result<(Facts, Contents)> {
    let mut contents = Contents::default();
    let facts = look(from, len, Some(&mut contents))?;
    Ok((facts, contents))
}

fn look<R: ReadAt + ?Sized>(from: &R, len: u64, mut contents: Option<&mut Contents>) -> Result<Facts> {
    let blocks = Blocks::new(from, len);
    let header = blocks.newest_header()?;
    let (facts, roots) = read_header(&header)?;
    let walk = Walk::new(&blocks, &header);
    let mut found = (0, 0);
    if let Some(root) = &roots.id {
        walk.tree(root.offset, &mut |entry| {
            let deleted = match &mut contents {
                Some(contents) => contents.named(entry)?,
                None => flagged(entry)?,
            };
            *(if deleted { &mut found.1 } else { &mut found.0 }) += 1;
            Ok(())
        })
        .map_err(|e| e.within("its tree of documents is damaged"))?;
    }
    if found != (facts.doc_count, facts.del_count) {
        return Err(damaged(&format!(
            "its header counts {} documents and {} deleted ones, its tree has {} and {}",
            facts.doc_count, facts.del_count, found.0, found.1
        )));
    }
    let mut changes = 0_u64;
    if let Some(root) = &roots.seq {
        walk.tree(root.offset, &mut |entry| {
            changes += 1;
            match &mut contents {
                Some(contents) => contents.changed(entry, &walk),
                None => entry.skip().and_then(|()| entry.skip()),
            }
        })
        .map_err(|e| e.within("its tree of changes is damaged"))?;
    }
    if changes != found.0 + found.1 {
        return Err(damaged(&format!("it has {} documents and {changes} changes", found.0 + found.1)));
    }
    if contents.is_some_and(|contents| !contents.agree()) {
        return Err(damaged("its tree of documents and its tree of changes do not say the same"));
    }
    for root in &roots.others {
        walk.tree(root.offset, &mut |entry| entry.skip().and_then(|()| entry.skip()))
            .map_err(|e| e.within("a tree of local or purged documents is damaged"))?;
    }
    for at in &roots.terms {
        let term = blocks.chunk(*at, header.offset, &walk.budget)?;
        Cursor::new(&term)?.skip().map_err(|e| e.within("its security object or properties are damaged"))?;
    }
    Ok(facts)
}

/// Passes over an entry of the tree of documents; whether it is of a deleted one.
fn flagged(entry: &mut Cursor<'_>) -> Result<bool> {
    entry.skip()?;
    let arity = entry.tuple()?;
    entry.skip()?;
    let deleted = entry.number()? != 0;
    (2..arity).try_for_each(|_| entry.skip())?;
    Ok(deleted)
}

/// The trees of one file.
pub(super) struct Walk<'a, 'b, R: ReadAt + ?Sized> {
    pub(super) blocks: &'a Blocks<'b, R>,
    /// Where the header begins: all that counts lies before it.
    pub(super) end: u64,
    /// Bytes that may still be read.
    pub(super) budget: Cell<u64>,
}

impl<'a, 'b, R: ReadAt + ?Sized> Walk<'a, 'b, R> {
    fn new(blocks: &'a Blocks<'b, R>, header: &Header) -> Self {
        Self { blocks, end: header.offset, budget: Cell::new(header.offset) }
    }

    /// Calls `each` at the key of every entry of every leaf; it reads the key and the value.
    fn tree(&self, root: u64, each: &mut dyn FnMut(&mut Cursor<'_>) -> Result<()>) -> Result<()> {
        // What is to be visited, and the parent before whose begin it lies.
        let mut todo = vec![(root, self.end)];
        while let Some((at, before)) = todo.pop() {
            if at >= before {
                return Err(damaged(&format!("a node at offset {at} lies behind its parent")));
            }
            let bytes = self.blocks.chunk(at, self.end, &self.budget)?;
            let mut cursor = Cursor::new(&bytes)?;
            let named = |e: Error| e.within(format!("the node at offset {at} makes no sense"));
            node(&mut cursor, at, &mut todo, each).map_err(named)?;
        }
        Ok(())
    }
}

fn node(
    cursor: &mut Cursor<'_>,
    at: u64,
    todo: &mut Vec<(u64, u64)>,
    each: &mut dyn FnMut(&mut Cursor<'_>) -> Result<()>,
) -> Result<()> {
    expect_pair(cursor)?;
    let kind = cursor.atom()?;
    let leaf = match kind {
        b"kv_node" => true,
        b"kp_node" => false,
        _ => return Err(damaged("it is no node of a tree")),
    };
    let first = todo.len();
    let entries = cursor.list(|entry| {
        expect_pair(entry)?;
        if leaf {
            return each(entry);
        }
        entry.skip()?;
        let arity = entry.tuple()?;
        todo.push((entry.number()?, at));
        (1..arity).try_for_each(|_| entry.skip())
    })?;
    // The last one is taken first: in the order of keys, which in a compacted file is that of offsets.
    todo[first..].reverse();
    if entries == 0 { Err(damaged("it is empty")) } else { Ok(()) }
}

pub(super) fn expect_pair(cursor: &mut Cursor<'_>) -> Result<()> {
    if cursor.tuple()? == 2 { Ok(()) } else { Err(damaged("a pair was expected")) }
}

/// A document that is not deleted: its id and its body as JSON.
pub(super) struct Document {
    pub(super) id: String,
    pub(super) body: serde_json::Value,
}

/// All live documents of a small database, such as `_dbs`.
///
/// # Errors
/// As [`inspect`], which is done first.
pub(super) fn documents<R: ReadAt + ?Sized>(from: &R, len: u64) -> Result<Vec<Document>> {
    inspect(from, len)?;
    let blocks = Blocks::new(from, len);
    let header = blocks.newest_header()?;
    let walk = Walk::new(&blocks, &header);
    let body = |(id, at): (String, u64)| -> Result<Document> {
        let term = blocks.chunk(at, header.offset, &walk.budget)?;
        let summary = Cursor::new(&term)?.term()?;
        let json = match summary.as_tuple().and_then(<[Term]>::first) {
            Some(Term::Binary(packed)) => Cursor::new(&super::blocks::unpack(packed.clone())?)?.term()?.to_json(),
            Some(plain) => plain.to_json(),
            None => None,
        };
        let body = json.ok_or_else(|| damaged(&format!("document {id:?} cannot be read")))?;
        Ok(Document { id, body })
    };
    live(&header, &walk)?.into_iter().map(body).collect()
}

/// The live documents, and where the bodies lie that win.
fn live<R: ReadAt + ?Sized>(header: &Header, walk: &Walk<'_, '_, R>) -> Result<Vec<(String, u64)>> {
    let (_, roots) = read_header(header)?;
    let mut found = Vec::new();
    let Some(root) = &roots.id else { return Ok(found) };
    walk.tree(root.offset, &mut |entry| {
        let id = String::from_utf8(entry.binary()?.to_vec()).map_err(|_| damaged("a document's id is not UTF-8"))?;
        let arity = entry.tuple()?;
        entry.skip()?;
        let deleted = entry.number()? != 0;
        (3..arity).try_for_each(|_| entry.skip())?;
        if deleted {
            entry.skip()?;
        } else {
            found.push((id, winner(entry)?));
        }
        Ok(())
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    /// The shards of a real node, and its shard maps.
    static FILES: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(|| {
        let packed = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/couchdb/data/couchdb-3.4.3.tar.zst");
        let packed = zstd::stream::read::Decoder::new(std::fs::File::open(packed).unwrap()).unwrap();
        let mut found = Vec::new();
        for entry in tar::Archive::new(packed).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            if name.ends_with(".couch") {
                found.push((name, bytes));
            }
        }
        found
    });

    fn file(part: &str) -> &'static [u8] {
        FILES.iter().find(|(name, _)| name.contains(part)).map(|(_, bytes)| bytes.as_slice()).unwrap()
    }

    /// Fails a test that reads past the end, or asks for more than is there.
    struct Guarded<'a>(&'a [u8]);

    impl ReadAt for Guarded<'_> {
        fn read_some(&self, buf: &mut [u8], at: u64) -> std::io::Result<usize> {
            assert!(at + buf.len() as u64 <= self.0.len() as u64, "{at} + {} > {}", buf.len(), self.0.len());
            self.0.read_some(buf, at)
        }
    }

    fn look(bytes: &[u8]) -> Result<Facts> {
        let _ = documents(&Guarded(bytes), bytes.len() as u64);
        let trees = inspect(&Guarded(bytes), bytes.len() as u64);
        let (facts, _) = inspect_documents(&Guarded(bytes), bytes.len() as u64)?;
        assert_eq!(trees.unwrap(), facts, "what is good with its documents is good without");
        Ok(facts)
    }

    fn contents(bytes: &[u8]) -> Result<Contents> {
        inspect_documents(&Guarded(bytes), bytes.len() as u64).map(|(_, contents)| contents)
    }

    fn bodies(bytes: &[u8]) -> Vec<(String, u64)> {
        let blocks = Blocks::new(bytes, bytes.len() as u64);
        let header = blocks.newest_header().unwrap();
        live(&header, &Walk::new(&blocks, &header)).unwrap()
    }

    /// A copy in which one byte is another.
    fn flipped(bytes: &[u8], at: u64) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[usize::try_from(at).unwrap()] ^= 1;
        bytes
    }

    #[test]
    fn every_compression_and_checksum_is_read() {
        for (part, docs) in [("deflated", 200), ("raw", 200), ("xxh", 200), ("user.", 20)] {
            assert_eq!(look(file(part)).unwrap().doc_count, docs, "{part}");
        }
        // Length, checksum, and a pair of which the first half is packed.
        let stored = |part: &str| {
            let (_, at) = bodies(file(part)).remove(7);
            let chunk = &file(part)[usize::try_from(at).unwrap()..];
            let len = usize::try_from(super::super::blocks::be32(chunk) & 0x7fff_ffff).unwrap();
            (chunk[4..20].to_vec(), chunk[20..20 + len].to_vec())
        };
        for (part, begin) in [("raw", &[131, 104, 1][..]), ("deflated", &[131, 80]), ("user.", &[1])] {
            assert!(stored(part).1[8..].starts_with(begin), "{part}: {:?}", stored(part).1);
        }
        let (sum, body) = stored("xxh");
        assert_eq!(sum, twox_hash::XxHash3_128::oneshot(&body).to_be_bytes());
        let (sum, body) = stored("raw");
        assert_eq!(sum, <md5::Md5 as md5::Digest>::digest(body).as_slice());
        let maps = documents(file("_dbs"), file("_dbs").len() as u64).unwrap();
        assert_eq!(maps.len(), 11);
        assert!(maps.iter().all(|m| m.body["_id"].is_null() && m.body["by_node"].is_object()), "{}", maps[0].body);
    }

    #[test]
    fn a_byte_of_any_document_that_changed_is_found_and_the_document_is_named() {
        for part in ["deflated", "raw", "xxh", "user."] {
            let whole = file(part);
            let all = bodies(whole);
            assert_eq!(contents(whole).unwrap().bodies, all.len() as u64);
            for (id, at) in all {
                // Behind the length and the checksum, which may lie around the begin of a block.
                let bytes = flipped(whole, at + 23);
                assert!(inspect(bytes.as_slice(), bytes.len() as u64).is_ok(), "the trees do not tell");
                let why = contents(&bytes).unwrap_err().chain();
                assert!(why.contains(&format!("{id:?}")) && why.contains("checksum does not fit"), "{part}: {why}");
            }
        }
    }

    #[test]
    fn conflicts_deletions_and_attachments_are_read_too() {
        let (mut read, mut live, mut attachments) = (0, 0, 0);
        for (_, bytes) in FILES.iter().filter(|(name, _)| name.contains("/plain.") || name.contains("/foo.")) {
            let contents = contents(bytes).unwrap();
            (read, attachments) = (read + contents.bodies, attachments + contents.attachments);
            live += bodies(bytes).len() as u64;
        }
        assert_eq!((read, attachments), (live + 10 + 1, 1), "ten deletions and one loser of a conflict");
    }

    #[test]
    fn a_byte_of_an_attachment_that_changed_is_found() {
        let (whole, at) = FILES
            .iter()
            .filter(|(name, _)| name.contains("/foo."))
            .find_map(|(_, bytes)| {
                bodies(bytes).into_iter().find(|(id, _)| id == "with-file").map(|(_, at)| (bytes, at))
            })
            .unwrap();
        // Its 9000 bytes were written just before the document.
        for before in [200, 4500, 8800] {
            let bytes = flipped(whole, at - before);
            assert!(inspect(bytes.as_slice(), bytes.len() as u64).is_ok());
            let why = contents(&bytes).unwrap_err().chain();
            assert!(why.contains("\"with-file\"") && why.contains("attachment \"a.bin\" is damaged"), "{why}");
        }
    }

    #[test]
    fn a_tree_that_names_another_body_is_found() {
        // The pointer to a body, in the uncompressed node of one tree and not of the other.
        let whole = file("raw");
        let all = bodies(whole);
        let pointer = |at: u64| [&[98][..], &u32::try_from(at).unwrap().to_be_bytes()].concat();
        let (one, other) = (pointer(all[3].1), pointer(all[4].1));
        let places: Vec<usize> = whole.windows(5).enumerate().filter(|(_, w)| *w == one).map(|(at, _)| at).collect();
        assert!(places.len() >= 2, "{places:?}");
        let mut found = 0;
        for at in places {
            let mut bytes = whole.to_vec();
            bytes[at..at + 5].copy_from_slice(&other);
            found += u32::from(contents(&bytes).is_err());
            assert!(inspect(bytes.as_slice(), bytes.len() as u64).is_ok(), "its shape is right");
        }
        assert_eq!(found, 2, "those of the newest trees");
    }

    #[test]
    fn a_file_cut_at_any_block_is_damaged_or_older() {
        for (name, whole) in FILES.iter() {
            let facts = look(whole).unwrap();
            for cut in (0..whole.len()).step_by(4096).flat_map(|at| [at, at + 1, at + 4095]) {
                if let Ok(found) = look(&whole[..cut.min(whole.len() - 1)]) {
                    assert!(
                        found.header_offset < facts.header_offset || cut as u64 > facts.header_offset,
                        "{name} {cut}"
                    );
                }
            }
        }
    }

    /// A small number, `nil`, or a root of a tree at this offset.
    fn purged(kind: &str, offset: u8) -> Vec<u8> {
        match kind {
            "tree" => vec![104, 3, 97, offset, 97, 1, 97, 9],
            "number" => vec![97, offset],
            _ => [&[100, 0, 3][..], b"nil"].concat(),
        }
    }

    #[test]
    fn headers_of_each_generation_say_what_was_purged() {
        let nil = purged("nil", 0);
        // Version, what stands where, and then: trees to walk, terms to read.
        for (version, first, second, trees, terms) in [
            (6, purged("number", 0), nil.clone(), 0, 0),
            (6, purged("number", 3), purged("number", 50), 0, 1),
            (7, purged("tree", 50), purged("tree", 60), 2, 0),
            (8, purged("tree", 50), purged("tree", 60), 2, 0),
            (8, nil.clone(), nil.clone(), 0, 0),
            (8, purged("number", 3), nil.clone(), 0, 0),
        ] {
            let head = [&[131, 104, 9, 100, 0, 9][..], b"db_header", &[97, version, 97, 5, 97, 0]].concat();
            let term = [head, nil.repeat(3), first, second].concat();
            let (facts, roots) = read_header(&Header { offset: 4096, term }).unwrap();
            assert_eq!((facts.disk_version, facts.update_seq), (u64::from(version), 5));
            assert_eq!((roots.others.len(), roots.terms.len()), (trees, terms), "{version}");
        }
    }

    #[test]
    fn what_was_not_committed_does_not_count() {
        let whole = file("plain");
        let facts = look(whole).unwrap();
        for tail in [&b"not yet committed"[..], &[1; 5000], &[0; 9000]] {
            assert_eq!(look(&[whole, tail].concat()).unwrap(), facts);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

        #[test]
        fn damage_never_panics_and_never_reads_elsewhere(
            which in any::<prop::sample::Index>(),
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1_usize..400), 0..6),
            cut in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let (_, whole) = which.get(&FILES);
            let mut bytes = whole.clone();
            for (at, byte, len) in edits {
                let at = at.index(bytes.len());
                let end = (at + len).min(bytes.len());
                bytes[at..end].fill(byte);
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len() + 1));
            }
            let _ = look(&bytes);
        }

        #[test]
        fn any_bytes_are_a_file_or_none(bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
            prop_assert!(look(&bytes).is_err());
        }

        #[test]
        fn any_bytes_behind_a_good_header_are_a_tree_or_none(mut bytes in prop::collection::vec(any::<u8>(), 1..400)) {
            bytes.insert(0, 131);
            let _ = Cursor::new(&bytes).unwrap().term();
            let _ = Cursor::new(&bytes).unwrap().skip();
            let _ = winner(&mut Cursor::new(&bytes).unwrap());
            let _ = super::super::blocks::unpack(bytes);
        }
    }
}
