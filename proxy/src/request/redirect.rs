//! Listeners that send everybody to https.

use http::header;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use pingora::{Error, ErrorType, Result};
use selvedge_config::RedirectToHttps;

use super::respond;

/// Where those who issue certificates look whether somebody is who they say (RFC 8555, 8.3).
const ACME_CHALLENGE: &[u8] = b"/.well-known/acme-challenge/";

/// Whether a request goes on to the sites, though its listener sends everybody to https. Its path is normal already.
pub(crate) fn excepts(to: RedirectToHttps, request: &RequestHeader) -> bool {
    to.acme_challenge && request.raw_path().starts_with(ACME_CHALLENGE)
}

/// Answers with where the same is found over https. Admission has seen to it that Host is a host, and to the path.
///
/// # Errors
/// The request names no host or no path, or the client has gone.
pub(crate) async fn answer(session: &mut Session, to: RedirectToHttps) -> Result<()> {
    let location = location(session.req_header(), to.port)?;
    let mut response = Box::new(ResponseHeader::build(to.status, Some(3))?);
    response.insert_header(header::LOCATION, location)?;
    response.set_content_length(0)?;
    // What is left of an upload is read for a moment, as after any answer of our own.
    respond::whole(&mut session.downstream_session, response, bytes::Bytes::new()).await
}

fn location(request: &RequestHeader, port: u16) -> Result<Vec<u8>> {
    let refuse = |why| Error::explain(ErrorType::HTTPStatus(400), why);
    let host = request.headers.get(header::HOST).map(http::HeaderValue::as_bytes);
    let host = host.ok_or_else(|| refuse("nobody can be sent to https without Host"))?;
    // An IPv6 address keeps its brackets, in which there are colons too.
    let name = match host.iter().rposition(|byte| matches!(byte, b':' | b']')) {
        Some(at) if host[at] == b':' => &host[..at],
        _ => host,
    };
    let path = request.raw_path();
    if path.first() != Some(&b'/') {
        return Err(refuse("nobody can be sent to https without a path"));
    }
    let port = if port == 443 { String::new() } else { format!(":{port}") };
    Ok([b"https://", name, port.as_bytes(), path].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_found_over_https() {
        let cases = [
            ("a.test", "/", 443, "https://a.test/"),
            ("a.test:8080", "/x?y=1", 443, "https://a.test/x?y=1"),
            ("a.test:", "/", 443, "https://a.test/"),
            ("[::1]", "/", 443, "https://[::1]/"),
            ("[::1]:80", "/", 8443, "https://[::1]:8443/"),
            ("127.0.0.1:80", "//a", 443, "https://127.0.0.1//a"),
        ];
        for (host, path, port, expected) in cases {
            let mut request = RequestHeader::build("GET", path.as_bytes(), None).unwrap();
            request.insert_header(header::HOST, host).unwrap();
            assert_eq!(String::from_utf8(location(&request, port).unwrap()).unwrap(), expected);
        }
        let mut request = RequestHeader::build("OPTIONS", b"*", None).unwrap();
        assert!(location(&request, 443).is_err(), "no Host");
        request.insert_header(header::HOST, "a").unwrap();
        assert!(location(&request, 443).is_err(), "no path");
    }
}
