//! Freshness and alarms: what is judged, which mails are due, and their exact words.

use std::collections::BTreeMap;

use backstay::freshness::{Freshness, SeenPoint, State, Watched, judge};
use backstay::manifest;
use backstay::notify::state::{AlarmState, Due, Observation, advance};
use backstay::units::{Cadence, Span};
use chrono::{DateTime, TimeDelta, Utc};

const AT: Watched<'_> = Watched { host: "db1", service: "postgres", destination: "offsite" };

fn utc(s: &str) -> DateTime<Utc> {
    s.parse().unwrap()
}
fn now() -> DateTime<Utc> {
    utc("2026-11-20T12:00:00Z")
}

fn point(cadence: Cadence, hours_ago: i64) -> SeenPoint {
    let started = now() - TimeDelta::hours(hours_ago);
    SeenPoint {
        id: format!("postgres_{cadence}_{}", started.format("%Y_%m_%d_%H%M%S")),
        cadence,
        started,
        stored_bytes: 3 << 29,
        state: manifest::State::Complete,
        missing: Vec::new(),
        base: None,
    }
}

fn suspect(p: SeenPoint) -> SeenPoint {
    SeenPoint { state: manifest::State::Suspect, ..p }
}

fn judged(points: &[SeenPoint]) -> Freshness {
    let limits = BTreeMap::from([(Cadence::Daily, Span::from_hours(50))]);
    judge(&AT, points, [Cadence::Daily, Cadence::Weekly], &limits, now())
}

fn shown(points: &[SeenPoint]) -> String {
    judged(points).lines.iter().map(|l| format!("{l}\n")).collect()
}

#[test]
fn fresh_points() {
    assert_eq!(
        shown(&[point(Cadence::Weekly, 120), point(Cadence::Daily, 10), point(Cadence::Daily, 34)]),
        "[OK] postgres weekly at offsite: 5 d 0 h old, 1.5 GiB, postgres_weekly_2026_11_15_120000, limit 194h\n\
         [OK] postgres daily at offsite: 10 h 0 min old, 1.5 GiB, postgres_daily_2026_11_20_020000, limit 50h\n"
    );
    // Exactly the limit is still fresh, and a higher cadence counts for the lower ones.
    assert_eq!(judged(&[point(Cadence::Weekly, 50)]).state, State::Ok);
    assert_eq!(judged(&[point(Cadence::Monthly, 51)]).state, State::Alert);
    assert_eq!(judged(&[point(Cadence::Manual, 1)]).state, State::Alert);
}

#[test]
fn a_limit_that_is_not_configured_is_the_documented_one() {
    let config = backstay::config::Config::default();
    let service = serde_json::from_str("{}").unwrap();
    let limits = Cadence::CALENDAR.map(|c| config.max_age(&service, c).unwrap().to_string());
    assert_eq!(limits, ["3h", "50h", "194h", "33d", "370d"]);
    let judged = judge(&AT, &[], Cadence::CALENDAR, &BTreeMap::new(), now());
    let judged: Vec<String> =
        judged.lines.iter().rev().map(|l| Span::from_secs(l.limit_seconds.unwrap()).to_string()).collect();
    assert_eq!(judged, limits);
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let read = |name| std::fs::read_to_string(docs.join(name)).unwrap();
    assert!(read("configuration.md").contains("Default: 3h, 50h, 194h (8 d 2 h), 33d, 370d for hourly to yearly."));
    let words = "3 h (hourly), 50 h (daily), 194 h (weekly), 33 d (monthly),\n370 d (yearly)";
    assert!(read("monitoring.md").contains(words));
}

#[test]
fn points_that_are_too_old_or_not_there() {
    assert_eq!(
        shown(&[point(Cadence::Daily, 60), suspect(point(Cadence::Daily, 12))]),
        "[ALERT] postgres has no complete weekly restore point at offsite; newest complete: none, limit 194h\n    \
         on db1, make one and see what fails: backstay backup postgres\n\
         [ALERT] postgres has no daily restore point newer than 50h at offsite; newest complete: 2 d 12 h old, \
         1.5 GiB, postgres_daily_2026_11_18_000000, limit 50h; newer but suspect: postgres_daily_2026_11_20_000000 \
         (if it is good: backstay accept postgres postgres_daily_2026_11_20_000000)\n    \
         on db1, make one and see what fails: backstay backup postgres\n"
    );
    assert_eq!(judged(&[]).state, State::Alert);
    assert_eq!(judged(&[]).last_good, None);
}

