//! `backstay list`: what can be gone back to, where it lies, what state it is in.

use serde_json::json;

use super::ListArgs;
use super::app::App;
use super::backup::selected;
use crate::catalogue::{self, Catalogue, Place};
use crate::engine::Engine;
use crate::error::Result;
use crate::manifest::State;
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
                let read = engine.catalogues(std::slice::from_ref(&place), &host, &service).await;
                match read.into_iter().next().unwrap_or_else(|| Ok(Catalogue::default())) {
                    Ok(found) => show(app, &engine, &place, &found, &mut table),
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
    rows: Vec<[String; 6]>,
    remarks: Vec<String>,
}

impl Table {
    fn print(&self, app: &App) {
        let header = ["RESTORE POINT", "AT", "AGE", "STORED", "STATE", "HOST"].map(str::to_owned);
        let all = || std::iter::once(&header).chain(&self.rows);
        let widths: Vec<usize> = (0..6).map(|i| all().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
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

fn show(app: &App, engine: &Engine, place: &Place, found: &Catalogue, table: &mut Table) {
    let now = engine.clock.now();
    for point in &found.points {
        let m = &point.manifest;
        let state = match m.state {
            _ if !point.is_whole() => "INCOMPLETE",
            _ if !point.unseen.is_empty() => "UNKNOWN",
            State::Complete => "complete",
            State::Suspect => "suspect",
        };
        let age = (now - m.started).num_seconds();
        app.emit(&json!({
            "message_type": "restore_point", "id": m.id, "service": m.service, "host": m.host, "destination": place.name(),
            "cadence": m.cadence, "kind": m.kind, "method": m.method, "started": m.started, "age_seconds": age,
            "plain_bytes": m.plain_bytes(), "stored_bytes": m.stored_bytes(), "state": state.to_lowercase(),
            "suspect_reasons": m.suspect_reasons, "missing": point.missing, "unseen": point.unseen, "external": m.external,
            "encrypted": m.artefacts.iter().any(|a| !a.recipients.is_empty()),
            "agent_id": m.agent.id, "warnings": m.warnings,
        }));
        if let Some(why) = point.unseen.first().filter(|_| point.is_whole()) {
            let text = format!("{}: whether the snapshots of {} are there is not known: {why}", place.name(), m.id);
            table.remarks.push(text);
        }
        let age = if age < 0 { format!("in {}", human_age(-age)) } else { human_age(age) };
        let size = Bytes(m.stored_bytes()).to_string();
        table.rows.push([m.id.clone(), place.name().to_owned(), age, size, state.to_owned(), m.host.clone()]);
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
