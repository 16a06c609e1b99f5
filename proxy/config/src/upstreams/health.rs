//! Active health checks: asking endpoints how they are.

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, choice, duration, filled_list, host_name, parsed, scalar, text, whole};
use crate::report::Fault;
use crate::values::DurationText;

/// Asks every endpoint again and again how it is, and sends requests to those that are well.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct HealthCheck {
    /// What is asked. Exactly one of `http`, `tcp` and `grpc` is required.
    #[schemars(flatten)]
    pub probe: Probe,

    /// The time from one check of an endpoint to the next, give or take a tenth, so that the checks of many nodes do not meet. The
    /// first check comes at once. Above zero. Default `5s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "5s"))]
    pub interval: Duration,

    /// How long a check may take in all before it counts as failed. Above zero. Default `2s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "2s"))]
    pub timeout: Duration,

    /// So many checks in a row must succeed before an unhealthy endpoint is healthy. From 1 to 100. Default 2.
    #[schemars(with = "Option<u16>", range(min = 1, max = 100), extend("default" = 2))]
    pub healthy: u16,

    /// So many checks in a row must fail before a healthy endpoint is unhealthy. From 1 to 100. Default 3.
    #[schemars(with = "Option<u16>", range(min = 1, max = 100), extend("default" = 3))]
    pub unhealthy: u16,

    /// What an endpoint is taken for before its first check: `healthy` or `unhealthy`. The first check that succeeds makes it healthy
    /// whatever `healthy` says. Default `healthy`.
    #[schemars(with = "Option<InitialHealth>", extend("default" = "healthy"))]
    pub initial: InitialHealth,
}

/// What is asked in a health check.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Probe {
    /// A `GET` request, in the protocol and with the TLS of the upstream.
    Http(HttpProbe),
    /// Whether a connection can be made; with `tls`, whether its handshake succeeds.
    Tcp(TcpProbe),
    /// The health service of gRPC, version 1. It needs `protocol: h2`.
    Grpc(GrpcProbe),
}

/// A `GET` request as a health check.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct HttpProbe {
    /// The path that is asked for, with a query if there is one. Default `/`.
    #[schemars(with = "Option<String>", regex(pattern = r"^/|\$\{"), extend("default" = "/"))]
    pub path: String,

    /// The `Host` header. Absent: the name that `tls` verifies, else the endpoint as it is written.
    pub host: Option<String>,

    /// The statuses of a healthy endpoint, each `200` or `200-299`. Default `["200-299"]`.
    #[schemars(with = "Option<Vec<String>>", length(min = 1), extend("default" = ["200-299"]))]
    pub status: Vec<(u16, u16)>,

    /// What the first 64 KiB of the body must contain. Absent: the body does not matter, and is not read.
    pub body: Option<String>,
}

/// A connection as a health check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TcpProbe {}

/// A call of gRPC's health service.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct GrpcProbe {
    /// The service that is asked about. Empty: the server as a whole. Default empty.
    #[schemars(with = "Option<String>", extend("default" = ""))]
    pub service: String,
}

/// What an endpoint is taken for before its first check.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum InitialHealth {
    /// It is sent requests.
    #[default]
    Healthy,
    /// It is not, unless too few others are well (`panic`).
    Unhealthy,
}

impl HealthCheck {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "HealthCheck")?;
        let (http, tcp, grpc) = (fields.get("http"), fields.get("tcp"), fields.get("grpc"));
        let written: Vec<&At<'_>> = [&http, &tcp, &grpc].into_iter().flatten().collect();
        if let [first, second, ..] = written[..] {
            let fault = Fault::at(second.name_position(), "more than one of `http`, `tcp` and `grpc` is written");
            cx.report(fault.with_key(second.path.clone()).with_related("the other one", first.name_position()));
        }
        let probe = match (&http, &tcp, &grpc) {
            (Some(at), ..) => HttpProbe::read(cx, at).map(Probe::Http),
            (_, Some(at), _) => TcpProbe::read(cx, at).map(Probe::Tcp),
            (.., Some(at)) => GrpcProbe::read(cx, at).map(Probe::Grpc),
            _ => cx.refuse(fields.missing("one of `http`, `tcp` and `grpc` is required").with_help("write `http: {}`")),
        };
        let interval = fields.read(cx, "interval", duration);
        let timeout = fields.read(cx, "timeout", duration);
        let healthy = fields.read(cx, "healthy", |cx, at| whole(cx, at, 1, 100));
        let unhealthy = fields.read(cx, "unhealthy", |cx, at| whole(cx, at, 1, 100));
        let words = [("healthy", InitialHealth::Healthy), ("unhealthy", InitialHealth::Unhealthy)];
        let initial = fields.read(cx, "initial", |cx, at| choice(cx, at, &words));
        fields.close(cx);
        Some(Self {
            probe: probe?,
            interval: interval.unwrap_or(Duration::from_secs(5)),
            timeout: timeout.unwrap_or(Duration::from_secs(2)),
            healthy: healthy.unwrap_or(2),
            unhealthy: unhealthy.unwrap_or(3),
            initial: initial.unwrap_or_default(),
        })
    }
}

impl HttpProbe {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "HttpProbe")?;
        let path = fields.read(cx, "path", |cx, at| parsed(cx, at, "a path that begins with `/`", target));
        let host = fields.read(cx, "host", |cx, at| parsed(cx, at, "a host name", host));
        let status = fields.read(cx, "status", |cx, at| filled_list(cx, at, statuses));
        let body = fields.read(cx, "body", text);
        fields.close(cx);
        Some(Self { path: path.unwrap_or("/".into()), host, status: status.unwrap_or(vec![(200, 299)]), body })
    }
}

fn target(text: &str) -> Result<String, (String, Option<String>)> {
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    if text.starts_with('/') && plain { Ok(text.to_owned()) } else { Err(("is not a path".into(), None)) }
}

/// A name, and perhaps a port.
fn host(text: &str) -> Result<String, (String, Option<String>)> {
    let (name, port) = text.rsplit_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(("has no valid port".into(), None));
    }
    host_name(name).map(|_| text.to_owned())
}

/// `200`, or `200-299`.
fn statuses(cx: &mut Cx<'_>, at: &At<'_>) -> Option<(u16, u16)> {
    let scalar = scalar(cx, at, "a status such as `200` or `200-299`")?;
    let (first, last) = scalar.text.split_once('-').unwrap_or((&scalar.text, &scalar.text));
    let number = |text: &str| text.parse::<u16>().ok().filter(|status| (200..600).contains(status));
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Some((first, last)),
        _ => {
            cx.refuse(at.fault("this is no status from 200 to 599, and no range of them").with_help("write `200-299`"))
        }
    }
}

impl TcpProbe {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        Fields::open(cx, at, "TcpProbe")?.close(cx);
        Some(Self {})
    }
}

impl GrpcProbe {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "GrpcProbe")?;
        let service = fields.read(cx, "service", text);
        fields.close(cx);
        Some(Self { service: service.unwrap_or_default() })
    }
}
