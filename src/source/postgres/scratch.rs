//! A throw-away cluster below the scratch directory of a drill, reached by nobody but the drill.
//!
//! - Its own configuration alone counts: `config_file` names ours, and `postgresql.auto.conf` of a copy is emptied. So
//!   nothing of production runs: no archive command, no preloaded library, no standby, no subscription, no TCP.
//! - Settings that belong to a database or a role are stronger than a configuration file; those that load libraries
//!   are taken back on every connection.
//! - The socket lies in a directory of its own. Its path would often be too long for a socket, so the server
//!   names it relative to its data directory, and clients reach it as `/proc/self/cwd`.

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::Postgres;
use super::connect::debian_bins;
use super::place::{Owner, give};
use crate::config::PostgresConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{Program, Running};
use crate::source::Context;

/// Where clients find the socket: their own working directory.
const HERE: &str = "/proc/self/cwd";
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(100);
/// How long an immediate stop may take.
const STOP: Duration = Duration::from_secs(30);

/// What a connection may not load, whatever a database or a role asks for.
const NO_LIBRARIES: &str = "-c session_preload_libraries= -c local_preload_libraries= \
                            -c default_transaction_read_only=off -c statement_timeout=0 -c lock_timeout=0";

/// A program of the server's version that talks to the throw-away server whose socket lies in `dir`.
pub(super) fn confine(program: Program, dir: &Path) -> Program {
    program.current_dir(dir).env("PGOPTIONS", NO_LIBRARIES).env("PGSSLMODE", "disable")
}

/// Directories of a throw-away cluster, and its programs.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Its data directory.
    pub(super) data: PathBuf,
    /// Where tablespaces go.
    pub(super) tablespaces: PathBuf,
    /// Directory of the socket.
    run: PathBuf,
    /// Where its programs are.
    pub(super) bin: PathBuf,
    /// Its major version.
    pub(super) major: u32,
    /// Who runs it.
    pub(super) owner: Owner,
}

/// A running throw-away server. Dropping it kills it.
#[derive(Debug)]
pub(super) struct Live {
    running: Running,
    /// Connects to it, as a superuser.
    pub(super) client: Postgres,
}

/// The directory of server programs of a version: exactly `major`, or (`newer`) at least.
pub(super) async fn programs(cx: &Context, config: &PostgresConfig, major: u32, newer: bool) -> Result<(PathBuf, u32)> {
    let mut dirs: Vec<PathBuf> = config.bin_dir.iter().cloned().collect();
    dirs.extend(debian_bins().into_iter().rev().map(|(_, dir)| dir));
    let mut seen = Vec::new();
    for dir in dirs {
        let asked = Program::new(dir.join("postgres")).arg("--version").collect(&cx.cancel, 4096).await;
        let Ok((out, ended)) = asked else { continue };
        let text = String::from_utf8_lossy(&out).into_owned();
        let digits =
            text.rsplit_once(") ").map(|(_, v)| v.chars().take_while(char::is_ascii_digit).collect::<String>());
        let Some(found) = digits.and_then(|d| d.parse::<u32>().ok()).filter(|_| ended.status.success()) else {
            continue;
        };
        if found == major || (newer && found > major) {
            return Ok((dir, found));
        }
        seen.push(found.to_string());
    }
    let there = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
    Err(Error::new(ErrorKind::Config, format!("there is no PostgreSQL {major} on this host to drill with"))
        .caused_by(format!("server programs that were found: {there}"))
        .hint(format!("install the package postgresql-{major}, set bin_dir, or drill on another host with --host.")))
}

impl Scratch {
    /// Makes the directories, for the user who runs the server.
    pub(super) fn make(at: &Path, bin: PathBuf, major: u32, owner: Owner) -> Result<Self> {
        let dir = |name: &str| {
            let path = at.join(name);
            fs::DirBuilder::new()
                .mode(0o700)
                .create(&path)
                .map_err(|e| Error::io(e, format!("could not make {}", path.display())))?;
            give(&path, owner)?;
            Ok::<_, Error>(path)
        };
        give(at, owner)?;
        let (data, tablespaces, run) = (dir("data")?, dir("tablespaces")?, dir("run")?);
        Ok(Self { data, tablespaces, run, bin, major, owner })
    }

    /// A program of the server, run as its user.
    pub(super) fn program(&self, name: &str) -> Program {
        let program = Program::new(self.bin.join(name)).current_dir(&self.run);
        if nix::unistd::geteuid().is_root() { program.as_user(self.owner.uid, self.owner.gid) } else { program }
    }

    /// Fills the data directory with a new, empty cluster.
    pub(super) async fn init(&self, cx: &Context) -> Result<()> {
        let program = self.program("initdb").arg("-D").arg(&self.data);
        let (_, ended) = program
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"])
            .collect(&cx.cancel, 1 << 20)
            .await
            .map_err(|e| self.unreachable(e))?;
        ended.require_success("initdb")
    }

    /// Starts the server and waits until it has left recovery.
    pub(super) async fn start(&self, cx: &Context, superusers: &[String], wait: Duration) -> Result<Live> {
        self.configure(cx).await?;
        let mut program = self.program("postgres").arg("-D").arg(&self.data);
        program = program.arg("-c").arg(format!("config_file={}", self.run.join("postgresql.conf").display()));
        let mut running = program.spawn(Stdio::null()).map_err(|e| self.unreachable(e))?;
        let mut stdout = running.stdout();
        // It says nothing there, but a full pipe would stop it.
        let drain = async {
            let _ = tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await;
            std::future::pending().await
        };
        let ready = async {
            tokio::select! {
                client = self.recovered(cx, superusers) => client,
                ended = running.wait() => {
                    let said = ended?.stderr;
                    let lines: Vec<&str> = said.lines().collect();
                    let end = lines[lines.len().saturating_sub(12)..].join("\n    ");
                    Err(Error::new(ErrorKind::Failed, "the restored server did not start").caused_by(end))
                }
                never = drain => never,
            }
        };
        let late = || {
            let message = format!("the restored server was still in recovery after {} seconds", wait.as_secs());
            Error::new(ErrorKind::Failed, message)
        };
        let client = tokio::time::timeout(wait, ready).await.unwrap_or_else(|_| Err(late()))?;
        Ok(Live { running, client })
    }

