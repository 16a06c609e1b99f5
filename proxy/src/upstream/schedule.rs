//! Turns: weighted endpoints in an order in which a heavy one is not asked several times in a row.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The most turns a schedule has. Beyond, weights are rounded to fit; an endpoint of any weight keeps one turn at least.
const TURNS_MAX: u64 = 4096;

/// The turns, each the index of a weight; a weight of 0 has none. Every index comes as often as its weight says, after common factors,
/// its turns evenly spaced, those of lower indices first (earliest virtual deadline first).
pub(super) fn interleave(weights: &[u32]) -> Vec<u16> {
    let weights = fitted(weights);
    let total: u64 = weights.iter().sum();
    let mut schedule = Vec::with_capacity(usize::try_from(total).unwrap_or_default());

    // The n-th turn of weight w is due at (2n + 1) / 2w: in the middle of its share of time. Deadlines are compared as fractions of a
    // number that is large enough to keep 4096ths apart.
    let due = |turn: u64, weight: u64| ((2 * turn + 1) << 40) / (2 * weight);
    let heavy = weights.iter().enumerate().filter(|(_, weight)| **weight > 0);
    let mut next: BinaryHeap<Reverse<(u64, usize, u64)>> =
        heavy.map(|(index, weight)| Reverse((due(0, *weight), index, 0))).collect();
    for _ in 0..total {
        let Some(Reverse((_, index, turn))) = next.pop() else { break };
        schedule.push(u16::try_from(index).unwrap_or(u16::MAX));
        next.push(Reverse((due(turn + 1, weights[index]), index, turn + 1)));
    }
    schedule
}

/// The weights in their lowest terms, and rounded if they still make too many turns.
fn fitted(weights: &[u32]) -> Vec<u64> {
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, u64::from(*weight))).max(1);
    let lowest: Vec<u64> = weights.iter().map(|weight| u64::from(*weight) / divisor).collect();
    let total: u64 = lowest.iter().sum();
    if total <= TURNS_MAX {
        return lowest;
    }
    lowest.iter().map(|weight| if *weight == 0 { 0 } else { (weight * TURNS_MAX / total).max(1) }).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn weights_are_spread_smoothly() {
        for (weights, turns) in [
            (&[3, 1][..], &[0, 0, 1, 0][..]),
            (&[1, 1], &[0, 1]),
            (&[5, 5, 5], &[0, 1, 2]),
            (&[1000, 500], &[0, 1, 0]),
            (&[0, 2], &[1]),
            (&[0, 0], &[]),
            (&[], &[]),
        ] {
            assert_eq!(interleave(weights), turns, "{weights:?}");
        }
    }

    proptest! {
        #[test]
        fn everyone_gets_its_share_and_nobody_waits_long(weights in prop::collection::vec(0u32..=10_000, 0..200)) {
            let turns = interleave(&weights);
            let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            prop_assert!(turns.len() <= 4096 + weights.len());
            for (index, weight) in weights.iter().enumerate() {
                let got = turns.iter().filter(|turn| usize::from(**turn) == index).count();
                prop_assert_eq!(got == 0, *weight == 0);
                if *weight > 0 {
                    let share = f64::from(*weight) * turns.len() as f64 / total as f64;
                    prop_assert!((got as f64 - share).abs() <= share.mul_add(0.1, 1.0), "{} of {}", got, share);
                }
            }
        }
    }
}
