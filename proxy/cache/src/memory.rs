//! The memory tier: complete objects under a byte budget, and fills under way that others can read along.
//!
//! ```text
//!                     ┌── eof, length right ──> Complete ── finish ──> an object, evicted by moka (TinyLFU) or purged
//! get_miss_handler ──> Filling
//!                     └── dropped, length wrong ──> Failed: every reader gets an error, nobody a clean short body
//! ```
//!
//! A fill that grows past `max_object`, or is invalidated, or finds the memory for fills used up, is *detached*: it will not be stored and
//! takes no new readers, but those it has read on, and what all of them have read is freed.
//!
//! Purges are judged when something is looked up or stored (see [`purge`](crate::purge)); what they reach is let go of then, or evicted.
//!
//! A hit clones the decoded header, which Pingora wants to own, and hands out the stored chunks of the body by reference count.

mod codec;
mod encoded;
mod fill;
mod object;

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use dashmap::DashMap;
use http::HeaderName;
use moka::ops::compute::Op;
use pingora_cache::key::CacheHashKey;
use pingora_cache::storage::streaming_write::U64WriteId;
use pingora_cache::storage::{HandleHit, HandleMiss, MissFinishType};
use pingora_cache::trace::SpanHandle;
use pingora_cache::{CacheKey, CacheMeta, HitHandler, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage};
use pingora_error::{Error, ErrorType, Result};

use crate::collapse::HitForMiss;
use crate::key::{self, Slot, SlotHash};
use crate::memory::encoded::Encodings;
pub use crate::memory::encoded::{Encoded, EncodedBody, StoredBody};
use crate::memory::fill::{Fill, FillReader, Outcome};
use crate::memory::object::Body;
pub(crate) use crate::memory::object::{NOT_ON_DISK, Object, StoredMeta};
use crate::purge::{Mark, Marks, Purges, Verdict};
use crate::tiers::{DiskCopy, DiskReader};
use crate::{CacheOptions, Purge};

/// Invalidations are remembered against fills under way by so many groups of keys.
const STRIPES: usize = 65_536;

/// The slots of each primary slot's variants, with the generation of their objects.
type Variants = DashMap<Slot, Vec<(Slot, u64)>, SlotHash>;

/// What a fill needs to know beyond the response, carried in the extensions of its [`CacheMeta`].
#[derive(Debug, Clone, Default)]
pub struct FillNotes {
    marks: Option<Marks>,
    pub(crate) validates: Option<u64>,
    withheld: Vec<HeaderName>,
    is_shared_failure: bool,
    is_copy: bool,
}

impl FillNotes {
    /// Notes for a response that purges reach by `marks`, that validates the object of generation `validates` (if it is a validation),
    /// and whose `withheld` fields are for the first client only.
    pub(crate) fn new(marks: Marks, validates: Option<u64>, withheld: Vec<HeaderName>) -> Self {
        Self { marks: Some(marks), validates, withheld, ..Self::default() }
    }

    /// The same for a response that another node owns, if it is one.
    pub(crate) fn copied(self, is_copy: bool) -> Self {
        Self { is_copy, ..self }
    }

    /// Notes for an error answer that those who wait for it share.
    pub(crate) fn shared_failure(marks: Marks) -> Self {
        Self { marks: Some(marks), is_shared_failure: true, ..Self::default() }
    }
}

/// What the tier holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Complete objects.
    pub objects: u64,
    /// Their weight in bytes, headers and bookkeeping included.
    pub bytes: u64,
    /// The budget for them.
    pub capacity: u64,
    /// Fills under way.
    pub fills: u64,
    /// Body bytes they hold.
    pub fill_bytes: u64,
}

/// See the [module](self).
pub struct MemoryTier {
    objects: moka::sync::Cache<Slot, Arc<Object>, SlotHash>,
    fills: DashMap<Slot, Vec<Arc<Fill>>, SlotHash>,
    variants: Arc<Variants>,
    purges: &'static Purges,
    /// When a primary slot of each group was last invalidated. It matters to fills that began before: they are not stored. One that is
    /// not stored because another key of its group was invalidated meanwhile costs a fetch.
    invalidated: Box<[AtomicU64]>,
    generations: AtomicU64,
    fill_bytes: Arc<AtomicU64>,
    capacity: u64,
    max_object: AtomicU64,
    stall_ms: AtomicU64,
    hit_for_miss: &'static HitForMiss,
}

