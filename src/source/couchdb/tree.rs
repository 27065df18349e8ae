//! What a `.couch` file holds, without a CouchDB: its newest header, and its b-trees walked to the last leaf.
//!
//! A header alone proves little: it says nothing of the tree below it. Walking finds every hole in the trees, and
//! counts what the header claims. Children lie before their parents, because the file is only appended to: a walk
//! ends, whatever the bytes are.

use super::blocks::{Blocks, Header, ReadAt, damaged};
use super::etf::{Cursor, Term};
use crate::error::{Error, ErrorKind, Result};

/// Versions of the header that are known: 6 (2.0 to 2.2), 7, 8 (2.3 and newer).
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
    /// Single terms: the security object, properties.
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
    // Before version 8, what was purged is a number and a pointer, not two trees.
    let trees = if disk_version >= 8 { 6..=8 } else { 6..=6 };
    for n in trees {
        roots.others.extend(root(need(n, "tree of local documents")?)?);
    }
    roots.terms.extend([part(9), part(15)].into_iter().flatten().filter_map(Term::as_u64));
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
    let mut budget = header.offset;
    for root in roots.id.iter().chain(&roots.seq).chain(&roots.others) {
        let bytes = blocks.chunk(root.offset, header.offset, &mut budget)?;
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
    let blocks = Blocks::new(from, len);
    let header = blocks.newest_header()?;
    let (facts, roots) = read_header(&header)?;
    let mut walk = Walk { blocks: &blocks, end: header.offset, budget: header.offset };
    let mut found = (0, 0);
    if let Some(root) = &roots.id {
        walk.tree(root.offset, &mut |entry| {
            entry.skip()?;
            let arity = entry.tuple()?;
            entry.skip()?;
            *(if entry.number()? == 0 { &mut found.0 } else { &mut found.1 }) += 1;
            (2..arity).try_for_each(|_| entry.skip())
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
            entry.skip()?;
            entry.skip()
        })
        .map_err(|e| e.within("its tree of changes is damaged"))?;
    }
    if changes != found.0 + found.1 {
        return Err(damaged(&format!("it has {} documents and {changes} changes", found.0 + found.1)));
    }
    for root in &roots.others {
        walk.tree(root.offset, &mut |entry| entry.skip().and_then(|()| entry.skip()))
            .map_err(|e| e.within("a tree of local or purged documents is damaged"))?;
    }
    for at in &roots.terms {
        let term = blocks.chunk(*at, header.offset, &mut walk.budget)?;
        Cursor::new(&term)?.skip().map_err(|e| e.within("its security object or properties are damaged"))?;
    }
    Ok(facts)
}

struct Walk<'a, 'b, R: ReadAt + ?Sized> {
    blocks: &'a Blocks<'b, R>,
    end: u64,
    budget: u64,
}

