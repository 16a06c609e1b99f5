//! Responses to `POST` that say they are what a `GET` of the same URL would bring (RFC 9110, 9.3.3): the next `GET` finds them stored.
//!
//! Pingora's cache is for `GET` and `HEAD`. What comes for a `POST` is gathered beside it, up to [`BODY_MAX`], and stored when all of it
//! has come. It is nobody's to wait for.

use std::fmt;

use bytes::{Bytes, BytesMut};
use http::Method;
use http::header::VARY;
use pingora_cache::storage::Storage;
use pingora_cache::trace::Span;
use pingora_cache::{CacheKey, CacheMeta, HttpCache, RespCacheable};
use pingora_http::{RequestHeader, ResponseHeader};

use crate::rules::{invalidate, store};
use crate::{Cache, CacheCtx, key};

/// The largest body that is gathered.
const BODY_MAX: usize = 1 << 20;

/// A response on its way.
pub(crate) struct Gathered {
    key: CacheKey,
    meta: CacheMeta,
    body: BytesMut,
    whole: bool,
}

impl fmt::Debug for Gathered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gathered").field("body", &self.body.len()).field("whole", &self.whole).finish_non_exhaustive()
    }
}

impl Cache {
    /// `upstream_response_filter`, after [`upstream_response`](Self::upstream_response): begins to gather a response to `POST` that may be
    /// reused for `GET`: with a `Content-Location` that is the request's own URL and a lifetime of the origin's, and without `Vary`.
    pub fn gather(
        &'static self,
        cache: &HttpCache,
        request: &RequestHeader,
        response: &ResponseHeader,
        ctx: &mut CacheCtx,
    ) {
        if request.method != Method::POST || !response.status.is_success() || response.headers.contains_key(VARY) {
            return;
        }
        let Some(route) = &ctx.route else { return };
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        if ctx.wishes.as_ref().is_some_and(|wishes| wishes.bypass)
            || !invalidate::is_content_of(&key::authority(request), target, &response.headers)
            || !store::has_explicit_lifetime(&response.headers)
        {
            return;
        }
        let mut get = request.clone();
        get.set_method(Method::GET);
        // What the request itself has just put out of date is older than this.
        let epoch = self.purges.clock().fetch();
        let mut like_get = CacheCtx { route: Some(route.clone()), sent: ctx.sent, epoch, ..CacheCtx::default() };
        // First: what the response says of queries is judged by what its key was made of.
        let Ok(key) = self.key(&get, &mut like_get) else { return };
        let RespCacheable::Cacheable(meta) = self.response_decision(cache, &get, response, &mut like_get) else {
            return;
        };
        ctx.gathered = Some(Box::new(Gathered { key, meta, body: BytesMut::new(), whole: false }));
    }

    /// When the exchange is over: stores what was [gathered](Self::gather), if all of it has come.
    pub async fn store_gathered(&'static self, ctx: &mut CacheCtx) {
        let Some(gathered) = ctx.gathered.take().filter(|gathered| gathered.whole) else { return };
        let Gathered { key, meta, body, .. } = *gathered;
        let trace = Span::inactive().handle();
        let stored = async {
            let mut writer = match self.tiers.get() {
                None => self.memory.get_miss_handler(&key, &meta, &trace).await?,
                Some(tiers) => tiers.get_miss_handler(&key, &meta, &trace).await?,
            };
            writer.write_body(body.freeze(), true).await?;
            writer.finish().await
        };
        if let Err(error) = stored.await {
            tracing::debug!(%error, "a response to POST was not stored");
        }
    }
}

impl CacheCtx {
    /// Whether something is [gathered](Cache::gather).
    #[must_use]
    pub fn gathers(&self) -> bool {
        self.gathered.is_some()
    }

    /// `upstream_response_body_filter`: takes note of what comes, where it is [gathered](Cache::gather).
    pub fn gather_body(&mut self, body: Option<&Bytes>, end: bool) {
        let Some(gathered) = &mut self.gathered else { return };
        let more = body.map_or(0, Bytes::len);
        if gathered.body.len() + more > BODY_MAX {
            self.gathered = None;
            return;
        }
        gathered.body.extend_from_slice(body.map_or(&[], |body| body));
        gathered.whole |= end;
    }
}
