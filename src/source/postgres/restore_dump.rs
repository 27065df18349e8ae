//! Restores a dump of a whole cluster through `psql`.

use std::collections::BTreeMap;
use std::process::Stdio;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Postgres;
use super::connect::complaint;
use super::inventory::{self, Line};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{Ended, Program};
use crate::source::{ArtefactReader, Context, PointReader, RestoreRequest, Restored};

/// As much of stderr as is kept; when it is full, something may have been lost.
const STDERR_LIMIT: usize = 16 * 1024;

/// What makes a cluster not empty.
const OCCUPANTS: &str = "select coalesce(json_agg(what), '[]') from (
 select 'database ' || quote_ident(datname) as what from pg_database
   where not datistemplate and datname not in ('postgres', current_database())
 union all select 'role ' || quote_ident(rolname) from pg_roles
   where rolname !~ '^pg_' and oid >= 16384 and rolname <> current_user
 union all select 'table ' || c.oid::regclass::text from pg_class c join pg_namespace n on n.oid = c.relnamespace
   where c.oid >= 16384 and c.relkind in ('r', 'p', 'v', 'm', 'S', 'f') and n.nspname !~ '^pg_'
   and n.nspname <> 'information_schema' and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'e')) x";

/// Whether the role is a superuser, and the language of the server's messages.
const LANGUAGE: &str =
    "select json_build_array(current_setting('is_superuser') = 'on', current_setting('lc_messages'))";

/// Feeds an artefact to a program's stdin, while its stdout is thrown away. When the program stops reading, the
/// artefact is still read to its end, because only that proves its digests.
pub(super) async fn feed(cx: &Context, program: Program, mut from: ArtefactReader) -> Result<Ended> {
    feed_observed(cx, program, &mut from, |_| {}).await
}

/// The same, showing each piece to `observe`.
pub(super) async fn feed_observed(
    cx: &Context,
    program: Program,
    from: &mut ArtefactReader,
    mut observe: impl FnMut(&[u8]) + Send,
) -> Result<Ended> {
    let mut running = program.spawn(Stdio::piped())?;
    let mut stdout = running.stdout();
    let mut stdin = running.stdin();
    let work = async {
        let push = async {
            let mut buffer = vec![0; 256 << 10];
            loop {
                let n = from.read(&mut buffer).await?;
                if n == 0 {
                    break;
                }
                observe(&buffer[..n]);
                if let Some(pipe) = &mut stdin
                    && pipe.write_all(&buffer[..n]).await.is_err()
                {
                    stdin = None;
                }
            }
            if let Some(mut pipe) = stdin.take() {
                let _ = pipe.shutdown().await;
            }
            std::io::Result::Ok(())
        };
        let drain = async { tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await.map(|_| ()) };
        tokio::try_join!(push, drain)?;
        running.wait().await
    };
    tokio::select! {
        r = work => r,
        () = cx.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "stopped before it ended")),
    }
}

/// Judges `psql` by what it said: its exit status is 0 in spite of errors. `allowed` says which ones are harmless.
pub(super) fn judge_psql(ended: &Ended, allowed: impl Fn(&str) -> bool) -> Result<()> {
    let markers = [" ERROR:  ", " FATAL:  ", " PANIC:  ", " error: ", "psql: error", "\\connect: "];
    let is_error = |line: &&str| markers.iter().any(|m| line.contains(m));
    let bad: Vec<&str> = ended.stderr.lines().filter(is_error).filter(|line| !allowed(line)).collect();
    if !bad.is_empty() {
        let shown = bad[..bad.len().min(20)].join("\n    ");
        let message = format!("psql reported {} error(s) while restoring", bad.len());
        return Err(Error::new(ErrorKind::Failed, message)
            .caused_by(shown)
            .hint("the target is restored in part only: remove the cause, and restore into an empty cluster again."));
    }
    if !ended.status.success() {
        return Err(complaint(ended, "psql"));
    }
    if ended.stderr.len() >= STDERR_LIMIT {
        return Err(Error::new(ErrorKind::Failed, "psql said more than could be kept, so errors may have been missed")
            .hint("restore by hand into an empty cluster, and read all messages."));
    }
    Ok(())
}

