//! One error type for the whole crate: what happened, what the caller can do about it, and a hint for a person.
//!
//! `Display` never repeats the source; [`Error::report`] walks the chain. No message may contain a secret.

use std::fmt;
use std::io;

/// A boxed cause.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What the caller can do about an error. Decides retry and exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The command line is wrong.
    Usage,
    /// The configuration is wrong, or a tool is missing.
    Config,
    /// It would destroy something, and no flag allowed it.
    Refused,
    /// No such service, point, bucket or object.
    NotFound,
    /// The object is there already.
    AlreadyExists,
    /// Login failed or permission denied.
    Denied,
    /// Down, slow or failing in a way that another try may help.
    Unavailable,
    /// It lies in an archive class of its store, and can be read only once it was thawed.
    Archived,
    /// A program or a server did its work and failed: another try will not help by itself.
    Failed,
    /// Another run holds the lock.
    Busy,
    /// Bytes are not what was recorded.
    Corrupt,
    /// The disk or the bucket is full.
    NoSpace,
    /// Reading or writing a local file failed for another reason.
    Io,
    /// Stopped by a signal or a deadline.
    Cancelled,
    /// Something was stored, something was not.
    Incomplete,
    /// Several services failed, for different reasons.
    Several,
    /// A bug.
    Internal,
}

impl ErrorKind {
    /// The exit code of a command that ends with this kind (sysexits where the meaning is exact).
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 64,
            Self::Corrupt => 65,
            Self::NotFound => 66,
            Self::Unavailable | Self::Archived | Self::Failed => 69,
            Self::Internal => 70,
            Self::Refused | Self::AlreadyExists => 73,
            Self::Busy => 75,
            Self::Denied => 77,
            Self::Config => 78,
            Self::Incomplete => 10,
            Self::NoSpace | Self::Io | Self::Several => 1,
            Self::Cancelled => 143,
        }
    }
    /// The kind that an exit code stands for, as far as it can be told.
    pub fn from_exit_code(code: u8) -> Self {
        match code {
            10 => Self::Incomplete,
            64 => Self::Usage,
            65 => Self::Corrupt,
            66 => Self::NotFound,
            69 => Self::Failed,
            73 => Self::Refused,
            75 => Self::Busy,
            77 => Self::Denied,
            78 => Self::Config,
            130 | 143 => Self::Cancelled,
            1 => Self::Io,
            _ => Self::Internal,
        }
    }
    /// Whether the same call may succeed when it is made again a little later.
    pub fn is_transient(self) -> bool {
        self == Self::Unavailable
    }
}

/// An error: lower case, no full stop, the thing named.
#[derive(Debug)]
pub struct Error {
    /// What the caller can do.
    pub kind: ErrorKind,
    /// One line for a person, without its cause.
    pub message: String,
    /// One sentence in the imperative: what to do.
    pub hint: Option<String>,
    source: Option<BoxError>,
}

impl Error {
    /// An error without a cause.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, source: None }
    }
    /// Adds the cause.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<BoxError>) -> Self {
        self.source = Some(source.into());
        self
    }
    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// Wraps this error in a message of a higher level; the kind and the innermost hint stay.
    #[must_use]
    pub fn within(mut self, message: impl Into<String>) -> Self {
        let hint = self.hint.take();
        Self { kind: self.kind, message: message.into(), hint, source: Some(Box::new(self)) }
    }
    /// An error of the file system, classified by its errno.
    pub fn io(err: io::Error, message: impl Into<String>) -> Self {
        Self::new(kind_of_io(&err), message).caused_by(err)
    }
    /// The message and all causes, joined by `: `, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(cause.to_string().trim());
            next = cause.source();
        }
        text
    }
    /// The lines shown to a person: `error:`, `caused by:` for each cause, `hint:`.
    pub fn report(&self) -> String {
        let mut text = format!("error: {}", self.message);
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str("\n  caused by: ");
            text.push_str(cause.to_string().trim());
            next = cause.source();
        }
        if let Some(hint) = &self.hint {
            text.push_str("\nhint: ");
            text.push_str(hint);
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn std::error::Error + 'static))
    }
}

/// Carries an [`Error`] through an `io::Error` without losing its kind, and classifies plain ones by errno.
impl From<io::Error> for Error {
    fn from(err: io::Error) -> Self {
        if err.get_ref().is_some_and(|e| e.is::<Error>()) {
            let inner = err.into_inner().expect("just seen");
            return *inner.downcast::<Error>().expect("just checked");
        }
        Self::io(err, "input or output failed")
    }
}

impl From<Error> for io::Error {
    fn from(err: Error) -> Self {
        io::Error::other(err)
    }
}

/// ENOSPC, EACCES and EIO are not "unavailable": another try does not help.
pub fn kind_of_io(err: &io::Error) -> ErrorKind {
    use io::ErrorKind as K;
    match err.kind() {
        K::NotFound => ErrorKind::NotFound,
        K::AlreadyExists => ErrorKind::AlreadyExists,
        K::PermissionDenied => ErrorKind::Denied,
        K::StorageFull | K::QuotaExceeded | K::FileTooLarge => ErrorKind::NoSpace,
        K::ConnectionRefused
        | K::ConnectionReset
        | K::ConnectionAborted
        | K::NotConnected
        | K::TimedOut
        | K::HostUnreachable
        | K::NetworkUnreachable
        | K::NetworkDown => ErrorKind::Unavailable,
        _ => ErrorKind::Io,
    }
}
