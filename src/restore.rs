//! Chooses a restore point and hands it to its source.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::StreamExt as _;

use crate::catalogue::{self, Place, Point};
use crate::destination::Destination;
use crate::drill::records;
use crate::engine::{Engine, LOCAL};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::Layout;
use crate::legacy::points::{self, Legacy};
use crate::lock::Lock;
use crate::manifest::{Artefact, State};
use crate::monitor::Monitor;
use crate::pipeline::decode::{self, Identities};
use crate::retention::is_future;
use crate::source::{ArtefactReader, Context, OpenArtefact, PointReader, RestoreRequest, Restored};

/// Which point is wanted.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// By id; `None` = the newest complete one.
    pub id: Option<String>,
    /// The newest complete one that began at or before this time.
    pub at: Option<DateTime<Utc>>,
    /// Only from this place.
    pub from: Option<String>,
    /// Of this host; `None` = this one.
    pub host: Option<String>,
}

/// A point and the place it is read from.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// Where.
    pub place: Place,
    /// What.
    pub point: Point,
}

/// Finds the wanted point. Of several places that have it whole, the first counts (the local one comes first).
///
/// # Errors
/// `NotFound` with what there is instead; `Corrupt` when the point is there but not whole.
pub async fn choose(engine: &Engine, service: &str, wanted: &Selection) -> Result<Chosen> {
    let found = everywhere(engine, service, wanted).await?;
    let now = engine.clock.now();
    let usable = |p: &Point| match &wanted.id {
        Some(id) => &p.manifest.id == id,
        None => {
            p.manifest.state == State::Complete
                && p.is_whole()
                && !is_future(p.manifest.started, now)
                && wanted.at.is_none_or(|at| p.manifest.started <= at)
        }
    };
    let candidates: Vec<&Chosen> = found.iter().filter(|c| usable(&c.point)).collect();
    let newest = candidates.iter().map(|c| c.point.manifest.started).max();
    let best = candidates.iter().filter(|c| Some(c.point.manifest.started) == newest);
    let whole =
        |readable: bool| best.clone().find(move |c| c.point.is_whole() && c.point.archived.is_empty() == readable);
    if let Some(chosen) = whole(true).or_else(|| whole(false)) {
        return Ok((*chosen).clone());
    }
    if let Some(damaged) = best.clone().next() {
        let point = &damaged.point;
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("restore point {} is not whole at {}", point.manifest.id, damaged.place.name()),
        )
        .caused_by(point.lacks().join(", "))
        .hint("choose another point; `backstay list` shows them."));
    }
    Err(nothing(engine, service, wanted, &found).await)
}

/// All readable points of all selected places.
pub async fn everywhere(engine: &Engine, service: &str, wanted: &Selection) -> Result<Vec<Chosen>> {
    let places = engine.places_from(service, wanted.from.as_deref())?;
    let host = wanted_host(engine, wanted)?;
    let catalogues = engine.catalogues(&places, &host, service).await;
    let mut found = Vec::new();
    let mut failures = Vec::new();
    for (place, catalogue) in places.iter().zip(catalogues) {
        match catalogue {
            Ok(catalogue) => {
                let points = catalogue.points.into_iter();
                let points = points
                    .filter(|p| p.manifest.host == host || (place.layout == Layout::Local && wanted.host.is_none()));
                found.extend(points.map(|point| Chosen { place: place.clone(), point }));
            }
            Err(err) => failures.push(err),
        }
    }
    match failures.len() {
        0 => {}
        n if n == places.len() => return Err(failures.swap_remove(0)),
        _ => failures.iter().for_each(|e| engine.monitor.warn(&e.chain())),
    }
    Ok(found)
}

fn wanted_host(engine: &Engine, wanted: &Selection) -> Result<String> {
    wanted.host.clone().map_or_else(|| engine.host(), Ok)
}

