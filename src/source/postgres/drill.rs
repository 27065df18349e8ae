//! A drill: a point is restored into a throw-away cluster, made by this host's own programs, started, and asked.
//!
//! - `plain`: every file against the manifest of the copy (`pg_verifybackup`); system identifier, position and relations against what was captured; a file for every relation; every
//!   index and table by `pg_amcheck`, where it is installed; every row read, by `pg_dumpall`.
//! - `dump`, `databases`: every error but that of the role that exists already is a failure; rows per table against
//!   those that were counted at capture.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::Path;

use serde::Deserialize;

use super::connect::judge;
use super::extract::{blocking, extract, read_all};
use super::place::{Owner, give, owner};
use super::relations::{self, Relation};
use super::restore_dump::feed;
use super::scratch::{Live, Scratch, programs};
use super::{Postgres, inventory, staged};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Manifest;
use crate::source::{Context, DrillLevel, DrillRequest, Drilled, PointReader, RestoreRequest, Seconds, Stopwatch};

/// What an empty cluster and the WAL that a drill writes need.
const CLUSTER_BYTES: u64 = 192 << 20;
/// Differences that are told; the rest is only counted.
const MAX_TOLD: usize = 10;
/// What is removed from a copy: signs of a server that runs, or that follows another.
const STALE: &[&str] =
    &["postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "postgresql.auto.conf"];
/// Longest inventory that is read.
const INVENTORY_LIMIT: u64 = 1 << 30;

/// See [`crate::source::Source::drill_bytes`]: SQL becomes larger as tables and indexes.
pub(super) fn bytes(point: &Manifest) -> u64 {
    let plain =
        point.artefacts.iter().filter(|a| a.role == crate::artefact::Role::Data).map(|a| a.plain_bytes).sum::<u64>();
    match point.method.as_str() {
        "plain" => plain + plain / 20 + CLUSTER_BYTES,
        _ => plain.saturating_mul(2) + CLUSTER_BYTES,
    }
}

/// See [`crate::source::Source::drill`].
pub(super) async fn drill(
    source: &Postgres,
    cx: &Context,
    point: &PointReader,
    request: &DrillRequest,
) -> Result<Drilled> {
    let version = point.manifest.server_version.clone().unwrap_or_default();
    let major: String = version.chars().take_while(char::is_ascii_digit).collect();
    let major = major.parse().map_err(|_| {
        Error::new(ErrorKind::Corrupt, format!("the manifest says {version:?} as the version of its server"))
    })?;
    let plain = point.manifest.method == "plain";
    let (bin, major) = programs(cx, &source.config, major, !plain).await?;
    let owner = owner(None, &request.scratch)?;
    let scratch = Scratch::make(&request.scratch, bin, major, owner)?;
    let mut work =
        Work { cx, point, request, scratch, watch: Stopwatch::start(&cx.clock), seconds: Seconds::default() };
    match point.manifest.method.as_str() {
        "plain" => work.plain(source).await,
        "dump" => work.dump().await,
        "databases" => work.databases().await,
        other => Err(super::unknown_method(other)),
    }
}

struct Work<'a> {
    cx: &'a Context,
    point: &'a PointReader,
    request: &'a DrillRequest,
    scratch: Scratch,
    watch: Stopwatch,
    seconds: Seconds,
}

/// What the inventory of a `plain` point says.
#[derive(Debug, Default)]
struct Expected {
    superuser: Option<String>,
    relations: Vec<Relation>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Item {
    Relation(Relation),
    Superuser { superuser: String },
    Other(serde::de::IgnoredAny),
}

impl Work<'_> {
    async fn plain(&mut self, source: &Postgres) -> Result<Drilled> {
        self.unpack().await?;
        let expected = self.expected().await?;
        self.seconds.restore = self.watch.lap();
        let mut found = Findings::default();
        self.verify_files(&mut found).await?;
        self.seconds.compare = self.watch.lap();
        if !found.differences.is_empty() {
            // A server is not started on what is known to be wrong.
            return Ok(found.drilled_to(DrillLevel::Files, self.seconds));
        }
        let mut superusers: Vec<String> = expected.superuser.iter().cloned().collect();
        superusers.extend(["postgres".to_owned()].into_iter().chain(source.config.username.clone()));
        let user = nix::unistd::User::from_uid(self.scratch.owner.uid.into()).ok().flatten();
        superusers.extend(user.map(|u| u.name));
        let live = self.scratch.start(self.cx, &superusers, self.request.wait).await?;
        self.seconds.start = self.watch.lap();
        let outcome = self.examine(&live, &expected, &mut found).await;
        self.seconds.compare += self.watch.lap();
        live.stop().await;
        outcome.map(|()| found.drilled(self.seconds))
    }

