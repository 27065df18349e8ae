//! Names of the backups that commcare-cloud made: files in a directory, and keys at the top of a bucket.
//!
//! - dated: `<store>_<cadence>_<YYYY_MM_DD>[_<HH>]`, for PostgreSQL `postgres_<env>_<cadence>_...` too;
//! - undated, in a bucket that keeps versions: `<store>_<cadence>_<host>`.
//!
//! `<store>` is `postgres`, `couchdb` or `blobdb`; `.tar.gz` follows, or `.gz` for a dump of PostgreSQL.

use chrono::{DateTime, NaiveDate, Utc};

use crate::units::Cadence;

/// What a name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LegacyName {
    /// Kind of the source, as in the configuration.
    pub kind: &'static str,
    /// How often such a backup was made.
    pub cadence: Cadence,
    /// Whether it is a dump, and no archive.
    pub is_dump: bool,
    /// The day, and hour, in the name; local time of the host, taken for UTC.
    pub taken: Option<DateTime<Utc>>,
    /// The host in the name.
    pub host: Option<String>,
}

/// The first word of names, by kind of source.
const STORES: &[(&str, &str)] = &[("postgres", "postgres"), ("couchdb", "couchdb"), ("blobdir", "blobdb")];

/// What all names of a kind begin with; `None` for a kind of which there are none.
pub fn prefix(kind: &str) -> Option<String> {
    STORES.iter().find(|(k, _)| *k == kind).map(|(_, store)| format!("{store}_"))
}

/// Takes a name apart; `None` for any other name.
pub fn parse(name: &str) -> Option<LegacyName> {
    let (kind, rest) = STORES.iter().find_map(|(kind, store)| Some((*kind, name.strip_prefix(store)?)))?;
    let rest = rest.strip_prefix('_')?;
    let (rest, is_dump) = match rest.strip_suffix(".tar.gz") {
        Some(rest) => (rest, false),
        None => (rest.strip_suffix(".gz").filter(|_| kind == "postgres")?, true),
    };
    let words: Vec<&str> = rest.split('_').collect();
    // The name of an environment may hold `_` too: the last cadence counts.
    let at = words.iter().rposition(|w| ["hourly", "daily", "weekly"].contains(w))?;
    let cadence = words[at].parse().ok()?;
    let (env, tail) = (&words[..at], &words[at + 1..]);
    let plausible = env.is_empty() || kind == "postgres" && env.iter().all(|w| !w.is_empty());
    let taken = date(tail);
    let host = (taken.is_none() && env.is_empty()).then(|| host(tail)).flatten();
    let known = plausible && (taken.is_some() || host.is_some());
    known.then_some(LegacyName { kind, cadence, is_dump, taken, host })
}

fn date(words: &[&str]) -> Option<DateTime<Utc>> {
    let [year, month, day, hour @ ..] = words else { return None };
    if [4, 2, 2] != [year.len(), month.len(), day.len()] || hour.len() > 1 || hour.iter().any(|h| h.len() != 2) {
        return None;
    }
    let hour = hour.first().map_or(Ok(0), |h| h.parse()).ok()?;
    let day = NaiveDate::from_ymd_opt(year.parse().ok()?, month.parse().ok()?, day.parse().ok()?)?;
    Some(day.and_hms_opt(hour, 0, 0)?.and_utc())
}

fn host(words: &[&str]) -> Option<String> {
    let name = words.join("_");
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    (!name.is_empty() && plain).then_some(name)
}

impl LegacyName {
    /// Whether it may be of this host: a name without a host may be, and one is compared by its first label.
    pub fn may_be_of(&self, host: &str) -> bool {
        let Some(name) = self.host.as_deref().map(str::to_ascii_lowercase) else { return true };
        let first = name.split('.').next().unwrap_or_default();
        let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        host == plain(first) || host == plain(&name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dated_names_say_day_and_hour() {
        let of = |name: &str| parse(name).unwrap_or_else(|| panic!("{name}"));
        let name = of("postgres_production_daily_2025_03_09.tar.gz");
        assert_eq!((name.kind, name.cadence, name.is_dump), ("postgres", Cadence::Daily, false));
        assert_eq!(name.taken.unwrap().to_rfc3339(), "2025-03-09T00:00:00+00:00");
        let name = of("postgres_my_env_hourly_2025_03_09_15.gz");
        assert_eq!((name.cadence, name.is_dump), (Cadence::Hourly, true));
        assert_eq!(name.taken.unwrap().to_rfc3339(), "2025-03-09T15:00:00+00:00");
        assert_eq!(of("postgres_weekly_2025_03_09.tar.gz").kind, "postgres");
        assert_eq!(of("couchdb_weekly_2025_03_09.tar.gz").kind, "couchdb");
        assert_eq!(of("blobdb_hourly_2025_03_09_00.tar.gz").kind, "blobdir");
    }

    #[test]
    fn undated_names_say_the_host() {
        let name = parse("postgres_daily_DB1.example.com.tar.gz").unwrap();
        assert_eq!((name.taken, name.host.as_deref()), (None, Some("DB1.example.com")));
        assert!(name.may_be_of("db1") && !name.may_be_of("db2"));
        assert!(parse("couchdb_weekly_10.0.0.7.tar.gz").unwrap().may_be_of("10-0-0-7"));
        assert!(parse("blobdb_daily_2025_03_09.tar.gz").unwrap().may_be_of("anything"));
    }

    #[test]
    fn everything_else_is_not_legacy() {
        for name in [
            "",
            "postgres_production_daily_2026_11_20_000312",
            "postgres_production_daily_2025_13_09.tar.gz",
            "couchdb_daily_2025_03_09.gz",
            "couchdb_env_daily_2025_03_09.tar.gz",
            "postgres_daily_.tar.gz",
            "postgres_daily_db1/data.tar.gz",
            "postgres_daily_2026_11_20_000312/data.tar.gz",
            "postgres_test_daily_2026_11_20_000312/data.tar.gz",
            "postgres_env_daily_db1.tar.gz",
            "s3_backup_status.txt",
            "mysql_daily_2025_03_09.tar.gz",
        ] {
            assert_eq!(parse(name), None, "{name}");
        }
    }
}
