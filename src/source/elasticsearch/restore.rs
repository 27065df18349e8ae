//! Restore: into names that are free directly; over indices that are there only after the same snapshot has been restored
//! under a temporary name and counted. Nothing else shows that a repository still has all of its files.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};

use super::archive;
use super::client::{Client, part};
use super::indices::{self, Size};
use super::inventory::{self, Line};
use super::repository;
use super::snapshot::{self, Seen};
use super::version::{self, Version};
use crate::config::ElasticsearchConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::External;
use crate::source::{Context, HeldState, PointReader, RestoreRequest, Restored, Verified};
use crate::units::Bytes;
use plan::{Job, Plan, Renaming};

pub(super) mod drill;
mod plan;
pub(super) mod temporary;
mod watch;

/// Of what is free on the nodes, so much may be used, in percent.
const USABLE_PERCENT: u64 = 90;
/// Part of a problem that `--allow-partial` lifts.
const TORN: &str = "is not whole in the snapshot";

/// One restore.
struct Restore<'a> {
    client: &'a Client,
    cx: &'a Context,
    version: Version,
    request: &'a RestoreRequest,
    plan: Plan,
    notes: Vec<String>,
    /// Repository and index, where a restore has shown that it is not whole there.
    lost: BTreeSet<(String, String)>,
}

/// A snapshot that can be used.
struct Usable<'a> {
    external: &'a External,
    seen: Seen,
}

/// See [`crate::source::Source::restore`].
pub(super) async fn restore(
    config: &ElasticsearchConfig,
    client: &Client,
    cx: &Context,
    point: &PointReader,
    request: &RestoreRequest,
) -> Result<Restored> {
    refuse_foreign(request)?;
    let version = version::ask(client).await?;
    let made_by = point.manifest.server_version.as_deref().and_then(Version::parse);
    let lines = inventory::read(point).await?;
    let there = indices::all(client).await?;
    let left = temporary::sweep(client, cx, &there).await?;
    let plan = plan::plan(&lines, request, &there)?;
    let oldest = plan.jobs.iter().map(|j| Version::of_index(j.line.created)).min_by_key(Version::age);
    if let Some(why) = version::obstacle(made_by, oldest, version) {
        return Err(Error::new(ErrorKind::Refused, "this cluster cannot read the snapshot").caused_by(why));
    }
    let found = look(config, client, point).await;
    found.refuse_none(point)?;
    let mut restore = Restore { client, cx, version, request, plan, notes: Vec::new(), lost: BTreeSet::new() };
    restore.refuse_without_room().await?;
    let restored = tokio::select! {
        done = restore.run(&found.usable) => done?,
        () = cx.cancel.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "the restore was stopped")),
    };
    if !left.is_empty() {
        // What they were to replace may be there by now.
        let there = indices::all(client).await?;
        restore.notes.extend(temporary::sweep(client, cx, &there).await?);
    }
    let counts = BTreeMap::from([
        ("indices".to_owned(), restore.plan.jobs.len() as u64),
        ("documents".to_owned(), restored.values().map(|s| s.documents).sum()),
    ]);
    Ok(Restored { target: config.url.clone(), counts, old_data: None, notes: restore.notes })
}

/// See [`crate::source::Source::verify`].
pub(super) async fn verify(config: &ElasticsearchConfig, client: &Client, point: &PointReader) -> Result<Verified> {
    let lines = inventory::read(point).await?;
    let mut verified = Verified { counts: point.manifest.counts.clone(), ..Verified::default() };
    let found = look(config, client, point).await;
    match found.refuse_none(point) {
        Err(err) if err.kind == ErrorKind::Corrupt => {
            verified.problems.push(err.chain());
            return Ok(verified);
        }
        other => other?,
    }
    for Usable { external, seen } in &found.usable {
        let missing = lines.keys().filter(|i| !seen.indices.contains(i)).count();
        if missing > 0 {
            let text = format!("snapshot {} lacks {missing} of {} indices", external.name, lines.len());
            verified.problems.push(text);
        }
    }
    Ok(verified)
}

/// With `--to`, files are restored and no indices.
pub(super) fn refuse_cluster_flags(request: &RestoreRequest) -> Result<()> {
    request.refuse_indices()?;
    if request.rename.is_some() {
        return Err(Error::new(ErrorKind::Usage, "--to restores the files of a repository, and --as names indices")
            .hint("restore the files, register them as a repository, and restore indices from that."));
    }
    refuse_foreign(&RestoreRequest { to: None, owner: None, ..request.clone() })
}

