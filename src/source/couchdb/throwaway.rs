//! A throw-away node below the scratch directory of a drill, reached by nobody but the drill.
//!
//! - Its own configuration alone counts, after the defaults of the installation: no admin, no secret, no setting of
//!   production. It listens on two ports of the loopback device.
//! - It has no Erlang name. So it has no cookie, starts no port mapper, and cannot talk to any other node.
//! - It never connects out: the files of databases with jobs of replication are not there, and the scheduler is off.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::node::Node;
use crate::config::CouchdbConfig;
use crate::config::secret::{Secret, SecretRef};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{Program, Running};
use crate::source::{Context, SCRATCH_VARIABLE};

const PAUSE: Duration = Duration::from_millis(200);
/// The program is to be looked at, not to be waited for without end.
const START: Duration = Duration::from_secs(300);
const ADMIN: &str = "backstay";

/// The program of an installation, if there is one.
pub(super) fn program(config: &CouchdbConfig) -> Option<PathBuf> {
    let path = config.bin_dir.join("couchdb");
    path.is_file().then_some(path)
}

/// Who runs the node: as root, the user that CouchDB's packages make.
pub(super) fn owner() -> Option<(u32, u32)> {
    let root = nix::unistd::Uid::effective().is_root();
    let user = nix::unistd::User::from_name("couchdb").ok().flatten().filter(|_| root);
    user.map_or_else(|| root.then_some((0, 0)), |u| Some((u.uid.as_raw(), u.gid.as_raw())))
}

/// A running node. Dropping it kills it: its data is thrown away.
#[derive(Debug)]
pub(super) struct Throwaway {
    running: Running,
    /// Settings with which it is asked as its admin.
    pub(super) config: CouchdbConfig,
}

fn random() -> Result<String> {
    let mut bytes = [0_u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| Error::new(ErrorKind::Internal, "no random numbers").caused_by(e))?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

/// Ports that are free now. Whoever takes one before the node does is told apart by the password.
fn free_ports() -> Result<[u16; 2]> {
    let failed = |e| Error::io(e, "could not find a free port");
    let held = [TcpListener::bind("127.0.0.1:0").map_err(failed)?, TcpListener::bind("127.0.0.1:0").map_err(failed)?];
    let port = |listener: &TcpListener| listener.local_addr().map(|at| at.port()).map_err(failed);
    Ok([port(&held[0])?, port(&held[1])?])
}

fn ini(dir: &Path, data: &Path, ports: [u16; 2], password: &str) -> String {
    format!(
        "; made for a drill\n[couchdb]\ndatabase_dir = {data}\nview_index_dir = {data}\n\
         [chttpd]\nport = {}\nbind_address = 127.0.0.1\n[httpd]\nport = {}\nbind_address = 127.0.0.1\n\
         [admins]\n{ADMIN} = {password}\n[cluster]\nq = 1\nn = 1\n[replicator]\nmax_jobs = 0\n[reshard]\nmax_jobs = 0\n\
         [smoosh]\ndb_channels = ,\nview_channels = ,\n[prometheus]\nadditional_port = false\n\
         [log]\nwriter = file\nfile = {dir}/log\nlevel = warning\n",
        ports[0],
        ports[1],
        data = data.display(),
        dir = dir.display(),
    )
}

/// No name, no shell, and nothing read from the terminal.
const ARGUMENTS: &str = "+Bd -noinput\n-kernel error_logger silent\n-sasl sasl_error_logger false\n";

fn write(path: &Path, text: &str, owner: Option<(u32, u32)>) -> Result<()> {
    use std::io::Write as _;
    let failed = |e| Error::io(e, format!("could not write {}", path.display()));
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    give(path, owner)
}

fn give(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    std::os::unix::fs::chown(path, Some(uid), Some(gid))
        .map_err(|e| Error::io(e, format!("could not change the owner of {}", path.display())))
}

impl Throwaway {
    /// Starts a node in `scratch`, on the files in `data`, and waits until it answers.
    pub(super) async fn start(
        cx: &Context,
        config: &CouchdbConfig,
        scratch: &Path,
        data: &Path,
        wait: Duration,
    ) -> Result<Self> {
        let couchdb = program(config).unwrap_or_default();
        let (owner, dir) = (owner(), scratch.join("run"));
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|e| Error::io(e, format!("could not make {}", dir.display())))?;
        for path in [scratch, &dir, data] {
            give(path, owner)?;
        }
        let (ports, password) = (free_ports()?, random()?);
        write(&dir.join("drill.ini"), &ini(&dir, data, ports, &password), owner)?;
        write(&dir.join("vm.args"), ARGUMENTS, owner)?;
        let defaults = config.bin_dir.join("../etc/default.ini");
        let mut program = Program::new(&couchdb).arg("-couch_ini").arg(defaults).arg(dir.join("drill.ini"));
        // What the environment says of an Erlang or a CouchDB is meant for another one.
        for name in ["COUCHDB_INI_FILES", "ERL_FLAGS", "ERL_AFLAGS", "ERL_ZFLAGS"] {
            program = program.env(name, "");
        }
        program = program.env("COUCHDB_ARGS_FILE", dir.join("vm.args")).env("HOME", &dir).current_dir(&dir);
        program = program.env("ERL_CRASH_DUMP", dir.join("crash")).env(SCRATCH_VARIABLE, scratch);
        if let Some((uid, gid)) = owner.filter(|(uid, _)| *uid != 0) {
            program = program.as_user(uid, gid);
        }
        let held = SecretRef::Held { from: "a drill".into(), secret: Secret::new(password) };
        let asked = CouchdbConfig {
            data_dir: data.to_owned(),
            url: format!("http://127.0.0.1:{}", ports[0]),
            node_local_url: format!("http://127.0.0.1:{}", ports[1]),
            username: Some(ADMIN.into()),
            password: Some(held),
            ..config.clone()
        };
        let running = program.spawn(Stdio::null()).map_err(|e| {
            e.hint("let the user `couchdb` enter every directory above the scratch directory, or correct `bin_dir`.")
        })?;
        let mut made = Self { running, config: asked };
        made.answers(cx, &dir, wait.min(START)).await?;
        Ok(made)
    }

    async fn answers(&mut self, cx: &Context, dir: &Path, wait: Duration) -> Result<()> {
        let node = Node::new(&self.config, true)?;
        let mut stdout = self.running.stdout();
        // A full pipe would stop it.
        tokio::spawn(async move { tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await });
        let up = async {
            while node.identity().await.is_err() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let said = || {
            let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(6)..].join("\n    ")
        };
        let outcome = tokio::select! {
            () = up => Ok(()),
            ended = self.running.wait() => {
                let said = format!("{}\n    {}", ended?.stderr.trim(), said());
                Err(Error::new(ErrorKind::Failed, "the throw-away node did not start").caused_by(said.trim().to_owned()))
            }
            () = tokio::time::sleep(wait) => {
                let message = format!("the throw-away node does not answer {} seconds after its start", wait.as_secs());
                Err(Error::new(ErrorKind::Failed, message).caused_by(said()))
            }
            () = cx.cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "stopped before it ended")),
        };
        outcome.map_err(|e| e.hint("correct `bin_dir`, or read the files only: --stream."))
    }
}
