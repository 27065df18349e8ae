//! Restore of a whole node: the files into the place of a stopped node, then, with the node up, its shard maps.
//!
//! A file that a map names and that is not there becomes an empty database without a word. So every file is compared
//! with the inventory before anything is moved into place, and counted by the node after that.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::finish::Finish;
use super::inventory::Inventory;
use super::node::Node;
use super::shard_map::{is_replicator, shard_path};
use super::{Couchdb, point};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Program;
use crate::pipeline::archive::{Member, MemberKind};
use crate::pipeline::bridge::blocking;
use crate::pipeline::extract::{self, Extracted, Rules, show};
use crate::pipeline::owner;
use crate::pipeline::place::Place;
use crate::source::{Context, PointReader, RestoreRequest, Restored};

/// How long a node may take to stop, and to answer after its start, unless the request says otherwise.
const WAIT: Duration = Duration::from_secs(300);
const PAUSE: Duration = Duration::from_millis(300);

/// See [`crate::source::Source::restore`].
pub(super) async fn restore(
    source: &Couchdb,
    cx: &Context,
    point: &PointReader,
    request: &RestoreRequest,
) -> Result<Restored> {
    if !request.map.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "a CouchDB node has no tablespaces").hint("leave out `--map`."));
    }
    let inventory = point::inventory(point).await?;
    if request.database.is_some() {
        return super::single::restore(source, cx, point, request, &inventory).await;
    }
    refuse_parts(&inventory)?;
    if request.only_finish {
        let finish = Finish { source, inventory: &inventory, no_replicator: request.no_replicator };
        let mut restored = Restored { target: source.config.url.clone(), ..Restored::default() };
        finish.run(cx, &mut restored).await?;
        return Ok(restored);
    }
    let node = Node::new(&source.config, request.start)?;
    let target = request.to.clone().unwrap_or_else(|| source.config.data_dir.clone());
    let own = request.to.is_none();
    if request.start && !own {
        return Err(Error::new(ErrorKind::Usage, "the node would not start in another directory")
            .hint("leave out `--to` or `--start`."));
    }
    if !request.start {
        refuse_running(&node, &target, own).await?;
    }
    let now = cx.clock.now();
    let place = Place::prepare(&target, request.replace, now)?;
    let need = |key: &str| point.manifest.counts.get(key).copied().unwrap_or(0);
    place.check_space(need("bytes"), need("files"))?;
    let owner = request.owner.as_deref().map(owner::parse).transpose()?;
    let wanted = Wanted::new(&inventory, request.no_replicator);
    let (place, done) = fill(cx, point, place, Rules { owner, ..Rules::default() }, wanted).await?;
    if request.start {
        stop(source, cx, &node, &target, request.wait).await?;
    } else {
        refuse_running(&node, &target, own).await?;
    }
    let (target, old_data) = blocking(move || place.settle()).await?;
    let mut restored = Restored { target: target.display().to_string(), old_data, ..Restored::default() };
    note_files(&inventory, request, &done, &mut restored);
    config_beside(cx, point, &target, now, Rules { owner, ..Rules::default() }, &mut restored).await?;
    if request.start {
        let finish = Finish { source, inventory: &inventory, no_replicator: request.no_replicator };
        let started = start(source, cx, &node, request.wait).await;
        let finished = match started {
            Ok(()) => finish.run(cx, &mut restored).await,
            Err(e) => Err(e),
        };
        finished.map_err(|e| with_old_data(e, &restored))?;
    } else {
        restored.notes.push(format!(
            "start the node, keep its users away, and run `backstay restore {} {} --only-finish`: it rewrites the shard maps and compares",
            cx.service, point.manifest.id
        ));
        lacking(&inventory, &restored)?;
    }
    Ok(restored)
}

/// A point of one node is enough only where that node had everything.
pub(super) fn refuse_parts(inventory: &Inventory) -> Result<()> {
    let there = |db: &str, suffix: &str, range: &str| inventory.shards.contains_key(&shard_path(range, db, suffix));
    let whole = inventory.databases.values().filter(|d| d.is_whole());
    let parts: Vec<&str> =
        whole.filter(|d| d.ranges.iter().any(|r| !there(&d.db, &d.suffix, r))).map(|d| d.db.as_str()).collect();
    if parts.is_empty() {
        return Ok(());
    }
    let node = inventory.header.node.as_deref().unwrap_or("?");
    let message = format!(
        "the point holds the shards of node {node} alone, and {} databases have ranges on other nodes only, such as {:?}",
        parts.len(),
        parts[0]
    );
    Err(Error::new(ErrorKind::Refused, message)
        .hint("restore the points of all nodes of the cluster by hand, each onto its node: docs/couchdb.md."))
}

/// What of the archive is extracted, by its inventory.
pub(super) struct Wanted {
    files: std::collections::BTreeMap<String, (u64, String)>,
    out: BTreeSet<String>,
}

