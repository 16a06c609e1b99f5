//! The client whose request fills the cache may be slow, or stop reading: the fill does not wait for it.
//!
//! Pingora writes to that client from the same loop that reads the upstream and stores what comes. A write that may be put aside lets
//! the loop go on: plain HTTP/1 sessions can do that (the proxy-task interface), HTTP/2 sessions and ours with filters cannot. Those are
//! wrapped in a [`LeaderSession`] while the request is on its way upstream: what is to be written is queued, and the write under way
//! is a future that owns the session, so that leaving it alone for a while loses nothing. The queue is short: Pingora asks for the next
//! piece of the stored body when the one before is written.
//!
//! ```text
//! upstream ──> fill ──> everybody who reads along
//!               └──> queue ──> write under way (owns the session) ──> the first client, at its own pace
//! ```

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Waker;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, StatusCode, Version};
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::custom::CustomMessageWrite;
use pingora::protocols::http::custom::server::Session as CustomSession;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::protocols::http::v1::client::http_req_header_to_wire;
use pingora::protocols::l4::socket::SocketAddr;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};

use super::RequestCtx;

/// Where the wrapped session goes when the wrapper is dropped, or a write is given up; and while its client is [watched](super::waiting).
#[derive(Default)]
pub(crate) struct Place {
    pub(super) session: Mutex<Option<Box<HttpSession>>>,
    /// A write was given up: nobody knows how much of it the client has.
    cut: AtomicBool,
    /// Whoever watches the client, to be told that the session is taken away again.
    pub(super) watcher: Mutex<Option<Waker>>,
    /// Of the response that is being stored: the client gets them behind its body, which it reads from the store.
    trailers: Mutex<Option<Box<HeaderMap>>>,
    /// The client was seen to leave.
    pub(super) gone: AtomicBool,
    /// See [`crate::chain::session::Slot::attempt`].
    pub(super) attempt: AtomicBool,
}

/// The request is about to fill the cache: from here on its client holds nobody up.
pub(super) fn unhurried(session: &mut Session, ctx: &mut RequestCtx) {
    if session.subrequest_ctx.is_some() || ctx.leader.is_some() {
        return;
    }
    let downstream = &mut session.downstream_session;
    downstream.set_proxy_tasks_enabled(true);
    if !downstream.supports_proxy_task_api() {
        wrap(session, ctx, Between::Kept);
    }
}

/// Requests inside are about to be made after this one: Pingora makes them of what a session gives for its raw header, which of an HTTP/2
/// session is nothing that can be read as a request.
pub(super) fn readable(session: &mut Session, ctx: &mut RequestCtx) {
    let http1 = session.req_header().version < Version::HTTP_2;
    if !http1 && !session.downstream_session.is_custom() && session.subrequest_ctx.is_none() {
        wrap(session, ctx, Between::Kept);
    }
}

/// The response ends with trailers. They are stored with it; Pingora reads a stored body to its client without them: here is who can send
/// them, over HTTP/2.
pub(super) fn note_trailers(session: &mut Session, trailers: &HeaderMap, ctx: &RequestCtx) {
    if !session.cache.enabled() {
        return;
    }
    if let Some(place) = &ctx.leader {
        place.ends_with(trailers);
    }
    if let Some(cache) = ctx.plan.cache {
        cache.note_trailers(&mut session.cache, trailers);
    }
}

/// What is stored answers, and ends with these trailers. Pingora's sessions of HTTP/1 cannot send any.
pub(super) fn ends_with(session: &mut Session, trailers: &HeaderMap, ctx: &mut RequestCtx) {
    if ctx.leader.is_none() && takes_trailers(session) {
        wrap(session, ctx, Between::Kept);
    }
    if let Some(place) = &ctx.leader {
        place.ends_with(trailers);
    }
}

/// Whether the client can be sent trailers of what is stored.
pub(super) fn takes_trailers(session: &Session) -> bool {
    session.req_header().version >= Version::HTTP_2 && session.subrequest_ctx.is_none()
}

impl Place {
    /// What is read from the store to the client ends with these trailers.
    pub(super) fn ends_with(&self, trailers: &HeaderMap) {
        *self.trailers.lock() = Some(Box::new(trailers.clone()));
    }
}

/// Where the client's session is between two writes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Between {
    /// With its wrapper.
    Kept,
    /// At its place, for those who watch the client.
    Lent,
    /// There too, even before the first one.
    LentAtOnce,
}

