//! Reads a live data directory into one tar: indexes, then `_dbs.couch`, then shards.
//!
//! In this order, because an index that is newer than its shard gives wrong rows without a word, and because a map
//! without a file makes CouchDB create an empty database. The other way round, what is too much does no harm: an index
//! that is older is brought up to date, a file without a map is not looked at.

use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _, Write};
use std::path::PathBuf;
use std::sync::mpsc::Receiver;
use std::time::Instant;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::inventory::{DatabaseLine, FileLine, Header, Inventory, ShardLine};
use super::load::{Checked, Loaded, Readers, Shared, broke};
use super::shard_map::{self, ShardMap};
use super::walk::{self, Listing};
use super::{DBS, Hold, Moment, priority};
use crate::config::CouchdbConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::archive::{Member, MemberKind, Stopped, TarWriter, Watched, watched};

/// All that the blocking side needs.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) config: CouchdbConfig,
    /// The real data directory.
    pub(super) root: PathBuf,
    pub(super) hold: Hold,
    pub(super) stop: CancellationToken,
    /// Where the threads' priorities are asked for.
    pub(super) runtime: tokio::runtime::Handle,
}

/// What was captured.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) inventory: Inventory,
    pub(super) bytes: u64,
    pub(super) views: u64,
    /// Shards with documents that no map names, before or after, and that are still there: a map may be lost.
    pub(super) strays: Vec<String>,
    /// Without names.
    pub(super) warnings: Vec<String>,
}

type Maps = BTreeMap<String, (ShardMap, Value)>;

/// Captures everything. Blocks.
pub(super) fn run(job: &Job, out: impl Write) -> Result<Taken, Stopped> {
    watched(out, |out| run_into(job, out))
}

fn run_into<W: Write>(job: &Job, out: Watched<'_, W>) -> Result<Taken> {
    let refused = std::sync::atomic::AtomicBool::new(false);
    let settle = || {
        if !priority::settle(job.config.io_priority, &job.runtime) {
            refused.store(true, std::sync::atomic::Ordering::Relaxed);
        }
    };
    settle();
    let mut taken = std::thread::scope(|scope| {
        let shared = Shared { root: &job.root, hold: &job.hold, check: job.config.check };
        let readers = Readers::start(scope, job.config.readers, shared, &settle)?;
        let mut capture = Capture {
            job,
            readers,
            tar: TarWriter::new(out),
            pace: Pace::new(job.config.max_rate.map(|rate| rate.0)),
            taken: Taken::default(),
            checks: Vec::new(),
        };
        capture.all()?;
        capture.tar.finish()?;
        Ok::<_, Error>(capture.taken)
    })?;
    if refused.load(std::sync::atomic::Ordering::Relaxed) {
        taken.warnings.push("`io_priority` could not be set: `ionice` is not there or not allowed".into());
    }
    Ok(taken)
}

/// Keeps to a rate. Measures durations, and knows no time of day.
struct Pace {
    rate: Option<u64>,
    began: Instant,
    done: u64,
}

impl Pace {
    fn new(rate: Option<u64>) -> Self {
        Self { rate, began: Instant::now(), done: 0 }
    }
    fn spend(&mut self, bytes: usize, stop: &CancellationToken) {
        let Some(rate) = self.rate else { return };
        self.done += bytes as u64;
        let due = std::time::Duration::from_secs_f64(self.done as f64 / rate as f64);
        while let Some(left) = due.checked_sub(self.began.elapsed()).filter(|left| !left.is_zero()) {
            if stop.is_cancelled() {
                return;
            }
            std::thread::sleep(left.min(std::time::Duration::from_millis(100)));
        }
    }
}

/// What kind of file, and thus what is done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    View,
    Plain,
    Shard,
}

struct Capture<'a, W: Write> {
    job: &'a Job,
    readers: Readers,
    tar: TarWriter<Watched<'a, W>>,
    pace: Pace,
    taken: Taken,
    /// Shards that are being checked.
    checks: Vec<(String, Receiver<Result<Checked>>)>,
}

