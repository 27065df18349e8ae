//! Which restore points are kept and which may be removed, each with a reason. Pure: (points, policy, now) to decisions.
//!
//! The rules, in the order in which they are asked:
//! 1. What is not provably ours stays: unreadable or foreign points, those of another agent, those from the future.
//!    They count for nothing: they neither fill a place nor supersede another point.
//! 2. Manual points stay until a person removes them.
//! 3. Each cadence counts its own complete points, by periods. Of several in one period the newest counts and
//!    supersedes the others; the newest N periods that have a point are kept, however long ago they were.
//! 4. A doubtful point (suspect, or built on a point that is not there whole) counts for nothing and evicts nothing.
//!    It is removed only when a newer complete point of the same or a higher cadence exists *and* N newer periods of
//!    its own cadence have a complete point. The first condition alone would drop the only trace of a damaged week.
//! 5. A cadence that is not in the policy is kept 0 times: a destination with `keep: {monthly: 12}` holds no daily
//!    points, and points of a cadence that was taken out of the configuration go with the next prune, which says so
//!    (and `prune --dry-run` before it). A doubtful point of such a cadence goes when any newer complete one exists.
//! 6. The newest complete point stays, whatever its cadence and the policy.
//! 7. While the last drill of the service did not go well, the newest point that a drill has proven stays: it may be the
//!    only one that can be restored.
//! 8. A point on which a kept point is built (`base`) stays, and so do the points on which that one is built.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::calendar::{Calendar, Period};
use crate::config::Keep;
use crate::manifest::State;
use crate::units::Cadence;

/// A point that started later than this after now is from the future.
pub const FUTURE_TOLERANCE: TimeDelta = TimeDelta::minutes(5);

/// What retention and planning must know of a restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PointFacts {
    /// Its id.
    pub id: String,
    /// For which cadence it was taken.
    pub cadence: Cadence,
    /// When the run began.
    pub started: DateTime<Utc>,
    /// Complete or suspect.
    pub state: State,
    /// Which installation took it.
    pub agent_id: String,
    /// It cannot be read, or is not a point of this service and host: it is listed and never touched.
    #[serde(default)]
    pub foreign: bool,
    /// Id of the point on which it is built.
    #[serde(default)]
    pub base: Option<String>,
    /// A drill has proven it, and the last drill of the service did not go well.
    #[serde(default)]
    pub proven: bool,
}

/// What is to happen to a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It stays.
    Keep,
    /// It may be removed.
    Remove,
}

/// A decision on one point, with the reason for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The point.
    pub id: String,
    /// Keep or remove.
    pub action: Action,
    /// A few words that say why.
    pub reason: String,
}

/// Whether a moment is so far ahead that a clock must be wrong.
pub fn is_future(started: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    started.signed_duration_since(now) > FUTURE_TOLERANCE
}

/// For each point whether it can be restored as far as its manifest says: complete, readable, and so is every point on
/// which it is built.
pub fn sound(points: &[PointFacts]) -> Vec<bool> {
    let by_id: HashMap<&str, &PointFacts> = points.iter().map(|p| (p.id.as_str(), p)).collect();
    let whole = |p: &PointFacts| p.state == State::Complete && !p.foreign;
    let chain = |p: &PointFacts| {
        let mut at = p;
        // A chain longer than the number of points goes round in a circle.
        for _ in 0..points.len() {
            match (whole(at), &at.base) {
                (false, _) => return false,
                (true, None) => return true,
                (true, Some(base)) => match by_id.get(base.as_str()) {
                    Some(next) => at = next,
                    None => return false,
                },
            }
        }
        false
    };
    points.iter().map(chain).collect()
}

/// Decides on each point, in the order given. See the module's text for the rules.
pub fn decide(
    points: &[PointFacts],
    keep: &Keep,
    calendar: &Calendar,
    now: DateTime<Utc>,
    own_agent_id: &str,
) -> Vec<Decision> {
    let sound = sound(points);
    let ours: Vec<Option<&str>> = points.iter().map(|p| untouchable(p, now, own_agent_id)).collect();
    let complete: Vec<usize> = (0..points.len()).filter(|i| sound[*i] && ours[*i].is_none()).collect();
    let view = View { points, keep, calendar, periods: newest_of_periods(points, &complete, calendar), complete };
    let mut decisions: Vec<Decision> = (0..points.len())
        .map(|i| {
            let (action, reason) = match ours[i] {
                Some(reason) => (Action::Keep, reason.to_owned()),
                None if points[i].cadence == Cadence::Manual => (Action::Keep, "manual".to_owned()),
                None if sound[i] => view.judge_complete(i),
                None => view.judge_doubtful(i),
            };
            Decision { id: points[i].id.clone(), action, reason }
        })
        .collect();
    if let Some(last) = view.newest(|_| true).filter(|i| decisions[*i].action == Action::Remove) {
        decisions[last].action = Action::Keep;
        decisions[last].reason = "last complete point".to_owned();
    }
    let proven = (0..points.len()).filter(|i| points[*i].proven && ours[*i].is_none());
    if let Some(newest) = proven.max_by_key(|i| age_key(&points[*i])).filter(|i| decisions[*i].action == Action::Remove)
    {
        decisions[newest].action = Action::Keep;
        decisions[newest].reason = "newest proven".to_owned();
    }
    keep_bases(points, &mut decisions);
    decisions
}

