//! What the store of responses costs, measured at scale: `cargo run --release -p selvedge-cache --example store_figures -- [OBJECTS]`.
//!
//! - memory for each object in memory, at a tenth of so many small objects;
//! - memory for each object on disk, at so many (default 1,000,000; the published figures are of 10,000,000);
//! - how long the next start takes, after a clean end and after kill -9 (the writer is this program again);
//! - bytes written for each byte missed, on a trace of a Zipf part and objects that are asked for once.
//!
//! Not among the benches: each figure is of one long run, and nothing here needs more than this crate.

#![allow(clippy::print_stdout, reason = "figures are what it is for")]

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use futures::executor::block_on;
use pingora_cache::trace::Span;
use pingora_cache::{CacheMeta, Storage};
use pingora_http::ResponseHeader;
use selvedge_cache::disk::{Admit, DiskOptions, Limits, Store, StoreOptions};
use selvedge_cache::key::of_target;
use selvedge_cache::{Cache, CacheOptions, DiskTier, KeyScope, QueryPolicy, Scheme};

/// Tells the child where to write, and how much.
const CHILD: &str = "SELVEDGE_BENCH_STORE";
const KEY: usize = 16;
const BODY: usize = 100;
const META: usize = 150;

fn main() -> Result<()> {
    if let Some(folder) = env::var_os(CHILD) {
        return write_and_wait(Path::new(&folder));
    }
    let objects = env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(1_000_000);
    in_memory(objects / 10)?;
    on_disk(objects)?;
    amplification()
}

// ---- memory ----

fn in_memory(objects: u64) -> Result<()> {
    let cache = Cache::leak(CacheOptions { memory_size: 64 << 30, ..CacheOptions::default() });
    let before = resident()?;
    for number in 0..objects {
        block_on(fill(cache.memory(), &format!("/object/{number}"), &[Bytes::from(vec![1; BODY])]))?;
    }
    cache.memory().settle();
    let each = resident()?.saturating_sub(before) / objects;
    let fields = header(BODY)?;
    let text: usize = fields.headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let beside = each.saturating_sub((KEY + text + BODY) as u64);
    println!(
        "memory: {objects} objects with {text} bytes of header and {BODY} of body take {each} bytes each, {beside} beside these and the key"
    );
    println!("memory: they are counted as {} bytes each", cache.usage().bytes / objects);
    cache.retire();
    Ok(())
}

fn header(length: usize) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build(200, Some(3))?;
    header.insert_header("Content-Type", "text/plain")?;
    header.insert_header("Content-Length", length.to_string())?;
    header.insert_header("Cache-Control", "max-age=3600")?;
    Ok(header)
}

/// Fetches a response into the store, as Pingora does on a miss.
async fn fill(storage: &'static (dyn Storage + Sync), path: &str, body: &[Bytes]) -> Result<()> {
    let key = of_target(KeyScope::default(), Scheme::Https, &QueryPolicy::All, b"www.example.com", path.as_bytes());
    let length: usize = body.iter().map(Bytes::len).sum();
    let now = SystemTime::now();
    let meta = CacheMeta::new(now + Duration::from_secs(3600), now, 0, 0, header(length)?);

    let trace = Span::inactive().handle();
    let mut writer = storage.get_miss_handler(&key, &meta, &trace).await?;
    let tag = writer.streaming_write_tag().map(<[u8]>::to_vec);
    let own = storage.lookup_streaming_write(&key, tag.as_deref(), &trace).await?;
    for chunk in body {
        writer.write_body(chunk.clone(), false).await?;
    }
    writer.finish().await?;
    drop(own);
    Ok(())
}

fn resident() -> Result<u64> {
    let pages = std::fs::read_to_string("/proc/self/statm")?;
    let resident: u64 = pages.split(' ').nth(1).context("resident pages")?.parse()?;
    Ok(resident * 4096)
}

// ---- disk ----

fn options(folder: &Path, size: u64) -> StoreOptions {
    let limits = Limits { queue: 256 << 20, ..Limits::default() };
    StoreOptions { disks: vec![DiskOptions::at(folder, size)], admit: Admit::All, write_budget: 0, limits }
}

fn key(number: u64) -> u128 {
    let mixed = u128::from(number.wrapping_mul(0x9e37_79b9_7f4a_7c15)) << 64 | u128::from(number);
    mixed.wrapping_mul(0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645)
}

fn write(store: &Store, objects: u64) -> Result<()> {
    let (body, meta) = (Bytes::from(vec![7; BODY]), Bytes::from(vec![8; META]));
    for number in 0..objects {
        // What the queue has no room for is dropped: then wait, and write it once more.
        while !put(store, number, &body, &meta) {
            ensure!(block_on(store.sync()), "the disk fails");
        }
    }
    ensure!(block_on(store.sync()), "the disk fails");
    Ok(())
}

fn put(store: &Store, number: u64, body: &Bytes, meta: &Bytes) -> bool {
    let Some(mut writing) = store.begin(key(number), key(number)) else { return false };
    writing.push(body.clone());
    writing.commit(meta.clone(), u32::MAX)
}

