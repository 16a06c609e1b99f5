//! The host's clocks. In a test they are the test's, so that time can be moved by hand.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::host;

/// The time now.
pub fn now() -> SystemTime {
    host::current().now()
}

/// Seconds since 1970, in which tokens and cookies count.
pub fn unix_seconds() -> u64 {
    now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// Time since some moment in the past, which never goes back: for measuring. Two filters, or two starts of a host, cannot compare theirs.
pub fn monotonic() -> Duration {
    host::current().monotonic()
}
