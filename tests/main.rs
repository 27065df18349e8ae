//! All integration tests, one binary, so that the crate is linked once.
#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

mod alarms;
mod backup;
mod blobdir;
mod check;
mod cli;
mod common;
mod config_invalid;
mod configuration_doc;
mod layers;
mod mail;
mod pipeline;
mod postgres;
mod retention;
mod s3;
mod year;
