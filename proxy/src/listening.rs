//! Which listeners there are: bound when the node starts, and again at every reload, which keeps the sockets of those that go on. Each
//! worker serves all of them (`attend`).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use pingora::apps::{HttpServerApp, HttpServerOptions};
use pingora::server::configuration::ServerConf;
use selvedge_config::{Certificates, Config, Fault, Host, Listener, Protocol};
use tokio::sync::{mpsc, watch};
use tracing::{info, warn};

use crate::attempt;
use crate::cluster;
use crate::crowd::Crowd;
use crate::listener::arrival::Arrivals;
use crate::listener::stream::Accepting;
use crate::listener::{self, Door, ListenerFacts};
use crate::node::Current;
use crate::plan::Resources;
use crate::request::Edge;
use crate::request::origin_side::Half;
use crate::sockets::{Socket, SocketFile};
use crate::tcp::{self, TcpDoor};
use crate::telemetry::AccessLogSink;
use crate::tls::{CertificateStore, ListenerTls, Renewed};
use crate::upstream::http1::Pool;

/// A bound listener.
pub struct Bound {
    /// Tells it from others of this process, past ones too.
    id: u64,
    /// What requests see of it.
    pub facts: Arc<ListenerFacts>,
    /// The address it really has: the one asked for, with a real port in place of 0; `None` = a Unix socket.
    pub address: Option<SocketAddr>,
    /// Set for TLS.
    pub tls: Option<ListenerTls>,
    /// As it was written.
    setting: Listener,
    socket: Socket,
    /// The file of a Unix socket, shared with those that have its socket after a reload.
    file: Option<Arc<SocketFile>>,
    /// One more handle of the socket for each worker, until the worker takes it.
    for_workers: Vec<Mutex<Option<Socket>>>,
    crowd: Arc<Crowd>,
    /// Becomes true when it is no longer wanted: nothing more is accepted, and its connections end after the exchange they are in.
    drain: watch::Sender<bool>,
}

static BOUND: AtomicU64 = AtomicU64::new(0);

/// The listeners in force, and word to the workers when others are.
pub(crate) struct Listening {
    bound: ArcSwap<Vec<Arc<Bound>>>,
    changed: watch::Sender<()>,
}

/// Listeners that are bound and checked, but not in force.
pub(crate) struct Prepared {
    bound: Vec<Arc<Bound>>,
    renewed: Vec<(Arc<CertificateStore>, Renewed)>,
    /// The files their certificates are in: a change should lead to a reload.
    pub(crate) files: Vec<PathBuf>,
}

