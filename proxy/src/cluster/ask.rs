//! This node asks another, in place of an upstream. Whatever comes of that, the client does not notice: the next owner is asked, or the
//! origin.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use http::header::DATE;
use http::{HeaderValue, StatusCode, header};
use pingora::cache::{CacheKey, CachePhase};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};

use super::counts::Met;
use super::{Asking, Cluster, Travel, Way, wire};
use crate::request::RequestCtx;
use crate::request::deadline::Deadline;
use crate::request::forward;
use crate::upstream::Failure;

/// How many nodes of a circle are asked for one request.
const ATTEMPTS: u32 = 2;

/// How many kept connections to nodes may turn out to be closed, for one request. Each attempt takes one out of the pool.
const STALE_CONNECTIONS_MAX: u32 = 4;

/// A node that is alive says itself that an answer comes too late ([`super::serve::in_time`]). One that has not done so for this long after
/// its time has nothing to say any more, and neither has the connection to it, which others may wait on.
const GRACE: Duration = Duration::from_secs(1);

/// What may be on its way on one stream, and on all of a connection: a response that nobody reads must not hold up the others.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;

/// The response is a node's own refusal, which is not taken.
const REFUSED: ErrorType = ErrorType::Custom("NodeRefused");

/// Finds out where a request goes if it finds nothing here, and marks its key by that; see [`selvedge_cache::Towards`].
pub(crate) fn find_way(key: &mut CacheKey, ctx: &mut RequestCtx) {
    let Some((cluster, primary)) = ctx.plan.cluster.as_ref().zip(ctx.cache.key()) else { return };
    let mut first = [0; 8];
    first.copy_from_slice(&primary[..8]);
    let hash = u64::from_le_bytes(first);
    let travel = ctx.travel.get_or_insert_default();
    travel.key = hash;
    travel.way = match &travel.visitor {
        Some(visitor) if visitor.from_outside => Way::Origin,
        Some(_) => cluster.as_owner(),
        None if cluster.is_owner(hash) => cluster.as_owner(),
        None => Way::Peers,
    };
    if let Some(towards) = travel.way.towards() {
        key.extensions.insert(towards);
    }
}

impl Cluster {
    /// Whether this node owns a key, or there is nobody to ask.
    fn is_owner(&self, key: u64) -> bool {
        let Some(circle) = &self.peers else { return true };
        match circle.upstream.look(&circle.upstream.ask_of_key(key)) {
            Ok(endpoint) => circle.is_own(&endpoint, &self.name),
            Err(_) => true,
        }
    }
}

/// The node that is asked; `None` = the origin is.
pub(crate) fn peer(session: &Session, ctx: &mut RequestCtx) -> Option<Box<HttpPeer>> {
    let cluster = ctx.plan.cluster.as_ref()?;
    let travel = ctx.travel.as_deref_mut()?;
    travel.asking = None;
    // Only what may be stored has an owner: anything else would come by here for nothing.
    let fills = matches!(
        session.cache.phase(),
        CachePhase::Miss | CachePhase::Stale | CachePhase::StaleUpdating | CachePhase::Expired
    );
    if !fills {
        return None;
    }
    let since = *travel.since.get_or_insert_with(Instant::now);
    // Who waits for this node is to have an answer, from the origin at last, before its own time is over.
    let waiting = travel.visitor.as_ref().and_then(|visitor| visitor.wait).map(|wait| wait / 2);
    let budget = waiting.map_or(cluster.deadlines.budget, |wait| wait.min(cluster.deadlines.budget));
    let peer = loop {
        let Some(circle) = cluster.circle(travel.way) else { break None };
        let left = budget.saturating_sub(since.elapsed());
        if left.is_zero() {
            travel.way = Way::Origin;
            break None;
        }
        let lease = if travel.attempts < ATTEMPTS {
            circle.upstream.choose(&circle.upstream.ask_of_key(travel.key).avoiding(&travel.tried)).ok()
        } else {
            None
        };
        // Who is next is this node itself: it does what an owner does.
        let other = lease.filter(|lease| {
            let label = circle.label(lease.endpoint());
            let visited = travel.visitor.as_ref().is_some_and(|visitor| visitor.hops.contains(&label));
            !circle.is_own(lease.endpoint(), &cluster.name) && !visited
        });
        let Some(lease) = other else {
            travel.up(cluster);
            continue;
        };
        travel.attempts += 1;
        travel.tried.push(lease.endpoint().id());
        let mut peer = Box::new(lease.peer());
        let connect = cluster.deadlines.connect.min(left);
        peer.options.h2_stream_window_size = Some(STREAM_WINDOW);
        peer.options.h2_connection_window_size = Some(CONNECTION_WINDOW);
        peer.options.connection_timeout = Some(connect);
        peer.options.total_connection_timeout = Some(connect);
        let label = circle.label(lease.endpoint());
        let first_byte = cluster.deadlines.first_byte.min(left);
        travel.asking = Some(Asking {
            lease,
            circle: travel.way.circle(),
            label,
            since: Instant::now(),
            first_byte,
            deadline: None,
            begun: false,
        });
        break Some(peer);
    };
    if peer.is_none() && !travel.tried.is_empty() {
        cluster.counts.went_directly();
    }
    // What another node owns is kept here for a moment only.
    let short = (travel.way == Way::Peers).then_some(cluster.hot);
    if peer.is_some() {
        ctx.cache.answered_by_peer(short);
    } else {
        ctx.cache.answered_by_origin();
    }
    peer
}

