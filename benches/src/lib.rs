//! Micro benches and side-by-side load runs.
//!
//! - `benches/*.rs`: criterion benches of the parts every request goes through (`make bench-micro`).
//! - `load/run.py`: the node and its peers under load, each with one worker, in front of the same origin (`make bench`).
//! - `load/added.py`: what filters add to a request, beside Envoy (`make bench-added`).

#![allow(clippy::panic, reason = "a bench that cannot run says why and ends")]

use std::borrow::Cow;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use futures::future::BoxFuture;
use selvedge_wasm::{
    Body, Buffer, Callout, CalloutFailure, CalloutResponse, Exchange, ExchangeError, HeaderMap, Host, Metrics,
    SharedData, SharedQueues,
};

/// The node's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A test guest that `make bench-guest` has built.
///
/// # Panics
/// It is not there.
#[must_use]
pub fn guest(name: &str) -> Vec<u8> {
    let folder = env::var_os("SELVEDGE_BENCH_GUESTS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests/wasm32-wasip1/wasm/examples"),
        PathBuf::from,
    );
    let path = folder.join(format!("{name}.wasm"));
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}; `make bench-micro` builds it", path.display()))
}

/// A host with nothing outside.
#[derive(Debug, Default)]
pub struct Alone {
    shared: SharedData,
    metrics: Metrics,
    queues: SharedQueues,
}

impl Host for Alone {
    fn has_upstream(&self, _: &str) -> bool {
        false
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
}

/// An exchange with nothing in it: the trivial guest asks for nothing.
#[derive(Debug)]
pub struct Empty;

impl Exchange for Empty {
    fn visit(&self, _: HeaderMap, _: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        false
    }

    fn header(&self, _: HeaderMap, _: &[u8]) -> Option<Cow<'_, [u8]>> {
        None
    }

    fn set_header(&mut self, _: HeaderMap, _: &[u8], _: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn add_header(&mut self, _: HeaderMap, _: &[u8], _: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn remove_header(&mut self, _: HeaderMap, _: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn replace_headers(&mut self, _: HeaderMap, _: &[(&[u8], &[u8])]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn body(&mut self, _: Buffer) -> Option<&mut Body> {
        None
    }

    fn property(&self, _: &[&str]) -> Option<Vec<u8>> {
        None
    }

    fn set_property(&mut self, _: &[&str], _: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }
}

/// An exchange with a few headers.
#[derive(Debug, Default)]
pub struct Few {
    request: Vec<(&'static str, Vec<u8>)>,
    response: Vec<(&'static str, Vec<u8>)>,
}

impl Few {
    /// A GET and its answer.
    #[must_use]
    pub fn new() -> Self {
        let pair = |name, value: &str| (name, value.as_bytes().to_vec());
        Self {
            request: vec![
                pair(":authority", "www.example.com"),
                pair(":path", "/index.html?page=7"),
                pair(":method", "GET"),
                pair(":scheme", "https"),
                pair("user-agent", "bench"),
                pair("accept", "*/*"),
            ],
            response: vec![pair(":status", "200"), pair("content-type", "text/html"), pair("content-length", "1024")],
        }
    }

    /// Takes what guests have set away again.
    pub fn reset(&mut self) {
        self.request.truncate(6);
        self.response.truncate(3);
    }

    fn map(&mut self, map: HeaderMap) -> &mut Vec<(&'static str, Vec<u8>)> {
        if map == HeaderMap::Request { &mut self.request } else { &mut self.response }
    }
}

/// The names that guests set, so that setting one allocates nothing but its value.
const SET: &[&str] = &["x-path-length", "x-touched", "x-dear"];

impl Exchange for Few {
    fn visit(&self, map: HeaderMap, visit: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        let pairs = if map == HeaderMap::Request { &self.request } else { &self.response };
        pairs.iter().for_each(|(name, value)| visit(name.as_bytes(), value));
        true
    }

    fn header(&self, map: HeaderMap, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        let pairs = if map == HeaderMap::Request { &self.request } else { &self.response };
        pairs.iter().find(|(known, _)| known.as_bytes() == name).map(|(_, value)| Cow::Borrowed(&value[..]))
    }

    fn set_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError> {
        self.add_header(map, name, value)
    }

    fn add_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError> {
        let name = SET.iter().find(|known| known.as_bytes() == name).ok_or(ExchangeError::Invalid)?;
        self.map(map).push((name, value.to_vec()));
        Ok(())
    }

    fn remove_header(&mut self, _: HeaderMap, _: &[u8]) -> Result<(), ExchangeError> {
        Ok(())
    }

    fn replace_headers(&mut self, _: HeaderMap, _: &[(&[u8], &[u8])]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn body(&mut self, _: Buffer) -> Option<&mut Body> {
        None
    }

    fn property(&self, _: &[&str]) -> Option<Vec<u8>> {
        None
    }

    fn set_property(&mut self, _: &[&str], _: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }
}
