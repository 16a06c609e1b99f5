//! The writing side of one disk: appends records, seals segments, reclaims the oldest. Owned by the disk's writer thread.
//!
//! ```text
//! append ──> buffer ── flush (queue empty, or 1 MiB) ──> file ── sync (16 MiB, 1 s, or a removal waits) ──> durable
//!                          └ only now the index changes: what it names can be read
//! ```
//! After a failing write or sync nothing can be said about the segment's end, so it is left as it is, and the next record begins a new one.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::index::{Entry, Tag};
use super::io::Folder;
use super::record::{self, FOOTER_ENTRY, HEADER, Header, Kind, Listed, MetaHead, Place, room};
use super::segment::{self, Segment};
use super::shared::{Shared, State, add};
use super::{Removal, RemoveError};

/// Written at once.
const BUFFER: usize = 1 << 20;
/// At most so much, or so long, is written without being made durable.
const SYNC_BYTES: u64 = 16 << 20;
pub(crate) const SYNC_AFTER: Duration = Duration::from_secs(1);
/// After the disk was full, nothing is written for so long.
const FULL_PAUSE: Duration = Duration::from_secs(2);
/// Objects that were read lately may take this share of a segment when they are written anew.
const KEPT_SHARE: u64 = 4;
/// So many removals of what was to be replaced are remembered while nothing can be written.
const MOST_OWED: usize = 4096;
/// Says that what is on the disk must not be used: it may hold what was removed.
pub(crate) const DISCARD: &str = "discard";

/// Who waits for a removal to be durable.
pub(crate) type Ack = oneshot::Sender<Result<(), RemoveError>>;

/// Why a record was not written; said in the log already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed;

/// Whose a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) key: u128,
    pub(crate) family: u128,
    pub(crate) generation: u64,
}

impl Owner {
    fn tag(&self) -> Tag {
        Tag::of(self.key, self.family)
    }

    fn header(&self, kind: Kind, number: u32, length: usize, body_crc: u32) -> Header {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        Header { kind, key: self.key, family: self.family, generation: self.generation, number, length, body_crc }
    }
}

/// Why a meta record is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// The object is new.
    New,
    /// Its metadata are.
    Updated,
    /// It is kept, and lies in the segment there is.
    Kept,
}

/// An object that is being written.
#[derive(Debug)]
struct Open {
    owner: Owner,
    chunks: Vec<Place>,
    /// Removed meanwhile, or a piece is missing: it will not be committed.
    void: bool,
}

#[derive(Debug)]
struct Active {
    segment: Arc<Segment>,
    /// Where the buffer goes.
    flushed: u64,
    buffer: Vec<u8>,
    listed: Vec<Listed>,
    unsynced: u64,
    synced: Instant,
}

