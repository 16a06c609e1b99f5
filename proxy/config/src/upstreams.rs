//! `upstreams`: named groups of servers that requests are forwarded to.

mod balance;
mod dns;
mod health;
mod hedge;
mod limits;
mod outlier;
mod pool;
mod prefer;
mod retries;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use schemars::JsonSchema;

use self::balance::BalanceForm;
pub use self::balance::{Balance, ConsistentHash, HashAlgorithm, HashBy, Sticky};
pub(crate) use self::balance::{HASH_BY, hash_by};
pub use self::dns::Dns;
pub use self::health::{GrpcProbe, HealthCheck, HttpProbe, InitialHealth, Probe, TcpProbe};
pub use self::hedge::{Hedge, HedgeAfter};
pub use self::limits::UpstreamLimits;
pub use self::outlier::{FailureRate, Outlier};
pub use self::pool::UpstreamPool;
pub use self::prefer::{Place, Prefer, PreferBy};
pub use self::retries::{Retries, RetryOn};
use crate::{
    bind::UNIX_PATH_MAX,
    decode::{
        At, Cx, Fields, choice, duration, duration_or_zero, filled_list, host_name, parsed, path, percent, reference,
        truth, whole,
    },
    report::{Fault, Position},
    tree::Data,
    values::{DurationText, Percent},
};

/// A named group of servers. Requests go to its endpoints in turn (weighted round robin).
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Upstream {
    /// Who answers. Exactly one of `builtin` and `endpoints` is required.
    #[schemars(flatten)]
    pub servers: Servers,

    /// TLS towards the endpoints. Absent: plain text. Not with `builtin`.
    pub tls: Option<UpstreamTls>,

    /// What is spoken to the endpoints: `h1` or `h2`. With `tls` it is offered by ALPN; without, `h2` is spoken by prior
    /// knowledge. Not with `builtin`. Default `h1`.
    #[schemars(with = "Option<UpstreamProtocol>", extend("default" = "h1"))]
    pub protocol: UpstreamProtocol,

    /// How long each part of an exchange may take.
    #[schemars(with = "Option<Timeouts>", extend("default" = {}))]
    pub timeouts: Timeouts,

    /// How an endpoint is chosen for a request. Default `round_robin`.
    #[schemars(with = "Option<BalanceForm>", extend("default" = "round_robin"))]
    pub balance: Balance,

    /// Keeps a client at the endpoint that served it first, as long as that endpoint may be sent requests. Absent: no.
    pub sticky: Option<Sticky>,

    /// Sends requests to near endpoints, as long as they can take them. Not with `consistent_hash`. Absent: all are equally near.
    pub prefer: Option<Prefer>,

    /// How the names of endpoints become addresses.
    #[schemars(with = "Option<Dns>", extend("default" = {}))]
    pub dns: Dns,

    /// Asks every endpoint again and again how it is. Absent: all are taken to be well.
    pub health_check: Option<HealthCheck>,

    /// Leaves out endpoints that fail requests. Absent: none is left out, whatever it answers.
    pub outlier: Option<Outlier>,

    /// What is sent once more when it fails.
    #[schemars(with = "Option<Retries>", extend("default" = {}))]
    pub retries: Retries,

    /// Asks a second endpoint when the first is silent. Not with `sticky` or `builtin`. Absent: no.
    pub hedge: Option<Hedge>,

    /// How much is sent at once. Absent: as much as comes.
    pub limits: Option<UpstreamLimits>,

    /// Which connections are kept, and for how long. Absent: as many as there is room for, as long as they are used.
    pub pool: Option<UpstreamPool>,

    /// When a smaller share of the endpoints than this is healthy and not ejected, all are used: the rest could not bear the load, and
    /// what looks like many ill endpoints is more often one ill network. Drained ones are not counted and not used. `0%`: never; then
    /// requests fail with 503 when none is left. Default `50%`.
    #[schemars(with = "Option<Percent>", extend("default" = "50%"))]
    pub panic: Percent,

    /// Over this time, an endpoint that has become healthy, has been ejected, or is new in DNS gets a growing share of requests, from a
    /// tenth of its weight to all of it. Not with `consistent_hash`. `0s`: all at once. Default `0s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "0s"))]
    pub slow_start: Duration,

    /// The upstream whose settings, all but `endpoints`, are taken where they are not written here. A block that is written here
    /// replaces the other's whole block. Already applied to the other fields. Not with `builtin`.
    pub like: Option<String>,

    /// Where its name is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Who answers for an upstream.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Servers {
    /// A server that comes with the node, inside the same process.
    Builtin(Builtin),
    /// Servers elsewhere: `IP:port`, `host:port` (see `dns`) or `unix:/path`, or `{ addr, weight }`. At least one.
    Endpoints(#[schemars(length(min = 1))] Vec<Endpoint>),
}

/// A server that comes with the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Builtin {
    /// A small web site for trying things out.
    Demo,
}

