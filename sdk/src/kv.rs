//! Shared data, seen by every worker of the plugin. It is kept in memory and lost when the host restarts.
//!
//! [`Kv`] keeps values of a type, with times to live; [`SharedCounter`] counts; the functions here take bytes, for whatever else. Keys are
//! the plugin's own: filters with another `vm_id` do not see them.

mod counter;

mod typed;

use crate::Reply;
use crate::host::{self, Status};

pub use self::counter::SharedCounter;
pub use self::typed::Kv;

/// How often [`update`] tries before it gives up. Losing once means that another worker won, so this many losses in a row mean a
/// key that is written far too often for compare-and-set.
const ATTEMPTS: usize = 64;

/// A version that no value has: hosts number from 1 upwards, and ours leaves this one out.
const NO_VERSION: u32 = u32::MAX;

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
    /// What is stored is not what it should be, or the value has no such form.
    #[error("the stored value has another form")]
    Malformed,
    /// The host cannot do this; the function of the host that it takes.
    #[error("the host has no function {0}")]
    Unsupported(&'static str),
}

/// `?` in a hook answers 500; the log says why.
impl From<KvError> for Reply {
    fn from(error: KvError) -> Self {
        log::error!("shared data: {error}");
        Self::new(500).text("internal error")
    }
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
    write(key, value, cas.map(|cas| cas.0))
}

/// Writes a value only if there is none: of several workers that create a key at once, one succeeds.
///
/// # Errors
/// [`KvError::CasMismatch`] when there is a value already; [`KvError::Refused`] when the host does not take it.
pub fn create(key: &str, value: &[u8]) -> Result<(), KvError> {
    // The ABI has no word for it. With a version, hosts compare only what is there, and store where nothing is.
    match write(key, value, Some(NO_VERSION)) {
        // … except ngx_wasm_module: there the version of what is not there is 0, and 0 is compared too.
        Err(KvError::CasMismatch) if get(key).is_none() => write(key, value, None),
        result => result,
    }
}

/// Reads, changes and writes, again until nobody else wrote in between; returns what was written. `change` gets `None` for a
/// key without a value and may be called several times.
///
/// # Errors
/// [`KvError::CasMismatch`] after 64 attempts; [`KvError::Refused`] when the host does not take the value.
pub fn update(key: &str, mut change: impl FnMut(Option<&[u8]>) -> Vec<u8>) -> Result<Vec<u8>, KvError> {
    for _ in 0..ATTEMPTS {
        let current = get(key);
        let value = change(current.as_ref().map(|(value, _)| value.as_slice()));
        let written = match current {
            Some((_, cas)) => set(key, &value, Some(cas)),
            None => create(key, &value),
        };
        match written {
            Ok(()) => return Ok(value),
            Err(KvError::CasMismatch) => {}
            Err(error) => return Err(error),
        }
    }
    Err(KvError::CasMismatch)
}

fn write(key: &str, value: &[u8], cas: Option<u32>) -> Result<(), KvError> {
    host::current().set_shared(key, value, cas).map_err(|status| match status {
        Status::CasMismatch => KvError::CasMismatch,
        _ => KvError::Refused,
    })
}
