//! Holding back: a plugin that keeps failing is not asked for a while, and starts of VMs may take only a small share of the time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Stops asking a plugin that fails most of its streams.
///
/// ```text
/// closed --20 failures within 10 s, more than half of the streams--> open (1 s) --> probation --10 s without--> closed
///                                                                      ^-- 3 failures, more than half -- | (twice as long, at most 30 s)
/// ```
///
/// More than half: somebody who can make the filter fail on purpose would otherwise take it away from everybody.
#[derive(Debug)]
pub(crate) struct Breaker {
    started: Instant,
    /// Milliseconds after `started`; 0 while closed. All that a stream looks at.
    open_until: AtomicU64,
    history: Mutex<History>,
}

#[derive(Debug)]
struct History {
    window_since: Instant,
    streams_before: u64,
    failures: u64,
    /// How long it was open last; zero when that is long ago.
    open_for: Duration,
}

impl Breaker {
    const WINDOW: Duration = Duration::from_secs(10);
    const FAILURES: u64 = 20;
    const FAILURES_ON_PROBATION: u64 = 3;
    const OPEN_FIRST: Duration = Duration::from_secs(1);
    const OPEN_MAX: Duration = Duration::from_secs(30);

    pub(crate) fn new(now: Instant) -> Self {
        let history = History { window_since: now, streams_before: 0, failures: 0, open_for: Duration::ZERO };
        Self { started: now, open_until: AtomicU64::new(0), history: Mutex::new(history) }
    }

    /// Whether a stream may be opened; if not, how long to wait. Reads no clock while closed.
    pub(crate) fn admit(&self, now: impl FnOnce() -> Instant) -> Result<(), Duration> {
        let open_until = self.open_until.load(Ordering::Relaxed);
        if open_until == 0 {
            return Ok(());
        }
        let left = Duration::from_millis(open_until).saturating_sub(now().duration_since(self.started));
        if !left.is_zero() {
            return Err(left);
        }
        self.open_until.store(0, Ordering::Relaxed);
        Ok(())
    }

    /// A guest call has failed; `streams` have been opened so far. Returns how long the plugin is held back when this was one too many.
    pub(crate) fn failed(&self, streams: u64, now: Instant) -> Option<Duration> {
        let mut history = self.history.lock();
        if now.duration_since(history.window_since) > Self::WINDOW {
            if history.failures < Self::FAILURES_ON_PROBATION {
                history.open_for = Duration::ZERO; // a quiet window
            }
            (history.window_since, history.streams_before, history.failures) = (now, streams.saturating_sub(1), 0);
        }
        history.failures += 1;
        let enough = if history.open_for.is_zero() { Self::FAILURES } else { Self::FAILURES_ON_PROBATION };
        let of = streams.saturating_sub(history.streams_before);
        if history.failures < enough || history.failures * 2 <= of {
            return None;
        }

        history.open_for = (history.open_for * 2).clamp(Self::OPEN_FIRST, Self::OPEN_MAX);
        let until = now + history.open_for;
        (history.window_since, history.streams_before, history.failures) = (until, streams, 0);
        let until = u64::try_from(until.duration_since(self.started).as_millis()).unwrap_or(u64::MAX);
        self.open_until.store(until.max(1), Ordering::Relaxed);
        Some(history.open_for)
    }
}

/// Lets starts of VMs take a tenth of one core: filters that start in microseconds are replaced as often as they fail, one that needs
/// seconds to start cannot keep a node busy with starting it.
#[derive(Debug)]
pub(crate) struct StartBudget {
    credit: Duration,
    since: Instant,
}

impl StartBudget {
    const SHARE: u32 = 10;
    const BURST: Duration = Duration::from_secs(2);

    pub(crate) fn new(now: Instant) -> Self {
        Self { credit: Self::BURST, since: now }
    }

    /// Whether another start may begin; if not, how long to wait.
    pub(crate) fn check(&mut self, now: Instant) -> Result<(), Duration> {
        let earned = now.duration_since(self.since) / Self::SHARE;
        self.credit = (self.credit + earned).min(Self::BURST);
        self.since = now;
        if self.credit.is_zero() { Err(Duration::from_millis(100)) } else { Ok(()) }
    }

    /// A start took so long.
    pub(crate) fn spend(&mut self, took: Duration) {
        self.credit = self.credit.saturating_sub(took);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn admitted(breaker: &Breaker, now: Instant) -> bool {
        breaker.admit(|| now).is_ok()
    }

    #[test]
    fn a_plugin_that_always_fails_is_held_back_for_longer_and_longer() {
        let start = Instant::now();
        let breaker = Breaker::new(start);
        for stream in 1..20 {
            assert_eq!(breaker.failed(stream, start), None);
        }
        assert!(admitted(&breaker, start));
        assert_eq!(breaker.failed(20, start), Some(SECOND));
        assert_eq!(breaker.admit(|| start), Err(SECOND));
        let later = start + SECOND;
        assert!(admitted(&breaker, later), "on probation");
        assert_eq!(breaker.failed(21, later), None);
        assert_eq!(breaker.failed(22, later), None);
        assert_eq!(breaker.failed(23, later), Some(2 * SECOND));
        assert!(!admitted(&breaker, later + SECOND));
    }

    #[test]
    fn failures_that_are_not_the_rule_hold_nothing_back() {
        let start = Instant::now();
        let breaker = Breaker::new(start);
        for failure in 1..=1000 {
            assert_eq!(breaker.failed(failure * 2, start), None, "every second stream");
        }
        assert!(admitted(&breaker, start));
    }

    #[test]
    fn failures_far_apart_hold_nothing_back_and_a_quiet_time_forgives() {
        let mut now = Instant::now();
        let breaker = Breaker::new(now);
        for stream in 1..100 {
            now += 11 * SECOND;
            assert_eq!(breaker.failed(stream, now), None);
        }
        for _ in 0..19 {
            let _ = breaker.failed(100, now);
        }
        assert!(!admitted(&breaker, now));
        now += 60 * SECOND;
        assert!(admitted(&breaker, now));
        assert_eq!(breaker.failed(1000, now), None);
        now += 11 * SECOND;
        for stream in 1001..1020 {
            assert_eq!(breaker.failed(stream, now), None, "as at first");
        }
        assert_eq!(breaker.failed(1020, now), Some(SECOND));
    }

    #[test]
    fn starts_take_a_tenth_of_the_time() {
        let start = Instant::now();
        let mut budget = StartBudget::new(start);
        for _ in 0..100_000 {
            assert_eq!(budget.check(start), Ok(()));
            budget.spend(Duration::from_micros(15));
        }
        budget.spend(SECOND);
        assert!(budget.check(start).is_err());
        assert_eq!(budget.check(start + SECOND), Ok(()));
        budget.spend(SECOND / 10);
        assert!(budget.check(start + SECOND).is_err());
    }
}
