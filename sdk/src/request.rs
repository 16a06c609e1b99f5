//! The request half of an exchange.

use std::cell::OnceCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use http::Method;

use crate::body::Body;
use crate::host;
use crate::{Client, HeaderValue, Message};

/// A request, as the filter's `request` hook sees it. Headers and body: see [`Message`].
#[derive(Debug)]
pub struct Request {
    message: Message,
    target: OnceCell<Target>,
}

/// The path and the query, with the length of the path.
#[derive(Debug)]
struct Target {
    text: String,
    path: usize,
}

impl Request {
    pub(crate) fn new(message: Message) -> Self {
        Self { message, target: OnceCell::new() }
    }

    pub(crate) fn into_body(self) -> Option<Rc<Body>> {
        self.message.into_body()
    }

    /// The method. A message of a host that gives none, or none that HTTP knows the form of (RFC 9110, 9.1), counts as `-`, which
    /// nobody uses.
    pub fn method(&self) -> Method {
        self.header(":method")
            .and_then(|method| Method::from_bytes(&method).ok())
            .unwrap_or_else(|| Method::from_bytes(b"-").expect("a dash is a token"))
    }

    /// The path, without the query: `/a/b`. Bytes that are not UTF-8 are replaced; `header(":path")` has them as they came.
    pub fn path(&self) -> &str {
        let target = self.target();
        target.text.get(..target.path).unwrap_or_default()
    }

    /// The query, without the question mark; `None` when there is no question mark.
    pub fn query(&self) -> Option<&str> {
        let target = self.target();
        target.text.get(target.path + 1..)
    }

    /// The scheme, the authority, the path and the query: `https://example.com/a?b=c`.
    pub fn url(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority(), self.target().text)
    }

    /// The name the client asked for, in lower case and without the port; empty when it named none.
    pub fn host(&self) -> String {
        let authority = self.authority();
        let port = authority.rfind(':').filter(|at| !authority[*at..].contains(']'));
        authority[..port.unwrap_or(authority.len())].to_ascii_lowercase()
    }

    /// The authority as the client wrote it: `Example.com:8443`.
    pub fn authority(&self) -> String {
        self.header_str(":authority").or_else(|| self.header_str("host")).unwrap_or_default()
    }

    /// `http` or `https`; `http` when the host does not say.
    pub fn scheme(&self) -> String {
        self.header_str(":scheme").unwrap_or_else(|| "http".into())
    }

    /// Sets the path. The query is kept, unless `path` has a question mark and so brings its own.
    pub fn set_path(&mut self, path: &str) {
        let target = match self.query() {
            Some(query) if !path.contains('?') => format!("{path}?{query}"),
            _ => path.to_owned(),
        };
        self.set_header(":path", target);
    }

    /// Sets a header, in place of all values it had.
    pub fn set_header(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        if name.eq_ignore_ascii_case(":path") {
            self.target.take();
        }
        self.message.set_header(name, value);
    }

    /// The value of a cookie (RFC 6265, 4.2.1), as it came: without decoding, quotes included. The first of that name.
    pub fn cookie(&self, name: &str) -> Option<String> {
        let first = self.header("cookie")?;
        if let Some(value) = cookie_in(&first, name) {
            return Some(value);
        }
        // HTTP/2 clients may send one field per cookie (RFC 9113, 8.2.3).
        self.header_values("cookie").iter().skip(1).find_map(|field| cookie_in(field, name))
    }

    /// Who is asking.
    pub fn client(&self) -> Client {
        Client::new()
    }

    /// Sends the request to another upstream, by the name it has in the proxy's configuration, in place of the route's.
    /// `false` when the host refused: it has no such upstream, or knows no such property.
    pub fn set_upstream(&mut self, name: impl AsRef<str>) -> bool {
        self.set_property(&["selvedge", "upstream"], name.as_ref().as_bytes())
    }

    /// A property of the host, in the host's encoding (text for strings, little-endian 8 bytes for numbers).
    pub fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        host::current().property(path)
    }

    /// Sets a property, for later filters, the cache key or the access log. `false` when the host refused.
    pub fn set_property(&mut self, path: &[&str], value: &[u8]) -> bool {
        host::current()
            .set_property(path, value)
            .inspect_err(|status| log::warn!("property {} could not be set: {status}", path.join(".")))
            .is_ok()
    }

    fn target(&self) -> &Target {
        self.target.get_or_init(|| {
            let bytes = self.header(":path").map(HeaderValue::into_bytes).unwrap_or_default();
            let (path, is_ascii) = scan(&bytes);
            if is_ascii { Target { text: ascii(bytes), path } } else { Target::lossy(bytes) }
        })
    }
}

