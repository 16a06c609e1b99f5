//! The cache in a real Pingora proxy, from outside: bytes in, bytes out, and how often the origin was asked.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use http::Method;
use pingora_cache::key::HashBinary;
use pingora_cache::{CacheKey, CacheMeta, ForcedFreshness, HitHandler, RespCacheable};
use pingora_core::apps::ServerApp;
use pingora_core::protocols::Stream;
use pingora_core::protocols::l4::stream::Stream as L4Stream;
use pingora_core::server::configuration::ServerConf;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_error::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{ProxyHttp, Session, http_proxy};
use selvedge_cache::{Cache, CacheCtx, CacheOptions, KeyScope, Onward, Purge, QueryPolicy, RoutePolicy, Scheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

const DEADLINE: Duration = Duration::from_secs(20);

// ---- the proxy: every hook is one line ----

struct Edge {
    origin: String,
    cache: &'static Cache,
    policy: Arc<RoutePolicy>,
    scope: KeyScope,
}

#[async_trait]
impl ProxyHttp for Edge {
    type CTX = CacheCtx;

    fn new_ctx(&self) -> CacheCtx {
        CacheCtx::default()
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut CacheCtx) -> Result<Box<HttpPeer>> {
        Ok(Box::new(HttpPeer::new(self.origin.as_str(), false, String::new())))
    }

    fn request_cache_filter(&self, session: &mut Session, ctx: &mut CacheCtx) -> Result<()> {
        let request = session.downstream_session.req_header();
        self.cache.enable(&mut session.cache, request, self.scope, Scheme::Http, &self.policy, ctx);
        Ok(())
    }

    fn cache_key_callback(&self, session: &Session, ctx: &mut CacheCtx) -> Result<CacheKey> {
        self.cache.key(session.req_header(), ctx)
    }

    fn cache_vary_filter(&self, meta: &CacheMeta, ctx: &mut CacheCtx, request: &RequestHeader) -> Option<HashBinary> {
        self.cache.vary(meta, request, ctx)
    }

    async fn cache_hit_filter(
        &self,
        session: &mut Session,
        meta: &CacheMeta,
        handler: &mut HitHandler,
        is_fresh: bool,
        ctx: &mut CacheCtx,
    ) -> Result<Option<ForcedFreshness>> {
        let request = session.downstream_session.req_header();
        Ok(self.cache.on_hit(&mut session.cache, request, meta, handler, is_fresh, ctx))
    }

    async fn proxy_upstream_filter(&self, session: &mut Session, ctx: &mut CacheCtx) -> Result<bool> {
        match self.cache.before_upstream(&session.cache, session.downstream_session.req_header(), ctx) {
            Onward::Forward => Ok(true),
            Onward::Answer(status) => session.respond_error(status.as_u16()).await.map(|()| false),
            Onward::Failed(error) => Err(error),
            Onward::Refused => session.respond_error(503).await.map(|()| false),
        }
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CacheCtx,
    ) -> Result<()> {
        self.cache.upstream_response(session.req_header(), response, ctx).await;
        Ok(())
    }

    fn response_cache_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        ctx: &mut CacheCtx,
    ) -> Result<RespCacheable> {
        Ok(self.cache.response_decision(&session.cache, session.req_header(), response, ctx))
    }

    fn cache_not_modified_filter(
        &self,
        session: &Session,
        response: &ResponseHeader,
        _: &mut CacheCtx,
    ) -> Result<bool> {
        Ok(self.cache.not_modified(session.req_header(), response))
    }

    fn should_serve_stale(&self, session: &mut Session, ctx: &mut CacheCtx, error: Option<&Error>) -> bool {
        self.cache.serve_stale(&session.cache, error, ctx)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        ctx: &mut CacheCtx,
    ) -> Result<()> {
        self.cache.append_status(&session.cache, ctx, "edge", None, response);
        Ok(())
    }
}

// ---- the origin: plays a script per request ----

