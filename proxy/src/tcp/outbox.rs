//! Bytes on their way in and out: reading without a buffer per connection, and writing what has passed the chain.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// How much is read at once.
const CHUNK: usize = 64 * 1024;

thread_local! {
    /// What is read lands here first: a connection that waits for bytes holds no buffer.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

/// The next bytes; none at the end. Cancel safe.
pub(super) async fn read(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Bytes> {
    poll_fn(|cx| {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *reader).poll_read(cx, &mut buffer))?;
            Poll::Ready(Ok(Bytes::copy_from_slice(buffer.filled())))
        })
    })
    .await
}

/// What has passed the chain in one direction and is to be written. Its source is read only while it is empty, so it holds one chunk and
/// what filters released with it.
///
/// ```text
/// queued -> written -> flushed -> (end) -> writer shut down
/// ```
#[derive(Default)]
pub(super) struct Outbox {
    queue: VecDeque<Bytes>,
    /// Written, but maybe still in a buffer of the writer's.
    unflushed: bool,
    /// Nothing follows what is queued.
    end: bool,
    /// Nothing can be written any more: the end has been passed on, or the other side is gone.
    shut: bool,
    written: u64,
}

impl Outbox {
    pub(super) fn push(&mut self, data: Bytes, end: bool) {
        if self.shut {
            return;
        }
        if !data.is_empty() {
            self.queue.push_back(data);
        }
        self.end |= end;
    }

    /// Whether [`Outbox::write`] has anything to do.
    pub(super) fn has_work(&self) -> bool {
        !self.shut && (!self.queue.is_empty() || self.unflushed || self.end)
    }

    /// Whether all of it is out, and its end.
    pub(super) fn is_shut(&self) -> bool {
        self.shut
    }

    /// Gives up: there is nobody to write to.
    pub(super) fn shut(&mut self) {
        *self = Self { shut: true, written: self.written, ..Self::default() };
    }

    /// How many bytes have been written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Makes some progress. Cancel safe.
    pub(super) async fn write(&mut self, writer: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        poll_fn(|cx| self.poll_write(cx, Pin::new(&mut *writer))).await
    }

    /// Ready after any progress: the wait for more is for the caller to see.
    fn poll_write(&mut self, cx: &mut Context<'_>, mut writer: Pin<&mut impl AsyncWrite>) -> Poll<io::Result<()>> {
        let mut progress = false;
        while self.has_work() {
            let step = if let Some(front) = self.queue.front() {
                writer.as_mut().poll_write(cx, front)
            } else if self.unflushed {
                writer.as_mut().poll_flush(cx).map_ok(|()| 0)
            } else {
                writer.as_mut().poll_shutdown(cx).map_ok(|()| 0)
            };
            let Poll::Ready(written) = step else {
                return if progress { Poll::Ready(Ok(())) } else { Poll::Pending };
            };
            self.advance(written?)?;
            progress = true;
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, written: usize) -> io::Result<()> {
        if let Some(front) = self.queue.front_mut() {
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            front.advance(written);
            if front.is_empty() {
                self.queue.pop_front();
            }
            self.written += written as u64;
            self.unflushed = true;
        } else if self.unflushed {
            self.unflushed = false;
        } else {
            self.shut = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, duplex};

    use super::*;

    #[tokio::test]
    async fn everything_is_written_in_order_and_then_the_end() {
        let (mut writer, mut reader) = duplex(7); // so that nothing fits at once
        let mut outbox = Outbox::default();
        outbox.push(Bytes::from_static(b"one two three "), false);
        outbox.push(Bytes::new(), false);
        outbox.push(Bytes::from_static(b"four five six"), true);
        outbox.push(Bytes::new(), true);
        let reading = tokio::spawn(async move {
            let mut all = String::new();
            reader.read_to_string(&mut all).await.unwrap();
            all
        });
        while outbox.has_work() {
            outbox.write(&mut writer).await.unwrap();
        }
        assert_eq!(reading.await.unwrap(), "one two three four five six");
        assert_eq!((outbox.written(), outbox.is_shut()), (27, true));
        outbox.push(Bytes::from_static(b"late"), false);
        assert!(!outbox.has_work());
    }

    #[tokio::test]
    async fn a_write_that_waits_can_be_dropped() {
        let (mut writer, mut reader) = duplex(4);
        let mut outbox = Outbox::default();
        outbox.push(Bytes::from_static(b"0123456789"), true);
        let mut all = Vec::new();
        while !outbox.is_shut() {
            tokio::select! {
                biased;
                written = outbox.write(&mut writer) => written.unwrap(),
                read = reader.read_buf(&mut all) => assert!(read.unwrap() > 0),
            }
        }
        drop(writer);
        reader.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"0123456789");
    }
}
