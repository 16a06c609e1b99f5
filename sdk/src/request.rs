//! The request half of an exchange.

use std::cell::OnceCell;
use std::fmt::{self, Display, Formatter};
use std::net::{IpAddr, SocketAddr};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use crate::Message;
use crate::body::Body;
use crate::host;

/// A request, as the filter's `request` hook sees it. Headers and body: see [`Message`].
#[derive(Debug)]
pub struct Request {
    message: Message,
    target: OnceCell<String>,
}

impl Request {
    pub(crate) fn new(body: Rc<Body>) -> Self {
        Self { message: Message::new(body), target: OnceCell::new() }
    }

    /// The method.
    pub fn method(&self) -> Method {
        Method::from(self.header_str(":method").unwrap_or_default())
    }

    /// The path, without the query: `/a/b`. Bytes that are not UTF-8 are replaced; `header(":path")` has them as they came.
    pub fn path(&self) -> &str {
        self.target().split_once('?').map_or(self.target(), |(path, _)| path)
    }

    /// The query, without the question mark; `None` when there is no question mark.
    pub fn query(&self) -> Option<&str> {
        self.target().split_once('?').map(|(_, query)| query)
    }

    /// The scheme, the authority, the path and the query: `https://example.com/a?b=c`.
    pub fn url(&self) -> String {
        format!("{}://{}{}", self.scheme(), self.authority(), self.target())
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
    pub fn set_header(&mut self, name: &str, value: impl AsRef<[u8]>) {
        self.message.set_header(name, value);
        self.target.take();
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
        Client(())
    }

    /// Sends the request to another upstream, by the name it has in the proxy's configuration, in place of the route's.
    /// `false` when the host refused: it has no such upstream, or knows no such property.
    pub fn set_upstream(&mut self, name: &str) -> bool {
        self.set_property(&["selvedge", "upstream"], name.as_bytes())
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

    fn target(&self) -> &str {
        self.target.get_or_init(|| {
            self.header(":path").map(|value| String::from_utf8_lossy(&value).into_owned()).unwrap_or_default()
        })
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

fn cookie_in(field: &[u8], name: &str) -> Option<String> {
    let field = std::str::from_utf8(field).ok()?;
    field.split(';').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

/// The client of a stream, as the host sees it: behind trusted proxies that is the client they name.
#[derive(Clone, Copy, Debug)]
pub struct Client(());

impl Client {
    /// The address; `None` when the host does not tell.
    pub fn address(self) -> Option<IpAddr> {
        let text = text(&["source", "address"])?;
        text.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| text.parse()).ok()
    }

    /// The country as ISO 3166-1 alpha-2 (`DE`); `None` when the host has no geo database or does not find the address.
    pub fn country(self) -> Option<String> {
        text(&["source", "geo", "country"])
    }

    /// The continent as two letters (`EU`); `None` as for [`country`](Client::country).
    pub fn continent(self) -> Option<String> {
        text(&["source", "geo", "continent"])
    }
}

fn text(path: &[&str]) -> Option<String> {
    String::from_utf8(host::current().property(path)?).ok().filter(|text| !text.is_empty())
}

/// A request method (RFC 9110, 9). Methods are case-sensitive.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "the names are the methods")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    /// Any other, as it came.
    Other(String),
}

impl Method {
    /// The method as it is sent.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
            Self::Other(name) => name,
        }
    }
}

impl From<String> for Method {
    fn from(name: String) -> Self {
        match name.as_str() {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "DELETE" => Self::Delete,
            "CONNECT" => Self::Connect,
            "OPTIONS" => Self::Options,
            "TRACE" => Self::Trace,
            "PATCH" => Self::Patch,
            _ => Self::Other(name),
        }
    }
}

impl From<&str> for Method {
    fn from(name: &str) -> Self {
        Self::from(name.to_owned())
    }
}

impl Display for Method {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl PartialEq<&str> for Method {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
