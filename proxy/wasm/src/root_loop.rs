//! The work of a plugin's root context on one worker: ticks, and what was sent out by it or by streams that have ended.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::warn;

use crate::calls::Calls;
use crate::effects::Outgoing;
use crate::grpc;
use crate::host::Host;
use crate::plugin::Plugin;
use crate::vm::{CallError, ROOT, Vm, VmCell};

/// How long a guest may go on after it answered "not yet" to `proxy_on_done`.
const FAREWELL: Duration = Duration::from_secs(5);

/// How long to leave a busy VM alone.
const BUSY: Duration = Duration::from_millis(1);

pub(crate) async fn run(plugin: Weak<Plugin>, worker: usize, ticks: Arc<Ticks>) {
    // Calls belong to the VM that made them; a new VM starts with none.
    let mut of: Option<Arc<VmCell>> = None;
    let mut calls = Calls::new();
    let mut rest = Rest::default();
    while !ticks.is_closed() {
        let Some(plugin) = plugin.upgrade() else { break };
        let root = plugin.root(worker);
        if of.as_ref().map(Arc::as_ptr) != root.as_ref().map(Arc::as_ptr) {
            (of, calls) = (root, Calls::new());
        }
        // Calls first: what a tick, a start or an answer asked for is sent without waiting for the next tick.
        if let Some(vm) = &of {
            send_outgoing(vm, &mut calls, plugin.host()).await;
        }
        for orphan in ticks.take_orphans() {
            send_orphan(plugin.host(), orphan);
        }
        let mut more = false;
        for vm in plugin.vms(worker) {
            more |= serve_queues(&vm).await;
        }
        let ticking = plugin.ticks_on(worker);
        drop(plugin);
        if more {
            ticks.wake(); // to come back here; others on this worker have their turn first
            tokio::task::yield_now().await;
        }
        step(&ticks, ticking, of.as_ref(), &mut calls, &mut rest).await;
    }

    drop(of);
    for vm in ticks.take_farewells() {
        say_goodbye(vm, &ticks).await;
    }
}

/// Waits for the next thing the root context has to do, and has it done.
async fn step(ticks: &Ticks, ticking: bool, vm: Option<&Arc<VmCell>>, calls: &mut Calls, rest: &mut Rest) {
    let due = rest.until(ticks.period().filter(|_| ticking));
    let tick = async {
        match due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = ticks.changed() => {}
        arrival = calls.next() => {
            let Some(vm) = vm else { return };
            let delivered = when_free(vm, |vm| vm.deliver(ROOT, None, arrival.clone()).map(drop)).await;
            report(vm, delivered);
        }
        () = tick => {
            *rest = Rest::default();
            let Some(vm) = vm else { return };
            let ticked = when_free(vm, Vm::tick).await;
            report(vm, ticked);
        }
    }
}

/// When the next tick is due, and by which period. It stays when the loop is woken for something else, or a busy queue would leave no rest
/// long enough to tick. Ticks are periods of rest, not a clock: the next one counts from the end of the last.
#[derive(Default)]
struct Rest(Option<(Duration, Instant)>);

impl Rest {
    fn until(&mut self, period: Option<Duration>) -> Option<Instant> {
        self.0 = match (period, self.0) {
            (Some(period), Some((of, due))) if period == of => Some((of, due)),
            (Some(period), _) => Some((period, Instant::now() + period)),
            (None, _) => None,
        };
        self.0.map(|(_, due)| due)
    }
}

/// How many queue items a guest is told of before others on this worker have their turn: it may enqueue more while it is told.
const QUEUE_BATCH: usize = 64;

/// Tells the guest of items in its queues; true when some may be left.
async fn serve_queues(vm: &VmCell) -> bool {
    for _ in 0..QUEUE_BATCH {
        match when_free(vm, Vm::queue_ready).await {
            Ok(true) => {}
            Ok(false) => return false,
            Err(error) => {
                report(vm, Err(error));
                return false;
            }
        }
    }
    true
}

/// Ends a plugin's VM: `proxy_on_done`, then the guest may finish what it has under way, then `proxy_on_delete`.
async fn say_goodbye(vm: Arc<VmCell>, ticks: &Ticks) {
    let Ok(false) = when_free(&vm, Vm::say_done).await else { return };
    let mut calls = Calls::new();
    let mut rest = Rest::default();
    let finish = async {
        loop {
            let state = when_free(&vm, |vm| Ok((vm.is_done(), vm.host()))).await;
            let Ok((false, host)) = state else { return };
            send_outgoing(&vm, &mut calls, &host).await;
            step(ticks, true, Some(&vm), &mut calls, &mut rest).await;
        }
    };
    let _ = tokio::time::timeout(FAREWELL, finish).await;
    // With the last reference the VM is dropped, which deletes the root context.
}