fn refuse_foreign(request: &RestoreRequest) -> Result<()> {
    let foreign = [
        ("--to", request.to.is_some()),
        ("--owner", request.owner.is_some()),
        ("--database", request.database.is_some()),
        ("--start", request.start),
        ("--map", !request.map.is_empty()),
        ("--keep-standby", request.keep_standby),
    ];
    match foreign.iter().find(|(_, there)| *there) {
        Some((flag, _)) => {
            let text = format!("{flag} has no meaning for a cluster of Elasticsearch or OpenSearch");
            Err(Error::new(ErrorKind::Usage, text).hint("choose indices with `--index`, and other names with `--as`."))
        }
        None => Ok(()),
    }
}

/// What became of the snapshots of a point, in the order of the manifest.
#[derive(Default)]
struct Found<'a> {
    usable: Vec<Usable<'a>>,
    /// Those that the cluster does not have, or that cannot be used.
    gone: Vec<String>,
    /// Those that could not be looked at.
    unread: Vec<String>,
}

impl Found<'_> {
    fn refuse_none(&self, point: &PointReader) -> Result<()> {
        if !self.usable.is_empty() {
            return Ok(());
        }
        let kind = if self.unread.is_empty() { ErrorKind::Corrupt } else { ErrorKind::Unavailable };
        let text = format!("no snapshot of {} can be read", point.manifest.id);
        let err = Error::new(kind, text).caused_by([self.gone.as_slice(), &self.unread].concat().join("; "));
        Err(match archive::read::of(&point.manifest) {
            Some(_) => err.hint("the point has an archive of the repository: restore that into a directory with --to."),
            None => err,
        })
    }
}

async fn look<'a>(config: &ElasticsearchConfig, client: &Client, point: &'a PointReader) -> Found<'a> {
    let mut found = Found::default();
    for external in &point.manifest.external {
        let at = &external.repository;
        let outcome = async {
            if let Some(repository) = config.repositories.get(at) {
                repository::ensure_readable(client, at, repository).await?;
            }
            snapshot::get(client, at, &external.name).await
        };
        match outcome.await {
            Ok(Ok(seen)) => match seen.held_state() {
                HeldState::Whole | HeldState::Partial => found.usable.push(Usable { external, seen }),
                _ => found.gone.push(format!("snapshot {} in repository {at} is {}", external.name, seen.state)),
            },
            // Of a repository that is not there, nobody can say what it holds.
            Ok(Err(no)) if no.status == 404 && no.exception != "repository_missing_exception" => {
                found.gone.push(format!("repository {at}: {no}"));
            }
            Ok(Err(no)) => found.unread.push(format!("repository {at}: {no}")),
            Err(err) => found.unread.push(format!("repository {at}: {}", err.chain())),
        }
    }
    found
}

