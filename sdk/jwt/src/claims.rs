//! What the claims of a verified token must be (RFC 7519, 4.1).

use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::rejection::Rejection;
use crate::select::Claim;

/// What a token says (RFC 7519, 4): about whom, by whom, until when, and whatever else its issuer has put in.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims(Map<String, Value>);

impl Claims {
    /// Whom the token is about: `sub`.
    pub fn subject(&self) -> Option<&str> {
        self.text("sub")
    }

    /// A claim by its name, or by a JSON pointer (RFC 6901) when that begins with `/`: `/realm_access/roles`. `None`: absent or null.
    pub fn get(&self, claim: &str) -> Option<&Value> {
        Claim::new(claim).find(&self.0)
    }

    /// A claim that is a text.
    pub fn text(&self, claim: &str) -> Option<&str> {
        self.get(claim)?.as_str()
    }

    /// Whether a claim is this text, is a list that holds it, or is the claim `scope` and has it among its words (RFC 8693, 4.2).
    pub fn has(&self, claim: &str, value: &str) -> bool {
        Requirement { claim: Claim::new(claim), values: vec![value.into()] }.met(&self.0)
    }

    /// All claims as a type of the caller's.
    ///
    /// # Errors
    /// They are not of this form.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        T::deserialize(&self.0)
    }

    /// All of them.
    pub fn all(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl From<Map<String, Value>> for Claims {
    fn from(claims: Map<String, Value>) -> Self {
        Self(claims)
    }
}

/// The rules.
#[derive(Clone, Debug)]
pub struct ClaimRules {
    /// `iss` must be one of these; `None`: anything.
    pub issuers: Option<Vec<String>>,
    /// `aud` must hold one of these; `None`: there must be no `aud`.
    pub audiences: Option<Vec<String>>,
    /// `aud` is not looked at.
    pub ignore_audience: bool,
    /// How far clocks may differ.
    pub leeway: Duration,
    /// `exp` must be there.
    pub require_exp: bool,
    /// What else must be there.
    pub required: Vec<Requirement>,
}

/// A claim that must be there, with one of these values or (when there are none) any.
#[derive(Clone, Debug)]
pub struct Requirement {
    /// The claim.
    pub claim: Claim,
    /// The accepted values; empty: any but null.
    pub values: Vec<Value>,
}

/// The times of a token, in seconds since the Unix epoch (RFC 7519, 2: fractions are allowed).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Times {
    expires: Option<f64>,
    not_before: Option<f64>,
    issued: Option<f64>,
}

impl ClaimRules {
    /// Checks everything that does not change with the time.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self, claims: &Map<String, Value>) -> Result<(), Rejection> {
        if let Some(issuers) = &self.issuers
            && !claims
                .get("iss")
                .and_then(Value::as_str)
                .is_some_and(|issuer| issuers.iter().any(|known| known == issuer))
        {
            return Err(Rejection::Issuer);
        }
        if !self.ignore_audience {
            self.check_audience(claims.get("aud"))?;
        }
        if !self.required.iter().all(|requirement| requirement.met(claims)) {
            return Err(Rejection::RequiredClaim);
        }
        Ok(())
    }

    fn check_audience(&self, audience: Option<&Value>) -> Result<(), Rejection> {
        let named: Vec<&str> = match audience {
            None => Vec::new(),
            Some(Value::String(one)) => vec![one],
            Some(Value::Array(several)) => {
                several.iter().map(|one| one.as_str().ok_or(Rejection::Malformed)).collect::<Result<_, _>>()?
            }
            Some(_) => return Err(Rejection::Malformed),
        };
        let accepted = match &self.audiences {
            Some(ours) => named.iter().any(|name| ours.iter().any(|our| our == name)),
            None => named.is_empty(),
        };
        if accepted { Ok(()) } else { Err(Rejection::Audience) }
    }

    /// Checks the times of a token at `now` (time since the Unix epoch).
    ///
    /// # Errors
    /// [`Rejection::NoExpiry`], [`Rejection::Expired`], [`Rejection::NotYet`], [`Rejection::FutureIssue`].
    pub fn check_times(&self, times: Times, now: Duration) -> Result<(), Rejection> {
        let (now, leeway) = (now.as_secs_f64(), self.leeway.as_secs_f64());
        match times.expires {
            // RFC 7519, 4.1.4: not "on or after" this time.
            Some(expires) if now >= expires + leeway => return Err(Rejection::Expired),
            None if self.require_exp => return Err(Rejection::NoExpiry),
            _ => {}
        }
        if times.not_before.is_some_and(|not_before| now + leeway < not_before) {
            return Err(Rejection::NotYet);
        }
        if times.issued.is_some_and(|issued| now + leeway < issued) {
            return Err(Rejection::FutureIssue);
        }
        Ok(())
    }
}

impl Times {
    /// Reads `exp`, `nbf` and `iat`. A time that is not a number (`"exp": "1300819380"`) is an error, not an absent time.
    ///
    /// # Errors
    /// [`Rejection::Malformed`].
    pub fn read(claims: &Map<String, Value>) -> Result<Self, Rejection> {
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(Rejection::Malformed),
        };
        Ok(Self { expires: time("exp")?, not_before: time("nbf")?, issued: time("iat")? })
    }
}

