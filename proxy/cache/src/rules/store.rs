//! May a response be stored, and how long does it live (RFC 9111, 3 and 4.2; RFC 5861).

use std::time::{Duration, SystemTime};

use http::header::{AGE, AUTHORIZATION, CONTENT_RANGE, DATE, ETAG, EXPIRES, LAST_MODIFIED, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, request, response};

use super::directives::{CacheControl, Delta, delta_seconds};
use super::structured::origins_directives;
use super::{MAX_DELTA, RoutePolicy, SetCookies, date, vary};

/// How long a stale response may stand in for an origin that cannot be reached, where neither origin nor route says otherwise
/// (RFC 9111, 4.2.4 lets a disconnected cache serve stale).
pub const DISCONNECTED_WINDOW: Duration = Duration::from_hours(24);

/// The heuristic lifetime is this part of the time since `Last-Modified`: a tenth, as RFC 9111, 4.2.2 suggests.
const HEURISTIC_DIVISOR: u32 = 10;
/// The longest heuristic lifetime. Guesses are kept short.
const HEURISTIC_LIMIT: Duration = Duration::from_hours(24);

/// When the request went out and the response came in: what age arithmetic needs (RFC 9111, 4.2.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// `request_time`: when the request was sent.
    pub sent: SystemTime,
    /// `response_time`: when the response header came.
    pub received: SystemTime,
}

/// How long a response may be used. All of it is fixed when the response arrives or is validated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// When the origin made the response, as far as can be told: the time of arrival minus the initial age. `now - born` is the
    /// current age of RFC 9111, 4.2.3.
    pub born: SystemTime,
    /// The last moment at which the response is fresh.
    pub fresh_until: SystemTime,
    /// Window after that in which it may be served while it is fetched anew.
    pub stale_while_revalidate: Duration,
    /// Window after that in which it may be served when the origin answers 500, 502, 503 or 504.
    pub stale_if_error: Duration,
    /// Window after that in which it may be served when the origin cannot be reached.
    pub stale_if_disconnected: Duration,
}

impl Lifetime {
    /// Whether the response was stale before it arrived, so that every reuse needs a validation.
    #[must_use]
    pub fn always_stale(&self, received: SystemTime) -> bool {
        self.fresh_until < received
    }
}

/// Whether a response may be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storable {
    /// It may, for this long.
    Yes(Lifetime),
    /// It may not, because of this.
    No(Reason),
}

/// Why a response may not be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The request method is neither `GET` nor `HEAD`.
    Method,
    /// The request said `no-store`, and the route obeys it (RFC 9111, 5.2.1.5).
    RequestNoStore,
    /// The request had `Authorization`, and the response does not allow sharing (RFC 9111, 3.5).
    Authorization,
    /// A status that cannot be stored whole: 1xx, 206, 304.
    Status,
    /// `no-store` (RFC 9111, 5.2.2.5).
    NoStore,
    /// `private` (RFC 9111, 5.2.2.7).
    Private,
    /// `must-understand` with a status this cache does not know (RFC 9111, 5.2.2.3).
    NotUnderstood,
    /// `Vary: *` (RFC 9111, 4.1).
    VaryStar,
    /// The response sets a cookie, and the route overrides the origin, or stores none of those.
    SetCookie,
    /// An error of the origin (5xx) without explicit lifetime: worth a new try, not worth remembering.
    ServerError,
    /// Neither explicit nor heuristic lifetime, or none that could ever be used.
    NoLifetime,
    /// Its `No-Vary-Search` is not the one by which its key was made: other queries would get it.
    OtherQuery,
}

impl Reason {
    /// The reason as a token, for logs and `Cache-Status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::RequestNoStore => "request-no-store",
            Self::Authorization => "authorization",
            Self::Status => "status",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::NotUnderstood => "must-understand",
            Self::VaryStar => "vary-star",
            Self::SetCookie => "set-cookie",
            Self::ServerError => "server-error",
            Self::NoLifetime => "no-lifetime",
            Self::OtherQuery => "other-query",
        }
    }

    /// Whether the next response for the same key will most likely be refused too, so that it is worth remembering.
    #[must_use]
    pub fn is_lasting(self) -> bool {
        !matches!(self, Self::Method | Self::RequestNoStore | Self::ServerError | Self::Status | Self::OtherQuery)
    }
}

