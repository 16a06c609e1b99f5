//! `cache.disk`: the part of the store on disk.

use std::path::PathBuf;

use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, byte_rate, choice, filled_list, path, size},
    values::{ByteRate, ByteSize},
};

/// A folder needs room for four of the largest things that are written at once, and for the files that are written and given back in turn.
const FOLDER_MIN: ByteSize = ByteSize::mib(64);
const FOLDER_MAX: ByteSize = ByteSize(64 << 40);

/// The part of the store on disk: what memory has no room for, and what is found again after a restart. No request waits for a write; what
/// a disk does not keep up with is not written. A change needs a restart.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct CacheDisk {
    /// Where it is kept: one folder for each disk. What is stored is spread over them by size; a disk that fails is switched off, and
    /// the others go on. At least one. Required.
    #[schemars(length(min = 1))]
    pub folders: Vec<DiskFolder>,

    /// The largest response body that is written; larger ones pass through. May be larger than `memory.max_object`: such a body goes to
    /// disk as it comes. Above zero, at most a quarter of the smallest folder. Default `1GiB`, or that quarter if it is smaller.
    #[schemars(with = "Option<ByteSize>")]
    pub max_object: ByteSize,

    /// What is written. Most responses are asked for once, and writing them only wears the disk out. Default `second_hit`.
    #[schemars(with = "Option<Admit>", extend("default" = "second_hit"))]
    pub admit: Admit,

    /// How much may be written for each second of what is asked for the first time, in bodies of up to 16 KiB; `0B/s` = nothing. Without
    /// meaning with `admit: all`. Default `1MiB/s`.
    #[schemars(with = "Option<ByteRate>", extend("default" = "1MiB/s"))]
    pub write_budget: ByteRate,
}

/// A folder on a disk.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct DiskFolder {
    /// The folder; made when it is missing. It belongs to one node at a time: a second one waits for it, without a disk meanwhile.
    /// Required.
    #[schemars(with = "String")]
    pub path: PathBuf,

    /// How much it may take, reserved as it is needed. The oldest goes first, and what was read lately is kept. From `64MiB` to `64TiB`.
    /// Required.
    pub size: ByteSize,
}

/// What is written to disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Admit {
    /// What is asked for a second time within hours, and small bodies within `write_budget`; nothing that is of use for less than a minute.
    SecondHit,
    /// Everything that is stored.
    All,
}

impl CacheDisk {
    pub(super) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "CacheDisk")?;
        let mut seen: Vec<PathBuf> = Vec::new();
        let folders = fields.need(cx, "folders", |cx, at| {
            filled_list(cx, at, |cx, at| {
                let folder = DiskFolder::read(cx, at)?;
                if seen.contains(&folder.path) {
                    return cx.refuse(at.fault(format!("`{}` is listed twice", folder.path.display())));
                }
                seen.push(folder.path.clone());
                Some(folder)
            })
        });
        let smallest = folders.iter().flatten().map(|folder| folder.size).min();
        let most = smallest.map_or(ByteSize(u64::MAX), |size| ByteSize(size.bytes() / 4));
        let max_object = fields.read(cx, "max_object", |cx, at| {
            let max_object = size(cx, at)?;
            if max_object > most {
                let fault =
                    at.fault(format!("`max_object` is larger than a quarter of the smallest folder, which is {most}"));
                return cx
                    .refuse(fault.with_help("one response would turn everything else out: lower it, or raise `size`"));
            }
            Some(max_object)
        });
        let admit =
            fields.read(cx, "admit", |cx, at| choice(cx, at, &[("second_hit", Admit::SecondHit), ("all", Admit::All)]));
        let write_budget = fields.read(cx, "write_budget", byte_rate);
        fields.close(cx);
        Some(Self {
            folders: folders?,
            max_object: max_object.unwrap_or(ByteSize::mib(1024).min(most)),
            admit: admit.unwrap_or(Admit::SecondHit),
            write_budget: write_budget.unwrap_or(ByteRate(1 << 20)),
        })
    }
}

impl DiskFolder {
    fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "DiskFolder")?;
        let path = fields.need(cx, "path", path);
        let size = fields.need(cx, "size", |cx, at| {
            let bytes = size(cx, at)?;
            if bytes < FOLDER_MIN || bytes > FOLDER_MAX {
                return cx.refuse(at.fault(format!("`size` is {bytes}; it may be from {FOLDER_MIN} to {FOLDER_MAX}")));
            }
            Some(bytes)
        });
        fields.close(cx);
        Some(Self { path: path?, size: size? })
    }
}
