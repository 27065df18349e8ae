//! The walk: one directory at a time, sorted by name, without following links; and the threads that load what it
//! finds, in batches that keep the order.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use globset::{Candidate, GlobBuilder, GlobSet, GlobSetBuilder};
use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstatat};

use super::Moment;
use super::load::{Arena, Job, Loader, Node, Outcome, is_gone};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::place;

/// Entries that travel together.
const BATCH: usize = 16;

/// The patterns of what is left out.
#[derive(Debug)]
pub(super) struct Excludes(GlobSet);

impl Excludes {
    /// A pattern without a slash matches names anywhere, another one whole paths below the root.
    pub(super) fn new(patterns: &[String]) -> Result<Self> {
        let mut set = GlobSetBuilder::new();
        for pattern in patterns {
            let bad = |e: globset::Error| {
                Error::new(ErrorKind::Config, format!("not a pattern: {pattern:?}"))
                    .caused_by(e)
                    .hint("write `cache/**`, `*.tmp` or the like in `exclude`.")
            };
            let text = pattern.trim_start_matches("./").trim_matches('/');
            let text = if text.contains('/') || pattern.starts_with('/') { text.into() } else { format!("**/{text}") };
            set.add(GlobBuilder::new(&text).literal_separator(true).build().map_err(bad)?);
        }
        let set = set.build().map_err(|e| Error::new(ErrorKind::Config, "bad patterns in `exclude`").caused_by(e))?;
        Ok(Self(set))
    }

    fn matches(&self, path: &[u8]) -> bool {
        !self.0.is_empty() && self.0.is_match_candidate(&Candidate::new(Path::new(OsStr::from_bytes(path))))
    }
}

/// Loaded entries in the order of the walk, with the contents of the small files.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) entries: Vec<Outcome>,
    pub(super) arena: Arena,
}

enum Item {
    Ready(Outcome),
    Load(Job),
}

type Work = (Vec<Item>, SyncSender<Batch>);
/// Batches in the order of the walk, each as a promise.
pub(super) type Slots = Receiver<Receiver<Batch>>;

/// Arenas that can be used again.
pub(super) type Pool = Mutex<Vec<Arena>>;

/// Starts the walker and the readers; they end when the walk is done or the slots are dropped.
pub(super) fn spawn<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    walk: Walk<'scope>,
    readers: u32,
    pool: &'scope Pool,
) -> Result<Slots> {
    let readers = usize::try_from(readers.clamp(1, 16)).unwrap_or(1);
    let ahead = (2 * readers).clamp(4, 16);
    let (slots, slots_rx) = sync_channel(ahead);
    let (work, work_rx) = sync_channel::<Work>(ahead);
    let failed = |e| Error::io(e, "could not start a thread");
    let work_rx = Arc::new(Mutex::new(work_rx));
    for n in 0..readers {
        let (work_rx, loader) = (Arc::clone(&work_rx), walk.loader);
        std::thread::Builder::new()
            .name(format!("reader-{n}"))
            .spawn_scoped(scope, move || read_batches(&work_rx, loader, pool))
            .map_err(failed)?;
    }
    let out = Out { slots, work, items: Vec::with_capacity(BATCH) };
    std::thread::Builder::new().name("walker".into()).spawn_scoped(scope, move || walk.run(out)).map_err(failed)?;
    Ok(slots_rx)
}

fn read_batches(work: &Mutex<Receiver<Work>>, loader: &Loader, pool: &Pool) {
    loop {
        let next = work.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok((items, promise)) = next else { return };
        let mut arena = pool.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        arena.clear();
        let mut entries = Vec::with_capacity(items.len());
        for item in items {
            entries.push(match item {
                Item::Ready(outcome) => outcome,
                Item::Load(job) => loader.load(job, &mut arena),
            });
        }
        drop(promise.send(Batch { entries, arena }));
    }
}

/// Nobody wants more.
struct Enough;

struct Out {
    slots: SyncSender<Receiver<Batch>>,
    work: SyncSender<Work>,
    items: Vec<Item>,
}

impl Out {
    fn push(&mut self, item: Item) -> Result<(), Enough> {
        self.items.push(item);
        if self.items.len() == BATCH { self.flush() } else { Ok(()) }
    }
    fn flush(&mut self) -> Result<(), Enough> {
        let items = std::mem::replace(&mut self.items, Vec::with_capacity(BATCH));
        let (promise, promised) = sync_channel(1);
        self.slots.send(promised).map_err(|_| Enough)?;
        self.work.send((items, promise)).map_err(|_| Enough)
    }
}

/// The names in one directory: all in one buffer, for directories with a million of them.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    index: Vec<(usize, Type)>,
}

