//! An exchange and a host in memory, and ways to make guests.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use selvedge_wasm::*;
use tokio::sync::oneshot;

type Pairs = Vec<(String, Vec<u8>)>;

#[derive(Default)]
pub(crate) struct FakeExchange {
    maps: [Option<Pairs>; 4],
    pub(crate) request_body: Option<Body>,
    pub(crate) response_body: Option<Body>,
    pub(crate) downstream: Option<Body>,
    pub(crate) upstream: Option<Body>,
    pub(crate) properties: HashMap<String, Vec<u8>>,
    pub(crate) trace: Option<Arc<Trace>>,
}

impl FakeExchange {
    pub(crate) fn get(path: &str) -> Self {
        let mut x = Self::default();
        x.put(
            HeaderMap::Request,
            &[
                (":authority", "example.com"),
                (":path", path),
                (":method", "GET"),
                (":scheme", "https"),
                ("accept", "*/*"),
            ],
        );
        x
    }

    /// Bytes held for a TCP filter: those of the client, those of the upstream.
    pub(crate) fn tcp(downstream: Option<&'static str>, upstream: Option<&'static str>) -> Self {
        let held = |text: Option<&'static str>| text.map(|text| Body::from(Bytes::from(text)));
        Self { downstream: held(downstream), upstream: held(upstream), ..Self::default() }
    }

    pub(crate) fn put(&mut self, map: HeaderMap, pairs: &[(&str, &str)]) {
        self.maps[map as usize] = Some(pairs.iter().map(|(n, v)| ((*n).to_owned(), v.as_bytes().to_vec())).collect());
    }

    pub(crate) fn respond(&mut self) {
        self.put(HeaderMap::Response, &[(":status", "200"), ("content-length", "4"), ("server", "origin")]);
    }

    pub(crate) fn all(&self, map: HeaderMap, name: &str) -> Vec<String> {
        let pairs = self.maps[map as usize].iter().flatten();
        pairs.filter(|(n, _)| n == name).map(|(_, v)| String::from_utf8_lossy(v).into_owned()).collect()
    }

    pub(crate) fn text(&self, map: HeaderMap, name: &str) -> Option<String> {
        self.all(map, name).into_iter().next()
    }
}

impl Exchange for FakeExchange {
    fn visit(&self, map: HeaderMap, visit: &mut dyn FnMut(&[u8], &[u8])) -> bool {
        let pairs = self.maps[map as usize].as_ref();
        pairs.into_iter().flatten().for_each(|(name, value)| visit(name.as_bytes(), value));
        pairs.is_some()
    }

    fn header(&self, map: HeaderMap, name: &[u8]) -> Option<Cow<'_, [u8]>> {
        let name = if name.eq_ignore_ascii_case(b"host") { &b":authority"[..] } else { name };
        let pairs = self.maps[map as usize].as_ref()?;
        pairs.iter().find(|(n, _)| n.as_bytes().eq_ignore_ascii_case(name)).map(|(_, v)| Cow::Borrowed(&v[..]))
    }

    fn set_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError> {
        self.remove_header(map, name)?;
        self.add_header(map, name, value)
    }

    fn add_header(&mut self, map: HeaderMap, name: &[u8], value: &[u8]) -> Result<(), ExchangeError> {
        if value.contains(&b'\n') || !name.is_ascii() {
            return Err(ExchangeError::Invalid);
        }
        self.maps[map as usize]
            .as_mut()
            .ok_or(ExchangeError::Unavailable)?
            .push((String::from_utf8_lossy(name).to_lowercase(), value.to_vec()));
        Ok(())
    }

    fn remove_header(&mut self, map: HeaderMap, name: &[u8]) -> Result<(), ExchangeError> {
        self.maps[map as usize]
            .as_mut()
            .ok_or(ExchangeError::Unavailable)?
            .retain(|(n, _)| !n.as_bytes().eq_ignore_ascii_case(name));
        Ok(())
    }

    fn replace_headers(&mut self, map: HeaderMap, pairs: &[(&[u8], &[u8])]) -> Result<(), ExchangeError> {
        let old = self.maps[map as usize].as_mut().ok_or(ExchangeError::Unavailable)?;
        *old = pairs.iter().map(|(n, v)| (String::from_utf8_lossy(n).into_owned(), v.to_vec())).collect();
        Ok(())
    }

    fn body(&mut self, which: Buffer) -> Option<&mut Body> {
        match which {
            Buffer::Request => self.request_body.as_mut(),
            Buffer::Response => self.response_body.as_mut(),
            Buffer::Downstream => self.downstream.as_mut(),
            Buffer::Upstream => self.upstream.as_mut(),
        }
    }

    fn trace(&self) -> Option<&Arc<Trace>> {
        self.trace.as_ref()
    }

    fn property(&self, path: &[&str]) -> Option<Vec<u8>> {
        self.properties.get(&path.join(".")).cloned()
    }

    fn set_property(&mut self, path: &[&str], value: &[u8]) -> Result<(), ExchangeError> {
        self.properties.insert(path.join("."), value.to_vec());
        Ok(())
    }

    fn foreign(&mut self, caller: Caller<'_>, name: &str, args: &[u8]) -> Option<Result<Vec<u8>, ForeignError>> {
        (name == "here").then(|| Ok([caller.plugin.as_bytes(), args].concat()))
    }
}

/// What a callout is answered with.
pub(crate) type Answer = Result<CalloutResponse, CalloutFailure>;

