//! The contract between the engine and a store that can be backed up. A new store is one file in `source/`,
//! one variant of `config::kind::SourceConfig` and one line in [`build`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncBufRead;
use tokio_util::sync::CancellationToken;

use crate::artefact::ArtefactSink;
use crate::config::SourceConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Artefact, Consistency, External, Manifest};
use crate::monitor::Monitor;
use crate::units::Clock;

pub mod blobdir;
pub mod couchdb;
pub mod elasticsearch;
pub mod postgres;

/// Set for a process of a drill that cannot work in the scratch directory: its value is that directory.
pub const SCRATCH_VARIABLE: &str = "BACKSTAY_SCRATCH";

/// What every long call is given. Holds no global state.
#[derive(Debug, Clone)]
pub struct Context {
    /// The service's name.
    pub service: String,
    /// Where "now" comes from.
    pub clock: Clock,
    /// Cancelled on SIGINT, SIGTERM or the service's timeout.
    pub cancel: CancellationToken,
    /// Private (0700) scratch directory; the engine makes and removes it.
    pub workdir: PathBuf,
    /// Where progress and warnings go.
    pub monitor: Arc<dyn Monitor>,
    /// The manifest of the newest complete point of this service, if there is one.
    pub previous: Option<Arc<Manifest>>,
    /// This installation's id: marks what a store keeps for it.
    pub agent_id: String,
    /// Id of the point that is being made; `None` outside of a backup.
    pub point: Option<String>,
    /// Ids of points of this service that were begun and came to nothing: `cleanup` removes what the store keeps of them.
    pub unfinished: Vec<String>,
}

/// A store that can be backed up: one value per configured service.
///
/// - A value is cheap to build and holds no connection.
/// - Dropping the future of any method is allowed at every await point and leaves no restore point behind.
/// - What a dropped call may leave on the source side carries the service's name, and `cleanup` removes it.
/// - No method prints, logs a secret, reads the system clock, or sees a destination.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync {
    /// The driver's name, as in the configuration and the manifest.
    fn kind(&self) -> &'static str;
    /// The method in force (`plain`, `dump`, `databases`, `files`, ...).
    fn method(&self) -> &'static str;
    /// Says, without changing anything, whether a backup could work now.
    async fn probe(&self, cx: &Context) -> Result<Probe>;
    /// Streams one copy of the store into `sink`. Not resumable.
    async fn backup(&self, cx: &Context, sink: &dyn ArtefactSink) -> Result<Captured>;
    /// Writes a restore point into the target that `request` names. Refuses a target that holds data unless
    /// `request.replace`; the old data stays until the new is whole.
    async fn restore(&self, cx: &Context, point: &PointReader, request: &RestoreRequest) -> Result<Restored>;
    /// Writes a backup that commcare-cloud made of such a store, as [`Source::restore`] does: nothing captured is known
    /// that it could be compared with.
    async fn restore_legacy(&self, _: &Context, legacy: LegacyReader, _: &RestoreRequest) -> Result<Restored> {
        Err(Error::new(ErrorKind::Usage, format!("{:?} is no backup of {}", legacy.name, self.kind())))
    }
    /// Reads a point back and checks that it is what this store's own tools accept. Needs no running server.
    /// Reading to the end already checks digests.
    async fn verify(&self, cx: &Context, point: &PointReader) -> Result<Verified>;
    /// Removes what an interrupted run of this service left on the source side. Idempotent; called before and
    /// after every backup, whatever happened.
    async fn cleanup(&self, cx: &Context) -> Result<()>;
    /// Restores a point into the scratch directory of `request`, and compares what came back with what was captured.
    ///
    /// - Production is never touched: nothing is written but below `request.scratch`, and whatever must lie elsewhere
    ///   (an index in a cluster) has a name that only drills use.
    /// - Every process it starts has its working directory in the scratch directory, or the directory in the variable
    ///   [`SCRATCH_VARIABLE`] of its environment: the engine ends those that are left, after a drill and, when one was
    ///   killed, before the next.
    /// - What differs is no error: it is told in [`Drilled::differences`].
    ///
    /// # Errors
    /// `Corrupt` when the point is damaged; every other kind when it could not be tried or did not come back.
    async fn drill(&self, cx: &Context, point: &PointReader, request: &DrillRequest) -> Result<Drilled>;
    /// Bytes of disk that a drill of this point needs below its scratch directory. The engine refuses to begin
    /// without them.
    fn drill_bytes(&self, point: &Manifest, request: &DrillRequest) -> u64;
    /// Directories of this host that hold production's data, as far as the configuration and the manifest tell. A
    /// scratch directory in one of them is refused.
    fn production(&self, point: &Manifest) -> Vec<PathBuf>;
    /// Removes what drills of this service left outside of their scratch directory. Idempotent; called before and
    /// after every drill, under its lock. Most stores leave nothing there.
    async fn drill_cleanup(&self, cx: &Context) -> Result<()> {
        let _ = cx;
        Ok(())
    }
    /// The snapshots that the store itself keeps for this service; none for stores that keep none. An error of one
    /// repository does not hide the others.
    async fn held(&self, _: &Context) -> Result<Vec<Repository>> {
        Ok(Vec::new())
    }
    /// Removes one snapshot that the store keeps. Refuses one that this service and agent did not make; that it is gone
    /// already is no error.
    async fn forget(&self, _: &Context, _: &External) -> Result<()> {
        Err(Error::new(ErrorKind::Internal, format!("{} keeps no snapshots", self.kind())))
    }
}

