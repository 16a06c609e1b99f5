//! Step 7: what came back, and whether it is kept.

use pingora::Result;
use pingora::cache::{NoCacheReason, RespCacheable};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use selvedge_cache::rules::headers;

use super::{RequestCtx, lookup, slices};

/// Takes the response as it arrives from the upstream: what concerns this hop alone ends here (RFC 9110, 7.6.1), and unsafe methods
/// invalidate.
///
/// # Errors
/// An interim response cannot be written to the client.
pub(crate) async fn receive(session: &mut Session, response: &mut ResponseHeader, ctx: &mut RequestCtx) -> Result<()> {
    if response.status.is_informational() && response.status != http::StatusCode::SWITCHING_PROTOCOLS {
        // The client goes on with its body now, so there is no doubt about what comes next (see `admit`).
        session.downstream_session.set_close_on_response_before_downstream_finish(false);
        // Pingora loses an interim response that arrives in one batch with a cacheable final one; written now, it cannot be lost, and
        // the filtered session drops the queued duplicate, or Pingora's own for HTTP/1, which is told to. The one for HTTP/2 sends none.
        if session.cache.enabled() {
            let client = &mut session.downstream_session;
            if let Some(filtered) = client.as_custom_mut() {
                filtered.write_response_header(Box::new(response.clone()), true).await?;
            } else if response.status != http::StatusCode::CONTINUE {
                client.set_ignore_info_resp(false);
                client.write_response_header(Box::new(response.clone())).await?;
                client.set_ignore_info_resp(true);
            }
        }
        return Ok(());
    }
    ctx.tell(|known| known.contact.latency = known.contact.since.map(|since| since.elapsed()));

    if let Some(slot) = &ctx.slot
        && ctx.route.as_ref().is_some_and(|route| route.compress.is_some())
        && response.status != http::StatusCode::NOT_MODIFIED
    {
        *slot.stored.lock() = None; // It is not what answers.
    }
    match response.status {
        http::StatusCode::NOT_MODIFIED => lookup::trailers_follow(session, ctx),
        _ => ctx.trailers = None,
    }
    slices::accept(response, ctx)?;
    match ctx.plan.cache.filter(|_| !ctx.is_inner()) {
        Some(cache) => {
            let request = session.downstream_session.req_header();
            cache.upstream_response(request, response, &mut ctx.cache).await;
            cache.gather(&session.cache, request, response, &mut ctx.cache);
        }
        None => {
            for name in headers::hop_by_hop(response.status, &response.headers) {
                response.remove_header(&name);
            }
        }
    }
    Ok(())
}

/// Whether the response is stored, and for how long.
pub(crate) fn decide(session: &Session, response: &ResponseHeader, ctx: &mut RequestCtx) -> RespCacheable {
    if slices::is_refused(ctx) {
        return RespCacheable::Uncacheable(NoCacheReason::Custom("not-a-slice"));
    }
    match ctx.plan.cache {
        Some(cache) => cache.response_decision(&session.cache, session.req_header(), response, &mut ctx.cache),
        None => RespCacheable::Uncacheable(NoCacheReason::NeverEnabled),
    }
}
