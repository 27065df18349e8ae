//! Verification from the archive alone: every file is what the inventory says, every shard is checked again as
//! CouchDB would read it, to the last document and attachment, and every shard that a map names is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::contents::Contents;
use super::inventory::{Inventory, ShardFacts};
use super::shard_map::{self, ShardMap};
use super::tree::{self, Facts};
use super::{DBS, point, walk};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::archive::MemberKind;
use crate::pipeline::bridge::blocking;
use crate::pipeline::extract::{TarReader, show};
use crate::source::{Context, PointReader, Verified};

/// Files up to this size are checked in memory; larger ones in a scratch file.
const SMALL_BYTES: u64 = 8 << 20;
/// Problems that are told; the rest is only counted.
const MAX_TOLD: usize = 50;

/// See [`crate::source::Source::verify`].
pub(super) async fn verify(cx: &Context, point: &PointReader) -> Result<Verified> {
    read(cx, point, &cx.workdir).await
}

/// The same with the directory for scratch files.
pub(super) async fn read(cx: &Context, point: &PointReader, scratch: &Path) -> Result<Verified> {
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let inventory = point::inventory(point).await?;
    let archive = point::archive(point, &stop).await?;
    let (scratch, monitor) = (scratch.to_owned(), std::sync::Arc::clone(&cx.monitor));
    let outcome = blocking(move || {
        let mut found = Found { inventory, scratch, ..Found::default() };
        match found.read(archive) {
            Ok(()) => {}
            Err(e) if e.kind == ErrorKind::Corrupt => found.problem(e.chain()),
            Err(e) => return Err(e),
        }
        for name in &found.not_walked {
            monitor
                .warn(&format!("{name} is larger than the free space for scratch files: only its digest was checked"));
        }
        Ok(found.finish())
    })
    .await;
    drop(guard);
    outcome
}

/// Looks at a directory into which all of a point was extracted, and compared with the inventory while it was. Blocks.
pub(super) fn extracted(inventory: Inventory, root: &Path) -> Result<Verified> {
    let names: Vec<String> = inventory.files.keys().chain(inventory.shards.keys()).cloned().collect();
    let mut found = Found { inventory, ..Found::default() };
    for name in names {
        let path = root.join(&name);
        let failed = |e| Error::io(e, format!("could not read {}", path.display()));
        let file = File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let body = Body { size, digest: blake3::Hasher::new(), keep: Keep::Scratch(file) };
        found.member(name, &body, None)?;
    }
    Ok(found.finish())
}

#[derive(Default)]
struct Found {
    inventory: Inventory,
    scratch: PathBuf,
    seen: BTreeSet<String>,
    counts: BTreeMap<String, u64>,
    maps: Option<BTreeMap<String, ShardMap>>,
    not_walked: Vec<String>,
    problems: Vec<String>,
    more: u64,
}

impl Found {
    fn problem(&mut self, text: String) {
        if self.problems.len() < MAX_TOLD { self.problems.push(text) } else { self.more += 1 }
    }
    fn count(&mut self, key: &str, n: u64) {
        *self.counts.entry(key.to_owned()).or_default() += n;
    }

    fn read(&mut self, archive: impl BufRead) -> Result<()> {
        let mut tar = TarReader::new(archive);
        while let Some(found) = tar.next_member()? {
            let member = found.member;
            if member.kind == MemberKind::Directory {
                continue;
            }
            let name = String::from_utf8(member.path.clone()).ok();
            let Some(name) = name.filter(|_| member.kind == MemberKind::File && found.segments.is_none()) else {
                self.problem(format!("{} is not a file that a capture stores", show(&member.path)));
                continue;
            };
            let mut body = Body::new(&self.scratch, &name, member.size)?;
            while let Some(bytes) = tar.read_content()? {
                body.take(bytes)?;
            }
            let digest = body.digest.finalize();
            self.member(name, &body, Some(&digest))?;
        }
        tar.drain()
    }

    /// Without a digest, the content was compared before.
    fn member(&mut self, name: String, body: &Body, digest: Option<&blake3::Hash>) -> Result<()> {
        self.count("files", 1);
        self.count("bytes", body.size);
        let Some(line) = self.inventory.file(&name) else {
            self.problem(format!("{name} is in the archive but not in the inventory"));
            return Ok(());
        };
        if line.size != body.size || digest.is_some_and(|d| d.to_hex().as_str() != line.blake3) {
            self.problem(format!("{name} has other content than the inventory says"));
        }
        if name == DBS {
            match body.maps() {
                Ok(maps) => self.maps = Some(maps),
                Err(e) if e.kind == ErrorKind::Corrupt => self.problem(format!("{DBS} is damaged: {}", e.chain())),
                Err(e) => return Err(e),
            }
        } else if walk::is_shard(&name) {
            self.shard(&name, body)?;
        }
        self.seen.insert(name);
        Ok(())
    }

