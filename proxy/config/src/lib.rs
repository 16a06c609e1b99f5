//! The configuration as written: YAML with positions, checked, with every fault reported together.
//!
//! [`Loader::load`] reads a file and what it includes, and returns either a [`Config`] in which every name resolves and
//! every value is in range, or a [`Report`] of *all* faults, each with file, line, column, a snippet, and the nearest
//! known word. Nothing here opens a socket or reads a WebAssembly module: the proxy turns the [`Config`] into what it
//! runs, and reports faults it finds later through [`Fault::at`], at the [`Position`] every named thing carries.
//!
//! # Rules of the grammar
//! - A key that nothing reads does not exist: it is a fault, not a warning.
//! - Units stand in values (`30s`, `16MiB`, `100/min`), never in a key's name. A number without its unit is a fault.
//! - `${VAR}`, `${VAR:-default}` and `${VAR:?message}` are replaced in plain (unquoted) values, never in quoted text and
//!   never in keys; `$${` writes a literal `${`. As in a shell, `:-` and `:?` treat an empty variable like an unset one.
//!   YAML itself gives `{` a meaning inside `{ .. }` and `[ .. ]`: use `${..}` in block style.
//! - A plain value made by `${..}` counts as text where text is expected; everywhere else it is read as if written.
//! - A relative path is relative to the file it is written in.
//! - YAML 1.2 core types: `no`, `on` and `yes` are text. Tags, merge keys and several documents are not part of the
//!   grammar. Anchors and aliases are, within a limit on what they may expand to.
//!
//! # Secrets
//! In a filter's `config`, the key `X_file: path` becomes `X: <content of the file>`. Such contents, and the values of
//! environment variables, are in no fault; faults quote what is *written*. `Debug` of a filter's config, of a fixed
//! response and of header matches prints no values.

mod actions;
mod admin;
mod bind;
mod cache;
mod cases;
mod cluster;
mod decode;
mod effective;
mod filters;
mod geo;
mod isolation;
mod listeners;
mod load;
mod matching;
mod node;
mod redis;
mod report;
mod schema;
mod sites;
mod telemetry;
mod tree;
mod trusted;
mod upstreams;
mod values;

pub use actions::{FieldRules, HeaderRules, Part, Redirect, Rewrite, RewritePath, Template};
pub use admin::Admin;
pub use bind::Bind;
pub use cache::{Admit, Beyond, Cache, CacheDisk, CacheMemory, CachePurge, Collapse, DiskFolder};
pub use cases::{Expect, Test, TestOrigin, TestRequest};
pub use cluster::{Cluster, ClusterDeadlines, ClusterPeer, ClusterTls, Peers, Region};
pub use decode::suggest;
pub use effective::{Change, Difference, Effective, REDACTED, Secret};
pub use filters::{BodyMode, Filter, FilterLimits, FilterUse, HeaderEncoding, OnFailure, OnPause, WasmSource};
pub use geo::{Geo, GeoDatabase, Reload};
pub use isolation::{Compat, Isolation, Snapshot, Tick};
pub use listeners::{
    CertificateFiles, Certificates, ClientCertificates, ClientMode, Listener, ListenerLimits, Pin, Protocol,
    ProxyProtocol, RedirectToHttps, Tcp, Tls, TlsVersion, UnknownNames,
};
pub use load::{Config, Loaded, Loader};
pub use matching::{GeoMatch, Match, PathMatch, REGEX_SIZE, ValueMatch, matches_pattern};
pub use node::{EncodedSlashes, ModuleCache, Node, Paths, Workers};
pub use redis::Redis;
pub use report::{Fault, Position, Report};
pub use schema::{include_schema, schema};
pub use sites::{
    CacheKey, CachePolicy, CacheTags, Compress, CompressLevels, Cors, Encoding, Established, Files, GeoKey, Host,
    Invalidate, MediaType, Mirror, Origin, QueryKey, Ranges, Respond, Route, RouteLimits, RouteTimeouts, SetCookie,
    Site, Split, TagField, Target, Ttl, with_captures,
};
pub use telemetry::{AccessLog, LogFormat, LogOutput, MetricsEndpoint, Telemetry, TraceRequests};
pub use trusted::TrustedProxies;
pub use upstreams::{
    Balance, Builtin, ConsistentHash, Dns, Endpoint, EndpointAddr, FailureRate, GrpcProbe, HashAlgorithm, HashBy,
    HealthCheck, Hedge, HedgeAfter, HttpProbe, InitialHealth, Outlier, Place, Prefer, PreferBy, Probe, Retries,
    RetryOn, Servers, Sticky, TcpProbe, Timeouts, Upstream, UpstreamLimits, UpstreamPool, UpstreamProtocol,
    UpstreamTls,
};
pub use values::{ByteRate, ByteSize, Percent, Rate, ValueError, parse_duration};
