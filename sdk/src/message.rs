//! What requests and responses have in common: headers and a body.

use std::cell::OnceCell;
use std::fmt::{self, Debug, Formatter};
use std::ops::Deref;
use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::body::{Body, Direction, Limit};
use crate::host::{self, Status};
use crate::{BodyError, BodyTooLarge, BodyUnavailable, Prefix, Trailers};

/// A header value: bytes, mostly but not always UTF-8 (RFC 9110, 5.5). It holds whatever a host may give, and converts from and to the one
/// of the crate [`http`], which anything that takes a value also takes.
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

impl From<http::HeaderValue> for HeaderValue {
    fn from(value: http::HeaderValue) -> Self {
        Self(value.as_bytes().to_vec())
    }
}

/// Fails for what the crate `http` takes for no value (control characters), and other hosts may send.
impl TryFrom<HeaderValue> for http::HeaderValue {
    type Error = http::header::InvalidHeaderValue;

    fn try_from(value: HeaderValue) -> Result<Self, Self::Error> {
        Self::try_from(value.0)
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
    direction: Direction,
    /// The host makes body callbacks for this filter.
    callbacks: bool,
    /// The headers are all there is.
    end: bool,
    /// Made when it is first asked for, unless somebody shares it.
    body: OnceCell<Rc<Body>>,
}

impl Message {
    /// One whose body nobody has touched yet.
    pub(crate) fn new(direction: Direction, callbacks: bool, end: bool) -> Self {
        Self { direction, callbacks, end, body: OnceCell::new() }
    }

    /// One whose body is known to others already.
    pub(crate) fn over(body: Rc<Body>) -> Self {
        Self { direction: body.direction(), callbacks: body.has_callbacks(), end: body.has_ended(), body: body.into() }
    }

    /// Its body, when it was asked for.
    pub(crate) fn into_body(self) -> Option<Rc<Body>> {
        self.body.into_inner()
    }

    fn content(&self) -> &Body {
        self.body.get_or_init(|| Rc::new(Body::new(self.direction, self.callbacks, self.end)))
    }

    /// The first value of a header; pseudo headers (`:path`) included.
    pub fn header(&self, name: impl AsRef<str>) -> Option<HeaderValue> {
        host::current().header(self.direction.map(), name.as_ref()).map(HeaderValue)
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
        host::current().headers(self.direction.map()).into_iter()
    }

    /// Sets a header, in place of all values it had.
    pub fn set_header(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        host::current()
            .set_header(self.direction.map(), name, value.as_ref())
            .unwrap_or_else(|status| refused(name, "set", status));
    }

    /// Adds a value to a header, behind those it has.
    pub fn add_header(&mut self, name: impl AsRef<str>, value: impl AsRef<[u8]>) {
        let name = name.as_ref();
        host::current()
            .add_header(self.direction.map(), name, value.as_ref())
            .unwrap_or_else(|status| refused(name, "added", status));
    }

    /// Removes all values of a header; nothing happens when there are none.
    pub fn remove_header(&mut self, name: impl AsRef<str>) {
        let name = name.as_ref();
        host::current()
            .remove_header(self.direction.map(), name)
            .unwrap_or_else(|status| refused(name, "removed", status));
    }

    /// Waits for the whole body and copies it into the guest. Nothing reaches the other side meanwhile, not even the headers.
    /// `limit` is a number of bytes or a [`ByteSize`](crate::ByteSize); an announced `content-length` beyond it fails at once, without waiting.
    ///
    /// A message without a body has an empty one. After [`set_body`](Message::set_body) this is the new body.
    ///
    /// # Errors
    /// [`BodyTooLarge`] as soon as more than `limit` bytes are known to come. The message is intact and can be let pass.
    pub async fn body(&mut self, limit: impl Limit) -> Result<Vec<u8>, BodyTooLarge> {
        self.content().whole(limit.bytes()).await
    }

    /// The same as [`body`](Message::body).
    ///
    /// # Errors
    /// As `body`.
    pub async fn bytes(&mut self, limit: impl Limit) -> Result<Vec<u8>, BodyTooLarge> {
        self.body(limit).await
    }

    /// The whole [`body`](Message::body) as text.
    ///
    /// # Errors
    /// It is too large, or not UTF-8.
    pub async fn text(&mut self, limit: impl Limit) -> Result<String, BodyError> {
        let bytes = self.body(limit).await?;
        String::from_utf8(bytes).map_err(|_| BodyError::NotText { direction: self.direction })
    }

