//! Upstreams: named groups of endpoints, and which of them a request goes to.
//!
//! A request chooses an endpoint and holds a `Lease` on it until it is over; what it met there it tells the lease.
//! Choosing reads one snapshot (`members`) that is replaced whole when anything about the endpoints changes, so it neither locks nor
//! allocates.

mod endpoint;

mod members;

mod balance;
mod schedule;

mod near;

mod sticky;

mod outlier;

mod health;
mod probe;

mod quantile;
mod traffic;

mod names;

mod keeper;

pub(crate) mod wear;

pub(crate) mod http1;

pub(crate) mod build;

mod clock;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora::http::RequestHeader;
use pingora::protocols::ALPN;
use pingora::protocols::tls::CaType;
use pingora::upstreams::peer::{HttpPeer, Scheme};
use pingora::utils::tls::CertKey;
use selvedge_config::{
    Balance, EndpointAddr, HashBy, HealthCheck, Hedge, Outlier, Percent, Place, Prefer, PreferBy, Retries, Sticky,
    Timeouts, UpstreamLimits, UpstreamPool,
};
use selvedge_geoip::Geo;
use tokio::sync::Notify;
use tracing::{debug, info, warn};

pub use self::endpoint::{Address, EndpointId, EndpointStatus};
pub(crate) use self::endpoint::{Endpoint, Failure, Lease, State};
pub(crate) use self::keeper::{Dial, DialFor, Keeper};
use self::members::Members;
use self::names::Name;
use self::near::Spot;
pub use self::traffic::TrafficStatus;
use self::traffic::{Seat, Traffic};

/// Every upstream of a plan, by name.
#[derive(Default)]
pub struct Upstreams {
    by_name: HashMap<String, Arc<Upstream>>,
    /// The circles of nodes of the cluster. Looked after like the others; but routes and filters cannot name them.
    circles: HashMap<String, Arc<Upstream>>,
}

impl Upstreams {
    pub(crate) fn insert(&mut self, upstream: Arc<Upstream>) {
        self.by_name.insert(upstream.name.to_string(), upstream);
    }

    pub(crate) fn insert_circle(&mut self, circle: Arc<Upstream>) {
        self.circles.insert(circle.name.to_string(), circle);
    }

    pub(crate) fn circle(&self, name: &str) -> Option<&Arc<Upstream>> {
        self.circles.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        self.by_name.values().chain(self.circles.values())
    }

    /// Every upstream, in order of their names.
    #[must_use]
    pub fn all(&self) -> Vec<(&str, &Arc<Upstream>)> {
        let mut all: Vec<_> = self.by_name.iter().map(|(name, upstream)| (name.as_str(), upstream)).collect();
        all.sort_unstable_by_key(|(name, _)| *name);
        all
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
    rules: Arc<Rules>,
    members: ArcSwap<Members>,
    /// Taken to replace `members`, never to read it.
    replacing: Mutex<()>,
    next: AtomicUsize,
    speech: Speech,
    sources: Vec<Source>,
    traffic: Arc<Traffic>,
    /// Rings when there are other endpoints.
    changed: Arc<Notify>,
    this: Weak<Self>,
}

/// The most endpoints an upstream has: what a name resolves to is somebody else's to say.
const ENDPOINTS_MAX: usize = 4096;

/// Below so many requests under way an endpoint is not left out for its load.
const BOUND_MIN: u32 = 64;

/// How often an endpoint is looked for that still has room when we get there.
const PICKS_MAX: usize = 8;

/// An endpoint as it is written; a name stands for any number of them.
pub(crate) struct Source {
    written: EndpointAddr,
    weight: u16,
    place: Arc<Place>,
    /// Where it is a name.
    name: Option<Name>,
    /// What the node is called, where it is one of the cluster: its certificate must be for that.
    node: Option<Arc<str>>,
}

/// How an upstream's endpoints are chosen and judged.
pub(crate) struct Rules {
    pub(crate) name: Arc<str>,
    pub(crate) balance: Balance,
    pub(crate) sticky: Option<Sticky>,
    pub(crate) prefer: Option<Prefer>,
    pub(crate) health: Option<Arc<HealthCheck>>,
    pub(crate) outlier: Option<Outlier>,
    pub(crate) retries: Retries,
    pub(crate) hedge: Option<Hedge>,
    pub(crate) limits: Option<UpstreamLimits>,
    pub(crate) pool: Option<UpstreamPool>,
    pub(crate) panic: Percent,
    pub(crate) slow_start: Duration,
    pub(crate) timeouts: Timeouts,
}

impl Rules {
    pub(crate) fn of(name: &str, written: &selvedge_config::Upstream) -> Self {
        Self {
            name: name.into(),
            balance: written.balance.clone(),
            sticky: written.sticky.clone(),
            prefer: written.prefer.clone(),
            health: written.health_check.clone().map(Arc::new),
            outlier: written.outlier,
            retries: written.retries.clone(),
            hedge: written.hedge,
            limits: written.limits,
            pool: written.pool,
            panic: written.panic,
            slow_start: written.slow_start,
            timeouts: written.timeouts,
        }
    }

