//! What an operator writes about tokens, and the checked form of it.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use selvedge_jwt::json;
use selvedge_jwt::keys::{KeyError, KeySet};
use selvedge_jwt::{Algorithm, Claim, ClaimRules, Requirement, Rules};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use super::RemoteKeys;
use crate::config::{Config, Json};

/// Longest leeway.
const MAX_LEEWAY: Duration = Duration::from_secs(600);

/// Which tokens are accepted. Exactly one of `secret`, `public_key`, `jwks` and `jwks_from` is needed. On Selvedge the first three can also be
/// read from a file by the host (`secret_file`, `public_key_file`, `jwks_file`).
///
/// It has no `Debug`: the secret would be in it.
#[derive(Clone, selvedge_sdk::Config)]
pub struct Settings {
    /// The shared secret for HS256, as text; at least 32 bytes (RFC 7518, 3.2). Line ends behind it are cut off.
    #[config(secret)]
    pub secret: Option<String>,
    /// A public key in PEM (`-----BEGIN PUBLIC KEY-----`): RSA for RS256, or P-256 for ES256.
    pub public_key: Option<String>,
    /// The key set (RFC 7517), as JSON text or as an object. Keys of other types, for encryption, or below 2048 bits (RSA) are skipped
    /// with a warning; two keys with one `kid` are an error.
    pub jwks: Option<Jwks>,
    /// An upstream that has the key set.
    pub jwks_from: Option<RemoteKeys>,
    /// Signature algorithms that are accepted: HS256, RS256, ES256; there is no `none`. An algorithm is only ever used with a key made
    /// for it. Default: HS256 with `secret`, that of the key with `public_key`, RS256 and ES256 with key sets. Keys of an upstream are never
    /// used for HS256.
    #[config(min_len = 1)]
    pub algorithms: Option<Vec<Algorithm>>,
    /// Accepted `iss` values, one or a list; a token must have one of them. Default: any, and none.
    pub issuer: Option<OneOrMany>,
    /// Our names: `aud` (one or a list) must hold one of these, one or a list. Default: none, so that a token which is addressed to
    /// somebody is refused (RFC 7519, 4.1.3).
    pub audience: Option<OneOrMany>,
    /// Accept tokens whoever they are addressed to; not together with `audience`.
    #[config(default)]
    pub ignore_audience: bool,
    /// How far clocks may differ when `exp`, `nbf` and `iat` are checked: `30s`, `2m`; at most 10m.
    #[config(default)]
    pub leeway: Leeway,
    /// Refuse tokens without `exp`.
    #[config(default = true)]
    pub require_exp: bool,
    /// Accepted `typ` of the token's header, such as `at+jwt` (RFC 9068); compared without case and without `application/`.
    /// Default: any, and none.
    pub typ: Option<String>,
    /// Claims a token must have: a list of names, or a map from a name to the accepted value or values (a claim that is a list needs one
    /// of them in it; `scope` counts as a list of words). A name that begins with `/` is a JSON pointer. Default: none.
    pub required_claims: Option<RequiredClaims>,
    /// What clients are told they are asked to sign in to; no quotes, backslashes or control characters.
    #[config(default = "selvedge")]
    pub realm: String,
    /// Verified tokens kept per VM, so that a token's signature is computed once: 0 (none) to 1024.
    #[config(default = 1024, max = 1024)]
    pub cache_entries: usize,
}

/// A key set, as text or inline.
#[derive(Clone, Debug, Deserialize, selvedge_sdk::Config)]
#[config(serde, schema = r#"{"type": ["string", "object"]}"#)]
#[serde(untagged, expecting = "a JWKS: JSON text or an object")]
pub enum Jwks {
    /// JSON text.
    Text(String),
    /// The object itself.
    Inline(Map<String, Value>),
}

/// One text or several.
#[derive(Clone, Debug, Deserialize, selvedge_sdk::Config)]
#[config(serde, schema = r#"{"type": ["string", "array"], "items": {"type": "string"}}"#)]
#[serde(untagged, expecting = "a string or a list of strings")]
pub enum OneOrMany {
    /// One.
    One(String),
    /// Several.
    Many(Vec<String>),
}

/// The claims a token must have.
#[derive(Clone, Debug, Deserialize, selvedge_sdk::Config)]
#[config(serde, schema = r#"{"type": ["array", "object"], "items": {"type": "string"}}"#)]
#[serde(untagged, expecting = "a list of claims, or a map from claims to values")]
pub enum RequiredClaims {
    /// These must be present.
    Names(Vec<String>),
    /// These must have one of the values.
    Values(BTreeMap<String, Value>),
}

/// A time written `30s` or `2m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, selvedge_sdk::Config)]
#[config(from_str, pattern = "^[0-9]+[sm]$", default = "30s")]
pub struct Leeway(pub Duration);

