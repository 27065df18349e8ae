//! Progress and warnings on stderr. Bars only when a person watches: stderr is a terminal, no `--quiet`, no `--json`.

use std::collections::HashMap;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::monitor::Monitor;

/// Warnings held back until the command fails.
#[derive(Debug, Clone, Default)]
pub struct Held(Arc<Mutex<Vec<String>>>);

impl Held {
    /// Adds one.
    pub fn push(&self, warning: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(warning.to_owned());
    }
    /// Takes all.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Shows one bar per artefact, and warnings above the bars.
#[derive(Debug)]
pub struct Progress {
    bars: Option<MultiProgress>,
    tasks: Mutex<HashMap<String, ProgressBar>>,
    json: bool,
    quiet: bool,
    held: Held,
}

impl Progress {
    /// `held` takes the warnings of a quiet run.
    pub fn new(json: bool, quiet: bool, held: Held) -> Self {
        let watched = !json && !quiet && io::stderr().is_terminal();
        Self { bars: watched.then(MultiProgress::new), tasks: Mutex::default(), json, quiet, held }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<String, ProgressBar>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Monitor for Progress {
    fn start(&self, task: &str, total: Option<u64>) {
        let Some(bars) = &self.bars else { return };
        let (bar, template) = match total {
            Some(total) if total > 0 => (
                ProgressBar::new(total),
                "{prefix:24!} {bar:24} {binary_bytes:>11} of {binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}",
            ),
            _ => (
                ProgressBar::no_length(),
                "{prefix:24!} {spinner} {binary_bytes:>11}  {binary_bytes_per_sec}  {elapsed}",
            ),
        };
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = bars.add(bar.with_style(style).with_prefix(task.to_owned()));
        if let Some(old) = self.tasks().insert(task.to_owned(), bar) {
            old.finish_and_clear();
        }
    }
    fn advance(&self, task: &str, bytes: u64) {
        if self.bars.is_some()
            && let Some(bar) = self.tasks().get(task)
        {
            bar.inc(bytes);
        }
    }
    fn end(&self, task: &str) {
        if let Some(bar) = self.tasks().remove(task) {
            bar.finish_and_clear();
        }
    }
    fn warn(&self, message: &str) {
        if self.quiet {
            return self.held.push(message);
        }
        let line = warning_line(self.json, message);
        let print = || {
            let _ = writeln!(io::stderr().lock(), "{line}");
        };
        match &self.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }
}

/// A warning as it stands on stderr.
pub fn warning_line(json: bool, message: &str) -> String {
    if json {
        serde_json::json!({"message_type": "warning", "message": message}).to_string()
    } else {
        format!("warning: {message}")
    }
}
