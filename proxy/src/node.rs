//! The node: one thread and one runtime per worker, each with its own listeners' accept loops, connection pools and filter VMs, so
//! that a request is served from accept to finish on one core without a contended lock.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use pingora::server::configuration::ServerConf;
use selvedge_config::{Fault, Loader, Report};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use crate::admin::{self, AdminServer, Guard};
use crate::bundled;
use crate::control::Control;
use crate::listening::{self, Worker};
use crate::plan::{Plan, Resources};
use crate::purge;
use crate::request::retry;
use crate::sockets::{Inherited, Socket};
use crate::telemetry::AccessLog;
use crate::upstream::http1::Pool;
use crate::upstream::wear::KEPT_MAX;

/// The plan in force.
pub struct Current {
    plan: ArcSwap<Plan>,
    /// Rings when the plan is replaced: the workers start the new plugins' ticks.
    replaced: Notify,
    /// Where the purges of all nodes are, if there are others.
    stream: ArcSwapOption<purge::Stream>,
    /// The same without Redis: the other nodes themselves.
    peers: ArcSwapOption<purge::Peers>,
}

impl Current {
    pub(crate) fn new(plan: Plan) -> Self {
        plan.enact();
        Self {
            plan: ArcSwap::from_pointee(plan),
            replaced: Notify::new(),
            stream: ArcSwapOption::empty(),
            peers: ArcSwapOption::empty(),
        }
    }

    /// A plan that is only asked about: nobody looks after its upstreams.
    pub(crate) fn offline(plan: Plan) -> Self {
        Self {
            plan: ArcSwap::from_pointee(plan),
            replaced: Notify::new(),
            stream: ArcSwapOption::empty(),
            peers: ArcSwapOption::empty(),
        }
    }

    /// The plan in force now.
    #[must_use]
    pub fn plan(&self) -> Arc<Plan> {
        self.plan.load_full()
    }

    /// Where the purges of all nodes are, if there are others.
    pub(crate) fn stream(&self) -> Option<Arc<purge::Stream>> {
        self.stream.load_full()
    }

    /// From now on, or not any more.
    pub(crate) fn set_stream(&self, stream: Option<purge::Stream>) {
        self.stream.store(stream.map(Arc::new));
    }

    /// The other nodes, as far as they are told what is purged.
    pub(crate) fn peers(&self) -> Option<Arc<purge::Peers>> {
        self.peers.load_full()
    }

    /// From now on, or not any more.
    pub(crate) fn set_peers(&self, peers: Option<purge::Peers>) {
        self.peers.store(peers.map(Arc::new));
    }

    /// Puts another plan in force; requests under way keep theirs. Filters that both plans have look at the new one a moment earlier than
    /// requests do, so that no request of the new plan meets a filter that does not know its upstreams.
    pub(crate) fn replace(&self, plan: Plan) {
        plan.enact();
        self.plan.store(Arc::new(plan));
        self.replaced.notify_waiters();
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is at fault.
    #[error("{0}")]
    Config(Box<Report>),
    /// The wasm engine does not run here.
    #[error("the wasm engine does not start")]
    Engine(#[source] selvedge_wasm::EngineError),
    /// A thread could not be made.
    #[error("worker {worker} does not start")]
    Worker {
        /// Which one.
        worker: usize,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A running node. Stop it with [`Node::shutdown`]; dropping it stops it without grace.
pub struct Node {
    name: String,
    control: Control,
    stop: watch::Sender<bool>,
    /// How long requests under way may take once the node stops, in milliseconds; shared with the workers, which look when it does.
    grace: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    access_log: AccessLog,
    admin: Option<AdminServer>,
}

/// A loader that knows the bundled filters.
#[must_use]
pub fn loader() -> Loader {
    Loader::new().builtin_filters(&bundled::names())
}

impl Node {
    /// Loads the configuration, binds every listener and starts the workers. When it returns, requests are answered.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub fn start(path: PathBuf, loader: Loader) -> Result<Self, StartError> {
        Self::inheriting(path, loader, Inherited::default())
    }

    /// The same, with sockets that listen already: what is configured at their addresses is served by them.
    ///
    /// # Errors
    /// See [`StartError`]; nothing is left running then.
    pub fn inheriting(path: PathBuf, loader: Loader, inherited: Inherited) -> Result<Self, StartError> {
        let loaded = loader.load(&path).map_err(|report| StartError::Config(Box::new(report)))?;
        let config = loaded.config.clone();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = config.node.workers.count(cores);
        let resources =
            Resources::inheriting(workers, &config.node.module_cache, inherited).map_err(StartError::Engine)?;

        let guard = config.admin.as_ref().map(|settings| Arc::new(Guard::new(settings)));
        let control =
            Control::new(path.clone(), loader, loaded, resources, guard.clone()).map_err(StartError::Config)?;
        control.resources().open_disks(&config);
        let admin = match config.admin.as_ref().zip(guard) {
            None => None,
            Some((settings, guard)) => {
                let state = admin::State {
                    name: config.node.name.clone(),
                    workers,
                    started: SystemTime::now(),
                    control: control.clone(),
                };
                let server = AdminServer::start(settings, guard, state).map_err(|error| {
                    let message = format!("the admin API cannot be served at {}: {error}", settings.bind);
                    let fault = Fault::at(&settings.position, message).with_key("admin");
                    StartError::Config(Box::new(Report::new(&path, vec![fault])))
                })?;
                info!(address = %server.shown_address(), "admin API");
                Some(server)
            }
        };
        if let Some(address) = control.metrics_address() {
            info!(%address, "metrics");
        }

        let (stop, _) = watch::channel(false);
        let mut node = Self {
            name: config.node.name.clone(),
            grace: Arc::clone(control.grace()),
            control,
            stop,
            threads: Vec::new(),
            access_log: AccessLog::start(config.telemetry.access_log),
            admin,
        };
        for worker in 0..workers {
            let thread = node.spawn_worker(worker).map_err(|source| StartError::Worker { worker, source })?;
            node.threads.push(thread);
        }
        node.control.resources().inherited().close_the_rest();
        Ok(node)
    }

    /// Another handle of every socket that listens, and what each is for: for a process that takes over.
    pub(crate) fn sockets(&mut self) -> io::Result<Vec<(String, Socket)>> {
        let mut sockets = self.control.sockets()?;
        if let Some(admin) = &mut self.admin {
            sockets.push(admin.server().socket()?);
        }
        Ok(sockets)
    }

    /// Another process has the sockets now.
    pub(crate) fn leave_sockets(&mut self) {
        if let Some(admin) = &mut self.admin {
            admin.server().leave_socket();
        }
        self.control.leave_sockets();
    }

    /// What the node can be told while it runs, from any thread.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// The address of each listener, by name; with real ports where the configuration says 0.
    #[must_use]
    pub fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        self.control.addresses()
    }

    /// Where metrics are served, if they are.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.control.metrics_address()
    }

    /// Where the admin API is served, if it is, and not on a Unix socket.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(AdminServer::address)
    }

