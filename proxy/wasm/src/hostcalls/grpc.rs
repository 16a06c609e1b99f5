//! gRPC to upstreams: calls and streams. Every status given here is one that the Rust SDK takes without a panic, but for what only a
//! broken guest can cause.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};

use crate::abi::memory::{Guest, read, write_u32};
use crate::abi::serialize::decode_pairs;
use crate::abi::status::{Called, Fail, Status, bad};
use crate::grpc::{GrpcId, GrpcKind, GrpcRequest, MAX_GRPC_MESSAGE};
use crate::host::Host;
use crate::limits::DEFAULT_CALLOUT_TIMEOUT;

/// Headers that are the host's business. Given by a guest, they are left out.
const OURS: &[&str] = &[
    "connection",
    "content-length",
    "content-type",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[allow(clippy::too_many_arguments, reason = "the ABI's parameters, in its order")]
pub(super) fn call(
    guest: &mut Guest<'_>,
    upstream: u32,
    upstream_len: u32,
    service: u32,
    service_len: u32,
    method: u32,
    method_len: u32,
    metadata: u32,
    metadata_len: u32,
    message: u32,
    message_len: u32,
    timeout_ms: u32,
    out_id: u32,
) -> Called {
    let timeout = match timeout_ms {
        0 => DEFAULT_CALLOUT_TIMEOUT,
        ms => Duration::from_millis(ms.into()),
    };
    let parts = [(upstream, upstream_len), (service, service_len), (method, method_len), (metadata, metadata_len)];
    let request = request(guest, parts, Some(timeout))?;
    let message = read(guest, message, message_len)?;
    if message.len() > MAX_GRPC_MESSAGE {
        return Err(Fail::Because(Status::InternalFailure, "the message is larger than 4 MiB"));
    }
    let message = Bytes::copy_from_slice(message);
    open(guest, GrpcKind::Call, request, Some(message), out_id)
}

#[allow(clippy::too_many_arguments, reason = "the ABI's parameters, in its order")]
pub(super) fn stream(
    guest: &mut Guest<'_>,
    upstream: u32,
    upstream_len: u32,
    service: u32,
    service_len: u32,
    method: u32,
    method_len: u32,
    metadata: u32,
    metadata_len: u32,
    out_id: u32,
) -> Called {
    let parts = [(upstream, upstream_len), (service, service_len), (method, method_len), (metadata, metadata_len)];
    let request = request(guest, parts, None)?;
    open(guest, GrpcKind::Stream, request, None, out_id)
}

/// A message for a stream, and the end of what is sent if `end` is not 0. An empty message is one, too: to only end, there is `close`.
pub(super) fn send(guest: &mut Guest<'_>, id: u32, message: u32, message_len: u32, end: u32) -> Called {
    let message = read(guest, message, message_len)?;
    if message.len() > MAX_GRPC_MESSAGE {
        return Err(bad("the message is larger than 4 MiB"));
    }
    let message = Bytes::copy_from_slice(message);
    guest.data_mut().grpc_send(GrpcId(id), message, end != 0)
}

pub(super) fn close(guest: &mut Guest<'_>, id: u32) -> Called {
    guest.data_mut().grpc_close(GrpcId(id))
}

pub(super) fn cancel(guest: &mut Guest<'_>, id: u32) -> Called {
    guest.data_mut().grpc_cancel(GrpcId(id))
}

fn open(guest: &mut Guest<'_>, kind: GrpcKind, request: GrpcRequest, message: Option<Bytes>, out_id: u32) -> Called {
    write_u32(guest, out_id, 0)?; // a bad place is found before anything is counted
    let id = guest.data_mut().grpc_open(kind, request, message);
    let id = id.ok_or(Fail::Because(Status::InternalFailure, "too many calls at once"))?;
    write_u32(guest, out_id, id.0)
}

/// What guests cannot avoid to get right is answered with `PARSE_FAILURE`, the one refusal SDKs expect here.
fn request(guest: &mut Guest<'_>, parts: [(u32, u32); 4], timeout: Option<Duration>) -> Called<GrpcRequest> {
    let refused = |reason| Fail::Because(Status::ParseFailure, reason);
    let host = guest.data().facts.host.clone();
    let [upstream, service, method, metadata] = parts;

    let target = Target::of(host.as_ref(), read(guest, upstream.0, upstream.1)?);
    let Target { upstream, mut authority } = target.ok_or_else(|| refused("no such upstream"))?;
    let service = name(read(guest, service.0, service.1)?).ok_or_else(|| refused("not the name of a service"))?;
    let method = name(read(guest, method.0, method.1)?).ok_or_else(|| refused("not the name of a method"))?;

    let pairs = decode_pairs(read(guest, metadata.0, metadata.1)?).map_err(|_| refused("not a header map"))?;
    let mut metadata = Vec::with_capacity(pairs.len());
    for (name, value) in pairs {
        if name == b":authority" {
            let value = std::str::from_utf8(value).map_err(|_| refused("invalid :authority"))?;
            authority = Some(value.to_owned());
        }
        if name.starts_with(b":") {
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|_| refused("invalid name in the metadata"))?;
        if !OURS.contains(&name.as_str()) {
            let value = HeaderValue::from_bytes(value).map_err(|_| refused("invalid value in the metadata"))?;
            metadata.push((name, value));
        }
    }
    if authority.as_ref().is_some_and(|authority| authority.parse::<http::uri::Authority>().is_err()) {
        return Err(refused("invalid authority"));
    }
    Ok(GrpcRequest { upstream, authority, service, method, metadata, timeout })
}

/// A name that can stand in a path as it is.
fn name(bytes: &[u8]) -> Option<String> {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
    if bytes.is_empty() || !bytes.iter().all(fits) {
        return None;
    }
    String::from_utf8(bytes.to_vec()).ok()
}

/// Where to send it.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    upstream: String,
    authority: Option<String>,
}

