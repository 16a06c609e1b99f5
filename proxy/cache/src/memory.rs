//! The memory tier: complete objects under a byte budget, and fills under way that others can read along.
//!
//! ```text
//!                     ┌── eof, length right ──> Complete ── finish ──> an object, until it is evicted or purged
//! get_miss_handler ──> Filling
//!                     └── dropped, length wrong ──> Failed: every reader gets an error, nobody a clean short body
//! ```
//!
//! A fill that grows past `max_object`, or is invalidated, or finds the memory for fills used up, is *detached*: it will not be stored and
//! takes no new readers, but those it has read on, and what all of them have read is freed.
//!
//! Purges are judged when something is looked up or stored (see [`purge`](crate::purge)); what they reach is let go of then, or evicted.
//!
//! Objects are kept packed (`packed.rs`), in little more memory than their bytes take, and those in demand decoded as well (`objects.rs`):
//! a hit on one of those clones the decoded header, which Pingora wants to own. The body is handed out by reference count in either case.

mod codec;
mod encoded;
mod fill;
mod object;
mod objects;
mod packed;
mod reader;
mod shelf;
mod storage;
mod table;
mod variants;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use dashmap::DashMap;
use http::HeaderMap;
use pingora_cache::{CacheKey, CacheMeta, MissHandler};

use crate::collapse::HitForMiss;
use crate::key::{self, Slot, SlotHash};
use crate::memory::encoded::Encodings;
pub use crate::memory::encoded::{Encoded, EncodedBody, StoredBody};
use crate::memory::fill::Fill;
use crate::memory::object::Body;
pub(crate) use crate::memory::object::{NOT_ON_DISK, Object, StoredMeta};
use crate::memory::objects::Objects;
use crate::memory::packed::Packed;
pub use crate::memory::reader::{ObjectReader, Reader};
pub use crate::memory::writer::FillNotes;
use crate::memory::writer::Writer;
use crate::purge::{Mark, Marks, Purges, Verdict};
use crate::tiers::DiskCopy;
use crate::{CacheOptions, Purge};

