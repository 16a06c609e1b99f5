//! What an answer is made of.

use std::convert::Infallible;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};

/// A body, whole or streamed.
pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// An answer that says no, in one sentence.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    sentence: String,
    allow: Option<&'static str>,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, sentence: impl Into<String>) -> Refusal {
        Refusal { status, sentence: sentence.into(), allow: None }
    }

    pub(crate) fn bad_request(sentence: impl Into<String>) -> Refusal {
        Refusal::new(StatusCode::BAD_REQUEST, sentence)
    }

    pub(crate) fn not_found(path: &str) -> Refusal {
        Refusal::new(StatusCode::NOT_FOUND, format!("There is nothing at {path}; the list is at /."))
    }

    pub(crate) fn method_not_allowed(allow: &'static str) -> Refusal {
        let sentence = format!("Only {allow} can be asked for here.");
        Refusal { allow: Some(allow), ..Refusal::new(StatusCode::METHOD_NOT_ALLOWED, sentence) }
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let mut response = text(self.status, self.sentence + "\n");
        if let Some(allow) = self.allow {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }
}

/// A body that is there as a whole.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// Plain text that no cache keeps.
pub(crate) fn text(status: StatusCode, text: String) -> Response<Body> {
    of_type("text/plain; charset=utf-8", "no-store", status, whole(text))
}

/// JSON with line breaks, for people with curl.
pub(crate) fn json(cache_control: &str, value: &serde_json::Value) -> Response<Body> {
    of_type("application/json", cache_control, StatusCode::OK, whole(format!("{value:#}\n")))
}

pub(crate) fn of_type(
    content_type: &'static str,
    cache_control: &str,
    status: StatusCode,
    body: Body,
) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Ok(cache_control) = HeaderValue::from_str(cache_control) {
        response.headers_mut().insert(CACHE_CONTROL, cache_control);
    }
    response
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;

    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut digits, byte| {
        let _infallible = write!(digits, "{byte:02x}");
        digits
    })
}