/// A place at the store where it keeps snapshots.
#[derive(Debug)]
pub struct Repository {
    /// Its name at the store.
    pub name: String,
    /// What it holds of this service, of any agent; an error when it could not be found out.
    pub held: Result<Vec<Held>>,
}

/// A snapshot that a store keeps.
#[derive(Debug, Clone)]
pub struct Held {
    /// As a manifest names it.
    pub external: External,
    /// Id of the point that it was made for.
    pub point: String,
    /// Whether this installation made it.
    pub ours: bool,
    /// What the store says of it.
    pub state: HeldState,
}

/// What a store says of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldState {
    /// All of it is there.
    Whole,
    /// Something is missing in it.
    Partial,
    /// It is still being made.
    Running,
    /// It cannot be used.
    Failed,
}

/// Answer of [`Source::probe`].
#[derive(Debug, Clone, Default)]
pub struct Probe {
    /// As the server says it.
    pub server_version: Option<String>,
    /// Plain bytes to expect, for progress only.
    pub estimated_bytes: Option<u64>,
    /// Things that will not stop the backup.
    pub warnings: Vec<String>,
}

/// What `backup` captured; goes into the manifest. No names of files, databases or documents in here:
/// those belong into an inventory artefact.
#[derive(Debug, Clone)]
pub struct Captured {
    /// How far the copy is one moment in time.
    pub consistency: Consistency,
    /// As the server says it.
    pub server_version: Option<String>,
    /// The store's own position: LSN, GTID, `update_seq`.
    pub position: Option<String>,
    /// Sums a restore can be compared with: `files`, `bytes`, `tables`, `rows`.
    pub counts: BTreeMap<String, u64>,
    /// Small facts of the driver, such as `system_identifier` or `from_standby`.
    pub attributes: BTreeMap<String, String>,
    /// Warnings, without names.
    pub warnings: Vec<String>,
    /// Reasons why this point is *suspect*; empty for a good one.
    pub suspect: Vec<String>,
    /// Snapshots of this point that the store itself keeps.
    pub external: Vec<External>,
    /// What was to be made besides, and was not, each with its reason: the point is *incomplete*, and nothing is pruned.
    /// For the person at the terminal, not for the manifest: names are allowed.
    pub missed: Vec<String>,
}

/// Plain bytes of one artefact. End of file is returned only after length and digests matched the manifest;
/// otherwise the last read is an error of kind `Corrupt`.
pub type ArtefactReader = Pin<Box<dyn AsyncBufRead + Send>>;

/// Opens artefacts of a point; implemented by the engine.
#[async_trait]
pub trait OpenArtefact: fmt::Debug + Send + Sync {
    /// Opens one artefact for reading its plain bytes.
    async fn open(&self, artefact: &Artefact) -> Result<ArtefactReader>;
}

/// A restore point opened for reading.
#[derive(Debug, Clone)]
pub struct PointReader {
    /// Its manifest.
    pub manifest: Arc<Manifest>,
    /// Where artefacts come from.
    pub from: Arc<dyn OpenArtefact>,
}

impl PointReader {
    /// Opens one artefact.
    pub async fn open(&self, artefact: &Artefact) -> Result<ArtefactReader> {
        self.from.open(artefact).await
    }
}

/// A backup that commcare-cloud made, opened for reading.
pub struct LegacyReader {
    /// Its file name.
    pub name: String,
    /// A dump of PostgreSQL; otherwise a tar of the data directory, with its path: see
    /// [`crate::pipeline::extract::extract_stripped`].
    pub is_dump: bool,
    /// Stored length: less than what it unpacks to.
    pub stored_bytes: u64,
    /// Its plain bytes. The last read fails if it is damaged or cut off.
    pub plain: ArtefactReader,
}

impl fmt::Debug for LegacyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LegacyReader({:?})", self.name)
    }
}

/// What a restore is asked to do.
#[derive(Debug, Clone, Default)]
pub struct RestoreRequest {
    /// Directory to restore into; the service's own place if absent.
    pub to: Option<PathBuf>,
    /// Whether data at the target may be replaced (it is moved aside first).
    pub replace: bool,
    /// `USER:GROUP` for everything restored, as given.
    pub owner: Option<String>,
    /// Only this database (or other part).
    pub database: Option<String>,
    /// Under this new name.
    pub rename: Option<String>,
    /// Start the server and wait until recovery has ended.
    pub start: bool,
    /// `OLD=NEW` directories of tablespaces.
    pub map: Vec<(PathBuf, PathBuf)>,
    /// Keep `standby.signal` and `primary_conninfo`.
    pub keep_standby: bool,
    /// Without databases that hold jobs of replication.
    pub no_replicator: bool,
    /// The files are in place and the server is up: only what comes after that.
    pub only_finish: bool,
    /// How long a started server may take to end its recovery.
    pub wait: Option<Duration>,
    /// Only indices and data streams that match one of these patterns.
    pub indices: Vec<String>,
    /// Other names of indices come back too.
    pub aliases: bool,
    /// Cluster settings and templates come back too.
    pub global_state: bool,
    /// Restore what there is of an index that was not captured whole.
    pub allow_partial: bool,
}

