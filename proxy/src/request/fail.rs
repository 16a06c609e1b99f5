//! When it cannot go on: who was to blame, and what the client is told. One table for status and Proxy-Status (RFC 9209).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header;
use pingora::http::ResponseHeader;
use pingora::proxy::{FailToProxy, Session};
use pingora::{Error, ErrorSource, ErrorType};
use selvedge_wasm::LocalReply;
use tracing::debug;

use super::{RequestCtx, cors, leader, lookup, respond};
use crate::chain::session::{Slot, reply_message};
use crate::chain::{Asked, ChainError, Direction};
use crate::cluster;
use crate::grpc::reply;
use crate::limits::Limit;

/// A filter failed closed, or stayed paused too long.
const FILTER_FAILED: ErrorType = ErrorType::Custom("FilterFailed");
/// A filter held more of the body than it may.
const FILTER_BODY_REQUEST: ErrorType = ErrorType::Custom("FilterRequestBodyTooLarge");
const FILTER_BODY_RESPONSE: ErrorType = ErrorType::Custom("FilterResponseBodyTooLarge");
/// A filter closed the stream: no answer.
const FILTER_CLOSED: ErrorType = ErrorType::Custom("FilterClosedStream");
/// A filter answered while the request was being forwarded: the answer waits in the slot.
const FILTER_REPLY: ErrorType = ErrorType::Custom("FilterReply");

/// The upstream has no endpoint that may be sent requests.
pub(super) const NO_ENDPOINT: ErrorType = ErrorType::Custom("NoEndpoint");
/// The upstream has as many requests as it may have.
pub(super) const NO_ROOM: ErrorType = ErrorType::Custom("NoRoom");
/// As many wait for the same as may, or for as long.
pub(super) const TOO_MANY_WAIT: ErrorType = ErrorType::Custom("TooManyWait");
/// The request was to be sent on, and nobody is named to send it to.
pub(super) const NO_UPSTREAM: ErrorType = ErrorType::Custom("NoUpstream");

/// Our own token, for access logs: RFC 9209 has none for an end without an answer.
const CLOSED_BY_FILTER: &str = "closed_by_filter";

/// The error that ends an exchange because of its chain.
pub(crate) fn from_chain(error: ChainError) -> Box<Error> {
    let kind = match &error {
        ChainError::Failed { .. } | ChainError::Stuck { .. } => FILTER_FAILED,
        ChainError::TooLarge { direction: Direction::Request, .. } => FILTER_BODY_REQUEST,
        ChainError::TooLarge { direction: Direction::Response, .. } => FILTER_BODY_RESPONSE,
        ChainError::Closed { .. } => FILTER_CLOSED,
        ChainError::ClientGone(_) => ErrorType::ConnectionClosed,
    };
    let down = matches!(error, ChainError::ClientGone(_));
    let error = Error::because(kind, "in the filter chain", error);
    if down { error.into_down() } else { error.into_in() }
}

/// The error that carries a filter's reply past an exchange that has begun.
pub(crate) fn from_reply(slot: &Arc<Slot>, reply: LocalReply) -> Box<Error> {
    slot.park_reply(reply);
    Error::explain(FILTER_REPLY, "a filter answered").into_in()
}

/// The same error once more, for the outer half of the request that it has ended.
pub(super) fn carried(error: &Error) -> Box<Error> {
    let kind = error.etype().clone();
    let what_failed = error.to_string();
    let cause = error.cause.as_ref().and_then(|cause| cause.downcast_ref::<ChainError>()).and_then(ChainError::told);
    // To the cache, a filter that fails there is an origin that fails.
    let of_origin = [FILTER_FAILED, FILTER_BODY_RESPONSE, FILTER_CLOSED].contains(&kind);
    let carried = match cause {
        Some(cause) => Error::because(kind, "at the origin's side", cause),
        None => Error::explain(kind, what_failed),
    };
    if of_origin || *error.esource() == ErrorSource::Upstream { carried.into_up() } else { carried.into_in() }
}

