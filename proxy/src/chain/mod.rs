//! The filter chain of one exchange.
//!
//! Headers, body chunks and trailers travel through the chain as [`Event`]s: forwards for the request, backwards for the response.
//! Each filter is a [`stage::Stage`], which may let an event through, hold it (`Pause`) or answer in its stead.
//!
//! ```text
//!              request events ->   stage 0   stage 1   stage 2   -> cache, upstream
//!   client  <- response events     stage 0   stage 1   stage 2   <-
//!
//!   stage, per direction:   Running --Pause--> Holding(headers, bytes) --Continue | resume--> Running --end--> Ended
//!                              |                  |
//!                              +---- local reply -+--> Answered (it sees no more of this message)
//! ```
//!
//! What a paused stage waits for: its outstanding callouts first; when there are none, what comes next of the message; when nothing
//! more will be shown to it (the message has ended, or its `on_pause` is `stop_all`), a resume from elsewhere (a tick, another stream),
//! until its `wait` deadline. What arrives for a stage that is not waiting is brought to it before its next event.
//!
//! A local reply travels the response half of the chain once: every filter that has not yet seen a response header sees the reply's,
//! its own maker included; those that have seen the one it replaces see no more. So each filter can replace a response once, and a
//! second reply of the same filter is ignored. Once the header is with the client, a reply ends the exchange short.

pub(crate) mod exchange;
pub(crate) mod foreign;
pub(crate) mod outbound;
pub(crate) mod properties;
pub(crate) mod session;
mod side;
mod stage;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use pingora::Error;
use pingora::protocols::http::server::Session as HttpSession;
use selvedge_wasm::LocalReply;
use smallvec::{SmallVec, smallvec};

pub(crate) use self::exchange::{Asked, ExchangeState};
use self::stage::{Caught, More, Released, Stage, Step, Taken};
use crate::plan::ChainFilter;

/// Which way an event travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Client to origin, first filter first.
    Request,
    /// Origin (or cache) to client, last filter first.
    Response,
}

impl Direction {
    /// The stage that an event meets at this position of its way through `count` stages.
    fn stage(self, position: usize, count: usize) -> usize {
        match self {
            Self::Request => position,
            Self::Response => count - 1 - position,
        }
    }
}

/// A piece of a message on its way through the chain. The headers themselves stay where they are (the request's in Pingora's
/// session, the response's in [`ExchangeState::response`]); the event says that they are next.
#[derive(Debug)]
pub(crate) enum Event {
    /// The header; `end` = nothing follows.
    Headers { end: bool },
    /// A chunk of the body; `end` = the last one.
    Body { data: Bytes, end: bool },
    /// The trailers, which end the message.
    Trailers,
}

impl Event {
    /// Whether nothing follows it.
    fn is_end(&self) -> bool {
        match self {
            Self::Headers { end } | Self::Body { end, .. } => *end,
            Self::Trailers => true,
        }
    }
}

/// Events that have passed the whole chain, in order.
pub(crate) type Passed = SmallVec<[Event; 2]>;

/// Events on their way, each with its position; the last one is next.
type Queue = SmallVec<[(usize, Event); 4]>;

/// What became of a request event.
#[derive(Debug)]
pub(crate) enum Passage {
    /// These events go on towards the origin; none while a filter holds them.
    Through(Passed),
    /// A filter has answered.
    Reply(LocalReply),
}

/// How far an event has come at once.
pub(crate) enum Advanced {
    /// Through the whole chain.
    Through(Event),
    /// To a stage that did something else than to let it go on.
    Stopped(Stopped),
}

/// Where an event has stopped.
pub(crate) struct Stopped {
    /// Of the stage, on the event's way.
    position: usize,
    taken: Taken,
}

/// Why an exchange cannot go on through its chain.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    /// A filter trapped, overran a limit or could not be started, and its `on_failure` is `closed`.
    #[error("filter {filter} failed and is configured to fail closed")]
    Failed { filter: Arc<str> },
    /// A filter holds more of the body than its `limits.body` allows.
    #[error("filter {filter} holds more than its body limit of {limit} bytes")]
    TooLarge { filter: Arc<str>, direction: Direction, limit: usize },
    /// A filter stayed paused beyond its `limits.wait`, and its `on_failure` is `closed`.
    #[error("filter {filter} stayed paused beyond its limit")]
    Stuck { filter: Arc<str> },
    /// A filter asked for the stream to be closed, or replied when the response was already on its way.
    #[error("filter {filter} closed the stream")]
    Closed { filter: Arc<str> },
    /// The client went away while a filter was paused.
    #[error("the client went away while a filter was paused")]
    ClientGone(#[source] Box<Error>),
}

impl ChainError {
    /// The same for somebody else to be told; `None` = it is about this exchange's own client.
    pub(crate) fn told(&self) -> Option<Self> {
        Some(match self {
            Self::Failed { filter } => Self::Failed { filter: Arc::clone(filter) },
            Self::TooLarge { filter, direction, limit } => {
                Self::TooLarge { filter: Arc::clone(filter), direction: *direction, limit: *limit }
            }
            Self::Stuck { filter } => Self::Stuck { filter: Arc::clone(filter) },
            Self::Closed { filter } => Self::Closed { filter: Arc::clone(filter) },
            Self::ClientGone(_) => return None,
        })
    }
}

