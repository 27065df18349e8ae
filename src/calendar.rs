//! Calendar periods: hours, days, weeks, months and years of the configured time zone.
//!
//! Hours are told apart by the UTC instant at which they began, so the hour that the clock shows twice in autumn is
//! two periods and the one that it skips in spring is none; days, weeks, months and years are dates. A week belongs to
//! the date of its first day and is not cut at the turn of the year.

use std::fmt;

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveDateTime, NaiveTime, Timelike as _, Utc, Weekday};
use chrono_tz::Tz;

use crate::config::WeekStart;
use crate::error::{Error, ErrorKind, Result};
use crate::units::Cadence;

/// In which time zone periods begin, and on which day weeks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    /// Time zone of hours, days, weeks, months and years.
    pub tz: Tz,
    /// First day of the week.
    pub week_start: WeekStart,
}

/// One calendar hour, day, week, month or year. Periods of one cadence are ordered by time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period {
    cadence: Cadence,
    /// Its first moment: UTC for hours and manual points, the wall clock of the time zone for the others.
    start: NaiveDateTime,
}

impl Calendar {
    /// A calendar in the named time zone, such as `Europe/Berlin`.
    ///
    /// # Errors
    /// `Config` for a name that is not in the IANA time zone database.
    pub fn new(timezone: &str, week_start: WeekStart) -> Result<Self> {
        let tz = timezone.parse().map_err(|_| {
            Error::new(ErrorKind::Config, format!("no such time zone: {timezone:?}"))
                .hint("use a name of the IANA database, such as UTC or Europe/Berlin.")
        })?;
        Ok(Self { tz, week_start })
    }

    /// The period of `cadence` in which `at` lies. Each manual point is a period of its own.
    pub fn period(&self, cadence: Cadence, at: DateTime<Utc>) -> Period {
        let local = at.with_timezone(&self.tz);
        let date = local.date_naive();
        let first = match cadence {
            Cadence::Manual => return Period { cadence, start: at.naive_utc() },
            Cadence::Hourly => {
                let into = i64::from(local.minute() * 60 + local.second());
                let start = DateTime::from_timestamp(at.timestamp() - into, 0).unwrap_or(at);
                return Period { cadence, start: start.naive_utc() };
            }
            Cadence::Daily => Some(date),
            Cadence::Weekly => date.week(self.first_weekday()).checked_first_day(),
            Cadence::Monthly => date.with_day(1),
            Cadence::Yearly => NaiveDate::from_ymd_opt(date.year(), 1, 1),
        };
        Period { cadence, start: first.unwrap_or(date).and_time(NaiveTime::MIN) }
    }

    fn first_weekday(&self) -> Weekday {
        match self.week_start {
            WeekStart::Sunday => Weekday::Sun,
            WeekStart::Monday => Weekday::Mon,
        }
    }
}

impl Period {
    /// For which cadence it is.
    pub fn cadence(&self) -> Cadence {
        self.cadence
    }
}

/// `2026-11-20 03:00Z`, `2026-11-20`, `week of 2026-11-15`, `2026-11`, `2026`.
impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match self.cadence {
            Cadence::Manual => "%Y-%m-%d %H:%M:%SZ",
            Cadence::Hourly => "%Y-%m-%d %H:%MZ",
            Cadence::Daily => "%Y-%m-%d",
            Cadence::Weekly => "week of %Y-%m-%d",
            Cadence::Monthly => "%Y-%m",
            Cadence::Yearly => "%Y",
        };
        write!(f, "{}", self.start.format(form))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(s: &str) -> DateTime<Utc> {
        s.parse().unwrap()
    }
    fn calendar(tz: &str, week_start: WeekStart) -> Calendar {
        Calendar::new(tz, week_start).unwrap()
    }

    #[test]
    fn weeks_begin_on_the_configured_day_and_are_not_cut_at_new_year() {
        let sunday = calendar("UTC", WeekStart::Sunday);
        let monday = calendar("UTC", WeekStart::Monday);
        let of = |c: &Calendar, s| c.period(Cadence::Weekly, utc(s)).to_string();
        assert_eq!(of(&sunday, "2026-12-31T10:00:00Z"), "week of 2026-12-27");
        assert_eq!(of(&sunday, "2027-01-02T23:59:59Z"), "week of 2026-12-27");
        assert_eq!(of(&sunday, "2027-01-03T00:00:00Z"), "week of 2027-01-03");
        assert_eq!(of(&monday, "2027-01-03T23:59:59Z"), "week of 2026-12-28");
        assert_eq!(of(&monday, "2027-01-04T00:00:00Z"), "week of 2027-01-04");
    }

    #[test]
    fn hours_that_the_clock_shows_twice_are_two_periods() {
        let berlin = calendar("Europe/Berlin", WeekStart::Sunday);
        let hour = |s| berlin.period(Cadence::Hourly, utc(s));
        assert_ne!(hour("2026-10-25T00:30:00Z"), hour("2026-10-25T01:30:00Z"));
        assert!(hour("2026-10-25T00:30:00Z") < hour("2026-10-25T01:30:00Z"));
        // Half an hour is repeated on Lord Howe Island: 01:30 to 02:00.
        let howe = calendar("Australia/Lord_Howe", WeekStart::Sunday);
        let hour = |s| howe.period(Cadence::Hourly, utc(s)).to_string();
        assert_eq!(hour("2026-04-04T14:59:00Z"), "2026-04-04 14:00Z");
        assert_eq!(hour("2026-04-04T15:01:00Z"), "2026-04-04 14:30Z");
        assert_eq!(hour("2026-04-04T15:31:00Z"), "2026-04-04 15:30Z");
    }

    #[test]
    fn days_are_those_of_the_time_zone() {
        let berlin = calendar("Europe/Berlin", WeekStart::Sunday);
        assert_eq!(berlin.period(Cadence::Daily, utc("2026-11-20T23:30:00Z")).to_string(), "2026-11-21");
        assert_eq!(berlin.period(Cadence::Monthly, utc("2026-11-30T23:30:00Z")).to_string(), "2026-12");
        assert_eq!(berlin.period(Cadence::Yearly, utc("2026-12-31T23:30:00Z")).to_string(), "2027");
        assert!(Calendar::new("Europe/Berlln", WeekStart::Sunday).is_err());
    }
}
