//! Where points lie at a destination: the key styles, as pure functions of names.
//!
//! - `Local`: `<id>/...` directly in the service's `backup_dir`.
//! - `Timestamped`: `<prefix>/<host>/<service>/<id>/...`: unique keys, for any store.
//! - `Versioned`: `<prefix>/<service>_<cadence>_<host>/...`: fixed keys; the bucket's versions are the history.

use chrono::{DateTime, NaiveDateTime, Utc};

use crate::destination::PutMode;
use crate::units::{Cadence, is_name};

pub mod legacy;

/// Name of the status file in a `backup_dir`.
pub const STATUS_FILE: &str = "s3_backup_status.txt";

/// How keys are made at one destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Folders directly in the root.
    Local,
    /// Unique keys below this prefix.
    Timestamped {
        /// First part of keys, without slashes at its ends; may be empty.
        prefix: String,
    },
    /// Fixed keys below this prefix.
    Versioned {
        /// First part of keys, without slashes at its ends; may be empty.
        prefix: String,
    },
}

/// The folder of the records of drills.
pub const DRILLS: &str = "drills";

fn join(prefix: &str, rest: &str) -> String {
    if prefix.is_empty() { rest.to_owned() } else { format!("{prefix}/{rest}") }
}

impl Layout {
    /// Whether keys are used again and again.
    pub fn is_versioned(&self) -> bool {
        matches!(self, Self::Versioned { .. })
    }
    /// How artefacts are put.
    pub fn put_mode(&self) -> PutMode {
        if self.is_versioned() { PutMode::Versioned } else { PutMode::WriteOnce }
    }
    /// The folder of a point, without a slash at its end.
    pub fn folder(&self, host: &str, service: &str, cadence: Cadence, id: &str) -> String {
        match self {
            Self::Local => id.to_owned(),
            Self::Timestamped { prefix } => join(prefix, &format!("{host}/{service}/{id}")),
            Self::Versioned { prefix } => join(prefix, &format!("{service}_{cadence}_{host}")),
        }
    }
    /// Prefixes (empty, or ending in a slash) below which all objects of a service lie.
    pub fn roots(&self, host: &str, service: &str) -> Vec<String> {
        match self {
            Self::Local => vec![String::new()],
            Self::Timestamped { prefix } => vec![join(prefix, &format!("{host}/{service}/"))],
            Self::Versioned { prefix } => [Cadence::Manual]
                .iter()
                .chain(&Cadence::CALENDAR)
                .map(|c| join(prefix, &format!("{service}_{c}_{host}/")))
                .collect(),
        }
    }
    /// The prefix, ending in a slash, of the records of drills; `Local` has none: they are in the agent's state.
    pub fn drills(&self, host: &str, service: &str) -> Option<String> {
        match self {
            Self::Local => None,
            Self::Timestamped { prefix } => Some(join(prefix, &format!("{host}/{service}/{DRILLS}/"))),
            Self::Versioned { prefix } => Some(join(prefix, &format!("{service}_{DRILLS}_{host}/"))),
        }
    }
    /// The key of the text that says what lies there of a host.
    pub fn readme(&self, host: &str) -> String {
        match self {
            Self::Local => "README".to_owned(),
            Self::Timestamped { prefix } => join(prefix, &format!("{host}/README")),
            Self::Versioned { prefix } => join(prefix, &format!("README_{host}")),
        }
    }
    /// The prefix below which hosts are found (`Local` has none).
    pub fn hosts_root(&self) -> Option<String> {
        match self {
            Self::Local => None,
            Self::Timestamped { prefix } | Self::Versioned { prefix } => Some(join(prefix, "")),
        }
    }
}

/// Host and service of a folder `<service>_<cadence>_<host>` of the versioned style.
pub fn parse_versioned_folder(name: &str) -> Option<(String, String)> {
    let mut parts = name.split('_');
    let (service, cadence, host) = (parts.next()?, parts.next()?, parts.next()?);
    let known = parts.next().is_none() && is_name(service) && is_name(host) && cadence.parse::<Cadence>().is_ok();
    known.then(|| (host.to_owned(), service.to_owned()))
}

/// What an id says. Ids are for people; this serves to recognise our own folders, never to select.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdParts {
    /// The service's name.
    pub service: String,
    /// The environment.
    pub environment: Option<String>,
    /// The cadence.
    pub cadence: Cadence,
    /// The start of the run, to the second.
    pub started: DateTime<Utc>,
}

/// Takes an id `<service>_<env>_<cadence>_<YYYY_MM_DD>_<HHMMSS>` apart.
pub fn parse_id(id: &str) -> Option<IdParts> {
    let parts: Vec<&str> = id.split('_').collect();
    let (names, time) = parts.split_at_checked(parts.len().checked_sub(4)?)?;
    if [4, 2, 2, 6] != [time[0].len(), time[1].len(), time[2].len(), time[3].len()] {
        return None;
    }
    let started = NaiveDateTime::parse_from_str(&time.join(""), "%Y%m%d%H%M%S").ok()?.and_utc();
    let (service, environment, cadence) = match names {
        [service, cadence] => (service, None, cadence),
        [service, env, cadence] => (service, Some((*env).to_owned()), cadence),
        _ => return None,
    };
    let named = is_name(service) && environment.as_deref().is_none_or(is_name);
    let cadence = cadence.parse().ok()?;
    named.then(|| IdParts { service: (*service).to_owned(), environment, cadence, started })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_taken_apart_and_anything_else_is_foreign() {
        let parts = parse_id("postgres_production_daily_2026_11_20_000312").unwrap();
        assert_eq!(parts.service, "postgres");
        assert_eq!(parts.environment.as_deref(), Some("production"));
        assert_eq!(parts.cadence, Cadence::Daily);
        assert_eq!(parts.started.to_rfc3339(), "2026-11-20T00:03:12+00:00");
        assert_eq!(parse_id("blobs_weekly_2026_11_20_000312").unwrap().environment, None);
        for foreign in
            ["", "lost+found", "postgres_daily_2026_13_20_000312", "postgres_production_daily_2026_11_20.tar.gz"]
        {
            assert_eq!(parse_id(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn versioned_folders_name_service_and_host() {
        assert_eq!(parse_versioned_folder("pg_daily_db1"), Some(("db1".into(), "pg".into())));
        assert_eq!(parse_versioned_folder("pg_fortnightly_db1"), None);
    }
}