    /// Whether it matters how long endpoints take.
    fn measures(&self) -> bool {
        self.balance == Balance::Ewma
    }
}

/// How the endpoints of an upstream are spoken to.
pub(crate) struct Speech {
    pub(crate) tls: Option<PeerTls>,
    pub(crate) http2: bool,
    /// What makes connections in place of the network, over which plain HTTP/1.1 is spoken; see [`Keeper::offline`].
    pub(crate) dial: Option<Dial>,
}

/// How a TLS upstream is verified.
pub(crate) struct PeerTls {
    /// The name sent and verified; `None` = the endpoint's own, or its address.
    pub(crate) sni: Option<String>,
    /// The authorities trusted; `None` = the system's.
    pub(crate) ca: Option<Arc<CaType>>,
    /// The certificate shown to who asks for one.
    pub(crate) client: Option<Arc<CertKey>>,
    /// Stands for `ca`: connections made with other authorities are not used.
    pub(crate) trust: u64,
    /// Whether certificate and name are verified.
    pub(crate) verify: bool,
}

/// What a request wants of an endpoint. Made by [`Upstream::ask`].
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// Endpoints it has been to already: it goes elsewhere.
    avoid: &'a [EndpointId],
    /// The hash of what consistent hashing is keyed by.
    key: Option<u64>,
    /// The endpoint the client is to stay at.
    sticky: Option<EndpointId>,
    /// Where the client is, when that matters.
    location: Option<Spot>,
    /// How many requests may be under way at an endpoint for each unit of its weight, as long as others are below that.
    bound: Option<u32>,
}

impl Ask<'_> {
    /// The same, but not at these endpoints.
    pub(crate) fn avoiding(self, avoid: &[EndpointId]) -> Ask<'_> {
        Ask { avoid, ..self }
    }
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
    /// There are as many requests at the upstream, or at each of them, as there may be.
    Full,
}

impl fmt::Display for NoEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoneResolved => "no endpoint has been resolved",
            Self::AllUnhealthy => "no endpoint may be sent requests",
            Self::AllAvoided => "no endpoint is left that was not tried",
            Self::Full => "there are as many requests as there may be",
        })
    }
}

/// The hash of a part of a request, or of the client; `None` = there is neither.
pub(crate) fn key(by: &HashBy, request: &RequestHeader, client: Option<IpAddr>) -> Option<u64> {
    balance::key::of(by, request, client)
}

impl Upstream {
    /// The endpoints that are written, and what they are known to resolve to.
    pub(crate) fn new(rules: Rules, speech: Speech, sources: Vec<Source>, keeper: &Keeper) -> Arc<Self> {
        let rules = Arc::new(rules);
        Arc::new_cyclic(|upstream| {
            let mut made = Self {
                name: Arc::clone(&rules.name),
                members: ArcSwap::from_pointee(Members::new(&rules, Vec::new(), clock::now())),
                replacing: Mutex::default(),
                next: AtomicUsize::new(0),
                traffic: keeper.traffic(&rules.name),
                rules,
                speech,
                sources,
                changed: Arc::default(),
                this: Weak::clone(upstream),
            };
            let endpoints = made.endpoints_of(keeper, &[], None);
            made.members = ArcSwap::from_pointee(Members::new(&made.rules, endpoints, clock::now()));
            made
        })
    }

