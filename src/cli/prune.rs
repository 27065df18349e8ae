//! `backstay prune`: what retention decides, and carrying it out.

use serde_json::json;

use super::PruneArgs;
use super::app::App;
use super::backup::selected;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::held;
use crate::lock::Lock;
use crate::prune::{self, Policy, Pruned};
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
    let policy = Policy { calendar: engine.calendar()?, now, agent_id: &agent_id };
    let host = engine.host()?;
    let places = engine.places(service)?;
    let catalogues = engine.catalogues(&places, &host, service).await;
    let mut failures = 0;
    for (place, found) in places.iter().zip(&catalogues) {
        let found = match found {
            Ok(found) => found,
            Err(err) => {
                app.complain(err);
                failures += 1;
                continue;
            }
        };
        let done = match dry_run {
            true => Pruned { decisions: prune::decide(place, found, &policy), ..Pruned::default() },
            false => prune::apply(place, found, &policy).await,
        };
        show(app, engine, service, place.name(), &done, dry_run);
    }
    let keeps = engine.service(service)?.repository_keeps();
    let repositories = if keeps.is_empty() { Vec::new() } else { held::ask(engine, service).await? };
    for (repository, keep) in repositories.iter().filter_map(|r| Some((r, keeps.get(&r.name)?))) {
        if let Err(err) = &repository.held {
            app.complain(err);
            failures += 1;
            continue;
        }
        let done = match dry_run {
            true => Pruned { decisions: held::decide(repository, keep, &catalogues, &policy), ..Pruned::default() },
            false => held::prune(engine, service, repository, keep, &catalogues, &policy).await,
        };
        show(app, engine, service, &format!("repository {}", repository.name), &done, dry_run);
    }
    Ok(failures)
}

fn show(app: &App, engine: &Engine, service: &str, at: &str, done: &Pruned, dry_run: bool) {
    app.say(format!("{service} at {at}:"));
    for d in &done.decisions {
        let word = if d.action == Action::Keep { "keep" } else { "remove" };
        app.emit(&json!({"message_type": "decision", "service": service, "destination": at,
            "id": d.id, "action": d.action, "reason": d.reason, "dry_run": dry_run}));
        app.say(format!("  {word:6}  {}  {}", d.id, d.reason));
    }
    if !dry_run {
        for problem in &done.problems {
            engine.monitor.warn(&format!("{service} at {at}: {problem}"));
        }
        app.emit(&json!({"message_type": "pruned", "service": service, "destination": at,
            "removed": done.removed, "problems": done.problems}));
    }
}
