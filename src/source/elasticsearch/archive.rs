//! The directory of an `fs` repository as one tar (`data`), so that its snapshots also leave the host.
//!
//! Facts that the rules here rest on: no file of a repository is ever changed. `index-N` is its root, written last; with
//! the next generation of it, and not before, files go that no snapshot needs any more. So a copy of all files, made
//! while `index-N` stays the newest root, holds everything that this root leads to. The root's bytes are read before
//! all others, and stored after them.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::snapshot;
use crate::artefact::{ArtefactSink, ArtefactSpec};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::External;
use crate::pipeline::archive::{Member, MemberKind, Stopped, TarWriter, watched};
use crate::source::Context;

pub(super) mod read;

/// How often the directory is walked again because its root has changed.
const TRIES: u32 = 3;
/// Folders in folders; a repository is not that deep.
const MAX_DEPTH: usize = 32;
/// Which repository it is, in the attributes of a manifest.
const REPOSITORY: &str = "archived_repository";
/// The number of its root.
const GENERATION: &str = "archived_generation";
/// How many files it has, in the counts of a manifest.
const FILES: &str = "archived_files";

/// What was stored.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Archived {
    pub(super) generation: u64,
    pub(super) files: u64,
    pub(super) bytes: u64,
}

impl Archived {
    /// For the manifest.
    pub(super) fn describe(&self, repository: &str, captured: &mut crate::source::Captured) {
        captured.counts.insert(FILES.to_owned(), self.files);
        captured.counts.insert("archived_bytes".to_owned(), self.bytes);
        captured.attributes.insert(REPOSITORY.to_owned(), repository.to_owned());
        captured.attributes.insert(GENERATION.to_owned(), self.generation.to_string());
    }
}

/// Stores the repository of `location` that holds `external`, while nobody makes a snapshot.
pub(super) async fn store(
    client: &Client,
    cx: &Context,
    sink: &dyn ArtefactSink,
    location: &str,
    external: &External,
    wait: std::time::Duration,
) -> Result<Archived> {
    let Some(uuid) = external.uuid.clone() else {
        return Err(Error::new(ErrorKind::Config, "snapshots of this cluster have no uuid")
            .hint("`archive` is for Elasticsearch 5 and newer and for OpenSearch."));
    };
    let root = directory(client, location).await?;
    must_hold(&root, &uuid)?;
    snapshot::wait_for_others(client, cx, wait).await?;
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let mut writer = sink.open(ArtefactSpec::data("data", "tar")).await?;
    let worker = tokio::task::spawn_blocking(move || {
        let outcome = run(&root, &stop, writer.blocking());
        (writer, outcome)
    });
    let (writer, outcome) =
        worker.await.map_err(|e| Error::new(ErrorKind::Internal, "the reader broke").caused_by(e))?;
    drop(guard);
    let archived = match outcome {
        Ok(archived) => archived,
        Err(Stopped::Closed) => return Err(writer.failure().await),
        Err(Stopped::Error(e)) => return Err(e),
    };
    let running = snapshot::running(client).await?;
    if let Some((name, _)) = running.iter().find(|(_, repository)| *repository == external.repository) {
        return Err(Error::new(ErrorKind::Busy, format!("somebody began snapshot {name} while it was copied")));
    }
    writer.finish().await?;
    Ok(archived)
}

/// Where the nodes see it: a relative location lies below the first of their `path.repo`.
async fn directory(client: &Client, location: &str) -> Result<PathBuf> {
    if location.starts_with('/') {
        return Ok(PathBuf::from(location));
    }
    let what = "could not ask the nodes for `path.repo`";
    let nodes = client.must_get("/_nodes/settings?filter_path=nodes.*.settings.path.repo", what).await?;
    let repo = nodes["nodes"].as_object().and_then(|n| n.values().next()).map(|n| &n["settings"]["path"]["repo"]);
    let first = repo.and_then(|r| r.as_str().or_else(|| r.as_array()?.first()?.as_str()));
    let first = first.ok_or_else(|| Error::new(ErrorKind::Failed, what).caused_by("the answer names none"))?;
    Ok(Path::new(first).join(location))
}