    /// The whole [`body`](Message::body), read as JSON.
    ///
    /// # Errors
    /// It is too large, not JSON, or not of this form.
    pub async fn json<T: DeserializeOwned>(&mut self, limit: impl Limit) -> Result<T, BodyError> {
        let bytes = self.body(limit).await?;
        serde_json::from_slice(&bytes)
            .map_err(|error| BodyError::NotJson { direction: self.direction, reason: error.to_string() })
    }

    /// Waits for the next piece of the body; `None` at its end. The headers go on with the first wait, and every piece with the wait for
    /// the one after it: the body streams, and however long it is, one piece is held. Between two pieces the hook may wait for
    /// something else, a callout say; the message then waits with it. The end of the hook lets go what is left, unread.
    ///
    /// Pieces are as the host has them, mostly up to 64 KiB, and cut anywhere. A piece that is not replaced with
    /// [`set_chunk`](Message::set_chunk) goes on as it is.
    ///
    /// # Errors
    /// [`BodyUnavailable`] when the host does not give the bytes that it has announced.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, BodyUnavailable> {
        self.content().chunk().await
    }

    /// Replaces the last piece that [`chunk`](Message::chunk) gave. Called again, or when `chunk` has given `None`, it adds behind it.
    ///
    /// A piece of another length than the old one needs a message that does not say how long its body is: remove `content-length` before
    /// the first `chunk`. Where that was forgotten the piece goes on unchanged and the log says so.
    pub fn set_chunk(&mut self, bytes: impl AsRef<[u8]>) {
        self.content().set_chunk(bytes.as_ref());
    }

    /// Passes the body through a function as it streams, piece by piece, in bounded memory. At the end the function is called once more,
    /// with no bytes and `true`: what it has kept back then goes on behind the rest. Removes `content-length`.
    ///
    /// ```
    /// # use selvedge_sdk::prelude::*;
    /// # async fn hook(response: &mut Response) -> Flow {
    /// response.transform(|piece, _last| piece.to_ascii_uppercase()).await?;
    /// # Ok(Next) }
    /// ```
    ///
    /// # Errors
    /// As [`chunk`](Message::chunk).
    pub async fn transform(&mut self, mut piece: impl FnMut(Vec<u8>, bool) -> Vec<u8>) -> Result<(), BodyUnavailable> {
        self.remove_header("content-length");
        while let Some(bytes) = self.chunk().await? {
            let bytes = piece(bytes, false);
            self.set_chunk(bytes);
        }
        let rest = piece(Vec::new(), true);
        self.set_chunk(rest);
        Ok(())
    }

    /// Lets the body pass, and waits for what stands behind it. Without a body, or without trailers, they are empty.
    ///
    /// Request trailers reach an HTTP/1 origin from no host, and in Selvedge from none at all; responses' pass on HTTP/2 (gRPC).
    pub async fn trailers(&mut self) -> Trailers {
        self.content().passed().await;
        Trailers::new(self.direction.trailers())
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
        self.content().prefix(limit.bytes()).await
    }

    /// Makes `bytes` the body, and sets `content-length` to match. When the old body has not been read it is thrown away as it
    /// comes. A message that has no body at all (its headers were the end) gets one only from hosts that can add it; where they
    /// cannot, a warning is logged.
    pub fn set_body(&mut self, bytes: impl Into<Vec<u8>>) {
        self.content().replace(bytes.into());
    }

    /// Makes this text the body, with its length and its type (`text/plain`, unless another `text/..` is set).
    pub fn set_text(&mut self, text: impl Into<String>) {
        if !self.header_str("content-type").is_some_and(|kind| kind.starts_with("text/")) {
            self.set_header("content-type", "text/plain; charset=utf-8");
        }
        self.set_body(text.into());
    }

    /// Makes this value the body, as JSON, with its length and its type (`application/json`, unless another one of JSON is set).
    ///
    /// # Errors
    /// The value cannot be written as JSON. The message is as it was.
    pub fn set_json(&mut self, value: &impl Serialize) -> Result<(), BodyError> {
        let json = serde_json::to_vec(value)
            .map_err(|error| BodyError::NotJson { direction: self.direction, reason: error.to_string() })?;
        if !self.is_json() {
            self.set_header("content-type", "application/json");
        }
        self.set_body(json);
        Ok(())
    }

    /// Whether the type of the body is JSON: `application/json`, or a type that ends with `+json` (RFC 6839).
    pub fn is_json(&self) -> bool {
        let kind = self.header_str("content-type").unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        kind == "application/json" || kind.ends_with("+json")
    }
}

/// Not inline, so that filters do not carry it once for each header they set.
#[cold]
#[inline(never)]
fn refused(name: &str, change: &str, status: Status) {
    log::warn!("header {name} could not be {change}: {status}");
}
