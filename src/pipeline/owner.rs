//! `--owner USER:GROUP` of a restore of files.

use super::archive::acl::{group_id, user_id};
use crate::error::{Error, ErrorKind, Result};

/// User and group, by names or numbers.
///
/// # Errors
/// `Usage` for what is none; `Denied` unless this process is root, because nobody else can give files away.
pub fn parse(text: &str) -> Result<(u32, u32)> {
    let bad = |what: &str| {
        Error::new(ErrorKind::Usage, format!("{what} in the owner {text:?}"))
            .hint("write `--owner USER:GROUP` with names or numbers of this host.")
    };
    let (user, group) = text.split_once(':').ok_or_else(|| bad("no group"))?;
    let owner =
        (user_id(user).ok_or_else(|| bad("unknown user"))?, group_id(group).ok_or_else(|| bad("unknown group"))?);
    if !nix::unistd::Uid::effective().is_root() {
        return Err(Error::new(ErrorKind::Denied, "only root can give files to another owner")
            .hint("run as root, or leave out `--owner`."));
    }
    Ok(owner)
}