/// One step of an answer.
enum Step {
    Send(String),
    /// Wait until the test opens the gate.
    Gate,
    /// Wait until the origin was asked this often.
    Asked(usize),
}

fn send(text: &str) -> Step {
    Step::Send(text.to_owned())
}

/// A whole answer with its length.
fn whole(fields: &str, body: &str) -> Vec<Step> {
    vec![Step::Send(format!(
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n{fields}\r\n{body}",
        body.len()
    ))]
}

type Script = dyn Fn(&str, usize) -> Vec<Step> + Send + Sync;

struct Origin {
    address: String,
    asked: watch::Receiver<usize>,
    gate: Arc<Semaphore>,
}

impl Origin {
    /// `script` gets the head of a request and how many came before it.
    async fn start(script: impl Fn(&str, usize) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let script: Arc<Script> = Arc::new(script);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (count, asked) = watch::channel(0);
        let gate = Arc::new(Semaphore::new(0));
        let opened = Arc::clone(&gate);
        let count = Arc::new(count);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (script, gate, count) = (Arc::clone(&script), Arc::clone(&opened), Arc::clone(&count));
                tokio::spawn(async move {
                    let Some(head) = read_head(&mut stream).await else { return };
                    let mut number = 0;
                    count.send_modify(|count| {
                        number = *count;
                        *count += 1;
                    });
                    for step in script(&head, number) {
                        match step {
                            Step::Send(text) => {
                                if stream.write_all(text.as_bytes()).await.is_err() {
                                    return;
                                }
                            }
                            Step::Gate => drop(gate.acquire().await),
                            Step::Asked(times) => drop(count.subscribe().wait_for(|count| *count >= times).await),
                        }
                    }
                    let _closed_either_way = stream.shutdown().await;
                });
            }
        });
        Self { address, asked, gate }
    }

    fn asked(&self) -> usize {
        *self.asked.borrow()
    }

    async fn asked_times(&self, times: usize) {
        let mut asked = self.asked.clone();
        let reached = asked.wait_for(|count| *count >= times);
        tokio::time::timeout(DEADLINE, reached)
            .await
            .expect("the origin is asked in time")
            .expect("the origin is there");
    }

    fn open_gate(&self) {
        self.gate.add_permits(10_000);
    }
}

async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.ok()?;
        if count == 0 {
            return None;
        }
        head.extend_from_slice(&buffer[..count]);
    }
    Some(String::from_utf8_lossy(&head).to_ascii_lowercase())
}

// ---- a node: the proxy in front of an origin ----

struct Node {
    address: String,
    origin: Origin,
    cache: &'static Cache,
    scope: KeyScope,
    _shutdown: watch::Sender<bool>,
}

impl Node {
    async fn start(origin: Origin) -> Self {
        Self::with(origin, RoutePolicy::default(), CacheOptions::default()).await
    }

    async fn with(origin: Origin, policy: RoutePolicy, options: CacheOptions) -> Self {
        let cache = Cache::leak(options);
        let scope = KeyScope::new("site", "route");
        let edge = Edge { origin: origin.address.clone(), cache, policy: Arc::new(policy), scope };
        let app = Arc::new(http_proxy(&Arc::new(ServerConf::default()), edge));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let (shutdown, watched) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (app, watched) = (Arc::clone(&app), watched.clone());
                let stream: Stream = Box::new(L4Stream::from(stream));
                tokio::spawn(async move { app.process_new(stream, &watched).await });
            }
        });
        Self { address, origin, cache, scope, _shutdown: shutdown }
    }

    async fn open(&self, method: &str, path: &str, fields: &str) -> Client {
        let mut stream = TcpStream::connect(&self.address).await.expect("the node listens");
        let request = format!("{method} {path} HTTP/1.1\r\nhost: a.example\r\nconnection: close\r\n{fields}\r\n");
        stream.write_all(request.as_bytes()).await.expect("the node reads");
        Client { stream, received: Vec::new(), head_only: method == "HEAD" }
    }

    async fn get(&self, path: &str) -> Reply {
        self.open("GET", path, "").await.finish().await
    }

    async fn get_with(&self, path: &str, fields: &str) -> Reply {
        self.open("GET", path, fields).await.finish().await
    }

    fn invalidate(&self, path: &str, purge: Purge) -> usize {
        self.cache.invalidate(self.scope, Scheme::Http, &QueryPolicy::All, "a.example", path, purge)
    }
}

