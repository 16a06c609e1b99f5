//! One filter's place in the chain of one exchange: its stream context, what it holds back, and what it is waiting for.

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context as Wakeup, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use pingora::protocols::http::server::Session as HttpSession;
use selvedge_wasm::{Action, Arrival, CallError, Calls, Effects, Hold, LocalReply, Outcome, Phases, Stream};
use smallvec::{SmallVec, smallvec};

use super::exchange::{View, refusal};
use super::side::{Showing, Side, adds_trailers, announce_length, announced_length};
use super::{ChainError, Direction, Event, ExchangeState};
use crate::plan::{ChainFilter, OnFailure, OnPause};

/// How long to let a busy VM be.
const BUSY: Duration = Duration::from_millis(1);

/// Events that a stage lets through.
pub(super) type Released = SmallVec<[Event; 3]>;

/// What a stage does with an event.
pub(super) enum Step {
    /// These go on to the next stage; none while the stage holds them.
    Emit(Released),
    /// The filter answers in place of the message.
    Reply(Box<LocalReply>),
}

/// What became of an event right away. Small, because every stage returns one for every event.
pub(super) enum Taken {
    /// It goes on to the next stage, alone: what nearly every event does.
    Pass(Event),
    /// Nothing goes on: the stage holds it.
    Held,
    /// The guest could not be called now: its VM is busy. To be taken again after a [`Stage::rest`].
    Busy(Event),
    /// More than that.
    More(Box<More>),
}

/// What becomes of few events.
pub(super) enum More {
    Step(Step),
    /// First what was held goes on to the next stage, then these come to this one.
    Again {
        released: Released,
        events: SmallVec<[Event; 2]>,
    },
    /// The guest was called, and wants something or has failed: see [`Stage::settle`].
    Called(Called),
}

impl From<More> for Taken {
    fn from(more: More) -> Self {
        Self::More(Box::new(more))
    }
}

/// What came of what had arrived for a stage.
pub(super) enum Caught {
    /// Nothing that concerns the message.
    Nothing,
    /// The filter has resumed: this was held.
    Released(Released),
    /// The filter answers.
    Reply(Box<LocalReply>),
}

/// A guest call that did not just continue.
pub(super) struct Called {
    outcome: Result<Outcome, CallError>,
    event: Event,
    /// Nothing more of the message will be shown to the filter: when it pauses, only a resume ends that.
    last: bool,
}

/// How a guest call ended, after everything it waited for.
enum Settled {
    Continue,
    /// Paused, and no callout is outstanding.
    Held,
    /// Paused for longer than it may.
    Stuck,
    Reply(Box<LocalReply>),
}

enum Context {
    /// No event has reached the filter yet.
    Unopened,
    Open(Stream),
    /// The filter failed open, or has been told that the exchange is over: it takes no further part.
    Gone,
}

pub(super) struct Stage {
    filter: Arc<ChainFilter>,
    /// What the filter wants to see.
    phases: Phases,
    context: Context,
    request: Side,
    response: Side,
    calls: Calls,
    /// Received ahead of its turn.
    inbox: Option<Box<Awaited>>,
    /// The wait for mail between two events. Kept from poll to poll, because it may be waiting for a timer.
    mail: Option<Pin<Box<dyn Future<Output = Effects> + Send>>>,
}

impl Stage {
    pub(super) fn new(filter: Arc<ChainFilter>) -> Self {
        let phases = filter.plugin.module().phases();
        Self {
            request: Side::new(filter.request_body, phases.contains(Phases::REQUEST_BODY)),
            response: Side::new(filter.response_body, phases.contains(Phases::RESPONSE_BODY)),
            phases,
            filter,
            context: Context::Unopened,
            calls: Calls::new(),
            inbox: None,
            mail: None,
        }
    }

    pub(super) fn name(&self) -> Arc<str> {
        Arc::clone(&self.filter.name)
    }

    pub(super) fn holds_headers(&self, direction: Direction) -> bool {
        self.side(direction).headers
    }

    /// Whether the bytes of a body have to come by here.
    pub(super) fn wants_body(&self, direction: Direction) -> bool {
        match (&self.context, direction) {
            (Context::Gone, _) | (Context::Unopened, Direction::Response) => false,
            _ => self.side(direction).showing != Showing::Nothing,
        }
    }

