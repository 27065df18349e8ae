//! A year of hourly runs of `auto` with pruning, in time zones with summer time; a machine that was off; a wrong clock.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use backstay::calendar::Calendar;
use backstay::config::{Keep, WeekStart};
use backstay::manifest::State;
use backstay::plan::{due, next_id};
use backstay::retention::{Action, PointFacts, decide};
use backstay::units::Cadence;
use chrono::{DateTime, TimeDelta, Utc};

const KEEP: Keep = Keep { hourly: Some(24), daily: Some(7), weekly: Some(5), monthly: Some(12), yearly: Some(3) };

fn utc(s: &str) -> DateTime<Utc> {
    s.parse().unwrap()
}

/// A host with its points at one destination.
struct Host {
    calendar: Calendar,
    keep: Keep,
    points: Vec<PointFacts>,
    taken: BTreeMap<Cadence, u32>,
    removed: u32,
    ids: HashSet<String>,
}

impl Host {
    fn new(timezone: &str, keep: Keep) -> Self {
        let calendar = Calendar::new(timezone, WeekStart::Sunday).unwrap();
        Self { calendar, keep, points: Vec::new(), taken: BTreeMap::new(), removed: 0, ids: HashSet::new() }
    }

    /// One run: what is due is taken, then pruned. Checks what must hold after every run.
    fn run(&mut self, now: DateTime<Utc>) -> Option<Cadence> {
        let cadence = due(&self.calendar, self.keep.cadences(), &self.points, now)?;
        let id = next_id("files", None, cadence, now, |id| self.points.iter().any(|p| p.id == id));
        assert!(self.ids.insert(id.clone()), "{id} was used before");
        *self.taken.entry(cadence).or_default() += 1;
        self.points.push(PointFacts {
            id: id.clone(),
            cadence,
            started: now,
            state: State::Complete,
            agent_id: "own".to_owned(),
            foreign: false,
            base: None,
            proven: false,
        });
        let decisions = decide(&self.points, &self.keep, &self.calendar, now, "own");
        let gone: BTreeSet<&str> =
            decisions.iter().filter(|d| d.action == Action::Remove).map(|d| d.id.as_str()).collect();
        assert!(!gone.contains(id.as_str()), "the point just taken is removed: {decisions:?}");
        let before = self.points.len();
        self.points.retain(|p| !gone.contains(p.id.as_str()));
        self.removed += u32::try_from(before - self.points.len()).unwrap();
        assert_eq!(due(&self.calendar, self.keep.cadences(), &self.points, now), None, "one run satisfies all");
        Some(cadence)
    }

    fn run_hourly(&mut self, from: DateTime<Utc>, to: DateTime<Utc>) {
        let mut now = from;
        while now < to {
            self.run(now);
            now += TimeDelta::hours(1);
        }
    }

    /// `hourly daily weekly monthly yearly`.
    fn taken(&self) -> [u32; 5] {
        Cadence::CALENDAR.map(|c| self.taken.get(&c).copied().unwrap_or(0))
    }

    fn kept(&self) -> [usize; 5] {
        Cadence::CALENDAR.map(|c| self.points.iter().filter(|p| p.cadence == c).count())
    }

    fn newest(&self, cadence: Cadence) -> &str {
        let newest = self.points.iter().filter(|p| p.cadence == cadence).max_by_key(|p| p.started);
        newest.map_or("none", |p| p.id.as_str())
    }
}

/// 2026 in local time: 8760 hours, 365 days, 52 Sundays, 12 months.
fn local_year(timezone: &str, first: &str) -> Host {
    let mut host = Host::new(timezone, KEEP);
    let first = utc(first);
    host.run_hourly(first, first + TimeDelta::hours(8760));
    // The year's first run is yearly and stands for January, its week and its day. 3 of the other firsts of a month
    // are Sundays (February, March, November): 52 - 3 weekly ones are left.
    assert_eq!(host.taken(), [8760 - 365, 365 - 12 - 49, 49, 11, 1], "{timezone}");
    assert_eq!(host.kept(), [24, 7, 5, 11, 1], "{timezone}");
    host
}

#[test]
fn a_year_in_europe() {
    let host = local_year("Europe/Berlin", "2025-12-31T23:05:00Z");
    assert_eq!(host.newest(Cadence::Daily), "files_daily_2026_12_30_230500");
    assert_eq!(host.newest(Cadence::Weekly), "files_weekly_2026_12_26_230500");
    assert_eq!(host.newest(Cadence::Monthly), "files_monthly_2026_11_30_230500");
}

#[test]
fn a_year_in_america() {
    let host = local_year("America/New_York", "2026-01-01T05:00:00Z");
    assert_eq!(host.newest(Cadence::Daily), "files_daily_2026_12_31_050000");
}

/// Summer time is half an hour there.
#[test]
fn a_year_on_lord_howe_island() {
    let host = local_year("Australia/Lord_Howe", "2025-12-31T13:05:00Z");
    assert_eq!(host.newest(Cadence::Daily), "files_daily_2026_12_30_130500");
}

