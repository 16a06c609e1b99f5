//! Values of one type under one prefix.

use std::marker::PhantomData;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{ATTEMPTS, Cas, KvError, NO_VERSION, create, set};
use crate::host::{self, Status};

/// Shared data of one type, kept as JSON: what all workers of the plugin know under a prefix.
///
/// ```
/// use selvedge_sdk::prelude::*;
///
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct KeyInfo { tenant: String }
///
/// # fn example() -> Result<(), KvError> {
/// let seen = Kv::<KeyInfo>::new("seen"); // in `Filter::new`
/// seen.put_ttl("k1", &KeyInfo { tenant: "acme".into() }, Duration::from_secs(60))?;
/// if let Some(info) = seen.get("k1")? {
///     info!("{}", info.tenant);
/// }
/// # Ok(()) }
/// ```
///
/// Its keys are `PREFIX/KEY` of the raw [shared data](crate::kv), and its values are JSON there.
///
/// **Where the host has no times to live** (any but Selvedge) a value with one is written as `@MILLISECONDS JSON`: when it ends, since
/// 1970. It is not read after that, and stays in memory until it is overwritten or the host makes room. **Where the host cannot delete**,
/// an empty value is written, which reads as none.
pub struct Kv<T> {
    prefix: Box<str>,
    value: PhantomData<fn() -> T>,
}

impl<T> Kv<T> {
    /// The values under a prefix. Two handles with one prefix are the same store.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), value: PhantomData }
    }

    /// Removes a value; nothing happens when there is none.
    ///
    /// # Errors
    /// [`KvError::Refused`] when the host refuses.
    pub fn delete(&self, key: &str) -> Result<(), KvError> {
        let key = self.full(key);
        match host::current().foreign("selvedge.shared.delete", key.as_bytes()) {
            Ok(_) => Ok(()),
            Err(Status::NotFound) => set(&key, b"", None),
            Err(_) => Err(KvError::Refused),
        }
    }

    /// Up to `limit` of the keys that start with `start`, in byte order; the host gives 1000 at most. Keys that are not UTF-8 are left out.
    ///
    /// # Errors
    /// [`KvError::Unsupported`] where the host cannot list keys.
    pub fn keys(&self, start: &str, limit: u32) -> Result<Vec<String>, KvError> {
        const FUNCTION: &str = "selvedge.shared.keys";
        let mut argument = limit.to_le_bytes().to_vec();
        argument.extend_from_slice(self.full(start).as_bytes());
        let list = host::current().foreign(FUNCTION, &argument).map_err(|status| match status {
            Status::NotFound => KvError::Unsupported(FUNCTION),
            _ => KvError::Refused,
        })?;
        let keys = crate::foreign::list(&list).ok_or(KvError::Malformed)?;
        let own = |key: &[u8]| Some(std::str::from_utf8(key).ok()?.get(self.prefix.len() + 1..)?.to_owned());
        Ok(keys.into_iter().filter_map(own).collect())
    }

    fn full(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }
}

impl<T: Serialize + DeserializeOwned> Kv<T> {
    /// The value of a key.
    ///
    /// # Errors
    /// [`KvError::Malformed`]: what is stored is no such value.
    pub fn get(&self, key: &str) -> Result<Option<T>, KvError> {
        match host::current().shared(&self.full(key)) {
            Some((stored, _)) => read(&stored),
            None => Ok(None),
        }
    }

    /// Writes a value, for as long as the host remembers it.
    ///
    /// # Errors
    /// [`KvError::Refused`] when the host does not take it; [`KvError::Malformed`] when it cannot be written as JSON.
    pub fn put(&self, key: &str, value: &T) -> Result<(), KvError> {
        set(&self.full(key), &json(value)?, None)
    }

    /// Writes a value that is forgotten after `ttl`, to the millisecond and at least one.
    ///
    /// # Errors
    /// As [`put`](Kv::put).
    pub fn put_ttl(&self, key: &str, value: &T, ttl: Duration) -> Result<(), KvError> {
        set_ttl(&self.full(key), &json(value)?, 0, ttl)
    }

    /// Reads, changes and writes, again until nobody else wrote in between; gives what was written. `change` gets `None` for a key
    /// without a value, and may be called several times. A time to live that the value had is over: see [`update_ttl`](Kv::update_ttl).
    ///
    /// # Errors
    /// [`KvError::CasMismatch`] after 64 attempts; else as [`get`](Kv::get) and [`put`](Kv::put).
    pub fn update(&self, key: &str, change: impl FnMut(Option<T>) -> T) -> Result<T, KvError> {
        self.change(key, change, |key, json, cas| match cas {
            Some(cas) => set(key, json, Some(Cas(cas))),
            None => create(key, json),
        })
    }

