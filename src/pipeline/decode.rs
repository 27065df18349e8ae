//! The way back: stored bytes to plain bytes. End of file is only reached when both lengths and both digests match.

use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_util::io::{StreamReader, SyncIoBridge};

use crate::artefact::CHUNK_BYTES;
use crate::destination::ByteStream;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Algorithm, Artefact};
use crate::source::ArtefactReader;

/// Private keys for encrypted artefacts.
#[derive(Clone, Default)]
pub struct Identities(Arc<Vec<age::x25519::Identity>>);

impl std::fmt::Debug for Identities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identities({})", self.0.len())
    }
}

impl Identities {
    /// Reads a key file as `age-keygen` writes it.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .map_err(|e| Error::io(e, format!("could not read the identity file {}", path.display())))?;
        Self::from_text(&text, &path.display().to_string())
    }
    /// From the text of a key file; `place` is for messages.
    pub fn from_text(text: &str, place: &str) -> Result<Self> {
        let mut keys = Vec::new();
        for line in text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#')) {
            keys.push(line.parse().map_err(|_| {
                Error::new(ErrorKind::Config, format!("{place} holds a line that is no age identity"))
                    .hint("give the file that `age-keygen` wrote: it has a line AGE-SECRET-KEY-1...")
            })?);
        }
        Ok(Self(Arc::new(keys)))
    }
    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Decodes `stored` into a reader of plain bytes.
pub fn reader(stored: ByteStream, artefact: &Artefact, identities: &Identities) -> Result<ArtefactReader> {
    if !artefact.recipients.is_empty() && identities.is_empty() {
        return Err(Error::new(ErrorKind::Denied, format!("artefact {:?} is encrypted", artefact.name))
            .hint("give the private key with --identity FILE."));
    }
    let artefact = artefact.clone();
    let identities = identities.clone();
    Ok(on_a_thread(stored, move |stored, sender| decode(stored, &artefact, &identities, sender)))
}

/// Decompresses a file of gzip that no manifest describes: that it came with its listed length, and gzip's own check
/// sum, is all that is known of it when its end is reached.
pub fn undescribed(stored: ByteStream, name: String, stored_bytes: u64) -> ArtefactReader {
    on_a_thread(stored, move |stored, sender| {
        let damaged = |why: String| Error::new(ErrorKind::Corrupt, format!("{name:?} is damaged or cut off: {why}"));
        let seen = Arc::new(Mutex::new((Sha256::new(), 0u64)));
        let mut tapped = io::BufReader::with_capacity(CHUNK_BYTES, Tapped { inner: stored, seen: Arc::clone(&seen) });
        match deliver(&mut flate2::bufread::MultiGzDecoder::new(&mut tapped), |c| sender.blocking_send(Ok(c)).is_ok()) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(err) if err.get_ref().is_some_and(|e| e.is::<Error>()) => return Err(err.into()),
            Err(err) => return Err(damaged(err.to_string())),
        }
        match seen.lock().unwrap_or_else(PoisonError::into_inner).1 {
            bytes if bytes == stored_bytes => Ok(()),
            bytes => Err(damaged(format!("{bytes} bytes came of {stored_bytes}"))),
        }
    })
}

/// The stored bytes, for a thread that may block.
type Stored = SyncIoBridge<
    std::pin::Pin<Box<StreamReader<futures_util::stream::MapErr<ByteStream, fn(Error) -> io::Error>, Bytes>>>,
>;

/// Runs `work` on a thread; what it sends is what is read, and its error comes last.
fn on_a_thread(
    stored: ByteStream,
    work: impl FnOnce(Stored, &mpsc::Sender<io::Result<Bytes>>) -> Result<()> + Send + 'static,
) -> ArtefactReader {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(4);
    let convert: fn(Error) -> io::Error = io::Error::from;
    let stored = SyncIoBridge::new(Box::pin(StreamReader::new(stored.map_err(convert))));
    tokio::task::spawn_blocking(move || {
        if let Err(err) = work(stored, &sender) {
            let _ = sender.blocking_send(Err(err.into()));
        }
    });
    let chunks = futures_util::stream::unfold(receiver, |mut r| async move { r.recv().await.map(|c| (c, r)) });
    Box::pin(StreamReader::new(Box::pin(chunks)))
}

/// Reads the stored bytes only, and compares their length and SHA-256.
pub async fn check_stored(mut stored: ByteStream, artefact: &Artefact, mut advance: impl FnMut(u64)) -> Result<()> {
    let mut digest = Sha256::new();
    let mut bytes = 0u64;
    while let Some(chunk) = stored.try_next().await? {
        bytes += chunk.len() as u64;
        advance(chunk.len() as u64);
        digest = tokio::task::spawn_blocking(move || digest.chain_update(&chunk))
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, "a digest thread panicked").caused_by(e))?;
    }
    judge_stored(artefact, bytes, &hex::encode(digest.finalize()))
}

