//! Step 2: which route?

use std::sync::Arc;

use pingora::Result;
use pingora::proxy::Session;

use super::{Edge, RequestCtx, respond};
use crate::plan::{Route, Selected};

/// The route of the request; `None` = nobody serves it.
pub(crate) fn route(edge: &Edge, session: &Session, ctx: &RequestCtx) -> Option<Arc<Route>> {
    match ctx.plan.select(edge.listener.index, session.req_header())? {
        Selected::Route(route) => Some(Arc::clone(route)),
        Selected::NoRoute => None,
    }
}

/// 404: no site answers for the host on this listener, or none of its routes matches.
pub(crate) async fn refuse(session: &mut Session) -> Result<bool> {
    respond::text(session, 404, "no route matches this request\n").await?;
    Ok(true)
}
