//! Bytes into and out of files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;

use super::{Local, files};
use crate::artefact::Spare;
use crate::destination::{ByteStream, Location, PutMode, Upload};
use crate::error::{Error, ErrorKind, Result};

const CHUNK: usize = 512 << 10;
/// A folder may be removed as empty between being made and being used.
const TRIES: u32 = 5;

/// A file on its way.
#[derive(Debug)]
pub(super) struct LocalUpload {
    root: PathBuf,
    path: PathBuf,
    key: String,
    mode: PutMode,
    tmp: PathBuf,
    file: Arc<File>,
    /// A write is under way, or was given up half-way: what the file holds is not known.
    torn: bool,
    done: bool,
}

impl LocalUpload {
    pub(super) fn begin(root: PathBuf, path: PathBuf, key: String, mode: PutMode) -> Result<Self> {
        match files::metadata(&path)? {
            None => {}
            Some(meta) if meta.is_file() && mode == PutMode::Replace => {}
            Some(_) => {
                return Err(Error::new(ErrorKind::AlreadyExists, format!("{} is there already", path.display()))
                    .hint("nothing was replaced; remove it first if it is not needed."));
            }
        }
        let (tmp, file) = create(&path)?;
        Ok(Self { root, path, key, mode, tmp, file: Arc::new(file), torn: false, done: false })
    }

    /// Removes the unfinished file, and the folders that were made for it.
    fn discard(&mut self) -> Result<()> {
        if self.done {
            return Ok(());
        }
        self.done = true;
        match fs::remove_file(&self.tmp) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(files::fail(e, "cannot remove", &self.tmp)),
            _ => {
                files::remove_empty_parents(&self.root, &self.path);
                Ok(())
            }
        }
    }

    fn finish(&mut self) -> Result<Location> {
        self.file.sync_all().map_err(|e| files::fail(e, "cannot sync", &self.tmp))?;
        if self.mode == PutMode::WriteOnce {
            files::rename_new(&self.tmp, &self.path)?;
        } else {
            fs::rename(&self.tmp, &self.path).map_err(|e| files::fail(e, "cannot rename to", &self.path))?;
        }
        self.done = true;
        files::sync_parent(&self.path)?;
        Ok(Location::newest(self.key.clone()))
    }
}

fn create(path: &Path) -> Result<(PathBuf, File)> {
    let parent = path.parent().unwrap_or(path);
    let mut tries = 0;
    loop {
        files::make_dirs(parent)?;
        let tmp = files::temporary(path)?;
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp) {
            Ok(file) => return Ok((tmp, file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound && tries < TRIES => tries += 1,
            Err(e) => return Err(files::fail(e, "cannot create", &tmp)),
        }
    }
}

#[async_trait]
impl Upload for LocalUpload {
    async fn write(&mut self, chunk: Bytes) -> Result<()> {
        if self.torn {
            return Err(torn(&self.tmp));
        }
        self.torn = true;
        let (file, path) = (self.file.clone(), self.tmp.clone());
        Local::blocking(move || (&*file).write_all(&chunk).map_err(|e| files::fail(e, "cannot write", &path))).await?;
        self.torn = false;
        Ok(())
    }

    async fn complete(mut self: Box<Self>) -> Result<Location> {
        if self.torn {
            return Err(torn(&self.tmp));
        }
        // Dropped on failure, and with it the unfinished file.
        Local::blocking(move || self.finish()).await
    }

    async fn abort(mut self: Box<Self>) -> Result<()> {
        Local::blocking(move || self.discard()).await
    }
}

impl Drop for LocalUpload {
    fn drop(&mut self) {
        if let Err(err) = self.discard() {
            tracing::warn!(error = %err.chain(), "an unfinished file is left for the next sweep");
        }
    }
}

fn torn(path: &Path) -> Error {
    Error::new(ErrorKind::Cancelled, format!("a write to {} was given up half-way", path.display()))
}

/// An open object and how many bytes it must give.
#[derive(Debug)]
pub(super) struct Reading {
    file: File,
    path: PathBuf,
    left: u64,
    spare: Spare,
}

/// Opens an object.
pub(super) fn open(path: &Path) -> Result<Reading> {
    let missing = || Error::new(ErrorKind::NotFound, format!("there is no object {}", path.display()));
    let meta = files::metadata(path)?.filter(std::fs::Metadata::is_file).ok_or_else(missing)?;
    let file = match OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits()).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(missing()),
        Err(e) => return Err(files::fail(e, "cannot open", path)),
    };
    Ok(Reading { file, path: path.to_owned(), left: meta.len(), spare: Spare::default() })
}

/// The bytes of an open object; ends after as many as it had when it was opened, or with an error.
pub(super) fn stream(reading: Reading) -> ByteStream {
    stream::try_unfold(reading, |reading| async move { Local::blocking(move || next(reading)).await }).boxed()
}

fn next(mut reading: Reading) -> Result<Option<(Bytes, Reading)>> {
    if reading.left == 0 {
        return Ok(None);
    }
    let want = usize::try_from(reading.left).unwrap_or(CHUNK).min(CHUNK);
    let mut chunk = reading.spare.buffer(CHUNK);
    chunk.resize(want, 0);
    let mut got = 0;
    while got < want {
        match reading.file.read(&mut chunk[got..]) {
            Ok(0) => {
                let text = format!("{} ends {} bytes early", reading.path.display(), reading.left - got as u64);
                return Err(Error::new(ErrorKind::Corrupt, text));
            }
            Ok(n) => got += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(files::fail(e, "cannot read", &reading.path)),
        }
    }
    reading.left -= got as u64;
    let chunk = chunk.freeze();
    reading.spare.watch(chunk.clone());
    Ok(Some((chunk, reading)))
}
