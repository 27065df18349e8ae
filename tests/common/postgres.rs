//! Throw-away PostgreSQL servers: a directory, a socket in it, a process that ends with the value.

#![allow(clippy::disallowed_methods, reason = "servers are started as their administrators start them")]

use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use backstay::config::{PostgresConfig, PostgresMethod};

/// The programs that are tested with: `BACKSTAY_TEST_PG_BIN`, else Debian's.
pub(crate) fn bin() -> &'static str {
    static BIN: LazyLock<String> = LazyLock::new(|| {
        std::env::var("BACKSTAY_TEST_PG_BIN").unwrap_or_else(|_| "/usr/lib/postgresql/15/bin".to_owned())
    });
    &BIN
}

/// Their major version.
pub(crate) fn major() -> u32 {
    let text = run(format!("{}/postgres", bin()), &["--version"]);
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// User and group of the server, when the tests run as root.
fn server_user() -> Option<(u32, u32)> {
    let user = nix::unistd::User::from_name("postgres").unwrap();
    nix::unistd::geteuid()
        .is_root()
        .then(|| user.expect("root needs a user postgres"))
        .map(|u| (u.uid.as_raw(), u.gid.as_raw()))
}

/// Runs a program of the server as the server's user; its output.
fn run(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> String {
    attempt(program, args).unwrap_or_else(|said| panic!("{args:?}: {said}"))
}

/// The same; what it said when it failed.
fn attempt(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<String, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).current_dir("/");
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    if out.status.success() { Ok(text) } else { Err(text + &String::from_utf8_lossy(&out.stderr)) }
}

/// A directory that the server's user owns and everyone may enter.
pub(crate) fn server_dir(path: &Path) -> PathBuf {
    std::fs::create_dir_all(path).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    if let Some((uid, gid)) = server_user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
    path.to_owned()
}

/// A server that ends with this value.
#[derive(Debug)]
pub(crate) struct Server {
    /// Holds everything; removed at the end.
    pub(crate) dir: tempfile::TempDir,
    /// Its data directory.
    pub(crate) data: PathBuf,
}

impl Server {
    /// A new cluster with checksums, started.
    pub(crate) fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        server_dir(dir.path());
        let data = dir.path().join("data");
        let d = data.to_str().unwrap();
        run(
            format!("{}/initdb", bin()),
            &["-D", d, "-U", "postgres", "-A", "trust", "-N", "-k", "-E", "UTF8", "--locale=C.UTF-8"],
        );
        let server = Self { dir, data };
        server.settle(server.dir.path());
        server.up();
        server
    }
    /// Writes the settings that keep the server to itself, its socket in `socket`.
    pub(crate) fn settle(&self, socket: &Path) {
        let text = format!(
            "listen_addresses = ''\nunix_socket_directories = '{}'\nfsync = off\nshared_buffers = 16MB\nwal_keep_size = 64MB\n",
            socket.display()
        );
        std::fs::write(self.data.join("postgresql.conf"), text).unwrap();
    }
    /// Starts it.
    pub(crate) fn up(&self) {
        self.up_with("");
    }
    /// Starts it, or says why it did not start.
    pub(crate) fn try_up(&self) -> Result<String, String> {
        let (data, log) = (self.data.to_str().unwrap(), self.dir.path().join("log"));
        attempt(format!("{}/pg_ctl", bin()), &["-D", data, "-w", "-l", log.to_str().unwrap(), "start"])
    }
    /// Starts it with options for the server.
    pub(crate) fn up_with(&self, options: &str) {
        let (data, log) = (self.data.to_str().unwrap(), self.dir.path().join("log"));
        run(format!("{}/pg_ctl", bin()), &["-D", data, "-w", "-o", options, "-l", log.to_str().unwrap(), "start"]);
    }
    /// Starts it with messages in German, if its translations are installed.
    pub(crate) fn up_in_german(&self) {
        let (data, log) = (self.data.to_str().unwrap(), self.dir.path().join("log"));
        let (pg_ctl, log) = (format!("{}/pg_ctl", bin()), log.to_str().unwrap());
        // A language without a locale: no locale of the language needs to be installed.
        let env = ["-u", "LC_ALL", "LANGUAGE=de", "LANG=C.UTF-8", "LC_MESSAGES=C.UTF-8"];
        let start = [pg_ctl.as_str(), "-D", data, "-w", "-l", log, "start"];
        run("env", &[&env[..], &start].concat());
    }
    /// Listens on a port of the loopback too, when it is started again.
    pub(crate) fn listen(&self) -> u16 {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = self.data.join("postgresql.conf");
        let text = std::fs::read_to_string(&path).unwrap();
        let text = text.replace("listen_addresses = ''", &format!("listen_addresses = '127.0.0.1'\nport = {port}"));
        std::fs::write(path, text).unwrap();
        port
    }
    /// Stops it.
    pub(crate) fn down(&self) {
        run(format!("{}/pg_ctl", bin()), &["-D", self.data.to_str().unwrap(), "-w", "-m", "fast", "stop"]);
    }
    /// A standby of this server, started, with its own socket.
    pub(crate) fn standby(&self) -> Self {
        let dir = tempfile::Builder::new().prefix("pg").tempdir().unwrap();
        server_dir(dir.path());
        let data = dir.path().join("data");
        let socket = self.dir.path().to_str().unwrap();
        run(
            format!("{}/pg_basebackup", bin()),
            &["-h", socket, "-U", "postgres", "-D", data.to_str().unwrap(), "-R", "-c", "fast"],
        );
        let standby = Self { dir, data };
        standby.settle(standby.dir.path());
        standby.up();
        standby
    }
    /// Runs SQL; what it prints.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        self.try_sql(database, sql).unwrap_or_else(|said| panic!("{sql}: {said}"))
    }
    /// Runs SQL; what it prints, or what `psql` complains about.
    pub(crate) fn try_sql(&self, database: &str, sql: &str) -> Result<String, String> {
        let socket = self.dir.path().display();
        let port = self.port();
        let conninfo = format!("dbname='{}' host='{socket}' port={port} user=postgres", database.replace('\'', "\\'"));
        let args = ["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", &conninfo, "-c", sql];
        attempt(format!("{}/psql", bin()), &args).map(|text| text.trim().to_owned())
    }
    fn port(&self) -> u16 {
        let text = std::fs::read_to_string(self.data.join("postgresql.conf")).unwrap_or_default();
        text.lines().find_map(|l| l.strip_prefix("port = ")).map_or(5432, |n| n.parse().unwrap())
    }
    /// Settings that connect to it.
    pub(crate) fn config(&self, method: PostgresMethod) -> PostgresConfig {
        let text = format!(
            r#"{{"method": {}, "host": {:?}, "port": {}, "username": "postgres", "bin_dir": {:?}}}"#,
            serde_json::to_string(&method).unwrap(),
            self.dir.path(),
            self.port(),
            bin()
        );
        serde_json::from_str(&text).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let text = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        if let Some(pid) = text.lines().next().and_then(|l| l.parse().ok()) {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGQUIT);
        }
    }
}

/// A directory of the real programs, with `name` replaced by a shell script.
pub(crate) fn fake_tool(dir: &Path, name: &str, script: &str) -> PathBuf {
    let tree = dir.join(format!("bin-{name}"));
    std::fs::create_dir(&tree).unwrap();
    for entry in std::fs::read_dir(bin()).unwrap().flatten().filter(|e| e.file_name() != name) {
        symlink(entry.path(), tree.join(entry.file_name())).unwrap();
    }
    let text = tree.join("script.txt");
    std::fs::write(
        &text,
        format!("#!/bin/sh\nreal={}/{name}\n[ \"$1\" = --version ] && exec $real \"$@\"\n{script}\n", bin()),
    )
    .unwrap();
    // Another process writes the program: a descriptor open for writing here could reach a child that another test
    // starts, and the kernel does not run a file that is open for writing.
    let status = Command::new("install").args(["-m", "755"]).arg(&text).arg(tree.join(name)).status().unwrap();
    assert!(status.success());
    tree
}
