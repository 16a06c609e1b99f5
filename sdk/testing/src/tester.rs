//! One configured filter and its world.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use selvedge_sdk::{Filter, Reply};

use crate::driver;
use crate::exchange::Fields;
use crate::fake::{Answer, Fake};
use crate::guest::{Callout, Guest, NoAnswer};
use crate::native::Native;
use crate::request::TestRequest;
use crate::seen::{Outcome, Seen};
use crate::world::World;

/// The most ticks that one [`Tester::advance`] runs.
const MAX_TICKS: u32 = 10_000;

/// Marks a [`Tester`] of a compiled module whose filter the test does not name.
#[derive(Debug)]
pub enum Wasm {}

/// One configured filter and its world. See the [crate documentation](crate).
///
/// Build the world first; the filter starts with the first request, or with [`start`](Tester::start).
pub struct Tester<F = Wasm> {
    config: Vec<u8>,
    given: BTreeMap<String, Vec<u8>>,
    upstreams: BTreeMap<String, Fake>,
    origin: Fake,
    foreign: Foreign,
    fail_open: bool,
    pub(crate) world: World,
    make: fn(&Self) -> Result<Rc<dyn Guest>, String>,
    #[cfg(feature = "wasm")]
    pub(crate) module: Rc<Vec<u8>>,
    guest: RefCell<Option<Rc<dyn Guest>>>,
    refused: RefCell<Option<String>>,
    calls: RefCell<Vec<Seen>>,
    timers: RefCell<Vec<Timer>>,
    ids: Cell<usize>,
    next_tick: Cell<Option<SystemTime>>,
    longest_answer: Cell<usize>,
    filter: PhantomData<F>,
}

/// Foreign functions of the test, by name.
pub(crate) type Foreign = std::sync::Arc<std::sync::Mutex<BTreeMap<String, ForeignFunction>>>;

type ForeignFunction = Box<dyn Fn(&[u8]) -> Option<Vec<u8>> + Send>;

/// Something that will happen.
struct Timer {
    at: SystemTime,
    order: usize,
    what: Event,
}

enum Event {
    /// A callout of an exchange, or of none, is answered.
    Answer { run: Option<usize>, token: u32, answer: Result<Reply, NoAnswer> },
    /// An exchange has been waiting for this moment.
    Wake { run: usize },
}

impl<F: Filter> Tester<F> {
    /// Runs the filter natively, on a fake host of this thread.
    #[must_use]
    pub fn native() -> Self {
        Self::new(|tester| {
            let native = Native::<F>::start(&tester.config, &tester.world, tester.foreign.clone())?;
            Ok(Rc::new(native))
        })
    }

