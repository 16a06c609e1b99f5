//! `selvedge.ratelimit.take`: token buckets in the shared data of the plugin that calls.

use std::time::{Duration, UNIX_EPOCH};

use selvedge_token_bucket::{Limit, Take};

use super::wire::Reader;
use super::{Answer, bad};
use crate::host::{ForeignError, Host};

/// The most tokens per window, and the most that a bucket holds.
const COUNT_MAX: u32 = 1_000_000_000;
/// The longest window, in milliseconds: 31 days.
const WINDOW_MAX: u64 = 31 * 86_400_000;

/// Takes tokens from the bucket of a key, all or none.
pub(super) fn take(host: &dyn Host, vm_id: &str, args: &[u8]) -> Answer {
    let (tokens, limit, key) = arguments(Reader(args))?;
    let now = host.now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let taken = host.shared().take_tokens(vm_id, key, &limit, tokens, now).map_err(|error| bad(&error.to_string()))?;
    let (granted, remaining, time) = match taken {
        Take::Granted { remaining, full_in, .. } => (1, remaining, full_in),
        Take::Refused { retry_in } => (0, 0, retry_in),
    };
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    Ok([&[granted][..], &remaining.to_le_bytes(), &nanos.to_le_bytes()].concat())
}

fn arguments(mut args: Reader<'_>) -> Result<(u32, Limit, &[u8]), ForeignError> {
    let (tokens, count, burst, window) = (args.u32()?, args.u32()?, args.u32()?, args.u64()?);
    if !(1..=COUNT_MAX).contains(&count) || !(1..=COUNT_MAX).contains(&burst) {
        return Err(bad("count and burst must be 1 to 1000000000"));
    }
    if !(1..=WINDOW_MAX).contains(&window) {
        return Err(bad("the window must be 1 ms to 31 days"));
    }
    if tokens > burst {
        return Err(bad("more tokens than the bucket can ever hold"));
    }
    Ok((tokens, Limit { count, window: Duration::from_millis(window), burst }, args.rest()))
}
