//! HTTP caching for a Pingora proxy: keys, the rules of RFC 9111, a memory tier, collapsing, `Cache-Status`.
//!
//! The [`rules`] are pure functions of headers and times. Everything that touches Pingora is a thin adaptor on [`Cache`], made so that
//! each hook of `pingora_proxy::ProxyHttp` is one line. Keep a [`CacheCtx`] in the proxy's `CTX` (`ctx.cache` below) and wire the hooks
//! like this; `cache` is the `&'static Cache` of [`Cache::leak`], `req` stands for `session.downstream_session.req_header()` where the
//! session's `cache` is borrowed too, and for `session.req_header()` elsewhere.
//!
//! | hook | line |
//! |---|---|
//! | `request_cache_filter` | `cache.enable(&mut session.cache, req, scope, scheme, &policy, &mut ctx.cache); Ok(())` |
//! | `cache_key_callback` | `cache.key(req, &mut ctx.cache)` |
//! | `cache_vary_filter` | `cache.vary(meta, req, &mut ctx.cache)` |
//! | `cache_hit_filter` | `Ok(cache.on_hit(&mut session.cache, req, meta, hit_handler, is_fresh, &mut ctx.cache))` |
//! | `proxy_upstream_filter` | `match cache.before_upstream(&session.cache, req, &mut ctx.cache) { Onward::Forward => Ok(true), .. }` |
//! | `upstream_response_filter` | `cache.upstream_response(req, resp, &mut ctx.cache).await; Ok(())` |
//! | `upstream_response_trailer_filter` | `cache.note_trailers(&mut session.cache, trailers); Ok(())` |
//! | `response_cache_filter` | `Ok(cache.response_decision(&session.cache, req, resp, &mut ctx.cache))` |
//! | `cache_not_modified_filter` | `Ok(cache.not_modified(req, resp))` |
//! | `should_serve_stale` | `cache.serve_stale(&session.cache, error, &mut ctx.cache)` |
//! | `response_filter` | `cache.append_status(&session.cache, &ctx.cache, "edge", None, resp)` |
//!
//! Routes that do not cache call none of these but `upstream_response`, which then only strips hop-by-hop fields.
//!
//! Stale-while-revalidate runs in a background subrequest of Pingora: a new session with a new `CTX` that passes through all hooks
//! again and must come to the same scope, scheme and policy. A subrequest has no TLS digest, so take the scheme from what the proxy
//! put on the request, not from the connection. `session.cache.set_max_file_size_bytes` must not be used: Pingora would abort the
//! client's response when a chunked body exceeds it. The memory tier has its own limit, and lets the transfer go on.

mod collapse;
mod context;
pub mod disk;
mod inspect;
pub mod key;
pub mod memory;
mod post;
pub mod purge;
pub mod rules;
mod searches;
pub mod status;
pub mod tiers;

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, IF_MATCH, IF_UNMODIFIED_SINCE, SET_COOKIE, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, Method, StatusCode};
use parking_lot::Mutex;
use pingora_cache::key::HashBinary;
use pingora_cache::lock::CacheKeyLockImpl;
use pingora_cache::predictor::CacheablePredictor;
use pingora_cache::storage::streaming_write::U64WriteId;
use pingora_cache::{
    CacheKey, CacheMeta, CacheOptionOverrides, CachePhase, ForcedFreshness, HitHandler, HttpCache, NoCacheReason,
    RespCacheable, Storage,
};
use pingora_error::{Error, ErrorSource, ErrorType};
use pingora_http::{RequestHeader, ResponseHeader};

use crate::collapse::{Authorised, FIRST_FAILURE, FillLocks, HitForMiss, Outage, Shared};
use crate::context::{Bypass, CachedRoute, Found};
use crate::disk::{DiskUsage, Removal};
use crate::memory::{FillNotes, MemoryTier, Reader};
use crate::purge::{LogError, Marks, OpenError, PurgeLog, Record, Tags, Verdict};
use crate::rules::search::SearchVariance;
use crate::rules::store::{Exchange, Reason, Storable};
use crate::rules::{headers, invalidate, reuse, store, vary};
use crate::searches::Searches;
use crate::status::{CACHE_STATUS, Fwd};
use crate::tiers::Tiers;

pub use crate::collapse::Towards;
pub use crate::collapse::presence::{Client, Presence, Seen};
pub use crate::context::{CacheCtx, Wishes};
pub use crate::inspect::Stored;
pub use crate::key::{KeyScope, Scheme};
pub use crate::memory::{Encoded, EncodedBody, StoredBody, Usage};
pub use crate::purge::{Purge, Purges, Scope};
pub use crate::rules::{QueryPolicy, RoutePolicy, SetCookies};
pub use crate::status::CacheStatus;
pub use crate::tiers::DiskTier;

/// How often a waiter may find another fill in its way before it goes forward by itself. Each try is bounded by
/// [`CacheOptions::collapse_wait`] in total anyway; the count only breaks a tie of fills that keep failing.
const COLLAPSE_RETRIES: usize = 8;

/// The sizes and deadlines of the cache. One set for each node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes of memory for stored responses, headers and bookkeeping included. Default 256 MiB; 0 stores nothing, yet still collapses.
    /// Bodies on their way in come on top, at most as much again. Fixed once the cache is made.
    pub memory_size: u64,
    /// The largest body that is stored, in bytes. Larger ones are passed on, and remembered for two minutes. Default 32 MiB.
    pub max_object: u64,
    /// How long a request waits for others' fills, all together, before it goes to the origin by itself. Default 10 s; 0 turns
    /// collapsing off in effect.
    pub collapse_wait: Duration,
    /// What a request does that has waited for as long as that. Default: it goes to the origin by itself.
    pub when_late: Beyond,
    /// How many requests may wait for one fill. Default 10,000; 0 turns collapsing off in effect.
    pub waiters: usize,
    /// What a request does that finds so many waiting. Default: it is refused.
    pub when_full: Beyond,
    /// How long one fill may take to bring its header before others compete with it, and how long a reader of an unfinished body waits
    /// for the next piece before it gives up. Default 30 s.
    pub fill_deadline: Duration,
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            memory_size: 256 << 20,
            max_object: 32 << 20,
            collapse_wait: Duration::from_secs(10),
            when_late: Beyond::Forward,
            waiters: 10_000,
            when_full: Beyond::Refuse,
            fill_deadline: Duration::from_secs(30),
        }
    }
}

