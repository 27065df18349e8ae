//! Parts: their sizes, and the requests that carry bytes.

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedPart, ServerSideEncryption, StorageClass};
use bytes::Bytes;

use super::Inner;
use super::object::TOKEN;
use crate::config::{S3Checksum, Sse};
use crate::error::{Error, ErrorKind, Result};

/// S3 takes no more parts than these.
pub(super) const MAX_PARTS: u32 = 10_000;
const MAX_PART: u64 = 5 << 30;
/// Parts double after so many.
const STEP: u32 = 1000;

/// Size of part `n`, counted from 0.
pub(super) fn size(first: u64, fixed: bool, n: u32) -> u64 {
    if fixed { first } else { first.saturating_mul(1 << (n / STEP).min(20)).min(MAX_PART) }
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
        let answer = self
            .once(&call, self.limit_for(body.len()), &|client: aws_sdk_s3::Client| async move {
                let request = client.put_object().bucket(&self.config.bucket).key(key).body(body.clone().into());
                let request = with_object_headers!(self, request, token);
                let request = request.set_if_none_match(new.then(|| "*".to_owned()));
                send_body!(self, request)
            })
            .await?;
        Ok(answer.version_id)
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
        let answer = self
            .call(&call, self.limit_for(body.len()), |client| async move {
                let request = client.upload_part().bucket(&self.config.bucket).key(key);
                let request = request.upload_id(id).part_number(number).body(body.clone().into());
                send_body!(self, request)
            })
            .await
            .map_err(|err| gone(err, &call))?;
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

    #[test]
    fn growing_parts_reach_the_largest_objects() {
        assert_eq!(size(16 << 20, false, 999), 16 << 20);
        assert_eq!(size(16 << 20, false, 1000), 32 << 20);
        assert_eq!(size(16 << 20, false, 9999), 5 << 30);
        assert_eq!(size(16 << 20, true, 9999), 16 << 20);
        let all: u64 = (0..MAX_PARTS).map(|n| size(16 << 20, false, n)).sum();
        assert!(all > 5 << 40, "{all}");
    }
}
