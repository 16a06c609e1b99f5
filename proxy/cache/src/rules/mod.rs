//! The rules of HTTP caching as pure functions: headers and a time go in, a verdict comes out.
//!
//! Nothing here reads a clock, opens a socket or names Pingora, so every rule is tested as a table. The time is always a
//! parameter; the plumbing in this crate reads the clock once per step and passes it in.
//!
//! | module | decides | rule |
//! |---|---|---|
//! | [`directives`] | what a `Cache-Control` field says | RFC 9111, 5.2 |
//! | [`structured`] | whether `CDN-Cache-Control` is a structured field, and what it says | RFC 9213, RFC 9651 |
//! | [`date`] | when an HTTP date is | RFC 9110, 5.6.7 |
//! | [`store`] | may a response be kept, and for how long | RFC 9111, 3 and 4.2; RFC 5861 |
//! | [`language`] | which language a client prefers | RFC 9110, 12.5.4; RFC 4647 |
//! | [`vary`] | which requests a stored response may answer | RFC 9111, 4.1 |
//! | [`search`] | which parts of a query count | `No-Vary-Search` |
//! | [`reuse`] | what a request's own directives and conditions ask for | RFC 9111, 4.3.2 and 5.2.1 |
//! | [`ranges`] | whether a request gets the part it asks for | RFC 9110, 13.1.5 and 14 |
//! | [`headers`] | which fields survive a hop, a 304, a reuse | RFC 9110, 7.6.1; RFC 9111, 3.1 and 3.2 |
//! | [`invalidate`] | what an unsafe request puts out of date | RFC 9111, 4.4 |

pub mod date;
pub mod directives;
pub mod headers;
pub mod invalidate;
pub mod language;
pub mod ranges;
pub mod reuse;
pub mod search;
pub mod store;
pub mod structured;
pub mod vary;

use std::time::Duration;

use crate::purge::TagPolicy;

/// The largest age or lifetime that is told apart: 2^31 seconds, as RFC 9111, 1.2.2 asks for values that overflow.
pub const MAX_DELTA: Duration = Duration::from_secs(1 << 31);

/// How a route's responses are cached. The default follows the origin's headers and nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RoutePolicy {
    /// Lifetime of a response whose origin gives none, and whose status is cacheable by default (RFC 9110, 15.1). `None` (the
    /// default) leaves such responses to the heuristic of RFC 9111, 4.2.2, or uncached when there is no `Last-Modified`.
    /// `Some(0)` stores them for revalidation only.
    pub ttl: Option<Duration>,
    /// The same for responses with certain statuses (from, to), cacheable by default or not, before [`ttl`](Self::ttl): 5 s for 404, say.
    pub ttl_by_status: Vec<(u16, u16, Duration)>,
    /// Let [`ttl`](Self::ttl) win over what the origin says: its lifetime, `no-store`, `no-cache` and `private`. Never stored even
    /// then: a partial response, `Vary: *`, an answer to a request with `Authorization` that is not marked shareable, and a
    /// response that sets a cookie, unless it is [stripped](SetCookies::Strip). No effect on statuses without a lifetime here. Default
    /// `false`.
    pub override_origin: bool,
    /// What becomes of responses with `Set-Cookie`.
    pub set_cookie: SetCookies,
    /// Lifetime of a response in place of what the origin gives, where it may be stored at all: the origin's `no-store`, `private` and
    /// `no-cache` stand, and errors and cookies without a lifetime of the origin's are not stored. [`ttl`](Self::ttl) together with
    /// [`override_origin`](Self::override_origin) loses against it. Default `None`.
    pub lifetime: Option<Duration>,
    /// Which query parameters are part of the cache key. Default: all of them, in the order they came.
    pub query: QueryPolicy,
    /// Requests for one URL may have different keys, because more than the URL counts. An unsafe request puts all of them out of date.
    pub has_key_parts: bool,
    /// How long after its lifetime a response may be served while it is fetched anew in the background (RFC 5861, 3), where the
    /// origin does not say. With [`override_origin`](Self::override_origin), also where it does. `None` (the default) and zero:
    /// only where the origin says so. `must-revalidate`, `proxy-revalidate`, `no-cache` and `s-maxage` forbid it unless
    /// overridden.
    pub stale_while_revalidate: Option<Duration>,
    /// How long after its lifetime a response may be served because the origin fails (RFC 5861, 4), where the origin does not say.
    /// `None` (the default): for [`store::DISCONNECTED_WINDOW`] when the origin cannot be reached or breaks off (RFC 9111, 4.2.4),
    /// and not at all when it answers 500, 502, 503 or 504. `Some(0)`: never.
    pub stale_if_error: Option<Duration>,
    /// Obey `Cache-Control` in requests (`no-cache`, `no-store`, `max-age`, `min-fresh`, `max-stale`, `only-if-cached`, and
    /// `Pragma: no-cache`). Default `false`, because it lets any client send load to the origin.
    pub honour_request_directives: bool,
    /// Ask the origin for the range that a client asks for, where nothing is stored, and keep what comes for requests of the same range.
    /// Default `false`: all of it is fetched, and every range is served from that.
    pub stores_ranges: bool,
    /// Which tags of responses count, for purges by tag, and who sees them.
    pub tags: TagPolicy,
}

