//! What the types cannot say: names, references, ranges, and settings that contradict each other. Finds all problems
//! at once; needs no network, no credentials and no other file.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::{BlobdirConfig, Compression, Config, Drill, Keep, PostgresConfig, Service, UsedDestination};
use crate::manifest::Algorithm;
use crate::units::{Cadence, Span, is_name};

mod kinds;
mod mail;
mod search;

/// Something that is wrong with the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The keys that lead to it: `services`, `postgres`, `keep`.
    pub path: Vec<String>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// Which of the merged files, when that is known.
    pub(super) part: Option<usize>,
}

impl Problem {
    pub(super) fn new(path: Vec<String>, message: impl Into<String>) -> Self {
        Self { path, message: message.into(), hint: None, part: None }
    }
}

/// Everything that is wrong with a configuration; empty = nothing.
pub fn problems(config: &Config) -> Vec<Problem> {
    let mut found = Found::default();
    found.general(config);
    for (name, destination) in &config.destinations {
        found.at(&["destinations", name], |f| f.destination(name, destination));
    }
    for (name, service) in &config.services {
        found.at(&["services", name], |f| f.service(name, service, config));
    }
    found.cycles(config);
    found.at(&["drill"], |f| f.drill(&config.drill, config));
    found.at(&["check"], |f| f.check(config));
    if let Some(mail) = &config.mail {
        found.at(&["mail"], |f| f.mail(mail));
    }
    found.problems
}

/// Problems so far, and the path that is being looked at.
#[derive(Debug, Default)]
struct Found {
    problems: Vec<Problem>,
    path: Vec<String>,
}

impl Found {
    /// Looks at what lies below `keys`.
    fn at(&mut self, keys: &[&str], look: impl FnOnce(&mut Self)) {
        let depth = self.path.len();
        self.path.extend(keys.iter().map(|k| (*k).to_owned()));
        look(self);
        self.path.truncate(depth);
    }
    /// A problem with `key` of what is being looked at; an empty key is the thing itself.
    fn wrong(&mut self, key: &str, message: impl Into<String>) {
        let mut path = self.path.clone();
        path.extend(key.split('.').filter(|k| !k.is_empty()).map(str::to_owned));
        self.problems.push(Problem::new(path, message));
    }
    /// The same, with what to do about it.
    fn wrong_hint(&mut self, key: &str, message: impl Into<String>, hint: impl Into<String>) {
        self.wrong(key, message);
        if let Some(last) = self.problems.last_mut() {
            last.hint = Some(hint.into());
        }
    }
    fn name(&mut self, key: &str, what: &str, name: &str) {
        if !is_name(name) {
            let hint = "use 1 to 63 of the characters a-z, 0-9 and -.";
            self.wrong_hint(key, format!("\"{name}\" cannot name {what}"), hint);
        }
    }
    fn absolute(&mut self, key: &str, path: &Path) {
        if !path.is_absolute() || path.components().any(|c| c == Component::ParentDir) {
            self.wrong(key, format!("\"{}\" is not an absolute path without `..`", path.display()));
        }
    }
    fn at_least_one(&mut self, key: &str, number: u32) {
        if number == 0 {
            self.wrong(key, "must be 1 or more");
        }
    }
    fn longer_than_nothing(&mut self, key: &str, span: Span) {
        if span.as_secs() == 0 {
            self.wrong(key, "must be longer than nothing");
        }
    }

    fn general(&mut self, config: &Config) {
        if let Some(environment) = &config.environment {
            self.name("environment", "an environment", environment);
        }
        if let Some(host) = &config.host {
            self.name("host", "a host", host);
        }
        if config.agent_id.as_deref().is_some_and(|id| id.is_empty() || id.contains(char::is_whitespace)) {
            self.wrong("agent_id", "must be one word");
        }
        self.absolute("state_dir", &config.state_dir);
        if config.timezone.parse::<chrono_tz::Tz>().is_err() {
            let message = format!("no such time zone: \"{}\"", config.timezone);
            self.wrong_hint("timezone", message, "write a name of the tz database, such as UTC or Europe/Berlin.");
        }
    }

