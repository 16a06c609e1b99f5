//! `cache.tags` of a route: what its responses are tagged with.

use std::collections::BTreeSet;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, choice, list, truth};

/// What the responses of a route are tagged with, for purges by tag. A response has at most 128 tags of at most 1024 bytes; one that has
/// more counts as having every tag.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CacheTags {
    /// The fields of the response that hold tags: `surrogate-key` (separated by spaces), `cache-tag` (by commas), `xkey` (by either) and
    /// `cache-groups` (RFC 9875). `[]`: none. Default: all four.
    #[schemars(with = "Option<Vec<TagField>>", extend("default" = ["surrogate-key", "cache-tag", "xkey", "cache-groups"]))]
    pub read: Vec<TagField>,

    /// Whether clients get these fields too. `cache-groups` they always get: it is for every cache on the way. The others tell strangers
    /// how a site is made, and cost bytes; keep them for another cache in front of this one. Default `false`.
    #[schemars(with = "Option<bool>", extend("default" = false))]
    pub keep: bool,
}

/// A field of responses that holds tags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, JsonSchema)]
#[schemars(rename_all = "kebab-case")]
pub enum TagField {
    /// Separated by spaces.
    SurrogateKey,
    /// Separated by commas.
    CacheTag,
    /// Separated by spaces or commas.
    Xkey,
    /// A list of strings (RFC 9875).
    CacheGroups,
}

const FIELDS: [(&str, TagField); 4] = [
    ("surrogate-key", TagField::SurrogateKey),
    ("cache-tag", TagField::CacheTag),
    ("xkey", TagField::Xkey),
    ("cache-groups", TagField::CacheGroups),
];

impl Default for CacheTags {
    fn default() -> Self {
        Self { read: FIELDS.map(|(_, field)| field).into(), keep: false }
    }
}

impl CacheTags {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "CacheTags")?;
        let mut seen = BTreeSet::new();
        let read = fields.read(cx, "read", |cx, at| {
            list(cx, at, |cx, at| {
                let field = choice(cx, at, &FIELDS)?;
                if seen.insert(field) { Some(field) } else { cx.refuse(at.fault("this field is written twice")) }
            })
        });
        let keep = fields.read(cx, "keep", truth).unwrap_or(false);
        fields.close(cx);
        Some(Self { read: read.unwrap_or_else(|| Self::default().read), keep })
    }
}
