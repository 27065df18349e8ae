//! Which user the agent is, and becoming another one. As root the agent becomes the user of a service, so that a run
//! by hand leaves nothing that the timer's run cannot read.

use std::ffi::CString;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Uid, User, chown, geteuid, initgroups, setgid, setuid};

use crate::error::{Error, ErrorKind, Result};

/// Whether this process is root.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Looks a user up by name.
///
/// # Errors
/// `Config` when there is none.
pub fn user(name: &str) -> Result<User> {
    let found = User::from_name(name)
        .map_err(|e| Error::new(ErrorKind::Io, format!("could not look up user {name:?}")).caused_by(e))?;
    found.ok_or_else(|| {
        Error::new(ErrorKind::Config, format!("there is no user {name:?} on this host"))
            .hint("correct `user` of the service, or create the user.")
    })
}

/// Becomes another user for good, with its groups. Only root can.
pub fn become_user(name: &str) -> Result<()> {
    let user = user(name)?;
    let failed = |e: nix::Error| Error::new(ErrorKind::Denied, format!("could not become user {name:?}")).caused_by(e);
    let c_name =
        CString::new(name).map_err(|e| Error::new(ErrorKind::Config, "a user name holds a zero byte").caused_by(e))?;
    initgroups(&c_name, user.gid).map_err(failed)?;
    setgid(user.gid).map_err(failed)?;
    setuid(user.uid).map_err(failed)
}

/// As root: gives `path` the owner of the directory in which it lies. Otherwise nothing.
pub fn adopt(path: &Path) -> std::io::Result<()> {
    if !is_root() {
        return Ok(());
    }
    let parent = std::fs::metadata(path.parent().unwrap_or(Path::new("/")))?;
    std::os::unix::fs::lchown(path, Some(parent.uid()), Some(parent.gid()))
}

/// As root: gives `path` to a user.
pub fn give(path: &Path, uid: Uid, gid: Gid) -> std::io::Result<()> {
    chown(path, Some(uid), Some(gid)).map_err(std::io::Error::from)
}
