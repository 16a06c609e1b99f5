//! Values with units, as the node's own configuration writes them: a whole number and a unit in one word.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::time::Duration;

use serde::Deserializer;
use serde::de::{Error, Unexpected, Visitor};

use super::{Config, Json};
use crate::body::Limit;

/// The longest duration: ten years, as in the node's configuration.
const MAX_DURATION: u64 = 10 * 365 * 86_400_000;

/// The largest size: one pebibyte, as in the node's configuration.
const MAX_SIZE: u64 = 1 << 50;

/// A number of bytes, written `64KiB`, `16MiB`, `1GiB` (powers of 1024), `64KB`, `16MB`, `1GB` (powers of 1000) or `512B`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }

    /// The number of bytes as a length in memory; where addresses are smaller, the largest length there is.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl Limit for ByteSize {
    fn bytes(self) -> usize {
        self.as_usize()
    }
}

impl Display for ByteSize {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(formatter, "{}{unit}", self.0 >> shift);
            }
        }
        write!(formatter, "{}B", self.0)
    }
}

/// The text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a size: a whole number and one of B, KiB, MiB, GiB, KB, MB, GB, as in 64KiB")]
pub struct NotASize;

impl FromStr for ByteSize {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Self, NotASize> {
        let (number, unit) = number_and_unit(text).ok_or(NotASize)?;
        let unit = match unit {
            "B" => 1,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(NotASize),
        };
        number.checked_mul(unit).filter(|bytes| *bytes <= MAX_SIZE).map(Self).ok_or(NotASize)
    }
}

impl Config for ByteSize {
    const SCHEMA: Json = Json::Object(&[
        ("type", Json::Text("string")),
        ("format", Json::Text("selvedge-byte-size")),
        ("pattern", Json::Text("^[0-9]+(B|KB|MB|GB|KiB|MiB|GiB)$")),
    ]);

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text {
            parse: |text| text.parse().ok(),
            expected: "a size: a whole number and one of B, KiB, MiB, GiB, KB, MB, GB, as in 64KiB",
        })
    }
}

impl Config for Duration {
    const SCHEMA: Json = Json::Object(&[
        ("type", Json::Text("string")),
        ("format", Json::Text("selvedge-duration")),
        ("pattern", Json::Text("^[0-9]+(ms|s|m|h|d)$")),
    ]);

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_str(Text {
            parse: duration,
            expected: "a duration: a whole number and one of ms, s, m, h, d, as in 250ms; at most ten years",
        })
    }
}

fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let unit = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(unit).filter(|millis| *millis <= MAX_DURATION).map(Duration::from_millis)
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit))
}

/// Reads a text that has to be of some form.
pub(super) struct Text<T> {
    pub(super) parse: fn(&str) -> Option<T>,
    pub(super) expected: &'static str,
}

impl<T> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.expected)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_a_number_and_a_unit() {
        for (text, bytes) in
            [("0B", 0), ("512B", 512), ("64KiB", 65_536), ("1MiB", 1 << 20), ("2GiB", 2 << 30), ("3MB", 3_000_000)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        assert_eq!([ByteSize(65_536), ByteSize(1000)].map(|size| size.to_string()), ["64KiB", "1000B"]);
        for text in ["", "64", "KiB", "64 KiB", "-1B", "+1B", "1.5KiB", "64kib", "1048577GiB", "99999999999999999999B"]
        {
            assert_eq!(text.parse::<ByteSize>(), Err(NotASize), "{text}");
        }
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, millis) in [("0s", 0), ("250ms", 250), ("5s", 5_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("3650d"), Some(Duration::from_millis(MAX_DURATION)));
        for text in ["", "5", "s", "5 s", "-5s", "1.5s", "5min", "3651d", "99999999999999999999s"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
