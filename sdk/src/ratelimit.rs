//! Rate limits: token buckets that all workers share.
//!
//! ```
//! use selvedge_sdk::prelude::*;
//!
//! # fn example() -> Result<(), Reply> {
//! let logins = RateLimit::per_minute("logins", 10).burst(3); // in `Filter::new`
//! logins.take("alice")?.or_too_many()?;                      // 429 with Retry-After when the bucket is empty
//! # Ok(()) }
//! ```
//!
//! A bucket is 16 bytes of the plugin's [shared data](crate::kv), under `NAME/KEY`. On Selvedge one call takes from it
//! (`selvedge.ratelimit.take`), and it is forgotten when it is full again. Other hosts are read and written until nobody else wrote in
//! between, with the same arithmetic; there a bucket stays until the host makes room. Each node has buckets of its own.

use std::time::{Duration, UNIX_EPOCH};

pub use selvedge_token_bucket::Limit;
use selvedge_token_bucket::{Bucket, Take};

use crate::Reply;
use crate::host::{self, Status};
use crate::kv::{self, Cas, KvError};

/// How often a bucket is read again when other workers change it under our hands. Each failure means that another worker's request
/// went through, so this many failures in a row need more than this many workers busy with one key.
const ATTEMPTS: usize = 16;

/// A limit, and the buckets under its name.
#[derive(Clone, Debug)]
pub struct RateLimit {
    name: Box<str>,
    limit: Limit,
}

/// What became of a request for tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a limit limits only where this is looked at"]
pub enum Taken {
    /// They were there.
    Granted {
        /// Whole tokens left.
        remaining: u32,
        /// Time until the bucket is full again.
        full_in: Duration,
    },
    /// They were not, and the bucket is as it was.
    Refused {
        /// Time until they will be there.
        retry_in: Duration,
    },
}

impl Taken {
    /// Whether they were there.
    pub fn is_granted(self) -> bool {
        matches!(self, Self::Granted { .. })
    }

    /// How many are left, or an answer: 429 with `Retry-After` (RFC 6585, 4), in whole seconds, rounded up and at least one.
    ///
    /// # Errors
    /// The answer, when they were refused.
    pub fn or_too_many(self) -> Result<u32, Reply> {
        match self {
            Self::Granted { remaining, .. } => Ok(remaining),
            Self::Refused { retry_in } => {
                let seconds = (retry_in.as_secs() + u64::from(retry_in.subsec_nanos() > 0)).max(1);
                Err(Reply::new(429).header("retry-after", seconds.to_string()).text("too many requests"))
            }
        }
    }
}

impl RateLimit {
    /// So many per window in the long run (1 to 10^9 per 1 ms to 31 days; what is beyond counts as the end), and as many at once.
    pub fn new(name: &str, count: u32, window: Duration) -> Self {
        let count = count.clamp(1, COUNT_MAX);
        let window = window.clamp(Duration::from_millis(1), WINDOW_MAX);
        Self { name: name.into(), limit: Limit { count, window, burst: count } }
    }

    /// So many per second in the long run, and as many at once.
    pub fn per_second(name: &str, count: u32) -> Self {
        Self::new(name, count, Duration::from_secs(1))
    }

    /// So many per minute in the long run, and as many at once.
    pub fn per_minute(name: &str, count: u32) -> Self {
        Self::new(name, count, Duration::from_secs(60))
    }

    /// So many per hour in the long run, and as many at once.
    pub fn per_hour(name: &str, count: u32) -> Self {
        Self::new(name, count, Duration::from_secs(3600))
    }

    /// How many may come at once after a pause: 1 to 10^9.
    #[must_use]
    pub fn burst(mut self, burst: u32) -> Self {
        self.limit.burst = burst.clamp(1, COUNT_MAX);
        self
    }

