//! The manifest: the record that makes artefacts a restore point. Written last, removed first.
//!
//! # Format, version 1
//! A JSON object in UTF-8. Readers ignore unknown fields, refuse a `format_version` greater than theirs, and never
//! prune or sweep what they cannot read. The last two lines of the file are
//! `  "manifest_sha256": "<hex>"` and `}`: the SHA-256 of every byte before these two lines
//! (`head -n -2 manifest.json | sha256sum`).
//!
//! The fields are documented on [`Manifest`], in the order in which they stand in the file.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::artefact::Role;
use crate::destination::Location;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Cadence;

/// The major version this agent writes and reads.
pub const FORMAT_VERSION: u32 = 1;
/// File name inside a point's folder.
pub const FILE_NAME: &str = "manifest.json";
/// Digests of the stored artefacts, in the format of `sha256sum`.
pub const SUMS_NAME: &str = "SHA256SUMS";

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Major version of this format: 1.
    pub format_version: u32,
    /// Who wrote it.
    pub agent: Agent,
    /// `<service>_<env>_<cadence>_<YYYY_MM_DD>_<HHMMSS>`, for people: programs use the fields.
    pub id: String,
    /// The service's name.
    pub service: String,
    /// The driver: `postgres`, `blobdir`, ...
    pub kind: String,
    /// The driver's method: `plain`, `dump`, `databases`, `files`, ...
    pub method: String,
    /// The environment, if configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// The host it was taken on.
    pub host: String,
    /// For which cadence it was taken.
    pub cadence: Cadence,
    /// When the run began, UTC. Age and periods are counted from here.
    pub started: DateTime<Utc>,
    /// When the last artefact was whole, UTC.
    pub finished: DateTime<Utc>,
    /// `complete` or `suspect`.
    pub state: State,
    /// Why it is (or was, before it was accepted) suspect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub suspect_reasons: Vec<String>,
    /// When an operator accepted a suspect point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<DateTime<Utc>>,
    /// The limits in force when it was taken, so that another host can judge freshness.
    #[serde(default)]
    pub limits: Limits,
    /// The byte streams, with key and version at this destination only.
    #[serde(default)]
    pub artefacts: Vec<Artefact>,
    /// Where `SHA256SUMS` lies at this destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums: Option<Location>,
    /// Snapshots that the store itself keeps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external: Vec<External>,
    /// How far the copy is one moment in time.
    pub consistency: Consistency,
    /// As the server said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_version: Option<String>,
    /// LSN, GTID, `update_seq`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<String>,
    /// Sums to compare a restore with.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// Small facts of the driver.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// Id of the point that this one is built on; absent for a full point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// Without names of files, databases or documents.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Who wrote a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Agent {
    /// Program version.
    pub version: String,
    /// Made once per installation.
    pub id: String,
}

/// Whether a point may be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Whole, by all that is known.
    Complete,
    /// Kept, but something is wrong with it; never evicts others.
    Suspect,
}

/// Limits in force, in seconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Greatest age per cadence.
    #[serde(default)]
    pub max_age_seconds: BTreeMap<Cadence, u64>,
    /// Greatest age of the last drill.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_drill_age_seconds: Option<u64>,
}

/// One stored byte stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artefact {
    /// File name with all extensions, `data.tar.zst.age`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Where it lies at this destination.
    #[serde(flatten)]
    pub location: Location,
    /// Length before compression and encryption.
    pub plain_bytes: u64,
    /// Length as stored.
    pub stored_bytes: u64,
    /// BLAKE3 of the plain bytes (`b3sum`), hex.
    pub blake3: String,
    /// SHA-256 of the stored bytes (`sha256sum`), hex.
    pub sha256: String,
    /// `none`, `zstd` or `gzip`.
    pub compression: Algorithm,
    /// age recipients; empty = not encrypted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<String>,
}

