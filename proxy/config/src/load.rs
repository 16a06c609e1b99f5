//! From a file to a [`Config`]: includes, environment, secret files.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;

use crate::{
    cache::Cache, filters::Filter, geo::Geo, listeners::Listener, node::Node, report::Report, sites::Site,
    telemetry::Telemetry, upstreams::Upstream,
};

/// The configuration of a node: every name resolves, every value is in range.
#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields, title = "Selvedge configuration")]
pub struct Config {
    /// The version of this grammar: `1`. Required, in the first file only.
    #[schemars(range(min = 1, max = 1))]
    pub version: u16,

    /// Files that are part of this configuration: paths or patterns such as `conf.d/*.yaml`, relative to the file that
    /// names them. They have the same grammar without `version` and `node`; `telemetry`, `geo` and `cache` may stand once
    /// over all files. Each file is read once. A pattern may match nothing, a plain path may not. Here as in the first file.
    #[schemars(with = "Option<Vec<String>>")]
    pub include: Vec<String>,

    /// The process itself. In the first file only.
    #[schemars(with = "Option<Node>")]
    pub node: Node,

    /// What the node tells its operator.
    #[schemars(with = "Option<Telemetry>")]
    pub telemetry: Telemetry,

    /// The addresses the node answers on, by name. At least one over all files.
    #[schemars(with = "Option<BTreeMap<String, Listener>>")]
    pub listeners: BTreeMap<String, Listener>,

    /// Where clients are. Absent: not looked up.
    pub geo: Option<Geo>,

    /// The store of responses. Absent: no route may have `cache`.
    pub cache: Option<Cache>,

    /// Named groups of servers.
    #[schemars(with = "Option<BTreeMap<String, Upstream>>")]
    pub upstreams: BTreeMap<String, Upstream>,

    /// WebAssembly modules, declared once, used by name.
    #[schemars(with = "Option<BTreeMap<String, Filter>>")]
    pub filters: BTreeMap<String, Filter>,

    /// Which hosts are served, and by which routes. At least one over all files.
    #[schemars(with = "Option<Vec<Site>>")]
    pub sites: Vec<Site>,
}

/// A configuration and the files it was made of.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// All files that were read: the first, its includes, and secret files. When one changes, load again.
    pub files: Vec<PathBuf>,
}

/// Reads configurations.
#[derive(Clone)]
pub struct Loader {
    builtin_filters: Vec<String>,
    env: Arc<dyn Fn(&str) -> Option<String> + Send + Sync>,
}

impl Loader {
    /// A loader that knows no built-in filters and takes variables from the process's environment.
    #[must_use]
    pub fn new() -> Self {
        Self { builtin_filters: Vec::new(), env: Arc::new(|name| std::env::var(name).ok()) }
    }

    /// The names that `wasm: builtin:NAME` may use.
    #[must_use]
    pub fn builtin_filters(mut self, names: &[&str]) -> Self {
        self.builtin_filters = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Takes variables from `env` instead of the process's environment.
    #[must_use]
    pub fn env(mut self, env: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        self.env = Arc::new(env);
        self
    }

    /// Reads the configuration in this file and all files it includes.
    ///
    /// # Errors
    /// A report of everything that is wrong, in all files.
    pub fn load(&self, path: &Path) -> Result<Loaded, Report> {
        Err(Report::new(path, Vec::new()))
    }

    /// Reads a configuration from text. `name` stands for it in faults; paths in it are relative to `name`'s directory.
    ///
    /// # Errors
    /// A report of everything that is wrong, in the text and all files it includes.
    pub fn load_str(&self, name: &str, text: &str) -> Result<Loaded, Report> {
        let _ = text;
        Err(Report::new(Path::new(name), Vec::new()))
    }
}

impl Default for Loader {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loader").field("builtin_filters", &self.builtin_filters).finish_non_exhaustive()
    }
}
