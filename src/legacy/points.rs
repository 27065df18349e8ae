//! Backups that commcare-cloud made: found by their names beside the points of a service, restored when they are asked
//! for by name, and removed only by `backstay prune --legacy-older-than`.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::catalogue::{Catalogue, Place};
use crate::destination::{Location, ObjectMeta};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::legacy::{self, LegacyName};
use crate::manifest::State;
use crate::pipeline::decode;
use crate::retention::is_future;
use crate::source::LegacyReader;

/// An archive of nothing is no longer than this: what the old scripts left when their source was not there, or their
/// dump failed.
const NOTHING_BYTES: u64 = 64;

/// One old backup at one place.
#[derive(Debug, Clone)]
pub struct Legacy {
    /// File name or key; `KEY@VERSION` for a version that is not the newest.
    pub id: String,
    /// What its name says.
    pub name: LegacyName,
    /// Where it lies.
    pub at: Location,
    /// Stored length.
    pub bytes: u64,
    /// When it was made: by its name, else by the store; `None` = nobody knows.
    pub taken: Option<DateTime<Utc>>,
}

impl Legacy {
    fn new(object: ObjectMeta, kind: &str) -> Option<Self> {
        let key = &object.location.key;
        let name = legacy::parse(key).filter(|name| name.kind == kind && !object.delete_marker)?;
        let id = match &object.location.version {
            Some(version) if !object.latest => format!("{key}@{version}"),
            _ => key.clone(),
        };
        let taken = name.taken.or(object.modified);
        Some(Self { id, name, bytes: object.bytes, taken, at: object.location })
    }

    /// Whether there can be nothing in it.
    pub fn is_empty(&self) -> bool {
        self.bytes <= NOTHING_BYTES
    }

    /// Whether `id` names it. A version may be named although it is the newest, and the extensions of a dated name may
    /// be left out, as the old scripts wanted it.
    pub fn is_called(&self, id: &str) -> bool {
        let version = self.at.version.as_deref().unwrap_or_default();
        let dated = self.name.taken.is_some()
            && self.id.strip_prefix(id).is_some_and(|rest| [".gz", ".tar.gz"].contains(&rest));
        self.id == id || dated || id.split_once('@') == Some((self.at.key.as_str(), version))
    }
}

/// Whether this names an old backup and no restore point.
pub fn is_id(id: &str) -> bool {
    let dated = || legacy::parse(&format!("{id}.tar.gz")).is_some_and(|name| name.taken.is_some());
    legacy::parse(id.split('@').next().unwrap_or_default()).is_some() || dated()
}

/// The old backups of a service at one place, of any host, oldest first. Nothing is found where the keys may not look.
///
/// # Errors
/// What the destination says.
pub async fn find(engine: &Engine, service: &str, place: &Place) -> Result<Vec<Legacy>> {
    let kind = engine.source(service)?.kind();
    let Some(prefix) = legacy::prefix(kind) else { return Ok(Vec::new()) };
    let listed = match place.destination.list_versions(&prefix).await {
        Err(err) if err.kind == ErrorKind::Denied => place.destination.list(&prefix).await,
        listed => listed,
    };
    let objects = match listed {
        Err(err) if err.kind == ErrorKind::Denied => Vec::new(),
        listed => listed.map_err(|e| e.within(format!("could not look for older backups at {}", place.name())))?,
    };
    let mut found: Vec<Legacy> = objects.into_iter().filter_map(|object| Legacy::new(object, kind)).collect();
    found.sort_by(|a, b| (a.taken, &a.id).cmp(&(b.taken, &b.id)));
    Ok(found)
}

/// The old backup of this id, at the first place that has it.
///
/// # Errors
/// `NotFound` if no place has it; what a destination said, if that may be the reason.
pub async fn choose(engine: &Engine, service: &str, id: &str, from: Option<&str>) -> Result<(Place, Legacy)> {
    let mut failure = None;
    for place in engine.places_from(service, from)? {
        match find(engine, service, &place).await {
            Ok(found) => {
                if let Some(legacy) = found.into_iter().find(|l| l.is_called(id)) {
                    return Ok((place, legacy));
                }
            }
            Err(err) => failure = Some(err),
        }
    }
    Err(failure.unwrap_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("service {service:?} has no older backup {id:?}"))
            .hint(format!("`backstay list {service}` shows those there are."))
    }))
}

/// Opens it.
///
/// # Errors
/// What the destination says.
pub async fn open(place: &Place, legacy: &Legacy) -> Result<LegacyReader> {
    let stored = place.destination.get(&legacy.at).await?;
    Ok(LegacyReader {
        name: legacy.id.clone(),
        is_dump: legacy.name.is_dump,
        stored_bytes: legacy.bytes,
        plain: decode::undescribed(stored, legacy.id.clone(), legacy.bytes),
    })
}

/// Those that are older than `age`, if the place has a complete restore point.
///
/// # Errors
/// `Refused` while it has none: then the old backups are all there is.
pub fn outlived(found: Vec<Legacy>, catalogue: &Catalogue, age: Duration, now: DateTime<Utc>) -> Result<Vec<Legacy>> {
    let old = |l: &Legacy| l.taken.and_then(|t| (now - t).to_std().ok()).is_some_and(|passed| passed > age);
    let old: Vec<Legacy> = found.into_iter().filter(old).collect();
    let sound = |p: &crate::catalogue::Point| {
        let m = &p.manifest;
        m.state == State::Complete && p.is_whole() && p.unseen.is_empty() && !is_future(m.started, now)
    };
    if old.is_empty() || catalogue.points.iter().any(sound) {
        return Ok(old);
    }
    Err(Error::new(ErrorKind::Refused, "the older backups stay: there is no complete restore point beside them")
        .hint("make one with `backstay backup`, and prove it with `backstay drill`."))
}
