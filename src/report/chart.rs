//! Small charts as inline SVG: no script, no font, no request.

use std::fmt::Write as _;

use chrono::{DateTime, Utc};

/// One dot.
#[derive(Debug, Clone)]
pub(super) struct Dot {
    pub(super) at: DateTime<Utc>,
    pub(super) value: f64,
    /// Drawn as a cross instead.
    pub(super) bad: bool,
    /// Shown by browsers when somebody points at it.
    pub(super) title: String,
}

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 170.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 34.0;

/// Values over time, from zero, with an optional limit as a dashed line.
pub(super) fn over_time(name: &str, dots: &[Dot], limit: Option<f64>, show: &dyn Fn(f64) -> String) -> String {
    let (Some(first), Some(last)) = (dots.iter().map(|d| d.at).min(), dots.iter().map(|d| d.at).max()) else {
        return String::new();
    };
    let top = dots.iter().map(|d| d.value).chain(limit).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    #[allow(clippy::cast_precision_loss, reason = "a place on a picture")]
    let seconds = |at: DateTime<Utc>| (at - first).num_seconds() as f64;
    let span = seconds(last);
    // A single moment stands in the middle.
    let x = |at: DateTime<Utc>| {
        let part = if span > 0.0 { seconds(at) / span } else { 0.5 };
        LEFT + 8.0 + part * (WIDTH - LEFT - RIGHT - 16.0)
    };
    let y = |value: f64| HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">", escape(name));
    for part in [0.0, 0.5, 1.0] {
        let (at, text) = (y(top * part), show(top * part));
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
             <text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 5.0,
            escape(&text)
        );
    }
    let ends: &[(DateTime<Utc>, &str)] =
        if span > 0.0 { &[(first, "start"), (last, "end")] } else { &[(first, "middle")] };
    for (at, anchor) in ends {
        let _ = write!(
            svg,
            "<text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>",
            x(*at),
            HEIGHT - 8.0,
            at.format("%Y-%m-%d")
        );
    }
    if let Some(limit) = limit {
        let at = y(limit);
        let _ = write!(
            svg,
            "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            WIDTH - RIGHT
        );
    }
    line_and_dots(&mut svg, dots, &x, &y);
    svg.push_str("</svg>");
    svg
}

fn line_and_dots(svg: &mut String, dots: &[Dot], x: &dyn Fn(DateTime<Utc>) -> f64, y: &dyn Fn(f64) -> f64) {
    let mut sorted: Vec<&Dot> = dots.iter().collect();
    sorted.sort_by_key(|d| d.at);
    let path: Vec<String> =
        sorted.iter().filter(|d| !d.bad).map(|d| format!("{:.1},{:.1}", x(d.at), y(d.value))).collect();
    let _ = write!(svg, "<polyline class=\"line\" points=\"{}\"/>", path.join(" "));
    for dot in sorted {
        let (cx, cy, title) = (x(dot.at), y(dot.value), escape(&dot.title));
        let _ = match dot.bad {
            false => write!(
                svg,
                "<circle class=\"dot\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4\"><title>{title}</title></circle>"
            ),
            true => write!(
                svg,
                "<path class=\"cross\" d=\"M{:.1} {:.1}l10 10m0 -10l-10 10\"><title>{title}</title></path>",
                cx - 5.0,
                cy - 5.0
            ),
        };
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_shows_every_dot_and_escapes_what_it_is_given() {
        let at: DateTime<Utc> = "2026-11-20T00:00:00Z".parse().unwrap();
        let dot = |hours: i64, value: f64, bad: bool| Dot {
            at: at + chrono::TimeDelta::hours(hours),
            value,
            bad,
            title: "<script>".into(),
        };
        let svg = over_time("a \"b\"", &[dot(0, 1.0, false), dot(9, 0.0, true), dot(3, 2.0, false)], Some(4.0), &|v| {
            format!("{v:.0} s")
        });
        assert_eq!((svg.matches("<circle").count(), svg.matches("class=\"cross\"").count()), (2, 1), "{svg}");
        assert!(
            svg.contains("class=\"limit\"") && svg.contains("&lt;script&gt;") && !svg.contains("<script>"),
            "{svg}"
        );
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        assert!(!over_time("one", &[dot(0, 0.0, false)], None, &|v| v.to_string()).contains("NaN"));
        assert_eq!(over_time("none", &[], None, &|v| v.to_string()), "");
    }
}
