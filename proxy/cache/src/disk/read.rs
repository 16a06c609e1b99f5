//! The reading side: a few threads that read and check, and bodies that are read chunk by chunk.
//!
//! Nobody who waits for a client waits for the disk without an end: the queue of reads is bounded, and every read has a deadline.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::index::Entry;
use super::record::{HEADER, Header, Kind, Place};
use super::segment::Segment;
use super::shared::{Shared, add};

/// Reads that wait at most; beyond, an object counts as not there.
const MOST_WAITING: usize = 4096;

type Answer = io::Result<Option<(Header, Bytes)>>;

/// A read of one record.
struct Job {
    segment: Arc<Segment>,
    offset: u32,
    bytes: usize,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// The threads' queue.
#[derive(Default)]
pub(crate) struct Readers {
    queue: Mutex<Queue>,
    more: Condvar,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").field("waiting", &self.queue.lock().jobs.len()).finish_non_exhaustive()
    }
}

impl Readers {
    /// What each thread does, until the end.
    pub(crate) fn work(&self) {
        loop {
            let job = {
                let mut queue = self.queue.lock();
                loop {
                    if queue.closed {
                        return;
                    }
                    if let Some(job) = queue.jobs.pop_front() {
                        break job;
                    }
                    self.more.wait(&mut queue);
                }
            };
            if !job.answer.is_closed() {
                let found = job.segment.read(job.offset, job.bytes);
                let found = found.map(|found| found.map(|(header, record)| (header, Bytes::from(record))));
                let _gone = job.answer.send(found);
            }
        }
    }

    pub(crate) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.closed = true;
        queue.jobs.clear();
        self.more.notify_all();
    }

    /// Asks for a record; `None` when too many wait already.
    fn ask(&self, segment: &Arc<Segment>, offset: u32, bytes: usize) -> Option<oneshot::Receiver<Answer>> {
        let (answer, receiver) = oneshot::channel();
        let mut queue = self.queue.lock();
        if queue.closed || queue.jobs.len() >= MOST_WAITING {
            return None;
        }
        queue.jobs.push_back(Job { segment: Arc::clone(segment), offset, bytes, answer });
        self.more.notify_one();
        Some(receiver)
    }

    /// Reads the meta record that `entry` names.
    pub(crate) async fn meta(
        &self,
        shared: &Shared,
        segment: &Arc<Segment>,
        entry: &Entry,
        patience: Duration,
    ) -> Result<(Header, Bytes), ReadError> {
        let answer = self.ask(segment, entry.offset, entry.bytes()).ok_or(ReadError::Busy)?;
        finish(shared, answer, patience).await
    }
}

async fn finish(
    shared: &Shared,
    answer: oneshot::Receiver<Answer>,
    patience: Duration,
) -> Result<(Header, Bytes), ReadError> {
    match tokio::time::timeout(patience, answer).await {
        Err(_) => {
            shared.took_too_long();
            Err(ReadError::Slow)
        }
        Ok(Err(_)) => Err(ReadError::Closed),
        Ok(Ok(Err(error))) => {
            shared.failed("read", &error);
            Err(ReadError::Io(error))
        }
        Ok(Ok(Ok(None))) => {
            add(&shared.counters.corrupt, 1);
            Err(ReadError::Corrupt)
        }
        Ok(Ok(Ok(Some(found)))) => Ok(found),
    }
}

/// Why an object cannot be read on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The disk answered too late.
    #[error("the disk took too long")]
    Slow,
    /// Too many reads wait.
    #[error("too many reads wait for the disk")]
    Busy,
    /// The store was closed.
    #[error("the disk tier is closed")]
    Closed,
    /// The disk failed.
    #[error("read from disk")]
    Io(#[source] io::Error),
    /// What is there is not what was written.
    #[error("what was read from disk is not what was written")]
    Corrupt,
    /// The range asked for is not within the body.
    #[error("a range from {start} on in a body of {length} bytes")]
    Beyond {
        /// Where it was to begin.
        start: u64,
        /// How long the body is.
        length: u64,
    },
}