/// Settings, checked.
#[derive(Clone)]
pub struct Checked {
    /// What a verifier goes by; without keys where those are remote.
    pub rules: Rules,
    /// Where the keys are fetched.
    pub remote: Option<RemoteKeys>,
    /// The algorithms that remote keys are used for.
    pub algorithms: Vec<Algorithm>,
    /// As [`Settings::realm`].
    pub realm: String,
    /// What the operator should know, although it is no error.
    pub warnings: Vec<String>,
}

/// Why settings were refused. The text names the field, except where the field is being read: there the reader names it.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Several or none.
    #[error("secret, public_key, jwks, jwks_from: exactly one of them is needed")]
    KeySource,
    /// A secret that can be guessed.
    #[error("secret: {0} bytes are too few, HS256 needs at least 32 (RFC 7518, 3.2)")]
    ShortSecret(usize),
    /// A public key must never be a secret.
    #[error("secret: this is a PEM key, not a secret; give public keys as jwks")]
    PemSecret,
    /// Not a public key.
    #[error("public_key: {0}")]
    PublicKey(#[source] KeyError),
    /// Not a key set.
    #[error("jwks: {0}")]
    Jwks(#[source] KeyError),
    /// A secret verifies HS256 only.
    #[error("algorithms: {0} cannot be verified with a secret")]
    SecretAlgorithm(Algorithm),
    /// A public key verifies its own algorithm only.
    #[error("algorithms: {0} cannot be verified with this public_key")]
    PublicKeyAlgorithm(Algorithm),
    /// Whoever can fetch the keys could make tokens.
    #[error("algorithms: HS256 needs a secret, and jwks_from is for public keys")]
    RemoteSecret,
    /// Not a path.
    #[error("jwks_from.path: {0:?} does not begin with a slash")]
    Path(String),
    /// A list that accepts nothing.
    #[error("{0}: at least one value is needed")]
    Empty(&'static str),
    /// Two wishes that exclude each other.
    #[error("ignore_audience: audience is set as well")]
    IgnoredAudience,
    /// Not a time.
    #[error("{0:?} is not a time of the form 30s or 2m, up to 10m")]
    Leeway(String),
    /// Not for a quoted string.
    #[error("realm: {0:?} must be printable ASCII without '\"' and '\\'")]
    Realm(String),
    /// A claim that nothing can be.
    #[error("required_claims: the value of {0:?} must be a string, number or boolean, or a list of those")]
    RequiredValue(String),
}

/// So that `Verifier::new(settings)?` serves in [`Filter::new`](crate::Filter::new).
impl From<SettingsError> for String {
    fn from(error: SettingsError) -> Self {
        error.to_string()
    }
}

/// Only keys: the defaults for the rest.
impl Default for Settings {
    fn default() -> Self {
        Self {
            secret: None,
            public_key: None,
            jwks: None,
            jwks_from: None,
            algorithms: None,
            issuer: None,
            audience: None,
            ignore_audience: false,
            leeway: Leeway::default(),
            require_exp: true,
            typ: None,
            required_claims: None,
            realm: "selvedge".to_owned(),
            cache_entries: 1024,
        }
    }
}

impl Settings {
    /// Checks every field and reads the keys.
    ///
    /// # Errors
    /// The first field that is wrong.
    pub fn check(self) -> Result<Checked, SettingsError> {
        let keys = check_keys(self.secret, self.public_key, self.jwks, self.jwks_from, self.algorithms)?;

        if self.ignore_audience && self.audience.is_some() {
            return Err(SettingsError::IgnoredAudience);
        }
        let claims = ClaimRules {
            issuers: self.issuer.map(|issuer| issuer.list("issuer")).transpose()?,
            audiences: self.audience.map(|audience| audience.list("audience")).transpose()?,
            ignore_audience: self.ignore_audience,
            leeway: self.leeway.0,
            require_exp: self.require_exp,
            required: self.required_claims.map_or_else(|| Ok(Vec::new()), check_required)?,
        };
        if !self.realm.bytes().all(|byte| matches!(byte, 0x20..=0x7e) && byte != b'"' && byte != b'\\') {
            return Err(SettingsError::Realm(self.realm));
        }
        Ok(Checked {
            rules: Rules { keys: keys.keys, claims, typ: self.typ, cache_entries: self.cache_entries },
            remote: keys.remote,
            algorithms: keys.algorithms,
            realm: self.realm,
            warnings: keys.warnings,
        })
    }
}

#[derive(Default)]
struct Keys {
    keys: KeySet,
    remote: Option<RemoteKeys>,
    algorithms: Vec<Algorithm>,
    warnings: Vec<String>,
}

fn check_keys(
    secret: Option<String>,
    public_key: Option<String>,
    jwks: Option<Jwks>,
    remote: Option<RemoteKeys>,
    algorithms: Option<Vec<Algorithm>>,
) -> Result<Keys, SettingsError> {
    let other = |than: Algorithm| algorithms.iter().flatten().copied().find(move |algorithm| *algorithm != than);
    match (secret, public_key, jwks, remote) {
        (Some(secret), None, None, None) => {
            if let Some(other) = other(Algorithm::HS256) {
                return Err(SettingsError::SecretAlgorithm(other));
            }
            let secret = secret.trim_end_matches(['\r', '\n']);
            if secret.trim_start().starts_with("-----BEGIN") {
                return Err(SettingsError::PemSecret);
            }
            let keys = KeySet::from_secret(secret.as_bytes()).ok_or(SettingsError::ShortSecret(secret.len()))?;
            Ok(Keys { keys, ..Keys::default() })
        }
        (None, Some(pem), None, None) => {
            let keys = KeySet::from_pem(&pem).map_err(SettingsError::PublicKey)?;
            let stray = keys.algorithms().next().and_then(other);
            match stray {
                Some(other) => Err(SettingsError::PublicKeyAlgorithm(other)),
                None => Ok(Keys { keys, ..Keys::default() }),
            }
        }
        (None, None, Some(jwks), None) => {
            let allowed = algorithms.unwrap_or_else(public);
            let set = match jwks {
                Jwks::Text(text) => {
                    json::object(text.as_bytes()).map_err(|error| SettingsError::Jwks(KeyError::Json(error)))?
                }
                Jwks::Inline(set) => set,
            };
            let (keys, warnings) = KeySet::from_jwks(&set, &allowed).map_err(SettingsError::Jwks)?;
            Ok(Keys { keys, warnings, ..Keys::default() })
        }
        (None, None, None, Some(remote)) => {
            let algorithms = algorithms.unwrap_or_else(public);
            if algorithms.contains(&Algorithm::HS256) {
                return Err(SettingsError::RemoteSecret);
            }
            if !remote.path.starts_with('/') {
                return Err(SettingsError::Path(remote.path));
            }
            Ok(Keys { remote: Some(remote), algorithms, ..Keys::default() })
        }
        _ => Err(SettingsError::KeySource),
    }
}

/// Algorithms whose keys may be known to everybody.
fn public() -> Vec<Algorithm> {
    vec![Algorithm::RS256, Algorithm::ES256]
}

fn check_required(required: RequiredClaims) -> Result<Vec<Requirement>, SettingsError> {
    match required {
        RequiredClaims::Names(names) => {
            Ok(names.iter().map(|name| Requirement { claim: Claim::new(name), values: Vec::new() }).collect())
        }
        RequiredClaims::Values(values) => values
            .into_iter()
            .map(|(name, value)| {
                let values = match value {
                    Value::Array(values) => values,
                    value => vec![value],
                };
                let scalar = |value: &Value| matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_));
                if values.is_empty() || !values.iter().all(scalar) {
                    return Err(SettingsError::RequiredValue(name));
                }
                Ok(Requirement { claim: Claim::new(&name), values })
            })
            .collect(),
    }
}

