//! gRPC-Web towards the client, gRPC for everybody else: on routes that say `grpc_web`, the session of a client that speaks it is wrapped
//! right after the route is known, below filters and cache. What is behind sees a request of gRPC and answers with trailers.
//!
//! ```text
//! client ── gRPC-Web ── WebSession ── gRPC ── filters ── upstream (HTTP/2)
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::wrapped::as_the_clients_own;
use super::{RequestCtx, leader};
use crate::grpc::web::{self, Decoder, Variant};

/// Where the client's session goes when the wrapper is dropped.
#[derive(Default)]
pub(crate) struct Place {
    session: Mutex<Option<Box<HttpSession>>>,
    /// An error answer was made: the connection must not be kept alive.
    pub(super) close: AtomicBool,
    /// See [`crate::chain::session::Slot::attempt`].
    pub(super) attempt: AtomicBool,
}

/// Speaks gRPC-Web with a client that does.
///
/// # Errors
/// The header has no room.
pub(super) fn begin(session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
    let downstream = &mut session.downstream_session;
    let request = downstream.req_header();
    if request.method != Method::POST {
        return Ok(());
    }
    let asked = request.headers.get(header::CONTENT_TYPE).and_then(|value| Variant::of(value.as_bytes()));
    let Some((variant, plain)) = asked.and_then(|variant| variant.plain().map(|plain| (variant, plain))) else {
        return Ok(());
    };
    downstream.is_body_empty(); // HTTP/1 finds out how the body is framed now, or by what is left of the header.
    let request = downstream.req_header_mut();
    request.insert_header(header::CONTENT_TYPE, plain)?;
    request.insert_header(header::TE, HeaderValue::from_static("trailers"))?;
    request.remove_header("x-grpc-web");
    if variant.text {
        request.remove_header(&header::CONTENT_LENGTH); // What it announces is longer than what comes of it.
    }
    let place = Arc::new(Place::default());
    let real = std::mem::replace(downstream, Box::new(HttpSession::new_custom(Box::new(()))));
    let wrapped = WebSession {
        real: Some(real),
        place: Arc::clone(&place),
        decoder: variant.text.then(Decoder::default),
        variant,
        body_ended: false,
        stage: Stage::Open,
    };
    **downstream = HttpSession::new_custom(Box::new(wrapped));
    ctx.web = Some(place);
    Ok(())
}

/// Puts the client's own session back.
pub(super) fn restore(session: &mut Session, ctx: &mut RequestCtx) {
    let Some(place) = ctx.web.take() else { return };
    // The wrapper is dropped by this, and fills the place.
    *session.downstream_session = HttpSession::new_custom(Box::new(()));
    if let Some(real) = place.session.lock().take() {
        session.downstream_session = real;
    }
}

/// How far the response has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No final header yet.
    Open,
    /// It is one of gRPC: its body and trailers are translated. `told` = its status is in the header.
    Body { told: bool },
    /// It is something else, or over.
    Passing,
}

/// See the [module](self).
struct WebSession {
    real: Option<Box<HttpSession>>,
    place: Arc<Place>,
    variant: Variant,
    /// Where the request's body is in base64.
    decoder: Option<Decoder>,
    body_ended: bool,
    stage: Stage,
}

impl WebSession {
    fn real(&self) -> &HttpSession {
        self.real.as_deref().expect("held until drop")
    }

    /// Whether the upstream's session is ours, too.
    fn is_attempt(&self) -> bool {
        self.place.attempt.load(Relaxed)
    }

    fn real_mut(&mut self) -> &mut HttpSession {
        self.real.as_deref_mut().expect("held until drop")
    }

    /// A piece of the request's body as the upstream gets it; `None` = that is all.
    fn decoded(&mut self, data: Option<Bytes>) -> Result<Option<Bytes>> {
        let Some(decoder) = &mut self.decoder else { return Ok(data) };
        let malformed = |_| Error::explain(ErrorType::HTTPStatus(400), "the body is no base64 (gRPC-Web)").into_down();
        match data {
            Some(data) => decoder.decode(&data).map(Some).map_err(malformed),
            None if self.body_ended => Ok(None),
            None => {
                self.body_ended = true;
                let rest = decoder.end().map_err(malformed)?;
                Ok((!rest.is_empty()).then_some(rest))
            }
        }
    }

    /// A header as the client gets it.
    fn header(&mut self, header: &mut ResponseHeader, end: bool) -> Result<()> {
        if header.status.is_informational() {
            return Ok(());
        }
        if self.place.close.load(Relaxed) {
            self.real_mut().set_keepalive(None);
        }
        web::expose(header)?;
        self.stage = Stage::Passing;
        let Some(content_type) = self.variant.answer(header.headers.get(header::CONTENT_TYPE)) else { return Ok(()) };
        header.insert_header(header::CONTENT_TYPE, content_type)?;
        header.remove_header(&header::TRAILER);
        header.remove_header(&header::CONTENT_LENGTH);
        let version = self.real().req_header().version;
        if end {
            // The status is in the header (`Trailers-Only`), where clients look first.
            header.remove_header(&header::TRANSFER_ENCODING);
            if version < Version::HTTP_2 {
                header.set_content_length(0)?;
            }
            return Ok(());
        }
        self.stage = Stage::Body { told: header.headers.contains_key("grpc-status") };
        match version {
            Version::HTTP_2 => {}
            Version::HTTP_11 => {
                header.set_version(Version::HTTP_11);
                header.insert_header(header::TRANSFER_ENCODING, "chunked")?;
            }
            _ => self.real_mut().set_keepalive(None), // The body ends with the connection.
        }
        Ok(())
    }

