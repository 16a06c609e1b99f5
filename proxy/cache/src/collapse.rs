//! Collapsing: one fill per key, everybody else waits for it (RFC 9111, 4; RFC 9211, `collapsed`).
//!
//! ```text
//! lock ──> Write (the first) ── header arrived, storable ──> Done: waiters look up, and join the fill
//!     │                      ├─ not storable ──────────────> GiveUp: waiters go forward in one wave, the key is remembered
//!     │                      ├─ origin failed ─────────────> TransientError: waiters compete for the next fill
//!     │                      └─ longer than the deadline ──> AgeTimeout: waiters compete, the old fill goes on by itself
//!     └─> Read (the others) ── longer than the wait ───────> WaitTimeout: this one goes forward alone
//! ```
//!
//! Requests with `Authorization` have their own locks and their own memory: what they get is mostly not shareable, and must not send
//! everybody else forward.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::Extensions;
use pingora_cache::lock::{CacheKeyLock, LockStatus, LockStub, Locked, WritePermit};
use pingora_cache::predictor::CacheablePredictor;
use pingora_cache::{CacheKey, NoCacheReason};

use crate::key::{self, Slot, SlotHash};
use crate::rules::store::Reason;

/// How long an answer that could not be stored is remembered. Meanwhile requests for its key neither wait nor look up.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(120);
/// How many such keys are remembered at most; about 100 bytes each.
const REMEMBERED_KEYS: u64 = 65_536;
/// Locks whose holder vanished are swept out once per this many new locks.
const SWEEP_EVERY: u64 = 4_096;

/// Marks the key of a request with `Authorization`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Authorised;

/// Flips a slot into the space of authorised requests.
const AUTHORISED_SPACE: Slot = 1 << 63 | 1;

fn class(key: &CacheKey, slot: Slot) -> Slot {
    if key.extensions.get::<Authorised>().is_some() { slot ^ AUTHORISED_SPACE } else { slot }
}

/// The table of fills under way, as Pingora's cache lock.
pub(crate) struct FillLocks {
    table: DashMap<Slot, LockStub, SlotHash>,
    deadline_ms: AtomicU64,
    granted: AtomicU64,
}

impl fmt::Debug for FillLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FillLocks").field("held", &self.table.len()).finish_non_exhaustive()
    }
}

impl FillLocks {
    /// Locks that a fill may hold for `deadline`.
    pub(crate) fn new(deadline: Duration) -> Self {
        let locks = Self { table: DashMap::default(), deadline_ms: AtomicU64::new(0), granted: AtomicU64::new(0) };
        locks.set_deadline(deadline);
        locks
    }

    /// Change the deadline of fills that start from now on.
    pub(crate) fn set_deadline(&self, deadline: Duration) {
        self.deadline_ms.store(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn grant(&self, stale_writer: bool) -> (WritePermit, LockStub) {
        if self.granted.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.table.retain(|_, stub| is_held(stub));
        }
        let deadline = Duration::from_millis(self.deadline_ms.load(Ordering::Relaxed));
        WritePermit::new(deadline, stale_writer, Extensions::new())
    }
}

/// Whether somebody is still expected to release this lock.
fn is_held(stub: &LockStub) -> bool {
    stub.0.lock_status() == LockStatus::Waiting && stub.0.lock_start.elapsed() < stub.0.age_timeout
}

impl CacheKeyLock for FillLocks {
    fn lock(&self, key: &CacheKey, stale_writer: bool) -> Locked {
        let slot = class(key, key::slot(key));
        if let Some(stub) = self.table.get(&slot)
            && is_held(&stub)
        {
            return Locked::Read(stub.read_lock());
        }

        // The sweep inside of grant must not run while an entry is held.
        let (mut permit, new) = self.grant(stale_writer);
        match self.table.entry(slot) {
            Entry::Occupied(held) if is_held(held.get()) => {
                permit.unlock(LockStatus::Done); // nobody has seen it
                Locked::Read(held.get().read_lock())
            }
            Entry::Occupied(mut left_behind) => {
                left_behind.insert(new);
                Locked::Write(permit)
            }
            Entry::Vacant(free) => {
                free.insert(new);
                Locked::Write(permit)
            }
        }
    }

