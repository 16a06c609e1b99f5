//! What is kept by id.

use std::collections::HashMap;
use std::hash::BuildHasherDefault;

use crate::upstream::IdHasher;

/// How many ids that follow each other have a place each.
const PLACES: usize = 64;

/// A map by context id. Hosts count ids up, so those in use at one time are near each other: the last bits of an id say where it is. One whose
/// place is taken by an older one is found by its hash.
pub(super) struct Table<T> {
    /// `PLACES`, from the first entry on.
    near: Vec<Option<(u32, T)>>,
    far: HashMap<u32, T, BuildHasherDefault<IdHasher>>,
    length: usize,
}

impl<T> Table<T> {
    pub(super) const fn new() -> Self {
        Self { near: Vec::new(), far: HashMap::with_hasher(BuildHasherDefault::new()), length: 0 }
    }

    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0
    }

    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<&T> {
        match self.near.get(place(id)) {
            Some(Some((other, value))) if *other == id => Some(value),
            _ if self.far.is_empty() => None,
            _ => self.far.get(&id),
        }
    }

    #[inline]
    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        match self.near.get_mut(place(id)) {
            Some(Some((other, value))) if *other == id => Some(value),
            _ if self.far.is_empty() => None,
            _ => self.far.get_mut(&id),
        }
    }

    /// In place of what the id had.
    pub(super) fn insert(&mut self, id: u32, value: T) {
        if let Some(old) = self.get_mut(id) {
            *old = value;
            return;
        }
        self.length += 1;
        if self.near.is_empty() {
            self.near.resize_with(PLACES, || None);
        }
        match &mut self.near[place(id)] {
            free @ None => *free = Some((id, value)),
            Some(_) => {
                self.far.insert(id, value);
            }
        }
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<T> {
        let removed = match self.near.get_mut(place(id)) {
            Some(taken @ Some(_)) if taken.as_ref().is_some_and(|(other, _)| *other == id) => {
                taken.take().map(|(_, value)| value)
            }
            _ if self.far.is_empty() => None,
            _ => self.far.remove(&id),
        };
        self.length -= usize::from(removed.is_some());
        removed
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.length
    }
}

#[inline(always)]
fn place(id: u32) -> usize {
    id as usize % PLACES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_map() {
        let (mut table, mut model) = (Table::new(), HashMap::new());
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        for step in 0..40_000_u32 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Few enough that they meet, in one place and in several.
            let id = u32::try_from(random >> 8 & 7).unwrap() * 64 + u32::try_from(random >> 16 & 3).unwrap();
            match random & 3 {
                0 => {
                    table.insert(id, step);
                    model.insert(id, step);
                }
                1 => assert_eq!(table.remove(id), model.remove(&id)),
                2 => assert_eq!(table.get_mut(id), model.get_mut(&id)),
                _ => assert_eq!(table.get(id), model.get(&id)),
            }
            assert_eq!((table.len(), table.is_empty()), (model.len(), model.is_empty()));
        }
    }
}