fn on_disk(objects: u64) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let began = Instant::now();
    let store = Store::open(options(folder.path(), SIZE))?;
    store.wait(Duration::from_mins(5));
    write(&store, objects)?;
    let usage = store.usage().remove(0);
    println!(
        "disk: {} objects written in {:.1?}: {} bytes of memory each, {} bytes of disk each",
        usage.objects,
        began.elapsed(),
        usage.index_bytes / usage.objects.max(1),
        usage.bytes / usage.objects.max(1),
    );
    let began = Instant::now();
    store.close_within(Duration::from_mins(5));
    println!("disk: closed in {:.1?}", began.elapsed());
    drop(store);
    opened("a clean end", folder.path(), objects)?;

    let folder = tempfile::tempdir()?;
    let mut child = Command::new(env::current_exe()?)
        .env(CHILD, folder.path())
        .arg(objects.to_string())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let out = child.stdout.take().context("its output")?;
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
    child.kill()?;
    child.wait()?;
    ensure!(line == "written\n", "the child said {line:?}");
    opened("kill -9", folder.path(), objects)
}

const SIZE: u64 = 16 << 30;

/// The child of the last part: writes, says so, and waits to be killed.
fn write_and_wait(folder: &Path) -> Result<()> {
    let objects = env::args().skip(1).find_map(|argument| argument.parse().ok()).context("how many")?;
    let store = Store::open(options(folder, SIZE))?;
    store.wait(Duration::from_mins(5));
    write(&store, objects)?;
    println!("written");
    loop {
        std::thread::park();
    }
}

fn opened(after: &str, folder: &Path, objects: u64) -> Result<()> {
    let began = Instant::now();
    let store = Store::open(options(folder, SIZE))?;
    let listening = began.elapsed();
    store.wait(Duration::from_mins(5));
    let loaded = began.elapsed();
    let usage = store.usage().remove(0);
    println!(
        "disk: after {after}: {} of {objects} objects; opened in {listening:.1?}, all found after {loaded:.1?}",
        usage.objects
    );
    ensure!(store.has(key(objects / 2), key(objects / 2)), "an object is missing");
    Ok(())
}

// ---- bytes written for each byte missed ----

/// Requests: half of them of a Zipf distribution over so many objects, half for objects that are never asked for again.
const REQUESTS: u64 = 200_000;
const POPULAR: f64 = 100_000.0;
const MEMORY: u64 = 64 << 20;

fn amplification() -> Result<()> {
    for (name, admit) in [("second_hit", Admit::SecondHit), ("all", Admit::All)] {
        let folder = tempfile::tempdir()?;
        let cache = Cache::leak(CacheOptions { memory_size: MEMORY, ..CacheOptions::default() });
        let limits = Limits { queue: 1 << 30, ..Limits::default() };
        let disks = vec![DiskOptions::at(folder.path(), 4 << 30)];
        cache.open_disks(DiskTier {
            store: StoreOptions { disks, admit, write_budget: 0, limits },
            max_object: 1 << 20,
        })?;
        cache.wait(Duration::from_mins(1));

        let trace = Span::inactive().handle();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let (mut random, mut missed, mut hits) = (88_172_645_463_325_252_u64, 0, 0);
        for number in 0..REQUESTS {
            let object = if next(&mut random).is_multiple_of(2) { popular(&mut random) } else { 1 << 40 | number };
            let path = format!("/object/{object}");
            let key =
                of_target(KeyScope::default(), Scheme::Https, &QueryPolicy::All, b"www.example.com", path.as_bytes());
            let storage = cache.storage();
            if let Some((_, mut hit)) = runtime.block_on(storage.lookup(&key, &trace))? {
                while runtime.block_on(hit.read_body())?.is_some() {}
                hits += 1;
            } else {
                let size = length_of(object);
                missed += size as u64;
                runtime.block_on(fill(storage, &path, &[Bytes::from(vec![1; size])]))?;
                // A trace comes faster here than any disk writes.
                while cache.disks().remove(0).queued_bytes > 256 << 20 {
                    std::thread::park_timeout(Duration::from_millis(1));
                }
            }
        }
        let written = {
            cache.close(Duration::from_mins(1));
            cache.disks().remove(0).counts
        };
        ensure!(written.dropped_queue == 0, "the queue was too small for a fair figure");
        println!(
            "disk: admit {name}: {hits} hits of {REQUESTS} requests, {} MB missed, {} MB written: {:.2} bytes written for each byte missed",
            missed / 1_000_000,
            written.written_bytes / 1_000_000,
            share(written.written_bytes, missed),
        );
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "megabytes")]
fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

fn next(random: &mut u64) -> u64 {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    *random
}

/// Zipf with exponent 1, by inversion: the rank's logarithm is spread evenly.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
fn popular(random: &mut u64) -> u64 {
    let even = (next(random) >> 11) as f64 / (1_u64 << 53) as f64;
    POPULAR.powf(even) as u64
}

/// From 1 to 128 KiB, most of them small.
fn length_of(object: u64) -> usize {
    let mut hash = object.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let class = next(&mut hash) % 8;
    1024 << usize::try_from(class).unwrap_or_default()
}
