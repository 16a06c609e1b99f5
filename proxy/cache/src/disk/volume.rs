//! One disk: its writer thread with the queue before it, its reader threads, and how objects are found.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{self, Thread};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;

use super::index::Tag;
use super::io::{Folder, FolderLock};
use super::log::{self, Ack, Log, Owner, inline_length};
use super::read::{Body, Found, Held, ReadError, Readers};
use super::record::{HEADER, Kind, MetaHead};
use super::recover;
use super::shared::{Shared, State, add};
use super::{CHUNK, Counts, DiskOptions, DiskUsage, INLINE, Limits, Removal, RemoveError};

/// What an order costs of the queue besides its bytes.
const ORDER: u64 = 256;
/// Orders carried out before what they wrote is flushed.
const BATCH: usize = 256;
/// A disk that was switched off is tried again after so long at the latest.
const AGAIN_MOST: Duration = Duration::from_mins(10);
/// Written and read before a disk is used again.
const PROBE: &str = "probe";
/// How often a lock that another process holds is tried again.
const LOCK_AGAIN: Duration = Duration::from_millis(200);

/// An order to the writer thread.
enum Order {
    Begin(Owner),
    Chunk { generation: u64, pieces: Vec<Bytes>, cost: u64 },
    Commit { generation: u64, body: u64, expires: u32, meta: Bytes, inline: Vec<Bytes>, cost: u64 },
    Abort(u64),
    Update { owner: Owner, expires: u32, meta: Bytes, cost: u64 },
    Remove(Removal, Option<Ack>),
    Sync(oneshot::Sender<bool>),
    Close(oneshot::Sender<()>),
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Volume {
    /// Spreads keys over the disks.
    pub(crate) seed: u64,
    size: u64,
    limits: Limits,
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    orders: mpsc::Sender<Order>,
    /// Bytes that wait to be written.
    queued: Arc<AtomicU64>,
    generations: AtomicU64,
    start: Arc<Start>,
    writer: Thread,
}

/// Whether the disk has come so far that it is of use, or never will be.
#[derive(Debug, Default)]
struct Start {
    done: Mutex<bool>,
    /// Whether its threads have let go of the folder.
    ended: Mutex<bool>,
    told: Condvar,
    end: Condvar,
    closing: AtomicBool,
}

impl Volume {
    pub(crate) fn open(options: DiskOptions, limits: Limits) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::new(options.name.clone()));
        let readers = Arc::new(Readers::default());
        let (orders, queue) = mpsc::channel();
        let (queued, start) = (Arc::<AtomicU64>::default(), Arc::<Start>::default());
        for number in 0..limits.readers.max(1) {
            let readers = Arc::clone(&readers);
            thread::Builder::new().name(format!("disk-read-{number}")).spawn(move || readers.work())?;
        }
        let writer = Writer {
            folder: options.folder,
            shared: Arc::clone(&shared),
            readers: Arc::clone(&readers),
            queue,
            queued: Arc::clone(&queued),
            start: Arc::clone(&start),
            // One segment is being made while the oldest is still there.
            size: options.size.saturating_sub(options.segment_size),
            segment_size: options.segment_size,
            again: limits.again,
        };
        let writer = thread::Builder::new().name("disk-write".to_owned()).spawn(move || writer.run())?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Self {
            seed: seed(&options.name),
            size: options.size,
            limits,
            shared,
            readers,
            orders,
            queued,
            // Above those of earlier runs, without reading them.
            generations: AtomicU64::new(u64::try_from(now.as_micros()).unwrap_or_default()),
            start,
            writer: writer.thread().clone(),
        })
    }

    /// Waits until the index is loaded, `patience` at most.
    pub(crate) fn wait(&self, patience: Duration) {
        let mut done = self.start.done.lock();
        let until = Instant::now() + patience;
        while !*done && !self.start.told.wait_until(&mut done, until).timed_out() {}
    }

    /// Waits until the folder is free.
    pub(crate) fn wait_closed(&self, until: Instant) {
        let mut ended = self.start.ended.lock();
        while !*ended && !self.start.end.wait_until(&mut ended, until).timed_out() {}
    }

    pub(crate) fn weight(&self) -> u64 {
        self.size
    }

    pub(crate) fn usage(&self) -> DiskUsage {
        DiskUsage {
            name: self.shared.name.clone(),
            state: self.shared.state(),
            objects: self.shared.index.len(),
            bytes: self.shared.size(),
            capacity: self.size,
            index_bytes: self.shared.index.memory(),
            queued_bytes: self.queued.load(Ordering::Relaxed),
            counts: self.counts(),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        self.shared.counters.read()
    }

    pub(crate) fn has(&self, key: u128, family: u128) -> bool {
        self.shared.is_on() && self.shared.index.get(Tag::of(key, family)).is_some()
    }

    pub(crate) fn begin(self: &Arc<Self>, key: u128, family: u128) -> Option<Writing> {
        if !self.shared.is_on() {
            return None;
        }
        let owner = Owner { key, family, generation: self.generations.fetch_add(1, Ordering::Relaxed) };
        if !self.charge(ORDER) {
            add(&self.shared.counters.dropped_queue, 1);
            self.forget_older(&owner);
            return None;
        }
        self.send(Order::Begin(owner));
        Some(Writing {
            volume: Arc::clone(self),
            owner,
            pieces: Vec::new(),
            held: 0,
            length: 0,
            chunked: false,
            over: false,
        })
    }

    /// What was to be replaced, and is not, must not be found any more.
    fn forget_older(&self, owner: &Owner) {
        if self.shared.index.get(Tag::of(owner.key, owner.family)).is_some() {
            let removal = Removal::Key { key: owner.key, family: owner.family };
            self.shared.forget(removal);
            self.send(Order::Remove(removal, None));
        }
    }

    pub(crate) fn update(&self, key: u128, family: u128, generation: u64, expires: u32, meta: Bytes) -> bool {
        let cost = ORDER + meta.len() as u64;
        if !self.has(key, family) || !self.charge(cost) {
            return false;
        }
        self.send(Order::Update { owner: Owner { key, family, generation }, expires, meta, cost });
        true
    }

    /// Removes at once, and tells when that is durable.
    pub(crate) fn remove(&self, removal: Removal) -> oneshot::Receiver<Result<(), RemoveError>> {
        let (ack, told) = oneshot::channel();
        self.shared.forget(removal);
        self.send(Order::Remove(removal, Some(ack)));
        told
    }

    /// Removes at once; it is durable when the log is next synced.
    pub(crate) fn forget(&self, removal: Removal) {
        self.shared.forget(removal);
        self.send(Order::Remove(removal, None));
    }

    pub(crate) fn sync(&self) -> oneshot::Receiver<bool> {
        let (ack, told) = oneshot::channel();
        self.send(Order::Sync(ack));
        told
    }

    pub(crate) fn close(&self) -> oneshot::Receiver<()> {
        let (ack, told) = oneshot::channel();
        self.start.closing.store(true, Ordering::Release);
        self.send(Order::Close(ack));
        self.writer.unpark();
        told
    }

    pub(crate) async fn find(&self, key: u128, family: u128) -> Option<Found> {
        let found = self.look(key, family).await;
        let counters = &self.shared.counters;
        add(if found.is_some() { &counters.hits } else { &counters.misses }, 1);
        found
    }

    async fn look(&self, key: u128, family: u128) -> Option<Found> {
        if !self.shared.is_on() {
            return None;
        }
        let entry = self.shared.index.hit(Tag::of(key, family))?;
        if self.shared.is_slow() {
            return None;
        }
        let forget = || {
            self.shared.index.remove_same(&entry);
        };
        let Some(segment) = self.shared.segment(entry.segment) else {
            forget();
            return None;
        };
        let (header, record) = match self.readers.meta(&self.shared, &segment, &entry, self.limits.lookup).await {
            Ok(found) => found,
            Err(ReadError::Corrupt | ReadError::Io(_)) => {
                forget();
                return None;
            }
            Err(_) => return None,
        };
        // Two keys may share an entry's tag, though hardly ever.
        if header.kind != Kind::Meta || (header.key, header.family) != (key, family) {
            return None;
        }
        let payload = record.slice(HEADER..HEADER + header.length as usize);
        let (head, start) = MetaHead::decode(&payload)?;
        let meta_end = start + head.meta as usize;
        if payload.len() - meta_end != inline_length(&head) {
            return None;
        }
        let chunks: Option<Vec<Held>> = {
            let segments = self.shared.segments.read();
            let held = head.chunks.iter().map(|place| {
                let segment = segments.get(&place.segment)?;
                Some(Held { segment: Arc::clone(segment), place: *place })
            });
            held.collect()
        };
        let Some(chunks) = chunks else {
            forget();
            return None;
        };
        let body = Body {
            shared: Arc::clone(&self.shared),
            readers: Arc::clone(&self.readers),
            patience: self.limits.read,
            entry,
            key,
            family,
            generation: header.generation,
            length: head.body,
            inline: payload.slice(meta_end..),
            chunks,
            position: 0,
            end: head.body,
            ahead: None,
        };
        let meta = payload.slice(start..meta_end);
        Some(Found { meta, generation: header.generation, expires: header.number, body })
    }

    /// Takes room in the queue.
    fn charge(&self, cost: u64) -> bool {
        let room = |queued: u64| queued.checked_add(cost).filter(|sum| *sum <= self.limits.queue);
        self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok()
    }

    fn send(&self, order: Order) {
        // Nobody to take it: the volume is closed, and everything is a miss.
        let _closed = self.orders.send(order);
    }
}

