//! Shared data, in the key space of the plugin's `vm_id`.

use crate::abi::memory::{Guest, give_bytes, read, write_u32};
use crate::abi::status::{Called, Fail, Status};
use crate::compat::Compat;
use crate::shared_data::{MAX_KEY, MAX_VALUE, SharedDataError};

pub(super) fn get(guest: &mut Guest<'_>, key: u32, key_len: u32, out_ptr: u32, out_len: u32, out_cas: u32) -> Called {
    let facts = guest.data().facts.clone();
    let key = read(guest, key, key_len)?;
    let (value, cas) = facts.host.shared().get(&facts.vm_id, key).ok_or(Status::NotFound)?;
    write_u32(guest, out_cas, cas)?;
    give_bytes(guest, &value, out_ptr, out_len)
}

pub(super) fn set(guest: &mut Guest<'_>, key: u32, key_len: u32, ptr: u32, value_len: u32, cas: u32) -> Called {
    let too_large = || Fail::Because(Status::InternalFailure, "shared data: key over 4 KiB or value over 64 KiB");
    let longer = |len: u32, max: usize| usize::try_from(len).is_ok_and(|len| len > max);
    if longer(key_len, MAX_KEY) || longer(value_len, MAX_VALUE) {
        return Err(too_large()); // before it is copied
    }
    let facts = guest.data().facts.clone();
    let key = read(guest, key, key_len)?.to_vec();
    let value = read(guest, ptr, value_len)?;
    let shared = facts.host.shared();
    let set = match facts.compat {
        Compat::Envoy => shared.set(&facts.vm_id, &key, value, cas),
        Compat::Ngx => shared.swap(&facts.vm_id, &key, (ptr != 0).then_some(value), cas),
    };
    set.map_err(|error| match error {
        SharedDataError::CasMismatch => Status::CasMismatch.into(),
        SharedDataError::TooLarge | SharedDataError::NotACounter => too_large(),
    })
}