impl fmt::Debug for MemoryTier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryTier").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

impl MemoryTier {
    pub(crate) fn new(options: CacheOptions, hit_for_miss: &'static HitForMiss, purges: &'static Purges) -> Self {
        let variants: Arc<Variants> = Arc::default();
        let index = Arc::clone(&variants);
        let objects = moka::sync::Cache::builder()
            .max_capacity(options.memory_size)
            .weigher(|_: &Slot, object: &Arc<Object>| object.weight())
            .eviction_listener(move |slot: Arc<Slot>, object: Arc<Object>, _| {
                forget_variant(&index, object.primary, *slot, object.generation);
            })
            .build_with_hasher(SlotHash::default());
        let tier = Self {
            objects,
            fills: DashMap::default(),
            variants,
            purges,
            invalidated: (0..STRIPES).map(|_| AtomicU64::new(0)).collect(),
            generations: AtomicU64::new(1),
            fill_bytes: Arc::default(),
            capacity: options.memory_size,
            max_object: AtomicU64::new(0),
            stall_ms: AtomicU64::new(0),
            hit_for_miss,
        };
        tier.adjust(options);
        tier
    }

    /// Take over what can change while running: the object limit and the deadline of readers.
    pub(crate) fn adjust(&self, options: CacheOptions) {
        self.max_object.store(options.max_object, Ordering::Relaxed);
        self.stall_ms.store(crate::millis(options.fill_deadline), Ordering::Relaxed);
    }

    /// The byte budget for complete objects.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The largest body that is stored.
    pub(crate) fn max_object(&self) -> u64 {
        self.max_object.load(Ordering::Relaxed)
    }

