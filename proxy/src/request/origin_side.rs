//! Step 6: filters between the cache and the origin. A route with `origin_filters` is gone through in two halves:
//!
//! ```text
//! client -> admit .. filter -> lookup -- miss, stale --> [pipe] -> filter (origin side) -> forward -> upstream
//!                                 hit                      |              |
//! client <- filter <- respond <---+------- store <------ [pipe] <- filter (origin side) <----------- upstream
//! ```
//!
//! The outer half takes the inner one for its upstream, over a pipe in memory, and fills the cache from it. The inner half is served by a
//! proxy that only such pipes lead to; it has no cache, no limits of clients, and adds nothing to responses. So the chain runs with all it
//! can do for a client (pauses, callouts, whole bodies, replies), at the origin's pace, and nothing of it is in the way of other routes.
//!
//! What the inner half should know of the client, and what the outer one should know of the upstream, is in the [`Hop`] between them. The
//! inner half makes no error pages: it leaves its error there and breaks off, and the error becomes the outer half's.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::Version;
use parking_lot::Mutex;
use pingora::apps::HttpServerApp;
use pingora::connectors::l4::Connect;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::server::Session as HttpSession;
use pingora::protocols::http::v2::server::{self as h2, H2Accept, default_h2_options};
use pingora::protocols::l4::socket::SocketAddr as L4Address;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::protocols::{ALPN, Digest};
use pingora::proxy::{HttpProxy, Session};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, Result};
use selvedge_wasm::Trace;
use tokio::sync::watch;
use tracing::debug;

use super::downstream::Downstream;
use super::filter::{self, Answered};
use super::{Edge, RequestCtx, admit, fail, forward, lookup, step};
use crate::attempt::{self, Attempts};
use crate::chain::ExchangeState;
use crate::chain::exchange::SetProperty;
use crate::chain::exchange::facts::{Cached, Connection, Contact};
use crate::cluster;
use crate::pipe::Pipe;
use crate::plan::{Plan, Route};
use crate::upstream::{Endpoint, Lease};

/// What fits into the pipe before the other half reads.
const PIPE: usize = 64 * 1024;

/// What may be on its way in the pipe over HTTP/2, in each direction.
const WINDOW: u32 = 1 << 20;

/// Which halves an edge sees to.
pub(crate) enum Half {
    /// The outer ones, and whole requests; with the proxy of their inner halves, from the first one on. It has connections of its own to
    /// upstreams.
    Outer(Arc<ServerConf>, OnceLock<Arc<HttpProxy<Edge, Attempts>>>),
    /// The inner ones.
    Inner,
}

impl Half {
    /// That of clients' requests.
    pub(crate) fn outer(conf: &Arc<ServerConf>) -> Self {
        Self::Outer(Arc::clone(conf), OnceLock::new())
    }

    pub(super) fn is_inner(&self) -> bool {
        matches!(self, Self::Inner)
    }
}

/// Which half of a request it is.
#[derive(Default)]
pub(crate) enum Side {
    /// All of it, so far.
    #[default]
    Whole,
    /// The client's.
    Outer(Arc<Hop>),
    /// The origin's.
    Inner(Arc<Hop>),
}

impl RequestCtx {
    /// Whether it is the inner half of a request.
    pub(crate) fn is_inner(&self) -> bool {
        matches!(self.side, Side::Inner(_))
    }

    /// The way to its inner half, once it has taken it.
    fn inner_half(&self) -> Option<&Arc<Hop>> {
        if let Side::Outer(hop) = &self.side { Some(hop) } else { None }
    }

    /// The way to its outer half, if this is the inner one.
    pub(super) fn outer_half(&self) -> Option<&Arc<Hop>> {
        if let Side::Inner(hop) = &self.side { Some(hop) } else { None }
    }

    /// Whether it is the inner half of a request that nobody waits for.
    pub(super) fn is_inner_in_background(&self) -> bool {
        self.outer_half().is_some_and(|hop| hop.in_background)
    }

    /// How the client's request was received, for `Via`.
    pub(super) fn received(&self, session: &Session) -> Version {
        self.outer_half().map_or(session.req_header().version, |hop| hop.received)
    }

    /// Whether its upstream is its own inner half.
    pub(super) fn has_inner_half(&self) -> bool {
        self.inner_half().is_some()
    }

    /// The endpoint that its inner half has gone to last.
    pub(crate) fn endpoint_inside(&self) -> Option<Arc<Endpoint>> {
        self.inner_half()?.left.lock().endpoint.clone()
    }

    /// How often it was sent, by itself or by its inner half.
    pub(crate) fn times_sent(&self) -> u32 {
        self.inner_half().map_or(self.attempts, |hop| hop.left.lock().attempts)
    }
}