struct Client {
    stream: TcpStream,
    received: Vec<u8>,
    head_only: bool,
}

impl Client {
    /// Read on until `text` has come.
    async fn until(&mut self, text: &str) {
        let read = async {
            while !String::from_utf8_lossy(&self.received).contains(text) {
                let count = self.stream.read_buf(&mut self.received).await.expect("a read");
                assert_ne!(count, 0, "ended before {text:?}: {:?}", String::from_utf8_lossy(&self.received));
            }
        };
        tokio::time::timeout(DEADLINE, read).await.expect("the text comes in time");
    }

    async fn finish(mut self) -> Reply {
        let read = self.stream.read_to_end(&mut self.received);
        // A reset ends a broken response as well as a close does.
        let _end = tokio::time::timeout(DEADLINE, read).await.expect("the response ends in time");
        Reply::of(&String::from_utf8_lossy(&self.received), self.head_only)
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
    /// Whether the framing says that the body is all there.
    complete: bool,
}

impl Reply {
    fn of(text: &str, head_only: bool) -> Self {
        let (head, rest) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let mut reply = Self { status, head, body: rest.to_owned(), complete: true };
        if head_only || status == 304 {
            return reply;
        }
        if reply.field("transfer-encoding") == "chunked" {
            (reply.body, reply.complete) = dechunk(rest);
        } else {
            reply.complete = reply.field("content-length").parse() == Ok(rest.len());
        }
        reply
    }

    fn field(&self, name: &str) -> &str {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(given, _)| *given == name).map_or("", |(_, value)| value)
    }

    #[track_caller]
    fn is(&self, body: &str, status: &str) {
        assert!(self.complete && self.status == 200, "{self:?}");
        assert_eq!(self.body, body, "{self:?}");
        assert!(self.field("cache-status").starts_with(status), "{status}: {self:?}");
    }
}

fn dechunk(mut rest: &str) -> (String, bool) {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size, 16) else { break };
        if size == 0 {
            return (body, true);
        }
        let Some(chunk) = after.get(..size) else { break };
        body.push_str(chunk);
        rest = after[size..].trim_start_matches("\r\n");
    }
    (body, false)
}

// ---- the claims ----

/// RFC 9111, 4.2.3 and 5.1.
#[tokio::test]
async fn a_miss_then_hits_with_age() {
    let node =
        Node::start(Origin::start(|_, _| whole("cache-control: max-age=60\r\nage: 10\r\n", "hello")).await).await;
    node.get("/a").await.is("hello", "edge; fwd=uri-miss; fwd-status=200; ttl=49; stored");
    let hit = node.get("/a").await;
    hit.is("hello", "edge; hit; ttl=4");
    assert!(matches!(hit.field("age").parse(), Ok(10..30)), "{hit:?}");
    assert_eq!(hit.field("connection"), "close", "the node's own, not the origin's");
    let head = node.open("HEAD", "/a", "").await.finish().await;
    assert_eq!((head.status, head.field("content-length"), head.body.as_str()), (200, "5", ""));
    node.get("/b").await.is("hello", "edge; fwd=uri-miss");
    assert_eq!(node.origin.asked(), 2);
}

