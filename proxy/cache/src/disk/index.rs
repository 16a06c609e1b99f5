//! Where every object is: a table in memory, 32 bytes for an entry, 38 to 47 for an object with the table's free places.
//!
//! Entries lie in 64 tables, each behind its own lock, in open addressing with linear probing: 15 to 32 % of the places are free, because a
//! table grows by a quarter only. An entry names its object by 96 bits of a hash, which is enough to *find* it; that it is the right one
//! the record says, which holds the whole key. The variants of a URL (a *family*) have the same home, so that they can be removed together
//! without any other structure; there are at most 64 of them.

use parking_lot::Mutex;

use super::record::HEADER;

pub(crate) const PARTITIONS: usize = 64;
/// How many variants of one family there may be; the oldest goes. Long runs of one home would slow its neighbours down.
pub(crate) const MOST_VARIANTS: usize = 64;
/// The most hits an entry counts up to.
const MOST_HITS: u32 = 3;
const LENGTH_BITS: u32 = 28;

/// Names an object within the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Tag {
    pub(crate) family: u64,
    pub(crate) variant: u32,
}

impl Tag {
    pub(crate) fn of(key: u128, family: u128) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits of the hash will do")]
        let variant = (mixed(key) >> 16) as u32;
        Self { family: mixed(family), variant }
    }
}

/// Keys usually are hashes; then this is not needed, and does no harm.
pub(crate) fn mixed(key: u128) -> u64 {
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the key")]
    let (high, low) = ((key >> 64) as u64, key as u64);
    let mut word = high ^ low.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// Where an object's meta record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Entry {
    pub(crate) family: u64,
    pub(crate) variant: u32,
    /// The lower half of the object's.
    pub(crate) generation: u32,
    /// 0 marks a free place.
    pub(crate) segment: u32,
    /// In units of 64 bytes.
    pub(crate) offset: u32,
    /// Until when the object is of use; in seconds since 1970, rounded up.
    pub(crate) expires: u32,
    /// The record's length in units of 64 bytes, and above it the hits.
    length_and_hits: u32,
}

impl Entry {
    pub(crate) fn new(
        family: u64,
        variant: u32,
        generation: u32,
        segment: u32,
        offset: u32,
        length: u32,
        expires: u32,
    ) -> Self {
        let length_and_hits = length.min((1 << LENGTH_BITS) - 1);
        Self { family, variant, generation, segment, offset, expires, length_and_hits }
    }

    /// An entry with its length and hits as [`packed`](Self::packed) gave them.
    pub(crate) fn unpacked(
        family: u64,
        variant: u32,
        generation: u32,
        segment: u32,
        offset: u32,
        expires: u32,
        packed: u32,
    ) -> Self {
        Self { family, variant, generation, segment, offset, expires, length_and_hits: packed }
    }

    /// Length and hits in one.
    pub(crate) fn packed(&self) -> u32 {
        self.length_and_hits
    }

    pub(crate) fn tag(&self) -> Tag {
        Tag { family: self.family, variant: self.variant }
    }

    /// The record's length with its header, in units of 64 bytes.
    pub(crate) fn length(&self) -> u32 {
        self.length_and_hits & ((1 << LENGTH_BITS) - 1)
    }

    /// The same in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.length() as usize * HEADER
    }

    /// How often it was read since it was written, up to three times.
    pub(crate) fn hits(&self) -> u32 {
        self.length_and_hits >> LENGTH_BITS
    }

    /// Whether both are about the same record.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        (self.segment, self.offset) == (other.segment, other.offset)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Index {
    partitions: Box<[Mutex<Table>]>,
}

impl Index {
    pub(crate) fn new() -> Self {
        Self { partitions: (0..PARTITIONS).map(|_| Mutex::new(Table::default())).collect() }
    }

    fn partition(&self, family: u64) -> &Mutex<Table> {
        &self.partitions[partition(family)]
    }

    /// Calls with one partition, for many changes to it: `put`s, `remove`s and `remove_family`s of families that are [there](partition).
    pub(crate) fn change(&self, partition: usize, change: impl FnOnce(&mut Table)) {
        change(&mut self.partitions[partition].lock());
    }

    pub(crate) fn get(&self, tag: Tag) -> Option<Entry> {
        let table = self.partition(tag.family).lock();
        table.find(tag).map(|at| table.places[at])
    }

    /// The entry, with one hit more.
    pub(crate) fn hit(&self, tag: Tag) -> Option<Entry> {
        let mut table = self.partition(tag.family).lock();
        let at = table.find(tag)?;
        let entry = &mut table.places[at];
        if entry.hits() < MOST_HITS {
            entry.length_and_hits += 1 << LENGTH_BITS;
        }
        Some(*entry)
    }

    /// Inserts or replaces. Says what had to go for it, if there were too many variants.
    pub(crate) fn put(&self, entry: Entry) -> Option<Entry> {
        self.partition(entry.family).lock().put(entry)
    }

