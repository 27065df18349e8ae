//! Restore of one database, also under another name, beside those that a running node has.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::inventory::{DatabaseLine, Inventory};
use super::node::{Identity, Node};
use super::restore::shards_of;
use super::shard_map::{self, is_db, shard_path};
use super::{Couchdb, DBS, finish, point};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::bridge::blocking;
use crate::pipeline::extract::{self, Rules};
use crate::source::{Context, PointReader, RestoreRequest, Restored};

/// See [`crate::source::Source::restore`], with a database named.
pub(super) async fn restore(
    source: &Couchdb,
    cx: &Context,
    point: &PointReader,
    request: &RestoreRequest,
    inventory: &Inventory,
) -> Result<Restored> {
    let db = request.database.as_deref().unwrap_or_default();
    let name = request.rename.as_deref().unwrap_or(db);
    let line = captured(inventory, db)?;
    refuse(request, name)?;
    let node = Node::new(&source.config, true)?;
    let who = node.identity().await?;
    refuse_existing(&node, &who, name).await?;
    let root = &source.config.data_dir;
    let suffix = format!(".{}", cx.clock.now().timestamp());
    let partial = Partial::make(root, &suffix)?;
    let map = extract_one(cx, point, inventory, line, &partial).await?;
    let from = inventory.header.node.as_deref().unwrap_or_default();
    let map = shard_map::for_node(&map, from, &who.name).unwrap_or(map);
    let map = shard_map::renamed(&map, name, &suffix);
    let moves: Vec<(PathBuf, PathBuf)> = shards_of(inventory, db)
        .into_iter()
        .map(|(range, path)| (partial.dir.join(path), root.join(shard_path(&range, name, &suffix))))
        .collect();
    let placed = put_in_place(root, &moves)?;
    if let Err(e) = node.put_map(&who, name, &map).await {
        placed.iter().for_each(|path| drop(fs::remove_file(path)));
        return Err(e);
    }
    drop(partial);
    let mut short = BTreeMap::new();
    if let Some(why) = finish::compare(&node, &who, inventory, line, name, &suffix).await? {
        short.insert(name.to_owned(), why);
    }
    finish::verdict(&short)?;
    let counts = [("documents", line.doc_count), ("deleted_documents", line.del_count), ("files", moves.len() as u64)];
    Ok(Restored {
        target: format!("database {name}"),
        counts: counts.map(|(key, n)| (key.to_owned(), n)).into(),
        notes: vec!["its view indexes are built anew when they are first asked for".into()],
        ..Restored::default()
    })
}

fn captured<'a>(inventory: &'a Inventory, db: &str) -> Result<&'a DatabaseLine> {
    let line = inventory.databases.get(db).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("the restore point has no database {db:?}"))
            .hint(format!("it has {}; its inventory names them.", inventory.databases.len()))
    })?;
    if !line.is_whole() {
        let why = if line.dropped { "it was dropped while it was captured".into() } else { line.damage.join("; ") };
        return Err(Error::new(ErrorKind::Corrupt, format!("the restore point does not hold database {db:?} whole"))
            .caused_by(why)
            .hint("restore it from another point."));
    }
    if shards_of(inventory, db).iter().any(|(_, path)| !inventory.shards.contains_key(path)) {
        return Err(Error::new(ErrorKind::Refused, format!("database {db:?} has ranges on other nodes only"))
            .hint("its files are in the points of all nodes of the cluster: docs/couchdb.md."));
    }
    Ok(line)
}

fn refuse(request: &RestoreRequest, name: &str) -> Result<()> {
    if !is_db(name) {
        return Err(Error::new(ErrorKind::Usage, format!("{name:?} cannot name a database"))
            .hint("use lower case letters, digits and _$()+-/, and begin with a letter."));
    }
    if request.to.is_some() || request.replace || request.start {
        return Err(Error::new(ErrorKind::Usage, "one database is restored beside the others of a running node")
            .hint("leave out `--to`, `--replace` and `--start`; `--as NAME` gives it another name."));
    }
    Ok(())
}

