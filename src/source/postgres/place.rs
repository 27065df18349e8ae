//! The place of a data directory: who owns it, whether it is free, and how a new one takes it.
//!
//! New data is written beside the place and renamed into it when it is whole; old data is renamed aside. A mount point
//! cannot be renamed: there, the new data lies in a folder inside it, and the entries are moved.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg, OFlag};

use crate::error::{Error, ErrorKind, Result};

/// A directory that is to be filled.
#[derive(Debug)]
pub(super) struct Place {
    /// The directory.
    pub(super) dir: PathBuf,
    /// Where the new data is written first.
    pub(super) staging: PathBuf,
    mounted: bool,
    occupied: bool,
    /// The staging directory, locked, so that no other restore clears it.
    lock: Option<Flock<fs::File>>,
}

/// Numeric owner of restored files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

fn ours(name: &str) -> bool {
    name == "lost+found" || name.starts_with(".old-") || name.starts_with(".backstay-restore")
}

/// Entries of a directory that are data: not `lost+found`, and nothing that an earlier restore put aside.
fn data_entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(e, format!("could not list {}", dir.display())))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(e, format!("could not list {}", dir.display())))?;
        if !entry.file_name().to_str().is_some_and(ours) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn is_mount_point(dir: &Path) -> bool {
    let device = |p: &Path| fs::metadata(p).map(|m| m.dev()).ok();
    let other_device = || dir.parent().is_some_and(|parent| device(parent) != device(dir));
    // A bind mount may have its parent's device. The table writes `\040` for a space.
    let name = dir.display().to_string().replace('\\', "\\134").replace(' ', "\\040");
    let table = || fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    dir.is_dir() && (other_device() || table().lines().any(|line| line.split(' ').nth(4) == Some(name.as_str())))
}

fn aside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    dir.with_file_name(name)
}

impl Place {
    /// Looks at a directory.
    ///
    /// # Errors
    /// `Refused` when it holds data and `replace` is false, or when a server runs in it.
    pub(super) fn look(dir: &Path, replace: bool) -> Result<Self> {
        let dir = std::path::absolute(dir).map_err(|e| Error::io(e, format!("no such place: {}", dir.display())))?;
        if dir.file_name().is_none() {
            return Err(Error::new(ErrorKind::Usage, format!("{} is no place for a data directory", dir.display()))
                .hint("name a directory of its own."));
        }
        // A symlink stays, and what it points to is replaced.
        let dir = match fs::canonicalize(&dir) {
            Ok(real) if real.is_dir() => real,
            Err(_) if fs::symlink_metadata(&dir).is_err() => dir,
            _ => {
                let message = format!("{} is there, and is neither a directory nor a link to one", dir.display());
                return Err(Error::new(ErrorKind::Refused, message).hint("remove it, or restore elsewhere with --to."));
            }
        };
        refuse_running(&dir)?;
        let occupied = !data_entries(&dir)?.is_empty();
        if occupied && !replace {
            return Err(Error::new(ErrorKind::Refused, format!("{} is not empty", dir.display()))
                .hint("restore into another directory with --to, or allow --replace: the old data is moved aside."));
        }
        let mounted = is_mount_point(&dir);
        let staging = if mounted { dir.join(".backstay-restore") } else { aside(&dir, ".backstay-restore") };
        Ok(Self { dir, staging, mounted, occupied, lock: None })
    }

