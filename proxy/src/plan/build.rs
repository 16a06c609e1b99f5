//! From the configuration as written to the plan: resolves names and addresses, compiles modules, starts plugins, opens databases.
//! What goes wrong is reported at its place in the file, all of it together; nothing that runs is touched.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use selvedge_cache::disk::{Admit, DiskOptions, Limits as DiskLimits, StoreOptions};
use selvedge_cache::purge::{TagHeader, TagPolicy};
use selvedge_cache::{Beyond, Cache, CacheOptions, DiskTier, KeyScope, QueryPolicy, RoutePolicy, SetCookies};
use selvedge_config::{
    CacheDisk, CacheKey, CachePolicy, Config, Fault, Filter, FilterUse, GeoDatabase, Loaded, ModuleCache, QueryKey,
    Ranges, SetCookie, TagField, Target as TargetConfig, Ttl, WasmSource,
};
use selvedge_demo::Demo;
use selvedge_geoip::{Geo, GeoSource};
use selvedge_wasm::{
    Compat, Engine, EngineOptions, Isolation, Limits, Metrics, Module, Phases, Plugin, PluginOptions, SharedData,
    SharedQueues, Snapshots,
};
use sha2::{Digest, Sha256};
use tracing::{debug, error, info, warn};

use super::host::{NodeHost, View};
use super::identity::Identity;
use super::live::{Live, Registry};
use super::router::{Router, Rule};
use super::settings::{self, Schema};
use super::{BodyMode, CacheRule, ChainFilter, Plan, Route, Split, Target, TcpRoute, Trouble};
use crate::bundled;
use crate::cluster::counts::Counts;
use crate::cluster::messages::Handlers;
use crate::cluster::{self, Cluster};
use crate::compress::Compress;
use crate::error_chain;
use crate::files::Files;
use crate::purge;
use crate::request::actions::{Fields, Redirect, Rewrite};
use crate::request::cors::Cors;
use crate::request::key_parts::KeyParts;
use crate::request::mirror::Mirror;
use crate::request::slices::Slices;
use crate::sockets::Inherited;
use crate::telemetry::counters::{Counters, Observed};
use crate::telemetry::trace::TraceKey;
use crate::upstream::{self, DialFor, Keeper, Upstreams};

/// What is made once per node and outlives every plan: the engine and its compiled modules, the filters' shared data and metrics,
/// the cache, the demo origin.
pub struct Resources {
    engine: Arc<Engine>,
    /// Compiled modules in use, by the hash of their bytes; what no plan uses any more is freed.
    modules: Mutex<HashMap<[u8; 32], Weak<Module>>>,
    live: Registry,
    shared: Arc<SharedData>,
    metrics: Arc<Metrics>,
    queues: Arc<SharedQueues>,
    counters: Arc<Counters>,
    /// What is counted about other nodes of the cluster, and who answers their messages.
    nodes: Arc<Counts>,
    messages: Arc<Handlers>,
    /// Where the starts of filters are recorded, once that is wanted.
    start_trace: OnceLock<Arc<selvedge_wasm::Trace>>,
    troubles: Mutex<HashMap<String, Arc<Trouble>>>,
    /// Looks after the upstreams of the plan in force.
    keeper: Arc<Keeper>,
    demo: Mutex<Option<Demo>>,
    cache: OnceLock<&'static Cache>,
    /// No socket is opened.
    offline: bool,
    /// The number of every listener's name that was ever configured.
    listeners: Mutex<HashMap<String, usize>>,
    workers: usize,
    generations: AtomicU64,
    /// Sockets that listen already.
    inherited: Inherited,
}

/// How exactly filters' deadlines are kept. Finer costs the whole node a wake-up each time, which shows in the CPU a request takes.
/// How long a start waits for what the cache has on disk; the rest is found as soon as it is loaded.
const DISKS_WAITED_FOR: Duration = Duration::from_secs(1);
/// How long the end waits for what is on its way to the cache's disks.
const DISKS_CLOSED_WITHIN: Duration = Duration::from_secs(30);
const DEADLINE_PRECISION: Duration = Duration::from_millis(5);

/// Where the demo origin is while no socket is opened: an address for documentation (RFC 3849).
const DEMO_OFFLINE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V6(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 80);

impl Resources {
    /// For a node with this many workers. Starts the engine's deadline clock; compiles nothing yet.
    ///
    /// # Errors
    /// The engine does not run on this machine.
    pub fn new(workers: usize, module_cache: &ModuleCache) -> Result<Arc<Self>, selvedge_wasm::EngineError> {
        Self::inheriting(workers, module_cache, Inherited::default())
    }