async fn refuse_existing(node: &Node, who: &Identity, name: &str) -> Result<()> {
    if node.map(who, name).await?.is_none() {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Refused, format!("the node has a database {name:?}"))
        .hint("restore it under another name with `--as`, or delete that database first."))
}

/// A folder on the file system of the data directory, removed at the end.
struct Partial {
    dir: PathBuf,
}

impl Partial {
    fn make(root: &Path, suffix: &str) -> Result<Self> {
        let dir = root.join(format!(".backstay-partial{suffix}"));
        let failed = |e| Error::io(e, format!("could not make {}", dir.display()));
        fs::DirBuilder::new().mode(0o700).create(&dir).map_err(failed)?;
        Ok(Self { dir })
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // Nothing better can be done here; no later restore needs the name.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Extracts the files of one database, compares them with the inventory, and reads its map.
async fn extract_one(
    cx: &Context,
    point: &PointReader,
    inventory: &Inventory,
    line: &DatabaseLine,
    partial: &Partial,
) -> Result<Value> {
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let data = point::archive(point, &stop).await?;
    let wanted: BTreeMap<Vec<u8>, String> = shards_of(inventory, &line.db)
        .into_iter()
        .filter_map(|(_, path)| Some((path.clone().into_bytes(), inventory.shards.get(&path)?.file.blake3.clone())))
        .collect();
    let (into, db) = (partial.dir.clone(), line.db.clone());
    let outcome = blocking(move || {
        let takes = |member: &crate::pipeline::archive::Member| {
            wanted.contains_key(&member.path) || member.path == DBS.as_bytes()
        };
        let mut missing = wanted.len();
        let done = extract::extract_some(data, &into, Rules::default(), &takes, &mut |member, digest| {
            let Some(blake3) = wanted.get(&member.path) else { return Ok(()) };
            missing = missing.saturating_sub(1);
            match digest.is_some_and(|d| d.to_hex().as_str() == blake3) {
                true => Ok(()),
                false => Err(Error::new(ErrorKind::Corrupt, "its content is not what the inventory says")),
            }
        })?;
        drop(done);
        if missing > 0 {
            return Err(Error::new(ErrorKind::Corrupt, format!("{missing} shards of {db:?} are not in the archive")));
        }
        let failed = |e| Error::io(e, format!("could not read the extracted {DBS}"));
        let file = fs::File::open(into.join(DBS)).map_err(failed)?;
        let len = file.metadata().map_err(failed)?.len();
        let map = shard_map::read_dbs(&file, len)?.remove(&db);
        map.map(|(_, doc)| doc).ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("{DBS} has no map of {db:?}")))
    })
    .await;
    drop(guard);
    outcome
}

/// Puts files where nothing is, as their directory's owner; none, if one cannot be.
fn put_in_place(root: &Path, moves: &[(PathBuf, PathBuf)]) -> Result<Vec<PathBuf>> {
    let mut placed = Vec::new();
    for (from, to) in moves {
        if let Err(e) = put_one(root, from, to) {
            placed.iter().for_each(|path| drop(fs::remove_file(path)));
            return Err(Error::io(e, format!("could not put {} in place", to.display())));
        }
        placed.push(to.clone());
    }
    Ok(placed)
}

fn put_one(root: &Path, from: &Path, to: &Path) -> io::Result<()> {
    let like = fs::metadata(root)?;
    let superuser = nix::unistd::Uid::effective().is_root();
    let mut folders: Vec<&Path> = to.ancestors().skip(1).take_while(|dir| *dir != root).collect();
    folders.reverse();
    for folder in folders {
        match fs::DirBuilder::new().mode(like.mode() & 0o777).create(folder) {
            Ok(()) if superuser => std::os::unix::fs::chown(folder, Some(like.uid()), Some(like.gid()))?,
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    if superuser {
        std::os::unix::fs::chown(from, Some(like.uid()), Some(like.gid()))?;
    }
    fs::File::open(from)?.sync_all()?;
    // A link, unlike a rename, never replaces what is there.
    fs::hard_link(from, to)?;
    let folder = to.parent().unwrap_or(root);
    fs::File::open(folder)?.sync_all()
}
