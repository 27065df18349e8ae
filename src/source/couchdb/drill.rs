//! A drill without a node: the archive is read to its end, every shard is checked as CouchDB would read it, and all of
//! it is compared with what was captured.

use super::verify;
use crate::error::Result;
use crate::source::{Context, DrillLevel, DrillRequest, Drilled, PointReader, Seconds, Stopwatch};

/// See [`crate::source::Source::drill`].
pub(super) async fn drill(cx: &Context, point: &PointReader, request: &DrillRequest) -> Result<Drilled> {
    let mut watch = Stopwatch::start(&cx.clock);
    let found = verify::read(cx, point, &request.scratch).await?;
    let mut notes = vec!["no node was started: the shards were read as CouchDB reads them".to_owned()];
    match found.counts.get("shards_not_walked") {
        Some(n) if *n > 0 => {
            notes.push(format!("{n} shards are larger than the scratch disk: only digests were checked"))
        }
        _ => {}
    }
    let seconds = Seconds { compare: watch.lap(), ..Seconds::default() };
    Ok(Drilled { level: DrillLevel::Stream, seconds, counts: found.counts, differences: found.problems, notes })
}
