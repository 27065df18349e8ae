//! Freshness: the age of the newest complete restore point against its limit, for one service at one destination.
//!
//! Pure: what is seen there and `now` are arguments. Age is now minus `started` of the newest complete point of a
//! cadence or a higher one. A point counts only when all its artefacts are there with the right length, and those of
//! every point on which it is built. A point from the future makes the answer unknown, never ok: one of the two clocks
//! is wrong, so no age can be believed. Points that lack something are named, even while another one is fresh.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::config::default_max_age;
use crate::manifest;
use crate::retention::is_future;
use crate::units::{Bytes, Cadence, Span, human_age};

/// The answer to "can it be restored?". `Alert` is worse than `Unknown`, which is worse than `Ok`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Fresh enough.
    Ok,
    /// It could not be found out. This alarms.
    Unknown,
    /// Too old, missing or damaged.
    Alert,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "OK",
            Self::Unknown => "UNKNOWN",
            Self::Alert => "ALERT",
        })
    }
}

/// A restore point as it was found at one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenPoint {
    /// Its id.
    pub id: String,
    /// For which cadence it was taken.
    pub cadence: Cadence,
    /// When the run began.
    pub started: DateTime<Utc>,
    /// Sum of the stored lengths.
    pub stored_bytes: u64,
    /// Complete or suspect.
    pub state: manifest::State,
    /// Names of artefacts that are not there or have the wrong length, with what is wrong: `data.tar.zst (missing)`.
    #[serde(default)]
    pub missing: Vec<String>,
    /// Id of the point on which it is built.
    #[serde(default)]
    pub base: Option<String>,
}

/// What is being judged, for the texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watched<'a> {
    /// The host whose points they are.
    pub host: &'a str,
    /// The service.
    pub service: &'a str,
    /// The destination.
    pub destination: &'a str,
}

/// The judgement on one service at one destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Freshness {
    /// The worst of the lines.
    pub state: State,
    /// One per enabled cadence, longest first, then one per damaged point.
    pub lines: Vec<Line>,
    /// The newest complete point of any cadence, manual ones too.
    pub last_good: Option<SeenPoint>,
}

/// One statement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Ok, alert or unknown.
    pub state: State,
    /// The cadence it is about; `None` for a statement on one point.
    pub cadence: Option<Cadence>,
    /// The short form, with the service before and the destination after it: `has no daily restore point newer than 50h`.
    pub summary: String,
    /// With age, size, id and limit.
    pub text: String,
    /// What to do: a sentence or a command; `None` when all is well.
    pub advice: Option<String>,
    /// The point it rests on.
    pub id: Option<String>,
    /// Its age.
    pub age_seconds: Option<i64>,
    /// The limit in force.
    pub limit_seconds: Option<u64>,
}

/// `[OK] ...`, and what to do on a second line.
impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.state, self.text)?;
        self.advice.as_ref().map_or(Ok(()), |a| write!(f, "\n    {a}"))
    }
}

impl Freshness {
    /// The judgement when nothing could be read: always unknown, with the reason.
    pub fn unreadable(at: &Watched<'_>, why: &str) -> Self {
        let line = Line {
            state: State::Unknown,
            cadence: None,
            summary: "has restore points that could not be read".to_owned(),
            text: format!("{} has restore points that could not be read at {}: {why}", at.service, at.destination),
            advice: Some(format!("repair the access, then look again: backstay check-s3 {}", at.service)),
            id: None,
            age_seconds: None,
            limit_seconds: None,
        };
        Self { state: State::Unknown, lines: vec![line], last_good: None }
    }

    /// What is found of a host or service that nobody expects any more: said, and no alarm, because it was retired.
    pub fn unexpected(at: &Watched<'_>) -> Self {
        let (host, service, destination) = (at.host, at.service, at.destination);
        let line = Line {
            summary: "is not in check.expect".to_owned(),
            text: format!("{host} {service} at {destination}: not judged, because it is not in check.expect"),
            ..Line::of(State::Ok)
        };
        Self { state: State::Ok, lines: vec![line], last_good: None }
    }

    /// Adds an alert for each manifest that cannot be read: (name, reason).
    pub fn note_strangers(&mut self, at: &Watched<'_>, damaged: &[(String, String)]) {
        for (name, reason) in damaged {
            self.lines.push(Line {
                summary: "a restore point has an unreadable manifest".to_owned(),
                text: format!("{name} of {} at {} is not counted: {reason}", at.service, at.destination),
                advice: Some(format!("look at it with: backstay list {} --from {}.", at.service, at.destination)),
                ..Line::of(State::Alert)
            });
            self.state = self.state.max(State::Alert);
        }
    }

