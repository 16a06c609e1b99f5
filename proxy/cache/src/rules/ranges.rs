//! Whether a request gets the part of a stored response that it asks for (RFC 9110, 13.1.5 and 14).

use std::borrow::Cow;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, DATE, ETAG, IF_RANGE, LAST_MODIFIED, RANGE};
use http::{HeaderMap, HeaderValue};

use super::date;

/// How long before its response something must have been modified for the time to tell versions apart (RFC 9110, 8.8.2.2).
const CLOCK_RESOLUTION: Duration = Duration::from_secs(1);

/// What becomes of the `Range` of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part<'r> {
    /// All of the response is for it: it asks for no part, or for one of another version.
    Whole,
    /// These parts are, if they are there.
    Of(Cow<'r, HeaderValue>),
}

/// Which part of `response` a request with a `Range` is given.
///
/// A condition on the range holds by strong comparison only: a weak tag, on either side, or a date that does not tell versions apart gets the
/// whole. Suffixes without any bytes are left out; where the response has no body, so are all suffixes, because no part can be written of it.
#[must_use]
pub fn part<'r>(request: &'r HeaderMap<HeaderValue>, response: &HeaderMap<HeaderValue>) -> Part<'r> {
    let Some(range) = request.get(RANGE) else { return Part::Whole };
    if request.get(IF_RANGE).is_some_and(|condition| !is_same(condition, response)) {
        return Part::Whole;
    }
    let Some((unit, parts)) = range.to_str().ok().and_then(|range| range.split_once('=')) else { return Part::Whole };
    let suffix = |part: &str| part.trim().strip_prefix('-').and_then(|length| length.parse::<u64>().ok());
    if response.get(CONTENT_LENGTH).is_some_and(|length| length == "0")
        && parts.split(',').any(|part| suffix(part).is_some_and(|length| length > 0))
    {
        return Part::Whole;
    }
    if !parts.split(',').any(|part| suffix(part) == Some(0)) {
        return Part::Of(Cow::Borrowed(range));
    }
    let kept: Vec<&str> = parts.split(',').filter(|part| suffix(part) != Some(0)).collect();
    HeaderValue::from_str(&format!("{unit}={}", kept.join(",")))
        .map_or(Part::Whole, |range| Part::Of(Cow::Owned(range)))
}

/// Whether a condition says that the client has a part of the very bytes of `response` (RFC 9110, 13.1.5).
fn is_same(condition: &HeaderValue, response: &HeaderMap<HeaderValue>) -> bool {
    let tag = condition.as_bytes().trim_ascii();
    if tag.ends_with(b"\"") {
        // Strong comparison (8.8.3.2): a tag that begins with `W/` is equal to none.
        return tag.starts_with(b"\"") && response.get(ETAG).is_some_and(|etag| etag.as_bytes().trim_ascii() == tag);
    }
    let Some(modified) = date::header(response, LAST_MODIFIED) else { return false };
    let tells = date::header(response, DATE)
        .is_none_or(|made| made.duration_since(modified).is_ok_and(|since| since >= CLOCK_RESOLUTION));
    tells && condition.to_str().ok().and_then(date::parse) == Some(modified)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: &str = "Sun, 06 Nov 1994 08:49:36 GMT";
    const LATE: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap<HeaderValue> {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    /// RFC 9110, 13.1.5 and 8.8.2.2.
    #[test]
    fn a_condition_holds_for_the_very_same_bytes() {
        for (condition, response, holds) in [
            ("\"a\"", &[("etag", "\"a\"")][..], true),
            ("\"a\"", &[("etag", "\"b\"")], false),
            ("\"a\"", &[("etag", "W/\"a\"")], false),
            ("W/\"a\"", &[("etag", "W/\"a\"")], false),
            ("W/\"a\"", &[("etag", "\"a\"")], false),
            ("\"a\"", &[], false),
            ("a", &[("etag", "a")], false),
            (EARLY, &[("last-modified", EARLY), ("date", LATE)], true),
            (EARLY, &[("last-modified", EARLY)], true),
            (EARLY, &[("last-modified", EARLY), ("date", EARLY)], false),
            (LATE, &[("last-modified", EARLY), ("date", LATE)], false),
            (EARLY, &[("etag", "\"a\"")], false),
            ("yesterday", &[("last-modified", EARLY)], false),
        ] {
            let mut request = headers(&[("range", "bytes=0-1")]);
            request.insert(IF_RANGE, HeaderValue::from_static(condition));
            let is_part = part(&request, &headers(response)) != Part::Whole;
            assert_eq!(is_part, holds, "{condition} of {response:?}");
        }
    }

    /// RFC 9110, 14.1.2.
    #[test]
    fn no_part_is_of_nothing() {
        for (range, length, expected) in [
            ("bytes=0-1", "10", Some("bytes=0-1")),
            ("bytes=-5", "10", Some("bytes=-5")),
            ("bytes=-0", "10", Some("bytes=")),
            ("bytes=-00, 2-3,-1", "10", Some("bytes= 2-3,-1")),
            ("bytes=-5", "0", None),
            ("bytes=0-", "0", Some("bytes=0-")),
            ("bytes=-0", "0", Some("bytes=")),
            ("bytes=0-,-5", "0", None),
            ("bytes", "10", None),
        ] {
            let request = headers(&[("range", range)]);
            let given = part(&request, &headers(&[("content-length", length)]));
            let expected = expected.map_or(Part::Whole, |range| Part::Of(Cow::Owned(HeaderValue::from_static(range))));
            assert_eq!(given, expected, "{range} of {length}");
        }
        assert_eq!(part(&headers(&[]), &headers(&[])), Part::Whole);
    }
}