    /// The same, for a process that was given sockets which listen already.
    ///
    /// # Errors
    /// The engine does not run on this machine.
    pub fn inheriting(
        workers: usize,
        module_cache: &ModuleCache,
        inherited: Inherited,
    ) -> Result<Arc<Self>, selvedge_wasm::EngineError> {
        Ok(Self::with(workers, engine(module_cache)?, Keeper::default(), false, inherited))
    }

    /// For questions about a configuration: no socket is opened for its plans, and nobody is asked anything. Names stand for addresses
    /// that nobody has, and so does the demo origin; `dial` makes the connections.
    ///
    /// # Errors
    /// The engine does not run on this machine.
    pub(crate) fn offline(module_cache: &ModuleCache, dial: DialFor) -> Result<Arc<Self>, selvedge_wasm::EngineError> {
        Ok(Self::with(1, engine(module_cache)?, Keeper::offline(dial), true, Inherited::default()))
    }

    /// The same modules, and nothing else of what was learnt or stored: for another question.
    pub(crate) fn afresh(&self, dial: DialFor) -> Arc<Self> {
        let fresh =
            Self::with(self.workers, Arc::clone(&self.engine), Keeper::offline(dial), true, Inherited::default());
        fresh.modules.lock().clone_from(&self.modules.lock());
        fresh
    }

    fn with(workers: usize, engine: Arc<Engine>, keeper: Keeper, offline: bool, inherited: Inherited) -> Arc<Self> {
        Arc::new(Self {
            engine,
            modules: Mutex::default(),
            live: Registry::default(),
            shared: Arc::default(),
            metrics: Arc::default(),
            queues: Arc::default(),
            counters: Arc::default(),
            nodes: Arc::default(),
            messages: Arc::default(),
            start_trace: OnceLock::new(),
            troubles: Mutex::default(),
            keeper: Arc::new(keeper),
            demo: Mutex::new(None),
            cache: OnceLock::new(),
            offline,
            listeners: Mutex::default(),
            workers,
            generations: AtomicU64::new(0),
            inherited,
        })
    }

    /// Where everything that is counted is found.
    pub(crate) fn observed(&self) -> Observed {
        Observed {
            counters: Arc::clone(&self.counters),
            metrics: Arc::clone(&self.metrics),
            shared: Arc::clone(&self.shared),
            queues: Arc::clone(&self.queues),
            start_trace: self.start_trace.get().cloned(),
        }
    }

    /// From now on the starts of filters are recorded here.
    pub(crate) fn trace_starts(&self, trace: &Arc<selvedge_wasm::Trace>) {
        let _ = self.start_trace.set(Arc::clone(trace));
    }

    /// Who answers the messages of other nodes of the cluster.
    pub(crate) fn messages(&self) -> &Arc<Handlers> {
        &self.messages
    }

    /// What looks after the upstreams.
    pub(crate) fn keeper(&self) -> &Arc<Keeper> {
        &self.keeper
    }

    /// Sockets that listen already, and that nobody has taken.
    pub(crate) fn inherited(&self) -> &Inherited {
        &self.inherited
    }

    /// The node begins to serve, or has taken over this configuration: put the cache's disks below its memory, if there are to be some.
    /// They are not touched before: a configuration that is only checked must leave them alone.
    pub(crate) fn open_disks(&self, config: &Config) {
        let disk = config.cache.as_ref().and_then(|cache| cache.disk.as_ref());
        let (Some(disk), Some(cache)) = (disk, self.cache.get()) else { return };
        if let Err(error) = cache.open_disks(disk_tier(disk)) {
            error!(%error, "the cache's disks are not used: no threads for them");
        }
        cache.wait(DISKS_WAITED_FOR);
    }

    /// The node has stopped: its cache holds nothing for anybody.
    pub(crate) fn retire(&self) {
        if let Some(cache) = self.cache.get() {
            cache.close(DISKS_CLOSED_WITHIN);
            cache.retire();
        }
    }

