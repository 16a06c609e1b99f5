//! Bodies that are made while they are sent.

use std::convert::Infallible;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use http::header::{ACCEPT_RANGES, CONTENT_LENGTH, TE, TRAILER};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use crate::answer::{Body, Refusal, hex, of_type, whole};
use crate::content::{self, Content};
use crate::query::Query;

/// The largest `/large`: 1 GiB.
const LARGEST: u64 = 1 << 30;
/// `/large` is made in pieces of this size.
const PIECE: u64 = 64 << 10;

/// The bytes that `/large` has at these offsets: incompressible, and the same in every run and for every size.
///
/// They are made in memory at once: for a large body, ask for them in pieces.
#[must_use]
pub fn large_bytes(range: Range<u64>) -> Vec<u8> {
    let mut bytes: Vec<u8> =
        (range.start / 8..range.end.div_ceil(8)).flat_map(|word| mix(word).to_le_bytes()).collect();
    // The words reach over both ends of the range by less than a word.
    let before = usize::try_from(range.start % 8).unwrap_or_default();
    bytes.drain(..before.min(bytes.len()));
    bytes.truncate(usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX));
    bytes
}

/// SplitMix64: a bijection whose outputs look random.
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// `/large`
pub(crate) fn large(query: Query<'_>, method: &Method, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
    let length = query.size("size", 10 << 20, LARGEST)?;
    let is_chunked = query.number("chunked", 0, 0..=1)? == 1;
    let open = |part: Range<u64>| {
        let pieces = (part.start..part.end).step_by(usize::try_from(PIECE).unwrap_or(usize::MAX));
        streamed(stream::iter(pieces.map(move |start| large_bytes(start..(start + PIECE).min(part.end)).into())))
    };
    let content = Content { content_type: "application/octet-stream", etag: format!("\"large-{length}\""), length };
    if !is_chunked {
        return Ok(content.answer(method, headers, open));
    }
    // Whoever wants to see a body without a length wants no other answer.
    let mut response = content.answer(&Method::GET, &HeaderMap::new(), open);
    for field in [CONTENT_LENGTH, ACCEPT_RANGES] {
        response.headers_mut().remove(field);
    }
    Ok(response)
}

/// `/slow`
pub(crate) async fn slow(query: Query<'_>) -> Result<Response<Body>, Refusal> {
    let wait = Duration::from_millis(query.number("ms", 1000, 0..=10_000)?);
    let chunks = query.number("chunks", 5, 1..=100)?;
    let gap = Duration::from_millis(query.number("gap", 100, 0..=1000)?);

    sleep(wait).await;
    let body = spaced(chunks, gap, move |number| format!("chunk {number} of {chunks}\n"));
    Ok(of_type("text/plain; charset=utf-8", content::CACHE_CONTROL, StatusCode::OK, body))
}

/// `/sse`
pub(crate) fn events(query: Query<'_>) -> Result<Response<Body>, Refusal> {
    let count = query.number("count", 5, 0..=1000)?;
    let gap = Duration::from_millis(query.number("ms", 200, 0..=10_000)?);
    let body = spaced(count, gap, move |number| format!("id: {number}\nevent: tick\ndata: {number} of {count}\n\n"));
    Ok(of_type("text/event-stream", "no-store", StatusCode::OK, body))
}

/// `/trailers`
pub(crate) fn trailers<B>(request: &Request<B>) -> Response<Body> {
    const LINES: [&str; 3] = [
        "This body is sent in three pieces;\n",
        "what follows it, in the trailers,\n",
        "are its length and its SHA-256.\n",
    ];
    let text = LINES.concat();
    let takes_trailers = match request.version() {
        Version::HTTP_2 => true,
        Version::HTTP_11 => accepts_trailers(request.headers()),
        _ => false, // HTTP/1.0 has no chunks to put them behind
    };
    if !takes_trailers {
        return of_type("text/plain; charset=utf-8", "no-store", StatusCode::OK, whole(text));
    }

    let mut fields = HeaderMap::new();
    fields.insert("x-body-length", HeaderValue::from(text.len()));
    if let Ok(hash) = HeaderValue::from_str(&hex(&Sha256::digest(&text))) {
        fields.insert("x-body-sha256", hash);
    }
    let data = stream::iter(LINES).map(|line| Frame::data(Bytes::from_static(line.as_bytes())));
    let frames = data.chain(stream::iter([Frame::trailers(fields)])).map(Ok::<_, Infallible>);
    let body = StreamBody::new(frames).boxed_unsync();
    let mut response = of_type("text/plain; charset=utf-8", "no-store", StatusCode::OK, body);
    response.headers_mut().insert(TRAILER, HeaderValue::from_static("x-body-length, x-body-sha256"));
    response
}

/// Whether `TE` names `trailers` (RFC 9110, 10.1.4).
fn accepts_trailers(headers: &HeaderMap) -> bool {
    let values = headers.get_all(TE).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| coding.trim().eq_ignore_ascii_case("trailers"))
}

/// A body of pieces numbered from 1, the first at once and the others `gap` apart.
fn spaced(count: u64, gap: Duration, piece: impl Fn(u64) -> String + Send + 'static) -> Body {
    streamed(stream::iter(1..=count).then(move |number| {
        let piece = Bytes::from(piece(number));
        async move {
            if number > 1 {
                sleep(gap).await;
            }
            piece
        }
    }))
}

fn streamed(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    StreamBody::new(pieces.map(|piece| Ok::<_, Infallible>(Frame::data(piece)))).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bytes_are_the_same_however_they_are_cut() {
        let all = large_bytes(0..1000);
        assert_eq!(all.len(), 1000);
        for range in [0..0, 0..1, 7..9, 8..16, 3..3, 500..999, 999..1000, 1..1000] {
            let part = large_bytes(range.clone());
            let [start, end] = [range.start, range.end].map(|at| usize::try_from(at).unwrap());
            assert_eq!(part, &all[start..end], "{range:?}");
        }
        assert_ne!(all[..8], all[8..16]);
    }
}
