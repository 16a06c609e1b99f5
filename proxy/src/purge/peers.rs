//! Purges of all nodes, told from one to the other over the connections between them, where there is no Redis.
//!
//! A node tells every other one what it purges before it answers, so that nobody fetches from a node what was purged there and not here; a
//! node that cannot be told cannot be asked either. What a node has missed it gets later: every few seconds each asks each other for what
//! it has not heard. Purges are numbered by the node they come from; a node knows from each up to which number it has heard them all, in
//! the purge log where there is one. When what it lacks is not kept any more, it purges everything.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use http::StatusCode;
use parking_lot::Mutex;
use selvedge_cache::purge::Record;
use selvedge_cache::{Purge, Scope};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{Confirmation, Order, StreamUsage, Wait, scopes_of};
use crate::cluster::Cluster;
use crate::cluster::messages::{Handlers, Message, Peer, Reply};
use crate::node::Current;
use crate::plan::Plan;

/// Where nodes are told.
const PATH: &str = "/v1/purges";
/// How often a node asks the others for what it has not heard.
const ASK_EVERY: Duration = Duration::from_secs(3);
/// How long another node may take, where nobody waits for it, and where somebody does.
const PATIENCE: Duration = Duration::from_secs(1);
const PATIENCE_OF_WAITERS: Duration = Duration::from_secs(5);
/// A node that has not answered is not told by purges that do not wait for it, for this long: it asks when it is back.
const SILENT_FOR: Duration = Duration::from_secs(3);
/// Purges that are kept for nodes that were away.
const KEPT_MAX: usize = 10_000;
/// So many are told at once.
const TOLD_MAX: usize = 500;
/// Nodes that are told apart; each start of one is another. The oldest are forgotten first.
const ORIGINS_MAX: usize = 256;

/// A purge, by the node it comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Told {
    origin: u64,
    number: u64,
    order: Order,
}

/// What a node tells another, and the answer.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Sync {
    /// Up to which number the sender has heard everything, by origin.
    heard: BTreeMap<u64, u64>,
    /// What the other has not heard.
    told: Vec<Told>,
    /// The sender has heard of nothing yet, and purges what it has stored if there is something to hear: only what is to come concerns it.
    #[serde(default)]
    fresh: bool,
    /// In answers: what the other lacks is not kept any more.
    #[serde(default)]
    missed: bool,
}

#[derive(Debug, Default)]
struct State {
    heard: BTreeMap<u64, u64>,
    kept: BTreeMap<(u64, u64), Order>,
    in_order: VecDeque<(u64, u64)>,
    fresh: bool,
}

impl State {
    fn keep(&mut self, told: &Told) {
        let place = (told.origin, told.number);
        if self.kept.insert(place, told.order.clone()).is_none() {
            self.in_order.push_back(place);
        }
        while self.in_order.len() > KEPT_MAX
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.kept.remove(&oldest);
        }
    }

    /// Takes note of a purge. Says whether it is new.
    fn take(&mut self, told: &Told) -> bool {
        let heard = self.heard.get(&told.origin).copied().unwrap_or(0);
        if told.number <= heard || self.kept.contains_key(&(told.origin, told.number)) {
            return false;
        }
        self.keep(told);
        let mut all = heard;
        while self.kept.contains_key(&(told.origin, all + 1)) {
            all += 1;
        }
        if all > heard {
            self.heard.insert(told.origin, all);
        }
        while self.heard.len() > ORIGINS_MAX {
            self.heard.pop_first();
        }
        true
    }

    /// What somebody lacks who has heard so much, and whether some of it is not kept any more.
    fn lacking(&self, theirs: &BTreeMap<u64, u64>) -> (Vec<Told>, bool) {
        // What is older than all they remember, they have forgotten because it is long gone.
        let oldest = theirs.first_key_value().map_or(0, |(origin, _)| *origin);
        let is_full = theirs.len() >= ORIGINS_MAX;
        let (mut told, mut missed) = (Vec::new(), false);
        for (origin, heard) in &self.heard {
            let known = theirs.get(origin).copied().unwrap_or(0);
            if known >= *heard || (is_full && *origin < oldest) {
                continue;
            }
            missed |= !self.kept.contains_key(&(*origin, known + 1));
            let orders = self.kept.range((*origin, known + 1)..=(*origin, u64::MAX));
            let orders = orders.map(|((origin, number), order)| (*origin, *number, order.clone()));
            told.extend(orders.map(|(origin, number, order)| Told { origin, number, order }));
        }
        told.truncate(TOLD_MAX);
        (told, missed)
    }

    /// All that somebody else has heard counts as heard.
    fn adopt(&mut self, theirs: &BTreeMap<u64, u64>) {
        for (origin, heard) in theirs {
            let known = self.heard.entry(*origin).or_default();
            *known = (*known).max(*heard);
        }
        while self.heard.len() > ORIGINS_MAX {
            self.heard.pop_first();
        }
    }
}

