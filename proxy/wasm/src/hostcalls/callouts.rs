//! Calls out of the exchange: HTTP calls to upstreams.

use std::time::Duration;

use bytes::Bytes;

use crate::abi::memory::{Guest, give_bytes, read, write_u32};
use crate::abi::serialize::decode_pairs;
use crate::abi::status::{Called, Fail, Status, bad};
use crate::effects::{Callout, Outgoing};
use crate::grpc::GrpcEvent;
use crate::limits::{DEFAULT_CALLOUT_TIMEOUT, MAX_CALLOUT_BODY};

/// The status code guests know for "the call got no answer" (`BrokenConnection` of the C++ host).
const CALL_FAILED: u32 = 11;

#[allow(clippy::too_many_arguments, reason = "the ABI's parameters, in its order")]
pub(super) fn http_call(
    guest: &mut Guest<'_>,
    upstream: u32,
    upstream_len: u32,
    headers: u32,
    headers_len: u32,
    body: u32,
    body_len: u32,
    trailers: u32,
    trailers_len: u32,
    timeout_ms: u32,
    out_id: u32,
) -> Called {
    let facts = guest.data().facts.clone();
    let upstream =
        std::str::from_utf8(read(guest, upstream, upstream_len)?).map_err(|_| bad("upstream name is not UTF-8"))?;
    if !facts.host.has_upstream(upstream) {
        return Err(bad("no such upstream"));
    }
    let upstream = upstream.to_owned();
    let headers = pairs(guest, headers, headers_len)?;
    if ![":method", ":path", ":authority"].iter().all(|name| headers.iter().any(|(n, _)| *n == *name)) {
        return Err(bad("an HTTP call needs :method, :path and :authority"));
    }
    let body = read(guest, body, body_len)?;
    if body.len() > MAX_CALLOUT_BODY {
        return Err(bad("the body of an HTTP call is larger than 4 MiB"));
    }
    let body = Bytes::copy_from_slice(body);
    let trailers = pairs(guest, trailers, trailers_len)?;
    let timeout = match i32::try_from(timeout_ms) {
        Ok(0) => DEFAULT_CALLOUT_TIMEOUT,
        Ok(_) => Duration::from_millis(timeout_ms.into()),
        Err(_) => return Err(bad("negative timeout")),
    };

    write_u32(guest, out_id, 0)?; // a bad place is found before anything is counted
    let state = guest.data_mut();
    let id = state.new_callout().ok_or(Fail::Because(Status::InternalFailure, "too many HTTP calls at once"))?;
    state.send(Outgoing::Http(Callout { id, upstream, headers, body, trailers, timeout }));
    write_u32(guest, out_id, id.0)
}

/// How the call being told of ended: 0 for what went well, and where nothing is being told.
pub(super) fn get_status(guest: &mut Guest<'_>, out_code: u32, out_ptr: u32, out_len: u32) -> Called {
    let state = guest.data();
    let (code, message) = match (&state.delivery, &state.grpc.delivery) {
        (Some(Err(failure)), _) => (CALL_FAILED, failure.to_string()),
        (_, Some(GrpcEvent::Closed(status))) => (status.code, status.message.clone()),
        _ => (0, String::new()),
    };
    write_u32(guest, out_code, code)?;
    give_bytes(guest, message.as_bytes(), out_ptr, out_len)
}

fn pairs(guest: &mut Guest<'_>, ptr: u32, len: u32) -> Called<Vec<(Bytes, Bytes)>> {
    let pairs = decode_pairs(read(guest, ptr, len)?).map_err(|_| bad("not a header map"))?;
    Ok(pairs.into_iter().map(|(name, value)| (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value))).collect())
}