    /// The endpoints that the sources stand for now. Those that are in `old` already stay what they are; `risen` is when the others are
    /// to begin their slow start, if they have one.
    fn endpoints_of(&self, keeper: &Keeper, old: &[Arc<Endpoint>], risen: Option<u64>) -> Vec<Arc<Endpoint>> {
        let old: HashMap<&Address, &Arc<Endpoint>> =
            old.iter().map(|endpoint| (endpoint.address(), endpoint)).collect();
        let mut seen = HashSet::new();
        let mut endpoints = Vec::new();
        for source in &self.sources {
            for Spelled { address, weight, priority } in source.spelled(keeper) {
                if !seen.insert(address.clone()) {
                    continue; // Written by address and by name, or two names for one.
                }
                if endpoints.len() == ENDPOINTS_MAX {
                    warn!(upstream = %self.name, most = ENDPOINTS_MAX, "more endpoints than can be used");
                    return endpoints;
                }
                let same = |known: &&&Arc<Endpoint>| {
                    (known.weight(), known.priority()) == (weight, priority) && *known.place() == *source.place
                };
                if let Some(known) = old.get(&address).filter(same) {
                    endpoints.push(Arc::clone(known));
                    continue;
                }
                let Some(peer) = self.speech.peer(&address, source, &self.rules) else { continue };
                let (state, new) = keeper.state(&self.name, &address);
                if let Some(now) = risen.filter(|_| new) {
                    state.rise(now);
                }
                let authority = self.speech.authority(source);
                let share = (weight, priority);
                let endpoint = Endpoint::new(&self.rules, &self.this, address, share, source, authority, state, peer);
                endpoints.push(Arc::new(endpoint));
            }
        }
        endpoints
    }

    /// The names it is made of.
    fn names(&self) -> impl Iterator<Item = &Name> {
        self.sources.iter().filter_map(|source| source.name.as_ref())
    }

    /// Whether its endpoints are asked how they are.
    fn is_checked(&self) -> bool {
        self.rules.health.is_some()
    }

    /// Its plan is in force from now on: it learns what was learnt for others meanwhile.
    fn come_into_force(self: &Arc<Self>, keeper: &Keeper) {
        self.readdress(keeper);
        self.members.load().all().iter().for_each(|endpoint| endpoint.come_home(self));
        self.refresh();
    }

    /// Names stand for other addresses than before.
    fn readdress(self: &Arc<Self>, keeper: &Keeper) {
        let _replacing = self.replacing.lock();
        let now = clock::now();
        let members = self.members.load();
        let endpoints = self.endpoints_of(keeper, members.all(), Some(now));
        let same = endpoints.len() == members.all().len()
            && endpoints.iter().zip(members.all()).all(|(new, old)| Arc::ptr_eq(new, old));
        if same {
            return;
        }
        info!(upstream = %self.name, endpoints = endpoints.len(), before = members.all().len(), "other endpoints");
        endpoints.iter().for_each(|endpoint| endpoint.come_home(self));
        self.members.store(Arc::new(Members::new(&self.rules, endpoints, now)));
        self.changed.notify_waiters();
    }

    /// An endpoint has been asked how it is.
    fn checked(&self, endpoint: &Endpoint, rule: &HealthCheck, outcome: &Result<(), String>) {
        let now = clock::now();
        let address = endpoint.address();
        if let Err(why) = outcome {
            debug!(upstream = %self.name, endpoint = %address, %why, "a check failed");
        }
        if !endpoint.state().checks.note(rule, outcome, now) {
            return;
        }
        match outcome {
            Ok(()) => {
                endpoint.state().rise(now);
                info!(upstream = %self.name, endpoint = %address, "healthy");
            }
            Err(why) => warn!(upstream = %self.name, endpoint = %address, %why, "unhealthy"),
        }
        self.refresh();
    }

    /// How long each part of an exchange may take.
    pub(crate) fn timeouts(&self) -> &selvedge_config::Timeouts {
        &self.rules.timeouts
    }

    /// Whether HTTP/2 is spoken to its endpoints.
    pub(crate) fn is_http2(&self) -> bool {
        self.speech.http2
    }

