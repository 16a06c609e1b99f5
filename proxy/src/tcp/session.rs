//! The life of one connection: both directions at once, one task, until both have ended.
//!
//! ```text
//! Waiting (for the filters) -> Connecting -> Open -> (each direction: its end has passed the chain and is passed on) -> over
//! ```
//!
//! A side is read only when everything it sent before has been written to the other side, so a slow reader holds up its writer and
//! nothing else.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use selvedge_wasm::Peer;
use tokio::io::{ReadHalf, WriteHalf};
use tokio::time::{Instant, Sleep};
use tracing::debug;

use super::chain::{Broken, Chain, How};
use super::connect::{self, Connected, NoConnection};
use super::entry::{Ended, Entry};
use super::outbox::{self, Outbox};
use super::stage::Mail;
use super::{Direction, Io};
use crate::plan::TcpRoute;
use crate::upstream::Lease;

/// How long a guest is left alone that is busy with a long call for another connection.
const BUSY: Duration = Duration::from_millis(1);

/// How long a client may take over what had passed before a filter closed its connection.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// One side of the connection: the client, or the upstream.
struct Side {
    reader: ReadHalf<Box<dyn Io>>,
    writer: WriteHalf<Box<dyn Io>>,
    /// It has sent its end.
    ended: bool,
}

impl Side {
    fn new(stream: Box<dyn Io>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self { reader, writer, ended: false }
    }
}

/// The way to the upstream.
enum Link {
    /// Not all filters have let the connection through.
    Waiting,
    Connecting(Pin<Box<dyn Future<Output = Result<Connected, NoConnection>> + Send>>),
    Open(Side),
}

struct Session {
    chain: Chain,
    client: Side,
    link: Link,
    to_client: Outbox,
    to_upstream: Outbox,
    received: u64,
    idle: Duration,
    /// When something last moved.
    moved: Instant,
    /// The upstream did not take all that the client had sent.
    refused: bool,
    /// The connection's place at the endpoint.
    lease: Option<Lease>,
}

/// What happened next.
enum Event {
    Client(io::Result<Bytes>),
    Upstream(io::Result<Bytes>),
    WrittenToClient(io::Result<()>),
    WrittenToUpstream(io::Result<()>),
    Connected(Result<Connected, NoConnection>),
    Mail(usize, Mail),
    Time,
}

/// Serves a connection to its end and says in `entry` how it went.
pub(super) async fn run(client: Box<dyn Io>, chain: Chain, route: &Arc<TcpRoute>, idle: Duration, entry: &mut Entry) {
    let mut session = Session {
        chain,
        client: Side::new(client),
        link: Link::Waiting,
        to_client: Outbox::default(),
        to_upstream: Outbox::default(),
        received: 0,
        idle,
        moved: Instant::now(),
        refused: false,
        lease: None,
    };
    let ended = match session.forward(entry).await {
        Ok(ended) => ended,
        Err(Broken { filter, how }) => {
            debug!(listener = %route.listener, %filter, ?how, "a filter ended a connection");
            entry.filter = Some(filter);
            if how == How::Closed {
                session.last_words().await;
            }
            match how {
                How::Closed => Ended::FilterClosed,
                How::Failed => Ended::FilterFailed,
                How::TooLarge => Ended::FilterTooLarge,
                How::Stuck => Ended::FilterStuck,
            }
        }
    };
    let client_ended = session.client.ended || ended == Ended::ClientGone;
    session.finish(if client_ended { Peer::Remote } else { Peer::Local }).await;
    session.count(entry);
    entry.ended = ended;
}

impl Session {
    async fn forward(&mut self, entry: &mut Entry) -> Result<Ended, Broken> {
        let sleep = tokio::time::sleep(self.idle);
        tokio::pin!(sleep);

        self.chain.open()?;
        loop {
            self.collect();
            if self.to_client.is_shut() && self.to_upstream.is_shut() {
                return Ok(if self.refused { Ended::UpstreamGone } else { Ended::Done });
            }
            if self.chain.is_accepted() && matches!(self.link, Link::Waiting) {
                let upstream = self.chain.facts.take_upstream();
                self.link =
                    Link::Connecting(Box::pin(connect::connect(upstream, entry.client.map(|client| client.ip()))));
            }
            self.set_timer(sleep.as_mut());

            match self.next(sleep.as_mut()).await {
                Event::Client(Ok(data)) => {
                    let end = data.is_empty();
                    self.client.ended |= end;
                    self.received += data.len() as u64;
                    self.moved = Instant::now();
                    self.chain.data(Direction::Downstream, data, end)?;
                }
                Event::Upstream(Ok(data)) => {
                    let end = data.is_empty();
                    self.moved = Instant::now();
                    self.chain.data(Direction::Upstream, data, end)?;
                    if end {
                        self.upstream_ended();
                        self.chain.upstream_closed()?;
                    }
                }
                Event::WrittenToClient(Ok(())) | Event::WrittenToUpstream(Ok(())) => self.moved = Instant::now(),
                Event::Client(Err(error)) | Event::WrittenToClient(Err(error)) => {
                    debug!(%error, "the client broke off");
                    return Ok(Ended::ClientGone);
                }
                Event::Upstream(Err(error)) => {
                    debug!(%error, "the upstream broke off");
                    return Ok(Ended::UpstreamGone);
                }
                // It takes no more, but may have said why: that is still to be read.
                Event::WrittenToUpstream(Err(error)) => {
                    debug!(%error, "the upstream takes no more");
                    self.to_upstream.shut();
                    self.refused = true;
                }
                Event::Connected(Ok(Connected { stream, lease, local })) => {
                    let endpoint = lease.endpoint().address();
                    (self.chain.facts.endpoint, self.chain.facts.local) = (endpoint.as_inet(), local);
                    entry.endpoint = Some(endpoint.clone());
                    self.lease = Some(lease);
                    self.link = Link::Open(Side::new(stream));
                    self.moved = Instant::now();
                }
                Event::Connected(Err(NoConnection { endpoint })) => {
                    entry.endpoint = endpoint;
                    return Ok(Ended::ConnectFailed);
                }
                Event::Mail(index, mail) => self.chain.deliver(index, mail)?,
                Event::Time => {
                    let now = Instant::now();
                    if self.chain.is_busy() {
                        self.chain.resume()?;
                    } else {
                        self.chain.expire(now)?;
                    }
                    if now >= self.moved + self.idle {
                        return Ok(Ended::Idle);
                    }
                }
            }
            self.count(entry);
        }
    }

