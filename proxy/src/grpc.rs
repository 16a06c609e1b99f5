//! gRPC of filters: an exchange with a named upstream over HTTP/2, messages both ways, each bounded in size, each silence in time.
//!
//! The protocol is that of gRPC over HTTP/2 without compression: length-prefixed messages in both bodies, the status in the trailers, or
//! in the only header block when there is nothing else ("trailers-only"). Whatever goes wrong below becomes a status as the gRPC
//! documents say (`PROTOCOL-HTTP2`, `http-grpc-status-mapping`).

pub(crate) mod reply;
mod status;
pub(crate) mod web;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use h2::SendStream;
use http::{HeaderName, HeaderValue, Method, Uri, header};
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::protocols::http::v2::client::Http2Session;
use pingora::protocols::http::v2::write_body;
use pingora::upstreams::peer::{HttpPeer, Peer};
use selvedge_wasm::{GrpcEvents, GrpcMessages, GrpcRequest, GrpcStatus};
use tokio::time::Instant;

use crate::connections::Lease;
use crate::upstream::{Ask, Failure, Upstreams};
use wire::Messages;

/// Runs an exchange to its end. Dropping the future resets the HTTP/2 stream; the connection stays for others.
///
/// An exchange may last for ever as long as something moves: nothing sent, received or taken for the upstream's `timeouts.read` ends it.
pub(crate) fn run(
    upstreams: Arc<Upstreams>,
    request: GrpcRequest,
    messages: GrpcMessages,
    events: GrpcEvents,
) -> BoxFuture<'static, GrpcStatus> {
    Box::pin(async move {
        match exchange(&upstreams, request, messages, events).await {
            Ok(status) | Err(status) => status,
        }
    })
}

async fn exchange(
    upstreams: &Upstreams,
    request: GrpcRequest,
    mut messages: GrpcMessages,
    mut events: GrpcEvents,
) -> Result<GrpcStatus, GrpcStatus> {
    let unavailable = |why: String| GrpcStatus::new(GrpcStatus::UNAVAILABLE, why);
    let upstream = upstreams
        .get(&request.upstream)
        .ok_or_else(|| unavailable(format!("no upstream is called {}", request.upstream)))?;
    let place =
        upstream.choose(&Ask::default()).map_err(|why| unavailable(format!("upstream {}: {why}", request.upstream)))?;
    let peer = place.peer();
    if peer.options.alpn.get_min_http_version() != 2 {
        return Err(unavailable(format!("upstream {} is not spoken to in HTTP/2 (protocol: h2)", request.upstream)));
    }
    let silence = peer.options.read_timeout.unwrap_or(Duration::from_secs(60));
    let header = request_header(&request, &peer)?;

    // Also waits for a free stream, where the server limits them.
    let lease = tokio::time::timeout(silence, Lease::take(peer)).await;
    let mut lease = match lease {
        Ok(Ok(lease)) => lease,
        Ok(Err(error)) => {
            place.failed(Failure::of(&error));
            return Err(unavailable(format!("connect to upstream {}: {error}", request.upstream)));
        }
        Err(_) => {
            place.failed(Failure::Connect);
            return Err(unavailable(format!("connect to upstream {}: took {silence:?}", request.upstream)));
        }
    };
    lease.within(place.endpoint().rules().pool);
    let HttpSession::H2(session) = lease.session() else {
        return Err(unavailable(format!("upstream {} chose HTTP/1", request.upstream)));
    };
    session.write_request_header(Box::new(header), false).map_err(|error| status::of_error(&error))?;
    let Some(mut body) = session.take_request_body_writer() else {
        return Err(GrpcStatus::new(GrpcStatus::INTERNAL, "the request has no body"));
    };

    let alive = Alive::new(silence);
    tokio::select! {
        biased;
        status = receive(session, &mut events, &alive) => status,
        never = send(&mut body, &mut messages, &alive) => match never {},
        () = alive.over() => {
            Err(unavailable(format!("upstream {}: nothing moved for {silence:?}", request.upstream)))
        }
    }
}

