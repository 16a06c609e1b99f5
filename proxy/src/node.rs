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

use arc_swap::ArcSwap;
use pingora::apps::{HttpServerApp, HttpServerOptions};
use pingora::server::configuration::ServerConf;
use selvedge_config::{Config, Fault, Host, Listener, Loaded, Loader, Protocol, Report};
use tokio::sync::{Notify, mpsc, watch};
use tracing::{info, warn};

use crate::admin::{self, AdminServer};
use crate::bundled;
use crate::listener::{self, Bound, Door, ListenerFacts};
use crate::plan::{self, Built, Plan, Resources};
use crate::request::Edge;
use crate::tcp::{self, TcpDoor};
use crate::telemetry::endpoint::MetricsServer;
use crate::telemetry::{self, AccessLog};
use crate::tls::{self, CertificateStore};

/// The plan in force.
pub struct Current {
    plan: ArcSwap<Plan>,
    /// Rings when the plan is replaced: the workers start the new plugins' ticks.
    replaced: Notify,
}

impl Current {
    /// The plan in force now.
    #[must_use]
    pub fn plan(&self) -> Arc<Plan> {
        self.plan.load_full()
    }

    /// Puts another plan in force. Filters that both plans have look at the new one a moment earlier than requests do, so that no request
    /// of the new plan meets a filter that does not know its upstreams.
    fn replace(&self, plan: Arc<Plan>) {
        plan.enact();
        self.plan.store(plan);
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
    path: PathBuf,
    name: String,
    loader: Loader,
    resources: Arc<Resources>,
    current: Arc<Current>,
    listeners: BTreeMap<String, Listener>,
    workers_setting: selvedge_config::Workers,
    stores: BTreeMap<String, Arc<CertificateStore>>,
    addresses: BTreeMap<String, SocketAddr>,
    files: Vec<PathBuf>,
    stop: watch::Sender<bool>,
    /// How long requests under way may take once the node stops, in milliseconds; shared with the workers, which look when it does.
    grace: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    access_log: AccessLog,
    metrics_setting: Option<SocketAddr>,
    metrics: Option<MetricsServer>,
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
        let loaded = loader.load(&path).map_err(|report| StartError::Config(Box::new(report)))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = loaded.config.node.workers.count(cores);
        let resources = Resources::new(workers, &loaded.config.node.module_cache).map_err(StartError::Engine)?;

        let config = loaded.config.clone();
        let faulty = |faults| StartError::Config(Box::new(Report::new(&path, faults)));
        let Built { plan, files } = plan::build(&resources, loaded).map_err(&faulty)?;
        let (bound, stores) = bind(&config).map_err(&faulty)?;

        let current = Arc::new(Current { plan: ArcSwap::from_pointee(plan), replaced: Notify::new() });
        let metrics = match &config.telemetry.metrics {
            None => None,
            Some(settings) => Some(metrics_server(settings, &resources, &current).map_err(&faulty)?),
        };
        let addresses: BTreeMap<String, SocketAddr> =
            bound.iter().map(|bound| (bound.facts.name.clone(), bound.address)).collect();
        let admin = match &config.admin {
            None => None,
            Some(settings) => {
                let state = admin::State {
                    name: config.node.name.clone(),
                    workers,
                    started: SystemTime::now(),
                    addresses: addresses.clone(),
                    current: Arc::clone(&current),
                    observed: resources.observed(),
                };
                Some(admin_server(settings, state).map_err(&faulty)?)
            }
        };
        let access_log = AccessLog::start(config.telemetry.access_log);
        let (stop, _) = watch::channel(false);

        let mut node = Self {
            path: path.clone(),
            name: config.node.name.clone(),
            loader,
            resources,
            current,
            listeners: config.listeners.clone(),
            workers_setting: config.node.workers,
            stores,
            addresses,
            files,
            stop,
            grace: Arc::new(AtomicU64::new(u64::try_from(config.node.shutdown_grace.as_millis()).unwrap_or(u64::MAX))),
            threads: Vec::new(),
            access_log,
            metrics_setting: config.telemetry.metrics.as_ref().map(|metrics| metrics.bind),
            metrics,
            admin,
        };
        let bound = Arc::new(bound);
        for worker in 0..workers {
            let thread = node
                .spawn_worker(worker, Arc::clone(&bound))
                .map_err(|source| StartError::Worker { worker, source })?;
            node.threads.push(thread);
        }
        for (name, address) in &node.addresses {
            info!(listener = %name, %address, "listening");
        }
        if let Some(address) = node.metrics_address() {
            info!(%address, "metrics");
        }
        if let Some(admin) = &node.admin {
            info!(address = %admin.shown_address(), "admin API");
        }
        Ok(node)
    }