    pub(crate) fn remove(&self, tag: Tag) -> bool {
        self.partition(tag.family).lock().remove(tag)
    }

    /// Removes the entry if it still is the same one.
    pub(crate) fn remove_same(&self, entry: &Entry) -> bool {
        let mut table = self.partition(entry.family).lock();
        match table.find(entry.tag()) {
            Some(at) if table.places[at].is_at(entry) => {
                table.free(at);
                true
            }
            _ => false,
        }
    }

    /// Removes all variants of a family; says how many there were.
    pub(crate) fn remove_family(&self, family: u64) -> usize {
        self.partition(family).lock().remove_family(family)
    }

    pub(crate) fn clear(&self) {
        for table in &self.partitions {
            *table.lock() = Table::default();
        }
    }

    pub(crate) fn len(&self) -> u64 {
        self.partitions.iter().map(|table| table.lock().used as u64).sum()
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> u64 {
        self.partitions.iter().map(|table| (table.lock().places.capacity() * size_of::<Entry>()) as u64).sum()
    }

    /// Makes room for `count` entries, spread evenly.
    pub(crate) fn reserve(&self, count: usize) {
        for table in &self.partitions {
            table.lock().grow_for(count / PARTITIONS + count / PARTITIONS / 32 + 8);
        }
    }

    /// Gives back room that was made for more than there is.
    pub(crate) fn fit(&self) {
        self.partitions.iter().for_each(|table| table.lock().fit());
    }

    /// Calls with every entry, in the order they lie in: put back in that order into a table of the same size, they fill it from front to
    /// back.
    pub(crate) fn each(&self, mut call: impl FnMut(&Entry)) {
        for table in &self.partitions {
            table.lock().places.iter().filter(|entry| entry.segment != 0).for_each(&mut call);
        }
    }
}

/// The partition of a family.
pub(crate) fn partition(family: u64) -> usize {
    #[expect(clippy::cast_possible_truncation, reason = "the low bits choose the partition, the high ones the home")]
    let number = family as usize % PARTITIONS;
    number
}

/// A partition. Families have their homes in the order of their upper bits.
#[derive(Debug, Default)]
pub(crate) struct Table {
    places: Vec<Entry>,
    used: usize,
}

impl Table {
    fn home(&self, family: u64) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of places")]
        let home = ((u128::from(family) * self.places.len() as u128) >> 64) as usize;
        home
    }

    fn next(&self, at: usize) -> usize {
        if at + 1 == self.places.len() { 0 } else { at + 1 }
    }

    /// The first place from the family's home on that `wanted` accepts, before a free one.
    fn probe(&self, family: u64, wanted: impl Fn(&Entry) -> bool) -> Option<usize> {
        if self.places.is_empty() {
            return None;
        }
        let mut at = self.home(family);
        while self.places[at].segment != 0 {
            if wanted(&self.places[at]) {
                return Some(at);
            }
            at = self.next(at);
        }
        None
    }

    fn find(&self, tag: Tag) -> Option<usize> {
        self.probe(tag.family, |entry| entry.tag() == tag)
    }

    fn find_family(&self, family: u64) -> Option<usize> {
        self.probe(family, |entry| entry.family == family)
    }

    /// See [`Index::put`].
    pub(crate) fn put(&mut self, entry: Entry) -> Option<Entry> {
        self.grow_for(self.used + 1);
        let mut at = self.home(entry.family);
        let (mut variants, mut oldest) = (0, None::<usize>);
        while self.places[at].segment != 0 {
            let other = self.places[at];
            if other.tag() == entry.tag() {
                self.places[at] = entry;
                return None;
            }
            if other.family == entry.family {
                variants += 1;
                let age = |at: usize| (self.places[at].segment, self.places[at].offset);
                if oldest.is_none_or(|oldest| age(at) < age(oldest)) {
                    oldest = Some(at);
                }
            }
            at = self.next(at);
        }
        if variants >= MOST_VARIANTS
            && let Some(oldest) = oldest
        {
            return Some(std::mem::replace(&mut self.places[oldest], entry));
        }
        self.places[at] = entry;
        self.used += 1;
        None
    }

    pub(crate) fn remove(&mut self, tag: Tag) -> bool {
        let found = self.find(tag);
        found.map(|at| self.free(at)).is_some()
    }

    /// See [`Index::remove_family`].
    pub(crate) fn remove_family(&mut self, family: u64) -> usize {
        let mut removed = 0;
        while let Some(at) = self.find_family(family) {
            self.free(at);
            removed += 1;
        }
        removed
    }

