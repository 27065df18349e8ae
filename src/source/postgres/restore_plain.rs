//! Restores a copy of a whole cluster into a directory.

use std::fs;
use std::path::{Path, PathBuf};

use super::connect::require_space;
use super::extract::{Extracted, blocking, extract};
use super::place::{Owner, Place, give, owner};
use super::start::{ARCHIVING_OFF, Start, is_its_own_place};
use super::{Postgres, staged};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Artefact;
use crate::source::{Context, PointReader, RestoreRequest, Restored};

/// A tar and the place that it goes to.
struct Part {
    artefact: Artefact,
    place: Place,
}

/// Files that belong to a server that ran, not to the data.
const STALE: &[&str] = &["postmaster.pid", "postmaster.opts"];
/// Settings that make a server follow another.
const FOLLOWING: &[&str] = &["primary_conninfo", "primary_slot_name"];

impl Postgres {
    /// See [`crate::source::Source::restore`].
    pub(super) async fn restore_plain(
        &self,
        cx: &Context,
        point: &PointReader,
        request: &RestoreRequest,
    ) -> Result<Restored> {
        if request.database.is_some() || request.rename.is_some() {
            return Err(Error::new(ErrorKind::Usage, "a copy of a whole cluster has no single databases to restore")
                .hint("restore it elsewhere with --to and --start, and dump the database from there."));
        }
        let attribute = |key: &str| point.manifest.attributes.get(key).map(String::as_str);
        let outside = attribute("config_outside") == Some("true");
        if request.start && outside {
            return Err(Error::new(ErrorKind::Refused, "the server's configuration lies outside its data directory")
                .hint("restore without --start, then start it as the system does (systemctl, pg_ctlcluster)."));
        }
        let own = self.config.data_dir.clone().or(attribute("data_directory").map(PathBuf::from));
        let target = request.to.clone().or(own.clone()).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "it is not known where the data directory is").hint("name it with --to.")
        })?;
        let archives = is_its_own_place(own.as_deref(), &target);
        let mut place = Place::look(&target, request.replace)?;
        let owner = owner(request.owner.as_deref(), &place.dir)?;
        let stamp = cx.clock.now().format("%Y%m%d%H%M%S").to_string();
        let staged = point.manifest.artefacts.iter().any(|a| a.plain_name() == "base.tar");
        let main = super::find(point, if staged { "base.tar" } else { "data.tar" })?.clone();
        require_space(&place.staging, main.plain_bytes + main.plain_bytes / 50)?;
        place.prepare(owner)?;
        let base = Part { artefact: main, place };
        let result = self.fill(cx, point, request, (base, owner, &stamp)).await;
        let (base, mut restored) = result?;
        restored.target = base.dir.display().to_string();
        self.put_config_beside(cx, point, &base.dir, owner, &mut restored).await?;
        if outside {
            restored
                .notes
                .push("the server's configuration lies outside its data directory: see the config artefact".into());
        }
        if request.start {
            let major: String =
                point.manifest.server_version.iter().flat_map(|v| v.chars()).take_while(char::is_ascii_digit).collect();
            let start = Start { major, wait: request.wait, archives };
            self.start(cx, &base.dir, owner, &start).await?;
            if !archives {
                restored.notes.push(ARCHIVING_OFF.into());
            }
            restored.notes.push("the server runs, and its recovery has ended".into());
        } else {
            restored.notes.push("start the server, and wait until select pg_is_in_recovery() says f".into());
        }
        Ok(restored)
    }

    /// Extracts everything beside its place, then moves all of it into place.
    async fn fill(
        &self,
        cx: &Context,
        point: &PointReader,
        request: &RestoreRequest,
        (base, owner, stamp): (Part, Owner, &str),
    ) -> Result<(Place, Restored)> {
        let mut parts = vec![base];
        match extract_all(cx, point, request, &mut parts, owner).await {
            Ok(mut restored) => {
                let olds = take_all(&parts, stamp)?;
                for (part, old) in parts.iter().zip(&olds) {
                    if let Some(old) = old {
                        let (dir, old) = (part.place.dir.display(), old.display());
                        restored.notes.push(format!("the old data of {dir} lies in {old}"));
                    }
                }
                let old_data = olds.into_iter().next().flatten();
                restored.old_data = old_data;
                Ok((parts.swap_remove(0).place, restored))
            }
            Err(e) => {
                parts.iter().for_each(|part| part.place.abandon());
                Err(e)
            }
        }
    }

    /// Extracts the configuration artefact into a folder beside the data directory.
    async fn put_config_beside(
        &self,
        cx: &Context,
        point: &PointReader,
        dir: &Path,
        owner: Owner,
        restored: &mut Restored,
    ) -> Result<()> {
        let Ok(artefact) = super::find(point, "config.tar") else { return Ok(()) };
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(format!(".config-{}", cx.clock.now().format("%Y%m%d%H%M%S")));
        let mut place = Place::look(&dir.with_file_name(name), false)?;
        place.prepare(owner)?;
        let into = place.staging.clone();
        blocking(point.open(artefact).await?, &cx.cancel, move |from| extract(from, &into, owner)).await?;
        place.take_over("")?;
        restored
            .notes
            .push(format!("the configuration from outside the data directory lies in {}", place.dir.display()));
        Ok(())
    }
}

