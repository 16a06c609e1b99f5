//! What a running node can be told, from any thread: reload, roll back, say that it drains. One such order is carried out at a time.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use selvedge_config::{
    AccessLog, Bind, ByteSize, CacheDisk, Config, Effective, Fault, Loaded, Loader, ModuleCache, Report, Workers,
};
use tokio::sync::watch;
use tracing::{error, info};

use crate::admin::Guard;
use crate::cluster;
use crate::error_chain;
use crate::listening::Listening;
use crate::node::Current;
use crate::plan::{self, Built, Plan, Resources};
use crate::purge;
use crate::sockets::{Inherited, Socket};
use crate::telemetry;
use crate::telemetry::counters::{Observed, Reloaded};
use crate::telemetry::endpoint::MetricsServer;

/// How many configurations are kept to go back to.
const GENERATIONS_KEPT: usize = 10;

/// The controls of a running node. A clone is another handle of the same.
#[derive(Clone)]
pub struct Control(Arc<Inner>);

struct Inner {
    path: PathBuf,
    loader: Loader,
    resources: Arc<Resources>,
    current: Arc<Current>,
    listening: Arc<Listening>,
    guard: Option<Arc<Guard>>,
    ready: AtomicBool,
    /// The node stops: it will not be ready again.
    draining: AtomicBool,
    /// How long requests under way may take once the node stops, in milliseconds; shared with the workers, which look when it does.
    grace: Arc<AtomicU64>,
    /// One order after the other. Held while a plan is built, by the thread that was told: never by a worker.
    running: Mutex<Running>,
    /// What is asked while an order is carried out.
    told: Mutex<Told>,
    /// The files to watch; changes with every generation.
    files: watch::Sender<Vec<PathBuf>>,
}

/// What only orders change.
struct Running {
    /// What the configuration in force was made of.
    files: Vec<PathBuf>,
    settled: Settled,
    metrics: Option<(SocketAddr, MetricsServer)>,
}

#[derive(Default)]
struct Told {
    /// The latest last.
    generations: VecDeque<Kept>,
    failure: Option<Failure>,
}

struct Kept {
    generation: Generation,
    loaded: Arc<Loaded>,
}

/// A configuration that is or was in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Counts them from 1.
    pub number: u64,
    /// Since when.
    pub since: SystemTime,
    /// Where it came from.
    pub origin: Origin,
}

/// Where a configuration came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The files, when the node started.
    Start,
    /// The files, later.
    Reload,
    /// An earlier generation, of this number.
    RollBack(u64),
}

/// The last reload, when it failed.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it was tried.
    pub when: SystemTime,
    /// What is wrong.
    pub report: Box<Report>,
}

/// Why an earlier configuration is not in force again. Nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum RollBackError {
    /// It is not, or no longer, kept.
    #[error("there is no generation {0}: the last {GENERATIONS_KEPT} are kept")]
    Unknown(u64),
    /// What it names has changed meanwhile (a module, a certificate), or it needs a restart.
    #[error("{0}")]
    Faulty(Box<Report>),
}

impl Control {
    /// For a node that is about to start with this configuration: builds the plan and binds the listeners.
    pub(crate) fn new(
        path: PathBuf,
        loader: Loader,
        loaded: Loaded,
        resources: Arc<Resources>,
        guard: Option<Arc<Guard>>,
    ) -> Result<Self, Box<Report>> {
        let report = |faults| Box::new(Report::new(&path, faults));
        let kept = loaded.clone();
        let config = loaded.config.clone();
        let Built { plan, files } = plan::build(&resources, loaded).map_err(report)?;
        keep_purges(&config, &plan).map_err(|fault| report(vec![*fault]))?;
        let listening = Listening::new();
        let mut prepared = listening.prepare(&config, &resources).map_err(report)?;
        let current = Arc::new(Current::new(plan));
        cluster::hello::answer_others(resources.messages(), &current);
        hear_of_purges(&config, &current).map_err(|fault| report(vec![*fault]))?;
        tell_peers_of_purges(&current, &resources);
        let listening = Arc::new(listening);
        let page = MetricsPage::new(&resources, &current, &listening);
        let metrics = metrics_server(&config, page, resources.inherited()).map_err(|fault| report(vec![*fault]))?;
        let files = watched(files, &mut prepared.files);
        listening.put_in_force(prepared);

        let generation =
            Generation { number: current.plan().generation, since: SystemTime::now(), origin: Origin::Start };
        let told = Told { generations: VecDeque::from([Kept { generation, loaded: Arc::new(kept) }]), failure: None };
        resources.observed().counters.reloaded(Reloaded::Start);
        Ok(Self(Arc::new(Inner {
            loader,
            resources,
            current,
            listening,
            guard,
            ready: AtomicBool::new(true),
            draining: AtomicBool::new(false),
            grace: Arc::new(AtomicU64::new(millis(config.node.shutdown_grace))),
            running: Mutex::new(Running { files: files.clone(), settled: Settled::by(&config), metrics }),
            told: Mutex::new(told),
            files: watch::Sender::new(files),
            path,
        })))
    }

