//! Parameters of a query: plain numbers and words, so nothing is percent-decoded. Unknown ones are ignored: they make cache keys differ.

use std::ops::RangeInclusive;

use crate::answer::Refusal;

/// The query of a request, without the question mark.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a>(pub(crate) &'a str);

impl<'a> Query<'a> {
    /// The first parameter of this name; empty when it stands without a value.
    pub(crate) fn get(self, name: &str) -> Option<&'a str> {
        self.0
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .find(|(key, _)| *key == name)
            .map(|(_, value)| value)
    }

    pub(crate) fn number(self, name: &str, default: u64, bounds: RangeInclusive<u64>) -> Result<u64, Refusal> {
        let Some(text) = self.get(name) else { return Ok(default) };
        let refusal = || {
            let (low, high) = (bounds.start(), bounds.end());
            Refusal::bad_request(format!("The parameter {name} has to be a number from {low} to {high}."))
        };
        text.parse().ok().filter(|number| bounds.contains(number)).ok_or_else(refusal)
    }

    /// A number of bytes: digits and, if any, `B`, `KiB`, `MiB` or `GiB`.
    pub(crate) fn size(self, name: &str, default: u64, most: u64) -> Result<u64, Refusal> {
        let Some(text) = self.get(name) else { return Ok(default) };
        let (digits, unit) =
            text.split_at(text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len()));
        let factor: Option<u64> = match unit {
            "" | "B" => Some(1),
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            _ => None,
        };
        let size = factor.and_then(|factor| digits.parse::<u64>().ok()?.checked_mul(factor));
        size.filter(|size| *size <= most).ok_or_else(|| {
            Refusal::bad_request(format!(
                "The parameter {name} has to be a size such as 512KiB or 10MiB, at most {most} bytes."
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_and_a_bound() {
        for (text, expected) in [
            ("0", Some(0)),
            ("1024", Some(1024)),
            ("7B", Some(7)),
            ("512KiB", Some(512 << 10)),
            ("10MiB", Some(10 << 20)),
            ("1GiB", Some(1 << 30)),
            ("2GiB", None),
            ("1073741825", None),
            ("18446744073709551615GiB", None),
            ("99999999999999999999", None),
            ("", None),
            ("MiB", None),
            ("1MB", None),
            ("-1", None),
            ("1.5MiB", None),
        ] {
            let query = format!("a=1&size={text}");
            assert_eq!(Query(&query).size("size", 5, 1 << 30).ok(), expected, "{text:?}");
        }
        assert_eq!(Query("").size("size", 5, 10).ok(), Some(5));
    }

    #[test]
    fn numbers_are_bounded_and_default() {
        assert_eq!(Query("ms=10").number("ms", 5, 0..=10).ok(), Some(10));
        assert_eq!(Query("msx=10").number("ms", 5, 0..=10).ok(), Some(5));
        for bad in ["ms=11", "ms=", "ms", "ms=+-1", "ms=1e1", "ms=99999999999999999999"] {
            assert!(Query(bad).number("ms", 5, 0..=10).is_err(), "{bad}");
        }
        assert_eq!(Query("a&b=2&b=3").get("b"), Some("2"));
        assert_eq!(Query("a&b=2").get("a"), Some(""));
    }
}
