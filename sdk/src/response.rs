//! The response half of an exchange.

use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use crate::Message;
use crate::SetCookie;
use crate::body::Body;
use crate::host;
use crate::reply::Status;

/// A response, as the filter's `response` hook sees it. Headers and body: see [`Message`].
#[derive(Debug)]
pub struct Response {
    message: Message,
}

impl Response {
    pub(crate) fn new(message: Message) -> Self {
        Self { message }
    }

    pub(crate) fn into_body(self) -> Option<Rc<Body>> {
        self.message.into_body()
    }

    /// The status; 0 when the host does not say.
    pub fn status(&self) -> u16 {
        self.header_str(":status").and_then(|status| status.parse().ok()).unwrap_or(0)
    }

    /// Sets the status, 100 to 999.
    pub fn set_status(&mut self, status: impl Status) {
        self.set_header(":status", status.code().to_string());
    }

    /// Gives the client a cookie, beside those that the origin sets. One that it would not take is left out and logged at error.
    pub fn set_cookie(&mut self, cookie: SetCookie) {
        match cookie.text() {
            Ok(text) => self.add_header("set-cookie", text),
            Err(error) => log::error!("a cookie is not set: {error}"),
        }
    }

    /// A property of the host, in the host's encoding (text for strings, little-endian 8 bytes for numbers).
    pub fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        host::current().property(path)
    }

    /// Sets a property, for later filters or the access log. `false` when the host refused.
    pub fn set_property(&mut self, path: &[&str], value: &[u8]) -> bool {
        host::current()
            .set_property(path, value)
            .inspect_err(|status| log::warn!("property {} could not be set: {status}", path.join(".")))
            .is_ok()
    }
}

impl Deref for Response {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl DerefMut for Response {
    fn deref_mut(&mut self) -> &mut Message {
        &mut self.message
    }
}
