//! What a guest may use: the limits of a plugin, the fixed bounds of the hostcalls, and wasmtime's limiter.

use std::time::Duration;

/// What a plugin's VMs may use. Each VM and each call has these to itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Limits {
    /// Linear memory of one VM in bytes. Default 64 MiB. A `memory.grow` beyond it fails inside the guest, which then usually aborts.
    pub memory: u64,
    /// Elements of one table, at most 100 000, which is the default: function pointers of a large guest, not a data structure. Mainline Go
    /// puts every function there: 20 000 in the largest filter known.
    pub table_elements: u32,
    /// CPU time of one guest call, to the precision of the engine's epoch tick (the first tick of a call is not counted). Default 50 ms.
    /// Start-up and configuration get 20 times as much. 0 ends every call that lives to see a tick.
    pub cpu: Duration,
    /// How long one guest call may take by the wall clock, time in which it was not running included. Default 1 s, so that a busy machine
    /// does not fail calls that did little. Start-up and configuration get 20 times as much.
    pub deadline: Duration,
    /// How many hostcalls one guest call may make; 0 means no limit. Default 100 000: far above honest use, and it bounds a guest that
    /// does nothing but log.
    pub hostcalls: u32,
    /// HTTP and gRPC calls that all VMs of the plugin together may have under way. Default 1024. Beyond it a call is refused with
    /// `INTERNAL_FAILURE`, which SDKs report as an error. 0 refuses all.
    pub callouts: u32,
    /// HTTP and gRPC calls that all VMs of the plugin together may begin in a second, averaged, with one second's worth of burst.
    /// 0 (the default) means no limit.
    pub callouts_per_second: u32,
    /// How many shared queues the plugin's `vm_id` may have. Default 64. A filter that asks for more gets one that takes nothing.
    pub queues: u32,
    /// Items in one shared queue. Default 10 000. A full queue refuses new items.
    pub queue_items: u32,
    /// Bytes of all items in one shared queue. Default 4 MiB.
    pub queue_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            table_elements: 100_000,
            cpu: Duration::from_millis(50),
            deadline: Duration::from_secs(1),
            hostcalls: 100_000,
            callouts: 1024,
            callouts_per_second: 0,
            queues: 64,
            queue_items: 10_000,
            queue_bytes: 4 << 20,
        }
    }
}

/// Start-up (`_initialize`, `proxy_on_vm_start`, `proxy_on_configure`) may take this many budgets: guests compile rule sets there.
pub(crate) const START_FACTOR: u32 = 20;

/// Log lines are cut here: enough for a backtrace, too little to fill a disk in one call.
pub(crate) const MAX_LOG_LINE: usize = 64 << 10;

/// Header pairs in one map from a guest. The number Envoy's host uses.
pub(crate) const MAX_HEADER_PAIRS: usize = 1024;

/// Bytes of one serialized header map from a guest. The number Envoy's host uses.
pub(crate) const MAX_HEADER_BYTES: usize = 1 << 20;

/// Property paths deeper than this do not exist.
pub(crate) const MAX_PROPERTY_SEGMENTS: usize = 16;

/// Callouts one guest call may ask for, and one context may have in flight: bounds what a loop around `http_call` can do to an upstream.
pub(crate) const MAX_CALLOUTS: usize = 32;

/// Body of one callout. Callouts ask questions (is this token good?); they do not move files.
pub(crate) const MAX_CALLOUT_BODY: usize = 4 << 20;

/// A timeout of 0 means "none" to guests; a wait without end is not something a proxy has.
pub(crate) const DEFAULT_CALLOUT_TIMEOUT: Duration = Duration::from_secs(5);

/// A body may not grow beyond this by a guest's edits, or a loop of appends could fill the machine within one deadline.
pub(crate) const MAX_EDITED_BODY: usize = 64 << 20;

/// Tables in one module: compilers make one; more is room to hide memory in.
const MAX_TABLES: usize = 8;

/// Enforces [`Limits::memory`] and [`Limits::table_elements`], and remembers that it had to.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory: usize,
    table_elements: usize,
    /// Set when memory was refused; cleared before every call.
    pub(crate) memory_refused: bool,
}

impl Limiter {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            memory: usize::try_from(limits.memory).unwrap_or(usize::MAX),
            table_elements: usize::try_from(limits.table_elements).unwrap_or(usize::MAX),
            memory_refused: false,
        }
    }
}

impl wasmtime::ResourceLimiter for Limiter {
    fn memory_growing(&mut self, _current: usize, desired: usize, maximum: Option<usize>) -> wasmtime::Result<bool> {
        let within = desired <= self.memory;
        // A module's own, lower maximum is the module's choice, but to its author it looks the same: no memory left.
        self.memory_refused |= !within || maximum.is_some_and(|maximum| desired > maximum);
        Ok(within)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= self.table_elements)
    }

    fn instances(&self) -> usize {
        1
    }

    fn memories(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        MAX_TABLES
    }
}
