//! What the server and its client programs say about themselves.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::Postgres;
use super::connect::judge;
use crate::config::PostgresMethod;
use crate::error::{Error, ErrorKind, Result};
use crate::exec::Program;
use crate::source::{Context, Probe};

/// The oldest server that is backed up.
const OLDEST: u32 = 130_000;

/// Answers of one query; what the role may not see is absent.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Server {
    pub(super) version: String,
    pub(super) in_recovery: bool,
    pub(super) data_directory: Option<PathBuf>,
    pub(super) config_file: Option<PathBuf>,
    pub(super) hba_file: Option<PathBuf>,
    pub(super) ident_file: Option<PathBuf>,
    pub(super) checksums: Option<String>,
    pub(super) system_identifier: Option<String>,
    #[serde(default)]
    pub(super) tablespaces: Vec<Tablespace>,
    #[serde(default)]
    pub(super) databases: Vec<Size>,
}

/// One tablespace; `location` is empty for the two that lie in the data directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Tablespace {
    pub(super) tablespace: String,
    pub(super) oid: u32,
    pub(super) location: String,
    pub(super) bytes: Option<u64>,
}

/// One database and its size.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Size {
    pub(super) database: String,
    pub(super) bytes: Option<u64>,
}

const FACTS: &str = "select json_build_object(
 'version', current_setting('server_version'),
 'in_recovery', pg_is_in_recovery(),
 'data_directory', (select setting from pg_settings where name = 'data_directory'),
 'config_file', (select setting from pg_settings where name = 'config_file'),
 'hba_file', (select setting from pg_settings where name = 'hba_file'),
 'ident_file', (select setting from pg_settings where name = 'ident_file'),
 'checksums', current_setting('data_checksums'),
 'system_identifier', (select system_identifier::text from pg_control_system()),
 'tablespaces', (select json_agg(json_build_object('tablespace', spcname, 'oid', oid::bigint, 'location',
   pg_tablespace_location(oid), 'bytes', case when pg_has_role('pg_read_all_stats', 'member')
   or has_tablespace_privilege(oid, 'create') then pg_tablespace_size(oid) end) order by oid) from pg_tablespace),
 'databases', (select json_agg(json_build_object('database', datname, 'bytes',
   case when pg_has_role('pg_read_all_stats', 'member') or has_database_privilege(oid, 'connect')
   then pg_database_size(oid) end) order by datname) from pg_database))";

impl Server {
    /// Tablespaces outside the data directory.
    pub(super) fn outside(&self) -> impl Iterator<Item = &Tablespace> {
        self.tablespaces.iter().filter(|t| !t.location.is_empty())
    }
    /// Sum of what the role may see.
    pub(super) fn bytes(&self) -> u64 {
        self.tablespaces.iter().filter_map(|t| t.bytes).sum()
    }
    /// Facts for the manifest.
    pub(super) fn attributes(&self) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::from([("from_standby".to_owned(), self.in_recovery.to_string())]);
        facts.insert("tablespaces".into(), self.outside().count().to_string());
        facts.extend(self.system_identifier.clone().map(|v| ("system_identifier".into(), v)));
        facts.extend(self.checksums.clone().map(|v| ("data_checksums".into(), v)));
        facts.extend(self.data_directory.as_ref().map(|v| ("data_directory".into(), v.display().to_string())));
        facts
    }
}

impl Postgres {
    /// Asks the server, and refuses one that is too old or newer than the client programs.
    pub(super) async fn server(&self, cx: &Context) -> Result<Server> {
        let number: u32 =
            self.query(cx, &self.config.database, "select current_setting('server_version_num')::int").await?;
        if number < OLDEST {
            let message = format!("the server has version {}.{}: too old", number / 10_000, number / 100 % 100);
            return Err(Error::new(ErrorKind::Refused, message)
                .hint("upgrade PostgreSQL to 13 or newer: older copies have no backup manifest to check them with."));
        }
        let client = self.client_major(cx).await?;
        if client < number / 10_000 {
            let message = format!("{} has version {client}, the server {}", self.main_tool(), number / 10_000);
            return Err(Error::new(ErrorKind::Config, message)
                .hint("install the client programs of the server's version, or set bin_dir."));
        }
        self.query(cx, &self.config.database, FACTS).await
    }

    fn main_tool(&self) -> &'static str {
        match self.config.method {
            PostgresMethod::Plain => "pg_basebackup",
            PostgresMethod::Dump => "pg_dumpall",
            PostgresMethod::Databases => "pg_dump",
        }
    }

    async fn client_major(&self, cx: &Context) -> Result<u32> {
        let name = self.main_tool();
        let (out, ended) = Program::new(self.tool(name)).arg("--version").collect(&cx.cancel, 4096).await?;
        judge(&ended, name)?;
        let text = String::from_utf8_lossy(&out);
        let digits =
            text.rsplit_once(") ").map(|(_, v)| v.chars().take_while(char::is_ascii_digit).collect::<String>());
        digits.and_then(|d| d.parse().ok()).ok_or_else(|| {
            Error::new(ErrorKind::Config, format!("{name} --version says {:?}", text.trim()))
                .hint("set bin_dir to the directory of PostgreSQL's own programs.")
        })
    }

    /// The answer of `probe`.
    pub(super) async fn ask(&self, cx: &Context) -> Result<Probe> {
        let server = self.server(cx).await?;
        let mut warnings = Vec::new();
        if server.checksums.as_deref() == Some("off") && self.config.method == PostgresMethod::Plain {
            warnings.push("data checksums are off: a damaged page is copied without being noticed".to_owned());
        }
        if server.in_recovery && self.config.method != PostgresMethod::Plain {
            warnings.push("the server is a standby: a long dump may be cancelled by replication conflicts".to_owned());
        }
        let bytes = server.bytes();
        Ok(Probe { server_version: Some(server.version), estimated_bytes: (bytes > 0).then_some(bytes), warnings })
    }
}