#[test]
fn nothing_is_due_twice_while_the_clock_repeats_an_hour() {
    let mut host = Host::new("Europe/Berlin", Keep { daily: Some(3), ..Keep::default() });
    let mut now = utc("2026-10-24T22:00:00Z");
    let mut days = Vec::new();
    while now < utc("2026-10-26T23:00:00Z") {
        if host.run(now).is_some() {
            days.push(now.to_rfc3339());
        }
        now += TimeDelta::minutes(10);
    }
    // The Sunday has 25 hours.
    assert_eq!(days, ["2026-10-24T22:00:00+00:00", "2026-10-25T23:00:00+00:00"]);
}

#[test]
fn a_machine_that_was_off_for_a_month() {
    let mut host = Host::new("Europe/Berlin", KEEP);
    host.run_hourly(utc("2026-01-01T00:05:00Z"), utc("2026-03-10T00:05:00Z"));
    let before: Vec<String> = host.points.iter().map(|p| p.id.clone()).collect();
    // The first run after it makes the one point that stands for month, week, day and hour, and evicts nothing: a
    // cadence is counted by periods that have a point, not by the calendar.
    assert_eq!(host.run(utc("2026-04-11T09:05:00Z")), Some(Cadence::Monthly));
    assert!(before.iter().all(|id| host.points.iter().any(|p| p.id == *id)));
    assert_eq!(host.run(utc("2026-04-11T09:35:00Z")), None);
    assert_eq!(host.run(utc("2026-04-11T10:05:00Z")), Some(Cadence::Hourly));
    host.run_hourly(utc("2026-04-11T11:05:00Z"), utc("2026-06-01T00:05:00Z"));
    // February to June: it is June already in Berlin.
    assert_eq!(host.kept(), [24, 7, 5, 5, 1]);
}

#[test]
fn a_clock_set_back_a_day() {
    let mut host = Host::new("UTC", Keep { daily: Some(2), weekly: Some(2), ..Keep::default() });
    host.run_hourly(utc("2026-05-01T00:05:00Z"), utc("2026-05-20T12:05:00Z"));
    let before: Vec<String> = host.points.iter().map(|p| p.id.clone()).collect();
    assert_eq!(host.kept(), [0, 2, 2, 0, 0]);
    // The point of the 20th is now from the future; the day before has its own.
    assert_eq!(host.run(utc("2026-05-19T12:05:00Z")), None);
    // Before the oldest point kept, a run takes one and evicts none of the future ones.
    assert_eq!(host.run(utc("2026-05-18T12:05:00Z")), Some(Cadence::Daily));
    assert!(before.iter().all(|id| host.points.iter().any(|p| p.id == *id)), "{:?}", host.points);
    // The clock is right again: the two newest days remain.
    assert_eq!(host.run(utc("2026-05-21T00:05:00Z")), Some(Cadence::Daily));
    assert_eq!(host.kept(), [0, 2, 2, 0, 0]);
    assert_eq!(host.newest(Cadence::Daily), "files_daily_2026_05_21_000500");
}

#[test]
fn a_clock_set_forward_a_year_and_back() {
    let mut host = Host::new("UTC", Keep { daily: Some(3), monthly: Some(2), ..Keep::default() });
    host.run_hourly(utc("2026-05-01T00:05:00Z"), utc("2026-05-20T12:05:00Z"));
    assert_eq!(host.kept(), [0, 3, 0, 1, 0]);
    host.run_hourly(utc("2027-05-20T12:05:00Z"), utc("2027-05-21T12:05:00Z"));
    // A month and a day that are still to come: two more points, which evicted nothing yet.
    assert_eq!(host.kept(), [0, 3, 0, 2, 0]);
    let ahead: Vec<String> =
        host.points.iter().filter(|p| p.started > utc("2027-01-01T00:00:00Z")).map(|p| p.id.clone()).collect();
    assert_eq!(ahead, ["files_monthly_2027_05_20_120500", "files_daily_2027_05_21_000500"]);
    // Back again: they satisfy nothing, evict nothing, and stay until their time has come.
    assert_eq!(host.run(utc("2026-05-20T13:05:00Z")), None);
    assert_eq!(host.run(utc("2026-05-21T00:05:00Z")), Some(Cadence::Daily));
    host.run_hourly(utc("2026-05-21T01:05:00Z"), utc("2027-05-01T00:05:00Z"));
    assert_eq!(host.kept(), [0, 3 + 1, 0, 2 + 1, 0]);
    assert!(ahead.iter().all(|id| host.points.iter().any(|p| p.id == *id)));
    host.run_hourly(utc("2027-05-01T00:05:00Z"), utc("2027-07-02T00:05:00Z"));
    assert_eq!(host.kept(), [0, 3, 0, 2, 0]);
    assert!(ahead.iter().all(|id| host.points.iter().all(|p| p.id != *id)));
}
