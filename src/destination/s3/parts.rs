//! Parts: their sizes, and the requests that carry bytes.

use std::future::Future;
use std::sync::atomic::Ordering;

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedPart, ServerSideEncryption, StorageClass};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use md5::{Digest as _, Md5};

use super::Inner;
use super::errors::wants_md5;
use super::object::TOKEN;
use crate::config::{S3Checksum, S3Config, Sse};
use crate::error::{Error, ErrorKind, Result};

/// S3 takes no more parts than these.
pub(super) const MAX_PARTS: u32 = 10_000;
const MAX_PART: u64 = 5 << 30;
/// Parts double after so many.
const STEP: u32 = 1000;

/// How an upload is cut: parts grow with their number, but the memory that they take at once does not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    first: u64,
    fixed: bool,
    /// All parts of an upload that are filled or on their way, together.
    pub(super) memory: u64,
}

impl Cut {
    pub(super) fn of(config: &S3Config) -> Self {
        Self { first: config.part_size.0, fixed: config.fixed_part_size, memory: config.upload_memory().0 }
    }

    /// Size of part `n`, counted from 0.
    pub(super) fn size(&self, n: u32) -> u64 {
        if self.fixed {
            return self.first;
        }
        self.first.saturating_mul(1 << (n / STEP).min(20)).min(self.largest())
    }

    /// Two must fit: while one is filled, the one before is on its way.
    fn largest(&self) -> u64 {
        if self.fixed { self.first } else { (self.memory / 2).min(MAX_PART).max(self.first) }
    }

    /// The longest object that this makes.
    pub(super) fn greatest(&self) -> u64 {
        (0..MAX_PARTS).map(|n| self.size(n)).sum()
    }
}

/// Headers that go with a new object, single or in parts: the two builders have no trait in common.
macro_rules! with_object_headers {
    ($inner:expr, $request:expr, $token:expr) => {{
        let request = $request.metadata(TOKEN, $token);
        let request = match &$inner.config.sse {
            None => request,
            Some(Sse::Aes256) => request.server_side_encryption(ServerSideEncryption::Aes256),
            Some(Sse::Kms(key)) => request.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(key),
        };
        request
            .set_storage_class($inner.config.storage_class.as_deref().map(StorageClass::from))
            .set_checksum_algorithm($inner.checksum())
    }};
}

/// Sends with the signature over the body, or over the headers only where a checksum guards the body.
macro_rules! send_body {
    ($inner:expr, $request:expr) => {{
        let request = $request.set_checksum_algorithm($inner.checksum());
        if $inner.checksum().is_some() {
            request.customize().disable_payload_signing().send().await
        } else {
            request.send().await
        }
    }};
}

impl Inner {
    /// Makes a request with a body; again with its `Content-MD5` if the store demands that, which is remembered.
    async fn guarded<T, Fut>(&self, body: &Bytes, send: impl Fn(Option<String>) -> Fut) -> Result<T>
    where
        Fut: Future<Output = Result<T>>,
    {
        if !self.md5_wanted.load(Ordering::Relaxed) {
            match send(None).await {
                Err(err) if wants_md5(&err) && self.checksum().is_none() => {
                    self.md5_wanted.store(true, Ordering::Relaxed);
                }
                answer => return answer,
            }
        }
        let body = body.clone();
        let digest = tokio::task::spawn_blocking(move || BASE64_STANDARD.encode(Md5::digest(&body))).await;
        send(Some(digest.map_err(|e| Error::new(ErrorKind::Internal, "a digest was torn down").caused_by(e))?)).await
    }

    fn checksum(&self) -> Option<ChecksumAlgorithm> {
        match self.config.checksum {
            S3Checksum::Sha256 => None,
            S3Checksum::Crc64nvme => Some(ChecksumAlgorithm::Crc64Nvme),
        }
    }

    fn checksum_type(&self) -> Option<ChecksumType> {
        self.checksum().map(|_| ChecksumType::FullObject)
    }

    /// Larger parts get more time.
    fn limit_for(&self, bytes: usize) -> std::time::Duration {
        let parts = (bytes as u64).div_ceil(self.config.part_size.0).clamp(1, 1 << 20);
        self.limit().saturating_mul(u32::try_from(parts).unwrap_or(u32::MAX))
    }

    /// One try to store a whole object; its version id.
    pub(super) async fn put_object(&self, key: &str, body: &Bytes, token: &str, new: bool) -> Result<Option<String>> {
        let call = self.at("write", "s3:PutObject", key);
        let limit = self.limit_for(body.len());
        let put = |client: aws_sdk_s3::Client, md5: Option<String>| async move {
            let request = client.put_object().bucket(&self.config.bucket).key(key).body(body.clone().into());
            let request = with_object_headers!(self, request, token).set_content_md5(md5);
            let request = request.set_if_none_match(new.then(|| "*".to_owned()));
            send_body!(self, request)
        };
        let once = |md5: Option<String>| async move {
            self.once(&call, limit, &|client: aws_sdk_s3::Client| put(client, md5.clone())).await
        };
        Ok(self.guarded(body, once).await?.version_id)
    }

