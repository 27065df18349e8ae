//! Reads points back without a server: `plain` against the backup manifest, SQL for its end mark, archives with
//! `pg_restore` if it is installed, else with the agent's own parser.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncReadExt as _;

use super::archive::Archive;
use super::cluster_dump::Tail;
use super::extract::{blocking, read_all};
use super::restore_dump::feed_observed;
use super::rows::SqlRows;
use super::{Postgres, staged};
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Program;
use crate::manifest::Artefact;
use crate::source::{ArtefactReader, Context, PointReader, Verified};

/// Longest backup manifest that is read.
const MANIFEST_LIMIT: u64 = 4 << 30;

/// `backup_manifest`, as the server writes it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct BackupManifest {
    files: Vec<ListedFile>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ListedFile {
    #[serde(default)]
    path: Option<String>,
    /// Hexadecimal, for names that are not UTF-8.
    #[serde(default, rename = "Encoded-Path")]
    encoded: Option<String>,
    size: u64,
    #[serde(default, rename = "Checksum-Algorithm")]
    algorithm: Option<String>,
    #[serde(default, rename = "Checksum")]
    checksum: Option<String>,
}

/// What was found in the tars: size and CRC-32C by path.
#[derive(Debug, Default)]
struct Found {
    files: BTreeMap<Vec<u8>, (u64, u32)>,
    manifest: Option<Vec<u8>>,
    last: Vec<u8>,
}

fn damaged(e: std::io::Error) -> Error {
    if e.get_ref().is_some_and(|inner| inner.is::<Error>()) {
        return Error::from(e);
    }
    Error::new(ErrorKind::Corrupt, "the archive is damaged").caused_by(e)
}

fn read_tar(from: &mut dyn Read, prefix: &str) -> Result<Found> {
    let mut found = Found::default();
    let mut archive = tar::Archive::new(from);
    let mut buffer = vec![0; 256 << 10];
    for entry in archive.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path_bytes().into_owned();
        let path = path.strip_prefix(b"./").unwrap_or(&path).to_vec();
        found.last.clone_from(&path);
        if !entry.header().entry_type().is_file() {
            continue;
        }
        if path == staged::MANIFEST.as_bytes() {
            found.manifest = Some(read_all(&mut entry, MANIFEST_LIMIT)?);
            continue;
        }
        let mut crc = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
        let mut size = 0;
        loop {
            let n = entry.read(&mut buffer).map_err(damaged)?;
            if n == 0 {
                break;
            }
            crc.update(&buffer[..n]);
            size += n as u64;
        }
        let key = [prefix.as_bytes(), &path].concat();
        found.files.insert(key, (size, u32::try_from(crc.finalize()).unwrap_or_default()));
    }
    Ok(found)
}

/// See [`crate::source::Source::verify`].
pub(super) async fn plain(cx: &Context, point: &PointReader) -> Result<Verified> {
    let mut all = Found::default();
    for artefact in &point.manifest.artefacts {
        let name = artefact.plain_name().to_owned();
        let reader = point.open(artefact).await?;
        let Some(part) = name.strip_suffix(".tar").filter(|p| *p != "config") else {
            let text = blocking(reader, &cx.cancel, |from| read_all(from, MANIFEST_LIMIT)).await?;
            if name == format!("{}.json", staged::MANIFEST) {
                all.manifest = Some(text);
            }
            continue;
        };
        let of_tablespace = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let prefix = if of_tablespace { format!("pg_tblspc/{part}/") } else { String::new() };
        let found = blocking(reader, &cx.cancel, move |from| read_tar(from, &prefix)).await?;
        if part == "data" && found.last != staged::MANIFEST.as_bytes() {
            let problem = "backup_manifest is not the last member: the copy is not whole".to_owned();
            return Ok(Verified { problems: vec![problem], ..Verified::default() });
        }
        all.files.extend(found.files);
        all.manifest = all.manifest.or(found.manifest);
    }
    Ok(compare(&all))
}

fn compare(found: &Found) -> Verified {
    let mut verified = Verified::default();
    let Some(text) = &found.manifest else {
        verified.problems.push("there is no backup_manifest".into());
        return verified;
    };
    if !manifest_is_whole(text) {
        verified.problems.push("backup_manifest does not match its own checksum".into());
    }
    let manifest: BackupManifest = match serde_json::from_slice(text) {
        Ok(manifest) => manifest,
        Err(e) => {
            verified.problems.push(format!("backup_manifest makes no sense: {e}"));
            return verified;
        }
    };
    let (mut checked, mut sized) = (0, 0);
    for file in &manifest.files {
        let path = match (&file.path, &file.encoded) {
            (Some(path), _) => path.clone().into_bytes(),
            (None, Some(encoded)) => hex::decode(encoded).unwrap_or_default(),
            (None, None) => Vec::new(),
        };
        let name = String::from_utf8_lossy(&path);
        let Some((size, crc)) = found.files.get(&path) else {
            verified.problems.push(format!("{name} is missing"));
            continue;
        };
        if *size != file.size {
            verified.problems.push(format!("{name} has {size} bytes instead of {}", file.size));
        }
        match (file.algorithm.as_deref(), &file.checksum) {
            (Some("CRC32C"), Some(sum)) => {
                checked += 1;
                // The server writes the four bytes in its memory's order.
                let ours = [hex::encode(crc.to_le_bytes()), hex::encode(crc.to_be_bytes())];
                if !ours.contains(sum) {
                    verified.problems.push(format!("{name} does not match its checksum"));
                }
            }
            _ => sized += 1,
        }
    }
    if !found.files.keys().any(|p| p.starts_with(b"pg_wal/") && p.len() == 7 + 24) {
        verified.problems.push("there is no WAL: the copy cannot start".into());
    }
    let counts = [("files", found.files.len() as u64), ("checksums", checked), ("sizes_only", sized)];
    verified.counts = counts.map(|(k, v)| (k.to_owned(), v)).into();
    verified
}

