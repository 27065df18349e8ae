//! A drill. Where there is a CouchDB on this host: the archive is extracted, every shard is checked as CouchDB would read
//! it, and a throw-away node is started on the files, which rewrites its shard maps, counts, and hands out every
//! document. Where there is none, the archive is read to its end, and every shard is checked while it goes by.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use super::finish::Finish;
use super::inventory::Inventory;
use super::node::Node;
use super::restore::{Wanted, extract_wanted, refuse_parts, shards_of};
use super::shard_map::is_replicator;
use super::throwaway::{self, Throwaway};
use super::{Couchdb, point, verify};
use crate::config::CouchdbConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Manifest;
use crate::pipeline::bridge::blocking;
use crate::pipeline::extract::Rules;
use crate::source::{Context, DrillLevel, DrillRequest, Drilled, PointReader, Restored, Seconds, Stopwatch, Verified};

/// Part of a block that a file wastes on average, and what a node writes besides.
const SLACK_BYTES: u64 = 2048;
const NODE_BYTES: u64 = 32 << 20;

/// Why no node is started, if none is.
fn offline(config: &CouchdbConfig, stream: bool) -> Option<&'static str> {
    match throwaway::program(config) {
        _ if stream => Some("nothing was stored"),
        None => Some("there is no CouchDB in `bin_dir`"),
        Some(_) => None,
    }
}

/// See [`crate::source::Source::drill_bytes`]. Without a node, what is larger than the room there is told in a note.
pub(super) fn bytes(config: &CouchdbConfig, point: &Manifest, request: &DrillRequest) -> u64 {
    if offline(config, request.stream).is_some() {
        return 0;
    }
    let count = |key: &str| point.counts.get(key).copied().unwrap_or(0);
    count("bytes") + count("files") * SLACK_BYTES + NODE_BYTES
}

/// See [`crate::source::Source::drill`].
pub(super) async fn drill(
    config: &CouchdbConfig,
    cx: &Context,
    point: &PointReader,
    request: &DrillRequest,
) -> Result<Drilled> {
    let mut why = offline(config, request.stream);
    let inventory = point::inventory(point).await?;
    if refuse_parts(&inventory).is_err() {
        why = Some("the point holds a part of a cluster");
    }
    match why {
        Some(why) => read(cx, point, request, why).await,
        None => Work { config, cx, point, request, inventory: &inventory }.run().await,
    }
}

async fn read(cx: &Context, point: &PointReader, request: &DrillRequest, why: &str) -> Result<Drilled> {
    let mut watch = Stopwatch::start(&cx.clock);
    let found = verify::read(cx, point, &request.scratch).await?;
    let mut notes = vec![format!("no node was started, because {why}: the shards were read as CouchDB reads them")];
    match found.counts.get("shards_not_walked") {
        Some(n) if *n > 0 => {
            notes.push(format!("{n} shards are larger than the scratch disk: only digests were checked"))
        }
        _ => {}
    }
    let seconds = Seconds { compare: watch.lap(), ..Seconds::default() };
    Ok(Drilled { level: DrillLevel::Stream, seconds, counts: found.counts, differences: found.problems, notes })
}

struct Work<'a> {
    config: &'a CouchdbConfig,
    cx: &'a Context,
    point: &'a PointReader,
    request: &'a DrillRequest,
    inventory: &'a Inventory,
}

