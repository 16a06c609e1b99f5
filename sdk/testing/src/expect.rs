//! Expectations of an [`Outcome`]: each says what was expected, and shows the whole exchange, when it is not so.

use serde_json::Value;

use crate::seen::{Outcome, shown};

impl Outcome {
    /// The status is this one.
    #[track_caller]
    pub fn expect_status(&self, status: u16) -> &Self {
        let found = self.status();
        self.check(found == status, || format!("expected status {status}, found {found}"))
    }

    /// The first value of a header is this one.
    #[track_caller]
    pub fn expect_header(&self, name: &str, value: &str) -> &Self {
        let found = self.header(name);
        self.check(found == Some(value), || match found {
            Some(found) => format!("expected header `{name}: {value}`, found `{found}`"),
            None => format!("expected header `{name}: {value}`, there is none"),
        })
    }

    /// There is no such header.
    #[track_caller]
    pub fn expect_no_header(&self, name: &str) -> &Self {
        let found = self.header_values(name);
        self.check(found.is_empty(), || format!("expected no header {name}, found {found:?}"))
    }

    /// The body is this one.
    #[track_caller]
    pub fn expect_body(&self, body: impl AsRef<[u8]>) -> &Self {
        let (expected, found) = (body.as_ref(), self.body());
        self.check(found == expected, || {
            format!("expected the body {}\n   found the body {}", shown(expected), shown(found))
        })
    }

    /// The body is JSON, and this value.
    #[track_caller]
    pub fn expect_json(&self, expected: &Value) -> &Self {
        let found: Value = self.json();
        self.check(found == *expected, || format!("expected the JSON {expected}\n   found the JSON {found}"))
    }

    /// The first value of a trailer is this one.
    #[track_caller]
    pub fn expect_trailer(&self, name: &str, value: &str) -> &Self {
        let found = self.trailer(name);
        self.check(found == Some(value), || format!("expected trailer `{name}: {value}`, found {found:?}"))
    }

    /// The request went on.
    #[track_caller]
    pub fn expect_forwarded(&self) -> &Self {
        let forwarded = self.upstream().is_some();
        self.check(forwarded, || "expected that the request goes on, the filter answered".into())
    }

    /// The filter answered, and nothing reached the origin.
    #[track_caller]
    pub fn expect_not_forwarded(&self) -> &Self {
        let forwarded = self.upstream().is_some();
        self.check(!forwarded, || "expected that the filter answers, the request went on".into())
    }

    /// The request went on with this value of a header.
    #[track_caller]
    pub fn expect_forwarded_header(&self, name: &str, value: &str) -> &Self {
        self.expect_forwarded();
        let found = self.upstream().and_then(|seen| seen.header(name));
        self.check(found == Some(value), || {
            format!("expected that the request goes on with `{name}: {value}`, found {found:?}")
        })
    }

    /// A line of the log has this in it.
    #[track_caller]
    pub fn expect_log(&self, part: &str) -> &Self {
        let logged = self.logs().iter().any(|line| line.contains(part));
        self.check(logged, || format!("expected {part:?} in the log"))
    }

    #[track_caller]
    fn check(&self, holds: bool, expected: impl FnOnce() -> String) -> &Self {
        if !holds {
            panic!("{}\n\n{self}", expected());
        }
        self
    }
}
