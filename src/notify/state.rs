//! The state of alarms: which mails are due, given what was told before, what is seen now, and the time. Pure.
//!
//! A mail is due when the state differs from the one that was last told, and once a day while it is not ok. So a mail
//! that could not be sent is due again, and an alarm that came and went untold is not told. A check that was not made
//! this time (another selection of services) keeps its state.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::freshness::{Freshness, State, Watched};
use crate::retention::is_future;
use crate::units::human_age;

/// After this long a lasting alarm is told again: an hour less than a day, so that a daily check that starts a little
/// earlier than yesterday does not skip a day.
const REMIND_AFTER: TimeDelta = TimeDelta::hours(23);
const FORMAT_VERSION: u32 = 1;

/// What was told, kept as JSON between checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlarmState {
    /// Version of this form: 1.
    pub format_version: u32,
    /// By the key of the check, `host/service@destination`.
    #[serde(default)]
    pub checks: BTreeMap<String, Alarm>,
}

impl Default for AlarmState {
    fn default() -> Self {
        Self { format_version: FORMAT_VERSION, checks: BTreeMap::new() }
    }
}

/// The state of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alarm {
    /// As last seen.
    pub state: State,
    /// Since when it is so.
    pub since: DateTime<Utc>,
    /// The state that was last told; `None` = nothing was, as if it had been ok.
    #[serde(default)]
    pub told: Option<State>,
    /// When.
    #[serde(default)]
    pub last_mailed: Option<DateTime<Utc>>,
}

/// What a check has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observation {
    /// The host whose points were judged.
    pub host: String,
    /// The service.
    pub service: String,
    /// The destination.
    pub destination: String,
    /// Ok, alert or unknown.
    pub state: State,
    /// What is wrong, as in `has no daily restore point newer than 50h`.
    pub summary: String,
    /// All that was seen, one statement each.
    pub lines: Vec<String>,
    /// What to do, one step each.
    pub advice: Vec<String>,
    /// Id and start of the newest complete point.
    pub last_good: Option<(String, DateTime<Utc>)>,
}

/// A mail: subject and plain text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// One line.
    pub subject: String,
    /// Lines that end with `\n`.
    pub body: String,
}

/// A mail that is due. Once it was taken, [`AlarmState::mark_mailed`] is told so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The check's key.
    pub key: String,
    /// What is told.
    pub state: State,
    /// What to send.
    pub letter: Letter,
}

impl AlarmState {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// `Corrupt` for anything else; the caller then starts from the default, which tells every alarm again.
    pub fn from_json(text: &str) -> Result<Self> {
        let state: Self = serde_json::from_str(text)
            .map_err(|e| Error::new(ErrorKind::Corrupt, "the state of alarms is damaged").caused_by(e))?;
        if state.format_version == FORMAT_VERSION {
            Ok(state)
        } else {
            Err(Error::new(ErrorKind::Corrupt, format!("the state of alarms has version {}", state.format_version)))
        }
    }

    /// The JSON form.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|json| json + "\n")
            .map_err(|e| Error::new(ErrorKind::Internal, "could not write the state of alarms as JSON").caused_by(e))
    }

    /// Records that the mail on a check was taken by the next hop.
    pub fn mark_mailed(&mut self, key: &str, now: DateTime<Utc>) {
        if let Some(alarm) = self.checks.get_mut(key) {
            alarm.told = Some(alarm.state);
            alarm.last_mailed = Some(now);
        }
    }
}

impl Observation {
    /// From a judgement.
    pub fn new(at: &Watched<'_>, freshness: &Freshness) -> Self {
        let mut advice: Vec<String> = Vec::new();
        for text in freshness.lines.iter().filter_map(|l| l.advice.as_ref()) {
            if !advice.contains(text) {
                advice.push(text.clone());
            }
        }
        Self {
            host: at.host.to_owned(),
            service: at.service.to_owned(),
            destination: at.destination.to_owned(),
            state: freshness.state,
            summary: freshness.summary().to_owned(),
            lines: freshness.lines.iter().map(|l| format!("[{}] {}", l.state, l.text)).collect(),
            advice,
            last_good: freshness.last_good.as_ref().map(|p| (p.id.clone(), p.started)),
        }
    }

