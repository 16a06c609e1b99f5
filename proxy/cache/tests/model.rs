//! Purges against a model: whatever is stored, fetched, purged, expired and restarted in whatever order, what a lookup finds is what a few
//! lines of plain code say.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use pingora_cache::trace::{Span, SpanHandle};
use pingora_cache::{CacheKey, HitHandler, HttpCache, MissHandler, PurgeTarget, RespCacheable, Storage};
use pingora_http::{RequestHeader, ResponseHeader};
use proptest::prelude::*;
use selvedge_cache::purge::{Marks, PurgeLog, TagPolicy, Tags, Verdict};
use selvedge_cache::{Cache, CacheCtx, CacheOptions, KeyScope, Purge, Purges, QueryPolicy, RoutePolicy, Scheme, Scope};

const HOSTS: [&str; 2] = ["a.example", "b.example:8080"];
const TARGETS: [&str; 6] = ["/", "/x", "/x/1", "/x/1?q=1", "/x/1?q=2", "/xy"];
const TAGS: [&str; 3] = ["red", "green", "blue"];
/// Fills that are under way at once.
const FILLS: usize = 4;

/// Where something is stored: host, target, variant.
type Place = (usize, usize, bool);

#[derive(Debug, Clone)]
enum Step {
    /// Asks the origin, and has the header of its answer: tagged with some of the tags.
    Begin {
        place: Place,
        tags: u8,
    },
    /// One of the fills under way gets its last byte, or breaks off.
    End {
        fill: usize,
        whole: bool,
    },
    Purge {
        what: What,
        purge: Purge,
    },
    /// The response's lifetime is over.
    Expire {
        place: Place,
    },
    /// The process is killed, and another reads the log.
    Restart,
}

#[derive(Debug, Clone)]
enum What {
    Everything,
    Host(usize),
    Prefix(usize, &'static str),
    Url(usize, usize),
    Tag(usize),
}

fn place() -> impl Strategy<Value = Place> {
    (0..HOSTS.len(), 0..TARGETS.len(), any::<bool>())
}

fn what() -> impl Strategy<Value = What> {
    prop_oneof![
        1 => Just(What::Everything),
        2 => (0..HOSTS.len()).prop_map(What::Host),
        3 => (0..HOSTS.len(), prop_oneof![Just("/"), Just("/x"), Just("/x/"), Just("/x/1")])
            .prop_map(|(host, path)| What::Prefix(host, path)),
        4 => (0..HOSTS.len(), 0..TARGETS.len()).prop_map(|(host, target)| What::Url(host, target)),
        4 => (0..TAGS.len()).prop_map(What::Tag),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (place(), 0..8_u8).prop_map(|(place, tags)| Step::Begin { place, tags }),
        6 => (0..FILLS, prop::bool::weighted(0.9)).prop_map(|(fill, whole)| Step::End { fill, whole }),
        4 => (what(), any::<bool>())
            .prop_map(|(what, hard)| Step::Purge { what, purge: if hard { Purge::Hard } else { Purge::Soft } }),
        1 => place().prop_map(|place| Step::Expire { place }),
        1 => Just(Step::Restart),
    ]
}

// ---- the model ----

#[derive(Debug, Clone)]
struct Response {
    place: Place,
    tags: u8,
    body: String,
    /// The step at which it was asked for.
    asked: usize,
    expired: bool,
    /// What purges go by, as a tier on disk keeps it.
    marks: Marks,
}

#[derive(Default)]
struct Model {
    /// The step of each purge.
    purges: Vec<(usize, What, Purge)>,
    stored: BTreeMap<Place, Response>,
    /// In the order in which their headers came.
    filling: Vec<Response>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Fresh,
    Stale,
    Gone,
}

impl What {
    fn reaches(&self, response: &Response) -> bool {
        let (host, target, _) = response.place;
        let path = TARGETS[target].split('?').next().unwrap_or_default();
        match self {
            Self::Everything => true,
            Self::Host(purged) => *purged == host,
            Self::Prefix(purged, prefix) => {
                let prefix = prefix.trim_end_matches('/');
                *purged == host && (path == prefix || path.starts_with(&format!("{prefix}/")))
            }
            Self::Url(purged, url) => *purged == host && *url == target,
            Self::Tag(tag) => response.tags & (1 << tag) != 0,
        }
    }

