//! Header values that are not UTF-8, as filters see them. Many guest SDKs die over one, so a single client could take a filter down.

use std::borrow::Cow;
use std::fmt::Write;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use pingora::http::RequestHeader;
use selvedge_config::HeaderEncoding;
use selvedge_wasm::LocalReply;

use super::ExchangeState;
use crate::chain::Direction;
use crate::plan::ChainFilter;

/// The answer in place of a header that a filter must not see: it rejects values that are not UTF-8, and there is one.
pub(crate) fn refusal(
    filter: &ChainFilter,
    direction: Direction,
    request: &RequestHeader,
    state: &ExchangeState,
) -> Option<LocalReply> {
    if filter.header_encoding != HeaderEncoding::Reject {
        return None;
    }
    let is_text = |bytes: &[u8]| std::str::from_utf8(bytes).is_ok();
    let are_text = |headers: &HeaderMap| headers.values().all(|value| is_text(value.as_bytes()));
    let (status, text) = match direction {
        Direction::Request if is_text(request.raw_path()) && are_text(&request.headers) => return None,
        Direction::Request => (400, "a header value is not UTF-8\n"),
        Direction::Response if state.response.as_ref().is_none_or(|response| are_text(&response.headers)) => {
            return None;
        }
        Direction::Response => (502, "a header value of the response is not UTF-8\n"),
    };
    tracing::debug!(filter = %filter.name, ?direction, "a header value is not UTF-8, and the filter rejects those");
    Some(LocalReply {
        status,
        details: "header_not_utf8".to_owned(),
        body: Bytes::from_static(text.as_bytes()),
        headers: vec![
            (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        ],
        grpc_status: None,
    })
}

/// A header value as it is shown to a filter with this policy: bytes that belong to no UTF-8 character as `%XX`, everything else as it is.
///
/// A filter that rejects such values is still shown escaped ones where there is nothing left to reject: in trailers, and in the request
/// header while the response passes.
pub(super) fn shown(encoding: HeaderEncoding, value: &[u8]) -> Cow<'_, [u8]> {
    match encoding {
        HeaderEncoding::Pass => Cow::Borrowed(value),
        HeaderEncoding::Escape | HeaderEncoding::Reject if std::str::from_utf8(value).is_ok() => Cow::Borrowed(value),
        HeaderEncoding::Escape | HeaderEncoding::Reject => Cow::Owned(escaped(value)),
    }
}

/// What a filter means by writing `value`: one of the `current` values, if it is what that one is shown as, else `value` itself. A filter
/// that copies a header from one place to another, or the whole map, must not change bytes it could not see.
pub(super) fn meant<'v, C: Iterator<Item = &'v [u8]>>(
    encoding: HeaderEncoding,
    value: &'v [u8],
    current: impl FnOnce() -> C,
) -> &'v [u8] {
    if encoding == HeaderEncoding::Pass || !value.contains(&b'%') {
        return value;
    }
    current().find(|raw| std::str::from_utf8(raw).is_err() && escaped(raw) == value).unwrap_or(value)
}

fn escaped(value: &[u8]) -> Vec<u8> {
    let mut text = String::with_capacity(value.len() + 16);
    for chunk in value.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "%{byte:02X}"); // writing to a String cannot fail
        }
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_no_utf8_is_escaped() {
        for (value, expected) in [
            (&b"plain"[..], "plain"),
            ("gr\u{fc}n".as_bytes(), "gr\u{fc}n"),
            (b"100%", "100%"),
            (b"gr\xfcn", "gr%FCn"),
            (b"\xff\xfe", "%FF%FE"),
            ("\u{fc}".as_bytes().split_at(1).0, "%C3"),
            (b"\xc3\xbc\xff", "\u{fc}%FF"),
        ] {
            assert_eq!(&*shown(HeaderEncoding::Escape, value), expected.as_bytes());
            assert_eq!(&*shown(HeaderEncoding::Reject, value), expected.as_bytes());
            assert_eq!(&*shown(HeaderEncoding::Pass, value), value);
        }
    }

    #[test]
    fn what_was_shown_stands_for_what_is_there() {
        let current = || [&b"a"[..], b"gr\xfcn", b"x%41"].into_iter();
        let meant = |encoding, value: &'static [u8]| meant(encoding, value, current);
        assert_eq!(meant(HeaderEncoding::Escape, b"gr%FCn"), b"gr\xfcn");
        assert_eq!(meant(HeaderEncoding::Reject, b"gr%FCn"), b"gr\xfcn");
        assert_eq!(meant(HeaderEncoding::Pass, b"gr%FCn"), b"gr%FCn");
        assert_eq!(meant(HeaderEncoding::Escape, b"gr%FC"), b"gr%FC");
        assert_eq!(meant(HeaderEncoding::Escape, b"x%41"), b"x%41");
    }
}
