//! The blocking half of the pipeline: plain bytes in, stored bytes out, both digests on the way.

use std::io::{self, Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::compress::Compressor;
use super::encrypt::{Encryptor, Recipients};
use crate::artefact::Chunks;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Algorithm;

/// How artefacts are encoded.
#[derive(Debug, Clone)]
pub struct Encoding {
    algorithm: Algorithm,
    level: i32,
    threads: u32,
    recipients: Recipients,
}

impl Encoding {
    /// An encoding; levels and recipients have been checked by the configuration.
    pub fn new(algorithm: Algorithm, level: Option<i32>, threads: u32, recipients: Recipients) -> Self {
        let default = if algorithm == Algorithm::Gzip { 6 } else { 3 };
        Self { algorithm, level: level.unwrap_or(default), threads: threads.max(1), recipients }
    }
    /// The compression algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
    /// The age recipients, as text; empty = not encrypted.
    pub fn recipients(&self) -> &[String] {
        self.recipients.as_text()
    }
}

/// Lengths and digests of an artefact.
#[derive(Debug, Clone)]
pub struct Encoded {
    /// Length before compression and encryption.
    pub plain_bytes: u64,
    /// Length as stored.
    pub stored_bytes: u64,
    /// BLAKE3 of the plain bytes, hex.
    pub blake3: String,
    /// SHA-256 of the stored bytes, hex.
    pub sha256: String,
}

/// Encodes all of `chunks` into `stored`. Runs on a thread that may block.
///
/// # Errors
/// When nobody takes the stored bytes any more, or a library fails.
pub fn run(
    encoding: &Encoding,
    mut chunks: mpsc::Receiver<Bytes>,
    stored: mpsc::Sender<Bytes>,
    advance: impl Fn(u64),
) -> Result<Encoded> {
    let sink = StoredSink { sender: stored, buffer: Chunks::default(), digest: Sha256::new(), bytes: 0 };
    let wrap = |e: io::Error| Error::new(ErrorKind::Failed, "could not encode the artefact").caused_by(e);
    let encryptor = Encryptor::new(sink, &encoding.recipients)?;
    let mut out = Compressor::new(encryptor, encoding.algorithm, encoding.level, encoding.threads).map_err(wrap)?;
    let mut plain = blake3::Hasher::new();
    let mut plain_bytes = 0u64;
    while let Some(chunk) = chunks.blocking_recv() {
        plain.update(&chunk);
        plain_bytes += chunk.len() as u64;
        out.write_all(&chunk).map_err(wrap)?;
        advance(chunk.len() as u64);
    }
    let mut sink = out.finish().and_then(Encryptor::finish).map_err(wrap)?;
    sink.push().map_err(wrap)?;
    Ok(Encoded {
        plain_bytes,
        stored_bytes: sink.bytes,
        blake3: plain.finalize().to_hex().to_string(),
        sha256: hex::encode(sink.digest.finalize()),
    })
}

/// The end of the chain: digests the stored bytes and hands them on in chunks.
#[derive(Debug)]
pub struct StoredSink {
    sender: mpsc::Sender<Bytes>,
    buffer: Chunks,
    digest: Sha256,
    bytes: u64,
}

impl StoredSink {
    fn push(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = self.buffer.take();
        self.digest.update(&chunk);
        self.bytes += chunk.len() as u64;
        self.sender
            .blocking_send(chunk)
            .map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "no destination takes the data any more"))
    }
}

impl Write for StoredSink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if self.buffer.is_full() {
            self.push()?;
        }
        Ok(self.buffer.fill(data))
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
