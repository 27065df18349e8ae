//! Retention: golden cases (points + policy + now -> decisions with reasons) and properties.
//!
//! A point is written `id cadence started [suspect] [foreign] [agent=..] [base=..]`, a decision `+id reason` or
//! `-id reason`.

use std::collections::BTreeMap;

use backstay::calendar::Calendar;
use backstay::config::{Keep, WeekStart};
use backstay::manifest::State;
use backstay::retention::{Action, Decision, PointFacts, decide, is_future, sound};
use backstay::units::Cadence;
use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;

const OWN: &str = "own";

fn utc(s: &str) -> DateTime<Utc> {
    let s = if s.contains('T') { s.to_owned() } else { format!("{s}T00:00:00") };
    format!("{s}Z").parse().unwrap()
}

fn calendar() -> Calendar {
    Calendar::new("UTC", WeekStart::Sunday).unwrap()
}

fn keep(text: &str) -> Keep {
    let map: BTreeMap<&str, u32> =
        text.split_whitespace().map(|p| p.split_once('=').unwrap()).map(|(c, n)| (c, n.parse().unwrap())).collect();
    serde_json::from_value(serde_json::to_value(map).unwrap()).unwrap()
}

fn points(text: &str) -> Vec<PointFacts> {
    let point = |line: &str| {
        let mut words = line.split_whitespace();
        let mut p = PointFacts {
            id: words.next().unwrap().to_owned(),
            cadence: words.next().unwrap().parse().unwrap(),
            started: utc(words.next().unwrap()),
            state: State::Complete,
            agent_id: OWN.to_owned(),
            foreign: false,
            base: None,
            proven: false,
        };
        for word in words {
            match word.split_once('=') {
                None if word == "suspect" => p.state = State::Suspect,
                None if word == "foreign" => p.foreign = true,
                Some(("agent", id)) => p.agent_id = id.to_owned(),
                Some(("base", id)) => p.base = Some(id.to_owned()),
                _ => panic!("what is {word:?}?"),
            }
        }
        p
    };
    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(point).collect()
}

fn show(decisions: &[Decision]) -> String {
    let sign = |a| if a == Action::Keep { '+' } else { '-' };
    decisions.iter().map(|d| format!("{}{} {}\n", sign(d.action), d.id, d.reason)).collect()
}

fn golden(now: &str, policy: &str, given: &str, expected: &str) {
    let shown = show(&decide(&points(given), &keep(policy), &calendar(), utc(now), OWN));
    let expected: String =
        expected.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| format!("{l}\n")).collect();
    assert_eq!(shown, expected);
}

#[test]
fn the_newest_days_are_kept() {
    golden(
        "2026-11-20T12:00:00",
        "daily=3",
        "a daily 2026-11-16
         b daily 2026-11-17
         c daily 2026-11-18
         d daily 2026-11-19
         e daily 2026-11-20",
        "-a older than the 3 daily periods kept
         -b older than the 3 daily periods kept
         +c daily 3 of 3
         +d daily 2 of 3
         +e daily 1 of 3",
    );
}

#[test]
fn fewer_than_wanted_are_all_kept() {
    golden("2026-11-20T12:00:00", "daily=3", "a daily 2026-11-19", "+a daily 1 of 3");
}

#[test]
fn nothing_to_decide() {
    golden("2026-11-20", "daily=3", "", "");
}

#[test]
fn periods_without_a_point_do_not_count() {
    golden(
        "2026-11-20T12:00:00",
        "daily=2",
        "a daily 2026-01-01
         b daily 2026-05-01
         c daily 2026-11-20",
        "-a older than the 2 daily periods kept
         +b daily 2 of 2
         +c daily 1 of 2",
    );
}

#[test]
fn runs_of_one_period_evict_no_other_period() {
    golden(
        "2026-11-20T12:00:00",
        "daily=2",
        "a daily 2026-11-19T01:00:00
         b daily 2026-11-20T01:00:00
         c daily 2026-11-20T02:00:00
         d daily 2026-11-20T03:00:00",
        "+a daily 2 of 2
         -b superseded by d in the same day
         -c superseded by d in the same day
         +d daily 1 of 2",
    );
}

