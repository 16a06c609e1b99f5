//! What a plugin's VMs count about themselves: callbacks, how they end and how long they take, VMs, callouts, replies.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::effects::CalloutFailure;
use crate::vm::CallError;

/// One call in so many is measured. Reading the clock twice costs more than the call of a small filter; the shape of the distribution
/// survives the sampling.
const MEASURE_EVERY: u64 = 16;

/// Upper bounds of the duration buckets: 1 µs, 2 µs, ... 2^20 µs (one second), and all that is longer.
const BUCKETS: usize = 22;

/// Counters of one plugin, shared by its VMs, and by all plugins that the embedder gives the same one ([`crate::Host::stats`]).
#[derive(Debug)]
pub struct PluginStats {
    callbacks: [CallbackStats; Callback::ALL.len()],
    /// What VMs that serve many streams count by themselves.
    tallies: Mutex<Vec<Arc<Tally>>>,
    vm_starts: AtomicU64,
    vm_start_failures: AtomicU64,
    vm_rejections: AtomicU64,
    local_replies: AtomicU64,
    hostcalls_refused: AtomicU64,
    callouts: [AtomicU64; CALLOUT_RESULTS.len()],
}

/// How callouts end, as metrics name it.
const CALLOUT_RESULTS: [&str; 5] = ["answered", "timeout", "connect", "reset", "too_large"];

/// How calls fail, as metrics name it.
const FAILURES: [&str; 6] = ["trap", "cpu", "deadline", "memory", "hostcalls", "crowded"];

#[derive(Debug)]
struct CallbackStats {
    calls: AtomicU64,
    failures: [AtomicU64; FAILURES.len()],
    measured: [AtomicU64; BUCKETS],
    measured_nanos: AtomicU64,
}

/// The calls that one VM has counted, and those before it that had the same tally. It alone writes here, and on cache lines of its own: if the
/// workers counted in one place, each call of each filter would wait for the others' processors.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Tally([AtomicU64; Callback::ALL.len()]);

impl Tally {
    /// Counts a call; how many there were before. Only one thread at a time: the one that has the VM.
    fn count(&self, callback: Callback) -> u64 {
        let calls = &self.0[callback as usize];
        let before = calls.load(Relaxed);
        calls.store(before + 1, Relaxed);
        before
    }
}

/// What has been counted by now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatsSnapshot {
    /// The callbacks that were called at all.
    pub callbacks: Vec<CallbackSnapshot>,
    /// VMs that came to serve: the first ones, those that replace a failed one, and instances made for one request.
    pub vm_starts: u64,
    /// VMs that failed to start.
    pub vm_start_failures: u64,
    /// Streams refused because the VM had failed too often lately.
    pub vm_rejections: u64,
    /// Local replies that guests asked for and that had somewhere to go.
    pub local_replies: u64,
    /// Hostcalls that ended in a status other than `OK`, `NOT_FOUND`, `EMPTY` or `CAS_MISMATCH`: most make an SDK panic.
    pub hostcalls_refused: u64,
    /// HTTP callouts by how they ended: `answered`, `timeout`, `connect`, `reset`, `too_large`.
    pub callouts: Vec<(&'static str, u64)>,
}

/// What has been counted of one callback.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallbackSnapshot {
    /// `proxy_on_request_headers` and so on.
    pub callback: &'static str,
    /// Calls begun.
    pub calls: u64,
    /// Calls that failed: `trap`, `cpu` and `deadline` (out of time), `memory` (after being refused some), `hostcalls` (more than their
    /// budget), `crowded` (no processor time was to be had).
    pub failures: Vec<(&'static str, u64)>,
    /// `(upper bound, calls up to it and above the bound before)`; the last bound is `None`. One call in 16 is measured. Not cumulative.
    pub durations: Vec<(Option<Duration>, u64)>,
    /// The sum of what was measured.
    pub measured: Duration,
}

