//! A part of the table of objects: what lies where, in which order it goes.
//!
//! The order is that of S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", 2023). What is new comes into a short
//! queue. At its end, what was asked for meanwhile goes over into the long queue, and the rest is let go of; its name is remembered for a
//! while, and if it comes back it goes into the long queue at once. At the end of that, what was asked for goes round again. So a hit
//! changes no order, and what is asked for once passes by what is in demand.
//!
//! ```text
//! new ──> Young ── asked for ──> Old <── was here lately ── new
//!           └─ not ──> let go     └─ asked for: once more; not: let go
//! ```

use hashbrown::HashTable;

use super::packed::{Packed, halves, whole};
use crate::key::Slot;

/// Places are had by so many at once: no growth moves them.
const PAGE: usize = 256;
/// No place.
const NONE: u32 = u32::MAX;

/// See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Queue {
    Young,
    Old,
}

/// What became of the first of a queue.
#[derive(Debug)]
pub(super) enum Turn {
    /// There is none.
    Empty,
    /// It stays, in the long queue; it weighs so much.
    Stays(u64),
    /// It is let go of.
    Leaves(Slot, Packed),
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct Shelf {
    pages: Vec<Vec<Place>>,
    /// The places in use, by slot.
    index: HashTable<u32>,
    /// Those free again.
    free: Vec<u32>,
    queues: [Ends; 2],
    left: Lately,
}

#[derive(Debug)]
struct Place {
    /// In halves, which need no alignment of 16 bytes.
    slot: [u64; 2],
    /// None when the place is free.
    object: Option<Packed>,
    before: u32,
    after: u32,
    /// When it came into its queue.
    since: u32,
    queue: Queue,
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    first: u32,
    last: u32,
}

impl Default for Ends {
    fn default() -> Self {
        Self { first: NONE, last: NONE }
    }
}

impl Shelf {
    pub(super) fn get(&self, slot: Slot) -> Option<&Packed> {
        self.place(self.find(slot)?).object.as_ref()
    }

    /// Puts what is not there yet; says into which queue.
    pub(super) fn insert(&mut self, slot: Slot, object: Packed, now: u32) -> Queue {
        let queue = if self.left.take(slot) { Queue::Old } else { Queue::Young };
        self.push(slot, object, now, queue);
        self.left.grow_for(self.index.len());
        queue
    }

    /// To the end of a queue.
    fn push(&mut self, slot: Slot, object: Packed, since: u32, queue: Queue) {
        let place = Place { slot: halves(slot), object: Some(object), before: NONE, after: NONE, since, queue };
        let at = match self.free.pop() {
            Some(at) => {
                *self.place_mut(at) = place;
                at
            }
            None => self.append(place),
        };
        let pages = &self.pages;
        self.index.insert_unique(hash(slot), at, |at| hash(whole(in_pages(pages, *at).slot)));
        self.link(at);
    }

    /// Puts `object` where another is, and ends that one.
    pub(super) fn replace(&mut self, slot: Slot, object: Packed) -> Option<(Packed, Queue)> {
        let at = self.find(slot)?;
        let place = self.place_mut(at);
        let old = place.object.replace(object)?;
        Some((old, place.queue))
    }

    /// Removes what is at `slot`.
    pub(super) fn remove(&mut self, slot: Slot) -> Option<(Packed, Queue)> {
        let at = self.find(slot)?;
        let queue = self.place(at).queue;
        Some((self.vacate(at)?.1, queue))
    }

    /// Since when the first of a queue is there.
    pub(super) fn oldest(&self, queue: Queue) -> Option<u32> {
        let first = self.queues[queue as usize].first;
        (first != NONE).then(|| self.place(first).since)
    }

    /// It is the turn of the first of a queue, which stays if it `may`, and was asked for.
    pub(super) fn turn(&mut self, queue: Queue, may: bool, now: u32) -> Turn {
        let first = self.queues[queue as usize].first;
        if first == NONE {
            return Turn::Empty;
        }
        let Some(object) = &self.place(first).object else { return Turn::Empty };
        let weight = object.weight();
        if may && object.take_hit() > 0 {
            self.unlink(first);
            let place = self.place_mut(first);
            place.queue = Queue::Old;
            place.since = now;
            self.link(first);
            return Turn::Stays(weight);
        }
        match self.vacate(first) {
            Some((slot, object)) => {
                if queue == Queue::Young {
                    self.left.note(slot);
                }
                Turn::Leaves(slot, object)
            }
            None => Turn::Empty,
        }
    }

