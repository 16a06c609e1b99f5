//! From a token to what it says, or to a reason why not.

use std::cell::RefCell;
use std::ops::Deref;
use std::rc::Rc;
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::cache::Cache;
use crate::claims::{ClaimRules, Claims, Times};
use crate::keys::{KeySet, SignatureError};
use crate::rejection::Rejection;
use crate::token::{MAX_TOKEN, Token, plain_typ};

/// What a verifier goes by.
#[derive(Clone)]
pub struct Rules {
    /// The keys.
    pub keys: KeySet,
    /// What the claims must be.
    pub claims: ClaimRules,
    /// Accepted `typ`, compared without case and without `application/`; `None`: any, and none.
    pub typ: Option<String>,
    /// How many verified tokens are remembered; 0: none.
    pub cache_entries: usize,
}

/// Verifies tokens, and remembers what it has read in those that it has verified: a `T`, the [`Claims`] themselves by default.
pub struct Verifier<T = Claims> {
    keys: RefCell<KeySet>,
    claims: ClaimRules,
    typ: Option<String>,
    read: Box<dyn Fn(Claims) -> Result<T, Rejection>>,
    verified: RefCell<Cache<Verified<T>>>,
}

/// What is known of a token with a good signature and good claims. Only its times can make it invalid later.
#[derive(Debug, PartialEq)]
pub struct Verified<T = Claims> {
    value: T,
    times: Times,
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl Verifier {
    /// A verifier that gives the claims.
    pub fn new(rules: Rules) -> Self {
        Self::reading(rules, Ok)
    }
}

impl<T> Verifier<T> {
    /// A verifier that gives what this function reads in the claims, once for each token that is remembered.
    pub fn reading(rules: Rules, read: impl Fn(Claims) -> Result<T, Rejection> + 'static) -> Self {
        Self {
            keys: RefCell::new(rules.keys),
            claims: rules.claims,
            typ: rules.typ.map(|typ| plain_typ(&typ)),
            read: Box::new(read),
            verified: RefCell::new(Cache::new(rules.cache_entries)),
        }
    }

    /// Other keys from now on. All tokens are forgotten: the key of one may be gone.
    pub fn set_keys(&self, keys: KeySet) {
        self.keys.replace(keys);
        self.verified.borrow_mut().clear();
    }

    /// Checks a token at `now` (time since the Unix epoch).
    ///
    /// # Errors
    /// The first check that fails: form, algorithm and key, signature, claims, times.
    pub fn verify(&self, token: &str, now: Duration) -> Result<Rc<Verified<T>>, Rejection> {
        if token.len() > MAX_TOKEN {
            return Err(Rejection::TooLong);
        }
        let digest = Sha256::digest(token).into();
        let known = self.verified.borrow_mut().get(&digest);
        if let Some(known) = known {
            return match self.claims.check_times(known.times, now) {
                Ok(()) => Ok(known),
                Err(rejection) => {
                    self.verified.borrow_mut().remove(&digest);
                    Err(rejection)
                }
            };
        }

        let verified = Rc::new(self.verify_anew(token, now)?);
        self.verified.borrow_mut().insert(digest, verified.clone());
        Ok(verified)
    }

