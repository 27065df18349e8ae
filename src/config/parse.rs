//! Text to Config.

use std::path::Path;

use super::Config;
use crate::error::{Error, ErrorKind, Result};

/// One text.
pub fn from_text(text: &str, file_name: &str) -> Result<Config> {
    serde_saphyr::from_str(text).map_err(|e| Error::new(ErrorKind::Config, format!("{file_name}: {e}")))
}
/// A file and `conf.d`.
pub fn load(path: &Path) -> Result<Config> {
    load_one(path)
}
/// A file alone.
pub fn load_one(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(e, "could not read"))?;
    from_text(&text, &path.display().to_string())
}
