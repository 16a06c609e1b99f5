//! A plugin: a module with one configuration, its VMs, and the work of its root contexts.

use std::collections::HashSet;
use std::future::Future;
use std::num::NonZeroU8;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::{debug, info, warn};
use wasmtime::InstancePre;

use crate::abi::version::AbiVersion;
use crate::breaker::Breaker;
use crate::compat::Compat;
use crate::engine::Engine;
use crate::host::Host;
use crate::limits::{Limits, START_FACTOR};
use crate::module::{Module, Phases};
use crate::quota::Quota;
use crate::root_loop::{self, Ticks};
use crate::snapshot;
use crate::stats::PluginStats;
use crate::stream::Stream;
use crate::turn::thread_cpu;
use crate::vm::{CallError, ROOT, Role, State, Vm, VmCell};
use crate::vms::{Choice, Worker};

/// How a [`Plugin`] is configured: all that its guests and their VMs depend on, besides the module and the host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PluginOptions {
    /// Name in logs, and the property `plugin_name`.
    pub name: String,
    /// The property `plugin_root_id`: selects the filter in modules that hold several. Usually empty.
    pub root_id: String,
    /// The property `plugin_vm_id`, and the key space of shared data: plugins with the same one share it.
    pub vm_id: String,
    /// Given to `proxy_on_vm_start`.
    pub vm_config: Bytes,
    /// Given to `proxy_on_configure`.
    pub config: Bytes,
    /// The guest's environment variables (WASI), names and values. It sees no others.
    pub environment: Vec<(String, String)>,
    /// What each VM may use.
    pub limits: Limits,
    /// How many worker threads will open streams. 0 counts as 1.
    pub workers: usize,
    /// How streams share VMs.
    pub isolation: Isolation,
    /// Whether instances for one stream each begin from a snapshot. Of no effect with other isolations.
    pub snapshot: Snapshots,
    /// Let only worker 0's root context tick, so that a period is kept once in the process. Default false: each worker's ticks.
    pub tick_once: bool,
    /// Which host the guest was written for.
    pub compat: Compat,
}

/// How streams share VMs: what a trap, a leak or a bad state in one of them can touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Isolation {
    /// One VM for all streams of a worker. The fastest, and what other hosts do.
    #[default]
    Worker,
    /// So many VMs on each worker; a stream gets the one with the fewest.
    Pool(NonZeroU8),
    /// A fresh instance for each stream, gone with it: nothing a stream does to it is seen by another. Ticks, queues and other work of the
    /// root context are done by a VM of their own, which shares no memory with the streams'.
    Request,
}

/// Whether instances of [`Isolation::Request`] begin from a snapshot of the configured guest instead of starting anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Snapshots {
    /// When starting anew takes longer than 50 us, and the module can be snapshot.
    #[default]
    Auto,
    /// Always; a module that cannot be is an error.
    Always,
    /// Never: every stream starts the guest. For guests that draw seeds while they start and depend on their being different.
    Never,
}

/// Why a plugin could not be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartError {
    /// The guest failed while starting.
    #[error("the filter failed to start")]
    Call(#[source] CallError),
    /// The guest said no to its configuration.
    #[error("the filter refused its configuration in {callback}{}", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    Refused {
        /// `proxy_on_vm_start` or `proxy_on_configure`.
        callback: &'static str,
        /// The last error it logged, if it logged one.
        reason: Option<String>,
    },
    /// [`Snapshots::Always`], and the module keeps state where a snapshot cannot see it.
    #[error("the filter cannot be snapshot: {0}")]
    Snapshot(String),
}

/// A module with one configuration, and its VMs.
pub struct Plugin {
    module: Arc<Module>,
    facts: Arc<Facts>,
    isolation: Isolation,
    tick_once: bool,
    workers: Box<[Worker]>,
    start: Start,
    spare: Arc<Spare>,
}

/// How a VM of the plugin comes to be.
struct Start {
    /// For VMs that streams share, and those of root contexts.
    shared: InstancePre<State>,
    /// For instances that serve one stream, with whether they are configured when they are made.
    alone: Option<(InstancePre<State>, bool)>,
    /// What starting takes, in CPU time: a machine that is busy makes no start dear.
    took: Duration,
}

/// Starting takes so long that it is not to be done while a request waits.
const DEAR: Duration = Duration::from_millis(1);

/// Starting takes so long that a snapshot is worth its page faults.
const WORTH_A_SNAPSHOT: Duration = Duration::from_micros(50);

/// A started VM in reserve, for plugins that are dear to start.
#[derive(Debug, Default)]
struct Spare {
    vm: Mutex<Option<Vm>>,
    being_made: AtomicBool,
}

