//! The form of gRPC on the wire: message prefixes, timeouts, metadata. No sockets.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, header};
use selvedge_wasm::{GrpcStatus, MAX_GRPC_MESSAGE};

/// A flag and four bytes of length stand before every message.
const PREFIX: usize = 5;

/// What stands before a message of this length.
pub(super) fn prefix(len: usize) -> Bytes {
    let mut prefix = BytesMut::with_capacity(PREFIX);
    prefix.put_u8(0); // not compressed
    prefix.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    prefix.freeze()
}

/// Takes messages out of a body that comes in pieces. Holds one message at most, and the piece it came with.
#[derive(Default)]
pub(super) struct Messages {
    buffer: BytesMut,
}

impl Messages {
    /// The next piece of the body.
    pub(super) fn push(&mut self, data: Bytes) {
        self.buffer.extend_from_slice(&data);
    }

    /// The next whole message, if there is one.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, GrpcStatus> {
        let Some((&[flag, a, b, c, d], _)) = self.buffer.split_first_chunk::<PREFIX>() else { return Ok(None) };
        if flag != 0 {
            // We offer no encoding, so a server must not use one.
            return Err(GrpcStatus::new(GrpcStatus::INTERNAL, "the server sent a compressed message, unasked"));
        }
        let len = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if len > MAX_GRPC_MESSAGE {
            let message = format!("the server sent a message of {len} bytes, more than {MAX_GRPC_MESSAGE}");
            return Err(GrpcStatus::new(GrpcStatus::RESOURCE_EXHAUSTED, message));
        }
        if self.buffer.len() - PREFIX < len {
            return Ok(None);
        }
        self.buffer.advance(PREFIX);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }

    /// After the last piece.
    pub(super) fn end(&self) -> Result<(), GrpcStatus> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        Err(GrpcStatus::new(GrpcStatus::INTERNAL, "the server ended within a message"))
    }
}

/// `grpc-timeout`: at most eight digits, and a unit.
pub(super) fn timeout(timeout: Duration) -> HeaderValue {
    let (millis, seconds) = (timeout.as_millis(), timeout.as_secs());
    let text = match millis {
        ..=99_999_999 => format!("{millis}m"),
        _ => format!("{}S", seconds.min(99_999_999)),
    };
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("0m"))
}

/// Whether a response says that it is gRPC: `application/grpc`, maybe with the name of the messages' encoding (`+proto`).
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return false };
    let value = value.as_bytes();
    match value.strip_prefix(b"application/grpc") {
        Some(rest) => rest.is_empty() || rest.starts_with(b"+") || rest.starts_with(b";"),
        None => false,
    }
}

/// Headers as guests see them.
pub(super) fn metadata(headers: &HeaderMap) -> Vec<(Bytes, Bytes)> {
    let bytes = Bytes::copy_from_slice;
    headers.iter().map(|(name, value)| (bytes(name.as_str().as_bytes()), bytes(value.as_bytes()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_the_body_is_cut() {
        let body = b"\0\0\0\0\x03one\0\0\0\0\0\0\0\0\0\x05three";
        for piece in 1..=body.len() {
            let (mut messages, mut found) = (Messages::default(), Vec::new());
            for piece in body.chunks(piece) {
                messages.push(Bytes::copy_from_slice(piece));
                while let Some(message) = messages.next().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, ["one", "", "three"], "in pieces of {piece}");
            assert_eq!(messages.end(), Ok(()));
        }
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for (body, code) in [
            (&b"\x01\0\0\0\x01x"[..], GrpcStatus::INTERNAL),
            (b"\x80\0\0\0\x01x", GrpcStatus::INTERNAL),
            (b"\0\0\x40\0\x01", GrpcStatus::RESOURCE_EXHAUSTED),
            (b"\0\xff\xff\xff\xff", GrpcStatus::RESOURCE_EXHAUSTED),
        ] {
            let mut messages = Messages::default();
            messages.push(Bytes::from_static(body));
            assert_eq!(messages.next().unwrap_err().code, code, "{body:?}");
        }
        for cut in [&b"\0"[..], b"\0\0\0\0\x02x"] {
            let mut messages = Messages::default();
            messages.push(Bytes::from_static(cut));
            assert_eq!(messages.next(), Ok(None));
            assert_eq!(messages.end().unwrap_err().code, GrpcStatus::INTERNAL);
        }
    }

    #[test]
    fn a_prefix_is_five_bytes() {
        assert_eq!(&prefix(0x0102_0304)[..], [0, 1, 2, 3, 4]);
    }

    #[test]
    fn timeouts_have_eight_digits_at_most() {
        for (given, sent) in [
            (Duration::from_millis(250), "250m"),
            (Duration::from_millis(99_999_999), "99999999m"),
            (Duration::from_millis(100_000_000), "100000S"),
            (Duration::from_millis(u32::MAX.into()), "4294967S"),
        ] {
            assert_eq!(timeout(given), sent);
        }
    }

    #[test]
    fn grpc_is_known_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/json", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(is_grpc(&headers), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
