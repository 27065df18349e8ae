//! `backstay demo`: the main job end to end on sample stores, inside one directory. Nothing outside it is touched.

mod postgres;
mod stores;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::catalogue;
use crate::check;
use crate::config::parse;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::restore::{self, Chosen, Selection};
use crate::run::{self, Wanted};
use crate::source::RestoreRequest;
use crate::units::Bytes;
use crate::verify::{self, Level};

/// Where lines for the person go.
pub type Say<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// Runs the demo in `dir`, which must be empty or absent.
///
/// # Errors
/// `Refused` when the directory holds something; otherwise whatever did not work, which is a failed demo.
pub async fn run(engine: Engine, dir: &Path, say: Say<'_>) -> Result<()> {
    let dir = prepare(dir)?;
    say(&format!("1. sample stores in {}", dir.display()));
    let files = stores::make_blobs(&dir.join("blobs"))?;
    say(&format!("   blobs: {files} files, with a hard link, a symbolic link and a sparse file"));
    let server = match postgres::start(&dir, &engine.cancel).await {
        Ok(server) => {
            say(&format!(
                "   postgres: a throw-away server, {}, with a database \"shop\" of {} rows",
                server.version,
                postgres::ROWS
            ));
            Some(server)
        }
        Err(why) => {
            say(&format!("   postgres: left out: {}", why.chain()));
            None
        }
    };
    let outcome = with_stores(&engine, &dir, server.as_ref(), say).await;
    if let Some(server) = server {
        server.stop().await;
    }
    outcome
}

fn prepare(dir: &Path) -> Result<PathBuf> {
    let failed = |e| Error::io(e, format!("could not make {}", dir.display()));
    match std::fs::read_dir(dir) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                return Err(Error::new(ErrorKind::Refused, format!("{} is not empty", dir.display()))
                    .hint("give a directory that is empty or does not exist: backstay demo DIR."));
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => std::fs::create_dir_all(dir).map_err(failed)?,
        Err(e) => return Err(failed(e)),
    }
    dir.canonicalize().map_err(failed)
}

async fn with_stores(engine: &Engine, dir: &Path, server: Option<&postgres::Server>, say: Say<'_>) -> Result<()> {
    let text = config_text(dir, server);
    let path = dir.join("backstay.yml");
    std::fs::write(&path, &text).map_err(|e| Error::io(e, "could not write the configuration"))?;
    let config = parse::from_text(&text, &path.to_string_lossy())?;
    let engine = Engine { config: Arc::new(config), ..engine.clone() };
    let services: Vec<String> = engine.config.services.keys().cloned().collect();
    say(&format!("2. backup, as `backstay --config {} backup` does it", path.display()));
    for service in &services {
        let report = run::backup(&engine, service, Wanted::Due, false).await?;
        if let Some(err) = report.failure() {
            return Err(err);
        }
        let id = report.id.unwrap_or_default();
        say(&format!("   {id}: {} stored as {}, at 2 places", Bytes(report.plain_bytes), Bytes(report.stored_bytes)));
    }
    list_and_check(&engine, &services, say).await?;
    damage(&engine, say).await?;
    say("5. restore and compare");
    let target = dir.join("restored");
    restore_to(&engine, "blobs", None, RestoreRequest { to: Some(target.clone()), ..RestoreRequest::default() })
        .await?;
    let compared = stores::compare(&dir.join("blobs"), &target)?;
    say(&format!("   blobs: {compared} files in {}, every byte the same", target.display()));
    if let Some(server) = server {
        let request = RestoreRequest {
            database: Some("shop".into()),
            rename: Some("shop_restored".into()),
            ..RestoreRequest::default()
        };
        restore_to(&engine, "postgres", None, request).await?;
        server.compare(&engine.cancel).await?;
        say("   postgres: database \"shop\" restored beside the old one as \"shop_restored\", every row the same");
    }
    say(&format!("done: everything lies in {}; remove it when you have seen enough", dir.display()));
    say(&format!("try: backstay --config {} list", path.display()));
    Ok(())
}

