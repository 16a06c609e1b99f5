//! A body on its way in: one writer appends, many readers follow.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use pingora_error::{Error, ErrorType, Result};
use tokio::sync::watch;
use tokio::time::Instant;

use super::object::{StoredMeta, cut};
use crate::key::Slot;

/// How far a reader of a detached fill may lag behind the writer before it is cut off. Bounds the memory one slow client can hold.
const LAG_LIMIT: u64 = 64 << 20;

/// A fill that brought nothing for this long takes no new readers: its own client may have stopped reading, and with it the fill. The
/// next request for the key then starts a fill of its own, instead of getting stuck behind somebody else's client.
const JOIN_WITHIN: Duration = Duration::from_secs(5);

/// The trailers that are kept with a response: so many bytes of names and values, and so many fields.
const TRAILERS_MAX: usize = 4 << 10;
const TRAILER_FIELDS_MAX: usize = 32;

/// The chunks of a body as they came.
pub(crate) type Chunks = VecDeque<Bytes>;

/// What became of appended bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// They are kept: to be stored, or until the readers there are have read them.
    Kept,
    /// They are kept for the readers there are, and with them the body became too large to be stored.
    TooLarge,
    /// Nobody is there to read them, and they will not be stored.
    Unread,
}

/// A body on its way in.
pub(crate) struct Fill {
    pub(crate) id: u64,
    pub(crate) slot: Slot,
    pub(crate) primary: Slot,
    pub(crate) meta: StoredMeta,
    /// What comes after the body: told before its end is.
    trailers: OnceLock<Box<HeaderMap>>,
    /// How long a reader waits for the next bytes.
    stall: Duration,
    joinable: AtomicBool,
    state: Mutex<State>,
    /// Told at every change; the state itself is behind the lock.
    progress: watch::Sender<()>,
    /// Bytes held by all fills of the tier.
    total: Arc<AtomicU64>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// When the last bytes came.
    moved: Instant,
    /// The chunks that are held, each with where it starts.
    chunks: VecDeque<(u64, Bytes)>,
    /// How many bytes came in so far.
    end: u64,
    /// Bytes of the chunks that are held.
    held: u64,
    /// Where each reader is.
    readers: HashMap<u64, u64>,
    next_reader: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Filling,
    Complete,
    Failed,
}

