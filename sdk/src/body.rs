//! Waiting for a body, for its start or for its next piece, and replacing it.
//!
//! A new body takes the place of the first bytes of the old one, and what comes after them is thrown away as it comes. So nothing
//! piles up, and it does not matter how the message ends: with a last piece, an empty one, or trailers.
//!
//! ```text
//! Original --set_body, nothing is held yet--> Announced(bytes) --first piece, or the end--> Placed
//!          --set_body---------------------------------------------------------------------> Placed
//! ```

mod flow;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use self::flow::Flow;
use crate::host::{self, Buffer, Map};

/// Which half of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the origin.
    Request,
    /// From the origin to the client.
    Response,
}

impl Direction {
    pub(crate) fn trailers(self) -> Map {
        match self {
            Self::Request => Map::RequestTrailers,
            Self::Response => Map::ResponseTrailers,
        }
    }

    pub(crate) fn map(self) -> Map {
        match self {
            Self::Request => Map::Request,
            Self::Response => Map::Response,
        }
    }

    fn buffer(self) -> Buffer {
        match self {
            Self::Request => Buffer::Request,
            Self::Response => Buffer::Response,
        }
    }
}

/// How much of a body a filter is ready to hold: a number of bytes, or a [`ByteSize`](crate::ByteSize) from its settings.
pub trait Limit {
    /// In bytes.
    fn bytes(self) -> usize;
}

impl Limit for usize {
    fn bytes(self) -> usize {
        self
    }
}

/// The body is longer than the filter is ready to hold. `?` makes it a reply: 413 for a request, 502 for a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is longer than {limit} bytes")]
pub struct BodyTooLarge {
    /// The limit that was given, in bytes.
    pub limit: usize,
    /// Whose body it is.
    pub direction: Direction,
}

/// The host does not give what it says it holds of the body. `?` makes it a reply: 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host does not show the {direction:?} body")]
pub struct BodyUnavailable {
    /// Whose body it is.
    pub direction: Direction,
}

/// Why a whole body is not what it was read as. `?` makes it a reply: 413 or 400 for a request, 502 for a response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is longer than the filter is ready to hold.
    #[error(transparent)]
    TooLarge(BodyTooLarge),
    /// It is not UTF-8.
    #[error("the {direction:?} body is not text")]
    NotText {
        /// Whose body it is.
        direction: Direction,
    },
    /// It is not JSON, or not of the form expected.
    #[error("the {direction:?} body is not the JSON expected: {reason}")]
    NotJson {
        /// Whose body it is.
        direction: Direction,
        /// What is wrong with it, and where.
        reason: String,
    },
}

impl From<BodyTooLarge> for BodyError {
    fn from(error: BodyTooLarge) -> Self {
        Self::TooLarge(error)
    }
}

/// The start of a body, from [`Message::body_prefix`](crate::Message::body_prefix).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// The bytes: as many as were asked for, or fewer when the body is shorter.
    pub bytes: Vec<u8>,
    /// The body is known to end with these bytes. `false`: more follows, or may follow.
    pub whole: bool,
}

/// What the callbacks have said about the body of one message. Shared by the runtime, which writes it, and the message.
#[derive(Debug)]
pub(crate) struct Body {
    direction: Direction,
    callbacks: bool,
    /// How many bytes the host holds.
    held: Cell<usize>,
    /// How many of them, from the start, are the new body.
    placed: Cell<usize>,
    end: Cell<bool>,
    content: RefCell<Content>,
    waker: RefCell<Option<Waker>>,
    pub(crate) flow: Flow,
}

#[derive(Debug)]
enum Content {
    /// The body as it was sent.
    Original,
    /// There will be a new one, but there is nothing yet that it could replace.
    Announced(Vec<u8>),
    /// The new one is in its place, or has gone on already.
    Placed,
}

impl Body {
    /// `callbacks`: the host makes body callbacks for this filter. `end`: the headers are all there is.
    pub(crate) fn new(direction: Direction, callbacks: bool, end: bool) -> Self {
        Self {
            direction,
            callbacks,
            held: Cell::new(0),
            placed: Cell::new(0),
            end: Cell::new(end),
            content: RefCell::new(Content::Original),
            waker: RefCell::default(),
            flow: Flow::default(),
        }
    }

    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    pub(crate) fn has_callbacks(&self) -> bool {
        self.callbacks
    }

