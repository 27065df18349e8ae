//! The restore points found at a destination, always read from its objects alone, never from a side file.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::stream::{StreamExt as _, TryStreamExt as _};

use crate::config::Keep;
use crate::destination::{Destination, Location, ObjectMeta, get_small};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{DRILLS, Layout, parse_id, parse_versioned_folder};
use crate::manifest::{self, Manifest};

/// A manifest longer than this is not one of ours.
pub(crate) const MANIFEST_LIMIT: usize = 16 << 20;
/// Marks who writes an unfinished local point.
pub const OWNER_NAME: &str = ".owner";
/// First part of the name of an unfinished local point.
pub const PARTIAL: &str = ".partial-";

/// A destination as one service uses it.
#[derive(Debug, Clone)]
pub struct Place {
    /// The destination.
    pub destination: Arc<dyn Destination>,
    /// How keys are made there.
    pub layout: Layout,
    /// How much is kept there.
    pub keep: Keep,
}

impl Place {
    /// Its name.
    pub fn name(&self) -> &str {
        self.destination.name()
    }
    /// Whether points are written into a folder of their own name first, as directories do it.
    pub fn stages(&self) -> bool {
        !self.layout.is_versioned() && self.destination.staging("x") != "x"
    }
}

/// A restore point at one place.
#[derive(Debug, Clone)]
pub struct Point {
    /// Its manifest there.
    pub manifest: Arc<Manifest>,
    /// Where that manifest lies.
    pub manifest_at: Location,
    /// Its folder.
    pub folder: String,
    /// Artefacts that are not there, or not with the stored length.
    pub missing: Vec<Missing>,
    /// What is wrong with its snapshots, if its store keeps them and none of them can be used. Set by `held::attest`.
    pub gone: Vec<String>,
    /// Why it could not be found out whether these snapshots are there; empty = they are, or it has none.
    pub unseen: Vec<String>,
    /// What of it lies in an archive class and must be thawed before it can be read.
    pub archived: Vec<Location>,
}

/// An artefact that is not there as its manifest says. Shown as `data.tar.zst (missing)` or
/// `data.tar.zst (1 of 2 bytes)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// Length of what lies there; `None` = nothing does.
    pub bytes: Option<u64>,
    /// Length that the manifest names.
    pub stored_bytes: u64,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bytes {
            None => write!(f, "{} (missing)", self.name),
            Some(bytes) => write!(f, "{} ({bytes} of {} bytes)", self.name, self.stored_bytes),
        }
    }
}

impl Point {
    /// Whether everything it names is there with its length.
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty() && self.gone.is_empty()
    }

    /// What of it is not there, for people.
    pub fn lacks(&self) -> Vec<String> {
        self.missing.iter().map(ToString::to_string).chain(self.gone.iter().cloned()).collect()
    }
}

/// Something that lies there and is no readable point.
#[derive(Debug, Clone)]
pub struct Stranger {
    /// Folder or key.
    pub name: String,
    /// Why it is not taken for a point.
    pub reason: String,
}

/// Objects of ours without a manifest.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// Folder or key, for people.
    pub name: String,
    /// What is there.
    pub objects: Vec<Location>,
    /// When it was begun.
    pub begun: Option<DateTime<Utc>>,
}

/// What one place holds of one service of one host.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// Readable points, oldest first.
    pub points: Vec<Point>,
    /// Folders that are foreign, manifests that are damaged or of a newer version: listed, never touched.
    pub strangers: Vec<Stranger>,
    /// Ours, without a manifest.
    pub orphans: Vec<Orphan>,
    /// Whether only the newest version of each key could be seen: nothing may be removed then.
    pub partial_view: bool,
}

/// Reads the catalogue of `service` of `host` at `place`.
pub async fn read(place: &Place, host: &str, service: &str) -> Result<Catalogue> {
    let mut catalogue = Catalogue::default();
    for root in place.layout.roots(host, service) {
        let read = if place.layout.is_versioned() {
            read_versioned(place, &root, &mut catalogue).await
        } else {
            read_folders(place, &root, service, &mut catalogue).await
        };
        read.map_err(|e| e.within(format!("could not read the restore points of {service:?} at {}", place.name())))?;
    }
    catalogue.points.retain(|p| {
        let ours = p.manifest.service == service && (p.manifest.host == host || place.layout == Layout::Local);
        if !ours {
            let reason = format!("it belongs to service {:?} of host {:?}", p.manifest.service, p.manifest.host);
            catalogue.strangers.push(Stranger { name: p.folder.clone(), reason });
        }
        ours
    });
    for point in catalogue.points.iter_mut().filter(|p| !p.archived.is_empty()) {
        look_for_thawed(place, point).await;
    }
    catalogue.points.sort_by(|a, b| (a.manifest.started, &a.manifest.id).cmp(&(b.manifest.started, &b.manifest.id)));
    Ok(catalogue)
}

