//! Shared data: a process-wide key-value store with compare-and-swap, one key space per `vm_id`. Beyond the ABI: deleting, counting,
//! listing, and values that expire.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use parking_lot::Mutex;
use selvedge_token_bucket::{Bucket, Limit, Take};

/// Bytes of one key.
pub(crate) const MAX_KEY: usize = 4 << 10;
/// Bytes of one value: state, not content.
pub(crate) const MAX_VALUE: usize = 64 << 10;
/// The last number of a compare-and-swap before they begin again at 1. 0 means "do not compare"; the one after this is of no value
/// ever, so a guest that passes it writes only where nothing is.
const LAST_CAS: u32 = u32::MAX - 1;

/// What one key space may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedDataLimits {
    /// Keys in one key space. Default 10 000: a rate limiter with a key per client fits; a leak does not take the machine.
    pub keys: usize,
    /// Bytes of all keys and values in one key space. Default 16 MiB. Less than the largest entry (68 KiB) counts as that.
    pub bytes: usize,
}

impl Default for SharedDataLimits {
    fn default() -> Self {
        Self { keys: 10_000, bytes: 16 << 20 }
    }
}

/// The store behind `proxy_get_shared_data` and `proxy_set_shared_data`, and behind the foreign functions that do more.
///
/// SDKs have no answer to "full" but to panic, so a full key space makes room: what has expired goes, then the least recently used
/// sixteenth of the rest.
pub struct SharedData {
    spaces: DashMap<Box<str>, Mutex<Space>>,
    limits: SharedDataLimits,
    clock: Arc<dyn Fn() -> Instant + Send + Sync>,
}

/// Why a value was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SharedDataError {
    /// Somebody else wrote since the guest read.
    #[error("the value has changed since it was read")]
    CasMismatch,
    /// The key is longer than 4 KiB or the value longer than 64 KiB.
    #[error("key or value too large")]
    TooLarge,
    /// The value to increment is not a number: not 8 bytes long.
    #[error("the value is not a counter")]
    NotACounter,
}

/// How full one key space is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedDataSize {
    /// Whose key space.
    pub vm_id: String,
    /// Keys in it, expired ones that nobody has asked for since included.
    pub keys: usize,
    /// Bytes of its keys and values.
    pub bytes: usize,
}

#[derive(Default)]
struct Space {
    entries: HashMap<Box<[u8]>, Entry>,
    bytes: usize,
    /// Ticks with every use: the age order of the entries.
    uses: u64,
    last_cas: u32,
    /// Values with an expiry were written and may still be here.
    expiring: bool,
    /// With so many entries, expired ones are looked for.
    sweep_at: usize,
}

struct Entry {
    value: Bytes,
    cas: u32,
    used: u64,
    expires: Option<Instant>,
}

/// A look at the clock, taken when something expires and not before.
type Now<'a> = &'a dyn Fn() -> Instant;

impl Default for SharedData {
    fn default() -> Self {
        Self::with(SharedDataLimits::default(), Instant::now)
    }
}

impl SharedData {
    /// An empty store with the usual limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty store whose values expire by `clock`, which must never go back.
    pub fn with(limits: SharedDataLimits, clock: impl Fn() -> Instant + Send + Sync + 'static) -> Self {
        let limits = SharedDataLimits { keys: limits.keys.max(1), bytes: limits.bytes.max(MAX_KEY + MAX_VALUE) };
        Self { spaces: DashMap::new(), limits, clock: Arc::new(clock) }
    }

    /// The value of `key` in the key space of `vm_id`, with the number to pass to [`SharedData::set`] for a compare-and-swap.
    #[must_use]
    pub fn get(&self, vm_id: &str, key: &[u8]) -> Option<(Bytes, u32)> {
        let space = self.spaces.get(vm_id)?;
        let mut space = space.lock();
        space.uses += 1;
        let used = space.uses;
        let entry = space.live(key, &*self.clock)?;
        entry.used = used;
        Some((entry.value.clone(), entry.cas))
    }

