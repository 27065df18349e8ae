//! Reading: the length is known from the first answer, and nothing shorter is taken for the object.
//!
//! A long object is read in ranges, several at once, for one stream over a distant network gets no more than a window
//! per round trip. They are handed on in order, and all of them are of one version or ETag.

use std::ops::Range;
use std::sync::Arc;

use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::primitives::ByteStream as Body;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream;
use tokio_util::task::AbortOnDropHandle;

use super::Inner;
use super::errors::has_status;
use crate::config::S3Config;
use crate::destination::{ByteStream, Location};
use crate::error::{Error, ErrorKind, Result};

/// After so many bytes a broken read counts as a new one.
const PROGRESS: u64 = 1 << 20;
/// A range is as long as a part, for stores read whole parts fastest, but no longer than this: they wait in memory.
const RANGE: u64 = 8 << 20;

/// Streams an object.
pub(super) async fn stream(inner: Arc<Inner>, at: Location) -> Result<ByteStream> {
    let (object, body, end) = begin(inner, at).await?;
    let first = Reading::new(&object, 0..end, Some(body));
    Ok(if end == object.total { chunks(first) } else { ranges(object, first, end) })
}

/// What is read: one object, and what pins it.
#[derive(Debug)]
struct Object {
    inner: Arc<Inner>,
    at: Location,
    /// The ETag, where no version pins the bytes.
    etag: Option<String>,
    total: u64,
}

/// How long a range is, if objects are read in ranges.
fn range_bytes(config: &S3Config) -> Option<u64> {
    (config.download_concurrency > 1).then_some(config.part_size.0.min(RANGE))
}

/// Asks for the first range; the object, the bytes that come, and where they end.
async fn begin(inner: Arc<Inner>, at: Location) -> Result<(Arc<Object>, Body, u64)> {
    let range = range_bytes(&inner.config).map(|bytes| 0..bytes);
    let answer = match open(&inner, &at, None, range).await {
        // An empty object has no ranges.
        Err(err) if has_status(&err, 416) => open(&inner, &at, None, None).await?,
        answer => answer?,
    };
    let end = answer.content_length.and_then(|n| u64::try_from(n).ok());
    // A store that does not know ranges sends the whole object.
    let total = match &answer.content_range {
        Some(text) => text.rsplit_once('/').and_then(|(_, total)| total.parse().ok()),
        None => end,
    };
    let call = inner.at("read", "s3:GetObject", &at.key);
    let (Some(end), Some(total)) = (end, total) else {
        return Err(call.error(ErrorKind::Failed, "the store does not say its length"));
    };
    let whole = range_bytes(&inner.config).unwrap_or(total).min(total);
    if end != total && end != whole {
        return Err(call.error(ErrorKind::Failed, &format!("asked for {whole} bytes, the store sends {end}")));
    }
    // Reading a version by its id takes another right than reading the newest: only without an ETag is it needed.
    let at = match answer.version_id.filter(|v| v != "null" && answer.e_tag.is_none()) {
        Some(version) => Location { key: at.key, version: Some(version) },
        None => at,
    };
    let etag = answer.e_tag.filter(|_| at.version.is_none());
    Ok((Arc::new(Object { inner, at, etag, total }), answer.body, end))
}

/// Makes one request, for bytes that are as `etag` says.
async fn open(inner: &Inner, at: &Location, etag: Option<&str>, range: Option<Range<u64>>) -> Result<GetObjectOutput> {
    let right = if at.version.is_some() { "s3:GetObjectVersion" } else { "s3:GetObject" };
    let call = inner.at("read", right, &at.key);
    let replaced = || Error::new(ErrorKind::Corrupt, format!("{call}: it was replaced while it was read"));
    let range = range.map(|r| format!("bytes={}-{}", r.start, r.end - 1));
    let answer = inner
        .call(&call, inner.limit(), |client| {
            let request = client.get_object().bucket(&inner.config.bucket).key(&at.key);
            let request = request.set_version_id(at.version.clone()).set_if_match(etag.map(str::to_owned));
            request.set_range(range.clone()).send()
        })
        .await;
    match answer {
        Err(err) if err.kind == ErrorKind::AlreadyExists && has_status(&err, 412) => Err(replaced().caused_by(err)),
        // Not every store heeds the condition.
        Ok(answer) if etag.is_some() && answer.e_tag.as_deref() != etag => Err(replaced()),
        answer => answer,
    }
}

