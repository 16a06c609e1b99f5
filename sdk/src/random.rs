//! Random numbers from the host, good enough for keys: it is asked each time, and nothing is kept. In a test of a filter that runs
//! natively they are the same at every run.
//!
//! # Panics
//! All of it panics where the host gives no random numbers: going on with numbers that are not would be worse. Selvedge and Envoy give
//! them in every callback.

use std::time::UNIX_EPOCH;

use crate::host;

/// As many bytes as one call asks for; hosts give 64 KiB at most.
const PORTION: usize = 4096;

/// Fills the bytes with random ones.
pub fn fill(bytes: &mut [u8]) {
    for portion in bytes.chunks_mut(PORTION) {
        host::current().random(portion).expect("the host gives random numbers");
    }
}

/// Random bytes: `let key: [u8; 32] = random::bytes();`
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    fill(&mut bytes);
    bytes
}

/// A random number.
pub fn u64() -> u64 {
    u64::from_le_bytes(bytes())
}

/// A random number below `end`, all of them equally likely; 0 for an `end` of 0.
pub fn below(end: u64) -> u64 {
    // The numbers above the last whole multiple of `end` would favour the small results: draw again.
    let end = end.max(1);
    let excess = (u64::MAX % end + 1) % end;
    loop {
        let number = u64();
        if number <= u64::MAX - excess {
            return number % end;
        }
    }
}

/// A random UUID (RFC 9562, 5.4), as `1f2e3d4c-…` in lower case.
pub fn uuid_v4() -> String {
    uuid(bytes(), 4)
}

/// A UUID that begins with the time in milliseconds, the rest random (RFC 9562, 5.7): those made later sort later.
pub fn uuid_v7() -> String {
    let mut number: [u8; 16] = bytes();
    let since_1970 = host::current().now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX).to_be_bytes();
    number[..6].copy_from_slice(&millis[2..]);
    uuid(number, 7)
}

fn uuid(mut number: [u8; 16], version: u8) -> String {
    number[6] = number[6] & 0x0f | version << 4;
    number[8] = number[8] & 0x3f | 0x80;
    let mut text = String::with_capacity(36);
    for (at, byte) in number.into_iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.extend(char::from_digit(digit.into(), 16));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::host::{Host, Status};

    /// Gives the bytes 0, 1, 2, …, and 255 for ever once it is told to.
    struct Counting(Cell<u8>);

    impl Host for Counting {
        fn now(&self) -> SystemTime {
            UNIX_EPOCH + Duration::from_millis(0x0123_4567_89ab)
        }

        fn random(&self, bytes: &mut [u8]) -> Result<(), Status> {
            assert!(bytes.len() <= PORTION);
            for byte in bytes {
                *byte = self.0.get();
                self.0.set(self.0.get().wrapping_add(1));
            }
            Ok(())
        }
    }

    #[test]
    fn uuids_have_their_version_variant_and_time() {
        let _installed = host::install(Rc::new(Counting(Cell::new(0xf0))));
        assert_eq!(uuid_v4(), "f0f1f2f3-f4f5-46f7-b8f9-fafbfcfdfeff");
        assert_eq!(uuid_v7(), "01234567-89ab-7607-8809-0a0b0c0d0e0f");
    }

    #[test]
    fn numbers_stay_below_their_end_and_any_length_is_filled() {
        let _installed = host::install(Rc::new(Counting(Cell::new(0))));
        for end in [0, 1, 2, 3, 10, 1 << 32, u64::MAX] {
            for _ in 0..100 {
                assert!(below(end) < end.max(1), "{end}");
            }
        }
        let mut long = vec![0; 10_000];
        fill(&mut long);
        assert!(long.windows(2).all(|pair| pair[1] == pair[0].wrapping_add(1)));
    }
}
