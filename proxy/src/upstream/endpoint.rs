//! One endpoint: where it is, how it is spoken to, and what is known about it.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Instant;

use http::header;
use parking_lot::Mutex;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::upstreams::peer::HttpPeer;
use selvedge_config::{Timeouts, UpstreamLimits};

use super::balance::latency::{self, Latency};
use super::health::{Checks, Health};
use super::outlier::{Met, Record};
use super::traffic::Seat;
use super::{Rules, Source, Upstream, clock, sticky};

/// Where an endpoint is, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    /// An address and port.
    Inet(SocketAddr),
    /// A Unix socket.
    Unix(Arc<str>),
}

impl Address {
    /// The address and port; `None` for sockets without one.
    #[must_use]
    pub fn as_inet(&self) -> Option<SocketAddr> {
        match self {
            Self::Inet(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// `None` for a path that no socket can have.
    pub(super) fn peer(&self, tls: bool, sni: String) -> Option<HttpPeer> {
        match self {
            Self::Inet(address) => Some(HttpPeer::new(*address, tls, sni)),
            Self::Unix(path) => HttpPeer::new_uds(path, tls, sni).ok(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

/// Names an endpoint of an upstream, the same in every process and after every restart. It is made of the upstream's name and the
/// address, and does not tell them.
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

impl FromStr for EndpointId {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        u64::from_str_radix(text, 16).map(Self)
    }
}

/// An endpoint of one plan's upstream. What is learnt about it is in its [`State`], which outlives the plan.
pub(crate) struct Endpoint {
    id: EndpointId,
    address: Address,
    weight: u16,
    /// Others are used when too few of the lowest are well.
    priority: u16,
    place: Arc<selvedge_config::Place>,
    /// What it is called in a `Host` header of our own.
    authority: Arc<str>,
    node: Option<Arc<str>>,
    peer: HttpPeer,
    state: Arc<State>,
    rules: Arc<Rules>,
    upstream: Weak<Upstream>,
}

/// What is learnt about an endpoint. Kept over reloads, as long as its upstream and address stay.
#[derive(Debug, Default)]
pub(crate) struct State {
    in_flight: AtomicU32,
    requests: AtomicU64,
    failures: AtomicU64,
    draining: AtomicBool,
    pub(super) record: Record,
    pub(super) latency: Latency,
    pub(super) checks: Checks,
    /// Since when it is of use, for its slow start; 0 = since ever.
    risen: AtomicU64,
    /// The newest upstream that has it: requests of an older plan tell it what they met, too.
    home: Mutex<Weak<Upstream>>,
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
    /// Whether it is sent new requests.
    pub in_use: bool,
    /// Whether it is sent no new requests because somebody said so.
    pub draining: bool,
    /// Whether checks find it well; `None` = it is not checked, or has not been yet.
    pub healthy: Option<bool>,
    /// How many checks there were.
    pub checks: u64,
    /// How many of them failed.
    pub failed_checks: u64,
    /// What the last check failed of, if it failed.
    pub failure: Option<String>,
    /// Whether it is left out for what requests met there.
    pub ejected: bool,
    /// How often it has been left out for that, since the process started.
    pub ejections: u64,
    /// Requests and connections under way.
    pub in_flight: u32,
    /// Requests and connections it was chosen for, since the process started.
    pub requests: u64,
    /// Those of them that failed: no connection, no answer, an answer cut off, or a status from 500 on.
    pub failures: u64,
}

/// Whether an endpoint may be sent new requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// It may; its slow start, if there is one, counts from this time on, 0 for none.
    In { since: u64 },
    /// Checks say it is not well.
    Unhealthy,
    /// It failed too many; it is back at this time.
    Ejected { until: u64 },
    /// Somebody said so.
    Draining,
}

impl Endpoint {
    pub(super) fn new(
        rules: &Arc<Rules>,
        upstream: &Weak<Upstream>,
        address: Address,
        (weight, priority): (u16, u16),
        source: &Source,
        authority: Arc<str>,
        state: Arc<State>,
        peer: HttpPeer,
    ) -> Self {
        let id = EndpointId::new(&rules.name, &address);
        let (rules, upstream) = (Arc::clone(rules), Weak::clone(upstream));
        let (place, node) = (Arc::clone(&source.place), source.node.clone());
        Self { id, address, weight, priority, place, authority, node, peer, state, rules, upstream }
    }

    pub(crate) fn id(&self) -> EndpointId {
        self.id
    }

    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// What it is called as a node of the cluster, if it is one.
    pub(crate) fn node(&self) -> Option<&Arc<str>> {
        self.node.as_ref()
    }

    pub(super) fn weight(&self) -> u16 {
        self.weight
    }

    /// The lower the better.
    pub(super) fn priority(&self) -> u16 {
        self.priority
    }

    /// What it is called in a `Host` header of our own.
    pub(super) fn authority(&self) -> &str {
        &self.authority
    }

    /// It, as Pingora connects to it.
    pub(crate) fn peer(&self) -> HttpPeer {
        self.peer.clone()
    }

    pub(crate) fn rules(&self) -> &Rules {
        &self.rules
    }

    /// What it meets concerns this upstream now, requests of older plans included.
    pub(super) fn come_home(&self, upstream: &Arc<Upstream>) {
        *self.state.home.lock() = Arc::downgrade(upstream);
    }

    /// The name of the upstream it belongs to.
    pub(crate) fn upstream_name(&self) -> &str {
        &self.rules.name
    }

    /// Where it stands.
    pub(super) fn place(&self) -> &selvedge_config::Place {
        &self.place
    }

    pub(super) fn state(&self) -> &State {
        &self.state
    }

    pub(super) fn standing(&self, now: u64) -> Standing {
        let state = &self.state;
        if state.draining.load(Relaxed) {
            return Standing::Draining;
        }
        if self.rules.health.as_ref().is_some_and(|rule| !state.checks.is_well(rule)) {
            return Standing::Unhealthy;
        }
        if let Some(until) = state.record.ejected_until(now) {
            return Standing::Ejected { until };
        }
        Standing::In { since: state.risen.load(Relaxed).max(state.record.returned()) }
    }

    /// How long each part of an exchange may take.
    pub(crate) fn timeouts(&self) -> &Timeouts {
        &self.rules.timeouts
    }

    /// The upstream it belongs to, as long as anybody's plan has it.
    pub(crate) fn upstream(&self) -> Option<Arc<Upstream>> {
        self.upstream.upgrade()
    }

    /// Whether a request that has been here may be sent once more: takes it from the upstream's budget.
    pub(crate) fn may_retry(&self) -> bool {
        self.upstream.upgrade().is_some_and(|upstream| upstream.spend_retry())
    }

    /// Whether one more request may be sent to it.
    pub(super) fn has_room(&self) -> bool {
        let most = self.rules.limits.as_ref().and_then(|limits| limits.per_endpoint);
        most.is_none_or(|most| self.in_flight() < u32::from(most))
    }

    /// Requests under way.
    pub(super) fn in_flight(&self) -> u32 {
        self.state.in_flight.load(Relaxed)
    }

    pub(super) fn status(&self, in_use: bool, now: u64) -> EndpointStatus {
        let state = &self.state;
        let (checks, failed_checks) = state.checks.counts();
        EndpointStatus {
            id: self.id,
            address: self.address.clone(),
            weight: self.weight,
            in_use,
            draining: state.draining.load(Relaxed),
            healthy: match (&self.rules.health, state.checks.health()) {
                (None, _) | (_, Health::Unknown) => None,
                (_, health) => Some(health == Health::Healthy),
            },
            checks,
            failed_checks,
            failure: state.checks.failure(),
            ejected: state.record.ejected_until(now).is_some(),
            ejections: state.record.ejections(),
            in_flight: self.in_flight(),
            requests: state.requests.load(Relaxed),
            failures: state.failures.load(Relaxed),
        }
    }

    /// An exchange met this.
    fn met(self: &Arc<Self>, met: Met) {
        let Some(outlier) = &self.rules.outlier else { return };
        let Some(cause) = self.state.record.judge(outlier, met, clock::now) else { return };
        let home = self.state.home.lock().upgrade();
        if let Some(upstream) = home.or_else(|| self.upstream.upgrade()) {
            upstream.eject(&self.state, cause, clock::now());
        }
    }
}

impl State {
    /// From now on it is of use: its slow start begins.
    pub(super) fn rise(&self, now: u64) {
        self.risen.store(now, Relaxed);
    }

    pub(super) fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Relaxed);
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

/// Counted at an endpoint until this is dropped.
pub(super) struct Place(Arc<Endpoint>);

impl Place {
    /// `None` = there is no room.
    pub(super) fn take(endpoint: Arc<Endpoint>, limits: &UpstreamLimits) -> Option<Self> {
        let most = limits.per_endpoint.map_or(u32::MAX, u32::from);
        let join = |now| (now < most).then(|| now + 1);
        endpoint.state.in_flight.fetch_update(Relaxed, Relaxed, join).ok()?;
        Some(Self(endpoint))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.state.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A request, or a connection of TCP, at an endpoint: counted there until this is dropped.
pub(crate) struct Lease {
    // In this order: who waits for the seat to be given back looks for room at the endpoint then.
    place: Place,
    /// Set where there are limits.
    _seat: Option<Seat>,
    /// Set where latency matters.
    since: Option<Instant>,
}

impl Endpoint {
    /// As [`Lease::stick`].
    ///
    /// # Errors
    /// Never: the cookie is a valid header.
    pub(crate) fn stick(
        &self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        tls: bool,
    ) -> pingora::Result<()> {
        let Some(rule) = &self.rules.sticky else { return Ok(()) };
        if sticky::asked(rule, request) == Some(self.id) {
            return Ok(());
        }
        response.append_header(header::SET_COOKIE, sticky::cookie(rule, self.id, tls)).map(drop)
    }
}

impl Lease {
    pub(super) fn new(endpoint: Arc<Endpoint>) -> Self {
        endpoint.state.in_flight.fetch_add(1, Relaxed);
        Self::at(Place(endpoint), None)
    }

    /// At an upstream with limits.
    pub(super) fn limited(place: Place, seat: Seat) -> Self {
        Self::at(place, Some(seat))
    }

    fn at(place: Place, seat: Option<Seat>) -> Self {
        place.0.state.requests.fetch_add(1, Relaxed);
        let since = place.0.rules.measures().then(Instant::now);
        Self { place, _seat: seat, since }
    }

    /// The endpoint.
    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.place.0
    }

    /// The endpoint, for longer than the place at it.
    pub(crate) fn shared(&self) -> Arc<Endpoint> {
        Arc::clone(&self.place.0)
    }

    /// The endpoint, as Pingora connects to it.
    pub(crate) fn peer(&self) -> HttpPeer {
        self.place.0.peer()
    }

    /// The endpoint's response has begun. For connections of TCP: it has been connected to, which counts as 200.
    pub(crate) fn answered(&self, status: u16) {
        if status >= 500 {
            self.place.0.state.failures.fetch_add(1, Relaxed);
        }
        self.measure(matches!(status, 502..=504));
        self.place.0.met(Met::Status(status));
    }

    /// The exchange has failed on the endpoint's side.
    pub(crate) fn failed(&self, how: Failure) {
        self.place.0.state.failures.fetch_add(1, Relaxed);
        self.measure(true);
        self.place.0.met(Met::Failure(how));
    }

    /// Another endpoint has answered first: all that is known is that this one needs longer than until now.
    pub(crate) fn passed_over(&self) {
        self.measure(false);
    }

    fn measure(&self, failed: bool) {
        let Some(since) = self.since else { return };
        let took = since.elapsed();
        self.place.0.state.latency.sample(if failed { took.max(latency::FAILURE) } else { took }, clock::now());
    }

    /// Gives the client its cookie, where clients are kept at an endpoint and this one does not have it yet.
    ///
    /// # Errors
    /// Never: the cookie is a valid header.
    pub(crate) fn stick(
        &self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        tls: bool,
    ) -> pingora::Result<()> {
        self.place.0.stick(request, response, tls)
    }
}