    /// All there is, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Slot, &Packed, Queue)> {
        let places = self.pages.iter().flatten();
        places.filter_map(|place| Some((whole(place.slot), place.object.as_ref()?, place.queue)))
    }

    fn find(&self, slot: Slot) -> Option<u32> {
        let wanted = halves(slot);
        self.index.find(hash(slot), |at| self.place(*at).slot == wanted).copied()
    }

    /// Frees a place.
    fn vacate(&mut self, at: u32) -> Option<(Slot, Packed)> {
        self.unlink(at);
        let place = self.place_mut(at);
        let (slot, object) = (whole(place.slot), place.object.take()?);
        if let Ok(entry) = self.index.find_entry(hash(slot), |other| *other == at) {
            entry.remove();
        }
        self.free.push(at);
        if self.free.len() > PAGE && self.free.len() > self.index.len() {
            self.move_together();
        }
        Some((slot, object))
    }

    /// Gives back the room of those that are gone, where it is more than half: larger objects have taken the place of many small ones.
    fn move_together(&mut self) {
        let mut new = Self { left: std::mem::take(&mut self.left), ..Self::default() };
        new.left.fit(self.index.len());
        for queue in [Queue::Young, Queue::Old] {
            let mut at = self.queues[queue as usize].first;
            while at != NONE {
                let place = self.place_mut(at);
                let (slot, since, after) = (whole(place.slot), place.since, place.after);
                if let Some(object) = place.object.take() {
                    new.push(slot, object, since, queue);
                }
                at = after;
            }
        }
        *self = new;
    }

    // ---- queues ----

    /// To the end of its queue.
    fn link(&mut self, at: u32) {
        let queue = self.place(at).queue as usize;
        let last = std::mem::replace(&mut self.queues[queue].last, at);
        let place = self.place_mut(at);
        (place.before, place.after) = (last, NONE);
        match last {
            NONE => self.queues[queue].first = at,
            last => self.place_mut(last).after = at,
        }
    }

    fn unlink(&mut self, at: u32) {
        let Place { before, after, queue, .. } = *self.place(at);
        match before {
            NONE => self.queues[queue as usize].first = after,
            before => self.place_mut(before).after = after,
        }
        match after {
            NONE => self.queues[queue as usize].last = before,
            after => self.place_mut(after).before = before,
        }
    }

    // ---- places ----

    fn append(&mut self, place: Place) -> u32 {
        if self.pages.last().is_none_or(|page| page.len() == PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        let full = self.pages.len() - 1;
        let page = &mut self.pages[full];
        page.push(place);
        // Memory is used up long before the numbers are.
        u32::try_from(full * PAGE + page.len() - 1).unwrap_or(NONE)
    }

    fn place(&self, at: u32) -> &Place {
        in_pages(&self.pages, at)
    }

    fn place_mut(&mut self, at: u32) -> &mut Place {
        &mut self.pages[at as usize / PAGE][at as usize % PAGE]
    }
}

fn in_pages(pages: &[Vec<Place>], at: u32) -> &Place {
    &pages[at as usize / PAGE][at as usize % PAGE]
}

/// Slots are hashes already. The upper half chose the shelf.
fn hash(slot: Slot) -> u64 {
    halves(slot)[0]
}

/// The names of some that left the short queue, 4 bytes each. Newer ones take the places of older ones by chance.
#[derive(Debug, Default)]
struct Lately(Box<[u32]>);

impl Lately {
    /// Remembers about as many as there are objects.
    fn grow_for(&mut self, objects: usize) {
        if objects > self.0.len() {
            self.fit(objects);
        }
    }

    /// Forgets all, and has room for about as many as there are objects.
    fn fit(&mut self, objects: usize) {
        self.0 = vec![0; objects.next_power_of_two().max(PAGE)].into();
    }

    fn note(&mut self, slot: Slot) {
        if let Some((at, name)) = self.position(slot) {
            self.0[at] = name;
        }
    }

