//! Another node asks this one, at the internal listener. Its request goes the way of any other, but for what the node that was asked first
//! has done already: limits of clients, the filters, what is added to responses. It has a route, a key, and the client's address with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderValue, header};
use pingora::http::ResponseHeader;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use selvedge_cache::Wishes;

use super::counts::Served;
use super::{Visitor, ask, messages, wire};
use crate::listener::ListenerFacts;
use crate::request::downstream::Downstream;
use crate::request::slices::Slice;
use crate::request::{RequestCtx, admit, respond};
use crate::tls::{CLIENT_CERT, CLIENT_CERT_CHAIN};

/// The status of answers that say nothing about what was asked for (RFC 9110, 15.5.20). Above 499 the asking node might answer with
/// something stale instead of asking the origin.
pub(crate) const REFUSAL: u16 = 421;

/// The longest a node may want to wait.
const WAIT_MAX: Duration = Duration::from_secs(600);

tokio::task_local! {
    /// Whether the answer on this stream has begun.
    static BEGUN: Arc<AtomicBool>;
}

/// Takes a request of another node: reads what it says beside the request.
///
/// # Errors
/// It is no request that a node sends, or it has been here already.
pub(crate) fn admit(session: &mut Session, listener: &ListenerFacts, ctx: &mut RequestCtx) -> Result<()> {
    // The node that the client is connected to has said which certificate it has shown.
    let told = [CLIENT_CERT, CLIENT_CERT_CHAIN].map(|name| (session.req_header().headers.get(&name).cloned(), name));
    admit::check(session, listener, ctx)?;
    for (value, name) in told {
        if let Some(value) = value {
            session.req_header_mut().insert_header(name, value)?;
        }
    }

    let headers = &session.req_header().headers;
    let Some(route) = headers.get(wire::ROUTE) else { return Ok(()) }; // A message.
    let bad = |what: &'static str| Error::explain(ErrorType::HTTPStatus(400), what);
    let route = wire::unhex(route.as_bytes()).ok_or_else(|| bad("no route"))?;
    let key = wire::one(headers, &wire::KEY).and_then(|key| wire::unhex(key.as_bytes()));
    let key = key.ok_or_else(|| bad("no key"))?;
    let hops = wire::hops(headers).ok_or_else(|| bad("no hops"))?;
    let from_outside = match wire::one(headers, &wire::CIRCLE).map(HeaderValue::as_bytes) {
        Some(b"peers") => false,
        Some(b"region") => true,
        _ => return Err(bad("no circle")),
    };
    let search = wire::one(headers, &wire::SEARCH).and_then(|field| field.to_str().ok()).map(str::to_owned);
    let upstream = wire::one(headers, &wire::UPSTREAM).and_then(|name| name.to_str().ok()).map(str::to_owned);
    let wait = wire::number(headers, &wire::WAIT).map(Duration::from_millis);
    let lifetime = wire::number(headers, &wire::LIFETIME).map(Duration::from_millis);

    let newer = wire::number(headers, &wire::NEWER);
    let slice = wire::one(headers, &wire::SLICE).map(|slice| Slice::of_text(slice.to_str().unwrap_or_default()));
    ctx.slice = slice.map(|slice| slice.map(Box::new).ok_or_else(|| bad("no slice"))).transpose()?;

    let peer = session.client_addr().and_then(|address| address.as_inet()).copied();
    ctx.downstream = Downstream::of_node(peer, listener.tls, headers, &ctx.plan.trusted_proxies);
    let own = ctx.plan.cluster.as_ref().is_some_and(|cluster| hops.iter().any(|hop| **hop == *cluster.name));
    ctx.cache.wish(Wishes { lifetime, ..Wishes::default() });
    ctx.cache.use_key(key);
    if let Some(search) = search {
        ctx.cache.use_search(&search);
    }
    if let (Some(newer), Some(cache)) = (newer, ctx.plan.cache) {
        cache.is_asked_for_newer(newer, &mut ctx.cache);
    }
    ctx.upstream = upstream;
    ctx.travel.get_or_insert_default().visitor = Some(Visitor { hops, from_outside, route, wait });
    if own {
        if let Some(cluster) = &ctx.plan.cluster {
            cluster.counts.served(Served::Loop);
        }
        return Error::e_explain(ErrorType::HTTPStatus(508), "the request has been here already");
    }
    Ok(())
}

/// Finds the route that another node asks for; true when the request was answered: it has none here, or it is a message.
///
/// # Errors
/// The connection failed.
pub(crate) async fn begin(session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
    let plan = Arc::clone(&ctx.plan);
    let Some(cluster) = &plan.cluster else {
        return respond::text(session, REFUSAL, "no cluster\n").await.map(|()| true);
    };
    let Some(visitor) = ctx.travel.as_ref().and_then(|travel| travel.visitor.as_ref()) else {
        return messages::receive(session, cluster).await.map(|()| true);
    };
    match cluster.routes.get(&visitor.route) {
        Some(route) if ctx.upstream.as_deref().is_none_or(|name| route.knows_upstream(name)) => {
            ctx.route = Some(Arc::clone(route));
            Ok(false)
        }
        _ => {
            cluster.counts.served(Served::NoRoute);
            respond::text(session, REFUSAL, "no such route\n").await.map(|()| true)
        }
    }
}

/// Whether the request is another node's.
pub(crate) fn is_visitor(ctx: &RequestCtx) -> bool {
    ctx.travel.as_ref().is_some_and(|travel| travel.is_visitor())
}

/// Says to another node that this is an answer, and no failure of this node's.
///
/// # Errors
/// The response has too many fields.
pub(crate) fn mark(session: &Session, response: &mut ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    if !is_visitor(ctx) {
        return Ok(());
    }
    if let Some(cluster) = &ctx.plan.cluster
        && session.subrequest_ctx.is_none()
    {
        cluster.counts.served(Served::Answered);
    }
    let _ = BEGUN.try_with(|begun| begun.store(true, Relaxed)); // There is none in the background.
    let Some(cache) = ctx.plan.cache else { return Ok(()) };
    let hit = cache.status(&session.cache, &ctx.cache, "").hit;
    response.insert_header(wire::EPOCH, cache.epoch_of_answer(&session.cache, &ctx.cache).to_string())?;
    response.insert_header(wire::ANSWER, if hit { ask::HIT } else { ask::MISS })?;
    if let Some(date) = response.headers.get(header::DATE).cloned() {
        response.insert_header(wire::DATE, date)?;
    }
    Ok(())
}

/// How long the node waits that has opened this stream; `None` = it does not say.
pub(crate) fn wait(session: &HttpSession) -> Option<Duration> {
    let wait = wire::number(&session.req_header().headers, &wire::WAIT).map(Duration::from_millis);
    wait.filter(|wait| *wait <= WAIT_MAX)
}

/// Serves a stream of another node, for as long as that waits: an answer that has not begun by then is given up, and the stream reset. If
/// others wait here for the same fetch, one of them fetches anew.
pub(crate) async fn in_time<R>(wait: Option<Duration>, serve: impl Future<Output = R>) -> Option<R> {
    let begun = Arc::new(AtomicBool::new(false));
    let served = BEGUN.scope(Arc::clone(&begun), serve);
    let Some(wait) = wait else { return Some(served.await) };
    tokio::pin!(served);
    tokio::select! {
        biased;
        done = &mut served => return Some(done),
        () = tokio::time::sleep(wait) => {}
    }
    if begun.load(Relaxed) {
        return Some(served.await);
    }
    None
}
