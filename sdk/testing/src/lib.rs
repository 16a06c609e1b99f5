//! Tests filters: natively on a fake host, in milliseconds, and as the compiled module on the shipped host, in process.
//!
//! ```toml
//! [lib]
//! crate-type = ["cdylib", "rlib"]
//!
//! [features]
//! wasm = ["selvedge-sdk-testing/wasm"]
//!
//! [dev-dependencies]
//! selvedge-sdk-testing = "0.1"
//! ```
//!
//! ```
//! use selvedge_sdk::prelude::*;
//! use selvedge_sdk_testing::Tester;
//!
//! pub struct NoTrace;
//!
//! #[filter]
//! impl Filter for NoTrace {
//!     type Config = ();
//!
//!     fn new((): ()) -> Result<Self, String> {
//!         Ok(Self)
//!     }
//!
//!     async fn request(&self, request: &mut Request, _: &mut ()) -> Flow {
//!         if request.method() == Method::Trace { Err(Reply::new(405)) } else { Ok(Next) }
//!     }
//! }
//!
//! #[selvedge_sdk::test]
//! fn traces_are_refused(tester: Tester<NoTrace>) {
//!     assert_eq!(tester.request("TRACE", "/").send().status(), 405);
//!     assert_eq!(tester.get("/").send().status(), 200);
//! }
//! # traces_are_refused(Tester::native());
//! # fn traces_are_refused(tester: Tester<NoTrace>) {
//! #     assert_eq!(tester.request("TRACE", "/").send().status(), 405);
//! # }
//! ```
//!
//! `cargo test` runs `traces_are_refused::native`, plain Rust in the test's own process: a debugger stops in the hook. `cargo test
//! --features wasm` also runs `traces_are_refused::wasm`, the same body on the module that the crate compiles to, in the host of the
//! shipped proxy: what passes there passes in a node. The module is built once for each test binary, with cargo, into
//! `target/guests`; that needs `rustup target add wasm32-wasip1`, and says so. See [`selvedge_sdk::test`] for what the attribute takes.
//!
//! A request goes through the filter's request hook, to an origin (a closure; without one it answers 200 with an empty body), and
//! back through the response hook. The fake host keeps the promises of the real one: a held message holds its headers too, a body
//! that is not let go piles up, callouts are answered only after the hook has returned, headers cannot be changed once they have
//! gone, and an answer of the filter's own passes through its response hook. A hook that holds a message and waits for nothing
//! fails the test, where in production the request would hang until its timeout.
#![allow(clippy::panic, reason = "a failed expectation of a test harness is a panic")]

#[cfg(feature = "wasm")]
mod build;

mod driver;

mod exchange;

#[doc(hidden)]
pub mod harness;

mod native;

mod seen;

#[cfg(feature = "wasm")]
mod wasm;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use selvedge_sdk::{Filter, Reply};

use crate::exchange::Exchange;
use crate::native::Native;
pub use crate::seen::{Outcome, Seen};

/// Marks a [`Tester`] of a compiled module.
#[derive(Debug)]
pub enum Wasm {}

/// One configured filter and its world. See the [crate documentation](crate).
///
/// Build the world first; the filter starts with the first request, or with [`start`](Tester::start).
pub struct Tester<F = Wasm> {
    config: Vec<u8>,
    properties: BTreeMap<Vec<String>, Vec<u8>>,
    upstreams: BTreeMap<String, Fake>,
    origin: Fake,
    down: RefCell<BTreeSet<String>>,
    calls: RefCell<BTreeMap<String, usize>>,
    shared: World,
    make: fn(&Self) -> Result<Box<dyn Guest>, String>,
    #[cfg(feature = "wasm")]
    module: Vec<u8>,
    guest: OnceCell<Box<dyn Guest>>,
    started: Cell<bool>,
    filter: PhantomData<F>,
}

type Fake = Box<dyn Fn(&Seen) -> Reply>;

/// What the filter shares with the test.
#[derive(Clone)]
struct World {
    now: Arc<Mutex<SystemTime>>,
    log: Arc<Mutex<Vec<String>>>,
    upstreams: Arc<Mutex<BTreeSet<String>>>,
}

impl World {
    fn now(&self) -> SystemTime {
        *self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self, level: &str, message: &str) {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{level} {message}"));
    }

    fn lines(&self) -> Vec<String> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_upstream(&self, name: &str) -> bool {
        self.upstreams.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }
}

/// A started filter: native or wasm.
trait Guest {
    fn open(&self) -> Box<dyn Stream>;
    fn tick(&self);
    fn metric(&self, name: &str) -> Option<u64>;
}

/// One stream of it. Each callback may read and change the exchange.
trait Stream {
    fn request_headers(&mut self, exchange: &mut Exchange, end: bool) -> Step;
    fn request_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Step;
    fn response_headers(&mut self, exchange: &mut Exchange, end: bool) -> Step;
    fn response_body(&mut self, exchange: &mut Exchange, held: usize, end: bool) -> Step;
    fn request_trailers(&mut self, exchange: &mut Exchange) -> Step;
    fn response_trailers(&mut self, exchange: &mut Exchange) -> Step;
    fn answered(&mut self, exchange: &mut Exchange, token: u32, answer: Option<&Reply>) -> Step;
    fn finish(&mut self, exchange: &mut Exchange);
    /// Whether the request's, the response's body callbacks are to be made.
    fn bodies(&self) -> (bool, bool);
}