/// What every VM of a plugin knows.
pub(crate) struct Facts {
    pub(crate) name: String,
    pub(crate) root_id: String,
    pub(crate) vm_id: String,
    pub(crate) vm_config: Bytes,
    pub(crate) config: Bytes,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) abi: AbiVersion,
    pub(crate) compat: Compat,
    pub(crate) limits: Limits,
    /// CPU and wall-clock budget of a call, and of each call of a start.
    pub(crate) call_budget: (Duration, Duration),
    pub(crate) start_budget: (Duration, Duration),
    pub(crate) host: Arc<dyn Host>,
    pub(crate) stats: Arc<PluginStats>,
    /// Its clock must tick as long as any VM may run: VMs say goodbye when they are dropped.
    pub(crate) engine: Arc<Engine>,
    breaker: Breaker,
    pub(crate) quota: Quota,
    /// Streams opened, by worker.
    streams: Box<[Counter]>,
    /// Zero of the guests' monotonic clock.
    pub(crate) started: Instant,
    /// Calls that are not served and were warned about.
    warned: Mutex<HashSet<String>>,
}

/// A count that one worker writes: on a cache line of its own.
#[repr(align(64))]
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Facts {
    /// Says once per plugin that it uses something that is not served.
    pub(crate) fn warn_unserved(&self, call: &str) {
        if self.warned.lock().insert(call.to_owned()) {
            warn!(plugin = %self.name, call, "the filter uses a call that this host does not serve");
        }
    }

    /// A guest call has failed: counts towards holding the plugin back.
    pub(crate) fn failed(&self) {
        let streams = self.streams.iter().map(|streams| streams.0.load(Ordering::Relaxed)).sum();
        if let Some(open_for) = self.breaker.failed(streams, Instant::now()) {
            warn!(plugin = %self.name, ?open_for, "the filter fails most of its requests and is held back");
        }
    }
}

impl Plugin {
    /// Starts the VMs that serve first, so that a bad module or configuration fails here and no request waits for a start. Blocks for as
    /// long as the guest takes to configure itself, and for a compilation where a snapshot is made: keep it off serving threads.
    ///
    /// # Errors
    /// [`StartError`], by cause.
    pub fn start(module: Arc<Module>, options: PluginOptions, host: Arc<dyn Host>) -> Result<Arc<Plugin>, StartError> {
        let PluginOptions { name, root_id, vm_id, vm_config, config, environment, limits, .. } = options;
        let budget = |times| (limits.cpu.saturating_mul(times), limits.deadline.saturating_mul(times));
        let workers = options.workers.max(1);
        let stats = host.stats(&name);
        let facts = Arc::new(Facts {
            stats,
            name,
            root_id,
            vm_id,
            vm_config,
            config,
            environment,
            abi: module.abi(),
            compat: options.compat,
            call_budget: budget(1),
            start_budget: budget(START_FACTOR),
            quota: Quota::new(&limits, Instant::now()),
            limits,
            host,
            engine: Arc::clone(module.engine()),
            started: Instant::now(),
            breaker: Breaker::new(Instant::now()),
            streams: (0..workers).map(|_| Counter::default()).collect(),
            warned: Mutex::default(),
        });

        let workers: Box<[Worker]> = (0..workers).map(|_| Worker::new()).collect();
        let shared = module.instance().clone();
        let began = thread_cpu();
        let first = Vm::start(&shared, facts.clone(), workers[0].ticks.clone(), Role::Root)?;
        let took = thread_cpu().saturating_sub(began);
        let root_works = workers[0].ticks.needs_vm() || first.has_root_outgoing();
        workers[0].add(Arc::new(VmCell::new(first)));

        let alone = match options.isolation {
            Isolation::Request => Some(alone(&module, &facts, options.snapshot)?),
            Isolation::Worker | Isolation::Pool(_) => None,
        };
        let others = match options.isolation {
            Isolation::Request => root_works,
            Isolation::Worker | Isolation::Pool(_) => took > DEAR,
        };
        for worker in workers.iter().skip(1).filter(|_| others) {
            worker.add(Arc::new(VmCell::new(Vm::start(&shared, facts.clone(), worker.ticks.clone(), Role::Root)?)));
        }

        let (isolation, tick_once) = (options.isolation, options.tick_once);
        let start = Start { shared, alone, took };
        let plugin = Self { module, facts, isolation, tick_once, workers, start, spare: Arc::default() };
        plugin.make_spare();
        Ok(Arc::new(plugin))
    }