#[test]
fn each_cadence_counts_its_own() {
    golden(
        "2026-11-20T12:00:00",
        "hourly=1 daily=1 weekly=1 monthly=1 yearly=1",
        "y yearly 2026-01-01
         m monthly 2026-11-01
         w weekly 2026-11-15
         x daily 2026-11-19
         d daily 2026-11-20
         g hourly 2026-11-20T10:00:00
         h hourly 2026-11-20T11:00:00",
        "+y yearly 1 of 1
         +m monthly 1 of 1
         +w weekly 1 of 1
         -x older than the 1 daily period kept
         +d daily 1 of 1
         -g older than the 1 hourly period kept
         +h hourly 1 of 1",
    );
}

#[test]
fn manual_points_stay_and_count_for_nothing() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1",
        "a manual 2020-01-01
         b manual 2026-11-20T01:00:00 suspect
         c daily 2026-11-19
         d manual 2026-11-20T02:00:00",
        "+a manual
         +b manual
         +c daily 1 of 1
         +d manual",
    );
}

#[test]
fn the_last_complete_point_stays_whatever_the_policy() {
    golden(
        "2026-11-20T12:00:00",
        "weekly=0",
        "a weekly 2026-11-01
         b weekly 2026-11-08",
        "-a weekly points are not kept here
         +b last complete point",
    );
}

#[test]
fn a_cadence_that_is_not_enabled_is_not_kept() {
    golden(
        "2026-11-20T12:00:00",
        "monthly=12",
        "a daily 2026-11-18
         b monthly 2026-11-01
         c daily 2026-11-19",
        "-a daily points are not kept here
         +b monthly 1 of 12
         +c last complete point",
    );
}

#[test]
fn what_is_not_ours_stays_and_counts_for_nothing() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1",
        "a daily 2026-11-17
         b daily 2026-11-18
         c daily 2026-11-19 agent=other
         d daily 2026-11-20 foreign
         e daily 2025-01-01 agent=other",
        "-a older than the 1 daily period kept
         +b daily 1 of 1
         +c taken by another agent
         +d cannot be read or is not of this service and host
         +e taken by another agent",
    );
}

#[test]
fn the_future_stays_and_evicts_nothing() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1",
        "a daily 2026-11-20T00:00:00
         b daily 2027-11-20
         c daily 2027-11-21
         d daily 2026-11-20T12:05:01",
        "+a daily 1 of 1
         +b started in the future
         +c started in the future
         +d started in the future",
    );
}

#[test]
fn five_minutes_ahead_are_not_the_future() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1",
        "a daily 2026-11-19T00:00:00
         b daily 2026-11-20T12:05:00",
        "-a older than the 1 daily period kept
         +b daily 1 of 1",
    );
}

#[test]
fn a_suspect_point_evicts_nothing() {
    golden(
        "2026-11-20T12:00:00",
        "daily=2",
        "a daily 2026-11-17
         b daily 2026-11-18
         c daily 2026-11-19 suspect
         d daily 2026-11-20 suspect",
        "+a daily 2 of 2
         +b daily 1 of 2
         +c suspect, and no newer point replaces it
         +d suspect, and no newer point replaces it",
    );
}

#[test]
fn a_suspect_point_goes_when_newer_ones_fill_the_periods() {
    golden(
        "2026-11-20T12:00:00",
        "daily=2",
        "a daily 2026-11-18 suspect
         b daily 2026-11-19 suspect
         c daily 2026-11-19T01:00:00
         d daily 2026-11-20",
        "-a suspect, and older than the 2 daily periods kept
         +b suspect, and within the 2 daily periods kept
         +c daily 2 of 2
         +d daily 1 of 2",
    );
}

#[test]
fn a_suspect_point_of_a_higher_cadence_is_not_replaced_by_lower_ones() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1 weekly=1",
        "w weekly 2026-11-08 suspect
         a daily 2026-11-19
         b daily 2026-11-20",
        "+w suspect, and no newer point replaces it
         -a older than the 1 daily period kept
         +b daily 1 of 1",
    );
}

#[test]
fn a_suspect_point_of_a_cadence_that_is_not_kept_goes_when_any_newer_exists() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1",
        "v weekly 2026-11-08 suspect
         b daily 2026-11-15
         w weekly 2026-11-15T01:00:00 suspect",
        "-v suspect, weekly points are not kept here, and b is newer
         +b daily 1 of 1
         +w suspect, and no newer point replaces it",
    );
}

