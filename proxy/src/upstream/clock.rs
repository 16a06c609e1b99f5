//! Time as the rules of this folder take it.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Milliseconds since shortly before the first look at the clock. Never 0, which says "never" where a time is kept in an atomic.
pub(super) fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    1_000 + millis(START.get_or_init(Instant::now).elapsed())
}

/// Whole milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
