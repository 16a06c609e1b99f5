//! A request's header as it leaves on a connection of ours. Pingora does the same for those on its own.

use http::{HeaderName, Uri, Version, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::authority::validate_request_authority;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::{HttpPeer, Peer};
use pingora::{Error, ErrorType, OrErr, Result};

/// What is between a client and its proxy only (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 10] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
];

/// Takes away what belongs to the client's connection, before anything of ours is added. What `Connection` names besides is gone since the
/// request was admitted.
pub(crate) fn clean(request: &mut RequestHeader) {
    // RFC 9113, 8.2.2: the one value that may pass, towards HTTP/2, and gRPC asks for it.
    let trailers = request.headers.get(header::TE).is_some_and(|value| value.as_bytes() == b"trailers");
    for name in &HOP_BY_HOP {
        if !(trailers && name == header::TE) {
            request.remove_header(name);
        }
    }
}

/// The header as this peer's protocol has it.
///
/// # Errors
/// It names no host, or none that can be written.
pub(super) fn form(mut request: Box<RequestHeader>, peer: &HttpPeer) -> Result<Box<RequestHeader>> {
    let internal = |why| Error::explain(ErrorType::InvalidHTTPHeader, why).into_in();
    let host = match request.headers.get(header::HOST) {
        Some(host) => host.as_bytes().to_vec(),
        None => request.uri.authority().map(|authority| authority.as_str().as_bytes().to_vec()).unwrap_or_default(),
    };
    if peer.options.alpn.get_min_http_version() < 2 {
        request.set_version(Version::HTTP_11);
        request.remove_header(&header::TE);
        request.insert_header(header::HOST, host)?;
        let target = request.raw_path().to_vec();
        request.set_raw_path(&target)?; // Without scheme and authority, which HTTP/2 clients send.
        validate_request_authority(&request).map_err(Error::into_in)?;
        return Ok(request);
    }
    if host.is_empty() || !request.raw_path_is_utf8() {
        return Err(internal("no authority, or a target that HTTP/2 does not know"));
    }
    if host.contains(&b'@') {
        return Err(internal("user information in Host"));
    }
    request.set_version(Version::HTTP_2);
    let scheme = if peer.tls() { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(host.as_slice()).path_and_query(request.raw_path()).build();
    request.set_uri(uri.or_err(ErrorType::InvalidHTTPHeader, "the target of a request").map_err(Error::into_in)?);
    request.remove_header(&header::HOST);
    Ok(request)
}

/// Sends it; `end` = no body follows.
pub(super) async fn send(session: &mut HttpSession, request: Box<RequestHeader>, end: bool) -> Result<()> {
    match session {
        HttpSession::H2(session) => session.write_request_header(request, end),
        session => {
            session.write_request_header(request).await?;
            if end { session.finish_request_body().await } else { Ok(()) }
        }
    }
}