impl Wanted {
    /// Without databases that do not come back.
    fn new(inventory: &Inventory, no_replicator: bool) -> Self {
        let out = inventory.databases.values().filter(|d| !d.is_whole() || (no_replicator && is_replicator(&d.db)));
        let out = out.map(|d| format!("{}{}", d.db, d.suffix)).collect();
        Self { out, ..Self::all(inventory) }
    }

    pub(super) fn all(inventory: &Inventory) -> Self {
        let files = inventory.files.values().chain(inventory.shards.values().map(|s| &s.file));
        let files = files.map(|f| (f.path.clone(), (f.size, f.blake3.clone()))).collect();
        Self { files, out: BTreeSet::new() }
    }

    /// Not the members of a cluster, and nothing of databases that do not come back.
    fn takes(&self, path: &[u8]) -> bool {
        let path = String::from_utf8_lossy(path);
        if path == "_nodes.couch" {
            return false;
        }
        let inside = path.strip_prefix(".shards/").or_else(|| path.strip_prefix("shards/"));
        let Some((_, rest)) = inside.and_then(|rest| rest.split_once('/')) else { return true };
        let of = |name: &String| {
            let rest = rest.strip_prefix(name.as_str());
            rest.is_some_and(|rest| rest == ".couch" || rest == "_design" || rest.starts_with("_design/"))
        };
        !self.out.iter().any(of)
    }

    fn check(&self, member: &Member, digest: Option<&blake3::Hash>) -> Result<()> {
        if member.kind == MemberKind::Directory {
            return Ok(());
        }
        let differs = |why: &str| {
            Error::new(ErrorKind::Corrupt, format!("{} {why}", show(&member.path)))
                .hint("restore another point; nothing at the target was changed.")
        };
        let known = std::str::from_utf8(&member.path).ok().and_then(|path| self.files.get(path));
        let (size, blake3) = known.ok_or_else(|| differs("is in the archive but not in the inventory"))?;
        let found = digest.map(|d| d.to_hex());
        if member.size == *size && found.as_ref().is_some_and(|f| f.as_str() == blake3) {
            return Ok(());
        }
        Err(differs("has other content than the inventory says"))
    }
}

/// Extracts what is wanted and makes sure that all of it is there.
async fn fill(
    cx: &Context,
    point: &PointReader,
    place: Place,
    rules: Rules,
    wanted: Wanted,
) -> Result<(Place, Extracted)> {
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let data = point::archive(point, &stop).await?;
    let outcome = blocking(move || {
        let done = extract_wanted(data, &place.partial, rules, &wanted)?;
        Ok((place, done))
    })
    .await;
    drop(guard);
    outcome
}

pub(super) fn extract_wanted(data: impl BufRead, into: &Path, rules: Rules, wanted: &Wanted) -> Result<Extracted> {
    let mut seen = BTreeSet::new();
    let mut observer = |member: &Member, digest: Option<&blake3::Hash>| {
        wanted.check(member, digest)?;
        seen.insert(String::from_utf8_lossy(&member.path).into_owned());
        Ok(())
    };
    let done = extract::extract_some(data, into, rules, &|member| wanted.takes(&member.path), &mut observer)?;
    match wanted.files.keys().find(|path| !seen.contains(*path) && wanted.takes(path.as_bytes())) {
        None => Ok(done),
        Some(path) => Err(Error::new(ErrorKind::Corrupt, format!("{path} is in the inventory but not in the archive"))
            .hint("restore another point; nothing at the target was changed.")),
    }
}

fn note_files(inventory: &Inventory, request: &RestoreRequest, done: &Extracted, restored: &mut Restored) {
    let back = |db: &str| !(request.no_replicator && is_replicator(db));
    let dbs: Vec<_> = inventory.databases.values().filter(|d| d.is_whole() && back(&d.db)).collect();
    restored.counts = [
        ("databases", dbs.len() as u64),
        ("documents", dbs.iter().map(|d| d.doc_count).sum()),
        ("files", done.counts.get("files").copied().unwrap_or(0)),
        ("bytes", done.counts.get("bytes").copied().unwrap_or(0)),
    ]
    .map(|(key, n)| (key.to_owned(), n))
    .into();
    restored.notes.extend(done.notes.iter().cloned());
    if !nix::unistd::Uid::effective().is_root() {
        restored.notes.push("owners were not restored: that needs root".into());
    }
    if let Some(old) = &restored.old_data {
        restored.notes.push(format!("the old data is at {}; remove it when the new is proven", old.display()));
    }
    for database in inventory.databases.values().filter(|d| d.dropped) {
        restored
            .notes
            .push(format!("database {} was dropped while it was captured and does not come back", database.db));
    }
    let jobs = dbs.iter().filter(|d| is_replicator(&d.db) && d.doc_count > 0);
    for database in jobs {
        restored
            .notes
            .push(format!("the jobs in {} start with the node; --no-replicator leaves them out", database.db));
    }
}

