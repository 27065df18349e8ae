//! Pipeline.
pub mod archive;
pub mod extract;
