//! Foreign functions that need nothing but this crate: an embedder offers them by calling [`call`] from [`crate::Host::foreign`].
//! `docs/foreign-functions.md` says what each takes and gives. Every one is quick and bounded whatever it is given, because the guest's
//! deadline does not run while it waits.

mod ratelimit;

mod shared;

mod wire;

pub use self::wire::{Reader, list};
use crate::host::{Caller, ForeignError, Host};

/// What a foreign function comes to.
pub type Answer = Result<Vec<u8>, ForeignError>;

/// The function of this name; `None` = there is none. They work on what the host shares, in the key space of the caller.
pub fn call(host: &dyn Host, caller: Caller<'_>, name: &str, args: &[u8]) -> Option<Answer> {
    let function = name.strip_prefix("selvedge.")?;
    if let Some(function) = function.strip_prefix("shared.") {
        return shared::call(host.shared(), caller.vm_id, function, args);
    }
    Some(match function {
        "ratelimit.take" => ratelimit::take(host, caller.vm_id, args),
        _ => return None,
    })
}

fn bad(why: &str) -> ForeignError {
    ForeignError::BadArgument(why.to_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::effects::{Callout, CalloutFailure, CalloutResponse};
    use crate::{Metrics, SharedData, SharedQueues};

    /// What the functions need of a host.
    #[derive(Default)]
    struct Shared {
        data: SharedData,
        metrics: Metrics,
        queues: SharedQueues,
    }

    impl Host for Shared {
        fn has_upstream(&self, _: &str) -> bool {
            false
        }

        fn call(&self, _: Callout) -> futures::future::BoxFuture<'static, Result<CalloutResponse, CalloutFailure>> {
            Box::pin(std::future::ready(Err(CalloutFailure::Timeout)))
        }

        fn shared(&self) -> &SharedData {
            &self.data
        }

        fn metrics(&self) -> &Metrics {
            &self.metrics
        }

        fn queues(&self) -> &SharedQueues {
            &self.queues
        }
    }

    const CALLER: Caller<'_> = Caller { plugin: "filter", vm_id: "vm" };

    fn take(host: &Shared, numbers: [u32; 3], window: u64, key: &[u8]) -> Answer {
        let numbers = numbers.map(u32::to_le_bytes);
        let args = [numbers.as_flattened(), &window.to_le_bytes(), key].concat();
        call(host, CALLER, "selvedge.ratelimit.take", &args).unwrap()
    }

    #[test]
    fn tokens_are_taken_in_the_documented_form() {
        let host = Shared::default();
        let answer = |granted: u8, remaining: u32, nanos: u64| {
            Ok([&[granted][..], &remaining.to_le_bytes(), &nanos.to_le_bytes()].concat())
        };
        // One a day, two at once.
        let day = 86_400_000;
        assert_eq!(take(&host, [0, 1, 2], day, b"k"), answer(1, 2, 0));
        assert_eq!(take(&host, [1, 1, 2], day, b"k"), answer(1, 1, 86_400_000_000_000));
        assert_eq!(take(&host, [1, 1, 2], day, b"other"), answer(1, 1, 86_400_000_000_000));
        let second = take(&host, [1, 1, 2], day, b"k").unwrap();
        assert_eq!(second[..5], [1, 0, 0, 0, 0]);
        let third = take(&host, [1, 1, 2], day, b"k").unwrap();
        assert_eq!(third[..5], [0; 5]);
        let retry = u64::from_le_bytes(third[5..].try_into().unwrap());
        assert!((80_000_000_000_000..=86_400_000_000_000).contains(&retry), "{retry}");
        assert_eq!(host.data.keys("vm", b"", 9), [b"k".to_vec(), b"other".to_vec()]);
    }

    #[test]
    fn limits_that_make_no_sense_are_refused() {
        let host = Shared::default();
        for (numbers, window) in [
            ([1, 0, 1], 1000),
            ([1, 1, 0], 1000),
            ([3, 1, 2], 1000),
            ([1, 1_000_000_001, 1], 1000),
            ([1, 1, 1_000_000_001], 1000),
            ([1, 1, 1], 0),
            ([1, 1, 1], 31 * 86_400_000 + 1),
        ] {
            assert!(matches!(take(&host, numbers, window, b"k"), Err(ForeignError::BadArgument(_))), "{numbers:?}");
        }
        assert!(matches!(take(&host, [1, 1, 1], 1000, &vec![b'k'; 5000]), Err(ForeignError::BadArgument(_))));
        assert_eq!(host.data.len("vm"), 0);
        assert_eq!(call(&host, CALLER, "selvedge.ratelimit.give", b""), None);
        assert_eq!(call(&host, CALLER, "ratelimit.take", b""), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_borne(name in 0usize..5, args in proptest::collection::vec(any::<u8>(), 0..64)) {
            let names = ["shared.delete", "shared.increment", "shared.set_ttl", "shared.keys", "ratelimit.take"];
            let answer = call(&Shared::default(), CALLER, &format!("selvedge.{}", names[name]), &args).unwrap();
            if let Err(error) = answer {
                prop_assert!(matches!(error, ForeignError::BadArgument(_)));
            }
        }
    }
}