    /// Makes the staging directory, without what an interrupted restore left in it.
    ///
    /// # Errors
    /// `Busy` when another restore into the same place is under way.
    pub(super) fn prepare(&mut self, owner: Owner) -> Result<()> {
        self.lock = None;
        if self.staging.symlink_metadata().is_ok() {
            // Held until the directory is gone: nobody else clears or uses it meanwhile.
            let _old = self.lock_staging()?;
            fs::remove_dir_all(&self.staging).map_err(|e| self.fail(e, "could not clear"))?;
        }
        if let Some(parent) = self.staging.parent() {
            fs::create_dir_all(parent).map_err(|e| self.fail(e, "could not make the parent of"))?;
        }
        fs::DirBuilder::new().mode(0o700).create(&self.staging).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => self.busy(),
            _ => self.fail(e, "could not make"),
        })?;
        self.lock = Some(self.lock_staging()?);
        give(&self.staging, owner)
    }

    fn lock_staging(&self) -> Result<Flock<fs::File>> {
        let file = fs::OpenOptions::new()
            .read(true)
            .custom_flags((OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW).bits())
            .open(&self.staging)
            .map_err(|e| self.fail(e, "could not open"))?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| match e {
            nix::errno::Errno::EWOULDBLOCK => self.busy(),
            e => self.fail(e.into(), "could not lock"),
        })
    }

    fn busy(&self) -> Error {
        Error::new(ErrorKind::Busy, format!("another restore into {} is under way", self.dir.display()))
            .hint("wait for it to end, or stop it; or restore into another directory with --to.")
    }

    /// Removes the staging directory.
    pub(super) fn abandon(&self) {
        let _ = fs::remove_dir_all(&self.staging);
    }

    /// Puts the new data into its place; where the old data lies now.
    pub(super) fn take_over(&self, stamp: &str) -> Result<Option<PathBuf>> {
        refuse_running(&self.dir)?;
        if !self.occupied && !data_entries(&self.dir)?.is_empty() {
            return Err(Error::new(ErrorKind::Refused, format!("{} was filled by someone else", self.dir.display()))
                .hint("restore into another directory with --to."));
        }
        sync(&self.staging)?;
        let old = if self.mounted { self.take_over_mounted(stamp) } else { self.take_over_renamed(stamp) }?;
        self.dir.parent().map_or(Ok(()), sync)?;
        Ok(old)
    }

    /// Undoes [`Place::take_over`], because another place of the same restore could not be taken: the old data lies
    /// where it lay, the new is staged again.
    pub(super) fn give_back(&self, old: Option<&Path>) -> Result<()> {
        if !self.mounted {
            fs::rename(&self.dir, &self.staging).map_err(|e| self.fail(e, "could not rename back"))?;
            return old
                .map_or(Ok(()), |old| fs::rename(old, &self.dir).map_err(|e| self.fail(e, "could not move back for")));
        }
        fs::create_dir_all(&self.staging).map_err(|e| self.fail(e, "could not make"))?;
        let back = data_entries(&self.dir)?.into_iter().map(|from| (from, self.staging.as_path()));
        let again = old.map_or(Ok(Vec::new()), data_entries)?.into_iter().map(|from| (from, self.dir.as_path()));
        for (from, dir) in back.chain(again) {
            let to = dir.join(from.file_name().unwrap_or_default());
            fs::rename(&from, &to).map_err(|e| self.fail(e, "could not move back the entries of"))?;
        }
        if let Some(old) = old {
            let _ = fs::remove_dir(old);
        }
        Ok(())
    }

    fn take_over_renamed(&self, stamp: &str) -> Result<Option<PathBuf>> {
        let mut old = None;
        if self.dir.exists() {
            let to = aside(&self.dir, &format!(".old-{stamp}"));
            fs::rename(&self.dir, &to).map_err(|e| self.fail(e, "could not move the old data aside for"))?;
            old = Some(to);
        }
        if let Err(e) = fs::rename(&self.staging, &self.dir) {
            if let Some(old) = &old {
                let _ = fs::rename(old, &self.dir);
            }
            return Err(self.fail(e, "could not rename"));
        }
        match old {
            Some(empty) if !self.occupied && fs::remove_dir(&empty).is_ok() => Ok(None),
            other => Ok(other),
        }
    }

    fn take_over_mounted(&self, stamp: &str) -> Result<Option<PathBuf>> {
        let old = self.dir.join(format!(".old-{stamp}"));
        let before = data_entries(&self.dir)?;
        if !before.is_empty() {
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&old)
                .map_err(|e| self.fail(e, "could not make a folder beside"))?;
        }
        let mut moved = Vec::new();
        let into = |from: &Path, dir: &Path| dir.join(from.file_name().unwrap_or_default());
        let mut all: Vec<(PathBuf, PathBuf)> = before.iter().map(|p| (p.clone(), into(p, &old))).collect();
        all.extend(data_entries(&self.staging)?.iter().map(|p| (p.clone(), into(p, &self.dir))));
        for (from, to) in all {
            if let Err(e) = fs::rename(&from, &to) {
                for (from, to) in moved.iter().rev() {
                    let _ = fs::rename::<&PathBuf, &PathBuf>(to, from);
                }
                return Err(self.fail(e, "could not move the entries of"));
            }
            moved.push((from, to));
        }
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(&self.dir, mode).map_err(|e| self.fail(e, "could not set the mode of the target of"))?;
        let meta = fs::metadata(&self.staging).map_err(|e| self.fail(e, "could not look at"))?;
        give(&self.dir, Owner { uid: meta.uid(), gid: meta.gid() })?;
        let _ = fs::remove_dir(&self.staging);
        Ok((!before.is_empty()).then_some(old))
    }

    fn fail(&self, e: std::io::Error, what: &str) -> Error {
        Error::io(e, format!("{what} {}", self.staging.display()))
    }
}