impl<R: ReadAt + ?Sized> Walk<'_, '_, R> {
    /// Calls `each` at the key of every entry of every leaf; it reads the key and the value.
    fn tree(&mut self, root: u64, each: &mut dyn FnMut(&mut Cursor<'_>) -> Result<()>) -> Result<()> {
        // What is to be visited, and the parent before whose begin it lies.
        let mut todo = vec![(root, self.end)];
        while let Some((at, before)) = todo.pop() {
            if at >= before {
                return Err(damaged(&format!("a node at offset {at} lies behind its parent")));
            }
            let bytes = self.blocks.chunk(at, self.end, &mut self.budget)?;
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

fn expect_pair(cursor: &mut Cursor<'_>) -> Result<()> {
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
    let (_, roots) = read_header(&header)?;
    let mut walk = Walk { blocks: &blocks, end: header.offset, budget: header.offset };
    let mut found = Vec::new();
    if let Some(root) = &roots.id {
        walk.tree(root.offset, &mut |entry| {
            let id =
                String::from_utf8(entry.binary()?.to_vec()).map_err(|_| damaged("a document's id is not UTF-8"))?;
            let arity = entry.tuple()?;
            entry.skip()?;
            let deleted = entry.number()? != 0;
            (3..arity).try_for_each(|_| entry.skip())?;
            if deleted {
                entry.skip()?
            } else {
                found.push((id, winner(entry)?))
            }
            Ok(())
        })?;
    }
    let body = |(id, at): (String, u64)| -> Result<Document> {
        let term = blocks.chunk(at, header.offset, &mut walk.budget)?;
        let summary = Cursor::new(&term)?.term()?;
        let json = match summary.as_tuple().and_then(<[Term]>::first) {
            Some(Term::Binary(packed)) => Cursor::new(&super::blocks::unpack(packed.clone())?)?.term()?.to_json(),
            Some(plain) => plain.to_json(),
            None => None,
        };
        let body = json.ok_or_else(|| damaged(&format!("document {id:?} cannot be read")))?;
        Ok(Document { id, body })
    };
    found.into_iter().map(body).collect()
}

/// One revision of a document.
struct Revision<'a> {
    /// How many edits led to it.
    depth: u64,
    id: &'a [u8],
    deleted: bool,
    /// Where its body lies; not known of revisions that were compacted away.
    body: Option<u64>,
}

/// Calls `each` with every leaf of a tree of revisions. Without recursion: a document may have been edited often.
fn leaves<'a>(cursor: &mut Cursor<'a>, each: &mut dyn FnMut(Revision<'a>)) -> Result<()> {
    let branches = cursor.list_begin()?;
    for _ in 0..branches {
        expect_pair(cursor)?;
        let start = cursor.number()?;
        // Lists of children that are not at their end: how many are left.
        let mut open: Vec<usize> = Vec::new();
        loop {
            if cursor.tuple()? != 3 {
                return Err(damaged("a revision makes no sense"));
            }
            let id = cursor.binary()?;
            let value = value(cursor)?;
            let children = cursor.list_begin()?;
            if children > 0 {
                open.push(children);
                continue;
            }
            if let Some((deleted, body)) = value {
                each(Revision { depth: start.saturating_add(open.len() as u64), id, deleted, body });
            }
            while let Some(left) = open.last_mut() {
                *left -= 1;
                if *left > 0 {
                    break;
                }
                open.pop();
                cursor.skip()?;
            }
            if open.is_empty() {
                break;
            }
        }
    }
    if branches > 0 { cursor.skip() } else { Ok(()) }
}

/// `{Deleted, Pointer, Sequence, ...}`, or `[]` for a revision of which only the id is known.
fn value(cursor: &mut Cursor<'_>) -> Result<Option<(bool, Option<u64>)>> {
    if !cursor.at_tuple() {
        cursor.skip()?;
        return Ok(None);
    }
    let arity = cursor.tuple()?;
    if arity < 2 {
        return Err(damaged("a revision makes no sense"));
    }
    let deleted = cursor.number()? != 0;
    let body = if cursor.at_number() { Some(cursor.number()?) } else { cursor.skip().map(|()| None)? };
    (2..arity).try_for_each(|_| cursor.skip())?;
    Ok(Some((deleted, body)))
}

/// Where the body of the winning revision lies: of the leaves that are not deleted, the one with the longest history,
/// then with the greatest id.
fn winner(cursor: &mut Cursor<'_>) -> Result<u64> {
    let mut best: Option<Revision<'_>> = None;
    leaves(cursor, &mut |found| {
        let better = |b: &Revision<'_>| (b.depth, b.id) < (found.depth, found.id);
        if !found.deleted && found.body.is_some() && best.as_ref().is_none_or(better) {
            best = Some(found);
        }
    })?;
    best.and_then(|b| b.body).ok_or_else(|| damaged("a document has no revision"))
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
        inspect(&Guarded(bytes), bytes.len() as u64)
    }

    #[test]
    fn every_compression_and_checksum_is_read() {
        for (part, docs) in [("deflated", 200), ("raw", 200), ("xxh", 200), ("user.", 20)] {
            assert_eq!(look(file(part)).unwrap().doc_count, docs, "{part}");
        }
        let maps = documents(file("_dbs"), file("_dbs").len() as u64).unwrap();
        assert_eq!(maps.len(), 11);
        assert!(maps.iter().all(|m| m.body["_id"].is_null() && m.body["by_node"].is_object()), "{}", maps[0].body);
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
