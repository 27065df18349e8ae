//! Listings, page by page.

use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};

use super::Inner;
use super::errors::{Call, is_not_implemented, unless_denied};
use super::object::{is_archive, length, time};
use crate::destination::{Location, ObjectMeta};
use crate::error::{Error, ErrorKind, Result};

/// What lies under a prefix.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) objects: Vec<ObjectMeta>,
    pub(super) folders: Vec<String>,
}

/// An unfinished upload.
#[derive(Debug)]
pub(super) struct Unfinished {
    pub(super) key: String,
    pub(super) id: String,
    pub(super) began: Option<DateTime<Utc>>,
}

fn no_next(call: &Call<'_>) -> Error {
    call.error(ErrorKind::Failed, "the listing is cut short, and the store does not say where it goes on")
}

/// Whether the listing goes on, and from where.
type Next = Option<(String, Option<String>)>;

fn next(call: &Call<'_>, more: Option<bool>, from: Next, last: &Next) -> Result<Next> {
    match (more.unwrap_or(false), from) {
        (false, _) => Ok(None),
        (true, Some(from)) if last.as_ref() != Some(&from) => Ok(Some(from)),
        _ => Err(no_next(call)),
    }
}

impl Inner {
    /// All objects under `prefix`, or, with `folders`, what lies directly under it.
    pub(super) async fn list(&self, prefix: &str, folders: bool) -> Result<Listing> {
        let call = self.at("list", "s3:ListBucket", prefix);
        let mut listing = Listing::default();
        let mut from: Next = None;
        loop {
            let page = self
                .call(&call, self.limit(), |client| {
                    let request = client.list_objects_v2().bucket(&self.config.bucket).prefix(prefix);
                    let request = request.set_delimiter(folders.then(|| "/".to_owned()));
                    request.set_continuation_token(from.as_ref().map(|f| f.0.clone())).send()
                })
                .await?;
            self.bucket_seen.store(true, Ordering::Relaxed);
            for object in page.contents.unwrap_or_default() {
                let Some(key) = object.key else { continue };
                listing.objects.push(ObjectMeta {
                    location: Location::newest(key),
                    bytes: length(object.size),
                    modified: time(object.last_modified.as_ref()),
                    latest: true,
                    delete_marker: false,
                    archived: is_archive(object.storage_class.as_ref().map(|c| c.as_str())),
                });
            }
            for common in page.common_prefixes.unwrap_or_default() {
                let name = common.prefix.as_deref().and_then(|p| p.strip_prefix(prefix)).unwrap_or_default();
                let name = name.trim_end_matches('/');
                if !name.is_empty() {
                    listing.folders.push(name.to_owned());
                }
            }
            from = next(&call, page.is_truncated, page.next_continuation_token.map(|t| (t, None)), &from)?;
            if from.is_none() {
                return Ok(listing);
            }
        }
    }

    /// All versions and delete markers under `prefix`.
    pub(super) async fn list_versions(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let call = self.at("list the versions under", "s3:ListBucketVersions", prefix);
        let mut all = Vec::new();
        let mut from: Next = None;
        loop {
            let page = self
                .call(&call, self.limit(), |client| {
                    let (key, version) = from.clone().unzip();
                    let request = client.list_object_versions().bucket(&self.config.bucket).prefix(prefix);
                    request.set_key_marker(key).set_version_id_marker(version.flatten()).send()
                })
                .await;
            let page = match page {
                Ok(page) => page,
                Err(err) if is_not_implemented(&err) => return Ok(self.list(prefix, false).await?.objects),
                Err(err) => return Err(err),
            };
            for v in page.versions.unwrap_or_default() {
                let Some(key) = v.key else { continue };
                all.push(ObjectMeta {
                    location: Location { key, version: v.version_id },
                    bytes: length(v.size),
                    modified: time(v.last_modified.as_ref()),
                    latest: v.is_latest.unwrap_or(false),
                    delete_marker: false,
                    archived: is_archive(v.storage_class.as_ref().map(|c| c.as_str())),
                });
            }
            for m in page.delete_markers.unwrap_or_default() {
                let Some(key) = m.key else { continue };
                all.push(ObjectMeta {
                    location: Location { key, version: m.version_id },
                    bytes: 0,
                    modified: time(m.last_modified.as_ref()),
                    latest: m.is_latest.unwrap_or(false),
                    delete_marker: true,
                    archived: false,
                });
            }
            let marker = page.next_key_marker.map(|key| (key, page.next_version_id_marker));
            from = next(&call, page.is_truncated, marker, &from)?;
            if from.is_none() {
                break;
            }
        }
        self.without_null(&mut all).await?;
        Ok(all)
    }

    /// `null` is the version id of what was written while the bucket kept no versions. Where it never does, that is
    /// no version; where it does, deleting needs it.
    async fn without_null(&self, all: &mut [ObjectMeta]) -> Result<()> {
        let is_null = |o: &ObjectMeta| matches!(o.location.version.as_deref(), Some("null" | ""));
        if all.iter().any(is_null) && unless_denied(self.keeps_versions().await)? == Some(false) {
            for object in all.iter_mut().filter(|o| is_null(o)) {
                object.location.version = None;
            }
        }
        Ok(())
    }

    /// Unfinished uploads under `prefix`; none where the store cannot list them.
    pub(super) async fn uploads(&self, prefix: &str) -> Result<Vec<Unfinished>> {
        let call = self.at("list the uploads under", "s3:ListBucketMultipartUploads", prefix);
        let mut all = Vec::new();
        let mut from: Next = None;
        loop {
            let page = self
                .call(&call, self.limit(), |client| {
                    let (key, id) = from.clone().unzip();
                    let request = client.list_multipart_uploads().bucket(&self.config.bucket).prefix(prefix);
                    request.set_key_marker(key).set_upload_id_marker(id.flatten()).send()
                })
                .await;
            let page = match page {
                Ok(page) => page,
                Err(err) if is_not_implemented(&err) => return Ok(Vec::new()),
                Err(err) => return Err(err),
            };
            for upload in page.uploads.unwrap_or_default() {
                if let (Some(key), Some(id)) = (upload.key, upload.upload_id) {
                    all.push(Unfinished { key, id, began: time(upload.initiated.as_ref()) });
                }
            }
            let marker = page.next_key_marker.map(|key| (key, page.next_upload_id_marker));
            from = next(&call, page.is_truncated, marker, &from)?;
            if from.is_none() {
                return Ok(all);
            }
        }
    }
}
