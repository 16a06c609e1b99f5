//! The host's clock.

use std::time::SystemTime;

use crate::host;

/// The time now. In a test it is the test's clock, so that time can be moved by hand.
pub fn now() -> SystemTime {
    host::current().now()
}
