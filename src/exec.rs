//! Runs programs: argv, no shell, own process group, stderr tail, exit status is the truth.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};

use bytes::BytesMut;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_util::sync::CancellationToken;

use crate::artefact::{ArtefactWriter, CHUNK_BYTES};
use crate::error::{Error, ErrorKind, Result};

/// Bytes of a program's stderr that are kept: its end.
const STDERR_TAIL_BYTES: usize = 16 * 1024;

/// A program with its arguments; secrets go into its environment or files, never here.
#[derive(Debug)]
pub struct Program {
    command: tokio::process::Command,
    name: String,
}

/// A program that ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// The end of what it wrote to stderr, lossily decoded.
    pub stderr: String,
}

impl Program {
    /// A program found as `path` (or on the `PATH` if it has no slash). Messages are in English (`LC_ALL=C.UTF-8`).
    #[allow(clippy::disallowed_methods, reason = "this is the one place that starts programs")]
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        let mut command = tokio::process::Command::new(path);
        command.env("LC_ALL", "C.UTF-8").env("LANG", "C.UTF-8").env_remove("LANGUAGE");
        command.stdin(Stdio::null()).kill_on_drop(true).process_group(0);
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Self { command, name }
    }
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }
    /// Adds arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }
    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }
    /// Sets the working directory.
    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.command.current_dir(dir);
        self
    }
    /// Runs it as another user, without supplementary groups; only root may.
    #[must_use]
    pub fn as_user(mut self, uid: u32, gid: u32) -> Self {
        self.command.uid(uid).gid(gid);
        self
    }
    /// Starts it with the given stdin; stdout is piped.
    ///
    /// # Errors
    /// `Config` when the program is not there.
    pub fn spawn(mut self, stdin: Stdio) -> Result<Running> {
        self.command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|e| {
            Error::new(ErrorKind::Config, format!("could not run {}", self.name))
                .caused_by(format!("{}: {e}", self.command.as_std().get_program().display()))
                .hint(format!("install the package that has {}, or say where it is in the configuration.", self.name))
        })?;
        let group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
        let stderr = child.stderr.take().map(|s| tokio::spawn(tail(s)));
        Ok(Running { child, group, stderr, name: self.name })
    }
    /// Runs it with this process's own stdin, stdout and stderr; when cancelled it gets SIGTERM and is waited for.
    pub async fn pass_through(mut self, cancel: &CancellationToken) -> Result<ExitStatus> {
        self.command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
        let failed = |e| Error::io(e, format!("could not run {}", self.name));
        let mut child = self.command.spawn().map_err(failed)?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        tokio::select! {
            status = child.wait() => return status.map_err(failed),
            () = cancel.cancelled() => {}
        }
        if let Some(pid) = pid {
            let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
        }
        child.wait().await.map_err(failed)
    }
    /// Runs it to its end, collecting at most `limit` bytes of stdout. The exit status is not judged.
    pub async fn collect(self, cancel: &CancellationToken, limit: usize) -> Result<(Vec<u8>, Ended)> {
        let mut running = self.spawn(Stdio::null())?;
        let mut stdout = running.stdout();
        let mut out = Vec::new();
        let work = async {
            let mut limited = (&mut stdout).take(limit as u64 + 1);
            limited.read_to_end(&mut out).await?;
            if out.len() > limit {
                return Err(Error::new(ErrorKind::Failed, format!("{} wrote more than {limit} bytes", running.name)));
            }
            running.wait().await
        };
        let ended = tokio::select! {
            r = work => r?,
            () = cancel.cancelled() => return Err(cancelled()),
        };
        Ok((out, ended))
    }
    /// Runs it and demands exit status 0; its stdout (at most 64 MiB).
    pub async fn output(self, cancel: &CancellationToken) -> Result<Vec<u8>> {
        let name = self.name.clone();
        let (out, ended) = self.collect(cancel, 64 << 20).await?;
        ended.require_success(&name)?;
        Ok(out)
    }
    /// Runs it and pushes its stdout into `writer`, showing each chunk to `observe`. Neither the exit status nor the
    /// writer's outcome is judged: the caller does that, and only then finishes the writer.
    pub async fn stream_into(
        self,
        cancel: &CancellationToken,
        mut writer: ArtefactWriter,
        mut observe: impl FnMut(&[u8]) + Send,
    ) -> Result<(Ended, u64, ArtefactWriter)> {
        let mut running = self.spawn(Stdio::null())?;
        let mut stdout = running.stdout();
        let mut bytes = 0u64;
        let broke = loop {
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
            let full = async {
                while chunk.len() < CHUNK_BYTES {
                    if stdout.read_buf(&mut chunk).await? == 0 {
                        return std::io::Result::Ok(true);
                    }
                }
                Ok(false)
            };
            let end = tokio::select! {
                r = full => r.map_err(|e| Error::io(e, format!("could not read from {}", running.name)))?,
                () = cancel.cancelled() => return Err(cancelled()),
            };
            bytes += chunk.len() as u64;
            observe(&chunk);
            if !chunk.is_empty() && writer.send(chunk.freeze()).await.is_err() {
                break true;
            }
            if end {
                break false;
            }
        };
        if broke {
            return Err(writer.failure().await);
        }
        let ended = tokio::select! {
            r = running.wait() => r?,
            () = cancel.cancelled() => return Err(cancelled()),
        };
        Ok((ended, bytes, writer))
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "stopped before it ended")
}

