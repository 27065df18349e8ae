//! The rules of the house that the compiler does not know: which module may use which, and how large a file may be.
//!
//! Paths are read from the source text (`crate::...`, `super::...` and those of child modules, in `use`
//! and inline), up to a file's tests.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each module and its layer; a longer name wins. A module uses its own layer and those below.
const LAYERS: &[(&str, u8)] = &[
    // What all may use.
    ("config", 0),
    ("error", 0),
    ("monitor", 0),
    ("units", 0),
    // The contracts.
    ("artefact", 1),
    ("destination", 1),
    ("manifest", 1),
    ("source", 1),
    // What does one thing, and knows nothing of restore points.
    ("exec", 2),
    ("pipeline", 2),
    ("privilege", 2),
    ("destination::*", 2),
    ("source::*", 2),
    // Pure decisions: `now` is an argument.
    ("calendar", 3),
    ("freshness", 3),
    ("layout", 3),
    ("plan", 3),
    ("proof", 3),
    ("retention", 3),
    // What brings it together.
    ("catalogue", 4),
    ("check", 4),
    ("demo", 4),
    ("drill", 4),
    ("engine", 4),
    ("legacy", 4),
    ("held", 4),
    ("kit", 4),
    ("lock", 4),
    ("prune", 4),
    ("restore", 4),
    ("run", 4),
    ("verify", 4),
    // What people see.
    ("notify", 5),
    ("report", 5),
    ("cli", 6),
    ("main", 6),
];

/// Uses of a higher layer that are right, each with its reason: user, used, why.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("config", "manifest", "one name for each compression algorithm, in the configuration and in the manifest"),
    ("source", "source::*", "`build` is the one table of drivers"),
];

/// What a module must not use, whatever the layers say: user, used, why.
const FORBIDDEN: &[(&str, &str, &str)] = &[
    ("source::*", "destination", "a source does not know where its bytes go"),
    ("source::*", "source::*", "a source is complete in itself"),
    ("destination::*", "source", "a destination does not know what its bytes are"),
];

const MOST_LINES: usize = 600;

/// A file and its module path.
struct File {
    path: PathBuf,
    module: Vec<String>,
    text: String,
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn files() -> Vec<File> {
    let mut dirs = vec![src()];
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let module = path.strip_prefix(src()).unwrap().with_extension("");
                let module = module.components().map(|c| c.as_os_str().to_str().unwrap().to_owned()).collect();
                let text = fs::read_to_string(&path).unwrap();
                files.push(File { path, module, text });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// The text without comments and without the tests at its end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// All paths that begin with `root`: `crate::a::{b, c::d}` gives `a::b` and `a::c::d`.
fn paths(code: &str, root: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(root) {
        let before = code[..at].chars().next_back();
        if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':') {
            tree(&code[at + root.len()..], &[], &mut found);
        }
    }
    found
}

/// Reads what follows a `::` and returns how many bytes it took.
fn tree(text: &str, above: &[String], found: &mut Vec<Vec<String>>) -> usize {
    let spaces = text.len() - text.trim_start().len();
    let rest = &text[spaces..];
    if let Some(list) = rest.strip_prefix('{') {
        let mut at = 0;
        loop {
            at += tree(&list[at..], above, found);
            at += list[at..].find([',', '}']).unwrap_or(list.len() - at);
            match list.as_bytes().get(at) {
                Some(b',') => at += 1,
                _ => return spaces + 1 + (at + 1).min(list.len()),
            }
        }
    }
    let word: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    if word.is_empty() {
        return spaces;
    }
    let path: Vec<String> = above.iter().cloned().chain([word.clone()]).collect();
    let after = spaces + word.len();
    if let Some(next) = text[after..].strip_prefix("::") {
        return after + 2 + tree(next, &path, found);
    }
    found.push(path);
    after
}

/// `source::postgres::dump` is `source::*`, `pipeline::encode` is `pipeline`.
fn entry(module: &[String], modules: &BTreeSet<Vec<String>>) -> Option<&'static str> {
    let top = module.first()?;
    let below = module.len() > 1 && modules.contains(&module[..2]);
    let named = |name: &str| LAYERS.iter().find(|(n, _)| *n == name).map(|(n, _)| *n);
    below.then(|| named(&format!("{top}::*"))).flatten().or_else(|| named(top))
}

