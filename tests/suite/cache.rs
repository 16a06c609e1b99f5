//! The cache on a real node: what is kept and for how long, who is asked, and what every client of a shared fetch gets.
//!
//! Time is never waited for: an origin that sends `Age` makes a response as old as a test needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Request, Response, Served, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

/// The only value of `Cache-Status`, without `ttl`, which depends on when one looks.
fn status(response: &Response) -> String {
    let values: Vec<&str> =
        response.headers.iter().filter(|(name, _)| name == "cache-status").map(|(_, value)| value.as_str()).collect();
    assert_eq!(values.len(), 1, "{:?}", response.headers);
    without_ttl(values[0])
}

fn without_ttl(status: &str) -> String {
    status.split("; ").filter(|part| !part.starts_with("ttl=")).collect::<Vec<_>>().join("; ")
}

fn ttl(response: &Response) -> i64 {
    let value = response.header("cache-status").expect("cache-status");
    let ttl = value.split("; ").find_map(|part| part.strip_prefix("ttl=")).expect("ttl");
    ttl.parse().expect("a number")
}

fn age(response: &Response) -> u64 {
    response.header("age").expect("age").parse().expect("a number")
}

/// A node with one cached route, which has this policy and these filters.
fn node_with(policy: &str, filters: &str, origin: SocketAddr) -> Edge {
    Edge::start(&yaml(policy, filters, "page"), &[("app", origin)])
}

fn node(policy: &str, origin: SocketAddr) -> Edge {
    node_with(policy, "[]", origin)
}