impl OneOrMany {
    fn list(self, field: &'static str) -> Result<Vec<String>, SettingsError> {
        let values = match self {
            Self::One(value) => vec![value],
            Self::Many(values) => values,
        };
        if values.is_empty() || values.iter().any(String::is_empty) {
            return Err(SettingsError::Empty(field));
        }
        Ok(values)
    }
}

impl Default for Leeway {
    fn default() -> Self {
        Self(Duration::from_secs(30))
    }
}

impl FromStr for Leeway {
    type Err = SettingsError;

    fn from_str(text: &str) -> Result<Self, SettingsError> {
        let unit = match text.as_bytes().last() {
            Some(b's') => 1,
            Some(b'm') => 60,
            _ => return Err(SettingsError::Leeway(text.to_owned())),
        };
        let number = &text[..text.len() - 1];
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = number.parse::<u64>().ok().filter(|_| digits).and_then(|number| number.checked_mul(unit));
        match seconds.map(Duration::from_secs) {
            Some(leeway) if leeway <= MAX_LEEWAY => Ok(Self(leeway)),
            _ => Err(SettingsError::Leeway(text.to_owned())),
        }
    }
}

/// As it stands in settings; the type itself is of a crate that knows no settings.
#[derive(selvedge_sdk::Config)]
enum Name {
    #[config(rename = "HS256")]
    /// HMAC with SHA-256, with a shared secret.
    HS256,
    #[config(rename = "RS256")]
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    RS256,
    #[config(rename = "ES256")]
    /// ECDSA on P-256 with SHA-256.
    ES256,
}

impl Config for Algorithm {
    const SCHEMA: Json = Name::SCHEMA;

    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(match Name::read(from)? {
            Name::HS256 => Self::HS256,
            Name::RS256 => Self::RS256,
            Name::ES256 => Self::ES256,
        })
    }
}