/// What the halves of a request tell each other beside the request and its response.
pub(crate) struct Hop {
    number: u64,
    plan: Arc<Plan>,
    started: Instant,
    received: Version,
    downstream: Downstream,
    route: Arc<Route>,
    upstream: Option<String>,
    trace: Option<Arc<Trace>>,
    server: Option<SocketAddr>,
    connection: Connection,
    cached: Option<Cached>,
    properties: Vec<SetProperty>,
    /// Nobody waits for it: it refreshes what is stored.
    in_background: bool,
    /// What the inner half leaves.
    left: Mutex<Left>,
}

#[derive(Default)]
struct Left {
    attempts: u32,
    endpoint: Option<Arc<Endpoint>>,
    contact: Contact,
    error: Option<Box<Error>>,
}

impl Hop {
    /// What a filter of the inner half may know, as those of the outer half.
    pub(super) fn introduce(self: &Arc<Self>, state: &mut ExchangeState) {
        state.is_at_origin(self, self.server, &self.connection, self.cached.clone(), self.properties.clone());
    }

    /// The inner half breaks off, with this error. The first one counts; none does when it is the outer half that is gone.
    pub(crate) fn broke(&self, error: &Error) {
        if *error.esource() != ErrorSource::Downstream {
            self.left.lock().error.get_or_insert_with(|| fail::carried(error));
        }
    }
}

tokio::task_local! {
    /// The hop that this exchange is the inner half of.
    static HOP: Arc<Hop>;
}

/// The way to the inner half.
///
/// # Errors
/// The inner half has no inner half: never, as hooks are.
pub(super) fn peer(edge: &Edge, session: &Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
    /// Tells connections apart: each is for one request, and in no pool.
    static NUMBER: AtomicU64 = AtomicU64::new(1);

    step!(ctx, "inner");
    let Half::Outer(conf, proxy) = &edge.half else {
        return Error::e_explain(ErrorType::InternalError, "an inner half asks for one");
    };
    let proxy = proxy.get_or_init(|| {
        let inner = Edge {
            current: Arc::clone(&edge.current),
            listener: Arc::clone(&edge.listener),
            worker: edge.worker,
            access_log: edge.access_log.clone(),
            pool: Arc::clone(&edge.pool),
            keeping: Arc::default(),
            witness: edge.witness.clone(),
            half: Half::Inner,
        };
        Arc::new(attempt::proxy(conf, inner, None))
    });
    let mut properties = Vec::new();
    ctx.note(|state| properties = state.set_by_filters().to_vec());
    let hop = Arc::new(Hop {
        number: ctx.number,
        plan: Arc::clone(&ctx.plan),
        started: ctx.started,
        received: session.req_header().version,
        downstream: ctx.downstream,
        route: Arc::clone(ctx.route()?),
        upstream: ctx.upstream.clone(),
        trace: ctx.trace.clone(),
        server: session.server_addr().and_then(|address| address.as_inet()).copied(),
        connection: Connection::of(session.digest()),
        cached: lookup::facts(session, ctx),
        properties,
        in_background: session.subrequest_ctx.is_some(),
        left: Mutex::default(),
    });

    let http2 = hop.received == Version::HTTP_2; // As the client speaks: what HTTP/1 cannot carry is lost on it anyway.
    let mut peer = Box::new(HttpPeer::new((std::net::Ipv4Addr::UNSPECIFIED, 0), false, String::new()));
    peer.group_key = NUMBER.fetch_add(1, Ordering::Relaxed);
    peer.options.idle_timeout = Some(Duration::ZERO);
    peer.options.alpn = if http2 { ALPN::H2 } else { ALPN::H1 };
    peer.options.max_h2_streams = 1;
    peer.options.h2_stream_window_size = Some(WINDOW);
    peer.options.h2_connection_window_size = Some(WINDOW);
    peer.options.custom_l4 = Some(Arc::new(Dial { proxy: Arc::clone(proxy), hop: Arc::clone(&hop), http2 }));
    ctx.side = Side::Outer(hop);
    Ok(peer)
}

/// Connects to the inner half: it begins.
struct Dial {
    proxy: Arc<HttpProxy<Edge, Attempts>>,
    hop: Arc<Hop>,
    http2: bool,
}

#[async_trait]
impl Connect for Dial {
    async fn connect(&self, _address: &L4Address) -> Result<Stream> {
        let (ours, theirs) = tokio::io::duplex(PIPE);
        let [ours, theirs] = [ours, theirs].map(|end| Stream::from(VirtualSocketStream::new(Box::new(Pipe(end)))));
        let (proxy, hop, http2) = (Arc::clone(&self.proxy), Arc::clone(&self.hop), self.http2);
        // It ends with the pipe: when the outer half is dropped, reading and writing fail here.
        tokio::spawn(HOP.scope(hop, async move {
            // As good as a node that stops: no second request is waited for.
            let (_stop, shutdown) = watch::channel(true);
            if http2 {
                serve_h2(&proxy, theirs, &shutdown).await;
            } else {
                let session = HttpSession::new_http1(Box::new(theirs));
                drop(proxy.process_new_http(session, &shutdown).await);
            }
        }));
        Ok(ours)
    }
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dial")
    }
}