    /// How many workers the node has.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers
    }

    /// The number of a listener: the same for its name, whatever is reloaded. Numbers are small, because they are used as places in lists.
    pub(crate) fn listener_index(&self, name: &str) -> usize {
        let mut listeners = self.listeners.lock();
        let next = listeners.len();
        *listeners.entry(name.to_owned()).or_insert(next)
    }

    fn module(&self, name: &str, wasm: &[u8]) -> Result<Arc<Module>, selvedge_wasm::LoadError> {
        let hash = *blake3::hash(wasm).as_bytes();
        if let Some(module) = self.modules.lock().get(&hash).and_then(Weak::upgrade) {
            return Ok(module);
        }
        let started = Instant::now();
        let module = Module::load(&self.engine, name, wasm)?;
        debug!(name, origin = ?module.origin(), took = ?started.elapsed(), "module loaded");
        let mut modules = self.modules.lock();
        modules.retain(|_, module| module.strong_count() > 0);
        modules.insert(hash, Arc::downgrade(&module));
        Ok(module)
    }

    /// Outlives the plans, so that a reload neither forgets a filter's failures nor lets them be told more often.
    fn trouble(&self, filter: &str) -> Arc<Trouble> {
        Arc::clone(self.troubles.lock().entry(filter.to_owned()).or_default())
    }

    fn demo_address(&self) -> std::io::Result<SocketAddr> {
        if self.offline {
            return Ok(DEMO_OFFLINE);
        }
        let mut demo = self.demo.lock();
        if let Some(demo) = demo.as_ref() {
            return Ok(demo.addr());
        }
        let started = Demo::start(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let address = started.addr();
        *demo = Some(started);
        Ok(address)
    }
}

fn engine(module_cache: &ModuleCache) -> Result<Arc<Engine>, selvedge_wasm::EngineError> {
    Engine::new(EngineOptions {
        module_cache: module_cache_folder(module_cache),
        epoch_tick: DEADLINE_PRECISION,
        ..EngineOptions::default()
    })
}

/// A plan, and the files it was read from.
pub struct Built {
    /// The plan.
    pub plan: Plan,
    /// Every file a reload has to watch: configuration, includes, secrets, modules, databases.
    pub files: Vec<PathBuf>,
}