/// Answers the client, if anything can still be said.
pub(crate) async fn answer(session: &mut Session, error: &Error, ctx: &mut RequestCtx) -> FailToProxy {
    debug!(%error, "request failed");
    leader::restore(session, ctx).await;
    ctx.answers_here(session);
    let verdict = judge(error);
    ctx.failure = verdict.token;
    ctx.note(|state| {
        state.failure = verdict.token;
        state.details = verdict.token.map(Into::into).or(state.details.take());
    });
    let gone = FailToProxy { error_code: 0, can_reuse_downstream: false };
    if let Some(outer_half) = ctx.outer_half().filter(|_| *error.etype() != FILTER_REPLY) {
        outer_half.broke(error); // It answers.
        session.downstream_session.shutdown().await;
        return gone;
    }
    if is_cut(error) {
        session.downstream_session.shutdown().await;
        return gone;
    }
    if verdict.status == 0 || session.response_written().is_some_and(|written| !written.status.is_informational()) {
        return gone;
    }

    if let Some(web) = &ctx.web {
        web.close.store(true, Ordering::Relaxed);
    }
    // Keep-alive setters do not reach a filtered session.
    if let Some(slot) = &ctx.slot {
        slot.close.store(true, Ordering::Relaxed);
    } else {
        session.downstream_session.set_keepalive(None);
    }

    let asked = asked(session, ctx);
    let (mut header, body) = match ctx.slot.as_ref().and_then(|slot| slot.parked_reply()) {
        Some(reply) => {
            ctx.note(|state| state.answered_by_filter(&reply.details));
            reply_message(reply, asked)
        }
        None => match message(&verdict, &ctx.plan.node.structured, asked) {
            Ok(message) => message,
            Err(_) => return gone,
        },
    };
    if !ctx.is_inner() && cors::mark(session.req_header(), &mut header, ctx).is_err() {
        return gone;
    }
    lookup::status(session, &mut header, ctx);
    if cluster::serve::is_visitor(ctx) && header.status.as_u16() != 508 {
        header.set_status(cluster::serve::REFUSAL).unwrap_or_default(); // It is a valid one.
    }
    let status = header.status.as_u16();
    if respond::whole(&mut session.downstream_session, header, body).await.is_err() {
        return gone;
    }
    FailToProxy { error_code: status, can_reuse_downstream: false }
}

/// What kind of answer the client expects. Filters may have changed the header since.
fn asked(session: &Session, ctx: &RequestCtx) -> Asked {
    let told = ctx.slot.as_ref().and_then(|slot| slot.with_chain(|chain| chain.state.asked));
    told.unwrap_or_else(|| Asked::by(session.req_header()))
}

/// What an error means to the client.
struct Verdict {
    /// 0 = nobody is there to be told.
    status: u16,
    /// The error token of RFC 9209, 2.3, or one of ours.
    token: Option<&'static str>,
    /// Which filter, and what is to be said about it; nothing of what it did.
    details: Option<String>,
}

/// Whether a filter wants the stream to end without an answer.
fn is_cut(error: &Error) -> bool {
    *error.etype() == FILTER_CLOSED
}

/// What the client is told about the filter that is to blame, or the limit it did not keep.
fn details(error: &Error) -> Option<String> {
    if let Some((_, limit)) = Limit::of(error) {
        return Some(format!("limit {limit}"));
    }
    if Limit::is_idle(error) {
        return Some(format!("limit {}", Limit::IdleTimeout.name()));
    }
    match error.cause.as_ref()?.downcast_ref::<ChainError>()? {
        ChainError::Failed { filter } => Some(format!("filter {filter} failed")),
        ChainError::Stuck { filter } => Some(format!("filter {filter} timed out")),
        ChainError::TooLarge { filter, .. } => Some(format!("body too large for filter {filter}")),
        ChainError::Closed { .. } | ChainError::ClientGone(_) => None,
    }
}

/// What went wrong, for the operator: what the client is told in detail, or what we were doing when an upstream failed.
pub(crate) fn reason(error: &Error) -> Option<String> {
    details(error).or_else(|| (*error.esource() == ErrorSource::Upstream).then(|| root(error)))
}

/// The longest reason: what an error says may be somebody else's words.
const REASON_MAX: usize = 200;

/// What the first of a chain of errors says. Those after it say whom it was met with, which is known.
fn root(error: &Error) -> String {
    let mut first = error;
    while let Some(cause) = first.cause.as_ref().and_then(|cause| cause.downcast_ref::<Box<Error>>()) {
        first = cause;
    }
    let mut said = match (&first.context, &first.cause) {
        (Some(context), Some(cause)) => format!("{}: {cause}", context.as_str()),
        (Some(context), None) => context.as_str().to_owned(),
        (None, Some(cause)) => cause.to_string(),
        (None, None) => first.etype().as_str().to_owned(),
    };
    said.truncate(said.floor_char_boundary(REASON_MAX));
    said
}

