//! An object on its way into a bucket.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use aws_sdk_s3::types::CompletedPart;
use bytes::{Bytes, BytesMut};
use tokio::task::{JoinError, JoinSet};

use super::errors::{has_code, is_not_implemented, unless_denied};
use super::object::Versioning;
use super::{Inner, parts};
use crate::destination::retry::retry;
use crate::destination::{Location, PutMode, Upload};
use crate::error::{Error, ErrorKind, Result};
use crate::units;

/// An object on its way.
#[derive(Debug)]
pub(super) struct S3Upload {
    inner: Arc<Inner>,
    key: String,
    mode: PutMode,
    /// Tells our object from another one under the same key.
    token: String,
    expected: Option<u64>,
    cut: parts::Cut,
    buffer: BytesMut,
    /// Set as soon as there are parts.
    id: Option<String>,
    /// A request to start an upload is, or may still be, on its way without its id being known.
    strays: bool,
    sending: JoinSet<Result<(CompletedPart, u64)>>,
    /// Bytes of the parts on their way.
    sending_bytes: u64,
    sent: Vec<CompletedPart>,
    started_parts: u32,
    bytes: u64,
    /// A write is under way, or was given up half-way, or failed.
    torn: bool,
    closed: bool,
}

impl S3Upload {
    pub(super) async fn begin(inner: &Arc<Inner>, key: &str, mode: PutMode, expected: Option<u64>) -> Result<Self> {
        let cut = parts::Cut::of(&inner.config);
        if let Some(expected) = expected.filter(|bytes| *bytes > cut.greatest()) {
            return Err(too_long(inner, key, &format!("it is expected to have {}", units::Bytes(expected))));
        }
        match mode {
            PutMode::WriteOnce => {
                if unless_denied(inner.head(&Location::newest(key)).await)?.flatten().is_some() {
                    return Err(taken(inner, key));
                }
            }
            PutMode::Versioned => {
                if unless_denied(inner.versioning().await)?.is_some_and(|v| v != Versioning::Enabled) {
                    return Err(unversioned(inner, key));
                }
            }
            PutMode::Replace => {}
        }
        let mut random = [0u8; 16];
        getrandom::fill(&mut random).map_err(|e| Error::new(ErrorKind::Internal, "no random numbers").caused_by(e))?;
        Ok(Self {
            inner: Arc::clone(inner),
            key: key.to_owned(),
            mode,
            token: hex::encode(random),
            expected,
            cut,
            buffer: BytesMut::new(),
            id: None,
            strays: false,
            sending: JoinSet::new(),
            sending_bytes: 0,
            sent: Vec::new(),
            started_parts: 0,
            bytes: 0,
            torn: false,
            closed: false,
        })
    }

    async fn take(&mut self, mut chunk: Bytes) -> Result<()> {
        while let Some(done) = self.sending.try_join_next() {
            self.arrived(done)?;
        }
        while !chunk.is_empty() {
            let size = usize::try_from(self.cut.size(self.started_parts)).unwrap_or(usize::MAX);
            if self.buffer.capacity() == 0 {
                while self.sending_bytes.saturating_add(size as u64) > self.cut.memory {
                    let Some(done) = self.sending.join_next().await else { break };
                    self.arrived(done)?;
                }
                let left = self.expected.and_then(|e| usize::try_from(e.saturating_sub(self.bytes)).ok());
                self.buffer = BytesMut::with_capacity(left.unwrap_or(size).clamp(chunk.len().min(size), size));
            }
            let fits = chunk.len().min(size - self.buffer.len());
            self.buffer.extend_from_slice(&chunk.split_to(fits));
            self.bytes += fits as u64;
            if self.buffer.len() == size {
                self.send_part().await?;
            }
        }
        Ok(())
    }

    fn arrived(&mut self, done: std::result::Result<Result<(CompletedPart, u64)>, JoinError>) -> Result<()> {
        let (part, bytes) = done.unwrap_or_else(|e| {
            Err(Error::new(ErrorKind::Internal, "the upload of a part was torn down").caused_by(e))
        })?;
        self.sending_bytes -= bytes;
        self.sent.push(part);
        Ok(())
    }

