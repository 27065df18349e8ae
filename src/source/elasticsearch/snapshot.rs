//! Snapshots: their names, making one and waiting for it, what the cluster says of it, removing it.
//!
//! Facts that the rules here rest on, seen on real clusters: "accepted" is no promise (a full or read-only disk, a
//! killed node: 404 later, never a failure). `_status` may call a partial snapshot a success, so `GET` is asked. A
//! pattern that matches nothing gives a success with no shards. Shard failures give `PARTIAL` even with
//! `partial: false`, which guards against primaries that are not there, and against nothing else.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::client::{Client, Refusal, part};
use super::indices::Wanted;
use super::version::Version;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Context, HeldState};
use crate::units::Span;

/// Between two looks at a running snapshot: at first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// The same for those of others.
const LOOK_AT_OTHERS: Duration = Duration::from_secs(2);
/// A cluster that cannot be asked for this long is given up: it may be restarting.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a removal may take: old clusters hold the call until the last file is gone.
const REMOVAL: Duration = Duration::from_secs(1800);
/// Most reasons that a message quotes.
const QUOTED: usize = 5;

/// Names of snapshots: `<id of the point>_<mark of the installation>_<random>`. Never the same twice, and they tell
/// whose they are on clusters that keep no notes with a snapshot.
pub(super) fn new_name(cx: &Context) -> Result<String> {
    let point = cx.point.as_ref().ok_or_else(|| Error::new(ErrorKind::Internal, "a backup without a point"))?;
    Ok(format!("{point}_{}_{}", mark(&cx.agent_id), random_hex()?))
}

/// Six digits.
pub(super) fn random_hex() -> Result<String> {
    let mut random = [0u8; 3];
    getrandom::fill(&mut random)
        .map_err(|e| Error::new(ErrorKind::Io, "no random numbers").caused_by(e.to_string()))?;
    Ok(hex::encode(random))
}

/// Eight digits that tell installations apart.
pub(super) fn mark(agent_id: &str) -> String {
    blake3::hash(agent_id.as_bytes()).to_hex()[..8].to_owned()
}

/// The point of a snapshot of this service, and whether this installation made it; `None` for all others.
fn of_name(name: &str, cx: &Context) -> Option<(String, bool)> {
    let (rest, random) = name.rsplit_once('_')?;
    let (point, whose) = rest.rsplit_once('_')?;
    let hex = |s: &str, n: usize| s.len() == n && s.bytes().all(|b| b.is_ascii_hexdigit());
    let ours = point.strip_prefix(&cx.service)?.starts_with('_') && hex(random, 6) && hex(whose, 8);
    ours.then(|| (point.to_owned(), whose == mark(&cx.agent_id)))
}

/// What the cluster says of one snapshot.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// As in the answer: `SUCCESS`, `PARTIAL`, ...
    pub(super) state: String,
    pub(super) uuid: Option<String>,
    pub(super) indices: Vec<String>,
    /// Index and reason, for every shard that failed.
    pub(super) failures: Vec<(String, String)>,
    /// Shards: all, and those that failed.
    shards: (u64, u64),
    /// Who made it, where the cluster keeps notes.
    agent_id: Option<String>,
    service: Option<String>,
}

impl Seen {
    fn read(json: &Value) -> Self {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let failure = |f: &Value| {
            let (index, shard) = (f["index"].as_str().unwrap_or("?"), f["shard_id"].as_u64().unwrap_or(0));
            let why = f["reason"].as_str().unwrap_or("no reason is given");
            (index.to_owned(), format!("index {index}, shard {shard}: {why}"))
        };
        let shards = &json["shards"];
        Self {
            state: json["state"].as_str().unwrap_or_default().to_owned(),
            uuid: text(&json["uuid"]),
            indices: json["indices"].as_array().into_iter().flatten().filter_map(text).collect(),
            failures: json["failures"].as_array().into_iter().flatten().map(failure).collect(),
            shards: (shards["total"].as_u64().unwrap_or(0), shards["failed"].as_u64().unwrap_or(0)),
            agent_id: text(&json["metadata"]["agent_id"]),
            service: text(&json["metadata"]["service"]),
        }
    }
    /// For the engine.
    pub(super) fn held_state(&self) -> HeldState {
        match self.state.as_str() {
            "SUCCESS" => HeldState::Whole,
            "PARTIAL" => HeldState::Partial,
            "IN_PROGRESS" => HeldState::Running,
            _ => HeldState::Failed,
        }
    }
    /// The reasons of failed shards, in one line.
    fn reasons(&self) -> String {
        let mut text: Vec<&str> = self.failures.iter().take(QUOTED).map(|(_, why)| why.as_str()).collect();
        let more = self.failures.len().saturating_sub(QUOTED);
        let rest = format!("and {more} more");
        if more > 0 {
            text.push(&rest);
        }
        if text.is_empty() { "no reason is given".into() } else { text.join("; ") }
    }
}

