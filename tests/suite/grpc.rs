//! gRPC of filters, against a server in this process: calls, streams, everything that can go wrong, and what the server sees of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use selvedge_tests::grpc::GrpcServer;
use selvedge_tests::{Client, Edge, Origin, closed, soon, until};
use tokio::sync::Semaphore;

/// A node whose only filter is the guest `grpc`: it runs the scripts in a request's headers. Upstreams: `up` is the server, `plain` the
/// same without HTTP/2, `nobody` has no server, `brief` is the server with little patience, `app` is the origin.
fn edge(server: SocketAddr, app: SocketAddr, script: &str) -> Edge {
    Edge::start(
        &format!(
            "upstreams:
  up: {{ endpoints: [\"127.0.0.1:${{PORT_up}}\"], protocol: h2 }}
  plain: {{ endpoints: [\"127.0.0.1:${{PORT_up}}\"] }}
  nobody: {{ endpoints: [\"127.0.0.1:${{PORT_nobody}}\"], protocol: h2 }}
  brief: {{ endpoints: [\"127.0.0.1:${{PORT_up}}\"], protocol: h2, timeouts: {{ read: 1s }} }}
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
filters:
  grpc: {{ wasm: \"file:${{GUESTS}}/grpc.wasm\", config: \"{script}\", limits: {{ deadline: 10s, wait: 30s }} }}
sites:
- hosts: [\"*\"]
  routes: [{{ name: all, filters: [grpc], to: app }}]
"
        ),
        &[("up", server), ("app", app), ("nobody", closed())],
    )
}

/// A node, its server, and its origin, which answers with the request's `x-seen`.
struct Bench {
    server: GrpcServer,
    edge: Edge,
    _origin: Origin,
}

impl Bench {
    async fn new() -> Self {
        let server = GrpcServer::start().await;
        let origin = Origin::start(|request| {
            Origin::reply(200, &[], format!("origin saw {}", request.header("x-seen").unwrap_or("nothing")))
        })
        .await;
        let edge = edge(server.address(), origin.address(), "");
        Self { server, edge, _origin: origin }
    }

    /// What the filter saw while it ran these scripts, a line for each event.
    async fn run(&self, scripts: &[(&str, &str)]) -> Vec<String> {
        let response = Client::connect(self.edge.web()).await.request(&request(scripts)).await;
        assert_eq!(response.status, 200, "{scripts:?}: {}", response.text());
        response.text().lines().map(str::to_owned).collect()
    }

    async fn script(&self, script: &str) -> Vec<String> {
        self.run(&[("x-script", script)]).await
    }
}

fn request(headers: &[(&str, &str)]) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("GET / HTTP/1.1\r\nhost: test\r\n{headers}\r\n")
}

#[tokio::test]
async fn a_call_is_answered_with_a_message() {
    let bench = Bench::new().await;
    assert_eq!(bench.script("meta x-meta m; call up test.Echo Unary 20000 who is it").await, ["answer echo who is it"]);
    assert_eq!(bench.script("call up test.Echo Unary 20000").await, ["answer echo "]);

    let requests = bench.server.requests();
    let request = &requests[0];
    assert_eq!(request.method(), "POST");
    assert_eq!(request.uri(), "http://up/test.Echo/Unary");
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("content-type"), Some("application/grpc"));
    assert_eq!(header("te"), Some("trailers"));
    assert_eq!(header("grpc-timeout"), Some("20000m"));
    assert_eq!(header("x-meta"), Some("m"));
    assert_eq!(bench.server.messages(), ["who is it", ""]);
    assert_eq!(bench.server.connections(), 1, "one connection serves both");
}

#[tokio::test]
async fn the_authority_may_be_the_filters() {
    let bench = Bench::new().await;
    bench.script("meta :authority a.example:50; call proto:up test.Echo Unary 20000 x").await;
    assert_eq!(bench.server.requests()[0].uri(), "http://a.example:50/test.Echo/Unary");
}

/// Whatever goes wrong has a gRPC status, the same for calls and for streams.
#[tokio::test]
async fn failures_are_statuses() {
    let bench = Bench::new().await;
    for (upstream, method, status, text) in [
        ("up", "Denied", 7, "not you, \u{20ac}"),
        ("up", "Late", 9, "too late"),
        ("up", "Elsewhere", 12, ""),
        ("up", "Bare", 2, "no grpc-status, HTTP status 200"),
        ("up", "Html", 14, "not a gRPC response: HTTP status 503, content-type text/html"),
        ("up", "Refused", 14, "*"),
        ("up", "Crash", 13, "*"),
        ("up", "Compressed", 13, "the server sent a compressed message, unasked"),
        ("up", "Long", 8, "the server sent a message of 5242880 bytes, more than 4194304"),
        ("up", "Cut", 13, "the server ended within a message"),
        ("nobody", "Unary", 14, "*"),
        ("plain", "Unary", 14, "upstream plain is not spoken to in HTTP/2 (protocol: h2)"),
        ("brief", "Deaf", 14, "upstream brief: nothing moved for 1s"),
    ] {
        let call = bench.script(&format!("call {upstream} test.Echo {method} 20000 x")).await;
        let stream = bench.script(&format!("open {upstream} test.Echo {method}; send x")).await;
        for (seen, end) in [(&call, "failed"), (&stream, "close")] {
            let last = seen.last().unwrap();
            match text {
                "*" => assert!(last.starts_with(&format!("{end} {status} ")), "{upstream} {method}: {last}"),
                text => assert_eq!(last, format!("{end} {status} {text}").trim_end(), "{upstream} {method}"),
            }
        }
        assert_eq!(call.len(), 1, "a call that fails has nothing but its end: {call:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_at_once() {
    let bench = Bench::new().await;
    for script in
        ["call nowhere s m 9", "call proto:nowhere s m 9", "open nowhere s m", "open up s/t m", "call up s m# 9"]
    {
        let what = script.split(' ').next().unwrap();
        assert_eq!(bench.script(script).await, [format!("{what}: ParseFailure")], "{script}");
    }
    assert_eq!(bench.server.connections(), 0);
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_reset() {
    let bench = Bench::new().await;
    let started = Instant::now();
    assert_eq!(bench.script("call up test.Echo Hang 1000 x").await, ["failed 4 timeout"]);
    assert!(started.elapsed() >= Duration::from_secs(1));
    until("the server sees it", || bench.server.resets() == 1).await;
    assert_eq!(bench.script("call up test.Echo Unary 20000 x").await, ["answer echo x"]);
    assert_eq!(bench.server.connections(), 1, "the connection stays");
}

#[tokio::test]
async fn a_server_streams() {
    let bench = Bench::new().await;
    assert_eq!(
        bench.script("open up test.Echo Count; last 3").await,
        [
            "initial content-type=application/grpc",
            "message 1",
            "message 2",
            "message 3",
            "trailing grpc-status=0 x-trailing=counted",
            "close 0"
        ]
    );
}

#[tokio::test]
async fn metadata_goes_both_ways() {
    let bench = Bench::new().await;
    assert_eq!(
        bench.script("meta x-meta m; open up test.Echo Unary; last hi").await,
        [
            "initial content-type=application/grpc x-initial=m",
            "message echo hi",
            "trailing grpc-status=0 x-trailing=yes",
            "close 0"
        ]
    );
    let denied = bench.script("open up test.Echo Denied").await;
    assert_eq!(denied[0], "initial", "trailers only");
    assert!(denied[1].contains("grpc-status=7"));
}

#[tokio::test]
async fn a_client_streams() {
    let bench = Bench::new().await;
    for end in ["last c", "send c; close"] {
        let seen = bench.script(&format!("open up test.Echo Collect; send a; send b; {end}")).await;
        assert_eq!(seen[1..], ["message a+b+c", "trailing grpc-status=0", "close 0"], "{end}");
    }
    assert_eq!(bench.script("open up test.Echo Collect; close").await[1], "message");
}

/// Each message of one side waits for one of the other: neither is held back until the end.
#[tokio::test]
async fn both_sides_stream_at_once() {
    let bench = Bench::new().await;
    let seen = bench.run(&[("x-script", "open up test.Echo Chat; send ping"), ("x-on-message", "last pong")]).await;
    assert_eq!(seen[1..3], ["message re ping", "message re pong"]);
    // The second `last` comes after the end of what the filter sends.
    assert_eq!(seen[3..], ["send: BadArgument", "trailing grpc-status=0", "close 0"]);
}

#[tokio::test]
async fn messages_of_four_mebibytes_pass_both_ways() {
    let bench = Bench::new().await;
    let seen = bench.script("open up test.Echo Sizes; send 4194304; send 1; last 0").await;
    assert_eq!(seen[1..4], ["message of 4194304", "message x", "message"]);
    let seen = bench.script("open up test.Echo Sizes; last 4194305").await;
    assert_eq!(seen.last().unwrap(), "close 8 the server sent a message of 4194305 bytes, more than 4194304");

    let seen = bench.script("open up test.Echo Collect; bulk 1 4194304; bulk 1 10; bulk 1 4194305; close").await;
    assert_eq!(seen[0], "send: BadArgument", "too long");
    assert_eq!(seen.last().unwrap(), "close 8 the server sent a message of 4194315 bytes, more than 4194304");
    assert_eq!(bench.server.messages().last().unwrap().len(), 10);
}

#[tokio::test]
async fn a_server_that_does_not_read_ends_the_stream() {
    let bench = Bench::new().await;
    let scripts = [("x-script", "open up test.Echo Stubborn; send a"), ("x-on-message", "bulk 9 1048576")];
    let seen = bench.run(&scripts).await;
    assert_eq!(seen[1..], ["message ok", "close 8 the server does not keep up with the messages"]);
    until("the server sees it", || bench.server.resets() == 1).await;
}

#[tokio::test]
async fn a_cancelled_stream_is_reset() {
    let bench = Bench::new().await;
    let seen = bench.run(&[("x-script", "open up test.Echo Chat; send a"), ("x-on-message", "cancel; answer")]).await;
    assert_eq!(seen[1..], ["message re a"]);
    until("the server sees it", || bench.server.resets() == 1).await;
    assert_eq!(bench.script("call up test.Echo Hang 20000 x; cancel; answer").await, Vec::<String>::new());
}

#[tokio::test]
async fn the_end_of_an_exchange_resets_its_streams() {
    let bench = Bench::new().await;
    bench.run(&[("x-script", "open up test.Echo Chat; send a"), ("x-on-message", "answer")]).await;
    until("the server sees it", || bench.server.resets() == 1).await;
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_streams_of_its_exchange() {
    let bench = Bench::new().await;
    let mut client = Client::connect(bench.edge.web()).await;
    client.send(request(&[("x-script", "open up test.Echo Hang; send a")]).as_bytes()).await;
    until("the message", || bench.server.messages() == ["a"]).await;
    assert_eq!(bench.server.resets(), 0);
    drop(client);
    until("the server sees it", || bench.server.resets() == 1).await;
}

#[tokio::test]
async fn a_filter_that_dies_resets_its_streams() {
    let bench = Bench::new().await;
    let mut waiting = Client::connect(bench.edge.web()).await;
    waiting.send(request(&[("x-script", "open up test.Echo Hang; send a")]).as_bytes()).await;
    until("the message", || bench.server.messages() == ["a"]).await;
    let mut client = Client::connect(bench.edge.web()).await;
    assert_eq!(client.request(&request(&[("x-script", "fail")])).await.status, 503);
    until("the server sees it", || bench.server.resets() == 1).await;
    assert_eq!(soon("the other exchange fails", waiting.response("GET")).await.status, 503);
    assert_eq!(bench.script("call up test.Echo Unary 20000 x").await, ["answer echo x"], "the next VM");
}

/// A filter that holds a request for a stream's message gets it.
#[tokio::test]
async fn a_held_request_goes_on_when_a_message_says_so() {
    let bench = Bench::new().await;
    let seen = bench.run(&[("x-script", "open up test.Echo Chat; send a"), ("x-on-message", "resume")]).await;
    assert_eq!(seen, ["origin saw initial content-type=application/grpc|message re a"]);
    let seen = bench.run(&[("x-script", "call up test.Echo Unary 20000 x"), ("x-on-close", "resume")]).await;
    assert_eq!(seen, ["origin saw answer echo x"]);
}

#[tokio::test]
async fn a_stream_on_which_nothing_moves_is_ended() {
    let bench = Bench::new().await;
    let seen = bench.script("open brief test.Echo Silent; send x").await;
    assert_eq!(seen[1..], ["close 14 upstream brief: nothing moved for 1s"]);
    until("the server sees it", || bench.server.resets() == 1).await;
}

#[tokio::test]
async fn a_server_may_end_before_the_client_has() {
    let bench = Bench::new().await;
    let seen = bench.run(&[("x-script", "open up test.Echo Early; send a"), ("x-on-close", "send b; close")]).await;
    assert_eq!(seen[1..], ["trailing grpc-status=0", "close 0"]);
}

/// What nobody takes is not read either, and does not hold up what else is on the connection.
#[tokio::test]
async fn a_flood_is_held_back() {
    let server = GrpcServer::start().await;
    let release = Arc::new(Semaphore::new(0));
    let held = Arc::clone(&release);
    // The filter lets the request go, so nobody waits for its stream any more; the origin keeps the exchange open.
    let origin = Origin::start_async(move |_| {
        let held = Arc::clone(&held);
        Box::pin(async move {
            held.acquire().await.unwrap().forget();
            Origin::reply(200, &[], "done")
        })
    })
    .await;
    let edge = edge(server.address(), origin.address(), "");
    let unary = request(&[("x-script", "call up test.Echo Unary 20000 x")]);
    let unary = async || Client::connect(edge.web()).await.request(&unary).await.text();
    assert_eq!(unary().await, "answer echo x"); // there is a connection now
    let mut flooded = Client::connect(edge.web()).await;
    flooded.send(request(&[("x-script", "open up test.Echo Flood; resume")]).as_bytes()).await;

    soon("the flood comes to rest", async {
        let mut before = 0;
        loop {
            assert_eq!(unary().await, "answer echo x");
            let now = server.flooded();
            if now > 0 && now == before {
                break;
            }
            before = now;
        }
    })
    .await;
    assert_eq!(server.connections(), 1);
    assert_eq!(server.resets(), 0);
    release.add_permits(1);
    assert_eq!(flooded.response("GET").await.text(), "done");
    until("the end of the exchange", || server.resets() == 1).await;
}

#[tokio::test]
async fn reports_made_while_an_exchange_ends_are_sent() {
    let bench = Bench::new().await;
    let mut client = Client::connect(bench.edge.web()).await;
    client.request(&request(&[("x-at-log", "call up test.Log Unary 20000 it was nice")])).await;
    until("the report", || bench.server.messages() == ["it was nice"]).await;
}

#[tokio::test]
async fn a_root_context_keeps_a_stream() {
    let server = GrpcServer::start().await;
    let origin = Origin::start(|_| Origin::reply(200, &[], "")).await;
    let edge = edge(server.address(), origin.address(), "open up test.Root Hang; send one; send two");
    until("the messages", || server.messages() == ["one", "two"]).await;
    assert_eq!(server.resets(), 0);
    drop(edge);
    // With its node the worker's runtime is gone, and with that the connection.
    until("the server sees it", || server.resets() == 1).await;
}

/// A node in front of the server, which speaks TLS to the first.
#[tokio::test]
async fn a_server_behind_tls_is_asked_in_the_same_way() {
    let server = GrpcServer::start().await;
    let front = Edge::start(
        "upstreams: { grpc: { endpoints: [\"127.0.0.1:${PORT_up}\"], protocol: h2 } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, to: grpc }] }]
",
        &[("up", server.address())],
    );
    let edge = Edge::start(
        "upstreams:
  secure: { endpoints: [\"127.0.0.1:${PORT_up}\"], protocol: h2, tls: { sni: localhost, verify: false } }
filters:
  grpc: { wasm: \"file:${GUESTS}/grpc.wasm\", limits: { deadline: 10s, wait: 30s } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, filters: [grpc], to: secure }] }]
",
        &[("up", front.secure())],
    );
    for (script, seen) in [
        ("call secure test.Echo Unary 20000 x", &["answer echo x"][..]),
        ("call secure test.Echo Denied 20000 x", &["failed 7 not you, \u{20ac}"]),
    ] {
        let response = Client::connect(edge.web()).await.request(&request(&[("x-script", script)])).await;
        assert_eq!(response.text().lines().collect::<Vec<_>>(), seen, "{script}");
    }
    assert_eq!(server.requests()[0].uri().authority().unwrap(), "localhost");
}
