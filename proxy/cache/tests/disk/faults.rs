//! A disk that fails, stalls, cuts writes off, or gives back other bits than it was given.

use std::io::{Error, ErrorKind, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};
use selvedge_cache::disk::io::{DiskFile, Folder, FolderLock, OsFolder};
use selvedge_cache::disk::{CHUNK, Limits, Removal, State, Store, StoreOptions};

use crate::support::*;

/// What the disk does wrong at the moment.
#[derive(Debug, Default)]
struct Faults {
    reads: Mutex<Option<ErrorKind>>,
    writes: Mutex<Option<ErrorKind>>,
    syncs: Mutex<Option<ErrorKind>>,
    creates: Mutex<Option<ErrorKind>>,
    /// Bytes of the next write that arrive, before it fails.
    cut: Mutex<Option<usize>>,
    stalled: Mutex<bool>,
    released: Condvar,
    written: AtomicU64,
    stall_reads_only: AtomicBool,
}

impl Faults {
    fn check(fault: &Mutex<Option<ErrorKind>>) -> Result<()> {
        fault.lock().map_or(Ok(()), |kind| Err(Error::new(kind, "as the test wants it")))
    }

    fn stall(&self, reading: bool) {
        let mut stalled = self.stalled.lock();
        while *stalled && (reading || !self.stall_reads_only.load(Ordering::Relaxed)) {
            self.released.wait(&mut stalled);
        }
    }

    fn set_stalled(&self, stalled: bool) {
        *self.stalled.lock() = stalled;
        self.released.notify_all();
    }
}

#[derive(Debug)]
struct BadFolder(OsFolder, Arc<Faults>);

impl Folder for BadFolder {
    fn lock(&self) -> Result<Option<FolderLock>> {
        self.0.lock()
    }

    fn list(&self) -> Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, name: &str, size: u64) -> Result<Arc<dyn DiskFile>> {
        Faults::check(&self.1.creates)?;
        Ok(Arc::new(BadFile(self.0.create(name, size)?, Arc::clone(&self.1))))
    }

    fn open(&self, name: &str) -> Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(BadFile(self.0.open(name)?, Arc::clone(&self.1))))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        self.0.rename(from, to)
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.0.remove(name)
    }

    fn sync(&self) -> Result<()> {
        Faults::check(&self.1.syncs)?;
        self.0.sync()
    }
}

#[derive(Debug)]
struct BadFile(Arc<dyn DiskFile>, Arc<Faults>);

impl DiskFile for BadFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        self.1.stall(true);
        Faults::check(&self.1.reads)?;
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.1.stall(false);
        if let Some(arrive) = self.1.cut.lock().take() {
            self.0.write_at(&bytes[..arrive.min(bytes.len())], offset)?;
            return Err(Error::other("cut off"));
        }
        Faults::check(&self.1.writes)?;
        self.1.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.0.write_at(bytes, offset)
    }

    fn sync(&self) -> Result<()> {
        self.1.stall(false);
        Faults::check(&self.1.syncs)?;
        self.0.sync()
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.0.set_len(length)
    }

    fn length(&self) -> Result<u64> {
        self.0.length()
    }
}

fn bad_options(folder: &Path, faults: &Arc<Faults>) -> StoreOptions {
    let mut options = options(folder);
    options.disks[0].folder = Arc::new(BadFolder(OsFolder::new(folder), Arc::clone(faults)));
    options
}

/// Tries to store; whether it can be found afterwards does not matter.
async fn try_put(store: &Store, number: u64, length: usize) {
    if let Some(mut writing) = store.begin(key(number), key(number)) {
        writing.push(body_of(number, length).into());
        writing.commit(meta(number), FAR);
    }
    store.sync().await;
}