fn layer(entry: &str) -> u8 {
    LAYERS.iter().find(|(name, _)| *name == entry).map(|(_, layer)| *layer).unwrap()
}

/// What a file uses, as module paths from the crate's root.
fn uses(file: &File, modules: &BTreeSet<Vec<String>>) -> Vec<Vec<String>> {
    let code = code(&file.text);
    let mut all = paths(&code, "crate::");
    let parent = &file.module[..file.module.len() - 1];
    for path in paths(&code, "super::") {
        let ups = path.iter().take_while(|word| *word == "super").count();
        let Some(base) = parent.len().checked_sub(ups).map(|n| &parent[..n]) else { continue };
        all.push(base.iter().cloned().chain(path[ups..].iter().cloned()).collect());
    }
    for child in modules.iter().filter(|m| m.len() == file.module.len() + 1 && m.starts_with(&file.module)) {
        let name = child.last().unwrap();
        let below = paths(&code, &format!("{name}::")).into_iter();
        all.extend(below.map(|path| child.iter().cloned().chain(path).collect::<Vec<_>>()));
    }
    all
}

fn one_of(pattern: &str, entry: &str) -> bool {
    pattern == entry || (!pattern.ends_with("::*") && entry == format!("{pattern}::*"))
}

/// The first two names: which source or destination it is.
fn driver(module: &[String]) -> &[String] {
    &module[..module.len().min(2)]
}

#[test]
fn nothing_uses_a_layer_above_its_own() {
    let files = files();
    let modules: BTreeSet<Vec<String>> = files.iter().map(|f| f.module.clone()).collect();
    let mut wrong = Vec::new();
    let mut needed = BTreeSet::new();
    for file in files.iter().filter(|f| f.module != ["lib"]) {
        let Some(user) = entry(&file.module, &modules) else {
            wrong.push(format!("{}: not in the table of layers", file.path.display()));
            continue;
        };
        for path in uses(file, &modules) {
            let Some(used) = entry(&path, &modules) else { continue };
            let why = FORBIDDEN
                .iter()
                .find(|(a, b, _)| one_of(a, user) && one_of(b, used) && driver(&file.module) != driver(&path));
            let allowed = EXCEPTIONS.iter().find(|(a, b, _)| *a == user && *b == used);
            match (why, allowed) {
                (Some((_, _, why)), _) => {
                    wrong.push(format!("{} uses {}: {why}", file.path.display(), path.join("::")));
                }
                (None, Some((a, b, _))) => {
                    needed.insert((*a, *b));
                }
                (None, None) if layer(used) > layer(user) => {
                    let layers = (layer(user), layer(used));
                    wrong.push(format!(
                        "{} (layer {}) uses {} (layer {})",
                        file.path.display(),
                        layers.0,
                        path.join("::"),
                        layers.1
                    ));
                }
                (None, None) => {}
            }
        }
    }
    for (user, used, _) in EXCEPTIONS.iter().filter(|(a, b, _)| !needed.contains(&(*a, *b))) {
        wrong.push(format!("the exception of {user} for {used} is not needed"));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_stay_small_and_have_names_that_say_something() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = fs::read_dir(root.join("tests")).unwrap().map(|e| e.unwrap().path());
    let tests = tests.filter(|p| p.extension().is_some_and(|e| e == "rs"));
    for path in files().into_iter().map(|f| f.path).chain(tests) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MOST_LINES, "{} has {lines} lines, more than {MOST_LINES}", path.display());
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(!["mod", "util", "utils", "helpers", "misc"].contains(&name), "{}", path.display());
    }
}

#[test]
fn every_module_of_the_table_is_there() {
    let there: BTreeMap<String, ()> = files().into_iter().map(|f| (f.module[0].clone(), ())).collect();
    for (name, _) in LAYERS {
        let top = name.trim_end_matches("::*");
        assert!(there.contains_key(top), "{top} is in the table of layers, but not in src/");
    }
}

#[test]
fn paths_are_found_in_lists_and_inline() {
    let code = "use crate::a::{b, c::{D, e}};\nlet x = crate::f::g(1); use not_crate::h;";
    let joined: Vec<String> = paths(code, "crate::").iter().map(|p| p.join("::")).collect();
    assert_eq!(joined, ["a::b", "a::c::D", "a::c::e", "f::g"]);
}
