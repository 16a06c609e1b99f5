//! Guest memory: every pointer and length in it comes from the guest and is checked here, once.

use wasmtime::{Caller, Extern, Memory, TypedFunc};

use crate::abi::status::{Called, Fail, Status};
use crate::vm::{Allocator, State};

/// The guest that made a hostcall.
pub(crate) type Guest<'a> = Caller<'a, State>;

/// A pointer outside of the guest's memory.
fn outside() -> Fail {
    Fail::Because(Status::InvalidMemoryAccess, "pointer or length outside of the guest's memory")
}

fn memory(guest: &mut Guest<'_>) -> Called<Memory> {
    match guest.data().memory {
        Some(memory) => Ok(memory),
        // Only while the module's start function runs: the instance is not ours yet.
        None => match guest.get_export("memory") {
            Some(Extern::Memory(memory)) => Ok(memory),
            _ => Err(outside()),
        },
    }
}

fn range(ptr: u32, len: usize) -> Called<std::ops::Range<usize>> {
    let start = usize::try_from(ptr).map_err(|_| outside())?;
    let end = start.checked_add(len).ok_or_else(outside)?;
    Ok(start..end)
}

/// `len` bytes at `ptr`. Nothing at all may be anywhere: SDKs pass dangling pointers for empty slices.
pub(crate) fn read<'g>(guest: &'g mut Guest<'_>, ptr: u32, len: u32) -> Called<&'g [u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    piece(memory(guest)?.data(guest), ptr, len)
}

/// Fills `len` bytes at `ptr`.
pub(crate) fn fill(guest: &mut Guest<'_>, ptr: u32, len: usize, fill: impl FnOnce(&mut [u8])) -> Called {
    let memory = memory(guest)?;
    fill(memory.data_mut(guest).get_mut(range(ptr, len)?).ok_or_else(outside)?);
    Ok(())
}

/// Writes a little-endian u32.
pub(crate) fn write_u32(guest: &mut Guest<'_>, ptr: u32, value: u32) -> Called {
    fill(guest, ptr, 4, |bytes| bytes.copy_from_slice(&value.to_le_bytes()))
}

/// Writes a little-endian u64.
pub(crate) fn write_u64(guest: &mut Guest<'_>, ptr: u32, value: u64) -> Called {
    fill(guest, ptr, 8, |bytes| bytes.copy_from_slice(&value.to_le_bytes()))
}

/// Gives `len` bytes to the guest: allocated by the guest's allocator, filled here, their place and length written to `out_ptr` and
/// `out_len`. Nothing is a null pointer and 0, and costs no allocation.
pub(crate) fn give(
    guest: &mut Guest<'_>,
    len: usize,
    out_ptr: u32,
    out_len: u32,
    bytes: impl FnOnce(&mut [u8]),
) -> Called {
    let size = u32::try_from(len).map_err(|_| Fail::Because(Status::InternalFailure, "result larger than 4 GiB"))?;
    // Also a check of both places before anything is allocated.
    let (ptr_at, len_at) = (range(out_ptr, 4)?, range(out_len, 4)?);
    let all = memory(guest)?.data_mut(&mut *guest);
    all.get_mut(ptr_at.clone()).ok_or_else(outside)?.fill(0);
    all.get_mut(len_at.clone()).ok_or_else(outside)?.fill(0);
    if size == 0 {
        return Ok(());
    }

    let place = allocate(guest, size)?;
    let all = memory(guest)?.data_mut(guest);
    bytes(all.get_mut(range(place, len)?).ok_or_else(outside)?);
    all.get_mut(ptr_at).ok_or_else(outside)?.copy_from_slice(&place.to_le_bytes());
    all.get_mut(len_at).ok_or_else(outside)?.copy_from_slice(&size.to_le_bytes());
    Ok(())
}

/// Two pieces of memory at once, as [`read`] gives one.
pub(crate) fn read_two<'g>(
    guest: &'g mut Guest<'_>,
    (first, first_len): (u32, u32),
    (second, second_len): (u32, u32),
) -> Called<(&'g [u8], &'g [u8])> {
    let all = memory(guest)?.data(guest);
    Ok((piece(all, first, first_len)?, piece(all, second, second_len)?))
}

/// `len` bytes at `ptr` of all the memory; nothing at all may be anywhere.
fn piece(all: &[u8], ptr: u32, len: u32) -> Called<&[u8]> {
    if len == 0 {
        return Ok(&[]);
    }
    all.get(range(ptr, usize::try_from(len).map_err(|_| outside())?)?).ok_or_else(outside)
}

/// [`give`] for bytes that are at hand.
pub(crate) fn give_bytes(guest: &mut Guest<'_>, bytes: &[u8], out_ptr: u32, out_len: u32) -> Called {
    give(guest, bytes.len(), out_ptr, out_len, |place| place.copy_from_slice(bytes))
}

fn allocate(guest: &mut Guest<'_>, size: u32) -> Called<u32> {
    let allocator = match std::mem::take(&mut guest.data_mut().allocator) {
        Allocator::NotYet => find_allocator(guest),
        Allocator::Found(allocator) => Some(allocator),
        Allocator::Nowhere => None,
    };
    let Some(allocator) = allocator else {
        return Err(Fail::Because(Status::InternalFailure, "the guest has no allocator, or called the host from it"));
    };
    let place = allocator.call(&mut *guest, size).map_err(Fail::Trap)?;
    guest.data_mut().allocator = Allocator::Found(allocator);
    match place {
        0 => Err(Fail::Because(Status::InternalFailure, "the guest's allocator returned null")),
        place => Ok(place),
    }
}

fn find_allocator(guest: &mut Guest<'_>) -> Option<TypedFunc<u32, u32>> {
    ["malloc", "proxy_on_memory_allocate"].into_iter().find_map(|name| {
        let function = guest.get_export(name)?.into_func()?;
        function.typed(&*guest).ok()
    })
}
