//! What the node counts about itself, and where everything that is counted is found.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use selvedge_wasm::{Metrics, PluginStats, SharedData, SharedQueues};

use crate::crowd::Full;
use crate::limits::Limit;
use crate::tls::HandshakeCounts;

/// Counts of one node, as long as the process: a reload does not reset them.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// Requests by the first digit of their status; 0 = none was sent.
    requests: [AtomicU64; 6],
    /// Requests of routes that cache, by what the cache had to do with them, in the order of [`CACHE_RESULTS`].
    cached: [AtomicU64; CACHE_RESULTS.len()],
    /// What is compressed on its way out.
    pub(crate) compressed: Compressed,
    /// Connections there was no room for, by [`Full`].
    refused_connections: [AtomicU64; 2],
    /// Copies of requests: sent, and not made.
    mirrored: [AtomicU64; 2],
    /// Those under way.
    mirroring: Arc<AtomicU64>,
    /// URLs that a change has put out of date: fetched anew, and not.
    refreshed: [AtomicU64; 2],
    /// Changes whose URLs are being fetched anew.
    refreshing: Arc<AtomicU64>,
    /// TLS handshakes.
    pub(crate) handshakes: Arc<HandshakeCounts>,
    /// What clients sent beyond a limit, in the order of [`Limit::ALL`].
    limits: [AtomicU64; Limit::ALL.len()],
    /// Connections closed for want of a PROXY protocol header, by [`Unintroduced`].
    unintroduced: [AtomicU64; 3],
    /// Reloads that were done, and that failed.
    reloads: [AtomicU64; 2],
    /// When the configuration in force came into force, in seconds since 1970.
    since: AtomicU64,
    /// Counters of each filter, by name.
    filters: Mutex<BTreeMap<String, Arc<PluginStats>>>,
}

/// Responses that left compressed.
#[derive(Debug, Default)]
pub(crate) struct Compressed {
    /// Compressed on their way, and as they were stored.
    pub(crate) encoded: AtomicU64,
    pub(crate) stored: AtomicU64,
    /// The bytes of bodies that were compressed on their way, and what was made of them.
    pub(crate) bytes_in: AtomicU64,
    pub(crate) bytes_out: AtomicU64,
}

/// What the cache may have to do with a request; the words of the access log, the most frequent ones first.
pub(crate) const CACHE_RESULTS: [&str; 10] =
    ["hit", "uri-miss", "collapsed", "stale", "vary-miss", "bypass", "request", "method", "sliced", "none"];

/// Why a connection was closed instead of being told for whom it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unintroduced {
    /// It came from somebody who may not say so.
    Untrusted,
    /// It did not begin with a PROXY protocol header.
    Malformed,
    /// The header was not complete in time.
    Late,
}

/// How an order to change the configuration went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reloaded {
    /// The first configuration is in force: no reload.
    Start,
    /// Another is in force.
    Done,
    /// The old one stays in force.
    Failed,
}

/// What a page of metrics is made from.
#[derive(Clone)]
pub(crate) struct Observed {
    pub(crate) counters: Arc<Counters>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) shared: Arc<SharedData>,
    pub(crate) queues: Arc<SharedQueues>,
    /// Where the starts of filters are recorded; nowhere in a node.
    pub(crate) start_trace: Option<Arc<selvedge_wasm::Trace>>,
}

/// How many copies of requests may be under way: each may hold an answer of a few MiB.
const MIRRORS_MAX: u64 = 32;

/// For how many changes URLs may be fetched anew at once.
const REFRESHES_MAX: u64 = 32;

/// Something of which only so many may be under way; counted until this is dropped.
pub(crate) struct UnderWay(Arc<AtomicU64>);

