//! Who we say we are, in the forms the header fields want, made once.

use std::sync::Arc;

use http::{HeaderValue, Version};

/// The node's name as it appears in `Via` (RFC 9110, 7.6.3) and in structured fields such as `Cache-Status` and `Proxy-Status`.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The name as configured.
    pub name: Arc<str>,
    /// As a structured-field token, or a quoted string where it is none (RFC 9651, 3.3).
    pub structured: Arc<str>,
    /// As it stands in `Via` and in `CDN-Loop`.
    pub(crate) pseudonym: Arc<str>,
    via: [HeaderValue; 3],
    cdn_loop: HeaderValue,
}

impl Identity {
    pub(super) fn new(name: &str) -> Self {
        // A pseudonym is a token: anything else becomes a hyphen.
        let pseudonym: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || "-._~".contains(c) { c } else { '-' }).collect();
        let via = ["1.0", "1.1", "2"].map(|version| {
            HeaderValue::from_str(&format!("{version} {pseudonym}")).unwrap_or(HeaderValue::from_static("1.1 selvedge"))
        });
        let cdn_loop = HeaderValue::from_str(&pseudonym).unwrap_or(HeaderValue::from_static("selvedge"));
        Self { name: name.into(), structured: structured(name).into(), pseudonym: pseudonym.into(), via, cdn_loop }
    }

    /// The `CDN-Loop` member for a request that goes on (RFC 8586, 2).
    pub(crate) fn cdn_loop(&self) -> HeaderValue {
        self.cdn_loop.clone()
    }

    /// The `Via` member for a message that was received in this version.
    pub(crate) fn via(&self, received: Version) -> HeaderValue {
        let index = match received {
            Version::HTTP_09 | Version::HTTP_10 => 0,
            Version::HTTP_2 => 2,
            _ => 1,
        };
        self.via[index].clone()
    }
}

fn structured(name: &str) -> String {
    let token = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '*')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
    if token {
        return name.to_owned();
    }
    let quoted: String = name
        .chars()
        .filter(|c| matches!(c, ' '..='~'))
        .flat_map(|c| if c == '"' || c == '\\' { vec!['\\', c] } else { vec![c] })
        .collect();
    format!("\"{quoted}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_tokens_are_quoted() {
        for (name, field) in [("edge-1", "edge-1"), ("1edge", "\"1edge\""), ("a b", "\"a b\""), ("a\"b", "\"a\\\"b\"")]
        {
            assert_eq!(structured(name), field);
        }
        assert_eq!(Identity::new("a b").via(Version::HTTP_2), "2 a-b");
    }
}
