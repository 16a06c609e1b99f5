//! A node under test.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use selvedge::node::{self, Node, StartError};
use selvedge::plan::Plan;
use tempfile::TempDir;

/// The path of a test guest (`tests/guests/examples/NAME.rs`), compiled.
#[must_use]
pub fn guest(name: &str) -> PathBuf {
    PathBuf::from(env!("SELVEDGE_TEST_GUESTS")).join(format!("{name}.wasm"))
}

/// A node started from YAML, in this process, on ports of its own.
///
/// In the YAML, `${ID}` is a number that no other node of this process has. `${GUESTS}` is the folder of the compiled test guests, `${PORT_x}` the port
/// of the origin given as `x`. When the YAML has no `listeners:`, it gets `web` (HTTP/1 and h2c) and `secure` (TLS, development
/// certificate), both on port 0, with one worker and no access log.
pub struct Edge {
    node: Option<Node>,
    folder: TempDir,
    id: u64,
    variables: Vec<(String, String)>,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

const DEFAULTS: &str = "
version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s, module_cache: MODULE_CACHE }
telemetry: { access_log: { output: off } }
listeners:
  web: { bind: \"127.0.0.1:0\", protocols: [h1, h2] }
  secure: { bind: \"127.0.0.1:0\", protocols: [h1, h2], tls: { certificates: development } }
";

impl Edge {
    /// Starts a node; `origins` are `(name, address)` pairs that become `${PORT_name}`.
    ///
    /// # Panics
    /// When the configuration is at fault: the report is the message.
    #[must_use]
    pub fn start(yaml: &str, origins: &[(&str, SocketAddr)]) -> Self {
        match Self::try_start(yaml, origins) {
            Ok(edge) => edge,
            Err(error) => panic!("the node does not start:\n{error}"),
        }
    }

    /// Starts a node, or says why it does not.
    ///
    /// # Errors
    /// As [`Node::start`].
    ///
    /// # Panics
    /// When the temporary folder cannot be written.
    pub fn try_start(yaml: &str, origins: &[(&str, SocketAddr)]) -> Result<Self, StartError> {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = TempDir::new().expect("a temporary folder");
        let variables =
            origins.iter().map(|(name, address)| (format!("PORT_{name}"), address.port().to_string())).collect();
        let mut edge = Self { node: None, folder, id, variables };
        edge.write(yaml);
        edge.node = Some(Node::start(edge.path(), node::loader())?);
        Ok(edge)
    }

    /// The configuration file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    /// Writes the configuration file anew (does not reload).
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, yaml: &str) {
        // Compiled guests are shared by all nodes of all runs; the cache is what makes the suite quick.
        let modules = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target/test-modules");
        let defaults = if yaml.contains("\nlisteners:") { "" } else { DEFAULTS };
        let mut text = format!("{}\n{yaml}", defaults.replace("MODULE_CACHE", &modules.display().to_string()));
        text = text.replace("${ID}", &self.id.to_string()).replace("${GUESTS}", env!("SELVEDGE_TEST_GUESTS"));
        for (name, value) in &self.variables {
            text = text.replace(&format!("${{{name}}}"), value);
        }
        std::fs::write(self.path(), text).expect("the configuration is written");
    }

    /// Writes the configuration anew and reloads.
    ///
    /// # Errors
    /// The report, as text, when the new one is at fault.
    ///
    /// # Panics
    /// When the node has been stopped.
    pub fn reload(&mut self, yaml: &str) -> Result<u64, String> {
        self.write(yaml);
        self.node.as_ref().expect("running").control().reload().map_err(|report| report.to_string())
    }

    /// The plan in force.
    ///
    /// # Panics
    /// When the node has been stopped.
    #[must_use]
    pub fn plan(&self) -> std::sync::Arc<Plan> {
        self.node.as_ref().expect("running").plan()
    }

    /// The number that `${ID}` stands for.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The folder of the configuration file, for further files.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The address of a listener.
    ///
    /// # Panics
    /// When there is none of this name.
    #[must_use]
    pub fn listener(&self, name: &str) -> SocketAddr {
        self.node.as_ref().expect("running").addresses()[name]
    }

    /// Where metrics are served.
    ///
    /// # Panics
    /// When they are not.
    #[must_use]
    pub fn metrics(&self) -> SocketAddr {
        self.node.as_ref().expect("running").metrics_address().expect("metrics are served")
    }

    /// Where the admin API is served.
    ///
    /// # Panics
    /// When it is not, or on a Unix socket.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.node.as_ref().expect("running").admin_address().expect("the admin API is served")
    }

    /// The plain listener.
    #[must_use]
    pub fn web(&self) -> SocketAddr {
        self.listener("web")
    }

    /// The TLS listener.
    #[must_use]
    pub fn secure(&self) -> SocketAddr {
        self.listener("secure")
    }

    /// Stops the node with its grace period, from another thread, so that a test can watch connections meanwhile.
    pub fn stop(&mut self) -> std::thread::JoinHandle<()> {
        let node = self.node.take();
        std::thread::spawn(move || {
            if let Some(node) = node {
                node.shutdown();
            }
        })
    }
}
