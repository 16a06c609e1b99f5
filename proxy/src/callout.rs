//! HTTP callouts of filters: a request to a named upstream, its whole answer bounded in size and time.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::protocols::http::v2::write_body;
use pingora::upstreams::peer::Peer;
use pingora::{ErrorType, OrErr};
use selvedge_wasm::{Callout, CalloutFailure, CalloutResponse};

use crate::connections::Lease;
use crate::upstream::{Ask, Failure, Upstreams};

/// The longest answer a callout may have; longer ones fail with [`CalloutFailure::TooLarge`]. Answers are held in memory whole.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

/// What belongs to a connection, and so to us, whatever a filter says.
const OURS: [&str; 7] =
    ["connection", "content-length", "host", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];

/// Sends a callout and waits for its answer, at most the callout's own timeout. Dropping the future closes the connection, or resets the
/// HTTP/2 stream.
///
/// Trailers, of the request and of the answer, pass on HTTP/2; on HTTP/1 Pingora has none.
pub(crate) fn send(
    upstreams: Arc<Upstreams>,
    callout: Callout,
) -> BoxFuture<'static, Result<CalloutResponse, CalloutFailure>> {
    Box::pin(async move {
        let timeout = callout.timeout;
        tokio::time::timeout(timeout, exchange(upstreams, callout)).await.unwrap_or(Err(CalloutFailure::Timeout))
    })
}

async fn exchange(upstreams: Arc<Upstreams>, callout: Callout) -> Result<CalloutResponse, CalloutFailure> {
    let upstream = upstreams
        .get(&callout.upstream)
        .ok_or_else(|| CalloutFailure::Connect(format!("no upstream is called {}", callout.upstream)))?;
    let mut request = request(&callout)?;
    let trailers = trailers(&callout)?;

    let place = upstream
        .choose(&Ask::default())
        .map_err(|why| CalloutFailure::Connect(format!("upstream {}: {why}", upstream.name)))?;
    let mut lease = Lease::take(place.peer()).await.map_err(|error| {
        place.failed(Failure::of(&error));
        CalloutFailure::Connect(error.to_string())
    })?;
    lease.within(place.endpoint().rules().pool);
    if lease.is_last() {
        request.insert_header(header::CONNECTION, "close").map_err(reset)?;
    }
    let (read, write) = (lease.peer().options.read_timeout, lease.peer().options.write_timeout);
    let tls = lease.peer().tls();
    let session = lease.session();
    session.set_read_timeout(read);
    session.set_write_timeout(write);

    let told = |error: Box<pingora::Error>| {
        place.failed(Failure::of(&error));
        reset(error)
    };
    match &mut *session {
        HttpSession::H2(session) => {
            let request = for_h2(request, &callout, tls)?;
            say_h2(session, request, callout.body, trailers).await.map_err(told)?;
        }
        session => say(session, request, callout.body).await.map_err(told)?,
    }
    let status = begin(session).await.map_err(told)?;
    place.answered(status);
    let answer = listen(session).await?;
    lease.give_back().await;
    Ok(answer)
}

fn reset(error: Box<pingora::Error>) -> CalloutFailure {
    CalloutFailure::Reset(error.to_string())
}

async fn say(session: &mut HttpSession, request: RequestHeader, body: Bytes) -> pingora::Result<()> {
    session.write_request_header(Box::new(request)).await?;
    if !body.is_empty() {
        session.write_request_body(body, true).await?;
    }
    session.finish_request_body().await
}

async fn say_h2(
    session: &mut Http2Session,
    request: RequestHeader,
    body: Bytes,
    trailers: HeaderMap,
) -> pingora::Result<()> {
    let nothing_follows = body.is_empty() && trailers.is_empty();
    session.write_request_header(Box::new(request), nothing_follows)?;
    if trailers.is_empty() {
        return if nothing_follows { Ok(()) } else { session.write_request_body(body, true).await };
    }
    let write_timeout = session.write_timeout;
    let Some(mut writer) = session.take_request_body_writer() else { return Ok(()) };
    if !body.is_empty() {
        write_body(&mut writer, body, false, write_timeout).await?;
    }
    writer.send_trailers(trailers).or_err(ErrorType::WriteError, "trailers")
}

/// Reads to the final response's header, and gives its status.
async fn begin(session: &mut HttpSession) -> pingora::Result<u16> {
    loop {
        session.read_response_header().await?;
        let status = session.response_header().map_or(0, |header| header.status.as_u16());
        if !(100..200).contains(&status) {
            return Ok(status);
        }
    }
}

