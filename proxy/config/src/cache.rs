//! `cache`: the node's store of responses. What a route keeps in it is [`CachePolicy`](crate::CachePolicy).

use std::time::Duration;

use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, duration, size},
    report::Position,
    values::{ByteSize, DurationText},
};

/// The node's one store of responses, shared by all sites. Absent: no route may have `cache`.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Cache {
    /// The part in memory.
    #[schemars(with = "Option<CacheMemory>", extend("default" = {}))]
    pub memory: CacheMemory,

    /// How concurrent misses of one key share a fetch.
    #[schemars(with = "Option<Collapse>", extend("default" = {}))]
    pub collapse: Collapse,

    /// Where the section is written.
    #[schemars(skip)]
    pub position: Position,
}

/// The part of the store in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CacheMemory {
    /// How much all stored responses may take together; the least valuable go first. It is memory of this process: leave
    /// room for the rest. Above zero. Default `256MiB`.
    #[schemars(with = "Option<ByteSize>", extend("default" = "256MiB"))]
    pub size: ByteSize,

    /// The largest response body that is kept; larger ones pass through. Small keeps one download from pushing out
    /// thousands of small objects. Above zero, at most `size`. Default `16MiB`, or `size` if that is smaller.
    #[schemars(with = "Option<ByteSize>", extend("default" = "16MiB"))]
    pub max_object: ByteSize,
}

/// How concurrent misses of one key share a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Collapse {
    /// How long a request waits for another's fetch of the same key before it asks the origin itself. Long spares the
    /// origin, short spares the client when that fetch is stuck. Above zero. Default `5s`.
    #[schemars(with = "Option<DurationText>", extend("default" = "5s"))]
    pub wait: Duration,
}

impl Default for CacheMemory {
    fn default() -> Self {
        Self { size: ByteSize::mib(256), max_object: ByteSize::mib(16) }
    }
}

impl Default for Collapse {
    fn default() -> Self {
        Self { wait: Duration::from_secs(5) }
    }
}

impl Cache {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Cache")?;
        let memory = fields.read(cx, "memory", CacheMemory::read).unwrap_or_default();
        let collapse = fields.read(cx, "collapse", Collapse::read).unwrap_or_default();
        fields.close(cx);
        Some(Self { memory, collapse, position: at.name_position().clone() })
    }
}

impl CacheMemory {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let default = Self::default();
        let mut fields = Fields::open(cx, at, "CacheMemory")?;
        let size_of_all = fields.read(cx, "size", size).unwrap_or(default.size);
        let max_object = fields.read(cx, "max_object", |cx, at| {
            let max_object = size(cx, at)?;
            if max_object > size_of_all {
                let fault = at.fault(format!("`max_object` is larger than `size`, which is {size_of_all}"));
                return cx
                    .refuse(fault.with_help("no response of that size could be kept: lower one or raise the other"));
            }
            Some(max_object)
        });
        fields.close(cx);
        Some(Self { size: size_of_all, max_object: max_object.unwrap_or(default.max_object.min(size_of_all)) })
    }
}

impl Collapse {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Collapse")?;
        let wait = fields.read(cx, "wait", duration);
        fields.close(cx);
        Some(Self { wait: wait.unwrap_or(Self::default().wait) })
    }
}
