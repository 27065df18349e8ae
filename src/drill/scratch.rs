//! The scratch directory of a drill: where it may lie, whether there is room, and that nothing is left of it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::engine::Engine;
use crate::error::{Error, ErrorKind, Result};
use crate::source::SCRATCH_VARIABLE;
use crate::units::Bytes;

/// How long processes may take to end before they are killed, and then to be gone.
const PATIENCE: Duration = Duration::from_secs(10);
/// Time between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// The directory of one service's drills. Its name is fixed, so that the next drill finds what a killed one left; the
/// agent's id is in it, so that two installations do not meet.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Holds all of it.
    path: PathBuf,
    parent: PathBuf,
}

impl Scratch {
    /// As it is configured; makes only the default parent.
    pub(super) fn at(engine: &Engine, service: &str) -> Result<Self> {
        let configured = engine.config.drill(engine.service(service)?).scratch_dir;
        let parent = match configured {
            Some(dir) => dir,
            None => {
                let dir = engine.config.state_dir.join("scratch");
                let failed = |e| {
                    Error::io(e, format!("could not make {}", dir.display())).hint(
                        "run the drill as root, or set `drill.scratch_dir` to a directory that this user may write.",
                    )
                };
                // Others may enter, because servers run as their own users; nobody else may look.
                fs::DirBuilder::new().recursive(true).mode(0o711).create(&dir).map_err(failed)?;
                dir
            }
        };
        let parent = parent.canonicalize().map_err(|e| {
            Error::io(e, format!("could not open the scratch directory {}", parent.display()))
                .hint("make it, on a disk with room for a restored copy, or correct `drill.scratch_dir`.")
        })?;
        let agent: String = engine.agent_id()?.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
        Ok(Self { path: parent.join(format!("backstay-drill-{service}-{agent}")), parent })
    }

    /// Refuses a place inside of production's data or of restore points, whether it is configured or only captured.
    pub(super) fn refuse_production(&self, engine: &Engine, more: &[PathBuf]) -> Result<()> {
        let configured = engine.config.data_dirs().into_iter().map(|(_, dir)| dir);
        for dir in configured.chain(more.iter().cloned()) {
            let real = dir.canonicalize().unwrap_or_else(|_| dir.clone());
            if self.parent.starts_with(&real) || real.starts_with(&self.path) {
                let (scratch, dir) = (self.parent.display(), dir.display());
                return Err(Error::new(ErrorKind::Refused, format!("the scratch directory {scratch} lies in {dir}"))
                    .hint("set `drill.scratch_dir` to a directory of its own, outside of production's data."));
            }
        }
        Ok(())
    }

    /// Refuses to begin what will not fit.
    pub(super) fn require(&self, needed: u64) -> Result<()> {
        let stat = nix::sys::statvfs::statvfs(&self.parent)
            .map_err(|e| Error::io(e.into(), format!("could not look at {}", self.parent.display())))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        if free >= needed {
            return Ok(());
        }
        let message =
            format!("{} has {} free, and the drill needs {}", self.parent.display(), Bytes(free), Bytes(needed));
        Err(Error::new(ErrorKind::NoSpace, message)
            .hint("free space there, or set `drill.scratch_dir` to a larger disk; blobs and CouchDB can be drilled with --stream."))
    }

    /// Where the restored copy goes: the source's own.
    pub(super) fn copy(&self) -> PathBuf {
        self.path.join("copy")
    }

    /// Where small things go while a drill runs.
    pub(super) fn work(&self) -> PathBuf {
        self.path.join("work")
    }

    /// Makes it. A server's user must get through to its copy, so the directory above may be entered, not read.
    pub(super) fn make(&self) -> Result<()> {
        for (path, mode) in [(&self.path, 0o711), (&self.copy(), 0o700)] {
            fs::DirBuilder::new()
                .mode(mode)
                .create(path)
                .map_err(|e| Error::io(e, format!("could not make {}", path.display())))?;
        }
        Ok(())
    }

    /// Ends every process that works below it, and removes it.
    pub(super) async fn sweep(&self) -> Result<()> {
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let mut left = inhabitants(&self.path);
            for pid in &left {
                // It may have ended by itself.
                let _ = kill(*pid, signal);
            }
            let mut waited = Duration::ZERO;
            while !left.is_empty() && waited < PATIENCE {
                tokio::time::sleep(PAUSE).await;
                waited += PAUSE;
                left = inhabitants(&self.path);
            }
        }
        let failed = |e| {
            Error::io(e, format!("could not remove {}", self.path.display()))
                .hint("remove it by hand: it holds a restored copy of production's data.")
        };
        let path = self.path.clone();
        let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(path)).await;
        match removed.unwrap_or_else(|e| Err(std::io::Error::other(e))) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed(e)),
            _ => Ok(()),
        }
    }
}

/// Processes that work below a directory that only drills use, or whose environment names it.
fn inhabitants(dir: &Path) -> Vec<Pid> {
    let numbers = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    let works = |pid: i32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
    let marked = |pid: i32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut values = environment.split(|b| *b == 0).filter_map(|line| {
            line.strip_prefix(SCRATCH_VARIABLE.as_bytes())?.strip_prefix(b"=").map(OsStr::from_bytes)
        });
        values.any(|value| Path::new(value).starts_with(dir))
    };
    numbers.filter(|pid| works(*pid) || marked(*pid)).map(Pid::from_raw).collect()
}
