//! Step 10: tell the filters, write one line, give back what was borrowed.

use http::Version;
use pingora::proxy::Session;
use pingora::{Error, ErrorSource};

use super::{Edge, RequestCtx, grpc_web, leader, lookup, witness};
use crate::chain::exchange::facts::Ended;
use crate::chain::session::FilteredSession;
use crate::cluster;
use crate::limits::Limit;
use crate::telemetry::{self, AccessLine};
use crate::transport::Told;
use crate::upstream::Failure;

/// Ends the request. Runs on every path, before Pingora decides about the connection.
pub(crate) async fn request(edge: &Edge, session: &mut Session, error: Option<&Error>, ctx: &mut RequestCtx) {
    leader::restore(session, ctx).await;
    if !ctx.is_inner() {
        witness::ended(edge, session, ctx);
    }
    if let Some(slot) = ctx.slot.take() {
        let told = slot.with_chain(|chain| {
            chain.state.failure = ctx.failure.or(slot.failure());
            chain.state.ends(|| Ended {
                request_bytes: ctx.body_received,
                response_bytes: session.body_bytes_sent() as u64,
                termination: error.filter(|error| *error.esource() == ErrorSource::Downstream).map(ToString::to_string),
            });
            chain.finish_now(&mut session.downstream_session)
        });
        if told == Some(false)
            && let Some(mut chain) = slot.lend()
        {
            Box::pin(chain.finish(&mut session.downstream_session)).await;
        }
        ctx.failure = ctx.failure.or(slot.failure());
        FilteredSession::restore(&mut session.downstream_session, &slot);
    }
    grpc_web::restore(session, ctx);

    if let Some(cache) = ctx.plan.cache
        && ctx.cache.gathers()
    {
        Box::pin(cache.store_gathered(&mut ctx.cache)).await;
    }
    if let Some(trace) = ctx.trace.take().filter(|_| !ctx.is_inner()) {
        telemetry::trace::write(&trace, ctx);
    }
    if let Some((lease, error)) =
        ctx.lease.as_ref().zip(error.filter(|error| *error.esource() == ErrorSource::Upstream))
        && Failure::of(error) != Failure::Connect // told when it was tried
        && !ctx.is_blameless()
    {
        lease.failed(Failure::of(error));
    }
    if session.subrequest_ctx.is_some() || ctx.is_inner() {
        return; // Nobody asked for it, or the outer half did.
    }
    // Of an HTTP/2 connection: streams that are opened only to be reset.
    if session.req_header().version == Version::HTTP_2
        && let Some(connection) = session.digest().and_then(Told::connection)
    {
        connection.closed(session.response_written().is_some());
    }
    if cluster::serve::is_visitor(ctx) {
        return; // The node that the client is connected to tells of it.
    }
    if error.is_some_and(Limit::is_idle) {
        ctx.plan.counters.limit(Limit::IdleTimeout);
    }
    ctx.plan.counters.request(session.response_written().map_or(0, |response| response.status.as_u16()));
    if let Some(result) = lookup::word(session, ctx) {
        ctx.plan.counters.cached(result);
    }
    if edge.access_log.is_on() {
        edge.access_log.write(&AccessLine::of(session, error, &edge.listener.name, ctx));
    }
}
