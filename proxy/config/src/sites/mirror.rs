//! Copies of a route's requests.

use std::collections::BTreeSet;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, percent, reference};
use crate::values::Percent;

/// Sends copies of requests to another upstream, to try it out under real traffic. Nobody waits for its answers, and what they are does not
/// matter. Copied is what goes to the route's own upstream: what the cache answers is not, and neither are upgrades, retries, requests whose
/// body is longer than 64 KiB, and those that come while 32 copies are under way.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Mirror {
    /// The upstream that gets the copies. Required.
    pub to: String,

    /// The share of requests that is copied, by chance. Default `100%`.
    #[schemars(with = "Option<Percent>", extend("default" = "100%"))]
    pub share: Percent,
}

impl Mirror {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>, upstreams: &BTreeSet<&str>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Mirror")?;
        let to = fields.need(cx, "to", |cx, at| reference(cx, at, "upstream", upstreams));
        let share = fields.read(cx, "share", percent);
        fields.close(cx);
        Some(Self { to: to?, share: share.unwrap_or(Percent::ALL) })
    }
}
