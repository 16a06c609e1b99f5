//! What `pool` says of connections: when one has carried its last request, and how many are kept.
//!
//! Our own HTTP/1.1 client ([`super::http1`]) keeps its connections itself, and so knows both. Pingora's pools are theirs: there a connection
//! is known by its descriptor and the time it was made ([`Ledger`]), and what becomes of it after a request has to be decided before
//! ([`Keeping`]), when the request's header can still say `Connection: close`.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use pingora::protocols::{Digest, UniqueIDType};
use selvedge_config::UpstreamPool;
use tokio::time::Instant;

/// How many connections are kept that nobody uses, in each pool.
pub(crate) const KEPT_MAX: usize = 512;

/// Whether a connection of this age that carries its so many-th request carries no more after it.
pub(crate) fn is_last(rule: &UpstreamPool, carried: u32, age: Duration) -> bool {
    rule.idle == Some(0) || is_worn(rule, carried, age)
}

fn is_worn(rule: &UpstreamPool, carried: u32, age: Duration) -> bool {
    rule.max_requests.is_some_and(|most| carried >= u32::from(most)) || rule.max_age.is_some_and(|most| age >= most)
}

/// What the connections have carried that are in others' pools, where an upstream limits that. As many entries at most as there have been
/// descriptors: one is overwritten when the number is another connection's.
static LEDGER: LazyLock<Ledger> = LazyLock::new(Ledger::default);

#[derive(Default)]
struct Ledger(Mutex<HashMap<UniqueIDType, Entry>>);

struct Entry {
    /// Tells it from the connection that had the number before.
    made: SystemTime,
    first: Instant,
    carried: u32,
}

impl Ledger {
    /// One more request is on it: how many there have been, and since when.
    fn carries(&self, id: UniqueIDType, made: SystemTime) -> (u32, Duration) {
        let mut entries = self.0.lock();
        let new = || Entry { made, first: Instant::now(), carried: 0 };
        let entry = entries.entry(id).or_insert_with(new);
        if entry.made != made {
            *entry = new();
        }
        entry.carried = entry.carried.saturating_add(1);
        (entry.carried, entry.first.elapsed())
    }
}

/// Notes that a request is on this connection; whether it is the last, by what it has carried and by its age.
pub(crate) fn carries(rule: &UpstreamPool, id: UniqueIDType, digest: Option<&Digest>) -> bool {
    if !rule.wears_out() {
        return false;
    }
    let made = digest.and_then(|digest| digest.timing_digest.first()?.as_ref()).map(|timing| timing.established_ts);
    let (carried, age) = LEDGER.carries(id, made.unwrap_or(SystemTime::UNIX_EPOCH));
    is_worn(rule, carried, age)
}

/// How many requests of a worker are on connections that may be kept afterwards, by what Pingora tells peers apart by.
///
/// No more than `idle` of them at once means that no more than `idle` connections are ever kept: a request takes an unused one before a new
/// one is made, so those in use that may be kept and those that are kept are never more together.
#[derive(Default)]
pub(crate) struct Keeping(Mutex<HashMap<u64, u32>>);

/// A request whose connection may be kept.
pub(crate) struct Kept {
    all: Arc<Keeping>,
    peer: u64,
}

impl Keeping {
    /// `None` = there are as many as may be kept.
    pub(crate) fn one(self: &Arc<Self>, peer: u64, most: u16) -> Option<Kept> {
        let mut all = self.0.lock();
        let count = all.entry(peer).or_default();
        if *count >= u32::from(most) {
            return None;
        }
        *count += 1;
        Some(Kept { all: Arc::clone(self), peer })
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(count) = all.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.peer);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_carries_so_many_requests_and_grows_so_old() {
        let rule = |idle, max_requests, max_age: Option<u64>| UpstreamPool {
            idle,
            max_requests,
            max_age: max_age.map(Duration::from_secs),
        };
        let rows = [
            (rule(None, None, None), 1_000_000, 1_000_000, false),
            (rule(Some(0), None, None), 1, 0, true),
            (rule(Some(1), None, None), 9, 9, false),
            (rule(None, Some(1), None), 1, 0, true),
            (rule(None, Some(3), None), 2, 0, false),
            (rule(None, Some(3), None), 3, 0, true),
            (rule(None, None, Some(10)), 9, 9, false),
            (rule(None, None, Some(10)), 9, 10, true),
        ];
        for (rule, carried, age, last) in rows {
            assert_eq!(is_last(&rule, carried, Duration::from_secs(age)), last, "{rule:?} {carried} {age}");
        }
    }

    #[test]
    fn another_connection_with_the_same_number_begins_anew() {
        let ledger = Ledger::default();
        let (one, other) = (SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_nanos(1));
        assert_eq!([ledger.carries(7, one).0, ledger.carries(7, one).0, ledger.carries(8, one).0], [1, 2, 1]);
        assert_eq!([ledger.carries(7, other).0, ledger.carries(7, other).0], [1, 2]);
    }

    #[test]
    fn no_more_than_so_many_may_be_kept_at_once() {
        let keeping = Arc::new(Keeping::default());
        let first = keeping.one(1, 2);
        let _second = keeping.one(1, 2);
        assert!(first.is_some() && keeping.one(1, 2).is_none() && keeping.one(2, 1).is_some());
        drop(first);
        assert!(keeping.one(1, 2).is_some());
        assert_eq!(keeping.0.lock().len(), 1, "who keeps nothing is forgotten");
    }
}
