//! Removes what failed or killed runs left behind. Only what is provably ours goes: our folder names, this host, this
//! service, no manifest, under the lock, and older than a grace period. The unfinished folder in a directory
//! names its owner; one that names this agent and host needs no grace, because the lock says that its run is over.

use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};

use crate::catalogue::{Catalogue, MANIFEST_LIMIT, OWNER_NAME, Orphan, PARTIAL, Place};
use crate::destination::{Location, get_small};
use crate::error::{ErrorKind, Result};
use crate::manifest::{self, Manifest};
use crate::pipeline::Leg;

/// How long a clean-up may take; the next run goes on with it.
const CLEAN_UP: std::time::Duration = std::time::Duration::from_secs(30);

/// After a failure in this run: removes what the failed legs hold of the point, as far as they let us.
pub(super) async fn abandoned(places: &[&Place], legs: &[Arc<Leg>], id: &str) {
    for (leg, place) in legs.iter().zip(places) {
        let staged = leg.folder();
        // Fixed keys are shared with other points: there, the sweep of a later run goes by version.
        if place.layout.is_versioned() || !staged.contains(id) || leg.is_recorded() {
            continue;
        }
        let _ = tokio::time::timeout(CLEAN_UP, remove_all(place, staged)).await;
    }
}

/// After a copy that failed: removes what of it lies at `place`, as far as that lets us.
pub(super) async fn half_copied(place: &Place, point: &Manifest) {
    if place.layout.is_versioned() {
        return;
    }
    let folder = place.layout.folder(&point.host, &point.service, point.cadence, &point.id);
    let staged = place.destination.staging(&folder);
    let _ = tokio::time::timeout(CLEAN_UP, remove_all(place, &staged)).await;
}

async fn remove_all(place: &Place, folder: &str) -> Result<()> {
    let objects = place.destination.list(&format!("{folder}/")).await?;
    if objects.iter().any(|o| o.location.key.ends_with(&format!("/{}", manifest::FILE_NAME)))
        && !folder.contains(PARTIAL)
    {
        return Ok(());
    }
    remove(place, folder, objects.into_iter().map(|o| o.location).collect()).await
}

/// Removes the objects of a folder in an order that can be interrupted anywhere: what says whose it is goes last, so
/// that the next sweep takes it up again.
async fn remove(place: &Place, folder: &str, mut objects: Vec<Location>) -> Result<()> {
    if is_unfinished(place, folder) {
        // Half-written files are no objects.
        place.destination.sweep_uploads(&format!("{folder}/"), DateTime::<Utc>::MAX_UTC).await?;
    }
    objects.sort_by_key(|at| match at.key.rsplit('/').next() {
        Some(OWNER_NAME) => 2,
        Some(manifest::FILE_NAME) => 1,
        _ => 0,
    });
    for at in &objects {
        place.destination.delete(at).await?;
    }
    Ok(())
}

fn is_unfinished(place: &Place, folder: &str) -> bool {
    place.stages() && folder.rsplit('/').next().is_some_and(|name| name.starts_with(PARTIAL))
}

/// Removes old orphans and unfinished uploads; what was done, and what could not be.
pub(super) async fn sweep(
    place: &Place,
    catalogue: &Catalogue,
    agent_id: &str,
    started: DateTime<Utc>,
    grace: TimeDelta,
    roots: &[String],
) -> Vec<String> {
    let mut notes = Vec::new();
    for orphan in &catalogue.orphans {
        let old = orphan.begun.is_some_and(|begun| begun + grace < started);
        let ours =
            if is_unfinished(place, &orphan.name) { is_own_unfinished(place, orphan, agent_id).await } else { old };
        if !ours {
            continue;
        }
        let failed = remove(place, &orphan.name, orphan.objects.clone()).await.err();
        notes.push(match failed {
            None => format!("swept {}, left by an interrupted run", orphan.name),
            Some(err) => format!("could not sweep {}: {}", orphan.name, err.chain()),
        });
    }
    for root in roots {
        match place.destination.sweep_uploads(root, started - grace).await {
            Ok(0) => {}
            Ok(n) => notes.push(format!("aborted {n} unfinished uploads below {root:?}")),
            Err(err) => notes.push(format!("could not look for unfinished uploads: {}", err.chain())),
        }
    }
    notes
}

