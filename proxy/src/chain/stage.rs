//! One filter's place in the chain of one exchange: its stream context, what it holds back, and what it is waiting for.

use std::sync::Arc;

use bytes::Bytes;
use pingora::protocols::http::server::Session as HttpSession;
use selvedge_wasm::{Action, Arrival, Body, CallError, Calls, Effects, LocalReply, Outcome, Phases, Stream};
use smallvec::SmallVec;
use tracing::warn;

use super::exchange::{View, refusal};
use super::{ChainError, Direction, Event, ExchangeState};
use crate::plan::{ChainFilter, OnFailure};

/// What a stage does with an event.
pub(super) enum Step {
    /// These go on to the next stage; none while the stage holds them.
    Emit(SmallVec<[Event; 3]>),
    /// The filter answers in place of the message.
    Reply(LocalReply),
}

/// What became of an event right away.
pub(super) enum Taken {
    /// It goes on to the next stage, alone: what nearly every event does.
    Pass(Event),
    /// More than that, or less.
    Step(Step),
    /// The guest was called, and wants something or has failed: see [`Stage::settle`].
    Called(Called),
}

/// A guest call that did not just continue.
pub(super) struct Called {
    outcome: Result<Outcome, CallError>,
    event: Event,
    ends: bool,
}

/// What a stage keeps back in one direction.
#[derive(Default)]
struct Side {
    /// The header is held.
    headers: bool,
    /// Body bytes seen by the filter but not let through.
    body: Body,
    /// The message was answered locally: nothing of it is shown to the filter any more.
    done: bool,
}

/// How a guest call ended, after everything it waited for.
enum Settled {
    Continue,
    /// Paused, and no callout is outstanding.
    Held,
    Reply(LocalReply),
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
}

impl Stage {
    pub(super) fn new(filter: Arc<ChainFilter>) -> Self {
        Self {
            phases: filter.plugin.module().phases(),
            filter,
            context: Context::Unopened,
            request: Side::default(),
            response: Side::default(),
            calls: Calls::new(),
        }
    }

    pub(super) fn holds_headers(&self, direction: Direction) -> bool {
        self.side(direction).headers
    }

    pub(super) fn wants_body(&self, direction: Direction) -> bool {
        if matches!(self.context, Context::Gone) {
            return false;
        }
        match direction {
            Direction::Request => self.phases.contains(Phases::REQUEST_BODY),
            Direction::Response => {
                self.phases.contains(Phases::RESPONSE_BODY) && !matches!(self.context, Context::Unopened)
            }
        }
    }

    /// The message this stage was looking at has been answered: it sees no more of it.
    pub(super) fn answered(&mut self) {
        self.response = Side { done: true, ..Side::default() };
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
            Context::Gone => return Ok(Taken::Pass(event)),
            // A filter that never saw the request takes no part in the response.
            Context::Unopened if direction == Direction::Response => return Ok(Taken::Pass(event)),
            Context::Unopened => match self.filter.plugin.open_stream(worker) {
                Ok(stream) => self.context = Context::Open(stream),
                Err(error) => return self.failed(&error, direction, event).map(Taken::Step),
            },
            Context::Open(_) => {}
        }

        let ends = event.ends();
        let holds = self.side(direction).headers;
        let (outcome, event) = match event {
            Event::Headers { end } => {
                if let Some(refusal) = refusal(&self.filter, direction, io.req_header(), state) {
                    return Ok(Taken::Step(Step::Reply(refusal)));
                }
                if !self.wants_headers(direction) {
                    return Ok(Taken::Pass(event));
                }
                (self.call(state, io, |stream, view| headers(stream, view, direction, end)), event)
            }
            Event::Body { data, end } => {
                let wanted = self.wants_body(direction);
                if !wanted && !holds {
                    return Ok(Taken::Pass(Event::Body { data, end }));
                }
                self.buffer(direction, data)?;
                let outcome = if wanted {
                    let length = self.side(direction).body.len();
                    self.call(state, io, |stream, view| body(stream, view, direction, length, end))
                } else {
                    Ok(Outcome { action: Action::Pause, effects: Effects::default() })
                };
                (outcome, Event::Body { data: Bytes::new(), end })
            }
            Event::Trailers => {
                if !self.wants_trailers(direction) && !holds && self.side(direction).body.is_empty() {
                    return Ok(Taken::Pass(event));
                }
                (self.call(state, io, |stream, view| trailers(stream, view, direction)), event)
            }
        };

