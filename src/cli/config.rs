//! `backstay config check | show | schema`.

use std::io::Read as _;
use std::path::Path;

use super::app::App;
use super::{ConfigArgs, ConfigCheckArgs, ConfigCommand};
use crate::config::{Config, parse, show};
use crate::error::{Error, ErrorKind, Result};

/// Most bytes that are read from standard input: far beyond any configuration.
const STDIN_LIMIT_BYTES: u64 = 16 << 20;

/// Checks or prints the configuration.
pub async fn run(app: &App, args: &ConfigArgs) -> Result<()> {
    match &args.command {
        ConfigCommand::Check(check) => run_check(app, check).await,
        ConfigCommand::Show => {
            app.out.text(shown(app, &app.config()?)?);
            Ok(())
        }
        ConfigCommand::Schema => {
            app.out.text(show::schema()?);
            Ok(())
        }
    }
}

fn shown(app: &App, config: &Config) -> Result<String> {
    if app.json {
        let value = serde_json::json!({"message_type": "config", "config": show::value(config)?});
        return Ok(format!("{value}\n"));
    }
    show::effective(config)
}

async fn run_check(app: &App, args: &ConfigCheckArgs) -> Result<()> {
    let (config, name) = match &args.file {
        None => (app.config()?, app.config_path().display().to_string()),
        Some(path) if path == Path::new("-") => {
            let text = read_stdin(app).await?;
            (parse::from_text(&text, "<stdin>")?, "<stdin>".to_owned())
        }
        Some(path) => (parse::load_one(path)?, path.display().to_string()),
    };
    let (services, destinations) = (config.services.len(), config.destinations.len());
    app.say(format_args!("{name}: ok, {services} services, {destinations} destinations"));
    app.emit(&serde_json::json!({
        "message_type": "config_check", "file": name, "services": services, "destinations": destinations,
    }));
    Ok(())
}

/// A person who typed `-` by mistake can still stop it: the read itself cannot be interrupted, but it is left behind.
async fn read_stdin(app: &App) -> Result<String> {
    let read = tokio::task::spawn_blocking(|| {
        let mut text = String::new();
        std::io::stdin().take(STDIN_LIMIT_BYTES).read_to_string(&mut text).map(|_| text)
    });
    tokio::select! {
        text = read => text
            .unwrap_or_else(|e| Err(std::io::Error::other(e)))
            .map_err(|e| Error::io(e, "could not read standard input")),
        () = app.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "stopped by a signal")),
    }
}
