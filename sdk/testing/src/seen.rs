//! What a test looks at.

use std::ops::Index;

use serde::de::DeserializeOwned;

/// A request, as an upstream receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub(crate) upstream: String,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// The upstream it was sent to; empty for the origin of the route.
    pub fn upstream(&self) -> &str {
        &self.upstream
    }

    /// The method.
    pub fn method(&self) -> &str {
        &self[":method"]
    }

    /// The path, query included.
    pub fn path(&self) -> &str {
        &self[":path"]
    }

    /// The first value of a header, pseudo headers included; `None` also when it is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        text(&self.headers, name)
    }

    /// All headers, pseudo headers first.
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

impl Index<&str> for Seen {
    type Output = str;

    /// The first value of a header; empty when there is none.
    fn index(&self, name: &str) -> &str {
        self.header(name).unwrap_or("")
    }
}

/// What came of a request.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) body: Vec<u8>,
    pub(crate) upstream: Option<Seen>,
    pub(crate) logs: Vec<String>,
}

impl Outcome {
    /// The status.
    pub fn status(&self) -> u16 {
        self.header(":status").and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// The first value of a header; `None` also when it is not UTF-8.
    pub fn header(&self, name: &str) -> Option<&str> {
        text(&self.headers, name)
    }

    /// All headers, `:status` first.
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The body as text.
    ///
    /// # Panics
    /// When it is not UTF-8.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|error| panic!("the body is not text: {error}"))
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON, or not of this form.
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("the body is not the JSON expected: {error}"))
    }

    /// The request as it was forwarded; `None` when the filter answered instead.
    pub fn upstream(&self) -> Option<&Seen> {
        self.upstream.as_ref()
    }

    /// What was logged meanwhile, one line each: `INFO the message`.
    pub fn logs(&self) -> &[String] {
        &self.logs
    }
}

fn text<'a>(headers: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a str> {
    let (_, value) = headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(value).ok()
}
