//! What is stored for a URL, for people to read.

use std::time::SystemTime;

use http::StatusCode;

use crate::key::{self, KeyScope, Scheme};
use crate::purge::Verdict;
use crate::rules::QueryPolicy;
use crate::{Cache, ttl};

/// One stored response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its status.
    pub status: StatusCode,
    /// The bytes of its body.
    pub length: u64,
    /// How old it is, in seconds (RFC 9111, 4.2.3).
    pub age: u64,
    /// How long it is still fresh, in seconds; negative once it is stale.
    pub ttl: i64,
    /// When its fetch began, in the time of purges.
    pub epoch: u64,
    /// Whether it lies in a slot of its own because the response varies.
    pub is_variant: bool,
    /// Whether it is still on its way in.
    pub is_filling: bool,
    /// What it is tagged with.
    pub tags: Vec<String>,
    /// Its validator, if it has one.
    pub etag: Option<String>,
    /// What it varies by.
    pub vary: Option<String>,
}

impl Cache {
    /// What is stored for a URL of one route, all variants. What is purged is not among it, and nothing is changed.
    #[must_use]
    pub fn inspect(
        &'static self,
        scope: KeyScope,
        scheme: Scheme,
        query: &QueryPolicy,
        authority: &str,
        target: &str,
    ) -> Vec<Stored> {
        let key = key::of_target(scope, scheme, query, authority.as_bytes(), target.as_bytes());
        let primary = key::primary_slot(&key);
        let now = SystemTime::now();
        let mut found = Vec::new();
        self.memory.each_of_family(primary, |slot, meta, length, is_filling| {
            let mut cached = meta.to_cache_meta();
            match self.purges.verdict(&meta.marks) {
                Verdict::Live => {}
                Verdict::StaleSince(purge) => cached.expire_at(purge),
                Verdict::Gone => return,
            }
            let field = |name: &str| Some(String::from_utf8_lossy(cached.headers().get(name)?.as_bytes()).into_owned());
            found.push(Stored {
                status: cached.response_header().status,
                length,
                age: now.duration_since(cached.epoch()).map_or(0, |age| age.as_secs()),
                ttl: ttl(cached.fresh_until(), now),
                epoch: meta.marks.epoch,
                is_variant: slot != primary,
                is_filling,
                tags: crate::purge::Tags::of(cached.headers(), &Default::default()).iter().map(str::to_owned).collect(),
                etag: field("etag"),
                vary: field("vary"),
            });
        });
        found
    }
}
