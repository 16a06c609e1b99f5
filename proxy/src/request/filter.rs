//! Step 3: the request half of the chain.
//!
//! Headers first. While a filter holds them, the body is read here and shown to the filters, so that nothing reaches the origin before
//! they have decided; what they let through is replayed. When no filter holds them, a body that some filter wants to see passes the
//! chain chunk by chunk on its way to the upstream, in `request_body_filter`.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use selvedge_cache::Wishes;
use selvedge_wasm::LocalReply;

use super::{Edge, RequestCtx, direct, fail, respond};
use crate::chain::session::{FilteredSession, RequestBody, lost, reply_message};
use crate::chain::{Advanced, Chain, ChainError, Direction, Event, ExchangeState, Passage};
use crate::limits::Limit;
use crate::listener::connection;
use crate::telemetry::counters::Counters;

/// Whether the exchange was answered by a filter.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    Yes,
    No,
}

/// How the body gets from the client to the upstream, as `request_body_filter` has to treat it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BodyFlow {
    /// No filter looks at it.
    Untouched,
    /// Chunk by chunk through the chain; `prefix` = the first one has been through it already.
    Filtered { prefix: bool },
    /// All of it has been through the chain, and is replayed.
    Replayed,
}

/// Runs the chain over the request, and interposes the filtered session for the response half, unless the request goes the short way.
///
/// # Errors
/// A filter failed closed, a limit was exceeded, or the client went away.
pub(crate) async fn request(edge: &Edge, session: &mut Session, ctx: &mut RequestCtx) -> Result<Answered> {
    match begin(edge, session, ctx)? {
        None => Ok(Answered::No),
        Some(stopped) => Box::pin(go_on(session, ctx, stopped)).await,
    }
}

/// A request that has not gone through the chain at once.
struct Stopped {
    chain: Chain,
    /// What came of showing it to the filters.
    shown: Result<Advanced, ChainError>,
    coming: Coming,
}

/// What follows the header, as the client has sent it: what filters write into the header changes nothing about that.
#[derive(Clone, Copy)]
enum Coming {
    Nothing,
    Body,
    /// Another protocol, if the upstream agrees.
    Upgrade,
}

impl Coming {
    fn of(client: &mut HttpSession) -> Self {
        match client.is_body_empty() {
            true => Self::Nothing,
            false if client.is_upgrade_req() => Self::Upgrade,
            false => Self::Body,
        }
    }

    fn is_nothing(self) -> bool {
        matches!(self, Self::Nothing)
    }
}

/// Shows the header to the filters. Nearly always they let it go, and nobody wants to see a body: then it goes on.
fn begin(edge: &Edge, session: &mut Session, ctx: &mut RequestCtx) -> Result<Option<Stopped>> {
    let route = ctx.route()?;
    let mut state = ExchangeState::new(session, ctx, Arc::clone(route), &edge.listener);
    let filters = match ctx.outer_half() {
        None => &route.filters,
        Some(hop) => {
            hop.introduce(&mut state);
            &route.origin_filters
        }
    };
    let mut chain = Chain::new(filters, state, edge.worker);

    let downstream = &mut session.downstream_session;
    let coming = Coming::of(downstream);
    let shown = chain.begin_request(downstream, Event::Headers { end: coming.is_nothing() });
    if !matches!(shown, Ok(Advanced::Through(_))) || chain.holds_request() {
        return Ok(Some(Stopped { chain, shown, coming }));
    }
    if coming.is_nothing() {
        ctx.upload_ends();
    }
    let body = body_on_the_way(&chain, coming);
    forward(session, ctx, chain, body);
    Ok(None)
}

/// Waits for what the filters wait for, and does what they have decided.
async fn go_on(session: &mut Session, ctx: &mut RequestCtx, stopped: Stopped) -> Result<Answered> {
    let Stopped { mut chain, shown, coming } = stopped;
    let asked = chain.state.asked;
    let (counters, limit) = (&ctx.plan.counters, ctx.body_limit);
    let mut body = BodyReader { counters, limit, received: 0, ended: coming.is_nothing() };
    let ran = run(&mut chain, &mut session.downstream_session, shown, coming, &mut body).await;
    let BodyReader { received, ended, .. } = body;
    ctx.body_received = received;
    if ended {
        ctx.upload_ends();
    }

    match ran {
        Ok(Verdict::Forward(body)) => {
            forward(session, ctx, chain, body);
            Ok(Answered::No)
        }
        Ok(Verdict::Reply(reply)) => {
            answers(session, ctx, chain);
            ctx.note(|state| state.answered_by_filter(&reply.details));
            let (header, body) = reply_message(reply, asked);
            respond::whole(&mut session.downstream_session, header, body).await?;
            Ok(Answered::Yes)
        }
        Err(error) => {
            // The error answer passes the filters that took part: they may add what every response must carry.
            answers(session, ctx, chain);
            Err(error)
        }
    }
}

