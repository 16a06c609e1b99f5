//! The disk tier's engine, from outside: what comes back, what must not, and what a failing disk costs.

#[path = "disk/faults.rs"]
mod faults;
#[path = "disk/killed.rs"]
mod killed;
#[path = "disk/space.rs"]
mod space;
#[path = "disk/support.rs"]
mod support;
#[path = "disk/trace.rs"]
mod trace;

use std::time::Duration;

use bytes::Bytes;
use selvedge_cache::disk::{Admit, CHUNK, INLINE, Removal, State, Store};

use self::support::*;

/// Every way a body may lie: none, with its metadata, one chunk, several.
const LENGTHS: [usize; 8] = [0, 1, INLINE, INLINE + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7];

#[tokio::test]
async fn what_was_committed_comes_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for (number, length) in (0..).zip(LENGTHS) {
        put(&store, number, &body_of(number, length)).await;
    }
    for (number, length) in (0..).zip(LENGTHS) {
        assert!(get(&store, number).await == Some(body_of(number, length)), "{length} bytes");
    }
    assert!(get(&store, 99).await.is_none());
    let counts = store.counts();
    assert_eq!((counts.hits, counts.misses, counts.written, counts.corrupt), (8, 1, 8, 0));
}

#[tokio::test]
async fn however_a_body_is_cut_when_it_comes_it_is_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let whole = body_of(1, 2 * CHUNK + 1234);
    for (number, piece) in (0..).zip([1000, 16 << 10, CHUNK - 1, CHUNK, CHUNK + 1, whole.len()]) {
        let mut writing = store.begin(key(number), key(number)).expect("room");
        for piece in whole.chunks(piece) {
            assert!(writing.push(Bytes::copy_from_slice(piece)));
        }
        assert!(writing.commit(meta(number), FAR));
        assert!(store.sync().await);
        assert!(get(&store, number).await.as_deref() == Some(&whole[..]), "in pieces of {piece}");
    }
}

#[tokio::test]
async fn ranges_read_what_they_need() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let whole = body_of(1, 3 * CHUNK + 7);
    put(&store, 1, &whole).await;
    put(&store, 2, &whole[..100]).await;
    let length = whole.len() as u64;
    let at = |offset: u64| usize::try_from(offset).expect("small");
    for (start, end) in
        [(0, 1), (0, length), (CHUNK as u64 - 1, CHUNK as u64 + 1), (length - 1, length), (300_000, 700_001)]
    {
        let mut found = store.find(key(1), key(1)).await.expect("a hit");
        found.body.seek(start, Some(end)).expect("within");
        let read = drain(&mut found).await.expect("a body");
        assert!(read == whole[at(start)..at(end)], "{start}..{end}");
    }
    let mut small = store.find(key(2), key(2)).await.expect("a hit");
    small.body.seek(10, Some(500)).expect("within");
    assert_eq!(drain(&mut small).await.expect("a body"), whole[10..100]);
    assert!(small.body.seek(100, None).is_err(), "beyond the end");
}

#[tokio::test]
async fn what_is_not_committed_never_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let mut writing = store.begin(key(1), key(1)).expect("room");
    writing.push(body_of(1, 2 * CHUNK).into());
    drop(writing);
    assert!(store.sync().await);
    assert!(get(&store, 1).await.is_none());
    assert_eq!(store.usage()[0].queued_bytes, 0);
}

#[tokio::test]
async fn a_clean_end_is_followed_by_hits_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for (number, length) in (0..).zip(LENGTHS) {
        put(&store, number, &body_of(number, length)).await;
    }
    store.close().await;
    assert!(folder.path().join("index.snap").exists());
    assert!(get(&store, 1).await.is_none(), "closed");

    let store = open(folder.path());
    assert!(!folder.path().join("index.snap").exists(), "it is true only until something changes");
    for (number, length) in (0..).zip(LENGTHS) {
        assert!(get(&store, number).await == Some(body_of(number, length)), "{length} bytes");
    }
}

#[tokio::test]
async fn after_a_crash_what_was_synced_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    // Several segments, so that there are footers and a tail.
    for number in 0..60 {
        put(&store, number, &body_of(number, 200_000)).await;
    }
    let crashed = copy(folder.path());
    for again in 0..2 {
        let store = open(crashed.path());
        for number in 0..60 {
            assert!(get(&store, number).await == Some(body_of(number, 200_000)), "{number}, start {again}");
        }
        // The second time after a clean end that follows a crash.
        store.close().await;
    }
}