    fn service(&mut self, name: &str, service: &Service, config: &Config) {
        self.name("", "a service", name);
        self.one_kind(&[
            ("postgres", service.postgres.is_some()),
            ("couchdb", service.couchdb.is_some()),
            ("blobdir", service.blobdir.is_some()),
            ("elasticsearch", service.elasticsearch.is_some()),
        ]);
        if let Some(postgres) = &service.postgres {
            self.at(&["postgres"], |f| f.postgres(postgres));
        }
        if let Some(couchdb) = &service.couchdb {
            self.at(&["couchdb"], |f| f.couchdb(couchdb));
        }
        if let Some(blobdir) = &service.blobdir {
            self.at(&["blobdir"], |f| f.blobdir(blobdir, config));
        }
        if let Some(elasticsearch) = &service.elasticsearch {
            self.at(&["elasticsearch"], |f| f.elasticsearch(elasticsearch, service, config));
        }
        if let Some(dir) = &service.backup_dir {
            self.absolute("backup_dir", dir);
        }
        if service.backup_dir.is_none() && service.destinations.is_empty() {
            self.wrong_hint("", "has nowhere to go", "set `backup_dir`, `destinations` or both.");
        }
        self.used_destinations(service, config);
        self.keeps(service);
        for (index, other) in service.after.iter().enumerate() {
            if !config.services.contains_key(other) {
                self.wrong(&format!("after.{index}"), format!("there is no service \"{other}\""));
            }
        }
        self.longer_than_nothing("timeout", service.timeout);
        self.longer_than_nothing("stall_timeout", service.stall_timeout);
        self.at(&["compression"], |f| f.compression(&service.compression));
        self.recipients(&service.encrypt_to);
        if service.suspect_below_percent > 100 {
            self.wrong("suspect_below_percent", "must be 0 to 100");
        }
        self.max_age(&service.max_age);
        if let Some(rto) = service.rto {
            self.longer_than_nothing("rto", rto);
        }
        self.at(&["drill"], |f| f.drill(&service.drill, config));
    }

    /// A scratch directory in what is backed up would be backed up, and in a directory of points it would be swept.
    fn drill(&mut self, drill: &Drill, config: &Config) {
        if let Some(keep) = drill.keep {
            self.longer_than_nothing("keep", keep);
        }
        let Some(scratch) = &drill.scratch_dir else { return };
        self.absolute("scratch_dir", scratch);
        for (key, dir) in config.data_dirs() {
            if scratch.starts_with(&dir) {
                let message = format!("\"{}\" lies in {key} \"{}\"", scratch.display(), dir.display());
                self.wrong_hint("scratch_dir", message, "name a directory of its own.");
            }
        }
    }

    fn used_destinations(&mut self, service: &Service, config: &Config) {
        let mut seen = BTreeSet::new();
        for (index, UsedDestination { name, .. }) in service.destinations.iter().enumerate() {
            let key = format!("destinations.{index}");
            if !seen.insert(name) {
                self.wrong(&key, format!("\"{name}\" is here twice"));
            } else if !config.destinations.contains_key(name) {
                let known: Vec<&str> = config.destinations.keys().map(String::as_str).collect();
                let hint = super::explain::nearest(name, &known, "names");
                self.wrong_hint(&key, format!("there is no destination \"{name}\""), hint);
            }
        }
    }

    /// Each place has a policy: its own or the service's.
    fn keeps(&mut self, service: &Service) {
        let own = service.destinations.iter().enumerate().filter_map(|(i, d)| d.keep.as_ref().map(|keep| (i, keep)));
        for (index, keep) in own {
            self.at(&["destinations", &index.to_string()], |f| f.keep(keep, true));
        }
        let needed = service.backup_dir.is_some() || service.destinations.iter().any(|d| d.keep.is_none());
        self.keep(&service.keep, needed);
    }

    fn keep(&mut self, keep: &Keep, needed: bool) {
        if needed && keep.cadences().next().is_none() {
            self.wrong_hint(
                "keep",
                "no cadence is enabled",
                "say how many are kept, such as `keep: {daily: 7, weekly: 4}`.",
            );
        }
        for cadence in keep.cadences().filter(|c| keep.get(*c) == Some(0)) {
            let hint = format!("leave `{cadence}` out to turn it off.");
            self.wrong_hint(&format!("keep.{cadence}"), "must be 1 or more", hint);
        }
    }

    fn compression(&mut self, compression: &Compression) {
        let (name, levels) = match compression.algorithm {
            Algorithm::Zstd => ("zstd", 1..=19),
            Algorithm::Gzip => ("gzip", 1..=12),
            Algorithm::None => ("none", 0..=0),
        };
        if let Some(level) = compression.level
            && !levels.contains(&level)
        {
            let range = format!("{} to {}", levels.start(), levels.end());
            self.wrong(
                "level",
                if name == "none" { "`none` has no level".to_owned() } else { format!("{name} has levels {range}") },
            );
        }
        if let Some(threads) = compression.threads {
            self.at_least_one("threads", threads);
        }
    }

