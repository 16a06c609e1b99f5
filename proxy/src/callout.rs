//! HTTP callouts of filters: a request to a named upstream, its whole answer bounded in size and time.

use std::cell::RefCell;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::{HeaderName, HeaderValue, Method};
use pingora::connectors::http::Connector;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use selvedge_wasm::{Callout, CalloutFailure, CalloutResponse};

use crate::upstream::Upstreams;

/// The longest answer a callout may have; longer ones fail with [`CalloutFailure::TooLarge`]. Answers are held in memory whole.
const ANSWER_MAX: usize = 4 * 1024 * 1024;

thread_local! {
    /// Connections are kept per worker: a connection's events arrive where it is used.
    static CONNECTOR: RefCell<Option<Arc<Connector>>> = const { RefCell::new(None) };
}

fn connector() -> Arc<Connector> {
    CONNECTOR.with_borrow_mut(|connector| Arc::clone(connector.get_or_insert_with(|| Arc::new(Connector::new(None)))))
}

/// Sends a callout and waits for its answer, at most the callout's own timeout. Dropping the future closes the connection.
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
    let request = request(&callout)?;
    let peer = upstream.peer();
    let connector = connector();

    let (mut session, _reused) =
        connector.get_http_session(&peer).await.map_err(|error| CalloutFailure::Connect(error.to_string()))?;
    session.set_read_timeout(peer.options.read_timeout);
    session.set_write_timeout(peer.options.write_timeout);

    let answer = converse(&mut session, request, callout.body).await?;
    connector.release_http_session(session, &peer, peer.options.idle_timeout).await;
    Ok(answer)
}

async fn converse(
    session: &mut HttpSession,
    request: RequestHeader,
    body: Bytes,
) -> Result<CalloutResponse, CalloutFailure> {
    let reset = |error: Box<pingora::Error>| CalloutFailure::Reset(error.to_string());

    session.write_request_header(Box::new(request)).await.map_err(reset)?;
    if !body.is_empty() {
        session.write_request_body(body, true).await.map_err(reset)?;
    }
    session.finish_request_body().await.map_err(reset)?;

    loop {
        session.read_response_header().await.map_err(reset)?;
        let interim = session.response_header().is_some_and(|header| header.status.is_informational());
        if !interim {
            break;
        }
    }

    let mut answer = CalloutResponse::default();
    if let Some(header) = session.response_header() {
        answer
            .headers
            .push((Bytes::from_static(b":status"), Bytes::copy_from_slice(header.status.as_str().as_bytes())));
        for (name, value) in &header.headers {
            let name = Bytes::copy_from_slice(name.as_str().as_bytes());
            answer.headers.push((name, Bytes::copy_from_slice(value.as_bytes())));
        }
    }

    let mut whole = BytesMut::new();
    while let Some(chunk) = session.read_response_body().await.map_err(reset)? {
        if whole.len() + chunk.len() > ANSWER_MAX {
            return Err(CalloutFailure::TooLarge);
        }
        whole.extend_from_slice(&chunk);
    }
    answer.body = whole.freeze();
    Ok(answer)
}

/// The request a guest described by header pairs. `:method`, `:path` and `:authority` are there: the host has checked.
fn request(callout: &Callout) -> Result<RequestHeader, CalloutFailure> {
    let bad = |what: &str| CalloutFailure::Reset(format!("the filter's callout has a bad {what}"));
    let pseudo =
        |name: &[u8]| callout.headers.iter().find(|(known, _)| known.as_ref() == name).map(|(_, value)| value.as_ref());

    let method = Method::from_bytes(pseudo(b":method").unwrap_or(b"GET")).map_err(|_| bad(":method"))?;
    let path = pseudo(b":path").unwrap_or(b"/");
    if !path.starts_with(b"/") {
        return Err(bad(":path"));
    }
    let mut request = RequestHeader::build(method, path, Some(callout.headers.len())).map_err(|_| bad(":path"))?;
    let authority = pseudo(b":authority").unwrap_or(callout.upstream.as_bytes());
    let host = HeaderValue::from_bytes(authority).map_err(|_| bad(":authority"))?;
    request.insert_header(http::header::HOST, host).map_err(|_| bad(":authority"))?;

    for (name, value) in &callout.headers {
        if name.starts_with(b":") {
            continue;
        }
        let name = HeaderName::from_bytes(name).map_err(|_| bad("header name"))?;
        if name == http::header::CONTENT_LENGTH || name == http::header::TRANSFER_ENCODING || name == http::header::HOST
        {
            continue; // Framing and authority are ours.
        }
        let value = HeaderValue::from_bytes(value).map_err(|_| bad("header value"))?;
        request.append_header(name, value).map_err(|_| bad("header"))?;
    }
    if !callout.body.is_empty() || request.method == Method::POST || request.method == Method::PUT {
        let length = HeaderValue::from(callout.body.len());
        request.insert_header(http::header::CONTENT_LENGTH, length).map_err(|_| bad("length"))?;
    }
    Ok(request)
}
