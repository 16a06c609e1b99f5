//! The keys: a secret or a key set (RFC 7517), each bound to the one algorithm it is for.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use crate::algorithm::Algorithm;
use crate::json::{self, JsonError};

mod pem;

/// Shortest HMAC key, in bytes: the length of the hash (RFC 7518, 3.2).
const MIN_SECRET: usize = 32;
/// Most keys in a set. A token without `kid` costs one verification for each key of its algorithm.
const MAX_KEYS: usize = 64;
/// Sizes of RSA keys, in bits: RFC 7518, 3.3; above, a verification takes too long.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// One key.
#[derive(Clone)]
struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    material: DecodingKey,
}

/// The keys of a filter. The default has none: nothing verifies.
#[derive(Clone, Default)]
pub struct KeySet {
    keys: Vec<Key>,
    /// A single secret has no `kid`; a token that names one may still be signed with it.
    ignore_kid: bool,
}

/// Why a key set was refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not a JSON object.
    #[error("not a JSON object without duplicate names: {0}")]
    Json(#[source] JsonError),
    /// Not a key set.
    #[error("`keys` must be a list of 1 to 64 keys")]
    Keys,
    /// Two keys for one name.
    #[error("two keys have the kid {0:?}")]
    DuplicateKid(String),
    /// Not a public key in PEM.
    #[error("{0}")]
    Pem(String),
    /// Every key was skipped.
    #[error("no key is usable for the accepted algorithms ({})", .0.join("; "))]
    NoneUsable(Vec<String>),
}

/// Why no key verified a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignatureError {
    /// No key has this `kid`, or none is for this algorithm.
    UnknownKey,
    /// The signature is another.
    Mismatch,
}

impl KeySet {
    /// A secret for HS256; `None` when it is shorter than 32 bytes.
    pub fn from_secret(secret: &[u8]) -> Option<Self> {
        let key = Key { kid: None, algorithm: Algorithm::HS256, material: secret_key(secret)? };
        Some(Self { keys: vec![key], ignore_kid: true })
    }

    /// A public key in PEM (`-----BEGIN PUBLIC KEY-----`, or `RSA PUBLIC KEY`): RSA of 2048 to 4096 bits for RS256, or P-256 for ES256.
    ///
    /// # Errors
    /// [`KeyError::Pem`].
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let (algorithm, material) = pem::read(text).map_err(KeyError::Pem)?;
        Ok(Self { keys: vec![Key { kid: None, algorithm, material }], ignore_kid: true })
    }

    /// A key set as JSON text; as [`from_jwks`](Self::from_jwks).
    ///
    /// # Errors
    /// [`KeyError`].
    pub fn from_text(text: &[u8], allowed: &[Algorithm]) -> Result<(Self, Vec<String>), KeyError> {
        Self::from_jwks(&json::object(text).map_err(KeyError::Json)?, allowed)
    }

    /// Which algorithms there are keys for.
    pub fn algorithms(&self) -> impl Iterator<Item = Algorithm> + '_ {
        self.keys.iter().map(|key| key.algorithm)
    }

    /// The keys of a set that are for an allowed algorithm, and a warning for each other key (RFC 7517, 5: it should be ignored).
    ///
    /// # Errors
    /// [`KeyError`], never [`KeyError::Json`].
    pub fn from_jwks(set: &Map<String, Value>, allowed: &[Algorithm]) -> Result<(Self, Vec<String>), KeyError> {
        let Some(Value::Array(members)) = set.get("keys") else { return Err(KeyError::Keys) };
        if !(1..=MAX_KEYS).contains(&members.len()) {
            return Err(KeyError::Keys);
        }

        let mut keys = Vec::new();
        let mut warnings = Vec::new();
        for (index, member) in members.iter().enumerate() {
            match read_key(member) {
                Ok(key) if !allowed.contains(&key.algorithm) => {
                    warnings
                        .push(format!("jwks.keys[{index}] is not used: algorithms does not list {}", key.algorithm));
                }
                Ok(key) => keys.push(key),
                Err(fault) => warnings.push(format!("jwks.keys[{index}] is not used: {fault}")),
            }
        }

        let mut kids = BTreeSet::new();
        for kid in keys.iter().filter_map(|key| key.kid.as_deref()) {
            if !kids.insert(kid) {
                return Err(KeyError::DuplicateKid(kid.to_owned()));
            }
        }
        if keys.is_empty() {
            return Err(KeyError::NoneUsable(warnings));
        }
        for algorithm in allowed.iter().filter(|algorithm| keys.iter().all(|key| key.algorithm != **algorithm)) {
            warnings.push(format!("jwks has no key for {algorithm}: tokens signed with it are refused"));
        }
        Ok((Self { keys, ignore_kid: false }, warnings))
    }

    /// Checks a signature (base64url) over the signing input. The key is the one with this `kid`; without a `kid` every key for the
    /// algorithm is tried. A key is never used with another algorithm than its own.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn verify(
        &self,
        kid: Option<&str>,
        algorithm: Algorithm,
        input: &[u8],
        signature: &str,
    ) -> Result<(), SignatureError> {
        let mut candidates = self
            .keys
            .iter()
            .filter(|key| key.algorithm == algorithm)
            .filter(|key| self.ignore_kid || kid.is_none() || key.kid.as_deref() == kid)
            .peekable();
        if candidates.peek().is_none() {
            return Err(SignatureError::UnknownKey);
        }
        // HMACs are compared in constant time (`hmac::Mac::verify_slice`). An error is a signature that is not base64url or a key that
        // the provider refuses; either way nothing is verified.
        let verifies = |key: &Key| {
            jsonwebtoken::crypto::verify(signature, input, &key.material, algorithm.into()).unwrap_or(false)
        };
        if candidates.any(verifies) { Ok(()) } else { Err(SignatureError::Mismatch) }
    }
}

