//! Waiting for a whole body, and replacing it.
//!
//! ```text
//! Absent                                  the headers were the end
//! Streaming(n) -> Streaming(m) -> Whole   n, m bytes are held by the host; it holds the headers as well
//! ```

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

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

/// The body is longer than the filter is ready to hold. `?` makes it a reply: 413 for a request, 502 for a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is longer than {limit} bytes")]
pub struct BodyTooLarge {
    /// The limit that was given, in bytes.
    pub limit: usize,
    /// Whose body it is.
    pub direction: Direction,
}

/// What the callbacks have said about the body of one message. Shared by the runtime, which writes it, and the message.
#[derive(Debug)]
pub(crate) struct Body {
    direction: Direction,
    callbacks: bool,
    held: Cell<usize>,
    end: Cell<bool>,
    replacement: RefCell<Option<Vec<u8>>>,
    waker: RefCell<Option<Waker>>,
}

impl Body {
    /// `callbacks`: the host makes body callbacks for this filter.
    pub(crate) fn new(direction: Direction, callbacks: bool) -> Self {
        Self {
            direction,
            callbacks,
            held: Cell::new(0),
            end: Cell::new(false),
            replacement: RefCell::default(),
            waker: RefCell::default(),
        }
    }

    pub(crate) fn direction(&self) -> Direction {
        self.direction
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

    /// Puts the replacement where the host's bytes are; what comes before the end is thrown away, so nothing piles up.
    pub(crate) fn replace_held(&self) {
        let mut replacement = self.replacement.borrow_mut();
        match &mut *replacement {
            None => {}
            Some(_) if !self.end.get() => self.write(&[]),
            Some(_) => self.write(&replacement.take().unwrap_or_default()),
        }
    }

    /// All of the body, once it is there.
    pub(crate) async fn whole(&self, limit: usize) -> Result<Vec<u8>, BodyTooLarge> {
        if self.declared_length().is_some_and(|length| length > limit) {
            return Err(BodyTooLarge { limit, direction: self.direction });
        }
        poll_fn(|context| self.poll(limit, context)).await
    }

    /// Makes `bytes` the body: at once when all of the old one is here, else as it comes.
    pub(crate) fn replace(&self, bytes: Vec<u8>) {
        let map = self.direction.map();
        let current = host::current();
        if let Err(status) = current.set_header(map, "content-length", bytes.len().to_string().as_bytes()) {
            log::warn!("content-length could not be set for the new body: {status}");
        }
        if current.header(map, "transfer-encoding").is_some() {
            // A length and a transfer coding exclude each other (RFC 9112, 6.2); a failure leaves what was there.
            current.remove_header(map, "transfer-encoding").unwrap_or_else(|status| {
                log::warn!("transfer-encoding could not be removed for the new body: {status}");
            });
        }

        if self.end.get() {
            self.write(&bytes);
        } else {
            self.require_callbacks();
            *self.replacement.borrow_mut() = Some(bytes);
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

        self.require_callbacks();
        self.waker.replace(Some(context.waker().clone()));
        Poll::Pending
    }

    fn write(&self, bytes: &[u8]) {
        if self.held.get() == 0 && bytes.is_empty() {
            return;
        }
        match host::current().set_buffer(self.direction.buffer(), 0, self.held.get(), bytes) {
            Ok(()) => self.held.set(bytes.len()),
            Err(status) => log::warn!("the host did not take the new body ({:?}): {status}", self.direction),
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