    fn verify_anew(&self, token: &str, now: Duration) -> Result<Verified<T>, Rejection> {
        let token = Token::parse(token)?;
        if self.typ.is_some() && token.typ != self.typ {
            return Err(Rejection::Type);
        }
        let keys = self.keys.borrow();
        keys.verify(token.kid.as_deref(), token.algorithm, token.input.as_bytes(), token.signature).map_err(
            |error| match error {
                SignatureError::UnknownKey => Rejection::UnknownKey,
                SignatureError::Mismatch => Rejection::Signature,
            },
        )?;

        let claims = token.claims()?;
        let times = Times::read(&claims)?;
        self.claims.check_times(times, now)?;
        self.claims.check(&claims)?;
        Ok(Verified { value: (self.read)(claims.into())?, times })
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::{Value, json};

    use super::*;
    use crate::algorithm::Algorithm;
    use crate::mint;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    const ALL: [Algorithm; 3] = [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256];

    fn rules(keys: KeySet) -> Rules {
        let claims = ClaimRules {
            issuers: None,
            audiences: None,
            ignore_audience: false,
            leeway: Duration::from_secs(30),
            require_exp: true,
            required: Vec::new(),
        };
        Rules { keys, claims, typ: None, cache_entries: 1024 }
    }

    fn keys(set: &Value, allowed: &[Algorithm]) -> KeySet {
        KeySet::from_text(set.to_string().as_bytes(), allowed).unwrap().0
    }

    /// All three keys, by name.
    fn all_keys() -> KeySet {
        keys(&json!({ "keys": [mint::oct_jwk(), mint::rsa_jwk(), mint::ec_jwk()] }), &ALL)
    }

    /// Reads the subject, which must be fit for a header.
    fn verifier(rules: Rules) -> Verifier<Option<String>> {
        Verifier::reading(rules, |claims| {
            let subject = claims.subject().map(str::to_owned);
            if subject.iter().any(|text| text.chars().any(char::is_control)) {
                return Err(Rejection::Unforwardable);
            }
            Ok(subject)
        })
    }

    fn claims() -> Value {
        json!({ "sub": "ann", "exp": NOW.as_secs() + 60 })
    }

    fn check(verifier: &Verifier<Option<String>>, token: &str) -> Result<Option<String>, Rejection> {
        verifier.verify(token, NOW).map(|verified| (**verified).clone())
    }

    /// RFC 7515, A.1 to A.3: somebody else's tokens. They expired in 2011, which also shows that the time is checked last.
    #[test]
    fn the_examples_of_rfc_7515_verify() {
        for (name, key, algorithm, token) in [
            ("A.1", mint::oct_jwk(), Algorithm::HS256, mint::RFC_7515_A1),
            ("A.2", mint::rsa_jwk(), Algorithm::RS256, mint::RFC_7515_A2),
            ("A.3", mint::ec_jwk(), Algorithm::ES256, mint::RFC_7515_A3),
        ] {
            let verifier = verifier(rules(keys(&json!({ "keys": [key] }), &[algorithm])));
            assert!(verifier.verify(token, Duration::from_secs(1_300_819_379)).is_ok(), "{name}");
            assert!(verifier.verify(token, Duration::from_secs(1_300_819_409)).is_ok(), "{name}: within the leeway");
            assert_eq!(verifier.verify(token, Duration::from_secs(1_300_819_410)), Err(Rejection::Expired), "{name}");
            // One bit of the signature.
            let last = if token.ends_with('A') { 'E' } else { 'A' };
            let broken = format!("{}{}{}", &token[..token.len() - 3], last, &token[token.len() - 2..]);
            assert_ne!(broken, token);
            assert_eq!(
                verifier.verify(&broken, Duration::from_secs(1_300_819_379)),
                Err(Rejection::Signature),
                "{name}"
            );
        }
    }

    #[test]
    fn good_tokens_of_every_algorithm_are_accepted() {
        let verifier = verifier(rules(all_keys()));
        for algorithm in [Algorithm::HS256, Algorithm::RS256, Algorithm::ES256] {
            for header in [mint::header(algorithm), json!({ "alg": algorithm.to_string() })] {
                let token = mint::token(algorithm, &header, &claims());
                assert_eq!(check(&verifier, &token), Ok(Some("ann".to_owned())), "{header}");
                assert_eq!(check(&verifier, &token), Ok(Some("ann".to_owned())), "{header}, again");
            }
        }
        // The library that the customer knows accepts the same tokens: we are stricter, never laxer, and agree on the good ones.
        let token = mint::token(Algorithm::ES256, &mint::header(Algorithm::ES256), &claims());
        let key = jsonwebtoken::DecodingKey::from_ec_components(
            mint::ec_jwk()["x"].as_str().unwrap(),
            mint::ec_jwk()["y"].as_str().unwrap(),
        );
        let validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::ES256);
        let decoded = jsonwebtoken::decode::<Value>(&token, &key.unwrap(), &validation);
        assert_eq!(decoded.unwrap().claims["sub"], "ann");
    }

