//! PostgreSQL 13 and newer, by its own programs.
//!
//! **Captured.** `plain`: the whole cluster with the WAL it needs, by `pg_basebackup`, and the configuration files
//! that lie outside the data directory (Debian). `dump`: one SQL file of `pg_dumpall`. `databases`: the globals (roles,
//! tablespaces), and one archive of `pg_dump -Fc` per database. Always an inventory: databases, tables, rows.
//!
//! **Consistency.** `plain`: the moment the copy ended; the server runs recovery when it starts. `dump` and
//! `databases`: each database is one moment, different databases are not the same one.
//!
//! **Whole** means: exit status 0, and for `plain` `backup_manifest` as the last member of the tar, for SQL the end
//! mark of the program, for archives a structure that ends where it should. The end of a pipe means nothing. A copy
//! during which the server found damaged pages is kept, but is suspect.
//!
//! **Rights.** `plain`: LOGIN and REPLICATION, a `replication` line in `pg_hba.conf`; membership in
//! `pg_read_all_settings` and `pg_read_all_stats` for the configuration and the sizes. `dump`, `databases`: superuser,
//! or `pg_read_all_data` with BYPASSRLS, as long as there are no large objects of others.
//!
//! **Not captured.** Unlogged tables' rows and replication slots (`plain`); WAL after the copy; statistics (dumps);
//! configuration outside the data directory (dumps, and when the server is on another host); databases that accept
//! no connections (dumps).
//!
//! **By hand.** `plain`: extract `data.tar` into an empty directory of mode 0700 owned by the server's user, never
//! remove `backup_label`, remove `standby.signal` unless it is to be a standby, start. With tablespaces: `base.tar`
//! there, each `<oid>.tar` into the directory that `tablespace_map` names for it. `dump`: `psql -X -f all.sql postgres`
//! into an empty cluster; only `role "..." already exists` is a harmless error. `databases`: `psql -X -f globals.sql
//! postgres`, then `pg_restore -C -d postgres NAME.dump` for each.

use std::path::PathBuf;

use async_trait::async_trait;

use crate::config::{PostgresConfig, PostgresMethod};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Artefact, Manifest};
use crate::source::{
    Captured, Context, DrillRequest, Drilled, Driver, LegacyReader, PointReader, Probe, RestoreRequest, Restored,
    Source, Verified,
};

mod archive;
mod cluster_dump;
mod connect;
mod databases;
mod drill;
mod extract;
mod inventory;
mod legacy;
mod place;
mod plain;
mod properties;
mod relations;
mod restore_databases;
mod restore_dump;
mod restore_plain;
mod rows;
mod scratch;
mod server;
mod staged;
mod start;
mod tar_scan;
mod verify;

/// The driver's line in the table.
pub const DRIVER: Driver = Driver { kind: "postgres", summary: "a PostgreSQL server, 13 or newer" };

/// A PostgreSQL server as a source.
#[derive(Debug)]
pub struct Postgres {
    config: PostgresConfig,
    /// Working directory of the client programs of a drill, and with it the directory of its server's socket.
    inside: Option<PathBuf>,
}

impl Postgres {
    /// A source with these settings; does nothing yet.
    pub fn new(config: PostgresConfig) -> Self {
        Self { config, inside: None }
    }
}

/// The artefact with this plain name.
fn find<'a>(point: &'a PointReader, plain_name: &str) -> Result<&'a Artefact> {
    point.manifest.artefacts.iter().find(|a| a.plain_name() == plain_name).ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, format!("the point has no artefact {plain_name}"))
            .hint("choose another restore point.")
    })
}

#[async_trait]
impl Source for Postgres {
    fn kind(&self) -> &'static str {
        DRIVER.kind
    }
    fn method(&self) -> &'static str {
        match self.config.method {
            PostgresMethod::Plain => "plain",
            PostgresMethod::Dump => "dump",
            PostgresMethod::Databases => "databases",
        }
    }
    async fn probe(&self, cx: &Context) -> Result<Probe> {
        self.ask(cx).await
    }
    async fn backup(&self, cx: &Context, sink: &dyn crate::artefact::ArtefactSink) -> Result<Captured> {
        let server = self.server(cx).await?;
        match self.config.method {
            PostgresMethod::Plain if server.outside().next().is_some() => self.backup_staged(cx, sink, server).await,
            PostgresMethod::Plain => self.backup_plain(cx, sink, server).await,
            PostgresMethod::Dump => self.backup_dump(cx, sink, server).await,
            PostgresMethod::Databases => self.backup_databases(cx, sink, server).await,
        }
    }
    async fn restore(&self, cx: &Context, point: &PointReader, request: &RestoreRequest) -> Result<Restored> {
        if request.no_replicator || request.only_finish {
            return Err(Error::new(ErrorKind::Usage, "a PostgreSQL server is no CouchDB node")
                .hint("leave out `--no-replicator` and `--only-finish`."));
        }
        request.refuse_indices()?;
        match point.manifest.method.as_str() {
            "plain" => self.restore_plain(cx, point, request).await,
            "dump" => self.restore_dump(cx, point, request).await,
            "databases" => self.restore_databases(cx, point, request).await,
            other => Err(unknown_method(other)),
        }
    }
    async fn restore_legacy(&self, cx: &Context, legacy: LegacyReader, request: &RestoreRequest) -> Result<Restored> {
        request.refuse_indices()?;
        self.legacy(cx, legacy, request).await
    }
    async fn verify(&self, cx: &Context, point: &PointReader) -> Result<Verified> {
        match point.manifest.method.as_str() {
            "plain" => verify::plain(cx, point).await,
            "dump" => verify::dump(cx, point).await,
            "databases" => self.verify_databases(cx, point).await,
            other => Err(unknown_method(other)),
        }
    }
    async fn cleanup(&self, cx: &Context) -> Result<()> {
        self.remove_staging(cx).await
    }
    async fn drill(&self, cx: &Context, point: &PointReader, request: &DrillRequest) -> Result<Drilled> {
        drill::drill(self, cx, point, request).await
    }
    fn drill_bytes(&self, point: &Manifest, _: &DrillRequest) -> u64 {
        drill::bytes(point)
    }
    fn production(&self, point: &Manifest) -> Vec<PathBuf> {
        let captured = point.attributes.get("data_directory").map(PathBuf::from);
        self.config.data_dir.clone().into_iter().chain(captured).collect()
    }
}

fn unknown_method(method: &str) -> Error {
    Error::new(ErrorKind::Config, format!("the point was taken by the method {method:?}"))
        .hint("upgrade backstay on this host: this version does not know that method.")
}