    /// Takes one token from the bucket of a key. Keys that clients choose make as many buckets: hash what may be long.
    ///
    /// # Errors
    /// As [`take_many`](RateLimit::take_many).
    pub fn take(&self, key: &str) -> Result<Taken, KvError> {
        self.take_many(key, 1)
    }

    /// Takes several tokens, all or none. None is a look, which changes nothing.
    ///
    /// # Errors
    /// [`KvError::Refused`]: the host does not store the bucket, or it can never hold so many. [`KvError::CasMismatch`], only where the host
    /// has no function for it: others took from the same bucket 16 times while this one tried.
    pub fn take_many(&self, key: &str, tokens: u32) -> Result<Taken, KvError> {
        const FUNCTION: &str = "selvedge.ratelimit.take";
        if tokens > self.limit.burst {
            return Err(KvError::Refused);
        }
        let key = format!("{}/{key}", self.name);
        let Limit { count, window, burst } = self.limit;
        let window = u64::try_from(window.as_millis()).unwrap_or(u64::MAX);
        let numbers = [tokens, count, burst].map(u32::to_le_bytes);
        let argument = [numbers.as_flattened(), &window.to_le_bytes(), key.as_bytes()].concat();
        match host::current().foreign(FUNCTION, &argument) {
            Ok(answer) => read(&answer).ok_or(KvError::Malformed),
            Err(Status::NotFound) => {
                let now = host::current().now().duration_since(UNIX_EPOCH).unwrap_or_default();
                take_from(&SharedData, &key, &self.limit, tokens, now)
            }
            Err(_) => Err(KvError::Refused),
        }
    }
}

const COUNT_MAX: u32 = 1_000_000_000;
const WINDOW_MAX: Duration = Duration::from_secs(31 * 86_400);

/// One byte that says whether, 4 of what is left, 8 of a time in nanoseconds.
fn read(answer: &[u8]) -> Option<Taken> {
    let (granted, rest) = answer.split_first()?;
    let (remaining, time) = rest.split_first_chunk()?;
    let time = Duration::from_nanos(u64::from_le_bytes(time.try_into().ok()?));
    Some(match granted {
        0 => Taken::Refused { retry_in: time },
        _ => Taken::Granted { remaining: u32::from_le_bytes(*remaining), full_in: time },
    })
}

/// The host's shared data, as the loop sees it.
trait Store {
    type Version;

    fn get(&self, key: &str) -> Option<(Vec<u8>, Self::Version)>;

    /// Writes if the value still has this version; without one, if the key is still unknown.
    fn set(&self, key: &str, value: &[u8], version: Option<Self::Version>) -> Result<(), KvError>;
}

struct SharedData;

impl Store for SharedData {
    type Version = Cas;

    fn get(&self, key: &str) -> Option<(Vec<u8>, Cas)> {
        kv::get(key)
    }

    fn set(&self, key: &str, value: &[u8], version: Option<Cas>) -> Result<(), KvError> {
        match version {
            Some(version) => kv::set(key, value, Some(version)),
            None => kv::create(key, value),
        }
    }
}

