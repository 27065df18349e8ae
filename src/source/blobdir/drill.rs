//! A drill: the archive is extracted into a scratch directory, which is then captured again, entry by entry, and
//! compared with the inventory. Or streamed: read to its end and compared without storing anything.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use super::Hold;
use super::capture;
use super::restore::{compare_counts, open};
use crate::config::BlobdirConfig;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Manifest;
use crate::pipeline::archive::Stopped;
use crate::pipeline::bridge::blocking;
use crate::pipeline::extract::{self, Rules};
use crate::source::{Context, DrillLevel, DrillRequest, Drilled, PointReader, Seconds, Stopwatch};

/// Part of a block that a file wastes on average.
const SLACK_BYTES: u64 = 2048;

/// See [`crate::source::Source::drill_bytes`].
pub(super) fn bytes(point: &Manifest, request: &DrillRequest) -> u64 {
    if request.stream {
        return 0;
    }
    let count = |key: &str| point.counts.get(key).copied().unwrap_or(0);
    count("bytes") + (count("files") + count("directories")) * SLACK_BYTES
}

/// See [`crate::source::Source::drill`].
pub(super) async fn drill(
    config: &BlobdirConfig,
    cx: &Context,
    point: &PointReader,
    request: &DrillRequest,
) -> Result<Drilled> {
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let outcome = if request.stream {
        streamed(cx, point, stop).await?
    } else {
        extracted(config, cx, point, request.scratch.join("files"), stop).await?
    };
    drop(guard);
    Ok(outcome)
}

async fn streamed(cx: &Context, point: &PointReader, stop: CancellationToken) -> Result<Drilled> {
    let mut watch = Stopwatch::start(&cx.clock);
    let counts = point.manifest.counts.clone();
    let (mut expected, data) = open(cx, point, &stop).await?;
    let read = blocking(move || {
        let done = extract::scan(data, &mut |member, digest| expected.member(member, digest))?;
        let differences = [expected.finish()?, compare_counts(&counts, &done.counts)].concat();
        Ok((done, differences))
    });
    let (done, differences) = read.await?;
    let seconds = Seconds { compare: watch.lap(), ..Seconds::default() };
    Ok(Drilled { level: DrillLevel::Stream, seconds, counts: done.counts, differences, notes: Vec::new() })
}

/// The archive is compared while it is extracted, and what came of it afterwards. Nothing in the scratch directory
/// is set-user-id or set-group-id: of these bits, the archive is the proof.
async fn extracted(
    config: &BlobdirConfig,
    cx: &Context,
    point: &PointReader,
    files: PathBuf,
    stop: CancellationToken,
) -> Result<Drilled> {
    let mut watch = Stopwatch::start(&cx.clock);
    let counts = point.manifest.counts.clone();
    let (mut expected, data) = open(cx, point, &stop).await?;
    let mut seconds = Seconds::default();
    let failed = |e| Error::io(e, format!("could not make {}", files.display()));
    fs::DirBuilder::new().mode(0o700).create(&files).map_err(failed)?;
    let into = files.clone();
    let restore = blocking(move || {
        let rules = Rules { no_setid: true, ..Rules::default() };
        let done = extract::extract(data, &into, rules, &mut |member, digest| expected.member(member, digest))?;
        Ok((done, expected.again()?))
    });
    let (done, (in_the_archive, mut expected)) = restore.await?;
    seconds.restore = watch.lap();
    let job = capture::Job {
        root: files,
        config: BlobdirConfig { exclude: Vec::new(), cross_file_systems: true, ..config.clone() },
        hold: Hold::default(),
        spool: cx.workdir.join("found-inventory.jsonl"),
        stop,
        previous_files: 0,
    };
    let owners = nix::unistd::Uid::effective().is_root();
    let mut notes = done.notes;
    if !owners {
        notes.push("owners were not compared: only root can restore them".into());
    }
    let compare = blocking(move || {
        let found = capture::run(&job, io::sink()).map_err(|e| match e {
            Stopped::Error(e) => e,
            Stopped::Closed => Error::new(ErrorKind::Internal, "nobody took the archive of a drill"),
        })?;
        let lines = File::open(&job.spool).map_err(|e| Error::io(e, "could not read the inventory's scratch file"))?;
        expected.with(lines, owners)?;
        let found = found.into_counts();
        let restored = [expected.finish()?, compare_counts(&counts, &found)].concat();
        Ok((found, restored))
    });
    let (counts, restored) = compare.await?;
    seconds.compare = watch.lap();
    // What is wrong in the archive is wrong in what came of it too, and is told once.
    let differences = if in_the_archive.is_empty() { restored } else { in_the_archive };
    Ok(Drilled { level: DrillLevel::Files, seconds, counts, differences, notes })
}
