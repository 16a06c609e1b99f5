//! The door to Pingora: a custom downstream session that wraps the client's real one and runs the [response half](super::outbound) of the
//! chain in every write.
//!
//! It is swapped in by `request_filter` and swapped out by `logging`, which runs before `finish` on every path, so that Pingora keeps
//! connection reuse to itself. Where Pingora does not write to the client, on the short way, it is not needed: there it is taken off, or
//! never put on as long as nobody else has to answer. Pingora calls `finish` on it twice, so that is idempotent; it hands the real session back in `Drop`.
//! Keep-alive setters do not reach it, so an error answer carries the decision to close in [`Slot::close`]. The proxy-task API stays
//! off: writes run filters, and filters are not cancel safe.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::{Error, ErrorType, Result};
use selvedge_cache::StoredBody;
use selvedge_wasm::LocalReply;

use super::Chain;
use super::exchange::Asked;
use super::outbound::{Outbound, is_interim};
use crate::grpc;
use crate::request::leader;
use crate::request::origin_side::Hop;
use crate::request::wrapped::as_the_clients_own;

/// What the filtered session shares with the request's own context while it stands in Pingora's place.
#[derive(Default)]
pub(crate) struct Slot {
    /// The client's session, handed back when the filtered one is dropped.
    real: Mutex<Option<Box<HttpSession>>>,
    /// The chain, while neither side is using it.
    chain: Mutex<Option<Chain>>,
    /// The response half, handed back likewise.
    out: Mutex<Option<Outbound>>,
    /// A reply a filter made when the exchange was already on its way upstream; written by the error path.
    reply: Mutex<Option<Box<LocalReply>>>,
    /// Set when the session answered an error of the chain itself: the RFC 9209 error token, for the access log.
    pub(super) failure: OnceLock<&'static str>,
    /// The stored body that answers, on routes that compress.
    pub(crate) stored: Mutex<Option<StoredBody>>,
    /// An error answer was made: the connection must not be kept alive.
    pub(crate) close: AtomicBool,
    /// The way to the outer half, where the filters are between the cache and the origin.
    pub(super) outer_half: Option<Arc<Hop>>,
    /// The filtered session stands in the client's place.
    interposed: AtomicBool,
    /// The upstream's session is ours, too: Pingora asks both for the messages of their protocol, of which there are none.
    pub(crate) attempt: AtomicBool,
}

impl Slot {
    /// Does this with the chain, at once; `None` as of [`lend`](Self::lend).
    pub(crate) fn with_chain<T>(&self, work: impl FnOnce(&mut Chain) -> T) -> Option<T> {
        self.chain.lock().as_mut().map(work)
    }

    /// Lends the chain, for as long as somebody has to wait with it; `None` only while somebody else has it, which the single task of a
    /// request rules out.
    pub(crate) fn lend(&self) -> Option<Lent<'_>> {
        let chain = self.chain.lock().take()?;
        Some(Lent { slot: self, chain: Some(chain) })
    }

    fn take_out(&self) -> Option<Outbound> {
        self.out.lock().take()
    }

    /// Keeps a filter's reply for the error path.
    pub(crate) fn park_reply(&self, reply: LocalReply) {
        *self.reply.lock() = Some(Box::new(reply));
    }

    /// The reply kept, once.
    pub(crate) fn parked_reply(&self) -> Option<LocalReply> {
        self.reply.lock().take().map(|reply| *reply)
    }

    /// The error token of the answer that the session made itself.
    pub(crate) fn failure(&self) -> Option<&'static str> {
        self.failure.get().copied()
    }
}

/// The chain, on loan from its slot. Pingora drops what we are waiting for when the other half of the exchange fails; the chain goes
/// back even then, because the error answer and the end of the exchange still need it.
pub(crate) struct Lent<'s> {
    slot: &'s Slot,
    chain: Option<Chain>,
}

impl Deref for Lent<'_> {
    type Target = Chain;

    fn deref(&self) -> &Chain {
        self.chain.as_ref().expect("held until drop")
    }
}

