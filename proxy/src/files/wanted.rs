//! What of a file is wanted: conditions (RFC 9110, 13), one range (14), and which encoding (12.5.3).

use std::time::{Duration, SystemTime};

use http::header::{
    ACCEPT_ENCODING, ETAG, HeaderName, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE,
    LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, Method};
use pingora::http::RequestHeader;
use selvedge_config::Encoding;

use super::open::Opened;

/// Bytes of a file, or of another object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) start: u64,
    pub(crate) length: u64,
}

impl Part {
    pub(crate) const NONE: Self = Self { start: 0, length: 0 };
}

/// What the client gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Whole,
    Part(Part),
    /// It has it already.
    NotModified,
    /// It wanted another version.
    Failed,
    /// There is no such part.
    OutOfRange,
}

pub(super) fn judge(request: &RequestHeader, opened: &Opened) -> Verdict {
    let validators = Validators { etag: opened.etag.as_bytes(), modified: Some(whole_seconds(opened.modified)) };
    match verdict(&request.headers, validators, opened.size) {
        // Ranges are for GET alone (RFC 9110, 14.2).
        Verdict::Part(_) | Verdict::OutOfRange if request.method != Method::GET => Verdict::Whole,
        verdict => verdict,
    }
}

/// What tells versions of an object apart.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validators<'a> {
    /// The entity tag as it is sent; empty if there is none.
    etag: &'a [u8],
    /// In whole seconds.
    modified: Option<SystemTime>,
}

impl<'a> Validators<'a> {
    /// Those of a response.
    pub(crate) fn of(headers: &'a HeaderMap) -> Self {
        Self { etag: headers.get(ETAG).map_or(&[], |etag| etag.as_bytes()), modified: date(headers, &LAST_MODIFIED) }
    }
}

/// In the order of RFC 9110, 13.2.2.
pub(crate) fn verdict(headers: &HeaderMap, validators: Validators<'_>, size: u64) -> Verdict {
    let Validators { etag, modified } = validators;
    if headers.contains_key(IF_MATCH) {
        if !names(headers, &IF_MATCH, etag, false) {
            return Verdict::Failed;
        }
    } else if date(headers, &IF_UNMODIFIED_SINCE).is_some_and(|since| modified.is_some_and(|modified| modified > since))
    {
        return Verdict::Failed;
    }
    if headers.contains_key(IF_NONE_MATCH) {
        if names(headers, &IF_NONE_MATCH, etag, true) {
            return Verdict::NotModified;
        }
    } else if date(headers, &IF_MODIFIED_SINCE).is_some_and(|since| modified.is_some_and(|modified| modified <= since))
    {
        return Verdict::NotModified;
    }

    let mut ranges = headers.get_all(RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Verdict::Whole };
    if let Some(condition) = headers.get(IF_RANGE) {
        // The same version, exactly (13.1.5).
        let same = if condition.as_bytes().starts_with(b"\"") {
            condition.as_bytes() == etag
        } else {
            date(headers, &IF_RANGE).is_some_and(|since| Some(since) == modified)
        };
        if !same {
            return Verdict::Whole;
        }
    }
    match range.to_str().ok().and_then(|range| range.strip_prefix("bytes=")).map(|range| one_range(range.trim(), size))
    {
        Some(Some(Part { length: 0, .. })) => Verdict::OutOfRange,
        Some(Some(part)) => Verdict::Part(part),
        // Another unit, several ranges or nonsense: a server may ignore those (14.2).
        Some(None) | None => Verdict::Whole,
    }
}

/// One range; empty when there is nothing of it.
fn one_range(range: &str, size: u64) -> Option<Part> {
    let (first, last) = range.split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().unwrap_or(u64::MAX));
    match (first, last) {
        ("", "") => None,
        ("", suffix) => {
            let length = number(suffix)?.min(size);
            Some(Part { start: size - length, length })
        }
        (first, last) => {
            let start = number(first)?;
            let end = if last.is_empty() { u64::MAX } else { number(last)? };
            if end < start {
                return None;
            }
            let end = end.min(size.saturating_sub(1));
            let length = if start < size { end - start + 1 } else { 0 };
            Some(Part { start, length })
        }
    }
}

/// Whether a list of entity tags names this one, or is `*`.
fn names(headers: &HeaderMap, field: &HeaderName, etag: &[u8], weakly: bool) -> bool {
    let tags = headers.get_all(field).iter().flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    tags.map(<[u8]>::trim_ascii).any(|tag| {
        let opaque = if weakly { tag.strip_prefix(b"W/").unwrap_or(tag) } else { tag };
        tag == b"*"
            || !etag.is_empty() && opaque == if weakly { etag.strip_prefix(b"W/").unwrap_or(etag) } else { etag }
    })
}

fn date(headers: &HeaderMap, field: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(field)?.to_str().ok()?).ok()
}

