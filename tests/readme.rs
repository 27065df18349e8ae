//! What the documents promise to somebody who copies from them.

use std::path::{Path, PathBuf};

use backstay::cli::Cli;
use clap::Parser as _;

use crate::common::{backstay, run_with_input};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README and everything in `docs`, by name.
fn documents() -> Vec<(PathBuf, String)> {
    let docs = std::fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path());
    let names = docs.filter(|p| p.extension().is_some_and(|e| e == "md")).chain([root().join("README.md")]);
    names.map(|p| (p.clone(), std::fs::read_to_string(p).unwrap())).collect()
}

/// The fenced blocks of a language, and what stands between all blocks.
fn split(text: &str, language: &str) -> (Vec<String>, String) {
    let (mut blocks, mut prose) = (Vec::new(), String::new());
    let mut inside: Option<(bool, String)> = None;
    for line in text.lines() {
        match (&mut inside, line.strip_prefix("```")) {
            (None, Some(fence)) => inside = Some((fence == language, String::new())),
            (None, None) => prose.extend([line, "\n"]),
            (Some((_, block)), None) => block.extend([line, "\n"]),
            (Some((wanted, block)), Some(_)) => {
                blocks.extend(wanted.then(|| std::mem::take(block)));
                inside = None;
            }
        }
    }
    assert!(inside.is_none(), "a fence is not closed");
    (blocks, prose)
}

fn blocks(text: &str, language: &str) -> Vec<String> {
    split(text, language).0
}

/// Command lines of `backstay` in shell blocks, and in code inside of sentences.
fn command_lines(text: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for line in blocks(text, "sh").concat().lines() {
        let line = line.split(" #").next().unwrap_or_default().trim();
        found.extend(line.strip_prefix("backstay ").map(str::to_owned));
        found.extend(line.split_once("cargo run --release -- ").map(|(_, args)| args.to_owned()));
    }
    for code in split(text, "").1.replace('\n', " ").split('`').skip(1).step_by(2) {
        found.extend(code.strip_prefix("backstay ").map(str::to_owned));
    }
    for line in blocks(text, "").concat().lines() {
        found.extend(line.split_once("/backstay ").map(|(_, args)| args.to_owned()));
    }
    found
}

#[test]
fn the_readmes_configuration_is_right() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let blocks = blocks(&readme, "yaml");
    assert!(!blocks.is_empty());
    for block in blocks {
        let ran = run_with_input(&["config", "check", "--file", "-"], &block);
        assert_eq!(ran.code, 0, "{ran:#?}");
        assert!(ran.stdout.contains("2 services, 1 destinations"), "{ran:#?}");
    }
}

#[test]
fn every_command_line_in_the_documents_is_understood() {
    let mut seen = 0;
    for (path, text) in documents() {
        for line in command_lines(&text) {
            // `COMMAND` stands for any of them.
            let line = line.replace("COMMAND", "list");
            let args = std::iter::once("backstay").chain(line.split_whitespace());
            match Cli::try_parse_from(args) {
                Ok(_) => {}
                Err(err) if !err.use_stderr() => {}
                Err(err) => panic!("{}: backstay {line}: {err}", path.display()),
            }
            seen += 1;
        }
    }
    assert!(seen >= 12, "only {seen} command lines were found");
}

#[test]
fn every_file_that_the_documents_link_to_exists() {
    let mut missing = Vec::new();
    for (path, text) in documents() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let file = link.split('#').next().unwrap_or_default();
            if !link.contains("://") && !file.is_empty() && !path.parent().unwrap().join(file).exists() {
                missing.push(format!("{}: {link}", path.file_name().unwrap().display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_demo_runs_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), mode).unwrap();
    let out = backstay(&["demo"]).current_dir(dir.path()).output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{said}{}", String::from_utf8_lossy(&out.stderr));
    assert!(said.contains("\ndone: everything lies in "), "{said}");
    assert!(dir.path().join("backstay-demo/restored").is_dir());
}
