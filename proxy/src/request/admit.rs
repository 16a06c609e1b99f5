//! Step 1: is the request one we take at all?

use std::time::Duration;

use http::header;
use pingora_error::{Error, ErrorType, Result};
use pingora_proxy::Session;

use crate::listener::ListenerFacts;

/// How long the rest of a request body is read after an answer that did not need it.
const DRAIN: Duration = Duration::from_secs(2);

/// Refuses what the listener does not take, and gives the session its limits.
pub(crate) fn check(session: &mut Session, listener: &ListenerFacts) -> Result<()> {
    let downstream = &mut session.downstream_session;
    downstream.set_keepalive(Some(listener.idle_timeout.as_secs().max(1)));
    downstream.set_read_timeout(Some(listener.idle_timeout));
    downstream.set_write_timeout(Some(listener.idle_timeout));
    // After an early answer the rest of an upload is read for this long, to keep the connection; then it is closed.
    downstream.set_total_drain_timeout(Some(DRAIN));
    // A second request in the same packet waits for its turn instead of ending the connection (RFC 9112, 9.3.2).
    downstream.set_pipelining_enabled(true);

    if announced_length(session).is_some_and(|length| length > listener.body_limit) {
        return Error::e_explain(ErrorType::HTTPStatus(413), "the announced body exceeds the listener's limit");
    }

    // HTTP/2 names the authority in the URI; filters, cache keys and HTTP/1 upstreams look for Host.
    let request = session.req_header_mut();
    if !request.headers.contains_key(header::HOST)
        && let Some(authority) = request.uri.authority().map(|authority| authority.as_str().to_owned())
    {
        request.insert_header(header::HOST, authority)?;
    }
    Ok(())
}

/// `Content-Length`, when there is one; Pingora has refused malformed ones.
fn announced_length(session: &Session) -> Option<u64> {
    session.req_header().headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}
