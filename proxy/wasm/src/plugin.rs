//! A plugin: a module with one configuration, its VMs, and the work of its root contexts.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tracing::{info, warn};

use crate::abi::version::AbiVersion;
use crate::engine::Engine;
use crate::host::Host;
use crate::limits::{Limits, START_FACTOR};
use crate::module::Module;
use crate::root_loop::{self, Ticks};
use crate::stream::Stream;
use crate::vm::{CallError, Vm, VmCell};

/// How a [`Plugin`] is configured.
#[derive(Debug, Clone, Default)]
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
    /// How many worker threads will open streams; each gets a VM of its own. 0 counts as 1.
    pub workers: usize,
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
}

/// A module with one configuration. VMs are made when a worker first needs one; a poisoned VM is replaced by the next new stream.
pub struct Plugin {
    module: Arc<Module>,
    facts: Arc<Facts>,
    workers: Box<[Worker]>,
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
    pub(crate) limits: Limits,
    pub(crate) call_ticks: u64,
    pub(crate) start_ticks: u64,
    pub(crate) host: Arc<dyn Host>,
    /// Its clock must tick as long as any VM may run: VMs say goodbye when they are dropped.
    _engine: Arc<Engine>,
    /// Zero of the guests' monotonic clock.
    pub(crate) started: Instant,
    /// Calls that are not served and were warned about.
    warned: Mutex<HashSet<String>>,
}

impl Facts {
    pub(crate) fn start_deadline(&self) -> Duration {
        self.limits.deadline.saturating_mul(START_FACTOR)
    }

    /// Says once per plugin that it uses something that is not served.
    pub(crate) fn warn_unserved(&self, call: &str) {
        if self.warned.lock().insert(call.to_owned()) {
            warn!(plugin = %self.name, call, "the filter uses a call that this host does not serve");
        }
    }
}

struct Worker {
    vm: Mutex<Slot>,
    ticks: Arc<Ticks>,
}

struct Slot {
    vm: Option<Arc<VmCell>>,
    rebuilds: Rebuilds,
}

impl Plugin {
    /// Starts worker 0's VM, so that a bad module or configuration fails here.
    ///
    /// # Errors
    /// [`StartError::Call`] when the guest fails, [`StartError::Refused`] when it says no to the configuration.
    pub fn start(module: Arc<Module>, options: PluginOptions, host: Arc<dyn Host>) -> Result<Arc<Plugin>, StartError> {
        let PluginOptions { name, root_id, vm_id, vm_config, config, environment, limits, workers } = options;
        let call_ticks = module.engine().ticks(limits.deadline);
        let start_ticks = module.engine().ticks(limits.deadline.saturating_mul(START_FACTOR));
        let facts = Arc::new(Facts {
            name,
            root_id,
            vm_id,
            vm_config,
            config,
            environment,
            abi: module.abi(),
            limits,
            call_ticks,
            start_ticks,
            host,
            _engine: Arc::clone(module.engine()),
            started: Instant::now(),
            warned: Mutex::default(),
        });

        let workers: Box<[Worker]> = (0..workers.max(1)).map(|_| Worker::new()).collect();
        if let Some(first) = workers.first() {
            let vm = Vm::start(&module, facts.clone(), first.ticks.clone())?;
            first.vm.lock().vm = Some(Arc::new(VmCell(Mutex::new(vm))));
        }
        Ok(Arc::new(Self { module, facts, workers }))
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

    /// The module it runs.
    #[must_use]
    pub fn module(&self) -> &Arc<Module> {
        &self.module
    }

    /// Opens a stream context on a worker's VM, making the VM first if there is none or it is poisoned. To be called on that worker's
    /// thread: VMs are locked, so another thread would work, but wait. Workers beyond [`PluginOptions::workers`] wrap around.
    ///
    /// # Errors
    /// [`CallError::Unavailable`] when the VM died too often lately (16 times in a row, then once a second), else what went wrong in the
    /// guest.
    pub fn open_stream(self: &Arc<Self>, worker: usize) -> Result<Stream, CallError> {
        let worker = &self.workers[worker % self.workers.len()];
        let mut slot = worker.vm.lock();
        if let Some(cell) = &slot.vm {
            let mut vm = cell.0.lock();
            if !vm.is_poisoned() {
                let context = vm.open_stream()?;
                drop(vm);
                return Ok(Stream::new(cell.clone(), context, &self.module));
            }
        }

        // The first VM of a worker is no replacement, but a module that cannot start must not be tried at every request either.
        slot.rebuilds.take(Instant::now()).map_err(|retry_in| CallError::Unavailable { retry_in })?;
        if slot.vm.take().is_some() {
            info!(plugin = %self.facts.name, "replacing a filter's VM that had failed");
        }
        let mut vm =
            Vm::start(&self.module, self.facts.clone(), worker.ticks.clone()).map_err(|error| match error {
                StartError::Call(error) => error,
                StartError::Refused { callback, reason } => {
                    let message =
                        format!("refused its configuration, {}", reason.as_deref().unwrap_or("without a reason"));
                    CallError::Trap { callback, message }
                }
            })?;
        let context = vm.open_stream()?;
        let cell = Arc::new(VmCell(Mutex::new(vm)));
        slot.vm = Some(cell.clone());
        worker.ticks.wake(); // start-up may have queued callouts
        Ok(Stream::new(cell, context, &self.module))
    }

    /// Whether any VM asked for a tick period.
    #[must_use]
    pub fn wants_ticks(&self) -> bool {
        self.workers.iter().any(|worker| worker.ticks.period().is_some())
    }

    /// The work of a worker's root context: ticks at the period the guest asked for (counted from the end of the last one), and callouts
    /// that belong to no stream. To be spawned once per worker, on a tokio runtime with time; ends when the plugin is dropped, which it
    /// does not prevent.
    pub fn tick_loop(self: &Arc<Self>, worker: usize) -> impl Future<Output = ()> + Send + 'static + use<> {
        let worker = worker % self.workers.len();
        let ticks = self.workers[worker].ticks.clone();
        root_loop::run(Arc::downgrade(self), worker, ticks)
    }