/// How a snapshot ended.
#[derive(Debug)]
pub(super) enum Verdict {
    /// Everything that was to be in it is in it.
    Whole(Seen),
    /// Some shards are in it. What is wrong, with names and without.
    Partial { seen: Seen, why: String, nameless: String },
}

/// The truth about a snapshot that has ended; pure.
///
/// # Errors
/// When nothing of it can be used.
pub(super) fn judge(seen: Seen, name: &str, wanted: &Wanted) -> Result<Verdict> {
    let failed = |why: String| Err(Error::new(ErrorKind::Failed, format!("snapshot {name} is no good: {why}")));
    let (total, bad) = seen.shards;
    let all = wanted.indices.len();
    let missing: Vec<&str> =
        wanted.indices.iter().map(|i| i.name.as_str()).filter(|n| !seen.indices.iter().any(|i| i == n)).collect();
    let expected: u64 = wanted.indices.iter().map(|i| i.shards).sum();
    match seen.state.as_str() {
        "SUCCESS" if total == 0 => failed("it has no shards, whatever its state says".into()),
        "SUCCESS" | "PARTIAL" if !missing.is_empty() => {
            failed(format!("{} of {all} indices are not in it: {}", missing.len(), missing.join(", ")))
        }
        "SUCCESS" if total < expected => failed(format!("it has {total} shards of {expected}")),
        "SUCCESS" if bad == 0 && seen.failures.is_empty() => Ok(Verdict::Whole(seen)),
        "SUCCESS" | "PARTIAL" if bad < total => {
            let nameless = format!("the snapshot is {}: {bad} of {total} shards failed", seen.state);
            let why = format!("snapshot {name} is {}: {bad} of {total} shards failed: {}", seen.state, seen.reasons());
            Ok(Verdict::Partial { seen, why, nameless })
        }
        "SUCCESS" | "PARTIAL" => failed(format!("all {total} shards failed: {}", seen.reasons())),
        state => failed(format!("its state is {state:?}: {}", seen.reasons())),
    }
}

/// Looks at one snapshot.
pub(super) async fn get(client: &Client, repository: &str, name: &str) -> Result<Result<Seen, Refusal>> {
    let path = format!("/_snapshot/{}/{}", part(repository), part(name));
    Ok(match client.get(&path).await? {
        Err(no) => Err(no),
        Ok(json) => {
            let found = snapshots(&json).find(|s| s["snapshot"] == name).map(Seen::read);
            found.ok_or_else(|| Refusal {
                status: 404,
                exception: "snapshot_missing_exception".into(),
                reason: format!("the answer does not name {name}"),
            })
        }
    })
}

/// In some versions 7 and 8 they are grouped by repository.
fn snapshots(json: &Value) -> impl Iterator<Item = &Value> {
    let grouped = json["responses"].as_array().into_iter().flatten();
    let grouped = grouped.flat_map(|r| r["snapshots"].as_array().into_iter().flatten());
    json["snapshots"].as_array().into_iter().flatten().chain(grouped)
}

/// A snapshot of this service.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    /// Id of its point.
    pub(super) point: String,
    /// Whether this installation made it.
    pub(super) ours: bool,
    pub(super) seen: Seen,
}

/// Every snapshot of this service in a repository.
pub(super) async fn list(client: &Client, version: &Version, repository: &str, cx: &Context) -> Result<Vec<Listed>> {
    let brief = if version.lists_briefly() { "?verbose=false" } else { "" };
    let path = format!("/_snapshot/{}/_all{brief}", part(repository));
    let what = format!("could not list the snapshots of repository {repository:?}");
    let json = client.must_get(&path, &what).await?;
    let error = json["responses"].as_array().into_iter().flatten().find(|r| r["error"].is_object());
    if let Some(error) = error {
        let why = error["error"]["reason"].as_str().unwrap_or("no reason is given").to_owned();
        return Err(Error::new(ErrorKind::Failed, what).caused_by(why));
    }
    if !json["snapshots"].is_array() && !json["responses"].is_array() {
        return Err(Error::new(ErrorKind::Failed, what).caused_by("the answer is not whole"));
    }
    let one = |s: &Value| {
        let name = s["snapshot"].as_str()?;
        let (point, ours) = of_name(name, cx)?;
        Some(Listed { name: name.to_owned(), point, ours, seen: Seen::read(s) })
    };
    Ok(snapshots(&json).filter_map(one).collect())
}

/// Begins a snapshot. The cluster may accept and never make it: see [`wait`].
pub(super) async fn begin(
    client: &Client,
    version: &Version,
    cx: &Context,
    at: (&str, &str),
    wanted: &Wanted,
    global_state: bool,
) -> Result<Result<(), Refusal>> {
    let (repository, name) = at;
    let mut body = json!({
        "indices": wanted.names, "ignore_unavailable": false, "include_global_state": global_state, "partial": false,
    });
    if version.has_metadata() {
        body["metadata"] =
            json!({"taken_by": "backstay", "service": cx.service, "agent_id": cx.agent_id, "point": cx.point});
    }
    let path = format!("/_snapshot/{}/{}?wait_for_completion=false", part(repository), part(name));
    match client.put(&path, &body).await? {
        Err(no) => Ok(Err(no)),
        Ok(json) if json["accepted"] == true || json["snapshot"].is_object() => Ok(Ok(())),
        Ok(_) => Err(Error::new(ErrorKind::Failed, format!("the cluster did not accept snapshot {name}"))),
    }
}