/// Resolves a configuration. Modules are compiled on as many threads as there are cores, so this blocks: keep it off the workers.
///
/// # Errors
/// Every fault found, each at its place.
pub fn build(resources: &Arc<Resources>, loaded: Loaded) -> Result<Built, Vec<Fault>> {
    let Loaded { config, mut files, .. } = loaded;
    let mut faults = Vec::new();

    let geo = geo(&config, &mut files, &mut faults);
    // Nobody is asked anything offline.
    let circles = if resources.offline { Vec::new() } else { cluster::circles(&config) };
    let upstreams = Arc::new(upstream::build::all(
        &config,
        &circles,
        &resources.keeper,
        || resources.demo_address(),
        &mut files,
        &mut faults,
    ));
    let modules = modules(&config, resources, &mut files, &mut faults);
    let schemas = schemas(&config, &modules, &mut faults);

    let view = Arc::new(View { upstreams: Arc::clone(&upstreams), geo: geo.clone() });
    let mut plugins = Plugins {
        resources,
        config: &config,
        modules,
        schemas,
        view,
        started: HashMap::new(),
        troubles: BTreeMap::new(),
    };

    let node = Identity::new(&config.node.name);
    let mut router = Router::default();
    for site in &config.sites {
        let mut listeners = Vec::new();
        for name in config.listeners.keys().filter(|name| site.listeners.is_empty() || site.listeners.contains(name)) {
            let place = resources.listener_index(name);
            listeners.resize(listeners.len().max(place + 1), false);
            listeners[place] = true;
        }
        let index = router.add_site(&site.hosts, listeners);
        let label: Arc<str> = site.hosts.first().map(ToString::to_string).unwrap_or_default().into();

        for route in &site.routes {
            let mut chain = |uses: &[FilterUse]| {
                uses.iter().filter_map(|used| plugins.chain_filter(used, &mut faults)).collect::<Vec<_>>()
            };
            let (filters, origin_filters) = (chain(&route.filters), chain(&route.origin_filters));
            let target = match &route.target {
                TargetConfig::Upstream(name) => match upstreams.get(name) {
                    Some(upstream) => Target::Upstream(Arc::clone(upstream)),
                    None => continue, // The upstream itself is at fault, and reported.
                },
                TargetConfig::Respond(respond) => match fixed_response(respond) {
                    Ok((header, body)) => Target::Respond { header, body },
                    Err(message) => {
                        faults.push(Fault::at(&route.position, message));
                        continue;
                    }
                },
                TargetConfig::Redirect(redirect) => Target::Redirect(Redirect::of(redirect)),
                TargetConfig::Split(written) => match split(written, &upstreams) {
                    Some(split) => Target::Split(split),
                    None => continue, // An upstream is at fault, and reported.
                },
                TargetConfig::Files(files) => match Files::of(files, &route.when.path) {
                    Ok(files) => Target::Files(files),
                    Err(message) => {
                        faults.push(Fault::at(&route.position, message));
                        continue;
                    }
                },
            };
            faults.extend(unspoken_grpc(route, &target));
            let mut refused =
                |what: String| faults.push(Fault::at(&route.position, format!("{what} cannot be written")));
            let request_fields = Fields::of(&route.headers.request).map_err(&mut refused).ok().flatten();
            let response_fields = Fields::of(&route.headers.response).map_err(&mut refused).ok().flatten();
            let rewrite = route.rewrite.as_ref().map(|rewrite| Rewrite::of(rewrite, &route.when.path));
            let rewrite = rewrite.transpose().map_err(&mut refused).ok().flatten().map(Box::new);
            let cors = route.cors.as_ref().map(Cors::of).transpose().map_err(&mut refused).ok().flatten().map(Box::new);
            let mirror =
                route.mirror.as_ref().map(|mirror| Mirror { to: mirror.to.as_str().into(), share: mirror.share });
            let related = route.invalidates.iter().map(purge::related::Rule::of).collect::<Result<_, _>>();
            let related: Box<[_]> = related.map_err(&mut refused).unwrap_or_default();
            if let Some(fault) = slice_too_large(route, &config) {
                faults.push(fault);
            }
            let resolved = Route {
                invalidates: related,
                mirror: mirror.map(Box::new),
                cors,
                grpc_web: route.grpc_web,
                compress: route.compress.as_ref().map(|written| Box::new(Compress::of(written, &resources.counters))),
                body_limit: route.limits.body.map(|limit| limit.bytes()),
                timeouts: route.timeouts.map(Box::new),
                request_fields,
                response_fields,
                rewrite,
                name: route.name.as_str().into(),
                site: Arc::clone(&label),
                node: Arc::clone(&node.name),
                node_in_fields: Arc::clone(&node.structured),
                is_asked_for_facts: filters
                    .iter()
                    .chain(&origin_filters)
                    .any(|filter| filter.plugin.module().asks_for_facts()),
                filters,
                origin_filters,
                cache: route.cache.as_ref().map(|written| {
                    let policy = Arc::new(route_policy(written));
                    let withheld = policy.tags.withheld().collect();
                    let key_parts = KeyParts::of(written);
                    let identity = cluster::route_identity(&label, route);
                    let slices = written.slice.map(|size| Box::new(Slices::of(size.bytes())));
                    let scope = KeyScope::new(&label, &route.name);
                    CacheRule { policy, key_parts, scope, withheld, shows_key: written.show_key, identity, slices }
                }),
                target,
                upstreams: Arc::clone(&upstreams),
            };
            match Rule::of(&route.when) {
                Ok(rule) => router.add_route(index, rule, Arc::new(resolved)),
                Err(what) => faults.push(Fault::at(&route.position, format!("{what} cannot be matched"))),
            }
        }
    }

    let tcp = tcp_routes(&config, &mut plugins, &upstreams, &node.name, &mut faults);

    if !faults.is_empty() {
        return Err(faults);
    }
    let Plugins { started, troubles, view, .. } = plugins;
    let cache = cache(&config, resources);
    let plugins = started.into_values().flatten().collect();
    let generation = resources.generations.fetch_add(1, Ordering::Relaxed) + 1;
    let access_log = config.telemetry.access_log;
    let trace = config.telemetry.trace.as_ref().and_then(TraceKey::of);
    let counters = Arc::clone(&resources.counters);
    let cluster = Cluster::of(&config, &upstreams, &router, &resources.nodes, &resources.messages);
    let cluster = cluster.filter(|_| !resources.offline);
    Ok(Built {
        plan: Plan {
            generation,
            node,
            trusted_proxies: config.node.trusted_proxies.clone(),
            paths: config.node.paths,
            router,
            tcp,
            upstreams,
            keeper: Arc::clone(&resources.keeper),
            cache,
            purgers: config.cache.as_ref().map(|cache| cache.purge.allow.clone()).unwrap_or_default(),
            cluster,
            geo,
            access_log,
            trace,
            counters,
            plugins,
            view,
            troubles,
        },
        files,
    })
}