/// Decide whether a shared cache may store `response` to `request`, and for how long.
#[must_use]
pub fn storable(
    request: &request::Parts,
    response: &response::Parts,
    policy: &RoutePolicy,
    times: Exchange,
) -> Storable {
    if request.method != Method::GET && request.method != Method::HEAD {
        return Storable::No(Reason::Method);
    }
    let status = response.status.as_u16();
    let is_range = status == 206 && policy.stores_ranges && is_one_range(request, response);
    if status < 200 || (status == 206 && !is_range) || status == 304 {
        return Storable::No(Reason::Status);
    }
    if vary::is_star(&response.headers) {
        return Storable::No(Reason::VaryStar);
    }
    if policy.honour_request_directives && CacheControl::of(&request.headers).no_store {
        return Storable::No(Reason::RequestNoStore);
    }

    let (directives, is_targeted) = origins_directives(&response.headers);
    let forced = policy.forced_ttl(status);
    // A cookie that is stripped is nothing to mind.
    let sets_cookie = policy.set_cookie != SetCookies::Strip && response.headers.contains_key(SET_COOKIE);

    // RFC 9111, 3.5: what an authorised client got is shared only on the origin's word, whatever the route says.
    let shareable = directives.public || directives.must_revalidate || directives.s_maxage != Delta::Absent;
    if request.headers.contains_key(AUTHORIZATION) && !shareable {
        return Storable::No(Reason::Authorization);
    }
    match forced {
        _ if sets_cookie && policy.set_cookie == SetCookies::Pass => return Storable::No(Reason::SetCookie),
        Some(_) if sets_cookie => return Storable::No(Reason::SetCookie),
        Some(_) => {}
        None => {
            if let Some(reason) = refused(&directives, status) {
                return Storable::No(reason);
            }
        }
    }

    let given = forced.or_else(|| explicit(&directives, is_targeted, &response.headers, times.received));
    let replaceable = match given {
        Some(_) => forced.is_some() || !directives.no_cache.is_whole(),
        None => is_cacheable_by_default(status) && !sets_cookie,
    };
    let Some(lifetime) = policy
        .lifetime
        .filter(|_| replaceable)
        .or(given)
        .or_else(|| policy.given_ttl(status).filter(|_| !sets_cookie))
        .or_else(|| heuristic(&directives, status, &response.headers, times.received))
    else {
        return Storable::No(if status >= 500 { Reason::ServerError } else { Reason::NoLifetime });
    };
    let lifetime = lifetime.min(MAX_DELTA);

    let windows = Windows::of(&directives, policy, forced.is_some());
    let has_validator = response.headers.contains_key(ETAG) || response.headers.contains_key(LAST_MODIFIED);
    if lifetime.is_zero() && !has_validator && windows.revalidate.is_zero() && windows.error.is_zero() {
        return Storable::No(Reason::NoLifetime); // it could neither be used nor validated
    }

    let initial_age = initial_age(&response.headers, times);
    let born = times.received.checked_sub(initial_age).unwrap_or(SystemTime::UNIX_EPOCH);
    // RFC 9111, 4.2: fresh while lifetime > age, so the moment at which both are equal is already stale.
    let fresh_until = born.checked_add(lifetime).unwrap_or(times.received) - Duration::from_nanos(1);
    Storable::Yes(Lifetime {
        born,
        fresh_until,
        stale_while_revalidate: windows.revalidate,
        stale_if_error: windows.error,
        stale_if_disconnected: windows.disconnected,
    })
}

