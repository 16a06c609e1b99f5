//! The compiled guest: a module on the shipped host.

use std::borrow::Cow;
use std::mem;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use futures::future::BoxFuture;
use selvedge_sdk::Reply;
use selvedge_wasm::{
    Action, Arrival, Body, Buffer, CallError, CalloutFailure, CalloutId, CalloutResponse, Engine, EngineOptions,
    ExchangeError, HeaderMap, Host, Limits, LogLevel, MetricValue, Metrics, Module, Outgoing, Phases, Plugin,
    PluginOptions, SharedData, SharedQueues,
};

use crate::exchange::{Exchange, Half, Refused, Side};
use crate::{Callout, Guest, Seen, Step, Stream, World};

pub(crate) struct WasmGuest {
    plugin: Arc<Plugin>,
    host: Arc<TestHost>,
}

impl WasmGuest {
    pub(crate) fn start(module: &[u8], config: &[u8], world: &World) -> Result<Self, String> {
        let host = Arc::new(TestHost {
            world: world.clone(),
            shared: SharedData::new(),
            metrics: Metrics::new(),
            queues: SharedQueues::new(),
        });
        let module = compiled(module)?;
        let options = PluginOptions {
            name: "filter".into(),
            root_id: String::new(),
            vm_id: String::new(),
            vm_config: Bytes::new(),
            config: Bytes::copy_from_slice(config),
            environment: Vec::new(),
            limits: Limits::default(),
            workers: 1,
            ..PluginOptions::default()
        };
        let plugin = Plugin::start(module, options, host.clone())
            .map_err(|error| format!("{error}\n{}", world.lines().join("\n")))?;
        Ok(Self { plugin, host })
    }
}

/// Compiles a module once per process, as a node does: it takes longer than most tests.
fn compiled(bytes: &[u8]) -> Result<Arc<Module>, String> {
    /// One engine for all tests of a process: it owns a ticker thread, and nothing in it depends on a test.
    static ENGINE: LazyLock<Result<Arc<Engine>, String>> =
        LazyLock::new(|| Engine::new(EngineOptions::default()).map_err(|error| error.to_string()));
    static MODULES: Mutex<Vec<(Vec<u8>, Arc<Module>)>> = Mutex::new(Vec::new());

    let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, module)) = modules.iter().find(|(known, _)| known == bytes) {
        return Ok(module.clone());
    }
    let module = Module::load(&ENGINE.clone()?, "filter", bytes).map_err(|error| error.to_string())?;
    modules.push((bytes.to_vec(), module.clone()));
    Ok(module)
}

impl Guest for WasmGuest {
    fn open(&self) -> Box<dyn Stream> {
        match self.plugin.open_stream(0) {
            Ok(stream) => {
                Box::new(WasmStream { phases: self.plugin.module().phases(), stream, host: self.host.clone() })
            }
            Err(error) => panic!("no stream could be opened: {error}"),
        }
    }

    fn tick(&self) {
        unreachable!("`Tester::tick` exists for native filters only");
    }

    fn metric(&self, name: &str) -> Option<u64> {
        let metric = self.host.metrics.snapshot().into_iter().find(|metric| metric.name == name)?;
        Some(match metric.value {
            MetricValue::Counter(value) => value,
            MetricValue::Gauge(value) => u64::try_from(value).unwrap_or(0),
            MetricValue::Histogram { count, .. } => count,
        })
    }
}

struct WasmStream {
    stream: selvedge_wasm::Stream,
    phases: Phases,
    host: Arc<TestHost>,
}

impl WasmStream {
    fn run(
        &mut self,
        exchange: &mut Exchange,
        callback: impl FnOnce(&mut selvedge_wasm::Stream, &mut Lent) -> Result<selvedge_wasm::Outcome, CallError>,
    ) -> Step {
        let mut lent = Lent::of(exchange);
        let outcome = callback(&mut self.stream, &mut lent);
        lent.give_back(exchange);
        match outcome {
            Ok(outcome) => step(outcome),
            Err(error) => panic!("the filter failed: {error}\n{}", self.host.world.lines().join("\n")),
        }
    }
}

