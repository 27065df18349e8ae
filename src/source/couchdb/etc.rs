//! The node's configuration, as an artefact of its own: admins, uuid, secret, name and cookie are nowhere else.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use crate::artefact::{ArtefactSink, ArtefactSpec, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::archive::{Member, MemberKind, TarWriter};

/// A file of configuration is not larger; something else in the directory is a mistake.
const MAX_BYTES: u64 = 64 << 20;

/// Stores the directory. It holds secrets: without `unencrypted` the sink lets it leave the host encrypted only.
pub(super) async fn store(dir: &Path, unencrypted: bool, sink: &dyn ArtefactSink) -> Result<()> {
    let mut spec = ArtefactSpec::data("config", "tar").role(Role::Config);
    spec.secret = !unencrypted;
    let mut writer = sink.open(spec).await.map_err(|e| match e.kind {
        ErrorKind::Refused => {
            e.hint("set `encrypt_to` for this service, allow it with `etc_unencrypted`, or leave out `etc_dir`.")
        }
        _ => e,
    })?;
    let dir = dir.to_owned();
    let worker = tokio::task::spawn_blocking(move || {
        let outcome = write(&dir, writer.blocking());
        (writer, outcome)
    });
    let (writer, outcome) =
        worker.await.map_err(|e| Error::new(ErrorKind::Internal, "the reader broke").caused_by(e))?;
    match outcome {
        Ok(()) => writer.finish().await.map(drop),
        Err(e) if is_closed(&e) => Err(writer.failure().await),
        Err(e) => Err(e),
    }
}

fn is_closed(e: &Error) -> bool {
    let cause = std::error::Error::source(e).and_then(|e| e.downcast_ref::<io::Error>());
    cause.is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

fn write(dir: &Path, out: impl Write) -> Result<()> {
    let mut tar = TarWriter::new(out);
    let mut todo = vec![PathBuf::from(".")];
    while let Some(path) = todo.pop() {
        let full = dir.join(&path);
        let failed = |e| {
            Error::io(e, format!("could not read {}", full.display()))
                .hint("check `etc_dir`, and that the agent's user may read what is in it.")
        };
        let text = path.strip_prefix(".").unwrap_or(&path).to_string_lossy().into_owned();
        let name = if text.is_empty() { ".".to_owned() } else { text };
        // What a link of the top leads to is meant; those below stay links.
        let meta = if name == "." { fs::metadata(&full) } else { fs::symlink_metadata(&full) }.map_err(failed)?;
        if meta.is_dir() {
            tar.append(&Member::of(&name, MemberKind::Directory, &meta), b"")?;
            let mut below: Vec<PathBuf> = Vec::new();
            for entry in fs::read_dir(&full).map_err(failed)? {
                below.push(path.join(entry.map_err(failed)?.file_name()));
            }
            below.sort_unstable_by(|a, b| b.cmp(a));
            todo.extend(below);
        } else if meta.is_symlink() {
            let mut link = Member::of(&name, MemberKind::Symlink, &meta);
            link.link = fs::read_link(&full).map_err(failed)?.into_os_string().into_vec();
            tar.append(&link, b"")?;
        } else if meta.is_file() && meta.len() <= MAX_BYTES {
            let bytes = fs::read(&full).map_err(failed)?;
            let mut file = Member::of(&name, MemberKind::File, &meta);
            file.size = bytes.len() as u64;
            tar.append(&file, &bytes)?;
        }
    }
    tar.finish()?;
    Ok(())
}
