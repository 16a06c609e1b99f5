//! Nodes that share one cache. Each key has an owner among them, found by consistent hashing; the others ask it instead of the origin, so
//! that its collapsing holds for all of them.
//!
//! ```text
//! client -> node -> owner among `peers` -> owner among `region.peers` -> origin
//! ```
//!
//! A request only ever goes further along this line. What another node of the same circle sends is not sent to that circle once more, and
//! what comes from a circle farther out goes to the origin. So do fills: a request joins fills that go where it would go itself
//! ([`selvedge_cache::Towards`]). Waiting therefore has an order over all nodes, and nobody waits, by however many others, for itself.
//!
//! - [`ask`]: this node asks another, in place of an upstream.
//! - [`serve`]: another node asks this one, at the internal listener.
//! - [`wire`]: what they say to each other beside the request and its response.
//! - [`messages`]: what nodes tell each other besides: anything that has a handler. [`hello`] is one.

pub(crate) mod ask;
mod build;
pub(crate) mod counts;
pub(crate) mod hello;
pub(crate) mod messages;
pub(crate) mod serve;
pub(crate) mod wire;

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::RwLock;
use selvedge_cache::Towards;
use selvedge_config::ClusterDeadlines;
use smallvec::SmallVec;

pub(crate) use self::build::{circles, listener, route_identity};
use self::counts::Counts;
use self::messages::Handlers;
use crate::plan::Route;
use crate::request::deadline::Deadline;
use crate::upstream::{Endpoint, EndpointId, Lease, Upstream};

/// The name of the internal listener; nothing that is configured can have it.
pub(crate) const LISTENER: &str = "(cluster)";

/// What the circles are called in metrics; no upstream can have these names.
pub(crate) const PEERS: &str = "(peers)";
pub(crate) const REGION: &str = "(region)";

/// Says which route a request is for, the same on nodes that treat it the same.
pub(crate) type RouteIdentity = [u8; 16];

/// This node's part in the cluster.
pub(crate) struct Cluster {
    /// What the others call this node.
    pub(crate) name: Arc<str>,
    peers: Option<Circle>,
    region: Option<Circle>,
    deadlines: ClusterDeadlines,
    /// How long what another node owns is kept.
    hot: Duration,
    /// Whether each node has a certificate for its name, so that nobody else can speak in it.
    named: bool,
    /// The routes that are cached, for nodes that ask for one.
    routes: HashMap<RouteIdentity, Arc<Route>>,
    counts: Arc<Counts>,
    handlers: Arc<Handlers>,
}

/// Nodes that keys are shared out to.
pub(crate) struct Circle {
    upstream: Arc<Upstream>,
    /// Set where the nodes are all addresses of a name: the address this one listens at.
    resolved: Option<SocketAddr>,
    /// Which of those addresses are this node.
    own: RwLock<HashMap<SocketAddr, bool>>,
}

impl Circle {
    /// Whether an endpoint is this node itself.
    fn is_own(&self, endpoint: &Endpoint, name: &str) -> bool {
        let Some(listen) = self.resolved else { return endpoint.node().is_some_and(|node| **node == *name) };
        let Some(address) = endpoint.address().as_inet() else { return false };
        if address.port() != listen.port() || !listen.ip().is_unspecified() {
            return address == listen;
        }
        if let Some(own) = self.own.read().get(&address) {
            return *own;
        }
        // It listens at all addresses of this machine, and only those can be bound.
        let own = UdpSocket::bind((address.ip(), 0)).is_ok();
        let mut known = self.own.write();
        if known.len() >= ADDRESSES_KNOWN {
            known.clear();
        }
        known.insert(address, own);
        own
    }

    /// What a node is called in metrics.
    fn label(&self, endpoint: &Endpoint) -> String {
        match endpoint.node() {
            Some(node) if self.resolved.is_none() => node.to_string(),
            _ => endpoint.address().to_string(),
        }
    }
}

/// Of how many addresses it is remembered whether they are this node's; a name may lead to others again and again.
const ADDRESSES_KNOWN: usize = 8192;

/// Where a request goes that finds nothing in this node's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Way {
    /// To the owner among `peers`.
    Peers,
    /// To the owner among `region.peers`.
    Region,
    /// To the origin.
    #[default]
    Origin,
}

impl Way {
    /// As the cache knows it.
    fn towards(self) -> Option<Towards> {
        match self {
            Self::Peers => Some(Towards::Peers),
            Self::Region => Some(Towards::Region),
            Self::Origin => None,
        }
    }

    fn circle(self) -> &'static str {
        match self {
            Self::Peers => PEERS,
            Self::Region => REGION,
            Self::Origin => "",
        }
    }
}

/// What a request carries about other nodes.
#[derive(Default)]
pub(crate) struct Travel {
    /// The node it comes from, if it is another one's.
    visitor: Option<Visitor>,
    /// Where it goes, as it stands.
    way: Way,
    /// The hash of its key that finds the owner.
    key: u64,
    /// Where it has been.
    tried: SmallVec<[EndpointId; 3]>,
    /// How many of them on this way.
    attempts: u32,
    /// How many kept connections turned out to be closed.
    stale: u32,
    /// When the first was asked.
    since: Option<Instant>,
    /// Where it is.
    asking: Option<Asking>,
}

impl Travel {
    /// Whether it is another node's request.
    pub(crate) fn is_visitor(&self) -> bool {
        self.visitor.is_some()
    }

    /// Whether it is at another node.
    pub(crate) fn is_asking(&self) -> bool {
        self.asking.is_some()
    }
}

/// Another node's request.
struct Visitor {
    /// The nodes it has been at, the first one first.
    hops: Vec<String>,
    /// Whether it comes from a circle farther out, or else from this one.
    from_outside: bool,
    route: RouteIdentity,
    /// How long that node waits for the response to begin, if it says so.
    wait: Option<Duration>,
}

/// A request at another node.
struct Asking {
    lease: Lease,
    circle: &'static str,
    label: String,
    since: Instant,
    first_byte: Duration,
    /// Cuts the connection when not even a refusal comes.
    deadline: Option<Deadline>,
    begun: bool,
}

impl Cluster {
    fn circle(&self, way: Way) -> Option<&Circle> {
        match way {
            Way::Peers => self.peers.as_ref(),
            Way::Region => self.region.as_ref(),
            Way::Origin => None,
        }
    }

    /// The way of a request whose key this node owns.
    fn as_owner(&self) -> Way {
        if self.region.is_some() { Way::Region } else { Way::Origin }
    }

    /// How nodes were met, by circle and name.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Each circle and its nodes: what they are called, and whether they are asked at the moment.
    pub(crate) fn standing(&self) -> Vec<(&'static str, String, bool)> {
        let mut all = Vec::new();
        for way in [Way::Peers, Way::Region] {
            let Some(circle) = self.circle(way) else { continue };
            let statuses = circle.upstream.endpoints();
            for endpoint in circle.upstream.each() {
                if !circle.is_own(&endpoint, &self.name) {
                    let known = statuses.iter().find(|status| status.id == endpoint.id());
                    all.push((way.circle(), circle.label(&endpoint), known.is_none_or(|status| status.in_use)));
                }
            }
        }
        all
    }
}