/// What a callback came to.
#[derive(Default)]
struct Step {
    pause: bool,
    reply: Option<Reply>,
    resume_request: bool,
    resume_response: bool,
    callouts: Vec<Callout>,
}

/// A callout that waits for its answer.
struct Callout {
    token: u32,
    seen: Seen,
}

impl<F: Filter> Tester<F> {
    /// Runs the filter natively, on a fake host of this thread.
    pub fn native() -> Self {
        Self::new(|tester| {
            let native = Native::<F>::start(&tester.config, &tester.shared)?;
            Ok(Box::new(native))
        })
    }

    /// Runs the filter's compiled module on the shipped host. `#[selvedge_sdk::test]` builds it and does this.
    #[cfg(feature = "wasm")]
    pub fn compiled(module: impl Into<Vec<u8>>) -> Self {
        Self::of_module(module.into())
    }

    /// Runs the filter's tick once, whatever its period.
    pub fn tick(&self) {
        self.guest().tick();
    }
}

#[cfg(feature = "wasm")]
impl Tester<Wasm> {
    /// Runs a compiled module on the shipped host.
    ///
    /// # Panics
    /// When the file cannot be read.
    pub fn wasm(path: impl AsRef<std::path::Path>) -> Self {
        let path = path.as_ref();
        Self::module(std::fs::read(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display())))
    }

    /// The same for a module that is in memory.
    pub fn module(bytes: impl Into<Vec<u8>>) -> Self {
        Self::of_module(bytes.into())
    }
}

impl<F> Tester<F> {
    #[cfg(feature = "wasm")]
    fn of_module(bytes: Vec<u8>) -> Self {
        let mut tester = Self::new(|tester| {
            let guest = wasm::WasmGuest::start(&tester.module, &tester.config, &tester.shared)?;
            Ok(Box::new(guest))
        });
        tester.module = bytes;
        tester
    }

    fn new(make: fn(&Self) -> Result<Box<dyn Guest>, String>) -> Self {
        let properties = BTreeMap::from([(vec!["source".into(), "address".into()], b"192.0.2.1:40000".to_vec())]);
        let shared = World {
            // A round number that no filter takes for "never": 2001-09-09.
            now: Arc::new(Mutex::new(UNIX_EPOCH + Duration::from_secs(1_000_000_000))),
            log: Arc::default(),
            upstreams: Arc::default(),
        };
        Self {
            config: Vec::new(),
            properties,
            upstreams: BTreeMap::new(),
            origin: Box::new(|_| Reply::new(200)),
            down: RefCell::default(),
            calls: RefCell::default(),
            shared,
            make,
            #[cfg(feature = "wasm")]
            module: Vec::new(),
            guest: OnceCell::new(),
            started: Cell::new(false),
            filter: PhantomData,
        }
    }

    /// Another tester of the same filter on the same host, with nothing set: for tables of cases.
    #[must_use]
    pub fn another(&self) -> Self {
        Self {
            #[cfg(feature = "wasm")]
            module: self.module.clone(),
            ..Self::new(self.make)
        }
    }

    /// The configuration, given to the filter as JSON. Default: none.
    #[must_use]
    pub fn config(mut self, config: serde_json::Value) -> Self {
        self.config = config.to_string().into_bytes();
        self
    }

    /// The client's address, `192.0.2.1` by default.
    #[must_use]
    pub fn client(self, address: &str) -> Self {
        let address = if address.contains(':') { format!("[{address}]:40000") } else { format!("{address}:40000") };
        self.property(&["source", "address"], address)
    }

    /// The client's country. Default: unknown.
    #[must_use]
    pub fn country(self, code: &str) -> Self {
        self.property(&["source", "geo", "country"], code)
    }

    /// The client's continent. Default: unknown.
    #[must_use]
    pub fn continent(self, code: &str) -> Self {
        self.property(&["source", "geo", "continent"], code)
    }

    /// Any property of the host, in the host's encoding.
    #[must_use]
    pub fn property(mut self, path: &[&str], value: impl AsRef<[u8]>) -> Self {
        let path = path.iter().map(|&segment| segment.to_owned()).collect();
        self.properties.insert(path, value.as_ref().to_vec());
        self
    }

    /// An upstream: what it answers to a callout, and to requests that the filter sends there. A request that is sent to an
    /// upstream of another name goes to the origin; a callout to one is refused.
    #[must_use]
    pub fn upstream(mut self, name: &str, answer: impl Fn(&Seen) -> Reply + 'static) -> Self {
        self.upstreams.insert(name.to_owned(), Box::new(answer));
        self.shared.upstreams.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        self
    }

    /// The origin: what it answers. Default: 200 with an empty body.
    #[must_use]
    pub fn origin(mut self, answer: impl Fn(&Seen) -> Reply + 'static) -> Self {
        self.origin = Box::new(answer);
        self
    }

