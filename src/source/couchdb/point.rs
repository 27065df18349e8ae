//! A restore point opened for reading: its inventory, and its archive for a thread that may block.

use std::io::{self, BufReader, Read};

use tokio::io::AsyncReadExt as _;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::inventory::{Inventory, MAX_BYTES};
use crate::artefact::Role;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Artefact;
use crate::source::{ArtefactReader, PointReader};

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
pub(super) async fn archive(point: &PointReader, stop: &CancellationToken) -> Result<impl Read + Send + 'static> {
    let from = point.open(&find(point, Role::Data, "data.tar")?).await?;
    let bridge = Bridge { from, runtime: Handle::current(), stop: stop.clone() };
    Ok(BufReader::with_capacity(512 * 1024, bridge))
}

/// The configuration, if the point has it.
pub(super) async fn config(
    point: &PointReader,
    stop: &CancellationToken,
) -> Result<Option<impl Read + Send + 'static>> {
    let Ok(artefact) = find(point, Role::Config, "config.tar") else { return Ok(None) };
    let from = point.open(&artefact).await?;
    let bridge = Bridge { from, runtime: Handle::current(), stop: stop.clone() };
    Ok(Some(BufReader::with_capacity(64 * 1024, bridge)))
}

/// Runs what may block.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| Error::new(ErrorKind::Internal, "the reader of the archive broke").caused_by(e))?
}

/// An async reader for a thread that may block, which a stop interrupts.
struct Bridge {
    from: ArtefactReader,
    runtime: Handle,
    stop: CancellationToken,
}

impl Read for Bridge {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Self { from, runtime, stop } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = stop.cancelled() => Err(Error::new(ErrorKind::Cancelled, "reading the point was stopped").into()),
                read = from.read(buf) => read,
            }
        })
    }
}
