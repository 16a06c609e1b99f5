//! What nodes say to each other beside a request and its response, in header fields that never leave the cluster.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};
use pingora::http::RequestHeader;

/// Which route the request is for: the hash of what has to be the same about it, in hexadecimal digits.
pub(crate) const ROUTE: HeaderName = HeaderName::from_static("selvedge-route");
/// The primary key of the request, in hexadecimal digits. Filters that only the first node runs may have had a part in it.
pub(crate) const KEY: HeaderName = HeaderName::from_static("selvedge-key");
/// What of the query the key is made of, if not of the whole: as a response has said it in `No-Vary-Search`.
pub(crate) const SEARCH: HeaderName = HeaderName::from_static("selvedge-search");
/// The nodes the request has been at, the first one first.
pub(crate) const HOPS: HeaderName = HeaderName::from_static("selvedge-hops");
/// Which circle the asked node is in, as the asking one sees it: `peers` or `region`.
pub(crate) const CIRCLE: HeaderName = HeaderName::from_static("selvedge-circle");
/// How many milliseconds the asking node waits for the response to begin.
pub(crate) const WAIT: HeaderName = HeaderName::from_static("selvedge-wait");
/// The upstream that a filter has chosen.
pub(crate) const UPSTREAM: HeaderName = HeaderName::from_static("selvedge-upstream");
/// The lifetime that a filter wants, in milliseconds.
pub(crate) const LIFETIME: HeaderName = HeaderName::from_static("selvedge-lifetime");
/// The last purge or change that the asking node knows of, as an epoch: what was fetched by then is not wanted.
pub(crate) const NEWER: HeaderName = HeaderName::from_static("selvedge-newer-than");
/// The slice of the object that is wanted: its first byte, a slash, and its length at most.
pub(crate) const SLICE: HeaderName = HeaderName::from_static("selvedge-slice");
/// In responses: that this is the origin's answer, or one that is stored, and no failure of the node's own. `hit` or `miss`.
pub(crate) const ANSWER: HeaderName = HeaderName::from_static("selvedge-answer");
/// In responses: their `Date`, which the connection between nodes writes anew.
pub(crate) const DATE: HeaderName = HeaderName::from_static("selvedge-date");
/// In responses: the epoch at which their fetch from the origin began; purges are judged by it.
pub(crate) const EPOCH: HeaderName = HeaderName::from_static("selvedge-epoch");
/// In messages: the node that sends it.
pub(crate) const FROM: HeaderName = HeaderName::from_static("selvedge-from");

/// Those of requests for another node's answer.
const OF_REQUESTS: [HeaderName; 10] = [ROUTE, KEY, SEARCH, HOPS, CIRCLE, WAIT, UPSTREAM, LIFETIME, NEWER, SLICE];

/// How many nodes a request may have been at. There are three ways on, and each is taken once.
pub(crate) const HOPS_MAX: usize = 8;

/// Takes all of them out of a request: nobody outside writes them, and nobody outside reads them.
pub(crate) fn strip(request: &mut RequestHeader) {
    for name in &OF_REQUESTS {
        request.remove_header(name);
    }
}

/// 16 bytes as they are written.
pub(crate) fn hex(bytes: &[u8; 16]) -> String {
    let mut text = String::with_capacity(32);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
    }
    text
}

/// 16 bytes as they were written.
pub(crate) fn unhex(text: &[u8]) -> Option<[u8; 16]> {
    let text = std::str::from_utf8(text).ok().filter(|text| text.len() == 32)?;
    let mut bytes = [0; 16];
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(digits[0])? << 4 | digit(digits[1])?;
    }
    Some(bytes)
}

/// The one value of a field; `None` if it is not there, or more than once.
pub(crate) fn one<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    let mut values = headers.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// The number in a field.
pub(crate) fn number(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    number_in(one(headers, name))
}

/// The number in a value.
pub(crate) fn number_in(value: Option<&HeaderValue>) -> Option<u64> {
    let text = value?.to_str().ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The nodes in [`HOPS`]; `None` if that is not what it should be.
pub(crate) fn hops(headers: &HeaderMap) -> Option<Vec<String>> {
    let text = one(headers, &HOPS)?.to_str().ok()?;
    let hops: Vec<String> = text.split(',').map(|hop| hop.trim().to_owned()).collect();
    let is_name = |hop: &String| !hop.is_empty() && hop.len() <= 64;
    (hops.len() <= HOPS_MAX && hops.iter().all(is_name)).then_some(hops)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_are_32_digits() {
        for text in ["", "00", "000102030405060708090a0b0c0d0e0", "000102030405060708090a0b0c0d0e0g", "é"] {
            assert_eq!(unhex(text.as_bytes()), None, "{text}");
        }
        assert_eq!(unhex(b"000102030405060708090A0b0c0d0eFf").map(|bytes| (bytes[1], bytes[15])), Some((1, 255)));
    }

    #[test]
    fn hops_are_names() {
        let mut headers = HeaderMap::new();
        assert_eq!(hops(&headers), None);
        for (text, expected) in [
            ("a", Some(vec!["a"])),
            ("a, b.c", Some(vec!["a", "b.c"])),
            ("", None),
            ("a,,b", None),
            ("a,b,c,d,e,f,g,h,i", None),
        ] {
            headers.insert(HOPS, HeaderValue::from_static(text));
            let expected = expected.map(|names| names.into_iter().map(str::to_owned).collect());
            assert_eq!(hops(&headers), expected, "{text}");
        }
        headers.append(HOPS, HeaderValue::from_static("b"));
        assert_eq!(hops(&headers), None, "written twice");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(bytes in any::<[u8; 16]>()) {
            prop_assert_eq!(unhex(hex(&bytes).as_bytes()), Some(bytes));
        }
    }
}
