//! How a filter's module is run: isolation, ticks, identity of its VM, the pin of its bytes.

use std::num::NonZeroU8;

use schemars::JsonSchema;

use crate::decode::{At, Cx, Fields, choice, parsed, whole};
use crate::tree::Data;

/// How streams share instances of a filter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Isolation {
    /// One instance on each worker.
    #[default]
    Worker,
    /// So many on each worker.
    Pool(NonZeroU8),
    /// One for each request, gone with it.
    Request,
}

/// How requests share instances, as it is written.
#[derive(JsonSchema)]
#[schemars(untagged, rename = "Isolation")]
#[expect(dead_code, reason = "describes the grammar; never made")]
pub(crate) enum IsolationForm {
    Word(IsolationWord),
    Pool(Pool),
}

/// How requests share instances, in one word.
#[derive(JsonSchema)]
#[schemars(rename_all = "lowercase")]
#[expect(dead_code, reason = "describes the grammar; never made")]
pub(crate) enum IsolationWord {
    /// One instance on each worker, for all of its requests.
    Worker,
    /// One instance for each request, gone with it.
    Request,
}

/// A few instances on each worker.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[expect(dead_code, reason = "describes the grammar; never made")]
pub(crate) struct Pool {
    /// How many instances each worker has. From 1 to 64. Required.
    #[schemars(range(min = 1, max = 64))]
    pool: u8,
}

/// Whether instances for one request begin from a snapshot.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Snapshot {
    /// Where starting the module takes long.
    #[default]
    Auto,
    /// Always; a module that cannot be snapshot is a fault.
    Always,
    /// Never: each request starts the module.
    Never,
}

/// Which host a filter was written for, where hosts differ and both cannot be served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Compat {
    /// Envoy, and most others.
    #[default]
    Envoy,
    /// Kong's ngx_wasm_module.
    Ngx,
}

/// Whose clock a filter's ticks follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Tick {
    /// Each worker's instance ticks.
    #[default]
    EachWorker,
    /// One instance of the node ticks.
    OncePerNode,
}

impl Isolation {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        if !matches!(at.node.data, Data::Map(_)) {
            return choice(cx, at, &[("worker", Self::Worker), ("request", Self::Request)]);
        }
        let mut fields = Fields::open(cx, at, "Pool")?;
        let pool = fields.need(cx, "pool", |cx, at| whole(cx, at, 1, 64));
        fields.close(cx);
        NonZeroU8::new(u8::try_from(pool?).ok()?).map(Self::Pool)
    }
}

impl Snapshot {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        choice(cx, at, &[("auto", Self::Auto), ("always", Self::Always), ("never", Self::Never)])
    }
}

impl Compat {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        choice(cx, at, &[("envoy", Self::Envoy), ("ngx", Self::Ngx)])
    }
}

impl Tick {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        choice(cx, at, &[("each_worker", Self::EachWorker), ("once_per_node", Self::OncePerNode)])
    }
}

/// A SHA-256 in 64 hexadecimal digits.
pub(crate) fn sha256(cx: &mut Cx<'_>, at: &At<'_>) -> Option<[u8; 32]> {
    parsed(cx, at, "a SHA-256 in hexadecimal", |text| {
        let mut sum = [0; 32];
        let whole = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        for (index, byte) in sum.iter_mut().enumerate().filter(|_| whole) {
            *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).unwrap_or_default();
        }
        if whole { Ok(sum) } else { Err(("is not 64 hexadecimal digits".into(), None)) }
    })
}
