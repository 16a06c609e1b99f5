//! The token bucket: integer arithmetic on a 16-byte state, time as a parameter.
//!
//! It stands alone because two need it: the host, for `selvedge.ratelimit.take`, and guests, on hosts that have no such function. Both keep
//! the same bytes, so either goes on where the other has stopped.

use std::time::Duration;

/// A token is counted in millionths, so that a slow refill ("1/day") is not lost to rounding between two quick requests.
const MICRO: u64 = 1_000_000;

/// Length of a stored bucket, in bytes.
pub const STATE_BYTES: usize = 16;

/// How much a key may do: `count` tokens per `window` in the long run, `burst` at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Tokens gained per `window`; at least 1.
    pub count: u32,
    /// The time in which `count` tokens are gained; not zero.
    pub window: Duration,
    /// Tokens that a full bucket holds; at least 1.
    pub burst: u32,
}

/// One key's bucket as it lies in shared data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    micro_tokens: u64,
    /// Nanoseconds since the Unix epoch up to which refill has been credited.
    refilled_at: u64,
}

/// What became of one request for tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Take {
    /// The tokens were there; the bucket to store, and what is left in it.
    Granted {
        /// The state after the request.
        bucket: Bucket,
        /// Whole tokens left.
        remaining: u32,
        /// Time until the bucket is full again.
        full_in: Duration,
    },
    /// They were not there. Nothing needs to be stored: a refusal changes no bucket, so a client that hammers a closed door causes no
    /// writes.
    Refused {
        /// Time until they will be there. For more tokens than the bucket can hold, the time until it is full: that is not enough.
        retry_in: Duration,
    },
}

impl Bucket {
    /// The stored form: two little-endian integers, tokens first.
    #[must_use]
    pub fn to_bytes(self) -> [u8; STATE_BYTES] {
        let mut bytes = [0; STATE_BYTES];
        bytes[..8].copy_from_slice(&self.micro_tokens.to_le_bytes());
        bytes[8..].copy_from_slice(&self.refilled_at.to_le_bytes());
        bytes
    }

    /// Reads the stored form; `None` when these are not 16 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (tokens, refilled_at) = bytes.split_first_chunk::<8>()?;
        let refilled_at: &[u8; 8] = refilled_at.try_into().ok()?;
        Some(Self { micro_tokens: u64::from_le_bytes(*tokens), refilled_at: u64::from_le_bytes(*refilled_at) })
    }
}

impl Limit {
    /// Takes `tokens` at `now` (time since the Unix epoch), all or none of them; none at all is a look. `stored` is what shared data
    /// holds; an unknown key has a full bucket.
    #[must_use]
    pub fn take(&self, tokens: u32, stored: Option<Bucket>, now: Duration) -> Take {
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let bucket = match stored {
            Some(bucket) => self.refill(bucket, now),
            None => Bucket { micro_tokens: self.capacity(), refilled_at: now },
        };

        let wanted = u64::from(tokens) * MICRO;
        let Some(micro_tokens) = bucket.micro_tokens.checked_sub(wanted) else {
            return Take::Refused { retry_in: self.time_for(wanted.min(self.capacity()) - bucket.micro_tokens) };
        };
        Take::Granted {
            bucket: Bucket { micro_tokens, ..bucket },
            remaining: u32::try_from(micro_tokens / MICRO).unwrap_or(u32::MAX),
            full_in: self.time_for(self.capacity() - micro_tokens),
        }
    }