#[test]
fn only_suspect_points_are_all_kept() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1",
        "a daily 2026-11-18 suspect
         b daily 2026-11-19 suspect",
        "+a suspect, and no newer point replaces it
         +b suspect, and no newer point replaces it",
    );
}

#[test]
fn the_chain_below_a_kept_point_stays() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1 weekly=1",
        "v weekly 2026-11-01
         w weekly 2026-11-08
         a daily 2026-11-18 base=w
         b daily 2026-11-19 base=a
         x weekly 2026-11-15",
        "-v older than the 1 weekly period kept
         +w a is built on it
         +a b is built on it
         +b daily 1 of 1
         +x weekly 1 of 1",
    );
}

#[test]
fn what_others_build_on_stays() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1",
        "a daily 2026-11-17
         b daily 2026-11-18
         c daily 2026-11-19
         m manual 2026-11-17T12:00:00 base=a
         o daily 2026-11-18T12:00:00 agent=other base=b",
        "+a m is built on it
         +b o is built on it
         +c daily 1 of 1
         +m manual
         +o taken by another agent",
    );
}

#[test]
fn a_point_without_its_base_evicts_nothing() {
    golden(
        "2026-11-20T12:00:00",
        "daily=1",
        "a daily 2026-11-17
         s daily 2026-11-18 suspect
         b daily 2026-11-19 base=gone
         c daily 2026-11-20 base=s",
        "+a daily 1 of 1
         +s suspect, and no newer point replaces it
         +b built on gone, which is not here whole, and no newer point replaces it
         +c built on s, which is not here whole, and no newer point replaces it",
    );
}

#[test]
fn weeks_follow_the_calendar() {
    let given = points(
        "a weekly 2026-11-14T23:00:00
         b weekly 2026-11-15T00:00:00
         c weekly 2026-11-16T00:00:00",
    );
    let with = |start| {
        let calendar = Calendar::new("UTC", start).unwrap();
        show(&decide(&given, &keep("weekly=2"), &calendar, utc("2026-11-20"), OWN))
    };
    assert_eq!(with(WeekStart::Sunday), "+a weekly 2 of 2\n-b superseded by c in the same week\n+c weekly 1 of 2\n");
    assert_eq!(with(WeekStart::Monday), "-a superseded by b in the same week\n+b weekly 2 of 2\n+c weekly 1 of 2\n");
}

/// Points within three weeks around now, on chains, of two agents.
fn any_points() -> impl Strategy<Value = Vec<PointFacts>> {
    let cadence = prop::sample::select(
        [Cadence::Manual, Cadence::Hourly, Cadence::Daily, Cadence::Daily, Cadence::Weekly, Cadence::Monthly]
            .as_slice(),
    );
    let one = (cadence, -20 * 24..48_i64, 0..60_i64, 0..8_u8, 0..10_u8, prop::option::weighted(0.3, 0..30_usize));
    prop::collection::vec(one, 0..30).prop_map(|raw| {
        let count = raw.len();
        raw.into_iter()
            .enumerate()
            .map(|(i, (cadence, hours, minutes, state, owner, base))| PointFacts {
                id: format!("p{i}"),
                cadence,
                started: now() + TimeDelta::minutes(hours * 60 + minutes),
                state: if state == 0 { State::Suspect } else { State::Complete },
                agent_id: if owner == 0 { "other".to_owned() } else { OWN.to_owned() },
                foreign: owner == 1,
                // Also ids that are not there, circles and bases that are newer.
                base: base.map(|b| format!("p{}", b % (count + 2))),
                proven: false,
            })
            .collect()
    })
}

fn any_keep() -> impl Strategy<Value = Keep> {
    let n = || prop::option::of(0..4_u32);
    (n(), n(), n(), n()).prop_map(|(hourly, daily, weekly, monthly)| Keep {
        hourly,
        daily,
        weekly,
        monthly,
        yearly: None,
    })
}

fn now() -> DateTime<Utc> {
    utc("2026-11-20T12:00:00")
}

fn run(points: &[PointFacts], keep: &Keep) -> Vec<Decision> {
    decide(points, keep, &calendar(), now(), OWN)
}

fn remaining(points: &[PointFacts], decisions: &[Decision]) -> Vec<PointFacts> {
    points.iter().zip(decisions).filter(|(_, d)| d.action == Action::Keep).map(|(p, _)| p.clone()).collect()
}