#[tokio::test]
async fn a_disk_that_keeps_failing_is_switched_off_and_the_other_goes_on() {
    let (bad, good) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let faults = Arc::<Faults>::default();
    let mut both = bad_options(bad.path(), &faults);
    both.disks.extend(options(good.path()).disks);
    let store = opened(both);
    for number in 0..40 {
        put(&store, number, b"before").await;
    }
    *faults.writes.lock() = Some(ErrorKind::Other);
    for number in 100..200 {
        try_put(&store, number, 5000).await;
    }
    let usage = store.usage();
    assert_eq!((usage[0].state, usage[1].state), (State::Off, State::On), "{usage:?}");
    assert!(usage[0].counts.io_errors >= 8);
    assert!(usage[0].counts.dropped_error > 0);
    let mut found = 0;
    for number in (0..40).chain(100..200) {
        found += u32::from(get(&store, number).await.is_some());
    }
    assert!((40..110).contains(&found), "the other disk's: {found}");
}

/// A disk that was switched off is tried again, and begins empty: while it was off, it was not told what was replaced.
#[tokio::test]
async fn a_disk_that_works_again_is_used_again() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Arc::<Faults>::default();
    let limits = Limits { again: Duration::from_millis(50), ..patient() };
    let store = opened(StoreOptions { limits, ..bad_options(folder.path(), &faults) });
    put(&store, 1, b"before").await;
    *faults.writes.lock() = Some(ErrorKind::Other);
    for number in 100..120 {
        try_put(&store, number, 5000).await;
    }
    assert_eq!(store.usage()[0].state, State::Off);
    assert!(store.begin(key(1), key(1)).is_none(), "what is newer is not written");
    store.remove(Removal::Key { key: key(100), family: key(100) }).await.expect("nothing is used of this disk");

    *faults.writes.lock() = None;
    let deadline = Instant::now() + Duration::from_secs(60);
    while store.usage()[0].state != State::On {
        assert!(Instant::now() < deadline, "it is not tried again");
        store.sync().await;
    }
    assert!(!store.has(key(1), key(1)), "older than what could not be written");
    put(&store, 2, b"after").await;
    assert_eq!(get(&store, 2).await.as_deref(), Some(&b"after"[..]));
    for store in [open(copy(folder.path()).path()), {
        store.close().await;
        open(folder.path())
    }] {
        assert_eq!((store.usage()[0].objects, get(&store, 2).await.as_deref()), (1, Some(&b"after"[..])));
    }
}

#[tokio::test]
async fn a_write_that_fails_costs_only_what_was_in_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Arc::<Faults>::default();
    let store = opened(bad_options(folder.path(), &faults));
    for (round, arrive) in (0..).zip([0, 1, 63, 64, 100, 5000, CHUNK]) {
        put(&store, round * 10, b"before").await;
        let mut writing = store.begin(key(round * 10 + 1), key(round * 10 + 1)).expect("room");
        writing.push(body_of(1, CHUNK * 2).into());
        *faults.cut.lock() = Some(arrive);
        writing.commit(meta(round * 10 + 1), FAR);
        store.sync().await;
        let late = round * 10 + 1;
        assert!(!store.has(key(late), key(late)), "{arrive} bytes arrived: {:?}", store.counts());
        put(&store, round * 10 + 2, b"after").await;
        // So many errors within a minute are the most that a disk may have.
        if round == 5 {
            break;
        }
    }
    let crashed = copy(folder.path());
    for store in [store, open(crashed.path())] {
        for round in 0..6 {
            assert!(get(&store, round * 10).await.as_deref() == Some(&b"before"[..]));
            assert!(get(&store, round * 10 + 2).await.as_deref() == Some(&b"after"[..]));
            // What had arrived before the error may be found by the next start, if it is whole.
            if let Some(found) = get(&store, round * 10 + 1).await {
                assert!(found == body_of(1, CHUNK * 2));
            }
        }
    }
}