/// Databases that the point does not hold whole.
fn lacking(inventory: &Inventory, restored: &Restored) -> Result<()> {
    let names: Vec<&str> =
        inventory.databases.values().filter(|d| !d.damage.is_empty()).map(|d| d.db.as_str()).collect();
    if names.is_empty() {
        return Ok(());
    }
    let message = format!("restored without databases that the point does not hold whole: {}", names.join(", "));
    Err(with_old_data(Error::new(ErrorKind::Corrupt, message), restored)
        .hint("restore these from another point with --database, after --only-finish has removed their shard maps."))
}

fn with_old_data(e: Error, restored: &Restored) -> Error {
    match &restored.old_data {
        Some(old) => e.within(format!("the files are in {}, the old data lies in {}", restored.target, old.display())),
        None => e.within(format!("the files are in {}", restored.target)),
    }
}

/// Extracts the configuration into a folder beside the data directory: never over one that is in use.
async fn config_beside(
    cx: &Context,
    point: &PointReader,
    target: &Path,
    now: DateTime<Utc>,
    rules: Rules,
    restored: &mut Restored,
) -> Result<()> {
    let Some(from) = point::config(point, &cx.cancel).await? else { return Ok(()) };
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(now.format(".config-%Y%m%dT%H%M%SZ").to_string());
    let place = Place::prepare(&target.with_file_name(name), false, now)?;
    let (dir, _) = blocking(move || {
        extract::extract(from, &place.partial, rules, &mut |_, _| Ok(()))?;
        place.settle()
    })
    .await?;
    restored
        .notes
        .push(format!("the node's configuration lies in {}: admins, uuid and secret come from there", dir.display()));
    Ok(())
}

/// Refuses to touch the files of a running node.
pub(super) async fn refuse_running(node: &Node, target: &Path, own: bool) -> Result<()> {
    if own && node.answers().await {
        return Err(Error::new(ErrorKind::Refused, "the node is up, and its files would be replaced")
            .hint("stop it first, let `--start` stop and start it, or restore elsewhere with `--to`."));
    }
    if let Some(pid) = user_of(target) {
        return Err(Error::new(ErrorKind::Refused, format!("process {pid} has files open in {}", target.display()))
            .hint("stop it first, or restore elsewhere with `--to`."));
    }
    Ok(())
}

/// A process that has a file below a directory open, as far as this user can see.
fn user_of(dir: &Path) -> Option<u32> {
    let dir = dir.canonicalize().ok()?;
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|p| p.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| *pid != std::process::id()).find(|pid| {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut paths = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        paths.any(|path| path.starts_with(&dir) && path.extension().is_some_and(|e| e == "couch" || e == "view"))
    })
}

async fn run_command(cx: &Context, what: &str, command: &[String]) -> Result<()> {
    let (program, args) =
        command.split_first().ok_or_else(|| Error::new(ErrorKind::Config, format!("`{what}` names no program")))?;
    let (_, ended) = Program::new(program).args(args).collect(&cx.cancel, 1 << 20).await?;
    ended.require_success(program).map_err(|e| {
        e.within(format!("could not {what} the node with {:?}", command.join(" ")))
            .hint(format!("correct `{what}` of the service, or {what} the node by hand."))
    })
}

pub(super) async fn stop(
    source: &Couchdb,
    cx: &Context,
    node: &Node,
    target: &Path,
    wait: Option<Duration>,
) -> Result<()> {
    if !node.answers().await && user_of(target).is_none() {
        return Ok(());
    }
    run_command(cx, "stop", &source.config.stop).await?;
    let gone = async {
        while node.answers().await || user_of(target).is_some() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(wait.unwrap_or(WAIT).min(WAIT), gone).await.map_err(|_| {
        Error::new(ErrorKind::Failed, "the node is still up after it was stopped")
            .hint("something may have started it again: stop that too.")
    })
}

pub(super) async fn start(source: &Couchdb, cx: &Context, node: &Node, wait: Option<Duration>) -> Result<()> {
    run_command(cx, "start", &source.config.start).await?;
    let wait = wait.unwrap_or(WAIT);
    let up = async {
        while node.version().await.is_err() {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout(wait, up).await.map_err(|_| {
        Error::new(ErrorKind::Failed, format!("the node does not answer {} seconds after its start", wait.as_secs()))
            .hint("see its log; when it runs, go on with --only-finish.")
    })
}

/// Where the files of a database lie in the archive: by range.
pub(super) fn shards_of(inventory: &Inventory, db: &str) -> Vec<(String, String)> {
    let Some(line) = inventory.databases.get(db) else { return Vec::new() };
    line.ranges.iter().map(|range| (range.clone(), shard_path(range, db, &line.suffix))).collect()
}
