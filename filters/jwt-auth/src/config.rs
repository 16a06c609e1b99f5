//! What an operator writes, and the checked form of it.

use std::collections::{BTreeMap, BTreeSet};

use selvedge_sdk::jwt::source::Sources;
use selvedge_sdk::jwt::{Algorithm, Claim, Jwks, Leeway, OneOrMany, RequiredClaims, Rules, Settings, SettingsError};

use crate::forward::Forward;

/// Configuration of the filter.
///
/// It has no `Debug`: the secret would be in it.
#[derive(Clone, selvedge_sdk::Config)]
pub struct Config {
    /// The shared secret for HS256, as text; at least 32 bytes (RFC 7518, 3.2). Line ends behind it are cut off, so that it can come
    /// from a file (`secret_file`, which the host reads). Exactly one of `secret` and `jwks` is needed.
    #[config(secret)]
    pub secret: Option<String>,
    /// The key set (RFC 7517), as JSON text (`jwks_file`, which the host reads) or as an object. Keys of other types, for encryption,
    /// or below 2048 bits (RSA) are skipped with a warning; two keys with one `kid` are an error.
    pub jwks: Option<Jwks>,
    /// Signature algorithms that are accepted: HS256, RS256, ES256; there is no `none`. An algorithm is only ever used with a key made
    /// for it. Default: HS256 with `secret`; RS256 and ES256 with `jwks`.
    #[config(min_len = 1)]
    pub algorithms: Option<Vec<Algorithm>>,
    /// Accepted `iss` values, one or a list; a token must have one of them. Default: any, and none.
    pub issuer: Option<OneOrMany>,
    /// Our names: `aud` (one or a list) must hold one of these, one or a list. Default: none, so that a token which is addressed to
    /// somebody is refused (RFC 7519, 4.1.3).
    pub audience: Option<OneOrMany>,
    /// Accept tokens whoever they are addressed to; not together with `audience`. Default: `false`.
    #[config(default)]
    pub ignore_audience: bool,
    /// How far clocks may differ when `exp`, `nbf` and `iat` are checked: `30s`, `2m`; at most 10m. Default: `30s`.
    #[config(default)]
    pub leeway: Leeway,
    /// Refuse tokens without `exp`. Default: `true`.
    #[config(default = true)]
    pub require_exp: bool,
    /// Accepted `typ` of the token's header, such as `at+jwt` (RFC 9068); compared without case and without `application/`.
    /// Default: any, and none.
    pub typ: Option<String>,
    /// Claims a token must have: a list of names, or a map from a name to the accepted value or values (a claim that is a list needs one
    /// of them in it; `scope` counts as a list of words). A name that begins with `/` is a JSON pointer. Default: none.
    pub required_claims: Option<RequiredClaims>,
    /// What clients are told they are asked to sign in to; no quotes, backslashes or control characters. Default: `selvedge`.
    #[config(default = "selvedge")]
    pub realm: String,
    /// Also take the token from this cookie. Default: none.
    pub cookie: Option<String>,
    /// Also take the token from this query parameter; URLs end up in logs and histories, so prefer the others. Default: none.
    pub query: Option<String>,
    /// Claims to tell the origin, as request headers: `{ sub: x-user }`. Copies that a client sends are always removed. Lists are joined
    /// with commas; an absent claim sets no header; an object, or text that cannot stand in a header, makes the token invalid. A name
    /// that begins with `/` is a JSON pointer. Default: none.
    #[config(default)]
    pub claims_to_headers: BTreeMap<String, String>,
    /// Leave the token in the request. Mind the cache when it is removed: a response to a request with `Authorization` is not stored
    /// (RFC 9111, 3.5), one without is. Default: `true`.
    #[config(default = true)]
    pub forward_token: bool,
    /// Verified tokens kept per worker, so that a token's signature is computed once: 0 (none) to 1024. Default: 1024.
    #[config(default = 1024, max = 1024)]
    pub cache_entries: usize,
}

/// The configuration, checked.
#[derive(Clone)]
pub struct Plan {
    /// Keys, and what the claims must be.
    pub rules: Rules,
    /// Where tokens are looked for.
    pub sources: Sources,
    /// What the origin is told.
    pub forward: Forward,
    /// As [`Config::forward_token`].
    pub forward_token: bool,
    /// As [`Config::realm`].
    pub realm: String,
    /// What the operator should know, although it is no error.
    pub warnings: Vec<String>,
}

/// Why a configuration was refused. The text names the field, except where the field is being read: there the reader names it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Both or neither.
    #[error("secret, jwks: exactly one of them is needed")]
    KeySource,
    /// Something about keys or claims.
    #[error(transparent)]
    Tokens(SettingsError),
    /// Not a name for a cookie or a parameter.
    #[error("{field}: {value:?} is not a name")]
    Name {
        /// The field at fault.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// Not a header that a filter may set.
    #[error("claims_to_headers: {header:?} (of {claim:?}) is not a header name that a filter may set")]
    ForwardHeader {
        /// The claim.
        claim: String,
        /// Its header.
        header: String,
    },
    /// Two claims for one header.
    #[error("claims_to_headers: {0:?} is used twice")]
    ForwardTwice(String),
}

