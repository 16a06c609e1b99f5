//! Responses are compressed on their way out, on routes with `compress`, for clients that accept it (RFC 9110, 8.4 and 12.5.3).
//!
//! It is the last thing that happens to a response: filters see, and the cache keeps, what the origin sent. Pingora's own module for this
//! stands before the filters and knows neither what is worth it nor what is stored, so it is not used.
//!
//! ```text
//! origin or cache ──> filters ──> outlet ──> client        a hit:  the stored encoding, if there is one
//!                                   │                              else compressed once, and offered to the cache
//!                                   └── encodes                    else: compressed, and flushed whenever the origin pauses
//! ```

mod accept;
mod encoder;
pub(crate) mod outlet;

use std::sync::Arc;

use crate::telemetry::counters::Counters;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_NONE_MATCH,
    VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use selvedge_config::{Compress as Written, CompressLevels, Encoding, MediaType};

/// Digests of what is sent, or of the representation (RFC 9530): of other bytes than those that leave.
const DIGESTS: [HeaderName; 4] = [
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("digest"),
    HeaderName::from_static("content-md5"),
];

/// How a route compresses.
#[derive(Debug)]
pub(crate) struct Compress {
    encodings: Vec<Encoding>,
    types: Vec<MediaType>,
    min_size: u64,
    levels: CompressLevels,
    counters: Arc<Counters>,
}

/// What becomes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is no matter of compression.
    Other,
    /// Other clients get it compressed.
    Plain,
    /// This client gets it so.
    Encode(Encoding),
}

impl Compress {
    pub(crate) fn of(written: &Written, counters: &Arc<Counters>) -> Self {
        let Written { encodings, types, min_size, levels } = written;
        Self {
            encodings: encodings.clone(),
            types: types.clone(),
            min_size: min_size.bytes(),
            levels: *levels,
            counters: Arc::clone(counters),
        }
    }

    /// The encoding in which this client would like responses.
    pub(crate) fn wanted(&self, request: &RequestHeader) -> Option<Encoding> {
        // A client of HTTP/1.0 would have to be sent off after a body without a length.
        let knows_chunks = request.version > Version::HTTP_10;
        accept::preferred(&request.headers, &self.encodings).filter(|_| knows_chunks)
    }

    fn level(&self, encoding: Encoding) -> u16 {
        match encoding {
            Encoding::Zstd => self.levels.zstd,
            Encoding::Br => self.levels.br,
            Encoding::Gzip => self.levels.gzip,
        }
    }

    fn verdict(&self, response: &ResponseHeader, wanted: Option<Encoding>) -> Verdict {
        let headers = &response.headers;
        // What stands for a part of the plain bytes (RFC 9110, 14) stays as it is.
        let is_part = response.status == StatusCode::PARTIAL_CONTENT || headers.contains_key(CONTENT_RANGE);
        let is_worth_it = !response.status.is_informational()
            && !matches!(response.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            && is_plain(headers)
            && (is_part || length(headers).is_none_or(|length| length >= self.min_size))
            && self.is_of_type(headers)
            && !forbids_it(headers);
        match wanted {
            _ if !is_worth_it => Verdict::Other,
            Some(encoding) if !is_part => Verdict::Encode(encoding),
            _ => Verdict::Plain,
        }
    }

    fn is_of_type(&self, headers: &HeaderMap) -> bool {
        let Some(text) = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()) else { return false };
        let media_type = text.split(';').next().unwrap_or_default().trim();
        if media_type.bytes().any(|byte| byte.is_ascii_uppercase()) {
            let lower = media_type.to_ascii_lowercase();
            return self.types.iter().any(|known| known.matches(&lower));
        }
        self.types.iter().any(|known| known.matches(media_type))
    }
}

/// The name of an encoding in HTTP.
fn coding(encoding: Encoding) -> &'static str {
    match encoding {
        Encoding::Br => "br",
        Encoding::Zstd => "zstd",
        Encoding::Gzip => "gzip",
    }
}

/// Whether nobody has encoded it yet.
fn is_plain(headers: &HeaderMap) -> bool {
    headers.get_all(CONTENT_ENCODING).iter().all(|value| value.as_bytes().eq_ignore_ascii_case(b"identity"))
}

/// `no-transform` (RFC 9111, 5.2.2.6).
fn forbids_it(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(CACHE_CONTROL).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|directive| directive.trim().eq_ignore_ascii_case("no-transform"))
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Makes the header that of an encoded body, whose length is not known yet.
fn dress(response: &mut ResponseHeader, encoding: Encoding) -> Result<()> {
    response.insert_header(CONTENT_ENCODING, HeaderValue::from_static(coding(encoding)))?;
    response.remove_header(&CONTENT_LENGTH);
    // Ranges are of the plain bytes, which this client does not get.
    response.remove_header(&ACCEPT_RANGES);
    for name in &DIGESTS {
        response.remove_header(name);
    }
    weaken(response)
}

/// A strong tag is for the same bytes (RFC 9110, 8.8.1). Compressed by other levels, versions or nodes they are not the same, so what is
/// sent has a weak one. A suffix would keep it strong in name only; and what is weak here compares as equal with the origin's own tag,
/// where it may (13.1.2), here and there.
fn weaken(response: &mut ResponseHeader) -> Result<()> {
    let Some(tag) = response.headers.get(ETAG).filter(|tag| !tag.as_bytes().starts_with(b"W/")) else { return Ok(()) };
    let weak = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat());
    match weak {
        Ok(weak) => response.insert_header(ETAG, weak),
        Err(_) => Ok(()), // It was a value, so it still is one.
    }
}

