//! Passive health: when what requests met at an endpoint leaves it out for a while.
//!
//! ```text
//! in --- too many failures in a row, or of all ---> ejected until a time --- the time comes ---> in
//! ```
//!
//! Counts are atomics without an order among them: two workers may count one failure more or less at the same moment, never an endpoint
//! that is well out.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use selvedge_config::{FailureRate, Outlier};

use super::clock::millis;
use super::endpoint::Failure;

/// What an exchange met.
#[derive(Debug, Clone, Copy)]
pub(super) enum Met {
    Status(u16),
    Failure(Failure),
}

/// What is counted of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Record {
    errors: AtomicU32,
    gateway: AtomicU32,
    connect: AtomicU32,
    window: AtomicU64,
    requests: AtomicU32,
    failed: AtomicU32,
    /// When it is back, in milliseconds; in the past, when it was. 0 = it has never been ejected.
    ejected_until: AtomicU64,
    /// Those that count for how long the next one takes.
    ejections: AtomicU32,
    all_ejections: AtomicU64,
}

/// Why an endpoint is ejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Errors,
    Gateway,
    Connect,
    Rate,
}

impl Cause {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Errors => "consecutive_5xx",
            Self::Gateway => "consecutive_gateway",
            Self::Connect => "consecutive_connect",
            Self::Rate => "failure_rate",
        }
    }
}

impl Record {
    /// When it is back, if it is out now.
    pub(super) fn ejected_until(&self, now: u64) -> Option<u64> {
        Some(self.ejected_until.load(Relaxed)).filter(|until| *until > now)
    }

    /// When it came back last; 0 = it has never been out.
    pub(super) fn returned(&self) -> u64 {
        self.ejected_until.load(Relaxed)
    }

    /// How often it has been out, the forgotten ones included.
    pub(super) fn ejections(&self) -> u64 {
        self.all_ejections.load(Relaxed)
    }

    /// Counts what an exchange met, and says whether that is too much.
    pub(super) fn judge(&self, rules: &Outlier, met: Met, now: impl Fn() -> u64) -> Option<Cause> {
        let (failed, gateway, connect) = match met {
            Met::Status(502..=504) => (true, true, false),
            Met::Status(500..=599) => (true, false, false),
            Met::Status(_) => (false, false, false),
            Met::Failure(Failure::Connect) => (true, true, true),
            Met::Failure(Failure::Timeout | Failure::Broken) => (true, true, false),
        };
        let in_a_row = [
            (&self.connect, connect, rules.consecutive_connect, Cause::Connect),
            (&self.gateway, gateway, rules.consecutive_gateway, Cause::Gateway),
            (&self.errors, failed, rules.consecutive_5xx, Cause::Errors),
        ];
        let mut cause = None;
        for (count, counts, most, what) in in_a_row {
            if !counts {
                if count.load(Relaxed) != 0 {
                    count.store(0, Relaxed);
                }
            } else if count.fetch_add(1, Relaxed) + 1 >= u32::from(most) && most > 0 {
                cause = cause.or(Some(what));
            }
        }
        match &rules.failure_rate {
            Some(rate) if self.rate_is_above(rate, failed, now()) => cause.or(Some(Cause::Rate)),
            _ => cause,
        }
    }

    fn rate_is_above(&self, rate: &FailureRate, failed: bool, now: u64) -> bool {
        let begun = self.window.load(Relaxed);
        if now >= begun + millis(rate.window) && self.window.compare_exchange(begun, now, Relaxed, Relaxed).is_ok() {
            self.requests.store(0, Relaxed);
            self.failed.store(0, Relaxed);
        }
        let requests = self.requests.fetch_add(1, Relaxed) + 1;
        let failures = if failed { self.failed.fetch_add(1, Relaxed) + 1 } else { return false };
        let above = u64::from(failures) * 10_000 > u64::from(requests) * u64::from(rate.above.basis_points());
        requests >= u32::from(rate.requests) && above
    }

    /// Leaves it out from now on, and says for how many milliseconds: longer each time, unless it has been in for long.
    pub(super) fn eject(&self, rules: &Outlier, now: u64) -> u64 {
        let step = millis(rules.eject).max(1);
        // Each time it was in for as long as the first ejection takes, one ejection is forgotten.
        let calm = u32::try_from(now.saturating_sub(self.returned()) / step).unwrap_or(u32::MAX);
        let times = if self.returned() == 0 { 1 } else { self.ejections.load(Relaxed).saturating_sub(calm) + 1 };
        let duration = step.saturating_mul(u64::from(times)).min(millis(rules.eject_max));
        self.ejections.store(times, Relaxed);
        self.all_ejections.fetch_add(1, Relaxed);
        self.ejected_until.store(now + duration, Relaxed);
        // When it is back, it is judged by what happens then.
        for count in [&self.errors, &self.gateway, &self.connect, &self.requests, &self.failed] {
            count.store(0, Relaxed);
        }
        duration
    }
}

