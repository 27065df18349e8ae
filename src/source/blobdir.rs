//! Blob directory.
use crate::config::BlobdirConfig;
/// d
pub const DRIVER: super::Driver = super::Driver { kind: "blobdir", summary: "a Blob directory server, 13 or newer" };
/// d
#[derive(Debug)]
pub struct Blobdir {
    config: BlobdirConfig,
}
impl Blobdir {
    /// d
    pub fn new(config: BlobdirConfig) -> Self {
        Self { config }
    }
}