    /// Extracts everything below the scratch directory; no link of the copy leads out of it.
    async fn unpack(&self) -> Result<()> {
        let Scratch { data, tablespaces, owner, .. } = &self.scratch;
        let owner = *owner;
        for artefact in &self.point.manifest.artefacts {
            let name = artefact.plain_name();
            let part = name.strip_suffix(".tar").unwrap_or_default();
            let into = match part {
                "data" | "base" => data.clone(),
                oid if !oid.is_empty() && oid.bytes().all(|b| b.is_ascii_digit()) => {
                    let dir = tablespaces.join(oid);
                    make_dir(&dir, owner)?;
                    dir
                }
                _ if name == format!("{}.json", staged::MANIFEST) => {
                    let path = data.join(staged::MANIFEST);
                    let reader = self.point.open(artefact).await?;
                    let text = blocking(reader, &self.cx.cancel, |from| read_all(from, 4 << 30)).await?;
                    write(&path, &text, owner)?;
                    continue;
                }
                _ => continue,
            };
            let reader = self.point.open(artefact).await?;
            blocking(reader, &self.cx.cancel, move |from| extract(from, &into, owner)).await?;
        }
        link_tablespaces(data, tablespaces, owner)
    }

    /// Every file against the manifest of the copy; afterwards, what production left in it is removed.
    async fn verify_files(&self, found: &mut Findings) -> Result<()> {
        let Scratch { data, tablespaces, owner, bin, .. } = &self.scratch;
        if bin.join("pg_verifybackup").exists() {
            let program = self.scratch.program("pg_verifybackup").arg(data);
            let run = program.collect(&self.cx.cancel, 1 << 20).await;
            let (_, ended) = run.map_err(|e| self.scratch.unreachable(e))?;
            if !ended.status.success() {
                let said = ended.stderr.lines().map(|l| l.trim_start_matches("pg_verifybackup: "));
                said.filter(|l| !l.is_empty()).for_each(|l| found.differ(l.to_owned()));
            }
        } else {
            found
                .notes
                .push("pg_verifybackup is not installed: files were not compared with the copy's manifest".into());
        }
        for name in STALE {
            let _ = fs::remove_file(data.join(name));
        }
        // The server reads this file whatever its configuration is.
        write(&data.join("postgresql.auto.conf"), b"", *owner)?;
        let mut map = String::new();
        for entry in fs::read_dir(tablespaces).into_iter().flatten().flatten() {
            map.push_str(&format!("{} {}\n", entry.file_name().display(), entry.path().display()));
        }
        write(&data.join("tablespace_map"), map.as_bytes(), *owner)
    }