    /// Adds a statement that is not about a cadence, such as on drills.
    pub fn add(&mut self, line: Line) {
        self.state = self.state.max(line.state);
        self.lines.push(line);
    }

    /// Adds an alert for points whose data is only on the disks of its own store, in these repositories.
    pub fn note_not_off_site(&mut self, at: &Watched<'_>, points: usize, repositories: &str) {
        let destination = at.destination;
        self.lines.push(Line {
            summary: "has snapshots that are not off-site".to_owned(),
            text: format!(
                "{points} restore points of {} are not off-site: their snapshots lie only in {repositories}, and \
                 {destination} has nothing but their records",
                at.service
            ),
            advice: Some(format!(
                "add a repository in a bucket to the service, or take {destination} out of its `destinations`."
            )),
            ..Line::of(State::Alert)
        });
        self.state = self.state.max(State::Alert);
    }

    /// Adds a line for points of which nobody can say whether their snapshots are there.
    pub fn note_unseen(&mut self, at: &Watched<'_>, points: usize, why: &str) {
        self.lines.push(Line {
            summary: "has snapshots that could not be looked for".to_owned(),
            text: format!(
                "whether the snapshots of {points} restore points of {} at {} are there could not be found out: {why}",
                at.service, at.destination
            ),
            advice: Some(
                "let `look_with` of the repository name a destination whose keys may list its bucket, or look why the \
                 cluster does not answer."
                    .to_owned(),
            ),
            ..Line::of(State::Unknown)
        });
        self.state = self.state.max(State::Unknown);
    }

    /// The short form of the worst line: what a subject says.
    pub fn summary(&self) -> &str {
        self.lines.iter().find(|l| l.state == self.state).map_or("", |l| &l.summary)
    }
}

/// Judges one service at one destination. A cadence without a limit has that of
/// [`default_max_age`].
pub fn judge(
    at: &Watched<'_>,
    points: &[SeenPoint],
    enabled: impl IntoIterator<Item = Cadence>,
    max_age: &BTreeMap<Cadence, Span>,
    now: DateTime<Utc>,
) -> Freshness {
    let seen = Seen::new(at, points, now);
    let mut cadences: Vec<Cadence> = enabled.into_iter().filter(|c| *c != Cadence::Manual).collect();
    cadences.sort_unstable_by(|a, b| b.cmp(a));
    cadences.dedup();
    let limit = |c: Cadence| max_age.get(&c).copied().or_else(|| default_max_age(c));
    let mut lines: Vec<Line> = cadences.iter().filter_map(|c| Some(seen.cadence(*c, limit(*c)?))).collect();
    if cadences.is_empty() {
        lines.push(Line {
            summary: "has no cadence enabled".to_owned(),
            text: format!("no cadence is enabled for {}, so there is no limit to judge by", at.service),
            advice: Some("name cadences in `keep`, such as keep: {daily: 7}.".to_owned()),
            ..Line::of(State::Unknown)
        });
    }
    lines.extend(points.iter().filter(|p| !p.missing.is_empty()).map(|p| seen.damaged(p)));
    let state = lines.iter().map(|l| l.state).max().unwrap_or(State::Unknown);
    Freshness { state, lines, last_good: seen.newest(Cadence::Manual, |p| !is_future(p.started, now)).cloned() }
}

impl Line {
    /// One without any text.
    pub fn of(state: State) -> Self {
        Self {
            state,
            cadence: None,
            summary: String::new(),
            text: String::new(),
            advice: None,
            id: None,
            age_seconds: None,
            limit_seconds: None,
        }
    }
}

struct Seen<'a> {
    at: &'a Watched<'a>,
    points: &'a [SeenPoint],
    by_id: HashMap<&'a str, &'a SeenPoint>,
    now: DateTime<Utc>,
}

impl<'a> Seen<'a> {
    fn new(at: &'a Watched<'a>, points: &'a [SeenPoint], now: DateTime<Utc>) -> Self {
        Self { at, points, by_id: points.iter().map(|p| (p.id.as_str(), p)).collect(), now }
    }

    /// Whether it can be restored: it and every point on which it is built are whole.
    fn sound(&self, p: &SeenPoint) -> bool {
        let mut at = p;
        for _ in 0..self.points.len() {
            if at.state != manifest::State::Complete || !at.missing.is_empty() {
                return false;
            }
            let Some(base) = &at.base else { return true };
            let Some(next) = self.by_id.get(base.as_str()) else { return false };
            at = next;
        }
        false
    }