/// What the connections of each listener for TCP get.
fn tcp_routes(
    config: &Config,
    plugins: &mut Plugins<'_>,
    upstreams: &Arc<Upstreams>,
    node: &Arc<str>,
    faults: &mut Vec<Fault>,
) -> HashMap<String, Arc<TcpRoute>> {
    let mut routes = HashMap::new();
    for (name, listener) in &config.listeners {
        let Some(tcp) = &listener.tcp else { continue };
        let mut filters = Vec::new();
        for used in &tcp.filters {
            let Some(filter) = plugins.chain_filter(used, faults) else { continue };
            if !filter.plugin.module().phases().intersects(selvedge_wasm::Phases::TCP) {
                let message = format!("filter {} is not one for TCP: it has none of the callbacks", used.name);
                faults.push(Fault::at(&used.position, message));
            }
            filters.push(filter);
        }
        let Some(upstream) = upstreams.get(&tcp.upstream) else { continue }; // It is at fault itself, and reported.
        let (node, upstream, upstreams) = (Arc::clone(node), Arc::clone(upstream), Arc::clone(upstreams));
        let route = TcpRoute { listener: name.as_str().into(), node, filters, upstream, upstreams };
        routes.insert(name.clone(), Arc::new(route));
    }
    routes
}

fn module_cache_folder(setting: &ModuleCache) -> Option<PathBuf> {
    match setting {
        ModuleCache::Off => None,
        ModuleCache::At(path) => Some(path.clone()),
        ModuleCache::Auto => {
            let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
            let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
            base.or_else(home).map(|base| base.join("selvedge"))
        }
    }
}

fn geo(config: &Config, files: &mut Vec<PathBuf>, faults: &mut Vec<Fault>) -> Option<Arc<Geo>> {
    let geo = config.geo.as_ref()?;
    let source = match &geo.database {
        GeoDatabase::BuiltinTest => GeoSource::BuiltinTest,
        GeoDatabase::File(path) => {
            if geo.reload == selvedge_config::Reload::Watch {
                files.push(path.clone());
            }
            GeoSource::File(path.clone())
        }
    };
    match Geo::open(source) {
        Ok(geo) => Some(Arc::new(geo)),
        Err(error) => {
            faults.push(Fault::at(&geo.position, format!("the geo database does not open: {}", error_chain(&error))));
            None
        }
    }
}

/// The node's cache, if there is to be one.
fn cache(config: &Config, resources: &Resources) -> Option<&'static Cache> {
    let cache = config.cache.as_ref()?;
    let options = CacheOptions {
        memory_size: cache.memory.size.bytes(),
        max_object: cache.memory.max_object.bytes(),
        collapse_wait: cache.collapse.wait,
        when_late: beyond(cache.collapse.when_late),
        waiters: cache.collapse.waiters.into(),
        when_full: beyond(cache.collapse.when_full),
        ..CacheOptions::default()
    };
    let made = *resources.cache.get_or_init(|| Cache::leak(options));
    made.adjust(options);
    Some(made)
}

fn disk_tier(disk: &CacheDisk) -> DiskTier {
    let disks = disk.folders.iter().map(|folder| DiskOptions::at(&folder.path, folder.size.bytes()));
    let store = StoreOptions {
        disks: disks.collect(),
        admit: match disk.admit {
            selvedge_config::Admit::SecondHit => Admit::SecondHit,
            selvedge_config::Admit::All => Admit::All,
        },
        write_budget: disk.write_budget.0,
        limits: DiskLimits::default(),
    };
    DiskTier { store, max_object: disk.max_object.bytes() }
}

/// A slice that the store does not take.
fn slice_too_large(route: &selvedge_config::Route, config: &Config) -> Option<Fault> {
    let policy = route.cache.as_ref()?;
    let (slice, largest) = (policy.slice?, config.cache.as_ref()?.memory.max_object);
    (slice > largest).then(|| {
        Fault::at(&policy.position, format!("slices of {slice} are not kept: `cache.memory.max_object` is {largest}"))
            .with_help("make them smaller, or raise `max_object`")
    })
}

fn beyond(words: selvedge_config::Beyond) -> Beyond {
    match words {
        selvedge_config::Beyond::Forward => Beyond::Forward,
        selvedge_config::Beyond::Refuse => Beyond::Refuse,
    }
}

