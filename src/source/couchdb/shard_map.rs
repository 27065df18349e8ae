//! Shard maps: the documents of `_dbs`, one per clustered database, which say which node has which ranges.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::blocks::{ReadAt, damaged};
use super::tree;
use crate::error::Result;

/// The map of one database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ShardMap {
    /// The database's name.
    pub(super) db: String,
    /// What its files have between name and extension: `.1700000000`.
    pub(super) suffix: String,
    /// Ranges per node; this is what CouchDB goes by.
    pub(super) by_node: BTreeMap<String, Vec<String>>,
}

impl ShardMap {
    /// Reads a document of `_dbs`.
    pub(super) fn read(db: &str, doc: &Value) -> Result<Self> {
        let wrong = |what: &str| damaged(&format!("the shard map of database {db:?} has no {what}"));
        let letter = |c: &Value| c.as_u64().and_then(|c| u32::try_from(c).ok()).and_then(char::from_u32);
        let suffix: Option<String> = match &doc["shard_suffix"] {
            Value::Null => Some(String::new()),
            Value::Array(codes) => codes.iter().map(letter).collect(),
            _ => None,
        };
        let suffix = suffix.filter(|s| is_plain(s)).ok_or_else(|| wrong("readable suffix"))?;
        let nodes = doc["by_node"].as_object().ok_or_else(|| wrong("nodes"))?;
        let mut by_node = BTreeMap::new();
        for (node, ranges) in nodes {
            let ranges: Option<Vec<String>> =
                ranges.as_array().and_then(|r| r.iter().map(|r| r.as_str().map(str::to_owned)).collect());
            let ranges = ranges.filter(|r| r.iter().all(|r| is_range(r))).ok_or_else(|| wrong("readable ranges"))?;
            by_node.insert(node.clone(), ranges);
        }
        if !is_db(db) {
            return Err(damaged(&format!("a shard map is for {db:?}, which cannot name a database")));
        }
        Ok(Self { db: db.to_owned(), suffix, by_node })
    }

    /// All ranges, whoever has them.
    pub(super) fn ranges(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.by_node.values().flatten().map(String::as_str).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The ranges of one node.
    pub(super) fn of(&self, node: &str) -> &[String] {
        self.by_node.get(node).map_or(&[], Vec::as_slice)
    }

    /// The path below the data directory of the file of a range.
    pub(super) fn path(&self, range: &str) -> String {
        shard_path(range, &self.db, &self.suffix)
    }
}

/// `shards/<range>/<db><suffix>.couch`.
pub(super) fn shard_path(range: &str, db: &str, suffix: &str) -> String {
    format!("shards/{range}/{db}{suffix}.couch")
}

/// `00000000-7fffffff`.
pub(super) fn is_range(text: &str) -> bool {
    let hex = |part: &str| part.len() == 8 && part.bytes().all(|b| b.is_ascii_hexdigit());
    text.split_once('-').is_some_and(|(from, to)| hex(from) && hex(to))
}

fn is_plain(suffix: &str) -> bool {
    suffix.bytes().all(|b| b.is_ascii_digit() || b == b'.') && suffix.len() < 40
}

/// Whether CouchDB takes it as a name, and its path stays below the range's folder.
pub(super) fn is_db(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_$()+-/".contains(&b);
    let start = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b == b'_');
    start && name.bytes().all(plain) && !name.split('/').any(str::is_empty) && name.len() < 240
}

/// Whether a database holds jobs of replication.
pub(super) fn is_replicator(db: &str) -> bool {
    db == "_replicator" || db.ends_with("/_replicator")
}

/// The maps of a `_dbs.couch`.
///
/// # Errors
/// `Corrupt` when the file, or one of the maps, is damaged.
pub(super) fn read_dbs<R: ReadAt + ?Sized>(from: &R, len: u64) -> Result<BTreeMap<String, (ShardMap, Value)>> {
    let mut maps = BTreeMap::new();
    for document in tree::documents(from, len)? {
        if !document.id.starts_with("_design/") {
            let map = ShardMap::read(&document.id, &document.body)?;
            maps.insert(document.id, (map, document.body));
        }
    }
    Ok(maps)
}

