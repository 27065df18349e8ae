//! What a check found, as a file for the textfile collector of Prometheus' node_exporter.
//!
//! Times, not ages: an age in a file that nobody writes any more would look fresh for ever. The limit stands beside
//! each time, so that one alerting rule serves all services.

use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use chrono::{DateTime, Utc};

use super::Checked;
use crate::error::{Error, Result};
use crate::freshness::State;

/// The text of the file.
pub fn text(checked: &[Checked], now: DateTime<Utc>) -> String {
    let mut out = String::new();
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    family(&mut out, "build_info", "The agent that checked.", &[(version, 1)]);
    let check = vec![(String::new(), now.timestamp())];
    family(&mut out, "check_timestamp_seconds", "When the check was made.", &check);
    let states: Vec<_> = checked.iter().map(|c| (labels(c), number(c.freshness.state))).collect();
    family(&mut out, "check_state", "0 fresh, 2 alert, 3 unknown, as the exit code of check-s3.", &states);
    let (mut newest, mut limit, mut stored) = (Vec::new(), Vec::new(), Vec::new());
    for one in checked {
        for line in &one.freshness.lines {
            let Some(cadence) = line.cadence else { continue };
            let labels = format!("{},cadence=\"{cadence}\"", labels(one));
            newest.extend(line.age_seconds.map(|age| (labels.clone(), now.timestamp() - age)));
            limit.extend(line.limit_seconds.map(|s| (labels, i64::try_from(s).unwrap_or(i64::MAX))));
        }
        let bytes = one.freshness.last_good.as_ref().map(|p| i64::try_from(p.stored_bytes).unwrap_or(i64::MAX));
        stored.extend(bytes.map(|bytes| (labels(one), bytes)));
    }
    let help = "Start of the newest complete restore point of this cadence or a higher one.";
    family(&mut out, "newest_point_timestamp_seconds", help, &newest);
    family(&mut out, "max_age_seconds", "The greatest age that its newest restore point may have.", &limit);
    family(&mut out, "newest_point_stored_bytes", "Stored size of the newest complete restore point.", &stored);
    out
}

fn family(out: &mut String, name: &str, help: &str, samples: &[(String, i64)]) {
    if samples.is_empty() {
        return;
    }
    // Writing to a string does not fail.
    let _ = writeln!(out, "# HELP backstay_{name} {help}\n# TYPE backstay_{name} gauge");
    for (labels, value) in samples {
        let _ = match labels.is_empty() {
            true => writeln!(out, "backstay_{name} {value}"),
            false => writeln!(out, "backstay_{name}{{{labels}}} {value}"),
        };
    }
}

/// Names hold only what needs no escaping; texts such as "all hosts" hold spaces, which need none either.
fn labels(one: &Checked) -> String {
    format!("host=\"{}\",service=\"{}\",destination=\"{}\"", one.host, one.service, one.destination)
}

fn number(state: State) -> i64 {
    match state {
        State::Ok => 0,
        State::Alert => 2,
        State::Unknown => 3,
    }
}

/// Writes the file whole or not at all, readable by all.
pub fn write(path: &Path, checked: &[Checked], now: DateTime<Utc>) -> Result<()> {
    let failed = |e| {
        Error::io(e, format!("could not write {}", path.display()))
            .hint("`check.metrics_file` must lie in a directory that exists; run as root.")
    };
    let dir = path.parent().unwrap_or(Path::new("/"));
    // The collector reads every name that ends in `.prom`.
    let mut file = tempfile::Builder::new().prefix(".backstay-").suffix(".tmp").tempfile_in(dir).map_err(failed)?;
    file.write_all(text(checked, now).as_bytes()).map_err(failed)?;
    file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).map_err(failed)?;
    file.persist(path).map_err(|e| failed(e.error)).map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::freshness::{self, SeenPoint, Watched};
    use crate::manifest;
    use crate::units::{Cadence, Span};

    fn at(hour: u32) -> DateTime<Utc> {
        format!("2026-11-20T{hour:02}:00:00Z").parse().unwrap()
    }

    #[test]
    fn times_limits_and_states_are_told_and_the_file_is_for_all() {
        let point = SeenPoint {
            id: "x".into(),
            cadence: Cadence::Daily,
            started: at(1),
            stored_bytes: 42,
            state: manifest::State::Complete,
            missing: Vec::new(),
            base: None,
        };
        let watched = Watched { host: "db1", service: "postgres", destination: "offsite" };
        let limits = BTreeMap::from([(Cadence::Daily, Span::from_hours(50))]);
        let judged = |points: &[SeenPoint]| Checked {
            host: "db1".into(),
            service: "postgres".into(),
            destination: "offsite".into(),
            beyond_rto: false,
            max_drill_age_seconds: None,
            proven_age_seconds: None,
            freshness: freshness::judge(&watched, points, [Cadence::Daily], &limits, at(3)),
        };
        let labels = "host=\"db1\",service=\"postgres\",destination=\"offsite\"";
        let text = text(&[judged(&[point])], at(3));
        for line in [
            format!("backstay_check_timestamp_seconds {}", at(3).timestamp()),
            format!("backstay_check_state{{{labels}}} 0"),
            format!("backstay_newest_point_timestamp_seconds{{{labels},cadence=\"daily\"}} {}", at(1).timestamp()),
            format!("backstay_max_age_seconds{{{labels},cadence=\"daily\"}} 180000"),
            format!("backstay_newest_point_stored_bytes{{{labels}}} 42"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
        }
        let none = super::text(&[judged(&[])], at(3));
        assert!(none.contains(&format!("backstay_check_state{{{labels}}} 2")), "{none}");
        assert!(!none.contains("newest_point_timestamp"), "no time stands for \"never\":\n{none}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backstay.prom");
        write(&path, &[judged(&[])], at(3)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }
}
