//! The configuration: types, defaults, documentation of each key. Text becomes a [`Config`] in `config/parse.rs`.
//!
//! No clock, no network, no credentials are needed here. The kind of a service or destination is the key that holds
//! its settings (externally tagged), because only so does an error keep its exact line and column.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Algorithm;
use crate::units::{Bytes, Cadence, Span, is_name};

pub mod check;
mod explain;
mod kind;
pub mod parse;
mod place;
pub mod secret;
pub mod show;

pub use kind::{
    BlobdirConfig, CouchdbCheck, CouchdbConfig, DestinationConfig, ElasticsearchConfig, FsRepository, IoPriority,
    KeyStyle, LocalConfig, PostgresConfig, PostgresMethod, RepositoryConfig, S3Checksum, S3Config, S3Repository,
    SourceConfig, Sse,
};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the deployment; part of ids and the default prefix in buckets.
    #[serde(default)]
    pub environment: Option<String>,
    /// Name of this host; default: the short host name.
    #[serde(default)]
    pub host: Option<String>,
    /// Overrides the agent id kept in `state_dir`, so that a re-installed host takes its points over.
    #[serde(default)]
    pub agent_id: Option<String>,
    /// Where the agent keeps its id, locks and the state of alarms. A service with a `user` has a folder of its own below.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Time zone in which hours, days, weeks, months and years begin, such as `Europe/Berlin`.
    #[serde(default = "default_timezone")]
    pub timezone: String,
    /// First day of the week.
    #[serde(default)]
    pub week_start: WeekStart,
    /// Places for copies, by name.
    #[serde(default)]
    pub destinations: BTreeMap<String, DestinationConfig>,
    /// What is backed up, by name.
    #[serde(default)]
    pub services: BTreeMap<String, Service>,
    /// Freshness checks and who is told.
    #[serde(default)]
    pub check: Check,
    /// How mail leaves.
    #[serde(default)]
    pub mail: Option<Mail>,
    /// Drills of all services.
    #[serde(default)]
    pub drill: Drill,
}

/// One source with its destinations, cadences and retention.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// A PostgreSQL server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres: Option<PostgresConfig>,
    /// A CouchDB node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub couchdb: Option<CouchdbConfig>,
    /// A directory of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blobdir: Option<BlobdirConfig>,
    /// An Elasticsearch or OpenSearch cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub elasticsearch: Option<ElasticsearchConfig>,
    /// Operating system's user that makes this backup: the agent, when started as root, becomes this user for the service.
    #[serde(default)]
    pub user: Option<String>,
    /// Local directory for restore points; none are kept locally without it.
    #[serde(default)]
    pub backup_dir: Option<PathBuf>,
    /// Where copies go: names from the top-level `destinations`, or `{name: NAME, keep: {...}}` to keep another number there.
    #[serde(default)]
    pub destinations: Vec<UsedDestination>,
    /// How many points of each cadence are kept; a cadence that is named is enabled.
    #[serde(default)]
    pub keep: Keep,
    /// Names of services that are backed up before this one, when both are in the same run.
    #[serde(default)]
    pub after: Vec<String>,
    /// The backup of this service is stopped after this time.
    #[serde(default = "default_timeout")]
    pub timeout: Span,
    /// A destination that takes no byte for this long is out for the point.
    #[serde(default = "default_stall_timeout")]
    pub stall_timeout: Span,
    /// Compression of artefacts.
    #[serde(default)]
    pub compression: Compression,
    /// age recipients, `age1...`, or absolute paths of files with one per line; the host holds only public keys.
    #[serde(default)]
    pub encrypt_to: Vec<String>,
    /// A new point that is smaller than this share (percent) of the last one is suspect; 0 turns this off.
    #[serde(default = "default_shrink")]
    pub suspect_below_percent: u8,
    /// Greatest age per cadence; overrides `check.max_age`.
    #[serde(default)]
    pub max_age: BTreeMap<Cadence, Span>,
    /// The longest restore that is accepted, such as `2h`: a drill that takes longer warns.
    #[serde(default)]
    pub rto: Option<Span>,
    /// Put `RESTORE.md` and a script into each restore point: how to restore it without Backstay. Never encrypted.
    #[serde(default = "default_kit")]
    pub kit: bool,
    /// Drills of this service; overrides the top-level `drill`, key by key.
    #[serde(default)]
    pub drill: Drill,
}

