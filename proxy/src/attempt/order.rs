//! What an attempt may do, and what came of it: shared by it and the request it is for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use pingora::protocols::Digest;
use pingora::upstreams::peer::HttpPeer;
use selvedge_config::UpstreamPool;
use tokio::time::Instant;

use crate::upstream::{Ask, EndpointId, Failure, Lease, Upstream};

/// How long it may take.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Terms {
    /// The response has to have begun by then.
    pub(crate) first_byte: Option<Instant>,
    /// And to be whole by then.
    pub(crate) total: Option<Instant>,
    /// What its upstream says of connections.
    pub(crate) pool: Option<UpstreamPool>,
}

/// When and where a second endpoint is asked.
pub(crate) struct Hedge {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) ask: Ask<'static>,
    /// Where the request is already.
    pub(crate) first: EndpointId,
    /// When nothing has come from there.
    pub(crate) after: Instant,
    /// What the request's route says of peers.
    pub(crate) tune: Box<dyn Fn(&mut HttpPeer) + Send + Sync>,
    pub(super) asked: Arc<AtomicBool>,
}

/// What became of the first endpoint's answer, where another's was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum First {
    /// It had not come.
    Silent,
    /// It was this status.
    Status(u16),
    /// There was none.
    Failed(Failure),
}

/// The endpoint whose answer was taken, where that is not the first.
pub(crate) struct Second {
    pub(crate) place: Lease,
    pub(crate) first: First,
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Order {
    terms: Mutex<Terms>,
    hedge: Mutex<Option<Hedge>>,
    asked: Arc<AtomicBool>,
    second: Mutex<Option<Second>>,
    /// The term that was not kept.
    passed: Mutex<Option<&'static str>>,
}

impl Order {
    /// The order of the attempt that a connection with this digest is for; `None` = it is Pingora's own.
    pub(crate) fn of(digest: Option<&Digest>) -> Option<&Arc<Self>> {
        digest?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref()
    }

    pub(crate) fn set(&self, terms: Terms) {
        *self.terms.lock() = terms;
    }

    /// Another endpoint may be asked.
    pub(crate) fn hedge(
        &self,
        upstream: Arc<Upstream>,
        ask: Ask<'static>,
        first: EndpointId,
        after: Duration,
        tune: Box<dyn Fn(&mut HttpPeer) + Send + Sync>,
    ) {
        let asked = Arc::clone(&self.asked);
        let after = Instant::now() + after;
        *self.hedge.lock() = Some(Hedge { upstream, ask, first, after, tune, asked });
    }

    pub(super) fn terms(&self) -> Terms {
        *self.terms.lock()
    }

    /// This term was not kept.
    pub(super) fn pass(&self, term: &'static str) {
        *self.passed.lock() = Some(term);
    }

    /// The term that was not kept, if there is one.
    pub(crate) fn passed(&self) -> Option<&'static str> {
        *self.passed.lock()
    }

    pub(super) fn has_hedge(&self) -> bool {
        self.hedge.lock().is_some()
    }

    pub(super) fn take_hedge(&self) -> Option<Hedge> {
        self.hedge.lock().take()
    }

    pub(super) fn won(&self, second: Second) {
        *self.second.lock() = Some(second);
    }

    /// Whether a second endpoint has been asked since this was called last.
    pub(crate) fn asked_another(&self) -> bool {
        self.asked.swap(false, Relaxed)
    }

    /// The endpoint whose answer was taken, if it is not the first; once.
    pub(crate) fn take_second(&self) -> Option<Second> {
        self.second.lock().take()
    }
}
