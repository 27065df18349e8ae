//! The report: what exists where, how old it is, why it is kept, what drills have shown, and what is not covered. One
//! value, shown as a page or as JSON. It is read from the destinations and from records of drills alone.

mod chart;
pub mod page;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;

use crate::catalogue::{Catalogue, Place, Point};
use crate::check;
use crate::drill::records;
use crate::engine::Engine;
use crate::error::Result;
use crate::freshness::{State, Watched};
use crate::manifest;
use crate::proof::{self, Proofs, Record};
use crate::prune::{self, Policy};
use crate::retention::Action;

/// Drills that are shown one by one; the chart shows all.
const SHOWN_DRILLS: usize = 12;

/// All services of this host, at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// When it was made.
    pub generated: DateTime<Utc>,
    /// Of which host.
    pub host: String,
    /// The environment, if configured.
    pub environment: Option<String>,
    /// Program version.
    pub agent_version: String,
    /// The worst of all services.
    pub state: State,
    /// By name.
    pub services: Vec<ServiceReport>,
}

/// One service.
#[derive(Debug, Clone, Serialize)]
pub struct ServiceReport {
    /// Its name.
    pub name: String,
    /// Kind and method.
    pub kind: String,
    /// The worst of its places and of its drills.
    pub state: State,
    /// The newest complete point anywhere.
    pub newest: Option<PointReport>,
    /// Where its points lie.
    pub places: Vec<PlaceReport>,
    /// What drills have shown, in a sentence.
    pub proof: Option<String>,
    /// The point that was proven last.
    pub last_proven: Option<Record>,
    /// The longest restore that is accepted.
    pub rto_seconds: Option<u64>,
    /// All drills that are known, newest first.
    pub drills: Vec<Record>,
    /// What is not covered.
    pub gaps: Vec<String>,
    /// What else a person should know: the statements that are not ok, and warnings of the newest point.
    pub warnings: Vec<String>,
}

/// One place of a service.
#[derive(Debug, Clone, Serialize)]
pub struct PlaceReport {
    /// Its name.
    pub name: String,
    /// For a person.
    pub address: String,
    /// Whether it lies on another machine.
    pub off_site: bool,
    /// Whether a complete point lies there with its data, or with a snapshot of it that is in a bucket.
    pub holds_data_off_site: bool,
    /// How fresh it is there.
    pub state: State,
    /// Why it could not be read.
    pub error: Option<String>,
    /// Sum of what is stored.
    pub stored_bytes: u64,
    /// Newest first.
    pub points: Vec<PointReport>,
    /// Statements on freshness.
    pub statements: Vec<String>,
}

/// One point at one place.
#[derive(Debug, Clone, Serialize)]
pub struct PointReport {
    /// Its id.
    pub id: String,
    /// Its cadence.
    pub cadence: String,
    /// When it was begun.
    pub started: DateTime<Utc>,
    /// Its age.
    pub age_seconds: i64,
    /// As stored there.
    pub stored_bytes: u64,
    /// Before compression.
    pub plain_bytes: u64,
    /// `complete`, `suspect`, `incomplete`, or `unknown` when its store could not be asked.
    pub state: String,
    /// Whether it lies in an archive class and must be thawed before it can be read.
    pub needs_thaw: bool,
    /// Whether it is encrypted.
    pub encrypted: bool,
    /// Whether retention keeps it.
    pub kept: bool,
    /// Why.
    pub reason: String,
    /// Its last drill: `proven`, `damaged`, `failed`.
    pub drill: Option<proof::Outcome>,
}

/// Makes the report of some services of this host.
pub async fn collect(engine: &Engine, services: &[String]) -> Result<Report> {
    let mut reports = Vec::new();
    for name in services {
        reports.push(service(engine, name).await?);
    }
    note_order(engine, &mut reports);
    Ok(Report {
        generated: engine.clock.now(),
        host: engine.host()?,
        environment: engine.config.environment.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        state: reports.iter().map(|s| s.state).max().unwrap_or(State::Unknown),
        services: reports,
    })
}