    fn release(&self, key: &CacheKey, mut permit: WritePermit, reason: LockStatus) {
        let slot = class(key, key::slot(key));
        // A lock past its deadline may have been replaced: take away only our own. Permit and stub share one set of extensions.
        self.table.remove_if(&slot, |_, stub| std::ptr::eq(stub.extensions(), permit.extensions()));
        let timed_out = permit.lock_status() == LockStatus::AgeTimeout;
        permit.unlock(if timed_out { LockStatus::AgeTimeout } else { reason });
    }

    fn custom_lock_status(&self, reason: &'static str) -> LockStatus {
        // This client's own wish says nothing about the others: let the next one try.
        if reason == Reason::RequestNoStore.as_str() { LockStatus::TransientError } else { LockStatus::GiveUp }
    }
}

/// Hit-for-miss: keys whose last answer could not be stored, for [`REMEMBERED_FOR`].
#[derive(Debug)]
pub(crate) struct HitForMiss {
    keys: moka::sync::Cache<Slot, NoCacheReason, SlotHash>,
}

impl HitForMiss {
    pub(crate) fn new() -> Self {
        let builder = moka::sync::Cache::builder().max_capacity(REMEMBERED_KEYS).time_to_live(REMEMBERED_FOR);
        Self { keys: builder.build_with_hasher(SlotHash::default()) }
    }

    /// Remember that objects at this primary slot are too large.
    pub(crate) fn remember_too_large(&self, primary: Slot) {
        self.keys.insert(primary, NoCacheReason::ResponseTooLarge);
    }

    /// Whether the object at this primary slot was too large.
    pub(crate) fn was_too_large(&self, primary: Slot) -> bool {
        self.keys.get(&primary) == Some(NoCacheReason::ResponseTooLarge)
    }

    /// Forget what is remembered about a primary slot.
    pub(crate) fn forget(&self, primary: Slot) {
        self.keys.invalidate(&primary);
        self.keys.invalidate(&(primary ^ AUTHORISED_SPACE));
    }

    /// Forget everything.
    pub(crate) fn forget_all(&self) {
        self.keys.invalidate_all();
    }
}

impl CacheablePredictor for HitForMiss {
    fn cacheable_prediction(&self, key: &CacheKey) -> bool {
        !self.keys.contains_key(&class(key, key::primary_slot(key)))
    }

    fn predicted_uncacheable_reason(&self, key: &CacheKey) -> Option<NoCacheReason> {
        self.keys.get(&class(key, key::primary_slot(key)))
    }

    fn mark_cacheable(&self, key: &CacheKey) -> bool {
        self.keys.remove(&class(key, key::primary_slot(key))).is_none()
    }

