//! After the files: with the node up, its shard maps name the node it is now, and every shard is counted.
//!
//! Until then `/_up` and `/_all_dbs` look well and every read fails. A map takes effect at once; so what a map names
//! must be on the disk before, and what must not come back loses its map first of all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use super::Couchdb;
use super::inventory::{DatabaseLine, Inventory};
use super::node::{Counts, Identity, Node};
use super::restore::shards_of;
use super::shard_map::{self, ShardMap, is_replicator};
use super::tree;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Context, Restored};

/// How often a database is asked for that its map was just written for.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);
/// Names that are told in one error.
const MAX_TOLD: usize = 20;

/// What a restored node is compared with.
#[derive(Debug)]
pub(super) struct Finish<'a> {
    pub(super) source: &'a Couchdb,
    pub(super) inventory: &'a Inventory,
    pub(super) no_replicator: bool,
}

impl Finish<'_> {
    pub(super) fn comes_back(&self, line: &DatabaseLine) -> bool {
        line.is_whole() && !(self.no_replicator && is_replicator(&line.db))
    }

    /// Rewrites the maps, then compares.
    ///
    /// # Errors
    /// `Corrupt` naming what has fewer documents than were captured, or is not there.
    pub(super) async fn run(&self, cx: &Context, restored: &mut Restored) -> Result<()> {
        verdict(&self.find(cx, restored).await?)
    }

    /// Rewrites the maps, then compares: what is short, by database, and why.
    pub(super) async fn find(&self, cx: &Context, restored: &mut Restored) -> Result<BTreeMap<String, String>> {
        self.require_directory()?;
        let node = Node::new(&self.source.config, true)?;
        let who = node.identity().await?;
        let maps = node.maps(&who).await?;
        let mut short = self.rewrite(&node, &who, maps, restored).await?;
        for line in self.inventory.databases.values().filter(|line| self.comes_back(line)) {
            if cx.cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the comparison was stopped"));
            }
            if !short.contains_key(&line.db)
                && let Some(why) = compare(&node, &who, self.inventory, line, &line.db, &line.suffix).await?
            {
                short.insert(line.db.clone(), why);
            }
        }
        for line in self.inventory.databases.values().filter(|line| !line.damage.is_empty()) {
            short.insert(line.db.clone(), "the point does not hold it whole".into());
        }
        let whole =
            self.inventory.databases.values().filter(|line| self.comes_back(line)).count() - self.short_of(&short);
        restored.counts.insert("databases_compared".into(), whole as u64);
        Ok(short)
    }

    fn short_of(&self, short: &BTreeMap<String, String>) -> usize {
        self.inventory.databases.values().filter(|l| self.comes_back(l) && short.contains_key(&l.db)).count()
    }

    /// Removes the maps of what does not come back, rewrites the others; what cannot be whole, and why.
    async fn rewrite(
        &self,
        node: &Node,
        who: &Identity,
        maps: Vec<Value>,
        restored: &mut Restored,
    ) -> Result<BTreeMap<String, String>> {
        let from = self.inventory.header.node.clone().unwrap_or_default();
        let (mut stay, mut short, mut seen) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        for doc in maps {
            let id = doc["_id"].as_str().unwrap_or_default().to_owned();
            let Some(line) = self.inventory.databases.get(&id) else { continue };
            if ShardMap::read(&id, &doc)?.suffix != line.suffix {
                restored.notes.push(format!("database {id} is not the one that was captured: it was left alone"));
                short.insert(id, "another database of this name was made since".into());
                continue;
            }
            seen.insert(id.clone());
            if self.comes_back(line) {
                stay.push((id, doc));
            } else if let Some(path) = self.documents_in(&id) {
                // This restore did not put them there: somebody uses them.
                restored
                    .notes
                    .push(format!("database {id} does not come back, but {path} holds documents: it was left alone"));
                short.insert(id, format!("{path} holds documents that are not from this point"));
            } else {
                node.delete_map(who, &id, doc["_rev"].as_str().unwrap_or_default()).await?;
                restored.notes.push(format!("the shard map of database {id} was removed: it does not come back"));
            }
        }
        let mut rewritten = 0_u64;
        for (id, doc) in stay {
            if let Some(path) = self.missing_file(&id) {
                short.insert(id, format!("{path} is not in the data directory"));
                continue;
            }
            if let Some(new) = shard_map::for_node(&doc, &from, &who.name) {
                node.put_map(who, &id, &new).await?;
                rewritten += 1;
            }
        }
        for line in self.inventory.databases.values().filter(|l| self.comes_back(l) && !seen.contains(&l.db)) {
            short.entry(line.db.clone()).or_insert_with(|| "the node has no shard map of it".into());
        }
        if rewritten > 0 {
            restored.notes.push(format!("{rewritten} shard maps were rewritten from {from} to {}", who.name));
        }
        Ok(short)
    }

    /// Before its map can take effect: a file that is not there would be made, empty.
    fn missing_file(&self, db: &str) -> Option<String> {
        let root = &self.source.config.data_dir;
        let lost = |path: &String| root.join(path).metadata().map_or(true, |meta| meta.len() == 0);
        shards_of(self.inventory, db).into_iter().map(|(_, path)| path).find(lost)
    }

    /// A file of a database that holds documents, or cannot be looked into; not one that a node made anew.
    fn documents_in(&self, db: &str) -> Option<String> {
        let root = &self.source.config.data_dir;
        let holds = |path: &String| match std::fs::File::open(root.join(path)) {
            Err(e) => e.kind() != std::io::ErrorKind::NotFound,
            Ok(file) => {
                let len = file.metadata().map_or(0, |meta| meta.len());
                let facts = tree::inspect_roots(&file, len);
                len > 0 && facts.map_or(true, |facts| facts.doc_count + facts.del_count > 0)
            }
        };
        shards_of(self.inventory, db).into_iter().map(|(_, path)| path).find(holds)
    }

    /// Files and node must be looked at together: what one has and the other has not decides what is written.
    fn require_directory(&self) -> Result<()> {
        let path = self.source.config.data_dir.join(super::DBS);
        path.metadata().map(drop).map_err(|e| {
            Error::io(e, format!("could not look at {}", path.display()))
                .hint("run this on the node's host, as a user that may read its data directory.")
        })
    }
}