/// One request after the other, as the bytes come.
fn chunks(reading: Reading) -> ByteStream {
    stream::try_unfold(reading, |mut reading| async move { Ok(reading.next().await?.map(|b| (b, reading))) }).boxed()
}

/// Ranges of `bytes` each, several at once, each whole before it is handed on. No more are asked for than can wait.
fn ranges(object: Arc<Object>, first: Reading, bytes: u64) -> ByteStream {
    let at_once = object.inner.config.download_concurrency as usize;
    let mut first = Some(first);
    let all = stream::iter((0..object.total.div_ceil(bytes)).map(move |n| n * bytes))
        .map(move |begin| {
            let range = begin..(begin + bytes).min(object.total);
            let reading = first.take().unwrap_or_else(|| Reading::new(&object, range, None));
            AbortOnDropHandle::new(tokio::spawn(reading.all()))
        })
        .buffered(at_once);
    // With the first error `all` is dropped, and so is what is on its way.
    let next = |mut all: stream::BoxStream<'static, _>| async move {
        let Some(done) = all.next().await else { return Ok(None) };
        let done: Result<Result<Bytes>, tokio::task::JoinError> = done;
        let torn = |e| Error::new(ErrorKind::Internal, "the read of a range was torn down").caused_by(e);
        Ok(Some((done.map_err(torn)??, all)))
    };
    stream::try_unfold(all.boxed(), next).boxed()
}

/// Bytes of an object from `offset` to `end`, resumed where they break off.
struct Reading {
    object: Arc<Object>,
    body: Option<Body>,
    offset: u64,
    end: u64,
    broken: u32,
    broken_at: u64,
}

impl Reading {
    fn new(object: &Arc<Object>, range: Range<u64>, body: Option<Body>) -> Self {
        let object = Arc::clone(object);
        Self { object, body, offset: range.start, end: range.end, broken: 0, broken_at: range.start }
    }

    async fn all(mut self) -> Result<Bytes> {
        let mut all = BytesMut::with_capacity(usize::try_from(self.end - self.offset).unwrap_or(0));
        while let Some(chunk) = self.next().await? {
            all.extend_from_slice(&chunk);
        }
        Ok(all.freeze())
    }

    async fn next(&mut self) -> Result<Option<Bytes>> {
        let limit = self.object.inner.limit();
        loop {
            if self.offset == self.end {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.open().await?;
                continue;
            };
            let err = match tokio::time::timeout(limit, body.next()).await {
                Ok(Some(Ok(chunk))) if chunk.is_empty() => continue,
                Ok(Some(Ok(chunk))) => return self.took(chunk).map(Some),
                Ok(None) => self.early(),
                Ok(Some(Err(e))) => self.early().caused_by(e),
                Err(_) => self.call().late(limit),
            };
            self.resume(err).await?;
        }
    }

    fn call(&self) -> super::Call<'_> {
        self.object.inner.at("read", "s3:GetObject", &self.object.at.key)
    }

    fn early(&self) -> Error {
        let (offset, total) = (self.offset, self.object.total);
        self.call().error(ErrorKind::Unavailable, &format!("it ended after {offset} of {total} bytes"))
    }

    fn took(&mut self, chunk: Bytes) -> Result<Bytes> {
        self.offset += chunk.len() as u64;
        if self.offset > self.end {
            return Err(self.call().error(ErrorKind::Corrupt, &format!("it goes on after {} bytes", self.end)));
        }
        Ok(chunk)
    }

    /// Asks for the rest.
    async fn open(&mut self) -> Result<()> {
        let (object, left) = (&self.object, self.end - self.offset);
        let answer = open(&object.inner, &object.at, object.etag.as_deref(), Some(self.offset..self.end)).await?;
        if answer.content_length.and_then(|n| u64::try_from(n).ok()) != Some(left) {
            let text =
                format!("asked for {left} bytes from {} on, the store sends {:?}", self.offset, answer.content_length);
            return Err(self.call().error(ErrorKind::Failed, &text));
        }
        self.body = Some(answer.body);
        Ok(())
    }

    async fn resume(&mut self, err: Error) -> Result<()> {
        if self.offset - self.broken_at >= PROGRESS {
            self.broken = 0;
        }
        self.broken_at = self.offset;
        let policy = self.object.inner.policy;
        if self.broken >= policy.retries {
            return Err(err);
        }
        tracing::debug!(error = %err.chain(), offset = self.offset, "a read broke off, it will be resumed");
        tokio::time::sleep(policy.pause(self.broken)).await;
        self.broken += 1;
        self.open().await
    }
}
