//! Text to [`Config`]: one file and `conf.d/*.yml` beside it, merged, checked as a whole.
//!
//! Files are joined, never layered: a service, a destination or a setting is in one place only, so that nobody has to
//! know an order to say what is in force.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::check::{self, Problem};
use super::explain::explain;
use super::place::{self, Places, is_blank};
use super::{Check, Config};
use crate::error::{Error, ErrorKind, Result};

/// One text as the whole configuration; `file_name` is for messages.
pub fn from_text(text: &str, file_name: &str) -> Result<Config> {
    let part = Part::read(text, file_name)?;
    whole(&[part])
}

/// The file `path`, without what is beside it.
pub fn load_one(path: &Path) -> Result<Config> {
    from_text(&read(path)?, &path.display().to_string())
}

/// The file `path` and `conf.d/*.yml` beside it, in the order of their names.
pub fn load(path: &Path) -> Result<Config> {
    let mut parts = vec![Part::read(&read(path)?, &path.display().to_string())?];
    for beside in conf_d(path)? {
        parts.push(Part::read(&read(&beside)?, &beside.display().to_string())?);
    }
    whole(&parts)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|e| {
        let missing = e.kind() == std::io::ErrorKind::NotFound;
        let err = Error::new(ErrorKind::Config, format!("could not read \"{}\"", path.display())).caused_by(e);
        if missing { err.hint("name the configuration with --config or $BACKSTAY_CONFIG.") } else { err }
    })
}