pub(super) fn wrap(session: &mut Session, ctx: &mut RequestCtx, between: Between) {
    let downstream = &mut session.downstream_session;
    let place = Arc::new(Place::default());
    let request = Box::new(downstream.req_header().clone());
    let inner = std::mem::replace(downstream, Box::new(HttpSession::new_custom(Box::new(()))));
    let mut leader = LeaderSession {
        inner: Some(inner),
        place: Arc::clone(&place),
        queue: VecDeque::new(),
        write: None,
        request,
        announced: None,
        is_whole: false,
        between,
    };
    if between == Between::LentAtOnce {
        leader.lend();
    }
    **downstream = HttpSession::new_custom(Box::new(leader));
    ctx.leader = Some(place);
}

/// Puts the client's own session back, if it was wrapped. A write that is still under way is given up, and with it the stream.
pub(super) async fn restore(session: &mut Session, ctx: &mut RequestCtx) {
    let Some(place) = unwrap(session, ctx) else { return };
    if place.cut.load(Ordering::Relaxed) {
        session.downstream_session.shutdown().await;
    }
}

/// Puts the client's own session back, if it was wrapped, and says where it was.
pub(super) fn unwrap(session: &mut Session, ctx: &mut RequestCtx) -> Option<Arc<Place>> {
    let place = ctx.leader.take()?;
    // The wrapper is dropped by this, and fills the place.
    *session.downstream_session = HttpSession::new_custom(Box::new(()));
    if let Some(inner) = place.recall() {
        session.downstream_session = inner;
    }
    Some(place)
}

/// A request's header as the bytes of HTTP/1.1, for those who have to read it again.
pub(crate) fn raw_header(request: &RequestHeader) -> Bytes {
    let mut request = request.clone();
    request.set_version(Version::HTTP_11);
    if !request.headers.contains_key(HOST)
        && let Some(authority) = request.uri.authority().map(|authority| authority.as_str().to_owned())
    {
        // It was a valid authority, so it is a valid value.
        let _ = request.insert_header(HOST, authority);
    }
    http_req_header_to_wire(&request).map(bytes::BytesMut::freeze).unwrap_or_default()
}

/// The session, lent to a write; it goes back to its place however the write ends.
struct Loan {
    session: Option<Box<HttpSession>>,
    place: Arc<Place>,
    done: bool,
}

impl Loan {
    async fn write(mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        let Some(session) = &mut self.session else { return Err(away()) };
        let written = session.response_duplex_vec(tasks).await;
        self.done = true;
        written
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        if !self.done {
            self.place.cut.store(true, Ordering::Relaxed);
        }
        *self.place.session.lock() = self.session.take();
    }
}

/// A write under way. Locked by nobody: the lock only makes it shareable, as the trait wants it.
type Write = Mutex<Pin<Box<dyn Future<Output = Result<bool>> + Send>>>;

/// See the [module](self).
struct LeaderSession {
    /// Here while no write is under way.
    inner: Option<Box<HttpSession>>,
    place: Arc<Place>,
    queue: VecDeque<HttpTask>,
    write: Option<Write>,
    /// The request's header, for those who ask while the session is away.
    request: Box<RequestHeader>,
    /// The status of the final header that was queued, for the same.
    announced: Option<ResponseHeader>,
    /// All of the response's body follows, and then its trailers, if there are some.
    is_whole: bool,
    between: Between,
}

impl LeaderSession {
    /// Waits for the write under way. Cancel safe.
    async fn settle(&mut self) -> Result<bool> {
        if let Some(write) = &mut self.write {
            let written = write.get_mut().as_mut().await;
            self.write = None;
            self.inner = self.place.session.lock().take();
            return written;
        }
        if self.inner.is_none() {
            self.inner = self.place.recall();
        }
        Ok(false)
    }

    /// Puts the session where its client can be watched, if that is wanted.
    fn lend(&mut self) {
        if self.between != Between::Kept
            && let Some(inner) = self.inner.take()
        {
            *self.place.session.lock() = Some(inner);
        }
    }

    /// Writes what is queued, in order. Cancel safe: what was begun is gone on with the next time.
    async fn flush(&mut self) -> Result<bool> {
        let mut ended = self.settle().await?;
        while !self.queue.is_empty() {
            let tasks: Vec<_> = self.queue.drain(..).collect();
            let Some(session) = self.inner.take() else { return Err(away()) };
            let loan = Loan { session: Some(session), place: Arc::clone(&self.place), done: false };
            self.write = Some(Mutex::new(Box::pin(loan.write(tasks))));
            ended |= self.settle().await?;
        }
        self.lend();
        Ok(ended)
    }