/// RFC 9110, 13: the node answers conditions from what it stores.
#[tokio::test]
async fn a_client_that_has_it_gets_304() {
    let node =
        Node::start(Origin::start(|_, _| whole("cache-control: max-age=60\r\netag: \"1\"\r\n", "hello")).await).await;
    let cold = node.get_with("/a", "if-none-match: \"1\"\r\n").await;
    assert_eq!((cold.status, cold.body.as_str()), (304, ""));
    assert_eq!(node.get_with("/a", "if-none-match: W/\"1\"\r\n").await.status, 304);
    node.get_with("/a", "if-none-match: \"2\"\r\n").await.is("hello", "edge; hit");
    assert_eq!(node.origin.asked(), 1);
}

/// RFC 9111, 3.2 and 4.3: a stale response is validated, and takes over the fields of the 304.
#[tokio::test]
async fn a_stale_response_is_validated_and_updated() {
    let origin = Origin::start(|head, _| match head.contains("if-none-match: \"1\"") {
        true => vec![send(
            "HTTP/1.1 304 Not Modified\r\nconnection: close\r\netag: \"1\"\r\nx-new: 2\r\ncache-control: max-age=90\r\n\r\n",
        )],
        false => whole("cache-control: max-age=60\r\netag: \"1\"\r\nx-new: 1\r\nage: 5\r\n", "hello"),
    });
    let node = Node::start(origin.await).await;
    node.get("/a").await.is("hello", "edge; fwd=uri-miss");
    assert_eq!(node.invalidate("/a", Purge::Soft), 1);

    let validated = node.get("/a").await;
    validated.is("hello", "edge; fwd=stale; fwd-status=304; ttl=89; stored");
    assert_eq!((validated.field("x-new"), validated.field("age")), ("2", ""));
    let hit = node.get("/a").await;
    hit.is("hello", "edge; hit; ttl=8");
    assert_eq!((hit.field("x-new"), hit.field("content-length")), ("2", "5"));
    assert_eq!(node.origin.asked(), 2);
}

/// RFC 9111, 4.1.
#[tokio::test]
async fn variants_are_kept_apart() {
    let origin = Origin::start(|head, _| {
        let encoding = if head.contains("accept-encoding: br") { "br" } else { "gzip" };
        whole("cache-control: max-age=60\r\nvary: Accept-Encoding\r\n", encoding)
    });
    let node = Node::start(origin.await).await;
    let (gzip, br) = ("accept-encoding: gzip\r\n", "accept-encoding: br\r\n");
    node.get_with("/a", gzip).await.is("gzip", "edge; fwd=uri-miss");
    node.get_with("/a", br).await.is("br", "edge; fwd=vary-miss");
    for _ in 0..2 {
        node.get_with("/a", gzip).await.is("gzip", "edge; hit");
        node.get_with("/a", br).await.is("br", "edge; hit");
    }
    assert_eq!(node.origin.asked(), 2);
    assert_eq!(node.invalidate("/a", Purge::Hard), 2);
    node.get_with("/a", br).await.is("br", "edge; fwd=uri-miss");
    node.get_with("/a", gzip).await.is("gzip", "edge; fwd=vary-miss");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_once_are_one_fetch() {
    let origin = Origin::start(|_, _| {
        let mut steps = vec![Step::Gate];
        steps.extend(whole("cache-control: max-age=60\r\n", "hello"));
        steps
    });
    let node = Arc::new(Node::start(origin.await).await);
    let mut clients = Vec::new();
    for _ in 0..200 {
        clients.push(node.open("GET", "/a", "").await);
    }
    node.origin.asked_times(1).await;
    node.origin.open_gate();
    let mut replies: JoinSet<Reply> = clients.into_iter().map(Client::finish).collect();
    let mut collapsed = 0;
    while let Some(reply) = replies.join_next().await {
        let reply = reply.expect("no panic");
        reply.is("hello", "edge; ");
        collapsed += usize::from(reply.field("cache-status").contains("; collapsed"));
    }
    assert_eq!(node.origin.asked(), 1);
    assert!(collapsed > 0);
}

fn chunked_with_gate(ending: &'static str) -> impl Fn(&str, usize) -> Vec<Step> + Send + Sync {
    move |_, _| {
        let head = "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\ncache-control: max-age=60\r\n\r\n5\r\nfirst\r\n";
        vec![send(head), Step::Gate, send(ending)]
    }
}

#[tokio::test]
async fn the_body_streams_to_those_who_join() {
    let node = Node::start(Origin::start(chunked_with_gate("6\r\n, last\r\n0\r\n\r\n")).await).await;
    let mut first = node.open("GET", "/a", "").await;
    first.until("first").await;
    let mut second = node.open("GET", "/a", "").await;
    second.until("first").await;
    node.origin.open_gate();
    first.finish().await.is("first, last", "edge; fwd=uri-miss; fwd-status=200; ttl=59; stored");
    second.finish().await.is("first, last", "edge; fwd=uri-miss; ttl=59; collapsed");
    node.get("/a").await.is("first, last", "edge; hit");
    assert_eq!(node.origin.asked(), 1);
}

/// RFC 9111, 3.3: what broke off is complete for nobody, and not stored.
#[tokio::test]
async fn a_body_that_breaks_off_is_clean_for_nobody() {
    let node = Node::start(Origin::start(chunked_with_gate("9\r\ncut")).await).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = node.open("GET", "/a", "").await;
        client.until("first").await;
        clients.push(client);
    }
    assert_eq!(node.origin.asked(), 1);
    node.origin.open_gate();
    for client in clients {
        let reply = client.finish().await;
        assert!(!reply.complete, "{reply:?}");
    }
    let again = node.get("/a").await;
    assert!(!again.complete || again.status == 502, "{again:?}");
    assert!(node.origin.asked() > 1, "nothing was stored");
}

