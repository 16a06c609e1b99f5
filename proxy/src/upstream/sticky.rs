//! Sticky clients: a cookie says which endpoint served one first.

use pingora::http::RequestHeader;
use selvedge_config::Sticky;

use super::balance::key;
use super::endpoint::EndpointId;

/// The endpoint a request's cookie names; `None` for no cookie, or one we have not made.
pub(super) fn asked(rule: &Sticky, request: &RequestHeader) -> Option<EndpointId> {
    let value = key::cookie(request, &rule.cookie)?;
    std::str::from_utf8(value).ok().filter(|value| value.len() == 16)?.parse().ok()
}

/// The cookie for an endpoint (RFC 6265, 4.1). Scripts have no use for it, other sites neither.
pub(super) fn cookie(rule: &Sticky, endpoint: EndpointId, tls: bool) -> String {
    let age = rule.ttl.map(|ttl| format!("; Max-Age={}", ttl.as_secs().max(1))).unwrap_or_default();
    let secure = if tls { "; Secure" } else { "" };
    format!("{}={endpoint}; Path=/; HttpOnly; SameSite=Lax{age}{secure}", rule.cookie)
}