/// Makes the enum of callbacks from their names.
macro_rules! callbacks {
    ($($variant:ident $name:literal)*) => {
        /// A callback, by the place of its counters.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Callback {
            $($variant),*
        }

        impl Callback {
            const ALL: &[&'static str] = &[$($name),*];

            /// By its name. Compiles to a comparison of lengths and of the few names that have it.
            pub(crate) fn of(name: &str) -> Self {
                match name {
                    $($name => Self::$variant,)*
                    _ => Self::Other,
                }
            }
        }
    };
}

callbacks! {
    RequestHeaders "proxy_on_request_headers"
    ResponseHeaders "proxy_on_response_headers"
    RequestBody "proxy_on_request_body"
    ResponseBody "proxy_on_response_body"
    ContextCreate "proxy_on_context_create"
    Done "proxy_on_done"
    Log "proxy_on_log"
    Delete "proxy_on_delete"
    HttpCallResponse "proxy_on_http_call_response"
    RequestTrailers "proxy_on_request_trailers"
    ResponseTrailers "proxy_on_response_trailers"
    Tick "proxy_on_tick"
    QueueReady "proxy_on_queue_ready"
    GrpcInitial "proxy_on_grpc_receive_initial_metadata"
    GrpcReceive "proxy_on_grpc_receive"
    GrpcTrailing "proxy_on_grpc_receive_trailing_metadata"
    GrpcClose "proxy_on_grpc_close"
    NewConnection "proxy_on_new_connection"
    DownstreamData "proxy_on_downstream_data"
    UpstreamData "proxy_on_upstream_data"
    DownstreamClose "proxy_on_downstream_connection_close"
    UpstreamClose "proxy_on_upstream_connection_close"
    ForeignFunction "proxy_on_foreign_function"
    VmStart "proxy_on_vm_start"
    Configure "proxy_on_configure"
    Initialize "_initialize"
    Main "__main_void"
    Start "_start"
    Other "other"
}

impl Default for PluginStats {
    fn default() -> Self {
        Self {
            callbacks: std::array::from_fn(|_| CallbackStats::default()),
            tallies: Mutex::default(),
            vm_starts: AtomicU64::new(0),
            vm_start_failures: AtomicU64::new(0),
            vm_rejections: AtomicU64::new(0),
            local_replies: AtomicU64::new(0),
            hostcalls_refused: AtomicU64::new(0),
            callouts: Default::default(),
        }
    }
}

impl Default for CallbackStats {
    fn default() -> Self {
        Self {
            calls: AtomicU64::new(0),
            failures: Default::default(),
            measured: [const { AtomicU64::new(0) }; BUCKETS],
            measured_nanos: AtomicU64::new(0),
        }
    }
}

impl PluginStats {
    /// A tally for one VM. That of a VM that is gone goes on with the next one, so that there are never more than there were VMs at once.
    pub(crate) fn tally(&self) -> Arc<Tally> {
        let mut tallies = self.tallies.lock();
        if let Some(free) = tallies.iter_mut().find_map(|tally| Arc::get_mut(tally).is_some().then_some(tally)) {
            return Arc::clone(free);
        }
        let tally = Arc::new(Tally([const { AtomicU64::new(0) }; Callback::ALL.len()]));
        tallies.push(Arc::clone(&tally));
        tally
    }

    /// Before a guest call; what it returns is to be given to [`PluginStats::call_ended`]. Without a tally it is counted for all to see.
    pub(crate) fn call_begins(&self, tally: Option<&Tally>, callback: Callback) -> Counted {
        let calls = match tally {
            Some(tally) => tally.count(callback),
            None => self.callbacks[callback as usize].calls.fetch_add(1, Relaxed),
        };
        Counted { callback, since: calls.is_multiple_of(MEASURE_EVERY).then(Instant::now) }
    }

