//! A VM behind its lock.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use super::{CallError, Vm};
use crate::module::Phases;

/// Longer than nearly every call, shorter than anybody notices.
const A_MOMENT: Duration = Duration::from_millis(2);

/// A VM that streams share. It is locked for one guest call and never across an await; each worker has its own VMs, so the lock is free
/// but for one case: a call that takes long goes on aside (see [`crate::turn`]) while the worker's other requests are served. Nobody
/// waits for the lock, then: [`CallError::Busy`].
#[derive(Debug)]
pub(crate) struct VmCell {
    vm: Mutex<Vm>,
    /// The VM is poisoned. Outside of the lock, so that a busy VM can be told from a dead one.
    dead: AtomicBool,
    /// Streams that are open in it, as far as they are counted.
    live: AtomicUsize,
    /// Streams that ended while the VM was busy: whoever has the lock next closes them.
    ended: Mutex<Vec<(u32, Phases)>>,
    any_ended: AtomicBool,
    /// Counts the calls that left mail for other streams. Outside of the lock, so that streams need it only when there may be some.
    posted: AtomicUsize,
}

impl VmCell {
    pub(crate) fn new(vm: Vm) -> Self {
        Self {
            vm: Mutex::new(vm),
            dead: AtomicBool::new(false),
            live: AtomicUsize::new(0),
            ended: Mutex::default(),
            any_ended: AtomicBool::new(false),
            posted: AtomicUsize::new(0),
        }
    }

    /// Whether the VM is running now.
    pub(crate) fn is_busy(&self) -> bool {
        self.vm.is_locked()
    }

    /// The VM, unless it is running. A call that ends within a moment is waited for: whoever looked before, and saw it free, may have met
    /// one that has just begun on a thread that had stepped aside.
    pub(crate) fn lock(&self) -> Result<Locked<'_>, CallError> {
        let vm = self.vm.try_lock().or_else(|| self.vm.try_lock_for(A_MOMENT));
        let mut vm = vm.ok_or(CallError::Busy)?;
        if self.any_ended.load(Ordering::Relaxed) {
            self.any_ended.store(false, Ordering::Relaxed);
            for (context, phases) in std::mem::take(&mut *self.ended.lock()) {
                vm.close_stream(context, None, phases);
            }
        }
        Ok(Locked { vm, cell: self })
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub(crate) fn live(&self) -> &AtomicUsize {
        &self.live
    }

    /// Changes when one stream's call, or the root context's, has left something for another stream.
    pub(crate) fn posted(&self) -> usize {
        self.posted.load(Ordering::Relaxed)
    }

    /// Closes a stream as soon as the VM is free, without an exchange.
    pub(crate) fn close_when_free(&self, context: u32, phases: Phases) {
        self.ended.lock().push((context, phases));
        self.any_ended.store(true, Ordering::Relaxed);
    }
}

/// The VM, ours for one call.
pub(crate) struct Locked<'a> {
    vm: MutexGuard<'a, Vm>,
    cell: &'a VmCell,
}

impl Deref for Locked<'_> {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        &self.vm
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut Vm {
        &mut self.vm
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        if self.vm.has_done_streams() {
            self.vm.reap();
        }
        if self.vm.take_posted() {
            self.cell.posted.fetch_add(1, Ordering::Relaxed);
        }
        if self.vm.is_poisoned() {
            self.cell.dead.store(true, Ordering::Relaxed);
        }
    }
}
