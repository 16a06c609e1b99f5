//! The form of a token (RFC 7515, 7.1): three base64url parts, the first a header we understand.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::algorithm::Algorithm;
use crate::json;
use crate::rejection::Rejection;

/// Longest token, in bytes.
pub const MAX_TOKEN: usize = 8 * 1024;

/// A token in parts. Nothing in it is verified.
#[derive(Debug)]
pub struct Token<'a> {
    /// How it says it is signed.
    pub algorithm: Algorithm,
    /// The key it says it is signed with.
    pub kid: Option<String>,
    /// Its `typ`, in lower case and without `application/`.
    pub typ: Option<String>,
    /// What is signed: header, dot, payload, as they came.
    pub input: &'a str,
    /// The signature, in base64url.
    pub signature: &'a str,
    payload: &'a str,
}

impl<'a> Token<'a> {
    /// Takes a token apart and reads its header.
    ///
    /// Parameters that point to keys (`jku`, `jwk`, `x5u`, `x5c`) are ignored: keys come from the configuration alone.
    ///
    /// # Errors
    /// [`Rejection::TooLong`], [`Rejection::Malformed`], [`Rejection::Critical`], [`Rejection::Algorithm`].
    pub fn parse(token: &'a str) -> Result<Self, Rejection> {
        if token.len() > MAX_TOKEN {
            return Err(Rejection::TooLong);
        }
        let (input, signature) = token.rsplit_once('.').ok_or(Rejection::Malformed)?;
        let (header, payload) = input.split_once('.').ok_or(Rejection::Malformed)?;
        // A fourth part (an encrypted token has five) ends up in the payload.
        if payload.contains('.') {
            return Err(Rejection::Malformed);
        }

        let header = decode(header)?;
        if header.contains_key("crit") {
            return Err(Rejection::Critical);
        }
        let text = |name: &str| match header.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(Rejection::Malformed),
        };
        let algorithm = text("alg")?.ok_or(Rejection::Malformed)?;
        let algorithm = Algorithm::parse(&algorithm).ok_or(Rejection::Algorithm)?;
        let typ = text("typ")?.map(|typ| plain_typ(&typ));
        Ok(Self { algorithm, kid: text("kid")?, typ, input, signature, payload })
    }

    /// Reads the claims. Only to be believed when the signature was verified.
    ///
    /// # Errors
    /// [`Rejection::Malformed`].
    pub fn claims(&self) -> Result<Map<String, Value>, Rejection> {
        decode(self.payload)
    }
}

/// A `typ` as it is compared: without case, and `application/x` is `x` (RFC 7515, 4.1.9).
pub fn plain_typ(typ: &str) -> String {
    let typ = typ.to_ascii_lowercase();
    typ.strip_prefix("application/").map_or_else(|| typ.clone(), str::to_owned)
}

/// One part: base64url without padding and with nothing left over in the last character, holding one JSON object.
fn decode(part: &str) -> Result<Map<String, Value>, Rejection> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejection::Malformed)?;
    json::object(&bytes).map_err(|_| Rejection::Malformed)
}
