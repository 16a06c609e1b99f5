//! HTTP calls of filters, as the servers they go to see them, and as the filter sees the answer.

use selvedge_tests::grpc::GrpcServer;
use selvedge_tests::{Client, Edge, Origin, closed};

/// A node whose only filter is the guest `grpc`, of which these tests use the HTTP calls: to `one` over HTTP/1, to `two` over HTTP/2.
struct Bench {
    edge: Edge,
    origin: Origin,
}

impl Bench {
    async fn new(origin: Origin) -> Self {
        let edge = Edge::start(
            "upstreams:
  one: { endpoints: [\"127.0.0.1:${PORT_up}\"] }
  two: { endpoints: [\"127.0.0.1:${PORT_up}\"], protocol: h2 }
  nobody: { endpoints: [\"127.0.0.1:${PORT_nobody}\"] }
filters:
  grpc: { wasm: \"file:${GUESTS}/grpc.wasm\", limits: { deadline: 10s, wait: 30s } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, filters: [grpc], to: one }] }]
",
            &[("up", origin.address()), ("nobody", closed())],
        );
        Self { edge, origin }
    }

    async fn script(&self, script: &str) -> Vec<String> {
        script_on(&self.edge, script).await
    }
}

async fn script_on(edge: &Edge, script: &str) -> Vec<String> {
    let request = format!("GET / HTTP/1.1\r\nhost: test\r\nx-script: {script}\r\n\r\n");
    let response = Client::connect(edge.web()).await.request(&request).await;
    assert_eq!(response.status, 200, "{script}: {}", response.text());
    response.text().lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn a_call_and_its_answer_are_whole_over_both_versions() {
    let origin = Origin::start(|request| {
        let body = format!("{} {} {}", request.method, request.target, String::from_utf8_lossy(&request.body));
        Origin::reply(201, &[("X-Mixed-Case", "yes"), ("date", "then")], body)
    })
    .await;
    let bench = Bench::new(origin).await;
    for upstream in ["one", "two"] {
        let seen = bench.script(&format!("meta X-Mine 1; http {upstream} POST /ask?q=1 20000 question")).await;
        assert!(seen[0].starts_with("response :status=201 "), "{upstream}: {seen:?}");
        assert!(seen[0].contains(" x-mixed-case=yes"), "names in lower case: {seen:?}");
        assert_eq!(seen[1..], ["body POST /ask?q=1 question", "trailers"], "{upstream}");
        let request = bench.origin.last();
        assert_eq!(request.header("x-mine"), Some("1"));
        assert_eq!(request.header("content-length"), Some("8"));
        let authority = if upstream == "two" { ":authority" } else { "host" };
        assert_eq!(request.header(authority), Some(upstream));
    }
}

#[tokio::test]
async fn a_url_in_place_of_a_path_is_taken_for_its_path() {
    let bench = Bench::new(Origin::start(|_| Origin::reply(200, &[], "yes")).await).await;
    for upstream in ["one", "two"] {
        for (target, path) in
            [("http://test/keys?all=1", "/keys?all=1"), ("https://other.test:8443", "/"), ("HTTPS://test/a", "/a")]
        {
            let seen = bench.script(&format!("http {upstream} GET {target} 20000")).await;
            assert_eq!(seen.get(1).map(String::as_str), Some("body yes"), "{upstream} {target}: {seen:?}");
            let request = bench.origin.last();
            assert_eq!(request.target, path, "{upstream} {target}");
            let authority = if upstream == "two" { ":authority" } else { "host" };
            assert_eq!(request.header(authority), Some(upstream), "{target}: the filter names it");
        }
        for target in ["keys", "*", "ftp://test/keys"] {
            let seen = bench.script(&format!("http {upstream} GET {target} 20000")).await;
            assert_eq!(seen, ["no response 11 reset: the filter's callout has a bad :path"], "{upstream} {target}");
        }
    }
}

#[tokio::test]
async fn trailers_pass_both_ways_over_http_2() {
    let origin = Origin::start(|_| Origin::with_trailers(200, &[], "answer", &[("x-trailing", "yes")])).await;
    let bench = Bench::new(origin).await;
    for body in ["question", "-"] {
        let seen = bench.script(&format!("http two POST / 20000 {body} checked")).await;
        assert_eq!(seen[1..], ["body answer", "trailers x-trailing=yes"], "{body}");
        let request = bench.origin.last();
        assert_eq!(request.trailers, [("x-check".to_owned(), "checked".to_owned())], "{body}");
        assert_eq!(request.body, body.trim_matches('-'), "{body}");
    }
}

/// What belongs to a connection is ours: an HTTP/2 request with it would be malformed.
#[tokio::test]
async fn fields_of_the_connection_are_left_out() {
    let bench = Bench::new(Origin::start(|_| Origin::reply(200, &[], "ok")).await).await;
    for upstream in ["one", "two"] {
        let fields = "meta connection close; meta transfer-encoding chunked; meta upgrade h2c; meta te gzip; meta content-length 9";
        let seen = bench.script(&format!("{fields}; http {upstream} POST / 20000 ask")).await;
        assert_eq!(seen[1], "body ok", "{upstream}: {seen:?}");
        let request = bench.origin.last();
        assert_eq!(request.body, "ask");
        for field in ["connection", "transfer-encoding", "upgrade", "te"] {
            assert_eq!(request.header(field), None, "{upstream}");
        }
    }
}

#[tokio::test]
async fn the_scheme_is_that_of_the_connection_or_the_filters() {
    let server = GrpcServer::start().await;
    let edge = Edge::start(
        "upstreams: { two: { endpoints: [\"127.0.0.1:${PORT_up}\"], protocol: h2 } }
filters: { grpc: { wasm: \"file:${GUESTS}/grpc.wasm\", limits: { deadline: 10s, wait: 30s } } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, filters: [grpc], to: two }] }]
",
        &[("up", server.address())],
    );
    for (given, uri) in [("", "http://two/s/Denied"), ("meta :scheme https; ", "https://two/s/Denied")] {
        let seen = script_on(&edge, &format!("{given}http two GET /s/Denied 20000")).await;
        assert!(seen[0].starts_with("response :status=200 "), "{seen:?}");
        assert_eq!(server.requests().last().unwrap().uri(), uri);
    }
}

/// Status 11 (broken connection), and why.
#[tokio::test]
async fn a_call_without_an_answer_says_why() {
    let origin = Origin::start_async(|_| Box::pin(std::future::pending())).await;
    let bench = Bench::new(origin).await;
    for upstream in ["one", "two"] {
        assert_eq!(bench.script(&format!("http {upstream} GET / 200")).await, ["no response 11 timeout"]);
    }
    let refused = bench.script("http nobody GET / 20000").await;
    assert!(refused[0].starts_with("no response 11 connect: "), "{refused:?}");
    assert_eq!(bench.script("http elsewhere; answer").await, ["http: BadArgument"]);
}

#[tokio::test]
async fn connections_serve_one_call_after_another() {
    let server = GrpcServer::start().await;
    let edge = Edge::start(
        "upstreams: { two: { endpoints: [\"127.0.0.1:${PORT_up}\"], protocol: h2 } }
filters: { grpc: { wasm: \"file:${GUESTS}/grpc.wasm\", limits: { deadline: 10s, wait: 30s } } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, filters: [grpc], to: two }] }]
",
        &[("up", server.address())],
    );
    for _ in 0..3 {
        // A call that is given up keeps its connection; so do gRPC and HTTP beside each other.
        assert_eq!(script_on(&edge, "http two GET /s/Hang 100").await, ["no response 11 timeout"]);
        assert_eq!(script_on(&edge, "call two s Unary 20000 x").await, ["answer echo x"]);
    }
    assert_eq!(server.connections(), 1);
}
