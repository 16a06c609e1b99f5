//! Tokens that were verified before, by their SHA-256: checking an RSA signature in a guest costs about a millisecond.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

/// The SHA-256 of a token.
pub(crate) type Digest = [u8; 32];

/// A bounded map from tokens to what was found in them.
///
/// When it is full, the entry that was put in first makes room, unless it was used since: then it gets another round (the CLOCK rule).
#[derive(Debug)]
pub(crate) struct Cache<V> {
    capacity: usize,
    entries: HashMap<Digest, Entry<V>>,
    /// The digests in the order they will be looked at for room; each entry is in it exactly once.
    order: VecDeque<Digest>,
}

#[derive(Debug)]
struct Entry<V> {
    value: Rc<V>,
    used: bool,
}

impl<V> Cache<V> {
    /// An empty cache for so many tokens; 0: it keeps nothing.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { capacity, entries: HashMap::new(), order: VecDeque::new() }
    }

    /// What was found in this token.
    pub(crate) fn get(&mut self, digest: &Digest) -> Option<Rc<V>> {
        let entry = self.entries.get_mut(digest)?;
        entry.used = true;
        Some(entry.value.clone())
    }

    /// Remembers a token that is not in here.
    pub(crate) fn insert(&mut self, digest: Digest, value: Rc<V>) {
        if self.capacity == 0 || self.entries.contains_key(&digest) {
            return;
        }
        while self.entries.len() >= self.capacity {
            self.make_room();
        }
        self.entries.insert(digest, Entry { value, used: false });
        self.order.push_back(digest);
    }

    /// Forgets a token, which has expired.
    pub(crate) fn remove(&mut self, digest: &Digest) {
        if self.entries.remove(digest).is_some() {
            self.order.retain(|other| other != digest);
        }
    }

    /// Forgets them all: what they were verified with has changed.
    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
    }

    fn make_room(&mut self) {
        let Some(digest) = self.order.pop_front() else {
            self.entries.clear();
            return;
        };
        match self.entries.get_mut(&digest) {
            Some(entry) if entry.used => {
                entry.used = false;
                self.order.push_back(digest);
            }
            _ => {
                self.entries.remove(&digest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        [n; 32]
    }

    fn filled(capacity: usize, tokens: impl IntoIterator<Item = u8>) -> Cache<u8> {
        let mut cache = Cache::new(capacity);
        tokens.into_iter().for_each(|n| cache.insert(digest(n), Rc::new(n)));
        cache
    }

    #[test]
    fn it_never_grows_beyond_its_capacity() {
        for capacity in [0, 1, 3] {
            let cache = filled(capacity, 0..200);
            assert_eq!((cache.entries.len(), cache.order.len()), (capacity, capacity));
        }
    }

    #[test]
    fn what_is_used_stays() {
        let mut cache = filled(3, 0..3);
        assert!(cache.get(&digest(0)).is_some());
        cache.insert(digest(3), Rc::new(3));
        assert!(cache.get(&digest(0)).is_some() && cache.get(&digest(1)).is_none() && cache.get(&digest(3)).is_some());
    }

    #[test]
    fn it_ends_when_everything_was_used() {
        let mut cache = filled(3, 0..3);
        (0..3).for_each(|n| assert!(cache.get(&digest(n)).is_some()));
        cache.insert(digest(9), Rc::new(9));
        assert_eq!((cache.entries.len(), cache.order.len()), (3, 3));
        assert!(cache.get(&digest(9)).is_some());
    }

    #[test]
    fn what_was_removed_is_gone_and_can_come_back() {
        let mut cache = filled(2, 0..2);
        cache.remove(&digest(0));
        cache.remove(&digest(7));
        assert!(cache.get(&digest(0)).is_none());
        cache.insert(digest(0), Rc::new(5));
        assert_eq!(cache.get(&digest(0)).as_deref(), Some(&5));
        assert_eq!((cache.entries.len(), cache.order.len()), (2, 2));
    }
}
