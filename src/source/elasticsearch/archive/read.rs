//! The archive of a repository, read back: compared with what the manifest says of it, and unpacked into a directory.

use std::collections::BTreeSet;
use std::io::BufRead;

use tokio_util::sync::CancellationToken;

use super::{FILES, GENERATION, REPOSITORY, generation_of};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Artefact, Manifest};
use crate::pipeline::archive::{Member, MemberKind};
use crate::pipeline::bridge::{Bridge, blocking};
use crate::pipeline::extract::{self, Rules};
use crate::pipeline::owner;
use crate::pipeline::place::Place;
use crate::source::{Context, PointReader, RestoreRequest, Restored, Verified};

/// The archive of a point, if it has one.
pub(in super::super) fn of(manifest: &Manifest) -> Option<&Artefact> {
    manifest.artefacts.iter().find(|a| a.plain_name() == "data.tar")
}

/// What must be at the top of the archive.
#[derive(Debug, Default)]
struct Contents {
    expected: Vec<String>,
    top: BTreeSet<String>,
    files: (u64, u64),
}

impl Contents {
    fn of(manifest: &Manifest) -> Self {
        let attribute = |key| manifest.attributes.get(key).map(String::as_str);
        let mut expected: Vec<String> = attribute(GENERATION).map(|n| format!("index-{n}")).into_iter().collect();
        let uuids = manifest.external.iter().filter(|e| Some(e.repository.as_str()) == attribute(REPOSITORY));
        for uuid in uuids.filter_map(|e| e.uuid.as_ref()) {
            expected.extend([format!("snap-{uuid}.dat"), format!("meta-{uuid}.dat")]);
        }
        Self { expected, files: (0, manifest.counts.get(FILES).copied().unwrap_or(0)), ..Self::default() }
    }

    fn see(&mut self, member: &Member) {
        if member.kind == MemberKind::File {
            self.files.0 += 1;
        }
        if !member.path.contains(&b'/') {
            self.top.insert(String::from_utf8_lossy(&member.path).into_owned());
        }
    }

    fn problems(&self) -> Vec<String> {
        let lacks = |name: &&String| !self.top.contains(*name);
        let mut problems: Vec<String> =
            self.expected.iter().filter(lacks).map(|name| format!("the archive lacks {name}")).collect();
        if self.expected.len() < 3 {
            problems.push("the manifest does not say which snapshot the archive holds".to_owned());
        }
        if self.top.iter().filter(|name| generation_of(name).is_some()).count() > 1 {
            problems.push("the archive has several roots".to_owned());
        }
        let (found, counted) = self.files;
        if found != counted {
            problems.push(format!("the archive has {found} files, {counted} were counted"));
        }
        problems
    }
}

async fn open(
    point: &PointReader,
    artefact: &Artefact,
    stop: &CancellationToken,
) -> Result<impl BufRead + Send + 'static> {
    Ok(Bridge::new(point.open(artefact).await?, stop))
}

/// Reads all of it. Needs no cluster.
pub(in super::super) async fn verify(cx: &Context, point: &PointReader, artefact: &Artefact) -> Result<Verified> {
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let data = open(point, artefact, &stop).await?;
    let mut contents = Contents::of(&point.manifest);
    let counts = point.manifest.counts.clone();
    let work = move || {
        let scanned = extract::scan(data, &mut |member: &Member, _: Option<&_>| {
            contents.see(member);
            Ok(())
        });
        match scanned {
            Ok(_) => Ok(Verified { counts, problems: contents.problems() }),
            Err(e) if e.kind == ErrorKind::Corrupt => Ok(Verified { problems: vec![e.chain()], ..Verified::default() }),
            Err(e) => Err(e),
        }
    };
    let outcome = blocking(work).await;
    drop(guard);
    outcome
}

/// Unpacks it into the directory of `--to`.
pub(in super::super) async fn restore(cx: &Context, point: &PointReader, request: &RestoreRequest) -> Result<Restored> {
    let (Some(target), Some(artefact)) = (&request.to, of(&point.manifest)) else {
        let text = format!("restore point {} has no archive of a repository", point.manifest.id);
        return Err(Error::new(ErrorKind::NotFound, text)
            .hint("without --to, its indices are restored from the cluster's own repositories."));
    };
    let owner = request.owner.as_deref().map(owner::parse).transpose()?;
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let mut contents = Contents::of(&point.manifest);
    let place = Place::prepare(target, request.replace, cx.clock.now())?;
    place.check_space(artefact.plain_bytes, contents.files.1)?;
    let data = open(point, artefact, &stop).await?;
    let snapshot = point
        .manifest
        .external
        .iter()
        .find(|e| point.manifest.attributes.get(REPOSITORY).is_some_and(|repository| *repository == e.repository));
    let snapshot = snapshot.map(|e| e.name.clone()).unwrap_or_default();
    let work = move || -> Result<Restored> {
        let done = extract::extract(
            data,
            &place.partial,
            Rules { owner, ..Rules::default() },
            &mut |member: &Member, _: Option<&_>| {
                contents.see(member);
                Ok(())
            },
        )?;
        let problems = contents.problems();
        if !problems.is_empty() {
            return Err(Error::new(ErrorKind::Corrupt, "the archive is not what was captured")
                .caused_by(problems.join("; "))
                .hint("restore another point; nothing at the target was changed."));
        }
        let (target, old_data) = place.settle()?;
        let mut notes = done.notes;
        notes.push(format!(
            "this is a repository with snapshot {snapshot}: register it as `readonly` and restore from it; \
             docs/elasticsearch.md has the commands"
        ));
        Ok(Restored { target: target.display().to_string(), counts: done.counts, old_data, notes })
    };
    let outcome = blocking(work).await;
    drop(guard);
    outcome
}