impl Target {
    /// An upstream by its name, or by Envoy's `GrpcService` message, of which `envoy_grpc` counts: its `cluster_name` and `authority`.
    fn of(host: &dyn Host, bytes: &[u8]) -> Option<Self> {
        if let Ok(name) = std::str::from_utf8(bytes)
            && host.has_upstream(name)
        {
            return Some(Self { upstream: name.to_owned(), authority: None });
        }
        let envoy_grpc = field(bytes, 1)??;
        let upstream = std::str::from_utf8(field(envoy_grpc, 1)??).ok()?;
        let authority = match field(envoy_grpc, 2)? {
            None | Some([]) => None,
            Some(authority) => Some(std::str::from_utf8(authority).ok()?.to_owned()),
        };
        host.has_upstream(upstream).then(|| Self { upstream: upstream.to_owned(), authority })
    }
}

/// The last field of this number in a protobuf message, if it is one of bytes. `None`: not a message; `Some(None)`: no such field.
fn field(mut message: &[u8], wanted: u64) -> Option<Option<&[u8]>> {
    let mut found = None;
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let skipped = match key & 7 {
            0 => {
                varint(&mut message)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut message)?).ok()?,
            5 => 4,
            _ => return None, // groups have been gone for long
        };
        let (bytes, rest) = message.split_at_checked(skipped)?;
        if key >> 3 == wanted && key & 7 == 2 {
            found = Some(bytes);
        }
        message = rest;
    }
    Some(found)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `envoy_grpc: { cluster_name: "auth", authority: "a.example" }`, then a timeout of 1 s.
    const SERVICE: &[u8] = b"\x0a\x11\x0a\x04auth\x12\x09a.example\x1a\x02\x08\x01";

    #[test]
    fn a_field_of_a_message_is_found_behind_others_and_nothing_is_read_past_the_end() {
        let envoy_grpc = &SERVICE[2..19];
        for (message, number, expected) in [
            (SERVICE, 1, Some(Some(envoy_grpc))),
            (envoy_grpc, 1, Some(Some(&b"auth"[..]))),
            (envoy_grpc, 2, Some(Some(b"a.example"))),
            (SERVICE, 3, Some(Some(b"\x08\x01"))),
            (SERVICE, 4, Some(None)),
            (b"", 1, Some(None)),
            (b"\x08\x96\x01\x0a\x01x", 1, Some(Some(b"x"))),
            (b"\x0d1234\x0a\x01x", 1, Some(Some(b"x"))),
            (b"\x0912345678\x0a\x01x", 1, Some(Some(b"x"))),
            (b"\x0a\x01x\x0a\x01y", 1, Some(Some(b"y"))),
            (b"\x0a\x05x", 1, None),
            (b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 1, None),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 1, None),
            (b"\x0b\x0c", 1, None),
            (b"auth", 1, None),
        ] {
            assert_eq!(field(message, number), expected, "{message:?} {number}");
        }
    }

    #[test]
    fn a_name_stands_in_a_path_as_it_is() {
        assert_eq!(name(b"pkg.v1.My_Service-2").as_deref(), Some("pkg.v1.My_Service-2"));
        for bad in [&b""[..], b"a/b", b"a b", b"a?b", b"a\r\nb", b"\xff", "\u{e9}".as_bytes()] {
            assert_eq!(name(bad), None, "{bad:?}");
        }
    }
}
