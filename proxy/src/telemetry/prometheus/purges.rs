//! What was purged.

use selvedge_cache::Cache;

use super::Page;

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