    /// Waits for what happens next. Cancel safe.
    async fn next(&mut self, sleep: Pin<&mut Sleep>) -> Event {
        let Self { chain, client, link, to_client, to_upstream, .. } = self;
        let from_client = !client.ended && !to_upstream.has_work() && !to_upstream.is_shut();
        let from_client = from_client && chain.takes(Direction::Downstream);
        let from_upstream = !to_client.has_work() && chain.takes(Direction::Upstream);

        let link = async {
            match link {
                Link::Waiting => std::future::pending().await,
                Link::Connecting(connecting) => Event::Connected(connecting.await),
                Link::Open(Side { reader, writer, ended }) => {
                    tokio::select! {
                        read = outbox::read(reader), if from_upstream && !*ended => Event::Upstream(read),
                        written = to_upstream.write(writer), if to_upstream.has_work() => Event::WrittenToUpstream(written),
                        else => std::future::pending().await,
                    }
                }
            }
        };
        tokio::select! {
            read = outbox::read(&mut client.reader), if from_client => Event::Client(read),
            written = to_client.write(&mut client.writer), if to_client.has_work() => Event::WrittenToClient(written),
            event = link => event,
            (index, mail) = chain.next_mail() => Event::Mail(index, mail),
            () = sleep => Event::Time,
        }
    }

    /// What has passed the chain goes to the outboxes.
    fn collect(&mut self) {
        for (direction, outbox) in
            [(Direction::Downstream, &mut self.to_upstream), (Direction::Upstream, &mut self.to_client)]
        {
            let passed = self.chain.take(direction);
            for data in passed.data {
                outbox.push(data, false);
            }
            outbox.push(Bytes::new(), passed.end);
        }
    }

    fn upstream_ended(&mut self) {
        if let Link::Open(side) = &mut self.link {
            side.ended = true;
        }
    }

    /// The timer is set anew only when it would come too late, or has come: not for every chunk.
    fn set_timer(&mut self, mut sleep: Pin<&mut Sleep>) {
        let now = Instant::now();
        let idle = self.moved + self.idle;
        let filters = if self.chain.is_busy() { Some(now + BUSY) } else { self.chain.deadline(now) };
        let due = filters.map_or(idle, |due| due.min(idle));
        if due < sleep.deadline() || sleep.is_elapsed() {
            sleep.as_mut().reset(due);
        }
    }

    /// Sends what had passed the chain before a filter closed the connection, and the end.
    async fn last_words(&mut self) {
        self.collect();
        let Self { client, link, to_client, to_upstream, .. } = self;
        let flush = async {
            to_client.push(Bytes::new(), true);
            while to_client.has_work() && to_client.write(&mut client.writer).await.is_ok() {}
        };
        let flush_upstream = async {
            let Link::Open(upstream) = link else { return };
            to_upstream.push(Bytes::new(), true);
            while to_upstream.has_work() && to_upstream.write(&mut upstream.writer).await.is_ok() {}
        };
        // Whoever does not take it in time does not get it.
        let _ = tokio::time::timeout(LAST_WORDS, async { tokio::join!(flush, flush_upstream) }).await;
    }

    /// Tells the filters. A guest that stays busy learns it later, from its host.
    async fn finish(&mut self, downstream: Peer) {
        let patience = Instant::now() + LAST_WORDS;
        while !self.chain.finish(downstream) && Instant::now() < patience {
            tokio::time::sleep(BUSY).await;
        }
    }

    fn count(&self, entry: &mut Entry) {
        entry.received = self.received;
        entry.sent = self.to_client.written();
    }
}
