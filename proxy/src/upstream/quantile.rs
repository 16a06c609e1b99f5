//! How long the answers of an upstream's endpoints take to begin, as a distribution: what 95 of a hundred recent ones needed.
//!
//! Answers are counted by size, with 8 classes for every doubling, so that what is told is at most an eighth too long. The counts are halved
//! from time to time: an answer counts for half as much after one or two periods. Nothing is locked, and nothing grows.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How often the counts are halved, as long as enough remain; in milliseconds.
const PERIOD: u64 = 10_000;

/// How long what was worked out is good for, in milliseconds.
const FRESH: u64 = 100;

/// Classes for every doubling, and of all: from 1 microsecond to more than an hour.
const STEPS: u64 = 8;
const CLASSES: usize = 8 * 32;

/// The distribution.
#[derive(Debug)]
pub(super) struct Answers {
    classes: [AtomicU32; CLASSES],
    /// When the counts were halved last, and when the quantile was worked out last; 0 = never.
    halved: AtomicU64,
    worked_out: AtomicU64,
    /// What was worked out, in microseconds; 0 = too few answers are known.
    quantile: AtomicU64,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            classes: [const { AtomicU32::new(0) }; CLASSES],
            halved: AtomicU64::new(0),
            worked_out: AtomicU64::new(0),
            quantile: AtomicU64::new(0),
        }
    }
}

impl Answers {
    /// An answer took so long to begin.
    pub(super) fn sample(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        // Wraps only after four thousand million answers within a period.
        self.classes[class(micros)].fetch_add(1, Relaxed);
    }

    /// What so many of a thousand recent answers needed at most; `None` = fewer than `minimum` are known.
    pub(super) fn quantile(&self, per_mille: u16, minimum: u16, now: u64) -> Option<Duration> {
        let last = self.worked_out.load(Relaxed);
        // One of those who notice works it out; the others go by what is known.
        if (last == 0 || now >= last + FRESH)
            && self.worked_out.compare_exchange(last, now.max(1), Relaxed, Relaxed).is_ok()
        {
            let found = self.work_out(per_mille, minimum, now);
            self.quantile.store(found.unwrap_or(0), Relaxed);
        }
        match self.quantile.load(Relaxed) {
            0 => None,
            micros => Some(Duration::from_micros(micros)),
        }
    }

    /// What was worked out last.
    pub(super) fn known(&self) -> Option<Duration> {
        Some(self.quantile.load(Relaxed)).filter(|micros| *micros > 0).map(Duration::from_micros)
    }

    fn work_out(&self, per_mille: u16, minimum: u16, now: u64) -> Option<u64> {
        let all: u64 = self.classes.iter().map(|class| u64::from(class.load(Relaxed))).sum();
        if all < u64::from(minimum) {
            return None;
        }
        let rank = (all * u64::from(per_mille)).div_ceil(1000);
        let mut below = 0;
        let found = self.classes.iter().position(|class| {
            below += u64::from(class.load(Relaxed));
            below >= rank
        });
        self.fade(all, minimum, now);
        found.map(end_of)
    }

    /// Halves the counts when it is time; never so far that too few remain.
    fn fade(&self, all: u64, minimum: u16, now: u64) {
        let halved = self.halved.load(Relaxed);
        if halved == 0 {
            self.halved.store(now.max(1), Relaxed);
        }
        if halved == 0 || now < halved + PERIOD || all < 2 * u64::from(minimum) + CLASSES as u64 {
            return;
        }
        self.halved.store(now, Relaxed);
        for class in &self.classes {
            // What is counted meanwhile is kept.
            let count = class.load(Relaxed);
            class.fetch_sub(count / 2, Relaxed);
        }
    }
}

/// The class of so many microseconds.
fn class(micros: u64) -> usize {
    let micros = micros.max(1);
    let doublings = micros.ilog2();
    // How far it is to the next doubling, in eighths: the three bits after the first.
    let eighths = if doublings >= 3 { micros >> (doublings - 3) } else { micros << (3 - doublings) };
    usize::try_from(u64::from(doublings) * STEPS + eighths % STEPS).map_or(CLASSES - 1, |class| class.min(CLASSES - 1))
}

/// Where a class ends, in microseconds.
fn end_of(class: usize) -> u64 {
    let (doublings, step) = (class as u64 / STEPS, class as u64 % STEPS);
    ((STEPS + step + 1) << doublings).div_ceil(STEPS)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis(answers: &Answers, per_mille: u16, minimum: u16, now: u64) -> Option<u128> {
        answers.quantile(per_mille, minimum, now).map(|found| found.as_millis())
    }

    #[test]
    fn so_many_of_a_hundred_answers_needed_no_longer() {
        let answers = Answers::default();
        (0..95).for_each(|_| answers.sample(Duration::from_millis(20)));
        (0..5).for_each(|_| answers.sample(Duration::from_secs(3)));
        let found = answers.quantile(950, 100, 1_000).unwrap();
        assert!(found >= Duration::from_millis(20) && found <= Duration::from_micros(22_500), "{found:?}");
        let found = answers.quantile(960, 100, 2_000).unwrap();
        assert!(found >= Duration::from_secs(3) && found <= Duration::from_millis(3_375), "{found:?}");
    }

    #[test]
    fn too_few_answers_tell_nothing_and_what_is_known_is_good_for_a_moment() {
        let answers = Answers::default();
        assert_eq!((answers.quantile(950, 1, 1_000), answers.known()), (None, None));
        (0..9).for_each(|_| answers.sample(Duration::from_millis(20)));
        assert_eq!(answers.quantile(950, 10, 2_000), None);
        answers.sample(Duration::from_millis(20));
        assert_eq!(answers.quantile(950, 10, 2_050), None, "worked out a moment ago");
        assert!(answers.quantile(950, 10, 2_100).is_some() && answers.known().is_some());
    }

    #[test]
    fn old_answers_count_for_less_and_less_as_long_as_there_are_new_ones() {
        let answers = Answers::default();
        (0..10_000).for_each(|_| answers.sample(Duration::from_secs(1)));
        let mut now = 1_000;
        assert!(millis(&answers, 950, 100, now).unwrap() >= 1_000);
        for _ in 0..3 {
            now += PERIOD;
            (0..10_000).for_each(|_| answers.sample(Duration::from_millis(10)));
            millis(&answers, 950, 100, now);
        }
        // A twenty-fourth of all, and fewer with every period.
        now += PERIOD;
        (0..20_000).for_each(|_| answers.sample(Duration::from_millis(10)));
        assert!(millis(&answers, 950, 100, now).unwrap() <= 11);

        // Without new ones they stay: it is all that is known.
        for _ in 0..100 {
            now += PERIOD;
            assert!(millis(&answers, 950, 100, now).is_some());
        }
    }

    proptest! {
        #[test]
        fn a_class_ends_at_most_an_eighth_beyond_what_is_in_it(micros in 1u64..3_600_000_000) {
            let end = end_of(class(micros));
            prop_assert!(micros <= end && end <= micros + micros / 8 + 1, "{micros} {end}");
            prop_assert!(class(micros) <= class(micros + 1));
        }
    }

    #[test]
    fn what_takes_longer_than_all_classes_is_in_the_last() {
        assert_eq!(class(u64::MAX), CLASSES - 1);
        assert_eq!((class(0), class(1), end_of(0)), (0, 0, 2));
    }
}
