//! `geo`: where an address is.

use std::path::PathBuf;

use schemars::JsonSchema;

use crate::report::Position;

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