    /// What the tier holds. The counts of objects follow changes after a moment.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            objects: self.objects.entry_count(),
            bytes: self.objects.weighted_size(),
            capacity: self.capacity,
            fills: self.fills.iter().map(|fills| fills.len() as u64).sum(),
            fill_bytes: self.fill_bytes.load(Ordering::Relaxed),
        }
    }

    /// Do the evictions that are due at once, instead of along with later requests.
    pub fn settle(&self) {
        self.objects.run_pending_tasks();
    }

    /// Put an object out of date with all its variants, at once. Says how many objects it met.
    pub(crate) fn purge_family(&self, primary: Slot, purge: Purge) -> usize {
        let mut slots = vec![primary];
        if let Some(variants) = self.variants.get(&primary) {
            slots.extend(variants.iter().map(|(slot, _)| *slot));
        }
        if purge == Purge::Hard {
            self.note_purge(primary);
        }
        let now = SystemTime::now();
        let met = slots.iter().filter(|slot| match purge {
            Purge::Hard => self.remove(**slot),
            Purge::Soft => self.expire_slot(**slot, now),
        });
        met.count()
    }

    /// Each object at a primary slot and at those of its variants, and each fill: slot, metadata, length, whether it is a fill.
    pub(crate) fn each_of_family(&self, primary: Slot, mut found: impl FnMut(Slot, &StoredMeta, u64, bool)) {
        let mut slots = vec![primary];
        if let Some(variants) = self.variants.get(&primary) {
            slots.extend(variants.iter().map(|(slot, _)| *slot));
        }
        slots.dedup();
        for slot in slots {
            if let Some(object) = self.objects.get(&slot) {
                found(slot, &object.meta, object.body.len(), false);
            }
            for fill in self.fills.get(&slot).iter().flat_map(|fills| fills.iter().filter(|fill| fill.is_joinable())) {
                found(slot, &fill.meta, fill.length(), true);
            }
        }
    }

    /// Each object with one of these marks, wherever its key has it: looks at all there are.
    pub(crate) fn each_with_mark(&self, marks: &[Mark], mut found: impl FnMut(Slot, &StoredMeta, u64)) {
        for (slot, object) in &self.objects {
            if object.meta.marks.marks.iter().any(|mark| marks.contains(mark)) {
                found(*slot, &object.meta, object.body.len());
            }
        }
    }

    /// Let go of everything, now that all of it is purged.
    pub(crate) fn clear(&self) {
        for fills in &self.fills {
            fills.iter().for_each(|fill| fill.detach());
        }
        self.objects.invalidate_all();
    }

    /// From here on no fill that began before is stored under `primary`.
    fn note_purge(&self, primary: Slot) {
        self.stripe(primary).fetch_max(self.purges.clock().tick(), Ordering::AcqRel);
    }

    pub(crate) fn is_invalidated_since(&self, primary: Slot, epoch: u64) -> bool {
        self.stripe(primary).load(Ordering::Acquire) >= epoch
    }

    fn stripe(&self, primary: Slot) -> &AtomicU64 {
        &self.invalidated[usize::try_from(primary % STRIPES as u128).unwrap_or_default()]
    }

    /// Whether a fill must not be stored any more.
    fn is_void(&self, fill: &Fill) -> bool {
        self.is_invalidated_since(fill.primary, fill.meta.marks.epoch)
            || self.purges.verdict(&fill.meta.marks) == Verdict::Gone
    }

    /// Remove the object at one slot, and detach its fills. Says whether there was something.
    fn remove(&self, slot: Slot) -> bool {
        let mut met = false;
        if let Some(fills) = self.fills.get(&slot) {
            for fill in fills.iter() {
                met |= fill.is_joinable();
                fill.detach();
            }
        }
        self.objects.remove(&slot).is_some() || met
    }

    /// Remove the object of this generation, if it still is at its slot.
    fn remove_generation(&self, slot: Slot, generation: u64) {
        self.objects.entry(slot).and_compute_with(|entry| match entry {
            Some(entry) if entry.value().generation == generation => Op::Remove,
            _ => Op::Nop,
        });
    }

    /// Mark the object at one slot stale since `now`. Says whether there was one.
    fn expire_slot(&self, slot: Slot, now: SystemTime) -> bool {
        self.replace(slot, |object| {
            let mut meta = object.meta.clone();
            meta.fresh_until = meta.fresh_until.min(now);
            Some((meta, object.encodings.clone()))
        })
    }

    /// Keep an encoding of the body of the object of this generation, if it still is at its slot.
    fn add_encoding(&self, slot: Slot, generation: u64, encoding: (&'static str, Encoded)) {
        self.replace(slot, |object| {
            let encodings = encoded::with(object.encodings.as_ref(), encoding);
            (object.generation == generation && encodings.is_some()).then(|| (object.meta.clone(), encodings))
        });
    }

    /// Give the object at `slot` the metadata and encodings `change` makes, in one step; `None` leaves it. Says whether it was changed.
    fn replace(&self, slot: Slot, change: impl FnOnce(&Object) -> Option<(StoredMeta, Option<Encodings>)>) -> bool {
        let mut changed = false;
        self.objects.entry(slot).and_compute_with(|entry| {
            let Some(old) = entry.map(moka::Entry::into_value) else { return Op::Nop };
            let Some((meta, encodings)) = change(&old) else { return Op::Nop };
            changed = true;
            let generation = self.next_generation();
            self.remember_variant(old.primary, slot, generation);
            let body = old.body.clone();
            let object = Object::new(meta, body, old.primary, generation, old.on_disk.load(Ordering::Relaxed));
            Op::Put(Arc::new(Object { encodings, ..object }))
        });
        changed
    }

    fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed)
    }

    fn remember_variant(&self, primary: Slot, slot: Slot, generation: u64) {
        if slot != primary {
            self.variants.entry(primary).or_default().push((slot, generation));
        }
    }

    /// The newest fill at `slot` that takes readers, and that no purge has reached.
    fn joinable(&self, slot: Slot) -> Option<Arc<Fill>> {
        let fills = self.fills.get(&slot)?;
        let live = |fill: &&Arc<Fill>| fill.is_joinable() && self.purges.verdict(&fill.meta.marks) == Verdict::Live;
        fills.iter().rev().find(live).cloned()
    }

    /// Store a complete fill, unless it was detached or purged meanwhile. Says how many bytes were stored.
    fn store(&self, fill: &Fill, on_disk: u64) -> usize {
        let Some(chunks) = fill.take_complete() else { return 0 };
        if self.is_void(fill) {
            return 0;
        }
        let generation = self.next_generation();
        let body = Body::new(chunks);
        let object = Object::new(fill.meta.clone(), body, fill.primary, generation, on_disk);
        let weight = object.weight();
        self.remember_variant(fill.primary, fill.slot, generation);
        self.objects.insert(fill.slot, Arc::new(object));
        // An invalidation between the check above and the insert has found nothing to remove: look again.
        if self.is_void(fill) {
            self.objects.remove(&fill.slot);
            return 0;
        }
        usize::try_from(weight).unwrap_or(usize::MAX)
    }

    /// Take over what was read from disk, unless there is something already, or it was invalidated meanwhile.
    pub(crate) fn promote(&self, slot: Slot, primary: Slot, meta: StoredMeta, chunks: Vec<Bytes>, on_disk: u64) {
        let epoch = meta.marks.epoch;
        if self.is_invalidated_since(primary, epoch) {
            return;
        }
        let generation = self.next_generation();
        let object = Arc::new(Object::new(meta, Body::new(chunks.into()), primary, generation, on_disk));
        self.remember_variant(primary, slot, generation);
        let mut put = false;
        self.objects.entry(slot).and_compute_with(|entry| match entry {
            Some(_) => Op::Nop,
            None => {
                put = true;
                Op::Put(object)
            }
        });
        if !put {
            forget_variant(&self.variants, primary, slot, generation);
        } else if self.is_invalidated_since(primary, epoch) {
            self.remove_generation(slot, generation);
        }
    }

    /// The generation on disk of the object at `slot`, if there is such an object, and such a copy.
    pub(crate) fn on_disk(&self, slot: Slot) -> Option<u64> {
        self.objects.get(&slot)?.on_disk()
    }

    /// Begin a fill, with a copy that goes to disk where there is one to be.
    pub(crate) fn begin(&'static self, key: &CacheKey, meta: &CacheMeta, copy: Option<DiskCopy>) -> MissHandler {
        let notes = meta.extensions().get::<FillNotes>();
        let fill = Arc::new(Fill::new(
            self.next_generation(),
            key::slot(key),
            key::primary_slot(key),
            self.stored_meta(meta, notes),
            Duration::from_millis(self.stall_ms.load(Ordering::Relaxed)),
            Arc::clone(&self.fill_bytes),
        ));
        // Published before the check: an invalidation either finds the fill, or is found by the check.
        self.fills.entry(fill.slot).or_default().push(Arc::clone(&fill));
        if self.is_void(&fill) {
            fill.detach();
        }
        Box::new(Writer { tier: self, tag: fill.id.into(), fill, copy })
    }

    /// What is kept of `meta`. Without notes, which only tools leave out, no purge but one of everything reaches it.
    pub(crate) fn stored_meta(&self, meta: &CacheMeta, notes: Option<&FillNotes>) -> StoredMeta {
        let marks = notes.and_then(|notes| notes.marks.clone());
        let marks = marks.unwrap_or_else(|| Marks { epoch: self.purges.clock().fetch(), marks: Arc::new([]) });
        let withheld = notes.map_or(&[][..], |notes| &notes.withheld);
        let mut stored = StoredMeta::of(meta, withheld, marks, notes.is_some_and(|notes| notes.is_shared_failure));
        stored.is_copy = notes.is_some_and(|notes| notes.is_copy);
        stored
    }

    fn forget_fill(&self, fill: &Fill) {
        self.fills.remove_if_mut(&fill.slot, |_, fills| {
            fills.retain(|other| other.id != fill.id);
            fills.is_empty()
        });
    }
}