impl Active {
    fn at(&self) -> u64 {
        self.flushed + self.buffer.len() as u64
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Log {
    folder: Arc<dyn Folder>,
    shared: Arc<Shared>,
    /// What the segments may take together, and one of them.
    size: u64,
    segment_size: u64,
    active: Option<Active>,
    next: u32,
    open: HashMap<u64, Open>,
    /// What changes in the index with the next flush, and whose objects are new.
    pending: Vec<(Entry, Option<Owner>)>,
    /// What was to be replaced by something that was lost, and has to be removed from the log as well.
    owed: Vec<Removal>,
    unacked: Vec<(Removal, Ack)>,
    /// Some of them may not be in the log.
    unwritten: bool,
    /// What is on the disk will not be used again.
    discarded: bool,
    paused_until: Option<Instant>,
    /// The file system had no room: give up a segment before the next one is made.
    starved: bool,
}

impl Log {
    pub(crate) fn new(folder: Arc<dyn Folder>, shared: Arc<Shared>, size: u64, segment_size: u64, next: u32) -> Self {
        Self {
            folder,
            shared,
            size,
            segment_size,
            active: None,
            next,
            open: HashMap::new(),
            pending: Vec::new(),
            owed: Vec::new(),
            unacked: Vec::new(),
            unwritten: false,
            discarded: false,
            paused_until: None,
            starved: false,
        }
    }

    /// The number of the next segment.
    pub(crate) fn next(&self) -> u32 {
        self.next
    }

    // ---- what is asked of it ----

    pub(crate) fn begin(&mut self, owner: Owner) {
        self.open.insert(owner.generation, Open { owner, chunks: Vec::new(), void: false });
    }

    pub(crate) fn abort(&mut self, generation: u64) {
        self.open.remove(&generation);
    }

    pub(crate) fn chunk(&mut self, generation: u64, pieces: &[Bytes]) {
        let Some(open) = self.open.get(&generation).filter(|open| !open.void) else { return };
        let (owner, number) = (open.owner, u32::try_from(open.chunks.len()).unwrap_or(u32::MAX));
        let length = pieces.iter().map(Bytes::len).sum();
        let header = owner.header(Kind::Chunk, number, length, record::body_crc(pieces.iter().map(AsRef::as_ref)));
        let place = self.append(&header, pieces, false);
        if let Some(open) = self.open.get_mut(&generation) {
            match place {
                Ok(place) => open.chunks.push(place),
                Err(Failed) => open.void = true,
            }
        }
    }

    /// The object is complete: `inline` is its body, where no chunk was written.
    pub(crate) fn commit(&mut self, generation: u64, body: u64, expires: u32, meta: &Bytes, inline: &[Bytes]) {
        let Some(open) = self.open.remove(&generation) else { return };
        let written = {
            let segments = self.shared.segments.read();
            !open.void && open.chunks.iter().all(|place| segments.contains_key(&place.segment))
        };
        let length = u32::try_from(meta.len()).unwrap_or(u32::MAX);
        let head = MetaHead { body, meta: length, chunks: open.chunks };
        if !written || self.meta(&open.owner, expires, &head, meta, inline, Whose::New).is_err() {
            self.lost(&open.owner);
        }
    }

    /// An object that a client has got is not written: what it was to replace is older, and must not come back.
    fn lost(&mut self, owner: &Owner) {
        add(&self.shared.counters.dropped_error, 1);
        let removal = Removal::Key { key: owner.key, family: owner.family };
        self.pending.retain(|(entry, _)| !removal.covers_entry(entry));
        if self.shared.index.remove(owner.tag()) && self.owed.len() < MOST_OWED {
            self.owed.push(removal);
        }
    }

    /// New metadata for the object of this generation; its body stays where it is.
    pub(crate) fn update(&mut self, owner: Owner, expires: u32, meta: &Bytes) {
        let _written = self.flush();
        let Some(entry) = self.shared.index.get(owner.tag()) else { return };
        let Some((_, record)) = self.read(&entry, &owner) else { return };
        let payload = &record[HEADER..];
        let Some((head, start)) = MetaHead::decode(payload) else { return };
        let inline = start + head.meta as usize..start + head.meta as usize + inline_length(&head);
        let body = payload.get(inline).map(Bytes::copy_from_slice).unwrap_or_default();
        let head = MetaHead { meta: u32::try_from(meta.len()).unwrap_or(u32::MAX), ..head };
        // Failing leaves the older metadata, which runs out earlier.
        let _written = self.meta(&owner, expires, &head, meta, &[body], Whose::Updated);
    }

    /// Removes from the index at once; `ack` is told when it is durable.
    pub(crate) fn remove(&mut self, removal: Removal, ack: Option<Ack>) {
        self.open.values_mut().for_each(|open| open.void |= removal.covers(&open.owner));
        self.pending.retain(|(entry, _)| !removal.covers_entry(entry));
        self.shared.forget(removal);
        self.unwritten |= self.append(&removal.header(), &[] as &[&[u8]], false).is_err();
        if let Some(ack) = ack {
            self.unacked.push((removal, ack));
        }
    }

    /// After a batch: what was appended is written, and removals are durable.
    pub(crate) fn settle(&mut self) {
        let written = self.flush();
        if !self.unacked.is_empty() {
            let mut durable = written.and_then(|()| self.sync());
            if self.unwritten || durable.is_err() {
                // What was appended may be lost with its segment: once more, into another one if need be.
                let headers: Vec<_> = self.unacked.iter().map(|(removal, _)| removal.header()).collect();
                let again = headers.iter().try_for_each(|header| self.append(header, &[] as &[&[u8]], true).map(drop));
                durable = again.and_then(|()| self.flush()).and_then(|()| self.sync());
            }
            let durable = durable.is_ok() || self.discard();
            for (_, ack) in self.unacked.drain(..) {
                if durable {
                    add(&self.shared.counters.removed, 1);
                }
                let _gone = ack.send(if durable { Ok(()) } else { Err(RemoveError::NotDurable) });
            }
        }
        self.unwritten = false;

        let due = self.active.as_ref().is_some_and(|active| {
            active.unsynced >= SYNC_BYTES || active.unsynced > 0 && active.synced.elapsed() >= SYNC_AFTER
        });
        if due {
            let _synced = self.sync();
        }
    }

    /// A removal could not be written: have nothing of the disk used at the next start, which removes what it was about too. Making a name
    /// may work where writing does not. Says whether it did.
    fn discard(&mut self) -> bool {
        if self.discarded {
            return true;
        }
        let marked = self.folder.create(DISCARD, 0).and_then(|file| file.sync()).and_then(|()| self.folder.sync());
        self.discarded = marked.is_ok();
        match marked {
            Ok(()) => {
                tracing::error!(disk = %self.shared.name, "a removal could not be written: the cache's disk begins empty at the next start")
            }
            Err(error) => {
                tracing::error!(disk = %self.shared.name, %error, "a removal from the cache's disk is not durable")
            }
        }
        self.shared.set_off();
        self.discarded
    }

    /// Everything is written, durable, and sealed.
    pub(crate) fn close(&mut self) -> Result<(), Failed> {
        self.settle();
        if self.active.is_some() { self.seal() } else { Ok(()) }
    }

    pub(crate) fn sync_now(&mut self) -> Result<(), Failed> {
        self.flush()?;
        self.sync()
    }

    // ---- appending ----

    fn meta(
        &mut self,
        owner: &Owner,
        expires: u32,
        head: &MetaHead,
        meta: &[u8],
        inline: &[Bytes],
        whose: Whose,
    ) -> Result<(), Failed> {
        let head = head.encode();
        let pieces: Vec<&[u8]> = [&head[..], meta].into_iter().chain(inline.iter().map(AsRef::as_ref)).collect();
        let length = pieces.iter().map(|piece| piece.len()).sum();
        let header = owner.header(Kind::Meta, expires, length, record::body_crc(pieces.iter().copied()));
        let place = match whose {
            Whose::Kept => self.append_here(&header, &pieces),
            Whose::New | Whose::Updated => self.append(&header, &pieces, false),
        }?;
        let listed = segment::list(&header, place.segment, u64::from(place.offset) * HEADER as u64);
        self.pending.push((listed.entry, (whose == Whose::New).then_some(*owner)));
        Ok(())
    }

    /// Appends a record, in a new segment where this one is full.
    fn append(&mut self, header: &Header, pieces: &[impl AsRef<[u8]>], urgent: bool) -> Result<Place, Failed> {
        if self.shared.state() != State::On {
            return Err(Failed);
        }
        let needed = header.room() + end_room(1);
        if segment::HEAD + needed > self.segment_size {
            return Err(Failed);
        }
        if self.active.as_ref().is_some_and(|active| !fits(active, header.room(), self.segment_size)) {
            // What cannot be sealed is left behind all the same.
            let _sealed = self.seal();
        }
        if self.active.is_none() {
            self.open_segment(urgent)?;
        }
        self.append_here(header, pieces)
    }

    /// Appends a record to the segment there is.
    fn append_here(&mut self, header: &Header, pieces: &[impl AsRef<[u8]>]) -> Result<Place, Failed> {
        if self.active.as_ref().is_some_and(|active| active.buffer.len() as u64 + header.room() > BUFFER as u64) {
            self.flush()?;
        }
        let Some(active) = self.active.as_mut().filter(|active| fits(active, header.room(), self.segment_size)) else {
            return Err(Failed);
        };
        let at = active.at();
        let start = active.buffer.len();
        active.buffer.extend_from_slice(&header.encode(active.segment.salt));
        pieces.iter().for_each(|piece| active.buffer.extend_from_slice(piece.as_ref()));
        active.buffer.resize((active.buffer.len() - start).next_multiple_of(HEADER) + start, 0);
        if header.kind != Kind::Synced {
            active.listed.push(segment::list(header, active.segment.number, at));
        }
        let offset = u32::try_from(at / HEADER as u64).unwrap_or(u32::MAX);
        Ok(Place { segment: active.segment.number, offset, length: header.length })
    }

    pub(crate) fn flush(&mut self) -> Result<(), Failed> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if !active.buffer.is_empty() {
            if let Err(error) = active.segment.file.write_at(&active.buffer, active.flushed) {
                return Err(self.broken("write", &error));
            }
            let length = active.buffer.len() as u64;
            active.flushed += length;
            active.unsynced += length;
            active.buffer.clear();
            add(&self.shared.counters.written_bytes, length);
        }
        for (entry, new) in self.pending.drain(..) {
            add(&self.shared.counters.written, u64::from(new.is_some()));
            if self.shared.index.put(entry).is_some() {
                add(&self.shared.counters.reclaimed, 1);
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), Failed> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if let Err(error) = active.segment.file.sync() {
            return Err(self.broken("sync", &error));
        }
        active.unsynced = 0;
        active.synced = Instant::now();
        let number = u32::try_from(active.flushed / HEADER as u64).unwrap_or(u32::MAX);
        // Without room for the mark the segment is about to be sealed anyway.
        let _marked = self.append_here(&Header { number, ..Header::of(Kind::Synced) }, &[] as &[&[u8]]);
        Ok(())
    }

    fn seal(&mut self) -> Result<(), Failed> {
        self.flush()?;
        let Some(active) = &self.active else { return Ok(()) };
        let sealed = seal(&active.segment, active.flushed, &active.listed).and_then(|()| active.segment.file.sync());
        match sealed {
            Ok(()) => {
                self.active = None;
                Ok(())
            }
            Err(error) => Err(self.broken("seal a segment", &error)),
        }
    }

    /// The segment's end cannot be relied on: go on without it.
    fn broken(&mut self, doing: &'static str, error: &io::Error) -> Failed {
        self.active = None;
        self.unwritten = true;
        for (_, new) in std::mem::take(&mut self.pending) {
            if let Some(owner) = new {
                self.lost(&owner);
            }
        }
        self.open.values_mut().for_each(|open| open.void = true);
        if error.kind() == ErrorKind::StorageFull || error.kind() == ErrorKind::QuotaExceeded {
            self.no_room();
        } else {
            self.shared.failed(doing, error);
        }
        Failed
    }

    fn no_room(&mut self) {
        add(&self.shared.counters.full, 1);
        if !self.starved {
            tracing::warn!(disk = %self.shared.name, "no room for the cache on its disk: it gives up its oldest objects");
        }
        self.starved = true;
        self.paused_until = Some(Instant::now() + FULL_PAUSE);
    }

    // ---- segments ----

    /// A new segment. Those beyond the size are reclaimed into it.
    fn open_segment(&mut self, urgent: bool) -> Result<(), Failed> {
        if !urgent && self.paused_until.is_some_and(|until| Instant::now() < until) {
            return Err(Failed);
        }
        self.paused_until = None;
        if std::mem::take(&mut self.starved) {
            self.drop_oldest();
        }
        let made = Segment::create(&*self.folder, self.next, self.segment_size).or_else(|error| {
            if error.kind() == ErrorKind::StorageFull && self.drop_oldest() {
                add(&self.shared.counters.full, 1);
                return Segment::create(&*self.folder, self.next, self.segment_size);
            }
            Err(error)
        });
        let (segment, head) = match made.and_then(|made| self.folder.sync().map(|()| made)) {
            Ok(made) => made,
            Err(error) => return Err(self.broken("make a segment", &error)),
        };
        self.next += 1;
        let segment = Arc::new(segment);
        self.shared.segments.write().insert(segment.number, Arc::clone(&segment));
        self.active =
            Some(Active { segment, flushed: 0, buffer: head, listed: Vec::new(), unsynced: 0, synced: Instant::now() });
        self.make_room();
        for removal in std::mem::take(&mut self.owed) {
            self.append_here(&removal.header(), &[] as &[&[u8]])?;
        }
        Ok(())
    }

    /// Reclaims the oldest segments until all together are within the size.
    fn make_room(&mut self) {
        let mut budget = self.segment_size / KEPT_SHARE;
        while self.shared.size() > self.size && self.reclaim(&mut budget) {}
    }

    /// The oldest segment that is not being written.
    fn oldest(&self) -> Option<Arc<Segment>> {
        let active = self.active.as_ref().map(|active| active.segment.number);
        let segments = self.shared.segments.read();
        segments.values().find(|segment| Some(segment.number) != active).cloned()
    }

    /// Gives up the oldest segment with all that is in it.
    fn drop_oldest(&mut self) -> bool {
        let mut nothing = 0;
        self.reclaim(&mut nothing)
    }

    /// Gives the oldest segment back, and keeps what is read often, within `budget`.
    fn reclaim(&mut self, budget: &mut u64) -> bool {
        let Some(segment) = self.oldest() else { return false };
        let listed = match segment.footer() {
            Ok(Some(footer)) => Ok(footer.records().collect()),
            Ok(None) => segment.scan().map(|scan| scan.listed),
            Err(error) => Err(error),
        };
        let listed = listed.unwrap_or_else(|error| {
            // What the index still names in there is found to be gone when it is looked up.
            self.shared.failed("read a segment's footer", &error);
            Vec::new()
        });
        let (now, mut kept) = (seconds_now(), HashSet::new());
        for Listed { kind, entry: old } in listed {
            if !matches!(kind, Kind::Meta | Kind::Chunk) {
                continue;
            }
            let Some(entry) = self.shared.index.get(old.tag()) else { continue };
            // A chunk counts for the object it belongs to, whose metadata may have been written anew since.
            let concerned = if kind == Kind::Meta { entry.is_at(&old) } else { entry.generation == old.generation };
            if !concerned || kept.contains(&old.tag()) {
                continue;
            }
            if entry.hits() > 0 && entry.expires > now && self.keep(&entry, segment.number, budget).is_ok() {
                add(&self.shared.counters.kept, 1);
                kept.insert(old.tag());
            } else if self.shared.index.remove_same(&entry) {
                add(&self.shared.counters.reclaimed, 1);
            }
        }
        self.shared.segments.write().remove(&segment.number);
        if let Err(error) = self.folder.remove(&segment::name(segment.number)) {
            self.shared.failed("remove a segment", &error);
        }
        true
    }

    /// Writes anew what of the object lies in segment `leaving`.
    fn keep(&mut self, entry: &Entry, leaving: u32, budget: &mut u64) -> Result<(), Failed> {
        let holder = self.shared.segment(entry.segment).ok_or(Failed)?;
        let (header, record) = holder.read(entry.offset, entry.bytes()).ok().flatten().ok_or(Failed)?;
        let payload = record.get(HEADER..HEADER + header.length as usize).ok_or(Failed)?;
        let (mut head, start) = MetaHead::decode(payload).ok_or(Failed)?;
        let moved = head.chunks.iter().filter(|place| place.segment == leaving);
        let cost = header.room() + moved.map(|place| room(place.length as usize)).sum::<u64>();
        if cost > *budget {
            return Err(Failed);
        }
        let owner = Owner { key: header.key, family: header.family, generation: header.generation };
        for (place, number) in head.chunks.iter_mut().zip(0..) {
            if place.segment == leaving {
                let bytes = HEADER + place.length as usize;
                let (chunk, body) =
                    holder_of(&self.shared, leaving)?.read(place.offset, bytes).ok().flatten().ok_or(Failed)?;
                if (chunk.key, chunk.generation, chunk.number) != (owner.key, owner.generation, number) {
                    return Err(Failed);
                }
                *place = self.append_here(&chunk, &[&body[HEADER..]])?;
            }
        }
        let meta = &payload[start..start + head.meta as usize];
        let inline = payload.get(start + head.meta as usize..).map(Bytes::copy_from_slice).unwrap_or_default();
        self.meta(&owner, header.number, &head, meta, &[inline], Whose::Kept)?;
        *budget -= cost;
        Ok(())
    }

    /// The record that `entry` names, if it is the owner's.
    fn read(&self, entry: &Entry, owner: &Owner) -> Option<(Header, Vec<u8>)> {
        let segment = self.shared.segment(entry.segment)?;
        let (header, record) = match segment.read(entry.offset, entry.bytes()) {
            Ok(found) => found?,
            Err(error) => {
                self.shared.failed("read", &error);
                return None;
            }
        };
        let right = Owner { key: header.key, family: header.family, generation: header.generation } == *owner;
        right.then_some((header, record))
    }
}

fn holder_of(shared: &Shared, segment: u32) -> Result<Arc<Segment>, Failed> {
    shared.segment(segment).ok_or(Failed)
}

/// How much of the body follows the metadata.
pub(crate) fn inline_length(head: &MetaHead) -> usize {
    if head.chunks.is_empty() { usize::try_from(head.body).unwrap_or(usize::MAX) } else { 0 }
}

/// What the end of a segment with `count` records more takes.
fn end_room(count: usize) -> u64 {
    room(count * FOOTER_ENTRY) + room(0)
}

fn fits(active: &Active, more: u64, segment_size: u64) -> bool {
    active.at() + more + end_room(active.listed.len() + 1) <= segment_size
}

/// Writes the footer of a segment whose records end at `end`, and cuts the file off there. It need not be durable: without it the segment
/// is scanned.
pub(crate) fn seal(segment: &Segment, end: u64, listed: &[Listed]) -> io::Result<()> {
    let payload = record::encode_footer(listed);
    let footer = Header {
        length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        body_crc: record::body_crc([&payload[..]]),
        ..Header::of(Kind::Footer)
    };
    let number = u32::try_from(end / HEADER as u64).unwrap_or(u32::MAX);
    let mut bytes = footer.encode(segment.salt).to_vec();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(HEADER), 0);
    bytes.extend(Header { number, ..Header::of(Kind::Trailer) }.encode(segment.salt));
    let size = end + bytes.len() as u64;
    segment.file.write_at(&bytes, end)?;
    segment.file.set_len(size)?;
    segment.size.store(size, Ordering::Relaxed);
    Ok(())
}

pub(crate) fn seconds_now() -> u32 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
}
