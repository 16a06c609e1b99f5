//! Upstreams: named groups of endpoints, and which of them a request goes to.
//!
//! A request [chooses](Upstream::choose) an endpoint and holds a [`Lease`] on it until it is over; what it met there it tells the lease.
//! Choosing reads one snapshot ([`members`]) that is replaced whole when anything about the endpoints changes, so it neither locks nor
//! allocates.

mod endpoint;

mod members;

mod schedule;

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use pingora::protocols::ALPN;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::HttpPeer;
use selvedge_geoip::Geo;

pub use self::endpoint::{Address, EndpointId, EndpointStatus};
pub(crate) use self::endpoint::{Endpoint, Failure, Lease, State};
use self::members::Members;

/// Every upstream of a plan, by name.
#[derive(Default)]
pub struct Upstreams {
    by_name: HashMap<String, Arc<Upstream>>,
}

impl Upstreams {
    pub(crate) fn insert(&mut self, upstream: Upstream) {
        self.by_name.insert(upstream.name.to_string(), Arc::new(upstream));
    }

    /// The upstream of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.by_name.get(name)
    }
}

/// A named group of endpoints that share their settings.
pub struct Upstream {
    pub(crate) name: Arc<str>,
    members: ArcSwap<Members>,
    /// Taken to replace `members`, never to read it.
    replacing: Mutex<()>,
    next: AtomicUsize,
}

/// How the endpoints of an upstream are spoken to.
pub(crate) struct Speech {
    pub(crate) tls: Option<PeerTls>,
    pub(crate) http2: bool,
    pub(crate) timeouts: selvedge_config::Timeouts,
}

/// How a TLS upstream is verified.
pub(crate) struct PeerTls {
    /// The name sent and verified.
    pub(crate) sni: String,
    /// The authorities trusted; `None` = the system's.
    pub(crate) ca: Option<Arc<CaType>>,
    /// Whether certificate and name are verified.
    pub(crate) verify: bool,
}

/// What a request wants of an endpoint. Made by [`Upstream::ask`].
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// Endpoints it has been to already: it goes elsewhere.
    pub(crate) avoid: &'a [EndpointId],
}

/// Why there is no endpoint for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoEndpoint {
    /// There are none at all: no name has resolved yet.
    NoneResolved,
    /// There are some, but none that may be sent requests.
    AllUnhealthy,
    /// Those that may be sent requests are all among those to avoid.
    AllAvoided,
}

impl fmt::Display for NoEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoneResolved => "no endpoint has been resolved",
            Self::AllUnhealthy => "no endpoint may be sent requests",
            Self::AllAvoided => "no endpoint is left that was not tried",
        })
    }
}

impl Upstream {
    /// `endpoints` are addresses with their weights, each at least 1.
    pub(crate) fn new(name: &str, speech: &Speech, endpoints: Vec<(Address, u16, Arc<State>)>) -> Self {
        let name: Arc<str> = name.into();
        let endpoints = endpoints.into_iter().map(|(address, weight, state)| {
            let peer = speech.peer(&address);
            Arc::new(Endpoint::new(&name, address, weight, state, peer))
        });
        let members = Members::new(endpoints.collect());
        Self { members: ArcSwap::from_pointee(members), replacing: Mutex::default(), next: AtomicUsize::new(0), name }
    }

    /// What a request wants of this upstream's balancing.
    pub(crate) fn ask(&self, _: &RequestHeader, _client: Option<IpAddr>, _geo: Option<&Geo>) -> Ask<'static> {
        Ask::default()
    }

    /// An endpoint for a request.
    ///
    /// # Errors
    /// There is none; see [`NoEndpoint`].
    pub(crate) fn choose(&self, ask: &Ask<'_>) -> Result<Lease, NoEndpoint> {
        let members = self.members.load();
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        members.pick(turn, ask).map(|endpoint| Lease::new(Arc::clone(endpoint)))
    }

    /// Every endpoint and how it is.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        self.members.load().all().iter().map(|endpoint| endpoint.status()).collect()
    }

    /// Stops sending new requests to an endpoint, or sends them again; those under way are finished. `false` = there is no such endpoint.
    pub fn drain(&self, endpoint: EndpointId, drain: bool) -> bool {
        let members = self.members.load();
        let Some(found) = members.all().iter().find(|known| known.id() == endpoint) else { return false };
        found.state().set_draining(drain);
        self.refresh();
        true
    }

    /// Looks at all endpoints again: somebody's state has changed.
    fn refresh(&self) {
        let _replacing = self.replacing.lock();
        let endpoints = self.members.load().all().to_vec();
        self.members.store(Arc::new(Members::new(endpoints)));
    }
}

impl Speech {
    /// An endpoint as Pingora connects to it.
    fn peer(&self, address: &Address) -> HttpPeer {
        let sni = self.tls.as_ref().map(|tls| tls.sni.clone()).unwrap_or_default();
        let mut peer = address.peer(self.tls.is_some(), sni);
        peer.options.connection_timeout = Some(self.timeouts.connect);
        peer.options.total_connection_timeout = Some(self.timeouts.connect);
        peer.options.read_timeout = Some(self.timeouts.read);
        peer.options.write_timeout = Some(self.timeouts.read);
        peer.options.idle_timeout = Some(self.timeouts.idle);
        if let Some(tls) = &self.tls {
            peer.options.verify_cert = tls.verify;
            peer.options.verify_hostname = tls.verify;
            peer.options.ca.clone_from(&tls.ca);
        }
        if self.http2 {
            peer.options.alpn = ALPN::H2;
            peer.options.max_h2_streams = 100;
        }
        peer
    }
}