/// Compiles every module that is used, in parallel; `None` for a faulty one.
fn modules(
    config: &Config,
    resources: &Arc<Resources>,
    files: &mut Vec<PathBuf>,
    faults: &mut Vec<Fault>,
) -> HashMap<String, Option<Arc<Module>>> {
    let started = Instant::now();
    let jobs: Vec<(&String, &Filter)> = config.filters.iter().collect();
    for (_, filter) in &jobs {
        if let WasmSource::File(path) = &filter.wasm {
            files.push(path.clone());
        }
    }

    let next = AtomicU64::new(0);
    let results = Mutex::new(Vec::new());
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(jobs.len());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let turn = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                    let Some((name, filter)) = jobs.get(turn) else { return };
                    let result = load(resources, name, filter);
                    results.lock().push(((*name).clone(), &filter.wasm_position, result));
                }
            });
        }
    });

    let mut modules = HashMap::new();
    for (name, position, result) in results.into_inner() {
        let module = result.map_err(|message| faults.push(Fault::at(position, message))).ok();
        if let Some((filter, module)) = config.filters.get(&name).zip(module.as_deref()) {
            faults.extend(blind(filter, &name, module));
        }
        modules.insert(name, module);
    }
    info!(modules = modules.len(), took = ?started.elapsed(), "filter modules are ready");
    modules
}

/// What modules say about the settings of their filters.
fn schemas(
    config: &Config,
    modules: &HashMap<String, Option<Arc<Module>>>,
    faults: &mut Vec<Fault>,
) -> HashMap<String, Schema> {
    let mut schemas = HashMap::new();
    for (name, filter) in &config.filters {
        let Some(module) = modules.get(name).and_then(Option::as_ref) else { continue };
        let Some(json) = module.settings_schema() else { continue };
        match Schema::read(json) {
            Ok(schema) => {
                if !schema.unchecked.is_empty() {
                    warn!(filter = %name, keywords = ?schema.unchecked, "not checked in settings: only the filter itself knows them");
                }
                schemas.insert(name.clone(), schema);
            }
            Err(why) => {
                let message =
                    format!("the module's schema of its settings (custom section selvedge.schema) is none: {why}");
                faults.push(Fault::at(&filter.wasm_position, message));
            }
        }
    }
    schemas
}

fn load(resources: &Resources, name: &str, filter: &Filter) -> Result<Arc<Module>, String> {
    let wasm: Cow<'_, [u8]> = match &filter.wasm {
        WasmSource::Builtin(builtin) => {
            bundled::wasm(builtin).ok_or_else(|| format!("there is no bundled filter {builtin}"))?.into()
        }
        WasmSource::File(path) => std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?.into(),
    };
    if let Some(pin) = filter.sha256 {
        let found: [u8; 32] = Sha256::digest(&wasm).into();
        if found != pin {
            return Err(format!("the module's SHA-256 is {}, not the one that is pinned", hex(&found)));
        }
    }
    let module = resources.module(name, &wasm);
    module.map_err(|error| format!("the module does not load: {}", error_chain(&error)))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Starts plugins, each distinct configuration of a filter once, and only those that do not run already.
struct Plugins<'c> {
    resources: &'c Resources,
    config: &'c Config,
    modules: HashMap<String, Option<Arc<Module>>>,
    /// What the settings of a filter may be, by its name, where its module says so.
    schemas: HashMap<String, Schema>,
    view: Arc<View>,
    started: HashMap<(String, String), Option<Live>>,
    troubles: BTreeMap<String, Arc<Trouble>>,
}

