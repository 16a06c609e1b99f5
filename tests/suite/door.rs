//! The door between Pingora and the filters: one test per trap.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use selvedge_tests::{Client, Edge, Origin, h2::H2Client, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Every filter that these tests use, and the upstreams `app` (and `side`, for callouts, when there is one).
const FILTERS: &str = "
filters:
  noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } }
  append: { wasm: \"file:${GUESTS}/append.wasm\", limits: { deadline: 10s } }
  append-request: { wasm: \"file:${GUESTS}/append.wasm\", config: request, limits: { deadline: 10s } }
  hold: { wasm: \"file:${GUESTS}/hold.wasm\", limits: { deadline: 10s } }
  hold-request: { wasm: \"file:${GUESTS}/hold.wasm\", config: request, limits: { deadline: 10s } }
  hold-response: { wasm: \"file:${GUESTS}/hold.wasm\", config: response, limits: { deadline: 10s } }
  shared: { wasm: \"file:${GUESTS}/shared.wasm\", limits: { deadline: 10s } }
  ledger: { wasm: \"file:${GUESTS}/ledger.wasm\", limits: { deadline: 10s } }
  trap: { wasm: \"file:${GUESTS}/trap.wasm\", config: request_headers, limits: { deadline: 10s } }
  deny-request: { wasm: \"file:${GUESTS}/deny.wasm\", config: request_headers, limits: { deadline: 10s } }
  deny-upload: { wasm: \"file:${GUESTS}/deny.wasm\", config: request_body, limits: { deadline: 10s } }
  deny-response: { wasm: \"file:${GUESTS}/deny.wasm\", config: response_headers, limits: { deadline: 10s } }
  seen: { wasm: \"file:${GUESTS}/headers.wasm\", config: \"response add x-seen yes\", limits: { deadline: 10s } }
  peek: { wasm: \"file:${GUESTS}/peek.wasm\", limits: { deadline: 10s } }
  no-host: { wasm: \"file:${GUESTS}/headers.wasm\", config: \"request remove host\", limits: { deadline: 10s } }
  target: { wasm: \"file:${GUESTS}/headers.wasm\", config: \"property request.path\\nproperty request.host\", limits: { deadline: 10s } }
  bad-authority: { wasm: \"file:${GUESTS}/headers.wasm\", config: \"request set :authority bad host\", limits: { deadline: 10s } }
  bad-host: { wasm: \"file:${GUESTS}/headers.wasm\", config: \"request set host user@bad/host\", limits: { deadline: 10s } }
";

/// A node with one upstream, `app`, and these routes.
fn edge(app: SocketAddr, routes: &str) -> Edge {
    let upstreams = "upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }";
    Edge::start(
        &format!("{upstreams}{FILTERS}cache: {{}}\nsites:\n- hosts: [\"*\"]\n  routes: [{routes}]\n"),
        &[("app", app)],
    )
}

/// A node with a second upstream, `side`, that the filter `callout` asks while it has the request header.
fn edge_with_callout(app: SocketAddr, side: SocketAddr, routes: &str) -> Edge {
    let upstreams = "upstreams:
  app: { endpoints: [\"127.0.0.1:${PORT_app}\"] }
  side: { endpoints: [\"127.0.0.1:${PORT_side}\"] }";
    let callout = "  callout: { wasm: \"file:${GUESTS}/callout.wasm\", config: request_headers side /ask, limits: { deadline: 10s } }\n";
    Edge::start(
        &format!("{upstreams}{FILTERS}{callout}sites:\n- hosts: [\"*\"]\n  routes: [{routes}]\n"),
        &[("app", app), ("side", side)],
    )
}

/// An origin that answers with method, path and body.
async fn echo() -> Origin {
    Origin::start(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        Origin::reply(200, &[], format!("{} {} {body}", request.method, request.target))
    })
    .await
}

/// An origin that answers with the path, one request for each permit of its gate.
async fn gated() -> (Arc<Semaphore>, Origin) {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let origin = Origin::start_async(move |request| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.unwrap().forget();
            Origin::reply(200, &[], format!("{} ", request.target))
        }
        .boxed()
    })
    .await;
    (gate, origin)
}

/// Looks at the counts of the filter `ledger`, always over one connection: the looks before are then done for sure.
struct Ledger {
    client: Client,
    looks: u64,
}

impl Ledger {
    async fn connect(edge: &Edge) -> Self {
        Self { client: Client::connect(edge.web()).await, looks: 0 }
    }

    /// How many exchanges besides the looks have begun, and how many of them are over.
    async fn look(&mut self) -> (u64, u64) {
        let response = self.client.request("GET /count HTTP/1.1\r\nhost: test\r\n\r\n").await;
        let count = |name| response.header(name).unwrap().parse::<u64>().unwrap();
        let counts = (count("x-opened") - self.looks - 1, count("x-done") - self.looks);
        self.looks += 1;
        counts
    }

    async fn until(&mut self, counts: (u64, u64)) {
        soon(&format!("counts {counts:?}"), async { while self.look().await != counts {} }).await;
    }
}

/// Reads one request with its body (by length) from a raw connection; `None` when the connection ends first.
async fn read_request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    Some((head, String::from_utf8_lossy(&body).into_owned()))
}

/// An answer with a body of known length, as bytes.
fn answer(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_reused_after_filtered_responses_of_every_kind() {
    let origin = Origin::start(|request| match request.target.as_str() {
        "/append/empty" => Origin::reply(204, &[], ""),
        "/append/same" => Origin::reply(304, &[("etag", "\"a\"")], ""),
        _ => {
            let body = String::from_utf8_lossy(&request.body).into_owned();
            Origin::reply(200, &[], format!("{} {body}", request.method))
        }
    })
    .await;
    let edge = edge(
        origin.address(),
        "{ name: append, match: { path: /append/* }, filters: [noop, append], to: app },
         { name: both, match: { path: /both/* }, filters: [append-request, append], to: app },
         { name: hold, match: { path: /hold/* }, filters: [noop, hold], to: app },
         { name: deny, match: { path: /deny/* }, filters: [deny-request], to: app },
         { name: deny-late, match: { path: /deny-late/* }, filters: [deny-response], to: app },
         { name: fixed, match: { path: /fixed }, filters: [append], respond: { status: 200, body: fixed } }",
    );
    let mut client = Client::connect(edge.web()).await;
    for round in 0..3 {
        let get = client.request("GET /append/a HTTP/1.1\r\nhost: test\r\n\r\n").await;
        assert_eq!((get.status, get.text().as_str()), (200, "GET +app"), "round {round}");
        assert_eq!(get.header("connection"), Some("keep-alive"));

        client.send(b"POST /both/a HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n").await;
        client.send(b"3\r\nabc\r\n").await;
        client.send(b"2\r\nde\r\n0\r\n\r\n").await;
        assert_eq!(client.response("POST").await.text(), "POST abcde+app+app");

        client.send(b"POST /hold/a HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
        client.send(b"0\r\n\r\n").await;
        assert_eq!(client.response("POST").await.text(), "POST abc[held][held]");

        let head = client.request("HEAD /append/a HTTP/1.1\r\nhost: test\r\n\r\n").await;
        assert_eq!((head.status, head.text().as_str()), (200, ""));
        let head = client.request("HEAD /hold/a HTTP/1.1\r\nhost: test\r\n\r\n").await;
        assert_eq!((head.status, head.text().as_str()), (200, ""));
        assert_eq!(client.request("GET /append/empty HTTP/1.1\r\nhost: test\r\n\r\n").await.status, 204);
        assert_eq!(client.request("GET /append/same HTTP/1.1\r\nhost: test\r\n\r\n").await.status, 304);

        assert_eq!(
            client.request("GET /deny/a HTTP/1.1\r\nhost: test\r\n\r\n").await.text(),
            "denied in request_headers\n"
        );
        assert_eq!(client.request("HEAD /deny/a HTTP/1.1\r\nhost: test\r\n\r\n").await.status, 403);
        assert_eq!(
            client.request("GET /deny-late/a HTTP/1.1\r\nhost: test\r\n\r\n").await.text(),
            "denied in response_headers\n"
        );
        assert_eq!(client.request("HEAD /deny-late/a HTTP/1.1\r\nhost: test\r\n\r\n").await.status, 403);
        assert_eq!(client.request("GET /fixed HTTP/1.1\r\nhost: test\r\n\r\n").await.text(), "fixed+app");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_answer_on_a_filtered_route_says_that_it_closes_and_closes() {
    let (gone, _task) = Origin::raw(|stream| async move { drop(stream) }).await;
    let edge = edge(
        gone,
        "{ name: trap, match: { path: /trap }, filters: [trap], to: app },
         { name: gone, match: { path: /gone }, filters: [seen], to: app },
         { name: fine, match: { path: /fine }, filters: [noop], respond: { status: 200, body: fine } }",
    );
    for (path, status) in [("/trap", 503), ("/gone", 502), ("/trap", 503), ("/gone", 502)] {
        let mut client = Client::connect(edge.web()).await;
        let failed = client.request(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        assert_eq!((failed.status, failed.header("connection")), (status, Some("close")), "{path}");
        assert!(client.is_closed().await, "{path}");
        assert_eq!(Client::get(edge.web(), "/fine").await.text(), "fine");
    }
    // The chain runs over answers of our own: what a filter adds to every response is on this one too, once.
    let failed = Client::get(edge.web(), "/gone").await;
    assert_eq!(failed.headers.iter().filter(|(name, _)| name == "x-seen").count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_absolute_form_request_without_host_gets_one() {
    let origin = echo().await;
    let edge = edge(origin.address(), "{ name: all, filters: [noop, append], to: app }");
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET http://app.test:81/x?y HTTP/1.0\r\n\r\n").await;
    let response = client.response("GET").await;
    assert_eq!((response.status, response.text().as_str()), (200, "GET /x?y +app"));
    assert_eq!(origin.last().header("host"), Some("app.test:81"));

    for (request, target) in [
        ("GET http://app.test/x HTTP/1.1\r\nhost: app.test", "/x"),
        ("GET http://app.test HTTP/1.1\r\nhost: app.test", "/"),
        ("GET http://app.test?y HTTP/1.1\r\nhost: app.test", "/?y"),
    ] {
        let response = Client::connect(edge.web()).await.request(&format!("{request}\r\n\r\n")).await;
        assert_eq!(response.status, 200, "{request}");
        // The origin gets the form that origins are sent.
        let last = origin.last();
        assert_eq!((last.header("host"), last.target.as_str()), (Some("app.test"), target), "{request}");
        assert_eq!(last.header(":authority"), None, "{request}");
    }

    // RFC 9112, 3.2.2 would let the target win over the field; Pingora trusts neither.
    let before = origin.started();
    let contradictory = "GET http://app.test/x HTTP/1.1\r\nhost: other.test\r\n\r\n";
    assert_eq!(Client::connect(edge.web()).await.request(contradictory).await.status, 400);
    assert_eq!(origin.started(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_see_one_form_of_target_and_cannot_remove_the_authority() {
    let origin = echo().await;
    let edge = edge(origin.address(), "{ name: all, filters: [no-host, target], to: app }");
    for request in ["GET /x?y HTTP/1.1\r\nhost: app.test", "GET http://app.test/x?y HTTP/1.1\r\nhost: app.test"] {
        let response = Client::connect(edge.web()).await.request(&format!("{request}\r\n\r\n")).await;
        assert_eq!(
            (response.header("x-prop-0"), response.header("x-prop-1")),
            (Some("/x?y"), Some("app.test")),
            "{request}"
        );
        assert_eq!(origin.last().header("host"), Some("app.test"), "{request}");
    }
    let response = H2Client::connect(edge.web()).await.request("GET", "/x?y", &[], b"").await.unwrap();
    assert_eq!((response.header("x-prop-0"), response.header("x-prop-1")), (Some("/x?y"), Some("test")));
    assert_eq!(origin.last().header("host"), Some("test"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_1_0_client_gets_no_chunks_and_the_connection_ends() {
    let origin = Origin::start(|request| {
        let (body, served) = Origin::streaming(200, &[]);
        let text = format!("GET {} ", request.target);
        body.send(text.clone().into()).unwrap();
        if request.target.ends_with("streamed") { served } else { Origin::reply(200, &[], text) }
    })
    .await;
    let edge = edge(
        origin.address(),
        "{ name: plain, match: { path: /plain/* }, to: app }, { name: all, filters: [noop, append], to: app }",
    );
    for (path, text) in [
        ("/plain/a", "GET /plain/a "),
        ("/plain/streamed", "GET /plain/streamed "),
        ("/filtered", "GET /filtered +app"),
        ("/filtered/streamed", "GET /filtered/streamed +app"),
    ] {
        for (more, kept) in [("", false), ("connection: keep-alive\r\n", path == "/plain/a")] {
            let mut client = Client::connect(edge.web()).await;
            client.send(format!("GET {path} HTTP/1.0\r\nhost: test\r\n{more}\r\n").as_bytes()).await;
            let response = client.response("GET").await;
            assert_eq!((response.status, response.text().as_str()), (200, text), "{more}");
            assert_eq!(response.header("transfer-encoding"), None, "{path} {more}");
            // Without chunks and without a length, the end of the connection is the end of the body.
            assert_eq!(response.header("connection"), Some(if kept { "keep-alive" } else { "close" }), "{path} {more}");
            assert!(kept || client.is_closed().await, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_authority_of_a_filter_does_not_reach_the_origin() {
    let origin = echo().await;
    let edge = edge(
        origin.address(),
        "{ name: authority, match: { path: /authority }, filters: [bad-authority], to: app },
         { name: host, match: { path: /host }, filters: [noop, bad-host], to: app }",
    );
    for path in ["/authority", "/host"] {
        let response = Client::get(edge.web(), path).await;
        assert!(response.status >= 500, "{path}: {}", response.status);
        let response = H2Client::connect(edge.web()).await.request("GET", path, &[], b"").await.unwrap();
        assert!(response.status >= 500, "{path} over HTTP/2: {}", response.status);
    }
    assert_eq!(origin.started(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_ended_by_close_still_ends_for_a_holding_filter() {
    let (origin, _task) = Origin::raw(|mut stream| async move {
        if read_request(&mut stream).await.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nabc").await.unwrap();
        }
    })
    .await;
    let edge = edge(
        origin,
        "{ name: hold, match: { path: /hold }, filters: [noop, hold, noop], to: app },
         { name: append, match: { path: /append }, filters: [append], to: app }",
    );
    let held = Client::get(edge.web(), "/hold").await;
    assert_eq!((held.text().as_str(), held.header("x-held-len")), ("abc[held]", Some("3")));
    assert_eq!(Client::get(edge.web(), "/append").await.text(), "abc+app");
    let h2 = H2Client::connect(edge.web()).await;
    assert_eq!(h2.request("GET", "/hold", &[], b"").await.unwrap().text(), "abc[held]");
    assert_eq!(h2.request("GET", "/append", &[], b"").await.unwrap().text(), "abc+app");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_after_a_101_is_filtered() {
    let (origin, _task) = Origin::raw(|mut stream| async move {
        let Some((head, _)) = read_request(&mut stream).await else { return };
        assert!(head.contains("upgrade: websocket"), "{head}");
        let switch = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhello";
        stream.write_all(switch).await.unwrap();
        let mut buffer = [0; 64];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..read]).await.unwrap();
        }
    })
    .await;
    let edge = edge(
        origin,
        "{ name: append, match: { path: /append }, filters: [append-request, append, seen], to: app },
         { name: hold, match: { path: /hold }, filters: [hold, seen], to: app }",
    );
    for path in ["/append", "/hold"] {
        let mut client = Client::connect(edge.web()).await;
        let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13";
        let switched = client.request(&format!("GET {path} HTTP/1.1\r\nhost: test\r\n{upgrade}\r\n\r\n")).await;
        assert_eq!((switched.status, switched.header("x-seen")), (101, Some("yes")), "{path}");
        let mut seen = Vec::new();
        for (sent, whole) in [("", "hello"), ("one", "helloone"), (" two", "helloone two")] {
            client.send(sent.as_bytes()).await;
            while seen.len() < whole.len() {
                let more = client.some().await.unwrap();
                assert!(!more.is_empty(), "{path}: closed after {:?}", String::from_utf8_lossy(&seen));
                seen.extend(more);
            }
            assert_eq!(String::from_utf8_lossy(&seen), whole, "{path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_dies_while_its_header_is_held_is_a_502_without_that_header() {
    let (origin, _task) = Origin::raw(|mut stream| async move {
        if read_request(&mut stream).await.is_some() {
            stream.write_all(b"HTTP/1.1 200 OK\r\nx-origin: yes\r\ncontent-length: 10\r\n\r\nabc").await.unwrap();
        }
    })
    .await;
    let edge = edge(
        origin,
        "{ name: all, filters: [hold-response, seen], to: app },
         { name: \"cached-${ID}\", match: { path: /cached }, filters: [hold-response, seen], cache: { ttl: 1m }, to: app }",
    );
    let mut client = Client::connect(edge.web()).await;
    let failed = client.request("GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    assert_eq!((failed.status, failed.text().as_str()), (502, "502 Bad Gateway\n"));
    assert_eq!(failed.header("connection"), Some("close"));
    // The chain has seen a response of this exchange already: the answer in its place does not enter it again.
    assert_eq!((failed.header("x-origin"), failed.header("x-seen"), failed.header("x-held-len")), (None, None, None));
    assert!(client.is_closed().await);

    let h2 = H2Client::connect_tls(edge.secure(), "localhost").await;
    for path in ["/", "/", "/cached", "/cached"] {
        let over_h2 = h2.request("GET", path, &[], b"").await.unwrap();
        for failed in [over_h2, Client::get(edge.web(), path).await] {
            let seen = failed.headers.iter().filter(|(name, _)| name == "x-seen").count();
            // While the cache is filled, the origin may be known to be dead before the chain sees its header.
            let may_be_seen = if path == "/cached" { 1 } else { 0 };
            assert_eq!((failed.status, failed.header("x-origin")), (502, None), "{path}");
            assert!(seen <= may_be_seen, "{path}: {failed:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_does_not_wait_for_the_upload() {
    let (origin, _task) = Origin::raw(|mut stream| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        // Answers without waiting for the body, where it is asked to answer at all.
        if head.starts_with(b"POST /response") {
            stream.write_all(&answer("early")).await.unwrap();
        }
        while let Ok(1..) = stream.read(&mut [0; 64]).await {}
    })
    .await;
    let edge = edge(
        origin,
        "{ name: request, match: { path: /request }, filters: [deny-request], to: app },
         { name: upload, match: { path: /upload }, filters: [deny-upload], to: app },
         { name: held, match: { path: /held }, filters: [deny-upload, hold-request], to: app },
         { name: response, match: { path: /response }, filters: [deny-response], to: app }",
    );
    let h2 = H2Client::connect(edge.web()).await;
    for (path, phase) in [
        ("/request", "request_headers"),
        ("/upload", "request_body"),
        ("/held", "request_body"),
        ("/response", "response_headers"),
    ] {
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\nfirst").as_bytes()).await;
        let denied = client.response("POST").await;
        assert_eq!((denied.status, denied.text()), (403, format!("denied in {phase}\n")), "{path}");
        assert_eq!(denied.header("x-denied-in"), Some(phase));

        let (response, mut upload) = h2.open("POST", path, &[], false).await.unwrap();
        // The answer may come before this is sent.
        let _ = upload.send_data(Bytes::from_static(b"first"), false);
        let denied = H2Client::collect(soon("the reply", response).await.unwrap()).await.unwrap();
        assert_eq!((denied.status, denied.text()), (403, format!("denied in {phase}\n")), "{path} over HTTP/2");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interim_response_in_the_packet_of_a_cacheable_one_reaches_the_client_once() {
    let (origin, _task) = Origin::raw(|mut stream| async move {
        while read_request(&mut stream).await.is_some() {
            let packet = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n\
                          HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(packet.as_bytes()).await.unwrap();
        }
    })
    .await;
    let edge = edge(
        origin,
        "{ name: \"cached-${ID}\", match: { path: /cached }, filters: [append, seen], cache: {}, to: app },
         { name: plain, match: { path: /plain }, filters: [append, seen], to: app },
         { name: \"bare-${ID}\", match: { path: /bare }, cache: {}, to: app }",
    );
    let mut client = Client::connect(edge.web()).await;
    for (path, interims) in [("/cached", 1), ("/cached", 0), ("/plain", 1), ("/plain", 1), ("/bare", 1), ("/bare", 0)] {
        client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
        for _ in 0..interims {
            let interim = client.any_response("GET").await;
            assert_eq!((interim.status, interim.header("link")), (103, Some("</a.css>; rel=preload")), "{path}");
            assert_eq!(interim.header("x-seen"), None);
        }
        let last = client.any_response("GET").await;
        let expected = if path == "/bare" { ("ok", None) } else { ("ok+app", Some("yes")) };
        assert_eq!((last.status, (last.text().as_str(), last.header("x-seen"))), (200, expected), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_background_revalidation_does_not_run_the_chain() {
    let fetches = Arc::new(AtomicUsize::new(0));
    let origin = {
        let fetches = Arc::clone(&fetches);
        Origin::start(move |_| match fetches.fetch_add(1, Ordering::SeqCst) {
            0 => Origin::reply(200, &[("cache-control", "max-age=0, stale-while-revalidate=60")], "old"),
            _ => Origin::reply(200, &[("cache-control", "max-age=60")], "new"),
        })
        .await
    };
    let edge = edge(origin.address(), "{ name: \"all-${ID}\", filters: [shared], cache: {}, to: app }");
    let first = Client::get(edge.web(), "/").await;
    assert_eq!((first.text().as_str(), first.header("x-count")), ("old", Some("1")));
    let mut count = 1;
    soon("the revalidation", async {
        loop {
            count += 1;
            let next = Client::get(edge.web(), "/").await;
            // One more for every request of a client, and none for the one in the background.
            assert_eq!(next.header("x-count"), Some(count.to_string().as_str()));
            if next.text() == "new" {
                return;
            }
        }
    })
    .await;
    assert!(count > 2, "the second answer is the stale one");
    assert_eq!(fetches.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let (gate, side) = gated().await;
    let origin = echo().await;
    let edge = edge_with_callout(
        origin.address(),
        side.address(),
        "{ name: callout, match: { path: /callout/* }, filters: [callout, append], to: app },
         { name: append, match: { path: /append/* }, filters: [noop, append], to: app },
         { name: hold, match: { path: /hold/* }, filters: [hold], to: app },
         { name: deny, match: { path: /deny/* }, filters: [deny-request], to: app }",
    );
    let mut client = Client::connect(edge.web()).await;
    client
        .send(
            b"GET /append/1 HTTP/1.1\r\nhost: test\r\n\r\n\
              POST /hold/2 HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc\
              GET /deny/3 HTTP/1.1\r\nhost: test\r\n\r\n\
              GET /callout/4 HTTP/1.1\r\nhost: test\r\n\r\n",
        )
        .await;
    assert_eq!(client.response("GET").await.text(), "GET /append/1 +app");
    assert_eq!(client.response("POST").await.text(), "POST /hold/2 abc[held][held]");
    assert_eq!(client.response("GET").await.status, 403);
    // These arrive while the one before them is paused, and being watched for the client going away.
    until("the filter asks", || side.started() == 1).await;
    client
        .send(
            b"GET /append/5 HTTP/1.1\r\nhost: test\r\n\r\n\
              GET /callout/6 HTTP/1.1\r\nhost: test\r\n\r\n",
        )
        .await;
    gate.add_permits(1);
    assert_eq!(client.response("GET").await.text(), "GET /callout/4 +app");
    assert_eq!(client.response("GET").await.text(), "GET /append/5 +app");
    gate.add_permits(1);
    assert_eq!(client.response("GET").await.text(), "GET /callout/6 +app");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_a_filter_is_paused_ends_the_exchange() {
    let (side, side_task) = Origin::raw(|mut stream| async move {
        // Never answers.
        while read_request(&mut stream).await.is_some() {}
    })
    .await;
    let origin = echo().await;
    let edge = edge_with_callout(
        origin.address(),
        side,
        "{ name: paused, match: { path: /paused }, filters: [ledger, callout], to: app },
         { name: count, match: { path: /count }, filters: [ledger], to: app }",
    );
    let mut ledger = Ledger::connect(&edge).await;
    let mut gone = Client::connect(edge.web()).await;
    gone.send(b"GET /paused HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let h2 = H2Client::connect(edge.web()).await;
    let (_response, mut stream) = h2.open("GET", "/paused", &[], true).await.unwrap();
    ledger.until((2, 0)).await;

    drop(gone);
    stream.send_reset(h2::Reason::CANCEL);
    ledger.until((2, 2)).await;
    assert!(origin.received().iter().all(|request| request.target == "/count"));
    side_task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_the_response_is_held_ends_the_exchange() {
    let (body, served) = Origin::streaming(200, &[]);
    let served = Arc::new(parking_lot::Mutex::new(Some(served)));
    let origin = Origin::start(move |request| match request.target.as_str() {
        "/held" => served.lock().take().unwrap(),
        _ => Origin::reply(200, &[], ""),
    })
    .await;
    let edge = edge(
        origin.address(),
        "{ name: held, match: { path: /held }, filters: [ledger, hold-response], to: app },
         { name: count, match: { path: /count }, filters: [ledger], to: app }",
    );
    let mut gone = Client::connect(edge.web()).await;
    gone.send(b"GET /held HTTP/1.1\r\nhost: test\r\n\r\n").await;
    body.send(Bytes::from_static(b"some")).unwrap();
    until("the origin answers", || origin.started() == 1).await;
    drop(gone);
    Ledger::connect(&edge).await.until((1, 1)).await;
    until("the origin's connection is given up", || body.is_closed()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_under_way_survives_a_graceful_stop() {
    let (gate, origin) = gated().await;
    let mut edge = Edge::start(
        &format!(
            "version: 1
node: {{ name: edge, workers: 2, shutdown_grace: 30s }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\", protocols: [h1, h2] }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}{FILTERS}sites: [{{ hosts: [\"*\"], routes: [{{ name: all, filters: [hold-response, append], to: app }},
  {{ name: fixed, match: {{ path: /fixed }}, filters: [append], respond: {{ status: 200, body: fixed }} }}] }}]"
        ),
        &[("app", origin.address())],
    );
    let mut h1 = Client::connect(edge.web()).await;
    h1.send(b"GET /h1 HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let h2 = H2Client::connect(edge.web()).await;
    let (response, _) = h2.open("GET", "/h2", &[], true).await.unwrap();
    let mut idle = Client::connect(edge.web()).await;
    assert_eq!(idle.request("GET /fixed HTTP/1.1\r\nhost: test\r\n\r\n").await.text(), "fixed+app");
    until("both are under way", || origin.started() == 2).await;

    let stopped = edge.stop();
    assert!(idle.is_closed().await, "an idle connection ends when the node stops");
    gate.add_permits(2);
    assert_eq!(h1.response("GET").await.text(), "/h1 +app[held]");
    assert!(h1.is_closed().await, "no further request is taken");
    assert_eq!(H2Client::collect(soon("h2 response", response).await.unwrap()).await.unwrap().text(), "/h2 +app[held]");
    drop(h2);
    soon("the node stops", tokio::task::spawn_blocking(|| stopped.join().unwrap())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_of_one_connection_pass_the_chain_side_by_side() {
    // As many as a connection may have.
    const STREAMS: usize = 100;
    let (gate, side) = gated().await;
    let origin = echo().await;
    let edge = edge_with_callout(
        origin.address(),
        side.address(),
        "{ name: all, filters: [noop, append-request, callout, hold-response], to: app }",
    );
    for h2 in [H2Client::connect(edge.web()).await, H2Client::connect_tls(edge.secure(), "localhost").await] {
        let before = side.started();
        let requests = join_all((0..STREAMS).map(async |index| {
            let body = format!("body {index}");
            (index, h2.request("POST", &format!("/{index}"), &[], body.as_bytes()).await.unwrap())
        }));
        let (responses, ()) = futures::join!(requests, async {
            until("all are paused", || side.started() >= before + STREAMS).await;
            gate.add_permits(STREAMS);
        });
        for (index, response) in responses {
            assert_eq!(response.text(), format!("POST /{index} body {index}+app[held]"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_read_ahead_is_sent_again_when_a_pooled_connection_turns_out_closed() {
    let connections = Arc::new(AtomicUsize::new(0));
    let requests = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let (origin, _task) = {
        let (connections, requests) = (Arc::clone(&connections), Arc::clone(&requests));
        Origin::raw(move |mut stream| {
            let first = connections.fetch_add(1, Ordering::SeqCst) == 0;
            let requests = Arc::clone(&requests);
            async move {
                while let Some((head, body)) = read_request(&mut stream).await {
                    let target = head.split(' ').nth(1).unwrap().to_owned();
                    requests.lock().push(format!("{target} {body}"));
                    if first && target != "/warm" {
                        return; // Closed under the request, without a word.
                    }
                    stream.write_all(&answer(&body)).await.unwrap();
                }
            }
        })
        .await
    };
    let edge = edge(
        origin,
        "{ name: warm, match: { path: /warm }, filters: [noop], to: app },
         { name: hold, match: { path: /hold }, filters: [hold-request, append], to: app }",
    );
    let twice = ["/warm warm", "/hold abcdef[held]", "/hold abcdef[held]"];
    let mut client = Client::connect(edge.web()).await;
    let warm = "PUT /warm HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nwarm";
    assert_eq!(client.request(warm).await.status, 200);
    client.send(b"PUT /hold HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").await;
    client.send(b"3\r\ndef\r\n0\r\n\r\n").await;
    let response = client.response("PUT").await;
    assert_eq!((response.status, response.text().as_str()), (200, "abcdef[held]+app"));
    assert_eq!(*requests.lock(), twice);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_a_filter_let_go_early_streams_on_behind_its_beginning() {
    let origin = echo().await;
    let edge = edge(
        origin.address(),
        "{ name: alone, match: { path: /alone }, filters: [peek], to: app },
         { name: first, match: { path: /first }, filters: [peek, append-request], to: app },
         { name: last, match: { path: /last }, filters: [append-request, noop, peek], to: app },
         { name: held, match: { path: /held }, filters: [peek, hold-request], to: app }",
    );
    for (path, added) in [("/alone", ""), ("/first", "+app"), ("/last", "+app"), ("/held", "[held]")] {
        let check = |how: &str, text: String, sent: &str| {
            assert_eq!(text, format!("POST {path} {sent}{added}"), "{how}");
            assert_eq!(origin.last().header("x-peeked"), Some(&sent[..4]), "{path} {how}");
        };
        let long = "0123456789".repeat(20_000);
        let known = Client::post(edge.web(), path, "", long.as_bytes()).await;
        check("known length", known.text(), &long);
        let h2 = H2Client::connect(edge.web()).await;

        // The rest is sent when the origin has begun to get the request; when a filter holds it, at once.
        let begun = origin.started();
        let mut client = Client::connect(edge.web()).await;
        client
            .send(
                format!("POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n")
                    .as_bytes(),
            )
            .await;
        if path != "/held" {
            until("the origin is asked", || origin.started() == begun + 1).await;
        }
        for _ in 0..3 {
            client.send(b"5\r\n more\r\n").await;
        }
        client.send(b"0\r\n\r\n").await;
        check("chunked", client.response("POST").await.text(), "four more more more");

        let begun = origin.started();
        let (response, mut upload) = h2.open("POST", path, &[], false).await.unwrap();
        upload.send_data(Bytes::from_static(b"four"), false).unwrap();
        if path != "/held" {
            until("the origin is asked", || origin.started() == begun + 1).await;
        }
        upload.send_data(Bytes::from_static(b" more"), false).unwrap();
        upload.send_data(Bytes::from_static(b" more"), true).unwrap();
        let text = H2Client::collect(soon("h2 response", response).await.unwrap()).await.unwrap().text();
        check("HTTP/2", text, "four more more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_during_a_held_upload_leaves_nothing_behind() {
    let origin = echo().await;
    let edge = edge(
        origin.address(),
        "{ name: held, match: { path: /held }, filters: [ledger, hold-request], to: app },
         { name: count, match: { path: /count }, filters: [ledger], to: app }",
    );
    let mut ledger = Ledger::connect(&edge).await;
    let mut gone = Client::connect(edge.web()).await;
    gone.send(b"POST /held HTTP/1.1\r\nhost: test\r\ncontent-length: 100\r\n\r\nsome").await;
    let h2 = H2Client::connect(edge.web()).await;
    let (_response, mut upload) = h2.open("POST", "/held", &[], false).await.unwrap();
    upload.send_data(Bytes::from_static(b"some"), false).unwrap();
    ledger.until((2, 0)).await;
    drop(gone);
    upload.send_reset(h2::Reason::CANCEL);
    ledger.until((2, 2)).await;
    assert!(origin.received().iter().all(|request| request.target == "/count"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_upgrade_is_filtered_like_any_response() {
    let origin = echo().await;
    let edge = edge(origin.address(), "{ name: all, filters: [append, hold-response], to: app }");
    let mut client = Client::connect(edge.web()).await;
    for _ in 0..2 {
        let request = "GET /x HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        assert_eq!(client.request(request).await.text(), "GET /x [held]+app");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_waits_for_100_continue_gets_it_when_the_body_is_read_ahead() {
    let origin = echo().await;
    let edge = edge(
        origin.address(),
        "{ name: held, match: { path: /held }, filters: [hold-request], to: app },
         { name: stream, match: { path: /stream }, filters: [append-request], to: app },
         { name: deny, match: { path: /deny }, filters: [deny-request], to: app }",
    );
    for (path, added) in [("/held", "[held]"), ("/stream", "+app")] {
        let mut client = Client::connect(edge.web()).await;
        let expect = "expect: 100-continue\r\ncontent-length: 3\r\n\r\n";
        client.send(format!("POST {path} HTTP/1.1\r\nhost: test\r\n{expect}").as_bytes()).await;
        assert_eq!(client.any_response("POST").await.status, 100, "{path}");
        client.send(b"abc").await;
        assert_eq!(client.any_response("POST").await.text(), format!("POST {path} abc{added}"));
        // Whoever has sent it is the only one.
        assert_eq!(origin.last().header("expect").is_some(), path == "/stream", "{path}");
    }
    let mut client = Client::connect(edge.web()).await;
    client.send(b"POST /deny HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await;
    assert_eq!(client.any_response("POST").await.status, 403, "no invitation to send what nobody wants");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_goes_on_when_the_rest_of_an_answered_upload_arrives() {
    let origin = Origin::start(|request| Origin::reply(200, &[], request.target.clone())).await;
    let edge = edge(
        origin.address(),
        "{ name: deny, match: { path: /deny }, filters: [deny-request], to: app },
         { name: fixed, match: { path: /fixed }, filters: [append], respond: { status: 200, body: fixed } },
         { name: all, filters: [append], to: app }",
    );
    let mut client = Client::connect(edge.web()).await;
    for (path, status, text) in [("/deny", 403, "denied in request_headers\n"), ("/fixed", 200, "fixed+app")] {
        client.send(format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nfirst").as_bytes()).await;
        let early = client.response("POST").await;
        assert_eq!((early.status, early.text().as_str()), (status, text));
        if early.header("connection") == Some("close") {
            assert!(client.is_closed().await, "{path}");
            client = Client::connect(edge.web()).await;
        } else {
            client.send(b" last").await;
        }
        assert_eq!(client.request("GET /next HTTP/1.1\r\nhost: test\r\n\r\n").await.text(), "/next+app", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_dies_while_a_filter_asks_is_a_502() {
    let (gate, side) = gated().await;
    let dies = Arc::new(Semaphore::new(0));
    let (origin, _task) = {
        let dies = Arc::clone(&dies);
        Origin::raw(move |mut stream| {
            let dies = Arc::clone(&dies);
            async move {
                if read_request(&mut stream).await.is_some() {
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc").await.unwrap();
                    dies.acquire().await.unwrap().forget();
                }
            }
        })
        .await
    };
    let edge = Edge::start(
        &format!(
            "upstreams:
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
  side: {{ endpoints: [\"127.0.0.1:${{PORT_side}}\"] }}{FILTERS}
  ask: {{ wasm: \"file:${{GUESTS}}/callout.wasm\", config: response_headers side /ask, limits: {{ deadline: 10s }} }}
sites: [{{ hosts: [\"*\"], routes: [
  {{ name: all, filters: [ledger, ask, hold-response], to: app }},
  {{ name: count, match: {{ path: /count }}, filters: [ledger], respond: {{ status: 200 }} }},
  {{ name: early, match: {{ path: /early }}, filters: [ledger, ask], to: app }}] }}]"
        ),
        &[("app", origin), ("side", side.address())],
    );
    let mut ledger = Ledger::connect(&edge).await;
    // Holding: the filter that asks has not seen the header when the origin dies.
    dies.add_permits(1);
    assert_eq!(Client::get(edge.web(), "/held").await.status, 502);
    ledger.until((1, 1)).await;
    // Asking: the origin dies meanwhile. Whichever is noticed first, what comes back is no whole response of the origin's.
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET /early HTTP/1.1\r\nhost: test\r\n\r\n").await;
    until("the filter asks", || side.started() == 1).await;
    dies.add_permits(1);
    gate.add_permits(1);
    if let Ok(response) = client.try_response("GET").await {
        assert_eq!(response.status, 502);
    }
    ledger.until((2, 2)).await;
}
