//! One HTTP exchange as the filters see it: the request and response headers Pingora holds, the bytes buffered for the filter that
//! runs now, and the facts about the connection, the upstream and the cache, all behind [`selvedge_wasm::Exchange`].
//!
//! ```text
//! request header:   writable while the request is ours, readable to the end
//! response header:  staged -> here, writable -> gone, readable
//! ```

mod encoding;
pub(crate) mod facts;
mod names;
mod staged;

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap as Headers, HeaderName, HeaderValue, Method, Uri, Version};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::proxy::Session;
use selvedge_cache::Wishes;
use selvedge_cache::purge::TAG_MAX;
use selvedge_config::{Encoding, HeaderEncoding};
use selvedge_wasm::{
    Body, Buffer, Caller, Exchange, ExchangeError, ForeignError, HeaderMap, Phases, PropertyKind, Trace,
};

pub(crate) use self::encoding::refusal;
use self::encoding::{meant, shown};
use self::facts::{Cached, Connection, Details, Ended, Known};
use self::names::Name;
use self::staged::{Edit, Staged};
use super::{foreign, properties};
use crate::grpc;
use crate::listener::ListenerFacts;
use crate::plan::{ChainFilter, Route};
use crate::request::RequestCtx;
use crate::request::origin_side::Hop;

/// What an exchange carries from its first filter to its last, besides the request header.
pub(crate) struct ExchangeState {
    /// The request's number, for traces.
    pub(crate) number: u64,
    /// Where what its filters do is recorded, if it is.
    trace: Option<Arc<Trace>>,
    /// The route that was selected; fixed for the life of the exchange.
    pub(crate) route: Arc<Route>,
    /// Whether the client speaks TLS, to us or to a trusted proxy in front.
    tls: bool,
    /// What else is known about it; `None` where no filter may ask.
    pub(crate) known: Option<Box<Known>>,
    /// What kind of answer the client expects.
    pub(crate) asked: Asked,
    /// How the client would like responses compressed, on routes that do that.
    pub(crate) encoding: Option<Encoding>,

    /// The request has been sent, or answered: its header is history, and so are wishes about its target and the cache.
    request_gone: bool,
    /// Some filter has written its authority.
    new_authority: bool,
    /// The end of the request's body has passed every filter.
    request_body_gone: bool,
    /// The upstream a filter chose (`selvedge.upstream`); `None` = the route's own.
    pub(crate) upstream: Option<String>,
    /// The way to the outer half, where these are filters between the cache and the origin.
    pub(crate) outer_half: Option<Arc<Hop>>,
    /// What filters want of the cache.
    pub(crate) wishes: Option<Box<Wishes>>,
    /// Properties that filters of this exchange have set for later ones.
    set_by_filters: Vec<SetProperty>,
    /// Request trailers while they pass the chain.
    pub(crate) request_trailers: Option<Box<Headers>>,

    /// The response header, from the moment it arrives until it is handed on.
    pub(crate) response: Option<Box<ResponseHeader>>,
    /// Response trailers while they pass the chain.
    pub(crate) response_trailers: Option<Box<Headers>>,
    staged: Staged,
    /// Some filter may read what has gone on already.
    keeps_sent: bool,
    response_gone: bool,
    sent: Option<Box<ResponseHeader>>,
    sent_trailers: Option<Box<Headers>>,

    pub(crate) details: Option<Details>,
    /// The error token (RFC 9209) of an exchange that failed.
    pub(crate) failure: Option<&'static str>,
    /// The filters are being told that it has ended.
    has_ended: bool,
}

/// What kind of answer a client expects, as its request said before any filter changed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Any of HTTP.
    Plain,
    /// One of gRPC, over this version of HTTP.
    Grpc(Version),
}

impl Asked {
    /// What the client of this request expects.
    pub(crate) fn by(request: &RequestHeader) -> Self {
        if grpc::reply::asked_by(request) { Self::Grpc(request.version) } else { Self::Plain }
    }
}

