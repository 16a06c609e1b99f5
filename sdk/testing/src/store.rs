//! Shared data: the store of the fake host, and the functions that reach it beyond the ABI, on either host.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

/// What shared data does; the fake host's store and the shipped host's both do it.
pub(crate) trait Store {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)>;
    /// `Ok(false)`: the version is out of date.
    fn set(&self, key: &str, value: &[u8], cas: u32, ttl: Option<Duration>) -> Result<bool, Refused>;
    fn delete(&self, key: &str) -> bool;
    fn increment(&self, key: &str, delta: i64, initial: i64, ttl: Option<Duration>) -> Result<i64, Refused>;
    fn keys(&self, prefix: &str) -> Vec<String>;
}

/// A value or a key that is too large, or no counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Refused;

/// The shipped host's limits, in bytes.
const MAX_KEY: usize = 4096;
const MAX_VALUE: usize = 64 * 1024;
const MAX_LIST: usize = 1000;

/// The store of the fake host.
#[derive(Default)]
pub(crate) struct FakeStore {
    entries: BTreeMap<String, Entry>,
    versions: u32,
}

struct Entry {
    value: Vec<u8>,
    cas: u32,
    expires: Option<SystemTime>,
}

impl FakeStore {
    pub(crate) fn get(&self, key: &str, now: SystemTime) -> Option<(Vec<u8>, u32)> {
        self.live(key, now).map(|entry| (entry.value.clone(), entry.cas))
    }

    pub(crate) fn set(
        &mut self,
        key: &str,
        value: &[u8],
        cas: u32,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<bool, Refused> {
        if key.len() > MAX_KEY || value.len() > MAX_VALUE {
            return Err(Refused);
        }
        if cas != 0 && self.live(key, now).is_some_and(|entry| entry.cas != cas) {
            return Ok(false);
        }
        self.put(key, value, ttl.map(|ttl| now + ttl));
        Ok(true)
    }

    pub(crate) fn delete(&mut self, key: &str, now: SystemTime) -> bool {
        let lived = self.live(key, now).is_some();
        self.entries.remove(key);
        lived
    }

    pub(crate) fn increment(
        &mut self,
        key: &str,
        delta: i64,
        initial: i64,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<i64, Refused> {
        if key.len() > MAX_KEY {
            return Err(Refused);
        }
        let (before, expires) = match self.live(key, now) {
            Some(entry) => {
                let bytes = <[u8; 8]>::try_from(&*entry.value).map_err(|_| Refused)?;
                (i64::from_le_bytes(bytes), entry.expires)
            }
            None => (initial, ttl.map(|ttl| now + ttl)),
        };
        let sum = before.saturating_add(delta);
        self.put(key, &sum.to_le_bytes(), expires);
        Ok(sum)
    }

    pub(crate) fn keys(&self, prefix: &str, now: SystemTime) -> Vec<String> {
        let keys = self.entries.keys().filter(|key| key.starts_with(prefix) && self.live(key, now).is_some());
        keys.cloned().collect()
    }

    fn live(&self, key: &str, now: SystemTime) -> Option<&Entry> {
        self.entries.get(key).filter(|entry| entry.expires.is_none_or(|expires| now < expires))
    }

    fn put(&mut self, key: &str, value: &[u8], expires: Option<SystemTime>) {
        self.versions += 1;
        self.entries.insert(key.to_owned(), Entry { value: value.to_vec(), cas: self.versions, expires });
    }
}

/// What a foreign function gives.
pub(crate) type Answer = Result<Vec<u8>, Refused>;

/// The functions `selvedge.shared.*`, as `docs/foreign-functions.md` has them; `None`: there is none of this name.
pub(crate) fn foreign(store: &dyn Store, name: &str, argument: &[u8]) -> Option<Answer> {
    let argument = Reader(argument);
    Some(match name.strip_prefix("selvedge.shared.")? {
        "delete" => argument.rest().map(|key| vec![u8::from(store.delete(key))]),
        "increment" => argument.increment(store),
        "set_ttl" => argument.set_ttl(store),
        "keys" => argument.keys(store),
        _ => return None,
    })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refused> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(Refused)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn ttl(&mut self) -> Result<Option<Duration>, Refused> {
        let millis = u64::from_le_bytes(self.take()?);
        Ok((millis != 0).then(|| Duration::from_millis(millis)))
    }

    fn rest(&self) -> Result<&'a str, Refused> {
        std::str::from_utf8(self.0).map_err(|_| Refused)
    }

    fn increment(mut self, store: &dyn Store) -> Answer {
        let (delta, initial) = (i64::from_le_bytes(self.take()?), i64::from_le_bytes(self.take()?));
        let ttl = self.ttl()?;
        store.increment(self.rest()?, delta, initial, ttl).map(|sum| sum.to_le_bytes().to_vec())
    }

    fn set_ttl(mut self, store: &dyn Store) -> Answer {
        let cas = u32::from_le_bytes(self.take()?);
        let ttl = self.ttl()?;
        let length = usize::try_from(u32::from_le_bytes(self.take()?)).map_err(|_| Refused)?;
        let (key, value) = self.0.split_at_checked(length).ok_or(Refused)?;
        let key = std::str::from_utf8(key).map_err(|_| Refused)?;
        store.set(key, value, cas, ttl).map(|stored| vec![u8::from(stored)])
    }

    fn keys(mut self, store: &dyn Store) -> Answer {
        let limit = usize::try_from(u32::from_le_bytes(self.take()?)).unwrap_or(MAX_LIST).min(MAX_LIST);
        let keys = store.keys(self.rest()?);
        let size = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
        let mut list = size(keys.len().min(limit)).to_vec();
        for key in keys.iter().take(limit) {
            list.extend(size(key.len()));
            list.extend_from_slice(key.as_bytes());
        }
        Ok(list)
    }
}
