//! What a change has put out of date is fetched anew at once, where a rule of its route says so (`invalidates: [{ urls, refresh: true }]`).
//!
//! The requests inside are Pingora's subrequests, as slices are: they pass through every step but the filters and leave no line in the
//! access log. They are made of nothing that the client has sent but the path, which is in the URL: whoever changes something has
//! credentials, and what is fetched is for everybody.

use std::time::Duration;

use pingora::protocols::http::HttpTask;
use pingora::protocols::http::server::Session as HttpSession;
use pingora::protocols::l4::stream::Stream;
use pingora::protocols::l4::virt::VirtualSocketStream;
use pingora::proxy::Session;
use pingora::proxy::subrequest::Ctx;
use tokio::io::AsyncWriteExt;
use tracing::debug;

use super::downstream::Downstream;
use super::{RequestCtx, hygiene, step};
use crate::pipe::Pipe;

/// The most URLs that are fetched anew for one change.
const URLS_MAX: usize = 8;
/// The longest of them, in bytes.
const URL_MAX: usize = 8 << 10;

/// How long one of them may take, before the next has its turn.
const LONGEST: Duration = Duration::from_secs(60);

/// The mark of a request inside.
struct Refresh {
    /// Whether the client that changed something came over TLS: what it would be given is kept apart from what goes over plain text.
    tls: bool,
}

/// Fetches these, each `//host/path`, one after the other.
pub(super) fn begin(session: &mut Session, urls: Vec<String>, ctx: &RequestCtx) {
    if urls.is_empty() {
        return;
    }
    let counters = &ctx.plan.counters;
    let (now, left) = urls.split_at(urls.len().min(URLS_MAX));
    left.iter().for_each(|_| counters.refreshed(false));
    // A request that changes something makes no others inside.
    let (Some(spawner), Some(place)) = (session.subrequest_spawner.take(), counters.begin_refresh()) else {
        return now.iter().for_each(|_| counters.refreshed(false));
    };
    let (tls, counters, urls) = (ctx.downstream.tls, counters.clone(), now.to_vec());
    step!(ctx, "refresh", urls = urls.len());
    tokio::spawn(async move {
        for url in urls {
            let Some(asked) = written(&url).await else {
                debug!(url, "what a change puts out of date is no URL that could be asked for");
                counters.refreshed(false);
                continue;
            };
            let inside = Ctx::builder().user_ctx(Box::new(Refresh { tls })).build();
            let (request, mut handle) = spawner.create_subrequest(&asked, inside);
            let running = tokio::spawn(request.run());
            let fetched = tokio::time::timeout(LONGEST, async {
                // What comes is for the cache.
                while let Some(task) = handle.rx.recv().await {
                    if let HttpTask::Failed(error) = task {
                        debug!(url, %error, "what a change puts out of date could not be fetched");
                    }
                }
                running.await.ok();
            });
            counters.refreshed(fetched.await.is_ok());
        }
        drop(place);
    });
}

/// A request inside begins: for a client that nothing is known of.
pub(super) fn arrive(session: &Session, ctx: &mut RequestCtx) {
    let user = session.subrequest_ctx.as_ref().and_then(|inside| inside.user_ctx());
    if let Some(Refresh { tls }) = user.and_then(|user| user.downcast_ref()) {
        ctx.downstream = Downstream { tls: *tls, ..Downstream::default() };
    }
}

/// A request for this URL, as Pingora would have read it from a connection; `None` = it cannot be written.
async fn written(url: &str) -> Option<HttpSession> {
    let rest = url.strip_prefix("//").unwrap_or(url);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_plain || !hygiene::is_authority(host.as_bytes()) || url.len() > URL_MAX {
        return None;
    }
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\n\r\n");
    let (mut ours, theirs) = tokio::io::duplex(request.len());
    ours.write_all(request.as_bytes()).await.ok()?;
    let stream = Stream::from(VirtualSocketStream::new(Box::new(Pipe(theirs))));
    let mut session = HttpSession::new_http1(Box::new(stream));
    session.read_request().await.ok()?.then_some(session)
}
