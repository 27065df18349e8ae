//! Freshness of a deployment, judged from destinations alone, and the status file that tells it.

pub mod metrics;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use chrono::{DateTime, Utc};
use futures_util::future::join_all;

use crate::catalogue::{self, Catalogue, Place};
use crate::config::default_max_age;
use crate::drill::records;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::freshness::{self, Freshness, SeenPoint, State, Watched};
use crate::held;
use crate::held::bucket::{self, NotOffSite};
use crate::layout::{Layout, STATUS_FILE};
use crate::proof::{self, Proofs, Record};
use crate::units::{Cadence, Span};

/// One judgement.
#[derive(Debug, Clone)]
pub struct Checked {
    /// Whose points.
    pub host: String,
    /// Of which service.
    pub service: String,
    /// Where.
    pub destination: String,
    /// How fresh.
    pub freshness: Freshness,
    /// The last drill that went well took longer than is accepted.
    pub beyond_rto: bool,
    /// How long ago that was.
    pub proven_age_seconds: Option<i64>,
    /// How long ago it may be.
    pub max_drill_age_seconds: Option<u64>,
}

impl Checked {
    /// Identifies this judgement from run to run.
    pub fn key(&self) -> String {
        format!("{}/{}@{}", self.host, self.service, self.destination)
    }
}

/// Judges services of this host at every destination off this host. A service that has only its own directory is
/// judged there.
pub async fn this_host(engine: &Engine, services: &[String]) -> Result<Vec<Checked>> {
    let host = engine.host()?;
    let now = engine.clock.now();
    let mut checked = Vec::new();
    for service in services {
        let config = engine.service(service)?;
        let max_age = limits(engine, service)?;
        let places = match engine.places(service) {
            Ok(places) => places,
            Err(err) => {
                let at = Watched { host: &host, service, destination: "its destinations" };
                checked.push(unreadable(&at, &err));
                continue;
            }
        };
        let remote = places.iter().filter(|p| config.destinations.iter().any(|d| d.name == p.name()));
        let watched: Vec<&Place> =
            if config.destinations.is_empty() { places.iter().collect() } else { remote.collect() };
        let read = join_all(watched.iter().map(|p| catalogue::read(p, &host, service))).await;
        let proofs = records::all(engine, service, &host, &places).await;
        let there = Present::new(watched.iter().map(|p| p.name()).zip(&read));
        for (place, catalogue) in watched.into_iter().zip(read) {
            let at = Watched { host: &host, service, destination: place.name() };
            let mut one = match attested(engine, &at, place, catalogue).await {
                Ok((catalogue, not_off_site)) => {
                    judge(&at, &catalogue, &not_off_site, place.keep.cadences(), &max_age, now)
                }
                Err(err) => unreadable(&at, &err),
            };
            note_proof(&mut one, &proofs, engine.config.check.max_drill_age, &there, now);
            checked.push(one);
        }
    }
    Ok(checked)
}

/// Ids of everything that lies at the places that could be read, readable or not.
struct Present(BTreeMap<String, BTreeSet<String>>);

impl Present {
    fn new<'a>(read: impl IntoIterator<Item = (&'a str, &'a Result<Catalogue>)>) -> Self {
        let readable = read.into_iter().filter_map(|(name, catalogue)| Some((name, catalogue.as_ref().ok()?)));
        let ids = |c: &Catalogue| {
            let points = c.points.iter().map(|p| p.manifest.id.clone());
            points.chain(c.strangers.iter().map(|s| s.name.clone())).collect()
        };
        Self(readable.map(|(name, catalogue)| (name.to_owned(), ids(catalogue))).collect())
    }
}

/// Adds what drills have shown, if there is anything to say.
fn note_proof(checked: &mut Checked, proofs: &Proofs, limit: Option<Span>, there: &Present, now: DateTime<Utc>) {
    let there = |record: &Record| there.0.get(&record.destination).map(|ids| ids.contains(&record.id));
    let Some(verdict) = proof::judge(proofs, &checked.service, limit, &there, now) else { return };
    checked.proven_age_seconds = verdict.age_seconds;
    checked.max_drill_age_seconds = limit.map(Span::as_secs);
    checked.beyond_rto = proofs.last_proven().is_some_and(|r| r.is_beyond_rto());
    checked.freshness.add(freshness::Line {
        summary: verdict.summary,
        text: verdict.text,
        advice: verdict.advice,
        id: verdict.id,
        age_seconds: verdict.age_seconds,
        limit_seconds: limit.map(Span::as_secs),
        ..freshness::Line::of(verdict.state)
    });
}

/// Whether the snapshots that stores keep themselves are there: in the directory of a service, by its store's word; at
/// destinations, by their buckets first.
pub(crate) async fn attested(
    engine: &Engine,
    at: &Watched<'_>,
    place: &Place,
    catalogue: Result<Catalogue>,
) -> Result<(Catalogue, NotOffSite)> {
    let mut catalogue = catalogue?;
    if place.layout == Layout::Local {
        let mut one = [Ok(catalogue)];
        held::attest(engine, at.service, at.host, &mut one).await;
        let [only] = one;
        return only.map(|c| (c, NotOffSite::default()));
    }
    let not_off_site = bucket::attest_off_site(engine, at.service, at.host, place, &mut catalogue).await;
    Ok((catalogue, not_off_site))
}