/// Whether one more endpoint may be ejected, of so many.
pub(super) fn may_eject(rules: &Outlier, ejected: usize, of: usize) -> bool {
    let share = (ejected as u64 + 1) * 10_000 <= of as u64 * u64::from(rules.ejected_max.basis_points());
    share || (ejected == 0 && of > 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rules() -> Outlier {
        Outlier { eject: Duration::from_secs(10), eject_max: Duration::from_secs(35), ..Outlier::default() }
    }

    fn causes(rules: &Outlier, met: &[Met]) -> Vec<Option<Cause>> {
        let record = Record::default();
        met.iter().map(|met| record.judge(rules, *met, || 1_000)).collect()
    }

    #[test]
    fn failures_in_a_row_eject_by_their_kind() {
        let connect = Met::Failure(Failure::Connect);
        let timeout = Met::Failure(Failure::Timeout);
        let cases: [(&[Met], Option<Cause>); 8] = [
            (&[connect, connect, connect], Some(Cause::Connect)),
            (&[connect, connect, timeout, connect], None),
            (&[connect, connect, timeout, connect, Met::Status(503)], Some(Cause::Gateway)),
            (&[Met::Status(500); 4], None),
            (&[Met::Status(500); 5], Some(Cause::Errors)),
            (&[Met::Status(500), timeout, Met::Status(501), connect, Met::Status(599)], Some(Cause::Errors)),
            (&[timeout, timeout, timeout, timeout, Met::Status(404), timeout], None),
            (&[Met::Status(429); 50], None),
        ];
        for (met, cause) in cases {
            let found = causes(&rules(), met);
            assert_eq!(found.last().copied().flatten(), cause, "{met:?}");
            assert!(found[..found.len() - 1].iter().all(Option::is_none), "{met:?}: {found:?}");
        }
        let never = Outlier { consecutive_5xx: 0, consecutive_gateway: 0, consecutive_connect: 0, ..rules() };
        assert!(causes(&never, &[connect; 100]).iter().all(Option::is_none));
    }

    #[test]
    fn a_failure_rate_counts_in_its_window_and_only_enough_requests() {
        let rate = FailureRate { above: "40%".parse().unwrap(), requests: 10, window: Duration::from_secs(10) };
        let rules = Outlier { failure_rate: Some(rate), consecutive_5xx: 0, ..rules() };
        let record = Record::default();
        let judge = |status, now| record.judge(&rules, Met::Status(status), || now);
        for now in 0..5 {
            assert_eq!(judge(200, 20_000 + now), None);
        }
        for now in 5..9 {
            assert_eq!(judge(500, 20_000 + now), None, "too few requests");
        }
        assert_eq!(judge(500, 20_009), Some(Cause::Rate), "5 of 10");
        for now in 0..9 {
            assert_eq!(judge(500, 30_100 + now), None, "a new window begins");
        }
        assert_eq!(judge(500, 30_110), Some(Cause::Rate));
    }

    #[test]
    fn each_ejection_is_longer_until_the_limit_and_calm_is_forgiven() {
        let (rules, record) = (rules(), Record::default());
        let mut now = 100_000;
        for expected in [10_000, 20_000, 30_000, 35_000, 35_000] {
            assert_eq!(record.eject(&rules, now), expected);
            assert_eq!(record.ejected_until(now), Some(now + expected));
            now += expected;
            assert_eq!(record.ejected_until(now), None, "it is back when its time comes");
        }
        now += 20_000;
        assert_eq!(record.eject(&rules, now), 35_000, "five times, two forgiven, one more");
        now += 35_000 + 1_000_000;
        assert_eq!(record.eject(&rules, now), 10_000);
    }

    #[test]
    fn a_share_may_be_ejected_and_one_of_several_always() {
        let half = rules();
        let tenth = Outlier { ejected_max: "10%".parse().unwrap(), ..rules() };
        for (rules, ejected, of, may) in [
            (&half, 0, 1, false),
            (&half, 0, 2, true),
            (&half, 1, 2, false),
            (&half, 1, 4, true),
            (&half, 2, 4, false),
            (&tenth, 0, 3, true),
            (&tenth, 1, 3, false),
            (&tenth, 1, 20, true),
            (&tenth, 2, 20, false),
        ] {
            assert_eq!(may_eject(rules, ejected, of), may, "{ejected} of {of}");
        }
    }
}
