//! How long an upstream may be silent while a request is sent to it: every piece that goes out begins the wait anew, as towards HTTP/1.1.
//! Pingora's HTTP/2 session knows one wait from the header on, and would end an upload that takes longer than that.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use pingora::{Error, ErrorType, Result};
use tokio::time::{Instant, timeout_at};

/// How far the sending of a body is.
#[derive(Debug, Default)]
pub(super) struct Upload {
    /// When a piece went out last; `None` = none has.
    last: Mutex<Option<Instant>>,
    whole: AtomicBool,
}

impl Upload {
    /// A piece has gone out; with the last one, the end.
    pub(super) fn went_on(&self, end: bool) {
        *self.last.lock() = Some(Instant::now());
        if end {
            self.whole.store(true, Relaxed);
        }
    }

    /// Whether all of the body has gone out.
    pub(super) fn is_whole(&self) -> bool {
        self.whole.load(Relaxed)
    }
}

/// What is waited for, as long as the upstream is not silent for too long. Without an upload, the session sees to that.
pub(super) async fn bounded<T>(
    upload: Option<&Upload>,
    limit: Option<Duration>,
    what: impl Future<Output = Result<T>>,
) -> Result<T> {
    let Some((upload, limit)) = upload.zip(limit) else { return what.await };
    let mut what = pin!(what);
    let mut since = Instant::now();
    loop {
        if let Ok(done) = timeout_at(since + limit, &mut what).await {
            return done;
        }
        match *upload.last.lock() {
            Some(last) if last > since => since = last,
            _ => {
                return Error::e_explain(ErrorType::ReadTimedout, "while waiting for an upstream that was sent a body");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_piece_begins_the_wait_anew() {
        let (upload, limit) = (Upload::default(), Some(Duration::from_secs(10)));
        let begun = Instant::now();
        let waiting = bounded(Some(&upload), limit, pending::<Result<()>>());
        let sending = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(8)).await;
                upload.went_on(false);
            }
        };
        let (waited, ()) = tokio::join!(waiting, sending);
        assert_eq!(*waited.expect_err("too late").etype(), ErrorType::ReadTimedout);
        assert_eq!(begun.elapsed().as_secs(), 50);
        assert!(bounded(None, limit, async { Ok(()) }).await.is_ok());
    }
}
