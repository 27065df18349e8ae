//! Opening, reading and checking files ahead of the archive, by a few threads.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::tree::{self, Facts};
use super::{Hold, Moment};
use crate::config::CouchdbCheck;
use crate::error::{Error, ErrorKind, Result};

/// Files up to this size are read whole, ahead of the archive.
const SMALL_BYTES: u64 = 1 << 20;
/// How often a file that is not there is looked for again: a compaction renames two files, one after the other.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(20);

/// Outcome of checking a shard: its facts, or what is wrong with it.
pub(super) type Checked = Result<Facts, String>;

/// A file, opened once; nothing of it counts beyond the length it had then.
#[derive(Debug)]
pub(super) enum Loaded {
    /// All of it is in memory: at the begin of a buffer that may be longer.
    Small {
        meta: Metadata,
        buffer: Vec<u8>,
        len: usize,
        digest: blake3::Hash,
        checked: Option<Checked>,
    },
    /// To be read by the archive's writer, and checked after that.
    Large {
        meta: Metadata,
        file: File,
    },
    /// It is not there, under none of its names.
    Gone,
    Failed(Error),
}

enum Work {
    Load { path: String, check: bool, reply: SyncSender<Loaded> },
    Check { file: File, len: u64, path: String, reply: SyncSender<Result<Checked>> },
}

/// What the threads share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared<'a> {
    pub(super) root: &'a Path,
    pub(super) hold: &'a Hold,
    pub(super) check: CouchdbCheck,
}

impl Shared<'_> {
    fn inspect<R: super::blocks::ReadAt + ?Sized>(&self, from: &R, len: u64) -> Result<Facts> {
        match self.check {
            CouchdbCheck::Trees => tree::inspect(from, len),
            CouchdbCheck::Headers => tree::inspect_roots(from, len),
        }
    }
}

/// The threads.
#[derive(Debug)]
pub(super) struct Readers {
    work: SyncSender<Work>,
    /// How many files may be under way at once.
    pub(super) ahead: usize,
    /// Buffers of files that were stored: used again, because fresh memory costs more than what is done in it.
    spare: Arc<Spare>,
}

impl Readers {
    /// Starts `n` threads, which end when this value is dropped. `settle` is called in each of them at its begin.
    pub(super) fn start<'scope>(
        scope: &'scope std::thread::Scope<'scope, '_>,
        n: u32,
        shared: Shared<'scope>,
        settle: &'scope (dyn Fn() + Sync),
    ) -> Result<Self> {
        let n = usize::try_from(n.clamp(1, 16)).unwrap_or(1);
        let ahead = 4 * n;
        let (work, queue) = sync_channel(ahead);
        let queue = Arc::new(Mutex::new(queue));
        let spare = Arc::new(Mutex::new(Vec::new()));
        for number in 0..n {
            let queue: Arc<Mutex<Receiver<Work>>> = Arc::clone(&queue);
            let spare = Arc::clone(&spare);
            let serve = move || {
                settle();
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match next {
                        Ok(work) => serve(work, &shared, &spare),
                        Err(_) => return,
                    }
                }
            };
            let thread = std::thread::Builder::new().name(format!("couchdb-reader-{number}"));
            thread.spawn_scoped(scope, serve).map_err(|e| Error::io(e, "could not start a thread"))?;
        }
        Ok(Self { work, ahead, spare })
    }

    /// Takes a buffer that [`Loaded::Small`] held.
    pub(super) fn give_back(&self, buffer: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < self.ahead {
            spare.push(buffer);
        }
    }

    /// Asks for a file; `check` for one whose header and trees are to be checked.
    pub(super) fn load(&self, path: &str, check: bool) -> Result<Receiver<Loaded>> {
        let (reply, answer) = sync_channel(1);
        self.send(Work::Load { path: path.to_owned(), check, reply })?;
        Ok(answer)
    }

    /// Asks for the check of a file that was read: its pages are still in memory now.
    pub(super) fn check(&self, file: File, len: u64, path: &str) -> Result<Receiver<Result<Checked>>> {
        let (reply, answer) = sync_channel(1);
        self.send(Work::Check { file, len, path: path.to_owned(), reply })?;
        Ok(answer)
    }

    fn send(&self, work: Work) -> Result<()> {
        self.work.send(work).map_err(|_| broke())
    }
}

pub(super) fn broke() -> Error {
    Error::new(ErrorKind::Internal, "a thread that reads files broke")
}

type Spare = Mutex<Vec<Vec<u8>>>;

fn serve(work: Work, shared: &Shared<'_>, spare: &Spare) {
    match work {
        Work::Load { path, check, reply } => {
            let full = shared.root.join(&path);
            let loaded = load(&full, check, shared, spare).unwrap_or_else(|e| Loaded::Failed(unreadable(e, &full)));
            drop(reply.send(loaded));
        }
        Work::Check { file, len, path, reply } => {
            let checked = judge(shared.inspect(&file, len), &shared.root.join(path));
            drop(reply.send(checked));
        }
    }
}

fn unreadable(e: io::Error, path: &Path) -> Error {
    match Error::from(e) {
        e if e.hint.is_some() => e,
        e => e
            .within(format!("could not read {}", path.display()))
            .hint("make it readable for the agent, or repair its disk."),
    }
}

/// Damage is an answer; what the disk says is an error.
fn judge(outcome: Result<Facts>, path: &Path) -> Result<Checked> {
    match outcome {
        Ok(facts) => Ok(Ok(facts)),
        Err(e) if e.kind == ErrorKind::Corrupt => Ok(Err(e.chain())),
        Err(e) => Err(e.within(format!("could not check {}", path.display()))),
    }
}

/// Opens a file under its name, or, where a compaction took that away at this very moment, under the one that CouchDB
/// itself would look for.
fn open(full: &Path, hold: &Hold) -> io::Result<Option<File>> {
    for attempt in 0..TRIES {
        hold.at(Moment::Open, full)?;
        match File::open(full) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other.map(Some),
        }
        if attempt + 1 < TRIES && full.extension().is_some_and(|e| e == "couch") {
            std::thread::sleep(PAUSE);
        } else {
            break;
        }
    }
    let mut compacted = full.as_os_str().to_owned();
    compacted.push(".compact");
    match File::open(PathBuf::from(compacted)) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

fn load(full: &Path, check: bool, shared: &Shared<'_>, spare: &Spare) -> io::Result<Loaded> {
    let Some(file) = open(full, shared.hold)? else { return Ok(Loaded::Gone) };
    let meta = file.metadata()?;
    if meta.len() > SMALL_BYTES {
        return Ok(Loaded::Large { meta, file });
    }
    let mut buffer = spare.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
    let len = usize::try_from(meta.len()).unwrap_or(0);
    if buffer.len() < len {
        buffer.resize(len, 0);
    }
    let bytes = &mut buffer[..len];
    file.read_exact_at(bytes, 0)?;
    let digest = blake3::hash(bytes);
    let checked = check.then(|| judge(shared.inspect(&*bytes, meta.len()), full)).transpose()?;
    Ok(Loaded::Small { meta, buffer, len, digest, checked })
}
