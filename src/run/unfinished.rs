//! Remembers, from run to run, which points were begun: a store may keep a snapshot of one that was never committed, and
//! only this list tells it from the snapshots of points whose manifests somebody removed.

use std::path::PathBuf;

use super::Run;
use crate::engine::write_private;
use crate::error::{Error, Result};

/// The list of one service, a line per id, in its state directory.
pub(super) struct Unfinished {
    path: PathBuf,
    /// Begun by earlier runs, and certainly not committed: they can be cleaned up.
    pub(super) dead: Vec<String>,
    /// Begun by earlier runs; a place that cannot be read may hold their manifests.
    unclear: Vec<String>,
}

impl Unfinished {
    /// What earlier runs left.
    pub(super) fn read(run: &Run<'_>) -> Self {
        let path = run.engine.service_dir(run.name).join("unfinished");
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let begun = text.lines().map(str::to_owned);
        let committed = |id: &String| {
            run.catalogues.iter().flatten().any(|c| {
                c.points.iter().any(|p| &p.manifest.id == id)
                    || c.strangers.iter().any(|s| s.name.contains(id.as_str()))
            })
        };
        let left: Vec<String> = begun.filter(|id| !committed(id)).collect();
        let all_seen = run.catalogues.iter().all(|c| c.as_ref().is_ok_and(|c| !c.partial_view));
        let (dead, unclear) = if all_seen { (left, Vec::new()) } else { (Vec::new(), left) };
        Self { path, dead, unclear }
    }

    /// Begun by earlier runs, and not known to be committed.
    pub(super) fn ids(&self) -> impl Iterator<Item = &str> {
        self.dead.iter().chain(&self.unclear).map(String::as_str)
    }

    /// Notes that the point `id` is begun.
    pub(super) fn begin(&self, id: &str) -> Result<()> {
        self.write(self.ids().chain([id]))
    }

    /// Notes that the point is committed, while something may be left of the dead ones.
    pub(super) fn committed(&self) -> Result<()> {
        self.write(self.ids())
    }

    /// Notes that the point is committed, or that nothing is left of it, nor of the dead ones.
    pub(super) fn settled(&self) -> Result<()> {
        self.write(self.unclear.iter().map(String::as_str))
    }

    fn write<'a>(&self, ids: impl Iterator<Item = &'a str>) -> Result<()> {
        let text: String = ids.flat_map(|id| [id, "\n"]).collect();
        write_private(&self.path, &text).map_err(|e| Error::io(e, format!("could not write {}", self.path.display())))
    }
}
