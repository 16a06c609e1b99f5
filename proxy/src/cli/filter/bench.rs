//! `selvedge filter bench`: what a filter costs.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use selvedge_wasm::{
    Action, Arrival, CallError, Effects, Engine, EngineOptions, Isolation, Limits, Module, Outcome, Outgoing, Phases,
    Plugin, PluginOptions, Snapshots, Stream,
};
use serde_json::{Value, json};

use super::super::print;
use super::desk::{Desk, Talk, answer};
use super::measure::{self, Figures};
use super::module::Wasm;
use super::{Done, Trouble, kib, settings};
use crate::{error_chain, plan};

#[derive(Args)]
pub(in crate::cli) struct BenchArgs {
    /// The module.
    #[arg(default_value = ".")]
    module: String,
    /// Its settings: JSON or YAML, or @FILE.
    #[arg(long, value_name = "SETTINGS")]
    config: Option<String>,
    /// The request: `METHOD PATH`, or a path alone.
    #[arg(long, value_name = "REQUEST", default_value = "GET /index.html?page=7")]
    request: String,
    /// A header field of it. May be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = super::super::route::header)]
    headers: Vec<(String, String)>,
    /// Bytes of the request's body; without one the header ends the request.
    #[arg(long, value_name = "BYTES")]
    request_body: Option<usize>,
    /// Bytes of the response's body.
    #[arg(long, value_name = "BYTES")]
    response_body: Option<usize>,
    /// For machines.
    #[arg(long)]
    json: bool,
}

/// What was found.
struct Measured {
    compile: Figures,
    load: Figures,
    start: Figures,
    exchange: Figures,
    isolated: Figures,
    snapshot: bool,
    /// By callback, in the order of an exchange.
    callbacks: Vec<(&'static str, Figures)>,
    memory: Option<usize>,
    compiled: u64,
    replied: bool,
}

pub(super) fn run(args: &BenchArgs) -> Done {
    let wasm = Wasm::find(&args.module)?;
    let anatomy = wasm.anatomy()?;
    let load = measure::load();
    let measured = measure_all(args, &wasm)?;
    if args.json {
        print(format_args!("{:#}\n", as_json(args, &wasm, anatomy.size, &measured, load)));
    } else {
        print(text(args, &wasm, anatomy.size, &measured, load));
    }
    Ok(ExitCode::SUCCESS)
}

fn measure_all(args: &BenchArgs, wasm: &Wasm) -> Result<Measured, Trouble> {
    let trouble = |error: &dyn std::error::Error| Trouble::new(format!("{}: {}", wasm.place(), error_chain(error)));
    let config = args.config.as_deref().map(|text| settings("--config", text)).transpose()?.unwrap_or_default();
    let config = plan::as_configuration(&config);
    let folder = Folder::new()?;
    let cached = Engine::new(EngineOptions { module_cache: Some(folder.0.clone()), ..EngineOptions::default() })
        .map_err(|error| trouble(&error))?;
    let plain = Engine::new(EngineOptions::default()).map_err(|error| trouble(&error))?;

    // Compiling is parallel: wall-clock time is what a reload waits for. A large module is compiled once.
    let mut compiles = Vec::new();
    let began = Instant::now();
    while compiles.len() < 5 && (compiles.is_empty() || began.elapsed() < Duration::from_secs(2)) {
        let before = Instant::now();
        Module::load(&plain, &wasm.name, &wasm.bytes).map_err(|error| trouble(&error))?;
        compiles.push(before.elapsed().as_secs_f64() * 1e6);
    }
    let compile = Figures::of(compiles);
    let module = Module::load(&cached, &wasm.name, &wasm.bytes).map_err(|error| trouble(&error))?;
    let load = measure::slow(15, || Module::load(&cached, &wasm.name, &wasm.bytes)).map_err(|error| trouble(&error))?;
    let compiled = folder.size();

    let host = Arc::new(Desk::default());
    let start = |isolation| {
        // A filter that is slow is to be measured, not ended.
        let limits = Limits { cpu: Duration::from_secs(10), deadline: Duration::from_secs(20), ..Limits::default() };
        let options = PluginOptions {
            name: wasm.name.clone(),
            config: config.clone(),
            workers: 1,
            isolation,
            snapshot: Snapshots::Auto,
            limits,
            ..PluginOptions::default()
        };
        Plugin::start(Arc::clone(&module), options, host.clone())
    };
    let starts = measure::slow(31, || start(Isolation::Worker)).map_err(|error| trouble(&error))?;

    let plugin = start(Isolation::Worker).map_err(|error| trouble(&error))?;
    let mut bench = Bench { talk: talk(args), phases: module.phases(), clock: None, replied: false };
    let exchange = measure::quick(|| bench.exchange(&plugin)).map_err(|error| trouble(&error))?;
    let memory = plugin.memory(0);
    let callbacks = bench.callbacks(&plugin).map_err(|error| trouble(&error))?;

    let alone = start(Isolation::Request).map_err(|error| trouble(&error))?;
    let isolated = measure::quick(|| bench.exchange(&alone)).map_err(|error| trouble(&error))?;
    let (snapshot, replied) = (alone.is_snapshot(), bench.replied);
    Ok(Measured { compile, load, start: starts, exchange, isolated, snapshot, callbacks, memory, compiled, replied })
}

fn talk(args: &BenchArgs) -> Talk {
    let (method, path) = args.request.trim().split_once(' ').unwrap_or(("GET", args.request.trim()));
    let body = |size: Option<usize>| size.map(|size| Bytes::from(vec![b'x'; size]));
    Talk::new(method, path, &args.headers, [body(args.request_body), body(args.response_body)])
}

/// One exchange after the other.
struct Bench {
    talk: Talk,
    phases: Phases,
    /// Where the time of each callback goes while callbacks are measured.
    clock: Option<Clock>,
    replied: bool,
}

#[derive(Default)]
struct Clock {
    /// In nanoseconds of this batch.
    spent: BTreeMap<usize, u128>,
}

/// The parts of an exchange, in their order.
const PARTS: [&str; 7] = [
    "context_create",
    "request_headers",
    "request_body",
    "response_headers",
    "response_body",
    "http_call_response",
    "done, log, delete",
];

/// So many callouts of one callback are answered.
const CALLOUTS_MAX: usize = 32;

impl Bench {
    /// One request and its response.
    fn exchange(&mut self, plugin: &Arc<Plugin>) -> Result<(), CallError> {
        self.talk.reset();
        let mut stream = self.timed(0, |_| plugin.open_stream(0))?;
        let replied = self.half(&mut stream, 0)?;
        // A filter that has answered sees the response half of its own answer too.
        self.talk.responding = true;
        self.replied |= replied;
        self.half(&mut stream, 1)?;
        self.timed(6, |bench| stream.finish(&mut bench.talk))
    }

