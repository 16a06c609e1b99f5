//! Step 4: the cache. Thin: the rules and tiers are in `selvedge-cache`.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::{Method, header};
use pingora::cache::key::HashBinary;
use pingora::cache::storage::HitHandler;
use pingora::cache::{CacheKey, CacheMeta, ForcedFreshness};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::proxy::{RangeType, Session, range_header_filter};
use pingora::{Error, ErrorType, Result};
use selvedge_cache::rules::ranges::{self, Part};
use selvedge_cache::{Cache, Onward, Scheme};

use super::select::asker;
use super::{RequestCtx, fail, leader, respond, step, waiting};
use crate::chain::exchange::facts::Cached;
use crate::cluster;
use crate::listener::ListenerFacts;
use crate::plan::{Route, Selected};

/// Turns the cache on, on routes that have one, and where the request may put out of date what another route has stored.
///
/// # Errors
/// The request's header has no room for what the origin is told.
pub(crate) fn enable(session: &mut Session, ctx: &mut RequestCtx, listener: &ListenerFacts) -> Result<()> {
    let (Some(cache), Some(route)) = (ctx.plan.cache, &ctx.route) else { return Ok(()) };
    let request = session.downstream_session.req_header();
    let stored_by = if route.cache.is_none() { route_of_get(request, session.digest(), ctx, listener) } else { None };
    let Some(rule) = stored_by.as_ref().unwrap_or(route).cache.as_ref() else { return Ok(()) };
    step!(ctx, "lookup");
    ctx.cache.asked(ctx.started);
    let scheme = if ctx.downstream.tls { Scheme::Https } else { Scheme::Http };
    let mut scope = rule.scope;
    if let Some(key_parts) = &rule.key_parts {
        key_parts.write(session.downstream_session.req_header_mut())?;
        scope = key_parts.scope(scope, session.downstream_session.req_header(), ctx);
    }
    let request = session.downstream_session.req_header();
    if cache.enable(&mut session.cache, request, scope, scheme, &rule.policy, &mut ctx.cache) {
        waiting::may_begin(session, ctx, cache);
    }
    Ok(())
}

/// The route that a `GET` of this URL takes, if the request's own method is unsafe. Routes tell methods apart and URLs do not: what
/// that route has stored is out of date after this request (RFC 9111, 4.4), although its own route stores nothing.
pub(super) fn route_of_get(
    request: &RequestHeader,
    digest: Option<&Digest>,
    ctx: &RequestCtx,
    listener: &ListenerFacts,
) -> Option<Arc<Route>> {
    if request.method.is_safe() {
        return None;
    }
    let mut get = request.clone();
    get.set_method(Method::GET);
    match ctx.plan.select(&asker(&get, digest, ctx, listener))? {
        Selected::Route(route) => Some(Arc::clone(route)),
        Selected::NoRoute => None,
    }
}

/// The primary key of the request.
pub(crate) fn key(session: &Session, ctx: &mut RequestCtx) -> Result<CacheKey> {
    let Some(mut key) = ctx.cache.kept_key() else { return make_key(session, ctx) };
    waiting::mark(&mut key, ctx);
    Ok(key)
}

pub(super) fn make_key(session: &Session, ctx: &mut RequestCtx) -> Result<CacheKey> {
    let Some(cache) = ctx.plan.cache else {
        return Error::e_explain(ErrorType::InternalError, "the cache is on without being configured");
    };
    let mut key = cache.key(session.req_header(), &mut ctx.cache)?;
    if ctx.plan.cluster.is_some() {
        cluster::ask::find_way(&mut key, ctx);
    }
    Ok(key)
}

/// What the key is made of, for people to read; `None` where the cache was not asked.
pub(crate) fn key_in_words(session: &Session, ctx: &RequestCtx) -> Option<String> {
    let words = ctx.cache.key_in_words(session.req_header())?;
    let key_parts = ctx.route.as_ref().and_then(|route| route.cache.as_ref()?.key_parts.as_ref());
    Some(match key_parts.filter(|key_parts| key_parts.exist()) {
        Some(key_parts) => format!("{words} {}", key_parts.in_words(session.req_header(), ctx)),
        None => words,
    })
}