fn judge(error: &Error) -> Verdict {
    use ErrorSource::{Downstream, Upstream};
    if let Some((status, _)) = Limit::of(error) {
        return Verdict { status, token: Some("http_request_error"), details: details(error) };
    }
    let (status, token) = match (error.esource(), error.etype()) {
        (_, kind) if *kind == FILTER_REPLY => (500, None), // replaced by the parked reply
        (_, kind) if *kind == FILTER_FAILED => (503, Some("proxy_internal_error")),
        (_, kind) if *kind == FILTER_BODY_REQUEST => (413, Some("http_request_denied")),
        (_, kind) if *kind == FILTER_BODY_RESPONSE => (502, Some("http_response_incomplete")),
        (_, kind) if *kind == FILTER_CLOSED => (0, Some(CLOSED_BY_FILTER)),
        (_, kind) if *kind == NO_ENDPOINT => (503, Some("destination_unavailable")),
        (_, kind) if *kind == NO_ROOM => (503, Some("connection_limit_reached")),
        (_, kind) if *kind == TOO_MANY_WAIT => (503, Some("connection_limit_reached")),
        (_, kind) if *kind == NO_UPSTREAM => (503, Some("destination_not_found")),
        (_, ErrorType::HTTPStatus(508)) => (508, Some("proxy_loop_detected")),
        (_, ErrorType::HTTPStatus(status)) => (*status, Some("http_request_error")),
        (Upstream, ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout) => (504, Some("connection_timeout")),
        (Upstream, ErrorType::ConnectRefused) => (502, Some("connection_refused")),
        (Upstream, ErrorType::ConnectNoRoute) => (502, Some("destination_ip_unroutable")),
        (Upstream, ErrorType::ConnectError | ErrorType::SocketError) => (502, Some("connection_terminated")),
        (Upstream, ErrorType::TLSHandshakeFailure) => (502, Some("tls_protocol_error")),
        (Upstream, ErrorType::InvalidCert) => (502, Some("tls_certificate_error")),
        (Upstream, ErrorType::ReadTimedout) => (504, Some("connection_read_timeout")),
        (Upstream, ErrorType::WriteTimedout) => (504, Some("connection_write_timeout")),
        (Upstream, ErrorType::InvalidHTTPHeader | ErrorType::InvalidH2) => (502, Some("http_protocol_error")),
        (Upstream, ErrorType::WriteError) => (502, Some("connection_terminated")),
        (Upstream, ErrorType::ConnectionClosed | ErrorType::ReadError | ErrorType::H2Error) => {
            (502, Some("http_response_incomplete"))
        }
        (Upstream, _) => (502, Some("http_protocol_error")),
        (
            Downstream,
            ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed | ErrorType::H2Error,
        ) => (0, None),
        (Downstream, ErrorType::ReadTimedout) => (408, Some("http_request_error")),
        (Downstream, ErrorType::WriteTimedout) => (0, None),
        (Downstream, _) => (400, Some("http_request_error")),
        _ => (500, Some("proxy_internal_error")),
    };
    Verdict { status, token, details: details(error) }
}

/// The answer to an error of the chain; `None` when the stream is to end without one.
pub(crate) fn chain_answer(error: &Error, node: &str, asked: Asked) -> Option<(Box<ResponseHeader>, Bytes)> {
    let verdict = judge(error);
    if verdict.status == 0 { None } else { message(&verdict, node, asked).ok() }
}

/// The status a client is answered with for an error; 0 = it is not answered.
pub(crate) fn status(error: &Error) -> u16 {
    judge(error).status
}

/// The error token of an error, for the access log.
pub(crate) fn token(error: &Error) -> Option<&'static str> {
    judge(error).token
}

/// `node` is our name as an item of a structured field.
fn message(verdict: &Verdict, node: &str, asked: Asked) -> pingora::Result<(Box<ResponseHeader>, Bytes)> {
    let mut response = Box::new(ResponseHeader::build(verdict.status, Some(5))?);
    let reason = response.status.canonical_reason().unwrap_or("Error");
    let body = format!("{} {reason}\n", verdict.status);
    response.insert_header(header::CACHE_CONTROL, "no-store")?;
    if let Some(token) = verdict.token {
        let details = verdict.details.as_ref().map(|details| format!("; details=\"{details}\"")).unwrap_or_default();
        response.insert_header("proxy-status", format!("{node}; error={token}{details}"))?;
    }
    if verdict.token == Some("connection_limit_reached") {
        response.insert_header(header::RETRY_AFTER, 1)?;
    }
    if let Asked::Grpc(version) = asked {
        reply::translate(&mut response, version, None, body.trim_end().as_bytes());
        return Ok((response, Bytes::new()));
    }
    response.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
    response.set_content_length(body.len())?;
    Ok((response, Bytes::from(body)))
}
