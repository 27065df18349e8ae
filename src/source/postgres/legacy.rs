//! Restores what commcare-cloud made: a tar of a copy by `pg_basebackup`, or a dump by `pg_dumpall`.

use std::path::Path;

use super::Postgres;
use super::extract::blocking;
use super::place::{Owner, Place, owner};
use super::restore_dump::{feed_observed, is_known_role, judge_psql, refuse_directory};
use super::restore_plain::tidy;
use super::start::{ARCHIVING_OFF, Start, is_its_own_place};
use crate::error::{Error, ErrorKind, Result};
use crate::pipeline::extract::{self, Rules};
use crate::source::{Context, LegacyReader, RestoreRequest, Restored};

/// The last words of `pg_dumpall`.
const END: &[u8] = b"-- PostgreSQL database cluster dump complete";
/// What every data directory has.
const ESSENTIAL: &[&str] = &["PG_VERSION", "global/pg_control", "backup_label"];

impl Postgres {
    /// See [`crate::source::Source::restore_legacy`].
    pub(super) async fn legacy(&self, cx: &Context, old: LegacyReader, request: &RestoreRequest) -> Result<Restored> {
        if request.database.is_some() || request.rename.is_some() || !request.map.is_empty() {
            return Err(Error::new(ErrorKind::Usage, "this backup comes back whole, or not at all")
                .hint("leave out `--database`, `--as` and `--map`."));
        }
        if old.is_dump { self.legacy_dump(cx, old, request).await } else { self.legacy_copy(cx, old, request).await }
    }

    async fn legacy_copy(&self, cx: &Context, old: LegacyReader, request: &RestoreRequest) -> Result<Restored> {
        let target = request.to.clone().or(self.config.data_dir.clone()).ok_or_else(|| {
            Error::new(ErrorKind::Usage, "it is not known where the data directory is")
                .hint("name it with --to, or as `data_dir` of the service.")
        })?;
        let mut place = Place::look(&target, request.replace)?;
        let owner = owner(request.owner.as_deref(), &place.dir)?;
        super::connect::require_space(&place.staging, old.stored_bytes)?;
        place.prepare(owner)?;
        let filled = fill(cx, old, request, &place, owner).await;
        let (mut restored, major) = filled.inspect_err(|_| place.abandon())?;
        let stamp = cx.clock.now().format("%Y%m%d%H%M%S").to_string();
        restored.old_data = place.take_over(&stamp).inspect_err(|_| place.abandon())?;
        restored.target = place.dir.display().to_string();
        if request.start {
            let archives = is_its_own_place(self.config.data_dir.as_deref(), &target);
            self.start(cx, &place.dir, owner, &Start { major, wait: request.wait, archives }).await?;
            if !archives {
                restored.notes.push(ARCHIVING_OFF.into());
            }
            restored.notes.push("the server runs, and its recovery has ended".into());
        } else {
            restored.notes.push("start the server, and wait until select pg_is_in_recovery() says f".into());
        }
        Ok(restored)
    }

    async fn legacy_dump(&self, cx: &Context, mut old: LegacyReader, request: &RestoreRequest) -> Result<Restored> {
        refuse_directory(request)?;
        self.refuse_occupied(cx).await?;
        let mut tail = Vec::new();
        let program = self.script(cx, &self.config.database).await?;
        let ended = feed_observed(cx, program, &mut old.plain, |bytes| {
            tail.extend_from_slice(bytes);
            tail.drain(..tail.len().saturating_sub(256));
        })
        .await?;
        if !tail.windows(END.len()).any(|words| words == END) {
            let message = format!("{:?} has no end mark: pg_dumpall did not finish it", old.name);
            return Err(Error::new(ErrorKind::Corrupt, message)
                .hint("the cluster holds what there was of it: empty it, and restore another backup."));
        }
        judge_psql(&ended, is_known_role)?;
        let notes = vec!["run ANALYZE: a dump has no statistics".into()];
        Ok(Restored { target: self.server_name(), notes, ..Restored::default() })
    }
}

/// Extracts the copy beside its place; its major version.
async fn fill(
    cx: &Context,
    old: LegacyReader,
    request: &RestoreRequest,
    place: &Place,
    owner: Owner,
) -> Result<(Restored, String)> {
    let into = place.staging.clone();
    let given = nix::unistd::geteuid().is_root().then_some((owner.uid, owner.gid));
    let rules = Rules { owner: given, ..Rules::default() };
    let done =
        blocking(old.plain, &cx.cancel, move |from| extract::extract_stripped(from, &into, rules, &|_| true)).await?;
    let dir = &place.staging;
    if let Some(missing) = ESSENTIAL.iter().find(|name| !dir.join(name).is_file()) {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!("{:?} is no copy of a cluster: it has no {missing}", old.name),
        )
        .hint("restore another backup; nothing at the target was changed."));
    }
    let mut restored = Restored { counts: done.counts, notes: done.notes, ..Restored::default() };
    tidy(dir, owner, request.keep_standby, &mut restored)?;
    if !dir.join("postgresql.conf").is_file() {
        if request.start {
            return Err(Error::new(
                ErrorKind::Refused,
                "the copy has no postgresql.conf: it lay outside the data directory",
            )
            .hint("restore without --start, then start it as the system does (systemctl, pg_ctlcluster)."));
        }
        restored
            .notes
            .push("the server's configuration lay outside the data directory, and is not in the backup".into());
    }
    let major = major(dir)?;
    Ok((restored, major))
}

fn major(dir: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(dir.join("PG_VERSION")).map_err(|e| Error::io(e, "could not read PG_VERSION"))?;
    Ok(text.trim().to_owned())
}