impl Stream for WasmStream {
    fn request_headers(&mut self, exchange: &mut Exchange, end: bool) -> Step {
        self.run(exchange, |stream, lent| stream.on_request_headers(lent, end))
    }

    fn request_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Step {
        self.run(exchange, |stream, lent| stream.on_request_body(lent, held, end))
    }

    fn response_headers(&mut self, exchange: &mut Exchange, end: bool) -> Step {
        self.run(exchange, |stream, lent| stream.on_response_headers(lent, end))
    }

    fn response_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Step {
        self.run(exchange, |stream, lent| stream.on_response_body(lent, held, end))
    }

    fn request_trailers(&mut self, exchange: &mut Exchange) -> Step {
        self.run(exchange, |stream, lent| stream.on_request_trailers(lent))
    }

    fn response_trailers(&mut self, exchange: &mut Exchange) -> Step {
        self.run(exchange, |stream, lent| stream.on_response_trailers(lent))
    }

    fn answered(&mut self, exchange: &mut Exchange, token: u32, answer: Option<&Reply>) -> Step {
        let result = answer.map(response).ok_or_else(|| CalloutFailure::Connect("the test has taken it down".into()));
        self.run(exchange, |stream, lent| stream.on_arrival(lent, Arrival::Http(CalloutId(token), result)))
    }

    fn finish(&mut self, exchange: &mut Exchange) {
        let mut lent = Lent::of(exchange);
        self.stream.finish(&mut lent).expect("a filter under test has its VM to itself");
        lent.give_back(exchange);
    }

    fn bodies(&self) -> (bool, bool) {
        (self.phases.contains(Phases::REQUEST_BODY), self.phases.contains(Phases::RESPONSE_BODY))
    }
}

fn step(outcome: selvedge_wasm::Outcome) -> Step {
    let effects = outcome.effects;
    assert!(!effects.close, "the filter resets the exchange, which a test cannot observe");
    Step {
        pause: outcome.action == Action::Pause,
        reply: effects.reply.map(|reply| {
            let made = Reply::new(reply.status).body(reply.body);
            reply.headers.iter().fold(made, |made, (name, value)| made.header(name.as_str(), value))
        }),
        resume_request: effects.resume_request,
        resume_response: effects.resume_response,
        callouts: effects
            .outgoing
            .into_iter()
            .map(|outgoing| match outgoing {
                Outgoing::Http(callout) => asked(callout),
                Outgoing::GrpcOpen(open) => panic!(
                    "the filter opens {} on upstream {}: a tester has no gRPC",
                    open.request.path(),
                    open.request.upstream
                ),
                Outgoing::GrpcSend { .. } | Outgoing::GrpcClose(_) | Outgoing::GrpcCancel(_) => {
                    unreachable!("of an exchange that was opened before")
                }
            })
            .collect(),
    }
}

fn asked(callout: selvedge_wasm::Callout) -> Callout {
    Callout {
        token: callout.id.0,
        seen: Seen {
            upstream: callout.upstream,
            headers: callout
                .headers
                .into_iter()
                .map(|(name, value)| (String::from_utf8_lossy(&name).to_ascii_lowercase(), value.to_vec()))
                .collect(),
            body: callout.body.to_vec(),
        },
    }
}

fn response(reply: &Reply) -> CalloutResponse {
    let status = (Bytes::from_static(b":status"), Bytes::from(reply.status().to_string()));
    let headers = reply
        .headers()
        .iter()
        .map(|(name, value)| (Bytes::from(name.to_ascii_lowercase().into_bytes()), Bytes::copy_from_slice(value)));
    CalloutResponse {
        headers: [status].into_iter().chain(headers).collect(),
        body: Bytes::copy_from_slice(reply.bytes()),
        trailers: Vec::new(),
    }
}

/// The exchange for the length of one callback: the host edits bodies in a form of its own.
struct Lent {
    exchange: Exchange,
    request: Option<Body>,
    response: Option<Body>,
}