pub(crate) async fn nothing(engine: &Engine, service: &str, wanted: &Selection, found: &[Chosen]) -> Error {
    let host = wanted_host(engine, wanted).unwrap_or_default();
    let what = match (&wanted.id, wanted.at) {
        (Some(id), _) => format!("service {service:?} of host {host:?} has no restore point {id:?}"),
        (None, Some(at)) => format!(
            "service {service:?} of host {host:?} has no complete restore point from before {}",
            at.to_rfc3339()
        ),
        (None, None) => format!("service {service:?} of host {host:?} has no complete restore point"),
    };
    let err = Error::new(ErrorKind::NotFound, what);
    if !found.is_empty() {
        return err.hint(format!("`backstay list {service}` shows the {} there are.", found.len()));
    }
    let mut hosts = Vec::new();
    for place in engine.places_from(service, wanted.from.as_deref()).unwrap_or_default() {
        let there = catalogue::hosts(&place).await.unwrap_or_default();
        hosts.extend(there.into_iter().filter(|(_, services)| services.iter().any(|s| s == service)).map(|(h, _)| h));
    }
    hosts.sort();
    hosts.dedup();
    match hosts.is_empty() {
        true => err.hint("look at another destination with --from, or make a backup first."),
        false => err.hint(format!("there are points of these hosts: {}; name one with --host.", hosts.join(", "))),
    }
}

/// Reads artefacts from a place.
#[derive(Debug)]
struct FromPlace {
    destination: Arc<dyn Destination>,
    identities: Identities,
    monitor: Arc<dyn Monitor>,
}

#[async_trait]
impl OpenArtefact for FromPlace {
    async fn open(&self, artefact: &Artefact) -> Result<ArtefactReader> {
        let stream = self.destination.get(&artefact.location).await?;
        let monitor = Arc::clone(&self.monitor);
        let name = artefact.name.clone();
        monitor.start(&name, Some(artefact.stored_bytes));
        let ended = Ended { monitor: Arc::clone(&monitor), name: name.clone() };
        let counted = stream.map(move |chunk| {
            let _ = &ended;
            if let Ok(bytes) = &chunk {
                monitor.advance(&name, bytes.len() as u64);
            }
            chunk
        });
        decode::reader(Box::pin(counted), artefact, &self.identities)
    }
}

/// Ends a task when the stream is dropped, read to its end or not.
struct Ended {
    monitor: Arc<dyn Monitor>,
    name: String,
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.monitor.end(&self.name);
    }
}

/// Refuses a point that cannot be read now.
///
/// # Errors
/// `Archived`, with what to do.
pub fn require_thawed(place: &Place, point: &Point) -> Result<()> {
    let Some(first) = point.archived.first() else { return Ok(()) };
    let (id, n) = (&point.manifest.id, point.archived.len());
    let message =
        format!("restore point {id} needs thaw: {n} of its objects lie in an archive class at {}", place.name());
    let err = Error::new(ErrorKind::Archived, message);
    Err(match place.destination.thaw_command(first) {
        Some(command) => err.hint(format!(
            "thaw each object, and try again when that is done, hours later: `{command}`; \
             `backstay restore {} {id} --plan` prints the command for each.",
            point.manifest.service
        )),
        None => err,
    })
}

/// A point opened for reading.
pub fn open(engine: &Engine, chosen: &Chosen) -> PointReader {
    let from = FromPlace {
        destination: Arc::clone(&chosen.place.destination),
        identities: engine.identities.clone(),
        monitor: Arc::clone(&engine.monitor),
    };
    PointReader { manifest: Arc::clone(&chosen.point.manifest), from: Arc::new(from) }
}

