//! `Cache-Control`, parsed once into the directives this cache understands (RFC 9111, 5.2).

use std::time::Duration;

use http::header::{CACHE_CONTROL, HeaderName};
use http::{HeaderMap, HeaderValue};

use super::MAX_DELTA;

/// A directive that carries seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Delta {
    /// The directive is not there.
    #[default]
    Absent,
    /// The directive is there with this many seconds, capped at [`MAX_DELTA`].
    Seconds(Duration),
    /// The directive is there, but its value is missing, not a number, or contradicted by a repetition. RFC 9111, 4.2.1 encourages
    /// to treat this as stale.
    Invalid,
}

impl Delta {
    /// The lifetime this directive grants: `None` when absent, zero when invalid.
    #[must_use]
    pub fn lifetime(self) -> Option<Duration> {
        match self {
            Self::Absent => None,
            Self::Seconds(seconds) => Some(seconds),
            Self::Invalid => Some(Duration::ZERO),
        }
    }

    fn note(&mut self, argument: Option<&str>) {
        let new = argument.and_then(delta_seconds).map_or(Self::Invalid, Self::Seconds);
        *self = match *self {
            Self::Absent => new,
            old if old == new => old,
            _ => Self::Invalid,
        };
    }
}

/// A directive that stands alone, or names the fields it is about (`no-cache="Set-Cookie"`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Scope {
    /// The directive is not there.
    #[default]
    Absent,
    /// The directive is about the whole response.
    Whole,
    /// The directive is about these fields only.
    Fields(Vec<HeaderName>),
}

impl Scope {
    /// Whether the directive is about the whole response.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Whole)
    }

    /// The fields the directive names; none when it is absent or about the whole response.
    #[must_use]
    pub fn fields(&self) -> &[HeaderName] {
        match self {
            Self::Fields(fields) => fields,
            Self::Absent | Self::Whole => &[],
        }
    }

    fn note(&mut self, argument: Option<&str>) {
        let Some(argument) = argument.filter(|argument| !argument.trim().is_empty()) else {
            *self = Self::Whole;
            return;
        };
        let names = argument.split(',').map(|name| HeaderName::from_bytes(name.trim().as_bytes()));
        match names.collect::<Result<Vec<_>, _>>() {
            // A list we cannot read might name anything, so it is about everything.
            Err(_) => *self = Self::Whole,
            Ok(names) => match self {
                Self::Whole => {}
                Self::Fields(fields) => fields.extend(names),
                Self::Absent => *self = Self::Fields(names),
            },
        }
    }
}

/// What `max-stale` in a request accepts (RFC 9111, 5.2.1.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MaxStale {
    /// Stale responses are not asked for.
    #[default]
    No,
    /// Stale by any time.
    Any,
    /// Stale by no more than this.
    Within(Duration),
}

/// The directives of one `Cache-Control`, whether of a request, a response, or a targeted field.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheControl {
    /// `max-age` (5.2.1.1 and 5.2.2.1).
    pub max_age: Delta,
    /// `s-maxage` (5.2.2.10).
    pub s_maxage: Delta,
    /// `stale-while-revalidate` (RFC 5861, 3).
    pub stale_while_revalidate: Delta,
    /// `stale-if-error` (RFC 5861, 4).
    pub stale_if_error: Delta,
    /// `min-fresh` (5.2.1.3).
    pub min_fresh: Delta,
    /// `max-stale` (5.2.1.2).
    pub max_stale: MaxStale,
    /// `no-cache` (5.2.1.4 and 5.2.2.4).
    pub no_cache: Scope,
    /// `private` (5.2.2.7).
    pub private: Scope,
    /// `no-store` (5.2.1.5 and 5.2.2.5).
    pub no_store: bool,
    /// `public` (5.2.2.9).
    pub public: bool,
    /// `must-revalidate` (5.2.2.2).
    pub must_revalidate: bool,
    /// `proxy-revalidate` (5.2.2.8).
    pub proxy_revalidate: bool,
    /// `must-understand` (5.2.2.3).
    pub must_understand: bool,
    /// `only-if-cached` (5.2.1.7).
    pub only_if_cached: bool,
}

