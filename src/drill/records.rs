//! Records of drills, in the agent's state and at destinations.

use std::path::{Path, PathBuf};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::future::join_all;
use futures_util::stream::StreamExt as _;

use crate::catalogue::Place;
use crate::destination::{self, Location, PutMode, get_small};
use crate::engine::{Engine, write_private};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::DRILLS;
use crate::proof::{Proofs, Record};
use crate::units::Span;

/// How long records are kept where nothing is configured.
const KEEP: Span = Span::from_hours(400 * 24);
/// A record longer than this is not one of ours.
const LIMIT_BYTES: usize = 1 << 20;
/// As many of the newest records of a destination are read; the older ones are for the trend, which is local.
const NEWEST: usize = 40;

/// Where this agent keeps the records of a service.
pub fn dir(engine: &Engine, service: &str) -> PathBuf {
    engine.service_dir(service).join(DRILLS)
}

/// Keeps a record here and at the place that was drilled, and removes old ones. What could not be done there is a
/// warning.
///
/// # Errors
/// When it cannot be kept here.
pub async fn keep(engine: &Engine, service: &str, place: &Place, record: &Record) -> Result<Vec<String>> {
    let dir = dir(engine, service);
    let failed = |e| Error::io(e, format!("could not keep the record of the drill in {}", dir.display()));
    std::fs::create_dir_all(&dir).map_err(failed)?;
    crate::privilege::adopt(&dir).map_err(failed)?;
    let path = dir.join(record.file_name());
    write_private(&path, &record.to_json()?).and_then(|()| crate::privilege::adopt(&path)).map_err(failed)?;
    let keep = engine.config.drill(engine.service(service)?).keep.unwrap_or(KEEP);
    let oldest = record.finished - TimeDelta::from_std(keep.0).unwrap_or(TimeDelta::MAX);
    remove_old_here(&dir, oldest);
    let mut warnings = Vec::new();
    let Some(prefix) = place.layout.drills(&record.host, service) else { return Ok(warnings) };
    let key = format!("{prefix}{}", record.file_name());
    let text = record.clone().without_names().to_json()?;
    match destination::put(place.destination.as_ref(), &key, PutMode::Replace, text.into()).await {
        Ok(_) => remove_old_there(place, &prefix, oldest).await,
        Err(err) => {
            let why = if err.kind == ErrorKind::Denied { "these keys may not write there".into() } else { err.chain() };
            warnings.push(format!("the record of the drill is only on this host, not at {}: {why}", place.name()));
        }
    }
    Ok(warnings)
}

/// The time in the name of a record.
fn time_of(name: &str) -> Option<DateTime<Utc>> {
    let (stamp, _) = name.split_once('-')?;
    chrono::NaiveDateTime::parse_from_str(stamp, "%Y%m%dT%H%M%S%3fZ").ok().map(|t| t.and_utc())
}

/// Names of records that may go: old ones, but never the newest.
fn outlived(mut names: Vec<String>, oldest: DateTime<Utc>) -> Vec<String> {
    names.retain(|n| time_of(n).is_some());
    names.sort();
    names.pop();
    names.retain(|n| time_of(n).is_some_and(|at| at < oldest));
    names
}

fn remove_old_here(dir: &Path, oldest: DateTime<Utc>) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|e| e.file_name().into_string().ok()).collect();
    for name in outlived(names, oldest) {
        // An old record that stays does no harm; the next drill tries again.
        let _ = std::fs::remove_file(dir.join(name));
    }
}

async fn remove_old_there(place: &Place, prefix: &str, oldest: DateTime<Utc>) {
    let Ok(objects) = place.destination.list(prefix).await else { return };
    let names = objects.iter().filter_map(|o| o.location.key.strip_prefix(prefix)).map(str::to_owned).collect();
    for name in outlived(names, oldest) {
        let _ = place.destination.delete(&Location::newest(format!("{prefix}{name}"))).await;
    }
}

/// What this agent has kept of the drills of a service of a host.
fn here(engine: &Engine, service: &str, host: &str) -> Vec<Record> {
    let entries = std::fs::read_dir(dir(engine, service)).into_iter().flatten().flatten();
    let read = entries.filter_map(|e| std::fs::read(e.path()).ok());
    read.filter_map(|text| Record::from_json(&text).ok()).filter(|r| r.host == host).collect()
}

/// What lies at a place; nothing if it cannot be read.
async fn there(place: &Place, service: &str, host: &str) -> Vec<Record> {
    let Some(prefix) = place.layout.drills(host, service) else { return Vec::new() };
    let Ok(objects) = place.destination.list(&prefix).await else { return Vec::new() };
    let mut at: Vec<Location> = objects.into_iter().map(|o| o.location).collect();
    at.retain(|at| at.key.strip_prefix(&prefix).is_some_and(|name| time_of(name).is_some()));
    at.sort();
    at.drain(..at.len().saturating_sub(NEWEST));
    let read = futures_util::stream::iter(at).map(async |at| {
        let text = get_small(place.destination.as_ref(), &at, LIMIT_BYTES).await.ok()?;
        Record::from_json(&text).ok()
    });
    let found: Vec<Option<Record>> = read.buffered(8).collect().await;
    found.into_iter().flatten().filter(|r| r.host == host && r.service == service).collect()
}

/// All that is known here and at `places` of the drills of a service of a host. What cannot be read is not known.
pub async fn all(engine: &Engine, service: &str, host: &str, places: &[Place]) -> Proofs {
    let there = join_all(places.iter().map(|p| there(p, service, host))).await;
    Proofs::new(here(engine, service, host).into_iter().chain(there.into_iter().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_record_stays_however_old_it_is() {
        let names =
            ["20250101T000000000Z-a.json", "20250201T000000000Z-b.json", "notes.txt", "20240101T000000000Z-c.json"];
        let gone = |oldest: &str| outlived(names.map(str::to_owned).to_vec(), oldest.parse().unwrap());
        assert_eq!(gone("2026-01-01T00:00:00Z"), ["20240101T000000000Z-c.json", "20250101T000000000Z-a.json"]);
        assert_eq!(gone("2025-01-01T00:00:00Z"), ["20240101T000000000Z-c.json"]);
    }
}
