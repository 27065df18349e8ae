//! Where a restore goes: extracted beside the target or, when that is a mount point or an empty directory, into a
//! hidden folder inside it; moved into place only when all is whole. The old data stays until then, and after.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use nix::sys::time::TimeSpec;

use crate::error::{Error, ErrorKind, Result};
use crate::units::Bytes;

const INSIDE: &str = ".backstay-partial-";
/// The same, once its entries are being moved up.
const MOVING: &str = ".backstay-moving-";
const OLD: &str = ".old-";
/// When a restore began, in the names of its folders.
const STAMP: &str = "%Y%m%dT%H%M%SZ";
const LOST_AND_FOUND: &str = "lost+found";

/// Whether an entry of the root directory was made by a restore: an unfinished one, or old data that was moved aside.
pub fn is_own(name: &[u8]) -> bool {
    [INSIDE, MOVING, OLD].iter().any(|start| name.strip_prefix(start.as_bytes()).is_some_and(is_stamp))
}

/// What [`STAMP`] gives.
fn is_stamp(text: &[u8]) -> bool {
    let shape = b"00000000T000000Z";
    let fits = |(b, s): (&u8, &u8)| if *s == b'0' { b.is_ascii_digit() } else { b == s };
    text.len() == shape.len() && text.iter().zip(shape).all(fits)
}

/// Folders that restores into `target`, killed before their end, have left in it or beside it.
pub fn leftovers(target: &Path) -> io::Result<Vec<PathBuf>> {
    let beside = target.file_name().map(beside);
    let mut found = Vec::new();
    let mut look = |dir: &Path, start: &OsStr| -> io::Result<()> {
        let names = match entries(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            names => names?,
        };
        let ours = |name: &&OsString| name.as_bytes().strip_prefix(start.as_bytes()).is_some_and(is_stamp);
        for path in names.iter().filter(ours).map(|name| dir.join(name)) {
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() && meta.uid() == nix::unistd::Uid::effective().as_raw() && take(&path)?.is_some() {
                found.push(path);
            }
        }
        Ok(())
    };
    if target.is_dir() {
        look(target, INSIDE.as_ref())?;
        look(target, MOVING.as_ref())?;
    }
    if let (Some(parent), Some(start)) = (target.parent(), beside) {
        look(parent, &start)?;
    }
    Ok(found)
}

/// Refuses a directory in which a restore was killed between its first and its last move: nothing there is whole.
pub fn refuse_half_moved(dir: &Path) -> Result<()> {
    let names = entries(dir).map_err(|e| Error::io(e, format!("could not list {}", dir.display())))?;
    let Some((name, stamp)) = names.iter().find_map(|name| {
        let stamp = name.as_bytes().strip_prefix(MOVING.as_bytes()).filter(|stamp| is_stamp(stamp))?;
        Some((name, String::from_utf8_lossy(stamp)))
    }) else {
        return Ok(());
    };
    let message = format!("a restore was killed while it moved files into place in {}", dir.display());
    let (new, old) = (dir.join(name), dir.join(format!("{OLD}{stamp}")));
    let hint = if old.is_dir() {
        format!(
            "restore again with `--replace`; the old data is at {}, the rest of the new at {}.",
            old.display(),
            new.display()
        )
    } else {
        format!("restore again with `--replace`; the rest of the new data is at {}.", new.display())
    };
    Err(Error::new(ErrorKind::Failed, message).hint(hint))
}

/// First part of the name of the folder beside a target.
fn beside(name: &OsStr) -> OsString {
    [OsStr::new("."), name, OsStr::new(INSIDE)].join(OsStr::new(""))
}

/// The folder, held as long as the handle lives: a restore that is under way is not taken for one that was killed.
/// `None` if another process holds it, or the file system cannot tell.
fn take(path: &Path) -> io::Result<Option<fs::File>> {
    let dir = fs::File::open(path)?;
    Ok(dir.try_lock().is_ok().then_some(dir))
}

/// Whether a directory is the root of a mounted file system, or a bind mount.
pub fn is_mount(path: &Path) -> io::Result<bool> {
    let Some(parent) = path.parent() else { return Ok(true) };
    if fs::metadata(path)?.dev() != fs::metadata(parent)?.dev() {
        return Ok(true);
    }
    let table = fs::read("/proc/self/mountinfo")?;
    let field = |line: &[u8]| line.split(|b| *b == b' ').nth(4).map(unescape);
    Ok(table.split(|b| *b == b'\n').filter_map(field).any(|point| point == path.as_os_str()))
}