    /// Frees a place, and moves what follows back towards its home.
    fn free(&mut self, mut hole: usize) {
        self.used -= 1;
        let mut at = hole;
        loop {
            at = self.next(at);
            if self.places[at].segment == 0 {
                break;
            }
            let home = self.home(self.places[at].family);
            // It may move unless its home lies behind the hole, up to where it is; both around the end of the table.
            let stays = if hole < at { home > hole && home <= at } else { home > hole || home <= at };
            if !stays {
                self.places[hole] = self.places[at];
                hole = at;
            }
        }
        self.places[hole] = Entry::default();
    }

    fn grow_for(&mut self, count: usize) {
        let limit = self.places.len() / 20 * 17;
        if count > limit {
            self.resize(room(count));
        }
    }

    fn fit(&mut self) {
        let size = if self.used == 0 { 0 } else { room(self.used) };
        if self.places.len() > size + size / 8 {
            self.resize(size);
        }
    }

    fn resize(&mut self, size: usize) {
        let old = std::mem::replace(&mut self.places, vec![Entry::default(); size]);
        for entry in old.into_iter().filter(|entry| entry.segment != 0) {
            let mut at = self.home(entry.family);
            while self.places[at].segment != 0 {
                at = self.next(at);
            }
            self.places[at] = entry;
        }
    }
}

/// The places that a table has for so many entries when it grows: a quarter more.
fn room(count: usize) -> usize {
    (count + count / 4).max(count * 20 / 17 + 20).max(64)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn entry(family: u64, variant: u32, offset: u32) -> Entry {
        Entry::new(family, variant, offset, 1, offset, 1, 0)
    }

    #[test]
    fn an_entry_has_32_bytes() {
        assert_eq!(size_of::<Entry>(), 32);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Put(u64, u32),
        Remove(u64, u32),
        RemoveFamily(u64),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        // Few families, at both ends of the table too, so that runs meet and go around.
        let family = prop_oneof![0u64..4, (u64::MAX - 3)..=u64::MAX, Just(1 << 63)].prop_map(|family| family & !63);
        let variant = 0u32..20;
        let step = prop_oneof![
            60 => (family.clone(), variant.clone()).prop_map(|(family, variant)| Step::Put(family, variant)),
            20 => (family.clone(), variant).prop_map(|(family, variant)| Step::Remove(family, variant)),
            3 => family.prop_map(Step::RemoveFamily),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 1..300)
    }

    proptest! {
        #[test]
        fn it_holds_what_a_map_would(steps in steps()) {
            let (index, mut model) = (Index::new(), HashMap::new());
            for (number, step) in steps.into_iter().enumerate() {
                match step {
                    Step::Put(family, variant) => {
                        let entry = entry(family, variant, u32::try_from(number).expect("small"));
                        prop_assert_eq!(index.put(entry), None);
                        model.insert((family, variant), entry);
                    }
                    Step::Remove(family, variant) => {
                        let gone = model.remove(&(family, variant)).is_some();
                        prop_assert_eq!(index.remove(Tag { family, variant }), gone);
                    }
                    Step::RemoveFamily(family) => {
                        let before = model.len();
                        model.retain(|(other, _), _| *other != family);
                        prop_assert_eq!(index.remove_family(family), before - model.len());
                    }
                    Step::Clear => {
                        index.clear();
                        model.clear();
                    }
                }
                prop_assert_eq!(index.len(), model.len() as u64);
                for ((family, variant), entry) in &model {
                    prop_assert_eq!(index.get(Tag { family: *family, variant: *variant }), Some(*entry));
                }
            }
        }
    }

    #[test]
    fn a_family_has_so_many_variants_and_no_more() {
        let index = Index::new();
        for variant in 0..100 {
            index.put(entry(7, variant, variant + 1));
        }
        assert_eq!(index.len(), MOST_VARIANTS as u64);
        assert!(index.get(Tag { family: 7, variant: 35 }).is_none(), "the oldest went");
        assert!(index.get(Tag { family: 7, variant: 36 }).is_some());
    }

    #[test]
    fn hits_are_counted_up_to_three_and_begin_anew_with_the_next_record() {
        let index = Index::new();
        index.put(entry(1, 2, 3));
        for expected in [1, 2, 3, 3] {
            let entry = index.hit(Tag { family: 1, variant: 2 }).expect("there");
            assert_eq!((entry.hits(), entry.length()), (expected, 1));
        }
        index.put(entry(1, 2, 9));
        assert_eq!(index.get(Tag { family: 1, variant: 2 }).expect("there").hits(), 0);
    }

    #[test]
    fn memory_for_an_object_stays_below_64_bytes() {
        let index = Index::new();
        let mut most = 0.0_f64;
        for number in 0..200_000_u32 {
            index.put(entry(mixed(u128::from(number)), 0, number + 1));
            if number > 20_000 {
                #[expect(clippy::cast_precision_loss, reason = "small numbers")]
                let each = index.memory() as f64 / f64::from(number + 1);
                if number % 501 == 0 {
                    most = most.max(each);
                }
            }
        }
        assert!(most < 48.0, "{most} bytes for each object");
    }
}
