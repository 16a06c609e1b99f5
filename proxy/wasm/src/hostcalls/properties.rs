//! Properties: the plugin's own are answered here, all others by the exchange.

use super::with_exchange;
use crate::abi::memory::{Guest, give_bytes, read};
use crate::abi::serialize::decode_path;
use crate::abi::status::{Called, Status, bad};
use crate::exchange::ExchangeError;

pub(super) fn get(guest: &mut Guest<'_>, path: u32, path_len: u32, out_ptr: u32, out_len: u32) -> Called {
    let facts = guest.data().facts.clone();
    let bytes = read(guest, path, path_len)?;
    let segments = decode_path(bytes).ok_or(Status::NotFound)?;
    if segments.segments() == ["plugin_vm_memory"] {
        let bytes = guest.data().memory.map_or(0, |memory| memory.data_size(&*guest));
        return give_bytes(guest, &(bytes as u64).to_le_bytes(), out_ptr, out_len);
    }
    let own = match segments.segments() {
        ["plugin_name"] => Some(&facts.name),
        ["plugin_root_id"] => Some(&facts.root_id),
        ["plugin_vm_id"] => Some(&facts.vm_id),
        _ => None,
    };
    if let Some(own) = own {
        return give_bytes(guest, own.as_bytes(), out_ptr, out_len);
    }

    let given = with_exchange(guest, |guest, exchange| {
        let bytes = read(guest, path, path_len)?;
        let segments = decode_path(bytes).ok_or(Status::NotFound)?;
        let value = exchange.property(segments.segments()).ok_or(Status::NotFound)?;
        give_bytes(guest, &value, out_ptr, out_len)
    });
    given?.ok_or_else(|| Status::NotFound.into())
}

pub(super) fn set(guest: &mut Guest<'_>, path: u32, path_len: u32, ptr: u32, len: u32) -> Called {
    let set = with_exchange(guest, |guest, exchange| {
        // Copied: the value cannot be borrowed from the same memory at the same time, and paths are short.
        let path = read(guest, path, path_len)?.to_vec();
        let segments = decode_path(&path).ok_or_else(|| bad("not a property path"))?;
        let value = read(guest, ptr, len)?;
        exchange.set_property(segments.segments(), value).map_err(|error| match error {
            ExchangeError::Unavailable => bad("the property belongs to the host, or cannot be set any more"),
            ExchangeError::Invalid => bad("the property cannot have this value"),
        })
    });
    set?.ok_or_else(|| bad("no exchange to write to in this context"))
}