impl Listening {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self { bound: ArcSwap::default(), changed: watch::Sender::new(()) }
    }

    /// Binds what is new in this configuration, and loads every certificate again. What is in force is not touched.
    ///
    /// # Errors
    /// Every listener that cannot listen, each at its place.
    pub(crate) fn prepare(&self, config: &Config, resources: &Resources) -> Result<Prepared, Vec<Fault>> {
        let old = self.bound.load_full();
        let listeners = all(config);
        let names = development_names(config);
        let mut faults = Vec::new();
        let mut prepared = Prepared { bound: Vec::new(), renewed: Vec::new(), files: Vec::new() };
        for (name, listener) in &listeners {
            if let Some(Certificates::Files(pairs)) = listener.tls.as_ref().map(|tls| &tls.certificates) {
                prepared.files.extend(pairs.iter().flat_map(|pair| [pair.cert.clone(), pair.key.clone()]));
            }
            if let Some(clients) = listener.tls.as_ref().and_then(|tls| tls.clients.as_ref()) {
                prepared.files.push(clients.ca.clone());
                prepared.files.extend(clients.crl.clone());
            }
            if let Some(same) = old.iter().find(|old| old.facts.name == *name && old.goes_on(listener)) {
                match same.renew(listener) {
                    Ok(renewed) => prepared.renewed.extend(renewed),
                    Err(more) => faults.extend(more),
                }
                prepared.bound.push(Arc::clone(same));
                continue;
            }
            // Another listener may have had the address, or this one may have had other settings: its socket is kept, so that nobody who
            // connects meanwhile is refused. With port 0 only the listener itself can mean the same port.
            let predecessor = old.iter().find(|old| leaves_socket((&old.facts.name, &old.setting), (name, listener)));
            // Connections it has already keep their places.
            let crowd =
                old.iter().find(|old| old.facts.name == *name).map(|old| Arc::clone(&old.crowd)).unwrap_or_default();
            match Bound::new(name, listener, &names, resources, predecessor, crowd) {
                Ok(bound) => prepared.bound.push(Arc::new(bound)),
                Err(more) => faults.extend(more),
            }
        }
        if faults.is_empty() { Ok(prepared) } else { Err(faults) }
    }

    /// Puts them in force: the workers take them up, and drain those that are gone.
    pub(crate) fn put_in_force(&self, prepared: Prepared) {
        for (store, certificates) in prepared.renewed {
            store.swap(certificates);
        }
        let old = self.bound.swap(Arc::new(prepared.bound));
        let new = self.bound.load();
        for (listener, tls) in new.iter().filter_map(|bound| Some((&bound.facts.name, bound.tls.as_ref()?))) {
            tls.oddities().iter().for_each(|odd| warn!(%listener, "{odd}"));
        }
        let is_in = |set: &[Arc<Bound>], bound: &Bound| set.iter().any(|other| other.id == bound.id);
        for bound in new.iter().filter(|bound| !is_in(&old, bound)) {
            info!(listener = %bound.facts.name, address = %bound.socket, "listening");
        }
        for bound in old.iter().filter(|bound| !is_in(&new, bound)) {
            info!(listener = %bound.facts.name, address = %bound.socket, "no longer listening so; its connections end when they are done");
            bound.drain.send_replace(true);
        }
        self.changed.send_replace(());
    }

    /// Nothing more is accepted, and connections end after the exchange they are in.
    pub(crate) fn drain(&self) {
        for bound in self.bound.swap(Arc::default()).iter() {
            bound.drain.send_replace(true);
        }
    }

    /// The certificates of each listener in force.
    pub(crate) fn certificates(&self) -> Vec<(String, Arc<CertificateStore>)> {
        let bound = self.bound.load();
        let of = |bound: &Arc<Bound>| Some((bound.facts.name.clone(), Arc::clone(&bound.tls.as_ref()?.certificates)));
        bound.iter().filter_map(of).collect()
    }

    /// Another handle of each listener's socket, and what it is for.
    pub(crate) fn sockets(&self) -> io::Result<Vec<(String, Socket)>> {
        let bound = self.bound.load();
        let handle = |bound: &Arc<Bound>| Ok((socket_name(&bound.facts.name), bound.socket.try_clone()?));
        bound.iter().map(handle).collect()
    }

    /// Another process has the sockets now: the files of Unix sockets stay.
    pub(crate) fn leave_sockets(&self) {
        for file in self.bound.load().iter().filter_map(|bound| bound.file.as_ref()) {
            file.leave();
        }
    }

    /// Where each listener is, by name: its address, or `unix:` and a path.
    pub(crate) fn places(&self) -> BTreeMap<String, String> {
        self.bound.load().iter().map(|bound| (bound.facts.name.clone(), bound.socket.to_string())).collect()
    }

    /// The address of each listener that is not on a Unix socket, by name.
    pub(crate) fn addresses(&self) -> BTreeMap<String, SocketAddr> {
        self.bound.load().iter().filter_map(|bound| Some((bound.facts.name.clone(), bound.address?))).collect()
    }
}

/// The listeners that are written, and the one for other nodes of the cluster.
fn all(config: &Config) -> BTreeMap<String, Listener> {
    let mut all = config.listeners.clone();
    all.extend(cluster::listener(config).map(|listener| (cluster::LISTENER.to_owned(), listener)));
    all
}

/// Whether the socket of one listener, by name and settings, is that of another one after a reload.
fn leaves_socket(old: (&str, &Listener), new: (&str, &Listener)) -> bool {
    old.1.bind == new.1.bind && (!new.1.bind.is_any_port() || old.0 == new.0)
}

/// What a reload makes of a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Fate {
    /// Nothing, but that its certificates are loaded again.
    Kept,
    /// It is served anew, on the socket it has.
    Rebuilt,
    /// It gets a socket.
    Bound,
    /// Its socket is closed.
    Closed,
}

