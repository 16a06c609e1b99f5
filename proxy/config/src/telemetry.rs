//! `telemetry`: what the node tells its operator.

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, choice};

/// What the node tells its operator.
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Telemetry {
    /// One line per finished request.
    #[schemars(with = "Option<AccessLog>")]
    pub access_log: AccessLog,
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

impl Telemetry {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Telemetry")?;
        let access_log = fields.read(cx, "access_log", AccessLog::read).unwrap_or_default();
        fields.close(cx);
        Some(Self { access_log })
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