    /// Sets the clock, 2001-09-09T01:46:40Z by default. It stands still.
    pub fn set_now(&self, now: SystemTime) {
        *self.shared.now.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    /// Moves the clock on.
    pub fn advance(&self, by: Duration) {
        self.set_now(self.shared.now() + by);
    }

    /// From now on callouts to this upstream fail.
    pub fn upstream_down(&self, name: &str) {
        self.down.borrow_mut().insert(name.to_owned());
    }

    /// Starts the filter, if it has not been started.
    ///
    /// # Errors
    /// The filter refuses its configuration (or the module does not load): the log so far, or the reason.
    pub fn start(&self) -> Result<(), String> {
        if !self.started.replace(true) {
            let guest = (self.make)(self)?;
            self.guest.get_or_init(|| guest);
        }
        Ok(())
    }

    /// A GET request.
    pub fn get(&self, path: &str) -> TestRequest<'_, F> {
        self.request("GET", path)
    }

    /// A POST request.
    pub fn post(&self, path: &str) -> TestRequest<'_, F> {
        self.request("POST", path)
    }

    /// Any request.
    pub fn request(&self, method: &str, path: &str) -> TestRequest<'_, F> {
        let headers = [(":authority", "example.com"), (":path", path), (":method", method), (":scheme", "http")]
            .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()));
        TestRequest { tester: self, headers: headers.into(), body: Vec::new(), cut: Cut::default() }
    }

    /// How many callouts this upstream has been sent, failed ones included.
    pub fn calls(&self, upstream: &str) -> usize {
        self.calls.borrow().get(upstream).copied().unwrap_or(0)
    }

    /// A counter's or gauge's value, or how many values a histogram has counted; 0 when there is none of that name.
    pub fn metric(&self, name: &str) -> u64 {
        self.guest().metric(name).unwrap_or(0)
    }

    /// The log so far, one line each: `INFO the message`.
    pub fn logs(&self) -> Vec<String> {
        self.shared.lines()
    }

    fn guest(&self) -> &dyn Guest {
        if let Err(error) = self.start() {
            panic!("the filter does not start: {error}");
        }
        match self.guest.get() {
            Some(guest) => &**guest,
            None => panic!("the filter did not start"),
        }
    }

    fn call(&self, seen: &Seen) -> Option<Reply> {
        *self.calls.borrow_mut().entry(seen.upstream().to_owned()).or_default() += 1;
        if self.down.borrow().contains(seen.upstream()) {
            return None;
        }
        self.upstreams.get(seen.upstream()).map(|answer| answer(seen))
    }

    fn forward(&self, seen: &Seen) -> Reply {
        self.upstreams.get(seen.upstream()).unwrap_or(&self.origin)(seen)
    }
}

/// A request that is not sent yet.
#[must_use = "nothing happens until the request is sent"]
pub struct TestRequest<'t, F> {
    tester: &'t Tester<F>,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
    cut: Cut,
}

/// How bodies arrive.
#[derive(Clone, Copy, Default)]
struct Cut {
    /// In pieces of at most so many bytes.
    chunk: Option<usize>,
    trailers: bool,
}

impl<F> TestRequest<'_, F> {
    /// Adds a header; `host` and pseudo headers replace the default.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let name = if name.eq_ignore_ascii_case("host") { ":authority".into() } else { name.to_ascii_lowercase() };
        if name.starts_with(':') {
            self.headers.retain(|(other, _)| *other != name);
            self.headers.insert(0, (name, value.as_ref().to_vec()));
        } else {
            self.headers.push((name, value.as_ref().to_vec()));
        }
        self
    }

    /// The host that is asked for, `example.com` by default.
    pub fn host(self, host: &str) -> Self {
        self.header("host", host)
    }

    /// The body, with its `content-length`.
    pub fn body(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.body = bytes.into();
        let length = self.body.len().to_string();
        self.header("content-length", length)
    }

    /// Delivers both bodies in pieces of at most `bytes`, and the end on its own after them, as a network might; the request's
    /// length is not announced then. Default: in one piece.
    pub fn chunked(mut self, bytes: usize) -> Self {
        self.cut.chunk = Some(bytes.max(1));
        self
    }

    /// Ends both bodies with trailers, as gRPC does: no piece of a body is marked as its last then. A message without a body has
    /// none.
    pub fn trailers(mut self) -> Self {
        self.cut.trailers = true;
        self
    }

    /// Sends it and waits for the end of the response.
    ///
    /// # Panics
    /// When the filter does not start, traps, or holds a message for ever.
    pub fn send(mut self) -> Outcome {
        if self.cut.chunk.is_some() {
            self.headers.retain(|(name, _)| name != "content-length");
        }
        let logged = self.tester.shared.lines().len();
        let exchange = Exchange::new(self.headers, self.tester.properties.clone());
        let mut outcome = driver::Driver::new(self.tester, exchange, self.cut).run(self.body);
        outcome.logs = self.tester.shared.lines().split_off(logged.min(self.tester.shared.lines().len()));
        outcome
    }
}
