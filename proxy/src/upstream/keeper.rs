//! What looks after upstreams besides requests: it looks up names and asks endpoints how they are, on a thread of its own. It also
//! remembers what is known of endpoints and names over reloads.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::Ipv6Addr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak, mpsc};
use std::time::Instant;

use hickory_resolver::TokioResolver;
use parking_lot::Mutex;
use pingora::connectors::l4::Connect;
use selvedge_config::Dns;
use tokio::runtime::{Handle, Runtime};
use tokio::task::AbortHandle;

use super::endpoint::{Address, State};
use super::names::{self, Answer, Name, Unresolved};
use super::traffic::Traffic;
use super::{Upstreams, health};

/// Makes connections in place of the network.
pub(crate) type Dial = Arc<dyn Connect + Send + Sync>;

/// What makes connections to an upstream, by its name.
pub(crate) type DialFor = Box<dyn Fn(&str) -> Dial + Send + Sync>;

/// The keeper of a node's upstreams. Its thread is started when there is something to do for it, and ends with [`Keeper::stop`], or when
/// it is dropped.
#[derive(Default)]
pub(crate) struct Keeper {
    /// By upstream and address; what no plan has any more is forgotten.
    states: Mutex<HashMap<(String, Address), Weak<State>>>,
    /// By upstream, as above.
    traffic: Mutex<HashMap<String, Weak<Traffic>>>,
    /// The last good answers.
    names: Mutex<HashMap<Name, Answer>>,
    resolvers: Mutex<HashMap<Arc<Dns>, TokioResolver>>,
    failed_lookups: AtomicU64,
    tasks: Mutex<Vec<AbortHandle>>,
    runtime: Mutex<Option<Runtime>>,
    /// Nobody is asked anything: see [`Keeper::offline`].
    offline: Option<DialFor>,
}

impl Keeper {
    /// One that asks nobody: each name stands for one address out of those that are for documentation (RFC 3849), and every endpoint is
    /// well. Connections are made by `dial`.
    pub(crate) fn offline(dial: DialFor) -> Self {
        let mut keeper = Self::default();
        keeper.offline = Some(dial);
        keeper
    }

    /// What makes connections to an upstream, where nobody is asked anything; `None` = the network does.
    pub(super) fn dial(&self, upstream: &str) -> Option<Dial> {
        self.offline.as_ref().map(|dial| dial(upstream))
    }

    /// What is known of an endpoint, and whether it is new.
    pub(super) fn state(&self, upstream: &str, address: &Address) -> (Arc<State>, bool) {
        let mut states = self.states.lock();
        let key = (upstream.to_owned(), address.clone());
        if let Some(state) = states.get(&key).and_then(Weak::upgrade) {
            return (state, false);
        }
        let state = Arc::default();
        states.insert(key, Arc::downgrade(&state));
        (state, true)
    }

    /// What goes on at an upstream.
    pub(super) fn traffic(&self, upstream: &str) -> Arc<Traffic> {
        let mut all = self.traffic.lock();
        if let Some(traffic) = all.get(upstream).and_then(Weak::upgrade) {
            return traffic;
        }
        let traffic = Arc::default();
        all.insert(upstream.to_owned(), Arc::downgrade(&traffic));
        traffic
    }

    pub(super) fn answer(&self, name: &Name) -> Option<Answer> {
        self.names.lock().get(name).cloned()
    }

    pub(super) fn remember(&self, name: &Name, answer: Answer) {
        self.names.lock().insert(name.clone(), answer);
    }

    pub(super) fn resolver(&self, dns: &Arc<Dns>) -> Result<TokioResolver, String> {
        let mut resolvers = self.resolvers.lock();
        if let Some(resolver) = resolvers.get(dns) {
            return Ok(resolver.clone());
        }
        let resolver = names::resolver(dns)?;
        resolvers.insert(Arc::clone(dns), resolver.clone());
        Ok(resolver)
    }

    pub(super) fn count_failed_lookup(&self) {
        self.failed_lookups.fetch_add(1, Relaxed);
    }

    /// How many look-ups of names have failed.
    pub(crate) fn failed_lookups(&self) -> u64 {
        self.failed_lookups.load(Relaxed)
    }

