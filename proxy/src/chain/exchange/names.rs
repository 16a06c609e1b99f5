//! Header names as guests write them. Filters name the same few over and over: those are looked up instead of read.

use std::cell::RefCell;

use bytes::Bytes;
use http::{HeaderName, header};
use pingora::http::IntoCaseHeaderName;
use selvedge_wasm::ExchangeError;

/// Names that a worker keeps.
const KEPT: usize = 128;
/// The longest name that is kept, in bytes.
const LENGTH_MAX: usize = 64;

/// A header name.
#[derive(Debug, Clone)]
pub(super) struct Name {
    name: HeaderName,
    /// As it is sent where the case of names is kept.
    spelled: Bytes,
}

impl Name {
    pub(super) fn as_header(&self) -> &HeaderName {
        &self.name
    }

    /// For a map that keeps the case of names.
    pub(super) fn spelled(&self) -> Bytes {
        self.spelled.clone()
    }

    /// Whether a message may have one such field only: a second Host or Content-Length would make it ambiguous for the next hop (RFC 9112,
    /// 3.2 and 6.3).
    pub(super) fn is_single_valued(&self) -> bool {
        self.name == header::HOST || self.name == header::CONTENT_LENGTH
    }
}

impl From<HeaderName> for Name {
    fn from(name: HeaderName) -> Self {
        Self { spelled: Bytes::copy_from_slice((&name).into_case_header_name().as_slice()), name }
    }
}

thread_local! {
    static NAMES: RefCell<[Option<Name>; KEPT]> = const { RefCell::new([const { None }; KEPT]) };
}

/// Calls `then` with the name that is written so.
///
/// # Errors
/// [`ExchangeError::Invalid`]: it is no name (RFC 9110, 5.1). And those of `then`.
pub(super) fn with<T>(
    written: &[u8],
    then: impl FnOnce(&Name) -> Result<T, ExchangeError>,
) -> Result<T, ExchangeError> {
    // Names come in lower case, as a rule. Another spelling of a name is read each time.
    let place = place(written);
    NAMES.with_borrow_mut(|names| {
        let known = &mut names[place];
        if let Some(known) = known
            && known.name.as_str().as_bytes() == written
        {
            return then(known);
        }
        let name = Name::from(HeaderName::from_bytes(written).map_err(|_| ExchangeError::Invalid)?);
        if written.len() > LENGTH_MAX {
            return then(&name);
        }
        then(known.insert(name))
    })
}

/// Where a name is kept, if it is. Two that share a place are read in turn.
fn place(written: &[u8]) -> usize {
    let mixed = written.iter().fold(written.len(), |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
    (mixed ^ (mixed >> 7)) % KEPT
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(written: &[u8]) -> Result<(String, String), ExchangeError> {
        with(written, |name| {
            let spelled = String::from_utf8(name.spelled().to_vec()).unwrap();
            Ok((name.as_header().to_string(), spelled))
        })
    }

    #[test]
    fn names_are_read_as_they_are_written() {
        for _ in 0..2 {
            for (written, expected) in [
                (&b"x-a"[..], Ok(("x-a", "x-a"))),
                (b"X-A", Ok(("x-a", "x-a"))),
                (b"content-type", Ok(("content-type", "Content-Type"))),
                (b"Content-TYPE", Ok(("content-type", "Content-Type"))),
                (b"", Err(ExchangeError::Invalid)),
                (b"a b", Err(ExchangeError::Invalid)),
                (b"a\r\nb", Err(ExchangeError::Invalid)),
                (b"\xff", Err(ExchangeError::Invalid)),
            ] {
                let expected = expected.map(|(name, spelled)| (name.to_owned(), spelled.to_owned()));
                assert_eq!(read(written), expected, "{}", written.escape_ascii());
            }
        }
        let long = [b'a'; LENGTH_MAX + 1];
        assert_eq!(read(&long).unwrap().0.as_bytes(), long);
    }

    proptest! {
        /// Whatever else was asked for before, and whichever share a place.
        #[test]
        fn every_name_is_itself(names in prop::collection::vec("[a-zA-Z0-9-]{1,3}", 1..400)) {
            for name in &names {
                prop_assert_eq!(read(name.as_bytes()).unwrap().0, name.to_ascii_lowercase());
            }
        }
    }
}
