//! Properties: the plugin's own are answered here, all others by the exchange.

use super::with_exchange;
use crate::abi::memory::{Guest, give_bytes, read};
use crate::abi::status::{Called, Status, bad};
use crate::compat::PropertyKind;
use crate::exchange::ExchangeError;

pub(super) fn get(guest: &mut Guest<'_>, path: u32, path_len: u32, out_ptr: u32, out_len: u32) -> Called {
    let facts = guest.data().facts.clone();
    let bytes = read(guest, path, path_len)?;
    let segments = facts.compat.path(bytes).ok_or(Status::NotFound)?;
    if segments.segments() == ["plugin_vm_memory"] {
        let bytes = guest.data().memory.map_or(0, |memory| memory.data_size(&*guest));
        let value = facts.compat.shown((bytes as u64).to_le_bytes().to_vec(), || PropertyKind::Uint);
        return give_bytes(guest, &value, out_ptr, out_len);
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
        let path = facts.compat.path(bytes).ok_or(Status::NotFound)?;
        let path = path.segments();
        let value = exchange.property(path).ok_or(Status::NotFound)?;
        let value = facts.compat.shown(value, || exchange.property_kind(path));
        give_bytes(guest, &value, out_ptr, out_len)
    });
    given?.ok_or_else(|| Status::NotFound.into())
}

pub(super) fn set(guest: &mut Guest<'_>, path: u32, path_len: u32, ptr: u32, len: u32) -> Called {
    let compat = guest.data().facts.compat;
    let set = with_exchange(guest, |guest, exchange| {
        // Copied: the value cannot be borrowed from the same memory at the same time, and paths are short.
        let path = read(guest, path, path_len)?.to_vec();
        let segments = compat.path(&path).ok_or_else(|| bad("not a property path"))?;
        let value = read(guest, ptr, len)?;
        exchange.set_property(segments.segments(), value).map_err(|error| match error {
            ExchangeError::Unavailable => bad("the property belongs to the host, or cannot be set any more"),
            ExchangeError::Invalid => bad("the property cannot have this value"),
        })
    });
    set?.ok_or_else(|| bad("no exchange to write to in this context"))
}