/// Own, complete with its whole chain, and not from the future.
fn counts(points: &[PointFacts]) -> Vec<&PointFacts> {
    let own = |p: &&PointFacts| p.agent_id == OWN && !p.foreign && !is_future(p.started, now());
    points.iter().zip(sound(points)).filter(|(_, s)| *s).map(|(p, _)| p).filter(own).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn the_newest_complete_point_always_stays(points in any_points(), keep in any_keep()) {
        let left = remaining(&points, &run(&points, &keep));
        let newest = counts(&points).into_iter().map(|p| p.started).max();
        prop_assert_eq!(counts(&left).into_iter().map(|p| p.started).max(), newest);
    }

    #[test]
    fn manual_foreign_and_future_points_always_stay(points in any_points(), keep in any_keep()) {
        for (p, d) in points.iter().zip(run(&points, &keep)) {
            if p.cadence == Cadence::Manual || p.foreign || p.agent_id != OWN || is_future(p.started, now()) {
                prop_assert_eq!(d.action, Action::Keep, "{:?}", p);
            }
        }
    }

    #[test]
    fn no_kept_point_loses_its_base(points in any_points(), keep in any_keep()) {
        let left = remaining(&points, &run(&points, &keep));
        for p in &left {
            let Some(base) = &p.base else { continue };
            let there = |points: &[PointFacts]| points.iter().any(|o| o.id == *base);
            prop_assert_eq!(there(&left), there(&points));
        }
    }

    #[test]
    fn a_second_time_removes_nothing_more(points in any_points(), keep in any_keep()) {
        let left = remaining(&points, &run(&points, &keep));
        let again = run(&left, &keep);
        prop_assert!(again.iter().all(|d| d.action == Action::Keep), "{:?}", again);
    }

    #[test]
    fn a_newer_suspect_point_removes_nothing(points in any_points(), keep in any_keep(), cadence in 1..4_usize) {
        let before = run(&points, &keep);
        let mut more = points.clone();
        more.push(PointFacts {
            id: "newer".to_owned(),
            cadence: Cadence::CALENDAR[cadence],
            started: now(),
            state: State::Suspect,
            agent_id: OWN.to_owned(),
            foreign: false,
            base: None,
            proven: false,
        });
        let after = run(&more, &keep);
        for (b, a) in before.iter().zip(&after) {
            prop_assert!(b.action == Action::Remove || a.action == Action::Keep, "{:?} became {:?}", b, a);
        }
    }

    #[test]
    fn no_more_are_kept_than_wanted(points in any_points(), keep in any_keep()) {
        let decisions = run(&points, &keep);
        for cadence in Cadence::CALENDAR {
            let n = keep.get(cadence).unwrap_or(0);
            let rank = |d: &Decision| d.reason.starts_with(&format!("{cadence} ")) && d.reason.ends_with(&format!(" of {n}"));
            let kept = decisions.iter().filter(|d| d.action == Action::Keep && rank(d)).count();
            prop_assert!(kept <= n as usize);
            let periods: std::collections::HashSet<_> = counts(&points)
                .into_iter()
                .filter(|p| p.cadence == cadence)
                .map(|p| calendar().period(cadence, p.started))
                .collect();
            prop_assert_eq!(kept, periods.len().min(n as usize));
        }
        // Whatever else is kept has one of the exceptions as its reason.
        let exceptions = ["manual", "last complete point", "taken by another agent", "started in the future"];
        for d in decisions.iter().filter(|d| d.action == Action::Keep) {
            let known = exceptions.contains(&d.reason.as_str())
                || d.reason.contains(" of ")
                || d.reason.ends_with("is built on it")
                || d.reason.starts_with("suspect, ")
                || d.reason.starts_with("built on ");
            prop_assert!(known, "{:?}", d);
        }
    }

    #[test]
    fn the_order_of_points_does_not_matter(points in any_points(), keep in any_keep()) {
        let mut forwards: Vec<_> = run(&points, &keep).into_iter().map(|d| (d.id, d.action)).collect();
        let mut reversed = points;
        reversed.reverse();
        let mut backwards: Vec<_> = run(&reversed, &keep).into_iter().map(|d| (d.id, d.action)).collect();
        forwards.sort_by(|a, b| a.0.cmp(&b.0));
        backwards.sort_by(|a, b| a.0.cmp(&b.0));
        prop_assert_eq!(forwards, backwards);
    }
}
