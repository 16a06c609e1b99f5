//! What goes wrong with a filter: told to the operator at a bounded rate, and counted.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use selvedge_config::OnFailure;
use selvedge_wasm::one_line;
use tracing::{debug, warn};

/// How often a filter's failures are told: whoever can make it fail must not fill the log with it.
const INTERVAL: Duration = Duration::from_secs(1);

/// The failures of one filter, over all its uses and all plans of the process.
#[derive(Debug, Default)]
pub struct Trouble {
    skipped: AtomicU64,
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    /// Failures since then.
    untold: u64,
}

impl Trouble {
    /// A filter has failed.
    pub(crate) fn report(&self, filter: &str, policy: OnFailure, error: &dyn Display) {
        let Some(untold) = self.told.lock().turn(Instant::now()) else {
            debug!(filter, ?policy, %error, "filter failed");
            return;
        };
        let skipped = self.skipped();
        // It may hold the guest's last words.
        let error = error.to_string();
        let error = one_line(&error);
        match policy {
            OnFailure::Closed => warn!(filter, untold, %error, "filter failed; the request fails with it"),
            OnFailure::Open => warn!(filter, untold, skipped, %error, "filter failed; the request goes on without it"),
        }
    }

    /// A request goes on without the filter.
    pub(crate) fn skip(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests went on without the filter since the process started.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }
}

impl Told {
    /// Whether it is time to tell: then how many failures were not told since the last time.
    fn turn(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            self.untold += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_once_a_second_with_the_number_of_those_between() {
        let start = Instant::now();
        let mut told = Told::default();
        assert_eq!(told.turn(start), Some(0));
        for _ in 0..5 {
            assert_eq!(told.turn(start + INTERVAL / 2), None);
        }
        assert_eq!(told.turn(start + INTERVAL), Some(5));
        assert_eq!(told.turn(start + INTERVAL * 3), Some(0));
    }
}
