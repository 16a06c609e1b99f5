//! gRPC-Web (`PROTOCOL-WEB` of gRPC) as rules: what a request asks for, base64 in pieces, and trailers as the last frame of a body.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;

use super::status::{GRPC_MESSAGE, GRPC_STATUS};

const GRPC: &[u8] = b"application/grpc";
const WEB: &[u8] = b"application/grpc-web";
const TEXT: &[u8] = b"application/grpc-web-text";

/// The flag of a frame that holds trailers.
const TRAILERS: u8 = 0x80;

/// Clients may leave away the padding at the very end.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// How a client speaks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variant {
    /// Bodies are base64.
    pub(crate) text: bool,
    /// `+proto` and what else follows the name.
    suffix: Vec<u8>,
}

impl Variant {
    /// What a request with this `Content-Type` speaks; `None` = it is not of gRPC-Web.
    pub(crate) fn of(content_type: &[u8]) -> Option<Self> {
        let (text, suffix) = match (after(content_type, TEXT), after(content_type, WEB)) {
            (Some(suffix), _) => (true, suffix),
            (None, Some(suffix)) => (false, suffix),
            (None, None) => return None,
        };
        Some(Self { text, suffix: suffix.to_vec() })
    }

    /// The same type without the web.
    pub(crate) fn plain(&self) -> Option<HeaderValue> {
        HeaderValue::from_bytes(&[GRPC, &self.suffix].concat()).ok()
    }

    /// The type of the answer to it, if it has this one; `None` = it is no answer of gRPC.
    pub(crate) fn answer(&self, content_type: Option<&HeaderValue>) -> Option<HeaderValue> {
        let suffix = after(content_type?.as_bytes(), GRPC)?;
        // Clients choose their parser by it: without a format, it is the one that was asked for.
        let suffix = if suffix.is_empty() { &self.suffix[..] } else { suffix };
        HeaderValue::from_bytes(&[if self.text { TEXT } else { WEB }, suffix].concat()).ok()
    }
}

/// What follows this name of a media type, if it is this one (RFC 9110, 8.3.1: case does not matter).
fn after<'v>(value: &'v [u8], name: &[u8]) -> Option<&'v [u8]> {
    let (start, rest) = value.split_at_checked(name.len())?;
    let ends = matches!(rest.first(), None | Some(b'+' | b';' | b' '));
    (ends && start.eq_ignore_ascii_case(name)).then_some(rest)
}

/// Base64 that comes in pieces, cut anywhere, each of which may be padded by itself.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// Fewer than four characters.
    rest: Vec<u8>,
}

/// It is no base64.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl Decoder {
    /// What these characters stand for, with those that came before.
    pub(crate) fn decode(&mut self, data: &[u8]) -> Result<Bytes, Malformed> {
        self.rest.extend_from_slice(data);
        let whole = self.rest.len() / 4 * 4;
        let out = decode(&self.rest[..whole])?;
        self.rest.drain(..whole);
        Ok(out)
    }

    /// What is left when no more comes.
    pub(crate) fn end(&mut self) -> Result<Bytes, Malformed> {
        decode(&std::mem::take(&mut self.rest))
    }
}

/// Groups of four characters, some of them padded.
fn decode(mut data: &[u8]) -> Result<Bytes, Malformed> {
    let mut out = BytesMut::with_capacity(data.len() / 4 * 3 + 3);
    while !data.is_empty() {
        // To the end of the group that ends in padding.
        let end = data.iter().position(|byte| *byte == b'=').map_or(data.len(), |at| (at / 4 + 1) * 4);
        let (part, next) = data.split_at(end.min(data.len()));
        out.extend_from_slice(&BASE64.decode(part).map_err(|_| Malformed)?);
        data = next;
    }
    Ok(out.freeze())
}

/// Bytes as a piece of a body in base64, padded.
pub(crate) fn encode(data: &[u8]) -> Bytes {
    BASE64.encode(data).into()
}

