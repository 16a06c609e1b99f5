//! One HTTP exchange as the filters see it: the request and response headers Pingora holds, the bytes buffered for the filter that
//! runs now, and the facts about the connection, all behind [`selvedge_wasm::Exchange`].

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use http::{HeaderMap as Headers, HeaderName, HeaderValue, Method, Uri};
use pingora::http::{RequestHeader, ResponseHeader};
use selvedge_geoip::Location;
use selvedge_wasm::{Body, Buffer, Exchange, ExchangeError, HeaderMap};

use super::properties;
use crate::plan::Route;

/// What an exchange carries from its first filter to its last, besides the two headers.
pub(crate) struct ExchangeState {
    /// The request's number, for traces.
    pub(crate) number: u64,
    /// Our name as an item of a structured field, for `Proxy-Status`.
    pub(crate) node: Arc<str>,
    /// The route that was selected; fixed for the life of the exchange.
    pub(crate) route: Arc<Route>,
    /// `http` or `https`, as the client spoke to us.
    pub(crate) scheme: &'static str,
    /// Who is asking.
    pub(crate) client: Option<SocketAddr>,
    /// The address the client connected to.
    pub(crate) server: Option<SocketAddr>,
    /// Where the client is, when a geo database is configured and knows.
    pub(crate) geo: Option<Location>,
    /// When the request header had been read.
    pub(crate) start: SystemTime,
    /// The TLS version, such as `TLSv1.3`; `None` on plain connections.
    pub(crate) tls_version: Option<Cow<'static, str>>,
    /// The upstream a filter chose (`selvedge.upstream`); `None` = the route's own.
    pub(crate) upstream: Option<String>,
    /// Properties that filters of this exchange have set for later ones.
    pub(crate) set_by_filters: Vec<(String, Bytes)>,
    /// The response header, from the moment it arrives until it is handed on.
    pub(crate) response: Option<Box<ResponseHeader>>,
    /// Response trailers while they pass the chain.
    pub(crate) response_trailers: Option<Box<Headers>>,
}

/// Properties one exchange may hold for its filters, so that a guest cannot grow the host's memory.
const SET_PROPERTIES_MAX: usize = 64;
/// The longest property value a filter may set, in bytes.
const SET_PROPERTY_BYTES_MAX: usize = 16 * 1024;

/// The exchange lent to one guest call.
pub(crate) struct View<'a> {
    pub(crate) request: &'a mut RequestHeader,
    pub(crate) state: &'a mut ExchangeState,
    pub(crate) request_body: Option<&'a mut Body>,
    pub(crate) response_body: Option<&'a mut Body>,
}

