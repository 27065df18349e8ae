//! The seam between long work and whoever shows it: the library never prints.

use std::fmt;

/// Told about progress and warnings. All methods are cheap and may be called from any thread.
pub trait Monitor: fmt::Debug + Send + Sync {
    /// A task begins; `total` bytes if known.
    fn start(&self, task: &str, total: Option<u64>);
    /// `bytes` more of it are done.
    fn advance(&self, task: &str, bytes: u64);
    /// It ended, well or not.
    fn end(&self, task: &str);
    /// Something a person should know now.
    fn warn(&self, message: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Monitor for Silent {
    fn start(&self, _: &str, _: Option<u64>) {}
    fn advance(&self, _: &str, _: u64) {}
    fn end(&self, _: &str) {}
    fn warn(&self, _: &str) {}
}
