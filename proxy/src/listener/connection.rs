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
    /// Receiving a request body, if it does not wait to be asked for it.
    Body {
        /// It waits: nothing has come yet.
        asked: bool,
    },
    /// Being served; or speaking HTTP/2, which has deadlines of its own.
    Exchange,
}

/// How long a body may take before its average rate is looked at.
const UPLOAD_GRACE: Duration = Duration::from_secs(10);

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
    /// Counts the requests.
    request: Cell<u64>,
    /// The last thing done was to wait for the client to send.
    waiting: Cell<bool>,
    /// It is one stream of HTTP/2: the bytes of its body are told when they are read ([`body_has_come`]), and nobody can tell whether it
    /// waits for the client or for the origin.
    stream: bool,
    /// Whether a body has to come at a least rate.
    rated: bool,
    /// The request is overdue: reading on fails. With whether somebody has been told.
    late: Cell<Option<(Limit, bool)>>,
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
            request: Cell::new(0),
            waiting: Cell::new(false),
            stream: false,
            rated: true,
            late: Cell::new(None),
            header_max: shared.facts.header_size.saturating_add(HEADER_SLACK),
            shared,
        }
    }

    /// One stream of HTTP/2, whose body has to come at a least rate if it is `rated`.
    pub(super) fn of_stream(shared: Arc<Shared>, rated: bool) -> Self {
        Self { stream: true, rated, waiting: Cell::new(true), ..Self::new(shared) }
    }

    fn turns_to(&self, doing: Doing) {
        self.doing.set((doing, self.doing.get().1.wrapping_add(1)));
        self.received.set(0);
        self.late.set(None);
    }

    fn received(&self, count: usize) {
        self.begun.set(true);
        self.waiting.set(self.stream);
        match self.doing.get().0 {
            Doing::Idle => {
                self.request.set(self.request.get().wrapping_add(1));
                self.turns_to(Doing::Header);
            }
            Doing::Body { asked: false } => self.turns_to(Doing::Body { asked: true }),
            Doing::Header | Doing::Body { asked: true } | Doing::Exchange => {}
        }
        let received = self.received.get() + count as u64;
        self.received.set(received);
        if received > self.header_max && self.doing.get().0 == Doing::Header {
            self.shared.end(Limit::HeaderSize);
        }
    }
}

/// Says that so many bytes of a request's body have been read, where nobody sees them come: on a stream of HTTP/2.
pub(crate) fn body_has_come(count: usize) {
    let _ = CONNECTION.try_with(|connection| {
        if connection.stream {
            connection.received(count);
        }
    });
}

/// Says that the connection waits for another request.
pub(super) fn is_idle() {
    let _ = CONNECTION.try_with(|connection| connection.turns_to(Doing::Idle));
}

/// Says that so many bytes have come from the client.
pub(crate) fn bytes_have_come(count: usize) {
    let _ = CONNECTION.try_with(|connection| connection.received(count));
}

/// Says that what is to be read is complete: no deadline applies but the exchange's own.
pub(crate) fn header_is_read() {
    let _ = CONNECTION.try_with(|connection| connection.turns_to(Doing::Exchange));
}

/// Says that a body is to come, at once or when it is `asked` for.
pub(crate) fn body_is_to_come(asked: bool) {
    let _ = CONNECTION.try_with(|connection| connection.turns_to(Doing::Body { asked }));
}

/// Says whether the connection waits for bytes of the client now.
pub(crate) fn waits(waiting: bool) {
    let _ = CONNECTION.try_with(|connection| connection.waiting.set(waiting));
}

/// The limit that the request has not kept: nothing more is to be read of it.
pub(crate) fn late() -> Option<Limit> {
    let told = |connection: &Connection| {
        let (limit, _) = connection.late.get()?;
        connection.late.set(Some((limit, true)));
        Some(limit)
    };
    CONNECTION.try_with(told).ok()?
}