/// The last frame of a body: its trailers.
pub(crate) fn trailers(trailers: &HeaderMap) -> Bytes {
    let mut block = BytesMut::new();
    for (name, value) in trailers {
        block.extend_from_slice(name.as_str().as_bytes());
        block.extend_from_slice(b":");
        block.extend_from_slice(value.as_bytes());
        block.extend_from_slice(b"\r\n");
    }
    let mut frame = BytesMut::with_capacity(block.len() + 5);
    frame.put_u8(TRAILERS);
    frame.put_u32(u32::try_from(block.len()).unwrap_or(u32::MAX)); // Headers are bounded far below that.
    frame.extend_from_slice(&block);
    frame.freeze()
}

/// The trailers of a response that has none: its status is unknown (2), as every client of gRPC takes it.
pub(crate) fn no_trailers() -> HeaderMap {
    let message = HeaderValue::from_static("the server sent no status");
    HeaderMap::from_iter([
        (HeaderName::from_static(GRPC_STATUS), HeaderValue::from_static("2")),
        (HeaderName::from_static(GRPC_MESSAGE), message),
    ])
}

/// What a page may read of an answer that has its status in the header.
const EXPOSED: &str = "grpc-status, grpc-message, grpc-status-details-bin";

/// Lets pages of other origins read the status, where the answer is for them at all.
///
/// # Errors
/// The header has no room.
pub(crate) fn expose(response: &mut ResponseHeader) -> pingora::Result<()> {
    if response.headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN) {
        response.append_header(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_known_by_its_type_and_the_answer_has_the_same() {
        let cases = [
            ("application/grpc-web", "application/grpc", "application/grpc", "application/grpc-web"),
            ("application/grpc-web+proto", "application/grpc+proto", "application/grpc", "application/grpc-web+proto"),
            (
                "Application/GRPC-Web-Text+proto",
                "application/grpc+proto",
                "application/grpc+json",
                "application/grpc-web-text+json",
            ),
            (
                "application/grpc-web-text",
                "application/grpc",
                "application/grpc+proto",
                "application/grpc-web-text+proto",
            ),
            (
                "application/grpc-web+proto; x=y",
                "application/grpc+proto; x=y",
                "application/grpc+proto",
                "application/grpc-web+proto",
            ),
        ];
        for (asked, plain, answered, told) in cases {
            let variant = Variant::of(asked.as_bytes()).unwrap();
            assert_eq!(variant.plain().unwrap(), plain);
            assert_eq!(variant.answer(Some(&HeaderValue::from_static(answered))).unwrap(), told, "{asked}");
            assert_eq!(variant.answer(Some(&HeaderValue::from_static("text/html"))), None);
            assert_eq!(variant.answer(None), None);
        }
        for other in
            ["application/grpc", "application/grpc+proto", "application/grpc-webx", "application/grpc-web-texts", ""]
        {
            assert_eq!(Variant::of(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for bad in ["!!!!", "AAA\n", "A=AA", "====", "AA-_"] {
            assert_eq!(Decoder::default().decode(bad.as_bytes()), Err(Malformed), "{bad}");
        }
        let mut decoder = Decoder::default();
        decoder.decode(b"AAAAA").unwrap();
        assert_eq!(decoder.end(), Err(Malformed), "one character stands for nothing");
        let mut decoder = Decoder::default();
        decoder.decode(b"AAAAaGk").unwrap();
        assert_eq!(decoder.end().unwrap().as_ref(), b"hi", "the last padding may be away");
    }

    #[test]
    fn trailers_are_a_frame() {
        let frame = trailers(&no_trailers());
        assert_eq!(&frame[..5], [0x80, 0, 0, 0, 55]);
        assert_eq!(&frame[5..], b"grpc-status:2\r\ngrpc-message:the server sent no status\r\n");
    }

    proptest! {
        #[test]
        fn pieces_and_cuts_do_not_matter(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8), cut in 1..9usize) {
            let encoded: Vec<u8> = pieces.iter().flat_map(|piece| encode(piece)).collect();
            let mut decoder = Decoder::default();
            let mut decoded = Vec::new();
            for part in encoded.chunks(cut) {
                decoded.extend_from_slice(&decoder.decode(part).unwrap());
            }
            decoded.extend_from_slice(&decoder.end().unwrap());
            prop_assert_eq!(decoded, pieces.concat());
        }

        #[test]
        fn nothing_panics(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..6)) {
            let mut decoder = Decoder::default();
            for part in parts {
                let _ = decoder.decode(&part);
            }
            let _ = decoder.end();
        }
    }
}
