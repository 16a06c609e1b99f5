//! The plan: the configuration, resolved. Immutable; a request takes the current one when it arrives and keeps it to its end,
//! whatever is reloaded meanwhile. Nothing in it is checked again, because it cannot be wrong.

mod build;
mod host;
mod identity;
mod live;
mod router;
mod settings;
mod trouble;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderName;
use pingora::http::{RequestHeader, ResponseHeader};
use selvedge_cache::{Cache, KeyScope, RoutePolicy};
pub use selvedge_config::{BodyMode, HeaderEncoding, OnFailure, OnPause};
use selvedge_config::{HashBy, RouteTimeouts};
use selvedge_geoip::Geo;
use selvedge_wasm::Plugin;

pub(crate) use self::build::as_configuration;
pub use self::build::{Built, Resources, build};
use self::host::{NodeHost, View};
pub use self::identity::Identity;
pub(crate) use self::live::Live;
pub use self::router::{Asker, Router, Selected};
pub(crate) use self::router::{FieldValue, HostRule, cookies, without_port};
pub use self::trouble::Trouble;
use crate::cluster::{Cluster, RouteIdentity};
use crate::compress::Compress;
use crate::files::Files;
use crate::purge;
use crate::request::actions::{Fields, Redirect, Rewrite};
use crate::request::cors::Cors;
use crate::request::key_parts::KeyParts;
use crate::request::mirror::Mirror;
use crate::request::slices::Slices;
use crate::telemetry::counters::Counters;
use crate::telemetry::trace::TraceKey;
use crate::upstream::{self, Keeper, Upstream, Upstreams};

/// Everything a request needs to know, resolved.
pub struct Plan {
    /// Counts the plans of this process from 1; a reload makes the next one.
    pub generation: u64,
    /// Who we are, for `Cache-Status`, `Via` and logs.
    pub node: Identity,
    /// Whom we believe for whom a request is.
    pub(crate) trusted_proxies: selvedge_config::TrustedProxies,
    /// How paths are read.
    pub(crate) paths: selvedge_config::Paths,
    /// Finds the route of a request.
    pub router: Router,
    /// What the connections of listeners for TCP get, by the listener's name.
    pub(crate) tcp: HashMap<String, Arc<TcpRoute>>,
    /// Where requests may be sent.
    pub upstreams: Arc<Upstreams>,
    /// Looks after them.
    keeper: Arc<Keeper>,
    /// The cache, when one is configured.
    pub cache: Option<&'static Cache>,
    /// Who may purge by `PURGE`.
    pub(crate) purgers: Vec<ipnet::IpNet>,
    /// This node's part in a cluster, when one is configured.
    pub(crate) cluster: Option<Cluster>,
    /// The geo database, when one is configured.
    pub geo: Option<Arc<Geo>>,
    /// Whether access-log lines are written, and how.
    pub access_log: selvedge_config::AccessLog,
    /// Which requests are traced.
    pub(crate) trace: Option<TraceKey>,
    /// What the node counts.
    pub(crate) counters: Arc<Counters>,
    /// Every filter configuration in use, once: the workers run their ticks.
    pub(crate) plugins: Vec<Live>,
    /// What those plugins are given of this plan once it is in force.
    view: Arc<View>,
    /// What went wrong with the filters in use, by name.
    troubles: BTreeMap<String, Arc<Trouble>>,
}

