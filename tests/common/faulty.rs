//! A destination that fails on demand, around a real one.

use std::sync::Arc;

use async_trait::async_trait;
use backstay::destination::{ByteStream, Destination, Location, ObjectMeta, PutMode, Upload};
use backstay::error::{Error, ErrorKind, Result};
use bytes::Bytes;

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// Uploads of keys that contain the text fail after so many bytes.
    FailWrite(&'static str, u64),
    /// Uploads of keys that contain the text hang after so many bytes.
    HangWrite(&'static str, u64),
    /// Completing such an upload fails.
    FailComplete(&'static str),
}

impl Fault {
    fn concerns(&self, key: &str) -> bool {
        match self {
            Self::FailWrite(text, _) | Self::HangWrite(text, _) | Self::FailComplete(text) => key.contains(text),
        }
    }
}

#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Destination>,
    fault: Fault,
}

impl Faulty {
    pub fn wrap(inner: Arc<dyn Destination>, fault: Fault) -> Arc<dyn Destination> {
        Arc::new(Self { inner, fault })
    }
}

#[async_trait]
impl Destination for Faulty {
    fn name(&self) -> &str {
        self.inner.name()
    }
    fn is_off_site(&self) -> bool {
        self.inner.is_off_site()
    }
    async fn begin(&self, key: &str, mode: PutMode, expected: Option<u64>) -> Result<Box<dyn Upload>> {
        let inner = self.inner.begin(key, mode, expected).await?;
        let fault = self.fault.concerns(key).then(|| self.fault.clone());
        Ok(Box::new(FaultyUpload { inner, fault, bytes: 0 }))
    }
    async fn get(&self, at: &Location) -> Result<ByteStream> {
        self.inner.get(at).await
    }
    async fn head(&self, at: &Location) -> Result<Option<ObjectMeta>> {
        self.inner.head(at).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.inner.list(prefix).await
    }
    async fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        self.inner.folders(prefix).await
    }
    async fn list_versions(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.inner.list_versions(prefix).await
    }
    async fn delete(&self, at: &Location) -> Result<()> {
        self.inner.delete(at).await
    }
    fn staging(&self, folder: &str) -> String {
        self.inner.staging(folder)
    }
    async fn publish(&self, staged: &str, folder: &str) -> Result<()> {
        self.inner.publish(staged, folder).await
    }
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn Upload>,
    fault: Option<Fault>,
    bytes: u64,
}

#[async_trait]
impl Upload for FaultyUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        self.bytes += chunk.len() as u64;
        match &self.fault {
            Some(Fault::FailWrite(_, limit)) if self.bytes > *limit => {
                Err(Error::new(ErrorKind::Unavailable, "the store answered 503"))
            }
            Some(Fault::HangWrite(_, limit)) if self.bytes > *limit => std::future::pending().await,
            _ => self.inner.write(chunk).await,
        }
    }
    async fn complete(self: Box<Self>) -> Result<Location> {
        if matches!(self.fault, Some(Fault::FailComplete(_))) {
            let _ = self.inner.abort().await;
            return Err(Error::new(ErrorKind::Unavailable, "the store answered 200 with an error inside"));
        }
        self.inner.complete().await
    }
    async fn abort(self: Box<Self>) -> Result<()> {
        self.inner.abort().await
    }
}
