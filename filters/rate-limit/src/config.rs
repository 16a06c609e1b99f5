//! What an operator writes, and the checked form of it.

use std::str::FromStr;
use std::time::Duration;

use selvedge_sdk::ratelimit::Limit;

/// Longest policy name.
const MAX_NAME: usize = 64;
/// Largest request count in `rate`; also the largest `burst`.
const MAX_COUNT: u32 = 1_000_000_000;
/// Longest window in `rate`: a month.
const MAX_WINDOW: Duration = Duration::from_secs(31 * 86_400);

/// Configuration of the filter.
#[derive(Clone, Debug, selvedge_sdk::Config)]
pub struct Config {
    /// The policy's name: it appears in the `RateLimit` fields and separates this filter's buckets from those of other rate limits.
    /// Letters, digits, `-`, `_`, `.`; at most 64. Filters that agree in name, key, rate and burst share their buckets, where the
    /// host gives them the same shared data (`vm_id`). Default: `default`.
    #[config(default = "default", pattern = r"^[-A-Za-z0-9_.]{1,64}$")]
    pub name: String,
    /// Who is counted. Default: `client_ip`.
    #[config(default)]
    pub key: Key,
    /// The rate in the long run: requests per window, as `100/min`, `5/s`, `1000/h`, `1/day` or `20/10s` (units s, min, h, day).
    /// 1 to 10⁹ requests, windows of 1 s to 31 days. Required.
    pub rate: Rate,
    /// How many requests may come at once after a pause (the size of the bucket): 1 to 10⁹. Default: the count in `rate`.
    #[config(min = 1, max = 1_000_000_000)]
    pub burst: Option<u32>,
    /// What happens to a request that has no such key (no such header, no such claim). Default: `share`.
    #[config(default)]
    pub missing: Missing,
    /// What happens when the state cannot be written: the host's shared data is full, or other workers changed the same bucket
    /// every time we tried. Default: `allow`.
    #[config(default)]
    pub on_full: OnFull,
    /// IPv6 clients are counted by this many leading bits of their address, because one subscriber has a whole network: 32 to 128
    /// bits. Default: 64.
    #[config(default = 64, min = 32, max = 128)]
    pub ipv6_prefix: u8,
    /// Send `RateLimit-Policy` and `RateLimit` on answers (allowed and refused). Default: `true`.
    #[config(default = true)]
    pub headers: bool,
    /// Also send the older `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` (seconds from now). Default: `false`.
    #[config(default)]
    pub legacy_headers: bool,
}

/// Who is counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, selvedge_sdk::Config)]
pub enum Key {
    /// The client's address as the host established it (trusted hops considered).
    #[default]
    ClientIp,
    /// The value of this request header.
    Header(String),
    /// This claim of the bearer token in `Authorization`; a name, or a JSON pointer such as `/realm/tenant`. The token is only
    /// decoded here, **not verified**: put `jwt-auth` before this filter, or a client picks its own bucket.
    JwtClaim(String),
}

/// What happens to a request without a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, selvedge_sdk::Config)]
pub enum Missing {
    /// All such requests share one bucket.
    #[default]
    Share,
    /// They are not limited.
    Allow,
    /// They are refused with 403.
    Deny,
}

/// What happens when a bucket cannot be stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, selvedge_sdk::Config)]
pub enum OnFull {
    /// The request goes on uncounted.
    #[default]
    Allow,
    /// The request is refused with 429.
    Deny,
}

/// Requests per window, written `100/min`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, selvedge_sdk::Config)]
#[config(from_str, pattern = r"^[0-9]+ */ *[0-9]*(s|sec|second|m|min|minute|h|hour|d|day)$")]
pub struct Rate {
    /// Requests; 1 to 10⁹.
    pub count: u32,
    /// Time in which they may come; 1 s to 31 days.
    pub window: Duration,
}

/// The configuration, checked.
#[derive(Clone, Debug)]
pub struct Policy {
    /// As [`Config::name`].
    pub name: String,
    /// As [`Config::key`]; a header's name is in lower case.
    pub key: Key,
    /// Rate and burst.
    pub limit: Limit,
    /// As [`Config::missing`].
    pub missing: Missing,
    /// As [`Config::on_full`].
    pub on_full: OnFull,
    /// As [`Config::ipv6_prefix`].
    pub ipv6_prefix: u8,
    /// As [`Config::headers`].
    pub headers: bool,
    /// As [`Config::legacy_headers`].
    pub legacy_headers: bool,
}

/// Why a configuration was refused. The text names the field, except where the field is being read: there the reader names it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A policy name that cannot stand in a structured field.
    #[error("name: {0:?} must be 1 to 64 letters, digits, '-', '_' or '.'")]
    Name(String),
    /// A rate that is not `count/window`.
    #[error("{0:?} is not a rate of the form 100/min, 5/s, 20/10s, 1000/h or 1/day")]
    RateForm(String),
    /// A rate outside its bounds.
    #[error("the rate {0:?} must have 1 to 1000000000 requests and a window of 1s to 31 days")]
    RateBounds(String),
    /// Not a header name.
    #[error("key.header: {0:?} is not a header name")]
    Header(String),
    /// No claim is named.
    #[error("key.jwt_claim: a claim must be named")]
    Claim,
}