/// Drills: restores into a scratch directory, compared with what was captured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Drill {
    /// Directory on a disk with room for a restored copy; default: `scratch` below `state_dir`.
    #[serde(default)]
    pub scratch_dir: Option<PathBuf>,
    /// Private age key for drills of encrypted points: `{credential: NAME}`, `{file: PATH}` or `{env: NAME}`. The host
    /// that makes the backups should not have it.
    #[serde(default)]
    pub identity: Option<secret::SecretRef>,
    /// How long records of drills are kept; the newest ones stay in any case. Default: 400d.
    #[serde(default)]
    pub keep: Option<Span>,
}

/// A destination as a service uses it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UsedDestination {
    /// Name under `destinations`.
    pub name: String,
    /// Overrides the service's `keep` there. Points of a lower cadence than the lowest one named here are not sent there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// How many points are kept, by cadence. Absent = this cadence is not enabled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// How many hourly points are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hourly: Option<u32>,
    /// How many daily points are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daily: Option<u32>,
    /// How many weekly points are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weekly: Option<u32>,
    /// How many monthly points are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly: Option<u32>,
    /// How many yearly points are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub yearly: Option<u32>,
}

impl Keep {
    /// How many of this cadence; `None` = not enabled.
    pub fn get(&self, cadence: Cadence) -> Option<u32> {
        match cadence {
            Cadence::Manual => None,
            Cadence::Hourly => self.hourly,
            Cadence::Daily => self.daily,
            Cadence::Weekly => self.weekly,
            Cadence::Monthly => self.monthly,
            Cadence::Yearly => self.yearly,
        }
    }
    /// The enabled cadences, shortest first.
    pub fn cadences(&self) -> impl Iterator<Item = Cadence> + '_ {
        Cadence::CALENDAR.into_iter().filter(|c| self.get(*c).is_some())
    }
}

/// First day of the week.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WeekStart {
    /// Sunday.
    #[default]
    Sunday,
    /// Monday (ISO 8601).
    Monday,
}

/// How artefacts are compressed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Compression {
    /// `zstd`, `gzip` or `none`.
    #[serde(default = "default_algorithm")]
    pub algorithm: Algorithm,
    /// zstd 1 to 19 (default 3), gzip 1 to 12 (default 6).
    #[serde(default)]
    pub level: Option<i32>,
    /// Threads per artefact; default: the number of CPUs, at most 4.
    #[serde(default)]
    pub threads: Option<u32>,
}

impl Default for Compression {
    fn default() -> Self {
        Self { algorithm: Algorithm::Zstd, level: None, threads: None }
    }
}

/// Freshness checks.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Check {
    /// Addresses that get mail about alarms and recoveries.
    #[serde(default)]
    pub email: Vec<String>,
    /// Greatest age of the newest complete point, per cadence. Default: 3h, 50h, 194h (8 d 2 h), 33d, 370d for
    /// hourly to yearly.
    #[serde(default)]
    pub max_age: BTreeMap<Cadence, Span>,
    /// Greatest age of the last drill that went well, such as `8d`; without it a missing drill does not alarm.
    #[serde(default)]
    pub max_drill_age: Option<Span>,
    /// Which services must be there, per host, for `check-s3 --all-hosts`: `postgres` at every destination,
    /// `postgres@offsite` at that one. Without it, all that are found.
    #[serde(default)]
    pub expect: BTreeMap<String, Vec<String>>,
    /// File that `check-s3` writes for the textfile collector of Prometheus' node_exporter; its name must end in `.prom`.
    #[serde(default)]
    pub metrics_file: Option<PathBuf>,
}

/// How mail leaves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// `smtp://host:587` (STARTTLS required), `smtps://host:465` (TLS), `smtp://host:25?tls=none`; without it the local sendmail is used.
    #[serde(default)]
    pub smtp: Option<String>,
    /// Address of the sender.
    pub from: String,
    /// User name for the mail server, if it wants one.
    #[serde(default)]
    pub username: Option<String>,
    /// Where its password is: `{file: PATH}`, `{env: NAME}` or `{credential: NAME}`.
    #[serde(default, deserialize_with = "secret::long_form")]
    pub password: Option<secret::SecretRef>,
    /// PEM file of an additional certificate authority.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// Program that sends mail when `smtp` is not set.
    #[serde(default = "default_sendmail")]
    pub sendmail: PathBuf,
}

fn default_state_dir() -> PathBuf {
    "/var/lib/backstay".into()
}
fn default_timezone() -> String {
    "UTC".into()
}
fn default_timeout() -> Span {
    Span::from_hours(6)
}
fn default_stall_timeout() -> Span {
    Span::from_secs(300)
}
fn default_kit() -> bool {
    true
}
fn default_shrink() -> u8 {
    50
}
fn default_algorithm() -> Algorithm {
    Algorithm::Zstd
}
fn default_sendmail() -> PathBuf {
    "/usr/sbin/sendmail".into()
}

