//! Whether a client that waits for another's fill is still there.
//!
//! Pingora waits for a lock and looks at nothing else. A request whose key carries a [`Presence`] gets a lock of its own to wait for; a
//! task waits for the fill's in its place, looks at the client meanwhile, and releases that lock when either is over.

use std::fmt;
use std::future::poll_fn;
use std::sync::Weak;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::Extensions;
use pingora_cache::lock::{LockCore, LockStatus, LockStub, ReadLock};

use crate::key::{Slot, SlotHash};

/// What a client was seen to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// It has left.
    Left,
    /// Its request does not wait any more: there is nothing to see.
    Resumed,
}

/// The connection of a client whose request waits.
pub trait Client: Send + Sync {
    /// Ready when there is something to tell. The task is woken then, and when the client is dropped.
    fn poll_leave(&self, cx: &mut Context<'_>) -> Poll<Seen>;
}

/// The mark of a cache key whose request's client can be watched.
#[derive(Clone)]
pub struct Presence(Weak<dyn Client>);

impl Presence {
    /// Of this client, as long as it is there.
    #[must_use]
    pub fn of(client: Weak<dyn Client>) -> Self {
        Self(client)
    }

    fn poll_leave(&self, cx: &mut Context<'_>) -> Poll<Seen> {
        self.0.upgrade().map_or(Poll::Ready(Seen::Resumed), |client| client.poll_leave(cx))
    }
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").field("there", &(self.0.strong_count() > 0)).finish()
    }
}

/// Has a task wait for `fill` as long as the client is there, and gives back what the request itself waits for. The task counts as the one
/// who waits.
pub(super) fn wait_for(fill: &LockStub, client: Presence) -> ReadLock {
    let left = fill.0.age_timeout.saturating_sub(fill.0.lock_start.elapsed());
    let own = LockStub(LockCore::new_arc(left, fill.0.stale_writer(), Extensions::new()));
    let (lock, fill) = (own.read_lock(), fill.read_lock());
    tokio::spawn(async move {
        let leaves = poll_fn(|cx| client.poll_leave(cx));
        let status = tokio::select! {
            biased;
            () = fill.wait() => fill.lock_status(),
            _ = leaves => LockStatus::GiveUp,
        };
        drop(fill); // Before anybody can see that the wait is over.
        own.0.unlock(status);
    });
    lock
}

/// What is being fetched, or looked for on disk, by primary slot: who asks for it may have to wait.
#[derive(Debug, Default)]
pub(crate) struct UnderWay {
    count: AtomicUsize,
    slots: DashMap<Slot, usize, SlotHash>,
}

/// Keeps a primary slot in [`UnderWay`].
#[derive(Debug)]
pub(crate) struct Underway<'a>(&'a UnderWay, Slot);

impl Drop for Underway<'_> {
    fn drop(&mut self) {
        self.0.leave(self.1);
    }
}

impl UnderWay {
    /// Whether there is anything.
    pub(crate) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether this is.
    pub(crate) fn has(&self, primary: Slot) -> bool {
        self.slots.contains_key(&primary)
    }

    /// This is, until the guard is dropped.
    pub(crate) fn enter(&self, primary: Slot) -> Underway<'_> {
        self.begin(primary);
        Underway(self, primary)
    }

    /// This is, until it [leaves](Self::leave).
    pub(super) fn begin(&self, primary: Slot) {
        *self.slots.entry(primary).or_insert(0) += 1;
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// One less of this is.
    pub(super) fn leave(&self, primary: Slot) {
        if let Entry::Occupied(mut entry) = self.slots.entry(primary) {
            self.count.fetch_sub(1, Ordering::Relaxed);
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_counted() {
        let under_way = UnderWay::default();
        assert!(!under_way.any());
        let (one, other) = (under_way.enter(1), under_way.enter(1));
        under_way.begin(2);
        drop(one);
        assert_eq!((under_way.has(1), under_way.has(2), under_way.has(3)), (true, true, false));
        drop(other);
        under_way.leave(2);
        under_way.leave(3);
        assert_eq!((under_way.any(), under_way.has(1), under_way.has(2)), (false, false, false));
        assert!(under_way.slots.is_empty());
    }
}
