//! The inventory: a JSON object per line, after a header line. What a restore and a verification compare with.
//!
//! - `{"backstay_inventory":1,"kind":"couchdb","path":DIR,"node":NAME,"nodes":[NAME..],"views":BOOL}`
//! - `{"type":"shard","path":..,"size":..,"blake3":..}` and, of a file with a valid header, `header_offset`,
//!   `disk_version`, `update_seq`, `doc_count`, `del_count`, `uuid`, `epochs` (`[[NODE, SEQUENCE]..]`, newest first);
//!   `no_map` when no shard map names it, `damage` when it is not what CouchDB would open as it was.
//! - `{"type":"file","path":..,"size":..,"blake3":..}`: a view index, `_dbs.couch`, a node-local database.
//! - `{"type":"database","db":..,"suffix":..,"ranges":[..],"doc_count":..,"del_count":..}`: the sums of its shards on
//!   this node; `dropped` when it was dropped while it was captured, `damage` when a shard is missing or damaged.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::tree::Facts;
use crate::error::{Error, ErrorKind, Result};

const FORMAT_VERSION: u32 = 1;
/// No inventory is longer; it is read into memory.
pub(super) const MAX_BYTES: u64 = 1 << 30;

/// The first line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    backstay_inventory: u32,
    kind: String,
    /// The data directory it came from.
    pub(super) path: String,
    /// The node that was captured; absent when there was no clustered database.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) node: Option<String>,
    /// All nodes that the maps name.
    #[serde(default)]
    pub(super) nodes: Vec<String>,
    #[serde(default)]
    pub(super) views: bool,
}

impl Header {
    pub(super) fn new(path: String, node: Option<String>, nodes: Vec<String>, views: bool) -> Self {
        Self { backstay_inventory: FORMAT_VERSION, kind: "couchdb".into(), path, node, nodes, views }
    }
}

/// A file of the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileLine {
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) blake3: String,
}

/// A shard of the archive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardLine {
    #[serde(flatten)]
    pub(super) file: FileLine,
    #[serde(flatten)]
    pub(super) facts: Option<ShardFacts>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) no_map: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) damage: Option<String>,
}

/// What its header says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardFacts {
    pub(super) header_offset: u64,
    pub(super) disk_version: u64,
    pub(super) update_seq: u64,
    pub(super) doc_count: u64,
    pub(super) del_count: u64,
    #[serde(default)]
    pub(super) uuid: Option<String>,
    #[serde(default)]
    pub(super) epochs: Vec<(String, u64)>,
}

impl From<Facts> for ShardFacts {
    fn from(f: Facts) -> Self {
        Self {
            header_offset: f.header_offset,
            disk_version: f.disk_version,
            update_seq: f.update_seq,
            doc_count: f.doc_count,
            del_count: f.del_count,
            uuid: f.uuid,
            epochs: f.epochs,
        }
    }
}

/// A database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DatabaseLine {
    pub(super) db: String,
    pub(super) suffix: String,
    /// All ranges of the map, on whatever node.
    pub(super) ranges: Vec<String>,
    pub(super) doc_count: u64,
    pub(super) del_count: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) dropped: bool,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) damage: Vec<String>,
}

impl DatabaseLine {
    /// Whether it comes back with a restore.
    pub(super) fn is_whole(&self) -> bool {
        !self.dropped && self.damage.is_empty()
    }
}

/// One line after the header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(super) enum Line {
    Shard(ShardLine),
    File(FileLine),
    Database(DatabaseLine),
}

/// All of it, by path and by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Inventory {
    pub(super) header: Header,
    pub(super) shards: BTreeMap<String, ShardLine>,
    pub(super) files: BTreeMap<String, FileLine>,
    pub(super) databases: BTreeMap<String, DatabaseLine>,
}

impl Inventory {
    /// Its text, line by line.
    pub(super) fn lines(&self) -> impl Iterator<Item = Result<Vec<u8>>> {
        fn line(value: &impl Serialize) -> Result<Vec<u8>> {
            let mut text = serde_json::to_vec(value)
                .map_err(|e| Error::new(ErrorKind::Internal, "could not write the inventory as JSON").caused_by(e))?;
            text.push(b'\n');
            Ok(text)
        }
        let databases = self.databases.values().map(|d| line(&Line::Database(d.clone())));
        let shards = self.shards.values().map(|s| line(&Line::Shard(s.clone())));
        let files = self.files.values().map(|f| line(&Line::File(f.clone())));
        std::iter::once(line(&self.header)).chain(databases).chain(shards).chain(files)
    }

    /// Reads it back.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let damaged = |why: &str| Error::new(ErrorKind::Corrupt, format!("the inventory is damaged: {why}"));
        let mut lines = text.lines();
        let header: Header = serde_json::from_str(lines.next().unwrap_or_default())
            .map_err(|e| damaged("its first line is not a header").caused_by(e))?;
        if header.backstay_inventory > FORMAT_VERSION {
            let message = format!("the inventory has format version {}", header.backstay_inventory);
            return Err(Error::new(ErrorKind::Config, message)
                .hint("upgrade backstay on this host: this version reads format version 1."));
        }
        let mut found = Self { header, ..Self::default() };
        for text in lines {
            match serde_json::from_str(text).map_err(|e| damaged("a line cannot be read").caused_by(e))? {
                Line::Shard(line) => drop(found.shards.insert(line.file.path.clone(), line)),
                Line::File(line) => drop(found.files.insert(line.path.clone(), line)),
                Line::Database(line) => drop(found.databases.insert(line.db.clone(), line)),
            }
        }
        Ok(found)
    }

    /// The line of a stored file.
    pub(super) fn file(&self, path: &str) -> Option<&FileLine> {
        self.files.get(path).or_else(|| self.shards.get(path).map(|s| &s.file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were() {
        let mut inventory = Inventory {
            header: Header::new("/data".into(), Some("a@b".into()), vec!["a@b".into()], true),
            ..Inventory::default()
        };
        let file = |path: &str| FileLine { path: path.into(), size: 5, blake3: "00".into() };
        let facts = ShardFacts { header_offset: 4096, epochs: vec![("a@b".into(), 0)], ..ShardFacts::default() };
        let good = ShardLine { file: file("shards/x"), facts: Some(facts), ..ShardLine::default() };
        let bad = ShardLine { file: file("shards/y"), damage: Some("it is empty".into()), ..ShardLine::default() };
        let database = DatabaseLine { db: "user/foo".into(), dropped: true, ..DatabaseLine::default() };
        inventory.shards.extend([("shards/x".into(), good), ("shards/y".into(), bad)]);
        inventory.files.insert("_dbs.couch".into(), file("_dbs.couch"));
        inventory.databases.insert("user/foo".into(), database);
        let text: Vec<u8> = inventory.lines().flat_map(Result::unwrap).collect();
        assert_eq!(Inventory::parse(std::str::from_utf8(&text).unwrap()).unwrap(), inventory);
    }
}
