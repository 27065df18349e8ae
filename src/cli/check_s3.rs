//! `backstay check-s3`: freshness from the bucket, status files, mail, and an answer for Nagios.

use std::path::PathBuf;

use serde_json::json;

use super::CheckS3Args;
use super::app::App;
use super::backup::selected;
use crate::check::{self, Checked};
use crate::engine::{Engine, write_private};
use crate::error::{Error, Result};
use crate::freshness::{State, Watched};
use crate::notify::mail::Mailer;
use crate::notify::state::{AlarmState, Observation, advance};
use crate::{notify, privilege};

/// Checks, writes status files, sends mail.
pub async fn run(app: &App, args: &CheckS3Args) -> Result<()> {
    let engine = app.engine(app.config()?)?;
    let checked = if args.all_hosts {
        check::all_hosts(&engine).await?
    } else {
        check::this_host(&engine, &selected(&engine, &args.services)?).await?
    };
    for one in &checked {
        app.emit(&json!({"message_type": "freshness", "host": one.host, "service": one.service,
            "destination": one.destination, "freshness": one.freshness}));
    }
    if check::worst(&checked) != State::Ok || !app.quiet {
        print(app, &checked);
    }
    let mut code = match check::worst(&checked) {
        State::Ok => u8::from(checked.iter().any(|c| c.beyond_rto)),
        State::Alert => 2,
        State::Unknown => 3,
    };
    // What could not be told is a warning of its own, and never hides what was found.
    for err in tell(app, &engine, args, &checked).await {
        app.complain(&err);
        code = code.max(1);
    }
    app.set_status(code);
    Ok(())
}

fn print(app: &App, checked: &[Checked]) {
    if app.json {
        return;
    }
    app.out.line(check::nagios_line(checked));
    for one in checked {
        for line in &one.freshness.lines {
            app.out.line(line);
        }
    }
}

async fn tell(app: &App, engine: &Engine, args: &CheckS3Args, checked: &[Checked]) -> Vec<Error> {
    let mut failures = Vec::new();
    if !args.all_hosts {
        failures.extend(write_status_files(engine, checked));
    }
    failures.extend(write_metrics(engine, args, checked).err());
    failures.extend(mail(app, engine, args, checked).await.err());
    failures
}

fn write_status_files(engine: &Engine, checked: &[Checked]) -> Vec<Error> {
    let now = engine.clock.now();
    let services = engine.config.services.iter().filter_map(|(n, s)| Some((n, s.backup_dir.as_ref()?)));
    services
        .filter_map(|(name, dir)| {
            let mine: Vec<&Checked> = checked.iter().filter(|c| &c.service == name).collect();
            if mine.is_empty() { None } else { check::write_status(dir, &mine, now).err() }
        })
        .collect()
}

/// A check of some services only would drop the others from the file.
fn write_metrics(engine: &Engine, args: &CheckS3Args, checked: &[Checked]) -> Result<()> {
    match &engine.config.check.metrics_file {
        Some(path) if args.services.is_empty() => check::metrics::write(path, checked, engine.clock.now()),
        _ => Ok(()),
    }
}

fn alarm_file(engine: &Engine, args: &CheckS3Args) -> PathBuf {
    let name = if args.all_hosts { "alarms-all-hosts.json" } else { "alarms.json" };
    engine.config.state_dir.join(name)
}

async fn mail(app: &App, engine: &Engine, args: &CheckS3Args, checked: &[Checked]) -> Result<()> {
    if engine.config.check.email.is_empty() {
        return Ok(());
    }
    let now = engine.clock.now();
    let path = alarm_file(engine, args);
    let before = match std::fs::read_to_string(&path) {
        Ok(text) => AlarmState::from_json(&text).unwrap_or_else(|err| {
            // A damaged memory must not silence an alarm: everything is told again.
            app.complain(&err);
            AlarmState::default()
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => AlarmState::default(),
        Err(e) => return Err(Error::io(e, format!("could not read {}", path.display()))),
    };
    let seen: Vec<Observation> = checked
        .iter()
        .map(|c| {
            let at = Watched { host: &c.host, service: &c.service, destination: &c.destination };
            Observation::new(&at, &c.freshness)
        })
        .collect();
    let (mut alarms, due) = advance(&before, &seen, now);
    let sent = match due.is_empty() {
        true => Ok(()),
        false => match mailer(engine) {
            Ok(mailer) => notify::deliver(&mailer, &engine.config.check.email, &due, &mut alarms, now).await,
            Err(err) => Err(err),
        },
    };
    let kept = alarms.to_json().and_then(|text| {
        std::fs::create_dir_all(&engine.config.state_dir)
            .and_then(|()| write_private(&path, &text))
            .and_then(|()| privilege::adopt(&path))
            .map_err(|e| Error::io(e, format!("could not write {}", path.display())))
    });
    sent.and(kept)
}

/// The configured way to send mail.
pub fn mailer(engine: &Engine) -> Result<Mailer> {
    let mail = engine.config.mail.as_ref().ok_or_else(|| {
        Error::new(crate::error::ErrorKind::Config, "there is nobody to send mail: `mail` is not configured")
            .hint("add `mail: {smtp: \"smtp://mail.example.com:587\", from: backstay@example.com}`.")
    })?;
    let password = mail.password.as_ref().map(crate::config::secret::SecretRef::load).transpose()?;
    let ca = mail
        .ca_file
        .as_ref()
        .map(|p| std::fs::read(p).map_err(|e| Error::io(e, format!("could not read {}", p.display()))));
    Mailer::new(mail, password.as_ref().map(|p| p.expose()), ca.transpose()?.as_deref())
}