/// A property that a filter has set.
#[derive(Clone)]
pub(crate) struct SetProperty {
    /// Its path, joined by dots, without a leading `wasm`.
    name: String,
    value: Bytes,
    /// Declared as such: the first value is the last.
    read_only: bool,
}

/// Properties one exchange may hold for its filters, so that a guest cannot grow the host's memory.
const SET_PROPERTIES_MAX: usize = 64;
/// The longest property value a filter may set, in bytes.
const SET_PROPERTY_BYTES_MAX: usize = 16 * 1024;
/// The longest name of a property a filter may set, in bytes.
const SET_PROPERTY_NAME_MAX: usize = 256;

impl ExchangeState {
    /// The state of an exchange that is about to meet its first filter.
    pub(crate) fn new(
        session: &Session,
        ctx: &RequestCtx,
        route: Arc<Route>,
        listener: &Arc<ListenerFacts>,
    ) -> Box<Self> {
        let known = route.is_asked_for_facts.then(|| Box::new(Known::of(session, ctx, listener)));
        Box::new(Self {
            number: ctx.number,
            trace: ctx.trace.clone(),
            tls: ctx.downstream.tls,
            known,
            asked: Asked::by(session.req_header()),
            encoding: route.compress.as_ref().and_then(|compress| compress.wanted(session.req_header())),
            request_gone: false,
            new_authority: false,
            request_body_gone: false,
            upstream: None,
            outer_half: None,
            wishes: None,
            set_by_filters: Vec::new(),
            request_trailers: None,
            response: None,
            response_trailers: None,
            staged: Staged::default(),
            keeps_sent: reads_sent(&route.filters),
            response_gone: false,
            sent: None,
            sent_trailers: None,
            details: None,
            failure: None,
            has_ended: false,
            route,
        })
    }

    /// These are filters between the cache and the origin: they know the client as those in front of the cache do, and what those have set.
    pub(crate) fn is_at_origin(
        &mut self,
        hop: &Arc<Hop>,
        server: Option<SocketAddr>,
        connection: &Connection,
        cached: Option<Cached>,
        properties: Vec<SetProperty>,
    ) {
        self.outer_half = Some(Arc::clone(hop));
        if let Some(known) = &mut self.known {
            (known.server, known.connection, known.cached) = (server, connection.clone(), cached);
        }
        self.set_by_filters = properties;
        self.encoding = None; // What is compressed is what leaves.
        self.keeps_sent = reads_sent(&self.route.origin_filters);
    }

    /// The properties that filters have set.
    pub(crate) fn set_by_filters(&self) -> &[SetProperty] {
        &self.set_by_filters
    }

    /// The chain has let the request go, or answered it: nothing can be changed about it any more.
    pub(crate) fn request_goes(&mut self) {
        self.request_gone = true;
    }

    /// Whether some filter has written the request's authority: what was made sure of when it came has to be made sure of once more.
    pub(crate) fn has_new_authority(&self) -> bool {
        self.new_authority
    }

    /// The end of the request has passed the chain: its body can no longer be written.
    pub(super) fn request_body_goes(&mut self) {
        self.request_body_gone = true;
    }

    /// A filter answers in the place of whoever would have.
    pub(crate) fn answered_by_filter(&mut self, details: &str) {
        let details = if details.is_empty() { Details::Borrowed("filter_response") } else { details.to_owned().into() };
        self.details = Some(details);
    }

    /// A response header comes, from wherever: it gets what filters have staged for it, once.
    pub(crate) fn response_comes(&mut self, mut header: Box<ResponseHeader>) {
        self.staged.apply(&mut header);
        self.response = Some(header);
    }

    /// Hands the response header on. Filters may still read it, if there is one that might.
    pub(crate) fn response_goes(&mut self) -> Option<Box<ResponseHeader>> {
        let header = self.response.take()?;
        self.response_gone = true;
        if self.keeps_sent {
            // Without the names as they are written on the wire, which filters do not see.
            self.sent = Some(Box::new(ResponseHeader::from(header.as_owned_parts())));
        }
        Some(header)
    }

