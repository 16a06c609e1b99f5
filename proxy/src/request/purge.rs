//! `PURGE`: a URL is put out of the cache by asking for it with that method, where the client may (`cache.purge.allow`).

use http::HeaderMap;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use selvedge_cache::Scheme;
use serde_json::{Value, json};

use super::{Edge, RequestCtx, lookup, respond};
use crate::chain::exchange::authority;
use crate::purge::{self, Order, PurgeError};

/// Whether this is one. Without a cache it is a method like any other.
pub(crate) fn is_meant(request: &RequestHeader, ctx: &RequestCtx) -> bool {
    ctx.plan.cache.is_some() && request.method.as_str() == "PURGE"
}

/// `Fastly-Soft-Purge: 1`, as others have it too.
pub(crate) fn is_soft(headers: &HeaderMap) -> bool {
    headers.get("fastly-soft-purge").is_some_and(|value| value.as_bytes().trim_ascii() == b"1")
}

/// Purges, and says what was there.
pub(crate) async fn answer(edge: &Edge, session: &mut Session, ctx: &RequestCtx) -> Result<()> {
    let client = ctx.downstream.client.map(|client| client.ip().to_canonical());
    if !client.is_some_and(|client| ctx.plan.purgers.iter().any(|range| range.contains(&client))) {
        return write(session, 403, &json!({ "status": 403, "title": "This client may not purge" })).await;
    }
    let request = session.req_header();
    let host = String::from_utf8_lossy(authority(request)).into_owned();
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    let order = Order { urls: vec![format!("//{host}{target}")], soft: is_soft(&request.headers), ..Order::default() };

    // What the route of a GET has stored goes at once, and tells whether there was something.
    let mut met = 0;
    if let Some(route) = lookup::route_of_get(request, session.digest(), ctx, &edge.listener)
        && let (Some(cache), Some(rule)) = (ctx.plan.cache, &route.cache)
    {
        let scheme = if ctx.downstream.tls { Scheme::Https } else { Scheme::Http };
        met = cache.invalidate(rule.scope, scheme, &rule.policy.query, &host, &target, order.kind());
    }
    match purge::carry_out(&edge.current, &ctx.plan, &order).await {
        Ok(purged) => {
            let status = if met > 0 { 200 } else { 404 };
            write(session, status, &json!({ "status": status, "objects": met, "epoch": purged.epoch })).await
        }
        Err(PurgeError::Order(error)) => {
            write(
                session,
                400,
                &json!({ "status": 400, "title": "This cannot be purged", "detail": error.to_string() }),
            )
            .await
        }
        Err(error) => {
            let title = "The purge is in force, but would not survive a restart";
            write(session, 500, &json!({ "status": 500, "title": title, "detail": error.to_string() })).await
        }
    }
}

async fn write(session: &mut Session, status: u16, body: &Value) -> Result<()> {
    let body = body.to_string();
    let mut header = ResponseHeader::build(status, Some(3))?;
    header.insert_header(CACHE_CONTROL, "no-store")?;
    header.insert_header(CONTENT_TYPE, "application/json")?;
    header.set_content_length(body.len())?;
    respond::whole(&mut session.downstream_session, Box::new(header), body.into()).await
}