/// Sends what the guest sends, and then waits: how the exchange ends is the server's to say, also when it takes no more.
async fn send(body: &mut SendStream<Bytes>, messages: &mut GrpcMessages, alive: &Alive) -> std::convert::Infallible {
    let mut ended = false;
    while !ended {
        let sent = match messages.next().await {
            Some(message) => {
                ended = messages.ended();
                // The message keeps its place in the guest's queue until it has been written.
                match write_body(body, wire::prefix(message.bytes.len()), false, None).await {
                    Ok(()) => write_body(body, message.bytes.clone(), ended, None).await,
                    failed => failed,
                }
            }
            None => {
                ended = true;
                write_body(body, Bytes::new(), true, None).await
            }
        };
        alive.moved();
        if sent.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// Hands on what the server sends, to the end.
async fn receive(session: &mut Http2Session, events: &mut GrpcEvents, alive: &Alive) -> Result<GrpcStatus, GrpcStatus> {
    let failed = |error: Box<pingora::Error>| status::of_error(&error);

    session.read_response_header().await.map_err(failed)?;
    alive.moved();
    let trailers_only = session.response_finished();
    let Some(header) = session.response_header() else {
        return Err(GrpcStatus::new(GrpcStatus::INTERNAL, "no response header"));
    };
    let http_status = header.status;
    let is_grpc = http_status.is_success() && wire::is_grpc(&header.headers);
    if trailers_only || !is_grpc {
        let (metadata, status) = (wire::metadata(&header.headers), status::of_trailers(&header.headers, http_status));
        if !is_grpc && !header.headers.contains_key(status::GRPC_STATUS) {
            return Err(status::not_grpc(http_status, &header.headers));
        }
        events.initial_metadata(Vec::new()).await;
        events.trailing_metadata(metadata).await;
        return Ok(status);
    }
    let metadata = wire::metadata(&header.headers);
    events.initial_metadata(metadata).await;

    let mut incoming = Messages::default();
    while let Some(data) = session.read_response_body().await.map_err(failed)? {
        incoming.push(data);
        while let Some(message) = incoming.next()? {
            events.message(message).await;
            alive.moved();
        }
        alive.moved();
    }
    incoming.end()?;

    let trailers = session.read_trailers().await.map_err(failed)?.unwrap_or_default();
    let status = status::of_trailers(&trailers, http_status);
    events.trailing_metadata(wire::metadata(&trailers)).await;
    Ok(status)
}

fn request_header(request: &GrpcRequest, peer: &HttpPeer) -> Result<RequestHeader, GrpcStatus> {
    let internal = |what: &str| GrpcStatus::new(GrpcStatus::INTERNAL, format!("the request has a bad {what}"));
    let authority = match &request.authority {
        Some(authority) => authority.as_str(),
        None if peer.tls() && !peer.sni.is_empty() => peer.sni.as_str(),
        None => request.upstream.as_str(),
    };
    let path = request.path();
    let scheme = if peer.tls() { "https" } else { "http" };
    let uri = Uri::builder().scheme(scheme).authority(authority).path_and_query(path.as_str()).build();

    let capacity = request.metadata.len() + 3;
    let mut header =
        RequestHeader::build_no_case(Method::POST, path.as_bytes(), Some(capacity)).map_err(|_| internal(":path"))?;
    header.set_uri(uri.map_err(|_| internal(":authority"))?);
    let mut add = |name: HeaderName, value: HeaderValue| {
        header.append_header(name, value).map(drop).map_err(|_| internal("header"))
    };
    add(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"))?;
    add(header::TE, HeaderValue::from_static("trailers"))?;
    if let Some(timeout) = request.timeout {
        add(HeaderName::from_static("grpc-timeout"), wire::timeout(timeout))?;
    }
    for (name, value) in &request.metadata {
        add(name.clone(), value.clone())?;
    }
    Ok(header)
}

/// When something last moved, and how long nothing may.
struct Alive {
    last: Mutex<Instant>,
    silence: Duration,
}

impl Alive {
    fn new(silence: Duration) -> Self {
        Self { last: Mutex::new(Instant::now()), silence }
    }

    fn moved(&self) {
        *self.last.lock() = Instant::now();
    }

    /// Waits until nothing has moved for too long.
    async fn over(&self) {
        loop {
            let end = *self.last.lock() + self.silence;
            if Instant::now() >= end {
                return;
            }
            tokio::time::sleep_until(end).await;
        }
    }
}
