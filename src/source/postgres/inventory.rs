//! The inventory artefact: one JSON object per line, with the real names that the manifest must not hold.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt as _;

use super::Postgres;
use super::connect::{ident, literal};
use super::rows::Table;
use crate::artefact::{ArtefactSink, ArtefactSpec, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Context, PointReader};

/// Name of the artefact.
pub(super) const NAME: &str = "inventory";
/// Longest inventory that is read.
const LIMIT: u64 = 1 << 30;
/// Tables that are counted in one query; a function takes at most 100 arguments.
const TABLES_PER_QUERY: usize = 40;

/// A line: a database with its properties, or a table with its rows.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Line {
    pub(super) database: String,
    /// Base name of the artefact that holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) artefact: Option<String>,
    /// What `CREATE DATABASE` and `ALTER DATABASE` need.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) properties: Option<super::properties::Properties>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) schema: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) table: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) rows: Option<u64>,
}

/// The line of one table.
pub(super) fn table_line(database: &str, (schema, table): &Table, rows: u64) -> Line {
    Line {
        database: database.to_owned(),
        schema: Some(schema.clone()),
        table: Some(table.clone()),
        rows: Some(rows),
        ..Line::default()
    }
}

/// Writes the artefact.
pub(super) async fn store<T: Serialize + Sync>(sink: &dyn ArtefactSink, lines: &[T]) -> Result<()> {
    let mut text = Vec::new();
    for line in lines {
        serde_json::to_writer(&mut text, line)
            .map_err(|e| Error::new(ErrorKind::Internal, "could not write the inventory").caused_by(e))?;
        text.push(b'\n');
    }
    let mut writer = sink.open(ArtefactSpec::data(NAME, "jsonl").role(Role::Inventory)).await?;
    if !text.is_empty() && writer.send(text.into()).await.is_err() {
        return Err(writer.failure().await);
    }
    writer.finish().await.map(|_| ())
}

/// Reads the artefact of a point.
pub(super) async fn load(point: &PointReader) -> Result<Vec<Line>> {
    let name = format!("{NAME}.jsonl");
    let artefact = super::find(point, &name)?;
    let mut text = Vec::new();
    let mut reader = point.open(artefact).await?.take(LIMIT);
    reader.read_to_end(&mut text).await.map_err(Error::from)?;
    text.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            serde_json::from_slice(line)
                .map_err(|e| Error::new(ErrorKind::Corrupt, "the inventory makes no sense").caused_by(e))
        })
        .collect()
}

impl Postgres {
    /// Counts the rows of `lines` in `database` and compares; how many were counted. Differences are an error.
    pub(super) async fn compare_rows(&self, cx: &Context, database: &str, lines: &[&Line]) -> Result<u64> {
        let tables: Vec<(&str, &str, u64)> =
            lines.iter().filter_map(|l| Some((l.schema.as_deref()?, l.table.as_deref()?, l.rows?))).collect();
        let mut wrong = Vec::new();
        let mut sum = 0;
        for part in tables.chunks(TABLES_PER_QUERY) {
            let counts: Vec<String> = part
                .iter()
                .enumerate()
                .map(|(i, (schema, table, _))| {
                    let key = literal(&i.to_string());
                    format!("{key}, (select count(*) from only {}.{})", ident(schema), ident(table))
                })
                .collect();
            let query = format!("select json_build_object({})", counts.join(", "));
            let found: BTreeMap<usize, u64> = self.query(cx, database, &query).await?;
            for (i, (schema, table, rows)) in part.iter().enumerate() {
                let have = found.get(&i).copied().unwrap_or(0);
                sum += have;
                if have != *rows {
                    wrong.push(format!("{schema}.{table}: {have} rows, {rows} were captured"));
                }
            }
        }
        if wrong.is_empty() {
            return Ok(sum);
        }
        let more = wrong.len().saturating_sub(10);
        wrong.truncate(10);
        let text = format!(
            "{}{}",
            wrong.join("\n    "),
            if more > 0 { format!("\n    and {more} more") } else { String::new() }
        );
        Err(Error::new(ErrorKind::Corrupt, format!("database {database:?} does not hold what was captured"))
            .caused_by(text))
    }
}
