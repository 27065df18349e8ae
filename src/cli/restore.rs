//! `backstay restore`.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use super::RestoreArgs;
use super::app::App;
use crate::error::Result;
use crate::restore::{self, Selection};
use crate::source::RestoreRequest;
use crate::units::{Bytes, human_age};

/// Restores one point.
pub async fn run(app: &App, args: &RestoreArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?.with_identity(args.identity.as_deref())?;
    engine.service(&args.service)?;
    let wanted = Selection {
        id: (args.point != "latest").then(|| args.point.clone()),
        at: args.at,
        from: args.from.clone(),
        host: args.host.clone(),
    };
    let chosen = restore::choose(&engine, &args.service, &wanted).await?;
    let manifest = &chosen.point.manifest;
    let started = engine.clock.now();
    app.say(format!(
        "restoring {} ({} old, {}) from {}",
        manifest.id,
        human_age((started - manifest.started).num_seconds()),
        Bytes(manifest.plain_bytes()),
        chosen.place.name()
    ));
    let request = RestoreRequest {
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
    };
    let restored = restore::restore(&engine, &args.service, &chosen, &request).await?;
    let seconds = (engine.clock.now() - started).num_seconds();
    app.emit(&json!({
        "message_type": "restore", "service": args.service, "id": manifest.id, "from": chosen.place.name(),
        "target": restored.target, "seconds": seconds, "counts": restored.counts,
        "captured": manifest.counts,
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
    Ok(())
}
