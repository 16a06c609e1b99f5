//! Answers that a filter makes itself.

use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use crate::body::Direction;
use crate::host;
use crate::{BodyError, BodyTooLarge, BodyUnavailable, SetCookie};

/// A local reply: what a hook returns as `Err` to answer in place of the other side.
///
/// ```
/// # use selvedge_sdk::prelude::*;
/// let reply = Reply::new(429).header("retry-after", "1").text("slow down");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a reply is sent by returning it as Err"]
pub struct Reply {
    status: u16,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    grpc_status: Option<u8>,
}

/// A status: a number or a [`StatusCode`].
pub trait Status {
    /// The number.
    fn code(self) -> u16;
}

impl Status for u16 {
    fn code(self) -> u16 {
        self
    }
}

impl Status for StatusCode {
    fn code(self) -> u16 {
        self.as_u16()
    }
}

impl Reply {
    /// A reply with this status, no headers of its own and no body. The host adds `content-length` and `date`.
    pub fn new(status: impl Status) -> Self {
        Self { status: status.code(), headers: Vec::new(), body: Vec::new(), grpc_status: None }
    }

    /// Adds a header. A name or value that cannot stand in a header (control characters, as in an injected line break) is left
    /// out and logged at warn.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let sound = !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':')
            && !value.iter().any(|byte| *byte != b'\t' && byte.is_ascii_control());
        if sound {
            self.headers.push((name.to_owned(), value.to_vec()));
        } else {
            log::warn!("header {name:?} of a reply is malformed and left out");
        }
        self
    }

    /// Gives the client a cookie. One that it would not take is left out and logged at error.
    pub fn cookie(self, cookie: SetCookie) -> Self {
        match cookie.text() {
            Ok(text) => self.header("set-cookie", text),
            Err(error) => {
                log::error!("a cookie is not set: {error}");
                self
            }
        }
    }

    /// Sets the body; the type is the caller's to say.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        self
    }

    /// Sets the body to a line of plain text.
    pub fn text(self, text: &str) -> Self {
        self.header("content-type", "text/plain; charset=utf-8").body(format!("{text}\n"))
    }

    /// Sets the body to a value as JSON. A value that cannot be written as JSON is logged and makes this an empty 500.
    pub fn json(mut self, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(json) => self.header("content-type", "application/json").body(json),
            Err(error) => {
                log::error!("the body of a reply is not JSON: {error}");
                self.status = 500;
                self.body(Vec::new())
            }
        }
    }

    /// Sets the body to a problem document (RFC 9457) of type `about:blank`: what went wrong, and what of it is special to this occurrence.
    pub fn problem(self, title: &str, detail: &str) -> Self {
        let problem = json!({ "type": "about:blank", "title": title, "status": self.status, "detail": detail });
        self.header("content-type", "application/problem+json").body(problem.to_string())
    }

    /// What a client that speaks gRPC is told instead of the status, if that says it better than the host would (403 is 7, say): a code of
    /// gRPC, 0 to 16. Others see nothing of it.
    pub fn grpc_status(mut self, code: u8) -> Self {
        self.grpc_status = Some(code.min(16));
        self
    }

    /// Sends the client elsewhere: `Reply::new(302).redirect("/login")`.
    pub fn redirect(self, location: impl AsRef<[u8]>) -> Self {
        self.header("location", location)
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The headers, in the order they were added.
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.headers
    }

    /// The body.
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    #[inline(never)]
    pub(crate) fn send(self) {
        let headers: Vec<(&str, &[u8])> = self.headers.iter().map(|(name, value)| (&**name, &**value)).collect();
        let current = host::current();
        match self.grpc_status {
            None => current.reply(self.status, &headers, &self.body),
            Some(code) => current.reply_grpc(self.status, &headers, &self.body, code),
        }
    }
}

impl From<BodyTooLarge> for Reply {
    fn from(error: BodyTooLarge) -> Self {
        match error.direction {
            Direction::Request => Self::new(413).text("request body too large"),
            Direction::Response => Self::new(502).text("response body too large"),
        }
    }
}

impl From<BodyError> for Reply {
    fn from(error: BodyError) -> Self {
        log::debug!("{error}");
        match error {
            BodyError::TooLarge(error) => error.into(),
            BodyError::NotText { direction: Direction::Request } => Self::new(400).text("request body is not text"),
            BodyError::NotJson { direction: Direction::Request, .. } => {
                Self::new(400).text("request body is not the JSON expected")
            }
            BodyError::NotText { direction: Direction::Response } => Self::new(502).text("response body is not text"),
            BodyError::NotJson { direction: Direction::Response, .. } => {
                Self::new(502).text("response body is not the JSON expected")
            }
        }
    }
}

impl From<BodyUnavailable> for Reply {
    fn from(error: BodyUnavailable) -> Self {
        log::error!("{error}");
        Self::new(500).text(match error.direction {
            Direction::Request => "request body unavailable",
            Direction::Response => "response body unavailable",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_cannot_be_smuggled_into_a_header() {
        let reply = Reply::new(302).redirect("/a\r\nset-cookie: x=y").header("bad name", "x").header("ok", "a\tb");
        assert_eq!(reply.headers(), [("ok".to_owned(), b"a\tb".to_vec())]);
    }
}
