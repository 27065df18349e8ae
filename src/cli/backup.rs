//! `backstay backup`: the services in their order, each as its user.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::json;

use super::BackupArgs;
use super::app::App;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Program;
use crate::run::{self, RunReport, Wanted};
use crate::units::{Bytes, Cadence, human_age};
use crate::{legacy, plan, privilege};

/// This very program, even when an upgrade has put another one in its place since it was started.
const THIS_PROGRAM: &str = "/proc/self/exe";

/// Backs up what is asked for.
pub async fn run(app: &App, args: &BackupArgs) -> Result<()> {
    legacy::refuse(Path::new("/"))?;
    let config = app.config()?;
    let engine = app.engine(config)?;
    let names = selected(&engine, &args.services)?;
    let after: BTreeMap<String, Vec<String>> =
        engine.config.services.iter().map(|(n, s)| (n.clone(), s.after.clone())).collect();
    let mut failures: Vec<Error> = Vec::new();
    let total = names.len();
    for name in plan::order(&names, &after)? {
        if app.cancel.is_cancelled() {
            failures
                .push(Error::new(ErrorKind::Cancelled, format!("service {name:?} was not begun: the run was stopped")));
            break;
        }
        let outcome = match other_user(&engine.config, &name)? {
            Some(user) => as_user(app, args, &engine, &name, &user).await.map(|()| None),
            None => one(app, &engine, &name, args).await,
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(err)) | Err(err) => {
                if total > 1 {
                    app.complain(&err);
                }
                failures.push(err);
            }
        }
    }
    conclude(failures, total)
}

/// The services asked for, or all.
pub fn selected(engine: &Engine, asked: &[String]) -> Result<Vec<String>> {
    for name in asked {
        engine.service(name)?;
    }
    if !asked.is_empty() {
        return Ok(asked.to_vec());
    }
    let all: Vec<String> = engine.config.services.keys().cloned().collect();
    if all.is_empty() {
        return Err(Error::new(ErrorKind::Config, "the configuration names no services")
            .hint("add one below `services:`; README.md has an example."));
    }
    Ok(all)
}

/// One failed cause: its code. Several: 10 if something was stored, else 1.
fn conclude(mut failures: Vec<Error>, total: usize) -> Result<()> {
    match failures.len() {
        0 => Ok(()),
        1 if total == 1 => Err(failures.remove(0)),
        n => {
            let same = failures.iter().all(|f| f.kind == failures[0].kind);
            let stored = n < total || failures.iter().any(|f| f.kind == ErrorKind::Incomplete);
            let kind = match (stored, same) {
                (true, _) => ErrorKind::Incomplete,
                (false, true) => failures[0].kind,
                (false, false) => ErrorKind::Several,
            };
            Err(Error::new(kind, format!("{n} of {total} services did not end well; their errors stand above")))
        }
    }
}

/// The user that a service asks for, if this process is root and must become it.
fn other_user(config: &Config, name: &str) -> Result<Option<nix::unistd::User>> {
    let wanted = config.services.get(name).and_then(|s| s.user.as_deref());
    match wanted {
        Some(user) if privilege::is_root() => {
            let user = privilege::user(user)?;
            Ok((!user.uid.is_root()).then_some(user))
        }
        _ => Ok(None),
    }
}