/// kill -9 may end a write anywhere: the header of the last record is there, and the rest of it is not.
#[tokio::test]
async fn a_record_that_is_there_in_part_is_no_object() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    put(&store, 1, &body_of(1, 3000)).await;
    put(&store, 2, &body_of(2, 3000)).await;
    // A newer one takes the older one's place, and is cut off.
    put(&store, 1, &body_of(3, 3000)).await;
    let crashed = copy(folder.path());
    let path = crashed.path().join("00000001.seg");
    let mut bytes = std::fs::read(&path).expect("a segment");
    let end = bytes.iter().rposition(|byte| *byte != 0).expect("something was written");
    bytes[end - 1000..].fill(0);
    std::fs::write(&path, bytes).expect("written");

    for again in 0..2 {
        let store = open(crashed.path());
        assert!(!store.has(key(1), key(1)), "neither the newer one nor what it replaced, start {again}");
        assert!(get(&store, 2).await == Some(body_of(2, 3000)), "start {again}");
        assert_eq!(store.counts().corrupt, 0, "start {again}");
        store.close().await;
        // The second time the segments are read again, as the first start has left them.
        std::fs::remove_file(crashed.path().join("index.snap")).expect("a clean end leaves it");
    }
}

#[tokio::test]
async fn new_metadata_replace_the_old_and_the_body_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for (number, length) in [(1, 100), (2, 2 * CHUNK)] {
        let generation = put(&store, number, &body_of(number, length)).await;
        let before = store.counts().written_bytes;
        assert!(store.update(key(number), key(number), generation, FAR, Bytes::from_static(b"newer")));
        assert!(store.sync().await);
        assert!(store.counts().written_bytes - before < 1000, "the body was written again");
        assert!(store.update(key(number), key(number), generation - 1, FAR, Bytes::from_static(b"of another")));
        assert!(store.sync().await);
    }
    assert!(!store.update(key(3), key(3), 1, FAR, Bytes::new()), "nothing there");
    store.close().await;
    let store = open(folder.path());
    for (number, length) in [(1, 100), (2, 2 * CHUNK)] {
        let mut found = store.find(key(number), key(number)).await.expect("a hit");
        assert_eq!(found.meta, Bytes::from_static(b"newer"));
        assert!(drain(&mut found).await.expect("a body") == body_of(number, length));
    }
}

#[tokio::test]
async fn what_was_removed_stays_away_after_a_crash() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for number in 0..6 {
        put(&store, number, &body_of(number, 1000)).await;
    }
    put_in(&store, 101, 100, b"one variant").await;
    put_in(&store, 102, 100, b"another").await;
    store.remove(Removal::Key { key: key(1), family: key(1) }).await.expect("durable");
    store.remove(Removal::Family(key(100))).await.expect("durable");
    assert!(get(&store, 1).await.is_none());
    let crashed = copy(folder.path());
    let after = open(crashed.path());
    assert!(get(&after, 1).await.is_none());
    assert!(!after.has(key(101), key(100)) && !after.has(key(102), key(100)));
    assert!(get(&after, 2).await == Some(body_of(2, 1000)));
    put(&after, 1, b"new").await;
    assert!(get(&after, 1).await.as_deref() == Some(&b"new"[..]));

    store.remove(Removal::All).await.expect("durable");
    put(&store, 5, b"later").await;
    let crashed = copy(folder.path());
    let after = open(crashed.path());
    assert_eq!(after.usage()[0].objects, 1);
    assert!(get(&after, 5).await.as_deref() == Some(&b"later"[..]));
}

#[tokio::test]
async fn a_removal_wins_over_what_is_being_written() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    for removal in [Removal::Key { key: key(1), family: key(9) }, Removal::Family(key(9)), Removal::All] {
        let mut writing = store.begin(key(1), key(9)).expect("room");
        writing.push(Bytes::from_static(b"old"));
        store.remove(removal).await.expect("durable");
        assert!(writing.commit(meta(1), FAR));
        assert!(store.sync().await);
        assert!(!store.has(key(1), key(9)), "{removal:?}");
        put_in(&store, 1, 9, b"new").await;
        assert!(store.has(key(1), key(9)));
    }
}

#[tokio::test]
async fn the_oldest_go_and_what_is_read_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    put(&store, 1, &body_of(1, 3000)).await;
    put(&store, 2, &body_of(2, 2 * CHUNK)).await;
    let mut out_of_date = store.begin(key(3), key(3)).expect("room");
    out_of_date.push(Bytes::from_static(b"out of date"));
    out_of_date.commit(meta(3), 1);
    // Four times what there is room for.
    for number in 100..500 {
        for kept in [1, 2, 3] {
            if let Some(mut found) = store.find(key(kept), key(kept)).await {
                drain(&mut found).await.expect("a body");
            }
        }
        put(&store, number, &body_of(number, 400_000)).await;
        assert!(size_of(folder.path()) <= SIZE, "more than its share of the disk");
    }
    assert!(get(&store, 1).await == Some(body_of(1, 3000)));
    assert!(get(&store, 2).await == Some(body_of(2, 2 * CHUNK)));
    assert!(get(&store, 3).await.is_none(), "of no use any more");
    assert!(get(&store, 100).await.is_none());
    assert!(get(&store, 499).await == Some(body_of(499, 400_000)));
    let counts = store.counts();
    assert!(counts.kept >= 4, "{counts:?}");
    assert!(counts.reclaimed > 300, "{counts:?}");
    assert_eq!(counts.corrupt, 0);

    // And all that holds after a crash.
    let after = open(copy(folder.path()).path());
    assert!(get(&after, 1).await == Some(body_of(1, 3000)));
    assert!(get(&after, 2).await == Some(body_of(2, 2 * CHUNK)));
    assert!(!after.has(key(100), key(100)));
}