fn forget_variant(index: &Variants, primary: Slot, slot: Slot, generation: u64) {
    if slot != primary {
        index.remove_if_mut(&primary, |_, variants| {
            variants.retain(|variant| *variant != (slot, generation));
            variants.is_empty()
        });
    }
}

#[async_trait]
impl Storage for MemoryTier {
    async fn lookup(&'static self, key: &CacheKey, _: &SpanHandle) -> Result<Option<(CacheMeta, HitHandler)>> {
        let slot = key::slot(key);
        // The fill first: what it brings is newer than what it replaces.
        if let Some(fill) = self.joinable(slot)
            && let Some(reader) = FillReader::new(&fill)
        {
            return Ok(Some((fill.meta.to_cache_meta(), Box::new(Reader::Filling(reader)))));
        }
        let Some(object) = self.objects.get(&slot) else { return Ok(None) };
        let mut meta = object.meta.to_cache_meta();
        match self.purges.verdict(&object.meta.marks) {
            Verdict::Live => {}
            Verdict::StaleSince(purge) => meta.expire_at(purge),
            Verdict::Gone => {
                self.remove_generation(slot, object.generation);
                return Ok(None);
            }
        }
        Ok(Some((meta, Box::new(Reader::Complete(ObjectReader::new(slot, object))))))
    }

