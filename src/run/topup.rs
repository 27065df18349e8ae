//! Copies a point to a destination that missed it, if the policy there would still keep it, and puts artefacts back
//! that were removed or cut there. The stored bytes are copied as they are, and their digest is checked on the way.

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sha2::{Digest, Sha256};

use super::{Run, commit, sweep, takes};
use crate::catalogue::{Catalogue, OWNER_NAME, Place, Point};
use crate::destination::{self, Location, PutMode};
use crate::engine::facts;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Artefact, Manifest, State};
use crate::prune::Policy;
use crate::retention::{self, Action};

/// Tops `places[at]` up from the other places; what was done, and what could not be.
pub(super) async fn top_up(
    places: &[Place],
    catalogues: &[Result<Catalogue>],
    at: usize,
    policy: &Policy<'_>,
    run: &Run<'_>,
) -> Vec<String> {
    let mut notes = Vec::new();
    let Ok(here) = &catalogues[at] else { return notes };
    if here.partial_view {
        return notes;
    }
    for (from, point) in candidates(catalogues, at, policy.agent_id) {
        if run.engine.cancel.is_cancelled() || !would_keep(here, &point.manifest, &places[at], policy) {
            continue;
        }
        let id = &point.manifest.id;
        match copy(&places[from], point, &places[at], run).await {
            Ok(()) => notes.push(format!("copied {id} there from {}, it was missing", places[from].name())),
            Err(err) => {
                sweep::half_copied(&places[at], &point.manifest).await;
                notes.push(format!("could not copy {id} there from {}: {}", places[from].name(), err.chain()));
                // Only damage is a matter of one point: what else fails would fail, or hang, with the next one too.
                if err.kind != ErrorKind::Corrupt {
                    break;
                }
            }
        }
    }
    notes
}

/// Puts back what is missing of points at `places[at]`, from places that have it; what was done, and what could not be.
/// Only where keys are not used again: elsewhere the manifest names a version, and a new copy would be another one.
pub(super) async fn mend(places: &[Place], catalogues: &[Result<Catalogue>], at: usize, run: &Run<'_>) -> Vec<String> {
    let mut notes = Vec::new();
    let (Ok(here), false) = (&catalogues[at], places[at].layout.is_versioned()) else { return notes };
    let ours = |p: &&Point| p.manifest.state == State::Complete && p.manifest.agent.id == run.agent_id;
    for point in here.points.iter().filter(ours) {
        for lack in &point.missing {
            if run.engine.cancel.is_cancelled() {
                return notes;
            }
            let Some((from, artefact)) = whole_elsewhere(catalogues, at, point, &lack.name) else { continue };
            let (to, id) = (&places[at], &point.manifest.id);
            let key = point.manifest.artefacts.iter().find(|a| a.name == lack.name).map(|a| &a.location.key);
            let Some(key) = key else { continue };
            // Of an object that is gone, nothing may be replaced by mistake.
            let mode = if lack.bytes.is_none() { PutMode::WriteOnce } else { PutMode::Replace };
            notes.push(match copy_artefact(&places[from], artefact, (to, key, mode), run).await {
                Ok(_) => format!("mended {id}: {lack}, copied there from {}", places[from].name()),
                Err(err) => {
                    format!("could not mend {id}: {lack}; copying from {}: {}", places[from].name(), err.chain())
                }
            });
        }
    }
    notes
}

/// The same stored bytes at another place.
fn whole_elsewhere<'a>(
    catalogues: &'a [Result<Catalogue>],
    at: usize,
    point: &Point,
    name: &str,
) -> Option<(usize, &'a Artefact)> {
    let wanted = point.manifest.artefacts.iter().find(|a| a.name == name)?;
    let others = catalogues.iter().enumerate().filter(|(from, _)| *from != at);
    let found = others.flat_map(|(from, c)| c.iter().flat_map(|c| &c.points).map(move |p| (from, p)));
    found
        .filter(|(_, p)| p.manifest.id == point.manifest.id && p.missing.iter().all(|m| m.name != name))
        .find_map(|(from, p)| p.manifest.artefacts.iter().find(|a| a.sha256 == wanted.sha256).map(|a| (from, a)))
}

