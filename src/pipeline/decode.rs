//! The way back: stored bytes to plain bytes. End of file is only reached when both lengths and both digests match.

use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::{Buf, Bytes};
use futures_util::TryStreamExt as _;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::artefact::{CHUNK_BYTES, Chunks};
use crate::destination::ByteStream;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Algorithm, Artefact};
use crate::source::ArtefactReader;

/// Chunks that wait between two threads.
const QUEUE: usize = 4;

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
///
/// Reading with the stored digest, decoding, and the plain digest have a thread each: together they take three times
/// what the decoder takes alone.
pub fn reader(stored: ByteStream, artefact: &Artefact, identities: &Identities) -> Result<ArtefactReader> {
    if !artefact.recipients.is_empty() && identities.is_empty() {
        return Err(Error::new(ErrorKind::Denied, format!("artefact {:?} is encrypted", artefact.name))
            .hint("give the private key with --identity FILE."));
    }
    let (artefact, identities, runtime) = (artefact.clone(), identities.clone(), Handle::current());
    Ok(on_a_thread(move |sender| decode(stored, runtime, &artefact, &identities, sender)))
}

/// Decompresses a file of gzip that no manifest describes: that it came with its listed length, and gzip's own check
/// sum, is all that is known of it when its end is reached.
pub fn undescribed(stored: ByteStream, name: String, stored_bytes: u64) -> ArtefactReader {
    let runtime = Handle::current();
    on_a_thread(move |sender| {
        let damaged = |why: String| Error::new(ErrorKind::Corrupt, format!("{name:?} is damaged or cut off: {why}"));
        let (outcome, (_, bytes)) = fetching(stored, runtime, |fetched| {
            decompress(fetched, Algorithm::Gzip, |chunk| sender.blocking_send(Ok(chunk)).is_ok())
        })?;
        match outcome {
            Ok(true) if bytes == stored_bytes => Ok(()),
            Ok(true) => Err(damaged(format!("{bytes} bytes came of {stored_bytes}"))),
            Ok(false) => Ok(()),
            Err(err) if err.get_ref().is_some_and(|e| e.is::<Error>()) => Err(err.into()),
            Err(err) => Err(damaged(err.to_string())),
        }
    })
}

/// Runs `work` on a thread; what it sends is what is read, and its error comes last.
fn on_a_thread(work: impl FnOnce(&mpsc::Sender<io::Result<Bytes>>) -> Result<()> + Send + 'static) -> ArtefactReader {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(QUEUE);
    tokio::task::spawn_blocking(move || {
        if let Err(err) = work(&sender) {
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

/// Fetches all stored bytes, and hands them on; their SHA-256 and number.
fn fetch(mut stored: ByteStream, runtime: &Handle, onward: &SyncSender<Result<Bytes>>) -> (String, u64) {
    let (mut digest, mut bytes) = (Sha256::new(), 0u64);
    while let Some(chunk) = runtime.block_on(stored.try_next()).transpose() {
        if let Ok(chunk) = &chunk {
            digest.update(chunk);
            bytes += chunk.len() as u64;
        }
        let last = chunk.is_err();
        if onward.send(chunk).is_err() || last {
            break;
        }
    }
    (hex::encode(digest.finalize()), bytes)
}

/// What [`fetch`] hands on, as bytes to read.
struct Fetched {
    chunks: Receiver<Result<Bytes>>,
    chunk: Bytes,
}

impl BufRead for Fetched {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.chunk.is_empty() {
            match self.chunks.recv() {
                Ok(chunk) => self.chunk = chunk?,
                Err(_) => break,
            }
        }
        Ok(&self.chunk)
    }
    fn consume(&mut self, n: usize) {
        self.chunk.advance(n);
    }
}

impl Read for Fetched {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.fill_buf()?.read(buf)?;
        self.consume(n);
        Ok(n)
    }
}

/// Runs `work` on what a thread of its own fetches; with the SHA-256 and the number of the stored bytes.
fn fetching<T>(
    stored: ByteStream,
    runtime: Handle,
    work: impl FnOnce(&mut Fetched) -> T,
) -> Result<(T, (String, u64))> {
    std::thread::scope(|scope| {
        let (onward, chunks) = sync_channel(QUEUE);
        let fetcher =
            thread("fetch").spawn_scoped(scope, move || fetch(stored, &runtime, &onward)).map_err(no_thread)?;
        let mut fetched = Fetched { chunks, chunk: Bytes::new() };
        let outcome = work(&mut fetched);
        // It ends when nobody takes from it any more.
        drop(fetched);
        Ok((outcome, fetcher.join().map_err(broke)?))
    })
}

fn thread(name: &str) -> std::thread::Builder {
    std::thread::Builder::new().name(name.into())
}

fn no_thread(e: io::Error) -> Error {
    Error::io(e, "could not start a thread")
}

fn broke(_: Box<dyn std::any::Any + Send>) -> Error {
    Error::new(ErrorKind::Internal, "a thread that reads an artefact broke")
}

fn decode(
    stored: ByteStream,
    runtime: Handle,
    artefact: &Artefact,
    identities: &Identities,
    sender: &mpsc::Sender<io::Result<Bytes>>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let (to_digest, of_plain) = sync_channel::<Bytes>(QUEUE);
        let digester = thread("digest").spawn_scoped(scope, move || {
            let mut plain = blake3::Hasher::new();
            for chunk in &of_plain {
                plain.update(&chunk);
            }
            plain.finalize()
        });
        let digester = digester.map_err(no_thread)?;
        let mut plain_bytes = 0u64;
        let (outcome, (sha256, stored_bytes)) = fetching(stored, runtime, |fetched| {
            unpack(fetched, artefact, identities, |chunk| {
                plain_bytes += chunk.len() as u64;
                to_digest.send(chunk.clone()).is_ok() && sender.blocking_send(Ok(chunk)).is_ok()
            })
        })?;
        drop(to_digest);
        let plain = digester.join().map_err(broke)?;
        judge(artefact, outcome, (&sha256, stored_bytes), (plain_bytes, &plain))
    })
}

