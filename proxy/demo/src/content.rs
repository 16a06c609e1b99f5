//! Content that does not change: validators (RFC 9110, 8.8), conditional requests (13) and single ranges (14).

use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
    LAST_MODIFIED, RANGE,
};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};

use crate::answer::{Body, of_type, whole};

/// All content says it was last modified then: 2026-01-01T00:00:00Z.
const LAST_MODIFIED_EPOCH: u64 = 1_767_225_600;

pub(crate) const CACHE_CONTROL: &str = "public, max-age=60";

pub(crate) struct Content {
    pub(crate) content_type: &'static str,
    /// A strong entity tag, with its quotes.
    pub(crate) etag: String,
    /// In bytes.
    pub(crate) length: u64,
}

impl Content {
    /// Answers from the request's preconditions and range; `open` makes the body of the bytes asked for.
    pub(crate) fn answer(
        &self,
        method: &Method,
        headers: &HeaderMap,
        open: impl FnOnce(Range<u64>) -> Body,
    ) -> Response<Body> {
        if is_not_modified(headers, &self.etag) {
            // Whoever asked has the rest of the metadata already (RFC 9110, 15.4.5).
            let mut response = self.with_validators(StatusCode::NOT_MODIFIED, whole(""));
            response.headers_mut().remove(CONTENT_TYPE);
            return response;
        }

        let range = if method == Method::GET { self.range(headers) } else { Selection::Whole };
        match range {
            Selection::Whole => {
                let mut response = self.with_validators(StatusCode::OK, open(0..self.length));
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(self.length));
                response
            }
            Selection::Part(part) => {
                let content_range = format!("bytes {}-{}/{}", part.start, part.end - 1, self.length);
                let mut response = self.with_validators(StatusCode::PARTIAL_CONTENT, open(part.clone()));
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(part.end - part.start));
                set(response.headers_mut(), CONTENT_RANGE, &content_range);
                response
            }
            Selection::Unsatisfiable => {
                let sentence = format!("This has {} bytes; the range lies outside.\n", self.length);
                let status = StatusCode::RANGE_NOT_SATISFIABLE;
                let mut response = of_type("text/plain; charset=utf-8", "no-store", status, whole(sentence));
                set(response.headers_mut(), CONTENT_RANGE, &format!("bytes */{}", self.length));
                response
            }
        }
    }

    fn with_validators(&self, status: StatusCode, body: Body) -> Response<Body> {
        let mut response = of_type(self.content_type, CACHE_CONTROL, status, body);
        let headers = response.headers_mut();
        set(headers, ETAG, &self.etag);
        set(headers, LAST_MODIFIED, &httpdate::fmt_http_date(last_modified()));
        headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        response
    }

    fn range(&self, headers: &HeaderMap) -> Selection {
        let mut ranges = headers.get_all(RANGE).iter();
        let (Some(range), None) = (ranges.next(), ranges.next()) else { return Selection::Whole };
        if headers.get(IF_RANGE).is_some_and(|validator| !is_current(validator, &self.etag)) {
            return Selection::Whole;
        }
        range.to_str().map_or(Selection::Whole, |range| select(range, self.length))
    }
}

pub(crate) fn set(headers: &mut HeaderMap, name: http::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn last_modified() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(LAST_MODIFIED_EPOCH)
}

/// If-None-Match compares weakly, and where it stands If-Modified-Since does not count (RFC 9110, 13.1.2 and 13.1.3).
fn is_not_modified(headers: &HeaderMap, etag: &str) -> bool {
    if headers.contains_key(IF_NONE_MATCH) {
        return headers.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
            value.split(',').map(str::trim).any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == etag)
        });
    }
    let since = headers.get(IF_MODIFIED_SINCE).and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
    since.is_some_and(|since| last_modified() <= since)
}

/// If-Range compares strongly, and a date only if it is exactly ours (RFC 9110, 13.1.5).
fn is_current(validator: &HeaderValue, etag: &str) -> bool {
    validator.to_str().is_ok_and(|validator| {
        validator == etag || httpdate::parse_http_date(validator).is_ok_and(|date| date == last_modified())
    })
}