/// RFC 9110, 14: a range of a body that is still on its way in.
#[tokio::test]
async fn ranges_are_cut_from_a_fill() {
    let origin = Origin::start(|_, _| {
        let head =
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 10\r\ncache-control: max-age=60\r\n\r\n01234";
        vec![send(head), Step::Gate, send("56789")]
    });
    let node = Node::start(origin.await).await;
    let first = node.open("GET", "/a", "range: bytes=3-6\r\n").await;
    node.origin.asked_times(1).await;
    let mut whole = node.open("GET", "/a", "").await;
    whole.until("01234").await;
    let joined = node.open("GET", "/a", "range: bytes=-2\r\n").await;
    node.origin.open_gate();
    for (reply, body) in [(first.finish().await, "3456"), (joined.finish().await, "89")] {
        assert_eq!((reply.status, reply.body.as_str(), reply.complete), (206, body, true), "{reply:?}");
    }
    whole.finish().await.is("0123456789", "edge; ");
    let stored = node.get_with("/a", "range: bytes=0-0\r\n").await;
    assert_eq!((stored.status, stored.body.as_str(), stored.field("content-range")), (206, "0", "bytes 0-0/10"));
    assert_eq!(node.origin.asked(), 1);
}

/// RFC 5861, 3: the stale response at once, the fetch in the background.
#[tokio::test]
async fn stale_while_revalidate_does_not_wait() {
    let origin = Origin::start(|_, number| {
        let mut steps = Vec::new();
        if number == 1 {
            steps.push(Step::Gate);
        }
        steps.extend(whole("cache-control: max-age=60, stale-while-revalidate=60\r\n", ["old", "new"][number.min(1)]));
        steps
    });
    let node = Node::start(origin.await).await;
    node.get("/a").await.is("old", "edge; fwd=uri-miss");
    node.invalidate("/a", Purge::Soft);
    for _ in 0..3 {
        node.get("/a").await.is("old", "edge; hit; ttl=-1; detail=stale-while-revalidate");
    }
    node.origin.asked_times(2).await;
    node.origin.open_gate();
    let renewed = async { while node.get("/a").await.body != "new" {} };
    tokio::time::timeout(DEADLINE, renewed).await.expect("renewed in time");
    assert_eq!(node.origin.asked(), 2);
}