/// A restore into the service's own place must not meet a running backup of it, one into another directory no other
/// restore.
fn lock(engine: &Engine, service: &str, to: Option<&Path>) -> Result<Lock> {
    let (dir, now) = (engine.service_dir(service), engine.clock.now());
    let Some(to) = to else { return Lock::take(&dir, service, now) };
    let real = real(to);
    if protect(engine, service, &real)? == Target::Own {
        return Lock::take(&dir, service, now);
    }
    let name = format!("restore-{}", &blake3::hash(real.as_os_str().as_encoded_bytes()).to_hex()[..16]);
    Lock::take(&dir, &name, now).map_err(|e| match e.kind {
        ErrorKind::Busy => Error::new(ErrorKind::Busy, format!("another restore into {} is under way", to.display()))
            .hint("wait for it to end, or stop it; or restore into another directory."),
        _ => e,
    })
}

/// What `--to` names.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    /// The directory that the service backs up.
    Own,
    /// A directory that nothing here knows of.
    Elsewhere,
}

/// Refuses a target that would take restore points, the agent's state or a live source with it.
fn protect(engine: &Engine, service: &str, target: &Path) -> Result<Target> {
    let config = &engine.config;
    let mut kept = vec![(config.state_dir.clone(), "the agent's state".to_owned())];
    for (name, destination) in &config.destinations {
        kept.extend(destination.local.iter().map(|local| (local.path.clone(), format!("destination {name:?}"))));
    }
    for (name, other) in &config.services {
        kept.extend(
            other.backup_dir.iter().map(|dir| (dir.clone(), format!("the restore points of service {name:?}"))),
        );
        if let Some(data) = other.source().and_then(|source| source.data_dir()) {
            if name == service && real(&data) == target {
                return Ok(Target::Own);
            }
            kept.push((data, format!("the data of service {name:?}")));
        }
    }
    for (path, what) in kept {
        let path = real(&path);
        if target.starts_with(&path) || path.starts_with(target) {
            let message = format!("{} overlaps with {what} in {}", target.display(), path.display());
            return Err(Error::new(ErrorKind::Refused, message).hint("restore into another directory with --to."));
        }
    }
    Ok(Target::Elsewhere)
}

/// The path without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let there = path.ancestors().find_map(|a| Some((a.canonicalize().ok()?, path.strip_prefix(a).ok()?)));
    there.map_or_else(|| path.clone(), |(real, rest)| real.components().chain(rest.components()).collect())
}

/// Restores a chosen point.
///
/// # Errors
/// What the source says; the old data is as it was, or the error says where it lies.
pub async fn restore(engine: &Engine, service: &str, chosen: &Chosen, request: &RestoreRequest) -> Result<Restored> {
    let manifest = &chosen.point.manifest;
    let source = engine.source(service)?;
    if manifest.kind != source.kind() {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "restore point {} is of kind {:?}, service {service:?} is of kind {:?}",
                manifest.id,
                manifest.kind,
                source.kind()
            ),
        ));
    }
    if let Some(base) = &manifest.base {
        return Err(Error::new(ErrorKind::Config, format!("restore point {} is built on {base}", manifest.id))
            .hint("upgrade backstay on this host: this version restores full points only."));
    }
    require_thawed(&chosen.place, &chosen.point)?;
    let reader = open(engine, chosen);
    let work = async |cx: Context| source.restore(&cx, &reader, request).await;
    alone(engine, service, request, work).await.map_err(|e| {
        let next = e.hint.is_none().then(|| {
            format!("other points: `backstay restore {service}`; what would happen: `backstay restore {service} {} --plan`.", manifest.id)
        });
        let e = e.within(format!("could not restore {} from {}", manifest.id, chosen.place.name()));
        match next {
            Some(hint) => e.hint(hint),
            None => e,
        }
    })
}

/// Does the work of a restore under its lock, in a scratch directory, until it is stopped.
async fn alone(
    engine: &Engine,
    service: &str,
    request: &RestoreRequest,
    work: impl AsyncFnOnce(Context) -> Result<Restored>,
) -> Result<Restored> {
    let _lock = lock(engine, service, request.to.as_deref())?;
    let workdir = engine.service_dir(service).join(format!("restore-{}", std::process::id()));
    let cancel = engine.cancel.child_token();
    let cx = engine.context(service, cancel.clone(), workdir.clone())?;
    let outcome = tokio::select! {
        done = work(cx) => done,
        () = cancel.cancelled() => Err(Error::new(ErrorKind::Cancelled, "the restore was stopped")
            .hint("the old data is where it was; remove what is unfinished beside the target: `*.backstay-restore` or `*backstay-partial*`.")),
    };
    let _ = std::fs::remove_dir_all(workdir);
    outcome
}

