//! Copies of requests for another upstream. A copy is made of what goes to the route's own, and leaves when that has all of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use pingora::http::RequestHeader;
use pingora::proxy::Session;
use selvedge_config::Percent;
use selvedge_wasm::{Callout, CalloutId};
use tracing::debug;

use super::RequestCtx;
use crate::callout;

/// The longest body that is copied.
const BODY_MAX: usize = 64 * 1024;
/// How long the other upstream may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where copies go.
pub(crate) struct Mirror {
    pub(crate) to: Arc<str>,
    pub(crate) share: Percent,
}

/// A copy that is being made.
pub(super) struct Copied {
    to: Arc<str>,
    headers: Vec<(Bytes, Bytes)>,
    body: BytesMut,
}

/// The request is about to be sent: begins a copy, if it is one of those that are copied.
pub(super) fn begin(session: &mut Session, request: &RequestHeader, ctx: &mut RequestCtx) {
    let Some(mirror) = ctx.route.as_ref().and_then(|route| route.mirror.as_ref()) else { return };
    let sampled = || fastrand::u16(..10_000) < mirror.share.basis_points();
    let in_background = session.subrequest_ctx.is_some() || ctx.is_inner_in_background();
    if ctx.attempts > 1 || in_background || session.is_upgrade_req() || !sampled() {
        if let Some(sent) = &mut ctx.sent {
            sent.copied = None; // What an attempt before has not finished.
        }
        return;
    }
    let copied = Copied { to: Arc::clone(&mirror.to), headers: fields(request), body: BytesMut::new() };
    if session.is_body_empty() {
        return send(copied, ctx);
    }
    ctx.sent.get_or_insert_default().copied = Some(copied);
}

/// More of the body has been sent, or all of it.
pub(super) fn chunk(body: Option<&Bytes>, end: bool, ctx: &mut RequestCtx) {
    let Some(sent) = &mut ctx.sent else { return };
    let Some(mut copied) = sent.copied.take() else { return };
    let chunk = body.map_or(&b""[..], |chunk| chunk);
    if copied.body.len() + chunk.len() > BODY_MAX {
        return ctx.plan.counters.mirrored(false);
    }
    copied.body.extend_from_slice(chunk);
    if end {
        send(copied, ctx);
    } else {
        sent.copied = Some(copied);
    }
}

fn send(copied: Copied, ctx: &RequestCtx) {
    let Some(place) = ctx.plan.counters.begin_mirror() else { return ctx.plan.counters.mirrored(false) };
    ctx.plan.counters.mirrored(true);
    let upstreams = Arc::clone(&ctx.plan.upstreams);
    let to = copied.to;
    let callout = Callout {
        id: CalloutId(0),
        upstream: to.to_string(),
        headers: copied.headers,
        body: copied.body.freeze(),
        trailers: Vec::new(),
        timeout: TIMEOUT,
    };
    tokio::spawn(async move {
        if let Err(error) = callout::send(upstreams, callout).await {
            debug!(upstream = %to, %error, "a copy of a request was not answered");
        }
        drop(place);
    });
}

fn fields(request: &RequestHeader) -> Vec<(Bytes, Bytes)> {
    let host = request.headers.get(HOST).map_or(&b""[..], |host| host.as_bytes());
    let mut fields = vec![
        (Bytes::from_static(b":method"), Bytes::copy_from_slice(request.method.as_str().as_bytes())),
        (Bytes::from_static(b":path"), Bytes::copy_from_slice(request.raw_path())),
        (Bytes::from_static(b":authority"), Bytes::copy_from_slice(host)),
    ];
    let copy = |bytes: &[u8]| Bytes::copy_from_slice(bytes);
    fields.extend(request.headers.iter().map(|(name, value)| (copy(name.as_str().as_bytes()), copy(value.as_bytes()))));
    fields
}
