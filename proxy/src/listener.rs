//! Listeners: accepting connections, TLS, and handing them to Pingora, each on the worker that accepted it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora::listeners::tls::Acceptor;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::protocols::tls::TlsRef;
use pingora::protocols::{Ssl, Stream};
use pingora::proxy::HttpProxy;
use pingora::server::ShutdownWatch;
use pingora::{ErrorType, OrErr};
use selvedge_config::{Listener, Protocol};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::crowd::Place;
use crate::request::Edge;
use crate::tls::{self, CertificateStore, ListenerTls};
use crate::transport::Transport;

/// What a request needs to know about where it arrived.
#[derive(Debug)]
pub struct ListenerFacts {
    /// The listener's number: the same for its name, whatever is reloaded.
    pub index: usize,
    /// Its name in the configuration.
    pub name: String,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Whether HTTP/2 is offered: by ALPN with TLS, by prior knowledge without.
    pub http2: bool,
    /// Whether HTTP/1 is offered.
    pub http1: bool,
    /// Whether connections are forwarded as they are, whatever is spoken on them.
    pub tcp: bool,
    /// The longest request body taken, in bytes; longer ones get 413.
    pub body_limit: u64,
    /// How long a client may take over a request header, once the connection stopped being idle.
    pub header_timeout: Duration,
    /// How many connections there may be at once.
    pub connections: usize,
    /// How many of them one client may have; `None` = any number.
    pub connections_per_client: Option<u32>,
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
            tls: listener.tls.is_some(),
            http2: speaks(Protocol::H2),
            http1: speaks(Protocol::H1),
            tcp: listener.tcp.is_some(),
            body_limit: listener.limits.body.bytes(),
            header_timeout: listener.limits.header_timeout,
            idle_timeout: listener.limits.idle_timeout,
            connections: listener.limits.connections.into(),
            connections_per_client: listener.limits.connections_per_client.map(u32::from),
        }
    }

    /// `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// What an HTTP/1 connection is doing, for its deadlines.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    /// Waiting for the first byte of a request.
    Idle,
    /// Receiving a request header.
    Header,
    /// Being served; or speaking HTTP/2, which has deadlines of its own.
    Exchange,
}

struct Connection {
    /// With a number that changes whenever it does something else, so that [`overdue`] notices without a clock.
    doing: Cell<(Doing, u64)>,
    /// The client has sent something at all.
    begun: Cell<bool>,
}

impl Connection {
    fn new() -> Self {
        Self { doing: Cell::new((Doing::Idle, 0)), begun: Cell::new(false) }
    }

    fn turns_to(&self, doing: Doing) {
        self.doing.set((doing, self.doing.get().1.wrapping_add(1)));
    }
}

tokio::task_local! {
    static CONNECTION: Connection;
}

/// Says that bytes have come from the client.
pub(crate) fn bytes_have_come() {
    let _ = CONNECTION.try_with(|connection| {
        connection.begun.set(true);
        if connection.doing.get().0 == Doing::Idle {
            connection.turns_to(Doing::Header);
        }
    });
}

/// Says that the request header is complete: the deadline for it no longer applies.
pub(crate) fn header_is_read() {
    let _ = CONNECTION.try_with(|connection| connection.turns_to(Doing::Exchange));
}

/// Ends when a header is overdue, or the connection was idle for too long; at most half a deadline late. Looks twice per deadline: one
/// timer per connection and interval, and no clock read, instead of both per request.
async fn overdue(facts: &ListenerFacts) {
    let interval = facts.header_timeout.min(facts.idle_timeout) / 2;
    let mut seen = CONNECTION.with(|connection| connection.doing.get());
    let mut lasted = Duration::ZERO;
    loop {
        // Pingora's coarse timer: thousands of connections share a few entries.
        pingora::time::fast_timeout::fast_sleep(interval).await;
        let now = CONNECTION.with(|connection| connection.doing.get());
        lasted = if now == seen { lasted + interval } else { Duration::ZERO };
        seen = now;
        let late = match now.0 {
            Doing::Idle => lasted >= facts.idle_timeout,
            Doing::Header => lasted >= facts.header_timeout,
            Doing::Exchange => false,
        };
        if late {
            return;
        }
    }
}

