//! The native guest: the SDK's runtime on a fake host.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::{Once, PoisonError};
use std::time::{Duration, SystemTime};

use log::Level;
use selvedge_sdk::host::{self, Buffer, Direction, Host, Map, MetricKind, Status};
use selvedge_sdk::runtime::{self, Action, Root};
use selvedge_sdk::{Filter, Reply};

use crate::exchange::{self, Exchange, Fields, Refused, Side};
use crate::grpc;
use crate::guest::{Callout, Guest, NoAnswer, Step, Stream};
use crate::seen::Seen;
use crate::store::{self, FakeStore, Store};
use crate::tester::{Foreign, answer_fields};
use crate::world::World;

pub(crate) struct Native<F: Filter> {
    config: Vec<u8>,
    /// `None`: it has panicked, and is made anew when it is needed, as the shipped host makes a new VM.
    root: RefCell<Option<Root<F>>>,
    host: Rc<FakeHost>,
}

impl<F: Filter> Native<F> {
    pub(crate) fn start(config: &[u8], world: &World, foreign: Foreign) -> Result<Self, String> {
        let host = Rc::new(FakeHost {
            world: world.clone(),
            foreign,
            state: RefCell::default(),
            store: RefCell::default(),
            life: Cell::new(0),
        });
        let native = Self { config: config.to_vec(), root: RefCell::default(), host };
        native.configure()?;
        Ok(native)
    }

    fn configure(&self) -> Result<(), String> {
        let mut root = Root::default();
        let valid = self.host.enter(|| root.configure(&self.config))?;
        if !valid {
            return Err(self.host.world.lines().join("\n"));
        }
        *self.root.borrow_mut() = Some(root);
        Ok(())
    }

    /// The filter, made anew when it was lost.
    fn with<T>(&self, work: impl FnOnce(&Root<F>) -> T) -> Result<T, String> {
        if self.host.is_lost() || self.root.borrow().is_none() {
            *self.root.borrow_mut() = None;
            self.host.life.set(self.host.life.get() + 1);
            self.host.state.borrow_mut().lost = false;
            self.configure()?;
        }
        let root = self.root.borrow();
        let Some(root) = &*root else { return Err("the filter is not configured".into()) };
        self.host.enter(|| work(root))
    }
}

impl<F: Filter> Guest for Native<F> {
    fn open(&self) -> Result<Box<dyn Stream>, String> {
        let stream = self.with(Root::open)?.ok_or("the filter is not configured")?;
        Ok(Box::new(NativeStream { stream: Some(stream), life: self.host.life.get(), host: self.host.clone() }))
    }

    fn tick(&self) -> Result<(), String> {
        self.with(Root::tick)
    }

    fn tick_period(&self) -> Option<Duration> {
        self.host.state.borrow().tick_period.filter(|period| !period.is_zero())
    }

    fn root_callouts(&self) -> Vec<Callout> {
        mem::take(&mut self.host.state.borrow_mut().step.callouts)
    }

    fn root_answered(&self, token: u32, answer: Result<&Reply, NoAnswer>) -> Result<(), String> {
        let (headers, body) = self.host.begin_answer(token, answer);
        let result = self.with(|root| root.on_call_response(token, headers, body));
        self.host.end_answer();
        result
    }

    fn metrics(&self) -> Vec<(String, u64)> {
        let state = self.host.state.borrow();
        let mut metrics: Vec<_> = state.metrics.iter().map(|metric| (metric.name.clone(), metric.value)).collect();
        metrics.sort();
        metrics
    }

    fn store(&self) -> &dyn Store {
        &*self.host
    }
}

struct NativeStream<F: Filter> {
    /// `None` only while this is dropped.
    stream: Option<runtime::Stream<F>>,
    /// Which life of the filter it belongs to.
    life: u32,
    host: Rc<FakeHost>,
}

