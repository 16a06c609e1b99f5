//! How much an upstream is sent at once (circuit breaking).

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, duration, whole};
use crate::values::DurationText;

/// How many requests there may be at an upstream at once, from this node. TCP connections and what filters send out count, too.
///
/// Towards HTTP/1.1 endpoints a request under way is a connection in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct UpstreamLimits {
    /// Requests at the whole upstream. From 1. Absent: any number.
    #[schemars(range(min = 1))]
    pub requests: Option<u16>,

    /// Requests at one endpoint; others are chosen meanwhile. From 1. Absent: any number.
    #[schemars(range(min = 1))]
    pub per_endpoint: Option<u16>,

    /// How many requests wait when there is no room; one more is answered 503 at once. 0: none waits. Default 0.
    #[schemars(with = "Option<u16>", extend("default" = 0))]
    pub queue: u16,

    /// How long one of them waits; then it is answered 503. Above zero. Default `1s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "1s"))]
    pub wait: Duration,
}

impl UpstreamLimits {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "UpstreamLimits")?;
        let (requests_at, per_endpoint_at) = (fields.get("requests"), fields.get("per_endpoint"));
        let mut most = |at: &Option<At<'_>>| at.as_ref().and_then(|at| whole(cx, at, 1, u16::MAX));
        let (requests, per_endpoint) = (most(&requests_at), most(&per_endpoint_at));
        let queue = fields.read(cx, "queue", |cx, at| whole(cx, at, 0, u16::MAX));
        let wait = fields.read(cx, "wait", duration);
        if requests_at.is_none() && per_endpoint_at.is_none() {
            let fault = fields.missing("neither `requests` nor `per_endpoint` is written: there is no limit");
            cx.report(fault.with_help("write how many: `requests: 1000`"));
        }
        fields.close(cx);
        Some(Self { requests, per_endpoint, queue: queue.unwrap_or(0), wait: wait.unwrap_or(Duration::from_secs(1)) })
    }
}