impl std::fmt::Debug for Fill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fill").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Fill {
    pub(crate) fn new(
        id: u64,
        slot: Slot,
        primary: Slot,
        meta: StoredMeta,
        stall: Duration,
        total: Arc<AtomicU64>,
    ) -> Self {
        let state = State {
            phase: Phase::Filling,
            moved: Instant::now(),
            chunks: VecDeque::new(),
            end: 0,
            held: 0,
            readers: HashMap::new(),
            next_reader: 0,
        };
        let progress = watch::Sender::new(());
        let (joinable, state) = (AtomicBool::new(true), Mutex::new(state));
        Self { id, slot, primary, meta, trailers: OnceLock::new(), stall, joinable, state, progress, total }
    }

    /// Whether new readers may join, which also means that it is going to be stored.
    pub(crate) fn is_joinable(&self) -> bool {
        self.joinable.load(Ordering::Acquire)
    }

    /// How many bytes came so far.
    pub(crate) fn length(&self) -> u64 {
        self.state.lock().end
    }

    /// Take no new readers, and do not store: only serve the readers there are.
    pub(crate) fn detach(&self) {
        self.joinable.store(false, Ordering::Release);
    }

    /// These come after the body. More than can be kept with it are for those only who read along.
    pub(crate) fn set_trailers(&self, trailers: &HeaderMap) {
        let size: usize = trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if size > TRAILERS_MAX || trailers.len() > TRAILER_FIELDS_MAX {
            self.detach();
        }
        let _first = self.trailers.set(Box::new(trailers.clone()));
    }

    /// What comes after the body, once it has come.
    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.get().map(|trailers| &**trailers)
    }

    /// What is stored of it beside the body.
    pub(crate) fn whole_meta(&self) -> Cow<'_, StoredMeta> {
        match self.trailers.get() {
            None => Cow::Borrowed(&self.meta),
            Some(trailers) => Cow::Owned(StoredMeta { trailers: Some(trailers.clone()), ..self.meta.clone() }),
        }
    }

    /// Append bytes. Past `max` bytes, or without `room` for more in memory, the fill is detached.
    pub(crate) fn append(&self, data: Bytes, max: u64, room: bool) -> Outcome {
        if data.is_empty() {
            return Outcome::Kept;
        }
        let outcome = {
            let mut state = self.state.lock();
            let start = state.end;
            state.moved = Instant::now();
            state.end += data.len() as u64;
            state.held += data.len() as u64;
            self.total.fetch_add(data.len() as u64, Ordering::Relaxed);
            state.chunks.push_back((start, data));

            let too_large = state.end > max;
            if too_large || !room {
                self.detach();
            }
            if !self.is_joinable() {
                self.trim(&mut state);
            }
            match (self.is_joinable(), state.readers.is_empty()) {
                (false, true) => Outcome::Unread,
                (false, false) if too_large => Outcome::TooLarge,
                _ => Outcome::Kept,
            }
        };
        self.progress.send_replace(());
        outcome
    }

    /// The body is complete. Once told, telling it again changes nothing.
    ///
    /// # Errors
    /// When it is not as long as the header promised, or had failed before: then it has failed.
    pub(crate) fn seal(&self) -> Result<()> {
        let mut state = self.state.lock();
        if state.phase == Phase::Filling {
            let right = self.meta.promised_length().is_none_or(|promised| promised == state.end);
            state.phase = if right { Phase::Complete } else { Phase::Failed };
        }
        let (failed, end) = (state.phase == Phase::Failed, state.end);
        drop(state);
        self.progress.send_replace(());
        if failed {
            self.detach();
            return Error::e_explain(
                ErrorType::InternalError,
                format!("the body broke off, or has a wrong length, after {end} bytes"),
            );
        }
        Ok(())
    }

    /// The writer is gone. What is not complete by now never will be.
    pub(crate) fn fail(&self) {
        self.detach();
        let mut state = self.state.lock();
        if state.phase == Phase::Filling {
            state.phase = Phase::Failed;
        }
        self.trim(&mut state);
        drop(state);
        self.progress.send_replace(());
    }

    /// The whole body, to be stored; `None` unless it is complete and was not detached.
    pub(crate) fn take_complete(&self) -> Option<Chunks> {
        let state = self.state.lock();
        let whole = state.phase == Phase::Complete && self.is_joinable();
        whole.then(|| state.chunks.iter().map(|(_, chunk)| chunk.clone()).collect())
    }

    /// Let go of what all readers have read, and of readers that lag too far behind.
    fn trim(&self, state: &mut State) {
        let oldest = state.end.saturating_sub(LAG_LIMIT);
        state.readers.retain(|_, position| *position >= oldest);
        let needed = state.readers.values().copied().min().unwrap_or(state.end);
        while let Some((start, chunk)) = state.chunks.front() {
            let length = chunk.len() as u64;
            if start + length > needed {
                break;
            }
            state.chunks.pop_front();
            state.held -= length;
            self.total.fetch_sub(length, Ordering::Relaxed);
        }
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.total.fetch_sub(self.state.get_mut().held, Ordering::Relaxed);
    }
}

/// Follows a fill.
pub struct FillReader {
    fill: Arc<Fill>,
    id: u64,
    position: u64,
    end: Option<u64>,
    changes: watch::Receiver<()>,
}

impl std::fmt::Debug for FillReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FillReader").field("fill", &self.fill).field("position", &self.position).finish_non_exhaustive()
    }
}

