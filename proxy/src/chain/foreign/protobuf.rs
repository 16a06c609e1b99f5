//! As much of protocol buffers as Envoy's functions need: messages of numbers and bytes, one level deep.

use selvedge_wasm::ForeignError;

use super::bad;

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// A bool, an enum or an integer.
    Number(u64),
    /// A string or bytes.
    Bytes(&'a [u8]),
    /// Of a type that none of our messages has; to be skipped, as unknown fields are.
    Other,
}

/// The fields of a message in their order: of one that comes more than once, the last counts.
pub(super) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

/// See [`fields`]. Ends after the first error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), ForeignError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.rest = &[];
        }
        Some(field.ok_or_else(|| bad("the arguments are no such message")))
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Other)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Other)?,
            _ => return None, // Groups are gone since version 3.
        };
        (tag >> 3 != 0).then_some((tag >> 3, value))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(bytes)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

/// Appends a bool; `false` is not written.
pub(super) fn put_bool(message: &mut Vec<u8>, field: u8, value: bool) {
    if value {
        message.extend([field << 3, 1]);
    }
}

/// Appends bytes or a string; nothing is not written.
pub(super) fn put_bytes(message: &mut Vec<u8>, field: u8, value: &[u8]) {
    if value.is_empty() {
        return;
    }
    message.push(field << 3 | 2);
    let mut length = value.len();
    loop {
        let seven = length.to_le_bytes()[0] & 0x7f;
        length >>= 7;
        if length == 0 {
            message.push(seven);
            break;
        }
        message.push(seven | 0x80);
    }
    message.extend(value);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_read_in_order_and_unknown_ones_skipped() {
        let message = b"\x0a\x02ab\x10\x96\x01\x19\0\0\0\0\0\0\0\0\x25\0\0\0\0\x0a\0";
        let read: Vec<_> = fields(message).map(Result::unwrap).collect();
        let expected = [
            (1, Value::Bytes(b"ab")),
            (2, Value::Number(150)),
            (3, Value::Other),
            (4, Value::Other),
            (1, Value::Bytes(b"")),
        ];
        assert_eq!(read, expected);
        assert_eq!(fields(b"").count(), 0);
    }

    #[test]
    fn what_is_no_message_is_an_error_and_the_end() {
        for message in [
            &b"\x0a\x05ab"[..],
            b"\x0a",
            b"\x08",
            b"\x0b",
            b"\x02\x00",
            b"\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        ] {
            let read: Vec<_> = fields(message).collect();
            assert!(matches!(read[..], [Err(_)]), "{message:?}: {read:?}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(flag: bool, bytes in proptest::collection::vec(any::<u8>(), 1..400)) {
            let mut message = Vec::new();
            put_bool(&mut message, 1, flag);
            put_bytes(&mut message, 2, &bytes);
            let read: Vec<_> = fields(&message).map(Result::unwrap).collect();
            let mut expected = vec![(1, Value::Number(1)), (2, Value::Bytes(&bytes))];
            if !flag {
                expected.remove(0);
            }
            prop_assert_eq!(read, expected);
        }

        #[test]
        fn any_bytes_are_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert!(fields(&bytes).count() <= bytes.len());
        }
    }
}
