//! Proof: what drills have shown. The record of a drill, and pure judgements on many of them.
//!
//! # Record, version 1
//! A JSON object per drill, in the agent's state and, where its keys may write there, at the destination that was
//! drilled: `<prefix>/<host>/<service>/drills/<time>-<id>.json`. The fields are documented on [`Record`], in the order in
//! which they stand in the file. It outlives its point. What lies at a destination holds no names of files or
//! databases: `differences` and the details of `reason` stay on the host that drilled.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::freshness::State;
use crate::retention::is_future;
use crate::source::{DrillLevel, Seconds};
use crate::units::{Span, human_age};

/// The version this agent writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// How a drill ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// What came back is what was captured.
    Proven,
    /// The point is damaged, or what came back differs.
    Damaged,
    /// It could not be tried, or did not come back: nothing is known about the point.
    Failed,
}

/// See the module's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this format: 1.
    pub format_version: u32,
    /// Program version.
    pub agent_version: String,
    /// The host that drilled.
    pub drilled_on: String,
    /// The host whose point it is.
    pub host: String,
    /// The service.
    pub service: String,
    /// The point.
    pub id: String,
    /// When the point was begun.
    pub point_started: DateTime<Utc>,
    /// From where it was read.
    pub destination: String,
    /// How far the drill went; absent when it ended before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<DrillLevel>,
    /// When it began, UTC.
    pub started: DateTime<Utc>,
    /// When it ended, UTC.
    pub finished: DateTime<Utc>,
    /// Seconds per phase.
    pub seconds: Seconds,
    /// Seconds from begin to end.
    pub total_seconds: f64,
    /// Plain bytes of the point.
    pub plain_bytes: u64,
    /// Stored bytes of the point.
    pub stored_bytes: u64,
    /// Counted in what came back.
    #[serde(default)]
    pub counts: BTreeMap<String, u64>,
    /// How it ended.
    pub result: Outcome,
    /// Why it is not proven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The damaged object, by its key at the destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// What differs, with names; only in the agent's state.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<String>,
    /// What was not compared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The longest restore that is accepted, in seconds, if one is configured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rto_seconds: Option<u64>,
}

impl Record {
    /// The name of its file: they sort by time.
    pub fn file_name(&self) -> String {
        format!("{}-{}.json", self.started.format("%Y%m%dT%H%M%S%3fZ"), self.id)
    }
    /// Reads one.
    ///
    /// # Errors
    /// `Corrupt` for anything else than a record of a version that is known.
    pub fn from_json(text: &[u8]) -> Result<Self> {
        let record: Self = serde_json::from_slice(text)
            .map_err(|e| Error::new(ErrorKind::Corrupt, "this is not the record of a drill").caused_by(e))?;
        if record.format_version > FORMAT_VERSION {
            let message = format!("the record of a drill has version {}", record.format_version);
            return Err(Error::new(ErrorKind::Config, message).hint("upgrade backstay on this host."));
        }
        Ok(record)
    }
    /// Its JSON form.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|json| json + "\n")
            .map_err(|e| Error::new(ErrorKind::Internal, "could not write the record of a drill").caused_by(e))
    }
    /// What may leave the host.
    #[must_use]
    pub fn without_names(mut self) -> Self {
        let n = self.differences.len();
        self.reason = match (self.result, &self.object) {
            (Outcome::Proven, _) => None,
            (_, Some(object)) => Some(format!("{object} is damaged")),
            (Outcome::Damaged, None) => Some(format!("what came back differs from what was captured ({n} lines)")),
            (Outcome::Failed, None) => Some(format!("it could not be drilled; the reason is on {}", self.drilled_on)),
        };
        self.differences.clear();
        self
    }
    /// Whether it took longer than is accepted.
    pub fn is_beyond_rto(&self) -> bool {
        #[allow(clippy::cast_precision_loss, reason = "seconds of a drill are far below 2^52")]
        self.rto_seconds.is_some_and(|rto| self.result == Outcome::Proven && self.total_seconds > rto as f64)
    }
}

/// All that is known of the drills of one service of one host.
#[derive(Debug, Clone, Default)]
pub struct Proofs {
    /// By their end, oldest first.
    records: Vec<Record>,
}

