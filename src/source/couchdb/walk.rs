//! What lies in a data directory: which files are captured, and which are not.

use std::fs;
use std::io;
use std::path::Path;

use super::shard_map::is_range;
use crate::error::{Error, ErrorKind, Result};

/// Folders in folders; a name of CouchDB is not that deep.
const MAX_DEPTH: usize = 64;

/// What a listing found, in the order in which it is stored.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// Directories, each before what is in it.
    pub(super) directories: Vec<String>,
    /// Files that are stored.
    pub(super) files: Vec<String>,
    /// How many entries are left out that no restore needs.
    pub(super) left_out: u64,
}

/// Whether a name is that of the work of a compaction, or of a deletion that can still be undone.
fn is_work(name: &str) -> bool {
    name.ends_with(".compact.data")
        || name.ends_with(".compact.meta")
        || name.ends_with(".compact.view")
        || name.ends_with(".couch.compact")
        || name.ends_with(".deleted.couch")
}

/// Everything below `top` (`shards` or `.shards`) whose name `wanted` takes; nothing if `top` is not there.
pub(super) fn below(root: &Path, top: &str, wanted: &dyn Fn(&str) -> bool) -> Result<Listing> {
    let mut found = Listing::default();
    if root.join(top).symlink_metadata().is_ok() {
        descend(root, top, 0, wanted, &mut found)?;
    }
    Ok(found)
}

fn descend(root: &Path, dir: &str, depth: usize, wanted: &dyn Fn(&str) -> bool, found: &mut Listing) -> Result<()> {
    let full = root.join(dir);
    let failed = |e: io::Error| Error::io(e, format!("could not list {}", full.display()));
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::Failed, format!("{} lies too deep", full.display()))
            .hint("look for a symbolic link that leads back up."));
    }
    let entries = match fs::read_dir(&full) {
        // It was removed since its parent was listed.
        Err(e) if e.kind() == io::ErrorKind::NotFound && depth > 0 => return Ok(()),
        other => other.map_err(failed)?,
    };
    found.directories.push(dir.to_owned());
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        // Known without another look, but for links. They are followed: a range may lie on another disk.
        let kind = entry.file_type().ok().filter(|kind| !kind.is_symlink());
        match entry.file_name().into_string() {
            Ok(name) => names.push((name, kind)),
            Err(_) => found.left_out += 1,
        }
    }
    names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    for (name, kind) in names {
        let path = format!("{dir}/{name}");
        let kind = match kind {
            Some(kind) => Ok(kind),
            None => fs::metadata(root.join(&path)).map(|meta| meta.file_type()),
        };
        match kind {
            Ok(kind) if kind.is_dir() => descend(root, &path, depth + 1, wanted, found)?,
            Ok(kind) if kind.is_file() && is_work(&name) => {}
            Ok(kind) if kind.is_file() && wanted(&path) => found.files.push(path),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
            Ok(_) => found.left_out += 1,
        }
    }
    Ok(())
}

/// Whether a path is that of a view index; what lies beside them can be built anew as well, and is not stored.
pub(super) fn is_view(path: &str) -> bool {
    path.ends_with(".view")
}

/// Whether a path is that of a shard.
pub(super) fn is_shard(path: &str) -> bool {
    split_shard(path).is_some()
}

/// Range, database and suffix of a shard's path.
pub(super) fn split_shard(path: &str) -> Option<(&str, &str, &str)> {
    let (range, rest) = path.strip_prefix("shards/")?.split_once('/')?;
    let rest = rest.strip_suffix(".couch")?;
    let (db, _) = rest.rsplit_once('.')?;
    (is_range(range) && !db.is_empty()).then(|| (range, db, &rest[db.len()..]))
}

/// Node-local databases: `.couch` files at the top, but not the members of the cluster, which belong to one machine.
pub(super) fn local_databases(root: &Path) -> Result<Vec<String>> {
    let failed = |e: io::Error| Error::io(e, format!("could not list {}", root.display()));
    let mut found = Vec::new();
    for entry in fs::read_dir(root).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        let own = ["_dbs.couch", "_nodes.couch"].contains(&name.as_str());
        if name.ends_with(".couch") && !own && !is_work(&name) && entry.path().is_file() {
            found.push(name);
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_shards_are_taken_apart() {
        let range = "00000000-7fffffff";
        let path = format!("shards/{range}/user/a+b$c_d.1700000000.couch");
        assert_eq!(split_shard(&path), Some((range, "user/a+b$c_d", ".1700000000")));
        assert_eq!(split_shard("shards/x/a.1.couch"), None);
        assert_eq!(split_shard("_dbs.couch"), None);
    }

    #[test]
    fn the_work_of_compactions_and_deletions_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let range = dir.path().join("shards/00000000-7fffffff/user");
        fs::create_dir_all(&range).unwrap();
        for name in [
            "a.1.couch",
            "a.1.couch.compact",
            "a.1.couch.compact.data",
            "a.1.couch.compact.meta",
            "a.1.20260101.010203.deleted.couch",
            "notes.txt",
        ] {
            fs::write(range.join(name), "").unwrap();
        }
        let found = below(dir.path(), "shards", &is_shard).unwrap();
        assert_eq!(found.files, ["shards/00000000-7fffffff/user/a.1.couch"]);
        assert_eq!(found.directories, ["shards", "shards/00000000-7fffffff", "shards/00000000-7fffffff/user"]);
        assert_eq!(found.left_out, 1);
        assert!(below(dir.path(), ".shards", &is_view).unwrap().files.is_empty());
    }
}
