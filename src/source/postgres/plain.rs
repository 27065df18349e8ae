//! `plain` with one tablespace: `pg_basebackup` straight into the artefact.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Postgres;
use super::connect::complaint;
use super::inventory;
use super::relations::{Relation, Relations, Superuser};
use super::server::{Server, Size, Tablespace};
use super::tar_scan::TarScan;
use crate::artefact::{ArtefactSink, ArtefactSpec, Role};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::{Ended, Program};
use crate::manifest::Consistency;
use crate::source::{Captured, Context};

/// Said by `pg_basebackup` when the server found damaged pages, after everything was sent.
const CHECKSUM_ERROR: &str = "checksum error occurred";
/// Text members of the base tar that are looked at.
pub(super) const LABEL: &[&str] = &["backup_label"];
/// Largest configuration file that is captured.
const CONFIG_LIMIT: u64 = 4 << 20;
/// Of a tar.
const BLOCK: u64 = 512;

#[derive(Serialize)]
#[serde(untagged)]
enum Item<'a> {
    Database(&'a Size),
    Tablespace(&'a Tablespace),
    Superuser(&'a Superuser),
    Relation(&'a Relation),
}

impl Postgres {
    /// `pg_basebackup` with everything but its directory.
    pub(super) fn basebackup(&self) -> Result<Program> {
        let mut program = self.client("pg_basebackup")?.args(["-Ft", "-X", "fetch", "-c", "fast", "--label=backstay"]);
        if let Some(rate) = self.config.max_rate {
            program = program.arg(format!("--max-rate={}", (rate.0 / 1024).clamp(32, 1 << 20)));
        }
        Ok(program)
    }

    /// Streams the whole cluster.
    pub(super) async fn backup_plain(&self, cx: &Context, sink: &dyn ArtefactSink, server: Server) -> Result<Captured> {
        let mut spec = ArtefactSpec::data("data", "tar");
        spec.estimated_bytes = Some(server.bytes()).filter(|n| *n > 0);
        let writer = sink.open(spec).await?;
        let mut scan = TarScan::new(LABEL);
        let before = self.relations(cx, &server).await;
        let program = self.basebackup()?.args(["-D", "-"]);
        let (ended, mut bytes, mut writer) = program.stream_into(&cx.cancel, writer, |chunk| scan.feed(chunk)).await?;
        // Releases of pg_basebackup 13 and 14 do not pad backup_manifest to a block: the end mark follows at once. As
        // many zeros behind it make a proper archive.
        let padding = usize::try_from(bytes.wrapping_neg() % BLOCK).unwrap_or(0);
        if padding > 0 && ended.status.success() {
            let zeros = vec![0; padding];
            scan.feed(&zeros);
            bytes += padding as u64;
            if writer.send(zeros.into()).await.is_err() {
                return Err(writer.failure().await);
            }
        }
        let suspect = judge_copy(&ended, scan.ends_with("backup_manifest"))?;
        writer.finish().await?;
        self.captured(cx, sink, server, Copied { suspect, files: scan.files, bytes, label: scan.kept, before }).await
    }

    /// The rest of a `plain` backup: configuration, inventory, and what goes into the manifest.
    pub(super) async fn captured(
        &self,
        cx: &Context,
        sink: &dyn ArtefactSink,
        server: Server,
        copied: Copied,
    ) -> Result<Captured> {
        let mut warnings = Vec::new();
        let mut attributes = server.attributes();
        let outside = config_files(&server);
        attributes.insert("config_outside".into(), (!outside.is_empty()).to_string());
        if server.config_file.is_none() {
            warnings
                .push("the role may not see where the configuration files are: grant pg_read_all_settings".to_owned());
        } else if !outside.is_empty() {
            match self.store_config(sink, &outside).await? {
                0 => {
                    let text = "the configuration files outside the data directory could not be read here";
                    warnings.push(text.to_owned());
                    cx.monitor.warn(text);
                }
                n => {
                    attributes.insert("config_files".into(), n.to_string());
                }
            }
        }
        let seen = copied.before.in_both(self.relations(cx, &server).await);
        let mut items: Vec<Item<'_>> = server.databases.iter().map(Item::Database).collect();
        items.extend(server.outside().map(Item::Tablespace));
        items.extend(seen.superuser.iter().map(Item::Superuser));
        items.extend(seen.relations.iter().map(Item::Relation));
        inventory::store(sink, &items).await?;
        let label =
            copied.label.get("backup_label").map(|l| String::from_utf8_lossy(l).into_owned()).unwrap_or_default();
        attributes
            .insert("from_standby".into(), (server.in_recovery || label.contains("BACKUP FROM: standby")).to_string());
        let mut counts =
            vec![("databases", server.databases.len() as u64), ("files", copied.files), ("bytes", copied.bytes)];
        counts.extend((!seen.relations.is_empty()).then_some(("relations", seen.relations.len() as u64)));
        Ok(Captured {
            consistency: Consistency::CrashConsistent,
            server_version: Some(server.version.clone()),
            position: start_position(&label),
            counts: counts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            attributes,
            warnings,
            suspect: copied.suspect,
            external: Vec::new(),
            missed: Vec::new(),
        })
    }

    /// Stores what can be read of `files`; how many.
    async fn store_config(&self, sink: &dyn ArtefactSink, files: &[PathBuf]) -> Result<u64> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut n = 0;
        for path in files.iter().filter(|_| self.is_local()) {
            let small = std::fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() <= CONFIG_LIMIT);
            let name = path.strip_prefix("/").unwrap_or(path);
            if small && builder.append_path_with_name(path, name).is_ok() {
                n += 1;
            }
        }
        let archive = builder.into_inner().map_err(|e| Error::io(e, "could not archive the configuration"))?;
        if n > 0 {
            let mut writer = sink.open(ArtefactSpec::data("config", "tar").role(Role::Config)).await?;
            if writer.send(archive.into()).await.is_err() {
                return Err(writer.failure().await);
            }
            writer.finish().await?;
        }
        Ok(n)
    }
}

/// What the copy itself yielded.
#[derive(Debug)]
pub(super) struct Copied {
    pub(super) suspect: Vec<String>,
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) label: BTreeMap<String, Vec<u8>>,
    /// The relations before the copy.
    pub(super) before: Relations,
}

