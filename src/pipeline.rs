//! The artefact pipeline of one restore point: plain digest, compression, encryption, stored digest, and fan-out to
//! every destination at once. Nothing is staged.
//!
//! ```text
//! ArtefactWriter -> [blocking thread: BLAKE3 -> compress -> age -> SHA-256] -> fan-out -> a queue per destination
//! ```
//!
//! Each destination has its own bounded queue and stall timeout. One failure, on any artefact, puts a destination out
//! for the whole point. Memory is bounded by the queues, the compressor's windows and the destinations' part buffers.

pub mod archive;
pub mod bridge;
pub mod compress;
pub mod decode;
pub mod encode;
pub mod encrypt;
pub mod extract;
mod fanout;
pub mod owner;
pub mod place;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::artefact::{ArtefactFeed, ArtefactInfo, ArtefactSink, ArtefactSpec, ArtefactWriter, Role};
use crate::destination::{Destination, Location, PutMode};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Algorithm, Artefact};
use crate::monitor::Monitor;
use crate::pipeline::encrypt::Recipients;

pub use encode::Encoding;

/// Chunks of 512 KiB that wait in front of the encoder, and of each destination.
const QUEUE_CHUNKS: usize = 8;

/// One destination of a point.
#[derive(Debug)]
pub struct Leg {
    destination: Arc<dyn Destination>,
    folder: String,
    mode: PutMode,
    outcome: Mutex<LegState>,
}

#[derive(Debug, Default)]
struct LegState {
    failed: Option<Arc<Error>>,
    stored: Vec<(String, Location)>,
    recorded: bool,
}

impl Leg {
    /// A destination, and the folder there into which the point is written.
    pub fn new(destination: Arc<dyn Destination>, folder: String, mode: PutMode) -> Self {
        Self { destination, folder, mode, outcome: Mutex::default() }
    }
    /// The destination.
    pub fn destination(&self) -> &Arc<dyn Destination> {
        &self.destination
    }
    /// The folder into which the point is written.
    pub fn folder(&self) -> &str {
        &self.folder
    }
    /// Whether this leg has the whole point and its record.
    pub fn is_recorded(&self) -> bool {
        self.state().recorded
    }
    /// Notes that the record of the point is written.
    pub fn set_recorded(&self) {
        self.state().recorded = true;
    }
    /// Why it is out for this point, if it is.
    pub fn failure(&self) -> Option<Arc<Error>> {
        self.state().failed.clone()
    }
    /// Puts it out for this point; the first reason stays.
    pub fn fail(&self, err: Error) {
        self.state().failed.get_or_insert_with(|| Arc::new(err));
    }
    fn state(&self) -> std::sync::MutexGuard<'_, LegState> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// Where an artefact lies here.
    pub fn location(&self, name: &str) -> Option<Location> {
        self.state().stored.iter().find(|(n, _)| n == name).map(|(_, l)| l.clone())
    }
}

/// What was stored of one artefact, the same at every destination.
#[derive(Debug, Clone)]
struct Stored {
    name: String,
    role: Role,
    outcome: encode::Encoded,
}

/// Takes the artefacts of one point.
#[derive(Debug, Clone)]
pub struct PointSink {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    legs: Vec<Arc<Leg>>,
    encoding: Encoding,
    stall_timeout: Duration,
    monitor: Arc<dyn Monitor>,
    expected: HashMap<String, u64>,
    stored: Mutex<Vec<Stored>>,
    names: Mutex<Vec<String>>,
    tasks: TaskTracker,
}

impl PointSink {
    /// A sink that writes to all `legs`. The artefacts of the `previous` point say how long those of this one may get.
    pub fn new(
        legs: Vec<Arc<Leg>>,
        encoding: Encoding,
        stall_timeout: Duration,
        monitor: Arc<dyn Monitor>,
        previous: &[Artefact],
    ) -> Self {
        let inner = Inner {
            legs,
            encoding,
            stall_timeout,
            monitor,
            expected: previous.iter().map(|a| (a.name.clone(), a.stored_bytes)).collect(),
            stored: Mutex::default(),
            names: Mutex::default(),
            tasks: TaskTracker::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Waits until every upload has completed or was aborted.
    pub async fn drain(&self) {
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }

    /// The artefacts as they lie at `leg`, in the order of their names; `None` if it is out or misses one.
    pub fn artefacts_at(&self, leg: &Leg) -> Option<Vec<Artefact>> {
        if leg.failure().is_some() {
            return None;
        }
        let mut stored = self.inner.stored.lock().unwrap_or_else(PoisonError::into_inner).clone();
        stored.sort_by(|a, b| (a.role, &a.name).cmp(&(b.role, &b.name)));
        stored
            .into_iter()
            .map(|s| {
                let encoding = self.inner.encoding_of(s.role);
                Some(Artefact {
                    location: leg.location(&s.name)?,
                    name: s.name,
                    role: s.role,
                    plain_bytes: s.outcome.plain_bytes,
                    stored_bytes: s.outcome.stored_bytes,
                    blake3: s.outcome.blake3,
                    sha256: s.outcome.sha256,
                    compression: encoding.algorithm(),
                    recipients: encoding.recipients().to_vec(),
                })
            })
            .collect()
    }
}

#[async_trait]
impl ArtefactSink for PointSink {
    async fn open(&self, spec: ArtefactSpec) -> Result<ArtefactWriter> {
        let name = file_name(&spec, &self.inner.encoding_of(spec.role));
        {
            let mut names = self.inner.names.lock().unwrap_or_else(PoisonError::into_inner);
            if names.contains(&name) {
                return Err(Error::new(ErrorKind::Internal, format!("artefact {name:?} was opened twice")));
            }
            names.push(name.clone());
        }
        if spec.secret
            && self.inner.encoding.recipients().is_empty()
            && self.inner.legs.iter().any(|l| l.destination.is_off_site())
        {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("artefact {name:?} holds secrets and would leave the host unencrypted"),
            )
            .hint("set `encrypt_to` for this service."));
        }
        let (writer, feed) = ArtefactWriter::channel(QUEUE_CHUNKS);
        let inner = Arc::clone(&self.inner);
        let role = spec.role;
        let estimate = spec.estimated_bytes;
        self.inner.tasks.spawn(async move { inner.store(name, role, estimate, feed).await });
        Ok(writer)
    }
}

