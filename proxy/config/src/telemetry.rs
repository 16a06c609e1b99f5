//! `telemetry`: what the node tells its operator.

use std::net::SocketAddr;

use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, choice, is_token, parsed, text},
    report::Position,
};

/// What the node tells its operator.
#[derive(Debug, Clone, Default, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Telemetry {
    /// One line per finished request.
    #[schemars(with = "Option<AccessLog>", extend("default" = {}))]
    pub access_log: AccessLog,

    /// Counters for Prometheus, over HTTP. Absent: nobody can ask.
    pub metrics: Option<MetricsEndpoint>,

    /// Which requests leave a trace of what their filters did. Absent: none.
    pub trace: Option<TraceRequests>,
}

/// Serves `GET /metrics` in the Prometheus text format, in plain HTTP/1.1, to whoever can connect: bind it where only your monitoring
/// can.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct MetricsEndpoint {
    /// The address and port to listen at, `127.0.0.1:9901`; port 0 takes a free one. Required.
    #[schemars(with = "String", extend("examples" = ["127.0.0.1:9901"]))]
    pub bind: SocketAddr,

    /// Where it is written.
    #[schemars(skip)]
    pub position: Position,
}

/// A request with this header and value is traced: every callback and hostcall of its filters, with status and microseconds, in one log
/// event of target `selvedge::trace`, level `info`, at its end. Costs such a request some microseconds a hostcall, and all others one
/// comparison. The header goes no further, whatever its value.
#[derive(Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct TraceRequests {
    /// The name of the header. Required.
    #[schemars(extend("examples" = ["x-selvedge-trace"]))]
    pub header: String,

    /// The value it must have: a secret of at least 16 characters, because whoever knows it can fill the log. Take it from the
    /// environment: `${SELVEDGE_TRACE_KEY}`. Required.
    #[schemars(length(min = 16))]
    pub value: String,
}

/// Without the secret.
impl std::fmt::Debug for TraceRequests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TraceRequests").field("header", &self.header).finish_non_exhaustive()
    }
}

/// One line per finished request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct AccessLog {
    /// How a line is written: `json` for machines (one object per line), `text` for eyes. Default `json`.
    #[schemars(with = "Option<LogFormat>", extend("default" = "json"))]
    pub format: LogFormat,

    /// Where lines go: `stdout`, `stderr`, or `off` to write none. Default `stdout`.
    #[schemars(with = "Option<LogOutput>", extend("default" = "stdout"))]
    pub output: LogOutput,
}

/// How a log line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// `key=value` words for eyes.
    Text,
}

/// Where log lines go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum LogOutput {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
    /// Nowhere.
    Off,
}

/// The shortest secret that turns traces on: what can be tried out over a network in no useful time.
const TRACE_VALUE_MIN: usize = 16;

/// Headers that a request cannot be without, or that say where it ends: taking one away would change the request.
const NOT_FOR_TRACES: [&str; 8] =
    ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "expect", "authorization"];

impl Telemetry {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Telemetry")?;
        let access_log = fields.read(cx, "access_log", AccessLog::read).unwrap_or_default();
        let metrics = fields.read(cx, "metrics", MetricsEndpoint::read);
        let trace = fields.read(cx, "trace", TraceRequests::read);
        fields.close(cx);
        Some(Self { access_log, metrics, trace })
    }
}

impl AccessLog {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        const FORMATS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];
        const OUTPUTS: [(&str, LogOutput); 3] =
            [("stdout", LogOutput::Stdout), ("stderr", LogOutput::Stderr), ("off", LogOutput::Off)];
        let mut fields = Fields::open(cx, at, "AccessLog")?;
        let format = fields.read(cx, "format", |cx, at| choice(cx, at, &FORMATS)).unwrap_or_default();
        let output = fields.read(cx, "output", |cx, at| choice(cx, at, &OUTPUTS)).unwrap_or_default();
        fields.close(cx);
        Some(Self { format, output })
    }
}

impl MetricsEndpoint {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "MetricsEndpoint")?;
        let bind = fields.need(cx, "bind", |cx, at| {
            parsed(cx, at, "an address and a port: `127.0.0.1:9901`", |text| {
                text.parse().map_err(|_| {
                    let port = text.strip_prefix(':').filter(|port| port.parse::<u16>().is_ok());
                    let help = port.map(|port| format!("for this machine only, write `127.0.0.1:{port}`"));
                    ("is not an address and a port".into(), help)
                })
            })
        });
        fields.close(cx);
        Some(Self { bind: bind?, position: at.name_position().clone() })
    }
}

impl TraceRequests {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "TraceRequests")?;
        let header = fields.need(cx, "header", |cx, at| {
            parsed(cx, at, "the name of a header", |text| {
                let name = text.to_ascii_lowercase();
                if !is_token(&name) {
                    return Err(("is not the name of a header".into(), None));
                }
                if NOT_FOR_TRACES.contains(&name.as_str()) {
                    return Err((
                        "has a meaning of its own: it is taken away".into(),
                        Some("choose another, such as `x-selvedge-trace`".into()),
                    ));
                }
                Ok(name)
            })
        });
        let value = fields.need(cx, "value", |cx, at| {
            let value = text(cx, at)?;
            if value.len() < TRACE_VALUE_MIN {
                return cx.refuse(at.fault("the secret is shorter than 16 characters"));
            }
            if !value.bytes().all(|byte| byte.is_ascii_graphic()) {
                return cx.refuse(at.fault("the secret has characters other than ASCII letters, digits and signs"));
            }
            Some(value)
        });
        fields.close(cx);
        Some(Self { header: header?, value: value? })
    }
}