/// One route, resolved.
pub struct Route {
    name: Arc<str>,
    site: Arc<str>,
    node: Arc<str>,
    /// Our name as an item of a structured field, for `Proxy-Status`.
    node_in_fields: Arc<str>,
    /// The chain, site filters first.
    pub(crate) filters: Vec<Arc<ChainFilter>>,
    /// The chain between the cache and the origin; empty on most routes.
    pub(crate) origin_filters: Vec<Arc<ChainFilter>>,
    /// Some filter of either chain may ask for facts about an exchange.
    pub(crate) is_asked_for_facts: bool,
    /// What is kept of its responses; `None` = nothing.
    pub(crate) cache: Option<CacheRule>,
    /// What else is out of date when a request has changed something.
    pub(crate) invalidates: Box<[purge::related::Rule]>,
    /// What is done to the header fields of requests, and of responses.
    pub(crate) request_fields: Option<Box<Fields>>,
    pub(crate) response_fields: Option<Box<Fields>>,
    /// What else the upstream is asked for.
    pub(crate) rewrite: Option<Box<Rewrite>>,
    /// Where copies of its requests go.
    pub(crate) mirror: Option<Box<Mirror>>,
    /// Which pages of other origins may use it.
    pub(crate) cors: Option<Box<Cors>>,
    /// Clients may speak gRPC-Web.
    pub(crate) grpc_web: bool,
    /// How its responses are compressed.
    pub(crate) compress: Option<Box<Compress>>,
    /// The longest request body, in bytes, in place of the listener's.
    pub(crate) body_limit: Option<u64>,
    /// Time limits in place of the upstream's.
    pub(crate) timeouts: Option<Box<RouteTimeouts>>,
    /// Who answers.
    pub(crate) target: Target,
    upstreams: Arc<Upstreams>,
}

/// What is done with the connections of one listener for TCP, resolved.
pub(crate) struct TcpRoute {
    /// The listener's name.
    pub(crate) listener: Arc<str>,
    pub(crate) node: Arc<str>,
    pub(crate) filters: Vec<Arc<ChainFilter>>,
    pub(crate) upstream: Arc<Upstream>,
    /// Where filters may send a connection instead.
    pub(crate) upstreams: Arc<Upstreams>,
}

/// How a route caches.
pub(crate) struct CacheRule {
    pub(crate) policy: Arc<RoutePolicy>,
    /// What counts besides the URL.
    pub(crate) key_parts: Option<Box<KeyParts>>,
    /// Keeps the keys of different routes apart, whatever is reloaded.
    pub(crate) scope: KeyScope,
    /// The fields with tags that clients do not get.
    pub(crate) withheld: Box<[HeaderName]>,
    /// Whether clients are told what its keys are made of.
    pub(crate) shows_key: bool,
    /// What other nodes of the cluster know it by.
    pub(crate) identity: RouteIdentity,
    /// Large objects are kept in slices.
    pub(crate) slices: Option<Box<Slices>>,
}

/// Who answers the requests of a route.
pub(crate) enum Target {
    /// An upstream.
    Upstream(Arc<Upstream>),
    /// One of several.
    Split(Split),
    /// The node itself, with the files of a folder.
    Files(Files),
    /// The node itself, with a fixed response.
    Respond { header: Box<ResponseHeader>, body: Bytes },
    /// The node itself, which sends the client elsewhere.
    Redirect(Redirect),
}

/// Several upstreams that share requests.
pub(crate) struct Split {
    /// Each with the sum of the shares up to its own.
    pub(crate) upstreams: Vec<(u32, Arc<Upstream>)>,
    pub(crate) by: Option<HashBy>,
}

impl Split {
    /// Whose turn a request is: by what it is to be kept by, else by chance.
    pub(crate) fn choose(&self, request: &RequestHeader, client: Option<IpAddr>) -> Option<&Arc<Upstream>> {
        let all = self.upstreams.last()?.0;
        let draw = match self.by.as_ref().and_then(|by| upstream::key(by, request, client)) {
            // From the high bits: those in front of the low ones decide about endpoints.
            Some(key) => u32::try_from((u128::from(key) * u128::from(all)) >> 64).unwrap_or(0),
            None => fastrand::u32(..all),
        };
        self.upstreams.iter().find(|(until, _)| draw < *until).map(|(_, upstream)| upstream)
    }
}