    /// The same for a value that is forgotten `ttl` after this write.
    ///
    /// # Errors
    /// As [`update`](Kv::update).
    pub fn update_ttl(&self, key: &str, ttl: Duration, change: impl FnMut(Option<T>) -> T) -> Result<T, KvError> {
        self.change(key, change, |key, json, cas| set_ttl(key, json, cas.unwrap_or(NO_VERSION), ttl))
    }

    /// The value of a key; where there is none, what `make` gives, which is remembered for `ttl`. Several that ask at once may all make
    /// it, and the last one stays. A value that cannot be read is made anew, and one that cannot be written is given all the same: the
    /// log says so.
    ///
    /// # Errors
    /// Those of `make`. They are not remembered.
    pub async fn get_or_try_insert<E>(
        &self,
        key: &str,
        ttl: Duration,
        make: impl AsyncFnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        match self.get(key) {
            Ok(Some(value)) => return Ok(value),
            Ok(None) => {}
            Err(error) => log::warn!("{}: made anew: {error}", self.prefix),
        }
        let value = make().await?;
        self.put_ttl(key, &value, ttl).unwrap_or_else(|error| log::warn!("{}: not remembered: {error}", self.prefix));
        Ok(value)
    }

    fn change(
        &self,
        key: &str,
        mut change: impl FnMut(Option<T>) -> T,
        write: impl Fn(&str, &[u8], Option<u32>) -> Result<(), KvError>,
    ) -> Result<T, KvError> {
        let key = self.full(key);
        for _ in 0..ATTEMPTS {
            let (value, cas) = match host::current().shared(&key) {
                Some((stored, cas)) => (read(&stored)?, Some(cas)),
                None => (None, None),
            };
            let value = change(value);
            match write(&key, &json(&value)?, cas) {
                Err(KvError::CasMismatch) => {}
                result => return result.map(|()| value),
            }
        }
        Err(KvError::CasMismatch)
    }
}

/// With `cas` 0 in any case. Where the host knows no times to live, the end is written before the value.
fn set_ttl(key: &str, json: &[u8], cas: u32, ttl: Duration) -> Result<(), KvError> {
    let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).max(1);
    let length = u32::try_from(key.len()).map_err(|_| KvError::Refused)?;
    let argument =
        [&cas.to_le_bytes(), &millis.to_le_bytes()[..], &length.to_le_bytes(), key.as_bytes(), json].concat();
    match host::current().foreign("selvedge.shared.set_ttl", &argument).as_deref() {
        Ok([1]) => Ok(()),
        Ok([0]) => Err(KvError::CasMismatch),
        Err(Status::NotFound) => {
            let end = since_1970(host::current().now()).saturating_add(u128::from(millis));
            let stamped = [format!("@{end} ").as_bytes(), json].concat();
            match cas {
                0 => set(key, &stamped, None),
                NO_VERSION => create(key, &stamped),
                cas => set(key, &stamped, Some(Cas(cas))),
            }
        }
        _ => Err(KvError::Refused),
    }
}

/// JSON begins with no `@`, so the two forms cannot be taken for each other.
fn read<T: DeserializeOwned>(stored: &[u8]) -> Result<Option<T>, KvError> {
    let json = match stored {
        [] => return Ok(None),
        [b'@', stamped @ ..] => {
            let (end, json) = split_stamp(stamped).ok_or(KvError::Malformed)?;
            if end <= since_1970(host::current().now()) {
                return Ok(None);
            }
            json
        }
        json => json,
    };
    serde_json::from_slice(json).map(Some).map_err(|_| KvError::Malformed)
}

fn split_stamp(stamped: &[u8]) -> Option<(u128, &[u8])> {
    let space = stamped.iter().position(|&byte| byte == b' ')?;
    let end = std::str::from_utf8(&stamped[..space]).ok()?.parse().ok()?;
    Some((end, &stamped[space + 1..]))
}

fn json<T: Serialize>(value: &T) -> Result<Vec<u8>, KvError> {
    serde_json::to_vec(value).map_err(|_| KvError::Malformed)
}

fn since_1970(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

impl<T> std::fmt::Debug for Kv<T> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Kv").field("prefix", &self.prefix).finish()
    }
}

impl<T> Clone for Kv<T> {
    fn clone(&self) -> Self {
        Self { prefix: self.prefix.clone(), value: PhantomData }
    }
}
