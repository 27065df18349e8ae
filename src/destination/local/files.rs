//! What the directory destination does with files: durable renames, walks, and errors that name the path.

use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use crate::destination::{Location, ObjectMeta};
use crate::error::{Error, ErrorKind, Result, kind_of_io};
use crate::units::Bytes;

/// How the folder of an unpublished point begins.
pub(super) const PARTIAL: &str = ".partial-";
/// What stands between a key and the random end of an unfinished file.
pub(super) const TMP: &str = ".tmp-";
const RANDOM_DIGITS: usize = 16;

/// The name of an unfinished file beside `path`.
pub(super) fn temporary(path: &Path) -> Result<PathBuf> {
    let mut random = [0u8; RANDOM_DIGITS / 2];
    getrandom::fill(&mut random).map_err(|e| Error::new(ErrorKind::Internal, "no random numbers").caused_by(e))?;
    let mut name = path.as_os_str().to_owned();
    name.push(TMP);
    name.push(hex::encode(random));
    Ok(name.into())
}

/// Whether this is the name of an unfinished file.
pub(super) fn is_temporary(key: &str) -> bool {
    key.rsplit_once(TMP).is_some_and(|(_, end)| {
        end.len() == RANDOM_DIGITS && end.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// Whether a folder of `key` is staged and is not named by the first `named` bytes, the prefix asked for.
pub(super) fn hides(key: &str, named: usize) -> bool {
    let mut start = 0;
    for part in key.split('/') {
        if part.starts_with(PARTIAL) && start + PARTIAL.len() > named {
            return true;
        }
        start += part.len() + 1;
    }
    false
}

/// An error of the file system at `path`; a full disk is said with what is left of it.
pub(super) fn fail(err: io::Error, what: &str, path: &Path) -> Error {
    if kind_of_io(&err) != ErrorKind::NoSpace {
        return Error::io(err, format!("{what} {}", path.display()));
    }
    let existing = path.ancestors().find(|p| p.is_dir()).unwrap_or(path);
    let free = nix::sys::statvfs::statvfs(existing).map_or_else(
        |_| "an unknown number of bytes".to_owned(),
        |s| Bytes(s.blocks_available().saturating_mul(s.fragment_size())).to_string(),
    );
    Error::new(ErrorKind::NoSpace, format!("{what} {}: no space left, {free} free", path.display()))
        .caused_by(err)
        .hint("free some space there, keep fewer points, or move the destination to a larger disk.")
}

/// What lies at `path`, links not followed; `None` if there is nothing.
pub(super) fn metadata(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if is_absent(&e) => Ok(None),
        Err(e) => Err(fail(e, "cannot look at", path)),
    }
}

fn is_absent(err: &io::Error) -> bool {
    matches!(err.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A file as an object.
pub(super) fn object(key: String, meta: &Metadata) -> ObjectMeta {
    ObjectMeta {
        location: Location::newest(key),
        bytes: meta.len(),
        modified: modified(meta),
        latest: true,
        delete_marker: false,
        archived: false,
    }
}

/// When a file was last written.
pub(super) fn modified(meta: &Metadata) -> Option<DateTime<Utc>> {
    meta.modified().ok().map(DateTime::from)
}

/// Makes the folders down to `dir`, each 0700 and each durable.
pub(super) fn make_dirs(dir: &Path) -> Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.is_dir()).collect();
    for dir in missing.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => sync_parent(dir)?,
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            Err(e) => return Err(fail(e, "cannot make the directory", dir)),
        }
    }
    Ok(())
}

/// Syncs a directory, so that the names in it survive a power cut.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    match File::open(dir).and_then(|d| d.sync_all()) {
        // Some network file systems cannot sync directories; their servers do it themselves.
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Ok(()),
        Err(e) => Err(fail(e, "cannot sync", dir)),
        Ok(()) => Ok(()),
    }
}

/// Syncs the directory that holds `path`.
pub(super) fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => sync_dir(parent),
        _ => sync_dir(Path::new(".")),
    }
}