    /// Stores `value`, for ever. With `cas` 0 always; with another number only if the key still has that number (or does not exist).
    ///
    /// # Errors
    /// [`SharedDataError::CasMismatch`] when the number is out of date, [`SharedDataError::TooLarge`] for a key over 4 KiB or a value over 64 KiB.
    pub fn set(&self, vm_id: &str, key: &[u8], value: &[u8], cas: u32) -> Result<(), SharedDataError> {
        self.set_with_ttl(vm_id, key, value, cas, None)
    }

    /// As [`SharedData::set`], for so long. Without a time to live, for ever: also when the value before had one.
    ///
    /// # Errors
    /// As [`SharedData::set`].
    pub fn set_with_ttl(
        &self,
        vm_id: &str,
        key: &[u8],
        value: &[u8],
        cas: u32,
        ttl: Option<Duration>,
    ) -> Result<(), SharedDataError> {
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Err(SharedDataError::TooLarge);
        }
        let (limits, now) = (self.limits, &*self.clock);
        self.in_space(vm_id, |space| {
            if cas != 0 && space.live(key, now).is_some_and(|entry| entry.cas != cas) {
                return Err(SharedDataError::CasMismatch);
            }
            space.put(key, Bytes::copy_from_slice(value), expiry(ttl, now), limits, now);
            Ok(())
        })
    }

    /// Stores `value`, or removes the key without one, only if the key still has the number `cas`: 0 when it does not exist. As
    /// ngx_wasm_module does it.
    ///
    /// # Errors
    /// As [`SharedData::set`]; removing what is not there is a mismatch.
    pub(crate) fn swap(&self, vm_id: &str, key: &[u8], value: Option<&[u8]>, cas: u32) -> Result<(), SharedDataError> {
        if key.len() > MAX_KEY || value.is_some_and(|value| value.len() > MAX_VALUE) {
            return Err(SharedDataError::TooLarge);
        }
        let (limits, now) = (self.limits, &*self.clock);
        self.in_space(vm_id, |space| {
            let current = space.live(key, now).map(|entry| entry.cas);
            if cas != current.unwrap_or(0) {
                return Err(SharedDataError::CasMismatch);
            }
            match value {
                Some(value) => space.put(key, Bytes::copy_from_slice(value), None, limits, now),
                None if current.is_none() => return Err(SharedDataError::CasMismatch),
                None => space.remove(key),
            }
            Ok(())
        })
    }

    /// Removes a key. False when there is none.
    pub fn delete(&self, vm_id: &str, key: &[u8]) -> bool {
        self.spaces.get(vm_id).is_some_and(|space| {
            let mut space = space.lock();
            let lived = space.live(key, &*self.clock).is_some();
            space.remove(key);
            lived
        })
    }

    /// Adds `delta` to a counter (8 bytes, little-endian) in one step and returns the sum; a key that is not there counts as `initial`. The
    /// sum stops at the ends of its range.
    ///
    /// `ttl` is the life of a counter made by this call. One that exists keeps the end it has, so that a counter per time window ends with
    /// its window however often it is counted up.
    ///
    /// # Errors
    /// [`SharedDataError::NotACounter`] when the value has another length, [`SharedDataError::TooLarge`] for a key over 4 KiB.
    pub fn increment(
        &self,
        vm_id: &str,
        key: &[u8],
        delta: i64,
        initial: i64,
        ttl: Option<Duration>,
    ) -> Result<i64, SharedDataError> {
        if key.len() > MAX_KEY {
            return Err(SharedDataError::TooLarge);
        }
        let (limits, now) = (self.limits, &*self.clock);
        self.in_space(vm_id, |space| {
            let (before, expires) = match space.live(key, now) {
                Some(entry) => {
                    let bytes = entry.value[..].try_into().map_err(|_| SharedDataError::NotACounter)?;
                    (i64::from_le_bytes(bytes), entry.expires)
                }
                None => (initial, expiry(ttl, now)),
            };
            let sum = before.saturating_add(delta);
            space.put(key, Bytes::copy_from_slice(&sum.to_le_bytes()), expires, limits, now);
            Ok(sum)
        })
    }

    /// Takes `tokens` from the bucket under `key` in one step, at `now` (time since the Unix epoch). A bucket is forgotten when it is full
    /// again, because one that is not there is full; a value that is no bucket counts as none. No tokens are a look, which changes nothing,
    /// and so does a refusal.
    ///
    /// # Errors
    /// [`SharedDataError::TooLarge`] for a key over 4 KiB.
    pub fn take_tokens(
        &self,
        vm_id: &str,
        key: &[u8],
        limit: &Limit,
        tokens: u32,
        now: Duration,
    ) -> Result<Take, SharedDataError> {
        if key.len() > MAX_KEY {
            return Err(SharedDataError::TooLarge);
        }
        let (limits, clock) = (self.limits, &*self.clock);
        self.in_space(vm_id, |space| {
            space.uses += 1;
            let used = space.uses;
            let stored = space.live(key, clock).and_then(|entry| {
                entry.used = used;
                Bucket::from_bytes(&entry.value)
            });
            let taken = limit.take(tokens, stored, now);
            if let Take::Granted { bucket, full_in, .. } = taken
                && tokens > 0
            {
                // A moment longer, so that a bucket is never forgotten before it is full.
                let ttl = full_in.saturating_add(Duration::from_millis(1));
                let value = Bytes::copy_from_slice(&bucket.to_bytes());
                space.put(key, value, expiry(Some(ttl), clock), limits, clock);
            }
            Ok(taken)
        })
    }

    /// The keys that start with `prefix`, at most `limit`, the first of them in byte order.
    #[must_use]
    pub fn keys(&self, vm_id: &str, prefix: &[u8], limit: usize) -> Vec<Vec<u8>> {
        let Some(space) = self.spaces.get(vm_id) else { return Vec::new() };
        let mut space = space.lock();
        space.sweep(&*self.clock);
        let mut found: Vec<&[u8]> =
            space.entries.keys().map(|key| &**key).filter(|key| key.starts_with(prefix)).collect();
        found.sort_unstable();
        found.into_iter().take(limit).map(<[u8]>::to_vec).collect()
    }

    /// How many keys the key space of `vm_id` holds.
    #[must_use]
    pub fn len(&self, vm_id: &str) -> usize {
        self.spaces.get(vm_id).map_or(0, |space| {
            let mut space = space.lock();
            space.sweep(&*self.clock);
            space.entries.len()
        })
    }

    /// How full every key space is, in order of their names.
    #[must_use]
    pub fn sizes(&self) -> Vec<SharedDataSize> {
        let mut sizes: Vec<SharedDataSize> = self
            .spaces
            .iter()
            .map(|space| {
                let (vm_id, space) = (space.key().to_string(), space.lock());
                SharedDataSize { vm_id, keys: space.entries.len(), bytes: space.bytes }
            })
            .collect();
        sizes.sort_unstable_by(|a, b| a.vm_id.cmp(&b.vm_id));
        sizes
    }

    fn in_space<T>(&self, vm_id: &str, act: impl FnOnce(&mut Space) -> T) -> T {
        if let Some(space) = self.spaces.get(vm_id) {
            return act(&mut space.lock());
        }
        act(&mut self.spaces.entry(vm_id.into()).or_default().lock())
    }
}

