//! `backstay demo`.

use std::path::Path;

use serde_json::json;

use super::DemoArgs;
use super::app::App;
use crate::config::Config;
use crate::demo;
use crate::error::Result;

/// Runs the demo in a directory of its own.
pub async fn run(app: &App, args: &DemoArgs) -> Result<()> {
    let dir = args.dir.as_deref().unwrap_or(Path::new("backstay-demo"));
    let engine = app.engine(Config::default())?;
    let said = app.clone();
    demo::run(engine, dir, &move |line| {
        said.say(line);
        said.emit(&json!({"message_type": "demo", "line": line.trim_start()}));
    })
    .await
}
