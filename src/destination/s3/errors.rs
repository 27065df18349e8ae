//! What the store's answers mean: by its error codes first, by HTTP status where there is none.

use std::fmt;
use std::time::Duration;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use crate::error::{Error, ErrorKind, Result};
use crate::units::Span;

/// What to do about a store that has too much to do, or is broken for a while.
const BUSY: &str = "wait until the store is well again; `retries` says how often a request is made anew.";

/// A call, for messages.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    /// What is done: `write`, `read`.
    pub(super) verb: &'static str,
    /// The right it needs.
    pub(super) right: &'static str,
    pub(super) bucket: &'a str,
    /// Key or prefix; may be empty.
    pub(super) key: &'a str,
}

/// The store's own words.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) code: String,
    pub(super) status: u16,
    message: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code.as_str(), self.message.as_str()) {
            ("", _) => write!(f, "HTTP {}", self.status),
            (code, "") => write!(f, "{code} (HTTP {})", self.status),
            (code, message) => write!(f, "{code}: {message} (HTTP {})", self.status),
        }
    }
}

impl std::error::Error for Answer {}

/// The store's answer behind an error, if there was one.
pub(super) fn answer(err: &Error) -> Option<&Answer> {
    let mut next = std::error::Error::source(err);
    while let Some(cause) = next {
        if let Some(answer) = cause.downcast_ref::<Answer>() {
            return Some(answer);
        }
        next = cause.source();
    }
    None
}

/// Whether the store answered with this code.
pub(super) fn has_code(err: &Error, code: &str) -> bool {
    answer(err).is_some_and(|a| a.code == code)
}

/// Whether the store answered with this status.
pub(super) fn has_status(err: &Error, status: u16) -> bool {
    answer(err).is_some_and(|a| a.status == status)
}

/// Whether the store does not know this call or header.
pub(super) fn is_not_implemented(err: &Error) -> bool {
    has_code(err, "NotImplemented") || has_status(err, 501)
}

/// Whether the store wants a header that guards the body besides its signature, as it does where objects are locked.
pub(super) fn wants_md5(err: &Error) -> bool {
    answer(err).is_some_and(|a| {
        a.code == "MissingContentMD5"
            || (a.code == "InvalidRequest" && a.message.to_ascii_lowercase().contains("content-md5"))
    })
}

impl fmt::Display for Call<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} s3://{}/{}", self.verb, self.bucket, self.key)
    }
}

