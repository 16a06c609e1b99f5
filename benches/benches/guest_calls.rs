//! What a filter costs before it does anything: the way into the guest and back, for every callback of a request.
//!
//! Runs the same trivial guest as the load runs, which overrides nothing and continues everywhere. `make bench-micro` builds it first.

use std::borrow::Cow;
use std::env;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use criterion::Criterion;
use futures::future::BoxFuture;
use selvedge_wasm::{
    Action, Body, Buffer, CallError, Callout, CalloutFailure, CalloutResponse, Engine, EngineOptions, Exchange,
    ExchangeError, HeaderMap, Host, Metrics, Module, Plugin, PluginOptions, SharedData, SharedQueues,
};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let wasm = trivial_guest()?;
    let cache = tempfile::tempdir()?;
    let engine = Engine::new(EngineOptions { module_cache: Some(cache.path().into()), ..EngineOptions::default() })?;
    let module = Module::load(&engine, "trivial", &wasm)?;
    let host: Arc<dyn Host> = Arc::new(Alone::default());
    let plugin = start(&module, &host)?;
    ensure!(request(&plugin, Bodies::None)? == Action::Continue, "the trivial guest paused");

    criterion.bench_function("guest/request, headers only", |b| b.iter(|| request(black_box(&plugin), Bodies::None)));
    criterion.bench_function("guest/request, with bodies", |b| b.iter(|| request(black_box(&plugin), Bodies::Both)));
    criterion.bench_function("guest/new VM, started and configured", |b| b.iter(|| start(&module, &host)));
    criterion.bench_function("guest/module from the disk cache", |b| {
        b.iter(|| Module::load(&engine, "trivial", black_box(&wasm)));
    });
    Ok(())
}

fn trivial_guest() -> Result<Vec<u8>> {
    let path = env::var_os("SELVEDGE_BENCH_GUEST").map_or_else(
        || {
            let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            project.join("target/guests/wasm32-wasip1/wasm/examples/noop.wasm")
        },
        PathBuf::from,
    );
    fs::read(&path).with_context(|| format!("read {}; `make bench-micro` builds it", path.display()))
}

fn start(module: &Arc<Module>, host: &Arc<dyn Host>) -> Result<Arc<Plugin>> {
    let options = PluginOptions { name: "trivial".into(), workers: 1, ..PluginOptions::default() };
    Ok(Plugin::start(Arc::clone(module), options, Arc::clone(host))?)
}

/// Which bodies the request and its response have, in one chunk each.
#[derive(Clone, Copy, PartialEq)]
enum Bodies {
    None,
    Both,
}

/// One request through the guest, from its context's creation to its deletion; the last action.
fn request(plugin: &Arc<Plugin>, bodies: Bodies) -> Result<Action, CallError> {
    let none = bodies == Bodies::None;
    let mut exchange = Empty;
    let mut stream = plugin.open_stream(0)?;
    stream.on_request_headers(&mut exchange, none)?;
    if !none {
        stream.on_request_body(&mut exchange, 1024, true)?;
    }
    let mut outcome = stream.on_response_headers(&mut exchange, none)?;
    if !none {
        outcome = stream.on_response_body(&mut exchange, 1024, true)?;
    }
    stream.finish(&mut exchange).unwrap();
    Ok(outcome.action)
}

/// A host with nothing outside.
#[derive(Default)]
struct Alone {
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
struct Empty;

impl Exchange for Empty {
    fn visit(&self, _: HeaderMap, _: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        false
    }

    fn header(&self, _: HeaderMap, _: &str) -> Option<Cow<'_, [u8]>> {
        None
    }

    fn set_header(&mut self, _: HeaderMap, _: &str, _: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn add_header(&mut self, _: HeaderMap, _: &str, _: &[u8]) -> Result<(), ExchangeError> {
        Err(ExchangeError::Unavailable)
    }

    fn remove_header(&mut self, _: HeaderMap, _: &str) -> Result<(), ExchangeError> {
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