impl Lent {
    fn of(exchange: &mut Exchange) -> Self {
        let mut exchange = mem::take(exchange);
        let body = |half: &mut Half| half.held.take().map(|bytes| Body::from(Bytes::from(bytes)));
        Self { request: body(&mut exchange.request), response: body(&mut exchange.response), exchange }
    }

    fn give_back(mut self, exchange: &mut Exchange) {
        self.exchange.request.held = self.request.map(|mut body| body.take().to_vec());
        self.exchange.response.held = self.response.map(|mut body| body.take().to_vec());
        *exchange = self.exchange;
    }

    fn half_mut(&mut self, map: HeaderMap) -> Result<&mut Half, ExchangeError> {
        side(map).map(|side| self.exchange.half_mut(side)).ok_or(ExchangeError::Unavailable)
    }
}

impl selvedge_wasm::Exchange for Lent {
    fn visit(&self, map: HeaderMap, visit: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        let Some(headers) = side(map).and_then(|side| self.exchange.half(side).headers.as_ref()) else { return false };
        for (name, value) in headers {
            visit(name.as_bytes(), value);
        }
        true
    }

    fn header(&self, map: HeaderMap, name: &str) -> Option<Cow<'_, [u8]>> {
        self.exchange.half(side(map)?).header(name).map(Cow::Borrowed)
    }

    fn set_header(&mut self, map: HeaderMap, name: &str, value: &[u8]) -> Result<(), ExchangeError> {
        self.half_mut(map)?.set_header(name, value).map_err(invalid)
    }

    fn add_header(&mut self, map: HeaderMap, name: &str, value: &[u8]) -> Result<(), ExchangeError> {
        self.half_mut(map)?.add_header(name, value).map_err(invalid)
    }

    fn remove_header(&mut self, map: HeaderMap, name: &str) -> Result<(), ExchangeError> {
        self.half_mut(map)?.remove_header(name).map_err(invalid)
    }

    fn replace_headers(&mut self, map: HeaderMap, pairs: &[(&[u8], &[u8])]) -> Result<(), ExchangeError> {
        let half = self.half_mut(map)?;
        let Some(headers) = half.headers.as_mut().filter(|_| !half.sent) else {
            return Err(ExchangeError::Unavailable);
        };
        *headers = pairs
            .iter()
            .map(|(name, value)| (String::from_utf8_lossy(name).to_ascii_lowercase(), value.to_vec()))
            .collect();
        Ok(())
    }

    fn body(&mut self, which: Buffer) -> Option<&mut Body> {
        match which {
            Buffer::Request => self.request.as_mut(),
            Buffer::Response => self.response.as_mut(),
            Buffer::Downstream | Buffer::Upstream => None,
        }
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.exchange.property(path).map(<[u8]>::to_vec)
    }

    fn set_property(&mut self, path: &[&str], value: &[u8]) -> Result<(), ExchangeError> {
        self.exchange.set_property(path, value);
        Ok(())
    }
}

fn invalid(Refused: Refused) -> ExchangeError {
    ExchangeError::Invalid
}

fn side(map: HeaderMap) -> Option<Side> {
    match map {
        HeaderMap::Request => Some(Side::Request),
        HeaderMap::Response => Some(Side::Response),
        HeaderMap::RequestTrailers | HeaderMap::ResponseTrailers => None,
    }
}

struct TestHost {
    world: World,
    shared: SharedData,
    metrics: Metrics,
    queues: SharedQueues,
}

impl Host for TestHost {
    fn has_upstream(&self, name: &str) -> bool {
        self.world.has_upstream(name)
    }

    fn call(&self, _callout: selvedge_wasm::Callout) -> BoxFuture<'static, Result<CalloutResponse, CalloutFailure>> {
        // Callouts without a stream come from the tick loop, which a tester does not run.
        Box::pin(async { Err(CalloutFailure::Reset("no stream".into())) })
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

    fn log(&self, level: LogLevel, _plugin: &str, message: &str) {
        self.world.log(&format!("{level:?}").to_ascii_uppercase(), message);
    }

    fn log_level(&self) -> LogLevel {
        LogLevel::Trace
    }

    fn now(&self) -> SystemTime {
        self.world.now()
    }
}
