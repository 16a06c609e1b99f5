//! Naming a claim: by its name, or by a JSON pointer when the name begins with `/`.

use serde_json::{Map, Value};

/// Which claim is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A claim at the top, by its name (which may hold dots and colons, as in `https://example.com/role`).
    Name(String),
    /// A value anywhere, by a JSON pointer (RFC 6901).
    Pointer(Vec<String>),
}

impl Claim {
    /// Reads `sub` or `/realm_access/roles`.
    pub fn new(text: &str) -> Self {
        match text.strip_prefix('/') {
            // RFC 6901, 4: ~1 is /, then ~0 is ~.
            Some(path) => {
                Self::Pointer(path.split('/').map(|step| step.replace("~1", "/").replace("~0", "~")).collect())
            }
            None => Self::Name(text.to_owned()),
        }
    }

    /// The claim's value; `None` when it is absent or null.
    pub fn find<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let found = match self {
            Self::Name(name) => claims.get(name),
            Self::Pointer(steps) => {
                let (first, rest) = steps.split_first()?;
                rest.iter().try_fold(claims.get(first)?, |value, step| match value {
                    Value::Object(members) => members.get(step),
                    Value::Array(elements) => elements.get(step.parse::<usize>().ok()?),
                    _ => None,
                })
            }
        };
        found.filter(|value| !value.is_null())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_and_pointers() {
        let claims = json!({ "sub": "ann", "a.b": 1, "https://x/y": 2, "realm": { "roles": ["r", "s"], "p/q": 3, "m~n": 4 }, "n": null });
        let claims = claims.as_object().unwrap();
        for (text, expected) in [
            ("sub", Some(json!("ann"))),
            ("a.b", Some(json!(1))),
            ("https://x/y", Some(json!(2))),
            ("/sub", Some(json!("ann"))),
            ("/realm/roles", Some(json!(["r", "s"]))),
            ("/realm/roles/1", Some(json!("s"))),
            ("/realm/roles/2", None),
            ("/realm/p~1q", Some(json!(3))),
            ("/realm/m~0n", Some(json!(4))),
            ("realm/roles", None),
            ("/", None),
            ("n", None),
            ("none", None),
        ] {
            assert_eq!(Claim::new(text).find(claims), expected.as_ref(), "{text}");
        }
    }
}
