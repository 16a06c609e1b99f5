//! The host's cache: what a filter wants of it before it is asked, and what came of that.
//!
//! Hosts without such a cache keep these as properties that nobody reads, or refuse them: a filter that says what it wants runs there
//! all the same, and [`Verdict`]s are `None`.

use std::time::Duration;

use crate::host;
use crate::{Request, Response};

/// What a request wants of the host's cache; see [`Request::cache`]. Each returns `false` when the host refused: the request has gone on
/// already, there are too many parts or tags, or one is too long.
#[derive(Debug)]
pub struct Wishes<'r>(&'r mut Request);

impl Wishes<'_> {
    /// Adds a part to the cache key: only requests with the same parts in the same order share a stored response. At most 16 of 1 KiB.
    pub fn key_part(&mut self, part: impl AsRef<[u8]>) -> bool {
        self.set("key_parts", part.as_ref())
    }

    /// Tags the response, if this request's is the one that is stored: a purge of the tag reaches it. At most 64 of 1 KiB.
    pub fn tag(&mut self, tag: &str) -> bool {
        self.set("tags", tag.as_bytes())
    }

    /// How long the response is fresh, in place of what the origin says, in whole seconds; at most a year. What the origin forbids to
    /// store is not stored for it.
    pub fn lifetime(&mut self, lifetime: Duration) -> bool {
        self.set("ttl", lifetime.as_secs().to_string().as_bytes())
    }

    /// Neither answer from the cache nor store.
    pub fn bypass(&mut self) -> bool {
        self.set("bypass", b"1")
    }

    fn set(&mut self, what: &str, value: &[u8]) -> bool {
        self.0.set_property(&["cache", what], value)
    }
}

/// What the host's cache had to do with a response; see [`Response::cache`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// In a word: `hit`, `collapsed`, `uri-miss`, `vary-miss`, `stale`, `request`, `bypass`, `method`.
    pub status: String,
    /// Whether it comes from the cache without anybody having been asked.
    pub hit: bool,
    /// The cache key, as the host's logs show it.
    pub key: Option<String>,
    /// How old the stored response is.
    pub age: Option<Duration>,
    /// How long it is still fresh; zero when that is over.
    pub left: Option<Duration>,
}

impl Request {
    /// What this request wants of the host's cache. To be said in the `request` hook.
    pub fn cache(&mut self) -> Wishes<'_> {
        Wishes(self)
    }
}

impl Response {
    /// What the host's cache had to do with it; `None` where it had nothing to do with it, or the host has none.
    pub fn cache(&self) -> Option<Verdict> {
        let property = |name: &str| host::current().property(&["cache", name]).filter(|value| !value.is_empty());
        let text = |name: &str| String::from_utf8(property(name)?).ok();
        let duration = |name: &str| {
            let nanos = i64::from_le_bytes(property(name)?.try_into().ok()?);
            Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(0)))
        };
        Some(Verdict {
            status: text("status")?,
            hit: property("hit").is_some_and(|hit| hit.first() == Some(&1)),
            key: text("key"),
            age: duration("age"),
            left: duration("ttl"),
        })
    }
}
