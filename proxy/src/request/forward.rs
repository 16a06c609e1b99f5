//! Step 5: to an upstream.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http::{Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::authority::validate_request_authority;
use pingora::proxy::Session;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorType, OrErr, Result};
use selvedge_cache::rules::vary;
use selvedge_config::{HedgeAfter, RouteTimeouts};
use smallvec::SmallVec;

use super::deadline::{Deadline, TOTAL};
use super::filter::BodyFlow;
use super::mirror::Copied;
use super::{Edge, RequestCtx, actions, fail, origin_side, slices};
use crate::attempt::{self, Order, Terms};
use crate::chain::exchange::authority;
use crate::chain::exchange::facts::Contact;
use crate::cluster;
use crate::plan::{Route, Target};
use crate::upstream::http1::Exchange;
use crate::upstream::wear::{self, Kept};
use crate::upstream::{Ask, EndpointId, Lease, NoEndpoint, Upstream};

/// What is kept about a request that is on its way, where its upstream has deadlines or it is sent once more.
#[derive(Default)]
pub(crate) struct Sent {
    /// Where it has been.
    tried: SmallVec<[EndpointId; 3]>,
    /// How many attempts met a kept connection that was closed, and whether the last one did: nothing is known of the endpoint by that.
    stale: u32,
    was_stale: bool,
    /// When all of it has to be over.
    total: Option<tokio::time::Instant>,
    /// A copy for another upstream.
    pub(super) copied: Option<Copied>,
    /// Watches over the attempt that is made.
    pub(super) deadline: Option<Deadline>,
    /// The attempt that is made, where it is in our own hands.
    order: Option<Arc<Order>>,
    /// When it was sent to where its answer is measured; it might be sent to a second endpoint.
    hedged: Option<Instant>,
    /// Nothing is to follow the request on its connection of HTTP/1.
    last: bool,
    /// Its place among those whose connections are kept, where that is limited.
    kept: Option<Kept>,
    /// That it took too long is not the endpoint's fault.
    blameless: bool,
}

impl Sent {
    /// Another endpoint has been asked as well, and perhaps has answered first: what that means to the attempt.
    pub(super) fn settle(&mut self, lease: &mut Option<Lease>, attempts: &mut u32) {
        let Some(order) = &self.order else { return };
        if !order.asked_another() {
            return;
        }
        *attempts += 1;
        if let Some(second) = order.take_second() {
            if let Some(first) = lease.take() {
                second.tell(&first);
                self.tried.push(first.endpoint().id());
            }
            *lease = Some(second.place);
        }
    }
}

impl RequestCtx {
    /// A kept connection turned out to be closed: that is no attempt.
    pub(super) fn met_stale_connection(&mut self) {
        let sent = self.sent.get_or_insert_default();
        sent.stale += 1;
        sent.was_stale = true;
    }

    /// What has taken too long waits for the client, who owes the rest of its request: the endpoint is not judged by that.
    pub(super) fn waits_for_client(&mut self) {
        self.sent.get_or_insert_default().blameless = true;
    }

    /// Whether how it ended is not the endpoint's fault.
    pub(super) fn is_blameless(&self) -> bool {
        self.sent.as_ref().is_some_and(|sent| sent.blameless)
    }

    /// The limit of time that has passed, if one has.
    pub(super) fn passed(&self) -> Option<&'static str> {
        let sent = self.sent.as_ref()?;
        match (&sent.deadline, &sent.order) {
            (Some(deadline), _) => deadline.passed(),
            (None, Some(order)) => order.passed(),
            (None, None) => None,
        }
    }

    /// Attempts so far, as `retries` count them.
    pub(super) fn tries(&self) -> u32 {
        self.attempts - self.sent.as_ref().map_or(0, |sent| sent.stale)
    }

    /// Whether the time that the whole exchange may take has not passed.
    pub(super) fn has_time(&self) -> bool {
        self.sent.as_ref().and_then(|sent| sent.total).is_none_or(|total| tokio::time::Instant::now() < total)
    }
}