/// The limits in force for a service.
pub(crate) fn limits(engine: &Engine, service: &str) -> Result<BTreeMap<Cadence, Span>> {
    let config = engine.service(service)?;
    Ok(Cadence::CALENDAR.into_iter().filter_map(|c| Some((c, engine.config.max_age(config, c)?))).collect())
}

/// Judges one service at one destination.
pub(crate) fn judge(
    at: &Watched<'_>,
    catalogue: &Catalogue,
    not_off_site: &NotOffSite,
    enabled: impl IntoIterator<Item = Cadence>,
    max_age: &BTreeMap<Cadence, Span>,
    now: DateTime<Utc>,
) -> Checked {
    let seen: Vec<SeenPoint> = catalogue.points.iter().map(seen).collect();
    let mut freshness = freshness::judge(at, &seen, enabled, max_age, now);
    freshness.note_strangers(at, &damaged_manifests(catalogue));
    if not_off_site.points > 0 {
        let repositories: Vec<&str> = not_off_site.repositories.iter().map(String::as_str).collect();
        freshness.note_not_off_site(at, not_off_site.points, &repositories.join(", "));
    }
    let unseen: Vec<&catalogue::Point> = catalogue.points.iter().filter(|p| !p.unseen.is_empty()).collect();
    if let Some(newest) = unseen.last() {
        freshness.note_unseen(at, unseen.len(), &newest.unseen.join("; "));
    }
    checked(at, freshness)
}

fn damaged_manifests(catalogue: &Catalogue) -> Vec<(String, String)> {
    let damaged = catalogue.strangers.iter().filter(|s| s.reason.contains("the manifest"));
    damaged.map(|s| (s.name.clone(), s.reason.clone())).collect()
}

fn seen(point: &catalogue::Point) -> SeenPoint {
    let m = &point.manifest;
    SeenPoint {
        id: m.id.clone(),
        cadence: m.cadence,
        started: m.started,
        stored_bytes: m.stored_bytes(),
        state: m.state,
        missing: point.lacks(),
        base: m.base.clone(),
    }
}

fn unreadable(at: &Watched<'_>, err: &Error) -> Checked {
    checked(at, Freshness::unreadable(at, &err.chain()))
}

fn checked(at: &Watched<'_>, freshness: Freshness) -> Checked {
    Checked {
        host: at.host.to_owned(),
        service: at.service.to_owned(),
        destination: at.destination.to_owned(),
        freshness,
        beyond_rto: false,
        proven_age_seconds: None,
        max_drill_age_seconds: None,
    }
}

/// Judges every host and service in `check.expect`, or, if that is empty, those found at the configured destinations.
/// Cadences and limits are those that the newest point of each names.
pub async fn all_hosts(engine: &Engine) -> Result<Vec<Checked>> {
    let now = engine.clock.now();
    let mut done = Vec::new();
    for place in engine.all_destinations()? {
        let found = match catalogue::hosts(&place).await {
            Ok(found) => found,
            Err(err) => {
                let at = Watched { host: "all hosts", service: "all services", destination: place.name() };
                done.push(unreadable(&at, &err));
                continue;
            }
        };
        let expect = &engine.config.check.expect;
        let here = place.name();
        let expected: BTreeSet<(&String, &str)> = expect
            .iter()
            .flat_map(|(host, all)| all.iter().filter_map(move |s| Some((host, expected_at(s, here)?))))
            .collect();
        let there = found.iter().flat_map(|(host, services)| services.iter().map(move |s| (host, s.as_str())));
        let wanted: BTreeSet<(&String, &str)> = there.chain(expected.iter().copied()).collect();
        for (host, service) in wanted {
            let at = Watched { host, service, destination: place.name() };
            if !expect.is_empty() && !expected.contains(&(host, service)) {
                done.push(checked(&at, Freshness::unexpected(&at)));
                continue;
            }
            let read = catalogue::read(&place, host, service).await;
            let newest = read.as_ref().ok().and_then(|c| c.points.last()).map(|p| p.manifest.limits.clone());
            let own = newest.and_then(|l| l.max_drill_age_seconds).map(Span::from_secs);
            let there = Present::new([(place.name(), &read)]);
            let mut one = match attested(engine, &at, &place, read).await {
                Ok((catalogue, not_off_site)) => judge_by_own_limits(engine, &at, &catalogue, &not_off_site, now),
                Err(err) => unreadable(&at, &err),
            };
            let proofs = records::all(engine, service, host, std::slice::from_ref(&place)).await;
            note_proof(&mut one, &proofs, engine.config.check.max_drill_age.or(own), &there, now);
            done.push(one);
        }
    }
    if done.is_empty() {
        return Err(Error::new(ErrorKind::Config, "there is no destination to look at, or nothing in it")
            .hint("configure `destinations`, and name hosts and services in `check.expect`."));
    }
    Ok(done)
}

