//! Shared queues.

use crate::abi::memory::{Guest, give_bytes, read, write_u32};
use crate::abi::status::{Called, Fail, Status, bad};
use crate::shared_queue::{EnqueueError, NO_QUEUE, QueueLimits, Refused};

/// SDKs panic on anything but `OK`, so a guest that may have no more queues gets one that takes nothing.
pub(super) fn register(guest: &mut Guest<'_>, name: u32, name_len: u32, out_id: u32) -> Called {
    let facts = guest.data().facts.clone();
    let registrant = guest.data_mut().serving_registrant();
    let name = std::str::from_utf8(read(guest, name, name_len)?).map_err(|_| bad("queue name is not UTF-8"))?;
    let limits = QueueLimits {
        queues: usize::try_from(facts.limits.queues).unwrap_or(usize::MAX),
        items: usize::try_from(facts.limits.queue_items).unwrap_or(usize::MAX),
        bytes: usize::try_from(facts.limits.queue_bytes).unwrap_or(usize::MAX),
    };
    let id = match facts.host.queues().register(&facts.vm_id, name, limits, registrant.as_ref()) {
        Ok(id) => id,
        Err(Refused::Name) => return Err(bad("queue name longer than 1 KiB")),
        Err(Refused::TooMany) => {
            tracing::warn!(
                plugin = %facts.name, queue = name, limit = limits.queues,
                "a filter has too many shared queues: this one takes nothing"
            );
            NO_QUEUE
        }
    };
    if registrant.is_none() {
        guest.data_mut().unclaimed_queues.push(id);
    }
    write_u32(guest, out_id, id)
}

/// No `vm_id` is the guest's own.
pub(super) fn resolve(
    guest: &mut Guest<'_>,
    vm_id: u32,
    vm_id_len: u32,
    name: u32,
    name_len: u32,
    out_id: u32,
) -> Called {
    const UNKNOWN: Fail = Fail::Because(Status::NotFound, "no such queue");
    let facts = guest.data().facts.clone();
    let vm_id = read(guest, vm_id, vm_id_len)?.to_vec();
    let name = std::str::from_utf8(read(guest, name, name_len)?).map_err(|_| UNKNOWN)?;
    let vm_id = if vm_id.is_empty() { &facts.vm_id } else { std::str::from_utf8(&vm_id).map_err(|_| UNKNOWN)? };
    let id = facts.host.queues().resolve(vm_id, name).ok_or(UNKNOWN)?;
    write_u32(guest, out_id, id)
}

/// A full queue answers as a missing one does: the one failure that SDKs hand to the filter instead of panicking.
pub(super) fn enqueue(guest: &mut Guest<'_>, id: u32, ptr: u32, len: u32) -> Called {
    let facts = guest.data().facts.clone();
    let item = read(guest, ptr, len)?;
    facts.host.queues().enqueue(id, item).map_err(|error| match error {
        EnqueueError::NotFound => Fail::Because(Status::NotFound, "no such queue"),
        EnqueueError::Full => Fail::Because(Status::NotFound, "the queue is full"),
    })
}

/// The result's place is checked before an item is taken, so that a bad one costs none.
pub(super) fn dequeue(guest: &mut Guest<'_>, id: u32, out_ptr: u32, out_len: u32) -> Called {
    write_u32(guest, out_ptr, 0)?;
    write_u32(guest, out_len, 0)?;
    let facts = guest.data().facts.clone();
    let item = facts.host.queues().dequeue(id).ok_or(Fail::Because(Status::NotFound, "no such queue"))?;
    give_bytes(guest, &item.ok_or(Fail::Because(Status::Empty, "the queue is empty"))?, out_ptr, out_len)
}
