//! The native guest: the SDK's runtime on a fake host.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::mem;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use log::Level;
use selvedge_sdk::host::{self, Buffer, Direction, Host, Map, MetricKind, Status};
use selvedge_sdk::runtime::{self, Action, Root};
use selvedge_sdk::{Filter, Reply};

use crate::exchange::{Exchange, Refused, Side};
use crate::{Callout, Guest, Seen, Step, Stream, World};

pub(crate) struct Native<F: Filter> {
    root: Root<F>,
    host: Rc<FakeHost>,
}

impl<F: Filter> Native<F> {
    pub(crate) fn start(config: &[u8], world: &World) -> Result<Self, String> {
        let host = Rc::new(FakeHost { world: world.clone(), state: RefCell::default() });
        let mut root = Root::default();
        let installed = host::install(host.clone());
        let valid = root.configure(config);
        drop(installed);
        if valid { Ok(Self { root, host }) } else { Err(world.lines().join("\n")) }
    }
}

impl<F: Filter> Guest for Native<F> {
    fn open(&self) -> Box<dyn Stream> {
        match self.root.open() {
            Some(stream) => Box::new(NativeStream { stream, host: self.host.clone() }),
            None => panic!("the filter is not configured"),
        }
    }

    fn tick(&self) {
        let _installed = host::install(self.host.clone());
        self.root.tick();
    }

    fn metric(&self, name: &str) -> Option<u64> {
        self.host.state.borrow().metrics.iter().find(|metric| metric.name == name).map(|metric| metric.value)
    }
}

struct NativeStream<F: Filter> {
    stream: runtime::Stream<F>,
    host: Rc<FakeHost>,
}

impl<F: Filter> NativeStream<F> {
    fn run(&mut self, exchange: &mut Exchange, callback: impl FnOnce(&mut runtime::Stream<F>) -> Action) -> Step {
        let _installed = host::install(self.host.clone());
        self.host.state.borrow_mut().exchange = mem::take(exchange);
        let action = callback(&mut self.stream);
        let mut state = self.host.state.borrow_mut();
        *exchange = mem::take(&mut state.exchange);
        Step { pause: action == Action::Pause, ..mem::take(&mut state.step) }
    }
}

impl<F: Filter> Stream for NativeStream<F> {
    fn request_headers(&mut self, exchange: &mut Exchange, end: bool) -> Step {
        self.run(exchange, |stream| stream.on_request_headers(end))
    }

    fn request_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Step {
        self.run(exchange, |stream| stream.on_request_body(held, end))
    }

    fn response_headers(&mut self, exchange: &mut Exchange, end: bool) -> Step {
        self.run(exchange, |stream| stream.on_response_headers(end))
    }

    fn response_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Step {
        self.run(exchange, |stream| stream.on_response_body(held, end))
    }

    fn request_trailers(&mut self, exchange: &mut Exchange) -> Step {
        self.run(exchange, runtime::Stream::on_request_trailers)
    }

    fn response_trailers(&mut self, exchange: &mut Exchange) -> Step {
        self.run(exchange, runtime::Stream::on_response_trailers)
    }

    fn answered(&mut self, exchange: &mut Exchange, token: u32, answer: Option<&Reply>) -> Step {
        let (headers, body) = answer.map_or((0, 0), |answer| (answer.headers().len() + 1, answer.bytes().len()));
        self.host.state.borrow_mut().answer = answer.cloned();
        let step = self.run(exchange, |stream| {
            stream.on_call_response(token, headers, body);
            Action::Pause
        });
        self.host.state.borrow_mut().answer = None;
        step
    }

    fn finish(&mut self, exchange: &mut Exchange) {
        self.run(exchange, |stream| {
            stream.on_log();
            Action::Continue
        });
    }

    fn bodies(&self) -> (bool, bool) {
        (F::HOOKS.request_body, F::HOOKS.response_body)
    }
}

struct FakeHost {
    world: World,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    exchange: Exchange,
    step: Step,
    answer: Option<Reply>,
    next_token: u32,
    shared: BTreeMap<String, (Vec<u8>, u32)>,
    metrics: Vec<Metric>,
}

struct Metric {
    kind: MetricKind,
    name: String,
    value: u64,
}

impl Host for FakeHost {
    fn log(&self, level: Level, message: &str) {
        self.world.log(level.as_str(), message);
    }

    fn now(&self) -> SystemTime {
        self.world.now()
    }