    fn scopes(&self) -> Vec<Scope> {
        match self {
            Self::Everything => vec![Scope::everything()],
            Self::Host(host) => vec![Scope::host(HOSTS[*host])],
            Self::Prefix(host, prefix) => vec![Scope::prefix(HOSTS[*host], prefix)],
            Self::Url(host, target) => vec![Scope::url(&QueryPolicy::All, HOSTS[*host], TARGETS[*target])],
            Self::Tag(tag) => vec![Scope::tag(TAGS[*tag]), Scope::too_many_tags()],
        }
    }
}

impl Model {
    /// By purges alone.
    fn purged(&self, response: &Response) -> State {
        let since = self.purges.iter().filter(|(step, what, _)| *step > response.asked && what.reaches(response));
        since.fold(State::Fresh, |state, (.., purge)| match (state, purge) {
            (State::Gone, _) | (_, Purge::Hard) => State::Gone,
            _ => State::Stale,
        })
    }

    /// What a request finds: the body, and whether it is fresh.
    fn find(&self, place: Place) -> Option<(&str, bool)> {
        let joins = |fill: &&Response| fill.place == place && self.purged(fill) == State::Fresh;
        if let Some(fill) = self.filling.iter().rev().find(joins) {
            return Some((&fill.body, true));
        }
        let stored = self.stored.get(&place)?;
        match self.purged(stored) {
            State::Gone => None,
            state => Some((&stored.body, state == State::Fresh && !stored.expired)),
        }
    }
}

// ---- what is tested ----

struct Fill {
    writer: MissHandler,
    /// Pingora always has one.
    _own: HitHandler,
}

struct System {
    cache: &'static Cache,
    policy: Arc<RoutePolicy>,
}

fn span() -> SpanHandle {
    Span::inactive().handle()
}

impl System {
    fn request(place: Place) -> RequestHeader {
        let (host, target, _) = place;
        let mut request = RequestHeader::build("GET", TARGETS[target].as_bytes(), None).expect("a request");
        request.insert_header("host", HOSTS[host]).expect("a host");
        request
    }

    fn key(&self, place: Place, ctx: &mut CacheCtx, state: &mut HttpCache) -> CacheKey {
        let request = Self::request(place);
        self.cache.enable(state, &request, KeyScope::default(), Scheme::Http, &self.policy, ctx);
        let mut key = self.cache.key(&request, ctx).expect("the cache is on");
        if place.2 {
            key.set_variance_key([7; 16]);
        }
        key
    }

    async fn begin(&self, place: Place, tags: u8, body: &str) -> (Fill, Marks) {
        let (mut ctx, mut state) = (CacheCtx::default(), HttpCache::new());
        let request = Self::request(place);
        let key = self.key(place, &mut ctx, &mut state);
        let epoch = self.cache.purges().clock().fetch();
        self.cache.before_upstream(&state, &request, &mut ctx);

        let mut response = ResponseHeader::build(200, None).expect("a header");
        response.insert_header("cache-control", "max-age=600, stale-while-revalidate=600").expect("a field");
        let named = (0..TAGS.len()).filter(|tag| tags & (1 << tag) != 0).map(|tag| TAGS[tag]);
        response.insert_header("surrogate-key", named.collect::<Vec<_>>().join(" ")).expect("a field");
        let marks = Marks::new(
            epoch,
            Scheme::Http,
            &QueryPolicy::All,
            HOSTS[place.0].as_bytes(),
            TARGETS[place.1].as_bytes(),
            &Tags::of(&response.headers, &TagPolicy::default()),
        );
        let decision = self.cache.response_decision(&state, &request, &response, &mut ctx);
        let meta = if let RespCacheable::Cacheable(meta) = decision { Some(meta) } else { None };
        let meta = meta.expect("it may be stored");
        let memory = self.cache.memory();
        let mut writer = memory.get_miss_handler(&key, &meta, &span()).await.expect("a fill");
        let tag = writer.streaming_write_tag().map(<[u8]>::to_vec);
        let own = memory.lookup_streaming_write(&key, tag.as_deref(), &span()).await.expect("a lookup");
        writer.write_body(Bytes::copy_from_slice(body.as_bytes()), false).await.expect("written");
        (Fill { writer, _own: own.expect("the fill's own reader").1 }, marks)
    }

