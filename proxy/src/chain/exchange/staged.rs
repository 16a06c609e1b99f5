//! Changes to the response header that filters make before there is a response.

use http::{HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use selvedge_wasm::ExchangeError;

/// Changes one exchange keeps, so that a guest cannot grow the host's memory.
const EDITS_MAX: usize = 64;
/// Bytes of their names and values.
const BYTES_MAX: usize = 32 * 1024;

/// Changes in the order they were made, applied once: to whatever response comes first, be it the origin's, the cache's, a filter's or an
/// error.
#[derive(Default)]
pub(super) struct Staged {
    edits: Vec<Edit>,
    bytes: usize,
}

/// One change.
pub(super) enum Edit {
    Set(HeaderName, HeaderValue),
    Add(HeaderName, HeaderValue),
    Remove(HeaderName),
}

impl Staged {
    /// Keeps a change.
    ///
    /// # Errors
    /// [`ExchangeError::Invalid`] for fields that frame the message: nobody knows yet how long the body will be.
    /// [`ExchangeError::Unavailable`] when too much is kept already.
    pub(super) fn keep(&mut self, edit: Edit) -> Result<(), ExchangeError> {
        let bytes = match &edit {
            Edit::Set(name, value) | Edit::Add(name, value) => {
                if *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING {
                    return Err(ExchangeError::Invalid);
                }
                name.as_str().len() + value.len()
            }
            Edit::Remove(name) => name.as_str().len(),
        };
        if self.edits.len() >= EDITS_MAX || self.bytes + bytes > BYTES_MAX {
            return Err(ExchangeError::Unavailable);
        }
        self.bytes += bytes;
        self.edits.push(edit);
        Ok(())
    }

    /// Applies what is kept, and forgets it.
    pub(super) fn apply(&mut self, response: &mut ResponseHeader) {
        for edit in std::mem::take(&mut self.edits) {
            // Refused only when a header has more than 4096 fields: then the client can do without this one.
            let _refused = match edit {
                Edit::Set(name, value) => response.insert_header(name, value).map(drop),
                Edit::Add(name, value) => response.append_header(name, value).map(drop),
                Edit::Remove(name) => {
                    response.remove_header(&name);
                    Ok(())
                }
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &'static str) -> HeaderValue {
        HeaderValue::from_static(value)
    }

    #[test]
    fn changes_are_applied_in_order_and_once() {
        let name = |name: &'static str| HeaderName::from_static(name);
        let mut staged = Staged::default();
        staged.keep(Edit::Add(name("a"), text("2"))).unwrap();
        staged.keep(Edit::Remove(name("b"))).unwrap();
        staged.keep(Edit::Set(name("c"), text("3"))).unwrap();
        staged.keep(Edit::Add(name("c"), text("4"))).unwrap();
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
        let name = || HeaderName::from_static("x");
        assert_eq!(staged.keep(Edit::Set(header::CONTENT_LENGTH, text("1"))), Err(ExchangeError::Invalid));
        let long = HeaderValue::from_bytes(&vec![b'v'; BYTES_MAX]).unwrap();
        assert_eq!(staged.keep(Edit::Set(name(), long)), Err(ExchangeError::Unavailable));
        for _ in 0..EDITS_MAX {
            staged.keep(Edit::Add(name(), text("v"))).unwrap();
        }
        assert_eq!(staged.keep(Edit::Add(name(), text("v"))), Err(ExchangeError::Unavailable));
    }
}
