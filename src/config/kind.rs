//! Settings of the kinds of sources and destinations.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::secret::SecretRef;
use super::{Config, Keep, Service, mib};
use crate::units::{Bytes, Cadence, Span};

/// The settings of a service's kind.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceConfig {
    /// A PostgreSQL server.
    Postgres(Box<PostgresConfig>),
    /// A CouchDB node.
    Couchdb(Box<CouchdbConfig>),
    /// A directory of files.
    Blobdir(BlobdirConfig),
    /// An Elasticsearch or OpenSearch cluster.
    Elasticsearch(Box<ElasticsearchConfig>),
}

impl SourceConfig {
    /// The directory that holds the store's data, where the configuration names it.
    pub fn data_dir(&self) -> Option<PathBuf> {
        match self {
            Self::Postgres(c) => c.data_dir.clone(),
            Self::Couchdb(c) => Some(c.data_dir.clone()),
            Self::Blobdir(c) => Some(c.path.clone()),
            Self::Elasticsearch(_) => None,
        }
    }

    /// The key that names it.
    fn data_key(&self) -> Option<&'static str> {
        match self {
            Self::Postgres(_) => Some("postgres.data_dir"),
            Self::Couchdb(_) => Some("couchdb.data_dir"),
            Self::Blobdir(_) => Some("blobdir.path"),
            Self::Elasticsearch(_) => None,
        }
    }
}

impl Service {
    /// The kind that is configured; the parser has made sure that it is exactly one.
    pub fn source(&self) -> Option<SourceConfig> {
        match (&self.postgres, &self.couchdb, &self.blobdir, &self.elasticsearch) {
            (Some(c), None, None, None) => {
                Some(SourceConfig::Postgres(Box::new(PostgresConfig { run_as: self.user.clone(), ..c.clone() })))
            }
            (None, Some(c), None, None) => Some(SourceConfig::Couchdb(Box::new(c.clone()))),
            (None, None, Some(c), None) => Some(SourceConfig::Blobdir(c.clone())),
            (None, None, None, Some(c)) => Some(SourceConfig::Elasticsearch(Box::new(c.clone()))),
            _ => None,
        }
    }

    /// For each repository in which the store itself keeps snapshots: how many. Without a number of its own, as many as
    /// any place of the service keeps points.
    pub fn repository_keeps(&self) -> BTreeMap<String, Keep> {
        let Some(elasticsearch) = &self.elasticsearch else { return BTreeMap::new() };
        let of = |r: &RepositoryConfig| r.keep.clone().unwrap_or_else(|| self.widest_keep());
        elasticsearch.repositories.iter().map(|(name, r)| (name.clone(), of(r))).collect()
    }

    /// The destination whose keys serve to look into the bucket of a repository.
    pub fn look_with(&self, repository: &str) -> Option<&str> {
        self.elasticsearch.as_ref()?.repositories.get(repository)?.look_with.as_deref()
    }

    /// Per cadence, the most that any place of the service keeps.
    pub(super) fn widest_keep(&self) -> Keep {
        let own =
            (self.backup_dir.is_some() || self.destinations.iter().any(|d| d.keep.is_none())).then_some(&self.keep);
        let all: Vec<&Keep> = own.into_iter().chain(self.destinations.iter().filter_map(|d| d.keep.as_ref())).collect();
        let most = |cadence| all.iter().filter_map(|k| k.get(cadence)).max();
        Keep {
            hourly: most(Cadence::Hourly),
            daily: most(Cadence::Daily),
            weekly: most(Cadence::Weekly),
            monthly: most(Cadence::Monthly),
            yearly: most(Cadence::Yearly),
        }
    }
}

impl Config {
    /// Directories with data or restore points, by the key that names them.
    pub fn data_dirs(&self) -> Vec<(String, PathBuf)> {
        let mut dirs = Vec::new();
        for (name, service) in &self.services {
            let points = service.backup_dir.clone().map(|dir| ("backup_dir", dir));
            let data = service.source().and_then(|source| Some((source.data_key()?, source.data_dir()?)));
            let all = [data, points].into_iter().flatten();
            dirs.extend(all.map(|(key, dir)| (format!("services.{name}.{key}"), dir)));
        }
        let local = |(name, d): (&String, &DestinationConfig)| {
            Some((format!("destinations.{name}.local.path"), d.local.as_ref()?.path.clone()))
        };
        dirs.extend(self.destinations.iter().filter_map(local));
        dirs
    }
}

/// How PostgreSQL is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PostgresMethod {
    /// `pg_basebackup`: the whole cluster, byte for byte.
    Plain,
    /// `pg_dumpall`: one SQL file.
    Dump,
    /// Globals, and one `pg_dump -Fc` per database.
    Databases,
}