/// RFC 5861, 4 and RFC 9111, 4.2.4.
#[tokio::test]
async fn stale_answers_for_an_origin_that_fails() {
    let origin = Origin::start(|head, number| match (number, head.contains("/down")) {
        (0 | 1, _) => whole("cache-control: max-age=60\r\n", "kept"),
        (_, true) => Vec::new(), // closes without an answer
        (_, false) => vec![send("HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbusy")],
    });
    let node = Node::start(origin.await).await;
    for path in ["/down", "/busy"] {
        node.get(path).await.is("kept", "edge; fwd=uri-miss");
        node.invalidate(path, Purge::Soft);
    }
    node.get("/down").await.is("kept", "edge; fwd=stale; ttl=-1; detail=stale-if-error");
    let busy = node.get("/busy").await;
    assert_eq!((busy.status, busy.body.as_str()), (503, "busy"), "a status needs stale-if-error: {busy:?}");
}

#[tokio::test]
async fn a_route_may_allow_stale_on_errors() {
    let origin = Origin::start(|_, number| match number {
        0 => whole("cache-control: max-age=60\r\n", "kept"),
        _ => vec![send("HTTP/1.1 503 Busy\r\nconnection: close\r\ncontent-length: 4\r\n\r\nbusy")],
    });
    let policy = RoutePolicy { stale_if_error: Some(Duration::from_secs(60)), ..RoutePolicy::default() };
    let node = Node::with(origin.await, policy, CacheOptions::default()).await;
    node.get("/a").await.is("kept", "edge; fwd=uri-miss");
    node.invalidate("/a", Purge::Soft);
    node.get("/a").await.is("kept", "edge; fwd=stale; fwd-status=503; ttl=-1; detail=stale-if-error");
}

#[tokio::test]
async fn what_cannot_be_stored_is_remembered_and_not_queued() {
    let origin = Origin::start(|_, number| match number {
        0..3 => whole("cache-control: no-store\r\n", "private"),
        _ => whole("cache-control: max-age=60\r\n", "public"),
    });
    let node = Node::start(origin.await).await;
    node.get("/a").await.is("private", "edge; fwd=uri-miss; fwd-status=200; detail=no-store");
    for _ in 0..2 {
        node.get("/a").await.is("private", "edge; fwd=uri-miss; fwd-status=200; detail=no-store");
    }
    node.get("/a").await.is("public", "edge; fwd=uri-miss; fwd-status=200; ttl=59; stored");
    node.get("/a").await.is("public", "edge; hit");
    assert_eq!(node.origin.asked(), 4);
}

/// Those who waited for an answer that turns out not to be storable go to the origin all at once, not one after the other.
#[tokio::test]
async fn waiters_for_what_cannot_be_stored_are_released_together() {
    let origin = Origin::start(|_, number| {
        let mut steps = vec![if number == 0 { Step::Gate } else { Step::Asked(6) }];
        steps.extend(whole("cache-control: private\r\n", "yours"));
        steps
    });
    let node = Node::start(origin.await).await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        clients.push(node.open("GET", "/a", "").await);
    }
    node.origin.asked_times(1).await;
    node.origin.open_gate();
    for client in clients {
        client.finish().await.is("yours", "edge; ");
    }
    node.get("/a").await.is("yours", "edge; fwd=uri-miss; fwd-status=200; detail=private");
}

/// Always-stale responses are validated by each request for itself: behind one lock they would queue up.
#[tokio::test]
async fn validations_that_cannot_be_shared_do_not_queue() {
    let origin = Origin::start(|_, number| {
        let mut steps = Vec::new();
        if number > 0 {
            steps.push(Step::Gate);
        }
        steps.extend(whole("cache-control: no-cache\r\netag: \"1\"\r\n", "hello"));
        steps
    });
    let node = Node::start(origin.await).await;
    node.get("/a").await.is("hello", "edge; fwd=uri-miss");
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(node.open("GET", "/a", "").await);
    }
    node.origin.asked_times(6).await; // all of them, before any is answered
    node.origin.open_gate();
    for client in clients {
        client.finish().await.is("hello", "edge; fwd=stale");
    }
}