    /// The name it was started with.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.facts.name
    }

    /// The host it was started with: makes what its streams send out.
    #[must_use]
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.facts.host
    }

    /// What its VMs have counted.
    #[must_use]
    pub fn stats(&self) -> &Arc<PluginStats> {
        &self.facts.stats
    }

    /// The module it runs.
    #[must_use]
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// How its streams share VMs.
    #[must_use]
    pub fn isolation(&self) -> Isolation {
        self.isolation
    }

    /// Whether its streams' instances begin from a snapshot.
    #[must_use]
    pub fn is_snapshot(&self) -> bool {
        self.start.alone.as_ref().is_some_and(|(_, configured)| *configured)
    }

    /// Bytes of memory that the guests of a worker's streams share now. `None`: they are busy, or there are none.
    #[must_use]
    pub fn memory(&self, worker: usize) -> Option<usize> {
        let vms = self.workers[worker % self.workers.len()].all();
        vms.iter().map(|vm| vm.lock().ok().map(|vm| vm.memory())).sum::<Option<usize>>().filter(|bytes| *bytes > 0)
    }

    /// Opens a stream context on a worker. To be called on that worker's thread. Workers beyond [`PluginOptions::workers`] wrap around.
    ///
    /// # Errors
    /// [`CallError::Busy`]: try again in a millisecond. [`CallError::Unavailable`] when the plugin has failed too often lately,
    /// [`CallError::Exhausted`] when there is no room for another instance, else what went wrong in the guest.
    pub fn open_stream(self: &Arc<Self>, worker: usize) -> Result<Stream, CallError> {
        let index = worker % self.workers.len();
        self.facts.breaker.admit(Instant::now).map_err(|retry_in| {
            self.facts.stats.stream_was_rejected();
            CallError::Unavailable { retry_in }
        })?;
        let worker = &self.workers[index];
        let stream = match &self.start.alone {
            None => self.open_shared(worker),
            Some((instance, configured)) => self.open_alone(worker, instance, *configured),
        }?;
        let number = self.facts.streams[index].0.fetch_add(1, Ordering::Relaxed);
        Ok(stream.numbered(number))
    }

    fn open_shared(&self, worker: &Worker) -> Result<Stream, CallError> {
        let cell = match worker.choose(self.isolation, self.is_dear_now(), &self.facts.name)? {
            Choice::Use(cell) => cell,
            Choice::Start => {
                let began = Instant::now();
                let vm = self.new_vm(&worker.ticks).map(|vm| Arc::new(VmCell::new(vm)));
                worker.started(began, vm.as_ref().ok());
                vm?
            }
        };
        let phases = self.module.phases();
        let context = if phases.contains(Phases::STATELESS) { ROOT } else { cell.lock()?.open_stream(phases)? };
        let stream = Stream::new(cell, context, &self.module, None);
        Ok(if matches!(self.isolation, Isolation::Pool(_)) { stream.counted() } else { stream })
    }

    fn open_alone(
        &self,
        worker: &Worker,
        instance: &InstancePre<State>,
        configured: bool,
    ) -> Result<Stream, CallError> {
        let vm = if configured {
            Vm::resume(instance, self.facts.clone())
        } else {
            Vm::start(instance, self.facts.clone(), Arc::default(), Role::Alone).map_err(StartError::into_call)
        };
        let mut vm = vm?;
        let context = vm.open_stream(self.module.phases())?;
        Ok(Stream::new(Arc::new(VmCell::new(vm)), context, &self.module, Some(worker.ticks.clone())))
    }

    /// Whether a new VM would keep a request waiting.
    fn is_dear_now(&self) -> bool {
        self.start.took > DEAR && self.spare.vm.lock().is_none()
    }

    /// Starts a VM, or takes the one in reserve.
    fn new_vm(&self, ticks: &Arc<Ticks>) -> Result<Vm, CallError> {
        let spare = self.spare.vm.lock().take();
        let vm = match spare {
            Some(mut vm) => {
                vm.adopt(ticks.clone());
                Ok(vm)
            }
            None => Vm::start(&self.start.shared, self.facts.clone(), ticks.clone(), Role::Root)
                .map_err(StartError::into_call),
        };
        self.make_spare();
        vm
    }

    /// Starts a VM in reserve, on a thread of its own, when starting takes longer than a request should wait.
    fn make_spare(&self) {
        let wanted = self.start.took > DEAR && self.start.alone.is_none() && self.spare.vm.lock().is_none();
        if !wanted || self.spare.being_made.swap(true, Ordering::AcqRel) {
            return;
        }
        let (instance, facts, spare) = (self.start.shared.clone(), self.facts.clone(), self.spare.clone());
        let thread = std::thread::Builder::new().name("wasm-spare".into());
        let made = thread.spawn(move || {
            match Vm::start(&instance, facts.clone(), Arc::default(), Role::Spare) {
                Ok(vm) => *spare.vm.lock() = Some(vm),
                Err(error) => debug!(plugin = %facts.name, %error, "no VM in reserve"),
            }
            spare.being_made.store(false, Ordering::Release);
        });
        if let Err(error) = made {
            self.spare.being_made.store(false, Ordering::Release);
            debug!(plugin = %self.facts.name, %error, "no VM in reserve: no thread");
        }
    }

    /// Whether any VM asked for a tick period.
    #[must_use]
    pub fn wants_ticks(&self) -> bool {
        self.workers.iter().any(|worker| worker.ticks.period().is_some())
    }

    /// The work of a worker's root context: ticks at the period the guest asked for (counted from the end of the last one), and calls
    /// that belong to no stream. To be spawned on each worker, on a tokio runtime with time; one that is running already is enough, and
    /// another ends at once. Ends soon after the plugin is dropped, which it does not prevent: when the guest has said that it is done,
    /// at most 5 s later.
    pub fn tick_loop(self: &Arc<Self>, worker: usize) -> impl Future<Output = ()> + Send + 'static + use<> {
        let worker = worker % self.workers.len();
        let ticks = self.workers[worker].ticks.clone();
        let (plugin, claim) = (Arc::downgrade(self), ticks.claim());
        async move {
            let Some(claim) = claim else { return };
            root_loop::run(plugin, worker, ticks).await;
            drop(claim);
        }
    }

    /// The VM whose root context works on this worker. One that has failed is replaced when it had asked for ticks or queues; otherwise
    /// the next stream does it.
    pub(crate) fn root(&self, worker: usize) -> Option<Arc<VmCell>> {
        let worker = &self.workers[worker];
        if let Some(cell) = worker.root() {
            return Some(cell);
        }
        if !worker.ticks.needs_vm() {
            return None;
        }
        self.facts.breaker.admit(Instant::now).ok()?;
        let Choice::Start = worker.choose(Isolation::Worker, false, &self.facts.name).ok()? else { return None };
        let began = Instant::now();
        let vm = self.new_vm(&worker.ticks).map(|vm| Arc::new(VmCell::new(vm))).ok();
        worker.started(began, vm.as_ref());
        vm
    }

    /// What is known of this worker's ticks.
    pub(crate) fn ticks(&self, worker: usize) -> &Ticks {
        &self.workers[worker].ticks
    }

    /// The VMs of a worker whose contexts may have asked for queues.
    pub(crate) fn vms(&self, worker: usize) -> Vec<Arc<VmCell>> {
        self.workers[worker].all()
    }

    /// Whether this worker's root context is to tick.
    pub(crate) fn ticks_on(&self, worker: usize) -> bool {
        worker == 0 || !self.tick_once
    }
}

