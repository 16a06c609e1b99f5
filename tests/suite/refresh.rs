//! URLs that a change puts out of date and a rule of its route has fetched anew, before anybody asks (`invalidates: [{ urls, refresh }]`).

use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, soon};

const YAML: &str = "version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s }
telemetry: { access_log: { output: off }, metrics: { bind: \"127.0.0.1:0\" } }
listeners: { web: { bind: \"127.0.0.1:0\", protocols: [h1, h2] } }
cache: {}
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } } }
sites:
- hosts: [\"*\"]
  routes:
  - { name: \"lists-${ID}\", filters: FILTERS, cache: {}, to: app }
  - name: \"products-${ID}\"
    match: { path: /products/*, method: [POST, PUT] }
    filters: FILTERS
    to: app
    invalidates:
    - { on: /products/*/price, urls: [\"/lists/$1\", \"/lists/$1/large?all\"], SOFT refresh: true }
    - { on: /products/many, urls: [/1, /2, /3, /4, /5, /6, /7, /8, /9, /10], refresh: true }";

/// What the HTTP/2 client asks for.
const HOST: &str = "test";

/// An origin whose answers tell which they are.
async fn counting() -> Origin {
    let count = std::sync::atomic::AtomicUsize::new(0);
    Origin::start(move |_| {
        let answer = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        Origin::reply(200, &[("cache-control", "max-age=600, stale-while-revalidate=600")], format!("answer {answer}"))
    })
    .await
}

async fn node(origin: &Origin, filters: &str, soft: &str) -> Edge {
    let yaml = YAML.replace("FILTERS", filters).replace("SOFT", soft);
    Edge::start(&yaml, &[("app", origin.address())])
}

async fn get(edge: &Edge, path: &str) -> (String, String) {
    let mut client = Client::connect(edge.web()).await;
    client.send(format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes()).await;
    let answer = client.response("GET").await;
    let verdict = answer.header("cache-status").unwrap_or_default().split("; ").nth(1).unwrap_or_default().to_owned();
    (verdict, answer.text())
}

/// How many URLs were fetched, and how many left to who asks next.
async fn refreshes(edge: &Edge) -> [u64; 2] {
    let page = Client::get(edge.metrics(), "/metrics").await.text();
    ["fetched", "left"].map(|result| {
        let sample = format!("selvedge_cache_refreshes_total{{result=\"{result}\"}} ");
        let line = page.lines().find_map(|line| line.strip_prefix(&sample));
        line.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no {sample}: {page}"))
    })
}

async fn have_been_fetched(edge: &Edge, count: u64) {
    soon("what is out of date is fetched", async { while refreshes(edge).await[0] < count {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_change_puts_out_of_date_is_there_anew_before_anybody_asks() {
    for (filters, soft, http2) in
        [("[]", "", false), ("[noop]", "", false), ("[]", "soft: true,", true), ("[noop]", "", true)]
    {
        let case = format!("filters {filters}, {soft} HTTP/2 {http2}");
        let origin = counting().await;
        let edge = node(&origin, filters, soft).await;
        for path in ["/lists/7", "/lists/7/large?all", "/lists/8"] {
            get(&edge, path).await;
            assert_eq!(get(&edge, path).await.0, "hit", "{case}");
        }
        assert_eq!(origin.started(), 3);

        let fields = [("cookie", "secret=1"), ("authorization", "Basic c2VjcmV0"), ("if-none-match", "\"1\"")];
        let status = if http2 {
            let connection = H2Client::connect(edge.web()).await;
            connection.request("PUT", "/products/7/price", &fields, b"12").await.unwrap().status
        } else {
            let fields: String = fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
            let mut client = Client::connect(edge.web()).await;
            let request =
                format!("PUT /products/7/price HTTP/1.1\r\nhost: {HOST}\r\n{fields}content-length: 2\r\n\r\n12");
            client.send(request.as_bytes()).await;
            client.response("PUT").await.status
        };
        assert_eq!(status, 200, "{case}");

        have_been_fetched(&edge, 2).await;
        assert_eq!(origin.started(), 6, "{case}");
        for path in ["/lists/7", "/lists/7/large?all", "/lists/8"] {
            let (verdict, text) = get(&edge, path).await;
            let anew = path != "/lists/8";
            assert_eq!((verdict.as_str(), text.as_str() > "answer 3"), ("hit", anew), "{case}: {path} {text}");
        }
        for request in origin.received().iter().skip(4) {
            assert_eq!((request.method.as_str(), request.header("host")), ("GET", Some(HOST)), "{case}");
            let of_the_client = ["cookie", "authorization", "if-none-match", "content-length", "x-forwarded-for"];
            assert!(of_the_client.iter().all(|name| request.header(name).is_none()), "{case}: {request:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_has_only_so_many_urls_fetched_and_none_when_it_fails() {
    let origin = counting().await;
    let edge = node(&origin, "[]", "").await;
    let mut client = Client::connect(edge.web()).await;
    client.send(format!("POST /products/many HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
    assert_eq!(client.response("POST").await.status, 200);
    have_been_fetched(&edge, 8).await;
    assert_eq!((origin.started(), refreshes(&edge).await), (9, [8, 2]));
    assert_eq!((get(&edge, "/8").await.0.as_str(), get(&edge, "/9").await.0.as_str()), ("hit", "fwd=uri-miss"));

    let failing = Origin::start(|_| Origin::reply(500, &[], "no")).await;
    let edge = node(&failing, "[]", "").await;
    let mut client = Client::connect(edge.web()).await;
    let request = "POST /products/many HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n";
    client.send(request.as_bytes()).await;
    assert_eq!(client.response("POST").await.status, 500);
    client.send(request.as_bytes()).await;
    client.response("POST").await;
    assert_eq!(failing.started(), 2, "nothing has changed");
}
