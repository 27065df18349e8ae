//! One run of one service: lock, look, decide, back up, commit, sweep, top up, prune.
//!
//! The write order is artefacts, `SHA256SUMS`, manifest; the manifest is what makes a restore point.

pub mod commit;
pub mod sweep;
pub mod topup;
mod unfinished;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::catalogue::{Catalogue, OWNER_NAME, Place, Point};
use crate::config::Service;
use crate::destination::{self, PutMode};
use crate::drill::records;
use crate::engine::{Engine, facts};
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Lock;
use crate::manifest::{Manifest, State};
use crate::pipeline::encrypt::Recipients;
use crate::pipeline::{Encoding, Leg, PointSink};
use crate::retention::PointFacts;
use crate::source::{Captured, Context, Held, HeldState, Source};
use crate::units::Cadence;
use crate::{held, kit, plan, prune};

/// How long aborted uploads and clean-ups may take once a run has been stopped.
const WIND_DOWN: Duration = Duration::from_secs(60);

/// Which cadence a run is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The highest that is due; nothing if none is.
    Due,
    /// This one, due or not (`manual` included).
    This(Cadence),
}

/// What became of a point at one place.
#[derive(Debug, Clone)]
pub struct PlaceReport {
    /// The place.
    pub name: String,
    /// Whether the point was meant for it; see [`takes`].
    pub wanted: bool,
    /// Why the point is not there; `None` = it is, if it was wanted.
    pub failure: Option<Arc<Error>>,
    /// What was pruned, topped up, swept there, or why that was not possible.
    pub notes: Vec<String>,
}

/// What a run did.
#[derive(Debug, Clone)]
pub struct RunReport {
    /// The service.
    pub service: String,
    /// The new point; `None` when nothing was due (or with `--dry-run`).
    pub id: Option<String>,
    /// For which cadence; `None` when nothing was due.
    pub cadence: Option<Cadence>,
    /// Why this cadence, or why none.
    pub reason: String,
    /// When it began.
    pub started: DateTime<Utc>,
    /// When it ended.
    pub finished: DateTime<Utc>,
    /// Captured bytes.
    pub plain_bytes: u64,
    /// Bytes stored at each place.
    pub stored_bytes: u64,
    /// Sums of the source.
    pub counts: BTreeMap<String, u64>,
    /// Reasons why the point is suspect.
    pub suspect: Vec<String>,
    /// What the source was to make besides, and did not.
    pub missed: Vec<String>,
    /// Warnings of the source and of the run.
    pub warnings: Vec<String>,
    /// Per place, then per repository of the store.
    pub places: Vec<PlaceReport>,
}

impl RunReport {
    /// The error with which the command ends, if not everything is well.
    pub fn failure(&self) -> Option<Error> {
        let id = self.id.as_deref()?;
        let out: Vec<&PlaceReport> = self.places.iter().filter(|p| p.failure.is_some()).collect();
        if !out.is_empty() {
            let names: Vec<&str> = out.iter().map(|p| p.name.as_str()).collect();
            let why: Vec<String> =
                out.iter().filter_map(|p| p.failure.as_ref().map(|e| format!("{}: {}", p.name, e.chain()))).collect();
            let text = format!(
                "service {:?}: restore point {id} is incomplete: it is not at {}",
                self.service,
                names.join(", ")
            );
            let advice = out.iter().find_map(|p| p.failure.as_ref()?.hint.clone()).map_or_else(
                || "the next run copies the point there, once the destination works again.".to_owned(),
                |hint| format!("{hint} Then the next run copies the point there."),
            );
            return Some(Error::new(ErrorKind::Incomplete, text).caused_by(why.join("; ")).hint(advice));
        }
        if !self.missed.is_empty() {
            let state = if self.suspect.is_empty() { "incomplete" } else { "suspect" };
            let text = format!("service {:?}: restore point {id} is {state}", self.service);
            return Some(
                Error::new(ErrorKind::Incomplete, text)
                    .caused_by(self.missed.join("; "))
                    .hint("look into it; nothing was removed anywhere, and what was made can be restored."),
            );
        }
        if !self.suspect.is_empty() {
            let text = format!("service {:?}: restore point {id} is suspect", self.service);
            return Some(
                Error::new(ErrorKind::Incomplete, text).caused_by(self.suspect.join("; ")).hint(format!(
                    "look into it; `backstay accept {} {id}` makes it count if it is good.",
                    self.service
                )),
            );
        }
        None
    }
}