/// Whole, complete points of ours that lie elsewhere and not here, oldest first.
fn candidates<'a>(catalogues: &'a [Result<Catalogue>], at: usize, agent_id: &str) -> Vec<(usize, &'a Point)> {
    let Ok(here) = &catalogues[at] else { return Vec::new() };
    let mut found: Vec<(usize, &Point)> = Vec::new();
    for (from, catalogue) in catalogues.iter().enumerate().filter(|(from, _)| *from != at) {
        for point in catalogue.iter().flat_map(|c| &c.points) {
            let m = &point.manifest;
            let wanted = m.state == State::Complete
                && point.is_whole()
                && point.archived.is_empty()
                && m.agent.id == agent_id
                && !m.artefacts.is_empty()
                && !here.points.iter().any(|p| p.manifest.id == m.id)
                && !found.iter().any(|(_, p)| p.manifest.id == m.id);
            if wanted {
                found.push((from, point));
            }
        }
    }
    found.sort_by_key(|(_, p)| p.manifest.started);
    found
}

fn would_keep(here: &Catalogue, manifest: &Manifest, place: &Place, policy: &Policy<'_>) -> bool {
    if !takes(place, Some(here), manifest.cadence) {
        return false;
    }
    let mut points = facts(here);
    points.extend(facts(&Catalogue { points: vec![lone(manifest)], ..Catalogue::default() }));
    retention::decide(&points, &place.keep, &policy.calendar, policy.now, policy.agent_id)
        .into_iter()
        .any(|d| d.id == manifest.id && d.action == Action::Keep)
}

fn lone(manifest: &Manifest) -> Point {
    Point {
        manifest: std::sync::Arc::new(manifest.clone()),
        manifest_at: Location::newest(""),
        folder: String::new(),
        missing: Vec::new(),
        gone: Vec::new(),
        unseen: Vec::new(),
        archived: Vec::new(),
    }
}

async fn copy(from: &Place, point: &Point, to: &Place, run: &Run<'_>) -> Result<()> {
    let mut manifest = Manifest::clone(&point.manifest);
    let folder = to.layout.folder(&manifest.host, &manifest.service, manifest.cadence, &manifest.id);
    let staged = to.destination.staging(&folder);
    if staged != folder {
        let text = format!("{}\n{}\n", run.agent_id, run.host);
        destination::put(to.destination.as_ref(), &format!("{staged}/{OWNER_NAME}"), PutMode::Replace, text.into())
            .await?;
    }
    for artefact in &mut manifest.artefacts {
        let key = format!("{staged}/{}", artefact.name);
        artefact.location = copy_artefact(from, artefact, (to, &key, to.layout.put_mode()), run).await?;
    }
    commit::write_record(to, manifest, &folder).await
}

async fn copy_artefact(
    from: &Place,
    artefact: &Artefact,
    (to, key, mode): (&Place, &str, PutMode),
    run: &Run<'_>,
) -> Result<Location> {
    run.engine.monitor.start(&artefact.name, Some(artefact.stored_bytes));
    let copied = copy_bytes(from, artefact, (to, key, mode), run).await;
    run.engine.monitor.end(&artefact.name);
    copied
}

async fn copy_bytes(
    from: &Place,
    artefact: &Artefact,
    (to, key, mode): (&Place, &str, PutMode),
    run: &Run<'_>,
) -> Result<Location> {
    let mut stream = from.destination.get(&artefact.location).await?;
    let mut upload = to.destination.begin(key, mode, Some(artefact.stored_bytes)).await?;
    let work = async {
        let mut digest = Sha256::new();
        let mut bytes = 0u64;
        while let Some(chunk) = next(&mut stream, run).await? {
            bytes += chunk.len() as u64;
            run.engine.monitor.advance(&artefact.name, chunk.len() as u64);
            digest.update(&chunk);
            upload.write(chunk).await?;
        }
        if bytes != artefact.stored_bytes || hex::encode(digest.finalize()) != artefact.sha256 {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("artefact {:?} is damaged at {}", artefact.name, from.name()),
            ));
        }
        Ok(())
    };
    match work.await {
        Ok(()) => upload.complete().await,
        Err(err) => {
            let _ = upload.abort().await;
            Err(err)
        }
    }
}

async fn next(stream: &mut destination::ByteStream, run: &Run<'_>) -> Result<Option<Bytes>> {
    tokio::select! {
        chunk = tokio::time::timeout(run.service.stall_timeout.0, stream.try_next()) => chunk
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the copy made no progress"))),
        () = run.engine.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the copy was stopped")),
    }
}