/// Flushes the file system of `path`, so that a rename never outlives its data.
fn sync(path: &Path) -> Result<()> {
    let file = fs::File::open(path).map_err(|e| Error::io(e, format!("could not open {}", path.display())))?;
    nix::unistd::syncfs(&file).map_err(|e| Error::io(e.into(), format!("could not flush {}", path.display())))
}

/// Gives a file or a link to its owner, if it is not the owner's already.
pub(super) fn give(path: &Path, owner: Owner) -> Result<()> {
    let meta = fs::symlink_metadata(path).map_err(|e| Error::io(e, format!("could not look at {}", path.display())))?;
    if (meta.uid(), meta.gid()) == (owner.uid, owner.gid) {
        return Ok(());
    }
    std::os::unix::fs::lchown(path, Some(owner.uid), Some(owner.gid))
        .map_err(|e| Error::io(e, format!("could not change the owner of {}", path.display())))
}

/// Refuses a directory in which a server runs, or that is a tablespace of one.
fn refuse_running(dir: &Path) -> Result<()> {
    if let Some((pid, data)) = server_with_tablespace(dir) {
        let message =
            format!("the server that runs in {} (process {pid}) has a tablespace in {}", data.display(), dir.display());
        return Err(Error::new(ErrorKind::Refused, message)
            .hint("stop it first, or put the tablespace into another directory with --map OLD=NEW."));
    }
    let Ok(text) = fs::read_to_string(dir.join("postmaster.pid")) else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|l| l.trim().parse::<i32>().ok()).filter(|n| *n > 0) else {
        return Ok(());
    };
    // After a crash the number may belong to another program by now.
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
    let another = comm.is_some_and(|c| !c.contains("postgres") && !c.contains("postmaster"));
    let alive = !matches!(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None), Err(nix::errno::Errno::ESRCH));
    if !alive || another {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Refused, format!("a server runs in {} (process {pid})", dir.display()))
        .hint("stop it first, or restore into another directory with --to."))
}

/// A server of this host that reaches `dir` by one of its tablespaces' links. Every process of a server has the data
/// directory as its working directory.
fn server_with_tablespace(dir: &Path) -> Option<(i32, PathBuf)> {
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let comm = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        let Ok(data) = fs::read_link(entry.path().join("cwd")) else { continue };
        if !matches!(comm.trim(), "postgres" | "postmaster") || !seen.insert(data.clone()) {
            continue;
        }
        let mut links = fs::read_dir(data.join("pg_tblspc")).into_iter().flatten().flatten();
        if links.any(|link| fs::canonicalize(link.path()).is_ok_and(|to| to == dir)) {
            return Some((pid, data));
        }
    }
    None
}

/// Who owns restored files: as asked, else the present owner of the target, else `postgres` for root, else oneself.
pub(super) fn owner(asked: Option<&str>, target: &Path) -> Result<Owner> {
    let me = Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() };
    let owner = match asked {
        Some(text) => parse_owner(text)?,
        None if me.uid != 0 => me,
        None => {
            let present =
                fs::metadata(target).ok().map(|m| Owner { uid: m.uid(), gid: m.gid() }).filter(|o| o.uid != 0);
            let user = || nix::unistd::User::from_name("postgres").ok().flatten();
            present.or_else(|| user().map(|u| Owner { uid: u.uid.as_raw(), gid: u.gid.as_raw() })).unwrap_or(me)
        }
    };
    if me.uid != 0 && owner.uid != me.uid {
        return Err(Error::new(ErrorKind::Denied, "only root can restore files for another user")
            .hint("run the restore as root, or without --owner as that user."));
    }
    Ok(owner)
}

