//! Listeners: accepting connections, TLS, and handing them to Pingora, each on the worker that accepted it.

pub(crate) mod arrival;
pub(crate) mod connection;
mod proxy_protocol;
pub(crate) mod stream;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::header;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::http::RequestHeader;
use pingora::listeners::tls::Acceptor;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::tls::TlsRef;
use pingora::protocols::{ALPN, Ssl, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use pingora::{ErrorType, OrErr};
use selvedge_config::{Listener, Protocol, ProxyProtocol, RedirectToHttps};
use tokio::sync::mpsc;
use tracing::{debug, warn};

use self::arrival::{Arrivals, Ends};
use self::connection::{CONNECTION, Connection, Shared, header_is_read, is_idle, overdue, stopped_while_silent};
use self::stream::{Accepting, ClientStream};
use crate::attempt::Attempts;
use crate::cluster;
use crate::request::Edge;
use crate::telemetry::counters::Counters;
use crate::tls::{self, CertificateStore, End, Handshake, ListenerTls};
use crate::transport::{Told, Transport};

/// What a request needs to know about where it arrived.
#[derive(Debug)]
pub struct ListenerFacts {
    /// The listener's number: the same for its name, whatever is reloaded.
    pub index: usize,
    /// Its name in the configuration.
    pub name: String,
    /// Whether it is on a Unix socket: who connects has no address.
    pub unix: bool,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Whether upstreams are told the client's certificate.
    pub tells_certificate: bool,
    /// Whether HTTP/2 is offered: by ALPN with TLS, by prior knowledge without.
    pub http2: bool,
    /// Whether HTTP/1 is offered.
    pub http1: bool,
    /// Whether other nodes of the cluster connect here, and nobody else.
    pub cluster: bool,
    /// Whether connections are forwarded as they are, whatever is spoken on them.
    pub tcp: bool,
    /// Whether connections begin with a PROXY protocol header.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Set where everybody is sent to https.
    pub redirect_to_https: Option<RedirectToHttps>,
    /// The longest request body taken, in bytes; longer ones get 413.
    pub body_limit: u64,
    /// The largest request header, in bytes; a larger one gets 431.
    pub header_size: u64,
    /// How many fields it may have; more get 431.
    pub header_count: usize,
    /// The longest target, in bytes; a longer one gets 414.
    pub uri_length: usize,
    /// How long a client may take over a request header, once the connection stopped being idle.
    pub header_timeout: Duration,
    /// How many connections there may be at once.
    pub connections: usize,
    /// How many of them one client may have; `None` = any number.
    pub connections_per_client: Option<u32>,
    /// How many bytes of a body must come in a second at least, on average; 0 = any number.
    pub upload_rate: u64,
    /// How long a whole request may take to arrive; `None` = any time.
    pub request_time: Option<Duration>,
    /// How many requests a connection may carry; `None` = any number.
    pub requests_per_connection: Option<u32>,
    /// How many HTTP/2 streams may be open at once on a connection.
    pub h2_streams: u32,
    /// How many HTTP/2 streams of a connection may be given up before their answers begin, less those that were waited for.
    pub h2_resets: u32,
    /// How long a connection may be idle between two requests, and a read or write may take within one.
    pub idle_timeout: Duration,
}

impl ListenerFacts {
    /// What is said of a listener of this name and number.
    pub(crate) fn of(name: &str, listener: &Listener, index: usize) -> Self {
        // What is spoken for TCP is nobody's business: no protocol is offered.
        let speaks = |protocol| listener.tcp.is_none() && listener.protocols.contains(&protocol);
        Self {
            index,
            name: name.to_owned(),
            unix: listener.bind.tcp().is_none(),
            tls: listener.tls.is_some(),
            tells_certificate: listener
                .tls
                .as_ref()
                .and_then(|tls| tls.clients.as_ref())
                .is_some_and(|clients| clients.forward),
            http2: speaks(Protocol::H2),
            http1: speaks(Protocol::H1),
            cluster: name == cluster::LISTENER,
            tcp: listener.tcp.is_some(),
            proxy_protocol: listener.proxy_protocol,
            redirect_to_https: listener.redirect_to_https,
            body_limit: listener.limits.body.bytes(),
            header_size: listener.limits.header_size.bytes(),
            header_count: listener.limits.header_count.into(),
            uri_length: listener.limits.uri_length.as_usize(),
            header_timeout: listener.limits.header_timeout,
            idle_timeout: listener.limits.idle_timeout,
            connections: listener.limits.connections.into(),
            connections_per_client: listener.limits.connections_per_client.map(u32::from),
            upload_rate: listener.limits.upload_rate.0,
            request_time: listener.limits.request_time,
            requests_per_connection: listener.limits.requests_per_connection.map(u32::from),
            h2_streams: listener.limits.h2_streams.into(),
            h2_resets: listener.limits.h2_resets.into(),
        }
    }

    /// Whether there is a limit to how slowly a body may come.
    pub(crate) fn judges_uploads(&self) -> bool {
        self.upload_rate > 0 || self.request_time.is_some()
    }

    /// `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// Connections are kept between requests, and [`overdue`] ends idle ones: a timer of Pingora's own per request would only cost.
pub(crate) const KEEPALIVE: u64 = 0;

/// How much a client may upload on one HTTP/2 stream before it has to wait for us. The protocol's own 64 KiB would allow 1.3 MB/s over a
/// distance of 50 ms.
const H2_STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a connection, which bounds what one client can make us hold.
const H2_CONNECTION_WINDOW: u32 = 4 << 20;

/// How many streams a client may reset before they are taken up, which is at once; one more ends the connection with a GOAWAY.
const H2_PENDING_RESETS: usize = 20;
/// How many streams of a connection may be reset by us because they break the protocol; one more ends it with a GOAWAY.
const H2_ERROR_RESETS: usize = 256;

/// Pingora's HTTP application behind a listener: the proxy, and a deadline on every request header.
pub(crate) struct Door {
    pub(crate) proxy: Arc<HttpProxy<Edge, Attempts>>,
    pub(crate) facts: Arc<ListenerFacts>,
    pub(crate) options: HttpServerOptions,
    pub(crate) counters: Arc<Counters>,
}

#[async_trait]
impl HttpServerApp for Door {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: HttpSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if session.as_http1().is_none() {
            if let Some(connection) = session.digest().and_then(Told::connection) {
                connection.opened();
            }
            if self.facts.cluster {
                return Box::pin(self.for_node(session, shutdown)).await;
            }
            let rated = self.facts.upload_rate > 0 && !is_grpc(session.req_header());
            if (rated || self.facts.request_time.is_some()) && !session.is_body_empty() {
                return self.in_time(session, rated, shutdown).await;
            }
            return self.proxy.process_new_http(session, shutdown).await; // HTTP/2 streams come with their header.
        }
        if !self.facts.http1 {
            session.set_keepalive(None);
            let _ = session.respond_error(505).await;
            return None;
        }
        session.set_keepalive(Some(KEEPALIVE));
        is_idle();
        self.proxy.process_new_http(session, shutdown).await
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    /// Asked for once per HTTP/2 connection, when it begins.
    fn h2_options(&self) -> Option<H2Options> {
        header_is_read();
        let mut options = default_h2_options();
        options.initial_window_size(H2_STREAM_WINDOW).initial_connection_window_size(H2_CONNECTION_WINDOW);
        options.max_concurrent_streams(self.facts.h2_streams);
        options.max_header_list_size(u32::try_from(self.facts.header_size).unwrap_or(u32::MAX));
        // A client that resets streams faster than they are taken up is ended here, the others by `Shared::closed`.
        options
            .max_pending_accept_reset_streams(H2_PENDING_RESETS)
            .max_local_error_reset_streams(Some(H2_ERROR_RESETS));
        Some(options)
    }
}

impl Door {
    /// Serves an HTTP/2 stream of another node, which says how long it waits.
    async fn for_node(self: &Arc<Self>, session: HttpSession, shutdown: &ShutdownWatch) -> Option<ReusedHttpStream> {
        let wait = cluster::serve::wait(&session);
        cluster::serve::in_time(wait, self.proxy.process_new_http(session, shutdown)).await.flatten()
    }

    /// Serves an HTTP/2 stream whose request has to be whole in time, or its body to come at a least rate. It has a task of its own, and so
    /// deadlines of its own.
    async fn in_time(
        self: &Arc<Self>,
        session: HttpSession,
        rated: bool,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let stream = Connection::of_stream(Shared::new(&self.facts, &self.counters), rated);
        let served = CONNECTION.scope(stream, async {
            tokio::select! {
                biased;
                reused = self.proxy.process_new_http(session, shutdown) => reused,
                () = overdue(&self.facts, &self.counters) => {
                    debug!("no complete request in time"); // Dropped, the stream is reset.
                    None
                }
            }
        });
        Box::pin(served).await
    }
}

/// Accepts until told to stop. Every connection is served on this thread and holds a clone of `alive` to its end.
pub(crate) async fn accept(
    socket: Accepting,
    door: Arc<Door>,
    tls: Option<ListenerTls>,
    shutdown: ShutdownWatch,
    alive: mpsc::Sender<()>,
    arrivals: Arrivals,
) {
    let acceptor = tls.map(|tls| Arc::new((Acceptor::from_server_config(tls.config), tls.certificates)));
    accept_each(socket, arrivals, shutdown.clone(), alive, move |stream, ends| {
        let door = Arc::clone(&door);
        let acceptor = acceptor.clone();
        let shutdown = shutdown.clone();
        async move {
            let peer = ends.client;
            let mut stream = Transport::new(stream, ends);
            if door.facts.judges_uploads() {
                stream.judge_uploads();
            }
            let shared = Shared::new(&door.facts, &door.counters);
            let stopping = shared.shutdown(&shutdown);
            let served = CONNECTION.scope(Connection::new(Arc::clone(&shared)), async {
                // Each is looked at when it is woken itself, not whenever the connection goes on, which it does several times a request.
                let mut ends = FuturesUnordered::<BoxFuture<'_, &'static str>>::new();
                ends.push(Box::pin(async {
                    stopped_while_silent(shutdown.clone(), &shared).await;
                    "the node stops"
                }));
                ends.push(Box::pin(async {
                    shared.ended().await;
                    "a limit was exceeded"
                }));
                ends.push(Box::pin(async {
                    overdue(&door.facts, &door.counters).await;
                    "no complete request in time"
                }));
                tokio::select! {
                    biased;
                    () = serve(stream, &door, acceptor.as_deref(), &stopping) => {}
                    Some(why) = ends.next() => debug!(?peer, why, "closed"),
                }
            });
            served.await;
        }
    })
    .await;
}

/// The loop under [`accept`], whatever is spoken on the connections.
pub(crate) async fn accept_each<S>(
    socket: Accepting,
    arrivals: Arrivals,
    mut shutdown: ShutdownWatch,
    alive: mpsc::Sender<()>,
    serve: impl Fn(ClientStream, Ends) -> S + Send + Sync + 'static,
) where
    S: Future<Output = ()> + Send + 'static,
{
    let (arrivals, serve) = (Arc::new(arrivals), Arc::new(serve));
    let listener = arrivals.facts.name.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = shutdown.wait_for(|stopping| *stopping) => return,
            accepted = socket.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: give connections time to end instead of spinning.
                warn!(listener, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };

        let Some(mut place) = arrivals.enter(peer) else {
            debug!(listener, ?peer, "no room for another connection");
            continue;
        };
        let alive = alive.clone();
        if !arrivals.asks() {
            let served = serve(stream, Ends { client: peer, local: None });
            tokio::spawn(async move {
                let _held = (alive, place);
                served.await;
            });
            continue;
        }
        let (arrivals, serve, shutdown) = (Arc::clone(&arrivals), Arc::clone(&serve), shutdown.clone());
        tokio::spawn(async move {
            let mut stream = stream;
            let ends = arrivals.ask(&mut stream, peer, &mut place, shutdown).await;
            let _held = (alive, place);
            if let Some(ends) = ends {
                serve(stream, ends).await;
            }
        });
    }
}

/// Serves one connection to its end.
async fn serve(
    mut stream: Transport,
    door: &Arc<Door>,
    tls: Option<&(Acceptor, Arc<CertificateStore>)>,
    shutdown: &ShutdownWatch,
) {
    let stream: Stream = match tls {
        None => Box::new(stream),
        Some((acceptor, certificates)) => {
            let told = stream.expect_told();
            let handshake = async {
                if certificates.refuses() {
                    tls::greet(&mut stream, certificates).await.or_err(ErrorType::TLSHandshakeFailure, "refused")?;
                }
                acceptor.tls_handshake(stream).await
            };
            match tokio::time::timeout(door.facts.header_timeout, handshake).await {
                Ok(Ok(stream)) => {
                    door.counters.handshakes.ended(End::Done);
                    let tls = stream.get_ssl();
                    let certificate = tls.and_then(TlsRef::peer_certificate_der);
                    let handshake = Handshake::new(tls.and_then(TlsRef::server_name), certificate);
                    told.handshake(handshake, stream.selected_alpn_proto() == Some(ALPN::H2));
                    Box::new(stream)
                }
                Ok(Err(error)) => {
                    door.counters.handshakes.ended(End::Failed);
                    return debug!(%error, "TLS handshake failed");
                }
                Err(_) => {
                    door.counters.handshakes.ended(End::Timeout);
                    return debug!("TLS handshake took too long");
                }
            }
        }
    };
    let mut next = Some(stream);
    while let Some(stream) = next {
        next = door.process_new(stream, shutdown).await;
    }
}

/// Whether it is a call of gRPC, whose body may be open for as long as both sides like.
fn is_grpc(request: &RequestHeader) -> bool {
    request.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// How long accepting rests after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
