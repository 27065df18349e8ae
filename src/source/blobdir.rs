//! A directory of files, such as a blob store.
//!
//! - **Captured**: every file, directory, symbolic and hard link, pipe and device below `path`, with owner, mode,
//!   time, extended attributes, ACLs and holes, as one tar (`data`), and a line per entry with its digest
//!   (`inventory`).
//! - **Consistency**: fuzzy. Files are read one after the other while others write. A file that changes while it is
//!   read is read again, else named in the inventory; one that vanishes is counted and named. For a database that
//!   refers to the files, capture the database first.
//! - **Rights**: to read every file: root, or the files' owner. A file that cannot be read fails the backup.
//! - **Not captured**: sockets, access times, file flags (`chattr`), other file systems mounted below `path` (unless
//!   `cross_file_systems`), what `exclude` matches, and what restores into `path` made there for themselves: old data
//!   moved aside (`.old-<time>`) and what a killed one left (`.backstay-partial-<time>`); a warning counts both.
//! - **By hand**: `zstd -dc data.tar.zst | tar -x --xattrs --xattrs-include='*' --acls -p -C DIR`.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use crate::artefact::{ArtefactSink, ArtefactSpec, Role};
use crate::config::BlobdirConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Consistency, Manifest};
use crate::pipeline::archive::Stopped;
use crate::pipeline::place;

use super::{
    Captured, Context, DrillRequest, Drilled, LegacyReader, PointReader, Probe, RestoreRequest, Restored, Source,
    Verified,
};

mod capture;
mod drill;
mod inventory;
mod load;
mod restore;
mod walk;

/// This kind in the table of sources.
pub const DRIVER: super::Driver =
    super::Driver { kind: "blobdir", summary: "a directory of files, with owners, ACLs, links and holes" };

/// A moment at which a test may hold or fail the backup.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A directory was listed, nothing of it read yet.
    Listed,
    /// An entry is about to be opened.
    Open,
    /// A file was read, and is about to be looked at again.
    Read,
}

type HoldFn = dyn Fn(Moment, &Path) -> io::Result<()> + Send + Sync;

/// See [`Moment`].
#[derive(Clone, Default)]
struct Hold(Option<Arc<HoldFn>>);

impl Hold {
    fn at(&self, moment: Moment, path: impl FnOnce() -> PathBuf) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |hold| hold(moment, &path()))
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hold")
    }
}

/// A directory of files as a source.
#[derive(Debug)]
pub struct Blobdir {
    config: BlobdirConfig,
    hold: Hold,
}

impl Blobdir {
    /// From its settings.
    pub fn new(config: BlobdirConfig) -> Self {
        Self { config, hold: Hold::default() }
    }

    /// With a function that is called at certain moments of a backup, for tests.
    #[doc(hidden)]
    #[must_use]
    pub fn with_hold(mut self, hold: impl Fn(Moment, &Path) -> io::Result<()> + Send + Sync + 'static) -> Self {
        self.hold = Hold(Some(Arc::new(hold)));
        self
    }
}

/// The real directory, which is there and is mounted if it must be.
fn check_path(config: &BlobdirConfig) -> Result<PathBuf> {
    let path = &config.path;
    let real = path.canonicalize().map_err(|e| {
        Error::io(e, format!("could not open the directory {}", path.display()))
            .hint("check `path`, and that its file system is mounted.")
    })?;
    if !real.is_dir() {
        return Err(Error::new(ErrorKind::Config, format!("{} is not a directory", path.display())));
    }
    let mounted = || place::is_mount(&real).map_err(|e| Error::io(e, format!("could not look at {}", path.display())));
    if config.require_mount && !mounted()? {
        return Err(Error::new(ErrorKind::Failed, format!("{} is not a mount point", path.display()))
            .hint("mount its file system, or remove `require_mount`."));
    }
    place::refuse_half_moved(&real)?;
    Ok(real)
}