impl Travel {
    /// The next way on.
    fn up(&mut self, cluster: &Cluster) {
        self.attempts = 0;
        self.way = match self.way {
            Way::Peers => cluster.as_owner(),
            Way::Region | Way::Origin => Way::Origin,
        };
    }
}

/// Whether the request is on its way to another node.
pub(crate) fn is_asking(ctx: &RequestCtx) -> bool {
    ctx.travel.as_ref().is_some_and(|travel| travel.is_asking())
}

/// The request as the other node gets it: as the cache has looked it up, and what it takes to do the same there.
///
/// # Errors
/// It cannot be written.
pub(crate) fn request(session: &Session, request: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    let no_way = || Error::explain(ErrorType::InternalError, "asking a node without a way to it");
    let cluster = ctx.plan.cluster.as_ref().ok_or_else(no_way)?;
    let travel = ctx.travel.as_deref().ok_or_else(no_way)?;
    let asking = travel.asking.as_ref().ok_or_else(no_way)?;
    let rule = ctx.route()?.cache.as_ref().ok_or_else(no_way)?;
    let key = ctx.cache.key().ok_or_else(no_way)?;

    forward::reconcile(session, request, ctx)?;
    wire::strip(request);
    ctx.downstream.tell(request)?;
    request.append_header(header::VIA, ctx.plan.node.via(session.req_header().version))?;
    request.insert_header(wire::ROUTE, wire::hex(&rule.identity))?;
    request.insert_header(wire::KEY, wire::hex(&key))?;
    if let Some(search) = ctx.cache.search() {
        request.insert_header(wire::SEARCH, search)?;
    }
    request.insert_header(wire::CIRCLE, if travel.way == Way::Peers { "peers" } else { "region" })?;
    request.insert_header(wire::WAIT, asking.first_byte.as_millis().to_string())?;
    let mut hops = travel.visitor.as_ref().map(|visitor| visitor.hops.join(", ") + ", ").unwrap_or_default();
    hops.push_str(&cluster.name);
    request.insert_header(wire::HOPS, hops)?;
    if let Some(upstream) = &ctx.upstream {
        request.insert_header(wire::UPSTREAM, upstream.as_str())?;
    }
    if let Some(lifetime) = ctx.cache.wishes().and_then(|wishes| wishes.lifetime) {
        request.insert_header(wire::LIFETIME, lifetime.as_millis().to_string())?;
    }
    if let Some(cache) = ctx.plan.cache {
        let outdated = cache.outdated_until(session.downstream_session.req_header(), &ctx.cache);
        if outdated != 0 {
            request.insert_header(wire::NEWER, outdated.to_string())?;
        }
    }
    if let Some(slice) = &ctx.slice {
        request.insert_header(wire::SLICE, slice.to_text())?;
    }
    Ok(())
}

/// There is a connection to the node.
pub(crate) fn connected(connection: RawFd, ctx: &mut RequestCtx) {
    let Some(asking) = ctx.travel.as_deref_mut().and_then(|travel| travel.asking.as_mut()) else { return };
    // Without a file descriptor left there are worse troubles than a node that is silent.
    asking.deadline = Deadline::start(connection, Some(asking.first_byte + GRACE), None).ok();
}

