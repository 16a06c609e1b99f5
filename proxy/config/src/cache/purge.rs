//! `cache.purge`: who may purge over the listeners, and where purges are kept.

use std::path::PathBuf;

use ipnet::IpNet;
use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, list, path},
    matching::range,
};

/// How what is stored is purged, beside the admin API (`POST /v1/cache/purge`).
#[derive(Debug, Clone, Default, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CachePurge {
    /// Who may purge a URL by asking for it with the method `PURGE`, on every listener: addresses and ranges (`10.0.0.0/8`). It is the
    /// client that counts, as `node.trusted_proxies` name it. Everybody else gets 403; where a cache is configured, `PURGE` never
    /// reaches an upstream. Default: nobody.
    #[schemars(with = "Option<Vec<String>>")]
    pub allow: Vec<IpNet>,

    /// The file in which purges are kept, so that they hold for what is stored on disk when the node comes back: a purge is on disk
    /// before it is acknowledged. It stays small, is made when absent, and belongs to one node. Losing it means that stored responses
    /// which were purged may come back. A change needs a restart. Default: `purge.log` in the first
    /// folder of `disk`, if there is one; else none, which is enough for a store in memory alone, and for
    /// nodes without `cluster`.
    #[schemars(with = "Option<String>")]
    pub log: Option<PathBuf>,
}

impl CachePurge {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "CachePurge")?;
        let allow = fields.read(cx, "allow", |cx, at| list(cx, at, range)).unwrap_or_default();
        let log = fields.read(cx, "log", path);
        fields.close(cx);
        Some(Self { allow, log })
    }
}
