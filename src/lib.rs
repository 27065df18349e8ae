//! Backstay: a backup agent that proves its restore points. See `docs/` for users and `src/*.rs` headers for the why.

pub mod artefact;
pub mod catalogue;
pub mod check;
pub mod cli;
pub mod config;
pub mod demo;
pub mod destination;
pub mod engine;
pub mod error;
pub mod exec;
pub mod freshness;
pub mod layout;
pub mod lock;
pub mod manifest;
pub mod monitor;
pub mod notify;
pub mod pipeline;
pub mod plan;
pub mod privilege;
pub mod prune;
pub mod restore;
pub mod retention;
pub mod run;
pub mod source;
pub mod units;
pub mod verify;