/// As exactly as HTTP tells times.
fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// The encodings among these that the client accepts, in this order; `*` is not taken for them.
pub(super) fn encodings(headers: &HeaderMap, offered: &[Encoding]) -> Vec<Encoding> {
    if offered.is_empty() {
        return Vec::new();
    }
    let accepts = |coding: &str| {
        let items = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|line| line.to_str().ok());
        items.flat_map(|line| line.split(',')).any(|item| {
            let mut parts = item.split(';').map(str::trim);
            parts.next().is_some_and(|name| name.eq_ignore_ascii_case(coding))
                && !parts.any(|parameter| {
                    let quality = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="));
                    quality.is_some_and(|quality| quality.trim().parse::<f32>().is_ok_and(|quality| quality <= 0.0))
                })
        })
    };
    offered.iter().copied().filter(|encoding| accepts(coding(*encoding))).collect()
}

/// The name of an encoding in HTTP.
pub(super) fn coding(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Br => "br",
        Encoding::Zstd => "zstd",
        Encoding::Gzip => "gzip",
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    /// Sun, 06 Nov 1994 08:49:37 GMT, and some.
    fn validators() -> Validators<'static> {
        let modified = whole_seconds(SystemTime::UNIX_EPOCH + Duration::from_millis(784_111_777_900));
        Validators { etag: b"\"abc\"", modified: Some(modified) }
    }

    #[test]
    fn conditions_and_ranges_in_the_order_of_rfc_9110() {
        let part = |start, length| Verdict::Part(Part { start, length });
        let same = "Sun, 06 Nov 1994 08:49:37 GMT";
        let before = "Sun, 06 Nov 1994 08:49:36 GMT";
        let cases: &[(&[(&str, &str)], Verdict)] = &[
            (&[], Verdict::Whole),
            (&[("if-none-match", "\"abc\"")], Verdict::NotModified),
            (&[("if-none-match", "\"x\", W/\"abc\"")], Verdict::NotModified),
            (&[("if-none-match", "*")], Verdict::NotModified),
            (&[("if-none-match", "\"x\"")], Verdict::Whole),
            (&[("if-none-match", "\"x\""), ("if-modified-since", same)], Verdict::Whole),
            (&[("if-modified-since", same)], Verdict::NotModified),
            (&[("if-modified-since", before)], Verdict::Whole),
            (&[("if-modified-since", "yesterday")], Verdict::Whole),
            (&[("if-match", "\"abc\"")], Verdict::Whole),
            (&[("if-match", "W/\"abc\"")], Verdict::Failed),
            (&[("if-match", "\"x\""), ("if-none-match", "\"abc\"")], Verdict::Failed),
            (&[("if-unmodified-since", before)], Verdict::Failed),
            (&[("if-unmodified-since", same)], Verdict::Whole),
            (&[("range", "bytes=0-0")], part(0, 1)),
            (&[("range", "bytes=10-")], part(10, 90)),
            (&[("range", "bytes=90-200")], part(90, 10)),
            (&[("range", "bytes=-5")], part(95, 5)),
            (&[("range", "bytes=-500")], part(0, 100)),
            (&[("range", "bytes=-0")], Verdict::OutOfRange),
            (&[("range", "bytes=100-")], Verdict::OutOfRange),
            (&[("range", "bytes=99999999999999999999999-")], Verdict::OutOfRange),
            (&[("range", "bytes=5-4")], Verdict::Whole),
            (&[("range", "bytes=0-1,3-4")], Verdict::Whole),
            (&[("range", "lines=0-1")], Verdict::Whole),
            (&[("range", "bytes=a-b")], Verdict::Whole),
            (&[("range", "bytes=+1-2")], Verdict::Whole),
            (&[("range", "bytes=0-9"), ("range", "bytes=0-9")], Verdict::Whole),
            (&[("range", "bytes=0-9"), ("if-range", "\"abc\"")], part(0, 10)),
            (&[("range", "bytes=0-9"), ("if-range", "\"x\"")], Verdict::Whole),
            (&[("range", "bytes=0-9"), ("if-range", same)], part(0, 10)),
            (&[("range", "bytes=0-9"), ("if-range", before)], Verdict::Whole),
            (&[("range", "bytes=0-9"), ("if-none-match", "\"abc\"")], Verdict::NotModified),
        ];
        for (fields, expected) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in *fields {
                headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            assert_eq!(verdict(&headers, validators(), 100), *expected, "{fields:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-"));
        assert_eq!(verdict(&headers, validators(), 0), Verdict::OutOfRange, "nothing of an empty file");
    }

    #[test]
    fn only_what_is_accepted_is_sent_compressed() {
        use Encoding::{Br, Gzip, Zstd};
        for (field, expected) in [
            ("gzip, br", vec![Br, Gzip]),
            ("br;q=0, gzip;q=0.5", vec![Gzip]),
            ("zstd; q=0.0", vec![]),
            ("*", vec![]),
            ("identity", vec![]),
            ("GZIP", vec![Gzip]),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static(field));
            assert_eq!(encodings(&headers, &[Br, Zstd, Gzip]), expected, "{field}");
        }
    }
}