#[derive(Default)]
pub(crate) struct FakeHost {
    pub(crate) shared: SharedData,
    pub(crate) metrics: Metrics,
    pub(crate) queues: SharedQueues,
    pub(crate) logs: Mutex<Vec<(LogLevel, String)>>,
    pub(crate) calls: Mutex<Vec<Callout>>,
    /// gRPC exchanges that were opened and not looked at yet.
    pub(crate) grpc: Mutex<Vec<FakeServer>>,
}

/// The server's end of a gRPC exchange.
pub(crate) struct FakeServer {
    pub(crate) request: GrpcRequest,
    pub(crate) messages: GrpcMessages,
    pub(crate) events: GrpcEvents,
    end: oneshot::Sender<GrpcStatus>,
}

impl FakeServer {
    /// Ends the exchange.
    pub(crate) fn end(self, code: u32, message: &str) {
        self.end.send(GrpcStatus::new(code, message)).expect("the exchange is not reset");
    }

    /// Whether the other side has ended it.
    pub(crate) fn is_reset(&self) -> bool {
        self.end.is_closed()
    }
}

impl FakeHost {
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let metrics = self.metrics.snapshot();
        match metrics.into_iter().find(|metric| metric.name == name).map(|metric| metric.value) {
            Some(MetricValue::Counter(value)) => value,
            _ => 0,
        }
    }

    pub(crate) fn logged(&self, part: &str) -> bool {
        self.logs.lock().iter().any(|(_, line)| line.contains(part))
    }
}

impl Host for FakeHost {
    fn has_upstream(&self, name: &str) -> bool {
        name == "auth"
    }

    fn call(&self, callout: Callout) -> BoxFuture<'static, Answer> {
        self.calls.lock().push(callout);
        Box::pin(std::future::ready(Ok(answer())))
    }

    fn grpc(&self, request: GrpcRequest, messages: GrpcMessages, events: GrpcEvents) -> BoxFuture<'static, GrpcStatus> {
        let (end, ended) = oneshot::channel();
        self.grpc.lock().push(FakeServer { request, messages, events, end });
        Box::pin(async { ended.await.expect("the test ends its exchanges") })
    }

    fn log(&self, level: LogLevel, _plugin: &str, message: &str) {
        let mut logs = self.logs.lock();
        if logs.len() < 100 {
            logs.push((level, message.to_owned()));
        }
    }

    fn foreign(&self, caller: Caller<'_>, name: &str, args: &[u8]) -> Option<Result<Vec<u8>, ForeignError>> {
        match name {
            "echo" => Some(Ok(args.to_vec())),
            "who" => Some(Ok(format!("{}/{}", caller.plugin, caller.vm_id).into_bytes())),
            "fail" => Some(Err(ForeignError::Internal("as asked".into()))),
            _ => None,
        }
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

pub(crate) fn answer() -> CalloutResponse {
    let pair = |n: &'static str, v: &'static str| (Bytes::from(n), Bytes::from(v));
    CalloutResponse {
        headers: vec![pair(":status", "200"), pair("server", "auth")],
        body: Bytes::from("hello"),
        trailers: vec![],
    }
}

/// A plugin under test with its host.
pub(crate) struct Rig {
    pub(crate) plugin: Arc<Plugin>,
    pub(crate) host: Arc<FakeHost>,
}

impl Rig {
    /// Opens a stream on worker 0.
    pub(crate) fn stream(&self) -> Stream {
        self.plugin.open_stream(0).unwrap()
    }
}

pub(crate) fn engine() -> Arc<Engine> {
    static ENGINE: OnceLock<Arc<Engine>> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::new(EngineOptions::default()).unwrap()).clone()
}

/// Roomy: the tests share their cores with others. Where CPU time is what ends a call, its deadline must be far beyond it.
pub(crate) fn options(config: &str) -> PluginOptions {
    PluginOptions {
        name: "test".into(),
        root_id: "root".into(),
        vm_id: "vm".into(),
        vm_config: Bytes::from(config.to_owned()),
        config: Bytes::from(config.to_owned()),
        environment: Vec::new(),
        limits: Limits { cpu: Duration::from_secs(5), deadline: Duration::from_secs(300), ..Limits::default() },
        workers: 2,
        ..PluginOptions::default()
    }
}

pub(crate) fn try_start(wasm: &[u8], options: PluginOptions) -> Result<Rig, StartError> {
    let module = Module::load(&engine(), "test", wasm).unwrap();
    let host = Arc::new(FakeHost::default());
    Ok(Rig { plugin: Plugin::start(module, options, host.clone())?, host })
}

/// One of the test guests, with a configuration.
pub(crate) fn guest(name: &str, config: &str) -> Rig {
    try_start(&guest_wasm(name), options(config)).unwrap()
}

pub(crate) fn guest_wasm(name: &str) -> Vec<u8> {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        selvedge_guest_build::Guests::examples_of("selvedge-test-guests").build(&workspace).unwrap()
    });
    std::fs::read(folder.join(format!("{name}.wasm"))).unwrap()
}

/// A text guest: imports, an allocator's body, and more.
pub(crate) fn wat(imports: &str, allocator: &str, rest: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
            {imports}
            (memory (export "memory") 1)
            (func (export "proxy_abi_version_0_2_1"))
            (func $allocate (export "proxy_on_memory_allocate") (param $size i32) (result i32) {allocator})
            {rest})"#
    );
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Waits for a state that another thread or a timer brings about.
pub(crate) async fn eventually(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !reached() {
        assert!(Instant::now() < deadline, "not within a minute: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