    /// A path is not read here: it need not be on the machine that checks.
    fn recipients(&mut self, recipients: &[String]) {
        for (index, recipient) in recipients.iter().enumerate() {
            let key = format!("encrypt_to.{index}");
            if recipient.starts_with("AGE-SECRET-KEY-") {
                let hint = "remove it, make a new pair with `age-keygen`, and write the public key here.";
                self.wrong_hint(&key, "this is a private key, and it stands in a configuration", hint);
            } else if !recipient.starts_with('/') && recipient.parse::<age::x25519::Recipient>().is_err() {
                let hint = "write a public key (age1...) or the absolute path of a file of them.";
                self.wrong_hint(&key, format!("\"{recipient}\" is not an age recipient"), hint);
            }
        }
    }

    fn max_age(&mut self, ages: &std::collections::BTreeMap<Cadence, Span>) {
        for (cadence, age) in ages {
            let key = format!("max_age.{cadence}");
            if *cadence == Cadence::Manual {
                self.wrong(&key, "manual points are never due");
            }
            self.longer_than_nothing(&key, *age);
        }
    }

    /// Each service that waits for itself, directly or through others, is named once per cycle.
    fn cycles(&mut self, config: &Config) {
        let mut named = BTreeSet::new();
        for start in config.services.keys() {
            if let Some(cycle) = cycle_through(config, start)
                && !cycle.iter().any(|name| named.contains(name))
            {
                let way: Vec<String> = cycle.iter().chain([start]).map(|n| format!("\"{n}\"")).collect();
                let message = format!("they wait for each other: {}", way.join(" after "));
                self.at(&["services", start], |f| f.wrong("after", message));
                named.extend(cycle);
            }
        }
    }
}

/// The services from `start` back to itself along `after`.
fn cycle_through(config: &Config, start: &String) -> Option<Vec<String>> {
    let mut seen = BTreeSet::new();
    let mut ways = vec![vec![start.clone()]];
    while let Some(way) = ways.pop() {
        let Some(service) = way.last().and_then(|name| config.services.get(name)) else { continue };
        for next in &service.after {
            if next == start {
                return Some(way);
            }
            if seen.insert(next) {
                ways.push(way.iter().cloned().chain([next.clone()]).collect());
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use crate::config::parse::from_text;

    fn problems_of(text: &str) -> String {
        from_text(text, "x.yml").unwrap_err().report()
    }

    #[test]
    fn all_problems_are_found_in_one_pass() {
        let text = "timezone: Mars\nservices:\n  A: {keep: {daily: 0}}\n  b:\n    postgres: {method: plain, jobs: 0}\n    blobdir: {path: x}\n    backup_dir: /b\n    keep: {daily: 1}\n    after: [c]\n";
        let report = problems_of(text);
        for part in [
            "x.yml:1:1: timezone: no such time zone: \"Mars\"",
            "x.yml:3:3: services.A: \"A\" cannot name a service",
            "services.A: has nowhere to go",
            "x.yml:3:14: services.A.keep.daily: must be 1 or more",
            "x.yml:4:3: services.b: two kinds: postgres, blobdir",
            "x.yml:5:31: services.b.postgres.jobs: must be 1 or more",
            "services.b.blobdir.path: \"x\" is not an absolute path",
            "x.yml:9:13: services.b.after.0: there is no service \"c\"",
        ] {
            assert!(report.contains(part), "{part} is not in:\n{report}");
        }
    }

    #[test]
    fn a_blob_directory_does_not_back_itself_up() {
        let text = |path: &str, exclude: &str| {
            format!(
                "services:\n  a: {{blobdir: {{path: {path}, exclude: [{exclude}]}}, backup_dir: /data/backups/a, keep: {{daily: 1}}}}\n"
            )
        };
        assert!(problems_of(&text("/data", "")).contains("would back itself up"));
        assert!(problems_of(&text("/data/backups/a", "")).contains("would back itself up"));
        assert!(from_text(&text("/data", "'backups/**'"), "x").is_ok(), "left out by a pattern");
        assert!(from_text(&text("/data/backups/ab", ""), "x").is_ok());
    }

    #[test]
    fn encryption_keys_are_checked_and_private_ones_never_repeated() {
        let text = |key: &str| {
            format!(
                "services:\n  a: {{blobdir: {{path: /a}}, backup_dir: /b, keep: {{daily: 1}}, encrypt_to: [{key}]}}\n"
            )
        };
        let good = age::x25519::Identity::generate();
        assert!(from_text(&text(&good.to_public().to_string()), "x").is_ok());
        assert!(from_text(&text("/etc/backstay/recipients"), "x").is_ok());
        assert!(problems_of(&text("age1nonsense")).contains("is not an age recipient"));
        let report = problems_of(&text("AGE-SECRET-KEY-1QQQQ"));
        assert!(report.contains("private key") && !report.contains("1QQQQ"), "{report}");
    }
}