/// Why a point is never touched, if so.
fn untouchable(p: &PointFacts, now: DateTime<Utc>, own_agent_id: &str) -> Option<&'static str> {
    if p.foreign {
        Some("cannot be read or is not of this service and host")
    } else if p.agent_id != own_agent_id {
        Some("taken by another agent")
    } else if is_future(p.started, now) {
        Some("started in the future")
    } else {
        None
    }
}

/// The newest complete point of each period, by index.
fn newest_of_periods(points: &[PointFacts], complete: &[usize], calendar: &Calendar) -> BTreeMap<Period, usize> {
    let mut periods = BTreeMap::new();
    for &i in complete {
        let held = periods.entry(calendar.period(points[i].cadence, points[i].started)).or_insert(i);
        if age_key(&points[i]) > age_key(&points[*held]) {
            *held = i;
        }
    }
    periods
}

fn age_key(p: &PointFacts) -> (DateTime<Utc>, &str) {
    (p.started, &p.id)
}

struct View<'a> {
    points: &'a [PointFacts],
    keep: &'a Keep,
    calendar: &'a Calendar,
    complete: Vec<usize>,
    periods: BTreeMap<Period, usize>,
}

impl View<'_> {
    fn judge_complete(&self, i: usize) -> (Action, String) {
        let p = &self.points[i];
        let cadence = p.cadence;
        let Some(n) = self.keep.get(cadence).filter(|n| *n > 0) else {
            return (Action::Remove, format!("{cadence} points are not kept here"));
        };
        let newer = self.newer_periods(p);
        if newer >= n as usize {
            return (Action::Remove, format!("older than the {} kept", periods_text(n, cadence)));
        }
        let newest = self.periods.get(&self.calendar.period(cadence, p.started)).copied().unwrap_or(i);
        if newest != i {
            let word = period_word(cadence);
            return (Action::Remove, format!("superseded by {} in the same {word}", self.points[newest].id));
        }
        (Action::Keep, format!("{cadence} {} of {n}", newer + 1))
    }

    fn judge_doubtful(&self, i: usize) -> (Action, String) {
        let p = &self.points[i];
        let what = match (p.state, &p.base) {
            (State::Complete, Some(base)) => format!("built on {base}, which is not here whole"),
            _ => "suspect".to_owned(),
        };
        let n = self.keep.get(p.cadence).unwrap_or(0);
        let replaces = |o: &PointFacts| age_key(o) > age_key(p) && (n == 0 || o.cadence >= p.cadence);
        let Some(newer) = self.newest(replaces) else {
            return (Action::Keep, format!("{what}, and no newer point replaces it"));
        };
        if n == 0 {
            let newer = &self.points[newer].id;
            return (Action::Remove, format!("{what}, {} points are not kept here, and {newer} is newer", p.cadence));
        }
        let periods = periods_text(n, p.cadence);
        if self.newer_periods(p) < n as usize {
            return (Action::Keep, format!("{what}, and within the {periods} kept"));
        }
        (Action::Remove, format!("{what}, and older than the {periods} kept"))
    }

    /// How many later periods of the same cadence have a complete point.
    fn newer_periods(&self, p: &PointFacts) -> usize {
        let own = self.calendar.period(p.cadence, p.started);
        self.periods.keys().filter(|o| o.cadence() == p.cadence && **o > own).count()
    }

    /// The newest complete point of which `wanted` holds.
    fn newest(&self, wanted: impl Fn(&PointFacts) -> bool) -> Option<usize> {
        self.complete.iter().copied().filter(|i| wanted(&self.points[*i])).max_by_key(|i| age_key(&self.points[*i]))
    }
}

fn keep_bases(points: &[PointFacts], decisions: &mut [Decision]) {
    let mut kept: Vec<usize> = (0..points.len()).filter(|i| decisions[*i].action == Action::Keep).collect();
    while let Some(i) = kept.pop() {
        let Some(base) = &points[i].base else { continue };
        for (j, p) in points.iter().enumerate() {
            if p.id == *base && decisions[j].action == Action::Remove {
                decisions[j].action = Action::Keep;
                decisions[j].reason = format!("{} is built on it", points[i].id);
                kept.push(j);
            }
        }
    }
}

fn period_word(cadence: Cadence) -> &'static str {
    match cadence {
        Cadence::Manual => "run",
        Cadence::Hourly => "hour",
        Cadence::Daily => "day",
        Cadence::Weekly => "week",
        Cadence::Monthly => "month",
        Cadence::Yearly => "year",
    }
}

fn periods_text(n: u32, cadence: Cadence) -> String {
    format!("{n} {cadence} {}", if n == 1 { "period" } else { "periods" })
}