struct Run<'a> {
    engine: &'a Engine,
    name: &'a str,
    service: &'a Service,
    places: Vec<Place>,
    catalogues: Vec<Result<Catalogue>>,
    agent_id: String,
    host: String,
    started: DateTime<Utc>,
    warnings: Vec<String>,
}

/// Backs one service up.
///
/// # Errors
/// When no restore point was made although one was due. A point that is not everywhere is no error here:
/// see [`RunReport::failure`].
pub async fn backup(engine: &Engine, name: &str, wanted: Wanted, dry_run: bool) -> Result<RunReport> {
    let service = engine.service(name)?;
    let started = engine.clock.now();
    let agent_id = engine.agent_id()?;
    let _lock = Lock::take(&engine.service_dir(name), name, started)?;
    let places = engine.places(name).map_err(|e| e.within(format!("service {name:?}: could not open its places")))?;
    let host = engine.host()?;
    let catalogues = engine.catalogues(&places, &host, name).await;
    let mut run = Run { engine, name, service, places, catalogues, agent_id, host, started, warnings: Vec::new() };
    for (place, read) in run.places.iter().zip(&run.catalogues) {
        if let Err(err) = read {
            let text = format!("the catalogue at {} could not be read: {}", place.name(), err.chain());
            engine.monitor.warn(&text);
            run.warnings.push(text);
        }
    }
    let (cadence, reason) = run.cadence(wanted)?;
    let mut report = run.report(cadence, reason);
    match cadence {
        _ if dry_run => return Ok(report),
        Some(cadence) => run.make(cadence, &mut report).await?,
        None => {}
    }
    run.tidy(&mut report).await;
    report.finished = engine.clock.now();
    Ok(report)
}

