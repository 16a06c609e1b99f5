//! `cache`: the node's store of responses. What a route keeps in it is [`CachePolicy`](crate::CachePolicy).

mod disk;
mod purge;

use std::time::Duration;

use schemars::JsonSchema;

pub use self::disk::{Admit, CacheDisk, DiskFolder};
pub use self::purge::CachePurge;
use crate::{
    decode::{At, Cx, Fields, choice, duration, size, whole},
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

    /// The part on disk, below memory. Absent: there is none, and a restart begins with an empty store.
    pub disk: Option<CacheDisk>,

    /// How concurrent misses of one key share a fetch.
    #[schemars(with = "Option<Collapse>", extend("default" = {}))]
    pub collapse: Collapse,

    /// How what is stored is purged.
    #[schemars(with = "Option<CachePurge>", extend("default" = {}))]
    pub purge: CachePurge,

    /// Where the section is written.
    #[schemars(skip)]
    pub position: Position,
}

/// The part of the store in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CacheMemory {
    /// How much all stored responses may take together, with about 190 bytes each beside key, header and body; a
    /// sixteenth is for the decoded headers of those most in demand. The least valuable go first. It is memory of this
    /// process: leave room for the rest. Above zero. Default `256MiB`.
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

    /// What a request does that has waited for that long. Default `forward`.
    #[schemars(with = "Option<Beyond>", extend("default" = "forward"))]
    pub when_late: Beyond,

    /// How many requests may wait for one fetch. From 1 to 65535. Default 10000.
    #[schemars(with = "Option<u16>", range(min = 1), extend("default" = 10000))]
    pub waiters: u16,

    /// What a request does that finds so many waiting. Default `refuse`.
    #[schemars(with = "Option<Beyond>", extend("default" = "refuse"))]
    pub when_full: Beyond,
}

/// What becomes of a request that does not wait for another's fetch any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Beyond {
    /// It asks the origin itself, and what it gets is not kept. Spares the client; thousands at once may be too much for the origin.
    Forward,
    /// It is answered 503 with `Retry-After`. Spares the origin.
    Refuse,
}

impl Default for CacheMemory {
    fn default() -> Self {
        Self { size: ByteSize::mib(256), max_object: ByteSize::mib(16) }
    }
}

impl Default for Collapse {
    fn default() -> Self {
        Self { wait: Duration::from_secs(5), when_late: Beyond::Forward, waiters: 10_000, when_full: Beyond::Refuse }
    }
}

impl Cache {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Cache")?;
        let memory = fields.read(cx, "memory", CacheMemory::read).unwrap_or_default();
        let disk = fields.read(cx, "disk", CacheDisk::read);
        let collapse = fields.read(cx, "collapse", Collapse::read).unwrap_or_default();
        let purge = fields.read(cx, "purge", CachePurge::read).unwrap_or_default();
        fields.close(cx);
        Some(Self { memory, disk, collapse, purge, position: at.name_position().clone() })
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
        let default = Self::default();
        let wait = fields.read(cx, "wait", duration).unwrap_or(default.wait);
        let when_late = fields.read(cx, "when_late", Beyond::read).unwrap_or(default.when_late);
        let waiters = fields.read(cx, "waiters", |cx, at| whole(cx, at, 1, u16::MAX)).unwrap_or(default.waiters);
        let when_full = fields.read(cx, "when_full", Beyond::read).unwrap_or(default.when_full);
        fields.close(cx);
        Some(Self { wait, when_late, waiters, when_full })
    }
}

impl Beyond {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        choice(cx, at, &[("forward", Self::Forward), ("refuse", Self::Refuse)])
    }
}