/// RFC 9111, 4.4.
#[tokio::test]
async fn unsafe_methods_invalidate() {
    let origin = Origin::start(|head, _| match head.starts_with("post") {
        true => whole("content-location: /other\r\n", "done"),
        false => whole("cache-control: max-age=60\r\n", "page"),
    });
    let node = Node::start(origin.await).await;
    for path in ["/a", "/other", "/third"] {
        node.get(path).await.is("page", "edge; fwd=uri-miss");
    }
    let posted = node.open(Method::POST.as_str(), "/a", "content-length: 0\r\n").await.finish().await;
    posted.is("done", "edge; fwd=method; fwd-status=200");
    node.get("/a").await.is("page", "edge; fwd=uri-miss");
    node.get("/other").await.is("page", "edge; fwd=uri-miss");
    node.get("/third").await.is("page", "edge; hit");
}

/// A body that turns out too large reaches the client whole, and is not stored.
#[tokio::test]
async fn a_body_past_the_limit_passes_through() {
    let long = "x".repeat(300_000);
    let expected = long.clone();
    let origin = Origin::start(move |_, _| {
        let head =
            "HTTP/1.1 200 OK\r\nconnection: close\r\ntransfer-encoding: chunked\r\ncache-control: max-age=60\r\n\r\n";
        vec![send(head), Step::Send(format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len()))]
    });
    let options = CacheOptions { max_object: 1000, ..CacheOptions::default() };
    let node = Node::with(origin.await, RoutePolicy::default(), options).await;
    for times in 1..=3 {
        let reply = node.get("/a").await;
        assert!(reply.complete && reply.body == expected, "{} of {}", reply.body.len(), expected.len());
        assert_eq!(node.origin.asked(), times);
    }
    assert_eq!(node.cache.usage().fill_bytes, 0);
}

/// RFC 9111, 5.2.1: only on routes that obey requests.
#[tokio::test]
async fn request_directives_count_where_honoured() {
    for honour in [false, true] {
        let origin = Origin::start(|_, _| whole("cache-control: max-age=60\r\n", "hello"));
        let policy = RoutePolicy { honour_request_directives: honour, ..RoutePolicy::default() };
        let node = Node::with(origin.await, policy, CacheOptions::default()).await;
        let absent = node.get_with("/a", "cache-control: only-if-cached\r\n").await;
        assert_eq!(absent.status, if honour { 504 } else { 200 });
        node.get("/a").await.is("hello", "edge; ");
        let fresh = if honour { "edge; fwd=request; fwd-status=200" } else { "edge; hit" };
        node.get_with("/a", "cache-control: no-cache\r\n").await.is("hello", fresh);
        node.get_with("/a", "cache-control: only-if-cached\r\n").await.is("hello", "edge; hit");
    }
}

/// RFC 9111, 3.5: what an authorised client got is not given to others.
#[tokio::test]
async fn authorised_answers_are_not_shared() {
    let origin = Origin::start(|head, _| match head.contains("authorization") {
        true => whole("cache-control: max-age=60\r\n", "secret"),
        false => whole("cache-control: max-age=60\r\n", "public"),
    });
    let node = Node::start(origin.await).await;
    node.get_with("/a", "authorization: Basic x\r\n")
        .await
        .is("secret", "edge; fwd=uri-miss; fwd-status=200; detail=authorization");
    node.get("/a").await.is("public", "edge; fwd=uri-miss; fwd-status=200; ttl=59; stored");
    node.get("/a").await.is("public", "edge; hit");
}