/// The endpoint to connect to.
///
/// # Errors
/// A filter sent a request of a fixed-response route to no upstream, no endpoint may be sent requests, there is no room for this one, or
/// its time is over.
pub(crate) async fn peer(session: &mut Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
    ctx.attempts += 1;
    let before = ctx.lease.take(); // What becomes of this attempt says nothing about the endpoint of the last one.
    if ctx.body == BodyFlow::Untouched {
        ctx.body_received = 0; // Pingora sends what it has read once more, through the same hook.
    }
    let route = Arc::clone(ctx.route()?);
    choose(session, &route, ctx);
    let upstream = route
        .upstream(ctx.upstream.as_deref())
        .ok_or_else(|| Error::explain(fail::NO_UPSTREAM, "the route has no upstream"))?;
    let ask =
        upstream.ask(session.req_header(), ctx.downstream.client.map(|client| client.ip()), ctx.plan.geo.as_deref());
    let own = is_ours(session, upstream, &route, ctx.tries());
    if let Some(lease) = before {
        let sent = ctx.sent.get_or_insert_default();
        (sent.deadline, sent.order, sent.hedged, sent.last, sent.kept) = (None, None, None, false, None);
        sent.blameless = false;
        if std::mem::take(&mut sent.was_stale) {
            drop(lease);
            let chosen = upstream.wait(&ask.avoiding(&sent.tried), sent.total).await;
            return chosen.map(|lease| leave_for(lease, &route, own, ctx)).map_err(|why| nowhere(upstream, why));
        }
        sent.tried.push(lease.endpoint().id());
        drop(lease);
        // Boxed, as all that is rare here: it would make every request's future larger.
        return Box::pin(again(upstream, &ask, &route, own, ctx)).await;
    }

    upstream.begin();
    if let Some(total) = limits_of(&route, upstream).total {
        ctx.sent.get_or_insert_default().total = Some(tokio::time::Instant::now() + total);
    }
    let end = ctx.sent.as_ref().and_then(|sent| sent.total);
    let lease = upstream.wait(&ask, end).await.map_err(|why| nowhere(upstream, why))?;
    Ok(leave_for(lease, &route, own, ctx))
}

/// How long the beginning of a response and all of it may take.
fn limits_of(route: &Route, upstream: &Upstream) -> Limits {
    let (own, others) = (route.timeouts.as_deref(), upstream.timeouts());
    Limits {
        first_byte: own.and_then(|own| own.first_byte).or(others.first_byte),
        total: own.and_then(|own| own.total).or(others.total),
    }
}

struct Limits {
    first_byte: Option<Duration>,
    total: Option<Duration>,
}

/// Whether the attempt is to be in our own hands; see [`crate::attempt`].
fn is_ours(session: &mut Session, upstream: &Upstream, route: &Route, tries: u32) -> bool {
    if upstream.shares_connections() {
        let limits = limits_of(route, upstream);
        if limits.first_byte.is_some() || limits.total.is_some() || upstream.wears_out_shared() {
            return true;
        }
        // To Pingora, an upstream that waits for the rest of a request is silent.
        if !session.is_upgrade_req() && !session.downstream_session.is_body_empty() {
            return true;
        }
    }
    upstream.hedge_rule().is_some() && tries == 1 && is_read(session)
}

/// Whether nothing but a response comes of a request, and there is nothing to it but its header.
fn is_read(session: &mut Session) -> bool {
    let request = session.req_header();
    matches!(request.method, Method::GET | Method::HEAD)
        && !request.headers.contains_key(header::UPGRADE)
        && session.downstream_session.is_body_empty()
}

/// Chooses among the upstreams of a route that has several.
fn choose(session: &Session, route: &Route, ctx: &mut RequestCtx) {
    if let (Target::Split(split), None) = (&route.target, &ctx.upstream) {
        let client = ctx.downstream.client.map(|client| client.ip());
        ctx.upstream = split.choose(session.req_header(), client).map(|upstream| upstream.name.to_string());
    }
}

/// Whether the request goes to an upstream that speaks HTTP/1.1, and may ask no second endpoint.
pub(super) fn to_http1(session: &Session, ctx: &mut RequestCtx) -> bool {
    let Some(route) = ctx.route.clone() else { return false };
    choose(session, &route, ctx);
    let upstream = route.upstream(ctx.upstream.as_deref());
    upstream.is_some_and(|upstream| !upstream.is_http2() && upstream.hedge_rule().is_none())
}