/// Runs this program again for one service as its user; its output is ours.
async fn as_user(app: &App, args: &BackupArgs, engine: &Engine, name: &str, user: &nix::unistd::User) -> Result<()> {
    engine.agent_id()?;
    let dir = engine.service_dir(name);
    let failed = |e| Error::io(e, format!("could not prepare {}", dir.display()));
    std::fs::create_dir_all(&dir).map_err(failed)?;
    // Under a closed umask the user could not reach its own directory.
    for above in dir.ancestors().skip(1).take_while(|above| above.starts_with(&engine.config.state_dir)) {
        std::fs::set_permissions(above, Permissions::from_mode(0o755)).map_err(failed)?;
    }
    privilege::give(&dir, user.uid, user.gid).map_err(failed)?;
    let mut child = Program::new(THIS_PROGRAM)
        .arg("--config")
        .arg(app.config_path())
        .arg("--become")
        .arg(&user.name)
        .args(["backup", name])
        .env("HOME", &user.dir)
        .env("USER", &user.name)
        .env("LOGNAME", &user.name);
    child = child.args(app.json.then_some("--json")).args(app.quiet.then_some("--quiet"));
    child = child.args(args.dry_run.then_some("--dry-run")).args(args.manual.then_some("--manual"));
    if let Some(cadence) = args.cadence.cadence() {
        child = child.args(["--cadence", cadence.as_str()]);
    }
    let status = child.pass_through(&app.cancel).await?;
    let kind = match status.code() {
        Some(0) => return Ok(()),
        Some(code) => ErrorKind::from_exit_code(u8::try_from(code).unwrap_or(1)),
        None => ErrorKind::Failed,
    };
    Err(Error::new(kind, format!("service {name:?}, as user {}: see the message above ({status})", user.name)))
}

async fn one(app: &App, engine: &Engine, name: &str, args: &BackupArgs) -> Result<Option<Error>> {
    let wanted = match (args.manual, args.cadence.cadence()) {
        (true, _) => Wanted::This(Cadence::Manual),
        (false, Some(cadence)) => Wanted::This(cadence),
        (false, None) => Wanted::Due,
    };
    let report = run::backup(engine, name, wanted, args.dry_run).await?;
    show(app, &report, args.dry_run);
    Ok(report.failure())
}

fn show(app: &App, report: &RunReport, dry_run: bool) {
    let places: Vec<_> = report
        .places
        .iter()
        .map(|p| {
            json!({"name": p.name, "wanted": p.wanted, "whole": report.id.is_some() && p.wanted && p.failure.is_none(),
            "failure": p.failure.as_ref().map(|e| e.chain()), "notes": p.notes})
        })
        .collect();
    app.emit(&json!({
        "message_type": "backup", "service": report.service, "id": report.id, "cadence": report.cadence,
        "reason": report.reason, "dry_run": dry_run, "started": report.started, "finished": report.finished,
        "plain_bytes": report.plain_bytes, "stored_bytes": report.stored_bytes, "counts": report.counts,
        "suspect": report.suspect, "missed": report.missed, "warnings": report.warnings, "places": places,
    }));
    app.say(headline(report, dry_run));
    for warning in &report.warnings {
        app.say(format!("  warning: {warning}"));
    }
    for reason in &report.suspect {
        app.say(format!("  suspect: {reason}"));
    }
    for reason in &report.missed {
        app.say(format!("  missed: {reason}"));
    }
    for place in &report.places {
        match (&report.id, &place.failure) {
            (Some(_), None) if !place.wanted => app.say(format!("  {}: keeps none of this cadence", place.name)),
            (Some(_), None) => app.say(format!("  {}: whole", place.name)),
            (Some(_), Some(err)) => app.say(format!("  {}: FAILED: {}", place.name, err.chain())),
            (None, _) => {}
        }
        for note in &place.notes {
            app.say(format!("  {}: {note}", place.name));
        }
    }
}

fn headline(report: &RunReport, dry_run: bool) -> String {
    let service = &report.service;
    let Some(cadence) = report.cadence else {
        return format!("{service}: nothing is due: {}", report.reason);
    };
    if dry_run {
        let places: Vec<&str> = report.places.iter().map(|p| p.name.as_str()).collect();
        let (places, reason) = (places.join(", "), &report.reason);
        return format!("{service}: would make a {cadence} restore point at {places}: {reason}");
    }
    let id = report.id.as_deref().unwrap_or("none");
    let seconds = (report.finished - report.started).num_seconds();
    format!(
        "{service}: {cadence} restore point {id} in {}: {}, stored as {}",
        human_age(seconds),
        Bytes(report.plain_bytes),
        Bytes(report.stored_bytes)
    )
}
