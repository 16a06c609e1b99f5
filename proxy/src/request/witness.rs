//! What a test of a configuration sees of an exchange beside its response. A node has no witness: then each of these is one branch.

use std::sync::Arc;

use parking_lot::Mutex;
use pingora::http::RequestHeader;
use pingora::proxy::Session;

use selvedge_wasm::Trace;

use super::{Edge, RequestCtx, lookup};

/// Sees the exchanges of one edge, the last one of them.
#[derive(Default)]
pub(crate) struct Witness {
    seen: Mutex<Seen>,
    /// Where the filters' doings are recorded, if that is wanted.
    trace: Option<Arc<Trace>>,
}

/// What was seen.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    pub(crate) route: Option<String>,
    pub(crate) site: Option<String>,
    /// What the cache key was made of, if one was made.
    pub(crate) cache_key: Option<String>,
    /// Where the request was sent, or was to be.
    pub(crate) upstream: Option<String>,
    /// Path and query as they were sent there.
    pub(crate) path: Option<String>,
}

impl Witness {
    /// One that records what filters do.
    pub(crate) fn tracing(trace: &Arc<Trace>) -> Self {
        Self { trace: Some(Arc::clone(trace)), ..Self::default() }
    }

    /// What was seen so far.
    pub(crate) fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }
}

/// An exchange begins.
pub(super) fn begins(edge: &Edge, ctx: &mut RequestCtx) {
    if let Some(witness) = &edge.witness {
        ctx.trace.clone_from(&witness.trace);
    }
}

/// A request goes to an upstream.
pub(super) fn sent(edge: &Edge, session: &Session, request: &RequestHeader) {
    let Some(witness) = &edge.witness else { return };
    if session.subrequest_ctx.is_none() {
        witness.seen.lock().path = Some(String::from_utf8_lossy(request.raw_path()).into_owned());
    }
}

/// An exchange is over.
pub(super) fn ended(edge: &Edge, session: &Session, ctx: &RequestCtx) {
    let Some(witness) = &edge.witness else { return };
    if session.subrequest_ctx.is_some() {
        return; // Nobody asked for it.
    }
    let mut seen = witness.seen.lock();
    seen.route = ctx.route.as_ref().map(|route| route.name().to_owned());
    seen.site = ctx.route.as_ref().map(|route| route.site().to_owned());
    seen.cache_key = ctx.cache.key().and_then(|_| lookup::key_in_words(session, ctx));
    let outside = ctx.lease.as_ref().map(|lease| lease.endpoint().upstream_name().to_owned());
    seen.upstream = outside.or_else(|| Some(ctx.endpoint_inside()?.upstream_name().to_owned()));
}
