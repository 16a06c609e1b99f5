//! The door to Pingora: a custom downstream session that wraps the client's real one and runs the response half of the chain in
//! every write, so that a filter may hold the header until it has seen the body, and answer in its place, on cache hits too.
//!
//! It is swapped in by `request_filter` and swapped out by `logging`, which runs before `finish` on every path, so that Pingora keeps
//! connection reuse to itself. Pingora calls `finish` on it twice, so that is idempotent; it hands the real session back in `Drop`.
//! Keep-alive setters do not reach it, so an error answer carries the decision to close in [`Slot::close`]. The proxy-task API stays
//! off: writes run filters, and filters are not cancel safe.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, Version, header};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::{Error, ErrorSource, ErrorType, Result};
use selvedge_cache::StoredBody;
use selvedge_wasm::LocalReply;

use super::exchange::Asked;
use super::{Chain, ChainError, Event, Passage};
use crate::compress::outlet::Outlet;
use crate::grpc;
use crate::plan::Route;
use crate::request::origin_side::Hop;
use crate::request::step;
use crate::request::wrapped::as_the_clients_own;
use crate::request::{fail, leader};

/// What the filtered session shares with the request's own context while it stands in Pingora's place.
#[derive(Default)]
pub(crate) struct Slot {
    /// The client's session, handed back when the filtered one is dropped.
    real: Mutex<Option<Box<HttpSession>>>,
    /// The chain, while neither side is using it.
    chain: Mutex<Option<Box<Chain>>>,
    /// A reply a filter made when the exchange was already on its way upstream; written by the error path.
    reply: Mutex<Option<LocalReply>>,
    /// Set when the session answered an error of the chain itself: the RFC 9209 error token, for the access log.
    failure: Mutex<Option<&'static str>>,
    /// The stored body that answers, on routes that compress.
    pub(crate) stored: Mutex<Option<StoredBody>>,
    /// An error answer was made: the connection must not be kept alive.
    pub(crate) close: AtomicBool,
    /// The way to the outer half, where the filters are between the cache and the origin.
    outer_half: Option<Arc<Hop>>,
    /// The upstream's session is ours, too: Pingora asks both for the messages of their protocol, of which there are none.
    pub(crate) attempt: AtomicBool,
}

impl Slot {
    /// Lends the chain; `None` only while somebody else has it, which the single task of a request rules out.
    pub(crate) fn lend(&self) -> Option<Lent<'_>> {
        let chain = self.chain.lock().take()?;
        Some(Lent { slot: self, chain: Some(chain) })
    }

    /// Keeps a filter's reply for the error path.
    pub(crate) fn park_reply(&self, reply: LocalReply) {
        *self.reply.lock() = Some(reply);
    }

    /// The reply kept, once.
    pub(crate) fn parked_reply(&self) -> Option<LocalReply> {
        self.reply.lock().take()
    }

    /// The error token of the answer that the session made itself.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        *self.failure.lock()
    }
}

/// The chain, on loan from its slot. Pingora drops what we are waiting for when the other half of the exchange fails; the chain goes
/// back even then, because the error answer and the end of the exchange still need it.
pub(crate) struct Lent<'s> {
    slot: &'s Slot,
    chain: Option<Box<Chain>>,
}

impl Deref for Lent<'_> {
    type Target = Chain;

    fn deref(&self) -> &Chain {
        self.chain.as_deref().expect("held until drop")
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Chain {
        self.chain.as_deref_mut().expect("held until drop")
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.slot.chain.lock() = self.chain.take();
    }
}

/// How the request body reaches the upstream.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// No filter looks at it: Pingora reads and retries it as it is.
    Untouched,
    /// The filters have seen all of it; replayed from here, on every retry.
    Whole(Bytes),
    /// The filters have let this much through; the rest passes them as it arrives, and cannot be replayed.
    Streaming(Bytes),
}

/// How far the response has come.
#[derive(Debug, PartialEq, Eq)]
enum Response {
    /// No header has been written.
    Open,
    /// The header is with the client.
    Sent,
    /// The last byte is with the client, or the rest is of no interest.
    Ended,
}

