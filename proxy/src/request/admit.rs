//! Step 1: is the request one we take at all?

use std::time::Duration;

use http::{HeaderValue, Method, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::authority::{RawTargetAuthority, raw_target_authority};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, OrErr, Result};

use super::RequestCtx;
use crate::listener::ListenerFacts;

/// How long the rest of a request body is read after an answer that did not need it.
const DRAIN: Duration = Duration::from_secs(2);

/// Refuses what the listener does not take, and gives the session its limits.
pub(crate) fn check(session: &mut Session, listener: &ListenerFacts, ctx: &mut RequestCtx) -> Result<()> {
    ctx.client = session.client_addr().and_then(|address| address.as_inet()).copied();
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

    if announced_length(session).is_some_and(|length| length > listener.body_limit) {
        return Error::e_explain(ErrorType::HTTPStatus(413), "the announced body exceeds the listener's limit");
    }

    let request = session.req_header_mut();
    to_origin_form(request)?;
    // HTTP/2 names the authority in the URI; filters, cache keys and HTTP/1 upstreams look for Host.
    if !request.headers.contains_key(header::HOST)
        && let Some(authority) = request.uri.authority().map(|authority| authority.as_str().to_owned())
    {
        request.insert_header(header::HOST, authority)?;
    }
    if request.version == Version::HTTP_11 && !request.headers.contains_key(header::HOST) {
        return Error::e_explain(ErrorType::HTTPStatus(400), "HTTP/1.1 without Host (RFC 9112, 3.2)");
    }
    Ok(())
}

/// Makes an absolute-form target (RFC 9112, 3.2.2) what it means: an origin-form target, and the authority in Host. Routes, filters and
/// cache keys then see one form only, and so does the origin. Pingora has refused a Host that says something else.
fn to_origin_form(request: &mut RequestHeader) -> Result<()> {
    let RawTargetAuthority::Absolute { authority, path_and_query, .. } = raw_target_authority(request.raw_path())
    else {
        return Ok(());
    };
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

/// `Content-Length`, when there is one; Pingora has refused malformed ones.
fn announced_length(session: &Session) -> Option<u64> {
    session.req_header().headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}