impl Target {
    #[cold]
    #[inline(never)]
    fn lossy(bytes: Vec<u8>) -> Self {
        let text =
            String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
        // What replaces a byte may be longer than it.
        let path = scan(text.as_bytes()).0;
        Self { text, path }
    }
}

impl Deref for Request {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl DerefMut for Request {
    fn deref_mut(&mut self) -> &mut Message {
        &mut self.message
    }
}

/// How many bytes stand before the first question mark, and whether all bytes are ASCII. Most requests pass through here: eight bytes at a
/// time.
fn scan(target: &[u8]) -> (usize, bool) {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    let mut path = None;
    let mut bits = 0;
    let mut word = |at: usize, word: u64| {
        bits |= word;
        // A byte is 0 where there is a question mark. The lowest bit of `found` is that of the first 0; higher ones may be wrong.
        let word = word ^ (ONES * u64::from(b'?'));
        let found = word.wrapping_sub(ONES) & !word & (ONES << 7);
        if found != 0 && path.is_none() {
            path = Some(at + found.trailing_zeros() as usize / 8);
        }
    };

    let (words, rest) = target.as_chunks();
    for (at, eight) in words.iter().enumerate() {
        word(at * 8, u64::from_le_bytes(*eight));
    }
    match target.last_chunk() {
        // Some of them for the second time.
        Some(eight) if !rest.is_empty() => word(target.len() - 8, u64::from_le_bytes(*eight)),
        Some(_) => {}
        // The last byte of the word is 0, which is no question mark.
        None => word(0, rest.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))),
    }
    (path.unwrap_or(target.len()), bits & (ONES << 7) == 0)
}

#[allow(unsafe_code, reason = "the bytes have just been looked at")]
fn ascii(bytes: Vec<u8>) -> String {
    debug_assert!(bytes.is_ascii());
    // SAFETY: every byte is ASCII (`scan`), so they are UTF-8.
    unsafe { String::from_utf8_unchecked(bytes) }
}

fn cookie_in(field: &[u8], name: &str) -> Option<String> {
    let field = std::str::from_utf8(field).ok()?;
    field.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_ends_before_the_first_question_mark() {
        for length in 0..40 {
            for filler in [b'a', b'@', b'>', 0, 0xbf, 0xc0] {
                let is_ascii = length == 0 || filler.is_ascii();
                let plain = vec![filler; length];
                assert_eq!(scan(&plain), (length, is_ascii));
                for first in 0..length {
                    let mut target = plain.clone();
                    target[first] = b'?';
                    assert_eq!(scan(&target), (first, target.is_ascii()), "{target:?}");
                    target[length - 1] = b'?';
                    assert_eq!(scan(&target).0, first, "{target:?}");
                }
            }
            for at in 0..length {
                let mut target = vec![b'?'; length];
                target[at] = 0x80;
                assert_eq!(scan(&target), (usize::from(at == 0), false), "{target:?}");
            }
        }
    }

    #[test]
    fn finds_a_cookie_by_its_whole_name() {
        let table = [
            (&b"a=1; b=2"[..], "b", Some("2")),
            (b"ab=1", "b", None),
            (b"b=x=y", "b", Some("x=y")),
            (b"b=\"q\"", "b", Some("\"q\"")),
            (b"b", "b", None),
            (b"\xff=1; b=2", "b", None),
            (b"b=1;b=2", "b", Some("1")),
        ];
        for (field, name, expected) in table {
            assert_eq!(cookie_in(field, name).as_deref(), expected, "{field:?}");
        }
    }
}