impl FillReader {
    /// Join, unless the fill was detached, has failed, or does not move.
    pub(crate) fn new(fill: &Arc<Fill>) -> Option<Self> {
        let reader = Self::attach(fill);
        // Registered first: from here on nothing is trimmed away, so a look at the flag settles whether it all is still there.
        let promising = {
            let state = fill.state.lock();
            match state.phase {
                Phase::Complete => true,
                Phase::Filling => state.moved.elapsed() < JOIN_WITHIN,
                Phase::Failed => false,
            }
        };
        (fill.is_joinable() && promising).then_some(reader)
    }

    /// Follow, as the fill's own request does, which is there from the first byte.
    pub(crate) fn attach(fill: &Arc<Fill>) -> Self {
        let changes = fill.progress.subscribe();
        let mut state = fill.state.lock();
        let id = state.next_reader;
        state.next_reader += 1;
        state.readers.insert(id, 0);
        drop(state);
        Self { fill: Arc::clone(fill), id, position: 0, end: None, changes }
    }

    pub(crate) fn fill(&self) -> &Fill {
        &self.fill
    }

    /// The next bytes, waiting for them; `None` at the end of the body or of the range sought.
    ///
    /// # Errors
    /// When the fill failed, stalled, or the reader was cut off.
    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>> {
        loop {
            self.changes.borrow_and_update();
            if let Some(answer) = self.try_read() {
                return answer;
            }
            match tokio::time::timeout(self.fill.stall, self.changes.changed()).await {
                Ok(Ok(())) => {}
                // The sender lives in the fill, which we hold: it cannot be gone.
                Ok(Err(_)) => return Error::e_explain(ErrorType::InternalError, "the fill vanished"),
                Err(_) => return Error::e_explain(ErrorType::ReadTimedout, "the fill brought nothing for too long"),
            }
        }
    }

    /// What there is now; `None` when there is nothing but to wait.
    fn try_read(&mut self) -> Option<Result<Option<Bytes>>> {
        let end = self.end.unwrap_or(u64::MAX);
        if self.position >= end {
            return Some(Ok(None));
        }

        let mut state = self.fill.state.lock();
        if self.position < state.end {
            let next = state.chunks.partition_point(|(start, _)| *start <= self.position);
            let Some((start, chunk)) = next.checked_sub(1).and_then(|index| state.chunks.get(index)) else {
                return Some(Error::e_explain(ErrorType::InternalError, "the reader lagged too far behind the fill"));
            };
            let piece = cut(chunk, *start, self.position, end);
            self.position += piece.len() as u64;
            state.readers.insert(self.id, self.position);
            if !self.fill.is_joinable() {
                self.fill.trim(&mut state);
            }
            return Some(Ok(Some(piece)));
        }
        match state.phase {
            Phase::Filling => None,
            Phase::Complete if self.position == state.end => Some(Ok(None)),
            Phase::Complete => Some(Error::e_explain(ErrorType::InternalError, "the range lies beyond the body")),
            Phase::Failed => Some(Error::e_explain(ErrorType::InternalError, "the fill broke off")),
        }
    }

    /// Go on at `start`, up to before `end`. Bytes that are not there yet are waited for by the next read.
    ///
    /// # Errors
    /// When the bytes at `start` were let go already.
    pub(crate) fn seek(&mut self, start: u64, end: Option<u64>) -> Result<()> {
        let mut state = self.fill.state.lock();
        let first = state.chunks.front().map_or(state.end, |(first, _)| *first);
        if start < first {
            return Error::e_explain(ErrorType::InternalError, format!("bytes before {first} are gone"));
        }
        state.readers.insert(self.id, start);
        drop(state);
        self.position = start;
        self.end = end;
        Ok(())
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        let mut state = self.fill.state.lock();
        state.readers.remove(&self.id);
        if !self.fill.is_joinable() {
            self.fill.trim(&mut state);
        }
    }
}
