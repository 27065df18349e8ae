//! A throw-away PostgreSQL server for the demo: own directory, private socket, no TCP.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};
use crate::exec::Program;
use crate::privilege;

/// Rows of the sample table.
pub(super) const ROWS: u32 = 20_000;
/// The longest path of a socket, less the name that PostgreSQL adds (`sun_path` is 108 bytes).
const SOCKET_DIR_LIMIT: usize = 90;

/// A running server.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) version: String,
    pub(super) bin_dir: PathBuf,
    pub(super) socket_dir: PathBuf,
    pub(super) port: u16,
    data: PathBuf,
    owner: Option<nix::unistd::User>,
}

/// Makes and starts a server below `dir`, or says why that is not possible here.
pub(super) async fn start(dir: &Path, cancel: &CancellationToken) -> Result<Server> {
    let bin_dir = newest_bin_dir()?;
    let home = dir.join("pg");
    if home.as_os_str().len() > SOCKET_DIR_LIMIT {
        return Err(Error::new(ErrorKind::Config, "the directory's path is too long for a socket"));
    }
    // PostgreSQL refuses to run as root.
    let owner = if privilege::is_root() {
        Some(privilege::user("postgres").or_else(|_| privilege::user("nobody"))?)
    } else {
        None
    };
    std::fs::create_dir_all(&home).map_err(|e| Error::io(e, "could not make the server's directory"))?;
    if let Some(user) = &owner {
        privilege::give(&home, user.uid, user.gid)
            .map_err(|e| Error::io(e, "could not give the server its directory"))?;
    }
    std::fs::set_permissions(&home, std::fs::Permissions::from_mode(0o700))
        .map_err(|e| Error::io(e, "could not protect the server's directory"))?;
    let server = Server {
        version: String::new(),
        bin_dir,
        socket_dir: home.clone(),
        port: 5432,
        data: home.join("data"),
        owner,
    };
    server
        .tool("initdb")
        .arg("-D")
        .arg(&server.data)
        .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"])
        .output(cancel)
        .await?;
    let options = format!("-c listen_addresses='' -c unix_socket_directories='{}' -c fsync=off", home.display());
    let log = home.join("log");
    let start = server
        .tool("pg_ctl")
        .args(["-w", "-t", "60", "start", "-D"])
        .arg(&server.data)
        .arg("-o")
        .arg(options)
        .arg("-l")
        .arg(&log);
    start.output(cancel).await?;
    match server.fill(cancel).await {
        Ok(version) => Ok(Server { version, ..server }),
        Err(err) => {
            server.stop().await;
            Err(err)
        }
    }
}

fn newest_bin_dir() -> Result<PathBuf> {
    let missing = || Error::new(ErrorKind::Config, "no PostgreSQL server is installed");
    let versions = std::fs::read_dir("/usr/lib/postgresql").map_err(|_| missing())?;
    let numbered = versions.flatten().filter_map(|e| Some((e.file_name().to_str()?.parse::<u32>().ok()?, e.path())));
    let with_server = numbered.map(|(n, p)| (n, p.join("bin"))).filter(|(_, bin)| bin.join("initdb").exists());
    with_server.max().map(|(_, bin)| bin).ok_or_else(missing)
}

impl Server {
    fn tool(&self, name: &str) -> Program {
        let program = Program::new(self.bin_dir.join(name)).current_dir("/");
        match &self.owner {
            Some(user) => program.as_user(user.uid.as_raw(), user.gid.as_raw()),
            None => program,
        }
    }

    async fn query(&self, database: &str, sql: &str, cancel: &CancellationToken) -> Result<String> {
        let psql = self.tool("psql").args(["-X", "-A", "-t", "-w", "-U", "postgres", "-h"]).arg(&self.socket_dir);
        let out = psql.args(["-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]).output(cancel).await?;
        Ok(String::from_utf8_lossy(&out).trim().to_owned())
    }

    async fn fill(&self, cancel: &CancellationToken) -> Result<String> {
        self.query("postgres", "create database shop", cancel).await?;
        let rows = format!(
            "create table orders as select n as id, md5(n::text) as code, now() as placed from generate_series(1, {ROWS}) n"
        );
        self.query("shop", &rows, cancel).await?;
        self.query("shop", "select 'version ' || current_setting('server_version')", cancel).await
    }

    /// Compares the restored database with the first one.
    pub(super) async fn compare(&self, cancel: &CancellationToken) -> Result<()> {
        let digest = "select count(*) || ' ' || md5(string_agg(o::text, ',' order by id)) from orders o";
        let (old, new) =
            (self.query("shop", digest, cancel).await?, self.query("shop_restored", digest, cancel).await?);
        if old == new {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, "the restored database differs from the first one"))
    }

    /// Stops the server.
    pub(super) async fn stop(&self) {
        let stop = self.tool("pg_ctl").args(["-w", "-m", "immediate", "stop", "-D"]).arg(&self.data);
        let _ = stop.output(&CancellationToken::new()).await;
    }
}
