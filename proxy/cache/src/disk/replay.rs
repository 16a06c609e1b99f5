//! Records on their way into the index, many at once.
//!
//! One by one, each costs a walk through memory that nothing has loaded. So they are gathered first, by partition, and then put in the order
//! in which they lie there: each partition is gone through once from front to back, several of them at the same time. Records of one family
//! have the same home, and keep the order they were written in.

use std::num::NonZero;
use std::thread;

use parking_lot::Mutex;

use super::index::{Index, PARTITIONS, Table, partition};
use super::record::{Kind, Listed};

/// So many records are gathered: 80 MB.
const GATHERED: usize = 2 << 20;
/// Threads that put them at the same time.
const THREADS: usize = 4;
/// Parts of a partition, by the upper bits of families: with ten million objects, one is 6 KB.
const STRIPS: usize = 1024;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Replay<'i> {
    index: &'i Index,
    gathered: Vec<Vec<Listed>>,
    count: usize,
    most: usize,
    threads: usize,
}

impl<'i> Replay<'i> {
    pub(crate) fn of(index: &'i Index) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS);
        Self { index, gathered: vec![Vec::new(); PARTITIONS], count: 0, most: GATHERED, threads }
    }

    /// The next record.
    pub(crate) fn add(&mut self, listed: Listed) {
        match listed.kind {
            Kind::Meta | Kind::RemovedKey | Kind::RemovedFamily => {}
            Kind::RemovedAll => return self.clear(),
            _ => return,
        }
        self.gathered[partition(listed.entry.family)].push(listed);
        self.count += 1;
        if self.count >= self.most {
            self.apply();
        }
    }

    /// Nothing of what came until now is there.
    pub(crate) fn clear(&mut self) {
        self.gathered.iter_mut().for_each(Vec::clear);
        self.count = 0;
        self.index.clear();
    }

    /// Everything has come.
    pub(crate) fn finish(mut self) {
        self.apply();
    }

    fn apply(&mut self) {
        let index = self.index;
        let partitions = Mutex::new(self.gathered.iter_mut().enumerate());
        let work = || {
            let mut order = Vec::new();
            loop {
                let Some((partition, gathered)) = partitions.lock().next() else { return };
                index.change(partition, |table| put(table, gathered, &mut order));
                gathered.clear();
            }
        };
        thread::scope(|scope| {
            for _ in 1..self.threads {
                // One that cannot be started is not waited for: the others do its part.
                let helper = thread::Builder::new().name("disk-load".into()).spawn_scoped(scope, work);
                drop(
                    helper.inspect_err(|error| tracing::debug!(%error, "the cache's index is loaded by fewer threads")),
                );
            }
            work();
        });
        self.count = 0;
    }
}

/// Puts records of one partition, in the order of their homes.
fn put(table: &mut Table, gathered: &[Listed], order: &mut Vec<u32>) {
    in_strips(gathered, order);
    for at in order {
        let Listed { kind, entry } = gathered[*at as usize];
        match kind {
            Kind::Meta => drop(table.put(entry)),
            Kind::RemovedKey => drop(table.remove(entry.tag())),
            Kind::RemovedFamily => drop(table.remove_family(entry.family)),
            _ => {}
        }
    }
}

/// Fills `order` with the places of all in `gathered`, by strips, and within one as they are: counts how many each has, and deals them out.
fn in_strips(gathered: &[Listed], order: &mut Vec<u32>) {
    let strip = |listed: &Listed| {
        let upper = listed.entry.family >> (u64::BITS - STRIPS.ilog2());
        usize::try_from(upper).unwrap_or_default()
    };
    let mut next = [0_u32; STRIPS];
    gathered.iter().for_each(|listed| next[strip(listed)] += 1);
    let mut start = 0;
    for count in &mut next {
        start += std::mem::replace(count, start);
    }
    order.clear();
    order.resize(gathered.len(), 0);
    for (at, listed) in (0..).zip(gathered) {
        let place = &mut next[strip(listed)];
        order[*place as usize] = at;
        *place += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::index::{Entry, Tag};
    use super::*;

    fn records() -> impl Strategy<Value = Vec<Listed>> {
        let kind = prop_oneof![
            60 => Just(Kind::Meta),
            20 => Just(Kind::RemovedKey),
            5 => Just(Kind::RemovedFamily),
            1 => Just(Kind::RemovedAll),
            5 => Just(Kind::Chunk),
        ];
        // Few families, of several partitions and strips.
        let family = (0u64..4, 0u64..4).prop_map(|(high, low)| high << 62 | low);
        let record = (kind, family, 0u32..5).prop_map(|(kind, family, variant)| (kind, family, variant));
        prop::collection::vec(record, 0..400).prop_map(|records| {
            let numbered = (1..).zip(records);
            let listed = numbered.map(|(number, (kind, family, variant))| Listed {
                kind,
                entry: Entry::new(family, variant, number, 1, number, 1, 0),
            });
            listed.collect()
        })
    }

    proptest! {
        #[test]
        fn many_at_once_come_out_as_one_by_one(records in records(), most in 1_usize..100, threads in 1_usize..5) {
            let (at_once, one_by_one) = (Index::new(), Index::new());
            let mut replay = Replay { most, threads, ..Replay::of(&at_once) };
            for listed in &records {
                replay.add(*listed);
                let entry = listed.entry;
                match listed.kind {
                    Kind::Meta => drop(one_by_one.put(entry)),
                    Kind::RemovedKey => drop(one_by_one.remove(entry.tag())),
                    Kind::RemovedFamily => drop(one_by_one.remove_family(entry.family)),
                    Kind::RemovedAll => one_by_one.clear(),
                    _ => {}
                }
            }
            replay.finish();
            at_once.fit();
            let all = |index: &Index| {
                let mut all = Vec::new();
                index.each(|entry| all.push(*entry));
                all.sort_unstable_by_key(|entry| entry.offset);
                all
            };
            prop_assert_eq!(all(&at_once), all(&one_by_one));
            for entry in all(&one_by_one) {
                prop_assert_eq!(at_once.get(entry.tag()), Some(entry));
            }
        }
    }

    #[test]
    fn room_made_for_more_is_given_back() {
        let index = Index::new();
        index.reserve(100_000);
        for number in 0..1000_u32 {
            index.put(Entry::new(u64::from(number) << 54 | u64::from(number), 0, 1, 1, number, 1, 0));
        }
        let reserved = index.memory();
        index.fit();
        assert!(index.memory() < reserved / 20, "{} of {reserved}", index.memory());
        assert_eq!(index.len(), 1000);
        for number in 0..1000_u64 {
            assert!(index.get(Tag { family: number << 54 | number, variant: 0 }).is_some());
        }
    }
}
