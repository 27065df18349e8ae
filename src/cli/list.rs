//! `backstay list`: what can be gone back to, where it lies, what state it is in.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::json;

use super::ListArgs;
use super::app::App;
use super::backup::selected;
use crate::catalogue::{self, Catalogue, Place, Point};
use crate::drill::records;
use crate::engine::Engine;
use crate::error::Result;
use crate::legacy::points::{self, Legacy};
use crate::manifest::State;
use crate::proof::{Outcome, Proofs, Record};
use crate::units::{Bytes, human_age};

/// Lists restore points.
pub async fn run(app: &App, args: &ListArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?;
    let mut failure = None;
    let mut groups = Vec::new();
    for service in selected(&engine, &args.services)? {
        let (mut found, mut legacy) = (Vec::new(), Vec::new());
        for place in engine.places_from(&service, args.from.as_deref())? {
            match read(&engine, &place, args, &service).await {
                Ok(Read { catalogues, legacy: older }) => {
                    found.extend(catalogues.into_iter().map(|(host, c)| (host, place.clone(), c)));
                    emit_legacy(app, &service, &place, &older, engine.clock.now());
                    legacy.push((place, older));
                }
                Err(err) => {
                    app.complain(&err);
                    failure = Some(err);
                }
            }
        }
        let places: Vec<Place> = found.iter().map(|(_, place, _)| place.clone()).collect();
        let mut proofs = BTreeMap::new();
        for (host, place, catalogue) in &found {
            if !proofs.contains_key(host) {
                proofs.insert(host.clone(), records::all(&engine, &service, host, &places).await);
            }
            emit(app, &engine, place, catalogue, &proofs[host]);
        }
        let mut of_service = Group::of(&service, &found, &proofs, engine.clock.now());
        let host = args.host.clone().map_or_else(|| engine.host(), Ok)?;
        for (place, older) in &legacy {
            older
                .iter()
                .for_each(|l| Group::add_legacy(&mut of_service, (&service, &host), place, l, engine.clock.now()));
        }
        groups.extend(of_service);
    }
    if groups.is_empty() && failure.is_none() {
        app.say("no restore points");
    }
    print(app, &groups);
    failure.map_or(Ok(()), |e| Err(e.within("not everything could be listed")))
}

/// What one place holds of a service.
struct Read {
    /// By host.
    catalogues: Vec<(String, Catalogue)>,
    legacy: Vec<Legacy>,
}

async fn read(engine: &Engine, place: &Place, args: &ListArgs, service: &str) -> Result<Read> {
    let wanted = args.host.clone().map_or_else(|| engine.host(), Ok)?;
    let mut legacy = points::find(engine, service, place).await?;
    legacy.retain(|l| args.all_hosts || l.name.may_be_of(&wanted));
    let mut catalogues = Vec::new();
    for host in hosts(engine, place, args, service).await? {
        let read_here = engine.catalogues(std::slice::from_ref(place), &host, service).await.pop();
        let mut catalogue = read_here.unwrap_or_else(|| Ok(Catalogue::default()))?;
        // A service's own directory is not divided by host.
        catalogue.points.retain(|p| args.host.as_ref().is_none_or(|host| &p.manifest.host == host));
        catalogue.strangers.retain(|s| !legacy.iter().any(|l| l.at.key == s.name));
        catalogues.push((host, catalogue));
    }
    Ok(Read { catalogues, legacy })
}

async fn hosts(engine: &Engine, place: &Place, args: &ListArgs, service: &str) -> Result<Vec<String>> {
    if args.all_hosts && place.layout.hosts_root().is_some() {
        let found = catalogue::hosts(place).await?;
        return Ok(found.into_iter().filter(|(_, s)| s.iter().any(|n| n == service)).map(|(h, _)| h).collect());
    }
    Ok(vec![args.host.clone().map_or_else(|| engine.host(), Ok)?])
}

/// The points of one service of one host, for a person.
#[derive(Debug)]
struct Group {
    title: String,
    rows: Vec<Row>,
    remarks: Vec<String>,
}

