//! One wrong configuration per file, and beside it, as `.txt`, exactly what the user is told.
//!
//! After a change on purpose: `UPDATE_EXPECTED=1 cargo test config_invalid`, then read the difference.

use std::fs;
use std::path::Path;

use backstay::config::parse;
use backstay::error::ErrorKind;

fn files() -> Vec<std::path::PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config_invalid");
    let mut files: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "yml"));
    files.sort();
    files
}

#[test]
fn every_wrong_configuration_is_told_exactly() {
    let mut wrong = String::new();
    for file in files() {
        let text = fs::read_to_string(&file).unwrap();
        let name = format!("{}.yml", file.file_stem().unwrap().to_str().unwrap());
        let told = match parse::from_text(&text, &name) {
            Ok(_) => format!("{name} is accepted\n"),
            Err(err) => {
                assert_eq!(err.kind, ErrorKind::Config, "{name}");
                format!("{}\n", err.report())
            }
        };
        let beside = file.with_extension("txt");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&beside, &told).unwrap();
        }
        let expected = fs::read_to_string(&beside).unwrap_or_default();
        if told != expected {
            wrong.push_str(&format!("--- {name}\nexpected:\n{expected}told:\n{told}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn no_message_repeats_what_may_be_a_secret() {
    for file in files() {
        let Err(err) = parse::from_text(&fs::read_to_string(&file).unwrap(), "x.yml") else { continue };
        assert!(!err.report().contains("hunter2"), "{}: {}", file.display(), err.report());
    }
}
