//! What requests and responses have in common: headers and a body.

use std::fmt::{self, Debug, Formatter};
use std::ops::Deref;
use std::rc::Rc;

use crate::body::{Body, Limit};
use crate::host;
use crate::{BodyTooLarge, BodyUnavailable, Prefix};

/// A header value: bytes, mostly but not always UTF-8 (RFC 9110, 5.5).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct HeaderValue(Vec<u8>);

impl HeaderValue {
    /// The bytes as they came.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text; `None` when it is not UTF-8.
    pub fn as_str(&self) -> Option<&str> {
        std::str::from_utf8(&self.0).ok()
    }

    /// The bytes, without copying them.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

impl From<Vec<u8>> for HeaderValue {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl Deref for HeaderValue {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for HeaderValue {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq<str> for HeaderValue {
    fn eq(&self, other: &str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl PartialEq<&str> for HeaderValue {
    fn eq(&self, other: &&str) -> bool {
        self.0 == other.as_bytes()
    }
}

impl Debug for HeaderValue {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        Debug::fmt(&String::from_utf8_lossy(&self.0), formatter)
    }
}

/// The headers and the body of a [`Request`](crate::Request) or a [`Response`](crate::Response).
///
/// It is a handle: headers are looked up at the host one by one and nothing is copied into the guest unasked. Names are
/// case-insensitive. A change that the host refuses (a malformed value, headers that have already been sent) is logged at warn
/// and otherwise without effect.
#[derive(Debug)]
pub struct Message {
    body: Rc<Body>,
}

impl Message {
    pub(crate) fn new(body: Rc<Body>) -> Self {
        Self { body }
    }

    /// The first value of a header; pseudo headers (`:path`) included.
    pub fn header(&self, name: impl AsRef<str>) -> Option<HeaderValue> {
        host::current().header(self.body.direction().map(), name.as_ref()).map(HeaderValue)
    }

    /// The first value of a header as text; `None` also when it is not UTF-8.
    pub fn header_str(&self, name: impl AsRef<str>) -> Option<String> {
        self.header(name).and_then(|value| String::from_utf8(value.0).ok())
    }

    /// All values of a header, in order. Copies the whole header map: prefer [`header`](Message::header) where one value will do.
    pub fn header_values(&self, name: impl AsRef<str>) -> Vec<HeaderValue> {
        let name = name.as_ref();
        self.headers()
            .filter(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| HeaderValue(value))
            .collect()
    }

    /// All headers in order, pseudo headers first, names in lower case on most hosts. Copies the whole map.
    pub fn headers(&self) -> impl Iterator<Item = (String, Vec<u8>)> + use<> {
        host::current().headers(self.body.direction().map()).into_iter()
    }

    /// Sets a header, in place of all values it had.
    pub fn set_header(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        host::current()
            .set_header(self.body.direction().map(), name, value.as_ref())
            .unwrap_or_else(|status| log::warn!("header {name} could not be set: {status}"));
    }

    /// Adds a value to a header, behind those it has.
    pub fn add_header(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        host::current()
            .add_header(self.body.direction().map(), name, value.as_ref())
            .unwrap_or_else(|status| log::warn!("header {name} could not be added: {status}"));
    }

    /// Removes all values of a header; nothing happens when there are none.
    pub fn remove_header(&mut self, name: impl AsRef<str>) {
        let name = name.as_ref();
        host::current()
            .remove_header(self.body.direction().map(), name)
            .unwrap_or_else(|status| log::warn!("header {name} could not be removed: {status}"));
    }

    /// Waits for the whole body and copies it into the guest. Nothing reaches the other side meanwhile, not even the headers.
    /// `limit` is a number of bytes or a [`ByteSize`](crate::ByteSize); an announced `content-length` beyond it fails at once, without waiting.
    ///
    /// A message without a body has an empty one. After [`set_body`](Message::set_body) this is the new body.
    ///
    /// # Errors
    /// [`BodyTooLarge`] as soon as more than `limit` bytes are known to come. The message is intact and can be let pass.
    pub async fn body(&mut self, limit: impl Limit) -> Result<Vec<u8>, BodyTooLarge> {
        self.body.whole(limit.bytes()).await
    }

    /// Waits for the first `limit` bytes of the body, or for its end when that comes first, and copies at most that much into the
    /// guest. Nothing reaches the other side meanwhile, not even the headers. When the hook is done the message goes on whole, and
    /// the rest of the body streams past the filter unread: a body of any length costs no more than its first `limit` bytes.
    ///
    /// A message without a body has an empty one, and a `limit` of 0 waits for nothing. After [`set_body`](Message::set_body) this is
    /// the start of the new body, without a wait. The bytes are still part of the message: `body` and `body_prefix` may follow, and
    /// see them again.
    ///
    /// [`Prefix::whole`] says that the body ended within the limit. When `limit` bytes are here and the host has not said yet whether
    /// they are all, it is `false`: ask for one byte more to tell a body of that very length from a longer one.
    ///
    /// The host must be ready to hold so much. In a node that is the filter's `limits.body` (1 MiB by default), counted with the piece
    /// that has just arrived. With a `limit` above it, each body that outgrows `limits.body` fails there: 413 for a request, 502 for a
    /// response. With a `limit` less than a piece (mostly up to 64 KiB) below it, some do. A hook that goes on waiting after this, for
    /// a callout say, keeps holding the message, and what arrives meanwhile counts as well.
    ///
    /// # Errors
    /// [`BodyUnavailable`] when the host does not give the bytes that it has announced. The message is intact and can be let pass, but
    /// nobody has looked at it.
    pub async fn body_prefix(&mut self, limit: impl Limit) -> Result<Prefix, BodyUnavailable> {
        self.body.prefix(limit.bytes()).await
    }

    /// Makes `bytes` the body, and sets `content-length` to match. When the old body has not been read it is thrown away as it
    /// comes. A message that has no body at all (its headers were the end) gets one only from hosts that can add it; where they
    /// cannot, a warning is logged.
    pub fn set_body(&mut self, bytes: impl Into<Vec<u8>>) {
        self.body.replace(bytes.into());
    }
}
