//! The cache: what it holds, and what is put out of it. Beside the node's own operations there are those that tools made for Fastly's API
//! use, with its paths, header fields and answers.

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body_util::Full;
use schemars::JsonSchema;
use selvedge_cache::disk::DiskUsage;
use selvedge_cache::purge::LogError;
use selvedge_cache::{Cache, Scheme, Stored};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::State;
use super::operations::{Call, json};
use super::problem::Problem;
use crate::purge::{self, Confirmation, Order, PurgeError, StreamUsage, Url};
use crate::request::purge::is_soft;

/// What became of a purge.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Purged {
    /// The node that answers.
    node: String,
    /// When it was, in microseconds since 1970: what was fetched later is not reached.
    epoch: u64,
    /// Whether it is on disk: with a `cache.purge.log`.
    durable: bool,
    /// With `"wait": "cluster"`: each node that was there in the last ten minutes. All of them have it, or the status is 504.
    #[serde(skip_serializing_if = "Option::is_none")]
    nodes: Option<Vec<Confirmation>>,
}

/// What the cache holds.
#[derive(Serialize, JsonSchema)]
pub(crate) struct CacheStats {
    /// In memory.
    memory: MemoryStats,
    /// On each disk: with `cache.disk`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    disks: Vec<DiskStats>,
    /// Purges.
    purges: PurgeStats,
    /// How nodes hear of each other's purges: with `cluster`.
    #[serde(skip_serializing_if = "Option::is_none")]
    stream: Option<StreamStats>,
}

/// What the cache holds in memory.
#[derive(Serialize, JsonSchema)]
struct MemoryStats {
    /// Complete objects.
    objects: u64,
    /// Their bytes, with headers and bookkeeping.
    bytes: u64,
    /// The budget for them.
    capacity: u64,
    /// Fills under way.
    fills: u64,
    /// Body bytes they hold.
    fill_bytes: u64,
}

/// What the cache holds on a disk.
#[derive(Serialize, JsonSchema)]
struct DiskStats {
    /// Its folder.
    path: String,
    /// `on` while it is in use; else `waiting` for another process to let go of it, `loading`, `off` after errors, or `closed`.
    state: &'static str,
    /// Stored responses.
    objects: u64,
    /// The bytes of its files.
    bytes: u64,
    /// What they may take.
    capacity: u64,
    /// Bytes that wait to be written.
    queued_bytes: u64,
}

impl From<DiskUsage> for DiskStats {
    fn from(usage: DiskUsage) -> Self {
        let DiskUsage { name, state, objects, bytes, capacity, queued_bytes, .. } = usage;
        Self { path: name, state: state.as_str(), objects, bytes, capacity, queued_bytes }
    }
}

/// The purges that still matter.
#[derive(Serialize, JsonSchema)]
struct PurgeStats {
    /// Scopes that are told apart.
    entries: u64,
    /// Scopes that were purged hard since the start.
    hard: u64,
    /// The same, soft.
    soft: u64,
    /// How many became coarser since the start, because there were too many.
    folded: u64,
    /// For how long purges are remembered, in seconds.
    remembered_for: u64,
    /// Whether they are kept on disk.
    durable: bool,
    /// Tags of stored responses that were too many, or too long.
    tags_dropped: u64,
}

/// How nodes hear of each other's purges.
#[derive(Serialize, JsonSchema)]
struct StreamStats {
    /// Whether Redis is there, or without it, whether all other nodes have answered lately.
    connected: bool,
    /// Purges of this node that were published.
    published: u64,
    /// Purges of others that were carried out here.
    received: u64,
    /// Purges of this node that wait for Redis.
    waiting: u64,
    /// How often purges of others were missed, so that everything was purged.
    gaps: u64,
}

impl From<StreamUsage> for StreamStats {
    fn from(usage: StreamUsage) -> Self {
        let StreamUsage { connected, published, received, waiting, gaps } = usage;
        Self { connected, published, received, waiting, gaps }
    }
}