/// The chain of one exchange: a stage per filter, and what they share.
pub(crate) struct Chain {
    stages: Vec<Stage>,
    pub(crate) state: Box<ExchangeState>,
    worker: usize,
    response_headers_seen: bool,
    /// A response header has passed the whole chain: it is with the client.
    response_out: bool,
    replied: bool,
}

impl Chain {
    /// A chain over the route's filters; the filters' contexts are opened when the first event reaches them.
    pub(crate) fn new(filters: &[Arc<ChainFilter>], state: Box<ExchangeState>, worker: usize) -> Self {
        let stages = filters.iter().map(|filter| Stage::new(Arc::clone(filter))).collect();
        Self { stages, state, worker, response_headers_seen: false, response_out: false, replied: false }
    }

    /// Sends a request event through the chain.
    ///
    /// Not cancel safe: when dropped at an await, the exchange must end (the streams then tell their guests).
    ///
    /// # Errors
    /// See [`ChainError`].
    pub(crate) async fn request(&mut self, io: &mut HttpSession, event: Event) -> Result<Passage, ChainError> {
        match self.begin_request(io, event)? {
            Advanced::Through(event) => Ok(Passage::Through(smallvec![event])),
            Advanced::Stopped(stopped) => self.end_request(io, stopped).await,
        }
    }

