//! When a second endpoint is asked while the first is silent.

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, duration, percent, scalar, whole};
use crate::report::Fault;
use crate::values::{DurationText, Percent};

/// Asks a second endpoint when the first is silent, and takes the answer that comes first. Only for GET and HEAD without a body, and only
/// for a request's first attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Hedge {
    /// How long the first endpoint may take until its response begins, from its connection on: a duration above zero, or what so many of a
    /// hundred recent answers of the upstream needed, `p50` to `p99.9`. Choose what 95 of a hundred need: `p95`. Required.
    #[schemars(with = "String", regex(pattern = r"^[0-9]+(ms|s|m|h|d)$|^p[5-9][0-9](\.[0-9])?$|\$\{"))]
    pub after: HedgeAfter,

    /// With `after: pNN`: no second endpoint is asked sooner than this, however quick the upstream is. Above zero. Default `10ms`.
    #[schemars(with = "Option<DurationText>")]
    pub floor: Duration,

    /// With `after: pNN`: no second endpoint is asked before so many answers have been measured since the node started. 1 to 65535.
    /// Default 100.
    #[schemars(with = "Option<u16>", range(min = 1))]
    pub minimum: u16,

    /// How many requests may be sent to a second endpoint, as a share of those that might be: what a slow upstream gets on top. Up to a
    /// hundred are saved up in quiet times. Each counts against `retries.budget`, too. Above zero. Default `5%`.
    #[schemars(with = "Option<Percent>", extend("default" = "5%"))]
    pub share: Percent,
}

/// When it is time for a second endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HedgeAfter {
    /// After so long.
    Time(Duration),
    /// After what so many of a thousand answers needed.
    Quantile(u16),
}

impl Hedge {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Hedge")?;
        let after = fields.need(cx, "after", HedgeAfter::read);
        let (floor_at, minimum_at) = (fields.get("floor"), fields.get("minimum"));
        let floor = floor_at.as_ref().and_then(|at| duration(cx, at));
        let minimum = minimum_at.as_ref().and_then(|at| whole(cx, at, 1, u16::MAX));
        if let Some(HedgeAfter::Time(_)) = after {
            for (word, at) in [("floor", &floor_at), ("minimum", &minimum_at)] {
                let Some(at) = at else { continue };
                let message = format!("`{word}` does nothing with a duration in `after`");
                let fault = Fault::at(at.name_position(), message).with_key(at.path.clone());
                cx.report(fault.with_help("remove it, or write `after: p95`"));
            }
        }
        let share = fields.read(cx, "share", |cx, at| {
            let share = percent(cx, at)?;
            if share == Percent::NONE {
                return cx.refuse(at.fault("no request may be sent twice").with_help("remove `hedge`, or write `5%`"));
            }
            Some(share)
        });
        fields.close(cx);
        Some(Self {
            after: after?,
            floor: floor.unwrap_or(Duration::from_millis(10)),
            minimum: minimum.unwrap_or(100),
            share: share.unwrap_or(Percent::TWENTIETH),
        })
    }
}

impl HedgeAfter {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let written = scalar(cx, at, "a duration or `p95`")?;
        let Some(share) = written.text.strip_prefix('p') else { return duration(cx, at).map(Self::Time) };
        match quantile(share) {
            Some(quantile) => Some(Self::Quantile(quantile)),
            None => {
                cx.refuse(at.fault("this is no share of answers").with_help("write `p50` to `p99.9`, or a duration"))
            }
        }
    }
}

/// `95` or `99.5`, from 50 to 99.9, as so many of a thousand.
fn quantile(text: &str) -> Option<u16> {
    let (whole, tenth) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str, count| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole, 2) || !digits(tenth, 1) {
        return None;
    }
    let quantile = whole.parse::<u16>().ok()? * 10 + tenth.parse::<u16>().ok()?;
    (quantile >= 500).then_some(quantile)
}