impl Config {
    /// Checks every field and reads the keys.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(self) -> Result<Plan, ConfigError> {
        if self.secret.is_some() == self.jwks.is_some() {
            return Err(ConfigError::KeySource);
        }
        let settings = Settings {
            secret: self.secret,
            jwks: self.jwks,
            algorithms: self.algorithms,
            issuer: self.issuer,
            audience: self.audience,
            ignore_audience: self.ignore_audience,
            leeway: self.leeway,
            require_exp: self.require_exp,
            typ: self.typ,
            required_claims: self.required_claims,
            realm: self.realm,
            cache_entries: self.cache_entries,
            ..Settings::default()
        };
        let tokens = settings.check().map_err(ConfigError::Tokens)?;
        for (field, value) in [("cookie", &self.cookie), ("query", &self.query)] {
            if let Some(value) = value.as_ref().filter(|value| !is_token(value)) {
                return Err(ConfigError::Name { field, value: value.clone() });
            }
        }
        Ok(Plan {
            rules: tokens.rules,
            sources: Sources { cookie: self.cookie, query: self.query },
            forward: check_forward(self.claims_to_headers)?,
            forward_token: self.forward_token,
            realm: tokens.realm,
            warnings: tokens.warnings,
        })
    }
}

fn check_forward(claims_to_headers: BTreeMap<String, String>) -> Result<Forward, ConfigError> {
    // Headers that frame or address the message, or carry credentials: a claim must not change them.
    const RESERVED: [&str; 11] = [
        "host",
        "connection",
        "content-length",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "proxy-connection",
        "authorization",
        "cookie",
        "expect",
    ];
    let mut seen = BTreeSet::new();
    let mut claims = Vec::new();
    for (claim, header) in claims_to_headers {
        let lower = header.to_ascii_lowercase();
        if !is_token(&lower) || RESERVED.contains(&lower.as_str()) {
            return Err(ConfigError::ForwardHeader { claim, header });
        }
        if !seen.insert(lower.replace('_', "-")) {
            return Err(ConfigError::ForwardTwice(header));
        }
        claims.push((Claim::new(&claim), lower));
    }
    Ok(Forward { claims })
}

/// RFC 9110, 5.6.2.
fn is_token(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use selvedge_jwt::mint;
    use serde_json::{Value, json};

    use super::*;

    fn parse(value: Value) -> Result<Plan, String> {
        let config: Config = selvedge_sdk::config::parse(value.to_string().as_bytes())?;
        config.check().map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_source_is_enough() {
        let plan = parse(json!({ "secret": "x".repeat(32) })).unwrap();
        assert_eq!(plan.rules.claims.leeway, Duration::from_secs(30));
        assert!(plan.rules.claims.require_exp && plan.forward_token && !plan.rules.claims.ignore_audience);
        assert_eq!((plan.realm.as_str(), plan.rules.cache_entries), ("selvedge", 1024));
        assert!(parse(json!({ "jwks": mint::rsa_jwks() })).is_ok());
        assert!(parse(json!({ "jwks": mint::rsa_jwks().to_string() })).is_ok());
    }

    #[test]
    fn a_fault_names_its_field() {
        let with = |extra: Value| {
            let mut value = json!({ "secret": "x".repeat(32) });
            value.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            value
        };
        for (value, part) in [
            (json!({}), "secret, jwks: exactly one"),
            (with(json!({ "jwks": mint::rsa_jwks() })), "secret, jwks: exactly one"),
            (with(json!({ "secret": "short\n" })), "secret: 5 bytes"),
            (with(json!({ "secret": "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkqhkiG9w0" })), "secret: this is a PEM key"),
            (json!({ "jwks": "{" }), "jwks: "),
            (json!({ "jwks": { "keys": [] } }), "jwks: "),
            (json!({ "jwks": 7 }), "a JWKS: JSON text or an object"),
            (with(json!({ "algorithms": [] })), "`algorithms`: must have at least 1 entry"),
            (with(json!({ "algorithms": ["none"] })), "unknown variant `none`"),
            (with(json!({ "algorithms": ["hs256"] })), "unknown variant `hs256`"),
            (with(json!({ "algorithms": ["HS256", "RS256"] })), "algorithms: RS256 cannot"),
            (with(json!({ "issuer": [] })), "issuer: at least one"),
            (with(json!({ "audience": "" })), "audience: at least one"),
            (with(json!({ "audience": "a", "ignore_audience": true })), "ignore_audience"),
            (with(json!({ "leeway": "11m" })), "\"11m\" is not a time"),
            (with(json!({ "leeway": "+1s" })), "\"+1s\" is not a time"),
            (with(json!({ "leeway": "30" })), "\"30\" is not a time"),
            (with(json!({ "leeway": "é" })), "\"é\" is not a time"),
            (with(json!({ "realm": "a\"b" })), "realm: "),
            (with(json!({ "cookie": "a b" })), "cookie: \"a b\""),
            (with(json!({ "query": "" })), "query: \"\""),
            (with(json!({ "required_claims": { "a": [] } })), "required_claims: the value of \"a\""),
            (with(json!({ "required_claims": { "a": {} } })), "required_claims: the value of \"a\""),
            (with(json!({ "required_claims": 1 })), "a list of claims"),
            (with(json!({ "claims_to_headers": { "sub": "a b" } })), "claims_to_headers: \"a b\""),
            (with(json!({ "claims_to_headers": { "sub": "Host" } })), "claims_to_headers: \"Host\""),
            (
                with(json!({ "claims_to_headers": { "a": "x-u", "b": "X_U" } })),
                "claims_to_headers: \"X_U\" is used twice",
            ),
            (with(json!({ "cache_entries": 1025 })), "`cache_entries`: must be at most 1024"),
            (with(json!({ "secrets": "x" })), "unknown field `secrets`"),
        ] {
            let error = parse(value.clone()).err().unwrap_or_else(|| panic!("{value} was accepted"));
            assert!(error.contains(part), "{value}: {error}");
        }
    }
}
