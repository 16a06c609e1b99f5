//! What the admin API shows, and takes.

use std::time::SystemTime;

use http::StatusCode;
use schemars::JsonSchema;
use selvedge_config::Effective;
use serde::{Deserialize, Serialize};

use super::State;
use super::problem::{FaultView, Problem};
use crate::control::{Generation, Origin};
use crate::telemetry;
use crate::upstream::EndpointStatus;

/// How the node is.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Readiness {
    /// `live` or `ready`.
    pub(crate) status: &'static str,
    /// What is not as it should be, though requests are served.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) notes: Vec<&'static str>,
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
    /// Its address, with the real port; or its Unix socket, `unix:/path`.
    address: String,
}

impl NodeView {
    pub(crate) fn of(state: &State) -> Self {
        let plan = state.control.current().plan();
        Self {
            name: state.name.clone(),
            version: env!("CARGO_PKG_VERSION"),
            generation: plan.generation,
            started: time(state.started),
            now: time(SystemTime::now()),
            ready: state.control.is_ready(),
            workers: state.workers,
            listeners: state
                .control
                .listening()
                .places()
                .into_iter()
                .map(|(name, address)| ListenerView { name, address })
                .collect(),
        }
    }
}

/// The configurations that are or were in force.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Generations {
    /// The latest last; the last ten are kept.
    generations: Vec<GenerationView>,
    /// Why the last reload or roll-back was not done; absent when it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<FailureView>,
}

/// A configuration that is or was in force.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Generation")]
struct GenerationView {
    /// Its number.
    number: u64,
    /// Since when it was in force (RFC 3339).
    since: String,
    /// `start`, `reload` or `rollback`.
    origin: &'static str,
    /// The generation that a roll-back went back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    rolled_back_to: Option<u64>,
}

/// Why the configuration is not another.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Failure")]
struct FailureView {
    /// When it was tried (RFC 3339).
    when: String,
    /// Everything that is wrong.
    faults: Vec<FaultView>,
}

/// The configuration in force, as it is in effect.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Config")]
pub(crate) struct ConfigView {
    /// Its number.
    generation: u64,
    /// It, in the grammar of the configuration file. Secrets read `<redacted>`, and what comes from the environment as it is written.
    config: serde_json::Value,
}

impl ConfigView {
    pub(crate) fn of((generation, config): (u64, Effective)) -> Self {
        Self { generation, config: config.to_json() }
    }
}

/// The configuration that is in force now.
#[derive(Serialize, JsonSchema)]
pub(crate) struct InForce {
    /// Its number.
    pub(crate) generation: u64,
}

/// Whether requests should be sent here.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ready {
    /// `false` makes `/v1/ready` answer 503, so that others stop sending requests; those that come are served all the same.
    pub(crate) ready: bool,
}

impl Generations {
    pub(crate) fn of(state: &State) -> Self {
        let view = |generation: Generation| GenerationView {
            number: generation.number,
            since: time(generation.since),
            origin: match generation.origin {
                Origin::Start => "start",
                Origin::Reload => "reload",
                Origin::RollBack(_) => "rollback",
            },
            rolled_back_to: match generation.origin {
                Origin::RollBack(to) => Some(to),
                Origin::Start | Origin::Reload => None,
            },
        };
        let failure = state.control.failure().map(|failure| FailureView {
            when: time(failure.when),
            faults: failure.report.faults.iter().map(FaultView::of).collect(),
        });
        Self { generations: state.control.generations().into_iter().map(view).collect(), failure }
    }
}

fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// The upstreams, and how their endpoints are.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Upstreams {
    /// In order of their names.
    upstreams: Vec<UpstreamView>,
}

/// An upstream.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Upstream")]
struct UpstreamView {
    /// Its name.
    name: String,
    /// Whether so few endpoints are in use that all are asked, whatever is known of them.
    panicking: bool,
    /// Its endpoints.
    endpoints: Vec<EndpointView>,
}

/// An endpoint.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Endpoint")]
struct EndpointView {
    /// Its name in this API.
    id: String,
    /// Where it is.
    address: String,
    /// Its share against the others' weights.
    weight: u16,
    /// Whether it is sent new requests.
    in_use: bool,
    /// Whether it was told to get none.
    draining: bool,
    /// Whether checks find it well; absent: it is not checked, or has not been yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    healthy: Option<bool>,
    /// What the last check failed of.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    /// Whether it is left out for what requests met there.
    ejected: bool,
    /// How often it was, since the process started.
    ejections: u64,
    /// Requests and connections under way.
    in_flight: u32,
    /// Requests and connections it was chosen for, since the process started.
    requests: u64,
    /// Those of them that failed.
    failures: u64,
}

/// Whether an endpoint gets new requests.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Draining {
    /// `true`: no new requests; those under way go on. It stays so over reloads, until it is told otherwise or the process ends.
    pub(crate) draining: bool,
}

impl Upstreams {
    pub(crate) fn of(state: &State) -> Self {
        let plan = state.control.current().plan();
        let endpoint = |status: EndpointStatus| EndpointView {
            id: status.id.to_string(),
            address: status.address.to_string(),
            weight: status.weight,
            in_use: status.in_use,
            draining: status.draining,
            healthy: status.healthy,
            failure: status.failure,
            ejected: status.ejected,
            ejections: status.ejections,
            in_flight: status.in_flight,
            requests: status.requests,
            failures: status.failures,
        };
        let upstreams = plan.upstreams.all().into_iter().map(|(name, upstream)| UpstreamView {
            name: name.to_owned(),
            panicking: upstream.is_panicking(),
            endpoints: upstream.endpoints().into_iter().map(endpoint).collect(),
        });
        Self { upstreams: upstreams.collect() }
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
        let plan = state.control.current().plan();
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
