//! The response half of the chain: what is written to the client passes it here, so that a filter may hold the header until it has seen the
//! body, and answer in its place, on cache hits too.
//!
//! It is run by whoever writes to the client: the [session](super::session) that stands in the client's place before Pingora, or, on the
//! short way, `request/direct.rs` itself.

mod batch;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::{Error, ErrorSource, Result};

use self::batch::Batch;
use super::session::{Slot, lost};
use super::{Advanced, Chain, ChainError, Event, Stopped};
use crate::compress::outlet::Outlet;
use crate::plan::Route;
use crate::request::{fail, step};

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

/// See the [module](self).
pub(crate) struct Outbound {
    response: Response,
    /// A reply was made while the client was still sending: report the upload as done.
    abandon_body: bool,
    /// The client's session failed; nothing more can be written.
    broken: bool,
    /// The client's session was ended short of its response.
    cut: bool,
    /// An error answer is being written past the chain.
    unfiltered: bool,
    /// A 1xx was written ahead of its batch: drop the queued duplicate.
    pub(super) early_informational: bool,
    /// The route, where it says which pages of other origins may use it: that is in every response, whoever made it.
    cors: Option<Arc<Route>>,
    /// Where responses leave compressed, on routes that do that.
    outlet: Option<Box<Outlet>>,
}

impl Outbound {
    pub(super) fn of(chain: &Chain) -> Self {
        let for_client = chain.state.outer_half.is_none();
        let route = &chain.state.route;
        let wanted = chain.state.encoding;
        Self {
            response: Response::Open,
            abandon_body: false,
            broken: false,
            cut: false,
            unfiltered: false,
            early_informational: false,
            cors: (for_client && route.cors.is_some()).then(|| Arc::clone(route)),
            outlet: (for_client && route.compress.is_some()).then(|| Box::new(Outlet::new(Arc::clone(route), wanted))),
        }
    }

    /// Nothing more of what the client sends is of interest.
    pub(super) fn abandons_body(&self) -> bool {
        self.abandon_body
    }

    /// The client cannot be written to any more.
    pub(crate) fn breaks(&mut self) {
        self.broken = true;
    }

