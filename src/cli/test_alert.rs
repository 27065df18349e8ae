//! `backstay test-alert`: sends a real mail the way an alarm would go.

use serde_json::json;

use super::TestAlertArgs;
use super::app::App;
use super::check_s3::mailer;
use crate::error::{Error, ErrorKind, Result};
use crate::notify::state::Letter;

/// Sends one mail to everybody in `check.email`.
pub async fn run(app: &App, _: &TestAlertArgs) -> Result<()> {
    let engine = app.engine(app.config()?)?;
    let to = &engine.config.check.email;
    if to.is_empty() {
        return Err(Error::new(ErrorKind::Config, "nobody would be told: `check.email` is empty")
            .hint("add `check: {email: [ops@example.com]}`."));
    }
    let host = engine.host()?;
    let now = engine.clock.now();
    let letter = Letter {
        subject: format!("[backstay] TEST {host}: this is how an alarm would reach you"),
        body: format!(
            "This mail was asked for with `backstay test-alert` on {host} at {}.\n\n\
             If you read it, alarms of this host reach you: restore points that are missing, too old or damaged,\n\
             and checks that could not be made. If nobody reads this mailbox at night, change `check.email`.\n",
            now.format("%Y-%m-%d %H:%M:%S UTC")
        ),
    };
    mailer(&engine)?.send(to, &letter, now).await?;
    app.emit(&json!({"message_type": "test_alert", "to": to}));
    app.say(format!("the mail server took a test mail for {}: look whether it arrives", to.join(", ")));
    Ok(())
}
