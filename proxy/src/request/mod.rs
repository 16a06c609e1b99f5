//! One request, as the code tells it. [`Edge`] is the story in Pingora's hooks; each step is a file here, in order.
//!
//! | step | hook | file |
//! |---|---|---|
//! | `admit` | `early_request_filter` | [`admit`] |
//! | `select` | `request_filter` | [`select`] |
//! | `filter` (request) | `request_filter`, `request_body_filter` | [`filter`], `chain/` |
//! | `lookup` | `request_cache_filter` .. `cache_hit_filter` | [`lookup`] |
//! | `lookup`, waiting for another's fetch | the same | [`waiting`] |
//! | `forward` | `upstream_peer`, `upstream_request_filter`, `error_while_proxy` | [`forward`], [`retry`] |
//! | `forward`, the short way | `proxy_upstream_filter` | [`direct`] |
//! | `forward`, filling the cache | every write to the first client | [`leader`] |
//! | what a change has put out of date | `upstream_response_filter` | [`refresh`] |
//! | filters at the origin's side: all of this once more | `upstream_peer` .. | [`origin_side`] |
//! | `store` | `upstream_response_filter`, `response_cache_filter` | [`store`] |
//! | `respond` | `response_filter` | [`respond`] |
//! | `filter` (response) | every write to the client | [`crate::chain::outbound`] |
//! | `fail` | `fail_to_proxy` | [`fail`] |
//! | `finish` | `logging` | [`finish`] |

pub(crate) mod admit;

pub(crate) mod downstream;

mod forwarded;

pub(crate) mod cdn_loop;

mod hygiene;

pub(crate) mod paths;

pub(crate) mod redirect;

pub(crate) mod select;

pub(crate) mod purge;

mod grpc_web;

pub(crate) mod wrapped;

pub(crate) mod filter;

pub(crate) mod lookup;

mod waiting;

pub(crate) mod key_parts;

mod device;

pub(crate) mod forward;

pub(crate) mod direct;

pub(crate) mod deadline;

pub(crate) mod origin_side;

pub(crate) mod leader;

pub(crate) mod slices;

pub(crate) mod refresh;

pub(crate) mod retry;

pub(crate) mod mirror;

pub(crate) mod store;

pub(crate) mod actions;

pub(crate) mod cors;

pub(crate) mod respond;

pub(crate) mod fail;

pub(crate) mod finish;

pub(crate) mod witness;

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use pingora::cache::key::HashBinary;
use pingora::cache::storage::HitHandler;
use pingora::cache::{CacheKey, CacheMeta, ForcedFreshness, RespCacheable};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::modules::http::HttpModules;
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, ProxyHttp, RangeType, Session};
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use selvedge_cache::CacheCtx;
use selvedge_wasm::Trace;

use self::downstream::Downstream;
use self::origin_side::{Half, Side};
use self::witness::Witness;
use crate::chain::ExchangeState;
use crate::chain::exchange::facts::Known;
use crate::chain::session::{FilteredSession, Slot};
use crate::cluster::{self, Travel};
use crate::listener::ListenerFacts;
use crate::node::Current;
use crate::plan::{Plan, Route};
use crate::telemetry::AccessLogSink;
use crate::upstream::Lease;
use crate::upstream::http1::Pool;
use crate::upstream::wear::Keeping;

/// Notes a step of the story, for the test that guards it; free unless somebody listens at trace level.
macro_rules! step {
    ($ctx:expr, $name:literal $(, $field:ident = $value:expr)*) => {
        tracing::trace!(target: "selvedge::story", request = $ctx.number, step = $name $(, $field = $value)*)
    };
}
pub(crate) use step;

/// The proxy behind one listener, on one worker.
pub(crate) struct Edge {
    pub(crate) current: Arc<Current>,
    pub(crate) listener: Arc<ListenerFacts>,
    pub(crate) worker: usize,
    pub(crate) access_log: AccessLogSink,
    /// This worker's connections to upstreams, for requests that go the short way.
    pub(crate) pool: Arc<Pool>,
    /// How many requests at this listener and on this worker are on connections of Pingora's that may be kept.
    pub(crate) keeping: Arc<Keeping>,
    /// Is told what becomes of requests, where a configuration is tested.
    pub(crate) witness: Option<Arc<Witness>>,
    /// Which halves of requests it sees to.
    pub(crate) half: Half,
}

thread_local! {
    static REQUESTS: Cell<u64> = const { Cell::new(0) };
}