/// The downstream session of a request that has filters.
pub(crate) struct FilteredSession {
    real: Option<Box<HttpSession>>,
    slot: Arc<Slot>,
    body: RequestBody,
    response: Response,
    /// A reply was made while the client was still sending: report the upload as done.
    abandon_body: bool,
    /// The client has sent all of its body. Of one with trailers, the HTTP/2 session never says that it is done.
    body_ended: bool,
    /// The client's session failed; nothing more can be written.
    broken: bool,
    /// The client's session was ended short of its response.
    cut: bool,
    /// An error answer is being written past the chain.
    unfiltered: bool,
    /// A 1xx was written ahead of its batch: drop the queued duplicate.
    early_informational: bool,
    /// The route, where it says which pages of other origins may use it: that is in every response, whoever made it.
    cors: Option<Arc<Route>>,
    /// Where responses leave compressed, on routes that do that.
    outlet: Option<Box<Outlet>>,
}

impl FilteredSession {
    /// Puts a filtered session in the place of the client's, and returns the slot that leads back.
    pub(crate) fn interpose(session: &mut Box<HttpSession>, chain: Box<Chain>, body: RequestBody) -> Arc<Slot> {
        let outer_half = chain.state.outer_half.clone();
        let for_client = outer_half.is_none();
        let slot = Arc::new(Slot { outer_half, ..Slot::default() });
        let route = &chain.state.route;
        let cors = (for_client && route.cors.is_some()).then(|| Arc::clone(route));
        let wanted = chain.state.encoding;
        let outlet = (for_client && route.compress.is_some()).then(|| Box::new(Outlet::new(Arc::clone(route), wanted)));
        *slot.chain.lock() = Some(chain);
        let real = std::mem::replace(session, Box::new(HttpSession::new_custom(Box::new(()))));
        let filtered = Self {
            real: Some(real),
            slot: Arc::clone(&slot),
            body,
            response: Response::Open,
            abandon_body: false,
            body_ended: false,
            broken: false,
            cut: false,
            unfiltered: false,
            early_informational: false,
            cors,
            outlet,
        };
        **session = HttpSession::new_custom(Box::new(filtered));
        slot
    }

    /// Puts the client's session back.
    pub(crate) fn restore(session: &mut Box<HttpSession>, slot: &Slot) {
        // The filtered session is dropped by this, and fills the slot.
        **session = HttpSession::new_custom(Box::new(()));
        if let Some(real) = slot.real.lock().take() {
            *session = real;
        }
    }

    fn real(&self) -> &HttpSession {
        self.real.as_deref().expect("held until drop")
    }

    /// Whether the upstream's session is ours, too.
    fn is_attempt(&self) -> bool {
        self.slot.attempt.load(Ordering::Relaxed)
    }

    fn real_mut(&mut self) -> &mut HttpSession {
        self.real.as_deref_mut().expect("held until drop")
    }

    /// Whether the client has a final header, so that no other answer can be given.
    fn is_committed(&self) -> bool {
        self.real().response_written().is_some_and(|written| !written.status.is_informational())
    }

    /// Every write path of Pingora ends here.
    async fn process(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        if self.response == Response::Ended {
            return Ok(true); // What the origin still sends is of no interest.
        }
        if self.real().was_upgraded() {
            return self.forward(tasks).await; // After a 101 there is no HTTP left to filter.
        }
        let slot = Arc::clone(&self.slot);
        let Some(mut chain) = slot.lend() else { return Err(lost()) };
        let out = self.filter(&mut chain, tasks).await;
        let (node, asked) = (Arc::clone(&chain.state.node), chain.state.asked);
        drop(chain);

        let out = match out {
            Ok(out) => out,
            Err(error) => return Box::pin(self.answer_failure(error, &node, asked)).await,
        };
        if out.is_empty() {
            return Ok(self.response == Response::Ended);
        }
        self.forward(out).await
    }

