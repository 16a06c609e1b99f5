//! What is kept, what has to go, and that packed and decoded objects are one.

use super::*;

async fn object(tier: &'static MemoryTier, key: &CacheKey) -> Arc<Object> {
    let (_, reader) = open(tier, key).await.expect("a hit");
    Arc::clone(kind(&reader).object().expect("in memory"))
}

#[tokio::test]
async fn the_second_hit_decodes_for_good() {
    let tier = tier(MIB, MIB);
    fill(tier, &key("/a"), &meta_of(header(&[("etag", "\"1\"")])), &["body"]).await;
    let (first, second, third) =
        (object(tier, &key("/a")).await, object(tier, &key("/a")).await, object(tier, &key("/a")).await);
    assert!(!Arc::ptr_eq(&first, &second) && Arc::ptr_eq(&second, &third));

    // What replaces it, as after a 304, is in as much demand.
    let mut new = meta_of(header(&[("etag", "\"2\"")]));
    new.extensions_mut().insert(FillNotes::new(marks(tier), None, Vec::new()));
    assert!(tier.update_meta(&key("/a"), &new, &span()).await.expect("an update"));
    let (fourth, fifth) = (object(tier, &key("/a")).await, object(tier, &key("/a")).await);
    assert!(Arc::ptr_eq(&fourth, &fifth) && !Arc::ptr_eq(&fourth, &second));
    assert_eq!(open(tier, &key("/a")).await.expect("a hit").0.headers()[ETAG], "\"2\"");

    // Gone from the one, it is gone from the other.
    tier.purge_family(key::primary_slot(&key("/a")), Purge::Hard);
    assert!(open(tier, &key("/a")).await.is_none());
    tier.settle();
    assert_eq!(tier.usage().bytes, 0);
}

/// A part of each is decoded when they are asked for, on top of what they take without.
#[tokio::test]
async fn the_byte_budget_holds_for_what_is_in_demand_as_well() {
    let tier = tier(MIB, MIB);
    for number in 0..4000 {
        fill(tier, &key(&format!("/{number}")), &meta(), &["body"]).await;
        for hit in 0..3 {
            assert_eq!(body(tier, &key(&format!("/{number}"))).await.as_deref(), Some("body"), "hit {hit} on {number}");
        }
    }
    tier.settle();
    let usage = tier.usage();
    assert!(usage.bytes <= MIB, "{usage:?}");
    assert!(usage.objects >= 2500, "little beside keys, headers and bodies: {usage:?}");
}

#[tokio::test]
async fn what_is_in_demand_survives_what_is_asked_for_once() {
    let tier = tier(MIB, MIB);
    let (hot, scanned) = (|number: usize| key(&format!("/hot/{number}")), |number: usize| key(&format!("/{number}")));
    for number in 0..100 {
        fill(tier, &hot(number), &meta(), &["body"]).await;
        assert!(body(tier, &hot(number)).await.is_some());
    }
    for number in 0..20_000 {
        fill(tier, &scanned(number), &meta(), &["once"]).await;
        if number % 20 == 0 {
            assert!(body(tier, &hot(number / 20 % 100)).await.is_some(), "lost after {number}");
        }
    }
    tier.settle();
    assert!(tier.usage().objects < 6000, "most of the others are gone: {:?}", tier.usage());
}

#[tokio::test]
async fn what_came_back_soon_after_it_had_to_go_stays() {
    let tier = tier(MIB, MIB);
    for number in 0..9000 {
        fill(tier, &key(&format!("/{number}")), &meta(), &["once"]).await;
    }
    let early: Vec<CacheKey> = (2000..2200).map(|number| key(&format!("/{number}"))).collect();
    for key in &early {
        assert!(body(tier, key).await.is_none(), "it had to go");
        fill(tier, key, &meta(), &["again"]).await;
    }
    for number in 9000..18_000 {
        fill(tier, &key(&format!("/{number}")), &meta(), &["once"]).await;
    }
    let mut kept = 0;
    for key in &early {
        kept += usize::from(body(tier, key).await.is_some());
    }
    assert!(kept > 150, "{kept} of 200");
}

#[tokio::test]
async fn what_is_too_large_for_the_budget_takes_its_predecessor_away() {
    let tier = tier(1 << 16, MIB);
    fill(tier, &key("/a"), &meta(), &["old"]).await;
    let mut writer = tier.get_miss_handler(&key("/a"), &meta(), &span()).await.expect("a writer");
    writer.write_body(Bytes::from(vec![0; 1 << 16]), true).await.expect("written");
    writer.finish().await.expect("finished");
    assert!(open(tier, &key("/a")).await.is_none());
    assert_eq!(tier.usage().objects, 0);
}

/// Decoded or not, the object at a slot is the last one that was put there.
#[test]
fn the_two_layers_agree_whoever_changes_what() {
    let tier = tier(MIB, MIB);
    let keys: Vec<CacheKey> = (0..4).map(|number| key(&format!("/{number}"))).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    let latest: Vec<AtomicU64> = keys.iter().map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    for (key, latest) in keys.iter().zip(&latest) {
                        // Read first: what was there before this is gone.
                        let least = latest.load(Ordering::Acquire);
                        let found = open(tier, key).now_or_never().expect("nothing to wait for");
                        let found = found.and_then(|(_, reader)| kind(&reader).generation());
                        assert!(found.is_none_or(|found| found >= least), "{found:?} after {least}");
                    }
                }
            });
        }
        for _ in 0..3000 {
            for (key, latest) in keys.iter().zip(&latest) {
                fill(tier, key, &meta(), &["body"]).now_or_never().expect("nothing to wait for");
                let stored = tier.objects.packed(key::slot(key)).expect("stored").generation();
                latest.store(stored, Ordering::Release);
                if stored.is_multiple_of(3) {
                    tier.purge_family(key::primary_slot(key), Purge::Hard);
                    latest.store(stored + 1, Ordering::Release);
                    assert!(open(tier, key).now_or_never().expect("nothing to wait for").is_none());
                }
            }
        }
        done.store(true, Ordering::Release);
    });
    tier.settle();
}

#[tokio::test]
async fn the_byte_budget_holds() {
    let tier = tier(MIB, MIB);
    for number in 0..400 {
        let mut writer = tier.get_miss_handler(&key(&format!("/{number}")), &meta(), &span()).await.expect("a writer");
        writer.write_body(Bytes::from(vec![0; 10_000]), true).await.expect("written");
        writer.finish().await.expect("finished");
    }
    tier.settle();
    let usage = tier.usage();
    assert!(usage.bytes <= MIB, "{usage:?}");
    assert!(usage.objects >= 80, "the budget is used: {usage:?}");
}
