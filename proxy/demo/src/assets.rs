//! The front page and its files, which also serve as cacheable content.

use bytes::Bytes;
use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use sha2::{Digest, Sha256};

use crate::answer::{Body, Refusal, hex, of_type, whole};
use crate::content::Content;

const PAGE: &str = include_str!("../assets/index.html");

/// The files under `/static/`, with their media types.
const FILES: [(&str, &str, &str); 3] = [
    ("/static/app.css", "text/css; charset=utf-8", include_str!("../assets/app.css")),
    ("/static/app.js", "text/javascript; charset=utf-8", include_str!("../assets/app.js")),
    ("/static/logo.svg", "image/svg+xml", include_str!("../assets/logo.svg")),
];

/// The page that explains the endpoints. The name needs no escaping: it has no character that HTML knows.
pub(crate) fn page(name: &str) -> Response<Body> {
    let body = whole(PAGE.replace("{{name}}", name));
    let mut response = of_type("text/html; charset=utf-8", "no-cache", StatusCode::OK, body);
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'self'"));
    response
}

pub(crate) fn file(path: &str, method: &Method, headers: &HeaderMap) -> Result<Response<Body>, Refusal> {
    let file = FILES.iter().find(|(file, _, _)| *file == path);
    let (_, content_type, text) = file.ok_or_else(|| Refusal::not_found(path))?;
    let etag = format!("\"{}\"", &hex(&Sha256::digest(text))[..32]);
    let content = Content { content_type, etag, length: text.len() as u64 };
    Ok(content.answer(method, headers, |part| {
        let [start, end] = [part.start, part.end].map(|at| usize::try_from(at).unwrap_or(text.len()));
        whole(Bytes::from_static(&text.as_bytes()[start..end]))
    }))
}