async fn service(engine: &Engine, name: &str) -> Result<ServiceReport> {
    let (host, now) = (engine.host()?, engine.clock.now());
    let source = engine.source(name)?;
    let config = engine.service(name)?;
    let places = engine.places(name)?;
    let catalogues = engine.catalogues(&places, &host, name).await;
    let proofs = records::all(engine, name, &host, &places).await;
    let (agent_id, proven) = (engine.agent_id()?, proofs.to_protect());
    let policy = Policy { calendar: engine.calendar()?, now, agent_id: &agent_id, proven: &proven };
    let mut warnings = Vec::new();
    let mut found = Vec::new();
    for (place, catalogue) in places.iter().zip(&catalogues) {
        let at = Watched { host: &host, service: name, destination: place.name() };
        found.push(match catalogue {
            Ok(catalogue) => {
                let mut report = place_report(engine, &at, place, catalogue, &policy, &proofs).await?;
                let root = place.layout.roots(&host, name).swap_remove(0).replace("_manual_", "_*_");
                report.address = engine.address(name, place, root.trim_end_matches('/'));
                report
            }
            Err(err) => unreadable(place, &err.chain()),
        });
    }
    warnings.extend(found.iter().flat_map(|p| p.statements.iter().filter(|s| !s.starts_with("[OK]")).cloned()));
    let there = |r: &Record| {
        let at = places.iter().position(|p| p.name() == r.destination)?;
        let catalogue = catalogues[at].as_ref().ok()?;
        Some(
            catalogue.points.iter().any(|p| p.manifest.id == r.id)
                || catalogue.strangers.iter().any(|s| s.name == r.id),
        )
    };
    let verdict = proof::judge(&proofs, name, engine.config.check.max_drill_age, &there, now);
    let drill_state = verdict.as_ref().map_or(State::Ok, |v| v.state);
    warnings.extend(verdict.as_ref().filter(|v| v.state != State::Ok).map(|v| format!("[{}] {}", v.state, v.text)));
    let newest =
        found.iter().flat_map(|p| &p.points).filter(|p| p.state == "complete").max_by_key(|p| p.started).cloned();
    warnings.extend(newest_warnings(&catalogues));
    if let Some(slow) = proofs.last_proven().filter(|r| r.is_beyond_rto()) {
        warnings.push(format!("the last restore took {:.0} s, longer than is accepted", slow.total_seconds));
    }
    let mut drills: Vec<Record> = proofs.records().to_vec();
    drills.reverse();
    Ok(ServiceReport {
        name: name.to_owned(),
        kind: format!("{} {}", source.kind(), source.method()),
        state: found.iter().map(|p| p.state).max().unwrap_or(State::Unknown).max(drill_state),
        gaps: gaps(&places, &found, &proofs),
        newest,
        places: found,
        proof: verdict.map(|v| v.text),
        last_proven: proofs.last_proven().cloned(),
        rto_seconds: config.rto.map(|s| s.as_secs()),
        drills,
        warnings,
    })
}