    /// The key under which its state is kept.
    pub fn key(&self) -> String {
        format!("{}/{}@{}", self.host, self.service, self.destination)
    }
}

/// The new state and the mails that are due, in the order of `seen`.
pub fn advance(previous: &AlarmState, seen: &[Observation], now: DateTime<Utc>) -> (AlarmState, Vec<Due>) {
    let mut next = previous.clone();
    let mut due = Vec::new();
    for observation in seen {
        let key = observation.key();
        let fresh = Alarm { state: observation.state, since: now, told: None, last_mailed: None };
        let alarm = next.checks.entry(key.clone()).or_insert(fresh);
        if alarm.state != observation.state {
            alarm.state = observation.state;
            alarm.since = now;
        }
        alarm.since = alarm.since.min(now);
        if is_due(alarm, now) {
            due.push(Due { key, state: alarm.state, letter: letter(observation, alarm, now) });
        }
    }
    (next, due)
}

fn is_due(alarm: &Alarm, now: DateTime<Utc>) -> bool {
    let told = alarm.told.unwrap_or(State::Ok);
    let long_ago = |at: DateTime<Utc>| now.signed_duration_since(at) >= REMIND_AFTER || is_future(at, now);
    told != alarm.state || (alarm.state != State::Ok && alarm.last_mailed.is_none_or(long_ago))
}

fn letter(seen: &Observation, alarm: &Alarm, now: DateTime<Utc>) -> Letter {
    let Observation { host, service, destination, state, .. } = seen;
    let recovered = *state == State::Ok;
    let what = if recovered { "has fresh restore points again" } else { seen.summary.as_str() };
    let subject = format!("[backstay] {state} {host}: {service} {what} at {destination}");
    let mut body = format!("{service} on {host} {what} at {destination}.\n\n");
    let ago = |at: DateTime<Utc>| human_age(now.signed_duration_since(at).num_seconds());
    let line = |name: &str, text: &str| format!("{name:<17}{text}\n");
    let since = format!("{state} since {} ({})", minute(alarm.since), ago(alarm.since));
    body.push_str(&line("State:", &since));
    if let Some(told) = alarm.told {
        let when = alarm.last_mailed.map(|at| format!(", told {}", minute(at))).unwrap_or_default();
        let name = if told == *state { "Reminder of:" } else { "Before:" };
        body.push_str(&line(name, &format!("{told}{when}")));
    }
    let good = seen.last_good.as_ref().map_or_else(
        || "none".to_owned(),
        |(id, started)| format!("{id}, started {} ({} ago)", minute(*started), ago(*started)),
    );
    body.push_str(&line("Last good point:", &good));
    body.push_str("\nWhat was seen:\n");
    for text in &seen.lines {
        let _ = writeln!(body, "  {text}");
    }
    if !seen.advice.is_empty() && !recovered {
        body.push_str("\nWhat to do:\n");
        for text in &seen.advice {
            let _ = writeln!(body, "  {text}");
        }
        let _ = writeln!(body, "  look again: backstay check-s3 {service}");
    }
    body.push_str(
        "\nThis mail comes when the state changes, once a day while it is not OK, and when it is OK again.\n",
    );
    Letter { subject, body }
}

/// Several mails as one, the worst first: a bucket that cannot be read is one event for the person who is woken.
pub fn digest(due: &[Due]) -> Letter {
    let mut sorted: Vec<&Due> = due.iter().collect();
    sorted.sort_by_key(|d| std::cmp::Reverse(d.state));
    let count = |state| sorted.iter().filter(|d| d.state == state).count();
    let counts = [State::Alert, State::Unknown, State::Ok].map(|state| (count(state), state));
    let counts: Vec<String> =
        counts.into_iter().filter(|(n, _)| *n > 0).map(|(n, state)| format!("{n} {state}")).collect();
    let subject = format!("[backstay] {} of {} checks that changed or last", counts.join(", "), due.len());
    let mut body = format!("{} mails in one, the worst first:\n\n", due.len());
    for one in &sorted {
        let _ = writeln!(body, "  {}", one.letter.subject.trim_start_matches("[backstay] "));
    }
    for one in &sorted {
        let _ = write!(body, "\n{}\n{}", "-".repeat(72), one.letter.body);
    }
    Letter { subject, body }
}

fn minute(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M UTC").to_string()
}
