//! Reading: the length is known from the first answer, and nothing shorter is taken for the object.

use std::sync::Arc;

use aws_sdk_s3::primitives::ByteStream as Body;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;

use super::Inner;
use super::errors::has_status;
use crate::destination::{ByteStream, Location};
use crate::error::{Error, ErrorKind, Result};

/// After so many bytes a broken read counts as a new one.
const PROGRESS: u64 = 1 << 20;

struct Reading {
    inner: Arc<Inner>,
    at: Location,
    /// The ETag, where no version pins the bytes.
    etag: Option<String>,
    body: Body,
    offset: u64,
    total: u64,
    broken: u32,
    broken_at: u64,
}

/// Streams an object.
pub(super) async fn stream(inner: Arc<Inner>, at: Location) -> Result<ByteStream> {
    let answer = open(&inner, &at, None, 0).await?;
    let call = inner.at("read", "s3:GetObject", &at.key);
    let total = answer.content_length.and_then(|n| u64::try_from(n).ok());
    let total = total.ok_or_else(|| call.error(ErrorKind::Failed, "the store does not say its length"))?;
    let at = match answer.version_id {
        Some(version) if version != "null" => Location { key: at.key, version: Some(version) },
        _ => at,
    };
    let reading =
        Reading { inner, at, etag: answer.e_tag, body: answer.body, offset: 0, total, broken: 0, broken_at: 0 };
    Ok(stream::try_unfold(reading, |mut reading| async move { Ok(reading.next().await?.map(|b| (b, reading))) })
        .boxed())
}

type Opened = aws_sdk_s3::operation::get_object::GetObjectOutput;

async fn open(inner: &Inner, at: &Location, etag: Option<&str>, offset: u64) -> Result<Opened> {
    let right = if at.version.is_some() { "s3:GetObjectVersion" } else { "s3:GetObject" };
    let call = inner.at("read", right, &at.key);
    let answer = inner
        .call(&call, inner.limit(), |client| {
            let request = client.get_object().bucket(&inner.config.bucket).key(&at.key);
            let request = request.set_version_id(at.version.clone()).set_if_match(etag.map(str::to_owned));
            request.set_range((offset > 0).then(|| format!("bytes={offset}-"))).send()
        })
        .await;
    answer.map_err(|err| match err.kind {
        ErrorKind::AlreadyExists if has_status(&err, 412) => {
            Error::new(ErrorKind::Corrupt, format!("{call}: it was replaced while it was read")).caused_by(err)
        }
        _ => err,
    })
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if self.offset == self.total {
                return Ok(None);
            }
            let err = match tokio::time::timeout(self.inner.limit(), self.body.next()).await {
                Ok(Some(Ok(chunk))) if chunk.is_empty() => continue,
                Ok(Some(Ok(chunk))) => return self.took(chunk).map(Some),
                Ok(None) => self.early(),
                Ok(Some(Err(e))) => self.early().caused_by(e),
                Err(_) => self.call().late(self.inner.limit()),
            };
            self.resume(err).await?;
        }
    }

    fn call(&self) -> super::Call<'_> {
        self.inner.at("read", "s3:GetObject", &self.at.key)
    }

    fn early(&self) -> Error {
        self.call().error(ErrorKind::Unavailable, &format!("it ended after {} of {} bytes", self.offset, self.total))
    }

    fn took(&mut self, chunk: Bytes) -> Result<Bytes> {
        self.offset += chunk.len() as u64;
        if self.offset > self.total {
            return Err(self.call().error(ErrorKind::Corrupt, &format!("it is longer than {} bytes", self.total)));
        }
        Ok(chunk)
    }

    /// Opens the rest.
    async fn resume(&mut self, err: Error) -> Result<()> {
        if self.offset - self.broken_at >= PROGRESS {
            self.broken = 0;
        }
        self.broken_at = self.offset;
        if self.broken >= self.inner.policy.retries {
            return Err(err);
        }
        tracing::debug!(error = %err.chain(), offset = self.offset, "a read broke off, it will be resumed");
        tokio::time::sleep(self.inner.policy.pause(self.broken)).await;
        self.broken += 1;
        let pin = if self.at.version.is_some() { None } else { self.etag.as_deref() };
        let answer = open(&self.inner, &self.at, pin, self.offset).await?;
        let left = self.total - self.offset;
        if answer.content_length.and_then(|n| u64::try_from(n).ok()) != Some(left) {
            let text = format!("asked for the last {left} bytes, the store sends {:?}", answer.content_length);
            return Err(self.call().error(ErrorKind::Failed, &text).caused_by(err));
        }
        self.body = answer.body;
        Ok(())
    }
}
