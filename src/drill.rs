//! One drill of one service: choose a point, restore it into a scratch directory, compare, remove, record.
//!
//! A drill never touches production, needs no lock of a backup, and is cleaned up on every way out; what a killed one
//! left is removed by the next. Its record is kept whatever the outcome, so that the trend is told truthfully.

mod choice;
mod reader;
pub mod records;
mod scratch;

use std::sync::Arc;

use chrono::{DateTime, Utc};

use crate::destination::get_small;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Program;
use crate::lock::Lock;
use crate::manifest::Manifest;
use crate::pipeline::decode::{self, Identities};
use crate::proof::{FORMAT_VERSION, Outcome, Record};
use crate::restore::{self, Chosen};
use crate::source::{Context, DrillRequest, Drilled, PointReader, Seconds, Source, Stopwatch};

use choice::Candidate;
use reader::{Meter, Watched};
use scratch::Scratch;

/// Which point is drilled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// The newest complete one.
    Newest,
    /// One of all, chosen by this number, so that every one is visited in time.
    Random(u64),
    /// This one.
    Id(String),
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which point.
    pub pick: Pick,
    /// From this place; without it from the remote ones, or the local one if there is no other.
    pub from: Option<String>,
    /// Of this host; `None` = this one.
    pub host: Option<String>,
    /// Compare without storing, where the store can.
    pub stream: bool,
}

/// What a drill found.
#[derive(Debug)]
pub struct Report {
    /// The record as it was kept.
    pub record: Record,
    /// Why the point is not proven.
    pub failure: Option<Error>,
    /// What else a person should know.
    pub warnings: Vec<String>,
}

/// Drills one service.
///
/// # Errors
/// When there is nothing to drill, or another drill of the service runs. Everything else is in the report.
pub async fn drill(engine: &Engine, service: &str, wanted: &Wanted) -> Result<Report> {
    let source = engine.source(service)?;
    let started = engine.clock.now();
    let dir = engine.service_dir(service);
    let _lock = Lock::take_drill(&dir, service, started)?;
    let host = wanted.host.clone().map_or_else(|| engine.host(), Ok)?;
    let candidate = choice::choose(engine, service, &host, wanted).await?;
    let drill = Drill { engine, service, source, wanted, host, started, candidate: &candidate };
    let meter = Arc::new(Meter::new(engine.clock.clone()));
    let outcome = match drill.run(&meter).await {
        Err(err) if err.kind == ErrorKind::Corrupt => Err(drill.unless_removed(err).await),
        other => other,
    };
    let (record, failure) = drill.record(&meter, outcome)?;
    if failure.as_ref().is_some_and(|e| e.kind == ErrorKind::Cancelled) {
        // Nothing was found out.
        return Ok(Report { record, failure, warnings: Vec::new() });
    }
    let mut warnings = records::keep(engine, service, &candidate.place, &record).await?;
    if record.is_beyond_rto() {
        let seconds = record.total_seconds.round();
        warnings.push(format!(
            "the restore took {seconds} s, longer than the {} s that are accepted (rto)",
            record.rto_seconds.unwrap_or(0)
        ));
    }
    Ok(Report { record, failure, warnings })
}

struct Drill<'a> {
    engine: &'a Engine,
    service: &'a str,
    source: Arc<dyn Source>,
    wanted: &'a Wanted,
    host: String,
    started: DateTime<Utc>,
    candidate: &'a Candidate,
}