    /// Sends this through the chain, and to the client what comes out; says whether the response has ended.
    ///
    /// # Errors
    /// The client left, or a filter failed when the client had the header already.
    pub(crate) async fn write(&mut self, slot: &Slot, real: &mut HttpSession, tasks: Vec<HttpTask>) -> Result<bool> {
        if self.response == Response::Ended {
            return Ok(true); // What the origin still sends is of no interest.
        }
        if real.was_upgraded() {
            return self.forward(real, tasks).await; // After a 101 there is no HTTP left to filter.
        }
        let mut batch = Batch::new(tasks);
        let filtered = slot.with_chain(|chain| self.filter(slot, real, chain, &mut batch));
        let filtered = match filtered.ok_or_else(lost)? {
            Ok(None) => Ok(()),
            Ok(Some(stopped)) => Box::pin(self.filter_on(slot, real, stopped, &mut batch)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = filtered {
            return Box::pin(self.answer_failure(slot, real, error)).await;
        }
        let tasks = batch.finish();
        if tasks.is_empty() {
            return Ok(self.response == Response::Ended);
        }
        self.forward(real, tasks).await
    }

    /// Ends the response: the filters see its end, if they have not yet. Idempotent.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub(crate) async fn finish(&mut self, slot: &Slot, real: &mut HttpSession) -> Result<()> {
        if self.cut {
            return Ok(());
        }
        if self.response == Response::Sent && !self.broken && !real.was_upgraded() {
            Box::pin(self.write(slot, real, vec![HttpTask::Done])).await?;
        }
        real.finish_body().await
    }

    /// Runs tasks through the chain, until one stops in it; what comes out may be written.
    fn filter(
        &mut self,
        slot: &Slot,
        real: &mut HttpSession,
        chain: &mut Chain,
        batch: &mut Batch,
    ) -> Result<Option<Stopped>> {
        while self.response != Response::Ended
            && let Some(task) = batch.take()
        {
            let event = match task {
                HttpTask::Header(header, end) if is_interim(&header) => {
                    // `store` says so to sessions that are not filtered.
                    real.set_close_on_response_before_downstream_finish(false);
                    if !std::mem::take(&mut self.early_informational) {
                        batch.push(HttpTask::Header(header, end));
                    }
                    continue;
                }
                HttpTask::Header(header, end) if chain.response_started() => {
                    // An error answer, made after the chain has seen a response that is not out yet: it takes that one's place, unfiltered.
                    self.unfiltered = true;
                    self.write_header(slot, real, batch, header, end)?;
                    continue;
                }
                HttpTask::Header(header, end) => {
                    // A 101 has no body: what follows is another protocol. Of others without one (RFC 9110, 6.4.1) Pingora does not
                    // always say that they end here.
                    let end = end
                        || header.status == StatusCode::SWITCHING_PROTOCOLS
                        || is_bodiless(&header, real.req_header());
                    step!(chain.state, "filter", direction = "response");
                    chain.state.response_comes(header);
                    Event::Headers { end }
                }
                HttpTask::Body(data, end) if self.unfiltered => {
                    self.ended(end);
                    batch.push(HttpTask::Body(data, end));
                    continue;
                }
                HttpTask::Body(data, end) => Event::Body { data: data.unwrap_or_default(), end },
                HttpTask::Trailer(Some(trailers)) => {
                    chain.state.response_trailers = Some(trailers);
                    Event::Trailers
                }
                // No end was flagged on the last chunk: the filters still have to see it.
                HttpTask::Trailer(None) | HttpTask::Done if self.unfiltered => {
                    self.response = Response::Ended;
                    batch.push(HttpTask::Done);
                    continue;
                }
                HttpTask::Trailer(None) | HttpTask::Done => Event::Body { data: Bytes::new(), end: true },
                HttpTask::Failed(error) => {
                    if !is_committed(real) {
                        return Err(error); // Nothing was sent, whatever this batch holds: the proxy can still answer.
                    }
                    self.broken = true;
                    batch.push(HttpTask::Failed(error));
                    continue;
                }
                task @ HttpTask::UpgradedBody(..) => {
                    batch.push(task);
                    continue;
                }
            };
            match chain.begin_response(real, event) {
                Ok(Advanced::Through(event)) => self.passed(slot, real, chain, event, None, batch)?,
                Ok(Advanced::Stopped(stopped)) => return Ok(Some(stopped)),
                Err(error) => return Err(self.chain_error(real, error)),
            }
        }
        Ok(None)
    }

    /// Goes on with a task that has stopped in the chain, and those behind it.
    async fn filter_on(
        &mut self,
        slot: &Slot,
        real: &mut HttpSession,
        stopped: Stopped,
        batch: &mut Batch,
    ) -> Result<()> {
        let Some(mut lent) = slot.lend() else { return Err(lost()) };
        let chain = &mut *lent;
        let mut next = Some(stopped);
        while let Some(stopped) = next {
            let passed = match chain.end_response(real, stopped).await {
                Ok(passed) => passed,
                Err(error) => return Err(self.chain_error(real, error)),
            };
            let mut events = passed.into_iter().peekable();
            while let Some(event) = events.next() {
                self.passed(slot, real, chain, event, events.peek(), batch)?;
            }
            // Answered here: what the client is still uploading is of no interest, and the proxy must not wait for it.
            self.abandon_body |= chain.replied();
            next = self.filter(slot, real, chain, batch)?;
        }
        Ok(())
    }

    /// An event has passed the whole chain, with another one behind it or none so far.
    fn passed(
        &mut self,
        slot: &Slot,
        real: &mut HttpSession,
        chain: &mut Chain,
        event: Event,
        next: Option<&Event>,
        batch: &mut Batch,
    ) -> Result<()> {
        match event {
            Event::Headers { end } => {
                let Some(mut header) = chain.state.response_goes() else { return Ok(()) };
                if let (false, Some(Event::Body { data, end: true })) = (end, next) {
                    fix_length(&mut header, data.len(), real.req_header());
                }
                self.write_header(slot, real, batch, header, end)?;
            }
            Event::Body { data, end } => {
                self.ended(end);
                if end || !data.is_empty() {
                    batch.push(HttpTask::Body((!data.is_empty()).then_some(data), end));
                }
            }
            Event::Trailers => {
                self.response = Response::Ended;
                batch.push(HttpTask::Trailer(chain.state.trailers_go()));
            }
        }
        Ok(())
    }

    fn write_header(
        &mut self,
        slot: &Slot,
        real: &mut HttpSession,
        batch: &mut Batch,
        mut header: Box<ResponseHeader>,
        end: bool,
    ) -> Result<()> {
        if let Some(cors) = self.cors.as_ref().and_then(|route| route.cors.as_ref()) {
            // Valid names and values: nothing can be refused.
            let _ = cors.mark(&real.req_header().headers, &mut header);
        }
        let bodiless = is_bodiless(&header, real.req_header());
        if let Some(outlet) = &mut self.outlet {
            outlet.header(real.req_header(), &mut header, end || bodiless, slot.stored.lock().take())?;
        }
        let mut until_close = false;
        if !end && !bodiless {
            until_close = frame(&mut header, real.req_header().version) == Framing::UntilClose;
        }
        if until_close || slot.close.load(Ordering::Relaxed) {
            real.set_keepalive(None);
        }
        let end = (end || bodiless) && header.status != StatusCode::SWITCHING_PROTOCOLS;
        self.response = if end { Response::Ended } else { Response::Sent };
        batch.push(HttpTask::Header(header, end));
        Ok(())
    }

    fn ended(&mut self, end: bool) {
        if end {
            self.response = Response::Ended;
        }
    }

    /// Answers an error of the chain when the client has nothing yet. Here and not in `fail_to_proxy`, because Pingora does not call
    /// that on cache hits, and on misses takes an error of this session for a client that has left, and only goes on to fill the cache.
    async fn answer_failure(&mut self, slot: &Slot, real: &mut HttpSession, error: Box<Error>) -> Result<bool> {
        let ours = *error.esource() == ErrorSource::Internal;
        if !ours {
            return Err(error);
        }
        if let Some(token) = fail::token(&error) {
            slot.failure.get_or_init(|| token);
        }
        if let Some(outer_half) = &slot.outer_half {
            outer_half.broke(&error); // It answers.
            self.cut(slot, real).await;
            return Err(error);
        }
        let answer =
            slot.with_chain(|chain| fail::chain_answer(&error, chain.state.route.node_in_fields(), chain.state.asked));
        let Some((header, body)) = answer.flatten().filter(|_| !is_committed(real)) else {
            self.cut(slot, real).await;
            return Err(error);
        };

        slot.close.store(true, Ordering::Relaxed);
        self.abandon_body = true;
        let mut batch = Batch::new(Vec::with_capacity(2));
        self.write_header(slot, real, &mut batch, header, body.is_empty())?;
        if self.response != Response::Ended {
            batch.push(HttpTask::Body(Some(body), true));
        }
        self.response = Response::Ended;
        self.forward(real, batch.finish()).await
    }

    /// Ends the client's stream so that it knows it has not got all: by a reset on HTTP/2, with the connection on HTTP/1.
    pub(super) async fn cut(&mut self, slot: &Slot, real: &mut HttpSession) {
        self.broken = true;
        self.cut = true;
        self.abandon_body = true;
        slot.close.store(true, Ordering::Relaxed);
        real.set_keepalive(None);
        real.shutdown().await;
    }

    async fn forward(&mut self, real: &mut HttpSession, tasks: Vec<HttpTask>) -> Result<bool> {
        let ended = self.response == Response::Ended;
        let result = match &mut self.outlet {
            Some(outlet) if !outlet.is_idle() => Box::pin(outlet.write(real, tasks)).await,
            _ => real.response_duplex_vec(tasks).await,
        };
        // That the client has all of an announced length does not mean that the filters have seen the end: `finish` shows it to them.
        if result.is_err() {
            self.broken = true;
        }
        result.map(|done| done || ended)
    }

    fn chain_error(&mut self, real: &HttpSession, error: ChainError) -> Box<Error> {
        if let ChainError::ClientGone(cause) = error {
            self.broken = true;
            return cause.into_down();
        }
        if is_committed(real) {
            self.broken = true;
        }
        fail::from_chain(error)
    }
}

/// Whether the client has a final header, so that no other answer can be given.
fn is_committed(real: &HttpSession) -> bool {
    real.response_written().is_some_and(|written| !written.status.is_informational())
}

/// 1xx that precede the final response; a 101 is final.
pub(super) fn is_interim(header: &ResponseHeader) -> bool {
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