/// What one request carries through the hooks.
pub(crate) struct RequestCtx {
    /// Counts the requests of this worker; tells them apart in traces.
    pub(crate) number: u64,
    /// The plan it arrived under, to its end.
    pub(crate) plan: Arc<Plan>,
    pub(crate) started: Instant,
    /// Set by `admit`: for whom it is.
    pub(crate) downstream: Downstream,
    /// Set by `select`.
    pub(crate) route: Option<Arc<Route>>,
    /// Leads to the chain and the client's session, on routes with filters.
    pub(crate) slot: Option<Arc<Slot>>,
    /// Set by `filter`: it goes the short way, and no session of the filters stands in the client's place.
    pub(crate) is_short: bool,
    /// Set by `filter`: a filter has written the authority of the request.
    pub(crate) has_new_authority: bool,
    /// Leads to the client's session while it fills the cache, where that cannot put writes aside by itself.
    pub(crate) leader: Option<Arc<leader::Place>>,
    /// Leads to the client's session, where it speaks gRPC-Web.
    pub(crate) web: Option<Arc<grpc_web::Place>>,
    /// Set by `filter`: a filter's choice of upstream.
    pub(crate) upstream: Option<String>,
    /// Set by `filter`: how the request body is treated on its way.
    pub(crate) body: filter::BodyFlow,
    /// Set by `admit`: its body has to come in time, and has not come yet.
    pub(crate) uploads: bool,
    /// Body bytes received so far, and how many may be: the route's limit, or the listener's.
    pub(crate) body_received: u64,
    pub(crate) body_limit: u64,
    /// Set by `lookup` and `store`.
    pub(crate) cache: CacheCtx,
    /// Set by `lookup`: what the stored response that was found ends with.
    pub(crate) trailers: Option<Box<HeaderMap>>,
    /// Set where it is a request inside, for one slice of an object.
    pub(crate) slice: Option<Box<slices::Slice>>,
    /// It is answered with slices.
    pub(crate) sliced: bool,
    /// Attempts so far.
    pub(crate) attempts: u32,
    /// Set by `forward` where it matters: where the request has been, and how long it may take.
    pub(crate) sent: Option<Box<forward::Sent>>,
    /// Set by `forward`: its place at the endpoint it went to last.
    pub(crate) lease: Option<Lease>,
    /// Which half of a request it is, where the route has filters at the origin's side.
    pub(crate) side: Side,
    /// What it has to do with other nodes of the cluster, if there is one.
    pub(crate) travel: Option<Box<Travel>>,
    /// Set by `fail`: the RFC 9209 error token.
    pub(crate) failure: Option<&'static str>,
    /// What its filters do is recorded here, if the client may ask for that, and does.
    pub(crate) trace: Option<Arc<Trace>>,
}

impl RequestCtx {
    /// Tells the filters what has become of the exchange, on routes that have some.
    pub(crate) fn note(&self, fact: impl FnOnce(&mut ExchangeState)) {
        if let Some(slot) = &self.slot {
            slot.with_chain(|chain| fact(&mut chain.state));
        }
    }

    /// Tells the filters a fact about the exchange, on routes where one of them may ask for it.
    pub(crate) fn tell(&self, fact: impl FnOnce(&mut Known)) {
        if self.is_asked_for_facts() {
            self.note(|state| state.known.as_deref_mut().map_or((), fact));
        }
    }

    /// Before an answer that is not the upstream's: it passes the filters, on routes that have some.
    pub(crate) fn answers_here(&self, session: &mut Session) {
        if let Some(slot) = &self.slot {
            FilteredSession::stand_in(&mut session.downstream_session, slot);
        }
    }

    /// Whether some filter may ask for facts about the exchange.
    pub(crate) fn is_asked_for_facts(&self) -> bool {
        self.slot.is_some() && self.route.as_ref().is_some_and(|route| route.is_asked_for_facts)
    }

    /// Its body has come, or nobody waits for it any more.
    pub(crate) fn upload_ends(&mut self) {
        if std::mem::take(&mut self.uploads) {
            crate::listener::connection::header_is_read();
        }
    }

    /// The selected route; hooks after `select` only run when there is one.
    pub(crate) fn route(&self) -> Result<&Arc<Route>> {
        self.route.as_ref().ok_or_else(|| Error::explain(pingora::ErrorType::InternalError, "no route was selected"))
    }
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = RequestCtx;

