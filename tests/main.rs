//! All integration tests, one binary, so that the crate is linked once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "a test stops at the first surprise, and nothing here is a public interface"
)]

mod alarms;
mod backup;
mod blobdir;
mod check;
mod choices;
mod cli;
mod common;
mod completeness;
mod config_invalid;
mod configuration_doc;
mod couchdb;
mod drill;
mod elasticsearch;
mod faults;
mod fleet;
mod format;
mod formats;
mod hostile;
mod kill;
mod layers;
mod legacy;
mod list;
mod mail;
mod pipeline;
mod postgres;
mod prune;
mod readme;
mod recovery;
mod report;
mod retention;
mod s3;
mod scripts;
mod secrets;
mod year;
