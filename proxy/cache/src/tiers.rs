//! Memory over disk, as Pingora's storage.
//!
//! | | memory | disk |
//! |---|---|---|
//! | lookup | first; a hit on an object that has no copy on disk sends it there | then; what is read as a whole and fits goes to memory |
//! | fill | as without a disk | a copy goes along, if it is [admitted](Store::admits), also of what is too large for memory |
//! | 304 | new metadata | new metadata, if the copy is of the same object |
//! | purge | judged at lookup | judged at lookup, by the marks that are stored with it |
//! | invalidation | at once | at once, and in the log |
//!
//! Nothing on the request path waits for a write. Reads from disk wait for a deadline at most, then it is a miss.
//!
//! **What is newer wins.** A response that is stored in memory and not on disk takes its predecessor on disk away, so that it cannot come
//! back when memory lets go of it.

use std::any::Any;
use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use pingora_cache::trace::SpanHandle;
use pingora_cache::{CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage};
use pingora_error::{Error, ErrorType, OrErr, Result};

use crate::collapse::FillLocks;
use crate::disk::{self, Admit, DiskUsage, Removal, Store, Writing};
use crate::key::{self, Slot};
use crate::memory::{FillNotes, MemoryTier, NOT_ON_DISK, Object, Reader, StoredMeta};
use crate::purge::{Purges, Verdict};

/// What is of no use after so short a time is not written, but where everything is.
const WORTH_WRITING: Duration = Duration::from_secs(60);
/// Generations on disk are microseconds since 1970; those in memory count from 1.
const FIRST_ON_DISK: u64 = 1 << 40;

/// What the disk tier is made of.
#[derive(Debug, Clone)]
pub struct DiskTier {
    /// The disks, and what is written to them.
    pub store: disk::StoreOptions,
    /// The largest body that is written, in bytes.
    pub max_object: u64,
}

/// See the [module](self).
pub struct Tiers {
    memory: &'static MemoryTier,
    store: Store,
    purges: &'static Purges,
    locks: &'static FillLocks,
    max_object: u64,
    admit: Admit,
}

impl fmt::Debug for Tiers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tiers").field("memory", &self.memory).field("disk", &self.store.usage()).finish_non_exhaustive()
    }
}

/// An object found on disk.
struct Loaded {
    meta: StoredMeta,
    /// Since when a soft purge has it stale.
    stale_since: Option<std::time::SystemTime>,
    generation: u64,
    body: disk::Body,
}

impl Tiers {
    /// Opens the disks.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn open(
        tier: DiskTier,
        memory: &'static MemoryTier,
        purges: &'static Purges,
        locks: &'static FillLocks,
    ) -> std::io::Result<Self> {
        let admit = tier.store.admit;
        Ok(Self { memory, store: Store::open(tier.store)?, purges, locks, max_object: tier.max_object, admit })
    }

    /// The disks.
    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// The largest body that either tier stores.
    pub(crate) fn max_object(&self) -> u64 {
        self.max_object.max(self.memory.max_object())
    }

    pub(crate) fn usage(&self) -> Vec<DiskUsage> {
        self.store.usage()
    }

    /// What is on disk, if it may be used.
    async fn load(&self, slot: Slot, primary: Slot) -> Option<Loaded> {
        let found = self.store.find(slot, primary).await?;
        let gone = || {
            self.store.forget(Removal::Key { key: slot, family: primary });
            None
        };
        // Written by another version.
        let Some(meta) = StoredMeta::decode(&found.meta) else { return gone() };
        let epoch = meta.marks.epoch;
        // The clock was set back since it was written: purges of now would not reach it.
        if epoch > self.purges.clock().fetch() || self.memory.is_invalidated_since(primary, epoch) {
            return gone();
        }
        let stale_since = match self.purges.verdict(&meta.marks) {
            Verdict::Live => None,
            Verdict::StaleSince(purge) => Some(purge),
            Verdict::Gone => return gone(),
        };
        Some(Loaded { meta, stale_since, generation: found.generation, body: found.body })
    }

    /// What is on disk at a primary slot, and the length of its body.
    pub(crate) async fn peek(&self, primary: Slot) -> Option<(StoredMeta, u64)> {
        let loaded = self.load(primary, primary).await?;
        let length = loaded.body.length();
        Some((loaded.meta, length))
    }

    /// Whether an object is of use for so long that it may be written. Failures never are: they are for those who wait for them; nor is
    /// what another node owns, and has on its disks.
    fn is_worth_it(&self, meta: &StoredMeta) -> bool {
        if meta.is_shared_failure || meta.is_copy {
            return false;
        }
        let soon = disk::seconds_now().saturating_add(u32::try_from(WORTH_WRITING.as_secs()).unwrap_or(u32::MAX));
        self.admit == Admit::All || meta.of_use_until() >= soon
    }

    /// A hit in memory is the second request: what has no copy on disk gets one.
    fn write_behind(&self, slot: Slot, object: &Object) {
        if object.body.len() > self.max_object || !self.is_worth_it(&object.meta) {
            return;
        }
        // One of those who come at the same time; and whatever becomes of it, it is not tried again.
        if object.on_disk().compare_exchange(0, NOT_ON_DISK, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let Some(mut writing) = self.store.begin(slot, object.primary) else { return };
        object.on_disk().store(writing.generation(), Ordering::Relaxed);
        // Begun first: an invalidation is seen here, or takes what has begun away.
        if self.memory.is_invalidated_since(object.primary, object.meta.marks.epoch) {
            return;
        }
        let Some(meta) = object.meta.encode() else { return };
        if object.body.chunks().all(|chunk| writing.push(chunk.clone())) {
            writing.commit(meta, object.meta.of_use_until());
        }
    }
}

