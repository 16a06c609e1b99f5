//! The header of a response, as it comes (RFC 9112).

use std::mem::MaybeUninit;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderValue, Version, header};
use httparse::{ParserConfig, Status};
use pingora::http::{IntoCaseHeaderName, ResponseHeader};
use pingora::{Error, ErrorType, OrErr, Result};

/// The most fields a response may have.
const FIELDS_MAX: usize = 256;

/// How many fields a response gets on its way to the client, mostly at most. Maps that have room for them need not grow.
const FIELDS_ADDED: usize = 6;

/// Takes a whole response header from the front of `buffer`; `None` = it is not whole yet.
pub(super) fn parse(buffer: &mut BytesMut) -> Result<Option<Box<ResponseHeader>>> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS_MAX];
    let mut parsed = httparse::Response::new(&mut []);
    let mut config = ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    let length = match config.parse_response_with_uninit_headers(&mut parsed, buffer, &mut fields) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(Error::because(ErrorType::InvalidHTTPHeader, "in the response header", error)),
    };
    let (code, room) = (parsed.code.unwrap_or_default(), Some(parsed.headers.len() + FIELDS_ADDED));
    // What keeps the case of names is a second map of them, to be filled, searched and dropped: only where there is something to keep.
    let usual = parsed.headers.iter().all(|field| is_usual(field.name.as_bytes()));
    let response = if usual { ResponseHeader::build_no_case(code, room) } else { ResponseHeader::build(code, room) };
    let mut response = Box::new(response?);
    response.set_version(if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 });
    response.set_reason_phrase(parsed.reason)?;

    // Where each name and value lies, so that they can be slices of what is taken.
    let base = buffer.as_ptr().addr();
    let place = |text: &[u8]| (text.as_ptr().addr() - base, text.len());
    let places: smallvec::SmallVec<[_; 32]> =
        parsed.headers.iter().map(|field| (place(field.name.as_bytes()), place(field.value))).collect();
    let head = buffer.split_to(length).freeze();
    let slice = |(at, length): (usize, usize)| -> Bytes {
        // An empty one may lie anywhere.
        if length == 0 { Bytes::new() } else { head.slice(at..at + length) }
    };
    for (name, value) in places {
        let value =
            HeaderValue::from_maybe_shared(slice(value)).or_err(ErrorType::InvalidHTTPHeader, "a field's value")?;
        response.append_header(slice(name).into_case_header_name(), value)?;
    }
    Ok(Some(response))
}

/// Names that are written so where no other way is kept; all others are in lower case then.
const USUAL: [&[u8]; 12] = [
    b"Accept-Ranges",
    b"Age",
    b"Cache-Control",
    b"Connection",
    b"Content-Encoding",
    b"Content-Length",
    b"Content-Type",
    b"Date",
    b"Host",
    b"Server",
    b"Set-Cookie",
    b"Transfer-Encoding",
];

/// Whether a name is written as everybody writes it, so that how it was written need not be kept.
pub(super) fn is_usual(name: &[u8]) -> bool {
    !name.iter().any(u8::is_ascii_uppercase) || USUAL.contains(&name)
}

/// Whether the connection stays usable after this response (RFC 9112, 9.3), as far as its fields say.
pub(super) fn keeps(response: &ResponseHeader) -> bool {
    let mut keep_alive = response.version == Version::HTTP_11;
    for value in response.headers.get_all(header::CONNECTION) {
        for option in value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            if option.eq_ignore_ascii_case(b"close") {
                return false;
            }
            keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    keep_alive
}

/// How long the connection is kept on the other side, where that is told (`Keep-Alive: timeout=5`). A second less: the other side may close
/// it just as we send on it.
pub(super) fn kept_for(response: &ResponseHeader) -> Option<Duration> {
    let told = response.headers.get("keep-alive")?.to_str().ok()?;
    let seconds = told.split(',').find_map(|part| part.trim().strip_prefix("timeout=")?.parse::<u64>().ok())?;
    Some(Duration::from_secs(seconds.saturating_sub(1)))
}

/// How long the body is (RFC 9110, 8.6); `None` = that is not told.
pub(super) fn length(response: &ResponseHeader) -> Result<Option<u64>> {
    let mut found = None;
    for value in response.headers.get_all(header::CONTENT_LENGTH) {
        for length in value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
            let digits = std::str::from_utf8(length).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let length = digits.and_then(|digits| digits.parse::<u64>().ok());
            if length.is_none() || found.is_some_and(|found| Some(found) != length) {
                return Err(Error::explain(ErrorType::InvalidHTTPHeader, "Content-Length is no length, or several"));
            }
            found = length;
        }
    }
    Ok(found)
}

/// Whether the body comes in chunks; `None` = its coding is not told, so that it is not.
pub(super) fn chunked(response: &ResponseHeader) -> Option<bool> {
    let last = response.headers.get_all(header::TRANSFER_ENCODING).iter().next_back()?;
    let coding = last.as_bytes().rsplit(|&byte| byte == b',').next().unwrap_or_default();
    Some(coding.trim_ascii().eq_ignore_ascii_case(b"chunked"))
}

/// Takes a line with its CRLF from the front of `buffer`; `None` = it is not whole yet.
pub(super) fn line(buffer: &mut BytesMut, most: usize) -> Result<Option<usize>> {
    match memchr::memchr(b'\n', buffer) {
        Some(end) if end > 0 && buffer[end - 1] == b'\r' => {
            buffer.advance(end + 1);
            Ok(Some(end - 1))
        }
        Some(_) => Err(Error::explain(ErrorType::InvalidHTTPHeader, "a line of a chunked body ends without CR")),
        None if buffer.len() > most => {
            Err(Error::explain(ErrorType::InvalidHTTPHeader, "a line of a chunked body is too long"))
        }
        None => Ok(None),
    }
}