    /// Our own configuration, with the few values that a copy's recovery cannot do without.
    async fn configure(&self, cx: &Context) -> Result<()> {
        let needed = self.prepared_transactions(cx).await?;
        let mut text = format!(
            "# made for a drill\n\
             listen_addresses = ''\nunix_socket_directories = '../run'\nunix_socket_permissions = 0700\nport = 5432\n\
             hba_file = '../run/pg_hba.conf'\nident_file = '../run/pg_ident.conf'\nexternal_pid_file = ''\n\
             archive_mode = off\narchive_command = ''\nrestore_command = ''\nrecovery_end_command = ''\n\
             archive_cleanup_command = ''\nprimary_conninfo = ''\nprimary_slot_name = ''\nhot_standby = off\n\
             max_wal_senders = 0\nmax_replication_slots = 10\nsynchronous_standby_names = ''\n\
             max_logical_replication_workers = 0\nshared_preload_libraries = ''\nsession_preload_libraries = ''\n\
             local_preload_libraries = ''\nssl = off\nlogging_collector = off\nlog_destination = 'stderr'\n\
             autovacuum = off\nfsync = off\nfull_page_writes = off\nsynchronous_commit = off\njit = off\n\
             shared_buffers = 128MB\nmax_connections = 20\nshared_memory_type = mmap\n\
             dynamic_shared_memory_type = mmap\nmax_prepared_transactions = {needed}\n"
        );
        if self.major >= 17 {
            text.push_str("event_triggers = off\nsummarize_wal = off\n");
        }
        let files =
            [("postgresql.conf", text.as_str()), ("pg_hba.conf", "local all all trust\n"), ("pg_ident.conf", "")];
        for (name, text) in files {
            let path = self.run.join(name);
            fs::write(&path, text).map_err(|e| Error::io(e, format!("could not write {}", path.display())))?;
            give(&path, self.owner)?;
        }
        Ok(())
    }

    /// How many prepared transactions the copy may hold, as its control file says.
    async fn prepared_transactions(&self, cx: &Context) -> Result<u32> {
        let (out, ended) =
            self.program("pg_controldata").arg("-D").arg(&self.data).collect(&cx.cancel, 1 << 16).await?;
        ended.require_success("pg_controldata").map_err(|e| e.within("the restored control file cannot be read"))?;
        let text = String::from_utf8_lossy(&out).into_owned();
        let line = text.lines().find_map(|l| l.strip_prefix("max_prepared_xacts setting:"));
        Ok(line.and_then(|n| n.trim().parse().ok()).unwrap_or(0))
    }

    /// Asks as one role after the other, until one is let in and recovery has ended.
    async fn recovered(&self, cx: &Context, superusers: &[String]) -> Result<Postgres> {
        let mut at = 0;
        loop {
            let client = self.client(&superusers[at]);
            let query = "select json_build_array(pg_is_in_recovery(), (select rolsuper from pg_roles where rolname = current_user))";
            match client.query::<(bool, bool)>(cx, "template1", query).await {
                Ok((false, true)) => return Ok(client),
                Ok((true, _)) => {}
                Ok((false, false)) => at += 1,
                Err(e) if e.chain().contains("does not exist") || e.chain().contains("not permitted to log in") => {
                    at += 1
                }
                Err(_) => {}
            }
            if at == superusers.len() {
                let tried = superusers.join(", ");
                return Err(Error::new(ErrorKind::Config, "the restored server has no superuser that is known")
                    .caused_by(format!("tried: {tried}"))
                    .hint("set username of the service to a superuser of that server."));
            }
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                () = cx.cancel.cancelled() => return Err(Error::new(ErrorKind::Cancelled, "stopped before it ended")),
            }
        }
    }

    fn client(&self, superuser: &str) -> Postgres {
        let config = PostgresConfig {
            method: crate::config::PostgresMethod::Dump,
            bin_dir: Some(self.bin.clone()),
            host: Some(HERE.to_owned()),
            port: Some(5432),
            username: Some(superuser.to_owned()),
            passfile: None,
            database: "template1".to_owned(),
            staging_dir: None,
            max_rate: None,
            include: Vec::new(),
            exclude: Vec::new(),
            jobs: 1,
            lock_wait: crate::units::Span::from_secs(60),
            data_dir: None,
            run_as: None,
        };
        Postgres { config, inside: Some(self.run.clone()) }
    }

    /// The likeliest reason why a program could not be run as the server's user.
    pub(super) fn unreachable(&self, e: Error) -> Error {
        if !nix::unistd::geteuid().is_root() {
            return e;
        }
        let user = nix::unistd::User::from_uid(self.owner.uid.into()).ok().flatten();
        let user = user.map_or_else(|| self.owner.uid.to_string(), |u| u.name);
        e.hint(format!(
            "let user {user} enter every directory above {}, or set `drill.scratch_dir`.",
            self.run.display()
        ))
    }
}

impl Live {
    /// Stops the server at once: its data is thrown away.
    pub(super) async fn stop(mut self) {
        self.running.signal(Signal::SIGQUIT);
        // Dropping it kills what did not stop.
        let _ = tokio::time::timeout(STOP, self.running.wait()).await;
    }
}