#[async_trait]
impl Storage for Tiers {
    async fn lookup(&'static self, key: &CacheKey, trace: &SpanHandle) -> Result<Option<(CacheMeta, HitHandler)>> {
        let (slot, primary) = (key::slot(key), key::primary_slot(key));
        if let Some((meta, hit)) = self.memory.lookup(key, trace).await? {
            if let Some(object) = hit.as_any().downcast_ref::<Reader>().and_then(Reader::object)
                && object.on_disk().load(Ordering::Relaxed) == 0
            {
                self.write_behind(slot, object);
            }
            return Ok(Some((meta, hit)));
        }
        // Who asks for the same meanwhile may come to wait for what this request fetches, if it finds nothing.
        let looking = self.locks.under_way.enter(primary);
        let loaded = self.load(slot, primary).await;
        drop(looking);
        let Some(loaded) = loaded else { return Ok(None) };
        let mut meta = loaded.meta.to_cache_meta();
        if let Some(purge) = loaded.stale_since {
            meta.expire_at(purge);
        }
        let reader = DiskReader::new(self.memory, slot, primary, loaded);
        Ok(Some((meta, Box::new(Reader::Disk(Box::new(reader))))))
    }

    async fn lookup_streaming_write(
        &'static self,
        key: &CacheKey,
        streaming_write_tag: Option<&[u8]>,
        trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        match streaming_write_tag {
            Some(_) => self.memory.lookup_streaming_write(key, streaming_write_tag, trace).await,
            None => self.lookup(key, trace).await,
        }
    }

