//! What a request asks of a stored response: its `Cache-Control` (RFC 9111, 5.2.1) and its conditions (RFC 9110, 13).

use std::time::{Duration, SystemTime};

use http::header::{CACHE_CONTROL, DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED, PRAGMA};
use http::{HeaderMap, HeaderValue, Method, StatusCode, request, response};

use super::date;
use super::directives::{CacheControl, MaxStale};
use super::structured::origins_directives;

/// What the directives of a request make of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// Nothing special: freshness decides.
    None,
    /// The response must be validated first (`no-cache`, `max-age`, `min-fresh`).
    Validate,
    /// The response is stale, and the client takes it like that (`max-stale`).
    AcceptStale,
}

/// Apply the directives of `request` to a response made at `born` and fresh until `fresh_until` (RFC 9111, 5.2.1).
#[must_use]
pub fn demand(
    request: &HeaderMap<HeaderValue>,
    stored: &HeaderMap<HeaderValue>,
    born: SystemTime,
    fresh_until: SystemTime,
    now: SystemTime,
) -> Demand {
    if !request.contains_key(CACHE_CONTROL) {
        // RFC 9111, 5.4: Pragma speaks only where Cache-Control is silent.
        let no_cache = request.get_all(PRAGMA).iter().any(|line| line.as_bytes().eq_ignore_ascii_case(b"no-cache"));
        return if no_cache { Demand::Validate } else { Demand::None };
    }

    let directives = CacheControl::of(request);
    let age = now.duration_since(born).unwrap_or_default();
    let left = fresh_until.duration_since(now).unwrap_or_default();
    if directives.no_cache.is_whole()
        || directives.no_store
        || directives.max_age.lifetime().is_some_and(|limit| age > limit)
        || directives.min_fresh.lifetime().is_some_and(|wanted| left < wanted)
    {
        return Demand::Validate;
    }

    let Ok(over) = now.duration_since(fresh_until) else { return Demand::None };
    let accepted = match directives.max_stale {
        MaxStale::No => false,
        MaxStale::Any => true,
        MaxStale::Within(limit) => over <= limit + Duration::from_secs(1),
    };
    if !accepted || over.is_zero() {
        return Demand::None;
    }
    let origin = origins_directives(stored).0;
    if origin.forbids_stale() { Demand::None } else { Demand::AcceptStale }
}

/// Whether the request wants a stored response or none at all (RFC 9111, 5.2.1.7). A cache that has none answers 504.
#[must_use]
pub fn only_if_cached(request: &HeaderMap<HeaderValue>) -> bool {
    request.contains_key(CACHE_CONTROL) && CacheControl::of(request).only_if_cached
}

/// Whether `response` may be answered as 304, because the client has it already (RFC 9110, 13.1.2 and 13.1.3; RFC 9111, 4.3.2).
///
/// Only a 200 to `GET` or `HEAD` can be: a condition on any other status is ignored. Without `Last-Modified` the comparison with
/// `If-Modified-Since` falls back to `Date`, as RFC 9111, 4.3.2 allows.
#[must_use]
pub fn not_modified(request: &request::Parts, response: &response::Parts) -> bool {
    if response.status != StatusCode::OK || (request.method != Method::GET && request.method != Method::HEAD) {
        return false;
    }
    // If-None-Match, where present, is the only condition that counts.
    if request.headers.contains_key(IF_NONE_MATCH) {
        return none_match_fails(&request.headers, response.headers.get(ETAG));
    }
    let Some(since) = date::header(&request.headers, IF_MODIFIED_SINCE) else { return false };
    let modified = match response.headers.contains_key(LAST_MODIFIED) {
        true => date::header(&response.headers, LAST_MODIFIED),
        false => date::header(&response.headers, DATE),
    };
    modified.is_some_and(|modified| modified <= since)
}

/// Whether some member of `If-None-Match` is `*` or equals `etag` by weak comparison (RFC 9110, 8.8.3.2).
fn none_match_fails(request: &HeaderMap<HeaderValue>, etag: Option<&HeaderValue>) -> bool {
    let opaque = etag.map(|etag| strong(etag.as_bytes().trim_ascii()));
    request.get_all(IF_NONE_MATCH).iter().any(|line| {
        let line = line.as_bytes().trim_ascii();
        line == b"*" || opaque.is_some_and(|opaque| members(line).any(|member| strong(member) == opaque))
    })
}

/// The opaque part of an entity tag. Some origins and clients leave the quotes out, on one side or on both.
fn strong(tag: &[u8]) -> &[u8] {
    let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
    tag.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(tag)
}