/// Removes the folders above `path` that are empty now, up to the root, which stays.
pub(super) fn remove_empty_parents(root: &Path, path: &Path) {
    for dir in path.ancestors().skip(1) {
        if dir == root || !dir.starts_with(root) || fs::remove_dir(dir).is_err() {
            return;
        }
    }
}

/// Renames a file or folder to a name that must be free.
pub(super) fn rename_new(from: &Path, to: &Path) -> Result<()> {
    let taken = || {
        Error::new(ErrorKind::AlreadyExists, format!("{} is there already", to.display()))
            .hint("nothing was replaced; remove it first if it is not needed.")
    };
    match rename_no_replace(from, to) {
        Ok(()) => Ok(()),
        Err(e) if matches!(e.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => Err(taken()),
        // The file system does not know the flag. Only one agent writes below a service, under its lock.
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            if metadata(to)?.is_some() {
                return Err(taken());
            }
            fs::rename(from, to).map_err(|e| fail(e, "cannot rename to", to))
        }
        Err(e) => Err(fail(e, &format!("cannot rename {} to", from.display()), to)),
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn rename_no_replace(from: &Path, to: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE).map_err(io::Error::from)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn rename_no_replace(_: &Path, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// The entries of a folder with UTF-8 names; none if it is not there, for it may have gone since it was seen.
pub(super) fn entries(dir: &Path) -> Result<Vec<(String, Metadata)>> {
    let listing = match fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(e) if is_absent(&e) => return Ok(Vec::new()),
        Err(e) => return Err(fail(e, "cannot list", dir)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(|e| fail(e, "cannot list", dir))?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        match entry.metadata() {
            Ok(meta) => found.push((name, meta)),
            Err(e) if is_absent(&e) => {}
            Err(e) => return Err(fail(e, "cannot look at", &entry.path())),
        }
    }
    Ok(found)
}

/// A file or folder seen by [`walk`].
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) path: PathBuf,
    pub(super) meta: Metadata,
}

/// Calls `seen` for all files and folders whose key begins with `prefix`; a folder before what is in it. Links are not followed.
pub(super) fn walk(root: &Path, prefix: &str, seen: &mut dyn FnMut(Entry) -> Result<()>) -> Result<()> {
    let base = prefix.rsplit_once('/').map_or("", |(dir, _)| dir);
    let mut folders = vec![base.to_owned()];
    while let Some(folder) = folders.pop() {
        for (name, meta) in entries(&root.join(&folder))? {
            let key = if folder.is_empty() { name } else { format!("{folder}/{name}") };
            if !key.starts_with(prefix) || meta.is_symlink() {
                continue;
            }
            if meta.is_dir() {
                folders.push(key.clone());
            }
            seen(Entry { path: root.join(&key), key, meta })?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staged_folders_are_hidden_unless_named() {
        assert!(hides("a/.partial-x/f", "a/".len()));
        assert!(hides("a/.partial-x/f", "a/.par".len()));
        assert!(!hides("a/.partial-x/f", "a/.partial-".len()));
        assert!(!hides("a/.partial-x/f", "a/.partial-x/".len()));
        assert!(!hides("a/x/f", 0));
    }

    #[test]
    fn unfinished_files_are_told_by_their_name() {
        let name = temporary(Path::new("a/data.tar")).expect("a name");
        assert!(is_temporary(name.to_str().expect("utf-8")));
        assert!(!is_temporary("a/data.tar.tmp-"));
        assert!(!is_temporary("a/data.tar"));
    }

    #[test]
    fn a_full_disk_is_said_with_what_is_left_of_it() {
        let err = fail(io::Error::from_raw_os_error(28), "cannot write", Path::new("/dev/shm/x/y"));
        assert_eq!(err.kind, ErrorKind::NoSpace);
        assert!(err.message.starts_with("cannot write /dev/shm/x/y: no space left, "), "{}", err.message);
        assert!(err.message.ends_with(" free"), "{}", err.message);
    }
}