    async fn find(&self, place: Place) -> Option<(String, bool)> {
        let key = self.key(place, &mut CacheCtx::default(), &mut HttpCache::new());
        let (meta, mut reader) = self.cache.memory().lookup(&key, &span()).await.expect("a lookup")?;
        let body = reader.read_body().await.expect("a read").expect("a body");
        let fresh = meta.is_fresh(std::time::SystemTime::now());
        Some((String::from_utf8(body.to_vec()).expect("text"), fresh))
    }

    async fn expire(&self, place: Place) {
        let key = self.key(place, &mut CacheCtx::default(), &mut HttpCache::new()).to_compact();
        self.cache.memory().expire(PurgeTarget::Active(&key), &span()).await.expect("an expiry");
    }
}

async fn check(steps: Vec<Step>, log: &Path) {
    let system = System { cache: Cache::leak(CacheOptions::default()), policy: Arc::default() };
    system.cache.open_log(log).expect("the log opens");
    let mut model = Model::default();
    let mut fills: Vec<Fill> = Vec::new();
    // Everything that was ever asked for: a tier on disk may come up with any of it.
    let mut all: Vec<Response> = Vec::new();

    for (now, step) in steps.into_iter().enumerate() {
        match step {
            Step::Begin { .. } if fills.len() == FILLS => {}
            Step::Begin { place, tags } => {
                let body = format!("body {now}");
                let (fill, marks) = system.begin(place, tags, &body).await;
                let response = Response { place, tags, body, asked: now, expired: false, marks };
                fills.push(fill);
                all.push(response.clone());
                model.filling.push(response);
            }
            Step::End { fill, whole } => {
                if fill < fills.len() {
                    let mut ended = fills.remove(fill);
                    let response = model.filling.remove(fill);
                    if whole {
                        ended.writer.write_body(Bytes::new(), true).await.expect("the end");
                        ended.writer.finish().await.expect("finished");
                        if model.purged(&response) != State::Gone {
                            model.stored.insert(response.place, response);
                        }
                    }
                }
            }
            Step::Purge { what, purge } => {
                let done = system.cache.purge_for_good(&what.scopes(), purge, Vec::new()).await.expect("on disk");
                assert!(done.durable);
                model.purges.push((now, what, purge));
            }
            Step::Expire { place } => {
                system.expire(place).await;
                if let Some(response) = model.stored.get_mut(&place) {
                    response.expired = true;
                }
            }
            Step::Restart => restart(&model, &all, log),
        }
        for host in 0..HOSTS.len() {
            for target in 0..TARGETS.len() {
                for variant in [false, true] {
                    let place = (host, target, variant);
                    let found = system.find(place).await;
                    let found = found.as_ref().map(|(body, fresh)| (body.as_str(), *fresh));
                    assert_eq!(found, model.find(place), "step {now}, {place:?}");
                }
            }
        }
    }
    restart(&model, &all, log);
}

/// What another process makes of everything that was ever fetched, with the log alone.
fn restart(model: &Model, all: &[Response], log: &Path) {
    let purges: &'static Purges = Box::leak(Box::default());
    let open = PurgeLog::open(log, purges).expect("the log opens");
    for response in all {
        let state = match purges.verdict(&response.marks) {
            Verdict::Live => State::Fresh,
            Verdict::StaleSince(_) => State::Stale,
            Verdict::Gone => State::Gone,
        };
        assert_eq!(state, model.purged(response), "after a restart: {response:?}");
        assert!(purges.clock().fetch() > response.marks.epoch, "the clock has not gone back");
    }
    drop(open);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn lookups_find_what_the_model_says(steps in prop::collection::vec(step(), 1..60)) {
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(check(steps, &folder.path().join("purge.log")));
    }
}
