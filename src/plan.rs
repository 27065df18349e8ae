//! What is to be done now: the cadence that is due, the order of services, the id of a new point.
//!
//! All of it is pure: `now` is an argument, and points are what a catalogue has read.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};

use crate::calendar::Calendar;
use crate::error::{Error, ErrorKind, Result};
use crate::retention::{self, PointFacts};
use crate::units::Cadence;

/// What `auto` means now: the highest enabled cadence whose current period has no complete point; `None` = nothing is
/// due.
///
/// A point of a higher cadence satisfies the lower ones. Points that are suspect, unreadable, from the future or built
/// on a point that is not there satisfy nothing, and neither do manual ones: they are no part of the calendar.
pub fn due(
    calendar: &Calendar,
    enabled: impl IntoIterator<Item = Cadence>,
    points: &[PointFacts],
    now: DateTime<Utc>,
) -> Option<Cadence> {
    let sound = retention::sound(points);
    let satisfied = |cadence: Cadence| {
        let current = calendar.period(cadence, now);
        points.iter().zip(&sound).any(|(p, sound)| {
            *sound
                && p.cadence >= cadence
                && !retention::is_future(p.started, now)
                && calendar.period(cadence, p.started) == current
        })
    };
    enabled.into_iter().filter(|c| *c != Cadence::Manual && !satisfied(*c)).max()
}

/// The services of one run in an order in which each goes after those it names in `after`; otherwise as given.
///
/// A service that is named but not part of the run is not waited for, yet it still passes on what it waits for itself.
///
/// # Errors
/// `Config` when services wait for each other.
pub fn order(names: &[String], after: &BTreeMap<String, Vec<String>>) -> Result<Vec<String>> {
    let mut walk = Walk { selected: names.iter().map(String::as_str).collect(), after, ..Walk::default() };
    for name in names {
        walk.visit(name)?;
    }
    Ok(walk.sorted)
}

const NOTHING: &BTreeMap<String, Vec<String>> = &BTreeMap::new();

struct Walk<'a> {
    selected: HashSet<&'a str>,
    after: &'a BTreeMap<String, Vec<String>>,
    done: HashSet<&'a str>,
    path: Vec<&'a str>,
    sorted: Vec<String>,
}

impl Default for Walk<'_> {
    fn default() -> Self {
        Self { selected: HashSet::new(), after: NOTHING, done: HashSet::new(), path: Vec::new(), sorted: Vec::new() }
    }
}

impl<'a> Walk<'a> {
    fn visit(&mut self, name: &'a str) -> Result<()> {
        if self.done.contains(name) {
            return Ok(());
        }
        if let Some(at) = self.path.iter().position(|p| *p == name) {
            let circle: Vec<&str> = self.path[at..].iter().copied().chain([name]).collect();
            return Err(Error::new(
                ErrorKind::Config,
                format!("services wait for each other: {}", circle.join(" after ")),
            )
            .hint("remove one of these names from `after`."));
        }
        self.path.push(name);
        for earlier in self.after.get(name).into_iter().flatten() {
            self.visit(earlier)?;
        }
        self.path.pop();
        self.done.insert(name);
        if self.selected.contains(name) {
            self.sorted.push(name.to_owned());
        }
        Ok(())
    }
}

/// The id of a new point: `<service>_<env>_<cadence>_<YYYY_MM_DD>_<HHMMSS>` in UTC, without the environment if there
/// is none. A taken id (same second, clock set back) takes the next free second.
pub fn next_id(
    service: &str,
    environment: Option<&str>,
    cadence: Cadence,
    now: DateTime<Utc>,
    taken: impl Fn(&str) -> bool,
) -> String {
    let environment = environment.map(|e| format!("_{e}")).unwrap_or_default();
    let mut at = now;
    loop {
        let id = format!("{service}{environment}_{cadence}_{}", at.format("%Y_%m_%d_%H%M%S"));
        if !taken(&id) {
            return id;
        }
        at += TimeDelta::seconds(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::WeekStart;

    fn utc(s: &str) -> DateTime<Utc> {
        s.parse().unwrap()
    }
    fn calendar(tz: &str, week_start: WeekStart) -> Calendar {
        Calendar::new(tz, week_start).unwrap()
    }

    #[test]
    fn what_satisfies_a_period() {
        use crate::manifest::State;
        let now = utc("2026-11-20T12:00:00Z");
        let point = |cadence, started: &str| PointFacts {
            id: "p".to_owned(),
            cadence,
            started: utc(started),
            state: State::Complete,
            agent_id: "own".to_owned(),
            foreign: false,
            base: None,
            proven: false,
        };
        let utc_calendar = calendar("UTC", WeekStart::Sunday);
        let due = |p: PointFacts| due(&utc_calendar, [Cadence::Daily, Cadence::Monthly], &[p], now);
        let today = "2026-11-20T00:00:00Z";
        assert_eq!(due(point(Cadence::Monthly, today)), None);
        assert_eq!(due(point(Cadence::Yearly, today)), None);
        assert_eq!(due(point(Cadence::Monthly, "2026-11-19T23:59:59Z")), Some(Cadence::Daily));
        assert_eq!(due(point(Cadence::Daily, today)), Some(Cadence::Monthly));
        assert_eq!(due(point(Cadence::Manual, today)), Some(Cadence::Monthly));
        // Later in the same day and month.
        assert_eq!(due(point(Cadence::Monthly, "2026-11-20T12:05:00Z")), None);
        assert_eq!(due(point(Cadence::Monthly, "2026-11-20T12:05:01Z")), Some(Cadence::Monthly));
        let monthly = point(Cadence::Monthly, today);
        assert_eq!(due(PointFacts { state: State::Suspect, ..monthly.clone() }), Some(Cadence::Monthly));
        assert_eq!(due(PointFacts { foreign: true, ..monthly.clone() }), Some(Cadence::Monthly));
        assert_eq!(due(PointFacts { base: Some("gone".to_owned()), ..monthly }), Some(Cadence::Monthly));
    }

    #[test]
    fn services_go_after_those_they_name() {
        let names = |s: &str| s.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let after = |pairs: &[(&str, &str)]| pairs.iter().map(|(n, a)| ((*n).to_owned(), names(a))).collect();
        assert_eq!(order(&names("b a c"), &BTreeMap::new()).unwrap(), names("b a c"));
        assert_eq!(order(&names("blobdb couch pg"), &after(&[("blobdb", "pg")])).unwrap(), names("pg blobdb couch"));
        assert_eq!(order(&names("c a"), &after(&[("c", "b"), ("b", "a")])).unwrap(), names("a c"));
        let err = order(&names("a b"), &after(&[("a", "b"), ("b", "a")])).unwrap_err();
        assert_eq!(err.message, "services wait for each other: a after b after a");
    }

    #[test]
    fn a_taken_id_takes_the_next_free_second() {
        let now = utc("2026-11-20T23:59:58.900Z");
        let id = |env, taken: &[&str]| next_id("postgres", env, Cadence::Daily, now, |i| taken.contains(&i));
        assert_eq!(id(None, &[]), "postgres_daily_2026_11_20_235958");
        let first = "postgres_production_daily_2026_11_20_235958";
        let second = "postgres_production_daily_2026_11_20_235959";
        assert_eq!(id(Some("production"), &[]), first);
        assert_eq!(id(Some("production"), &[first, second]), "postgres_production_daily_2026_11_21_000000");
    }
}