impl std::fmt::Debug for SharedData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SharedData")
            .field("limits", &self.limits)
            .field("spaces", &self.spaces.len())
            .finish_non_exhaustive()
    }
}

/// The end of a time to live; one beyond the clock's range never ends.
fn expiry(ttl: Option<Duration>, now: Now<'_>) -> Option<Instant> {
    ttl.and_then(|ttl| now().checked_add(ttl))
}

impl Entry {
    fn is_over(&self, now: Now<'_>) -> bool {
        self.expires.is_some_and(|end| end <= now())
    }
}

impl Space {
    /// The entry of `key`, unless it has expired; then it goes.
    fn live(&mut self, key: &[u8], now: Now<'_>) -> Option<&mut Entry> {
        if self.entries.get(key)?.is_over(now) {
            self.remove(key);
        }
        self.entries.get_mut(key)
    }

    fn remove(&mut self, key: &[u8]) {
        if let Some((key, entry)) = self.entries.remove_entry(key) {
            self.bytes -= key.len() + entry.value.len();
        }
    }

    fn put(&mut self, key: &[u8], value: Bytes, expires: Option<Instant>, limits: SharedDataLimits, now: Now<'_>) {
        self.uses += 1;
        self.last_cas = if self.last_cas >= LAST_CAS { 1 } else { self.last_cas + 1 };
        self.expiring |= expires.is_some();

        let size = value.len();
        let entry = Entry { value, cas: self.last_cas, used: self.uses, expires };
        if let Some(before) = self.entries.get_mut(key) {
            self.bytes = self.bytes - before.value.len() + size;
            *before = entry;
        } else {
            self.bytes += key.len() + size;
            self.entries.insert(key.into(), entry);
        }

        if self.entries.len() >= self.sweep_at {
            self.sweep(now);
        }
        if self.is_over(limits) {
            let before = self.entries.len();
            self.sweep(now);
            // A sixteenth at least, so that a full space is not searched at every write.
            if before - self.entries.len() < before / 16 {
                self.evict();
            }
        }
        while self.is_over(limits) {
            self.evict();
        }
    }

