//! The work of a worker's root context, one step at a time, for embedders that have a clock of their own: tests. A node runs
//! [`Plugin::tick_loop`] instead.

use std::sync::Arc;
use std::time::Duration;

use crate::effects::{Arrival, Outgoing};
use crate::plugin::Plugin;
use crate::vm::{CallError, ROOT};

impl Plugin {
    /// How often the root context of this worker wants to tick; `None`: never.
    #[must_use]
    pub fn tick_period(&self, worker: usize) -> Option<Duration> {
        self.ticks(worker).period()
    }

    /// Ticks once, now. A VM that has failed is replaced first, when it had asked for ticks.
    ///
    /// # Errors
    /// [`CallError`]: the guest failed, or could not be started again.
    pub fn tick_now(self: &Arc<Self>, worker: usize) -> Result<(), CallError> {
        match self.root(worker) {
            Some(vm) => vm.lock()?.tick(),
            None => Ok(()),
        }
    }

    /// What the root context wants sent out: by its start, a tick, an answer.
    #[must_use]
    pub fn take_outgoing(&self, worker: usize) -> Vec<Outgoing> {
        let vm = self.root(worker);
        vm.and_then(|vm| Some(vm.lock().ok()?.take_root_outgoing())).unwrap_or_default()
    }

    /// Brings the root context something that came for it.
    ///
    /// # Errors
    /// [`CallError`]: the guest failed. What it no longer knows is ignored.
    pub fn arrive(&self, worker: usize, arrival: Arrival) -> Result<(), CallError> {
        match self.root(worker) {
            Some(vm) => vm.lock()?.deliver(ROOT, None, arrival).map(drop),
            None => Ok(()),
        }
    }
}
