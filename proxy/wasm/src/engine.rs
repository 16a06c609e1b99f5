//! The engine: code generation settings, the epoch ticker behind deadlines, and where compiled modules are kept.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::module_cache::{CacheDirError, ModuleCache};

/// How an [`Engine`] is made.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Folder for compiled modules, made if missing. `None`: every start compiles anew (about 150 ms for a small module, seconds for a
    /// large one). Compiled code is run as it is: whoever can write there owns the process, so a folder that everybody may write is refused.
    pub module_cache: Option<PathBuf>,
    /// Precision of deadlines: one thread wakes this often. Default 1 ms. 0 counts as 1 ms. While a guest call lasts longer than a tick,
    /// ticks come every millisecond.
    pub epoch_tick: Duration,
    /// How many instances may be alive at once that serve one stream each ([`crate::Isolation::Request`]). Default 1024. Address space of
    /// 4 GiB is set aside for each, and memory only while it is used. A stream that finds none free fails.
    pub instances: u32,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { module_cache: None, epoch_tick: DEFAULT_TICK, instances: 1024 }
    }
}

const DEFAULT_TICK: Duration = Duration::from_millis(1);

/// Ticks while some guest call has seen one already.
const HURRIED_TICK: Duration = Duration::from_millis(1);

/// Memory of an instance that is kept and cleared between two streams instead of given back and faulted in again.
const KEEP_RESIDENT: usize = 128 << 10;

/// Elements of a table in an instance that serves one stream: what [`crate::Limits::table_elements`] may be there. Address space, 800 KB
/// for each table; memory only as far as the guest's table goes.
const POOLED_TABLE_ELEMENTS: usize = 100_000;

/// Stack for guest code. Worker threads have 2 MiB; hostcalls and the proxy need the rest.
const GUEST_STACK: usize = 512 << 10;

/// A wasmtime engine with one thread that ticks its epoch until the engine is dropped. One per process is enough.
#[derive(Debug)]
pub struct Engine {
    clockwork: Arc<Clockwork>,
    instances: u32,
    cache: Option<ModuleCache>,
    /// The ticker ends when this hangs up, and looks again when it rings.
    ticker: Sender<()>,
}

/// What the ticker thread knows.
#[derive(Debug)]
struct Clockwork {
    /// For VMs that live long.
    wasmtime: wasmtime::Engine,
    /// For instances that serve one stream: the same code, memory from a pool. Made when first needed, because it sets address space aside.
    pooled: OnceLock<wasmtime::Engine>,
    tick: Duration,
    /// Guest calls that have seen a tick.
    hurried: AtomicUsize,
}

/// Ticks are fine while this lives.
#[derive(Debug)]
pub(crate) struct Hurry(Arc<Clockwork>);

impl Drop for Hurry {
    fn drop(&mut self) {
        self.0.hurried.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why an engine could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// wasmtime does not support this machine.
    #[error("cannot set up the wasm engine")]
    Wasmtime(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The folder for compiled modules cannot be used.
    #[error("cannot use {} for compiled modules", .path.display())]
    ModuleCache {
        /// The folder.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: CacheDirError,
    },
    /// The ticker thread could not be started.
    #[error("cannot start the epoch thread")]
    Ticker(#[source] std::io::Error),
}

impl Engine {
    /// Makes an engine and starts its ticker.
    ///
    /// # Errors
    /// [`EngineError`], by cause.
    pub fn new(options: EngineOptions) -> Result<Arc<Self>, EngineError> {
        let wasmtime = wasmtime::Engine::new(&config()).map_err(|error| EngineError::Wasmtime(error.into()))?;

        let cache = match options.module_cache {
            Some(path) => {
                Some(ModuleCache::open(&path, &wasmtime).map_err(|source| EngineError::ModuleCache { path, source })?)
            }
            None => None,
        };
        let tick = if options.epoch_tick.is_zero() { DEFAULT_TICK } else { options.epoch_tick };
        let clockwork = Arc::new(Clockwork { wasmtime, pooled: OnceLock::new(), tick, hurried: AtomicUsize::new(0) });
        let ticker = start_ticker(clockwork.clone()).map_err(EngineError::Ticker)?;
        Ok(Arc::new(Self { clockwork, instances: options.instances, cache, ticker }))
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.clockwork.wasmtime
    }

    /// The engine for instances that serve one stream.
    pub(crate) fn pooled(&self) -> wasmtime::Result<&wasmtime::Engine> {
        if let Some(pooled) = self.clockwork.pooled.get() {
            return Ok(pooled);
        }
        let mut pool = wasmtime::PoolingAllocationConfig::default();
        pool.total_core_instances(self.instances)
            .total_memories(self.instances)
            .total_tables(self.instances.saturating_mul(2))
            .max_tables_per_module(2)
            .table_elements(POOLED_TABLE_ELEMENTS)
            .linear_memory_keep_resident(KEEP_RESIDENT)
            .pagemap_scan(wasmtime::Enabled::Auto)
            .table_keep_resident(KEEP_RESIDENT);
        let mut config = config();
        config.allocation_strategy(pool);
        let engine = wasmtime::Engine::new(&config)?;
        // Another thread may have been faster; then ours is dropped.
        Ok(self.clockwork.pooled.get_or_init(|| engine))
    }

    /// Makes ticks fine until the guard is dropped.
    pub(crate) fn hurry(&self) -> Hurry {
        if self.clockwork.hurried.fetch_add(1, Ordering::Relaxed) == 0 {
            let _ = self.ticker.send(());
        }
        Hurry(self.clockwork.clone())
    }

    pub(crate) fn cache(&self) -> Option<&ModuleCache> {
        self.cache.as_ref()
    }
}

fn config() -> wasmtime::Config {
    let mut config = wasmtime::Config::new();
    config
        .epoch_interruption(true)
        .max_wasm_stack(GUEST_STACK)
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Enable) // lines, where a module brings them
        .wasm_multi_memory(false) // the memory ceiling is per memory
        .wasm_memory64(false); // the ABI's pointers are 32 bits
    config
}

fn start_ticker(clockwork: Arc<Clockwork>) -> std::io::Result<Sender<()>> {
    let (alive, ended) = mpsc::channel();
    std::thread::Builder::new().name("wasm-epoch".into()).spawn(move || {
        loop {
            let hurried = clockwork.hurried.load(Ordering::Relaxed) > 0;
            match ended.recv_timeout(if hurried { HURRIED_TICK.min(clockwork.tick) } else { clockwork.tick }) {
                Ok(()) => {}
                Err(RecvTimeoutError::Timeout) => {
                    clockwork.wasmtime.increment_epoch();
                    if let Some(pooled) = clockwork.pooled.get() {
                        pooled.increment_epoch();
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    })?;
    Ok(alive)
}