impl Config {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that is outside its bounds.
    pub fn check(self) -> Result<Policy, ConfigError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if self.name.is_empty() || self.name.len() > MAX_NAME || !self.name.chars().all(plain) {
            return Err(ConfigError::Name(self.name));
        }
        let burst = self.burst.unwrap_or(self.rate.count);
        let key = match self.key {
            Key::Header(name) if !is_token(&name) => return Err(ConfigError::Header(name)),
            Key::Header(name) => Key::Header(name.to_ascii_lowercase()),
            Key::JwtClaim(claim) if claim.is_empty() => return Err(ConfigError::Claim),
            key => key,
        };
        Ok(Policy {
            name: self.name,
            key,
            limit: Limit { count: self.rate.count, window: self.rate.window, burst },
            missing: self.missing,
            on_full: self.on_full,
            ipv6_prefix: self.ipv6_prefix,
            headers: self.headers,
            legacy_headers: self.legacy_headers,
        })
    }
}

impl FromStr for Rate {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let form = || ConfigError::RateForm(text.to_owned());
        let (count, window) = text.split_once('/').ok_or_else(form)?;
        let (count, window) = (count.trim(), window.trim());
        if !count.bytes().all(|byte| byte.is_ascii_digit()) || count.is_empty() {
            return Err(form());
        }

        let digits = window.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = window.split_at(digits);
        let unit: u64 = match unit {
            "s" | "sec" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hour" => 3600,
            "d" | "day" => 86_400,
            _ => return Err(form()),
        };

        let bounds = || ConfigError::RateBounds(text.to_owned());
        let count: u32 = count.parse().map_err(|_| bounds())?;
        let number: u64 = if number.is_empty() { 1 } else { number.parse().map_err(|_| bounds())? };
        let window = Duration::from_secs(number.checked_mul(unit).ok_or_else(bounds)?);
        if !(1..=MAX_COUNT).contains(&count) || window.is_zero() || window > MAX_WINDOW {
            return Err(bounds());
        }
        Ok(Self { count, window })
    }
}

/// RFC 9110, 5.6.2.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(value: serde_json::Value) -> Result<Policy, String> {
        let config: Config = selvedge_sdk::config::parse(value.to_string().as_bytes())?;
        config.check().map_err(|error| error.to_string())
    }

    #[test]
    fn only_the_rate_is_required() {
        let policy = parse(json!({ "rate": "100/min" })).unwrap();
        assert_eq!(policy.limit, Limit { count: 100, window: Duration::from_secs(60), burst: 100 });
        assert_eq!((policy.name.as_str(), &policy.key), ("default", &Key::ClientIp));
        assert_eq!((policy.missing, policy.on_full, policy.ipv6_prefix), (Missing::Share, OnFull::Allow, 64));
        assert!(policy.headers && !policy.legacy_headers);
    }

    #[test]
    fn every_form_of_a_rate() {
        for (text, count, seconds) in [
            ("5/s", 5, 1),
            ("100/min", 100, 60),
            ("100/m", 100, 60),
            ("1000/h", 1000, 3600),
            ("1/day", 1, 86_400),
            ("20/10s", 20, 10),
            ("3 / 5min", 3, 300),
            ("1/31d", 1, 31 * 86_400),
        ] {
            assert_eq!(text.parse::<Rate>(), Ok(Rate { count, window: Duration::from_secs(seconds) }), "{text}");
        }
        for text in
            ["", "100", "100/", "/min", "100/fortnight", "-1/s", "+1/s", "1.5/s", "a/s", "100/-1s", "100 per min"]
        {
            assert_eq!(text.parse::<Rate>(), Err(ConfigError::RateForm(text.to_owned())), "{text}");
        }
        for text in ["0/s", "1000000001/s", "99999999999/s", "1/0s", "1/32d", "1/99999999999999999999s"] {
            assert_eq!(text.parse::<Rate>(), Err(ConfigError::RateBounds(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn a_fault_names_its_field() {
        for (value, part) in [
            (json!({}), "missing field `rate`"),
            (json!({ "rate": "1/s", "bursts": 3 }), "unknown field `bursts`"),
            (json!({ "rate": "often" }), "\"often\" is not a rate"),
            (json!({ "rate": "1/s", "burst": 0 }), "`burst`: must be at least 1"),
            (json!({ "rate": "1/s", "name": "a b" }), "name: \"a b\""),
            (json!({ "rate": "1/s", "name": "" }), "name: \"\""),
            (json!({ "rate": "1/s", "ipv6_prefix": 16 }), "`ipv6_prefix`: must be at least 32"),
            (json!({ "rate": "1/s", "key": { "header": "a b" } }), "key.header: \"a b\""),
            (json!({ "rate": "1/s", "key": { "jwt_claim": "" } }), "key.jwt_claim"),
            (json!({ "rate": "1/s", "key": "user" }), "unknown variant `user`"),
            (json!({ "rate": "1/s", "on_full": "shrug" }), "unknown variant `shrug`"),
        ] {
            let error = parse(value.clone()).unwrap_err();
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
