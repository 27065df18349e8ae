//! Destinations: one contract for all, and an object store that fails in every way it can.

mod contract;
mod credentials;
mod engine;
mod faults;
mod local;
mod locked;
mod ranges;
mod real;
