//! When an endpoint is left out because of what requests met there.

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, duration, percent, whole};
use crate::values::{DurationText, Percent};

/// Leaves out endpoints that fail requests (passive health checks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Outlier {
    /// So many answers in a row with a status from 500 to 599 eject an endpoint; an exchange that fails counts as one. 0: never.
    /// From 0 to 1000. Default 5.
    #[schemars(with = "Option<u16>", range(min = 0, max = 1000), extend("default" = 5))]
    pub consecutive_5xx: u16,

    /// So many failed exchanges in a row eject an endpoint: status 502, 503 or 504, no connection, no answer in time, or one that is
    /// cut off. 0: never. From 0 to 1000. Default 5.
    #[schemars(with = "Option<u16>", range(min = 0, max = 1000), extend("default" = 5))]
    pub consecutive_gateway: u16,

    /// So many attempts in a row that ended without a connection eject an endpoint. 0: never. From 0 to 1000. Default 3.
    #[schemars(with = "Option<u16>", range(min = 0, max = 1000), extend("default" = 3))]
    pub consecutive_connect: u16,

    /// Ejects an endpoint that fails too large a share of its requests. Absent: only what fails in a row counts.
    pub failure_rate: Option<FailureRate>,

    /// How long an endpoint is left out the first time; each time that follows soon, as long again longer. Above zero. Default `30s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "30s"))]
    pub eject: Duration,

    /// The longest it is left out, however often it is. Not below `eject`. Default `5m`.
    #[schemars(with = "Option<DurationText>", extend("default" = "5m"))]
    pub eject_max: Duration,

    /// How large a share of the endpoints may be left out at a time; one may always be, if another remains. Default `50%`.
    #[schemars(with = "Option<Percent>", extend("default" = "50%"))]
    pub ejected_max: Percent,
}

/// Ejects an endpoint that fails too large a share of its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct FailureRate {
    /// The share of requests (status 500 to 599, or failed) above which an endpoint is ejected. Required.
    pub above: Percent,

    /// How many requests an endpoint must have answered in a window to be judged. From 1 to 65535. Default 100.
    #[schemars(with = "Option<u16>", range(min = 1), extend("default" = 100))]
    pub requests: u16,

    /// The time over which requests are counted before counting begins anew. Above zero. Default `10s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "10s"))]
    pub window: Duration,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway: 5,
            consecutive_connect: 3,
            failure_rate: None,
            eject: Duration::from_secs(30),
            eject_max: Duration::from_mins(5),
            ejected_max: Percent::HALF,
        }
    }
}

impl Outlier {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let mut fields = Fields::open(cx, at, "Outlier")?;
        let mut in_a_row =
            |cx: &mut Cx<'_>, key, default| fields.read(cx, key, |cx, at| whole(cx, at, 0, 1000)).unwrap_or(default);
        let consecutive_5xx = in_a_row(cx, "consecutive_5xx", default.consecutive_5xx);
        let consecutive_gateway = in_a_row(cx, "consecutive_gateway", default.consecutive_gateway);
        let consecutive_connect = in_a_row(cx, "consecutive_connect", default.consecutive_connect);
        let failure_rate = fields.read(cx, "failure_rate", FailureRate::read);
        let eject = fields.read(cx, "eject", duration).unwrap_or(default.eject);
        let eject_max_at = fields.get("eject_max");
        let eject_max = eject_max_at.as_ref().and_then(|at| duration(cx, at));
        let ejected_max = fields.read(cx, "ejected_max", percent).unwrap_or(default.ejected_max);
        fields.close(cx);
        if let Some((at, _)) = eject_max_at.as_ref().zip(eject_max.filter(|most| *most < eject)) {
            cx.report(at.fault("`eject_max` is below `eject`"));
        }
        Some(Self {
            consecutive_5xx,
            consecutive_gateway,
            consecutive_connect,
            failure_rate,
            eject,
            eject_max: eject_max.unwrap_or(default.eject_max.max(eject)),
            ejected_max,
        })
    }
}

impl FailureRate {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "FailureRate")?;
        let above = fields.need(cx, "above", percent);
        let requests = fields.read(cx, "requests", |cx, at| whole(cx, at, 1, u16::MAX));
        let window = fields.read(cx, "window", duration);
        fields.close(cx);
        Some(Self {
            above: above?,
            requests: requests.unwrap_or(100),
            window: window.unwrap_or(Duration::from_secs(10)),
        })
    }
}