/// On the way to this endpoint.
fn leave_for(lease: Lease, route: &Route, own: bool, ctx: &mut RequestCtx) -> Box<HttpPeer> {
    let mut peer = Box::new(lease.peer());
    if let Some(timeouts) = &route.timeouts {
        tune(&mut peer, timeouts);
    }
    if own {
        attempt::mark(&mut peer);
    }
    ctx.lease = Some(lease);
    peer
}

/// What a route says of its connections.
fn tune(peer: &mut HttpPeer, timeouts: &RouteTimeouts) {
    let options = &mut peer.options;
    if timeouts.connect.is_some() {
        options.connection_timeout = timeouts.connect;
        options.total_connection_timeout = timeouts.connect;
    }
    if timeouts.read.is_some() {
        options.read_timeout = timeouts.read;
        options.write_timeout = timeouts.read;
    }
}

/// The endpoint for another attempt: one where the request has not been, or, after a pause, one where it has.
async fn again(
    upstream: &Upstream,
    ask: &Ask<'_>,
    route: &Route,
    own: bool,
    ctx: &mut RequestCtx,
) -> Result<Box<HttpPeer>> {
    upstream.count_retry();
    let Some(sent) = &ctx.sent else { return Err(nowhere(upstream, NoEndpoint::AllAvoided)) };
    let chosen = match upstream.wait(&ask.avoiding(&sent.tried), sent.total).await {
        Err(NoEndpoint::AllAvoided) => {
            let pause = upstream.backoff(ctx.tries());
            if !pause.is_zero() {
                let until = tokio::time::Instant::now() + pause;
                tokio::time::sleep_until(sent.total.map_or(until, |total| until.min(total))).await;
            }
            upstream.wait(ask, sent.total).await
        }
        chosen => chosen,
    };
    if !ctx.has_time() {
        return Err(Error::explain(ErrorType::ReadTimedout, TOTAL).into_up());
    }
    let lease = chosen.map_err(|why| nowhere(upstream, why))?;
    Ok(leave_for(lease, route, own, ctx))
}

/// As good as a failing connection: the cache may answer in its stead (RFC 9111, 4.2.4).
fn nowhere(upstream: &Upstream, why: NoEndpoint) -> Box<Error> {
    let kind = if why == NoEndpoint::Full { fail::NO_ROOM } else { fail::NO_ENDPOINT };
    Error::explain(kind, format!("upstream {}: {why}", upstream.name)).into_up()
}

/// Whether it is an answer to what was asked.
///
/// # Errors
/// The upstream changes to another protocol, and the client has not asked for that (RFC 9110, 7.8). Pingora would wait for what follows.
pub(crate) fn expects(session: &Session, response: &ResponseHeader) -> Result<()> {
    if response.status == StatusCode::SWITCHING_PROTOCOLS && !session.is_upgrade_req() {
        let error = Error::explain(ErrorType::InvalidHTTPHeader, "the upstream changes to a protocol nobody asked for");
        return Err(error.into_up());
    }
    Ok(())
}

/// The upstream's response has begun, or an interim one has come.
pub(crate) fn answered(response: &ResponseHeader, ctx: &mut RequestCtx) {
    let upgraded = response.status == StatusCode::SWITCHING_PROTOCOLS;
    if response.status.is_informational() && !upgraded {
        return;
    }
    if let Some(sent) = &mut ctx.sent {
        sent.settle(&mut ctx.lease, &mut ctx.attempts);
    }
    if let Some(lease) = &ctx.lease {
        lease.answered(response.status.as_u16());
        // An error may come sooner than any answer.
        if let Some(since) = ctx.sent.as_mut().and_then(|sent| sent.hedged.take())
            && response.status.as_u16() < 500
            && let Some(upstream) = lease.endpoint().upstream()
        {
            upstream.answered_in(since.elapsed());
        }
    }
    if let Some(sent) = &mut ctx.sent {
        match &sent.deadline {
            Some(_) if upgraded => sent.deadline = None, // It lasts as long as both sides want.
            Some(deadline) => deadline.begun(),
            None => {}
        }
    }
}