impl Drill<'_> {
    async fn run(&self, meter: &Arc<Meter>) -> Result<Drilled> {
        let chosen = match &self.candidate.chosen {
            Ok(chosen) => chosen,
            Err((key, why)) => {
                meter.blame(key);
                return Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("the manifest of {} is damaged", self.candidate.id),
                )
                .caused_by(why.clone())
                .hint("restore another point; `backstay list` shows them."));
            }
        };
        let manifest = &chosen.point.manifest;
        let lost = chosen.point.missing.iter().map(|m| &m.name).chain(&chosen.point.gone).next();
        if let Some(name) = lost {
            meter.blame(&format!("{}/{name}", chosen.point.folder));
            return Err(Error::new(ErrorKind::Corrupt, format!("restore point {} is not whole", manifest.id))
                .caused_by(chosen.point.lacks().join(", ")));
        }
        self.suits(manifest)?;
        restore::require_thawed(&chosen.place, &chosen.point)?;
        let identities = self.identities(manifest)?;
        check_sums(chosen, meter).await?;
        let config = self.engine.service(self.service)?;
        let scratch = Scratch::at(self.engine, self.service)?;
        scratch.refuse_production(self.engine, &self.source.production(manifest))?;
        scratch.sweep().await?;
        let wait = config.timeout.0;
        let request = DrillRequest { scratch: scratch.copy(), stream: self.wanted.stream, wait };
        scratch.require(self.source.drill_bytes(manifest, &request))?;
        lower_priority(self.engine).await;
        scratch.make()?;
        let outcome = self.restored(chosen, &request, scratch.work(), identities, meter).await;
        let swept = scratch.sweep().await;
        outcome.and_then(|drilled| swept.map(|()| drilled))
    }

    /// A point that retention removed while it was read is not damaged: then its manifest, which goes first, is gone.
    async fn unless_removed(&self, err: Error) -> Error {
        let Ok(chosen) = &self.candidate.chosen else { return err };
        match chosen.place.destination.head(&chosen.point.manifest_at).await {
            Ok(None) => {
                Error::new(ErrorKind::NotFound, format!("{} was removed while it was drilled", self.candidate.id))
                    .hint("drill again.")
            }
            _ => err,
        }
    }

    /// Kind and base of the point suit this agent.
    fn suits(&self, manifest: &Manifest) -> Result<()> {
        if manifest.kind != self.source.kind() {
            let message = format!(
                "restore point {} is of kind {:?}, service {:?} is of kind {:?}",
                manifest.id,
                manifest.kind,
                self.service,
                self.source.kind()
            );
            return Err(Error::new(ErrorKind::Config, message));
        }
        match &manifest.base {
            Some(base) => {
                Err(Error::new(ErrorKind::Config, format!("restore point {} is built on {base}", manifest.id))
                    .hint("upgrade backstay on this host: this version drills full points only."))
            }
            None => Ok(()),
        }
    }

    /// The private keys: those of the command line, else those that the configuration names.
    fn identities(&self, manifest: &Manifest) -> Result<Identities> {
        let given = self.engine.identities.clone();
        if !given.is_empty() || manifest.artefacts.iter().all(|a| a.recipients.is_empty()) {
            return Ok(given);
        }
        let config = self.engine.config.drill(self.engine.service(self.service)?);
        match &config.identity {
            Some(reference) => Identities::from_text(reference.load()?.expose(), &reference.to_string()),
            None => Err(Error::new(ErrorKind::Denied, format!("restore point {} is encrypted", manifest.id)).hint(
                "give the private key with --identity FILE or `drill: {identity: {credential: NAME}}`, or drill on another \
                 host with --host, so that this one need not have it.",
            )),
        }
    }

    async fn restored(
        &self,
        chosen: &Chosen,
        request: &DrillRequest,
        workdir: std::path::PathBuf,
        identities: Identities,
        meter: &Arc<Meter>,
    ) -> Result<Drilled> {
        let cancel = self.engine.cancel.child_token();
        let cx = self.engine.context(self.service, cancel.clone(), workdir)?;
        let from = Watched::new(&chosen.place, identities, Arc::clone(&self.engine.monitor), Arc::clone(meter));
        let point = PointReader { manifest: Arc::clone(&chosen.point.manifest), from: Arc::new(from) };
        let work = async {
            self.source.drill_cleanup(&cx).await?;
            let mut drilled = self.source.drill(&cx, &point, request).await?;
            let mut watch = Stopwatch::start(&self.engine.clock);
            check_rest(chosen, meter).await?;
            drilled.seconds.compare += watch.lap();
            Ok(drilled)
        };
        let outcome = tokio::select! {
            done = work => done,
            () = cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the drill was stopped")),
        };
        cancel.cancel();
        let fresh = Context { cancel: tokio_util::sync::CancellationToken::new(), ..cx };
        let cleaned = self.source.drill_cleanup(&fresh).await;
        outcome.and_then(|drilled| cleaned.map(|()| drilled))
    }

    /// The record, and the error with which the command ends.
    fn record(&self, meter: &Meter, outcome: Result<Drilled>) -> Result<(Record, Option<Error>)> {
        let finished = self.engine.clock.now();
        let manifest = self.candidate.chosen.as_ref().ok().map(|c| &c.point.manifest);
        let service = self.engine.service(self.service)?;
        let (drilled, failure) = match outcome {
            Ok(drilled) if drilled.differences.is_empty() => (Some(drilled), None),
            Ok(drilled) => {
                let message = format!("what came back of {} is not what was captured", self.candidate.id);
                let err = Error::new(ErrorKind::Corrupt, message).caused_by(drilled.differences.join("\n    "));
                (Some(drilled), Some(err))
            }
            Err(err) => (None, Some(err)),
        };
        let damaged = failure.as_ref().is_some_and(|e| e.kind == ErrorKind::Corrupt);
        let record = Record {
            format_version: FORMAT_VERSION,
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
            drilled_on: self.engine.host()?,
            host: self.host.clone(),
            service: self.service.to_owned(),
            id: self.candidate.id.clone(),
            point_started: self.candidate.started,
            destination: self.candidate.place.name().to_owned(),
            level: drilled.as_ref().map(|d| d.level),
            started: self.started,
            finished,
            seconds: drilled.as_ref().map_or(Seconds::default(), |d| meter.share(d.seconds)),
            total_seconds: (finished - self.started).to_std().unwrap_or_default().as_secs_f64(),
            plain_bytes: manifest.map_or(0, |m| m.plain_bytes()),
            stored_bytes: manifest.map_or(0, |m| m.stored_bytes()),
            counts: drilled.as_ref().map(|d| d.counts.clone()).unwrap_or_default(),
            result: match (&failure, damaged) {
                (None, _) => Outcome::Proven,
                (Some(_), true) => Outcome::Damaged,
                (Some(_), false) => Outcome::Failed,
            },
            reason: failure.as_ref().map(Error::chain),
            object: meter.blamed().filter(|_| damaged),
            differences: drilled.as_ref().map(|d| d.differences.clone()).unwrap_or_default(),
            notes: drilled.map(|d| d.notes).unwrap_or_default(),
            rto_seconds: service.rto.map(|s| s.as_secs()),
        };
        let failure = failure.map(|e| self.explain(e, record.object.as_deref()));
        Ok((record, failure))
    }

    fn explain(&self, err: Error, object: Option<&str>) -> Error {
        let (id, place) = (&self.candidate.id, self.candidate.place.name());
        let hinted = err.hint.is_some();
        let err = match object {
            Some(object) => err.within(format!("the drill of {id} found damage: object {object:?} at {place}")),
            None => err.within(format!("the drill of {id} from {place} failed")),
        };
        if hinted || err.kind != ErrorKind::Corrupt {
            return err;
        }
        err.hint("make a new point now, find out what damaged this one, and drill another: `backstay drill --random`.")
    }
}

