//! How long an endpoint takes to answer: a moving average that rises at once and falls slowly (peak EWMA).

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// After this time without a new sample, what is known counts a third.
const MEMORY_MS: f64 = 10_000.0;

/// What an endpoint is taken to need while its first requests are under way, in microseconds.
const UNKNOWN_US: f64 = 30_000.0;

/// A failure counts as an answer after this time at least: else an endpoint that refuses at once would look like the fastest.
pub(in crate::upstream) const FAILURE: Duration = Duration::from_secs(1);

/// The average. Samples that come at the same time from several threads may lose one of them, which does no harm.
#[derive(Debug, Default)]
pub(in crate::upstream) struct Latency {
    /// Microseconds, the bits of an `f64`; what is known when `at` is not 0.
    average: AtomicU64,
    /// When the last sample came, in milliseconds.
    at: AtomicU64,
}

impl Latency {
    /// What a request would probably cost, in microseconds, with so many under way. It falls while there are no samples, so that a slow
    /// endpoint is asked again; one that nobody has asked costs nothing, so that it is asked once.
    pub(in crate::upstream) fn cost(&self, in_flight: u32, now: u64) -> f64 {
        let expected = match self.at.load(Relaxed) {
            0 if in_flight == 0 => 0.0,
            0 => UNKNOWN_US,
            at => f64::from_bits(self.average.load(Relaxed)) * kept(at, now),
        };
        expected * f64::from(in_flight + 1)
    }

    /// An answer took so long.
    pub(in crate::upstream) fn sample(&self, took: Duration, now: u64) {
        let took = took.as_secs_f64() * 1e6;
        let at = self.at.swap(now.max(1), Relaxed);
        let known = f64::from_bits(self.average.load(Relaxed));
        let average = if at == 0 || took >= known {
            took
        } else {
            let kept = kept(at, now);
            known * kept + took * (1.0 - kept)
        };
        self.average.store(average.to_bits(), Relaxed);
    }
}

/// The share of an old average that still counts.
fn kept(since: u64, now: u64) -> f64 {
    (-(now.saturating_sub(since) as f64) / MEMORY_MS).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rises_at_once_and_falls_with_time() {
        let latency = Latency::default();
        assert!(latency.cost(0, 1_000) < 1.0, "it is asked");
        assert!((latency.cost(1, 1_000) - 60_000.0).abs() < 1.0, "but not by everybody at once");
        latency.sample(Duration::from_millis(2), 1_000);
        assert!((latency.cost(0, 1_000) - 2_000.0).abs() < 1.0);
        latency.sample(Duration::from_millis(50), 1_001);
        assert!((latency.cost(0, 1_001) - 50_000.0).abs() < 1.0, "a slow answer counts whole");
        latency.sample(Duration::from_millis(2), 1_101);
        let soon = latency.cost(0, 1_101);
        assert!((49_000.0..50_000.0).contains(&soon), "a quick one soon after, little: {soon}");
        latency.sample(Duration::from_millis(2), 41_101);
        let late = latency.cost(0, 41_101);
        assert!((2_000.0..3_500.0).contains(&late), "long after, nearly whole: {late}");
        assert!(latency.cost(0, 81_101) < 100.0, "what was not asked for long is worth a try");
    }
}
