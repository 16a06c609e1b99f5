//! Several upstreams that share a route's requests.

use std::collections::BTreeSet;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, mapping, parsed, whole};
use crate::report::Fault;
use crate::upstreams::{HASH_BY, HashBy, hash_by};

/// Shares of a route's requests for several upstreams. A retry stays at the upstream that was chosen; a cached response serves all.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Split {
    /// Upstreams by name, each with its share against the others' numbers, 0 to 10000. At least one is above 0. Required.
    #[schemars(with = "std::collections::BTreeMap<String, u16>")]
    pub upstreams: Vec<(String, u16)>,

    /// What keeps a client at one upstream: `client_ip`, `path`, `header:NAME`, `cookie:NAME` or `query:NAME` (without it, the client's
    /// address). The same value leads to the same upstream on every node as long as the numbers stay. Absent: each request by chance.
    #[schemars(with = "Option<String>")]
    pub by: Option<HashBy>,
}

impl Split {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>, upstreams: &BTreeSet<&str>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Split")?;
        let shares = fields.need(cx, "upstreams", |cx, at| {
            let mut shares = Vec::new();
            let entries = mapping(cx, at)?;
            for entry in entries {
                let here = at.entry(entry);
                if !upstreams.contains(entry.key.as_str()) && !cx.incomplete {
                    let fault = Fault::at(&entry.key_position, format!("there is no upstream `{}`", entry.key));
                    cx.report(fault.with_key(here.path.clone()));
                }
                let share = whole(cx, &here, 0, 10_000);
                shares.extend(share.map(|share| (entry.key.clone(), share)));
            }
            if shares.len() == entries.len() && shares.iter().all(|(_, share)| *share == 0) {
                return cx.refuse(at.fault("no upstream has a share"));
            }
            Some(shares)
        });
        let by = fields.read(cx, "by", |cx, at| parsed(cx, at, HASH_BY, hash_by));
        fields.close(cx);
        Some(Self { upstreams: shares?, by })
    }
}
