//! The report, as JSON, as text, and in a real browser: on a phone, on paper, without any request.

#![allow(clippy::disallowed_methods, reason = "a browser is started as people start it")]

use std::path::Path;

use serde_json::Value;

use crate::common::skip;
use crate::drill::Blobs;

#[path = "report/browser.rs"]
mod browser;

/// A deployment with a drilled service, one with a gap, and one that cannot be read.
fn deployment() -> Blobs {
    let d = Blobs::new("    rto: 2h\n", "");
    let root = d.path("").display().to_string();
    d.run(&["backup"]).ok();
    d.run(&["drill"]).ok();
    d.run(&["backup", "--manual"]).ok();
    let more = format!(
        "    rto: 2h\n  a-service-with-the-longest-name-which-is-allowed-in-this-config:\n    blobdir: {{path: {root}blobs}}\n    \
         backup_dir: {root}lonely\n    keep: {{daily: 7}}\n  wiki:\n    blobdir: {{path: {root}blobs}}\n    after: [blobs]\n    \
         backup_dir: {root}wiki\n    keep: {{daily: 7, weekly: 4}}\n"
    );
    d.configure(&more, "check: {max_drill_age: 8d}\n");
    d.run(&["backup", "wiki"]).ok();
    d.run(&["backup", "blobs", "--manual"]).ok();
    d
}

#[test]
fn the_json_says_what_the_page_says() {
    let d = deployment();
    let report: Value = serde_json::from_str(&d.run(&["report", "--json"]).ok()).unwrap();
    assert_eq!((report["message_type"].as_str(), report["host"].as_str()), (Some("report"), Some("h1")));
    let services = report["services"].as_array().unwrap();
    let by_name = |name: &str| services.iter().find(|s| s["name"] == name).unwrap();
    let blobs = by_name("blobs");
    assert_eq!(blobs["state"], "ok", "{blobs}");
    assert_eq!(blobs["last_proven"]["result"], "proven");
    let places = blobs["places"].as_array().unwrap();
    assert_eq!(places.len(), 2);
    for place in places {
        let points = place["points"].as_array().unwrap();
        assert_eq!(points.len(), 3, "{place}");
        assert_eq!(points[0]["reason"], "manual");
        assert_eq!(points[2]["reason"], "daily 1 of 7");
        assert_eq!(points[2]["drill"], "proven");
    }
    let gaps = |name: &str| by_name(name)["gaps"].to_string();
    assert!(gaps("wiki").contains("older than that of blobs"), "{}", gaps("wiki"));
    assert!(gaps("wiki").contains("no drill ever went well"));
    assert!(gaps("blobs").contains("no copy leaves this host"), "both places are directories");
    assert!(!gaps("blobs").contains("no drill"));
    let longest = by_name("a-service-with-the-longest-name-which-is-allowed-in-this-config");
    assert_eq!((longest["state"].as_str(), &longest["newest"]), (Some("alert"), &Value::Null));
}

#[test]
fn the_page_is_one_file_that_names_nothing_elsewhere() {
    let d = deployment();
    let page = d.run(&["report"]).ok();
    let out = d.path("report.html");
    d.run(&["report", "--output", out.to_str().unwrap()]).ok();
    assert!(std::fs::read_to_string(&out).unwrap().len().abs_diff(page.len()) < 200);
    for outside in ["http://", "https://", "src=", "@import", "url(", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
    let hostile = std::fs::read_to_string(d.path("backstay.yml")).unwrap();
    std::fs::write(d.path("backstay.yml"), hostile.replace("/lonely", "/<b>lonely</b>&amp;")).unwrap();
    let page = d.run(&["report"]).ok();
    assert!(!page.contains("<b>lonely") && page.contains("&lt;b&gt;lonely"), "what is configured is text");
}

#[test]
fn a_browser_shows_it_on_a_phone_and_on_paper_without_any_request() {
    let Some(mut browser) = browser::Browser::start() else {
        return skip("a_browser_shows_it: no chromium here: install it with `tests/run packages`");
    };
    let d = deployment();
    let out = d.path("report.html");
    d.run(&["report", "--output", out.to_str().unwrap()]).ok();
    for (width, height) in [(360, 740), (768, 1024), (1280, 800)] {
        let seen = browser.look(&out, width, height);
        assert_eq!(seen.widest, u64::from(width), "something overflows at {width} px: {:?}", seen.overflowing);
        assert_eq!(seen.requests, [format!("file://{}", out.display())], "a request left the page");
        assert_eq!(seen.complaints, [""; 0], "the console complains");
        for text in [
            "Backups of h1",
            "blobs",
            "Not covered",
            "older than that of blobs",
            "daily 1 of 7",
            "proven",
            "needs attention",
            "no point was ever proven by a drill, limit 8d",
        ] {
            assert!(seen.text.contains(text), "{text} is not shown at {width} px:\n{}", seen.text);
        }
        assert_eq!(seen.charts, 3, "sizes and drills of blobs, sizes of wiki");
        if let Some(dir) = std::env::var_os("BACKSTAY_SCREENSHOTS") {
            std::fs::write(Path::new(&dir).join(format!("report-{width}.png")), seen.picture).unwrap();
        }
    }
    let paper = browser.print(&out);
    assert!(paper.starts_with(b"%PDF-") && paper.len() > 5000);
    if let Some(dir) = std::env::var_os("BACKSTAY_SCREENSHOTS") {
        std::fs::write(Path::new(&dir).join("report.pdf"), paper).unwrap();
    }
}
