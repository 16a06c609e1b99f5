//! When a second endpoint is asked while the first is silent.

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, duration, percent};
use crate::values::{DurationText, Percent};

/// Asks a second endpoint when the first is silent, and takes the answer that comes first. Only for GET and HEAD without a body, and only
/// for a request's first attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Hedge {
    /// How long the first endpoint may take until its response begins, from its connection on. Choose what 95 of a hundred answers need.
    /// Above zero. Required.
    #[schemars(with = "DurationText")]
    pub after: Duration,

    /// How many requests may be sent to a second endpoint, as a share of those that might be: what a slow upstream gets on top. Up to a
    /// hundred are saved up in quiet times. Each counts against `retries.budget`, too. Above zero. Default `5%`.
    #[schemars(with = "Option<Percent>", extend("default" = "5%"))]
    pub share: Percent,
}

impl Hedge {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Hedge")?;
        let after = fields.need(cx, "after", duration);
        let share = fields.read(cx, "share", |cx, at| {
            let share = percent(cx, at)?;
            if share == Percent::NONE {
                return cx.refuse(at.fault("no request may be sent twice").with_help("remove `hedge`, or write `5%`"));
            }
            Some(share)
        });
        fields.close(cx);
        Some(Self { after: after?, share: share.unwrap_or(Percent::TWENTIETH) })
    }
}