impl DerefMut for Lent<'_> {
    fn deref_mut(&mut self) -> &mut Chain {
        self.chain.as_mut().expect("held until drop")
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

/// The downstream session of a request that has filters.
pub(crate) struct FilteredSession {
    real: Option<Box<HttpSession>>,
    out: Option<Outbound>,
    slot: Arc<Slot>,
    body: RequestBody,
    /// The client has sent all of its body. Of one with trailers, the HTTP/2 session never says that it is done.
    body_ended: bool,
}

impl FilteredSession {
    /// Puts a filtered session in the place of the client's, and returns the slot that leads back.
    pub(crate) fn interpose(session: &mut Box<HttpSession>, chain: Chain, body: RequestBody) -> Arc<Slot> {
        let slot = Self::prepare(chain);
        if let Some(out) = slot.take_out() {
            Self::put_on(session, &slot, out, body);
        }
        slot
    }

    /// Everything but that: the client's session stays where it is, for the short way, which needs no other in its place. Whoever else
    /// is to write to it [stands in](Self::stand_in) first.
    pub(crate) fn prepare(chain: Chain) -> Arc<Slot> {
        let (outer_half, out) = (chain.state.outer_half.clone(), Outbound::of(&chain));
        Arc::new(Slot { outer_half, out: Mutex::new(Some(out)), chain: Mutex::new(Some(chain)), ..Slot::default() })
    }

    /// Puts a filtered session in the place of the client's, if that was only [prepared](Self::prepare).
    pub(crate) fn stand_in(session: &mut Box<HttpSession>, slot: &Arc<Slot>) {
        if !slot.interposed.load(Ordering::Relaxed)
            && let Some(out) = slot.take_out()
        {
            Self::put_on(session, slot, out, RequestBody::Untouched);
        }
    }

    /// Puts it in the place of the client's session again, after [`take_off`](Self::take_off).
    pub(crate) fn put_on(session: &mut Box<HttpSession>, slot: &Arc<Slot>, out: Outbound, body: RequestBody) {
        let real = std::mem::replace(session, Box::new(HttpSession::new_custom(Box::new(()))));
        let filtered = Self { real: Some(real), out: Some(out), slot: Arc::clone(slot), body, body_ended: false };
        **session = HttpSession::new_custom(Box::new(filtered));
        slot.interposed.store(true, Ordering::Relaxed);
    }

    /// Takes it off again, and gives the response half, for somebody else to run.
    pub(crate) fn take_off(session: &mut Box<HttpSession>, slot: &Slot) -> Option<Outbound> {
        Self::restore(session, slot);
        slot.take_out()
    }

    /// Puts the client's session back, if it is not there already.
    pub(crate) fn restore(session: &mut Box<HttpSession>, slot: &Slot) {
        if !slot.interposed.load(Ordering::Relaxed) {
            return;
        }
        slot.interposed.store(false, Ordering::Relaxed);
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

    /// Every write path of Pingora ends here.
    async fn process(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let (slot, real, out) = self.parts();
        out.write(slot, real, tasks).await
    }

    fn parts(&mut self) -> (&Slot, &mut HttpSession, &mut Outbound) {
        let real = self.real.as_deref_mut().expect("held until drop");
        (&self.slot, real, self.out.as_mut().expect("held until drop"))
    }

    fn out(&mut self) -> &mut Outbound {
        self.out.as_mut().expect("held until drop")
    }
}

impl Drop for FilteredSession {
    fn drop(&mut self) {
        *self.slot.out.lock() = self.out.take();
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
            self.out().early_informational = true;
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
        let (slot, real, out) = self.parts();
        out.cut(slot, real).await;
    }

    fn is_body_done(&mut self) -> bool {
        let known = self.out().abandons_body() || self.body_ended || matches!(self.body, RequestBody::Whole(_));
        known || self.real_mut().is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        let (slot, real, out) = self.parts();
        out.finish(slot, real).await
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
            Err(_) => self.out().breaks(),
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
