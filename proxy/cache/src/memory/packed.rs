//! An object as it is kept: all of it in one allocation, but for bodies that are large.
//!
//! ```text
//! count | generation, copy on disk, hits, flags | [primary slot(16), of variants] | metadata, encoded | body, up to 4 KiB
//! ```
//! Decoded, an object takes several times the memory of a small response: that is for those that are in demand
//! (see [`objects`](super::objects)).

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;
use triomphe::ThinArc;

use super::codec;
use super::encoded::{self, Encodings};
use super::object::{Body, NOT_ON_DISK, Object, StoredMeta};
use super::variants;
use crate::key::Slot;
use crate::purge::Mark;

/// The largest body that lies beside its metadata. Larger ones are kept as the chunks they came in, and are not copied.
const INLINE: u64 = 4 << 10;
/// What an object takes in the table: its place, its share of the index, and of the names of those that had to go.
const PLACE: usize = 56;
/// What its allocation has beside its bytes: the count, the head, the length.
const HEAD: usize = size_of::<Head>() + 16;
/// The most hits that are counted.
const HITS_MAX: u8 = 3;

/// It has been removed or replaced, and is not handed out any more.
const GONE: u8 = 1;
/// It may be among the decoded ones.
const DECODED: u8 = 2;
/// Its bytes begin with its primary slot.
const VARIANT: u8 = 4;

/// See the [module](self). Cloned, it is shared.
#[derive(Debug, Clone)]
pub(crate) struct Packed(ThinArc<Head, u8>);

#[derive(Debug)]
struct Head {
    generation: u64,
    /// The generation of its copy on disk; 0 without one, [`NOT_ON_DISK`] when it is not to have one.
    on_disk: AtomicU64,
    rare: Option<Box<Rare>>,
    /// Where the metadata ends.
    meta_end: u32,
    flags: AtomicU8,
    /// How often it was asked for since the queues last looked, up to [`HITS_MAX`].
    hits: AtomicU8,
    /// How often it was decoded, modulo 256.
    decoded: AtomicU8,
}

/// What few objects have.
#[derive(Debug)]
struct Rare {
    /// The body, where it does not lie beside the metadata.
    body: Option<Body>,
    /// The body in content codings, as far as somebody has asked for it so.
    encodings: Option<Encodings>,
}

impl Packed {
    /// An object with its copy on disk, if it has one; `None` when its header is larger than any that Pingora reads.
    pub(super) fn new(
        meta: &StoredMeta,
        body: &Body,
        encodings: Option<Encodings>,
        (slot, primary): (Slot, Slot),
        generation: u64,
        on_disk: u64,
    ) -> Option<Self> {
        let inline = match body {
            Body::One(chunk) if chunk.len() as u64 <= INLINE => Some(chunk),
            _ => None,
        };
        let mut bytes = Vec::with_capacity(512 + inline.map_or(0, Bytes::len));
        if slot != primary {
            bytes.extend(primary.to_le_bytes());
        }
        meta.encode_into(&mut bytes)?;
        let meta_end = u32::try_from(bytes.len()).ok()?;
        bytes.extend_from_slice(inline.map_or(&[], |chunk| chunk));

        let body = inline.is_none().then(|| body.clone());
        let is_rare = body.is_some() || encodings.is_some();
        let head = Head {
            generation,
            on_disk: AtomicU64::new(on_disk),
            rare: is_rare.then(|| Box::new(Rare { body, encodings })),
            meta_end,
            flags: AtomicU8::new(if slot == primary { 0 } else { VARIANT }),
            hits: AtomicU8::new(0),
            decoded: AtomicU8::new(0),
        };
        Some(Self(ThinArc::from_header_and_slice(head, &bytes)))
    }

    /// It, to be handed out.
    pub(super) fn decode(&self, slot: Slot) -> Option<Object> {
        let head = self.head();
        let bytes = Bytes::from_owner(self.clone());
        let meta_end = head.meta_end as usize;
        let meta = StoredMeta::decode(&bytes.slice(self.meta_start()..meta_end))?;
        let body = head.rare.as_ref().and_then(|rare| rare.body.clone());
        let body = body.unwrap_or_else(|| Body::One(bytes.slice(meta_end..)));
        Some(Object { meta, body, primary: self.primary(slot), packed: self.clone() })
    }

    /// Tells it from others at the same slot before and after.
    pub(super) fn generation(&self) -> u64 {
        self.head().generation
    }

    /// The generation of its copy on disk, as it is kept in the head.
    pub(super) fn on_disk(&self) -> &AtomicU64 {
        &self.head().on_disk
    }

