//! Restores a tar of a data directory, as commcare-cloud made it: whole files, without a record of what they hold.

use super::Couchdb;
use super::node::Node;
use super::restore::{refuse_running, start, stop};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::bridge::{Bridge, blocking};
use crate::pipeline::extract::{self, Rules};
use crate::pipeline::owner;
use crate::pipeline::place::Place;
use crate::source::{Context, LegacyReader, RestoreRequest, Restored};

/// Said of every such restore.
const SAME_NAME: &str = "the shard maps name the node that was saved: databases open only on a node of that name \
    (`name` in vm.args, such as couchdb@10.0.0.1)";

/// See [`crate::source::Source::restore_legacy`].
pub(super) async fn restore(
    source: &Couchdb,
    cx: &Context,
    old: LegacyReader,
    request: &RestoreRequest,
) -> Result<Restored> {
    refuse_parts(request)?;
    let node = Node::new(&source.config, request.start)?;
    let target = request.to.clone().unwrap_or_else(|| source.config.data_dir.clone());
    let own = request.to.is_none();
    if !request.start {
        refuse_running(&node, &target, own).await?;
    }
    let place = Place::prepare(&target, request.replace, cx.clock.now())?;
    place.check_space(old.stored_bytes, 0)?;
    let owner = request.owner.as_deref().map(owner::parse).transpose()?;
    let cancel = cx.cancel.child_token();
    let guard = cancel.clone().drop_guard();
    let data = Bridge::new(old.plain, &cancel);
    let filled = blocking(move || {
        // The members of the cluster that was saved are not those of this one.
        let wanted = |member: &crate::pipeline::archive::Member| member.path != b"_nodes.couch";
        let done = extract::extract_stripped(data, &place.partial, Rules { owner, ..Rules::default() }, &wanted)?;
        Ok((place, done))
    })
    .await;
    drop(guard);
    let (place, done) = filled?;
    if !place.partial.join(super::DBS).is_file() {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("the archive is no data directory: it has no {}", super::DBS),
        )
        .hint("restore another point; nothing at the target was changed."));
    }
    if request.start {
        stop(source, cx, &node, &target, request.wait).await?;
    } else {
        refuse_running(&node, &target, own).await?;
    }
    let (target, old_data) = blocking(move || place.settle()).await?;
    let mut restored = Restored { target: target.display().to_string(), old_data, ..Restored::default() };
    restored.counts = done.counts;
    restored.notes = done.notes;
    restored.notes.push(SAME_NAME.into());
    if request.start {
        start(source, cx, &node, request.wait).await?;
    }
    Ok(restored)
}

fn refuse_parts(request: &RestoreRequest) -> Result<()> {
    if request.start && request.to.is_some() {
        return Err(Error::new(ErrorKind::Usage, "the node would not start in another directory")
            .hint("leave out `--to` or `--start`."));
    }
    let parts = request.database.is_some() || request.rename.is_some() || !request.map.is_empty();
    if parts || request.no_replicator || request.only_finish {
        return Err(Error::new(ErrorKind::Usage, "the archive is one directory: it comes back whole, or not at all")
            .hint("leave out `--database`, `--as`, `--map`, `--no-replicator` and `--only-finish`."));
    }
    Ok(())
}
