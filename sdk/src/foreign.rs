//! Functions of the host beyond the ABI, by name (`selvedge.…`). Other hosts do not have them: fall back on
//! [`ForeignError::Unknown`].

use crate::host::{self, Status};

/// Why a foreign function gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForeignError {
    /// The host has no function of that name.
    #[error("the host has no such function")]
    Unknown,
    /// The function does not understand the argument.
    #[error("the argument is not understood")]
    BadArgument,
    /// The function failed.
    #[error("the function failed")]
    Failed,
}

/// Calls a function of the host. What the bytes mean is between the two.
///
/// # Errors
/// See [`ForeignError`].
pub fn call(name: &str, argument: &[u8]) -> Result<Vec<u8>, ForeignError> {
    host::current().foreign(name, argument).map_err(|status| match status {
        Status::NotFound => ForeignError::Unknown,
        Status::BadArgument => ForeignError::BadArgument,
        _ => ForeignError::Failed,
    })
}

/// Reads a list as our functions give it: how many there are, then the length and the bytes of each, lengths in 4 bytes, little-endian.
/// `None` when it is cut short.
pub fn list(bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let length = |bytes: &[u8]| usize::try_from(u32::from_le_bytes(*bytes.first_chunk()?)).ok();
    let count = length(bytes)?;
    let mut rest = &bytes[4..];
    // Each item takes four bytes at least: a count that lies does not make room for more than there can be.
    let mut items = Vec::with_capacity(count.min(rest.len() / 4));
    for _ in 0..count {
        let (item, after) = rest.get(4..)?.split_at_checked(length(rest)?)?;
        items.push(item);
        rest = after;
    }
    Some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_what_is_cut_short_is_not() {
        let bytes = b"\x02\0\0\0\x01\0\0\0a\0\0\0\0";
        assert_eq!(list(bytes), Some(vec![&b"a"[..], b""]));
        assert_eq!(list(&[0; 4]), Some(Vec::new()));
        for end in 0..bytes.len() {
            assert_eq!(list(&bytes[..end]), None, "{end}");
        }
        assert_eq!(list(&[0xff; 12]), None);
    }
}
