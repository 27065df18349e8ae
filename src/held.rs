//! Snapshots that stores keep themselves: whether those that manifests name are there, and their retention.
//!
//! A manifest alone is no restore point when its data lies in a snapshot at the store. A point counts as whole as long
//! as one of its snapshots is there. Where the store cannot be asked, nothing is claimed and nothing is removed.

pub mod bucket;

use std::collections::BTreeSet;

use tokio_util::sync::CancellationToken;

use crate::artefact::Role;
use crate::catalogue::{Catalogue, Point};
use crate::config::Keep;
use crate::engine::Engine;
use crate::error::Result;
use crate::layout::parse_id;
use crate::manifest::{External, State};
use crate::prune::{Policy, Pruned};
use crate::retention::{self, Action, Decision, PointFacts};
use crate::source::{Context, HeldState, Repository, Source};

/// What the store of a service keeps, as it says now.
pub async fn ask(engine: &Engine, service: &str) -> Result<Vec<Repository>> {
    let source = engine.source(service)?;
    with_context(engine, service, async |cx| source.held(cx).await).await
}

async fn with_context<T>(engine: &Engine, service: &str, work: impl AsyncFnOnce(&Context) -> Result<T>) -> Result<T> {
    let workdir = engine.service_dir(service).join(format!("held-{}", std::process::id()));
    let cx = engine.context(service, engine.cancel.child_token(), workdir.clone())?;
    let outcome = work(&cx).await;
    let _ = std::fs::remove_dir_all(workdir);
    outcome
}

/// Whether what can be restored of a point lies in snapshots at its store, and nowhere else.
pub fn rests_on_snapshots(point: &Point) -> bool {
    let m = &point.manifest;
    !m.external.is_empty() && !m.artefacts.iter().any(|a| a.role == Role::Data)
}

/// Asks the store of a service once, if any point needs it, and marks the points whose snapshots are gone.
pub async fn attest(engine: &Engine, service: &str, host: &str, catalogues: &mut [Result<Catalogue>]) {
    if !catalogues.iter().flatten().flat_map(|c| &c.points).any(rests_on_snapshots) {
        return;
    }
    let answer = match engine.host() {
        Ok(own) if own == host => ask(engine, service).await.map_err(|e| e.chain()),
        _ => Err(format!("only host {host} can ask its store")),
    };
    for point in catalogues.iter_mut().flatten().flat_map(|c| &mut c.points) {
        mark(point, &answer);
    }
}

/// Marks one point by what its store said.
pub fn mark(point: &mut Point, answer: &Result<Vec<Repository>, String>) {
    if !rests_on_snapshots(point) {
        return;
    }
    let (mut gone, mut unseen) = (Vec::new(), Vec::new());
    for external in &point.manifest.external {
        match seen(external, &point.manifest.state, answer) {
            Ok(None) => return,
            Ok(Some(what)) => gone.push(what),
            Err(why) => unseen.push(why),
        }
    }
    // As long as one may be there, nobody can say that the point is gone.
    if unseen.is_empty() { point.gone.extend(gone) } else { point.unseen = unseen }
}

/// `None` = it is there and can be used; else what is wrong with it; an error when that could not be found out.
fn seen(
    external: &External,
    state: &State,
    answer: &Result<Vec<Repository>, String>,
) -> Result<Option<String>, String> {
    let (name, repository) = (&external.name, &external.repository);
    let all = answer.as_ref().map_err(Clone::clone)?;
    let Some(asked) = all.iter().find(|r| &r.name == repository) else {
        return Err(format!("repository {repository:?} is not in the configuration"));
    };
    let held = asked.held.as_ref().map_err(|e| e.chain())?;
    let same = |h: &&crate::source::Held| {
        let other = h.external.uuid.as_ref().zip(external.uuid.as_ref()).is_some_and(|(a, b)| a != b);
        &h.external.name == name && !other
    };
    Ok(match held.iter().find(same).map(|h| h.state) {
        Some(HeldState::Whole) => None,
        // A suspect point says itself that something is missing in it.
        Some(HeldState::Partial) if *state == State::Suspect => None,
        Some(HeldState::Partial) => Some(format!("snapshot {name} in repository {repository} (not whole)")),
        Some(HeldState::Running) => Some(format!("snapshot {name} in repository {repository} (not done)")),
        Some(HeldState::Failed) => Some(format!("snapshot {name} in repository {repository} (failed)")),
        None => Some(format!("snapshot {name} in repository {repository} (gone)")),
    })
}

