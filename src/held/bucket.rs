//! Snapshots seen without their store: their first file, `snap-<uuid>.dat`, in the bucket that they were written to. It is
//! what any host can see, and what a lost or emptied bucket no longer has.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{ask, rests_on_snapshots, seen};
use crate::catalogue::{Catalogue, Place};
use crate::config::S3Config;
use crate::destination::Destination;
use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::External;
use crate::source::Repository;

/// What a store says, or why it cannot be asked.
type Answer = Result<Vec<Repository>, String>;
/// Names below the path of a repository, or why they cannot be seen.
type Found = Result<BTreeSet<String>, String>;

/// Points that are recorded at a place away from their store, while their data is nowhere but on the store's own disks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NotOffSite {
    /// How many.
    pub points: usize,
    /// In which repositories they are: `local (fs)`.
    pub repositories: BTreeSet<String>,
}

/// Looks for the snapshots of all points of a catalogue in their buckets, asks the store where that is not possible, and
/// marks what is gone. Points that are not off-site are taken out of the catalogue.
pub async fn attest_off_site(
    engine: &Engine,
    service: &str,
    host: &str,
    place: &Place,
    catalogue: &mut Catalogue,
) -> NotOffSite {
    let mut not = NotOffSite::default();
    if !catalogue.points.iter().any(rests_on_snapshots) {
        return not;
    }
    catalogue.points.retain(|p| {
        let only_here = rests_on_snapshots(p) && p.manifest.external.iter().all(|e| e.bucket.is_none());
        if only_here {
            not.points += 1;
            not.repositories.extend(p.manifest.external.iter().map(|e| format!("{} ({})", e.repository, e.kind)));
        }
        !only_here
    });
    let mut look = Look { engine, service, place, buckets: BTreeMap::new(), answer: None };
    let own = engine.host().is_ok_and(|own| own == host);
    for point in catalogue.points.iter_mut().filter(|p| rests_on_snapshots(p)) {
        let (mut gone, mut unseen, mut there) = (Vec::new(), Vec::new(), false);
        let state = point.manifest.state;
        for external in point.manifest.external.iter().filter(|e| e.bucket.is_some()) {
            let what = match look.bucket(external).await {
                Ok(what) => Ok(what),
                Err(why) if own => {
                    seen(external, &state, look.store().await).map_err(|other| format!("{why}; {other}"))
                }
                Err(why) => Err(why),
            };
            match what {
                Ok(None) => there = true,
                Ok(Some(what)) => gone.push(what),
                Err(why) => unseen.push(why),
            }
        }
        match (there, unseen.is_empty()) {
            (true, _) => {}
            (false, true) => point.gone.extend(gone),
            (false, false) => point.unseen = unseen,
        }
    }
    not
}

struct Look<'a> {
    engine: &'a Engine,
    service: &'a str,
    place: &'a Place,
    buckets: BTreeMap<(String, String), Found>,
    answer: Option<Answer>,
}

impl Look<'_> {
    async fn store(&mut self) -> &Answer {
        if self.answer.is_none() {
            self.answer = Some(ask(self.engine, self.service).await.map_err(|e| e.chain()));
        }
        self.answer.get_or_insert_with(|| Err("it was not asked".into()))
    }

    /// `None` = it is there; else what is wrong; an error when it cannot be seen.
    async fn bucket(&mut self, external: &External) -> Result<Option<String>, String> {
        let (Some(bucket), Some(uuid)) = (&external.bucket, &external.uuid) else {
            return Err("the manifest does not say where the snapshot lies".into());
        };
        let path = external.base_path.clone().unwrap_or_default();
        let path = if path.is_empty() { path } else { format!("{}/", path.trim_matches('/')) };
        let key = (bucket.clone(), path.clone());
        if !self.buckets.contains_key(&key) {
            let found = self.names(&external.repository, bucket, &path).await.map_err(|e| e.chain());
            self.buckets.insert(key.clone(), found);
        }
        let names = self.buckets.get(&key).map_or(Err(String::new()), |f| f.as_ref().map_err(Clone::clone))?;
        if names.contains(&format!("snap-{uuid}.dat")) {
            return Ok(None);
        }
        Ok(Some(format!("snapshot {} in bucket {bucket} (gone)", external.name)))
    }

    /// The first files of all snapshots below a path, if a repository lies there at all.
    async fn names(&self, repository: &str, bucket: &str, path: &str) -> Result<BTreeSet<String>> {
        let with = self.engine.look_with(self.service, repository);
        let destination = self.open(with.as_deref().unwrap_or(self.place.name()), bucket)?;
        let mut names = BTreeSet::new();
        for prefix in ["snap-", "index"] {
            let objects = destination.list(&format!("{path}{prefix}")).await;
            let objects = objects.map_err(|e| e.within(format!("could not look into bucket {bucket}")))?;
            names.extend(objects.iter().filter_map(|o| o.location.key.strip_prefix(path).map(str::to_owned)));
        }
        // Somebody else's bucket of the same name must not raise an alarm; one that was named on purpose must.
        if names.is_empty() && with.is_none() {
            let text = format!("bucket {bucket} holds no repository, as {} sees it", self.place.name());
            return Err(Error::new(ErrorKind::NotFound, text));
        }
        Ok(names)
    }

    fn open(&self, with: &str, bucket: &str) -> Result<Arc<dyn Destination>> {
        let config = self.engine.config.destinations.get(with).and_then(|d| d.s3.as_ref());
        let config = config.ok_or_else(|| {
            let text = format!(
                "no keys are configured to look into bucket {bucket}: `look_with` of the repository names them"
            );
            Error::new(ErrorKind::Config, text)
        })?;
        self.engine.open_bucket(with, &S3Config { bucket: bucket.to_owned(), ..config.clone() })
    }
}
