//! What one client connection is doing, for its deadlines and for what it may do in all.
//!
//! A connection is served by one task, so its state is a task-local. HTTP/2 streams have tasks of their own: they reach what they share
//! through the connection's digest ([`crate::transport::Told`]).

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use pingora::server::ShutdownWatch;
use tokio::sync::{Notify, watch};

use super::ListenerFacts;
use crate::limits::Limit;
use crate::listening::LINGER;
use crate::telemetry::counters::Counters;

/// What an HTTP/1 connection is doing, for its deadlines.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Doing {
    /// Waiting for the first byte of a request.
    Idle,
    /// Receiving a request header.
    Header,
    /// Being served; or speaking HTTP/2, which has deadlines of its own.
    Exchange,
}

/// How much more than `header_size` is read before an HTTP/1 connection ends without an answer: what follows the header may come with it.
const HEADER_SLACK: u64 = 64 * 1024;

pub(super) struct Connection {
    /// With a number that changes whenever it does something else, so that [`overdue`] notices without a clock.
    doing: Cell<(Doing, u64)>,
    /// The client has sent something at all.
    begun: Cell<bool>,
    /// Bytes that came since it does what it does.
    received: Cell<u64>,
    /// How many bytes may come before a header is complete.
    header_max: u64,
    shared: Arc<Shared>,
}

tokio::task_local! {
    pub(super) static CONNECTION: Connection;
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            doing: Cell::new((Doing::Idle, 0)),
            begun: Cell::new(false),
            received: Cell::new(0),
            header_max: shared.facts.header_size.saturating_add(HEADER_SLACK),
            shared,
        }
    }

    fn turns_to(&self, doing: Doing) {
        self.doing.set((doing, self.doing.get().1.wrapping_add(1)));
        self.received.set(0);
    }

    fn received(&self, count: usize) {
        self.begun.set(true);
        if self.doing.get().0 == Doing::Idle {
            self.turns_to(Doing::Header);
        }
        let received = self.received.get() + count as u64;
        self.received.set(received);
        if received > self.header_max && self.doing.get().0 == Doing::Header {
            self.shared.end(Limit::HeaderSize);
        }
    }
}

/// Says that the connection waits for another request.
pub(super) fn is_idle() {
    let _ = CONNECTION.try_with(|connection| connection.turns_to(Doing::Idle));
}

/// Says that so many bytes have come from the client.
pub(crate) fn bytes_have_come(count: usize) {
    let _ = CONNECTION.try_with(|connection| connection.received(count));
}

/// Says that the request header is complete: the deadline for it no longer applies.
pub(crate) fn header_is_read() {
    let _ = CONNECTION.try_with(|connection| connection.turns_to(Doing::Exchange));
}

/// What the HTTP/2 streams of this connection share.
pub(crate) fn shared() -> Option<Arc<Shared>> {
    CONNECTION.try_with(|connection| Arc::clone(&connection.shared)).ok()
}

/// Ends when a header is overdue, or the connection was idle for too long; at most half a deadline late. Looks twice per deadline: one
/// timer per connection and interval, and no clock read, instead of both per request.
pub(super) async fn overdue(facts: &ListenerFacts) -> Option<Limit> {
    let interval = facts.header_timeout.min(facts.idle_timeout) / 2;
    let mut seen = CONNECTION.with(|connection| connection.doing.get());
    let mut lasted = Duration::ZERO;
    loop {
        // Pingora's coarse timer: thousands of connections share a few entries.
        pingora::time::fast_timeout::fast_sleep(interval).await;
        let now = CONNECTION.with(|connection| connection.doing.get());
        lasted = if now == seen { lasted + interval } else { Duration::ZERO };
        seen = now;
        match now.0 {
            Doing::Idle if lasted >= facts.idle_timeout => return None,
            Doing::Header if lasted >= facts.header_timeout => return Some(Limit::HeaderTimeout),
            Doing::Idle | Doing::Header | Doing::Exchange => {}
        }
    }
}

/// Ends when the node stops while the connection has not said a word. One that has is told by Pingora.
pub(super) async fn stopped_while_silent(mut shutdown: ShutdownWatch, shared: &Shared) {
    let stopping = shutdown.wait_for(|stopping| *stopping).await.is_ok();
    if stopping {
        shared.is_last();
    }
    if stopping {
        tokio::time::sleep(LINGER).await;
    }
    if !stopping || CONNECTION.with(|connection| connection.begun.get()) {
        std::future::pending().await
    }
}

/// What is known of a connection in its streams' tasks too.
pub(crate) struct Shared {
    facts: Arc<ListenerFacts>,
    counters: Arc<Counters>,
    /// HTTP/2 requests so far.
    requests: AtomicU32,
    /// HTTP/2 streams the client gave up before their answers began, less those it has waited for; never below 0.
    given_up: AtomicU32,
    /// The connection is to end now, and has been told so.
    end: Notify,
    ending: AtomicBool,
    /// Set where requests per connection are limited: becomes true when no more are wanted.
    last: Option<watch::Sender<bool>>,
}

impl Shared {
    pub(super) fn new(facts: &Arc<ListenerFacts>, counters: &Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            facts: Arc::clone(facts),
            counters: Arc::clone(counters),
            requests: AtomicU32::new(0),
            given_up: AtomicU32::new(0),
            end: Notify::new(),
            ending: AtomicBool::new(false),
            last: facts.requests_per_connection.map(|_| watch::Sender::new(false)),
        })
    }

    /// What tells the connection's HTTP/2 session to take no more streams: a word to this connection, or the one to all of the listener.
    pub(super) fn shutdown(&self, listener: &ShutdownWatch) -> ShutdownWatch {
        self.last.as_ref().map_or_else(|| listener.clone(), watch::Sender::subscribe)
    }

    fn is_last(&self) {
        if let Some(last) = &self.last {
            last.send_replace(true);
        }
    }

    /// An HTTP/2 stream has been opened.
    pub(crate) fn opened(&self) {
        if let Some(most) = self.facts.requests_per_connection
            && self.requests.fetch_add(1, Relaxed) + 1 >= most
        {
            self.is_last();
        }
    }

    /// An HTTP/2 stream has ended, with an answer or before one began.
    pub(crate) fn closed(&self, answered: bool) {
        if answered {
            // Only streams of this connection write here, one after the other.
            let _ = self.given_up.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
        } else if self.given_up.fetch_add(1, Relaxed) + 1 > self.facts.h2_resets {
            self.end(Limit::H2Resets);
        }
    }

    /// Ends the connection because of a limit.
    fn end(&self, limit: Limit) {
        if !self.ending.swap(true, Relaxed) {
            self.counters.limit(limit);
            self.end.notify_one();
        }
    }

    /// Ends when the connection is to.
    pub(super) async fn ended(&self) {
        self.end.notified().await;
    }
}