/// What retention says of one repository. Snapshots of points that are not complete, or have no manifest, count for
/// nothing; running ones are left alone.
pub fn decide(
    repository: &Repository,
    keep: &Keep,
    catalogues: &[Result<Catalogue>],
    policy: &Policy<'_>,
) -> Vec<Decision> {
    let complete: BTreeSet<&str> = catalogues
        .iter()
        .flatten()
        .flat_map(|c| &c.points)
        .filter(|p| p.manifest.state == State::Complete)
        .map(|p| p.manifest.id.as_str())
        .collect();
    let Ok(held) = &repository.held else { return Vec::new() };
    let facts: Vec<PointFacts> = held
        .iter()
        .filter_map(|h| {
            let parts = parse_id(&h.point)?;
            let good = h.state == HeldState::Whole && complete.contains(h.point.as_str());
            Some(PointFacts {
                id: h.external.name.clone(),
                cadence: parts.cadence,
                started: parts.started,
                state: if good { State::Complete } else { State::Suspect },
                agent_id: if h.ours { policy.agent_id.to_owned() } else { "another".to_owned() },
                foreign: h.state == HeldState::Running,
                base: None,
                proven: policy.proven.contains(&h.point),
            })
        })
        .collect();
    retention::decide(&facts, keep, &policy.calendar, policy.now, policy.agent_id)
}

/// Decides on one repository, and removes what is not kept there.
pub async fn prune(
    engine: &Engine,
    service: &str,
    repository: &Repository,
    keep: &Keep,
    catalogues: &[Result<Catalogue>],
    policy: &Policy<'_>,
) -> Pruned {
    let mut pruned = Pruned { decisions: decide(repository, keep, catalogues, policy), ..Pruned::default() };
    if let Err(err) = &repository.held {
        pruned.problems.push(format!("nothing was removed: {}", err.chain()));
    }
    if catalogues.iter().any(|c| c.as_ref().map_or(true, |c| c.partial_view)) {
        pruned.problems.push("nothing was removed: not all restore points could be seen".into());
        return pruned;
    }
    let Ok(held) = &repository.held else { return pruned };
    let doomed: Vec<&External> = held
        .iter()
        .map(|h| &h.external)
        .filter(|e| pruned.decisions.iter().any(|d| d.id == e.name && d.action == Action::Remove))
        .collect();
    if doomed.is_empty() {
        return pruned;
    }
    let forgotten = with_context(engine, service, async |cx| {
        let source = engine.source(service)?;
        Ok(forget_all(source.as_ref(), cx, &doomed).await)
    });
    match forgotten.await {
        Ok((removed, problems)) => {
            pruned.removed = removed;
            pruned.problems.extend(problems);
        }
        Err(err) => pruned.problems.push(format!("nothing was removed: {}", err.chain())),
    }
    pruned
}

async fn forget_all(source: &dyn Source, cx: &Context, doomed: &[&External]) -> (Vec<String>, Vec<String>) {
    let (mut removed, mut problems) = (Vec::new(), Vec::new());
    for external in doomed {
        if cx.cancel.is_cancelled() {
            break;
        }
        match source.forget(cx, external).await {
            Ok(()) => removed.push(external.name.clone()),
            Err(err) => problems.push(format!("could not remove {}: {}", external.name, err.chain())),
        }
    }
    (removed, problems)
}

/// Clean-up of what points that came to nothing left at the store, outside of a backup.
pub(crate) async fn discard(source: &dyn Source, cx: Context, ids: Vec<String>) -> Result<()> {
    let cx = Context { cancel: CancellationToken::new(), unfinished: ids, ..cx };
    source.cleanup(&cx).await
}
