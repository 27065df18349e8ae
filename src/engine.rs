//! What the commands share: a service's places, its source, its state on this host.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio_util::sync::CancellationToken;

use crate::calendar::Calendar;
use crate::catalogue::{self, Catalogue, Place};
use crate::config::{Config, DestinationConfig, Keep, KeyStyle, S3Config, Service};
use crate::destination::Destination;
use crate::destination::local::Local;
use crate::destination::s3::{CredentialSource, S3, parse_credentials_file};
use crate::error::{Error, ErrorKind, Result};
use crate::held;
use crate::layout::Layout;
use crate::manifest::State;
use crate::monitor::Monitor;
use crate::pipeline::decode::Identities;
use crate::retention::PointFacts;
use crate::source::{self, Context, Source};
use crate::units::Clock;

/// The name of a service's own directory among its places.
pub const LOCAL: &str = "local";

/// One configuration at work.
#[derive(Debug, Clone)]
pub struct Engine {
    /// What is configured.
    pub config: Arc<Config>,
    /// Where "now" comes from.
    pub clock: Clock,
    /// Cancelled by signals.
    pub cancel: CancellationToken,
    /// Where progress and warnings go.
    pub monitor: Arc<dyn Monitor>,
    /// Private keys, for reading encrypted points.
    pub identities: Identities,
}

impl Engine {
    /// The same with the private keys in `path`.
    pub fn with_identity(mut self, path: Option<&std::path::Path>) -> Result<Self> {
        if let Some(path) = path {
            self.identities = Identities::load(path)?;
        }
        Ok(self)
    }

