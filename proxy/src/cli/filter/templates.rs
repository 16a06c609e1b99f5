//! What `selvedge filter new` writes: `sdk/templates`, embedded.

use clap::ValueEnum;

/// A kind of filter to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Template {
    /// Adds a header: the least that is a filter.
    Blank,
    /// Lets requests with a known key pass.
    Auth,
    /// Changes the bodies of responses.
    BodyTransform,
    /// Asks another service before a request goes on.
    Callout,
    /// Counts in memory that all workers share.
    Kv,
    /// Gives visitors variants, and remembers them in a cookie.
    Ab,
    /// Judges an upload by its first bytes, and lets it stream past.
    Streaming,
}

/// The parts of one.
pub(super) struct Parts {
    pub(super) library: &'static str,
    pub(super) test: &'static str,
    /// What stands under `config:`.
    pub(super) config: &'static str,
    /// Further upstreams.
    pub(super) upstreams: &'static str,
    /// What to ask the running node.
    pub(super) ask: &'static str,
}

/// What all have.
pub(super) const MANIFEST: &str = include_str!("../../../../sdk/templates/common/Cargo.toml.in");
pub(super) const README: &str = include_str!("../../../../sdk/templates/common/README.md");
pub(super) const NODE: &str = include_str!("../../../../sdk/templates/common/selvedge.yaml");
pub(super) const CI: &str = include_str!("../../../../sdk/templates/common/ci.yml");
pub(super) const GITIGNORE: &str = include_str!("../../../../sdk/templates/common/gitignore");

macro_rules! parts {
    ($folder:literal) => {
        parts!($folder, "")
    };
    ($folder:literal, $upstreams:expr) => {
        Parts {
            library: include_str!(concat!("../../../../sdk/templates/", $folder, "/lib.rs")),
            test: include_str!(concat!("../../../../sdk/templates/", $folder, "/test.rs")),
            config: include_str!(concat!("../../../../sdk/templates/", $folder, "/config.yaml")),
            upstreams: $upstreams,
            ask: include_str!(concat!("../../../../sdk/templates/", $folder, "/try.md")),
        }
    };
}

impl Template {
    pub(super) fn parts(self) -> Parts {
        match self {
            Self::Blank => parts!("blank"),
            Self::Auth => parts!("auth"),
            Self::BodyTransform => parts!("body-transform"),
            Self::Callout => {
                parts!("callout", include_str!("../../../../sdk/templates/callout/upstreams.yaml"))
            }
            Self::Kv => parts!("kv"),
            Self::Ab => parts!("ab"),
            Self::Streaming => parts!("streaming"),
        }
    }
}