/// Moves all parts into their places, or none. The data directory comes last: it must never be in place without its
/// tablespaces.
fn take_all(parts: &[Part], stamp: &str) -> Result<Vec<Option<PathBuf>>> {
    let mut olds: Vec<Option<PathBuf>> = vec![None; parts.len()];
    for at in (0..parts.len()).rev() {
        match parts[at].place.take_over(stamp) {
            Ok(old) => olds[at] = old,
            Err(e) => {
                for done in at + 1..parts.len() {
                    parts[done].place.give_back(olds[done].as_deref())?;
                }
                parts.iter().for_each(|part| part.place.abandon());
                return Err(e);
            }
        }
    }
    Ok(olds)
}

async fn extract_part(cx: &Context, point: &PointReader, part: &Part, owner: Owner) -> Result<Extracted> {
    let into = part.place.staging.clone();
    blocking(point.open(&part.artefact).await?, &cx.cancel, move |from| extract(from, &into, owner)).await
}

async fn extract_all(
    cx: &Context,
    point: &PointReader,
    request: &RestoreRequest,
    parts: &mut Vec<Part>,
    owner: Owner,
) -> Result<Restored> {
    let mut restored = Restored::default();
    let mut sum = extract_part(cx, point, &parts[0], owner).await?;
    let staging = parts[0].place.staging.clone();
    for (oid, dir) in relocate(&staging, &request.map)? {
        let artefact = super::find(point, &format!("{oid}.tar"))?.clone();
        let mut place = Place::look(&dir, request.replace)?;
        require_space(&place.staging, artefact.plain_bytes)?;
        place.prepare(owner)?;
        parts.push(Part { artefact, place });
        let more = extract_part(cx, point, &parts[parts.len() - 1], owner).await?;
        sum = Extracted { files: sum.files + more.files, bytes: sum.bytes + more.bytes };
    }
    if let Ok(manifest) = super::find(point, &format!("{}.json", staged::MANIFEST)) {
        let path = staging.join(staged::MANIFEST);
        blocking(point.open(manifest).await?, &cx.cancel, move |from| {
            let text = super::extract::read_all(from, 4 << 30)?;
            fs::write(&path, text).map_err(|e| Error::io(e, format!("could not write {}", path.display())))?;
            give(&path, owner)
        })
        .await?;
    }
    tidy(&staging, owner, request.keep_standby, &mut restored)?;
    restored.counts = [("files".to_owned(), sum.files), ("bytes".to_owned(), sum.bytes)].into();
    Ok(restored)
}

/// Rewrites `tablespace_map` for new directories; the tablespaces and where they go.
fn relocate(data: &Path, map: &[(PathBuf, PathBuf)]) -> Result<Vec<(u32, PathBuf)>> {
    let path = data.join("tablespace_map");
    let text = match fs::read_to_string(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|e| Error::io(e, "could not read tablespace_map"))?,
    };
    let mut found = Vec::new();
    let mut rewritten = String::new();
    for line in text.lines().filter(|l| !l.trim().is_empty()) {
        let entry = line.split_once(' ').and_then(|(oid, dir)| Some((oid.parse::<u32>().ok()?, dir)));
        let (oid, dir) = entry.filter(|(_, dir)| !dir.contains('\\')).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("tablespace_map has a line that makes no sense: {line:?}"))
        })?;
        let dir = map.iter().find(|(old, _)| old == Path::new(dir)).map_or(PathBuf::from(dir), |(_, new)| new.clone());
        rewritten.push_str(&format!("{oid} {}\n", dir.display()));
        found.push((oid, dir));
    }
    if let Some((old, _)) =
        map.iter().find(|(old, _)| !text.lines().any(|l| l.split_once(' ').is_some_and(|(_, d)| Path::new(d) == old)))
    {
        return Err(Error::new(ErrorKind::Usage, format!("no tablespace lies in {}", old.display()))
            .hint("see tablespace_map in base.tar for their directories."));
    }
    fs::write(&path, rewritten).map_err(|e| Error::io(e, "could not write tablespace_map"))?;
    Ok(found)
}

/// Removes what would make the copy follow the old primary, or look like a running server.
pub(super) fn tidy(data: &Path, owner: Owner, keep_standby: bool, restored: &mut Restored) -> Result<()> {
    for name in STALE {
        let _ = fs::remove_file(data.join(name));
    }
    if keep_standby {
        return Ok(());
    }
    if fs::remove_file(data.join("standby.signal")).is_ok() {
        restored.notes.push("it was a standby: standby.signal was removed, so it starts as a server of its own".into());
    }
    let path = data.join("postgresql.auto.conf");
    let Ok(text) = fs::read_to_string(&path) else { return Ok(()) };
    let follows = |line: &&str| FOLLOWING.iter().any(|key| line.trim_start().to_ascii_lowercase().starts_with(key));
    if text.lines().any(|line| follows(&line)) {
        let kept: String = text.lines().filter(|line| !follows(line)).map(|line| format!("{line}\n")).collect();
        fs::write(&path, kept).map_err(|e| Error::io(e, "could not write postgresql.auto.conf"))?;
        give(&path, owner)?;
        restored.notes.push("primary_conninfo was removed from postgresql.auto.conf".into());
    }
    Ok(())
}
