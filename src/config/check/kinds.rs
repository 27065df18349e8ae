//! The settings of each kind of source and destination.

use std::path::Path;

use globset::GlobBuilder;

use super::{BlobdirConfig, Config, Found, PostgresConfig};
use crate::config::{CouchdbConfig, DestinationConfig, PostgresMethod, S3Checksum, S3Config, Sse};
use crate::units::Bytes;

/// S3 takes no smaller parts, except the last one.
const SMALLEST_PART: Bytes = Bytes(5 << 20);
/// S3 takes no larger parts.
const LARGEST_PART: Bytes = Bytes(5 << 30);
/// What `pg_basebackup --max-rate` takes.
const RATES: std::ops::RangeInclusive<u64> = (32 << 10)..=(1 << 30);
/// Slower than this, a backup never ends.
const SLOWEST_RATE: Bytes = Bytes(64 << 10);
/// Stands for the services' own directories on the command line (`--from local`).
const RESERVED_DESTINATION: &str = "local";

impl Found {
    /// Exactly one of the kinds is there.
    pub(super) fn one_kind(&mut self, kinds: &[(&str, bool)]) {
        let all: Vec<&str> = kinds.iter().map(|(kind, _)| *kind).collect();
        let there: Vec<&str> = kinds.iter().filter(|(_, there)| *there).map(|(kind, _)| *kind).collect();
        match there.as_slice() {
            [_] => {}
            [] => {
                self.wrong_hint("", "no kind", format!("add one of these keys with its settings: {}.", all.join(", ")))
            }
            many => {
                self.wrong_hint("", format!("two kinds: {}", many.join(", ")), "make two of it, each with one kind.");
            }
        }
    }

    pub(super) fn postgres(&mut self, postgres: &PostgresConfig) {
        for (key, path) in [
            ("bin_dir", &postgres.bin_dir),
            ("passfile", &postgres.passfile),
            ("staging_dir", &postgres.staging_dir),
            ("data_dir", &postgres.data_dir),
        ] {
            if let Some(path) = path {
                self.absolute(key, path);
            }
        }
        if postgres.port == Some(0) {
            self.wrong("port", "must be 1 or more");
        }
        self.at_least_one("jobs", postgres.jobs);
        if postgres.max_rate.is_some_and(|rate| !RATES.contains(&rate.0)) {
            self.wrong("max_rate", "must be 32KiB to 1GiB (per second)");
        }
        let plain = postgres.method == PostgresMethod::Plain;
        let databases = postgres.method == PostgresMethod::Databases;
        for (key, unused, of) in [
            ("include", !databases && !postgres.include.is_empty(), "databases"),
            ("exclude", !databases && !postgres.exclude.is_empty(), "databases"),
            ("staging_dir", !plain && postgres.staging_dir.is_some(), "plain"),
            ("max_rate", !plain && postgres.max_rate.is_some(), "plain"),
        ] {
            if unused {
                self.wrong(key, format!("has an effect with `method: {of}` only"));
            }
        }
        self.patterns("include", &postgres.include);
        self.patterns("exclude", &postgres.exclude);
    }

    pub(super) fn couchdb(&mut self, couchdb: &CouchdbConfig) {
        self.absolute("data_dir", &couchdb.data_dir);
        for (key, url) in [("url", &couchdb.url), ("node_local_url", &couchdb.node_local_url)] {
            self.url(key, url);
        }
        match (&couchdb.username, &couchdb.password) {
            (Some(_), None) => self.wrong_hint("password", "is missing", "name where it is: `{file: PATH}`."),
            (None, Some(_)) => self.wrong("username", "is missing"),
            _ => {}
        }
        if couchdb.node.as_ref().is_some_and(|node| !node.contains('@')) {
            self.wrong("node", "must have the form NAME@HOST");
        }
        if let Some(dir) = &couchdb.etc_dir {
            self.absolute("etc_dir", dir);
        } else if couchdb.etc_unencrypted {
            self.wrong("etc_unencrypted", "has an effect with `etc_dir` only");
        }
        self.at_least_one("readers", couchdb.readers);
        if couchdb.max_rate.is_some_and(|rate| rate < SLOWEST_RATE) {
            self.wrong("max_rate", "must be 64KiB or more (per second)");
        }
        for (key, command) in [("start", &couchdb.start), ("stop", &couchdb.stop)] {
            if command.first().is_none_or(String::is_empty) {
                self.wrong(key, "names no program");
            }
        }
    }

    pub(super) fn blobdir(&mut self, blobdir: &BlobdirConfig, config: &Config) {
        self.absolute("path", &blobdir.path);
        self.at_least_one("readers", blobdir.readers);
        self.patterns("exclude", &blobdir.exclude);
        let own = config.services.iter().filter_map(|(name, service)| {
            service.backup_dir.as_deref().map(|dir| (format!("services.{name}.backup_dir"), dir))
        });
        let copies = config.destinations.iter().filter_map(|(name, destination)| {
            destination.local.as_ref().map(|local| (format!("destinations.{name}.local.path"), local.path.as_path()))
        });
        for (key, dir) in own.chain(copies) {
            if let Ok(below) = dir.strip_prefix(&blobdir.path)
                && !is_left_out(below, &blobdir.exclude)
            {
                let message = format!("would back itself up: {key} \"{}\" lies in it", dir.display());
                self.wrong_hint("path", message, "move it, or leave it out with `exclude`.");
            }
        }
    }

