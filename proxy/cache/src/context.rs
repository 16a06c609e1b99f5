//! What the cache remembers about one request between Pingora's hooks.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::StatusCode;
use pingora_cache::CacheKey;
use pingora_http::{RequestHeader, ResponseHeader};

use crate::key::{self, KeyScope, Scheme, Slot};
use crate::post::Gathered;
use crate::rules::RoutePolicy;
use crate::rules::search::SearchVariance;
use crate::rules::store::Reason;

/// The cache's part of the per-request context. Keep one in the proxy's `CTX`, made by `default()`, and lend it to every hook of
/// [`Cache`](crate::Cache). It is small, and it allocates nothing by itself.
#[derive(Debug, Default)]
pub struct CacheCtx {
    pub(crate) wishes: Option<Box<Wishes>>,
    pub(crate) route: Option<CachedRoute>,
    /// When the request went forward, in the time of purges: one after it must not be undone by what the request fetches.
    pub(crate) epoch: u64,
    pub(crate) primary: Slot,
    /// The key, if it was made before Pingora asks for it.
    pub(crate) kept: Option<Box<CacheKey>>,
    /// By what a response has said, its key is not made of the whole query.
    pub(crate) search: Option<Arc<SearchVariance>>,
    /// When the client asked.
    pub(crate) asked: Option<Instant>,
    pub(crate) found: Found,
    /// The generation of the stored object found, to update that one and no other after a 304.
    pub(crate) generation: Option<u64>,
    /// Which tier has it, where there are several.
    pub(crate) tier: Option<&'static str>,
    pub(crate) joined: bool,
    pub(crate) always_stale: bool,
    pub(crate) stale_on_status: bool,
    /// What was found is stale, and stands in for an origin that has just failed another request.
    pub(crate) stands_in: bool,
    /// The variant could not be stored a moment ago.
    pub(crate) remembered: bool,
    pub(crate) sent: Option<SystemTime>,
    pub(crate) decided: bool,
    pub(crate) upstream_status: Option<StatusCode>,
    pub(crate) not_modified: Option<Box<ResponseHeader>>,
    pub(crate) refused: Option<Reason>,
    pub(crate) bypassed: Option<Bypass>,
    /// The epoch at which the fetch of what was found began.
    pub(crate) stored_epoch: u64,
    /// Set where other nodes have to do with it.
    pub(crate) peers: Option<Box<Peers>>,
    /// What comes for a `POST`, and may be reused for `GET`.
    pub(crate) gathered: Option<Box<Gathered>>,
}

/// What other nodes have to do with a request.
#[derive(Debug, Default)]
pub(crate) struct Peers {
    /// Set for their requests: the key they have found, and by what, if that is not the whole query.
    pub(crate) given_key: Option<[u8; 16]>,
    pub(crate) given_search: Option<Arc<SearchVariance>>,
    /// What they were given has to be fetched later than this.
    pub(crate) newer_than: u64,
    /// Whether one of them answers.
    pub(crate) answers: bool,
    /// Set when it owns the key: how long its answer is kept at most.
    pub(crate) keep_at_most: Option<Duration>,
}

impl CacheCtx {
    /// What this request wants done differently from its route; to be said before [`Cache::enable`](crate::Cache::enable).
    pub fn wish(&mut self, wishes: Wishes) {
        self.wishes = (!wishes.is_empty()).then(|| Box::new(wishes));
    }

    /// When the request arrived: what failed before then is not its answer. To be said before [`Cache::enable`](crate::Cache::enable).
    pub fn asked(&mut self, at: Instant) {
        self.asked = Some(at);
    }

    /// Another node has found this primary key, by the same policy and perhaps by what is known there alone. To be said before the lookup.
    pub fn use_key(&mut self, primary: [u8; 16]) {
        self.peers.get_or_insert_default().given_key = Some(primary);
    }

    /// The other node's key is made of what counts by this `No-Vary-Search`, which a response has said. To be said before the lookup.
    pub fn use_search(&mut self, field: &str) {
        self.peers.get_or_insert_default().given_search = SearchVariance::parse(field).map(Arc::new);
    }

    /// The other node takes nothing whose fetch began at this epoch or before. To be said before the lookup.
    pub fn only_newer_than(&mut self, epoch: u64) {
        self.peers.get_or_insert_default().newer_than = epoch;
    }

    /// Keeps the key for when Pingora asks for it.
    pub fn keep(&mut self, key: CacheKey) {
        self.kept = Some(Box::new(key));
    }

    /// The key that was [kept](Self::keep), once.
    pub fn kept_key(&mut self) -> Option<CacheKey> {
        self.kept.take().map(|key| *key)
    }