    async fn lookup_streaming_write(
        &'static self,
        key: &CacheKey,
        streaming_write_tag: Option<&[u8]>,
        trace: &SpanHandle,
    ) -> Result<Option<(CacheMeta, HitHandler)>> {
        let Some(tag) = streaming_write_tag else { return self.lookup(key, trace).await };
        let Some(id) = U64WriteId::try_from(tag).ok().map(u64::from) else { return Ok(None) };
        let fill = self.fills.get(&key::slot(key)).and_then(|fills| fills.iter().find(|fill| fill.id == id).cloned());
        let Some(fill) = fill else { return Ok(None) };
        let reader = FillReader::attach(&fill);
        Ok(Some((fill.meta.to_cache_meta(), Box::new(Reader::Filling(reader)))))
    }

    async fn get_miss_handler(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<MissHandler> {
        Ok(self.begin(key, meta, None))
    }

    async fn purge(&'static self, target: PurgeTarget<'_>, _: PurgeType, _: &SpanHandle) -> Result<PurgeOutcome> {
        // Objects have no identity beyond their key here, so an exact identified target cannot be one of ours.
        if matches!(target, PurgeTarget::Exact(entry) if entry.entry_id().is_some()) {
            return Ok(PurgeOutcome::NotFound);
        }
        let key = target.key();
        if key.variance_bin().is_none() {
            self.note_purge(key::primary_slot(key));
        }
        let met = self.remove(key::slot(key));
        Ok(if met { PurgeOutcome::Purged(None) } else { PurgeOutcome::NotFound })
    }

    async fn expire(&'static self, target: PurgeTarget<'_>, _: &SpanHandle) -> Result<PurgeOutcome> {
        if matches!(target, PurgeTarget::Exact(entry) if entry.entry_id().is_some()) {
            return Ok(PurgeOutcome::NotFound);
        }
        let met = self.expire_slot(key::slot(target.key()), SystemTime::now());
        Ok(if met { PurgeOutcome::Expired } else { PurgeOutcome::NotFound })
    }

    async fn update_meta(&'static self, key: &CacheKey, meta: &CacheMeta, _: &SpanHandle) -> Result<bool> {
        let notes = meta.extensions().get::<FillNotes>();
        let new = self.stored_meta(meta, notes);
        if self.is_invalidated_since(key::primary_slot(key), new.marks.epoch) {
            return Ok(false);
        }
        let validated = notes.and_then(|notes| notes.validates);
        Ok(self.replace(key::slot(key), |object| {
            // The 304 is about the object that was looked up. Another one may have taken its place since; and if it was purged
            // meanwhile, no answer about it brings it back.
            let same = validated
                .is_none_or(|generation| generation == object.generation || Some(generation) == object.on_disk());
            (same && self.purges.verdict(&object.meta.marks) != Verdict::Gone).then(|| (new, object.encodings.clone()))
        }))
    }

    fn support_streaming_partial_write(&self) -> bool {
        true
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

/// The writing end of a fill. Dropped before it is finished, the fill has failed.
struct Writer {
    tier: &'static MemoryTier,
    fill: Arc<Fill>,
    tag: U64WriteId,
    /// The same on its way to disk.
    copy: Option<DiskCopy>,
}

#[async_trait]
impl HandleMiss for Writer {
    async fn write_body(&mut self, data: Bytes, eof: bool) -> Result<()> {
        let was_joinable = self.fill.is_joinable();
        let (copied, may_fit) = self.copy.as_mut().map_or((false, false), |copy| copy.push(&data));
        let room = self.tier.fill_bytes.load(Ordering::Relaxed) <= self.tier.capacity;
        match self.fill.append(data, self.tier.max_object(), room) {
            Outcome::Kept => {}
            Outcome::TooLarge => {
                // What fits on disk may be taken there, this time or the next.
                if was_joinable && !may_fit {
                    self.tier.hit_for_miss.remember_too_large(self.fill.primary);
                }
            }
            Outcome::Unread if copied => {}
            Outcome::Unread => {
                return Error::e_explain(ErrorType::InternalError, "a body that is not stored has no reader left");
            }
        }
        if eof { self.fill.seal() } else { Ok(()) }
    }

    async fn finish(mut self: Box<Self>) -> Result<MissFinishType> {
        self.fill.seal()?;
        let copy = self.copy.take().filter(|_| !self.tier.is_void(&self.fill));
        let stored = self.tier.store(&self.fill, copy.as_ref().map_or(0, DiskCopy::generation));
        let copied = copy.map_or(0, |copy| copy.commit(&self.fill.meta));
        Ok(MissFinishType::Created(stored.max(copied)))
    }

    fn streaming_write_tag(&self) -> Option<&[u8]> {
        Some(self.tag.as_bytes())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // After the object is stored, so that a lookup in between finds one or the other.
        self.tier.forget_fill(&self.fill);
        self.fill.fail();
    }
}

/// The reading end of an object or a fill.
#[derive(Debug)]
pub enum Reader {
    /// The object is complete.
    Complete(ObjectReader),
    /// The object is on its way in.
    Filling(FillReader),
    /// The object is complete, and not in memory.
    Disk(Box<DiskReader>),
}

impl Reader {
    /// The generation of the stored object; none for a fill.
    pub(crate) fn generation(&self) -> Option<u64> {
        match self {
            Self::Complete(reader) => Some(reader.object.generation),
            Self::Filling(_) => None,
            Self::Disk(reader) => Some(reader.generation()),
        }
    }

    /// Whether the object is still on its way in.
    pub(crate) fn is_filling(&self) -> bool {
        matches!(self, Self::Filling(_))
    }

    /// The epoch at which its fetch began.
    pub(crate) fn epoch(&self) -> u64 {
        match self {
            Self::Complete(reader) => reader.object.meta.marks.epoch,
            Self::Filling(reader) => reader.fill().meta.marks.epoch,
            Self::Disk(reader) => reader.meta().marks.epoch,
        }
    }

    /// Whether it is the origin's failure, for those who waited.
    pub(crate) fn is_shared_failure(&self) -> bool {
        match self {
            Self::Complete(reader) => reader.object.meta.is_shared_failure,
            Self::Filling(reader) => reader.fill().meta.is_shared_failure,
            Self::Disk(_) => false,
        }
    }

    /// Whether the object was stale when it arrived, so that every reuse validates.
    pub(crate) fn is_always_stale(&self) -> bool {
        match self {
            Self::Complete(reader) => reader.object.meta.always_stale,
            Self::Filling(reader) => reader.fill().meta.always_stale,
            Self::Disk(reader) => reader.meta().always_stale,
        }
    }

    /// The object, where it is one in memory.
    pub(crate) fn object(&self) -> Option<&Arc<Object>> {
        match self {
            Self::Complete(reader) => Some(&reader.object),
            Self::Filling(_) | Self::Disk(_) => None,
        }
    }

    /// Which tier answers.
    pub(crate) fn tier(&self) -> &'static str {
        match self {
            Self::Complete(_) | Self::Filling(_) => "memory",
            Self::Disk(_) => "disk",
        }
    }
}

/// Reads a complete object, in the chunks it is stored in.
#[derive(Debug)]
pub struct ObjectReader {
    slot: Slot,
    object: Arc<Object>,
    position: u64,
    end: u64,
}

impl ObjectReader {
    fn new(slot: Slot, object: Arc<Object>) -> Self {
        let end = object.body.len();
        Self { slot, object, position: 0, end }
    }

    fn read(&mut self) -> Option<Bytes> {
        let chunk = self.object.body.chunk_at(self.position, self.end)?;
        self.position += chunk.len() as u64;
        Some(chunk)
    }

    fn seek(&mut self, start: u64, end: Option<u64>) -> Result<()> {
        let length = self.object.body.len();
        if start >= length {
            return Error::e_explain(ErrorType::InternalError, format!("seek to {start} in a body of {length} bytes"));
        }
        self.position = start;
        self.end = end.map_or(length, |end| end.min(length));
        Ok(())
    }
}

#[async_trait]
impl HandleHit for Reader {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        match self {
            Self::Complete(reader) => Ok(reader.read()),
            Self::Filling(reader) => reader.read().await,
            Self::Disk(reader) => reader.read().await,
        }
    }

    async fn finish(self: Box<Self>, _: &'static (dyn Storage + Sync), _: &CacheKey, _: &SpanHandle) -> Result<()> {
        Ok(())
    }

    fn can_seek(&self) -> bool {
        true
    }

    fn seek(&mut self, start: usize, end: Option<usize>) -> Result<()> {
        let (start, end) = (start as u64, end.map(|end| end as u64));
        match self {
            Self::Complete(reader) => reader.seek(start, end),
            Self::Filling(reader) => reader.seek(start, end),
            Self::Disk(reader) => reader.seek(start, end),
        }
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

#[cfg(test)]
mod tests;
