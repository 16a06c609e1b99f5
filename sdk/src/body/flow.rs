//! A body in pieces, each of which goes on before the next one is there: however long the body, one piece is held.
//!
//! ```text
//! chunk().await -> Some(bytes): the hook has them, and they wait at the host
//!                  set_chunk(new): they are these instead
//! chunk().await -> they go on; the next piece, or None at the end
//! ```

use std::cell::Cell;
use std::future::poll_fn;
use std::task::{Context, Poll};

use super::{Body, BodyUnavailable};
use crate::host;

/// How far the hook has come.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    /// How many of the bytes that the host holds the hook has seen, and has nothing against.
    seen: Cell<usize>,
    /// Where the last piece begins, and how long it is.
    chunk: Cell<(usize, usize)>,
    /// The hook waits for more, and what is held may go on.
    open: Cell<bool>,
    /// The message says how long its body is; found out with the first piece.
    declared: Cell<Option<bool>>,
}

impl Flow {
    pub(super) fn released(&self) {
        self.seen.set(0);
        self.chunk.set((0, 0));
    }

    /// A poll begins.
    pub(crate) fn close(&self) {
        self.open.set(false);
    }

    /// What the hook waits for is more of the message, so what is there may go on.
    pub(crate) fn is_open(&self) -> bool {
        self.open.get()
    }
}

impl Body {
    /// The next piece; `None` at the end.
    pub(crate) async fn chunk(&self) -> Result<Option<Vec<u8>>, BodyUnavailable> {
        if self.flow.declared.get().is_none() {
            let declared = host::current().header(self.direction.map(), "content-length").is_some();
            self.flow.declared.set(Some(declared));
        }
        poll_fn(|context| self.poll_chunk(context)).await
    }

    /// Makes `bytes` what goes on in place of the last piece, or behind it when it has been replaced already, or at the end.
    pub(crate) fn set_chunk(&self, bytes: &[u8]) {
        let (start, length) = self.flow.chunk.get();
        if length != bytes.len() && self.flow.declared.get() == Some(true) {
            log::error!(
                "a piece of the {:?} body is not changed: its length is announced; remove content-length before the first piece",
                self.direction
            );
            return;
        }
        if self.splice(start, length, bytes) {
            self.flow.seen.set(start + bytes.len());
            self.flow.chunk.set((start + bytes.len(), 0));
        }
    }

    /// Lets the body pass, until what may stand behind it is there.
    pub(crate) async fn passed(&self) {
        poll_fn(|context| {
            self.flow.seen.set(self.held.get());
            if self.end.get() { Poll::Ready(()) } else { self.more(context) }
        })
        .await;
    }

    fn poll_chunk(&self, context: &Context<'_>) -> Poll<Result<Option<Vec<u8>>, BodyUnavailable>> {
        let (held, seen) = (self.held.get(), self.flow.seen.get());
        let replaced = self.is_replaced();
        if held > seen && !replaced {
            let length = held - seen;
            let bytes = host::current().buffer(self.direction.buffer(), seen, length);
            let Some(bytes) = bytes.filter(|bytes| bytes.len() == length) else {
                return Poll::Ready(Err(BodyUnavailable { direction: self.direction }));
            };
            self.flow.chunk.set((seen, length));
            self.flow.seen.set(held);
            return Poll::Ready(Ok(Some(bytes)));
        }
        if self.end.get() || replaced {
            self.flow.chunk.set((held, 0));
            return Poll::Ready(Ok(None));
        }
        self.more(context)
    }

    fn more<T>(&self, context: &Context<'_>) -> Poll<T> {
        self.flow.open.set(true);
        self.wait(context)
    }
}
