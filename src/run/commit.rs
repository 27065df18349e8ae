//! From captured artefacts to a restore point: `SHA256SUMS`, then the manifest, then the publishing rename.

use std::sync::Arc;

use futures_util::future::join_all;

use super::{Run, RunReport};
use crate::artefact::Role;
use crate::catalogue::{OWNER_NAME, Place};
use crate::destination::{self, Location, PutMode};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{self, Agent, Limits, Manifest, State};
use crate::pipeline::{Leg, PointSink};
use crate::source::{Captured, Source};
use crate::units::Cadence;

/// Writes the record of a point at every leg that is whole.
///
/// # Errors
/// When no leg is whole.
#[allow(clippy::too_many_arguments, reason = "this is the one place where everything about a point comes together")]
pub(super) async fn commit(
    run: &Run<'_>,
    source: &dyn Source,
    sink: &PointSink,
    legs: &[Arc<Leg>],
    places: &[&Place],
    cadence: Cadence,
    id: &str,
    captured: Captured,
    report: &mut RunReport,
) -> Result<()> {
    report.counts = captured.counts.clone();
    report.warnings.extend(captured.warnings.iter().cloned());
    report.missed = captured.missed.clone();
    let mut draft = draft(run, source, cadence, id, captured);
    if let Some(artefacts) = legs.iter().find_map(|l| sink.artefacts_at(l)) {
        draft.artefacts = artefacts;
    }
    if draft.artefacts.is_empty() && draft.external.is_empty() {
        let reason = legs.iter().find_map(|l| l.failure());
        let none = || Error::new(ErrorKind::Failed, "the source captured nothing");
        return Err(
            reason.map_or_else(none, |e| Error::new(e.kind, "no destination has the whole point").caused_by(e.chain()))
        );
    }
    // What was missed is told already.
    if report.missed.is_empty() {
        judge_shrinking(run, source, &mut draft);
    }
    report.plain_bytes = draft.plain_bytes();
    report.stored_bytes = draft.stored_bytes();
    report.suspect = draft.suspect_reasons.clone();
    join_all(legs.iter().zip(places).map(|(leg, place)| record(run, sink, leg, place, draft.clone()))).await;
    if let Some(failures) = all_failed(legs) {
        return Err(failures);
    }
    report.id = Some(id.to_owned());
    Ok(())
}

fn all_failed(legs: &[Arc<Leg>]) -> Option<Error> {
    let failures: Vec<_> = legs.iter().map(|l| l.failure()).collect::<Option<Vec<_>>>()?;
    let text: Vec<String> =
        legs.iter().zip(&failures).map(|(l, e)| format!("{}: {}", l.destination().name(), e.chain())).collect();
    let kind = failures.first().map_or(ErrorKind::Config, |e| e.kind);
    Some(Error::new(kind, "no destination has the whole point").caused_by(text.join("; ")))
}

pub(super) fn draft(run: &Run<'_>, source: &dyn Source, cadence: Cadence, id: &str, captured: Captured) -> Manifest {
    let config = &run.engine.config;
    let max_age_seconds =
        run.service.keep.cadences().filter_map(|c| Some((c, config.max_age(run.service, c)?.as_secs()))).collect();
    Manifest {
        format_version: manifest::FORMAT_VERSION,
        agent: Agent { version: env!("CARGO_PKG_VERSION").to_owned(), id: run.agent_id.clone() },
        id: id.to_owned(),
        service: run.name.to_owned(),
        kind: source.kind().to_owned(),
        method: source.method().to_owned(),
        environment: config.environment.clone(),
        host: run.host.clone(),
        cadence,
        started: run.started,
        finished: run.engine.clock.now(),
        state: if captured.suspect.is_empty() { State::Complete } else { State::Suspect },
        suspect_reasons: captured.suspect,
        accepted: None,
        limits: Limits { max_age_seconds, max_drill_age_seconds: config.check.max_drill_age.map(|s| s.as_secs()) },
        artefacts: Vec::new(),
        sums: None,
        external: captured.external,
        consistency: captured.consistency,
        server_version: captured.server_version,
        position: captured.position,
        counts: captured.counts,
        attributes: captured.attributes,
        base: None,
        warnings: captured.warnings,
    }
}

