//! One run per service. The lock is the kernel's (`flock`), so that of a dead process does not block; the file's
//! content only says who holds it since when.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use chrono::{DateTime, Utc};

use crate::error::{Error, ErrorKind, Result};

/// Held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of `service` in `dir`, which is made if it is not there.
    ///
    /// # Errors
    /// `Busy`, naming the holder, when another process has it.
    pub fn take(dir: &Path, service: &str, now: DateTime<Utc>) -> Result<Self> {
        Self::take_file(dir, &format!("{service}.lock"), &format!("service {service:?}"), now)
    }

    /// The same for the drills of `service`, which run beside its backups.
    ///
    /// # Errors
    /// `Busy`, naming the holder, when another process has it.
    pub fn take_drill(dir: &Path, service: &str, now: DateTime<Utc>) -> Result<Self> {
        Self::take_file(dir, &format!("{service}.drill.lock"), &format!("the drill of service {service:?}"), now)
    }

    fn take_file(dir: &Path, file: &str, what: &str, now: DateTime<Utc>) -> Result<Self> {
        let path = dir.join(file);
        let failed = |e| {
            Error::io(e, format!("could not open the lock {}", path.display()))
                .hint("run as the service's user or as root; `state_dir` says where locks lie.")
        };
        let make = |mode: u32, dir: &Path| std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir);
        // Each service's user must be able to enter what lies above its own directory.
        dir.parent().map_or(Ok(()), |above| make(0o711, above)).map_err(failed)?;
        make(0o700, dir).map_err(failed)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                let holder = if holder.is_empty() { "another process".to_owned() } else { holder.trim().to_owned() };
                return Err(Error::new(ErrorKind::Busy, format!("{what} is locked by {holder}"))
                    .hint("wait for it to end, or stop that process; its lock goes with it."));
            }
            Err(TryLockError::Error(e)) => return Err(failed(e)),
        }
        crate::privilege::adopt(&path).map_err(failed)?;
        let text = format!("pid {} since {}\n", std::process::id(), now.format("%Y-%m-%d %H:%M:%S UTC"));
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(text.as_bytes())).map_err(failed)?;
        Ok(Self { _file: file })
    }
}