/// A size with its default, for the kinds.
pub(crate) const fn mib(n: u64) -> Bytes {
    Bytes(n << 20)
}

impl<'de> Deserialize<'de> for UsedDestination {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = UsedDestination;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("the name of a destination, or {name: NAME, keep: {...}}")
            }
            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
                Ok(UsedDestination { name: name.to_owned(), keep: None })
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Long {
                    name: String,
                    #[serde(default)]
                    keep: Option<Keep>,
                }
                let long = Long::deserialize(serde::de::value::MapAccessDeserializer::new(map))?;
                Ok(UsedDestination { name: long.name, keep: long.keep })
            }
        }
        d.deserialize_any(Visitor)
    }
}

impl Default for Config {
    /// Nothing configured, all defaults.
    fn default() -> Self {
        serde_json::from_str("{}").expect("every key of the configuration has a default")
    }
}

impl Config {
    /// Reads all secrets now, so that they can stay closed to the user that this process becomes.
    pub fn hold_secrets(&mut self) {
        let keys = self.destinations.values_mut().filter_map(|d| d.s3.as_mut()?.credentials.as_mut());
        let mail = self.mail.iter_mut().filter_map(|m| m.password.as_mut());
        let drill = self.drill.identity.iter_mut();
        keys.chain(mail).chain(drill).for_each(secret::SecretRef::hold);
        for service in self.services.values_mut() {
            let couchdb = service.couchdb.iter_mut().flat_map(|c| &mut c.password);
            let search = service.elasticsearch.iter_mut().flat_map(|e| e.password.iter_mut().chain(&mut e.api_key));
            let drill = service.drill.identity.iter_mut();
            couchdb.chain(search).chain(drill).for_each(secret::SecretRef::hold);
        }
    }
    /// The settings of a service's drills: its own, else the top-level ones.
    pub fn drill(&self, service: &Service) -> Drill {
        let (own, all) = (service.drill.clone(), self.drill.clone());
        Drill {
            scratch_dir: own.scratch_dir.or(all.scratch_dir),
            identity: own.identity.or(all.identity),
            keep: own.keep.or(all.keep),
        }
    }
    /// The name of this host: `host`, or the short host name in lower case, with `-` for what a name cannot hold.
    pub fn host_name(&self) -> Result<String> {
        if let Some(host) = &self.host {
            return Ok(host.clone());
        }
        let full = nix::unistd::gethostname().map_err(|e| {
            Error::io(e.into(), "could not ask for the host name").hint("set `host:` in the configuration.")
        })?;
        host_from(&full.to_string_lossy())
    }
    /// The greatest age the newest complete point of `cadence` may have: the service's, else `check.max_age`, else
    /// [`default_max_age`]. `None` for `manual`, which is never due.
    pub fn max_age(&self, service: &Service, cadence: Cadence) -> Option<Span> {
        let default = default_max_age(cadence)?;
        let set = service.max_age.get(&cadence).or_else(|| self.check.max_age.get(&cadence));
        Some(set.copied().unwrap_or(default))
    }
}

/// The limit of a cadence for which none is configured: its period and some room for the run itself and for a late
/// timer. `None` for `manual`.
pub const fn default_max_age(cadence: Cadence) -> Option<Span> {
    Some(Span::from_hours(match cadence {
        Cadence::Manual => return None,
        Cadence::Hourly => 3,
        Cadence::Daily => 50,
        Cadence::Weekly => 194,
        Cadence::Monthly => 33 * 24,
        Cadence::Yearly => 370 * 24,
    }))
}

fn host_from(full: &str) -> Result<String> {
    let short = full.split('.').next().unwrap_or_default();
    let name: String = short
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' })
        .take(63)
        .collect();
    if is_name(&name) {
        return Ok(name);
    }
    Err(Error::new(ErrorKind::Config, "this machine has no host name").hint("set `host:` in the configuration."))
}

impl JsonSchema for UsedDestination {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "UsedDestination".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let keep = generator.subschema_for::<Keep>();
        schemars::json_schema!({
            "description": "A destination as a service uses it.",
            "oneOf": [
                {"type": "string", "description": "Name under `destinations`."},
                {
                    "type": "object",
                    "properties": {
                        "name": {"type": "string", "description": "Name under `destinations`."},
                        "keep": {"description": "Overrides the service's `keep` there. Points of a lower cadence than the lowest one named here are not sent there.", "anyOf": [keep, {"type": "null"}]},
                    },
                    "required": ["name"],
                    "additionalProperties": false,
                },
            ]
        })
    }
}