impl Artefact {
    /// The base name without the extensions of compression and encryption: `data.tar`.
    pub fn plain_name(&self) -> &str {
        let name = self.name.strip_suffix(".age").unwrap_or(&self.name);
        match self.compression {
            Algorithm::None => name,
            Algorithm::Zstd => name.strip_suffix(".zst").unwrap_or(name),
            Algorithm::Gzip => name.strip_suffix(".gz").unwrap_or(name),
        }
    }
}

/// A compression algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// Stored as it is.
    None,
    /// Zstandard, `.zst`.
    Zstd,
    /// gzip, `.gz`, several members.
    Gzip,
}

impl Algorithm {
    /// The extension, with its dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Zstd => ".zst",
            Self::Gzip => ".gz",
        }
    }
}

/// A snapshot kept by the store itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Name of the repository at the store.
    pub repository: String,
    /// `fs`, `s3`, ...
    #[serde(rename = "type")]
    pub kind: String,
    /// Bucket, for object stores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bucket: Option<String>,
    /// Path or prefix in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_path: Option<String>,
    /// The snapshot's name.
    pub name: String,
    /// The snapshot's uuid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
}

/// How far a copy is one moment in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Exactly one moment: a transaction or a snapshot.
    PointInTime,
    /// One moment as after a power cut: the store runs recovery.
    CrashConsistent,
    /// Written while it was read: parts may be of different moments.
    Fuzzy,
}

const DIGEST_KEY: &str = "  \"manifest_sha256\": \"";

impl Manifest {
    /// The file's text, with its own digest at the end.
    pub fn to_text(&self) -> Result<String> {
        let json = serde_json::to_string_pretty(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "could not write a manifest as JSON").caused_by(e))?;
        let body = json.strip_suffix("\n}").unwrap_or(&json);
        let body = format!("{body},\n");
        let digest = hex::encode(Sha256::digest(body.as_bytes()));
        Ok(format!("{body}{DIGEST_KEY}{digest}\"\n}}\n"))
    }

    /// Reads a manifest and checks its digest, version and sense.
    ///
    /// # Errors
    /// `Corrupt` for a damaged one, `Config` (with a hint to upgrade) for one of a newer major version.
    pub fn from_text(text: &str) -> Result<Self> {
        let corrupt = |why: &str| Error::new(ErrorKind::Corrupt, format!("the manifest is damaged: {why}"));
        let at = text.rfind(DIGEST_KEY).ok_or_else(|| corrupt("it has no digest"))?;
        let (body, tail) = text.split_at(at);
        let digest =
            tail[DIGEST_KEY.len()..].strip_suffix("\"\n}\n").ok_or_else(|| corrupt("it does not end as it should"))?;
        if hex::encode(Sha256::digest(body.as_bytes())) != digest {
            return Err(corrupt("its digest does not match"));
        }
        #[derive(Deserialize)]
        struct Head {
            format_version: u32,
        }
        let head: Head =
            serde_json::from_str(text).map_err(|e| corrupt("it is not the JSON of a manifest").caused_by(e))?;
        if head.format_version > FORMAT_VERSION {
            return Err(Error::new(
                ErrorKind::Config,
                format!("the manifest has format version {}", head.format_version),
            )
            .hint("upgrade backstay on this host: this version reads format version 1."));
        }
        let manifest: Self =
            serde_json::from_str(text).map_err(|e| corrupt("it is not the JSON of a manifest").caused_by(e))?;
        if manifest.artefacts.is_empty() && manifest.external.is_empty() {
            return Err(corrupt("it names neither artefacts nor snapshots"));
        }
        Ok(manifest)
    }

    /// Sum of the stored lengths.
    pub fn stored_bytes(&self) -> u64 {
        self.artefacts.iter().map(|a| a.stored_bytes).sum()
    }
    /// Sum of the plain lengths.
    pub fn plain_bytes(&self) -> u64 {
        self.artefacts.iter().map(|a| a.plain_bytes).sum()
    }
    /// The text of `SHA256SUMS`.
    pub fn sums_text(&self) -> String {
        self.artefacts.iter().map(|a| format!("{}  {}\n", a.sha256, a.name)).collect()
    }
}