    /// Runs tasks through the chain; what comes out may be written.
    async fn filter(&mut self, chain: &mut Chain, tasks: Vec<HttpTask>) -> Result<Vec<HttpTask>> {
        let mut out = Vec::with_capacity(tasks.len() + 1);
        for task in tasks {
            if self.response == Response::Ended {
                break;
            }
            match task {
                HttpTask::Header(header, end) if is_interim(&header) => {
                    // `store` says so to sessions that are not filtered.
                    self.real_mut().set_close_on_response_before_downstream_finish(false);
                    if !std::mem::take(&mut self.early_informational) {
                        out.push(HttpTask::Header(header, end));
                    }
                }
                HttpTask::Header(header, end) if chain.response_started() => {
                    // An error answer, made after the chain has seen a response that is not out yet: it takes that one's place, unfiltered.
                    self.unfiltered = true;
                    self.write_header(&mut out, header, end)?;
                }
                HttpTask::Header(header, end) => {
                    // A 101 has no body: what follows is another protocol. Of others without one (RFC 9110, 6.4.1) Pingora does not
                    // always say that they end here.
                    let end = end
                        || header.status == StatusCode::SWITCHING_PROTOCOLS
                        || is_bodiless(&header, self.real().req_header());
                    step!(chain.state, "filter", direction = "response");
                    chain.state.response_comes(header);
                    self.pass(chain, Event::Headers { end }, &mut out).await?;
                }
                HttpTask::Body(data, end) if self.unfiltered => {
                    self.ended(end);
                    out.push(HttpTask::Body(data, end));
                }
                HttpTask::Body(data, end) => {
                    self.pass(chain, Event::Body { data: data.unwrap_or_default(), end }, &mut out).await?;
                }
                HttpTask::Trailer(Some(trailers)) => {
                    chain.state.response_trailers = Some(trailers);
                    self.pass(chain, Event::Trailers, &mut out).await?;
                }
                // No end was flagged on the last chunk: the filters still have to see it.
                HttpTask::Trailer(None) | HttpTask::Done if self.unfiltered => {
                    self.response = Response::Ended;
                    out.push(HttpTask::Done);
                }
                HttpTask::Trailer(None) | HttpTask::Done => {
                    self.pass(chain, Event::Body { data: Bytes::new(), end: true }, &mut out).await?;
                }
                HttpTask::Failed(error) => {
                    if !self.is_committed() {
                        return Err(error); // Nothing was sent, whatever this batch holds: the proxy can still answer.
                    }
                    self.broken = true;
                    out.push(HttpTask::Failed(error));
                }
                task @ HttpTask::UpgradedBody(..) => out.push(task),
            }
        }
        Ok(out)
    }

    async fn pass(&mut self, chain: &mut Chain, event: Event, out: &mut Vec<HttpTask>) -> Result<()> {
        let io = self.real.as_deref_mut().expect("held until drop");
        let passed = match chain.response(io, event).await {
            Ok(Passage::Through(passed)) => passed,
            Ok(Passage::Reply(_)) => return Ok(()), // Replies of the response half have become events.
            Err(error) => return Err(self.chain_error(error)),
        };

        let mut events = passed.into_iter().peekable();
        while let Some(event) = events.next() {
            match event {
                Event::Headers { end } => {
                    let Some(mut header) = chain.state.response_goes() else { continue };
                    if let (false, Some(Event::Body { data, end: true })) = (end, events.peek()) {
                        fix_length(&mut header, data.len(), self.real().req_header());
                    }
                    self.write_header(out, header, end)?;
                }
                Event::Body { data, end } => {
                    self.ended(end);
                    if end || !data.is_empty() {
                        out.push(HttpTask::Body((!data.is_empty()).then_some(data), end));
                    }
                }
                Event::Trailers => {
                    self.response = Response::Ended;
                    out.push(HttpTask::Trailer(chain.state.trailers_go()));
                }
            }
        }
        // Answered here: what the client is still uploading is of no interest, and the proxy must not wait for it.
        self.abandon_body |= chain.replied();
        Ok(())
    }

    fn write_header(&mut self, out: &mut Vec<HttpTask>, mut header: Box<ResponseHeader>, end: bool) -> Result<()> {
        if let Some(cors) = self.cors.as_ref().and_then(|route| route.cors.as_ref()) {
            // Valid names and values: nothing can be refused.
            let _ = cors.mark(&self.real().req_header().headers, &mut header);
        }
        let bodiless = is_bodiless(&header, self.real().req_header());
        if let Some(outlet) = &mut self.outlet {
            let request = self.real.as_deref().expect("held until drop").req_header();
            outlet.header(request, &mut header, end || bodiless, self.slot.stored.lock().take())?;
        }
        let mut until_close = false;
        if !end && !bodiless {
            until_close = frame(&mut header, self.real().req_header().version) == Framing::UntilClose;
        }
        if until_close || self.slot.close.load(Ordering::Relaxed) {
            self.real_mut().set_keepalive(None);
        }
        let end = (end || bodiless) && header.status != StatusCode::SWITCHING_PROTOCOLS;
        self.response = if end { Response::Ended } else { Response::Sent };
        out.push(HttpTask::Header(header, end));
        Ok(())
    }

