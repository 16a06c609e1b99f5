//! Foreign functions that need nothing but this crate: an embedder offers them by calling [`call`] from [`crate::Host::foreign`].
//! `docs/foreign-functions.md` says what each takes and gives. Every one is quick and bounded whatever it is given, because the guest's
//! deadline does not run while it waits.

mod shared;

mod wire;

pub use self::wire::{Reader, list};
use crate::host::{Caller, ForeignError};
use crate::shared_data::SharedData;

/// What a foreign function comes to.
pub type Answer = Result<Vec<u8>, ForeignError>;

/// The function of this name; `None` = there is none. `data` is the store behind the shared-data calls.
pub fn call(data: &SharedData, caller: Caller<'_>, name: &str, args: &[u8]) -> Option<Answer> {
    let function = name.strip_prefix("selvedge.")?;
    if let Some(function) = function.strip_prefix("shared.") {
        return shared::call(data, caller.vm_id, function, args);
    }
    None
}

fn bad(why: &str) -> ForeignError {
    ForeignError::BadArgument(why.to_owned())
}
