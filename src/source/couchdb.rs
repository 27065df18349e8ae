//! A CouchDB node, 2.0 or newer: its data directory, read while the node runs.
//!
//! - **Captured**: `_dbs.couch` (the shard maps), every shard, node-local databases, and view indexes (unless `views:
//!   false`), as one tar (`data`); a line per file and per database with its counts (`inventory`); with `etc_dir`, the
//!   node's configuration (`config`). Every shard is checked offline: its newest header and every node of its trees.
//! - **Consistency**: fuzzy. Each file is as it was at one moment: CouchDB only appends to it, and it is read through
//!   one descriptor up to the length it had when it was opened. Different shards are seconds apart.
//! - **Rights**: to read the data directory; no login. A restore needs a server admin of the node's configuration.
//! - **Not captured**: `_nodes.couch` (it makes a copy join the original's cluster), search indexes, what a compaction
//!   is working on, databases created while it runs. A point holds the shards of one node.
//! - **By hand**: docs/couchdb.md.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::AsyncWriteExt as _;

use crate::artefact::{ArtefactSink, ArtefactSpec, ArtefactWriter, Role};
use crate::config::CouchdbConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Consistency, Manifest};
use crate::pipeline::archive::Stopped;

use super::{
    Captured, Context, DrillRequest, Drilled, LegacyReader, PointReader, Probe, RestoreRequest, Restored, Source,
    Verified,
};
use capture::Taken;
use shard_map::is_replicator;

mod blocks;
mod capture;
mod contents;
mod drill;
mod etc;
mod etf;
mod finish;
mod inventory;
mod legacy;
mod load;
mod node;
mod point;
mod priority;
mod restore;
mod revisions;
mod shard_map;
mod single;
mod throwaway;
mod tree;
mod verify;
mod walk;

/// This kind in the table of sources.
pub const DRIVER: super::Driver =
    super::Driver { kind: "couchdb", summary: "a CouchDB node: its data directory, every shard checked" };

/// The shard maps.
const DBS: &str = "_dbs.couch";
/// How long a node may take to say its version.
const ASK: std::time::Duration = std::time::Duration::from_secs(10);
/// Names that are told in warnings.
const MAX_TOLD: usize = 10;

/// A moment at which a test may hold or fail the backup.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// `_dbs.couch` was read, no shard yet.
    MapsRead,
    /// The shards were listed, none of them opened.
    Listed,
    /// A file is about to be opened.
    Open,
    /// All shards were read, and `_dbs.couch` is about to be read again.
    Read,
}

type HoldFn = dyn Fn(Moment, &Path) -> io::Result<()> + Send + Sync;

/// See [`Moment`].
#[derive(Clone, Default)]
struct Hold(Option<Arc<HoldFn>>);

impl Hold {
    fn at(&self, moment: Moment, path: &Path) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |hold| hold(moment, path))
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

/// A CouchDB node as a source.
#[derive(Debug)]
pub struct Couchdb {
    config: CouchdbConfig,
    hold: Hold,
}

impl Couchdb {
    /// From its settings.
    pub fn new(config: CouchdbConfig) -> Self {
        Self { config, hold: Hold::default() }
    }

    /// With a function that is called at certain moments of a backup, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_hold(mut self, hold: impl Fn(Moment, &Path) -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.hold = Hold(Some(Arc::new(hold)));
        self
    }

    fn root(&self) -> Result<PathBuf> {
        let dir = &self.config.data_dir;
        dir.canonicalize().map_err(|e| {
            Error::io(e, format!("could not open the directory {}", dir.display()))
                .hint("check `data_dir`, and that its file system is mounted.")
        })
    }

    /// Asked without login; nothing depends on the answer.
    async fn version(&self) -> Result<String> {
        let asked = tokio::time::timeout(ASK, node::Node::new(&self.config, false)?.version()).await;
        asked.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the node does not answer")))
    }

    async fn capture(&self, cx: &Context, sink: &dyn ArtefactSink) -> Result<Taken> {
        let stop = cx.cancel.child_token();
        let guard = stop.clone().drop_guard();
        let mut spec = ArtefactSpec::data("data", "tar");
        spec.estimated_bytes = estimate(cx);
        let job = capture::Job {
            config: self.config.clone(),
            root: self.root()?,
            hold: self.hold.clone(),
            stop,
            runtime: tokio::runtime::Handle::current(),
        };
        let mut writer = sink.open(spec).await?;
        let worker = tokio::task::spawn_blocking(move || {
            let outcome = capture::run(&job, writer.blocking());
            (writer, outcome)
        });
        let (writer, outcome) =
            worker.await.map_err(|e| Error::new(ErrorKind::Internal, "the reader broke").caused_by(e))?;
        drop(guard);
        match outcome {
            Ok(taken) => {
                writer.finish().await?;
                Ok(taken)
            }
            Err(Stopped::Closed) => Err(writer.failure().await),
            Err(Stopped::Error(e)) => Err(e),
        }
    }
}

fn estimate(cx: &Context) -> Option<u64> {
    cx.previous.as_ref().and_then(|m| m.counts.get("bytes").copied())
}