/// This node's part.
pub(crate) struct Peers {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    /// This process: when it was started, and chance.
    origin: u64,
    current: Weak<Current>,
    state: Mutex<State>,
    silent: Mutex<HashMap<String, Instant>>,
    connected: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    gaps: AtomicU64,
}

impl Peers {
    /// From now on other nodes are answered, and asked now and then.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start(current: &Arc<Current>, handlers: &Handlers) -> std::io::Result<Self> {
        let cache = current.plan().cache;
        let heard = cache.and_then(|cache| cache.log()).map(|log| log.heard()).unwrap_or_default();
        let now = cache.map_or(0, |cache| cache.purges().clock().fetch());
        let state = State { fresh: heard.is_empty(), heard, ..State::default() };
        let shared = Arc::new(Shared {
            origin: (now / 1000) << 20 | fastrand::u64(..1 << 20),
            current: Arc::downgrade(current),
            state: Mutex::new(state),
            silent: Mutex::default(),
            connected: AtomicBool::new(true),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
        });
        let theirs = Arc::clone(&shared);
        let handler = move |message: Message| {
            let shared = Arc::clone(&theirs);
            Box::pin(async move { shared.answer(&message).await }) as futures::future::BoxFuture<'static, Reply>
        };
        handlers.register(PATH, Arc::new(handler));

        let (stop, mut stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("purge-peers".into()).spawn(move || {
            runtime.block_on(async move {
                loop {
                    tokio::select! {
                        () = theirs.ask_all() => {}
                        _ = stopped.wait_for(|stopped| *stopped) => return,
                    }
                    tokio::select! {
                        () = tokio::time::sleep(ASK_EVERY.mul_f64(0.5 + fastrand::f64())) => {}
                        _ = stopped.wait_for(|stopped| *stopped) => return,
                    }
                }
            });
        })?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// Tells the other nodes at once, and says which of them have it in force.
    pub(crate) async fn tell(&self, cluster: &Cluster, order: &Order) -> Vec<Confirmation> {
        let shared = &self.shared;
        let waits = order.wait == Wait::Cluster;
        let sync = shared.own(order);
        let told = everybody(cluster).into_iter().map(|peer| {
            let sync = &sync;
            async move {
                let tried = waits || !shared.is_silent(&peer.name);
                let patience = if waits { PATIENCE_OF_WAITERS } else { PATIENCE };
                let done = tried && shared.exchange(cluster, &peer, sync, patience).await.is_some();
                Confirmation { node: peer.name, done }
            }
        });
        let mut nodes = join_all(told).await;
        nodes.push(Confirmation { node: cluster.name.to_string(), done: true });
        nodes.sort_unstable_by(|one, other| one.node.cmp(&other.node));
        nodes
    }

    /// The same without waiting: they are told by the task that asks them, at the latest.
    pub(crate) fn tell_soon(&self, plan: Arc<Plan>, order: &Order) {
        let sync = self.shared.own(order);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move {
            let Some(cluster) = &plan.cluster else { return };
            let told = everybody(cluster).into_iter().filter(|peer| !shared.is_silent(&peer.name));
            let told: Vec<Peer> = told.collect();
            join_all(told.iter().map(|peer| shared.exchange(cluster, peer, &sync, PATIENCE))).await;
        });
    }

    /// How it is.
    pub(crate) fn usage(&self) -> StreamUsage {
        StreamUsage {
            connected: self.shared.connected.load(Ordering::Relaxed),
            published: self.shared.sent.load(Ordering::Relaxed),
            received: self.shared.received.load(Ordering::Relaxed),
            waiting: 0,
            gaps: self.shared.gaps.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        // The thread itself may have been the last to know the node.
        let other = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id());
        if other.is_some_and(|thread| thread.join().is_err()) {
            warn!("the thread that asks other nodes for purges panicked");
        }
    }
}

