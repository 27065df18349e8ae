//! Extracts tars of a cluster into a directory, trusting no name in them.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use tokio_util::io::SyncIoBridge;
use tokio_util::sync::CancellationToken;

use super::place::{Owner, give};
use crate::error::{Error, ErrorKind, Result};
use crate::source::ArtefactReader;

/// What was extracted.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Extracted {
    pub(super) files: u64,
    pub(super) bytes: u64,
}

/// A blocking reader over an artefact that stops when it is told to.
#[derive(Debug)]
pub(super) struct Pull<R> {
    inner: R,
    cancel: CancellationToken,
}

impl<R: io::Read> io::Read for Pull<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "stopped before it ended").into());
        }
        self.inner.read(buf)
    }
}

/// Runs `work` on a thread that may block, with a reader for the artefact. Afterwards the artefact is read to its end:
/// only that proves its digests. Dropping the future stops the thread at its next read.
pub(super) async fn blocking<T: Send + 'static>(
    reader: ArtefactReader,
    cancel: &CancellationToken,
    work: impl FnOnce(&mut dyn io::BufRead) -> Result<T> + Send + 'static,
) -> Result<T> {
    let cancel = cancel.child_token();
    let guard = cancel.clone().drop_guard();
    let inner = SyncIoBridge::new(reader);
    let task = tokio::task::spawn_blocking(move || {
        let mut pull = io::BufReader::with_capacity(256 << 10, Pull { inner, cancel });
        let done = work(&mut pull);
        // What the pipeline says about the bytes goes before what the tar's reader made of them.
        match (io::copy(&mut pull, &mut io::sink()), done) {
            (_, Err(e)) if matches!(e.kind, ErrorKind::NoSpace | ErrorKind::Denied | ErrorKind::Cancelled) => Err(e),
            (Err(e), _) => Err(Error::from(e)),
            (Ok(_), done) => done,
        }
    });
    let result =
        task.await.map_err(|e| Error::new(ErrorKind::Internal, "a thread of the restore died").caused_by(e))?;
    drop(guard);
    result
}

/// A path of plain names below the directory, or an error.
fn safe(path: &Path) -> Result<PathBuf> {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::CurDir => {}
            _ => return Err(hostile(path)),
        }
    }
    Ok(out)
}

fn hostile(path: &Path) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!("the archive has a member that would leave its directory: {}", path.display()),
    )
}

fn damaged(e: io::Error) -> Error {
    if e.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        return Error::from(e);
    }
    Error::new(ErrorKind::Corrupt, "the archive is damaged").caused_by(e)
}

/// Extracts everything into `into`, for `owner`.
pub(super) fn extract(from: &mut dyn io::Read, into: &Path, owner: Owner) -> Result<Extracted> {
    let mut archive = tar::Archive::new(from);
    let mut sum = Extracted::default();
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let name = safe(&entry.path().map_err(damaged)?)?;
        let path = into.join(&name);
        if name.as_os_str().is_empty() {
            continue;
        }
        if let Some(parent) = name.parent() {
            make_dirs(into, parent, owner)?;
        }
        match entry.header().entry_type() {
            tar::EntryType::Directory => make_dirs(into, &name, owner)?,
            tar::EntryType::Symlink => {
                let to = entry.link_name().map_err(damaged)?.ok_or_else(|| hostile(&name))?.into_owned();
                link(&name, &to, &path)?;
                give(&path, owner)?;
            }
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                sum.bytes += write_file(&mut entry, &path)?;
                sum.files += 1;
                give(&path, owner)?;
            }
            _ => return Err(hostile(&name)),
        }
    }
    Ok(sum)
}

/// Makes the directories of `name` one by one, never through a link.
fn make_dirs(into: &Path, name: &Path, owner: Owner) -> Result<()> {
    let mut path = into.to_owned();
    for part in name.components() {
        path.push(part);
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => continue,
            Ok(_) => return Err(hostile(name)),
            Err(_) => {}
        }
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|e| Error::io(e, format!("could not make {}", path.display())))?;
        give(&path, owner)?;
    }
    Ok(())
}

/// Links of tablespaces may point anywhere: the server's administrator made them. Others must stay below.
fn link(name: &Path, to: &Path, path: &Path) -> Result<()> {
    let of_tablespace = name.parent() == Some(Path::new("pg_tblspc"));
    let below = to.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    if !of_tablespace && !below {
        return Err(hostile(name));
    }
    symlink(to, path).map_err(|e| Error::io(e, format!("could not make the link {}", path.display())))
}

fn write_file(entry: &mut impl io::Read, path: &Path) -> Result<u64> {
    let failed = |e| Error::io(e, format!("could not write {}", path.display()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(path)
        .map_err(failed)?;
    let mut buffer = vec![0; 256 << 10];
    let mut bytes = 0;
    loop {
        let n = entry.read(&mut buffer).map_err(damaged)?;
        if n == 0 {
            return Ok(bytes);
        }
        io::Write::write_all(&mut file, &buffer[..n]).map_err(failed)?;
        bytes += n as u64;
    }
}

/// The first bytes of a stream that may be read only to find out what it is.
pub(super) fn read_all(from: &mut dyn io::Read, limit: u64) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    from.take(limit).read_to_end(&mut text).map_err(damaged)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Owner {
        Owner { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw() }
    }

    fn raw(kind: tar::EntryType, name: &[u8], link: &str, body: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(body.len() as u64);
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        let mut out = header.as_bytes().to_vec();
        out.extend(body);
        out.resize(out.len().div_ceil(512) * 512, 0);
        out
    }

    #[test]
    fn hostile_members_are_refused() {
        use tar::EntryType as T;
        let inside = tempfile::tempdir().unwrap();
        let into = inside.path().join("data");
        for (kind, name, to) in [
            (T::Regular, "../escaped", ""),
            (T::Regular, "/escaped", ""),
            (T::Symlink, "base/link", "/etc"),
            (T::Symlink, "base/link", "../../x"),
            (T::Link, "base/hard", "x"),
            (T::Fifo, "base/fifo", ""),
        ] {
            fs::create_dir_all(&into).unwrap();
            let bytes = raw(kind, name.as_bytes(), to, b"");
            let err = extract(&mut bytes.as_slice(), &into, me()).unwrap_err();
            assert_eq!(err.kind, ErrorKind::Corrupt, "{name}");
            assert_eq!(fs::read_dir(inside.path()).unwrap().count(), 1);
            fs::remove_dir_all(&into).unwrap();
        }
        fs::create_dir_all(&into).unwrap();
        let mut bytes = raw(T::Symlink, b"pg_tblspc/1", "/somewhere", b"");
        bytes.extend(raw(T::Regular, b"pg_tblspc/1/x", "", b"hi"));
        assert_eq!(extract(&mut bytes.as_slice(), &into, me()).unwrap_err().kind, ErrorKind::Corrupt);
    }

    #[test]
    fn files_and_directories_are_extracted() {
        let into = tempfile::tempdir().unwrap();
        let mut bytes = raw(tar::EntryType::Directory, b"pg_replslot/", "", b"");
        bytes.extend(raw(tar::EntryType::Regular, b"./base/1/2", "", b"page"));
        let sum = extract(&mut bytes.as_slice(), into.path(), me()).unwrap();
        assert_eq!((sum.files, sum.bytes), (1, 4));
        assert_eq!(fs::read(into.path().join("base/1/2")).unwrap(), b"page");
        assert!(into.path().join("pg_replslot").is_dir());
    }
}
