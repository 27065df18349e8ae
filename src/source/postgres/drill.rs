//! A drill: a point is restored into a throw-away cluster, made by this host's own programs.

use super::Postgres;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Manifest;
use crate::source::{Context, DrillRequest, Drilled, PointReader};

/// See [`crate::source::Source::drill_bytes`].
pub(super) fn bytes(point: &Manifest) -> u64 {
    point.plain_bytes()
}

/// See [`crate::source::Source::drill`].
pub(super) async fn drill(_: &Postgres, _: &Context, _: &PointReader, _: &DrillRequest) -> Result<Drilled> {
    Err(Error::new(ErrorKind::Config, "this version cannot drill PostgreSQL"))
}
