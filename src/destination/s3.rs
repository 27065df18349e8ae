//! S3 and stores that speak like it.
//!
//! What is sent is what the oldest stores still take: signatures over the SHA-256 of each body, no trailers, no
//! optional headers unless configured. `checksum: crc64nvme` replaces that SHA-256 by a checksum, over TLS only. A
//! store that demands `Content-MD5`, as for objects under a lock, gets it from its first such answer on.
//!
//! - Objects shorter than `part_size` go in one request, longer ones in parts, `concurrency` of them at a time. Parts
//!   grow with their number, for 10,000 is the limit; what an upload holds stays within `upload_memory`, so large
//!   parts travel with fewer others, and an object has a greatest length, which is said before it is begun if known.
//! - Each upload carries a random token as metadata. When the reply to the last request is lost, the object found
//!   under the key is ours only if it has that token and our length.
//! - [`PutMode::WriteOnce`]: the key is looked at first, and `If-None-Match: *` goes with the last request. Stores
//!   that ignore that header leave a window between the two, which the service's lock closes.
//! - [`PutMode::Versioned`]: an answer without a version id is an error: the bucket does not keep versions.
//! - A read is pinned to one version or ETag, and is resumed where it broke off. Objects longer than `part_size`, or
//!   8 MiB, are read in ranges, `download_concurrency` of them at a time, which wait in memory for their turn.
//! - Rights: `s3:PutObject` and `s3:AbortMultipartUpload` to write; `s3:GetObject` and `s3:ListBucket` to read;
//!   `s3:ListBucketVersions`, `s3:DeleteObject(Version)`, `s3:GetBucketVersioning` and
//!   `s3:ListBucketMultipartUploads` to prune. A 403 is never taken for "missing".

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use chrono::{DateTime, Utc};
use tokio::sync::OnceCell;

use super::retry::{RetryPolicy, retry};
use super::{ByteStream, Destination, Location, ObjectMeta, PutMode, Upload};
use crate::config::S3Config;
use crate::error::Result;

mod client;
mod credentials;
mod errors;
mod get;
mod list;
mod object;
mod parts;
mod upload;

use errors::Call;

pub use credentials::{CredentialSource, parse_credentials_file};

/// An S3 bucket as a destination.
#[derive(Debug, Clone)]
pub struct S3 {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    config: S3Config,
    client: Arc<client::LazyClient>,
    policy: RetryPolicy,
    /// The bucket has been seen: a 404 from now on is about a key.
    bucket_seen: AtomicBool,
    versioning: OnceCell<object::Versioning>,
    /// The store refused `If-None-Match` as not implemented.
    unconditional: AtomicBool,
    /// The store refused a body without `Content-MD5`.
    md5_wanted: AtomicBool,
}

impl S3 {
    /// A destination in the bucket of `config`. Makes no request.
    pub fn new(name: impl Into<String>, config: &S3Config, credentials: CredentialSource) -> Result<Self> {
        let name = name.into();
        let client = Arc::new(client::build(&name, config, credentials)?);
        Ok(Self { inner: Arc::new(Inner::new(name, config.clone(), client, RetryPolicy::new(config.retries))) })
    }

    /// With other pauses between tries.
    #[must_use]
    pub fn with_retry_policy(self, policy: RetryPolicy) -> Self {
        let old = self.inner;
        Self { inner: Arc::new(Inner::new(old.name.clone(), old.config.clone(), Arc::clone(&old.client), policy)) }
    }
}

impl Inner {
    fn new(name: String, config: S3Config, client: Arc<client::LazyClient>, policy: RetryPolicy) -> Self {
        Self {
            name,
            config,
            client,
            policy,
            bucket_seen: AtomicBool::new(false),
            versioning: OnceCell::new(),
            unconditional: AtomicBool::new(false),
            md5_wanted: AtomicBool::new(false),
        }
    }

    /// Makes a call, again and again where that may help; each try has the time `limit`.
    async fn call<T, E, F, Fut>(&self, call: &Call<'_>, limit: Duration, op: F) -> Result<T>
    where
        F: Fn(aws_sdk_s3::Client) -> Fut,
        Fut: Future<Output = Result<T, SdkError<E>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        retry(&self.policy, &self.name, || self.once(call, limit, &op)).await
    }

    /// Makes a call once.
    async fn once<T, E, F, Fut>(&self, call: &Call<'_>, limit: Duration, op: &F) -> Result<T>
    where
        F: Fn(aws_sdk_s3::Client) -> Fut,
        Fut: Future<Output = Result<T, SdkError<E>>>,
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let client = self.client.get().await.clone();
        match tokio::time::timeout(limit, Box::pin(op(client))).await {
            Err(_) => Err(call.late(limit)),
            Ok(answer) => answer.map_err(|e| call.failed(e)),
        }
    }

    fn at<'a>(&'a self, verb: &'static str, right: &'static str, key: &'a str) -> Call<'a> {
        Call { verb, right, bucket: &self.config.bucket, key }
    }

    fn limit(&self) -> Duration {
        self.config.call_timeout.0
    }
}

#[async_trait]
impl Destination for S3 {
    fn name(&self) -> &str {
        &self.inner.name
    }

    fn is_off_site(&self) -> bool {
        true
    }

    async fn begin(&self, key: &str, mode: PutMode, expected_bytes: Option<u64>) -> Result<Box<dyn Upload>> {
        Ok(Box::new(upload::S3Upload::begin(&self.inner, key, mode, expected_bytes).await?))
    }

    async fn get(&self, at: &Location) -> Result<ByteStream> {
        get::stream(self.inner.clone(), at.clone()).await
    }

    async fn head(&self, at: &Location) -> Result<Option<ObjectMeta>> {
        Ok(self.inner.head(at).await?.map(|found| found.meta))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        Ok(self.inner.list(prefix, false).await?.objects)
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        Ok(self.inner.list(prefix, true).await?.folders)
    }

    async fn list_versions(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.inner.list_versions(prefix).await
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        self.inner.delete(at).await
    }

    fn thaw_command(&self, at: &Location) -> Option<String> {
        Some(errors::thaw_command(&self.inner.config.bucket, &at.key, at.version.as_deref()))
    }

    async fn keeps_versions(&self) -> Result<bool> {
        self.inner.keeps_versions().await
    }

    async fn sweep_uploads(&self, prefix: &str, before: DateTime<Utc>) -> Result<u64> {
        self.inner.sweep_uploads(prefix, before).await
    }
}
