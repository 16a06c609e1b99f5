//! One request against one bucket, and what becomes of it when it cannot be counted.

use std::time::Duration;

use selvedge_sdk::kv::KvError;
use selvedge_sdk::ratelimit::{RateLimit, Taken};

use crate::config::OnFull;

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
    Uncounted(KvError),
    /// It may not go on because it could not be counted.
    Uncountable(KvError),
}

/// Takes one token from the bucket of `key`.
pub fn decide(buckets: &RateLimit, key: &str, on_full: OnFull) -> Verdict {
    match (buckets.take(key), on_full) {
        (Ok(Taken::Granted { remaining, full_in }), _) => Verdict::Allowed { remaining, full_in },
        (Ok(Taken::Refused { retry_in }), _) => Verdict::Limited { retry_in },
        (Err(error), OnFull::Allow) => Verdict::Uncounted(error),
        (Err(error), OnFull::Deny) => Verdict::Uncountable(error),
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use selvedge_sdk::host::{self, Host, Status};

    use super::*;

    /// A host whose shared data is full, or changes under our hands.
    struct Refusing(Status);

    impl Host for Refusing {
        fn set_shared(&self, _: &str, _: &[u8], _: Option<u32>) -> Result<(), Status> {
            Err(self.0)
        }

        fn shared(&self, _: &str) -> Option<(Vec<u8>, u32)> {
            Some((Vec::new(), 1))
        }
    }

    #[test]
    fn what_cannot_be_counted_follows_on_full() {
        for (status, error) in [(Status::Failed(10), KvError::Refused), (Status::CasMismatch, KvError::CasMismatch)] {
            let _installed = host::install(Rc::new(Refusing(status)));
            let buckets = RateLimit::per_second("limit", 1);
            assert_eq!(decide(&buckets, "a", OnFull::Allow), Verdict::Uncounted(error));
            assert_eq!(decide(&buckets, "a", OnFull::Deny), Verdict::Uncountable(error));
        }
    }
}
