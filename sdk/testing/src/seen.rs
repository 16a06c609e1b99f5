//! What a test looks at: requests as upstreams receive them, and outcomes.

use std::cell::Cell;
use std::fmt::{self, Debug, Display, Formatter, Write as _};
use std::ops::Index;
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::exchange::{Fields, lifetime, truth};

/// How much of a body a failure message shows, in bytes.
const SHOWN: usize = 400;

/// A request, as an upstream receives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub(crate) upstream: String,
    pub(crate) headers: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
    pub(crate) timeout: Option<Duration>,
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

    /// All values of a header, in order; those that are not UTF-8 with their odd bytes replaced.
    pub fn header_values(&self, name: &str) -> Vec<String> {
        values(&self.headers, name)
    }

    /// All headers, pseudo headers first.
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
    #[track_caller]
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap_or_else(|error| panic!("the body is not text: {error}\n\n{self}"))
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON, or not of this form.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("the body is not the JSON expected: {error}\n\n{self}"))
    }

    /// The trailers.
    pub fn trailers(&self) -> &[(String, Vec<u8>)] {
        &self.trailers
    }

    /// How long the filter is ready to wait for the answer; `None` for a request that was forwarded.
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout
    }
}

impl Index<&str> for Seen {
    type Output = str;

    /// The first value of a header; empty when there is none.
    fn index(&self, name: &str) -> &str {
        self.header(name).unwrap_or("")
    }
}

impl Display for Seen {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        let to = if self.upstream.is_empty() { "the origin" } else { &self.upstream };
        writeln!(formatter, "{} {} to {to}", self.method(), self.path())?;
        message(formatter, &self.headers, &self.body, &self.trailers)
    }
}

/// What came of a request.
///
/// An outcome of an exchange in which the filter failed (a trap, a panic) must be asked for that, with [`failed`](Outcome::failed): a
/// test that looks at anything else of it, or at nothing, fails with the reason, because a 503 that comes of a bug is easily taken for
/// the one that was expected.
pub struct Outcome {
    pub(crate) request: String,
    pub(crate) headers: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
    pub(crate) upstream: Option<Seen>,
    pub(crate) calls: Vec<Seen>,
    pub(crate) writes: Vec<(String, Vec<u8>)>,
    pub(crate) logs: Vec<String>,
    pub(crate) took: Duration,
    pub(crate) cut: bool,
    pub(crate) left: bool,
    pub(crate) failure: Option<String>,
    /// Somebody has asked whether the filter failed.
    pub(crate) asked: Cell<bool>,
}

impl Outcome {
    /// Why the filter failed: `None` when it did not. The host's answer is 503 then, or a response that is cut.
    pub fn failed(&self) -> Option<&str> {
        self.asked.set(true);
        self.failure.as_deref()
    }

    /// The status.
    #[track_caller]
    pub fn status(&self) -> u16 {
        self.header(":status").and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// The first value of a header; `None` also when it is not UTF-8.
    #[track_caller]
    pub fn header(&self, name: &str) -> Option<&str> {
        text(&self.sound().headers, name)
    }

    /// All values of a header, in order; those that are not UTF-8 with their odd bytes replaced.
    #[track_caller]
    pub fn header_values(&self, name: &str) -> Vec<String> {
        values(&self.sound().headers, name)
    }

    /// All headers, `:status` first.
    #[track_caller]
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.sound().headers
    }

    /// The body.
    #[track_caller]
    pub fn body(&self) -> &[u8] {
        &self.sound().body
    }

    /// The body as text.
    ///
    /// # Panics
    /// When it is not UTF-8.
    #[track_caller]
    pub fn text(&self) -> &str {
        let body = self.body();
        std::str::from_utf8(body).unwrap_or_else(|error| panic!("the body is not text: {error}\n\n{self}"))
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is not JSON, or not of this form.
    #[track_caller]
    pub fn json<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(self.body())
            .unwrap_or_else(|error| panic!("the body is not the JSON expected: {error}\n\n{self}"))
    }

    /// The trailers of the response.
    #[track_caller]
    pub fn trailers(&self) -> &[(String, Vec<u8>)] {
        &self.sound().trailers
    }

    /// The first value of a trailer; `None` also when it is not UTF-8.
    #[track_caller]
    pub fn trailer(&self, name: &str) -> Option<&str> {
        text(&self.sound().trailers, name)
    }

    /// The request as the origin (or the upstream that the filter chose) saw it; `None` when the filter answered instead.
    #[track_caller]
    pub fn upstream(&self) -> Option<&Seen> {
        self.sound().upstream.as_ref()
    }

    /// The callouts of this exchange, in the order they were sent.
    #[track_caller]
    pub fn calls(&self) -> &[Seen] {
        &self.sound().calls
    }

    /// What the filter has set a property to, last: `outcome.property(&["tenant"])`.
    #[track_caller]
    pub fn property(&self, path: &[&str]) -> Option<&[u8]> {
        let path = path.join(".");
        let mut writes = self.sound().writes.iter().rev();
        writes.find(|(known, _)| *known == path).map(|(_, value)| value.as_slice())
    }