    #[test]
    fn forged_tokens_are_refused() {
        use Algorithm::{ES256, HS256, RS256};
        let verifier = verifier(rules(all_keys()));
        let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
        let raw = |header: &str, payload: &str, signature: &str| {
            format!("{}.{}.{signature}", encode(header), encode(payload))
        };
        let payload = claims().to_string();
        let with = |algorithm: Algorithm, extra: Value| {
            let mut header = mint::header(algorithm);
            header.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            mint::token(algorithm, &header, &claims())
        };
        let good = mint::token(ES256, &mint::header(ES256), &claims());
        let (good_input, good_signature) = good.rsplit_once('.').unwrap();
        let other = encode(&json!({ "sub": "root", "exp": NOW.as_secs() + 60 }).to_string());
        // HMAC over the input with what an attacker knows: the public key, as JWK text and as its modulus.
        let confused = |key: &[u8]| {
            let input = format!("{}.{}", encode(r#"{"alg":"HS256","kid":"rsa"}"#), encode(&payload));
            format!("{input}.{}", mint::hmac(key, input.as_bytes()))
        };
        let zeros = URL_SAFE_NO_PAD.encode([0; 64]);

        for (name, token, expected) in [
            ("empty", String::new(), Rejection::Malformed),
            ("one part", "abc".to_owned(), Rejection::Malformed),
            ("two parts", good_input.to_owned(), Rejection::Malformed),
            ("four parts", format!("{good}.x"), Rejection::Malformed),
            ("five parts, as an encrypted token", "e30.e30.e30.e30.e30".to_owned(), Rejection::Malformed),
            ("alg none, unsigned", raw(r#"{"alg":"none"}"#, &payload, ""), Rejection::Algorithm),
            ("alg None", raw(r#"{"alg":"None"}"#, &payload, ""), Rejection::Algorithm),
            ("alg none with a signature", raw(r#"{"alg":"none"}"#, &payload, good_signature), Rejection::Algorithm),
            ("alg missing", raw("{}", &payload, good_signature), Rejection::Malformed),
            ("alg a list", raw(r#"{"alg":["ES256"]}"#, &payload, good_signature), Rejection::Malformed),
            ("alg in lower case", raw(r#"{"alg":"es256"}"#, &payload, good_signature), Rejection::Algorithm),
            ("alg that is not supported", raw(r#"{"alg":"PS256"}"#, &payload, good_signature), Rejection::Algorithm),
            ("alg twice", raw(r#"{"alg":"none","alg":"ES256"}"#, &payload, good_signature), Rejection::Malformed),
            (
                "HS256 with the RSA modulus",
                confused(&URL_SAFE_NO_PAD.decode(mint::rsa_jwk()["n"].as_str().unwrap()).unwrap()),
                Rejection::UnknownKey,
            ),
            ("HS256 with the RSA key as text", confused(mint::rsa_jwk().to_string().as_bytes()), Rejection::UnknownKey),
            (
                "HS256 with an empty key and no kid",
                {
                    let input = format!("{}.{}", encode(r#"{"alg":"HS256"}"#), encode(&payload));
                    format!("{input}.{}", mint::hmac(b"", input.as_bytes()))
                },
                Rejection::Signature,
            ),
            ("ES256 token under the kid of the RSA key", with(ES256, json!({ "kid": "rsa" })), Rejection::UnknownKey),
            (
                "RS256 named, signed with ES256",
                raw(r#"{"alg":"RS256","kid":"rsa"}"#, &payload, good_signature),
                Rejection::Signature,
            ),
            ("unknown kid", with(ES256, json!({ "kid": "../../dev/null" })), Rejection::UnknownKey),
            ("kid with SQL", with(ES256, json!({ "kid": "x' UNION SELECT 'ec" })), Rejection::UnknownKey),
            ("kid with NUL", with(ES256, json!({ "kid": "ec\u{0}" })), Rejection::UnknownKey),
            ("kid empty", with(ES256, json!({ "kid": "" })), Rejection::UnknownKey),
            ("kid a number", with(ES256, json!({ "kid": 1 })), Rejection::Malformed),
            ("crit", with(ES256, json!({ "crit": ["exp"], "exp": 1 })), Rejection::Critical),
            ("crit with b64", with(ES256, json!({ "crit": ["b64"], "b64": false })), Rejection::Critical),
            ("crit empty", with(ES256, json!({ "crit": [] })), Rejection::Critical),
            ("embedded key", with(HS256, json!({ "kid": "attacker", "jwk": mint::oct_jwk() })), Rejection::UnknownKey),
            ("no signature", format!("{good_input}."), Rejection::Signature),
            (
                "another payload under a good signature",
                {
                    let (header, _) = good_input.split_once('.').unwrap();
                    format!("{header}.{other}.{good_signature}")
                },
                Rejection::Signature,
            ),
            ("signature of zeros (r = s = 0)", format!("{good_input}.{zeros}"), Rejection::Signature),
            ("signature cut short", format!("{good_input}.{}", &good_signature[..84]), Rejection::Signature),
            ("signature with something behind it", format!("{good_input}.{good_signature}AA"), Rejection::Signature),
            ("signature with padding", format!("{good}=="), Rejection::Signature),
            ("signature with a line end", format!("{good}\n"), Rejection::Signature),
            ("signature in standard base64", format!("{good_input}.{}", "+/".repeat(43)), Rejection::Signature),
            (
                "signature as DER",
                format!("{good_input}.{}", URL_SAFE_NO_PAD.encode([0x30, 6, 2, 1, 1, 2, 1, 1])),
                Rejection::Signature,
            ),
            (
                "header with padding",
                format!("{}=.{}.{good_signature}", encode(r#"{"alg":"ES256"}"#), encode(&payload)),
                Rejection::Malformed,
            ),
            ("header that is not base64", format!("!!.{}.{good_signature}", encode(&payload)), Rejection::Malformed),
            ("header that is a list", raw("[]", &payload, good_signature), Rejection::Malformed),
            ("white space before it", format!(" {good}"), Rejection::Malformed),
            ("payload that is a list", mint::token(RS256, &mint::header(RS256), &json!([1])), Rejection::Malformed),
            (
                "payload that is a text (a nested token)",
                mint::token(HS256, &mint::header(HS256), &json!(good)),
                Rejection::Malformed,
            ),
            (
                "claims twice",
                mint::raw_token(HS256, r#"{"alg":"HS256"}"#, r#"{"sub":"ann","sub":"root","exp":1900000000}"#),
                Rejection::Malformed,
            ),
            (
                "exp out of range",
                mint::raw_token(HS256, r#"{"alg":"HS256"}"#, r#"{"exp":1e400}"#),
                Rejection::Malformed,
            ),
            (
                "exp a text",
                mint::token(HS256, &mint::header(HS256), &json!({ "exp": "1900000000" })),
                Rejection::Malformed,
            ),
            (
                "something behind the claims",
                mint::raw_token(HS256, r#"{"alg":"HS256"}"#, "{\"exp\":1900000000}{}"),
                Rejection::Malformed,
            ),
            (
                "deep claims",
                mint::raw_token(
                    HS256,
                    r#"{"alg":"HS256"}"#,
                    &format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500)),
                ),
                Rejection::Malformed,
            ),
            (
                "expired",
                mint::token(ES256, &mint::header(ES256), &json!({ "exp": NOW.as_secs() - 30 })),
                Rejection::Expired,
            ),
            ("without exp", mint::token(ES256, &mint::header(ES256), &json!({ "sub": "ann" })), Rejection::NoExpiry),
            (
                "not yet valid",
                mint::token(
                    ES256,
                    &mint::header(ES256),
                    &json!({ "exp": NOW.as_secs() + 99, "nbf": NOW.as_secs() + 31 }),
                ),
                Rejection::NotYet,
            ),
            (
                "for somebody else",
                mint::token(ES256, &mint::header(ES256), &json!({ "exp": NOW.as_secs() + 99, "aud": "x" })),
                Rejection::Audience,
            ),
            (
                "header injection",
                mint::token(
                    HS256,
                    &mint::header(HS256),
                    &json!({ "exp": NOW.as_secs() + 99, "sub": "a\r\nx-admin: 1" }),
                ),
                Rejection::Unforwardable,
            ),
            ("too long", format!("{good_input}.{}", "A".repeat(MAX_TOKEN)), Rejection::TooLong),
        ] {
            assert_eq!(check(&verifier, &token), Err(expected), "{name}");
            assert_eq!(check(&verifier, &token), Err(expected), "{name}, again: a refused token is not remembered");
        }
    }

    /// What base64 leaves open: the last character holds bits that mean nothing. Two spellings of one token must not both be good.
    #[test]
    fn a_signature_has_one_spelling() {
        let verifier = verifier(rules(all_keys()));
        let token = mint::token(Algorithm::HS256, &mint::header(Algorithm::HS256), &claims());
        let (rest, last) = token.split_at(token.len() - 1);
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        for other in alphabet.chars().filter(|other| !last.starts_with(*other)) {
            assert_eq!(check(&verifier, &format!("{rest}{other}")), Err(Rejection::Signature), "{other} for {last}");
        }
        assert!(check(&verifier, &token).is_ok());
    }

    /// No change of a single character of a good token gives another good token.
    #[test]
    fn every_character_of_a_token_counts() {
        let verifier = verifier(rules(all_keys()));
        let token = mint::token(Algorithm::HS256, &mint::header(Algorithm::HS256), &claims());
        for at in 0..token.len() {
            for other in ["A", "b", "_", ".", "=", "\u{e9}"] {
                if token[at..].starts_with(other) {
                    continue;
                }
                let forged = format!("{}{other}{}", &token[..at], &token[at + 1..]);
                assert!(check(&verifier, &forged).is_err(), "{other} at {at}");
            }
        }
    }

    #[test]
    fn an_allow_list_without_the_algorithm_refuses_it() {
        let set = json!({ "keys": [mint::oct_jwk(), mint::rsa_jwk(), mint::ec_jwk()] });
        let only_rsa = verifier(rules(keys(&set, &[Algorithm::RS256])));
        for (algorithm, expected) in [
            (Algorithm::RS256, None),
            (Algorithm::ES256, Some(Rejection::UnknownKey)),
            (Algorithm::HS256, Some(Rejection::UnknownKey)),
        ] {
            for header in [mint::header(algorithm), json!({ "alg": algorithm.to_string() })] {
                assert_eq!(check(&only_rsa, &mint::token(algorithm, &header, &claims())).err(), expected, "{header}");
            }
        }
    }

    #[test]
    fn a_secret_verifies_whatever_kid_a_token_names() {
        let secret = verifier(rules(KeySet::from_secret(mint::TEXT_SECRET.as_bytes()).unwrap()));
        for header in [json!({ "alg": "HS256" }), json!({ "alg": "HS256", "kid": "any" })] {
            let input = format!(
                "{}.{}",
                URL_SAFE_NO_PAD.encode(header.to_string()),
                URL_SAFE_NO_PAD.encode(claims().to_string())
            );
            let token = format!("{input}.{}", mint::hmac(mint::TEXT_SECRET.as_bytes(), input.as_bytes()));
            assert!(check(&secret, &token).is_ok(), "{header}");
        }
        let rsa = mint::token(Algorithm::RS256, &mint::header(Algorithm::RS256), &claims());
        assert_eq!(check(&secret, &rsa), Err(Rejection::UnknownKey));
    }

    #[test]
    fn the_type_is_checked_when_configured() {
        let verifier = verifier(Rules { typ: Some("application/AT+JWT".into()), ..rules(all_keys()) });
        for (typ, good) in
            [(Some("at+jwt"), true), (Some("application/at+jwt"), true), (Some("JWT"), false), (None, false)]
        {
            let mut header = mint::header(Algorithm::HS256);
            if let Some(typ) = typ {
                header["typ"] = json!(typ);
            }
            let token = mint::token(Algorithm::HS256, &header, &claims());
            assert_eq!(check(&verifier, &token).err(), (!good).then_some(Rejection::Type), "{typ:?}");
        }
    }

    #[test]
    fn a_remembered_token_expires_all_the_same() {
        let verifier = verifier(rules(all_keys()));
        let token = mint::token(Algorithm::ES256, &mint::header(Algorithm::ES256), &claims());
        for (seconds, good) in [(0, true), (89, true), (90, false), (91, false), (0, true)] {
            assert_eq!(verifier.verify(&token, NOW + Duration::from_secs(seconds)).is_ok(), good, "after {seconds} s");
        }
    }

    #[test]
    fn other_keys_forget_what_the_old_ones_have_verified() {
        let verifier = verifier(rules(all_keys()));
        let token = mint::token(Algorithm::ES256, &mint::header(Algorithm::ES256), &claims());
        assert!(check(&verifier, &token).is_ok());
        verifier.set_keys(keys(&json!({ "keys": [mint::rsa_jwk()] }), &ALL));
        assert_eq!(check(&verifier, &token), Err(Rejection::UnknownKey));
        verifier.set_keys(KeySet::default());
        assert_eq!(check(&verifier, &token), Err(Rejection::UnknownKey), "no keys, no tokens");
        verifier.set_keys(all_keys());
        assert!(check(&verifier, &token).is_ok());
    }

    #[test]
    fn claims_are_read_by_name_by_pointer_and_as_a_type() {
        let verifier = Verifier::new(rules(all_keys()));
        let said =
            json!({ "sub": "ann", "exp": NOW.as_secs() + 60, "scope": "read write", "realm": { "roles": ["a", "b"] } });
        let token = mint::token(Algorithm::HS256, &mint::header(Algorithm::HS256), &said);
        let claims = verifier.verify(&token, NOW).unwrap();
        assert_eq!(
            (claims.subject(), claims.text("scope"), claims.text("none")),
            (Some("ann"), Some("read write"), None)
        );
        assert!(claims.has("scope", "write") && !claims.has("scope", "writ") && claims.has("sub", "ann"));
        assert!(claims.has("/realm/roles", "b") && !claims.has("/realm/roles", "c") && !claims.has("none", "x"));
        assert_eq!((claims.get("/realm/roles/0"), claims.all().len()), (Some(&json!("a")), 4));

        #[derive(serde::Deserialize)]
        struct Ours {
            sub: String,
        }
        assert_eq!(claims.read::<Ours>().unwrap().sub, "ann");
        assert!(claims.read::<Vec<u8>>().is_err());
    }
}
