//! From `cluster` as it is written to circles of nodes and the listener they reach this one at.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use selvedge_config::{
    Balance, ByteSize, CertificateFiles, Certificates, ClientCertificates, ClientMode, Config, ConsistentHash,
    Endpoint, HashAlgorithm, HashBy, Listener, ListenerLimits, Outlier, Peers, Percent, Place, Protocol, Retries,
    Servers, Timeouts, Tls, TlsVersion, UnknownNames, Upstream, UpstreamProtocol, UpstreamTls,
};

use super::counts::Counts;
use super::messages::{self, Handlers};
use super::{Circle, Cluster, PEERS, REGION, RouteIdentity};
use crate::plan::Router;
use crate::upstream::Upstreams;
use crate::upstream::build::Circle as Draft;

/// How long the connection between two nodes is kept without requests. Less than the other side keeps it.
const IDLE: Duration = Duration::from_secs(45);
/// The same on the side that listens.
const IDLE_LISTENER: Duration = Duration::from_secs(60);
/// How long a node may be silent once its response has begun: longer than the origin may towards it, as far as defaults go.
const SILENCE: Duration = Duration::from_secs(65);

/// After so many failures in a row a node is left out.
const FAILURES: u16 = 3;
/// For this long; each further time for longer, up to [`LEFT_OUT_MAX`]. Then it is asked again, and what comes of that decides.
const LEFT_OUT: Duration = Duration::from_secs(1);
const LEFT_OUT_MAX: Duration = Duration::from_secs(30);

/// The circles of a configuration, as upstreams that can be built like others.
pub(crate) fn circles(config: &Config) -> Vec<Draft> {
    let Some(cluster) = &config.cluster else { return Vec::new() };
    let region = cluster.region.as_ref().map(|region| &region.peers);
    let circles = [(PEERS, cluster.peers.as_ref()), (REGION, region)];
    circles.into_iter().filter_map(|(name, peers)| Some(draft(name, peers?, cluster))).collect()
}

fn draft(name: &'static str, peers: &Peers, cluster: &selvedge_config::Cluster) -> Draft {
    let (endpoints, nodes) = match peers {
        Peers::Listed(peers) => {
            let endpoint = |peer: &selvedge_config::ClusterPeer| Endpoint {
                addr: peer.address.clone(),
                weight: peer.weight,
                place: Place::default(),
                position: peer.position.clone(),
            };
            let nodes = peers.iter().map(|peer| peer.name.as_str().into()).collect();
            (peers.iter().map(endpoint).collect(), nodes)
        }
        Peers::Resolved(address, position) => {
            let host = match address {
                selvedge_config::EndpointAddr::Host { host, .. } => host.clone(),
                other => other.to_string(),
            };
            let endpoint =
                Endpoint { addr: address.clone(), weight: 1, place: Place::default(), position: position.clone() };
            (vec![endpoint], vec![host.into()])
        }
    };
    let upstream = Upstream {
        servers: Servers::Endpoints(endpoints),
        tls: Some(UpstreamTls {
            sni: cluster.tls.server_name.clone(),
            ca: Some(cluster.tls.ca.clone()),
            cert: Some(cluster.tls.certificate.clone()),
            key: Some(cluster.tls.key.clone()),
            verify: true,
        }),
        protocol: UpstreamProtocol::H2,
        timeouts: Timeouts { connect: cluster.deadlines.connect, read: SILENCE, idle: IDLE, ..Timeouts::default() },
        // What is hashed is the cache key; see `Upstream::ask_of_key`.
        balance: Balance::ConsistentHash(ConsistentHash { by: HashBy::Path, algorithm: HashAlgorithm::Ketama }),
        sticky: None,
        prefer: None,
        dns: cluster.dns.clone(),
        health_check: None,
        outlier: Some(Outlier {
            consecutive_5xx: 0,
            consecutive_gateway: FAILURES,
            consecutive_connect: FAILURES,
            failure_rate: None,
            eject: LEFT_OUT,
            eject_max: LEFT_OUT_MAX,
            ejected_max: Percent::ALL, // There is always the origin.
        }),
        retries: Retries::default(),
        hedge: None,
        limits: None,
        pool: None,
        panic: Percent::NONE,
        slow_start: Duration::ZERO,
        like: None,
        position: cluster.position.clone(),
    };
    Draft { name, upstream, nodes }
}