/// Whether a partial response can be stored for requests that ask for the same range: one range of a `GET`, with a lifetime of the
/// origin's (RFC 9111, 3.3).
fn is_one_range(request: &request::Parts, response: &response::Parts) -> bool {
    vary::range(request).is_some()
        && response.headers.contains_key(CONTENT_RANGE)
        && has_explicit_lifetime(&response.headers)
}

/// Whether the origin itself says how long a response is fresh (RFC 9111, 4.2.1).
#[must_use]
pub fn has_explicit_lifetime(headers: &HeaderMap<HeaderValue>) -> bool {
    let (directives, is_targeted) = origins_directives(headers);
    directives.s_maxage != Delta::Absent
        || directives.max_age != Delta::Absent
        || (!is_targeted && headers.contains_key(EXPIRES))
}

/// Whether a stored response may be served because the origin answered an error, for how long after its lifetime (RFC 5861, 4).
#[must_use]
pub fn stale_if_error_window(status: u16, stored: &HeaderMap<HeaderValue>, policy: &RoutePolicy) -> Duration {
    let directives = origins_directives(stored).0;
    Windows::of(&directives, policy, policy.forced_ttl(status).is_some()).error
}

/// The age of a response at its arrival (RFC 9111, 4.2.3): `max(apparent_age, age_value + response_delay)`, in whole seconds.
#[must_use]
pub fn initial_age(headers: &HeaderMap<HeaderValue>, times: Exchange) -> Duration {
    let since = |then: SystemTime| {
        let seconds = times.received.duration_since(then).map_or(0, |elapsed| elapsed.as_secs());
        Duration::from_secs(seconds)
    };
    let apparent = date::header(headers, DATE).map_or(Duration::ZERO, since);
    let corrected = age_value(headers) + since(times.sent);
    apparent.max(corrected).min(MAX_DELTA)
}

/// The received `Age`: the first member of the first line, or zero when that is not a number (RFC 9111, 5.1). Parameters behind the
/// number do not make it younger.
fn age_value(headers: &HeaderMap<HeaderValue>) -> Duration {
    let first = headers.get(AGE).and_then(|line| line.to_str().ok()).unwrap_or_default();
    let first = first.split([',', ';']).next().unwrap_or_default();
    delta_seconds(first.trim()).unwrap_or(Duration::ZERO)
}

/// The directives that refuse storing (RFC 9111, 3).
fn refused(directives: &CacheControl, status: u16) -> Option<Reason> {
    if directives.private.is_whole() {
        return Some(Reason::Private);
    }
    if directives.must_understand {
        // With must-understand, no-store is only for caches that do not know the status.
        return (!is_understood(status)).then_some(Reason::NotUnderstood);
    }
    directives.no_store.then_some(Reason::NoStore)
}

/// The lifetime the origin gives (RFC 9111, 4.2.1), or `None` when it is silent.
fn explicit(
    directives: &CacheControl,
    is_targeted: bool,
    headers: &HeaderMap<HeaderValue>,
    received: SystemTime,
) -> Option<Duration> {
    if directives.no_cache.is_whole() {
        return Some(Duration::ZERO);
    }
    if let Some(lifetime) = directives.s_maxage.lifetime().or_else(|| directives.max_age.lifetime()) {
        return Some(lifetime);
    }
    // RFC 9213, 2.2: a targeted field silences Expires along with Cache-Control.
    if is_targeted || !headers.contains_key(EXPIRES) {
        return None;
    }
    let from = date::header(headers, DATE).unwrap_or(received);
    let until = date::header(headers, EXPIRES);
    Some(until.and_then(|until| until.duration_since(from).ok()).unwrap_or(Duration::ZERO))
}

/// The lifetime guessed from `Last-Modified` (RFC 9111, 4.2.2). Without it nothing is guessed.
fn heuristic(
    directives: &CacheControl,
    status: u16,
    headers: &HeaderMap<HeaderValue>,
    received: SystemTime,
) -> Option<Duration> {
    if !is_cacheable_by_default(status) && !directives.public {
        return None;
    }
    let modified = date::header(headers, LAST_MODIFIED)?;
    let from = date::header(headers, DATE).unwrap_or(received);
    let unchanged = from.duration_since(modified).unwrap_or(Duration::ZERO);
    Some(Duration::from_secs((unchanged / HEURISTIC_DIVISOR).min(HEURISTIC_LIMIT).as_secs()))
}