    /// Looks up names that have no answer yet, all at once. Blocks for as long as their `dns.timeout` allows.
    pub(super) fn look_up(self: &Arc<Self>, names: Vec<Name>) -> io::Result<HashMap<Name, Unresolved>> {
        let mut unresolved = HashMap::new();
        let unknown: Vec<Name> = names.into_iter().filter(|name| self.answer(name).is_none()).collect();
        if self.offline.is_some() {
            for name in unknown {
                let known = u16::try_from(self.names.lock().len()).unwrap_or(u16::MAX);
                let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 1, known);
                let answer = Answer::fixed(address.into(), &name);
                self.remember(&name, answer);
            }
            return Ok(unresolved);
        }
        if unknown.is_empty() {
            return Ok(unresolved);
        }
        let longest = unknown.iter().map(|name| name.dns.timeout * 3).max().unwrap_or_default();
        let deadline = Instant::now() + longest;
        let handle = self.handle()?;
        let (sender, results) = mpsc::channel();
        for name in &unknown {
            unresolved.insert(name.clone(), Unresolved { definite: false, why: format!("no answer in {longest:?}") });
            let (name, sender, keeper) = (name.clone(), sender.clone(), Arc::clone(self));
            handle.spawn(async move {
                let found = match keeper.resolver(&name.dns) {
                    Ok(resolver) => names::look_up(&resolver, &name).await,
                    Err(why) => Err(Unresolved { definite: false, why }),
                };
                let _ = sender.send((name, found)); // Nobody waits any more after the deadline.
            });
        }
        drop(sender);
        while let Ok((name, found)) = results.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            match found {
                Ok(answer) => {
                    self.remember(&name, answer);
                    unresolved.remove(&name);
                }
                Err(why) => {
                    self.count_failed_lookup();
                    unresolved.insert(name, why);
                }
            }
        }
        Ok(unresolved)
    }

    /// From now on these upstreams are looked after, and no others.
    pub(crate) fn keep(self: &Arc<Self>, upstreams: &Upstreams) {
        let mut tasks = self.tasks.lock();
        tasks.drain(..).for_each(|task| task.abort());
        self.resolvers.lock().clear(); // What resolv.conf says may have changed, too.
        self.states.lock().retain(|_, state| state.strong_count() > 0);
        self.traffic.lock().retain(|_, traffic| traffic.strong_count() > 0);

        let mut names: HashMap<Name, Vec<Weak<_>>> = HashMap::new();
        let mut checked = Vec::new();
        for upstream in upstreams.iter() {
            upstream.come_into_force(self);
            for name in upstream.names() {
                names.entry(name.clone()).or_default().push(Arc::downgrade(upstream));
            }
            if upstream.is_checked() {
                checked.push(Arc::downgrade(upstream));
            }
        }
        self.names.lock().retain(|name, _| names.contains_key(name));
        for (name, upstreams) in names {
            tasks.extend(self.spawn(names::follow(Arc::downgrade(self), name, upstreams)));
        }
        for upstream in checked {
            tasks.extend(self.spawn(health::watch(upstream)));
        }
    }

    /// Ends all that goes on, and the thread.
    pub(crate) fn stop(&self) {
        self.tasks.lock().drain(..).for_each(|task| task.abort());
        if let Some(runtime) = self.runtime.lock().take() {
            runtime.shutdown_background();
        }
    }

    /// `None` when there is no thread: whoever made a plan with something to do has started it, or the node has stopped.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Option<AbortHandle> {
        let runtime = self.runtime.lock();
        runtime.as_ref().map(|runtime| runtime.spawn(task).abort_handle())
    }

    /// Starts the thread, if it does not run yet.
    pub(super) fn handle(&self) -> io::Result<Handle> {
        let mut runtime = self.runtime.lock();
        if let Some(runtime) = runtime.as_ref() {
            return Ok(runtime.handle().clone());
        }
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let started =
            builder.worker_threads(1).max_blocking_threads(2).thread_name("upstreams").enable_all().build()?;
        let handle = started.handle().clone();
        *runtime = Some(started);
        Ok(handle)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop();
    }
}
