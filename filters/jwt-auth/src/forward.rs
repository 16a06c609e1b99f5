//! Claims as request headers for the origin.

use selvedge_sdk::jwt::{Claim, Claims, Rejection};
use serde_json::Value;

/// Which claims go into which headers (lower case).
#[derive(Clone, Debug, Default)]
pub struct Forward {
    /// Claim and header.
    pub claims: Vec<(Claim, String)>,
}

impl Forward {
    /// The headers that these claims make, in the order of the configuration. An absent claim, and an empty one, makes none.
    ///
    /// # Errors
    /// [`Rejection::Unforwardable`] when a value would not arrive as it is.
    pub fn headers(&self, claims: &Claims) -> Result<Vec<(String, String)>, Rejection> {
        let mut headers = Vec::new();
        for (claim, header) in &self.claims {
            let Some(value) = claim.find(claims.all()) else { continue };
            let value = header_value(value).ok_or(Rejection::Unforwardable)?;
            if !value.is_empty() {
                headers.push((header.clone(), value));
            }
        }
        Ok(headers)
    }

    /// Whether a header that a client sent could be taken for one of ours by an origin: many servers fold case and read `_` as `-`.
    pub fn is_forged_by(&self, sent: &str) -> bool {
        let fold = |byte: u8| if byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
        self.claims.iter().any(|(_, ours)| {
            sent.len() == ours.len() && sent.bytes().zip(ours.bytes()).all(|(sent, ours)| fold(sent) == fold(ours))
        })
    }
}

/// A value as a header; `None` when it would arrive as something else: control characters, spaces at the ends (they are cut off on
/// the way, so `"admin "` would arrive as `admin`), a comma inside a list's element, an object.
fn header_value(value: &Value) -> Option<String> {
    let plain = |text: &str| !text.chars().any(char::is_control) && text.trim() == text;
    match value {
        Value::String(text) => plain(text).then(|| text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Array(elements) => {
            let elements: Option<Vec<String>> = elements
                .iter()
                .map(|element| match element {
                    Value::Array(_) => None,
                    element => header_value(element).filter(|text| !text.is_empty() && !text.contains(',')),
                })
                .collect();
            Some(elements?.join(","))
        }
        Value::Null | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_arrive_as_they_are_or_not_at_all() {
        let forward = Forward { claims: vec![(Claim::new("c"), "x-c".to_owned())] };
        for (value, expected) in [
            (json!("ann"), Ok(Some("ann"))),
            (json!("zoë <z@example.com>, \"q\""), Ok(Some("zoë <z@example.com>, \"q\""))),
            (json!(7), Ok(Some("7"))),
            (json!(true), Ok(Some("true"))),
            (json!(["a", 1, false]), Ok(Some("a,1,false"))),
            (json!([]), Ok(None)),
            (json!(""), Ok(None)),
            (json!(null), Ok(None)),
            (json!("a\r\nx-admin: 1"), Err(())),
            (json!("a\u{0}b"), Err(())),
            (json!("a\tb"), Err(())),
            (json!("a\u{7f}"), Err(())),
            (json!("a\u{85}b"), Err(())),
            (json!(" admin"), Err(())),
            (json!("admin\u{a0}"), Err(())),
            (json!(["a,b"]), Err(())),
            (json!(["a", ""]), Err(())),
            (json!([["a"]]), Err(())),
            (json!([null]), Err(())),
            (json!({ "a": 1 }), Err(())),
        ] {
            let claims = json!({ "c": value });
            let headers = forward.headers(&claims.as_object().unwrap().clone().into());
            match expected {
                Ok(Some(text)) => assert_eq!(headers, Ok(vec![("x-c".to_owned(), text.to_owned())]), "{claims}"),
                Ok(None) => assert_eq!(headers, Ok(vec![]), "{claims}"),
                Err(()) => assert_eq!(headers, Err(Rejection::Unforwardable), "{claims}"),
            }
        }
        assert_eq!(forward.headers(&serde_json::Map::new().into()), Ok(vec![]));
    }

    #[test]
    fn a_forged_header_is_recognised_in_every_spelling() {
        let forward = Forward { claims: vec![(Claim::new("sub"), "x-user-id".to_owned())] };
        for (sent, forged) in [
            ("x-user-id", true),
            ("X-User-ID", true),
            ("x_user_id", true),
            ("X_User-Id", true),
            ("x-user", false),
            ("xxuser-id", false),
        ] {
            assert_eq!(forward.is_forged_by(sent), forged, "{sent}");
        }
    }
}