/// Some of the upstream's response has come, or its end.
///
/// # Errors
/// It is not the end: we have closed the connection because its time was over. A response that ends with its connection would pass for
/// whole.
pub(crate) fn received(end: bool, ctx: &mut RequestCtx) -> Result<Option<Duration>> {
    let Some(sent) = ctx.sent.as_mut().filter(|_| end) else { return Ok(None) };
    match sent.deadline.take() {
        Some(deadline) => match deadline.passed() {
            Some(limit) => {
                sent.deadline = Some(deadline);
                Err(Error::explain(ErrorType::ReadTimedout, limit).into_up())
            }
            None => Ok(None),
        },
        None => Ok(None),
    }
}

/// The request as the upstream gets it.
///
/// # Errors
/// Filters have left an authority that no server may be sent.
pub(crate) fn request(session: &Session, request: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    if ctx.sent.as_ref().is_some_and(|sent| sent.order.is_some()) {
        attempt::clean(request); // Where Pingora does not.
    }
    reconcile(session, request, ctx)?;
    if cluster::serve::is_visitor(ctx) {
        cluster::wire::strip(request);
    }
    slices::range(request, ctx)?;
    ctx.downstream.tell(request)?;
    request.append_header("Via", ctx.plan.node.via(ctx.received(session)))?;
    request.append_header("CDN-Loop", ctx.plan.node.cdn_loop())?;
    as_asked(session, request, ctx)?;
    actions::on_request(session, request, ctx)?;
    if ctx.sent.as_ref().is_some_and(|sent| sent.last) {
        request.insert_header(header::CONNECTION, "close")?;
    }
    Ok(())
}

/// Makes sure of the authority, where there are filters. Pingora leaves it alone on custom sessions: an absolute-form request of HTTP/1.0 has no Host yet, and filters
/// may have written an invalid one.
///
/// # Errors
/// Filters have left one that no server may be sent.
pub(crate) fn reconcile(session: &Session, request: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    if ctx.is_short && !ctx.has_new_authority {
        return Ok(()); // It is the one that came, and has been looked at.
    }
    if ctx.slot.is_some() || session.downstream_session.is_custom() {
        if !request.headers.contains_key(header::HOST) && request.uri.authority().is_some() {
            let host = authority(request).to_vec();
            request.insert_header(header::HOST, host)?;
        }
        validate_request_authority(request).map_err(Error::into_in)?;
        // Pingora takes it away there, too. Servers of gRPC ask for it, and HTTP/2 allows it (RFC 9113, 8.2.2).
        let trailers = session.req_header().headers.get(header::TE).filter(|value| value.as_bytes() == b"trailers");
        if let Some(trailers) = trailers.filter(|_| request.version == Version::HTTP_2) {
            request.insert_header(header::TE, trailers)?;
        }
    }
    Ok(())
}

/// Asks for the range that the client wants, where the route keeps ranges as they are asked for; Pingora asks for all of what is stored.
fn as_asked(session: &Session, request: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    if !session.cache.enabled() || !ctx.route()?.cache.as_ref().is_some_and(|rule| rule.policy.stores_ranges) {
        return Ok(());
    }
    // What is stored and stale is validated as what it is.
    let is_range = session.cache.maybe_cache_meta().is_none_or(|meta| meta.response_header().status == 206);
    match vary::range(session.req_header()) {
        Some(range) if is_range => request.insert_header(header::RANGE, range),
        _ => Ok(()),
    }
}

