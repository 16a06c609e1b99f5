//! How long connections to an upstream live, and how many are kept.

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, duration, whole};
use crate::values::DurationText;

/// The most connections a pool keeps that nobody uses, to all endpoints together.
const KEPT_MAX: u16 = 512;

/// Which connections to the endpoints are kept for further requests; for how long an unused one is kept, `timeouts.idle` says.
///
/// With this, connections are never shared with another upstream that has the same endpoint.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct UpstreamPool {
    /// How many unused connections to one endpoint a worker keeps, in each of its pools: one for requests without a body that are not
    /// stored, one for all others at each listener, and one for hedged requests and calls of filters. What is beyond it is closed after its
    /// request. 0: each request has a connection of its own, and is sent with `Connection: close`. Towards HTTP/2, where up to 100 requests
    /// at once share a connection, only 0 can be written: then a connection is closed when its last request is over. Up to 512. Absent:
    /// 512 to all endpoints together.
    #[schemars(range(max = 512))]
    pub idle: Option<u16>,

    /// How many requests a connection carries; the last of them is sent with `Connection: close`, and over HTTP/2 no others are begun after
    /// it. 1 to 65535. Absent: any number.
    #[schemars(range(min = 1))]
    pub max_requests: Option<u16>,

    /// How old a connection may be when a request is sent on it, which is then its last. So endpoints that are new behind a balancer, or in
    /// another place than before, get their share. Counted from its first request. Above zero. Absent: any age.
    #[schemars(with = "Option<DurationText>")]
    pub max_age: Option<Duration>,
}

impl UpstreamPool {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "UpstreamPool")?;
        let (idle_at, requests_at, age_at) = (fields.get("idle"), fields.get("max_requests"), fields.get("max_age"));
        let idle = idle_at.as_ref().and_then(|at| whole(cx, at, 0, KEPT_MAX));
        let max_requests = requests_at.as_ref().and_then(|at| whole(cx, at, 1, u16::MAX));
        let max_age = age_at.as_ref().and_then(|at| duration(cx, at));
        if idle_at.is_none() && requests_at.is_none() && age_at.is_none() {
            let fault = fields.missing("none of `idle`, `max_requests` and `max_age` is written: there is no limit");
            cx.report(fault.with_help("write one of them: `max_age: 10m`"));
        }
        fields.close(cx);
        Some(Self { idle, max_requests, max_age })
    }

    /// Whether connections live only for so long.
    #[must_use]
    pub fn wears_out(&self) -> bool {
        self.max_requests.is_some() || self.max_age.is_some()
    }
}
