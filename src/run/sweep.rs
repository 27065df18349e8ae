//! Removes what failed or killed runs left behind. Only what is provably ours goes: our folder names, this host, this
//! service, no manifest, under the lock, and older than a grace period. The unfinished folder in a directory
//! names its owner; one that names this agent and host needs no grace, because the lock says that its run is over.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::catalogue::{Catalogue, MANIFEST_LIMIT, OWNER_NAME, Orphan, PARTIAL, Place};
use crate::destination::{Location, get_small};
use crate::error::{ErrorKind, Result};
use crate::manifest::{self, Manifest};
use crate::pipeline::Leg;

/// How long a clean-up may take; the next run goes on with it.
const CLEAN_UP: std::time::Duration = std::time::Duration::from_secs(30);

/// After a failure in this run: removes what the failed legs hold of the point, as far as they let us.
pub(super) async fn abandoned(places: &[&Place], legs: &[Arc<Leg>], id: &str) {
    for (leg, place) in legs.iter().zip(places) {
        let staged = leg.folder();
        // Fixed keys are shared with other points: there, the sweep of a later run goes by version.
        if place.layout.is_versioned() || !staged.contains(id) || leg.is_recorded() {
            continue;
        }
        let _ = tokio::time::timeout(CLEAN_UP, remove_all(place, staged)).await;
    }
}

/// After a copy that failed: removes what of it lies at `place`, as far as that lets us.
pub(super) async fn half_copied(place: &Place, point: &Manifest) {
    if place.layout.is_versioned() {
        return;
    }
    let folder = place.layout.folder(&point.host, &point.service, point.cadence, &point.id);
    let staged = place.destination.staging(&folder);
    let _ = tokio::time::timeout(CLEAN_UP, remove_all(place, &staged)).await;
}

async fn remove_all(place: &Place, folder: &str) -> Result<()> {
    let objects = place.destination.list(&format!("{folder}/")).await?;
    if objects.iter().any(|o| o.location.key.ends_with(&format!("/{}", manifest::FILE_NAME)))
        && !folder.contains(PARTIAL)
    {
        return Ok(());
    }
    for object in objects {
        place.destination.delete(&object.location).await?;
    }
    Ok(())
}

/// Removes old orphans and unfinished uploads; what was done, and what could not be.
pub(super) async fn sweep(
    place: &Place,
    catalogue: &Catalogue,
    agent_id: &str,
    started: DateTime<Utc>,
    grace: TimeDelta,
    roots: &[String],
) -> Vec<String> {
    let mut notes = Vec::new();
    for orphan in &catalogue.orphans {
        let old = orphan.begun.is_some_and(|begun| begun + grace < started);
        let unfinished = place.stages() && orphan.name.rsplit('/').next().is_some_and(|n| n.starts_with(PARTIAL));
        let ours = if unfinished { is_own_unfinished(place, orphan, agent_id).await } else { old };
        if !ours {
            continue;
        }
        let mut failed = None;
        if unfinished {
            // Half-written files are no objects, and what says whose they are goes below.
            failed =
                place.destination.sweep_uploads(&format!("{}/", orphan.name), DateTime::<Utc>::MAX_UTC).await.err();
        }
        let mut objects = orphan.objects.clone();
        // What says whose it is goes last, so that an interrupted sweep can be taken up again.
        objects.sort_by_key(|at| at.key.ends_with(OWNER_NAME));
        for at in &objects {
            if failed.is_some() {
                break;
            }
            failed = place.destination.delete(at).await.err();
        }
        notes.push(match failed {
            None => format!("swept {}, left by an interrupted run", orphan.name),
            Some(err) => format!("could not sweep {}: {}", orphan.name, err.chain()),
        });
    }
    for root in roots {
        match place.destination.sweep_uploads(root, started - grace).await {
            Ok(0) => {}
            Ok(n) => notes.push(format!("aborted {n} unfinished uploads below {root:?}")),
            Err(err) => notes.push(format!("could not look for unfinished uploads: {}", err.chain())),
        }
    }
    notes
}

/// By the owner's mark; it is removed just before the point is published, and then the manifest says whose it is.
async fn is_own_unfinished(place: &Place, orphan: &Orphan, agent_id: &str) -> bool {
    let read = async |name: &str, limit: usize| {
        let at = Location::newest(format!("{}/{name}", orphan.name));
        get_small(place.destination.as_ref(), &at, limit).await.map(|b| String::from_utf8_lossy(&b).into_owned())
    };
    match read(OWNER_NAME, 4096).await {
        Ok(owner) => owner.lines().next() == Some(agent_id),
        Err(err) if err.kind == ErrorKind::NotFound => {
            let manifest = read(manifest::FILE_NAME, MANIFEST_LIMIT).await.and_then(|text| Manifest::from_text(&text));
            manifest.is_ok_and(|m| m.agent.id == agent_id)
        }
        Err(_) => false,
    }
}
