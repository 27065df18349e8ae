//! All integration tests, one binary, so that the crate is linked once.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test stops at the first surprise")]

mod blobdir;
mod check;
mod cli;
mod common;
mod config_invalid;
mod layers;
mod postgres;
mod retention;
mod s3;
mod year;