fn parse_owner(text: &str) -> Result<Owner> {
    let bad = || {
        Error::new(ErrorKind::Usage, format!("no such owner: {text:?}")).hint("write USER:GROUP, by names or numbers.")
    };
    let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g).filter(|g| !g.is_empty())));
    let entry = nix::unistd::User::from_name(user).ok().flatten();
    let uid = entry.as_ref().map(|u| u.uid.as_raw()).or_else(|| user.parse().ok()).ok_or_else(bad)?;
    let gid = match group {
        None => entry.map(|u| u.gid.as_raw()).ok_or_else(bad)?,
        Some(g) => {
            let entry = nix::unistd::Group::from_name(g).ok().flatten();
            entry.map(|g| g.gid.as_raw()).or_else(|| g.parse().ok()).ok_or_else(bad)?
        }
    };
    Ok(Owner { uid, gid })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Owner {
        Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn the_old_data_stays_until_the_new_takes_its_place() {
        for mounted in [false, true] {
            let parent = tempfile::tempdir().unwrap();
            let dir = parent.path().join("data");
            fs::create_dir(&dir).unwrap();
            fs::create_dir(dir.join("lost+found")).unwrap();
            fs::write(dir.join("old"), "").unwrap();
            assert_eq!(Place::look(&dir, false).unwrap_err().kind, ErrorKind::Refused);
            let mut place = Place::look(&dir, true).unwrap();
            if mounted {
                place.mounted = true;
                place.staging = dir.join(".backstay-restore");
            }
            place.prepare(me()).unwrap();
            fs::write(place.staging.join("interrupted"), "").unwrap();
            let mut second = Place { lock: None, dir: place.dir.clone(), staging: place.staging.clone(), ..place };
            let err = second.prepare(me()).unwrap_err();
            let said = format!("another restore into {} is under way", dir.display());
            assert_eq!((err.kind, err.message), (ErrorKind::Busy, said));
            place.prepare(me()).unwrap();
            fs::write(place.staging.join("new"), "").unwrap();
            assert!(dir.join("old").exists());
            let old = place.take_over("1").unwrap().unwrap();
            assert!(names(&old).contains(&"old".to_owned()) && names(&dir).contains(&"new".to_owned()));
            assert!(!names(&dir).contains(&"old".to_owned()) && !place.staging.exists());
            place.give_back(Some(&old)).unwrap();
            assert!(dir.join("old").exists() && !dir.join("new").exists() && place.staging.join("new").exists());
            assert!(!old.exists());
            let old = place.take_over("1").unwrap().unwrap();
            assert!(dir.join("new").exists() && old.join("old").exists());
            assert_eq!(old, if mounted { dir.join(".old-1") } else { parent.path().join("data.old-1") });
        }
    }

    #[test]
    fn an_empty_place_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("data");
        fs::create_dir(&dir).unwrap();
        let mut place = Place::look(&dir, false).unwrap();
        place.prepare(me()).unwrap();
        assert_eq!(place.take_over("1").unwrap(), None);
        assert_eq!(names(parent.path()), ["data"]);
        let mut place = Place::look(&dir, false).unwrap();
        place.prepare(me()).unwrap();
        fs::write(dir.join("someone"), "").unwrap();
        assert_eq!(place.take_over("1").unwrap_err().kind, ErrorKind::Refused);
    }

    #[test]
    fn what_is_no_directory_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        for replace in [false, true] {
            let err = Place::look(&path, replace).unwrap_err();
            assert_eq!(err.kind, ErrorKind::Refused);
            assert!(err.message.ends_with("is there, and is neither a directory nor a link to one"), "{}", err.message);
        }
        fs::create_dir(parent.path().join("nowhere")).unwrap();
        assert_eq!(Place::look(&path, false).unwrap().dir, parent.path().join("nowhere"));
        assert_eq!(Place::look(Path::new("/"), true).unwrap_err().kind, ErrorKind::Usage);
        assert!(Place::look(Path::new("relative"), false).unwrap().dir.is_absolute());
    }

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(parse_owner("root:root").unwrap(), Owner { uid: 0, gid: 0 });
        assert_eq!(parse_owner("root").unwrap(), Owner { uid: 0, gid: 0 });
        assert_eq!(parse_owner("12:34").unwrap(), Owner { uid: 12, gid: 34 });
        assert_eq!(parse_owner("no such:34").unwrap_err().kind, ErrorKind::Usage);
    }
}
