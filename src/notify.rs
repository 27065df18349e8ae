//! Telling people: which mails a change of state asks for ([`state`]), and how they leave ([`mail`]).
//!
//! An alarm counts as told only when the next hop has taken the mail: what could not be sent is tried again by the
//! next check, because the state says so, not an event that is over.

pub mod mail;
pub mod state;

use chrono::{DateTime, Utc};

use crate::error::{Error, Result};
use mail::Mailer;
use state::{AlarmState, Due};

/// More mails than this at once become one.
pub const MOST_MAILS: usize = 3;

/// Sends what is due and records in `alarms` what was taken. One that fails does not stop the others.
///
/// # Errors
/// The first failure, when all have been tried.
pub async fn deliver(
    mailer: &Mailer,
    to: &[String],
    due: &[Due],
    alarms: &mut AlarmState,
    now: DateTime<Utc>,
) -> Result<()> {
    if due.len() > MOST_MAILS {
        mailer.send(to, &state::digest(due), now).await?;
        due.iter().for_each(|item| alarms.mark_mailed(&item.key, now));
        return Ok(());
    }
    let mut failures: Vec<Error> = Vec::new();
    for item in due {
        match mailer.send(to, &item.letter, now).await {
            Ok(()) => alarms.mark_mailed(&item.key, now),
            Err(e) => failures.push(e),
        }
    }
    let count = failures.len();
    match failures.into_iter().next() {
        None => Ok(()),
        Some(first) => Err(first.within(format!("{count} of {} mails could not be sent", due.len()))),
    }
}