/// The service that `expected` (`postgres`, or `postgres@offsite`) says must be at this destination.
fn expected_at<'a>(expected: &'a str, destination: &str) -> Option<&'a str> {
    match expected.split_once('@') {
        None => Some(expected),
        Some((service, at)) => (at == destination).then_some(service),
    }
}

fn judge_by_own_limits(
    engine: &Engine,
    at: &Watched<'_>,
    catalogue: &Catalogue,
    not_off_site: &NotOffSite,
    now: DateTime<Utc>,
) -> Checked {
    let newest = catalogue.points.iter().rev().find(|p| p.is_whole());
    let mut max_age: BTreeMap<Cadence, Span> = newest
        .map(|p| p.manifest.limits.max_age_seconds.iter().map(|(c, s)| (*c, Span::from_secs(*s))).collect())
        .unwrap_or_default();
    if max_age.is_empty() {
        max_age.extend(default_max_age(Cadence::Daily).map(|limit| (Cadence::Daily, limit)));
    }
    for (cadence, limit) in &engine.config.check.max_age {
        if let Some(own) = max_age.get_mut(cadence) {
            *own = *limit;
        }
    }
    judge(at, catalogue, not_off_site, max_age.keys().copied().collect::<Vec<_>>(), &max_age, now)
}

/// Writes the status file of one service into its `backup_dir`, whole or not at all, readable by all.
pub fn write_status(dir: &Path, checked: &[&Checked], now: DateTime<Utc>) -> Result<()> {
    let path = dir.join(STATUS_FILE);
    let failed = |e| {
        Error::io(e, format!("could not write {}", path.display()))
            .hint("run as the service's user or as root, and see that `backup_dir` exists.")
    };
    let mut file = tempfile::Builder::new().prefix(".status-").tempfile_in(dir).map_err(failed)?;
    file.write_all(status_text(checked, now).as_bytes()).map_err(failed)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    let written = file.persist(&path).map_err(|e| failed(e.error));
    crate::privilege::adopt(&path).map_err(failed)?;
    written.map(drop)
}

/// The lines of a status file.
pub fn status_text(checked: &[&Checked], now: DateTime<Utc>) -> String {
    let mut text =
        format!("# checked {} by backstay {}\n", now.format("%Y-%m-%d %H:%M:%S UTC"), env!("CARGO_PKG_VERSION"));
    for one in checked {
        for line in &one.freshness.lines {
            text.push_str(&format!("{line}\n"));
        }
    }
    text
}

/// The worst state of all.
pub fn worst(checked: &[Checked]) -> State {
    checked.iter().map(|c| c.freshness.state).max().unwrap_or(State::Unknown)
}

/// One line for Nagios, with performance data: the age in seconds of the newest point per judgement.
pub fn nagios_line(checked: &[Checked]) -> String {
    let state = worst(checked);
    let word = match state {
        State::Ok if checked.iter().any(|c| c.beyond_rto) => "WARNING",
        State::Ok => "OK",
        State::Alert => "CRITICAL",
        State::Unknown => "UNKNOWN",
    };
    let bad: Vec<String> = checked
        .iter()
        .filter(|c| c.freshness.state != State::Ok)
        .map(|c| format!("{} {} at {}: {}", c.host, c.service, c.destination, c.freshness.summary()))
        .collect();
    let slow: Vec<&str> = checked.iter().filter(|c| c.beyond_rto).map(|c| c.service.as_str()).collect();
    let checks: usize = checked.iter().map(|c| c.freshness.lines.len()).sum();
    let plural = if checks == 1 { "" } else { "s" };
    let text = match (bad.is_empty(), slow.is_empty()) {
        (false, _) => bad.join("; "),
        (true, true) => format!("{checks} check{plural}, all fresh"),
        (true, false) => {
            format!("{checks} check{plural}, all fresh; a restore takes longer than accepted: {}", slow.join(", "))
        }
    };
    // A label stands for one series: hosts may have services of the same name.
    let several = checked.iter().any(|c| c.host != checked[0].host);
    let drills = checked.iter().filter_map(|c| {
        let limit = c.max_drill_age_seconds.map_or(String::new(), |s| s.to_string());
        let host = if several { format!("{}_", c.host) } else { String::new() };
        Some(format!("'{host}{}_drill_{}'={}s;;{limit}", c.service, c.destination, c.proven_age_seconds?.max(0)))
    });
    let perf: Vec<String> = checked
        .iter()
        .flat_map(|c| {
            c.freshness.lines.iter().filter_map(move |l| {
                let host = if several { format!("{}_", c.host) } else { String::new() };
                let label = format!("{host}{}_{}_{}", c.service, l.cadence?, c.destination);
                Some(format!(
                    "'{label}'={}s;;{}",
                    l.age_seconds?.max(0),
                    l.limit_seconds.map_or(String::new(), |s| s.to_string())
                ))
            })
        })
        .chain(drills)
        .collect();
    format!(
        "BACKSTAY {word} - {}{}",
        text.replace('|', "/"),
        if perf.is_empty() { String::new() } else { format!(" | {}", perf.join(" ")) }
    )
}