impl Plugins<'_> {
    /// The filter of one place in a chain; `None` when it is at fault, which is then reported.
    fn chain_filter(&mut self, used: &FilterUse, faults: &mut Vec<Fault>) -> Option<Arc<ChainFilter>> {
        let filter = self.config.filters.get(&used.name)?;
        let module = Arc::clone(self.modules.get(&used.name)?.as_ref()?);

        let key = (used.name.clone(), used.config.to_string());
        if !self.started.contains_key(&key) {
            let plugin = self.start(used, filter, module, faults);
            self.started.insert(key.clone(), plugin);
        }
        let Live { plugin, host } = self.started.get(&key)?.clone()?;

        Some(Arc::new(ChainFilter {
            name: used.name.as_str().into(),
            plugin,
            host,
            on_failure: filter.on_failure,
            header_encoding: filter.header_encoding,
            request_body: filter.request_body,
            response_body: filter.response_body,
            on_pause: filter.on_pause,
            body_limit: filter.limits.body.as_usize(),
            wait: filter.limits.wait,
            trouble: self.trouble(&used.name),
        }))
    }

    fn trouble(&mut self, filter: &str) -> Arc<Trouble> {
        let resources = self.resources;
        Arc::clone(self.troubles.entry(filter.to_owned()).or_insert_with(|| resources.trouble(filter)))
    }

    /// The plugin that runs with these settings already, or a new one.
    fn start(&self, used: &FilterUse, filter: &Filter, module: Arc<Module>, faults: &mut Vec<Fault>) -> Option<Live> {
        // Also for one that runs: upstreams that its settings name may have gone.
        if let Some(schema) = self.schemas.get(&used.name) {
            let wrong = settings::check(schema, used, self.config);
            if !wrong.is_empty() {
                faults.extend(wrong);
                return None;
            }
        }

        let options = PluginOptions {
            name: used.name.clone(),
            root_id: filter.root_id.clone(),
            vm_id: filter.vm_id.clone().unwrap_or_else(|| used.name.clone()),
            vm_config: as_configuration(&filter.vm_config),
            config: as_configuration(&used.config),
            environment: filter.environment.clone().into_iter().collect(),
            limits: Limits {
                memory: filter.limits.memory.bytes(),
                cpu: filter.limits.cpu,
                deadline: filter.limits.deadline,
                callouts: filter.limits.callouts.into(),
                callouts_per_second: filter.limits.callouts_per_second.into(),
                ..Limits::default()
            },
            workers: self.resources.workers,
            isolation: match filter.isolation {
                selvedge_config::Isolation::Worker => Isolation::Worker,
                selvedge_config::Isolation::Pool(size) => Isolation::Pool(size),
                selvedge_config::Isolation::Request => Isolation::Request,
            },
            snapshot: match filter.snapshot {
                selvedge_config::Snapshot::Auto => Snapshots::Auto,
                selvedge_config::Snapshot::Always => Snapshots::Always,
                selvedge_config::Snapshot::Never => Snapshots::Never,
            },
            tick_once: filter.tick == selvedge_config::Tick::OncePerNode,
            compat: match filter.compat {
                selvedge_config::Compat::Envoy => Compat::Envoy,
                selvedge_config::Compat::Ngx => Compat::Ngx,
            },
        };
        if let Some(kept) = self.resources.live.find(&module, &options) {
            debug!(filter = %used.name, "kept as it runs");
            return Some(kept);
        }
        let host = Arc::new(NodeHost::new(&self.resources.observed(), &self.view));
        let started = Plugin::start(module, options.clone(), Arc::clone(&host) as Arc<dyn selvedge_wasm::Host>);
        let plugin = started.map_err(|error| faults.push(start_fault(used, &error))).ok()?;
        let live = Live { plugin, host };
        self.resources.live.remember(options, &live);
        Some(live)
    }
}

/// A filter that is to be shown a body before anything goes on, and has no callback to be shown it: it would guard nothing.
fn blind(filter: &Filter, name: &str, module: &Module) -> Option<Fault> {
    let modes = [
        ("request_body", filter.request_body, Phases::REQUEST_BODY, "proxy_on_request_body"),
        ("response_body", filter.response_body, Phases::RESPONSE_BODY, "proxy_on_response_body"),
    ];
    modes.into_iter().find_map(|(key, mode, phase, callback)| {
        let blind = mode != BodyMode::Stream && !module.phases().contains(phase);
        let message = || format!("the module never looks at that body: it has no `{callback}`, or does not want it");
        blind.then(|| Fault::at(&filter.position, message()).with_key(format!("filters.{name}.{key}")))
    })
}

/// What a module is given of YAML settings. Without any it gets no configuration, as on other hosts, rather than the text `{}`; text is
/// given as it is.
pub(crate) fn as_configuration(settings: &serde_json::Value) -> Bytes {
    match settings {
        serde_json::Value::Null => Bytes::new(),
        serde_json::Value::Object(settings) if settings.is_empty() => Bytes::new(),
        serde_json::Value::String(text) => Bytes::copy_from_slice(text.as_bytes()),
        settings => settings.to_string().into(),
    }
}

/// A filter's own words about its settings, at the setting it names, and without any secret it may have quoted.
fn start_fault(used: &FilterUse, error: &selvedge_wasm::StartError) -> Fault {
    let mut message = format!("filter {} does not start: {}", used.name, error_chain(error));
    let quoted = message.split('`').skip(1).step_by(2);
    let named = quoted.map(|word| format!("/{word}")).find(|pointer| used.config.pointer(pointer).is_some());
    redact(used, &used.config, "", &mut message);
    let position = named.as_deref().map_or(&used.position, |pointer| used.position_of(pointer));
    Fault::at(position, message)
}