    pub(crate) fn vm(&self, worker: usize) -> Option<Arc<VmCell>> {
        self.workers[worker].vm.lock().vm.clone()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        for worker in &self.workers {
            worker.ticks.close();
        }
    }
}

impl std::fmt::Debug for Plugin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugin").field("name", &self.facts.name).field("module", &self.module).finish_non_exhaustive()
    }
}

impl Worker {
    fn new() -> Self {
        Self { vm: Mutex::new(Slot { vm: None, rebuilds: Rebuilds::new(Instant::now()) }), ticks: Arc::default() }
    }
}

/// A token bucket for new VMs: a burst of crashes is absorbed, a module that always crashes costs one start a second.
#[derive(Debug)]
struct Rebuilds {
    tokens: u32,
    since: Instant,
}

impl Rebuilds {
    const BURST: u32 = 16;
    const REFILL: Duration = Duration::from_secs(1);

    fn new(now: Instant) -> Self {
        Self { tokens: Self::BURST, since: now }
    }

    /// One token, or how long until there is one.
    fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let refilled =
            u32::try_from(now.duration_since(self.since).as_secs() / Self::REFILL.as_secs()).unwrap_or(u32::MAX);
        if self.tokens.saturating_add(refilled) >= Self::BURST {
            self.tokens = Self::BURST;
            self.since = now;
        } else {
            self.tokens += refilled;
            self.since += Self::REFILL * refilled;
        }
        match self.tokens.checked_sub(1) {
            Some(left) => {
                self.tokens = left;
                Ok(())
            }
            None => Err(Self::REFILL.saturating_sub(now.duration_since(self.since))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rebuilds_come_in_a_burst_then_one_a_second() {
        let start = Instant::now();
        let mut rebuilds = Rebuilds::new(start);
        for _ in 0..Rebuilds::BURST {
            assert_eq!(rebuilds.take(start), Ok(()));
        }
        assert_eq!(rebuilds.take(start), Err(Duration::from_secs(1)));
        let later = start + Duration::from_millis(1200);
        assert_eq!(rebuilds.take(later), Ok(()));
        assert_eq!(rebuilds.take(later), Err(Duration::from_millis(800)));
        let much_later = start + Duration::from_secs(3600);
        for _ in 0..Rebuilds::BURST {
            assert_eq!(rebuilds.take(much_later), Ok(()));
        }
        assert!(rebuilds.take(much_later).is_err());
    }
}