/// Judges what was decoded, by what was fetched: SHA-256 and number of the stored bytes; and number and BLAKE3 of the
/// plain ones.
fn judge(
    artefact: &Artefact,
    outcome: io::Result<bool>,
    (sha256, stored_bytes): (&str, u64),
    (bytes, digest): (u64, &blake3::Hash),
) -> Result<()> {
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
    judge_stored(artefact, stored_bytes, sha256)?;
    if bytes != artefact.plain_bytes || digest.to_hex().as_str() != artefact.blake3 {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("artefact {:?} does not decode to what was captured", artefact.name),
        ));
    }
    Ok(())
}

/// Decrypts and decompresses to the end of the stored bytes; `Ok(false)` when the reader has gone away.
fn unpack(
    stored: &mut Fetched,
    artefact: &Artefact,
    identities: &Identities,
    take: impl FnMut(Bytes) -> bool,
) -> io::Result<bool> {
    let whole = if artefact.recipients.is_empty() {
        decompress(stored, artefact.compression, take)?
    } else {
        let decryptor = age::Decryptor::new_buffered(&mut *stored).map_err(io::Error::other)?;
        let keys = identities.0.iter().map(|k| k as &dyn age::Identity);
        let reader = decryptor.decrypt(keys).map_err(|e| match e {
            age::DecryptError::NoMatchingKeys => io::Error::from(
                Error::new(ErrorKind::Denied, format!("no identity given opens artefact {:?}", artefact.name))
                    .hint(format!("it was encrypted to {}.", artefact.recipients.join(", "))),
            ),
            other => io::Error::other(other),
        })?;
        decompress(&mut io::BufReader::with_capacity(CHUNK_BYTES, reader), artefact.compression, take)?
    };
    if whole {
        io::copy(stored, &mut io::sink())?;
    }
    Ok(whole)
}

/// Decompresses to the end; `Ok(false)` when nobody takes the chunks any more.
fn decompress(from: &mut dyn BufRead, algorithm: Algorithm, mut take: impl FnMut(Bytes) -> bool) -> io::Result<bool> {
    let mut plain: Box<dyn Read + '_> = match algorithm {
        Algorithm::None => Box::new(&mut *from),
        Algorithm::Zstd => Box::new(zstd::Decoder::with_buffer(&mut *from)?),
        Algorithm::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(&mut *from)),
    };
    let mut chunks = Chunks::default();
    loop {
        let n = read_full(&mut plain, chunks.space())?;
        if n > 0 && !take(chunks.take_first(n)) {
            return Ok(false);
        }
        if n < CHUNK_BYTES {
            break;
        }
    }
    drop(plain);
    io::copy(from, &mut io::sink())?;
    Ok(true)
}

/// Reads until `buffer` is full, or to the end.
fn read_full(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(filled)
}