#[async_trait]
impl Source for Blobdir {
    fn kind(&self) -> &'static str {
        "blobdir"
    }

    fn method(&self) -> &'static str {
        "files"
    }

    async fn probe(&self, cx: &Context) -> Result<Probe> {
        let real = check_path(&self.config)?;
        walk::Excludes::new(&self.config.exclude)?;
        let mut entries =
            std::fs::read_dir(&real).map_err(|e| Error::io(e, format!("could not list {}", real.display())))?;
        let mut probe = Probe { estimated_bytes: estimate(cx), ..Probe::default() };
        if entries.next().is_none() {
            probe.warnings.push("the directory is empty".into());
        }
        Ok(probe)
    }

    async fn backup(&self, cx: &Context, sink: &dyn ArtefactSink) -> Result<Captured> {
        let root = check_path(&self.config)?;
        // Of no harm to this point: if nobody may look beside the directory, nothing is said.
        let left = place::leftovers(&root).unwrap_or_default();
        let left_beside = left.iter().any(|path| !path.starts_with(&root));
        let spool = cx.workdir.join("inventory.jsonl");
        let stop = cx.cancel.child_token();
        let guard = stop.clone().drop_guard();
        let mut spec = ArtefactSpec::data("data", "tar");
        spec.estimated_bytes = estimate(cx);
        let mut writer = sink.open(spec).await?;
        let job = capture::Job {
            root,
            config: self.config.clone(),
            hold: self.hold.clone(),
            spool: spool.clone(),
            stop,
            previous_files: cx.previous.as_ref().and_then(|m| m.counts.get("files").copied()).unwrap_or(0),
        };
        let worker = tokio::task::spawn_blocking(move || {
            let outcome = capture::run(&job, writer.blocking());
            (writer, outcome)
        });
        let (writer, outcome) =
            worker.await.map_err(|e| Error::new(ErrorKind::Internal, "the reader broke").caused_by(e))?;
        let tally = match outcome {
            Ok(tally) => tally,
            Err(Stopped::Closed) => return Err(writer.failure().await),
            Err(Stopped::Error(e)) => return Err(e),
        };
        writer.finish().await?;
        let mut lines = sink.open(ArtefactSpec::data("inventory", "jsonl").role(Role::Inventory)).await?;
        let failed = |e| Error::io(e, "could not read the inventory that was just written");
        let mut file = tokio::fs::File::open(&spool).await.map_err(failed)?;
        if let Err(e) =
            tokio::io::copy_buf(&mut tokio::io::BufReader::with_capacity(256 * 1024, &mut file), &mut lines).await
        {
            return Err(if e.kind() == io::ErrorKind::BrokenPipe { lines.failure().await } else { failed(e) });
        }
        lines.finish().await?;
        drop(tokio::fs::remove_file(&spool).await);
        drop(guard);
        let mut warnings = tally.warnings();
        if left_beside {
            warnings.push("a killed restore left a folder beside the directory; the next restore removes it".into());
        }
        Ok(Captured {
            consistency: Consistency::Fuzzy,
            server_version: None,
            position: None,
            warnings,
            counts: tally.into_counts(),
            attributes: std::collections::BTreeMap::new(),
            suspect: Vec::new(),
            external: Vec::new(),
            missed: Vec::new(),
        })
    }

    async fn restore(&self, cx: &Context, point: &PointReader, request: &RestoreRequest) -> Result<Restored> {
        restore::restore(&self.config.path, cx, point, request).await
    }

    async fn restore_legacy(&self, cx: &Context, legacy: LegacyReader, request: &RestoreRequest) -> Result<Restored> {
        restore::legacy(&self.config.path, cx, legacy, request).await
    }

    async fn verify(&self, cx: &Context, point: &PointReader) -> Result<Verified> {
        restore::verify(cx, point).await
    }

    async fn cleanup(&self, _: &Context) -> Result<()> {
        Ok(())
    }

    async fn drill(&self, cx: &Context, point: &PointReader, request: &DrillRequest) -> Result<Drilled> {
        drill::drill(&self.config, cx, point, request).await
    }

    fn drill_bytes(&self, point: &Manifest, request: &DrillRequest) -> u64 {
        drill::bytes(point, request)
    }

    fn production(&self, _: &Manifest) -> Vec<PathBuf> {
        vec![self.config.path.clone()]
    }
}

fn estimate(cx: &Context) -> Option<u64> {
    cx.previous.as_ref().and_then(|m| m.counts.get("bytes").copied())
}
