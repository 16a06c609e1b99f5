//! What a filter costs before it does anything: the way into the guest and back, for every callback of a request.
//!
//! Runs the same trivial guest as the load runs, which overrides nothing and continues everywhere. `make bench-micro` builds it first.

use std::hint::black_box;
use std::sync::Arc;

use anyhow::{Result, ensure};
use criterion::Criterion;
use selvedge_benches::{Alone, Empty, guest};
use selvedge_wasm::{Action, CallError, Engine, EngineOptions, Host, Module, Plugin, PluginOptions};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let wasm = guest("noop");
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
    stream.finish(&mut exchange)?;
    Ok(outcome.action)
}