    /// When a second endpoint is asked, if one is.
    pub(crate) fn hedge_rule(&self) -> Option<&Hedge> {
        self.rules.hedge.as_ref().filter(|_| self.speech.dial.is_none())
    }

    /// Whether its connections carry only so many requests, or only for so long, and others' besides: then ours are the hands that can
    /// end one.
    pub(crate) fn wears_out_shared(&self) -> bool {
        self.rules.pool.is_some_and(|pool| pool.wears_out()) && self.shares_connections()
    }

    /// Whether a stream that takes too long is ended by itself, because its connection is others' too.
    pub(crate) fn shares_connections(&self) -> bool {
        self.speech.http2 && self.speech.dial.is_none()
    }

    /// What a request wants of this upstream's balancing. `client` is who asks.
    pub(crate) fn ask(&self, request: &RequestHeader, client: Option<IpAddr>, geo: Option<&Geo>) -> Ask<'static> {
        let mut ask = Ask::default();
        if let Balance::ConsistentHash(hash) = &self.rules.balance {
            ask.key = balance::key::of(&hash.by, request, client);
        }
        if let Some(rule) = &self.rules.sticky {
            ask.sticky = sticky::asked(rule, request);
        }
        if self.rules.prefer.as_ref().is_some_and(|prefer| prefer.by == PreferBy::Nearest) {
            ask.location = client.and_then(|client| geo?.lookup(client)).map(|location| Spot::of(&location));
        }
        ask
    }

    /// What a request wants whose key has been hashed already. An endpoint is left out while it has a quarter more requests than its share
    /// (consistent hashing with bounded loads), if they are many.
    pub(crate) fn ask_of_key(&self, key: u64) -> Ask<'static> {
        let members = self.members.load();
        let all = members.all().iter();
        let (under_way, weights) = all.fold((0u64, 0u64), |(under_way, weights), endpoint| {
            (under_way + u64::from(endpoint.in_flight()), weights + u64::from(endpoint.weight()))
        });
        let share = ((under_way + 1) * 5).div_ceil(4 * weights.max(1));
        Ask { key: Some(key), bound: Some(u32::try_from(share).unwrap_or(u32::MAX).max(BOUND_MIN)), ..Ask::default() }
    }

    /// The endpoint that such a request would go to now.
    ///
    /// # Errors
    /// There is none; see [`NoEndpoint`].
    pub(crate) fn look(&self, ask: &Ask<'_>) -> Result<Arc<Endpoint>, NoEndpoint> {
        self.members().pick(&self.rules, || 0, ask, clock::now).cloned()
    }

    /// All of them.
    pub(crate) fn each(&self) -> Vec<Arc<Endpoint>> {
        self.members.load().all().to_vec()
    }

    /// What a connection of TCP wants of it.
    pub(crate) fn ask_of_connection(&self, client: Option<IpAddr>) -> Ask<'static> {
        let hashed = client.filter(|_| matches!(self.rules.balance, Balance::ConsistentHash(_)));
        Ask { key: hashed.map(balance::key::of_client), ..Ask::default() }
    }

    /// What decides where a request goes, if that is not for load or turns to decide: in words, and the endpoint.
    pub(crate) fn bound(&self, ask: &Ask<'_>) -> Option<(&'static str, Result<Address, NoEndpoint>)> {
        let members = self.members.load();
        let asked_for = |id: EndpointId| members.in_use().any(|(endpoint, in_use)| in_use && endpoint.id() == id);
        let why = match ask {
            Ask { sticky: Some(id), .. } if asked_for(*id) => "its cookie",
            // A near endpoint goes before what is hashed.
            Ask { key: Some(_), .. } if self.rules.prefer.is_none() => "consistent hashing",
            _ => return None,
        };
        Some((why, members.pick(&self.rules, || 0, ask, clock::now).map(|endpoint| endpoint.address().clone())))
    }

    /// The endpoints as they are written, with their weights, and the addresses each stands for now.
    pub(crate) fn written(&self, keeper: &Keeper) -> Vec<(&EndpointAddr, u16, Vec<Address>)> {
        self.sources.iter().map(|source| (&source.written, source.weight, source.addresses(keeper))).collect()
    }

    /// An endpoint for a request that does not wait for room; see [`Upstream::wait`].
    ///
    /// # Errors
    /// There is none; see [`NoEndpoint`].
    pub(crate) fn choose(&self, ask: &Ask<'_>) -> Result<Lease, NoEndpoint> {
        let members = self.members();
        let turn = || match ask.avoid {
            [] => self.next.fetch_add(1, Ordering::Relaxed),
            // A request that has been elsewhere has had its turn: taking another would let every second request of two endpoints meet the
            // one that fails.
            _ => self.next.load(Ordering::Relaxed),
        };
        let pick = || members.pick(&self.rules, turn, ask, clock::now);
        let Some(limits) = &self.rules.limits else { return Ok(Lease::new(Arc::clone(pick()?))) };
        // Another worker may take the last place at an endpoint between our looking and taking.
        for _ in 0..PICKS_MAX {
            if let Some(place) = endpoint::Place::take(Arc::clone(pick()?), limits) {
                let seat = Seat::take(&self.traffic, limits).ok_or(NoEndpoint::Full)?;
                return Ok(Lease::limited(place, seat));
            }
        }
        Err(NoEndpoint::Full)
    }

    /// The snapshot to choose from, a new one if time alone has changed something.
    fn members(&self) -> arc_swap::Guard<Arc<Members>> {
        let members = self.members.load();
        if members.due().is_none_or(|due| due > clock::now()) {
            return members;
        }
        // One of those who notice looks again; the others go by what is known.
        if let Some(replacing) = self.replacing.try_lock() {
            self.members.store(Arc::new(members.again(&self.rules, clock::now())));
            drop(replacing);
        }
        self.members.load()
    }

    /// Every endpoint and how it is.
    #[must_use]
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        let now = clock::now();
        let mut members = self.members.load();
        if members.due().is_some_and(|due| due <= now) {
            self.refresh();
            members = self.members.load();
        }
        members.in_use().map(|(endpoint, in_use)| endpoint.status(in_use, now)).collect()
    }

    /// Whether so few endpoints are well that all are used (`panic`).
    #[must_use]
    pub fn is_panicking(&self) -> bool {
        self.members.load().is_panicking()
    }

    /// Stops sending new requests to an endpoint, or sends them again; those under way are finished. `false` = there is no such endpoint.
    pub fn drain(&self, endpoint: EndpointId, drain: bool) -> bool {
        let members = self.members.load();
        let Some(found) = members.all().iter().find(|known| known.id() == endpoint) else { return false };
        found.state().set_draining(drain);
        info!(upstream = %self.name, endpoint = %found.address(), drain, "drain");
        self.refresh();
        true
    }

    /// Leaves out an endpoint that has failed too many requests, if the share that may be left out allows it.
    fn eject(&self, state: &State, cause: outlier::Cause, now: u64) {
        let Some(rules) = &self.rules.outlier else { return };
        let _replacing = self.replacing.lock();
        let members = self.members.load();
        let mut ejected = 0;
        let mut found = None;
        for endpoint in members.all() {
            match endpoint.standing(now) {
                endpoint::Standing::Ejected { .. } => ejected += 1,
                _ if std::ptr::eq(endpoint.state(), state) => found = Some(endpoint),
                _ => {}
            }
        }
        let Some(endpoint) = found else { return }; // Another request was quicker, or it is gone.
        if !outlier::may_eject(rules, ejected, members.all().len()) {
            return;
        }
        let time = Duration::from_millis(state.record.eject(rules, now));
        warn!(upstream = %self.name, endpoint = %endpoint.address(), cause = cause.word(), ?time, "ejected");
        self.members.store(Arc::new(members.again(&self.rules, now)));
    }

    /// Looks at all endpoints again: somebody's state has changed, or its time has come.
    fn refresh(&self) {
        let _replacing = self.replacing.lock();
        self.members.store(Arc::new(self.members.load().again(&self.rules, clock::now())));
    }
}