impl Names {
    fn get(&self, at: usize) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes[self.index[at].0..]).unwrap_or_default()
    }
    fn sort(&mut self) {
        let bytes = &self.bytes;
        let name = |at: usize| CStr::from_bytes_until_nul(&bytes[at..]).unwrap_or_default();
        self.index.sort_unstable_by(|a, b| name(a.0).cmp(name(b.0)));
        self.bytes.shrink_to_fit();
    }
}

struct Frame {
    node: Arc<Node>,
    names: Names,
    next: usize,
}

/// Where to walk, and how.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    pub(super) loader: &'a Loader,
    pub(super) excludes: &'a Excludes,
    pub(super) cross_file_systems: bool,
}

impl Walk<'_> {
    fn run(&self, mut out: Out) {
        let _ = self.all(&mut out).and_then(|()| out.flush());
    }

    fn all(&self, out: &mut Out) -> Result<(), Enough> {
        let root = match self.root() {
            Ok((frame, outcome)) => {
                out.push(Item::Ready(outcome))?;
                frame
            }
            Err(e) => return out.push(Item::Ready(Outcome::Failed(self.loader.failed(b"", e)))),
        };
        let mut stack = vec![root];
        while let Some(frame) = stack.last_mut() {
            if frame.next == frame.names.index.len() {
                stack.pop();
                continue;
            }
            let at = frame.next;
            frame.next += 1;
            let (node, kind) = (Arc::clone(&frame.node), frame.names.index[at].1);
            let name = frame.names.get(at).to_owned();
            let path = node.child(&name);
            if self.excludes.matches(&path) {
                continue;
            }
            if kind == Type::Directory && node.path.is_empty() && place::is_own(name.to_bytes()) {
                out.push(Item::Ready(Outcome::Own(path)))?;
                continue;
            }
            if kind != Type::Directory {
                out.push(Item::Load(Job { dir: node, name, regular: kind == Type::File }))?;
                continue;
            }
            match self.enter(&node, &name, &path) {
                Ok((frame, outcome)) => {
                    out.push(Item::Ready(outcome))?;
                    stack.extend(frame);
                }
                Err(e) if is_gone(&e) => out.push(Item::Ready(Outcome::Vanished(path)))?,
                Err(e) if replaced(&e) => out.push(Item::Load(Job { dir: node, name, regular: false }))?,
                Err(e) => return out.push(Item::Ready(Outcome::Failed(self.loader.failed(&path, e)))),
            }
        }
        Ok(())
    }

    fn root(&self) -> io::Result<(Frame, Outcome)> {
        let at = OwnedFd::from(std::fs::File::open(&self.loader.root)?);
        let (fd, loaded) = self.loader.directory(&at, c".", b"")?;
        let node = Arc::new(Node { fd: fd.into(), path: Vec::new(), device: loaded.inode.0 });
        Ok((self.list(node)?, Outcome::Node(Box::new(loaded))))
    }

    fn enter(&self, parent: &Node, name: &CString, path: &[u8]) -> io::Result<(Option<Frame>, Outcome)> {
        let (fd, loaded) = self.loader.directory(&parent.fd, name, path)?;
        if loaded.inode.0 != parent.device && !self.cross_file_systems {
            return Ok((None, Outcome::Border(Box::new(loaded))));
        }
        let node = Arc::new(Node { fd: fd.into(), path: path.to_vec(), device: loaded.inode.0 });
        Ok((Some(self.list(node)?), Outcome::Node(Box::new(loaded))))
    }

    fn list(&self, node: Arc<Node>) -> io::Result<Frame> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(&node.fd, c".", flags, Mode::empty())?;
        let mut names = Names::default();
        for entry in dir.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let kind = match entry.file_type() {
                Some(kind) => kind,
                None => self.ask(&node, name)?,
            };
            names.index.push((names.bytes.len(), kind));
            names.bytes.extend_from_slice(name.to_bytes_with_nul());
        }
        names.sort();
        self.loader.hold.at(Moment::Listed, || self.loader.full(&node.path))?;
        Ok(Frame { node, names, next: 0 })
    }

    /// For file systems whose directories do not say what an entry is.
    fn ask(&self, node: &Node, name: &CStr) -> io::Result<Type> {
        match fstatat(&node.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
                SFlag::S_IFDIR => Type::Directory,
                SFlag::S_IFREG => Type::File,
                _ => Type::Fifo,
            }),
            Err(e) if is_gone(&e.into()) => Ok(Type::File),
            Err(e) => Err(self.loader.failed(&node.child(name), e).into()),
        }
    }
}

/// A directory that is something else by now.
fn replaced(e: &io::Error) -> bool {
    use nix::errno::Errno;
    e.raw_os_error().is_some_and(|code| [Errno::ENOTDIR, Errno::ELOOP].contains(&Errno::from_raw(code)))
}
