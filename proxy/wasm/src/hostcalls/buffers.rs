//! Buffers: bodies, configurations, a callout's answer.

use bytes::Bytes;

use super::with_exchange;
use crate::abi::memory::{Guest, give_bytes, read, write_u32};
use crate::abi::status::{Called, Status, bad};
use crate::compat::Compat;
use crate::exchange::{Buffer, Exchange};
use crate::grpc::GrpcEvent;
use crate::limits::MAX_EDITED_BODY;

/// A buffer by its ABI number.
enum Source {
    Body(Buffer),
    /// Held by the host; read-only.
    Held(Bytes),
    /// Not now, or not served.
    Absent,
}

impl Source {
    fn from_abi(number: u32, guest: &Guest<'_>) -> Called<Self> {
        let state = guest.data();
        Ok(match number {
            0 => Self::Body(Buffer::Request),
            1 => Self::Body(Buffer::Response),
            2 => Self::Body(Buffer::Downstream),
            3 => Self::Body(Buffer::Upstream),
            4 => match &state.delivery {
                Some(Ok(response)) => Self::Held(response.body.clone()),
                _ => Self::Absent,
            },
            6 => Self::Held(state.facts.vm_config.clone()),
            7 => Self::Held(state.facts.config.clone()),
            5 => match &state.grpc.delivery {
                Some(GrpcEvent::Message(bytes)) => Self::Held(bytes.clone()),
                _ => Self::Absent,
            },
            8 => Self::Absent,
            _ => return Err(bad("no such buffer")),
        })
    }
}

pub(super) fn get(guest: &mut Guest<'_>, buffer: u32, start: u32, max: u32, out_ptr: u32, out_len: u32) -> Called {
    match Source::from_abi(buffer, guest)? {
        Source::Absent => Err(Status::NotFound.into()),
        Source::Held(bytes) => give_bytes(guest, part(&bytes, start, max), out_ptr, out_len),
        Source::Body(buffer) => {
            let given = with_exchange(guest, |guest, exchange| {
                let body = exchange.body(buffer).ok_or(Status::NotFound)?;
                give_bytes(guest, part(body.as_slice(), start, max), out_ptr, out_len)
            });
            given?.ok_or_else(|| Status::NotFound.into())
        }
    }
}

/// The configuration of the phase (ABI 0.1.0): the VM's while it starts, the plugin's afterwards.
pub(super) fn configuration(guest: &mut Guest<'_>, out_ptr: u32, out_len: u32) -> Called {
    let configuration = guest.data().configuration.clone();
    give_bytes(guest, &configuration, out_ptr, out_len)
}

pub(super) fn status(guest: &mut Guest<'_>, buffer: u32, out_len: u32, out_flags: u32) -> Called {
    let len = match Source::from_abi(buffer, guest)? {
        Source::Absent => None,
        Source::Held(bytes) => Some(bytes.len()),
        Source::Body(buffer) => {
            with_exchange(guest, |_, exchange| Ok(exchange.body(buffer).map(|body| body.len())))?.flatten()
        }
    };
    let len = len.ok_or(Status::NotFound)?;
    write_u32(guest, out_len, u32::try_from(len).unwrap_or(u32::MAX))?;
    write_u32(guest, out_flags, 0)
}

pub(super) fn set(guest: &mut Guest<'_>, buffer: u32, start: u32, len: u32, ptr: u32, data_len: u32) -> Called {
    let Source::Body(buffer) = Source::from_abi(buffer, guest)? else { return Err(bad("this buffer is read-only")) };
    let compat = guest.data().facts.compat;
    let set = with_exchange(guest, |guest, exchange| {
        let data = read(guest, ptr, data_len)?;
        edit(exchange, compat, buffer, start, len, data)
    });
    set?.ok_or_else(|| bad("no exchange to write to in this context"))
}

fn edit(exchange: &mut dyn Exchange, compat: Compat, buffer: Buffer, start: u32, len: u32, data: &[u8]) -> Called {
    if exchange.body_has_gone(buffer) {
        return Err(bad("the body has gone on already"));
    }
    let body = exchange.body(buffer).ok_or_else(|| bad("no body to write to in this phase"))?;
    let start = usize::try_from(start).unwrap_or(usize::MAX);
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let (start, len, data) = compat.edit(start, len, data);
    let replaced = body.len().saturating_sub(start).min(len);
    if data.len() > replaced && body.len() - replaced + data.len() > MAX_EDITED_BODY {
        return Err(bad("the edited body would be larger than 64 MiB"));
    }
    body.splice(start, len, data);
    Ok(())
}

/// At most `max` bytes from `start`; nothing beyond the end. Envoy refuses a sum that overflows; reading "all the rest" is harmless.
fn part(bytes: &[u8], start: u32, max: u32) -> &[u8] {
    let start = usize::try_from(start).unwrap_or(usize::MAX).min(bytes.len());
    let end = start.saturating_add(usize::try_from(max).unwrap_or(usize::MAX)).min(bytes.len());
    &bytes[start..end]
}
