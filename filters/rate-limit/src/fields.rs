//! Response fields: draft-ietf-httpapi-ratelimit-headers-10 (`RateLimit-Policy`, `RateLimit`), `Retry-After` (RFC 9110, 10.2.3) and
//! the older `X-RateLimit-*`.

use std::time::Duration;

use serde::Serialize;

use crate::config::Policy;

/// What a client is told about its quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// Requests left.
    pub remaining: u32,
    /// Time until there is more: until the bucket is full while requests are left, until the next request when none is.
    pub reset: Duration,
}

/// The draft's fields for a response, allowed or refused; none when they are switched off. They are lists: other limits add theirs.
pub fn quota_fields(policy: &Policy, quota: Quota) -> Vec<(&'static str, String)> {
    if !policy.headers {
        return Vec::new();
    }
    let (name, limit, reset) = (&policy.name, policy.limit, ceil_seconds(quota.reset));
    vec![
        ("ratelimit-policy", format!("\"{name}\";q={};w={}", limit.count, limit.window.as_secs())),
        ("ratelimit", format!("\"{name}\";r={};t={reset}", quota.remaining)),
    ]
}

/// The older fields for a response; none when they are switched off. They have one value each.
pub fn legacy_fields(policy: &Policy, quota: Quota) -> Vec<(&'static str, String)> {
    if !policy.legacy_headers {
        return Vec::new();
    }
    vec![
        ("x-ratelimit-limit", policy.limit.count.to_string()),
        ("x-ratelimit-remaining", quota.remaining.to_string()),
        ("x-ratelimit-reset", ceil_seconds(quota.reset).to_string()),
    ]
}

/// The value of `Retry-After`: whole seconds, at least 1, so that a client which obeys is not told to come back at once.
pub fn retry_after(retry_in: Duration) -> u64 {
    ceil_seconds(retry_in).max(1)
}

/// Whole seconds, rounded up: a client that waits so long finds what it waited for.
fn ceil_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// The body of a refusal (RFC 9457).
#[derive(Debug, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
}

impl Problem {
    /// 429: too many requests.
    pub fn limited(policy: &Policy, retry_after: u64) -> Self {
        let detail = format!("The limit {:?} is used up. Try again in {retry_after} s.", policy.name);
        Self { kind: "about:blank", title: "Too Many Requests", status: 429, detail }
    }

    /// 429: the request could not be counted.
    pub fn uncountable(policy: &Policy) -> Self {
        let detail = format!("The limit {:?} cannot count this request at the moment.", policy.name);
        Self { kind: "about:blank", title: "Too Many Requests", status: 429, detail }
    }

    /// 403: the request does not say whom to count it under.
    pub fn unidentified(policy: &Policy) -> Self {
        let detail =
            format!("The limit {:?} does not allow requests that cannot be attributed to a client.", policy.name);
        Self { kind: "about:blank", title: "Forbidden", status: 403, detail }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn policy(value: serde_json::Value) -> Policy {
        serde_json::from_value::<Config>(value).unwrap().check().unwrap()
    }

    #[test]
    fn the_fields_have_the_drafts_form() {
        let quota = Quota { remaining: 19, reset: Duration::from_millis(600) };
        let fields = quota_fields(&policy(json!({ "rate": "100/min", "burst": 20 })), quota);
        assert_eq!(
            fields,
            [
                ("ratelimit-policy", "\"default\";q=100;w=60".to_owned()),
                ("ratelimit", "\"default\";r=19;t=1".to_owned())
            ]
        );
    }

    #[test]
    fn old_and_new_fields_are_sent_as_configured() {
        let quota = Quota { remaining: 0, reset: Duration::from_secs(3) };
        let both = policy(json!({ "rate": "5/s", "legacy_headers": true }));
        assert_eq!(quota_fields(&both, quota).len(), 2);
        let old = legacy_fields(&both, quota);
        assert_eq!(
            old,
            [
                ("x-ratelimit-limit", "5".to_owned()),
                ("x-ratelimit-remaining", "0".to_owned()),
                ("x-ratelimit-reset", "3".to_owned())
            ]
        );
        let none = policy(json!({ "rate": "5/s", "headers": false }));
        assert!(quota_fields(&none, quota).is_empty() && legacy_fields(&none, quota).is_empty());
    }

    #[test]
    fn seconds_are_rounded_up() {
        for (millis, seconds) in [(0, 0), (1, 1), (999, 1), (1000, 1), (1001, 2)] {
            assert_eq!(ceil_seconds(Duration::from_millis(millis)), seconds, "{millis} ms");
        }
    }

    #[test]
    fn retry_after_is_never_zero() {
        for (nanos, seconds) in [(0, 1), (1, 1), (1_000_000_000, 1), (1_000_000_001, 2), (59_000_000_001, 60)] {
            assert_eq!(retry_after(Duration::from_nanos(nanos)), seconds, "{nanos}");
        }
    }
}
