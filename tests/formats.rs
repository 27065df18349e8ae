//! Manifests as released versions wrote them. These files are never changed: a new form is a new file.

use std::path::Path;

use backstay::artefact::Role;
use backstay::destination::Location;
use backstay::error::{ErrorKind, Result};
use backstay::manifest::{Algorithm, Consistency, Manifest, State};
use backstay::units::Cadence;
use serde_json::Value;

fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/formats/manifest-v1-{name}.json"));
    std::fs::read_to_string(path).unwrap()
}

fn read(name: &str) -> Result<Manifest> {
    Manifest::from_text(&file(name))
}

/// The kind of the refusal, and the words.
fn refused(name: &str) -> (ErrorKind, String, Option<String>) {
    let err = read(name).expect_err(name);
    (err.kind, err.chain(), err.hint)
}

#[test]
fn every_file_is_pinned_here() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/formats");
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> =
        names.map(|n| n.trim_start_matches("manifest-v1-").trim_end_matches(".json").to_owned()).collect();
    names.sort();
    let known = [
        "base",
        "complete",
        "cut",
        "every-field",
        "external",
        "flipped-bit",
        "newer-major",
        "of-nothing",
        "suspect",
        "unknown-fields",
    ];
    assert_eq!(names, known);
}

#[test]
fn a_manifest_with_every_field() {
    let m = read("every-field").unwrap();
    assert_eq!((m.format_version, m.agent.version.as_str()), (1, "0.1.0"));
    assert_eq!(m.agent.id, "0123456789abcdef0123456789abcdef");
    assert_eq!((m.id.as_str(), m.service.as_str()), ("orders_production_weekly_2026_11_20_000312", "orders"));
    assert_eq!((m.kind.as_str(), m.method.as_str()), ("postgres", "plain"));
    assert_eq!((m.environment.as_deref(), m.host.as_str(), m.cadence), (Some("production"), "db1", Cadence::Weekly));
    assert_eq!(m.started.to_rfc3339(), "2026-11-20T00:03:12+00:00");
    assert_eq!(m.finished.to_rfc3339(), "2026-11-20T00:41:07.250+00:00");
    assert_eq!((m.state, m.suspect_reasons.len()), (State::Complete, 1));
    assert_eq!(m.accepted.unwrap().to_rfc3339(), "2026-11-20T08:15:00+00:00");
    let limits: Vec<(Cadence, u64)> = m.limits.max_age_seconds.clone().into_iter().collect();
    assert_eq!(limits, [(Cadence::Daily, 180_000), (Cadence::Weekly, 698_400)]);
    assert_eq!(m.limits.max_drill_age_seconds, Some(3_110_400));
    let artefacts: Vec<_> = m.artefacts.iter().map(|a| (a.plain_name(), a.role, a.compression)).collect();
    assert_eq!(
        artefacts,
        [
            ("data.tar", Role::Data, Algorithm::Zstd),
            ("config.tar", Role::Config, Algorithm::Gzip),
            ("inventory.jsonl", Role::Inventory, Algorithm::None),
            ("RESTORE.txt", Role::Kit, Algorithm::None),
        ]
    );
    let data = &m.artefacts[0];
    let version = Some("3HL4kqtJlcpXroDTDmJ".to_owned());
    let at = Location { key: "production/orders_weekly_db1/data.tar.zst.age".into(), version };
    assert_eq!((&data.location, data.recipients.len()), (&at, 1));
    assert_eq!((data.plain_bytes, data.stored_bytes), (1 << 30, 1 << 28));
    assert_eq!((data.blake3.as_str(), data.sha256.as_str()), (&*"a".repeat(64), &*"b".repeat(64)));
    assert_eq!((m.stored_bytes(), m.plain_bytes()), ((1 << 28) + 5008, (1 << 30) + 21_392));
    assert_eq!(m.sums.as_ref().unwrap().version.as_deref(), Some("3HL4kqtJlcpXroDTDmN"));
    let external = &m.external[0];
    assert_eq!((external.repository.as_str(), external.kind.as_str()), ("backups", "s3"));
    assert_eq!(external.bucket.as_deref(), Some("acme-search"));
    assert_eq!(external.base_path.as_deref(), Some("production/search"));
    assert_eq!(external.name, "search_production_weekly_2026_11_20_000312");
    assert_eq!(external.uuid.as_deref(), Some("yM5wFQ0NQJS6v0fTbQxYqw"));
    assert_eq!(m.consistency, Consistency::PointInTime);
    assert_eq!((m.server_version.as_deref(), m.position.as_deref()), (Some("15.15"), Some("2A/9C000110")));
    assert_eq!((m.counts["databases"], m.counts["files"]), (3, 1204));
    assert_eq!(m.attributes["system_identifier"], "7300000000000000000");
    assert_eq!(m.base.as_deref(), Some("orders_production_monthly_2026_11_01_000100"));
    assert_eq!(m.warnings, ["2 files vanished while they were read"]);
    // Written as it was: `accept` rewrites manifests of other versions.
    assert_eq!(m.to_text().unwrap(), file("every-field"));
}

