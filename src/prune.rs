//! Carries out what retention decided at one place: the manifest goes first, then `SHA256SUMS`, then the artefacts.
//! A removal that is denied is named and fails nothing.

use chrono::{DateTime, Utc};

use crate::calendar::Calendar;
use crate::catalogue::{Catalogue, Place, Point};
use crate::destination::Location;
use crate::engine::facts;
use crate::error::{Error, ErrorKind, Result};
use crate::retention::{self, Action, Decision};

const NO_VERSIONS: &str = "these keys may not list versions (s3:ListBucketVersions)";

const NOT_ASKED: &str = "the store could not be asked for its snapshots";

/// What the decision depends on besides the points.
#[derive(Debug, Clone, Copy)]
pub struct Policy<'a> {
    /// Periods.
    pub calendar: Calendar,
    /// Now.
    pub now: DateTime<Utc>,
    /// Whose points may be removed.
    pub agent_id: &'a str,
    /// Points that drills have proven, of which the newest stays: see [`crate::proof::Proofs::to_protect`].
    pub proven: &'a [String],
}

/// What was decided and done.
#[derive(Debug, Clone, Default)]
pub struct Pruned {
    /// Every point with its decision.
    pub decisions: Vec<Decision>,
    /// Ids that are gone.
    pub removed: Vec<String>,
    /// What could not be done, or is only half done.
    pub problems: Vec<String>,
}

impl Pruned {
    /// Lines for a person.
    pub fn into_notes(self) -> Vec<String> {
        let reason = |id: &str| self.decisions.iter().find(|d| d.id == id).map_or("", |d| d.reason.as_str());
        let mut notes: Vec<String> = self.removed.iter().map(|id| format!("removed {id}: {}", reason(id))).collect();
        notes.extend(self.problems);
        notes
    }
}

/// Decides only.
pub fn decide(place: &Place, catalogue: &Catalogue, policy: &Policy<'_>) -> Vec<Decision> {
    let mut facts = facts(catalogue);
    facts.iter_mut().for_each(|f| f.proven = policy.proven.contains(&f.id));
    retention::decide(&facts, &place.keep, &policy.calendar, policy.now, policy.agent_id)
}

/// Decides and removes.
pub async fn apply(place: &Place, catalogue: &Catalogue, policy: &Policy<'_>) -> Pruned {
    let mut pruned = Pruned { decisions: decide(place, catalogue, policy), ..Pruned::default() };
    let doomed: Vec<String> =
        pruned.decisions.iter().filter(|d| d.action == Action::Remove).map(|d| d.id.clone()).collect();
    if doomed.is_empty() {
        return pruned;
    }
    if let Some(why) = catalogue.points.iter().find_map(|p| p.unseen.first()) {
        pruned.problems.push(format!("nothing was removed: {NOT_ASKED}: {why}"));
        return pruned;
    }
    if catalogue.partial_view {
        pruned.problems.push(format!("nothing was removed: {NO_VERSIONS}"));
        return pruned;
    }
    let keeps_versions = !place.layout.is_versioned() && place.destination.keeps_versions().await.unwrap_or(false);
    for id in doomed {
        let Some(point) = catalogue.points.iter().find(|p| p.manifest.id == id) else { continue };
        match remove(place, point, keeps_versions).await {
            Ok(()) => pruned.removed.push(id),
            Err(err) => {
                let hint = if err.kind == ErrorKind::Denied { " (these keys may not delete)" } else { "" };
                pruned.problems.push(format!("could not remove {id}: {}{hint}", err.chain()));
                if err.kind == ErrorKind::Denied {
                    break;
                }
            }
        }
    }
    pruned
}

/// Why a person may not remove this point by its name, if so: what no policy would remove either.
fn objection(catalogue: &Catalogue, id: &str, policy: &Policy<'_>) -> Option<String> {
    let facts = facts(catalogue);
    let sound = retention::sound(&facts);
    let at = facts.iter().position(|f| f.id == id)?;
    if facts[at].agent_id != policy.agent_id {
        return Some("it was taken by another agent".to_owned());
    }
    if let Some(built) = facts.iter().find(|f| f.base.as_deref() == Some(id)) {
        return Some(format!("{} is built on it", built.id));
    }
    let counts = |i: usize| sound[i] && !retention::is_future(facts[i].started, policy.now);
    let others = (0..facts.len()).any(|i| i != at && counts(i));
    if counts(at) && !others {
        return Some("it is the last complete restore point there".to_owned());
    }
    if let Some(why) = catalogue.points.iter().find_map(|p| p.unseen.first()) {
        return Some(format!("{NOT_ASKED}: {why}"));
    }
    catalogue.partial_view.then(|| NO_VERSIONS.to_owned())
}

/// The point of this id, if a person may remove it.
///
/// # Errors
/// `NotFound` if it is not there; `Refused` when no policy would remove it either.
pub fn removable<'a>(place: &Place, catalogue: &'a Catalogue, id: &str, policy: &Policy<'_>) -> Result<&'a Point> {
    let point = catalogue.points.iter().find(|p| p.manifest.id == id).ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no restore point {id:?} at {}", place.name()))
    })?;
    match objection(catalogue, id, policy) {
        None => Ok(point),
        Some(reason) => Err(Error::new(ErrorKind::Refused, format!("{id} stays at {}: {reason}", place.name()))),
    }
}

/// Removes a point that is [`removable`].
///
/// # Errors
/// What the destination says.
pub async fn remove_named(place: &Place, point: &Point) -> Result<()> {
    let id = &point.manifest.id;
    let keeps_versions = !place.layout.is_versioned() && place.destination.keeps_versions().await.unwrap_or(false);
    let failed = |e: Error| e.within(format!("could not remove {id} at {}", place.name()));
    remove(place, point, keeps_versions).await.map_err(failed)
}

/// Removes one point, in the order that never leaves a manifest without its artefacts.
async fn remove(place: &Place, point: &Point, keeps_versions: bool) -> Result<()> {
    let destination = place.destination.as_ref();
    if place.layout.is_versioned() {
        destination.delete(&point.manifest_at).await?;
        for at in point.manifest.sums.iter().chain(point.manifest.artefacts.iter().map(|a| &a.location)) {
            destination.delete(at).await?;
        }
        return Ok(());
    }
    let prefix = format!("{}/", point.folder);
    let objects =
        if keeps_versions { destination.list_versions(&prefix).await? } else { destination.list(&prefix).await? };
    let is_manifest = |at: &Location| at.key == point.manifest_at.key;
    let mut order: Vec<Location> = objects.into_iter().map(|o| o.location).collect();
    order.sort_by_key(|at| (!is_manifest(at), !at.key.ends_with(crate::manifest::SUMS_NAME)));
    for at in order {
        destination.delete(&at).await?;
    }
    Ok(())
}