/// A filter in a chain: the plugin with this place's configuration, and how the host treats it.
pub(crate) struct ChainFilter {
    pub(crate) name: Arc<str>,
    pub(crate) plugin: Arc<Plugin>,
    pub(crate) host: Arc<NodeHost>,
    pub(crate) on_failure: OnFailure,
    /// How it sees header values that are not UTF-8.
    pub(crate) header_encoding: HeaderEncoding,
    /// How it sees the body of a request.
    pub(crate) request_body: BodyMode,
    /// How it sees the body of a response.
    pub(crate) response_body: BodyMode,
    /// What it is shown while it pauses at a header.
    pub(crate) on_pause: OnPause,
    /// How many body bytes it may hold back, per direction.
    pub(crate) body_limit: usize,
    /// How long it may stay paused in one place.
    pub(crate) wait: Duration,
    /// Its failures, over all its uses.
    pub(crate) trouble: Arc<Trouble>,
}

impl Route {
    /// The route's name, unique in its site.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first host of its site.
    #[must_use]
    pub fn site(&self) -> &str {
        &self.site
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    pub(crate) fn node_in_fields(&self) -> &str {
        &self.node_in_fields
    }

    /// The upstream the configuration names; `None` for fixed responses.
    pub(crate) fn upstream_name(&self) -> Option<&str> {
        match &self.target {
            Target::Upstream(upstream) => Some(&upstream.name),
            Target::Split(_) | Target::Files(_) | Target::Respond { .. } | Target::Redirect(_) => None,
        }
    }

    /// Whether a filter may send a request there.
    pub(crate) fn knows_upstream(&self, name: &str) -> bool {
        self.upstreams.get(name).is_some()
    }

    /// The upstream of a request: the choice made for it (by a filter, or by [`Split::choose`]), or the route's own.
    pub(crate) fn upstream(&self, chosen: Option<&str>) -> Option<&Arc<Upstream>> {
        match (chosen, &self.target) {
            (Some(name), _) => self.upstreams.get(name),
            (None, Target::Upstream(upstream)) => Some(upstream),
            (None, Target::Split(_) | Target::Files(_) | Target::Respond { .. } | Target::Redirect(_)) => None,
        }
    }
}

impl Plan {
    /// This plan is about to be in force: plugins it has kept from the one before look at its upstreams and databases from now on, for
    /// exchanges of older plans too, and its upstreams are looked after.
    pub(crate) fn enact(&self) {
        for live in &self.plugins {
            live.host.look_at(&self.view);
        }
        self.keeper.keep(&self.upstreams);
    }

    /// How many look-ups of endpoints' names have failed.
    pub(crate) fn failed_lookups(&self) -> u64 {
        self.keeper.failed_lookups()
    }

    /// Whether we believe who connects for whom that is; `None` = somebody at a Unix socket.
    pub(crate) fn trusts(&self, peer: Option<std::net::SocketAddr>) -> bool {
        peer.map_or(self.trusted_proxies.unix, |peer| self.trusted_proxies.has(peer.ip()))
    }

    /// What a connection gets that arrived on this listener; `None` = the listener speaks HTTP.
    pub(crate) fn tcp_route(&self, listener: &str) -> Option<Arc<TcpRoute>> {
        self.tcp.get(listener).cloned()
    }

    /// The failures of a filter since the process started, whatever was reloaded meanwhile; `None` = no chain of this plan has it.
    #[must_use]
    pub fn trouble(&self, filter: &str) -> Option<&Arc<Trouble>> {
        self.troubles.get(filter)
    }

    /// The failures of every filter in use, by name.
    pub(crate) fn troubles(&self) -> impl Iterator<Item = (&str, &Arc<Trouble>)> {
        self.troubles.iter().map(|(name, trouble)| (name.as_str(), trouble))
    }

    /// The route of a request, by its host without port; `None` = nobody serves it.
    #[must_use]
    pub fn select(&self, asker: &Asker<'_>) -> Option<Selected<'_>> {
        self.router.select(asker)
    }
}