impl CacheControl {
    /// Read every `Cache-Control` line of `headers`. No line reads as no directive.
    #[must_use]
    pub fn of(headers: &HeaderMap<HeaderValue>) -> Self {
        let mut parsed = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            // A line with bytes outside of ASCII still has directives worth obeying: no-store in front of them, say.
            parsed.read(&String::from_utf8_lossy(line.as_bytes()));
        }
        parsed
    }

    /// Read one field line. Names are compared without case; unknown directives are skipped (RFC 9111, 5.2.3).
    #[must_use]
    pub fn parse(line: &str) -> Self {
        let mut parsed = Self::default();
        parsed.read(line);
        parsed
    }

    /// Whether a stale response may not be served at all without validation: `must-revalidate`, and for a shared cache also
    /// `proxy-revalidate`, `s-maxage` (5.2.2.10) and `no-cache` about the whole response.
    #[must_use]
    pub fn forbids_stale(&self) -> bool {
        self.must_revalidate || self.proxy_revalidate || self.s_maxage != Delta::Absent || self.no_cache.is_whole()
    }

    fn read(&mut self, line: &str) {
        let mut rest = line;
        while let Some((name, argument, after)) = next_directive(rest) {
            self.note(name, argument.as_deref());
            rest = after;
        }
    }

    /// Take one directive in. `argument` is `None` for a directive without `=`.
    pub(super) fn note(&mut self, name: &str, argument: Option<&str>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known);
        if is("max-age") {
            self.max_age.note(argument);
        } else if is("s-maxage") {
            self.s_maxage.note(argument);
        } else if is("stale-while-revalidate") {
            self.stale_while_revalidate.note(argument);
        } else if is("stale-if-error") {
            self.stale_if_error.note(argument);
        } else if is("min-fresh") {
            self.min_fresh.note(argument);
        } else if is("max-stale") {
            self.max_stale = match argument {
                None => MaxStale::Any,
                Some(seconds) => delta_seconds(seconds).map_or(MaxStale::No, MaxStale::Within),
            };
        } else if is("no-cache") {
            self.no_cache.note(argument);
        } else if is("private") {
            self.private.note(argument);
        } else if is("no-store") {
            self.no_store = true;
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") {
            self.must_revalidate = true;
        } else if is("proxy-revalidate") {
            self.proxy_revalidate = true;
        } else if is("must-understand") {
            self.must_understand = true;
        } else if is("only-if-cached") {
            self.only_if_cached = true;
        }
    }
}

/// Read `delta-seconds` (RFC 9111, 1.2.2): digits only, capped at [`MAX_DELTA`] however many there are.
#[must_use]
pub fn delta_seconds(text: &str) -> Option<Duration> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(text.parse().map_or(MAX_DELTA, |seconds| Duration::from_secs(seconds).min(MAX_DELTA)))
}

/// The first directive of `rest` as (name, argument, what follows it). Quoted arguments come unquoted, and a comma inside the
/// quotes does not end them. White space around `=` is not allowed by the grammar: it makes the argument invalid instead of unseen.
fn next_directive(rest: &str) -> Option<(&str, Option<String>, &str)> {
    let rest = rest.trim_start_matches([',', ' ', '\t']);
    if rest.is_empty() {
        return None;
    }

    let end = rest.find([',', '=']).unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    let Some(after) = after.strip_prefix('=') else {
        return Some((name.trim_end(), None, after));
    };
    let sloppy = name.ends_with([' ', '\t']) || after.starts_with([' ', '\t']);

    let (argument, after) = match after.trim_start_matches([' ', '\t']).strip_prefix('"') {
        Some(quoted) => unquote(quoted),
        None => {
            let end = after.find(',').unwrap_or(after.len());
            (after[..end].trim().to_owned(), &after[end..])
        }
    };
    Some((name.trim_end(), Some(if sloppy { format!(" {argument}") } else { argument }), after))
}

