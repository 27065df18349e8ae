//! `plain` with several tablespaces: `pg_basebackup` cannot send them to a pipe, so their tars are staged first.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use super::Postgres;
use super::connect::require_space;
use super::plain::{Copied, LABEL, judge_copy};
use super::server::Server;
use super::tar_scan::TarScan;
use crate::artefact::{ArtefactSink, ArtefactSpec, CHUNK_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Captured, Context};

/// Name of the artefact with the backup manifest, which is a file of its own here.
pub(super) const MANIFEST: &str = "backup_manifest";
/// Room for WAL written while the copy is taken.
const WAL_ROOM: u64 = 256 << 20;

impl Postgres {
    fn staging(&self, cx: &Context) -> PathBuf {
        let parent = self.config.staging_dir.as_ref().unwrap_or(&cx.workdir);
        parent.join(format!("backstay-staging-{}", cx.service))
    }

    /// Removes this service's staging directory.
    pub(super) async fn remove_staging(&self, cx: &Context) -> Result<()> {
        let dir = self.staging(cx);
        match tokio::fs::remove_dir_all(&dir).await {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::io(e, format!("could not remove the staging directory {}", dir.display())))
            }
            _ => Ok(()),
        }
    }

    /// Copies the cluster into the staging directory, then stores one artefact per tar.
    pub(super) async fn backup_staged(
        &self,
        cx: &Context,
        sink: &dyn ArtefactSink,
        server: Server,
    ) -> Result<Captured> {
        self.remove_staging(cx).await?;
        let dir = self.staging(cx);
        let bytes = server.bytes();
        require_space(&dir, bytes + bytes / 20 + WAL_ROOM)?;
        std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&dir).map_err(|e| {
            Error::io(e, format!("could not make the staging directory {}", dir.display()))
                .hint("set staging_dir to a directory that the agent's user may write to.")
        })?;
        let result = self.stage_and_store(cx, sink, server, &dir).await;
        self.remove_staging(cx).await?;
        result
    }

    async fn stage_and_store(
        &self,
        cx: &Context,
        sink: &dyn ArtefactSink,
        server: Server,
        dir: &Path,
    ) -> Result<Captured> {
        let before = self.relations(cx, &server).await;
        let (_, ended) = self.basebackup()?.arg("-D").arg(dir).collect(&cx.cancel, 1 << 20).await?;
        // With damaged pages the program ends before it gives the manifest its final name.
        let names = [MANIFEST.to_owned(), format!("{MANIFEST}.tmp")];
        let manifest = names.iter().map(|n| dir.join(n)).find(|p| p.is_file());
        let suspect = judge_copy(&ended, manifest.is_some())?;
        let manifest = manifest.ok_or_else(|| Error::new(ErrorKind::Internal, "the backup manifest vanished"))?;
        let mut copied = Copied { suspect, files: 0, bytes: 0, label: Default::default(), before };
        let parts = server.outside().map(|t| t.oid.to_string());
        for part in std::iter::once("base".to_owned()).chain(parts.collect::<Vec<_>>()) {
            let mut scan = TarScan::new(LABEL);
            let file = dir.join(format!("{part}.tar"));
            copied.bytes += store_file(cx, sink, &file, ArtefactSpec::data(part, "tar"), |c| scan.feed(c)).await?;
            if !scan.ended() {
                let message = "pg_basebackup ended without an error, but a tar it wrote is not whole";
                return Err(Error::new(ErrorKind::Failed, message));
            }
            copied.files += scan.files;
            copied.label.extend(scan.kept);
        }
        copied.bytes += store_file(cx, sink, &manifest, ArtefactSpec::data(MANIFEST, "json"), |_| {}).await?;
        self.captured(cx, sink, server, copied).await
    }
}

/// Moves one file into an artefact and removes it; its length. The artefact is finished: the file was judged before.
async fn store_file(
    cx: &Context,
    sink: &dyn ArtefactSink,
    path: &Path,
    mut spec: ArtefactSpec,
    mut observe: impl FnMut(&[u8]) + Send,
) -> Result<u64> {
    let unread = |e| Error::io(e, format!("could not read {}", path.display()));
    let mut file = tokio::fs::File::open(path).await.map_err(unread)?;
    let length = file.metadata().await.map_err(unread)?.len();
    spec.estimated_bytes = Some(length);
    let mut writer = sink.open(spec).await?;
    let mut sent = 0u64;
    loop {
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        if file.read_buf(&mut chunk).await.map_err(unread)? == 0 {
            break;
        }
        if cx.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "stopped before it ended"));
        }
        observe(&chunk);
        sent += chunk.len() as u64;
        if writer.send(chunk.freeze()).await.is_err() {
            return Err(writer.failure().await);
        }
    }
    if sent != length || sent == 0 {
        return Err(Error::new(ErrorKind::Failed, format!("{} changed while it was read", path.display())));
    }
    writer.finish().await?;
    tokio::fs::remove_file(path).await.map_err(unread)?;
    Ok(sent)
}
