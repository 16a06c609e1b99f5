//! What a filter that is measured meets: a host with nothing outside, and one exchange that begins anew each time.

use std::borrow::Cow;

use bytes::Bytes;
use futures::future::BoxFuture;
use selvedge_wasm::{
    Body, Buffer, Callout, CalloutFailure, CalloutResponse, Exchange, ExchangeError, HeaderMap, Host, Metrics,
    SharedData, SharedQueues,
};

/// A host whose upstreams are all there, and answer 200 to whoever asks.
#[derive(Debug, Default)]
pub(super) struct Desk {
    shared: SharedData,
    metrics: Metrics,
    queues: SharedQueues,
}

impl Host for Desk {
    fn has_upstream(&self, _: &str) -> bool {
        true
    }

    fn call(&self, _: Callout) -> BoxFuture<'static, Result<CalloutResponse, CalloutFailure>> {
        Box::pin(async { Err(CalloutFailure::Timeout) })
    }

    fn shared(&self) -> &SharedData {
        &self.shared
    }

    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn queues(&self) -> &SharedQueues {
        &self.queues
    }

    // What is measured is not what a terminal costs.
    fn log(&self, _: selvedge_wasm::LogLevel, _: &str, _: &str) {}

    fn log_level(&self) -> selvedge_wasm::LogLevel {
        selvedge_wasm::LogLevel::Warn
    }
}

/// What an upstream answers.
pub(super) fn answer() -> CalloutResponse {
    CalloutResponse {
        headers: vec![(Bytes::from_static(b":status"), Bytes::from_static(b"200"))],
        body: Bytes::new(),
        trailers: Vec::new(),
    }
}

type Field = (Cow<'static, str>, Vec<u8>);

/// A request and its response.
#[derive(Debug)]
pub(super) struct Talk {
    fresh: [Vec<Field>; 2],
    fields: [Vec<Field>; 2],
    bodies: [Option<Body>; 2],
    fresh_bodies: [Option<Bytes>; 2],
    /// The response's header is there.
    pub(super) responding: bool,
    changed: [bool; 2],
}

impl Talk {
    /// The request, and the body of each half, if it has one.
    pub(super) fn new(method: &str, path: &str, headers: &[(String, String)], bodies: [Option<Bytes>; 2]) -> Self {
        let field = |name: &str, value: &str| (Cow::Owned(name.to_ascii_lowercase()), value.as_bytes().to_vec());
        let mut request = vec![
            field(":authority", "www.example.com"),
            field(":path", path),
            field(":method", method),
            field(":scheme", "https"),
            field("user-agent", "bench"),
            field("accept", "*/*"),
        ];
        request.extend(headers.iter().map(|(name, value)| field(name, value)));
        let mut response = vec![field(":status", "200"), field("content-type", "text/html")];
        for (fields, body) in [&mut request, &mut response].into_iter().zip(&bodies) {
            fields.extend(body.as_ref().map(|body| field("content-length", &body.len().to_string())));
        }
        let fresh = [request, response];
        Self {
            fields: fresh.clone(),
            fresh,
            bodies: [None, None],
            fresh_bodies: bodies,
            responding: false,
            changed: [false; 2],
        }
    }

    /// Begins anew. Costs next to nothing where nothing was changed.
    pub(super) fn reset(&mut self) {
        self.responding = false;
        for half in 0..2 {
            if std::mem::take(&mut self.changed[half]) {
                self.fields[half].clone_from(&self.fresh[half]);
            }
            self.bodies[half] = None;
        }
    }

    /// The bytes of a half's body are there; how many. `None`: it has none.
    pub(super) fn body_comes(&mut self, half: usize) -> Option<usize> {
        let bytes = self.fresh_bodies[half].clone()?;
        let length = bytes.len();
        self.bodies[half] = Some(Body::from(bytes));
        Some(length)
    }

    pub(super) fn has_body(&self, half: usize) -> bool {
        self.fresh_bodies[half].is_some()
    }

    fn half(&self, map: HeaderMap) -> Option<usize> {
        match map {
            HeaderMap::Request => Some(0),
            HeaderMap::Response if self.responding => Some(1),
            HeaderMap::Response | HeaderMap::RequestTrailers | HeaderMap::ResponseTrailers => None,
        }
    }

    fn writable(&mut self, map: HeaderMap) -> Result<&mut Vec<Field>, ExchangeError> {
        // What is set of a response before it comes is kept until then.
        let half = if map == HeaderMap::Response { Some(1) } else { self.half(map) };
        let half = half.ok_or(ExchangeError::Unavailable)?;
        self.changed[half] = true;
        Ok(&mut self.fields[half])
    }
}

impl Exchange for Talk {
    fn visit(&self, map: HeaderMap, visit: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        let Some(half) = self.half(map) else { return false };
        self.fields[half].iter().for_each(|(name, value)| visit(name.as_bytes(), value));
        true
    }

    fn count(&self, map: HeaderMap) -> u32 {
        self.half(map).map_or(0, |half| u32::try_from(self.fields[half].len()).unwrap_or(u32::MAX))
    }

    fn header(&self, map: HeaderMap, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        let fields = &self.fields[self.half(map)?];
        let name = if name.eq_ignore_ascii_case(b"host") { &b":authority"[..] } else { name };
        fields
            .iter()
            .find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name))
            .map(|(_, value)| Cow::Borrowed(&value[..]))
    }

    fn set_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError> {
        let fields = self.writable(map)?;
        match fields.iter_mut().find(|(known, _)| known.as_bytes().eq_ignore_ascii_case(name)) {
            Some((_, old)) => {
                old.clear();
                old.extend_from_slice(value);
            }
            None => fields.push((Cow::Owned(String::from_utf8_lossy(name).into_owned()), value.to_vec())),
        }
        Ok(())
    }

    fn add_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError> {
        self.writable(map)?.push((Cow::Owned(String::from_utf8_lossy(name).into_owned()), value.to_vec()));
        Ok(())
    }

    fn remove_header(&mut self, map: HeaderMap, name: &[u8]) -> Result<(), ExchangeError> {
        self.writable(map)?.retain(|(known, _)| !known.as_bytes().eq_ignore_ascii_case(name));
        Ok(())
    }

    fn replace_headers(&mut self, map: HeaderMap, pairs: &[(&[u8], &[u8])]) -> Result<(), ExchangeError> {
        let name = |name: &[u8]| Cow::Owned(String::from_utf8_lossy(name).to_ascii_lowercase());
        *self.writable(map)? = pairs.iter().map(|(known, value)| (name(known), value.to_vec())).collect();
        Ok(())
    }

    fn body(&mut self, which: Buffer) -> Option<&mut Body> {
        match which {
            Buffer::Request => self.bodies[0].as_mut(),
            Buffer::Response => self.bodies[1].as_mut(),
            Buffer::Downstream | Buffer::Upstream => None,
        }
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        match path {
            ["source", "address"] => Some(b"192.0.2.1:40000".to_vec()),
            ["request", "path"] => Some(self.header(HeaderMap::Request, b":path")?.into_owned()),
            ["request", "method"] => Some(self.header(HeaderMap::Request, b":method")?.into_owned()),
            _ => None,
        }
    }

    fn set_property(&mut self, _: &[&str], _: &[u8]) -> Result<(), ExchangeError> {
        Ok(())
    }
}