fn seed(name: &str) -> u64 {
    let hash = blake3::hash(name.as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().unwrap_or_default())
}

/// An object on its way to disk. Nothing here waits: what the disk does not keep up with is dropped, and counted. Dropped before it is
/// committed, it never existed.
#[derive(Debug)]
pub struct Writing {
    volume: Arc<Volume>,
    owner: Owner,
    /// What does not make a chunk yet.
    pieces: Vec<Bytes>,
    held: usize,
    length: u64,
    chunked: bool,
    /// Committed, or given up.
    over: bool,
}

impl Writing {
    /// Which of the objects of its key it will be.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.owner.generation
    }

    /// Appends to the body. False when it is given up: the queue is full.
    pub fn push(&mut self, mut data: Bytes) -> bool {
        self.length += data.len() as u64;
        while !self.over && self.held + data.len() >= CHUNK {
            self.pieces.push(data.split_to(CHUNK - self.held));
            self.send_chunk(CHUNK);
        }
        if !self.over && !data.is_empty() {
            self.held += data.len();
            self.pieces.push(data);
        }
        !self.over
    }

    fn send_chunk(&mut self, length: usize) {
        let cost = length as u64 + ORDER;
        self.chunked = true;
        if !self.volume.charge(cost) {
            return self.give_up();
        }
        let pieces = std::mem::take(&mut self.pieces);
        self.held = 0;
        self.volume.send(Order::Chunk { generation: self.owner.generation, pieces, cost });
    }

    fn give_up(&mut self) {
        if !std::mem::replace(&mut self.over, true) {
            add(&self.volume.shared.counters.dropped_queue, 1);
            self.pieces.clear();
            self.volume.send(Order::Abort(self.owner.generation));
            self.volume.forget_older(&self.owner);
        }
    }

    /// The body is complete. `expires`: until when the object is of use, in seconds since 1970. False when it was given up.
    pub fn commit(mut self, meta: Bytes, expires: u32) -> bool {
        if !self.over && (self.chunked || self.held > INLINE) && self.held > 0 {
            self.send_chunk(self.held);
        }
        let cost = ORDER + (meta.len() + self.held) as u64;
        if self.over {
            return false;
        }
        if !self.volume.charge(cost) {
            self.give_up();
            return false;
        }
        self.over = true;
        let inline = std::mem::take(&mut self.pieces);
        let (generation, body) = (self.owner.generation, self.length);
        self.volume.send(Order::Commit { generation, body, expires, meta, inline, cost });
        true
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.over {
            self.volume.send(Order::Abort(self.owner.generation));
        }
    }
}

