//! `backstay restore`: shows the choices, says what would happen, restores.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::RestoreArgs;
use super::app::App;
use super::backup::selected;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::legacy::points;
use crate::plan;
use crate::restore::{self, Chosen, Selection};
use crate::source::{RestoreRequest, Restored};
use crate::units::{Bytes, human_age};

/// Restores one point, or says what could be restored and how.
pub async fn run(app: &App, args: &RestoreArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?.with_identity(args.identity.as_deref())?;
    if args.all {
        return plan_all(app, &engine, args).await;
    }
    let Some(service) = &args.service else {
        return choices(app, &engine, &selected(&engine, &[])?, args).await;
    };
    engine.service(service)?;
    if let Some(id) = args.point.as_deref().filter(|id| points::is_id(id)) {
        return legacy(app, &engine, service, id, args).await;
    }
    let Some(wanted) = selection(args) else {
        return choices(app, &engine, std::slice::from_ref(service), args).await;
    };
    let chosen = restore::choose(&engine, service, &wanted).await?;
    if args.plan {
        let plan = restore::plan(&engine, service, &chosen, &request(args)).await?;
        return show_plan(app, &engine, service, &chosen, &plan, 1);
    }
    restore_one(app, &engine, service, &chosen, args).await
}

/// Which point is meant, if one is.
fn selection(args: &RestoreArgs) -> Option<Selection> {
    let id = args.point.clone().filter(|p| p != "latest");
    (args.point.is_some() || args.at.is_some()).then(|| Selection {
        id,
        at: args.at,
        from: args.from.clone(),
        host: args.host.clone(),
    })
}

fn request(args: &RestoreArgs) -> RestoreRequest {
    RestoreRequest {
        to: args.to.clone(),
        replace: args.replace,
        owner: args.owner.clone(),
        database: args.database.clone(),
        rename: args.rename.clone(),
        start: args.start,
        map: args.map.clone(),
        keep_standby: args.keep_standby,
        no_replicator: args.no_replicator,
        only_finish: args.only_finish,
        indices: args.index.clone(),
        aliases: args.aliases,
        global_state: args.global_state,
        allow_partial: args.allow_partial,
        wait: args.wait.map(|w| w.0).or(Some(Duration::from_secs(3600))),
    }
}

async fn restore_one(app: &App, engine: &Engine, service: &str, chosen: &Chosen, args: &RestoreArgs) -> Result<()> {
    let manifest = &chosen.point.manifest;
    let started = engine.clock.now();
    app.say(format!(
        "restoring {} ({} old, {}) from {}",
        manifest.id,
        human_age((started - manifest.started).num_seconds()),
        Bytes(manifest.plain_bytes()),
        chosen.place.name()
    ));
    let restored = restore::restore(engine, service, chosen, &request(args)).await?;
    let seconds = (engine.clock.now() - started).num_seconds();
    let from = (manifest.id.as_str(), chosen.place.name());
    tell(app, service, from, &json!(manifest.counts), (&restored, seconds));
    Ok(())
}

/// Restores a backup that commcare-cloud made.
async fn legacy(app: &App, engine: &Engine, service: &str, id: &str, args: &RestoreArgs) -> Result<()> {
    if args.plan {
        return Err(Error::new(ErrorKind::Usage, "nothing is known of an older backup that a plan could tell")
            .hint(format!("restore it elsewhere: `backstay restore {service} {id} --to DIRECTORY`.")));
    }
    let (place, found) = points::choose(engine, service, id, args.from.as_deref()).await?;
    let started = engine.clock.now();
    let age = found.taken.map_or_else(|| "of an unknown day".to_owned(), |t| format!("of {}", t.format("%Y-%m-%d")));
    let size = Bytes(found.bytes);
    app.say(format!("restoring the older backup {} ({age}, {size} compressed) from {}", found.id, place.name()));
    let mut restored = restore::restore_legacy(engine, service, (&place, &found), &request(args)).await?;
    restored.notes.push("an older backup has no record of what it should hold: nothing was compared".into());
    let seconds = (engine.clock.now() - started).num_seconds();
    tell(app, service, (&found.id, place.name()), &json!(null), (&restored, seconds));
    Ok(())
}

/// Says what was restored; `id` and `place` are where it came from.
fn tell(
    app: &App,
    service: &str,
    (id, place): (&str, &str),
    captured: &serde_json::Value,
    (restored, seconds): (&Restored, i64),
) {
    app.emit(&json!({
        "message_type": "restore", "service": service, "id": id, "from": place,
        "target": restored.target, "seconds": seconds, "counts": restored.counts,
        "captured": captured,
        "old_data": restored.old_data, "notes": restored.notes,
    }));
    let count = |(key, n): (&String, &u64)| if key == "bytes" { Bytes(*n).to_string() } else { format!("{n} {key}") };
    let counts: Vec<String> = restored.counts.iter().map(count).collect();
    let counts = if counts.is_empty() { String::new() } else { format!(": {}", counts.join(", ")) };
    app.say(format!("restored into {} in {}{counts}", restored.target, human_age(seconds)));
    let told = |old: &Path| restored.notes.iter().any(|n| n.contains(&*old.to_string_lossy()));
    if let Some(old) = restored.old_data.as_ref().filter(|old| !told(old)) {
        app.say(format!("  the old data lies in {}", old.display()));
    }
    for note in &restored.notes {
        app.say(format!("  note: {note}"));
    }
}

