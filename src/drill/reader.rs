//! Artefacts as a drill reads them: what was waited for, what was read to its end, and which object is to blame.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt as _};
use tokio::io::{AsyncBufRead, AsyncRead, ReadBuf};

use crate::catalogue::Place;
use crate::destination::{ByteStream, Destination};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Artefact;
use crate::monitor::Monitor;
use crate::pipeline::decode::{self, Identities};
use crate::source::{ArtefactReader, OpenArtefact, Seconds};
use crate::units::Clock;

/// What is known of the reading.
#[derive(Debug)]
pub(super) struct Meter {
    clock: Clock,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Seconds for which stored bytes were waited for.
    stored: f64,
    /// Seconds for which plain bytes were waited for; the former are in them, as far as nothing overlapped.
    plain: f64,
    whole: BTreeSet<String>,
    blamed: Option<String>,
}

impl Meter {
    pub(super) fn new(clock: Clock) -> Self {
        Self { clock, seen: Mutex::default() }
    }
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
    /// This object is damaged; the first one counts.
    pub(super) fn blame(&self, key: &str) {
        self.seen().blamed.get_or_insert_with(|| key.to_owned());
    }
    pub(super) fn blamed(&self) -> Option<String> {
        self.seen().blamed.clone()
    }
    /// Whether an artefact was read to its end, which proves its digests.
    pub(super) fn was_read(&self, name: &str) -> bool {
        self.seen().whole.contains(name)
    }
    /// Takes what was waited for out of the phases in which it was, so that each second counts once.
    pub(super) fn share(&self, mut seconds: Seconds) -> Seconds {
        let seen = self.seen();
        let mut waited = seen.plain;
        for phase in [&mut seconds.restore, &mut seconds.compare] {
            let part = waited.min(*phase);
            *phase -= part;
            waited -= part;
        }
        let waited = seen.plain - waited;
        seconds.fetch = seen.stored.min(waited);
        seconds.decompress = waited - seconds.fetch;
        seconds
    }
    fn waited(&self, since: &mut Option<DateTime<Utc>>, pending: bool) -> f64 {
        if pending {
            since.get_or_insert_with(|| self.clock.now());
            return 0.0;
        }
        let passed = since.take().map(|at| (self.clock.now() - at).to_std().unwrap_or_default());
        passed.unwrap_or_default().as_secs_f64()
    }
}

/// An object that the manifest names and that is not there is damage.
pub(super) fn missing_is_damage(mut err: Error, name: &str) -> Error {
    if err.kind == ErrorKind::NotFound {
        err.kind = ErrorKind::Corrupt;
        return err.within(format!("artefact {name:?} is missing"));
    }
    err
}

/// Opens artefacts of a place.
#[derive(Debug)]
pub(super) struct Watched {
    destination: Arc<dyn Destination>,
    identities: Identities,
    monitor: Arc<dyn Monitor>,
    meter: Arc<Meter>,
}

impl Watched {
    pub(super) fn new(place: &Place, identities: Identities, monitor: Arc<dyn Monitor>, meter: Arc<Meter>) -> Self {
        Self { destination: Arc::clone(&place.destination), identities, monitor, meter }
    }
}

#[async_trait]
impl OpenArtefact for Watched {
    async fn open(&self, artefact: &Artefact) -> Result<ArtefactReader> {
        let stream = self.destination.get(&artefact.location).await.map_err(|e| {
            let err = missing_is_damage(e, &artefact.name);
            if err.kind == ErrorKind::Corrupt {
                self.meter.blame(&artefact.location.key);
            }
            err
        })?;
        self.monitor.start(&artefact.name, Some(artefact.stored_bytes));
        let stored = Stored {
            stream,
            since: None,
            name: artefact.name.clone(),
            monitor: Arc::clone(&self.monitor),
            meter: Arc::clone(&self.meter),
        };
        let reader = decode::reader(stored.boxed(), artefact, &self.identities)?;
        let (name, key) = (artefact.name.clone(), artefact.location.key.clone());
        Ok(Box::pin(Plain { reader, since: None, name, key, meter: Arc::clone(&self.meter) }))
    }
}

struct Stored {
    stream: ByteStream,
    since: Option<DateTime<Utc>>,
    name: String,
    monitor: Arc<dyn Monitor>,
    meter: Arc<Meter>,
}

impl Stream for Stored {
    type Item = Result<Bytes>;
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.stream.poll_next_unpin(cx);
        let meter = Arc::clone(&self.meter);
        let waited = meter.waited(&mut self.since, next.is_pending());
        meter.seen().stored += waited;
        if let Poll::Ready(Some(Ok(bytes))) = &next {
            self.monitor.advance(&self.name, bytes.len() as u64);
        }
        next
    }
}

impl Drop for Stored {
    fn drop(&mut self) {
        self.monitor.end(&self.name);
    }
}

struct Plain {
    reader: ArtefactReader,
    since: Option<DateTime<Utc>>,
    name: String,
    key: String,
    meter: Arc<Meter>,
}

impl Plain {
    /// Notes how reading went on: `Ready(true)` is the end.
    fn note(&mut self, read: Poll<std::result::Result<bool, &std::io::Error>>) {
        let meter = Arc::clone(&self.meter);
        let waited = meter.waited(&mut self.since, read.is_pending());
        let mut seen = meter.seen();
        seen.plain += waited;
        match read {
            Poll::Ready(Ok(true)) => {
                seen.whole.insert(self.name.clone());
            }
            Poll::Ready(Err(e)) => {
                let kind = e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()).map(|inner| inner.kind);
                if kind == Some(ErrorKind::Corrupt) {
                    seen.blamed.get_or_insert_with(|| self.key.clone());
                }
            }
            _ => {}
        }
    }
}

impl AsyncRead for Plain {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        let read = self.reader.as_mut().poll_read(cx, buf);
        let ended = room && buf.filled().len() == before;
        self.note(match &read {
            Poll::Ready(read) => Poll::Ready(read.as_ref().map(|()| ended)),
            Poll::Pending => Poll::Pending,
        });
        read
    }
}

impl AsyncBufRead for Plain {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<&[u8]>> {
        let this = self.get_mut();
        let filled = this.reader.as_mut().poll_fill_buf(cx).map_ok(<[u8]>::is_empty);
        this.note(match &filled {
            Poll::Ready(filled) => Poll::Ready(filled.as_ref().copied()),
            Poll::Pending => Poll::Pending,
        });
        // What there is is asked for again, because the note needs all of this meanwhile.
        match filled {
            Poll::Ready(Ok(_)) => this.reader.as_mut().poll_fill_buf(cx),
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => Poll::Pending,
        }
    }
    fn consume(mut self: Pin<&mut Self>, n: usize) {
        self.reader.as_mut().consume(n);
    }
}