/// What a reload makes of the listeners of a configuration, if what is in the files they name stays as it is.
pub(crate) fn fates(old: &Config, new: &Config) -> BTreeMap<String, Fate> {
    let (old, new) = (&all(old), &all(new));
    let mut fates = BTreeMap::new();
    for (name, listener) in new {
        let fate = if old.get(name).is_some_and(|old| goes_on(old, listener)) {
            Fate::Kept
        } else if old.iter().any(|(old_name, old)| leaves_socket((old_name, old), (name, listener))) {
            Fate::Rebuilt
        } else {
            Fate::Bound
        };
        fates.insert(name.clone(), fate);
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        fates.insert(name.clone(), Fate::Closed);
    }
    fates
}

/// Whether a listener is served as before: all but its certificates and where TCP is forwarded to, which are looked up anew.
fn goes_on(old: &Listener, new: &Listener) -> bool {
    let mut new = new.clone();
    new.position = old.position.clone();
    if let (Some(old), Some(new)) = (&old.tls, &mut new.tls) {
        new.certificates = old.certificates.clone();
        new.position = old.position.clone();
        if let (Some(old), Some(new)) = (&old.clients, &mut new.clients) {
            new.position = old.position.clone();
        }
    }
    if let (Some(old), Some(new)) = (&old.tcp, &mut new.tcp) {
        *new = old.clone();
    }
    *old == new
}

impl Bound {
    fn new(
        name: &str,
        listener: &Listener,
        development_names: &[String],
        resources: &Resources,
        predecessor: Option<&Arc<Self>>,
        crowd: Arc<Crowd>,
    ) -> Result<Self, Vec<Fault>> {
        let protocols = protocols(listener);
        let handshakes = &resources.observed().counters.handshakes;
        let load = |tls| ListenerTls::load(tls, protocols, development_names, handshakes);
        let tls = listener.tls.as_ref().map(load).transpose()?;
        let cannot = |error: io::Error| {
            let message = format!("listener {name} cannot listen on {}: {error}", listener.bind);
            vec![Fault::at(&listener.position, message)]
        };
        let (socket, file) = match predecessor {
            Some(old) => (old.socket.try_clone().map_err(cannot)?, old.file.clone()),
            None => resources.inherited().listen(&socket_name(name), &listener.bind).map_err(cannot)?,
        };
        let for_workers = (0..resources.workers()).map(|_| socket.try_clone().map(|socket| Mutex::new(Some(socket))));
        let for_workers = for_workers.collect::<io::Result<_>>().map_err(cannot)?;
        let facts = Arc::new(ListenerFacts::of(name, listener, resources.listener_index(name)));
        Ok(Self {
            id: BOUND.fetch_add(1, Ordering::Relaxed),
            facts,
            address: socket.address(),
            tls,
            setting: listener.clone(),
            socket,
            file,
            for_workers,
            crowd,
            drain: watch::Sender::new(false),
        })
    }

    /// Whether it is what this configuration asks for, and trusts whom the files say it should.
    fn goes_on(&self, listener: &Listener) -> bool {
        let trusts = self.tls.as_ref().zip(listener.tls.as_ref()).is_none_or(|(bound, tls)| bound.trusts_as(tls));
        trusts && goes_on(&self.setting, listener)
    }

    /// Its certificates, loaded again.
    fn renew(&self, listener: &Listener) -> Result<Option<(Arc<CertificateStore>, Renewed)>, Vec<Fault>> {
        let (Some(bound), Some(tls)) = (&self.tls, &listener.tls) else { return Ok(None) };
        Ok(Some((Arc::clone(&bound.certificates), bound.certificates.renew(tls)?)))
    }
}

/// What a listener offers: HTTP; or, where it is nobody's business what is spoken, nothing.
fn protocols(listener: &Listener) -> &[Protocol] {
    if listener.tcp.is_some() { &[] } else { &listener.protocols }
}

/// Looks at what listeners need besides their sockets. Says what is odd about it, by listener.
///
/// # Errors
/// What cannot be used, each at its place.
pub(crate) fn check(config: &Config) -> Result<Vec<(String, String)>, Vec<Fault>> {
    let names = development_names(config);
    let (mut oddities, mut faults) = (Vec::new(), Vec::new());
    for (name, listener) in &all(config) {
        let Some(tls) = &listener.tls else { continue };
        match ListenerTls::load(tls, protocols(listener), &names, &Arc::default()) {
            Ok(tls) => oddities.extend(tls.oddities().into_iter().map(|odd| (name.clone(), odd))),
            Err(more) => faults.extend(more),
        }
    }
    if faults.is_empty() { Ok(oddities) } else { Err(faults) }
}

