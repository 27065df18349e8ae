//! Restore and verification: the archive is read to its end and compared with the inventory, member by member.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufRead;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::inventory::Comparison;
use crate::artefact::Role;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Artefact;
use crate::pipeline::bridge::{self, Bridge, blocking};
use crate::pipeline::extract::{self, Extracted, Rules};
use crate::pipeline::owner;
use crate::pipeline::place::Place;
use crate::source::{Context, LegacyReader, PointReader, RestoreRequest, Restored, Verified};

/// Counts of the manifest that a restore must reach.
const COMPARED: [&str; 6] = ["files", "directories", "symlinks", "hardlinks", "other", "bytes"];

/// See [`crate::source::Source::restore`].
pub(super) async fn restore(
    own: &Path,
    cx: &Context,
    point: &PointReader,
    request: &RestoreRequest,
) -> Result<Restored> {
    request.refuse_indices()?;
    refuse_foreign(request)?;
    let owner = request.owner.as_deref().map(owner::parse).transpose()?;
    let target = request.to.clone().unwrap_or_else(|| own.to_path_buf());
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let counts = point.manifest.counts.clone();
    let mut place = Place::prepare(&target, request.replace, cx.clock.now())?;
    let need = |key: &str| counts.get(key).copied().unwrap_or(0);
    place.check_space(need("bytes"), need("files") + need("directories"))?;
    let (expected, data) = open(cx, point, &stop).await?;
    let work = move || -> Result<Restored> {
        let mut expected = expected;
        let mut seen = |member: &_, digest: Option<&_>| expected.member(member, digest);
        let done = extract::extract(data, &place.partial, Rules { owner, ..Rules::default() }, &mut seen)?;
        let problems = [expected.finish()?, compare_counts(&counts, &done.counts)].concat();
        if !problems.is_empty() {
            let message = format!("the restored files differ from what was captured: {}", problems.join("; "));
            return Err(Error::new(ErrorKind::Corrupt, message)
                .hint("restore another point; nothing at the target was changed."));
        }
        let removed = std::mem::take(&mut place.removed);
        let (target, old_data) = place.settle()?;
        let mut restored = restored(&target, old_data, done, owner.is_some());
        let gone = removed.iter().map(|path| format!("removed {}, left by a restore that was killed", path.display()));
        restored.notes.extend(gone);
        Ok(restored)
    };
    let outcome = blocking(work).await;
    drop(guard);
    outcome
}

/// See [`crate::source::Source::restore_legacy`].
pub(super) async fn legacy(own: &Path, cx: &Context, old: LegacyReader, request: &RestoreRequest) -> Result<Restored> {
    request.refuse_indices()?;
    refuse_foreign(request)?;
    let owner = request.owner.as_deref().map(owner::parse).transpose()?;
    let target = request.to.clone().unwrap_or_else(|| own.to_path_buf());
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let place = Place::prepare(&target, request.replace, cx.clock.now())?;
    place.check_space(old.stored_bytes, 0)?;
    let data = Bridge::new(old.plain, &stop);
    let work = move || -> Result<Restored> {
        let done = extract::extract_stripped(data, &place.partial, Rules { owner, ..Rules::default() }, &|_| true)?;
        let (target, old_data) = place.settle()?;
        Ok(restored(&target, old_data, done, owner.is_some()))
    };
    let outcome = blocking(work).await;
    drop(guard);
    outcome
}

/// See [`crate::source::Source::verify`].
pub(super) async fn verify(cx: &Context, point: &PointReader) -> Result<Verified> {
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let (expected, data) = open(cx, point, &stop).await?;
    let counts = point.manifest.counts.clone();
    let work = move || -> Result<Verified> {
        let mut expected = expected;
        let mut seen = |member: &_, digest: Option<&_>| expected.member(member, digest);
        let done = extract::scan(data, &mut seen);
        let done = match done {
            Ok(done) => done,
            Err(e) if e.kind == ErrorKind::Corrupt => {
                return Ok(Verified { counts: BTreeMap::new(), problems: vec![e.chain()] });
            }
            Err(e) => return Err(e),
        };
        let problems = [expected.finish()?, compare_counts(&counts, &done.counts)].concat();
        Ok(Verified { counts: done.counts, problems })
    };
    let outcome = blocking(work).await;
    drop(guard);
    outcome
}

