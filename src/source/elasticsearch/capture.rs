//! A backup: one snapshot in each repository, one after the other, and the inventory.

use std::collections::{BTreeMap, BTreeSet};

use super::archive;
use super::client::{Client, Refusal};
use super::indices::{self, Patterns, Wanted};
use super::inventory::{self, Line};
use super::repository;
use super::restore::temporary;
use super::snapshot::{self, Verdict};
use super::version::{self, Version};
use crate::artefact::ArtefactSink;
use crate::config::{ElasticsearchConfig, RepositoryConfig};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Consistency, External};
use crate::source::{Captured, Context};

/// How often the list of indices is read again because one was deleted before the snapshot began.
const TRIES: u32 = 3;

/// One cluster at the time of a backup.
struct Capture<'a> {
    config: &'a ElasticsearchConfig,
    client: &'a Client,
    cx: &'a Context,
    version: Version,
    wanted: Wanted,
}

/// What the repositories have.
#[derive(Default)]
struct Outcome {
    whole: Vec<External>,
    /// With what is wrong: for the terminal, and without names for the manifest.
    partial: Vec<(External, String, String)>,
    failed: Vec<(String, Error)>,
}

/// What to do, for a text in the middle of others.
fn advice(err: &Error) -> String {
    err.hint.as_ref().map_or_else(String::new, |hint| format!(" ({hint})"))
}

/// See [`crate::source::Source::backup`].
pub(super) async fn backup(
    config: &ElasticsearchConfig,
    client: &Client,
    cx: &Context,
    sink: &dyn ArtefactSink,
) -> Result<Captured> {
    let version = version::ask(client).await?;
    let mut capture = Capture { config, client, cx, version, wanted: Wanted::default() };
    let mut warnings = Vec::new();
    // A backup and a restore of a service never run at the same time.
    let left = temporary::sweep(client, cx, &indices::all(client).await?).await;
    let left = left.unwrap_or_else(|err| vec![err.chain()]);
    if !left.is_empty() {
        left.iter().for_each(|text| cx.monitor.warn(text));
        warnings.push(format!("{} temporary indices of a restore that was killed are not removed", left.len()));
    }
    capture.choose().await?;
    let red = indices::red(client).await?;
    let countable: BTreeSet<String> =
        capture.wanted.indices.iter().map(|i| &i.name).filter(|n| !red.contains(*n)).cloned().collect();
    if !indices::refresh(client, &countable).await? {
        warnings.push("documents could not be counted exactly: this login may not refresh indices".to_owned());
    }
    let before = indices::sizes(client, &version).await?;
    let outcome = capture.all_repositories().await;
    let (external, suspect, missed) = capture.conclude(outcome).await?;
    let after = indices::sizes(client, &version).await?;
    if capture.wanted.closed > 0 {
        warnings.push(format!("{} closed indices are not in it", capture.wanted.closed));
    }
    let lines: Vec<Line> = capture
        .wanted
        .indices
        .iter()
        .map(|i| Line::new(i, before.get(&i.name).copied().unwrap_or_default(), after.get(&i.name)))
        .collect();
    inventory::write(sink, &lines).await?;
    let mut captured = capture.captured(&lines, external);
    captured.suspect.extend(suspect);
    captured.missed = missed;
    capture.archive(sink, &mut captured).await?;
    captured.warnings = warnings;
    Ok(captured)
}

