//! Step 1: is the request one we take at all?

use std::time::Duration;

use std::borrow::Cow;

use http::{HeaderValue, Method, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::authority::{RawTargetAuthority, is_http_family_scheme, raw_target_authority};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, OrErr, Result};

use selvedge_config::Paths;

use super::downstream::{Downstream, Peer};
use super::paths::BadPath;
use super::{RequestCtx, cdn_loop, hygiene, paths};
use crate::limits::Limit;
use crate::listener::{ListenerFacts, connection};
use crate::plan::Route;
use crate::tls::{CLIENT_CERT, CLIENT_CERT_CHAIN, Shown};
use crate::transport::Told;

/// How long the rest of a request body is read after an answer that did not need it.
const DRAIN: Duration = Duration::from_secs(2);

/// Refuses what the listener does not take, and gives the session its limits.
pub(crate) fn check(session: &mut Session, listener: &ListenerFacts, ctx: &mut RequestCtx) -> Result<()> {
    let address = session.client_addr().and_then(|address| address.as_inet()).copied();
    let peer = Peer { address, unix: listener.unix, tls: listener.tls };
    ctx.downstream = Downstream::of(peer, &session.req_header().headers, &ctx.plan.trusted_proxies);
    let downstream = &mut session.downstream_session;
    downstream.set_read_timeout(Some(listener.idle_timeout));
    downstream.set_write_timeout(Some(listener.idle_timeout));
    // After an early answer the rest of an upload is read for this long, to keep the connection; then it is closed.
    downstream.set_total_drain_timeout(Some(DRAIN));
    // Pingora would close the connection under a client that is still uploading, and so might reset the answer away. A client that waits
    // for a 100 may send its body or not after another answer (RFC 9110, 10.1.1): only then nobody can tell what comes next, until it has
    // got its 100.
    let expects = downstream.req_header().headers.contains_key(header::EXPECT);
    downstream.set_close_on_response_before_downstream_finish(expects);
    // A second request in the same packet waits for its turn instead of ending the connection (RFC 9112, 9.3.2).
    downstream.set_pipelining_enabled(true);

    if listener.judges_uploads() && has_body(session) {
        ctx.uploads = true;
        connection::body_is_to_come(!expects);
    }

    let raw = session.downstream_session.as_http1().map(|session| session.get_headers_raw_bytes());
    limits(session, raw.as_deref(), listener).map_err(|limit| limit.exceeded(&ctx.plan.counters))?;
    hygiene::check(session.req_header_mut(), raw.as_deref())?;
    client_certificate(session, listener)?;
    let request = session.req_header_mut();
    to_origin_form(request)?;
    name_host(request)?;
    match request.headers.get(header::HOST) {
        Some(host) if !hygiene::is_authority(host.as_bytes()) => {
            return Error::e_explain(ErrorType::HTTPStatus(400), "Host is not a host and a port (RFC 9110, 7.2)");
        }
        None if request.version == Version::HTTP_11 => {
            return Error::e_explain(ErrorType::HTTPStatus(400), "HTTP/1.1 without Host (RFC 9112, 3.2)");
        }
        _ => {}
    }
    cdn_loop::check(&request.headers, &ctx.plan.node.pseudonym)?;
    // After Host: an HTTP/2 target holds the authority too.
    one_path(request, &ctx.plan.paths)?;
    Ok(())
}

/// HTTP/2 names the authority in the URI; filters, cache keys and HTTP/1 upstreams look for Host.
pub(super) fn name_host(request: &mut RequestHeader) -> Result<()> {
    if !request.headers.contains_key(header::HOST)
        && let Some(authority) = request.uri.authority().map(|authority| authority.as_str().to_owned())
    {
        request.insert_header(header::HOST, authority)?;
    }
    Ok(())
}

/// Nobody but us says which certificate the client has shown (RFC 9440, 4): what came is removed, and said anew where that is wanted. Before
/// anything looks at the fields, so that `Vary: Client-Cert` holds for the cache; and again for a refresh in the background, which begins with
/// what the client has sent.
fn client_certificate(session: &mut Session, listener: &ListenerFacts) -> Result<()> {
    let request = session.req_header_mut();
    // Mostly there is neither: comparing the names is quicker than looking up both.
    if request.headers.keys().any(|name| name.as_str().starts_with(CLIENT_CERT.as_str())) {
        request.remove_header(&CLIENT_CERT);
        request.remove_header(&CLIENT_CERT_CHAIN);
    }
    if listener.tells_certificate
        && let Some(handshake) = session.digest().and_then(Told::client).cloned()
        && let Some(field) = handshake.certificate.as_ref().and_then(Shown::field)
    {
        session.req_header_mut().insert_header(CLIENT_CERT, field.clone())?;
    }
    Ok(())
}