/// One server of an upstream.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(with = "EndpointForm")]
pub struct Endpoint {
    /// Where it is.
    pub addr: EndpointAddr,
    /// Its share of requests against the other endpoints' weights, 1 to 1000. Default 1.
    pub weight: u16,
    /// Where it stands.
    pub place: Place,
    /// Where it is written.
    pub position: Position,
}

/// The two ways to write [`Endpoint`].
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Endpoint")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum EndpointForm {
    Short(String),
    Long(WeightedEndpoint),
}

/// An endpoint with its weight.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the grammar; never made")]
struct WeightedEndpoint {
    /// `IP:port`, `host:port` or `unix:/path`. Exactly one of `addr` and `srv` is required.
    addr: Option<String>,
    /// The name of a service, `_http._tcp.example.com`: each address of the hosts that its SRV records (RFC 2782) name is an endpoint, with
    /// the record's port and weight (0 counts as 1). Those of another priority than the lowest number are used when too few of the better
    /// ones are well (`panic`). Unless `tls.sni` is written, certificates have to be for what follows `_service._proto.`. Not with `weight`.
    srv: Option<String>,
    /// Its share of requests against the other endpoints' weights, 1 to 1000. Default 1.
    #[schemars(with = "Option<u16>", range(min = 1, max = 1000), extend("default" = 1))]
    weight: u16,
    /// The zone it stands in, for `prefer`. A name of your own. Absent: in none.
    zone: Option<String>,
    /// The country it stands in, two letters (ISO 3166-1), for `prefer`. Absent: unknown.
    #[schemars(regex(pattern = r"^[A-Za-z]{2}$|\$\{"))]
    country: Option<String>,
    /// Where it stands, `LATITUDE,LONGITUDE` in degrees, for `prefer`. Absent: farther than all others.
    at: Option<String>,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointAddr {
    /// An address; IPv6 is written `"[::1]:9000"`.
    Ip(SocketAddr),
    /// A Unix socket, by its path.
    Unix(PathBuf),
    /// A host name; each of its addresses is an endpoint.
    Host {
        /// The name, in lower case.
        host: String,
        /// The port, 1 to 65535.
        port: u16,
    },
    /// The name of a service: its SRV records (RFC 2782) name hosts, ports, priorities and weights.
    Srv {
        /// The name, in lower case: `_http._tcp.example.com`.
        name: String,
    },
}

impl fmt::Display for EndpointAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
            Self::Srv { name } => write!(f, "srv:{name}"),
        }
    }
}

/// TLS towards the endpoints.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct UpstreamTls {
    /// The name that is asked for (SNI) and that the certificate must be for. Absent: the endpoint's host name; endpoints
    /// that are IP addresses then need certificates for those addresses.
    pub sni: Option<String>,

    /// PEM file of the authorities that are trusted, instead of the system's.
    pub ca: Option<PathBuf>,

    /// PEM file of the certificate that is shown to endpoints that ask for one, with its intermediates. With `key`. It is read again
    /// when it changes.
    pub cert: Option<PathBuf>,

    /// PEM file of that certificate's private key.
    pub key: Option<PathBuf>,

    /// Whether the certificate is checked. `false` encrypts but lets anyone on the path pose as the origin. Default `true`.
    #[schemars(with = "Option<bool>", extend("default" = true))]
    pub verify: bool,
}

/// What is spoken to the endpoints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum UpstreamProtocol {
    /// HTTP/1.1, one request at a time on a connection.
    #[default]
    H1,
    /// HTTP/2, many requests on a connection.
    H2,
}