impl UnderWay {
    /// `None` = too many are.
    fn begin(count: &Arc<AtomicU64>, most: u64) -> Option<Self> {
        count.fetch_update(Relaxed, Relaxed, |now| (now < most).then(|| now + 1)).ok()?;
        Some(Self(Arc::clone(count)))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Counters {
    /// A request has ended with this status, 0 for none.
    pub(crate) fn request(&self, status: u16) {
        if let Some(class) = self.requests.get(usize::from(status / 100)) {
            class.fetch_add(1, Relaxed);
        }
    }

    /// A request of a route that caches has ended, with this word for it.
    pub(crate) fn cached(&self, result: &str) {
        if let Some(place) = CACHE_RESULTS.iter().position(|known| *known == result) {
            self.cached[place].fetch_add(1, Relaxed);
        }
    }

    /// Requests of routes that cache, by result.
    pub(crate) fn all_cached(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CACHE_RESULTS.into_iter().zip(self.cached.iter().map(|count| count.load(Relaxed)))
    }

    /// A copy of a request was sent, or was not made because it would be too long or too many are under way.
    pub(crate) fn mirrored(&self, sent: bool) {
        self.mirrored[usize::from(!sent)].fetch_add(1, Relaxed);
    }

    /// Copies that were sent, and those that were not made.
    pub(crate) fn mirrors(&self) -> [u64; 2] {
        self.mirrored.each_ref().map(|count| count.load(Relaxed))
    }

    /// A place for a copy; `None` = too many are under way.
    pub(crate) fn begin_mirror(&self) -> Option<UnderWay> {
        UnderWay::begin(&self.mirroring, MIRRORS_MAX)
    }

    /// A URL that a change has put out of date was fetched anew, or was not because too many are under way.
    pub(crate) fn refreshed(&self, fetched: bool) {
        self.refreshed[usize::from(!fetched)].fetch_add(1, Relaxed);
    }

    /// URLs that were fetched anew, and those that were not.
    pub(crate) fn refreshes(&self) -> [u64; 2] {
        self.refreshed.each_ref().map(|count| count.load(Relaxed))
    }

    /// A place for a change whose URLs are to be fetched anew; `None` = too many are under way.
    pub(crate) fn begin_refresh(&self) -> Option<UnderWay> {
        UnderWay::begin(&self.refreshing, REFRESHES_MAX)
    }

    /// There was no room for a connection.
    pub(crate) fn refused_connection(&self, why: Full) {
        self.refused_connections[why as usize].fetch_add(1, Relaxed);
    }

    /// Connections there was no room for, by the limit.
    pub(crate) fn refused_connections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let counts = self.refused_connections.iter().map(|count| count.load(Relaxed));
        ["connections", "connections_per_client"].into_iter().zip(counts)
    }

    /// A connection was closed for want of a PROXY protocol header.
    pub(crate) fn unintroduced(&self, why: Unintroduced) {
        self.unintroduced[why as usize].fetch_add(1, Relaxed);
    }

    /// Connections closed for want of a PROXY protocol header, by reason.
    pub(crate) fn all_unintroduced(&self) -> impl Iterator<Item = (&'static str, u64)> {
        ["untrusted", "malformed", "late"].into_iter().zip(self.unintroduced.iter().map(|count| count.load(Relaxed)))
    }

    /// A client did not keep a limit.
    pub(crate) fn limit(&self, limit: Limit) {
        self.limits[limit as usize].fetch_add(1, Relaxed);
    }

    /// How often clients did not keep each limit.
    pub(crate) fn limits(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Limit::ALL.iter().map(|limit| limit.name()).zip(self.limits.iter().map(|count| count.load(Relaxed)))
    }

    /// The configuration was to be changed.
    pub(crate) fn reloaded(&self, how: Reloaded) {
        match how {
            Reloaded::Start => {}
            Reloaded::Done => drop(self.reloads[0].fetch_add(1, Relaxed)),
            Reloaded::Failed => {
                self.reloads[1].fetch_add(1, Relaxed);
                return;
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.since.store(now.as_secs(), Relaxed);
    }

    /// Reloads by result, and since when the configuration is in force, in seconds since 1970.
    pub(crate) fn reloads(&self) -> ([(&'static str, u64); 2], u64) {
        let [done, failed] = [0, 1].map(|result| self.reloads[result].load(Relaxed));
        ([("done", done), ("failed", failed)], self.since.load(Relaxed))
    }

    /// Requests by class of status, `none` first.
    pub(crate) fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> {
        const CLASSES: [&str; 6] = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"];
        CLASSES.into_iter().zip(self.requests.iter().map(|count| count.load(Relaxed)))
    }

    /// The counters of a filter: one for all its configurations, and for those of every plan.
    pub(crate) fn filter(&self, name: &str) -> Arc<PluginStats> {
        let mut filters = self.filters.lock();
        if let Some(stats) = filters.get(name) {
            return Arc::clone(stats);
        }
        Arc::clone(filters.entry(name.to_owned()).or_default())
    }

    /// Every filter that was ever started, in order of their names.
    pub(crate) fn filters(&self) -> Vec<(String, Arc<PluginStats>)> {
        self.filters.lock().iter().map(|(name, stats)| (name.clone(), Arc::clone(stats))).collect()
    }
}