#[test]
fn a_point_that_lacks_an_artefact_does_not_count_and_is_named() {
    let mut broken = point(Cadence::Weekly, 5);
    broken.missing = vec!["data.tar.zst (1 of 2 bytes)".into(), "config.tar.zst (missing)".into()];
    let built_on_it = SeenPoint { base: Some(broken.id.clone()), ..point(Cadence::Daily, 2) };
    let good = point(Cadence::Weekly, 49);
    let freshness = judged(&[good.clone(), broken, built_on_it]);
    assert_eq!(freshness.state, State::Alert);
    assert_eq!(freshness.last_good, Some(good));
    assert_eq!(freshness.lines.iter().map(|l| l.state).collect::<Vec<_>>(), [State::Ok, State::Ok, State::Alert]);
    assert_eq!(freshness.summary(), "has a damaged restore point postgres_weekly_2026_11_20_070000");
    assert_eq!(
        freshness.lines[2].to_string(),
        "[ALERT] postgres_weekly_2026_11_20_070000: cannot be restored from offsite: data.tar.zst (1 of 2 bytes), \
         config.tar.zst (missing); 5 h 0 min old, 1.5 GiB\n    find out who removed or cut objects at offsite, and \
         make a new point: backstay backup postgres --cadence weekly"
    );
    let alone = SeenPoint { base: Some("gone".into()), ..point(Cadence::Weekly, 1) };
    assert_eq!(judged(&[alone]).state, State::Alert);
}

#[test]
fn a_point_from_the_future_is_unknown() {
    let ahead = point(Cadence::Daily, -48);
    let freshness = judged(&[point(Cadence::Weekly, 1), ahead]);
    assert_eq!(freshness.state, State::Unknown);
    assert_eq!(freshness.lines[0].state, State::Ok);
    assert_eq!(
        freshness.lines[1].to_string(),
        "[UNKNOWN] postgres has a daily restore point from the future at offsite; newest complete: 60 min old, \
         1.5 GiB, postgres_weekly_2026_11_20_110000, limit 50h\n    postgres_daily_2026_11_22_120000 starts 2 d 0 h \
         from now: compare the clocks of db1 and of this host; a point that was taken with a wrong clock can be \
         removed: backstay prune postgres --point postgres_daily_2026_11_22_120000."
    );
    assert_eq!(freshness.last_good.unwrap().id, "postgres_weekly_2026_11_20_110000");
    let mut near = point(Cadence::Weekly, 0);
    near.started = now() + TimeDelta::minutes(5);
    assert_eq!(judged(&[near]).state, State::Ok);
}

#[test]
fn what_cannot_be_read_or_has_no_limit_is_unknown() {
    let freshness = Freshness::unreadable(&AT, "could not list acme-backups: access denied");
    assert_eq!(freshness.state, State::Unknown);
    assert_eq!(
        freshness.lines[0].to_string(),
        "[UNKNOWN] postgres has restore points that could not be read at offsite: could not list acme-backups: \
         access denied\n    repair the access, then look again: backstay check-s3 postgres"
    );
    assert_eq!(judge(&AT, &[point(Cadence::Daily, 1)], [], &BTreeMap::new(), now()).state, State::Unknown);
}

/// A check at one moment, the mails taken.
fn check(alarms: &mut AlarmState, points: &[SeenPoint], at: &str) -> Vec<Due> {
    let limits = BTreeMap::from([(Cadence::Daily, Span::from_hours(50))]);
    let freshness = judge(&AT, points, [Cadence::Daily], &limits, utc(at));
    observe(alarms, &freshness, at)
}

fn observe(alarms: &mut AlarmState, freshness: &Freshness, at: &str) -> Vec<Due> {
    let (next, due) = advance(alarms, &[Observation::new(&AT, freshness)], utc(at));
    *alarms = AlarmState::from_json(&next.to_json().unwrap()).unwrap();
    for item in &due {
        alarms.mark_mailed(&item.key, utc(at));
    }
    due
}

fn subjects(due: &[Due]) -> Vec<&str> {
    due.iter().map(|d| d.letter.subject.as_str()).collect()
}

const ALERT: &str = "[backstay] ALERT db1: postgres has no daily restore point newer than 50h at offsite";

#[test]
fn one_mail_per_change_one_a_day_while_it_lasts_and_one_at_the_end() {
    let mut alarms = AlarmState::default();
    let old = [point(Cadence::Daily, 24)];
    assert_eq!(check(&mut alarms, &old, "2026-11-20T12:00:00Z"), [], "ok from the start is no news");
    assert_eq!(subjects(&check(&mut alarms, &old, "2026-11-21T15:00:00Z")), [ALERT]);
    assert_eq!(check(&mut alarms, &old, "2026-11-21T16:00:00Z"), []);
    assert_eq!(check(&mut alarms, &old, "2026-11-22T13:59:00Z"), []);
    // A daily check may start a little earlier than yesterday.
    assert_eq!(subjects(&check(&mut alarms, &old, "2026-11-22T14:58:00Z")), [ALERT]);
    assert_eq!(check(&mut alarms, &old, "2026-11-22T15:00:00Z"), []);
    let unreadable = Freshness::unreadable(&AT, "timed out");
    assert_eq!(
        subjects(&observe(&mut alarms, &unreadable, "2026-11-22T16:00:00Z")),
        ["[backstay] UNKNOWN db1: postgres has restore points that could not be read at offsite"]
    );
    assert_eq!(observe(&mut alarms, &unreadable, "2026-11-22T17:00:00Z"), []);
    let fresh = [SeenPoint { started: utc("2026-11-22T17:30:00Z"), ..point(Cadence::Daily, 0) }];
    assert_eq!(
        subjects(&check(&mut alarms, &fresh, "2026-11-22T18:00:00Z")),
        ["[backstay] OK db1: postgres has fresh restore points again at offsite"]
    );
    assert_eq!(check(&mut alarms, &fresh, "2026-11-22T19:00:00Z"), []);
}

