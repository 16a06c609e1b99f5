//! `selvedge.shared.*`: what the ABI's shared data lacks, in the key space of the plugin that calls.

use std::time::Duration;

use super::wire::{Reader, list};
use super::{Answer, bad};
use crate::host::ForeignError;
use crate::shared_data::{SharedData, SharedDataError};

/// The most keys that one call lists.
const KEYS_MAX: u32 = 1000;

/// The function of this name, without the prefix; `None` = there is none.
pub(super) fn call(shared: &SharedData, vm_id: &str, function: &str, args: &[u8]) -> Option<Answer> {
    Some(match function {
        "delete" => Ok(vec![u8::from(shared.delete(vm_id, args))]),
        "increment" => increment(shared, vm_id, Reader(args)),
        "set_ttl" => set_with_ttl(shared, vm_id, Reader(args)),
        "keys" => keys(shared, vm_id, Reader(args)),
        _ => return None,
    })
}

fn increment(shared: &SharedData, vm_id: &str, mut args: Reader<'_>) -> Answer {
    let (delta, initial, ttl) = (args.i64()?, args.i64()?, ttl(args.u64()?));
    let sum = shared.increment(vm_id, args.rest(), delta, initial, ttl).map_err(refused)?;
    Ok(sum.to_le_bytes().to_vec())
}

fn set_with_ttl(shared: &SharedData, vm_id: &str, mut args: Reader<'_>) -> Answer {
    let (cas, ttl, key) = (args.u32()?, ttl(args.u64()?), args.bytes()?);
    match shared.set_with_ttl(vm_id, key, args.rest(), cas, ttl) {
        Ok(()) => Ok(vec![1]),
        // An answer like any other: the guest reads again and tries anew.
        Err(SharedDataError::CasMismatch) => Ok(vec![0]),
        Err(error) => Err(refused(error)),
    }
}

fn keys(shared: &SharedData, vm_id: &str, mut args: Reader<'_>) -> Answer {
    let limit = args.u32()?.min(KEYS_MAX);
    let limit = usize::try_from(limit).unwrap_or_default();
    Ok(list(&shared.keys(vm_id, args.rest(), limit)))
}

/// A time to live in milliseconds; 0 = for ever.
fn ttl(millis: u64) -> Option<Duration> {
    (millis != 0).then(|| Duration::from_millis(millis))
}

fn refused(error: SharedDataError) -> ForeignError {
    bad(&error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(shared: &SharedData, function: &str, args: &[&[u8]]) -> Answer {
        super::call(shared, "vm", function, &args.concat()).unwrap()
    }

    #[test]
    fn each_function_takes_its_arguments_in_the_documented_form() {
        let shared = SharedData::new();
        let (two, ten, none) = (2i64.to_le_bytes(), 10i64.to_le_bytes(), 0u64.to_le_bytes());
        assert_eq!(call(&shared, "increment", &[&two, &ten, &none, b"hits"]), Ok(12i64.to_le_bytes().to_vec()));
        assert_eq!(call(&shared, "increment", &[&two, &ten, &none, b"hits"]), Ok(14i64.to_le_bytes().to_vec()));

        let (any, hour, length) = (0u32.to_le_bytes(), 3_600_000u64.to_le_bytes(), 3u32.to_le_bytes());
        assert_eq!(call(&shared, "set_ttl", &[&any, &hour, &length, b"keyvalue"]), Ok(vec![1]));
        let (value, cas) = shared.get("vm", b"key").unwrap();
        assert_eq!(value, "value");
        assert_eq!(call(&shared, "set_ttl", &[&(cas + 1).to_le_bytes(), &hour, &length, b"keyother"]), Ok(vec![0]));
        assert_eq!(call(&shared, "set_ttl", &[&cas.to_le_bytes(), &hour, &length, b"keyother"]), Ok(vec![1]));

        let most = u32::MAX.to_le_bytes();
        assert_eq!(call(&shared, "keys", &[&most]), Ok(list(&["hits", "key"])));
        assert_eq!(call(&shared, "keys", &[&1u32.to_le_bytes()]), Ok(list(&["hits"])));
        assert_eq!(call(&shared, "keys", &[&most, b"k"]), Ok(list(&["key"])));

        assert_eq!(call(&shared, "delete", &[b"hits"]), Ok(vec![1]));
        assert_eq!(call(&shared, "delete", &[b"hits"]), Ok(vec![0]));
        assert_eq!(super::call(&shared, "other", "keys", &most), Some(Ok(list::<&str>(&[]))));
        assert_eq!(super::call(&shared, "vm", "flush", b""), None);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let shared = SharedData::new();
        shared.set("vm", b"text", b"hello", 0).unwrap();
        let numbers = [0; 24];
        assert!(matches!(call(&shared, "increment", &[&numbers, b"text"]), Err(ForeignError::BadArgument(_))));
        assert!(matches!(call(&shared, "increment", &[&numbers[1..]]), Err(ForeignError::BadArgument(_))));
        assert!(matches!(
            call(&shared, "set_ttl", &[&numbers[..12], &[9, 0, 0, 0]]),
            Err(ForeignError::BadArgument(_))
        ));
        assert!(matches!(call(&shared, "keys", &[b"abc"]), Err(ForeignError::BadArgument(_))));
    }
}
