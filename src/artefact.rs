//! Artefacts on their way out: the writer a source pushes bytes into, and the sink that hands writers out.
//!
//! The end of a stream is not success. Only [`ArtefactWriter::finish`] is, and a source calls it only when its
//! producer has said that it is whole. Dropping a writer abandons the artefact at every destination.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWrite;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::PollSender;

use crate::error::{Error, ErrorKind, Result};

mod chunks;

pub(crate) use chunks::{Chunks, Spare};

/// Bytes collected before they travel on.
pub const CHUNK_BYTES: usize = 512 * 1024;

/// What an artefact is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The data itself.
    Data,
    /// What lies outside the data directory.
    Config,
    /// Details per file, table, shard or index.
    Inventory,
    /// How to restore.
    Kit,
}

/// What a source asks for when it opens an artefact.
#[derive(Debug, Clone)]
pub struct ArtefactSpec {
    /// Base name without any extension, `[A-Za-z0-9._%-]`: use [`artefact_name`] for names that come from a server.
    pub name: String,
    /// How to open the plain bytes: `tar`, `sql`, `dump`, `json`, `jsonl`.
    pub ext: &'static str,
    /// What it is for.
    pub role: Role,
    /// Whether it holds secrets: it leaves the host only encrypted, or by an explicit word.
    pub secret: bool,
    /// The plain length, if known, for progress only.
    pub estimated_bytes: Option<u64>,
}

impl ArtefactSpec {
    /// A data artefact without secrets.
    pub fn data(name: impl Into<String>, ext: &'static str) -> Self {
        Self { name: name.into(), ext, role: Role::Data, secret: false, estimated_bytes: None }
    }
    /// The same with another role.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }
}

/// A file name for a name from elsewhere: everything but `[A-Za-z0-9_-]` and inner dots is percent-encoded, and
/// what would exceed 120 bytes ends in a digest instead. The real name belongs into an inventory.
pub fn artefact_name(real: &str) -> String {
    let mut out = String::new();
    for (at, b) in real.bytes().enumerate() {
        let plain = b.is_ascii_alphanumeric() || b == b'_' || b == b'-' || (b == b'.' && at > 0);
        if plain { out.push(char::from(b)) } else { out.push_str(&format!("%{b:02X}")) }
    }
    if out.len() > 120 {
        let digest = blake3::hash(real.as_bytes()).to_hex();
        out.truncate(100);
        out.push('~');
        out.push_str(&digest[..16]);
    }
    out
}

/// What became of one artefact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtefactInfo {
    /// File name as stored, with all extensions.
    pub file_name: String,
    /// Length of the plain bytes.
    pub plain_bytes: u64,
    /// Length of the stored bytes.
    pub stored_bytes: u64,
}

/// Hands out one writer per artefact. Built by the engine; a source never sees destinations.
#[async_trait]
pub trait ArtefactSink: fmt::Debug + Send + Sync {
    /// Opens the next artefact. Nothing is kept unless `finish` returns `Ok`. Several may be open at once.
    async fn open(&self, spec: ArtefactSpec) -> Result<ArtefactWriter>;
}

/// Write end of one artefact, with back-pressure. Dropping it abandons the artefact.
#[derive(Debug)]
pub struct ArtefactWriter {
    buffer: Chunks,
    sender: PollSender<Bytes>,
    commit: oneshot::Sender<()>,
    done: oneshot::Receiver<Result<ArtefactInfo>>,
}

/// The pipeline's end of an [`ArtefactWriter`].
#[derive(Debug)]
pub struct ArtefactFeed {
    /// The plain bytes, in order.
    pub chunks: mpsc::Receiver<Bytes>,
    /// Resolves to `Ok` only when the producer said that the artefact is whole.
    pub commit: oneshot::Receiver<()>,
    /// Where the outcome goes.
    pub done: oneshot::Sender<Result<ArtefactInfo>>,
}

impl ArtefactWriter {
    /// A writer and its feed, with room for `queue` chunks of [`CHUNK_BYTES`] between them.
    pub fn channel(queue: usize) -> (Self, ArtefactFeed) {
        let (sender, chunks) = mpsc::channel(queue);
        let (commit, commit_rx) = oneshot::channel();
        let (done_tx, done) = oneshot::channel();
        let writer = Self { buffer: Chunks::default(), sender: PollSender::new(sender), commit, done };
        (writer, ArtefactFeed { chunks, commit: commit_rx, done: done_tx })
    }

    /// Pushes a chunk that is already collected; waits while the pipeline is busy.
    pub async fn send(&mut self, chunk: Bytes) -> io::Result<()> {
        std::future::poll_fn(|cx| self.poll_flush_buffer(cx)).await?;
        std::future::poll_fn(|cx| self.sender.poll_reserve(cx)).await.map_err(|_| closed())?;
        self.sender.send_item(chunk).map_err(|_| closed())
    }

    /// For a thread that may block: an [`io::Write`] over this writer. Never inside an async task.
    pub fn blocking(&mut self) -> BlockingWriter<'_> {
        BlockingWriter { writer: self }
    }

    /// End of data, and the producer says it is whole.
    ///
    /// # Errors
    /// What went wrong in the pipeline, or at every destination.
    pub async fn finish(mut self) -> Result<ArtefactInfo> {
        if std::future::poll_fn(|cx| self.poll_flush_buffer(cx)).await.is_ok() {
            let _ = self.commit.send(());
            self.sender.close();
        }
        self.done.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "the artefact pipeline vanished")))
    }

    /// Why writing failed: what the pipeline says after a write returned an error.
    pub async fn failure(self) -> Error {
        let Self { sender, commit, done, buffer } = self;
        drop((sender, commit, buffer));
        match done.await {
            Ok(Err(err)) => err,
            _ => Error::new(ErrorKind::Internal, "the artefact pipeline closed early"),
        }
    }

    fn poll_flush_buffer(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        if self.buffer.is_empty() {
            return Poll::Ready(Ok(()));
        }
        std::task::ready!(self.sender.poll_reserve(cx)).map_err(|_| closed())?;
        let chunk = self.buffer.take();
        Poll::Ready(self.sender.send_item(chunk).map_err(|_| closed()))
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the artefact pipeline closed")
}

impl AsyncWrite for ArtefactWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.buffer.is_full() {
            std::task::ready!(self.poll_flush_buffer(cx))?;
        }
        Poll::Ready(Ok(self.buffer.fill(data)))
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        self.poll_flush_buffer(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// See [`ArtefactWriter::blocking`].
#[derive(Debug)]
pub struct BlockingWriter<'a> {
    writer: &'a mut ArtefactWriter,
}

impl BlockingWriter<'_> {
    fn push(&mut self) -> io::Result<()> {
        if self.writer.buffer.is_empty() {
            return Ok(());
        }
        let chunk = self.writer.buffer.take();
        let sender = self.writer.sender.get_ref().ok_or_else(closed)?;
        sender.blocking_send(chunk).map_err(|_| closed())
    }
}

impl io::Write for BlockingWriter<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.writer.buffer.is_full() {
            self.push()?;
        }
        Ok(self.writer.buffer.fill(data))
    }
    fn flush(&mut self) -> io::Result<()> {
        self.push()
    }
}