    /// Hands the response trailers on, as [`response_goes`](Self::response_goes).
    pub(crate) fn trailers_go(&mut self) -> Option<Box<Headers>> {
        let trailers = self.response_trailers.take()?;
        if self.keeps_sent {
            self.sent_trailers = Some(trailers.clone());
        }
        Some(trailers)
    }

    /// The exchange is over; `ended` says how, where somebody may ask.
    pub(crate) fn ends(&mut self, ended: impl FnOnce() -> Ended) {
        self.has_ended = true;
        if let Some(known) = &mut self.known {
            known.ended = Some(ended());
        }
    }

    /// `http` or `https`, as the client spoke to us.
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls { "https" } else { "http" }
    }
}

/// Whether some filter may read what has gone on already.
fn reads_sent(filters: &[Arc<ChainFilter>]) -> bool {
    let phases = Phases::RESPONSE_BODY | Phases::RESPONSE_TRAILERS | Phases::LOG;
    filters.iter().any(|filter| filter.plugin.module().phases().intersects(phases))
}

/// The exchange lent to one guest call.
pub(crate) struct View<'a> {
    pub(crate) request: &'a mut RequestHeader,
    pub(crate) state: &'a mut ExchangeState,
    pub(crate) request_body: Option<&'a mut Body>,
    pub(crate) response_body: Option<&'a mut Body>,
    /// The filter whose guest is called.
    pub(crate) filter: &'a ChainFilter,
}