    /// The settings of a service.
    ///
    /// # Errors
    /// `NotFound`, naming the services there are.
    pub fn service(&self, name: &str) -> Result<&Service> {
        self.config.services.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.config.services.keys().map(String::as_str).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            Error::new(ErrorKind::NotFound, format!("no such service: {name:?}"))
                .hint(format!("the configuration has: {known}."))
        })
    }

    /// The source of a service.
    pub fn source(&self, name: &str) -> Result<Arc<dyn Source>> {
        let config = self.service(name)?.source();
        let config = config.ok_or_else(|| Error::new(ErrorKind::Config, format!("service {name:?} has no kind")))?;
        Ok(source::build(&config))
    }

    /// The calendar in which periods are counted.
    pub fn calendar(&self) -> Result<Calendar> {
        Calendar::new(&self.config.timezone, self.config.week_start)
    }

    /// All places of a service, its own directory first.
    pub fn places(&self, name: &str) -> Result<Vec<Place>> {
        let service = self.service(name)?;
        let mut places = Vec::new();
        if let Some(dir) = &service.backup_dir {
            let destination: Arc<dyn Destination> = Arc::new(Local::new(LOCAL, dir.clone(), false));
            places.push(Place { destination, layout: Layout::Local, keep: service.keep.clone() });
        }
        for used in &service.destinations {
            let config = self.config.destinations.get(&used.name).ok_or_else(|| {
                Error::new(
                    ErrorKind::Config,
                    format!("service {name:?} uses destination {:?}, which is not configured", used.name),
                )
            })?;
            let keep = used.keep.clone().unwrap_or_else(|| service.keep.clone());
            places.push(self.open(&used.name, config, keep)?);
        }
        Ok(places)
    }

    /// The places of a service that `from` selects: all, or the one of that name.
    pub fn places_from(&self, name: &str, from: Option<&str>) -> Result<Vec<Place>> {
        let places = self.places(name)?;
        let Some(from) = from else { return Ok(places) };
        let known: Vec<String> = places.iter().map(|p| p.name().to_owned()).collect();
        let found: Vec<Place> = places.into_iter().filter(|p| p.name() == from).collect();
        if found.is_empty() {
            return Err(Error::new(ErrorKind::NotFound, format!("service {name:?} has no destination {from:?}"))
                .hint(format!("it has: {}.", known.join(", "))));
        }
        Ok(found)
    }

    /// All configured destinations, without regard to services.
    pub fn all_destinations(&self) -> Result<Vec<Place>> {
        self.config.destinations.iter().map(|(name, c)| self.open(name, c, Keep::default())).collect()
    }

    fn open(&self, name: &str, config: &DestinationConfig, keep: Keep) -> Result<Place> {
        let environment = self.config.environment.clone().unwrap_or_default();
        if let Some(local) = &config.local {
            let destination: Arc<dyn Destination> = Arc::new(Local::new(name, local.path.clone(), false));
            return Ok(Place { destination, layout: Layout::Timestamped { prefix: environment }, keep });
        }
        let Some(s3) = &config.s3 else {
            return Err(Error::new(ErrorKind::Config, format!("destination {name:?} has no kind")));
        };
        let prefix = s3.prefix.clone().unwrap_or(environment).trim_matches('/').to_owned();
        let layout = match s3.key_style {
            KeyStyle::Timestamped => Layout::Timestamped { prefix },
            KeyStyle::Versioned => Layout::Versioned { prefix },
        };
        Ok(Place { destination: self.open_bucket(name, s3)?, layout, keep })
    }

    /// A bucket as a destination.
    pub(crate) fn open_bucket(&self, name: &str, s3: &S3Config) -> Result<Arc<dyn Destination>> {
        Ok(Arc::new(S3::new(name, s3, credentials(s3)?)?))
    }

    /// With which destination's keys one looks into the bucket of a repository of a service, if the configuration says.
    pub(crate) fn look_with(&self, service: &str, repository: &str) -> Option<String> {
        self.config.services.get(service)?.look_with(repository).map(str::to_owned)
    }

    /// The host whose points this installation makes.
    pub fn host(&self) -> Result<String> {
        self.config.host_name()
    }

    /// This installation's id: configured, or made once and kept in `state_dir`.
    pub fn agent_id(&self) -> Result<String> {
        if let Some(id) = &self.config.agent_id {
            return Ok(id.clone());
        }
        let path = self.config.state_dir.join("agent-id");
        match std::fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
            Ok(_) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(e, format!("could not read {}", path.display()))),
        }
        let failed = |e| {
            Error::io(e, format!("could not make {}", path.display()))
                .hint("run once as root, or set `state_dir` to a directory that this user may write.")
        };
        let mut bytes = [0u8; 16];
        getrandom::fill(&mut bytes)
            .map_err(|e| Error::new(ErrorKind::Io, "no random numbers").caused_by(e.to_string()))?;
        let id = hex::encode(bytes);
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&self.config.state_dir).map_err(failed)?;
        let mut file = tempfile::NamedTempFile::new_in(&self.config.state_dir).map_err(failed)?;
        writeln!(file, "{id}").map_err(failed)?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
        file.as_file().set_permissions(mode).map_err(failed)?;
        match file.persist_noclobber(&path) {
            Ok(_) => Ok(id),
            // Another run was faster: its id counts.
            Err(_) => std::fs::read_to_string(&path).map(|t| t.trim().to_owned()).map_err(failed),
        }
    }

    /// Where a service keeps its lock, scratch files and alarm state.
    pub fn service_dir(&self, name: &str) -> PathBuf {
        self.config.state_dir.join("services").join(name)
    }

    /// A context for calls into the source, with a fresh private scratch directory.
    pub fn context(&self, name: &str, cancel: CancellationToken, workdir: PathBuf) -> Result<Context> {
        let failed = |e| Error::io(e, format!("could not make {}", workdir.display()));
        match std::fs::remove_dir_all(&workdir) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&workdir).map_err(failed)?;
        Ok(Context {
            service: name.to_owned(),
            clock: self.clock.clone(),
            cancel,
            workdir,
            monitor: Arc::clone(&self.monitor),
            previous: None,
            agent_id: self.agent_id()?,
            point: None,
            unfinished: Vec::new(),
        })
    }

    /// Reads the catalogues of all places at once, and asks the store whether its own snapshots are there.
    pub async fn catalogues(&self, places: &[Place], host: &str, service: &str) -> Vec<Result<Catalogue>> {
        let mut read = join_all(places.iter().map(|p| catalogue::read(p, host, service))).await;
        held::attest(self, service, host, &mut read).await;
        read
    }
}

fn credentials(s3: &S3Config) -> Result<CredentialSource> {
    match &s3.credentials {
        None => Ok(CredentialSource::Chain { profile: s3.profile.clone() }),
        Some(reference) => {
            let secret = reference.load()?;
            parse_credentials_file(secret.expose(), s3.profile.as_deref())
                .map_err(|e| e.within(format!("could not read the S3 credentials in {reference}")))
        }
    }
}

/// What retention and planning know of the points of a catalogue. A point that misses an artefact is not complete.
pub fn facts(catalogue: &Catalogue) -> Vec<PointFacts> {
    let facts = catalogue.points.iter().map(|p| {
        let m = &p.manifest;
        let state = if p.is_whole() { m.state } else { State::Suspect };
        PointFacts {
            id: m.id.clone(),
            cadence: m.cadence,
            started: m.started,
            state,
            agent_id: m.agent.id.clone(),
            foreign: false,
            base: m.base.clone(),
            proven: false,
        }
    });
    facts.collect()
}

/// Creates a file that only its owner reads, with `text`, whole or not at all.
pub fn write_private(path: &std::path::Path, text: &str) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(temporary, path)
}
