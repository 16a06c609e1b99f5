//! What is written to disk at all: flash wears, and most responses are asked for once.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Admit;
use super::index::mixed;

/// An object up to this size may be written at once, within the budget: it costs little, and would cost a whole fetch again.
pub(crate) const SMALL: u64 = 16 << 10;
/// Keys one half of the sketch takes: 1 MiB for 2 % of false answers.
const KEYS: u32 = 1 << 20;
const BITS: u64 = 1 << 23;
const PROBES: u64 = 4;
/// At the latest after so long a half is forgotten.
const WINDOW: Duration = Duration::from_hours(2);

/// Which keys missed lately: two Bloom filters. The newer one is filled until it has its number of keys or its time is over, and then takes
/// the older one's place.
#[derive(Debug)]
struct Sketch {
    newer: Vec<u64>,
    older: Vec<u64>,
    keys: u32,
    since: Instant,
}

impl Sketch {
    fn new(now: Instant) -> Self {
        Self { newer: Vec::new(), older: Vec::new(), keys: 0, since: now }
    }

    /// Notes a miss; says whether there was one before.
    fn seen(&mut self, hash: u64, now: Instant) -> bool {
        if self.keys >= KEYS || now.duration_since(self.since) > WINDOW {
            self.older = std::mem::take(&mut self.newer);
            (self.keys, self.since) = (0, now);
        }
        if self.newer.is_empty() {
            self.newer.resize((BITS / 64) as usize, 0);
        }
        let (mut newer, mut older) = (true, !self.older.is_empty());
        for probe in 0..PROBES {
            let bit = hash.wrapping_add(probe.wrapping_mul(hash.rotate_left(32) | 1)) % BITS;
            let (word, mask) = ((bit / 64) as usize, 1 << (bit % 64));
            newer &= self.newer[word] & mask != 0;
            older = older && self.older[word] & mask != 0;
            self.newer[word] |= mask;
        }
        if !newer {
            self.keys += 1;
        }
        newer || older
    }
}

/// Bytes that may be written at once, filled up with time.
#[derive(Debug)]
struct Budget {
    left: f64,
    at: Instant,
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Admission {
    rule: Admit,
    rate: u64,
    sketch: Mutex<Sketch>,
    budget: Mutex<Budget>,
}

impl Admission {
    pub(crate) fn new(rule: Admit, rate: u64) -> Self {
        let now = Instant::now();
        let budget = Budget { left: precise(rate), at: now };
        Self { rule, rate, sketch: Mutex::new(Sketch::new(now)), budget: Mutex::new(budget) }
    }

    /// Whether an object that has just missed is written. `size`: of its body, where that is known.
    pub(crate) fn admits(&self, key: u128, size: Option<u64>, now: Instant) -> bool {
        if self.rule == Admit::All {
            return true;
        }
        if self.sketch.lock().seen(mixed(key), now) {
            return true;
        }
        size.is_some_and(|size| size <= SMALL && self.spend(size, now))
    }

    fn spend(&self, bytes: u64, now: Instant) -> bool {
        let mut budget = self.budget.lock();
        let elapsed = now.saturating_duration_since(budget.at).as_secs_f64();
        budget.at = now;
        // Saved up for a second at most.
        budget.left = (budget.left + elapsed * precise(self.rate)).min(precise(self.rate));
        let enough = budget.left >= precise(bytes);
        if enough {
            budget.left -= precise(bytes);
        }
        enough
    }
}

#[expect(clippy::cast_precision_loss, reason = "bytes for each second, far below 2^52")]
fn precise(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_miss_within_the_window_is_written() {
        let now = Instant::now();
        let admission = Admission::new(Admit::SecondHit, 0);
        assert!(!admission.admits(1, Some(1), now));
        assert!(!admission.admits(2, None, now));
        assert!(admission.admits(1, None, now + Duration::from_mins(30)));
    }

    #[test]
    fn what_missed_long_ago_is_forgotten() {
        let now = Instant::now();
        let admission = Admission::new(Admit::SecondHit, 0);
        admission.admits(1, None, now);
        for hours in [3, 6] {
            assert!(!admission.admits(
                7 + hours,
                None,
                now + Duration::from_hours(u64::try_from(hours).expect("small"))
            ));
        }
        assert!(!admission.admits(1, None, now + Duration::from_hours(6)));
    }

    #[test]
    fn small_ones_are_written_at_once_within_the_budget() {
        let now = Instant::now();
        let admission = Admission::new(Admit::SecondHit, 1000);
        assert!(admission.admits(1, Some(600), now));
        assert!(!admission.admits(2, Some(600), now), "spent");
        assert!(admission.admits(3, Some(600), now + Duration::from_secs(1)));
        assert!(!admission.admits(4, None, now + Duration::from_secs(5)), "of unknown size");
        let generous = Admission::new(Admit::SecondHit, 1 << 30);
        assert!(!generous.admits(5, Some(SMALL + 1), now));
    }

    #[test]
    fn few_keys_are_taken_for_others() {
        let now = Instant::now();
        let admission = Admission::new(Admit::SecondHit, 0);
        let mistaken = (0..200_000_u32).filter(|key| admission.admits(u128::from(*key), None, now)).count();
        assert!(mistaken < 4000, "{mistaken}");
    }
}
