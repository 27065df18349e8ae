//! The inventory: a line of JSON per index, what a restore is compared with.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::indices::{Index, Size};
use crate::artefact::{ArtefactSink, ArtefactSpec, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::source::PointReader;

/// An inventory longer than this is not one of ours.
const LIMIT_BYTES: u64 = 64 << 20;

/// One index of a point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Line {
    /// Its name.
    pub(super) index: String,
    /// The data stream that it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data_stream: Option<String>,
    /// Other names of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) aliases: Vec<String>,
    /// Primary shards.
    pub(super) shards: u64,
    /// Of the primary shards, on disk.
    pub(super) bytes: u64,
    /// Documents just before the snapshots.
    pub(super) documents: u64,
    /// Documents just after them; absent when the index was gone by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) documents_after: Option<u64>,
    /// The number of the version that made the index.
    pub(super) created: u64,
}

impl Line {
    pub(super) fn new(index: &Index, before: Size, after: Option<&Size>) -> Self {
        Self {
            index: index.name.clone(),
            data_stream: index.data_stream.clone(),
            aliases: index.aliases.clone(),
            shards: index.shards,
            bytes: before.bytes,
            documents: before.documents,
            documents_after: after.map(|s| s.documents),
            created: index.created,
        }
    }

    /// What is wrong with this many restored documents; `None` = nothing.
    pub(super) fn differs(&self, restored: u64) -> Option<String> {
        let after = self.documents_after.unwrap_or(self.documents);
        let (least, most) = (self.documents.min(after), self.documents.max(after));
        if (least..=most).contains(&restored) {
            return None;
        }
        let counted = if least == most { least.to_string() } else { format!("{least} to {most}") };
        Some(format!("{} has {restored} documents, {counted} were counted when it was captured", self.index))
    }
}

/// Writes the artefact.
pub(super) async fn write(sink: &dyn ArtefactSink, lines: &[Line]) -> Result<()> {
    let mut writer = sink.open(ArtefactSpec::data("inventory", "jsonl").role(Role::Inventory)).await?;
    for line in lines {
        let mut text = serde_json::to_string(line)
            .map_err(|e| Error::new(ErrorKind::Internal, "could not write the inventory").caused_by(e))?;
        text.push('\n');
        if writer.write_all(text.as_bytes()).await.is_err() {
            return Err(writer.failure().await);
        }
    }
    writer.finish().await.map(drop)
}

/// Reads it back, by index.
pub(super) async fn read(point: &PointReader) -> Result<BTreeMap<String, Line>> {
    let damaged = |why: String| {
        Error::new(ErrorKind::Corrupt, format!("the inventory of {} is damaged", point.manifest.id)).caused_by(why)
    };
    let found = point.manifest.artefacts.iter().find(|a| a.role == Role::Inventory);
    let artefact = found.ok_or_else(|| damaged("there is none".into()))?;
    let mut text = String::new();
    point.open(artefact).await?.take(LIMIT_BYTES).read_to_string(&mut text).await?;
    let mut lines = BTreeMap::new();
    for (at, line) in text.lines().enumerate() {
        let line: Line = serde_json::from_str(line).map_err(|e| damaged(format!("line {}: {e}", at + 1)))?;
        lines.insert(line.index.clone(), line);
    }
    let counted = point.manifest.counts.get("indices").copied().unwrap_or(0);
    if counted != lines.len() as u64 {
        return Err(damaged(format!("it has {} indices, the manifest counts {counted}", lines.len())));
    }
    Ok(lines)
}