/// Says that others get it otherwise (RFC 9110, 12.5.5).
fn varies(response: &mut ResponseHeader) -> Result<()> {
    let named = |line: &HeaderValue| {
        line.to_str().is_ok_and(|line| {
            line.split(',').map(str::trim).any(|name| name == "*" || name.eq_ignore_ascii_case("accept-encoding"))
        })
    };
    if response.headers.get_all(VARY).iter().any(named) {
        return Ok(());
    }
    response.append_header(VARY, HeaderValue::from_static("Accept-Encoding")).map(drop)
}

/// A 304 is about what the client has: where that was compressed, it has the weak form of the tag (RFC 9110, 15.4.5).
fn not_modified(request: &RequestHeader, response: &mut ResponseHeader) -> Result<()> {
    let Some(tag) = response.headers.get(ETAG).filter(|tag| tag.as_bytes().starts_with(b"\"")) else { return Ok(()) };
    let weak = [b"W/", tag.as_bytes()].concat();
    let mut lines = request.headers.get_all(IF_NONE_MATCH).iter();
    if lines.any(|line| memchr::memmem::find(line.as_bytes(), &weak).is_some()) {
        weaken(response)?;
        varies(response)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compress() -> Compress {
        Compress {
            encodings: vec![Encoding::Zstd, Encoding::Gzip],
            types: vec![MediaType::Prefix("text/".into()), MediaType::Suffix("+json".into())],
            min_size: 100,
            levels: CompressLevels::default(),
            counters: Arc::default(),
        }
    }

    fn response(status: u16, fields: &[(&'static str, &str)]) -> ResponseHeader {
        let mut header = ResponseHeader::build(status, None).unwrap();
        for (name, value) in fields {
            header.append_header(*name, *value).unwrap();
        }
        header
    }

    #[test]
    fn what_is_compressed() {
        use Verdict::{Encode, Other, Plain};
        let html = ("content-type", "Text/HTML; charset=utf-8");
        for (status, fields, wanted, plain) in [
            (200, &[html][..], Encode(Encoding::Gzip), Plain),
            (404, &[html], Encode(Encoding::Gzip), Plain),
            (200, &[html, ("content-length", "100")], Encode(Encoding::Gzip), Plain),
            (200, &[html, ("content-length", "99")], Other, Other),
            (200, &[html, ("content-encoding", "identity")], Encode(Encoding::Gzip), Plain),
            (200, &[html, ("content-encoding", "br")], Other, Other),
            (200, &[html, ("cache-control", "max-age=1, No-Transform")], Other, Other),
            (200, &[html, ("cache-control", "max-age=1"), ("cache-control", "no-transform")], Other, Other),
            (200, &[("content-type", "application/problem+json")], Encode(Encoding::Gzip), Plain),
            (200, &[("content-type", "text/event-stream")], Other, Other),
            (200, &[("content-type", "image/png")], Other, Other),
            (200, &[], Other, Other),
            (206, &[html, ("content-range", "bytes 0-9/2000"), ("content-length", "10")], Plain, Plain),
            (204, &[html], Other, Other),
            (304, &[html], Other, Other),
            (101, &[html], Other, Other),
        ] {
            let response = response(status, fields);
            assert_eq!(compress().verdict(&response, Some(Encoding::Gzip)), wanted, "{status} {fields:?}");
            assert_eq!(compress().verdict(&response, None), plain, "{status} {fields:?}");
        }
    }

    #[test]
    fn a_compressed_response_says_so() {
        let mut response = response(
            200,
            &[
                ("content-length", "200"),
                ("etag", "\"a\""),
                ("accept-ranges", "bytes"),
                ("content-digest", "x"),
                ("vary", "Origin"),
            ],
        );
        dress(&mut response, Encoding::Zstd).unwrap();
        varies(&mut response).unwrap();
        varies(&mut response).unwrap();
        let fields: Vec<_> =
            response.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
        let expected =
            [("etag", "W/\"a\""), ("vary", "Origin"), ("vary", "Accept-Encoding"), ("content-encoding", "zstd")];
        assert_eq!(fields.len(), expected.len(), "{fields:?}");
        assert!(expected.iter().all(|field| fields.contains(field)), "{fields:?}");
    }

    #[test]
    fn a_304_has_the_tag_that_the_client_has() {
        for (asked, tag) in [("W/\"a\"", "W/\"a\""), ("\"b\", W/\"a\"", "W/\"a\""), ("\"a\"", "\"a\""), ("*", "\"a\"")]
        {
            let mut request = RequestHeader::build("GET", b"/", None).unwrap();
            request.insert_header(IF_NONE_MATCH, asked).unwrap();
            let mut response = response(304, &[("etag", "\"a\"")]);
            not_modified(&request, &mut response).unwrap();
            assert_eq!(response.headers[ETAG], tag, "{asked}");
            assert_eq!(response.headers.contains_key(VARY), tag.starts_with('W'), "{asked}");
        }
    }
}