/// `role "x" already exists`: the role that runs the restore is in every dump.
pub(super) fn is_known_role(line: &str) -> bool {
    line.contains("ERROR:  role \"") && line.ends_with("already exists")
}

impl Postgres {
    /// `psql` that reads a script and goes on after errors. [`judge_psql`] must understand the server, which speaks
    /// the language that it is configured for; only a superuser may choose another.
    pub(super) async fn script(&self, cx: &Context, database: &str) -> Result<Program> {
        let program = self.psql(database)?.args(["-v", "ON_ERROR_STOP=0", "-v", "VERBOSITY=default", "-f", "-"]);
        let (superuser, language): (bool, String) = self.query(cx, database, LANGUAGE).await?;
        if superuser {
            return Ok(program.env("PGOPTIONS", "-c lc_messages=C"));
        }
        if ["", "C", "POSIX"].contains(&language.as_str()) || language.starts_with("en") {
            return Ok(program);
        }
        let message = format!("the server's messages are in another language than English ({language})");
        Err(Error::new(ErrorKind::Refused, message)
            .hint("restore as a superuser, or set lc_messages = 'C' on the server: errors could be missed."))
    }

    /// What is in the cluster besides what `initdb` made.
    pub(super) async fn occupants(&self, cx: &Context) -> Result<Vec<String>> {
        self.query(cx, &self.config.database, OCCUPANTS).await
    }

    /// A dump goes into an empty cluster only.
    pub(super) async fn refuse_occupied(&self, cx: &Context) -> Result<()> {
        let occupants = self.occupants(cx).await?;
        if occupants.is_empty() {
            return Ok(());
        }
        let some = occupants[..occupants.len().min(8)].join(", ");
        Err(Error::new(ErrorKind::Refused, format!("the cluster is not empty: {some}"))
            .hint("a dump goes only into an empty cluster: make one with initdb or pg_createcluster, and name it in the configuration."))
    }

    /// See [`crate::source::Source::restore`].
    pub(super) async fn restore_dump(
        &self,
        cx: &Context,
        point: &PointReader,
        request: &RestoreRequest,
    ) -> Result<Restored> {
        refuse_directory(request)?;
        if request.database.is_some() || request.rename.is_some() {
            return Err(Error::new(
                ErrorKind::Usage,
                "one SQL file of a whole cluster has no single databases to restore",
            )
            .hint("restore it into an empty cluster, or use the method `databases` from now on."));
        }
        self.refuse_occupied(cx).await?;
        self.apply_dump(cx, point).await?;
        Ok(Restored {
            target: self.server_name(),
            counts: self.compare_dump(cx, point).await?,
            old_data: None,
            notes: vec!["run ANALYZE: a dump has no statistics".into()],
        })
    }

    /// Runs the SQL of a dump.
    pub(super) async fn apply_dump(&self, cx: &Context, point: &PointReader) -> Result<()> {
        let reader = point.open(super::find(point, "all.sql")?).await?;
        let ended = feed(cx, self.script(cx, &self.config.database).await?, reader).await?;
        judge_psql(&ended, is_known_role)
    }

    /// Counts the rows of every table of a dump that was run, and compares them with the captured ones.
    pub(super) async fn compare_dump(&self, cx: &Context, point: &PointReader) -> Result<BTreeMap<String, u64>> {
        let lines = inventory::load(point).await?;
        let (mut rows, mut databases) = (0, 0);
        for database in lines.iter().filter(|l| l.table.is_none()) {
            let tables: Vec<&Line> = lines.iter().filter(|l| l.database == database.database).collect();
            rows += self.compare_rows(cx, &database.database, &tables).await?;
            databases += 1;
        }
        let tables = lines.iter().filter(|l| l.table.is_some()).count() as u64;
        Ok([("databases".to_owned(), databases), ("tables".into(), tables), ("rows".into(), rows)].into())
    }
}

/// Logical copies go into a running server, not into a directory.
pub(super) fn refuse_directory(request: &RestoreRequest) -> Result<()> {
    if request.to.is_none() && !request.start {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Usage, "this point goes into a running server, not into a directory")
        .hint("name the server in the configuration (host, port), and leave out --to and --start."))
}
