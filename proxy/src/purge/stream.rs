//! Purges of all nodes, over a stream in Redis or Valkey.
//!
//! A stream, not a channel: what is published to a channel while a node is away is lost to it. Of a stream every node knows how far it has
//! read ([`Position`], in the purge log where there is one), and reads on from there when it is back. When what it has missed is not there
//! any more (the stream was cut, or Redis has lost it), it purges everything.
//!
//! ```text
//! this node: purged, on disk ──> outbox ──> XADD ──> stream ──> XREAD ──> every other node: purged, on disk ──> HSET its position
//! ```
//!
//! The node goes on when Redis is away. Its own purges wait in the outbox, and are published when Redis is back; when the outbox is full it
//! becomes one order to purge everything. A purge counts from its arrival: whatever the clocks of nodes say, what a node has stored
//! before it hears of a purge is reached.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamRangeReply, StreamReadReply};
use redis::{AsyncConnectionConfig, Client, IntoConnectionInfo, RedisError};
use schemars::JsonSchema;
use selvedge_cache::purge::{Position, Record};
use selvedge_cache::{Purge, Scope};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, oneshot, watch};
use tracing::{info, warn};

use super::{Order, Wait, scopes_of};
use crate::node::Current;

/// Entries that the stream keeps, about: for how many purges a node may be away.
const STREAM_MAX: usize = 100_000;
/// Entries that are read at once.
const BATCH: usize = 512;
/// How long Redis may take to connect, and to answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long one read of the stream waits for entries.
const BLOCK: Duration = Duration::from_secs(1);
/// Purges published so long before a node was started are carried out there too: clocks are not exact.
const BEFORE_START: Duration = Duration::from_secs(5);
/// How often a node says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// A node that has said nothing for so long is gone for good, and nobody waits for it.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// How long `wait: cluster` waits.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);
/// Between attempts to reach Redis: twice as long each time, from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// Purges that wait for Redis.
const OUTBOX_MAX: usize = 10_000;

/// Where the stream is.
#[derive(Clone)]
pub(crate) struct Settings {
    pub(crate) url: String,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<String>,
    /// The key of the stream; that of the nodes is this and `:nodes`.
    pub(crate) key: String,
    /// What this node is called.
    pub(crate) node: String,
}

/// This node's end of the stream. Dropped, it lets go of Redis.
pub(crate) struct Stream {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What others may know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamUsage {
    pub(crate) connected: bool,
    /// Purges that were published.
    pub(crate) published: u64,
    /// Purges of others that were carried out here.
    pub(crate) received: u64,
    /// Purges that wait for Redis.
    pub(crate) waiting: u64,
    /// How often something was missed, so that everything was purged.
    pub(crate) gaps: u64,
}

/// What a node has made of a purge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(rename = "NodePurge")]
pub(crate) struct Confirmation {
    /// Its name.
    pub(crate) node: String,
    /// Whether it is in force there.
    pub(crate) done: bool,
}

/// Why the others do not have a purge yet.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StreamError {
    #[error("Redis cannot be reached: the purge is published when it can")]
    Away,
    #[error("Redis does not answer: {0}")]
    Failed(String),
}

struct Shared {
    settings: Settings,
    client: Client,
    /// Tells this process from others of its name.
    instance: String,
    current: Weak<Current>,
    outbox: Mutex<VecDeque<Publish>>,
    filled: Notify,
    /// The connection for commands, while there is one.
    commands: Mutex<Option<MultiplexedConnection>>,
    known: Mutex<Known>,
    started: Instant,
    connected: AtomicBool,
    published: AtomicU64,
    received: AtomicU64,
    gaps: AtomicU64,
}

/// How far this node has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Known {
    position: Position,
    /// Whether that is an entry of the stream, and not only a time.
    is_entry: bool,
}

struct Publish {
    order: Order,
    done: Option<oneshot::Sender<Position>>,
}

/// What a node says of itself, under its name.
#[derive(Serialize, Deserialize)]
struct Node {
    instance: String,
    /// How far it has read.
    position: (u64, u64),
    /// When, in milliseconds since 1970 by the time of Redis.
    at: u64,
}

