//! `upstreams`: named groups of servers that requests are forwarded to.

use std::{fmt, net::SocketAddr, path::PathBuf, time::Duration};

use schemars::JsonSchema;

use crate::{report::Position, values::DurationText};

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
    #[schemars(with = "Option<Timeouts>")]
    pub timeouts: Timeouts,

    /// The upstream whose `tls`, `protocol` and `timeouts` are taken where they are not written here. A block that is
    /// written here replaces the other's whole block. Already applied to the other fields. Not with `builtin`.
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
    /// Servers elsewhere: `IP:port` or `host:port` (resolved at start), or `{ addr, weight }`. At least one.
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
    /// `IP:port` or `host:port`. Required.
    addr: String,
    /// Its share of requests against the other endpoints' weights, 1 to 1000. Default 1.
    #[schemars(with = "Option<u16>", range(min = 1, max = 1000), extend("default" = 1))]
    weight: u16,
}

/// Where an endpoint is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointAddr {
    /// An address; IPv6 is written `"[::1]:9000"`.
    Ip(SocketAddr),
    /// A host name, resolved at start.
    Host {
        /// The name, in lower case.
        host: String,
        /// The port, 1 to 65535.
        port: u16,
    },
}

impl fmt::Display for EndpointAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
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

    /// From the request's last byte to the response's first. Then the request fails with 504 (Gateway Timeout). Above zero.
    /// Default `10s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "10s"))]
    pub first_byte: Duration,

    /// How long an unused connection is kept for the next request. Keep it below the origin's own idle timeout, or
    /// requests meet closed connections. Above zero. Default `60s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "60s"))]
    pub idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), first_byte: Duration::from_secs(10), idle: Duration::from_secs(60) }
    }
}