/// A point much smaller than the last complete one of its kind and method is suspect.
fn judge_shrinking(run: &Run<'_>, source: &dyn Source, draft: &mut Manifest) {
    let limit = u64::from(run.service.suspect_below_percent);
    let Some(previous) = run.previous(source) else { return };
    let (now, before) = (captured_bytes(draft), captured_bytes(&previous));
    if limit > 0 && now.saturating_mul(100) < before.saturating_mul(limit) {
        let percent = now.saturating_mul(100) / before.max(1);
        draft.state = State::Suspect;
        draft.suspect_reasons.push(format!(
            "it has {percent} % of the size of {}: {} after {}",
            previous.id,
            crate::units::Bytes(now),
            crate::units::Bytes(before)
        ));
    }
}

/// Without the kit, whose size says nothing about the store.
fn captured_bytes(point: &Manifest) -> u64 {
    point.artefacts.iter().filter(|a| a.role != Role::Kit).map(|a| a.plain_bytes).sum()
}

async fn record(run: &Run<'_>, sink: &PointSink, leg: &Leg, place: &Place, mut manifest: Manifest) {
    let Some(artefacts) = sink.artefacts_at(leg) else {
        if leg.failure().is_none() {
            leg.fail(Error::new(ErrorKind::Internal, "an artefact is missing there"));
        }
        return;
    };
    let folder = place.layout.folder(&run.host, run.name, manifest.cadence, &manifest.id);
    manifest.artefacts = artefacts;
    let limit = run.service.stall_timeout.0.max(std::time::Duration::from_secs(60));
    let outcome = tokio::time::timeout(limit, write_record(place, manifest, &folder)).await;
    match outcome {
        Ok(Ok(())) => leg.set_recorded(),
        Ok(Err(err)) => leg.fail(err.within("could not write the record of the point")),
        Err(_) => leg.fail(Error::new(ErrorKind::Unavailable, "the record of the point was not confirmed in time")),
    }
}

/// Writes `SHA256SUMS` and the manifest of a point whose artefacts lie in its staged folder, and publishes it.
pub(super) async fn write_record(place: &Place, mut manifest: Manifest, folder: &str) -> Result<()> {
    let destination = place.destination.as_ref();
    let staged = destination.staging(folder);
    let mode = place.layout.put_mode();
    let sums_key = format!("{staged}/{}", manifest::SUMS_NAME);
    let sums = destination::put(destination, &sums_key, mode, manifest.sums_text().into()).await?;
    let unstage = |at: &mut Location| {
        if let Some(rest) = at.key.strip_prefix(&staged) {
            at.key = format!("{folder}{rest}");
        }
    };
    manifest.artefacts.iter_mut().for_each(|a| unstage(&mut a.location));
    let mut sums_at = sums;
    unstage(&mut sums_at);
    manifest.sums = Some(sums_at);
    let text = manifest.to_text()?;
    destination::put(destination, &format!("{staged}/{}", manifest::FILE_NAME), mode, text.into()).await?;
    if staged != folder {
        destination.delete(&Location::newest(format!("{staged}/{OWNER_NAME}"))).await?;
        destination.publish(&staged, folder).await?;
    }
    Ok(())
}

/// Replaces the manifest of a point by a changed one (an accepted point).
pub async fn replace_manifest(place: &Place, manifest: &Manifest, folder: &str) -> Result<()> {
    let mode = if place.layout.is_versioned() { PutMode::Versioned } else { PutMode::Replace };
    let key = format!("{folder}/{}", manifest::FILE_NAME);
    destination::put(place.destination.as_ref(), &key, mode, manifest.to_text()?.into()).await.map(drop)
}
