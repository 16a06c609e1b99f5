//! `telemetry`: what the node tells its operator.

use schemars::JsonSchema;

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