impl Run<'_> {
    fn known(&self) -> Vec<PointFacts> {
        let mut all: BTreeMap<String, PointFacts> = BTreeMap::new();
        for fact in self.catalogues.iter().flatten().flat_map(facts) {
            let slot = all.entry(fact.id.clone()).or_insert_with(|| fact.clone());
            if fact.state == State::Complete {
                *slot = fact;
            }
        }
        all.into_values().collect()
    }

    /// The cadence of the point to be made, if any, and why.
    fn cadence(&self, wanted: Wanted) -> Result<(Option<Cadence>, String)> {
        if let Wanted::This(cadence) = wanted {
            return Ok((Some(cadence), "asked for".to_owned()));
        }
        let mut enabled: Vec<Cadence> =
            self.places.iter().flat_map(|p| p.keep.cadences().collect::<Vec<_>>()).collect();
        enabled.sort_unstable();
        enabled.dedup();
        let calendar = self.engine.calendar()?;
        let periods: Vec<String> = enabled.iter().map(|c| calendar.period(*c, self.started).to_string()).collect();
        Ok(match plan::due(&calendar, enabled, &self.known(), self.started) {
            Some(due) => (Some(due), format!("no point yet for {}", calendar.period(due, self.started))),
            None if periods.is_empty() => (None, "no cadence is enabled by `keep`".to_owned()),
            None => (None, format!("there are points for {}", periods.join(", "))),
        })
    }

    fn report(&self, cadence: Option<Cadence>, reason: String) -> RunReport {
        let places = self
            .places
            .iter()
            .map(|p| PlaceReport { name: p.name().to_owned(), wanted: true, failure: None, notes: Vec::new() })
            .collect();
        RunReport {
            service: self.name.to_owned(),
            id: None,
            cadence,
            reason,
            started: self.started,
            finished: self.started,
            plain_bytes: 0,
            stored_bytes: 0,
            counts: BTreeMap::new(),
            suspect: Vec::new(),
            missed: Vec::new(),
            warnings: self.warnings.clone(),
            places,
        }
    }

    /// Never one that was begun before: what is left of that one will be removed.
    fn new_id(&self, cadence: Cadence, begun: &unfinished::Unfinished) -> String {
        let mut taken: Vec<String> = self
            .catalogues
            .iter()
            .flatten()
            .flat_map(|c| {
                let points = c.points.iter().map(|p| p.manifest.id.clone());
                let others = c.orphans.iter().map(|o| &o.name).chain(c.strangers.iter().map(|s| &s.name));
                let others = others.map(|n| {
                    n.rsplit('/').next().unwrap_or(n).trim_start_matches(crate::catalogue::PARTIAL).to_owned()
                });
                points.chain(others).collect::<Vec<_>>()
            })
            .collect();
        taken.extend(begun.ids().map(str::to_owned));
        let environment = self.engine.config.environment.as_deref();
        plan::next_id(self.name, environment, cadence, self.started, |id| taken.iter().any(|t| t == id))
    }

    fn encoding(&self) -> Result<Encoding> {
        let compression = &self.service.compression;
        let cpus = std::thread::available_parallelism().map_or(1, usize::from).min(4);
        let threads = compression.threads.unwrap_or(u32::try_from(cpus).unwrap_or(1));
        let recipients = Recipients::load(&self.service.encrypt_to)?;
        Ok(Encoding::new(compression.algorithm, compression.level, threads, recipients))
    }

    async fn make(&self, cadence: Cadence, report: &mut RunReport) -> Result<()> {
        let source = self.engine.source(self.name)?;
        let begun = unfinished::Unfinished::read(self);
        let id = self.new_id(cadence, &begun);
        let takers: Vec<&Place> = self.takers(cadence, report);
        let legs = self.legs(&takers, cadence, &id).await;
        let previous = self.previous(source.as_ref());
        let sink = PointSink::new(
            legs.clone(),
            self.encoding()?,
            self.service.stall_timeout.0,
            Arc::clone(&self.engine.monitor),
            previous.as_ref().map_or(&[], |m| &m.artefacts),
        );
        begun.begin(&id)?;
        let captured = self.capture(source.as_ref(), &sink, &id, &begun.dead).await;
        let clean = captured.as_ref().is_ok_and(|(_, clean)| *clean);
        let whole = match captured {
            Ok((captured, _)) => {
                match self.kit(source.as_ref(), &sink, &legs, &takers, cadence, &id, &captured).await {
                    Ok(()) => {
                        commit::commit(self, source.as_ref(), &sink, &legs, &takers, cadence, &id, captured, report)
                            .await
                    }
                    Err(err) => Err(err),
                }
            }
            Err(err) => Err(err),
        };
        let settled = match &whole {
            Ok(()) if clean => begun.settled(),
            Ok(()) => begun.committed(),
            Err(_) => {
                let ids = [begun.dead.clone(), vec![id.clone()]].concat();
                self.discard(source.as_ref(), ids).await.and_then(|()| begun.settled())
            }
        };
        if let Err(err) = settled {
            self.engine.monitor.warn(&format!("could not clean up after the backup: {}", err.chain()));
        }
        for (leg, place) in legs.iter().zip(report.places.iter_mut().filter(|p| p.wanted)) {
            place.failure = leg.failure();
        }
        if whole.is_err() || legs.iter().any(|l| l.failure().is_some()) {
            sweep::abandoned(&takers, &legs, &id).await;
        }
        whole.map_err(|e| e.within(format!("service {:?}: no restore point was made", self.name)))
    }

    /// Adds the restore kit to a point that was captured, unless there is nothing but snapshots elsewhere.
    #[allow(clippy::too_many_arguments, reason = "the kit describes the whole point")]
    async fn kit(
        &self,
        source: &dyn Source,
        sink: &PointSink,
        legs: &[Arc<Leg>],
        takers: &[&Place],
        cadence: Cadence,
        id: &str,
        captured: &Captured,
    ) -> Result<()> {
        let artefacts = legs.iter().find_map(|l| sink.artefacts_at(l)).unwrap_or_default();
        if !self.service.kit || artefacts.is_empty() {
            return Ok(());
        }
        let mut point = commit::draft(self, source, cadence, id, captured.clone());
        point.artefacts = artefacts;
        let folder = |p: &Place| p.layout.folder(&self.host, self.name, cadence, id);
        let places: Vec<String> = takers.iter().map(|p| self.engine.address(self.name, p, &folder(p))).collect();
        let versioned = takers.iter().any(|p| p.layout.is_versioned());
        kit::store(sink, &point, &places, versioned).await
    }

    /// Says below the host's prefix what lies there, once. What it says depends on nothing that changes.
    async fn readme(&self, place: &Place) -> Option<String> {
        if place.layout == crate::layout::Layout::Local {
            return None;
        }
        let written = async {
            let text = kit::readme(&self.host, self.engine.config.environment.as_deref(), place.layout.is_versioned())?;
            let mark = self.engine.service_dir(self.name).join(format!("readme-{}", place.name()));
            let digest = blake3::hash(text.as_bytes()).to_hex().to_string();
            if std::fs::read_to_string(&mark).is_ok_and(|known| known == digest) {
                return Ok(());
            }
            let key = place.layout.readme(&self.host);
            destination::put(place.destination.as_ref(), &key, PutMode::Replace, text.into()).await?;
            crate::engine::write_private(&mark, &digest)
                .and_then(|()| crate::privilege::adopt(&mark))
                .map_err(|e| Error::io(e, format!("could not write {}", mark.display())))
        };
        written.await.err().map(|e: Error| format!("could not write the README there: {}", e.chain()))
    }

    /// The places that the point goes to; the others are marked in the report.
    fn takers(&self, cadence: Cadence, report: &mut RunReport) -> Vec<&Place> {
        let takes = |(place, read): (&Place, &Result<Catalogue>)| takes(place, read.as_ref().ok(), cadence);
        let wanted: Vec<bool> = self.places.iter().zip(&self.catalogues).map(takes).collect();
        // A cadence that no place keeps was asked for by name: it goes everywhere.
        if !wanted.contains(&true) {
            return self.places.iter().collect();
        }
        report.places.iter_mut().zip(&wanted).for_each(|(place, wanted)| place.wanted = *wanted);
        self.places.iter().zip(wanted).filter_map(|(place, wanted)| wanted.then_some(place)).collect()
    }

    async fn legs(&self, takers: &[&Place], cadence: Cadence, id: &str) -> Vec<Arc<Leg>> {
        let mut legs = Vec::new();
        for place in takers {
            let folder = place.layout.folder(&self.host, self.name, cadence, id);
            let staged = place.destination.staging(&folder);
            let mode = place.layout.put_mode();
            let leg = Leg::new(Arc::clone(&place.destination), staged.clone(), mode);
            if staged != folder {
                let text = format!("{}\n{}\n{}\n", self.agent_id, self.host, std::process::id());
                let key = format!("{staged}/{OWNER_NAME}");
                if let Err(err) =
                    destination::put(place.destination.as_ref(), &key, PutMode::Replace, text.into()).await
                {
                    leg.fail(err);
                }
            }
            legs.push(Arc::new(leg));
        }
        legs
    }

    /// Lets the source remove what it keeps of points that came to nothing.
    async fn discard(&self, source: &dyn Source, ids: Vec<String>) -> Result<()> {
        let workdir = self.engine.service_dir(self.name).join("work");
        let cx = self.engine.context(self.name, self.engine.cancel.child_token(), workdir.clone())?;
        let cleaned = tokio::time::timeout(WIND_DOWN, held::discard(source, cx, ids)).await;
        let _ = std::fs::remove_dir_all(workdir);
        cleaned.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, "the source did not answer in time")))
    }

    /// Also says whether nothing is left of points that came to nothing. What cannot be cleaned up now, the next run tries
    /// again: a store that hangs in part must not keep the rest from making a point.
    async fn capture(
        &self,
        source: &dyn Source,
        sink: &PointSink,
        id: &str,
        dead: &[String],
    ) -> Result<(Captured, bool)> {
        let cancel = self.engine.cancel.child_token();
        let workdir = self.engine.service_dir(self.name).join("work");
        let mut cx = self.engine.context(self.name, cancel.clone(), workdir.clone())?;
        cx.previous = self.previous(source);
        cx.point = Some(id.to_owned());
        cx.unfinished = dead.to_vec();
        let work = async {
            if let Err(err) = source.cleanup(&cx).await {
                self.engine.monitor.warn(&format!("could not clean up before the backup: {}", err.chain()));
            }
            let probe = source.probe(&cx).await?;
            let mut captured = source.backup(&cx, sink).await?;
            captured.warnings.splice(0..0, probe.warnings);
            Ok(captured)
        };
        let outcome = tokio::select! {
            done = tokio::time::timeout(self.service.timeout.0, work) => done.unwrap_or_else(|_| Err(self.timed_out())),
            () = cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the backup was stopped")),
        };
        cancel.cancel();
        let fresh = Context { cancel: tokio_util::sync::CancellationToken::new(), ..cx };
        let _ = tokio::time::timeout(WIND_DOWN, sink.drain()).await;
        let cleaned = tokio::time::timeout(WIND_DOWN, source.cleanup(&fresh)).await;
        if let Ok(Err(err)) = &cleaned {
            self.engine.monitor.warn(&format!("could not clean up after the backup: {}", err.chain()));
        }
        let _ = std::fs::remove_dir_all(workdir);
        outcome.map(|captured| (captured, matches!(cleaned, Ok(Ok(())))))
    }

    fn timed_out(&self) -> Error {
        Error::new(ErrorKind::Failed, format!("the backup did not end within {}", self.service.timeout))
            .hint("look at what the source waits for; `timeout` of the service sets the limit.")
    }

    fn previous(&self, source: &dyn Source) -> Option<Arc<Manifest>> {
        let all = self.catalogues.iter().flatten().flat_map(|c| &c.points);
        all.filter(|p| p.is_whole() && p.manifest.state == State::Complete && p.manifest.kind == source.kind())
            .filter(|p| p.manifest.method == source.method())
            .max_by_key(|p| p.manifest.started)
            .map(|p| Arc::clone(&p.manifest))
    }

    /// Sweeps, tops up and prunes. Nothing here makes the run fail: what could not be done is noted.
    async fn tidy(&self, report: &mut RunReport) {
        let fresh = self.engine.catalogues(&self.places, &self.host, self.name).await;
        let Ok(calendar) = self.engine.calendar() else { return };
        let proven = records::all(self.engine, self.name, &self.host, &self.places).await.to_protect();
        let now = self.engine.clock.now();
        let policy = prune::Policy { calendar, now, agent_id: &self.agent_id, proven: &proven };
        for (at, place) in self.places.iter().enumerate() {
            if self.engine.cancel.is_cancelled() {
                return;
            }
            let PlaceReport { notes, failure, .. } = &mut report.places[at];
            let catalogue = match &fresh[at] {
                Ok(catalogue) => catalogue,
                Err(err) => {
                    notes.push(format!("nothing was removed or copied there: {}", err.chain()));
                    continue;
                }
            };
            // First, because what an interrupted run left can be in the way of a copy of the same point.
            notes.extend(
                sweep::sweep(place, catalogue, &self.agent_id, self.started, self.grace(), &place_roots(place, self))
                    .await,
            );
            // What has just failed is left in peace until the next run.
            if failure.is_some() {
                continue;
            }
            notes.extend(topup::mend(&self.places, &fresh, at, self).await);
            notes.extend(topup::top_up(&self.places, &fresh, at, &policy, self).await);
            let succeeded = report.id.as_ref().is_some_and(|id| {
                let point = catalogue.points.iter().find(|p| &p.manifest.id == id);
                point.is_some_and(|p| p.is_whole() && p.manifest.state == State::Complete)
            });
            if succeeded && report.missed.is_empty() {
                notes.extend(self.readme(place).await);
                notes.extend(prune::apply(place, catalogue, &policy).await.into_notes());
            }
        }
        self.tidy_repositories(&fresh, &policy, report).await;
    }

    /// Retention of the snapshots that the store keeps, after the manifests: a record leaves before its data.
    async fn tidy_repositories(&self, fresh: &[Result<Catalogue>], policy: &prune::Policy<'_>, report: &mut RunReport) {
        let keeps = self.service.repository_keeps();
        let complete = |id: &str| {
            let at =
                |c: &Catalogue| c.points.iter().any(|p| p.manifest.id == id && p.manifest.state == State::Complete);
            fresh.iter().flatten().any(at)
        };
        let Some(id) = report.id.clone().filter(|id| !keeps.is_empty() && report.missed.is_empty() && complete(id))
        else {
            return;
        };
        let repositories = held::ask(self.engine, self.name).await.unwrap_or_default();
        for (repository, keep) in repositories.iter().filter_map(|r| Some((r, keeps.get(&r.name)?))) {
            let newest = |held: &Vec<Held>| held.iter().any(|h| h.point == id && h.state == HeldState::Whole);
            let mut notes = Vec::new();
            if repository.held.as_ref().is_ok_and(newest) {
                let pruned = held::prune(self.engine, self.name, repository, keep, fresh, policy).await;
                notes = pruned.into_notes();
            }
            report.places.push(PlaceReport {
                name: format!("repository {}", repository.name),
                wanted: true,
                failure: None,
                notes,
            });
        }
    }

    fn grace(&self) -> chrono::TimeDelta {
        let limit = self.service.timeout.0 + Duration::from_secs(3600);
        chrono::TimeDelta::from_std(limit).unwrap_or(chrono::TimeDelta::days(2))
    }
}

/// Whether a place is sent a new point of this cadence: one that keeps it or a lower cadence, which it satisfies too.
/// A place that keeps only higher ones would store it and remove it again; it gets none, unless nothing there can be restored.
pub fn takes(place: &Place, catalogue: Option<&Catalogue>, cadence: Cadence) -> bool {
    let good = |p: &Point| p.is_whole() && p.manifest.state == State::Complete;
    let empty = || catalogue.is_some_and(|c| !c.points.iter().any(good));
    cadence == Cadence::Manual || place.keep.cadences().any(|kept| kept <= cadence) || empty()
}

fn place_roots(place: &Place, run: &Run<'_>) -> Vec<String> {
    place.layout.roots(&run.host, run.name)
}