impl Work<'_> {
    async fn run(&self) -> Result<Drilled> {
        let mut watch = Stopwatch::start(&self.cx.clock);
        let mut seconds = Seconds::default();
        let data = self.request.scratch.join("data");
        self.extract(&data).await?;
        seconds.restore = watch.lap();
        let Verified { mut counts, problems } = self.look(&data).await?;
        seconds.compare = watch.lap();
        if !problems.is_empty() {
            // A node is not started on what is known to be wrong.
            let notes = vec!["no node was started, because the files are not what was captured".into()];
            return Ok(Drilled { level: DrillLevel::Files, seconds, counts, differences: problems, notes });
        }
        let jobs = self.leave_out(&data)?;
        let wait = self.request.wait;
        let node = Throwaway::start(self.cx, self.config, &self.request.scratch, &data, wait).await?;
        seconds.start = watch.lap();
        let (differences, read) = self.ask(&node).await?;
        seconds.compare += watch.lap();
        drop(node);
        counts.insert("documents_read".into(), read);
        let mut notes = Vec::new();
        if jobs > 0 {
            let text = format!("{jobs} databases with jobs of replication were not given to the node, only read");
            notes.push(text);
        }
        Ok(Drilled { level: DrillLevel::Server, seconds, counts, differences, notes })
    }

    async fn extract(&self, data: &Path) -> Result<()> {
        fs::DirBuilder::new()
            .mode(0o700)
            .create(data)
            .map_err(|e| Error::io(e, format!("could not make {}", data.display())))?;
        let stop = self.cx.cancel.child_token();
        let guard = stop.clone().drop_guard();
        let archive = point::archive(self.point, &stop).await?;
        let (into, wanted) = (data.to_owned(), Wanted::all(self.inventory));
        let rules = Rules { owner: throwaway::owner(), ..Rules::default() };
        let outcome = blocking(move || extract_wanted(archive, &into, rules, &wanted).map(drop)).await;
        drop(guard);
        // Nothing of a restore is to be undone here.
        outcome.map_err(|mut e| {
            e.hint = None;
            e
        })
    }

    async fn look(&self, data: &Path) -> Result<Verified> {
        let (inventory, data) = (self.inventory.clone(), data.to_owned());
        blocking(move || verify::extracted(inventory, &data)).await
    }

    /// Removes what does not come back, and what a node would act on: databases with jobs; how many of these there were.
    fn leave_out(&self, data: &Path) -> Result<u64> {
        let mut jobs = 0;
        for line in self.inventory.databases.values().filter(|line| line.dropped || is_replicator(&line.db)) {
            for (_, path) in shards_of(self.inventory, &line.db) {
                match fs::remove_file(data.join(&path)) {
                    Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io(e, format!("could not remove {path} from the scratch directory")));
                    }
                    _ => {}
                }
            }
            jobs += u64::from(line.is_whole() && line.doc_count > 0);
        }
        Ok(jobs)
    }

    /// What the node lacks, and how many documents it handed out.
    async fn ask(&self, node: &Throwaway) -> Result<(Vec<String>, u64)> {
        let source = Couchdb::new(node.config.clone());
        let finish = Finish { source: &source, inventory: self.inventory, no_replicator: true };
        let node = Node::new(&node.config, true)?;
        self.require_version(&node.version().await?)?;
        let mut short = finish.find(self.cx, &mut Restored::default()).await?;
        let mut documents = 0;
        for line in self.inventory.databases.values().filter(|line| finish.comes_back(line)) {
            if self.cx.cancel.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "stopped before it ended"));
            }
            if short.contains_key(&line.db) {
                continue;
            }
            match node.read_all(&line.db).await {
                Ok(read) if read < line.doc_count => {
                    let why = format!("{read} documents came back, and {} were captured", line.doc_count);
                    short.insert(line.db.clone(), why);
                }
                Ok(read) => documents += read,
                Err(e) if matches!(e.kind, ErrorKind::Failed | ErrorKind::NotFound | ErrorKind::Unavailable) => {
                    short.insert(line.db.clone(), format!("not every document can be read: {}", e.chain()));
                }
                Err(e) => return Err(e),
            }
        }
        Ok((short.into_iter().map(|(db, why)| format!("database {db}: {why}")).collect(), documents))
    }

    /// An older CouchDB cannot open what a newer one wrote: that would look like damage.
    fn require_version(&self, here: &str) -> Result<()> {
        let parts = |version: &str| {
            let mut numbers = version.split('.').map_while(|n| n.parse::<u32>().ok());
            (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
        };
        match self.point.manifest.server_version.as_deref() {
            Some(captured) if parts(here) < parts(captured) => {
                let message = format!("the point is of CouchDB {captured}, and on this host there is {here}");
                Err(Error::new(ErrorKind::Config, message).hint(
                    "upgrade CouchDB on this host, drill on another host with --host, or read the files only: --stream.",
                ))
            }
            _ => Ok(()),
        }
    }
}