/// One point, wherever it lies.
#[derive(Debug)]
struct Row {
    started: DateTime<Utc>,
    id: String,
    age: String,
    stored: String,
    drilled: String,
    /// Places with the state there.
    at: Vec<(String, (&'static str, String))>,
}

impl Group {
    /// One for each host, in the order of their names.
    fn of(
        service: &str,
        found: &[(String, Place, Catalogue)],
        proofs: &BTreeMap<String, Proofs>,
        now: DateTime<Utc>,
    ) -> Vec<Self> {
        let mut groups: BTreeMap<&str, Self> = BTreeMap::new();
        let new = |host| Self { title: format!("{service} on {host}"), rows: Vec::new(), remarks: Vec::new() };
        for (host, place, catalogue) in found {
            // A service's own directory may also hold points of a host that had another name.
            for point in &catalogue.points {
                let record = proofs.get(host).and_then(|p| p.of(&point.manifest.id));
                let host = &point.manifest.host;
                groups.entry(host).or_insert_with(|| new(host)).add(place, point, record, now);
            }
            let group = groups.entry(host).or_insert_with(|| new(host));
            for stranger in &catalogue.strangers {
                group.remarks.push(format!("{}: {} is left alone: {}", place.name(), stranger.name, stranger.reason));
            }
            for orphan in &catalogue.orphans {
                let text = "has no manifest: an unfinished or removed point";
                group.remarks.push(format!("{}: {} {text}", place.name(), orphan.name));
            }
        }
        let mut groups: Vec<Self> = groups.into_values().collect();
        groups.iter_mut().for_each(|g| g.rows.sort_by(|a, b| (b.started, &b.id).cmp(&(a.started, &a.id))));
        groups
    }

    fn add(&mut self, place: &Place, point: &Point, record: Option<&Record>, now: DateTime<Utc>) {
        let m = &point.manifest;
        let at = (place.name().to_owned(), state_for_people(point));
        if let Some(row) = self.rows.iter_mut().find(|r| r.id == m.id) {
            row.at.push(at);
            return;
        }
        let age = (now - m.started).num_seconds();
        self.rows.push(Row {
            started: m.started,
            id: m.id.clone(),
            age: if age < 0 { format!("in {}", human_age(-age)) } else { human_age(age) },
            stored: Bytes(m.stored_bytes()).to_string(),
            drilled: record.map_or_else(|| "-".to_owned(), |r| drill_text(r, now)),
            at: vec![at],
        });
    }

    /// Adds an old backup to the group of its host, where its name says one, else to that of `host`.
    fn add_legacy(
        groups: &mut Vec<Self>,
        (service, host): (&str, &str),
        place: &Place,
        legacy: &Legacy,
        now: DateTime<Utc>,
    ) {
        let host = legacy.name.host.as_deref().filter(|_| !legacy.name.may_be_of(host)).unwrap_or(host);
        let title = format!("{service} on {host}");
        let at = groups.iter().position(|g| g.title == title).unwrap_or_else(|| {
            groups.push(Self { title, rows: Vec::new(), remarks: Vec::new() });
            groups.len() - 1
        });
        let state = if legacy.is_empty() { "EMPTY".to_owned() } else { String::new() };
        let at_place = (place.name().to_owned(), ("legacy", state));
        let rows = &mut groups[at].rows;
        match rows.iter_mut().find(|r| r.id == legacy.id) {
            Some(row) => row.at.push(at_place),
            None => rows.push(Row {
                started: legacy.taken.unwrap_or_default(),
                id: legacy.id.clone(),
                age: legacy.taken.map_or_else(|| "?".to_owned(), |t| human_age((now - t).num_seconds())),
                stored: Bytes(legacy.bytes).to_string(),
                drilled: "-".to_owned(),
                at: vec![at_place],
            }),
        }
        rows.sort_by(|a, b| (b.started, &b.id).cmp(&(a.started, &a.id)));
    }
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let places: Vec<&str> = self.at.iter().map(|(place, _)| place.as_str()).collect();
        let same = self.at.iter().all(|(_, state)| *state == self.at[0].1);
        let states = if same { &self.at[..1] } else { &self.at[..] };
        let states = states.iter().map(|(place, (word, why))| {
            let at = if same { String::new() } else { format!(" at {place}") };
            if why.is_empty() { format!("{word}{at}") } else { format!("{word}{at}: {why}") }
        });
        let states: Vec<String> = states.collect();
        let drilled = self.drilled.clone();
        [format!("  {}", self.id), self.age.clone(), self.stored.clone(), places.join(", "), drilled, states.join("; ")]
    }
}

/// A word, and why it is not good.
fn state_for_people(point: &Point) -> (&'static str, String) {
    let m = &point.manifest;
    let missing = point.lacks();
    match m.state {
        _ if !missing.is_empty() => ("INCOMPLETE", missing.join(", ")),
        _ if !point.unseen.is_empty() => ("UNKNOWN", point.unseen.join(", ")),
        State::Complete => {
            let accepted = m.accepted.map(|_| "accepted by hand");
            let thaw = (!point.archived.is_empty()).then_some("needs thaw");
            ("complete", accepted.into_iter().chain(thaw).collect::<Vec<_>>().join(", "))
        }
        State::Suspect => ("SUSPECT", m.suspect_reasons.join(", ")),
    }
}

/// A block for each group, newest point first, all of them with the same columns; no column on drills before the first.
fn print(app: &App, groups: &[Group]) {
    let header = |g: &Group| [&g.title, "AGE", "STORED", "AT", "DRILLED", "STATE"].map(str::to_owned);
    let drilled = groups.iter().flat_map(|g| &g.rows).any(|r| r.drilled != "-");
    let shown = |column: &usize| drilled || *column != 4;
    let all = || groups.iter().flat_map(|g| std::iter::once(header(g)).chain(g.rows.iter().map(Row::cells)));
    let widths: Vec<usize> = (0..6).map(|i| all().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
    for (n, group) in groups.iter().enumerate() {
        if n > 0 {
            app.say("");
        }
        if group.rows.is_empty() {
            app.say(format!("{}: no restore points", group.title));
        } else {
            for row in std::iter::once(header(group)).chain(group.rows.iter().map(Row::cells)) {
                let cell = |i: usize| format!("{:w$}", row[i], w = widths[i]);
                let line: Vec<String> = (0..6).filter(shown).map(cell).collect();
                app.say(line.join("  ").trim_end());
            }
        }
        group.remarks.iter().for_each(|r| app.say(format!("  {r}")));
    }
}

/// A line for each point at each place, oldest first, for programs.
fn emit(app: &App, engine: &Engine, place: &Place, found: &Catalogue, proofs: &Proofs) {
    let now = engine.clock.now();
    for point in &found.points {
        let m = &point.manifest;
        let state = match m.state {
            _ if !point.is_whole() => "incomplete",
            _ if !point.unseen.is_empty() => "unknown",
            State::Complete => "complete",
            State::Suspect => "suspect",
        };
        let drill = proofs.of(&m.id).map(|r| {
            json!({"result": r.result, "finished": r.finished, "destination": r.destination,
                "age_seconds": (now - r.finished).num_seconds(), "total_seconds": r.total_seconds})
        });
        app.emit(&json!({
            "message_type": "restore_point", "id": m.id, "service": m.service, "host": m.host, "destination": place.name(),
            "cadence": m.cadence, "kind": m.kind, "method": m.method, "started": m.started,
            "age_seconds": (now - m.started).num_seconds(), "plain_bytes": m.plain_bytes(),
            "stored_bytes": m.stored_bytes(), "state": state, "suspect_reasons": m.suspect_reasons,
            "missing": point.missing.iter().map(|m| &m.name).chain(&point.gone).collect::<Vec<_>>(), "unseen": point.unseen,
            "external": m.external,
            "needs_thaw": !point.archived.is_empty(),
            "encrypted": m.artefacts.iter().any(|a| !a.recipients.is_empty()),
            "agent_id": m.agent.id, "warnings": m.warnings, "drill": drill,
        }));
    }
    for stranger in &found.strangers {
        app.emit(&json!({"message_type": "stranger", "destination": place.name(), "name": stranger.name, "reason": stranger.reason}));
    }
    for orphan in &found.orphans {
        app.emit(
            &json!({"message_type": "orphan", "destination": place.name(), "name": orphan.name, "begun": orphan.begun}),
        );
    }
}

/// A line for each old backup, oldest first.
fn emit_legacy(app: &App, service: &str, place: &Place, found: &[Legacy], now: DateTime<Utc>) {
    for legacy in found {
        app.emit(&json!({
            "message_type": "legacy", "id": legacy.id, "service": service, "destination": place.name(),
            "cadence": legacy.name.cadence, "method": if legacy.name.is_dump { "dump" } else { "files" },
            "host": legacy.name.host, "taken": legacy.taken,
            "age_seconds": legacy.taken.map(|t| (now - t).num_seconds()), "stored_bytes": legacy.bytes,
            "state": if legacy.is_empty() { "empty" } else { "legacy" },
        }));
    }
}

fn drill_text(record: &Record, now: DateTime<Utc>) -> String {
    let age = human_age((now - record.finished).num_seconds());
    match record.result {
        Outcome::Proven => format!("proven {age} ago"),
        Outcome::Damaged => format!("DAMAGED {age} ago"),
        Outcome::Failed => format!("failed {age} ago"),
    }
}