/// Compares every shard of a database, and the database as its users see it; what is short.
pub(super) async fn compare(
    node: &Node,
    who: &Identity,
    inventory: &Inventory,
    line: &DatabaseLine,
    db: &str,
    suffix: &str,
) -> Result<Option<String>> {
    for range in &line.ranges {
        let captured = inventory.shards.get(&shard_map::shard_path(range, &line.db, &line.suffix));
        let Some(wanted) = captured.and_then(|s| s.facts.as_ref()) else { continue };
        let path = shard_map::shard_path(range, db, suffix);
        let found = match node.shard(who, &path).await {
            Ok(found) => found,
            Err(e) if e.kind == ErrorKind::NotFound => return Ok(Some(format!("{path} is not there"))),
            Err(e) => return Err(e),
        };
        let wanted = Counts { doc_count: wanted.doc_count, del_count: wanted.del_count };
        if let Some(why) = shortage(&path, wanted, found) {
            return Ok(Some(why));
        }
    }
    let wanted = Counts { doc_count: line.doc_count, del_count: line.del_count };
    let mut last = Error::new(ErrorKind::Failed, "it was not asked");
    for _ in 0..TRIES {
        match node.database(db).await {
            Ok(found) => return Ok(shortage("the database", wanted, found)),
            // A map needs a moment until every part of the node knows it.
            Err(e) if matches!(e.kind, ErrorKind::NotFound | ErrorKind::Unavailable) => last = e,
            Err(e) => return Err(e),
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(Some(format!("it cannot be read: {}", last.chain())))
}

fn shortage(what: &str, wanted: Counts, found: Counts) -> Option<String> {
    let less = found.doc_count < wanted.doc_count || found.del_count < wanted.del_count;
    less.then(|| {
        format!(
            "{what} has {} documents and {} deleted ones, and {} and {} were captured",
            found.doc_count, found.del_count, wanted.doc_count, wanted.del_count
        )
    })
}

pub(super) fn verdict(short: &BTreeMap<String, String>) -> Result<()> {
    if short.is_empty() {
        return Ok(());
    }
    let mut told: Vec<String> = short.iter().take(MAX_TOLD).map(|(db, why)| format!("{db}: {why}")).collect();
    if short.len() > MAX_TOLD {
        told.push(format!("and {} more", short.len() - MAX_TOLD));
    }
    Err(Error::new(ErrorKind::Corrupt, format!("{} databases are not what was captured", short.len()))
        .caused_by(told.join("; "))
        .hint("keep users away, and restore these from another point with --database."))
}