    fn ended(&mut self, end: bool) {
        if end {
            self.response = Response::Ended;
        }
    }

    /// Answers an error of the chain when the client has nothing yet. Here and not in `fail_to_proxy`, because Pingora does not call
    /// that on cache hits, and on misses takes an error of this session for a client that has left, and only goes on to fill the cache.
    async fn answer_failure(&mut self, error: Box<Error>, node: &str, asked: Asked) -> Result<bool> {
        let ours = *error.esource() == ErrorSource::Internal;
        if !ours {
            return Err(error);
        }
        *self.slot.failure.lock() = fail::token(&error);
        if let Some(outer_half) = &self.slot.outer_half {
            outer_half.broke(&error); // It answers.
            self.cut().await;
            return Err(error);
        }
        let Some((header, body)) = fail::chain_answer(&error, node, asked).filter(|_| !self.is_committed()) else {
            self.cut().await;
            return Err(error);
        };

        self.slot.close.store(true, Ordering::Relaxed);
        self.abandon_body = true;
        let mut out = Vec::with_capacity(2);
        self.write_header(&mut out, header, body.is_empty())?;
        if self.response != Response::Ended {
            out.push(HttpTask::Body(Some(body), true));
        }
        self.response = Response::Ended;
        self.forward(out).await
    }

    /// Ends the client's stream so that it knows it has not got all: by a reset on HTTP/2, with the connection on HTTP/1.
    async fn cut(&mut self) {
        self.broken = true;
        self.cut = true;
        self.abandon_body = true;
        self.slot.close.store(true, Ordering::Relaxed);
        let real = self.real_mut();
        real.set_keepalive(None);
        real.shutdown().await;
    }

    async fn forward(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let ended = self.response == Response::Ended;
        let result = match &mut self.outlet {
            Some(outlet) if !outlet.is_idle() => {
                let real = self.real.as_deref_mut().expect("held until drop");
                Box::pin(outlet.write(real, tasks)).await
            }
            _ => self.real_mut().response_duplex_vec(tasks).await,
        };
        // That the client has all of an announced length does not mean that the filters have seen the end: `finish` shows it to them.
        if result.is_err() {
            self.broken = true;
        }
        result.map(|done| done || ended)
    }

    fn chain_error(&mut self, error: ChainError) -> Box<Error> {
        if let ChainError::ClientGone(cause) = error {
            self.broken = true;
            return cause.into_down();
        }
        if self.is_committed() {
            self.broken = true;
        }
        fail::from_chain(error)
    }
}

impl Drop for FilteredSession {
    fn drop(&mut self) {
        *self.slot.real.lock() = self.real.take();
    }
}

#[async_trait]
impl CustomSession for FilteredSession {
    as_the_clients_own!();