    /// True: the filter has answered itself.
    fn half(&mut self, stream: &mut Stream, half: usize) -> Result<bool, CallError> {
        let end = !self.talk.has_body(half);
        let outcome = self.timed(1 + 2 * half, |bench| match half {
            0 => stream.on_request_headers(&mut bench.talk, end),
            _ => stream.on_response_headers(&mut bench.talk, end),
        })?;
        if self.settle(stream, outcome)? {
            return Ok(true);
        }
        let phase = if half == 0 { Phases::REQUEST_BODY } else { Phases::RESPONSE_BODY };
        if end || !self.phases.contains(phase) {
            return Ok(false);
        }
        let Some(length) = self.talk.body_comes(half) else { return Ok(false) };
        let outcome = self.timed(2 + 2 * half, |bench| match half {
            0 => stream.on_request_body(&mut bench.talk, length, true),
            _ => stream.on_response_body(&mut bench.talk, length, true),
        })?;
        self.settle(stream, outcome)
    }

    /// Answers callouts. True: the filter has answered itself.
    fn settle(&mut self, stream: &mut Stream, outcome: Outcome) -> Result<bool, CallError> {
        let Outcome { action, effects } = outcome;
        if effects.reply.is_some() {
            return Ok(true);
        }
        if action == Action::Continue && effects.outgoing.is_empty() {
            return Ok(false);
        }
        let mut waiting = calls(effects);
        for _ in 0..CALLOUTS_MAX {
            let Some(id) = waiting.pop() else { break };
            let outcome = self.timed(5, |bench| stream.on_arrival(&mut bench.talk, Arrival::Http(id, Ok(answer()))))?;
            if outcome.effects.reply.is_some() {
                return Ok(true);
            }
            waiting.extend(calls(outcome.effects));
        }
        Ok(false)
    }

    fn timed<T>(&mut self, part: usize, run: impl FnOnce(&mut Self) -> T) -> T {
        if self.clock.is_none() {
            return run(self);
        }
        let before = Instant::now();
        let done = run(self);
        let took = before.elapsed().as_nanos();
        if let Some(clock) = &mut self.clock {
            *clock.spent.entry(part).or_default() += took;
        }
        done
    }

