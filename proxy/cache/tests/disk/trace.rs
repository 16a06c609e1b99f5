//! What is written to disk for what is missed, on a trace of which half is asked for once.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use pingora_cache::trace::Span;
use pingora_cache::{CacheMeta, Storage};
use pingora_http::ResponseHeader;
use selvedge_cache::disk::{Admit, DiskOptions, Limits, StoreOptions};
use selvedge_cache::key::of_target;
use selvedge_cache::{Cache, CacheOptions, DiskTier, KeyScope, QueryPolicy, Scheme};

use crate::support::patient;

/// Requests: every other one for an object that is never asked for again, the rest of a Zipf distribution over so many objects.
const REQUESTS: u64 = 20_000;
const POPULAR: f64 = 10_000.0;

/// What the trace costs.
struct Cost {
    missed: u64,
    written: u64,
    hits: u64,
}

/// Zipf with exponent 1, by inversion: the rank's logarithm is spread evenly.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
fn popular(random: &mut fastrand::Rng) -> u64 {
    POPULAR.powf(random.f64()) as u64
}

/// From 256 bytes to 32 KiB, most of them small.
fn length_of(object: u64) -> usize {
    256 << (fastrand::Rng::with_seed(object).u32(..8))
}

async fn fill(storage: &'static (dyn Storage + Sync), key: &pingora_cache::CacheKey, length: usize) {
    let now = SystemTime::now();
    let mut header = ResponseHeader::build(200, Some(1)).expect("a header");
    header.insert_header("content-length", length.to_string()).expect("a field");
    let meta = CacheMeta::new(now + Duration::from_secs(3600), now, 0, 0, header);
    let trace = Span::inactive().handle();
    let mut writer = storage.get_miss_handler(key, &meta, &trace).await.expect("a writer");
    writer.write_body(Bytes::from(vec![1; length]), true).await.expect("written");
    writer.finish().await.expect("stored");
}

async fn run(admit: Admit) -> Cost {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::leak(CacheOptions { memory_size: 4 << 20, ..CacheOptions::default() });
    let limits = Limits { queue: 1 << 30, ..patient() };
    let disks = vec![DiskOptions::at(folder.path(), 1 << 30)];
    let store = StoreOptions { disks, admit, write_budget: 0, limits };
    cache.open_disks(DiskTier { store, max_object: 1 << 20 }).expect("threads");
    cache.wait(Duration::from_secs(30));

    let trace = Span::inactive().handle();
    let mut random = fastrand::Rng::with_seed(11);
    let mut cost = Cost { missed: 0, written: 0, hits: 0 };
    for number in 0..REQUESTS {
        let object = if random.bool() { popular(&mut random) } else { 1 << 40 | number };
        let path = format!("/object/{object}");
        let key = of_target(KeyScope::default(), Scheme::Https, &QueryPolicy::All, b"www.example.com", path.as_bytes());
        let found = cache.storage().lookup(&key, &trace).await.expect("a lookup");
        if let Some((_, mut hit)) = found {
            while hit.read_body().await.expect("a body").is_some() {}
            cost.hits += 1;
        } else {
            cost.missed += length_of(object) as u64;
            fill(cache.storage(), &key, length_of(object)).await;
        }
    }
    cache.close(Duration::from_secs(60));
    let counts = cache.disks().remove(0).counts;
    assert_eq!((counts.dropped_queue, counts.io_errors), (0, 0), "{counts:?}");
    cost.written = counts.written_bytes;
    cache.retire();
    cost
}

/// With headers, footers, and what is written anew, less than a third of a byte for each byte missed; and the disk is of use all the same.
#[tokio::test]
async fn what_is_asked_for_once_is_not_written() {
    let (second, all) = (run(Admit::SecondHit).await, run(Admit::All).await);
    println!(
        "second_hit: {} hits, {} bytes missed, {} written; all: {} hits, {} bytes missed, {} written",
        second.hits, second.missed, second.written, all.hits, all.missed, all.written
    );
    assert!(10 * second.written <= 3 * second.missed, "{} written for {} missed", second.written, second.missed);
    assert!(second.written > 0 && second.hits > REQUESTS / 4, "{} hits", second.hits);
    // The measure measures: where everything is admitted, everything is written.
    assert!(10 * all.written >= 9 * all.missed, "{} written for {} missed", all.written, all.missed);
}
