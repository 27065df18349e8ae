//! `backstay restore-scripts DIR`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::RestoreScriptsArgs;
use super::app::App;
use crate::error::{Error, Result};
use crate::kit;

/// Writes the stand-alone restore scripts, which every point has in its kit too.
pub async fn run(app: &App, args: &RestoreScriptsArgs) -> Result<()> {
    let failed = |e, path: &std::path::Path| Error::io(e, format!("could not write \"{}\"", path.display()));
    fs::create_dir_all(&args.dir).map_err(|e| failed(e, &args.dir))?;
    for (name, text) in kit::scripts() {
        let path = args.dir.join(name);
        fs::write(&path, text).map_err(|e| failed(e, &path))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).map_err(|e| failed(e, &path))?;
        app.say(path.display());
    }
    Ok(())
}
