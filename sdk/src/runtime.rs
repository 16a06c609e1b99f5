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

use std::cell::{Cell, RefCell};
use std::fmt::{self, Debug, Formatter};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::body::Body;
use crate::facts;
use crate::filter::{Continue, Filter, Flow};
use crate::host::{self, Direction};
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
    state: Rc<Cell<F::Stream>>,
    request: Half,
    response: Half,
}

impl<F: Filter> Stream<F> {
    fn new(filter: Rc<F>) -> Self {
        Self {
            filter,
            state: Rc::default(),
            request: Half::new(Direction::Request, F::HOOKS.request_body),
            response: Half::new(Direction::Response, F::HOOKS.response_body),
        }
    }

    /// The request headers are there; `end`: there is nothing more.
    pub fn on_request_headers(&mut self, end: bool) -> Action {
        if !F::HOOKS.request {
            return Action::Continue;
        }

        let (filter, state, body) = (self.filter.clone(), self.state.clone(), self.request.body.clone());
        self.request.start(end, async move {
            let mut stream = Lease::of(state);
            filter.request(&mut Request::new(body), &mut stream.value).await
        })
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

        let (filter, state, body) = (self.filter.clone(), self.state.clone(), self.response.body.clone());
        self.response.start(end, async move {
            let mut stream = Lease::of(state);
            filter.response(&mut Response::new(body), &mut stream.value).await
        })
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
        for half in [&mut self.request, &mut self.response] {
            if matches!(half.poll(), Step::Next | Step::Flowing) && half.paused {
                half.paused = false;
                host::current().resume(half.body.direction());
                half.body.released();
            }
        }
    }

    /// The stream is over.
    pub fn on_log(&mut self) {
        self.request.task = None;
        self.response.task = None;
        if F::HOOKS.done {
            let stream = Lease::of(self.state.clone());
            self.filter.done(&facts::exchange(), &stream.value);
        }
    }
}

/// The stream's state while a hook uses it; goes back when the hook ends or is dropped.
struct Lease<S: Default> {
    value: S,
    home: Rc<Cell<S>>,
}

impl<S: Default> Lease<S> {
    fn of(home: Rc<Cell<S>>) -> Self {
        Self { value: home.take(), home }
    }
}

impl<S: Default> Drop for Lease<S> {
    fn drop(&mut self) {
        self.home.set(std::mem::take(&mut self.value));
    }
}

/// One direction of a stream.
struct Half {
    body: Rc<Body>,
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
    fn new(direction: Direction, callbacks: bool) -> Self {
        Self { body: Rc::new(Body::new(direction, callbacks)), task: None, replied: false, paused: false }
    }

    fn start(&mut self, end: bool, hook: impl Future<Output = Flow> + 'static) -> Action {
        self.body.ended(end);
        self.task = Some(Box::pin(hook));
        self.advance()
    }

    fn on_body(&mut self, held: usize, end: bool) -> Action {
        self.body.arrived(held, end);
        self.on_more()
    }

    fn on_trailers(&mut self) -> Action {
        self.body.ended(true);
        self.on_more()
    }

    /// More of the message is here. A new body is settled before the poll, which may read it, and again after it, because the poll
    /// may have set one.
    fn on_more(&mut self) -> Action {
        self.body.settle();
        let action = self.advance();
        if !self.replied {
            self.body.settle();
        }
        if action == Action::Continue {
            self.body.released();
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
        let Some(task) = &mut self.task else { return Step::Idle };
        self.body.flow.close();
        let Poll::Ready(flow) = task.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
            return if self.body.flow.is_open() { Step::Flowing } else { Step::Pending };
        };

        self.task = None;
        match flow {
            Ok(Continue::Next) => Step::Next,
            Err(reply) => {
                self.replied = true;
                reply.send();
                Step::Replied
            }
        }
    }
}
