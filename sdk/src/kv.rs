//! Shared data: bytes by key, seen by every worker of the plugin. It is kept in memory and lost when the host restarts.
//!
//! Keys are the plugin's own: filters with another `vm_id` do not see them.

use crate::host::{self, Status};

/// How often [`update`] tries before it gives up. Losing once means that another worker won, so this many losses in a row mean a
/// key that is written far too often for compare-and-set.
const ATTEMPTS: usize = 64;

/// The version of a value, for compare-and-set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cas(u32);

/// Why a value was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// Somebody else wrote the key since it was read.
    #[error("the value was changed meanwhile")]
    CasMismatch,
    /// The host does not take the value, for instance because its store is full.
    #[error("the host refused the value")]
    Refused,
}

/// The value and its version; `None` when there is none.
pub fn get(key: &str) -> Option<(Vec<u8>, Cas)> {
    host::current().shared(key).map(|(value, cas)| (value, Cas(cas)))
}

/// Writes a value: with a version only while it is still the one stored, without one in any case.
///
/// # Errors
/// [`KvError::CasMismatch`] when the version is no longer the one stored; [`KvError::Refused`] when the host does not take it.
pub fn set(key: &str, value: &[u8], cas: Option<Cas>) -> Result<(), KvError> {
    host::current().set_shared(key, value, cas.map(|cas| cas.0)).map_err(|status| match status {
        Status::CasMismatch => KvError::CasMismatch,
        _ => KvError::Refused,
    })
}

/// Reads, changes and writes, again until nobody else wrote in between; returns what was written. `change` gets `None` for a
/// key without a value and may be called several times.
///
/// The ABI has no "only if absent": when two workers write a key for the first time at once, the last one wins.
///
/// # Errors
/// [`KvError::CasMismatch`] after 64 attempts; [`KvError::Refused`] when the host does not take the value.
pub fn update(key: &str, mut change: impl FnMut(Option<&[u8]>) -> Vec<u8>) -> Result<Vec<u8>, KvError> {
    for _ in 0..ATTEMPTS {
        let current = get(key);
        let value = change(current.as_ref().map(|(value, _)| value.as_slice()));
        match set(key, &value, current.map(|(_, cas)| cas)) {
            Ok(()) => return Ok(value),
            Err(KvError::CasMismatch) => {}
            Err(KvError::Refused) => return Err(KvError::Refused),
        }
    }
    Err(KvError::CasMismatch)
}