impl View<'_> {
    fn plain_headers(&self, map: HeaderMap) -> Option<&Headers> {
        match map {
            HeaderMap::Request => Some(&self.request.headers),
            HeaderMap::Response => self.state.response.as_ref().map(|response| &response.headers),
            HeaderMap::ResponseTrailers => self.state.response_trailers.as_deref(),
            HeaderMap::RequestTrailers => None,
        }
    }

    fn pseudo(&self, map: HeaderMap, name: &str) -> Option<Cow<'_, [u8]>> {
        match (map, name) {
            (HeaderMap::Request, ":authority") => Some(Cow::Borrowed(authority(self.request))),
            (HeaderMap::Request, ":path") => Some(Cow::Borrowed(self.request.raw_path())),
            (HeaderMap::Request, ":method") => Some(Cow::Borrowed(self.request.method.as_str().as_bytes())),
            (HeaderMap::Request, ":scheme") => Some(Cow::Borrowed(self.state.scheme.as_bytes())),
            (HeaderMap::Response, ":status") => {
                self.state.response.as_ref().map(|response| Cow::Borrowed(response.status.as_str().as_bytes()))
            }
            _ => None,
        }
    }

    fn set_pseudo(&mut self, map: HeaderMap, name: &str, value: &[u8]) -> Result<(), ExchangeError> {
        match (map, name) {
            (HeaderMap::Request, ":authority") => set_authority(self.request, value),
            (HeaderMap::Request, ":path") => set_path(self.request, value),
            (HeaderMap::Request, ":method") => {
                self.request.set_method(Method::from_bytes(value).map_err(|_| ExchangeError::Invalid)?);
                Ok(())
            }
            // The scheme is a fact of the connection; accepting the write and ignoring it is what filters written for other hosts expect.
            (HeaderMap::Request, ":scheme") => Ok(()),
            (HeaderMap::Response, ":status") => {
                let response = self.state.response.as_mut().ok_or(ExchangeError::Unavailable)?;
                let status = http::StatusCode::from_bytes(value).map_err(|_| ExchangeError::Invalid)?;
                if status.is_informational() {
                    return Err(ExchangeError::Invalid);
                }
                response.set_status(status).map_err(|_| ExchangeError::Invalid)
            }
            _ => Err(ExchangeError::Invalid),
        }
    }

    fn insert(&mut self, map: HeaderMap, name: HeaderName, value: HeaderValue) -> Result<(), ExchangeError> {
        match map {
            HeaderMap::Request => self.request.insert_header(name, value).map_err(|_| ExchangeError::Invalid),
            HeaderMap::Response => {
                let response = self.state.response.as_mut().ok_or(ExchangeError::Unavailable)?;
                response.insert_header(name, value).map_err(|_| ExchangeError::Invalid)
            }
            HeaderMap::ResponseTrailers => {
                self.state.response_trailers.get_or_insert_default().insert(name, value);
                Ok(())
            }
            HeaderMap::RequestTrailers => Err(ExchangeError::Unavailable),
        }
    }

    fn append(&mut self, map: HeaderMap, name: HeaderName, value: HeaderValue) -> Result<(), ExchangeError> {
        match map {
            HeaderMap::Request => self.request.append_header(name, value).map(drop).map_err(|_| ExchangeError::Invalid),
            HeaderMap::Response => {
                let response = self.state.response.as_mut().ok_or(ExchangeError::Unavailable)?;
                response.append_header(name, value).map(drop).map_err(|_| ExchangeError::Invalid)
            }
            HeaderMap::ResponseTrailers => {
                self.state.response_trailers.get_or_insert_default().append(name, value);
                Ok(())
            }
            HeaderMap::RequestTrailers => Err(ExchangeError::Unavailable),
        }
    }

    fn clear(&mut self, map: HeaderMap) -> Result<(), ExchangeError> {
        let names: Vec<HeaderName> =
            self.plain_headers(map).ok_or(ExchangeError::Unavailable)?.keys().cloned().collect();
        for name in names {
            // Host carries `:authority`; a guest that replaces the map gives the new one as a pseudo header, or keeps this one.
            if map == HeaderMap::Request && name == http::header::HOST {
                continue;
            }
            self.remove(map, &name);
        }
        Ok(())
    }

    fn remove(&mut self, map: HeaderMap, name: &HeaderName) {
        match map {
            HeaderMap::Request => drop(self.request.remove_header(name)),
            HeaderMap::Response => {
                if let Some(response) = self.state.response.as_mut() {
                    response.remove_header(name);
                }
            }
            HeaderMap::ResponseTrailers => {
                if let Some(trailers) = self.state.response_trailers.as_mut() {
                    trailers.remove(name);
                }
            }
            HeaderMap::RequestTrailers => {}
        }
    }
}

