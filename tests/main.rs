//! All integration tests, one binary, so that the crate is linked once.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

mod backup;
mod alarms;
mod blobdir;
mod check;
mod cli;
mod common;
mod config_invalid;
mod layers;
mod pipeline;
mod mail;
mod postgres;
mod retention;
mod s3;
mod year;