impl Requirement {
    fn met(&self, claims: &Map<String, Value>) -> bool {
        let Some(found) = self.claim.find(claims) else { return false };
        if self.values.is_empty() {
            return true;
        }
        match found {
            Value::Array(elements) => elements.iter().any(|element| self.values.contains(element)),
            // RFC 8693, 4.2: a list of words with spaces between them.
            Value::String(words) if self.claim == Claim::Name("scope".to_owned()) => {
                words.split(' ').any(|word| self.values.iter().any(|value| value == word))
            }
            value => self.values.contains(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn rules() -> ClaimRules {
        ClaimRules {
            issuers: None,
            audiences: None,
            ignore_audience: false,
            leeway: Duration::from_secs(30),
            require_exp: true,
            required: Vec::new(),
        }
    }

    fn check(rules: &ClaimRules, claims: &Value) -> Result<(), Rejection> {
        let claims = claims.as_object().unwrap();
        rules.check(claims).and_then(|()| rules.check_times(Times::read(claims)?, Duration::from_secs(NOW)))
    }

    #[test]
    fn times_are_checked_with_leeway() {
        use Rejection::{Expired, FutureIssue, Malformed, NoExpiry, NotYet};
        for (claims, expected) in [
            (json!({ "exp": NOW + 1 }), Ok(())),
            (json!({ "exp": NOW - 29 }), Ok(())),
            (json!({ "exp": NOW - 30 }), Err(Expired)),
            (json!({ "exp": 1_799_999_970.5 }), Ok(())),
            (json!({ "exp": 1_799_999_969.5 }), Err(Expired)),
            (json!({ "exp": -1 }), Err(Expired)),
            (json!({ "exp": 0 }), Err(Expired)),
            (json!({ "exp": 1e300 }), Ok(())),
            (json!({ "exp": u64::MAX }), Ok(())),
            (json!({ "exp": "1900000000" }), Err(Malformed)),
            (json!({ "exp": null }), Err(Malformed)),
            (json!({ "exp": [1_900_000_000] }), Err(Malformed)),
            (json!({ "exp": true }), Err(Malformed)),
            (json!({}), Err(NoExpiry)),
            (json!({ "exp": NOW + 60, "nbf": NOW + 30 }), Ok(())),
            (json!({ "exp": NOW + 60, "nbf": NOW + 31 }), Err(NotYet)),
            (json!({ "exp": NOW + 60, "nbf": "0" }), Err(Malformed)),
            (json!({ "exp": NOW + 60, "iat": NOW + 30 }), Ok(())),
            (json!({ "exp": NOW + 60, "iat": NOW + 31 }), Err(FutureIssue)),
            (json!({ "exp": NOW + 60, "iat": {} }), Err(Malformed)),
        ] {
            assert_eq!(check(&rules(), &claims), expected, "{claims}");
        }
        let lenient = ClaimRules { require_exp: false, ..rules() };
        assert_eq!(check(&lenient, &json!({})), Ok(()));
        assert_eq!(check(&lenient, &json!({ "exp": NOW - 30 })), Err(Expired));
    }

    #[test]
    fn issuer_and_audience() {
        use Rejection::{Audience, Issuer, Malformed};
        let list = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        let any = ClaimRules { require_exp: false, ..rules() };
        let issuer = ClaimRules { issuers: list(&["a", "b"]), ..any.clone() };
        let audience = ClaimRules { audiences: list(&["api", "web"]), ..any.clone() };
        let ignored = ClaimRules { ignore_audience: true, ..any.clone() };
        for (rules, claims, expected) in [
            (&any, json!({ "iss": "x" }), Ok(())),
            (&issuer, json!({ "iss": "b" }), Ok(())),
            (&issuer, json!({ "iss": "B" }), Err(Issuer)),
            (&issuer, json!({ "iss": ["a"] }), Err(Issuer)),
            (&issuer, json!({}), Err(Issuer)),
            (&any, json!({ "aud": "api" }), Err(Audience)),
            (&any, json!({ "aud": [] }), Ok(())),
            (&ignored, json!({ "aud": "api" }), Ok(())),
            (&audience, json!({ "aud": "api" }), Ok(())),
            (&audience, json!({ "aud": ["x", "web"] }), Ok(())),
            (&audience, json!({ "aud": "apis" }), Err(Audience)),
            (&audience, json!({ "aud": [] }), Err(Audience)),
            (&audience, json!({}), Err(Audience)),
            (&audience, json!({ "aud": ["api", 7] }), Err(Malformed)),
            (&audience, json!({ "aud": { "api": true } }), Err(Malformed)),
        ] {
            assert_eq!(check(rules, &claims), expected, "{claims}");
        }
    }

    #[test]
    fn required_claims() {
        let need = |claim: &str, values: &[Value]| ClaimRules {
            require_exp: false,
            required: vec![Requirement { claim: Claim::new(claim), values: values.to_vec() }],
            ..rules()
        };
        for (rules, claims, met) in [
            (need("sub", &[]), json!({ "sub": "ann" }), true),
            (need("sub", &[]), json!({ "sub": null }), false),
            (need("sub", &[]), json!({}), false),
            (need("tier", &[json!("gold"), json!(1)]), json!({ "tier": "gold" }), true),
            (need("tier", &[json!("gold"), json!(1)]), json!({ "tier": 1 }), true),
            (need("tier", &[json!("gold")]), json!({ "tier": "golden" }), false),
            (need("tier", &[json!("gold")]), json!({ "tier": "silver gold" }), false),
            (need("roles", &[json!("admin")]), json!({ "roles": ["user", "admin"] }), true),
            (need("roles", &[json!("admin")]), json!({ "roles": ["user"] }), false),
            (need("/realm/roles", &[json!("admin")]), json!({ "realm": { "roles": ["admin"] } }), true),
            (need("scope", &[json!("write")]), json!({ "scope": "read write" }), true),
            (need("scope", &[json!("write")]), json!({ "scope": "read writer" }), false),
            (need("scope", &[json!("write")]), json!({ "scope": ["write"] }), true),
        ] {
            assert_eq!(check(&rules, &claims), if met { Ok(()) } else { Err(Rejection::RequiredClaim) }, "{claims}");
        }
    }
}
