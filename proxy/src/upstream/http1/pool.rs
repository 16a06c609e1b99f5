//! The connections that one worker keeps for the next request.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::Pin;
use std::sync::{Arc, OnceLock, Weak};
use std::task::{Context, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use pingora::connectors::TransportConnector;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, Result};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::Instant;

use super::super::wear::KEPT_MAX;
use super::silence::Silence;
use super::{Connection, Exchange};

/// How often connections are looked for that have been kept for too long, or that the other side has closed.
const SWEEP: Duration = Duration::from_secs(5);

/// Connections to every endpoint, by what Pingora tells peers apart by: address, TLS settings, authorities.
pub(crate) struct Pool {
    /// Made when it is used first: it reads the system's certificate authorities.
    connector: OnceLock<TransportConnector>,
    /// Locked for a few instructions; its worker is the only one that asks, but guests that run long may lend its tasks to another thread.
    kept: Mutex<Kept>,
    this: Weak<Self>,
}

#[derive(Default)]
struct Kept {
    /// The one used last is at the end, and used first: the others grow old.
    by_peer: HashMap<u64, Vec<Idle>>,
    count: usize,
    swept: bool,
}

struct Idle {
    connection: Connection,
    until: Instant,
}

impl Idle {
    /// Whether it can be used: it is not too old, and the other side has said nothing, not even that it is over.
    fn is_open(&mut self, now: Instant) -> bool {
        let mut byte = [0; 1];
        let mut room = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        self.until > now && Pin::new(&mut self.connection.stream).poll_read(&mut cx, &mut room).is_pending()
    }
}

impl Pool {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new_cyclic(|this| Self { connector: OnceLock::new(), kept: Mutex::default(), this: Weak::clone(this) })
    }

    /// Makes ready what takes a while, so that no request waits for it.
    pub(crate) fn prepare(&self) {
        self.connector();
    }

    fn connector(&self) -> &TransportConnector {
        self.connector.get_or_init(|| TransportConnector::new(None))
    }

    /// A connection to the peer, and whether it was kept: then it may turn out to be closed.
    ///
    /// # Errors
    /// A new one is wanted, and cannot be made: refused, unreachable, not in time, or TLS failed.
    pub(crate) async fn take(&self, peer: &HttpPeer) -> Result<(Exchange, bool)> {
        let limit = peer.options.read_timeout;
        if let Some(connection) = self.kept.lock().take(peer.reuse_hash()) {
            return Ok((Exchange::on(connection, limit), true));
        }
        // Boxed, as what is rare on the way of a request: it would make every request's future larger.
        let stream = Box::pin(self.connector().new_stream(peer)).await.map_err(Error::into_up)?;
        Ok((
            Exchange::on(Connection { stream, silence: Silence::default(), made: Instant::now(), carried: 0 }, limit),
            false,
        ))
    }

    /// Keeps the exchange's connection for another, if it can carry one; no more than `most` to one endpoint.
    pub(crate) fn keep(&self, exchange: Exchange, peer: &HttpPeer, most: usize) {
        if !exchange.may_be_kept() {
            return;
        }
        let idle = peer.options.idle_timeout.unwrap_or(Duration::MAX).min(exchange.kept_for.unwrap_or(Duration::MAX));
        if idle.is_zero() {
            return;
        }
        let now = Instant::now();
        let until = now.checked_add(idle).unwrap_or(now + Duration::from_secs(86_400 * 365));
        let mut kept = self.kept.lock();
        kept.put(peer.reuse_hash(), Idle { connection: exchange.connection, until }, most);
        if !std::mem::replace(&mut kept.swept, true) {
            drop(kept);
            tokio::spawn(sweep(Weak::clone(&self.this)));
        }
    }
}

/// Closes what is of no use any more, as long as there is something kept.
async fn sweep(pool: Weak<Pool>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut kept = pool.kept.lock();
        if !kept.sweep(Instant::now()) {
            kept.swept = false;
            return;
        }
    }
}

impl Kept {
    fn take(&mut self, peer: u64) -> Option<Connection> {
        let idle = self.by_peer.get_mut(&peer)?;
        let now = Instant::now();
        while let Some(mut last) = idle.pop() {
            self.count -= 1;
            if last.is_open(now) {
                return Some(last.connection);
            }
        }
        None
    }

    /// Beyond what may be kept, the endpoint's oldest gives way.
    fn put(&mut self, peer: u64, connection: Idle, most: usize) {
        let idle = match self.by_peer.entry(peer) {
            Entry::Occupied(idle) => idle.into_mut(),
            Entry::Vacant(new) => new.insert(Vec::with_capacity(4)),
        };
        if self.count >= KEPT_MAX || idle.len() >= most {
            if idle.is_empty() {
                return;
            }
            idle.remove(0);
            self.count -= 1;
        }
        idle.push(connection);
        self.count += 1;
    }

    /// Whether any are left.
    fn sweep(&mut self, now: Instant) -> bool {
        self.by_peer.retain(|_, idle| {
            idle.retain_mut(|connection| connection.is_open(now));
            !idle.is_empty()
        });
        self.count = self.by_peer.values().map(Vec::len).sum();
        self.count > 0
    }
}