/// Statuses a cache may keep without being told to (RFC 9110, 15.1). 206 is in that list too, but partial content is not stored.
pub(super) fn is_cacheable_by_default(status: u16) -> bool {
    matches!(status, 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

/// Statuses whose caching rules this cache implements, in the sense of `must-understand`.
fn is_understood(status: u16) -> bool {
    is_cacheable_by_default(status) || matches!(status, 302 | 303 | 307 | 400)
}

/// The windows after the lifetime in which a stale response may be served.
struct Windows {
    revalidate: Duration,
    error: Duration,
    disconnected: Duration,
}

impl Windows {
    fn of(directives: &CacheControl, policy: &RoutePolicy, overrides: bool) -> Self {
        if directives.forbids_stale() && !overrides {
            // s-maxage forbids stale answers on error, yet origins pair it with an explicit stale-while-revalidate and mean it.
            let only_s_maxage =
                !directives.must_revalidate && !directives.proxy_revalidate && !directives.no_cache.is_whole();
            let revalidate = directives.stale_while_revalidate.lifetime().filter(|_| only_s_maxage);
            return Self {
                revalidate: revalidate.unwrap_or_default(),
                error: Duration::ZERO,
                disconnected: Duration::ZERO,
            };
        }

        let choose = |origin: Delta, route: Option<Duration>| match overrides {
            true => route.or(origin.lifetime()),
            false => origin.lifetime().or(route),
        };
        let error = choose(directives.stale_if_error, policy.stale_if_error);
        Self {
            revalidate: choose(directives.stale_while_revalidate, policy.stale_while_revalidate).unwrap_or_default(),
            error: error.unwrap_or_default(),
            disconnected: error.unwrap_or(DISCONNECTED_WINDOW),
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};

    use super::*;

    type Fields<'a> = &'a [(&'a str, &'a str)];

    /// Sun, 06 Nov 1994 08:49:37 GMT
    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777)
    }

    fn request(fields: &[(&str, &str)]) -> request::Parts {
        let mut builder = Request::builder().uri("/");
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a request").into_parts().0
    }

    fn response(status: u16, fields: &[(&str, &str)]) -> response::Parts {
        let mut builder = Response::builder().status(status);
        for (name, value) in fields {
            builder = builder.header(*name, *value);
        }
        builder.body(()).expect("a response").into_parts().0
    }

    fn at_once() -> Exchange {
        Exchange { sent: now(), received: now() }
    }

    fn decide(status: u16, fields: &[(&str, &str)], policy: &RoutePolicy) -> Storable {
        storable(&request(&[]), &response(status, fields), policy, at_once())
    }

    /// The lifetime in seconds, or the reason against storing.
    fn verdict(status: u16, fields: &[(&str, &str)], policy: &RoutePolicy) -> Result<u64, Reason> {
        match decide(status, fields, policy) {
            Storable::No(reason) => Err(reason),
            Storable::Yes(lifetime) => Ok((lifetime.fresh_until + Duration::from_nanos(1))
                .duration_since(lifetime.born)
                .expect("a lifetime")
                .as_secs()),
        }
    }

    /// RFC 9111, 3 and 4.2.1: what the origin's headers grant, without any policy of the route.
    #[test]
    fn lifetime_by_origin_headers() {
        const LATER: &str = "Sun, 06 Nov 1994 09:49:37 GMT";
        const NOW: &str = "Sun, 06 Nov 1994 08:49:37 GMT";
        const EARLIER: &str = "Sun, 06 Nov 1994 06:02:57 GMT"; // 10,000 s ago
        let cases: &[(u16, Fields<'_>, Result<u64, Reason>)] = &[
            (200, &[("cache-control", "max-age=60")], Ok(60)),
            (200, &[("cache-control", "max-age=60, s-maxage=5")], Ok(5)),
            (200, &[("cache-control", "s-maxage=60, max-age=5")], Ok(60)),
            (200, &[("cache-control", "max-age=60"), ("expires", EARLIER)], Ok(60)),
            (200, &[("expires", LATER)], Ok(3600)),
            (200, &[("expires", LATER), ("date", EARLIER)], Ok(13_600)),
            (200, &[("expires", "0"), ("etag", "\"a\"")], Ok(0)),
            (200, &[("expires", LATER), ("expires", LATER), ("etag", "\"a\"")], Ok(0)),
            (200, &[("expires", NOW), ("etag", "\"a\"")], Ok(0)),
            (200, &[("expires", NOW)], Err(Reason::NoLifetime)),
            (200, &[("last-modified", EARLIER)], Ok(1000)),
            (200, &[("last-modified", LATER)], Ok(0)),
            (200, &[("last-modified", "Sun, 06 Nov 1983 08:49:37 GMT")], Ok(86_400)),
            (302, &[("last-modified", EARLIER)], Err(Reason::NoLifetime)),
            (302, &[("last-modified", EARLIER), ("cache-control", "public")], Ok(1000)),
            (200, &[("cache-control", "public")], Err(Reason::NoLifetime)),
            (200, &[], Err(Reason::NoLifetime)),
            (500, &[], Err(Reason::ServerError)),
            (500, &[("cache-control", "max-age=1")], Ok(1)),
            (599, &[("cache-control", "max-age=1")], Ok(1)),
            (206, &[("cache-control", "max-age=1")], Err(Reason::Status)),
            (304, &[("cache-control", "max-age=1")], Err(Reason::Status)),
            (200, &[("cache-control", "max-age=1, no-store")], Err(Reason::NoStore)),
            (200, &[("cache-control", "max-age=1, private")], Err(Reason::Private)),
            (200, &[("cache-control", "max-age=1, private=\"x-a\"")], Ok(1)),
            (200, &[("cache-control", "max-age=1, no-store, must-understand")], Ok(1)),
            (299, &[("cache-control", "max-age=1, no-store, must-understand")], Err(Reason::NotUnderstood)),
            (200, &[("cache-control", "max-age=1, no-cache"), ("etag", "\"a\"")], Ok(0)),
            (200, &[("cache-control", "max-age=1, no-cache")], Err(Reason::NoLifetime)),
            (200, &[("cache-control", "max-age=1, no-cache=\"x-a\"")], Ok(1)),
            (200, &[("cache-control", "max-age=0")], Err(Reason::NoLifetime)),
            (200, &[("cache-control", "max-age=0, stale-while-revalidate=9")], Ok(0)),
            (200, &[("cache-control", "max-age=1"), ("vary", "accept, *")], Err(Reason::VaryStar)),
            (200, &[("cache-control", "max-age=1"), ("set-cookie", "a=b")], Ok(1)),
            (200, &[("cache-control", "max-age=99999999999")], Ok(1 << 31)),
            // RFC 9213: the targeted field replaces both Cache-Control and Expires, or nothing.
            (200, &[("cdn-cache-control", "max-age=7"), ("cache-control", "no-store"), ("expires", "0")], Ok(7)),
            (200, &[("cdn-cache-control", "no-store"), ("cache-control", "max-age=7")], Err(Reason::NoStore)),
            (200, &[("cdn-cache-control", "max-age=\"7\""), ("cache-control", "max-age=9")], Ok(9)),
            (200, &[("cdn-cache-control", "public"), ("expires", LATER)], Err(Reason::NoLifetime)),
        ];
        for (status, fields, expected) in cases {
            assert_eq!(verdict(*status, fields, &RoutePolicy::default()), *expected, "{status} {fields:?}");
        }
    }

    /// RFC 9111, 3.5.
    #[test]
    fn authorization_needs_the_origins_word() {
        let authorised = request(&[("authorization", "Basic x")]);
        for (control, stored) in [
            ("max-age=9", false),
            ("max-age=9, public", true),
            ("max-age=9, must-revalidate", true),
            ("s-maxage=9", true),
            ("max-age=9, proxy-revalidate", false),
        ] {
            let response = response(200, &[("cache-control", control)]);
            let forced =
                RoutePolicy { ttl: Some(Duration::from_secs(5)), override_origin: true, ..RoutePolicy::default() };
            for policy in [RoutePolicy::default(), forced] {
                let verdict = storable(&authorised, &response, &policy, at_once());
                assert_eq!(matches!(verdict, Storable::Yes(_)), stored, "{control}");
            }
        }
    }

    #[test]
    fn a_route_fills_in_or_overrides_the_lifetime() {
        let fills = RoutePolicy { ttl: Some(Duration::from_secs(30)), ..RoutePolicy::default() };
        let overrides = RoutePolicy { override_origin: true, ..fills.clone() };
        type Case<'a> = (u16, Fields<'a>, Result<u64, Reason>, Result<u64, Reason>);
        let cases: &[Case<'_>] = &[
            (200, &[], Ok(30), Ok(30)),
            (200, &[("cache-control", "max-age=5")], Ok(5), Ok(30)),
            (200, &[("cache-control", "no-store")], Err(Reason::NoStore), Ok(30)),
            (200, &[("cache-control", "private")], Err(Reason::Private), Ok(30)),
            (200, &[("vary", "*")], Err(Reason::VaryStar), Err(Reason::VaryStar)),
            (200, &[("set-cookie", "a=b")], Err(Reason::NoLifetime), Err(Reason::SetCookie)),
            (200, &[("set-cookie", "a=b"), ("cache-control", "max-age=5")], Ok(5), Err(Reason::SetCookie)),
            (302, &[], Err(Reason::NoLifetime), Ok(30)),
            (200, &[("last-modified", "Sun, 06 Nov 1994 06:02:57 GMT")], Ok(30), Ok(30)),
        ];
        for (status, fields, filled, overridden) in cases {
            assert_eq!(verdict(*status, fields, &fills), *filled, "{fields:?}");
            assert_eq!(verdict(*status, fields, &overrides), *overridden, "{fields:?}");
        }
    }

    #[test]
    fn a_route_may_name_statuses() {
        let seconds = Duration::from_secs;
        let fills = RoutePolicy {
            ttl_by_status: vec![(200, 299, seconds(30)), (404, 404, seconds(5)), (500, 599, seconds(1))],
            ..RoutePolicy::default()
        };
        let overrides = RoutePolicy { override_origin: true, ..fills.clone() };
        type Case<'a> = (u16, Fields<'a>, Result<u64, Reason>, Result<u64, Reason>);
        let cases: &[Case<'_>] = &[
            (200, &[], Ok(30), Ok(30)),
            (201, &[], Ok(30), Ok(30)),
            (206, &[], Err(Reason::Status), Err(Reason::Status)),
            (404, &[], Ok(5), Ok(5)),
            (404, &[("cache-control", "max-age=60")], Ok(60), Ok(5)),
            (404, &[("cache-control", "no-store")], Err(Reason::NoStore), Ok(5)),
            (503, &[], Ok(1), Ok(1)),
            (410, &[], Err(Reason::NoLifetime), Err(Reason::NoLifetime)),
            (302, &[("cache-control", "max-age=60")], Ok(60), Ok(60)),
            (302, &[("cache-control", "no-store")], Err(Reason::NoStore), Err(Reason::NoStore)),
        ];
        for (status, fields, filled, overridden) in cases {
            assert_eq!(verdict(*status, fields, &fills), *filled, "{status} {fields:?}");
            assert_eq!(verdict(*status, fields, &overrides), *overridden, "{status} {fields:?}");
        }
    }

    #[test]
    fn what_becomes_of_cookies_is_up_to_the_route() {
        let policy = |set_cookie, override_origin| RoutePolicy {
            ttl: Some(Duration::from_secs(30)),
            override_origin,
            set_cookie,
            ..RoutePolicy::default()
        };
        let fresh: Fields<'_> = &[("set-cookie", "a=b"), ("cache-control", "max-age=5")];
        let silent: Fields<'_> = &[("set-cookie", "a=b")];
        for (set_cookie, overrides, fields, expected) in [
            (SetCookies::Store, false, fresh, Ok(5)),
            (SetCookies::Store, false, silent, Err(Reason::NoLifetime)),
            (SetCookies::Strip, false, fresh, Ok(5)),
            (SetCookies::Strip, false, silent, Ok(30)),
            (SetCookies::Strip, true, fresh, Ok(30)),
            (SetCookies::Pass, false, fresh, Err(Reason::SetCookie)),
            (SetCookies::Pass, true, silent, Err(Reason::SetCookie)),
            (SetCookies::Pass, false, &[("cache-control", "max-age=5")], Ok(5)),
        ] {
            let verdict = verdict(200, fields, &policy(set_cookie, overrides));
            assert_eq!(verdict, expected, "{set_cookie:?} {overrides} {fields:?}");
        }
    }

    #[test]
    fn a_chosen_lifetime_replaces_the_origins_but_no_refusal() {
        let chosen = RoutePolicy { lifetime: Some(Duration::from_secs(60)), ..RoutePolicy::default() };
        let overrides = RoutePolicy { ttl: Some(Duration::from_secs(30)), override_origin: true, ..chosen.clone() };
        type Case<'a> = (u16, Fields<'a>, Result<u64, Reason>, Result<u64, Reason>);
        let cases: &[Case<'_>] = &[
            (200, &[], Ok(60), Ok(60)),
            (200, &[("cache-control", "max-age=5")], Ok(60), Ok(60)),
            (200, &[("cache-control", "no-store")], Err(Reason::NoStore), Ok(60)),
            (200, &[("cache-control", "private")], Err(Reason::Private), Ok(60)),
            (200, &[("cache-control", "no-cache"), ("etag", "\"a\"")], Ok(0), Ok(60)),
            (200, &[("set-cookie", "a=b")], Err(Reason::NoLifetime), Err(Reason::SetCookie)),
            (500, &[], Err(Reason::ServerError), Ok(60)),
            (500, &[("cache-control", "max-age=5")], Ok(60), Ok(60)),
        ];
        for (status, fields, alone, with_override) in cases {
            assert_eq!(verdict(*status, fields, &chosen), *alone, "{status} {fields:?}");
            assert_eq!(verdict(*status, fields, &overrides), *with_override, "{status} {fields:?}");
        }
    }

    #[test]
    fn only_get_and_head_are_stored() {
        for (method, stored) in
            [(Method::GET, true), (Method::HEAD, true), (Method::POST, false), (Method::OPTIONS, false)]
        {
            let mut request = request(&[]);
            request.method = method.clone();
            let response = response(200, &[("cache-control", "max-age=9")]);
            let verdict = storable(&request, &response, &RoutePolicy::default(), at_once());
            assert_eq!(matches!(verdict, Storable::Yes(_)), stored, "{method}");
        }
    }

    /// RFC 9111, 5.2.1.5: only where the route obeys requests.
    #[test]
    fn request_no_store_counts_when_honoured() {
        let request = request(&[("cache-control", "no-store")]);
        let response = response(200, &[("cache-control", "max-age=9")]);
        let honour = RoutePolicy { honour_request_directives: true, ..RoutePolicy::default() };
        assert!(matches!(storable(&request, &response, &RoutePolicy::default(), at_once()), Storable::Yes(_)));
        assert_eq!(storable(&request, &response, &honour, at_once()), Storable::No(Reason::RequestNoStore));
    }

    /// RFC 9111, 4.2.3: `max(apparent_age, age_value + response_delay)`.
    #[test]
    fn age_at_arrival() {
        let slow = Exchange { sent: now() - Duration::from_secs(4), received: now() };
        let early = "Sun, 06 Nov 1994 08:49:07 GMT"; // 30 s ago
        let late = "Sun, 06 Nov 1994 08:50:37 GMT";
        let cases: &[(Fields<'_>, Exchange, u64)] = &[
            (&[], at_once(), 0),
            (&[], slow, 4),
            (&[("age", "10")], at_once(), 10),
            (&[("age", "10")], slow, 14),
            (&[("age", "10"), ("date", early)], slow, 30),
            (&[("age", "40"), ("date", early)], slow, 44),
            (&[("date", late)], at_once(), 0),
            (&[("date", "tomorrow")], at_once(), 0),
            (&[("age", "10, 20")], at_once(), 10),
            (&[("age", "10"), ("age", "20")], at_once(), 10),
            (&[("age", "10;p=1")], at_once(), 10),
            (&[("age", "-1")], at_once(), 0),
            (&[("age", "1.5")], at_once(), 0),
            (&[("age", "99999999999")], at_once(), 1 << 31),
        ];
        for (fields, times, expected) in cases {
            assert_eq!(initial_age(&response(200, fields).headers, *times).as_secs(), *expected, "{fields:?}");
        }
    }

    /// RFC 9111, 4.2: a response older than its lifetime arrives stale.
    #[test]
    fn age_is_taken_off_the_lifetime() {
        for (age, fresh) in [("59", true), ("60", false), ("61", false)] {
            let Storable::Yes(lifetime) =
                decide(200, &[("cache-control", "max-age=60"), ("age", age)], &RoutePolicy::default())
            else {
                panic!("storable");
            };
            assert_eq!(!lifetime.always_stale(now()), fresh, "{age}");
        }
    }

    /// RFC 5861, and RFC 9111, 4.2.4: the windows (while revalidating, on error, when disconnected), in seconds.
    #[test]
    fn windows_for_stale_answers() {
        let day = DISCONNECTED_WINDOW.as_secs();
        let silent = RoutePolicy::default();
        let route = RoutePolicy {
            stale_while_revalidate: Some(Duration::from_secs(3)),
            stale_if_error: Some(Duration::from_secs(4)),
            ..RoutePolicy::default()
        };
        let forced = RoutePolicy { ttl: Some(Duration::from_secs(1)), override_origin: true, ..route.clone() };
        let never = RoutePolicy { stale_if_error: Some(Duration::ZERO), ..RoutePolicy::default() };
        for (control, policy, expected) in [
            ("max-age=1", &silent, (0, 0, day)),
            ("max-age=1", &never, (0, 0, 0)),
            ("max-age=1, stale-while-revalidate=10, stale-if-error=20", &silent, (10, 20, 20)),
            ("max-age=1, stale-while-revalidate=x, stale-if-error=x", &silent, (0, 0, 0)),
            ("max-age=1", &route, (3, 4, 4)),
            ("max-age=1, stale-while-revalidate=10, stale-if-error=20", &route, (10, 20, 20)),
            ("max-age=1, stale-while-revalidate=10, stale-if-error=20", &forced, (3, 4, 4)),
            ("max-age=1, stale-while-revalidate=10, stale-if-error=20, must-revalidate", &route, (0, 0, 0)),
            ("max-age=1, must-revalidate", &forced, (3, 4, 4)),
            ("s-maxage=1, stale-while-revalidate=10, stale-if-error=20", &route, (10, 0, 0)),
            ("s-maxage=1", &route, (0, 0, 0)),
        ] {
            let Storable::Yes(lifetime) = decide(200, &[("cache-control", control)], policy) else {
                panic!("storable")
            };
            let windows = (
                lifetime.stale_while_revalidate.as_secs(),
                lifetime.stale_if_error.as_secs(),
                lifetime.stale_if_disconnected.as_secs(),
            );
            assert_eq!(windows, expected, "{control}");
        }
    }
}