    /// Whether it is remembered; not any more.
    fn take(&mut self, slot: Slot) -> bool {
        let Some((at, name)) = self.position(slot) else { return false };
        let known = self.0[at] == name;
        if known {
            self.0[at] = 0;
        }
        known
    }

    #[expect(clippy::cast_possible_truncation, reason = "any bits of the hash will do")]
    fn position(&self, slot: Slot) -> Option<(usize, u32)> {
        let mask = self.0.len().checked_sub(1)?;
        let name = (slot >> 32) as u32;
        Some((slot as usize & mask, name.max(1)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use bytes::Bytes;
    use pingora_cache::CacheMeta;
    use pingora_http::ResponseHeader;

    use super::super::object::{Body, StoredMeta};
    use super::*;
    use crate::purge::Marks;

    fn object(slot: Slot) -> Packed {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let meta = CacheMeta::new(now, now, 0, 0, ResponseHeader::build(200, None).expect("a header"));
        let meta = StoredMeta::of(&meta, &[], Marks { epoch: 1, marks: [].into() }, false);
        let body = Body::One(Bytes::from_static(b"body"));
        Packed::new(&meta, &body, None, (slot, slot), 1, 0).expect("packed")
    }

    /// Slots spread over the whole range, as hashes are.
    fn slot(number: u64) -> Slot {
        whole([number.wrapping_mul(0x9e37_79b9_7f4a_7c15), !number])
    }

    /// The slots that would leave, in their order.
    fn leaving(shelf: &mut Shelf, queue: Queue) -> Vec<Slot> {
        let turns = std::iter::from_fn(|| match shelf.turn(queue, false, 0) {
            Turn::Leaves(slot, _) => Some(slot),
            Turn::Stays(_) | Turn::Empty => None,
        });
        turns.collect()
    }

    #[test]
    fn what_is_asked_for_goes_on_and_the_rest_leaves_in_its_order() {
        let mut shelf = Shelf::default();
        for number in 0..6 {
            assert_eq!(shelf.insert(slot(number), object(slot(number)), 0), Queue::Young);
        }
        for asked in [1, 3] {
            shelf.get(slot(asked)).expect("there").touch();
        }
        let mut left = Vec::new();
        for _ in 0..6 {
            if let Turn::Leaves(slot, _) = shelf.turn(Queue::Young, true, 1) {
                left.push(slot);
            }
        }
        assert_eq!(left, [0, 2, 4, 5].map(slot));
        assert_eq!(shelf.oldest(Queue::Young), None);
        assert_eq!(shelf.insert(slot(2), object(slot(2)), 2), Queue::Old, "it is back soon");
        assert_eq!(shelf.insert(slot(9), object(slot(9)), 2), Queue::Young);
        assert_eq!(leaving(&mut shelf, Queue::Old), [1, 3, 2].map(slot));
    }

    #[test]
    fn what_is_asked_for_again_and_again_goes_round() {
        let mut shelf = Shelf::default();
        shelf.insert(slot(1), object(slot(1)), 0);
        (0..9).for_each(|_| shelf.get(slot(1)).expect("there").touch());
        assert!(matches!(shelf.turn(Queue::Young, true, 1), Turn::Stays(_)));
        let rounds = (0..9).take_while(|_| matches!(shelf.turn(Queue::Old, true, 1), Turn::Stays(_)));
        assert_eq!(rounds.count(), 2, "not for ever");
    }

    #[test]
    fn the_room_of_many_that_are_gone_is_given_back() {
        let mut shelf = Shelf::default();
        let numbers = 0..10_000_u64;
        for number in numbers.clone() {
            shelf.insert(slot(number), object(slot(number)), 0);
        }
        let kept = |number: &u64| number.is_multiple_of(100);
        for number in numbers.clone().filter(|number| !kept(number)) {
            assert!(shelf.remove(slot(number)).is_some());
        }
        assert!(shelf.pages.len() <= 3, "{} pages", shelf.pages.len());
        assert!(shelf.left.0.len() <= 512);
        for number in numbers.clone() {
            assert_eq!(shelf.get(slot(number)).is_some(), kept(&number));
        }
        let expected: Vec<Slot> = numbers.filter(kept).map(slot).collect();
        assert_eq!(leaving(&mut shelf, Queue::Young), expected, "in the order they came");
    }
}