/// Reads one member of `keys`.
fn read_key(member: &Value) -> Result<Key, String> {
    let member = member.as_object().ok_or("not an object")?;
    let text = |name: &str| match member.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(format!("{name} is not a string")),
    };
    let bytes = |name: &str| -> Result<Vec<u8>, String> {
        let text = text(name)?.ok_or_else(|| format!("{name} is missing"))?;
        URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("{name} is not base64url"))
    };

    // RFC 7517, 4.2 and 4.3: what the key is for.
    if text("use")?.is_some_and(|purpose| purpose != "sig") {
        return Err("use is not sig".to_owned());
    }
    if let Some(operations) = member.get("key_ops")
        && !operations.as_array().is_some_and(|operations| operations.iter().any(|operation| operation == "verify"))
    {
        return Err("key_ops does not hold verify".to_owned());
    }

    let (algorithm, material) = match text("kty")?.ok_or("kty is missing")? {
        "oct" => (Algorithm::HS256, secret_key(&bytes("k")?).ok_or("k is shorter than 32 bytes")?),
        "RSA" => (Algorithm::RS256, rsa_key(&bytes("n")?, &bytes("e")?)?),
        "EC" => match text("crv")? {
            Some("P-256") => (Algorithm::ES256, p256_key(&bytes("x")?, &bytes("y")?)?),
            _ => return Err("crv is not P-256".to_owned()),
        },
        other => return Err(format!("kty {other:?} is not supported")),
    };
    if let Some(named) = text("alg")?
        && Algorithm::parse(named) != Some(algorithm)
    {
        return Err(format!("alg is {named:?}, which is not accepted for this type of key"));
    }
    Ok(Key { kid: text("kid")?.map(str::to_owned), algorithm, material })
}

fn secret_key(secret: &[u8]) -> Option<DecodingKey> {
    (secret.len() >= MIN_SECRET).then(|| DecodingKey::from_secret(secret))
}

fn rsa_key(modulus: &[u8], exponent: &[u8]) -> Result<DecodingKey, String> {
    let significant = |bytes: &[u8]| bytes.iter().position(|byte| *byte != 0).map_or(0, |start| bytes.len() - start);
    let (modulus, exponent) =
        (&modulus[modulus.len() - significant(modulus)..], &exponent[exponent.len() - significant(exponent)..]);

    let bits = modulus.first().map_or(0, |first| modulus.len() * 8 - first.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err(format!("n has {bits} bits, 2048 to 4096 are accepted"));
    }
    let odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last % 2 == 1);
    // With e = 1 anybody can sign; beyond 32 bits verification is slow for nothing.
    if !odd(modulus) || !odd(exponent) || exponent.len() > 4 || exponent == [1] {
        return Err("n and e are not an RSA public key".to_owned());
    }
    Ok(DecodingKey::from_rsa_raw_components(modulus, exponent))
}

