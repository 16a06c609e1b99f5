//! What it costs to keep requests apart: a VM that they share, a fresh instance for each, an instance from a snapshot; and to load a module
//! whose compiled code is on disk.
//!
//! The guests are `touch`, which reads a header and sets one on either side, and `dear`, which works for about 200 ms when it is
//! configured. `make bench-micro` builds them first. Figures are CPU time of this thread, so that a busy machine changes them little.

#![allow(clippy::print_stdout, reason = "its figures are what it is for")]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use selvedge_benches::{Alone, Few, guest};
use selvedge_wasm::{
    CallError, Engine, EngineOptions, Host, Isolation, Limits, Module, ModuleOrigin, Plugin, PluginOptions, Snapshots,
};

fn main() -> Result<()> {
    let engine = Engine::new(EngineOptions::default())?;
    let host: Arc<dyn Host> = Arc::new(Alone::default());
    let touch = Module::load(&engine, "touch", &guest("touch"))?;
    let dear = Module::load(&engine, "dear", &guest("dear"))?;
    println!("touch: {} KiB, dear: {} KiB", guest("touch").len() >> 10, guest("dear").len() >> 10);

    let start = |module: &Arc<Module>, isolation, snapshot, config: &'static str| {
        let limits = Limits { cpu: Duration::from_secs(5), ..Limits::default() };
        let config = Bytes::from(config);
        let options = PluginOptions { workers: 1, isolation, snapshot, config, limits, ..PluginOptions::default() };
        Plugin::start(Arc::clone(module), options, Arc::clone(&host))
    };
    let mut few = Few::new();
    println!("{:60} {:>8} {:>8} {:>8}", "CPU time of one", "min", "median", "max");

    for (filters, name) in [(1, "worker/one filter"), (5, "worker/five filters")] {
        let plugins = (0..filters)
            .map(|_| start(&touch, Isolation::Worker, Snapshots::Auto, ""))
            .collect::<Result<Vec<_>, _>>()?;
        measure(name, || through(black_box(&plugins), &mut few));
    }

    let fresh = [start(&touch, Isolation::Request, Snapshots::Never, "")?];
    measure("request/started for each, one filter", || through(black_box(&fresh), &mut few));
    let snapshot = [start(&touch, Isolation::Request, Snapshots::Always, "")?];
    measure("request/from a snapshot, one filter", || through(black_box(&snapshot), &mut few));
    measure("request/instance from a snapshot alone", || snapshot[0].open_stream(0));

    let began = Instant::now();
    let configured = [start(&dear, Isolation::Request, Snapshots::Auto, "150000000")?];
    println!("dear: started, and its snapshot compiled, in {:?}", began.elapsed());
    ensure!(configured[0].is_snapshot(), "dear runs from a snapshot");
    measure("request/from a snapshot, dear to configure", || through(black_box(&configured), &mut few));
    measure("request/instance from a snapshot alone, dear to configure", || configured[0].open_stream(0));

    let folder = tempfile::tempdir()?;
    let module_cache = Some(folder.path().join("modules"));
    let engine = Engine::new(EngineOptions { module_cache, ..EngineOptions::default() })?;
    let wasm = guest("touch");
    Module::load(&engine, "touch", &wasm)?;
    ensure!(Module::load(&engine, "touch", &wasm)?.origin() == ModuleOrigin::DiskCache, "it has been compiled");
    measure_of(4, "module/touch, compiled code from disk", || Module::load(&engine, "touch", black_box(&wasm)));
    Ok(())
}

/// As [`measure_of`], for what takes microseconds.
fn measure<T>(name: &str, run: impl FnMut() -> T) {
    measure_of(400, name, run);
}

/// Runs something in batches of `runs` and prints the CPU time of one run: of the fastest batch, the median, and the slowest.
fn measure_of<T>(runs: u32, name: &str, mut run: impl FnMut() -> T) {
    const BATCHES: usize = 61;
    let mut batches: Vec<f64> = (0..BATCHES)
        .map(|_| {
            let before = cpu_time();
            for _ in 0..runs {
                black_box(run());
            }
            (cpu_time() - before).as_secs_f64() * 1e6 / f64::from(runs)
        })
        .skip(1)
        .collect();
    batches.sort_by(f64::total_cmp);
    let (first, median, last) = (batches[0], batches[batches.len() / 2], batches[batches.len() - 1]);
    println!("{name:60} {first:8.2} {median:8.2} {last:8.2} us");
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// One request through some filters, from their contexts' creation to their deletion.
fn through(plugins: &[Arc<Plugin>], few: &mut Few) -> Result<(), CallError> {
    let mut streams = [const { None }; 5];
    for (plugin, stream) in plugins.iter().zip(&mut streams) {
        stream.insert(plugin.open_stream(0)?).on_request_headers(few, true)?;
    }
    for stream in streams.iter_mut().flatten().rev() {
        stream.on_response_headers(few, true)?;
    }
    for stream in streams.iter_mut().flatten() {
        stream.finish(few)?;
    }
    few.reset();
    Ok(())
}