async fn send_outgoing(vm: &VmCell, calls: &mut Calls, host: &Arc<dyn Host>) {
    if let Ok(outgoing) = when_free(vm, |vm| Ok(vm.take_root_outgoing())).await {
        calls.begin(host, outgoing);
    }
}

/// Calls sent by a stream that ended with its instance: nobody is left for the answer.
fn send_orphan(host: &Arc<dyn Host>, orphan: Outgoing) {
    match orphan {
        Outgoing::Http(callout) => drop(tokio::spawn(host.call(callout))),
        Outgoing::GrpcOpen(open) => drop(tokio::spawn(grpc::run_orphan(Arc::clone(host), *open))),
        // Of streams, which are not opened without their guest.
        Outgoing::GrpcSend { .. } | Outgoing::GrpcClose(_) | Outgoing::GrpcCancel(_) => {}
    }
}

/// Runs something on a VM as soon as it is not busy.
async fn when_free<T>(vm: &VmCell, mut run: impl FnMut(&mut Vm) -> Result<T, CallError>) -> Result<T, CallError> {
    loop {
        match vm.lock().and_then(|mut vm| run(&mut vm)) {
            Err(CallError::Busy) => tokio::time::sleep(BUSY).await,
            ran => return ran,
        }
    }
}

/// Root-context work has nobody to fail: the operator is told, the next stream gets a new VM.
fn report(vm: &VmCell, result: Result<(), CallError>) {
    match result {
        Ok(()) | Err(CallError::Poisoned) => {}
        Err(error) => {
            let plugin = vm.lock().map(|vm| vm.name()).unwrap_or_default();
            warn!(plugin, %error, "a filter failed outside of any request");
        }
    }
}

/// What a VM tells the tick loop of its worker.
#[derive(Debug, Default)]
pub(crate) struct Ticks {
    period_ms: AtomicU32,
    closed: AtomicBool,
    /// A loop runs, or is about to.
    claimed: AtomicBool,
    /// A VM of this worker is to be told of a queue's items.
    listens: AtomicBool,
    changed: Notify,
    /// What streams that ended with their instance wanted sent.
    orphans: Mutex<Vec<Outgoing>>,
    /// The plugin's VMs when it is dropped.
    farewells: Mutex<Vec<Arc<VmCell>>>,
}

/// The right to run the one loop of a worker, given back when dropped.
pub(crate) struct Claim(Arc<Ticks>);

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.claimed.store(false, Ordering::Release);
    }
}

/// Calls of ended streams that may wait to be sent; more are dropped, as a guest in trouble makes them.
const ORPHANS: usize = 1024;

impl Ticks {
    /// The right to run the loop; `None` while somebody else has it.
    pub(crate) fn claim(self: &Arc<Self>) -> Option<Claim> {
        let taken = self.claimed.swap(true, Ordering::AcqRel);
        (!taken).then(|| Claim(Arc::clone(self)))
    }

    /// A new period; 0 stops ticking.
    pub(crate) fn set(&self, period_ms: u32) {
        if self.period_ms.swap(period_ms, Ordering::Relaxed) != period_ms {
            self.wake();
        }
    }

    /// A VM of this worker has registered a queue.
    pub(crate) fn listen(&self) {
        self.listens.store(true, Ordering::Relaxed);
    }

    /// Whether a VM is needed on this worker even when no stream comes.
    pub(crate) fn needs_vm(&self) -> bool {
        self.period().is_some() || self.listens.load(Ordering::Relaxed)
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

    /// Keeps calls that a stream made while it ended with its instance.
    pub(crate) fn adopt(&self, outgoing: Vec<Outgoing>) {
        let mut orphans = self.orphans.lock();
        let room = ORPHANS.saturating_sub(orphans.len());
        orphans.extend(outgoing.into_iter().take(room));
        drop(orphans);
        self.wake();
    }

    fn take_orphans(&self) -> Vec<Outgoing> {
        std::mem::take(&mut self.orphans.lock())
    }

    fn take_farewells(&self) -> Vec<Arc<VmCell>> {
        std::mem::take(&mut self.farewells.lock())
    }

    /// The plugin is gone: its VMs are to say goodbye. Without a loop they do when this is dropped.
    pub(crate) fn close(&self, vms: Vec<Arc<VmCell>>) {
        *self.farewells.lock() = vms;
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