    /// Runs the filter's compiled module on the shipped host. `#[selvedge_sdk::test]` builds it and does this.
    #[cfg(feature = "wasm")]
    #[must_use]
    pub fn compiled(module: impl Into<Vec<u8>>) -> Self {
        Self::of_module(module.into())
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

/// The world.
impl<F> Tester<F> {
    #[cfg(feature = "wasm")]
    fn of_module(bytes: Vec<u8>) -> Self {
        let mut tester = Self::new(|tester| {
            let guest =
                crate::wasm::WasmGuest::start(&tester.module, &tester.config, &tester.world, tester.foreign.clone())?;
            Ok(Rc::new(guest))
        });
        tester.module = Rc::new(bytes);
        tester
    }

    fn new(make: fn(&Self) -> Result<Rc<dyn Guest>, String>) -> Self {
        let tester = Self {
            config: Vec::new(),
            given: BTreeMap::new(),
            upstreams: BTreeMap::new(),
            origin: Fake::new(|_: &Seen| Reply::new(200)),
            foreign: Foreign::default(),
            fail_open: false,
            world: World::new(),
            make,
            #[cfg(feature = "wasm")]
            module: Rc::default(),
            guest: RefCell::default(),
            refused: RefCell::default(),
            calls: RefCell::default(),
            timers: RefCell::default(),
            ids: Cell::new(0),
            next_tick: Cell::new(None),
            longest_answer: Cell::new(0),
            filter: PhantomData,
        };
        tester.client("192.0.2.1")
    }

    /// Another tester of the same filter on the same host, with nothing set: for tables of cases.
    #[must_use]
    pub fn another(&self) -> Self {
        #[cfg_attr(not(feature = "wasm"), expect(unused_mut, reason = "there is no module to hand on"))]
        let mut another = Self::new(self.make);
        #[cfg(feature = "wasm")]
        {
            another.module = self.module.clone();
        }
        another
    }

    /// The configuration, given to the filter as JSON. Default: none.
    #[must_use]
    pub fn config(mut self, config: serde_json::Value) -> Self {
        self.config = config.to_string().into_bytes();
        self
    }

    /// The client's address, `192.0.2.1` by default, with port 40000.
    #[must_use]
    pub fn client(self, address: &str) -> Self {
        let address = if address.contains(':') { format!("[{address}]:40000") } else { format!("{address}:40000") };
        self.property(&["source", "address"], address).property(&["source", "port"], 40_000_i64.to_le_bytes())
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

    /// The client's city. Default: unknown.
    #[must_use]
    pub fn city(self, name: &str) -> Self {
        self.property(&["source", "geo", "city"], name)
    }

    /// The number of the client's network. Default: unknown.
    #[must_use]
    pub fn asn(self, number: u32) -> Self {
        self.property(&["source", "geo", "asn"], i64::from(number).to_le_bytes())
    }

    /// The client has come over TLS 1.3 and asked for this server name. The scheme of requests is `https` then.
    #[must_use]
    pub fn tls(self, server_name: &str) -> Self {
        self.property(&["connection", "tls_version"], "TLSv1.3")
            .property(&["connection", "cipher"], "TLS_AES_128_GCM_SHA256")
            .property(&["connection", "requested_server_name"], server_name)
            .property(&["connection", "mtls"], [0])
    }

    /// The client has shown a certificate of this subject (`CN=device,O=Things`), which was verified. Comes with [`tls`](Tester::tls).
    #[must_use]
    pub fn client_certificate(self, subject: &str) -> Self {
        self.property(&["connection", "mtls"], [1]).property(&["connection", "subject_peer_certificate"], subject)
    }

    /// Any property of the host, in the host's encoding; it wins over what the tester would say.
    #[must_use]
    pub fn property(mut self, path: &[&str], value: impl AsRef<[u8]>) -> Self {
        self.given.insert(path.join("."), value.as_ref().to_vec());
        self
    }

    /// An upstream: what it answers to a callout, and to requests that the filter sends there. The filter can neither call nor choose
    /// an upstream that the test does not have. The answer is a [`Reply`], or an [`Answer`] that says how it comes.
    #[must_use]
    pub fn upstream<A: Into<Answer>>(mut self, name: &str, answer: impl Fn(&Seen) -> A + 'static) -> Self {
        self.upstreams.insert(name.to_owned(), Fake::new(answer));
        self.world.add_upstream(name);
        self
    }

    /// An upstream that gives one answer after the other; the last one stays.
    ///
    /// # Panics
    /// When there are none.
    #[must_use]
    #[track_caller]
    pub fn upstream_answers<A: Into<Answer>>(mut self, name: &str, answers: impl IntoIterator<Item = A>) -> Self {
        let answers: Vec<Answer> = answers.into_iter().map(Into::into).collect();
        assert!(!answers.is_empty(), "upstream {name:?} needs an answer, or more");
        self.upstreams.insert(name.to_owned(), Fake::of_list(answers));
        self.world.add_upstream(name);
        self
    }

    /// The origin: what it answers. Default: 200 with an empty body.
    #[must_use]
    pub fn origin<A: Into<Answer>>(mut self, answer: impl Fn(&Seen) -> A + 'static) -> Self {
        self.origin = Fake::new(answer);
        self
    }

    /// A foreign function of the host, in place of what the tester has (`selvedge.shared.*`). `None` is "bad argument".
    #[must_use]
    pub fn foreign(self, name: &str, function: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static) -> Self {
        let mut functions = self.foreign.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        functions.insert(name.to_owned(), Box::new(function));
        drop(functions);
        self
    }

    /// Makes it a host that has none of our functions beyond the ABI (`selvedge.…`), as Envoy: does the filter run there too? Those that
    /// the test gives ([`foreign`](Tester::foreign)) stay.
    #[must_use]
    pub fn plain_host(self) -> Self {
        self.world.make_plain();
        self
    }

    /// When the filter fails, the exchange goes on without it (`on_failure: open`). Default: it ends with 503.
    #[must_use]
    pub fn fail_open(mut self) -> Self {
        self.fail_open = true;
        self
    }

    /// From now on this upstream cannot be reached.
    #[track_caller]
    pub fn upstream_down(&self, name: &str) {
        self.fake(name).set_down(true);
    }

    /// From now on this upstream can be reached again.
    #[track_caller]
    pub fn upstream_up(&self, name: &str) {
        self.fake(name).set_down(false);
    }

    /// From now on this upstream takes so much longer to answer, on the tester's clock; it takes no time by default.
    #[track_caller]
    pub fn upstream_slow(&self, name: &str, by: Duration) {
        self.fake(name).set_slower(by);
    }

    #[track_caller]
    fn fake(&self, name: &str) -> &Fake {
        self.upstreams.get(name).unwrap_or_else(|| panic!("{}", self.no_such_upstream(name)))
    }

    fn no_such_upstream(&self, name: &str) -> String {
        let known: Vec<&str> = self.upstreams.keys().map(String::as_str).collect();
        match known.is_empty() {
            true => format!("the test has no upstream {name:?}, and no other"),
            false => format!("the test has no upstream {name:?}: it has {}", known.join(", ")),
        }
    }
}

/// What happens.
impl<F> Tester<F> {
    /// Starts the filter, if it has not been started.
    ///
    /// # Errors
    /// The filter refuses its configuration (or the module does not load): the log so far, or the reason.
    pub fn start(&self) -> Result<(), String> {
        if self.guest.borrow().is_some() {
            return Ok(());
        }
        if let Some(error) = &*self.refused.borrow() {
            return Err(error.clone());
        }
        match (self.make)(self) {
            Ok(guest) => {
                *self.guest.borrow_mut() = Some(guest);
                self.next_tick.set(None);
                self.plan_ticks();
                self.send_root_callouts();
                Ok(())
            }
            Err(error) => {
                *self.refused.borrow_mut() = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Starts the filter anew: what it has kept, counted and logged is gone.
    pub(crate) fn restart(&self) {
        *self.guest.borrow_mut() = None;
        self.calls.borrow_mut().clear();
        self.timers.borrow_mut().clear();
        self.world.forget_lines();
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
        TestRequest::new(self, method, path)
    }

    /// Sends requests that are under way together, on one VM: they take turns, one callback each, and their callouts are answered in the
    /// order in which answers come ([`Answer::after`]). The outcomes are in the order of the requests; each has all lines that were
    /// logged from its start.
    #[track_caller]
    pub fn together<'t>(&'t self, requests: impl IntoIterator<Item = TestRequest<'t, F>>) -> Vec<Outcome> {
        driver::run(self, requests.into_iter().map(TestRequest::prepared).collect())
    }

    /// Sets the clock, 2001-09-09T01:46:40Z by default. Nothing happens meanwhile: no ticks, no answers.
    pub fn set_now(&self, now: SystemTime) {
        self.world.set_now(now);
        self.next_tick.set(None);
        self.plan_ticks();
    }

    /// What the clock says. It stands still unless the test, or an answer that takes its time, moves it.
    pub fn now(&self) -> SystemTime {
        self.world.now()
    }

    /// Moves the clock on. Ticks that are due run on the way, each at its time; where that would be more than 10,000, the last so many.
    pub fn advance(&self, by: Duration) {
        let until = self.now() + by;
        if self.guest.borrow().is_some() {
            if let Some(period) = self.guest().tick_period() {
                let most = period.saturating_mul(MAX_TICKS);
                if by > most {
                    self.set_now(until - most);
                }
            }
            while self.happen(until) {}
        }
        self.world.set_now(until);
    }

    /// Runs the filter's tick once, whatever its period.
    ///
    /// # Panics
    /// When the filter fails in it.
    #[track_caller]
    pub fn tick(&self) {
        if let Err(failure) = self.guest().tick() {
            panic!("the filter failed in its tick: {failure}\n{}", self.logs().join("\n"));
        }
        self.send_root_callouts();
        self.next_tick.set(None);
        self.plan_ticks();
        while self.happen(self.now()) {}
    }
}

/// What a test looks at.
impl<F> Tester<F> {
    /// How many callouts this upstream has been sent, failed ones included.
    ///
    /// # Panics
    /// The test has no such upstream.
    #[track_caller]
    pub fn calls(&self, upstream: &str) -> usize {
        self.calls_to(upstream).len()
    }

    /// The callouts that this upstream has been sent, failed ones included.
    ///
    /// # Panics
    /// The test has no such upstream.
    #[track_caller]
    pub fn calls_to(&self, upstream: &str) -> Vec<Seen> {
        self.fake(upstream);
        self.calls.borrow().iter().filter(|seen| seen.upstream() == upstream).cloned().collect()
    }

    /// A counter's or gauge's value, or how many values a histogram has counted; 0 when there is none of that name.
    pub fn metric(&self, name: &str) -> u64 {
        let metrics = self.metrics();
        metrics.into_iter().find(|(known, _)| known == name).map_or(0, |(_, value)| value)
    }

    /// The same, of the series with these values of its labels.
    pub fn metric_with(&self, name: &str, labels: &[(&str, &str)]) -> u64 {
        let labels: String = labels.iter().map(|(label, value)| format!(";{label}={value}")).collect();
        self.metric(&format!("{name}{labels}"))
    }

    /// All metrics that the filter has defined, series with labels as `name;label=value`.
    pub fn metrics(&self) -> Vec<(String, u64)> {
        self.guest().metrics()
    }

    /// A metric has this value; labels as in [`metrics`](Tester::metrics).
    ///
    /// # Panics
    /// It has not: all metrics are shown.
    #[track_caller]
    pub fn expect_metric(&self, name: &str, value: u64) {
        let found = self.metric(name);
        if found != value {
            let all: Vec<String> = self.metrics().iter().map(|(name, value)| format!("    {name} {value}")).collect();
            panic!("expected metric {name} to be {value}, it is {found}; the filter has\n{}", all.join("\n"));
        }
    }

    /// A value of the filter's shared data.
    pub fn shared(&self, key: &str) -> Option<Vec<u8>> {
        self.guest().store().get(key).map(|(value, _)| value)
    }

    /// The keys of the filter's shared data that begin so, in order.
    pub fn shared_keys(&self, prefix: &str) -> Vec<String> {
        self.guest().store().keys(prefix)
    }

    /// Writes into the filter's shared data, as another filter or a request before would have.
    ///
    /// # Panics
    /// When the host's store would not take it: a key over 4 KiB or a value over 64 KiB.
    #[track_caller]
    pub fn set_shared(&self, key: &str, value: impl AsRef<[u8]>) {
        if self.guest().store().set(key, value.as_ref(), 0, None).is_err() {
            panic!("the host takes keys of up to 4 KiB and values of up to 64 KiB: {key:?} is not taken");
        }
    }

    /// The log so far, one line each: `INFO the message`.
    pub fn logs(&self) -> Vec<String> {
        self.world.lines()
    }
}

/// What the driver needs.
impl<F> Tester<F> {
    #[track_caller]
    pub(crate) fn guest(&self) -> Rc<dyn Guest> {
        if let Err(error) = self.start() {
            panic!("the filter does not start: {error}");
        }
        match &*self.guest.borrow() {
            Some(guest) => guest.clone(),
            None => panic!("the filter did not start"),
        }
    }

    pub(crate) fn next_id(&self) -> usize {
        self.ids.set(self.ids.get() + 1);
        self.ids.get()
    }

    pub(crate) fn given(&self) -> BTreeMap<String, Vec<u8>> {
        self.given.clone()
    }

    pub(crate) fn upstream_names(&self) -> Vec<String> {
        self.world.upstreams()
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.given.contains_key("connection.tls_version") { "https" } else { "http" }
    }

    pub(crate) fn fails_open(&self) -> bool {
        self.fail_open
    }

    pub(crate) fn logged(&self) -> usize {
        self.world.logged()
    }

    pub(crate) fn lines_since(&self, count: usize) -> Vec<String> {
        self.world.lines_since(count)
    }

    pub(crate) fn longest_answer(&self) -> usize {
        self.longest_answer.get()
    }

    /// Sends a callout: its answer will come.
    pub(crate) fn call(&self, run: Option<usize>, callout: Callout) {
        let answer = match self.upstreams.get(callout.seen.upstream()) {
            Some(fake) => fake.answer(&callout.seen),
            None => Answer::lost(),
        };
        self.calls.borrow_mut().push(callout.seen);
        let in_time = answer.after < callout.timeout;
        let reply = if in_time { answer.reply.ok_or(NoAnswer::Lost) } else { Err(NoAnswer::Late) };
        let at = self.now() + answer.after.min(callout.timeout);
        self.at(at, Event::Answer { run, token: callout.token, answer: reply });
    }

    pub(crate) fn forward(&self, seen: &Seen) -> Answer {
        let answer = self.upstreams.get(seen.upstream()).unwrap_or(&self.origin).answer(seen);
        let length = answer.reply.as_ref().map_or(0, |reply| reply.bytes().len());
        self.longest_answer.set(length);
        answer
    }

    pub(crate) fn wake_at(&self, run: usize, at: SystemTime) {
        self.at(at, Event::Wake { run });
    }

    /// The first answer for an exchange that is there.
    pub(crate) fn take_answer(&self, run: usize) -> Option<(u32, Result<Reply, NoAnswer>)> {
        let now = self.now();
        let mut timers = self.timers.borrow_mut();
        let due = timers.iter().enumerate().filter(|(_, timer)| {
            timer.at <= now && matches!(timer.what, Event::Answer { run: Some(of), .. } if of == run)
        });
        let (place, _) = due.min_by_key(|(_, timer)| (timer.at, timer.order))?;
        match timers.remove(place).what {
            Event::Answer { token, answer, .. } => Some((token, answer)),
            Event::Wake { .. } => None,
        }
    }

    /// An exchange is over: nothing will happen to it any more.
    pub(crate) fn forget_run(&self, run: usize) {
        self.timers.borrow_mut().retain(|timer| match timer.what {
            Event::Answer { run: of, .. } => of != Some(run),
            Event::Wake { run: of } => of != run,
        });
    }

    /// Time passes until something happens to an exchange. `false`: nothing will.
    pub(crate) fn wait(&self) -> bool {
        let of_exchanges = |timer: &&Timer| !matches!(timer.what, Event::Answer { run: None, .. });
        let next = self.timers.borrow().iter().filter(of_exchanges).map(|timer| timer.at).min();
        let Some(next) = next else { return false };
        while self.happen(next) {}
        self.world.set_now(next.max(self.now()));
        // A moment that was waited for has come.
        self.timers.borrow_mut().retain(|timer| !matches!(timer.what, Event::Wake { .. }) || timer.at > next);
        true
    }

    /// Lets the next thing happen that belongs to no exchange, if it is due by then: a tick, the answer to a callout of a tick.
    fn happen(&self, until: SystemTime) -> bool {
        let of_nobody = |timer: &Timer| matches!(timer.what, Event::Answer { run: None, .. });
        let answer = self.timers.borrow().iter().filter(|timer| of_nobody(timer)).map(|timer| timer.at).min();
        let tick = self.next_tick.get();
        let next = match (answer, tick) {
            (Some(answer), Some(tick)) => answer.min(tick),
            (Some(at), None) | (None, Some(at)) => at,
            (None, None) => return false,
        };
        if next > until {
            return false;
        }

        self.world.set_now(next.max(self.now()));
        if answer.is_some_and(|at| at <= next) {
            let mut timers = self.timers.borrow_mut();
            let place = timers.iter().position(|timer| of_nobody(timer) && timer.at == next);
            let timer = place.map(|place| timers.remove(place));
            drop(timers);
            if let Some(Timer { what: Event::Answer { token, answer, .. }, .. }) = timer {
                self.report(self.guest().root_answered(token, answer.as_ref().map_err(|why| *why)));
            }
        } else {
            self.report(self.guest().tick());
            self.next_tick.set(None);
        }
        self.send_root_callouts();
        self.plan_ticks();
        true
    }

    /// A failure outside of exchanges has nobody to be told but the log.
    fn report(&self, result: Result<(), String>) {
        if let Err(failure) = result {
            self.world.log("CRITICAL", &format!("the filter failed: {failure}"));
        }
    }

    fn plan_ticks(&self) {
        let guest = self.guest.borrow();
        let period = guest.as_ref().and_then(|guest| guest.tick_period());
        let next = period.map(|period| self.next_tick.get().unwrap_or_else(|| self.now() + period));
        self.next_tick.set(next);
    }

    fn send_root_callouts(&self) {
        let callouts = self.guest.borrow().as_ref().map(|guest| guest.root_callouts()).unwrap_or_default();
        for callout in callouts {
            self.call(None, callout);
        }
    }

    fn at(&self, at: SystemTime, what: Event) {
        let order = self.next_id();
        self.timers.borrow_mut().push(Timer { at, order, what });
    }
}

/// The fields of a reply, as an answer to a callout has them.
pub(crate) fn answer_fields(answer: &Reply) -> Fields {
    let status = (":status".to_owned(), answer.status().to_string().into_bytes());
    [status]
        .into_iter()
        .chain(answer.headers().iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())))
        .collect()
}