/// What other nodes may send in a request's header: what clients may at most, and what the node adds.
const HEADER_SIZE: ByteSize = ByteSize::mib(1);

/// The listener that other nodes reach this one at, as if it were written.
pub(crate) fn listener(config: &Config) -> Option<Listener> {
    let cluster = config.cluster.as_ref()?;
    let (files, position) = (&cluster.tls, cluster.tls.position.clone());
    let pair = CertificateFiles { cert: files.certificate.clone(), key: files.key.clone(), position: position.clone() };
    let clients = ClientCertificates {
        mode: ClientMode::Require,
        ca: files.ca.clone(),
        crl: None,
        pins: Vec::new(),
        forward: false,
        position: position.clone(),
    };
    Some(Listener {
        bind: cluster.listen.into(),
        protocols: vec![Protocol::H2],
        tls: Some(Tls {
            certificates: Certificates::Files(vec![pair]),
            unknown_names: UnknownNames::First,
            min: TlsVersion::V1_3,
            clients: Some(clients),
            position,
        }),
        tcp: None,
        proxy_protocol: None,
        redirect_to_https: None,
        limits: ListenerLimits {
            body: ByteSize(messages::LONGEST as u64),
            header_size: HEADER_SIZE,
            header_count: 256,
            uri_length: ByteSize(65_534),
            idle_timeout: IDLE_LISTENER,
            h2_streams: 1000,
            // Nodes give up what their clients give up.
            h2_resets: u16::MAX,
            ..ListenerLimits::default()
        },
        position: cluster.position.clone(),
    })
}

/// What has to be the same about a route on two nodes for one to answer in place of the other: its name and site, and all that decides
/// what the origin is asked and what of its answer is kept.
pub(crate) fn route_identity(site: &str, route: &selvedge_config::Route) -> RouteIdentity {
    let mut told =
        format!("{:#?}\n{:#?}\n{:#?}\n{:#?}", route.cache, route.target, route.rewrite, route.headers.request);
    // What is stored is what these make of it.
    for used in &route.origin_filters {
        told.push_str(&format!("\norigin filter {} {}", used.name, used.config));
    }
    let mut hasher = blake3::Hasher::new_derive_key("selvedge route identity 1");
    for part in [site, &route.name] {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    // Where things are written may differ.
    for line in told.lines().filter(|line| !line.trim_start().starts_with("position:")) {
        hasher.update(line.as_bytes()).update(b"\n");
    }
    let mut identity = [0; 16];
    hasher.finalize_xof().fill(&mut identity);
    identity
}

impl Cluster {
    /// This node's part, with upstreams that were made of [`circles`].
    pub(crate) fn of(
        config: &Config,
        upstreams: &Upstreams,
        router: &Router,
        counts: &Arc<Counts>,
        handlers: &Arc<Handlers>,
    ) -> Option<Self> {
        let written = config.cluster.as_ref()?;
        let circle = |name: &str, peers: Option<&Peers>| {
            let resolved = match peers? {
                Peers::Listed(_) => None,
                Peers::Resolved(..) => Some(written.listen),
            };
            Some(Circle { upstream: Arc::clone(upstreams.circle(name)?), resolved, own: RwLock::default() })
        };
        let mut routes = HashMap::new();
        for route in router.routes() {
            if let Some(rule) = &route.cache {
                routes.insert(rule.identity, Arc::clone(route));
            }
        }
        Some(Self {
            name: written.name.as_deref().unwrap_or(&config.node.name).into(),
            peers: circle(PEERS, written.peers.as_ref()),
            region: circle(REGION, written.region.as_ref().map(|region| &region.peers)),
            deadlines: written.deadlines,
            hot: written.hot,
            named: written.tls.server_name.is_none() && matches!(written.peers, Some(Peers::Listed(_))),
            routes,
            counts: Arc::clone(counts),
            handlers: Arc::clone(handlers),
        })
    }
}