    async fn expected(&self) -> Result<Expected> {
        let artefact = super::find(self.point, &format!("{}.jsonl", inventory::NAME))?;
        let reader = self.point.open(artefact).await?;
        let text = blocking(reader, &self.cx.cancel, |from| read_all(from, INVENTORY_LIMIT)).await?;
        let mut expected = Expected::default();
        for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(Item::Relation(relation)) => expected.relations.push(relation),
                Ok(Item::Superuser { superuser }) => expected.superuser = Some(superuser),
                Ok(Item::Other(_)) => {}
                Err(e) => return Err(Error::new(ErrorKind::Corrupt, "the inventory makes no sense").caused_by(e)),
            }
        }
        Ok(expected)
    }

    async fn examine(&self, live: &Live, expected: &Expected, found: &mut Findings) -> Result<()> {
        self.identity(live, found).await?;
        self.relations(live, expected, found).await?;
        self.amcheck(live, found).await?;
        self.read_everything(live).await
    }

    /// The same cluster, at the position of the copy or after it.
    async fn identity(&self, live: &Live, found: &mut Findings) -> Result<()> {
        let manifest = &self.point.manifest;
        let position = manifest.position.as_deref().unwrap_or("0/0");
        let query = format!(
            "select json_build_array((select system_identifier::text from pg_control_system()),
             pg_current_wal_insert_lsn()::text, pg_current_wal_insert_lsn() >= {}::pg_lsn)",
            super::connect::literal(position)
        );
        let (identifier, lsn, reached): (String, String, bool) =
            live.client.query(self.cx, "template1", &query).await?;
        match manifest.attributes.get("system_identifier") {
            Some(captured) if *captured != identifier => {
                found.differ(format!("the system identifier is {identifier}, {captured} was captured"));
            }
            Some(_) => {}
            None => found.notes.push("the system identifier was not captured, so it was not compared".into()),
        }
        if !reached {
            found.differ(format!("the position is {lsn}, before the {position} at which the copy began"));
        }
        Ok(())
    }

    /// Every captured relation is there, and every relation of the catalogue has its file.
    async fn relations(&self, live: &Live, expected: &Expected, found: &mut Findings) -> Result<()> {
        let databases = "select json_agg(datname order by datname) from pg_database where datallowconn";
        let databases: Vec<String> = live.client.query(self.cx, "template1", databases).await?;
        let mut there = BTreeSet::new();
        let files = "select coalesce(json_agg(c.oid::regclass::text), '[]') from pg_class c
             where relkind in ('r', 'i', 'S', 't', 'm') and relpersistence <> 't'
             and (pg_stat_file(pg_relation_filepath(c.oid), true)).size is null";
        for database in &databases {
            let seen: Vec<Relation> = live.client.query(self.cx, database, &relations::query(database)).await?;
            found.count("relations", seen.len() as u64);
            there.extend(seen.into_iter().map(|r| (r.database, r.relation, r.kind)));
            let missing: Vec<String> = live.client.query(self.cx, database, files).await?;
            for name in missing {
                found.differ(format!("database {database:?}: relation {name} has no file"));
            }
        }
        found.count("databases", databases.len() as u64);
        if expected.relations.is_empty() {
            found.notes.push("the relations were not captured, so they were not compared".into());
        }
        for r in &expected.relations {
            if !there.contains(&(r.database.clone(), r.relation, r.kind.clone())) {
                found.differ(format!("database {:?}: relation {} is missing", r.database, r.name));
            }
        }
        Ok(())
    }

    async fn amcheck(&self, live: &Live, found: &mut Findings) -> Result<()> {
        if self.scratch.major < 14 || !self.scratch.bin.join("pg_amcheck").exists() {
            found.notes.push("pg_amcheck is not installed: indexes were not checked against their tables".into());
            return Ok(());
        }
        let program = live.client.client("pg_amcheck")?;
        let program = program.args(["--all", "--install-missing", "--heapallindexed"]);
        let (out, ended) = program.collect(&self.cx.cancel, 64 << 20).await?;
        let said = format!("{}\n{}", String::from_utf8_lossy(&out), ended.stderr);
        match ended.status.code() {
            Some(0) => {}
            Some(2) => said.lines().filter(|l| !l.trim().is_empty()).for_each(|l| found.differ(l.trim().to_owned())),
            _ if said.contains("could not open extension control file") || said.contains("is not available") => {
                found.notes.push("the extension amcheck is not installed: indexes were not checked".into());
            }
            _ => return Err(judge(&ended, "pg_amcheck").err().unwrap_or_else(|| ended.failure("pg_amcheck"))),
        }
        Ok(())
    }

    /// `pg_dumpall` reads every row of every table, with what lies outside of the row.
    async fn read_everything(&self, live: &Live) -> Result<()> {
        let program = live.client.client("pg_dumpall")?.args(["-l", "template1"]);
        let ended = feed(self.cx, program, Box::pin(tokio::io::empty())).await?;
        if ended.status.success() {
            return Ok(());
        }
        let said = ended.failure("pg_dumpall").chain();
        if ["could not access file", "could not load library"].iter().any(|text| said.contains(text)) {
            return Err(Error::new(ErrorKind::Config, "a library that tables of this copy need is not on this host")
                .caused_by(said)
                .hint("install the packages of the server's extensions, or drill on a host that has them."));
        }
        Err(Error::new(ErrorKind::Corrupt, "not every table of the restored server can be read")
            .caused_by(said)
            .hint("restore another point, and look at production: it may be damaged in the same way."))
    }

    /// An empty cluster, started.
    async fn empty(&mut self) -> Result<Live> {
        self.scratch.init(self.cx).await?;
        let mut live = self.scratch.start(self.cx, &["postgres".to_owned()], self.request.wait).await?;
        live.client.config.database = "postgres".to_owned();
        self.seconds.start = self.watch.lap();
        Ok(live)
    }

    async fn dump(&mut self) -> Result<Drilled> {
        let live = self.empty().await?;
        let outcome = match live.client.apply_dump(self.cx, self.point).await {
            Ok(()) => {
                self.seconds.restore = self.watch.lap();
                live.client.compare_dump(self.cx, self.point).await
            }
            Err(e) => Err(e),
        };
        self.seconds.compare = self.watch.lap();
        live.stop().await;
        Ok(Findings { counts: outcome?, ..Findings::default() }.drilled(self.seconds))
    }

    async fn databases(&mut self) -> Result<Drilled> {
        let live = self.empty().await?;
        let request = RestoreRequest { replace: true, ..RestoreRequest::default() };
        let outcome = live.client.restore_databases(self.cx, self.point, &request).await;
        // Rows are compared database by database, while they are restored.
        self.seconds.restore = self.watch.lap();
        live.stop().await;
        let restored = outcome?;
        let mut found = Findings { counts: restored.counts, ..Findings::default() };
        for note in restored.notes.into_iter().filter(|n| n.contains("was not restored")) {
            found.differ(note);
        }
        Ok(found.drilled(self.seconds))
    }
}