/// Restores a backup that commcare-cloud made.
///
/// # Errors
/// As [`restore`].
pub async fn restore_legacy(
    engine: &Engine,
    service: &str,
    (place, legacy): (&Place, &Legacy),
    request: &RestoreRequest,
) -> Result<Restored> {
    let source = engine.source(service)?;
    let work = async |cx: Context| {
        let reader = points::open(place, legacy).await?;
        source.restore_legacy(&cx, reader, request).await
    };
    let outcome = alone(engine, service, request, work).await;
    outcome.map_err(|e| e.within(format!("could not restore {} from {}", legacy.id, place.name())))
}

/// What a restore would do.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The directory, or the server.
    pub target: String,
    /// Whether there is data.
    pub occupied: bool,
    /// Free at the target, if it is a directory.
    pub free_bytes: Option<u64>,
    /// How long it takes, by past drills.
    pub expected_seconds: Option<f64>,
    /// What would make it fail.
    pub obstacles: Vec<String>,
    /// The commands that make it readable, if it lies in an archive class.
    pub thaw: Vec<String>,
    /// The command that does it.
    pub command: String,
}

/// Says what a restore would do, and changes nothing.
pub async fn plan(engine: &Engine, service: &str, chosen: &Chosen, request: &RestoreRequest) -> Result<Plan> {
    let manifest = &chosen.point.manifest;
    let source = engine.source(service)?;
    let own = source.production(manifest).into_iter().next();
    let into_server = matches!(manifest.method.as_str(), "dump" | "databases");
    let dir = request.to.clone().or(own).filter(|_| !into_server);
    let mut plan = Plan::default();
    let mut command = format!("backstay restore {service} {}", manifest.id);
    if chosen.place.name() != LOCAL {
        command.push_str(&format!(" --from {}", chosen.place.name()));
    }
    if manifest.host != engine.host()? {
        command.push_str(&format!(" --host {}", manifest.host));
    }
    match &dir {
        Some(dir) => {
            plan.target = dir.display().to_string();
            plan.occupied = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
            plan.free_bytes = free_bytes(dir);
            if plan.free_bytes.is_some_and(|free| free < manifest.plain_bytes()) {
                plan.obstacles.push("there is not enough room".to_owned());
            }
            if request.to.is_some() {
                command.push_str(&format!(" --to {}", dir.display()));
            }
            if plan.occupied {
                command.push_str(" --replace");
            }
        }
        None => plan.target = "the running server".to_owned(),
    }
    if manifest.artefacts.iter().any(|a| !a.recipients.is_empty()) {
        command.push_str(" --identity FILE");
        if engine.identities.is_empty() {
            plan.obstacles.push("it is encrypted, and no private key was given (--identity)".to_owned());
        }
    }
    plan.command = command;
    let places = engine.places(service)?;
    let proofs = records::all(engine, service, &manifest.host, &places).await;
    plan.thaw = chosen.point.archived.iter().filter_map(|at| chosen.place.destination.thaw_command(at)).collect();
    // How long a store takes to thaw nobody measured.
    plan.expected_seconds = if plan.thaw.is_empty() { proofs.expected_seconds(manifest.plain_bytes()) } else { None };
    Ok(plan)
}

fn free_bytes(dir: &std::path::Path) -> Option<u64> {
    let there = dir.ancestors().find(|p| p.is_dir())?;
    let stat = nix::sys::statvfs::statvfs(there).ok()?;
    Some(stat.blocks_available().saturating_mul(stat.fragment_size()))
}