/// The members of a list of entity tags. Commas inside quotes belong to the tag.
fn members(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    line.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    })
    .map(<[u8]>::trim_ascii)
    .filter(|member| !member.is_empty())
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    /// RFC 9111, 5.2.1: a response 100 s old with 20 s left (or 20 s over), against each directive.
    #[test]
    fn request_directives() {
        for (field, value, control, left, expected) in [
            ("x-none", "", "", 20, Demand::None),
            ("cache-control", "no-cache", "", 20, Demand::Validate),
            ("cache-control", "no-store", "", 20, Demand::Validate),
            ("pragma", "no-cache", "", 20, Demand::Validate),
            ("cache-control", "max-age=100", "", 20, Demand::None),
            ("cache-control", "max-age=99", "", 20, Demand::Validate),
            ("cache-control", "max-age=0", "", 20, Demand::Validate),
            ("cache-control", "min-fresh=20", "", 20, Demand::None),
            ("cache-control", "min-fresh=21", "", 20, Demand::Validate),
            ("cache-control", "max-stale", "", 20, Demand::None),
            ("cache-control", "max-stale", "", -20, Demand::AcceptStale),
            ("cache-control", "max-stale=20", "", -20, Demand::AcceptStale),
            ("cache-control", "max-stale=10", "", -20, Demand::None),
            ("cache-control", "max-stale", "must-revalidate", -20, Demand::None),
            ("cache-control", "max-stale", "s-maxage=1", -20, Demand::None),
            ("cache-control", "only-if-cached", "", 20, Demand::None),
        ] {
            let request = Request::builder().header(field, value).body(()).expect("a request");
            let stored = Response::builder().header("cache-control", control).body(()).expect("a response");
            let offset = Duration::from_secs(i64::unsigned_abs(left));
            let fresh_until = if left < 0 { now() - offset } else { now() + offset };
            let born = now() - Duration::from_secs(100);
            let verdict = demand(request.headers(), stored.headers(), born, fresh_until, now());
            assert_eq!(verdict, expected, "{field}: {value} against {control}");
        }
    }

    /// RFC 9110, 13.1.2, 13.1.3 and 13.2.2.
    #[test]
    fn conditions() {
        const EARLY: &str = "Sun, 06 Nov 1994 08:49:00 GMT";
        const DATED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const LATE: &str = "Sun, 06 Nov 1994 08:50:00 GMT";
        type Fields = &'static [(&'static str, &'static str)];
        let cases: &[(Fields, u16, Fields, bool)] = &[
            (&[], 200, &[("etag", "\"a\"")], false),
            (&[("if-none-match", "\"a\"")], 200, &[("etag", "\"a\"")], true),
            (&[("if-none-match", "W/\"a\"")], 200, &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"a\"")], 200, &[("etag", "W/\"a\"")], true),
            (&[("if-none-match", "\"b\", \"a\"")], 200, &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"b\""), ("if-none-match", "\"a\"")], 200, &[("etag", "\"a\"")], true),
            (&[("if-none-match", "\"x,a\", \"b\"")], 200, &[("etag", "\"x,a\"")], true),
            (&[("if-none-match", "a")], 200, &[("etag", "\"a\"")], true),
            (&[("if-none-match", "b, \"a\"")], 200, &[("etag", "a")], true),
            (&[("if-none-match", "a")], 200, &[("etag", "\"b\"")], false),
            (&[("if-none-match", "*")], 200, &[], true),
            (&[("if-none-match", "\"b\"")], 200, &[("etag", "\"a\"")], false),
            (&[("if-none-match", "\"a\"")], 200, &[], false),
            (&[("if-none-match", "\"a\"")], 404, &[("etag", "\"a\"")], false),
            (
                &[("if-none-match", "\"b\""), ("if-modified-since", LATE)],
                200,
                &[("etag", "\"a\""), ("last-modified", EARLY)],
                false,
            ),
            (&[("if-modified-since", DATED)], 200, &[("last-modified", DATED)], true),
            (&[("if-modified-since", LATE)], 200, &[("last-modified", DATED)], true),
            (&[("if-modified-since", EARLY)], 200, &[("last-modified", DATED)], false),
            (&[("if-modified-since", LATE)], 200, &[("date", DATED)], true),
            (&[("if-modified-since", "yesterday")], 200, &[("last-modified", EARLY)], false),
        ];
        for (asked, status, answered, expected) in cases {
            let mut request = Request::builder();
            for (name, value) in *asked {
                request = request.header(*name, *value);
            }
            let mut response = Response::builder().status(*status);
            for (name, value) in *answered {
                response = response.header(*name, *value);
            }
            let request = request.body(()).expect("a request").into_parts().0;
            let response = response.body(()).expect("a response").into_parts().0;
            assert_eq!(not_modified(&request, &response), *expected, "{asked:?} {status} {answered:?}");
        }
    }
}
