//! Whom a request is counted under. The key in shared data is a hash, so it has one length and holds nothing a client sent.

use std::net::{IpAddr, Ipv6Addr};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::config::{Key, Policy};

/// Longest bearer token that is looked into, in bytes.
const MAX_TOKEN: usize = 8 * 1024;

/// The name that all buckets of one policy have in common.
///
/// Name, key, rate and burst are hashed into it: filters that agree in all of them share buckets, and after a change of the rate
/// nobody reads a bucket that was filled under the old one.
pub fn namespace(policy: &Policy) -> String {
    let limit = policy.limit;
    let identity =
        format!("{:?}/{}/{:?}/{}/{}", policy.key, limit.count, limit.window, limit.burst, policy.ipv6_prefix);
    format!("rate-limit/{}/{}", policy.name, short_hash(&[identity.as_bytes()]))
}

/// The key of one client's bucket below that: 128 bits of SHA-256 of the value. `None` is the bucket that requests without a key share.
pub fn bucket_key(value: Option<&str>) -> String {
    match value {
        Some(value) => short_hash(&[b"v", value.as_bytes()]),
        None => short_hash(&[b"n"]),
    }
}

/// The network that an address is counted under: IPv4 (also mapped into IPv6) by the whole address, IPv6 by its first `prefix` bits.
pub fn network(address: IpAddr, prefix: u8) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128_u32.saturating_sub(u32::from(prefix))).unwrap_or(0);
            format!("{}/{prefix}", Ipv6Addr::from_bits(address.to_bits() & mask))
        }
    }
}

/// Reads one claim out of an `Authorization` header's bearer token without verifying it.
///
/// `None` when there is no bearer token, it is not a JWT, or the claim is absent or not a string, number or boolean.
pub fn bearer_claim(authorization: &str, claim: &str) -> Option<String> {
    let (scheme, token) = authorization.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") || token.len() > MAX_TOKEN {
        return None;
    }
    let payload = token.trim().split('.').nth(1)?;
    let payload: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()?;
    let value = if claim.starts_with('/') { payload.pointer(claim) } else { payload.get(claim) };
    match value? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The key's value in a request, from what the glue read: the client's address, or the header that [`header_needed`] named.
pub fn value(policy: &Policy, address: Option<IpAddr>, header: Option<&str>) -> Option<String> {
    match &policy.key {
        Key::ClientIp => address.map(|address| network(address, policy.ipv6_prefix)),
        Key::Header(_) => header.map(str::trim).filter(|value| !value.is_empty()).map(str::to_owned),
        Key::JwtClaim(claim) => header.and_then(|authorization| bearer_claim(authorization, claim)),
    }
}

/// The request header that the key is read from, if any.
pub fn header_needed(key: &Key) -> Option<&str> {
    match key {
        Key::ClientIp => None,
        Key::Header(name) => Some(name),
        Key::JwtClaim(_) => Some("authorization"),
    }
}

/// 128 bits of SHA-256 in base64url: 22 characters.
fn short_hash(parts: &[&[u8]]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    URL_SAFE_NO_PAD.encode(&hash.finalize()[..16])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    fn policy(value: Value) -> Policy {
        serde_json::from_value::<Config>(value).unwrap().check().unwrap()
    }

    fn bearer(payload: &Value) -> String {
        format!("Bearer e30.{}.c2ln", URL_SAFE_NO_PAD.encode(payload.to_string()))
    }

    #[test]
    fn ipv6_clients_are_counted_by_network() {
        for (address, prefix, expected) in [
            ("192.0.2.7", 64, "192.0.2.7"),
            ("::ffff:192.0.2.7", 64, "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff::", 64, "2001:db8:1:2::/64"),
            ("2001:db8:1:2:3:4:5:6", 56, "2001:db8:1::/56"),
            ("2001:db8::1", 128, "2001:db8::1/128"),
        ] {
            assert_eq!(network(address.parse().unwrap(), prefix), expected, "{address}/{prefix}");
        }
    }

    #[test]
    fn a_claim_is_read_from_the_bearer_token() {
        let token = bearer(&json!({ "sub": "ann", "n": 7, "deep": { "tenant": "acme" }, "list": [1] }));
        for (claim, expected) in [
            ("sub", Some("ann")),
            ("n", Some("7")),
            ("/deep/tenant", Some("acme")),
            ("list", None),
            ("deep", None),
            ("none", None),
        ] {
            assert_eq!(bearer_claim(&token, claim).as_deref(), expected, "{claim}");
        }
        assert_eq!(bearer_claim(&token.replace("Bearer", "bEARER"), "sub").as_deref(), Some("ann"));
        for broken in ["", "Bearer", "Bearer x", "Bearer a.b", "Bearer a.!!.c", "Basic YTpi", "Bearer e30.MQ.x"] {
            assert_eq!(bearer_claim(broken, "sub"), None, "{broken}");
        }
        assert_eq!(bearer_claim(&bearer(&json!({ "sub": "x".repeat(MAX_TOKEN) })), "sub"), None);
    }

    #[test]
    fn the_shared_key_has_one_length_and_shows_nothing_of_the_value() {
        let (short, long) = (bucket_key(Some("a")), bucket_key(Some(&"secret-api-key".repeat(1000))));
        assert_eq!(short.len(), long.len());
        assert!(!long.contains("secret"));
        assert_ne!(bucket_key(None), bucket_key(Some("")));
    }

    #[test]
    fn a_bucket_is_shared_exactly_by_policies_that_agree() {
        let base = namespace(&policy(json!({ "rate": "100/min" })));
        assert_eq!(base, namespace(&policy(json!({ "rate": "100/60s", "burst": 100, "headers": false }))));
        for other in [
            json!({ "rate": "100/min", "name": "api" }),
            json!({ "rate": "101/min" }),
            json!({ "rate": "100/h" }),
            json!({ "rate": "100/min", "burst": 5 }),
            json!({ "rate": "100/min", "key": { "header": "x-api-key" } }),
        ] {
            assert_ne!(base, namespace(&policy(other.clone())), "{other}");
        }
    }

    #[test]
    fn the_value_comes_from_where_the_policy_says() {
        let address = Some("192.0.2.7".parse().unwrap());
        let by = |key: Value| policy(json!({ "rate": "1/s", "key": key }));
        assert_eq!(value(&by(json!("client_ip")), address, None).as_deref(), Some("192.0.2.7"));
        assert_eq!(value(&by(json!("client_ip")), None, Some("x")), None);
        assert_eq!(value(&by(json!({ "header": "X-Key" })), address, Some(" k ")).as_deref(), Some("k"));
        assert_eq!(value(&by(json!({ "header": "x-key" })), address, Some("  ")), None);
        assert_eq!(value(&by(json!({ "header": "x-key" })), address, None), None);
        let token = bearer(&json!({ "sub": "ann" }));
        assert_eq!(value(&by(json!({ "jwt_claim": "sub" })), address, Some(&token)).as_deref(), Some("ann"));
        assert_eq!(header_needed(&Key::Header("x-key".into())), Some("x-key"));
        assert_eq!(header_needed(&Key::JwtClaim("sub".into())), Some("authorization"));
        assert_eq!(header_needed(&Key::ClientIp), None);
    }
}