/// What can be gone back to. Nothing is restored, so this is no success.
async fn choices(app: &App, engine: &Engine, services: &[String], args: &RestoreArgs) -> Result<()> {
    let now = engine.clock.now();
    let mut any = false;
    for service in services {
        let wanted = Selection { from: args.from.clone(), host: args.host.clone(), ..Selection::default() };
        let found = match restore::everywhere(engine, service, &wanted).await {
            Ok(found) => found,
            Err(err) => {
                app.complain(&err);
                continue;
            }
        };
        let mut by_id: BTreeMap<_, (Vec<&str>, &Chosen)> = BTreeMap::new();
        for chosen in found.iter().filter(|c| c.point.is_whole()) {
            let key = (chosen.point.manifest.started, chosen.point.manifest.id.as_str());
            by_id.entry(key).or_insert_with(|| (Vec::new(), chosen)).0.push(chosen.place.name());
        }
        app.say(format!("{service}:"));
        if by_id.is_empty() {
            app.say("  no restore point of this host");
        }
        for ((started, id), (places, chosen)) in by_id.iter().rev() {
            any = true;
            let age = human_age((now - *started).num_seconds());
            let size = Bytes(chosen.point.manifest.plain_bytes());
            let suspect = if chosen.point.manifest.state == crate::manifest::State::Suspect { ", suspect" } else { "" };
            app.emit(&json!({"message_type": "choice", "service": service, "id": id, "started": started,
                "age_seconds": (now - *started).num_seconds(), "destinations": places}));
            let thaw = if chosen.point.archived.is_empty() { "" } else { ", needs thaw" };
            app.say(format!("  {age} old: {id}  ({size}, at {}{suspect}{thaw})", places.join(" and ")));
        }
    }
    let service = args.service.as_deref().unwrap_or("SERVICE");
    let err = Error::new(ErrorKind::Usage, "no restore point was named, so nothing was restored");
    Err(match any {
        true => err.hint(format!("see what would happen: `backstay restore {service} latest --plan`.")),
        false => err.hint("look at another host's points with --host, or at another destination with --from."),
    })
}

fn show_plan(
    app: &App,
    engine: &Engine,
    service: &str,
    chosen: &Chosen,
    plan: &restore::Plan,
    step: usize,
) -> Result<()> {
    let manifest = &chosen.point.manifest;
    let age = (engine.clock.now() - manifest.started).num_seconds();
    app.emit(&json!({
        "message_type": "restore_plan", "step": step, "service": service, "id": manifest.id, "age_seconds": age,
        "from": chosen.place.name(), "stored_bytes": manifest.stored_bytes(), "plain_bytes": manifest.plain_bytes(),
        "target": plan.target, "occupied": plan.occupied, "free_bytes": plan.free_bytes,
        "expected_seconds": plan.expected_seconds, "thaw": plan.thaw, "obstacles": plan.obstacles, "command": plan.command,
    }));
    app.say(format!("{step}. {service}: {}, {} old, from {}", manifest.id, human_age(age), chosen.place.name()));
    let sizes = (Bytes(manifest.stored_bytes()), Bytes(manifest.plain_bytes()));
    app.say(format!("   reads {} and writes {} into {}", sizes.0, sizes.1, plan.target));
    match plan.expected_seconds {
        #[allow(clippy::cast_possible_truncation, reason = "an estimate")]
        Some(seconds) => app.say(format!("   takes about {}, by the last drill", human_age(seconds.ceil() as i64))),
        None if !plan.thaw.is_empty() => {
            app.say("   needs thaw, which takes a store hours: it lies in an archive class. For each object:");
            plan.thaw.iter().for_each(|command| app.say(format!("     {command}")));
        }
        None => app.say("   takes a time that nobody knows: it was never drilled"),
    }
    if let Some(free) = plan.free_bytes {
        app.say(format!("   {} are free there", Bytes(free)));
    }
    if plan.occupied {
        app.say("   there is data: it is moved aside and kept (--replace)");
    }
    plan.obstacles.iter().for_each(|o| app.say(format!("   IN THE WAY: {o}")));
    app.say(format!("   {}", plan.command));
    Ok(())
}

/// The way back after everything was lost: what is captured last is restored first.
async fn plan_all(app: &App, engine: &Engine, args: &RestoreArgs) -> Result<()> {
    let after: BTreeMap<String, Vec<String>> =
        engine.config.services.iter().map(|(n, s)| (n.clone(), s.after.clone())).collect();
    let mut order = plan::order(&selected(engine, &[])?, &after)?;
    order.reverse();
    let mut wanted = selection(args).unwrap_or_default();
    (wanted.from, wanted.host) = (args.from.clone(), args.host.clone());
    let (mut missing, mut sum, mut known) = (Vec::new(), 0.0, true);
    for (at, service) in order.iter().enumerate() {
        match restore::choose(engine, service, &wanted).await {
            Ok(chosen) => {
                let plan = restore::plan(engine, service, &chosen, &request(args)).await?;
                known &= plan.expected_seconds.is_some();
                sum += plan.expected_seconds.unwrap_or(0.0);
                show_plan(app, engine, service, &chosen, &plan, at + 1)?;
            }
            Err(err) => {
                app.say(format!("{}. {service}: CANNOT BE RESTORED: {}", at + 1, err.chain()));
                missing.push(err);
            }
        }
    }
    #[allow(clippy::cast_possible_truncation, reason = "an estimate")]
    if known && missing.is_empty() {
        app.say(format!("in all about {}, one after the other", human_age(sum.ceil() as i64)));
    }
    match missing.len() {
        0 => Ok(()),
        n => {
            let kind = missing[0].kind;
            Err(Error::new(kind, format!("{n} of {} services cannot be restored from here", order.len()))
                .hint("look at another host's points with --host, or at another destination with --from."))
        }
    }
}
