//! Listeners: accepting connections, TLS, and handing them to Pingora, each on the worker that accepted it.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::Stream;
use pingora_core::protocols::http::server::Session as HttpSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::request::Edge;
use crate::transport::Transport;

/// What a request needs to know about where it arrived.
#[derive(Debug)]
pub struct ListenerFacts {
    /// The listener's place among the listeners, in the order of their names.
    pub index: usize,
    /// Its name in the configuration.
    pub name: String,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Whether HTTP/2 is offered: by ALPN with TLS, by prior knowledge without.
    pub http2: bool,
    /// Whether HTTP/1 is offered.
    pub http1: bool,
    /// The longest request body taken, in bytes; longer ones get 413.
    pub body_limit: u64,
    /// How long a client may take over a request header, once the connection stopped being idle.
    pub header_timeout: Duration,
    /// How long a connection may be idle between two requests, and a read or write may take within one.
    pub idle_timeout: Duration,
}

impl ListenerFacts {
    /// `https` or `http`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// A bound listener, before its workers take it over.
pub struct Bound {
    /// What requests see of it.
    pub facts: Arc<ListenerFacts>,
    /// The address it really has: the one asked for, with a real port in place of 0.
    pub address: SocketAddr,
    /// The socket, shared by all workers.
    pub socket: TcpListener,
    /// Set for TLS.
    pub tls: Option<Arc<rustls::ServerConfig>>,
}

tokio::task_local! {
    /// Since when this connection waits for a complete request header; `None` while a request is served.
    static READING_SINCE: Cell<Option<Instant>>;
}

/// Says that the request header is complete: the deadline for reading it no longer applies.
pub(crate) fn header_is_read() {
    let _ = READING_SINCE.try_with(|since| since.set(None));
}

/// Ends when the connection has waited longer than `limit` for a request header. Looks rarely: a timer per connection and interval
/// instead of one per request.
async fn header_overdue(limit: Duration) {
    loop {
        // Pingora's coarse timer: thousands of connections share a few entries.
        pingora_timeout::fast_timeout::fast_sleep(limit / 2).await;
        if READING_SINCE.with(Cell::get).is_some_and(|since| since.elapsed() > limit) {
            return;
        }
    }
}

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
        session.set_keepalive(Some(self.facts.idle_timeout.as_secs().max(1)));
        let _ = READING_SINCE.try_with(|since| since.set(Some(Instant::now())));
        self.proxy.process_new_http(session, shutdown).await
    }

    async fn http_cleanup(&self) {
        self.proxy.http_cleanup().await;
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }

    fn h2_options(&self) -> Option<H2Options> {
        self.proxy.h2_options()
    }
}

/// Accepts until told to stop. Every connection is served on this thread and holds a clone of `alive` to its end.
pub(crate) async fn accept(
    socket: tokio::net::TcpListener,
    door: Arc<Door>,
    tls: Option<Arc<rustls::ServerConfig>>,
    mut shutdown: ShutdownWatch,
    alive: mpsc::Sender<()>,
) {
    let acceptor = tls.map(|config| Arc::new(Acceptor::from_server_config(config)));
    loop {
        let accepted = tokio::select! {
            biased;
            _ = shutdown.changed() => return,
            accepted = socket.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: give connections time to end instead of spinning.
                warn!(listener = %door.facts.name, %error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };

        let door = Arc::clone(&door);
        let acceptor = acceptor.clone();
        let shutdown = shutdown.clone();
        let alive = alive.clone();
        tokio::spawn(async move {
            let _alive = alive;
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%peer, %error, "TCP_NODELAY was refused");
            }
            let stream = Transport::new(stream, peer);
            let overdue = door.facts.idle_timeout + door.facts.header_timeout;
            let served = READING_SINCE.scope(Cell::new(None), async {
                tokio::select! {
                    biased;
                    () = serve(stream, &door, acceptor.as_deref(), &shutdown) => {}
                    () = header_overdue(overdue) => debug!(%peer, "no complete request header in time"),
                }
            });
            served.await;
        });
    }
}

/// Serves one connection to its end.
async fn serve(stream: Transport, door: &Arc<Door>, tls: Option<&Acceptor>, shutdown: &ShutdownWatch) {
    let stream: Stream = match tls {
        None => Box::new(stream),
        Some(acceptor) => match tokio::time::timeout(door.facts.header_timeout, acceptor.tls_handshake(stream)).await {
            Ok(Ok(stream)) => Box::new(stream),
            Ok(Err(error)) => return debug!(%error, "TLS handshake failed"),
            Err(_) => return debug!("TLS handshake took too long"),
        },
    };
    let mut next = Some(stream);
    while let Some(stream) = next {
        next = door.process_new(stream, shutdown).await;
    }
}

/// How long accepting rests after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
