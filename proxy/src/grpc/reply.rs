//! Answers made here to requests of gRPC. A client of gRPC looks for the status where gRPC puts it, and takes any other HTTP status
//! than 200 for a broken proxy: so the answer is 200 with `grpc-status` and `grpc-message` in the only header block
//! (`Trailers-Only` in `PROTOCOL-HTTP2`), as Envoy answers.

use std::fmt::Write;

use http::{HeaderValue, Method, StatusCode, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};

use super::status::{GRPC_MESSAGE, GRPC_STATUS, of_http};

/// How much of a text becomes `grpc-message`: clients bound their header blocks, to 8 KiB as a rule, and a byte may become three.
const MESSAGE_MAX: usize = 1024;

/// Whether a request is one of gRPC. gRPC-Web is another protocol: its answers have their status in the body.
pub(crate) fn asked_by(request: &RequestHeader) -> bool {
    if request.method != Method::POST {
        return false; // None of gRPC's is another.
    }
    let Some(content_type) = request.headers.get(header::CONTENT_TYPE) else { return false };
    const GRPC: &[u8] = b"application/grpc";
    let value = content_type.as_bytes();
    value.get(..GRPC.len()).is_some_and(|start| start.eq_ignore_ascii_case(GRPC))
        && matches!(value.get(GRPC.len()), None | Some(b'+' | b';' | b' '))
}

/// Makes an answer one of gRPC; what was its body is the message. To be sent without a body.
///
/// `status` is the gRPC status if somebody has chosen one; otherwise it is that of a `grpc-status` the answer has, or what the HTTP status
/// stands for.
pub(crate) fn translate(answer: &mut ResponseHeader, request: Version, status: Option<u32>, message: &[u8]) {
    let http = answer.status;
    if !answer.headers.contains_key(GRPC_STATUS) {
        let status = status.unwrap_or_else(|| of_http(http));
        insert(answer, GRPC_STATUS, &status.to_string());
    }
    if !message.is_empty() {
        insert(answer, GRPC_MESSAGE, &percent_encode(&message[..message.len().min(MESSAGE_MAX)]));
    }
    let _ = answer.set_status(StatusCode::OK); // A status of the http crate is always accepted.
    insert(answer, header::CONTENT_TYPE.as_str(), "application/grpc");
    answer.remove_header(&header::TRANSFER_ENCODING);
    answer.remove_header(&header::CONTENT_LENGTH);
    if request < Version::HTTP_2 {
        // Nothing else says where it ends.
        let _ = answer.set_content_length(0);
    }
}

fn insert(answer: &mut ResponseHeader, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        let _ = answer.insert_header(name, value);
    }
}

/// `Percent-Encoded` of `PROTOCOL-HTTP2`: what is not printable ASCII, and the sign itself.
fn percent_encode(text: &[u8]) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text {
        match byte {
            b' '..=b'~' if *byte != b'%' => encoded.push(char::from(*byte)),
            _ => {
                let _ = write!(encoded, "%{byte:02X}"); // Writing to a string does not fail.
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_grpc_are_told_by_their_content_type() {
        for (content_type, is) in [
            ("application/grpc", true),
            ("application/grpc+proto", true),
            ("Application/gRPC", true),
            ("application/grpc; charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpcx", false),
            ("application/json", false),
            ("application/grp", false),
        ] {
            let mut request = RequestHeader::build("POST", b"/", None).unwrap();
            request.insert_header("content-type", content_type).unwrap();
            assert_eq!(asked_by(&request), is, "{content_type}");
        }
        assert!(!asked_by(&RequestHeader::build("POST", b"/", None).unwrap()));
        let mut get = RequestHeader::build("GET", b"/", None).unwrap();
        get.insert_header("content-type", "application/grpc").unwrap();
        assert!(!asked_by(&get), "gRPC knows POST only");
    }

    #[test]
    fn an_answer_becomes_a_status_in_one_header_block() {
        let answer = |http: u16, version, own: Option<&str>, status, message: &[u8]| {
            let mut answer = ResponseHeader::build(http, None).unwrap();
            answer.insert_header("content-type", "text/plain").unwrap();
            answer.insert_header("x-own", "kept").unwrap();
            answer.set_content_length(message.len()).unwrap();
            if let Some(own) = own {
                answer.insert_header("grpc-status", own).unwrap();
            }
            translate(&mut answer, version, status, message);
            answer
        };
        let text = |answer: &ResponseHeader, name: &str| {
            answer.headers.get(name).map(|value| value.to_str().unwrap().to_owned())
        };
        for (http, own, status, message, code, encoded) in [
            (403, None, None, &b"no"[..], "7", Some("no")),
            (403, None, Some(3), b"no access", "3", Some("no access")),
            (200, None, None, b"", "2", None),
            (503, Some("5"), Some(3), b"100%\n", "5", Some("100%25%0A")),
            (429, None, None, "\u{20ac}~".as_bytes(), "14", Some("%E2%82%AC~")),
        ] {
            let got = answer(http, Version::HTTP_2, own, status, message);
            assert_eq!((got.status.as_u16(), text(&got, "grpc-status").as_deref()), (200, Some(code)), "{http}");
            assert_eq!(text(&got, "grpc-message").as_deref(), encoded);
            assert_eq!(text(&got, "content-type").as_deref(), Some("application/grpc"));
            assert_eq!(text(&got, "x-own").as_deref(), Some("kept"));
            assert_eq!(text(&got, "content-length"), None);
        }
        let long = answer(500, Version::HTTP_11, None, None, &[b'\n'; 5000]);
        assert_eq!(text(&long, "grpc-message").map(|message| message.len()), Some(3 * MESSAGE_MAX));
        assert_eq!(text(&long, "content-length").as_deref(), Some("0"));
    }
}
