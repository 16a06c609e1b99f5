//! What a route has otherwise than its listener and its upstream.

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, duration, size};
use crate::values::{ByteSize, DurationText};

/// Limits of a route's requests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RouteLimits {
    /// The largest request body, in place of the listener's `limits.body`, be it more or less. Above zero. Absent: the listener's.
    pub body: Option<ByteSize>,
}

/// Time limits of a route's exchanges with its upstream. Each stands in place of the upstream's own; absent ones are the upstream's. They hold
/// for the upstream that a filter chooses, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct RouteTimeouts {
    /// In place of the upstream's `timeouts.connect`.
    #[schemars(with = "Option<DurationText>")]
    pub connect: Option<Duration>,

    /// In place of the upstream's `timeouts.read`.
    #[schemars(with = "Option<DurationText>")]
    pub read: Option<Duration>,

    /// In place of the upstream's `timeouts.first_byte`.
    #[schemars(with = "Option<DurationText>")]
    pub first_byte: Option<Duration>,

    /// In place of the upstream's `timeouts.total`.
    #[schemars(with = "Option<DurationText>")]
    pub total: Option<Duration>,
}

impl RouteLimits {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "RouteLimits")?;
        let body = fields.read(cx, "body", size);
        fields.close(cx);
        Some(Self { body })
    }
}

impl RouteTimeouts {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "RouteTimeouts")?;
        let [connect, read, first_byte, total] =
            ["connect", "read", "first_byte", "total"].map(|key| fields.read(cx, key, duration));
        fields.close(cx);
        Some(Self { connect, read, first_byte, total })
    }
}