#[tokio::test]
async fn a_failing_read_is_a_miss_or_breaks_the_body_off() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Arc::<Faults>::default();
    let store = opened(bad_options(folder.path(), &faults));
    put(&store, 1, &body_of(1, 100)).await;
    put(&store, 2, &body_of(2, 4 * CHUNK)).await;
    let mut found = store.find(key(2), key(2)).await.expect("a hit");
    *faults.reads.lock() = Some(ErrorKind::Other);
    assert!(store.find(key(1), key(1)).await.is_none());
    assert!(drain(&mut found).await.is_err());
    *faults.reads.lock() = None;
    assert!(!store.has(key(1), key(1)) && !store.has(key(2), key(2)), "not asked for again");
    assert_eq!(store.usage()[0].state, State::On);
}

#[tokio::test]
async fn a_full_disk_costs_objects_and_nothing_else() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Arc::<Faults>::default();
    let store = opened(bad_options(folder.path(), &faults));
    for number in 0..40 {
        put(&store, number, &body_of(number, 200_000)).await;
    }
    *faults.writes.lock() = Some(ErrorKind::StorageFull);
    *faults.creates.lock() = Some(ErrorKind::StorageFull);
    for number in 100..140 {
        try_put(&store, number, 200_000).await;
        assert!(!store.has(key(number), key(number)));
        if number == 100 {
            // Of the rest, the oldest go every other second, for as long as there is no room.
            assert!(get(&store, 39).await.is_some(), "what is there is served");
        }
    }
    let usage = &store.usage()[0];
    assert_eq!(usage.state, State::On, "full is not broken");
    assert!(usage.counts.full > 0 && usage.counts.dropped_error > 0, "{usage:?}");

    *faults.writes.lock() = None;
    *faults.creates.lock() = None;
    let deadline = Instant::now() + Duration::from_secs(60);
    while !store.has(key(200), key(200)) {
        assert!(Instant::now() < deadline, "it does not write again");
        try_put(&store, 200, 200_000).await;
    }
    assert!(get(&store, 200).await == Some(body_of(200, 200_000)));
}

#[tokio::test]
async fn nobody_waits_for_a_disk_that_stalls() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Arc::<Faults>::default();
    let lookup = Duration::from_secs(1);
    let limits = Limits { queue: 1 << 20, lookup, read: lookup, ..Limits::default() };
    let store = opened(StoreOptions { limits, ..bad_options(folder.path(), &faults) });
    put(&store, 1, &body_of(1, 100)).await;
    put(&store, 2, &body_of(2, 3 * CHUNK)).await;
    let mut found = store.find(key(2), key(2)).await.expect("a hit");

    faults.set_stalled(true);
    let began = Instant::now();
    for number in 100..200 {
        if let Some(mut writing) = store.begin(key(number), key(number)) {
            writing.push(body_of(number, CHUNK).into());
            writing.commit(meta(number), FAR);
        }
    }
    assert!(store.find(key(1), key(1)).await.is_none());
    for _ in 0..100 {
        assert!(store.find(key(1), key(1)).await.is_none(), "it is not asked for a while");
    }
    assert!(drain(&mut found).await.is_err(), "in the middle of a body there is no other answer");
    // A lookup and a read, and what a machine that is busy adds.
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let usage = &store.usage()[0];
    assert!(usage.queued_bytes <= 1 << 20);
    assert!(usage.counts.dropped_queue >= 90, "{usage:?}");
    assert!(usage.counts.slow >= 1);

    faults.set_stalled(false);
    assert!(store.sync().await);
    let usage = &store.usage()[0];
    assert_eq!((usage.queued_bytes, usage.state), (0, State::On));
    put(&store, 300, b"again").await;
    assert!(store.has(key(300), key(300)));
}