/// `\040` is a space in that table.
fn unescape(text: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(|c| std::str::from_utf8(c).ok());
        if let Some(byte) = code.and_then(|c| u8::from_str_radix(c, 8).ok()) {
            out.push(byte);
            rest = &tail[3..];
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(out)
}

/// A target in the making. Dropping it before [`Place::settle`] removes what was extracted.
#[derive(Debug)]
pub struct Place {
    target: PathBuf,
    /// Where to extract.
    pub partial: PathBuf,
    stamp: String,
    shape: Shape,
    settled: bool,
    /// Leftovers of restores that were killed, removed now.
    pub removed: Vec<PathBuf>,
    _held: Option<fs::File>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Absent,
    /// It is an empty directory, or a mount point: entries move up from a folder inside.
    Inside,
    /// A directory with data that may be moved aside.
    Occupied,
}

impl Place {
    /// Looks at the target, refuses what would destroy something, and makes the folder to extract into.
    pub fn prepare(target: &Path, replace: bool, now: DateTime<Utc>) -> Result<Self> {
        let failed = |e| Error::io(e, format!("could not prepare {}", target.display()));
        let absolute = std::path::absolute(target).map_err(failed)?;
        let (target, shape) = match absolute.canonicalize() {
            Ok(real) => {
                let shape = shape_of(&real, replace)?;
                (real, shape)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&absolute).is_err() => {
                (absolute, Shape::Absent)
            }
            Err(e) => return Err(failed(e)),
        };
        let name = target.file_name().ok_or_else(|| Error::new(ErrorKind::Refused, "cannot restore over /"))?;
        let removed = leftovers(&target).map_err(failed)?;
        for path in &removed {
            let failed = |e| Error::io(e, format!("could not remove {}, left by a killed restore", path.display()));
            fs::remove_dir_all(path).map_err(failed)?;
        }
        let (stamp, partial) = free_names(&target, name, shape, now);
        if let Some(parent) = partial.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        fs::DirBuilder::new().mode(0o700).create(&partial).map_err(failed)?;
        let held = take(&partial).map_err(failed)?;
        Ok(Self { target, partial, stamp, shape, settled: false, removed, _held: held })
    }

    /// Refuses to begin what cannot end for lack of space.
    pub fn check_space(&self, bytes: u64, files: u64) -> Result<()> {
        let asked = nix::sys::statvfs::statvfs(&self.partial);
        let stat = asked.map_err(|e| Error::io(e.into(), format!("could not look at {}", self.partial.display())))?;
        // On average, half of the last block of each file is lost.
        let need = bytes.saturating_add(files.saturating_mul(stat.fragment_size() / 2));
        let have = stat.blocks_available().saturating_mul(stat.fragment_size());
        let nodes = stat.files_available();
        if need > have {
            let message =
                format!("{} has {} free and the restore needs {}", self.target.display(), Bytes(have), Bytes(need));
            return Err(Error::new(ErrorKind::NoSpace, message).hint("make room, or restore elsewhere with `--to`."));
        }
        if stat.files() > 0 && nodes < files {
            let message = format!("{} has {nodes} free inodes and the restore needs {files}", self.target.display());
            return Err(Error::new(ErrorKind::NoSpace, message).hint("make room, or restore elsewhere with `--to`."));
        }
        Ok(())
    }

    /// Puts what was extracted in place; returns where it lies and where the old data lies.
    pub fn settle(mut self) -> Result<(PathBuf, Option<PathBuf>)> {
        let failed = |e| Error::io(e, format!("could not put the restored data in place at {}", self.target.display()));
        let dir = fs::File::open(&self.partial).map_err(failed)?;
        nix::unistd::syncfs(dir.as_fd()).map_err(|e| failed(e.into()))?;
        let old = match self.shape {
            Shape::Absent => {
                fs::rename(&self.partial, &self.target).map_err(failed)?;
                None
            }
            Shape::Occupied => {
                let old = self.target.with_file_name(self.old_name(self.target.file_name().unwrap_or_default()));
                refuse_existing(&old)?;
                fs::rename(&self.target, &old).map_err(failed)?;
                if let Err(e) = fs::rename(&self.partial, &self.target) {
                    fs::rename(&old, &self.target).map_err(failed)?;
                    return Err(failed(e));
                }
                Some(old)
            }
            Shape::Inside => {
                let moving = self.target.join(format!("{MOVING}{}", self.stamp));
                fs::rename(&self.partial, &moving).map_err(failed)?;
                self.partial = moving;
                self.move_up(&dir).map_err(failed)?
            }
        };
        self.settled = true;
        if let Some(parent) = self.target.parent().and_then(|p| fs::File::open(p).ok()) {
            parent.sync_all().map_err(failed)?;
        }
        Ok((self.target.clone(), old))
    }

    fn old_name(&self, name: &OsStr) -> OsString {
        [name, OsStr::new(OLD), OsStr::new(&self.stamp)].join(OsStr::new(""))
    }

    fn move_up(&self, partial: &fs::File) -> io::Result<Option<PathBuf>> {
        let mut moves = Moves::default();
        let done = self.try_move_up(partial, &mut moves);
        if done.is_err() {
            moves.undo();
        }
        done
    }

    fn try_move_up(&self, partial: &fs::File, moves: &mut Moves) -> io::Result<Option<PathBuf>> {
        // Before anything moves out of it: that changes its time.
        let stat = nix::sys::stat::fstat(partial)?;
        let present = entries(&self.target)?;
        let kept = |name: &OsString| name == LOST_AND_FOUND || is_own(name.as_bytes());
        let movable: Vec<OsString> = present.into_iter().filter(|name| !kept(name)).collect();
        let old = self.target.join(self.old_name(OsStr::new("")));
        if !movable.is_empty() {
            fs::DirBuilder::new().mode(0o700).create(&old)?;
            moves.made = Some(old.clone());
            for name in &movable {
                moves.one(&self.target.join(name), &old.join(name))?;
            }
        }
        for name in entries(&self.partial)? {
            let (from, to) = (self.partial.join(&name), self.target.join(&name));
            if name == LOST_AND_FOUND && to.is_dir() {
                fs::remove_dir(&from)?;
                continue;
            }
            if fs::symlink_metadata(&to).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("{} is in the way", to.display())));
            }
            moves.one(&from, &to)?;
        }
        adopt(partial, &stat, &self.target)?;
        fs::remove_dir(&self.partial)?;
        let at = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
        nix::sys::stat::futimens(fs::File::open(&self.target)?, &at, &at)?;
        Ok((!movable.is_empty()).then_some(old))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.settled {
            // Nothing better can be done here; the next restore does not need the name.
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// The time that names the folders of this restore, and the folder to extract into: of several restores within one
/// second, each later one takes the next free second.
fn free_names(target: &Path, name: &OsStr, shape: Shape, now: DateTime<Utc>) -> (String, PathBuf) {
    let mut at = now;
    loop {
        let stamp = at.format(STAMP).to_string();
        let with = |start: &OsStr| [start, OsStr::new(&stamp)].join(OsStr::new(""));
        let (partial, old) = if shape == Shape::Inside {
            (target.join(with(INSIDE.as_ref())), target.join(with(OLD.as_ref())))
        } else {
            let old = [name, OsStr::new(OLD)].join(OsStr::new(""));
            (target.with_file_name(with(&beside(name))), target.with_file_name(with(&old)))
        };
        if [&partial, &old].iter().all(|path| fs::symlink_metadata(path).is_err()) {
            return (stamp, partial);
        }
        at += TimeDelta::seconds(1);
    }
}

fn shape_of(target: &Path, replace: bool) -> Result<Shape> {
    let failed = |e| Error::io(e, format!("could not look at {}", target.display()));
    if !target.is_dir() {
        return Err(Error::new(ErrorKind::Refused, format!("{} is there and is not a directory", target.display()))
            .hint("restore elsewhere with `--to`."));
    }
    let mount = is_mount(target).map_err(failed)?;
    let names = entries(target).map_err(failed)?;
    let empty = names.iter().all(|name| (mount && name == LOST_AND_FOUND) || is_own(name.as_bytes()));
    if !empty && !replace {
        return Err(Error::new(ErrorKind::Refused, format!("{} is not empty", target.display()))
            .hint("restore elsewhere with `--to`, or move the old data aside with `--replace`."));
    }
    Ok(if empty || mount { Shape::Inside } else { Shape::Occupied })
}

fn refuse_existing(path: &Path) -> Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(Error::new(ErrorKind::Refused, format!("{} is there already", path.display()))
            .hint("remove it, or try again in a second."));
    }
    Ok(())
}