async fn place_report(
    engine: &Engine,
    at: &Watched<'_>,
    place: &Place,
    catalogue: &Catalogue,
    policy: &Policy<'_>,
    proofs: &Proofs,
) -> Result<PlaceReport> {
    let limits = check::limits(engine, at.service)?;
    // Judged as `check-s3` does: a record at a destination is no copy there of a snapshot on the store's own disks.
    let (attested, not_off_site) = check::attested(engine, at, place, Ok(catalogue.clone())).await?;
    let checked = check::judge(at, &attested, &not_off_site, place.keep.cadences(), &limits, policy.now);
    let good = |p: &Point| p.is_whole() && p.unseen.is_empty() && p.manifest.state == manifest::State::Complete;
    let decisions: BTreeMap<String, (bool, String)> = prune::decide(place, catalogue, policy)
        .into_iter()
        .map(|d| (d.id, (d.action == Action::Keep, d.reason)))
        .collect();
    let mut points: Vec<PointReport> = catalogue
        .points
        .iter()
        .map(|p| {
            let m = &p.manifest;
            let (kept, reason) = decisions.get(&m.id).cloned().unwrap_or((true, String::new()));
            let state = match m.state {
                _ if !p.is_whole() => "incomplete",
                _ if !p.unseen.is_empty() => "unknown",
                manifest::State::Complete => "complete",
                manifest::State::Suspect => "suspect",
            };
            PointReport {
                id: m.id.clone(),
                cadence: m.cadence.to_string(),
                started: m.started,
                age_seconds: (policy.now - m.started).num_seconds(),
                stored_bytes: m.stored_bytes(),
                plain_bytes: m.plain_bytes(),
                state: state.to_owned(),
                needs_thaw: !p.archived.is_empty(),
                encrypted: m.artefacts.iter().any(|a| !a.recipients.is_empty()),
                kept,
                reason,
                drill: proofs.of(&m.id).map(|r| r.result),
            }
        })
        .collect();
    points.reverse();
    Ok(PlaceReport {
        name: at.destination.to_owned(),
        address: String::new(),
        off_site: place.destination.is_off_site(),
        holds_data_off_site: place.destination.is_off_site() && attested.points.iter().any(good),
        state: checked.freshness.state,
        error: None,
        stored_bytes: points.iter().map(|p| p.stored_bytes).sum(),
        points,
        statements: checked.freshness.lines.iter().map(|l| format!("[{}] {}", l.state, l.text)).collect(),
    })
}

fn unreadable(place: &Place, why: &str) -> PlaceReport {
    PlaceReport {
        name: place.name().to_owned(),
        address: String::new(),
        off_site: place.destination.is_off_site(),
        holds_data_off_site: false,
        state: State::Unknown,
        error: Some(why.to_owned()),
        stored_bytes: 0,
        points: Vec::new(),
        statements: vec![format!("[UNKNOWN] {} could not be read: {why}", place.name())],
    }
}

fn newest_warnings(catalogues: &[Result<Catalogue>]) -> Vec<String> {
    let points = catalogues.iter().flatten().flat_map(|c| &c.points);
    let newest = points.max_by_key(|p| p.manifest.started);
    newest.map(|p| p.manifest.warnings.clone()).unwrap_or_default()
}

/// What is not covered by what there is.
fn gaps(places: &[Place], found: &[PlaceReport], proofs: &Proofs) -> Vec<String> {
    let mut gaps = Vec::new();
    if !places.iter().any(|p| p.destination.is_off_site()) {
        gaps.push(
            "no copy leaves this host: a fire, a thief or a wrong command takes data and backups together".to_owned(),
        );
    } else if !found.iter().any(|p| p.holds_data_off_site) {
        gaps.push("no complete restore point lies off this host".to_owned());
    }
    if proofs.last_proven().is_none() {
        gaps.push(
            "no drill ever went well: nobody knows whether its restore points restore, and in what time".to_owned(),
        );
    }
    gaps
}

/// Files must be captured after the database that refers to them.
fn note_order(engine: &Engine, reports: &mut [ServiceReport]) {
    let newest: BTreeMap<String, DateTime<Utc>> =
        reports.iter().filter_map(|r| Some((r.name.clone(), r.newest.as_ref()?.started))).collect();
    for report in reports.iter_mut() {
        let Some(service) = engine.config.services.get(&report.name) else { continue };
        for first in &service.after {
            if let (Some(own), Some(other)) = (newest.get(&report.name), newest.get(first))
                && own < other
            {
                report.gaps.push(format!(
                    "its newest restore point is older than that of {first}, which refers to it: what {first} names may be missing"
                ));
            }
        }
    }
}