/// How long each part of an exchange may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Timeouts {
    /// To connect, TLS included. Then the request fails with 504 (Gateway Timeout). Above zero. Default `1s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "1s"))]
    pub connect: Duration,

    /// How long the upstream may be silent while we wait for it: until its response begins, and between two pieces of it.
    /// Every piece of a request body that is sent starts the wait anew. Then the request fails with 504 (Gateway Timeout), or
    /// is cut off when its response had begun; where the client owes the rest of its body, it fails with 408 (Request Timeout), and
    /// nothing is held against the endpoint. Streams of events need it longer than their longest pause. Above zero. Default `60s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "60s"))]
    pub read: Duration,

    /// How long one attempt may take from its connection to the beginning of the response, however lively the connection is meanwhile.
    /// Then it is given up: 504 (Gateway Timeout), or another attempt with `retries: { when: [timeout] }`. A connection of HTTP/1.1 is
    /// closed, a stream of HTTP/2 is reset. Above zero. Absent: `read` alone.
    #[schemars(with = "Option<DurationText>")]
    pub first_byte: Option<Duration>,

    /// How long an exchange may take from the first attempt to the end of the response: waiting for room, attempts, pauses, and all of
    /// the body. Then it fails with 504 (Gateway Timeout), or is cut off when the response had begun. WebSockets and other upgraded
    /// connections are not bound by it. Above zero. Absent: any time.
    #[schemars(with = "Option<DurationText>")]
    pub total: Option<Duration>,

    /// How long an unused connection is kept for the next request. Keep it below the origin's own idle timeout, or
    /// requests meet closed connections. Above zero. Default `60s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "60s"))]
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            read: Duration::from_secs(60),
            first_byte: None,
            total: None,
            idle: Duration::from_secs(60),
        }
    }
}

/// How many upstreams `like` may lead over; nobody can follow more.
const LONGEST_LIKE: usize = 16;

/// An upstream as written, before `like` is followed.
pub(crate) struct Draft {
    servers: Option<Servers>,
    settings: Settings,
    like: Option<(String, Fault)>,
    position: Position,
}

/// What `like` shares.
#[derive(Clone)]
struct Settings {
    tls: Option<UpstreamTls>,
    protocol: Option<UpstreamProtocol>,
    timeouts: Option<Timeouts>,
    balance: Option<Balance>,
    sticky: Option<Sticky>,
    prefer: Option<Prefer>,
    dns: Option<Dns>,
    health_check: Option<HealthCheck>,
    outlier: Option<Outlier>,
    retries: Option<Retries>,
    hedge: Option<Hedge>,
    limits: Option<UpstreamLimits>,
    pool: Option<UpstreamPool>,
    panic: Option<Percent>,
    slow_start: Option<Duration>,
}

impl Settings {
    /// These, and the other's where there are none.
    fn or(self, other: &Self) -> Self {
        Self {
            tls: self.tls.or_else(|| other.tls.clone()),
            protocol: self.protocol.or(other.protocol),
            timeouts: self.timeouts.or(other.timeouts),
            balance: self.balance.or_else(|| other.balance.clone()),
            sticky: self.sticky.or_else(|| other.sticky.clone()),
            prefer: self.prefer.or_else(|| other.prefer.clone()),
            dns: self.dns.or_else(|| other.dns.clone()),
            health_check: self.health_check.or_else(|| other.health_check.clone()),
            outlier: self.outlier.or(other.outlier),
            retries: self.retries.or_else(|| other.retries.clone()),
            hedge: self.hedge.or(other.hedge),
            limits: self.limits.or(other.limits),
            pool: self.pool.or(other.pool),
            panic: self.panic.or(other.panic),
            slow_start: self.slow_start.or(other.slow_start),
        }
    }
}

impl Draft {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>, names: &BTreeSet<&str>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Upstream")?;
        let builtin = fields.get("builtin");
        let endpoints = fields.get("endpoints");
        let tls_at = fields.get("tls");
        let protocol_at = fields.get("protocol");
        let like_at = fields.get("like");