/// What the filter keeps of a stream may call the host when it ends.
impl<F: Filter> Drop for NativeStream<F> {
    fn drop(&mut self) {
        let stream = self.stream.take();
        // What a panic says is in the log then.
        let _ = self.host.enter(|| drop(stream));
    }
}

impl<F: Filter> NativeStream<F> {
    fn run(
        &mut self,
        exchange: &mut Exchange,
        callback: impl FnOnce(&mut runtime::Stream<F>) -> Action,
    ) -> Result<Step, String> {
        if self.host.is_lost() || self.life != self.host.life.get() {
            return Err("its VM was lost in another exchange".into());
        }
        self.host.state.borrow_mut().exchange = mem::take(exchange);
        let stream = self.stream.as_mut().ok_or("the stream is over")?;
        let action = self.host.enter(|| callback(stream));
        let mut state = self.host.state.borrow_mut();
        *exchange = mem::take(&mut state.exchange);
        let step = mem::take(&mut state.step);
        Ok(Step { pause: action? == Action::Pause, ..step })
    }
}

impl<F: Filter> Stream for NativeStream<F> {
    fn request_headers(&mut self, exchange: &mut Exchange, end: bool) -> Result<Step, String> {
        self.run(exchange, |stream| stream.on_request_headers(end))
    }

    fn request_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Result<Step, String> {
        self.run(exchange, |stream| stream.on_request_body(held, end))
    }

    fn response_headers(&mut self, exchange: &mut Exchange, end: bool) -> Result<Step, String> {
        self.run(exchange, |stream| stream.on_response_headers(end))
    }

    fn response_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Result<Step, String> {
        self.run(exchange, |stream| stream.on_response_body(held, end))
    }

    fn request_trailers(&mut self, exchange: &mut Exchange) -> Result<Step, String> {
        self.run(exchange, runtime::Stream::on_request_trailers)
    }

    fn response_trailers(&mut self, exchange: &mut Exchange) -> Result<Step, String> {
        self.run(exchange, runtime::Stream::on_response_trailers)
    }

    fn answered(
        &mut self,
        exchange: &mut Exchange,
        token: u32,
        answer: Result<&Reply, NoAnswer>,
    ) -> Result<Step, String> {
        let (headers, body) = self.host.begin_answer(token, answer);
        let step = self.run(exchange, |stream| {
            stream.on_call_response(token, headers, body);
            Action::Pause
        });
        self.host.end_answer();
        step
    }

    fn finish(&mut self, exchange: &mut Exchange) -> Result<(), String> {
        let step = self.run(exchange, |stream| {
            stream.on_log();
            Action::Continue
        });
        step.map(drop)
    }

    fn bodies(&self) -> (bool, bool) {
        (F::HOOKS.request_body, F::HOOKS.response_body)
    }
}

struct FakeHost {
    world: World,
    foreign: Foreign,
    state: RefCell<State>,
    store: RefCell<FakeStore>,
    /// Counts how often the filter was made anew.
    life: Cell<u32>,
}

#[derive(Default)]
struct State {
    exchange: Exchange,
    step: Step,
    /// The callout answer that is being delivered.
    answer: Option<Result<Reply, NoAnswer>>,
    /// The gRPC calls under way, by their tokens, and the words of the status that is being delivered.
    grpc: BTreeSet<u32>,
    grpc_status: Option<String>,
    next_token: u32,
    metrics: Vec<Metric>,
    tick_period: Option<Duration>,
    random: u64,
    /// The filter has panicked.
    lost: bool,
}

struct Metric {
    kind: MetricKind,
    name: String,
    value: u64,
}

thread_local! {
    /// What a panic of the filter that runs on this thread said; `None` outside of filters.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics of filters are caught and reported; all others go to whoever was told of them before.
fn catch_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panic| {
            let caught = PANIC.with_borrow_mut(|caught| match caught {
                Some(message) => {
                    *message = panic.to_string();
                    true
                }
                None => false,
            });
            if !caught {
                before(panic);
            }
        }));
    });
}

