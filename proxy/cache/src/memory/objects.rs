//! The complete objects, in two layers:
//!
//! - the [table](super::table) has all of them, [packed](super::packed);
//! - moka (TinyLFU) has those most in demand once more, decoded, so that a hit copies a header and parses nothing. Its share of the budget is
//!   for what decoding adds; bodies are shared with the table.
//!
//! The table has the last word. What leaves it, for whatever reason, is marked as gone under its lock, and a decoded object whose packed
//! one is gone is not handed out: so there is no moment at which the two say different things.

use std::sync::Arc;

use super::object::Object;
use super::packed::Packed;
use super::table::Table;
use super::variants::Variants;
use crate::key::{Slot, SlotHash};
use crate::purge::Mark;

/// The part of the budget that decoded objects have: a sixteenth.
const DECODED_SHARE: u64 = 16;
/// An object is offered to moka with its second hit in the table, and as that may have been too early, with each sixteenth after: to be
/// turned away costs more than decoding.
const OFFER_EACH: u8 = 16;

/// See the [module](self).
pub(super) struct Objects {
    decoded: moka::sync::Cache<Slot, Arc<Object>, SlotHash>,
    table: Table,
    variants: Variants,
}

impl Objects {
    pub(super) fn new(capacity: u64) -> Self {
        let share = capacity / DECODED_SHARE;
        let decoded = moka::sync::Cache::builder()
            .max_capacity(share)
            .weigher(|_: &Slot, object: &Arc<Object>| object.decoded_weight())
            .build_with_hasher(SlotHash::default());
        Self { decoded, table: Table::new(capacity - share), variants: Variants::default() }
    }

    pub(super) fn len(&self) -> u64 {
        self.table.len()
    }

    /// What they weigh. The part of decoded ones follows changes after a moment.
    pub(super) fn bytes(&self) -> u64 {
        self.table.bytes() + self.decoded.weighted_size()
    }

    pub(super) fn settle(&self) {
        self.decoded.run_pending_tasks();
    }

    /// The object at `slot`, for somebody who asks for it.
    pub(super) fn get(&self, slot: Slot) -> Option<Arc<Object>> {
        if let Some(object) = self.decoded.get(&slot)
            && object.packed.is_current()
        {
            object.packed.touch();
            return Some(object);
        }
        self.decode(slot)
    }

    #[inline(never)]
    fn decode(&self, slot: Slot) -> Option<Arc<Object>> {
        let packed = self.table.get(slot)?;
        packed.touch();
        let object = Arc::new(packed.decode(slot)?);
        if packed.count_decoding() % OFFER_EACH == 1 && packed.mark_decoded() {
            self.decoded.insert(slot, Arc::clone(&object));
            // Gone meanwhile, it may have been taken out before it was in.
            if !packed.mark_decoded() {
                self.decoded.invalidate(&slot);
            }
        }
        Some(object)
    }

    /// The object at `slot`, for somebody who only looks.
    pub(super) fn peek(&self, slot: Slot) -> Option<Object> {
        self.table.get(slot)?.decode(slot)
    }

    pub(super) fn packed(&self, slot: Slot) -> Option<Packed> {
        self.table.get(slot)
    }

    /// Each object with one of these marks: looks at all there are.
    pub(super) fn each_with_mark(&self, marks: &[Mark], mut found: impl FnMut(Slot, Object)) {
        for (slot, packed) in self.table.filtered(|packed| packed.has_mark(marks)) {
            if let Some(object) = packed.decode(slot) {
                found(slot, object);
            }
        }
    }

    /// The slots of a primary slot's variants, and itself.
    pub(super) fn family(&self, primary: Slot) -> Vec<Slot> {
        self.variants.family(primary)
    }

    /// Puts an object at `slot`, whatever is there.
    pub(super) fn put(&self, slot: Slot, object: Packed) -> bool {
        self.put_if(slot, object, |_| true)
    }

    /// Puts an object at `slot` if there is none.
    pub(super) fn put_new(&self, slot: Slot, object: Packed) -> bool {
        self.put_if(slot, object, |there| there.is_none())
    }

    /// Puts an object in the place of the one of this generation, if that still is at `slot`.
    pub(super) fn replace(&self, slot: Slot, generation: u64, object: Packed) -> bool {
        self.put_if(slot, object, |there| there.is_some_and(|there| there.generation() == generation))
    }

    fn put_if(&self, slot: Slot, object: Packed, expected: impl Fn(Option<&Packed>) -> bool) -> bool {
        let (primary, generation) = (object.primary(slot), object.generation());
        // Before it can be found, so that an invalidation of its family finds it.
        self.variants.remember(primary, slot, generation);
        let put = self.table.put_if(slot, object, expected, |slot, old| self.let_go(slot, &old));
        if !put {
            self.variants.forget(primary, slot, generation);
        }
        put
    }

    pub(super) fn remove(&self, slot: Slot) -> bool {
        self.remove_if(slot, |_| true)
    }

    /// Remove the object of this generation, if it still is at its slot.
    pub(super) fn remove_generation(&self, slot: Slot, generation: u64) -> bool {
        self.remove_if(slot, |there| there.generation() == generation)
    }

    fn remove_if(&self, slot: Slot, expected: impl Fn(&Packed) -> bool) -> bool {
        let old = self.table.remove_if(slot, expected);
        old.inspect(|old| self.let_go(slot, old)).is_some()
    }

    pub(super) fn clear(&self) {
        self.table.clear(|slot, old| self.variants.forget(old.primary(slot), slot, old.generation()));
        self.decoded.invalidate_all();
    }

    /// What else there is of an object that has left the table.
    fn let_go(&self, slot: Slot, old: &Packed) {
        if old.may_be_decoded() {
            self.decoded.invalidate(&slot);
        }
        self.variants.forget(old.primary(slot), slot, old.generation());
    }

    #[cfg(test)]
    pub(super) fn knows_variants(&self) -> bool {
        !self.variants.is_empty()
    }
}