/// An object that was found, open to be read. What it needs stays on the disk until it is dropped.
#[derive(Debug)]
pub struct Found {
    /// The metadata, as they were given.
    pub meta: Bytes,
    /// Which of the objects of its key it is.
    pub generation: u64,
    /// Until when it is of use.
    pub expires: u32,
    /// Its body.
    pub body: Body,
}

/// A chunk's place, held.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) segment: Arc<Segment>,
    pub(crate) place: Place,
}

/// A body on disk.
#[derive(Debug)]
pub struct Body {
    pub(crate) shared: Arc<Shared>,
    pub(crate) readers: Arc<Readers>,
    pub(crate) patience: Duration,
    pub(crate) entry: Entry,
    pub(crate) key: u128,
    pub(crate) family: u128,
    pub(crate) generation: u64,
    pub(crate) length: u64,
    /// The body itself, where it is small.
    pub(crate) inline: Bytes,
    pub(crate) chunks: Vec<Held>,
    pub(crate) position: u64,
    pub(crate) end: u64,
    /// The chunk that was asked for ahead of time.
    pub(crate) ahead: Option<(usize, oneshot::Receiver<Answer>)>,
}

impl Body {
    /// How long the whole body is.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Goes on at `start`, up to before `end` (or the body's). Nothing is read for it.
    ///
    /// # Errors
    /// [`ReadError::Beyond`] when the body ends before.
    pub fn seek(&mut self, start: u64, end: Option<u64>) -> Result<(), ReadError> {
        if start >= self.length {
            return Err(ReadError::Beyond { start, length: self.length });
        }
        self.position = start;
        self.end = end.map_or(self.length, |end| end.min(self.length));
        Ok(())
    }

    /// The next bytes, in pieces of a chunk at most; `None` at the end. Each chunk is read, and checked, as a whole.
    ///
    /// # Errors
    /// When the disk fails or is too slow, or what is there is not what was written. The object is forgotten then.
    pub async fn read(&mut self) -> Result<Option<Bytes>, ReadError> {
        if self.position >= self.end {
            return Ok(None);
        }
        if self.chunks.is_empty() {
            let (from, to) = (within(self.position), within(self.end));
            self.position = self.end;
            return Ok(Some(self.inline.slice(from..to)));
        }
        let read = self.chunk().await;
        if matches!(read, Err(ReadError::Corrupt | ReadError::Io(_))) {
            self.shared.index.remove_same(&self.entry);
        }
        read.map(Some)
    }

    async fn chunk(&mut self) -> Result<Bytes, ReadError> {
        let size = super::CHUNK as u64;
        let number = within(self.position / size);
        let asked = match self.ahead.take() {
            Some((asked, answer)) if asked == number => Some(answer),
            _ => self.ask(number),
        };
        let answer = asked.ok_or(ReadError::Busy)?;
        if (number as u64 + 1) * size < self.end {
            self.ahead = self.ask(number + 1).map(|answer| (number + 1, answer));
        }

        let (header, record) = finish(&self.shared, answer, self.patience).await?;
        let right = header.kind == Kind::Chunk
            && (header.key, header.family, header.generation) == (self.key, self.family, self.generation)
            && header.number as usize == number;
        if !right {
            add(&self.shared.counters.corrupt, 1);
            return Err(ReadError::Corrupt);
        }
        let body = record.slice(HEADER..HEADER + header.length as usize);
        let start = number as u64 * size;
        let (from, to) = (within(self.position - start), within(self.end - start).min(body.len()));
        if from >= to {
            add(&self.shared.counters.corrupt, 1);
            return Err(ReadError::Corrupt);
        }
        self.position = start + to as u64;
        Ok(body.slice(from..to))
    }

    fn ask(&self, number: usize) -> Option<oneshot::Receiver<Answer>> {
        let held = self.chunks.get(number)?;
        self.readers.ask(&held.segment, held.place.offset, HEADER + held.place.length as usize)
    }
}

/// An offset within something that is in memory.
fn within(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
