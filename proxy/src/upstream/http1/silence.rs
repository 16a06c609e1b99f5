//! How long a connection may be silent. One timer for each connection, which is set anew when it fires early and not when something is
//! waited for: waits are many and end well.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// See the [module](self).
#[derive(Default)]
pub(super) struct Silence {
    limit: Option<Duration>,
    /// Known once something has been waited for: what is there at once needs no clock.
    until: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Silence {
    /// So much silence is too much of what is waited for next; `None` = none is.
    pub(super) fn begin(&mut self, limit: Option<Duration>) {
        (self.limit, self.until) = (limit, None);
    }

    /// Ready when it has lasted too long, counted from the first time this is asked.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(limit) = self.limit else { return Poll::Pending };
        let until = *self.until.get_or_insert_with(|| Instant::now() + limit);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() > until {
            timer.as_mut().reset(until);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= until {
                return Poll::Ready(());
            }
            timer.as_mut().reset(until);
        }
    }
}