fn entries(dir: &Path) -> io::Result<Vec<OsString>> {
    fs::read_dir(dir)?.map(|entry| entry.map(|e| e.file_name())).collect()
}

/// Gives a directory that stays the owner, mode and attributes of the one that was restored.
fn adopt(from: &fs::File, stat: &nix::sys::stat::FileStat, target: &Path) -> io::Result<()> {
    let to = fs::File::open(target)?;
    std::os::unix::fs::fchown(&to, Some(stat.st_uid), Some(stat.st_gid))?;
    let wanted: Vec<OsString> = xattr::FileExt::list_xattr(from).map(Iterator::collect).unwrap_or_default();
    for name in xattr::FileExt::list_xattr(&to).into_iter().flatten() {
        if !wanted.contains(&name) && !name.as_bytes().starts_with(b"security.") {
            xattr::FileExt::remove_xattr(&to, &name)?;
        }
    }
    to.set_permissions(fs::Permissions::from_mode(stat.st_mode & 0o7777))?;
    for name in wanted {
        if let Some(value) = xattr::FileExt::get_xattr(from, &name)? {
            xattr::FileExt::set_xattr(&to, &name, &value)?;
        }
    }
    Ok(())
}

/// Renames that can be taken back.
#[derive(Debug, Default)]
struct Moves {
    made: Option<PathBuf>,
    done: Vec<(PathBuf, PathBuf)>,
}

impl Moves {
    fn one(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)?;
        self.done.push((from.to_path_buf(), to.to_path_buf()));
        Ok(())
    }
    fn undo(&mut self) {
        for (from, to) in self.done.drain(..).rev() {
            // The error that led here is the one to tell.
            let _ = fs::rename(to, from);
        }
        if let Some(made) = self.made.take() {
            let _ = fs::remove_dir(made);
        }
    }
}
