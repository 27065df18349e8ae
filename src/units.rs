//! Sizes, durations, names, cadences and the clock: the small words all layers share.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Where "now" comes from. Only `main.rs` and the tests make one.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> DateTime<Utc> + Send + Sync>);

impl Clock {
    /// A clock that asks `f`.
    pub fn new(f: impl Fn() -> DateTime<Utc> + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }
    /// The present moment, UTC.
    pub fn now(&self) -> DateTime<Utc> {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

/// How often: a calendar period, or `manual` for a point asked for by hand. Ordered from short to long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Cadence {
    /// Asked for by hand; never evicted by itself.
    Manual,
    /// Each clock hour.
    Hourly,
    /// Each calendar day.
    Daily,
    /// Each calendar week.
    Weekly,
    /// Each calendar month.
    Monthly,
    /// Each calendar year.
    Yearly,
}

impl Cadence {
    /// The five calendar cadences, shortest first.
    pub const CALENDAR: [Self; 5] = [Self::Hourly, Self::Daily, Self::Weekly, Self::Monthly, Self::Yearly];
    /// The word in ids, keys and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Weekly => "weekly",
            Self::Monthly => "monthly",
            Self::Yearly => "yearly",
        }
    }
}

impl fmt::Display for Cadence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Cadence {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        [Self::Manual].iter().chain(&Self::CALENDAR).find(|c| c.as_str() == s).copied().ok_or_else(|| {
            Error::new(ErrorKind::Usage, format!("no such cadence: {s:?}"))
                .hint("use hourly, daily, weekly, monthly, yearly or manual.")
        })
    }
}

/// Whether `s` may name a service, an environment or a host: `[a-z0-9-]`, 1 to 63 characters.
pub fn is_name(s: &str) -> bool {
    (1..=63).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// A length of time as written in the configuration: `90s`, `15m`, `50h`, `8d`, `2w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

impl Span {
    /// From whole seconds.
    pub const fn from_secs(s: u64) -> Self {
        Self(Duration::from_secs(s))
    }
    /// From whole hours.
    pub const fn from_hours(h: u64) -> Self {
        Self(Duration::from_secs(h * 3600))
    }
    /// In whole seconds.
    pub fn as_secs(self) -> u64 {
        self.0.as_secs()
    }
}

impl FromStr for Span {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let bad = || {
            Error::new(ErrorKind::Config, format!("not a duration: {s:?}"))
                .hint("write a number and a unit: 90s, 15m, 50h, 8d or 2w.")
        };
        let at = s.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
        let n: u64 = s[..at].parse().map_err(|_| bad())?;
        let unit = match &s[at..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return Err(bad()),
        };
        n.checked_mul(unit).map(Self::from_secs).ok_or_else(bad)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.as_secs();
        match s {
            0 => write!(f, "0s"),
            s if s % (7 * 86_400) == 0 => write!(f, "{}w", s / (7 * 86_400)),
            s if s % 86_400 == 0 => write!(f, "{}d", s / 86_400),
            s if s % 3600 == 0 => write!(f, "{}h", s / 3600),
            s if s % 60 == 0 => write!(f, "{}m", s / 60),
            s => write!(f, "{s}s"),
        }
    }
}

/// A number of bytes as written in the configuration: `512KiB`, `16MiB`, `10GB`, or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        let bad = || {
            Error::new(ErrorKind::Config, format!("not a size: {s:?}"))
                .hint("write a number and a unit: 512KiB, 16MiB, 10GiB, or 10GB for powers of ten.")
        };
        let at = s.find(|c: char| !c.is_ascii_digit()).unwrap_or(s.len());
        let n: u64 = s[..at].parse().map_err(|_| bad())?;
        let unit: u64 = match s[at..].trim_start() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" | "KB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(bad()),
        };
        n.checked_mul(unit).map(Self).ok_or_else(bad)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (size, unit) in [(1u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= size {
                #[allow(clippy::cast_precision_loss, reason = "one decimal is shown")]
                return write!(f, "{:.1} {unit}", self.0 as f64 / size as f64);
            }
        }
        write!(f, "{} B", self.0)
    }
}

/// A length of time for people: `35 s`, `12 min`, `5 h 10 min`, `3 d 4 h`.
pub fn human_age(seconds: i64) -> String {
    let s = seconds.unsigned_abs();
    let text = match s {
        0..=119 => format!("{s} s"),
        120..=7199 => format!("{} min", s / 60),
        7200..=172_799 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    };
    if seconds < 0 { format!("-{text}") } else { text }
}

macro_rules! text_form {
    ($type:ident, $example:literal) => {
        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
                let text = String::deserialize(d)?;
                text.parse().map_err(|e: Error| serde::de::Error::custom(format!("{e}; {}", e.hint.as_deref().unwrap_or_default())))
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({"type": "string", "examples": [$example]})
            }
        }
    };
}
text_form!(Span, "6h");

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, s: S) -> std::result::Result<S::Ok, S::Error> {
        let (n, unit) = match self.0 {
            n if n != 0 && n % (1 << 30) == 0 => (n >> 30, "GiB"),
            n if n != 0 && n % (1 << 20) == 0 => (n >> 20, "MiB"),
            n if n != 0 && n % (1 << 10) == 0 => (n >> 10, "KiB"),
            n => (n, "B"),
        };
        s.collect_str(&format_args!("{n}{unit}"))
    }
}
impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> std::result::Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse()
            .map_err(|e: Error| serde::de::Error::custom(format!("{e}; {}", e.hint.as_deref().unwrap_or_default())))
    }
}
impl JsonSchema for Bytes {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Bytes".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "examples": ["16MiB"]})
    }
}