    /// Hands the buffer to a task, once fewer than `concurrency` are at work.
    async fn send_part(&mut self) -> Result<()> {
        if self.started_parts == parts::MAX_PARTS {
            return Err(too_long(&self.inner, &self.key, "it is longer"));
        }
        let id = self.start().await?;
        while self.sending.len() >= self.inner.config.concurrency as usize {
            let Some(done) = self.sending.join_next().await else { break };
            self.arrived(done)?;
        }
        self.started_parts += 1;
        let number = i32::try_from(self.started_parts).unwrap_or(i32::MAX);
        let (inner, key, body) = (Arc::clone(&self.inner), self.key.clone(), std::mem::take(&mut self.buffer).freeze());
        let bytes = body.len() as u64;
        self.sending_bytes += bytes;
        self.sending.spawn(async move { Ok((inner.put_part(&key, &id, number, &body).await?, bytes)) });
        Ok(())
    }

    /// The id of the upload, which is started with the first part.
    async fn start(&mut self) -> Result<String> {
        if let Some(id) = &self.id {
            return Ok(id.clone());
        }
        // Until a first try has succeeded there may be uploads whose ids were lost with the answer.
        self.strays = true;
        let mut tries = 0u32;
        let inner = Arc::clone(&self.inner);
        let id = retry(&inner.policy, &inner.name, || {
            tries += 1;
            inner.create_upload(&self.key, &self.token)
        })
        .await?;
        self.strays = tries > 1;
        self.id = Some(id.clone());
        Ok(id)
    }

    async fn finish(&mut self) -> Result<Location> {
        if self.torn {
            let call = self.inner.at("complete the upload of", "s3:PutObject", &self.key);
            return Err(call.error(ErrorKind::Cancelled, "a write failed or was given up half-way"));
        }
        if self.id.is_some() {
            if !self.buffer.is_empty() {
                self.send_part().await?;
            }
            while let Some(done) = self.sending.join_next().await {
                self.arrived(done)?;
            }
            self.sent.sort_by_key(|part| part.part_number);
        }
        let body = std::mem::take(&mut self.buffer).freeze();
        let policy = self.inner.policy;
        let version = retry(&policy, &self.inner.name, || self.commit(&body)).await?;
        self.located(version).await
    }

    /// One try to make the object visible. An unclear answer is settled by looking.
    async fn commit(&self, body: &Bytes) -> Result<Option<String>> {
        let new = self.mode == PutMode::WriteOnce && !self.inner.unconditional.load(Ordering::Relaxed);
        let mut answer = self.commit_once(body, new).await;
        if new && answer.as_ref().is_err_and(is_not_implemented) {
            self.inner.unconditional.store(true, Ordering::Relaxed);
            answer = self.commit_once(body, false).await;
        }
        let err = match answer {
            Ok(version) => return Ok(version),
            Err(err) => err,
        };
        let unclear =
            matches!(err.kind, ErrorKind::Unavailable | ErrorKind::AlreadyExists) || has_code(&err, "NoSuchUpload");
        if !unclear {
            return Err(err);
        }
        match self.inner.head_once(&Location::newest(&self.key)).await {
            Ok(found) if found.token.as_deref() == Some(&self.token) && found.meta.bytes == self.bytes => {
                tracing::debug!(key = self.key, error = %err.chain(), "stored, though the answer said otherwise");
                Ok(found.version)
            }
            Ok(_) => Err(err),
            Err(look) => {
                tracing::debug!(error = %look.chain(), "cannot see whether the object was stored");
                Err(err)
            }
        }
    }

    async fn commit_once(&self, body: &Bytes, new: bool) -> Result<Option<String>> {
        match &self.id {
            None => self.inner.put_object(&self.key, body, &self.token, new).await,
            Some(id) => self.inner.complete_upload(&self.key, id, &self.sent, new).await,
        }
    }

