//! `cache` of a route: which responses are kept, how long, and what makes two requests the same.

use std::{collections::BTreeSet, time::Duration};

use schemars::JsonSchema;

use super::tags::CacheTags;
use crate::{
    decode::{At, Cx, Fields, choice, duration, list, text, truth},
    report::{Fault, Position},
    tree::Data,
    values::DurationText,
};

/// Which responses of a route are kept, and how long (RFC 9111, RFC 5861). What the origin says wins unless `override`.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CachePolicy {
    /// How long a response is fresh when the origin does not say. Above zero. Default: such responses are not kept.
    #[schemars(with = "Option<DurationText>")]
    pub ttl: Option<Duration>,

    /// Whether `ttl` wins over what the origin says. It can serve what the origin forbids to store: only for origins that
    /// send wrong headers. Needs `ttl`. Default `false`.
    #[schemars(rename = "override", with = "Option<bool>", extend("default" = false))]
    pub override_origin: bool,

    /// Which query parameters make a different response: `all`, or a list of names; the others are then no part of the
    /// cache key. `[]` means none does. A shorter list hits more often; one that misses a name that matters serves wrong
    /// pages. Default `all`.
    #[schemars(with = "Option<QueryKey>", extend("default" = "all"))]
    pub query: QueryKey,

    /// How long after it went stale a response may be served while a new one is fetched (RFC 5861, 3), when the origin does
    /// not say. Above zero. Default: not at all.
    #[schemars(with = "Option<DurationText>")]
    pub stale_while_revalidate: Option<Duration>,

    /// How long after it went stale a response may be served when the origin fails (RFC 5861, 4), when the origin does not
    /// say. Above zero. Default: not at all.
    #[schemars(with = "Option<DurationText>")]
    pub stale_if_error: Option<Duration>,

    /// Whether `Cache-Control` in requests is obeyed (`no-cache`, `no-store`, `max-age`, `min-fresh`, `max-stale`,
    /// `only-if-cached`, and `Pragma: no-cache`; RFC 9111, 5.2.1). Any client can then have the origin asked as often as it
    /// likes: a browser's reload does. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub request_directives: bool,

    /// What responses are tagged with, for purges by tag.
    #[schemars(with = "Option<CacheTags>", extend("default" = {}))]
    pub tags: CacheTags,

    /// Where the policy is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Which query parameters are part of the cache key.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "QueryKeyForm")]
pub enum QueryKey {
    /// All.
    All,
    /// These names only.
    Only(Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(untagged, rename = "QueryKey")]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum QueryKeyForm {
    Word(AllWord),
    Only(Vec<String>),
}

#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase", inline)]
#[expect(dead_code, reason = "describes the grammar; never made")]
enum AllWord {
    All,
}

impl CachePolicy {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "CachePolicy")?;
        let ttl_at = fields.get("ttl");
        let ttl = ttl_at.as_ref().and_then(|at| duration(cx, at));
        let override_at = fields.get("override");
        let override_origin = override_at.as_ref().and_then(|at| truth(cx, at)).unwrap_or(false);
        if let Some(at) = override_at.filter(|_| override_origin && ttl_at.is_none()) {
            let fault =
                Fault::at(at.name_position(), "`override` does nothing without `ttl`").with_key(at.path.clone());
            cx.report(fault.with_help("say how long: `ttl: 1h`"));
        }
        let query = fields.read(cx, "query", QueryKey::read);
        let stale_while_revalidate = fields.read(cx, "stale_while_revalidate", duration);
        let stale_if_error = fields.read(cx, "stale_if_error", duration);
        let request_directives = fields.read(cx, "request_directives", truth).unwrap_or(false);
        let tags = fields.read(cx, "tags", CacheTags::read).unwrap_or_default();
        fields.close(cx);
        Some(Self {
            ttl,
            override_origin,
            query: query.unwrap_or(QueryKey::All),
            stale_while_revalidate,
            stale_if_error,
            request_directives,
            tags,
            position: at.name_position().clone(),
        })
    }
}

impl QueryKey {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        if matches!(at.node.data, Data::Scalar(_)) {
            return choice(cx, at, &[("all", ())]).map(|()| Self::All);
        }
        let mut seen = BTreeSet::new();
        let names = list(cx, at, |cx, at| {
            let name = text(cx, at)?;
            if name.is_empty() {
                return cx.refuse(at.fault("a parameter's name is empty"));
            }
            if seen.insert(name.clone()) { Some(name) } else { cx.refuse(at.fault("this parameter is written twice")) }
        });
        names.map(Self::Only)
    }
}
