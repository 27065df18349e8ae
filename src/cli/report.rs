//! `backstay report`: a page for people, or the same as JSON.

use serde_json::{Value, json};

use super::ReportArgs;
use super::app::App;
use super::backup::selected;
use crate::engine::write_private;
use crate::error::{Error, Result};
use crate::report::{self, page};

/// Makes the report.
pub async fn run(app: &App, args: &ReportArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?;
    let report = report::collect(&engine, &selected(&engine, &args.services)?).await?;
    if app.json {
        if let Ok(Value::Object(mut fields)) = serde_json::to_value(&report) {
            fields.insert("message_type".into(), json!("report"));
            app.emit(&Value::Object(fields));
        }
        return Ok(());
    }
    let html = page::html(&report)?;
    match &args.output {
        Some(path) => {
            write_private(path, &html).map_err(|e| Error::io(e, format!("could not write {}", path.display())))?;
            app.say(path.display());
        }
        None => app.out.text(html),
    }
    Ok(())
}