    /// Every property that the filter has set, its path with dots, in order.
    #[track_caller]
    pub fn properties(&self) -> &[(String, Vec<u8>)] {
        &self.sound().writes
    }

    /// What the filter wishes of the host's cache.
    #[track_caller]
    pub fn cache(&self) -> CacheWishes {
        let written = |path: &'static str| {
            let writes = self.sound().writes.iter();
            writes.filter(move |(known, _)| known == path).map(|(_, value)| value.as_slice())
        };
        let lossy = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        CacheWishes {
            key_parts: written("cache.key_parts").map(lossy).collect(),
            tags: written("cache.tags").map(lossy).collect(),
            lifetime: written("cache.ttl").next_back().and_then(lifetime),
            bypass: written("cache.bypass").next_back().and_then(truth).unwrap_or(false),
        }
    }

    /// What was logged meanwhile, one line each: `INFO the message`.
    pub fn logs(&self) -> &[String] {
        &self.logs
    }

    /// How long it took, on the clock of the tester.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// The response ended before its end: the filter answered, or failed, when the headers were with the client already.
    #[track_caller]
    pub fn is_cut(&self) -> bool {
        self.sound().cut
    }

    /// The client left before the end of the response.
    #[track_caller]
    pub fn client_left(&self) -> bool {
        self.sound().left
    }

    #[track_caller]
    pub(crate) fn sound(&self) -> &Self {
        if let Some(failure) = self.failure.as_ref().filter(|_| !self.asked.get()) {
            self.asked.set(true);
            panic!("the filter failed: {failure}\n(a test of that asks `outcome.failed()` first)\n\n{self}");
        }
        self
    }

    /// What is the same in two outcomes, however bodies were cut.
    pub(crate) fn essence(&self) -> impl PartialEq + Debug + '_ {
        let response = (&self.headers, &self.body, &self.trailers);
        (response, &self.upstream, &self.calls, &self.writes, self.cut, self.left, self.failure.is_some())
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        if let Some(failure) = self.failure.take().filter(|_| !self.asked.get() && !std::thread::panicking()) {
            panic!("the filter failed, and the test did not ask `outcome.failed()`: {failure}\n\n{self}");
        }
    }
}

/// What a filter wishes of the host's cache, see [`Outcome::cache`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheWishes {
    /// The parts it adds to the key, in order.
    pub key_parts: Vec<String>,
    /// The tags it gives the response.
    pub tags: Vec<String>,
    /// How long the response is to be fresh.
    pub lifetime: Option<Duration>,
    /// Neither answer from the cache nor store.
    pub bypass: bool,
}

impl Debug for Outcome {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        Display::fmt(self, formatter)
    }
}

/// The whole exchange, as a failed expectation shows it.
impl Display for Outcome {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "---- the exchange: {}", self.request)?;
        match &self.upstream {
            Some(seen) => write!(formatter, "forwarded: {seen}")?,
            None => writeln!(formatter, "not forwarded")?,
        }
        for call in &self.calls {
            write!(formatter, "called: {call}")?;
        }
        for (path, value) in &self.writes {
            writeln!(formatter, "set: {path} = {}", shown(value))?;
        }
        let end = match (&self.failure, self.left, self.cut) {
            (Some(_), ..) => " (the filter failed)",
            (None, true, _) => " (the client left)",
            (None, false, true) => " (cut)",
            (None, false, false) => "",
        };
        writeln!(formatter, "response{end}:")?;
        message(formatter, &self.headers, &self.body, &self.trailers)?;
        writeln!(formatter, "log:{}", if self.logs.is_empty() { " nothing" } else { "" })?;
        for line in &self.logs {
            writeln!(formatter, "    {line}")?;
        }
        if let Some(failure) = &self.failure {
            writeln!(formatter, "failure: {failure}")?;
        }
        Ok(())
    }
}

fn message(
    formatter: &mut Formatter<'_>,
    headers: &[(String, Vec<u8>)],
    body: &[u8],
    trailers: &[(String, Vec<u8>)],
) -> fmt::Result {
    for (name, value) in headers {
        writeln!(formatter, "    {name}: {}", shown(value))?;
    }
    if !body.is_empty() {
        writeln!(formatter, "    ({} bytes) {}", body.len(), shown(body))?;
    }
    for (name, value) in trailers {
        writeln!(formatter, "    trailer {name}: {}", shown(value))?;
    }
    Ok(())
}

/// Bytes in one line: what is text as text, the start of what is long.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let mut text = String::new();
    for letter in String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN)]).chars() {
        match letter {
            '\n' => text.push_str("\\n"),
            letter if letter.is_control() => {
                // Writing to a string does not fail.
                let _ = write!(text, "\\x{:02x}", u32::from(letter));
            }
            letter => text.push(letter),
        }
    }
    if bytes.len() > SHOWN {
        text.push_str(" …");
    }
    text
}

pub(crate) fn text<'a>(fields: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a str> {
    let (_, value) = fields.iter().find(|(other, _)| other.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(value).ok()
}

fn values(fields: &[(String, Vec<u8>)], name: &str) -> Vec<String> {
    let own = fields.iter().filter(|(other, _)| other.eq_ignore_ascii_case(name));
    own.map(|(_, value)| String::from_utf8_lossy(value).into_owned()).collect()
}
