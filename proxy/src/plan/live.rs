//! The plugins that run. A reload keeps those it does not change, with their VMs and all that is in them: their counters and caches, the
//! calls they have under way, their ticks.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use selvedge_wasm::{Module, Plugin, PluginOptions};

use super::host::NodeHost;

/// A plugin and its host's side.
#[derive(Clone)]
pub(crate) struct Live {
    pub(crate) plugin: Arc<Plugin>,
    pub(crate) host: Arc<NodeHost>,
}

/// Every plugin of this process that some plan or exchange still has, by all that it was started with.
#[derive(Default)]
pub(super) struct Registry {
    plugins: Mutex<HashMap<Identity, Known>>,
}

struct Known {
    plugin: Weak<Plugin>,
    host: Weak<NodeHost>,
}

/// What makes a plugin the same as another: if one of these differs, it has to be started.
#[derive(PartialEq, Eq, Hash)]
struct Identity {
    module: [u8; 32],
    options: PluginOptions,
}

impl Registry {
    /// The running plugin of this module that was started with these options, if there is one.
    pub(super) fn find(&self, module: &Module, options: &PluginOptions) -> Option<Live> {
        let identity = Identity { module: module.hash(), options: options.clone() };
        let plugins = self.plugins.lock();
        let known = plugins.get(&identity)?;
        Some(Live { plugin: known.plugin.upgrade()?, host: known.host.upgrade()? })
    }

    /// Remembers a plugin for as long as somebody has it.
    pub(super) fn remember(&self, options: PluginOptions, live: &Live) {
        let identity = Identity { module: live.plugin.module().hash(), options };
        let mut plugins = self.plugins.lock();
        plugins.retain(|_, known| known.plugin.strong_count() > 0);
        plugins.insert(identity, Known { plugin: Arc::downgrade(&live.plugin), host: Arc::downgrade(&live.host) });
    }
}