    /// Reads the configuration again and, when all of it is in order, puts it in force. Requests under way keep the old one; listeners
    /// that are as before keep their sockets. Blocks while modules are compiled and filters started: not for workers.
    ///
    /// # Errors
    /// Every fault of the new configuration; nothing has changed then. The number of workers and the address of the admin API only change
    /// with a restart, and saying so is a fault too.
    pub fn reload(&self) -> Result<u64, Box<Report>> {
        let mut running = self.0.running.lock();
        let done = self.0.loader.load(&self.0.path).map_err(Box::new);
        let done = done.and_then(|loaded| self.0.put_in_force(&mut running, loaded, Origin::Reload));
        self.0.tell(&running, &done);
        done
    }

    /// Puts an earlier configuration in force again, as the next generation. The files it was read from stay as they are; those it names
    /// (modules, certificates, databases) are read as they are now.
    ///
    /// # Errors
    /// See [`RollBackError`].
    pub fn roll_back(&self, generation: u64) -> Result<u64, RollBackError> {
        let mut running = self.0.running.lock();
        let kept = {
            let told = self.0.told.lock();
            let kept = told.generations.iter().find(|kept| kept.generation.number == generation);
            kept.map(|kept| Loaded::clone(&kept.loaded))
        };
        let loaded = kept.ok_or(RollBackError::Unknown(generation))?;
        let done = self.0.put_in_force(&mut running, loaded, Origin::RollBack(generation));
        self.0.tell(&running, &done);
        done.map_err(RollBackError::Faulty)
    }

    /// The configurations that were in force, the latest last; at most ten.
    #[must_use]
    pub fn generations(&self) -> Vec<Generation> {
        self.0.told.lock().generations.iter().map(|kept| kept.generation.clone()).collect()
    }

    /// What went wrong with the last reload or roll-back; `None` = it went well, or there was none.
    #[must_use]
    pub fn failure(&self) -> Option<Failure> {
        self.0.told.lock().failure.clone()
    }

    /// The configuration in force, as it was read.
    #[must_use]
    pub fn config(&self) -> Option<Config> {
        self.0.told.lock().generations.back().map(|kept| kept.loaded.config.clone())
    }

    /// The configuration in force as it is in effect, for people to read, without secrets; see [`Loaded::effective`]. With its generation.
    #[must_use]
    pub fn effective(&self) -> Option<(u64, Effective)> {
        let (number, loaded) = {
            let told = self.0.told.lock();
            let kept = told.generations.back()?;
            (kept.generation.number, Arc::clone(&kept.loaded))
        };
        Some((number, loaded.effective()))
    }

