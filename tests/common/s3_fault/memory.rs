//! One bucket in memory, with or without versions.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};
use sha2::{Digest, Sha256};

const MIN_PART: usize = 5 << 20;

/// A visible object.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    /// Its key.
    pub(crate) key: String,
    /// Its bytes.
    pub(crate) bytes: Bytes,
    /// Headers it was stored with: storage class, encryption.
    pub(crate) headers: Vec<String>,
}

#[derive(Debug, Clone)]
struct Version {
    id: Option<String>,
    bytes: Bytes,
    etag: String,
    marker: bool,
    metadata: Option<Metadata>,
    headers: Vec<String>,
    modified: SystemTime,
}

#[derive(Debug)]
struct Unfinished {
    key: String,
    parts: BTreeMap<i32, Bytes>,
    metadata: Option<Metadata>,
    headers: Vec<String>,
    began: SystemTime,
}

#[derive(Debug, Default)]
struct State {
    /// Oldest version first.
    objects: BTreeMap<String, Vec<Version>>,
    uploads: BTreeMap<String, Unfinished>,
    counter: u64,
    /// Headers of a GET that are not heeded.
    deaf_to_if_match: bool,
    deaf_to_range: bool,
    /// Keys that contain this lie in an archive class.
    frozen: Option<String>,
    /// Those that are frozen can be read for a while.
    thawed: bool,
}

/// The bucket.
#[derive(Debug, Clone)]
pub(crate) struct Memory {
    bucket: String,
    versioned: bool,
    state: Arc<Mutex<State>>,
}

impl State {
    fn newest(&self, key: &str) -> Option<&Version> {
        self.objects.get(key).and_then(|v| v.last()).filter(|v| !v.marker)
    }

    fn find(&self, key: &str, id: Option<&str>) -> S3Result<&Version> {
        let found = match id {
            None => self.newest(key).ok_or_else(|| s3_error!(NoSuchKey, "no such key"))?,
            Some(id) => {
                let versions = self.objects.get(key).map_or(&[][..], Vec::as_slice);
                let found = versions.iter().find(|v| v.id.as_deref().unwrap_or("null") == id);
                found.ok_or_else(|| s3_error!(NoSuchVersion, "no such version"))?
            }
        };
        if found.marker { Err(s3_error!(MethodNotAllowed, "a delete marker")) } else { Ok(found) }
    }

    fn is_frozen(&self, key: &str) -> bool {
        self.frozen.as_ref().is_some_and(|text| key.contains(text))
    }

    fn next_id(&mut self) -> String {
        self.counter += 1;
        format!("v{:06}", self.counter)
    }

    fn put(&mut self, key: String, versioned: bool, mut version: Version) -> Option<String> {
        version.id = versioned.then(|| self.next_id());
        let id = version.id.clone();
        let versions = self.objects.entry(key).or_default();
        if !versioned {
            versions.clear();
        }
        versions.push(version);
        id
    }
}

#[allow(clippy::disallowed_methods, reason = "a store has a clock of its own")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn etag(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes)[..16])
}

fn refuse_taken(state: &State, key: &str, condition: Option<&IfNoneMatch>) -> S3Result<()> {
    if matches!(condition, Some(IfNoneMatch::Any)) && state.newest(key).is_some() {
        return Err(s3_error!(PreconditionFailed, "At least one of the pre-conditions you specified did not hold"));
    }
    Ok(())
}

async fn collect(body: Option<StreamingBlob>) -> S3Result<Bytes> {
    let mut all = BytesMut::new();
    if let Some(mut body) = body {
        while let Some(chunk) = body.next().await {
            all.extend_from_slice(&chunk.map_err(|_| s3_error!(IncompleteBody))?);
        }
    }
    Ok(all.freeze())
}

impl Memory {
    pub(crate) fn new(bucket: &str, versioned: bool) -> Self {
        Self { bucket: bucket.to_owned(), versioned, state: Arc::default() }
    }

    pub(crate) fn objects(&self) -> Vec<Stored> {
        let state = self.lock();
        let newest = state.objects.keys().filter_map(|key| state.newest(key).map(|v| (key, v)));
        newest.map(|(k, v)| Stored { key: k.clone(), bytes: v.bytes.clone(), headers: v.headers.clone() }).collect()
    }

