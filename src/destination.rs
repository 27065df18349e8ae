//! The contract between the engine and a place that keeps objects.
//!
//! - An object becomes visible whole or not at all, and only after [`Upload::complete`] returned `Ok`.
//! - `get head list list_versions delete` are cancel-safe and idempotent.
//! - Drivers do not retry whole calls; [`retry`] does, in one place, and only [`ErrorKind::Unavailable`].
//! - A missing right is `Denied`, never "missing": 403 says nothing about existence.
//!
//! [`ErrorKind::Unavailable`]: crate::error::ErrorKind::Unavailable

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

pub mod local;
pub mod retry;
pub mod s3;

/// Where an object lies: its key, and the version where the store keeps versions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Location {
    /// `/`-separated, relative to the destination, `[A-Za-z0-9._%~/-]` only.
    pub key: String,
    /// The version id, for `versioned` keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
}

impl Location {
    /// The newest version of a key.
    pub fn newest(key: impl Into<String>) -> Self {
        Self { key: key.into(), version: None }
    }
}

/// An object as a listing shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Where it lies.
    pub location: Location,
    /// Stored length.
    pub bytes: u64,
    /// When the store says it was written. Not to be trusted for freshness.
    pub modified: Option<DateTime<Utc>>,
    /// Whether this is the newest version of its key.
    pub latest: bool,
    /// Whether this is a delete marker (length 0).
    pub delete_marker: bool,
    /// Whether it lies in an archive class. A listing does not say whether it has been thawed since; `head` does.
    pub archived: bool,
}

/// How a key is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutMode {
    /// Fails with `AlreadyExists` if the key is taken, where the store can tell.
    WriteOnce,
    /// Adds a version; fails if the store answers without a version id.
    Versioned,
    /// Replaces what is there (an accepted manifest, a README).
    Replace,
}

/// The bytes of an object.
pub type ByteStream = BoxStream<'static, Result<Bytes>>;

/// A place that keeps objects.
#[async_trait]
pub trait Destination: fmt::Debug + Send + Sync {
    /// The name from the configuration.
    fn name(&self) -> &str;
    /// Whether it lies on another machine.
    fn is_off_site(&self) -> bool;
    /// Starts an object. `expected_bytes` is a hint: it sizes buffers, and a length that the store cannot take fails now.
    async fn begin(&self, key: &str, mode: PutMode, expected_bytes: Option<u64>) -> Result<Box<dyn Upload>>;
    /// Streams an object from its first byte to its last.
    async fn get(&self, at: &Location) -> Result<ByteStream>;
    /// Length and time of one object; `None` if there is none.
    async fn head(&self, at: &Location) -> Result<Option<ObjectMeta>>;
    /// Every object whose key starts with `prefix`, newest versions only, in no order.
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>>;
    /// Names of the folders directly under `prefix` (which is empty or ends in `/`), without slashes.
    async fn folders(&self, prefix: &str) -> Result<Vec<String>>;
    /// Every version and delete marker under `prefix`; the same as `list` where there are no versions.
    async fn list_versions(&self, prefix: &str) -> Result<Vec<ObjectMeta>>;
    /// Removes one object (or one version). A missing object is success.
    async fn delete(&self, at: &Location) -> Result<()>;
    /// Where a point's objects are written before it is published. The same folder unless there is a rename.
    fn staging(&self, folder: &str) -> String {
        folder.to_owned()
    }
    /// Makes a staged folder visible under its final name, durably.
    async fn publish(&self, staged: &str, folder: &str) -> Result<()> {
        let _ = (staged, folder);
        Ok(())
    }
    /// Whether the store keeps versions even though keys are write-once: deleting then needs version ids.
    async fn keeps_versions(&self) -> Result<bool> {
        Ok(false)
    }
    /// The command that thaws an object of an archive class, where there are such classes.
    fn thaw_command(&self, at: &Location) -> Option<String> {
        let _ = at;
        None
    }
    /// Aborts unfinished uploads under `prefix` that began before `before`; how many.
    async fn sweep_uploads(&self, prefix: &str, before: DateTime<Utc>) -> Result<u64> {
        let _ = (prefix, before);
        Ok(0)
    }
}

/// An object on its way. Dropping it without `complete` must not create the object.
#[async_trait]
pub trait Upload: fmt::Debug + Send {
    /// Takes the next bytes; waits while the store is busy.
    async fn write(&mut self, chunk: Bytes) -> Result<()>;
    /// Makes the object visible, durably; its final location.
    async fn complete(self: Box<Self>) -> Result<Location>;
    /// Removes what was sent.
    async fn abort(self: Box<Self>) -> Result<()>;
}

/// Stores a small object in one go.
pub async fn put(destination: &dyn Destination, key: &str, mode: PutMode, bytes: Bytes) -> Result<Location> {
    let mut upload = destination.begin(key, mode, Some(bytes.len() as u64)).await?;
    if let Err(err) = upload.write(bytes).await {
        let _ = upload.abort().await;
        return Err(err);
    }
    upload.complete().await
}

/// Reads a small object whole; refuses one longer than `limit` bytes.
pub async fn get_small(destination: &dyn Destination, at: &Location, limit: usize) -> Result<Vec<u8>> {
    let mut stream = destination.get(at).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk?);
        if bytes.len() > limit {
            return Err(Error::new(ErrorKind::Corrupt, format!("{:?} is longer than {limit} bytes", at.key)));
        }
    }
    Ok(bytes)
}
