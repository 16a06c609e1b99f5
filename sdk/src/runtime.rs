//! The executor: turns the callbacks of a host into polls of a filter's hooks. The wasm entry points and the native tester both
//! drive it; a filter author has no need of it.
//!
//! A hook is one future. It is polled in the callback that starts it and in every later one that may have what it waits for:
//!
//! ```text
//! headers -> poll -> Ready(Next)   Continue
//!                 -> Ready(reply)  send the reply, Pause
//!                 -> Pending       Pause -> body or trailers -> poll -> as above
//!                                        -> callout answered -> poll -> Ready(Next) resumes the message
//!                    for a chunk   Continue: what is there goes on, and the hook with what comes
//! ```
//!
//! One in which nothing is awaited ([`Hooks::request_waits`](crate::Hooks::request_waits)) is ready at its first poll. It is run where it is
//! called, and nothing is allocated for it.

use std::cell::RefCell;
use std::fmt::{self, Debug, Formatter};
use std::mem::needs_drop;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::body::Body;
use crate::facts;
use crate::filter::{Continue, Filter, Flow};
use crate::host::{self, Direction};
use crate::message::Message;
use crate::request::Request;
use crate::response::Response;
use crate::upstream;

/// What the host does with the message after a callback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Let it go on.
    Continue,
    /// Hold it.
    Pause,
}

/// The plugin context: one filter and its configuration.
pub struct Root<F: Filter> {
    filter: Option<Rc<F>>,
    /// The hooks outside of streams that wait: `start`, and the last `tick`.
    starting: RefCell<Option<Task>>,
    ticking: RefCell<Option<Task>>,
}

type Task = Pin<Box<dyn Future<Output = ()>>>;

impl<F: Filter> Default for Root<F> {
    fn default() -> Self {
        Self { filter: None, starting: RefCell::default(), ticking: RefCell::default() }
    }
}

impl<F: Filter> Debug for Root<F> {
    fn fmt(&self, formatter: &mut Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Root").field("configured", &self.filter.is_some()).finish_non_exhaustive()
    }
}

impl<F: Filter> Root<F> {
    /// Makes the filter from its configuration. `false` when that is not valid; the log says why.
    pub fn configure(&mut self, json: &[u8]) -> bool {
        match F::configure(json) {
            Ok(filter) => {
                let filter = Rc::new(filter);
                self.filter = Some(filter.clone());
                if let Some(period) = F::TICK.filter(|_| F::HOOKS.tick) {
                    host::current().set_tick_period(period);
                }
                if F::HOOKS.start {
                    run(&self.starting, Box::pin(async move { filter.start().await }));
                }
                true
            }
            Err(error) => {
                log::error!("configuration: {error}");
                false
            }
        }
    }

    /// Runs the tick hook, unless the last one still waits.
    pub fn tick(&self) {
        if F::HOOKS.tick
            && let Some(filter) = &self.filter
            && self.ticking.borrow().is_none()
        {
            let filter = filter.clone();
            run(&self.ticking, Box::pin(async move { filter.tick().await }));
        }
    }

    /// A callout of a hook outside of streams is answered, or has failed (no headers).
    pub fn on_call_response(&self, token: u32, headers: usize, body: usize) {
        upstream::answered(token, headers, body);
        if F::HOOKS.start {
            resume(&self.starting);
        }
        if F::HOOKS.tick {
            resume(&self.ticking);
        }
    }

    /// The filter; `None` before a valid configuration.
    #[cfg(any(test, target_arch = "wasm32"))]
    pub(crate) fn filter(&self) -> Option<&Rc<F>> {
        self.filter.as_ref()
    }

    /// Opens a stream; `None` before a valid configuration.
    pub fn open(&self) -> Option<Stream<F>> {
        self.filter.as_ref().map(|filter| Stream::new(filter.clone()))
    }
}

/// Begins a hook outside of streams.
fn run(place: &RefCell<Option<Task>>, task: Task) {
    place.replace(Some(task));
    resume(place);
}

fn resume(place: &RefCell<Option<Task>>) {
    // Not borrowed while it runs.
    let Some(mut task) = place.take() else { return };
    if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
        place.replace(Some(task));
    }
}

/// One stream: a request and its response. Dropping it drops the hooks that still wait.
pub struct Stream<F: Filter> {
    filter: Rc<F>,
    /// Made for the first hook.
    state: Option<Rc<RefCell<F::Stream>>>,
    request: Half,
    response: Half,
}

#[allow(
    clippy::await_holding_refcell_ref,
    reason = "a stream has one hook at a time: one that waits is dropped before the next begins"
)]
impl<F: Filter> Stream<F> {
    /// Whether there is anything to what the filter keeps of a stream.
    const HAS_STATE: bool = size_of::<F::Stream>() != 0 || needs_drop::<F::Stream>();

