//! From the async reader of an artefact to a thread that may block: archives are read and written there.

use std::io::{self, Read};

use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, ErrorKind, Result};

/// Reads from `from` on the runtime in which it was made; `stop` interrupts a read.
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

impl<R: AsyncRead + Unpin> Read for Bridge<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Self { from, runtime, stop } = self;
        runtime.block_on(async {
            tokio::select! {
                biased;
                () = stop.cancelled() => Err(stopped().into()),
                read = from.read(buf) => read,
            }
        })
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