impl RestoreRequest {
    /// For sources without indices: what is asked for must not be ignored.
    pub(crate) fn refuse_indices(&self) -> Result<()> {
        let foreign = [
            ("--index", !self.indices.is_empty()),
            ("--aliases", self.aliases),
            ("--global-state", self.global_state),
            ("--allow-partial", self.allow_partial),
        ];
        match foreign.iter().find(|(_, there)| *there) {
            Some((flag, _)) => {
                Err(Error::new(ErrorKind::Usage, format!("{flag} is for Elasticsearch and OpenSearch only")))
            }
            None => Ok(()),
        }
    }
}

/// What a restore did.
#[derive(Debug, Clone, Default)]
pub struct Restored {
    /// Where it lies now.
    pub target: String,
    /// Counted while restoring.
    pub counts: BTreeMap<String, u64>,
    /// Where the old data lies, if it was replaced.
    pub old_data: Option<PathBuf>,
    /// Things to know and to do next.
    pub notes: Vec<String>,
}

/// Answer of [`Source::verify`].
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Counted while reading.
    pub counts: BTreeMap<String, u64>,
    /// What is wrong; empty = good.
    pub problems: Vec<String>,
}

/// What a drill is asked to do.
#[derive(Debug, Clone)]
pub struct DrillRequest {
    /// Private (0700), empty directory on the disk for drills; the engine makes and removes it.
    pub scratch: PathBuf,
    /// Compare without storing anything, where the store can.
    pub stream: bool,
    /// How long a started server may take to end its recovery.
    pub wait: Duration,
}

/// How far a drill goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DrillLevel {
    /// Read and compared, without being restored.
    Stream,
    /// Restored into files, which were read again.
    Files,
    /// Restored into a server that was started and asked.
    Server,
}

/// Where the seconds of a drill went. What overlaps is counted once: for what was waited for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// Waiting for stored bytes. Filled in by the engine.
    pub fetch: f64,
    /// Waiting for decryption, decompression and digests. Filled in by the engine.
    pub decompress: f64,
    /// Writing the data into its place, with the waiting for it.
    pub restore: f64,
    /// From the start of a server until its recovery has ended.
    pub start: f64,
    /// Comparing.
    pub compare: f64,
}

impl Seconds {
    /// The sum.
    pub fn total(&self) -> f64 {
        self.fetch + self.decompress + self.restore + self.start + self.compare
    }
}

/// Takes the time of phases.
#[derive(Debug)]
pub struct Stopwatch {
    clock: Clock,
    since: DateTime<Utc>,
}

impl Stopwatch {
    /// Starts now.
    pub fn start(clock: &Clock) -> Self {
        Self { clock: clock.clone(), since: clock.now() }
    }
    /// Seconds since the start or the last lap.
    pub fn lap(&mut self) -> f64 {
        let now = self.clock.now();
        let passed = (now - std::mem::replace(&mut self.since, now)).to_std().unwrap_or_default();
        passed.as_secs_f64()
    }
}

/// Answer of [`Source::drill`]: it came back, and this was found.
#[derive(Debug, Clone)]
pub struct Drilled {
    /// How far it went.
    pub level: DrillLevel,
    /// By phase.
    pub seconds: Seconds,
    /// Counted in what came back.
    pub counts: BTreeMap<String, u64>,
    /// What is not as it was captured, one line each, with names; empty = proven.
    pub differences: Vec<String>,
    /// What was not compared and why, without names.
    pub notes: Vec<String>,
}

/// One kind of source.
#[derive(Debug, Clone, Copy)]
pub struct Driver {
    /// The key in the configuration.
    pub kind: &'static str,
    /// One line for people.
    pub summary: &'static str,
}

/// All kinds, in the order of the documentation.
pub const DRIVERS: &[Driver] = &[postgres::DRIVER, couchdb::DRIVER, blobdir::DRIVER, elasticsearch::DRIVER];

/// Turns a service's settings into its source. Does no input or output.
pub fn build(config: &SourceConfig) -> Arc<dyn Source> {
    match config {
        SourceConfig::Postgres(c) => Arc::new(postgres::Postgres::new(*c.clone())),
        SourceConfig::Couchdb(c) => Arc::new(couchdb::Couchdb::new(*c.clone())),
        SourceConfig::Blobdir(c) => Arc::new(blobdir::Blobdir::new(c.clone())),
        SourceConfig::Elasticsearch(c) => Arc::new(elasticsearch::Elasticsearch::new(*c.clone())),
    }
}
