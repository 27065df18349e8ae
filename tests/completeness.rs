//! Each kind of source has all that belongs to it; what is lacking is named.

use std::path::{Path, PathBuf};

use backstay::source::DRIVERS;
use serde_json::Value;

/// What the text at the top of a kind's file says, each as `**Captured**` or `**Captured.**`.
const SECTIONS: [&str; 5] = ["Captured", "Consistency", "Rights", "Not captured", "By hand"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Every file below a directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

fn has_word(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

/// What `kind` lacks in the project at `root`.
fn lacks(root: &Path, kind: &str) -> Vec<String> {
    let mut lacks = Vec::new();
    let mut need = |is_there: bool, what: String| lacks.extend((!is_there).then_some(what));

    let source = format!("src/source/{kind}.rs");
    let header: String = read(root.join(&source)).lines().take_while(|l| l.starts_with("//!")).collect();
    need(!header.is_empty(), format!("{source}, with a text at its top"));
    for section in SECTIONS {
        let is_there = [".**", "**"].iter().any(|end| header.contains(&format!("**{section}{end}")));
        need(is_there, format!("**{section}** in the text at the top of {source}"));
    }

    let page = read(root.join("docs/configuration.md"));
    let (introduction, keys) = page.split_once("\n## Every key\n").unwrap_or_default();
    need(introduction.contains(&format!("\n    {kind}:")), format!("an example in docs/configuration.md: {kind}: ..."));
    need(
        keys.contains(&format!("\n### `services.NAME.{kind}`\n")),
        format!("its keys in docs/configuration.md: {kind}"),
    );
    let heading = |l: &str| l.strip_prefix("### ").is_some_and(|rest| rest.split([' ', ',']).next() == Some(kind));
    let restores = read(root.join("docs/format.md")).lines().any(heading);
    need(restores, format!("a section in docs/format.md: ### {kind}"));

    let modules = read(root.join("tests/main.rs"));
    need(modules.lines().any(|l| l == format!("mod {kind};")), format!("a module in tests/main.rs: mod {kind};"));
    let mut tests = read(root.join(format!("tests/{kind}.rs")));
    files(&root.join("tests").join(kind)).iter().for_each(|f| tests.push_str(&read(f)));
    need(tests.contains("#[test]") || tests.contains("#[tokio::test"), format!("tests in tests/{kind}.rs"));
    need(tests.contains("restore"), format!("a test in tests/{kind}.rs that restores"));

    let scripts = root.join("restore-scripts");
    if scripts.is_dir() {
        let names = files(&scripts).into_iter().filter_map(|f| Some(f.file_stem()?.to_str()?.to_owned()));
        need(
            names.into_iter().any(|n| n.contains(kind)),
            format!("a script in restore-scripts/ with {kind} in its name"),
        );
    }
    let roles = root.join("roles");
    if roles.is_dir() {
        // The roles pass any kind on; its own tasks, or how it is deployed, must be somewhere.
        let pages = [root.join("docs/ansible.md")];
        let mut used = files(&roles).into_iter().filter(|f| f.file_stem().is_some_and(|n| n != "README")).chain(pages);
        need(used.any(|f| has_word(&read(f), kind)), format!("{kind} in roles/ or docs/ansible.md"));
    }
    lacks
}

#[test]
fn every_kind_is_complete() {
    assert!(!DRIVERS.is_empty());
    for driver in DRIVERS {
        assert!(!driver.summary.is_empty() && !driver.summary.ends_with('.'), "{}: its summary", driver.kind);
        let lacks = lacks(root(), driver.kind);
        assert!(lacks.is_empty(), "the kind {} lacks:\n  {}", driver.kind, lacks.join("\n  "));
    }
}

#[test]
fn the_kinds_of_the_configuration_are_those_of_the_table() {
    let schema: Value = serde_json::from_str(&backstay::config::show::schema().unwrap()).unwrap();
    let service = schema["$defs"]["Service"]["properties"].as_object().unwrap();
    let is_kind = |value: &Value| value.to_string().contains("Config\"");
    let mut kinds: Vec<&str> = service.iter().filter(|(_, v)| is_kind(v)).map(|(k, _)| k.as_str()).collect();
    let mut table: Vec<&str> = DRIVERS.iter().map(|d| d.kind).collect();
    kinds.sort_unstable();
    table.sort_unstable();
    assert_eq!(kinds, table);
}

#[test]
fn what_a_new_kind_lacks_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for place in ["restore-scripts", "roles/agent/tasks"] {
        std::fs::create_dir_all(dir.path().join(place)).unwrap();
    }
    let lacking = lacks(dir.path(), "tape");
    assert_eq!(lacking.len(), 6 + 3 + 3 + 2, "{lacking:#?}");
    for what in ["src/source/tape.rs", "**Rights**", "tests/tape.rs", "restore-scripts/", "roles/"] {
        assert!(lacking.iter().any(|l| l.contains(what)), "{what}: {lacking:#?}");
    }
    crate::common::write(dir.path(), "roles/agent/README.md", "tape");
    crate::common::write(dir.path(), "roles/agent/vars/main.yml", "kinds: [tapes, tape_drive]\n");
    assert_eq!(lacks(dir.path(), "tape"), lacking, "neither a README nor another word counts");
    crate::common::write(dir.path(), "roles/agent/tasks/main.yml", "- when: tape is defined\n");
    crate::common::write(dir.path(), "restore-scripts/restore-tape.sh", "#!/bin/sh\n");
    assert_eq!(lacks(dir.path(), "tape").len(), lacking.len() - 2);
}
