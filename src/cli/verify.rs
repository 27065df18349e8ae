//! `backstay verify`.

use serde_json::json;

use super::app::App;
use super::{Level, VerifyArgs};
use crate::error::{Error, ErrorKind, Result};
use crate::restore::{self, Chosen, Selection};
use crate::units::Bytes;
use crate::verify;

/// Verifies a point wherever it lies.
pub async fn run(app: &App, args: &VerifyArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?.with_identity(args.identity.as_deref())?;
    engine.service(&args.service)?;
    let level = match args.level {
        Level::Present => verify::Level::Present,
        Level::Digest => verify::Level::Digest,
        Level::Format => verify::Level::Format,
    };
    let wanted = Selection { id: None, at: None, from: args.from.clone(), host: args.host.clone() };
    let copies = copies(restore::everywhere(&engine, &args.service, &wanted).await?, &args.point);
    if copies.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("service {:?} has no restore point {:?}", args.service, args.point),
        )
        .hint(format!("`backstay list {}` shows what there is.", args.service)));
    }
    let mut damaged = 0;
    for copy in &copies {
        let report = verify::verify(&engine, &args.service, copy, level).await?;
        app.emit(&json!({
            "message_type": "verify", "service": args.service, "id": report.id, "destination": report.place,
            "level": level_word(level), "stored_bytes": report.stored_bytes, "counts": report.counts, "problems": report.problems,
        }));
        let verdict = if report.problems.is_empty() { "good" } else { "DAMAGED" };
        app.say(format!(
            "{} at {}: {verdict} ({}, {})",
            report.id,
            report.place,
            level_word(level),
            Bytes(report.stored_bytes)
        ));
        report.problems.iter().for_each(|p| app.say(format!("  {p}")));
        damaged += usize::from(!report.problems.is_empty());
    }
    if damaged > 0 {
        let text =
            format!("restore point {} is damaged at {damaged} of {} places", copies[0].point.manifest.id, copies.len());
        return Err(
            Error::new(ErrorKind::Corrupt, text).hint("make a new backup now, and find out what damaged this one.")
        );
    }
    Ok(())
}

fn level_word(level: verify::Level) -> &'static str {
    match level {
        verify::Level::Present => "present",
        verify::Level::Digest => "digest",
        verify::Level::Format => "format",
    }
}

fn copies(mut all: Vec<Chosen>, point: &str) -> Vec<Chosen> {
    let id = match point {
        "latest" => all.iter().max_by_key(|c| c.point.manifest.started).map(|c| c.point.manifest.id.clone()),
        id => Some(id.to_owned()),
    };
    all.retain(|c| Some(&c.point.manifest.id) == id.as_ref());
    all
}
