//! Which response fields survive a hop (RFC 9110, 7.6.1), a validation (RFC 9111, 3.2) and a reuse (RFC 9111, 3.1 and 5.2.2).

use http::header::{
    AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, SET_COOKIE, TRANSFER_ENCODING,
    UPGRADE, VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::structured::origins_directives;
use super::{RoutePolicy, SetCookies};

/// Fields that belong to one connection even where `Connection` does not list them. `Connection` and `Transfer-Encoding` are not
/// here: the transport reads them after us, and [`before_storing`] removes them.
const HOP_BY_HOP: [&str; 6] =
    ["keep-alive", "proxy-connection", "proxy-authentication-info", "proxy-authenticate", "proxy-authorization", "te"];

fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(&name.as_str())
}

/// The names of the response fields that end at this hop: the usual ones, and those `Connection` lists (RFC 9110, 7.6.1).
///
/// `Upgrade` stays where it means something to the client: 101 and 426. `Connection` cannot take away what the message needs for its
/// framing and reuse.
#[must_use]
pub fn hop_by_hop(status: StatusCode, headers: &HeaderMap<HeaderValue>) -> Vec<HeaderName> {
    let keeps_upgrade = status == StatusCode::SWITCHING_PROTOCOLS || status == StatusCode::UPGRADE_REQUIRED;
    let needed = |name: &HeaderName| {
        [CONNECTION, TRANSFER_ENCODING, CONTENT_LENGTH].contains(name) || (*name == UPGRADE && keeps_upgrade)
    };
    let lists = headers.contains_key(CONNECTION);
    let is_listed = |name: &HeaderName| {
        let lines = headers.get_all(CONNECTION).iter();
        let mut options = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
        options.any(|option| option.trim_ascii().eq_ignore_ascii_case(name.as_str().as_bytes()))
    };
    // One look at each name that is there, instead of one for each that might be.
    let ends =
        |name: &&HeaderName| (is_hop_by_hop(name) || **name == UPGRADE || lists && is_listed(name)) && !needed(name);
    headers.keys().filter(ends).cloned().collect()
}

/// The names of the fields a stored header is without: those of the connection and its framing. The length goes as well where the
/// message was framed otherwise (RFC 9112, 6.3).
#[must_use]
pub fn before_storing(headers: &HeaderMap<HeaderValue>) -> Vec<HeaderName> {
    let mut names = Vec::new();
    if headers.contains_key(CONNECTION) {
        names.push(CONNECTION);
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        names.extend([TRANSFER_ENCODING, CONTENT_LENGTH]);
    }
    names
}

/// The fields that `no-cache="…"` and `private="…"` keep out of reuse (RFC 9111, 5.2.2.4 and 5.2.2.7), and cookies where the route
/// strips them. The client whose request fetched the response still gets them.
#[must_use]
pub fn withheld_from_reuse(headers: &HeaderMap<HeaderValue>, policy: &RoutePolicy) -> Vec<HeaderName> {
    let directives = origins_directives(headers).0;
    let cookie: &[HeaderName] = if policy.set_cookie == SetCookies::Strip { &[SET_COOKIE] } else { &[] };
    [directives.no_cache.fields(), directives.private.fields(), cookie].concat()
}

/// Whether a 304's `name` replaces the stored field (RFC 9111, 3.2). Not replaced is what describes the stored body or this
/// connection; and `Vary`, for the stored response has been filed under its old one.
#[must_use]
pub fn is_updated_by_304(name: &HeaderName) -> bool {
    let about_the_body = [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, VARY].contains(name);
    let about_the_hop = [CONNECTION, TRANSFER_ENCODING, UPGRADE].contains(name) || is_hop_by_hop(name);
    !about_the_body && !about_the_hop
}

/// Whether a stored field must go at a validation even though the 304 does not bring it: the old `Age` counts from a moment that is
/// no longer the base (RFC 9111, 4.3.4 and 5.1).
#[must_use]
pub fn is_outdated_by_304(name: &HeaderName) -> bool {
    *name == AGE
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    /// RFC 9110, 7.6.1.
    #[test]
    fn what_ends_at_this_hop() {
        for (status, fields, expected) in [
            (200, &[("connection", "a, close"), ("a", "1"), ("b", "2")][..], &["a"][..]),
            (
                200,
                &[
                    ("connection", "a"),
                    ("connection", "b, content-length"),
                    ("a", ""),
                    ("b", ""),
                    ("content-length", "1"),
                ],
                &["a", "b"],
            ),
            (
                200,
                &[("keep-alive", "x"), ("te", "x"), ("proxy-authenticate", "x"), ("etag", "x")],
                &["keep-alive", "te", "proxy-authenticate"],
            ),
            (200, &[("connection", "upgrade"), ("upgrade", "h2c")], &["upgrade"]),
            (101, &[("connection", "upgrade"), ("upgrade", "websocket")], &[]),
            (426, &[("connection", "upgrade"), ("upgrade", "h2c")], &[]),
        ] {
            let headers = headers(fields);
            let status = StatusCode::from_u16(status).expect("a status");
            assert_eq!(hop_by_hop(status, &headers), *expected, "{fields:?}");
        }
    }

    #[test]
    fn framing_is_not_stored() {
        assert_eq!(before_storing(&headers(&[("etag", "x"), ("content-length", "3")])), [] as [&str; 0]);
        assert_eq!(before_storing(&headers(&[("connection", "close")])), ["connection"]);
        let both = headers(&[("transfer-encoding", "chunked"), ("content-length", "3")]);
        assert_eq!(before_storing(&both), ["transfer-encoding", "content-length"]);
    }

    /// RFC 9111, 5.2.2.4 and 5.2.2.7.
    #[test]
    fn named_fields_are_withheld() {
        let stored = headers(&[("cache-control", "max-age=1, no-cache=\"set-cookie\", private=\"x-a\"")]);
        let policy = RoutePolicy::default();
        assert_eq!(withheld_from_reuse(&stored, &policy), ["set-cookie", "x-a"]);
        let whole = headers(&[("cache-control", "no-cache, private")]);
        assert!(withheld_from_reuse(&whole, &policy).is_empty());
        let strips = RoutePolicy { set_cookie: SetCookies::Strip, ..policy };
        assert_eq!(withheld_from_reuse(&whole, &strips), ["set-cookie"]);
    }

    /// RFC 9111, 3.2.
    #[test]
    fn what_a_304_updates() {
        for (name, updated) in [
            ("etag", true),
            ("cache-control", true),
            ("x-any", true),
            ("date", true),
            ("content-length", false),
            ("content-type", false),
            ("content-encoding", false),
            ("vary", false),
            ("connection", false),
            ("keep-alive", false),
        ] {
            assert_eq!(is_updated_by_304(&HeaderName::from_static(name)), updated, "{name}");
        }
    }
}
