//! What the admin API shows, and takes.

use std::time::SystemTime;

use http::StatusCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::State;
use super::problem::Problem;
use crate::telemetry;

/// How the node is.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Readiness {
    /// `live` or `ready`.
    pub(crate) status: &'static str,
}

/// The node.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Node")]
pub(crate) struct NodeView {
    /// What it calls itself.
    name: String,
    /// Its version.
    version: &'static str,
    /// Counts the configurations that were in force, from 1.
    generation: u64,
    /// When the process was started (RFC 3339).
    started: String,
    /// The time of the answer (RFC 3339).
    now: String,
    /// Whether requests should be sent here.
    ready: bool,
    /// How many threads serve.
    workers: usize,
    /// Where it listens, by name.
    listeners: Vec<ListenerView>,
}

/// Where the node listens.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Listener")]
pub(crate) struct ListenerView {
    /// Its name.
    name: String,
    /// Its address, with the real port.
    address: String,
}

impl NodeView {
    pub(crate) fn of(state: &State) -> Self {
        let plan = state.current.plan();
        Self {
            name: state.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            generation: plan.generation,
            started: humantime::format_rfc3339_millis(state.started).to_string(),
            now: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            ready: state.is_ready(),
            workers: state.workers,
            listeners: state.listeners().into_iter().map(|(name, address)| ListenerView { name, address }).collect(),
        }
    }
}

/// The filters in use.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Filters {
    /// By name.
    filters: Vec<FilterView>,
}

/// A filter in use.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Filter")]
struct FilterView {
    /// Its name.
    name: String,
    /// How many requests went on without it since the process started, because it failed and `on_failure` is `open`.
    skipped: u64,
}

impl Filters {
    pub(crate) fn of(state: &State) -> Self {
        let plan = state.current.plan();
        let filters =
            plan.troubles().map(|(name, trouble)| FilterView { name: name.into(), skipped: trouble.skipped() });
        Self { filters: filters.collect() }
    }
}

/// What is logged.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Log")]
pub(crate) struct LogFilter {
    /// A level (`debug`), or levels by target (`info,selvedge::story=trace`), as in the environment variable `SELVEDGE_LOG`.
    filter: String,
}

impl LogFilter {
    pub(crate) fn current() -> Result<Self, Problem> {
        telemetry::log_filter().map(|filter| Self { filter }).ok_or_else(not_ours)
    }

    pub(crate) fn put_in_force(self) -> Result<Self, Problem> {
        match telemetry::set_log_filter(&self.filter) {
            Ok(true) => Ok(self),
            Ok(false) => Err(not_ours()),
            Err(error) => {
                Err(Problem::new(StatusCode::BAD_REQUEST, "This is no log filter").detail(crate::error_chain(&error)))
            }
        }
    }
}

fn not_ours() -> Problem {
    Problem::new(StatusCode::CONFLICT, "The log is not the node's own")
        .detail("the node runs inside another program, which decides what is logged")
}