/// Invalidations are remembered against fills under way by so many groups of keys.
const STRIPES: usize = 65_536;

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
    objects: Objects,
    fills: DashMap<Slot, Vec<Arc<Fill>>, SlotHash>,
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
        let tier = Self {
            objects: Objects::new(options.memory_size),
            fills: DashMap::default(),
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

    /// What the tier holds. The part of `bytes` that is for decoded objects follows changes after a moment.
    #[must_use]
    pub fn usage(&self) -> Usage {
        Usage {
            objects: self.objects.len(),
            bytes: self.objects.bytes(),
            capacity: self.capacity,
            fills: self.fills.iter().map(|fills| fills.len() as u64).sum(),
            fill_bytes: self.fill_bytes.load(Ordering::Relaxed),
        }
    }

    /// Do what is due for decoded objects at once, instead of along with later requests.
    pub fn settle(&self) {
        self.objects.settle();
    }

    /// Put an object out of date with all its variants, at once. Says how many objects it met.
    pub(crate) fn purge_family(&self, primary: Slot, purge: Purge) -> usize {
        let slots = self.objects.family(primary);
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
        for slot in self.objects.family(primary) {
            if let Some(object) = self.objects.peek(slot) {
                found(slot, &object.meta, object.body.len(), false);
            }
            for fill in self.fills.get(&slot).iter().flat_map(|fills| fills.iter().filter(|fill| fill.is_joinable())) {
                found(slot, &fill.meta, fill.length(), true);
            }
        }
    }

    /// Each object with one of these marks, wherever its key has it: looks at all there are.
    pub(crate) fn each_with_mark(&self, marks: &[Mark], mut found: impl FnMut(Slot, &StoredMeta, u64)) {
        self.objects.each_with_mark(marks, |slot, object| found(slot, &object.meta, object.body.len()));
    }

    /// Let go of everything, now that all of it is purged.
    pub(crate) fn clear(&self) {
        for fills in &self.fills {
            fills.iter().for_each(|fill| fill.detach());
        }
        self.objects.clear();
    }

    /// From here on no fill that began before is stored under `primary`.
    fn note_purge(&self, primary: Slot) {
        self.stripe(primary).fetch_max(self.purges.clock().tick(), Ordering::AcqRel);
    }

    pub(crate) fn is_invalidated_since(&self, primary: Slot, epoch: u64) -> bool {
        self.invalidated_at(primary) >= epoch
    }

    /// When `primary`, or another key of its group, was last invalidated; 0 is never.
    pub(crate) fn invalidated_at(&self, primary: Slot) -> u64 {
        self.stripe(primary).load(Ordering::Acquire)
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
        self.objects.remove(slot) || met
    }

    /// Mark the object at one slot stale since `now`. Says whether there was one.
    fn expire_slot(&self, slot: Slot, now: SystemTime) -> bool {
        self.replace(slot, |object| {
            let mut meta = object.meta.clone();
            meta.fresh_until = meta.fresh_until.min(now);
            Some((meta, object.encodings().cloned()))
        })
    }

    /// Keep an encoding of the body of the object of this generation, if it still is at its slot.
    fn add_encoding(&self, slot: Slot, generation: u64, encoding: (&'static str, Encoded)) {
        self.replace(slot, |object| {
            let encodings = encoded::with(object.encodings(), encoding.clone());
            (object.generation() == generation && encodings.is_some()).then(|| (object.meta.clone(), encodings))
        });
    }

    /// Give the object at `slot` the metadata and encodings that `change` makes of it; `None` leaves it. Says whether it was changed. Where
    /// another object takes its place meanwhile, `change` is asked about that.
    fn replace(&self, slot: Slot, change: impl Fn(&Object) -> Option<(StoredMeta, Option<Encodings>)>) -> bool {
        while let Some(old) = self.objects.peek(slot) {
            let Some((meta, encodings)) = change(&old) else { return false };
            let (slots, on_disk) = ((slot, old.primary), old.on_disk().load(Ordering::Relaxed));
            let new = Packed::new(&meta, &old.body, encodings, slots, self.next_generation(), on_disk);
            let Some(new) = new else { return false };
            if self.objects.replace(slot, old.generation(), new) {
                return true;
            }
        }
        false
    }

    fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed)
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
        let slots = (fill.slot, fill.primary);
        let object = Packed::new(&fill.whole_meta(), &Body::new(chunks), None, slots, generation, on_disk);
        let weight = object.as_ref().map_or(0, Packed::weight);
        // What cannot be kept takes its predecessor's place all the same.
        if !object.is_some_and(|object| self.objects.put(fill.slot, object)) {
            self.objects.remove(fill.slot);
            return 0;
        }
        // An invalidation between the check above and the insert has found nothing to remove: look again.
        if self.is_void(fill) {
            self.objects.remove_generation(fill.slot, generation);
            return 0;
        }
        usize::try_from(weight).unwrap_or(usize::MAX)
    }

    /// Take over what was read from disk, unless there is something already, or it was invalidated meanwhile.
    pub(crate) fn promote(&self, slot: Slot, primary: Slot, meta: &StoredMeta, chunks: Vec<Bytes>, on_disk: u64) {
        let epoch = meta.marks.epoch;
        if self.is_invalidated_since(primary, epoch) {
            return;
        }
        let generation = self.next_generation();
        let object = Packed::new(meta, &Body::new(chunks.into()), None, (slot, primary), generation, on_disk);
        if object.is_some_and(|object| self.objects.put_new(slot, object)) && self.is_invalidated_since(primary, epoch)
        {
            self.objects.remove_generation(slot, generation);
        }
    }

    /// The trailers of the object at `slot`.
    pub(crate) fn trailers(&self, slot: Slot) -> Option<Box<HeaderMap>> {
        self.objects.peek(slot)?.meta.trailers.clone()
    }

    /// The generation on disk of the object at `slot`, if there is such an object, and such a copy.
    pub(crate) fn on_disk(&self, slot: Slot) -> Option<u64> {
        self.objects.packed(slot)?.disk_copy()
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
        Box::new(Writer::new(self, fill, copy))
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

    /// What comes after the body of the fill that has this number.
    pub(crate) fn note_trailers(&self, slot: Slot, id: u64, trailers: &HeaderMap) {
        if let Some(fills) = self.fills.get(&slot) {
            fills.iter().filter(|fill| fill.id == id).for_each(|fill| fill.set_trailers(trailers));
        }
    }

    fn forget_fill(&self, fill: &Fill) {
        self.fills.remove_if_mut(&fill.slot, |_, fills| {
            fills.retain(|other| other.id != fill.id);
            fills.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
