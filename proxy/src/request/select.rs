//! Step 2: which route?

use std::sync::Arc;

use pingora::Result;
use pingora::http::RequestHeader;
use pingora::protocols::Digest;
use pingora::proxy::Session;

use super::{Edge, RequestCtx, respond};
use crate::chain::exchange::authority;
use crate::listener::ListenerFacts;
use crate::plan::{Asker, Route, Selected};
use crate::transport::Told;

/// The route of the request; `None` = nobody serves it.
pub(crate) fn route(edge: &Edge, session: &Session, ctx: &RequestCtx) -> Option<Arc<Route>> {
    match ctx.plan.select(&asker(session.req_header(), session.digest(), ctx, &edge.listener))? {
        Selected::Route(route) => Some(Arc::clone(route)),
        Selected::NoRoute => None,
    }
}

/// What the router may know of a request on a connection with this digest.
pub(crate) fn asker<'r>(
    request: &'r RequestHeader,
    digest: Option<&'r Digest>,
    ctx: &'r RequestCtx,
    listener: &ListenerFacts,
) -> Asker<'r> {
    let handshake = if ctx.plan.router.asks_for_sni() { digest.and_then(Told::client) } else { None };
    Asker {
        tls: ctx.downstream.tls,
        server_name: handshake.and_then(|handshake| handshake.server_name.as_deref()),
        client: ctx.downstream.client.map(|client| client.ip()),
        geo: ctx.plan.geo.as_deref(),
        ..Asker::new(listener.index, request)
    }
}

/// 404: no site answers for the host on this listener, or none of its routes matches. 421 (RFC 9110, 15.5.20), when one would if the
/// connection had been made for the host that is asked for: a client that uses one connection for several names makes another then.
pub(crate) async fn refuse(edge: &Edge, session: &mut Session, ctx: &RequestCtx) -> Result<bool> {
    if ctx.plan.router.asks_for_sni() && is_misdirected(edge, session, ctx) {
        respond::text(session, 421, "this connection was made for another name\n").await?;
    } else {
        respond::text(session, 404, "no route matches this request\n").await?;
    }
    Ok(true)
}

fn is_misdirected(edge: &Edge, session: &Session, ctx: &RequestCtx) -> bool {
    let Some(handshake) = session.digest().and_then(Told::client) else { return false };
    let host = String::from_utf8_lossy(without_port(authority(session.req_header()))).to_ascii_lowercase();
    if handshake.server_name.as_deref() == Some(&*host) {
        return false;
    }
    let asker = asker(session.req_header(), session.digest(), ctx, &edge.listener);
    matches!(ctx.plan.select(&Asker { server_name: Some(&host), ..asker }), Some(Selected::Route(_)))
}

/// A host without the port behind it; IPv6 addresses, which have colons too, are never asked for in a handshake.
fn without_port(host: &[u8]) -> &[u8] {
    host.split(|byte| *byte == b':').next().unwrap_or(host)
}