/// No connection could be made.
pub(crate) fn unconnected(ctx: &mut RequestCtx, mut error: Box<Error>) -> Box<Error> {
    note(ctx, Some(Failure::Connect), Met::Failed);
    error.set_retry(true);
    error
}

/// The exchange with the node broke off.
pub(crate) fn broken(session: &Session, ctx: &mut RequestCtx, mut error: Box<Error>, reused: bool) -> Box<Error> {
    if *error.etype() == REFUSED {
        return error; // Decided already.
    }
    if *error.esource() != ErrorSource::Upstream {
        error.set_retry(false);
        return error;
    }
    let Some(travel) = ctx.travel.as_deref_mut() else { return error };
    let unseen = session.response_written().is_none_or(|written| written.status.is_informational());
    let Some(asking) = &travel.asking else { return error };
    let silent = asking.deadline.as_ref().and_then(Deadline::passed).is_some();
    // A kept connection that the node closed as we sent on it, perhaps because it has started anew: that is no attempt.
    if reused && unseen && !asking.begun && !silent && travel.stale < STALE_CONNECTIONS_MAX {
        let asked_just_now = asking.since.elapsed() < asking.first_byte / 2;
        if asked_just_now {
            travel.stale += 1;
            travel.tried.pop();
            travel.attempts -= 1;
            error.set_retry(true);
            return error;
        }
    }
    let late = !silent && !asking.begun && asking.since.elapsed() >= asking.first_byte;
    if late {
        // The node is well; it is the origin that takes its time, and another node would wait for it just so.
        travel.way = Way::Origin;
        note(ctx, None, Met::Late);
    } else {
        if silent {
            travel.way = Way::Origin;
        }
        note(ctx, Some(Failure::of(&error)), Met::Failed);
    }
    error.set_retry(unseen);
    error
}

/// Counts what came of asking the node, and tells it to those who choose nodes if it has failed.
fn note(ctx: &RequestCtx, how: Option<Failure>, met: Met) {
    let Some(cluster) = &ctx.plan.cluster else { return };
    let Some(travel) = ctx.travel.as_deref() else { return };
    let Some(asking) = &travel.asking else { return };
    cluster.counts.met(asking.circle, &asking.label, met);
    if let Some(how) = how {
        asking.lease.failed(how);
    }
}

/// The node's response has begun.
///
/// # Errors
/// It is a refusal, or older than what is known here to be out of date: the next is asked.
pub(crate) fn answered(session: &Session, response: &mut ResponseHeader, ctx: &mut RequestCtx) -> Result<()> {
    if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(());
    }
    let Some(asking) = ctx.travel.as_deref_mut().and_then(|travel| travel.asking.as_mut()) else { return Ok(()) };
    asking.begun = true;
    if let Some(deadline) = &asking.deadline {
        deadline.begun();
    }
    asking.lease.answered(200); // The node is well, whatever the origin says.
    let Some(answer) = response.remove_header(&wire::ANSWER) else {
        note(ctx, None, Met::Refused);
        let mut error = Error::explain(REFUSED, format!("a node refuses, with status {}", response.status)).into_up();
        error.set_retry(true);
        return Err(error);
    };
    // Without one nobody knows what it was purged by: then it counts as purged by everything.
    let epoch = wire::number_in(response.remove_header(&wire::EPOCH).as_ref());
    let epoch = epoch.unwrap_or(0);
    let request = session.downstream_session.req_header();
    // A 304 is about what is stored here, which was found to be of use.
    if response.status != StatusCode::NOT_MODIFIED
        && ctx.plan.cache.is_some_and(|cache| cache.is_outdated(request, response, epoch, &ctx.cache))
    {
        note(ctx, None, Met::Refused);
        let mut error = Error::explain(REFUSED, "what a node has is out of date").into_up();
        error.set_retry(true);
        return Err(error);
    }
    ctx.cache.fetched_at(epoch);
    let met = if answer == HeaderValue::from_static(HIT) { Met::Hit } else { Met::Miss };
    note(ctx, None, met);
    if let Some(date) = response.remove_header(&wire::DATE) {
        response.insert_header(DATE, date)?;
    }
    Ok(())
}

/// What [`wire::ANSWER`] says of a response that was there.
pub(crate) const HIT: &str = "hit";
/// Of one that was fetched.
pub(crate) const MISS: &str = "miss";