    fn new_ctx(&self) -> RequestCtx {
        crate::listener::connection::header_is_read();
        RequestCtx {
            number: REQUESTS.with(|requests| {
                requests.set(requests.get() + 1);
                requests.get()
            }),
            plan: self.current.plan(),
            started: Instant::now(),
            downstream: Downstream::default(),
            route: None,
            slot: None,
            is_short: false,
            has_new_authority: false,
            leader: None,
            web: None,
            upstream: None,
            body: filter::BodyFlow::Untouched,
            uploads: false,
            body_received: 0,
            body_limit: self.listener.body_limit,
            cache: CacheCtx::default(),
            trailers: None,
            slice: None,
            sliced: false,
            attempts: 0,
            sent: None,
            lease: None,
            side: Side::Whole,
            travel: None,
            failure: None,
            trace: None,
        }
    }

    /// None: responses are compressed by `compress/`, and Pingora's own module would cost every request, switched off as it is.
    fn init_downstream_modules(&self, _modules: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
        if self.half.is_inner() {
            return origin_side::admit(session, ctx);
        }
        step!(ctx, "admit");
        if self.listener.cluster {
            return cluster::serve::admit(session, &self.listener, ctx);
        }
        admit::check(session, &self.listener, ctx)?;
        refresh::arrive(session, ctx);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
        if self.half.is_inner() {
            return Box::pin(origin_side::begin(self, session, ctx)).await;
        }
        if self.listener.cluster {
            return Box::pin(cluster::serve::begin(session, ctx)).await;
        }
        if let Some(key) = &ctx.plan.trace {
            ctx.trace = key.take(session.downstream_session.req_header_mut());
        }
        witness::begins(self, ctx);
        if let Some(to) = self.listener.redirect_to_https
            && !redirect::excepts(to, session.req_header())
        {
            return redirect::answer(session, to).await.map(|()| true);
        }
        if purge::is_meant(session.req_header(), ctx) {
            return Box::pin(purge::answer(self, session, ctx)).await.map(|()| true);
        }
        slices::arrive(session, ctx)?;
        step!(ctx, "select");
        let Some(route) = select::route(self, session, ctx) else { return select::refuse(self, session, ctx).await };
        ctx.route = Some(Arc::clone(&route));

        admit::length(session, &route, &self.listener, ctx)?;

        // A background fill or revalidation stands for requests whose filters have run.
        let inside = session.subrequest_ctx.is_some();
        if let Some(cors) = route.cors.as_ref().filter(|_| !inside)
            && Box::pin(cors::preflight(session, cors)).await?
        {
            return Ok(true);
        }
        if route.grpc_web && !inside {
            grpc_web::begin(session, ctx)?;
        }
        if !inside && (!route.filters.is_empty() || route.compress.is_some()) {
            step!(ctx, "filter", direction = "request");
            if filter::request(self, session, ctx).await? == filter::Answered::Yes {
                return Ok(true);
            }
        }
        Ok(slices::answer(self, session, &route, ctx).await? || respond::own(session, &route, ctx).await?)
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        filter::request_body(session, body, end_of_stream, ctx).await?;
        mirror::chunk(body.as_ref(), end_of_stream, ctx);
        Ok(())
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
        if self.half.is_inner() {
            return Ok(());
        }
        lookup::enable(session, ctx, &self.listener)
    }

    fn cache_key_callback(&self, session: &Session, ctx: &mut RequestCtx) -> Result<CacheKey> {
        lookup::key(session, ctx)
    }

    fn cache_vary_filter(&self, meta: &CacheMeta, ctx: &mut RequestCtx, request: &RequestHeader) -> Option<HashBinary> {
        lookup::variance(meta, ctx, request)
    }

    async fn cache_hit_filter(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        hit: &mut HitHandler,
        is_fresh: bool,
        ctx: &mut RequestCtx,
    ) -> Result<Option<ForcedFreshness>> {
        Ok(lookup::hit(session, meta, hit, is_fresh, ctx))
    }

    fn should_serve_stale(&self, session: &mut Session, ctx: &mut RequestCtx, error: Option<&Error>) -> bool {
        lookup::serve_stale(session, ctx, &self.listener, error)
    }

