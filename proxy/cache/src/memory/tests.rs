//! The tier as Pingora drives it: through its `Storage` trait.

use futures::FutureExt;
use http::header::{CONTENT_LENGTH, ETAG, SET_COOKIE};
use pingora_cache::trace::{Span, SpanHandle};
use pingora_cache::{HitHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage};
use pingora_error::Result;
use pingora_http::ResponseHeader;

use super::*;
use crate::key::{KeyScope, Scheme};
use crate::purge::{Scope, Tags};
use crate::rules::QueryPolicy;

mod layers;

const MIB: u64 = 1 << 20;

fn tier(memory_size: u64, max_object: u64) -> &'static MemoryTier {
    let options = CacheOptions { memory_size, max_object, ..CacheOptions::default() };
    let hit_for_miss = Box::leak(Box::new(HitForMiss::new()));
    Box::leak(Box::new(MemoryTier::new(options, hit_for_miss, Box::leak(Box::default()))))
}

fn span() -> SpanHandle {
    Span::inactive().handle()
}

fn key(path: &str) -> CacheKey {
    key::of_target(KeyScope::default(), Scheme::Http, &QueryPolicy::All, b"a.example", path.as_bytes())
}

/// Those of `/a`, fetched from now on.
fn marks(tier: &MemoryTier) -> Marks {
    let (epoch, query) = (tier.purges.clock().fetch(), QueryPolicy::All);
    Marks::new(epoch, Scheme::Http, &query, b"a.example", b"/a", &Tags::default())
}

fn header(fields: &[(&'static str, &'static str)]) -> ResponseHeader {
    let mut header = ResponseHeader::build(200, None).expect("a header");
    for (name, value) in fields {
        header.append_header(*name, *value).expect("a field");
    }
    header
}

fn meta_of(header: ResponseHeader) -> CacheMeta {
    let now = SystemTime::now();
    CacheMeta::new(now + Duration::from_secs(60), now, 5, 7, header)
}

fn meta() -> CacheMeta {
    meta_of(header(&[]))
}

async fn fill(tier: &'static MemoryTier, key: &CacheKey, meta: &CacheMeta, chunks: &[&'static str]) {
    let mut writer = tier.get_miss_handler(key, meta, &span()).await.expect("a writer");
    let _own = own_reader(tier, key, &writer).await; // Pingora always has one
    for chunk in chunks {
        writer.write_body(Bytes::from_static(chunk.as_bytes()), false).await.expect("written");
    }
    writer.finish().await.expect("finished");
}

async fn open(tier: &'static MemoryTier, key: &CacheKey) -> Option<(CacheMeta, HitHandler)> {
    tier.lookup(key, &span()).await.expect("a lookup")
}

async fn own_reader(tier: &'static MemoryTier, key: &CacheKey, writer: &MissHandler) -> HitHandler {
    let found = tier.lookup_streaming_write(key, writer.streaming_write_tag(), &span()).await.expect("a lookup");
    found.expect("the fill's own reader").1
}