    /// Credits the time since the last refill.
    fn refill(&self, bucket: Bucket, now: u64) -> Bucket {
        let capacity = self.capacity();
        let micro_tokens = bucket.micro_tokens.min(capacity);
        // A stamp more than a window ahead was written while the clock was wrong: believing it would freeze the bucket until then.
        let refilled_at =
            if bucket.refilled_at > now.saturating_add(self.window_nanos()) { now } else { bucket.refilled_at };

        let elapsed = u128::from(now.saturating_sub(refilled_at));
        let per_window = u128::from(self.count) * u128::from(MICRO);
        let gained = elapsed * per_window / u128::from(self.window_nanos());
        if gained >= u128::from(capacity - micro_tokens) {
            return Bucket { micro_tokens: capacity, refilled_at: refilled_at.max(now) };
        }

        // The stamp moves only by the time that the gained millionths cost (rounded up, so that never more than the rate is given);
        // the rest of the elapsed time stays credited to the next request.
        let gained = u64::try_from(gained).unwrap_or(capacity);
        Bucket { micro_tokens: micro_tokens + gained, refilled_at: refilled_at.saturating_add(self.nanos_for(gained)) }
    }

    fn capacity(&self) -> u64 {
        u64::from(self.burst) * MICRO
    }

    fn window_nanos(&self) -> u64 {
        u64::try_from(self.window.as_nanos()).unwrap_or(u64::MAX).max(1)
    }

