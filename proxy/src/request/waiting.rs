//! A client may leave while its request waits for what another one fetches, or reads it along: then the request ends at once.
//!
//! Pingora waits for a fill without looking at the client. Where a fill is under way for what is asked, the client's session therefore
//! stands aside during the lookup ([`super::leader`], with the session at its place), and the task that waits for the fill looks at
//! it. While a body is read along, the reader itself does. Requests that neither wait nor read along pay one branch.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use async_trait::async_trait;
use bytes::Bytes;
use pingora::cache::storage::{HandleHit, HitHandler};
use pingora::cache::trace::SpanHandle;
use pingora::cache::{CacheKey, Storage};
use pingora::protocols::http::server::Session as HttpSession;
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use selvedge_cache::{Cache, Client, Presence, Seen};

use super::leader::{self, Between, Place};
use super::{RequestCtx, lookup};

impl Place {
    /// The session, if it is here; who watches the client stops.
    pub(super) fn recall(&self) -> Option<Box<HttpSession>> {
        let session = self.session.lock().take();
        if let Some(watcher) = self.watcher.lock().take() {
            watcher.wake();
        }
        session
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.get_mut().take() {
            watcher.wake();
        }
    }
}

impl Client for Place {
    fn poll_leave(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        let mut place = self.session.lock();
        let Some(session) = place.as_mut() else { return Poll::Ready(Seen::Resumed) };
        *self.watcher.lock() = Some(cx.waker().clone());
        // Of a request without a body, this ends when the client has left, and loses nothing when it is dropped before.
        match pin!(session.read_body_or_idle(true)).poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(_) => {
                self.gone.store(true, Ordering::Relaxed);
                Poll::Ready(Seen::Left)
            }
        }
    }
}

/// The request is about to be looked up: if a fill is under way for what it asks, its client is watched meanwhile.
pub(super) fn may_begin(session: &mut Session, ctx: &mut RequestCtx, cache: &'static Cache) {
    if !cache.fills_are_under_way() || session.subrequest_ctx.is_some() || ctx.leader.is_some() {
        return;
    }
    let Ok(key) = lookup::make_key(session, ctx) else { return }; // It fails again where that is told.
    if cache.is_under_way(&key) {
        leader::wrap(session, ctx, Between::LentAtOnce);
    }
    ctx.cache.keep(key);
}

/// Marks the key of a request whose client is watched.
pub(super) fn mark(key: &mut CacheKey, ctx: &RequestCtx) {
    if let Some(place) = &ctx.leader {
        let place = Arc::downgrade(place) as Weak<dyn Client>;
        key.extensions.insert(Presence::of(place));
    }
}

/// The wait is over: the session is back.
///
/// # Errors
/// The client has left.
pub(super) fn is_over(session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
    match leader::unwrap(session, ctx) {
        Some(place) if place.gone.load(Ordering::Relaxed) => Err(left()),
        _ => Ok(()),
    }
}

/// What another request fetches is read along: the client is watched while nothing comes.
pub(super) fn reads_along(session: &mut Session, ctx: &mut RequestCtx, hit: &mut HitHandler) {
    if session.subrequest_ctx.is_some() || ctx.leader.is_some() {
        return;
    }
    let trails = leader::takes_trailers(session);
    leader::wrap(session, ctx, Between::Lent);
    let Some(place) = &ctx.leader else { return };
    let body = std::mem::replace(hit, Box::new(Nothing));
    *hit = Box::new(Along { body, client: Arc::clone(place), trails });
}

fn left() -> Box<Error> {
    Error::explain(ErrorType::ConnectionClosed, "the client has left").into_down()
}

/// A body that is read while it arrives, as long as its reader is there.
struct Along {
    body: HitHandler,
    client: Arc<Place>,
    /// The client can be sent trailers, should some follow.
    trails: bool,
}

#[async_trait]
impl HandleHit for Along {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        let client = &self.client;
        // While the session writes, it is not here to be looked at: nobody reads then.
        let leaves = poll_fn(|cx| match client.poll_leave(cx) {
            Poll::Ready(Seen::Left) => Poll::Ready(()),
            Poll::Ready(Seen::Resumed) | Poll::Pending => Poll::Pending,
        });
        let chunk = tokio::select! {
            biased;
            chunk = self.body.read_body() => chunk,
            () = leaves => Err(left()),
        };
        if matches!(chunk, Ok(None))
            && self.trails
            && let Some(trailers) = Cache::trailers(&self.body)
        {
            self.client.ends_with(trailers);
        }
        chunk
    }

    async fn finish(
        self: Box<Self>,
        storage: &'static (dyn Storage + Sync),
        key: &CacheKey,
        trace: &SpanHandle,
    ) -> Result<()> {
        self.body.finish(storage, key, trace).await
    }

    fn can_seek(&self) -> bool {
        self.body.can_seek()
    }

    fn can_seek_multipart(&self) -> bool {
        self.body.can_seek_multipart()
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        self.body.seek(start, end)
    }

    fn seek_multipart(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        self.body.seek_multipart(start, end)
    }

    fn should_count_access(&self) -> bool {
        self.body.should_count_access()
    }

    fn get_eviction_weight(&self) -> usize {
        self.body.get_eviction_weight()
    }

    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self.body.as_any()
    }

    fn as_any_mut(&mut self) -> &mut (dyn std::any::Any + Send + Sync) {
        self.body.as_any_mut()
    }
}

/// Stands where a body is taken from for a moment.
struct Nothing;

#[async_trait]
impl HandleHit for Nothing {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn finish(
        self: Box<Self>,
        _storage: &'static (dyn Storage + Sync),
        _key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn std::any::Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn std::any::Any + Send + Sync) {
        self
    }
}