/// What a client has got must not be followed by something older, because the newer one was dropped on its way to the disk.
#[tokio::test]
async fn what_could_not_be_replaced_is_gone() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Arc::<Faults>::default();
    let limits = Limits { queue: 1 << 20, ..patient() };
    let store = opened(StoreOptions { limits, ..bad_options(folder.path(), &faults) });
    for number in 1..3 {
        put(&store, number, b"older").await;
    }
    faults.set_stalled(true);
    let mut writing = store.begin(key(1), key(1)).expect("room");
    assert!(!writing.push(body_of(1, 8 * CHUNK).into()), "more than the queue takes");
    assert!(!writing.commit(meta(1), FAR));
    while let Some(mut other) = store.begin(key(9), key(9)) {
        other.push(body_of(9, CHUNK).into());
        other.commit(meta(9), FAR);
    }
    assert!(store.begin(key(2), key(2)).is_none());
    assert!(!store.has(key(1), key(1)) && !store.has(key(2), key(2)));
    faults.set_stalled(false);
    assert!(store.sync().await);
    let after = open(copy(folder.path()).path());
    for store in [&store, &after] {
        assert!(!store.has(key(1), key(1)) && !store.has(key(2), key(2)));
    }
}

#[tokio::test]
async fn a_removal_is_durable_or_says_that_it_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Arc::<Faults>::default();
    let store = opened(bad_options(folder.path(), &faults));
    for number in 0..4 {
        put(&store, number, b"old").await;
    }
    let remove = |number: u64| store.remove(Removal::Key { key: key(number), family: key(number) });

    // Once more, in another segment, is enough.
    *faults.cut.lock() = Some(10);
    remove(1).await.expect("durable");
    assert!(open(copy(folder.path()).path()).has(key(2), key(2)));
    assert!(!open(copy(folder.path()).path()).has(key(1), key(1)));

    // Nothing can be written, but a name can be made: then everything goes at the next start.
    *faults.writes.lock() = Some(ErrorKind::Other);
    remove(2).await.expect("durable");
    assert!(!store.has(key(2), key(2)));
    let crashed = copy(folder.path());
    let after = open(crashed.path());
    assert_eq!(after.usage()[0].objects, 0);
    put(&after, 7, b"new").await;
    after.close().await;
    assert!(open(crashed.path()).has(key(7), key(7)), "once");
}

#[tokio::test]
async fn a_removal_that_cannot_be_made_durable_is_an_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let faults = Arc::<Faults>::default();
    let store = opened(bad_options(folder.path(), &faults));
    put(&store, 1, b"old").await;
    for fault in [&faults.writes, &faults.syncs, &faults.creates] {
        *fault.lock() = Some(ErrorKind::Other);
    }
    store.remove(Removal::All).await.expect_err("nowhere to write it");
    assert!(!store.has(key(1), key(1)), "here it holds");
}

/// Every byte of every file, one after the other: what comes back is what was stored or nothing, and nothing that was removed.
#[tokio::test]
async fn no_flipped_bit_is_ever_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    put(&store, 1, &body_of(1, 300)).await;
    put(&store, 2, &body_of(2, INLINE_AND_MORE)).await;
    put(&store, 3, b"removed").await;
    put_in(&store, 4, 40, b"removed with its family").await;
    store.remove(Removal::Key { key: key(3), family: key(3) }).await.expect("durable");
    store.remove(Removal::Family(key(40))).await.expect("durable");
    let generation = put(&store, 5, &body_of(5, 100)).await;
    store.update(key(5), key(5), generation, FAR, meta(5));
    assert!(store.sync().await);
    // The mark that the rest is durable, and something after it.
    put(&store, 6, &body_of(6, 10)).await;
    let crashed = copy(folder.path());
    store.close().await;

    for base in [crashed.path(), folder.path()] {
        let files: Vec<_> =
            std::fs::read_dir(base).expect("a folder").map(|file| file.expect("a file").file_name()).collect();
        for file in files.iter().filter(|file| *file != "lock") {
            let whole = std::fs::read(base.join(file)).expect("a file");
            // Far behind the last record there are only zeros.
            let used = whole.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let inside = |at: usize| (1500..INLINE_AND_MORE).contains(&at) && !at.is_multiple_of(997);
            for at in (0..used).filter(|at| !inside(*at)) {
                let flipped = tempfile::tempdir().expect("a folder");
                for other in &files {
                    let from = base.join(other);
                    let bytes = std::fs::read(from).expect("a file");
                    let mut bytes = bytes[..bytes.len().min(used.max(1 << 16))].to_vec();
                    if other == file {
                        bytes[at] ^= 1 << (at % 8);
                    }
                    std::fs::write(flipped.path().join(other), bytes).expect("written");
                }
                let store = open(flipped.path());
                for (number, length) in [(1, 300), (2, INLINE_AND_MORE), (5, 100), (6, 10)] {
                    if let Some(mut found) = store.find(key(number), key(number)).await {
                        assert_eq!(found.meta, meta(number), "{file:?} at {at}");
                        if let Ok(body) = drain(&mut found).await {
                            assert!(body == body_of(number, length), "{file:?} at {at}");
                        }
                    }
                }
                assert!(!store.has(key(3), key(3)), "{file:?} at {at}: a removed object is back");
                assert!(!store.has(key(4), key(40)), "{file:?} at {at}: a removed object is back");
            }
        }
    }
}

