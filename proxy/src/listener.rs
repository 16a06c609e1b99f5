//! Listeners: accepting connections, TLS, and handing them to Pingora, each on the worker that accepted it.

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use pingora_core::apps::{HttpServerApp, HttpServerOptions, ReusedHttpStream, ServerApp};
use pingora_core::listeners::tls::Acceptor;
use pingora_core::protocols::http::server::Session as HttpSession;
use pingora_core::protocols::http::v2::server::H2Options;
use pingora_core::protocols::l4::stream::Stream as TcpStream;
use pingora_core::protocols::{GetSocketDigest, SocketDigest};
use pingora_core::server::ShutdownWatch;
use pingora_proxy::HttpProxy;
use std::os::fd::AsRawFd;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use crate::request::Edge;

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
    /// Set once the header of the request that this task reads is complete.
    static HEADER_READ: Cell<bool>;
}

/// Says that the request header is complete: the deadline for reading it no longer applies.
pub(crate) fn header_is_read() {
    let _ = HEADER_READ.try_with(|read| read.set(true));
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

        let deadline = self.facts.idle_timeout + self.facts.header_timeout;
        HEADER_READ
            .scope(Cell::new(false), async {
                let request = self.proxy.process_new_http(session, shutdown);
                tokio::pin!(request);
                tokio::select! {
                    biased;
                    reused = &mut request => return reused,
                    // Pingora's coarse timer: thousands of connections share a few entries, and an unfired one costs next to nothing.
                    () = pingora_timeout::fast_timeout::fast_sleep(deadline) => {}
                }
                if HEADER_READ.with(Cell::get) {
                    return request.await;
                }
                debug!("request header not complete in time");
                None
            })
            .await
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
    let handshake_timeout = door.facts.header_timeout;
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
            let stream = prepare(stream, peer);
            let mut reused = match acceptor {
                None => door.process_new(Box::new(stream), &shutdown).await,
                Some(acceptor) => match tokio::time::timeout(handshake_timeout, acceptor.tls_handshake(stream)).await {
                    Ok(Ok(stream)) => door.process_new(Box::new(stream), &shutdown).await,
                    Ok(Err(error)) => {
                        debug!(%peer, %error, "TLS handshake failed");
                        return;
                    }
                    Err(_) => {
                        debug!(%peer, "TLS handshake took too long");
                        return;
                    }
                },
            };
            while let Some(stream) = reused {
                reused = door.process_new(stream, &shutdown).await;
            }
        });
    }
}

/// How long accepting rests after it failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

fn prepare(stream: tokio::net::TcpStream, peer: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::from(stream);
    let digest = SocketDigest::from_raw_fd(stream.as_raw_fd());
    // The cell is new, so this cannot fail.
    let _ = digest.peer_addr.set(Some(peer.into()));
    stream.set_socket_digest(digest);
    if let Err(error) = stream.set_nodelay() {
        debug!(%peer, %error, "TCP_NODELAY was refused");
    }
    stream
}
