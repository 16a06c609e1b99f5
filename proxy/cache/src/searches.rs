//! What responses have said about the queries of their paths (`No-Vary-Search`): learned from them, used to make keys.
//!
//! | response to a request | the request's key | what is done |
//! |---|---|---|
//! | says nothing | of the whole query | stored, as ever |
//! | says something | of the whole query | stored, and learned: later keys of this path are made so |
//! | says what is known | of what counts | stored, for all queries that are one by this |
//! | says something else | of what counts | not stored, as others would get it; learned instead |
//! | says nothing, 2xx | of what counts | not stored; what was known of the path is forgotten |
//!
//! So each path costs one fetch more than it has to, and none is answered with what was never meant for its query. What is stored under a
//! key of what counts is purged with any URL of its path: which queries have used it is not known, here or on other nodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;

use crate::key::{self, KeyScope, Scheme, Slot, SlotHash};
use crate::rules::QueryPolicy;
use crate::rules::search::SearchVariance;

/// How many paths are known at most; about 250 bytes each. Beyond that, the least useful ones are forgotten.
const PATHS_MAX: u64 = 65_536;

/// See the [module](self).
pub(crate) struct Searches {
    paths: moka::sync::Cache<Slot, Arc<SearchVariance>, SlotHash>,
    /// Something has been learned, ever: nearly no node has to look.
    any: AtomicBool,
}

impl Searches {
    pub(crate) fn new() -> Self {
        let paths = moka::sync::Cache::builder().max_capacity(PATHS_MAX).build_with_hasher(SlotHash::default());
        Self { paths, any: AtomicBool::new(false) }
    }

    /// What is known of a target's path.
    pub(crate) fn of(
        &self,
        scope: KeyScope,
        scheme: Scheme,
        authority: &[u8],
        target: &[u8],
    ) -> Option<Arc<SearchVariance>> {
        if !self.any.load(Ordering::Relaxed) {
            return None;
        }
        self.paths.get(&path(scope, scheme, authority, target))
    }

    /// A response to a request whose key was made by `assumed` has come. Says whether it may be stored under that key.
    pub(crate) fn learn(
        &self,
        scope: KeyScope,
        scheme: Scheme,
        (authority, target): (&[u8], &[u8]),
        assumed: Option<&Arc<SearchVariance>>,
        (status, said): (StatusCode, Option<SearchVariance>),
    ) -> bool {
        match (assumed, said) {
            (None, None) => true,
            (Some(assumed), Some(said)) if **assumed == said => true,
            (_, Some(said)) => {
                self.any.store(true, Ordering::Relaxed);
                self.paths.insert(path(scope, scheme, authority, target), Arc::new(said));
                assumed.is_none()
            }
            (Some(_), None) => {
                // An error says nothing about other pages.
                if status.is_success() {
                    self.paths.invalidate(&path(scope, scheme, authority, target));
                }
                false
            }
        }
    }
}

fn path(scope: KeyScope, scheme: Scheme, authority: &[u8], target: &[u8]) -> Slot {
    let path = target.split(|byte| *byte == b'?').next().unwrap_or_default();
    key::primary_slot(&key::of_target(scope, scheme, &QueryPolicy::All, authority, path))
}