    /// The newest point that can be restored, of a cadence or a higher one.
    fn newest(&self, cadence: Cadence, also: impl Fn(&SeenPoint) -> bool) -> Option<&'a SeenPoint> {
        let fits = |p: &&SeenPoint| p.cadence >= cadence && also(p) && self.sound(p);
        self.points.iter().filter(fits).max_by_key(|p| (p.started, &p.id))
    }

    fn cadence(&self, cadence: Cadence, limit: Span) -> Line {
        let future = |p: &SeenPoint| is_future(p.started, self.now);
        let newest = self.newest(cadence, |p| !future(p));
        let ahead = self.points.iter().filter(|p| p.cadence >= cadence && future(p)).max_by_key(|p| p.started);
        let age = newest.map(|p| self.age(p));
        let fresh = age.is_some_and(|a| u64::try_from(a).unwrap_or(0) <= limit.as_secs());
        let mut line = match (ahead, fresh) {
            (Some(ahead), _) => self.ahead_of_now(cadence, ahead),
            (None, true) => Line { summary: format!("has a fresh {cadence} restore point"), ..Line::of(State::Ok) },
            (None, false) => self.too_old(cadence, limit, newest.is_some()),
        };
        let rest = match (newest, age) {
            (Some(p), Some(age)) => {
                format!("{} old, {}, {}, limit {limit}", human_age(age), Bytes(p.stored_bytes), p.id)
            }
            _ => format!("none, limit {limit}"),
        };
        let (service, destination) = (self.at.service, self.at.destination);
        line.text = match line.state {
            State::Ok => format!("{service} {cadence} at {destination}: {rest}"),
            _ => format!("{service} {} at {destination}; newest complete: {rest}", line.summary),
        };
        line.text.push_str(&self.newer_doubtful(cadence, newest));
        Line {
            cadence: Some(cadence),
            id: newest.map(|p| p.id.clone()),
            age_seconds: age,
            limit_seconds: Some(limit.as_secs()),
            ..line
        }
    }

    fn ahead_of_now(&self, cadence: Cadence, ahead: &SeenPoint) -> Line {
        let in_seconds = ahead.started.signed_duration_since(self.now).num_seconds();
        Line {
            summary: format!("has a {cadence} restore point from the future"),
            advice: Some(format!(
                "{} starts {} from now: compare the clocks of {} and of this host; a point that was taken with a \
                 wrong clock can be removed: backstay prune {} --point {}.",
                ahead.id,
                human_age(in_seconds),
                self.at.host,
                self.at.service,
                ahead.id
            )),
            ..Line::of(State::Unknown)
        }
    }

    fn too_old(&self, cadence: Cadence, limit: Span, any: bool) -> Line {
        let service = self.at.service;
        let summary = if any {
            format!("has no {cadence} restore point newer than {limit}")
        } else {
            format!("has no complete {cadence} restore point")
        };
        let advice = format!("on {}, make one and see what fails: backstay backup {service}", self.at.host);
        Line { summary, advice: Some(advice), ..Line::of(State::Alert) }
    }

    /// Names the newest suspect point that would have been fresher: it does not count, and a person can accept it.
    fn newer_doubtful(&self, cadence: Cadence, newest: Option<&SeenPoint>) -> String {
        let newer = |p: &&SeenPoint| {
            p.cadence >= cadence
                && p.state == manifest::State::Suspect
                && !is_future(p.started, self.now)
                && newest.is_none_or(|n| p.started > n.started)
        };
        let doubtful = self.points.iter().filter(newer).max_by_key(|p| p.started);
        doubtful.map_or_else(String::new, |p| {
            format!("; newer but suspect: {0} (if it is good: backstay accept {1} {0})", p.id, self.at.service)
        })
    }

    fn damaged(&self, p: &SeenPoint) -> Line {
        let age = self.age(p);
        let (service, destination) = (self.at.service, self.at.destination);
        let again = match p.cadence {
            Cadence::Manual => "--manual".to_owned(),
            cadence => format!("--cadence {cadence}"),
        };
        Line {
            summary: format!("has a damaged restore point {}", p.id),
            text: format!(
                "{}: cannot be restored from {destination}: {}; {} old, {}",
                p.id,
                p.missing.join(", "),
                human_age(age),
                Bytes(p.stored_bytes)
            ),
            advice: Some(format!(
                "find out who removed or cut objects at {destination}, and make a new point: backstay backup {service} \
                 {again}"
            )),
            id: Some(p.id.clone()),
            age_seconds: Some(age),
            ..Line::of(State::Alert)
        }
    }

    fn age(&self, p: &SeenPoint) -> i64 {
        self.now.signed_duration_since(p.started).num_seconds()
    }
}