/// What becomes of a request that shall not wait for another's fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// It goes to the origin by itself, and what it gets is not stored.
    Forward,
    /// It is not answered: 503.
    Refuse,
}

/// What is to be done with a request that is about to go forward.
#[derive(Debug)]
pub enum Onward {
    /// It goes to the origin.
    Forward,
    /// Answer it with this status instead.
    Answer(StatusCode),
    /// It was waiting for a fetch that failed; this is the error, which is its own as well.
    Failed(Box<Error>),
    /// Too many wait for the same, or it has waited too long: [`Beyond::Refuse`].
    Refused,
}

/// What became of a purge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Purged {
    /// When it was, in the time of purges.
    pub epoch: u64,
    /// Whether it survives the process.
    pub durable: bool,
}

/// The cache of one node, as the hooks of the proxy call it.
pub struct Cache {
    memory: &'static MemoryTier,
    /// Memory and disk, where there is a disk.
    tiers: OnceLock<&'static Tiers>,
    locks: &'static CacheKeyLockImpl,
    fill_locks: &'static FillLocks,
    hit_for_miss: &'static HitForMiss,
    purges: &'static Purges,
    searches: Searches,
    /// Where purges are kept, if they are.
    log: OnceLock<(PathBuf, PurgeLog)>,
    tags_dropped: AtomicU64,
    collapse_wait_ms: AtomicU64,
    refuse_late: AtomicBool,
    refuse_beyond: AtomicBool,
}

