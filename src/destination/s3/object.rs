//! Single objects and the bucket itself.

use std::sync::atomic::Ordering;

use aws_sdk_s3::types::{BucketVersioningStatus, StorageClass};
use chrono::{DateTime, Utc};

use super::Inner;
use super::errors::{has_code, has_status, is_not_implemented, unless_denied};
use crate::destination::retry::retry;
use crate::destination::{Location, ObjectMeta};
use crate::error::{ErrorKind, Result};

/// Metadata that tells whose upload an object is.
pub(super) const TOKEN: &str = "backstay-upload";

/// What a bucket does with versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Versioning {
    Never,
    Suspended,
    Enabled,
}

/// Answer of a HEAD.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) meta: ObjectMeta,
    /// Version id, wherever the store says one.
    pub(super) version: Option<String>,
    pub(super) token: Option<String>,
}

/// The SDK's time as ours.
pub(super) fn time(at: Option<&aws_sdk_s3::primitives::DateTime>) -> Option<DateTime<Utc>> {
    at.and_then(|t| DateTime::from_timestamp(t.secs(), t.subsec_nanos()))
}

/// The SDK's length as ours.
pub(super) fn length(n: Option<i64>) -> u64 {
    n.and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

/// Whether objects of this class can only be read after they were thawed.
pub(super) fn is_archive(class: Option<&str>) -> bool {
    matches!(class, Some("GLACIER" | "DEEP_ARCHIVE"))
}

/// Whether `x-amz-restore` says that there is a readable copy.
fn is_thawed(restore: Option<&str>) -> bool {
    restore.is_some_and(|text| text.contains("ongoing-request=\"false\""))
}

impl Inner {
    /// Looks at one object.
    pub(super) async fn head(&self, at: &Location) -> Result<Option<Found>> {
        match retry(&self.policy, &self.name, || self.head_once(at)).await {
            Ok(found) => {
                self.bucket_seen.store(true, Ordering::Relaxed);
                Ok(Some(found))
            }
            // A delete marker, asked for by its version.
            Err(err) if has_status(&err, 405) => Ok(None),
            Err(err) if err.kind == ErrorKind::NotFound && !has_code(&err, "NoSuchBucket") => {
                self.see_bucket().await?;
                Ok(None)
            }
            // A version id that this store never gives.
            Err(err) if at.version.is_some() && has_status(&err, 400) => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Looks once; a missing object is an error.
    pub(super) async fn head_once(&self, at: &Location) -> Result<Found> {
        let call = self.at("look at", "s3:GetObject, and s3:ListBucket to tell what is missing,", &at.key);
        let found = self
            .once(&call, self.limit(), &|client: aws_sdk_s3::Client| {
                let request = client.head_object().bucket(&self.config.bucket).key(&at.key);
                request.set_version_id(at.version.clone()).send()
            })
            .await?;
        let class = found.storage_class.as_ref().map(StorageClass::as_str);
        Ok(Found {
            meta: ObjectMeta {
                location: at.clone(),
                bytes: length(found.content_length),
                modified: time(found.last_modified.as_ref()),
                latest: at.version.is_none(),
                delete_marker: false,
                archived: (is_archive(class) || found.archive_status.is_some()) && !is_thawed(found.restore.as_deref()),
            },
            token: found.metadata.as_ref().and_then(|m| m.get(TOKEN).cloned()),
            version: found.version_id,
        })
    }

    /// A HEAD has no body: whether the key or the bucket is missing takes another look.
    async fn see_bucket(&self) -> Result<()> {
        if self.bucket_seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        let call = self.at("look at", "s3:ListBucket", "");
        let seen =
            self.call(&call, self.limit(), |client| client.head_bucket().bucket(&self.config.bucket).send()).await;
        let seen = seen.map_err(|err| match err.kind {
            ErrorKind::NotFound => {
                err.hint(format!("create the bucket {:?}, or mend `bucket` and `endpoint`.", self.config.bucket))
            }
            _ => err,
        });
        if unless_denied(seen)?.is_some() {
            self.bucket_seen.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Removes one object or version; that it is missing is success.
    pub(super) async fn delete(&self, at: &Location) -> Result<()> {
        let right = if at.version.is_some() { "s3:DeleteObjectVersion" } else { "s3:DeleteObject" };
        let call = self.at("delete", right, &at.key);
        let answer = self
            .call(&call, self.limit(), |client| {
                let request = client.delete_object().bucket(&self.config.bucket).key(&at.key);
                request.set_version_id(at.version.clone()).send()
            })
            .await;
        match answer {
            Err(err) if err.kind == ErrorKind::NotFound && !has_code(&err, "NoSuchBucket") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// What the bucket does with versions; asked once.
    pub(super) async fn versioning(&self) -> Result<Versioning> {
        let ask = || async {
            let call = self.at("ask for the versioning of", "s3:GetBucketVersioning", "");
            let answer = self
                .call(&call, self.limit(), |client| client.get_bucket_versioning().bucket(&self.config.bucket).send())
                .await;
            match answer {
                Ok(answer) => Ok(match answer.status {
                    Some(BucketVersioningStatus::Enabled) => Versioning::Enabled,
                    Some(_) => Versioning::Suspended,
                    None => Versioning::Never,
                }),
                Err(err) if is_not_implemented(&err) => Ok(Versioning::Never),
                Err(err) => Err(err),
            }
        };
        self.versioning.get_or_try_init(ask).await.copied()
    }

    pub(super) async fn keeps_versions(&self) -> Result<bool> {
        Ok(self.versioning().await? != Versioning::Never)
    }

    /// Aborts one unfinished upload; that it is missing is success.
    pub(super) async fn abort_upload(&self, key: &str, id: &str) -> Result<()> {
        let call = self.at("abort the upload of", "s3:AbortMultipartUpload", key);
        let answer = self
            .call(&call, self.limit(), |client| {
                client.abort_multipart_upload().bucket(&self.config.bucket).key(key).upload_id(id).send()
            })
            .await;
        match answer {
            Err(err) if err.kind == ErrorKind::NotFound && !has_code(&err, "NoSuchBucket") => Ok(()),
            other => other.map(|_| ()),
        }
    }

    pub(super) async fn sweep_uploads(&self, prefix: &str, before: DateTime<Utc>) -> Result<u64> {
        let mut swept = 0;
        for upload in self.uploads(prefix).await? {
            if upload.began.is_some_and(|began| began < before) {
                self.abort_upload(&upload.key, &upload.id).await?;
                swept += 1;
            }
        }
        Ok(swept)
    }
}
