//! Shared data: a process-wide key-value store with compare-and-swap, one key space per `vm_id`.

use std::collections::HashMap;

use bytes::Bytes;
use dashmap::DashMap;
use parking_lot::Mutex;

/// Keys in one key space. A rate limiter with a key per client fits; a leak does not take the machine.
pub(crate) const MAX_KEYS: usize = 10_000;
/// Bytes of one key.
pub(crate) const MAX_KEY: usize = 4 << 10;
/// Bytes of one value: state, not content.
pub(crate) const MAX_VALUE: usize = 64 << 10;
/// Bytes of all keys and values in one key space.
pub(crate) const MAX_TOTAL: usize = 16 << 20;

/// The store behind `proxy_get_shared_data` and `proxy_set_shared_data`.
///
/// The ABI has no way to delete and its SDKs have no answer to "full" but to panic, so a full key space makes room: the least recently
/// used sixteenth of it goes. A key space holds 10 000 keys and 16 MiB.
#[derive(Debug, Default)]
pub struct SharedData {
    spaces: DashMap<Box<str>, Mutex<Space>>,
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
}

#[derive(Debug, Default)]
struct Space {
    entries: HashMap<Box<[u8]>, Entry>,
    bytes: usize,
    /// Ticks with every use: the age order of the entries.
    clock: u64,
    last_cas: u32,
}

#[derive(Debug)]
struct Entry {
    value: Bytes,
    cas: u32,
    used: u64,
}

impl SharedData {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The value of `key` in the key space of `vm_id`, with the number to pass to [`SharedData::set`] for a compare-and-swap.
    #[must_use]
    pub fn get(&self, vm_id: &str, key: &[u8]) -> Option<(Bytes, u32)> {
        let space = self.spaces.get(vm_id)?;
        let mut space = space.lock();
        space.clock += 1;
        let now = space.clock;
        let entry = space.entries.get_mut(key)?;
        entry.used = now;
        Some((entry.value.clone(), entry.cas))
    }

    /// Stores `value`. With `cas` 0 always; with another number only if the key still has that number (or does not exist).
    ///
    /// # Errors
    /// [`SharedDataError::CasMismatch`] when the number is out of date, [`SharedDataError::TooLarge`] for a key over 4 KiB or a value over 64 KiB.
    pub fn set(&self, vm_id: &str, key: &[u8], value: &[u8], cas: u32) -> Result<(), SharedDataError> {
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Err(SharedDataError::TooLarge);
        }
        if let Some(space) = self.spaces.get(vm_id) {
            return space.lock().set(key, value, cas);
        }
        self.spaces.entry(vm_id.into()).or_default().lock().set(key, value, cas)
    }

    /// How many keys the key space of `vm_id` holds.
    #[must_use]
    pub fn len(&self, vm_id: &str) -> usize {
        self.spaces.get(vm_id).map_or(0, |space| space.lock().entries.len())
    }
}

impl Space {
    fn set(&mut self, key: &[u8], value: &[u8], cas: u32) -> Result<(), SharedDataError> {
        self.clock += 1;
        self.last_cas = self.last_cas.checked_add(1).unwrap_or(1); // 0 means "no compare"
        let (new_cas, used) = (self.last_cas, self.clock);

        if let Some(entry) = self.entries.get_mut(key) {
            if cas != 0 && cas != entry.cas {
                return Err(SharedDataError::CasMismatch);
            }
            self.bytes = self.bytes - entry.value.len() + value.len();
            *entry = Entry { value: Bytes::copy_from_slice(value), cas: new_cas, used };
        } else {
            self.bytes += key.len() + value.len();
            self.entries.insert(key.into(), Entry { value: Bytes::copy_from_slice(value), cas: new_cas, used });
        }
        while self.entries.len() > MAX_KEYS || self.bytes > MAX_TOTAL {
            self.evict();
        }
        Ok(())
    }

    /// Drops the least recently used sixteenth, so that the search for it is paid by many writes. The entry just written is the most
    /// recently used one, and stays: the bounds leave room for it.
    fn evict(&mut self) {
        let mut ages: Vec<u64> = self.entries.values().map(|entry| entry.used).collect();
        let Some(last) = ages.len().checked_sub(1) else { return };
        let (_, &mut oldest, _) = ages.select_nth_unstable(last / 16);
        let mut freed = 0;
        self.entries.retain(|key, entry| {
            let keep = entry.used > oldest;
            if !keep {
                freed += key.len() + entry.value.len();
            }
            keep
        });
        self.bytes -= freed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
