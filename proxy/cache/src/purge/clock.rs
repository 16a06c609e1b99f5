//! The time in which fetches and purges are ordered.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How far clocks of nodes may be apart, in microseconds.
const APART_MAX: u64 = 600_000_000;

/// A hybrid logical clock: microseconds since 1970 as this machine sees them, never going back, and never behind what was
/// [observed](Self::observe) from elsewhere (the purge log of an earlier run, stored responses, other nodes).
///
/// ```text
/// fetch() <= tick() of any later moment       a purge reaches every fetch that began before it
/// tick()  <  fetch() of any later moment      and none that began after it
/// tick()  <  tick() of any later moment
/// ```
///
/// Reading it is one read of the system's monotonic clock and one atomic load; only purges write.
#[derive(Debug)]
pub struct Clock {
    /// Where the monotonic clock stands in microseconds since 1970. The system's wall clock may be set back; this one is not.
    base: u64,
    started: Instant,
    /// The latest tick, or what was observed.
    last: AtomicU64,
}

impl Clock {
    /// A clock that begins at the system's time.
    #[must_use]
    pub fn new() -> Self {
        Self { base: micros(SystemTime::now()), started: Instant::now(), last: AtomicU64::new(0) }
    }

    /// The epoch of a fetch that begins now: later than every purge before.
    #[must_use]
    pub fn fetch(&self) -> u64 {
        self.wall().max(self.last.load(Ordering::Acquire).saturating_add(1))
    }

    /// The epoch of a purge that happens now: not earlier than any fetch that has begun.
    pub fn tick(&self) -> u64 {
        let mut last = self.last.load(Ordering::Acquire);
        loop {
            let next = self.wall().max(last.saturating_add(1));
            match self.last.compare_exchange_weak(last, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return next,
                Err(newer) => last = newer,
            }
        }
    }

    /// From here on the clock is later than `epoch`, which somebody else has seen.
    pub fn observe(&self, epoch: u64) {
        self.last.fetch_max(epoch, Ordering::AcqRel);
    }

    /// The same, if it is no further ahead of this machine's time than the clocks of nodes may be apart: from a machine whose clock is wrong,
    /// nothing is taken over.
    pub fn observe_other(&self, epoch: u64) {
        if epoch <= self.wall().saturating_add(APART_MAX) {
            self.observe(epoch);
        }
    }

    fn wall(&self) -> u64 {
        self.base.saturating_add(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// An epoch as a time of day.
pub(crate) fn time_of(epoch: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_micros(epoch)).unwrap_or(UNIX_EPOCH)
}

fn micros(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purges_come_after_the_fetches_before_them_and_before_those_after() {
        let clock = Clock::new();
        for _ in 0..10_000 {
            let before = clock.fetch();
            let purge = clock.tick();
            assert!(before <= purge && purge < clock.fetch());
            assert!(purge < clock.tick());
        }
    }

    #[test]
    fn what_others_have_seen_is_past() {
        let clock = Clock::new();
        let future = clock.tick() + 3_600_000_000;
        clock.observe(future);
        assert!(clock.fetch() > future && clock.tick() > future);
        clock.observe(1);
        assert!(clock.fetch() > future, "it never goes back");
        clock.observe(u64::MAX);
        assert_eq!(clock.tick(), u64::MAX, "nothing overflows");
    }

    #[test]
    fn epochs_are_times() {
        let now = SystemTime::now() - Duration::from_millis(1);
        let back = time_of(Clock::new().fetch());
        assert!(back.duration_since(now).is_ok_and(|passed| passed < Duration::from_secs(60)), "{back:?}");
        assert_eq!(time_of(1_500_000), UNIX_EPOCH + Duration::from_millis(1500));
    }
}
