//! What became of an exchange outside of the chain, told to the filters as it happens.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pingora::protocols::tls::SslDigest;
use pingora::protocols::{Digest, SocketDigest};
use pingora::proxy::Session;
use selvedge_geoip::{Geo, Location};

use crate::listener::ListenerFacts;
use crate::request::RequestCtx;
use crate::tls::Handshake;
use crate::transport::Told;

/// The client's connection.
#[derive(Default, Clone)]
pub(crate) struct Connection {
    pub(crate) socket: Option<Arc<SocketDigest>>,
    pub(crate) tls: Option<Arc<SslDigest>>,
    /// What the client has told in its TLS handshake.
    pub(crate) handshake: Option<Arc<Handshake>>,
}

impl Connection {
    pub(crate) fn of(digest: Option<&Digest>) -> Self {
        let Some(digest) = digest else { return Self::default() };
        Self {
            socket: digest.socket_digest.clone(),
            tls: digest.ssl_digest.clone(),
            handshake: Told::client(digest).cloned(),
        }
    }
}

/// What is known about an exchange beside its messages; kept where some filter may ask.
pub(crate) struct Known {
    /// Where it arrived.
    pub(crate) listener: Arc<ListenerFacts>,
    /// Who is asking.
    pub(crate) client: Option<SocketAddr>,
    /// The address the client connected to.
    pub(crate) server: Option<SocketAddr>,
    pub(crate) connection: Connection,
    geo: Option<Arc<Geo>>,
    location: OnceCell<Option<Location>>,
    /// When the request header had been read.
    started: Instant,
    /// The same by the clock on the wall, once somebody has asked.
    start: OnceCell<SystemTime>,
    /// How long it took, once somebody has asked.
    took: OnceCell<Duration>,
    pub(crate) contact: Contact,
    pub(crate) cached: Option<Cached>,
    pub(crate) ended: Option<Ended>,
}

impl Known {
    /// What is known when the request header has been read.
    pub(super) fn of(session: &Session, ctx: &RequestCtx, listener: &Arc<ListenerFacts>) -> Self {
        Self {
            listener: Arc::clone(listener),
            client: ctx.downstream.client,
            server: session.server_addr().and_then(|address| address.as_inet()).copied(),
            connection: Connection::of(session.digest()),
            geo: ctx.plan.geo.clone(),
            location: OnceCell::new(),
            started: ctx.started,
            start: OnceCell::new(),
            took: OnceCell::new(),
            contact: Contact::default(),
            cached: None,
            ended: None,
        }
    }

    /// Where the client is, when a geo database is configured and knows. Looked up when it is first asked for.
    pub(crate) fn location(&self) -> Option<&Location> {
        self.location.get_or_init(|| self.geo.as_ref()?.lookup(self.client?.ip())).as_ref()
    }

    /// When the request header had been read. Always the same, though the clock may have been set since.
    pub(crate) fn start(&self) -> SystemTime {
        *self
            .start
            .get_or_init(|| SystemTime::now().checked_sub(self.started.elapsed()).unwrap_or(SystemTime::UNIX_EPOCH))
    }

    /// How long it took; `None` before it has ended.
    pub(crate) fn duration(&self) -> Option<Duration> {
        self.ended.as_ref()?;
        Some(*self.took.get_or_init(|| self.started.elapsed()))
    }
}

/// The upstream that was asked.
#[derive(Default, Clone)]
pub(crate) struct Contact {
    /// How often a connection was tried.
    pub(crate) attempts: u32,
    /// The endpoint connected to last.
    pub(crate) address: Option<SocketAddr>,
    pub(crate) socket: Option<Arc<SocketDigest>>,
    pub(crate) tls: Option<Arc<SslDigest>>,
    /// The name sent and verified; empty without TLS.
    pub(crate) sni: String,
    /// When the connection was there, and the request could go.
    pub(crate) since: Option<Instant>,
    /// From then to the response header.
    pub(crate) latency: Option<Duration>,
    /// Why the last connection could not be made.
    pub(crate) failure: Option<String>,
}

/// What the cache made of the request.
#[derive(Clone)]
pub(crate) struct Cached {
    /// As in the access log.
    pub(crate) status: &'static str,
    pub(crate) hit: bool,
    pub(crate) key: Option<[u8; 16]>,
    /// Of what is stored, or is being stored: its age when it was looked up, and the end of its lifetime.
    pub(crate) age: Option<Duration>,
    pub(crate) fresh_until: Option<SystemTime>,
}

/// How it ended.
pub(crate) struct Ended {
    pub(crate) request_bytes: u64,
    pub(crate) response_bytes: u64,
    /// The client's side broke off, because of this.
    pub(crate) termination: Option<String>,
}

/// Where the response came from, or why there is none: `response.code_details`.
pub(crate) type Details = Cow<'static, str>;

/// The bit of `response.flags` for an error token (RFC 9209, 2.3): those of Envoy's access log, which filters know.
pub(crate) fn flag(token: &str) -> i64 {
    match token {
        "connection_timeout"
        | "connection_refused"
        | "destination_ip_unroutable"
        | "connection_terminated"
        | "tls_protocol_error"
        | "tls_certificate_error" => UPSTREAM_CONNECTION_FAILURE,
        "connection_read_timeout" | "connection_write_timeout" => UPSTREAM_REQUEST_TIMEOUT,
        "http_response_incomplete" => UPSTREAM_CONNECTION_TERMINATION,
        "http_protocol_error" => UPSTREAM_PROTOCOL_ERROR,
        "destination_unavailable" => NO_HEALTHY_UPSTREAM,
        "http_request_error" => DOWNSTREAM_PROTOCOL_ERROR,
        _ => 0,
    }
}

const NO_HEALTHY_UPSTREAM: i64 = 0x2;
const UPSTREAM_REQUEST_TIMEOUT: i64 = 0x4;
const UPSTREAM_CONNECTION_FAILURE: i64 = 0x20;
const UPSTREAM_CONNECTION_TERMINATION: i64 = 0x40;
pub(crate) const DOWNSTREAM_CONNECTION_TERMINATION: i64 = 0x4000;
const DOWNSTREAM_PROTOCOL_ERROR: i64 = 0x4_0000;
pub(crate) const FROM_CACHE: i64 = 0x10_0000;
const UPSTREAM_PROTOCOL_ERROR: i64 = 0x80_0000;