        match (&outcome, event) {
            (Ok(outcome), event @ Event::Headers { .. }) if !holds && simply_continues(outcome) => {
                Ok(Taken::Pass(event))
            }
            (Ok(outcome), Event::Body { end, .. }) if !holds && simply_continues(outcome) => {
                Ok(Taken::Pass(Event::Body { data: self.side_mut(direction).body.take(), end }))
            }
            (_, event) => Ok(Taken::Called(Called { outcome, event, ends })),
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
        let Called { outcome, event, ends } = called;
        let settled = match outcome {
            Ok(outcome) => self.carry_out(outcome, direction, ends, state, io).await,
            Err(error) => Err(Failure::Call(error)),
        };
        match settled {
            Ok(Settled::Continue) => Ok(Step::Emit(self.release(direction, event))),
            Ok(Settled::Held) => {
                self.hold(direction, &event);
                Ok(Step::Emit(SmallVec::new()))
            }
            Ok(Settled::Reply(reply)) => {
                let replaceable = self.side(direction).headers || matches!(event, Event::Headers { .. });
                if direction == Direction::Response && !replaceable {
                    // The header is already on its way to the client: nothing can be put in its place.
                    return Err(ChainError::Closed { filter: Arc::clone(&self.filter.name) });
                }
                Ok(Step::Reply(reply))
            }
            Err(Failure::Call(error)) => self.failed(&error, direction, event),
            Err(Failure::Stuck) => {
                warn!(filter = %self.filter.name, wait = ?self.filter.wait, "filter stayed paused beyond its limit");
                match self.filter.on_failure {
                    OnFailure::Open => Ok(Step::Emit(self.abandon(direction, event))),
                    OnFailure::Closed => Err(ChainError::Stuck { filter: Arc::clone(&self.filter.name) }),
                }
            }
            Err(Failure::Chain(error)) => Err(error),
        }
    }

    /// Tells the filter that the exchange is over. Idempotent.
    pub(super) fn finish(&mut self, state: &mut ExchangeState, io: &mut HttpSession) {
        if let Context::Open(mut stream) = std::mem::replace(&mut self.context, Context::Gone) {
            let mut view = View {
                request: io.req_header_mut(),
                state,
                request_body: Some(&mut self.request.body),
                response_body: Some(&mut self.response.body),
                filter: &self.filter,
            };
            stream.finish(&mut view).ok();
        }
    }

    /// Carries out what the guest asked for, and waits as long as it is paused with callouts outstanding.
    async fn carry_out(
        &mut self,
        outcome: Outcome,
        direction: Direction,
        ends: bool,
        state: &mut ExchangeState,
        io: &mut HttpSession,
    ) -> Result<Settled, Failure> {
        if let Some(settled) = self.apply(outcome.action, outcome.effects, direction)? {
            return Ok(settled);
        }

        // One chunk may be larger than the limit, as long as it goes on at once.
        if self.side(direction).body.len() > self.filter.body_limit {
            return Err(Failure::Chain(self.too_large(direction)));
        }
        let deadline = tokio::time::Instant::now() + self.filter.wait;
        loop {
            if !self.calls.pending() && !ends {
                return Ok(Settled::Held);
            }

            let event = tokio::time::timeout_at(deadline, self.wait(io)).await.map_err(|_| Failure::Stuck)?;
            let effects = match event? {
                Awaited::Arrival(arrival) => {
                    self.call(state, io, |stream, view| stream.on_arrival(view, arrival))
                        .map_err(Failure::Call)?
                        .effects
                }
                Awaited::Mail(effects) => effects,
            };
            if let Some(settled) = self.apply(Action::Pause, effects, direction)? {
                return Ok(settled);
            }
        }
    }

