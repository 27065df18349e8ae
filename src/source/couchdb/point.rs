//! A restore point opened for reading: its inventory, and its archive for a thread that may block.

use std::io::BufRead;

use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::inventory::{Inventory, MAX_BYTES};
use crate::artefact::Role;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Artefact;
use crate::pipeline::bridge::Bridge;
use crate::source::PointReader;

fn find(point: &PointReader, role: Role, name: &str) -> Result<Artefact> {
    let found = point.manifest.artefacts.iter().find(|a| a.role == role && a.plain_name() == name);
    let missing = || Error::new(ErrorKind::Corrupt, format!("the restore point {} has no {name}", point.manifest.id));
    found.cloned().ok_or_else(missing)
}

/// The inventory, checked to its last byte.
pub(super) async fn inventory(point: &PointReader) -> Result<Inventory> {
    let artefact = find(point, Role::Inventory, "inventory.jsonl")?;
    let mut text = Vec::new();
    point.open(&artefact).await?.take(MAX_BYTES).read_to_end(&mut text).await?;
    let text = String::from_utf8(text).map_err(|_| Error::new(ErrorKind::Corrupt, "the inventory is not UTF-8"))?;
    Inventory::parse(&text)
}

/// The archive.
pub(super) async fn archive(point: &PointReader, stop: &CancellationToken) -> Result<impl BufRead + Send + 'static> {
    let from = point.open(&find(point, Role::Data, "data.tar")?).await?;
    Ok(Bridge::new(from, stop))
}

/// The configuration, if the point has it.
pub(super) async fn config(
    point: &PointReader,
    stop: &CancellationToken,
) -> Result<Option<impl BufRead + Send + 'static>> {
    let Ok(artefact) = find(point, Role::Config, "config.tar") else { return Ok(None) };
    let from = point.open(&artefact).await?;
    Ok(Some(Bridge::new(from, stop)))
}
