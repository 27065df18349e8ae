//! `backstay accept`: a suspect point counts from now on.

use serde_json::json;

use super::AcceptArgs;
use super::app::App;
use crate::error::{Error, ErrorKind, Result};
use crate::lock::Lock;
use crate::manifest::{Manifest, State};
use crate::restore::{self, Selection};
use crate::run::commit;

/// Makes a suspect point complete at every place that has it.
pub async fn run(app: &App, args: &AcceptArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?;
    engine.service(&args.service)?;
    let now = engine.clock.now();
    let _lock = Lock::take(&engine.service_dir(&args.service), &args.service, now)?;
    let mut copies = restore::everywhere(&engine, &args.service, &Selection::default()).await?;
    copies.retain(|c| c.point.manifest.id == args.point);
    if copies.is_empty() {
        return Err(Error::new(
            ErrorKind::NotFound,
            format!("service {:?} has no restore point {:?}", args.service, args.point),
        )
        .hint(format!("`backstay list {}` shows what there is.", args.service)));
    }
    let mut accepted = Vec::new();
    for copy in copies.iter().filter(|c| c.point.manifest.state == State::Suspect) {
        let mut manifest = Manifest::clone(&copy.point.manifest);
        manifest.state = State::Complete;
        manifest.accepted = Some(now);
        commit::replace_manifest(&copy.place, &manifest, &copy.point.folder)
            .await
            .map_err(|e| e.within(format!("could not accept {} at {}", args.point, copy.place.name())))?;
        accepted.push(copy.place.name().to_owned());
    }
    app.emit(&json!({"message_type": "accept", "service": args.service, "id": args.point, "accepted_at": accepted}));
    app.say(match accepted.is_empty() {
        true => format!("{} was complete already", args.point),
        false => format!("{} is complete now at {}", args.point, accepted.join(", ")),
    });
    Ok(())
}