/// Says that the connection reads on, and so waits for bytes of the client until some have come.
///
/// # Errors
/// The limit that the request has not kept: nothing more is to be read of it.
pub(crate) fn reads_on() -> Result<(), Limit> {
    let reads_on = |connection: &Connection| match connection.late.get() {
        None => {
            connection.waiting.set(true);
            Ok(())
        }
        Some((limit, _)) => {
            connection.late.set(Some((limit, true)));
            Err(limit)
        }
    };
    CONNECTION.try_with(reads_on).unwrap_or(Ok(()))
}

/// What the HTTP/2 streams of this connection share.
pub(crate) fn shared() -> Option<Arc<Shared>> {
    CONNECTION.try_with(|connection| Arc::clone(&connection.shared)).ok()
}

/// Ends when the connection was idle for too long, or something is overdue: a header, or a request whose client does not even take
/// notice of that. At most half a deadline late. Looks twice per deadline: one timer per connection and interval, and no clock read, instead
/// of both per request.
pub(super) async fn overdue(facts: &ListenerFacts, counters: &Counters) {
    let mut interval = facts.header_timeout.min(facts.idle_timeout);
    if facts.upload_rate > 0 {
        interval = interval.min(UPLOAD_GRACE);
    }
    interval = interval.min(facts.request_time.unwrap_or(interval)) / 2;
    let mut clocks = Clocks::default();
    loop {
        // Pingora's coarse timer: thousands of connections share a few entries.
        pingora::time::fast_timeout::fast_sleep(interval).await;
        let verdict = CONNECTION.with(|connection| clocks.tick(connection, facts, interval));
        match verdict {
            Verdict::Fine => {}
            Verdict::Idle => return,
            Verdict::Late(limit) => {
                counters.limit(limit);
                if limit == Limit::HeaderTimeout {
                    return;
                }
                CONNECTION.with(|connection| connection.late.set(Some((limit, false))));
                // This task comes again at once, and whoever waits to read on is told.
                tokio::task::yield_now().await;
            }
            Verdict::Unheard => return,
        }
    }
}

/// What [`Clocks::tick`] finds.
enum Verdict {
    Fine,
    /// Nothing has come for too long between two requests.
    Idle,
    /// This limit was not kept.
    Late(Limit),
    /// A limit was not kept before, and nobody has read on since, who could be told.
    Unheard,
}

/// How long the connection has been doing what it does, as far as ticks of a coarse timer can tell.
#[derive(Default)]
struct Clocks {
    doing: u64,
    lasted: Duration,
    request: u64,
    receiving: Duration,
    waited: Duration,
}

impl Clocks {
    fn tick(&mut self, connection: &Connection, facts: &ListenerFacts, interval: Duration) -> Verdict {
        let (doing, number) = connection.doing.get();
        if self.doing != number {
            (self.doing, self.lasted, self.waited) = (number, Duration::ZERO, Duration::ZERO);
        } else {
            self.lasted += interval;
            if connection.waiting.get() {
                self.waited += interval;
            }
        }
        if self.request != connection.request.get() {
            (self.request, self.receiving) = (connection.request.get(), Duration::ZERO);
        } else if doing != Doing::Exchange {
            self.receiving += interval;
        }
        if let Some((_, told)) = connection.late.get() {
            return if told { Verdict::Fine } else { Verdict::Unheard };
        }
        match doing {
            Doing::Idle if self.lasted >= facts.idle_timeout => Verdict::Idle,
            Doing::Header if self.lasted >= facts.header_timeout => Verdict::Late(Limit::HeaderTimeout),
            Doing::Header | Doing::Body { .. } if facts.request_time.is_some_and(|most| self.receiving >= most) => {
                Verdict::Late(Limit::RequestTime)
            }
            Doing::Body { asked: true }
                if connection.rated && self.is_slow(connection.received.get(), facts.upload_rate) =>
            {
                Verdict::Late(Limit::UploadRate)
            }
            Doing::Idle | Doing::Header | Doing::Body { .. } | Doing::Exchange => Verdict::Fine,
        }
    }

    /// Whether so few bytes in this time are fewer than they should be at this rate.
    fn is_slow(&self, received: u64, rate: u64) -> bool {
        let beyond = self.waited.saturating_sub(UPLOAD_GRACE).as_millis();
        u128::from(received) * 1000 < beyond * u128::from(rate)
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
