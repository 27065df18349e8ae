//! A drill: from each repository in turn, the indices of a point are restored into the same cluster under names that
//! only drills use, counted, and removed. Nothing else shows that a repository still has all of its files.

use std::collections::{BTreeMap, BTreeSet};

use super::super::archive;
use super::super::client::Client;
use super::super::inventory;
use super::super::{indices, version};
use super::{Restore, Usable, look, plan, temporary};
use crate::config::ElasticsearchConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Context, DrillLevel, Drilled, PointReader, RestoreRequest, Seconds, Stopwatch, Verified};

/// What came of the snapshots that were tried.
#[derive(Default)]
struct Outcome {
    counts: BTreeMap<String, u64>,
    /// Repositories from which everything came back.
    whole: Vec<String>,
    differences: Vec<String>,
    /// Those that say nothing about the point: they could not be read, or the cluster could not restore.
    untried: Vec<String>,
}

/// See [`crate::source::Source::drill`].
pub(in super::super) async fn drill(
    config: &ElasticsearchConfig,
    client: &Client,
    cx: &Context,
    point: &PointReader,
) -> Result<Drilled> {
    let mut watch = Stopwatch::start(&cx.clock);
    let version = version::ask(client).await?;
    let all = inventory::read(point).await?;
    let held = all.len();
    let lines: BTreeMap<_, _> = all.into_iter().filter(|(_, l)| l.data_stream.is_none()).collect();
    let request =
        RestoreRequest { rename: Some(format!("{}*", temporary::of_drills(cx))), ..RestoreRequest::default() };
    let there = indices::all(client).await?;
    let plan = plan::plan(&lines, &request, &there)?;
    let left_out = held - plan.jobs.len();
    let found = look(config, client, point).await;
    if found.usable.is_empty()
        && found.unread.is_empty()
        && let Some(artefact) = archive::read::of(&point.manifest)
    {
        let Verified { counts, problems } = archive::read::verify(cx, point, artefact).await?;
        let seconds = Seconds { compare: watch.lap(), ..Seconds::default() };
        let notes = vec!["its snapshots are gone: the archive of the repository was read, and not restored".to_owned()];
        return Ok(Drilled { level: DrillLevel::Stream, seconds, counts, differences: problems, notes });
    }
    found.refuse_none(point)?;
    let mut restore =
        Restore { client, cx, version, request: &request, plan, notes: Vec::new(), lost: BTreeSet::new() };
    restore.refuse_without_room().await?;
    let mut outcome = each(&mut restore, &found.usable).await?;
    outcome.untried.extend(found.unread);
    let mut notes = std::mem::take(&mut restore.notes);
    if !found.gone.is_empty() {
        notes.push(format!("{} of {} snapshots are gone", found.gone.len(), point.manifest.external.len()));
    }
    if left_out > 0 {
        notes
            .push(format!("{left_out} of {held} indices were not drilled: data streams and the product's own indices"));
    }
    if outcome.differences.is_empty() && !outcome.untried.is_empty() {
        return Err(untried(&outcome));
    }
    notes.extend(outcome.untried.iter().map(|_| "a snapshot could not be tried".to_owned()));
    let seconds = Seconds { restore: watch.lap(), ..Seconds::default() };
    Ok(Drilled { level: DrillLevel::Server, seconds, counts: outcome.counts, differences: outcome.differences, notes })
}

/// Restores everything from each snapshot alone, and removes it again.
async fn each(restore: &mut Restore<'_>, usable: &[Usable<'_>]) -> Result<Outcome> {
    let (jobs, renaming) = (restore.plan.jobs.clone(), restore.plan.renaming.clone());
    let mut outcome = Outcome::default();
    for one in usable {
        let cancel = restore.cx.cancel.clone();
        let done = tokio::select! {
            done = restore.bring(std::slice::from_ref(one), &jobs, renaming.clone(), false) => done,
            () = cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the drill was stopped")),
        };
        restore.remove(jobs.iter().map(|j| &j.target)).await?;
        let at = &one.external.repository;
        match done {
            Ok(sizes) => {
                outcome.whole.push(at.clone());
                outcome.counts.insert("indices".to_owned(), sizes.len() as u64);
                outcome.counts.insert("documents".to_owned(), sizes.values().map(|s| s.documents).sum());
            }
            Err(err) if err.kind == ErrorKind::Cancelled => return Err(err),
            Err(err) if err.kind == ErrorKind::Corrupt => {
                outcome.differences.push(format!("repository {at}: {}", err.chain()));
            }
            Err(err) => outcome.untried.push(format!("repository {at}: {}", err.chain())),
        }
    }
    Ok(outcome)
}

fn untried(outcome: &Outcome) -> Error {
    let text = match outcome.whole.as_slice() {
        [] => "nothing could be tried".to_owned(),
        whole => format!("everything came back from {}, and the rest could not be tried", whole.join(", ")),
    };
    Error::new(ErrorKind::Unavailable, text).caused_by(outcome.untried.join("; "))
}

/// Removes the indices that a killed drill of this service left.
pub(in super::super) async fn cleanup(client: &Client, cx: &Context) -> Result<()> {
    let prefix = temporary::of_drills(cx);
    let there = indices::all(client).await?;
    let left: Vec<&String> = there.iter().map(|i| &i.name).filter(|n| n.starts_with(&prefix)).collect();
    super::remove(client, left.into_iter()).await
}
