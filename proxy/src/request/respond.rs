//! Step 9: what we add to a response, and responses of our own.

use bytes::Bytes;
use http::{Method, Version, header};
use pingora::Result;
use pingora::http::ResponseHeader;
use pingora::protocols::http::HttpTask;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::proxy::Session;

use super::{RequestCtx, actions, lookup};
use crate::cluster;
use crate::files;
use crate::grpc::reply;
use crate::plan::{Route, Target};

/// Marks a response that came from an upstream or the cache.
pub(crate) fn header(session: &mut Session, response: &mut ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    if response.status.is_informational() {
        return Ok(());
    }
    // A client of HTTP/1.0 does not know chunks (RFC 9112, 6.1), which Pingora gives to every body without a length.
    if session.req_header().version <= Version::HTTP_10 && response.headers.contains_key(header::TRANSFER_ENCODING) {
        response.remove_header(&header::TRANSFER_ENCODING);
        session.downstream_session.set_keepalive(None);
    }
    response.append_header("Via", ctx.plan.node.via(response.version))?;
    lookup::status(session, response, ctx);
    cluster::serve::mark(session, response, ctx)?;
    tell(session, ctx);
    Ok(())
}

/// Tells the filters where the response comes from, and what the cache had to do with it.
pub(crate) fn tell(session: &Session, ctx: &RequestCtx) {
    if !ctx.is_asked_for_facts() {
        return;
    }
    let cached = lookup::facts(session, ctx);
    ctx.note(|state| {
        let from_cache = cached.as_ref().is_some_and(|cached| cached.hit);
        state.details = Some(if from_cache { "via_cache" } else { "via_upstream" }.into());
        if let Some(known) = &mut state.known {
            known.cached = cached;
        }
    });
}

/// The answer of a route that has one of its own: fixed, a redirect, or a file; true when it was written.
pub(crate) async fn own(session: &mut Session, route: &Route, ctx: &RequestCtx) -> Result<bool> {
    let (mut header, body) = match &route.target {
        Target::Upstream(_) | Target::Split(_) => return Ok(false),
        // Boxed, or it would make every request's future larger.
        Target::Files(files) => return Box::pin(files::answer(session, files, ctx)).await.map(|()| true),
        Target::Respond { header, body } => (header.clone(), body.clone()),
        Target::Redirect(redirect) => {
            let facts = actions::Facts { request: session.req_header(), ctx, status: None };
            (redirect.answer(&facts)?, Bytes::new())
        }
    };
    actions::on_response(session.req_header(), &mut header, ctx)?;
    ctx.note(|state| state.details = Some("direct_response".into()));
    let body = for_method(&session.downstream_session, body);
    session.write_response_header(header, body.is_empty()).await?;
    if !body.is_empty() {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(true)
}

/// A short answer of the node's own, over a connection that stays usable.
pub(crate) async fn text(session: &mut Session, status: u16, text: &'static str) -> Result<()> {
    let mut header = ResponseHeader::build(status, Some(3))?;
    header.insert_header(header::CACHE_CONTROL, "no-store")?;
    if reply::asked_by(session.req_header()) {
        reply::translate(&mut header, session.req_header().version, None, text.trim_end().as_bytes());
        return whole(&mut session.downstream_session, Box::new(header), Bytes::new()).await;
    }
    header.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
    header.set_content_length(text.len())?;
    whole(&mut session.downstream_session, Box::new(header), Bytes::from_static(text.as_bytes())).await
}

/// The body as the request's method has it: none for HEAD (RFC 9110, 9.3.2), whatever its header announces. Pingora's HTTP/1 session leaves
/// it away by itself, its HTTP/2 session sends it, and clients take that for a broken stream.
fn for_method(io: &HttpSession, body: Bytes) -> Bytes {
    if io.req_header().method == Method::HEAD { Bytes::new() } else { body }
}

/// Writes a whole answer. Without a body its header is its end, in one frame on HTTP/2.
pub(crate) async fn whole(io: &mut HttpSession, header: Box<ResponseHeader>, body: Bytes) -> Result<()> {
    let body = for_method(io, body);
    if body.is_empty() {
        return io.response_duplex_vec(vec![HttpTask::Header(header, true)]).await.map(drop);
    }
    io.write_response_header(header).await?;
    io.write_response_body(body, true).await
}
