//! Which point is drilled, and from where. A point whose manifest cannot be read is a candidate too: it is damaged.

use chrono::{DateTime, Utc};

use super::{Pick, Wanted, records};
use crate::catalogue::{Catalogue, Place};
use crate::engine::{Engine, LOCAL};
use crate::error::Result;
use crate::layout::{Layout, parse_id};
use crate::manifest::{FILE_NAME, State};
use crate::proof;
use crate::restore::{self, Chosen, Selection};
use crate::retention::is_future;

/// A point that can be drilled.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) id: String,
    pub(super) started: DateTime<Utc>,
    pub(super) place: Place,
    /// The point, or key and fault of its manifest.
    pub(super) chosen: Result<Chosen, (String, String)>,
}

impl Candidate {
    fn is_readable(&self) -> bool {
        self.chosen.as_ref().map_or(true, |chosen| chosen.point.archived.is_empty())
    }
}

/// Chooses among all points of the places that are asked for.
pub(super) async fn choose(engine: &Engine, service: &str, host: &str, wanted: &Wanted) -> Result<Candidate> {
    let mut places = engine.places_from(service, wanted.from.as_deref())?;
    let remote = |p: &Place| p.name() != LOCAL;
    if wanted.from.is_none() {
        if places.iter().any(remote) && !matches!(wanted.pick, Pick::Id(_)) {
            places.retain(remote);
        }
        places.sort_by_key(|p| !remote(p));
    }
    let catalogues = engine.catalogues(&places, host, service).await;
    let mut failures = Vec::new();
    let mut all = Vec::new();
    for (place, catalogue) in places.iter().zip(catalogues) {
        match catalogue {
            Ok(catalogue) => all.extend(candidates(engine, place, host, &catalogue, service, wanted)),
            Err(err) => failures.push(err),
        }
    }
    let found = match &wanted.pick {
        Pick::Id(id) => all.iter().find(|c| c.id == *id),
        Pick::Newest => {
            let newest = all.iter().map(|c| c.started).max();
            all.iter().find(|c| Some(c.started) == newest)
        }
        Pick::Random(number) => {
            // What must be thawed first cannot be visited; if nothing else is there, the drill says so.
            if all.iter().any(Candidate::is_readable) {
                all.retain(Candidate::is_readable);
            }
            let mut points: Vec<(String, DateTime<Utc>)> = all.iter().map(|c| (c.id.clone(), c.started)).collect();
            points.sort();
            points.dedup();
            let proofs = records::all(engine, service, host, &places).await;
            let id = proof::choose(&points, &proofs, engine.clock.now(), *number).map(str::to_owned);
            all.iter().find(|c| Some(&c.id) == id.as_ref())
        }
    };
    if let Some(found) = found {
        failures.iter().for_each(|e| engine.monitor.warn(&e.chain()));
        return Ok(found.clone());
    }
    match failures.into_iter().next() {
        Some(err) => Err(err),
        None => {
            let id = if let Pick::Id(id) = &wanted.pick { Some(id.clone()) } else { None };
            let selection = Selection { id, at: None, from: wanted.from.clone(), host: wanted.host.clone() };
            Err(restore::nothing(engine, service, &selection, &[]).await)
        }
    }
}

fn candidates(
    engine: &Engine,
    place: &Place,
    host: &str,
    catalogue: &Catalogue,
    service: &str,
    wanted: &Wanted,
) -> Vec<Candidate> {
    let now = engine.clock.now();
    let by_id = matches!(wanted.pick, Pick::Id(_));
    let mut found = Vec::new();
    for point in &catalogue.points {
        let m = &point.manifest;
        let ours = m.host == host || (place.layout == Layout::Local && wanted.host.is_none());
        if ours && (by_id || (m.state == State::Complete && !is_future(m.started, now))) {
            found.push(Candidate {
                id: m.id.clone(),
                started: m.started,
                place: place.clone(),
                chosen: Ok(Chosen { place: place.clone(), point: point.clone() }),
            });
        }
    }
    for stranger in catalogue.strangers.iter().filter(|s| s.reason.contains("the manifest is damaged")) {
        let Some(parts) = parse_id(&stranger.name).filter(|p| p.service == service) else { continue };
        let folder = place.layout.folder(host, service, parts.cadence, &stranger.name);
        found.push(Candidate {
            id: stranger.name.clone(),
            started: parts.started,
            place: place.clone(),
            chosen: Err((format!("{folder}/{FILE_NAME}"), stranger.reason.clone())),
        });
    }
    found
}
