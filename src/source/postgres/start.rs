//! Starts a restored server and waits until its recovery has ended.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::Postgres;
use super::connect::conninfo;
use super::place::Owner;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Program;
use crate::source::Context;

/// Where the server's messages go while it starts.
const LOG: &str = "backstay-start.log";
/// How long recovery may take unless the request says otherwise.
const WAIT: Duration = Duration::from_secs(3600);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(300);

fn as_owner(program: Program, owner: Owner) -> Program {
    if nix::unistd::geteuid().is_root() { program.as_user(owner.uid, owner.gid) } else { program }
}

/// Said of a copy that was started beside the server that it was taken of.
pub(super) const ARCHIVING_OFF: &str = "it was started with archive_mode=off, so that it writes nothing into another server's \
    archive of WAL: a start without that option switches archiving on as its configuration says";

/// Whether a cluster was restored where its server has it.
pub(super) fn is_its_own_place(own: Option<&Path>, target: &Path) -> bool {
    let same = |own: &Path| fs::canonicalize(own).is_ok_and(|own| fs::canonicalize(target).is_ok_and(|to| to == own));
    own.is_some_and(|own| own == target || same(own))
}

/// How a restored server is started.
#[derive(Debug)]
pub(super) struct Start {
    /// The major version of the binaries.
    pub(super) major: String,
    /// How long recovery may take.
    pub(super) wait: Option<Duration>,
    /// Whether its archive of WAL is its own. A copy in another directory may run beside the server that it was taken
    /// of, and must not write into that one's.
    pub(super) archives: bool,
}

impl Postgres {
    /// `pg_ctl start`, then asks until the server has left recovery: `pg_ctl` returns earlier.
    pub(super) async fn start(&self, cx: &Context, data: &Path, owner: Owner, how: &Start) -> Result<()> {
        let wait = how.wait.unwrap_or(WAIT);
        let log = data.join(LOG);
        let failed = |said: String| {
            let tail = std::fs::read_to_string(&log).unwrap_or_default();
            let lines: Vec<&str> = tail.lines().collect();
            let end = lines[lines.len().saturating_sub(12)..].join("\n    ");
            Error::new(ErrorKind::Failed, "the data is restored, but the server did not start")
                .caused_by(format!("{said}\n    {end}"))
                .hint(format!("see {}, and start the server by hand.", log.display()))
        };
        let seconds = wait.as_secs().max(1).to_string();
        let program = Program::new(self.server_tool("pg_ctl", &how.major)).current_dir(data).arg("-D").arg(data);
        let program = if how.archives { program } else { program.args(["-o", "-c archive_mode=off"]) };
        let program = as_owner(program.args(["-w", "-t", &seconds, "-l"]).arg(&log).arg("start"), owner);
        let (_, ended) = program.collect(&cx.cancel, 1 << 20).await?;
        if !ended.status.success() {
            return Err(failed(ended.stderr));
        }
        match tokio::time::timeout(wait, self.recovered(cx, data, owner)).await {
            Ok(result) => result,
            Err(_) => Err(failed(format!("it was still in recovery after {} seconds", wait.as_secs()))),
        }
    }

    async fn recovered(&self, cx: &Context, data: &Path, owner: Owner) -> Result<()> {
        loop {
            // Line 4 is the port, line 5 the directory of the socket, line 6 the first TCP address.
            let text = std::fs::read_to_string(data.join("postmaster.pid")).map_err(|e| {
                Error::new(ErrorKind::Failed, "the data is restored, but the server ended again")
                    .caused_by(e)
                    .hint(format!("see {}.", data.join(LOG).display()))
            })?;
            let lines: Vec<&str> = text.lines().map(str::trim).collect();
            let line = |n: usize| lines.get(n).copied().filter(|l| !l.is_empty());
            if let (Some(port), Some(host)) = (line(3), line(4).or(line(5))) {
                let mut psql = Program::new(self.tool("psql")).env("PGCONNECT_TIMEOUT", "20").current_dir(data);
                psql = psql.args(["-X", "-A", "-t", "-w", "-h", host, "-p", port, "-d"]);
                psql = psql.arg(conninfo(&self.config.database)).args(["-c", "select pg_is_in_recovery()"]);
                psql = self.config.username.iter().fold(psql, |p, user| p.arg("-U").arg(user));
                psql = self.config.passfile.iter().fold(psql, |p, file| p.env("PGPASSFILE", file));
                let (out, ended) = as_owner(psql, owner).collect(&cx.cancel, 4096).await?;
                if ended.status.success() && out.starts_with(b"f") {
                    return Ok(());
                }
                if ended.stderr.contains("authentication failed") || ended.stderr.contains("no password supplied") {
                    return Err(super::connect::complaint(&ended, "psql")
                        .within("the server was started, but the agent may not ask whether its recovery has ended"));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = cx.cancel.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "stopped before it ended")),
            }
        }
    }
}