impl FakeHost {
    /// Runs code of the filter. It panics as a module traps: the filter is lost, and the log says why.
    fn enter<T>(self: &Rc<Self>, code: impl FnOnce() -> T) -> Result<T, String> {
        catch_panics();
        let _installed = host::install(self.clone());
        PANIC.set(Some(String::new()));
        let result = panic::catch_unwind(AssertUnwindSafe(code));
        let message = PANIC.take().unwrap_or_default();
        result.map_err(|_| {
            self.world.log("CRITICAL", &message);
            self.state.borrow_mut().lost = true;
            message
        })
    }

    fn is_lost(&self) -> bool {
        self.state.borrow().lost
    }
}

impl Host for FakeHost {
    fn log(&self, level: Level, message: &str) {
        self.world.log(level.as_str(), message);
    }

    fn now(&self) -> SystemTime {
        self.world.now()
    }

    fn monotonic(&self) -> Duration {
        self.world.now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }

    /// The same sequence for every tester (SplitMix64).
    fn random(&self, bytes: &mut [u8]) -> Result<(), Status> {
        let mut state = self.state.borrow_mut();
        for portion in bytes.chunks_mut(8) {
            state.random = state.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state.random ^ state.random >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            portion.copy_from_slice(&(mixed ^ mixed >> 31).to_le_bytes()[..portion.len()]);
        }
        Ok(())
    }