    async fn proxy_upstream_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
        if self.half.is_inner() {
            return Ok(true);
        }
        let goes = lookup::before_upstream(session, ctx).await?;
        if goes && (ctx.is_short || direct::serves(session, ctx)) {
            return direct::forward(self, session, ctx).await.map(|()| false);
        }
        Ok(goes)
    }

    fn allow_spawning_subrequest(&self, _session: &Session, _ctx: &RequestCtx) -> bool {
        true
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
        step!(ctx, "forward");
        if ctx.travel.is_some()
            && let Some(node) = cluster::ask::peer(session, ctx)
        {
            return Ok(node);
        }
        if !ctx.route()?.origin_filters.is_empty() && !self.half.is_inner() {
            return origin_side::peer(self, session, ctx).inspect_err(|error| lookup::failed(session, ctx, error));
        }
        forward::peer(session, ctx).await.inspect_err(|error| lookup::failed(session, ctx, error))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if cluster::ask::is_asking(ctx) {
            return cluster::ask::request(session, request, ctx);
        }
        if ctx.has_inner_half() {
            return origin_side::request(session, request, ctx);
        }
        forward::request(session, request, ctx)?;
        witness::sent(self, session, request);
        mirror::begin(session, request, ctx);
        Ok(())
    }

    async fn connected_to_upstream(
        &self,
        session: &mut Session,
        _reused: bool,
        peer: &HttpPeer,
        #[cfg(unix)] connection: std::os::unix::io::RawFd,
        digest: Option<&Digest>,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if cluster::ask::is_asking(ctx) {
            cluster::ask::connected(connection, ctx);
            return Ok(());
        }
        if ctx.has_inner_half() {
            return Ok(());
        }
        forward::connected(session, peer, digest, connection, ctx)?;
        forward::connected_by_pingora(self, peer, digest, connection, session, ctx);
        Ok(())
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _peer: &HttpPeer,
        ctx: &mut RequestCtx,
        error: Box<Error>,
    ) -> Box<Error> {
        if cluster::ask::is_asking(ctx) {
            return cluster::ask::unconnected(ctx, error);
        }
        if ctx.has_inner_half() {
            return origin_side::broken(session, ctx, error);
        }
        retry::unconnected(session, ctx, error)
    }

    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut RequestCtx,
        reused: bool,
    ) -> Box<Error> {
        if cluster::ask::is_asking(ctx) {
            return cluster::ask::broken(session, ctx, error, reused);
        }
        if ctx.has_inner_half() {
            return origin_side::broken(session, ctx, error);
        }
        retry::broken(session, ctx, peer, error, reused)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if cluster::ask::is_asking(ctx) {
            cluster::ask::answered(session, response, ctx)?;
        }
        forward::expects(session, response)?;
        forward::answered(response, ctx);
        retry::response(session, response, ctx)?;
        origin_side::answered(ctx);
        if !ctx.is_inner() {
            let outdated = crate::purge::related::changed(&self.current, session.req_header(), response, ctx);
            refresh::begin(session, outdated, ctx);
        }
        store::receive(session, response, ctx).await?;
        origin_side::leave(ctx);
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        ctx: &mut RequestCtx,
    ) -> Result<Option<Duration>> {
        ctx.cache.gather_body(body.as_ref(), end_of_stream);
        forward::received(end_of_stream, ctx)
    }

    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<RespCacheable> {
        step!(ctx, "store");
        Ok(store::decide(session, response, ctx))
    }

    fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<bool> {
        Ok(lookup::not_modified(session, response, ctx))
    }

    fn range_header_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        _ctx: &mut RequestCtx,
    ) -> RangeType {
        lookup::part(session.req_header(), response)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        if ctx.is_inner() {
            origin_side::tell(response, ctx);
            return Ok(());
        }
        step!(ctx, "respond", status = response.status.as_u16());
        // What is for the client, the node adds that the client is connected to.
        if !cluster::serve::is_visitor(ctx) {
            forward::stick(session, response, ctx)?;
            actions::on_response(session.req_header(), response, ctx)?;
        }
        if !response.status.is_informational() || response.status == StatusCode::SWITCHING_PROTOCOLS {
            ctx.upload_ends();
        }
        respond::header(session, response, ctx)
    }

    fn upstream_response_trailer_filter(
        &self,
        session: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        leader::note_trailers(session, trailers, ctx);
        Ok(())
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut RequestCtx) -> FailToProxy {
        step!(ctx, "fail");
        fail::answer(session, error, ctx).await
    }

    /// Failures are in the access log, with their RFC 9209 token; Pingora's own line would say them twice.
    fn suppress_error_log(&self, _session: &Session, _ctx: &RequestCtx, _error: &Error) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut RequestCtx) {
        step!(ctx, "finish");
        finish::request(self, session, error, ctx).await;
    }
}