/// What came out so far.
#[derive(Debug, Default)]
struct Findings {
    counts: BTreeMap<String, u64>,
    differences: Vec<String>,
    more: u64,
    notes: Vec<String>,
}

impl Findings {
    fn count(&mut self, key: &str, n: u64) {
        *self.counts.entry(key.to_owned()).or_default() += n;
    }
    fn differ(&mut self, text: String) {
        if self.differences.len() < MAX_TOLD { self.differences.push(text) } else { self.more += 1 }
    }
    fn drilled(self, seconds: Seconds) -> Drilled {
        self.drilled_to(DrillLevel::Server, seconds)
    }
    fn drilled_to(mut self, level: DrillLevel, seconds: Seconds) -> Drilled {
        if self.more > 0 {
            self.differences.push(format!("and {} more", self.more));
        }
        let Self { counts, differences, notes, .. } = self;
        Drilled { level, seconds, counts, differences, notes }
    }
}

fn make_dir(dir: &Path, owner: Owner) -> Result<()> {
    let failed = |e| Error::io(e, format!("could not make {}", dir.display()));
    fs::DirBuilder::new().mode(0o700).create(dir).map_err(failed)?;
    give(dir, owner)
}

fn write(path: &Path, text: &[u8], owner: Owner) -> Result<()> {
    fs::write(path, text).map_err(|e| Error::io(e, format!("could not write {}", path.display())))?;
    give(path, owner)
}

/// Replaces the links of a copy, which lead to production's tablespaces.
fn link_tablespaces(data: &Path, tablespaces: &Path, owner: Owner) -> Result<()> {
    let failed = |e| Error::io(e, "could not link the tablespaces of the scratch cluster");
    let links = data.join("pg_tblspc");
    for entry in fs::read_dir(&links).into_iter().flatten() {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_symlink() {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    for entry in fs::read_dir(tablespaces).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let link = links.join(entry.file_name());
        symlink(entry.path(), &link).map_err(failed)?;
        give(&link, owner)?;
    }
    Ok(())
}