impl StoredObject {
    fn of(stored: &Stored, place: Option<(&str, &'static str)>, tier: &'static str) -> Self {
        Self {
            route: place.map(|(route, _)| route.to_owned()),
            scheme: place.map(|(_, scheme)| scheme),
            tier,
            status: stored.status.as_u16(),
            length: stored.length,
            age: stored.age,
            ttl: stored.ttl,
            epoch: stored.epoch,
            variant: stored.is_variant,
            filling: stored.is_filling,
            tags: stored.tags.clone(),
            etag: stored.etag.clone(),
            vary: stored.vary.clone(),
        }
    }
}

/// What is stored for a URL.
#[derive(Serialize, JsonSchema)]
pub(crate) struct StoredObjects {
    /// All variants in memory, over http and https, of all routes of the site, whatever else their keys are made of; and what is on disk under
    /// the plain keys.
    objects: Vec<StoredObject>,
}

/// A stored response.
#[derive(Serialize, JsonSchema)]
struct StoredObject {
    /// The route that has stored it; absent where its key has further parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<String>,
    /// How it was asked for: `http` or `https`; absent where its key has further parts.
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<&'static str>,
    /// Where it is: `memory` or `disk`.
    tier: &'static str,
    /// Its status.
    status: u16,
    /// The bytes of its body.
    length: u64,
    /// Its age in seconds.
    age: u64,
    /// How long it is fresh, in seconds; negative once it is stale.
    ttl: i64,
    /// When its fetch began, in microseconds since 1970.
    epoch: u64,
    /// Whether the response varies, and this is not the first variant of it.
    variant: bool,
    /// Whether it is still on its way in.
    filling: bool,
    /// What it is tagged with.
    tags: Vec<String>,
    /// Its validator.
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    /// What it varies by.
    #[serde(skip_serializing_if = "Option::is_none")]
    vary: Option<String>,
}

impl CacheStats {
    pub(crate) fn of(state: &State) -> Result<Self, Problem> {
        let cache = cache(state)?;
        let (usage, purges) = (cache.usage(), cache.purges().usage());
        Ok(Self {
            memory: MemoryStats {
                objects: usage.objects,
                bytes: usage.bytes,
                capacity: usage.capacity,
                fills: usage.fills,
                fill_bytes: usage.fill_bytes,
            },
            disks: cache.disks().into_iter().map(Into::into).collect(),
            purges: PurgeStats {
                entries: purges.entries,
                hard: purges.hard,
                soft: purges.soft,
                folded: purges.folded,
                remembered_for: cache.purges().remembered_for().as_secs(),
                durable: cache.log().is_some(),
                tags_dropped: cache.tags_dropped(),
            },
            stream: usage_of_others(state).map(Into::into),
        })
    }
}

pub(crate) async fn purge(state: &State, call: Call<'_>) -> Result<Response<Full<Bytes>>, Problem> {
    let purged = carry_out(state, &call.json()?).await?;
    let mut answer = json(&purged)?;
    if purged.nodes.iter().flatten().any(|node| !node.done) {
        *answer.status_mut() = StatusCode::GATEWAY_TIMEOUT;
    }
    Ok(answer)
}

pub(crate) async fn object(state: &State, call: Call<'_>) -> Result<Response<Full<Bytes>>, Problem> {
    let plan = state.control.current().plan();
    let cache = cache(state)?;
    let wrong = |detail: String| Problem::new(StatusCode::BAD_REQUEST, "There is no URL to look up").detail(detail);
    let url = parameter(call.query, "url").ok_or_else(|| wrong("write `?url=https://www.example.com/path`".into()))?;
    let Url { authority, target } = Url::read(&url, &plan).map_err(|error| wrong(error.to_string()))?;
    let mut objects = Vec::new();
    let mut known = Vec::new();
    for route in plan.router.routes_of(&authority) {
        let Some(rule) = &route.cache else { continue };
        for (scheme, word) in [(Scheme::Http, "http"), (Scheme::Https, "https")] {
            let query = &rule.policy.query;
            let place = Some((route.name(), word));
            let found = cache.inspect(rule.scope, scheme, query, &authority, &target);
            objects.extend(found.iter().map(|stored| StoredObject::of(stored, place, "memory")));
            known.extend(found);
            let on_disk = cache.inspect_disk(rule.scope, scheme, query, &authority, &target).await;
            objects.extend(on_disk.map(|stored| StoredObject::of(&stored, place, "disk")));
        }
    }
    let order = Order { urls: vec![url], ..Order::default() };
    let scopes = order.scopes(&plan).map_err(|error| wrong(error.to_string()))?;
    let elsewhere = cache.inspect_elsewhere(&scopes, &known);
    objects.extend(elsewhere.iter().map(|stored| StoredObject::of(stored, None, "memory")));
    json(&StoredObjects { objects })
}

/// `POST /service/{id}/purge/{key}`. There is one service: whatever `id` is, the tag is purged on all sites.
pub(crate) async fn fastly_key(state: &State, call: Call<'_>) -> Result<Response<Full<Bytes>>, Problem> {
    let [_, key] = &call.names[..] else { return Err(no_keys()) };
    let order = Order { tags: vec![key.clone()], soft: is_soft(call.headers), ..Order::default() };
    let purged = carry_out(state, &order).await?;
    json(&json!({ "status": "ok", "id": id(&purged) }))
}

/// What `POST /service/{id}/purge` may have as its body, instead of a header field.
#[derive(Deserialize)]
struct SurrogateKeys {
    surrogate_keys: Vec<String>,
}

/// `POST /service/{id}/purge`, with the tags in `Surrogate-Key` or in the body. The answer has an id for each.
pub(crate) async fn fastly_keys(state: &State, call: Call<'_>) -> Result<Response<Full<Bytes>>, Problem> {
    let tags = match surrogate_keys(call.headers) {
        tags if !tags.is_empty() => tags,
        _ if !call.body.is_empty() => call.json::<SurrogateKeys>()?.surrogate_keys,
        _ => return Err(no_keys()),
    };
    let order = Order { tags, soft: is_soft(call.headers), ..Order::default() };
    let purged = carry_out(state, &order).await?;
    let ids: Map<String, Value> = order.tags.iter().map(|tag| (tag.clone(), id(&purged).into())).collect();
    json(&ids)
}

/// `POST /service/{id}/purge_all`.
pub(crate) async fn fastly_all(state: &State) -> Result<Response<Full<Bytes>>, Problem> {
    carry_out(state, &Order { all: true, ..Order::default() }).await?;
    json(&json!({ "status": "ok" }))
}

fn surrogate_keys(headers: &HeaderMap) -> Vec<String> {
    let lines = headers.get_all("surrogate-key").iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(str::split_ascii_whitespace).map(str::to_owned).collect()
}

fn no_keys() -> Problem {
    let problem = Problem::new(StatusCode::BAD_REQUEST, "There is no tag to purge");
    problem.detail("send `Surrogate-Key: a b`, or `{\"surrogate_keys\": [\"a\", \"b\"]}`")
}

fn id(purged: &Purged) -> String {
    format!("{}-{}", purged.node, purged.epoch)
}

async fn carry_out(state: &State, order: &Order) -> Result<Purged, Problem> {
    let plan = state.control.current().plan();
    let done = purge::carry_out(state.control.current(), &plan, order).await.map_err(|error| match error {
        PurgeError::NoCache => no_cache(),
        PurgeError::Order(error) => {
            Problem::new(StatusCode::BAD_REQUEST, "This cannot be purged").detail(error.to_string())
        }
        error @ PurgeError::Alone => {
            Problem::new(StatusCode::BAD_REQUEST, "This cannot be purged").detail(error.to_string())
        }
        PurgeError::Log(error) => not_on_disk(&error),
    })?;
    let nodes = done.nodes.transpose().map_err(|error| {
        let title = "The purge is in force on this node, and the others have not confirmed it";
        Problem::new(StatusCode::GATEWAY_TIMEOUT, title).detail(error.to_string())
    })?;
    Ok(Purged { node: state.name.clone(), epoch: done.epoch, durable: done.durable, nodes })
}

fn not_on_disk(error: &LogError) -> Problem {
    let title = "The purge is in force, but would not survive a restart";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, title).detail(error.to_string())
}

fn cache(state: &State) -> Result<&'static Cache, Problem> {
    state.control.current().plan().cache.ok_or_else(no_cache)
}

fn usage_of_others(state: &State) -> Option<StreamUsage> {
    let current = state.control.current();
    let over_redis = current.stream().map(|stream| stream.usage());
    over_redis.or_else(|| current.peers().map(|peers| peers.usage()))
}

fn no_cache() -> Problem {
    let problem = Problem::new(StatusCode::NOT_FOUND, "This node has no cache");
    problem.detail("the configuration has no `cache` section")
}

/// The value of a parameter of a query.
fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let value = query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    percent_encoding::percent_decode_str(&value.replace('+', "%20")).decode_utf8().ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_decoded() {
        for (query, value) in [
            (Some("url=https%3A%2F%2Fa.example%2F%3Fb%3D1%26c&x=y"), Some("https://a.example/?b=1&c")),
            (Some("x=y&url=a.example/b+c"), Some("a.example/b c")),
            (Some("urls=a"), None),
            (Some("url=%ff"), None),
            (None, None),
        ] {
            assert_eq!(parameter(query, "url").as_deref(), value, "{query:?}");
        }
    }
}