fn restored(target: &Path, old_data: Option<PathBuf>, done: Extracted, owner_given: bool) -> Restored {
    let mut notes = done.notes;
    if !nix::unistd::Uid::effective().is_root() {
        notes.push("owners were not restored: that needs root".into());
    } else if owner_given {
        notes.push("everything belongs to the owner that was asked for".into());
    }
    if let Some(old) = &old_data {
        notes.push(format!("the old data is at {}; remove it when the new is proven", old.display()));
    }
    Restored { target: target.display().to_string(), counts: done.counts, old_data, notes }
}

pub(super) fn compare_counts(wanted: &BTreeMap<String, u64>, found: &BTreeMap<String, u64>) -> Vec<String> {
    let differs = |key: &&str| {
        let wanted = wanted.get(*key).copied();
        wanted.is_some_and(|n| n != found.get(*key).copied().unwrap_or(0))
    };
    COMPARED
        .iter()
        .filter(|key| differs(key))
        .map(|key| {
            let (wanted, found) = (wanted.get(*key).copied(), found.get(*key).copied());
            format!("the manifest counts {} {key}, the archive {}", wanted.unwrap_or(0), found.unwrap_or(0))
        })
        .collect()
}

fn refuse_foreign(request: &RestoreRequest) -> Result<()> {
    if request.database.is_some() || request.rename.is_some() || !request.map.is_empty() {
        return Err(Error::new(ErrorKind::Usage, "a directory of files has no databases and no tablespaces")
            .hint("leave out `--database`, `--as` and `--map`."));
    }
    if request.no_replicator || request.only_finish {
        return Err(Error::new(ErrorKind::Usage, "a directory of files is no CouchDB node")
            .hint("leave out `--no-replicator` and `--only-finish`."));
    }
    Ok(())
}

fn find(point: &PointReader, role: Role, name: &str) -> Result<Artefact> {
    let artefacts = &point.manifest.artefacts;
    artefacts
        .iter()
        .find(|a| a.role == role && a.plain_name() == name)
        .cloned()
        .ok_or_else(|| Error::new(ErrorKind::Corrupt, format!("the restore point {} has no {name}", point.manifest.id)))
}

/// The inventory, fetched and ready to be compared with, and the archive, for a thread that may block.
pub(super) async fn open(
    cx: &Context,
    point: &PointReader,
    stop: &CancellationToken,
) -> Result<(Comparison, impl BufRead + Send + 'static)> {
    let (data, lines) = (find(point, Role::Data, "data.tar")?, find(point, Role::Inventory, "inventory.jsonl")?);
    let spool = cx.workdir.join("expected-inventory.jsonl");
    let failed = |e| Error::io(e, "could not make the inventory's scratch file");
    let file =
        File::options().read(true).write(true).create(true).truncate(true).mode(0o600).open(&spool).map_err(failed)?;
    drop(std::fs::remove_file(&spool));
    let mut copy = tokio::fs::File::from_std(file.try_clone().map_err(failed)?);
    let mut from = point.open(&lines).await?;
    tokio::select! {
        biased;
        () = stop.cancelled() => return Err(bridge::stopped()),
        copied = tokio::io::copy(&mut from, &mut copy) => copied.map_err(Error::from)?,
    };
    tokio::io::AsyncWriteExt::flush(&mut copy).await.map_err(failed)?;
    let expected = Comparison::begin(file)?;
    Ok((expected, Bridge::new(point.open(&data).await?, stop)))
}