/// Whether the copy is whole: reasons to suspect it, or an error when it is not.
pub(super) fn judge_copy(ended: &Ended, whole: bool) -> Result<Vec<String>> {
    match (ended.status.success(), whole) {
        (true, true) => Ok(Vec::new()),
        (false, true) if ended.stderr.contains(CHECKSUM_ERROR) => {
            Ok(vec!["the server found damaged pages (checksum errors) while it was copied".to_owned()])
        }
        (false, _) => Err(complaint(ended, "pg_basebackup")),
        (true, false) => {
            let message = "pg_basebackup ended without an error, but its copy does not end with backup_manifest";
            Err(Error::new(ErrorKind::Failed, message).hint("run it by hand, and look into the server's log."))
        }
    }
}

/// `0/2000028` of `START WAL LOCATION: 0/2000028 (file ...)`.
fn start_position(label: &str) -> Option<String> {
    let rest = label.lines().find_map(|l| l.strip_prefix("START WAL LOCATION: "))?;
    rest.split(' ').next().map(str::to_owned)
}

/// The files of the configuration that a copy of the data directory does not hold: the three that the server names,
/// and what Debian keeps beside them.
fn config_files(server: &Server) -> Vec<PathBuf> {
    let inside = |path: &Path| server.data_directory.as_ref().is_some_and(|data| path.starts_with(data));
    let named = [&server.config_file, &server.hba_file, &server.ident_file];
    let mut files: Vec<PathBuf> = named.into_iter().flatten().filter(|p| !inside(p)).cloned().collect();
    if let Some(dir) = server.config_file.as_ref().filter(|p| !inside(p)).and_then(|p| p.parent()) {
        files.extend(
            ["environment", "pg_ctl.conf", "start.conf"].map(|n| dir.join(n)).into_iter().filter(|p| p.exists()),
        );
        let included = std::fs::read_dir(dir.join("conf.d")).into_iter().flatten().flatten().map(|e| e.path());
        files.extend(included.filter(|p| p.extension().is_some_and(|e| e == "conf")));
    }
    files.sort();
    files.dedup();
    files
}
