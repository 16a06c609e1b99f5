//! One request against one bucket: read, take, write back if nobody changed it meanwhile.

use std::time::Duration;

use crate::bucket::{Bucket, Limit, Take};
use crate::config::OnFull;

/// How often a bucket is re-read when other workers change it under our hands. Each failure means that another worker's request
/// went through, so this many failures in a row need more than this many workers busy with one key.
pub const MAX_ATTEMPTS: usize = 16;

/// The host's shared data, as the limiter sees it.
pub trait Store {
    /// The version of a value, for compare-and-swap.
    type Version;

    /// The value and its version; `None` when the key is unknown.
    fn get(&self, key: &str) -> Option<(Vec<u8>, Self::Version)>;

    /// Writes if the value still has this version; without one, if the key is still unknown.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when somebody else wrote, [`StoreError::Full`] when the host takes no more data.
    fn set(&self, key: &str, value: &[u8], version: Option<Self::Version>) -> Result<(), StoreError>;
}

/// Why a write failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// Somebody else wrote since we read.
    Changed,
    /// The host keeps no more data.
    Full,
}

/// The decision on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may go on.
    Allowed {
        /// Whole requests left.
        remaining: u32,
        /// Time until the bucket is full again.
        full_in: Duration,
    },
    /// It comes too soon.
    Limited {
        /// Time until one request is possible.
        retry_in: Duration,
    },
    /// It may go on although it could not be counted.
    Uncounted(StoreError),
    /// It may not go on because it could not be counted.
    Uncountable(StoreError),
}

/// Takes one token from the bucket under `key` at `now` (time since the Unix epoch).
pub fn decide<S: Store>(store: &S, key: &str, limit: &Limit, now: Duration, on_full: OnFull) -> Verdict {
    let uncounted = |error| match on_full {
        OnFull::Allow => Verdict::Uncounted(error),
        OnFull::Deny => Verdict::Uncountable(error),
    };

    for _ in 0..MAX_ATTEMPTS {
        let (stored, version) = match store.get(key) {
            Some((bytes, version)) => (Bucket::from_bytes(&bytes), Some(version)),
            None => (None, None),
        };
        let (bucket, remaining, full_in) = match limit.take(stored, now) {
            Take::Granted { bucket, remaining, full_in } => (bucket, remaining, full_in),
            Take::Refused { retry_in } => return Verdict::Limited { retry_in },
        };
        match store.set(key, &bucket.to_bytes(), version) {
            Ok(()) => return Verdict::Allowed { remaining, full_in },
            Err(StoreError::Changed) => {}
            Err(StoreError::Full) => return uncounted(StoreError::Full),
        }
    }
    uncounted(StoreError::Changed)
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

        fn set(&self, key: &str, value: &[u8], version: Option<u32>) -> Result<(), StoreError> {
            let mut entries = self.entries.lock().unwrap();
            let current = entries.get(key).map(|(_, version)| *version);
            if version != current {
                return Err(StoreError::Changed);
            }
            if current.is_none() && entries.len() >= self.capacity {
                return Err(StoreError::Full);
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

        fn set(&self, _: &str, _: &[u8], _: Option<usize>) -> Result<(), StoreError> {
            self.writes.set(self.writes.get() + 1);
            Err(StoreError::Changed)
        }
    }

    #[test]
    fn workers_share_one_bucket() {
        let store = Shared::new(10);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..50)
                            .filter(|_| {
                                matches!(decide(&store, "k", &LIMIT, NOW, OnFull::Deny), Verdict::Allowed { .. })
                            })
                            .count()
                    })
                })
                .collect();
            let allowed: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
            assert_eq!(allowed, 20);
        });
    }

    #[test]
    fn keys_do_not_touch_each_other() {
        let store = Shared::new(10);
        for _ in 0..20 {
            assert!(matches!(decide(&store, "a", &LIMIT, NOW, OnFull::Allow), Verdict::Allowed { .. }));
        }
        assert_eq!(
            decide(&store, "a", &LIMIT, NOW, OnFull::Allow),
            Verdict::Limited { retry_in: Duration::from_millis(600) }
        );
        let full_in = Duration::from_millis(600);
        assert_eq!(decide(&store, "b", &LIMIT, NOW, OnFull::Allow), Verdict::Allowed { remaining: 19, full_in });
    }

    #[test]
    fn a_refusal_writes_nothing() {
        let store = Shared::new(10);
        for _ in 0..25 {
            decide(&store, "a", &LIMIT, NOW, OnFull::Allow);
        }
        assert_eq!(store.get("a").unwrap().1, 20);
    }

    #[test]
    fn a_full_store_follows_on_full() {
        let store = Shared::new(1);
        assert!(matches!(decide(&store, "a", &LIMIT, NOW, OnFull::Deny), Verdict::Allowed { .. }));
        assert_eq!(decide(&store, "b", &LIMIT, NOW, OnFull::Allow), Verdict::Uncounted(StoreError::Full));
        assert_eq!(decide(&store, "b", &LIMIT, NOW, OnFull::Deny), Verdict::Uncountable(StoreError::Full));
        // The known key is still counted.
        assert!(matches!(decide(&store, "a", &LIMIT, NOW, OnFull::Deny), Verdict::Allowed { remaining: 18, .. }));
    }

    #[test]
    fn contention_ends_after_a_bounded_number_of_tries() {
        let store = Contended::default();
        assert_eq!(decide(&store, "a", &LIMIT, NOW, OnFull::Allow), Verdict::Uncounted(StoreError::Changed));
        assert_eq!(store.writes.get(), MAX_ATTEMPTS);
        assert_eq!(decide(&store, "a", &LIMIT, NOW, OnFull::Deny), Verdict::Uncountable(StoreError::Changed));
    }
}