/// The writer thread.
struct Writer {
    folder: Arc<dyn Folder>,
    shared: Arc<Shared>,
    readers: Arc<Readers>,
    queue: mpsc::Receiver<Order>,
    queued: Arc<AtomicU64>,
    start: Arc<Start>,
    size: u64,
    segment_size: u64,
    again: Duration,
}

/// When a disk that is off is tried again.
struct Rest {
    long: Duration,
    until: Instant,
}

impl Rest {
    fn new(long: Duration) -> Self {
        Self { long, until: Instant::now() + long }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// It was tried in vain.
    fn longer(&mut self) {
        *self = Self::new((self.long * 2).min(AGAIN_MOST));
    }
}

impl Writer {
    fn run(self) {
        let lock = self.lock();
        let next = lock.as_ref().map(|_| self.load());
        if matches!(next, Some(Ok(_))) {
            self.shared.set_state(State::On);
        }
        self.tell_started();
        let ack = match next {
            Some(Ok(next)) => self.serve(self.log(next)),
            Some(Err(error)) => {
                tracing::error!(disk = %self.shared.name, %error, "the cache's disk cannot be read: it is not used");
                self.shared.set_state(State::Off);
                self.refuse(Some(Rest::new(self.again)))
            }
            None => self.refuse(None),
        };
        self.shared.set_state(State::Closed);
        self.readers.close();
        drop(lock);
        *self.start.ended.lock() = true;
        self.start.end.notify_all();
        if let Some(ack) = ack {
            let _gone = ack.send(());
        }
    }

