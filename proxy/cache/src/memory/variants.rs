//! Which slots a URL has: its primary one, and one for each variant of it that is stored.

use dashmap::DashMap;
use smallvec::SmallVec;

use super::packed::{halves, whole};
use crate::key::{Slot, SlotHash};

/// What a variant weighs: its part of the table, one or few to a URL. Checked by `tests/overhead.rs`.
pub(super) const WEIGHT: u64 = 64;

/// The slots of each primary slot's variants, with the generation of their objects.
#[derive(Debug, Default)]
pub(super) struct Variants(DashMap<Slot, SmallVec<[Variant; 1]>, SlotHash>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Variant {
    /// In halves, which need no alignment of 16 bytes.
    slot: [u64; 2],
    generation: u64,
}

impl Variants {
    /// A primary slot, and those of its variants; none twice.
    pub(super) fn family(&self, primary: Slot) -> Vec<Slot> {
        let mut slots = vec![primary];
        if let Some(variants) = self.0.get(&primary) {
            for slot in variants.iter().map(|variant| whole(variant.slot)) {
                if !slots.contains(&slot) {
                    slots.push(slot);
                }
            }
        }
        slots
    }

    pub(super) fn remember(&self, primary: Slot, slot: Slot, generation: u64) {
        if slot != primary {
            self.0.entry(primary).or_default().push(Variant { slot: halves(slot), generation });
        }
    }

    pub(super) fn forget(&self, primary: Slot, slot: Slot, generation: u64) {
        if slot != primary {
            let gone = Variant { slot: halves(slot), generation };
            self.0.remove_if_mut(&primary, |_, variants| {
                variants.retain(|variant| *variant != gone);
                variants.is_empty()
            });
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