fn config_text(dir: &Path, server: Option<&postgres::Server>) -> String {
    let q = |p: PathBuf| serde_json::Value::from(p.to_string_lossy().into_owned()).to_string();
    let mut text = format!(
        "environment: demo\nhost: demo\nstate_dir: {}\ndestinations:\n  offsite:\n    local: {{path: {}}}\nservices:\n",
        q(dir.join("state")),
        q(dir.join("offsite"))
    );
    let _ = write!(
        text,
        "  blobs:\n    blobdir: {{path: {}}}\n    backup_dir: {}\n    destinations: [offsite]\n    keep: {{daily: 7, weekly: 4}}\n",
        q(dir.join("blobs")),
        q(dir.join("backups/blobs"))
    );
    if let Some(server) = server {
        let _ = write!(
            text,
            "  postgres:\n    postgres: {{method: databases, bin_dir: {}, host: {}, port: {}, username: postgres}}\n    \
             backup_dir: {}\n    destinations: [offsite]\n    keep: {{daily: 7, weekly: 4}}\n",
            q(server.bin_dir.clone()),
            q(server.socket_dir.clone()),
            server.port,
            q(dir.join("backups/postgres"))
        );
    }
    text
}

async fn list_and_check(engine: &Engine, services: &[String], say: Say<'_>) -> Result<()> {
    say("3. what there is now, and whether it is fresh");
    let host = engine.host()?;
    for service in services {
        for place in engine.places(service)? {
            for point in catalogue::read(&place, &host, service).await?.points {
                say(&format!("   {} at {}", point.manifest.id, place.name()));
            }
        }
    }
    let checked = check::this_host(engine, services).await?;
    say(&format!("   {}", check::nagios_line(&checked).split(" | ").next().unwrap_or_default()));
    Ok(())
}

/// Flips one bit of the copy at the second place, and shows that it is seen there and not at the first.
async fn damage(engine: &Engine, say: Say<'_>) -> Result<()> {
    say("4. one bit of the copy at \"offsite\" is flipped");
    let copies = restore::everywhere(engine, "blobs", &Selection::default()).await?;
    let copy = copies.iter().find(|c| c.place.name() == "offsite");
    let copy = copy.ok_or_else(|| Error::new(ErrorKind::Internal, "the second copy is not there"))?;
    let artefact = &copy.point.manifest.artefacts[0];
    let offsite = engine.config.destinations["offsite"].local.as_ref().map(|l| l.path.clone()).unwrap_or_default();
    stores::flip_bit(&offsite.join(&artefact.location.key))?;
    for copy in &copies {
        let report = verify::verify(engine, "blobs", copy, Level::Digest).await?;
        let expected = copy.place.name() == "offsite";
        if report.problems.is_empty() == expected {
            return Err(Error::new(ErrorKind::Internal, format!("the copy at {} was misjudged", copy.place.name())));
        }
        let verdict = if expected { format!("DAMAGED: {}", report.problems[0]) } else { "good".to_owned() };
        say(&format!("   verify at {}: {verdict}", copy.place.name()));
    }
    let refused = stores::scratch(&offsite)?;
    let request = RestoreRequest { to: Some(refused.clone()), ..RestoreRequest::default() };
    if restore_to(engine, "blobs", Some("offsite"), request).await.is_ok() {
        return Err(Error::new(ErrorKind::Internal, "a damaged copy was restored without a word"));
    }
    say("   a restore from it is refused");
    Ok(())
}

async fn restore_to(engine: &Engine, service: &str, from: Option<&str>, request: RestoreRequest) -> Result<()> {
    let wanted = Selection { from: from.map(str::to_owned), ..Selection::default() };
    let chosen: Chosen = restore::choose(engine, service, &wanted).await?;
    restore::restore(engine, service, &chosen, &request).await.map(drop)
}
