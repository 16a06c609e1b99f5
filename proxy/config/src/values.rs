//! Values with units: durations, sizes, rates, percentages.
//!
//! One rule for all: a number and a unit, in one word, without a space. A number alone is a fault, because nobody can
//! tell what it counts.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// The longest duration the grammar takes: ten years. It keeps `now + duration` from overflowing anywhere.
pub(crate) const MAX_DURATION: Duration = Duration::from_hours(10 * 365 * 24);

/// Why a text is not the value it should be.
///
/// The text at fault is not part of the message: the caller knows whether it may be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Nothing was written, or only a unit.
    #[error("has no number")]
    NoNumber,
    /// A number without its unit.
    #[error("has no unit")]
    NoUnit,
    /// A unit that this kind of value does not have.
    #[error("has an unknown unit")]
    UnknownUnit,
    /// The number does not fit, or is above the largest value of its kind.
    #[error("is too large")]
    TooLarge,
}

/// Reads a duration: a whole number and one of `ms`, `s`, `m`, `h`, `d`.
///
/// # Errors
/// By cause: no number, no unit, a unit that is none of the five, or more than ten years.
pub fn parse_duration(text: &str) -> Result<Duration, ValueError> {
    let (number, unit) = number_and_unit(text)?;
    let millis_per_unit: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(ValueError::UnknownUnit),
    };
    let duration = Duration::from_millis(number.checked_mul(millis_per_unit).ok_or(ValueError::TooLarge)?);
    if duration > MAX_DURATION { Err(ValueError::TooLarge) } else { Ok(duration) }
}

/// A number of bytes, written `64KiB`, `16MiB`, `1GiB` (powers of 1024), `64KB`, `16MB`, `1GB` (powers of 1000) or `512B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many binary kilobytes.
    #[must_use]
    pub const fn kib(count: u64) -> Self {
        Self(count.saturating_mul(1024))
    }

    /// So many binary megabytes.
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1024 * 1024))
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes as a length in memory; on a platform with smaller addresses, the largest length there is.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (number, unit) = number_and_unit(text)?;
        let bytes_per_unit: u64 = match unit {
            "B" => 1,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(ValueError::UnknownUnit),
        };
        let bytes = number.checked_mul(bytes_per_unit).ok_or(ValueError::TooLarge)?;
        // One pebibyte: beyond any machine, and far from overflow when sizes are added.
        if bytes > 1 << 50 { Err(ValueError::TooLarge) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// So many bytes in a second, written `240B/s`, `64KiB/s`, `1MB/s`: a size and `/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRate(pub u64);

impl FromStr for ByteRate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.strip_suffix("/s") {
            Some(size) => Ok(Self(size.parse::<ByteSize>()?.bytes())),
            None if number_and_unit(text)?.1.contains('/') => Err(ValueError::UnknownUnit),
            None => Err(ValueError::NoUnit),
        }
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

/// So many things per unit of time, written `100/min`, `5/s`, `1000/h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    /// How many; at least 1.
    pub count: u64,
    /// In which time: a second, a minute or an hour.
    pub per: Duration,
}

impl FromStr for Rate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (count, unit) = number_and_unit(text)?;
        let per = match unit {
            "/s" => Duration::from_secs(1),
            "/min" => Duration::from_mins(1),
            "/h" => Duration::from_hours(1),
            _ => return Err(ValueError::UnknownUnit),
        };
        if count == 0 { Err(ValueError::NoNumber) } else { Ok(Self { count, per }) }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            1 => "s",
            60 => "min",
            _ => "h",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

/// A share between `0%` and `100%`, kept in hundredths of a percent: written `10%` or `0.25%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent(u16);

impl Percent {
    /// One of two.
    pub const HALF: Self = Self(5_000);

    /// All.
    pub const ALL: Self = Self(10_000);

    /// None.
    pub const NONE: Self = Self(0);

    /// One of five.
    pub const FIFTH: Self = Self(2_000);

    /// One of twenty.
    pub const TWENTIETH: Self = Self(500);

    /// The share in hundredths of a percent, 0 to 10000.
    #[must_use]
    pub const fn basis_points(self) -> u16 {
        self.0
    }

    /// The share as a fraction of one.
    #[must_use]
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl FromStr for Percent {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let Some(number) = text.strip_suffix('%') else {
            let looks_numeric = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
            return Err(if looks_numeric { ValueError::NoUnit } else { ValueError::NoNumber });
        };
        let (whole, hundredths) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if !digits(whole) || !digits(hundredths) || hundredths.len() > 2 {
            return Err(ValueError::NoNumber);
        }
        let whole: u16 = whole.parse().map_err(|_| ValueError::TooLarge)?;
        let scale = if hundredths.len() == 1 { 10 } else { 1 };
        let hundredths: u16 = hundredths.parse::<u16>().map_err(|_| ValueError::TooLarge)? * scale;
        let points = whole.checked_mul(100).and_then(|points| points.checked_add(hundredths));
        points.filter(|points| *points <= 10_000).map(Self).ok_or(ValueError::TooLarge)
    }
}

/// Splits `16MiB` into 16 and `MiB`.
fn number_and_unit(text: &str) -> Result<(u64, &str), ValueError> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if number.is_empty() {
        return Err(ValueError::NoNumber);
    }
    if unit.is_empty() {
        return Err(ValueError::NoUnit);
    }
    Ok((number.parse().map_err(|_| ValueError::TooLarge)?, unit))
}

/// The shape of a duration in the schema; the type itself is [`Duration`].
pub(crate) struct DurationText;

macro_rules! text_with_unit {
    ($type:ty, $name:literal, $pattern:literal, $examples:expr) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "pattern": $pattern, "examples": $examples })
            }
        }
    };
}

// The second half of each pattern lets `${VAR}` through, which the loader replaces before it reads the value.
text_with_unit!(DurationText, "Duration", r"^[0-9]+(ms|s|m|h|d)$|\$\{", ["250ms", "30s", "5m", "1h", "7d"]);
text_with_unit!(ByteSize, "ByteSize", r"^[0-9]+(B|KB|MB|GB|KiB|MiB|GiB)$|\$\{", ["64KiB", "16MiB", "1GiB"]);
text_with_unit!(ByteRate, "ByteRate", r"^[0-9]+(B|KB|MB|GB|KiB|MiB|GiB)/s$|\$\{", ["240B/s", "64KiB/s", "1MB/s"]);
text_with_unit!(Rate, "Rate", r"^[0-9]+/(s|min|h)$|\$\{", ["100/min", "5/s", "1000/h"]);
text_with_unit!(Percent, "Percent", r"^[0-9]+(\.[0-9]{1,2})?%$|\$\{", ["10%", "0.25%"]);
