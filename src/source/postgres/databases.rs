//! `databases`: the globals, and one archive of `pg_dump -Fc` per database, several at once.

use std::collections::BTreeMap;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use serde::Deserialize;

use super::Postgres;
use super::archive::Archive;
use super::cluster_dump::logical;
use super::connect::{conninfo, judge};
use super::inventory::{self, Line, table_line};
use super::properties::{self, Properties};
use super::rows::Table;
use super::server::Server;
use crate::artefact::{ArtefactSink, ArtefactSpec, artefact_name};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Captured, Context};

#[derive(Debug, Deserialize)]
struct Database {
    database: String,
    properties: Properties,
}

/// One database that was dumped.
struct Dumped {
    database: Database,
    rows: BTreeMap<Table, u64>,
    warning: Option<String>,
}

impl Postgres {
    /// Streams the globals and every chosen database.
    pub(super) async fn backup_databases(
        &self,
        cx: &Context,
        sink: &dyn ArtefactSink,
        server: Server,
    ) -> Result<Captured> {
        let all: Vec<Database> = self.query(cx, &self.config.database, properties::QUERY).await?;
        let (include, exclude) = (patterns(&self.config.include)?, patterns(&self.config.exclude)?);
        let chosen = |d: &Database| {
            (self.config.include.is_empty() || include.is_match(&d.database)) && !exclude.is_match(&d.database)
        };
        let mut waiting = all.into_iter().filter(chosen).collect::<Vec<_>>().into_iter();
        if waiting.len() == 0 {
            return Err(Error::new(ErrorKind::Config, "no database matches include and exclude")
                .hint("correct the patterns in the configuration."));
        }
        self.store_sql(cx, sink, self.dumpall()?.arg("--globals-only"), "globals", |_| {}).await?;
        let mut running = FuturesUnordered::new();
        let mut done: Vec<Dumped> = Vec::new();
        loop {
            while running.len() < self.config.jobs.max(1) as usize {
                let Some(database) = waiting.next() else { break };
                running.push(self.dump_one(cx, sink, database));
            }
            match running.next().await {
                Some(result) => done.push(result?),
                None => break,
            }
        }
        done.sort_by(|a, b| a.database.database.cmp(&b.database.database));
        self.record(cx, sink, &server, done).await
    }

    async fn dump_one(&self, cx: &Context, sink: &dyn ArtefactSink, database: Database) -> Result<Dumped> {
        let name = &database.database;
        let writer = sink.open(ArtefactSpec::data(artefact_name(name), "dump")).await?;
        let program = self.client("pg_dump")?.args(["-Fc", "-Z0"]).arg(self.lock_wait()).arg("-d").arg(conninfo(name));
        let mut archive = Archive::default();
        let (ended, bytes, writer) = program.stream_into(&cx.cancel, writer, |chunk| archive.feed(chunk)).await?;
        judge(&ended, "pg_dump").map_err(|e| e.within(format!("could not dump database {name:?}")))?;
        let fault = if bytes == 0 { Some("it is empty") } else { archive.fault() };
        if let Some(fault) = fault {
            let message = format!("pg_dump of database {name:?} ended without an error, but its archive is not whole");
            return Err(Error::new(ErrorKind::Failed, message).caused_by(fault));
        }
        writer.finish().await?;
        let warning = archive.lost.map(|why| format!("the rows of an archive were not counted: {why}"));
        Ok(Dumped { rows: archive.rows, warning, database })
    }

    async fn record(
        &self,
        cx: &Context,
        sink: &dyn ArtefactSink,
        server: &Server,
        done: Vec<Dumped>,
    ) -> Result<Captured> {
        let mut lines = Vec::new();
        let (mut tables, mut rows, databases) = (0, 0, done.len() as u64);
        let mut warnings = Vec::new();
        for Dumped { database: Database { database, properties }, rows: counted, warning } in done {
            let artefact = Some(artefact_name(&database));
            let tables_of = counted.iter().map(|(table, n)| table_line(&database, table, *n)).collect::<Vec<_>>();
            tables += counted.len() as u64;
            rows += counted.values().sum::<u64>();
            lines.push(Line { database, artefact, properties: Some(properties), ..Line::default() });
            lines.extend(tables_of);
            warnings.extend(warning.inspect(|w| cx.monitor.warn(w)));
        }
        inventory::store(sink, &lines).await?;
        let counts_known = warnings.is_empty();
        let mut captured = Captured { warnings, ..logical(server, databases, tables, rows) };
        if !counts_known {
            // Sums that leave something out would make a restore look wrong.
            captured.counts.retain(|key, _| key == "databases");
        }
        Ok(captured)
    }
}

fn patterns(texts: &[String]) -> Result<GlobSet> {
    let bad = |e: globset::Error| {
        Error::new(ErrorKind::Config, "a pattern of databases makes no sense").caused_by(e).hint("use * and ? only.")
    };
    let mut set = GlobSetBuilder::new();
    for text in texts {
        set.add(GlobBuilder::new(text).backslash_escape(true).build().map_err(bad)?);
    }
    set.build().map_err(bad)
}
