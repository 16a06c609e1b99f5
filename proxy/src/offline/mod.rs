//! A configuration that is asked and tested without a node: no socket is opened, nobody is asked anything, and yet requests are read,
//! routed, filtered and keyed by the code that serves them.
//!
//! A request is written as a client would write it, into a pipe in memory ([`wire`]) from which Pingora's own session reads it.

mod question;

mod wire;

mod origin;

pub(crate) mod explain;

mod trial;

pub(crate) mod single;

pub(crate) mod compare;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use selvedge_config::{Config, Loaded, Position, Report, TestOrigin};

use self::origin::Canned;
pub(crate) use self::question::Question;
use crate::listener::ListenerFacts;
use crate::listening;
use crate::node::{self, Current};
use crate::plan::{self, Resources};
use crate::request::Edge;
use crate::request::origin_side::Half;
use crate::telemetry::AccessLog;
use crate::upstream::DialFor;
use crate::upstream::http1::Pool;

/// A configuration to be asked about.
pub(crate) struct Offline {
    pub(crate) config: Config,
    loaded: Loaded,
    resources: Arc<Resources>,
    current: Arc<Current>,
    listeners: BTreeMap<String, Arc<ListenerFacts>>,
}

/// Why a configuration cannot be asked about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OfflineError {
    #[error("{0}")]
    Config(Report),
    #[error("the engine of filters does not run here")]
    Engine(#[source] selvedge_wasm::EngineError),
}

impl Offline {
    /// Reads a configuration and resolves it as a node would: every fault that a node would report is one.
    pub(crate) fn load(path: &Path) -> Result<Self, OfflineError> {
        let loaded = node::loader().load(path).map_err(OfflineError::Config)?;
        let nobody = TestOrigin { down: true, ..TestOrigin::default() };
        let resources = Resources::offline(
            &loaded.config.node.module_cache,
            Box::new(move |_| Arc::new(Canned::new(nobody.clone()))),
        );
        Self::of(loaded, resources.map_err(OfflineError::Engine)?, path)
    }

    /// The same configuration with nothing learnt or stored, and other answers of upstreams.
    fn afresh(&self, dial: DialFor) -> Result<Self, OfflineError> {
        let path = self.loaded.files.first().map(PathBuf::as_path).unwrap_or(Path::new(""));
        Self::of(self.loaded.clone(), self.resources.afresh(dial), path)
    }

    /// The configuration of another file, as if it came after this one in one process: what both have goes on.
    fn successor(&self, path: &Path) -> Result<Self, OfflineError> {
        let loaded = node::loader().load(path).map_err(OfflineError::Config)?;
        Self::of(loaded, Arc::clone(&self.resources), path)
    }

    fn of(loaded: Loaded, resources: Arc<Resources>, path: &Path) -> Result<Self, OfflineError> {
        let config = loaded.config.clone();
        let mut faults = listening::check(&config).err().unwrap_or_default();
        let built = plan::build(&resources, loaded.clone()).map_err(|more| faults.extend(more)).ok();
        let built = built.filter(|_| faults.is_empty());
        let built = built.ok_or_else(|| OfflineError::Config(Report::new(path, faults)))?;
        let facts = |(name, listener): (&String, _)| {
            (name.clone(), Arc::new(ListenerFacts::of(name, listener, resources.listener_index(name))))
        };
        let listeners = config.listeners.iter().map(facts).collect();
        Ok(Self { config, loaded, current: Arc::new(Current::offline(built.plan)), listeners, resources })
    }

    /// The proxy behind a listener.
    fn edge(&self, listener: &Arc<ListenerFacts>) -> Edge {
        let off = selvedge_config::AccessLog {
            output: selvedge_config::LogOutput::Off,
            ..selvedge_config::AccessLog::default()
        };
        Edge {
            current: Arc::clone(&self.current),
            listener: Arc::clone(listener),
            worker: 0,
            access_log: AccessLog::start(off).sink(),
            pool: Pool::new(),
            keeping: Arc::default(),
            witness: None,
            half: Half::outer(&node::server_conf()),
        }
    }

    /// A route as it is written.
    fn written(&self, site: &str, route: &str) -> Option<&selvedge_config::Route> {
        let site =
            self.config.sites.iter().find(|one| one.hosts.first().is_some_and(|host| host.to_string() == site))?;
        site.routes.iter().find(|one| one.name == route)
    }
}

/// `file:line`.
fn place(position: &Position) -> String {
    format!("{}:{}", position.file.display(), position.line)
}