    fn is_over(&self, limits: SharedDataLimits) -> bool {
        self.entries.len() > limits.keys || self.bytes > limits.bytes
    }

    /// Drops what has expired. The next time is when there are twice as many entries: their writes pay for it.
    fn sweep(&mut self, now: Now<'_>) {
        if self.expiring {
            let now = now();
            self.expiring = false;
            self.keep(|entry, expiring| {
                let keep = entry.expires.is_none_or(|end| end > now);
                *expiring |= keep && entry.expires.is_some();
                keep
            });
        }
        self.sweep_at = (self.entries.len() * 2).max(64);
    }

    /// Drops the least recently used sixteenth, so that the search for it is paid by many writes. The entry just written is the most
    /// recently used one, and stays: the bounds leave room for it.
    fn evict(&mut self) {
        let mut ages: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
        let Some(last) = ages.len().checked_sub(1) else { return };
        let (_, &mut oldest, _) = ages.select_nth_unstable(last / 16);
        self.keep(|entry, _| entry.used > oldest);
    }

    /// Drops the entries that are not to be kept.
    fn keep(&mut self, mut keep: impl FnMut(&Entry, &mut bool) -> bool) {
        let Self { entries, bytes, expiring, .. } = self;
        entries.retain(|key, entry| {
            let keep = keep(entry, expiring);
            if !keep {
                *bytes -= key.len() + entry.value.len();
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_KEYS: usize = 10_000;
    const MAX_TOTAL: usize = 16 << 20;

    /// A store, and what moves its clock.
    fn with_clock(limits: SharedDataLimits) -> (SharedData, impl Fn(Duration)) {
        let now = Arc::new(Mutex::new(Instant::now()));
        let clock = now.clone();
        (SharedData::with(limits, move || *clock.lock()), move |by| *now.lock() += by)
    }

    #[test]
    fn compare_and_swap_follows_the_abi() {
        let data = SharedData::new();
        assert_eq!(data.get("vm", b"k"), None);
        data.set("vm", b"k", b"1", 77).unwrap(); // a number on a missing key creates
        let (value, cas) = data.get("vm", b"k").unwrap();
        assert_eq!((&value[..], cas != 0), (&b"1"[..], true));
        data.set("vm", b"k", b"2", cas).unwrap();
        assert_eq!(data.set("vm", b"k", b"3", cas), Err(SharedDataError::CasMismatch));
        data.set("vm", b"k", b"", 0).unwrap(); // no number: always; an empty value is a value
        assert_eq!(data.get("vm", b"k").unwrap().0, "");
    }

    #[test]
    fn no_value_ever_has_the_highest_number() {
        let data = SharedData::new();
        data.set("vm", b"k", b"created", u32::MAX).unwrap();
        data.spaces.get("vm").unwrap().lock().last_cas = u32::MAX - 2;
        let mut numbers = Vec::new();
        for _ in 0..3 {
            data.set("vm", b"k", b"", 0).unwrap();
            assert_eq!(data.set("vm", b"k", b"again", u32::MAX), Err(SharedDataError::CasMismatch));
            numbers.push(data.get("vm", b"k").unwrap().1);
        }
        assert_eq!(numbers, [u32::MAX - 1, 1, 2]);
    }

    #[test]
    fn key_spaces_are_apart() {
        let data = SharedData::new();
        data.set("a", b"k", b"1", 0).unwrap();
        assert_eq!(data.get("b", b"k"), None);
    }

    #[test]
    fn a_full_space_drops_what_was_used_least_recently() {
        let data = SharedData::new();
        for key in 0..MAX_KEYS {
            data.set("vm", key.to_string().as_bytes(), b"v", 0).unwrap();
        }
        assert!(data.get("vm", b"0").is_some(), "and is now the most recently used");
        data.set("vm", b"one more", b"v", 0).unwrap();
        assert!(data.len("vm") <= MAX_KEYS && data.len("vm") > MAX_KEYS * 9 / 10);
        assert!(data.get("vm", b"0").is_some() && data.get("vm", b"one more").is_some());
        assert!(data.get("vm", b"1").is_none());
    }

    #[test]
    fn the_total_is_bounded_too() {
        let data = SharedData::new();
        let value = vec![0; MAX_VALUE];
        for key in 0..400u32 {
            data.set("vm", &key.to_le_bytes(), &value, 0).unwrap();
        }
        assert!(data.len("vm") * MAX_VALUE <= MAX_TOTAL);
        assert_eq!(data.set("vm", b"k", &vec![0; MAX_VALUE + 1], 0), Err(SharedDataError::TooLarge));
        assert_eq!(data.set("vm", &vec![0; MAX_KEY + 1], b"", 0), Err(SharedDataError::TooLarge));
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_value_with_a_time_to_live_ends_with_it_and_its_number_with_the_value() {
        let (data, pass) = with_clock(SharedDataLimits::default());
        data.set_with_ttl("vm", b"k", b"1", 0, Some(10 * SECOND)).unwrap();
        let (_, cas) = data.get("vm", b"k").unwrap();
        pass(9 * SECOND);
        assert!(data.get("vm", b"k").is_some());
        pass(SECOND);
        assert_eq!((data.get("vm", b"k"), data.delete("vm", b"k"), data.len("vm")), (None, false, 0));
        data.set("vm", b"k", b"2", cas).unwrap(); // a number on a missing key creates

        data.set_with_ttl("vm", b"k", b"3", 0, Some(SECOND)).unwrap();
        data.set("vm", b"k", b"4", 0).unwrap();
        pass(100 * SECOND);
        assert_eq!(data.get("vm", b"k").unwrap().0, "4", "a plain write takes the end away");
        data.set_with_ttl("vm", b"for ever", b"", 0, Some(Duration::MAX)).unwrap();
        assert!(data.get("vm", b"for ever").is_some());
    }

    #[test]
    fn counters_add_in_one_step_and_end_with_their_window() {
        let (data, pass) = with_clock(SharedDataLimits::default());
        assert_eq!(data.increment("vm", b"n", 2, 100, Some(10 * SECOND)), Ok(102));
        assert_eq!(data.get("vm", b"n").unwrap().0, &102i64.to_le_bytes()[..]);
        pass(6 * SECOND);
        assert_eq!(data.increment("vm", b"n", -3, 0, Some(10 * SECOND)), Ok(99));
        pass(6 * SECOND);
        assert_eq!(data.increment("vm", b"n", 1, 0, None), Ok(1), "the second call did not prolong the window");

        assert_eq!(data.increment("vm", b"n", i64::MAX, 0, None), Ok(i64::MAX));
        assert_eq!(data.increment("vm", b"low", -1, i64::MIN, None), Ok(i64::MIN));
        data.set("vm", b"text", b"seven", 0).unwrap();
        assert_eq!(data.increment("vm", b"text", 1, 0, None), Err(SharedDataError::NotACounter));
        assert_eq!(data.get("vm", b"text").unwrap().0, "seven");
        assert_eq!(data.increment("vm", &vec![0; MAX_KEY + 1], 1, 0, None), Err(SharedDataError::TooLarge));
    }

    #[test]
    fn an_increment_changes_the_number_of_a_compare_and_swap() {
        let data = SharedData::new();
        data.increment("vm", b"n", 1, 0, None).unwrap();
        let (_, cas) = data.get("vm", b"n").unwrap();
        data.increment("vm", b"n", 1, 0, None).unwrap();
        assert_eq!(data.set("vm", b"n", b"", cas), Err(SharedDataError::CasMismatch));
    }

    #[test]
    fn buckets_are_taken_from_in_one_step_and_forgotten_when_full() {
        let (data, pass) = with_clock(SharedDataLimits::default());
        let limit = Limit { count: 1, window: SECOND, burst: 3 };
        let start = 1_800_000_000 * SECOND;
        let take = |tokens, now| data.take_tokens("vm", b"k", &limit, tokens, start + now).unwrap();
        assert!(matches!(take(0, Duration::ZERO), Take::Granted { remaining: 3, .. }));
        assert_eq!(data.len("vm"), 0, "a look stores nothing");

        for left in [2, 1, 0] {
            assert!(matches!(take(1, Duration::ZERO), Take::Granted { remaining, .. } if remaining == left));
        }
        let (_, cas) = data.get("vm", b"k").unwrap();
        assert_eq!(take(1, Duration::ZERO), Take::Refused { retry_in: SECOND });
        assert_eq!(data.get("vm", b"k").unwrap().1, cas, "a refusal writes nothing");
        assert_eq!(data.get("vm", b"k").unwrap().0.len(), 16);

        pass(SECOND);
        assert!(matches!(take(1, SECOND), Take::Granted { remaining: 0, .. }));
        pass(3 * SECOND);
        assert_eq!(data.len("vm"), 1);
        pass(Duration::from_millis(1));
        assert_eq!(data.len("vm"), 0);

        data.set("vm", b"k", b"no bucket", 0).unwrap();
        assert!(matches!(take(1, SECOND), Take::Granted { remaining: 2, .. }));
        let long = vec![0; MAX_KEY + 1];
        assert_eq!(data.take_tokens("vm", &long, &limit, 1, start), Err(SharedDataError::TooLarge));
    }

    #[test]
    fn threads_get_no_more_tokens_than_there_are() {
        let data = SharedData::new();
        let limit = Limit { count: 1, window: 3600 * SECOND, burst: 100 };
        let take = || data.take_tokens("vm", b"k", &limit, 1, 1_800_000_000 * SECOND);
        let granted: usize = std::thread::scope(|scope| {
            let work = || (0..100).filter(|_| matches!(take(), Ok(Take::Granted { .. }))).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, 100);
    }

    #[test]
    fn keys_are_listed_by_prefix_in_order_and_bounded() {
        let (data, pass) = with_clock(SharedDataLimits::default());
        for key in ["b/2", "a/1", "b/1", "b/3", "b"] {
            data.set("vm", key.as_bytes(), b"", 0).unwrap();
        }
        data.set_with_ttl("vm", b"b/0", b"", 0, Some(SECOND)).unwrap();
        pass(SECOND);
        assert_eq!(data.keys("vm", b"b/", 2), [b"b/1", b"b/2"]);
        assert_eq!(data.keys("vm", b"", 100).len(), 5);
        assert_eq!(data.keys("other", b"", 100), Vec::<Vec<u8>>::new());
        assert!(data.delete("vm", b"b/1") && !data.delete("vm", b"b/1"));
        assert_eq!(data.keys("vm", b"b/", 1), [b"b/2"]);
    }

    #[test]
    fn what_has_expired_goes_before_what_is_in_use() {
        let (data, pass) = with_clock(SharedDataLimits { keys: 32, bytes: 1 << 20 });
        for key in 0..16u8 {
            data.set("vm", &[key], b"kept", 0).unwrap();
        }
        for key in 16..32u8 {
            data.set_with_ttl("vm", &[key], b"gone", 0, Some(SECOND)).unwrap();
        }
        pass(SECOND);
        data.set("vm", b"one more", b"", 0).unwrap();
        assert_eq!(data.len("vm"), 17);
        assert!((0..16u8).all(|key| data.get("vm", &[key]).is_some()));
    }

    #[test]
    fn values_that_nobody_asks_for_again_do_not_pile_up() {
        let (data, pass) = with_clock(SharedDataLimits::default());
        for key in 0..5000u32 {
            data.set_with_ttl("vm", &key.to_le_bytes(), b"x", 0, Some(SECOND)).unwrap();
            pass(SECOND / 10);
        }
        let sizes = data.sizes();
        assert!(sizes[0].keys < 100, "{sizes:?}");
        assert_eq!(sizes[0].bytes, sizes[0].keys * 5);
    }
}