    /// The immediate effects of a guest call; `None` = the filter is paused.
    fn apply(&mut self, action: Action, effects: Effects, direction: Direction) -> Result<Option<Settled>, Failure> {
        if effects.poisoned {
            return Err(Failure::Call(CallError::Poisoned));
        }
        if !effects.outgoing.is_empty() {
            self.calls.begin(self.filter.plugin.host(), effects.outgoing);
        }
        if effects.close {
            return Err(Failure::Chain(ChainError::Closed { filter: Arc::clone(&self.filter.name) }));
        }
        if let Some(reply) = effects.reply {
            return Ok(Some(Settled::Reply(*reply)));
        }
        let resumed = match direction {
            Direction::Request => effects.resume_request,
            Direction::Response => effects.resume_response,
        };
        Ok((action == Action::Continue || resumed).then_some(Settled::Continue))
    }

    /// Waits for the next thing that may resume this filter, or for the client to go away. Cancel safe.
    async fn wait(&mut self, io: &mut HttpSession) -> Result<Awaited, Failure> {
        let Context::Open(stream) = &self.context else { return std::future::pending().await };
        // Before the request body has been read, reading would eat it; then the deadline bounds the wait.
        let watch = io.is_body_done();
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
        if (side.headers || !side.body.is_empty()) && side.body.len() + data.len() > limit {
            return Err(self.too_large(direction));
        }
        side.body.push(data);
        Ok(())
    }

    fn too_large(&self, direction: Direction) -> ChainError {
        ChainError::TooLarge { filter: Arc::clone(&self.filter.name), direction, limit: self.filter.body_limit }
    }

    fn hold(&mut self, direction: Direction, event: &Event) {
        if matches!(event, Event::Headers { .. }) {
            self.side_mut(direction).headers = true;
        }
    }

    /// Everything held back, followed by `event`.
    fn release(&mut self, direction: Direction, event: Event) -> SmallVec<[Event; 3]> {
        let side = self.side_mut(direction);
        let mut events = SmallVec::new();
        if std::mem::take(&mut side.headers) {
            events.push(Event::Headers { end: false });
        }
        match event {
            Event::Headers { end } => events.push(Event::Headers { end }),
            Event::Body { end, .. } => events.push(Event::Body { data: side.body.take(), end }),
            Event::Trailers => {
                let data = side.body.take();
                if !data.is_empty() {
                    events.push(Event::Body { data, end: false });
                }
                events.push(Event::Trailers);
            }
        }
        events
    }

    /// The filter takes no further part; what it held goes on.
    fn abandon(&mut self, direction: Direction, event: Event) -> SmallVec<[Event; 3]> {
        self.context = Context::Gone;
        self.calls = Calls::new();
        // A header event that failed is not held yet, a body event's bytes are already in the buffer.
        self.release(direction, event)
    }

    fn failed(&mut self, error: &CallError, direction: Direction, event: Event) -> Result<Step, ChainError> {
        warn!(filter = %self.filter.name, policy = ?self.filter.on_failure, %error, "filter failed");
        match self.filter.on_failure {
            OnFailure::Open => {
                if let Event::Body { data, end } = event {
                    if !data.is_empty() {
                        self.side_mut(direction).body.push(data);
                    }
                    return Ok(Step::Emit(self.abandon(direction, Event::Body { data: Bytes::new(), end })));
                }
                Ok(Step::Emit(self.abandon(direction, event)))
            }
            OnFailure::Closed => {
                self.context = Context::Gone;
                Err(ChainError::Failed { filter: Arc::clone(&self.filter.name) })
            }
        }
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

/// Something a paused filter was waiting for.
enum Awaited {
    Arrival(Arrival),
    Mail(Effects),
}

/// Why a guest call did not settle.
enum Failure {
    Call(CallError),
    Stuck,
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