    /// The response has been answered in its place: a filter that had begun to look at it sees no more of it.
    pub(super) fn answered(&mut self) {
        if self.response.begun {
            self.response = Side { done: true, ..Side::default() };
        }
    }

    /// Takes an event: calls the guest, and says what goes on if that is simple.
    pub(super) fn take(
        &mut self,
        direction: Direction,
        event: Event,
        state: &mut ExchangeState,
        io: &mut HttpSession,
        worker: usize,
    ) -> Result<Taken, ChainError> {
        if self.side(direction).done {
            return Ok(Taken::Pass(event));
        }
        match self.context {
            // It failed while it was looking the other way.
            Context::Gone if self.side(direction).is_holding() => {
                return Ok(More::Again { released: self.side_mut(direction).let_go(), events: smallvec![event] }.into());
            }
            Context::Gone => return Ok(Taken::Pass(event)),
            // A filter that never saw the request takes no part in the response.
            Context::Unopened if direction == Direction::Response => return Ok(Taken::Pass(event)),
            Context::Unopened => match self.filter.plugin.open_stream(worker) {
                Ok(stream) => self.context = Context::Open(stream),
                Err(CallError::Busy) => return Ok(Taken::Busy(event)),
                Err(error) => return self.failed(&error, direction, event, state).map(|step| More::Step(step).into()),
            },
            Context::Open(ref stream) if stream.is_busy() => return Ok(Taken::Busy(event)),
            Context::Open(_) => {}
        }

        if self.may_have_news() {
            match self.receive(state, io) {
                Ok(None) => {}
                Ok(Some(reply)) => return Ok(More::Step(Step::Reply(reply)).into()),
                Err(Failure::Chain(error)) => return Err(error),
                Err(Failure::Call(error)) => {
                    return self.failed(&error, direction, event, state).map(|step| More::Step(step).into());
                }
            }
        }
        if self.side(direction).is_resumed() {
            return Ok(More::Again { released: self.side_mut(direction).let_go(), events: smallvec![event] }.into());
        }
        match event {
            Event::Headers { end } => Ok(self.take_headers(direction, end, state, io)),
            Event::Body { data, end } => self.take_body(direction, data, end, state, io),
            Event::Trailers => Ok(self.take_trailers(direction, state, io)),
        }
    }

    fn take_headers(
        &mut self,
        direction: Direction,
        end: bool,
        state: &mut ExchangeState,
        io: &mut HttpSession,
    ) -> Taken {
        if let Some(refusal) = refusal(&self.filter, direction, io.req_header(), state) {
            return More::Step(Step::Reply(Box::new(refusal))).into();
        }
        self.side_mut(direction).begun = true;
        let event = Event::Headers { end };
        if !self.wants_headers(direction) {
            return self.headers_go(direction, end);
        }
        let outcome = self.call(state, io, |stream, view| headers(stream, view, direction, end));
        match &outcome {
            Ok(outcome) if simply_continues(outcome) => self.headers_go(direction, end),
            _ => {
                // A filter that is shown nothing meanwhile has nothing to wait for but its resume.
                let asked = outcome.as_ref().is_ok_and(|outcome| outcome.effects.hold == Hold::All);
                let stops_all = asked || self.filter.on_pause == OnPause::StopAll;
                let last = end || stops_all || self.side(direction).showing == Showing::Nothing;
                More::Called(Called { outcome, event, last }).into()
            }
        }
    }

    /// The filter lets the header go; it may be held all the same, until the filter has seen what it is to see of the body.
    fn headers_go(&mut self, direction: Direction, end: bool) -> Taken {
        let side = self.side_mut(direction);
        if !end && side.collects() {
            side.headers = true;
            return Taken::Held;
        }
        Taken::Pass(Event::Headers { end })
    }