/// By the owner's mark; it is removed just before the point is published, and then the manifest says whose it is.
async fn is_own_unfinished(place: &Place, orphan: &Orphan, agent_id: &str) -> bool {
    let read = async |name: &str, limit: usize| {
        let at = Location::newest(format!("{}/{name}", orphan.name));
        get_small(place.destination.as_ref(), &at, limit).await.map(|b| String::from_utf8_lossy(&b).into_owned())
    };
    match read(OWNER_NAME, 4096).await {
        Ok(owner) => owner.lines().next() == Some(agent_id),
        Err(err) if err.kind == ErrorKind::NotFound => {
            let manifest = read(manifest::FILE_NAME, MANIFEST_LIMIT).await.and_then(|text| Manifest::from_text(&text));
            manifest.is_ok_and(|m| m.agent.id == agent_id)
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::catalogue;
    use crate::config::Keep;
    use crate::destination::local::Local;
    use crate::destination::{ByteStream, Destination, ObjectMeta, PutMode, Upload, put};
    use crate::layout::Layout;

    const AGENT: &str = "0123456789abcdef0123456789abcdef";
    const ID: &str = "orders_production_weekly_2026_11_20_000312";

    /// A directory that removes so many files and no more, as if the program were killed then.
    #[derive(Debug)]
    struct Dying {
        inner: Local,
        left: AtomicUsize,
    }

    #[async_trait]
    impl Destination for Dying {
        fn name(&self) -> &str {
            self.inner.name()
        }
        fn is_off_site(&self) -> bool {
            false
        }
        async fn begin(&self, key: &str, mode: PutMode, bytes: Option<u64>) -> Result<Box<dyn Upload>> {
            self.inner.begin(key, mode, bytes).await
        }
        async fn get(&self, at: &Location) -> Result<ByteStream> {
            self.inner.get(at).await
        }
        async fn head(&self, at: &Location) -> Result<Option<ObjectMeta>> {
            self.inner.head(at).await
        }
        async fn list(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
            self.inner.list(prefix).await
        }
        async fn folders(&self, prefix: &str) -> Result<Vec<String>> {
            self.inner.folders(prefix).await
        }
        async fn list_versions(&self, prefix: &str) -> Result<Vec<ObjectMeta>> {
            self.inner.list_versions(prefix).await
        }
        async fn delete(&self, at: &Location) -> Result<()> {
            self.left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .map_err(|_| crate::error::Error::new(ErrorKind::Cancelled, "killed"))?;
            self.inner.delete(at).await
        }
        fn staging(&self, folder: &str) -> String {
            self.inner.staging(folder)
        }
        async fn sweep_uploads(&self, prefix: &str, before: DateTime<Utc>) -> Result<u64> {
            self.inner.sweep_uploads(prefix, before).await
        }
    }

    fn place(destination: impl Destination + 'static) -> Place {
        Place { destination: Arc::new(destination), layout: Layout::Local, keep: Keep::default() }
    }

    /// An unfinished point of three objects and a half-written file, with what says whose it is.
    async fn unfinished(local: &Local, is_published_next: bool) {
        let manifest = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/formats/manifest-v1-complete.json"));
        let last = if is_published_next { manifest::FILE_NAME } else { OWNER_NAME };
        for name in [last, "data.tar.zst", "restore.sh", manifest::SUMS_NAME] {
            let text = match name {
                OWNER_NAME => format!("{AGENT}\nh1\n").into_bytes(),
                manifest::FILE_NAME => manifest.as_ref().unwrap().clone(),
                _ => b"text".to_vec(),
            };
            put(local, &format!(".partial-{ID}/{name}"), PutMode::Replace, text.into()).await.unwrap();
        }
        let half = local.root().join(format!(".partial-{ID}/more.tmp-0123456789abcdef"));
        std::fs::write(half, "ha").unwrap();
    }

    #[tokio::test]
    async fn a_removal_that_is_killed_anywhere_is_taken_up_by_the_next_sweep() {
        for is_published_next in [false, true] {
            for deletes in 0..4 {
                let dir = tempfile::tempdir().unwrap();
                let local = Local::new("local", dir.path(), false);
                unfinished(&local, is_published_next).await;
                let dying = place(Dying { inner: local.clone(), left: AtomicUsize::new(deletes) });
                remove_all(&dying, &format!(".partial-{ID}")).await.unwrap_err();
                let next = place(local);
                let found = catalogue::read(&next, "db1", "orders").await.unwrap();
                assert_eq!(found.orphans.len(), 1, "after {deletes}");
                let (now, grace) = (found.orphans[0].begun.unwrap(), TimeDelta::days(1));
                let stranger = sweep(&next, &found, "another", now, grace, &[]).await;
                assert_eq!(stranger, Vec::<String>::new(), "another agent's is left alone");
                let notes = sweep(&next, &found, AGENT, now, grace, &[]).await;
                assert_eq!(notes.len(), 1, "after {deletes}");
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "after {deletes}: {notes:?}");
            }
        }
    }
}