    fn piece(&self, data: Bytes) -> Bytes {
        if self.variant.text && !data.is_empty() { web::encode(&data) } else { data }
    }

    /// What comes of a task.
    fn translate(&mut self, task: HttpTask, out: &mut Vec<HttpTask>) -> Result<()> {
        if let HttpTask::Header(mut header, end) = task {
            self.header(&mut header, end)?;
            out.push(HttpTask::Header(header, end));
            return Ok(());
        }
        let Stage::Body { told } = self.stage else {
            out.push(task);
            return Ok(());
        };
        let (data, trailers) = match task {
            HttpTask::Body(data, false) => {
                if let Some(data) = data.filter(|data| !data.is_empty()) {
                    out.push(HttpTask::Body(Some(self.piece(data)), false));
                }
                return Ok(());
            }
            HttpTask::Body(data, true) => (data, None),
            HttpTask::Trailer(trailers) => (None, trailers),
            HttpTask::Done => (None, None),
            task @ (HttpTask::Failed(_) | HttpTask::UpgradedBody(..) | HttpTask::Header(..)) => {
                out.push(task);
                return Ok(());
            }
        };
        self.stage = Stage::Passing;
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            out.push(HttpTask::Body(Some(self.piece(data)), false));
        }
        let last = match trailers {
            Some(trailers) => Some(web::trailers(&trailers)),
            None if told => None,
            None => Some(web::trailers(&web::no_trailers())),
        };
        out.push(HttpTask::Body(last.map(|frame| self.piece(frame)), true));
        Ok(())
    }

    async fn write(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let mut out = Vec::with_capacity(tasks.len() + 1);
        for task in tasks {
            self.translate(task, &mut out)?;
        }
        if out.is_empty() { Ok(false) } else { self.real_mut().response_duplex_vec(out).await }
    }
}

impl Drop for WebSession {
    fn drop(&mut self) {
        *self.place.session.lock() = self.real.take();
    }
}

#[async_trait]
impl CustomSession for WebSession {
    as_the_clients_own!();

    fn req_header(&self) -> &RequestHeader {
        self.real().req_header()
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        self.real_mut().req_header_mut()
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        let data = self.real_mut().read_request_body().await?;
        self.decoded(data)
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.real_mut().drain_request_body().await
    }

    async fn write_response_header(&mut self, mut header: Box<ResponseHeader>, end: bool) -> Result<()> {
        if header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS && end {
            return self.real_mut().write_response_header(header).await; // Written ahead of its batch.
        }
        self.header(&mut header, end)?;
        self.real_mut().response_duplex_vec(vec![HttpTask::Header(header, end)]).await.map(drop)
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(header.clone()), end).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.write(vec![HttpTask::Body(Some(data), end)]).await.map(drop)
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.write(vec![HttpTask::Trailer(Some(Box::new(trailers)))]).await.map(drop)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        self.write(tasks).await
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.stage = Stage::Passing;
        self.real_mut().shutdown().await;
    }

    fn is_body_done(&mut self) -> bool {
        // What is left of base64 comes after the last byte was read.
        let held = self.decoder.is_some() && !self.body_ended;
        !held && self.real_mut().is_body_done()
    }

    async fn finish(&mut self) -> Result<()> {
        if matches!(self.stage, Stage::Body { .. }) {
            self.write(vec![HttpTask::Done]).await?;
        }
        self.real_mut().finish_body().await
    }

    fn is_body_empty(&mut self) -> bool {
        self.real_mut().is_body_empty()
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        let done = no_body_expected || self.body_ended;
        if !done && self.decoder.is_some() && self.real_mut().is_body_done() {
            return self.decoded(None); // Pingora would wait for the client to leave.
        }
        let data = self.real_mut().read_body_or_idle(done).await?;
        self.decoded(data)
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        leader::raw_header(self.real().req_header())
    }

    fn enable_retry_buffering(&mut self) {
        if self.decoder.is_none() {
            self.real_mut().enable_retry_buffering();
        }
    }

    /// What was read in base64 is not kept: such a request is sent again only before any of its body.
    fn retry_buffer_truncated(&self) -> bool {
        if self.decoder.is_some() { self.real().body_bytes_read() > 0 } else { self.real().retry_buffer_truncated() }
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        if self.decoder.is_some() { None } else { self.real().get_retry_buffer() }
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn is_upgrade_req(&self) -> bool {
        false
    }

    fn was_upgraded(&self) -> bool {
        false
    }
}
