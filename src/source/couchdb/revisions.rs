//! The revisions of a document, as the trees of a file keep them.

use super::blocks::damaged;
use super::etf::Cursor;
use super::tree::expect_pair;
use crate::error::Result;

/// One revision of a document.
pub(super) struct Revision<'a> {
    /// How many edits led to it.
    pub(super) depth: u64,
    pub(super) id: &'a [u8],
    pub(super) deleted: bool,
    /// Where its body lies; not known of revisions that were compacted away.
    pub(super) body: Option<u64>,
}

/// Calls `each` with every leaf of a tree of revisions. Without recursion: a document may have been edited often.
pub(super) fn leaves<'a>(cursor: &mut Cursor<'a>, each: &mut dyn FnMut(Revision<'a>)) -> Result<()> {
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
pub(super) fn winner(cursor: &mut Cursor<'_>) -> Result<u64> {
    let mut best: Option<Revision<'_>> = None;
    leaves(cursor, &mut |found| {
        let better = |b: &Revision<'_>| (b.depth, b.id) < (found.depth, found.id);
        if !found.deleted && found.body.is_some() && best.as_ref().is_none_or(better) {
            best = Some(found);
        }
    })?;
    best.and_then(|b| b.body).ok_or_else(|| damaged("a document has no revision"))
}
