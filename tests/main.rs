//! All integration tests, one binary, so that the crate is linked once.

mod backup;
mod blobdir;
mod check;
mod cli;
mod common;
mod config_invalid;
mod layers;
mod pipeline;
mod postgres;
mod retention;
mod s3;
mod year;
