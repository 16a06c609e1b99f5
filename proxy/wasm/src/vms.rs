//! The VMs of a plugin on one worker: which one a stream gets, and when a new one is made.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::Mutex;
use tracing::{debug, info};

use crate::breaker::StartBudget;
use crate::plugin::Isolation;
use crate::root_loop::Ticks;
use crate::vm::{CallError, VmCell};

/// VMs beyond those the isolation asks for, made while those are busy with calls that take long.
const SPARES: usize = 3;

/// One worker's VMs, and its root loop's bell.
pub(crate) struct Worker {
    slots: Mutex<Slots>,
    pub(crate) ticks: Arc<Ticks>,
}

struct Slots {
    /// The first is the one whose root context ticks.
    cells: Vec<Arc<VmCell>>,
    /// VMs being started now, outside of the lock.
    starting: usize,
    budget: StartBudget,
}

/// What to do for a new stream.
pub(crate) enum Choice {
    Use(Arc<VmCell>),
    /// Start a VM, and hand it to [`Worker::started`].
    Start,
}

impl Worker {
    pub(crate) fn new() -> Self {
        let slots = Slots { cells: Vec::new(), starting: 0, budget: StartBudget::new(Instant::now()) };
        Self { slots: Mutex::new(slots), ticks: Arc::default() }
    }

    /// Finds a VM for a new stream. While `dear` VMs are busy they are waited for, because to start another takes longer.
    ///
    /// # Errors
    /// [`CallError::Busy`] when all are and no more may be made, [`CallError::Unavailable`] when starts have used up their time.
    pub(crate) fn choose(&self, isolation: Isolation, dear: bool, plugin: &str) -> Result<Choice, CallError> {
        let mut slots = self.slots.lock();
        if slots.cells.iter().any(|cell| cell.is_dead()) {
            slots.cells.retain(|cell| !cell.is_dead());
            info!(plugin, "a VM that has failed is replaced");
        }

        if let [cell] = &slots.cells[..]
            && !matches!(isolation, Isolation::Pool(_))
            && !cell.is_busy()
        {
            return Ok(Choice::Use(cell.clone())); // What nearly every stream finds.
        }
        let wanted = match isolation {
            Isolation::Worker | Isolation::Request => 1,
            Isolation::Pool(size) => usize::from(size.get()),
        };
        let live = |cell: &&Arc<VmCell>| cell.live().load(Ordering::Relaxed);
        let idlest = slots.cells.iter().filter(|cell| !cell.is_busy()).min_by_key(live);
        if let Some(cell) = idlest
            && (slots.cells.len() >= wanted || live(&cell) == 0)
        {
            return Ok(Choice::Use(cell.clone()));
        }

        let spares = if dear { 0 } else { SPARES };
        if slots.cells.len() + slots.starting >= wanted + spares || (slots.cells.is_empty() && slots.starting > 0) {
            return Err(CallError::Busy);
        }
        slots.budget.check(Instant::now()).map_err(|retry_in| CallError::Unavailable { retry_in })?;
        slots.starting += 1;
        debug!(plugin, vms = slots.cells.len() + 1, "starting a VM");
        Ok(Choice::Start)
    }

    /// Ends what [`Choice::Start`] began.
    pub(crate) fn started(&self, since: Instant, cell: Option<&Arc<VmCell>>) {
        let mut slots = self.slots.lock();
        slots.starting = slots.starting.saturating_sub(1);
        slots.budget.spend(since.elapsed());
        if let Some(cell) = cell {
            slots.cells.push(cell.clone());
            self.ticks.wake(); // start-up may have sent something
        }
    }

    /// Adds a VM that was started without being asked for by a stream.
    pub(crate) fn add(&self, cell: Arc<VmCell>) {
        self.slots.lock().cells.push(cell);
        self.ticks.wake();
    }

    /// The VM whose root context does the root loop's work.
    pub(crate) fn root(&self) -> Option<Arc<VmCell>> {
        self.slots.lock().cells.iter().find(|cell| !cell.is_dead()).cloned()
    }

    /// All VMs that live.
    pub(crate) fn all(&self) -> Vec<Arc<VmCell>> {
        self.slots.lock().cells.iter().filter(|cell| !cell.is_dead()).cloned().collect()
    }

    /// All VMs, for the end of the plugin.
    pub(crate) fn take_all(&self) -> Vec<Arc<VmCell>> {
        std::mem::take(&mut self.slots.lock().cells)
    }
}