#[test]
fn points_that_are_complete_suspect_and_built_on_others() {
    for name in ["complete", "suspect", "base", "external"] {
        assert_eq!(read(name).unwrap().to_text().unwrap(), file(name), "{name}");
    }
    let m = read("complete").unwrap();
    assert_eq!((m.state, m.accepted, m.base, m.artefacts.len()), (State::Complete, None, None, 1));
    assert_eq!(m.artefacts[0].location, Location::newest("orders_production_weekly_2026_11_20_000312/data.tar.zst"));
    let m = read("suspect").unwrap();
    assert_eq!((m.state, m.suspect_reasons.len()), (State::Suspect, 1));
    let m = read("base").unwrap();
    assert_eq!(m.base.as_deref(), Some("orders_production_monthly_2026_11_01_000100"));
    assert_eq!(m.consistency, Consistency::CrashConsistent);
    let m = read("external").unwrap();
    assert_eq!((m.artefacts.len(), m.external.len(), m.sums), (0, 1, None));
}

#[test]
fn fields_that_are_not_known_are_ignored() {
    let m = read("unknown-fields").unwrap();
    assert_eq!((m.state, m.consistency), (State::Complete, Consistency::Fuzzy));
    assert_eq!(Manifest { consistency: Consistency::PointInTime, ..m }, read("complete").unwrap());
}

#[test]
fn what_cannot_be_trusted_is_refused() {
    let (kind, said, hint) = refused("newer-major");
    assert_eq!((kind, said.as_str()), (ErrorKind::Config, "the manifest has format version 2"));
    assert_eq!(hint.as_deref(), Some("upgrade backstay on this host: this version reads format version 1."));
    for (name, why) in [
        ("flipped-bit", "its digest does not match"),
        ("cut", "it has no digest"),
        ("of-nothing", "it names neither artefacts nor snapshots"),
    ] {
        assert_eq!(refused(name), (ErrorKind::Corrupt, format!("the manifest is damaged: {why}"), None));
    }
}

#[test]
fn every_field_is_documented() {
    let docs = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md")).unwrap();
    let table: Vec<&str> = docs.lines().filter(|l| l.starts_with("| `")).collect();
    let is_there = |name: &str| table.iter().any(|line| line.contains(&format!("`{name}`")));
    let whole: Value = serde_json::from_str(&file("every-field")).unwrap();
    let fields = whole.as_object().unwrap().keys().filter(|k| *k != "manifest_sha256" && *k != "agent");
    for field in fields.chain(whole["artefacts"][0].as_object().unwrap().keys()) {
        assert!(is_there(field) || is_there(&format!("{field}[]")), "docs/format.md does not say what `{field}` is");
    }
}