/// This directory is that repository, and not one of the same name on another host.
fn must_hold(root: &Path, uuid: &str) -> Result<()> {
    for name in [format!("snap-{uuid}.dat"), format!("meta-{uuid}.dat")] {
        let path = root.join(&name);
        if let Err(e) = File::open(&path) {
            let hint = match e.kind() {
                io::ErrorKind::NotFound => {
                    "`archive` needs the repository's directory on this host, under the path that the nodes know: mount it."
                }
                _ => {
                    "let the user that backs up read the repository: run the service as root, or with the nodes' group."
                }
            };
            return Err(Error::io(e, format!("could not open {}", path.display())).hint(hint));
        }
    }
    Ok(())
}

/// Writes the archive. Blocks.
fn run(root: &Path, stop: &CancellationToken, out: impl Write) -> Result<Archived, Stopped> {
    watched(out, |out| run_into(root, stop, out))
}

fn run_into(root: &Path, stop: &CancellationToken, out: impl Write) -> Result<Archived> {
    let mut copy =
        Copy { root, stop, tar: TarWriter::new(out), known: BTreeSet::new(), files: 0, bytes: 0, vanished: false };
    for _ in 0..TRIES {
        let generation = newest(root)?;
        let roots = copy.roots(generation)?;
        copy.vanished = false;
        copy.below("", 0)?;
        if copy.vanished || newest(root)? != generation {
            continue;
        }
        for (name, meta, bytes) in &roots {
            copy.tar.append(&Member::of(name, MemberKind::File, meta), bytes)?;
            copy.count(bytes.len() as u64);
        }
        let Copy { tar, files, bytes, .. } = copy;
        tar.finish()?;
        return Ok(Archived { generation, files, bytes });
    }
    let text = format!("{} changed while it was copied, {TRIES} times", root.display());
    Err(Error::new(ErrorKind::Busy, text)
        .hint("see who else makes or removes snapshots in it at this time, such as a policy of the cluster."))
}

/// The number of the newest root.
fn newest(root: &Path) -> Result<u64> {
    let numbers = names(root)?.into_iter().filter_map(|n| generation_of(&n));
    numbers.max().ok_or_else(|| {
        Error::new(ErrorKind::Failed, format!("{} has no root (index-N)", root.display()))
            .hint("`archive` is for Elasticsearch 5 and newer and for OpenSearch.")
    })
}

/// Of `index-N`.
fn generation_of(name: &str) -> Option<u64> {
    name.strip_prefix("index-")?.parse().ok()
}

/// Whether it lies at the top and is a root, or points at one.
fn is_root(path: &str) -> bool {
    path == "index.latest" || generation_of(path).is_some()
}

/// What is being written or tried out: never part of a snapshot.
fn is_work(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.starts_with("pending-") || path == name && name.starts_with("tests-")
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let failed = |e| Error::io(e, format!("could not list {}", dir.display()));
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.push(name.into_string().map_err(|name| {
            Error::new(ErrorKind::Failed, format!("{} is no file of a repository", dir.join(name).display()))
        })?);
    }
    names.sort_unstable();
    Ok(names)
}

struct Copy<'a, W: Write> {
    root: &'a Path,
    stop: &'a CancellationToken,
    tar: TarWriter<W>,
    /// What the archive holds already.
    known: BTreeSet<String>,
    files: u64,
    bytes: u64,
    vanished: bool,
}

