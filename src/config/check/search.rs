//! The settings of an Elasticsearch or OpenSearch cluster.

use super::Found;
use crate::config::{Config, ElasticsearchConfig, RepositoryConfig, Service};

impl Found {
    pub(super) fn elasticsearch(&mut self, search: &ElasticsearchConfig, service: &Service, config: &Config) {
        self.cluster_url(&search.url);
        self.search_login(search);
        if let Some(ca_file) = &search.ca_file {
            self.absolute("ca_file", ca_file);
        }
        self.patterns("include", &search.include);
        self.patterns("exclude", &search.exclude);
        if search.repositories.is_empty() {
            let hint = "name one, such as `repositories: {local: {fs: {location: snapshots}}}`.";
            self.wrong_hint("repositories", "there is none", hint);
        }
        for (name, repository) in &search.repositories {
            self.at(&["repositories", name], |f| f.repository(name, repository, config));
        }
        self.archives(search, service, config);
        self.longer_than_nothing("snapshot_timeout", search.snapshot_timeout);
        self.longer_than_nothing("call_timeout", search.call_timeout);
        if search.snapshot_timeout.0 >= service.timeout.0 {
            let message = format!("must be less than `timeout` of the service ({})", service.timeout);
            self.wrong("snapshot_timeout", message);
        }
        self.records_have_snapshots(service);
    }

    /// The text is not repeated: it may hold a password.
    fn cluster_url(&mut self, url: &str) {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        match rest {
            None | Some("") => self.wrong("url", "must begin with https:// or http:// and name a host"),
            Some(rest) if rest.contains('@') => {
                self.wrong_hint("url", "holds a user or a password", "name them with `username` and `password`.");
            }
            Some(rest) if rest.contains(['?', '#', ' ']) => self.wrong("url", "is not the address of a cluster"),
            Some(_) => {}
        }
    }

    fn search_login(&mut self, search: &ElasticsearchConfig) {
        match (&search.username, &search.password, &search.api_key) {
            (None, None, _) | (Some(_), Some(_), None) => {}
            (_, _, Some(_)) => self.wrong("api_key", "goes without `username` and `password`"),
            (Some(_), None, None) => self.wrong_hint("username", "needs a `password`", "write {file: PATH}."),
            (None, Some(_), None) => self.wrong("password", "needs a `username`"),
        }
    }

    fn repository(&mut self, name: &str, repository: &RepositoryConfig, config: &Config) {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.starts_with(['_', '-', '.']) || !name.bytes().all(plain) {
            let hint = "use the characters a-z, 0-9, -, _ and ., and begin with a letter or a digit.";
            self.wrong_hint("", format!("\"{name}\" cannot name a repository"), hint);
        }
        self.one_kind(&[
            ("fs", repository.fs.is_some()),
            ("s3", repository.s3.is_some()),
            ("existing", repository.existing),
        ]);
        if repository.fs.as_ref().is_some_and(|fs| fs.location.is_empty()) {
            self.wrong("fs.location", "is empty");
        }
        if let Some(s3) = &repository.s3 {
            if s3.bucket.is_empty() || s3.bucket.contains(['/', ':', ' ']) {
                self.wrong("s3.bucket", format!("\"{}\" is not a bucket's name", s3.bucket));
            }
            if s3.base_path.as_ref().is_some_and(|p| p.is_empty() || p.starts_with('/') || p.ends_with('/')) {
                self.wrong("s3.base_path", "must be names joined by `/`, without one at its begin or end");
            }
        }
        if repository.existing && !repository.settings.is_empty() {
            self.wrong("settings", "an existing repository keeps the settings it has");
        }
        for key in repository.settings.keys().filter(|k| k.contains("secret_key") || k.contains("access_key")) {
            let hint = "put it into the keystore of each node; docs/elasticsearch.md says how.";
            self.wrong_hint(&format!("settings.{key}"), "a key does not belong into a configuration", hint);
        }
        if let Some(keep) = &repository.keep {
            self.keep(keep, true);
        }
        if let Some(with) = &repository.look_with
            && config.destinations.get(with).is_none_or(|d| d.s3.is_none())
        {
            self.wrong("look_with", format!("there is no destination \"{with}\" of kind s3"));
        }
    }

    fn archives(&mut self, search: &ElasticsearchConfig, service: &Service, config: &Config) {
        let mut first: Option<&String> = None;
        for (name, repository) in search.repositories.iter().filter(|(_, r)| r.archive) {
            let key = format!("repositories.{name}.archive");
            if let Some(first) = first {
                let message = format!("\"{first}\" is archived too");
                self.wrong_hint(&key, message, "they hold the same: leave it out of one of them.");
            }
            first.get_or_insert(name);
            let Some(fs) = &repository.fs else {
                self.wrong(&key, "only an `fs` repository has a directory");
                continue;
            };
            let copies = config.destinations.values().filter_map(|d| Some(d.local.as_ref()?.path.as_path()));
            for dir in service.backup_dir.as_deref().into_iter().chain(copies).filter(|d| d.starts_with(&fs.location)) {
                let message = format!("would archive itself: \"{}\" lies in it", dir.display());
                self.wrong(&format!("repositories.{name}.fs.location"), message);
            }
        }
    }

    /// A manifest whose snapshots are gone everywhere is no restore point, unless it has the files too.
    fn records_have_snapshots(&mut self, service: &Service) {
        if service.elasticsearch.iter().flat_map(|e| e.repositories.values()).any(|r| r.archive) {
            return;
        }
        let wanted = service.widest_keep();
        let keeps = service.repository_keeps();
        for cadence in wanted.cadences() {
            let most = keeps.values().filter_map(|k| k.get(cadence)).max().unwrap_or(0);
            let records = wanted.get(cadence).unwrap_or(0);
            if !keeps.is_empty() && most < records {
                let message = format!("{records} {cadence} points are kept, but no repository keeps so many snapshots");
                let hint = format!("raise `keep.{cadence}` of a repository to {records}, or keep fewer points.");
                self.wrong_hint("repositories", message, hint);
            }
        }
    }
}