/// There is a connection: its time begins, and the filters may know to whom it is.
///
/// # Errors
/// The time it may take cannot be watched.
pub(crate) fn connected(
    session: &Session,
    peer: &HttpPeer,
    digest: Option<&Digest>,
    connection: RawFd,
    ctx: &mut RequestCtx,
) -> Result<()> {
    let own = ctx.route.as_ref().and_then(|route| route.timeouts.as_ref()).and_then(|timeouts| timeouts.first_byte);
    let first_byte = own.or_else(|| ctx.lease.as_ref()?.endpoint().timeouts().first_byte);
    let total = ctx.sent.as_ref().and_then(|sent| sent.total);
    let order = Order::of(digest);
    if let Some(slot) = &ctx.slot {
        slot.attempt.store(order.is_some(), Relaxed);
    }
    if let Some(place) = &ctx.leader {
        place.attempt.store(order.is_some(), Relaxed);
    }
    if let Some(web) = &ctx.web {
        web.attempt.store(order.is_some(), Relaxed);
    }
    if let Some(order) = order {
        let pool = ctx.lease.as_ref().and_then(|lease| lease.endpoint().rules().pool);
        order.set(Terms { first_byte: first_byte.map(|limit| tokio::time::Instant::now() + limit), total, pool });
        let measured = hedge(session, order, ctx);
        ctx.sent.get_or_insert_default().hedged = measured;
        ctx.sent.get_or_insert_default().order = Some(Arc::clone(order));
    } else if first_byte.is_some() || total.is_some() {
        let deadline = Deadline::start(connection, first_byte, total);
        let deadline = deadline.or_err(ErrorType::InternalError, "watching an upstream's time")?;
        ctx.sent.get_or_insert_default().deadline = Some(deadline);
    }
    ctx.tell(|known| {
        known.contact = Contact {
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
    origin_side::leave(ctx);
    Ok(())
}

/// A connection of Pingora's is there: whether anything may follow the request on it.
pub(crate) fn connected_by_pingora(
    edge: &Edge,
    peer: &HttpPeer,
    digest: Option<&Digest>,
    connection: RawFd,
    session: &Session,
    ctx: &mut RequestCtx,
) {
    let Some(rule) = ctx.lease.as_ref().and_then(|lease| lease.endpoint().rules().pool) else { return };
    if Order::of(digest).is_some() || peer.options.alpn.get_min_http_version() == 2 {
        return; // An attempt sees to it itself; HTTP/2 is only kept or not.
    }
    if session.is_upgrade_req() {
        return; // `Connection` asks for the upgrade then.
    }
    let mut last = wear::carries(&rule, connection, digest);
    let mut kept = None;
    if let Some(most) = rule.idle.filter(|_| !last) {
        kept = edge.keeping.one(peer.reuse_hash(), most);
        last = kept.is_none();
    }
    let sent = ctx.sent.get_or_insert_default();
    (sent.last, sent.kept) = (last, kept);
}

/// A connection of our own is there; see [`connected_by_pingora`].
pub(super) fn connected_by_us(exchange: &mut Exchange, ctx: &mut RequestCtx) {
    if let Some(rule) = ctx.lease.as_ref().and_then(|lease| lease.endpoint().rules().pool)
        && exchange.is_last(&rule)
    {
        ctx.sent.get_or_insert_default().last = true;
    }
}

/// Lets the attempt ask another endpoint when this one is silent, where the upstream says so. When it was sent, if it matters how long the
/// answer takes.
fn hedge(session: &Session, order: &Order, ctx: &RequestCtx) -> Option<Instant> {
    let request = session.req_header();
    let endpoint = ctx.lease.as_ref().map(Lease::endpoint)?;
    let upstream = endpoint.upstream()?;
    let rule = *upstream.hedge_rule()?;
    if ctx.tries() > 1 || !matches!(request.method, Method::GET | Method::HEAD) {
        return None;
    }
    let measured = matches!(rule.after, HedgeAfter::Quantile(_)).then(Instant::now);
    let Some(after) = upstream.begin_hedged(&rule) else { return measured };
    let ask = upstream.ask(request, ctx.downstream.client.map(|client| client.ip()), ctx.plan.geo.as_deref());
    let timeouts = ctx.route.as_ref().and_then(|route| route.timeouts.as_deref().copied());
    let tune = Box::new(move |peer: &mut HttpPeer| {
        if let Some(timeouts) = &timeouts {
            tune(peer, timeouts);
        }
    });
    order.hedge(upstream, ask, endpoint.id(), after, tune);
    measured
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
        None if !response.status.is_informational() => match ctx.endpoint_inside() {
            Some(endpoint) => endpoint.stick(session.req_header(), response, ctx.downstream.tls),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}