    /// After the guest call.
    pub(crate) fn call_ended(&self, counted: Counted, error: Option<&CallError>) {
        let stats = &self.callbacks[counted.callback as usize];
        if let Some(since) = counted.since {
            stats.measure(since.elapsed());
        }
        let failure = match error {
            None
            | Some(CallError::Poisoned | CallError::Unavailable { .. } | CallError::Busy | CallError::Exhausted) => {
                return;
            }
            Some(CallError::Trap { .. }) => 0,
            Some(CallError::Cpu { .. }) => 1,
            Some(CallError::Deadline { .. }) => 2,
            Some(CallError::Memory { .. }) => 3,
            Some(CallError::Hostcalls { .. }) => 4,
            Some(CallError::Crowded { .. }) => 5,
        };
        stats.failures[failure].fetch_add(1, Relaxed);
    }

    /// An attempt to bring up a VM has ended.
    pub(crate) fn vm_start_ended(&self, serves: bool) {
        let counter = if serves { &self.vm_starts } else { &self.vm_start_failures };
        counter.fetch_add(1, Relaxed);
    }

    pub(crate) fn stream_was_rejected(&self) {
        self.vm_rejections.fetch_add(1, Relaxed);
    }

    pub(crate) fn local_reply(&self) {
        self.local_replies.fetch_add(1, Relaxed);
    }

    pub(crate) fn hostcall_refused(&self) {
        self.hostcalls_refused.fetch_add(1, Relaxed);
    }

    pub(crate) fn callout_ended<T>(&self, result: &Result<T, CalloutFailure>) {
        let result = match result {
            Ok(_) => 0,
            Err(CalloutFailure::Timeout) => 1,
            Err(CalloutFailure::Connect(_)) => 2,
            Err(CalloutFailure::Reset(_)) => 3,
            Err(CalloutFailure::TooLarge) => 4,
        };
        self.callouts[result].fetch_add(1, Relaxed);
    }

    /// What has been counted by now.
    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        let tallies = self.tallies.lock().clone();
        let counted = |index: usize| tallies.iter().map(|tally| tally.0[index].load(Relaxed)).sum::<u64>();
        let callbacks = Callback::ALL.iter().zip(&self.callbacks).enumerate();
        let snapshots = callbacks.map(|(index, (name, stats))| stats.snapshot(name, counted(index)));
        StatsSnapshot {
            callbacks: snapshots.filter(|snapshot| snapshot.calls > 0).collect(),
            vm_starts: self.vm_starts.load(Relaxed),
            vm_start_failures: self.vm_start_failures.load(Relaxed),
            vm_rejections: self.vm_rejections.load(Relaxed),
            local_replies: self.local_replies.load(Relaxed),
            hostcalls_refused: self.hostcalls_refused.load(Relaxed),
            callouts: CALLOUT_RESULTS.into_iter().zip(self.callouts.iter().map(|count| count.load(Relaxed))).collect(),
        }
    }
}

/// A guest call that is being counted.
pub(crate) struct Counted {
    callback: Callback,
    since: Option<Instant>,
}