        let servers = match (&builtin, &endpoints) {
            (Some(builtin), other) => {
                for (key, at) in
                    [("endpoints", other), ("tls", &tls_at), ("protocol", &protocol_at), ("like", &like_at)]
                {
                    let Some(at) = at else { continue };
                    let message = format!("`{key}` and `builtin` are both written");
                    let fault = Fault::at(at.name_position(), message).with_key(at.path.clone());
                    cx.report(fault.with_help("a built-in server is inside this process: remove one of them"));
                }
                choice(cx, builtin, &[("demo", Builtin::Demo)]).map(Servers::Builtin)
            }
            (None, Some(endpoints)) => read_endpoints(cx, endpoints).map(Servers::Endpoints),
            (None, None) => cx.refuse(fields.missing("`endpoints` is missing").with_help("or write `builtin: demo`")),
        };
        let tls = tls_at.and_then(|at| UpstreamTls::read(cx, &at));
        let protocol =
            protocol_at.and_then(|at| choice(cx, &at, &[("h1", UpstreamProtocol::H1), ("h2", UpstreamProtocol::H2)]));
        let timeouts = fields.read(cx, "timeouts", Timeouts::read);
        let balance = fields.read(cx, "balance", Balance::read);
        let sticky = fields.read(cx, "sticky", Sticky::read);
        let prefer = fields.read(cx, "prefer", Prefer::read);
        let dns = fields.read(cx, "dns", Dns::read);
        let health_check = fields.read(cx, "health_check", HealthCheck::read);
        let outlier = fields.read(cx, "outlier", Outlier::read);
        let retries = fields.read(cx, "retries", Retries::read);
        let hedge_at = fields.get("hedge");
        let hedge = hedge_at.as_ref().and_then(|at| Hedge::read(cx, at));
        if let (Some(at), Some(_)) = (&hedge_at, &builtin) {
            let fault = Fault::at(at.name_position(), "`hedge` does nothing with `builtin`: there is one server");
            cx.report(fault.with_key(at.path.clone()).with_help("remove one of them"));
        }
        let limits = fields.read(cx, "limits", UpstreamLimits::read);
        let pool = fields.read(cx, "pool", UpstreamPool::read);
        let panic = fields.read(cx, "panic", percent);
        let slow_start = fields.read(cx, "slow_start", duration_or_zero);
        let settings = Settings {
            tls,
            protocol,
            timeouts,
            balance,
            sticky,
            prefer,
            dns,
            health_check,
            outlier,
            retries,
            hedge,
            limits,
            pool,
            panic,
            slow_start,
        };
        let like = like_at.and_then(|at| {
            let name = reference(cx, &at, "upstream", names)?;
            Some((name, at.fault("`like` goes in a circle")))
        });
        fields.close(cx);
        Some(Self { servers, settings, like, position: at.name_position().clone() })
    }
}