impl<W: Write> Capture<'_, W> {
    fn all(&mut self) -> Result<()> {
        let root = &self.job.root;
        self.directory(".")?;
        if self.job.config.views {
            let listing = walk::below(root, ".shards", &walk::is_view)?;
            self.listed(&listing, Kind::View)?;
        }
        let maps = self.maps()?;
        self.job.hold.at(Moment::MapsRead, root)?;
        let local = walk::local_databases(root)?;
        self.files(&local, Kind::Plain)?;
        let listing = walk::below(root, "shards", &walk::is_shard)?;
        self.job.hold.at(Moment::Listed, root)?;
        self.listed(&listing, Kind::Shard)?;
        self.take_checks()?;
        let node = own_node(self.job.config.node.as_deref(), &maps, &self.taken.inventory.shards)?;
        self.unlisted(&maps, node.as_deref())?;
        self.take_checks()?;
        self.job.hold.at(Moment::Read, root)?;
        let again = self.read_maps()?;
        self.conclude(&maps, &again, node);
        if listing.left_out > 0 {
            self.taken
                .warnings
                .push(format!("{} entries below `shards` are no shards and were left out", listing.left_out));
        }
        Ok(())
    }

    fn listed(&mut self, listing: &Listing, kind: Kind) -> Result<()> {
        for directory in &listing.directories {
            self.directory(directory)?;
        }
        self.files(&listing.files, kind)
    }

    /// Stores `_dbs.couch` and reads its maps: from the very bytes that are stored.
    fn maps(&mut self) -> Result<Maps> {
        let path = self.job.root.join(DBS);
        let (meta, bytes) = read_whole(&path)?;
        let member = Member::of(DBS, MemberKind::File, &meta);
        self.tar.append(&member, &bytes)?;
        self.pace.spend(bytes.len(), &self.job.stop);
        self.file_line(DBS, bytes.len() as u64, &blake3::hash(&bytes));
        parse_maps(&path, &bytes)
    }

    fn read_maps(&self) -> Result<Maps> {
        let path = self.job.root.join(DBS);
        let (_, bytes) = read_whole(&path)?;
        parse_maps(&path, &bytes)
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        let full = self.job.root.join(path);
        match fs::metadata(&full) {
            Ok(meta) => Ok(self.tar.append(&Member::of(path, MemberKind::Directory, &meta), b"")?),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(Error::io(e, format!("could not look at {}", full.display()))),
        }
    }

    /// Stores files in the given order, while others are read ahead.
    fn files(&mut self, paths: &[String], kind: Kind) -> Result<()> {
        let mut ahead: VecDeque<(&String, Receiver<Loaded>)> = VecDeque::new();
        let mut rest = paths.iter();
        loop {
            while ahead.len() < self.readers.ahead
                && let Some(path) = rest.next()
            {
                ahead.push_back((path, self.readers.load(path, kind == Kind::Shard)?));
            }
            let Some((path, answer)) = ahead.pop_front() else { return Ok(()) };
            if self.job.stop.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the backup was stopped"));
            }
            let loaded = answer.recv().map_err(|_| broke())?;
            self.store(path, kind, loaded)?;
        }
    }

    /// Whether it was there.
    fn store(&mut self, path: &str, kind: Kind, loaded: Loaded) -> Result<bool> {
        match loaded {
            Loaded::Gone => return Ok(false),
            Loaded::Failed(e) => return Err(e),
            Loaded::Small { meta, buffer, len, digest, checked } => {
                self.tar.append(&Member::of(path, MemberKind::File, &meta), &buffer[..len])?;
                self.pace.spend(len, &self.job.stop);
                self.stored(path, kind, len as u64, &digest);
                self.readers.give_back(buffer);
                if let Some(checked) = checked {
                    self.judged(path, checked);
                }
            }
            Loaded::Large { meta, file } => self.store_large(path, kind, &meta, file)?,
        }
        Ok(true)
    }

    fn store_large(&mut self, path: &str, kind: Kind, meta: &Metadata, file: File) -> Result<()> {
        let mut hasher = blake3::Hasher::new();
        let (pace, stop) = (&mut self.pace, &self.job.stop);
        let mut seen = |bytes: &[u8]| {
            hasher.update(bytes);
            pace.spend(bytes.len(), stop);
            if stop.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the backup was stopped").into());
            }
            Ok(())
        };
        // Only a hint: nothing is wrong when it is not taken.
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL;
        let _ = nix::fcntl::posix_fadvise(&file, 0, 0, advice);
        let full = self.job.root.join(path);
        let mut named = Named { file: &file, path: &full };
        let copied = self.tar.append_reader(&Member::of(path, MemberKind::File, meta), &mut named, &mut seen)?;
        if copied.padded > 0 {
            return Err(Error::new(ErrorKind::Failed, format!("{} became shorter while it was read", full.display()))
                .hint("nothing of CouchDB does that: see what else writes there."));
        }
        let digest = hasher.finalize();
        self.stored(path, kind, meta.len(), &digest);
        if kind == Kind::Shard {
            let answer = self.readers.check(file, meta.len(), path)?;
            self.checks.push((path.to_owned(), answer));
        }
        Ok(())
    }

    fn stored(&mut self, path: &str, kind: Kind, size: u64, digest: &blake3::Hash) {
        if kind == Kind::Shard {
            let file = FileLine { path: path.to_owned(), size, blake3: digest.to_hex().to_string() };
            self.taken.bytes += size;
            self.taken.inventory.shards.insert(path.to_owned(), ShardLine { file, ..ShardLine::default() });
        } else {
            self.taken.views += u64::from(kind == Kind::View);
            self.file_line(path, size, digest);
        }
    }

    fn file_line(&mut self, path: &str, size: u64, digest: &blake3::Hash) {
        self.taken.bytes += size;
        let line = FileLine { path: path.to_owned(), size, blake3: digest.to_hex().to_string() };
        self.taken.inventory.files.insert(path.to_owned(), line);
    }

    fn judged(&mut self, path: &str, checked: Checked) {
        if let Some(line) = self.taken.inventory.shards.get_mut(path) {
            match checked {
                Ok(facts) => line.facts = Some(facts.into()),
                Err(why) => line.damage = Some(why),
            }
        }
    }

    /// Shards that a map names and the listing did not: a rename can hide a file from a listing.
    fn unlisted(&mut self, maps: &Maps, node: Option<&str>) -> Result<()> {
        let Some(node) = node else { return Ok(()) };
        let all = maps.values().flat_map(|(map, _)| map.of(node).iter().map(|range| map.path(range)));
        let known = &self.taken.inventory.shards;
        let missing: Vec<String> = all.filter(|path| !known.contains_key(path)).collect();
        // What is not there either way is judged when the maps are read again.
        self.files(&missing, Kind::Shard)
    }

    fn take_checks(&mut self) -> Result<()> {
        for (path, answer) in std::mem::take(&mut self.checks) {
            let checked = answer.recv().map_err(|_| broke())??;
            self.judged(&path, checked);
        }
        Ok(())
    }

    /// Compares what the maps name with what was stored.
    fn conclude(&mut self, maps: &Maps, again: &Maps, node: Option<String>) {
        let shards = &mut self.taken.inventory.shards;
        let mut named = BTreeSet::new();
        for (db, (map, _)) in maps {
            let mut line = DatabaseLine { db: db.clone(), suffix: map.suffix.clone(), ..DatabaseLine::default() };
            line.ranges = map.ranges().into_iter().map(str::to_owned).collect();
            for range in node.as_deref().map(|node| map.of(node)).unwrap_or_default() {
                let path = map.path(range);
                match shards.get(&path) {
                    None => line.damage.push(format!("{path} is missing")),
                    Some(ShardLine { facts: Some(facts), .. }) => {
                        line.doc_count += facts.doc_count;
                        line.del_count += facts.del_count;
                    }
                    Some(shard) => {
                        let why = shard.damage.as_deref().unwrap_or("it was not checked");
                        line.damage.push(format!("{path} is damaged: {why}"));
                    }
                }
                named.insert(path);
            }
            let stays = again.get(db).is_some_and(|(other, _)| other.suffix == map.suffix);
            if !stays && !line.damage.is_empty() {
                line.dropped = true;
                line.damage.clear();
            }
            self.taken.inventory.databases.insert(db.clone(), line);
        }
        let (known, created) = (all_paths(maps), all_paths(again));
        for (path, shard) in shards.iter_mut().filter(|(path, _)| !named.contains(*path)) {
            shard.no_map = !known.contains(path);
        }
        let strays = shards.iter().filter(|(_, shard)| {
            let holds = shard.facts.as_ref().is_none_or(|f| f.doc_count > 0) && shard.file.size > 0;
            shard.no_map && holds
        });
        let root = &self.job.root;
        let strays = strays.map(|(path, _)| path).filter(|path| !created.contains(*path) && root.join(path).exists());
        self.taken.strays = strays.cloned().collect();
        let nodes: BTreeSet<&String> = maps.values().flat_map(|(map, _)| map.by_node.keys()).collect();
        let path = self.job.root.display().to_string();
        let nodes = nodes.into_iter().cloned().collect();
        self.taken.inventory.header = Header::new(path, node, nodes, self.job.config.views);
    }
}

