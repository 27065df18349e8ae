//! What every command is given: where the configuration is, how to print, the clock, the cancellation.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::DEFAULT_CONFIG;
use super::progress::{Held, Progress};
use crate::config::{Config, parse};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::monitor::Monitor;
use crate::pipeline::decode::Identities;
use crate::units::{Bytes, Clock};

/// One run of the program. Cheap to clone; all clones share output and status.
#[derive(Debug, Clone)]
pub struct App {
    /// `--config` or `$BACKSTAY_CONFIG`.
    pub config_path: Option<PathBuf>,
    /// The configuration, if it had to be read before the user was changed.
    pub preloaded: Option<Arc<Config>>,
    /// Answers are JSON lines.
    pub json: bool,
    /// Nothing is printed on success.
    pub quiet: bool,
    /// How often `-v` was given.
    pub verbose: u8,
    /// Where "now" comes from.
    pub clock: Clock,
    /// Cancelled on SIGINT and SIGTERM.
    pub cancel: CancellationToken,
    /// Standard output.
    pub out: Output,
    /// See [`App::set_status`].
    pub status: Status,
    /// Warnings that `--quiet` holds back; printed when the command fails.
    pub held: Held,
}

impl App {
    /// Where the configuration is.
    pub fn config_path(&self) -> &Path {
        self.config_path.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG))
    }
    /// Reads the configuration and `conf.d/*.yml` beside it.
    pub fn config(&self) -> Result<Config> {
        if let Some(config) = &self.preloaded {
            return Ok(Config::clone(config));
        }
        parse::load(self.config_path())
    }
    /// Prints a line of the answer for people: nothing with `--json` or `--quiet`.
    pub fn say(&self, line: impl Display) {
        if !self.json && !self.quiet {
            self.out.line(line);
        }
    }
    /// Prints one object of the answer for programs: nothing without `--json`. The object has a `message_type`.
    pub fn emit(&self, message: &Value) {
        debug_assert!(message.get("message_type").is_some_and(Value::is_string), "no message_type in {message}");
        if self.json {
            self.out.line(message);
        }
    }
    /// The engine for this configuration.
    pub fn engine(&self, config: Config) -> Result<Engine> {
        Ok(Engine {
            config: Arc::new(config),
            clock: self.clock.clone(),
            cancel: self.cancel.clone(),
            monitor: self.monitor(),
            identities: Identities::default(),
        })
    }
    /// Shows an error of one part of the work on stderr now; the command goes on.
    pub fn complain(&self, err: &Error) {
        let text = match self.json {
            true => serde_json::json!({"message_type": "error", "message": err.chain(), "hint": err.hint}).to_string(),
            false => err.report(),
        };
        // Nobody is left to tell when this fails.
        let _ = writeln!(io::stderr(), "{text}");
    }
    /// Shows progress and warnings on stderr, as far as the options allow.
    pub fn monitor(&self) -> Arc<dyn Monitor> {
        Arc::new(Progress::new(self.json, self.quiet, self.held.clone()))
    }
    /// The exit code of a command that did its work and found something (`check-s3`). The largest one wins.
    pub fn set_status(&self, code: u8) {
        self.status.0.fetch_max(code, Ordering::SeqCst);
    }
}

/// The exit code of a command that returned `Ok`.
#[derive(Debug, Clone, Default)]
pub struct Status(Arc<AtomicU8>);

impl Status {
    /// What was set, or 0.
    pub fn get(&self) -> u8 {
        self.0.load(Ordering::SeqCst)
    }
}

/// Lines on standard output. A reader that went away (`| head`) is not an error: what follows is dropped, and the
/// work goes on. Any other failure is kept for [`Output::finish`].
#[derive(Clone)]
pub struct Output(Arc<Mutex<Inner>>);

struct Inner {
    to: Box<dyn Write + Send>,
    failed: Option<io::Error>,
}

impl Output {
    /// Prints to `to`.
    pub fn new(to: impl Write + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Inner { to: Box::new(to), failed: None })))
    }
    /// Prints to standard output.
    pub fn stdout() -> Self {
        Self::new(io::stdout())
    }
    /// Prints one line.
    pub fn line(&self, line: impl Display) {
        self.text(format_args!("{line}\n"));
    }
    /// Prints text as it is.
    pub fn text(&self, text: impl Display) {
        let mut inner = lock(&self.0);
        if inner.failed.is_none() {
            inner.failed = write!(inner.to, "{text}").and_then(|()| inner.to.flush()).err();
        }
    }
    /// Whether everything that was printed has arrived, or its reader went away.
    pub fn finish(&self) -> Result<()> {
        match lock(&self.0).failed.take() {
            Some(err) if err.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::io(err, "could not write to standard output"))
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Output")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was counted, but for what there is none of: `: 1.3 MiB, 70 files`.
pub(super) fn counted(counts: &BTreeMap<String, u64>) -> String {
    let count = |(key, n): (&String, &u64)| if key == "bytes" { Bytes(*n).to_string() } else { format!("{n} {key}") };
    let counts: Vec<String> = counts.iter().filter(|(_, n)| **n > 0).map(count).collect();
    if counts.is_empty() { String::new() } else { format!(": {}", counts.join(", ")) }
}
