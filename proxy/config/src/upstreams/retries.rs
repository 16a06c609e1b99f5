//! What is sent once more when an upstream fails.

use std::time::Duration;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, duration_or_zero, filled_list, percent, scalar, whole};
use crate::matching::read_methods;
use crate::values::{DurationText, Percent};

/// When a request is sent once more, to another endpoint if there is one that it has not been to.
///
/// Only before anything of a response has reached the client, and with a request body that is still held whole (64 KiB of it are).
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Retries {
    /// How often a request is sent at most, the first time included. From 1 (never again) to 10. Default 3.
    #[schemars(with = "Option<u8>", range(min = 1, max = 10), extend("default" = 3))]
    pub attempts: u8,

    /// What is tried again: `connect` (no connection could be made; nothing was sent, so any method is), `reset` (it broke off before a
    /// response, or what came is no HTTP), `timeout` (no response in time), or a status from 400 to 599. Default `[connect]`.
    #[schemars(with = "Option<Vec<RetryForm>>", length(min = 1), extend("default" = ["connect"]))]
    pub when: Vec<RetryOn>,

    /// The methods that are sent again after something may have been done with them. Default: the idempotent ones (RFC 9110, 9.2.2), that
    /// is `[DELETE, GET, HEAD, OPTIONS, PUT, TRACE]`.
    #[schemars(rename = "methods", with = "Option<Vec<String>>", length(min = 1))]
    pub methods: Vec<String>,

    /// How many retries there may be for each request over time, those after `connect` not counted: when many requests fail, an upstream
    /// is not sent a multiple of them on top. Up to a hundred are saved up in quiet times, and ten are there from the start. `0%`: those
    /// ten, and then no more. Default `20%`.
    #[schemars(with = "Option<Percent>", extend("default" = "20%"))]
    pub budget: Percent,

    /// The pause before an endpoint is tried that has been tried already; each further one is twice as long, all are ± 50 %. `0s`: none.
    /// At most `1s`. Default `25ms`.
    #[schemars(with = "Option<DurationText>", extend("default" = "25ms"))]
    pub backoff: Duration,
}

/// What a request is sent again after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOn {
    /// No connection could be made.
    Connect,
    /// It broke off before a response, or what came is no HTTP.
    Reset,
    /// No response in time.
    Timeout,
    /// This status.
    Status(u16),
}

/// The ways to write [`RetryOn`].
#[derive(JsonSchema)]
#[schemars(untagged, inline)]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum RetryForm {
    Word(RetryWord),
    Status(#[schemars(range(min = 400, max = 599))] u16),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum RetryWord {
    Connect,
    Reset,
    Timeout,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: 3,
            when: vec![RetryOn::Connect],
            methods: ["DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"].map(String::from).to_vec(),
            budget: Percent::FIFTH,
            backoff: Duration::from_millis(25),
        }
    }
}

/// The longest pause that may be asked for.
const BACKOFF_MAX: Duration = Duration::from_secs(1);

impl Retries {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let mut fields = Fields::open(cx, at, "Retries")?;
        let attempts = fields.read(cx, "attempts", |cx, at| whole(cx, at, 1, 10));
        let when = fields.read(cx, "when", |cx, at| filled_list(cx, at, retry_on));
        let methods = fields.get("methods").map(|at| read_methods(cx, &at));
        let budget = fields.read(cx, "budget", percent);
        let backoff_at = fields.get("backoff");
        let backoff = backoff_at.as_ref().and_then(|at| duration_or_zero(cx, at));
        fields.close(cx);
        if let Some((at, _)) = backoff_at.as_ref().zip(backoff.filter(|pause| *pause > BACKOFF_MAX)) {
            cx.report(at.fault("`backoff` is longer than a second"));
        }
        Some(Self {
            attempts: attempts.and_then(|attempts| u8::try_from(attempts).ok()).unwrap_or(default.attempts),
            when: when.unwrap_or(default.when),
            methods: methods.unwrap_or(Some(default.methods))?,
            budget: budget.unwrap_or(default.budget),
            backoff: backoff.unwrap_or(default.backoff),
        })
    }
}

fn retry_on(cx: &mut Cx<'_>, at: &At<'_>) -> Option<RetryOn> {
    const EXPECTED: &str = "`connect`, `reset`, `timeout` or a status";
    match scalar(cx, at, EXPECTED)?.text.as_str() {
        "connect" => Some(RetryOn::Connect),
        "reset" => Some(RetryOn::Reset),
        "timeout" => Some(RetryOn::Timeout),
        text => match text.parse::<u16>().ok().filter(|status| (400..600).contains(status)) {
            Some(status) => Some(RetryOn::Status(status)),
            None => {
                let message = format!("`{text}` is nothing that can be tried again");
                cx.refuse(at.fault(message).with_help(format!("expected {EXPECTED} from 400 to 599")))
            }
        },
    }
}