/// `SHA256SUMS`, which restores by hand begin with, must say what the manifest says.
async fn check_sums(chosen: &Chosen, meter: &Meter) -> Result<()> {
    let manifest = &chosen.point.manifest;
    let Some(at) = &manifest.sums else { return Ok(()) };
    let expected = manifest.sums_text();
    let found = get_small(chosen.place.destination.as_ref(), at, expected.len() + 1).await;
    let same = match found {
        Ok(bytes) => bytes == expected.as_bytes(),
        Err(e) if matches!(e.kind, ErrorKind::NotFound | ErrorKind::Corrupt) => false,
        Err(e) => return Err(e),
    };
    if same {
        return Ok(());
    }
    meter.blame(&at.key);
    Err(Error::new(ErrorKind::Corrupt, format!("SHA256SUMS of {} is not what was written", manifest.id)))
}

/// Reads the artefacts that the restore did not need to its end, against their digests.
async fn check_rest(chosen: &Chosen, meter: &Meter) -> Result<()> {
    for artefact in chosen.point.manifest.artefacts.iter().filter(|a| !meter.was_read(&a.name)) {
        let checked = async {
            let stream = chosen.place.destination.get(&artefact.location).await?;
            decode::check_stored(stream, artefact, |_| {}).await
        };
        checked.await.map_err(|e| {
            meter.blame(&artefact.location.key);
            reader::missing_is_damage(e, &artefact.name)
        })?;
    }
    Ok(())
}

/// A drill yields to everything else: this process and what it starts become the least important. Best effort.
async fn lower_priority(engine: &Engine) {
    let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let threads: Vec<_> = threads.map(|t| t.file_name()).collect();
    let commands = [("renice", vec!["-n", "19", "-p"]), ("ionice", vec!["-c", "3", "-p"])];
    for (name, args) in commands {
        let program = Program::new(name).args(args).args(&threads);
        let _ = program.collect(&engine.cancel, 1 << 20).await;
    }
}
