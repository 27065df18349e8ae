//! The ordered writer: takes loaded entries in the order of the walk, writes the archive and the inventory's lines.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use nix::sys::stat::fstat;
use tokio_util::sync::CancellationToken;

use super::inventory::{self, Line, State};
use super::load::{self, Arena, Loaded, Loader, Outcome};
use super::walk::{self, Excludes, Pool, Slots, Walk};
use super::{Hold, Moment};
use crate::config::BlobdirConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::archive::{Copied, Member, MemberKind, Stamp, Stopped, TarWriter, Watched, segments, watched};

/// All that the blocking side needs.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) root: PathBuf,
    pub(super) config: BlobdirConfig,
    pub(super) hold: Hold,
    pub(super) spool: PathBuf,
    pub(super) stop: CancellationToken,
    pub(super) previous_files: u64,
}

/// What was met.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: BTreeMap<&'static str, u64>,
    sockets: u64,
    own: u64,
    borders: u64,
    padded: u64,
}

impl Tally {
    fn add(&mut self, what: &'static str, n: u64) {
        *self.counts.entry(what).or_default() += n;
    }
    fn get(&self, what: &str) -> u64 {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// Sentences without names.
    pub(super) fn warnings(&self) -> Vec<String> {
        let named = "the inventory names them";
        let all = [
            (self.get("vanished"), format!("vanished between being listed and being read; {named}")),
            (self.get("changed"), format!("changed while being read; {named}")),
            (self.padded, format!("shrank while being read and end in zeros; {named}")),
            (self.sockets, "left out: sockets cannot be stored".to_string()),
            (self.own, format!("left out: folders of restores, old data or what a killed one left; {named}")),
            (self.borders, "stored empty: another file system is mounted there".to_string()),
        ];
        all.into_iter().filter(|(n, _)| *n > 0).map(|(n, text)| format!("{n} entries {text}")).collect()
    }

    pub(super) fn into_counts(mut self) -> BTreeMap<String, u64> {
        for key in ["files", "directories", "symlinks", "hardlinks", "other", "bytes", "vanished", "changed"] {
            self.counts.entry(key).or_default();
        }
        self.counts.into_iter().map(|(k, n)| (k.to_string(), n)).collect()
    }
}

/// Captures everything. Blocks.
pub(super) fn run(job: &Job, out: impl Write) -> Result<Tally, Stopped> {
    watched(out, |out| run_into(job, out))
}

fn run_into<W: Write>(job: &Job, out: Watched<'_, W>) -> Result<Tally> {
    let excludes = Excludes::new(&job.config.exclude)?;
    let loader = Loader { root: job.root.clone(), hold: job.hold.clone() };
    let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&job.spool);
    let spool = file.map_err(|e| Error::io(e, "could not make the inventory's scratch file"))?;
    let mut lines = BufWriter::with_capacity(256 * 1024, spool);
    inventory::write_header(&mut lines, &job.root)?;
    let pool = Pool::default();
    let mut capture = Capture {
        job,
        loader: &loader,
        tar: TarWriter::new(out),
        lines,
        links: HashMap::new(),
        tally: Tally::default(),
    };
    std::thread::scope(|scope| {
        let walk = Walk { loader: &loader, excludes: &excludes, cross_file_systems: job.config.cross_file_systems };
        let slots = walk::spawn(scope, walk, job.config.readers, &pool)?;
        capture.take(&slots, &pool)
    })?;
    let Capture { tar, mut lines, tally, .. } = capture;
    if tally.get("files") == 0 && job.previous_files > 0 {
        return Err(Error::new(
            ErrorKind::Failed,
            format!("{} holds no files, and held {} at the last backup", job.root.display(), job.previous_files),
        )
        .hint(
            "check that its file system is mounted; if the files were really removed, back up with a new service name.",
        ));
    }
    tar.finish()?;
    lines.flush().map_err(|e| Error::io(e, "could not write the inventory's scratch file"))?;
    Ok(tally)
}

/// The first name of an inode that has several.
struct FirstName {
    path: Vec<u8>,
    left: u64,
    size: u64,
    mtime: Stamp,
}

struct Capture<'a, W: Write> {
    job: &'a Job,
    loader: &'a Loader,
    tar: TarWriter<Watched<'a, W>>,
    lines: BufWriter<File>,
    links: HashMap<(u64, u64), FirstName>,
    tally: Tally,
}

