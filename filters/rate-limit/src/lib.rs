//! Bundled filter `rate-limit`: a token bucket per client, header value or token claim, shared by all workers.
//!
//! ```yaml
//! filters:
//!   limit:
//!     wasm: builtin:rate-limit
//!     config:
//!       name: api                       # appears in the RateLimit fields
//!       key: client_ip                  # or { header: x-api-key }, or { jwt_claim: sub }
//!       rate: 100/min                   # in the long run
//!       burst: 20                       # at once, after a pause
//!       missing: share                  # requests without a key: share one bucket | allow | deny
//!       on_full: allow                  # when the state cannot be written: allow | deny
//!       ipv6_prefix: 64                 # bits of an IPv6 address that make one client
//!       headers: true                   # RateLimit-Policy, RateLimit
//!       legacy_headers: false           # X-RateLimit-Limit, -Remaining, -Reset
//! ```
//!
//! A refusal is 429 with `Retry-After` (whole seconds, rounded up), the `RateLimit` fields and a problem document (RFC 9457).
//!
//! **State.** A bucket is 16 bytes in the host's shared data: all workers of a node draw from the same bucket; each node has its own.
//! Selvedge takes from it in one step (`selvedge.ratelimit.take`); on other hosts it is changed by compare-and-swap. Keys are hashes of one length: nothing a client sends is stored, and no value makes an entry larger.
//! The number of buckets is bounded by the host's limit on shared data. Selvedge forgets buckets
//! that are full again, and when there are too many, those that were not used for longest; a refusal counts as use: a client that is being
//! limited stays known, an idle one is forgotten and starts with a full bucket. With a
//! key that clients choose (a header before any authentication) one client can be many, and so can push others out; a key that
//! `jwt-auth` has verified, or the address, cannot be made up. Where a host refuses to store instead, `on_full` decides; the same
//! holds there after 16 lost races for one bucket.
//!
//! **Order.** `key: {jwt_claim: ..}` reads the token without verifying it: put `jwt-auth` before this filter. When `jwt-auth` removes the
//! token (`forward_token: false`), let it forward the claim and use `key: {header: x-user}`, which clients cannot forge then.

pub mod config;
pub mod fields;
pub mod key;
pub mod limiter;

use std::time::Duration;

use selvedge_sdk::metrics::Counter;
use selvedge_sdk::prelude::*;
use selvedge_sdk::ratelimit;

use crate::config::{Config, Missing, Policy};
use crate::fields::{Problem, Quota};
use crate::limiter::Verdict;

/// The filter.
pub struct RateLimit {
    policy: Policy,
    buckets: ratelimit::RateLimit,
    limited: Counter,
    uncounted: Counter,
}

#[filter(body = "none")]
impl Filter for RateLimit {
    type Config = Config;
    /// What the response tells about the quota; `None` when nothing was counted.
    type Stream = Option<Quota>;

    fn new(config: Config) -> Result<Self, String> {
        let policy = config.check().map_err(|error| error.to_string())?;
        let ratelimit::Limit { count, window, burst } = policy.limit;
        Ok(Self {
            buckets: ratelimit::RateLimit::new(&key::namespace(&policy), count, window).burst(burst),
            policy,
            limited: metrics::counter("rate_limit_limited_total"),
            uncounted: metrics::counter("rate_limit_uncounted_total"),
        })
    }

    async fn request(&self, req: &mut Request, quota: &mut Option<Quota>) -> Flow {
        let policy = &self.policy;
        let header = key::header_needed(&policy.key).and_then(|name| joined(req, name));
        let value = key::value(policy, req.client().address(), header.as_deref());
        match (&value, policy.missing) {
            (None, Missing::Allow) => return Ok(Next),
            (None, Missing::Deny) => return Err(problem(403, &Problem::unidentified(policy))),
            (None, Missing::Share) | (Some(_), _) => {}
        }

        match limiter::decide(&self.buckets, &key::bucket_key(value.as_deref()), policy.on_full) {
            Verdict::Allowed { remaining, full_in } => *quota = Some(Quota { remaining, reset: full_in }),
            Verdict::Limited { retry_in } => {
                self.limited.inc(1);
                return Err(self.refuse(retry_in));
            }
            Verdict::Uncounted(error) => {
                self.uncounted.inc(1);
                debug!("limit {:?}: request not counted: {error}", policy.name);
            }
            Verdict::Uncountable(error) => {
                self.uncounted.inc(1);
                debug!("limit {:?}: request refused, it cannot be counted: {error}", policy.name);
                return Err(problem(429, &Problem::uncountable(policy)).header("retry-after", "1"));
            }
        }
        Ok(Next)
    }

    async fn response(&self, res: &mut Response, quota: &mut Option<Quota>) -> Flow {
        // A refusal brings its own fields and leaves no quota here, so they are not added twice when it passes through.
        let Some(quota) = *quota else { return Ok(Next) };
        for (name, value) in fields::quota_fields(&self.policy, quota) {
            res.add_header(name, value);
        }
        for (name, value) in fields::legacy_fields(&self.policy, quota) {
            res.set_header(name, value);
        }
        Ok(Next)
    }
}

impl RateLimit {
    fn refuse(&self, retry_in: Duration) -> Reply {
        let retry_after = fields::retry_after(retry_in);
        let quota = Quota { remaining: 0, reset: Duration::from_secs(retry_after) };
        let mut reply =
            problem(429, &Problem::limited(&self.policy, retry_after)).header("retry-after", retry_after.to_string());
        for (name, value) in
            fields::quota_fields(&self.policy, quota).into_iter().chain(fields::legacy_fields(&self.policy, quota))
        {
            reply = reply.header(name, value);
        }
        reply
    }
}

/// All values of a request header as one, in the order they came; `None` when there is none.
fn joined(req: &Request, name: &str) -> Option<String> {
    // Looking first is cheap; listing copies every header into the guest.
    req.header(name)?;
    let values: Vec<_> =
        req.header_values(name).iter().map(|value| String::from_utf8_lossy(value).into_owned()).collect();
    Some(values.join(", "))
}

fn problem(status: u16, problem: &Problem) -> Reply {
    let body = serde_json::to_vec(problem).unwrap_or_default();
    Reply::new(status).header("content-type", "application/problem+json").header("cache-control", "no-store").body(body)
}
