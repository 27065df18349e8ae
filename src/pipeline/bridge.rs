//! From the async reader of an artefact to a thread that may block: archives are read and written there.

use std::io::{self, BufRead, Read};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};

/// Reads from `from` on the runtime in which it was made, without a copy; `stop` interrupts a read.
#[derive(Debug)]
pub struct Bridge<R> {
    from: R,
    runtime: Handle,
    stop: CancellationToken,
}

impl<R> Bridge<R> {
    /// Must be called in a runtime, and read outside of its workers.
    pub fn new(from: R, stop: &CancellationToken) -> Self {
        Self { from, runtime: Handle::current(), stop: stop.clone() }
    }
}

impl<R: AsyncBufRead + Unpin> BufRead for Bridge<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let Self { from, runtime, stop } = self;
        if stop.is_cancelled() {
            return Err(stopped().into());
        }
        // What is there already needs no runtime.
        let mut nobody = Context::from_waker(Waker::noop());
        match Pin::new(&mut *from).poll_fill_buf(&mut nobody) {
            Poll::Ready(filled) => drop(filled?),
            Poll::Pending => runtime.block_on(async {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => Err(stopped().into()),
                    filled = from.fill_buf() => filled.map(drop),
                }
            })?,
        }
        match Pin::new(from).poll_fill_buf(&mut nobody) {
            Poll::Ready(filled) => filled,
            Poll::Pending => Err(io::Error::other("a reader forgot what it had read")),
        }
    }
    fn consume(&mut self, n: usize) {
        Pin::new(&mut self.from).consume(n);
    }
}

impl<R: AsyncBufRead + Unpin> Read for Bridge<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

/// The error of a read that was interrupted.
pub fn stopped() -> Error {
    Error::new(ErrorKind::Cancelled, "reading the restore point was stopped")
}

/// Runs what may block.
///
/// # Errors
/// Those of `work`; `Internal` when it panicked.
pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.map_err(|e| Error::new(ErrorKind::Internal, "the reader of the archive broke").caused_by(e))?
}
