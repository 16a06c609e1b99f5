//! Who may use the admin API.
//!
//! With a token, whoever has it. Without one the API is reachable from this machine only, and then a browser on it is the danger: a page
//! of anybody's may send requests to a loopback address, under a name that resolves to it (DNS rebinding) or blindly (cross-site
//! requests). So the host must be a loopback one, and what a page sends is refused.

use arc_swap::ArcSwapOption;
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::{StatusCode, uri::Authority};
use selvedge_config::{Admin, Bind};
use sha2::{Digest, Sha256};

use super::problem::Problem;

/// Said by browsers about where a request comes from (W3C Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

const FASTLY_KEY: HeaderName = HeaderName::from_static("fastly-key");

/// Decides who may ask.
pub(crate) struct Guard {
    /// The hash of the token, so that comparing tells nothing about the token itself, whatever the time it takes.
    token: ArcSwapOption<[u8; 32]>,
    /// Whether requests come over TCP: then they name a host.
    tcp: bool,
}

impl Guard {
    pub(crate) fn new(settings: &Admin) -> Self {
        let guard = Self { token: ArcSwapOption::empty(), tcp: matches!(settings.bind, Bind::Tcp(_)) };
        guard.renew(settings);
        guard
    }

    /// Another token is asked for from now on.
    pub(crate) fn renew(&self, settings: &Admin) {
        self.token.store(settings.token.as_ref().map(|token| std::sync::Arc::new(hash(token.as_bytes()))));
    }

    /// Whether a request with these fields may be answered.
    pub(crate) fn check(&self, fields: &HeaderMap) -> Result<(), Problem> {
        match &*self.token.load() {
            Some(expected) => match bearer(fields) {
                Some(token) if hash(token) == **expected => Ok(()),
                Some(_) => Err(unauthorized("Bearer error=\"invalid_token\"", "This is not the token")),
                None => Err(unauthorized("Bearer", "A token is needed")),
            },
            None if self.tcp => from_here(fields),
            None => Ok(()),
        }
    }
}

/// Without a token: no page in a browser may ask.
fn from_here(fields: &HeaderMap) -> Result<(), Problem> {
    let host = fields.get(HOST).and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    if !host.as_ref().is_some_and(|host| is_loopback(host.host())) {
        let problem = Problem::new(StatusCode::MISDIRECTED_REQUEST, "Another host is meant");
        return Err(problem.detail("without a token, only localhost, 127.0.0.1 and [::1] are answered for"));
    }
    let page = fields.contains_key(ORIGIN)
        || fields.get(SEC_FETCH_SITE).is_some_and(|site| site != "none" && site != "same-origin");
    if page {
        let problem = Problem::new(StatusCode::FORBIDDEN, "A web page asks");
        return Err(problem.detail("without a token, requests of web pages are refused"));
    }
    Ok(())
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

/// The credentials of `Authorization: Bearer` (RFC 6750, 2.1); the scheme's case does not matter (RFC 9110, 11.1).
/// Tools made for Fastly's API send it as `Fastly-Key`.
fn bearer(fields: &HeaderMap) -> Option<&[u8]> {
    if let Some(key) = fields.get(FASTLY_KEY).filter(|_| !fields.contains_key(AUTHORIZATION)) {
        return Some(key.as_bytes().trim_ascii());
    }
    let value = fields.get(AUTHORIZATION)?.as_bytes();
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

fn hash(token: &[u8]) -> [u8; 32] {
    Sha256::digest(token).into()
}

fn unauthorized(challenge: &'static str, title: &'static str) -> Problem {
    Problem::new(StatusCode::UNAUTHORIZED, title).header(WWW_AUTHENTICATE, HeaderValue::from_static(challenge))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    #[test]
    fn with_a_token_only_the_token_counts() {
        let guard = Guard { token: ArcSwapOption::from_pointee(hash(b"0123456789abcdef")), tcp: true };
        let good = ["Bearer 0123456789abcdef", "bearer 0123456789abcdef", "BEARER  0123456789abcdef "];
        for value in good {
            assert!(guard.check(&fields(&[(AUTHORIZATION, value), (HOST, "edge.example")])).is_ok(), "{value}");
        }
        let bad = ["Bearer 0123456789abcdeF", "Bearer", "Bearer ", "Basic 0123456789abcdef", "0123456789abcdef", ""];
        for value in bad {
            assert!(guard.check(&fields(&[(AUTHORIZATION, value), (HOST, "localhost")])).is_err(), "{value}");
        }
        assert!(guard.check(&fields(&[(HOST, "localhost")])).is_err());
        let key = |value| fields(&[(FASTLY_KEY, value)]);
        assert!(guard.check(&key("0123456789abcdef")).is_ok() && guard.check(&key("0123456789abcdeF")).is_err());
    }

    #[test]
    fn without_a_token_web_pages_are_refused() {
        let guard = Guard { token: ArcSwapOption::empty(), tcp: true };
        for host in ["localhost", "LOCALHOST:9901", "127.0.0.1:9901", "[::1]:9901", "127.8.8.8"] {
            assert!(guard.check(&fields(&[(HOST, host)])).is_ok(), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io", ""] {
            assert!(guard.check(&fields(&[(HOST, host)])).is_err(), "{host}");
        }
        assert!(guard.check(&fields(&[])).is_err());
        assert!(guard.check(&fields(&[(HOST, "localhost"), (ORIGIN, "http://localhost:9901")])).is_err());
        assert!(guard.check(&fields(&[(HOST, "localhost"), (SEC_FETCH_SITE, "cross-site")])).is_err());
        assert!(guard.check(&fields(&[(HOST, "localhost"), (SEC_FETCH_SITE, "none")])).is_ok());
    }
}