impl Proofs {
    /// From records of any order; one that was found twice counts once, in its longer form.
    pub fn new(records: impl IntoIterator<Item = Record>) -> Self {
        let mut by_name: BTreeMap<String, Record> = BTreeMap::new();
        for record in records {
            let known = by_name.entry(record.file_name()).or_insert_with(|| record.clone());
            if known.differences.len() < record.differences.len() {
                *known = record;
            }
        }
        let mut records: Vec<Record> = by_name.into_values().collect();
        records.sort_by_key(|r| r.finished);
        Self { records }
    }
    /// By their end, oldest first.
    pub fn records(&self) -> &[Record] {
        &self.records
    }
    /// The newest drill that ended well.
    pub fn last_proven(&self) -> Option<&Record> {
        self.records.iter().rev().find(|r| r.result == Outcome::Proven)
    }
    /// The newest drill that found damage which still matters: the same point was not proven at the same place since,
    /// and it is not known to be gone. Where nothing is known, a newer point that was proven since ends it.
    pub fn open_damage(&self, there: &dyn Fn(&Record) -> Option<bool>) -> Option<&Record> {
        let since = |d: &Record, good: &dyn Fn(&Record) -> bool| {
            self.records.iter().any(|r| r.result == Outcome::Proven && r.finished > d.finished && good(r))
        };
        let matters = |d: &Record| match there(d) {
            Some(false) => false,
            _ if since(d, &|r| r.id == d.id && r.destination == d.destination) => false,
            Some(true) => true,
            None => !since(d, &|r| r.point_started > d.point_started),
        };
        self.records.iter().rev().find(|r| r.result == Outcome::Damaged && matters(r))
    }
    /// The newest drill of a point.
    pub fn of(&self, id: &str) -> Option<&Record> {
        self.records.iter().rev().find(|r| r.id == id)
    }
    /// Ids of points that were proven, when the last drill did not go well: one of them may be the only good one.
    pub fn to_protect(&self) -> Vec<String> {
        if self.records.last().is_none_or(|r| r.result == Outcome::Proven) {
            return Vec::new();
        }
        let damaged = |id: &str| self.of(id).is_some_and(|r| r.result == Outcome::Damaged);
        let proven = self.records.iter().filter(|r| r.result == Outcome::Proven && !damaged(&r.id));
        proven.map(|r| r.id.clone()).collect()
    }
    /// Seconds that a restore of so many plain bytes takes, by the last drill that restored something.
    pub fn expected_seconds(&self, plain_bytes: u64) -> Option<f64> {
        let restored = |r: &&Record| r.result == Outcome::Proven && r.level != Some(DrillLevel::Stream);
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let scaled = |r: &Record| r.total_seconds * (plain_bytes as f64 / (r.plain_bytes.max(1) as f64)).max(0.1);
        self.records.iter().rev().find(restored).map(scaled)
    }
}

/// The judgement on the drills of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Alert when a drill is overdue or found damage.
    pub state: State,
    /// The short form, with the service before it.
    pub summary: String,
    /// With point, place and age.
    pub text: String,
    /// What to do.
    pub advice: Option<String>,
    /// The point that was proven last.
    pub id: Option<String>,
    /// How long ago.
    pub age_seconds: Option<i64>,
}

/// Judges the drills of a service. `None` when there is nothing to say: no drill, and none is asked for. `there` says
/// whether the point of a record is still where it was drilled, if that is known.
pub fn judge(
    proofs: &Proofs,
    service: &str,
    limit: Option<Span>,
    there: &dyn Fn(&Record) -> Option<bool>,
    now: DateTime<Utc>,
) -> Option<Verdict> {
    let last = proofs.last_proven().filter(|r| !is_future(r.finished, now));
    let age = last.map(|r| now.signed_duration_since(r.finished).num_seconds());
    if last.is_none() && limit.is_none() && proofs.records.is_empty() {
        return None;
    }
    let proven = match (last, age) {
        (Some(r), Some(age)) => format!("last proven: {} from {}, {} ago", r.id, r.destination, human_age(age)),
        _ => "no point was ever proven by a drill".to_owned(),
    };
    let mut verdict = Verdict {
        state: State::Ok,
        summary: "is proven by drills".to_owned(),
        text: format!("{service}: {proven}"),
        advice: None,
        id: last.map(|r| r.id.clone()),
        age_seconds: age,
    };
    let again = format!("drill again, and see what it says: backstay drill {service}");
    if let Some(limit) = limit {
        verdict.text.push_str(&format!(", limit {limit}"));
        if age.is_none_or(|age| u64::try_from(age).unwrap_or(0) > limit.as_secs()) {
            verdict.state = State::Alert;
            verdict.summary = format!("has no drill that went well in the last {limit}");
            verdict.advice = Some(again.clone());
        }
    }
    let newest = proofs.records.last().filter(|r| r.result == Outcome::Failed);
    if let Some(record) = proofs.open_damage(there) {
        let reason = record.reason.as_deref().unwrap_or("no reason is known");
        verdict.state = State::Alert;
        verdict.summary = format!("has a restore point that failed its drill: {}", record.id);
        verdict.text =
            format!("{service}: a drill found {} at {} damaged: {reason}; {proven}", record.id, record.destination);
        verdict.advice = Some(format!("make a new point, and drill it: backstay backup {service} --manual"));
    } else if let Some(record) = newest {
        let reason = record.reason.as_deref().unwrap_or("no reason is known");
        verdict.text.push_str(&format!("; the last drill could not be done: {reason}"));
        verdict.advice.get_or_insert(again);
    }
    if let Some(record) = last.filter(|r| r.is_beyond_rto()) {
        let rto = Span::from_secs(record.rto_seconds.unwrap_or(0));
        #[allow(clippy::cast_possible_truncation, reason = "seconds of a drill are far below 2^52")]
        let took = human_age(record.total_seconds as i64);
        verdict.text.push_str(&format!("; its restore took {took}, longer than the {rto} that are accepted (rto)"));
    }
    Some(verdict)
}

