//! Step 5, the short way: most requests have no body, are not to be stored, and go to an upstream of HTTP/1.1. Their exchange is our own
//! (`upstream/http1`), in the hook before Pingora's; whatever else there is to an exchange takes Pingora's way. Both ways call the same
//! hooks in the same order, so that no step knows which one a request takes.
//!
//! What Pingora's way costs beside this one: two tasks' worth of futures and two channels between the client's side and the upstream's,
//! which a request without a body does not need.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Version, header};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::protocols::http::HttpTask;
use pingora::proxy::{ProxyHttp, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use smallvec::SmallVec;

use super::filter::BodyFlow;
use super::retry::ATTEMPTS_MAX;
use super::{Edge, RequestCtx, forward};
use crate::chain::exchange::authority;
use crate::chain::outbound::Outbound;
use crate::chain::session::{FilteredSession, RequestBody, Slot, lost};
use crate::plan::Target;
use crate::upstream::http1::Exchange;

/// How many pieces of a body are written at once, if so many are there.
const PIECES: usize = 8;

/// Whether the request may go this way. Called when it has been decided that it goes to an upstream.
pub(crate) fn serves(session: &mut Session, ctx: &mut RequestCtx) -> bool {
    !session.cache.enabled()
        && !session.cache.bypassing()
        && session.subrequest_ctx.is_none()
        && ctx.leader.is_none()
        && ctx.body == BodyFlow::Untouched
        && ctx.slice.is_none()
        && ctx.travel.is_none()
        && is_plain(session.req_header())
        && session.is_body_empty()
        && ctx.route.as_ref().is_some_and(|route| route.origin_filters.is_empty())
        && forward::to_http1(session, ctx)
}

/// Whether it is certain already, when the filters have seen the request, that it will go this way: nothing but an upstream can answer it.
pub(crate) fn is_certain(session: &mut Session, ctx: &mut RequestCtx) -> bool {
    let to_upstream = ctx
        .route
        .as_ref()
        .is_some_and(|route| route.cache.is_none() && matches!(route.target, Target::Upstream(_) | Target::Split(_)));
    to_upstream && ctx.web.is_none() && !ctx.sliced && serves(session, ctx)
}

/// Whether there is nothing in the request's header that Pingora has to look at: a target with a host in it, another protocol to change to,
/// fields that are for this connection alone.
fn is_plain(request: &RequestHeader) -> bool {
    let fields = &request.headers;
    let target = match request.version {
        Version::HTTP_2 => true,
        _ => request.uri.authority().is_none() && request.raw_path().first() == Some(&b'/'),
    };
    let connection = || {
        fields.get_all(header::CONNECTION).iter().all(|value| {
            value.as_bytes().eq_ignore_ascii_case(b"keep-alive") || value.as_bytes().eq_ignore_ascii_case(b"close")
        })
    };
    target && !fields.contains_key(header::UPGRADE) && connection()
}

/// Sends the request on and answers the client with what comes.
///
/// # Errors
/// As those of Pingora's way: the last attempt failed and no other may follow, the client left, or a filter ended it.
pub(crate) async fn forward(edge: &Edge, session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
    let mut client = Client::of(session, ctx)?;
    let forwarded = attempts(edge, session, ctx, &mut client).await;
    if forwarded.is_err() {
        client.put_back(session, ctx);
    }
    forwarded
}

async fn attempts(edge: &Edge, session: &mut Session, ctx: &mut RequestCtx, client: &mut Client) -> Result<()> {
    for _ in 1..ATTEMPTS_MAX {
        match attempt(edge, session, ctx, client).await {
            Err(error) if error.retry() => {}
            done => return done,
        }
    }
    attempt(edge, session, ctx, client).await
}

/// How the client is written to. Filters need no session of their own in its place where we write to it ourselves.
enum Client {
    Plain,
    /// Through the chain in the request's slot.
    Filtered(Outbound),
}

impl Client {
    fn of(session: &mut Session, ctx: &RequestCtx) -> Result<Self> {
        let Some(slot) = &ctx.slot else { return Ok(Self::Plain) };
        FilteredSession::take_off(&mut session.downstream_session, slot).map(Self::Filtered).ok_or_else(lost)
    }

    async fn write(&mut self, session: &mut Session, slot: Option<&Slot>, tasks: Vec<HttpTask>) -> Result<()> {
        match self {
            Self::Plain => session.write_response_tasks(tasks).await.map(drop),
            Self::Filtered(out) => {
                out.write(slot.ok_or_else(lost)?, &mut session.downstream_session, tasks).await.map(drop)
            }
        }
    }

    async fn finish(&mut self, session: &mut Session, slot: Option<&Slot>) -> Result<()> {
        let finished = match self {
            Self::Plain => session.downstream_session.finish_body().await,
            Self::Filtered(out) => out.finish(slot.ok_or_else(lost)?, &mut session.downstream_session).await,
        };
        finished.map_err(Error::into_down)
    }

    /// The client has left.
    fn leaves(&mut self) {
        if let Self::Filtered(out) = self {
            out.breaks();
        }
    }

    /// What Pingora answers in its place passes the filters.
    fn put_back(self, session: &mut Session, ctx: &RequestCtx) {
        if let (Self::Filtered(out), Some(slot)) = (self, &ctx.slot) {
            FilteredSession::put_on(&mut session.downstream_session, slot, out, RequestBody::Untouched);
        }
    }
}

async fn attempt(edge: &Edge, session: &mut Session, ctx: &mut RequestCtx, client: &mut Client) -> Result<()> {
    let peer = edge.upstream_peer(session, ctx).await?;
    let (mut exchange, reused) = match edge.pool.take(&peer).await {
        Ok(connected) => connected,
        Err(error) => return Err(edge.fail_to_connect(session, &peer, ctx, error).into_up()),
    };
    match run(edge, session, ctx, client, &peer, &mut exchange).await {
        Ok(()) => {
            let most = ctx.lease.as_ref().and_then(|lease| lease.endpoint().rules().pool?.idle);
            edge.pool.keep(exchange, &peer, most.map_or(usize::MAX, usize::from));
            Ok(())
        }
        Err(error) => Err(edge.error_while_proxy(&peer, session, error, ctx, reused)),
    }
}

/// One exchange over this connection.
async fn run(
    edge: &Edge,
    session: &mut Session,
    ctx: &mut RequestCtx,
    client: &mut Client,
    peer: &HttpPeer,
    exchange: &mut Exchange,
) -> Result<()> {
    let stream = exchange.stream();
    let digest = ctx.is_asked_for_facts().then(|| Digest {
        ssl_digest: stream.get_ssl_digest(),
        timing_digest: stream.get_timing_digest(),
        proxy_digest: stream.get_proxy_digest(),
        socket_digest: stream.get_socket_digest(),
    });
    forward::connected(session, peer, digest.as_ref(), stream.id(), ctx)?;
    forward::connected_by_us(exchange, ctx);

    let mut request = for_next_hop(session.req_header())?;
    edge.upstream_request_filter(session, &mut request, ctx).await?;
    edge.request_body_filter(session, &mut None, true, ctx).await?;
    exchange.send(&request).await.map_err(Error::into_up)?;

    loop {
        let mut response = or_client_leaves(session, client, exchange.response()).await?;
        edge.upstream_response_filter(session, &mut response, ctx).await?;
        let interim = response.status.is_informational();
        let ended = !interim && exchange.has_ended();
        if !interim && !ended {
            in_chunks_if_endless(&mut response, session.req_header())?;
        }
        edge.response_filter(session, &mut response, ctx).await?;
        if !interim {
            return answer(edge, session, ctx, client, exchange, response, ended).await;
        }
        client.write(session, ctx.slot.as_deref(), vec![HttpTask::Header(response, false)]).await?;
    }
}

/// Passes the response on, with as much of its body in the first write as has come with the header.
async fn answer(
    edge: &Edge,
    session: &mut Session,
    ctx: &mut RequestCtx,
    client: &mut Client,
    exchange: &mut Exchange,
    response: Box<ResponseHeader>,
    mut ended: bool,
) -> Result<()> {
    let mut tasks = Vec::with_capacity(2);
    tasks.push(HttpTask::Header(response, ended));
    if ended {
        edge.upstream_response_body_filter(session, &mut None, true, ctx)?;
    }
    loop {
        while !ended && tasks.len() < PIECES {
            let piece = exchange.ready().map_err(Error::into_up)?;
            ended = exchange.has_ended();
            if piece.is_none() && !ended {
                break;
            }
            tasks.push(pass(edge, session, ctx, piece, ended)?);
        }
        if !tasks.is_empty() {
            client.write(session, ctx.slot.as_deref(), std::mem::take(&mut tasks)).await?;
        }
        if ended {
            break;
        }
        let piece = match or_client_leaves(session, client, exchange.body()).await {
            Ok(piece) => piece,
            Err(error) if *error.esource() == ErrorSource::Upstream => {
                // The client's side learns of it as on Pingora's way, and gives it back.
                client.write(session, ctx.slot.as_deref(), vec![HttpTask::Failed(error)]).await?;
                return Err(Error::explain(ErrorType::ConnectionClosed, "the response was cut off").into_up());
            }
            Err(error) => return Err(error),
        };
        ended = exchange.has_ended();
        tasks.push(pass(edge, session, ctx, piece, ended)?);
    }
    client.finish(session, ctx.slot.as_deref()).await
}

fn pass(
    edge: &Edge,
    session: &mut Session,
    ctx: &mut RequestCtx,
    mut piece: Option<Bytes>,
    ended: bool,
) -> Result<HttpTask> {
    edge.upstream_response_body_filter(session, &mut piece, ended, ctx)?;
    Ok(HttpTask::Body(piece, ended))
}

/// What comes of this, unless the client leaves before.
async fn or_client_leaves<T>(
    session: &mut Session,
    client: &mut Client,
    coming: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::select! {
        biased; // What has come is taken first.
        came = coming => came.map_err(Error::into_up),
        left = session.downstream_session.read_body_or_idle(true) => {
            client.leaves();
            let left = left.err().unwrap_or_else(|| Error::explain(ErrorType::ConnectionClosed, "the client sends more than its request"));
            Err(left.into_down())
        }
    }
}

/// Fields that are for one connection alone, or for the proxy (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::UPGRADE,
];
const HOP_BY_HOP_NAMES: [&str; 3] = ["keep-alive", "proxy-connection", "http2-settings"];

fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name) || HOP_BY_HOP_NAMES.contains(&name.as_str())
}

/// The request as HTTP/1.1 of our own, without what was for our connection with the client.
fn for_next_hop(received: &RequestHeader) -> Result<RequestHeader> {
    let mut request = received.clone();
    request.set_version(Version::HTTP_11);
    if received.version == Version::HTTP_2 && received.uri.authority().is_some() {
        let host = authority(received).to_vec();
        request.insert_header(header::HOST, host)?;
    }
    let gone: SmallVec<[HeaderName; 2]> = received.headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in &gone {
        request.remove_header(name);
    }
    Ok(request)
}

/// A body whose length nobody knows is told in chunks, so that its end is not the end of the client's connection.
fn in_chunks_if_endless(response: &mut ResponseHeader, request: &RequestHeader) -> Result<()> {
    let told = |fields: &HeaderMap| {
        fields.contains_key(header::TRANSFER_ENCODING) || fields.contains_key(header::CONTENT_LENGTH)
    };
    if request.method == http::Method::HEAD || told(&response.headers) {
        return Ok(());
    }
    response.set_version(Version::HTTP_11);
    response.insert_header(header::TRANSFER_ENCODING, "chunked")
}