/// What the stored `Vary` makes of the request.
pub(crate) fn variance(meta: &CacheMeta, ctx: &mut RequestCtx, request: &RequestHeader) -> Option<HashBinary> {
    ctx.plan.cache?.vary(meta, request, &mut ctx.cache)
}

/// Something is stored: may this request have it?
pub(crate) fn hit(
    session: &mut Session,
    meta: &CacheMeta,
    hit: &mut HitHandler,
    is_fresh: bool,
    ctx: &mut RequestCtx,
) -> Option<ForcedFreshness> {
    step!(ctx, "hit", fresh = is_fresh);
    let cache = ctx.plan.cache?;
    if let Some(slot) = ctx.slot.as_ref().filter(|_| ctx.route.as_ref().is_some_and(|route| route.compress.is_some())) {
        *slot.stored.lock() = cache.stored_body(hit);
    }
    let request = session.downstream_session.req_header();
    let forced = cache.on_hit(&mut session.cache, request, meta, hit, is_fresh, &mut ctx.cache);
    let answers = matches!(forced, Some(ForcedFreshness::ForceFresh)) || forced.is_none() && is_fresh;
    ctx.trailers = Cache::trailers(hit).map(|trailers| Box::new(trailers.clone()));
    if answers && ctx.leader.is_some() {
        let _gone = waiting::is_over(session, ctx); // Writing to it fails.
    }
    if answers && ctx.cache.reads_along() {
        waiting::reads_along(session, ctx, hit);
    } else if answers {
        trailers_follow(session, ctx);
    }
    forced
}

/// What is stored answers after all: what it ends with goes along.
pub(super) fn trailers_follow(session: &mut Session, ctx: &mut RequestCtx) {
    if let Some(trailers) = ctx.trailers.take() {
        leader::ends_with(session, &trailers, ctx);
    }
}

/// A stale response, and an error or (`None`) the wish to fetch it anew in the background: serve it?
pub(crate) fn serve_stale(
    session: &mut Session,
    ctx: &mut RequestCtx,
    listener: &ListenerFacts,
    error: Option<&Error>,
) -> bool {
    if error.is_none() {
        let _gone = waiting::is_over(session, ctx); // Writing to it fails.
    }
    let may = error.is_some() || can_be_repeated(session, ctx, listener);
    let stale = may && ctx.plan.cache.is_some_and(|cache| cache.serve_stale(&session.cache, error, &mut ctx.cache));
    step!(ctx, "stale", served = stale);
    if stale && error.is_none() {
        leader::readable(session, ctx); // Pingora fetches it anew with a request made after this one.
    }
    if stale {
        trailers_follow(session, ctx);
    }
    if let Some(error) = error
        && stale
        && !matches!(error.etype(), ErrorType::HTTPStatus(_))
    {
        // Pingora closes the client's connection after this, whatever it has said: let it say so.
        match &ctx.slot {
            Some(slot) => slot.close.store(true, Ordering::Relaxed),
            None => session.downstream_session.set_keepalive(None),
        }
    }
    stale
}

/// Whether a request made in the background from this one's header reaches the same origin. It does not pass the filters again, so the
/// upstream they have chosen and what they want of the cache are unknown to it, and where they have changed the target, it may take
/// another route. What it would store then is another page; rather than that, this request fetches for itself.
pub(super) fn can_be_repeated(session: &Session, ctx: &RequestCtx, listener: &ListenerFacts) -> bool {
    let Some(route) = &ctx.route else { return false };
    route.filters.is_empty()
        || cluster::serve::is_visitor(ctx) // It says itself which route it is for.
        || ctx.upstream.is_none()
            && !ctx.cache.has_wishes()
            && matches!(ctx.plan.select(&asker(session.req_header(), session.digest(), ctx, listener)), Some(Selected::Route(again)) if Arc::ptr_eq(again, route))
}

