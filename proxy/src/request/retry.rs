//! Step 5, once more: what an upstream's failure is followed by. `retries` of the upstream say what is tried again; what may be lost or
//! done twice by it, HTTP says.

use http::StatusCode;
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use selvedge_config::{Retries, RetryOn};

use super::{RequestCtx, lookup, origin_side};
use crate::limits::Limit;
use crate::upstream::Failure;

/// The status of a response that is not taken, because another attempt is made.
const NOT_TAKEN: ErrorType = ErrorType::Custom("ResponseNotTaken");

/// How often a request goes to kept connections that turn out to be closed. Each attempt takes a closed one out of the pool.
const STALE_CONNECTIONS_MAX: u32 = 8;

/// The most attempts there can be, whatever the reasons: what Pingora is told.
pub(crate) const ATTEMPTS_MAX: usize = 20;

/// No connection could be made: nothing was sent, so any method is tried again, and no budget is asked.
pub(crate) fn unconnected(session: &Session, ctx: &RequestCtx, mut error: Box<Error>) -> Box<Error> {
    let Some(lease) = &ctx.lease else { return error };
    lease.failed(Failure::of(&error));
    ctx.tell(|known| {
        known.contact.attempts = ctx.attempts;
        known.contact.address = lease.endpoint().address().as_inet();
        known.contact.failure = Some(error.to_string());
    });
    origin_side::leave(ctx);
    let rules = &lease.endpoint().rules().retries;
    error.set_retry(ctx.tries() < u32::from(rules.attempts) && rules.when.contains(&RetryOn::Connect));
    if !error.retry() {
        lookup::failed(session, ctx, &error);
    }
    error
}

/// The exchange broke off after the connection was there.
pub(crate) fn broken(
    session: &mut Session,
    ctx: &mut RequestCtx,
    peer: &HttpPeer,
    error: Box<Error>,
    reused: bool,
) -> Box<Error> {
    if *error.etype() == NOT_TAKEN {
        return error; // Decided, and the endpoint has been judged by its status.
    }
    let passed = ctx.passed();
    let mut error = match passed {
        Some(limit) => Error::explain(ErrorType::ReadTimedout, limit).into_up(),
        None => error.more_context(format!("Peer: {peer}")),
    };
    if *error.etype() == ErrorType::ReadTimedout && *error.esource() == ErrorSource::Upstream && awaits_client(session)
    {
        ctx.waits_for_client();
        if passed.is_none() && !has_begun(session) {
            error = Limit::IdleTimeout.exceeded(&ctx.plan.counters);
            lookup::failed(session, ctx, &error);
            return error;
        }
    }
    if let Some(sent) = &mut ctx.sent {
        sent.settle(&mut ctx.lease, &mut ctx.attempts);
    }
    let Some(lease) = ctx.lease.as_ref().filter(|_| *error.esource() == ErrorSource::Upstream) else {
        error.set_retry(false);
        return error;
    };

    // A kept connection that the upstream closed as we sent on it says nothing about the upstream. Only what is idempotent is sent again:
    // nobody knows whether it was read (RFC 9110, 9.2.2).
    let whole = can_be_sent_again(session);
    if whole && session.req_header().method.is_idempotent() && ctx.attempts < STALE_CONNECTIONS_MAX {
        error.retry.decide_reuse(reused);
        if error.retry() {
            ctx.met_stale_connection();
            return error;
        }
    }

    let rules = &lease.endpoint().rules().retries;
    let failure = Failure::of(&error);
    let wanted = rules.when.contains(match failure {
        Failure::Timeout => &RetryOn::Timeout,
        Failure::Connect | Failure::Broken => &RetryOn::Reset,
    });
    let again = wanted && whole && may_be_repeated(session, ctx, rules) && lease.endpoint().may_retry();
    if again && !ctx.is_blameless() {
        lease.failed(failure); // What is final is told in `finish`.
    }
    if !again {
        lookup::failed(session, ctx, &error);
    }
    error.set_retry(again);
    error
}

/// The response has begun: whether it is taken.
///
/// # Errors
/// It is not: another attempt is made.
pub(crate) fn response(session: &Session, response: &ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    let Some(lease) = &ctx.lease else { return Ok(()) };
    let rules = &lease.endpoint().rules().retries;
    if response.status < StatusCode::BAD_REQUEST
        || !rules.when.contains(&RetryOn::Status(response.status.as_u16()))
        || !can_be_sent_again(session)
        || !may_be_repeated(session, ctx, rules)
        || !lease.endpoint().may_retry()
    {
        return Ok(());
    }
    let mut error = Error::explain(NOT_TAKEN, format!("status {}", response.status)).into_up();
    error.set_retry(true);
    Err(error)
}

/// Whether the rest of a request is the client's to send, so that nothing is to be expected of the upstream yet; or both may be silent as long
/// as they want.
fn awaits_client(session: &mut Session) -> bool {
    session.was_upgraded() || !session.downstream_session.is_body_done()
}

/// Whether the client has the beginning of a response.
fn has_begun(session: &Session) -> bool {
    session.response_written().is_some_and(|written| !written.status.is_informational())
}

/// Whether all that was read of the request's body is still there, and the client has seen nothing of a response.
fn can_be_sent_again(session: &Session) -> bool {
    !session.as_ref().retry_buffer_truncated() && !session.was_upgraded() && !has_begun(session)
}

fn may_be_repeated(session: &Session, ctx: &RequestCtx, rules: &Retries) -> bool {
    let method = session.req_header().method.as_str();
    ctx.tries() < u32::from(rules.attempts) && rules.methods.iter().any(|known| known == method) && ctx.has_time()
}
