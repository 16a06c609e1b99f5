//! What a hit pays for purges: one response with tags, judged against a table of none, some and many purges that do not reach it.

use std::hint::black_box;

use anyhow::{Result, ensure};
use criterion::{BenchmarkId, Criterion};
use http::HeaderMap;
use selvedge_cache::purge::{Marks, TagPolicy, Tags, Verdict};
use selvedge_cache::{Purge, Purges, QueryPolicy, Scheme, Scope};

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("cache/purge check");
    for tags in [0, 16, 128] {
        for entries in [0, 1_000, 100_000] {
            let purges = Purges::new();
            let marks = response(&purges, tags)?;
            let scopes: Vec<_> = (0..entries).map(|number| Scope::tag(&format!("other-{number}"))).collect();
            if !scopes.is_empty() {
                purges.purge(&scopes, Purge::Hard);
            }
            ensure!(purges.verdict(&marks) == Verdict::Live, "no purge reaches it");
            group.bench_function(BenchmarkId::new(format!("{tags} tags"), format!("{entries} purges")), |b| {
                b.iter(|| purges.verdict(black_box(&marks)));
            });
        }
    }
    group.finish();

    // The same when every one of them is in the table, of purges that were before: nothing can be skipped.
    let purges = Purges::new();
    let all: Vec<_> = (0..16).map(|tag| Scope::tag(&format!("tag-{tag}"))).collect();
    purges.purge(&all, Purge::Hard);
    let marks = response(&purges, 16)?;
    purges.purge(&[Scope::tag("newer")], Purge::Hard);
    ensure!(purges.verdict(&marks) == Verdict::Live, "no purge reaches it");
    criterion.bench_function("cache/purge check, 16 tags that were all purged before", |b| {
        b.iter(|| purges.verdict(black_box(&marks)));
    });

    let purges = Purges::new();
    let scope = [Scope::tag("one")];
    criterion.bench_function("cache/purge by tag", |b| b.iter(|| purges.purge(black_box(&scope), Purge::Hard)));

    let mut headers = HeaderMap::new();
    let tags: Vec<_> = (0..16).map(|tag| format!("tag-{tag}")).collect();
    headers.insert("cache-tag", tags.join(",").parse()?);
    criterion.bench_function("cache/marks of a response, 16 tags", |b| {
        b.iter(|| {
            let tags = Tags::of(black_box(&headers), &TagPolicy::default());
            Marks::new(1, Scheme::Https, &QueryPolicy::All, b"www.example.com", b"/shop/shoes/17?v=1", &tags)
        });
    });
    Ok(())
}

/// Fetched before what is purged next.
fn response(purges: &Purges, tags: usize) -> Result<Marks> {
    let mut headers = HeaderMap::new();
    let tags: Vec<_> = (0..tags).map(|tag| format!("tag-{tag}")).collect();
    headers.insert("cache-tag", tags.join(",").parse()?);
    let tags = Tags::of(&headers, &TagPolicy::default());
    let epoch = purges.clock().fetch();
    Ok(Marks::new(epoch, Scheme::Https, &QueryPolicy::All, b"www.example.com", b"/shop/shoes/17?v=1", &tags))
}