impl CallbackStats {
    fn measure(&self, took: Duration) {
        let bucket = bucket(took);
        self.measured[bucket].fetch_add(1, Relaxed);
        self.measured_nanos.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// `tallied` = calls that VMs have counted by themselves.
    fn snapshot(&self, callback: &'static str, tallied: u64) -> CallbackSnapshot {
        let bound = |index: usize| {
            let exponent = u32::try_from(index).ok().filter(|_| index + 1 < BUCKETS)?;
            Some(Duration::from_micros(1 << exponent))
        };
        CallbackSnapshot {
            callback,
            calls: self.calls.load(Relaxed) + tallied,
            failures: FAILURES.into_iter().zip(self.failures.iter().map(|count| count.load(Relaxed))).collect(),
            durations: self.measured.iter().enumerate().map(|(i, count)| (bound(i), count.load(Relaxed))).collect(),
            measured: Duration::from_nanos(self.measured_nanos.load(Relaxed)),
        }
    }
}

/// The first bucket whose bound is not below: whole microseconds, rounded up, by their power of two.
fn bucket(took: Duration) -> usize {
    let micros = took.as_nanos().div_ceil(1000).max(1);
    let exponent = u128::BITS - (micros - 1).leading_zeros();
    usize::try_from(exponent).unwrap_or(BUCKETS).min(BUCKETS - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_callback_is_found_by_its_name() {
        for (index, name) in Callback::ALL.iter().enumerate() {
            assert_eq!(Callback::of(name) as usize, index, "{name}");
        }
        assert_eq!(Callback::of("instantiation"), Callback::Other);
    }

    #[test]
    fn bounds_are_inclusive() {
        let nanos = Duration::from_nanos;
        for (took, index) in [
            (0, 0),
            (1000, 0),
            (1001, 1),
            (2000, 1),
            (2001, 2),
            (4000, 2),
            (1 << 40, BUCKETS - 1),
            (u64::MAX, BUCKETS - 1),
        ] {
            assert_eq!(bucket(nanos(took)), index, "{took} ns");
        }
        assert_eq!(bucket(Duration::from_micros(1 << 20)), BUCKETS - 2);
    }

    #[test]
    fn calls_are_counted_by_how_they_end_and_one_in_sixteen_is_measured() {
        let stats = PluginStats::default();
        for _ in 0..17 {
            stats.call_ended(stats.call_begins(None, Callback::of("proxy_on_tick")), None);
        }
        let callback = "proxy_on_log";
        for error in [
            CallError::Trap { callback, message: String::new() },
            CallError::Cpu { callback, limit: Duration::ZERO },
            CallError::Deadline { callback, limit: Duration::ZERO },
            CallError::Crowded { callback },
            CallError::Memory { callback, limit: 0 },
            CallError::Hostcalls { callback, limit: 0 },
        ] {
            stats.call_ended(stats.call_begins(None, Callback::of(callback)), Some(&error));
        }
        let snapshot = stats.snapshot();
        let [log, tick] = &snapshot.callbacks[..] else { panic!("{snapshot:?}") };
        assert_eq!((tick.callback, tick.calls, tick.failures[0]), ("proxy_on_tick", 17, ("trap", 0)));
        assert_eq!(tick.durations.iter().map(|(_, count)| count).sum::<u64>(), 2);
        assert_eq!(log.calls, 6);
        assert!(log.failures.iter().all(|(_, count)| *count == 1), "{log:?}");
    }

    #[test]
    fn what_vms_count_by_themselves_outlives_them() {
        let stats = PluginStats::default();
        let calls = |stats: &PluginStats| stats.snapshot().callbacks.iter().map(|callback| callback.calls).sum::<u64>();
        let (one, other) = (stats.tally(), stats.tally());
        let tick = Callback::of("proxy_on_tick");
        for tally in [Some(&*one), Some(&*one), Some(&*other), None] {
            stats.call_ended(stats.call_begins(tally, tick), None);
        }
        assert_eq!(calls(&stats), 4);

        drop(one);
        assert_eq!(calls(&stats), 4, "a VM that is gone has been counted all the same");
        let next = stats.tally();
        stats.call_ended(stats.call_begins(Some(&next), tick), None);
        assert_eq!((calls(&stats), stats.tallies.lock().len()), (5, 2), "its tally goes on with the next VM");
    }

    #[test]
    fn callouts_are_counted_by_result() {
        let stats = PluginStats::default();
        stats.callout_ended(&Ok(()));
        stats.callout_ended::<()>(&Err(CalloutFailure::Timeout));
        stats.callout_ended::<()>(&Err(CalloutFailure::Timeout));
        assert_eq!(stats.snapshot().callouts[..3], [("answered", 1), ("timeout", 2), ("connect", 0)]);
    }
}