/// Rewrites a map for a node of another name that has all ranges. Fields that are not known stay as they are.
///
/// Of a cluster whose `from` had everything, the other nodes are left out. `None` if nothing changes.
pub(super) fn for_node(doc: &Value, from: &str, to: &str) -> Option<Value> {
    let mut new = doc.clone();
    let fields = new.as_object_mut()?;
    let ranges = fields.get("by_node").and_then(|n| n.get(from).or_else(|| n.get(to))).cloned()?;
    fields.insert("by_node".into(), json!({ to: ranges }));
    let each = ranges.as_array().map(Vec::as_slice).unwrap_or_default().iter().filter_map(Value::as_str);
    let by_range: Map<String, Value> = each.map(|range| (range.to_owned(), json!([to]))).collect();
    fields.insert("by_range".into(), Value::Object(by_range));
    for entry in fields.get_mut("changelog").and_then(Value::as_array_mut).into_iter().flatten() {
        for part in entry.as_array_mut().into_iter().flatten().skip(1).filter(|part| part.as_str() == Some(from)) {
            *part = Value::String(to.to_owned());
        }
    }
    (new != *doc).then_some(new)
}

/// The map under another name and suffix, without its revision.
pub(super) fn renamed(doc: &Value, db: &str, suffix: &str) -> Value {
    let mut new = doc.clone();
    if let Some(fields) = new.as_object_mut() {
        fields.remove("_rev");
        fields.insert("_id".into(), db.into());
        fields
            .insert("shard_suffix".into(), suffix.chars().map(|c| u32::from(c).into()).collect::<Vec<Value>>().into());
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    fn doc() -> Value {
        json!({
            "_id": "user/foo", "_rev": "1-a", "shard_suffix": [46, 49], "engine": "x", "future": {"a": ["old@h"]},
            "changelog": [["add", "00000000-7fffffff", "old@h"], ["add", "80000000-ffffffff", "other@h"]],
            "by_node": {"old@h": ["00000000-7fffffff", "80000000-ffffffff"], "other@h": ["80000000-ffffffff"]},
            "by_range": {"00000000-7fffffff": ["old@h"], "80000000-ffffffff": ["old@h", "other@h"]},
        })
    }

    #[test]
    fn a_map_is_rewritten_in_its_structure_and_unknown_fields_stay() {
        let new = for_node(&doc(), "old@h", "new@h").unwrap();
        assert_eq!(new["by_node"], json!({"new@h": ["00000000-7fffffff", "80000000-ffffffff"]}));
        assert_eq!(new["by_range"], json!({"00000000-7fffffff": ["new@h"], "80000000-ffffffff": ["new@h"]}));
        assert_eq!(new["changelog"][0], json!(["add", "00000000-7fffffff", "new@h"]));
        assert_eq!(new["changelog"][1], json!(["add", "80000000-ffffffff", "other@h"]));
        assert_eq!(
            (&new["future"], &new["engine"], &new["_rev"]),
            (&json!({"a": ["old@h"]}), &json!("x"), &json!("1-a"))
        );
        assert_eq!(for_node(&new, "old@h", "new@h"), None, "a second time changes nothing");
        assert_eq!(for_node(&doc(), "nobody@h", "new@h"), None);
    }

    #[test]
    fn a_renamed_map_has_its_own_suffix_and_no_revision() {
        let new = renamed(&doc(), "copy", ".42");
        assert_eq!((&new["_id"], new.get("_rev"), &new["shard_suffix"]), (&json!("copy"), None, &json!([46, 52, 50])));
    }

    #[test]
    fn maps_that_lead_elsewhere_are_refused() {
        assert!(ShardMap::read("user/foo", &doc()).is_ok());
        for db in ["../x", "a/../b", "A", "/a", "a//b", "a\n", ""] {
            assert!(ShardMap::read(db, &doc()).is_err(), "{db:?}");
        }
        for (field, value) in [
            ("shard_suffix", json!([47, 46, 46])),
            ("shard_suffix", json!("x")),
            ("by_node", json!({"n": ["../../etc"]})),
            ("by_node", json!({"n": "x"})),
            ("by_node", json!(null)),
        ] {
            let mut wrong = doc();
            wrong[field] = value;
            assert!(ShardMap::read("a", &wrong).is_err(), "{wrong}");
        }
    }
}