async fn fetch(place: &Place, at: &Location) -> Result<Result<Manifest>> {
    let bytes = match get_small(place.destination.as_ref(), at, MANIFEST_LIMIT).await {
        Ok(bytes) => bytes,
        Err(err) if err.kind == ErrorKind::Corrupt => return Ok(Err(err)),
        Err(err) if err.kind == ErrorKind::Archived => return Ok(Err(err.within("its manifest needs thaw"))),
        Err(err) => return Err(err),
    };
    let text =
        String::from_utf8(bytes).map_err(|e| Error::new(ErrorKind::Corrupt, "the manifest is not UTF-8").caused_by(e));
    Ok(text.and_then(|t| Manifest::from_text(&t)))
}

async fn fetch_all(place: &Place, at: Vec<(String, Location)>) -> Result<Vec<(String, Location, Result<Manifest>)>> {
    futures_util::stream::iter(at)
        .map(|(folder, at)| async move { fetch(place, &at).await.map(|m| (folder, at, m)) })
        .buffered(8)
        .try_collect()
        .await
}

async fn read_folders(place: &Place, root: &str, service: &str, out: &mut Catalogue) -> Result<()> {
    let mut folders: BTreeMap<String, Vec<ObjectMeta>> = BTreeMap::new();
    for object in place.destination.list(root).await? {
        let rest = object.location.key.strip_prefix(root).unwrap_or_default().to_owned();
        match rest.split_once('/') {
            Some((DRILLS, _)) => {}
            Some((folder, _)) => folders.entry(folder.to_owned()).or_default().push(object),
            None if is_status_file(&rest) => {}
            None => {
                out.strangers.push(Stranger { name: rest, reason: "a file that is not part of a restore point".into() })
            }
        }
    }
    if place.stages() {
        for name in place.destination.folders(root).await? {
            if name.starts_with(PARTIAL) {
                let objects = place.destination.list(&format!("{root}{name}/")).await?;
                folders.insert(name, objects);
            }
        }
    }
    let mut manifests = Vec::new();
    for (name, objects) in &folders {
        let id = name.strip_prefix(PARTIAL).unwrap_or(name);
        let parts = parse_id(id).filter(|p| p.service == service);
        let key = format!("{root}{name}/{}", manifest::FILE_NAME);
        let has_manifest = objects.iter().any(|o| o.location.key == key);
        match parts {
            _ if has_manifest && !name.starts_with(PARTIAL) => manifests.push((name.clone(), Location::newest(key))),
            Some(parts) => out.orphans.push(Orphan {
                name: format!("{root}{name}"),
                objects: objects.iter().map(|o| o.location.clone()).collect(),
                begun: Some(parts.started),
            }),
            None => out
                .strangers
                .push(Stranger { name: name.clone(), reason: "not a restore point of this service".into() }),
        }
    }
    for (name, manifest_at, manifest) in fetch_all(place, manifests).await? {
        let folder = format!("{root}{name}");
        match manifest {
            Ok(m) => out.points.push(point(m, manifest_at, folder, &folders[&name])),
            Err(err) => out.strangers.push(Stranger { name, reason: err.chain() }),
        }
    }
    Ok(())
}

fn is_status_file(name: &str) -> bool {
    name == crate::layout::STATUS_FILE || name == "README" || name.starts_with('.')
}

fn point(manifest: Manifest, manifest_at: Location, folder: String, objects: &[ObjectMeta]) -> Point {
    let missing = missing(&manifest, objects, |at, o| {
        !o.delete_marker && at.version.as_ref().is_none_or(|v| o.location.version.as_ref() == Some(v))
    });
    found(manifest, manifest_at, folder, missing, objects)
}

/// A point of whose snapshots nothing is known yet.
fn found(m: Manifest, manifest_at: Location, folder: String, missing: Vec<Missing>, objects: &[ObjectMeta]) -> Point {
    let archived = |at: &&Location| {
        let same =
            |o: &&ObjectMeta| o.location.key == at.key && (at.version.is_none() || o.location.version == at.version);
        objects.iter().find(same).is_some_and(|o| o.archived)
    };
    let archived = m.artefacts.iter().map(|a| &a.location).chain(&m.sums).filter(archived).cloned().collect();
    Point { manifest: Arc::new(m), manifest_at, folder, missing, gone: Vec::new(), unseen: Vec::new(), archived }
}