/// The chain has let the request go.
fn forward(session: &mut Session, ctx: &mut RequestCtx, mut chain: Chain, body: RequestBody) {
    chain.state.request_goes();
    ctx.body = match &body {
        RequestBody::Untouched => BodyFlow::Untouched,
        RequestBody::Whole(_) => BodyFlow::Replayed,
        RequestBody::Streaming(prefix) => BodyFlow::Filtered { prefix: !prefix.is_empty() },
    };
    if chain.state.upstream.is_some() || !ctx.is_inner() {
        ctx.upstream.clone_from(&chain.state.upstream);
    }
    if let Some(wishes) = &chain.state.wishes {
        ctx.cache.wish(Wishes::clone(wishes));
    }
    ctx.has_new_authority = chain.state.has_new_authority();
    ctx.is_short = matches!(body, RequestBody::Untouched) && direct::is_certain(session, ctx);
    ctx.slot = Some(if ctx.is_short {
        FilteredSession::prepare(chain)
    } else {
        FilteredSession::interpose(&mut session.downstream_session, chain, body)
    });
}

/// The request is answered here.
fn answers(session: &mut Session, ctx: &mut RequestCtx, mut chain: Chain) {
    chain.state.request_goes();
    ctx.slot = Some(FilteredSession::interpose(&mut session.downstream_session, chain, RequestBody::Untouched));
}

/// A chunk of the request body on its way to the upstream.
///
/// # Errors
/// A filter failed closed or answered, or the body exceeds the listener's limit.
pub(crate) async fn request_body(
    session: &mut Session,
    body: &mut Option<Bytes>,
    end: bool,
    ctx: &mut RequestCtx,
) -> Result<()> {
    let Err(error) = pass_body(session, body, end, ctx).await else { return Ok(()) };
    // Answered at once, and put down to the client: towards an HTTP/2 upstream Pingora takes any other error of this hook for the
    // upstream's own, ignores it, and waits for a response to a request that never ends.
    fail::answer(session, &error, ctx).await;
    Err(error.into_down())
}

async fn pass_body(session: &mut Session, body: &mut Option<Bytes>, end: bool, ctx: &mut RequestCtx) -> Result<()> {
    if session.was_upgraded() {
        return Ok(()); // Another protocol by now.
    }
    match ctx.body {
        BodyFlow::Replayed => return Ok(()),
        BodyFlow::Filtered { prefix: true } => {
            ctx.body = BodyFlow::Filtered { prefix: false };
            return Ok(());
        }
        BodyFlow::Untouched | BodyFlow::Filtered { prefix: false } => {}
    }

    if ctx.uploads {
        if let Some(limit) = connection::late() {
            return Err(limit.error());
        }
        connection::body_has_come(body.as_ref().map_or(0, Bytes::len));
        if end || body.is_none() {
            ctx.upload_ends();
        }
    }
    ctx.body_received += body.as_ref().map_or(0, |chunk| chunk.len() as u64);
    if ctx.body_received > ctx.body_limit {
        return Err(Limit::Body.exceeded(&ctx.plan.counters));
    }
    if ctx.body == BodyFlow::Untouched {
        return Ok(());
    }
    // Over HTTP/2 a body that trailers follow ends without having been said to: then there is no chunk.
    let end = end || body.is_none();
    let Some(slot) = ctx.slot.clone() else { return Ok(()) };
    let Some(mut chain) = slot.lend() else { return Err(lost()) };

    let event = Event::Body { data: body.take().unwrap_or_default(), end };
    let passage = chain.request(&mut session.downstream_session, event).await;
    match passage {
        Ok(Passage::Through(passed)) => {
            let through = bytes_of(passed.into_iter());
            // No bytes is the end of the body to Pingora; an empty chunk is "nothing yet".
            *body = if end && through.is_empty() { None } else { Some(through) };
            Ok(())
        }
        Ok(Passage::Reply(reply)) => {
            // The upstream has the header already: give the exchange up and answer through the error path.
            ctx.upstream = None;
            Err(fail::from_reply(&slot, reply))
        }
        Err(error) => Err(fail::from_chain(error)),
    }
}

