//! How long an upstream may take over an exchange. Pingora knows one limit for every silence (`timeouts.read`); those for the beginning of
//! the response (`timeouts.first_byte`) and for all of it (`timeouts.total`) are kept here: when one has passed, the connection is shut
//! down under Pingora, which so meets its end, and what comes of that is told as a timeout.
//!
//! ```text
//! Waiting -> Begun -> (dropped: in time)
//!    |         |
//!    +-> Passed <+
//! ```

use std::io;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};
use std::time::Duration;

use socket2::SockRef;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const PASSED_FIRST_BYTE: u8 = 2;
const PASSED_TOTAL: u8 = 3;

/// The limits, as they are told.
pub(crate) const FIRST_BYTE: &str = "timeouts.first_byte";
pub(crate) const TOTAL: &str = "timeouts.total";

/// The limits of one attempt. Dropped, nothing more happens.
pub(crate) struct Deadline {
    state: Arc<AtomicU8>,
    watch: AbortHandle,
}

impl Deadline {
    /// From now on: the response has to begin within `first_byte`, and to be whole by `total`.
    ///
    /// # Errors
    /// The system has no file descriptor left.
    pub(crate) fn start(connection: RawFd, first_byte: Option<Duration>, total: Option<Instant>) -> io::Result<Self> {
        let connection = handle(connection)?;
        let state = Arc::new(AtomicU8::new(WAITING));
        let seen = Arc::clone(&state);
        let first_byte = first_byte.map(|limit| Instant::now() + limit);
        let watch = tokio::spawn(async move {
            if let Some(limit) = first_byte.filter(|limit| total.is_none_or(|total| *limit < total)) {
                sleep_until(limit).await;
                if seen.compare_exchange(WAITING, PASSED_FIRST_BYTE, Relaxed, Relaxed).is_ok() {
                    return shut_down(&connection);
                }
            }
            if let Some(total) = total {
                sleep_until(total).await;
                seen.store(PASSED_TOTAL, Relaxed);
                shut_down(&connection);
            }
        });
        Ok(Self { state, watch: watch.abort_handle() })
    }

    /// The response has begun.
    pub(crate) fn begun(&self) {
        let _ = self.state.compare_exchange(WAITING, BEGUN, Relaxed, Relaxed);
    }

    /// Which limit has passed, if the connection was shut down because of it.
    pub(crate) fn passed(&self) -> Option<&'static str> {
        match self.state.load(Relaxed) {
            PASSED_FIRST_BYTE => Some(FIRST_BYTE),
            PASSED_TOTAL => Some(TOTAL),
            _ => None,
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// A handle of our own, so that it cannot be another connection's by the time it is used.
#[expect(unsafe_code, reason = "Pingora lends the connection as a number")]
fn handle(connection: RawFd) -> io::Result<OwnedFd> {
    if connection < 0 {
        return Err(io::Error::from(io::ErrorKind::NotConnected));
    }
    // SAFETY: `connected_to_upstream`, the only caller, is called while Pingora holds the connection, so the descriptor is open, and stays
    // so until the call returns; it is not -1.
    let lent = unsafe { BorrowedFd::borrow_raw(connection) };
    lent.try_clone_to_owned()
}

fn shut_down(connection: &OwnedFd) {
    // It may have ended by itself.
    let _ = SockRef::from(connection).shutdown(Shutdown::Both);
}