    /// The address of each listener, by name; with real ports where the configuration says 0.
    #[must_use]
    pub fn addresses(&self) -> &BTreeMap<String, SocketAddr> {
        &self.addresses
    }

    /// Where metrics are served, if they are.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(MetricsServer::address)
    }

    /// Where the admin API is served, if it is, and not on a Unix socket.
    #[must_use]
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(AdminServer::address)
    }

    /// The plan in force.
    #[must_use]
    pub fn plan(&self) -> Arc<Plan> {
        self.current.plan()
    }

    /// The files whose change should lead to a reload.
    #[must_use]
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }

    /// Reads the configuration again and, when all of it is in order, swaps the plan. Requests under way keep the old one.
    ///
    /// # Errors
    /// Every fault of the new configuration; nothing has changed then. Listeners and the number of workers only change with a restart,
    /// and saying so is a fault too.
    pub fn reload(&mut self) -> Result<u64, Box<Report>> {
        let loaded: Loaded = self.loader.load(&self.path)?;
        let config = loaded.config.clone();
        let report = |faults| Box::new(Report::new(&self.path, faults));

        let mut faults = restart_needed(self, &config);
        let built = plan::build(&self.resources, loaded);
        let built = match built {
            Ok(built) => Some(built),
            Err(more) => {
                faults.extend(more);
                None
            }
        };
        let mut renewed = Vec::new();
        for (name, listener) in &config.listeners {
            let (Some(store), Some(tls)) = (self.stores.get(name), &listener.tls) else { continue };
            match store.renew(&tls.certificates) {
                Ok(certificates) => renewed.push((store, certificates)),
                Err(error) => faults.push(Fault::at(&listener.position, crate::error_chain(&error))),
            }
        }
        let Some(built) = built.filter(|_| faults.is_empty()) else { return Err(report(faults)) };

        for (store, certificates) in renewed {
            store.swap(certificates);
        }
        if let (Some(server), Some(settings)) = (&self.admin, &config.admin) {
            server.renew(settings);
        }
        let generation = built.plan.generation;
        self.files = built.files;
        self.current.replace(Arc::new(built.plan));
        info!(generation, "configuration reloaded");
        Ok(generation)
    }

    /// Stops accepting, lets requests under way finish for at most the configured grace, and stops the workers.
    pub fn shutdown(mut self) {
        self.stop_workers();
    }

    fn stop_workers(&mut self) {
        let _ = self.stop.send(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                warn!("a worker panicked");
            }
        }
        self.access_log.finish();
    }

    fn spawn_worker(&self, worker: usize, bound: Arc<Vec<Bound>>) -> io::Result<JoinHandle<()>> {
        // One thread serves; the runtime is of the kind that can hand its tasks to another when a filter's call takes long (see
        // `selvedge_wasm`). The thread spawned below only waits for the end.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(1).thread_name(format!("{}-{worker}", self.name)).enable_all().build()?;
        let mut sockets = Vec::new();
        {
            let _entered = runtime.enter();
            for listener in bound.iter() {
                sockets.push(tokio::net::TcpListener::from_std(listener.socket.try_clone()?)?);
            }
        }

        let current = Arc::clone(&self.current);
        let stop = self.stop.subscribe();
        let grace = Arc::clone(&self.grace);
        let access_log = self.access_log.sink();
        let thread = std::thread::Builder::new().name(format!("{}-{worker}", self.name));
        thread.spawn(move || {
            runtime.block_on(async move {
                let conf = Arc::new(ServerConf { max_retries: 4, ..ServerConf::default() });
                let (alive, mut all_gone) = mpsc::channel::<()>(1);
                let mut doors = Vec::new();
                for (listener, socket) in bound.iter().zip(sockets) {
                    if listener.facts.tcp {
                        let door = TcpDoor::new(&current, listener, worker, access_log.clone());
                        tokio::spawn(tcp::accept(socket, door, stop.clone(), alive.clone()));
                        continue;
                    }
                    let door = door(&conf, &current, &listener.facts, worker, access_log.clone());
                    doors.push(Arc::clone(&door));
                    tokio::spawn(listener::accept(socket, door, listener.tls.clone(), stop.clone(), alive.clone()));
                }
                drop(alive);
                drop(bound); // With the last accept loop the socket closes, and who comes then is refused.

                // On the worker: plugins' loops run where their VMs are used.
                let ticks = tokio::spawn(async move { run_ticks(&current, worker, stop).await });
                if ticks.await.is_err() {
                    warn!(worker, "the ticks' task failed");
                }

                for door in &doors {
                    door.http_cleanup().await; // Idle connections end now.
                }
                let grace = Duration::from_millis(grace.load(Ordering::Relaxed));
                if tokio::time::timeout(grace, all_gone.recv()).await.is_err() {
                    warn!(worker, ?grace, "connections were still open after the grace period");
                }
            });
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.grace.store(0, Ordering::Relaxed);
        self.stop_workers();
    }
}

fn door(
    conf: &Arc<ServerConf>,
    current: &Arc<Current>,
    facts: &Arc<ListenerFacts>,
    worker: usize,
    access_log: crate::telemetry::AccessLogSink,
) -> Arc<Door> {
    let edge = Edge { current: Arc::clone(current), listener: Arc::clone(facts), worker, access_log };
    let mut proxy = pingora::proxy::http_proxy(conf, edge);
    let mut options = HttpServerOptions::default();
    options.h2c = facts.http2 && !facts.tls;
    options.h2_idle_timeout = Some(facts.idle_timeout);
    proxy.server_options = Some(options.clone());
    Arc::new(Door { proxy: Arc::new(proxy), facts: Arc::clone(facts), options })
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

type BoundListeners = (Vec<Bound>, BTreeMap<String, Arc<CertificateStore>>);

fn bind(config: &Config) -> Result<BoundListeners, Vec<Fault>> {
    let names = development_names(config);
    let mut faults = Vec::new();
    let mut all = Vec::new();
    let mut stores = BTreeMap::new();
    for (index, (name, listener)) in config.listeners.iter().enumerate() {
        match bind_one(index, name, listener, &names, &mut stores) {
            Ok(bound) => all.push(bound),
            Err(message) => faults.push(Fault::at(&listener.position, message)),
        }
    }
    if faults.is_empty() { Ok((all, stores)) } else { Err(faults) }
}

fn bind_one(
    index: usize,
    name: &str,
    listener: &Listener,
    names: &[String],
    stores: &mut BTreeMap<String, Arc<CertificateStore>>,
) -> Result<Bound, String> {
    // What is spoken is HTTP, or nobody's business: then no protocol is offered.
    let protocols: &[Protocol] = if listener.tcp.is_some() { &[] } else { &listener.protocols };
    let tls = match &listener.tls {
        None => None,
        Some(tls) => {
            let store = CertificateStore::load(&tls.certificates, names).map_err(|error| crate::error_chain(&error))?;
            stores.insert(name.to_owned(), Arc::clone(&store));
            let config = tls::server_config(tls, protocols, store).map_err(|error| crate::error_chain(&error))?;
            Some(config)
        }
    };
    let cannot = |error: io::Error| format!("listener {name} cannot listen on {}: {error}", listener.bind);
    let socket = std::net::TcpListener::bind(listener.bind).map_err(cannot)?;
    socket.set_nonblocking(true).map_err(cannot)?;
    let address = socket.local_addr().map_err(cannot)?;
    let facts = Arc::new(ListenerFacts {
        index,
        name: name.to_owned(),
        tls: tls.is_some(),
        http2: protocols.contains(&Protocol::H2),
        http1: protocols.contains(&Protocol::H1),
        tcp: listener.tcp.is_some(),
        body_limit: listener.limits.body.bytes(),
        header_timeout: listener.limits.header_timeout,
        idle_timeout: listener.limits.idle_timeout,
    });
    Ok(Bound { facts, address, socket, tls })
}

fn metrics_server(
    settings: &selvedge_config::MetricsEndpoint,
    resources: &Arc<Resources>,
    current: &Arc<Current>,
) -> Result<MetricsServer, Vec<Fault>> {
    let (observed, current) = (resources.observed(), Arc::clone(current));
    let page = Arc::new(move || telemetry::page(&observed, current.plan().generation));
    MetricsServer::start(settings.bind, page).map_err(|error| {
        let message = format!("metrics cannot be served at {}: {error}", settings.bind);
        vec![Fault::at(&settings.position, message).with_key("telemetry.metrics")]
    })
}

fn admin_server(settings: &selvedge_config::Admin, state: admin::State) -> Result<AdminServer, Vec<Fault>> {
    AdminServer::start(settings, state).map_err(|error| {
        let message = format!("the admin API cannot be served at {}: {error}", settings.bind);
        vec![Fault::at(&settings.position, message).with_key("admin")]
    })
}

/// What a development certificate is made out to: this machine, and the sites' own names.
fn development_names(config: &Config) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
    for host in config.sites.iter().flat_map(|site| &site.hosts) {
        match host {
            Host::Exact(name) if !names.contains(name) => names.push(name.clone()),
            Host::Wildcard(parent) => names.push(format!("*.{parent}")),
            Host::Exact(_) | Host::Any => {}
        }
    }
    names
}

/// What a reload cannot change.
fn restart_needed(node: &Node, config: &Config) -> Vec<Fault> {
    let mut faults = Vec::new();
    let fixed = |listener: &Listener| {
        let tls = listener.tls.as_ref().map(|tls| tls.min);
        (listener.bind, listener.protocols.clone(), tls, listener.tcp.is_some(), listener.limits)
    };
    for (name, listener) in &config.listeners {
        match node.listeners.get(name) {
            None => faults.push(Fault::at(&listener.position, format!("listener {name} is new: it needs a restart"))),
            Some(old) if fixed(old) != fixed(listener) => {
                let message = format!(
                    "listener {name} has changed: all but its certificates and what is in `tcp` needs a restart"
                );
                faults.push(Fault::at(&listener.position, message));
            }
            Some(_) => {}
        }
    }
    for (name, listener) in &node.listeners {
        if !config.listeners.contains_key(name) {
            faults.push(Fault::at(&listener.position, format!("listener {name} is gone: that needs a restart")));
        }
    }
    let metrics = config.telemetry.metrics.as_ref();
    if node.metrics_setting != metrics.map(|metrics| metrics.bind) {
        let position = metrics.map(|metrics| &metrics.position);
        if let Some(position) = position.or_else(|| config.listeners.values().next().map(|listener| &listener.position))
        {
            let message = "telemetry.metrics has changed: it needs a restart";
            faults.push(Fault::at(position, message).with_key("telemetry.metrics"));
        }
    }
    let admin = config.admin.as_ref();
    if node.admin.as_ref().map(AdminServer::setting) != admin.map(|admin| &admin.bind) {
        let position = admin.map(|admin| &admin.position);
        if let Some(position) = position.or_else(|| config.listeners.values().next().map(|listener| &listener.position))
        {
            faults.push(Fault::at(position, "admin.bind has changed: it needs a restart").with_key("admin.bind"));
        }
    }
    if node.workers_setting != config.node.workers {
        // The key has no position of its own; the first listener's file is the one that is read.
        if let Some(listener) = config.listeners.values().next() {
            faults.push(
                Fault::at(&listener.position, "node.workers has changed: it needs a restart").with_key("node.workers"),
            );
        }
    }
    faults
}
