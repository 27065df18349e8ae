//! Where the programs of PostgreSQL are, how they are called, and what their complaints mean.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use super::Postgres;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{Ended, Program};
use crate::privilege;
use crate::source::Context;
use crate::units::Bytes;

const DEBIAN_ROOT: &str = "/usr/lib/postgresql";
/// Seconds a connection may take.
const CONNECT_SECONDS: &str = "20";
/// Time one query of the agent's own may take.
const QUERY_LIMIT: Duration = Duration::from_secs(3600);

/// Directories of the installed versions below Debian's root, newest first.
pub(super) fn debian_bins() -> Vec<(u32, PathBuf)> {
    let entries = std::fs::read_dir(DEBIAN_ROOT).into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = entries
        .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
        .filter(|(_, bin)| bin.is_dir())
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

/// A connection string that names a database, whatever its characters.
pub(super) fn conninfo(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// An SQL literal, whatever `standard_conforming_strings` says.
pub(super) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// A quoted SQL identifier.
pub(super) fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Postgres {
    /// A program of PostgreSQL: from `bin_dir`, else from the newest version installed, else from the `PATH`.
    pub(super) fn tool(&self, name: &str) -> PathBuf {
        if let Some(dir) = &self.config.bin_dir {
            return dir.join(name);
        }
        let mut bins = debian_bins().into_iter().map(|(_, bin)| bin.join(name));
        bins.find(|path| path.exists()).unwrap_or_else(|| name.into())
    }

    /// A server program of exactly this major version.
    pub(super) fn server_tool(&self, name: &str, major: &str) -> PathBuf {
        let exact = debian_bins().into_iter().find(|(v, _)| v.to_string() == major).map(|(_, bin)| bin.join(name));
        match (&self.config.bin_dir, exact) {
            (None, Some(path)) if path.exists() => path,
            _ => self.tool(name),
        }
    }

    /// Whether a program of PostgreSQL is there.
    pub(super) fn has_tool(&self, name: &str) -> bool {
        let path = self.tool(name);
        let on_path =
            || std::env::var_os("PATH").is_some_and(|p| std::env::split_paths(&p).any(|d| d.join(name).exists()));
        if path.components().count() > 1 { path.exists() } else { on_path() }
    }

    /// A client program with the connection's arguments. Never asks for a password; passwords come from the passfile
    /// or the server's own rules.
    pub(super) fn client(&self, name: &str) -> Result<Program> {
        let mut program = self
            .as_service_user(Program::new(self.tool(name)))?
            .arg("--no-password")
            .env("PGCONNECT_TIMEOUT", CONNECT_SECONDS)
            .env("PGAPPNAME", "backstay");
        if let Some(host) = &self.config.host {
            program = program.arg("--host").arg(host);
        }
        if let Some(port) = self.config.port {
            program = program.arg("--port").arg(port.to_string());
        }
        if let Some(user) = &self.config.username {
            program = program.arg("--username").arg(user);
        }
        if let Some(file) = &self.config.passfile {
            check_passfile(file)?;
            program = program.env("PGPASSFILE", file);
        }
        if let Some(dir) = &self.inside {
            program = super::scratch::confine(program, dir);
        }
        Ok(program)
    }

    /// As root: runs the program as the user of the service, whom the server knows by peer authentication. A backup
    /// has become that user already; a restore stays root, to read what only root may read.
    fn as_service_user(&self, program: Program) -> Result<Program> {
        let Some(name) = self.config.run_as.as_deref().filter(|_| privilege::is_root()) else { return Ok(program) };
        let user = privilege::user(name)?;
        let program = program.env("HOME", &user.dir).env("USER", name).env("LOGNAME", name).current_dir("/");
        Ok(program.as_user(user.uid.as_raw(), user.gid.as_raw()))
    }

    /// `psql` connected to `database`, reading no start files.
    pub(super) fn psql(&self, database: &str) -> Result<Program> {
        Ok(self.client("psql")?.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d"]).arg(conninfo(database)))
    }

    /// Runs statements, one by one; what they print.
    pub(super) async fn sql(&self, cx: &Context, database: &str, statements: &[String]) -> Result<String> {
        let mut program = self.psql(database)?;
        for statement in statements {
            program = program.arg("-c").arg(statement);
        }
        let (out, ended) = tokio::time::timeout(QUERY_LIMIT, program.collect(&cx.cancel, 64 << 20))
            .await
            .map_err(|_| Error::new(ErrorKind::Unavailable, "psql did not answer within an hour"))??;
        judge(&ended, "psql")?;
        Ok(String::from_utf8_lossy(&out).into_owned())
    }

    /// Runs a query that yields one JSON value.
    pub(super) async fn query<T: DeserializeOwned>(&self, cx: &Context, database: &str, query: &str) -> Result<T> {
        let text = self.sql(cx, database, &[query.to_owned()]).await?;
        serde_json::from_str(text.trim())
            .map_err(|e| Error::new(ErrorKind::Failed, "the server gave an answer that makes no sense").caused_by(e))
    }

    /// The server, for people.
    pub(super) fn server_name(&self) -> String {
        self.config.host.as_ref().map_or_else(|| "the local server".into(), |host| format!("the server at {host}"))
    }

    /// Whether the server is this host's, as far as the configuration tells.
    pub(super) fn is_local(&self) -> bool {
        match self.config.host.as_deref() {
            None => true,
            Some(host) => host.starts_with('/') || host.starts_with('@'),
        }
    }
}

fn check_passfile(file: &Path) -> Result<()> {
    let meta = std::fs::metadata(file).map_err(|e| {
        Error::new(ErrorKind::Config, format!("could not look at the passfile {}", file.display()))
            .caused_by(e)
            .hint("correct passfile in the configuration, or let the agent's user read it.")
    })?;
    if !meta.is_file() || meta.permissions().mode() & 0o077 != 0 {
        return Err(Error::new(ErrorKind::Config, format!("the passfile {} can be read by others", file.display()))
            .hint(format!("run chmod 600 {}.", file.display())));
    }
    Ok(())
}

/// What the complaints of PostgreSQL's programs mean: a fragment of the message, the kind, and what to do.
const COMPLAINTS: &[(&str, ErrorKind, &str)] = &[
    ("No space left on device", ErrorKind::NoSpace, "free space on the disk that is named above."),
    (
        "no pg_hba.conf entry for replication",
        ErrorKind::Denied,
        "add a line for the database `replication` to pg_hba.conf, and reload the server.",
    ),
    ("no pg_hba.conf entry", ErrorKind::Denied, "add a line for this user to pg_hba.conf, and reload the server."),
    (
        "Peer authentication failed",
        ErrorKind::Denied,
        "set `user` of the service to the operating system's user of that name, such as postgres, or set username.",
    ),
    (
        "FATAL:  role \"",
        ErrorKind::Denied,
        "set `user` of the service to an operating system's user that may log in, such as postgres, or set username.",
    ),
    ("password authentication failed", ErrorKind::Denied, "correct the password in the passfile."),
    ("no password supplied", ErrorKind::Denied, "set passfile, with a line for this host, port, database and user."),
    ("must be superuser or replication role", ErrorKind::Denied, "run ALTER ROLE ... REPLICATION for this user."),
    ("permission denied to start WAL sender", ErrorKind::Denied, "run ALTER ROLE ... REPLICATION for this user."),
    (
        "would be affected by row-level security",
        ErrorKind::Denied,
        "dump as a superuser or a role with BYPASSRLS: row-level security would hide rows.",
    ),
    ("permission denied", ErrorKind::Denied, "dump as a superuser, or grant the role what is named above."),
    ("must be superuser", ErrorKind::Denied, "log in as a superuser."),
    (
        "requested WAL segment",
        ErrorKind::Unavailable,
        "raise wal_keep_size on the server: it removed WAL that the copy needs while it was being taken.",
    ),
    (
        "could not find any WAL file",
        ErrorKind::Unavailable,
        "raise wal_keep_size on the server: it removed WAL that the copy needs while it was being taken.",
    ),
    ("max_wal_senders", ErrorKind::Unavailable, "raise max_wal_senders on the server."),
    ("too many clients", ErrorKind::Unavailable, "raise max_connections on the server."),
    ("remaining connection slots", ErrorKind::Unavailable, "raise max_connections on the server."),
    ("WAL level not sufficient", ErrorKind::Config, "set wal_level to replica on the server, and restart it."),
    (
        "canceling statement due to lock timeout",
        ErrorKind::Unavailable,
        "find out what holds the table's lock, or raise lock_wait.",
    ),
    (
        "canceling statement due to statement timeout",
        ErrorKind::Unavailable,
        "find out what holds the table's lock, or raise lock_wait.",
    ),
    (
        "server version mismatch",
        ErrorKind::Config,
        "install the client programs of the server's version, or set bin_dir.",
    ),
    ("the database system is", ErrorKind::Unavailable, "wait until the server has started."),
    ("server closed the connection", ErrorKind::Unavailable, "look into the server's log."),
    ("terminating connection", ErrorKind::Unavailable, "look into the server's log."),
    (
        "s the server running",
        ErrorKind::Unavailable,
        "see whether the server runs, and correct host and port in the configuration.",
    ),
    (
        "connection to server",
        ErrorKind::Unavailable,
        "see the server's answer above, and correct host, port, username and database in the configuration.",
    ),
    (
        "could not connect",
        ErrorKind::Unavailable,
        "see whether the server runs, and correct host and port in the configuration.",
    ),
];

/// Success, or an error whose kind and hint come from what the program said.
pub(super) fn judge(ended: &Ended, name: &str) -> Result<()> {
    if ended.status.success() { Ok(()) } else { Err(complaint(ended, name)) }
}

/// The error for a program that failed.
pub(super) fn complaint(ended: &Ended, name: &str) -> Error {
    let mut err = ended.failure(name);
    if let Some((_, kind, hint)) = COMPLAINTS.iter().find(|(text, ..)| ended.stderr.contains(text)) {
        err.kind = *kind;
        err = err.hint(*hint);
    }
    err
}

/// Free bytes on the file system of `path`, or of its nearest ancestor that exists.
pub(super) fn free_bytes(path: &Path) -> Result<u64> {
    let there = path.ancestors().find(|p| p.is_dir()).unwrap_or(Path::new("/"));
    let stat = nix::sys::statvfs::statvfs(there)
        .map_err(|e| Error::io(e.into(), format!("could not ask for the free space of {}", there.display())))?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// Refuses to begin what will not fit.
pub(super) fn require_space(path: &Path, needed: u64) -> Result<()> {
    let free = free_bytes(path)?;
    if free >= needed {
        return Ok(());
    }
    let message = format!("{} has {} free, but {} are needed", path.display(), Bytes(free), Bytes(needed));
    Err(Error::new(ErrorKind::NoSpace, message).hint("free space there, or name another directory."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_escape() {
        assert_eq!(conninfo(r"o'b\x host=evil"), r"dbname='o\'b\\x host=evil'");
        assert_eq!(literal(r"a'b\"), r"E'a''b\\'");
        assert_eq!(ident(r#"a"b"#), r#""a""b""#);
    }

    #[test]
    fn a_passfile_of_others_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(check_passfile(file.path()).unwrap_err().kind, ErrorKind::Config);
        std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
        check_passfile(file.path()).unwrap();
    }
}
