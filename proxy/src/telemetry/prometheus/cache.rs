//! What the cache does, and holds in memory.

use selvedge_cache::Cache;

use super::Page;
use crate::telemetry::counters::Counters;

/// Of a node with a cache.
pub(super) fn write(page: &mut Page, cache: &'static Cache, counters: &Counters) {
    let help = "Requests of routes that cache, by what the cache had to do with them: the words of the access log.";
    page.family("selvedge_cache_requests_total", "counter", help);
    for (result, count) in counters.all_cached() {
        page.sample("selvedge_cache_requests_total", &[("result", result)], count);
    }
    let usage = cache.usage();
    for (name, help, value) in [
        ("selvedge_cache_memory_objects", "Stored responses in memory.", usage.objects),
        ("selvedge_cache_memory_bytes", "What they take, headers and bookkeeping included.", usage.bytes),
        ("selvedge_cache_memory_capacity_bytes", "What they may take.", usage.capacity),
        ("selvedge_cache_fills", "Responses that are being stored.", usage.fills),
        ("selvedge_cache_fill_bytes", "What has come of their bodies.", usage.fill_bytes),
        ("selvedge_cache_waiting", "Requests that wait for what another one fetches.", cache.waiting() as u64),
    ] {
        page.family(name, "gauge", help);
        page.sample(name, &[], value);
    }
}