    /// Starts an upload in parts; its id.
    pub(super) async fn create_upload(&self, key: &str, token: &str) -> Result<String> {
        let call = self.at("start an upload of", "s3:PutObject", key);
        let answer = self
            .once(&call, self.limit(), &|client: aws_sdk_s3::Client| {
                let request = client.create_multipart_upload().bucket(&self.config.bucket).key(key);
                let request = with_object_headers!(self, request, token);
                request.set_checksum_type(self.checksum_type()).send()
            })
            .await?;
        answer
            .upload_id
            .filter(|id| !id.is_empty())
            .ok_or_else(|| call.error(ErrorKind::Failed, "the store gave no upload id"))
    }

    /// Stores one part, with retries.
    pub(super) async fn put_part(&self, key: &str, id: &str, number: i32, body: &Bytes) -> Result<CompletedPart> {
        let call = self.at("write a part of", "s3:PutObject", key);
        let limit = self.limit_for(body.len());
        let put = |client: aws_sdk_s3::Client, md5: Option<String>| async move {
            let request = client.upload_part().bucket(&self.config.bucket).key(key);
            let request = request.upload_id(id).part_number(number).body(body.clone().into()).set_content_md5(md5);
            send_body!(self, request)
        };
        let again = |md5: Option<String>| async move {
            self.call(&call, limit, |client: aws_sdk_s3::Client| put(client, md5.clone())).await
        };
        let answer = self.guarded(body, again).await.map_err(|err| gone(err, &call))?;
        let etag = answer.e_tag.ok_or_else(|| call.error(ErrorKind::Failed, "the store gave no ETag"))?;
        let part = CompletedPart::builder().part_number(number).e_tag(etag);
        Ok(part.set_checksum_crc64_nvme(answer.checksum_crc64_nvme).build())
    }

    /// One try to put the parts together; the version id.
    pub(super) async fn complete_upload(
        &self,
        key: &str,
        id: &str,
        parts: &[CompletedPart],
        new: bool,
    ) -> Result<Option<String>> {
        use aws_sdk_s3::types::CompletedMultipartUpload;
        let call = self.at("complete the upload of", "s3:PutObject", key);
        let all = CompletedMultipartUpload::builder().set_parts(Some(parts.to_vec())).build();
        // Putting parts together may take a store minutes.
        let answer = self
            .once(&call, self.limit().saturating_mul(4), &|client: aws_sdk_s3::Client| {
                let request = client.complete_multipart_upload().bucket(&self.config.bucket).key(key).upload_id(id);
                let request = request.set_if_none_match(new.then(|| "*".to_owned()));
                request.multipart_upload(all.clone()).set_checksum_type(self.checksum_type()).send()
            })
            .await
            .map_err(|err| gone(err, &call))?;
        Ok(answer.version_id)
    }
}

/// That an upload in use is not there is not "no such object".
fn gone(err: Error, call: &super::Call<'_>) -> Error {
    if !super::errors::has_code(&err, "NoSuchUpload") {
        return err;
    }
    call.error(ErrorKind::Failed, "the unfinished upload is gone")
        .caused_by(err)
        .hint("check the bucket's rule for unfinished uploads, and whether something else aborts them.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::Bytes;

    fn cut(settings: &str) -> Cut {
        let text = format!("{{bucket: b, {settings}}}");
        Cut::of(&serde_saphyr::from_str(&text).expect("settings"))
    }

    #[test]
    fn parts_grow_until_two_of_them_fill_the_memory() {
        let usual = cut("");
        assert_eq!(usual.size(999), 16 << 20);
        assert_eq!(usual.size(1000), 32 << 20);
        assert_eq!(usual.size(2000), 64 << 20);
        assert_eq!(usual.size(9999), 128 << 20);
        let least = cut("part_size: 64MiB, upload_memory: 128MiB");
        assert!((0..MAX_PARTS).all(|n| least.size(n) == 64 << 20));
        let fixed = cut("fixed_part_size: true, upload_memory: 1GiB");
        assert!((0..MAX_PARTS).all(|n| fixed.size(n) == 16 << 20));
        assert_eq!(cut("part_size: 5GiB").size(9999), 5 << 30);
    }

    #[test]
    fn the_page_on_s3_says_how_long_an_object_can_be() {
        let page = include_str!("../../../docs/s3.md");
        for settings in [
            "",
            "part_size: 32MiB",
            "upload_memory: 512MiB",
            "part_size: 64MiB, upload_memory: 1GiB",
            "part_size: 128MiB, upload_memory: 2GiB",
            "fixed_part_size: true",
            "part_size: 64MiB, fixed_part_size: true",
        ] {
            let (settings_of, name) = (cut(settings), if settings.is_empty() { "the defaults" } else { settings });
            let quoted = if settings.is_empty() { name.to_owned() } else { format!("`{name}`") };
            let (memory, greatest) = (Bytes(settings_of.memory), Bytes(settings_of.greatest()));
            let row = format!("| {quoted} | {memory} | {greatest} |\n");
            assert!(page.contains(&row), "docs/s3.md needs the row {row}");
        }
    }
}
