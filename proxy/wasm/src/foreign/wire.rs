//! The compact forms of our own functions: numbers little endian, and lists.

use super::bad;
use crate::host::ForeignError;

/// Takes arguments apart. Each fails when they end early.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(pub &'a [u8]);

#[allow(clippy::missing_errors_doc, reason = "there is one, and the type says it: the arguments end early")]
impl<'a> Reader<'a> {
    /// The next 4 bytes.
    pub fn u32(&mut self) -> Result<u32, ForeignError> {
        self.array().map(u32::from_le_bytes)
    }

    /// The next 8 bytes.
    pub fn u64(&mut self) -> Result<u64, ForeignError> {
        self.array().map(u64::from_le_bytes)
    }

    /// The next 8 bytes, signed.
    pub fn i64(&mut self) -> Result<i64, ForeignError> {
        self.array().map(i64::from_le_bytes)
    }

    /// As many bytes as the next 4 say.
    pub fn bytes(&mut self) -> Result<&'a [u8], ForeignError> {
        let length = usize::try_from(self.u32()?).map_err(|_| short())?;
        let (bytes, rest) = self.0.split_at_checked(length).ok_or_else(short)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// Everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ForeignError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or_else(short)?;
        self.0 = rest;
        Ok(*bytes)
    }
}

/// A list: how many there are, then the length and the bytes of each; lengths are 4 bytes. Never empty, so that a guest can tell "none"
/// from "nothing given".
pub fn list<T: AsRef<[u8]>>(items: &[T]) -> Vec<u8> {
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes();
    let size = 4 + items.iter().map(|item| 4 + item.as_ref().len()).sum::<usize>();
    let mut bytes = Vec::with_capacity(size);
    bytes.extend(length(items.len()));
    for item in items {
        bytes.extend(length(item.as_ref().len()));
        bytes.extend(item.as_ref());
    }
    bytes
}

fn short() -> ForeignError {
    bad("the arguments end early")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted_and_framed() {
        assert_eq!(list::<&[u8]>(&[]), [0, 0, 0, 0]);
        assert_eq!(list(&["a", "", "bc"]), b"\x03\0\0\0\x01\0\0\0a\0\0\0\0\x02\0\0\0bc");
    }

    #[test]
    fn arguments_that_end_early_are_refused() {
        let mut reader = Reader(b"\x02\0\0\0ab\x05\0\0\0c");
        assert_eq!(reader.bytes(), Ok(&b"ab"[..]));
        assert_eq!(reader.bytes(), Err(short()));
        assert_eq!(Reader(b"abc").u32(), Err(short()));
        assert_eq!(Reader(b"\xff\xff\xff\xff").bytes(), Err(short()));
    }
}