    fn shard(&mut self, name: &str, body: &Body) -> Result<()> {
        self.count("shards", 1);
        let checked = match body.inspect() {
            None => {
                self.not_walked.push(name.to_owned());
                self.count("shards_not_walked", 1);
                return Ok(());
            }
            Some(Ok((facts, contents))) => {
                self.count("bodies", contents.bodies);
                self.count("attachments", contents.attachments);
                Ok(ShardFacts::from(facts))
            }
            Some(Err(e)) if e.kind == ErrorKind::Corrupt => Err(e.chain()),
            Some(Err(e)) => return Err(e),
        };
        let line = self.inventory.shards.get(name).cloned().unwrap_or_default();
        match checked {
            Ok(facts) => {
                if !line.no_map {
                    self.count("documents", facts.doc_count);
                    self.count("deleted_documents", facts.del_count);
                }
                if line.facts.as_ref() != Some(&facts) {
                    self.problem(format!("{name} has other counts or another header than the inventory says"));
                }
            }
            // A database that was just being created, or dropped, may leave such a file: no map names it.
            Err(_) if line.no_map => {}
            Err(why) => self.problem(format!("{name} is damaged: {why}")),
        }
        Ok(())
    }

    fn finish(mut self) -> Verified {
        let stored = self.inventory.files.keys().chain(self.inventory.shards.keys());
        let lacking: Vec<String> = stored.filter(|path| !self.seen.contains(*path)).cloned().collect();
        for path in lacking {
            self.problem(format!("{path} is in the inventory but not in the archive"));
        }
        match self.maps.take() {
            Some(maps) => self.judge_maps(&maps),
            None if self.seen.contains(DBS) => {}
            None => self.problem(format!("{DBS} is not in the archive")),
        }
        if self.more > 0 {
            let more = std::mem::take(&mut self.more);
            self.problems.push(format!("and {more} more"));
        }
        Verified { counts: self.counts, problems: self.problems }
    }

    /// Every shard that a map names must be there, and every shard must have a map.
    fn judge_maps(&mut self, maps: &BTreeMap<String, ShardMap>) {
        self.count("databases", 0);
        let node = self.inventory.header.node.clone().unwrap_or_default();
        let mut named = BTreeSet::new();
        for (db, map) in maps {
            let line = self.inventory.databases.get(db).cloned();
            named.extend(map.ranges().into_iter().map(|range| map.path(range)));
            let Some(line) = line else {
                self.problem(format!("database {db} is in {DBS} but not in the inventory"));
                continue;
            };
            if line.dropped {
                continue;
            }
            self.count("databases", 1);
            for path in map.of(&node).iter().map(|range| map.path(range)) {
                if !self.seen.contains(&path) {
                    self.problem(format!(
                        "{path} is missing: CouchDB would open this part of database {db} as an empty one"
                    ));
                }
            }
        }
        let strays = self.seen.iter().filter(|path| walk::is_shard(path) && !named.contains(*path));
        let told = |path: &&String| self.inventory.shards.get(*path).is_some_and(|s| s.no_map);
        let strays: Vec<String> = strays.filter(|path| !told(path)).cloned().collect();
        for path in strays {
            self.problem(format!("{path} is in no shard map"));
        }
        let unknown = self.inventory.databases.keys().filter(|db| !maps.contains_key(*db));
        let unknown: Vec<String> = unknown.cloned().collect();
        for db in unknown {
            self.problem(format!("database {db} is in the inventory but not in {DBS}"));
        }
    }
}

/// The content of one member, where it can be read at any offset.
struct Body {
    size: u64,
    digest: blake3::Hasher,
    keep: Keep,
}

enum Keep {
    Memory(Vec<u8>),
    Scratch(File),
    /// No room for it.
    No,
}

impl Body {
    fn new(scratch: &Path, name: &str, size: u64) -> Result<Self> {
        let keep = if !walk::is_shard(name) && name != DBS {
            Keep::No
        } else if size <= SMALL_BYTES {
            Keep::Memory(Vec::new())
        } else if has_room(scratch, size) {
            Keep::Scratch(scratch_file(scratch)?)
        } else {
            Keep::No
        };
        Ok(Self { size: 0, digest: blake3::Hasher::new(), keep })
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        self.size += bytes.len() as u64;
        self.digest.update(bytes);
        match &mut self.keep {
            Keep::Memory(kept) => kept.extend_from_slice(bytes),
            Keep::Scratch(file) => {
                file.write_all(bytes).map_err(|e| Error::io(e, "could not write a scratch file"))?;
            }
            Keep::No => {}
        }
        Ok(())
    }

    fn inspect(&self) -> Option<Result<(Facts, Contents)>> {
        match &self.keep {
            Keep::Memory(bytes) => Some(tree::inspect_documents(bytes.as_slice(), self.size)),
            Keep::Scratch(file) => Some(tree::inspect_documents(file, self.size)),
            Keep::No => None,
        }
    }

    fn maps(&self) -> Result<BTreeMap<String, ShardMap>> {
        let maps = match &self.keep {
            Keep::Memory(bytes) => shard_map::read_dbs(bytes.as_slice(), self.size),
            Keep::Scratch(file) => shard_map::read_dbs(file, self.size),
            Keep::No => return Err(Error::new(ErrorKind::NoSpace, format!("no room for a scratch copy of {DBS}"))),
        };
        Ok(maps?.into_iter().map(|(db, (map, _))| (db, map)).collect())
    }
}

/// Room for the file, and as much again for everybody else.
fn has_room(scratch: &Path, size: u64) -> bool {
    let stat = nix::sys::statvfs::statvfs(scratch);
    stat.is_ok_and(|s| s.blocks_available().saturating_mul(s.fragment_size()) / 2 > size)
}

/// A file without a name.
fn scratch_file(dir: &Path) -> Result<File> {
    let path = dir.join("shard");
    let failed = |e| Error::io(e, "could not make a scratch file");
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(file)
}
