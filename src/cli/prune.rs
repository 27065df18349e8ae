//! `backstay prune`: what retention decides, and carrying it out.

use serde_json::json;

use super::PruneArgs;
use super::app::App;
use super::backup::selected;
use crate::catalogue;
use crate::drill::records;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Lock;
use crate::prune::{self, Policy};
use crate::retention::Action;

/// Prunes every place of the services asked for.
pub async fn run(app: &App, args: &PruneArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?;
    let mut failures = 0;
    for service in selected(&engine, &args.services)? {
        failures += one(app, &engine, &service, args.dry_run).await?;
    }
    match failures {
        0 => Ok(()),
        n => Err(Error::new(ErrorKind::Incomplete, format!("{n} places could not be read, nothing was removed there"))),
    }
}

async fn one(app: &App, engine: &Engine, service: &str, dry_run: bool) -> Result<usize> {
    let now = engine.clock.now();
    let _lock = match dry_run {
        true => None,
        false => Some(Lock::take(&engine.service_dir(service), service, now)?),
    };
    let agent_id = engine.agent_id()?;
    let host = engine.host()?;
    let places = engine.places(service)?;
    let proven = records::all(engine, service, &host, &places).await.to_protect();
    let policy = Policy { calendar: engine.calendar()?, now, agent_id: &agent_id, proven: &proven };
    let mut failures = 0;
    for place in places {
        let found = match catalogue::read(&place, &host, service).await {
            Ok(found) => found,
            Err(err) => {
                app.complain(&err);
                failures += 1;
                continue;
            }
        };
        let decisions = prune::decide(&place, &found, &policy);
        app.say(format!("{service} at {}:", place.name()));
        for d in &decisions {
            let word = if d.action == Action::Keep { "keep" } else { "remove" };
            app.emit(&json!({"message_type": "decision", "service": service, "destination": place.name(),
                "id": d.id, "action": d.action, "reason": d.reason, "dry_run": dry_run}));
            app.say(format!("  {word:6}  {}  {}", d.id, d.reason));
        }
        if !dry_run {
            let done = prune::apply(&place, &found, &policy).await;
            for problem in &done.problems {
                engine.monitor.warn(&format!("{} at {}: {problem}", service, place.name()));
            }
            app.emit(&json!({"message_type": "pruned", "service": service, "destination": place.name(),
                "removed": done.removed, "problems": done.problems}));
        }
    }
    Ok(failures)
}