impl Speech {
    /// An endpoint as Pingora connects to it.
    fn peer(&self, address: &Address, source: &Source, rules: &Rules) -> Option<HttpPeer> {
        let timeouts = &rules.timeouts;
        let sni = self.tls.as_ref().map(|tls| tls.sni.clone().unwrap_or_else(|| source.host())).unwrap_or_default();
        let mut peer = address.peer(self.tls.is_some(), sni)?;
        peer.options.connection_timeout = Some(timeouts.connect);
        peer.options.total_connection_timeout = Some(timeouts.connect);
        peer.options.read_timeout = Some(timeouts.read);
        peer.options.write_timeout = Some(timeouts.read);
        peer.options.idle_timeout = Some(timeouts.idle);
        if let Some(tls) = &self.tls {
            peer.options.verify_cert = tls.verify;
            peer.options.verify_hostname = tls.verify;
            peer.options.ca.clone_from(&tls.ca);
            peer.client_cert_key.clone_from(&tls.client);
            peer.group_key = tls.trust;
        }
        if self.http2 {
            peer.options.alpn = ALPN::H2;
            peer.options.max_h2_streams = 100;
        }
        if let Some(pool) = &rules.pool {
            // Another upstream with the same endpoint has other rules.
            peer.group_key ^= balance::key::hash(rules.name.as_bytes());
            if pool.idle == Some(0) {
                peer.options.idle_timeout = Some(Duration::ZERO);
            }
        }
        if let Some(dial) = &self.dial {
            peer.scheme = Scheme::HTTP;
            peer.options.alpn = ALPN::H1;
            peer.options.custom_l4 = Some(Arc::clone(dial));
        }
        Some(peer)
    }