    /// Waits for the folder; `None` when the store is closed first.
    fn lock(&self) -> Option<FolderLock> {
        let mut told = false;
        loop {
            match self.folder.lock() {
                Ok(Some(lock)) => return Some(lock),
                Ok(None) if !told => {
                    tracing::warn!(disk = %self.shared.name, "another process uses the cache's folder: it is waited for");
                }
                Err(error) if !told => {
                    tracing::error!(disk = %self.shared.name, %error, "the cache's folder cannot be opened: it is tried again");
                }
                _ => {}
            }
            if !std::mem::replace(&mut told, true) {
                self.tell_started();
            }
            if self.start.closing.load(Ordering::Acquire) {
                return None;
            }
            thread::park_timeout(LOCK_AGAIN);
        }
    }

    fn load(&self) -> std::io::Result<u32> {
        self.shared.set_state(State::Loading);
        let began = Instant::now();
        let next = recover::recover(&*self.folder, &self.shared)?;
        tracing::info!(
            disk = %self.shared.name,
            objects = self.shared.index.len(),
            segments = self.shared.segments.read().len(),
            took = ?began.elapsed(),
            "the cache's disk is open"
        );
        Ok(next)
    }

    fn log(&self, next: u32) -> Log {
        Log::new(Arc::clone(&self.folder), Arc::clone(&self.shared), self.size, self.segment_size, next)
    }

    /// Tries a disk that was switched off. What is on it is given up: while it was off, nobody has told it what was replaced.
    fn try_again(&self) -> std::io::Result<Log> {
        self.probe()?;
        match self.folder.create(log::DISCARD, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made?.sync()?,
        }
        self.folder.sync()?;
        self.shared.forget_disk();
        let next = recover::recover(&*self.folder, &self.shared)?;
        tracing::warn!(disk = %self.shared.name, "the cache's disk works again: it begins empty");
        self.shared.set_state(State::On);
        Ok(self.log(next))
    }

    /// Whether the disk takes bytes and gives them back.
    fn probe(&self) -> std::io::Result<()> {
        if self.folder.list()?.iter().any(|name| name == PROBE) {
            self.folder.remove(PROBE)?;
        }
        let (written, mut read) = ([0x5e; 4096], [0; 4096]);
        let file = self.folder.create(PROBE, written.len() as u64)?;
        file.write_at(&written, 0)?;
        file.sync()?;
        file.read_at(&mut read, 0)?;
        self.folder.remove(PROBE)?;
        if read == written { Ok(()) } else { Err(std::io::Error::other("it gives back other bytes")) }
    }

