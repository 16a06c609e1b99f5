//! What was purged.

use selvedge_cache::Cache;

use super::Page;
use crate::purge::StreamUsage;

/// Of a node that hears of the purges of others.
pub(super) fn stream(page: &mut Page, usage: &StreamUsage, over_redis: bool) {
    if over_redis {
        let help = "Whether Redis is there, over which nodes tell each other what is purged.";
        page.family("selvedge_cluster_redis_connected", "gauge", help);
        page.sample("selvedge_cluster_redis_connected", &[], u8::from(usage.connected));
    }
    page.family("selvedge_cluster_purges_total", "counter", "Purges told to other nodes, and heard from them.");
    page.sample("selvedge_cluster_purges_total", &[("direction", "sent")], usage.published);
    page.sample("selvedge_cluster_purges_total", &[("direction", "received")], usage.received);
    page.family("selvedge_cluster_purges_waiting", "gauge", "Purges that could not be told to other nodes yet.");
    page.sample("selvedge_cluster_purges_waiting", &[], usage.waiting);
    let help = "How often purges of other nodes were missed for good, so that everything was purged.";
    page.family("selvedge_cluster_purge_gaps_total", "counter", help);
    page.sample("selvedge_cluster_purge_gaps_total", &[], usage.gaps);
}

/// Of a node with a cache.
pub(super) fn write(page: &mut Page, cache: &'static Cache) {
    let usage = cache.purges().usage();
    let help = "Scopes (URLs, prefixes, hosts, tags, everything) that were purged.";
    page.family("selvedge_cache_purges_total", "counter", help);
    page.sample("selvedge_cache_purges_total", &[("kind", "hard")], usage.hard);
    page.sample("selvedge_cache_purges_total", &[("kind", "soft")], usage.soft);
    page.family("selvedge_cache_purge_entries", "gauge", "Purges that are remembered.");
    page.sample("selvedge_cache_purge_entries", &[], usage.entries);
    let help = "Purges that became coarser, because there were too many: more is purged than was asked for.";
    page.family("selvedge_cache_purges_folded_total", "counter", help);
    page.sample("selvedge_cache_purges_folded_total", &[], usage.folded);
    let help = "Tags of stored responses that were too many or too long: such a response counts as having every tag.";
    page.family("selvedge_cache_tags_dropped_total", "counter", help);
    page.sample("selvedge_cache_tags_dropped_total", &[], cache.tags_dropped());
}
