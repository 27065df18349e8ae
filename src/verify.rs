//! Reads a restore point back: what is there, whether every byte is what was written, whether the format is sound.

use std::collections::BTreeMap;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::decode;
use crate::restore::{self, Chosen};

/// How deep to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// All artefacts are there with the stored length.
    Present,
    /// And every stored byte is what was written (SHA-256).
    Digest,
    /// And the store's own format is sound.
    Format,
}

/// What was found of one point at one place.
#[derive(Debug, Clone)]
pub struct Report {
    /// Where.
    pub place: String,
    /// Which point.
    pub id: String,
    /// Stored bytes that were looked at.
    pub stored_bytes: u64,
    /// Counted by the source (`format`).
    pub counts: BTreeMap<String, u64>,
    /// What is wrong; empty = good.
    pub problems: Vec<String>,
}

/// Verifies one point at one place. Damage is a problem in the report; an error means that it could not be looked at.
pub async fn verify(engine: &Engine, service: &str, chosen: &Chosen, level: Level) -> Result<Report> {
    let manifest = &chosen.point.manifest;
    let missing = chosen.point.missing.iter().map(|a| format!("artefact {a} is not there as it was stored"));
    let missing = missing.chain(chosen.point.gone.iter().cloned());
    let mut report = Report {
        place: chosen.place.name().to_owned(),
        id: manifest.id.clone(),
        stored_bytes: manifest.stored_bytes(),
        counts: BTreeMap::new(),
        problems: missing.collect(),
    };
    if let Some(why) = chosen.point.unseen.first() {
        let text = format!("could not find out whether the snapshots of {} are there", manifest.id);
        return Err(Error::new(ErrorKind::Unavailable, text).caused_by(why.clone()));
    }
    let present = manifest.artefacts.iter().filter(|a| !chosen.point.missing.iter().any(|m| m.name == a.name));
    if level >= Level::Digest {
        for artefact in present {
            engine.monitor.start(&artefact.name, Some(artefact.stored_bytes));
            let outcome = async {
                let stream = chosen.place.destination.get(&artefact.location).await?;
                decode::check_stored(stream, artefact, |n| engine.monitor.advance(&artefact.name, n)).await
            };
            let outcome = tokio::select! {
                done = outcome => done,
                () = engine.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the verification was stopped")),
            };
            engine.monitor.end(&artefact.name);
            note(&mut report, outcome)?;
        }
    }
    if level >= Level::Format && report.problems.is_empty() {
        let source = engine.source(service)?;
        let workdir = engine.service_dir(service).join(format!("verify-{}", std::process::id()));
        let cx = engine.context(service, engine.cancel.child_token(), workdir.clone())?;
        let outcome = source.verify(&cx, &restore::open(engine, chosen)).await;
        let _ = std::fs::remove_dir_all(workdir);
        match outcome {
            Ok(verified) => {
                report.counts = verified.counts;
                report.problems.extend(verified.problems);
            }
            Err(err) => note(&mut report, Err(err))?,
        }
    }
    Ok(report)
}

fn note(report: &mut Report, outcome: Result<()>) -> Result<()> {
    match outcome {
        Err(err) if err.kind == ErrorKind::Corrupt => report.problems.push(err.chain()),
        Err(err) => return Err(err),
        Ok(()) => {}
    }
    Ok(())
}