    /// All of it is known to be here.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.get()
    }

    /// There is a new one, which later callbacks have to put in its place or keep there.
    pub(crate) fn is_replaced(&self) -> bool {
        !matches!(&*self.content.borrow(), Content::Original)
    }

    /// The host holds this much now.
    pub(crate) fn arrived(&self, held: usize, end: bool) {
        self.held.set(held);
        self.ended(end);
    }

    /// The headers or the trailers were the end of the message.
    pub(crate) fn ended(&self, end: bool) {
        self.end.set(end);
        let waker = self.waker.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// What was held has gone on.
    pub(crate) fn released(&self) {
        self.held.set(0);
        self.placed.set(0);
        self.flow.released();
    }

    /// Puts the new body in its place, or throws away what has come behind it.
    pub(crate) fn settle(&self) {
        let mut content = self.content.borrow_mut();
        match &mut *content {
            Content::Original => {}
            Content::Announced(_) if self.held.get() == 0 && !self.end.get() => {}
            Content::Announced(bytes) => {
                self.place(bytes);
                *content = Content::Placed;
            }
            Content::Placed => {
                self.write(self.placed.get(), &[]);
            }
        }
    }

    /// All of the body, once it is there.
    pub(crate) async fn whole(&self, limit: usize) -> Result<Vec<u8>, BodyTooLarge> {
        if self.declared_length().is_some_and(|length| length > limit) {
            return Err(BodyTooLarge { limit, direction: self.direction });
        }
        poll_fn(|context| self.poll(limit, context)).await
    }

    /// The first `limit` bytes, once they are there, or all of a shorter body.
    pub(crate) async fn prefix(&self, limit: usize) -> Result<Prefix, BodyUnavailable> {
        poll_fn(|context| self.poll_prefix(limit, context)).await
    }

    /// Makes `bytes` the body: at once when some or all of the old one is here, else as it comes.
    pub(crate) fn replace(&self, bytes: Vec<u8>) {
        let length = bytes.len();
        let content = if !self.end.get() && self.held.get() == 0 {
            self.require_callbacks();
            Content::Announced(bytes)
        } else if self.place(&bytes) {
            Content::Placed
        } else {
            // The message keeps its body, so it must keep its length.
            return;
        };
        self.content.replace(content);
        self.set_length(length);
    }

    fn set_length(&self, length: usize) {
        let map = self.direction.map();
        let current = host::current();
        if let Err(status) = current.set_header(map, "content-length", length.to_string().as_bytes()) {
            log::warn!("content-length could not be set for the new body: {status}");
        }
        if current.header(map, "transfer-encoding").is_some() {
            // A length and a transfer coding exclude each other (RFC 9112, 6.2).
            current.remove_header(map, "transfer-encoding").unwrap_or_else(|status| {
                log::warn!("transfer-encoding could not be removed for the new body: {status}");
            });
        }
    }

    fn poll(&self, limit: usize, context: &Context<'_>) -> Poll<Result<Vec<u8>, BodyTooLarge>> {
        if self.held.get() > limit {
            return Poll::Ready(Err(BodyTooLarge { limit, direction: self.direction }));
        }
        if self.end.get() {
            let held = self.held.get();
            let bytes = if held == 0 { None } else { host::current().buffer(self.direction.buffer(), 0, held) };
            return Poll::Ready(Ok(bytes.unwrap_or_default()));
        }

        self.wait(context)
    }

    fn poll_prefix(&self, limit: usize, context: &Context<'_>) -> Poll<Result<Prefix, BodyUnavailable>> {
        let complete = match &*self.content.borrow() {
            Content::Announced(new) => {
                let bytes = new[..new.len().min(limit)].to_vec();
                return Poll::Ready(Ok(Prefix { bytes, whole: new.len() <= limit }));
            }
            // What comes behind the new body is thrown away.
            Content::Placed => true,
            Content::Original => self.end.get(),
        };
        let held = self.held.get();
        if held < limit && !complete {
            return self.wait(context);
        }

        // The host may hold more than the limit, a whole piece: only what was asked for is copied into the guest.
        let length = held.min(limit);
        let bytes = match length {
            0 => Some(Vec::new()),
            _ => host::current().buffer(self.direction.buffer(), 0, length).filter(|bytes| bytes.len() == length),
        };
        Poll::Ready(match bytes {
            Some(bytes) => Ok(Prefix { bytes, whole: complete && held <= limit }),
            None => Err(BodyUnavailable { direction: self.direction }),
        })
    }

    /// Until the next callback of this body.
    fn wait<T>(&self, context: &Context<'_>) -> Poll<T> {
        self.require_callbacks();
        self.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    }

    /// `false`: the host did not take it.
    fn place(&self, bytes: &[u8]) -> bool {
        let taken = self.write(0, bytes);
        self.placed.set(self.held.get());
        taken
    }

    /// Makes `bytes` what the host holds from `start` on. `false`: it did not take them.
    fn write(&self, start: usize, bytes: &[u8]) -> bool {
        self.splice(start, self.held.get().saturating_sub(start), bytes)
    }

    /// Replaces `size` of the bytes that the host holds. `false`: it did not take them.
    fn splice(&self, start: usize, size: usize, bytes: &[u8]) -> bool {
        let held = self.held.get();
        if size == 0 && bytes.is_empty() {
            return true;
        }
        let buffer = self.direction.buffer();
        let current = host::current();
        // All of it, or behind it: other hosts take nothing else.
        let done = if size == held || start == held {
            current.set_buffer(buffer, start, size, bytes)
        } else {
            let Some(whole) = current.buffer(buffer, 0, held).filter(|whole| whole.len() == held) else {
                log::warn!("the host does not show the {:?} body that is to be changed", self.direction);
                return false;
            };
            current.set_buffer(buffer, 0, held, &[&whole[..start], bytes, &whole[start + size..]].concat())
        };
        match done {
            Ok(()) => {
                self.held.set(held - size + bytes.len());
                true
            }
            Err(status) => {
                log::warn!("the host did not take the new body ({:?}): {status}", self.direction);
                false
            }
        }
    }

    /// Spares the wait for a body that is announced as too long.
    fn declared_length(&self) -> Option<usize> {
        if self.end.get() {
            return None;
        }
        let value = host::current().header(self.direction.map(), "content-length")?;
        std::str::from_utf8(&value).ok()?.trim().parse().ok()
    }

    #[allow(
        clippy::panic,
        reason = "a filter that declares no body and reads one is a bug that its first run must show"
    )]
    fn require_callbacks(&self) {
        if !self.callbacks {
            panic!(
                "this filter declares that it does not touch the {:?} body: see #[filter(body = …)]",
                self.direction
            );
        }
    }
}