    /// Whether a callback may leave something behind that a later one must find. Where it cannot, `#[filter]` says so to the host
    /// (`stateless`), which then never tells that a stream is over.
    #[cfg(any(test, target_arch = "wasm32"))]
    pub(crate) const MAY_REMAIN: bool = Self::HAS_STATE
        || F::HOOKS.request_body
        || F::HOOKS.request_waits
        || F::HOOKS.response_body
        || F::HOOKS.response_waits;

    pub(crate) fn new(filter: Rc<F>) -> Self {
        Self { filter, state: None, request: Half::default(), response: Half::default() }
    }

    #[cfg(any(test, target_arch = "wasm32"))]
    pub(crate) fn filter(&self) -> &Rc<F> {
        &self.filter
    }

    /// Whether there is something here that a new stream has not.
    #[cfg(any(test, target_arch = "wasm32"))]
    pub(crate) fn remains(&self) -> bool {
        Self::MAY_REMAIN && (self.state.is_some() || self.request.remains() || self.response.remains())
    }

    /// The request headers are there; `end`: there is nothing more.
    pub fn on_request_headers(&mut self, end: bool) -> Action {
        if !F::HOOKS.request {
            return Action::Continue;
        }

        let (direction, callbacks) = (Direction::Request, F::HOOKS.request_body);
        if F::HOOKS.request_waits {
            let body = self.request.body(direction, callbacks, end);
            let (filter, state) = (self.filter.clone(), self.state());
            return self.request.start(async move {
                let mut stream = state.borrow_mut();
                filter.request(&mut Request::new(Message::over(body)), &mut stream).await
            });
        }

        let mut request = Request::new(self.request.message(direction, callbacks, end));
        let flow = self.with_state(|filter, stream| at_once(filter.request(&mut request, stream)));
        self.request.decided(flow, request.into_body())
    }

    /// The host holds `held` bytes of the request body; `end`: that is all.
    pub fn on_request_body(&mut self, held: usize, end: bool) -> Action {
        self.request.on_body(held, end)
    }

    /// The request has ended with trailers.
    pub fn on_request_trailers(&mut self) -> Action {
        self.request.on_trailers()
    }

    /// The response headers are there; `end`: there is nothing more.
    pub fn on_response_headers(&mut self, end: bool) -> Action {
        // The host has answered while the request hook still waited: what that hook would say no longer matters, and it must
        // give back the stream's state.
        self.request.task = None;
        if !F::HOOKS.response {
            return Action::Continue;
        }

        let (direction, callbacks) = (Direction::Response, F::HOOKS.response_body);
        if F::HOOKS.response_waits {
            let body = self.response.body(direction, callbacks, end);
            let (filter, state) = (self.filter.clone(), self.state());
            return self.response.start(async move {
                let mut stream = state.borrow_mut();
                filter.response(&mut Response::new(Message::over(body)), &mut stream).await
            });
        }

        let mut response = Response::new(self.response.message(direction, callbacks, end));
        let flow = self.with_state(|filter, stream| at_once(filter.response(&mut response, stream)));
        self.response.decided(flow, response.into_body())
    }

    /// The host holds `held` bytes of the response body; `end`: that is all.
    pub fn on_response_body(&mut self, held: usize, end: bool) -> Action {
        self.response.on_body(held, end)
    }

    /// The response has ended with trailers.
    pub fn on_response_trailers(&mut self) -> Action {
        self.response.on_trailers()
    }

    /// A callout of this stream is answered, or has failed (no headers).
    pub fn on_call_response(&mut self, token: u32, headers: usize, body: usize) {
        upstream::answered(token, headers, body);
        for (half, direction) in [(&mut self.request, Direction::Request), (&mut self.response, Direction::Response)] {
            if matches!(half.poll(), Step::Next | Step::Flowing) && half.paused {
                half.paused = false;
                host::current().resume(direction);
                if let Some(body) = &half.body {
                    body.released();
                }
            }
        }
    }

    /// The stream is over.
    pub fn on_log(&mut self) {
        self.request.task = None;
        self.response.task = None;
        if F::HOOKS.done {
            self.with_state(|filter, stream| filter.done(&facts::exchange(), stream));
        }
    }

    fn state(&mut self) -> Rc<RefCell<F::Stream>> {
        if Self::HAS_STATE { self.state.get_or_insert_default().clone() } else { Rc::default() }
    }

    /// For hooks that do not wait, and while none does.
    fn with_state<T>(&mut self, work: impl FnOnce(&F, &mut F::Stream) -> T) -> T {
        if Self::HAS_STATE {
            work(&self.filter, &mut self.state.get_or_insert_default().borrow_mut())
        } else {
            work(&self.filter, &mut F::Stream::default())
        }
    }
}