/// A PostgreSQL server, 13 or newer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// How the server is captured.
    pub method: PostgresMethod,
    /// Directory of `pg_basebackup`, `pg_dump`, `psql`; default: the newest below /usr/lib/postgresql, else the PATH.
    #[serde(default)]
    pub bin_dir: Option<PathBuf>,
    /// Host name, or directory of the socket; default: the local socket (peer authentication).
    #[serde(default)]
    pub host: Option<String>,
    /// TCP port or socket number.
    #[serde(default)]
    pub port: Option<u16>,
    /// Role to log in as; default: the name of the operating system's user.
    #[serde(default)]
    pub username: Option<String>,
    /// File in the format of ~/.pgpass; refused if others can read it.
    #[serde(default)]
    pub passfile: Option<PathBuf>,
    /// Database to connect to for queries.
    #[serde(default = "default_database")]
    pub database: String,
    /// `plain` with several tablespaces: where their tars are collected before they are stored.
    #[serde(default)]
    pub staging_dir: Option<PathBuf>,
    /// `plain`: upper limit of the rate, such as `50MiB` per second (32 KiB to 1 GiB).
    #[serde(default)]
    pub max_rate: Option<Bytes>,
    /// `databases`: only databases that match one of these patterns (`*`, `?`).
    #[serde(default)]
    pub include: Vec<String>,
    /// `databases`: without those that match one of these patterns.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// `databases`: how many are dumped at once.
    #[serde(default = "default_jobs")]
    pub jobs: u32,
    /// `dump` and `databases`: fail when a table stays locked by somebody else for this long.
    #[serde(default = "default_lock_wait")]
    pub lock_wait: Span,
    /// Where this cluster's data directory is, for `restore` of `plain` points. Asked of the server at backup time.
    #[serde(default)]
    pub data_dir: Option<PathBuf>,
    /// `user` of the service: as root, the client programs run as this user, because the server may know it by that.
    #[serde(skip)]
    pub run_as: Option<String>,
}

/// How urgent the reading is to the kernel's scheduler of disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum IoPriority {
    /// As everybody else.
    #[default]
    Normal,
    /// After everybody else of the same class.
    Low,
    /// Only while nobody else reads or writes.
    Idle,
}

/// How deep each shard is looked into while it is captured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CouchdbCheck {
    /// The header, and every node of every tree.
    #[default]
    Trees,
    /// The header and the roots of the trees: for shards that are much larger than memory, on slow disks.
    Headers,
}

/// A CouchDB node, 2.0 or newer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CouchdbConfig {
    /// The node's data directory, as `database_dir` in its configuration.
    pub data_dir: PathBuf,
    /// Address of the node: asked for its version, and after a restore for its shard maps.
    #[serde(default = "default_couchdb_url")]
    pub url: String,
    /// CouchDB 2 only: address of the node-local port, for the shard maps of a restore.
    #[serde(default = "default_couchdb_local_url")]
    pub node_local_url: String,
    /// Name of a server admin, for a restore.
    #[serde(default)]
    pub username: Option<String>,
    /// Where the admin's password is: `{file: PATH}`, `{env: NAME}` or `{credential: NAME}`.
    #[serde(default, deserialize_with = "super::secret::long_form")]
    pub password: Option<SecretRef>,
    /// The node's name, such as `couchdb@db1.example.com`; asked of the files by default.
    #[serde(default)]
    pub node: Option<String>,
    /// Capture view indexes as well; without them they are built anew after a restore.
    #[serde(default = "default_true")]
    pub views: bool,
    /// Directory of the node's configuration, captured as an artefact of its own: it holds the admins and the cookie.
    #[serde(default)]
    pub etc_dir: Option<PathBuf>,
    /// Let the configuration leave the host unencrypted when the service has no `encrypt_to`.
    #[serde(default)]
    pub etc_unencrypted: bool,
    /// How deep each shard is looked into; `verify --level format` looks at everything in any case.
    #[serde(default)]
    pub check: CouchdbCheck,
    /// Threads that open, read and check files ahead of the archive.
    #[serde(default = "default_readers")]
    pub readers: u32,
    /// Upper limit of the rate of reading, such as `50MiB` per second.
    #[serde(default)]
    pub max_rate: Option<Bytes>,
    /// How urgent the reading is, where the disk's scheduler knows priorities.
    #[serde(default)]
    pub io_priority: IoPriority,
    /// Directory of the program `couchdb`, for drills on a node of their own; without it they only read the files.
    #[serde(default = "default_couchdb_bin")]
    pub bin_dir: PathBuf,
    /// Program and arguments that start the node, for `restore --start`.
    #[serde(default = "default_couchdb_start")]
    pub start: Vec<String>,
    /// Program and arguments that stop the node, for `restore --start`.
    #[serde(default = "default_couchdb_stop")]
    pub stop: Vec<String>,
}

