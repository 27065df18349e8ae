//! `backstay list`: what can be gone back to, where it lies, what state it is in.

use chrono::{DateTime, Utc};
use serde_json::json;

use super::ListArgs;
use super::app::App;
use super::backup::selected;
use crate::catalogue::{self, Catalogue, Place};
use crate::drill::records;
use crate::engine::Engine;
use crate::error::Result;
use crate::manifest::State;
use crate::proof::{Outcome, Proofs, Record};
use crate::units::{Bytes, human_age};

/// Lists restore points.
pub async fn run(app: &App, args: &ListArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?;
    let mut failure = None;
    let mut table = Table::default();
    for service in selected(&engine, &args.services)? {
        for place in engine.places_from(&service, args.from.as_deref())? {
            let hosts = match hosts(&engine, &place, args, &service).await {
                Ok(hosts) => hosts,
                Err(err) => {
                    app.complain(&err);
                    failure = Some(err);
                    continue;
                }
            };
            for host in hosts {
                match catalogue::read(&place, &host, &service).await {
                    Ok(found) => {
                        let proofs = records::all(&engine, &service, &host, std::slice::from_ref(&place)).await;
                        show(app, &engine, &place, &found, &proofs, &mut table);
                    }
                    Err(err) => {
                        app.complain(&err);
                        failure = Some(err);
                    }
                }
            }
        }
    }
    table.print(app);
    failure.map_or(Ok(()), |e| Err(e.within("not everything could be listed")))
}

async fn hosts(engine: &Engine, place: &Place, args: &ListArgs, service: &str) -> Result<Vec<String>> {
    if args.all_hosts && place.layout.hosts_root().is_some() {
        let found = catalogue::hosts(place).await?;
        return Ok(found.into_iter().filter(|(_, s)| s.iter().any(|n| n == service)).map(|(h, _)| h).collect());
    }
    Ok(vec![args.host.clone().map_or_else(|| engine.host(), Ok)?])
}

/// Rows for a person, aligned.
#[derive(Debug, Default)]
struct Table {
    rows: Vec<[String; 7]>,
    remarks: Vec<String>,
}

impl Table {
    fn print(&self, app: &App) {
        let header = ["RESTORE POINT", "AT", "AGE", "STORED", "STATE", "DRILLED", "HOST"].map(str::to_owned);
        let all = || std::iter::once(&header).chain(&self.rows);
        let widths: Vec<usize> = (0..7).map(|i| all().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
        if !self.rows.is_empty() {
            for row in all() {
                let line: Vec<String> = row.iter().zip(&widths).map(|(cell, w)| format!("{cell:w$}")).collect();
                app.say(line.join("  ").trim_end());
            }
        } else if self.remarks.is_empty() {
            app.say("no restore points");
        }
        self.remarks.iter().for_each(|r| app.say(r));
    }
}

fn show(app: &App, engine: &Engine, place: &Place, found: &Catalogue, proofs: &Proofs, table: &mut Table) {
    let now = engine.clock.now();
    for point in &found.points {
        let m = &point.manifest;
        let state = match m.state {
            _ if !point.is_whole() => "INCOMPLETE",
            State::Complete => "complete",
            State::Suspect => "suspect",
        };
        let age = (now - m.started).num_seconds();
        let drilled = proofs.of(&m.id);
        app.emit(&json!({
            "message_type": "restore_point", "id": m.id, "service": m.service, "host": m.host, "destination": place.name(),
            "cadence": m.cadence, "kind": m.kind, "method": m.method, "started": m.started, "age_seconds": age,
            "plain_bytes": m.plain_bytes(), "stored_bytes": m.stored_bytes(), "state": state.to_lowercase(),
            "suspect_reasons": m.suspect_reasons, "missing": point.missing, "encrypted": m.artefacts.iter().any(|a| !a.recipients.is_empty()),
            "agent_id": m.agent.id, "warnings": m.warnings,
            "drill": drilled.map(|r| json!({"result": r.result, "finished": r.finished, "destination": r.destination,
                "age_seconds": (now - r.finished).num_seconds(), "total_seconds": r.total_seconds})),
        }));
        let age = if age < 0 { format!("in {}", human_age(-age)) } else { human_age(age) };
        let size = Bytes(m.stored_bytes()).to_string();
        let drill = drilled.map_or_else(|| "-".to_owned(), |r| drill_text(r, now));
        table.rows.push([m.id.clone(), place.name().to_owned(), age, size, state.to_owned(), drill, m.host.clone()]);
    }
    for stranger in &found.strangers {
        app.emit(&json!({"message_type": "stranger", "destination": place.name(), "name": stranger.name, "reason": stranger.reason}));
        table.remarks.push(format!("{}: {} is left alone: {}", place.name(), stranger.name, stranger.reason));
    }
    for orphan in &found.orphans {
        app.emit(
            &json!({"message_type": "orphan", "destination": place.name(), "name": orphan.name, "begun": orphan.begun}),
        );
        table.remarks.push(format!(
            "{}: {} has no manifest: an unfinished or removed point",
            place.name(),
            orphan.name
        ));
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