fn yaml(policy: &str, filters: &str, name: &str) -> String {
    format!(
        "cache: {{}}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters:
  noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 10s }} }}
  append: {{ wasm: \"file:${{GUESTS}}/append.wasm\", limits: {{ deadline: 10s }} }}
  headers:
    wasm: \"file:${{GUESTS}}/headers.wasm\"
    limits: {{ deadline: 10s }}
    config: \"request set x-chain asked\\nresponse add x-chain answered\\nproperty source.port\"
sites: [{{ hosts: [\"*\"], routes: [{{ name: \"{name}-${{ID}}\", filters: {filters}, cache: {policy}, to: app }}] }}]"
    )
}

/// An origin that says how often it was asked, in the body.
async fn counting(headers: &'static [(&'static str, &'static str)]) -> Origin {
    let count = AtomicUsize::new(0);
    Origin::start(move |_| Origin::reply(200, headers, format!("answer {}", count.fetch_add(1, Ordering::SeqCst) + 1)))
        .await
}

/// An origin whose header waits for the gate, and whose body is sent by the test, through the sender that arrives with each answer.
struct Gated {
    origin: Origin,
    gate: Arc<Semaphore>,
    bodies: mpsc::UnboundedReceiver<mpsc::UnboundedSender<Bytes>>,
}

impl Gated {
    async fn start(headers: &'static [(&'static str, &'static str)]) -> Self {
        let gate = Arc::new(Semaphore::new(0));
        let (hand_over, bodies) = mpsc::unbounded_channel();
        let opened = Arc::clone(&gate);
        let origin = Origin::start_async(move |_| {
            let (gate, hand_over) = (Arc::clone(&opened), hand_over.clone());
            async move {
                pass(&gate).await;
                let (body, served) = Origin::streaming(200, headers);
                hand_over.send(body).expect("the test takes it");
                served
            }
            .boxed()
        })
        .await;
        Self { origin, gate, bodies }
    }

    async fn asked(&self, times: usize) {
        until("the origin is asked", || self.origin.started() >= times).await;
    }

    /// Lets one header through, and returns what sends its body.
    async fn open(&mut self) -> mpsc::UnboundedSender<Bytes> {
        self.gate.add_permits(1);
        soon("an answer", self.bodies.recv()).await.expect("the origin lives")
    }
}

/// Takes one permit for good.
async fn pass(gate: &Semaphore) {
    gate.acquire().await.expect("never closed").forget();
}

/// A response over HTTP/2 that is read as it comes, so that it never holds up its neighbours on the connection.
struct Reader {
    received: Arc<AtomicUsize>,
    task: JoinHandle<(String, Result<Vec<u8>, h2::Error>)>,
}

impl Reader {
    fn start(response: h2::client::ResponseFuture) -> Self {
        let received = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&received);
        let task = tokio::spawn(async move {
            let response = match soon("a header", response).await {
                Ok(response) => response,
                Err(error) => return (String::new(), Err(error)),
            };
            let status = without_ttl(response.headers()["cache-status"].to_str().expect("text"));
            let (mut stream, mut body) = (response.into_body(), Vec::new());
            while let Some(chunk) = soon("body", stream.data()).await {
                let chunk = match chunk {
                    Ok(chunk) => chunk,
                    Err(error) => return (status, Err(error)),
                };
                let _ = stream.flow_control().release_capacity(chunk.len());
                body.extend_from_slice(&chunk);
                count.store(body.len(), Ordering::SeqCst);
            }
            (status, Ok(body))
        });
        Self { received, task }
    }

    /// How many bytes of the body have come so far.
    fn received(&self) -> usize {
        self.received.load(Ordering::SeqCst)
    }

    /// `Cache-Status`, and the body if it ends well.
    async fn finish(self) -> (String, Result<Vec<u8>, h2::Error>) {
        self.task.await.expect("no panic")
    }
}

/// Waits until all have this many bytes.
async fn all_have(readers: &[Reader], length: usize) {
    let has = |reader: &Reader| {
        assert!(
            reader.received() >= length || !reader.task.is_finished(),
            "ended after {} of {length} bytes",
            reader.received()
        );
        reader.received() >= length
    };
    until("all have got that far", || readers.iter().all(has)).await;
}

/// Everything that still comes on a connection, until it is closed in whatever way.
async fn rest(client: &mut Client) -> Vec<u8> {
    let mut rest = Vec::new();
    while let Ok(some) = client.some().await
        && !some.is_empty()
    {
        rest.extend_from_slice(&some);
    }
    rest
}

// ---- hits, keys, lifetimes ----

#[tokio::test(flavor = "multi_thread")]
async fn a_miss_is_kept_and_a_hit_has_an_age() {
    let origin = counting(&[("cache-control", "max-age=600"), ("age", "7"), ("x-a", "b")]).await;
    let edge = node("{}", origin.address());

    let miss = Client::get(edge.web(), "/page").await;
    assert_eq!((miss.status, miss.text().as_str()), (200, "answer 1"));
    assert_eq!(status(&miss), "edge; fwd=uri-miss; fwd-status=200; stored");
    assert!((560..600 - 7).contains(&ttl(&miss)), "RFC 9211, 2.4: {}", ttl(&miss));

    for _ in 0..3 {
        let hit = Client::get(edge.web(), "/page").await;
        assert_eq!((hit.status, hit.text().as_str(), hit.header("x-a")), (200, "answer 1", Some("b")));
        assert_eq!(status(&hit), "edge; hit");
        assert!((7..40).contains(&age(&hit)), "RFC 9111, 5.1: {}", age(&hit));
        assert!(ttl(&hit) <= ttl(&miss));
    }
    assert_eq!(origin.started(), 1);
    assert_eq!(Client::get(edge.web(), "/other").await.text(), "answer 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_versions_of_http_share_and_the_schemes_do_not() {
    let origin = counting(&[("cache-control", "max-age=60")]).await;
    let edge = node("{}", origin.address());
    let get = "GET /page HTTP/1.1\r\nhost: test\r\n\r\n";

    assert_eq!(Client::get(edge.web(), "/page").await.text(), "answer 1");
    let h2c = H2Client::connect(edge.web()).await.request("GET", "/page", &[], b"").await.unwrap();
    assert_eq!((h2c.text().as_str(), status(&h2c).as_str()), ("answer 1", "edge; hit"));

    let tls = H2Client::connect_tls(edge.secure(), "localhost").await.request("GET", "/page", &[], b"").await.unwrap();
    assert_eq!(
        (tls.text().as_str(), status(&tls).as_str()),
        ("answer 2", "edge; fwd=uri-miss; fwd-status=200; stored")
    );
    let tls = Client::connect_tls(edge.secure(), "localhost", &["http/1.1"]).await.request(get).await;
    assert_eq!((tls.text().as_str(), status(&tls).as_str()), ("answer 2", "edge; hit"));

    let mut keep_alive = Client::connect(edge.web()).await;
    for _ in 0..3 {
        assert_eq!(status(&keep_alive.request(get).await), "edge; hit");
    }
    let upper = Client::connect(edge.web()).await.request("GET /page HTTP/1.1\r\nhost: TEST:80\r\n\r\n").await;
    assert_eq!(status(&upper), "edge; hit", "hosts have no case, and 80 is the port of http");
    let other = Client::connect(edge.web()).await.request("GET /page HTTP/1.1\r\nhost: test:81\r\n\r\n").await;
    assert_eq!(other.text(), "answer 3");
    assert_eq!(origin.started(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_listed_parameters_are_part_of_the_key() {
    let origin = counting(&[("cache-control", "max-age=60")]).await;
    let edge = node("{ key: { query: { only: [page, lang] } } }", origin.address());
    let ask = async |target: &str| Client::get(edge.web(), target).await.text();

    assert_eq!(ask("/q?page=1&utm=a").await, "answer 1");
    assert_eq!(origin.last().target, "/q?page=1&utm=a", "the origin gets all of it");
    assert_eq!(ask("/q?utm=b&page=1").await, "answer 1");
    assert_eq!(ask("/q?page=1").await, "answer 1");
    assert_eq!(ask("/q?page=2").await, "answer 2");
    assert_eq!(ask("/q?p%61ge=2").await, "answer 2", "the same name, spelt otherwise");
    assert_eq!(ask("/q?lang=de&page=1").await, "answer 3");
    assert_eq!(ask("/q?page=1&lang=de").await, "answer 3", "order does not count");
    assert_eq!(ask("/q").await, "answer 4");

    let none = node("{ key: { query: { only: [] } } }", origin.address());
    assert_eq!(Client::get(none.web(), "/q?a=1").await.text(), "answer 5");
    assert_eq!(Client::get(none.web(), "/q?a=2").await.text(), "answer 5");

    let all = node("{}", origin.address());
    assert_eq!(Client::get(all.web(), "/q?a=1").await.text(), "answer 6");
    assert_eq!(Client::get(all.web(), "/q?a=2").await.text(), "answer 7");
}

/// A path, and the status and fields that the origin has for it.
type Row = (&'static str, u16, &'static [(&'static str, &'static str)]);

fn by_path(request: &Request, table: &[Row]) -> Served {
    let path = request.target.split('?').next().unwrap_or_default();
    let (_, status, headers) = table.iter().find(|(known, ..)| *known == path).expect("a path of the table");
    Origin::reply(*status, headers, "body")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_gives_a_lifetime_where_the_origin_is_silent() {
    const TABLE: &[Row] = &[
        ("/silent", 200, &[]),
        ("/gone", 404, &[]),
        ("/failed", 500, &[]),
        ("/forbids", 200, &[("cache-control", "no-store")]),
        ("/cookie", 200, &[("set-cookie", "a=b"), ("cache-control", "no-store")]),
        ("/old", 200, &[("cache-control", "max-age=60"), ("age", "100")]),
    ];
    let origin = Origin::start(|request| by_path(request, TABLE)).await;
    let stored = "edge; fwd=uri-miss; fwd-status=200; stored";

    let none = node("{}", origin.address());
    let first = Client::get(none.web(), "/silent").await;
    assert_eq!(status(&first), "edge; fwd=uri-miss; fwd-status=200; detail=no-lifetime");

    let default = node("{ ttl: 10m }", origin.address());
    let first = Client::get(default.web(), "/silent").await;
    assert_eq!(status(&first), stored);
    assert!((500..600).contains(&ttl(&first)));
    assert_eq!(status(&Client::get(default.web(), "/gone").await), "edge; fwd=uri-miss; fwd-status=404; stored");
    assert_eq!(
        status(&Client::get(default.web(), "/failed").await),
        "edge; fwd=uri-miss; fwd-status=500; detail=server-error"
    );
    assert_eq!(
        status(&Client::get(default.web(), "/forbids").await),
        "edge; fwd=uri-miss; fwd-status=200; detail=no-store"
    );
    assert!(ttl(&Client::get(default.web(), "/old").await) < 0, "the origin's word counts");

    let forced = node("{ ttl: 10m, override: true }", origin.address());
    for path in ["/silent", "/forbids"] {
        assert_eq!(status(&Client::get(forced.web(), path).await), stored, "{path}");
        assert_eq!(status(&Client::get(forced.web(), path).await), "edge; hit", "{path}");
    }
    let cookie = Client::get(forced.web(), "/cookie").await;
    assert_eq!(
        status(&cookie),
        "edge; fwd=uri-miss; fwd-status=200; detail=set-cookie",
        "one client's cookie is never everybody's"
    );
}

/// RFC 9111, 3: what a shared cache may store.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_origin_forbids_is_not_kept() {
    const TABLE: &[Row] = &[
        ("/no-store", 200, &[("cache-control", "no-store, max-age=60")]),
        ("/private", 200, &[("cache-control", "private, max-age=60")]),
        ("/vary-star", 200, &[("cache-control", "max-age=60"), ("vary", "accept, *")]),
        ("/must-understand", 299, &[("cache-control", "must-understand, no-store, max-age=60")]),
        ("/no-lifetime", 200, &[("cache-control", "public")]),
    ];
    let origin = Origin::start(|request| by_path(request, TABLE)).await;
    let edge = node("{}", origin.address());
    for (asked, (path, code, _)) in TABLE.iter().enumerate() {
        let reason = &path[1..];
        let first = Client::get(edge.web(), path).await;
        assert_eq!((first.status, first.text().as_str()), (*code, "body"));
        assert_eq!(status(&first), format!("edge; fwd=uri-miss; fwd-status={code}; detail={reason}"));
        let second = Client::get(edge.web(), path).await;
        assert_eq!(status(&second), format!("edge; fwd=uri-miss; fwd-status={code}; detail={reason}"), "{path}");
        assert_eq!((second.header("age"), origin.started()), (None, 2 * asked + 2), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_origin_allows_is_kept() {
    const TABLE: &[Row] = &[
        ("/s-maxage", 200, &[("cache-control", "max-age=0, s-maxage=60")]),
        ("/targeted", 200, &[("cache-control", "no-store"), ("cdn-cache-control", "max-age=60")]),
        ("/expires", 200, &[("expires", "Thu, 31 Dec 2099 23:59:59 GMT")]),
        ("/heuristic", 200, &[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]),
        ("/understood", 200, &[("cache-control", "must-understand, no-store, max-age=60")]),
        ("/moved", 301, &[("location", "/elsewhere"), ("cache-control", "max-age=60")]),
        ("/missing", 404, &[("cache-control", "max-age=60")]),
        ("/broken", 500, &[("cache-control", "max-age=60")]),
        ("/cookie", 200, &[("cache-control", "max-age=60"), ("set-cookie", "theme=dark")]),
    ];
    let origin = Origin::start(|request| by_path(request, TABLE)).await;
    let edge = node("{}", origin.address());
    for (index, (path, code, headers)) in TABLE.iter().enumerate() {
        let first = Client::get(edge.web(), path).await;
        assert_eq!(status(&first), format!("edge; fwd=uri-miss; fwd-status={code}; stored"), "{path}");
        let second = Client::get(edge.web(), path).await;
        assert_eq!(
            (second.status, second.text().as_str(), status(&second).as_str()),
            (*code, "body", "edge; hit"),
            "{path}"
        );
        for (name, value) in *headers {
            assert_eq!(second.header(name), Some(*value), "{path}");
        }
        assert_eq!(origin.started(), index + 1, "{path}");
    }
}

/// RFC 9111, 5.2.2.7: fields that `private` names are for the client whose request fetched them.
#[tokio::test(flavor = "multi_thread")]
async fn private_fields_are_not_shared() {
    let origin = counting(&[
        ("cache-control", "max-age=60, private=\"set-cookie, x-secret\""),
        ("set-cookie", "id=1"),
        ("x-secret", "s"),
    ])
    .await;
    let edge = node("{}", origin.address());
    let first = Client::get(edge.web(), "/").await;
    assert_eq!((first.header("set-cookie"), first.header("x-secret")), (Some("id=1"), Some("s")));
    let second = Client::get(edge.web(), "/").await;
    assert_eq!(
        (status(&second).as_str(), second.header("set-cookie"), second.header("x-secret")),
        ("edge; hit", None, None)
    );
}

/// RFC 9111, 3.5.
#[tokio::test(flavor = "multi_thread")]
async fn answers_to_authorised_requests_are_shared_only_on_the_origins_word() {
    const TABLE: &[Row] = &[
        ("/own", 200, &[("cache-control", "max-age=60")]),
        ("/public", 200, &[("cache-control", "public, max-age=60")]),
        ("/s-maxage", 200, &[("cache-control", "s-maxage=60")]),
    ];
    let origin = Origin::start(|request| by_path(request, TABLE)).await;
    let edge = node("{}", origin.address());
    let authorised = async |path: &str| Client::get_with(edge.web(), path, "authorization: Bearer abc\r\n").await;

    assert_eq!(status(&authorised("/own").await), "edge; fwd=uri-miss; fwd-status=200; detail=authorization");
    assert_eq!(status(&authorised("/own").await), "edge; fwd=uri-miss; fwd-status=200; detail=authorization");
    assert_eq!(origin.last().header("authorization"), Some("Bearer abc"));
    let plain = Client::get(edge.web(), "/own").await;
    assert_eq!(status(&plain), "edge; fwd=uri-miss; fwd-status=200; stored", "the others are not kept from the cache");
    assert_eq!(status(&Client::get(edge.web(), "/own").await), "edge; hit");

    for path in ["/public", "/s-maxage"] {
        assert_eq!(status(&authorised(path).await), "edge; fwd=uri-miss; fwd-status=200; stored", "{path}");
        assert_eq!(status(&Client::get(edge.web(), path).await), "edge; hit", "{path}");
        assert_eq!(status(&authorised(path).await), "edge; hit", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_cannot_force_their_way_to_the_origin() {
    let origin = counting(&[("cache-control", "max-age=60")]).await;
    let edge = node("{}", origin.address());
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 1");
    for field in ["cache-control: no-cache", "cache-control: no-store", "cache-control: max-age=0", "pragma: no-cache"]
    {
        let hit = Client::get_with(edge.web(), "/", &format!("{field}\r\n")).await;
        assert_eq!((hit.text().as_str(), status(&hit).as_str()), ("answer 1", "edge; hit"), "{field}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_storable_is_stored() {
    let private = Arc::new(AtomicBool::new(true));
    let now = Arc::clone(&private);
    let origin = Origin::start(move |_| {
        let control = if now.load(Ordering::SeqCst) { "no-store" } else { "max-age=60" };
        Origin::reply(200, &[("cache-control", control)], control)
    })
    .await;
    let edge = node("{}", origin.address());
    Client::get(edge.web(), "/").await;
    private.store(false, Ordering::SeqCst);
    assert_eq!(status(&Client::get(edge.web(), "/").await), "edge; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(status(&Client::get(edge.web(), "/").await), "edge; hit");
}

/// RFC 9111, 4.1.
#[tokio::test(flavor = "multi_thread")]
async fn three_languages_are_three_fetches() {
    let origin = Origin::start(|request| {
        let language = request.header("accept-language").unwrap_or("none").to_owned();
        Origin::reply(200, &[("cache-control", "max-age=60"), ("vary", "Accept-Language")], language)
    })
    .await;
    let edge = node("{}", origin.address());
    let ask =
        async |language: &str| Client::get_with(edge.web(), "/", &format!("accept-language: {language}\r\n")).await;

    assert_eq!(status(&ask("en").await), "edge; fwd=uri-miss; fwd-status=200; stored");
    assert_eq!(status(&ask("de").await), "edge; fwd=vary-miss; fwd-status=200; stored");
    assert_eq!(status(&ask("fr").await), "edge; fwd=vary-miss; fwd-status=200; stored");
    for _ in 0..2 {
        for language in ["en", "de", "fr"] {
            let hit = ask(language).await;
            assert_eq!((hit.text().as_str(), status(&hit).as_str()), (language, "edge; hit"));
        }
    }
    assert_eq!(origin.started(), 3);
    assert_eq!(Client::get(edge.web(), "/").await.text(), "none");

    let post = Client::post(edge.web(), "/", "", b"x").await;
    assert_eq!(post.status, 200);
    assert_eq!(
        status(&ask("de").await),
        "edge; fwd=uri-miss; fwd-status=200; stored",
        "all variants are out of date together"
    );
}

/// RFC 9111, 3.1, and RFC 9211, 2: what ends at this hop is not stored, and each cache on the way has its say.
#[tokio::test(flavor = "multi_thread")]
async fn fields_of_the_hop_are_not_kept_and_other_caches_words_are() {
    let origin = Origin::start(|_| {
        let headers = [
            ("cache-control", "max-age=60"),
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("cache-status", "shield; hit"),
            ("via", "1.1 shield"),
        ];
        Origin::reply(200, &headers, "page")
    })
    .await;
    let edge = node("{}", origin.address());
    for own in ["edge; fwd=uri-miss; fwd-status=200; stored", "edge; hit"] {
        let answer = Client::get(edge.web(), "/").await;
        assert_eq!((answer.header("x-hop"), answer.header("keep-alive")), (None, None));
        let all = |name: &str| {
            let values = answer.headers.iter().filter(|(known, _)| known == name);
            values.flat_map(|(_, value)| value.split(", ").map(without_ttl)).collect::<Vec<_>>()
        };
        assert_eq!(all("cache-status"), ["shield; hit", own], "in order, and ours once");
        assert_eq!(all("via").len(), 2, "{:?}", all("via"));
    }
}

// ---- conditions, validation, ranges ----

const EARLY: &str = "Sun, 06 Nov 1994 08:49:00 GMT";
const DATED: &str = "Sun, 06 Nov 1994 08:49:37 GMT";

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_it_gets_304() {
    let origin = Origin::start(|_| {
        Origin::reply(
            200,
            &[("cache-control", "max-age=60"), ("etag", "\"v1\""), ("last-modified", DATED), ("x-a", "b")],
            "page",
        )
    })
    .await;
    let edge = node("{}", origin.address());
    let ask = async |field: String| Client::get_with(edge.web(), "/", &format!("{field}\r\n")).await;

    let first = ask("if-none-match: \"v1\"".into()).await;
    assert_eq!((first.status, first.text().as_str()), (304, ""), "even when it had to be fetched");
    assert_eq!(origin.last().header("if-none-match"), None, "the cache wants the whole of it");
    for (field, expected) in [
        ("if-none-match: \"v1\"".to_owned(), 304),
        ("if-none-match: W/\"v1\"".to_owned(), 304),
        ("if-none-match: \"x\", \"v1\"".to_owned(), 304),
        ("if-none-match: *".to_owned(), 304),
        ("if-none-match: \"v2\"".to_owned(), 200),
        (format!("if-modified-since: {DATED}"), 304),
        (format!("if-modified-since: {EARLY}"), 200),
        (format!("if-none-match: \"v2\"\r\nif-modified-since: {DATED}"), 200),
    ] {
        let response = ask(field.clone()).await;
        assert_eq!((response.status, status(&response).as_str()), (expected, "edge; hit"), "{field}");
        assert_eq!(response.text(), if expected == 200 { "page" } else { "" }, "{field}");
        assert_eq!(response.header("etag"), Some("\"v1\""), "{field}");
    }
    let h2 =
        H2Client::connect(edge.web()).await.request("GET", "/", &[("if-none-match", "\"v1\"")], b"").await.unwrap();
    assert_eq!((h2.status, h2.body.len()), (304, 0));
    assert_eq!(origin.started(), 1);
}

/// RFC 9111, 4.3.
#[tokio::test(flavor = "multi_thread")]
async fn a_stale_response_is_validated_and_its_header_renewed() {
    let origin = Origin::start(|request| match request.header("if-none-match") {
        None => Origin::reply(
            200,
            &[
                ("cache-control", "max-age=60"),
                ("age", "100"),
                ("etag", "\"v1\""),
                ("x-old", "kept"),
                ("x-both", "old"),
                ("content-type", "text/css"),
            ],
            "page",
        ),
        Some("\"v1\"") => Origin::reply(
            304,
            &[("cache-control", "max-age=600"), ("etag", "\"v1\""), ("x-both", "new"), ("x-new", "added")],
            "",
        ),
        Some(other) => panic!("{other}"),
    })
    .await;
    let edge = node("{}", origin.address());
    let first = Client::get(edge.web(), "/").await;
    assert_eq!((first.text().as_str(), ttl(&first) < 0), ("page", true));

    let second = Client::get(edge.web(), "/").await;
    assert_eq!((second.status, second.text().as_str()), (200, "page"), "the client did not ask conditionally");
    assert_eq!(status(&second), "edge; fwd=stale; fwd-status=304; stored");
    let third = Client::get(edge.web(), "/").await;
    assert_eq!((third.text().as_str(), status(&third).as_str()), ("page", "edge; hit"));
    assert!(age(&third) < 60, "counted anew: {}", age(&third));
    for renewed in [&second, &third] {
        let fields = ["x-old", "x-both", "x-new", "content-type"].map(|name| renewed.header(name));
        assert_eq!(fields, [Some("kept"), Some("new"), Some("added"), Some("text/css")]);
        assert!(ttl(renewed) > 500);
    }
    assert_eq!(origin.started(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validation_may_bring_another_page() {
    let origin = Origin::start(|request| match request.header("if-modified-since") {
        None => Origin::reply(200, &[("cache-control", "no-cache"), ("last-modified", DATED)], "old"),
        Some(_) => Origin::reply(200, &[("cache-control", "max-age=60")], "a newer page"),
    })
    .await;
    let edge = node("{}", origin.address());
    assert_eq!(Client::get(edge.web(), "/").await.text(), "old");
    let second = Client::get(edge.web(), "/").await;
    assert_eq!(
        (second.text().as_str(), status(&second).as_str()),
        ("a newer page", "edge; fwd=stale; fwd-status=200; stored")
    );
    assert_eq!(origin.last().header("if-modified-since"), Some(DATED));
    let third = Client::get(edge.web(), "/").await;
    assert_eq!(
        (third.text().as_str(), status(&third).as_str(), third.header("last-modified")),
        ("a newer page", "edge; hit", None)
    );
}

/// RFC 9110, 14.
async fn ranges_of(edge: &Edge, path: &str) {
    let ask = async |range: &str| Client::get_with(edge.web(), path, &format!("range: {range}\r\n")).await;
    for (range, body, content_range) in [
        ("bytes=0-3", "0123", "bytes 0-3/16"),
        ("bytes=4-4", "4", "bytes 4-4/16"),
        ("bytes=10-", "abcdef", "bytes 10-15/16"),
        ("bytes=-2", "ef", "bytes 14-15/16"),
        ("bytes=12-100", "cdef", "bytes 12-15/16"),
    ] {
        let part = ask(range).await;
        assert_eq!(
            (part.status, part.text().as_str(), part.header("content-range")),
            (206, body, Some(content_range)),
            "{range}"
        );
        assert_eq!(part.header("content-length"), Some(body.len().to_string().as_str()), "{range}");
    }

    let several = ask("bytes=0-1,14-15").await;
    assert_eq!(several.status, 206);
    let kind = several.header("content-type").expect("a type").to_owned();
    assert!(kind.starts_with("multipart/byteranges"), "{kind}");
    let text = several.text();
    assert!(text.contains("bytes 0-1/16\r\n\r\n01\r\n") && text.contains("bytes 14-15/16\r\n\r\nef\r\n"), "{text}");

    let beyond = ask("bytes=16-").await;
    assert_eq!((beyond.status, beyond.header("content-range"), beyond.text().as_str()), (416, Some("bytes */16"), ""));
    for ignored in ["lines=0-1", "bytes=x", "bytes=5-6,0-1"] {
        let whole = ask(ignored).await;
        assert_eq!((whole.status, whole.text().as_str()), (200, "0123456789abcdef"), "{ignored}");
    }
}

const PAGE: &[(&str, &str)] = &[("cache-control", "max-age=60"), ("etag", "\"v1\""), ("last-modified", DATED)];

#[tokio::test(flavor = "multi_thread")]
async fn ranges_are_cut_from_a_stored_page() {
    let origin = Origin::start(|_| Origin::reply(200, PAGE, "0123456789abcdef")).await;
    for filters in ["[]", "[noop]"] {
        let asked = origin.started();
        let edge = node_with("{}", filters, origin.address());
        Client::get(edge.web(), "/page").await;
        ranges_of(&edge, "/page").await;

        let range = async |condition: &str| {
            let response =
                Client::get_with(edge.web(), "/page", &format!("range: bytes=0-1\r\nif-range: {condition}\r\n")).await;
            (response.status, response.text())
        };
        assert_eq!(range("\"v1\"").await, (206, "01".into()));
        assert_eq!(
            range("\"v2\"").await,
            (200, "0123456789abcdef".into()),
            "another page than the client's: all of it"
        );
        assert_eq!(range(DATED).await, (206, "01".into()));
        let h2 =
            H2Client::connect(edge.web()).await.request("GET", "/page", &[("range", "bytes=-1")], b"").await.unwrap();
        assert_eq!((h2.status, h2.text().as_str(), status(&h2).as_str()), (206, "f", "edge; hit"));
        assert_eq!(origin.started(), asked + 1);
    }
}

/// RFC 9110, 13.1.5: a part may be put to what a client has only where that is the same to the last byte. A weak tag does not say so, nor does
/// a date that is as late as the response itself (8.8.2.2).
#[tokio::test(flavor = "multi_thread")]
async fn a_weak_validator_gets_no_part() {
    let origin = Origin::start(|request| {
        let tag = if request.target == "/weak" { "W/\"v1\"" } else { "\"v1\"" };
        // Old enough to be stale with any shorter lifetime.
        let fields =
            [("cache-control", "max-age=2147483648"), ("etag", tag), ("last-modified", DATED), ("date", DATED)];
        Origin::reply(200, if request.target == "/same-second" { &fields } else { &fields[..3] }, "0123456789")
    })
    .await;
    for filters in ["[]", "[noop]"] {
        let edge = node_with("{}", filters, origin.address());
        for (path, condition, status) in [
            ("/weak", "W/\"v1\"", 200),
            ("/weak", "\"v1\"", 200),
            ("/weak", DATED, 206),
            ("/strong", "\"v1\"", 206),
            ("/strong", "W/\"v1\"", 200),
            ("/strong", "\"v2\"", 200),
            ("/strong", DATED, 206),
            ("/same-second", DATED, 200),
        ] {
            for _ in 0..2 {
                let fields = format!("range: bytes=0-1\r\nif-range: {condition}\r\n");
                let part = Client::get_with(edge.web(), path, &fields).await;
                let body = if status == 206 { "01" } else { "0123456789" };
                assert_eq!((part.status, part.text().as_str()), (status, body), "{path} {condition}");
            }
        }
    }
}

/// RFC 9110, 14.1.2: nothing of a page is asked for by a suffix of no bytes, and of a page without any there is no part.
#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_part_of_nothing() {
    let origin =
        Origin::start(|request| Origin::reply(200, PAGE, if request.target == "/empty" { "" } else { "0123456789" }))
            .await;
    let edge = node("{}", origin.address());
    let ask = async |path: &str, range: &str| Client::get_with(edge.web(), path, &format!("range: {range}\r\n")).await;
    for _ in 0..2 {
        for (path, range, status, place, body) in [
            ("/page", "bytes=-0", 416, Some("bytes */10"), ""),
            ("/page", "bytes=-0,2-3", 206, Some("bytes 2-3/10"), "23"),
            ("/page", "bytes=-20", 206, Some("bytes 0-9/10"), "0123456789"),
            ("/empty", "bytes=-5", 200, None, ""),
            ("/empty", "bytes=0-", 416, Some("bytes */0"), ""),
            ("/empty", "bytes=-0", 416, Some("bytes */0"), ""),
        ] {
            let part = ask(path, range).await;
            assert_eq!(
                (part.status, part.header("content-range"), part.text().as_str()),
                (status, place, body),
                "{path} {range}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_that_misses_fetches_the_whole_page() {
    let origin = Origin::start(|request| {
        assert_eq!(request.header("range"), None);
        Origin::reply(200, PAGE, "0123456789abcdef")
    })
    .await;
    let edge = node("{}", origin.address());
    let part = Client::get_with(edge.web(), "/page", "range: bytes=2-3\r\n").await;
    assert_eq!((part.status, part.text().as_str(), part.header("content-range")), (206, "23", Some("bytes 2-3/16")));
    assert_eq!(status(&part), "edge; fwd=uri-miss; fwd-status=200; stored");
    let whole = Client::get(edge.web(), "/page").await;
    assert_eq!((whole.status, whole.text().as_str(), status(&whole).as_str()), (200, "0123456789abcdef", "edge; hit"));
    let beyond = Client::get_with(edge.web(), "/other", "range: bytes=16-\r\n").await;
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */16")));
    assert_eq!(origin.started(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn head_and_get_share_what_is_stored() {
    let origin = Origin::start(|request| {
        assert_eq!(request.method, "GET");
        Origin::reply(200, PAGE, "0123456789abcdef")
    })
    .await;
    let edge = node("{}", origin.address());
    let head = async |path: &str| {
        Client::connect(edge.web()).await.request(&format!("HEAD {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await
    };

    Client::get(edge.web(), "/a").await;
    let answer = head("/a").await;
    assert_eq!(
        (answer.status, status(&answer).as_str(), answer.header("content-length")),
        (200, "edge; hit", Some("16"))
    );
    let h2 = H2Client::connect(edge.web()).await.request("HEAD", "/a", &[], b"").await.unwrap();
    assert_eq!((h2.status, h2.body.len(), h2.header("content-length")), (200, 0, Some("16")));

    assert_eq!(head("/b").await.header("content-length"), Some("16"));
    until("the page is stored", || origin.started() == 2).await;
    let get = Client::get(edge.web(), "/b").await;
    assert_eq!(
        (get.text().as_str(), origin.started()),
        ("0123456789abcdef", 2),
        "a HEAD that misses fetches the page for all"
    );

    let mut one = Client::connect(edge.web()).await;
    for method in ["HEAD", "GET", "HEAD", "GET"] {
        let answer = one.request(&format!("{method} /a HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        assert_eq!(answer.body.len(), if method == "GET" { 16 } else { 0 }, "the connection stays in step");
    }
}

/// RFC 9111, 4.4.
#[tokio::test(flavor = "multi_thread")]
async fn unsafe_methods_invalidate() {
    let count = AtomicUsize::new(0);
    let origin = Origin::start(move |request| match (request.method.as_str(), request.target.as_str()) {
        ("GET", _) => Origin::reply(
            200,
            &[("cache-control", "max-age=60")],
            format!("answer {}", count.fetch_add(1, Ordering::SeqCst) + 1),
        ),
        (_, "/refused") => Origin::reply(409, &[], "no"),
        (_, "/named") => Origin::reply(201, &[("location", "/list"), ("content-location", "/list?page=1")], "created"),
        _ => Origin::reply(204, &[], ""),
    })
    .await;
    let edge = node("{}", origin.address());
    let get = async |path: &str| Client::get(edge.web(), path).await.text();

    for (number, method) in ["POST", "PUT", "DELETE", "PATCH"].iter().enumerate() {
        assert_eq!(get("/page").await, format!("answer {}", number + 1));
        assert_eq!(get("/page").await, format!("answer {}", number + 1));
        let head = format!("{method} /page HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n");
        let answer = Client::connect(edge.web()).await.request(&head).await;
        assert_eq!((answer.status, status(&answer).as_str()), (204, "edge; fwd=method; fwd-status=204"));
    }

    assert_eq!(get("/refused").await, "answer 5");
    assert_eq!(Client::post(edge.web(), "/refused", "", b"").await.status, 409);
    assert_eq!(get("/refused").await, "answer 5", "nothing has changed at the origin");
    assert_eq!(
        Client::connect(edge.web()).await.request("OPTIONS /refused HTTP/1.1\r\nhost: test\r\n\r\n").await.status,
        409
    );
    assert_eq!(get("/refused").await, "answer 5");

    assert_eq!((get("/list").await, get("/list?page=1").await), ("answer 6".into(), "answer 7".into()));
    assert_eq!(Client::post(edge.web(), "/named", "", b"x").await.status, 201);
    assert_eq!((get("/list").await, get("/list?page=1").await), ("answer 8".into(), "answer 9".into()));
}

/// Routes tell methods apart, URLs do not: what is stored by the route of `GET` is out of date after a `POST` that another route takes.
#[tokio::test(flavor = "multi_thread")]
async fn a_post_of_another_route_invalidates() {
    let origin = counting(&[("cache-control", "max-age=60")]).await;
    let edge = Edge::start(
        "cache: {}
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
sites:
  - hosts: [\"*\"]
    routes:
      - { name: rest, to: app }
      - { name: \"pages-${ID}\", match: { path: /pages/*, method: [GET, HEAD] }, cache: { key: { query: { only: [] } } }, to: app }",
        &[("app", origin.address())],
    );
    assert_eq!(Client::get(edge.web(), "/pages/1?a").await.text(), "answer 1");
    assert_eq!(Client::get(edge.web(), "/pages/1").await.text(), "answer 1");
    let post = Client::post(edge.web(), "/pages/1", "", b"change").await;
    assert_eq!(
        (post.text().as_str(), post.header("cache-status")),
        ("answer 2", None),
        "the route of the POST does not cache"
    );
    assert_eq!(Client::get(edge.web(), "/pages/1").await.text(), "answer 3");
    assert_eq!(Client::get(edge.web(), "/pages/1").await.text(), "answer 3");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_keeps_what_is_stored() {
    let origin = counting(&[("cache-control", "max-age=60")]).await;
    let mut edge = node("{}", origin.address());
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 1");
    edge.reload(&yaml("{ ttl: 1h }", "[noop]", "page")).unwrap();
    let hit = Client::get(edge.web(), "/").await;
    assert_eq!((hit.text().as_str(), status(&hit).as_str()), ("answer 1", "edge; hit"));
    edge.reload(&yaml("{}", "[]", "renamed")).unwrap();
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 2", "another route, another store");
}

// ---- stale ----

#[tokio::test(flavor = "multi_thread")]
async fn stale_while_revalidate_answers_at_once() {
    for (policy, control) in
        [("{}", "max-age=60, stale-while-revalidate=600"), ("{ stale_while_revalidate: 10m }", "max-age=60")]
    {
        let gate = Arc::new(Semaphore::new(0));
        let (opened, count) = (Arc::clone(&gate), Arc::new(AtomicUsize::new(0)));
        let origin = Origin::start_async(move |_| {
            let (gate, number) = (Arc::clone(&opened), count.fetch_add(1, Ordering::SeqCst) + 1);
            async move {
                if number == 1 {
                    return Origin::reply(200, &[("cache-control", control), ("age", "100")], "old");
                }
                pass(&gate).await;
                Origin::reply(200, &[("cache-control", "max-age=60")], "new")
            }
            .boxed()
        })
        .await;
        let edge = node_with(policy, "[append, headers]", origin.address());
        assert_eq!(Client::get(edge.web(), "/").await.text(), "old+app");

        for _ in 0..5 {
            let stale = Client::get(edge.web(), "/").await;
            assert_eq!(
                (stale.text().as_str(), status(&stale).as_str()),
                ("old+app", "edge; hit; detail=stale-while-revalidate")
            );
            assert!((-200..=-40).contains(&ttl(&stale)), "{}", ttl(&stale));
            assert!(age(&stale) >= 100);
        }
        until("the refresh", || origin.started() == 2).await;
        assert_eq!(Client::get(edge.web(), "/").await.text(), "old+app", "nobody waits for it");
        gate.add_permits(1);
        soon("the new page", async { while Client::get(edge.web(), "/").await.text() != "new+app" {} }).await;
        let fresh = Client::get(edge.web(), "/").await;
        assert_eq!((fresh.text().as_str(), status(&fresh).as_str()), ("new+app", "edge; hit"), "filtered once");
        assert_eq!(origin.started(), 2, "one refresh for all");
    }
}

/// A refresh in the background asks for what was asked for, as the filters have left it, or does not take place.
#[tokio::test(flavor = "multi_thread")]
async fn a_refresh_never_stores_another_routes_page() {
    const STALE: &[(&str, &str)] = &[("cache-control", "max-age=60, stale-while-revalidate=600"), ("age", "100")];
    let count = AtomicUsize::new(0);
    let inner = Origin::start(move |request| {
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        Origin::reply(200, STALE, format!("{} {number}", request.header("x-chain").unwrap_or("unfiltered")))
    })
    .await;
    let other = Origin::start(|_| Origin::reply(200, STALE, "another page")).await;
    let yaml = |filters: &str| {
        format!(
            "cache: {{}}
upstreams:
  inner: {{ endpoints: [\"127.0.0.1:${{PORT_inner}}\"] }}
  other: {{ endpoints: [\"127.0.0.1:${{PORT_other}}\"] }}
filters:
  headers:
    wasm: \"file:${{GUESTS}}/headers.wasm\"
    limits: {{ deadline: 10s }}
    config: \"request set x-chain asked\"
  rewrite:
    wasm: \"file:${{GUESTS}}/headers.wasm\"
    limits: {{ deadline: 10s }}
    config: \"request set x-chain asked\\nrequest set :path /other/page\"
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: \"page-${{ID}}\", filters: {filters}, cache: {{}}, to: inner }}
      - {{ name: \"other-${{ID}}\", match: {{ path: /other/* }}, cache: {{}}, to: other }}"
        )
    };
    let origins = [("inner", inner.address()), ("other", other.address())];

    // The same route again: in the background.
    let edge = Edge::start(&yaml("[headers]"), &origins);
    assert_eq!(Client::get(edge.web(), "/page").await.text(), "asked 1");
    let stale = Client::get(edge.web(), "/page").await;
    assert_eq!(
        (stale.text().as_str(), status(&stale).as_str()),
        ("asked 1", "edge; hit; detail=stale-while-revalidate")
    );
    soon("the refreshed page", async { while Client::get(edge.web(), "/page").await.text() == "asked 1" {} }).await;
    assert!(
        inner.received().iter().all(|request| request.header("x-chain") == Some("asked")),
        "refreshes are filtered"
    );

    // Another route by now: the client waits.
    let edge = Edge::start(&yaml("[rewrite]"), &origins);
    for _ in 0..3 {
        let page = Client::get(edge.web(), "/page").await;
        assert!(page.text().starts_with("asked "), "{}", page.text());
        assert!(status(&page).ends_with("fwd-status=200; stored"), "{}", status(&page));
    }
    let rewritten = inner.received().iter().filter(|request| request.target == "/other/page").count();
    assert_eq!((rewritten, other.started()), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_answers_stand_in_for_an_origin_that_fails() {
    const TABLE: &[Row] = &[
        ("/allowed", 200, &[("cache-control", "max-age=60, stale-if-error=600"), ("age", "100")]),
        ("/over", 200, &[("cache-control", "max-age=60, stale-if-error=5"), ("age", "100")]),
        ("/silent", 200, &[("cache-control", "max-age=60"), ("age", "100")]),
        ("/strict", 200, &[("cache-control", "max-age=60, must-revalidate"), ("age", "100"), ("etag", "\"v1\"")]),
    ];
    let failing = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&failing);
    let origin = Origin::start(move |request| {
        if now.load(Ordering::SeqCst) { Origin::reply(503, &[], "down") } else { by_path(request, TABLE) }
    })
    .await;
    let edge = node("{}", origin.address());
    let ask = async |path: &str| Client::get(edge.web(), path).await;
    for (path, ..) in TABLE {
        assert_eq!(ask(path).await.status, 200);
    }

    failing.store(true, Ordering::SeqCst);
    let stale = ask("/allowed").await;
    assert_eq!((stale.status, stale.text().as_str()), (200, "body"));
    assert_eq!(status(&stale), "edge; fwd=stale; fwd-status=503; detail=stale-if-error");
    assert!(ttl(&stale) <= -40 && age(&stale) >= 100);
    for path in ["/over", "/silent", "/strict"] {
        let failed = ask(path).await;
        assert_eq!(
            (failed.status, failed.text().as_str()),
            (503, "down"),
            "{path}: an answer, and no word of the origin that an old one will do"
        );
    }

    drop(origin);
    for path in ["/allowed", "/silent"] {
        let stale = ask(path).await;
        assert_eq!((stale.status, stale.text().as_str()), (200, "body"), "{path}");
        assert_eq!(status(&stale), "edge; fwd=stale; detail=stale-if-error", "{path}");
    }
    let strict = ask("/strict").await;
    assert_eq!(strict.status, 502, "RFC 9111, 5.2.2.2");
    assert!(strict.header("proxy-status").is_some_and(|value| value.contains("connection_")));
    assert_eq!(ask("/never-seen").await.status, 502);
}

// ---- filters ----

#[tokio::test(flavor = "multi_thread")]
async fn filters_run_for_every_client_and_the_store_is_unfiltered() {
    let origin = counting(&[("cache-control", "max-age=60"), ("etag", "\"v1\"")]).await;
    let edge = node_with("{}", "[headers, append]", origin.address());
    let mut ports = BTreeSet::new();
    for number in 0..4 {
        let answer = Client::get(edge.web(), "/").await;
        assert_eq!(answer.text(), "answer 1+app");
        let chain: Vec<_> = answer.headers.iter().filter(|(name, _)| name == "x-chain").collect();
        assert_eq!(chain.len(), 1, "{:?}", answer.headers);
        assert_eq!(
            status(&answer),
            if number == 0 { "edge; fwd=uri-miss; fwd-status=200; stored" } else { "edge; hit" }
        );
        ports.insert(answer.header("x-prop-0").expect("the property").to_owned());
    }
    assert_eq!(ports.len(), 4, "each client's own: {ports:?}");

    let h2 = H2Client::connect(edge.web()).await.request("GET", "/", &[], b"").await.unwrap();
    assert_eq!((h2.text().as_str(), h2.header("x-chain")), ("answer 1+app", Some("answered")));
    let head = Client::connect(edge.web()).await.request("HEAD / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!((head.status, head.header("x-chain"), status(&head).as_str()), (200, Some("answered"), "edge; hit"));
    let known = Client::get_with(edge.web(), "/", "if-none-match: \"v1\"\r\n").await;
    assert_eq!((known.status, known.header("x-chain"), known.text().as_str()), (304, Some("answered"), ""));
    assert_eq!((origin.started(), origin.last().header("x-chain")), (1, Some("asked")));

    let mut edge = edge;
    edge.reload(&yaml("{}", "[]", "page")).unwrap();
    let plain = Client::get(edge.web(), "/").await;
    assert_eq!(
        (plain.text().as_str(), plain.header("x-chain"), status(&plain).as_str()),
        ("answer 1", None, "edge; hit")
    );
}

/// The key is made of the request as the filters leave it.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_replies_never_reaches_the_store() {
    let origin = counting(&[("cache-control", "max-age=60")]).await;
    let yaml = |filters: &str| {
        format!(
            "cache: {{}}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
filters: {{ deny: {{ wasm: \"file:${{GUESTS}}/deny.wasm\", limits: {{ deadline: 10s }}, config: request_headers }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: \"page-${{ID}}\", filters: {filters}, cache: {{ ttl: 1h }}, to: app }}] }}]"
        )
    };
    let mut edge = Edge::start(&yaml("[deny]"), &[("app", origin.address())]);
    let denied = Client::get(edge.web(), "/").await;
    assert!(denied.status >= 400 && origin.started() == 0, "{}", denied.status);
    edge.reload(&yaml("[]")).unwrap();
    assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 1");
    edge.reload(&yaml("[deny]")).unwrap();
    assert_eq!(Client::get(edge.web(), "/").await.status, denied.status, "a hit is no way around a filter");
}

// ---- collapsing ----

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_at_once_are_one_fetch() {
    const CONNECTIONS: usize = 45;
    const STREAMS: usize = 20;
    const PLAIN: usize = 99;
    for filters in ["[]", "[noop]"] {
        let mut gated = Gated::start(&[("cache-control", "max-age=60")]).await;
        let edge = node_with("{}", filters, gated.origin.address());

        // The first, and half of the others, before the origin has sent its header.
        let first = H2Client::connect(edge.web()).await;
        let mut readers = vec![Reader::start(first.open("GET", "/page", &[], true).await.unwrap().0)];
        gated.asked(1).await;
        let (mut connections, mut plain) = (Vec::new(), Vec::new());
        let (mut body, mut expected) = (None, Vec::new());
        for number in 0..CONNECTIONS {
            let connection = H2Client::connect(edge.web()).await;
            for _ in 0..STREAMS {
                readers.push(Reader::start(connection.open("GET", "/page", &[], true).await.unwrap().0));
            }
            connections.push(connection);
            for _ in 0..PLAIN.div_ceil(CONNECTIONS).min(PLAIN - plain.len()) {
                let mut client = Client::connect(edge.web()).await;
                client.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
                plain.push(client);
            }
            // The other half while its body is coming, slowly.
            if number >= CONNECTIONS / 2 {
                if body.is_none() {
                    body = Some(gated.open().await);
                }
                // Clients of HTTP/2 take too many small pieces for an attack.
                let piece = Bytes::from(format!("piece {number}, ").repeat(40));
                expected.extend_from_slice(&piece);
                body.as_ref().unwrap().send(piece).unwrap();
            }
        }
        assert_eq!(readers.len() + plain.len(), 1_000);

        // Everybody has bytes of a body that is not finished.
        all_have(&readers, 1).await;
        for client in &mut plain {
            let (code, headers) = client.head().await.unwrap();
            assert_eq!((code, headers.iter().filter(|(name, _)| name == "cache-status").count()), (200, 1));
            assert!(!client.some().await.unwrap().is_empty());
        }
        let body = body.expect("opened");
        body.send(Bytes::from_static(b"the end")).unwrap();
        drop(body);
        expected.extend_from_slice(b"the end");

        let mut statuses = BTreeMap::<String, usize>::new();
        for reader in readers {
            let (status, body) = reader.finish().await;
            assert_eq!(body.unwrap(), expected);
            *statuses.entry(status).or_default() += 1;
        }
        let known = [
            ("edge; fwd=uri-miss; collapsed", CONNECTIONS * STREAMS),
            ("edge; fwd=uri-miss; fwd-status=200; stored", 1),
        ];
        assert_eq!(statuses, known.map(|(status, count)| (status.to_owned(), count)).into());
        for client in &mut plain {
            let mut tail = Vec::new();
            while !tail.ends_with(b"0\r\n\r\n") {
                let some = client.some().await.unwrap();
                assert!(!some.is_empty(), "closed before the last chunk");
                tail.extend_from_slice(&some);
            }
            assert!(String::from_utf8_lossy(&tail).contains("the end"));
        }
        assert_eq!(gated.origin.started(), 1);
        assert_eq!(status(&Client::get(edge.web(), "/page").await), "edge; hit");
        drop((first, connections));
    }
}

/// A body of known length is no reason to hold its start back.
#[tokio::test(flavor = "multi_thread")]
async fn the_start_of_a_slow_body_of_known_length_reaches_everybody() {
    for filters in ["[]", "[noop]"] {
        let gate = Arc::new(Semaphore::new(0));
        let asked = Arc::new(AtomicUsize::new(0));
        let (opened, count) = (Arc::clone(&gate), Arc::clone(&asked));
        let (origin, _serving) = Origin::raw(move |mut stream| {
            let (gate, count) = (Arc::clone(&opened), Arc::clone(&count));
            async move {
                while read_head(&mut stream).await.is_some() {
                    count.fetch_add(1, Ordering::SeqCst);
                    let _ = stream
                        .write_all(b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 8\r\n\r\nhalf")
                        .await;
                    pass(&gate).await;
                    let _ = stream.write_all(b"half").await;
                }
            }
        })
        .await;
        let edge = node_with("{}", filters, origin);
        // The first of each row fetches, the others join; each in its own way.
        for (row, target) in ["/plain", "/tls"].into_iter().enumerate() {
            let mut clients = Vec::new();
            for number in 0..3 {
                let mut client = match target {
                    "/plain" => Client::connect(edge.web()).await,
                    _ => Client::connect_tls(edge.secure(), "localhost", &["http/1.1"]).await,
                };
                client.send(format!("GET {target} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
                if number == 0 {
                    until("the first is forwarded", || asked.load(Ordering::SeqCst) == row + 1).await;
                }
                clients.push(client);
            }
            let h2 = match target {
                "/plain" => H2Client::connect(edge.web()).await,
                _ => H2Client::connect_tls(edge.secure(), "localhost").await,
            };
            let reader = Reader::start(h2.open("GET", target, &[], true).await.unwrap().0);
            all_have(std::slice::from_ref(&reader), 4).await;
            let mut bodies = Vec::new();
            for client in &mut clients {
                let (code, headers) = client.head().await.unwrap();
                let mut body = Vec::new();
                while !String::from_utf8_lossy(&body).contains("half") {
                    body.extend_from_slice(&client.some().await.unwrap());
                }
                bodies.push((code, headers, body));
            }
            gate.add_permits(1);
            for (client, (code, headers, mut body)) in clients.iter_mut().zip(bodies) {
                while String::from_utf8_lossy(&body).matches("half").count() < 2 {
                    body.extend_from_slice(&client.some().await.unwrap());
                }
                let framed = headers.iter().any(|(name, _)| name == "content-length" || name == "transfer-encoding");
                assert!(code == 200 && framed, "{headers:?}");
            }
            assert_eq!(reader.finish().await.1.unwrap(), b"halfhalf");
            let hit = Client::get(edge.web(), "/plain").await;
            assert_eq!((hit.text().as_str(), hit.header("content-length")), ("halfhalf", Some("8")));
            assert_eq!(asked.load(Ordering::SeqCst), row + 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_first_client_leaves_the_others_get_all() {
    const PIECE: usize = 256 << 10;
    for (filters, over_h2) in [("[]", false), ("[]", true), ("[noop]", false), ("[noop]", true)] {
        let mut gated = Gated::start(&[("cache-control", "max-age=60")]).await;
        let edge = node_with("{}", filters, gated.origin.address());

        let mut plain = Client::connect(edge.web()).await;
        let h2 = H2Client::connect(edge.web()).await;
        let mut first = None;
        if over_h2 {
            first = Some(h2.open("GET", "/page", &[], true).await.unwrap().0);
        } else {
            plain.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
        }
        gated.asked(1).await;
        let connection = H2Client::connect(edge.web()).await;
        let mut followers = Vec::new();
        for _ in 0..10 {
            followers.push(Reader::start(connection.open("GET", "/page", &[], true).await.unwrap().0));
        }
        let body = gated.open().await;
        let mut expected = b"begins".to_vec();
        body.send(Bytes::from_static(b"begins")).unwrap();
        all_have(&followers, expected.len()).await;
        match first {
            Some(response) => {
                let mut response = soon("a header", response).await.unwrap();
                assert_eq!(soon("first bytes", response.body_mut().data()).await.unwrap().unwrap(), "begins");
            }
            None => assert!(plain.head().await.is_ok() && !plain.some().await.unwrap().is_empty()),
        }
        drop((h2, plain));

        // More than any socket holds, so that the node must notice.
        for number in 0..20_u8 {
            let piece = Bytes::from(vec![b'a' + number; PIECE]);
            expected.extend_from_slice(&piece);
            body.send(piece).unwrap();
            all_have(&followers, expected.len()).await;
        }
        drop(body);
        for follower in followers {
            let (status, body) = follower.finish().await;
            assert_eq!(status, "edge; fwd=uri-miss; collapsed");
            assert!(body.unwrap() == expected, "filters {filters}, h2 {over_h2}");
        }
        let hit = Client::get(edge.web(), "/page").await;
        assert!(hit.body == expected && status(&hit) == "edge; hit");
        assert_eq!(gated.origin.started(), 1);
    }
}

/// One connection that breaks is no answer for those who wait.
#[tokio::test(flavor = "multi_thread")]
async fn when_the_first_fetch_fails_another_takes_its_place() {
    let gate = Arc::new(Semaphore::new(0));
    let asked = Arc::new(AtomicUsize::new(0));
    let (opened, count) = (Arc::clone(&gate), Arc::clone(&asked));
    let (origin, _serving) = Origin::raw(move |mut stream| {
        let (gate, count) = (Arc::clone(&opened), Arc::clone(&count));
        async move {
            while read_head(&mut stream).await.is_some() {
                if count.fetch_add(1, Ordering::SeqCst) == 0 {
                    return pass(&gate).await;
                }
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 5\r\n\r\nwhole")
                    .await;
            }
        }
    })
    .await;
    let edge = node("{}", origin);
    let first = tokio::spawn(Client::get(edge.web(), "/page"));
    until("the first is forwarded", || asked.load(Ordering::SeqCst) == 1).await;
    let connection = H2Client::connect(edge.web()).await;
    let mut waiters = Vec::new();
    for _ in 0..20 {
        waiters.push(Reader::start(connection.open("GET", "/page", &[], true).await.unwrap().0));
    }
    gate.add_permits(1);
    assert_eq!(first.await.unwrap().status, 502);
    for waiter in waiters {
        assert_eq!(waiter.finish().await.1.unwrap(), b"whole");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2, "one of those who waited asks for all of them");
}

/// A client that leaves before the header is there takes nobody along either.
#[tokio::test(flavor = "multi_thread")]
async fn when_the_first_client_leaves_early_the_others_are_served() {
    let gated = Gated::start(&[("cache-control", "max-age=60")]).await;
    let edge = node("{}", gated.origin.address());
    let leaver = H2Client::connect(edge.web()).await;
    let response = leaver.open("GET", "/page", &[], true).await.unwrap().0;
    gated.asked(1).await;
    let connection = H2Client::connect(edge.web()).await;
    let mut followers = Vec::new();
    for _ in 0..10 {
        followers.push(Reader::start(connection.open("GET", "/page", &[], true).await.unwrap().0));
    }
    drop((response, leaver));

    // Whether the fetch goes on or another takes its place is the node's business: all answers may come now.
    gated.gate.add_permits(100);
    let mut bodies = gated.bodies;
    let serving = tokio::spawn(async move {
        while let Some(body) = bodies.recv().await {
            body.send(Bytes::from_static(b"page")).expect("the origin lives");
        }
    });
    for follower in followers {
        assert_eq!(follower.finish().await.1.unwrap(), b"page");
    }
    assert!(gated.origin.started() <= 2, "{}", gated.origin.started());
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_shared_releases_everybody() {
    const WAITERS: usize = 50;
    let gate = Arc::new(Semaphore::new(0));
    let (opened, count) = (Arc::clone(&gate), Arc::new(AtomicUsize::new(0)));
    let origin = Origin::start_async(move |request| {
        let (gate, number) = (Arc::clone(&opened), count.fetch_add(1, Ordering::SeqCst) + 1);
        async move {
            if number == 1 || number > WAITERS + 1 {
                pass(&gate).await;
            }
            let user = request.header("x-user").unwrap_or("nobody").to_owned();
            Origin::reply(200, &[("cache-control", "private, max-age=60")], user)
        }
        .boxed()
    })
    .await;
    let edge = node("{}", origin.address());
    let connection = H2Client::connect(edge.web()).await;
    let ask =
        async |user: &str| Reader::start(connection.open("GET", "/me", &[("x-user", user)], true).await.unwrap().0);
    let (refused, released) = (
        "edge; fwd=uri-miss; fwd-status=200; detail=private",
        "edge; fwd=uri-miss; fwd-status=200; detail=collapse-released",
    );

    let first = ask("first").await;
    until("the first is forwarded", || origin.started() == 1).await;
    let mut waiters = Vec::new();
    for number in 0..WAITERS {
        waiters.push((number, ask(&format!("user-{number}")).await));
    }
    gate.add_permits(1);
    let (status, body) = first.finish().await;
    assert_eq!((status.as_str(), body.unwrap()), (refused, b"first".to_vec()));
    for (number, waiter) in waiters {
        let (status, body) = waiter.finish().await;
        assert_eq!(body.unwrap(), format!("user-{number}").as_bytes(), "each its own");
        assert!([refused, released].contains(&status.as_str()), "{status}");
    }
    assert_eq!(origin.started(), WAITERS + 1);

    // It is remembered: from now on nobody waits for anybody.
    let (one, other) = (ask("one").await, ask("other").await);
    until("both are forwarded", || origin.started() == WAITERS + 3).await;
    gate.add_permits(2);
    assert_eq!((one.finish().await.1.unwrap(), other.finish().await.1.unwrap()), (b"one".to_vec(), b"other".to_vec()));
}

/// Those who wait for a page that turns out to vary get their own variant, which again is fetched once for all of them.
#[tokio::test(flavor = "multi_thread")]
async fn waiters_get_their_own_variant() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let origin = Origin::start_async(move |request| {
        let gate = Arc::clone(&opened);
        async move {
            let language = request.header("accept-language").unwrap_or("none").to_owned();
            if language == "en" {
                pass(&gate).await;
            }
            Origin::reply(200, &[("cache-control", "max-age=60"), ("vary", "accept-language")], language)
        }
        .boxed()
    })
    .await;
    let edge = node("{}", origin.address());
    let connection = H2Client::connect(edge.web()).await;
    let ask = async |language: &str| {
        let headers = [("accept-language", language)];
        Reader::start(connection.open("GET", "/page", &headers, true).await.unwrap().0)
    };
    let mut readers = vec![("en", ask("en").await)];
    until("the first is forwarded", || origin.started() == 1).await;
    for _ in 0..10 {
        for language in ["de", "en", "fr"] {
            readers.push((language, ask(language).await));
        }
    }
    gate.add_permits(1);
    for (language, reader) in readers {
        assert_eq!(reader.finish().await.1.unwrap(), language.as_bytes());
    }
    assert_eq!(origin.started(), 3, "once per language");
}

/// RFC 9111, 3.5, for those who wait: nobody gets what was made for somebody else's credentials.
#[tokio::test(flavor = "multi_thread")]
async fn waiters_never_get_the_answer_to_other_credentials() {
    let gate = Arc::new(Semaphore::new(0));
    let (opened, count) = (Arc::clone(&gate), Arc::new(AtomicUsize::new(0)));
    let origin = Origin::start_async(move |request| {
        let (gate, number) = (Arc::clone(&opened), count.fetch_add(1, Ordering::SeqCst) + 1);
        async move {
            if number == 1 {
                pass(&gate).await;
            }
            let user = request.header("authorization").unwrap_or("nobody").to_owned();
            Origin::reply(200, &[("cache-control", "max-age=60")], user)
        }
        .boxed()
    })
    .await;
    let edge = node("{}", origin.address());
    let connection = H2Client::connect(edge.web()).await;
    let ask = async |user: Option<&str>| {
        let headers: Vec<_> = user.iter().map(|user| ("authorization", *user)).collect();
        Reader::start(connection.open("GET", "/page", &headers, true).await.unwrap().0)
    };
    let first = ask(Some("alice")).await;
    until("the first is forwarded", || origin.started() == 1).await;
    let mut waiters = Vec::new();
    for user in [Some("bob"), None, Some("carol"), None, Some("bob")] {
        waiters.push((user, ask(user).await));
    }
    gate.add_permits(1);
    assert_eq!(first.finish().await.1.unwrap(), b"alice");
    for (user, waiter) in waiters {
        assert_eq!(waiter.finish().await.1.unwrap(), user.unwrap_or("nobody").as_bytes());
    }
    let plain = Client::get(edge.web(), "/page").await;
    assert_eq!((plain.text().as_str(), status(&plain).as_str()), ("nobody", "edge; hit"));
    assert_eq!(origin.started(), 5, "alice, bob, bob again, carol, and one for everybody else");
}

/// Reads a request's head; `None` when the connection ends.
async fn read_head(stream: &mut TcpStream) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    Some(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_looks_complete_to_nobody() {
    let start = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\n";
    for (filters, broken) in [
        ("[]", format!("{start}content-length: 1000\r\n\r\nthe beginning")),
        ("[]", format!("{start}transfer-encoding: chunked\r\n\r\nd\r\nthe beginning\r\n")),
        ("[]", format!("{start}transfer-encoding: chunked\r\n\r\nff\r\nthe beginning")),
        ("[noop]", format!("{start}content-length: 1000\r\n\r\nthe beginning")),
        ("[noop]", format!("{start}transfer-encoding: chunked\r\n\r\nd\r\nthe beginning\r\n")),
        ("[append]", format!("{start}content-length: 1000\r\n\r\nthe beginning")),
    ] {
        let gate = Arc::new(Semaphore::new(0));
        let asked = Arc::new(AtomicUsize::new(0));
        let (opened, count, text) = (Arc::clone(&gate), Arc::clone(&asked), broken.clone());
        let (origin, _serving) = Origin::raw(move |mut stream| {
            let (gate, count, broken) = (Arc::clone(&opened), Arc::clone(&count), text.clone());
            async move {
                while read_head(&mut stream).await.is_some() {
                    if count.fetch_add(1, Ordering::SeqCst) == 0 {
                        let _ = stream.write_all(broken.as_bytes()).await;
                        pass(&gate).await;
                        return;
                    }
                    let whole = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 5\r\n\r\nwhole";
                    let _ = stream.write_all(whole.as_bytes()).await;
                }
            }
        })
        .await;
        let edge = node_with("{}", filters, origin);

        let mut plain = Vec::new();
        for number in 0..3 {
            let mut client = Client::connect(edge.web()).await;
            client.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
            if number == 0 {
                until("the first is forwarded", || asked.load(Ordering::SeqCst) == 1).await;
            }
            plain.push(client);
        }
        let connection = H2Client::connect(edge.web()).await;
        let mut readers = Vec::new();
        for _ in 0..3 {
            readers.push(Reader::start(connection.open("GET", "/page", &[], true).await.unwrap().0));
        }
        all_have(&readers, 1).await;
        let mut bodies = Vec::new();
        for client in &mut plain {
            assert_eq!(client.head().await.unwrap_or_else(|why| panic!("{filters} {broken:?}: {why}")).0, 200);
            bodies.push(client.some().await.unwrap());
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1, "all of them share one fetch");
        gate.add_permits(1);

        for (client, mut body) in plain.iter_mut().zip(bodies) {
            body.extend_from_slice(&rest(client).await);
            let text = String::from_utf8_lossy(&body);
            assert!(body.len() < 1000 && !body.ends_with(b"0\r\n\r\n"), "{filters} {broken:?}: {text:?}");
        }
        for reader in readers {
            reader.finish().await.1.expect_err("a stream that ends well");
        }
        let again = Client::get(edge.web(), "/page").await;
        assert!(again.text().starts_with("whole"), "{filters} {broken:?}: nothing short is stored");
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_longer_than_the_deadline() {
    let mut gated = Gated::start(&[("cache-control", "max-age=60")]).await;
    let yaml = |wait: &str| {
        yaml("{}", "[]", "page").replace("cache: {}\n", &format!("cache: {{ collapse: {{ wait: {wait} }} }}\n"))
    };
    let mut edge = Edge::start(&yaml("1s"), &[("app", gated.origin.address())]);
    let stuck = tokio::spawn(Client::get(edge.web(), "/page"));
    gated.asked(1).await;
    let second = tokio::spawn(Client::get(edge.web(), "/page"));
    gated.asked(2).await;
    for _ in 0..2 {
        gated.open().await.send(Bytes::from_static(b"page")).unwrap();
    }
    let (stuck, second) = (stuck.await.unwrap(), second.await.unwrap());
    assert_eq!((stuck.text().as_str(), second.text().as_str()), ("page", "page"));
    assert_eq!(status(&second), "edge; fwd=uri-miss; fwd-status=200; detail=collapse-timeout");
    edge.reload(&yaml("5s")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_passes_through_to_all() {
    const PIECE: usize = 1 << 20;
    const PIECES: usize = 18;
    let piece = |number: usize| Bytes::from(vec![b'a' + u8::try_from(number).unwrap(); PIECE]);
    let expected: Vec<u8> = (0..PIECES).flat_map(piece).collect();

    // Nobody knows how long it will be: those who share the fetch when it becomes too large share it to the end.
    let mut gated = Gated::start(&[("cache-control", "max-age=60")]).await;
    let edge = node("{}", gated.origin.address());
    let connections = futures::future::join_all((0..5).map(|_| H2Client::connect(edge.web()))).await;
    let mut readers = vec![Reader::start(connections[0].open("GET", "/page", &[], true).await.unwrap().0)];
    gated.asked(1).await;
    for connection in &connections[1..] {
        readers.push(Reader::start(connection.open("GET", "/page", &[], true).await.unwrap().0));
    }
    let body = gated.open().await;
    body.send(piece(0)).unwrap();
    all_have(&readers, 1).await;
    (1..PIECES).for_each(|number| body.send(piece(number)).unwrap());
    drop(body);
    for reader in readers {
        assert!(reader.finish().await.1.unwrap() == expected);
    }
    assert_eq!(gated.origin.started(), 1);
    let next = Reader::start(connections[0].open("GET", "/page", &[], true).await.unwrap().0);
    gated.open().await.send(Bytes::from_static(b"small now")).unwrap();
    assert_eq!(
        (next.finish().await.1.unwrap(), gated.origin.started()),
        (b"small now".to_vec(), 2),
        "nothing was stored"
    );

    // With a length, everybody goes forward as soon as it is known.
    let large = Bytes::from(expected.clone());
    let body = large.clone();
    let origin = Origin::start(move |_| Origin::reply(200, &[("cache-control", "max-age=60")], body.clone())).await;
    let edge = node("{}", origin.address());
    for number in 1..=2 {
        let answer = Client::get(edge.web(), "/page").await;
        assert!(answer.body == large);
        assert_eq!(status(&answer), "edge; fwd=uri-miss; fwd-status=200; detail=too-large");
        assert_eq!(origin.started(), number);
    }
}

/// A stale answer is refreshed in the background whoever gets it: over HTTP/1 and HTTP/2, with and without filters.
#[tokio::test(flavor = "multi_thread")]
async fn every_client_of_a_stale_answer_has_it_refreshed() {
    for filters in ["[]", "[noop]"] {
        for over_h2 in [false, true] {
            let headers = &[("cache-control", "max-age=10, stale-while-revalidate=1000"), ("age", "20")];
            let origin = counting(headers).await;
            let edge = node_with("{}", filters, origin.address());
            assert_eq!(Client::get(edge.web(), "/").await.text(), "answer 1");
            let stale = if over_h2 {
                H2Client::connect(edge.web()).await.request("GET", "/", &[], b"").await.unwrap()
            } else {
                Client::get(edge.web(), "/").await
            };
            assert_eq!(stale.text(), "answer 1", "filters {filters}, h2 {over_h2}");
            until("it is refreshed", || origin.started() == 2).await;
        }
    }
}