    /// A log on a disk that works again, if it is time to try and it does.
    fn revived(&self, rest: &mut Rest) -> Option<Log> {
        if !rest.is_over() {
            return None;
        }
        match self.try_again() {
            Ok(log) => Some(log),
            Err(error) => {
                rest.longer();
                tracing::warn!(disk = %self.shared.name, %error, again_in = ?rest.long, "the cache's disk does not work yet");
                None
            }
        }
    }

    fn tell_started(&self) {
        *self.start.done.lock() = true;
        self.start.told.notify_all();
    }

    fn serve(&self, mut log: Log) -> Option<oneshot::Sender<()>> {
        let mut waiters = Vec::new();
        let mut rest: Option<Rest> = None;
        let closed = loop {
            let mut order = match self.queue.recv_timeout(log::SYNC_AFTER / 2) {
                Ok(order) => Some(order),
                Err(mpsc::RecvTimeoutError::Timeout) => None,
                Err(mpsc::RecvTimeoutError::Disconnected) => break None,
            };
            let (mut count, mut closing) = (0, None);
            while let Some(next) = order.take() {
                match next {
                    Order::Close(ack) => closing = Some(ack),
                    Order::Sync(ack) => waiters.push(ack),
                    next => self.carry_out(&mut log, next),
                }
                count += 1;
                if count < BATCH && closing.is_none() {
                    order = self.queue.try_recv().ok();
                }
            }
            log.settle();
            if !waiters.is_empty() {
                let synced = log.sync_now().is_ok();
                for ack in waiters.drain(..) {
                    let _gone: Result<(), bool> = oneshot::Sender::send(ack, synced);
                }
            }
            if closing.is_some() {
                break closing;
            }
            if self.shared.state() != State::Off {
                rest = None;
            } else if let Some(revived) = self.revived(rest.get_or_insert_with(|| Rest::new(self.again))) {
                log = revived;
            }
        };

        let was_on = self.shared.is_on();
        let sealed = log.close();
        self.shared.set_state(State::Closed);
        if was_on
            && sealed.is_ok()
            && let Err(error) = recover::save(&*self.folder, &self.shared, log.next())
        {
            tracing::warn!(disk = %self.shared.name, %error, "the cache's index is not saved: the next start reads all segments");
        }
        closed
    }

    fn carry_out(&self, log: &mut Log, order: Order) {
        let spent = match order {
            Order::Begin(owner) => {
                log.begin(owner);
                ORDER
            }
            Order::Chunk { generation, pieces, cost } => {
                log.chunk(generation, &pieces);
                cost
            }
            Order::Commit { generation, body, expires, meta, inline, cost } => {
                log.commit(generation, body, expires, &meta, &inline);
                cost
            }
            Order::Abort(generation) => {
                log.abort(generation);
                0
            }
            Order::Update { owner, expires, meta, cost } => {
                log.update(owner, expires, &meta);
                cost
            }
            Order::Remove(removal, ack) => {
                log.remove(removal, ack);
                0
            }
            Order::Sync(_) | Order::Close(_) => 0,
        };
        self.queued.fetch_sub(spent, Ordering::Relaxed);
    }

    /// Answers orders while the disk cannot be used, until it is closed, or of use after all.
    fn refuse(&self, mut rest: Option<Rest>) -> Option<oneshot::Sender<()>> {
        loop {
            let spent = match self.queue.recv_timeout(log::SYNC_AFTER / 2) {
                Ok(Order::Remove(_, Some(ack))) => {
                    let _gone = ack.send(Err(RemoveError::NotDurable));
                    0
                }
                Ok(Order::Sync(ack)) => {
                    let _gone = ack.send(false);
                    0
                }
                Ok(Order::Close(ack)) => return Some(ack),
                Ok(Order::Begin(_)) => ORDER,
                Ok(Order::Chunk { cost, .. } | Order::Commit { cost, .. } | Order::Update { cost, .. }) => cost,
                Ok(Order::Abort(_) | Order::Remove(_, None)) | Err(mpsc::RecvTimeoutError::Timeout) => 0,
                Err(mpsc::RecvTimeoutError::Disconnected) => return None,
            };
            self.queued.fetch_sub(spent, Ordering::Relaxed);
            if let Some(log) = rest.as_mut().and_then(|rest| self.revived(rest)) {
                return self.serve(log);
            }
        }
    }
}