impl View<'_> {
    fn encoding(&self) -> HeaderEncoding {
        self.filter.header_encoding
    }

    fn plain_headers(&self, map: HeaderMap) -> Option<&Headers> {
        match map {
            HeaderMap::Request => Some(&self.request.headers),
            HeaderMap::Response => self.response().map(|response| &response.headers),
            HeaderMap::ResponseTrailers => {
                self.state.response_trailers.as_deref().or(self.state.sent_trailers.as_deref())
            }
            HeaderMap::RequestTrailers => self.state.request_trailers.as_deref(),
        }
    }

    /// The response header, wherever it is now.
    pub(super) fn response(&self) -> Option<&ResponseHeader> {
        self.state.response.as_deref().or(self.state.sent.as_deref())
    }

    fn pseudo(&self, map: HeaderMap, name: &[u8]) -> Option<&[u8]> {
        match (map, name) {
            (HeaderMap::Request, b":authority") => Some(authority(self.request)),
            (HeaderMap::Request, b":path") => Some(self.request.raw_path()),
            (HeaderMap::Request, b":method") => Some(self.request.method.as_str().as_bytes()),
            (HeaderMap::Request, b":scheme") => Some(self.state.scheme().as_bytes()),
            (HeaderMap::Response, b":status") => self.response().map(|response| response.status.as_str().as_bytes()),
            _ => None,
        }
    }

    fn set_pseudo(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError> {
        if map == HeaderMap::Request && self.state.request_gone {
            return Err(ExchangeError::Unavailable);
        }
        match (map, name) {
            (HeaderMap::Request, b":authority") => self.set_authority(value),
            (HeaderMap::Request, b":path") if *value == *shown(self.encoding(), self.request.raw_path()) => Ok(()),
            (HeaderMap::Request, b":path") => set_path(self.request, value),
            (HeaderMap::Request, b":method") => {
                self.request.set_method(Method::from_bytes(value).map_err(|_| ExchangeError::Invalid)?);
                Ok(())
            }
            // The scheme is a fact of the connection; accepting the write and ignoring it is what filters written for other hosts expect.
            (HeaderMap::Request, b":scheme") => Ok(()),
            (HeaderMap::Response, b":status") => {
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

    /// Makes one change, or stages it when it is meant for a response that has not come yet.
    fn edit(&mut self, map: HeaderMap, name: &Name, edit: Edit) -> Result<(), ExchangeError> {
        let trailers = match map {
            HeaderMap::Request if self.state.request_gone => return Err(ExchangeError::Unavailable),
            HeaderMap::Request => {
                self.state.new_authority |= *name.as_header() == http::header::HOST;
                return match edit {
                    Edit::Set(value) => self.request.insert_header(name.spelled(), value),
                    Edit::Add(value) => self.request.append_header(name.spelled(), value).map(drop),
                    Edit::Remove => {
                        self.request.remove_header(name.as_header());
                        Ok(())
                    }
                }
                .map_err(|_| ExchangeError::Invalid);
            }
            HeaderMap::Response => {
                let Some(response) = self.state.response.as_mut() else {
                    // One that has gone will not come again.
                    let over = self.state.response_gone || self.state.has_ended;
                    return if over { Err(ExchangeError::Unavailable) } else { self.state.staged.keep(name, edit) };
                };
                return edit.apply(name, response).map_err(|_| ExchangeError::Invalid);
            }
            HeaderMap::ResponseTrailers if self.state.sent_trailers.is_some() || self.state.has_ended => {
                return Err(ExchangeError::Unavailable);
            }
            HeaderMap::ResponseTrailers => self.state.response_trailers.get_or_insert_default(),
            HeaderMap::RequestTrailers => self.state.request_trailers.as_mut().ok_or(ExchangeError::Unavailable)?,
        };
        match edit {
            Edit::Set(value) => drop(trailers.insert(name.as_header(), value)),
            Edit::Add(value) => {
                trailers.append(name.as_header(), value);
            }
            Edit::Remove => drop(trailers.remove(name.as_header())),
        }
        Ok(())
    }

    fn set_authority(&mut self, value: &[u8]) -> Result<(), ExchangeError> {
        self.state.new_authority = true;
        set_authority(self.request, value)
    }

    fn clear(&mut self, map: HeaderMap) -> Result<(), ExchangeError> {
        if map == HeaderMap::Response && self.state.response.is_none() {
            return Err(ExchangeError::Unavailable); // There is nothing to replace, and nothing to stage it by.
        }
        let names: Vec<HeaderName> =
            self.plain_headers(map).ok_or(ExchangeError::Unavailable)?.keys().cloned().collect();
        for name in names {
            // Host carries `:authority`; a guest that replaces the map gives the new one as a pseudo header, or keeps this one.
            if map == HeaderMap::Request && name == http::header::HOST {
                continue;
            }
            self.edit(map, &Name::from(name), Edit::Remove)?;
        }
        Ok(())
    }

    /// A value that a guest writes, as it is to be stored.
    fn value(&self, map: HeaderMap, name: &HeaderName, value: &[u8]) -> Result<HeaderValue, ExchangeError> {
        let current = || self.plain_headers(map).into_iter().flat_map(|headers| headers.get_all(name));
        let value = meant(self.encoding(), value, || current().map(HeaderValue::as_bytes));
        HeaderValue::from_bytes(value).map_err(|_| ExchangeError::Invalid)
    }

    /// Every value of one header, one by one.
    pub(super) fn each_value(&self, map: HeaderMap, name: &str, visit: &mut dyn FnMut(&[u8])) {
        let host = map == HeaderMap::Request && name.eq_ignore_ascii_case("host");
        if host || name.starts_with(':') {
            let value = self.pseudo(map, if host { b":authority" } else { name.as_bytes() });
            if let Some(value) = value.filter(|value| !host || !value.is_empty()) {
                visit(&self.shown(value));
            }
            return;
        }
        for value in self.plain_headers(map).into_iter().flat_map(|headers| headers.get_all(name)) {
            visit(&self.shown(value.as_bytes()));
        }
    }

    /// A value of the message, as it is shown to this filter.
    pub(super) fn shown<'v>(&self, value: &'v [u8]) -> Cow<'v, [u8]> {
        shown(self.encoding(), value)
    }
}

impl Exchange for View<'_> {
    fn visit(&self, map: HeaderMap, visit: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        let Some(headers) = self.plain_headers(map) else { return false };

        let pseudo: &[&[u8]] = match map {
            HeaderMap::Request => &[b":authority", b":path", b":method", b":scheme"],
            HeaderMap::Response => &[b":status"],
            HeaderMap::RequestTrailers | HeaderMap::ResponseTrailers => &[],
        };
        for name in pseudo {
            if let Some(value) = self.pseudo(map, name) {
                visit(name, &self.shown(value));
            }
        }
        for (name, value) in headers {
            // `host` is shown as `:authority`, as every proxy-wasm host shows it.
            if map == HeaderMap::Request && name == http::header::HOST {
                continue;
            }
            visit(name.as_str().as_bytes(), &self.shown(value.as_bytes()));
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

    fn header(&self, map: HeaderMap, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        let value = if name.first() == Some(&b':') {
            self.pseudo(map, name)
        } else if map == HeaderMap::Request && name.eq_ignore_ascii_case(b"host") {
            self.pseudo(map, b":authority").filter(|authority| !authority.is_empty())
        } else {
            let headers = self.plain_headers(map)?;
            let first = names::with(name, |name| Ok(headers.get(name.as_header())));
            first.ok()?.map(HeaderValue::as_bytes)
        };
        Some(self.shown(value?))
    }

    fn set_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError> {
        if name.first() == Some(&b':') {
            return self.set_pseudo(map, name, value);
        }
        names::with(name, |name| {
            let value = self.value(map, name.as_header(), value)?;
            self.edit(map, name, Edit::Set(value))
        })
    }

    fn add_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError> {
        if name.first() == Some(&b':') {
            return self.set_pseudo(map, name, value);
        }
        names::with(name, |name| {
            let value = self.value(map, name.as_header(), value)?;
            self.edit(map, name, if name.is_single_valued() { Edit::Set(value) } else { Edit::Add(value) })
        })
    }

    fn remove_header(&mut self, map: HeaderMap, name: &[u8]) -> Result<(), ExchangeError> {
        if name.first() == Some(&b':') {
            return Ok(());
        }
        names::with(name, |name| {
            if map == HeaderMap::Request && *name.as_header() == http::header::HOST {
                return Ok(()); // It carries `:authority`, which a request cannot be without.
            }
            let trailers = matches!(map, HeaderMap::RequestTrailers | HeaderMap::ResponseTrailers);
            if trailers && self.plain_headers(map).is_none() {
                return Ok(());
            }
            self.edit(map, name, Edit::Remove)
        })
    }

    fn replace_headers(&mut self, map: HeaderMap, pairs: &[(&[u8], &[u8])]) -> Result<(), ExchangeError> {
        // Everything is checked, and looked up in what is there, before anything is changed.
        let mut checked = Vec::with_capacity(pairs.len());
        for (name, value) in pairs {
            let plain = if name.first() == Some(&b':') {
                None
            } else {
                let read = |name: &Name| Ok((name.clone(), self.value(map, name.as_header(), value)?));
                Some(names::with(name, read)?)
            };
            checked.push((*name, plain, *value));
        }

        self.clear(map)?;
        for (name, plain, value) in checked {
            match plain {
                None => self.set_pseudo(map, name, value)?,
                Some((name, value)) if name.is_single_valued() => self.edit(map, &name, Edit::Set(value))?,
                Some((name, value)) => self.edit(map, &name, Edit::Add(value))?,
            }
        }
        Ok(())
    }

    fn body(&mut self, which: Buffer) -> Option<&mut Body> {
        if self.state.has_ended {
            return None;
        }
        match which {
            Buffer::Response if self.state.response.is_none() && !self.state.response_gone => None,
            Buffer::Request => self.request_body.as_deref_mut(),
            Buffer::Response => self.response_body.as_deref_mut(),
            Buffer::Downstream | Buffer::Upstream => None,
        }
    }

    fn body_has_gone(&self, which: Buffer) -> bool {
        which == Buffer::Request && self.state.request_body_gone
    }

    fn trace(&self) -> Option<&Arc<Trace>> {
        self.state.trace.as_ref()
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        if properties::is_ours(path) {
            return properties::lookup(self, path);
        }
        match path {
            // What a filter has set at `a.b` is at `wasm.a.b` as well, and where Envoy keeps it.
            ["wasm", rest @ ..] => self.set_value(rest),
            ["filter_state", name] if name.starts_with("wasm.") => self.set_value(&[&name["wasm.".len()..]]),
            _ => self.set_value(path),
        }
    }

    fn property_kind(&self, path: &[&str]) -> PropertyKind {
        properties::kind(path)
    }

    fn set_property(&mut self, path: &[&str], value: &[u8]) -> Result<(), ExchangeError> {
        if properties::is_ours(path) {
            return self.set_ours(path, value);
        }
        let path = match path {
            ["wasm", rest @ ..] => rest,
            _ => path,
        };
        let name = path.join(".");
        let read_only = self.filter.host.declared().is_read_only(&name);
        self.keep_property(name, value, read_only)
    }

    fn foreign(&mut self, _caller: Caller<'_>, name: &str, args: &[u8]) -> Option<Result<Vec<u8>, ForeignError>> {
        foreign::on_exchange(self, name, args)
    }
}

/// Properties that are written.
impl View<'_> {
    /// What a filter has set at this path.
    fn set_value(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.state.set_by_filters.iter().find(|set| is_joined(&set.name, path)).map(|set| set.value.to_vec())
    }

    /// Keeps a property for the filters that come later.
    pub(super) fn keep_property(&mut self, name: String, value: &[u8], read_only: bool) -> Result<(), ExchangeError> {
        if value.len() > SET_PROPERTY_BYTES_MAX || name.len() > SET_PROPERTY_NAME_MAX {
            return Err(ExchangeError::Invalid);
        }
        let value = Bytes::copy_from_slice(value);
        let set = &mut self.state.set_by_filters;
        if let Some(known) = set.iter_mut().find(|known| known.name == name) {
            if known.read_only {
                return Err(ExchangeError::Unavailable);
            }
            known.value = value;
            return Ok(());
        }
        if set.len() >= SET_PROPERTIES_MAX {
            return Err(ExchangeError::Unavailable);
        }
        set.push(SetProperty { name, value, read_only });
        Ok(())
    }

    /// Sets one of our own, all of which say something about the request: too late once it has gone.
    fn set_ours(&mut self, path: &[&str], value: &[u8]) -> Result<(), ExchangeError> {
        if self.state.request_gone {
            return Err(ExchangeError::Unavailable);
        }
        match path {
            // The cache has been asked already, and what is stored the response's own fields say.
            ["cache", ..] if self.state.outer_half.is_some() => Err(ExchangeError::Unavailable),
            ["request", "path"] => self.set_pseudo(HeaderMap::Request, b":path", value),
            ["request", "host"] => self.set_authority(value),
            ["cache", "key_parts"] => {
                let parts = &mut self.state.wishes.get_or_insert_default().key_parts;
                if value.len() > KEY_PART_BYTES_MAX {
                    return Err(ExchangeError::Invalid);
                }
                if parts.len() >= KEY_PARTS_MAX {
                    return Err(ExchangeError::Unavailable);
                }
                parts.push(Bytes::copy_from_slice(value));
                Ok(())
            }
            ["cache", "tags"] => {
                let tag = std::str::from_utf8(value).map_err(|_| ExchangeError::Invalid)?;
                if tag.is_empty() || tag.len() > TAG_MAX {
                    return Err(ExchangeError::Invalid);
                }
                let tags = &mut self.state.wishes.get_or_insert_default().tags;
                if tags.len() >= TAGS_MAX {
                    return Err(ExchangeError::Unavailable);
                }
                tags.push(tag.to_owned());
                Ok(())
            }
            ["cache", "ttl"] => {
                let lifetime = lifetime(value).ok_or(ExchangeError::Invalid)?;
                self.state.wishes.get_or_insert_default().lifetime = Some(lifetime);
                Ok(())
            }
            ["cache", "bypass"] => {
                self.state.wishes.get_or_insert_default().bypass = match value {
                    [0] | b"0" | b"false" => false,
                    [1] | b"1" | b"true" => true,
                    _ => return Err(ExchangeError::Invalid),
                };
                Ok(())
            }
            ["selvedge", "upstream"] => {
                let name = std::str::from_utf8(value).map_err(|_| ExchangeError::Invalid)?;
                if !self.state.route.knows_upstream(name) {
                    return Err(ExchangeError::Invalid);
                }
                self.state.upstream = Some(name.to_owned());
                Ok(())
            }
            _ => Err(ExchangeError::Unavailable),
        }
    }
}

/// Parts that filters may add to one cache key.
const KEY_PARTS_MAX: usize = 16;
/// Bytes of one of them.
const KEY_PART_BYTES_MAX: usize = 1024;
/// Tags that filters may add to one response.
const TAGS_MAX: usize = 64;
/// The longest lifetime a filter may ask for: a year, as RFC 2616 had it and many caches still do.
const LIFETIME_MAX: Duration = Duration::from_hours(365 * 24);

/// A lifetime as a filter writes it: whole seconds in digits, or a duration of the ABI, 8 bytes of nanoseconds. They cannot be mistaken:
/// eight digits read as a number are more than a century.
fn lifetime(value: &[u8]) -> Option<Duration> {
    let given = if !value.is_empty() && value.iter().all(u8::is_ascii_digit) {
        Duration::from_secs(std::str::from_utf8(value).ok()?.parse().ok()?)
    } else {
        Duration::from_nanos(u64::try_from(i64::from_le_bytes(value.try_into().ok()?)).ok()?)
    };
    (given <= LIFETIME_MAX).then_some(given)
}

/// Whether `joined` is `path` with dots between its segments; without making it.
fn is_joined(joined: &str, path: &[&str]) -> bool {
    let mut rest = Some(joined);
    for (index, segment) in path.iter().enumerate() {
        rest = rest.and_then(|rest| if index == 0 { Some(rest) } else { rest.strip_prefix('.') });
        rest = rest.and_then(|rest| rest.strip_prefix(segment));
    }
    rest == Some("")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lifetime_is_seconds_in_digits_or_nanoseconds_in_binary() {
        let nanos = |nanos: i64| nanos.to_le_bytes().to_vec();
        for (value, expected) in [
            (b"0".to_vec(), Some(Duration::ZERO)),
            (b"60".to_vec(), Some(Duration::from_secs(60))),
            (b"31536000".to_vec(), Some(LIFETIME_MAX)), // eight digits
            (b"31536001".to_vec(), None),
            (nanos(1_500_000_000), Some(Duration::from_millis(1500))),
            (nanos(0), Some(Duration::ZERO)),
            (nanos(-1), None),
            (nanos(i64::MAX), None),
            (b"".to_vec(), None),
            (b"60s".to_vec(), None),
            (b"99999999999999999999999".to_vec(), None),
        ] {
            assert_eq!(lifetime(&value), expected, "{value:?}");
        }
    }

    #[test]
    fn paths_are_compared_as_joined() {
        for (joined, path, same) in [
            ("a.b", &["a", "b"][..], true),
            ("a.b", &["a.b"], true),
            ("a.b", &["a"], false),
            ("a.b", &["a", "b", "c"], false),
            ("ab", &["a", "b"], false),
            ("", &[""], true),
            ("a", &[], false),
        ] {
            assert_eq!(is_joined(joined, path), same, "{joined} {path:?}");
        }
    }
}