    fn take_body(
        &mut self,
        direction: Direction,
        data: Bytes,
        end: bool,
        state: &mut ExchangeState,
        io: &mut HttpSession,
    ) -> Result<Taken, ChainError> {
        let side = self.side_mut(direction);
        let closing = std::mem::take(&mut side.closing);
        match side.showing {
            Showing::Nothing if !side.is_holding() => return Ok(Taken::Pass(Event::Body { data, end })),
            Showing::Begin(size) => {
                let mut data = data;
                let missing = size.saturating_sub(side.body.len()).min(data.len());
                side.body.push(data.split_to(missing));
                side.rest = data;
            }
            Showing::Nothing | Showing::Chunks | Showing::Whole => self.buffer(direction, data)?,
        }

        // What the filter is told of the end: trailers do not count, because most filters wait for an end and know no trailers.
        let side = self.side_mut(direction);
        let mut last = end || closing;
        match side.showing {
            Showing::Whole if !last => return Ok(Taken::Held),
            Showing::Begin(size) if !last && side.body.len() < size => {
                return Ok(Taken::Held);
            }
            Showing::Begin(_) => last &= side.rest.is_empty(),
            Showing::Chunks | Showing::Whole | Showing::Nothing => {}
        }
        if side.showing == Showing::Nothing {
            let outcome = Ok(Outcome { action: Action::Pause, effects: Effects::default() });
            let event = Event::Body { data: Bytes::new(), end };
            return Ok(More::Called(Called { outcome, event, last: true }).into());
        }

        let simple = side.showing == Showing::Chunks && !side.headers;
        let peeks = matches!(side.showing, Showing::Begin(_));
        if side.showing != Showing::Chunks || closing {
            side.showing = Showing::Nothing;
        }
        let length = side.body.len();
        let announced = if peeks { announced_length(direction, state, io) } else { None };
        let outcome = self.call(state, io, |stream, view| body(stream, view, direction, length, last));
        if let Some(announced) = announced
            && announced_length(direction, state, io) == Some(announced)
        {
            // The rest passes as it is, so the filter's edit of the beginning is the only difference.
            let length = (announced + self.side(direction).body.len() as u64).saturating_sub(length as u64);
            announce_length(direction, length, state, io);
        }
        match &outcome {
            Ok(outcome) if simple && simply_continues(outcome) && !(end && adds_trailers(direction, state)) => {
                let side = self.side_mut(direction);
                side.paused = false;
                Ok(Taken::Pass(Event::Body { data: side.body.take(), end }))
            }
            _ => {
                // Trailers may still come, and are shown to a filter that knows them; otherwise only a resume is left.
                let trailers = closing && self.wants_trailers(direction);
                let last = end || (self.side(direction).showing == Showing::Nothing && !trailers);
                let event = Event::Body { data: Bytes::new(), end };
                Ok(More::Called(Called { outcome, event, last }).into())
            }
        }
    }

    fn take_trailers(&mut self, direction: Direction, state: &mut ExchangeState, io: &mut HttpSession) -> Taken {
        let wanted = self.wants_trailers(direction);
        let side = self.side_mut(direction);
        if !wanted && !side.is_holding() {
            return Taken::Pass(Event::Trailers);
        }
        // A filter that collects the body has it now; one that holds on and knows no trailers has to learn that nothing more comes.
        if side.collects() || (!wanted && side.showing == Showing::Chunks) {
            side.closing = true;
            let end_of_body = Event::Body { data: Bytes::new(), end: false };
            return More::Again { released: Released::new(), events: smallvec![end_of_body, Event::Trailers] }.into();
        }
        let outcome = match wanted {
            true => self.call(state, io, |stream, view| trailers(stream, view, direction)),
            false => Ok(Outcome { action: Action::Pause, effects: Effects::default() }),
        };
        match &outcome {
            Ok(outcome) if simply_continues(outcome) && !self.side(direction).is_holding() => {
                Taken::Pass(Event::Trailers)
            }
            _ => More::Called(Called { outcome, event: Event::Trailers, last: true }).into(),
        }
    }

