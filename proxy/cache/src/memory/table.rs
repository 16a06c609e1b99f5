//! Every object there is in memory, in little room, under a byte budget that holds at all times.
//!
//! The table has 64 [shelves](super::shelf), each behind its own lock. What has to go is the oldest of all of them, so that a large object
//! does not turn out just what happens to lie on the same shelf.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockWriteGuard};

use super::packed::Packed;
use super::shelf::{Queue, Shelf, Turn};
use crate::key::Slot;

const SHELVES: usize = 64;
/// The share of the budget beyond which the short queue is the one that makes room.
const YOUNG_SHARE: u64 = 10;
/// So many in a row may stay because they were asked for; then the next one goes all the same.
const STAYS_MAX: usize = 1024;
/// Marks that a queue is not empty: 0 says that it is.
const SOME: u64 = 1 << 32;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Table {
    shelves: Box<[RwLock<Shelf>]>,
    /// Since when the first of the short queue of each shelf is there, and of the long one. Read without the shelves' locks.
    oldest: [Box<[AtomicU64]>; 2],
    /// Counts what comes into queues.
    clock: AtomicU32,
    capacity: u64,
    objects: AtomicU64,
    /// Bytes in the short and the long queue.
    bytes: [AtomicU64; 2],
}

impl Table {
    pub(super) fn new(capacity: u64) -> Self {
        let ages = || (0..SHELVES).map(|_| AtomicU64::new(0)).collect();
        Self {
            shelves: (0..SHELVES).map(|_| RwLock::default()).collect(),
            oldest: [ages(), ages()],
            clock: AtomicU32::new(0),
            capacity,
            objects: AtomicU64::new(0),
            bytes: Default::default(),
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.objects.load(Ordering::Relaxed)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.of(Queue::Young).load(Ordering::Relaxed) + self.of(Queue::Old).load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, slot: Slot) -> Option<Packed> {
        self.shelves[number(slot)].read().get(slot).cloned()
    }

    /// Puts `object` at `slot` if what is there now, or that nothing is, is as `expected`. What has to go for it is `gone`, its
    /// predecessor included. Says whether it was put.
    pub(super) fn put_if(
        &self,
        slot: Slot,
        object: Packed,
        expected: impl FnOnce(Option<&Packed>) -> bool,
        mut gone: impl FnMut(Slot, Packed),
    ) -> bool {
        let weight = object.weight();
        if weight > self.capacity {
            // What it was to replace is out of date all the same.
            if let Some(old) = self.remove_if(slot, |there| expected(Some(there))) {
                gone(slot, old);
            }
            return false;
        }
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut shelf = self.shelves[number(slot)].write();
        let there = shelf.get(slot);
        if !expected(there) {
            return false;
        }
        if let Some(there) = there {
            object.succeed(there);
        }
        match shelf.replace(slot, object.clone()) {
            Some((old, queue)) => {
                old.end();
                self.of(queue).fetch_add(weight, Ordering::Relaxed);
                self.of(queue).fetch_sub(old.weight(), Ordering::Relaxed);
                drop(shelf);
                gone(slot, old);
            }
            None => {
                let queue = shelf.insert(slot, object, now);
                self.of(queue).fetch_add(weight, Ordering::Relaxed);
                self.objects.fetch_add(1, Ordering::Relaxed);
                self.note_ages(number(slot), shelf);
            }
        }
        self.make_room(gone);
        true
    }

    /// Removes what is at `slot`, if it is as `expected`.
    pub(super) fn remove_if(&self, slot: Slot, expected: impl FnOnce(&Packed) -> bool) -> Option<Packed> {
        let mut shelf = self.shelves[number(slot)].write();
        if !shelf.get(slot).is_some_and(expected) {
            return None;
        }
        let (old, queue) = shelf.remove(slot)?;
        self.forget(&old, queue);
        self.note_ages(number(slot), shelf);
        Some(old)
    }

    /// Removes everything.
    pub(super) fn clear(&self, mut gone: impl FnMut(Slot, &Packed)) {
        for (number, shelf) in self.shelves.iter().enumerate() {
            let mut shelf = shelf.write();
            // With its tables, which are as large as they ever had to be.
            let all = std::mem::take(&mut *shelf);
            all.iter().for_each(|(_, object, queue)| self.forget(object, queue));
            self.note_ages(number, shelf);
            all.iter().for_each(|(slot, object, _)| gone(slot, object));
        }
    }

    /// Those that `wanted` accepts.
    pub(super) fn filtered(&self, wanted: impl Fn(&Packed) -> bool) -> Vec<(Slot, Packed)> {
        let mut found = Vec::new();
        for shelf in &self.shelves {
            let shelf = shelf.read();
            let wanted = shelf.iter().filter(|(_, object, _)| wanted(object));
            found.extend(wanted.map(|(slot, object, _)| (slot, object.clone())));
        }
        found
    }

    fn make_room(&self, mut gone: impl FnMut(Slot, Packed)) {
        let mut stayed = 0;
        while self.bytes() > self.capacity {
            let young = self.of(Queue::Young).load(Ordering::Relaxed);
            let order = match young > self.capacity / YOUNG_SHARE {
                true => [Queue::Young, Queue::Old],
                false => [Queue::Old, Queue::Young],
            };
            let oldest = order.into_iter().find_map(|queue| Some((queue, self.oldest(queue)?)));
            // Others are at it, and there is nothing left.
            let Some((queue, number)) = oldest else { return };
            let now = self.clock.fetch_add(1, Ordering::Relaxed);
            let mut shelf = self.shelves[number].write();
            let turn = shelf.turn(queue, stayed < STAYS_MAX, now);
            match &turn {
                Turn::Empty => {}
                Turn::Stays(weight) => {
                    stayed += 1;
                    self.of(Queue::Old).fetch_add(*weight, Ordering::Relaxed);
                    self.of(queue).fetch_sub(*weight, Ordering::Relaxed);
                }
                Turn::Leaves(_, old) => {
                    stayed = 0;
                    self.forget(old, queue);
                }
            }
            self.note_ages(number, shelf);
            if let Turn::Leaves(slot, old) = turn {
                gone(slot, old);
            }
        }
    }

    /// The shelf whose first in this queue is there for the longest time.
    fn oldest(&self, queue: Queue) -> Option<usize> {
        let now = self.clock.load(Ordering::Relaxed);
        let ages = self.oldest[queue as usize].iter().enumerate().filter_map(|(number, since)| {
            let since = since.load(Ordering::Relaxed);
            #[expect(clippy::cast_possible_truncation, reason = "above it is only the mark")]
            (since & SOME != 0).then(|| (now.wrapping_sub(since as u32).cast_signed(), number))
        });
        ages.max().map(|(_, number)| number)
    }

    fn note_ages(&self, number: usize, shelf: RwLockWriteGuard<'_, Shelf>) {
        for queue in [Queue::Young, Queue::Old] {
            let since = shelf.oldest(queue).map_or(0, |since| SOME | u64::from(since));
            self.oldest[queue as usize][number].store(since, Ordering::Relaxed);
        }
        drop(shelf);
    }

    /// It has left the table. Called under the shelf's lock, so that whoever finds nothing there does not find it decoded either.
    fn forget(&self, old: &Packed, queue: Queue) {
        old.end();
        self.objects.fetch_sub(1, Ordering::Relaxed);
        self.of(queue).fetch_sub(old.weight(), Ordering::Relaxed);
    }

    fn of(&self, queue: Queue) -> &AtomicU64 {
        &self.bytes[queue as usize]
    }
}

fn number(slot: Slot) -> usize {
    usize::try_from((slot >> 96) % SHELVES as Slot).unwrap_or_default()
}