    /// Whether what was found is still on its way in.
    #[must_use]
    pub fn reads_along(&self) -> bool {
        self.joined
    }

    /// The `No-Vary-Search` by which the key is made, if it is not made of the whole query.
    #[must_use]
    pub fn search(&self) -> Option<&str> {
        self.search.as_ref().map(|search| search.to_field())
    }

    /// What this request wants done differently, as said with [`wish`](Self::wish).
    #[must_use]
    pub fn wishes(&self) -> Option<&Wishes> {
        self.wishes.as_deref()
    }

    /// Another node answers in place of the origin. `keep_at_most` is set where it owns the key, so that its answer is for a short time
    /// only fresh here, whatever its own freshness.
    pub fn answered_by_peer(&mut self, keep_at_most: Option<Duration>) {
        let peers = self.peers.get_or_insert_default();
        (peers.answers, peers.keep_at_most) = (true, keep_at_most);
    }

    /// The fetch of what the other node answers with began at this epoch: earlier than this request, perhaps before a purge.
    pub fn fetched_at(&mut self, epoch: u64) {
        self.epoch = self.epoch.min(epoch);
    }

    /// The origin answers after all.
    pub fn answered_by_origin(&mut self) {
        if let Some(peers) = &mut self.peers {
            (peers.answers, peers.keep_at_most) = (false, None);
        }
    }

    /// Whether this request has wishes of its own: another one, made from its header, would be about something else.
    #[must_use]
    pub fn has_wishes(&self) -> bool {
        self.wishes.is_some()
    }

    /// The hash that is the primary key, once the lookup has made it.
    #[must_use]
    pub fn key(&self) -> Option<[u8; 16]> {
        (self.primary != Slot::default()).then(|| self.primary.to_be_bytes())
    }

    /// Why the cache is left alone for this request, once [`Cache::enable`](crate::Cache::enable) has decided so.
    #[must_use]
    pub fn bypassed(&self) -> Option<&'static str> {
        Some(match self.bypassed? {
            Bypass::Method => "only GET and HEAD are answered from the cache",
            Bypass::Request => "a condition that only the origin may evaluate, an upgrade, or a body",
            Bypass::Wish => "a filter wants it so",
        })
    }

    /// What the primary key is made of, for people to read; `None` before [`Cache::enable`](crate::Cache::enable). See
    /// [`key::in_words`](crate::key::in_words).
    #[must_use]
    pub fn key_in_words(&self, request: &RequestHeader) -> Option<String> {
        let route = self.route.as_ref()?;
        match &self.search {
            None => Some(key::in_words(route.scheme, &route.policy.query, request)),
            Some(search) => Some(key::search_in_words(route.scheme, &route.policy.query, search, request)),
        }
    }

    /// Why the response was not stored, once that is decided. For logs.
    #[must_use]
    pub fn refused(&self) -> Option<Reason> {
        self.refused
    }

    /// The status the next hop answered with, once it has.
    #[must_use]
    pub fn upstream_status(&self) -> Option<StatusCode> {
        self.upstream_status
    }
}

/// How one request is cached differently from its route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Further parts of the key, in this order. Unsafe requests put out of date what has the same parts, and nothing else.
    pub key_parts: Vec<Bytes>,
    /// See [`RoutePolicy::lifetime`].
    pub lifetime: Option<Duration>,
    /// Further tags of the response, for purges.
    pub tags: Vec<String>,
    /// Leave the cache alone: neither answer from it nor store.
    pub bypass: bool,
}

impl Wishes {
    /// Whether everything is left to the route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.key_parts.is_empty() && self.tags.is_empty() && self.lifetime.is_none() && !self.bypass
    }
}

/// Where and how the request's route caches.
#[derive(Debug, Clone)]
pub(crate) struct CachedRoute {
    pub(crate) scope: KeyScope,
    pub(crate) scheme: Scheme,
    pub(crate) policy: Arc<RoutePolicy>,
}

/// What the lookup found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Found {
    /// Nothing, or the lookup has not come to it.
    #[default]
    Nothing,
    /// Something for the URI, but for other request fields.
    OtherVariant,
    /// A fresh response.
    Fresh,
    /// A stale response.
    Stale,
    /// A response which the request wants validated.
    ToValidate,
}

/// Why the cache was not used for a request at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bypass {
    /// The method is neither `GET` nor `HEAD`.
    Method,
    /// A condition only the origin may evaluate, an upgrade, or a request body.
    Request,
    /// The request wished so.
    Wish,
}