/// What of the content to send.
#[derive(Debug, PartialEq, Eq)]
enum Selection {
    /// All of it: no range was asked for, or one that is malformed or has several parts, which a server may ignore.
    Whole,
    /// These bytes, at least one.
    Part(Range<u64>),
    /// The range is well-formed, but none of its bytes are there.
    Unsatisfiable,
}

/// RFC 9110, 14.1.2.
fn select(range: &str, length: u64) -> Selection {
    let Some((unit, range)) = range.split_once('=') else { return Selection::Whole };
    let Some((first, last)) = range.trim().split_once('-') else { return Selection::Whole };
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !unit.eq_ignore_ascii_case("bytes") || !is_number(first) || !is_number(last) {
        return Selection::Whole;
    }

    // Digits that do not fit say "beyond the end" as well as any number does.
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    let part = match (first, last) {
        ("", "") => return Selection::Whole,
        ("", suffix) => length.saturating_sub(number(suffix))..length,
        (first, "") => number(first)..length,
        (first, last) if number(last) < number(first) => return Selection::Whole,
        (first, last) => number(first)..number(last).saturating_add(1).min(length),
    };
    if part.is_empty() { Selection::Unsatisfiable } else { Selection::Part(part) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_selected_as_rfc_9110_says() {
        for (range, length, expected) in [
            ("bytes=0-0", 10, Selection::Part(0..1)),
            ("bytes=2-5", 10, Selection::Part(2..6)),
            ("Bytes=2-", 10, Selection::Part(2..10)),
            ("bytes=-3", 10, Selection::Part(7..10)),
            ("bytes=-30", 10, Selection::Part(0..10)),
            ("bytes=9-99999999999999999999", 10, Selection::Part(9..10)),
            ("bytes=0-18446744073709551615", 10, Selection::Part(0..10)),
            ("bytes=10-", 10, Selection::Unsatisfiable),
            ("bytes=10-12", 10, Selection::Unsatisfiable),
            ("bytes=99999999999999999999-", 10, Selection::Unsatisfiable),
            ("bytes=-0", 10, Selection::Unsatisfiable),
            ("bytes=0-0", 0, Selection::Unsatisfiable),
            ("bytes=-5", 0, Selection::Unsatisfiable),
            ("bytes=5-2", 10, Selection::Whole),
            ("bytes=0-1,3-4", 10, Selection::Whole),
            ("bytes=-", 10, Selection::Whole),
            ("bytes=a-b", 10, Selection::Whole),
            ("bytes=+1-2", 10, Selection::Whole),
            ("lines=1-2", 10, Selection::Whole),
            ("bytes", 10, Selection::Whole),
        ] {
            assert_eq!(select(range, length), expected, "{range} of {length}");
        }
    }

    #[test]
    fn preconditions_hold_as_rfc_9110_says() {
        let before = "Wed, 31 Dec 2025 23:59:59 GMT";
        let exactly = "Thu, 01 Jan 2026 00:00:00 GMT";
        for (none_match, since, expected) in [
            (Some("\"a\""), None, true),
            (Some("W/\"a\""), None, true),
            (Some("\"b\", \"a\""), None, true),
            (Some("*"), None, true),
            (Some("\"b\""), None, false),
            (Some("\"b\""), Some(exactly), false),
            (None, Some(exactly), true),
            (None, Some(before), false),
            (None, Some("yesterday"), false),
            (None, None, false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in [(IF_NONE_MATCH, none_match), (IF_MODIFIED_SINCE, since)] {
                if let Some(value) = value {
                    set(&mut headers, name, value);
                }
            }
            assert_eq!(is_not_modified(&headers, "\"a\""), expected, "{none_match:?} {since:?}");
        }
        for (validator, expected) in
            [("\"a\"", true), ("W/\"a\"", false), ("\"b\"", false), (exactly, true), (before, false), ("", false)]
        {
            assert_eq!(is_current(&HeaderValue::from_str(validator).unwrap(), "\"a\""), expected, "{validator}");
        }
    }
}