/// How instances for one stream each are made.
fn alone(module: &Module, facts: &Arc<Facts>, snapshots: Snapshots) -> Result<(InstancePre<State>, bool), StartError> {
    let fresh = module.pooled_instance().map_err(|error| StartError::Snapshot(error.to_string()))?;
    let wanted = match snapshots {
        Snapshots::Always => true,
        Snapshots::Never => false,
        Snapshots::Auto => {
            let mut fastest = Duration::MAX;
            for _ in 0..3 {
                let began = Instant::now();
                Vm::start(&fresh, facts.clone(), Arc::default(), Role::Rehearsal)?;
                fastest = fastest.min(began.elapsed());
            }
            fastest > WORTH_A_SNAPSHOT
        }
    };
    if !wanted {
        return Ok((fresh, false));
    }
    match snapshot::take(module, facts) {
        Ok(instance) => Ok((instance, true)),
        Err(snapshot::SnapshotError::Start(error)) => Err(error),
        Err(error) if snapshots == Snapshots::Always => Err(StartError::Snapshot(describe(&error))),
        Err(error) => {
            info!(plugin = %facts.name, reason = describe(&error), "no snapshot: the filter starts anew for each request");
            Ok((fresh, false))
        }
    }
}

fn describe(error: &snapshot::SnapshotError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

impl StartError {
    /// The same, for a stream that needed the start.
    fn into_call(self) -> CallError {
        match self {
            Self::Call(error) => error,
            Self::Refused { callback, reason } => {
                let reason = reason.as_deref().unwrap_or("without a reason");
                CallError::Trap { callback, message: format!("refused its configuration, {reason}") }
            }
            Self::Snapshot(message) => CallError::Trap { callback: "snapshot", message },
        }
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.ticks.close(worker.take_all());
        }
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("name", &self.facts.name).field("module", &self.module).finish_non_exhaustive()
    }
}