    /// Carries out what the guest wants, waits while it is paused with something outstanding, and says what goes on.
    pub(super) async fn settle(
        &mut self,
        direction: Direction,
        called: Called,
        state: &mut ExchangeState,
        io: &mut HttpSession,
    ) -> Result<Step, ChainError> {
        let Called { outcome, event, last } = called;
        let settled = match outcome {
            Ok(outcome) => self.carry_out(outcome, direction, last, state, io).await,
            Err(error) => Err(Failure::Call(error)),
        };
        match settled {
            Ok(Settled::Continue) => Ok(Step::Emit(self.release(direction, event, state))),
            Ok(Settled::Held) => {
                self.side_mut(direction).headers |= matches!(event, Event::Headers { .. });
                Ok(Step::Emit(Released::new()))
            }
            Ok(Settled::Reply(reply)) => Ok(Step::Reply(reply)),
            Ok(Settled::Stuck) => {
                self.report(&format_args!("stayed paused longer than {:?}", self.filter.wait));
                if self.filter.on_failure == OnFailure::Closed {
                    return Err(ChainError::Stuck { filter: self.name() });
                }
                self.leave();
                // A header event is not held yet, a body event's bytes are already in the buffer.
                Ok(Step::Emit(self.release(direction, event, state)))
            }
            Err(Failure::Call(error)) => self.failed(&error, direction, event, state),
            Err(Failure::Chain(error)) => Err(error),
        }
    }

    /// Brings what has arrived to the guest, between two events of this direction.
    pub(super) async fn catch_up(
        &mut self,
        direction: Direction,
        state: &mut ExchangeState,
        io: &mut HttpSession,
    ) -> Result<Caught, ChainError> {
        // What is in the inbox has stirred whoever calls this, and would at once again.
        let mut waited = Duration::ZERO;
        while self.inbox.is_some() && self.is_busy() {
            self.rest(&mut waited).await?;
        }
        if !matches!(self.context, Context::Open(_)) || self.side(direction).done || self.is_busy() {
            return Ok(Caught::Nothing);
        }
        match self.receive(state, io) {
            Ok(Some(reply)) => Ok(Caught::Reply(reply)),
            Ok(None) if self.side(direction).is_resumed() => Ok(Caught::Released(self.side_mut(direction).let_go())),
            Ok(None) => Ok(Caught::Nothing),
            Err(Failure::Chain(error)) => Err(error),
            Err(Failure::Call(error)) => {
                self.fails(&error)?;
                Ok(Caught::Released(self.side_mut(direction).let_go()))
            }
        }
    }

    /// Ready when something has come that [`Stage::catch_up`] has to bring to the guest. Registers the waker otherwise.
    pub(super) fn poll_stirred(&mut self, cx: &mut Wakeup<'_>) -> Poll<()> {
        let Context::Open(stream) = &self.context else { return Poll::Pending };
        if self.inbox.is_some() {
            return Poll::Ready(());
        }
        if let Poll::Ready(arrival) = pin!(self.calls.next()).poll(cx) {
            self.inbox = Some(Box::new(Awaited::Arrival(arrival)));
            return Poll::Ready(());
        }
        let mail = self.mail.get_or_insert_with(|| Box::pin(stream.mail()));
        let effects = ready!(mail.as_mut().poll(cx));
        self.mail = None;
        self.inbox = Some(Box::new(Awaited::Mail(effects)));
        Poll::Ready(())
    }

    /// Tells the filter that the exchange is over, after what has arrived for it, unless its VM is busy; whether it has been told.
    /// Idempotent.
    pub(super) fn finish_now(&mut self, state: &mut ExchangeState, io: &mut HttpSession) -> bool {
        let free = !self.is_busy();
        if free {
            self.end(state, io);
        }
        free
    }

    /// The same, when the VM is free, or has been busy for as long as the filter may keep an exchange waiting.
    pub(super) async fn finish(&mut self, state: &mut ExchangeState, io: &mut HttpSession) {
        if self.is_busy() {
            self.until_free(tokio::time::Instant::now() + self.filter.wait).await;
        }
        self.end(state, io);
    }

