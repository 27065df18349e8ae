//! The report as one page of HTML that needs nothing else: no script, no font, no request.

use handlebars::Handlebars;
use serde_json::{Value, json};

use super::chart::{Dot, over_time};
use super::{PlaceReport, Report, SHOWN_DRILLS, ServiceReport};
use crate::error::{Error, ErrorKind, Result};
use crate::freshness::State;
use crate::proof::Outcome;
use crate::source::DrillLevel;
use crate::units::{Bytes, Span, human_age};

const TEMPLATE: &str = include_str!("../../templates/report.html.hbs");

/// The page.
///
/// # Errors
/// `Internal` when the template is wrong.
pub fn html(report: &Report) -> Result<String> {
    let bad = |state: State| report.services.iter().filter(|s| s.state == state).count();
    let values = json!({
        "host": report.host, "environment": report.environment, "agent_version": report.agent_version,
        "generated": report.generated.format("%Y-%m-%d %H:%M UTC").to_string(),
        "state": class(report.state), "headline": headline(report),
        "counts": {"ok": bad(State::Ok), "alert": bad(State::Alert), "unknown": bad(State::Unknown)},
        "services": report.services.iter().map(|s| service(report, s)).collect::<Vec<_>>(),
    });
    let mut engine = Handlebars::new();
    engine.set_strict_mode(true);
    engine
        .render_template(TEMPLATE, &values)
        .map_err(|e| Error::new(ErrorKind::Internal, "the template of the report could not be rendered").caused_by(e))
}

fn class(state: State) -> &'static str {
    match state {
        State::Ok => "ok",
        State::Alert => "alert",
        State::Unknown => "unknown",
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Ok => "good",
        State::Alert => "needs attention",
        State::Unknown => "could not be found out",
    }
}

fn headline(report: &Report) -> String {
    let total = report.services.len();
    let well = report.services.iter().filter(|s| s.state == State::Ok).count();
    let gaps: usize = report.services.iter().map(|s| s.gaps.len()).sum();
    let services = if total == 1 { "service" } else { "services" };
    let said = match total - well {
        0 => format!("{total} {services}, and all restore points are as fresh and as proven as was asked for"),
        1 => format!("1 of {total} {services} needs attention"),
        n => format!("{n} of {total} {services} need attention"),
    };
    match gaps {
        0 => format!("{said}."),
        1 => format!("{said}; one thing is not covered."),
        n => format!("{said}; {n} things are not covered."),
    }
}

fn service(report: &Report, s: &ServiceReport) -> Value {
    let newest = s.newest.as_ref().map(|p| {
        json!({"id": p.id, "age": human_age(p.age_seconds), "stored": Bytes(p.stored_bytes).to_string(),
            "plain": Bytes(p.plain_bytes).to_string()})
    });
    let proven = s.last_proven.as_ref().map(|r| {
        let age = human_age((report.generated - r.finished).num_seconds());
        json!({"id": r.id, "age": age, "from": r.destination, "seconds": seconds(r.total_seconds)})
    });
    json!({
        "name": s.name, "kind": s.kind, "state": class(s.state), "word": word(s.state), "newest": newest, "proven": proven,
        "proof": s.proof, "rto": s.rto_seconds.map(|n| Span::from_secs(n).to_string()),
        "gaps": s.gaps, "warnings": s.warnings,
        "places": s.places.iter().map(place).collect::<Vec<_>>(),
        "sizes": sizes(s), "times": times(s),
        "drills": s.drills.iter().take(SHOWN_DRILLS).map(drill).collect::<Vec<_>>(),
        "more_drills": s.drills.len().saturating_sub(SHOWN_DRILLS),
    })
}

fn place(p: &PlaceReport) -> Value {
    json!({
        "name": p.name, "address": p.address.replace('`', ""), "where": if p.off_site { "off this host" } else { "on this host" },
        "state": class(p.state), "word": word(p.state), "error": p.error, "stored": Bytes(p.stored_bytes).to_string(),
        "count": if p.points.len() == 1 { "1 restore point".to_owned() } else { format!("{} restore points", p.points.len()) }, "statements": p.statements,
        "points": p.points.iter().map(|p| json!({
            "id": p.id, "cadence": p.cadence, "age": human_age(p.age_seconds), "stored": Bytes(p.stored_bytes).to_string(),
            "state": if p.needs_thaw { format!("{}, needs thaw", p.state) } else { p.state.clone() }, "good": p.state == "complete", "kept": if p.kept { "kept" } else { "may go" },
            "reason": p.reason, "drill": p.drill.map_or("-", outcome), "encrypted": p.encrypted,
        })).collect::<Vec<_>>(),
    })
}

fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Proven => "proven",
        Outcome::Damaged => "DAMAGED",
        Outcome::Failed => "failed",
    }
}

fn drill(r: &crate::proof::Record) -> Value {
    let level = match r.level {
        Some(DrillLevel::Stream) => "read and compared",
        Some(DrillLevel::Files) => "restored and compared",
        Some(DrillLevel::Server) => "restored, started and compared",
        None => "-",
    };
    json!({
        "at": r.finished.format("%Y-%m-%d %H:%M").to_string(), "id": r.id, "from": r.destination, "level": level,
        "result": outcome(r.result), "good": r.result == Outcome::Proven, "seconds": seconds(r.total_seconds),
        "reason": r.reason, "slow": r.is_beyond_rto(),
    })
}

fn seconds(s: f64) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "seconds of a drill are far below 2^52")]
    if s < 100.0 { format!("{s:.1} s") } else { human_age(s as i64) }
}

/// Sizes over time: each point once, at the place that has the most of them.
fn sizes(s: &ServiceReport) -> String {
    let Some(place) = s.places.iter().max_by_key(|p| p.points.len()) else { return String::new() };
    #[allow(clippy::cast_precision_loss, reason = "a place on a picture")]
    let dots: Vec<Dot> = place
        .points
        .iter()
        .map(|p| Dot {
            at: p.started,
            value: p.stored_bytes as f64,
            bad: p.state != "complete",
            title: format!("{}: {}", p.id, Bytes(p.stored_bytes)),
        })
        .collect();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a label on a picture")]
    over_time(&format!("stored size of the restore points of {}", s.name), &dots, None, &|v| {
        Bytes(v as u64).to_string()
    })
}

/// Seconds of drills over time, with the longest that is accepted.
fn times(s: &ServiceReport) -> String {
    let dots: Vec<Dot> = s
        .drills
        .iter()
        .map(|r| Dot {
            at: r.finished,
            value: r.total_seconds,
            bad: r.result != Outcome::Proven,
            title: format!("{}: {} in {}", r.id, outcome(r.result), seconds(r.total_seconds)),
        })
        .collect();
    #[allow(clippy::cast_precision_loss, reason = "a place on a picture")]
    let limit = s.rto_seconds.map(|n| n as f64);
    over_time(&format!("seconds of the drills of {}", s.name), &dots, limit, &seconds)
}
