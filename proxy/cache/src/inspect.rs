//! What is stored for a URL, for people to read.

use std::time::SystemTime;

use http::StatusCode;

use crate::key::{self, KeyScope, Scheme, Slot};
use crate::memory::StoredMeta;
use crate::purge::{Mark, Scope, Verdict};
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
    slot: Slot,
}

impl Cache {
    /// What is in memory for a URL of one route under its plain key, all variants. What is purged is not among it, and nothing is changed.
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
        let mut found = Vec::new();
        self.memory.each_of_family(primary, |slot, meta, length, is_filling| {
            found.extend(self.stored(slot, slot != primary, meta, length, is_filling));
        });
        found
    }

    /// What is in memory under other keys, and would be purged with these scopes: under keys with further parts, or by what responses have said
    /// of queries. Looks at everything that is stored. `known` is left out.
    #[must_use]
    pub fn inspect_elsewhere(&'static self, scopes: &[Scope], known: &[Stored]) -> Vec<Stored> {
        let marks: Vec<Mark> = scopes.iter().filter_map(|scope| Mark::from_u64(scope.to_parts().0)).collect();
        let mut found = Vec::new();
        self.memory.each_with_mark(&marks, |slot, meta, length| {
            if known.iter().all(|known| known.slot != slot) {
                found.extend(self.stored(slot, meta.variance.is_some(), meta, length, false));
            }
        });
        found
    }

    /// What is on disk for a URL of one route under its plain key; of variants the first one.
    pub async fn inspect_disk(
        &'static self,
        scope: KeyScope,
        scheme: Scheme,
        query: &QueryPolicy,
        authority: &str,
        target: &str,
    ) -> Option<Stored> {
        let key = key::of_target(scope, scheme, query, authority.as_bytes(), target.as_bytes());
        let slot = key::primary_slot(&key);
        let (meta, length) = self.tiers.get()?.peek(slot).await?;
        self.stored(slot, false, &meta, length, false)
    }

    fn stored(&self, slot: Slot, is_variant: bool, meta: &StoredMeta, length: u64, is_filling: bool) -> Option<Stored> {
        let now = SystemTime::now();
        let mut cached = meta.to_cache_meta();
        match self.purges.verdict(&meta.marks) {
            Verdict::Live => {}
            Verdict::StaleSince(purge) => cached.expire_at(purge),
            Verdict::Gone => return None,
        }
        let field = |name: &str| Some(String::from_utf8_lossy(cached.headers().get(name)?.as_bytes()).into_owned());
        Some(Stored {
            status: cached.response_header().status,
            length,
            age: now.duration_since(cached.epoch()).map_or(0, |age| age.as_secs()),
            ttl: ttl(cached.fresh_until(), now),
            epoch: meta.marks.epoch,
            is_variant,
            is_filling,
            tags: crate::purge::Tags::of(cached.headers(), &Default::default()).iter().map(str::to_owned).collect(),
            etag: field("etag"),
            vary: field("vary"),
            slot,
        })
    }
}