impl Ended {
    /// An error that quotes the end of stderr, unless the status is 0.
    pub fn require_success(&self, name: &str) -> Result<()> {
        if self.status.success() { Ok(()) } else { Err(self.failure(name)) }
    }
    /// The error for a failed program.
    pub fn failure(&self, name: &str) -> Error {
        let text = self.stderr.trim();
        let said = if text.is_empty() { "it said nothing".to_owned() } else { last_lines(text, 8) };
        Error::new(ErrorKind::Failed, format!("{name} failed ({})", self.status)).caused_by(said)
    }
}

fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n    ")
}

/// A program that runs. Dropping it kills its whole process group.
#[derive(Debug)]
pub struct Running {
    child: tokio::process::Child,
    group: Group,
    stderr: Option<tokio::task::JoinHandle<Vec<u8>>>,
    name: String,
}

impl Running {
    /// Its stdout; once.
    pub fn stdout(&mut self) -> tokio::process::ChildStdout {
        self.child.stdout.take().expect("stdout is piped and taken once")
    }
    /// Its stdin, if it was started with a pipe; once.
    pub fn stdin(&mut self) -> Option<tokio::process::ChildStdin> {
        self.child.stdin.take()
    }
    /// Sends it a signal, and only it: a server tells its own children.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self.group.0 {
            let _ = nix::sys::signal::kill(pid, signal);
        }
    }
    /// Waits for its end, then ends what is left of its group.
    pub async fn wait(&mut self) -> Result<Ended> {
        let status = self.child.wait().await.map_err(|e| Error::io(e, format!("could not wait for {}", self.name)))?;
        let stderr = match self.stderr.take() {
            Some(task) => tokio::time::timeout(std::time::Duration::from_secs(5), task)
                .await
                .ok()
                .and_then(std::result::Result::ok)
                .unwrap_or_default(),
            None => Vec::new(),
        };
        self.group.kill();
        Ok(Ended { status, stderr: String::from_utf8_lossy(&stderr).into_owned() })
    }
}

/// A process group that dies with its owner: `kill_on_drop` alone leaves `pg_dump` under a killed `pg_dumpall`.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn tail(mut from: impl AsyncRead + Unpin) -> Vec<u8> {
    let mut kept: VecDeque<u8> = VecDeque::new();
    let mut buffer = [0u8; 8192];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        kept.extend(&buffer[..n]);
        let excess = kept.len().saturating_sub(STDERR_TAIL_BYTES);
        kept.drain(..excess);
    }
    kept.into()
}
