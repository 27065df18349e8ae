//! `dump`: one SQL file of `pg_dumpall`. Whole = exit status 0 and the program's end mark.

use std::collections::BTreeMap;

use super::Postgres;
use super::connect::judge;
use super::inventory::{self, Line, table_line};
use super::rows::SqlRows;
use super::server::Server;
use crate::artefact::{ArtefactSink, ArtefactSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Program;
use crate::manifest::Consistency;
use crate::source::{Captured, Context};

/// The last comment of `pg_dumpall`, with or without databases. Newer versions write a line after it.
pub(super) const END_MARK: &str = "-- PostgreSQL database cluster dump complete";
/// How far from the end it may be.
const TAIL_BYTES: usize = 400;

/// Keeps the end of a stream.
#[derive(Debug, Default)]
pub(super) struct Tail(Vec<u8>);

impl Tail {
    /// Looks at the next piece.
    pub(super) fn feed(&mut self, data: &[u8]) {
        self.0.extend_from_slice(&data[data.len().saturating_sub(TAIL_BYTES)..]);
        let excess = self.0.len().saturating_sub(TAIL_BYTES);
        self.0.drain(..excess);
    }
    /// Whether a line of it is the end mark.
    pub(super) fn is_whole(&self) -> bool {
        String::from_utf8_lossy(&self.0).lines().any(|line| line == END_MARK)
    }
}

impl Postgres {
    /// `pg_dumpall` connected to the configured database.
    pub(super) fn dumpall(&self) -> Result<Program> {
        Ok(self.client("pg_dumpall")?.arg("-l").arg(&self.config.database).arg(self.lock_wait()))
    }

    /// The argument that limits the time to wait for a lock.
    pub(super) fn lock_wait(&self) -> String {
        format!("--lock-wait-timeout={}", self.config.lock_wait.0.as_millis())
    }

    /// Runs a form of `pg_dumpall` into one artefact.
    pub(super) async fn store_sql(
        &self,
        cx: &Context,
        sink: &dyn ArtefactSink,
        program: Program,
        name: &str,
        mut observe: impl FnMut(&[u8]) + Send,
    ) -> Result<()> {
        let writer = sink.open(ArtefactSpec::data(name, "sql")).await?;
        let mut tail = Tail::default();
        let seen = |chunk: &[u8]| {
            tail.feed(chunk);
            observe(chunk);
        };
        let (ended, _, writer) = program.stream_into(&cx.cancel, writer, seen).await?;
        judge(&ended, "pg_dumpall")?;
        if !tail.is_whole() {
            let message = "pg_dumpall ended without an error, but its dump has no end mark";
            return Err(Error::new(ErrorKind::Failed, message).hint("run it by hand, and look into the server's log."));
        }
        writer.finish().await.map(|_| ())
    }

    /// Streams the whole cluster as SQL.
    pub(super) async fn backup_dump(&self, cx: &Context, sink: &dyn ArtefactSink, server: Server) -> Result<Captured> {
        let mut rows = SqlRows::default();
        self.store_sql(cx, sink, self.dumpall()?, "all", |chunk| rows.feed(chunk)).await?;
        let mut lines: Vec<Line> = Vec::new();
        for name in &rows.databases {
            lines.push(Line { database: name.clone(), ..Line::default() });
        }
        lines.extend(rows.rows.iter().map(|((database, table), n)| table_line(database, table, *n)));
        inventory::store(sink, &lines).await?;
        Ok(logical(&server, rows.databases.len() as u64, rows.rows.len() as u64, rows.rows.values().sum()))
    }
}

/// What a logical copy tells the manifest.
pub(super) fn logical(server: &Server, databases: u64, tables: u64, rows: u64) -> Captured {
    let counts = [("databases", databases), ("tables", tables), ("rows", rows)];
    let mut attributes = server.attributes();
    attributes.remove("data_directory");
    attributes.insert("each_database".into(), "point-in-time".into());
    Captured {
        consistency: if databases == 1 { Consistency::PointInTime } else { Consistency::Fuzzy },
        server_version: Some(server.version.clone()),
        position: None,
        counts: counts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<BTreeMap<_, _>>(),
        attributes,
        warnings: Vec::new(),
        suspect: Vec::new(),
        external: Vec::new(),
        missed: Vec::new(),
    }
}