const INLINE_AND_MORE: usize = (16 << 10) + 100;

/// A body may say what it likes: it is never read as records.
#[tokio::test]
async fn a_body_of_records_is_a_body() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    put(&store, 1, b"one").await;
    put(&store, 2, b"two").await;
    assert!(store.sync().await);
    let crashed = copy(folder.path());
    let names = std::fs::read_dir(crashed.path()).expect("a folder");
    let segment =
        names.filter_map(|file| Some(file.ok()?.path())).find(|path| path.extension().is_some_and(|end| end == "seg"));
    let records = std::fs::read(segment.expect("a segment")).expect("a file")[128..128 + 4096].to_vec();
    store.remove(Removal::All).await.expect("durable");

    put(&store, 3, &records).await;
    let crashed = copy(folder.path());
    let segment = crashed.path().join("00000001.seg");
    // The record before is torn, so that whoever looks for the next one looks into the body.
    let mut bytes = std::fs::read(&segment).expect("a file");
    let at = bytes.windows(64).rposition(|window| window == &records[..64]).expect("the body");
    bytes[at / 64 * 64 - 64] ^= 1;
    std::fs::write(&segment, bytes).expect("written");
    let after = open(crashed.path());
    assert!(!after.has(key(1), key(1)) && !after.has(key(2), key(2)));
}

#[tokio::test]
async fn bytes_of_another_place_are_not_taken_for_this_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    put(&store, 1, &body_of(1, 2 * CHUNK)).await;
    put(&store, 2, &body_of(2, 2 * CHUNK)).await;
    store.close().await;
    let segment = folder.path().join("00000001.seg");
    let mut bytes = std::fs::read(&segment).expect("a file");
    // The two objects' first chunks, records of the same size, change places: as if the disk had written to the wrong block.
    let find = |bytes: &[u8], number: u64| {
        let first = Bytes::from(body_of(number, 64));
        bytes.windows(64).position(|window| window == &first[..]).expect("its chunk") - 64
    };
    let (one, other) = (find(&bytes, 1), find(&bytes, 2));
    let size = CHUNK + 64;
    let (first, second) = (bytes[one..one + size].to_vec(), bytes[other..other + size].to_vec());
    bytes[one..one + size].copy_from_slice(&second);
    bytes[other..other + size].copy_from_slice(&first);
    std::fs::write(&segment, bytes).expect("written");

    let store = open(folder.path());
    for number in 1..3 {
        let mut found = store.find(key(number), key(number)).await.expect("its metadata are good");
        assert!(drain(&mut found).await.is_err());
    }
    assert_eq!(store.counts().corrupt, 2);
}