impl Exchange for View<'_> {
    fn visit(&self, map: HeaderMap, visit: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        let Some(headers) = self.plain_headers(map) else { return false };

        let pseudo: &[&str] = match map {
            HeaderMap::Request => &[":authority", ":path", ":method", ":scheme"],
            HeaderMap::Response => &[":status"],
            HeaderMap::RequestTrailers | HeaderMap::ResponseTrailers => &[],
        };
        for name in pseudo {
            if let Some(value) = self.pseudo(map, name) {
                visit(name.as_bytes(), &value);
            }
        }
        for (name, value) in headers {
            // `host` is shown as `:authority`, as every proxy-wasm host shows it.
            if map == HeaderMap::Request && name == http::header::HOST {
                continue;
            }
            visit(name.as_str().as_bytes(), value.as_bytes());
        }
        true
    }

    fn count(&self, map: HeaderMap) -> u32 {
        let Some(headers) = self.plain_headers(map) else { return 0 };
        let count = match map {
            HeaderMap::Request => headers.len() + 4 - usize::from(headers.contains_key(http::header::HOST)),
            HeaderMap::Response => headers.len() + 1,
            HeaderMap::RequestTrailers | HeaderMap::ResponseTrailers => headers.len(),
        };
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    fn header(&self, map: HeaderMap, name: &str) -> Option<Cow<'_, [u8]>> {
        if name.starts_with(':') {
            return self.pseudo(map, name);
        }
        if map == HeaderMap::Request && name.eq_ignore_ascii_case("host") {
            return self.pseudo(map, ":authority").filter(|authority| !authority.is_empty());
        }
        self.plain_headers(map)?.get(name).map(|value| Cow::Borrowed(value.as_bytes()))
    }

    fn set_header(&mut self, map: HeaderMap, name: &str, value: &[u8]) -> Result<(), ExchangeError> {
        if name.starts_with(':') {
            return self.set_pseudo(map, name, value);
        }
        let (name, value) = header_pair(name, value)?;
        self.insert(map, name, value)
    }

    fn add_header(&mut self, map: HeaderMap, name: &str, value: &[u8]) -> Result<(), ExchangeError> {
        if name.starts_with(':') {
            return self.set_pseudo(map, name, value);
        }
        let (name, value) = header_pair(name, value)?;
        if is_single_valued(&name) {
            // A second Host or Content-Length would make the message ambiguous for the next hop (RFC 9112, 3.2 and 6.3).
            return self.insert(map, name, value);
        }
        self.append(map, name, value)
    }

    fn remove_header(&mut self, map: HeaderMap, name: &str) -> Result<(), ExchangeError> {
        if name.starts_with(':') {
            return Ok(());
        }
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| ExchangeError::Invalid)?;
        if map == HeaderMap::Request && name == http::header::HOST {
            return Ok(()); // It carries `:authority`, which a request cannot be without.
        }
        self.remove(map, &name);
        Ok(())
    }

    fn replace_headers(&mut self, map: HeaderMap, pairs: &[(&[u8], &[u8])]) -> Result<(), ExchangeError> {
        let mut checked = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            let name = std::str::from_utf8(name).map_err(|_| ExchangeError::Invalid)?;
            if !name.starts_with(':') {
                header_pair(name, value)?;
            }
            checked.push((name, *value));
        }

        self.clear(map)?;
        for (name, value) in checked {
            self.add_header(map, name, value)?;
        }
        Ok(())
    }

    fn body(&mut self, which: Buffer) -> Option<&mut Body> {
        match which {
            Buffer::Request => self.request_body.as_deref_mut(),
            Buffer::Response => self.response_body.as_deref_mut(),
            Buffer::Downstream | Buffer::Upstream => None,
        }
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        let joined = path.join(".");
        if let Some((_, value)) = self.state.set_by_filters.iter().find(|(name, _)| *name == joined) {
            return Some(value.to_vec());
        }
        properties::lookup(self, path)
    }

    fn set_property(&mut self, path: &[&str], value: &[u8]) -> Result<(), ExchangeError> {
        if path == ["selvedge", "upstream"] {
            let name = std::str::from_utf8(value).map_err(|_| ExchangeError::Invalid)?;
            if !self.state.route.knows_upstream(name) {
                return Err(ExchangeError::Invalid);
            }
            self.state.upstream = Some(name.to_owned());
            return Ok(());
        }
        if value.len() > SET_PROPERTY_BYTES_MAX {
            return Err(ExchangeError::Invalid);
        }

        let name = path.join(".");
        let value = Bytes::copy_from_slice(value);
        if let Some(slot) = self.state.set_by_filters.iter_mut().find(|(known, _)| *known == name) {
            slot.1 = value;
            return Ok(());
        }
        if self.state.set_by_filters.len() >= SET_PROPERTIES_MAX {
            return Err(ExchangeError::Unavailable);
        }
        self.state.set_by_filters.push((name, value));
        Ok(())
    }
}

/// The authority the client asked for: Host, or the URI's own when there is no Host (HTTP/2, absolute form).
pub(crate) fn authority(request: &RequestHeader) -> &[u8] {
    match request.headers.get(http::header::HOST) {
        Some(host) => host.as_bytes(),
        None => request.uri.authority().map_or(&[], |authority| authority.as_str().as_bytes()),
    }
}

fn set_authority(request: &mut RequestHeader, value: &[u8]) -> Result<(), ExchangeError> {
    let authority = http::uri::Authority::try_from(value).map_err(|_| ExchangeError::Invalid)?;
    if request.uri.authority().is_some() {
        let mut parts = request.uri.clone().into_parts();
        parts.authority = Some(authority);
        request.set_uri(Uri::from_parts(parts).map_err(|_| ExchangeError::Invalid)?);
    }
    let value = HeaderValue::from_bytes(value).map_err(|_| ExchangeError::Invalid)?;
    request.insert_header(http::header::HOST, value).map_err(|_| ExchangeError::Invalid)
}

fn set_path(request: &mut RequestHeader, value: &[u8]) -> Result<(), ExchangeError> {
    let path = http::uri::PathAndQuery::try_from(value).map_err(|_| ExchangeError::Invalid)?;
    if !path.path().starts_with('/') && path.path() != "*" {
        return Err(ExchangeError::Invalid);
    }
    let mut parts = request.uri.clone().into_parts();
    parts.path_and_query = Some(path);
    request.set_uri(Uri::from_parts(parts).map_err(|_| ExchangeError::Invalid)?);
    Ok(())
}

fn header_pair(name: &str, value: &[u8]) -> Result<(HeaderName, HeaderValue), ExchangeError> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| ExchangeError::Invalid)?;
    let value = HeaderValue::from_bytes(value).map_err(|_| ExchangeError::Invalid)?;
    Ok((name, value))
}

fn is_single_valued(name: &HeaderName) -> bool {
    *name == http::header::HOST || *name == http::header::CONTENT_LENGTH
}