impl<W: Write> Copy<'_, W> {
    /// The newest root and what points at it, as they are now.
    fn roots(&self, generation: u64) -> Result<Vec<(String, Metadata, Vec<u8>)>> {
        let mut found = Vec::new();
        for name in [format!("index-{generation}"), "index.latest".to_owned()] {
            let path = self.root.join(&name);
            let read = fs::metadata(&path).and_then(|meta| Ok((name.clone(), meta, fs::read(&path)?)));
            match read {
                Ok((name, meta, bytes)) => found.push((name, meta, bytes)),
                // Some clusters do without.
                Err(e) if e.kind() == io::ErrorKind::NotFound && !name.starts_with("index-") => {}
                Err(e) => return Err(Error::io(e, format!("could not read {}", path.display()))),
            }
        }
        Ok(found)
    }

    fn count(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }

    fn below(&mut self, dir: &str, depth: usize) -> Result<()> {
        let full = self.root.join(dir);
        if depth > MAX_DEPTH {
            return Err(Error::new(ErrorKind::Failed, format!("{} lies too deep", full.display())));
        }
        let names = match names(&full) {
            Err(e) if e.kind == ErrorKind::NotFound && depth > 0 => {
                self.vanished = true;
                return Ok(());
            }
            names => names?,
        };
        if self.known.insert(format!("{dir}/")) {
            let meta =
                fs::metadata(&full).map_err(|e| Error::io(e, format!("could not look at {}", full.display())))?;
            self.tar.append(&Member::of(if dir.is_empty() { "." } else { dir }, MemberKind::Directory, &meta), b"")?;
        }
        for name in names {
            let path = if dir.is_empty() { name } else { format!("{dir}/{name}") };
            if is_work(&path) || is_root(&path) || self.known.contains(&path) {
                continue;
            }
            if self.stop.is_cancelled() {
                return Err(Error::new(ErrorKind::Cancelled, "the backup was stopped"));
            }
            match fs::symlink_metadata(self.root.join(&path)) {
                Ok(meta) if meta.is_dir() => self.below(&path, depth + 1)?,
                Ok(meta) if meta.is_file() => self.file(path)?,
                Err(e) if e.kind() == io::ErrorKind::NotFound => self.vanished = true,
                Err(e) => return Err(Error::io(e, format!("could not look at {path}"))),
                Ok(_) => {
                    let text = format!("{} is neither a file nor a directory", self.root.join(&path).display());
                    return Err(Error::new(ErrorKind::Failed, text));
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, path: String) -> Result<()> {
        let full = self.root.join(&path);
        let failed = |e: io::Error| {
            let denied = e.kind() == io::ErrorKind::PermissionDenied;
            let e = Error::io(e, format!("could not read {}", full.display()));
            if denied { e.hint("let the user that backs up read all of the repository.") } else { e }
        };
        let file = match File::open(&full) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.vanished = true;
                return Ok(());
            }
            file => file.map_err(failed)?,
        };
        let meta = file.metadata().map_err(failed)?;
        let stop = self.stop;
        let mut seen = |_: &[u8]| match stop.is_cancelled() {
            true => Err(Error::new(ErrorKind::Cancelled, "the backup was stopped").into()),
            false => Ok(()),
        };
        let mut named = Named { file: &file, failed: &failed };
        let copied = self.tar.append_reader(&Member::of(&path, MemberKind::File, &meta), &mut named, &mut seen)?;
        if copied.padded > 0 || copied.grew {
            let text = format!("{} changed while it was read", full.display());
            return Err(
                Error::new(ErrorKind::Failed, text).hint("files of a repository never do: see what else writes there.")
            );
        }
        self.count(meta.len());
        self.known.insert(path);
        Ok(())
    }
}

/// A file whose errors say its name.
struct Named<'a> {
    file: &'a File,
    failed: &'a dyn Fn(io::Error) -> Error,
}

