//! One endpoint: where it is, how it is spoken to, and what is known about it.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use pingora::upstreams::peer::HttpPeer;
use tracing::debug;

/// Where an endpoint is, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An address and port.
    Inet(SocketAddr),
}

impl Address {
    /// The address and port; `None` for sockets without one.
    #[must_use]
    pub fn as_inet(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
        }
    }

    pub(super) fn peer(&self, tls: bool, sni: String) -> HttpPeer {
        match self {
            Self::Inet(address) => HttpPeer::new(*address, tls, sni),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
        }
    }
}

/// Names an endpoint of an upstream, the same in every process and after every restart. It is made of the upstream's name and the
/// address, and gives neither away at sight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId(u64);

impl EndpointId {
    fn new(upstream: &str, address: &Address) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("selvedge endpoint id");
        hasher.update(upstream.as_bytes()).update(&[0]).update(address.to_string().as_bytes());
        let mut first = [0; 8];
        hasher.finalize_xof().fill(&mut first);
        Self(u64::from_le_bytes(first))
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// An endpoint of one plan's upstream. What is learnt about it is in its [`State`], which outlives the plan.
pub(crate) struct Endpoint {
    id: EndpointId,
    address: Address,
    weight: u16,
    peer: HttpPeer,
    state: Arc<State>,
}

/// What is learnt about an endpoint. Kept over reloads, as long as its upstream and address stay.
#[derive(Debug, Default)]
pub(crate) struct State {
    in_flight: AtomicU32,
    requests: AtomicU64,
    failures: AtomicU64,
    draining: AtomicBool,
}

/// An endpoint, as it is told to operators.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EndpointStatus {
    /// Its name.
    pub id: EndpointId,
    /// Where it is.
    pub address: Address,
    /// Its share against the others' weights.
    pub weight: u16,
    /// Requests and connections under way.
    pub in_flight: u32,
    /// Requests and connections it was chosen for, since the process started.
    pub requests: u64,
    /// Those of them that failed: no connection, no answer, an answer cut off, or a status from 500 on.
    pub failures: u64,
    /// Whether it is sent no new requests because somebody said so.
    pub draining: bool,
}

impl Endpoint {
    pub(super) fn new(upstream: &str, address: Address, weight: u16, state: Arc<State>, peer: HttpPeer) -> Self {
        Self { id: EndpointId::new(upstream, &address), address, weight, peer, state }
    }

    pub(crate) fn id(&self) -> EndpointId {
        self.id
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    pub(super) fn weight(&self) -> u16 {
        self.weight
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    /// Whether new requests may be sent there.
    pub(super) fn is_usable(&self) -> bool {
        !self.state.draining.load(Ordering::Relaxed)
    }

    pub(super) fn status(&self) -> EndpointStatus {
        let state = &self.state;
        EndpointStatus {
            id: self.id,
            address: self.address.clone(),
            weight: self.weight,
            in_flight: state.in_flight.load(Ordering::Relaxed),
            requests: state.requests.load(Ordering::Relaxed),
            failures: state.failures.load(Ordering::Relaxed),
            draining: state.draining.load(Ordering::Relaxed),
        }
    }
}

impl State {
    pub(super) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }
}

/// How an exchange with an endpoint failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection could be made: refused, unreachable, not in time, or TLS failed.
    Connect,
    /// Connected, it was silent for too long.
    Timeout,
    /// It broke off, or what it said was no HTTP.
    Broken,
}

impl Failure {
    /// What an error of Pingora's says about the endpoint.
    pub(crate) fn of(error: &pingora::Error) -> Self {
        use pingora::ErrorType::{
            ConnectError, ConnectNoRoute, ConnectRefused, ConnectTimedout, InvalidCert, ReadTimedout, SocketError,
            TLSHandshakeFailure, TLSHandshakeTimedout, WriteTimedout,
        };
        match error.etype() {
            ConnectTimedout | ConnectRefused | ConnectNoRoute | ConnectError | SocketError | TLSHandshakeFailure
            | TLSHandshakeTimedout | InvalidCert => Self::Connect,
            ReadTimedout | WriteTimedout => Self::Timeout,
            _ => Self::Broken,
        }
    }
}

/// A request, or a connection of TCP, at an endpoint: counted there until this is dropped.
pub(crate) struct Lease {
    endpoint: Arc<Endpoint>,
}

impl Lease {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.state.in_flight.fetch_add(1, Ordering::Relaxed);
        endpoint.state.requests.fetch_add(1, Ordering::Relaxed);
        Self { endpoint }
    }

    /// The endpoint.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The endpoint, as Pingora connects to it.
    pub(crate) fn peer(&self) -> HttpPeer {
        self.endpoint.peer.clone()
    }

    /// The endpoint's response has begun. For connections of TCP: it has been connected to, which counts as 200.
    pub(crate) fn answered(&self, status: u16) {
        if status >= 500 {
            self.endpoint.state.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The exchange has failed on the endpoint's side.
    pub(crate) fn failed(&self, how: Failure) {
        debug!(endpoint = %self.endpoint.address, ?how, "an exchange failed");
        self.endpoint.state.failures.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.endpoint.state.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
