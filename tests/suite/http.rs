//! HTTP as clients and origins speak it, with and without a chain of filters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::{FutureExt, SinkExt, StreamExt};
use selvedge_tests::{Client, Edge, Origin, Response, Served, h2::H2Client, soon, until};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Barrier, Semaphore, mpsc};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

/// One route without filters, one with a chain that looks at everything and changes nothing.
const WAYS: [&str; 2] = ["/plain", "/chain"];

/// The two ways to an upstream `app`, as the test describes it.
fn two_ways(upstream: &str) -> String {
    format!(
        "upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"]{upstream} }} }}
filters:
  first: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }}
  second: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }}
  hold: {{ wasm: \"file:${{GUESTS}}/hold.wasm\", config: request, limits: {{ deadline: 5s }} }}
  trailers: {{ wasm: \"file:${{GUESTS}}/trailers.wasm\", limits: {{ deadline: 5s }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: plain, match: {{ path: /plain/* }}, to: app }}
      - {{ name: chain, match: {{ path: /chain/* }}, filters: [first, second], to: app }}
      - {{ name: hold, match: {{ path: /hold/* }}, filters: [first, hold, second], to: app }}
      - {{ name: trailers, match: {{ path: /trailers/* }}, filters: [first, trailers, second], to: app }}
"
    )
}

fn edge_before(address: SocketAddr) -> Edge {
    Edge::start(&two_ways(""), &[("app", address)])
}

/// Settings of a node with listeners of its own.
fn node(settings: &str, listener: &str) -> String {
    let modules = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-modules");
    format!(
        "version: 1
node: {{ name: edge, module_cache: \"{modules}\", {settings} }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\"{listener} }}
"
    )
}

/// An origin that says what it was asked: method, target, body.
async fn echo() -> Origin {
    Origin::start(|request| {
        let mut body = format!("{} {} ", request.method, request.target).into_bytes();
        body.extend_from_slice(&request.body);
        Origin::reply(200, &[("x-origin", "yes")], body)
    })
    .await
}

/// An origin that streams: every request hands the test the sender of its response body.
async fn streaming() -> (Origin, mpsc::UnboundedReceiver<mpsc::UnboundedSender<Bytes>>) {
    let (hand_over, senders) = mpsc::unbounded_channel();
    let origin = Origin::start(move |_| {
        let (sender, served) = Origin::streaming(200, &[("content-type", "text/event-stream")]);
        let _ = hand_over.send(sender);
        served
    })
    .await;
    (origin, senders)
}

/// An origin that answers every connection with these bytes as soon as a request header is there, and closes it.
async fn saying(bytes: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<()>) {
    Origin::raw(move |mut stream| async move {
        if read_head(&mut stream).await.is_some() {
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
        }
    })
    .await
}

/// Reads a request header without a body from a raw connection; `None` = it was closed.
async fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Reads until the text is there.
async fn read_until(client: &mut Client, text: &str) -> String {
    let mut read = String::new();
    while !read.contains(text) {
        let bytes = client.some().await.expect("the connection is open");
        assert!(!bytes.is_empty(), "the connection ended before {text:?}: {read:?}");
        read.push_str(&String::from_utf8_lossy(&bytes));
    }
    read
}

/// Reads until the other side closes or resets.
async fn read_all(client: &mut Client) -> String {
    let mut read = Vec::new();
    while let Ok(bytes) = client.some().await {
        if bytes.is_empty() {
            break;
        }
        read.extend_from_slice(&bytes);
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// Bytes that are not the same twice in a row, whatever the size of a chunk.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_u32;
    let mut bytes = Vec::with_capacity(length + 4);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn proxy_status(response: &Response) -> &str {
    response.header("proxy-status").unwrap_or("(none)")
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_reused_on_both_sides() {
    let connections = Arc::new(AtomicUsize::new(0));
    let (address, _origin) = {
        let connections = Arc::clone(&connections);
        Origin::raw(move |mut stream| {
            connections.fetch_add(1, Ordering::SeqCst);
            async move {
                while read_head(&mut stream).await.is_some() {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            }
        })
        .await
    };
    let edge = edge_before(address);
    let mut client = Client::connect(edge.web()).await;
    for turn in 0..20 {
        let response = client.request(&format!("GET {}/{turn} HTTP/1.1\r\nhost: test\r\n\r\n", WAYS[turn % 2])).await;
        assert_eq!((response.status, response.text().as_str()), (200, "ok"));
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);

    let last = client.request("GET /chain/ HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").await;
    assert_eq!(last.text(), "ok");
    assert!(client.is_closed().await);
}

#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let origin = echo().await;
    let edge = edge_before(origin.address());
    for order in [
        ["plain", "plain", "plain"],
        ["chain", "chain", "chain"],
        ["plain", "chain", "plain"],
        ["hold", "plain", "chain"],
    ] {
        let [first, second, third] = order;
        let mut client = Client::connect(edge.web()).await;
        let packet = format!(
            "GET /{first}/1 HTTP/1.1\r\nhost: test\r\n\r\n\
             POST /{second}/2 HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nbody\
             GET /{third}/3 HTTP/1.1\r\nhost: test\r\n\r\n"
        );
        client.send(packet.as_bytes()).await;
        assert_eq!(client.response("GET").await.text(), format!("GET /{first}/1 "), "{order:?}");
        assert_eq!(client.response("POST").await.text(), format!("POST /{second}/2 body"), "{order:?}");
        assert_eq!(client.response("GET").await.text(), format!("GET /{third}/3 "), "{order:?}");
        let more = client.request(&format!("GET /{first}/4 HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        assert_eq!(more.text(), format!("GET /{first}/4 "), "{order:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expectation_reaches_the_origin_unless_a_filter_wants_the_body_first() {
    let origin = echo().await;
    let edge = edge_before(origin.address());
    for (way, forwarded, body) in [("plain", true, "hello"), ("chain", true, "hello"), ("hold", false, "hello[held]")] {
        let mut client = Client::connect(edge.web()).await;
        let head = format!("POST /{way}/ HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
        client.send(head.as_bytes()).await;
        assert_eq!(client.any_response("POST").await.status, 100, "{way}");
        client.send(b"hello").await;
        let response = client.any_response("POST").await;
        assert_eq!((response.status, response.text()), (200, format!("POST /{way}/ {body}")));
        assert_eq!(origin.last().header("expect").is_some(), forwarded, "{way}");
        assert_eq!(response.header("connection"), Some("keep-alive"), "{way}");
        assert_eq!(client.request("GET /plain/ HTTP/1.1\r\nhost: test\r\n\r\n").await.status, 200, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_may_refuse_an_expectation() {
    let (address, _origin) =
        saying(b"HTTP/1.1 417 Expectation Failed\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno").await;
    let edge = edge_before(address);
    for way in WAYS {
        let mut client = Client::connect(edge.web()).await;
        let head = format!("POST {way}/ HTTP/1.1\r\nhost: test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n");
        client.send(head.as_bytes()).await;
        let response = client.any_response("POST").await;
        assert_eq!((response.status, response.text().as_str()), (417, "no"), "{way}");
    }
}

const DEMO: &str = "upstreams: { demo: { builtin: demo } }
filters:
  first: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 5s } }
  second: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 5s } }
sites:
  - { hosts: [plain.test], routes: [{ name: plain, to: demo }] }
  - { hosts: [chain.test], routes: [{ name: chain, filters: [first, second], to: demo }] }
";

async fn talk_over_websocket(host: &str, io: impl AsyncRead + AsyncWrite + Unpin) {
    let (mut socket, response) =
        soon("the upgrade", tokio_tungstenite::client_async(format!("ws://{host}/ws"), io)).await.expect("upgraded");
    assert_eq!(response.status(), 101);

    let large = Bytes::from(noise(64 * 1024));
    for message in [Message::text("hello"), Message::binary(large), Message::text(""), Message::text("again")] {
        socket.send(message.clone()).await.expect("sent");
        let answer = soon("an echo", socket.next()).await.expect("open").expect("a message");
        assert!(answer == message, "{host}: an echo of {} bytes came back as {}", message.len(), answer.len());
    }
    socket.send(Message::Ping(Bytes::from_static(b"p"))).await.expect("sent");
    assert_eq!(
        soon("a pong", socket.next()).await.expect("open").expect("a message"),
        Message::Pong(Bytes::from_static(b"p"))
    );

    let goodbye = CloseFrame { code: CloseCode::Normal, reason: "bye".into() };
    socket.close(Some(goodbye.clone())).await.expect("sent");
    assert_eq!(
        soon("the close", socket.next()).await.expect("open").expect("a message"),
        Message::Close(Some(goodbye))
    );
    assert!(soon("the end", socket.next()).await.is_none());
}

/// Makes a stream of a client, so that another protocol can be spoken over its connection.
fn stream_over(mut client: Client) -> tokio::io::DuplexStream {
    let (near, mut far) = tokio::io::duplex(64 * 1024);
    tokio::spawn(async move {
        let mut upload = vec![0; 16 * 1024];
        loop {
            tokio::select! {
                read = far.read(&mut upload) => match read {
                    Ok(read) if read > 0 => client.send(&upload[..read]).await,
                    _ => return,
                },
                bytes = client.some() => match bytes {
                    Ok(bytes) if !bytes.is_empty() => if far.write_all(&bytes).await.is_err() { return },
                    _ => return,
                },
            }
        }
    });
    near
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_pass_with_and_without_filters_and_tls() {
    let edge = Edge::start(DEMO, &[]);
    for host in ["plain.test", "chain.test"] {
        talk_over_websocket(host, TcpStream::connect(edge.web()).await.unwrap()).await;
        talk_over_websocket(host, stream_over(Client::connect_tls(edge.secure(), host, &["http/1.1"]).await)).await;

        // An upgrade that the origin refuses is an ordinary exchange.
        let mut client = Client::connect(edge.web()).await;
        let refused = client.request(&format!("GET /ws HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!((refused.status, refused.header("upgrade")), (426, Some("websocket")), "{host}");
        assert_eq!(client.request(&format!("GET /upstream HTTP/1.1\r\nhost: {host}\r\n\r\n")).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_not_held_back() {
    let (origin, mut senders) = streaming().await;
    let edge = edge_before(origin.address());
    for way in WAYS {
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("GET {way}/ HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
        let events = soon("the request", senders.recv()).await.unwrap();
        let (status, headers) = client.head().await.expect("the header comes before any event");
        assert_eq!(status, 200);
        assert!(headers.contains(&("transfer-encoding".into(), "chunked".into())), "{way}: {headers:?}");
        for event in ["data: one\n\n", "data: two\n\n", "data: three\n\n"] {
            events.send(event.into()).unwrap();
            read_until(&mut client, event).await;
        }
        drop(events);
        read_until(&mut client, "0\r\n\r\n").await;

        let h2 = H2Client::connect(edge.web()).await;
        let (response, _upload) = h2.open("GET", &format!("{way}/"), &[], true).await.unwrap();
        let events = soon("the request", senders.recv()).await.unwrap();
        let mut body = soon("the header", response).await.unwrap().into_body();
        for event in ["data: one\n\n", "data: two\n\n"] {
            events.send(event.into()).unwrap();
            assert_eq!(soon("an event", body.data()).await.unwrap().unwrap(), event, "{way}");
        }
        drop(events);
        while let Some(rest) = soon("the end", body.data()).await {
            assert_eq!(rest.unwrap(), "", "{way}");
        }
    }
}

fn grpc(target: &str) -> Served {
    let head = [("content-type", "application/grpc")];
    match target.rsplit('/').next() {
        Some("body") => Origin::with_trailers(200, &head, "answer", &[("grpc-status", "0"), ("grpc-message", "fine")]),
        Some("large") => Origin::with_trailers(200, &head, noise(1 << 20), &[("grpc-status", "0")]),
        Some("empty") => Origin::with_trailers(200, &head, "", &[("grpc-status", "5")]),
        _ => http::Response::builder()
            .status(200)
            .header("content-type", "application/grpc")
            .header("grpc-status", "12")
            .body(http_body_util::combinators::BoxBody::new(http_body_util::Empty::new()))
            .expect("a response"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_from_end_to_end_over_http2() {
    let origin = Origin::start(|request| grpc(&request.target)).await;
    let edge = Edge::start(&two_ways(", protocol: h2"), &[("app", origin.address())]);
    let trailer = |response: &Response, name: &str| {
        response.trailers.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };

    for client in [H2Client::connect(edge.web()).await, H2Client::connect_tls(edge.secure(), "localhost").await] {
        for way in ["/plain", "/chain", "/trailers"] {
            let added = (way == "/trailers").then(|| "yes".to_owned());
            let ask = |what: &str| {
                let path = format!("{way}/{what}");
                let client = &client;
                async move { client.request("POST", &path, &[("te", "trailers")], b"question").await.unwrap() }
            };

            let response = ask("body").await;
            assert_eq!((response.status, response.text().as_str()), (200, "answer"), "{way}");
            assert_eq!(trailer(&response, "grpc-status").as_deref(), Some("0"), "{way}");
            assert_eq!(trailer(&response, "grpc-message").as_deref(), Some("fine"), "{way}");
            assert_eq!(trailer(&response, "x-trailer-filtered"), added, "{way}");
            assert_eq!(origin.last().body, "question");

            let response = ask("large").await;
            assert!(response.body == noise(1 << 20), "{way}: {} bytes", response.body.len());
            assert_eq!(trailer(&response, "grpc-status").as_deref(), Some("0"), "{way}");

            let response = ask("empty").await;
            assert_eq!((response.body.len(), trailer(&response, "grpc-status").as_deref()), (0, Some("5")), "{way}");
            assert_eq!(trailer(&response, "x-trailer-filtered"), added, "{way}");

            // "Trailers-Only": one header block that ends the stream.
            let response = ask("only").await;
            assert_eq!((response.status, response.header("grpc-status")), (200, Some("12")), "{way}");
            assert_eq!((response.body.len(), response.trailers.len()), (0, 0), "{way}");
        }
    }

    // HTTP/1 clients get the message without them.
    for way in ["/plain", "/chain", "/trailers"] {
        let mut client = Client::connect(edge.web()).await;
        for _ in 0..2 {
            let response = client.request(&format!("GET {way}/body HTTP/1.1\r\nhost: test\r\n\r\n")).await;
            assert_eq!((response.status, response.text().as_str()), (200, "answer"), "{way}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn responses_without_a_body_keep_the_connection_in_step() {
    let origin = Origin::start(|request| match request.target.rsplit('/').next() {
        Some("none") => Origin::reply(204, &[("x-kind", "none")], ""),
        Some("same") => Origin::reply(304, &[("x-kind", "same"), ("etag", "\"1\"")], ""),
        Some("empty") => Origin::reply(200, &[("x-kind", "empty")], ""),
        _ => Origin::reply(200, &[("x-kind", "some")], "0123456789"),
    })
    .await;
    let edge = edge_before(origin.address());
    for way in WAYS {
        let mut h1 = Client::connect(edge.web()).await;
        let h2 = H2Client::connect(edge.web()).await;
        for (method, path, status, body) in [
            ("HEAD", "some", 200, ""),
            ("GET", "some", 200, "0123456789"),
            ("GET", "none", 204, ""),
            ("HEAD", "none", 204, ""),
            ("GET", "same", 304, ""),
            ("HEAD", "same", 304, ""),
            ("GET", "empty", 200, ""),
            ("HEAD", "empty", 200, ""),
            ("GET", "some", 200, "0123456789"),
        ] {
            let what = format!("{method} {way}/{path}");
            let response = h1.request(&format!("{method} {way}/{path} HTTP/1.1\r\nhost: test\r\n\r\n")).await;
            assert_eq!((response.status, response.text().as_str()), (status, body), "{what}");
            assert_eq!(response.header("x-kind"), Some(path), "{what}");
            assert_eq!(response.header("transfer-encoding"), None, "{what}");
            match (status, path) {
                // RFC 9110, 8.6: not in a 204.
                (204, _) => assert_eq!(response.header("content-length"), None, "{what}"),
                (200, "some") => assert_eq!(response.header("content-length"), Some("10"), "{what}"),
                _ => {}
            }

            let response = h2.request(method, &format!("{way}/{path}"), &[], b"").await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (status, body), "h2 {what}");
            assert_eq!(response.header("x-kind"), Some(path), "h2 {what}");
        }
        assert_eq!(origin.last().target, format!("{way}/some"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_arrive_whole_in_both_directions() {
    const SIZE: usize = 8 << 20;
    let body = noise(SIZE);
    let origin = Origin::start(|request| match request.method.as_str() {
        "PUT" => Origin::reply(200, &[], if request.body == noise(SIZE) { "whole" } else { "damaged" }),
        _ => Origin::reply(200, &[], noise(SIZE)),
    })
    .await;
    let edge = edge_before(origin.address());
    for way in WAYS {
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("PUT {way}/ HTTP/1.1\r\nhost: test\r\ncontent-length: {SIZE}\r\n\r\n").as_bytes()).await;
        client.send(&body).await;
        assert_eq!(client.response("PUT").await.text(), "whole", "{way}");

        client
            .send(format!("PUT {way}/ HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes())
            .await;
        for chunk in body.chunks(300_007) {
            client.send(format!("{:x}\r\n", chunk.len()).as_bytes()).await;
            client.send(chunk).await;
            client.send(b"\r\n").await;
        }
        client.send(b"0\r\n\r\n").await;
        assert_eq!(client.response("PUT").await.text(), "whole", "{way}, chunked");

        let response = client.request(&format!("GET {way}/ HTTP/1.1\r\nhost: test\r\n\r\n")).await;
        assert!(response.body == body, "{way}: {} bytes", response.body.len());

        let h2 = H2Client::connect_tls(edge.secure(), "localhost").await;
        assert_eq!(h2.request("PUT", &format!("{way}/"), &[], &body).await.unwrap().text(), "whole", "h2 {way}");
        let response = h2.request("GET", &format!("{way}/"), &[], b"").await.unwrap();
        assert!(response.body == body, "h2 {way}: {} bytes", response.body.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunked_uploads_are_decoded_and_their_connection_stays_usable() {
    let origin = echo().await;
    let edge = edge_before(origin.address());
    for (way, mark) in [("/plain", ""), ("/chain", ""), ("/hold", "[held]")] {
        let mut client = Client::connect(edge.web()).await;
        let head = format!("POST {way}/ HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");

        client
            .send(
                format!("{head}5\r\nhello\r\n1;name=\"value\"\r\n \r\n005\r\nworld\r\n0\r\nx-after: 1\r\n\r\n")
                    .as_bytes(),
            )
            .await;
        assert_eq!(client.response("POST").await.text(), format!("POST {way}/ hello world{mark}"));

        client.send(format!("{head}0\r\n\r\n").as_bytes()).await;
        assert_eq!(client.response("POST").await.text(), format!("POST {way}/ {mark}"));

        // Byte by byte: no read ends where a chunk does.
        for byte in format!("{head}3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").bytes() {
            client.send(&[byte]).await;
        }
        assert_eq!(client.response("POST").await.text(), format!("POST {way}/ abcde{mark}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_during_an_upload_costs_nobody_else() {
    let origin = echo().await;
    let edge = edge_before(origin.address());
    for way in ["/plain", "/chain", "/hold"] {
        for framing in ["content-length: 1000\r\n\r\nonly this", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
            let before = origin.started();
            let mut client = Client::connect(edge.web()).await;
            client.send(format!("POST {way}/ HTTP/1.1\r\nhost: test\r\n{framing}").as_bytes()).await;
            if way != "/hold" {
                until("the upload has begun", || origin.started() > before).await;
            }
            drop(client);

            let response = Client::post(edge.web(), &format!("{way}/"), "", b"next").await;
            assert_eq!(response.status, 200, "{way}");
            assert!(response.text().starts_with(&format!("POST {way}/ next")), "{way}");
            // What was cut off is never taken for a whole message.
            assert!(
                origin.received().iter().all(|request| request.body.is_empty() || request.body.starts_with(b"next")),
                "{way}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_during_a_download_lets_go_of_the_origin() {
    let (origin, mut senders) = streaming().await;
    let edge = edge_before(origin.address());
    for way in WAYS {
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("GET {way}/ HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
        let body = soon("the request", senders.recv()).await.unwrap();
        body.send("first".into()).unwrap();
        read_until(&mut client, "first").await;
        drop(client);
        // Whether the node sees the close or a failing write first is a matter of timing.
        until("the origin is let go", || body.send(vec![b'x'; 1024].into()).is_err()).await;

        let h2 = H2Client::connect(edge.web()).await;
        let (response, upload) = h2.open("GET", &format!("{way}/"), &[], true).await.unwrap();
        let body = soon("the request", senders.recv()).await.unwrap();
        let response = soon("the header", response).await.unwrap();
        drop((response, upload)); // Resets this stream alone.
        until("the origin is let go", || body.send(vec![b'x'; 1024].into()).is_err()).await;
        let (response, _upload) = h2.open("GET", &format!("{way}/"), &[], true).await.unwrap();
        drop(soon("the request", senders.recv()).await.unwrap());
        assert_eq!(
            soon("the header", response).await.unwrap().status(),
            200,
            "{way}: another stream of the connection"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_refuses_connections_is_a_502() {
    let closed = TcpSocket::new_v4().unwrap();
    closed.bind("127.0.0.1:0".parse().unwrap()).unwrap(); // Held, but nobody listens.
    let edge = edge_before(closed.local_addr().unwrap());
    for way in WAYS {
        let response = Client::get(edge.web(), &format!("{way}/")).await;
        assert_eq!((response.status, response.text().as_str()), (502, "502 Bad Gateway\n"), "{way}");
        assert_eq!(proxy_status(&response), "edge; error=connection_refused", "{way}");
        assert_eq!(response.header("cache-control"), Some("no-store"), "{way}");
        let response = Client::post(edge.web(), &format!("{way}/"), "", b"body").await;
        assert_eq!(response.status, 502, "{way}");
        let response = H2Client::connect(edge.web()).await.request("GET", &format!("{way}/"), &[], b"").await.unwrap();
        assert_eq!((response.status, proxy_status(&response)), (502, "edge; error=connection_refused"), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_never_answers_is_a_504() {
    let (address, _origin) = Origin::raw(|mut stream| async move {
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let edge = Edge::start(&two_ways(", timeouts: { read: 200ms }"), &[("app", address)]);
    for way in ["/plain", "/chain", "/hold"] {
        let response = Client::get(edge.web(), &format!("{way}/")).await;
        assert_eq!((response.status, proxy_status(&response)), (504, "edge; error=connection_read_timeout"), "{way}");
        let response = Client::post(edge.web(), &format!("{way}/"), "", b"body").await;
        assert_eq!(
            (response.status, proxy_status(&response)),
            (504, "edge; error=connection_read_timeout"),
            "POST {way}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_response_is_a_502() {
    for bytes in [
        b"certainly not HTTP\r\n\r\n".as_slice(),
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"",
    ] {
        let shown = String::from_utf8_lossy(bytes);
        let (address, _origin) = saying(bytes).await;
        let edge = edge_before(address);
        for way in WAYS {
            let response = Client::get(edge.web(), &format!("{way}/")).await;
            assert_eq!(response.status, 502, "{way} {shown:?}");
            assert!(
                proxy_status(&response).starts_with("edge; error=http_"),
                "{way} {shown:?}: {}",
                proxy_status(&response)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_is_cut_off_is_cut_off_for_the_client_too() {
    for bytes in [
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc".as_slice(),
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nnonsense\r\n",
    ] {
        let shown = String::from_utf8_lossy(bytes);
        let (address, _origin) = saying(bytes).await;
        let edge = edge_before(address);
        for way in WAYS {
            let mut client = Client::connect(edge.web()).await;
            client.send(format!("GET {way}/ HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
            match client.try_response("GET").await {
                Ok(response) => {
                    assert_eq!(response.status, 502, "{way} {shown:?}: a whole response of {:?}", response.text())
                }
                Err(why) => assert!(why.contains("ended") || why.contains("reset"), "{way} {shown:?}: {why}"),
            }
            let h2 = H2Client::connect(edge.web()).await;
            if let Ok(response) = h2.request("GET", &format!("{way}/"), &[], b"").await {
                assert_eq!(response.status, 502, "h2 {way} {shown:?}: a whole response of {:?}", response.text());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_over_the_limit_is_a_413() {
    let origin = echo().await;
    let yaml = format!("{}{}", node("workers: 1", ", limits: { body: 1KiB }"), two_ways(""));
    let edge = Edge::start(&yaml, &[("app", origin.address())]);
    let (fits, exceeds) = (noise(1024), noise(1025));
    for way in ["/plain", "/chain", "/hold"] {
        let path = format!("{way}/");
        assert_eq!(Client::post(edge.web(), &path, "", &fits).await.status, 200, "{way}");
        let before = origin.started();
        let response = Client::post(edge.web(), &path, "", &exceeds).await;
        assert_eq!(
            (response.status, proxy_status(&response)),
            (413, "edge; error=http_request_error; details=\"limit body\""),
            "{way}"
        );
        assert_eq!(origin.started(), before, "{way}: announced, so the origin is not bothered");

        let h2 = H2Client::connect(edge.web()).await;
        for announced in [[("content-length", "1025")].as_slice(), &[]] {
            let (response, mut upload) = h2.open("POST", &path, announced, false).await.unwrap();
            let _ = upload.send_data(Bytes::from(exceeds.clone()), true); // The answer may come first and end the stream.
            assert_eq!(soon("the answer", response).await.unwrap().status(), 413, "h2 {way}, {announced:?}");
        }
        assert_eq!(h2.request("POST", &path, &[], &fits).await.unwrap().status, 200, "h2 {way}, the connection lives");

        let mut client = Client::connect(edge.web()).await;
        client
            .send(format!("POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n").as_bytes())
            .await;
        for _ in 0..3 {
            client.send(b"200\r\n").await;
            client.send(&noise(512)).await;
            client.send(b"\r\n").await;
        }
        assert_eq!(client.response("POST").await.status, 413, "{way}, chunked");
    }
    assert!(origin.received().iter().all(|request| request.body.len() <= fits.len() + "[held]".len()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_on_uploading_still_reads_why_it_was_refused() {
    // More than fits into the buffers of both sockets: a connection closed under it would be reset, and the answer lost.
    const SIZE: usize = 24 << 20;
    let origin = echo().await;
    let edge = edge_before(origin.address());
    let body = noise(SIZE);
    for way in ["/plain", "/chain", "/hold"] {
        let response = Client::post(edge.web(), &format!("{way}/"), "", &body).await;
        assert_eq!(response.status, 413, "{way}");
    }
    assert_eq!(origin.started(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_serves_is_a_404() {
    let edge = Edge::start(
        "filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } } }
sites:
  - { hosts: [www.test], routes: [{ name: known, match: { path: /known/* }, respond: { status: 200, body: here } }] }
  - { hosts: [\"*.wild.test\"], filters: [noop], routes: [{ name: wild, match: { path: /known }, respond: { status: 200, body: wild } }] }
  - { hosts: [tls.test], listeners: [secure], routes: [{ name: tls, respond: { status: 200, body: tls } }] }",
        &[],
    );
    let mut client = Client::connect(edge.web()).await;
    for (host, path, status) in [
        ("www.test", "/known", 200),
        ("www.test", "/known/below", 200),
        ("www.test", "/knownot", 404),
        ("www.test", "/", 404),
        ("WWW.Test:8080", "/known", 200),
        ("other.test", "/known", 404),
        ("test", "/known", 404),
        ("a.wild.test", "/known", 200),
        ("a.wild.test", "/known/", 404),
        ("wild.test", "/known", 404),
        ("a.b.wild.test", "/known", 404),
        ("tls.test", "/", 404),
        ("www.test", "/known?x=/unknown", 200),
    ] {
        let response = client.request(&format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!(response.status, status, "{host}{path}");
    }
    let mut client = Client::connect_tls(edge.secure(), "localhost", &["http/1.1"]).await;
    assert_eq!(client.request("GET / HTTP/1.1\r\nhost: tls.test\r\n\r\n").await.text(), "tls");
    let h2 = H2Client::connect(edge.web()).await;
    assert_eq!(h2.request("GET", "/known", &[], b"").await.unwrap().status, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn fixed_responses_are_sent_as_written() {
    let edge = Edge::start(
        "filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } }, headers: { wasm: \"file:${GUESTS}/headers.wasm\", config: \"response set x-filtered yes\", limits: { deadline: 10s } } }
sites:
  - hosts: [\"*\"]
    routes:
      - { name: text, match: { path: /text }, respond: { status: 200, body: \"hello\\n\", headers: { content-type: text/plain, x-kind: fixed } } }
      - { name: gone, match: { path: /gone }, respond: { status: 410 } }
      - { name: none, match: { path: /none }, respond: { status: 204 } }
      - { name: moved, match: { path: /moved }, respond: { status: 301, headers: { location: \"https://elsewhere.test/\" } } }
      - { name: filtered, match: { path: /filtered }, filters: [noop, headers], respond: { status: 418, body: tea } }",
        &[],
    );
    let mut client = Client::connect(edge.web()).await;
    let mut get = async |method: &str, path: &str| {
        client.request(&format!("{method} {path} HTTP/1.1\r\nhost: test\r\n\r\n")).await
    };

    let text = get("GET", "/text").await;
    assert_eq!((text.status, text.text().as_str(), text.header("x-kind")), (200, "hello\n", Some("fixed")));
    assert_eq!((text.header("content-type"), text.header("content-length")), (Some("text/plain"), Some("6")));
    let head = get("HEAD", "/text").await;
    assert_eq!((head.status, head.header("content-length"), head.header("x-kind")), (200, Some("6"), Some("fixed")));
    let gone = get("GET", "/gone").await;
    assert_eq!((gone.status, gone.text().as_str(), gone.header("content-length")), (410, "", Some("0")));
    let none = get("GET", "/none").await;
    assert_eq!((none.status, none.header("content-length"), none.header("transfer-encoding")), (204, None, None));
    let moved = get("GET", "/moved").await;
    assert_eq!((moved.status, moved.header("location")), (301, Some("https://elsewhere.test/")));
    for method in ["GET", "HEAD", "DELETE"] {
        let filtered = get(method, "/filtered").await;
        assert_eq!((filtered.status, filtered.header("x-filtered")), (418, Some("yes")), "{method}");
    }
    // The upload that nobody wanted does not end the connection.
    client.send(b"POST /text HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nbodyPOST /filtered HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nbody").await;
    assert_eq!(client.response("POST").await.text(), "hello\n");
    assert_eq!(client.response("POST").await.text(), "tea");
    let h2 = H2Client::connect(edge.web()).await;
    assert_eq!(h2.request("GET", "/filtered", &[], b"").await.unwrap().text(), "tea");
    assert_eq!(h2.request("GET", "/none", &[], b"").await.unwrap().status, 204);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_most_specific_route_wins() {
    let edge = Edge::start(
        "sites:
  - hosts: [\"*\"]
    routes:
      - { name: all, respond: { status: 200, body: all } }
      - { name: a, match: { path: /a/* }, respond: { status: 200, body: a } }
      - { name: a-post, match: { path: /a/*, method: [PUT] }, respond: { status: 200, body: a-post } }
      - { name: a-beta, match: { path: /a/*, method: [GET, POST], header: { x-beta: \"1\" } }, respond: { status: 200, body: a-beta } }
      - { name: a-both, match: { path: /a/*, method: [POST], header: { x-beta: \"1\" }, query: { q: { present: true } } }, respond: { status: 200, body: a-both } }
      - { name: a-two, match: { path: /a/*, method: [GET], header: { x-beta: \"1\", x-more: \"2\" } }, respond: { status: 200, body: a-two } }
      - { name: ab, match: { path: /a/b/* }, respond: { status: 200, body: ab } }
      - { name: ab-exact, match: { path: /a/b }, respond: { status: 200, body: ab-exact } }
      - { name: ab-exact-get, match: { path: /a/b, method: [GET] }, respond: { status: 200, body: ab-exact-get } }
  - { hosts: [\"*.x.test\"], routes: [{ name: wild, respond: { status: 200, body: wild } }] }
  - { hosts: [one.x.test], routes: [{ name: one, match: { path: /only }, respond: { status: 200, body: one } }] }",
        &[],
    );
    let mut client = Client::connect(edge.web()).await;
    for (request, headers, expected) in [
        ("GET / test", "", "all"),
        ("GET /ab test", "", "all"),
        ("GET /a test", "", "a"),
        ("GET /a/ test", "", "a"),
        ("GET /a/x/y?z=/a/b test", "", "a"),
        ("PUT /a/x test", "", "a-post"),
        ("post /a/x test", "", "a"),
        ("GET /a/x test", "x-beta: 1\r\n", "a-beta"),
        ("GET /a/x test", "X-BETA:   1  \r\n", "a-beta"),
        ("GET /a/x test", "x-beta: 10\r\n", "a"),
        ("GET /a/x test", "x-beta: 0\r\nx-beta: 1\r\n", "a-beta"),
        ("POST /a/x test", "x-beta: 1\r\n", "a-beta"),
        ("POST /a/x?q test", "x-beta: 1\r\n", "a-both"),
        ("GET /a/x test", "x-beta: 1\r\nx-more: 2\r\n", "a-two"),
        ("GET /a/b/c test", "x-beta: 1\r\n", "ab"),
        ("DELETE /a/b test", "x-beta: 1\r\n", "ab-exact"),
        ("GET /a/b test", "", "ab-exact-get"),
        ("GET /a/b?q test", "", "ab-exact-get"),
        ("GET /a/b/ test", "", "ab"),
        ("GET /a two.x.test", "", "wild"),
        ("GET /only one.x.test", "", "one"),
        ("GET /other one.x.test", "", "no route matches this request\n"),
    ] {
        let [method, target, host] = request.split(' ').collect::<Vec<_>>()[..] else { unreachable!() };
        let response = client.request(&format!("{method} {target} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n")).await;
        assert_eq!(response.text(), expected, "{request} {headers:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_1_0_clients_are_served_in_their_own_terms() {
    let (streamed, mut senders) = streaming().await;
    let origin = echo().await;
    for way in WAYS {
        let edge = edge_before(origin.address());
        let mut client = Client::connect(edge.web()).await;
        let response = client.request(&format!("GET {way}/ HTTP/1.0\r\nhost: test\r\n\r\n")).await;
        assert_eq!((response.status, response.text()), (200, format!("GET {way}/ ")));
        assert!(client.is_closed().await, "{way}: not kept alive unless asked for");

        let mut client = Client::connect(edge.web()).await;
        for _ in 0..2 {
            let response =
                client.request(&format!("GET {way}/ HTTP/1.0\r\nhost: test\r\nconnection: keep-alive\r\n\r\n")).await;
            assert_eq!(response.text(), format!("GET {way}/ "), "{way}, kept alive");
        }
        let response = Client::connect(edge.web()).await.request(&format!("GET {way}/ HTTP/1.0\r\n\r\n")).await;
        assert!([200, 400].contains(&response.status), "{way}, without Host: {}", response.status);
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("POST {way}/ HTTP/1.0\r\nhost: test\r\ncontent-length: 4\r\n\r\nbody").as_bytes()).await;
        assert_eq!(client.response("POST").await.text(), format!("POST {way}/ body"));

        // A body of unknown length: no chunks for a client that does not know them, the end is the end of the connection.
        let edge = edge_before(streamed.address());
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("GET {way}/ HTTP/1.0\r\nhost: test\r\nconnection: keep-alive\r\n\r\n").as_bytes()).await;
        let body = soon("the request", senders.recv()).await.unwrap();
        let (status, headers) = client.head().await.unwrap();
        assert_eq!(status, 200);
        assert!(!headers.iter().any(|(name, _)| name == "transfer-encoding"), "{way}: {headers:?}");
        body.send("part one, ".into()).unwrap();
        body.send("part two".into()).unwrap();
        drop(body);
        assert_eq!(read_all(&mut client).await, "part one, part two", "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_serve_hundreds_of_connections_at_once() {
    const CLIENTS: usize = 200;
    let all = Arc::new(Barrier::new(CLIENTS));
    let origin = {
        let all = Arc::clone(&all);
        Origin::start_async(move |request| {
            let all = Arc::clone(&all);
            async move {
                all.wait().await; // Nobody is answered before everybody has asked.
                Origin::reply(200, &[], request.target)
            }
            .boxed()
        })
        .await
    };
    let yaml = format!("{}{}", node("workers: 2", ""), two_ways(""));
    let edge = Edge::start(&yaml, &[("app", origin.address())]);
    for _round in 0..2 {
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..CLIENTS {
            let (web, path) = (edge.web(), format!("{}/{number}", WAYS[number % 2]));
            clients.spawn(async move {
                let response = Client::get(web, &path).await;
                assert_eq!((response.status, response.text()), (200, path));
            });
        }
        while let Some(done) = clients.join_next().await {
            done.expect("served");
        }
    }
    assert_eq!(origin.started(), 2 * CLIENTS);
}

/// A node with long patience, and a download through it that has begun.
async fn edge_with_download(way: &str) -> (Edge, Origin, Client, mpsc::UnboundedSender<Bytes>) {
    let (origin, mut senders) = streaming().await;
    let yaml = format!("{}{}", node("workers: 2, shutdown_grace: 60s", ""), two_ways(""));
    let edge = Edge::start(&yaml, &[("app", origin.address())]);
    let mut download = Client::connect(edge.web()).await;
    download.send(format!("GET {way}/ HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
    let body = soon("the request", senders.recv()).await.expect("the origin runs");
    body.send("begun".into()).expect("the origin is asked");
    read_until(&mut download, "begun").await;
    (edge, origin, download, body)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_finishes_what_runs() {
    for way in WAYS {
        let (mut edge, _origin, mut download, body) = edge_with_download(way).await;
        let mut idle = Client::connect(edge.web()).await;
        assert_eq!(idle.request("GET /nowhere HTTP/1.1\r\nhost: test\r\n\r\n").await.status, 404);

        let stopping = edge.stop();
        assert!(idle.is_closed().await, "{way}: idle connections end at once");
        body.send("still".into()).unwrap();
        read_until(&mut download, "still").await;
        assert!(!stopping.is_finished(), "{way}");

        body.send("ended".into()).unwrap();
        drop(body);
        read_until(&mut download, "0\r\n\r\n").await;
        assert!(download.is_closed().await, "{way}: not kept for another request");
        soon("the node stops", tokio::task::spawn_blocking(move || stopping.join())).await.unwrap().expect("no panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_refuses_what_is_new() {
    let (mut edge, _origin, mut download, body) = edge_with_download("/chain").await;
    let web = edge.web();
    let stopping = edge.stop();
    soon("new connections are refused", async {
        while TcpStream::connect(web).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(!stopping.is_finished(), "refused while the download runs, not because the node is gone");
    drop(body);
    read_until(&mut download, "0\r\n\r\n").await;
    soon("the node stops", tokio::task::spawn_blocking(move || stopping.join())).await.unwrap().expect("no panic");
}

/// What becomes of a request whose framing is disputed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Fate {
    /// 400, or nothing: and the origin has not had it whole.
    Refused,
    /// It may be read in one way only, and is forwarded in that one, or refused.
    OnceAtMost,
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_smuggled_inside_another() {
    use Fate::{OnceAtMost, Refused};
    const SECOND: &str = "GET /plain/smuggled HTTP/1.1\r\nhost: test\r\n\r\n";
    let bodies = |fields: &str| format!("{fields}connection: close\r\n\r\n0\r\n\r\n{SECOND}");
    let chunks = |chunks: &str| format!("transfer-encoding: chunked\r\nconnection: close\r\n\r\n{chunks}");
    let cases = [
        // RFC 9112, 6.3: Transfer-Encoding wins, and the connection is closed after the answer.
        (OnceAtMost, bodies("content-length: 5\r\ntransfer-encoding: chunked\r\n")),
        (OnceAtMost, bodies("transfer-encoding: chunked\r\ncontent-length: 5\r\n")),
        (OnceAtMost, format!("content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{SECOND}")),
        (Refused, bodies("content-length: 5\r\ncontent-length: 52\r\n")),
        (Refused, bodies("content-length: 5, 52\r\n")),
        (Refused, bodies("content-length: +5\r\n")),
        (Refused, bodies("content-length: 5 2\r\n")),
        (Refused, bodies("content-length: 0x5\r\n")),
        (Refused, bodies("content-length: -1\r\n")),
        (Refused, bodies("content-length: \r\n")),
        (Refused, bodies("content-length: 99999999999999999999999\r\n")),
        (Refused, bodies("transfer-encoding: chunked, identity\r\n")),
        (Refused, bodies("transfer-encoding: xchunked\r\n")),
        (Refused, bodies("transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n")),
        (Refused, bodies("transfer-encoding:\x0bchunked\r\n")),
        (Refused, bodies("transfer-encoding: chunked\0\r\n")),
        // RFC 9112, 5.1: no space before the colon.
        (Refused, bodies("transfer-encoding : chunked\r\n")),
        (Refused, bodies("content-length : 5\r\n")),
        (Refused, bodies("x y: 1\r\n")),
        // RFC 9112, 5.2: a folded line.
        (Refused, bodies("x-a: 1\r\n transfer-encoding: chunked\r\n")),
        (Refused, bodies("transfer-encoding:\r\n chunked\r\n")),
        (Refused, bodies("x-a: 1\rtransfer-encoding: chunked\r\n")),
        (Refused, bodies("no colon\r\n")),
        (Refused, bodies("host: other\r\n")),
        // RFC 9112, 2.2: a bare LF may end a line.
        (OnceAtMost, "content-length: 5\nconnection: close\n\nhello".to_owned()),
        (OnceAtMost, bodies(&format!("x-a: 1\ncontent-length: {}\r\n", "0\r\n\r\n".len() + SECOND.len()))),
        (Refused, chunks(&format!("zz\r\n{SECOND}"))),
        (Refused, chunks(&format!("-1\r\n{SECOND}"))),
        (Refused, chunks(&format!("+5\r\nhello\r\n0\r\n\r\n{SECOND}"))),
        (Refused, chunks(&format!("0x5\r\nhello\r\n0\r\n\r\n{SECOND}"))),
        (Refused, chunks(&format!("ffffffffffffffffff\r\n{SECOND}"))),
        // No digit at all reads as 0, which ends the body; what follows is not looked at.
        (OnceAtMost, chunks(&format!("\r\n0\r\n\r\n{SECOND}"))),
        (Refused, chunks(&format!("5\r\nhello0\r\n\r\n{SECOND}"))),
        (Refused, chunks(&format!("5\r\nhelloXX0\r\n\r\n{SECOND}"))),
        // A bare LF where one reader ends the extension and another goes on.
        (OnceAtMost, chunks(&format!("5;x\nhello\r\n0\r\n\r\n{SECOND}"))),
        (OnceAtMost, chunks(&format!("5\nhello\n0\n\n{SECOND}"))),
    ];

    let origin = Origin::start(|request| Origin::reply(200, &[], request.target.clone())).await;
    let edge = edge_before(origin.address());
    for way in ["/plain", "/chain", "/hold"] {
        for (number, (fate, rest)) in cases.iter().enumerate() {
            let end = if rest.starts_with("content-length: 5\n") { "\n" } else { "\r\n" };
            let mut client = Client::connect(edge.web()).await;
            client.send(format!("POST {way}/{number} HTTP/1.1{end}host: test{end}{rest}").as_bytes()).await;
            let answer = read_all(&mut client).await;

            let what = format!("{way} {rest:?} got {answer:?}");
            let answers = answer.matches("HTTP/1.1 ").count();
            assert!(answers <= 1, "{what}");
            if *fate == Refused || !answer.starts_with("HTTP/1.1 200 ") {
                assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{what}");
            }
        }
    }

    // Counted at the end, because what was begun and broken off may take its time to arrive.
    assert_eq!(Client::get(edge.web(), "/plain/last").await.status, 200);
    let seen = origin.received();
    for way in ["/plain", "/chain", "/hold"] {
        for (number, (fate, rest)) in cases.iter().enumerate() {
            let target = format!("{way}/{number}");
            let times: Vec<_> = seen.iter().filter(|request| request.target == target).collect();
            assert!(times.len() <= 1, "{way} {rest:?} was seen as several requests: {times:?}");
            let whole = times.iter().any(|request| !request.body.is_empty());
            assert!(*fate == OnceAtMost || !whole, "{way} {rest:?}: the origin had {times:?}");
        }
    }
    assert!(!seen.iter().any(|request| request.target.contains("smuggled")), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_authority_is_one_for_routing_and_origin() {
    let origin = echo().await;
    let edge = Edge::start(
        "upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } } }
sites:
  - { hosts: [plain.test], routes: [{ name: plain, to: app }] }
  - { hosts: [chain.test], routes: [{ name: chain, filters: [noop], to: app }] }",
        &[("app", origin.address())],
    );
    for host in ["plain.test", "chain.test"] {
        // RFC 9112, 3.2.2: the absolute form wins over Host.
        let mut client = Client::connect(edge.web()).await;
        let response = client.request(&format!("GET http://{host}/absolute HTTP/1.1\r\nhost: {host}\r\n\r\n")).await;
        assert_eq!(response.text(), "GET /absolute ", "{host}");
        assert_eq!(origin.last().header("host"), Some(host));

        let before = origin.started();
        let mut client = Client::connect(edge.web()).await;
        let response = client
            .request(&format!("GET http://{host}/ HTTP/1.1\r\nhost: other.test\r\nconnection: close\r\n\r\n"))
            .await;
        if response.status == 200 {
            assert_eq!(origin.last().header("host"), Some(host), "not the one that routing did not look at");
        } else {
            assert!([400, 404].contains(&response.status), "{host}: {}", response.status);
            assert_eq!(origin.started(), before);
        }

        let mut client = Client::connect(edge.web()).await;
        assert_eq!(
            client.request("GET / HTTP/1.1\r\nconnection: close\r\n\r\n").await.status,
            400,
            "HTTP/1.1 without Host"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_says_about_itself_is_replaced() {
    let origin = echo().await;
    let edge = edge_before(origin.address());
    let headers = "x-forwarded-for: 203.0.113.1\r\nx-forwarded-for: 203.0.113.2\r\nx-forwarded-proto: https\r\n\
                   x-forwarded-host: evil.test\r\nforwarded: for=203.0.113.3\r\n\
                   connection: x-secret\r\nx-secret: hop by hop\r\n";
    for way in ["/plain", "/chain", "/hold"] {
        assert_eq!(Client::get_with(edge.web(), &format!("{way}/"), headers).await.status, 200);
        let seen = origin.last();
        let values = |name: &str| -> Vec<String> {
            seen.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.clone()).collect()
        };
        assert_eq!(values("x-forwarded-for"), ["127.0.0.1"], "{way}");
        assert_eq!(values("x-forwarded-proto"), ["http"], "{way}");
        assert_eq!(values("x-forwarded-host"), ["test"], "{way}");
        assert_eq!(values("forwarded"), [""; 0], "{way}");
        assert_eq!(values("x-secret"), [""; 0], "{way}: nominated by Connection (RFC 9110, 7.6.1)");
        assert_eq!(values("via"), ["1.1 edge"], "{way}");

        // Nor can it have them taken away again as fields of this hop.
        let strip = "connection: close, x-forwarded-for, via\r\nx-forwarded-for: 1.2.3.4\r\n";
        assert_eq!(Client::get_with(edge.web(), &format!("{way}/"), strip).await.status, 200);
        let seen = origin.last();
        assert_eq!(
            (seen.header("x-forwarded-for"), seen.header("via")),
            (Some("127.0.0.1"), Some("1.1 edge")),
            "{way}"
        );
    }
    let h2 = H2Client::connect_tls(edge.secure(), "localhost").await;
    h2.request("GET", "/chain/", &[("x-forwarded-proto", "http"), ("x-forwarded-for", "1.2.3.4")], b"").await.unwrap();
    let seen = origin.last();
    assert_eq!((seen.header("x-forwarded-proto"), seen.header("x-forwarded-for")), (Some("https"), Some("127.0.0.1")));
    assert_eq!(seen.header("via"), Some("2 edge"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_answers_early_ends_the_upload() {
    let gate = Arc::new(Semaphore::new(0));
    let (address, _origin) = {
        let gate = Arc::clone(&gate);
        Origin::raw(move |mut stream| {
            let gate = Arc::clone(&gate);
            async move {
                if read_head(&mut stream).await.is_some() {
                    let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").await;
                    let _ = gate.acquire().await; // Neither reads on nor closes.
                }
            }
        })
        .await
    };
    let edge = edge_before(address);
    for way in WAYS {
        let mut client = Client::connect(edge.web()).await;
        client
            .send(format!("POST {way}/ HTTP/1.1\r\nhost: test\r\ncontent-length: 1000000\r\n\r\nsome of it").as_bytes())
            .await;
        let response = client.response("POST").await;
        assert_eq!((response.status, response.text().as_str()), (403, "no"), "{way}");
    }
    gate.add_permits(8);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_that_does_not_come_ends_the_connection_and_a_slow_exchange_does_not() {
    let (origin, mut senders) = streaming().await;
    let edge = Edge::start(
        "version: 1
node: { workers: 1, module_cache: off }
telemetry: { access_log: { output: off } }
listeners:
  web: { bind: \"127.0.0.1:0\", limits: { header_timeout: 200ms, idle_timeout: 30s } }
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
sites: [{ hosts: [\"*\"], routes: [{ to: app }] }]",
        &[("app", origin.address())],
    );

    // One exchange goes on, one connection has not said anything yet, one dribbles its header.
    let mut slow = Client::connect(edge.web()).await;
    slow.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let body = soon("the request", senders.recv()).await.unwrap();
    body.send("begun".into()).unwrap();
    read_until(&mut slow, "begun\r\n").await;
    let mut silent = Client::connect(edge.web()).await;
    let mut dribbling = Client::connect(edge.web()).await;
    dribbling.send(b"GET / HTTP/1.1\r\nhost: te").await;
    assert!(dribbling.is_closed().await, "the header is overdue");

    // The others are still there.
    silent.send(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await;
    let second = soon("the second request", senders.recv()).await.unwrap();
    second.send("second".into()).unwrap();
    read_until(&mut silent, "second\r\n").await;
    body.send("ended".into()).unwrap();
    drop(body);
    read_until(&mut slow, "0\r\n\r\n").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy_says_for_whom_a_request_is() {
    let origin = echo().await;
    let yaml = |trusted: &str| {
        format!(
            "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, trusted_proxies: [{trusted}] }}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\" }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: inside, match: {{ client: [198.51.100.0/24], tls: true }}, headers: {{ request: {{ set: {{ x-who: \"${{client.ip}} ${{scheme}}\" }} }} }}, to: app }}
      - {{ name: rest, headers: {{ request: {{ set: {{ x-who: \"rest ${{client.ip}} ${{scheme}}\" }} }} }}, to: app }}
"
        )
    };
    let said = "x-forwarded-for: 1.2.3.4, 198.51.100.7\r\nx-forwarded-proto: https\r\nx-forwarded-host: shop.test\r\n";
    for (trusted, who, chain, proto, host) in [
        ("127.0.0.0/8", "198.51.100.7 https", "1.2.3.4, 198.51.100.7|127.0.0.1", "https", "shop.test"),
        ("127.0.0.1", "198.51.100.7 https", "1.2.3.4, 198.51.100.7|127.0.0.1", "https", "shop.test"),
        ("10.0.0.0/8", "rest 127.0.0.1 http", "127.0.0.1", "http", "test"),
        ("", "rest 127.0.0.1 http", "127.0.0.1", "http", "test"),
    ] {
        let edge = Edge::start(&yaml(trusted), &[("app", origin.address())]);
        assert_eq!(Client::get_with(edge.web(), "/", said).await.status, 200);
        let seen = origin.last();
        let values = |name: &str| -> Vec<&str> {
            seen.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str()).collect()
        };
        assert_eq!(values("x-who"), [who], "{trusted}");
        assert_eq!(values("x-forwarded-for").join("|"), chain, "{trusted}");
        assert_eq!((values("x-forwarded-proto"), values("x-forwarded-host")), (vec![proto], vec![host]), "{trusted}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited_in_all_and_for_each_client() {
    let yaml = |limits: &str, trusted: &str| {
        format!(
            "version: 1
node: {{ name: edge, workers: 2, shutdown_grace: 1s, trusted_proxies: [{trusted}] }}
telemetry: {{ access_log: {{ output: off }}, metrics: {{ bind: \"127.0.0.1:0\" }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\", limits: {{ {limits} }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ respond: {{ status: 200 }} }}] }}]
"
        )
    };
    let get = "GET / HTTP/1.1\r\nhost: test\r\n\r\n";
    for limits in ["connections: 2", "connections_per_client: 2"] {
        let mut edge = Edge::start(&yaml(limits, ""), &[]);
        let mut first = Client::connect(edge.web()).await;
        let mut second = Client::connect(edge.web()).await;
        assert_eq!((first.request(get).await.status, second.request(get).await.status), (200, 200));
        let mut third = Client::connect(edge.web()).await;
        assert!(third.is_closed().await, "{limits}");
        let page = Client::get(edge.metrics(), "/metrics").await.text();
        for limit in ["connections", "connections_per_client"] {
            let count = u8::from(limits.starts_with(&format!("{limit}:")));
            let line = format!("selvedge_connections_refused_total{{limit=\"{limit}\"}} {count}");
            assert!(page.lines().any(|found| found == line), "{line}\n{page}");
        }
        drop(second);
        soon("the place is free again", async {
            loop {
                let mut client = Client::connect(edge.web()).await;
                client.send(get.as_bytes()).await;
                if client.try_response("GET").await.is_ok_and(|response| response.status == 200) {
                    break;
                }
            }
        })
        .await;
        // Those who are here keep their places over a reload that changes the listener.
        edge.reload(&yaml(&format!("{limits}, idle_timeout: 50s"), "")).unwrap();
        assert!(first.is_closed().await);
        if limits.contains("client") {
            edge.reload(&yaml(limits, "127.0.0.0/8")).unwrap();
            let mut clients = Vec::new();
            for _ in 0..5 {
                let mut client = Client::connect(edge.web()).await;
                assert_eq!(client.request(get).await.status, 200, "a trusted proxy connects for many");
                clients.push(client);
            }
        }
    }
}
