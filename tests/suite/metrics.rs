//! The metrics endpoint, and traces of single requests.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use selvedge_tests::{Client, Edge, Origin, Process, guest, until};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

const CONFIG: &str = "version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }
telemetry: { access_log: { output: off }, metrics: { bind: \"127.0.0.1:0\" } }
listeners:
  web: { bind: \"127.0.0.1:0\" }
filters:
  deny: { wasm: \"file:${GUESTS}/deny.wasm\", config: request_headers, limits: { deadline: 10s } }
  trap: { wasm: \"file:${GUESTS}/trap.wasm\", config: request_headers, limits: { deadline: 10s } }
  shared: { wasm: \"file:${GUESTS}/shared.wasm\", limits: { deadline: 10s } }
  tick: { wasm: \"file:${GUESTS}/tick.wasm\", config: \"5\", limits: { deadline: 10s } }
  queue: { wasm: \"file:${GUESTS}/queue.wasm\", config: \"jobs - jobs\", limits: { deadline: 10s } }
sites:
  - hosts: [\"*\"]
    routes:
      - { name: deny, match: { path: /deny }, filters: [deny], respond: { status: 200 } }
      - { name: trap, match: { path: /trap }, filters: [trap], respond: { status: 200 } }
      - { name: shared, match: { path: /shared }, filters: [shared, tick, queue], respond: { status: 200 } }
";

/// The page as samples, checked as Prometheus would read it: every family is introduced once, before its samples, and no series comes twice.
async fn scrape(edge: &Edge) -> BTreeMap<String, f64> {
    let response = Client::get(edge.metrics(), "/metrics").await;
    assert_eq!(response.status, 200);
    assert_eq!(response.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let (mut samples, mut families, mut family) = (BTreeMap::new(), BTreeSet::new(), String::new());
    for line in response.text().lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().unwrap().to_owned();
            assert!(families.insert(family.clone()), "introduced twice: {line}");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no sample: {line}"));
            let name = series.split('{').next().unwrap();
            let ending = name.strip_prefix(&family).unwrap_or_else(|| panic!("{line} is not in family {family}"));
            assert!(["", "_bucket", "_sum", "_count"].contains(&ending), "{line}");
            let value = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
            assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
        }
    }
    samples
}

#[tokio::test(flavor = "multi_thread")]
async fn what_filters_do_is_counted_and_outlives_a_reload() {
    let mut edge = Edge::start(CONFIG, &[]);
    assert_eq!(Client::get(edge.web(), "/deny").await.status, 403);
    assert_eq!(Client::get(edge.web(), "/trap").await.status, 503);
    assert_eq!(Client::get(edge.web(), "/shared").await.status, 200);
    assert_eq!(Client::get(edge.web(), "/nowhere").await.status, 404);

    // A request is counted when it is over, which may be after its client has the answer.
    let counted = |page: &BTreeMap<String, f64>| {
        ["2xx", "4xx", "5xx"]
            .map(|class| page[&format!("selvedge_requests_total{{class=\"{class}\"}}")])
            .iter()
            .sum::<f64>()
    };
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut page = scrape(&edge).await;
    while counted(&page) < 4.0 && Instant::now() < deadline {
        page = scrape(&edge).await;
    }
    let headers = "callback=\"proxy_on_request_headers\"";
    for (series, want) in [
        ("selvedge_plan_generation".to_owned(), 1.0),
        ("selvedge_requests_total{class=\"2xx\"}".to_owned(), 1.0),
        ("selvedge_requests_total{class=\"4xx\"}".to_owned(), 2.0),
        ("selvedge_requests_total{class=\"5xx\"}".to_owned(), 1.0),
        (format!("selvedge_filter_callbacks_total{{filter=\"deny\",{headers}}}"), 1.0),
        (format!("selvedge_filter_failures_total{{filter=\"trap\",{headers},reason=\"trap\"}}"), 1.0),
        (format!("selvedge_filter_callback_duration_seconds_count{{filter=\"deny\",{headers}}}"), 1.0),
        (format!("selvedge_filter_callback_duration_seconds_bucket{{filter=\"deny\",{headers},le=\"+Inf\"}}"), 1.0),
        ("selvedge_filter_local_replies_total{filter=\"deny\"}".to_owned(), 1.0),
        ("selvedge_shared_data_keys{vm_id=\"shared\"}".to_owned(), 1.0),
        ("selvedge_queue_items{vm_id=\"queue\",queue=\"jobs\"}".to_owned(), 0.0),
        (format!("selvedge_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION")), 1.0),
    ] {
        assert_eq!(page.get(&series), Some(&want), "{series} in {page:#?}");
    }
    assert!(page["selvedge_filter_vm_starts_total{filter=\"deny\"}"] >= 1.0);
    assert!(page.contains_key("selvedge_filter_custom_guest_ticks"), "the filter's own: {page:#?}");

    edge.reload(&CONFIG.replace("config: \"5\"", "config: \"6\"")).expect("in order");
    let after = scrape(&edge).await;
    assert_eq!(after["selvedge_plan_generation"], 2.0);
    for (series, value) in page.iter().filter(|(series, _)| series.contains("_total{")) {
        assert!(after[series] >= *value, "{series} went back from {value} to {}", after[series]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_answers_nothing_else_and_bears_strange_clients() {
    let edge = Edge::start(CONFIG, &[]);
    assert_eq!(Client::get(edge.metrics(), "/").await.status, 404);
    let post = Client::post(edge.metrics(), "/metrics", "", b"x").await;
    assert_eq!((post.status, post.header("allow")), (405, Some("GET, HEAD")));
    let mut client = Client::connect(edge.metrics()).await;
    assert_eq!(client.request("HEAD /metrics HTTP/1.1\r\nhost: test\r\n\r\n").await.body.len(), 0);
    assert_eq!(client.request("GET /metrics HTTP/1.1\r\nhost: test\r\n\r\n").await.status, 200, "kept alive");

    let mut long = Client::connect(edge.metrics()).await;
    long.send(format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(100_000)).as_bytes()).await;
    assert!(long.try_response("GET").await.map_or(true, |response| response.status == 431));
    let mut many = Client::connect(edge.metrics()).await;
    many.send(format!("GET /metrics HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000)).as_bytes()).await;
    assert!(many.try_response("GET").await.map_or(true, |response| response.status == 431));
    let mut noise = Client::connect(edge.metrics()).await;
    noise.send(b"\x16\x03\x01 hello\r\n\r\n").await;
    assert!(noise.try_response("GET").await.map_or(true, |response| response.status == 400));

    // More silent connections than there are places for are a matter between them: once they go, others are served.
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(Client::connect(edge.metrics()).await);
    }
    drop(silent);
    assert_eq!(Client::get(edge.metrics(), "/metrics").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_moves_it_and_a_taken_port_is_a_fault() {
    let mut edge = Edge::start(CONFIG, &[]);
    let first = edge.metrics();
    edge.reload(&CONFIG.replace("metrics: { bind: \"127.0.0.1:0\" }", "metrics: { bind: \"127.0.0.2:0\" }")).unwrap();
    let second = edge.metrics();
    assert_ne!(first.ip(), second.ip());
    assert_eq!(Client::get(second, "/metrics").await.status, 200);
    assert!(tokio::net::TcpStream::connect(first).await.is_err(), "the old one is closed");
    edge.reload(&CONFIG.replace(", metrics: { bind: \"127.0.0.1:0\" }", "")).unwrap();
    assert!(tokio::net::TcpStream::connect(second).await.is_err());
    edge.reload(CONFIG).unwrap();
    assert_eq!(scrape(&edge).await["selvedge_config_reloads_total{result=\"done\"}"], 3.0);

    let in_the_way = format!("metrics: {{ bind: \"{}\" }}", edge.web());
    let report = edge.reload(&CONFIG.replace("metrics: { bind: \"127.0.0.1:0\" }", &in_the_way)).unwrap_err();
    assert!(report.contains("metrics cannot be served at"), "{report}");
    let page = scrape(&edge).await;
    assert_eq!(page["selvedge_config_reloads_total{result=\"failed\"}"], 1.0);
    assert!(page["selvedge_config_since_seconds"] > 1.7e9);

    let taken = format!("metrics: {{ bind: \"{}\" }}", edge.metrics());
    let error = Edge::try_start(&CONFIG.replace("metrics: { bind: \"127.0.0.1:0\" }", &taken), &[]).err().unwrap();
    assert!(error.to_string().contains("metrics cannot be served at"), "{error}");
}

/// A process, because traces are in its log.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_with_the_secret_leaves_a_trace_and_no_upstream_sees_the_header() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "hello")).await;
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("config.yaml");
    let config = format!(
        "version: 1
node: {{ module_cache: off, workers: 1, shutdown_grace: 1s }}
telemetry: {{ access_log: {{ output: off }}, trace: {{ header: X-Trace-Key, value: the-secret-of-this-test }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:{}\"] }} }}
filters:
  headers:
    wasm: \"file:{}\"
    config: |
      request set x-one 1
      property no.such
    limits: {{ deadline: 10s }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: filtered, match: {{ path: /filtered }}, filters: [headers], to: app }}
      - {{ name: plain, match: {{ path: /* }}, to: app }}
",
        origin.address().port(),
        guest("headers").display()
    );
    std::fs::write(&path, config).unwrap();
    let process = Process::run(PROGRAM, folder.path(), &path, 1).await;
    let web = process.addresses()["web"];

    for header in ["", "x-trace-key: wrong\r\n", "x-trace-key: the-secret-of-this-tesT\r\n"] {
        assert_eq!(Client::get_with(web, "/filtered", header).await.status, 200);
    }
    assert_eq!(Client::get_with(web, "/plain", "x-trace-key: the-secret-of-this-test\r\n").await.status, 200);
    assert_eq!(Client::get_with(web, "/filtered", "x-trace-key: the-secret-of-this-test\r\n").await.status, 200);
    until("the trace is written", || process.log().iter().any(|line| line.contains("proxy_on_delete -> returned")))
        .await;

    let log = process.log().join("\n");
    for words in [
        "selvedge::trace",
        "route=\"filtered\"",
        "headers#5 proxy_on_request_headers -> returned",
        "proxy_replace_header_map_value map=0 name=\"x-one\" value=<1 bytes> -> Ok",
        "proxy_get_property path=\"no\\0such\" -> NotFound",
    ] {
        assert!(log.contains(words), "{words}\nis not in\n{log}");
    }
    assert_eq!(log.matches("proxy_on_request_headers").count(), 1, "{log}");
    assert!(!log.contains("the-secret-of-this-test"), "{log}");
    assert_eq!(origin.received().len(), 5);
    for request in origin.received() {
        assert_eq!(request.header("x-trace-key"), None);
    }
}

/// What the cache had to do with requests is counted by the words of the access log, and what it holds is told.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_cache_does_is_counted() {
    let origin = Origin::start(|request| match request.target.as_str() {
        "/page" => Origin::reply(200, &[("cache-control", "max-age=60")], "page"),
        _ => Origin::reply(200, &[("cache-control", "no-store")], "private"),
    })
    .await;
    let edge = Edge::start(
        "version: 1
node: { name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }
telemetry: { access_log: { output: off }, metrics: { bind: \"127.0.0.1:0\" } }
listeners:
  web: { bind: \"127.0.0.1:0\" }
cache: { memory: { size: 8MiB } }
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
sites: [{ hosts: [\"*\"], routes: [{ cache: {}, to: app }] }]
",
        &[("app", origin.address())],
    );
    for path in ["/page", "/page", "/page", "/private"] {
        assert_eq!(Client::get(edge.web(), path).await.status, 200);
    }
    // Counted when a request is over, which may be after its client has the answer.
    let soon = Instant::now() + Duration::from_secs(10);
    loop {
        let samples = scrape(&edge).await;
        let count = |result: &str| samples[&format!("selvedge_cache_requests_total{{result=\"{result}\"}}")];
        let found = (count("hit"), count("uri-miss"), count("bypass"), samples["selvedge_cache_memory_capacity_bytes"]);
        if found == (2.0, 2.0, 0.0, f64::from(8 << 20)) && samples["selvedge_cache_waiting"] == 0.0 {
            break;
        }
        assert!(Instant::now() < soon, "{found:?}");
    }
}