fn everybody(cluster: &Cluster) -> Vec<Peer> {
    cluster.others().into_iter().chain(cluster.region()).collect()
}

impl Shared {
    /// Numbers a purge of this node.
    fn own(&self, order: &Order) -> Sync {
        let mut state = self.state.lock();
        let number = state.heard.get(&self.origin).copied().unwrap_or(0) + 1;
        let told = Told { origin: self.origin, number, order: Order { wait: Wait::Node, ..order.clone() } };
        state.take(&told);
        let heard = state.heard.clone();
        drop(state);
        self.sent.fetch_add(1, Ordering::Relaxed);
        if let Some(log) = self.current.upgrade().and_then(|current| current.plan().cache).and_then(|cache| cache.log())
        {
            // The purge itself is on disk. That others know it, and this node with it, is no loss if it is not.
            log.append_later(vec![Record::Heard { origin: self.origin, number }]);
        }
        Sync { heard, told: vec![told], ..Sync::default() }
    }

    fn is_silent(&self, node: &str) -> bool {
        self.silent.lock().get(node).is_some_and(|since| since.elapsed() < SILENT_FOR)
    }

    /// Asks all other nodes for what this one has not heard.
    async fn ask_all(&self) {
        let Some(plan) = self.current.upgrade().map(|current| current.plan()) else { return };
        let Some(cluster) = &plan.cluster else { return };
        let peers = everybody(cluster);
        let asked = peers.iter().map(|peer| async move {
            let sync = {
                let state = self.state.lock();
                Sync { heard: state.heard.clone(), fresh: state.fresh, ..Sync::default() }
            };
            self.exchange(cluster, peer, &sync, PATIENCE_OF_WAITERS).await
        });
        let answered = join_all(asked).await.into_iter().filter(Option::is_some).count();
        self.connected.store(answered == peers.len(), Ordering::Relaxed);
        self.silent.lock().retain(|_, since| since.elapsed() < SILENT_FOR);
    }

    /// Tells and asks one node; `None` = it has not answered.
    async fn exchange(&self, cluster: &Cluster, peer: &Peer, sync: &Sync, patience: Duration) -> Option<()> {
        let body: Bytes = serde_json::to_vec(sync).ok()?.into();
        let failed = match cluster.post(peer, PATH, body, patience).await {
            Ok(reply) if reply.status == StatusCode::OK => match serde_json::from_slice::<Sync>(&reply.body) {
                Ok(answer) => {
                    self.silent.lock().remove(&peer.name);
                    self.hear(answer, sync.fresh).await;
                    return Some(());
                }
                Err(error) => error.to_string(),
            },
            Ok(reply) => reply.status.to_string(),
            Err(error) => error.to_string(),
        };
        debug!(node = %peer.name, failed, "another node is not told what is purged");
        self.silent.lock().insert(peer.name.clone(), Instant::now());
        None
    }

    /// Answers another node.
    async fn answer(&self, message: &Message) -> Reply {
        let Ok(sync) = serde_json::from_slice::<Sync>(&message.body) else {
            warn!(from = %message.from, "a message about purges is not understood");
            return Reply { status: StatusCode::BAD_REQUEST, body: Bytes::new() };
        };
        let Sync { heard: theirs, told, fresh, .. } = sync;
        if !self.carry_out(told).await {
            return Reply { status: StatusCode::SERVICE_UNAVAILABLE, body: Bytes::new() };
        }
        let state = self.state.lock();
        let (told, missed) = if fresh { (Vec::new(), false) } else { state.lacking(&theirs) };
        let answer = Sync { heard: state.heard.clone(), told, fresh: false, missed };
        drop(state);
        Reply { status: StatusCode::OK, body: serde_json::to_vec(&answer).unwrap_or_default().into() }
    }

