//! A hit in the memory tier: what it takes from a request's header to the last byte of the stored body, without sockets.
//!
//! The steps are those of the request path: turn the cache on, make the key, look up, decide whether the request may have it, read.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion};
use futures::executor::block_on;
use pingora_cache::trace::Span;
use pingora_cache::{CacheMeta, HitStatus, HttpCache, Storage};
use pingora_http::{RequestHeader, ResponseHeader};
use selvedge_cache::{Cache, CacheCtx, CacheOptions, KeyScope, QueryPolicy, RoutePolicy, Scheme};

/// Objects beside the one that is asked for, so that the lookup is one in a table of a usual size.
const NEIGHBOURS: usize = 10_000;
/// Objects that are asked for in turn.
const MANY: usize = 100_000;
const LIFETIME: Duration = Duration::from_secs(3600);

fn main() -> Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let route = Route {
        cache: Cache::leak(CacheOptions::default()),
        scope: KeyScope::new("bench", "all"),
        policy: Arc::new(RoutePolicy::default()),
        sorted: Arc::new(RoutePolicy {
            query: QueryPolicy::Only(vec!["v".into(), "lang".into()]),
            ..Default::default()
        }),
    };
    for neighbour in 0..NEIGHBOURS {
        block_on(route.store(&format!("/neighbour/{neighbour}"), 64))?;
    }

    let mut group = criterion.benchmark_group("cache/memory hit");
    for size in [64, 1 << 10, 1 << 20] {
        let path = format!("/{size}");
        block_on(route.store(&path, size))?;
        let request = request(&path)?;
        ensure!(block_on(route.hit(&request, &route.policy))? == size, "the body is not the stored one");
        group.bench_function(BenchmarkId::from_parameter(format!("{size} B")), |b| {
            b.iter(|| block_on(route.hit(black_box(&request), &route.policy)));
        });
    }
    group.finish();

    // Each in its turn, and more of them than are kept decoded.
    for number in 0..MANY {
        block_on(route.store(&format!("/many/{number}"), 64))?;
    }
    let many = (0..MANY).map(|number| request(&format!("/many/{number}"))).collect::<Result<Vec<_>>>()?;
    let mut turns = many.iter().cycle();
    criterion.bench_function("cache/memory hit, 64 B of 100,000", |b| {
        b.iter(|| turns.next().map(|request| block_on(route.hit(black_box(request), &route.policy))));
    });

    let tracked = request("/assets/app.js?utm_source=mail&lang=en&v=17&utm_campaign=autumn")?;
    criterion.bench_function("cache/key, whole query", |b| {
        b.iter(|| route.key(black_box(&tracked), &route.policy));
    });
    criterion.bench_function("cache/key, two of four parameters", |b| {
        b.iter(|| route.key(black_box(&tracked), &route.sorted));
    });
    Ok(())
}

/// A caching route, as far as the cache knows routes.
struct Route {
    cache: &'static Cache,
    scope: KeyScope,
    policy: Arc<RoutePolicy>,
    sorted: Arc<RoutePolicy>,
}

impl Route {
    async fn store(&self, path: &str, size: usize) -> Result<()> {
        let key = self.key(&request(path)?, &self.policy);
        let mut header = ResponseHeader::build(200, None)?;
        header.insert_header("content-type", "text/plain")?;
        header.insert_header("content-length", size.to_string())?;
        header.insert_header("cache-control", "max-age=3600")?;
        let now = SystemTime::now();
        let meta = CacheMeta::new(now + LIFETIME, now, 0, 0, header);

        let trace = Span::inactive().handle();
        let mut fill = self.cache.memory().get_miss_handler(&key, &meta, &trace).await?;
        fill.write_body(Bytes::from(vec![b'x'; size]), true).await?;
        fill.finish().await?;
        Ok(())
    }

    /// The length of the body that was read.
    async fn hit(&self, request: &RequestHeader, policy: &Arc<RoutePolicy>) -> Result<usize> {
        let mut state = HttpCache::new();
        let mut ctx = CacheCtx::default();
        self.cache.enable(&mut state, request, self.scope, Scheme::Http, policy, &mut ctx);
        state.set_cache_key(self.cache.key(request, &mut ctx)?);
        let (meta, mut reader) = state.cache_lookup().await?.context("nothing is stored")?;
        let fresh = meta.is_fresh(SystemTime::now());
        self.cache.on_hit(&mut state, request, &meta, &mut reader, fresh, &mut ctx);
        state.cache_found(meta, reader, HitStatus::Fresh);

        let mut read = 0;
        while let Some(chunk) = state.hit_handler().read_body().await? {
            read += black_box(chunk).len();
        }
        state.finish_hit_handler().await?;
        Ok(read)
    }

    fn key(&self, request: &RequestHeader, policy: &RoutePolicy) -> pingora_cache::CacheKey {
        selvedge_cache::key::of_request(self.scope, Scheme::Http, &policy.query, request)
    }
}

fn request(target: &str) -> Result<RequestHeader> {
    let mut request = RequestHeader::build("GET", target.as_bytes(), None)?;
    request.insert_header("host", "www.example.com")?;
    request.insert_header("accept", "*/*")?;
    request.insert_header("accept-encoding", "gzip, br")?;
    request.insert_header("user-agent", "bench")?;
    Ok(request)
}