    async fn located(&self, version: Option<String>) -> Result<Location> {
        if self.mode != PutMode::Versioned {
            return Ok(Location::newest(&self.key));
        }
        match version {
            Some(version) if !version.is_empty() && version != "null" => {
                Ok(Location { key: self.key.clone(), version: Some(version) })
            }
            // Nothing names exactly these bytes: they must not stay.
            other => {
                let at = Location { key: self.key.clone(), version: other.filter(|v| v == "null") };
                if let Err(err) = self.inner.delete(&at).await {
                    tracing::warn!(error = %err.chain(), "an object without a version id is left");
                }
                Err(unversioned(&self.inner, &self.key))
            }
        }
    }

    /// Removes what was sent.
    async fn discard(&mut self) -> Result<()> {
        self.closed = true;
        self.sending.shutdown().await;
        let id = self.id.take();
        remove(&self.inner, &self.key, id.as_deref(), self.strays).await
    }
}

/// Aborts an upload, and all others of this key where ids may have been lost.
async fn remove(inner: &Inner, key: &str, id: Option<&str>, strays: bool) -> Result<()> {
    if let Some(id) = id {
        inner.abort_upload(key, id).await?;
    }
    if strays && let Some(uploads) = unless_denied(inner.uploads(key).await)? {
        for upload in uploads.iter().filter(|u| u.key == key) {
            inner.abort_upload(key, &upload.id).await?;
        }
    }
    Ok(())
}

fn taken(inner: &Inner, key: &str) -> Error {
    let call = inner.at("write", "s3:PutObject", key);
    call.error(ErrorKind::AlreadyExists, "it is there already")
        .hint("nothing was replaced; remove it first if it is not needed.")
}

fn unversioned(inner: &Inner, key: &str) -> Error {
    let call = inner.at("write", "s3:PutObject", key);
    call.error(ErrorKind::Config, "the bucket keeps no versions, but `key_style: versioned` needs them")
        .hint(format!("turn the versioning of bucket {:?} on, or use `key_style: timestamped`.", inner.config.bucket))
}

fn too_long(inner: &Inner, key: &str, what: &str) -> Error {
    let (config, cut) = (&inner.config, parts::Cut::of(&inner.config));
    let greatest = units::Bytes(cut.greatest());
    let text = format!("{what}, and {} parts hold {greatest} at most", parts::MAX_PARTS);
    let hint = if config.fixed_part_size {
        format!("set a larger `part_size` for this destination: it is {}.", config.part_size)
    } else {
        let memory = units::Bytes(cut.memory);
        format!("set a larger `part_size` ({} now) or `upload_memory` ({memory} now).", config.part_size)
    };
    inner.at("write", "s3:PutObject", key).error(ErrorKind::Config, &text).hint(hint)
}

#[async_trait]
impl Upload for S3Upload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        if self.torn {
            let call = self.inner.at("write", "s3:PutObject", &self.key);
            return Err(call.error(ErrorKind::Cancelled, "an earlier write failed or was given up half-way"));
        }
        self.torn = true;
        self.take(chunk).await?;
        self.torn = false;
        Ok(())
    }

    async fn complete(mut self: Box<Self>) -> Result<Location> {
        match self.finish().await {
            Ok(location) => {
                self.closed = true;
                if self.strays
                    && let Err(err) = remove(&self.inner, &self.key, None, true).await
                {
                    tracing::warn!(error = %err.chain(), "an unfinished upload may be left for the next sweep");
                }
                Ok(location)
            }
            Err(err) => {
                if let Err(left) = self.discard().await {
                    tracing::warn!(error = %left.chain(), "an unfinished upload is left for the next sweep");
                }
                Err(err)
            }
        }
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        self.discard().await
    }
}

impl Drop for S3Upload {
    fn drop(&mut self) {
        if self.closed || (self.id.is_none() && !self.strays) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (inner, key, id, strays) = (Arc::clone(&self.inner), self.key.clone(), self.id.take(), self.strays);
        let mut sending = std::mem::take(&mut self.sending);
        runtime.spawn(async move {
            sending.shutdown().await;
            if let Err(err) = remove(&inner, &key, id.as_deref(), strays).await {
                tracing::warn!(error = %err.chain(), "an unfinished upload is left for the next sweep");
            }
        });
    }
}