    async fn get_miss_handler(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<MissHandler> {
        let (slot, primary) = (key::slot(key), key::primary_slot(key));
        let stored = self.memory.stored_meta(meta, meta.extensions().get::<FillNotes>());
        let length = stored.promised_length();
        let fits = length.is_none_or(|length| length <= self.max_object);
        let admitted = fits && self.is_worth_it(&stored) && self.store.admits(slot, primary, length);
        let writing = if admitted { self.store.begin(slot, primary) } else { None };
        if writing.is_none() && !stored.is_shared_failure && self.store.has(slot, primary) {
            self.store.forget(Removal::Key { key: slot, family: primary });
        }
        let copy = DiskCopy { writing, length: 0, limit: self.max_object };
        Ok(self.memory.begin(key, meta, Some(copy)))
    }

    async fn purge(
        &'static self,
        target: PurgeTarget<'_>,
        kind: PurgeType,
        trace: &SpanHandle,
    ) -> Result<PurgeOutcome> {
        let (slot, primary) = (key::slot(target.key()), key::primary_slot(target.key()));
        let on_disk = self.store.has(slot, primary);
        let outcome = self.memory.purge(target, kind, trace).await?;
        self.store.forget(Removal::Key { key: slot, family: primary });
        Ok(if on_disk && outcome == PurgeOutcome::NotFound { PurgeOutcome::Purged(None) } else { outcome })
    }

    async fn expire(&'static self, target: PurgeTarget<'_>, trace: &SpanHandle) -> Result<PurgeOutcome> {
        let (slot, primary) = (key::slot(target.key()), key::primary_slot(target.key()));
        let outcome = self.memory.expire(target, trace).await?;
        let Some(loaded) = self.load(slot, primary).await else { return Ok(outcome) };
        let mut meta = loaded.meta;
        meta.fresh_until = meta.fresh_until.min(std::time::SystemTime::now());
        if let Some(bytes) = meta.encode() {
            self.store.update(slot, primary, loaded.generation, meta.of_use_until(), bytes);
        }
        Ok(PurgeOutcome::Expired)
    }

    async fn update_meta(&'static self, key: &CacheKey, meta: &CacheMeta, trace: &SpanHandle) -> Result<bool> {
        let (slot, primary) = (key::slot(key), key::primary_slot(key));
        let updated = self.memory.update_meta(key, meta, trace).await?;
        let notes = meta.extensions().get::<FillNotes>();
        let new = self.memory.stored_meta(meta, notes);
        let generation = if updated {
            self.memory.on_disk(slot)
        } else {
            notes.and_then(|notes| notes.validates).filter(|generation| *generation >= FIRST_ON_DISK)
        };
        let Some(generation) = generation else { return Ok(updated) };
        let mut new = new;
        if updated {
            new.trailers = self.memory.trailers(slot);
        } else {
            // On disk alone. What was purged while the origin was asked is not brought back by its answer.
            let loaded = self.load(slot, primary).await.filter(|loaded| loaded.generation == generation);
            let Some(loaded) = loaded else { return Ok(false) };
            if self.memory.is_invalidated_since(primary, new.marks.epoch) {
                return Ok(false);
            }
            new.trailers = loaded.meta.trailers;
        }
        let until = new.of_use_until();
        let on_disk = new.encode().is_some_and(|bytes| self.store.update(slot, primary, generation, until, bytes));
        Ok(updated || on_disk)
    }

    fn support_streaming_partial_write(&self) -> bool {
        true
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

/// A fill's way to disk.
#[derive(Debug)]
pub(crate) struct DiskCopy {
    /// None when it is not admitted, or was given up.
    writing: Option<Writing>,
    length: u64,
    limit: u64,
}

impl DiskCopy {
    /// Append. Says whether it still goes to disk, and whether it is small enough to.
    pub(crate) fn push(&mut self, data: &Bytes) -> (bool, bool) {
        self.length += data.len() as u64;
        let fits = self.length <= self.limit;
        if !fits || self.writing.as_mut().is_some_and(|writing| !writing.push(data.clone())) {
            self.writing = None;
        }
        (self.writing.is_some(), fits)
    }

    /// The generation it will have on disk; 0 when it will not be there.
    pub(crate) fn generation(&self) -> u64 {
        self.writing.as_ref().map_or(0, Writing::generation)
    }

    /// The body is whole. Says how many bytes are on their way.
    pub(crate) fn commit(self, meta: &StoredMeta) -> usize {
        let length = self.length;
        let sent =
            self.writing.zip(meta.encode()).is_some_and(|(writing, bytes)| writing.commit(bytes, meta.of_use_until()));
        if sent { usize::try_from(length).unwrap_or(usize::MAX) } else { 0 }
    }
}

/// Reads an object from disk, and brings it to memory when it has been read as a whole.
#[derive(Debug)]
pub struct DiskReader {
    memory: &'static MemoryTier,
    slot: Slot,
    primary: Slot,
    generation: u64,
    meta: StoredMeta,
    body: disk::Body,
    /// What was read from the beginning on, for memory.
    pieces: Option<Vec<Bytes>>,
    read: u64,
}

impl DiskReader {
    fn new(memory: &'static MemoryTier, slot: Slot, primary: Slot, loaded: Loaded) -> Self {
        let Loaded { meta, generation, body, .. } = loaded;
        // An eighth at most, so that one object does not turn everything else out.
        let most = memory.max_object().min(memory.capacity() / 8);
        let pieces = (body.length() <= most).then(Vec::new);
        Self { memory, slot, primary, generation, meta, body, pieces, read: 0 }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn meta(&self) -> &StoredMeta {
        &self.meta
    }

    pub(crate) async fn read(&mut self) -> Result<Option<Bytes>> {
        let piece = self.body.read().await.or_err(ErrorType::ReadError, "read a cached body from disk")?;
        if let Some(pieces) = &mut self.pieces {
            if let Some(piece) = &piece {
                self.read += piece.len() as u64;
                pieces.push(piece.clone());
            }
            if self.read == self.body.length()
                && let Some(pieces) = self.pieces.take()
            {
                self.memory.promote(self.slot, self.primary, &self.meta, pieces, self.generation);
            }
        }
        Ok(piece)
    }

    pub(crate) fn seek(&mut self, start: u64, end: Option<u64>) -> Result<()> {
        self.pieces = None;
        self.body.seek(start, end).map_err(|error| Error::because(ErrorType::InternalError, "a range on disk", error))
    }
}