    /// What an endpoint is called in a `Host` header of our own.
    fn authority(&self, source: &Source) -> Arc<str> {
        match self.tls.as_ref().and_then(|tls| tls.sni.as_deref()) {
            Some(name) => name.into(),
            None => source.authority(),
        }
    }
}

/// One of the endpoints that a source stands for.
struct Spelled {
    address: Address,
    weight: u16,
    /// The lower the better.
    priority: u16,
}

/// What follows `_service._proto.`.
fn domain(service: &str) -> &str {
    service.splitn(3, '.').nth(2).unwrap_or(service)
}

impl Source {
    /// The addresses it stands for now.
    fn addresses(&self, keeper: &Keeper) -> Vec<Address> {
        self.spelled(keeper).into_iter().map(|one| one.address).collect()
    }

    /// What it stands for now.
    fn spelled(&self, keeper: &Keeper) -> Vec<Spelled> {
        let at = |address: Address| Spelled { address, weight: self.weight, priority: 0 };
        let targets = || self.name.as_ref().and_then(|name| keeper.answer(name)).map(|answer| answer.targets);
        match &self.written {
            EndpointAddr::Ip(address) => vec![at(Address::Inet(*address))],
            EndpointAddr::Unix(path) => path.to_str().map(|path| at(Address::Unix(path.into()))).into_iter().collect(),
            EndpointAddr::Host { port, .. } => {
                let targets = targets().unwrap_or_default().into_iter();
                targets.map(|target| at(Address::Inet((target.address, *port).into()))).collect()
            }
            EndpointAddr::Srv { .. } => targets()
                .unwrap_or_default()
                .into_iter()
                .filter_map(|target| {
                    let service = target.service?;
                    let address = Address::Inet((target.address, service.port).into());
                    Some(Spelled { address, weight: service.weight, priority: service.priority })
                })
                .collect(),
        }
    }

    /// The name or address that a certificate must be for.
    fn host(&self) -> String {
        if let Some(node) = &self.node {
            return node.to_string();
        }
        match &self.written {
            EndpointAddr::Ip(address) => address.ip().to_string(),
            EndpointAddr::Host { host, .. } => host.clone(),
            // What its records name is somebody else's to say; who runs the service is the name's (RFC 6125, 1.8).
            EndpointAddr::Srv { name } => domain(name).into(),
            EndpointAddr::Unix(_) => "localhost".into(),
        }
    }

    fn authority(&self) -> Arc<str> {
        match &self.written {
            EndpointAddr::Unix(_) => "localhost".into(),
            EndpointAddr::Srv { name } => domain(name).into(),
            written => written.to_string().into(),
        }
    }
}