impl Restore<'_> {
    async fn run(&mut self, usable: &[Usable<'_>]) -> Result<BTreeMap<String, Size>> {
        let (over, free): (Vec<Job>, Vec<Job>) = self.plan.jobs.clone().into_iter().partition(|j| j.replaces);
        if over.is_empty() {
            return self.bring(usable, &free, self.plan.renaming.clone(), true).await;
        }
        // First all that is to replace something, under names of its own: if a file is lost, nothing was touched.
        let prefix = temporary::of_one_restore(self.cx)?;
        let aside = |j: &Job| Job { target: format!("{prefix}{}", j.target), replaces: false, ..j.clone() };
        let temporary: Vec<Job> = over.iter().map(aside).collect();
        let renaming = match &self.plan.renaming {
            Some(Renaming { pattern, replacement }) => (*pattern, format!("{prefix}{replacement}")),
            None => ("^(.+)$", format!("{prefix}$1")),
        };
        let renaming = Renaming { pattern: renaming.0, replacement: renaming.1 };
        if let Err(err) = self.bring(usable, &temporary, Some(renaming), false).await {
            let hint = match &err.hint {
                Some(hint) if err.kind == ErrorKind::Refused => hint.clone(),
                _ => "nothing was replaced: restore another point, or choose indices with `--index`.".to_owned(),
            };
            let _ = self.remove(temporary.iter().map(|j| &j.target)).await;
            return Err(err.hint(hint));
        }
        self.remove(over.iter().map(|j| &j.target)).await?;
        let all: Vec<Job> = over.into_iter().chain(free).collect();
        let brought = self.bring(usable, &all, self.plan.renaming.clone(), true).await.map_err(|e| {
            let text = "the old indices are gone, and not all new ones are in their place";
            e.within(text)
                .hint(format!("what was restored and counted is in the indices {prefix}*: reindex from there."))
        })?;
        self.remove(temporary.iter().map(|j| &j.target)).await?;
        Ok(brought)
    }

    /// Restores and counts; what one repository has lost is taken from the next one. Indices that came out wrong are
    /// removed again: they were not there before.
    async fn bring(
        &mut self,
        usable: &[Usable<'_>],
        jobs: &[Job],
        renaming: Option<Renaming>,
        last: bool,
    ) -> Result<BTreeMap<String, Size>> {
        let mut left: Vec<Job> = jobs.to_vec();
        let mut brought = BTreeMap::new();
        let mut problems: Vec<String> = Vec::new();
        let mut failed: Option<Error> = None;
        for from in usable {
            let (now, torn) = self.allowed(from, &left);
            problems.extend(torn);
            if now.is_empty() {
                continue;
            }
            let (sizes, bad) = match self.once(from, &now, renaming.as_ref(), last).await {
                Ok(done) => done,
                Err(err) => {
                    problems.push(format!("repository {}: {}", from.external.repository, err.chain()));
                    failed.get_or_insert(err);
                    continue;
                }
            };
            let at = &from.external.repository;
            let wrong = now.iter().filter(|j| bad.contains_key(&j.target));
            self.lost.extend(wrong.map(|j| (at.clone(), j.line.index.clone())));
            left.retain(|j| !now.contains(j) || bad.contains_key(&j.target));
            brought.extend(sizes.into_iter().filter(|(name, _)| !bad.contains_key(name)));
            self.remove(bad.keys()).await?;
            problems.extend(bad.values().map(|why| format!("repository {}: {why}", from.external.repository)));
            if left.is_empty() {
                break;
            }
        }
        if left.is_empty() {
            self.notes.extend(problems.into_iter().map(|p| format!("taken from another repository, because of {p}")));
            return Ok(brought);
        }
        match failed.filter(|_| left.len() == jobs.len()) {
            Some(err) if usable.len() > 1 => Err(err.within(problems.join("; "))),
            Some(err) => Err(err),
            None => Err(incomplete(&left, jobs.len(), &problems)),
        }
    }

    /// The jobs that a snapshot has whole, or all with `--allow-partial`; and what is wrong with the rest.
    fn allowed(&mut self, from: &Usable<'_>, jobs: &[Job]) -> (Vec<Job>, Vec<String>) {
        let mut problems = Vec::new();
        let mut now = Vec::new();
        for job in jobs {
            let index = &job.line.index;
            let torn: Vec<&str> =
                from.seen.failures.iter().filter(|(i, _)| i == index).map(|(_, why)| why.as_str()).collect();
            if self.lost.contains(&(from.external.repository.clone(), index.clone())) {
                continue;
            }
            if !from.seen.indices.contains(index) {
                problems.push(format!("repository {}: index {index} is not in the snapshot", from.external.repository));
            } else if torn.is_empty() {
                now.push(job.clone());
            } else if self.request.allow_partial {
                let (bad, all) = (torn.len(), job.line.shards);
                let note = format!("lost: {bad} of {all} shards of index {index}: {}", torn.join("; "));
                if !self.notes.contains(&note) {
                    self.notes.push(note);
                }
                now.push(job.clone());
            } else {
                problems.push(format!("index {index} {TORN}: {}", torn.join("; ")));
            }
        }
        (now, problems)
    }

    /// One restore call; the sizes of what came, and what is wrong with some of it.
    async fn once(
        &self,
        from: &Usable<'_>,
        jobs: &[Job],
        renaming: Option<&Renaming>,
        last: bool,
    ) -> Result<(BTreeMap<String, Size>, BTreeMap<String, String>)> {
        let body = self.body(jobs, renaming, last);
        let External { repository, name, .. } = from.external;
        let path = format!("/_snapshot/{}/{}/_restore?wait_for_completion=false", part(repository), part(name));
        let answer = self.client.post(&path, Some(&body)).await?;
        answer.map_err(|no| no.into_error(format!("the cluster refused to restore snapshot {name}")))?;
        let targets: BTreeSet<String> = jobs.iter().map(|j| j.target.clone()).collect();
        let mut bad = watch::settled(self.client, &targets).await?;
        for (index, why) in &mut bad {
            *why = format!("index {index}: {why}");
        }
        let good: BTreeSet<String> = targets.iter().filter(|t| !bad.contains_key(*t)).cloned().collect();
        indices::refresh(self.client, &good).await?;
        let sizes = indices::sizes(self.client, &self.version).await?;
        for job in jobs.iter().filter(|j| good.contains(&j.target)) {
            let torn = from.seen.failures.iter().any(|(i, _)| i == &job.line.index);
            let wrong = match sizes.get(&job.target) {
                None => Some(format!("{} cannot be counted", job.line.index)),
                Some(size) => job.line.differs(size.documents).filter(|_| !torn),
            };
            bad.extend(wrong.map(|why| (job.target.clone(), why)));
        }
        Ok((sizes.into_iter().filter(|(name, _)| targets.contains(name)).collect(), bad))
    }

    fn body(&self, jobs: &[Job], renaming: Option<&Renaming>, last: bool) -> Value {
        let name = |l: &Line| l.data_stream.clone().unwrap_or_else(|| l.index.clone());
        let names: BTreeSet<String> = jobs.iter().map(|j| name(&j.line)).collect();
        let mut body = json!({
            "indices": names, "ignore_unavailable": false, "partial": self.request.allow_partial,
            "include_global_state": last && self.request.global_state,
            "include_aliases": last && self.request.aliases,
        });
        if let Some(renaming) = renaming {
            body["rename_pattern"] = json!(renaming.pattern);
            body["rename_replacement"] = json!(renaming.replacement);
        }
        if !last {
            // A temporary copy is nobody's business: no replicas, no life cycle that would act on it.
            body["index_settings"] = json!({"index.number_of_replicas": 0, "index.auto_expand_replicas": false});
            body["ignore_index_settings"] = json!(["index.lifecycle.name", "index.lifecycle.rollover_alias"]);
        }
        body
    }

    async fn remove<'n>(&self, names: impl Iterator<Item = &'n String>) -> Result<()> {
        remove(self.client, names).await
    }

    /// What is to replace something lies there twice for a while.
    async fn refuse_without_room(&self) -> Result<()> {
        let path = "/_nodes/stats/fs?filter_path=nodes.*.roles,nodes.*.fs.total.available_in_bytes";
        let stats = self.client.must_get(path, "could not ask the nodes for their free space").await?;
        let is_data = |node: &&Value| match node["roles"].as_array() {
            Some(roles) => roles.iter().any(|r| r.as_str().is_some_and(|r| r.starts_with("data"))),
            None => true,
        };
        let nodes = stats["nodes"].as_object().into_iter().flat_map(|n| n.values()).filter(is_data);
        let free: Vec<u64> = nodes.filter_map(|n| n["fs"]["total"]["available_in_bytes"].as_u64()).collect();
        if free.is_empty() {
            return Ok(());
        }
        let old = indices::sizes(self.client, &self.version).await?;
        let (mut all, mut over, mut freed) = (0u64, 0u64, 0u64);
        for job in &self.plan.jobs {
            all += job.line.bytes;
            if job.replaces {
                over += job.line.bytes;
                freed += old.get(&job.target).map_or(0, |s| s.bytes);
            }
        }
        let need = all + over.saturating_sub(freed);
        let usable = free.iter().sum::<u64>() / 100 * USABLE_PERCENT;
        if need > usable {
            let text = format!("there is no room: {} are needed, {} may be used", Bytes(need), Bytes(usable));
            return Err(Error::new(ErrorKind::NoSpace, text).hint("choose fewer indices with `--index`, or add room."));
        }
        Ok(())
    }
}

async fn remove<'n>(client: &Client, names: impl Iterator<Item = &'n String>) -> Result<()> {
    let names: Vec<&String> = names.collect();
    for list in indices::lists(names) {
        match client.delete(&format!("/{list}?ignore_unavailable=true"), Duration::ZERO).await? {
            Ok(_) => {}
            Err(no) if no.status == 404 => {}
            Err(no) => return Err(no.into_error("could not remove indices")),
        }
    }
    Ok(())
}

fn incomplete(left: &[Job], of: usize, problems: &[String]) -> Error {
    let torn = problems.iter().all(|p| p.contains(TORN));
    let kind = if torn { ErrorKind::Refused } else { ErrorKind::Corrupt };
    let names: Vec<&str> = left.iter().map(|j| j.line.index.as_str()).collect();
    let text = format!("{} of {of} indices could not be restored whole: {}", left.len(), names.join(", "));
    let hint = match torn {
        true => "pass --allow-partial to restore what there is of them, or leave them out with `--index`.",
        false => "the other indices are there; restore these from another point.",
    };
    Error::new(kind, text).caused_by(problems.join("; ")).hint(hint)
}
