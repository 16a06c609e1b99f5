//! `poll_oneoff`: waiting, in a place where nobody may wait. A worker serves other exchanges on the same thread, so the call returns at
//! once with what would have come first: a stream that is ready, or the clock that would have rung.

use std::time::Duration;

use super::{errno, now};
use crate::abi::memory::{Guest, fill, read, write_u32};
use crate::abi::status::Called;

/// Where things stand in a subscription.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    /// Bytes from one subscription to the next.
    size: usize,
    /// Of a clock's id (u32) and its timeout (u64, nanoseconds). The userdata (u64) stands at 0, the type (u8) at 8.
    clock: usize,
    timeout: usize,
    /// Of a clock's flags (u16).
    flags: usize,
}

/// Preview 1.
pub(super) const SUBSCRIPTION: Layout = Layout { size: 48, clock: 16, timeout: 24, flags: 40 };
/// `wasi_unstable`: an identifier stands before the clock's id.
pub(super) const OLD_SUBSCRIPTION: Layout = Layout { size: 56, clock: 24, timeout: 32, flags: 48 };

/// Bytes of an event: userdata (u64), error (u16), type (u8), bytes that are ready (u64 at 16), flags (u16 at 24).
const EVENT: usize = 32;

/// Subscriptions of one call.
const MAX_SUBSCRIPTIONS: u32 = 1024;

/// The timeout is a time of the clock, not a length of time.
const ABSOLUTE: u16 = 1;

const CLOCK: u8 = 0;
const FD_READ: u8 = 1;
const FD_WRITE: u8 = 2;

struct Event {
    userdata: [u8; 8],
    kind: u8,
    error: u32,
    /// How long until it comes; nothing for streams.
    wait: Duration,
}

pub(super) fn oneoff(
    guest: &mut Guest<'_>,
    layout: Layout,
    subscriptions: u32,
    events: u32,
    count: u32,
    out: u32,
) -> Called<u32> {
    if count == 0 || count > MAX_SUBSCRIPTIONS {
        return Ok(errno::INVAL);
    }
    let each = u32::try_from(layout.size).unwrap_or(u32::MAX);
    let bytes = read(guest, subscriptions, count * each)?.to_vec();
    let mut all = Vec::new();
    for subscription in bytes.chunks_exact(layout.size) {
        match event(guest, layout, subscription) {
            Some(event) => all.push(event),
            None => return Ok(errno::INVAL),
        }
    }

    let first = all.iter().map(|event| event.wait).min().unwrap_or_default();
    let mut place = events;
    let mut happened = 0;
    for event in all.iter().filter(|event| event.wait == first) {
        fill(guest, place, EVENT, |bytes| {
            bytes.fill(0);
            bytes[..8].copy_from_slice(&event.userdata);
            bytes[8..10].copy_from_slice(&event.error.to_le_bytes()[..2]);
            bytes[10] = event.kind;
        })?;
        let Some(next) = u32::try_from(EVENT).ok().and_then(|size| place.checked_add(size)) else {
            return Ok(errno::FAULT);
        };
        (place, happened) = (next, happened + 1);
    }
    write_u32(guest, out, happened)?;
    Ok(errno::OK)
}

/// What comes of a subscription. `None`: it is none.
fn event(guest: &Guest<'_>, layout: Layout, subscription: &[u8]) -> Option<Event> {
    let userdata = array(subscription, 0)?;
    let kind = *subscription.get(8)?;
    let (error, wait) = match kind {
        CLOCK => {
            let clock = u32::from_le_bytes(array(subscription, layout.clock)?);
            let timeout = Duration::from_nanos(u64::from_le_bytes(array(subscription, layout.timeout)?));
            let flags = u16::from_le_bytes(array(subscription, layout.flags)?);
            match now(guest, clock) {
                Some(now) if flags & ABSOLUTE != 0 => (errno::OK, timeout.saturating_sub(now)),
                Some(_) => (errno::OK, timeout),
                None => (errno::NOTSUP, Duration::ZERO),
            }
        }
        FD_READ | FD_WRITE => {
            let fd = u32::from_le_bytes(array(subscription, 16)?);
            let ready = if kind == FD_READ { fd == 0 } else { matches!(fd, 1 | 2) };
            (if ready { errno::OK } else { errno::BADF }, Duration::ZERO)
        }
        _ => return None,
    };
    Some(Event { userdata, kind, error, wait })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}
