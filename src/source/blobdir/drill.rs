//! A drill: the archive is extracted into a scratch directory, which is then captured again, entry by entry, and
//! compared with the inventory. Or streamed: read to its end and compared without storing anything.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;

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
    let mut watch = Stopwatch::start(&cx.clock);
    let stop = cx.cancel.child_token();
    let guard = stop.clone().drop_guard();
    let counts = point.manifest.counts.clone();
    let (mut expected, data) = open(cx, point, &stop).await?;
    let mut seconds = Seconds::default();
    let outcome = if request.stream {
        let read = blocking(move || {
            let done = extract::scan(data, &mut |member, digest| expected.member(member, digest))?;
            let differences = [expected.finish()?, compare_counts(&counts, &done.counts)].concat();
            Ok((done, differences))
        });
        let (done, differences) = read.await?;
        seconds.compare = watch.lap();
        Drilled { level: DrillLevel::Stream, seconds, counts: done.counts, differences, notes: Vec::new() }
    } else {
        let files = request.scratch.join("files");
        let failed = |e| Error::io(e, format!("could not make {}", files.display()));
        fs::DirBuilder::new().mode(0o700).create(&files).map_err(failed)?;
        let into = files.clone();
        let done = blocking(move || extract::extract(data, &into, Rules::default(), &mut |_, _| Ok(()))).await?;
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
            let lines =
                File::open(&job.spool).map_err(|e| Error::io(e, "could not read the inventory's scratch file"))?;
            expected.with(lines, owners)?;
            let found = found.into_counts();
            let differences = [expected.finish()?, compare_counts(&counts, &found)].concat();
            Ok((found, differences))
        });
        let (counts, differences) = compare.await?;
        seconds.compare = watch.lap();
        Drilled { level: DrillLevel::Files, seconds, counts, differences, notes }
    };
    drop(guard);
    Ok(outcome)
}