/// The text of a quoted string whose opening quote is gone, and what follows. Without a closing quote it runs to the end.
fn unquote(quoted: &str) -> (String, &str) {
    let mut text = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => {
                let after = &quoted[at + 1..];
                let end = after.find(',').unwrap_or(after.len());
                // `max-age="1"0` is not a quoted string: keep the tail, apart, so that it reads as invalid.
                let tail = after[..end].trim();
                if !tail.is_empty() {
                    text.extend([" ", tail]);
                }
                return (text, &after[end..]);
            }
            '\\' => text.extend(chars.next().map(|(_, escaped)| escaped)),
            other => text.push(other),
        }
    }
    (text, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Delta {
        Delta::Seconds(Duration::from_secs(seconds))
    }

    /// RFC 9111, 1.2.2, 4.2.1 and 5.2.2.1: forms of `max-age`, and what each grants.
    #[test]
    fn max_age_forms() {
        for (line, expected) in [
            ("", Delta::Absent),
            ("public", Delta::Absent),
            ("max-age=60", seconds(60)),
            ("MAX-AGE=60", seconds(60)),
            ("max-age=\"60\"", seconds(60)),
            ("a=\"x, max-age=1\", max-age=60", seconds(60)),
            ("a=\"x\\\", max-age=1\", max-age=60", seconds(60)),
            (",, ,max-age=60 ,", seconds(60)),
            ("max-age=60, max-age=60", seconds(60)),
            ("max-age=060", seconds(60)),
            ("max-age=99999999999999999999999", Delta::Seconds(MAX_DELTA)),
            ("max-age=2147483649", Delta::Seconds(MAX_DELTA)),
            ("max-age=60, max-age=1", Delta::Invalid),
            ("max-age", Delta::Invalid),
            ("max-age=", Delta::Invalid),
            ("max-age=-1", Delta::Invalid),
            ("max-age=1.5", Delta::Invalid),
            ("max-age=60a", Delta::Invalid),
            ("max-age=a", Delta::Invalid),
            ("max-age='60'", Delta::Invalid),
            ("max-age =60", Delta::Invalid),
            ("max-age= 60", Delta::Invalid),
            ("max-age=\"6\"0", Delta::Invalid),
            ("xmax-age=60", Delta::Absent),
        ] {
            assert_eq!(CacheControl::parse(line).max_age, expected, "{line}");
        }
    }

    /// RFC 9111, 5.2.2.4 and 5.2.2.7: with an argument the directive is about the named fields only.
    #[test]
    fn no_cache_and_private_may_name_fields() {
        let parsed = CacheControl::parse("no-cache=\"Set-Cookie, X-A\", private=x-b");
        assert_eq!(parsed.no_cache.fields().len(), 2);
        assert!(!parsed.no_cache.is_whole());
        assert_eq!(parsed.private.fields(), ["x-b"]);

        for whole in ["no-cache", "no-cache=\"a b\"", "no-cache=a, no-cache", "no-cache, no-cache=a", "no-cache=\"\""] {
            assert!(CacheControl::parse(whole).no_cache.is_whole(), "{whole}");
        }
    }

    #[test]
    fn flags_are_read_from_every_line() {
        let mut headers = HeaderMap::new();
        headers.append(CACHE_CONTROL, HeaderValue::from_static("Public, must-revalidate"));
        headers.append(CACHE_CONTROL, HeaderValue::from_static("no-store,proxy-revalidate , must-understand"));
        let parsed = CacheControl::of(&headers);
        assert!(parsed.public && parsed.must_revalidate && parsed.no_store);
        assert!(parsed.proxy_revalidate && parsed.must_understand && !parsed.only_if_cached);
    }

    /// RFC 9111, 5.2.1.2: `max-stale` without a value accepts any staleness.
    #[test]
    fn max_stale_forms() {
        assert_eq!(CacheControl::parse("max-stale").max_stale, MaxStale::Any);
        assert_eq!(CacheControl::parse("max-stale=5").max_stale, MaxStale::Within(Duration::from_secs(5)));
        assert_eq!(CacheControl::parse("max-stale=x").max_stale, MaxStale::No);
    }

    /// RFC 9111, 4.2.4 and 5.2.2.10.
    #[test]
    fn what_forbids_serving_stale() {
        for (line, forbidden) in [
            ("max-age=1", false),
            ("max-age=1, no-cache=\"a\"", false),
            ("max-age=1, must-revalidate", true),
            ("proxy-revalidate", true),
            ("s-maxage=1", true),
            ("no-cache", true),
        ] {
            assert_eq!(CacheControl::parse(line).forbids_stale(), forbidden, "{line}");
        }
    }
}