    fn header(&self, map: Map, name: &str) -> Option<Vec<u8>> {
        let state = self.state.borrow();
        match side(map) {
            Some(side) => state.exchange.half(side).header(name).map(<[u8]>::to_vec),
            None => state
                .answer_headers()
                .into_iter()
                .find(|(other, _)| other.eq_ignore_ascii_case(name))
                .map(|(_, value)| value),
        }
    }

    fn headers(&self, map: Map) -> Vec<(String, Vec<u8>)> {
        let state = self.state.borrow();
        match side(map) {
            Some(side) => state.exchange.half(side).headers.clone().unwrap_or_default(),
            None => state.answer_headers(),
        }
    }

    fn set_header(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        self.change(map, |half| half.set_header(name, value))
    }

    fn add_header(&self, map: Map, name: &str, value: &[u8]) -> Result<(), Status> {
        self.change(map, |half| half.add_header(name, value))
    }

    fn remove_header(&self, map: Map, name: &str) -> Result<(), Status> {
        self.change(map, |half| half.remove_header(name))
    }

    fn buffer(&self, buffer: Buffer, start: usize, max: usize) -> Option<Vec<u8>> {
        let state = self.state.borrow();
        let bytes = match buffer {
            Buffer::Request => state.exchange.request.held.as_deref()?,
            Buffer::Response => state.exchange.response.held.as_deref()?,
            Buffer::CallResponse => state.answer.as_ref()?.bytes(),
        };
        let start = start.min(bytes.len());
        let end = start.saturating_add(max).min(bytes.len());
        Some(bytes[start..end].to_vec())
    }

    fn set_buffer(&self, buffer: Buffer, start: usize, size: usize, bytes: &[u8]) -> Result<(), Status> {
        let map = match buffer {
            Buffer::Request => Map::Request,
            Buffer::Response => Map::Response,
            Buffer::CallResponse => Map::CallResponse,
        };
        self.change(map, |half| half.splice(start, size, bytes))
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.state.borrow().exchange.property(path).map(<[u8]>::to_vec)
    }

    fn set_property(&self, path: &[&str], value: &[u8]) -> Result<(), Status> {
        self.state.borrow_mut().exchange.set_property(path, value);
        Ok(())
    }

    fn shared(&self, key: &str) -> Option<(Vec<u8>, u32)> {
        self.state.borrow().shared.get(key).cloned()
    }

    fn set_shared(&self, key: &str, value: &[u8], cas: Option<u32>) -> Result<(), Status> {
        let mut state = self.state.borrow_mut();
        let current = state.shared.get(key).map(|(_, cas)| *cas);
        // As the ABI has it: a version is compared with what is there; where nothing is, any version will do.
        if cas.is_some() && current.is_some() && cas != current {
            return Err(Status::CasMismatch);
        }
        state.shared.insert(key.to_owned(), (value.to_vec(), current.unwrap_or(0) + 1));
        Ok(())
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

    fn call(&self, upstream: &str, headers: &[(&str, &[u8])], body: &[u8], _timeout: Duration) -> Result<u32, Status> {
        if !self.world.has_upstream(upstream) {
            return Err(Status::BadArgument);
        }
        let mut state = self.state.borrow_mut();
        state.next_token += 1;
        let token = state.next_token;
        let headers = headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec())).collect();
        let seen = Seen { upstream: upstream.to_owned(), headers, body: body.to_vec() };
        state.step.callouts.push(Callout { token, seen });
        Ok(token)
    }

    fn resume(&self, direction: Direction) {
        let mut state = self.state.borrow_mut();
        match direction {
            Direction::Request => state.step.resume_request = true,
            Direction::Response => state.step.resume_response = true,
        }
    }

    fn reply(&self, status: u16, headers: &[(&str, &[u8])], body: &[u8]) {
        let reply = Reply::new(status).body(body);
        let reply = headers.iter().fold(reply, |reply, (name, value)| reply.header(name, value));
        self.state.borrow_mut().step.reply.get_or_insert(reply);
    }
}

impl FakeHost {
    fn change(
        &self,
        map: Map,
        change: impl FnOnce(&mut crate::exchange::Half) -> Result<(), Refused>,
    ) -> Result<(), Status> {
        let mut state = self.state.borrow_mut();
        let half = state.exchange.half_mut(side(map).ok_or(Status::BadArgument)?);
        change(half).map_err(|Refused| Status::BadArgument)
    }
}

impl State {
    fn answer_headers(&self) -> Vec<(String, Vec<u8>)> {
        let Some(answer) = &self.answer else { return Vec::new() };
        let status = (":status".to_owned(), answer.status().to_string().into_bytes());
        [status].into_iter().chain(answer.headers().iter().cloned()).collect()
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
        Map::CallResponse => None,
    }
}