    /// The session, once everything queued is written.
    async fn ready(&mut self) -> Result<&mut HttpSession> {
        self.flush().await?;
        self.settle().await?;
        self.inner.as_deref_mut().ok_or_else(away)
    }

    /// Queues a write; what ends the body of a whole response is followed by its trailers, if there are some.
    fn push(&mut self, task: HttpTask) {
        let ends = matches!(task, HttpTask::Done | HttpTask::Body(_, true));
        let Some(trailers) = self.place.trailers.lock().take_if(|_| ends && self.is_whole) else {
            return self.queue.push_back(task);
        };
        if let HttpTask::Body(data, _) = task {
            self.queue.push_back(HttpTask::Body(data, false));
        }
        self.queue.push_back(HttpTask::Trailer(Some(trailers)));
    }

    fn note(&mut self, header: &ResponseHeader, end: bool) {
        let interim = header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS;
        if !interim {
            let is_part = [StatusCode::PARTIAL_CONTENT, StatusCode::NOT_MODIFIED].contains(&header.status);
            self.is_whole = !end && !is_part && self.request.method != Method::HEAD;
            self.announced = ResponseHeader::build_no_case(header.status, None).ok();
        }
    }
}

impl Drop for LeaderSession {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.take() {
            *self.place.session.lock() = Some(inner);
        }
        // Ends the write under way, which puts the session there by itself.
        self.write = None;
        if !self.queue.is_empty() {
            self.place.cut.store(true, Ordering::Relaxed);
        }
    }
}

fn away() -> Box<Error> {
    Error::explain(ErrorType::InternalError, "the client's session is in use")
}

#[async_trait]
impl CustomSession for LeaderSession {
    fn req_header(&self) -> &RequestHeader {
        self.inner.as_ref().map_or(&self.request, |inner| inner.req_header())
    }

    fn req_header_mut(&mut self) -> &mut RequestHeader {
        if self.inner.is_none() && self.write.is_none() {
            self.inner = self.place.recall();
        }
        match &mut self.inner {
            Some(inner) => inner.req_header_mut(),
            None => &mut self.request,
        }
    }

    async fn read_body_bytes(&mut self) -> Result<Option<Bytes>> {
        self.ready().await?.read_request_body().await
    }

    async fn drain_request_body(&mut self) -> Result<()> {
        self.ready().await?.drain_request_body().await
    }

    async fn write_response_header(&mut self, header: Box<ResponseHeader>, end: bool) -> Result<()> {
        if header.status.is_informational() && header.status != StatusCode::SWITCHING_PROTOCOLS && end {
            // Written ahead of its batch. A session without filters cannot drop the duplicate that is queued: it gets that one.
            return match self.ready().await?.as_custom_mut() {
                Some(filtered) => filtered.write_response_header(header, end).await,
                None => Ok(()),
            };
        }
        self.note(&header, end);
        self.queue.push_back(HttpTask::Header(header, end));
        self.flush().await.map(drop)
    }

    async fn write_response_header_ref(&mut self, header: &ResponseHeader, end: bool) -> Result<()> {
        self.write_response_header(Box::new(header.clone()), end).await
    }

    async fn write_body(&mut self, data: Bytes, end: bool) -> Result<()> {
        self.push(HttpTask::Body(Some(data), end));
        self.flush().await.map(drop)
    }

    async fn write_trailers(&mut self, trailers: HeaderMap) -> Result<()> {
        self.queue.push_back(HttpTask::Trailer(Some(Box::new(trailers))));
        self.flush().await.map(drop)
    }

    async fn response_duplex_vec(&mut self, tasks: Vec<HttpTask>) -> Result<bool> {
        for task in tasks {
            self.send_proxy_task(task);
        }
        self.flush().await
    }

    fn proxy_tasks_enabled(&self) -> bool {
        true
    }

    fn send_proxy_task(&mut self, task: HttpTask) {
        if let HttpTask::Header(header, end) = &task {
            self.note(header, *end);
        }
        self.push(task);
    }

    fn has_pending_proxy_tasks(&self) -> bool {
        self.write.is_some() || !self.queue.is_empty()
    }

    async fn write_proxy_tasks(&mut self) -> Result<bool> {
        self.flush().await
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) {
        if let Some(inner) = &mut self.inner {
            inner.set_read_timeout(timeout);
        }
    }