/// Follows `like`: what an upstream does not say itself, the nearest one on its chain that does says for it.
pub(crate) fn resolve(cx: &mut Cx<'_>, drafts: &BTreeMap<String, Draft>) -> BTreeMap<String, Upstream> {
    let mut in_reported_circle: BTreeSet<&str> = BTreeSet::new();
    let mut upstreams = BTreeMap::new();
    for (name, draft) in drafts {
        let mut chain: Vec<&str> = vec![name];
        let mut settings = draft.settings.clone();
        let mut next = draft.like.as_ref();
        while let Some((other, circle_fault)) = next {
            if let Some(start) = chain.iter().position(|link| link == other) {
                // Every member of a circle, and all that lead into it, come here: it is told once.
                if chain[start..].iter().all(|link| in_reported_circle.insert(link)) {
                    let mut fault = circle_fault.clone();
                    fault.message = format!("`like` goes in a circle: {} -> {other}", chain[start..].join(" -> "));
                    cx.report(fault);
                }
                break;
            }
            if chain.len() > LONGEST_LIKE {
                let mut fault = circle_fault.clone();
                fault.message = format!("`like` goes over more than {LONGEST_LIKE} upstreams");
                cx.report(fault);
                break;
            }
            // One with a fault of its own is not among the drafts.
            let Some((other, like)) = drafts.get_key_value(other) else { break };
            chain.push(other);
            settings = settings.or(&like.settings);
            next = like.like.as_ref();
        }
        let Some(servers) = draft.servers.clone() else { continue };
        let checks_grpc = settings.health_check.as_ref().is_some_and(|check| matches!(check.probe, Probe::Grpc(_)));
        if checks_grpc && settings.protocol != Some(UpstreamProtocol::H2) {
            let fault = Fault::at(&draft.position, "`health_check.grpc` needs `protocol: h2`");
            cx.report(fault.with_key(format!("upstreams.{name}")));
        }
        if settings.hedge.is_some() && settings.sticky.is_some() {
            let fault = Fault::at(&draft.position, "`hedge` and `sticky` contradict each other");
            let help =
                "a client is either kept at one endpoint, or served by whichever answers first: remove one of them";
            cx.report(fault.with_key(format!("upstreams.{name}")).with_help(help));
        }
        let kept = settings.pool.and_then(|pool| pool.idle).unwrap_or_default();
        if kept > 0 && settings.protocol == Some(UpstreamProtocol::H2) {
            let fault =
                Fault::at(&draft.position, "`pool.idle` counts connections of HTTP/1.1, and `protocol` is `h2`");
            let help =
                "there is one connection for up to 100 requests at once: write `idle: 0` to keep none, or remove it";
            cx.report(fault.with_key(format!("upstreams.{name}")).with_help(help));
        }
        if matches!(settings.balance, Some(Balance::ConsistentHash(_))) && settings.prefer.is_some() {
            let fault = Fault::at(&draft.position, "`prefer` does nothing with `consistent_hash`");
            cx.report(fault.with_key(format!("upstreams.{name}")).with_help("remove one of them"));
        }
        if matches!(settings.balance, Some(Balance::ConsistentHash(_)))
            && settings.slow_start.is_some_and(|time| !time.is_zero())
        {
            let fault = Fault::at(&draft.position, "`slow_start` does nothing with `consistent_hash`");
            cx.report(fault.with_key(format!("upstreams.{name}")).with_help("remove one of them"));
        }
        let upstream = Upstream {
            servers,
            tls: settings.tls,
            protocol: settings.protocol.unwrap_or_default(),
            timeouts: settings.timeouts.unwrap_or_default(),
            balance: settings.balance.unwrap_or_default(),
            sticky: settings.sticky,
            prefer: settings.prefer,
            dns: settings.dns.unwrap_or_default(),
            health_check: settings.health_check,
            outlier: settings.outlier,
            retries: settings.retries.unwrap_or_default(),
            hedge: settings.hedge,
            limits: settings.limits,
            pool: settings.pool,
            panic: settings.panic.unwrap_or(Percent::HALF),
            slow_start: settings.slow_start.unwrap_or_default(),
            like: draft.like.as_ref().map(|(other, _)| other.clone()),
            position: draft.position.clone(),
        };
        upstreams.insert(name.clone(), upstream);
    }
    upstreams
}

fn read_endpoints(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Vec<Endpoint>> {
    let mut seen: BTreeMap<String, Position> = BTreeMap::new();
    filled_list(cx, at, |cx, at| {
        let endpoint = Endpoint::read(cx, at)?;
        if let Some(first) = seen.get(&endpoint.addr.to_string()) {
            let fault = at.fault("this endpoint is written twice").with_related("first here", first);
            return cx.refuse(fault.with_help("to give it more requests, write `{ addr: .., weight: 2 }`"));
        }
        seen.insert(endpoint.addr.to_string(), endpoint.position.clone());
        Some(endpoint)
    })
}

impl Endpoint {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        if !matches!(at.node.data, Data::Map(_)) {
            return Some(Self {
                addr: read_addr(cx, at)?,
                weight: 1,
                place: Place::default(),
                position: at.node.position.clone(),
            });
        }
        let mut fields = Fields::open(cx, at, "WeightedEndpoint")?;
        let srv_at = fields.get("srv");
        let weight_at = fields.get("weight");
        let addr = match &srv_at {
            None => fields.need(cx, "addr", |cx, at| Some((read_addr(cx, at)?, at.node.position.clone()))),
            Some(srv) => {
                for other in fields.get("addr").iter().chain(&weight_at) {
                    let word = other.path.rsplit('.').next().unwrap_or_default();
                    let fault = Fault::at(other.name_position(), format!("`{word}` and `srv` are both written"));
                    let help = "ports and weights are in the SRV records: remove one of them";
                    cx.report(fault.with_key(other.path.clone()).with_help(help));
                }
                let name = parsed(cx, srv, "the name of a service", service_name);
                name.map(|name| (EndpointAddr::Srv { name }, srv.node.position.clone()))
            }
        };
        let weight = weight_at.as_ref().and_then(|at| whole(cx, at, 1, 1000));
        let place = Place::read(cx, &mut fields);
        fields.close(cx);
        let (addr, position) = addr?;
        Some(Self { addr, weight: weight.unwrap_or(1), place, position })
    }
}