    /// Sends a request event into the chain, as far as it comes at once: nearly always through it.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub(crate) fn begin_request(&mut self, io: &mut HttpSession, event: Event) -> Result<Advanced, ChainError> {
        self.advance(Direction::Request, io, 0, event)
    }

    /// Goes on where a request event has stopped. Not cancel safe, as [`request`](Self::request).
    ///
    /// # Errors
    /// See [`ChainError`].
    pub(crate) async fn end_request(&mut self, io: &mut HttpSession, stopped: Stopped) -> Result<Passage, ChainError> {
        self.go_on(Direction::Request, io, stopped).await
    }

    /// Sends a response event into the chain, as far as it comes at once: nearly always through it.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub(crate) fn begin_response(&mut self, io: &mut HttpSession, event: Event) -> Result<Advanced, ChainError> {
        self.response_headers_seen = true;
        let advanced = self.advance(Direction::Response, io, 0, event)?;
        self.response_out |= matches!(advanced, Advanced::Through(Event::Headers { .. }));
        Ok(advanced)
    }

    /// Goes on where a response event has stopped; the events that have passed the whole chain. A reply by a stage replaces the response
    /// for the stages that have not seen it.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub(crate) async fn end_response(&mut self, io: &mut HttpSession, stopped: Stopped) -> Result<Passed, ChainError> {
        let Passage::Through(passed) = self.go_on(Direction::Response, io, stopped).await? else {
            return Ok(Passed::new()); // Replies of the response half have become events.
        };
        self.response_out |= passed.iter().any(|event| matches!(event, Event::Headers { .. }));
        Ok(passed)
    }

    /// True once a response header has entered the chain: an error answer made afterwards must not enter it again.
    pub(crate) fn response_started(&self) -> bool {
        self.response_headers_seen
    }

    /// True once a filter has put its own response in the place of the origin's.
    pub(crate) fn replied(&self) -> bool {
        self.replied
    }

    /// True while some stage holds the request header back: the body is then read before anything is forwarded.
    pub(crate) fn holds_request(&self) -> bool {
        self.stages.iter().any(|stage| stage.holds_headers(Direction::Request))
    }

    /// True when some stage must see the bytes of a body in this direction.
    pub(crate) fn wants_body(&self, direction: Direction) -> bool {
        self.stages.iter().any(|stage| stage.wants_body(direction))
    }

    /// Waits until something has come for a stage that holds the request or has sent something out: see [`Chain::catch_up`]. Waits for
    /// ever when nothing can come. Cancel safe.
    pub(crate) async fn stirred(&mut self) {
        poll_fn(|cx| match self.stages.iter_mut().any(|stage| stage.poll_stirred(cx).is_ready()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
        .await;
    }

    /// Brings what has come for the stages to them, between two request events.
    ///
    /// # Errors
    /// See [`ChainError`].
    pub(crate) async fn catch_up(&mut self, io: &mut HttpSession) -> Result<Passage, ChainError> {
        let mut through = Passed::new();
        for position in 0..self.stages.len() {
            let released = match self.stages[position].catch_up(Direction::Request, &mut self.state, io).await? {
                Caught::Nothing => continue,
                Caught::Released(events) => events,
                Caught::Reply(reply) => return Ok(Passage::Reply(*reply)),
            };
            let queue = released.into_iter().rev().map(|event| (position + 1, event)).collect();
            match Box::pin(self.run(Direction::Request, io, queue, None)).await? {
                Passage::Through(passed) => through.extend(passed),
                reply @ Passage::Reply(_) => return Ok(reply),
            }
        }
        Ok(Passage::Through(through))
    }

    /// Puts a reply in the place of the response; returns the events that stand for it.
    pub(crate) fn replace_response(&mut self, reply: LocalReply) -> SmallVec<[Event; 2]> {
        self.state.answered_by_filter(&reply.details);
        let (header, body) = session::reply_message(reply, self.state.asked);
        self.state.response = Some(header);
        self.state.response_trailers = None;
        if body.is_empty() {
            smallvec![Event::Headers { end: true }]
        } else {
            smallvec![Event::Headers { end: false }, Event::Body { data: body, end: true }]
        }
    }

    /// Tells every filter that the exchange is over, as far as none of them is to be waited for; whether all have been told. Idempotent.
    pub(crate) fn finish_now(&mut self, io: &mut HttpSession) -> bool {
        self.stages.iter_mut().all(|stage| stage.finish_now(&mut self.state, io))
    }

    /// Tells every filter that the exchange is over. Idempotent.
    pub(crate) async fn finish(&mut self, io: &mut HttpSession) {
        for stage in &mut self.stages {
            stage.finish(&mut self.state, io).await;
        }
    }

    /// Most events go from stage to stage alone, without anything to wait for or to remember; what the others need is on the heap, so that the
    /// futures around an event stay small: each is moved several times.
    async fn go_on(
        &mut self,
        direction: Direction,
        io: &mut HttpSession,
        stopped: Stopped,
    ) -> Result<Passage, ChainError> {
        match stopped {
            Stopped { taken: Taken::Held, .. } => Ok(Passage::Through(Passed::new())),
            stopped => Box::pin(self.run(direction, io, Queue::new(), Some(stopped))).await,
        }
    }

    /// Takes an event from stage to stage as long as they let it go on alone.
    fn advance(
        &mut self,
        direction: Direction,
        io: &mut HttpSession,
        from: usize,
        mut event: Event,
    ) -> Result<Advanced, ChainError> {
        let count = self.stages.len();
        for position in from..count {
            let stage = &mut self.stages[direction.stage(position, count)];
            match stage.take(direction, event, &mut self.state, io, self.worker)? {
                Taken::Pass(same) => event = same,
                taken => return Ok(Advanced::Stopped(Stopped { position, taken })),
            }
        }
        if direction == Direction::Request && event.is_end() {
            self.state.request_body_goes();
        }
        Ok(Advanced::Through(event))
    }

    /// Moves events and whatever they release through the stages, depth first, so that order is kept. `begun` is an event that a stage
    /// has taken already.
    async fn run(
        &mut self,
        direction: Direction,
        io: &mut HttpSession,
        queue: Queue,
        begun: Option<Stopped>,
    ) -> Result<Passage, ChainError> {
        let count = self.stages.len();
        let mut passed = Passed::new();
        let mut next = queue;
        let mut begun = begun;

        loop {
            let Stopped { position, mut taken } = match begun.take() {
                Some(begun) => begun,
                None => {
                    let Some((position, event)) = next.pop() else { break };
                    match self.advance(direction, io, position, event)? {
                        Advanced::Stopped(stopped) => stopped,
                        Advanced::Through(event) => {
                            passed.push(event);
                            continue;
                        }
                    }
                }
            };
            let stage = &mut self.stages[direction.stage(position, count)];
            let mut waited = Duration::ZERO;
            while let Taken::Busy(event) = taken {
                stage.rest(&mut waited).await?;
                taken = stage.take(direction, event, &mut self.state, io, self.worker)?;
            }
            let step = match taken {
                Taken::Pass(event) | Taken::Busy(event) => Step::Emit(smallvec![event]),
                Taken::Held => Step::Emit(Released::new()),
                Taken::More(more) => match *more {
                    More::Step(step) => step,
                    More::Again { released, events } => {
                        next.extend(events.into_iter().rev().map(|event| (position, event)));
                        Step::Emit(released)
                    }
                    More::Called(called) => stage.settle(direction, called, &mut self.state, io).await?,
                },
            };

            match step {
                Step::Emit(events) => next.extend(events.into_iter().rev().map(|event| (position + 1, event))),
                Step::Reply(reply) if direction == Direction::Request => return Ok(Passage::Reply(*reply)),
                Step::Reply(_) if self.response_out => {
                    // The header is already with the client: nothing can be put in its place.
                    let filter = self.stages[direction.stage(position, count)].name();
                    return Err(ChainError::Closed { filter });
                }
                Step::Reply(reply) => {
                    // What is still queued, and what has passed with it, belongs to the response that was replaced; the stages that have
                    // seen that one see no more of it and pass the reply on, the others see the reply.
                    self.replied = true;
                    next.clear();
                    passed.clear();
                    for stage in &mut self.stages {
                        stage.answered();
                    }
                    let replacement = self.replace_response(*reply);
                    next.extend(replacement.into_iter().rev().map(|event| (position, event)));
                }
            }
        }
        Ok(Passage::Through(passed))
    }
}
