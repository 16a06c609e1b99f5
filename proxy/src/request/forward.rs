//! Step 5: to an upstream.

use std::time::Instant;

use http::{StatusCode, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::authority::validate_request_authority;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};

use super::filter::BodyFlow;
use super::{RequestCtx, actions, fail};
use crate::chain::exchange::authority;
use crate::chain::exchange::facts::Contact;
use crate::upstream::Failure;

/// How often a request is sent elsewhere when no connection can be made; nothing has been sent then, so any method may be.
const CONNECT_ATTEMPTS: u32 = 3;

/// The endpoint to connect to.
///
/// # Errors
/// A filter sent a request of a fixed-response route to no upstream, or no endpoint may be sent requests.
pub(crate) fn peer(session: &Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
    ctx.attempts += 1;
    ctx.lease = None; // What becomes of this attempt says nothing about the endpoint of the last one.
    if ctx.body == BodyFlow::Untouched {
        ctx.body_received = 0; // Pingora sends what it has read once more, through the same hook.
    }
    let route = ctx.route()?;
    let upstream = route
        .upstream(ctx.upstream.as_deref())
        .ok_or_else(|| Error::explain(fail::NO_UPSTREAM, "the route has no upstream"))?;
    let ask =
        upstream.ask(session.req_header(), ctx.downstream.client.map(|client| client.ip()), ctx.plan.geo.as_deref());
    let lease = upstream.choose(&ask).map_err(|why| {
        let why = format!("upstream {}: {why}", upstream.name);
        // As good as a failing connection: the cache may answer in its stead (RFC 9111, 4.2.4).
        Error::explain(fail::NO_ENDPOINT, why).into_up()
    })?;
    let peer = lease.peer();
    ctx.lease = Some(lease);
    Ok(Box::new(peer))
}

/// The upstream's response has begun, or an interim one has come.
pub(crate) fn answered(response: &ResponseHeader, ctx: &RequestCtx) {
    if let Some(lease) = &ctx.lease
        && (!response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS)
    {
        lease.answered(response.status.as_u16());
    }
}

/// The request as the upstream gets it.
///
/// # Errors
/// Filters have left an authority that no server may be sent.
pub(crate) fn request(session: &Session, request: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    // Pingora leaves authority alone on custom sessions: an absolute-form request of HTTP/1.0 has no Host yet, and filters may have
    // written an invalid one.
    if session.downstream_session.is_custom() {
        if !request.headers.contains_key(header::HOST) && request.uri.authority().is_some() {
            let host = authority(request).to_vec();
            request.insert_header(header::HOST, host)?;
        }
        validate_request_authority(request).map_err(Error::into_in)?;
    }

    ctx.downstream.tell(request)?;
    request.append_header(header::VIA, ctx.plan.node.via(session.req_header().version))?;
    actions::on_request(session, request, ctx)
}

/// There is a connection: the filters may know to whom.
pub(crate) fn connected(peer: &HttpPeer, digest: Option<&Digest>, ctx: &RequestCtx) {
    ctx.note(|state| {
        state.contact = Contact {
            attempts: ctx.attempts,
            address: peer._address.as_inet().copied(),
            socket: digest.and_then(|digest| digest.socket_digest.clone()),
            tls: digest.and_then(|digest| digest.ssl_digest.clone()),
            sni: peer.sni.clone(),
            since: Some(Instant::now()),
            latency: None,
            failure: None,
        };
    });
}

/// Keeps the client at the endpoint it has been served by, where the upstream says so.
///
/// # Errors
/// Never: the cookie is a valid header.
pub(crate) fn stick(session: &Session, response: &mut ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    match &ctx.lease {
        Some(lease) if !response.status.is_informational() => {
            lease.stick(session.req_header(), response, ctx.downstream.tls)
        }
        _ => Ok(()),
    }
}

/// No connection could be made: try the next endpoint, a few times.
pub(crate) fn retry(ctx: &RequestCtx, mut error: Box<Error>) -> Box<Error> {
    if let Some(lease) = &ctx.lease {
        lease.failed(Failure::of(&error));
    }
    ctx.note(|state| {
        state.contact.attempts = ctx.attempts;
        state.contact.address = ctx.lease.as_ref().and_then(|lease| lease.endpoint().address().as_inet());
        state.contact.failure = Some(error.to_string());
    });
    error.set_retry(ctx.attempts < CONNECT_ATTEMPTS);
    error
}