impl io::Read for Named<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match (&mut &*self.file).read(buf) {
            Err(e) if e.kind() != io::ErrorKind::Interrupted => Err((self.failed)(e).into()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repository of generation 0 whose snapshot needs `indices/a/__1`.
    fn repository() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("indices/a")).unwrap();
        fs::create_dir(dir.path().join("tests-x")).unwrap();
        let files = ["indices/a/__1", "indices/a/pending-x", "tests-x/master.dat", "snap-u.dat", "meta-u.dat"];
        for name in files.into_iter().chain(["index-0", "index.latest"]) {
            fs::write(dir.path().join(name), name).unwrap();
        }
        dir
    }

    /// Something happens to the directory as soon as the first bytes arrive, and again on every later walk.
    struct Meanwhile<'a> {
        bytes: Vec<u8>,
        happens: &'a mut dyn FnMut(),
    }

    impl Write for Meanwhile<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            (self.happens)();
            self.bytes.extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Names and contents, in order.
    fn copied(dir: &Path, mut happens: impl FnMut()) -> Result<Vec<(String, String)>, Stopped> {
        let mut out = Meanwhile { bytes: Vec::new(), happens: &mut happens };
        run(dir, &CancellationToken::new(), &mut out)?;
        let into = tempfile::tempdir().unwrap();
        let mut found = Vec::new();
        let mut seen = |m: &Member, _: Option<&blake3::Hash>| {
            found.push(String::from_utf8(m.path.clone()).unwrap());
            Ok(())
        };
        crate::pipeline::extract::extract(
            out.bytes.as_slice(),
            into.path(),
            crate::pipeline::extract::Rules::default(),
            &mut seen,
        )
        .unwrap();
        let content = |n: String| (fs::read_to_string(into.path().join(&n)).unwrap_or_default(), n);
        Ok(found.into_iter().map(content).map(|(content, name)| (name, content)).collect())
    }

    fn names_of(found: &[(String, String)]) -> Vec<&str> {
        found.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn the_root_comes_last_and_what_is_being_written_stays_out() {
        let dir = repository();
        let found = copied(dir.path(), || ()).unwrap();
        let expected =
            [".", "indices", "indices/a", "indices/a/__1", "meta-u.dat", "snap-u.dat", "index-0", "index.latest"];
        assert_eq!(names_of(&found), expected);
    }

    #[test]
    fn a_root_that_changes_meanwhile_is_not_mixed_with_another() {
        let dir = repository();
        let mut once = false;
        let found = copied(dir.path(), || {
            if !std::mem::replace(&mut once, true) {
                // A snapshot is removed, and another one made.
                for name in ["indices/a/__2", "snap-v.dat", "meta-v.dat", "index-1"] {
                    fs::write(dir.path().join(name), name).unwrap();
                }
                fs::write(dir.path().join("index.latest"), "index-1").unwrap();
                for name in ["indices/a/__1", "snap-u.dat", "index-0"] {
                    fs::remove_file(dir.path().join(name)).unwrap();
                }
            }
        })
        .unwrap();
        let names = names_of(&found);
        assert_eq!(names[names.len() - 2..], ["index-1", "index.latest"]);
        assert_eq!(found.last().unwrap().1, "index-1");
        assert!(["indices/a/__2", "snap-v.dat", "meta-v.dat"].iter().all(|n| names.contains(n)), "{names:?}");
        assert!(!names.contains(&"index-0") && names.iter().collect::<BTreeSet<_>>().len() == names.len(), "{names:?}");
    }

    #[test]
    fn a_repository_that_never_rests_is_not_archived() {
        let dir = repository();
        let mut n = 0;
        let ended = copied(dir.path(), || {
            n += 1;
            fs::write(dir.path().join(format!("index-{n}")), "").unwrap();
            fs::write(dir.path().join(format!("indices/a/__{n}0")), "").unwrap();
        });
        let Err(Stopped::Error(err)) = ended else { panic!("{ended:?}") };
        assert!(err.kind == ErrorKind::Busy && err.message.contains("changed while it was copied, 3 times"), "{err:?}");
    }

    #[test]
    fn a_directory_that_is_not_the_repository_is_told() {
        let dir = repository();
        must_hold(dir.path(), "u").unwrap();
        let err = must_hold(dir.path(), "other").unwrap_err();
        assert!(err.hint.as_ref().unwrap().contains("mount it"), "{err:?}");
        fs::remove_file(dir.path().join("index-0")).unwrap();
        assert!(matches!(copied(dir.path(), || ()), Err(Stopped::Error(e)) if e.message.contains("has no root")));
    }
}