impl<W: Write> Capture<'_, W> {
    fn take(&mut self, slots: &Slots, pool: &Mutex<Vec<Arena>>) -> Result<()> {
        for promise in slots {
            let batch =
                promise.recv().map_err(|_| Error::new(ErrorKind::Internal, "a thread that reads files broke"))?;
            for outcome in batch.entries {
                self.check_stop()?;
                self.entry(outcome, &batch.arena)?;
            }
            pool.lock().unwrap_or_else(PoisonError::into_inner).push(batch.arena);
        }
        Ok(())
    }

    fn check_stop(&self) -> Result<()> {
        if self.job.stop.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    fn entry(&mut self, outcome: Outcome, arena: &Arena) -> Result<()> {
        match outcome {
            Outcome::Failed(e) => Err(e),
            Outcome::Vanished(path) => self.vanished(&path),
            Outcome::Socket(path) => {
                self.tally.sockets += 1;
                Line::absent(&path, "socket", State::Skipped).write(&mut self.lines)
            }
            Outcome::Own(path) => {
                self.tally.own += 1;
                Line::absent(&path, "directory", State::Skipped).write(&mut self.lines)
            }
            Outcome::Border(loaded) => {
                self.tally.borders += 1;
                self.tar.append(&loaded.member, b"")?;
                self.tally.add("directories", 1);
                Line::of(&loaded.member).state(State::OtherFileSystem).write(&mut self.lines)
            }
            Outcome::Node(loaded) => {
                if self.hard_link(&loaded)? {
                    return Ok(());
                }
                self.tar.append(&loaded.member, b"")?;
                let key = match loaded.member.kind {
                    MemberKind::Directory => "directories",
                    MemberKind::Symlink => "symlinks",
                    _ => "other",
                };
                self.tally.add(key, 1);
                self.remember(&loaded);
                Line::of(&loaded.member).write(&mut self.lines)
            }
            Outcome::Small(loaded, start, digest) => {
                if self.hard_link(&loaded)? {
                    return Ok(());
                }
                let len = usize::try_from(loaded.member.size).unwrap_or(0);
                self.tar.append(&loaded.member, &arena.bytes[start..start + len])?;
                let copied = Copied { bytes: loaded.member.size, ..Copied::default() };
                self.file_done(&loaded, copied, digest)
            }
            Outcome::Large(job) => self.large(&job),
        }
    }

    fn vanished(&mut self, path: &[u8]) -> Result<()> {
        self.tally.add("vanished", 1);
        let limit = self.job.config.max_vanished;
        if self.tally.get("vanished") > limit {
            let message = format!("more than {limit} entries vanished while {} was read", self.job.root.display());
            return Err(Error::new(ErrorKind::Failed, message)
                .hint("back up while fewer files are removed, exclude short-lived files, or raise `max_vanished`."));
        }
        Line::absent(path, "unknown", State::Vanished).write(&mut self.lines)
    }

    fn large(&mut self, job: &load::Job) -> Result<()> {
        let path = job.dir.child(&job.name);
        let Some((file, before, mut loaded)) = self.loader.open_large(job, &path)? else {
            return self.vanished(&path);
        };
        if self.hard_link(&loaded)? {
            return Ok(());
        }
        let failed = |e: io::Error| io::Error::from(self.loader.failed(&path, e));
        let sparse = if load::has_holes(&before) { segments(&file, loaded.member.size).map_err(failed)? } else { None };
        let mut hasher = blake3::Hasher::new();
        let stop = &self.job.stop;
        let mut seen = |bytes: &[u8]| {
            hasher.update(bytes);
            if stop.is_cancelled() { Err(cancelled().into()) } else { Ok(()) }
        };
        let copied = match sparse {
            Some(segments) => {
                let mut read_at = |buf: &mut [u8], at| file.read_at(buf, at).map_err(failed);
                self.tar.append_sparse(&loaded.member, &mut read_at, &segments, &mut seen)?
            }
            None => {
                // Only a hint: nothing is wrong when it is not taken.
                let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL;
                let _ = nix::fcntl::posix_fadvise(&file, 0, 0, advice);
                self.tar.append_reader(&loaded.member, &mut Named { file: &file, failed: &failed }, &mut seen)?
            }
        };
        self.loader.hold.at(Moment::Read, || self.loader.full(&path)).map_err(failed)?;
        let after = fstat(&file).map_err(|e| self.loader.failed(&path, e))?;
        loaded.changed = copied.grew || copied.padded > 0 || !load::same(&before, &after);
        let digest = hasher.finalize();
        self.file_done(&loaded, copied, digest)
    }

    fn file_done(&mut self, loaded: &Loaded, copied: Copied, digest: blake3::Hash) -> Result<()> {
        self.tally.add("files", 1);
        self.tally.add("bytes", copied.bytes);
        self.remember(loaded);
        let mut line = Line::of(&loaded.member).digest(&digest);
        if loaded.changed {
            self.tally.add("changed", 1);
            line = line.state(State::Changed);
        }
        if copied.padded > 0 {
            self.tally.padded += 1;
            line = line.padded(copied.padded);
        }
        line.write(&mut self.lines)
    }

    /// Writes the entry as another name of one before, if it is that.
    fn hard_link(&mut self, loaded: &Loaded) -> Result<bool> {
        if loaded.links < 2 || loaded.member.kind == MemberKind::Directory {
            return Ok(false);
        }
        let Some(first) = self.links.get_mut(&loaded.inode) else { return Ok(false) };
        if first.mtime != loaded.member.mtime || first.size != loaded.member.size {
            return Ok(false);
        }
        first.left = first.left.saturating_sub(1);
        let (spent, path) = (first.left == 0, first.path.clone());
        if spent {
            self.links.remove(&loaded.inode);
        }
        let member = Member {
            kind: MemberKind::Hardlink,
            link: path,
            size: 0,
            xattrs: Vec::new(),
            device: (0, 0),
            ..loaded.member.clone()
        };
        self.tar.append(&member, b"")?;
        self.tally.add("hardlinks", 1);
        Line::of(&member).write(&mut self.lines)?;
        Ok(true)
    }

    fn remember(&mut self, loaded: &Loaded) {
        if loaded.links < 2 || loaded.member.kind == MemberKind::Directory {
            return;
        }
        let member = &loaded.member;
        let first =
            FirstName { path: member.path.clone(), left: loaded.links - 1, size: member.size, mtime: member.mtime };
        self.links.insert(loaded.inode, first);
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the backup was stopped")
}

/// A file whose errors say its name.
struct Named<'a> {
    file: &'a File,
    failed: &'a dyn Fn(io::Error) -> io::Error,
}

impl Read for Named<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match (&mut &*self.file).read(buf) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err((self.failed)(e)),
            other => other,
        }
    }
}
