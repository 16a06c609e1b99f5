//! Collapsing: one fill per key, everybody else waits for it (RFC 9111, 4; RFC 9211, `collapsed`).
//!
//! ```text
//! lock ──> Write (the first) ── header arrived, storable ──> Done: waiters look up, and join the fill
//!     │                      ├─ not storable ──────────────> GiveUp: waiters go forward in one wave, the key is remembered
//!     │                      ├─ origin failed, once ───────> TransientError: waiters compete for the next fill
//!     │                      ├─ origin failed again ───────> an answer: Done, as above; an error: GiveUp, and they are told it
//!     │                      ├─ what is stale stands in ───> TransientError: waiters look up, and it stands in for them as well
//!     │                      └─ longer than the deadline ──> AgeTimeout: waiters compete, the old fill goes on by itself
//!     └─> Read (the others) ── longer than the wait ───────> WaitTimeout: this one goes forward alone
//!                           └─ the client leaves ──────────> GiveUp, for this one alone, which ends (see [`presence`])
//! ```
//!
//! A variant that could not be stored is remembered by itself: who asks for it finds a lock that is given up already, and who asks for another
//! variant of its URL does not notice. Where nothing is stored for a URL, nobody knows its variants, and all of it is remembered.
//!
//! Requests with `Authorization` have their own locks and their own memory: what they get is mostly not shareable, and must not send
//! everybody else forward.

mod failures;
pub(crate) mod presence;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use http::Extensions;
use pingora_cache::key::CacheHashKey;
use pingora_cache::lock::{CacheKeyLock, LockStatus, LockStub, Locked, WritePermit};
use pingora_cache::predictor::CacheablePredictor;
use pingora_cache::{CacheKey, NoCacheReason};
use pingora_error::ErrorType;

pub(crate) use self::failures::Outage;

use self::failures::Failures;
use self::presence::{Presence, UnderWay};
use crate::key::{self, Slot, SlotHash};
use crate::rules::store::Reason;

/// How long an answer that could not be stored is remembered. Meanwhile requests for its key neither wait nor look up.
pub(crate) const REMEMBERED_FOR: Duration = Duration::from_secs(120);
/// How many such keys are remembered at most; about 100 bytes each.
const REMEMBERED_KEYS: u64 = 65_536;
/// Locks whose holder vanished are swept out once per this many new locks.
const SWEEP_EVERY: u64 = 4_096;

/// Why an error answer that others wait for is not stored: one of them tries again.
pub(crate) const FIRST_FAILURE: &str = "first-failure";

/// Marks the key of a request with `Authorization`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Authorised;

/// Where a fill goes, if not to the origin. A fill waits for nobody but fills that go further towards the origin, so requests join only
/// fills that go where they would go themselves: otherwise two nodes of a cluster could wait for each other's fills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Towards {
    /// To another node of the same circle.
    Peers,
    /// To a circle nearer to the origin.
    Region,
}

/// Flips a slot into the space of fills that go elsewhere than to the origin.
const PEERS_SPACE: Slot = 1 << 62 | 2;
const REGION_SPACE: Slot = 1 << 61 | 4;

/// Flips a slot into the space of authorised requests.
const AUTHORISED_SPACE: Slot = 1 << 63 | 1;

fn class(key: &CacheKey, slot: Slot) -> Slot {
    if key.extensions.get::<Authorised>().is_some() { slot ^ AUTHORISED_SPACE } else { slot }
}

/// The slot of a lock.
fn lock_of(key: &CacheKey) -> Slot {
    let slot = class(key, key::slot(key));
    match key.extensions.get::<Towards>() {
        None => slot,
        Some(Towards::Peers) => slot ^ PEERS_SPACE,
        Some(Towards::Region) => slot ^ REGION_SPACE,
    }
}

/// The lock of a fill.
struct Held {
    stub: LockStub,
    primary: Slot,
}

/// The table of fills under way, as Pingora's cache lock.
pub(crate) struct FillLocks {
    table: DashMap<Slot, Held, SlotHash>,
    /// The primary slots of what is in the table, and of what is looked for on disk.
    pub(crate) under_way: UnderWay,
    failures: Failures,
    hit_for_miss: &'static HitForMiss,
    waiters_max: AtomicUsize,
    deadline_ms: AtomicU64,
    granted: AtomicU64,
}

impl fmt::Debug for FillLocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FillLocks").field("held", &self.table.len()).finish_non_exhaustive()
    }
}