    /// The plan in force.
    #[must_use]
    pub fn plan(&self) -> Arc<Plan> {
        self.control.current().plan()
    }

    /// Stops accepting, lets requests under way finish for at most the configured grace, and stops the workers.
    pub fn shutdown(mut self) {
        self.stop_workers();
    }

    fn stop_workers(&mut self) {
        self.control.drain();
        let _ = self.stop.send(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                warn!("a worker panicked");
            }
        }
        self.control.current().set_stream(None);
        self.control.current().set_peers(None);
        self.control.resources().keeper().stop();
        self.control.resources().retire();
        self.access_log.finish();
    }

    fn spawn_worker(&self, number: usize) -> io::Result<JoinHandle<()>> {
        // One thread serves; the runtime is of the kind that can hand its tasks to another when a filter's call takes long (see
        // `selvedge_wasm`). The thread spawned below only waits for the end.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name(format!("{}-{number}", self.name)).enable_all().build()?;
        let worker = Worker {
            number,
            current: Arc::clone(self.control.current()),
            listening: Arc::clone(self.control.listening()),
            access_log: self.access_log.sink(),
            conf: server_conf(),
            pool: Pool::new(),
        };
        let stop = self.stop.subscribe();
        let grace = Arc::clone(&self.grace);
        let thread = std::thread::Builder::new().name(format!("{}-{number}", self.name));
        thread.spawn(move || {
            runtime.block_on(async move {
                worker.pool.prepare();
                let (alive, mut all_gone) = mpsc::channel::<()>(1);
                let current = Arc::clone(&worker.current);
                let stopping = stop.clone();
                // On the worker: connections are served there, and plugins' loops run where their VMs are used.
                let ticks = tokio::spawn(async move { run_ticks(&current, number, stopping).await });
                let listeners = tokio::spawn(listening::attend(worker, stop, alive));
                if listeners.await.is_err() || ticks.await.is_err() {
                    warn!(worker = number, "a task of the worker's own failed");
                }
                let grace = Duration::from_millis(grace.load(Ordering::Relaxed));
                if tokio::time::timeout(grace, all_gone.recv()).await.is_err() {
                    warn!(worker = number, ?grace, "connections were still open after the grace period");
                }
            });
        })
    }
}

/// What Pingora is told of how we serve.
pub(crate) fn server_conf() -> Arc<ServerConf> {
    let (max_retries, upstream_keepalive_pool_size) = (retry::ATTEMPTS_MAX, KEPT_MAX);
    Arc::new(ServerConf { max_retries, upstream_keepalive_pool_size, ..ServerConf::default() })
}

impl Drop for Node {
    fn drop(&mut self) {
        self.grace.store(0, Ordering::Relaxed);
        self.stop_workers();
    }
}

/// Runs the ticks of the plan's plugins on this worker until the node stops; after a reload, those of the new plan. A plugin's loop ends
/// by itself when the last plan and request that used it are gone.
async fn run_ticks(current: &Current, worker: usize, mut stop: watch::Receiver<bool>) {
    let mut generation = 0;
    loop {
        let replaced = current.replaced.notified();
        tokio::pin!(replaced);
        replaced.as_mut().enable();
        let plan = current.plan();
        if plan.generation != generation {
            generation = plan.generation;
            for live in &plan.plugins {
                tokio::spawn(live.plugin.tick_loop(worker)); // Ends at once for one that has been kept.
            }
        }
        drop(plan);
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = replaced => {}
        }
    }
}
