//! What commcare-cloud left, which Backstay replaces: its cron files and scripts here, its backups in [`points`].
//!
//! The scripts remove old backups by name, with
//! `find -delete`; names of restore points match those patterns. So nothing is backed up on a host that still has them.

use std::fs;
use std::io::ErrorKind as Io;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};

pub mod points;

/// What starts the old scripts.
const CRON_FILES: &[&str] = &["backup_postgres", "backup_couch", "backup_blobdb", "create_es_snapshot"];
/// What removes by name. Commands of the same name that start Backstay are told apart by [`OURS`].
const SCRIPTS: &[&str] =
    &["create_postgres_dump.sh", "create_couchdb_backup.sh", "create_blobdb_backup.sh", "create_es_snapshot.py"];
/// A script with this word in it is one of ours.
const OURS: &str = "backstay";

/// The old files below `root` (`/` on a host), sorted. One that cannot be read is taken for old.
pub fn found(root: &Path) -> Vec<PathBuf> {
    let cron = CRON_FILES.iter().map(|name| root.join("etc/cron.d").join(name));
    let cron = cron.filter(|path| holds(path, |text| SCRIPTS.iter().any(|script| text.contains(script))));
    let scripts = SCRIPTS.iter().map(|name| root.join("usr/local/sbin").join(name));
    let scripts = scripts.filter(|path| holds(path, |text| !text.contains(OURS)));
    let mut all: Vec<PathBuf> = cron.chain(scripts).collect();
    all.sort();
    all
}

fn holds(path: &Path, old: impl Fn(&str) -> bool) -> bool {
    match fs::read(path) {
        Ok(bytes) => old(&String::from_utf8_lossy(&bytes)),
        Err(err) => !matches!(err.kind(), Io::NotFound | Io::NotADirectory),
    }
}

/// Demands that nothing of the old system is below `root`.
///
/// # Errors
/// `Refused`, naming the files and the command that removes them.
pub fn refuse(root: &Path) -> Result<()> {
    let found: Vec<String> = found(root).iter().map(|path| path.display().to_string()).collect();
    if found.is_empty() {
        return Ok(());
    }
    let message = format!("an older backup system is still on this host: {}", found.join(", "));
    Err(Error::new(ErrorKind::Refused, message)
        .caused_by("its scripts delete by name, and would delete new restore points")
        .hint(format!(
            "remove it with `rm {}`, or deploy with `-e commcare_remove_legacy=true`; its backups stay.",
            found.join(" ")
        )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[test]
    fn old_cron_files_and_scripts_are_named_with_the_command_that_removes_them() {
        let root = host(&[
            ("etc/cron.d/backup_postgres", "0 0 * * 1-6 postgres /usr/local/sbin/create_postgres_dump.sh daily 2\n"),
            ("usr/local/sbin/create_postgres_dump.sh", "#!/bin/sh\nfind . -name 'postgres_*' -delete\n"),
        ]);
        let report = refuse(root.path()).unwrap_err().report().replace(&root.path().display().to_string(), "");
        assert_eq!(
            report,
            "error: an older backup system is still on this host: /etc/cron.d/backup_postgres, \
             /usr/local/sbin/create_postgres_dump.sh\n  \
             caused by: its scripts delete by name, and would delete new restore points\n\
             hint: remove it with `rm /etc/cron.d/backup_postgres /usr/local/sbin/create_postgres_dump.sh`, or deploy \
             with `-e commcare_remove_legacy=true`; its backups stay."
        );
    }

    #[test]
    fn commands_of_ours_and_cron_files_of_others_are_not_old() {
        let root = host(&[
            ("etc/cron.d/backup_postgres", "0 1 * * * root /opt/something/else\n"),
            ("usr/local/sbin/create_postgres_dump.sh", "#!/bin/sh\nexec /usr/local/bin/backstay backup postgres\n"),
        ]);
        assert_eq!(found(root.path()), Vec::<PathBuf>::new());
        assert!(refuse(Path::new("/nonexistent")).is_ok());
    }
}