/// Whether the request keeps the listener's limits. The HTTP/2 session sees to the size of its headers itself.
fn limits(session: &Session, raw: Option<&[u8]>, listener: &ListenerFacts) -> std::result::Result<(), Limit> {
    let request = session.req_header();
    if raw.is_some_and(|raw| raw.len() as u64 > listener.header_size) {
        return Err(Limit::HeaderSize);
    }
    if request.headers.len() > listener.header_count {
        return Err(Limit::HeaderCount);
    }
    if request.raw_path().len() > listener.uri_length {
        return Err(Limit::UriLength);
    }
    Ok(())
}

/// Refuses a body that is longer, by its announcement, than the route takes.
pub(crate) fn length(session: &Session, route: &Route, listener: &ListenerFacts, ctx: &mut RequestCtx) -> Result<()> {
    ctx.body_limit = route.body_limit.unwrap_or(listener.body_limit);
    match announced_length(session) {
        Some(length) if length > ctx.body_limit => Err(Limit::Body.exceeded(&ctx.plan.counters)),
        _ => Ok(()),
    }
}

/// Writes the path as everybody reads it; see [`paths`].
fn one_path(request: &mut RequestHeader, policy: &Paths) -> Result<()> {
    let target = request.raw_path();
    if target == b"*" && request.method == Method::OPTIONS {
        return Ok(()); // RFC 9112, 3.2.4
    }
    let refuse = |why| Error::e_explain(ErrorType::HTTPStatus(400), why);
    if target.first() != Some(&b'/') {
        return refuse("the target is neither a path nor a URI (RFC 9112, 3.2)");
    }
    let query = memchr::memchr(b'?', target).unwrap_or(target.len());
    // Pingora encodes blanks in the target, the one before a second version too.
    if memchr::memmem::find(target, b"%20HTTP/").is_some() {
        return refuse("more than a target in the request line (RFC 9112, 3)");
    }
    match paths::normal(&target[..query], policy) {
        Ok(Cow::Borrowed(_)) => Ok(()),
        Ok(Cow::Owned(path)) if path == target[..query] => Ok(()),
        Ok(Cow::Owned(mut path)) => {
            path.extend(&target[query..]);
            request.set_raw_path(&path)
        }
        Err(BadPath(why)) => refuse(why),
    }
}

/// Makes an absolute-form target (RFC 9112, 3.2.2) what it means: an origin-form target, and the authority in Host. Routes, filters and
/// cache keys then see one form only, and so does the origin. Pingora has refused a Host that says something else.
fn to_origin_form(request: &mut RequestHeader) -> Result<()> {
    let RawTargetAuthority::Absolute { scheme, authority, path_and_query } = raw_target_authority(request.raw_path())
    else {
        return Ok(());
    };
    if !is_http_family_scheme(scheme) {
        return Error::e_explain(ErrorType::HTTPStatus(400), "a URI of another scheme (RFC 9110, 7.4)");
    }
    let authority =
        HeaderValue::from_bytes(authority).or_err(ErrorType::InvalidHTTPHeader, "the target's authority")?;
    let target = match path_and_query {
        [] if request.method == Method::OPTIONS => b"*".to_vec(), // RFC 9112, 3.2.4
        [b'/', ..] => path_and_query.to_vec(),
        query => [b"/", query].concat(),
    };
    request.insert_header(header::HOST, authority)?;
    request.set_raw_path(&target)
}

/// Whether a body is to come, or may.
fn has_body(session: &mut Session) -> bool {
    let request = session.req_header();
    if request.version == Version::HTTP_2 {
        return !session.is_body_empty();
    }
    request.headers.contains_key(header::TRANSFER_ENCODING)
        || announced_length(session).is_some_and(|length| length > 0)
}

/// `Content-Length`, when there is one; Pingora has refused malformed ones.
fn announced_length(session: &Session) -> Option<u64> {
    session.req_header().headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}