impl Stream {
    /// Begins to read and publish, on a thread of its own.
    ///
    /// # Errors
    /// The URL is none, or the system gives no thread.
    pub(crate) fn start(settings: Settings, current: &Arc<Current>) -> Result<Self, String> {
        let failed = |error: RedisError| error.to_string();
        let info = settings.url.as_str().into_connection_info().map_err(failed)?;
        let mut login = info.redis_settings().clone();
        if let Some(username) = &settings.username {
            login = login.set_username(username);
        }
        if let Some(password) = &settings.password {
            login = login.set_password(password);
        }
        let client = Client::open(info.set_redis_settings(login)).map_err(failed)?;
        let logged = current.plan().cache.and_then(|cache| cache.log()).map(|log| log.position()).unwrap_or_default();
        let known = Known { position: logged, is_entry: logged != Position::default() };
        let shared = Arc::new(Shared {
            settings,
            client,
            instance: format!("{:016x}", fastrand::u64(..)),
            current: Arc::downgrade(current),
            outbox: Mutex::default(),
            filled: Notify::new(),
            commands: Mutex::new(None),
            known: Mutex::new(known),
            started: Instant::now(),
            connected: AtomicBool::new(false),
            published: AtomicU64::new(0),
            received: AtomicU64::new(0),
            gaps: AtomicU64::new(0),
        });
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("purge-stream".into());
        let thread =
            thread.spawn(move || runtime.block_on(run(&theirs, stopped))).map_err(|error| error.to_string())?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// Tells the other nodes, soon.
    pub(crate) fn publish(&self, order: &Order) {
        self.shared.put(Publish { order: Order { wait: Wait::Node, ..order.clone() }, done: None });
    }

    /// Tells the other nodes, and waits for them: each node that was there in the last minutes, and whether the purge is in force there.
    ///
    /// # Errors
    /// Redis is away, or does not answer.
    pub(crate) async fn publish_and_wait(&self, order: &Order) -> Result<Vec<Confirmation>, StreamError> {
        let until = tokio::time::Instant::now() + CONFIRMED_WITHIN;
        let (done, published) = oneshot::channel();
        let order = Order { wait: Wait::Node, ..order.clone() };
        self.shared.put(Publish { order, done: Some(done) });
        let Ok(Ok(position)) = tokio::time::timeout_at(until, published).await else { return Err(StreamError::Away) };
        loop {
            let nodes = self.shared.nodes().await.map_err(|error| StreamError::Failed(error.to_string()))?;
            let nodes: Vec<Confirmation> = nodes
                .into_iter()
                .map(|(name, node)| Confirmation {
                    done: name == self.shared.settings.node || node.position >= (position.millis, position.number),
                    node: name,
                })
                .collect();
            if nodes.iter().all(|node| node.done) || tokio::time::Instant::now() + LOOK > until {
                return Ok(nodes);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// How it is.
    pub(crate) fn usage(&self) -> StreamUsage {
        let shared = &self.shared;
        StreamUsage {
            connected: shared.connected.load(Ordering::Relaxed),
            published: shared.published.load(Ordering::Relaxed),
            received: shared.received.load(Ordering::Relaxed),
            waiting: shared.outbox.lock().len() as u64,
            gaps: shared.gaps.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        // The thread itself may have been the last to know the node.
        let other = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id());
        if other.is_some_and(|thread| thread.join().is_err()) {
            warn!("the thread that reads the purges of other nodes panicked");
        }
    }
}

/// Reads and publishes while Redis is there, and tries to reach it while it is not.
async fn run(shared: &Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let mut pause = BACKOFF.0;
    let mut told = false;
    loop {
        let ended = tokio::select! {
            ended = session(shared) => ended,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        if shared.connected.swap(false, Ordering::Relaxed) {
            (pause, told) = (BACKOFF.0, false);
        }
        *shared.commands.lock() = None;
        if let (Err(error), false) = (ended, told) {
            told = true;
            warn!(%error, "Redis is away: purges of other nodes arrive when it is back, and so do this one's there");
        }
        tokio::select! {
            // Nodes that lost it at one moment do not all come back at one.
            () = tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64())) => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
        pause = (pause * 2).min(BACKOFF.1);
    }
    shared.connected.store(false, Ordering::Relaxed);
}

/// One connection's time, until it breaks.
async fn session(shared: &Arc<Shared>) -> Result<(), RedisError> {
    let config =
        |answer| AsyncConnectionConfig::new().set_connection_timeout(Some(DEADLINE)).set_response_timeout(Some(answer));
    let mut commands = shared.client.get_multiplexed_async_connection_with_config(&config(DEADLINE)).await?;
    let reading = shared.client.get_multiplexed_async_connection_with_config(&config(BLOCK + DEADLINE)).await?;
    let ahead = ahead(&mut commands).await?;
    shared.catch_up(&mut commands).await?;
    *shared.commands.lock() = Some(commands.clone());
    shared.connected.store(true, Ordering::Relaxed);
    info!(key = shared.settings.key, "purges of other nodes are read from Redis");
    let (read, write) = (read(shared, reading, commands.clone(), ahead), write(shared, commands));
    tokio::try_join!(read, write).map(|_| ())
}

/// By how many milliseconds the time of Redis is ahead of ours.
async fn ahead(commands: &mut MultiplexedConnection) -> Result<i64, RedisError> {
    let (seconds, micros): (i64, i64) = redis::cmd("TIME").query_async(commands).await?;
    Ok(seconds * 1000 + micros / 1000 - now())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Carries out what others publish.
async fn read(
    shared: &Shared,
    mut reading: MultiplexedConnection,
    mut commands: MultiplexedConnection,
    ahead: i64,
) -> Result<(), RedisError> {
    let mut said = None;
    loop {
        let known = shared.known.lock().position;
        if said.is_none_or(|(at, what): (tokio::time::Instant, Position)| at.elapsed() >= HEARTBEAT || what != known) {
            shared.say(&mut commands, known, ahead).await?;
            said = Some((tokio::time::Instant::now(), known));
        }
        let mut ask = redis::cmd("XREAD");
        ask.arg("COUNT").arg(BATCH).arg("BLOCK").arg(BLOCK.as_millis().try_into().unwrap_or(1000_u64));
        ask.arg("STREAMS").arg(&shared.settings.key).arg(shown(known));
        let reply: Option<StreamReadReply> = ask.query_async(&mut reading).await?;
        let entries = reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids).collect::<Vec<_>>();
        if !entries.is_empty() {
            shared.carry_out(&entries).await;
        }
    }
}

/// Publishes what this node has purged.
async fn write(shared: &Shared, mut commands: MultiplexedConnection) -> Result<(), RedisError> {
    loop {
        // It stays in the outbox until it is published: whatever breaks in between, it is not lost.
        let Some(order) = shared.outbox.lock().front().map(|publish| publish.order.clone()) else {
            shared.filled.notified().await;
            continue;
        };
        let text = serde_json::to_string(&order).unwrap_or_default();
        let mut add = redis::cmd("XADD");
        add.arg(&shared.settings.key).arg("MAXLEN").arg("~").arg(STREAM_MAX).arg("*");
        add.arg("node").arg(&shared.instance).arg("purge").arg(text);
        let id: String = add.query_async(&mut commands).await?;
        shared.published.fetch_add(1, Ordering::Relaxed);
        let published = shared.outbox.lock().pop_front();
        if let (Some(done), Some(position)) = (published.and_then(|publish| publish.done), position(&id)) {
            let _ = done.send(position);
        }
    }
}

impl Shared {
    fn put(&self, publish: Publish) {
        let mut outbox = self.outbox.lock();
        if outbox.len() >= OUTBOX_MAX {
            warn!("too many purges wait for Redis: the others will purge everything");
            // The first may be on its way: it stays where it is.
            outbox.truncate(1);
            let soft = publish.order.soft && outbox.iter().all(|waiting| waiting.order.soft);
            outbox.push_back(Publish { order: Order { all: true, soft, ..Order::default() }, done: None });
        }
        outbox.push_back(publish);
        drop(outbox);
        self.filled.notify_one();
    }

    /// Finds out from where to read on, and whether anything was missed.
    async fn catch_up(&self, commands: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let key = &self.settings.key;
        let Known { position: from, is_entry } = *self.known.lock();
        if !is_entry {
            // An entry of our own, which is the first that is read, unless there are others: if it is gone later, so may be what came after.
            let mut add = redis::cmd("XADD");
            add.arg(key)
                .arg("MAXLEN")
                .arg("~")
                .arg(STREAM_MAX)
                .arg("*")
                .arg("node")
                .arg(&self.instance)
                .arg("hello")
                .arg(1);
            let _: String = add.query_async(commands).await?;
        }
        if from == Position::default() {
            // What this node holds it has fetched since it was started: what was purged before that does not concern it.
            let (seconds, micros): (u64, u64) = redis::cmd("TIME").query_async(commands).await?;
            let up = u64::try_from((self.started.elapsed() + BEFORE_START).as_millis()).unwrap_or_default();
            let millis = (seconds * 1000 + micros / 1000).saturating_sub(up).max(1);
            *self.known.lock() = Known { position: Position { millis, number: 0 }, is_entry: false };
            return Ok(());
        }
        let first: StreamRangeReply =
            redis::cmd("XRANGE").arg(key).arg("-").arg("+").arg("COUNT").arg(1).query_async(commands).await?;
        let first = first.ids.first().and_then(|entry| position(&entry.id));
        let length: usize = redis::cmd("XLEN").arg(key).query_async(commands).await?;
        // What is cut away is cut away from the beginning: with something that old still there, nothing newer is missing.
        let reaches_back = first.is_some_and(|first| first <= from);
        if reaches_back || !(is_entry || length >= STREAM_MAX) {
            return Ok(());
        }
        self.gaps.fetch_add(1, Ordering::Relaxed);
        warn!(key, "purges of other nodes were missed and are not there any more: everything is purged");
        if let Some(cache) = self.current.upgrade().and_then(|current| current.plan().cache)
            && let Err(error) = cache.purge_for_good(&[Scope::everything()], Purge::Hard, Vec::new()).await
        {
            warn!(%error, "the purge of everything is in force, but not on disk");
        }
        // What is there comes after it, once more or for the first time.
        *self.known.lock() = Known { position: Position { millis: 1, number: 0 }, is_entry: false };
        Ok(())
    }

    /// Carries out what these entries say, all of the hard ones at once, then the soft ones.
    async fn carry_out(&self, entries: &[StreamId]) {
        let Some(plan) = self.current.upgrade().map(|current| current.plan()) else { return };
        let field = |entry: &StreamId, name: &str| entry.get::<String>(name);
        let theirs = |entry: &&StreamId| {
            field(entry, "node").as_deref() != Some(&self.instance) && field(entry, "hello").is_none()
        };
        let orders: Vec<Option<Order>> = entries
            .iter()
            .filter(theirs)
            .map(|entry| field(entry, "purge").and_then(|text| serde_json::from_str(&text).ok()))
            .collect();
        let count = orders.len() as u64;
        let (hard, soft) = scopes_of(&plan, orders.iter().map(Option::as_ref));
        let known = entries.iter().filter_map(|entry| position(&entry.id)).max();
        if let Some(cache) = plan.cache {
            for (scopes, purge, last) in [(hard, Purge::Hard, false), (soft, Purge::Soft, true)] {
                let position: Vec<Record> = known.filter(|_| last).map(Record::Position).into_iter().collect();
                if scopes.is_empty() && position.is_empty() {
                    continue;
                }
                if let Err(error) = cache.purge_for_good(&scopes, purge, position).await {
                    warn!(%error, "purges of other nodes are in force, but not on disk");
                }
            }
        }
        self.received.fetch_add(count, Ordering::Relaxed);
        if let Some(known) = known {
            let mut now = self.known.lock();
            (now.position, now.is_entry) = (known, true);
        }
    }

    /// Says that this node is there, and how far it has read.
    async fn say(&self, commands: &mut MultiplexedConnection, known: Position, ahead: i64) -> Result<(), RedisError> {
        let at = u64::try_from(now() + ahead).unwrap_or_default();
        let node = Node { instance: self.instance.clone(), position: (known.millis, known.number), at };
        let text = serde_json::to_string(&node).unwrap_or_default();
        let key = self.nodes_key();
        let mut all = redis::pipe();
        all.cmd("HSET").arg(&key).arg(&self.settings.node).arg(text).ignore();
        all.cmd("PEXPIRE").arg(&key).arg(u64::try_from(FORGOTTEN.as_millis()).unwrap_or(600_000)).ignore();
        all.query_async(commands).await
    }

    /// The nodes that were there in the last minutes, by name.
    async fn nodes(&self) -> Result<Vec<(String, Node)>, RedisError> {
        let Some(mut commands) = self.commands.lock().clone() else {
            return Err(RedisError::from((redis::ErrorKind::Io, "the connection is lost")));
        };
        let all: Vec<(String, String)> = redis::cmd("HGETALL").arg(self.nodes_key()).query_async(&mut commands).await?;
        let mut nodes: Vec<(String, Node)> =
            all.into_iter().filter_map(|(name, text)| Some((name, serde_json::from_str(&text).ok()?))).collect();
        let newest = nodes.iter().map(|(_, node)| node.at).max().unwrap_or_default();
        let forgotten = u64::try_from(FORGOTTEN.as_millis()).unwrap_or(600_000);
        nodes.retain(|(_, node)| node.at.saturating_add(forgotten) > newest);
        nodes.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Ok(nodes)
    }

    fn nodes_key(&self) -> String {
        format!("{}:nodes", self.settings.key)
    }
}

/// As Redis writes it.
fn shown(position: Position) -> String {
    format!("{}-{}", position.millis, position.number)
}

fn position(id: &str) -> Option<Position> {
    let (millis, number) = id.split_once('-')?;
    Some(Position { millis: millis.parse().ok()?, number: number.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_read_as_they_are_written() {
        let known = Position { millis: 1_763_719_000_000, number: 7 };
        assert_eq!(position(&shown(known)), Some(known));
        for wrong in ["", "1", "1-", "-1", "a-1", "1-2-3"] {
            assert_eq!(position(wrong), None, "{wrong}");
        }
    }
}