#[test]
fn what_was_not_taken_is_due_again_and_what_was_never_told_needs_no_end() {
    let old = judged(&[point(Cadence::Daily, 60)]);
    let fresh = judged(&[point(Cadence::Weekly, 1)]);
    let seen = |f: &Freshness| [Observation::new(&AT, f)];
    let (state, due) = advance(&AlarmState::default(), &seen(&old), now());
    assert_eq!(due.len(), 1);
    let (state, due) = advance(&state, &seen(&old), now() + TimeDelta::minutes(5));
    assert_eq!(due.len(), 1);
    assert_eq!(state.checks["db1/postgres@offsite"].since, now());
    let (mut told, due) = advance(&state, &seen(&fresh), now() + TimeDelta::minutes(10));
    assert_eq!(due, []);
    // Nothing observed, nothing lost.
    told.mark_mailed("db1/postgres@offsite", now());
    assert_eq!(advance(&told, &[], now()), (told.clone(), Vec::new()));
    // A clock that was a year ahead when the last mail went does not silence the next.
    let (mut state, _) = advance(&AlarmState::default(), &seen(&old), now() + TimeDelta::days(365));
    state.mark_mailed("db1/postgres@offsite", now() + TimeDelta::days(365));
    assert_eq!(advance(&state, &seen(&old), now()).1.len(), 1);
    assert!(AlarmState::from_json("{").is_err() && AlarmState::from_json(r#"{"format_version": 2}"#).is_err());
}

#[test]
fn the_words_of_an_alarm() {
    let mut alarms = AlarmState::default();
    let old = [point(Cadence::Daily, 24), suspect(point(Cadence::Daily, 12))];
    let due = check(&mut alarms, &old, "2026-11-21T15:00:00Z");
    assert_eq!(
        due[0].letter.body,
        "\
postgres on db1 has no daily restore point newer than 50h at offsite.

State:           ALERT since 2026-11-21 15:00 UTC (0 s)
Last good point: postgres_daily_2026_11_19_120000, started 2026-11-19 12:00 UTC (2 d 3 h ago)

What was seen:
  [ALERT] postgres has no daily restore point newer than 50h at offsite; newest complete: 2 d 3 h old, 1.5 GiB, \
postgres_daily_2026_11_19_120000, limit 50h; newer but suspect: postgres_daily_2026_11_20_000000 (if it is good: \
backstay accept postgres postgres_daily_2026_11_20_000000)

What to do:
  on db1, make one and see what fails: backstay backup postgres
  look again: backstay check-s3 postgres

This mail comes when the state changes, once a day while it is not OK, and when it is OK again.
"
    );
    let due = check(&mut alarms, &old, "2026-11-22T15:00:00Z");
    assert_eq!(due[0].letter.subject, ALERT);
    assert!(
        due[0].letter.body.contains(
            "\
State:           ALERT since 2026-11-21 15:00 UTC (24 h 0 min)
Reminder of:     ALERT, told 2026-11-21 15:00 UTC
"
        ),
        "{}",
        due[0].letter.body
    );
}

#[test]
fn the_words_of_a_recovery() {
    let mut alarms = AlarmState::default();
    check(&mut alarms, &[], "2026-11-20T10:00:00Z");
    let due = check(&mut alarms, &[point(Cadence::Daily, 0)], "2026-11-20T12:30:00Z");
    assert_eq!(
        due[0].letter.body,
        "\
postgres on db1 has fresh restore points again at offsite.

State:           OK since 2026-11-20 12:30 UTC (0 s)
Before:          ALERT, told 2026-11-20 10:00 UTC
Last good point: postgres_daily_2026_11_20_120000, started 2026-11-20 12:00 UTC (30 min ago)

What was seen:
  [OK] postgres daily at offsite: 30 min old, 1.5 GiB, postgres_daily_2026_11_20_120000, limit 50h

This mail comes when the state changes, once a day while it is not OK, and when it is OK again.
"
    );
}
