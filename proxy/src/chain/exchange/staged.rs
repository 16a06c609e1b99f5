//! Changes to the response header that filters make before there is a response.

use http::{HeaderValue, header};
use pingora::Result;
use pingora::http::ResponseHeader;
use selvedge_wasm::ExchangeError;

use super::names::Name;

/// Changes one exchange keeps, so that a guest cannot grow the host's memory.
const EDITS_MAX: usize = 64;
/// Bytes of their names and values.
const BYTES_MAX: usize = 32 * 1024;

/// Changes in the order they were made, applied once: to whatever response comes first, be it the origin's, the cache's, a filter's or an
/// error.
#[derive(Default)]
pub(super) struct Staged {
    edits: Vec<(Name, Edit)>,
    bytes: usize,
}

/// A change to the fields of one name.
pub(super) enum Edit {
    Set(HeaderValue),
    Add(HeaderValue),
    Remove,
}

impl Edit {
    /// Makes the change.
    ///
    /// # Errors
    /// The header has too many fields.
    pub(super) fn apply(self, name: &Name, response: &mut ResponseHeader) -> Result<()> {
        match self {
            Self::Set(value) => response.insert_header(name.spelled(), value),
            Self::Add(value) => response.append_header(name.spelled(), value).map(drop),
            Self::Remove => {
                response.remove_header(name.as_header());
                Ok(())
            }
        }
    }
}

impl Staged {
    /// Keeps a change.
    ///
    /// # Errors
    /// [`ExchangeError::Invalid`] for fields that frame the message: nobody knows yet how long the body will be.
    /// [`ExchangeError::Unavailable`] when too much is kept already.
    pub(super) fn keep(&mut self, name: &Name, edit: Edit) -> Result<(), ExchangeError> {
        let header = name.as_header();
        let bytes = match &edit {
            Edit::Set(_) | Edit::Add(_)
                if *header == header::CONTENT_LENGTH || *header == header::TRANSFER_ENCODING =>
            {
                return Err(ExchangeError::Invalid);
            }
            Edit::Set(value) | Edit::Add(value) => header.as_str().len() + value.len(),
            Edit::Remove => header.as_str().len(),
        };
        if self.edits.len() >= EDITS_MAX || self.bytes + bytes > BYTES_MAX {
            return Err(ExchangeError::Unavailable);
        }
        self.bytes += bytes;
        self.edits.push((name.clone(), edit));
        Ok(())
    }

    /// Applies what is kept, and forgets it.
    pub(super) fn apply(&mut self, response: &mut ResponseHeader) {
        if self.edits.is_empty() {
            return;
        }
        for (name, edit) in std::mem::take(&mut self.edits) {
            // Refused only when a header has more than 4096 fields: then the client can do without this one.
            let _refused = edit.apply(&name, response);
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn text(value: &'static str) -> HeaderValue {
        HeaderValue::from_static(value)
    }

    #[test]
    fn changes_are_applied_in_order_and_once() {
        let name = |name: &'static str| Name::from(HeaderName::from_static(name));
        let mut staged = Staged::default();
        staged.keep(&name("a"), Edit::Add(text("2"))).unwrap();
        staged.keep(&name("b"), Edit::Remove).unwrap();
        staged.keep(&name("c"), Edit::Set(text("3"))).unwrap();
        staged.keep(&name("c"), Edit::Add(text("4"))).unwrap();
        let mut response = ResponseHeader::build(200, None).unwrap();
        for (name, value) in [("a", "1"), ("b", "1"), ("c", "1")] {
            response.append_header(name, value).unwrap();
        }

        staged.apply(&mut response);
        let all = |name| response.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("a"), all("b"), all("c")), (vec!["1", "2"], vec![], vec!["3", "4"]));

        let mut next = ResponseHeader::build(200, None).unwrap();
        staged.apply(&mut next);
        assert!(next.headers.is_empty());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut staged = Staged::default();
        let name = Name::from(HeaderName::from_static("x"));
        let length = Name::from(header::CONTENT_LENGTH);
        assert_eq!(staged.keep(&length, Edit::Set(text("1"))), Err(ExchangeError::Invalid));
        let long = HeaderValue::from_bytes(&vec![b'v'; BYTES_MAX]).unwrap();
        assert_eq!(staged.keep(&name, Edit::Set(long)), Err(ExchangeError::Unavailable));
        for _ in 0..EDITS_MAX {
            staged.keep(&name, Edit::Add(text("v"))).unwrap();
        }
        assert_eq!(staged.keep(&name, Edit::Add(text("v"))), Err(ExchangeError::Unavailable));
    }
}
