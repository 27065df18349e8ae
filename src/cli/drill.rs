//! `backstay drill`: proves restore points by restoring them.

use serde_json::json;

use super::DrillArgs;
use super::app::{App, counted};
use super::backup::selected;
use crate::drill::{self, Pick, Report, Wanted};
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::parse_id;
use crate::proof::Outcome;
use crate::units::{Bytes, human_age};

/// Drills what is asked for, one service after the other.
pub async fn run(app: &App, args: &DrillArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?.with_identity(args.identity.as_deref())?;
    let (services, id) = split(&engine, args)?;
    let services = selected(&engine, &services)?;
    let total = services.len();
    let mut failures = Vec::new();
    for service in services {
        if app.cancel.is_cancelled() {
            failures.push(Error::new(ErrorKind::Cancelled, format!("the drill of {service:?} was not begun")));
            break;
        }
        let pick = match &id {
            Some(id) => Pick::Id(id.clone()),
            None if args.random => Pick::Random(random()?),
            None => Pick::Newest,
        };
        let wanted = Wanted { pick, from: args.from.clone(), host: args.host.clone(), stream: args.stream };
        let failure = match drill::drill(&engine, &service, &wanted).await {
            Ok(report) => {
                show(app, &report);
                report.failure
            }
            Err(err) => Some(err),
        };
        if let Some(err) = failure {
            if total > 1 {
                app.complain(&err);
            }
            failures.push(err);
        }
    }
    conclude(failures, total)
}

/// Services, or a service and the id of a point.
fn split(engine: &Engine, args: &DrillArgs) -> Result<(Vec<String>, Option<String>)> {
    let mut services = args.services.clone();
    let is_id = |word: &String| !engine.config.services.contains_key(word) && parse_id(word).is_some();
    match services.last() {
        Some(last) if services.len() == 2 && is_id(last) => {
            if args.random {
                return Err(Error::new(ErrorKind::Usage, "a point by its id is not chosen at random")
                    .hint("leave out --random, or the id."));
            }
            let id = services.pop();
            Ok((services, id))
        }
        _ => Ok((services, None)),
    }
}

fn random() -> Result<u64> {
    getrandom::u64().map_err(|e| Error::new(ErrorKind::Io, "no random numbers").caused_by(e.to_string()))
}

/// Damage wins: whatever else went wrong, it must be seen in the exit code.
fn conclude(mut failures: Vec<Error>, total: usize) -> Result<()> {
    match failures.len() {
        0 => Ok(()),
        1 if total == 1 => Err(failures.remove(0)),
        n => {
            let worst = failures.iter().find(|f| f.kind == ErrorKind::Corrupt).unwrap_or(&failures[0]);
            let same = failures.iter().all(|f| f.kind == failures[0].kind) || worst.kind == ErrorKind::Corrupt;
            let kind = if same { worst.kind } else { ErrorKind::Several };
            Err(Error::new(kind, format!("{n} of {total} drills did not go well; their errors stand above")))
        }
    }
}

fn show(app: &App, report: &Report) {
    let record = &report.record;
    if let Ok(serde_json::Value::Object(mut fields)) = serde_json::to_value(record) {
        fields.insert("message_type".into(), json!("drill"));
        fields.insert("beyond_rto".into(), json!(record.is_beyond_rto()));
        fields.insert("warnings".into(), json!(report.warnings));
        app.emit(&serde_json::Value::Object(fields));
    }
    if record.result == Outcome::Proven {
        let age = human_age((record.started - record.point_started).num_seconds());
        app.say(format!(
            "{}: proven from {} in {:.1} s ({age} old, {}){}",
            record.id,
            record.destination,
            record.total_seconds,
            Bytes(record.plain_bytes),
            counted(&record.counts)
        ));
        let s = record.seconds;
        app.say(format!(
            "  seconds: fetch {:.1}, decompress {:.1}, restore {:.1}, start {:.1}, compare {:.1}",
            s.fetch, s.decompress, s.restore, s.start, s.compare
        ));
    }
    record.notes.iter().for_each(|note| app.say(format!("  note: {note}")));
    report.warnings.iter().for_each(|w| app.monitor().warn(&format!("{}: {w}", record.service)));
}