/// Ends when the node stops while the connection has not said a word. One that has is told by Pingora.
async fn stopped_while_silent(mut shutdown: ShutdownWatch) {
    let stopping = shutdown.wait_for(|stopping| *stopping).await.is_ok();
    if !stopping || CONNECTION.with(|connection| connection.begun.get()) {
        std::future::pending().await
    }
}

/// Connections are kept between requests, and [`overdue`] ends idle ones: a timer of Pingora's own per request would only cost.
pub(crate) const KEEPALIVE: u64 = 0;

/// How much a client may upload on one HTTP/2 stream before it has to wait for us. The protocol's own 64 KiB would allow 1.3 MB/s over a
/// distance of 50 ms.
const H2_STREAM_WINDOW: u32 = 1 << 20;
/// The same for all streams of a connection, which bounds what one client can make us hold.
const H2_CONNECTION_WINDOW: u32 = 4 << 20;

/// Pingora's HTTP application behind a listener: the proxy, and a deadline on every request header.
pub(crate) struct Door {
    pub(crate) proxy: Arc<HttpProxy<Edge>>,
    pub(crate) facts: Arc<ListenerFacts>,
    pub(crate) options: HttpServerOptions,
}

#[async_trait]
impl HttpServerApp for Door {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: HttpSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        if session.as_http1().is_none() {
            return self.proxy.process_new_http(session, shutdown).await; // HTTP/2 streams come with their header.
        }
        if !self.facts.http1 {
            session.set_keepalive(None);
            let _ = session.respond_error(505).await;
            return None;
        }
        session.set_keepalive(Some(KEEPALIVE));
        let _ = CONNECTION.try_with(|connection| connection.turns_to(Doing::Idle));
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
        Some(options)
    }
}

/// Accepts until told to stop. Every connection is served on this thread and holds a clone of `alive` to its end.
pub(crate) async fn accept(
    socket: tokio::net::TcpListener,
    door: Arc<Door>,
    tls: Option<ListenerTls>,
    shutdown: ShutdownWatch,
    alive: mpsc::Sender<()>,
    room: impl Fn(SocketAddr) -> Option<Place>,
) {
    let acceptor = tls.map(|tls| Arc::new((Acceptor::from_server_config(tls.config), tls.certificates)));
    let name = door.facts.name.clone();
    accept_each(socket, &name, shutdown.clone(), alive, room, |stream, peer| {
        let door = Arc::clone(&door);
        let acceptor = acceptor.clone();
        let shutdown = shutdown.clone();
        async move {
            let stream = Transport::new(stream, peer);
            let served = CONNECTION.scope(Connection::new(), async {
                tokio::select! {
                    biased;
                    () = serve(stream, &door, acceptor.as_deref(), &shutdown) => {}
                    () = stopped_while_silent(shutdown.clone()) => {}
                    () = overdue(&door.facts) => debug!(%peer, "no complete request in time"),
                }
            });
            served.await;
        }
    })
    .await;
}

/// The loop under [`accept`], whatever is spoken on the connections.
pub(crate) async fn accept_each<S>(
    socket: tokio::net::TcpListener,
    listener: &str,
    mut shutdown: ShutdownWatch,
    alive: mpsc::Sender<()>,
    room: impl Fn(SocketAddr) -> Option<Place>,
    serve: impl Fn(TcpStream, SocketAddr) -> S,
) where
    S: Future<Output = ()> + Send + 'static,
{
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

        let Some(place) = room(peer) else {
            debug!(listener, %peer, "no room for another connection");
            continue;
        };
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%peer, %error, "TCP_NODELAY was refused");
        }
        let alive = alive.clone();
        let served = serve(stream, peer);
        tokio::spawn(async move {
            let _held = (alive, place);
            served.await;
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
            let server_name = stream.expect_server_name();
            let handshake = async {
                if certificates.refuses() {
                    tls::greet(&mut stream, certificates).await.or_err(ErrorType::TLSHandshakeFailure, "refused")?;
                }
                acceptor.tls_handshake(stream).await
            };
            match tokio::time::timeout(door.facts.header_timeout, handshake).await {
                Ok(Ok(stream)) => {
                    server_name.set(stream.get_ssl().and_then(TlsRef::server_name));
                    Box::new(stream)
                }
                Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
                Err(_) => return debug!("TLS handshake took too long"),
            }
        }
    };
    let mut next = Some(stream);
    while let Some(stream) = next {
        next = door.process_new(stream, shutdown).await;
    }
}

/// How long accepting rests after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
