//! One direction of a stage: what it keeps back of the message, and how its filter sees the body.

use bytes::Bytes;
use http::header;
use pingora::protocols::http::server::Session as HttpSession;
use selvedge_wasm::Body;

use super::stage::Released;
use super::{Direction, Event, ExchangeState};
use crate::plan::BodyMode;

/// What a stage keeps back in one direction.
#[derive(Default)]
pub(super) struct Side {
    /// The header is held, by the filter or for it.
    pub(super) headers: bool,
    /// The filter has paused, and has not resumed since.
    pub(super) paused: bool,
    /// The header has reached the filter.
    pub(super) begun: bool,
    /// The message was answered locally: nothing of it is shown to the filter any more.
    pub(super) done: bool,
    /// The next body event is the last before the trailers.
    pub(super) closing: bool,
    /// How the body is shown from here on.
    pub(super) showing: Showing,
    /// Body bytes for the filter to see, or seen and not let through.
    pub(super) body: Body,
    /// What came behind the part of the body that it was to see.
    pub(super) rest: Bytes,
}

/// How a filter sees a body.
///
/// ```text
/// Chunks          Whole --end--> Nothing          Begin --enough | end--> Nothing
/// ```
#[derive(Default, Clone, Copy, PartialEq, Eq)]
pub(super) enum Showing {
    /// Chunk by chunk.
    #[default]
    Chunks,
    /// As a whole: it is being collected, and the header is held meanwhile.
    Whole,
    /// So many bytes of its beginning: they are being collected, and the header is held meanwhile.
    Begin(usize),
    /// What comes is not shown.
    Nothing,
}

impl Side {
    pub(super) fn new(mode: BodyMode, wanted: bool) -> Self {
        let showing = match mode {
            _ if !wanted => Showing::Nothing,
            BodyMode::Stream => Showing::Chunks,
            BodyMode::Buffer => Showing::Whole,
            BodyMode::Peek(size) => Showing::Begin(size.as_usize()),
        };
        Self { showing, ..Self::default() }
    }

    pub(super) fn collects(&self) -> bool {
        matches!(self.showing, Showing::Whole | Showing::Begin(_))
    }

    pub(super) fn is_holding(&self) -> bool {
        self.headers || !self.body.is_empty()
    }

    /// Something is held that nobody holds any more: a resume has come between two events.
    pub(super) fn is_resumed(&self) -> bool {
        self.is_holding() && !self.paused && !self.collects()
    }

    /// Everything that is held, in order.
    pub(super) fn let_go(&mut self) -> Released {
        let mut events = Released::new();
        if std::mem::take(&mut self.headers) {
            events.push(Event::Headers { end: false });
        }
        let data = self.take_body();
        if !data.is_empty() {
            events.push(Event::Body { data, end: false });
        }
        events
    }

    pub(super) fn take_body(&mut self) -> Bytes {
        if !self.rest.is_empty() {
            self.body.push(std::mem::take(&mut self.rest));
        }
        self.body.take()
    }
}

/// The message had no trailers, and has some now: a filter may add them over the last bytes of the body.
pub(super) fn adds_trailers(direction: Direction, state: &ExchangeState) -> bool {
    direction == Direction::Response && state.response_trailers.is_some()
}

/// The length that the message's header announces.
pub(super) fn announced_length(direction: Direction, state: &ExchangeState, io: &HttpSession) -> Option<u64> {
    let headers = match direction {
        Direction::Request => &io.req_header().headers,
        Direction::Response => &state.response.as_ref()?.headers,
    };
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

pub(super) fn announce_length(direction: Direction, length: u64, state: &mut ExchangeState, io: &mut HttpSession) {
    // A number is a valid value, always.
    let _ = match (direction, &mut state.response) {
        (Direction::Request, _) => io.req_header_mut().insert_header(header::CONTENT_LENGTH, length),
        (Direction::Response, Some(response)) => response.insert_header(header::CONTENT_LENGTH, length),
        (Direction::Response, None) => Ok(()),
    };
}
