//! `Cache-Status` (RFC 9211): one member per cache, saying how it handled the request.

use std::fmt::Write;

use http::{HeaderName, HeaderValue, StatusCode};

/// The field.
pub const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Why a request went forward (RFC 9211, 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fwd {
    /// The cache was not to be used for this request.
    Bypass,
    /// The method requires forwarding.
    Method,
    /// Nothing stored for the URI.
    UriMiss,
    /// Something stored for the URI, but for other request fields.
    VaryMiss,
    /// The request's own directives wanted a validation.
    Request,
    /// What is stored is stale.
    Stale,
}

impl Fwd {
    /// The parameter's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

/// How the cache handled a request, as one member of `Cache-Status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheStatus<'a> {
    node: &'a str,
    /// Served from the cache without going forward. Excludes [`fwd`](Self::fwd).
    pub hit: bool,
    /// Why the request went forward.
    pub fwd: Option<Fwd>,
    /// What the next hop answered, where it answered.
    pub fwd_status: Option<StatusCode>,
    /// Seconds of freshness left; negative when stale.
    pub ttl: Option<i64>,
    /// The answer is being stored.
    pub stored: bool,
    /// The request waited for, or joined, another one's fetch.
    pub collapsed: bool,
    /// What the key is made of (RFC 9211, 2.7), where that may be told.
    pub key: Option<&'a str>,
    /// Anything else worth telling.
    pub detail: Option<&'a str>,
}

impl<'a> CacheStatus<'a> {
    /// A member for the cache `node` that says nothing yet.
    #[must_use]
    pub fn new(node: &'a str) -> Self {
        Self {
            node,
            hit: false,
            fwd: None,
            fwd_status: None,
            ttl: None,
            stored: false,
            collapsed: false,
            key: None,
            detail: None,
        }
    }

    /// The member as a field value: a structured item with parameters (RFC 9211, 2; RFC 9651, 3.3).
    #[must_use]
    pub fn to_value(&self) -> HeaderValue {
        let mut text = String::with_capacity(96);
        push_item(&mut text, self.node);
        if self.hit {
            text.push_str("; hit");
        }
        if let Some(fwd) = self.fwd {
            text.push_str("; fwd=");
            text.push_str(fwd.as_str());
        }
        if let Some(status) = self.fwd_status {
            text.push_str("; fwd-status=");
            text.push_str(status.as_str());
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(text, "; ttl={ttl}"); // writing to a String cannot fail
        }
        if self.stored {
            text.push_str("; stored");
        }
        if self.collapsed {
            text.push_str("; collapsed");
        }
        if let Some(key) = self.key {
            text.push_str("; key=");
            push_string(&mut text, key);
        }
        if let Some(detail) = self.detail {
            text.push_str("; detail=");
            push_item(&mut text, detail);
        }
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text)).unwrap_or_else(|_| HeaderValue::from_static("?"))
    }
}

/// Append `text` as a token where it is one, else as a string (RFC 9651, 3.3.3 and 3.3.4). Characters a string cannot hold become `?`.
fn push_item(out: &mut String, text: &str) {
    let first = |char: char| char.is_ascii_alphabetic() || char == '*';
    let later = |char: char| char.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:/".contains(char);
    if text.starts_with(first) && text.chars().all(later) {
        out.push_str(text);
        return;
    }
    push_string(out, text);
}

/// Append `text` as a string, even where it could be a token.
fn push_string(out: &mut String, text: &str) {
    out.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            ' '..='~' => out.push(char),
            _ => out.push('?'),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9211, 2 and RFC 9651, 3.3.
    #[test]
    fn members_are_structured_items() {
        let miss = CacheStatus {
            fwd: Some(Fwd::UriMiss),
            fwd_status: Some(StatusCode::OK),
            stored: true,
            collapsed: true,
            key: Some("http://a.example/?a=\"1\""),
            detail: Some("memory"),
            ..CacheStatus::new("edge-1")
        };
        let expected = r#"edge-1; fwd=uri-miss; fwd-status=200; stored; collapsed; key="http://a.example/?a=\"1\""; detail=memory"#;
        assert_eq!(miss.to_value(), expected);
        let hit = CacheStatus { hit: true, ttl: Some(-3), ..CacheStatus::new("edge") };
        assert_eq!(hit.to_value(), "edge; hit; ttl=-3");
    }

    #[test]
    fn names_are_tokens_or_strings() {
        for (name, expected) in [
            ("edge", "edge"),
            ("a.b:80/c", "a.b:80/c"),
            ("*", "*"),
            ("1edge", "\"1edge\""),
            ("my edge", "\"my edge\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("städte\n", "\"st?dte?\""),
            ("", "\"\""),
        ] {
            assert_eq!(CacheStatus::new(name).to_value(), expected, "{name}");
        }
    }
}
