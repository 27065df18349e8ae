//! What is to be done now: calendar periods, the cadence that is due, the order of services, the id of a new point.
//!
//! All of it is pure: `now` is an argument, and points are what a catalogue has read. A period belongs to the
//! configured time zone. Hours are told apart by the UTC instant at which they began, so the hour that the clock shows
//! twice in autumn is two periods and the one that it skips in spring is none; days, weeks, months and years are
//! dates. A week belongs to the date of its first day and is not cut at the turn of the year.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, NaiveTime, TimeDelta, Timelike as _, Utc, Weekday};
use chrono_tz::Tz;

use crate::config::WeekStart;
use crate::error::{Error, ErrorKind, Result};
use crate::retention::{self, PointFacts};
use crate::units::Cadence;

/// In which time zone periods begin, and on which day weeks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    /// Time zone of hours, days, weeks, months and years.
    pub tz: Tz,
    /// First day of the week.
    pub week_start: WeekStart,
}

/// One calendar hour, day, week, month or year. Periods of one cadence are ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period {
    cadence: Cadence,
    /// Its first moment: UTC for hours and manual points, the wall clock of the time zone for the others.
    start: NaiveDateTime,
}

impl Calendar {
    /// A calendar in the named time zone, such as `Europe/Berlin`.
    ///
    /// # Errors
    /// `Config` for a name that is not in the IANA time zone database.
    pub fn new(timezone: &str, week_start: WeekStart) -> Result<Self> {
        let tz = timezone.parse().map_err(|_| {
            Error::new(ErrorKind::Config, format!("no such time zone: {timezone:?}"))
                .hint("use a name of the IANA database, such as UTC or Europe/Berlin.")
        })?;
        Ok(Self { tz, week_start })
    }

    /// The period of `cadence` in which `at` lies. Each manual point is a period of its own.
    pub fn period(&self, cadence: Cadence, at: DateTime<Utc>) -> Period {
        let local = at.with_timezone(&self.tz);
        let date = local.date_naive();
        let first = match cadence {
            Cadence::Manual => return Period { cadence, start: at.naive_utc() },
            Cadence::Hourly => {
                let into = i64::from(local.minute() * 60 + local.second());
                let start = DateTime::from_timestamp(at.timestamp() - into, 0).unwrap_or(at);
                return Period { cadence, start: start.naive_utc() };
            }
            Cadence::Daily => Some(date),
            Cadence::Weekly => date.week(self.first_weekday()).checked_first_day(),
            Cadence::Monthly => date.with_day(1),
            Cadence::Yearly => NaiveDate::from_ymd_opt(date.year(), 1, 1),
        };
        Period { cadence, start: first.unwrap_or(date).and_time(NaiveTime::MIN) }
    }

    fn first_weekday(&self) -> Weekday {
        match self.week_start {
            WeekStart::Sunday => Weekday::Sun,
            WeekStart::Monday => Weekday::Mon,
        }
    }
}

impl Period {
    /// For which cadence it is.
    pub fn cadence(&self) -> Cadence {
        self.cadence
    }
}

/// `2026-11-20 03:00Z`, `2026-11-20`, `week of 2026-11-15`, `2026-11`, `2026`.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.cadence {
            Cadence::Manual => "%Y-%m-%d %H:%M:%SZ",
            Cadence::Hourly => "%Y-%m-%d %H:%MZ",
            Cadence::Daily => "%Y-%m-%d",
            Cadence::Weekly => "week of %Y-%m-%d",
            Cadence::Monthly => "%Y-%m",
            Cadence::Yearly => "%Y",
        };
        write!(f, "{}", self.start.format(form))
    }
}

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

    fn utc(s: &str) -> DateTime<Utc> {
        s.parse().unwrap()
    }
    fn calendar(tz: &str, week_start: WeekStart) -> Calendar {
        Calendar::new(tz, week_start).unwrap()
    }

    #[test]
    fn weeks_begin_on_the_configured_day_and_are_not_cut_at_new_year() {
        let sunday = calendar("UTC", WeekStart::Sunday);
        let monday = calendar("UTC", WeekStart::Monday);
        let of = |c: &Calendar, s| c.period(Cadence::Weekly, utc(s)).to_string();
        assert_eq!(of(&sunday, "2026-12-31T10:00:00Z"), "week of 2026-12-27");
        assert_eq!(of(&sunday, "2027-01-02T23:59:59Z"), "week of 2026-12-27");
        assert_eq!(of(&sunday, "2027-01-03T00:00:00Z"), "week of 2027-01-03");
        assert_eq!(of(&monday, "2027-01-03T23:59:59Z"), "week of 2026-12-28");
        assert_eq!(of(&monday, "2027-01-04T00:00:00Z"), "week of 2027-01-04");
    }

    #[test]
    fn hours_that_the_clock_shows_twice_are_two_periods() {
        let berlin = calendar("Europe/Berlin", WeekStart::Sunday);
        let hour = |s| berlin.period(Cadence::Hourly, utc(s));
        assert_ne!(hour("2026-10-25T00:30:00Z"), hour("2026-10-25T01:30:00Z"));
        assert!(hour("2026-10-25T00:30:00Z") < hour("2026-10-25T01:30:00Z"));
        // Half an hour is repeated on Lord Howe Island: 01:30 to 02:00.
        let howe = calendar("Australia/Lord_Howe", WeekStart::Sunday);
        let hour = |s| howe.period(Cadence::Hourly, utc(s)).to_string();
        assert_eq!(hour("2026-04-04T14:59:00Z"), "2026-04-04 14:00Z");
        assert_eq!(hour("2026-04-04T15:01:00Z"), "2026-04-04 14:30Z");
        assert_eq!(hour("2026-04-04T15:31:00Z"), "2026-04-04 15:30Z");
    }

    #[test]
    fn days_are_those_of_the_time_zone() {
        let berlin = calendar("Europe/Berlin", WeekStart::Sunday);
        assert_eq!(berlin.period(Cadence::Daily, utc("2026-11-20T23:30:00Z")).to_string(), "2026-11-21");
        assert_eq!(berlin.period(Cadence::Monthly, utc("2026-11-30T23:30:00Z")).to_string(), "2026-12");
        assert_eq!(berlin.period(Cadence::Yearly, utc("2026-12-31T23:30:00Z")).to_string(), "2027");
        assert!(Calendar::new("Europe/Berlln", WeekStart::Sunday).is_err());
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