impl FillLocks {
    /// Locks that a fill may hold for `deadline`, and that `waiters` may wait for, each; nobody waits for what `hit_for_miss` remembers.
    pub(crate) fn new(deadline: Duration, waiters: usize, hit_for_miss: &'static HitForMiss) -> Self {
        let locks = Self {
            table: DashMap::default(),
            under_way: UnderWay::default(),
            failures: Failures::new(),
            hit_for_miss,
            waiters_max: AtomicUsize::new(waiters),
            deadline_ms: AtomicU64::new(0),
            granted: AtomicU64::new(0),
        };
        locks.set_deadline(deadline);
        locks
    }

    /// Change how many may wait for one fill, from now on.
    pub(crate) fn set_waiters_max(&self, waiters: usize) {
        self.waiters_max.store(waiters, Ordering::Relaxed);
    }

    /// How many requests wait for the fill of `key`.
    pub(crate) fn waiting(&self, key: &CacheKey) -> usize {
        self.table.get(&lock_of(key)).map_or(0, |held| waiters(&held.stub))
    }

    /// How many requests wait for any fill.
    pub(crate) fn waiting_in_all(&self) -> usize {
        self.table.iter().filter(|held| is_held(&held.stub)).map(|held| waiters(&held.stub)).sum()
    }

    /// Whether as many wait for the fill of `key` as may.
    pub(crate) fn is_crowded(&self, key: &CacheKey) -> bool {
        self.waiting(key) >= self.waiters_max.load(Ordering::Relaxed)
    }

    /// The fetch of `key` has failed for good, with an error (`Some`) or an answer. Says whether those who wait for it, if there are any,
    /// are to share that.
    pub(crate) fn failed(&self, key: &CacheKey, kind: Option<ErrorType>) -> Option<Shared> {
        if self.waiting(key) == 0 {
            return None;
        }
        let slot = lock_of(key);
        Some(if self.failures.note(slot, kind) { Shared::Yes } else { Shared::NotYet })
    }

    /// The error to answer with, of a fetch that a request has waited for since `asked`.
    pub(crate) fn shared_error(&self, key: &CacheKey, asked: Instant) -> Option<ErrorType> {
        self.failures.shared(lock_of(key), asked)
    }

    /// The fetch of `key` has failed, and what is stale stands in for it.
    pub(crate) fn stood_in(&self, key: &CacheKey, outage: Outage) {
        if self.waiting(key) > 0 {
            self.failures.note_stale(lock_of(key), outage);
        }
    }

    /// Whether that has become of a fetch that a request has waited for since `asked`, and why.
    pub(crate) fn stood_in_since(&self, key: &CacheKey, asked: Instant) -> Option<Outage> {
        self.failures.stale_since(lock_of(key), asked)
    }

    /// The origin has an answer for `key`.
    pub(crate) fn succeeded(&self, key: &CacheKey) {
        self.failures.forget(lock_of(key));
    }

    /// Change the deadline of fills that start from now on.
    pub(crate) fn set_deadline(&self, deadline: Duration) {
        self.deadline_ms.store(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn grant(&self, stale_writer: bool) -> (WritePermit, LockStub) {
        if self.granted.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.table.retain(|_, held| {
                let keep = is_held(&held.stub);
                if !keep {
                    self.under_way.leave(held.primary);
                }
                keep
            });
        }
        let deadline = Duration::from_millis(self.deadline_ms.load(Ordering::Relaxed));
        WritePermit::new(deadline, stale_writer, Extensions::new())
    }
}

/// Whether a failure is shared with those who wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    /// One of them tries again first.
    NotYet,
    /// It is their answer.
    Yes,
}

/// How many wait for this lock: all who hold it, but for the table and the writer.
fn waiters(stub: &LockStub) -> usize {
    Arc::strong_count(&stub.0).saturating_sub(2)
}

/// What a request waits for: the fill, or a lock of its own that is released when its client leaves as well.
fn wait_for(fill: &LockStub, key: &CacheKey) -> Locked {
    Locked::Read(match key.extensions.get::<Presence>() {
        Some(client) => presence::wait_for(fill, client.clone()),
        None => fill.read_lock(),
    })
}

/// A lock that is given up already: who gets it goes on without a fill.
fn nothing_to_wait_for() -> Locked {
    let (mut permit, stub) = WritePermit::new(Duration::ZERO, false, Extensions::new());
    permit.unlock(LockStatus::GiveUp);
    Locked::Read(stub.read_lock())
}