/// What a worker serves listeners with.
pub(crate) struct Worker {
    pub(crate) number: usize,
    pub(crate) current: Arc<Current>,
    pub(crate) listening: Arc<Listening>,
    pub(crate) access_log: AccessLogSink,
    pub(crate) conf: Arc<ServerConf>,
    pub(crate) pool: Arc<Pool>,
}

/// Serves the listeners in force on this worker until the node stops. Every connection holds a clone of `alive` to its end.
pub(crate) async fn attend(worker: Worker, mut stop: watch::Receiver<bool>, alive: mpsc::Sender<()>) {
    let mut changed = worker.listening.changed.subscribe();
    let mut served: HashMap<u64, Option<Arc<Door>>> = HashMap::new();
    loop {
        changed.mark_unchanged();
        let bound = worker.listening.bound.load_full();
        let gone: Vec<u64> = served.keys().filter(|id| !bound.iter().any(|bound| bound.id == **id)).copied().collect();
        gone.iter().filter_map(|id| served.remove(id).flatten()).for_each(retire);
        for new in bound.iter() {
            served.entry(new.id).or_insert_with(|| worker.serve(new, &alive));
        }
        drop(bound); // With the last handle a socket closes, and who comes then is refused.
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => break,
            _ = changed.changed() => {}
        }
    }
    served.into_values().flatten().for_each(retire);
}

/// Ends the idle connections of a listener that is gone, after a moment: a request that was on its way when we stopped is answered, with
/// `connection: close`, and no client has to wonder what became of it.
fn retire(door: Arc<Door>) {
    tokio::spawn(async move {
        tokio::time::sleep(LINGER).await;
        door.http_cleanup().await;
    });
}

/// How long connections that wait for a request may go on waiting when their listener is gone.
pub(crate) const LINGER: Duration = Duration::from_millis(500);

/// What a listener's socket is called when it is handed over.
fn socket_name(listener: &str) -> String {
    format!("listener {listener}")
}

impl Worker {
    /// Begins to accept. `None` = it does not speak HTTP.
    fn serve(&self, bound: &Arc<Bound>, alive: &mpsc::Sender<()>) -> Option<Arc<Door>> {
        let socket = bound.for_workers.get(self.number).and_then(|socket| socket.lock().take())?;
        let socket = Accepting::new(socket)
            .inspect_err(|error| warn!(listener = %bound.facts.name, worker = self.number, %error, "cannot accept"))
            .ok()?;
        let drain = bound.drain.subscribe();
        let (crowd, facts, current) = (Arc::clone(&bound.crowd), Arc::clone(&bound.facts), Arc::clone(&self.current));
        let arrivals = Arrivals { crowd, facts, current };
        if bound.facts.tcp {
            let door = TcpDoor::new(&self.current, bound, self.number, self.access_log.clone());
            tokio::spawn(tcp::accept(socket, door, drain, alive.clone(), arrivals));
            return None;
        }
        let door = self.door(&bound.facts);
        tokio::spawn(listener::accept(socket, Arc::clone(&door), bound.tls.clone(), drain, alive.clone(), arrivals));
        Some(door)
    }

    fn door(&self, facts: &Arc<ListenerFacts>) -> Arc<Door> {
        let edge = Edge {
            current: Arc::clone(&self.current),
            listener: Arc::clone(facts),
            worker: self.number,
            access_log: self.access_log.clone(),
            pool: Arc::clone(&self.pool),
            keeping: Arc::default(),
            witness: None,
            half: Half::outer(&self.conf),
        };
        door(&self.conf, edge)
    }
}

/// What Pingora serves a listener with.
pub(crate) fn door(conf: &Arc<ServerConf>, edge: Edge) -> Arc<Door> {
    let facts = Arc::clone(&edge.listener);
    let counters = Arc::clone(&edge.current.plan().counters);
    let mut options = HttpServerOptions::default();
    options.h2c = facts.http2 && !facts.tls;
    options.h2_idle_timeout = Some(facts.idle_timeout);
    // How often it may be used again after the first request.
    options.keepalive_request_limit = facts.requests_per_connection.map(|most| most - 1);
    let proxy = attempt::proxy(conf, edge, Some(options.clone()));
    Arc::new(Door { proxy: Arc::new(proxy), facts, options, counters })
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
