//! A drill: from each repository in turn, the indices of a point are restored into the same cluster under names that
//! only drills use, counted, and removed. Nothing else shows that a repository still has all of its files.

use std::collections::{BTreeMap, BTreeSet};

use super::super::client::Client;
use super::super::inventory;
use super::super::{indices, version};
use super::{Restore, plan, usable};
use crate::config::ElasticsearchConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Context, DrillLevel, Drilled, PointReader, RestoreRequest, Seconds, Stopwatch};

/// First part of the names of a service's drill indices.
fn prefix(service: &str) -> String {
    format!("backstay-drill-{service}-")
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
    let lines: BTreeMap<_, _> = all.into_iter().filter(|(_, l)| l.data_stream.is_none()).collect();
    let left_out = point.manifest.counts.get("indices").copied().unwrap_or(0).saturating_sub(lines.len() as u64);
    let request = RestoreRequest { rename: Some(format!("{}*", prefix(&cx.service))), ..RestoreRequest::default() };
    let there = indices::all(client).await?;
    let plan = plan::plan(&lines, &request, &there)?;
    let (jobs, renaming) = (plan.jobs.clone(), plan.renaming.clone());
    let usable = usable(config, client, point).await?;
    let mut restore = Restore { client, version, request: &request, plan, notes: Vec::new(), lost: BTreeSet::new() };
    restore.refuse_without_room().await?;
    let (mut differences, mut counts) = (Vec::new(), BTreeMap::new());
    for one in &usable {
        let outcome = tokio::select! {
            done = restore.bring(std::slice::from_ref(one), &jobs, renaming.clone(), false) => done,
            () = cx.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the drill was stopped")),
        };
        restore.remove(jobs.iter().map(|j| &j.target)).await?;
        match outcome {
            Ok(sizes) => {
                counts.insert("indices".to_owned(), sizes.len() as u64);
                counts.insert("documents".to_owned(), sizes.values().map(|s| s.documents).sum());
            }
            Err(err) if err.kind == ErrorKind::Corrupt => {
                differences.push(format!("repository {}: {}", one.external.repository, err.chain()));
            }
            Err(err) => return Err(err),
        }
    }
    let mut notes = std::mem::take(&mut restore.notes);
    let unread = point.manifest.external.len() - usable.len();
    if unread > 0 {
        differences.push(format!("{unread} of {} snapshots cannot be read", point.manifest.external.len()));
    }
    if left_out > 0 {
        notes.push(format!("{left_out} indices of data streams were not drilled: they cannot have other names"));
    }
    let seconds = Seconds { restore: watch.lap(), ..Seconds::default() };
    Ok(Drilled { level: DrillLevel::Server, seconds, counts, differences, notes })
}

/// Removes the indices that a killed drill of this service left.
pub(in super::super) async fn cleanup(client: &Client, service: &str) -> Result<()> {
    let prefix = prefix(service);
    let there = indices::all(client).await?;
    let left: Vec<&String> = there.iter().map(|i| &i.name).filter(|n| n.starts_with(&prefix)).collect();
    super::remove(client, left.into_iter()).await
}