/// Whether somebody is still expected to release this lock.
fn is_held(stub: &LockStub) -> bool {
    stub.0.lock_status() == LockStatus::Waiting && stub.0.lock_start.elapsed() < stub.0.age_timeout
}

impl CacheKeyLock for FillLocks {
    fn lock(&self, key: &CacheKey, stale_writer: bool) -> Locked {
        if self.hit_for_miss.knows_variant(key) {
            return nothing_to_wait_for();
        }
        let slot = lock_of(key);
        if let Some(held) = self.table.get(&slot)
            && is_held(&held.stub)
        {
            return if waiters(&held.stub) < self.waiters_max.load(Ordering::Relaxed) {
                wait_for(&held.stub, key)
            } else {
                nothing_to_wait_for()
            };
        }

        // The sweep inside of grant must not run while an entry is held.
        let (mut permit, stub) = self.grant(stale_writer);
        let new = Held { stub, primary: key::primary_slot(key) };
        match self.table.entry(slot) {
            Entry::Occupied(held) if is_held(&held.get().stub) => {
                permit.unlock(LockStatus::Done); // nobody has seen it
                wait_for(&held.get().stub, key)
            }
            Entry::Occupied(mut left_behind) => {
                left_behind.insert(new); // of the same primary slot
                Locked::Write(permit)
            }
            Entry::Vacant(free) => {
                self.under_way.begin(new.primary);
                free.insert(new);
                Locked::Write(permit)
            }
        }
    }

    fn release(&self, key: &CacheKey, mut permit: WritePermit, reason: LockStatus) {
        let slot = lock_of(key);
        // A lock past its deadline may have been replaced: take away only our own. Permit and stub share one set of extensions.
        let own = |_: &Slot, held: &Held| std::ptr::eq(held.stub.extensions(), permit.extensions());
        if let Some((_, held)) = self.table.remove_if(&slot, own) {
            self.under_way.leave(held.primary);
        }
        permit.unlock(match reason {
            _ if permit.lock_status() == LockStatus::AgeTimeout => LockStatus::AgeTimeout,
            // All of them have their answer: none needs to try, one after the other.
            LockStatus::TransientError if self.failures.is_final(slot) => LockStatus::GiveUp,
            reason => reason,
        });
    }

    fn custom_lock_status(&self, reason: &'static str) -> LockStatus {
        // This client's own wish says nothing about the others, and one failure not enough: let the next one try.
        let theirs = reason == Reason::RequestNoStore.as_str() || reason == FIRST_FAILURE;
        if theirs { LockStatus::TransientError } else { LockStatus::GiveUp }
    }
}

/// Hit-for-miss: keys whose last answer could not be stored, for [`REMEMBERED_FOR`].
#[derive(Debug)]
pub(crate) struct HitForMiss {
    keys: moka::sync::Cache<Slot, NoCacheReason, SlotHash>,
    /// The same of variants, by their own slots; each with how often its URL's group had been [forgotten](Self::forget) by then.
    variants: moka::sync::Cache<Slot, u64, SlotHash>,
    forgotten: [AtomicU64; FORGOTTEN_GROUPS],
}

/// Variants are forgotten together with all others of so many groups of URLs.
const FORGOTTEN_GROUPS: usize = 1_024;

