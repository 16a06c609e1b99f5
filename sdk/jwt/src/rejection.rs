//! Why a request is refused, and how the client is told (RFC 6750, 3).

use serde::Serialize;

/// Why a request is refused.
///
/// The texts go to the client as `error_description`, so they hold nothing it sent and only characters that RFC 6750, 3 allows there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No token at all.
    #[error("a token is needed")]
    Missing,
    /// Several tokens, or several fields that could hold one.
    #[error("more than one token was sent")]
    Repeated,
    /// Longer than 8 KiB.
    #[error("the token is too long")]
    TooLong,
    /// Not three base64url parts that hold JSON objects.
    #[error("the token is malformed")]
    Malformed,
    /// A header parameter that must be understood, and is not (RFC 7515, 4.1.11).
    #[error("the token uses extensions that are not supported")]
    Critical,
    /// An algorithm that is not accepted, `none` included.
    #[error("the token is signed with an algorithm that is not accepted")]
    Algorithm,
    /// A token made for another use.
    #[error("the token is of another type")]
    Type,
    /// No key for it.
    #[error("the token is signed with an unknown key")]
    UnknownKey,
    /// The signature is another.
    #[error("the signature is wrong")]
    Signature,
    /// Too late.
    #[error("the token has expired")]
    Expired,
    /// No end.
    #[error("the token does not expire")]
    NoExpiry,
    /// Too early.
    #[error("the token is not valid yet")]
    NotYet,
    /// From the future.
    #[error("the token was issued in the future")]
    FutureIssue,
    /// From somebody else.
    #[error("the token has another issuer")]
    Issuer,
    /// For somebody else.
    #[error("the token is for another audience")]
    Audience,
    /// Lacks something.
    #[error("the token lacks a required claim")]
    RequiredClaim,
    /// A claim that is to be forwarded and cannot stand in a header.
    #[error("a claim of the token cannot be passed on")]
    Unforwardable,
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

impl Rejection {
    /// 401; 400 for a request that carries several tokens (RFC 6750, 3.1).
    pub fn status(self) -> u16 {
        match self {
            Self::Repeated => 400,
            _ => 401,
        }
    }

    /// The value of `WWW-Authenticate`. A request without any token is told no error (RFC 6750, 3.1).
    pub fn challenge(self, realm: &str) -> String {
        let error = match self {
            Self::Missing => return format!("Bearer realm=\"{realm}\""),
            Self::Repeated => "invalid_request",
            _ => "invalid_token",
        };
        format!("Bearer realm=\"{realm}\", error=\"{error}\", error_description=\"{self}\"")
    }

    /// The problem document.
    pub fn problem(self) -> Problem {
        let status = self.status();
        let title = if status == 400 { "Bad Request" } else { "Unauthorized" };
        Problem { kind: "about:blank", title, status, detail: self.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_challenge_has_the_form_of_rfc_6750() {
        for (rejection, status, challenge) in [
            (Rejection::Missing, 401, "Bearer realm=\"shop\""),
            (
                Rejection::Expired,
                401,
                "Bearer realm=\"shop\", error=\"invalid_token\", error_description=\"the token has expired\"",
            ),
            (
                Rejection::Repeated,
                400,
                "Bearer realm=\"shop\", error=\"invalid_request\", error_description=\"more than one token was sent\"",
            ),
        ] {
            assert_eq!((rejection.status(), rejection.challenge("shop").as_str()), (status, challenge));
        }
    }
}
