//! Removes what failed or killed runs left behind. Only what is provably ours goes: our folder names, this host, this
//! service, no manifest, under the lock, and older than a grace period. The unfinished folder in a local directory
//! names its owner; one that names this agent and host needs no grace, because the lock says that its run is over.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::catalogue::{Catalogue, OWNER_NAME, Orphan, PARTIAL, Place};
use crate::destination::{Location, get_small};
use crate::error::Result;
use crate::layout::Layout;
use crate::manifest;
use crate::pipeline::Leg;

/// After a failure in this run: removes what the failed legs hold of the point, as far as they let us.
pub(super) async fn abandoned(places: &[Place], legs: &[Arc<Leg>], id: &str) {
    for (leg, place) in legs.iter().zip(places) {
        let staged = leg.folder();
        // Fixed keys are shared with other points: there, the sweep of a later run goes by version.
        if place.layout.is_versioned() || !staged.contains(id) || leg.is_recorded() {
            continue;
        }
        let _ = tokio::time::timeout(std::time::Duration::from_secs(30), remove_all(place, staged)).await;
    }
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
        let unfinished = place.layout == Layout::Local && orphan.name.starts_with(PARTIAL);
        let ours = if unfinished { is_own_unfinished(place, orphan, agent_id).await } else { old };
        if !ours {
            continue;
        }
        let mut failed = None;
        let mut objects = orphan.objects.clone();
        // What says whose it is goes last, so that an interrupted sweep can be taken up again.
        objects.sort_by_key(|at| at.key.ends_with(OWNER_NAME));
        for at in &objects {
            if let Err(err) = place.destination.delete(at).await {
                failed = Some(err);
                break;
            }
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

async fn is_own_unfinished(place: &Place, orphan: &Orphan, agent_id: &str) -> bool {
    let at = Location::newest(format!("{}/{OWNER_NAME}", orphan.name));
    let owner = get_small(place.destination.as_ref(), &at, 4096).await.unwrap_or_default();
    String::from_utf8_lossy(&owner).lines().next() == Some(agent_id)
}