/// Chooses one of several points at random, so that every one is visited in time: what waits longer weighs more, and
/// what was never drilled four times as much. `random` is any number.
pub fn choose<'a>(
    points: &'a [(String, DateTime<Utc>)],
    proofs: &Proofs,
    now: DateTime<Utc>,
    random: u64,
) -> Option<&'a str> {
    let weight = |(id, started): &(String, DateTime<Utc>)| {
        let last = proofs.of(id).map(|r| r.finished);
        let waits = now.signed_duration_since(last.unwrap_or(*started)).num_hours();
        u128::from(u64::try_from(waits).unwrap_or(0) + 1) * if last.is_none() { 4 } else { 1 }
    };
    let total: u128 = points.iter().map(weight).sum();
    let mut left = u128::from(random).checked_rem(total)?;
    for point in points {
        let weight = weight(point);
        if left < weight {
            return Some(&point.0);
        }
        left -= weight;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::TimeDelta;

    fn now() -> DateTime<Utc> {
        "2026-11-20T00:00:00Z".parse().unwrap()
    }

    fn record(id: &str, hours_ago: i64, result: Outcome) -> Record {
        let at = now() - TimeDelta::hours(hours_ago);
        Record {
            format_version: 1,
            agent_version: "0".into(),
            drilled_on: "h".into(),
            host: "h".into(),
            service: "s".into(),
            id: id.into(),
            point_started: at,
            destination: "d".into(),
            level: Some(DrillLevel::Files),
            started: at,
            finished: at,
            seconds: Seconds::default(),
            total_seconds: 60.0,
            plain_bytes: 1,
            stored_bytes: 1,
            counts: BTreeMap::new(),
            result,
            reason: Some("of \"secret name\"".into()),
            object: None,
            differences: vec!["secret name".into()],
            notes: Vec::new(),
            rto_seconds: None,
        }
    }

    #[test]
    fn nothing_is_said_where_nothing_is_known_and_asked() {
        assert_eq!(judge(&Proofs::default(), "s", None, &|_| None, now()), None);
        let verdict = judge(&Proofs::default(), "s", Some(Span::from_hours(1)), &|_| None, now()).unwrap();
        assert_eq!(
            (verdict.state, verdict.text.as_str()),
            (State::Alert, "s: no point was ever proven by a drill, limit 1h")
        );
    }

    #[test]
    fn an_old_proof_a_damaged_point_and_one_from_the_future_alarm() {
        let judged = |records: &[Record], limit| {
            judge(&Proofs::new(records.to_vec()), "s", limit, &|_| Some(true), now()).unwrap()
        };
        let proven = record("a", 30, Outcome::Proven);
        let day = Some(Span::from_hours(24));
        assert_eq!(judged(std::slice::from_ref(&proven), None).state, State::Ok);
        assert_eq!(judged(std::slice::from_ref(&proven), Some(Span::from_hours(31))).state, State::Ok);
        let old = judged(std::slice::from_ref(&proven), day);
        assert_eq!((old.state, old.summary.as_str()), (State::Alert, "has no drill that went well in the last 1d"));
        assert_eq!(judged(&[record("a", -2, Outcome::Proven)], day).state, State::Alert);
        let damage = judged(&[proven.clone(), record("b", 2, Outcome::Damaged)], None);
        assert_eq!(damage.state, State::Alert);
        assert!(damage.text.contains("a drill found b at d damaged") && damage.text.contains("last proven: a"));
        let again = judged(&[proven.clone(), record("b", 2, Outcome::Damaged), record("b", 1, Outcome::Proven)], None);
        assert_eq!(again.state, State::Ok, "it was proven since");
        let after = Proofs::new([record("b", 2, Outcome::Damaged), record("c", 1, Outcome::Proven)]);
        for (there, open) in [(Some(true), true), (Some(false), false), (None, false)] {
            assert_eq!(after.open_damage(&|_| there).is_some(), open, "{there:?}");
        }
        let failed = judged(&[proven, record("b", 2, Outcome::Failed)], None);
        assert_eq!(failed.state, State::Ok);
        assert!(failed.text.contains("the last drill could not be done"), "{}", failed.text);
    }

    #[test]
    fn what_was_proven_is_protected_while_the_last_drill_went_wrong() {
        let protect = |records: &[Record]| Proofs::new(records.to_vec()).to_protect();
        let (a, b) = (record("a", 9, Outcome::Proven), record("b", 8, Outcome::Damaged));
        assert_eq!(protect(std::slice::from_ref(&a)), [""; 0]);
        assert_eq!(protect(&[a.clone(), b.clone()]), ["a"]);
        assert_eq!(protect(&[a.clone(), record("a", 2, Outcome::Damaged)]), [""; 0]);
        assert_eq!(protect(&[a, b, record("c", 1, Outcome::Proven)]), [""; 0]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config::with_cases(24))]
        #[test]
        fn every_point_is_visited_in_time_whatever_the_dice_say(seed: u64) {
            let visits = visits_of_the_yearly_point(seed);
            proptest::prop_assert!((4..100).contains(&visits), "it was visited {visits} times");
        }

        /// By its numbers alone: each point has some of them, and one that waits longer has more.
        #[test]
        fn who_waits_longer_has_the_better_chance(
            ages in proptest::collection::vec((0_i64..200, 0_i64..200, proptest::bool::ANY), 1..6),
        ) {
            let name = |n: usize| format!("p{n}");
            let points: Vec<_> =
                ages.iter().enumerate().map(|(n, (age, ..))| (name(n), now() - TimeDelta::hours(*age))).collect();
            let drilled = ages.iter().enumerate().filter(|(_, (.., drilled))| *drilled);
            let proofs = Proofs::new(drilled.map(|(n, (_, ago, _))| record(&name(n), *ago, Outcome::Proven)));
            let waits = |n: usize| {
                let (age, ago, drilled) = ages[n];
                if drilled { ago + 1 } else { 4 * (age + 1) }
            };
            let total: i64 = (0..ages.len()).map(waits).sum();
            let mut chances = vec![0; ages.len()];
            for random in 0..u64::try_from(total).unwrap() {
                let id = choose(&points, &proofs, now(), random).unwrap();
                chances[points.iter().position(|(p, _)| p == id).unwrap()] += 1;
            }
            proptest::prop_assert_eq!(chances, (0..ages.len()).map(waits).collect::<Vec<_>>());
        }
    }

    /// 1500 days with a new point each, of which 30 are kept, and a drill a week.
    fn visits_of_the_yearly_point(mut random: u64) -> usize {
        let mut points: Vec<(String, DateTime<Utc>)> = Vec::new();
        let mut records = Vec::new();
        let mut day = now();
        points.push(("yearly".into(), day));
        for n in 0..1500_i64 {
            day += TimeDelta::days(1);
            points.push((format!("daily{n}"), day));
            points.retain(|(id, at)| id == "yearly" || day - *at < TimeDelta::days(30));
            if n % 7 == 0 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let proofs = Proofs::new(records.clone());
                let id = choose(&points, &proofs, day, random >> 11).unwrap();
                let mut made = record(id, 0, Outcome::Proven);
                (made.started, made.finished) = (day, day);
                records.push(made);
            }
        }
        records.iter().filter(|r| r.id == "yearly").count()
    }

    #[test]
    fn of_no_points_none_is_chosen() {
        assert_eq!(choose(&[], &Proofs::default(), now(), 7), None);
    }

    #[test]
    fn names_stay_on_the_host() {
        for result in [Outcome::Damaged, Outcome::Failed, Outcome::Proven] {
            let text = record("a", 1, result).without_names().to_json().unwrap();
            assert!(!text.contains("secret name"), "{text}");
            assert_eq!(Record::from_json(text.as_bytes()).unwrap().result, result);
        }
        assert_eq!(Record::from_json(b"{}").unwrap_err().kind, ErrorKind::Corrupt);
    }
}