#[async_trait]
impl Source for Couchdb {
    fn kind(&self) -> &'static str {
        "couchdb"
    }

    fn method(&self) -> &'static str {
        "files"
    }

    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let root = self.root()?;
        let path = root.join(DBS);
        std::fs::File::open(&path).map_err(|e| {
            Error::io(e, format!("could not open {}", path.display()))
                .hint("check `data_dir` (CouchDB 2 and newer keep their shard maps there) and the rights to read it.")
        })?;
        let mut probe = Probe { estimated_bytes: estimate(cx), ..Probe::default() };
        match self.version().await {
            Ok(version) => probe.server_version = Some(version),
            // A node that is down can be captured as well.
            Err(e) => probe.warnings.push(format!("the node's version is not known: {}", e.chain())),
        }
        Ok(probe)
    }

    async fn backup(&self, cx: &Context, sink: &dyn ArtefactSink) -> Result<Captured> {
        let taken = self.capture(cx, sink).await?;
        let lines = sink.open(ArtefactSpec::data("inventory", "jsonl").role(Role::Inventory)).await?;
        write_lines(&taken, lines).await?;
        if let Some(dir) = &self.config.etc_dir {
            etc::store(dir, self.config.etc_unencrypted, sink).await?;
        }
        let mut captured = judged(cx, taken);
        captured.server_version = self.version().await.ok();
        Ok(captured)
    }

    async fn restore_legacy(&self, cx: &Context, old: LegacyReader, request: &RestoreRequest) -> Result<Restored> {
        request.refuse_indices()?;
        legacy::restore(self, cx, old, request).await
    }

    async fn restore(&self, cx: &Context, point: &PointReader, request: &RestoreRequest) -> Result<Restored> {
        restore::restore(self, cx, point, request).await
    }

    async fn verify(&self, cx: &Context, point: &PointReader) -> Result<Verified> {
        verify::verify(cx, point).await
    }

    async fn drill(&self, cx: &Context, point: &PointReader, request: &DrillRequest) -> Result<Drilled> {
        drill::drill(&self.config, cx, point, request).await
    }

    fn drill_bytes(&self, point: &Manifest, request: &DrillRequest) -> u64 {
        drill::bytes(&self.config, point, request)
    }

    fn production(&self, _: &Manifest) -> Vec<PathBuf> {
        vec![self.config.data_dir.clone()]
    }

    async fn cleanup(&self, _: &Context) -> Result<()> {
        Ok(())
    }
}

async fn write_lines(taken: &Taken, mut lines: ArtefactWriter) -> Result<()> {
    for line in taken.inventory.lines() {
        if let Err(e) = lines.write_all(&line?).await {
            return Err(if e.kind() == io::ErrorKind::BrokenPipe { lines.failure().await } else { e.into() });
        }
    }
    lines.finish().await.map(drop)
}

/// What the manifest says of it. Names are told to the person who looks on, and stand in the inventory.
fn judged(cx: &Context, taken: Taken) -> Captured {
    let Taken { inventory, bytes, views, strays, mut warnings } = taken;
    let whole = || inventory.databases.values().filter(|d| d.is_whole());
    let damaged: Vec<&String> = inventory.databases.values().flat_map(|d| &d.damage).collect();
    let dropped: Vec<&String> = inventory.databases.values().filter(|d| d.dropped).map(|d| &d.db).collect();
    let mapless: Vec<&String> = inventory.shards.values().filter(|s| s.no_map).map(|s| &s.file.path).collect();
    let named = "the inventory names them";
    tell(cx, "damaged or missing", &damaged);
    tell(cx, "dropped while it was captured", &dropped);
    tell(cx, "in no shard map", &mapless);
    if !dropped.is_empty() {
        warnings.push(format!("{} databases were dropped while they were captured; {named}", dropped.len()));
    }
    if !mapless.is_empty() {
        warnings.push(format!("{} shards are in no shard map; {named}", mapless.len()));
    }
    let jobs: u64 = whole().filter(|d| is_replicator(&d.db)).map(|d| d.doc_count).sum();
    if jobs > 0 {
        warnings.push(format!(
            "{jobs} replication documents may hold passwords, and their jobs start with a restored node"
        ));
    }
    let mut suspect = Vec::new();
    if !damaged.is_empty() {
        suspect.push(format!("{} shards are damaged or missing; {named}", damaged.len()));
    }
    let known = cx.previous.as_ref().and_then(|m| m.counts.get("stray_shards").copied()).unwrap_or(0);
    if strays.len() as u64 > known {
        let message = format!("{} shards with documents are in no shard map: maps may be lost; {named}", strays.len());
        suspect.push(message);
    }
    let counted: [(&str, u64); 8] = [
        ("databases", whole().count() as u64),
        ("shards", inventory.shards.len() as u64),
        ("documents", whole().map(|d| d.doc_count).sum()),
        ("deleted_documents", whole().map(|d| d.del_count).sum()),
        ("stray_shards", strays.len() as u64),
        ("views", views),
        ("files", (inventory.shards.len() + inventory.files.len()) as u64),
        ("bytes", bytes),
    ];
    let seq: u64 = inventory.shards.values().filter_map(|s| s.facts.as_ref()).map(|f| f.update_seq).sum();
    let nodes = inventory.header.nodes.len();
    let mut attributes = BTreeMap::from([("nodes".to_owned(), nodes.to_string())]);
    attributes.extend(inventory.header.node.clone().map(|node| ("node".to_owned(), node)));
    Captured {
        consistency: Consistency::Fuzzy,
        server_version: None,
        position: Some(format!("update_seq {seq} (sum of all shards)")),
        counts: counted.into_iter().map(|(key, n)| (key.to_owned(), n)).collect(),
        attributes,
        warnings,
        suspect,
        external: Vec::new(),
        missed: Vec::new(),
    }
}

fn tell(cx: &Context, what: &str, names: &[&String]) {
    for name in names.iter().take(MAX_TOLD) {
        cx.monitor.warn(&format!("{what}: {name}"));
    }
    if names.len() > MAX_TOLD {
        cx.monitor.warn(&format!("{what}: and {} more", names.len() - MAX_TOLD));
    }
}
