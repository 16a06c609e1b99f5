//! How many calls a plugin may make: at once, and per second, all of its VMs together.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

use crate::limits::Limits;

/// Counts a plugin's calls. Guests that make none pay nothing.
#[derive(Debug)]
pub(crate) struct Quota {
    at_once: u32,
    in_flight: AtomicU32,
    per_second: u32,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    since: Instant,
}

impl Quota {
    pub(crate) fn new(limits: &Limits, now: Instant) -> Self {
        let per_second = limits.callouts_per_second;
        let bucket = Bucket { tokens: f64::from(per_second), since: now };
        Self { at_once: limits.callouts, in_flight: AtomicU32::new(0), per_second, bucket: Mutex::new(bucket) }
    }

    /// Room for one more call, to be given back.
    pub(crate) fn take(&self, now: impl FnOnce() -> Instant) -> bool {
        let more = |taken: u32| (taken < self.at_once).then_some(taken + 1);
        if self.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_err() {
            return false;
        }
        if self.per_second > 0 && !self.bucket.lock().take(self.per_second, now()) {
            self.give_back(1);
            return false;
        }
        true
    }

    pub(crate) fn give_back(&self, calls: u32) {
        self.in_flight.fetch_sub(calls, Ordering::Relaxed);
    }
}

impl Bucket {
    fn take(&mut self, per_second: u32, now: Instant) -> bool {
        let rate = f64::from(per_second);
        let earned = now.duration_since(self.since).as_secs_f64() * rate;
        self.tokens = (self.tokens + earned).min(rate.max(1.0));
        self.since = now;
        if self.tokens < 1.0 {
            return false;
        }
        self.tokens -= 1.0;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn quota(callouts: u32, callouts_per_second: u32, now: Instant) -> Quota {
        Quota::new(&Limits { callouts, callouts_per_second, ..Limits::default() }, now)
    }

    #[test]
    fn so_many_at_once_and_no_more_until_one_is_given_back() {
        let now = Instant::now();
        let quota = quota(2, 0, now);
        assert_eq!([0; 4].map(|_| quota.take(|| now)), [true, true, false, false]);
        quota.give_back(1);
        assert_eq!([0; 2].map(|_| quota.take(|| now)), [true, false]);
        assert!(!self::quota(0, 0, now).take(|| now));
    }

    #[test]
    fn so_many_in_a_second_with_a_burst_of_one_second() {
        let now = Instant::now();
        let quota = quota(100, 4, now);
        assert_eq!([0; 5].map(|_| quota.take(|| now)), [true, true, true, true, false]);
        let later = now + Duration::from_millis(500);
        assert_eq!([0; 3].map(|_| quota.take(|| later)), [true, true, false]);
        let much_later = later + Duration::from_secs(60);
        assert_eq!([0; 5].map(|_| quota.take(|| much_later)), [true, true, true, true, false]);
    }
}
