//! A local directory as a destination: another disk, a mounted share, a service's `backup_dir`.
//!
//! - An object is written as `<key>.tmp-<random>`, synced, renamed (never over another one with
//!   [`PutMode::WriteOnce`]), and its folder is synced: after `complete` it survives a power cut.
//! - A point is staged in `.partial-<id>/` and published by one rename. `list` does not see staged folders unless
//!   the prefix names one; `folders` does, so that a sweep finds what a crash left.
//! - Files are 0600, folders 0700: they hold databases.
//! - Symbolic links are never followed below the root by `list`, and are never objects.
//! - There are no versions: [`PutMode::Versioned`] and locations with a version are refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::{ByteStream, Destination, Location, ObjectMeta, PutMode, Upload};
use crate::error::{Error, ErrorKind, Result};

mod files;
mod transfer;

use files::PARTIAL;

/// A directory as a destination.
#[derive(Debug, Clone)]
pub struct Local {
    name: String,
    root: PathBuf,
    off_site: bool,
}

impl Local {
    /// A destination below `root`, which is made when the first object is written.
    pub fn new(name: impl Into<String>, root: impl Into<PathBuf>, off_site: bool) -> Self {
        Self { name: name.into(), root: root.into(), off_site }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, key: &str) -> Result<PathBuf> {
        let bad = |why: &str| Error::new(ErrorKind::Internal, format!("not a key: {key:?}: {why}"));
        if key.is_empty() {
            return Err(bad("it is empty"));
        }
        if key.bytes().any(|b| b == 0) {
            return Err(bad("it holds a zero byte"));
        }
        if key.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(bad("each part between slashes needs a name"));
        }
        Ok(self.root.join(key))
    }

    fn folder(&self, folder: &str) -> Result<PathBuf> {
        self.path(folder.strip_suffix('/').unwrap_or(folder))
    }

    fn at(&self, at: &Location) -> Result<PathBuf> {
        match &at.version {
            None => self.path(&at.key),
            Some(_) => Err(Error::new(
                ErrorKind::Config,
                format!("{}: {} is asked for by version, but a directory keeps no versions", self.name, at.key),
            )),
        }
    }

    /// Runs blocking work on files off the async threads.
    async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, "a file operation was torn down").caused_by(e))?
    }
}

#[async_trait]
impl Destination for Local {
    fn name(&self) -> &str {
        &self.name
    }

    fn is_off_site(&self) -> bool {
        self.off_site
    }

    async fn begin(&self, key: &str, mode: PutMode, _expected_bytes: Option<u64>) -> Result<Box<dyn Upload>> {
        if mode == PutMode::Versioned {
            return Err(Error::new(ErrorKind::Config, format!("{}: a directory keeps no versions", self.name))
                .hint("use `key_style: timestamped` for directories."));
        }
        let path = self.path(key)?;
        let (root, key) = (self.root.clone(), key.to_owned());
        Self::blocking(move || Ok(Box::new(transfer::LocalUpload::begin(root, path, key, mode)?) as Box<dyn Upload>))
            .await
    }

    async fn get(&self, at: &Location) -> Result<ByteStream> {
        let path = self.at(at)?;
        Self::blocking(move || transfer::open(&path)).await.map(transfer::stream)
    }

    async fn head(&self, at: &Location) -> Result<Option<ObjectMeta>> {
        let (path, key) = (self.at(at)?, at.key.clone());
        Self::blocking(move || match files::metadata(&path)? {
            Some(meta) if meta.is_file() => Ok(Some(files::object(key, &meta))),
            _ => Ok(None),
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        let (root, prefix) = (self.root.clone(), self.prefix(prefix)?);
        Self::blocking(move || {
            let mut found = Vec::new();
            files::walk(&root, &prefix, &mut |entry| {
                if entry.meta.is_file() && !files::is_temporary(&entry.key) && !files::hides(&entry.key, prefix.len()) {
                    found.push(files::object(entry.key, &entry.meta));
                }
                Ok(())
            })?;
            Ok(found)
        })
        .await
    }

    async fn folders(&self, prefix: &str) -> Result<Vec<String>> {
        let prefix = self.prefix(prefix)?;
        let dir = self.root.join(&prefix);
        Self::blocking(move || {
            let mut names = Vec::new();
            for (name, meta) in files::entries(&dir)? {
                if meta.is_dir() {
                    names.push(name);
                }
            }
            names.sort_unstable();
            Ok(names)
        })
        .await
    }

    async fn list_versions(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
        self.list(prefix).await
    }

    async fn delete(&self, at: &Location) -> Result<()> {
        let (root, path) = (self.root.clone(), self.at(at)?);
        Self::blocking(move || {
            match files::metadata(&path)? {
                Some(meta) if meta.is_file() => {}
                _ => return Ok(()),
            }
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(files::fail(e, "cannot remove", &path));
                }
                _ => {}
            }
            files::sync_parent(&path)?;
            files::remove_empty_parents(&root, &path);
            Ok(())
        })
        .await
    }

    fn staging(&self, folder: &str) -> String {
        let (body, slash) = folder.strip_suffix('/').map_or((folder, ""), |body| (body, "/"));
        match body.rsplit_once('/') {
            Some((parent, last)) => format!("{parent}/{PARTIAL}{last}{slash}"),
            None => format!("{PARTIAL}{body}{slash}"),
        }
    }

    async fn publish(&self, staged: &str, folder: &str) -> Result<()> {
        let (from, to) = (self.folder(staged)?, self.folder(folder)?);
        Self::blocking(move || {
            files::sync_dir(&from)?;
            files::rename_new(&from, &to)?;
            files::sync_parent(&to)
        })
        .await
    }

    async fn sweep_uploads(&self, prefix: &str, before: DateTime<Utc>) -> Result<u64> {
        let (root, prefix) = (self.root.clone(), self.prefix(prefix)?);
        Self::blocking(move || {
            let mut left = Vec::new();
            files::walk(&root, &prefix, &mut |entry| {
                let old = files::modified(&entry.meta).is_some_and(|at| at < before);
                let stale = entry.meta.is_file() && files::is_temporary(&entry.key);
                if old && (stale || entry.meta.is_dir()) {
                    left.push((entry.path, stale));
                }
                Ok(())
            })?;
            let mut swept = 0;
            // Deepest first, so that a folder is empty when its turn comes. Folders in use are not empty and stay.
            for (path, stale) in left.into_iter().rev() {
                if stale {
                    fs::remove_file(&path).map_err(|e| files::fail(e, "cannot remove", &path))?;
                    swept += 1;
                    files::remove_empty_parents(&root, &path);
                } else {
                    let _ = fs::remove_dir(&path);
                }
            }
            Ok(swept)
        })
        .await
    }
}

impl Local {
    /// A prefix may end anywhere, but may not lead out of the root.
    fn prefix(&self, prefix: &str) -> Result<String> {
        if let Some((dir, rest)) = prefix.rsplit_once('/') {
            self.path(dir)?;
            if rest == ".." {
                self.path(prefix)?;
            }
        }
        Ok(prefix.to_owned())
    }
}