/// Serves the one stream of a connection.
async fn serve_h2(proxy: &Arc<HttpProxy<Edge, Attempts>>, stream: Stream, shutdown: &ShutdownWatch) {
    let mut options = default_h2_options();
    options.initial_window_size(WINDOW).initial_connection_window_size(WINDOW).max_concurrent_streams(1);
    let accepted = async {
        let mut connection = h2::handshake(Box::new(stream), Some(options)).await?;
        let accepted = h2::HttpSession::from_h2_conn(&mut connection, Arc::new(Digest::default())).await?;
        Ok::<_, Box<Error>>((connection, accepted))
    };
    let (mut connection, session) = match accepted.await {
        Ok((connection, Some(H2Accept::Session(session)))) => (connection, session),
        Ok(_) => return,
        Err(error) => return debug!(%error, "the inner half of a request did not begin"),
    };
    let served = proxy.process_new_http(HttpSession::new_http2(session), shutdown);
    tokio::pin!(served);
    loop {
        // Waiting for another stream, which does not come, is what moves this one.
        tokio::select! {
            _ = &mut served => break,
            other = connection.accept() => {
                if !matches!(other, Some(Ok(_))) {
                    drop(served.await); // The outer half is gone: the session finds that out for itself.
                    return;
                }
            }
        }
    }
    connection.graceful_shutdown();
    while let Some(Ok(_)) = connection.accept().await {}
}

/// The inner half begins, with what the outer one knows.
///
/// # Errors
/// There is no outer half: never, as only [`Dial`] leads here.
pub(super) fn admit(session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
    let hop = HOP.try_with(Arc::clone).map_err(|_| Error::explain(ErrorType::InternalError, "no outer half"))?;
    session.downstream_session.set_keepalive(None);
    // The outer half may still be sending when its answer comes.
    session.downstream_session.set_close_on_response_before_downstream_finish(false);
    admit::name_host(session.req_header_mut())?;
    ctx.number = hop.number;
    ctx.plan = Arc::clone(&hop.plan);
    ctx.started = hop.started;
    ctx.downstream = hop.downstream;
    ctx.route = Some(Arc::clone(&hop.route));
    ctx.upstream.clone_from(&hop.upstream);
    ctx.trace.clone_from(&hop.trace);
    ctx.body_limit = u64::MAX; // The outer half counts.
    ctx.side = Side::Inner(hop);
    Ok(())
}

/// The chain runs over the request; true when a filter has answered.
///
/// # Errors
/// As [`filter::request`].
pub(super) async fn begin(edge: &Edge, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
    step!(ctx, "filter", direction = "origin request");
    Ok(filter::request(edge, session, ctx).await? == Answered::Yes)
}

/// The request as the inner half gets it: what the upstream is told, that half says.
///
/// # Errors
/// Filters have left an authority that no server may be sent.
pub(super) fn request(session: &Session, request: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    forward::reconcile(session, request, ctx)?;
    if cluster::serve::is_visitor(ctx) {
        cluster::wire::strip(request);
    }
    Ok(())
}

/// What is known of the upstream, for the outer half: who was tried, and how that went.
pub(super) fn leave(ctx: &RequestCtx) {
    let Some(hop) = ctx.outer_half() else { return };
    let mut contact = Contact::default();
    ctx.tell(|known| contact = known.contact.clone());
    let mut left = hop.left.lock();
    (left.attempts, left.contact) = (ctx.attempts, contact);
    left.endpoint = ctx.lease.as_ref().map(Lease::shared);
}

/// The inner half's response has begun, or broken off: the filters of the outer one may know who was asked.
pub(super) fn answered(ctx: &RequestCtx) {
    let Some(hop) = ctx.inner_half() else { return };
    let contact = hop.left.lock().contact.clone();
    ctx.tell(|known| known.contact = contact);
}

/// The exchange with the inner half broke off: because of its error, if it has left one. It has tried again what may be tried again.
pub(super) fn broken(session: &Session, ctx: &RequestCtx, error: Box<Error>) -> Box<Error> {
    answered(ctx);
    let told = ctx.inner_half().filter(|_| *error.esource() == ErrorSource::Upstream);
    let mut error = told.and_then(|hop| hop.left.lock().error.take()).unwrap_or(error);
    error.set_retry(false);
    lookup::failed(session, ctx, &error);
    error
}

/// The filters of the inner half are told where the response comes from.
pub(super) fn tell(response: &ResponseHeader, ctx: &RequestCtx) {
    if !response.status.is_informational() {
        ctx.note(|state| state.details = Some("via_upstream".into()));
    }
}