/// The request is about to go forward, unless it must not (`only-if-cached`); false when it was answered here.
///
/// # Errors
/// What it was waiting for has failed, or too many wait for the same, or its client has left.
pub(crate) async fn before_upstream(session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
    let Some(cache) = ctx.plan.cache else { return Ok(true) };
    if ctx.leader.is_some() {
        waiting::is_over(session, ctx)?;
    }
    match cache.before_upstream(&session.cache, session.downstream_session.req_header(), &mut ctx.cache) {
        Onward::Forward => {
            if session.cache.enabled() {
                leader::unhurried(session, ctx);
            }
            Ok(true)
        }
        Onward::Answer(status) => {
            let cached = facts(session, ctx);
            ctx.tell(|known| known.cached = cached);
            ctx.note(|state| state.details = Some("not_in_cache".into()));
            ctx.answers_here(session);
            respond::text(session, status.as_u16(), "not in the cache\n").await?;
            Ok(false)
        }
        Onward::Failed(error) => Err(error),
        Onward::Refused => Error::e_explain(fail::TOO_MANY_WAIT, "others wait for the same"),
    }
}

/// The request cannot be answered by an upstream, with `error`: what that means to those who wait for it.
pub(crate) fn failed(session: &Session, ctx: &RequestCtx, error: &Error) {
    if let Some(cache) = ctx.plan.cache {
        cache.failed(&session.cache, error);
    }
}

/// Whether the client has the response already.
pub(crate) fn not_modified(session: &Session, response: &ResponseHeader, ctx: &RequestCtx) -> bool {
    ctx.plan.cache.is_some_and(|cache| cache.not_modified(session.req_header(), response))
}

/// The most parts that are given in one response (RFC 9110, 14.2 leaves it to the server).
const PARTS_MAX: usize = 200;

/// Makes the response one of the part that the request asks for, if it is to have one.
pub(crate) fn part(request: &RequestHeader, response: &mut ResponseHeader) -> RangeType {
    match ranges::part(&request.headers, &response.headers) {
        Part::Whole if !request.headers.contains_key(header::RANGE) => {
            range_header_filter(request, response, Some(PARTS_MAX))
        }
        Part::Of(Cow::Borrowed(_)) => range_header_filter(request, response, Some(PARTS_MAX)),
        part => {
            let mut request = request.clone();
            match part {
                Part::Of(range) => drop(request.insert_header(header::RANGE, range.into_owned())),
                Part::Whole => drop(request.remove_header(&header::RANGE)),
            }
            range_header_filter(&request, response, Some(PARTS_MAX))
        }
    }
}

/// Appends `Cache-Status` on routes that cache, and takes away the tags that are not for clients.
pub(crate) fn status(session: &Session, response: &mut ResponseHeader, ctx: &RequestCtx) {
    if let Some(cache) = cached(ctx) {
        let for_client = !cluster::serve::is_visitor(ctx); // Other nodes purge by them.
        let withheld =
            ctx.route.as_ref().filter(|_| for_client).and_then(|route| route.cache.as_ref()).map(|rule| &rule.withheld);
        for name in withheld.into_iter().flatten() {
            response.remove_header(name);
        }
        let rule = ctx.route.as_ref().filter(|_| for_client).and_then(|route| route.cache.as_ref());
        let key = rule.filter(|rule| rule.shows_key).and_then(|_| key_in_words(session, ctx));
        cache.append_status(&session.cache, &ctx.cache, &ctx.plan.node.name, key.as_deref(), response);
    }
}

/// What filters may know of it; `None` on routes that do not cache.
pub(crate) fn facts(session: &Session, ctx: &RequestCtx) -> Option<Cached> {
    let meta = session.cache.maybe_cache_meta();
    let status = cached(ctx)?.status(&session.cache, &ctx.cache, "");
    Some(Cached {
        status: word(session, ctx)?,
        hit: status.hit,
        key: ctx.cache.key(),
        age: meta.map(CacheMeta::age),
        fresh_until: meta.map(CacheMeta::fresh_until),
    })
}

/// One word for the access log; `None` on routes that do not cache.
pub(crate) fn word(session: &Session, ctx: &RequestCtx) -> Option<&'static str> {
    let status = cached(ctx)?.status(&session.cache, &ctx.cache, "");
    if ctx.sliced {
        return Some("sliced");
    }
    Some(match (status.hit, status.collapsed, &status.fwd) {
        (true, ..) => "hit",
        (_, true, _) => "collapsed",
        (.., Some(forwarded)) => forwarded.as_str(),
        _ => "none",
    })
}

fn cached(ctx: &RequestCtx) -> Option<&'static Cache> {
    ctx.plan.cache.filter(|_| !ctx.is_inner() && ctx.route.as_ref().is_some_and(|route| route.cache.is_some()))
}