    fn header(&self, map: Map, name: &str) -> Option<Vec<u8>> {
        let state = self.state.borrow();
        if let Some(side) = side_of_trailers(map) {
            let trailers = state.exchange.half(side).trailers.as_ref()?;
            return trailers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone());
        }
        match side(map) {
            Some(side) => state.exchange.half(side).header(name).map(<[u8]>::to_vec),
            None => {
                let fields = state.answered().map(answer_fields).unwrap_or_default();
                fields.into_iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value)
            }
        }
    }

    fn headers(&self, map: Map) -> Vec<(String, Vec<u8>)> {
        let state = self.state.borrow();
        if let Some(side) = side_of_trailers(map) {
            return state.exchange.half(side).trailers.clone().unwrap_or_default();
        }
        match side(map) {
            Some(side) => state.exchange.half(side).headers.clone().unwrap_or_default(),
            None => state.answered().map(answer_fields).unwrap_or_default(),
        }
    }

    fn set_header(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        match side_of_trailers(map) {
            Some(side) => self.change_trailers(side, name, value, |trailers| exchange::set(trailers, name, value)),
            None => self.change(map, |exchange, side| exchange.set_header(side, name, value)),
        }
    }

    fn add_header(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        match side_of_trailers(map) {
            Some(side) => self.change_trailers(side, name, value, |trailers| {
                trailers.push((name.to_ascii_lowercase(), value.to_vec()));
            }),
            None => self.change(map, |exchange, side| exchange.add_header(side, name, value)),
        }
    }

    fn remove_header(&self, map: Map, name: &str) -> Result<(), Status> {
        match side_of_trailers(map) {
            Some(side) => self.change_trailers(side, name, b"", |trailers| {
                trailers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
            }),
            None => self.change(map, |exchange, side| exchange.remove_header(side, name)),
        }
    }

    fn buffer(&self, buffer: Buffer, start: usize, max: usize) -> Option<Vec<u8>> {
        let state = self.state.borrow();
        let bytes = match buffer {
            Buffer::Request => state.exchange.request.held.as_deref()?,
            Buffer::Response => state.exchange.response.held.as_deref()?,
            Buffer::CallResponse | Buffer::GrpcMessage => state.answered()?.bytes(),
        };
        let start = start.min(bytes.len());
        let end = start.saturating_add(max).min(bytes.len());
        Some(bytes[start..end].to_vec())
    }

    fn set_buffer(&self, buffer: Buffer, start: usize, size: usize, bytes: &[u8]) -> Result<(), Status> {
        let map = match buffer {
            Buffer::Request => Map::Request,
            Buffer::Response => Map::Response,
            Buffer::CallResponse | Buffer::GrpcMessage => Map::CallResponse,
        };
        self.change(map, |exchange, side| exchange.half_mut(side).splice(start, size, bytes))
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.state.borrow().exchange.property(path)
    }

    fn set_property(&self, path: &[&str], value: &[u8]) -> Result<(), Status> {
        self.state.borrow_mut().exchange.set_property(path, value).map_err(|Refused| Status::BadArgument)
    }

    fn shared(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.get(key)
    }

    fn set_shared(&self, key: &str, value: &[u8], cas: Option<u32>) -> Result<(), Status> {
        match self.set(key, value, cas.unwrap_or(0), None) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Status::CasMismatch),
            Err(store::Refused) => Err(Status::BadArgument),
        }
    }

    fn define_metric(&self, kind: MetricKind, name: &str) -> Result<u32, Status> {
        let mut state = self.state.borrow_mut();
        let id = match state.metrics.iter().position(|metric| metric.name == name) {
            Some(id) if state.metrics[id].kind == kind => id,
            Some(_) => return Err(Status::BadArgument),
            None => {
                state.metrics.push(Metric { kind, name: name.to_owned(), value: 0 });
                state.metrics.len() - 1
            }
        };
        u32::try_from(id).map_err(|_| Status::BadArgument)
    }

    fn increment_metric(&self, id: u32, offset: i64) {
        self.state.borrow_mut().metric(id, |metric| metric.value = metric.value.saturating_add_signed(offset));
    }

    fn record_metric(&self, id: u32, value: u64) {
        self.state.borrow_mut().metric(id, |metric| match metric.kind {
            MetricKind::Histogram => metric.value += 1,
            MetricKind::Counter | MetricKind::Gauge => metric.value = value,
        });
    }

    fn call(&self, upstream: &str, headers: &[(&str, &[u8])], body: &[u8], timeout: Duration) -> Result<u32, Status> {
        if !self.world.has_upstream(upstream) {
            return Err(Status::BadArgument);
        }
        let mut state = self.state.borrow_mut();
        state.next_token += 1;
        let token = state.next_token;
        let seen = Seen {
            upstream: upstream.to_owned(),
            headers: headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec())).collect(),
            body: body.to_vec(),
            trailers: Vec::new(),
            timeout: Some(timeout),
        };
        state.step.callouts.push(Callout { token, timeout, seen });
        Ok(token)
    }

    fn grpc_call(
        &self,
        upstream: &str,
        service: &str,
        method: &str,
        metadata: &[(&str, &[u8])],
        message: &[u8],
        timeout: Duration,
    ) -> Result<u32, Status> {
        let path = format!("/{service}/{method}");
        let mut headers: Vec<(&str, &[u8])> = grpc::headers(upstream, &path).to_vec();
        headers.extend(metadata);
        let token = self.call(upstream, &headers, message, timeout)?;
        self.state.borrow_mut().grpc.insert(token);
        Ok(token)
    }

    fn cancel_grpc(&self, token: u32) {
        self.state.borrow_mut().grpc.remove(&token);
    }

    fn resume(&self, direction: Direction) {
        let mut state = self.state.borrow_mut();
        match direction {
            Direction::Request => state.step.resume_request = true,
            Direction::Response => state.step.resume_response = true,
        }
    }

    fn call_status(&self) -> Option<String> {
        let state = self.state.borrow();
        if let Some(status) = &state.grpc_status {
            return Some(status.clone());
        }
        match state.answer {
            Some(Err(NoAnswer::Lost)) => Some("connect: the test gives no answer".into()),
            Some(Err(NoAnswer::Late)) => Some("timeout".into()),
            Some(Ok(_)) | None => None,
        }
    }

    fn reply(&self, status: u16, headers: &[(&str, &[u8])], body: &[u8]) {
        let reply = Reply::new(status).body(body);
        let reply = headers.iter().fold(reply, |reply, (name, value)| reply.header(name, value));
        self.state.borrow_mut().step.reply.get_or_insert(reply);
    }

    fn foreign(&self, name: &str, argument: &[u8]) -> Result<Vec<u8>, Status> {
        let functions = self.foreign.lock().unwrap_or_else(PoisonError::into_inner);
        match functions.get(name) {
            Some(function) => function(argument).ok_or(Status::BadArgument),
            None if self.world.is_plain() => Err(Status::NotFound),
            None => match store::foreign(self, name, argument) {
                Some(answer) => answer.map_err(|store::Refused| Status::BadArgument),
                None => Err(Status::NotFound),
            },
        }
    }

    fn set_tick_period(&self, period: Duration) {
        self.state.borrow_mut().tick_period = Some(period);
    }
}