    fn end(&mut self, state: &mut ExchangeState, io: &mut HttpSession) {
        // Nothing it asks for now can change the exchange; what it wants sent is sent.
        if matches!(self.context, Context::Open(_)) && self.may_have_news() {
            while matches!(self.receive(state, io), Ok(Some(_))) {}
        }
        if let Context::Open(mut stream) = std::mem::replace(&mut self.context, Context::Gone) {
            let mut view = View {
                request: io.req_header_mut(),
                state,
                request_body: Some(&mut self.request.body),
                response_body: Some(&mut self.response.body),
                filter: &self.filter,
            };
            // Busy even now: the guest is told when it is not, without an exchange to look at.
            stream.finish(&mut view).ok();
        }
    }

    /// The guest's VM is running a call that takes long, on another thread: see [`CallError::Busy`].
    fn is_busy(&self) -> bool {
        matches!(&self.context, Context::Open(stream) if stream.is_busy())
    }

    /// Waits until the VM is free, or as long as the filter may keep an exchange waiting.
    async fn until_free(&mut self, deadline: tokio::time::Instant) {
        while self.is_busy() && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(BUSY).await;
        }
    }

    /// Lets a busy VM be for a moment, after having waited so long already.
    ///
    /// # Errors
    /// It has been busy for longer than the filter may keep an exchange waiting.
    pub(super) async fn rest(&mut self, waited: &mut Duration) -> Result<(), ChainError> {
        if *waited >= self.filter.wait {
            return match self.filter.on_failure {
                OnFailure::Open => {
                    self.leave();
                    Ok(())
                }
                OnFailure::Closed => Err(ChainError::Stuck { filter: self.name() }),
            };
        }
        *waited += BUSY;
        tokio::time::sleep(BUSY).await;
        Ok(())
    }

    /// Carries out what the guest asked for, and waits as long as it is paused with callouts outstanding.
    async fn carry_out(
        &mut self,
        outcome: Outcome,
        direction: Direction,
        last: bool,
        state: &mut ExchangeState,
        io: &mut HttpSession,
    ) -> Result<Settled, Failure> {
        let side = self.side_mut(direction);
        side.paused = outcome.action != Action::Continue;
        if outcome.effects.hold == Hold::Discard {
            drop(side.body.take());
        }
        if let Some(reply) = self.apply(outcome.effects)? {
            return Ok(Settled::Reply(reply));
        }
        if !self.side(direction).paused {
            return Ok(Settled::Continue);
        }
        // What was sent to it before it paused does not resume it.
        while let Some(mut effects) = self.mail_by_now() {
            (effects.resume_request, effects.resume_response) = (false, false);
            if let Some(reply) = self.apply(effects)? {
                return Ok(Settled::Reply(reply));
            }
        }

        // One chunk may be larger than the limit, as long as it goes on at once.
        if self.side(direction).body.len() > self.filter.body_limit {
            return Err(Failure::Chain(self.too_large(direction)));
        }
        let deadline = tokio::time::Instant::now() + self.filter.wait;
        loop {
            if !self.calls.pending() && !last {
                return Ok(Settled::Held);
            }
            let Ok(awaited) = tokio::time::timeout_at(deadline, self.wait(io)).await else { return Ok(Settled::Stuck) };
            let awaited = awaited?;
            self.until_free(deadline).await;
            if let Some(reply) = self.bring(awaited, state, io)? {
                return Ok(Settled::Reply(reply));
            }
            if !self.side(direction).paused {
                return Ok(Settled::Continue);
            }
        }
    }

    /// Brings everything that has arrived to the guest, without waiting; stops at a reply.
    fn receive(&mut self, state: &mut ExchangeState, io: &mut HttpSession) -> Result<Option<Box<LocalReply>>, Failure> {
        loop {
            let awaited = if let Some(awaited) = self.inbox.take() {
                *awaited
            } else if let Some(arrival) = self.calls.try_next() {
                Awaited::Arrival(arrival)
            } else if let Some(effects) = self.mail_by_now() {
                Awaited::Mail(effects)
            } else {
                return Ok(None);
            };
            if let Some(reply) = self.bring(awaited, state, io)? {
                return Ok(Some(reply));
            }
        }
    }

    fn bring(
        &mut self,
        awaited: Awaited,
        state: &mut ExchangeState,
        io: &mut HttpSession,
    ) -> Result<Option<Box<LocalReply>>, Failure> {
        let effects = match awaited {
            Awaited::Arrival(arrival) => {
                let brought = self.call(state, io, |stream, view| stream.on_arrival(view, arrival));
                brought.map_err(Failure::Call)?.effects
            }
            Awaited::Mail(effects) => effects,
        };
        self.apply(effects)
    }

    /// Carries out what can be carried out at once. A resume releases what is paused in its direction, whichever of them we are in.
    fn apply(&mut self, effects: Effects) -> Result<Option<Box<LocalReply>>, Failure> {
        if effects.is_empty() {
            return Ok(None);
        }
        if effects.poisoned {
            return Err(Failure::Call(CallError::Poisoned));
        }
        if !effects.outgoing.is_empty() {
            self.calls.begin(self.filter.plugin.host(), effects.outgoing);
        }
        if effects.close {
            return Err(Failure::Chain(ChainError::Closed { filter: self.name() }));
        }
        self.request.paused &= !effects.resume_request;
        self.response.paused &= !effects.resume_response;
        // The response this filter was looking at has been answered already.
        Ok(effects.reply.filter(|_| !self.response.done))
    }

    /// Waits for the next thing that may resume this filter, or for the client to go away. Cancel safe.
    async fn wait(&mut self, io: &mut HttpSession) -> Result<Awaited, Failure> {
        if let Some(awaited) = self.inbox.take() {
            return Ok(*awaited);
        }
        let Context::Open(stream) = &self.context else { return std::future::pending().await };
        // Before an HTTP/1 request body has been read, reading would eat it; then the deadline bounds the wait.
        let watch = io.is_http2() || io.is_body_done();
        let gone = async { if watch { io.read_body_or_idle(true).await } else { std::future::pending().await } };
        tokio::select! {
            biased;
            arrival = self.calls.next() => Ok(Awaited::Arrival(arrival)),
            effects = stream.mail() => Ok(Awaited::Mail(effects)),
            read = gone => match read {
                Err(error) => Err(Failure::Chain(ChainError::ClientGone(error))),
                Ok(_) => std::future::pending().await,
            },
        }
    }

    /// Whether something may have come for the guest besides the event at hand.
    fn may_have_news(&mut self) -> bool {
        if self.inbox.is_none() && !self.calls.is_idle() {
            self.inbox = self.calls.try_next().map(|arrival| Box::new(Awaited::Arrival(arrival)));
        }
        // Who is paused is also to learn that its VM has died.
        if self.inbox.is_some() || self.request.paused || self.response.paused {
            return true;
        }
        match &mut self.context {
            Context::Open(stream) => stream.has_mail(),
            Context::Unopened | Context::Gone => false,
        }
    }

    fn mail_by_now(&self) -> Option<Effects> {
        match &self.context {
            Context::Open(stream) => stream.mail().now_or_never(),
            Context::Unopened | Context::Gone => None,
        }
    }

    fn call(
        &mut self,
        state: &mut ExchangeState,
        io: &mut HttpSession,
        call: impl FnOnce(&mut Stream, &mut View<'_>) -> Result<Outcome, CallError>,
    ) -> Result<Outcome, CallError> {
        let Context::Open(stream) = &mut self.context else { return Err(CallError::Poisoned) };
        let mut view = View {
            request: io.req_header_mut(),
            state,
            request_body: Some(&mut self.request.body),
            response_body: Some(&mut self.response.body),
            filter: &self.filter,
        };
        call(stream, &mut view)
    }

    fn buffer(&mut self, direction: Direction, data: Bytes) -> Result<(), ChainError> {
        let limit = self.filter.body_limit;
        let side = self.side_mut(direction);
        if side.is_holding() && side.body.len() + data.len() > limit {
            return Err(self.too_large(direction));
        }
        side.body.push(data);
        Ok(())
    }

    fn too_large(&self, direction: Direction) -> ChainError {
        ChainError::TooLarge { filter: self.name(), direction, limit: self.filter.body_limit }
    }

    /// Everything held back, followed by `event`.
    fn release(&mut self, direction: Direction, event: Event, state: &ExchangeState) -> Released {
        let side = self.side_mut(direction);
        match event {
            Event::Headers { end } if !end && side.collects() => {
                side.headers = true;
                Released::new()
            }
            Event::Headers { end } => smallvec![Event::Headers { end }],
            Event::Body { end: false, .. } => side.let_go(),
            Event::Body { end: true, .. } => {
                let mut events = Released::new();
                if std::mem::take(&mut side.headers) {
                    events.push(Event::Headers { end: false });
                }
                let end = !adds_trailers(direction, state);
                events.push(Event::Body { data: side.take_body(), end });
                if !end {
                    events.push(Event::Trailers);
                }
                events
            }
            Event::Trailers => {
                let mut events = side.let_go();
                events.push(Event::Trailers);
                events
            }
        }
    }

    /// The filter takes no further part. What it held goes on with the next event of its direction.
    fn leave(&mut self) {
        self.filter.trouble.skip();
        self.context = Context::Gone;
        self.calls = Calls::new();
        self.inbox = None;
        self.mail = None;
        for side in [&mut self.request, &mut self.response] {
            side.showing = Showing::Nothing;
            side.paused = false;
        }
    }

    /// The guest has failed over an event.
    fn failed(
        &mut self,
        error: &CallError,
        direction: Direction,
        event: Event,
        state: &ExchangeState,
    ) -> Result<Step, ChainError> {
        self.fails(error)?;
        let event = match event {
            Event::Body { data, end } => {
                self.side_mut(direction).body.push(data);
                Event::Body { data: Bytes::new(), end }
            }
            event => event,
        };
        Ok(Step::Emit(self.release(direction, event, state)))
    }

    /// By its policy: an error, or the filter leaves.
    fn fails(&mut self, error: &CallError) -> Result<(), ChainError> {
        self.report(error);
        match self.filter.on_failure {
            OnFailure::Open => {
                self.leave();
                Ok(())
            }
            OnFailure::Closed => {
                self.context = Context::Gone;
                Err(ChainError::Failed { filter: self.name() })
            }
        }
    }

    fn report(&self, what: &dyn std::fmt::Display) {
        self.filter.trouble.report(&self.filter.name, self.filter.on_failure, what);
    }

    fn wants_headers(&self, direction: Direction) -> bool {
        match direction {
            Direction::Request => self.phases.contains(Phases::REQUEST_HEADERS),
            Direction::Response => self.phases.contains(Phases::RESPONSE_HEADERS),
        }
    }

    fn wants_trailers(&self, direction: Direction) -> bool {
        match direction {
            Direction::Request => self.phases.contains(Phases::REQUEST_TRAILERS),
            Direction::Response => self.phases.contains(Phases::RESPONSE_TRAILERS),
        }
    }

    fn side(&self, direction: Direction) -> &Side {
        match direction {
            Direction::Request => &self.request,
            Direction::Response => &self.response,
        }
    }

    fn side_mut(&mut self, direction: Direction) -> &mut Side {
        match direction {
            Direction::Request => &mut self.request,
            Direction::Response => &mut self.response,
        }
    }
}

/// Something that comes for a filter from outside of its exchange.
enum Awaited {
    Arrival(Arrival),
    Mail(Effects),
}

/// Why a guest call did not settle.
enum Failure {
    Call(CallError),
    Chain(ChainError),
}

fn simply_continues(outcome: &Outcome) -> bool {
    outcome.action == Action::Continue && outcome.effects.is_empty()
}

fn headers(stream: &mut Stream, view: &mut View<'_>, direction: Direction, end: bool) -> Result<Outcome, CallError> {
    match direction {
        Direction::Request => stream.on_request_headers(view, end),
        Direction::Response => stream.on_response_headers(view, end),
    }
}

fn body(
    stream: &mut Stream,
    view: &mut View<'_>,
    direction: Direction,
    length: usize,
    end: bool,
) -> Result<Outcome, CallError> {
    match direction {
        Direction::Request => stream.on_request_body(view, length, end),
        Direction::Response => stream.on_response_body(view, length, end),
    }
}

fn trailers(stream: &mut Stream, view: &mut View<'_>, direction: Direction) -> Result<Outcome, CallError> {
    match direction {
        Direction::Request => stream.on_request_trailers(view),
        Direction::Response => stream.on_response_trailers(view),
    }
}