impl HitForMiss {
    pub(crate) fn new() -> Self {
        Self { keys: remembered(), variants: remembered(), forgotten: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    /// Remember that objects at this primary slot are too large.
    pub(crate) fn remember_too_large(&self, primary: Slot) {
        self.keys.insert(primary, NoCacheReason::ResponseTooLarge);
    }

    /// Whether the object at this primary slot was too large.
    pub(crate) fn was_too_large(&self, primary: Slot) -> bool {
        self.keys.get(&primary) == Some(NoCacheReason::ResponseTooLarge)
    }

    /// Whether this is a variant beside others that are stored, and could not be.
    pub(crate) fn knows_variant(&self, key: &CacheKey) -> bool {
        key.variance_bin().is_some()
            && self
                .variants
                .get(&class(key, key::slot(key)))
                .is_some_and(|then| then == self.group(key::primary_slot(key)).load(Ordering::Relaxed))
    }

    /// Forget what is remembered about a primary slot, and its variants.
    pub(crate) fn forget(&self, primary: Slot) {
        self.keys.invalidate(&primary);
        self.keys.invalidate(&(primary ^ AUTHORISED_SPACE));
        self.group(primary).fetch_add(1, Ordering::Relaxed);
    }

    /// Forget everything.
    pub(crate) fn forget_all(&self) {
        self.keys.invalidate_all();
        self.variants.invalidate_all();
    }

    fn group(&self, primary: Slot) -> &AtomicU64 {
        &self.forgotten[usize::try_from(primary % FORGOTTEN_GROUPS as u128).unwrap_or_default()]
    }
}

fn remembered<V: Clone + Send + Sync + 'static>() -> moka::sync::Cache<Slot, V, SlotHash> {
    let builder = moka::sync::Cache::builder().max_capacity(REMEMBERED_KEYS).time_to_live(REMEMBERED_FOR);
    builder.build_with_hasher(SlotHash::default())
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
        let primary = key::primary_slot(key);
        if key.variance_bin().is_some() {
            // Other variants are stored, and stay in use.
            let slot = class(key, key::slot(key));
            let new = !self.variants.contains_key(&slot);
            self.variants.insert(slot, self.group(primary).load(Ordering::Relaxed));
            return Some(new);
        }
        let slot = class(key, primary);
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

    fn locks(deadline: Duration, waiters: usize) -> FillLocks {
        FillLocks::new(deadline, waiters, Box::leak(Box::new(HitForMiss::new())))
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
        let locks = locks(LONG, 10);
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
        let locks = locks(Duration::ZERO, 10);
        let late = write(locks.lock(&key("/a"), false));
        locks.set_deadline(LONG);
        let next = write(locks.lock(&key("/a"), false));
        locks.release(&key("/a"), late, LockStatus::Done);
        assert!(!locks.lock(&key("/a"), false).is_write(), "the next fill still holds its lock");
        locks.release(&key("/a"), next, LockStatus::Done);
        assert!(locks.table.is_empty());
    }

    #[tokio::test]
    async fn no_more_wait_than_may() {
        let locks = locks(LONG, 2);
        let permit = write(locks.lock(&key("/a"), false));
        let waiting = [locks.lock(&key("/a"), false), locks.lock(&key("/a"), false)];
        assert!(locks.is_crowded(&key("/a")));
        let Locked::Read(beyond) = locks.lock(&key("/a"), false) else { panic!("a second writer") };
        beyond.wait().await;
        assert_eq!(beyond.lock_status(), LockStatus::GiveUp);
        drop(waiting);
        assert_eq!((locks.waiting(&key("/a")), locks.is_crowded(&key("/a"))), (0, false));
        locks.release(&key("/a"), permit, LockStatus::Done);
    }

    /// A client that leaves when it is told to.
    #[derive(Default)]
    struct Told(parking_lot::Mutex<(bool, Option<std::task::Waker>)>);

    impl Told {
        fn leave(&self) {
            let mut state = self.0.lock();
            state.0 = true;
            if let Some(waker) = state.1.take() {
                waker.wake();
            }
        }
    }

    impl presence::Client for Told {
        fn poll_leave(&self, cx: &mut std::task::Context<'_>) -> std::task::Poll<presence::Seen> {
            let mut state = self.0.lock();
            if state.0 {
                return std::task::Poll::Ready(presence::Seen::Left);
            }
            state.1 = Some(cx.waker().clone());
            std::task::Poll::Pending
        }
    }

    #[tokio::test]
    async fn who_leaves_waits_no_more_and_the_others_do() {
        let locks = locks(LONG, 10);
        let clients: Vec<Arc<Told>> = (0..2).map(|_| Arc::default()).collect();
        let permit = write(locks.lock(&key("/a"), false));
        let mut waiting = clients.iter().map(|client| {
            let mut key = key("/a");
            let client = Arc::downgrade(client) as std::sync::Weak<dyn presence::Client>;
            key.extensions.insert(Presence::of(client));
            let Locked::Read(waiter) = locks.lock(&key, false) else { panic!("a second writer") };
            waiter
        });
        let (leaves, stays) = (waiting.next().expect("one"), waiting.next().expect("two"));
        assert!(locks.under_way.has(key::primary_slot(&key("/a"))));
        assert_eq!(locks.waiting_in_all(), 2);

        clients[0].leave();
        leaves.wait().await;
        assert_eq!((leaves.lock_status(), locks.waiting_in_all()), (LockStatus::GiveUp, 1));
        assert!(stays.locked());
        locks.release(&key("/a"), permit, LockStatus::Done);
        stays.wait().await;
        assert_eq!((stays.lock_status(), locks.under_way.any()), (LockStatus::Done, false));
    }

    /// A writer that is gone without a word must not leave those behind who are watched.
    #[tokio::test]
    async fn a_fill_past_its_deadline_releases_who_is_watched() {
        let locks = locks(Duration::from_secs(1), 10);
        let client = Arc::<Told>::default();
        let permit = write(locks.lock(&key("/a"), false));
        let mut watched = key("/a");
        watched.extensions.insert(Presence::of(Arc::downgrade(&client) as std::sync::Weak<dyn presence::Client>));
        let Locked::Read(waiter) = locks.lock(&watched, false) else { panic!("a second writer") };
        waiter.wait().await;
        assert_eq!(waiter.lock_status(), LockStatus::AgeTimeout);
        locks.release(&key("/a"), permit, LockStatus::Done);
    }

    #[tokio::test]
    async fn waiters_try_once_more_and_are_told_then() {
        let locks = locks(LONG, 10);
        let asked = Instant::now();
        let first = write(locks.lock(&key("/a"), false));
        assert_eq!(locks.failed(&key("/a"), Some(ErrorType::ConnectRefused)), None, "nobody waits");
        let Locked::Read(one) = locks.lock(&key("/a"), false) else { panic!("a second writer") };
        let Locked::Read(other) = locks.lock(&key("/a"), false) else { panic!("a second writer") };
        assert_eq!(locks.failed(&key("/a"), Some(ErrorType::ConnectRefused)), Some(Shared::NotYet));
        locks.release(&key("/a"), first, LockStatus::TransientError);
        assert_eq!((one.lock_status(), other.lock_status()), (LockStatus::TransientError, LockStatus::TransientError));

        drop(one);
        let second = write(locks.lock(&key("/a"), false));
        let Locked::Read(other) = locks.lock(&key("/a"), false) else { panic!("a second writer") };
        assert_eq!(locks.shared_error(&key("/a"), asked), None);
        assert_eq!(locks.failed(&key("/a"), Some(ErrorType::ConnectRefused)), Some(Shared::Yes));
        locks.release(&key("/a"), second, LockStatus::TransientError);
        assert_eq!(other.lock_status(), LockStatus::GiveUp);
        assert_eq!(locks.shared_error(&key("/a"), asked), Some(ErrorType::ConnectRefused));
        locks.succeeded(&key("/a"));
        assert_eq!(locks.shared_error(&key("/a"), asked), None);
    }

    /// RFC 9111, 3.5: what an authorised client gets is mostly for itself alone.
    #[tokio::test]
    async fn authorised_requests_collapse_among_themselves() {
        let locks = locks(LONG, 10);
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

    /// A variant that is for somebody alone holds nobody up, and stands in nobody's way.
    #[tokio::test]
    async fn a_variant_is_remembered_by_itself() {
        let locks = locks(LONG, 10);
        let variant = |number: u8| {
            let mut key = key("/a");
            key.set_variance_key([number; 16]);
            key
        };
        let memory = locks.hit_for_miss;
        memory.mark_uncacheable(&variant(1), NoCacheReason::OriginNotCache);
        assert!(memory.cacheable_prediction(&key("/a")), "others are looked up");
        let Locked::Read(given_up) = locks.lock(&variant(1), false) else { panic!("others would wait for it") };
        given_up.wait().await;
        assert_eq!(given_up.lock_status(), LockStatus::GiveUp);
        let other = write(locks.lock(&variant(2), false));
        locks.release(&variant(2), other, LockStatus::Done);
        memory.forget(key::primary_slot(&key("/a")));
        let again = write(locks.lock(&variant(1), false));
        locks.release(&variant(1), again, LockStatus::Done);
    }

    #[test]
    fn a_clients_own_no_store_lets_the_next_one_try() {
        let locks = locks(LONG, 10);
        assert_eq!(locks.custom_lock_status("request-no-store"), LockStatus::TransientError);
        assert_eq!(locks.custom_lock_status("server-error"), LockStatus::GiveUp);
        assert_eq!(LockWaitOutcome::GiveUp.lock_status(), LockStatus::GiveUp);
    }
}