    fn mark_uncacheable(&self, key: &CacheKey, reason: NoCacheReason) -> Option<bool> {
        // Only what the origin said about the response lasts; everything else is about this request or this moment.
        if !matches!(reason, NoCacheReason::OriginNotCache | NoCacheReason::ResponseTooLarge) {
            return None;
        }
        let slot = class(key, key::primary_slot(key));
        let new = !self.keys.contains_key(&slot);
        self.keys.insert(slot, reason);
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use pingora_cache::lock::LockWaitOutcome;

    use super::*;
    use crate::key::{KeyScope, Scheme};
    use crate::rules::QueryPolicy;

    const LONG: Duration = Duration::from_secs(60);

    fn key(path: &str) -> CacheKey {
        key::of_target(KeyScope::default(), Scheme::Http, &QueryPolicy::All, b"a.example", path.as_bytes())
    }

    fn authorised(path: &str) -> CacheKey {
        let mut key = key(path);
        key.extensions.insert(Authorised);
        key
    }

    fn write(locked: Locked) -> WritePermit {
        match locked {
            Locked::Write(permit) => permit,
            Locked::Read(_) => panic!("another fill holds the lock"),
        }
    }

    #[tokio::test]
    async fn one_writes_and_the_others_wait_for_it() {
        let locks = FillLocks::new(LONG);
        let permit = write(locks.lock(&key("/a"), false));
        let Locked::Read(waiter) = locks.lock(&key("/a"), false) else { panic!("a second writer") };
        let other = write(locks.lock(&key("/b"), false));
        locks.release(&key("/b"), other, LockStatus::Done);
        assert!(waiter.locked());

        locks.release(&key("/a"), permit, LockStatus::GiveUp);
        waiter.wait().await;
        assert_eq!(waiter.lock_status(), LockStatus::GiveUp);
        let again = write(locks.lock(&key("/a"), false));
        locks.release(&key("/a"), again, LockStatus::Done);
        assert!(locks.table.is_empty());
    }

    #[tokio::test]
    async fn a_fill_past_its_deadline_is_replaced_and_keeps_its_hands_off_the_next() {
        let locks = FillLocks::new(Duration::ZERO);
        let late = write(locks.lock(&key("/a"), false));
        locks.set_deadline(LONG);
        let next = write(locks.lock(&key("/a"), false));
        locks.release(&key("/a"), late, LockStatus::Done);
        assert!(!locks.lock(&key("/a"), false).is_write(), "the next fill still holds its lock");
        locks.release(&key("/a"), next, LockStatus::Done);
        assert!(locks.table.is_empty());
    }

    /// RFC 9111, 3.5: what an authorised client gets is mostly for itself alone.
    #[tokio::test]
    async fn authorised_requests_collapse_among_themselves() {
        let locks = FillLocks::new(LONG);
        let one = write(locks.lock(&authorised("/a"), false));
        let other = write(locks.lock(&key("/a"), false));
        assert!(!locks.lock(&authorised("/a"), false).is_write());
        locks.release(&authorised("/a"), one, LockStatus::GiveUp);
        assert!(!locks.lock(&key("/a"), false).is_write());
        locks.release(&key("/a"), other, LockStatus::Done);
    }

    #[test]
    fn only_what_the_origin_said_is_remembered() {
        let memory = HitForMiss::new();
        for (reason, remembered) in [
            (NoCacheReason::OriginNotCache, true),
            (NoCacheReason::ResponseTooLarge, true),
            (NoCacheReason::Custom("server-error"), false),
            (NoCacheReason::UpstreamError, false),
            (NoCacheReason::CacheLockTimeout, false),
        ] {
            let key = key(reason.as_str());
            memory.mark_uncacheable(&key, reason);
            assert_eq!(memory.cacheable_prediction(&key), !remembered, "{reason:?}");
            assert_eq!(memory.mark_cacheable(&key), !remembered);
            assert!(memory.cacheable_prediction(&key));
        }
    }

    #[test]
    fn what_authorised_clients_get_does_not_stop_the_others() {
        let memory = HitForMiss::new();
        memory.mark_uncacheable(&authorised("/a"), NoCacheReason::OriginNotCache);
        assert!(memory.cacheable_prediction(&key("/a")));
        assert!(!memory.cacheable_prediction(&authorised("/a")));
        memory.forget(key::primary_slot(&key("/a")));
        assert!(memory.cacheable_prediction(&authorised("/a")));
    }

    #[test]
    fn a_clients_own_no_store_lets_the_next_one_try() {
        let locks = FillLocks::new(LONG);
        assert_eq!(locks.custom_lock_status("request-no-store"), LockStatus::TransientError);
        assert_eq!(locks.custom_lock_status("server-error"), LockStatus::GiveUp);
        assert_eq!(LockWaitOutcome::GiveUp.lock_status(), LockStatus::GiveUp);
    }
}
