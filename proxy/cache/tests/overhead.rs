//! What a stored response takes of memory beside its key, its header's text and its body. The only test in its binary, because it counts
//! what the whole process has allocated.

#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::executor::block_on;
use pingora_cache::trace::Span;
use pingora_cache::{CacheKey, HttpCache, RespCacheable, Storage};
use pingora_http::{RequestHeader, ResponseHeader};
use selvedge_cache::{Cache, CacheCtx, CacheOptions, KeyScope, Scheme};

const OBJECTS: usize = 200_000;
const KEY: usize = 16;
const BODY: usize = 100;
const LIMIT: usize = 256;
const FIELDS: [(&str, &str); 8] = [
    ("date", "Sun, 06 Nov 1994 08:49:37 GMT"),
    ("content-type", "text/html; charset=utf-8"),
    ("content-length", "100"),
    ("cache-control", "max-age=3600"),
    ("etag", "\"33a64df551425fcc55e4d42a148795d9f25f89d4\""),
    ("last-modified", "Wed, 21 Oct 2015 07:28:00 GMT"),
    ("x-request-id", "4fc1a2ce"),
    ("server", "origin"),
];

struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

/// What an allocator with classes of sizes an eighth apart makes of a size, as those in use do.
fn rounded(size: usize) -> usize {
    let step = (size.next_power_of_two() / 16).max(16);
    size.next_multiple_of(step)
}

// SAFETY: it is the system's allocator, and counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(rounded(layout.size()), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn request(number: usize) -> RequestHeader {
    let path = format!("/object/{number}");
    let mut request = RequestHeader::build("GET", path.as_bytes(), None).expect("a request");
    request.insert_header("host", "www.example.com").expect("a host");
    request
}

fn key(cache: &'static Cache, number: usize, ctx: &mut CacheCtx, state: &mut HttpCache) -> CacheKey {
    let request = request(number);
    cache.enable(state, &request, KeyScope::default(), Scheme::Https, &Arc::default(), ctx);
    cache.key(&request, ctx).expect("the cache is on")
}

async fn fill(cache: &'static Cache, number: usize, variant: Option<u8>) {
    let (mut ctx, mut state) = (CacheCtx::default(), HttpCache::new());
    let (request, mut key) = (request(number), key(cache, number, &mut ctx, &mut state));
    if let Some(variant) = variant {
        key.set_variance_key([variant; 16]);
    }
    cache.before_upstream(&state, &request, &mut ctx);
    let mut header = ResponseHeader::build(200, None).expect("a header");
    for (name, value) in FIELDS {
        header.append_header(name, value).expect("a field");
    }
    let decision = cache.response_decision(&state, &request, &header, &mut ctx);
    let meta = if let RespCacheable::Cacheable(meta) = decision { Some(meta) } else { None };
    let (meta, trace) = (meta.expect("it may be stored"), Span::inactive().handle());
    let mut writer = cache.memory().get_miss_handler(&key, &meta, &trace).await.expect("a writer");
    writer.write_body(Bytes::from(vec![1; BODY]), true).await.expect("written");
    writer.finish().await.expect("finished");
}

async fn hit(cache: &'static Cache, number: usize) {
    let key = key(cache, number, &mut CacheCtx::default(), &mut HttpCache::new());
    let trace = Span::inactive().handle();
    let (_, mut reader) = cache.memory().lookup(&key, &trace).await.expect("a lookup").expect("it is stored");
    assert_eq!(reader.read_body().await.expect("a read").map(|body| body.len()), Some(BODY));
}

/// A cache with a budget that so many objects just need, so that decoded ones have no more room than their sixteenth of it.
struct Filled {
    cache: &'static Cache,
    /// What was allocated before.
    empty: usize,
}

impl Filled {
    fn new() -> Self {
        let budget = OBJECTS * (bytes() + LIMIT) / 15 * 16;
        let cache = Cache::leak(CacheOptions { memory_size: budget as u64, ..CacheOptions::default() });
        Self { cache, empty: ALLOCATED.load(Ordering::Relaxed) }
    }

    fn check(&self, when: &str) {
        self.cache.memory().settle();
        let usage = self.cache.usage();
        assert_eq!(usage.objects, OBJECTS as u64, "all are there");
        let each = (ALLOCATED.load(Ordering::Relaxed) - self.empty) / OBJECTS;
        let counted = usize::try_from(usage.bytes).expect("a size") / OBJECTS;
        let beside = each - bytes();
        assert!(beside <= LIMIT, "{when}: {each} bytes each, {beside} beside key, header and body");
        assert!(counted.abs_diff(each) <= each / 20, "{when}: counted as {counted}, they take {each}");
    }
}

/// Key, header and body.
fn bytes() -> usize {
    KEY + FIELDS.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() + BODY
}

#[test]
fn an_object_takes_little_beside_its_bytes() {
    let filled = Filled::new();
    (0..OBJECTS).for_each(|number| block_on(fill(filled.cache, number, None)));
    filled.check("stored");
    for _ in 0..3 {
        (0..OBJECTS / 10).for_each(|number| block_on(hit(filled.cache, number)));
    }
    filled.check("with as many decoded as may be");

    let held = ALLOCATED.load(Ordering::Relaxed) - filled.empty;
    filled.cache.retire();
    let left = ALLOCATED.load(Ordering::Relaxed) - filled.empty;
    assert!(left < held / 50, "{left} of {held} bytes are not given back");

    // Each URL has a first response, and one more variant.
    let filled = Filled::new();
    for number in 0..OBJECTS / 2 {
        block_on(fill(filled.cache, number, None));
        block_on(fill(filled.cache, number, Some(1)));
    }
    filled.check("half of them variants");
}