impl Cache {
    /// A cache. It is leaked, because Pingora wants `'static`: make one for each node, not for each plan.
    #[must_use]
    pub fn leak(options: CacheOptions) -> &'static Self {
        let hit_for_miss: &'static HitForMiss = Box::leak(Box::new(HitForMiss::new()));
        let purges: &'static Purges = Box::leak(Box::default());
        let fill_locks: &'static FillLocks =
            Box::leak(Box::new(FillLocks::new(options.fill_deadline, options.waiters, hit_for_miss)));
        let memory: &'static MemoryTier = Box::leak(Box::new(MemoryTier::new(options, hit_for_miss, purges)));
        Box::leak(Box::new(Self {
            memory,
            tiers: OnceLock::new(),
            locks: fill_locks,
            fill_locks,
            hit_for_miss,
            purges,
            searches: Searches::new(),
            log: OnceLock::new(),
            tags_dropped: AtomicU64::new(0),
            collapse_wait_ms: AtomicU64::new(millis(options.collapse_wait)),
            refuse_late: AtomicBool::new(options.when_late == Beyond::Refuse),
            refuse_beyond: AtomicBool::new(options.when_full == Beyond::Refuse),
        }))
    }

    /// Put disks below memory, for good. What is on them is found as soon as their indexes are loaded, see [`wait`](Self::wait). Once there
    /// are some, nothing is changed.
    ///
    /// # Errors
    /// When a thread cannot be started. A disk that cannot be used is no error, and says so in the log and in [`disks`](Self::disks).
    pub fn open_disks(&'static self, tier: DiskTier) -> std::io::Result<()> {
        if self.tiers.get().is_none() {
            let tiers = Box::leak(Box::new(Tiers::open(tier, self.memory, self.purges, self.fill_locks)?));
            self.tiers.get_or_init(|| tiers);
        }
        Ok(())
    }

    /// Take over new settings, as after a reload: all but `memory_size`, for what begins from now on.
    /// `memory_size` is fixed: a different one is reported as a warning, and the old one stays.
    pub fn adjust(&self, options: CacheOptions) {
        if options.memory_size != self.memory.capacity() {
            tracing::warn!(
                wanted = options.memory_size,
                kept = self.memory.capacity(),
                "the cache's memory size is fixed until the next start"
            );
        }
        self.memory.adjust(options);
        self.fill_locks.set_deadline(options.fill_deadline);
        self.fill_locks.set_waiters_max(options.waiters);
        self.collapse_wait_ms.store(millis(options.collapse_wait), Ordering::Relaxed);
        self.refuse_late.store(options.when_late == Beyond::Refuse, Ordering::Relaxed);
        self.refuse_beyond.store(options.when_full == Beyond::Refuse, Ordering::Relaxed);
    }

    /// `request_cache_filter`: note how the route caches, and turn the cache on where this request may use it. Says whether it did.
    ///
    /// Off stay: methods other than `GET` and `HEAD`; `If-Match` and `If-Unmodified-Since`, which only the origin may evaluate
    /// (RFC 9111, 4.3.2); upgrades; requests with a body, because the body is not part of the key. Call it for those too: unsafe
    /// methods invalidate.
    pub fn enable(
        &'static self,
        cache: &mut HttpCache,
        request: &RequestHeader,
        scope: KeyScope,
        scheme: Scheme,
        policy: &Arc<RoutePolicy>,
        ctx: &mut CacheCtx,
    ) -> bool {
        let mut route = CachedRoute { scope, scheme, policy: Arc::clone(policy) };
        let mut wished = None;
        if let Some(wishes) = &ctx.wishes {
            route.scope = scope.with_parts(&wishes.key_parts);
            if wishes.lifetime.is_some() {
                route.policy = Arc::new(RoutePolicy { lifetime: wishes.lifetime, ..(**policy).clone() });
            }
            wished = wishes.bypass.then_some(Bypass::Wish);
        }
        ctx.route = Some(route);
        ctx.bypassed = bypass(request).or(wished);
        if ctx.bypassed.is_some() {
            return false;
        }

        let mut overrides = CacheOptionOverrides::default();
        overrides.wait_timeout = Some(Duration::from_millis(self.collapse_wait_ms.load(Ordering::Relaxed)));
        overrides.max_lock_retries = Some(COLLAPSE_RETRIES);
        let predictor: &'static (dyn CacheablePredictor + Sync) = self.hit_for_miss;
        match self.tiers.get() {
            None => cache.enable(self.memory, None, Some(predictor), Some(self.locks), Some(overrides)),
            Some(tiers) => cache.enable(*tiers, None, Some(predictor), Some(self.locks), Some(overrides)),
        }
        true
    }

    /// `cache_key_callback`: the primary key.
    ///
    /// # Errors
    /// When [`enable`](Self::enable) was not called for this request.
    pub fn key(&'static self, request: &RequestHeader, ctx: &mut CacheCtx) -> pingora_error::Result<CacheKey> {
        let Some(route) = &ctx.route else {
            return Error::e_explain(ErrorType::InternalError, "cache key asked for before the cache was enabled");
        };
        let given = ctx.peers.as_ref().and_then(|peers| Some((peers.given_key?, peers.given_search.clone())));
        let CachedRoute { scope, scheme, policy } = route;
        let (authority, target) = (key::authority(request), key::target(request));
        ctx.search = match &given {
            Some((_, search)) => search.clone(),
            None => self.searches.of(*scope, *scheme, authority.as_bytes(), target),
        };
        let mut key = match &ctx.search {
            None => key::of_target(*scope, *scheme, &policy.query, authority.as_bytes(), target),
            Some(search) => key::of_search(*scope, *scheme, &policy.query, search, authority.as_bytes(), target),
        };
        if let Some((given, _)) = given {
            key.set_primary_bin_override(given);
        }
        if request.headers.contains_key(AUTHORIZATION) {
            key.extensions.insert(Authorised);
        }
        ctx.primary = key::primary_slot(&key);
        Ok(key)
    }

    /// `cache_vary_filter`: what the stored response's `Vary` makes of this request.
    pub fn vary(&'static self, meta: &CacheMeta, request: &RequestHeader, ctx: &mut CacheCtx) -> Option<HashBinary> {
        // Called again when the response is stored; only the lookup tells whether something was there.
        if !ctx.decided && ctx.found == Found::Nothing {
            ctx.found = Found::OtherVariant;
        }
        let variance = vary::variance(meta.headers(), &request.headers);
        let stores_ranges = ctx.route.as_ref().is_some_and(|route| route.policy.stores_ranges);
        if stores_ranges && meta.response_header().status == StatusCode::PARTIAL_CONTENT {
            return Some(vary::of_range(variance, request));
        }
        variance
    }

    /// `cache_hit_filter`: something is stored. Decide whether this request may have it, by freshness and by its own directives.
    pub fn on_hit(
        &'static self,
        cache: &mut HttpCache,
        request: &RequestHeader,
        meta: &CacheMeta,
        handler: &mut HitHandler,
        is_fresh: bool,
        ctx: &mut CacheCtx,
    ) -> Option<ForcedFreshness> {
        let now = SystemTime::now();
        if let Some(reader) = handler.as_any().downcast_ref::<Reader>() {
            ctx.generation = reader.generation();
            ctx.stored_epoch = reader.epoch();
            ctx.joined = reader.is_filling();
            ctx.always_stale = reader.is_always_stale();
            ctx.tier = self.tiers.get().is_some().then(|| reader.tier());
        }
        let is_shared_failure = handler.as_any().downcast_ref::<Reader>().is_some_and(Reader::is_shared_failure);
        if is_shared_failure {
            // For those who asked before the origin failed; for the others there is nothing.
            let waited = ctx.asked.and_then(|asked| SystemTime::now().checked_sub(asked.elapsed()));
            let theirs = waited.is_some_and(|since| since <= meta.created());
            ctx.found = if theirs { Found::Fresh } else { Found::Nothing };
            return Some(if theirs { ForcedFreshness::ForceFresh } else { ForcedFreshness::ForceMiss });
        }
        // Another node knows of a purge, or has seen a change pass, that is not known here.
        if ctx.peers.as_ref().is_some_and(|peers| peers.newer_than != 0 && peers.newer_than >= ctx.stored_epoch) {
            ctx.found = Found::Nothing;
            return Some(ForcedFreshness::ForceMiss);
        }
        ctx.found = if is_fresh { Found::Fresh } else { Found::Stale };
        let policy = Arc::clone(&ctx.route.as_ref()?.policy);

        if policy.honour_request_directives {
            let demand = reuse::demand(&request.headers, meta.headers(), meta.epoch(), meta.fresh_until(), now);
            match demand {
                reuse::Demand::None => {}
                reuse::Demand::AcceptStale => return Some(ForcedFreshness::ForceFresh),
                reuse::Demand::Validate => {
                    ctx.found = Found::ToValidate;
                    // Sharing another's validation would not satisfy this client: go by yourself instead of queueing.
                    drop_lock(cache);
                    return Some(ForcedFreshness::ForceExpired);
                }
            }
        }

        if !is_fresh {
            let window = store::stale_if_error_window(meta.response_header().status.as_u16(), meta.headers(), &policy);
            ctx.stale_on_status = meta.fresh_until().checked_add(window).is_some_and(|until| now <= until);
            if self.stands_in(cache.cache_key(), meta, now, ctx) {
                ctx.stands_in = true;
                return Some(ForcedFreshness::ForceFresh);
            }
            // Stale from the start means every request validates. Behind one lock they would do so one after the other.
            if ctx.always_stale && meta.stale_while_revalidate_sec() == 0 {
                drop_lock(cache);
            }
        }
        None
    }

    /// Whether the request has waited for a fetch that has failed, and for which what is stale was served: then it is served here as well.
    fn stands_in(&self, key: &CacheKey, meta: &CacheMeta, now: SystemTime, ctx: &CacheCtx) -> bool {
        match ctx.asked.and_then(|asked| self.fill_locks.stood_in_since(key, asked)) {
            None => false,
            Some(Outage::Answered) => ctx.stale_on_status,
            Some(Outage::Disconnected) => meta.serve_stale_if_error(now),
        }
    }

    /// What `handler` reads, for those who compress it on its way out; `None` while it is on its way in, or on disk.
    pub fn stored_body(&'static self, handler: &HitHandler) -> Option<StoredBody> {
        StoredBody::of(self.memory, handler.as_any().downcast_ref::<Reader>()?)
    }

    /// What comes after the body that `handler` reads; of one that is on its way in, once it has come.
    #[must_use]
    pub fn trailers(handler: &HitHandler) -> Option<&HeaderMap> {
        handler.as_any().downcast_ref::<Reader>()?.trailers()
    }

    /// `upstream_response_trailer_filter`: what is being stored ends with these.
    pub fn note_trailers(&'static self, cache: &mut HttpCache, trailers: &HeaderMap) {
        if !matches!(cache.phase(), CachePhase::Miss | CachePhase::Expired) {
            return;
        }
        let tag = cache.miss_handler().and_then(|writer| writer.streaming_write_tag());
        let id = tag.and_then(|tag| U64WriteId::try_from(tag).ok()).map(u64::from);
        if let Some(id) = id {
            self.memory.note_trailers(key::slot(cache.cache_key()), id, trailers);
        }
    }

    /// `proxy_upstream_filter`: the request is about to go forward, unless `only-if-cached` forbids it (504: RFC 9111, 5.2.1.7) where the
    /// route obeys requests, or what it has waited for is known to fail, or it is one too many.
    pub fn before_upstream(&'static self, cache: &HttpCache, request: &RequestHeader, ctx: &mut CacheCtx) -> Onward {
        ctx.sent = Some(SystemTime::now());
        ctx.epoch = self.purges.clock().fetch();
        let Some(route) = ctx.route.as_ref().filter(|_| ctx.bypassed.is_none()) else { return Onward::Forward };
        if route.policy.honour_request_directives && reuse::only_if_cached(&request.headers) {
            return Onward::Answer(StatusCode::GATEWAY_TIMEOUT);
        }
        if matches!(cache.phase(), CachePhase::Disabled(NoCacheReason::CacheLockGiveUp)) {
            ctx.remembered = self.hit_for_miss.knows_variant(cache.cache_key());
        }
        match cache.phase() {
            CachePhase::Disabled(NoCacheReason::CacheLockTimeout | NoCacheReason::CacheLockRetryLimit) => {
                if self.refuse_late.load(Ordering::Relaxed) { Onward::Refused } else { Onward::Forward }
            }
            CachePhase::Disabled(NoCacheReason::CacheLockGiveUp) => {
                let key = cache.cache_key();
                if let Some(kind) = ctx.asked.and_then(|asked| self.fill_locks.shared_error(key, asked)) {
                    return Onward::Failed(Error::explain(kind, "as for those who asked before").into_up());
                }
                // A lock that was released is gone; one that is full is still there.
                let full = self.refuse_beyond.load(Ordering::Relaxed) && self.fill_locks.is_crowded(key);
                if full { Onward::Refused } else { Onward::Forward }
            }
            _ => Onward::Forward,
        }
    }

    /// The request has failed with `error`, and will not be tried again: those who wait for it try once more, or share the error.
    pub fn failed(&'static self, cache: &HttpCache, error: &Error) {
        if cache.enabled() && cache.is_cache_lock_writer() {
            self.fill_locks.failed(cache.cache_key(), Some(error.etype().clone()));
        }
    }

    /// Whether any fill is under way, or something is looked for on disk: if not, nobody has to wait.
    #[must_use]
    pub fn fills_are_under_way(&'static self) -> bool {
        self.fill_locks.under_way.any()
    }

    /// Whether a fill of `key` is under way, of whichever variant, or it is looked for on disk.
    #[must_use]
    pub fn is_under_way(&'static self, key: &CacheKey) -> bool {
        self.fill_locks.under_way.has(key::primary_slot(key))
    }

    /// How many requests wait for others' fills.
    #[must_use]
    pub fn waiting(&'static self) -> usize {
        self.fill_locks.waiting_in_all()
    }

    /// `upstream_response_filter`: strip what ends at this hop, keep a 304 for the merge, and invalidate after unsafe methods
    /// (RFC 9110, 7.6.1; RFC 9111, 4.3.4 and 4.4).
    pub async fn upstream_response(
        &'static self,
        request: &RequestHeader,
        response: &mut ResponseHeader,
        ctx: &mut CacheCtx,
    ) {
        if response.status.is_informational() && response.status != StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        ctx.upstream_status = Some(response.status);
        for name in headers::hop_by_hop(response.status, &response.headers) {
            response.remove_header(&name);
        }
        if response.status == StatusCode::NOT_MODIFIED {
            ctx.not_modified = Some(Box::new(response.clone()));
        }

        let Some(route) = &ctx.route else { return };
        if invalidate::applies(&request.method, response.status) {
            let authority = key::authority(request);
            let own = request.uri.path_and_query().map_or("/", |target| target.as_str());
            let named = invalidate::named_targets(&authority, request.uri.path(), &response.headers);
            for target in named.iter().map(String::as_str).chain([own]) {
                self.invalidate(route.scope, route.scheme, &route.policy.query, &authority, target, Purge::Hard);
                if route.policy.has_key_parts {
                    let scopes =
                        [Scope::url(&route.policy.query, &authority, target), Scope::any_query(&authority, target)];
                    self.purges.purge(&scopes, Purge::Hard);
                }
            }
        }
    }

    /// `response_cache_filter`: may the response be stored, and for how long. After a 304 Pingora passes the stored header here; the
    /// rest of the 304's fields are merged into it first (RFC 9111, 3.2).
    pub fn response_decision(
        &'static self,
        cache: &HttpCache,
        request: &RequestHeader,
        response: &ResponseHeader,
        ctx: &mut CacheCtx,
    ) -> RespCacheable {
        ctx.decided = true;
        let received = SystemTime::now();
        let Some(route) = &ctx.route else {
            return RespCacheable::Uncacheable(NoCacheReason::Custom("no-route"));
        };
        let mut header = response.clone();
        if response.status != StatusCode::NOT_MODIFIED
            && let Some(update) = ctx.not_modified.take()
        {
            merge(&mut header, &update);
        }

        let times = Exchange { sent: ctx.sent.unwrap_or(received), received };
        let lifetime = match store::storable(request, &header, &route.policy, times) {
            Storable::Yes(lifetime) => lifetime,
            Storable::No(reason) => {
                ctx.refused = Some(reason);
                if reason != Reason::ServerError
                    && let Some(key) = cache.maybe_cache_key()
                {
                    self.fill_locks.succeeded(key);
                }
                return match self.shared_with_waiters(cache, &header, reason, ctx) {
                    None => RespCacheable::Uncacheable(no_cache_reason(reason)),
                    Some(Shared::NotYet) => RespCacheable::Uncacheable(NoCacheReason::Custom(FIRST_FAILURE)),
                    Some(Shared::Yes) => self.shared_failure(request, header, received, ctx),
                };
            }
        };
        if let Some(key) = cache.maybe_cache_key() {
            self.fill_locks.succeeded(key);
        }
        let said = (header.status, SearchVariance::of(&header.headers));
        if (ctx.search.is_some() || said.1.is_some())
            && !self.is_for_its_queries(request, route, ctx.search.as_ref(), said)
        {
            ctx.refused = Some(Reason::OtherQuery);
            return RespCacheable::Uncacheable(no_cache_reason(Reason::OtherQuery));
        }
        if self.is_too_large(&header, ctx) {
            return RespCacheable::Uncacheable(NoCacheReason::ResponseTooLarge);
        }

        let marks = self.marks(request, &header, route, ctx);
        let withheld = headers::withheld_from_reuse(&header.headers, &route.policy);
        for name in headers::before_storing(&header.headers) {
            header.remove_header(&name);
        }
        // Pingora has one window for errors: keep the larger, and tell status from disconnection in serve_stale.
        let on_error = lifetime.stale_if_error.max(lifetime.stale_if_disconnected);
        let fresh = lifetime.fresh_until.duration_since(received).unwrap_or_default();
        if let Some(longest) = self.purges.note_lifetime(fresh + on_error.max(lifetime.stale_while_revalidate))
            && let Some((_, log)) = self.log.get()
        {
            log.append_later(vec![Record::Lifetime(longest)]);
        }
        let short = ctx.peers.as_ref().and_then(|peers| peers.keep_at_most).and_then(|most| received.checked_add(most));
        let mut meta = CacheMeta::new(
            short.map_or(lifetime.fresh_until, |short| short.min(lifetime.fresh_until)),
            received,
            seconds(lifetime.stale_while_revalidate),
            seconds(on_error),
            header,
        );
        meta.set_epoch_override(lifetime.born);
        meta.extensions_mut().insert(FillNotes::new(marks, ctx.generation, withheld).copied(short.is_some()));
        RespCacheable::Cacheable(meta)
    }

    /// Whether what a response says of queries is what its key was made by; if not, later ones are.
    fn is_for_its_queries(
        &self,
        request: &RequestHeader,
        route: &CachedRoute,
        assumed: Option<&Arc<SearchVariance>>,
        said: (StatusCode, Option<SearchVariance>),
    ) -> bool {
        let url = (key::authority(request), key::target(request));
        self.searches.learn(route.scope, route.scheme, (url.0.as_bytes(), url.1), assumed, said)
    }

    /// What purges reach a response by.
    fn marks(&self, request: &RequestHeader, header: &ResponseHeader, route: &CachedRoute, ctx: &CacheCtx) -> Marks {
        let (authority, target) = (key::authority(request), key::target(request));
        let mut tags = Tags::of(&header.headers, &route.policy.tags);
        let wished = ctx.wishes.iter().flat_map(|wishes| &wishes.tags);
        wished.for_each(|tag| tags.add(Cow::Borrowed(tag), false));
        if tags.dropped() > 0 {
            tracing::debug!(dropped = tags.dropped(), "a response has more or longer tags than are kept");
            self.tags_dropped.fetch_add(tags.dropped() as u64, Ordering::Relaxed);
        }
        let marks = Marks::new(ctx.epoch, route.scheme, &route.policy.query, authority.as_bytes(), target, &tags);
        if ctx.search.is_some() { marks.for_queries(authority.as_bytes(), target) } else { marks }
    }

    /// Whether an answer that is not stored is one to those who wait for it: only a server's error of which nothing is anybody's own.
    /// Not where variants are stored: without their `Vary`, it would take the place of one of them.
    fn shared_with_waiters(
        &self,
        cache: &HttpCache,
        header: &ResponseHeader,
        reason: Reason,
        ctx: &CacheCtx,
    ) -> Option<Shared> {
        let route = ctx.route.as_ref()?;
        let is_own = header.headers.contains_key(SET_COOKIE)
            || !headers::withheld_from_reuse(&header.headers, &route.policy).is_empty();
        if reason != Reason::ServerError || ctx.found != Found::Nothing || is_own {
            return None;
        }
        (cache.enabled() && cache.is_cache_lock_writer())
            .then(|| self.fill_locks.failed(cache.cache_key(), None))
            .flatten()
    }

    /// An error answer that is handed to those who wait for it, and to nobody else.
    fn shared_failure(
        &self,
        request: &RequestHeader,
        mut header: ResponseHeader,
        received: SystemTime,
        ctx: &CacheCtx,
    ) -> RespCacheable {
        let Some(route) = &ctx.route else {
            return RespCacheable::Uncacheable(NoCacheReason::Custom("no-route"));
        };
        let marks = self.marks(request, &header, route, ctx);
        for name in headers::before_storing(&header.headers) {
            header.remove_header(&name);
        }
        let mut meta = CacheMeta::new(received, received, 0, 0, header);
        meta.extensions_mut().insert(FillNotes::shared_failure(marks));
        RespCacheable::Cacheable(meta)
    }

    /// Whether the body is known to exceed the limit, by its length or because it did so a moment ago. Told before the fill begins,
    /// all waiters can go forward at once.
    fn is_too_large(&self, header: &ResponseHeader, ctx: &CacheCtx) -> bool {
        match header.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok()) {
            Some(length) => {
                length > self.tiers.get().map_or_else(|| self.memory.max_object(), |tiers| tiers.max_object())
            }
            None => self.hit_for_miss.was_too_large(ctx.primary),
        }
    }

    /// `cache_not_modified_filter`: whether the client has `response` already (RFC 9110, 13).
    #[must_use]
    pub fn not_modified(&'static self, request: &RequestHeader, response: &ResponseHeader) -> bool {
        reuse::not_modified(request, response)
    }

    /// `should_serve_stale`: whether a stale response may be served now that its window is open. `None` is Pingora asking for
    /// stale-while-revalidate, which the window alone decides. On errors, statuses 500, 502, 503 and 504 need an explicit
    /// stale-if-error (RFC 5861, 4); a failing connection to the origin does not (RFC 9111, 4.2.4).
    #[must_use]
    pub fn serve_stale(&'static self, cache: &HttpCache, error: Option<&Error>, ctx: &mut CacheCtx) -> bool {
        let Some(error) = error else { return true };
        let (may, outage) = match error.etype() {
            ErrorType::HTTPStatus(code) => {
                // Pingora asks here before upstream_response_filter, which then never sees the answer.
                ctx.upstream_status = StatusCode::from_u16(*code).ok();
                (matches!(code, 500 | 502 | 503 | 504) && ctx.stale_on_status, Outage::Answered)
            }
            _ => (*error.esource() == ErrorSource::Upstream, Outage::Disconnected),
        };
        if may && cache.enabled() && cache.is_cache_lock_writer() {
            self.fill_locks.stood_in(cache.cache_key(), outage);
        }
        may
    }

    /// How this request was handled, for `Cache-Status` (RFC 9211). Ask when the response header is about to go out, as in
    /// `response_filter`; and again in `logging` for the log.
    #[must_use]
    pub fn status<'a>(&'static self, cache: &HttpCache, ctx: &CacheCtx, node: &'a str) -> CacheStatus<'a> {
        let mut status = CacheStatus::new(node);
        let phase = cache.phase();
        let waited = cache.lock_duration().is_some();
        match phase {
            CachePhase::Hit if ctx.stands_in => {
                (status.fwd, status.collapsed) = (Some(Fwd::Stale), true);
                status.detail = Some("stale-if-error");
            }
            CachePhase::Hit if ctx.joined || waited => {
                // What another request is fetching, or fetched while we waited, is no hit (RFC 9211, 2.6).
                status.fwd = Some(Fwd::UriMiss);
                status.collapsed = true;
            }
            CachePhase::Hit => {
                status.hit = true;
                status.detail = ctx.tier;
            }
            CachePhase::StaleUpdating => {
                status.hit = true;
                status.detail = Some("stale-while-revalidate");
            }
            CachePhase::Stale => {
                status.fwd = Some(Fwd::Stale);
                status.detail = Some("stale-if-error");
            }
            CachePhase::Miss | CachePhase::Expired | CachePhase::Revalidated => {
                status.fwd = Some(forwarded(ctx));
                status.stored = ctx.refused.is_none();
            }
            CachePhase::RevalidatedNoCache(_) => status.fwd = Some(forwarded(ctx)),
            CachePhase::Bypass => {
                status.fwd = Some(Fwd::Bypass);
                status.detail = Some("hit-for-miss");
            }
            CachePhase::Disabled(reason) => {
                status.fwd = Some(forwarded(ctx));
                status.detail = if ctx.remembered { Some("hit-for-miss") } else { detail(reason, ctx) };
            }
            CachePhase::Uninit | CachePhase::CacheKey => status.fwd = Some(Fwd::Bypass),
        }
        if let Some(meta) = cache.maybe_cache_meta() {
            status.ttl = Some(ttl(meta.fresh_until(), SystemTime::now()));
        }
        if status.fwd.is_some() {
            status.fwd_status = ctx.upstream_status;
            status.detail = status.detail.or(ctx.peers.as_ref().is_some_and(|peers| peers.answers).then_some("peer"));
        }
        status
    }

    /// The epoch at which the fetch of what this request is answered with began, for nodes that keep a copy: what is purged here is purged
    /// there as well.
    #[must_use]
    pub fn epoch_of_answer(&'static self, cache: &HttpCache, ctx: &CacheCtx) -> u64 {
        match cache.phase() {
            CachePhase::Hit | CachePhase::Stale | CachePhase::StaleUpdating => ctx.stored_epoch,
            _ => ctx.epoch,
        }
    }

    /// The epoch of the last purge or invalidation that is known here of what this request asks for; 0 is none. What was fetched before is
    /// not to be taken from another node either. Purges of tags are not among it: nobody knows them before the response.
    #[must_use]
    pub fn outdated_until(&'static self, request: &RequestHeader, ctx: &CacheCtx) -> u64 {
        let Some(route) = &ctx.route else { return 0 };
        let (authority, target) = (key::authority(request), key::target(request));
        let (query, tags) = (&route.policy.query, Tags::default());
        let marks = Marks::new(ctx.epoch, route.scheme, query, authority.as_bytes(), target, &tags);
        let purged = self.purges.newest_of(&marks.for_queries(authority.as_bytes(), target));
        let asked = ctx.peers.as_ref().map_or(0, |peers| peers.newer_than);
        purged.max(self.memory.invalidated_at(ctx.primary)).max(asked)
    }

    /// Another node waits for something newer than this: what is fetched here from now on is.
    pub fn is_asked_for_newer(&'static self, than: u64, ctx: &mut CacheCtx) {
        ctx.only_newer_than(than);
        self.purges.clock().observe_other(than);
    }

    /// Whether a response of another node, whose fetch began at `epoch`, was purged or invalidated since then, as far as is known here.
    #[must_use]
    pub fn is_outdated(
        &'static self,
        request: &RequestHeader,
        response: &ResponseHeader,
        epoch: u64,
        ctx: &CacheCtx,
    ) -> bool {
        let Some(route) = &ctx.route else { return false };
        let asked = ctx.peers.as_ref().map_or(0, |peers| peers.newer_than);
        if self.memory.is_invalidated_since(ctx.primary, epoch) || (asked != 0 && asked >= epoch) {
            return true;
        }
        if !self.purges.may_reach(epoch) {
            return false;
        }
        let (authority, target) = (key::authority(request), key::target(request));
        let (query, tags) = (&route.policy.query, Tags::of(&response.headers, &route.policy.tags));
        let marks = Marks::new(epoch, route.scheme, query, authority.as_bytes(), target, &tags);
        self.purges.verdict(&marks.for_queries(authority.as_bytes(), target)) != Verdict::Live
    }

    /// `response_filter`: append [`status`](Self::status) to `response`, after what caches nearer to the origin said (RFC 9211, 2). `key` is
    /// what its key is made of, if the client is to know.
    pub fn append_status<'a>(
        &'static self,
        cache: &HttpCache,
        ctx: &CacheCtx,
        node: &'a str,
        key: Option<&'a str>,
        response: &mut ResponseHeader,
    ) {
        let mut status = self.status(cache, ctx, node);
        status.key = key;
        let value = status.to_value();
        // Refused only when a header has more than 4096 fields: then the client can do without this one.
        let _refused = response.append_header(CACHE_STATUS, value);
    }

    /// Put one URL of one route out of date with all its variants, on this node alone (RFC 9111, 4.4), and forget that it could not be
    /// stored. `target` is path and query; it goes through the same `query` policy as requests. Fills of it under way still reach
    /// their readers, but are not kept. Says how many objects it met, of those on disk the first. Not for operators' purges: see [`purge`](Self::purge).
    pub fn invalidate(
        &'static self,
        scope: KeyScope,
        scheme: Scheme,
        query: &QueryPolicy,
        authority: &str,
        target: &str,
        purge: Purge,
    ) -> usize {
        let key = key::of_target(scope, scheme, query, authority.as_bytes(), target.as_bytes());
        let primary = key::primary_slot(&key);
        self.hit_for_miss.forget(primary);
        if let Some(search) = self.searches.of(scope, scheme, authority.as_bytes(), target.as_bytes()) {
            let key = key::of_search(scope, scheme, query, &search, authority.as_bytes(), target.as_bytes());
            self.hit_for_miss.forget(key::primary_slot(&key));
            self.purges.purge(&[Scope::any_query(authority, target)], purge);
        }
        let met = self.memory.purge_family(primary, purge);
        let Some(tiers) = self.tiers.get() else { return met };
        let on_disk = tiers.store().has(primary, primary);
        match purge {
            Purge::Hard => tiers.store().forget(Removal::Family(primary)),
            // It would have to be read to be marked: it is judged when it is.
            Purge::Soft => drop(self.purges.purge(&[Scope::url(query, authority, target)], Purge::Soft)),
        }
        met.max(usize::from(on_disk))
    }

    /// Purge all that belongs to these scopes, whatever route and variant it is of. Nothing of it is handed out to requests that come
    /// after this returns. Gives back the epoch of the purge.
    pub fn purge(&'static self, scopes: &[Scope], purge: Purge) -> u64 {
        let epoch = self.purges.purge(scopes, purge);
        if purge == Purge::Hard && scopes.contains(&Scope::everything()) {
            self.hit_for_miss.forget_all();
            self.memory.clear();
            if let Some(tiers) = self.tiers.get() {
                tiers.store().forget(Removal::All);
            }
        }
        epoch
    }

    /// The same, and on disk when this returns, if there is a [log](Self::open_log). With it go the records in `also`.
    ///
    /// # Errors
    /// It is not on disk. It is in force all the same.
    pub async fn purge_for_good(
        &'static self,
        scopes: &[Scope],
        purge: Purge,
        also: Vec<Record>,
    ) -> Result<Purged, LogError> {
        let epoch = self.purge(scopes, purge);
        let Some((_, log)) = self.log.get() else { return Ok(Purged { epoch, durable: false }) };
        let records = scopes.iter().map(|scope| Record::Purge { scope: *scope, epoch, purge });
        log.append(records.chain(also).collect()).await?;
        Ok(Purged { epoch, durable: true })
    }

    /// The same, but on disk only soon after this returns.
    pub fn purge_soon_durable(&'static self, scopes: &[Scope], purge: Purge) -> u64 {
        let epoch = self.purge(scopes, purge);
        if let Some(log) = self.log() {
            let records = scopes.iter().map(|scope| Record::Purge { scope: *scope, epoch, purge });
            if !log.append_later(records.collect()) {
                tracing::warn!("a purge is in force, and does not get into its log: the disk is too slow");
            }
        }
        epoch
    }

    /// Take over the purges that this file holds, and keep those to come in it. Once per process; a second call with the same path does
    /// nothing.
    ///
    /// # Errors
    /// The file cannot be used, or another one is in use.
    pub fn open_log(&'static self, path: &Path) -> Result<(), OpenError> {
        // One at a time: two would take over the purges twice, and append as two.
        static OPENING: Mutex<()> = Mutex::new(());
        let _turn = OPENING.lock();
        match self.log.get() {
            Some((open, _)) if open == path => Ok(()),
            Some(_) => Err(OpenError::AnotherIsOpen),
            None => {
                let log = PurgeLog::open(path, self.purges)?;
                // Nobody else fills it: it is our turn.
                let _filled = self.log.set((path.to_owned(), log));
                Ok(())
            }
        }
    }

    /// How many tags of stored responses were too many, or too long.
    #[must_use]
    pub fn tags_dropped(&'static self) -> u64 {
        self.tags_dropped.load(Ordering::Relaxed)
    }

    /// Where purges are kept, if they are.
    #[must_use]
    pub fn log(&'static self) -> Option<&'static PurgeLog> {
        self.log.get().map(|(_, log)| log)
    }

    /// Purge everything, hard.
    pub fn purge_all(&'static self) {
        self.purge(&[Scope::everything()], Purge::Hard);
    }

    /// The purges that still matter.
    #[must_use]
    pub fn purges(&'static self) -> &'static Purges {
        self.purges
    }

    /// What each disk holds and does; none without a disk tier.
    #[must_use]
    pub fn disks(&'static self) -> Vec<DiskUsage> {
        self.tiers.get().map(|tiers| tiers.usage()).unwrap_or_default()
    }

    /// Waits until what is on the disks can be found, `patience` at most.
    pub fn wait(&'static self, patience: Duration) {
        if let Some(tiers) = self.tiers.get() {
            tiers.store().wait(patience);
        }
    }

    /// Writes to the disks what waits to be, and gives them back, within `patience`. From then on the cache is one of memory alone. Blocks.
    pub fn close(&'static self, patience: Duration) {
        if let Some(tiers) = self.tiers.get() {
            tiers.store().close_within(patience);
        }
    }

    /// Let go of the memory that stored responses take: nobody will ask for them any more.
    pub fn retire(&'static self) {
        self.memory.clear();
        self.memory.settle();
    }

    /// What the memory tier holds at the moment, for metrics.
    #[must_use]
    pub fn usage(&'static self) -> Usage {
        self.memory.usage()
    }

    /// The storage of all tiers, for tools that drive it directly.
    #[must_use]
    pub fn storage(&'static self) -> &'static (dyn Storage + Sync) {
        match self.tiers.get() {
            None => self.memory,
            Some(tiers) => *tiers,
        }
    }

    /// The memory tier, for tools that drive it directly.
    #[must_use]
    pub fn memory(&'static self) -> &'static MemoryTier {
        self.memory
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("memory", &self.memory.usage())
            .field("fills", &self.fill_locks)
            .finish_non_exhaustive()
    }
}

/// Why a request must not touch the cache, if so.
fn bypass(request: &RequestHeader) -> Option<Bypass> {
    if request.method != Method::GET && request.method != Method::HEAD {
        return Some(Bypass::Method);
    }
    let has = |name| request.headers.contains_key(name);
    let has_body = has(TRANSFER_ENCODING) || request.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0");
    (has(IF_MATCH) || has(IF_UNMODIFIED_SINCE) || has(UPGRADE) || has_body).then_some(Bypass::Request)
}

/// Let this request go forward without waiting for another, and without making others wait.
fn drop_lock(cache: &mut HttpCache) {
    // Pingora allows this before the lock is taken, which is where cache_hit_filter stands.
    if matches!(cache.phase(), CachePhase::CacheKey | CachePhase::Stale | CachePhase::Hit) {
        cache.set_cache_lock(None, None);
    }
}

/// Bring the fields of a 304 into the stored header (RFC 9111, 3.2 and 4.3.4).
fn merge(stored: &mut ResponseHeader, update: &ResponseHeader) {
    let outdated: Vec<_> = stored.headers.keys().filter(|name| headers::is_outdated_by_304(name)).cloned().collect();
    for name in outdated {
        stored.remove_header(&name);
    }
    for name in update.headers.keys().filter(|name| headers::is_updated_by_304(name)) {
        stored.remove_header(name);
        for value in update.headers.get_all(name) {
            // Refused only when a header has more than 4096 fields; the stored ones then stay without this one.
            let _refused = stored.append_header(name.clone(), value.clone());
        }
    }
}

fn no_cache_reason(reason: Reason) -> NoCacheReason {
    if reason.is_lasting() { NoCacheReason::OriginNotCache } else { NoCacheReason::Custom(reason.as_str()) }
}

fn forwarded(ctx: &CacheCtx) -> Fwd {
    match (ctx.bypassed, ctx.found) {
        (Some(Bypass::Method), _) => Fwd::Method,
        (Some(Bypass::Request | Bypass::Wish), _) => Fwd::Bypass,
        (None, _) if ctx.route.is_none() => Fwd::Bypass,
        (None, Found::Nothing) => Fwd::UriMiss,
        (None, Found::OtherVariant) => Fwd::VaryMiss,
        (None, Found::Fresh | Found::Stale) => Fwd::Stale,
        (None, Found::ToValidate) => Fwd::Request,
    }
}

fn detail(reason: NoCacheReason, ctx: &CacheCtx) -> Option<&'static str> {
    match reason {
        NoCacheReason::NeverEnabled => None,
        NoCacheReason::ResponseTooLarge | NoCacheReason::PredictedResponseTooLarge => Some("too-large"),
        NoCacheReason::CacheLockTimeout => Some("collapse-timeout"),
        NoCacheReason::CacheLockGiveUp => Some("collapse-released"),
        NoCacheReason::CacheLockRetryLimit => Some("collapse-retries"),
        NoCacheReason::StorageError | NoCacheReason::InternalError => Some("cache-error"),
        NoCacheReason::UpstreamError => Some("upstream-error"),
        _ => ctx.refused.map(Reason::as_str),
    }
}

/// Seconds of freshness left; negative when over. A response that ran out this very second is at -1, so that 0 is still fresh.
fn ttl(fresh_until: SystemTime, now: SystemTime) -> i64 {
    let whole = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    match fresh_until.duration_since(now) {
        Ok(left) => whole(left),
        Err(over) => -whole(over.duration()) - 1,
    }
}

fn seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_adjusted_is() {
        let cache = Cache::leak(CacheOptions::default());
        let changed = CacheOptions {
            memory_size: 1,
            max_object: 7,
            collapse_wait: Duration::from_secs(1),
            ..CacheOptions::default()
        };
        cache.adjust(changed);
        assert_eq!(cache.memory.max_object(), 7);
        assert_eq!(cache.collapse_wait_ms.load(Ordering::Relaxed), 1000);
        assert_eq!(cache.usage().capacity, CacheOptions::default().memory_size, "fixed until the next start");
    }

    /// RFC 9211, 2.4: negative once stale.
    #[test]
    fn ttl_counts_down_past_zero() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        for (until, expected) in [(10_500, -90), (99_500, -1), (100_000, 0), (100_900, 0), (101_000, 1)] {
            assert_eq!(ttl(SystemTime::UNIX_EPOCH + Duration::from_millis(until), now), expected);
        }
    }

    #[test]
    fn which_requests_leave_the_cache_alone() {
        for (method, field, value, expected) in [
            ("GET", "accept", "*/*", None),
            ("HEAD", "range", "bytes=0-1", None),
            ("GET", "content-length", "0", None),
            ("POST", "accept", "*/*", Some(Bypass::Method)),
            ("GET", "content-length", "1", Some(Bypass::Request)),
            ("GET", "transfer-encoding", "chunked", Some(Bypass::Request)),
            ("GET", "if-match", "*", Some(Bypass::Request)),
            ("GET", "if-unmodified-since", "now", Some(Bypass::Request)),
            ("GET", "upgrade", "websocket", Some(Bypass::Request)),
        ] {
            let mut request = RequestHeader::build(method, b"/", None).expect("a request");
            request.insert_header(field, value).expect("a field");
            assert_eq!(bypass(&request), expected, "{method} {field}: {value}");
        }
    }
}