    /// Whether requests should be sent here, as `/v1/ready` says it: yes, until the node is told otherwise or stops.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Relaxed) && !self.is_draining()
    }

    /// Whether the node stops: it accepts nothing more, and will not be ready again.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Ordering::Relaxed)
    }

    /// Says that requests should be sent elsewhere, or here again. Those that come are served all the same.
    pub fn set_ready(&self, ready: bool) {
        if self.0.ready.swap(ready, Ordering::Relaxed) != ready {
            info!(ready, "told to the probes");
        }
    }

    /// Changes whenever other files are to be watched, that is with every reload.
    #[must_use]
    pub fn files(&self) -> watch::Receiver<Vec<PathBuf>> {
        self.0.files.subscribe()
    }

    /// The address of each listener in force, by name.
    #[must_use]
    pub fn addresses(&self) -> std::collections::BTreeMap<String, SocketAddr> {
        self.0.listening.addresses()
    }

    /// Another handle of every socket that listens, but the admin API's, and what each is for.
    pub(crate) fn sockets(&self) -> io::Result<Vec<(String, Socket)>> {
        let running = self.0.running.lock();
        let mut sockets = self.0.listening.sockets()?;
        if let Some((_, server)) = &running.metrics {
            sockets.push(server.socket()?);
        }
        Ok(sockets)
    }

    /// Another process has the sockets now.
    pub(crate) fn leave_sockets(&self) {
        self.0.listening.leave_sockets();
    }

    /// Where metrics are served, if they are.
    pub(crate) fn metrics_address(&self) -> Option<SocketAddr> {
        self.0.running.lock().metrics.as_ref().and_then(|(_, server)| server.address())
    }

    /// The page of metrics.
    pub(crate) fn metrics_page(&self) -> String {
        MetricsPage::new(&self.0.resources, &self.0.current, &self.0.listening).write()
    }

    /// How long requests under way may take once the node stops, in milliseconds.
    pub(crate) fn grace(&self) -> &Arc<AtomicU64> {
        &self.0.grace
    }

    pub(crate) fn current(&self) -> &Arc<Current> {
        &self.0.current
    }

    pub(crate) fn listening(&self) -> &Arc<Listening> {
        &self.0.listening
    }

    pub(crate) fn resources(&self) -> &Arc<Resources> {
        &self.0.resources
    }

    /// Nothing more is accepted, and connections end after the exchange they are in. Waits for an order that is being carried out.
    pub(crate) fn drain(&self) {
        self.0.draining.store(true, Ordering::Relaxed);
        self.set_ready(false);
        let _running = self.0.running.lock();
        self.0.listening.drain();
    }
}

impl Inner {
    fn put_in_force(&self, running: &mut Running, loaded: Loaded, origin: Origin) -> Result<u64, Box<Report>> {
        let report = |faults| Box::new(Report::new(&self.path, faults));
        let kept = loaded.clone();
        let config = loaded.config.clone();

        let mut faults = restart_needed(running, &config);
        let built = plan::build(&self.resources, loaded).map_err(|more| faults.extend(more)).ok();
        let prepared = self.listening.prepare(&config, &self.resources).map_err(|more| faults.extend(more)).ok();
        let metrics = self.metrics(running, &config).map_err(|fault| faults.push(*fault)).ok();
        let (Some(built), Some(mut prepared), Some(metrics)) = (built, prepared, metrics) else {
            return Err(report(faults));
        };
        if !faults.is_empty() {
            return Err(report(faults));
        }
        keep_purges(&config, &built.plan).map_err(|fault| report(vec![*fault]))?;

        // From here on nothing fails.
        let generation = Generation { number: built.plan.generation, since: SystemTime::now(), origin };
        let number = generation.number;
        let files = watched(built.files, &mut prepared.files);
        let purge_log = || config.cache.as_ref().map(|cache| cache.purge.log.clone());
        running.settled.purge_log = running.settled.purge_log.take().or_else(purge_log);
        running.settled.cache = running.settled.cache.take().or_else(|| Settled::by(&config).cache);
        self.resources.open_disks(&config);
        self.grace.store(millis(config.node.shutdown_grace), Ordering::Relaxed);
        // The plan first: a new listener must not meet one that does not know it.
        self.current.replace(built.plan);
        tell_peers_of_purges(&self.current, &self.resources);
        self.listening.put_in_force(prepared);
        match metrics {
            Metrics::AsBefore => {}
            Metrics::Elsewhere(server) => running.metrics = server,
        }
        if let (Some(guard), Some(settings)) = (&self.guard, &config.admin) {
            guard.renew(settings);
        }
        let mut told = self.told.lock();
        if told.generations.len() == GENERATIONS_KEPT {
            told.generations.pop_front();
        }
        told.generations.push_back(Kept { generation, loaded: Arc::new(kept) });
        drop(told);
        running.files.clone_from(&files);
        self.files.send_replace(files);
        match origin {
            Origin::RollBack(to) => info!(generation = number, to, "configuration rolled back"),
            Origin::Start | Origin::Reload => info!(generation = number, "configuration reloaded"),
        }
        Ok(number)
    }