fn conf_d(path: &Path) -> Result<Vec<PathBuf>> {
    let dir = path.parent().unwrap_or(Path::new("")).join("conf.d");
    let failed = |e| Error::new(ErrorKind::Config, format!("could not list \"{}\"", dir.display())).caused_by(e);
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(failed(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let file = entry.map_err(failed)?.path();
        let hidden = file.file_name().is_none_or(|n| n.as_encoded_bytes().starts_with(b"."));
        if !hidden && file.extension().is_some_and(|e| e == "yml") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

/// One file: what it says and where.
struct Part {
    file: String,
    config: Config,
    places: Places,
}

impl Part {
    fn read(text: &str, file: &str) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        // A file of comments says nothing, which is not wrong.
        let body = if is_blank(text) { "{}" } else { text };
        let config = serde_saphyr::from_str_with_options::<Config>(body, place::options()).map_err(|e| {
            let explained = explain(&e);
            let at = e.location().filter(|l| l.line() > 0);
            let at = at.map_or_else(String::new, |l| format!(":{}:{}", l.line(), l.column()));
            let err = Error::new(ErrorKind::Config, format!("{file}{at}: {}", explained.message));
            match explained.hint {
                Some(hint) => err.hint(hint),
                None => err,
            }
        })?;
        Ok(Self { file: file.to_owned(), config, places: Places::of(body) })
    }

    /// `file:line:column`, as near to `path` as can be said.
    fn at(&self, path: &[String]) -> String {
        match self.places.find(path) {
            Some((line, column)) => format!("{}:{line}:{column}", self.file),
            None => self.file.clone(),
        }
    }
}

/// Joins the parts, then checks the whole.
fn whole(parts: &[Part]) -> Result<Config> {
    let (config, mut problems) = merge(parts);
    problems.extend(check::problems(&config));
    if problems.is_empty() {
        return Ok(config);
    }
    let said: Vec<(String, Option<String>)> = problems.iter().map(|p| (said(p, parts), p.hint.clone())).collect();
    Err(match said.as_slice() {
        [(message, None)] => Error::new(ErrorKind::Config, message),
        [(message, Some(hint))] => Error::new(ErrorKind::Config, message).hint(hint),
        many => {
            let mut text = format!("{} problems in the configuration", many.len());
            for (message, hint) in many {
                text.push_str("\n  ");
                text.push_str(message);
                if let Some(hint) = hint {
                    text.push_str("\n    hint: ");
                    text.push_str(hint);
                }
            }
            Error::new(ErrorKind::Config, text)
        }
    })
}

fn said(problem: &Problem, parts: &[Part]) -> String {
    // The file that has most of the path; the first one, if several do.
    let depth = |part: &Part| (0..=problem.path.len()).rev().find(|n| part.has(&problem.path[..*n]));
    let part = match problem.part {
        Some(at) => parts.get(at),
        None => parts.iter().rev().max_by_key(|p| depth(p)),
    };
    let at = part.map_or_else(String::new, |p| p.at(&problem.path));
    match problem.path.is_empty() {
        true => format!("{at}: {}", problem.message),
        false => format!("{at}: {}: {}", problem.path.join("."), problem.message),
    }
}

impl Part {
    /// Whether the whole of `path` is in this file.
    fn has(&self, path: &[String]) -> bool {
        match path.split_last() {
            None => true,
            Some((last, above)) => {
                let above: Vec<&str> = above.iter().map(String::as_str).collect();
                self.places.keys(&above).contains(&last.as_str())
            }
        }
    }
}

/// Takes every key from the one file that sets it.
struct Merge<'a> {
    parts: &'a [Part],
    problems: Vec<Problem>,
}

fn merge(parts: &[Part]) -> (Config, Vec<Problem>) {
    let mut merge = Merge { parts, problems: Vec::new() };
    let config = Config {
        environment: merge.once(&["environment"], |c| &c.environment),
        host: merge.once(&["host"], |c| &c.host),
        agent_id: merge.once(&["agent_id"], |c| &c.agent_id),
        state_dir: merge.once(&["state_dir"], |c| &c.state_dir),
        timezone: merge.once(&["timezone"], |c| &c.timezone),
        week_start: merge.once(&["week_start"], |c| &c.week_start),
        destinations: merge.joined(&["destinations"], |c| &c.destinations),
        services: merge.joined(&["services"], |c| &c.services),
        check: Check {
            email: merge.once(&["check", "email"], |c| &c.check.email),
            max_age: merge.once(&["check", "max_age"], |c| &c.check.max_age),
            max_drill_age: merge.once(&["check", "max_drill_age"], |c| &c.check.max_drill_age),
            expect: merge.joined(&["check", "expect"], |c| &c.check.expect),
            metrics_file: merge.once(&["check", "metrics_file"], |c| &c.check.metrics_file),
        },
        mail: merge.once(&["mail"], |c| &c.mail),
        drill: merge.once(&["drill"], |c| &c.drill),
    };
    (config, merge.problems)
}

impl Merge<'_> {
    /// A setting that one file may set.
    fn once<T: Clone>(&mut self, path: &[&str], get: impl Fn(&Config) -> &T) -> T {
        let path: Vec<String> = path.iter().map(|s| (*s).to_owned()).collect();
        let mut set = self.parts.iter().enumerate().filter(|(_, p)| p.has(&path));
        let first = set.next();
        if let (Some((_, first)), Some((second, _))) = (first, set.next()) {
            let message = format!("set already at {}", first.at(&path));
            self.problems.push(Problem { part: Some(second), ..Problem::new(path.clone(), message) });
        }
        get(&first.map_or(&self.parts[0], |(_, p)| p).config).clone()
    }

    /// A mapping whose names may come from all files, each name from one.
    fn joined<T: Clone>(
        &mut self,
        path: &[&str],
        get: impl Fn(&Config) -> &BTreeMap<String, T>,
    ) -> BTreeMap<String, T> {
        let mut all: BTreeMap<String, (usize, T)> = BTreeMap::new();
        for (index, part) in self.parts.iter().enumerate() {
            for (name, value) in get(&part.config) {
                if let Some((first, _)) = all.get(name) {
                    let path: Vec<String> = path.iter().map(|s| (*s).to_owned()).chain([name.clone()]).collect();
                    let message = format!("stands already at {}", self.parts[*first].at(&path));
                    self.problems.push(Problem { part: Some(index), ..Problem::new(path, message) });
                } else {
                    all.insert(name.clone(), (index, value.clone()));
                }
            }
        }
        all.into_iter().map(|(name, (_, value))| (name, value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: &str = "environment: production
destinations: {offsite: {local: {path: /mnt/offsite}}}
services:
  files: {blobdir: {path: /srv/files}, destinations: [offsite], keep: {daily: 7}}
";

    fn in_dir(files: &[(&str, &str)]) -> (tempfile::TempDir, Result<Config>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("conf.d")).unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let config = load(&dir.path().join("backstay.yml"));
        (dir, config)
    }

    #[test]
    fn files_of_conf_d_add_services_and_destinations() {
        let more = "services:\n  more: {blobdir: {path: /srv/more}, destinations: [offsite, third], keep: {daily: 1}}\n\
                    destinations: {third: {local: {path: /mnt/third}}}\n";
        let files = [
            ("backstay.yml", MAIN),
            ("conf.d/more.yml", more),
            ("conf.d/ignored.yaml", "x: ["),
            ("conf.d/nothing.yml", "# later\n"),
        ];
        let config = in_dir(&files).1.unwrap();
        assert_eq!(config.services.keys().collect::<Vec<_>>(), ["files", "more"]);
        assert_eq!(config.destinations.len(), 2);
        assert_eq!(config.environment.as_deref(), Some("production"));
    }

    #[test]
    fn what_two_files_set_is_an_error_that_names_both() {
        let again = "\nservices:\n  files: {blobdir: {path: /srv/x}, destinations: [offsite], keep: {daily: 7}}\ntimezone: UTC\nenvironment: production\n";
        let (dir, config) = in_dir(&[("backstay.yml", MAIN), ("conf.d/again.yml", again)]);
        let text = config.unwrap_err().report().replace(&dir.path().display().to_string(), "DIR");
        assert_eq!(
            text,
            "error: 2 problems in the configuration\n  \
             DIR/conf.d/again.yml:5:1: environment: set already at DIR/backstay.yml:1:1\n  \
             DIR/conf.d/again.yml:3:3: services.files: stands already at DIR/backstay.yml:4:3"
        );
    }

    #[test]
    fn a_problem_names_the_file_that_it_is_in() {
        let more = "services:\n  more: {blobdir: {path: /srv/more}, destinations: [nowhere], keep: {daily: 1}}\n";
        let (_dir, config) = in_dir(&[("backstay.yml", MAIN), ("conf.d/more.yml", more)]);
        let text = config.unwrap_err().message;
        assert!(text.contains("conf.d/more.yml:2:53: services.more.destinations.0"), "{text}");
    }

    #[test]
    fn a_file_of_comments_is_an_empty_configuration() {
        assert_eq!(from_text("# nothing yet\n", "x").unwrap().timezone, "UTC");
    }
}