/// The whole body, or the error it ends with.
async fn drain(reader: &mut HitHandler) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    while let Some(chunk) = reader.read_body().await? {
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

async fn body(tier: &'static MemoryTier, key: &CacheKey) -> Option<String> {
    let (_, mut reader) = open(tier, key).await?;
    let body = drain(&mut reader).await.expect("a body");
    Some(String::from_utf8(body).expect("text"))
}

fn kind(reader: &HitHandler) -> &Reader {
    reader.as_any().downcast_ref().expect("one of ours")
}

#[tokio::test]
async fn what_was_stored_comes_back() {
    let tier = tier(MIB, MIB);
    assert!(open(tier, &key("/a")).await.is_none());

    let mut stored = meta_of(header(&[("etag", "\"1\""), ("x-a", "1"), ("x-a", "2")]));
    stored.set_variance([7; 16]);
    stored.set_epoch_override(SystemTime::UNIX_EPOCH);
    fill(tier, &key("/a"), &stored, &["hello ", "world"]).await;

    let (found, mut reader) = open(tier, &key("/a")).await.expect("a hit");
    assert_eq!(drain(&mut reader).await.expect("a body"), b"hello world");
    assert_eq!(found.headers(), stored.headers());
    assert_eq!(found.variance(), stored.variance());
    assert_eq!(found.fresh_until(), stored.fresh_until());
    assert_eq!(found.epoch(), SystemTime::UNIX_EPOCH);
    assert_eq!((found.stale_while_revalidate_sec(), found.stale_if_error_sec()), (5, 7));
    assert!(open(tier, &key("/b")).await.is_none());
    assert_eq!(tier.usage().fills, 0);
}

#[tokio::test]
async fn a_hit_shares_the_stored_bytes() {
    let tier = tier(64 * MIB, 64 * MIB);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    writer.write_body(Bytes::from(vec![1; 1 << 20]), true).await.expect("written");
    writer.finish().await.expect("finished");

    let mut addresses = Vec::new();
    for _ in 0..2 {
        let (_, mut reader) = open(tier, &key("/a")).await.expect("a hit");
        addresses.push(reader.read_body().await.expect("a read").expect("a chunk").as_ptr());
    }
    assert_eq!(addresses[0], addresses[1]);
}

#[tokio::test]
async fn small_chunks_are_joined_once() {
    let tier = tier(MIB, MIB);
    fill(tier, &key("/a"), &meta(), &["a"; 1000]).await;
    let (_, mut reader) = open(tier, &key("/a")).await.expect("a hit");
    assert_eq!(reader.read_body().await.expect("a read").expect("a chunk").len(), 1000);
}

#[tokio::test]
async fn readers_follow_a_fill_while_it_streams() {
    let tier = tier(MIB, MIB);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let mut own = own_reader(tier, &key("/a"), &writer).await;
    let (_, mut early) = open(tier, &key("/a")).await.expect("the fill");
    assert!(early.read_body().now_or_never().is_none(), "nothing is there yet");

    writer.write_body(Bytes::from_static(b"one "), false).await.expect("written");
    assert_eq!(early.read_body().await.expect("a read").expect("a chunk"), "one ");
    let (_, mut late) = open(tier, &key("/a")).await.expect("the fill");
    assert!(kind(&late).is_filling());

    let waiting = tokio::spawn(async move { drain(&mut early).await });
    writer.write_body(Bytes::from_static(b"two"), true).await.expect("written");
    writer.finish().await.expect("finished");
    assert_eq!(waiting.await.expect("no panic").expect("a body"), b"two");
    assert_eq!(drain(&mut late).await.expect("a body"), b"one two");
    assert_eq!(drain(&mut own).await.expect("a body"), b"one two");

    let (_, after) = open(tier, &key("/a")).await.expect("the object");
    assert!(!kind(&after).is_filling());
}

#[tokio::test]
async fn a_writer_that_vanishes_fails_every_reader() {
    let tier = tier(MIB, MIB);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let mut own = own_reader(tier, &key("/a"), &writer).await;
    let (_, mut other) = open(tier, &key("/a")).await.expect("the fill");
    writer.write_body(Bytes::from_static(b"half"), false).await.expect("written");
    let waiting = tokio::spawn(async move { drain(&mut other).await });
    drop(writer);

    assert!(drain(&mut own).await.is_err());
    assert!(waiting.await.expect("no panic").is_err());
    assert!(open(tier, &key("/a")).await.is_none());
    assert_eq!(tier.usage().fills, 0);
}

/// RFC 9111, 3.3: an incomplete response is not stored as a complete one.
#[tokio::test]
async fn a_body_of_the_wrong_length_is_no_body() {
    let tier = tier(MIB, MIB);
    let promising = meta_of(header(&[("content-length", "10")]));
    let mut writer = tier.get_miss_handler(&key("/a"), &promising, &span()).await.expect("a writer");
    let (_, mut reader) = open(tier, &key("/a")).await.expect("the fill");
    writer.write_body(Bytes::from_static(b"short"), false).await.expect("written");
    assert!(writer.finish().await.is_err());
    assert!(drain(&mut reader).await.is_err());
    assert!(open(tier, &key("/a")).await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_fill_that_stalls_is_given_up_by_its_readers() {
    let tier = tier(MIB, MIB);
    let writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let (_, mut reader) = open(tier, &key("/a")).await.expect("the fill");
    assert!(drain(&mut reader).await.is_err());
    drop(writer);
}

#[tokio::test(start_paused = true)]
async fn nobody_joins_a_fill_that_does_not_move() {
    let tier = tier(MIB, MIB);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    tokio::time::advance(Duration::from_secs(4)).await;
    assert!(open(tier, &key("/a")).await.is_some());
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(open(tier, &key("/a")).await.is_none());

    writer.write_body(Bytes::from_static(b"body"), false).await.expect("written");
    assert!(open(tier, &key("/a")).await.is_some(), "it moves again");
    writer.finish().await.expect("finished");
    assert_eq!(body(tier, &key("/a")).await.as_deref(), Some("body"));
}

#[tokio::test]
async fn an_object_past_the_limit_reaches_its_readers_and_is_not_stored() {
    let tier = tier(MIB, 8);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let mut own = own_reader(tier, &key("/a"), &writer).await;
    let (_, mut joined) = open(tier, &key("/a")).await.expect("the fill");
    for chunk in ["12345", "67890", "abcde"] {
        writer.write_body(Bytes::from_static(chunk.as_bytes()), false).await.expect("the transfer goes on");
    }
    assert!(open(tier, &key("/a")).await.is_none(), "too late to join");
    assert!(tier.hit_for_miss.was_too_large(key::primary_slot(&key("/a"))));

    assert_eq!(own.read_body().await.expect("a read").expect("a chunk"), "12345");
    assert_eq!(tier.usage().fill_bytes, 15, "the other reader still needs them");
    assert_eq!(joined.read_body().await.expect("a read").expect("a chunk"), "12345");
    assert_eq!(tier.usage().fill_bytes, 10, "what both have read is let go");

    assert_eq!(writer.finish().await.map(|_| ()).map_err(|_| ()), Ok(()));
    assert_eq!(drain(&mut own).await.expect("a body"), b"67890abcde");
    assert_eq!(drain(&mut joined).await.expect("a body"), b"67890abcde");
    assert!(open(tier, &key("/a")).await.is_none());
    drop((own, joined));
    assert_eq!(tier.usage().fill_bytes, 0);
}

#[tokio::test]
async fn an_unstored_body_without_readers_ends_the_transfer() {
    let tier = tier(MIB, 2);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    assert!(writer.write_body(Bytes::from_static(b"12345"), false).await.is_err());
}

#[tokio::test]
async fn fills_beyond_the_memory_pass_through() {
    let tier = tier(16, MIB);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let mut own = own_reader(tier, &key("/a"), &writer).await;
    for _ in 0..3 {
        writer.write_body(Bytes::from_static(b"0123456789"), false).await.expect("written");
    }
    assert!(open(tier, &key("/a")).await.is_none());
    assert!(!tier.hit_for_miss.was_too_large(key::primary_slot(&key("/a"))), "the object is not to blame");
    writer.finish().await.expect("finished");
    assert_eq!(drain(&mut own).await.expect("a body").len(), 30);
}

/// RFC 9110, 14: ranges on stored bodies, across chunks.
#[tokio::test]
async fn seeking_in_a_complete_object() {
    let tier = tier(64 * MIB, 64 * MIB);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let whole: Vec<u8> = (0..1_000_000_u32).map(|at| u8::try_from(at % 251).expect("a byte")).collect();
    for chunk in whole.chunks(300_000) {
        writer.write_body(Bytes::copy_from_slice(chunk), false).await.expect("written");
    }
    writer.finish().await.expect("finished");

    let (_, mut reader) = open(tier, &key("/a")).await.expect("a hit");
    assert!(reader.can_seek());
    for (start, end) in [(0, 1), (299_999, 300_001), (5, 900_000), (999_999, 1_000_000), (10, 20), (999_990, 2_000_000)]
    {
        reader.seek(start, Some(end)).expect("a seek");
        assert_eq!(drain(&mut reader).await.expect("a body"), whole[start..end.min(whole.len())], "{start}..{end}");
    }
    reader.seek(999_000, None).expect("a seek");
    assert_eq!(drain(&mut reader).await.expect("a body"), whole[999_000..]);
    assert!(reader.seek(1_000_000, None).is_err());
}

#[tokio::test]
async fn seeking_in_a_fill_waits_for_the_offset() {
    let tier = tier(MIB, MIB);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let (_, mut reader) = open(tier, &key("/a")).await.expect("the fill");
    assert!(reader.can_seek());
    reader.seek(6, Some(9)).expect("a seek");
    writer.write_body(Bytes::from_static(b"0123"), false).await.expect("written");
    assert!(reader.read_body().now_or_never().is_none(), "the offset has not come yet");

    writer.write_body(Bytes::from_static(b"4567"), false).await.expect("written");
    assert_eq!(reader.read_body().await.expect("a read").expect("a chunk"), "67");
    writer.write_body(Bytes::from_static(b"89"), true).await.expect("written");
    assert_eq!(reader.read_body().await.expect("a read").expect("a chunk"), "8");
    assert!(reader.read_body().await.expect("a read").is_none());

    reader.seek(20, Some(30)).expect("a seek");
    assert!(reader.read_body().await.is_err(), "beyond the body");
}

/// RFC 9111, 4.3.4: a validation renews the metadata and keeps the body.
#[tokio::test]
async fn update_meta_keeps_the_body() {
    let tier = tier(MIB, MIB);
    fill(tier, &key("/a"), &meta_of(header(&[("etag", "\"1\"")])), &["body"]).await;
    let generation = kind(&open(tier, &key("/a")).await.expect("a hit").1).generation();

    let mut new = meta_of(header(&[("etag", "\"2\"")]));
    new.extensions_mut().insert(FillNotes::new(marks(tier), generation, Vec::new()));
    assert!(tier.update_meta(&key("/a"), &new, &span()).await.expect("an update"));
    let (found, mut reader) = open(tier, &key("/a")).await.expect("a hit");
    assert_eq!(found.headers()[ETAG], "\"2\"");
    assert_eq!(drain(&mut reader).await.expect("a body"), b"body");
    assert!(!tier.update_meta(&key("/b"), &new, &span()).await.expect("an update"), "nothing to update");
}

#[tokio::test]
async fn a_late_304_leaves_the_object_that_replaced_its_own() {
    let tier = tier(MIB, MIB);
    fill(tier, &key("/a"), &meta_of(header(&[("etag", "\"1\"")])), &["old"]).await;
    let generation = kind(&open(tier, &key("/a")).await.expect("a hit").1).generation();
    fill(tier, &key("/a"), &meta_of(header(&[("etag", "\"2\"")])), &["new"]).await;

    let mut late = meta_of(header(&[("etag", "\"1\"")]));
    late.extensions_mut().insert(FillNotes::new(marks(tier), generation, Vec::new()));
    assert!(!tier.update_meta(&key("/a"), &late, &span()).await.expect("an update"));
    assert_eq!(open(tier, &key("/a")).await.expect("a hit").0.headers()[ETAG], "\"2\"");
}

/// RFC 9111, 5.2.2.4: fields named by `no-cache` are not reused.
#[tokio::test]
async fn withheld_fields_are_not_reused() {
    let tier = tier(MIB, MIB);
    let mut meta = meta_of(header(&[("set-cookie", "a=b"), ("etag", "\"1\"")]));
    meta.extensions_mut().insert(FillNotes::new(marks(tier), None, vec![SET_COOKIE]));
    fill(tier, &key("/a"), &meta, &["body"]).await;
    let (found, _) = open(tier, &key("/a")).await.expect("a hit");
    assert!(!found.headers().contains_key(SET_COOKIE) && found.headers().contains_key(ETAG));
    assert!(!found.headers().contains_key(CONTENT_LENGTH));
}

#[tokio::test]
async fn purge_removes_and_expire_marks_stale() {
    let tier = tier(MIB, MIB);
    fill(tier, &key("/a"), &meta(), &["body"]).await;
    let compact = key("/a").to_compact();
    let target = PurgeTarget::Active(&compact);

    assert_eq!(tier.expire(target, &span()).await.expect("an expiry"), PurgeOutcome::Expired);
    let (found, mut reader) = open(tier, &key("/a")).await.expect("still there");
    assert!(!found.is_fresh(SystemTime::now()) && found.serve_stale_while_revalidate(SystemTime::now()));
    assert_eq!(drain(&mut reader).await.expect("a body"), b"body");

    let purge = || tier.purge(target, PurgeType::Invalidation, &SPAN);
    assert_eq!(purge().await.expect("a purge"), PurgeOutcome::Purged(None));
    assert!(open(tier, &key("/a")).await.is_none());
    assert_eq!(purge().await.expect("a purge"), PurgeOutcome::NotFound);
    assert_eq!(tier.expire(target, &span()).await.expect("an expiry"), PurgeOutcome::NotFound);
}

static SPAN: std::sync::LazyLock<SpanHandle> = std::sync::LazyLock::new(span);

#[tokio::test]
async fn a_purge_reaches_fills_under_way() {
    let tier = tier(MIB, MIB);
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let (_, mut reader) = open(tier, &key("/a")).await.expect("the fill");
    writer.write_body(Bytes::from_static(b"old"), false).await.expect("written");

    assert_eq!(tier.purge_family(key::primary_slot(&key("/a")), Purge::Hard), 1);
    assert!(open(tier, &key("/a")).await.is_none(), "nobody joins what was purged");
    writer.write_body(Bytes::from_static(b" body"), true).await.expect("written");
    writer.finish().await.expect("finished");
    assert_eq!(drain(&mut reader).await.expect("a body"), b"old body", "those who read already get it all");
    assert!(open(tier, &key("/a")).await.is_none(), "and it is not stored");
}

#[tokio::test]
async fn a_response_asked_for_before_a_purge_is_not_stored_after_it() {
    let tier = tier(MIB, MIB);
    let mut asked_before = meta();
    asked_before.extensions_mut().insert(FillNotes::new(marks(tier), None, Vec::new()));
    tier.purge_family(key::primary_slot(&key("/a")), Purge::Hard);
    fill(tier, &key("/a"), &asked_before, &["old"]).await;
    assert!(open(tier, &key("/a")).await.is_none());

    let mut asked_after = meta();
    asked_after.extensions_mut().insert(FillNotes::new(marks(tier), None, Vec::new()));
    fill(tier, &key("/a"), &asked_after, &["new"]).await;
    assert_eq!(body(tier, &key("/a")).await.as_deref(), Some("new"));

    fill(tier, &key("/b"), &asked_after, &["b"]).await;
    tier.purges.purge(&[Scope::everything()], Purge::Hard);
    tier.clear();
    fill(tier, &key("/c"), &asked_after, &["c"]).await;
    for path in ["/a", "/b", "/c"] {
        assert!(open(tier, &key(path)).await.is_none(), "{path}");
    }
}

/// Through the table of purges, which knows nothing of slots.
#[tokio::test]
async fn what_a_purge_reaches_is_not_handed_out() {
    let with_marks = |tier: &MemoryTier| {
        let mut meta = meta();
        meta.extensions_mut().insert(FillNotes::new(marks(tier), None, Vec::new()));
        meta
    };
    let host = [Scope::host("a.example")];

    let (tier, key) = (tier(MIB, MIB), key("/a"));
    fill(tier, &key, &with_marks(tier), &["body"]).await;
    tier.purges.purge(&[Scope::host("b.example")], Purge::Hard);
    assert!(open(tier, &key).await.is_some_and(|(meta, _)| meta.is_fresh(SystemTime::now())));
    tier.purges.purge(&host, Purge::Soft);
    let stale = open(tier, &key).await.expect("stale").0;
    assert!(!stale.is_fresh(SystemTime::now()) && stale.serve_stale_while_revalidate(SystemTime::now()));

    // What the origin says of it afterwards makes it fresh again, unless it was purged hard meanwhile.
    assert!(tier.update_meta(&key, &with_marks(tier), &span()).await.expect("an update"));
    assert!(open(tier, &key).await.is_some_and(|(meta, _)| meta.is_fresh(SystemTime::now())));
    tier.purges.purge(&host, Purge::Hard);
    assert!(!tier.update_meta(&key, &with_marks(tier), &span()).await.expect("an update"));
    assert!(open(tier, &key).await.is_none());
    tier.settle();
    assert_eq!(tier.usage().objects, 0, "it is let go of when somebody asks");
}

#[tokio::test]
async fn a_fill_that_a_purge_reaches_is_neither_joined_nor_stored() {
    for purge in [Purge::Hard, Purge::Soft] {
        let tier = tier(MIB, MIB);
        let mut meta = meta();
        meta.extensions_mut().insert(FillNotes::new(marks(tier), None, Vec::new()));
        let mut writer = tier.get_miss_handler(&key("/a"), &meta, &span()).await.expect("a writer");
        let mut own = own_reader(tier, &key("/a"), &writer).await;
        let (_, mut early) = open(tier, &key("/a")).await.expect("the fill");
        writer.write_body(Bytes::from_static(b"old"), false).await.expect("written");

        tier.purges.purge(&[Scope::prefix("a.example", "/a")], purge);
        assert!(open(tier, &key("/a")).await.is_none());
        writer.write_body(Bytes::from_static(b" body"), true).await.expect("written");
        writer.finish().await.expect("finished");
        for reader in [&mut own, &mut early] {
            assert_eq!(drain(reader).await.expect("a body"), b"old body", "those who read already get it all");
        }
        let fresh = open(tier, &key("/a")).await.map(|(meta, _)| meta.is_fresh(SystemTime::now()));
        assert_eq!(fresh, (purge == Purge::Soft).then_some(false));
    }
}

#[tokio::test]
async fn a_purge_takes_all_variants() {
    let tier = tier(MIB, MIB);
    let variant = |variance: u8| {
        let mut key = key("/a");
        key.set_variance_key([variance; 16]);
        key
    };
    for purge in [Purge::Soft, Purge::Hard] {
        fill(tier, &key("/a"), &meta(), &["primary"]).await;
        fill(tier, &variant(1), &meta(), &["one"]).await;
        fill(tier, &variant(2), &meta(), &["two"]).await;
        assert_eq!(tier.purge_family(key::primary_slot(&key("/a")), purge), 3);
        for key in [key("/a"), variant(1), variant(2)] {
            let fresh = open(tier, &key).await.map(|(meta, _)| meta.is_fresh(SystemTime::now()));
            assert_eq!(fresh, if purge == Purge::Soft { Some(false) } else { None });
        }
    }
    tier.settle();
    assert!(!tier.objects.knows_variants(), "the index forgets with the objects");
}

#[tokio::test]
async fn the_newer_of_two_fills_is_joined() {
    let tier = tier(MIB, MIB);
    let mut old = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let mut new = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    let mut own = own_reader(tier, &key("/a"), &old).await;
    let (_, mut joined) = open(tier, &key("/a")).await.expect("a fill");
    old.write_body(Bytes::from_static(b"old"), true).await.expect("written");
    new.write_body(Bytes::from_static(b"new"), true).await.expect("written");
    assert_eq!(drain(&mut own).await.expect("a body"), b"old");
    assert_eq!(drain(&mut joined).await.expect("a body"), b"new");
    old.finish().await.expect("finished");
    new.finish().await.expect("finished");
    assert_eq!(body(tier, &key("/a")).await.as_deref(), Some("new"));
}