/// `_service._proto.name` (RFC 2782).
fn service_name(text: &str) -> Result<String, (String, Option<String>)> {
    let name = host_name(text)?;
    let mut labels = name.split('.');
    let named = |label: Option<&str>| label.is_some_and(|label| label.len() > 1 && label.starts_with('_'));
    if named(labels.next()) && named(labels.next()) && labels.next().is_some() {
        return Ok(name);
    }
    Err(("is not the name of a service".into(), Some("write `_service._tcp.example.com`".into())))
}

pub(crate) fn read_addr(cx: &mut Cx<'_>, at: &At<'_>) -> Option<EndpointAddr> {
    parsed(cx, at, "`IP:port` or `host:port`", |text| {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return if addr.port() == 0 { Err(("has port 0".into(), None)) } else { Ok(EndpointAddr::Ip(addr)) };
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') && path.len() <= UNIX_PATH_MAX && !path.contains('\0') {
                Ok(EndpointAddr::Unix(path.into()))
            } else {
                Err((
                    "is not a Unix socket".into(),
                    Some("write `unix:/path`, absolute and of at most 107 bytes".into()),
                ))
            };
        }
        if text.contains("://") {
            return Err((
                "is not an endpoint".into(),
                Some("write `host:port` without a scheme; `tls` says how".into()),
            ));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Err(("has no port".into(), Some(format!("write `{text}:80`, or the port it listens on"))));
        };
        let port = port.parse::<u16>().ok().filter(|port| *port != 0);
        let Some(port) = port.filter(|_| !host.contains(':')) else {
            return Err((
                "is not an endpoint".into(),
                Some("write `IP:port` or `host:port`; IPv6 as `\"[::1]:9000\"`".into()),
            ));
        };
        host_name(host).map(|host| EndpointAddr::Host { host, port })
    })
}

impl UpstreamTls {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "UpstreamTls")?;
        let sni = fields.read(cx, "sni", |cx, at| parsed(cx, at, "a host name", host_name));
        let ca_at = fields.get("ca");
        let ca = ca_at.as_ref().and_then(|at| path(cx, at));
        let (cert_at, key_at) = (fields.get("cert"), fields.get("key"));
        let cert = cert_at.as_ref().and_then(|at| path(cx, at));
        let key = key_at.as_ref().and_then(|at| path(cx, at));
        for (present, absent, name) in [(&cert_at, &key_at, "key"), (&key_at, &cert_at, "cert")] {
            if let (Some(at), None) = (present, absent) {
                let fault = Fault::at(at.name_position(), format!("`{name}` is missing beside it"));
                cx.report(fault.with_key(at.path.clone()));
            }
        }
        let verify = fields.read(cx, "verify", truth).unwrap_or(true);
        if let Some(ca) = ca_at.filter(|_| !verify) {
            let fault =
                Fault::at(ca.name_position(), "`ca` does nothing with `verify: false`").with_key(ca.path.clone());
            cx.report(fault.with_help("remove one of them"));
        }
        fields.close(cx);
        Some(Self { sni, ca, cert, key, verify })
    }
}

impl Timeouts {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let mut fields = Fields::open(cx, at, "Timeouts")?;
        let connect = fields.read(cx, "connect", duration);
        let read = fields.read(cx, "read", duration);
        let first_byte = fields.read(cx, "first_byte", duration);
        let total = fields.read(cx, "total", duration);
        let idle = fields.read(cx, "idle", duration);
        fields.close(cx);
        Some(Self {
            connect: connect.unwrap_or(default.connect),
            read: read.unwrap_or(default.read),
            first_byte,
            total,
            idle: idle.unwrap_or(default.idle),
        })
    }
}
