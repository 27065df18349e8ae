//! Restores databases, each under a temporary name that is changed when it is whole.

use std::time::Duration;

use serde::Deserialize;

use super::Postgres;
use super::connect::{complaint, conninfo, ident, literal};
use super::inventory::{self, Line};
use super::restore_dump::{feed, is_known_role, judge_psql, refuse_directory};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Context, PointReader, RestoreRequest, Restored};

/// How long sessions of a database that is to be renamed may take to end.
const SESSIONS_END: Duration = Duration::from_secs(5);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(100);

/// One database of the point, and the name that it is to have.
struct Wanted<'a> {
    line: &'a Line,
    tables: Vec<&'a Line>,
    name: String,
}

/// A database that has the name already.
#[derive(Debug, Deserialize)]
struct Present {
    sessions: u64,
}

impl Postgres {
    /// See [`crate::source::Source::restore`].
    pub(super) async fn restore_databases(
        &self,
        cx: &Context,
        point: &PointReader,
        request: &RestoreRequest,
    ) -> Result<Restored> {
        refuse_directory(request)?;
        let lines = inventory::load(point).await?;
        let wanted = choose(&lines, request)?;
        let mut notes = Vec::new();
        let mut occupied = Vec::new();
        for database in &wanted {
            occupied.push(self.require_free(cx, &database.name, request.replace).await?);
        }
        if request.database.is_none() {
            self.restore_globals(cx, point, request.replace, &mut notes).await?;
        }
        let stamp = cx.clock.now().format("%Y%m%d%H%M%S").to_string();
        let mut counts = [0u64; 3];
        for (database, occupied) in wanted.iter().zip(occupied) {
            let temporary = format!("backstay_restore_{}", &blake3::hash(database.name.as_bytes()).to_hex()[..16]);
            let result = match self.fill_database(cx, point, database, &temporary).await {
                Ok(rows) => self.swap(cx, database, &temporary, occupied, &stamp, &mut notes).await.map(|()| rows),
                Err(e) => Err(e),
            };
            if result.is_err() {
                let drop = format!("drop database if exists {}", ident(&temporary));
                let _ = self.sql(cx, self.maintenance(&temporary), &[drop]).await;
            }
            let rows = result.map_err(|e| e.within(format!("could not restore database {:?}", database.name)))?;
            counts = [counts[0] + 1, counts[1] + database.tables.len() as u64, counts[2] + rows];
        }
        notes.push("run ANALYZE: a dump has no statistics".into());
        Ok(Restored {
            target: self.server_name(),
            counts: ["databases", "tables", "rows"].map(str::to_owned).into_iter().zip(counts).collect(),
            old_data: None,
            notes,
        })
    }

    /// A database to be connected to while `name` is renamed or dropped.
    fn maintenance(&self, name: &str) -> &str {
        if self.config.database == name { "template1" } else { &self.config.database }
    }