/// A directory of files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BlobdirConfig {
    /// The directory that is backed up.
    pub path: PathBuf,
    /// Fail unless `path` is a mount point.
    #[serde(default)]
    pub require_mount: bool,
    /// Patterns of paths below `path` that are left out: `cache/**`, `*.tmp`.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Go into other file systems mounted below `path`.
    #[serde(default)]
    pub cross_file_systems: bool,
    /// Threads that open and read files ahead of the archive.
    #[serde(default = "default_readers")]
    pub readers: u32,
    /// Fail when more files than this vanish between being listed and being read.
    #[serde(default = "default_vanished")]
    pub max_vanished: u64,
}

/// An Elasticsearch (1.7 to 9) or OpenSearch (1 to 3) cluster, by its snapshot API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ElasticsearchConfig {
    /// Address of a node or of what stands before the cluster, such as `http://127.0.0.1:9200`.
    pub url: String,
    /// User name, for basic authentication.
    #[serde(default)]
    pub username: Option<String>,
    /// Where the user's password is: `{file: PATH}`, `{env: NAME}` or `{credential: NAME}`.
    #[serde(default, deserialize_with = "super::secret::long_form")]
    pub password: Option<SecretRef>,
    /// Where an API key of Elasticsearch is, in the encoded form (base64 of `id:key`); instead of a user.
    #[serde(default, deserialize_with = "super::secret::long_form")]
    pub api_key: Option<SecretRef>,
    /// PEM file of an additional certificate authority.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Where the cluster keeps snapshots, by the name of the repository. Each run makes one in every repository.
    pub repositories: BTreeMap<String, RepositoryConfig>,
    /// Only indices and data streams that match one of these patterns (`*`, `?`). Names that begin with a dot need a pattern that does.
    #[serde(default)]
    pub include: Vec<String>,
    /// Without those that match one of these patterns.
    #[serde(default)]
    pub exclude: Vec<String>,
    /// Cluster settings and templates are part of the snapshot too.
    #[serde(default)]
    pub global_state: bool,
    /// A snapshot that is not done after this time is aborted; must be less than `timeout` of the service.
    #[serde(default = "default_snapshot_timeout")]
    pub snapshot_timeout: Span,
    /// How long to wait while somebody else makes a snapshot.
    #[serde(default = "default_wait_for_others")]
    pub wait_for_others: Span,
    /// A single request is given up after this time.
    #[serde(default = "default_search_call_timeout")]
    pub call_timeout: Span,
}

/// A snapshot repository; exactly one of `fs`, `s3` and `existing`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// A directory that all nodes share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fs: Option<FsRepository>,
    /// A bucket, which the nodes write to with keys of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Repository>,
    /// The cluster has it already, of whatever type: its settings are left alone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
    /// Of an `fs` repository: its directory is a part of each restore point too, so that it reaches the destinations. The agent must be able to read it, under the path that the nodes know.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub archive: bool,
    /// More settings of the repository, as the cluster knows them, such as `max_snapshot_bytes_per_sec: 40mb`.
    #[serde(default)]
    pub settings: BTreeMap<String, String>,
    /// Name of an S3 destination whose endpoint, region and keys serve to look into the bucket; default: the destination that is being checked.
    #[serde(default)]
    pub look_with: Option<String>,
    /// How many snapshots stay in it; default: as many as any place of the service keeps points.
    #[serde(default)]
    pub keep: Option<Keep>,
}

/// A repository in a directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FsRepository {
    /// The directory as the nodes see it, below one of their `path.repo`; a relative one lies below the first of these.
    pub location: String,
}

/// A repository in a bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Repository {
    /// The bucket's name.
    pub bucket: String,
    /// Path in the bucket; default: its root.
    #[serde(default)]
    pub base_path: Option<String>,
    /// Which keys of the nodes' keystores are used: `s3.client.NAME.access_key`.
    #[serde(default = "default_s3_client")]
    pub client: String,
}

/// A place for copies; exactly one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DestinationConfig {
    /// An S3-compatible object store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3Config>,
    /// A directory, such as another disk or a mounted share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub local: Option<LocalConfig>,
}

/// A directory as a destination.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LocalConfig {
    /// The directory; points lie below `<path>/<prefix>/<host>/<service>/`.
    pub path: PathBuf,
}

/// How keys are made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeyStyle {
    /// `<prefix>/<host>/<service>/<id>/...`: unique keys.
    #[default]
    Timestamped,
    /// `<prefix>/<service>_<cadence>_<host>/...`: fixed keys in a bucket that keeps versions.
    Versioned,
}

/// Server-side encryption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Sse {
    /// `AES256`: keys of the store.
    Aes256,
    /// A key of the store's key service, by id.
    Kms(String),
}