impl Capture<'_> {
    async fn choose(&mut self) -> Result<()> {
        let all = indices::all(self.client).await?;
        self.wanted =
            indices::choose(&all, &Patterns::new(&self.config.include)?, &Patterns::new(&self.config.exclude)?);
        if self.wanted.indices.is_empty() {
            let closed = if self.wanted.closed > 0 { " that is open" } else { "" };
            return Err(Error::new(ErrorKind::Failed, format!("the cluster has no index to back up{closed}")).hint(
                "look at `include` and `exclude`, and whether `url` leads to the right cluster; an empty snapshot is \
                 not a backup.",
            ));
        }
        Ok(())
    }

    /// A failure in one repository does not keep the others from theirs.
    async fn all_repositories(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        for (name, repository) in &self.config.repositories {
            self.cx.monitor.start(name, None);
            match self.one_repository(name, repository).await {
                Ok((external, Verdict::Whole(_))) => outcome.whole.push(external),
                Ok((external, Verdict::Partial { why, nameless, .. })) => {
                    outcome.partial.push((external, why, nameless));
                }
                Err(err) => outcome.failed.push((name.clone(), err)),
            }
            self.cx.monitor.end(name);
        }
        outcome
    }

    async fn one_repository(&mut self, repository: &str, config: &RepositoryConfig) -> Result<(External, Verdict)> {
        // First of all: while a snapshot is being made, even looking at a repository can hang.
        snapshot::wait_for_others(self.client, self.cx, self.config.wait_for_others.0).await?;
        let registered = repository::ensure(self.client, repository, config).await?;
        repository::verify(self.client, repository, config).await?;
        let name = self.begin(repository).await?;
        let ended = snapshot::wait(self.client, repository, &name, self.config.snapshot_timeout.0).await;
        let verdict = match ended.and_then(|seen| snapshot::judge(seen, &name, &self.wanted)) {
            Ok(verdict) => verdict,
            Err(err) => {
                // Nothing of it can be used; what cannot be removed now, the clean-up after the run tries again.
                let _ = snapshot::remove(self.client, self.cx, repository, &name).await;
                return Err(err);
            }
        };
        let (Verdict::Whole(seen) | Verdict::Partial { seen, .. }) = &verdict;
        let external = External {
            repository: repository.to_owned(),
            kind: registered.kind,
            bucket: registered.bucket,
            base_path: registered.base_path,
            name,
            uuid: seen.uuid.clone(),
        };
        Ok((external, verdict))
    }

    /// Begins a snapshot of what is there now: an index that is deleted after it was listed is no failure.
    async fn begin(&mut self, repository: &str) -> Result<String> {
        let mut tries = 0;
        loop {
            let name = snapshot::new_name(self.cx)?;
            let at = (repository, name.as_str());
            let global = self.config.global_state;
            tries += 1;
            match snapshot::begin(self.client, &self.version, self.cx, at, &self.wanted, global).await {
                Ok(Ok(())) => return Ok(name),
                Ok(Err(no)) if is_deleted(&no) && tries < TRIES => self.choose().await?,
                Ok(Err(no)) => return Err(not_begun(no, &name)),
                Err(err) => {
                    // It may have been accepted before the answer was lost.
                    let _ = snapshot::remove(self.client, self.cx, repository, &name).await;
                    return Err(err.within(format!("could not begin snapshot {name}")));
                }
            }
        }
    }

    /// Which snapshots the point rests on, why it is suspect, and what is missing.
    async fn conclude(&self, outcome: Outcome) -> Result<(Vec<External>, Vec<String>, Vec<String>)> {
        let Outcome { whole, partial, failed } = outcome;
        let mut missed: Vec<String> =
            failed.iter().map(|(name, err)| format!("repository {name}: {}{}", err.chain(), advice(err))).collect();
        missed.extend(partial.iter().map(|(e, why, _)| format!("repository {}: {why}", e.repository)));
        if !whole.is_empty() {
            for (external, ..) in &partial {
                if let Err(err) = snapshot::remove(self.client, self.cx, &external.repository, &external.name).await {
                    missed.push(err.chain());
                }
            }
            return Ok((whole, Vec::new(), missed));
        }
        if !partial.is_empty() {
            let suspect = partial.iter().map(|(e, _, nameless)| format!("repository {}: {nameless}", e.repository));
            let suspect = suspect.collect();
            return Ok((partial.into_iter().map(|(e, ..)| e).collect(), suspect, missed));
        }
        Err(in_none(failed, &missed))
    }

    /// The snapshots stay good without it: what goes wrong here makes the point incomplete.
    async fn archive(&self, sink: &dyn ArtefactSink, captured: &mut Captured) -> Result<()> {
        for (name, repository) in self.config.repositories.iter().filter(|(_, r)| r.archive) {
            let external = captured.external.iter().find(|e| &e.repository == name);
            let (Some(external), Some(fs)) = (external, &repository.fs) else { continue };
            let wait = self.config.wait_for_others.0;
            match archive::store(self.client, self.cx, sink, &fs.location, external, wait).await {
                Ok(archived) => archived.describe(name, captured),
                Err(err) if err.kind == ErrorKind::Cancelled => return Err(err),
                Err(err) => {
                    let text = format!("the archive of repository {name}: {}{}", err.chain(), advice(&err));
                    captured.missed.push(text);
                }
            }
        }
        Ok(())
    }

    fn captured(&self, lines: &[Line], external: Vec<External>) -> Captured {
        let sum = |of: fn(&Line) -> u64| lines.iter().map(of).sum::<u64>();
        let documents = sum(|l| l.documents);
        let counts = BTreeMap::from([
            ("indices".to_owned(), lines.len() as u64),
            ("shards".to_owned(), sum(|l| l.shards)),
            ("documents".to_owned(), documents),
            ("bytes".to_owned(), sum(|l| l.bytes)),
        ]);
        let oldest = lines.iter().map(|l| Version::of_index(l.created)).min_by_key(Version::age);
        let attributes = oldest.map(|v| ("oldest_index".to_owned(), v.to_string())).into_iter().collect();
        let mut suspect = Vec::new();
        let before = self.cx.previous.as_ref().and_then(|m| m.counts.get("documents").copied()).unwrap_or(0);
        if documents == 0 && before > 0 {
            suspect.push(format!("it holds no documents, and the point before it held {before}"));
        }
        Captured {
            consistency: Consistency::Fuzzy,
            server_version: Some(self.version.to_string()),
            position: None,
            counts,
            attributes,
            warnings: Vec::new(),
            suspect,
            external,
            missed: Vec::new(),
        }
    }
}

/// The error when no repository has anything.
fn in_none(mut failed: Vec<(String, Error)>, missed: &[String]) -> Error {
    if failed.len() == 1 {
        let (name, err) = failed.swap_remove(0);
        return err.within(format!("no snapshot in repository {name:?}"));
    }
    let kind = failed.first().map_or(ErrorKind::Failed, |(_, e)| e.kind);
    let hint = failed.iter_mut().find_map(|(_, e)| e.hint.take());
    let err = Error::new(kind, "no snapshot in any repository").caused_by(missed.join("; "));
    match hint {
        Some(hint) => err.hint(hint),
        None => err,
    }
}

fn is_deleted(no: &Refusal) -> bool {
    no.exception.contains("index_not_found") || no.exception.contains("index_missing")
}

fn not_begun(no: Refusal, name: &str) -> Error {
    let hint = if no.reason.contains("primary shards") {
        Some("GET /_cluster/allocation/explain says why; leave a lost index out with `exclude` until it is repaired.")
    } else if no.reason.contains("readonly") {
        Some("only one cluster may write a repository; name another one, or take `readonly` off it.")
    } else if no.exception.contains("concurrent_snapshot") {
        Some("another snapshot began at the same moment; the next run makes this one.")
    } else {
        None
    };
    let err = no.into_error(format!("the cluster refused to make snapshot {name}"));
    match hint {
        Some(hint) => err.hint(hint),
        None => err,
    }
}