/// Runs the request hook of a filter from which nothing remains. `end`: there is nothing more than the headers.
#[cfg(any(test, target_arch = "wasm32"))]
#[inline(always)]
pub(crate) fn pass_request<F: Filter>(filter: &F, end: bool) -> Action {
    let mut request = Request::new(Message::new(Direction::Request, false, end));
    pass(at_once(filter.request(&mut request, &mut F::Stream::default())))
}

/// The same with the response hook.
#[cfg(any(test, target_arch = "wasm32"))]
#[inline(always)]
pub(crate) fn pass_response<F: Filter>(filter: &F, end: bool) -> Action {
    let mut response = Response::new(Message::new(Direction::Response, false, end));
    pass(at_once(filter.response(&mut response, &mut F::Stream::default())))
}

/// Does what a hook has said.
#[inline(always)]
fn pass(flow: Flow) -> Action {
    match flow {
        Ok(Continue::Next) => Action::Continue,
        Err(reply) => {
            reply.send();
            Action::Pause
        }
    }
}

/// Runs a hook that waits for nothing, where it is.
#[allow(
    clippy::panic,
    reason = "a message must not pass before its hook is done, and nobody would poll this one again"
)]
fn at_once<T>(hook: impl Future<Output = T>) -> T {
    match pin!(hook).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("a hook waits in which #[filter] sees no `.await`: write one in the hook itself"),
    }
}

/// One direction of a stream.
#[derive(Default)]
struct Half {
    /// While a hook waits, and after it when the body is a new one.
    body: Option<Rc<Body>>,
    task: Option<Pin<Box<dyn Future<Output = Flow>>>>,
    replied: bool,
    /// The last callback has held the message.
    paused: bool,
}

/// What a poll came to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// There is nothing to poll.
    Idle,
    /// The hook waits, and the message with it.
    Pending,
    /// The hook waits for more of the message, and what is there goes on.
    Flowing,
    /// The hook has let the message pass, just now.
    Next,
    /// The hook has answered, just now.
    Replied,
}

impl Half {
    /// Whether there is something here that a new half has not.
    #[cfg(any(test, target_arch = "wasm32"))]
    fn remains(&self) -> bool {
        self.task.is_some() || self.body.is_some() || self.replied
    }

    /// The message, for a hook that does not wait.
    fn message(&self, direction: Direction, callbacks: bool, end: bool) -> Message {
        match &self.body {
            None => Message::new(direction, callbacks, end),
            Some(body) => {
                body.ended(end);
                Message::over(body.clone())
            }
        }
    }

    /// The body of the message, for a hook that waits for news of it.
    fn body(&mut self, direction: Direction, callbacks: bool, end: bool) -> Rc<Body> {
        let body = self.body.get_or_insert_with(|| Rc::new(Body::new(direction, callbacks, end)));
        body.ended(end);
        body.clone()
    }

    fn start(&mut self, hook: impl Future<Output = Flow> + 'static) -> Action {
        self.task = Some(Box::pin(hook));
        self.advance()
    }

    /// A hook that does not wait is done. `body`: that of its message, if it has touched it.
    fn decided(&mut self, flow: Flow, body: Option<Rc<Body>>) -> Action {
        self.body = body.filter(|body| body.is_replaced());
        self.replied |= flow.is_err();
        pass(flow)
    }

    fn on_body(&mut self, held: usize, end: bool) -> Action {
        if let Some(body) = &self.body {
            body.arrived(held, end);
        }
        self.on_more()
    }

    fn on_trailers(&mut self) -> Action {
        if let Some(body) = &self.body {
            body.ended(true);
        }
        self.on_more()
    }

    /// More of the message is here. A new body is settled before the poll, which may read it, and again after it, because the poll
    /// may have set one.
    fn on_more(&mut self) -> Action {
        if let Some(body) = &self.body {
            body.settle();
        }
        let action = self.advance();
        if let Some(body) = &self.body {
            if !self.replied {
                body.settle();
            }
            if action == Action::Continue {
                body.released();
            }
        }
        action
    }

    fn advance(&mut self) -> Action {
        let action = match self.poll() {
            Step::Idle if self.replied => Action::Pause,
            Step::Idle | Step::Next | Step::Flowing => Action::Continue,
            Step::Pending | Step::Replied => Action::Pause,
        };
        self.paused = action == Action::Pause;
        action
    }

    /// Polls the hook. Its waker does nothing: every callback that can bring news polls.
    fn poll(&mut self) -> Step {
        let (Some(task), Some(body)) = (&mut self.task, &self.body) else { return Step::Idle };
        body.flow.close();
        let Poll::Ready(flow) = task.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            return if body.flow.is_open() { Step::Flowing } else { Step::Pending };
        };

        self.task = None;
        let body = self.body.take();
        match self.decided(flow, body) {
            Action::Continue => Step::Next,
            Action::Pause => Step::Replied,
        }
    }
}