fn take_from<S: Store>(store: &S, key: &str, limit: &Limit, tokens: u32, now: Duration) -> Result<Taken, KvError> {
    for _ in 0..ATTEMPTS {
        let (stored, version) = match store.get(key) {
            Some((bytes, version)) => (Bucket::from_bytes(&bytes), Some(version)),
            None => (None, None),
        };
        let (bucket, remaining, full_in) = match limit.take(tokens, stored, now) {
            Take::Granted { bucket, remaining, full_in } => (bucket, remaining, full_in),
            Take::Refused { retry_in } => return Ok(Taken::Refused { retry_in }),
        };
        if tokens == 0 {
            return Ok(Taken::Granted { remaining, full_in });
        }
        match store.set(key, &bucket.to_bytes(), version) {
            Ok(()) => return Ok(Taken::Granted { remaining, full_in }),
            Err(KvError::CasMismatch) => {}
            Err(error) => return Err(error),
        }
    }
    Err(KvError::CasMismatch)
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::HashMap;
    use std::sync::Mutex;

    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);
    const LIMIT: Limit = Limit { count: 100, window: Duration::from_secs(60), burst: 20 };

    /// Shared data of many workers, with a capacity.
    struct Shared {
        entries: Mutex<HashMap<String, (Vec<u8>, u32)>>,
        capacity: usize,
    }

    impl Shared {
        fn new(capacity: usize) -> Self {
            Self { entries: Mutex::default(), capacity }
        }
    }

    impl Store for Shared {
        type Version = u32;

        fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
            self.entries.lock().unwrap().get(key).cloned()
        }

        fn set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), KvError> {
            let mut entries = self.entries.lock().unwrap();
            let current = entries.get(key).map(|(_, version)| *version);
            if version != current {
                return Err(KvError::CasMismatch);
            }
            if current.is_none() && entries.len() >= self.capacity {
                return Err(KvError::Refused);
            }
            entries.insert(key.to_owned(), (value.to_vec(), current.unwrap_or(0) + 1));
            Ok(())
        }
    }

    /// A store in which another worker always comes first.
    #[derive(Default)]
    struct Contended {
        writes: Cell<usize>,
        value: RefCell<Vec<u8>>,
    }

    impl Store for Contended {
        type Version = usize;

        fn get(&self, _: &str) -> Option<(Vec<u8>, usize)> {
            Some((self.value.borrow().clone(), 1))
        }

        fn set(&self, _: &str, _: &[u8], _: Option<usize>) -> Result<(), KvError> {
            self.writes.set(self.writes.get() + 1);
            Err(KvError::CasMismatch)
        }
    }

    fn take(store: &impl Store, key: &str) -> Result<Taken, KvError> {
        take_from(store, key, &LIMIT, 1, NOW)
    }

    #[test]
    fn workers_share_one_bucket() {
        let store = Shared::new(10);
        std::thread::scope(|scope| {
            let work = || (0..50).filter(|_| take(&store, "k").is_ok_and(Taken::is_granted)).count();
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            let granted: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
            assert_eq!(granted, 20);
        });
    }

    #[test]
    fn keys_do_not_touch_each_other_and_a_refusal_writes_nothing() {
        let store = Shared::new(10);
        for _ in 0..20 {
            assert!(take(&store, "a").unwrap().is_granted());
        }
        let time = Duration::from_millis(600);
        assert_eq!(take(&store, "a"), Ok(Taken::Refused { retry_in: time }));
        assert_eq!(take(&store, "b"), Ok(Taken::Granted { remaining: 19, full_in: time }));
        assert_eq!(
            take_from(&store, "b", &LIMIT, 0, NOW),
            Ok(Taken::Granted { remaining: 19, full_in: time }),
            "a look"
        );
        assert_eq!((store.get("a").unwrap().1, store.get("b").unwrap().1), (20, 1));
    }

    #[test]
    fn what_cannot_be_counted_is_said() {
        let store = Shared::new(1);
        assert!(take(&store, "a").is_ok());
        assert_eq!(take(&store, "b"), Err(KvError::Refused));
        assert!(take(&store, "a").is_ok(), "the known key is still counted");

        let store = Contended::default();
        assert_eq!(take(&store, "a"), Err(KvError::CasMismatch));
        assert_eq!(store.writes.get(), ATTEMPTS);
        assert_eq!(RateLimit::per_second("x", 5).take_many("a", 6), Err(KvError::Refused));
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let retry = |millis| Taken::Refused { retry_in: Duration::from_millis(millis) }.or_too_many().unwrap_err();
        for (millis, seconds) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2")] {
            let reply = retry(millis);
            assert_eq!(reply.headers()[0], ("retry-after".to_owned(), seconds.as_bytes().to_vec()));
        }
    }
}
