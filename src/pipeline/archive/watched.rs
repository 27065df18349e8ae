//! An archive ends early for one of two reasons: what is archived, or whoever takes the bytes.

use std::cell::Cell;
use std::io::{self, Write};

use crate::error::{Error, Result};

/// Why the writing of an archive ended early.
#[derive(Debug)]
pub enum Stopped {
    /// Nobody takes the bytes any more: the pipeline knows why.
    Closed,
    /// All else.
    Error(Error),
}

/// Remembers that the other side of the pipeline went away.
#[derive(Debug)]
pub struct Watched<'a, W> {
    out: W,
    closed: &'a Cell<bool>,
}

impl<W: Write> Write for Watched<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes).inspect_err(|_| self.closed.set(true))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush().inspect_err(|_| self.closed.set(true))
    }
}

/// Runs what writes an archive into `out`.
///
/// # Errors
/// `Closed` when `out` failed, whatever `work` made of it.
pub fn watched<W: Write, T>(out: W, work: impl FnOnce(Watched<'_, W>) -> Result<T>) -> Result<T, Stopped> {
    let closed = Cell::new(false);
    let done = work(Watched { out, closed: &closed });
    done.map_err(|e| if closed.get() { Stopped::Closed } else { Stopped::Error(e) })
}