fn judge_stored(artefact: &Artefact, bytes: u64, sha256: &str) -> Result<()> {
    let corrupt = |why: String| {
        Error::new(ErrorKind::Corrupt, format!("artefact {:?} is damaged: {why}", artefact.name))
            .hint("restore from another destination (--from) or another point; `backstay list` shows them.")
    };
    if bytes != artefact.stored_bytes {
        return Err(corrupt(format!("{bytes} bytes are stored, {} were written", artefact.stored_bytes)));
    }
    if sha256 != artefact.sha256 {
        return Err(corrupt("its SHA-256 is not the recorded one".into()));
    }
    Ok(())
}

struct Tapped<R> {
    inner: R,
    seen: Arc<Mutex<(Sha256, u64)>>,
}

impl<R: Read> Read for Tapped<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.0.update(&buf[..n]);
        seen.1 += n as u64;
        Ok(n)
    }
}

fn decode(
    stored: impl Read + Send + 'static,
    artefact: &Artefact,
    identities: &Identities,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<()> {
    let seen = Arc::new(Mutex::new((Sha256::new(), 0u64)));
    let tapped = io::BufReader::with_capacity(CHUNK_BYTES, Tapped { inner: stored, seen: Arc::clone(&seen) });
    let mut plain = blake3::Hasher::new();
    let mut plain_bytes = 0u64;
    let outcome = unpack(tapped, artefact, identities, |chunk| {
        plain.update(&chunk);
        plain_bytes += chunk.len() as u64;
        sender.blocking_send(Ok(chunk)).is_ok()
    });
    let (digest, bytes) = {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        (hex::encode(seen.0.clone().finalize()), seen.1)
    };
    match outcome {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(err) if err.get_ref().is_some_and(|e| e.is::<Error>()) => return Err(err.into()),
        Err(err) => {
            return Err(Error::new(ErrorKind::Corrupt, format!("artefact {:?} could not be decoded", artefact.name))
                .caused_by(err)
                .hint("restore from another destination (--from) or another point; `backstay list` shows them."));
        }
    }
    judge_stored(artefact, bytes, &digest)?;
    if plain_bytes != artefact.plain_bytes || plain.finalize().to_hex().as_str() != artefact.blake3 {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("artefact {:?} does not decode to what was captured", artefact.name),
        ));
    }
    Ok(())
}

/// Decrypts and decompresses to the end of the stored bytes; `Ok(false)` when the reader has gone away.
fn unpack(
    stored: impl io::BufRead + 'static,
    artefact: &Artefact,
    identities: &Identities,
    take: impl FnMut(Bytes) -> bool,
) -> io::Result<bool> {
    let mut decrypted: Box<dyn io::BufRead> = if artefact.recipients.is_empty() {
        Box::new(stored)
    } else {
        let decryptor = age::Decryptor::new_buffered(stored).map_err(io::Error::other)?;
        let keys = identities.0.iter().map(|k| k as &dyn age::Identity);
        let reader = decryptor.decrypt(keys).map_err(|e| match e {
            age::DecryptError::NoMatchingKeys => io::Error::from(
                Error::new(ErrorKind::Denied, format!("no identity given opens artefact {:?}", artefact.name))
                    .hint(format!("it was encrypted to {}.", artefact.recipients.join(", "))),
            ),
            other => io::Error::other(other),
        })?;
        Box::new(io::BufReader::with_capacity(CHUNK_BYTES, reader))
    };
    let mut plain: Box<dyn Read + '_> = match artefact.compression {
        Algorithm::None => Box::new(&mut decrypted),
        Algorithm::Zstd => Box::new(zstd::Decoder::with_buffer(&mut decrypted)?),
        Algorithm::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(&mut decrypted)),
    };
    if !deliver(plain.as_mut(), take)? {
        return Ok(false);
    }
    drop(plain);
    io::copy(&mut decrypted, &mut io::sink())?;
    Ok(true)
}

/// Hands on what is read, to its end; `Ok(false)` when the reader has gone away.
fn deliver(plain: &mut dyn Read, mut take: impl FnMut(Bytes) -> bool) -> io::Result<bool> {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut filled = 0;
        while filled < chunk.len() {
            match plain.read(&mut chunk[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        chunk.truncate(filled);
        let end = filled < CHUNK_BYTES;
        if !chunk.is_empty() && !take(chunk.into()) {
            return Ok(false);
        }
        if end {
            return Ok(true);
        }
    }
}