/// The files that maps name, on whatever node.
fn all_paths(maps: &Maps) -> HashSet<String> {
    maps.values().flat_map(|(map, _)| map.ranges().into_iter().map(|range| map.path(range))).collect()
}

/// The node whose directory this is: as configured, the only one there is, or the one that owned most of the shards
/// when they were last opened.
fn own_node(configured: Option<&str>, maps: &Maps, shards: &BTreeMap<String, ShardLine>) -> Result<Option<String>> {
    let names: BTreeSet<&String> = maps.values().flat_map(|(map, _)| map.by_node.keys()).collect();
    let list = || names.iter().map(|n| n.as_str()).collect::<Vec<_>>().join(", ");
    if names.is_empty() {
        return Ok(configured.map(str::to_owned));
    }
    if let Some(node) = configured {
        return match names.iter().any(|name| *name == node) {
            true => Ok(Some(node.to_owned())),
            false => Err(Error::new(ErrorKind::Config, format!("no shard map names the node {node:?}"))
                .hint(format!("set `node` to the one that this is, of: {}.", list()))),
        };
    }
    if names.len() == 1 {
        return Ok(names.first().map(|n| (*n).clone()));
    }
    let mut votes: BTreeMap<&str, u64> = BTreeMap::new();
    for (node, _) in shards.values().filter_map(|s| s.facts.as_ref()?.epochs.first()) {
        if names.contains(node) {
            *votes.entry(node).or_default() += 1;
        }
    }
    let most = votes.values().max().copied().unwrap_or(0);
    let best: Vec<&str> = votes.iter().filter(|(_, n)| **n == most && most > 0).map(|(name, _)| *name).collect();
    match best.as_slice() {
        [one] => Ok(Some((*one).to_owned())),
        _ => Err(Error::new(ErrorKind::Config, "it cannot be told from the files which node of the cluster this is")
            .hint(format!("set `node` to one of: {}.", list()))),
    }
}

