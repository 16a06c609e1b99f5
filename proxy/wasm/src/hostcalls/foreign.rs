//! Foreign functions: the exchange is asked first, because some act on it, then the host.

use super::with_exchange;
use crate::abi::memory::{Guest, give_bytes, read};
use crate::abi::status::{Called, Status};
use crate::host::{Caller, ForeignError};

pub(super) fn call(
    guest: &mut Guest<'_>,
    name: u32,
    name_len: u32,
    args: u32,
    args_len: u32,
    out_ptr: u32,
    out_len: u32,
) -> Called {
    let facts = guest.data().facts.clone();
    let caller = Caller { plugin: &facts.name, vm_id: &facts.vm_id };
    // Copied: the arguments are borrowed from the same memory, and names are short.
    let name = std::str::from_utf8(read(guest, name, name_len)?).map_err(|_| Status::NotFound)?.to_owned();

    let by_exchange =
        with_exchange(guest, |guest, exchange| Ok(exchange.foreign(caller, &name, read(guest, args, args_len)?)))?;
    let result = match by_exchange.flatten() {
        Some(result) => result,
        None => facts.host.foreign(caller, &name, read(guest, args, args_len)?).ok_or(Status::NotFound)?,
    };
    let result = result.map_err(|error| {
        tracing::debug!(plugin = %facts.name, function = name, %error, "foreign function failed");
        match error {
            ForeignError::BadArgument(_) => Status::BadArgument,
            ForeignError::Serialization(_) => Status::SerializationFailure,
            ForeignError::Internal(_) => Status::InternalFailure,
        }
    })?;
    give_bytes(guest, &result, out_ptr, out_len)
}