async fn listen(session: &mut HttpSession) -> Result<CalloutResponse, CalloutFailure> {
    let mut answer = CalloutResponse::default();
    if let Some(header) = session.response_header() {
        let status = Bytes::copy_from_slice(header.status.as_str().as_bytes());
        answer.headers.push((Bytes::from_static(b":status"), status));
        answer.headers.extend(pairs(&header.headers));
    }

    let mut whole = BytesMut::new();
    while let Some(chunk) = session.read_response_body().await.map_err(reset)? {
        if whole.len() + chunk.len() > ANSWER_MAX {
            return Err(CalloutFailure::TooLarge);
        }
        whole.extend_from_slice(&chunk);
    }
    answer.body = whole.freeze();

    if let HttpSession::H2(session) = session
        && let Some(trailers) = session.read_trailers().await.map_err(reset)?
    {
        answer.trailers.extend(pairs(&trailers));
    }
    Ok(answer)
}

/// Headers as guests see them, names in lower case.
fn pairs(headers: &HeaderMap) -> impl Iterator<Item = (Bytes, Bytes)> + '_ {
    let bytes = Bytes::copy_from_slice;
    headers.iter().map(move |(name, value)| (bytes(name.as_str().as_bytes()), bytes(value.as_bytes())))
}

fn bad(what: &str) -> CalloutFailure {
    CalloutFailure::Reset(format!("the filter's callout has a bad {what}"))
}

fn pseudo<'a>(callout: &'a Callout, name: &str) -> Option<&'a [u8]> {
    callout.headers.iter().find(|(known, _)| known.as_ref() == name.as_bytes()).map(|(_, value)| value.as_ref())
}

/// On HTTP/2 the target is whole: with the filter's `:scheme`, or by default that of the connection.
fn for_h2(mut request: RequestHeader, callout: &Callout, tls: bool) -> Result<RequestHeader, CalloutFailure> {
    let scheme = pseudo(callout, ":scheme").unwrap_or(if tls { b"https" } else { b"http" });
    let authority = request.remove_header(&header::HOST).ok_or_else(|| bad(":authority"))?;
    let uri = Uri::builder().scheme(scheme).authority(authority.as_bytes()).path_and_query(request.raw_path()).build();
    request.set_uri(uri.map_err(|_| bad(":scheme or :authority"))?);
    Ok(request)
}

fn trailers(callout: &Callout) -> Result<HeaderMap, CalloutFailure> {
    let mut trailers = HeaderMap::with_capacity(callout.trailers.len());
    for (name, value) in &callout.trailers {
        let name = HeaderName::from_bytes(name).map_err(|_| bad("trailer name"))?;
        if !OURS.contains(&name.as_str()) {
            trailers.append(name, HeaderValue::from_bytes(value).map_err(|_| bad("trailer value"))?);
        }
    }
    Ok(trailers)
}

/// A target as servers expect it of somebody who is no proxy (RFC 9112, 3.2.1). Filters that have been told a whole URL, as OpenID Connect
/// does it, put that into `:path`; Envoy forwards it, and servers take it for its path (3.2.2). Who is asked is the upstream's business.
fn path_of(target: &[u8]) -> Option<Cow<'_, [u8]>> {
    if target.starts_with(b"/") {
        return Some(target.into());
    }
    let uri = Uri::try_from(target).ok()?;
    uri.scheme().filter(|scheme| ["http", "https"].contains(&scheme.as_str()))?;
    Some(uri.path_and_query()?.as_str().as_bytes().to_vec().into())
}

/// The request a guest described by header pairs. `:method`, `:path` and `:authority` are there: the host has checked.
fn request(callout: &Callout) -> Result<RequestHeader, CalloutFailure> {
    let method = Method::from_bytes(pseudo(callout, ":method").unwrap_or(b"GET")).map_err(|_| bad(":method"))?;
    let path = path_of(pseudo(callout, ":path").unwrap_or(b"/")).ok_or_else(|| bad(":path"))?;
    let mut request = RequestHeader::build(method, &path, Some(callout.headers.len())).map_err(|_| bad(":path"))?;
    let authority = pseudo(callout, ":authority").unwrap_or(callout.upstream.as_bytes());
    let host = HeaderValue::from_bytes(authority).map_err(|_| bad(":authority"))?;
    request.insert_header(header::HOST, host).map_err(|_| bad(":authority"))?;

    for (name, value) in &callout.headers {
        if name.starts_with(b":") {
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|_| bad("header name"))?;
        // HTTP/2 allows one value of `te`.
        if OURS.contains(&name.as_str()) || (name == header::TE && value.as_ref() != b"trailers") {
            continue;
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| bad("header value"))?;
        request.append_header(name, value).map_err(|_| bad("header"))?;
    }
    if !callout.body.is_empty() || request.method == Method::POST || request.method == Method::PUT {
        let length = HeaderValue::from(callout.body.len());
        request.insert_header(header::CONTENT_LENGTH, length).map_err(|_| bad("length"))?;
    }
    Ok(request)
}
