//! The `couchdb` source: data directories of real nodes, out and back, and everything that can be wrong with them.

#![allow(clippy::disallowed_methods, reason = "the tests run tar and zstd")]

mod capture;
pub(crate) mod data;
pub(crate) mod drill;
mod fake;
mod faults;
mod maps;
pub(crate) mod node;
mod real;
mod real_bucket;
mod real_drill;
mod restore;