impl RoutePolicy {
    /// The lifetime of a response with this status whose origin gives none.
    #[must_use]
    pub fn given_ttl(&self, status: u16) -> Option<Duration> {
        self.named_ttl(status).or_else(|| self.ttl.filter(|_| store::is_cacheable_by_default(status)))
    }

    /// The lifetime of a response with this status whatever its origin says.
    #[must_use]
    pub fn forced_ttl(&self, status: u16) -> Option<Duration> {
        if self.override_origin { self.named_ttl(status).or(self.ttl) } else { None }
    }

    fn named_ttl(&self, status: u16) -> Option<Duration> {
        let named = self.ttl_by_status.iter().find(|(from, to, _)| (*from..=*to).contains(&status));
        named.map(|(_, _, ttl)| *ttl)
    }
}

/// What becomes of responses with `Set-Cookie`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SetCookies {
    /// They are stored with it where the origin says how long they are fresh (RFC 9111, 7.3).
    #[default]
    Store,
    /// They are stored without it, like any other.
    Strip,
    /// They are not stored.
    Pass,
}

/// Which query parameters are part of the cache key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum QueryPolicy {
    /// The whole query string, byte for byte.
    #[default]
    All,
    /// Only these parameters, in this order; their repetitions stay in the order they came. Names are compared after
    /// percent-decoding, so that an encoded spelling cannot slip a value past the key. The origin still gets the whole query: list
    /// every parameter that changes its answer, or one client's answer is served to others.
    Only(Vec<String>),
    /// All but these parameters, names compared likewise. `a` and `a=` are the same.
    Except {
        /// Those that do not count.
        names: Vec<String>,
        /// Whether the others are taken in the order of their names; repetitions stay in the order they came.
        sort: bool,
    },
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Origins and clients send anything: the parsers give an answer, and never a panic.
        #[test]
        fn parsers_take_any_text(text in "\\PC{0,40}|[a-z0-9=,;\"\\\\ ?@%:().*-]{0,40}") {
            let _ = directives::CacheControl::parse(&text);
            let _ = structured::parse(&text);
            let _ = search::SearchVariance::parse(&text);
            let _ = date::parse(&text);
            if let Ok(value) = HeaderValue::from_str(&text) {
                let mut headers = HeaderMap::new();
                for name in ["vary", "location", "connection", "if-none-match", "etag", "x-a"] {
                    headers.append(name, value.clone());
                }
                let _ = vary::variance(&headers, &headers);
                let _ = invalidate::named_targets("a.example", "/a/b", &headers);
                let _ = headers::hop_by_hop(http::StatusCode::OK, &headers);
            }
        }
    }
}