/// Waits until a snapshot has ended, well or not.
///
/// # Errors
/// Gone after it was accepted; not done in time; the cluster cannot be asked any more.
pub(super) async fn wait(client: &Client, repository: &str, name: &str, limit: Duration) -> Result<Seen> {
    let began = Instant::now();
    let mut answered = began;
    let mut pause = LOOK.0;
    loop {
        let failed = match get(client, repository, name).await {
            Ok(Ok(seen)) if seen.state != "IN_PROGRESS" => return Ok(seen),
            Ok(Ok(_)) => {
                answered = Instant::now();
                None
            }
            Ok(Err(no)) if no.status == 404 => {
                let text = format!("snapshot {name} was accepted, and then it was gone");
                return Err(Error::new(ErrorKind::Failed, text).caused_by(no.to_string()).hint(
                    "the log of the elected master node has the reason: a full or read-only disk, a restart, or somebody \
                     removed it.",
                ));
            }
            Ok(Err(no)) => Some(no.into_error(format!("could not look at snapshot {name}"))),
            Err(err) => Some(err.within(format!("could not look at snapshot {name}"))),
        };
        if let Some(err) = failed
            && (err.kind == ErrorKind::Denied || answered.elapsed() > PATIENCE.min(limit))
        {
            return Err(err);
        }
        if began.elapsed() > limit {
            let text = format!("snapshot {name} was not done within {}", Span(limit));
            return Err(Error::new(ErrorKind::Failed, text)
                .hint("look at what holds the cluster or the repository up; `snapshot_timeout` sets the limit."));
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK.1);
    }
}

/// Names and repositories of the snapshots that are being made.
pub(super) async fn running(client: &Client) -> Result<Vec<(String, String)>> {
    let what = "could not ask the cluster for running snapshots";
    let json = client.must_get("/_snapshot/_status", what).await?;
    let Some(running) = json["snapshots"].as_array() else {
        return Err(Error::new(ErrorKind::Failed, what).caused_by("the answer is not whole"));
    };
    let text = |s: &Value, key: &str| s[key].as_str().unwrap_or("?").to_owned();
    Ok(running.iter().map(|s| (text(s, "snapshot"), text(s, "repository"))).collect())
}

/// Waits until nobody makes a snapshot: concurrent ones have destroyed repositories.
pub(super) async fn wait_for_others(client: &Client, cx: &Context, limit: Duration) -> Result<()> {
    let began = Instant::now();
    let mut told = false;
    let mut pause = LOOK.0;
    loop {
        let running = running(client).await?;
        if running.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = running.iter().map(|(name, at)| format!("{name} in repository {at}")).collect();
        let names = names.join(", ");
        if began.elapsed() >= limit {
            return Err(Error::new(ErrorKind::Busy, format!("another snapshot is being made: {names}"))
                .hint(format!("waited {} for it; `wait_for_others` sets the limit.", Span(limit))));
        }
        if !told {
            cx.monitor.warn(&format!("waiting for another snapshot: {names}"));
            told = true;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LOOK_AT_OTHERS);
    }
}

/// Removes a snapshot, or aborts a running one; that there is none is no error. Refuses what is not provably ours.
pub(super) async fn remove(client: &Client, cx: &Context, repository: &str, name: &str) -> Result<()> {
    let what = format!("could not remove snapshot {name} of repository {repository:?}");
    let refused = |why: &str| Err(Error::new(ErrorKind::Refused, what.clone()).caused_by(why.to_owned()));
    if !matches!(of_name(name, cx), Some((_, true))) {
        return refused("its name says that this service of this installation did not make it");
    }
    match get(client, repository, name).await? {
        Err(no) if no.status == 404 => return Ok(()),
        Err(no) => return Err(no.into_error(what)),
        Ok(seen) => {
            let other = |noted: &Option<String>, own: &str| noted.as_deref().is_some_and(|n| n != own);
            if other(&seen.agent_id, &cx.agent_id) || other(&seen.service, &cx.service) {
                return refused("its notes say that this service of this installation did not make it");
            }
        }
    }
    let path = format!("/_snapshot/{}/{}", part(repository), part(name));
    match client.delete(&path, REMOVAL).await? {
        Ok(_) => {}
        Err(no) if no.status == 404 => {}
        Err(no) => return Err(no.into_error(what)),
    }
    match get(client, repository, name).await? {
        Err(no) if no.status == 404 => Ok(()),
        Err(no) => Err(no.into_error(what)),
        Ok(seen) => refused(&format!("it is still there: {}", seen.state)),
    }
}
