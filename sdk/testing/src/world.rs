//! What the filter, the host and the test share: the clock, the log, the names of upstreams.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

#[derive(Clone)]
pub(crate) struct World {
    now: Arc<Mutex<SystemTime>>,
    log: Arc<Mutex<Vec<String>>>,
    upstreams: Arc<Mutex<BTreeSet<String>>>,
    /// The host has nothing beyond the ABI.
    plain: Arc<AtomicBool>,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            // A round number that no filter takes for "never": 2001-09-09.
            now: Arc::new(Mutex::new(UNIX_EPOCH + Duration::from_secs(1_000_000_000))),
            log: Arc::default(),
            upstreams: Arc::default(),
            plain: Arc::default(),
        }
    }

    pub(crate) fn now(&self) -> SystemTime {
        *lock(&self.now)
    }

    pub(crate) fn set_now(&self, now: SystemTime) {
        *lock(&self.now) = now;
    }

    pub(crate) fn log(&self, level: &str, message: &str) {
        lock(&self.log).push(format!("{level} {message}"));
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        lock(&self.log).clone()
    }

    pub(crate) fn lines_since(&self, count: usize) -> Vec<String> {
        lock(&self.log).get(count..).unwrap_or_default().to_vec()
    }

    pub(crate) fn logged(&self) -> usize {
        lock(&self.log).len()
    }

    pub(crate) fn forget_lines(&self) {
        lock(&self.log).clear();
    }

    pub(crate) fn make_plain(&self) {
        self.plain.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.plain.load(Ordering::Relaxed)
    }

    pub(crate) fn add_upstream(&self, name: &str) {
        lock(&self.upstreams).insert(name.to_owned());
    }

    pub(crate) fn has_upstream(&self, name: &str) -> bool {
        lock(&self.upstreams).contains(name)
    }

    pub(crate) fn upstreams(&self) -> Vec<String> {
        lock(&self.upstreams).iter().cloned().collect()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
