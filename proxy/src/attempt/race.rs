//! Two endpoints, one answer: when the first is silent for too long, another is asked too, and the answer that comes first is taken. The
//! other attempt is given up: its stream is reset, or its connection closed.
//!
//! An answer from 500 on is taken only when the other endpoint has none that is better.

use std::pin::pin;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use pingora::http::RequestHeader;
use pingora::protocols::http::client::HttpSession;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, Result};
use selvedge_config::UpstreamPool;
use tokio::time::timeout_at;

use super::order::{First, Hedge, Second};
use super::wire;
use crate::connections::Lease;
use crate::upstream::{self, Failure};

/// How often a kept connection may turn out to be closed.
const STALE_CONNECTIONS_MAX: u32 = 3;

/// Reads the first endpoint's answer, or another's: then with the connection it came on, and who that is.
pub(super) async fn run(
    first: &mut Lease,
    request: &RequestHeader,
    hedge: Hedge,
) -> (Result<()>, Option<(Lease, Second)>) {
    let mut reading = pin!(async move {
        let session = first.session();
        session.read_response_header().await?;
        Ok::<_, Box<Error>>(status(session))
    });
    if let Ok(read) = timeout_at(hedge.after, &mut reading).await {
        return (read.map(drop), None);
    }
    let Some(place) = hedge.upstream.hedge(&hedge.ask, hedge.first) else {
        return (reading.await.map(drop), None);
    };
    hedge.asked.store(true, Relaxed);
    let mut peer = place.peer();
    (hedge.tune)(&mut peer);
    let limits = (peer.options.read_timeout, peer.options.write_timeout);
    let mut asking = Box::pin(async {
        for _ in 0..STALE_CONNECTIONS_MAX {
            match ask(peer.clone(), place.endpoint().rules().pool, request, limits).await {
                Ok((_, status)) if status >= 500 => {
                    place.answered(status);
                    return None;
                }
                Ok((lease, _)) => return Some(lease),
                Err((_, true)) => {}
                Err((error, false)) => {
                    place.failed(Failure::of(&error));
                    return None;
                }
            }
        }
        None
    });

    let mut early = None;
    let second = loop {
        tokio::select! {
            biased;
            read = &mut reading, if early.is_none() => match read {
                Ok(status) if status < 500 => return (Ok(()), None),
                read => early = Some(read),
            },
            second = &mut asking => break second,
        }
    };
    drop(asking);
    match (second, early) {
        (Some(lease), early) => {
            hedge.upstream.count_hedge_won();
            let first = match early {
                None => First::Silent,
                Some(Ok(status)) => First::Status(status),
                Some(Err(error)) => First::Failed(Failure::of(&error)),
            };
            (Ok(()), Some((lease, Second { place, first })))
        }
        (None, Some(read)) => (read.map(drop), None),
        (None, None) => (reading.await.map(drop), None),
    }
}

/// Asks, and waits for the header of the answer. An error says whether only the connection is to blame, which had been kept for too long.
async fn ask(
    peer: HttpPeer,
    pool: Option<UpstreamPool>,
    request: &RequestHeader,
    (read, write): (Option<Duration>, Option<Duration>),
) -> Result<(Lease, u16), (Box<Error>, bool)> {
    let mut lease = Lease::take(peer).await.map_err(|error| (error, false))?;
    lease.within(pool);
    let reused = lease.is_reused();
    let session = lease.session();
    session.set_read_timeout(read);
    session.set_write_timeout(write);
    let asked = async {
        wire::send(session, Box::new(request.clone()), true).await?;
        loop {
            session.read_response_header().await?;
            let status = status(session);
            if status >= 200 {
                return Ok::<_, Box<Error>>(status);
            }
        }
    };
    match asked.await {
        Ok(status) => Ok((lease, status)),
        Err(mut error) => {
            error.retry.decide_reuse(reused);
            let stale = reused && error.retry();
            Err((error, stale))
        }
    }
}

fn status(session: &HttpSession) -> u16 {
    session.response_header().map_or(0, |header| header.status.as_u16())
}

/// What the place is given back with, when somebody else's answer is taken.
impl Second {
    /// Tells the first endpoint what became of its answer.
    pub(crate) fn tell(&self, first: &upstream::Lease) {
        match self.first {
            First::Silent => first.passed_over(),
            First::Status(status) => first.answered(status),
            First::Failed(failure) => first.failed(failure),
        }
    }
}