    /// Keeps and tells how an order went.
    fn tell(&self, running: &Running, done: &Result<u64, Box<Report>>) {
        let failure = done.as_ref().err().map(|report| Failure { when: SystemTime::now(), report: report.clone() });
        if let Some(failure) = &failure {
            error!("the configuration was not reloaded; the old one stays in force\n{}", failure.report);
            // What is wrong may be put right in a file that only the new configuration has.
            let mut tried = failure.report.files.clone();
            self.files.send_replace(watched(running.files.clone(), &mut tried));
        }
        self.resources.observed().counters.reloaded(if failure.is_some() { Reloaded::Failed } else { Reloaded::Done });
        self.told.lock().failure = failure;
    }

    /// Where metrics are to be served from now on.
    fn metrics(&self, running: &Running, config: &Config) -> Result<Metrics, Box<Fault>> {
        let wanted = config.telemetry.metrics.as_ref().map(|metrics| metrics.bind);
        if running.metrics.as_ref().map(|(bind, _)| *bind) == wanted {
            return Ok(Metrics::AsBefore);
        }
        let page = MetricsPage::new(&self.resources, &self.current, &self.listening);
        metrics_server(config, page, self.resources.inherited()).map(Metrics::Elsewhere)
    }
}

/// Where purges are kept when `cache.disk` is configured and `cache.purge.log` is not: in the first folder.
const PURGE_LOG: &str = "purge.log";

/// Takes over the purges of earlier runs, and keeps those to come, before anything is served from the cache.
fn keep_purges(config: &Config, plan: &Plan) -> Result<(), Box<Fault>> {
    let Some((settings, cache)) = config.cache.as_ref().zip(plan.cache) else { return Ok(()) };
    let fault = |path: &Path, key: &'static str, error: &(dyn std::error::Error + 'static)| {
        let message = format!("purges cannot be kept in {}: {}", path.display(), error_chain(error));
        Box::new(Fault::at(&settings.position, message).with_key(key))
    };
    if let Some(path) = &settings.purge.log {
        return cache.open_log(path).map_err(|error| fault(path, "cache.purge.log", &error));
    }
    // What is on disk outlives the process, so its purges have to.
    let Some(folder) = settings.disk.as_ref().and_then(|disk| disk.folders.first()) else { return Ok(()) };
    let path = folder.path.join(PURGE_LOG);
    std::fs::create_dir_all(&folder.path).map_err(|error| fault(&path, "cache.disk", &error))?;
    cache.open_log(&path).map_err(|error| fault(&path, "cache.disk", &error))
}

/// From now on the purges of other nodes are carried out here, and this node's are told to them.
fn hear_of_purges(config: &Config, current: &Arc<Current>) -> Result<(), Box<Fault>> {
    let Some(redis) = &config.redis else { return Ok(()) };
    let settings = purge::Settings {
        url: redis.url.clone(),
        username: redis.username.clone(),
        password: redis.password.clone(),
        key: redis.key.clone(),
        node: redis.node.clone().unwrap_or_else(|| config.node.name.clone()),
    };
    let stream = purge::Stream::start(settings, current).map_err(|error| {
        let message = format!("purges cannot be told to other nodes: {error}");
        Box::new(Fault::at(&redis.position, message).with_key("cluster.redis"))
    })?;
    current.set_stream(Some(stream));
    Ok(())
}

/// The same without Redis, once there are other nodes.
fn tell_peers_of_purges(current: &Arc<Current>, resources: &Resources) {
    if current.plan().cluster.is_none() || current.stream().is_some() || current.peers().is_some() {
        return;
    }
    match purge::Peers::start(current, resources.messages()) {
        Ok(peers) => current.set_peers(Some(peers)),
        Err(error) => error!(%error, "purges are not told to other nodes"),
    }
}

enum Metrics {
    AsBefore,
    Elsewhere(Option<(SocketAddr, MetricsServer)>),
}

/// What the page of metrics is made from.
struct MetricsPage {
    observed: Observed,
    current: Arc<Current>,
    listening: Arc<Listening>,
}

impl MetricsPage {
    fn new(resources: &Resources, current: &Arc<Current>, listening: &Arc<Listening>) -> Self {
        Self { observed: resources.observed(), current: Arc::clone(current), listening: Arc::clone(listening) }
    }