impl Call<'_> {
    pub(super) fn error(&self, kind: ErrorKind, what: &str) -> Error {
        Error::new(kind, format!("{self}: {what}"))
    }

    pub(super) fn late(&self, limit: Duration) -> Error {
        let limit = if limit.subsec_nanos() == 0 { Span(limit).to_string() } else { format!("{limit:?}") };
        self.error(ErrorKind::Unavailable, &format!("no answer within {limit}"))
            .hint("check `endpoint`, the network, and whether the store is up; `call_timeout` sets the limit.")
    }

    pub(super) fn failed<E>(&self, err: SdkError<E>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let status = err.raw_response().map_or(0, |r| r.status().as_u16());
        if let SdkError::ServiceError(service) = &err {
            let meta = service.err().meta();
            return self.answered(Answer {
                code: meta.code().unwrap_or_default().to_owned(),
                message: meta.message().unwrap_or_default().trim().to_owned(),
                status,
            });
        }
        if status >= 300 {
            return self.answered(Answer { code: String::new(), message: String::new(), status });
        }
        let construction = matches!(err, SdkError::ConstructionFailure(_));
        let cause = match err.into_source() {
            Ok(cause) => cause,
            Err(err) => err.to_string().into(),
        };
        self.unsent(construction, cause)
    }

    /// No answer came, or none that could be read.
    fn unsent(&self, construction: bool, cause: crate::error::BoxError) -> Error {
        let mut text = String::new();
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(cause.as_ref());
        while let Some(e) = next {
            text.push_str(&e.to_string().to_lowercase());
            text.push('\n');
            next = e.source();
        }
        let (kind, hint) = if text.contains("certificate") {
            (ErrorKind::Config, "give the certificate authority as `ca_file`, or check the clock and `endpoint`.")
        } else if text.contains("credential") {
            (ErrorKind::Config, "set `credentials` of the destination, or the environment that the AWS tools use.")
        } else if construction {
            (ErrorKind::Config, "check `endpoint`, `region` and `bucket`.")
        } else {
            (ErrorKind::Unavailable, "check `endpoint`, the network, and whether the store is up.")
        };
        Error::new(kind, self.to_string()).caused_by(cause).hint(hint)
    }

    fn answered(&self, answer: Answer) -> Error {
        let (kind, hint) = self.meaning(&answer);
        let err = Error::new(kind, self.to_string()).caused_by(answer);
        match hint {
            Some(hint) => err.hint(hint),
            None => err,
        }
    }

    fn meaning(&self, answer: &Answer) -> (ErrorKind, Option<String>) {
        use ErrorKind as K;
        let some = |kind, hint: &str| (kind, Some(hint.to_owned()));
        match answer.code.as_str() {
            "NoSuchBucket" => {
                (K::NotFound, Some(format!("create the bucket {:?}, or mend `bucket` and `endpoint`.", self.bucket)))
            }
            "SignatureDoesNotMatch" => {
                some(K::Denied, "the secret key does not belong to the access key, or `region` is wrong: check both.")
            }
            "InvalidAccessKeyId" | "InvalidToken" | "TokenRefreshRequired" => {
                some(K::Denied, "the store does not know this access key: check `credentials` and `endpoint`.")
            }
            "ExpiredToken" => some(K::Denied, "the temporary credentials have expired: renew them."),
            "RequestTimeTooSkewed" | "RequestExpired" => {
                some(K::Config, "the clock of this host and the store's differ by more than 15 minutes: set the clock.")
            }
            "QuotaExceeded"
            | "InsufficientStorage"
            | "StorageFull"
            | "XMinioStorageFull"
            | "XMinioStorageQuotaExceeded" => {
                some(K::NoSpace, "raise the quota of the bucket, keep fewer points, or prune.")
            }
            "PermanentRedirect"
            | "TemporaryRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException" => {
                some(K::Config, "the bucket lies elsewhere: check `region`, `endpoint` and `path_style`.")
            }
            "EntityTooLarge" | "EntityTooSmall" => {
                some(K::Config, "the store takes no parts of this size: change `part_size`.")
            }
            "InvalidObjectState" => (
                K::Archived,
                Some(format!(
                    "it lies in an archive class: thaw it, and try again when that is done, hours later: `{}`.",
                    thaw_command(self.bucket, self.key, None)
                )),
            ),
            "PreconditionFailed" => (K::AlreadyExists, None),
            "NotImplemented" | "MethodNotAllowed" => (K::Failed, None),
            "SlowDown" | "Throttling" | "TooManyRequests" | "InternalError" | "ServiceUnavailable" => {
                some(K::Unavailable, BUSY)
            }
            // Bytes that broke on the way, and what a store says when it was not sent enough in time.
            "RequestTimeout"
            | "OperationAborted"
            | "ConditionalRequestConflict"
            | "BadDigest"
            | "XAmzContentSHA256Mismatch"
            | "IncompleteBody" => (K::Unavailable, None),
            _ => self.meaning_of_status(answer.status),
        }
    }

    fn meaning_of_status(&self, status: u16) -> (ErrorKind, Option<String>) {
        match status {
            401 | 403 => {
                let on =
                    if self.key.is_empty() { self.bucket.to_owned() } else { format!("{}/{}", self.bucket, self.key) };
                (ErrorKind::Denied, Some(format!("allow {} on {on}.", self.right)))
            }
            404 => (ErrorKind::NotFound, None),
            409 => (ErrorKind::Failed, None),
            412 => (ErrorKind::AlreadyExists, None),
            300..=399 => (ErrorKind::Config, Some("check `region`, `endpoint` and `path_style`.".into())),
            501 => (ErrorKind::Failed, None),
            507 => (ErrorKind::NoSpace, Some("raise the quota of the bucket, keep fewer points, or prune.".into())),
            429 | 500..=599 => (ErrorKind::Unavailable, Some(BUSY.into())),
            // 200 with an error in the body, of a code that is not known.
            200..=299 | 408 => (ErrorKind::Unavailable, None),
            _ => (ErrorKind::Failed, None),
        }
    }
}

/// The command that makes an object of an archive class readable for a week.
pub(super) fn thaw_command(bucket: &str, key: &str, version: Option<&str>) -> String {
    let version = version.map(|v| format!(" --version-id {v}")).unwrap_or_default();
    format!("aws s3api restore-object --bucket {bucket} --key {key}{version} --restore-request Days=7")
}

/// Turns a refusal because of missing rights into `None`.
pub(super) fn unless_denied<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(err) if err.kind == ErrorKind::Denied => {
            tracing::debug!(error = %err.chain(), "not allowed, goes on without");
            Ok(None)
        }
        Err(err) => Err(err),
    }
}