fn read_whole(path: &std::path::Path) -> Result<(Metadata, Vec<u8>)> {
    let failed = |e: io::Error| {
        let missing = e.kind() == io::ErrorKind::NotFound;
        let e = Error::io(e, format!("could not read {}", path.display()));
        if missing { e.hint("check `data_dir`: CouchDB 2 and newer keep their shard maps there.") } else { e }
    };
    let file = File::open(path).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    let mut bytes = Vec::new();
    (&file).take(meta.len()).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 != meta.len() {
        return Err(Error::new(ErrorKind::Failed, format!("{} became shorter while it was read", path.display())));
    }
    Ok((meta, bytes))
}

fn parse_maps(path: &std::path::Path, bytes: &[u8]) -> Result<Maps> {
    shard_map::read_dbs(bytes, bytes.len() as u64).map_err(|e| {
        e.within(format!("{} is damaged: no database could be found by it", path.display()))
            .hint("restore an older point; CouchDB would start with this as an empty node.")
    })
}

/// A file whose errors say its name.
struct Named<'a> {
    file: &'a File,
    path: &'a std::path::Path,
}

impl io::Read for Named<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match (&mut &*self.file).read(buf) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                Err(Error::io(e, format!("could not read {}", self.path.display())).into())
            }
            other => other,
        }
    }
}