/// The last entry is the SHA-256 of everything before its line.
fn manifest_is_whole(text: &[u8]) -> bool {
    let key = b"\"Manifest-Checksum\"";
    let Some(at) = text.windows(key.len()).rposition(|w| w == key) else { return false };
    let start = text[..at].iter().rposition(|b| *b == b'\n').map_or(0, |n| n + 1);
    let digest = hex::encode(Sha256::digest(&text[..start]));
    text[at..].windows(digest.len()).any(|w| w == digest.as_bytes())
}

async fn read_through(cx: &Context, mut reader: ArtefactReader, mut observe: impl FnMut(&[u8])) -> Result<()> {
    let mut buffer = vec![0; 256 << 10];
    loop {
        if cx.cancel.is_cancelled() {
            return Err(Error::new(ErrorKind::Cancelled, "stopped before it ended"));
        }
        match reader.read(&mut buffer).await.map_err(Error::from)? {
            0 => return Ok(()),
            n => observe(&buffer[..n]),
        }
    }
}

fn compare_sum(point: &PointReader, verified: &mut Verified, key: &str, found: u64) {
    verified.counts.insert(key.to_owned(), found);
    if let Some(captured) = point.manifest.counts.get(key).filter(|n| **n != found) {
        verified.problems.push(format!("{found} {key} instead of {captured}"));
    }
}

/// See [`crate::source::Source::verify`].
pub(super) async fn dump(cx: &Context, point: &PointReader) -> Result<Verified> {
    let mut verified = Verified::default();
    let (mut tail, mut rows) = (Tail::default(), SqlRows::default());
    for artefact in &point.manifest.artefacts {
        let data = artefact.plain_name() == "all.sql";
        read_through(cx, point.open(artefact).await?, |piece| {
            if data {
                tail.feed(piece);
                rows.feed(piece);
            }
        })
        .await?;
    }
    if !tail.is_whole() {
        verified.problems.push("the end mark is missing: the dump is not whole".into());
    }
    compare_sum(point, &mut verified, "rows", rows.rows.values().sum());
    compare_sum(point, &mut verified, "tables", rows.rows.len() as u64);
    Ok(verified)
}

impl Postgres {
    /// See [`crate::source::Source::verify`].
    pub(super) async fn verify_databases(&self, cx: &Context, point: &PointReader) -> Result<Verified> {
        let mut verified = Verified::default();
        let mut tail = Tail::default();
        let (mut databases, mut rows, mut followed) = (0, 0, true);
        for artefact in &point.manifest.artefacts {
            let name = artefact.plain_name();
            if name.ends_with(".dump") {
                let archive = self.verify_archive(cx, point, artefact, &mut verified).await?;
                databases += 1;
                rows += archive.rows.values().sum::<u64>();
                followed &= archive.lost.is_none();
            } else {
                let globals = name == "globals.sql";
                read_through(cx, point.open(artefact).await?, |p| {
                    if globals {
                        tail.feed(p)
                    }
                })
                .await?;
            }
        }
        if !tail.is_whole() {
            verified.problems.push("globals.sql has no end mark: it is not whole".into());
        }
        compare_sum(point, &mut verified, "databases", databases);
        if followed {
            compare_sum(point, &mut verified, "rows", rows);
        }
        Ok(verified)
    }

    async fn verify_archive(
        &self,
        cx: &Context,
        point: &PointReader,
        artefact: &Artefact,
        verified: &mut Verified,
    ) -> Result<Archive> {
        let mut archive = Archive::default();
        let mut reader = point.open(artefact).await?;
        if self.has_tool("pg_restore") {
            let program = Program::new(self.tool("pg_restore")).args(["-f", "/dev/null"]);
            let ended = feed_observed(cx, program, &mut reader, |piece| archive.feed(piece)).await?;
            // An older program than the one that wrote it proves nothing.
            if !ended.status.success() && !ended.stderr.contains("unsupported version") {
                let said = ended.stderr.lines().next().unwrap_or("it said nothing").to_owned();
                verified.problems.push(format!("{}: pg_restore cannot read it: {said}", artefact.name));
            }
        } else {
            read_through(cx, reader, |piece| archive.feed(piece)).await?;
        }
        verified.problems.extend(archive.fault().map(|why| format!("{}: {why}", artefact.name)));
        Ok(archive)
    }
}