    /// Makes something of an answer.
    async fn hear(&self, answer: Sync, was_fresh: bool) {
        let Sync { heard, told, missed, .. } = answer;
        if !missed && !was_fresh {
            self.carry_out(told).await;
            return;
        }
        if missed {
            self.gaps.fetch_add(1, Ordering::Relaxed);
            warn!("purges of other nodes were missed and are not kept any more: everything is purged");
        }
        // Who begins has stored nothing, as a rule. But others may have been away until now, or have purged while they answered: what is
        // to count as heard must be in force, because the purge itself, when it comes, is taken for known.
        let is_news = {
            let state = self.state.lock();
            heard.iter().any(|(origin, number)| state.heard.get(origin).is_none_or(|known| known < number))
        };
        let cache = self.current.upgrade().and_then(|current| current.plan().cache);
        if let Some(cache) = cache.filter(|_| missed || is_news) {
            let records = heard.iter().map(|(origin, number)| Record::Heard { origin: *origin, number: *number });
            let done = cache.purge_for_good(&[Scope::everything()], Purge::Hard, records.collect()).await;
            if let Err(error) = done {
                warn!(%error, "the purge of everything is in force, but not on disk");
            }
        }
        let mut state = self.state.lock();
        state.adopt(&heard);
        state.fresh = false;
    }

    /// Carries out what is new of these. Says whether it is in force, and on disk where there is a log.
    async fn carry_out(&self, told: Vec<Told>) -> bool {
        if told.is_empty() {
            return true;
        }
        let Some(plan) = self.current.upgrade().map(|current| current.plan()) else { return false };
        let (new, records) = {
            let mut state = self.state.lock();
            let new: Vec<Told> = told.into_iter().filter(|told| state.take(told)).collect();
            let origins = new.iter().map(|told| told.origin).collect::<std::collections::BTreeSet<_>>();
            let heard = origins.into_iter().filter_map(|origin| Some((origin, *state.heard.get(&origin)?)));
            let records = heard.map(|(origin, number)| Record::Heard { origin, number }).collect::<Vec<_>>();
            (new, records)
        };
        if new.is_empty() {
            return true;
        }
        self.received.fetch_add(new.len() as u64, Ordering::Relaxed);
        let (hard, soft) = scopes_of(&plan, new.iter().map(|told| Some(&told.order)));
        let Some(cache) = plan.cache else { return true };
        let hard =
            if hard.is_empty() { Ok(()) } else { cache.purge_for_good(&hard, Purge::Hard, Vec::new()).await.map(drop) };
        let soft = cache.purge_for_good(&soft, Purge::Soft, records).await.map(drop);
        if let Err(error) = hard.and(soft) {
            warn!(%error, "purges of other nodes are in force, but not on disk");
            return false;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(origin: u64, number: u64) -> Told {
        Told { origin, number, order: Order { tags: vec![format!("{origin}-{number}")], ..Order::default() } }
    }

    #[test]
    fn what_comes_out_of_order_is_taken_once_and_counts_when_the_rest_is_there() {
        let mut state = State::default();
        for (number, new, heard) in
            [(1, true, 1), (3, true, 1), (3, false, 1), (2, true, 3), (2, false, 3), (4, true, 4)]
        {
            assert_eq!(state.take(&told(7, number)), new, "{number}");
            assert_eq!(state.heard[&7], heard, "{number}");
        }
    }

    #[test]
    fn who_lacks_something_gets_it_or_hears_that_it_is_gone() {
        let mut state = State::default();
        for number in 1..=3 {
            state.take(&told(7, number));
        }
        let numbers = |theirs: &[(u64, u64)]| {
            let (told, missed) = state.lacking(&theirs.iter().copied().collect());
            (told.iter().map(|told| told.number).collect::<Vec<_>>(), missed)
        };
        assert_eq!(numbers(&[]), (vec![1, 2, 3], false));
        assert_eq!(numbers(&[(7, 2)]), (vec![3], false));
        assert_eq!(numbers(&[(7, 3), (8, 9)]), (vec![], false));

        let mut later = State::default();
        later.adopt(&[(7, 3)].into());
        later.take(&told(7, 4));
        let (told, missed) = later.lacking(&[(7, 1)].into());
        assert_eq!((told.len(), missed), (1, true), "2 and 3 are not kept there");
        assert_eq!(later.lacking(&[(7, 3)].into()).0.len(), 1);
    }

    #[test]
    fn only_so_much_is_kept() {
        let mut state = State::default();
        for number in 1..=(KEPT_MAX as u64 + 10) {
            state.take(&told(7, number));
        }
        assert_eq!((state.kept.len(), state.in_order.len()), (KEPT_MAX, KEPT_MAX));
        assert!(state.lacking(&[(7, 3)].into()).1);
        for origin in 0..(2 * ORIGINS_MAX as u64) {
            state.take(&told(100 + origin, 1));
        }
        assert_eq!(state.heard.len(), ORIGINS_MAX);
    }
}