    /// Whether a database has this name; refuses it unless it may be replaced or is empty, or when it is in use.
    async fn require_free(&self, cx: &Context, name: &str, replace: bool) -> Result<bool> {
        let maintenance = self.maintenance(name).to_owned();
        if self.present(cx, &maintenance, name).await?.is_none() {
            return Ok(false);
        }
        if !replace && !self.is_empty(cx, name).await? {
            return Err(Error::new(ErrorKind::Refused, format!("database {name:?} exists")).hint(
                "restore it beside the old one with --as, or allow --replace: the old one is renamed and kept.",
            ));
        }
        // The session of a client that has just gone is still listed for a moment: wait as the server itself does.
        let until = tokio::time::Instant::now() + SESSIONS_END;
        loop {
            let sessions = self.present(cx, &maintenance, name).await?.map_or(0, |p| p.sessions);
            if sessions == 0 {
                return Ok(true);
            }
            if tokio::time::Instant::now() >= until {
                let message = format!("database {name:?} is in use: {sessions} session(s) are connected to it");
                return Err(Error::new(ErrorKind::Refused, message)
                    .hint("stop its clients first: it cannot be renamed while it is in use."));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn present(&self, cx: &Context, maintenance: &str, name: &str) -> Result<Option<Present>> {
        let query = format!(
            "select coalesce((select json_build_object('sessions', (select count(*) from pg_stat_activity a
             where a.datid = d.oid and a.backend_type = 'client backend' and a.pid <> pg_backend_pid())) from pg_database d where d.datname = {}), 'null')",
            literal(name)
        );
        self.query(cx, maintenance, &query).await
    }

    async fn is_empty(&self, cx: &Context, database: &str) -> Result<bool> {
        let query = "select to_json(not exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace
             where c.oid >= 16384 and n.nspname !~ '^pg_' and n.nspname <> 'information_schema')
             and not exists (select from pg_namespace where oid >= 16384 and nspname !~ '^pg_')
             and not exists (select from pg_proc where oid >= 16384)
             and not exists (select from pg_extension where oid >= 16384)
             and not exists (select from pg_largeobject_metadata))";
        self.query(cx, database, query).await
    }

    /// Roles and tablespaces. They would change the roles of a server in use, so those of one are left alone.
    async fn restore_globals(
        &self,
        cx: &Context,
        point: &PointReader,
        force: bool,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let roles = "select to_json(count(*)) from pg_roles where rolname !~ '^pg_' and oid >= 16384 and rolname <> current_user";
        let present: u64 = self.query(cx, &self.config.database, roles).await?;
        if present > 0 && !force {
            notes
                .push("the server has roles: globals.sql was not applied (allow it with --replace, or by hand)".into());
            return Ok(());
        }
        let reader = point.open(super::find(point, "globals.sql")?).await?;
        let ended = feed(cx, self.script(cx, &self.config.database).await?, reader).await?;
        let tablespace = |l: &str| l.contains("ERROR:  tablespace \"") && l.ends_with("already exists");
        judge_psql(&ended, |line| is_known_role(line) || tablespace(line))
            .map_err(|e| e.within("could not restore the globals"))
    }

    /// Restores one database under a temporary name; its rows, which are those that were captured.
    async fn fill_database(&self, cx: &Context, point: &PointReader, wanted: &Wanted<'_>, name: &str) -> Result<u64> {
        let line = wanted.line;
        let (Some(base), Some(properties)) = (&line.artefact, &line.properties) else {
            return Err(Error::new(ErrorKind::Corrupt, "the inventory does not say how to make it"));
        };
        let artefact = super::find(point, &format!("{base}.dump"))?;
        let drop = format!("drop database if exists {}", ident(name));
        self.sql(cx, &self.config.database, &[drop, properties.create(name)]).await?;
        let program = self.client("pg_restore")?.args(["--exit-on-error", "-d"]).arg(conninfo(name));
        let ended = feed(cx, program, point.open(artefact).await?).await?;
        if !ended.status.success() {
            let mut err = complaint(&ended, "pg_restore");
            if ended.stderr.contains("role \"") && ended.stderr.contains("does not exist") {
                err = err.hint("create the missing role first: its definition is in globals.sql.");
            }
            return Err(err);
        }
        self.compare_rows(cx, name, &wanted.tables).await
    }

    /// Gives the whole database its name, and an old one another.
    async fn swap(
        &self,
        cx: &Context,
        wanted: &Wanted<'_>,
        temporary: &str,
        occupied: bool,
        stamp: &str,
        notes: &mut Vec<String>,
    ) -> Result<()> {
        let name = &wanted.name;
        let maintenance = self.maintenance(name).to_owned();
        let rename = |from: &str, to: &str| format!("alter database {} rename to {}", ident(from), ident(to));
        let mut old = None;
        if occupied {
            let cut: String = name.chars().take(40).collect();
            let aside = format!("{cut}_old_{stamp}");
            let empty = self.is_empty(cx, name).await?;
            self.sql(cx, &maintenance, &[rename(name, &aside)]).await?;
            old = Some((aside, empty));
        }
        if let Err(e) = self.sql(cx, &maintenance, &[rename(temporary, name)]).await {
            if let Some((aside, _)) = &old {
                self.sql(cx, &maintenance, &[rename(aside, name)]).await?;
            }
            return Err(e);
        }
        match old {
            Some((aside, true)) => {
                self.sql(cx, &maintenance, &[format!("drop database {}", ident(&aside))]).await?;
            }
            Some((aside, false)) => notes.push(format!("the old database {name:?} is kept as {aside:?}")),
            None => {}
        }
        let Some(properties) = &wanted.line.properties else { return Ok(()) };
        for statement in properties.apply(name) {
            if let Err(e) = self.sql(cx, &maintenance, &[statement]).await {
                notes.push(format!("a property of database {name:?} was not restored: {}", e.chain()));
            }
        }
        Ok(())
    }
}

fn choose<'a>(lines: &'a [Line], request: &RestoreRequest) -> Result<Vec<Wanted<'a>>> {
    if request.rename.is_some() && request.database.is_none() {
        return Err(Error::new(ErrorKind::Usage, "a new name needs one database").hint("name it with --database."));
    }
    let chosen = |l: &&Line| l.table.is_none() && request.database.as_ref().is_none_or(|d| *d == l.database);
    let wanted: Vec<Wanted<'a>> = lines
        .iter()
        .filter(chosen)
        .map(|line| Wanted {
            line,
            tables: lines.iter().filter(|l| l.table.is_some() && l.database == line.database).collect(),
            name: request.rename.clone().unwrap_or_else(|| line.database.clone()),
        })
        .collect();
    match &request.database {
        Some(name) if wanted.is_empty() => {
            Err(Error::new(ErrorKind::NotFound, format!("the point has no database {name:?}"))
                .hint("see its inventory for the names."))
        }
        _ => Ok(wanted),
    }
}