    /// The same, if it has such a copy.
    pub(super) fn disk_copy(&self) -> Option<u64> {
        Some(self.on_disk().load(Ordering::Relaxed)).filter(|generation| !matches!(*generation, 0 | NOT_ON_DISK))
    }

    pub(super) fn encodings(&self) -> Option<&Encodings> {
        self.head().rare.as_ref()?.encodings.as_ref()
    }

    /// The primary slot, for the object at `slot`.
    pub(super) fn primary(&self, slot: Slot) -> Slot {
        let front = self.0.slice.first_chunk().filter(|_| self.has(VARIANT));
        front.map_or(slot, |front| Slot::from_le_bytes(*front))
    }

    /// Whether purges of one of these reach it.
    pub(super) fn has_mark(&self, marks: &[Mark]) -> bool {
        let meta = &self.0.slice[self.meta_start()..self.head().meta_end as usize];
        codec::marks(meta).is_some_and(|mut own| own.any(|mark| marks.contains(&mark)))
    }

    /// What it costs of the byte budget.
    pub(super) fn weight(&self) -> u64 {
        let rare = self.head().rare.as_ref().map_or(0, |rare| {
            let body = rare.body.as_ref().map_or(0, |body| body.len() + body.overhead());
            size_of::<Rare>() as u64 + body + encoded::weight(rare.encodings.as_ref())
        });
        let variant = if self.has(VARIANT) { variants::WEIGHT } else { 0 };
        (PLACE + allocated(HEAD + self.0.slice.len())) as u64 + rare + variant
    }

    // ---- demand ----

    /// Somebody has asked for it.
    pub(super) fn touch(&self) {
        let hits = &self.head().hits;
        let before = hits.load(Ordering::Relaxed);
        // Of two at once one may not count.
        if before < HITS_MAX {
            hits.store(before + 1, Ordering::Relaxed);
        }
    }

    /// How often it was asked for; from now on it counts as one less.
    pub(super) fn take_hit(&self) -> u8 {
        let hits = &self.head().hits;
        let before = hits.load(Ordering::Relaxed);
        hits.store(before.saturating_sub(1), Ordering::Relaxed);
        before
    }

    /// Takes the place of `old`, which was in as much demand.
    pub(super) fn succeed(&self, old: &Self) {
        let (own, old) = (self.head(), old.head());
        own.hits.store(old.hits.load(Ordering::Relaxed), Ordering::Relaxed);
        own.decoded.store(old.decoded.load(Ordering::Relaxed).min(1), Ordering::Relaxed);
    }

    /// Counts a decoding; says how many there were before, modulo 256.
    pub(super) fn count_decoding(&self) -> u8 {
        self.head().decoded.fetch_add(1, Ordering::Relaxed)
    }

    // ---- its end ----

    /// It is no object any more: from here on nobody finds it.
    pub(super) fn end(&self) {
        self.head().flags.fetch_or(GONE, Ordering::AcqRel);
    }

    /// Whether it may be among the decoded ones; to be asked after [`end`](Self::end).
    pub(super) fn may_be_decoded(&self) -> bool {
        self.has(DECODED)
    }

    /// It is, or is about to be, among the decoded ones: says whether it may be there. Each of two who at the same time mark it so and end
    /// it sees the other, or is seen.
    pub(super) fn mark_decoded(&self) -> bool {
        self.head().flags.fetch_or(DECODED, Ordering::AcqRel) & GONE == 0
    }

    pub(super) fn is_current(&self) -> bool {
        !self.has(GONE)
    }

    fn has(&self, flag: u8) -> bool {
        self.head().flags.load(Ordering::Acquire) & flag != 0
    }

    fn meta_start(&self) -> usize {
        if self.has(VARIANT) { size_of::<Slot>() } else { 0 }
    }

    fn head(&self) -> &Head {
        &self.0.header.header
    }
}

/// What an allocation of this size takes: allocators have classes of sizes, mostly an eighth apart.
fn allocated(size: usize) -> usize {
    size.next_multiple_of((size.next_power_of_two() / 16).max(16))
}

/// A slot as tables have it: a number of 128 bits would have them aligned to 16 bytes.
#[expect(clippy::cast_possible_truncation, reason = "the halves")]
pub(super) fn halves(slot: Slot) -> [u64; 2] {
    [slot as u64, (slot >> 64) as u64]
}

pub(super) fn whole([low, high]: [u64; 2]) -> Slot {
    Slot::from(high) << 64 | Slot::from(low)
}

impl AsRef<[u8]> for Packed {
    fn as_ref(&self) -> &[u8] {
        &self.0.slice
    }
}