    fn get_read_timeout(&self) -> Option<Duration> {
        self.inner.as_ref()?.get_read_timeout()
    }

    fn set_write_timeout(&mut self, timeout: Option<Duration>) {
        if let Some(inner) = &mut self.inner {
            inner.set_write_timeout(timeout);
        }
    }

    fn get_write_timeout(&self) -> Option<Duration> {
        self.inner.as_ref()?.get_write_timeout()
    }

    fn set_total_drain_timeout(&mut self, timeout: Option<Duration>) {
        if let Some(inner) = &mut self.inner {
            inner.set_total_drain_timeout(timeout);
        }
    }

    fn get_total_drain_timeout(&self) -> Option<Duration> {
        self.inner.as_ref()?.get_total_drain_timeout()
    }

    fn request_summary(&self) -> String {
        let target = self.request.uri.path_and_query().map_or("/", |target| target.as_str());
        format!("{} {target}", self.request.method)
    }

    fn response_written(&self) -> Option<&ResponseHeader> {
        match &self.inner {
            Some(inner) => inner.response_written(),
            None => self.announced.as_ref(),
        }
    }

    async fn shutdown(&mut self, _code: u32, _context: &str) {
        self.queue.clear();
        self.write = None;
        if self.inner.is_none() {
            self.inner = self.place.session.lock().take();
        }
        if let Some(inner) = &mut self.inner {
            inner.shutdown().await;
        }
    }

    fn is_body_done(&mut self) -> bool {
        self.inner.as_mut().is_none_or(|inner| inner.is_body_done())
    }

    async fn finish(&mut self) -> Result<()> {
        self.ready().await?.finish_body().await
    }

    fn is_body_empty(&mut self) -> bool {
        self.inner.as_mut().is_none_or(|inner| inner.is_body_empty())
    }

    async fn read_body_or_idle(&mut self, no_body_expected: bool) -> Result<Option<Bytes>> {
        match &mut self.inner {
            Some(inner) => inner.read_body_or_idle(no_body_expected).await,
            // That the client has left, the write under way finds out.
            None => std::future::pending().await,
        }
    }

    fn body_bytes_sent(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.body_bytes_sent())
    }

    fn body_bytes_read(&self) -> usize {
        self.inner.as_ref().map_or(0, |inner| inner.body_bytes_read())
    }

    fn digest(&self) -> Option<&Digest> {
        self.inner.as_ref()?.digest()
    }

    fn digest_mut(&mut self) -> Option<&mut Digest> {
        self.inner.as_mut()?.digest_mut()
    }

    fn client_addr(&self) -> Option<&SocketAddr> {
        self.inner.as_ref()?.client_addr()
    }

    fn server_addr(&self) -> Option<&SocketAddr> {
        self.inner.as_ref()?.server_addr()
    }

    fn pseudo_raw_h1_request_header(&self) -> Bytes {
        raw_header(self.inner.as_ref().map_or(&self.request, |inner| inner.req_header()))
    }

    fn enable_retry_buffering(&mut self) {
        if let Some(inner) = &mut self.inner {
            inner.enable_retry_buffering();
        }
    }

    fn retry_buffer_truncated(&self) -> bool {
        self.inner.as_ref().is_none_or(|inner| inner.retry_buffer_truncated())
    }

    fn get_retry_buffer(&self) -> Option<Bytes> {
        self.inner.as_ref()?.get_retry_buffer()
    }

    async fn finish_custom(&mut self) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_reader(
        &mut self,
    ) -> Option<Box<dyn futures::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>> {
        self.place.attempt.load(Ordering::Relaxed).then(|| Box::new(futures::stream::empty()) as _)
    }

    fn restore_custom_message_reader(
        &mut self,
        _reader: Box<dyn futures::Stream<Item = Result<Bytes>> + Unpin + Send + Sync + 'static>,
    ) -> Result<()> {
        Ok(())
    }

    fn take_custom_message_writer(&mut self) -> Option<Box<dyn CustomMessageWrite>> {
        self.place.attempt.load(Ordering::Relaxed).then(|| Box::new(()) as _)
    }

    fn restore_custom_message_writer(&mut self, _writer: Box<dyn CustomMessageWrite>) -> Result<()> {
        Ok(())
    }

    fn is_upgrade_req(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.is_upgrade_req())
    }

    fn was_upgraded(&self) -> bool {
        self.inner.as_ref().is_some_and(|inner| inner.was_upgraded())
    }
}
