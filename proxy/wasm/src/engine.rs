//! The engine: code generation settings, the epoch ticker behind deadlines, and where compiled modules are kept.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::Duration;

use crate::module_cache::{CacheDirError, ModuleCache};

/// How an [`Engine`] is made.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Folder for compiled modules, made if missing. `None`: every start compiles anew (about 150 ms for a small module, seconds for a
    /// large one). Compiled code is run as it is: whoever can write there owns the process, so a folder that everybody may write is refused.
    pub module_cache: Option<PathBuf>,
    /// Precision of deadlines: one thread wakes this often. Default 1 ms. 0 counts as 1 ms.
    pub epoch_tick: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self { module_cache: None, epoch_tick: DEFAULT_TICK }
    }
}

const DEFAULT_TICK: Duration = Duration::from_millis(1);

/// Stack for guest code. Worker threads have 2 MiB; hostcalls and the proxy need the rest.
const GUEST_STACK: usize = 512 << 10;

/// A wasmtime engine with one thread that ticks its epoch until the engine is dropped. One per process is enough.
#[derive(Debug)]
pub struct Engine {
    wasmtime: wasmtime::Engine,
    tick: Duration,
    cache: Option<ModuleCache>,
    /// The ticker ends when this hangs up.
    _ticker: Sender<()>,
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
        let mut config = wasmtime::Config::new();
        config
            .epoch_interruption(true)
            .max_wasm_stack(GUEST_STACK)
            .wasm_multi_memory(false) // the memory ceiling is per memory
            .wasm_memory64(false); // the ABI's pointers are 32 bits
        let wasmtime = wasmtime::Engine::new(&config).map_err(|error| EngineError::Wasmtime(error.into()))?;

        let cache = match options.module_cache {
            Some(path) => {
                Some(ModuleCache::open(&path, &wasmtime).map_err(|source| EngineError::ModuleCache { path, source })?)
            }
            None => None,
        };
        let tick = if options.epoch_tick.is_zero() { DEFAULT_TICK } else { options.epoch_tick };
        let ticker = start_ticker(&wasmtime, tick).map_err(EngineError::Ticker)?;
        Ok(Arc::new(Self { wasmtime, tick, cache, _ticker: ticker }))
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.wasmtime
    }

    pub(crate) fn cache(&self) -> Option<&ModuleCache> {
        self.cache.as_ref()
    }

    /// A deadline in ticks: rounded up, plus the tick that is already running.
    pub(crate) fn ticks(&self, deadline: Duration) -> u64 {
        let ticks = deadline.as_nanos().div_ceil(self.tick.as_nanos().max(1));
        // Added to the current epoch by wasmtime: half the range is for ever and cannot overflow.
        u64::try_from(ticks).unwrap_or(u64::MAX).min(u64::MAX / 2) + 1
    }
}

fn start_ticker(engine: &wasmtime::Engine, tick: Duration) -> std::io::Result<Sender<()>> {
    let (alive, ended) = mpsc::channel();
    let engine = engine.clone();
    std::thread::Builder::new().name("wasm-epoch".into()).spawn(move || {
        while ended.recv_timeout(tick) == Err(RecvTimeoutError::Timeout) {
            engine.increment_epoch();
        }
    })?;
    Ok(alive)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_round_up_to_ticks_and_never_to_none() {
        let engine =
            Engine::new(EngineOptions { epoch_tick: Duration::from_millis(2), ..EngineOptions::default() }).unwrap();
        assert_eq!(engine.ticks(Duration::ZERO), 1);
        assert_eq!(engine.ticks(Duration::from_millis(5)), 4);
        assert_eq!(engine.ticks(Duration::MAX), u64::MAX / 2 + 1);
    }
}