impl Inner {
    /// How artefacts of a role are encoded. The kit is for somebody who has nothing but the bucket: it is stored as it is.
    fn encoding_of(&self, role: Role) -> Encoding {
        match role {
            Role::Kit => Encoding::new(Algorithm::None, None, 1, Recipients::default()),
            _ => self.encoding.clone(),
        }
    }

    async fn store(self: Arc<Self>, name: String, role: Role, estimate: Option<u64>, feed: ArtefactFeed) {
        self.monitor.start(&name, estimate);
        let ArtefactFeed { chunks, commit, done } = feed;
        let as_it_comes = estimate.filter(|_| self.encoding.algorithm() == Algorithm::None);
        let expected = self.expected.get(&name).copied().or(as_it_comes);
        let outcome = self.transfer(&name, role, expected, chunks, commit).await;
        self.monitor.end(&name);
        let _ = done.send(outcome);
    }

    async fn transfer(
        &self,
        name: &str,
        role: Role,
        expected: Option<u64>,
        chunks: mpsc::Receiver<bytes::Bytes>,
        commit: tokio::sync::oneshot::Receiver<()>,
    ) -> Result<ArtefactInfo> {
        let live: Vec<Arc<Leg>> = self.legs.iter().filter(|l| l.failure().is_none()).cloned().collect();
        let uploads = fanout::begin(&live, name, expected, self.stall_timeout).await;
        let (stored_tx, stored_rx) = mpsc::channel(QUEUE_CHUNKS);
        let encoding = self.encoding_of(role);
        let monitor = Arc::clone(&self.monitor);
        let task = name.to_owned();
        let encoder = tokio::task::spawn_blocking(move || {
            encode::run(&encoding, chunks, stored_tx, |n| monitor.advance(&task, n))
        });
        let delivered = fanout::deliver(uploads, stored_rx, self.stall_timeout).await;
        let encoded =
            encoder.await.unwrap_or_else(|e| Err(Error::new(ErrorKind::Internal, "the encoder panicked").caused_by(e)));
        let encoded = match encoded {
            Ok(encoded) if commit.await.is_ok() => Ok(encoded),
            Ok(_) => Err(Error::new(ErrorKind::Cancelled, format!("artefact {name:?} was abandoned by its source"))),
            Err(err) => Err(err),
        };
        match encoded {
            Ok(encoded) => {
                let whole = delivered.complete(name, self.stall_timeout).await;
                if whole == 0 {
                    return Err(self.none_left(name));
                }
                let info = ArtefactInfo {
                    file_name: name.to_owned(),
                    plain_bytes: encoded.plain_bytes,
                    stored_bytes: encoded.stored_bytes,
                };
                let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
                stored.push(Stored { name: name.to_owned(), role, outcome: encoded });
                Ok(info)
            }
            Err(err) => {
                let anyone = delivered.abort(self.stall_timeout).await;
                Err(if anyone { err } else { self.none_left(name) })
            }
        }
    }

    fn none_left(&self, name: &str) -> Error {
        let reasons: Vec<Arc<Error>> = self.legs.iter().filter_map(|l| l.failure()).collect();
        let kind = reasons.first().map_or(ErrorKind::Unavailable, |e| e.kind);
        let text: Vec<String> = self
            .legs
            .iter()
            .filter_map(|l| l.failure().map(|e| format!("{}: {}", l.destination.name(), e.chain())))
            .collect();
        let mut err =
            Error::new(kind, format!("could not store {name:?} at any destination")).caused_by(text.join("; "));
        err.hint = reasons.iter().find_map(|e| e.hint.clone());
        err
    }
}

fn file_name(spec: &ArtefactSpec, encoding: &Encoding) -> String {
    let age = if encoding.recipients().is_empty() { "" } else { ".age" };
    format!("{}.{}{}{age}", spec.name, spec.ext, Algorithm::extension(encoding.algorithm()))
}