    pub(crate) fn uploads(&self) -> Vec<String> {
        self.lock().uploads.values().map(|u| u.key.clone()).collect()
    }

    pub(crate) fn ignore_if_match(&self) {
        self.lock().deaf_to_if_match = true;
    }

    pub(crate) fn freeze(&self, text: &str) {
        self.lock().frozen = Some(text.to_owned());
    }

    pub(crate) fn thaw(&self) {
        self.lock().thawed = true;
    }

    pub(crate) fn ignore_range(&self) {
        self.lock().deaf_to_range = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    fn open(&self, bucket: &str) -> S3Result<MutexGuard<'_, State>> {
        if bucket == self.bucket { Ok(self.lock()) } else { Err(s3_error!(NoSuchBucket, "no such bucket")) }
    }
}

fn headers(class: Option<&StorageClass>, sse: Option<&ServerSideEncryption>, kms: Option<&String>) -> Vec<String> {
    [class.map(|c| c.as_str().to_owned()), sse.map(|s| s.as_str().to_owned()), kms.cloned()]
        .into_iter()
        .flatten()
        .collect()
}

#[async_trait::async_trait]
impl S3 for Memory {
    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        drop(self.open(&req.input.bucket)?);
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn get_bucket_versioning(
        &self,
        req: S3Request<GetBucketVersioningInput>,
    ) -> S3Result<S3Response<GetBucketVersioningOutput>> {
        drop(self.open(&req.input.bucket)?);
        let status = self.versioned.then(|| BucketVersioningStatus::from_static(BucketVersioningStatus::ENABLED));
        Ok(S3Response::new(GetBucketVersioningOutput { status, ..Default::default() }))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let bytes = collect(input.body).await?;
        let mut state = self.open(&input.bucket)?;
        refuse_taken(&state, &input.key, input.if_none_match.as_ref())?;
        let tag = etag(&bytes);
        let version = Version {
            id: None,
            etag: tag.clone(),
            bytes,
            marker: false,
            metadata: input.metadata,
            headers: headers(
                input.storage_class.as_ref(),
                input.server_side_encryption.as_ref(),
                input.ssekms_key_id.as_ref(),
            ),
            modified: now(),
        };
        let version_id = state.put(input.key, self.versioned, version);
        Ok(S3Response::new(PutObjectOutput { e_tag: Some(ETag::Strong(tag)), version_id, ..Default::default() }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let state = self.open(&input.bucket)?;
        let found = state.find(&input.key, input.version_id.as_deref())?;
        if state.is_frozen(&input.key) && !state.thawed {
            return Err(s3_error!(InvalidObjectState, "The operation is not valid for the object's storage class"));
        }
        if let Some(IfMatch::ETag(wanted)) = &input.if_match
            && !state.deaf_to_if_match
            && wanted.value() != found.etag
        {
            return Err(s3_error!(PreconditionFailed, "it is another object now"));
        }
        let total = found.bytes.len() as u64;
        let (bytes, content_range) = match &input.range.filter(|_| !state.deaf_to_range) {
            None => (found.bytes.clone(), None),
            Some(range) => {
                let r = range.check(total)?;
                let at = |n: u64| usize::try_from(n).expect("it is in memory");
                let text = format!("bytes {}-{}/{total}", r.start, r.end - 1);
                (found.bytes.slice(at(r.start)..at(r.end)), Some(text))
            }
        };
        Ok(S3Response::new(GetObjectOutput {
            content_length: Some(bytes.len() as i64),
            content_range,
            body: Some(StreamingBlob::wrap(stream::iter([Ok::<_, std::io::Error>(bytes)]))),
            e_tag: Some(ETag::Strong(found.etag.clone())),
            version_id: found.id.clone(),
            metadata: found.metadata.clone(),
            last_modified: Some(found.modified.into()),
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let state = self.open(&req.input.bucket)?;
        let found = state.find(&req.input.key, req.input.version_id.as_deref())?;
        let frozen = state.is_frozen(&req.input.key);
        let until = "ongoing-request=\"false\", expiry-date=\"Fri, 27 Nov 2026 00:00:00 GMT\"";
        Ok(S3Response::new(HeadObjectOutput {
            storage_class: frozen.then(|| StorageClass::from_static(StorageClass::DEEP_ARCHIVE)),
            restore: (frozen && state.thawed).then(|| until.to_owned()),
            content_length: Some(found.bytes.len() as i64),
            e_tag: Some(ETag::Strong(found.etag.clone())),
            version_id: found.id.clone(),
            metadata: found.metadata.clone(),
            last_modified: Some(found.modified.into()),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let mut state = self.open(&req.input.bucket)?;
        let key = req.input.key;
        match req.input.version_id {
            Some(id) => {
                if let Some(versions) = state.objects.get_mut(&key) {
                    versions.retain(|v| v.id.as_deref().unwrap_or("null") != id);
                }
            }
            None if self.versioned => {
                let marker = Version {
                    id: None,
                    bytes: Bytes::new(),
                    etag: String::new(),
                    marker: true,
                    metadata: None,
                    headers: Vec::new(),
                    modified: now(),
                };
                state.put(key, true, marker);
            }
            None => {
                state.objects.remove(&key);
            }
        }
        state.objects.retain(|_, versions| !versions.is_empty());
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    /// Pages of at most 3, so that every listing has to turn some.
    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let state = self.open(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let from = input.continuation_token.unwrap_or_default();
        let mut contents = Vec::new();
        let mut folders = Vec::new();
        let mut next = None;
        let mut seen = String::new();
        for key in state.objects.keys().filter(|k| k.starts_with(&prefix) && state.newest(k).is_some()) {
            let rest = &key[prefix.len()..];
            let folder = input.delimiter.as_deref().and_then(|d| rest.find(d)).map(|n| &key[..=prefix.len() + n]);
            let name = folder.unwrap_or(key);
            if name <= from.as_str() || (folder.is_some() && seen == name) {
                continue;
            }
            if contents.len() + folders.len() == 3 {
                next = Some(seen.clone());
                break;
            }
            seen = name.to_owned();
            match (folder, state.newest(key)) {
                (Some(folder), _) => folders.push(CommonPrefix { prefix: Some(folder.to_owned()) }),
                (None, Some(v)) => contents.push(Object {
                    storage_class: state
                        .is_frozen(key)
                        .then(|| ObjectStorageClass::from_static(ObjectStorageClass::DEEP_ARCHIVE)),
                    key: Some(key.clone()),
                    size: Some(v.bytes.len() as i64),
                    last_modified: Some(v.modified.into()),
                    ..Default::default()
                }),
                (None, None) => {}
            }
        }
        Ok(S3Response::new(ListObjectsV2Output {
            contents: Some(contents),
            common_prefixes: Some(folders),
            is_truncated: Some(next.is_some()),
            next_continuation_token: next,
            ..Default::default()
        }))
    }

    async fn list_object_versions(
        &self,
        req: S3Request<ListObjectVersionsInput>,
    ) -> S3Result<S3Response<ListObjectVersionsOutput>> {
        let input = req.input;
        let state = self.open(&input.bucket)?;
        let prefix = input.prefix.unwrap_or_default();
        let mut all = Vec::new();
        for (key, versions) in state.objects.iter().filter(|(k, _)| k.starts_with(&prefix)) {
            for (n, v) in versions.iter().rev().enumerate() {
                all.push((key.clone(), n == 0, v.clone()));
            }
        }
        let id = |v: &Version| v.id.clone().unwrap_or_else(|| "null".into());
        let start = match (&input.key_marker, &input.version_id_marker) {
            (Some(key), Some(version)) => {
                all.iter().position(|(k, _, v)| k == key && id(v) == *version).map_or(all.len(), |n| n + 1)
            }
            _ => 0,
        };
        let page: Vec<_> = all.iter().skip(start).take(3).collect();
        let more = start + page.len() < all.len();
        let last = page.last().filter(|_| more).map(|(k, _, v)| (k.clone(), id(v)));
        let (next_key_marker, next_version_id_marker) = last.unzip();
        let (markers, versions): (Vec<_>, Vec<_>) = page.into_iter().partition(|(_, _, v)| v.marker);
        let class =
            |key: &str| state.is_frozen(key).then(|| ObjectVersionStorageClass::from("DEEP_ARCHIVE".to_owned()));
        let versions = versions.into_iter().map(|(key, latest, v)| ObjectVersion {
            storage_class: class(key),
            key: Some(key.clone()),
            version_id: Some(id(v)),
            is_latest: Some(*latest),
            size: Some(v.bytes.len() as i64),
            last_modified: Some(v.modified.into()),
            ..Default::default()
        });
        let markers = markers.into_iter().map(|(key, latest, v)| DeleteMarkerEntry {
            key: Some(key.clone()),
            version_id: Some(id(v)),
            is_latest: Some(*latest),
            last_modified: Some(v.modified.into()),
            ..Default::default()
        });
        Ok(S3Response::new(ListObjectVersionsOutput {
            versions: Some(versions.collect()),
            delete_markers: Some(markers.collect()),
            is_truncated: Some(more),
            next_key_marker,
            next_version_id_marker,
            ..Default::default()
        }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let input = req.input;
        let mut state = self.open(&input.bucket)?;
        let id = format!("upload-{}", state.next_id());
        let upload = Unfinished {
            key: input.key.clone(),
            parts: BTreeMap::new(),
            metadata: input.metadata,
            headers: headers(
                input.storage_class.as_ref(),
                input.server_side_encryption.as_ref(),
                input.ssekms_key_id.as_ref(),
            ),
            began: now(),
        };
        state.uploads.insert(id.clone(), upload);
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = req.input;
        let bytes = collect(input.body).await?;
        let mut state = self.open(&input.bucket)?;
        let upload =
            state.uploads.get_mut(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload, "no such upload"))?;
        let tag = etag(&bytes);
        upload.parts.insert(input.part_number, bytes);
        Ok(S3Response::new(UploadPartOutput { e_tag: Some(ETag::Strong(tag)), ..Default::default() }))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let mut state = self.open(&input.bucket)?;
        let upload = state.uploads.get(&input.upload_id).ok_or_else(|| s3_error!(NoSuchUpload, "no such upload"))?;
        refuse_taken(&state, &input.key, input.if_none_match.as_ref())?;
        let named = input.multipart_upload.and_then(|m| m.parts).unwrap_or_default();
        let mut all = BytesMut::new();
        for (n, part) in named.iter().enumerate() {
            let bytes = part.part_number.and_then(|number| upload.parts.get(&number));
            let bytes = bytes.ok_or_else(|| s3_error!(InvalidPart, "no such part"))?;
            if part.e_tag.as_ref().map(ETag::value) != Some(&etag(bytes)) {
                return Err(s3_error!(InvalidPart, "another ETag"));
            }
            if bytes.len() < MIN_PART && n + 1 < named.len() {
                return Err(s3_error!(EntityTooSmall, "a part is too small"));
            }
            all.extend_from_slice(bytes);
        }
        let tag = format!("{}-{}", etag(&all), named.len());
        let upload = state.uploads.remove(&input.upload_id).expect("just seen");
        let version = Version {
            id: None,
            bytes: all.freeze(),
            etag: tag.clone(),
            marker: false,
            metadata: upload.metadata,
            headers: upload.headers,
            modified: upload.began,
        };
        let version_id = state.put(input.key.clone(), self.versioned, version);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(tag)),
            version_id,
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let mut state = self.open(&req.input.bucket)?;
        match state.uploads.remove(&req.input.upload_id) {
            Some(_) => Ok(S3Response::new(AbortMultipartUploadOutput::default())),
            None => Err(s3_error!(NoSuchUpload, "no such upload")),
        }
    }

    async fn list_multipart_uploads(
        &self,
        req: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let state = self.open(&req.input.bucket)?;
        let prefix = req.input.prefix.unwrap_or_default();
        let uploads = state.uploads.iter().filter(|(_, u)| u.key.starts_with(&prefix)).map(|(id, u)| MultipartUpload {
            key: Some(u.key.clone()),
            upload_id: Some(id.clone()),
            initiated: Some(u.began.into()),
            ..Default::default()
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            is_truncated: Some(false),
            ..Default::default()
        }))
    }
}