    fn write(&self) -> String {
        let redis = self.current.stream().map(|stream| (stream.usage(), true));
        let stream = redis.or_else(|| self.current.peers().map(|peers| (peers.usage(), false)));
        telemetry::page(&self.observed, &self.current.plan(), stream, &self.listening.certificates())
    }
}

fn metrics_server(
    config: &Config,
    page: MetricsPage,
    inherited: &Inherited,
) -> Result<Option<(SocketAddr, MetricsServer)>, Box<Fault>> {
    let Some(settings) = &config.telemetry.metrics else { return Ok(None) };
    let page = Arc::new(move || page.write());
    let server = MetricsServer::start(settings.bind, page, inherited).map_err(|error| {
        let message = format!("metrics cannot be served at {}: {error}", settings.bind);
        Box::new(Fault::at(&settings.position, message).with_key("telemetry.metrics"))
    })?;
    Ok(Some((settings.bind, server)))
}

/// What a process settles when it starts, and a reload cannot change.
#[derive(Clone)]
struct Settled {
    admin: Option<Bind>,
    workers: Workers,
    module_cache: ModuleCache,
    access_log: AccessLog,
    /// Set with the first configuration that has a cache.
    cache: Option<(ByteSize, Option<CacheDisk>)>,
    /// The same; inside: set once there is a log.
    purge_log: Option<Option<PathBuf>>,
    /// But for where it is written.
    redis: Option<[Option<String>; 5]>,
}

impl Settled {
    fn by(config: &Config) -> Self {
        Self {
            admin: config.admin.as_ref().map(|admin| admin.bind.clone()),
            workers: config.node.workers,
            module_cache: config.node.module_cache.clone(),
            access_log: config.telemetry.access_log,
            cache: config.cache.as_ref().map(|cache| (cache.memory.size, cache.disk.clone())),
            purge_log: config.cache.as_ref().map(|cache| cache.purge.log.clone()),
            redis: config.redis.as_ref().map(|redis| {
                let redis = redis.clone();
                [Some(redis.url), redis.username, redis.password, Some(redis.key), redis.node]
            }),
        }
    }

    /// The keys that another configuration would change.
    fn changed_by(&self, new: &Config) -> Vec<&'static str> {
        let new = Self::by(new);
        let caches = self.cache.as_ref().zip(new.cache.as_ref());
        [
            ("admin.bind", self.admin != new.admin),
            ("node.workers", self.workers != new.workers),
            ("node.module_cache", self.module_cache != new.module_cache),
            ("telemetry.access_log", self.access_log != new.access_log),
            ("cache.memory.size", caches.is_some_and(|(old, new)| old.0 != new.0)),
            ("cache.disk", caches.is_some_and(|(old, new)| old.1 != new.1)),
            ("cluster.redis", self.redis != new.redis),
            (
                "cache.purge.log",
                self.purge_log.as_ref().zip(new.purge_log.as_ref()).is_some_and(|(old, new)| old != new),
            ),
        ]
        .into_iter()
        .filter_map(|(key, differs)| differs.then_some(key))
        .collect()
    }
}

/// What a reload from one configuration to another cannot change: the keys that are different.
pub(crate) fn fixed(old: &Config, new: &Config) -> Vec<&'static str> {
    Settled::by(old).changed_by(new)
}

/// The same as faults.
fn restart_needed(running: &Running, config: &Config) -> Vec<Fault> {
    // Keys that are absent now have no position of their own; the first listener's file is the one that is read.
    let somewhere = config.listeners.values().next().map(|listener| &listener.position);
    let fault = |key: &'static str| {
        let of_key = config.admin.as_ref().filter(|_| key.starts_with("admin")).map(|admin| &admin.position);
        let position = of_key.or(somewhere)?;
        Some(Fault::at(position, format!("{key} has changed: it needs a restart")).with_key(key))
    };
    running.settled.changed_by(config).into_iter().filter_map(fault).collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn watched(mut files: Vec<PathBuf>, more: &mut Vec<PathBuf>) -> Vec<PathBuf> {
    files.append(more);
    files.sort();
    files.dedup_by(|a, b| Path::eq(a, b));
    files
}