    /// What each callback takes, without what reading the clock takes.
    fn callbacks(&mut self, plugin: &Arc<Plugin>) -> Result<Vec<(&'static str, Figures)>, CallError> {
        const BATCHES: u32 = 41;
        const RUNS: u32 = 500;
        let mut measured: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        let clock = {
            let before = Instant::now();
            let sum: u128 = (0..RUNS).map(|_| Instant::now().elapsed().as_nanos()).sum();
            // Half of two readings lies between them.
            #[allow(clippy::cast_precision_loss, reason = "nanoseconds of some microseconds")]
            let between = sum as f64 / f64::from(RUNS);
            between.min(before.elapsed().as_secs_f64() * 1e9 / f64::from(RUNS))
        };
        // Bounded by time as well: some filters take long.
        let began = Instant::now();
        for batch in 0..BATCHES {
            self.clock = Some(Clock::default());
            let mut runs = 0_u32;
            while runs < RUNS && (runs == 0 || began.elapsed() < Duration::from_secs(4)) {
                self.exchange(plugin)?;
                runs += 1;
            }
            let spent = self.clock.take().unwrap_or_default().spent;
            for (part, nanos) in spent.into_iter().filter(|_| batch > 0) {
                #[allow(clippy::cast_precision_loss, reason = "nanoseconds of a batch")]
                let one = nanos as f64 / f64::from(runs) - clock;
                measured.entry(part).or_default().push(one.max(0.0) / 1000.0);
            }
        }
        Ok(measured.into_iter().map(|(part, figures)| (PARTS[part], Figures::of(figures))).collect())
    }
}

fn calls(effects: Effects) -> Vec<selvedge_wasm::CalloutId> {
    let http = |outgoing| match outgoing {
        Outgoing::Http(callout) => Some(callout.id),
        _ => None,
    };
    effects.outgoing.into_iter().filter_map(http).collect()
}

fn text(args: &BenchArgs, wasm: &Wasm, size: usize, measured: &Measured, load: Option<f64>) -> String {
    let mut text = String::new();
    let _ = writeln!(text, "{}  {}\n{}", wasm.place(), kib(size), measure::machine());
    if cfg!(debug_assertions) {
        text.push_str("this is a debug build of selvedge: its figures say little\n");
    }
    if let Some(load) = load.filter(|load| *load > 1.0) {
        let _ = writeln!(text, "the machine is busy (load {load:.1}): figures are too high");
    }
    let _ = writeln!(text, "\n{:34} {:>10} {:>10} {:>10}", "us", "min", "median", "max");
    let mut line = |name: &str, figures: Figures| {
        let _ = writeln!(text, "{name:34} {:>10.2} {:>10.2} {:>10.2}", figures.min, figures.median, figures.max);
    };
    line("compile (wall clock)", measured.compile);
    line("load compiled code from disk", measured.load);
    line("start and configure a VM", measured.start);
    line("request on a fresh instance", measured.isolated);
    line("request on a warm instance", measured.exchange);
    for (name, figures) in &measured.callbacks {
        line(&format!("  {name}"), *figures);
    }
    let _ = writeln!(text);
    if let Some(memory) = measured.memory {
        let _ = writeln!(
            text,
            "memory of an instance {}, compiled code {}",
            kib(memory),
            kib(usize::try_from(measured.compiled).unwrap_or(usize::MAX))
        );
    }
    let _ = writeln!(
        text,
        "request: {}; a fresh instance {}{}",
        args.request,
        if measured.snapshot {
            "begins from a snapshot of the configured filter"
        } else {
            "starts and configures the filter"
        },
        if measured.replied { "; the filter answers it itself" } else { "" }
    );
    text.push_str("CPU time of one thread, in batches after a warm-up; a request is the whole exchange, from context_create to delete.\n");
    text
}

fn as_json(args: &BenchArgs, wasm: &Wasm, size: usize, measured: &Measured, load: Option<f64>) -> Value {
    let callbacks: serde_json::Map<String, Value> =
        measured.callbacks.iter().map(|(name, figures)| ((*name).to_owned(), figures.json())).collect();
    json!({
        "module": wasm.place(),
        "bytes": size,
        "machine": measure::machine(),
        "load": load,
        "version": env!("CARGO_PKG_VERSION"),
        "debug_build": cfg!(debug_assertions),
        "request": args.request,
        "unit": "us",
        "cold": {
            "compile": measured.compile.json(), "load": measured.load.json(), "start": measured.start.json(),
        },
        "fresh_instance": { "request": measured.isolated.json(), "snapshot": measured.snapshot },
        "warm": { "request": measured.exchange.json(), "callbacks": callbacks },
        "memory": { "instance": measured.memory, "compiled": measured.compiled },
        "filter_answers": measured.replied,
    })
}

/// A folder that is gone with this.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Trouble> {
        let path =
            std::env::temp_dir().join(format!("selvedge-bench-{}-{:016x}", std::process::id(), fastrand::u64(..)));
        std::fs::create_dir(&path).map_err(|error| Trouble::new(format!("{}: {error}", path.display())))?;
        Ok(Self(path))
    }

    /// Bytes of the files in it.
    fn size(&self) -> u64 {
        let files = std::fs::read_dir(&self.0).into_iter().flatten().filter_map(Result::ok);
        files.filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
