//! The work of a plugin's root context on one worker: ticks, and what was sent out by it or by streams that have ended.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::calls::Calls;
use crate::plugin::Plugin;
use crate::vm::{CallError, ROOT, VmCell};

pub(crate) async fn run(plugin: Weak<Plugin>, worker: usize, ticks: Arc<Ticks>) {
    // Calls belong to the VM that made them; a new VM starts with none.
    let mut of = Weak::new();
    let mut calls = Calls::new();
    // When the next tick is due, and by which period. It stays when the loop is woken for something else, or a busy queue would leave no
    // rest long enough to tick.
    let mut due: Option<(Duration, Instant)> = None;
    while !ticks.is_closed() {
        let mut more = false;
        // Calls first: what a tick, a start or an answer asked for is sent without waiting for the next tick.
        if let Some(plugin) = plugin.upgrade()
            && let Some(vm) = plugin.vm(worker)
        {
            if !std::ptr::eq(of.as_ptr(), Arc::as_ptr(&vm)) {
                of = Arc::downgrade(&vm);
                calls = Calls::new();
            }
            more = serve_queues(&plugin, &vm);
            let outgoing = vm.0.lock().take_root_outgoing();
            calls.begin(&plugin.host(), outgoing);
        }

        if more {
            ticks.wake(); // to come back here; others on this worker have their turn first
            tokio::task::yield_now().await;
        }

        due = match (ticks.period(), due) {
            (Some(period), Some((of, at))) if period == of => Some((of, at)),
            (Some(period), _) => Some((period, Instant::now() + period)),
            (None, _) => None,
        };
        let tick = async move {
            match due {
                Some((_, at)) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ticks.changed() => {}
            arrival = calls.next() => {
                if let Some(vm) = of.upgrade() {
                    report(&plugin, vm.0.lock().deliver(ROOT, None, arrival).map(drop));
                }
            }
            () = tick => {
                due = None; // ticks are periods of rest, not a clock: the next one counts from the end of this one
                let Some(plugin) = plugin.upgrade() else { return };
                if let Some(vm) = plugin.vm(worker) {
                    report(&Arc::downgrade(&plugin), vm.0.lock().tick());
                }
            }
        }
    }
}

/// How many queue items the guest is told of before others on this worker have their turn: it may enqueue more while it is told.
const QUEUE_BATCH: usize = 64;

/// Tells the guest of items in its queues; true when some may be left.
fn serve_queues(plugin: &Arc<Plugin>, vm: &VmCell) -> bool {
    for _ in 0..QUEUE_BATCH {
        match vm.0.lock().queue_ready() {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                report(&Arc::downgrade(plugin), Err(error));
                return false;
            }
        }
    }
    true
}

/// Root-context work has nobody to fail: the operator is told, the next stream gets a new VM.
fn report(plugin: &Weak<Plugin>, result: Result<(), CallError>) {
    match (result, plugin.upgrade()) {
        (Ok(()) | Err(CallError::Poisoned), _) | (_, None) => {}
        (Err(error), Some(plugin)) => warn!(plugin = %plugin.name(), %error, "a filter failed outside of any request"),
    }
}

/// What a VM tells the tick loop of its worker.
#[derive(Debug, Default)]
pub(crate) struct Ticks {
    period_ms: AtomicU32,
    closed: AtomicBool,
    changed: Notify,
}

impl Ticks {
    /// A new period; 0 stops ticking.
    pub(crate) fn set(&self, period_ms: u32) {
        if self.period_ms.swap(period_ms, Ordering::Relaxed) != period_ms {
            self.wake();
        }
    }

    /// Makes the loop look again.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    pub(crate) fn period(&self) -> Option<Duration> {
        match self.period_ms.load(Ordering::Relaxed) {
            0 => None,
            ms => Some(Duration::from_millis(ms.into())),
        }
    }

    pub(crate) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.wake();
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    async fn changed(&self) {
        self.changed.notified().await;
    }
}