    pub(super) fn patterns(&mut self, key: &str, patterns: &[String]) {
        for (index, pattern) in patterns.iter().enumerate() {
            if GlobBuilder::new(pattern).build().is_err() {
                self.wrong(&format!("{key}.{index}"), format!("not a pattern: \"{pattern}\""));
            }
        }
    }

    pub(super) fn destination(&mut self, name: &str, destination: &DestinationConfig) {
        self.name("", "a destination", name);
        if name == RESERVED_DESTINATION {
            let message = "the name \"local\" is taken: it stands for the services' own directories";
            self.wrong_hint("", message, "call it after where it is, such as `nas` or `disk2`.");
        }
        self.one_kind(&[("s3", destination.s3.is_some()), ("local", destination.local.is_some())]);
        if let Some(s3) = &destination.s3 {
            self.at(&["s3"], |f| f.s3(s3));
        }
        if let Some(local) = &destination.local {
            self.at(&["local"], |f| f.absolute("path", &local.path));
        }
    }

    fn s3(&mut self, s3: &S3Config) {
        if s3.bucket.is_empty() || s3.bucket.contains(['/', ':', ' ']) {
            self.wrong_hint(
                "bucket",
                format!("\"{}\" is not a bucket's name", s3.bucket),
                "write the name alone, and folders as `prefix`.",
            );
        }
        if s3.region.is_empty() {
            self.wrong("region", "is empty");
        }
        if let Some(endpoint) = &s3.endpoint {
            self.endpoint(endpoint, s3.checksum);
        }
        if let Some(prefix) = &s3.prefix
            && prefix.split('/').any(|part| part.is_empty() || part == "." || part == "..")
        {
            self.wrong("prefix", "must be names joined by `/`, without one at its begin or end");
        }
        if !(SMALLEST_PART..=LARGEST_PART).contains(&s3.part_size) {
            self.wrong("part_size", "must be 5MiB to 5GiB");
        }
        self.at_least_one("concurrency", s3.concurrency);
        self.at_least_one("download_concurrency", s3.download_concurrency);
        if s3.upload_memory().0 / 2 < s3.part_size.0 {
            self.wrong("upload_memory", "must have room for two parts of `part_size`");
        }
        self.longer_than_nothing("call_timeout", s3.call_timeout);
        if matches!(s3.storage_class.as_deref(), Some("GLACIER" | "DEEP_ARCHIVE")) {
            self.wrong_hint(
                "storage_class",
                "is an archive class: nothing could be read back, not even what points there are".to_owned(),
                "let a lifecycle rule of the bucket move old objects there, but no manifests.",
            );
        }
        if let Some(ca_file) = &s3.ca_file {
            self.absolute("ca_file", ca_file);
        }
        if matches!(&s3.sse, Some(Sse::Kms(key)) if key.is_empty()) {
            self.wrong("sse.kms", "is empty");
        }
    }

    /// The text is not repeated: it may hold a password.
    fn url(&mut self, key: &str, url: &str) {
        let rest = url.strip_prefix("https://").or(url.strip_prefix("http://"));
        match rest.map(|rest| rest.trim_end_matches('/')) {
            None => self.wrong(key, "must begin with https:// or http://"),
            Some("") => self.wrong(key, "must name a host"),
            Some(host) if host.contains('@') => {
                self.wrong_hint(key, "holds a user or a password", "name them with `username` and `password`.");
            }
            Some(_) => {}
        }
    }

    /// The text is not repeated: it may hold a password.
    fn endpoint(&mut self, endpoint: &str, checksum: S3Checksum) {
        let Some((scheme, rest)) = endpoint.split_once("://") else {
            return self.wrong("endpoint", "must begin with https:// or http://");
        };
        if !matches!(scheme, "http" | "https") || rest.is_empty() {
            self.wrong("endpoint", "must begin with https:// or http:// and name a host");
        }
        if rest.contains('@') {
            self.wrong_hint("endpoint", "holds a user or a password", "name them with `credentials`.");
        }
        if scheme == "http" && checksum == S3Checksum::Crc64nvme {
            self.wrong("checksum", "`crc64nvme` needs an endpoint with https://");
        }
    }
}

/// Whether a pattern names the directory, or everything in it.
fn is_left_out(below: &Path, patterns: &[String]) -> bool {
    let inside = below.join("x");
    below.components().next().is_some()
        && patterns.iter().any(|pattern| {
            GlobBuilder::new(pattern).literal_separator(true).build().is_ok_and(|glob| {
                let glob = glob.compile_matcher();
                below.ancestors().any(|dir| glob.is_match(dir)) || glob.is_match(&inside)
            })
        })
}