    /// Nanoseconds in which this many millionths are gained, rounded up.
    fn nanos_for(&self, micro_tokens: u64) -> u64 {
        let per_window = u128::from(self.count.max(1)) * u128::from(MICRO);
        let nanos = (u128::from(micro_tokens) * u128::from(self.window_nanos())).div_ceil(per_window);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    fn time_for(&self, micro_tokens: u64) -> Duration {
        Duration::from_nanos(self.nanos_for(micro_tokens))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Duration = Duration::from_secs(1_800_000_000);

    fn limit(count: u32, window: u64, burst: u32) -> Limit {
        Limit { count, window: Duration::from_secs(window), burst }
    }

    /// Sends requests at these offsets and tells which were granted.
    fn run(limit: Limit, offsets: impl IntoIterator<Item = Duration>) -> Vec<bool> {
        let mut stored = None;
        let mut granted = Vec::new();
        for offset in offsets {
            match limit.take(1, stored, START + offset) {
                Take::Granted { bucket, .. } => {
                    stored = Bucket::from_bytes(&bucket.to_bytes());
                    granted.push(true);
                }
                Take::Refused { .. } => granted.push(false),
            }
        }
        granted
    }

    #[test]
    fn a_full_bucket_grants_exactly_its_burst_at_once() {
        for burst in [1, 2, 20, 1000] {
            let granted = run(limit(100, 60, burst), (0..burst + 5).map(|_| Duration::ZERO));
            assert_eq!(
                granted.iter().filter(|granted| **granted).count(),
                usize::try_from(burst).unwrap(),
                "burst {burst}"
            );
        }
    }

    #[test]
    fn the_long_run_rate_is_the_configured_one_however_often_the_client_asks() {
        // (count, window, burst, requests per second, seconds): asking a thousand times a second must neither starve nor gain.
        for (count, window, burst, per_second, seconds) in [
            (10, 1, 10, 1000, 20),
            (100, 60, 20, 50, 600),
            (1, 60, 1, 997, 600),
            (7, 3, 2, 333, 300),
            (1, 86_400, 1, 10, 172_801),
        ] {
            let gap = Duration::from_nanos(1_000_000_000 / per_second);
            let total = u32::try_from(per_second * seconds).unwrap();
            let granted =
                run(limit(count, window, burst), (0..total).map(|n| gap * n)).into_iter().filter(|g| *g).count();
            let expected = u64::from(burst) + u64::from(count) * seconds / window;
            let granted = u64::try_from(granted).unwrap();
            assert!(granted <= expected, "{count}/{window}s burst {burst}: {granted} > {expected}");
            assert!(granted + 2 >= expected, "{count}/{window}s burst {burst}: {granted} is less than {expected}");
        }
    }

    #[test]
    fn retry_in_is_exact_to_the_nanosecond() {
        let limit = limit(3, 1, 1);
        let Take::Granted { bucket, remaining, full_in } = limit.take(1, None, START) else { panic!("first request") };
        assert_eq!((remaining, full_in), (0, Duration::from_nanos(333_333_334)));
        let Take::Refused { retry_in } = limit.take(1, Some(bucket), START) else { panic!("second request") };
        let early = START + retry_in - Duration::from_nanos(2);
        assert!(matches!(limit.take(1, Some(bucket), early), Take::Refused { .. }));
        assert!(matches!(limit.take(1, Some(bucket), START + retry_in), Take::Granted { .. }));
    }

    #[test]
    fn a_clock_that_steps_back_neither_gives_tokens_nor_freezes_the_bucket() {
        let limit = limit(1, 1, 1);
        let Take::Granted { bucket, .. } = limit.take(1, None, START) else { panic!("first request") };
        assert!(matches!(limit.take(1, Some(bucket), START - Duration::from_millis(500)), Take::Refused { .. }));
        // Stamped years ahead: the bucket counts from now on.
        let Take::Granted { bucket, .. } = limit.take(1, None, START * 2) else { panic!("first request") };
        let Take::Refused { retry_in } = limit.take(1, Some(bucket), START) else { panic!("empty bucket") };
        assert!(retry_in <= Duration::from_secs(1));
    }

    #[test]
    fn foreign_state_is_not_believed() {
        assert_eq!(Bucket::from_bytes(b""), None);
        assert_eq!(Bucket::from_bytes(&[0; 15]), None);
        assert_eq!(Bucket::from_bytes(&[0; 17]), None);
        // More tokens than the bucket holds (a smaller burst after a reload): clamped.
        let rich = Bucket { micro_tokens: u64::MAX, refilled_at: 0 };
        let Take::Granted { remaining, .. } = limit(1, 1, 5).take(1, Some(rich), START) else { panic!("full bucket") };
        assert_eq!(remaining, 4);
    }

    #[test]
    fn the_extremes_do_not_overflow() {
        for limit in [limit(u32::MAX, 1, u32::MAX), limit(1, 31 * 86_400, u32::MAX), limit(u32::MAX, 31 * 86_400, 1)] {
            for stored in [
                None,
                Some(Bucket { micro_tokens: 0, refilled_at: 0 }),
                Some(Bucket { micro_tokens: 0, refilled_at: u64::MAX }),
            ] {
                for now in [Duration::ZERO, START, Duration::MAX] {
                    let _taken = limit.take(1, stored, now);
                }
            }
        }
    }

    #[test]
    fn tokens_are_taken_together_or_not_at_all() {
        let limit = limit(1, 1, 5);
        let Take::Granted { bucket, remaining, full_in } = limit.take(3, None, START) else { panic!("of five") };
        assert_eq!((remaining, full_in), (2, Duration::from_secs(3)));
        assert_eq!(limit.take(3, Some(bucket), START), Take::Refused { retry_in: Duration::from_secs(1) });
        assert!(matches!(limit.take(2, Some(bucket), START), Take::Granted { remaining: 0, .. }));
        assert!(matches!(limit.take(0, Some(bucket), START), Take::Granted { remaining: 2, .. }));
        assert_eq!(limit.take(6, Some(bucket), START), Take::Refused { retry_in: Duration::from_secs(3) });
    }

    proptest::proptest! {
        #[test]
        fn any_state_and_limit_is_borne_and_none_gives_more_than_it_holds(
            state: (u64, u64), count: u32, window: u64, burst: u32, tokens: u32, now: u64,
        ) {
            let limit = Limit { count, window: Duration::from_nanos(window), burst };
            let stored = Bucket { micro_tokens: state.0, refilled_at: state.1 };
            match limit.take(tokens, Some(stored), Duration::from_nanos(now)) {
                Take::Granted { remaining, .. } => {
                    proptest::prop_assert!(u64::from(remaining) + u64::from(tokens) <= u64::from(burst));
                }
                Take::Refused { .. } => proptest::prop_assert!(tokens > 0),
            }
        }
    }
}