/// Which checksum goes with each part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum S3Checksum {
    /// The SHA-256 that is part of the signature; accepted everywhere.
    Sha256,
    /// CRC64NVME in a header, over TLS only.
    Crc64nvme,
}

/// An S3-compatible object store.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The bucket's name.
    pub bucket: String,
    /// Region of the bucket; stores that are not AWS mostly ignore it.
    #[serde(default = "default_region")]
    pub region: String,
    /// `https://s3.example.com`, for stores that are not AWS.
    #[serde(default)]
    pub endpoint: Option<String>,
    /// The bucket is part of the path of each URL, not of its host name; default: true when `endpoint` is set.
    #[serde(default)]
    pub path_style: Option<bool>,
    /// How keys in the bucket are made.
    #[serde(default)]
    pub key_style: KeyStyle,
    /// First part of all keys; default: the environment.
    #[serde(default)]
    pub prefix: Option<String>,
    /// Where the keys are: a file in the format of ~/.aws/credentials (`{file: PATH}`), or, as a bare word, a systemd credential's name; default: environment, profile, instance role.
    #[serde(default)]
    pub credentials: Option<SecretRef>,
    /// Section `[NAME]` of that file; default: the only one, else `default`.
    #[serde(default)]
    pub profile: Option<String>,
    /// PEM file of an additional certificate authority.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Size of the first 1000 parts of an upload; it doubles every 1000 parts, until two parts fill `upload_memory`. Of 10,000 parts, that makes 984 GiB at most with the defaults.
    #[serde(default = "default_part")]
    pub part_size: Bytes,
    /// All parts have `part_size`, for stores that demand it (R2).
    #[serde(default)]
    pub fixed_part_size: bool,
    /// Memory for the parts of one artefact, the one that is filled and those on their way; default: 256MiB, or `part_size` x (`concurrency` + 1) if that is more.
    #[serde(default)]
    pub upload_memory: Option<Bytes>,
    /// Parts on their way at once, per artefact; fewer once they have grown, as `upload_memory` demands.
    #[serde(default = "default_concurrency")]
    pub concurrency: u32,
    /// Ranges of a long artefact that are read at once, each as long as `part_size`, 8MiB at most; 1 = in one request.
    #[serde(default = "default_download_concurrency")]
    pub download_concurrency: u32,
    /// Which checksum goes with each part.
    #[serde(default = "default_checksum")]
    pub checksum: S3Checksum,
    /// Server-side encryption: `aes256` or `{kms: KEY}`; no header is sent without it, and the bucket decides.
    #[serde(default)]
    pub sse: Option<Sse>,
    /// Storage class of new objects, such as `STANDARD_IA`, but no archive class; no header is sent without it, and the bucket decides.
    #[serde(default)]
    pub storage_class: Option<String>,
    /// How often a request that failed, but may succeed later, is made again.
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// A single request (a part, a listing) is given up after this time and made again; larger parts get more.
    #[serde(default = "default_call_timeout")]
    pub call_timeout: Span,
}

impl S3Config {
    /// Memory for the parts of one artefact, as set or by default.
    pub fn upload_memory(&self) -> Bytes {
        let all = self.part_size.0.saturating_mul(u64::from(self.concurrency) + 1);
        self.upload_memory.unwrap_or(Bytes(all.max(mib(256).0)))
    }
}

fn default_database() -> String {
    "postgres".into()
}
fn default_jobs() -> u32 {
    2
}
fn default_lock_wait() -> Span {
    Span::from_secs(600)
}
fn default_couchdb_url() -> String {
    "http://127.0.0.1:5984".into()
}
fn default_couchdb_local_url() -> String {
    "http://127.0.0.1:5986".into()
}
fn default_couchdb_bin() -> PathBuf {
    "/opt/couchdb/bin".into()
}
fn default_couchdb_start() -> Vec<String> {
    ["systemctl", "start", "couchdb"].map(String::from).into()
}
fn default_couchdb_stop() -> Vec<String> {
    ["systemctl", "stop", "couchdb"].map(String::from).into()
}
fn default_true() -> bool {
    true
}
fn default_readers() -> u32 {
    4
}
fn default_vanished() -> u64 {
    10_000
}
fn default_snapshot_timeout() -> Span {
    Span::from_hours(2)
}
fn default_wait_for_others() -> Span {
    Span::from_secs(1800)
}
fn default_search_call_timeout() -> Span {
    Span::from_secs(60)
}
fn default_s3_client() -> String {
    "default".into()
}
fn default_region() -> String {
    "us-east-1".into()
}
fn default_part() -> Bytes {
    mib(16)
}
fn default_concurrency() -> u32 {
    3
}
fn default_download_concurrency() -> u32 {
    8
}
fn default_checksum() -> S3Checksum {
    S3Checksum::Sha256
}
fn default_retries() -> u32 {
    6
}
fn default_call_timeout() -> Span {
    Span::from_secs(120)
}