    fn req_header(&self) -> &RequestHeader {
        self.real().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.real_mut().req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        match self.body {
            RequestBody::Whole(_) => Ok(None),
            RequestBody::Untouched | RequestBody::Streaming(_) => self.real_mut().read_request_body().await,
        }
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.real_mut().drain_request_body().await
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, end: bool) -> Result<()> {
        if is_interim(&header) && end {
            self.early_informational = true;
            return self.real_mut().write_response_header(header).await;
        }
        self.process(vec![HttpTask::Header(header, end)]).await.map(drop)
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(header.clone()), end).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.process(vec![HttpTask::Body(Some(data), end)]).await.map(drop)
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.process(vec![HttpTask::Trailer(Some(Box::new(trailers)))]).await.map(drop)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.process(tasks).await
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.cut().await;
    }

    fn is_body_done(&mut self) -> bool {
        let known = self.abandon_body || self.body_ended || matches!(self.body, RequestBody::Whole(_));
        known || self.real_mut().is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        if self.cut {
            return Ok(());
        }
        if self.response == Response::Sent && !self.broken && !self.real().was_upgraded() {
            Box::pin(self.process(vec![HttpTask::Done])).await?;
        }
        self.real_mut().finish_body().await
    }

    fn is_body_empty(&mut self) -> bool {
        match &self.body {
            RequestBody::Whole(body) => body.is_empty(),
            RequestBody::Untouched | RequestBody::Streaming(_) => self.real_mut().is_body_empty(),
        }
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let idle = no_body_expected || self.body_ended || matches!(self.body, RequestBody::Whole(_));
        let read = self.real_mut().read_body_or_idle(idle).await;
        match read {
            Ok(None) if !self.real().was_upgraded() => self.body_ended = true,
            Err(_) => self.broken = true,
            Ok(_) => {}
        }
        read
    }

    /// Rebuilt from the header as the filters have left it: the raw bytes of the real session are older.
    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        leader::raw_header(self.real().req_header())
    }

    fn enable_retry_buffering(&mut self) {
        if matches!(self.body, RequestBody::Untouched) {
            self.real_mut().enable_retry_buffering();
        }
    }

    fn retry_buffer_truncated(&self) -> bool {
        match self.body {
            RequestBody::Untouched => self.real().retry_buffer_truncated(),
            RequestBody::Whole(_) => false,
            RequestBody::Streaming(_) => true,
        }
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        match &self.body {
            RequestBody::Untouched => self.real().get_retry_buffer(),
            RequestBody::Whole(body) | RequestBody::Streaming(body) => (!body.is_empty()).then(|| body.clone()),
        }
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_upgrade_req(&self) -> bool {
        self.real().is_upgrade_req()
    }

    fn was_upgraded(&self) -> bool {
        self.real().was_upgraded()
    }
}

/// Somebody else has the chain: nothing may pass without it.
pub(crate) fn lost() -> Box<Error> {
    Error::explain(ErrorType::InternalError, "the filter chain of this exchange is in use")
}

/// A filter's reply as a message: header with framing, and body. `asked` is the request it answers.
pub(crate) fn reply_message(reply: LocalReply, asked: Asked) -> (Box<ResponseHeader>, Bytes) {
    let status = StatusCode::from_u16(reply.status)
        .ok()
        .filter(|status| !status.is_informational())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut header =
        Box::new(ResponseHeader::build_no_case(status, Some(reply.headers.len() + 2)).unwrap_or_else(|_| {
            // A status code of the http crate is always accepted.
            unreachable!("status {status} is valid")
        }));
    for (name, value) in reply.headers {
        if name == header::CONTENT_LENGTH || name == header::TRANSFER_ENCODING || name == header::CONNECTION {
            continue; // Framing is ours.
        }
        let _ = header.append_header(name, value);
    }
    if let Asked::Grpc(version) = asked {
        grpc::reply::translate(&mut header, version, reply.grpc_status, &reply.body);
        return (header, Bytes::new());
    }

    let body =
        if status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED { Bytes::new() } else { reply.body };
    if status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED {
        let _ = header.set_content_length(body.len());
    }
    (header, body)
}

/// 1xx that precede the final response; a 101 is final.
fn is_interim(header: &ResponseHeader) -> bool {
    header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS
}

/// Responses that never have a body (RFC 9110, 6.4.1).
fn is_bodiless(header: &ResponseHeader, request: &RequestHeader) -> bool {
    request.method == Method::HEAD || matches!(header.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
}

/// The whole body is known when the header is written: say its exact length.
fn fix_length(header: &mut ResponseHeader, length: usize, request: &RequestHeader) {
    if is_bodiless(header, request) {
        return;
    }
    header.remove_header(&header::TRANSFER_ENCODING);
    let _ = header.set_content_length(length);
}

/// How the client knows where a body ends.
#[derive(PartialEq, Eq)]
enum Framing {
    /// The header says how.
    Announced,
    /// The connection ends with it.
    UntilClose,
}

/// A body without a length is chunked on HTTP/1.1, and ends with the connection on HTTP/1.0; on HTTP/2 Pingora drops the field again.
fn frame(header: &mut ResponseHeader, version: Version) -> Framing {
    let framed =
        header.headers.contains_key(header::CONTENT_LENGTH) || header.headers.contains_key(header::TRANSFER_ENCODING);
    if framed || header.status == StatusCode::SWITCHING_PROTOCOLS {
        return Framing::Announced;
    }
    if version <= Version::HTTP_10 {
        return Framing::UntilClose;
    }
    header.set_version(Version::HTTP_11);
    let _ = header.insert_header(header::TRANSFER_ENCODING, "chunked");
    Framing::Announced
}