impl Store for FakeHost {
    fn get(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.store.borrow().get(key, self.world.now())
    }

    fn set(&self, key: &str, value: &[u8], cas: u32, ttl: Option<Duration>) -> Result<bool, store::Refused> {
        self.store.borrow_mut().set(key, value, cas, ttl, self.world.now())
    }

    fn delete(&self, key: &str) -> bool {
        self.store.borrow_mut().delete(key, self.world.now())
    }

    fn increment(&self, key: &str, delta: i64, initial: i64, ttl: Option<Duration>) -> Result<i64, store::Refused> {
        self.store.borrow_mut().increment(key, delta, initial, ttl, self.world.now())
    }

    fn keys(&self, prefix: &str) -> Vec<String> {
        self.store.borrow().keys(prefix, self.world.now())
    }
}

impl FakeHost {
    fn change_trailers(
        &self,
        side: Side,
        name: &str,
        value: &[u8],
        change: impl FnOnce(&mut Fields),
    ) -> Result<(), Status> {
        let mut state = self.state.borrow_mut();
        let trailers = state.exchange.half_mut(side).trailers_mut(name, value);
        trailers.map(change).map_err(|Refused| Status::BadArgument)
    }

    fn change(&self, map: Map, change: impl FnOnce(&mut Exchange, Side) -> Result<(), Refused>) -> Result<(), Status> {
        let side = side(map).ok_or(Status::BadArgument)?;
        change(&mut self.state.borrow_mut().exchange, side).map_err(|Refused| Status::BadArgument)
    }
}

impl FakeHost {
    /// Has an answer ready to be read; returns the two numbers that the filter is told of it.
    fn begin_answer(&self, token: u32, answer: Result<&Reply, NoAnswer>) -> (usize, usize) {
        let mut state = self.state.borrow_mut();
        state.answer = Some(answer.cloned());
        if !state.grpc.remove(&token) {
            return answer.map_or((0, 0), |answer| (answer.headers().len() + 1, answer.bytes().len()));
        }
        match grpc::outcome(answer) {
            Ok(message) => (1, message.len()),
            Err((code, words)) => {
                state.grpc_status = Some(words);
                (0, code.number().into())
            }
        }
    }

    fn end_answer(&self) {
        let mut state = self.state.borrow_mut();
        state.answer = None;
        state.grpc_status = None;
    }
}

impl State {
    fn answered(&self) -> Option<&Reply> {
        self.answer.as_ref()?.as_ref().ok()
    }

    fn metric(&mut self, id: u32, change: impl FnOnce(&mut Metric)) {
        if let Some(metric) = usize::try_from(id).ok().and_then(|id| self.metrics.get_mut(id)) {
            change(metric);
        }
    }
}

fn side(map: Map) -> Option<Side> {
    match map {
        Map::Request => Some(Side::Request),
        Map::Response => Some(Side::Response),
        Map::RequestTrailers | Map::ResponseTrailers | Map::CallResponse => None,
    }
}

fn side_of_trailers(map: Map) -> Option<Side> {
    match map {
        Map::RequestTrailers => Some(Side::Request),
        Map::ResponseTrailers => Some(Side::Response),
        Map::Request | Map::Response | Map::CallResponse => None,
    }
}
