//! Step 2: which route?

use std::sync::Arc;

use pingora::Result;
use pingora::http::RequestHeader;
use pingora::protocols::Digest;
use pingora::proxy::Session;

use super::{Edge, RequestCtx, respond};
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

/// 404: no site answers for the host on this listener, or none of its routes matches.
pub(crate) async fn refuse(session: &mut Session) -> Result<bool> {
    respond::text(session, 404, "no route matches this request\n").await?;
    Ok(true)
}
