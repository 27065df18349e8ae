//! `backstay prune`: what retention decides, and carrying it out.

use serde_json::json;

use super::PruneArgs;
use super::app::App;
use super::backup::selected;
use crate::drill::records;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::held;
use crate::legacy::points;
use crate::lock::Lock;
use crate::prune::{self, Policy, Pruned};
use crate::retention::Action;
use crate::units::Span;

/// Prunes every place of the services asked for.
pub async fn run(app: &App, args: &PruneArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?;
    let mut failures = 0;
    if let Some(id) = &args.point {
        return named(app, &engine, args, id).await;
    }
    for service in selected(&engine, &args.services)? {
        if let Some(age) = args.legacy_older_than {
            failures += older(app, &engine, &service, args, age).await?;
            continue;
        }
        failures += one(app, &engine, &service, args).await?;
    }
    match failures {
        0 => Ok(()),
        n => Err(Error::new(ErrorKind::Incomplete, format!("not everything could be pruned at {n} places"))
            .hint("what stands above says why; the next prune goes on with it.")),
    }
}

/// Removes one point wherever it is; each place is asked, whatever another said.
async fn named(app: &App, engine: &Engine, args: &PruneArgs, id: &str) -> Result<()> {
    let [service] = args.services.as_slice() else {
        return Err(Error::new(ErrorKind::Usage, "--point wants the service that the restore point belongs to")
            .hint(format!("write: backstay prune SERVICE --point {id}")));
    };
    engine.service(service)?;
    let now = engine.clock.now();
    let _lock = Lock::take(&engine.service_dir(service), service, now)?;
    let agent_id = engine.agent_id()?;
    let policy = Policy { calendar: engine.calendar()?, now, agent_id: &agent_id, proven: &[] };
    let mut failures = Vec::new();
    let mut removed = 0;
    let places = engine.places_from(service, args.from.as_deref())?;
    let catalogues = engine.catalogues(&places, &engine.host()?, service).await;
    for (place, found) in places.iter().zip(catalogues) {
        let outcome = async {
            let found = found?;
            let point = prune::removable(place, &found, id, &policy)?;
            if args.dry_run { Ok(()) } else { prune::remove_named(place, point).await }
        };
        match outcome.await {
            Ok(()) => {
                removed += 1;
                let word = if args.dry_run { "would be removed" } else { "removed" };
                app.emit(&json!({"message_type": "pruned", "service": service, "destination": place.name(),
                    "removed": [id], "problems": [], "dry_run": args.dry_run}));
                app.say(format!("{id} at {}: {word}", place.name()));
            }
            Err(err) => failures.push(err),
        }
    }
    // That a place does not have it is what was wanted, if another one had it.
    failures.retain(|e| removed == 0 || e.kind != ErrorKind::NotFound);
    match failures.len() {
        0 => Ok(()),
        _ if failures.iter().all(|e| e.kind == ErrorKind::NotFound) => {
            Err(Error::new(ErrorKind::NotFound, format!("service {service:?} has no restore point {id:?}"))
                .hint(format!("`backstay list {service}` shows those there are.")))
        }
        _ => {
            failures.retain(|e| e.kind != ErrorKind::NotFound);
            let last = failures.remove(0);
            failures.iter().for_each(|e| app.complain(e));
            Err(last)
        }
    }
}

/// Removes backups of the older system that have outlived `age`; at how many places it could not.
async fn older(app: &App, engine: &Engine, service: &str, args: &PruneArgs, age: Span) -> Result<usize> {
    let now = engine.clock.now();
    let _lock = (!args.dry_run).then(|| Lock::take(&engine.service_dir(service), service, now)).transpose()?;
    let places = engine.places_from(service, args.from.as_deref())?;
    let host = engine.host()?;
    let catalogues = engine.catalogues(&places, &host, service).await;
    let mut failures = 0;
    for (place, catalogue) in places.iter().zip(catalogues) {
        let outcome = async {
            let mut found = points::find(engine, service, place).await?;
            found.retain(|l| l.name.may_be_of(&host));
            let doomed = points::outlived(found, &catalogue?, age.0, now)?;
            for legacy in &doomed {
                if !args.dry_run {
                    place.destination.delete(&legacy.at).await?;
                }
                let word = if args.dry_run { "would be removed" } else { "removed" };
                app.say(format!("{} at {}: {word}", legacy.id, place.name()));
            }
            if doomed.is_empty() {
                app.say(format!("{service} at {}: no backup of the older system is older than {age}", place.name()));
            }
            let ids: Vec<&str> = doomed.iter().map(|l| l.id.as_str()).collect();
            app.emit(&json!({"message_type": "pruned", "service": service, "destination": place.name(),
                "removed": ids, "problems": [], "dry_run": args.dry_run}));
            Ok(())
        };
        if let Err(err) = outcome.await {
            app.complain(&Error::within(err, format!("{service} at {}: older backups were not removed", place.name())));
            failures += 1;
        }
    }
    Ok(failures)
}

async fn one(app: &App, engine: &Engine, service: &str, args: &PruneArgs) -> Result<usize> {
    let dry_run = args.dry_run;
    let now = engine.clock.now();
    let _lock = match dry_run {
        true => None,
        false => Some(Lock::take(&engine.service_dir(service), service, now)?),
    };
    let agent_id = engine.agent_id()?;
    let host = engine.host()?;
    let places = engine.places_from(service, args.from.as_deref())?;
    let catalogues = engine.catalogues(&places, &host, service).await;
    let proven = records::all(engine, service, &host, &places).await.to_protect();
    let policy = Policy { calendar: engine.calendar()?, now, agent_id: &agent_id, proven: &proven };
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
        failures += usize::from(!done.problems.is_empty());
        show(app, engine, service, place.name(), &done, dry_run);
    }
    if args.from.is_some() {
        // What other places hold decides on snapshots too.
        return Ok(failures);
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
        failures += usize::from(!done.problems.is_empty());
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