/// A hot object with new metadata now and then: the body is older than the metadata, and must not go with its segment.
#[tokio::test]
async fn a_body_outlives_its_segment_when_its_metadata_lie_elsewhere() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    let generation = put(&store, 1, &body_of(1, 2 * CHUNK)).await;
    for number in 100..300 {
        put(&store, number, &body_of(number, 400_000)).await;
        if number % 10 == 0 {
            assert!(store.update(key(1), key(1), generation, FAR, Bytes::from(format!("as of {number}"))));
            assert!(store.sync().await);
            assert!(store.find(key(1), key(1)).await.is_some());
        }
    }
    let mut found = store.find(key(1), key(1)).await.expect("a hit");
    assert_eq!(found.meta, Bytes::from_static(b"as of 290"));
    assert!(drain(&mut found).await.expect("a body") == body_of(1, 2 * CHUNK));
}

#[tokio::test]
async fn a_reader_reads_on_when_its_segment_goes() {
    let folder = tempfile::tempdir().expect("a folder");
    let store = open(folder.path());
    put(&store, 1, &body_of(1, 8 * CHUNK)).await;
    let mut found = store.find(key(1), key(1)).await.expect("a hit");
    let first = found.body.read().await.expect("a read").expect("a chunk");
    store.remove(Removal::All).await.expect("durable");
    for number in 100..300 {
        put(&store, number, &body_of(number, 400_000)).await;
    }
    let mut rest = first.to_vec();
    rest.extend(drain(&mut found).await.expect("the rest"));
    assert!(rest == body_of(1, 8 * CHUNK));
}

#[tokio::test]
async fn a_second_miss_is_written_and_small_ones_within_the_budget() {
    let folder = tempfile::tempdir().expect("a folder");
    let options = options(folder.path());
    let store = opened(selvedge_cache::disk::StoreOptions { admit: Admit::SecondHit, write_budget: 1000, ..options });
    assert!(store.admits(key(1), key(1), Some(900)), "small, and within the budget");
    assert!(!store.admits(key(2), key(2), Some(900)), "the budget is spent");
    assert!(!store.admits(key(3), key(3), Some(1 << 20)));
    assert!(!store.admits(key(4), key(4), None));
    assert!(store.admits(key(3), key(3), Some(1 << 20)), "the second time");
    put(&store, 5, b"there").await;
    assert!(store.admits(key(5), key(5), None), "what is there must not be left out of date");
}

#[tokio::test]
async fn two_stores_do_not_share_a_folder() {
    let folder = tempfile::tempdir().expect("a folder");
    let first = open(folder.path());
    put(&first, 1, b"one").await;
    let second = Store::open(options(folder.path())).expect("threads");
    second.wait(Duration::from_secs(10));
    assert_eq!(second.usage()[0].state, State::Waiting);
    assert!(get(&second, 1).await.is_none());
    assert!(second.begin(key(2), key(2)).is_none());

    // A removal that it is told meanwhile holds as soon as the folder is its own.
    let removed = tokio::spawn(second.remove(Removal::Key { key: key(1), family: key(1) }));
    put(&first, 2, b"two").await;
    first.close().await;
    removed.await.expect("no panic").expect("durable");
    assert!(get(&second, 1).await.is_none());
    assert!(get(&second, 2).await.as_deref() == Some(&b"two"[..]));
    second.close().await;
}

#[tokio::test]
async fn keys_are_spread_by_size_and_stay_where_they_are() {
    let (one, other) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut options = options(one.path());
    options.disks.extend(support::options(other.path()).disks);
    options.disks[1].size *= 3;
    let store = opened(options.clone());
    for number in 0..400 {
        put(&store, number, b"x").await;
    }
    let objects: Vec<u64> = store.usage().iter().map(|disk| disk.objects).collect();
    assert_eq!(objects.iter().sum::<u64>(), 400);
    assert!((60..140).contains(&objects[0]), "{objects:?}");
    store.close().await;

    // In another order they are the same disks.
    options.disks.reverse();
    let store = opened(options);
    for number in 0..400 {
        assert!(store.has(key(number), key(number)), "{number}");
    }
}
