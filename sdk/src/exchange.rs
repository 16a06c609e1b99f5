//! A whole exchange, when it is over: the headers of both sides.

use std::str::FromStr;

use http::Method;

use crate::HeaderValue;
use crate::facts::Exchange;
use crate::host::{self, Map};

/// The headers of both sides, as they are at the time: in [`Filter::done`](crate::Filter::done) as they were in the end.
impl Exchange {
    /// The method; `None` when the host does not say.
    pub fn method(self) -> Option<Method> {
        text(Map::Request, ":method")
    }

    /// The path as it was forwarded, query included; `None` when the host does not say.
    pub fn path(self) -> Option<String> {
        text(Map::Request, ":path")
    }

    /// The first value of a header of the request.
    pub fn request_header(self, name: impl AsRef<str>) -> Option<HeaderValue> {
        host::current().header(Map::Request, name.as_ref()).map(HeaderValue::from)
    }

    /// The first value of a header of the response.
    pub fn response_header(self, name: impl AsRef<str>) -> Option<HeaderValue> {
        host::current().header(Map::Response, name.as_ref()).map(HeaderValue::from)
    }
}

fn text<T: FromStr>(map: Map, name: &str) -> Option<T> {
    std::str::from_utf8(&host::current().header(map, name)?).ok()?.parse().ok()
}
