//! What steers the stream: local replies, resume, close; and the context, ticks and time.

use std::time::UNIX_EPOCH;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::abi::memory::{Guest, read, write_u64};
use crate::abi::serialize::decode_pairs;
use crate::abi::status::{Called, bad};
use crate::effects::LocalReply;
use crate::vm::Audience;

#[allow(clippy::too_many_arguments, reason = "the ABI's parameters, in its order")]
pub(super) fn send_local_response(
    guest: &mut Guest<'_>,
    status: u32,
    details: u32,
    details_len: u32,
    body: u32,
    body_len: u32,
    headers: u32,
    headers_len: u32,
    grpc_status: u32,
) -> Called {
    let status = u16::try_from(status).ok().filter(|status| (200..600).contains(status));
    let status = status.ok_or_else(|| bad("status of a local reply outside of 200 to 599"))?;
    let details = String::from_utf8_lossy(read(guest, details, details_len)?)
        .replace(|c: char| c.is_whitespace() || c.is_control(), "_");
    let body = Bytes::copy_from_slice(read(guest, body, body_len)?);
    let plugin = guest.data().facts.clone();
    let pairs = decode_pairs(read(guest, headers, headers_len)?).map_err(|_| bad("not a header map"))?;
    let headers = pairs.into_iter().filter_map(|(name, value)| valid_header(&plugin.name, name, value)).collect();
    let grpc_status = Some(grpc_status).filter(|status| *status <= 16);

    match guest.data_mut().audience() {
        Audience::Stream(effects) if effects.reply.is_none() => {
            // An answer ends the wait: a resume in the same call would race with it.
            (effects.resume_request, effects.resume_response) = (false, false);
            (effects.resume_downstream, effects.resume_upstream) = (false, false);
            plugin.stats.local_reply();
            effects.reply = Some(Box::new(LocalReply { status, details, body, headers, grpc_status }));
        }
        Audience::Stream(_) => tracing::debug!(plugin = %plugin.name, "second local reply in one call dropped"),
        Audience::Nobody => tracing::debug!(plugin = %plugin.name, "local reply without a stream to answer dropped"),
    }
    Ok(())
}

/// Pseudo headers are not a guest's to send. A name or value that HTTP does not allow is left out: it may carry a client's bytes, and
/// neither a split response nor a dead VM should come of it.
fn valid_header(plugin: &str, name: &[u8], value: &[u8]) -> Option<(HeaderName, HeaderValue)> {
    if name.starts_with(b":") {
        return None;
    }
    let header = HeaderName::from_bytes(name).ok().zip(HeaderValue::from_bytes(value).ok());
    if header.is_none() {
        tracing::warn!(plugin, name = %String::from_utf8_lossy(name), "invalid header left out of a local reply");
    }
    header
}

pub(super) fn continue_stream(guest: &mut Guest<'_>, stream: u32) -> Called {
    known_stream(stream)?;
    if let Audience::Stream(effects) = guest.data_mut().audience()
        && effects.reply.is_none()
    {
        match stream {
            0 => effects.resume_request = true,
            1 => effects.resume_response = true,
            2 => effects.resume_downstream = true,
            _ => effects.resume_upstream = true,
        }
    }
    Ok(())
}

/// ABI 0.1.0's names of `proxy_continue_stream`.
pub(super) fn continue_request(guest: &mut Guest<'_>) -> Called {
    continue_stream(guest, 0)
}

pub(super) fn continue_response(guest: &mut Guest<'_>) -> Called {
    continue_stream(guest, 1)
}

/// Asks for the route to be chosen anew (ABI 0.1.0). It is chosen before any filter runs and kept, so what the filter did to the path
/// reaches the upstream but selects no other one; anything but `OK` would make the SDK panic.
#[allow(clippy::unnecessary_wraps, reason = "the shape of every hostcall")]
pub(super) fn clear_route_cache(guest: &mut Guest<'_>) -> Called {
    guest.data().facts.warn_unserved("proxy_clear_route_cache");
    Ok(())
}

pub(super) fn close_stream(guest: &mut Guest<'_>, stream: u32) -> Called {
    known_stream(stream)?;
    if let Audience::Stream(effects) = guest.data_mut().audience() {
        effects.close = true;
    }
    Ok(())
}

/// HTTP request (0) and response (1), TCP downstream (2) and upstream (3). Those of the other protocol are no error: there is nothing to
/// resume, and whatever a guest names when it closes, it wants its own stream closed.
fn known_stream(stream: u32) -> Called {
    if stream <= 3 { Ok(()) } else { Err(bad("no such stream type")) }
}

pub(super) fn set_effective_context(guest: &mut Guest<'_>, context: u32) -> Called {
    let state = guest.data_mut();
    if !state.is_live(context) {
        return Err(bad("no such context"));
    }
    state.effective = context;
    Ok(())
}

pub(super) fn set_tick_period(guest: &mut Guest<'_>, period_ms: u32) -> Called {
    guest.data().ticks.set(period_ms);
    Ok(())
}

pub(super) fn current_time(guest: &mut Guest<'_>, out: u32) -> Called {
    let since = guest.data().facts.host.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    write_u64(guest, out, u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// Ends a context that answered "not yet" to `proxy_on_done`. For any other the ABI says `NOT_FOUND`, which would make the Rust SDK panic:
/// saying it twice, or too early, changes nothing.
#[allow(clippy::unnecessary_wraps, reason = "the shape of every hostcall")]
pub(super) fn done(guest: &mut Guest<'_>) -> Called {
    if !guest.data_mut().done() {
        tracing::debug!(plugin = %guest.data().facts.name, "proxy_done by a context that was not asked");
    }
    Ok(())
}