fn p256_key(x: &[u8], y: &[u8]) -> Result<DecodingKey, String> {
    // RFC 7518, 6.2.1.2: full-size coordinates.
    if x.len() != 32 || y.len() != 32 {
        return Err("x and y are not 32 bytes each".to_owned());
    }
    // The point as SEC 1 writes it, uncompressed: what this library calls DER.
    let key = DecodingKey::from_ec_der(&[&[4], x, y].concat());
    // A key is only looked at when it is used, so use it: a point that is not on the curve is an error, the empty signature is not.
    jsonwebtoken::crypto::verify("", b"", &key, jsonwebtoken::Algorithm::ES256)
        .map_err(|_| "x and y are no point on P-256")?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mint;

    const ALL: [Algorithm; 3] = [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256];

    fn read(jwks: &Value, allowed: &[Algorithm]) -> Result<(KeySet, Vec<String>), KeyError> {
        KeySet::from_jwks(jwks.as_object().unwrap(), allowed)
    }

    #[test]
    fn keys_that_must_not_verify_are_skipped() {
        let (rsa, ec) = (mint::rsa_jwk(), mint::ec_jwk());
        let with = |base: &Value, changes: Value| {
            let mut key = base.clone();
            key.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            key
        };
        let small = URL_SAFE_NO_PAD.encode([0xff; 128]);
        let huge = URL_SAFE_NO_PAD.encode([0xff; 513]);
        for (key, part) in [
            (json!("text"), "not an object"),
            (json!({}), "kty is missing"),
            (json!({ "kty": 1 }), "kty is not a string"),
            (json!({ "kty": "OKP", "crv": "Ed25519", "x": "AA" }), "kty \"OKP\""),
            (with(&rsa, json!({ "use": "enc" })), "use is not sig"),
            (with(&rsa, json!({ "key_ops": ["encrypt"] })), "key_ops"),
            (with(&rsa, json!({ "key_ops": "verify" })), "key_ops"),
            (with(&rsa, json!({ "alg": "PS256" })), "alg is \"PS256\""),
            (with(&rsa, json!({ "alg": "HS256" })), "alg is \"HS256\""),
            (with(&rsa, json!({ "n": small })), "n has 1024 bits"),
            (with(&rsa, json!({ "n": huge })), "n has 4104 bits"),
            (with(&rsa, json!({ "n": "AA==" })), "n is not base64url"),
            (with(&rsa, json!({ "n": null })), "n is not a string"),
            (with(&rsa, json!({ "e": "AQ" })), "not an RSA public key"),
            (with(&rsa, json!({ "e": "Ag" })), "not an RSA public key"),
            (with(&rsa, json!({ "e": "" })), "not an RSA public key"),
            (with(&rsa, json!({ "kid": 7 })), "kid is not a string"),
            (with(&ec, json!({ "crv": "P-384" })), "crv is not P-256"),
            (with(&ec, json!({ "x": "AAAA" })), "32 bytes each"),
            // The y coordinate with its last bit flipped.
            (with(&ec, json!({ "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5aw" })), "no point on P-256"),
            (json!({ "kty": "oct", "k": "c2hvcnQ" }), "shorter than 32 bytes"),
        ] {
            let Err(KeyError::NoneUsable(warnings)) = read(&json!({ "keys": [key] }), &ALL) else {
                panic!("{key} was used")
            };
            assert!(warnings[0].contains(part), "{key}: {warnings:?}");
        }
    }

    #[test]
    fn a_set_keeps_what_is_usable_and_says_what_is_not() {
        let set = json!({ "keys": [mint::rsa_jwk(), mint::oct_jwk(), { "kty": "OKP" }] });
        let (keys, warnings) = read(&set, &[Algorithm::RS256, Algorithm::ES256]).unwrap();
        assert_eq!(keys.keys.len(), 1);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert!(
            warnings[0].contains("does not list HS256") && warnings[2].contains("no key for ES256"),
            "{warnings:?}"
        );
    }

    #[test]
    fn a_set_that_cannot_be_meant_is_refused() {
        let twice = json!({ "keys": [{ "kid": "k", "x": 1 }, mint::rsa_jwk(), mint::rsa_jwk()] });
        assert!(matches!(read(&twice, &ALL), Err(KeyError::DuplicateKid(kid)) if kid == "rsa"));
        let many: Vec<_> = (0..65).map(|_| mint::rsa_jwk()).collect();
        for set in [json!({}), json!({ "keys": {} }), json!({ "keys": [] }), json!({ "keys": many })] {
            assert!(matches!(read(&set, &ALL), Err(KeyError::Keys)));
        }
    }

    #[test]
    fn the_kid_chooses_the_key() {
        let set = json!({ "keys": [mint::rsa_jwk(), mint::ec_jwk(), mint::oct_jwk()] });
        let (keys, _) = read(&set, &ALL).unwrap();
        let (input, signature) = (b"input", mint::sign(Algorithm::ES256, b"input"));
        for (kid, algorithm, expected) in [
            (Some("ec"), Algorithm::ES256, Ok(())),
            (None, Algorithm::ES256, Ok(())),
            (Some("other"), Algorithm::ES256, Err(SignatureError::UnknownKey)),
            (Some("rsa"), Algorithm::ES256, Err(SignatureError::UnknownKey)),
            (Some("rsa"), Algorithm::RS256, Err(SignatureError::Mismatch)),
            (None, Algorithm::HS256, Err(SignatureError::Mismatch)),
        ] {
            assert_eq!(keys.verify(kid, algorithm, input, &signature), expected, "{kid:?} {algorithm}");
        }
    }
}