/// What becomes of the request.
enum Verdict {
    Forward(RequestBody),
    Reply(LocalReply),
}

/// How the body comes by, where no filter holds the header.
fn body_on_the_way(chain: &Chain, coming: Coming) -> RequestBody {
    match coming {
        Coming::Body if chain.wants_body(Direction::Request) => RequestBody::Streaming(Bytes::new()),
        _ => RequestBody::Untouched,
    }
}

async fn run(
    chain: &mut Chain,
    io: &mut HttpSession,
    shown: Result<Advanced, ChainError>,
    coming: Coming,
    body: &mut BodyReader<'_>,
) -> Result<Verdict> {
    if let Advanced::Stopped(stopped) = shown.map_err(fail::from_chain)?
        && let Passage::Reply(reply) = chain.end_request(io, stopped).await.map_err(fail::from_chain)?
    {
        return Ok(Verdict::Reply(reply));
    }
    if !chain.holds_request() {
        return Ok(Verdict::Forward(body_on_the_way(chain, coming)));
    }

    // RFC 9110, 10.1.1: we are going to read the body, so we say so, and the origin need not.
    if io
        .req_header()
        .headers
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
    {
        io.set_close_on_response_before_downstream_finish(false);
        io.write_continue_response().await?;
        io.req_header_mut().remove_header(&header::EXPECT);
    }
    let mut through = BytesMut::new();
    while chain.holds_request() {
        let passage = tokio::select! {
            biased;
            // A resume does not wait for a client that is slow to send.
            () = chain.stirred() => chain.catch_up(io).await,
            data = body.next(io) => {
                let data = data?;
                chain.request(io, Event::Body { data, end: body.ended }).await
            }
        };
        match passage.map_err(fail::from_chain)? {
            Passage::Reply(reply) => return Ok(Verdict::Reply(reply)),
            Passage::Through(passed) => through.extend_from_slice(&bytes_of(passed.into_iter())),
        }
    }

    let through = through.freeze();
    if !body.ended {
        return Ok(Verdict::Forward(RequestBody::Streaming(through)));
    }
    let request = io.req_header_mut();
    request.remove_header(&header::TRANSFER_ENCODING);
    request.insert_header(header::CONTENT_LENGTH, through.len())?;
    Ok(Verdict::Forward(RequestBody::Whole(through)))
}

/// Reads the request body within the listener's limit.
struct BodyReader<'c> {
    counters: &'c Counters,
    limit: u64,
    received: u64,
    ended: bool,
}

impl BodyReader<'_> {
    async fn next(&mut self, io: &mut HttpSession) -> Result<Bytes> {
        if self.ended {
            // Held beyond the end of the body: the chain has waited and failed before this can be asked.
            return Error::e_explain(ErrorType::InternalError, "the request body has ended");
        }
        let chunk = io.read_request_body().await.map_err(Error::into_down)?;
        if let Some(limit) = connection::late() {
            return Err(limit.error()); // HTTP/2 has not noticed.
        }
        self.ended = chunk.is_none() || io.is_body_done();
        let chunk = chunk.unwrap_or_default();
        connection::body_has_come(chunk.len());
        self.received += chunk.len() as u64;
        if self.received > self.limit {
            return Err(Limit::Body.exceeded(self.counters));
        }
        Ok(chunk)
    }
}

/// The body bytes among events, in one piece; one chunk is not copied.
fn bytes_of(events: impl Iterator<Item = Event>) -> Bytes {
    let mut whole: Option<Bytes> = None;
    let mut joined = BytesMut::new();
    for event in events {
        let Event::Body { data, .. } = event else { continue };
        match whole.take() {
            None if joined.is_empty() => whole = Some(data),
            None => joined.extend_from_slice(&data),
            Some(first) => {
                joined.extend_from_slice(&first);
                joined.extend_from_slice(&data);
            }
        }
    }
    whole.unwrap_or_else(|| joined.freeze())
}
