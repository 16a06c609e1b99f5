//! `geo`: where an address is.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;

use crate::{
    decode::{At, Cx, Fields, beside, choice, parsed},
    report::Position,
};

/// The database that tells where a client is. Absent: no lookup is made, and filters see no location.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Geo {
    /// A MaxMind DB file (`.mmdb`), or `builtin:test` for the small set of documentation addresses that comes with the
    /// node. Required.
    #[schemars(with = "String")]
    pub database: GeoDatabase,

    /// `watch` opens the file again when it changes; `off` keeps what was read at start. Default `watch`.
    #[schemars(with = "Option<Reload>", extend("default" = "watch"))]
    pub reload: Reload,

    /// Where the database is written.
    #[schemars(skip)]
    pub position: Position,
}

/// Where locations come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GeoDatabase {
    /// The set of documentation addresses that comes with the node.
    BuiltinTest,
    /// A MaxMind DB file.
    File(PathBuf),
}

/// What happens when a file changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(rename_all = "lowercase")]
pub enum Reload {
    /// It is read again.
    Watch,
    /// Nothing until the next start.
    Off,
}

impl Geo {
    pub(crate) fn read(cx: &mut Cx<'_>, at: &At<'_>) -> Option<Self> {
        let mut fields = Fields::open(cx, at, "Geo")?;
        let database = fields.need(cx, "database", |cx, at| {
            let database = parsed(cx, at, "`builtin:test` or the path of a .mmdb file", |text| {
                match (text, text.strip_prefix("builtin:")) {
                    (_, Some("test")) => Ok(GeoDatabase::BuiltinTest),
                    (_, Some(_)) => {
                        Err(("does not come with the node".into(), Some("did you mean `builtin:test`?".into())))
                    }
                    ("", None) => Err(("is not a path".into(), None)),
                    (path, None) => Ok(GeoDatabase::File(beside(&at.node.position.file, Path::new(path)))),
                }
            })?;
            Some((database, at.node.position.clone()))
        });
        let reload =
            fields.read(cx, "reload", |cx, at| choice(cx, at, &[("watch", Reload::Watch), ("off", Reload::Off)]));
        fields.close(cx);
        let (database, position) = database?;
        Some(Self { database, reload: reload.unwrap_or(Reload::Watch), position })
    }
}
