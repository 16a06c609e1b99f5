//! What an origin's failure means to those who wait for it.
//!
//! One failure may be an accident: somebody who waits tries again. A second one is the origin's answer, and everybody who was waiting
//! when it came shares it; thousands asking one after the other would not help an origin that is down. Who comes later asks anew, and
//! then one failure is enough for those behind him, until the origin answers or nobody has asked for [`REMEMBERED_FOR`].
//!
//! Where something stale stands in for an origin that fails (RFC 5861, 4), one failure is enough as well: what the first request is given
//! for it, those who were waiting are given at once, as far as its windows allow.

use std::time::{Duration, Instant};

use pingora_error::ErrorType;

use crate::key::{Slot, SlotHash};

/// How long a failure counts as the one before the next.
const REMEMBERED_FOR: Duration = Duration::from_secs(60);
/// Of how many keys failures are remembered.
const KEYS: u64 = 4_096;
/// From this failure on, the answer is shared.
const ENOUGH: u32 = 2;

/// How often in a row a key's fetch has failed.
#[derive(Debug, Clone)]
struct Failure {
    times: u32,
    last: Instant,
    /// Why, where the origin did not even answer.
    kind: Option<ErrorType>,
}

/// How an origin has failed in whose place something stale was served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outage {
    /// It has answered an error.
    Answered,
    /// It could not be reached, or broke off.
    Disconnected,
}

/// The keys whose last fetch failed while others waited for it.
#[derive(Debug)]
pub(crate) struct Failures {
    keys: moka::sync::Cache<Slot, Failure, SlotHash>,
    /// Those for which something stale was served instead, when last.
    stale: moka::sync::Cache<Slot, (Instant, Outage), SlotHash>,
}

impl Failures {
    pub(crate) fn new() -> Self {
        Self { keys: table(), stale: table() }
    }

    /// A fetch that others wait for has failed, and what is stored stands in.
    pub(crate) fn note_stale(&self, slot: Slot, outage: Outage) {
        self.stale.insert(slot, (Instant::now(), outage));
    }

    /// Whether that has become of a fetch since `asked`, and why.
    pub(crate) fn stale_since(&self, slot: Slot, asked: Instant) -> Option<Outage> {
        self.stale.get(&slot).filter(|(at, _)| *at >= asked).map(|(_, outage)| outage)
    }

    /// A fetch that others wait for has failed: with this error, or (`None`) with an answer. Says whether that is to be shared with them.
    pub(crate) fn note(&self, slot: Slot, kind: Option<ErrorType>) -> bool {
        let times = self.keys.get(&slot).map_or(0, |before| before.times).saturating_add(1);
        self.keys.insert(slot, Failure { times, last: Instant::now(), kind });
        times >= ENOUGH
    }

    /// Whether waiters are to be told instead of trying for themselves.
    pub(crate) fn is_final(&self, slot: Slot) -> bool {
        self.keys.get(&slot).is_some_and(|failure| failure.times >= ENOUGH)
    }

    /// The error that is the answer to a request which has waited since `asked`, if there is one.
    pub(crate) fn shared(&self, slot: Slot, asked: Instant) -> Option<ErrorType> {
        let failure = self.keys.get(&slot)?;
        failure.kind.filter(|_| failure.times >= ENOUGH && failure.last >= asked)
    }

    /// The origin has answered.
    pub(crate) fn forget(&self, slot: Slot) {
        if self.keys.contains_key(&slot) {
            self.keys.invalidate(&slot);
        }
    }
}

fn table<V: Clone + Send + Sync + 'static>() -> moka::sync::Cache<Slot, V, SlotHash> {
    let builder = moka::sync::Cache::builder().max_capacity(KEYS).time_to_live(REMEMBERED_FOR);
    builder.build_with_hasher(SlotHash::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_failure_is_shared_with_those_who_were_there() {
        let failures = Failures::new();
        let early = Instant::now();
        assert!(!failures.note(1, Some(ErrorType::ConnectRefused)));
        assert_eq!((failures.is_final(1), failures.shared(1, early)), (false, None));
        assert!(failures.note(1, Some(ErrorType::ReadTimedout)));
        assert!(failures.is_final(1));
        assert_eq!(failures.shared(1, early), Some(ErrorType::ReadTimedout));
        assert_eq!(failures.shared(1, Instant::now() + Duration::from_secs(1)), None, "came later");
        assert_eq!(failures.shared(2, early), None, "another key");

        assert!(failures.note(1, None), "the third as well");
        assert_eq!(failures.shared(1, early), None, "an answer is not an error");
        failures.forget(1);
        assert!(!failures.note(1, None));
    }

    #[test]
    fn what_stood_in_does_so_for_those_who_were_there() {
        let failures = Failures::new();
        let early = Instant::now();
        assert_eq!(failures.stale_since(1, early), None);
        failures.note_stale(1, Outage::Disconnected);
        assert_eq!((failures.stale_since(1, early), failures.is_final(1)), (Some(Outage::Disconnected), false));
        assert_eq!(failures.stale_since(1, Instant::now() + Duration::from_secs(1)), None, "came later");
        assert_eq!(failures.stale_since(2, early), None, "another key");
    }
}