/// Takes secret settings out of a message.
fn redact(used: &FilterUse, value: &serde_json::Value, pointer: &str, message: &mut String) {
    match value {
        serde_json::Value::Object(map) => {
            for (name, value) in map {
                let name = name.replace('~', "~0").replace('/', "~1");
                redact(used, value, &format!("{pointer}/{name}"), message);
            }
        }
        serde_json::Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                redact(used, item, &format!("{pointer}/{index}"), message);
            }
        }
        serde_json::Value::String(text) if used.is_secret(pointer) && !text.is_empty() => {
            *message = message.replace(text.as_str(), "<secret>");
        }
        _ => {}
    }
}

fn split(written: &selvedge_config::Split, upstreams: &Upstreams) -> Option<Split> {
    let mut until = 0;
    let mut shares = Vec::new();
    for (name, share) in written.upstreams.iter().filter(|(_, share)| *share > 0) {
        until += u32::from(*share);
        shares.push((until, Arc::clone(upstreams.get(name)?)));
    }
    Some(Split { upstreams: shares, by: written.by.clone() })
}

/// A route that translates to gRPC for an upstream that cannot speak it.
fn unspoken_grpc(route: &selvedge_config::Route, target: &Target) -> Option<Fault> {
    let speaks = match target {
        Target::Upstream(upstream) => upstream.is_http2(),
        Target::Split(split) => split.upstreams.iter().all(|(_, upstream)| upstream.is_http2()),
        Target::Files(_) | Target::Respond { .. } | Target::Redirect(_) => true, // The loader has refused that.
    };
    let message = "`grpc_web` needs an upstream with `protocol: h2`: gRPC is spoken over nothing else";
    (route.grpc_web && !speaks).then(|| Fault::at(&route.position, message))
}

fn fixed_response(respond: &selvedge_config::Respond) -> Result<(Box<ResponseHeader>, Bytes), String> {
    let fault = |what: &str| format!("the fixed response has a bad {what}");
    let mut header =
        ResponseHeader::build(respond.status, Some(respond.headers.len() + 1)).map_err(|_| fault("status"))?;
    for (name, value) in &respond.headers {
        header.append_header(name.clone(), value.as_str()).map_err(|_| fault(name))?;
    }
    if !matches!(respond.status, 204 | 304) {
        header.set_content_length(respond.body.len()).map_err(|_| fault("length"))?;
    }
    Ok((Box::new(header), Bytes::copy_from_slice(respond.body.as_bytes())))
}

fn route_policy(policy: &CachePolicy) -> RoutePolicy {
    let (ttl, ttl_by_status) = match &policy.ttl {
        None => (None, Vec::new()),
        Some(Ttl::One(ttl)) => (Some(*ttl), Vec::new()),
        Some(Ttl::ByStatus(statuses)) => (None, statuses.clone()),
    };
    let CacheKey { query, sort, .. } = &policy.key;
    RoutePolicy {
        ttl,
        ttl_by_status,
        override_origin: policy.override_origin,
        set_cookie: match policy.cookies {
            SetCookie::Store => SetCookies::Store,
            SetCookie::Strip => SetCookies::Strip,
            SetCookie::Pass => SetCookies::Pass,
        },
        query: match query {
            QueryKey::All if *sort => QueryPolicy::Except { names: Vec::new(), sort: true },
            QueryKey::All => QueryPolicy::All,
            QueryKey::Only(names) => QueryPolicy::Only(names.clone()),
            QueryKey::Except(names) => QueryPolicy::Except { names: names.clone(), sort: *sort },
        },
        has_key_parts: KeyParts::of(policy).is_some_and(|parts| parts.exist()),
        stale_while_revalidate: policy.stale_while_revalidate,
        stale_if_error: policy.stale_if_error,
        honour_request_directives: policy.request_directives,
        stores_ranges: policy.ranges == Ranges::AsAsked,
        tags: TagPolicy {
            read: policy.tags.read.iter().map(|field| tag_header(*field)).collect(),
            keep: policy.tags.keep,
        },
        ..RoutePolicy::default()
    }
}

fn tag_header(field: TagField) -> TagHeader {
    match field {
        TagField::SurrogateKey => TagHeader::SurrogateKey,
        TagField::CacheTag => TagHeader::CacheTag,
        TagField::Xkey => TagHeader::Xkey,
        TagField::CacheGroups => TagHeader::CacheGroups,
    }
}