/// A listing does not say what was thawed.
async fn look_for_thawed(place: &Place, point: &mut Point) {
    let frozen = |at: Location| async move {
        let found = place.destination.head(&at).await;
        found.ok().flatten().is_none_or(|o| o.archived).then_some(at)
    };
    let archived = std::mem::take(&mut point.archived);
    point.archived =
        futures_util::stream::iter(archived).map(frozen).buffered(8).filter_map(std::future::ready).collect().await;
}

/// What is not among `objects` with its length; `is_it` says of one with the right key whether it is the right one.
fn missing(m: &Manifest, objects: &[ObjectMeta], is_it: impl Fn(&Location, &ObjectMeta) -> bool) -> Vec<Missing> {
    let mut missing = Vec::new();
    for artefact in &m.artefacts {
        let at = &artefact.location;
        let lengths = || objects.iter().filter(|o| o.location.key == at.key && is_it(at, o)).map(|o| o.bytes);
        if !lengths().any(|bytes| bytes == artefact.stored_bytes) {
            let (name, stored_bytes) = (artefact.name.clone(), artefact.stored_bytes);
            missing.push(Missing { name, bytes: lengths().next(), stored_bytes });
        }
    }
    missing
}

async fn read_versioned(place: &Place, root: &str, out: &mut Catalogue) -> Result<()> {
    let objects = match place.destination.list_versions(root).await {
        Ok(objects) => objects,
        Err(err) if err.kind == ErrorKind::Denied => {
            out.partial_view = true;
            place.destination.list(root).await?
        }
        Err(err) => return Err(err),
    };
    let manifest_key = format!("{root}{}", manifest::FILE_NAME);
    let folder = root.trim_end_matches('/').to_owned();
    let mut versions: Vec<&ObjectMeta> =
        objects.iter().filter(|o| o.location.key == manifest_key && !o.delete_marker).collect();
    versions.sort_by_key(|o| std::cmp::Reverse((o.latest, o.modified)));
    let at = versions.iter().map(|o| (folder.clone(), o.location.clone())).collect();
    let mut named: Vec<Location> = Vec::new();
    for (folder, manifest_at, manifest) in fetch_all(place, at).await? {
        named.push(manifest_at.clone());
        match manifest {
            Ok(m) => {
                named.extend(m.artefacts.iter().map(|a| a.location.clone()).chain(m.sums.clone()));
                // An accepted point has two manifests: the newest version counts.
                if !out.points.iter().any(|p| p.manifest.id == m.id) {
                    out.points.push(versioned_point(m, manifest_at, folder, &objects, out.partial_view));
                }
            }
            Err(err) => {
                let name = format!("{manifest_key} (version {})", manifest_at.version.as_deref().unwrap_or("?"));
                out.strangers.push(Stranger { name, reason: err.chain() });
            }
        }
    }
    // What an unreadable manifest names is not known: nothing there may then be taken for an orphan.
    let readable = out.strangers.iter().all(|s| !s.name.starts_with(&manifest_key));
    if readable && !out.partial_view {
        let orphans = objects.iter().filter(|o| !o.delete_marker && !named.contains(&o.location));
        out.orphans.extend(orphans.map(|o| Orphan {
            name: format!("{} (version {})", o.location.key, o.location.version.as_deref().unwrap_or("?")),
            objects: vec![o.location.clone()],
            begun: o.modified,
        }));
    }
    Ok(())
}

fn versioned_point(m: Manifest, at: Location, folder: String, objects: &[ObjectMeta], partial_view: bool) -> Point {
    if !partial_view {
        return point(m, at, folder, objects);
    }
    // Only newest versions are visible: their lengths still tell a missing or truncated newest artefact.
    let missing = missing(&m, objects, |_, _| true);
    found(m, at, folder, missing, objects)
}

/// Hosts and their services found at `place`.
pub async fn hosts(place: &Place) -> Result<BTreeMap<String, Vec<String>>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let Some(root) = place.layout.hosts_root() else { return Ok(found) };
    for name in place.destination.folders(&root).await? {
        if place.layout.is_versioned() {
            if let Some((host, service)) = parse_versioned_folder(&name) {
                let services = found.entry(host).or_default();
                if !services.contains(&service) {
                    services.push(service);
                }
            }
        } else if crate::units::is_name(&name) {
            let services = place.destination.folders(&format!("{root}{name}/")).await?;
            let services: Vec<String> = services.into_iter().filter(|s| crate::units::is_name(s)).collect();
            if !services.is_empty() {
                found.insert(name, services);
            }
        }
    }
    Ok(found)
}
