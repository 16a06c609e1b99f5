//! Counters that all workers share.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{KvError, update};
use crate::host::{self, Status};

/// Counters by key under a prefix, each one number for all workers of the plugin, and per window of time if wanted.
///
/// ```
/// # use selvedge_sdk::prelude::*;
/// # fn example() -> Result<(), KvError> {
/// let logins = SharedCounter::new("logins").window(Duration::from_secs(60)); // in `Filter::new`
/// if logins.increment("alice", 1)? > 10 {
///     warn!("many logins");
/// }
/// # Ok(()) }
/// ```
///
/// One call to the host, which adds in one step; hosts without `selvedge.shared.increment` read and write until nobody else wrote in
/// between. Unlike metrics, filters can read them and decide by them; operators do not see them.
#[derive(Clone, Debug)]
pub struct SharedCounter {
    prefix: Box<str>,
    window: Option<Duration>,
}

impl SharedCounter {
    /// Counters under a prefix, which last as long as the host remembers them.
    pub fn new(prefix: &str) -> Self {
        Self { prefix: prefix.into(), window: None }
    }

    /// Each counter starts anew when so much time has passed since its first count. To the millisecond, at least one.
    #[must_use]
    pub fn window(mut self, window: Duration) -> Self {
        self.window = Some(window.max(Duration::from_millis(1)));
        self
    }

    /// Adds `n`, which may be negative, and gives the sum. It stops at the ends of its range.
    ///
    /// # Errors
    /// [`KvError::CasMismatch`] where the host cannot add and others wrote 64 times in between; [`KvError::Malformed`] when something
    /// else is stored there; [`KvError::Refused`] when the host does not take the value.
    pub fn increment(&self, key: &str, n: i64) -> Result<i64, KvError> {
        let key = self.full(key);
        let ttl = self.window.map_or(0, |window| u64::try_from(window.as_millis()).unwrap_or(u64::MAX));
        let argument = [&n.to_le_bytes()[..], &0i64.to_le_bytes(), &ttl.to_le_bytes(), key.as_bytes()].concat();
        match host::current().foreign("selvedge.shared.increment", &argument) {
            Ok(sum) => Ok(i64::from_le_bytes(sum.try_into().map_err(|_| KvError::Malformed)?)),
            Err(Status::NotFound) => self.add(&key, n),
            Err(Status::BadArgument) => Err(KvError::Malformed),
            Err(_) => Err(KvError::Refused),
        }
    }

    /// What a counter stands at; 0 when nothing was counted, or its window is over.
    ///
    /// # Errors
    /// [`KvError::Malformed`] when something else is stored there.
    pub fn get(&self, key: &str) -> Result<i64, KvError> {
        match host::current().shared(&self.full(key)) {
            Some((stored, _)) => Ok(read(&stored, host::current().now())?.map_or(0, |(count, _)| count)),
            None => Ok(0),
        }
    }

    /// Where the host has no function for it: the count, and behind it when its window ends.
    fn add(&self, key: &str, n: i64) -> Result<i64, KvError> {
        let now = host::current().now();
        let mut malformed = false;
        let written = update(key, |stored| {
            malformed = false;
            let (count, end) = match stored.map(|stored| read(stored, now)) {
                Some(Ok(Some(count))) => count,
                None | Some(Ok(None)) => (0, self.window.map(|window| since_1970(now).saturating_add(nanos(window)))),
                Some(Err(_)) => {
                    malformed = true;
                    return stored.unwrap_or_default().to_vec();
                }
            };
            let count = count.saturating_add(n).to_le_bytes();
            end.map_or_else(|| count.to_vec(), |end| [count, end.to_le_bytes()].concat())
        })?;
        match written.split_first_chunk() {
            Some((count, _)) if !malformed => Ok(i64::from_le_bytes(*count)),
            _ => Err(KvError::Malformed),
        }
    }

    fn full(&self, key: &str) -> String {
        format!("{}/{key}", self.prefix)
    }
}

/// The count and its end, in nanoseconds since 1970; `None` when that is over.
fn read(stored: &[u8], now: SystemTime) -> Result<Option<(i64, Option<u64>)>, KvError> {
    let (count, end) = stored.split_first_chunk().ok_or(KvError::Malformed)?;
    let end = match end {
        [] => None,
        end => Some(u64::from_le_bytes(end.try_into().map_err(|_| KvError::Malformed)?)),
    };
    let over = end.is_some_and(|end| end <= since_1970(now));
    Ok((!over).then_some((i64::from_le_bytes(*count), end)))
}

fn since_1970(time: SystemTime) -> u64 {
    nanos(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
