//! Every endpoint from outside: real sockets, bytes in, bytes out.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};

use super::*;
use crate::answer::hex;

#[test]
fn the_page_names_every_endpoint() {
    let demo = start();
    let page = get(&demo, "/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    for endpoint in [
        "/echo",
        "/static/app.css",
        "/static/app.js",
        "/static/logo.svg",
        "/cache/",
        "/vary",
        "/slow",
        "/large",
        "/sse",
        "/ws",
        "/status/",
        "/trailers",
        "/private",
        "/upstream",
    ] {
        assert!(page.text().contains(endpoint), "{endpoint}");
    }
    assert!(page.text().contains("<code>demo</code>") && !page.text().contains("{{"));
    assert!(!page.text().contains("http://") && !page.text().contains("https://"), "nothing from elsewhere");
}

#[test]
fn echo_shows_the_request_as_it_arrived() {
    let demo = start();
    let answer = send(
        &demo,
        "PATCH /echo?a=1&b=%20 HTTP/1.1\r\nHost: example.com\r\nX-Two: first\r\nX-Two: second\r\nConnection: close\r\n\
         Content-Length: 5\r\n\r\nhello",
    );
    assert_eq!(answer.status, 200);
    let echo = answer.json();
    assert_eq!(echo["method"], "PATCH");
    assert_eq!(echo["version"], "HTTP/1.1");
    assert_eq!((&echo["path"], &echo["query"]), (&json!("/echo"), &json!("a=1&b=%20")));
    assert_eq!(
        echo["headers"],
        json!([
            ["host", "example.com"],
            ["x-two", "first"],
            ["x-two", "second"],
            ["connection", "close"],
            ["content-length", "5"]
        ])
    );
    assert_eq!((&echo["body"], &echo["body_length"]), (&json!("hello"), &json!(5)));
    assert_eq!(echo["body_sha256"], "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824");
    assert!(echo["client"].as_str().unwrap().parse::<SocketAddr>().unwrap().ip().is_loopback());
}

#[test]
fn echo_reads_chunks_and_trailers() {
    let demo = start();
    let echo = send(
        &demo,
        "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n\
         3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 1\r\n\r\n",
    )
    .json();
    assert_eq!(echo["body"], "abcde");
    assert_eq!(echo["trailers"], json!([["x-sum", "1"]]));
}

#[test]
fn echo_hashes_what_it_does_not_show() {
    let demo = start();
    for body in [vec![0xff_u8, 0xfe], vec![b'x'; 65_537], large_bytes(0..300_000)] {
        let mut request =
            format!("POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len())
                .into_bytes();
        request.extend_from_slice(&body);
        let echo = exchange(&demo, &request).json();
        assert_eq!((&echo["body"], &echo["body_length"]), (&Value::Null, &json!(body.len())));
        assert_eq!(echo["body_sha256"], hex(&Sha256::digest(&body)));
    }
    let exactly = "x".repeat(65_536);
    let request =
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 65536\r\n\r\n{exactly}");
    assert_eq!(send(&demo, &request).json()["body"], exactly);
}

#[test]
fn echo_refuses_a_body_beyond_its_bound() {
    let demo = start();
    let answer =
        send(&demo, "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 1073741825\r\n\r\n");
    assert_eq!(answer.status, 413);
}

#[test]
fn static_files_validate_and_serve_ranges() {
    let demo = start();
    for (path, content_type, content) in [
        ("/static/app.css", "text/css; charset=utf-8", include_str!("../assets/app.css")),
        ("/static/app.js", "text/javascript; charset=utf-8", include_str!("../assets/app.js")),
        ("/static/logo.svg", "image/svg+xml", include_str!("../assets/logo.svg")),
    ] {
        let full = get(&demo, path);
        assert_eq!((full.status, full.text()), (200, content));
        assert_eq!(full.header("content-type"), Some(content_type));
        assert_eq!(full.header("cache-control"), Some("public, max-age=60"));
        assert_eq!(full.header("last-modified"), Some("Thu, 01 Jan 2026 00:00:00 GMT"));
        let etag = full.header("etag").unwrap();
        assert!(etag.starts_with('"') && etag.ends_with('"'));

        let unchanged = get_with(&demo, path, &format!("If-None-Match: {etag}\r\n"));
        assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
        assert_eq!(unchanged.header("etag"), Some(etag));
        assert_eq!(unchanged.header("cache-control"), Some("public, max-age=60"));
        assert_eq!((unchanged.header("content-type"), unchanged.header("content-length")), (None, None));
        assert_eq!(get_with(&demo, path, "If-None-Match: \"other\"\r\n").status, 200);
        assert_eq!(get_with(&demo, path, "If-Modified-Since: Thu, 01 Jan 2026 00:00:00 GMT\r\n").status, 304);

        let part = get_with(&demo, path, "Range: bytes=2-9\r\n");
        assert_eq!((part.status, part.text()), (206, &content[2..10]));
        assert_eq!(part.header("content-range"), Some(&*format!("bytes 2-9/{}", content.len())));
        assert_eq!(part.header("content-length"), Some("8"));
        assert_eq!(get_with(&demo, path, &format!("Range: bytes=2-9\r\nIf-Range: {etag}\r\n")).status, 206);
        assert_eq!(get_with(&demo, path, "Range: bytes=2-9\r\nIf-Range: \"other\"\r\n").status, 200);
        assert_eq!(get_with(&demo, path, "Range: bytes=0-0,2-3\r\n").status, 200);

        let outside = get_with(&demo, path, "Range: bytes=1000000-\r\n");
        assert_eq!(outside.status, 416);
        assert_eq!(outside.header("content-range"), Some(&*format!("bytes */{}", content.len())));

        let head = send(&demo, &format!("HEAD {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"));
        assert_eq!((head.status, head.body.len()), (200, 0));
        assert_eq!(head.header("content-length"), Some(&*content.len().to_string()));
    }
    assert_eq!(get(&demo, "/static/other.css").status, 404);
}

#[test]
fn cache_counts_by_path() {
    let demo = start();
    for expected in 1..=3 {
        let answer = get(&demo, &format!("/cache/10?round={expected}"));
        assert_eq!(answer.header("cache-control"), Some("max-age=10"));
        assert_eq!(answer.header("x-origin-count"), Some(&*expected.to_string()));
        assert_eq!(answer.json()["origin_count"], expected);
    }
    assert_eq!(get(&demo, "/cache/10/other").header("x-origin-count"), Some("1"));
    let tagged = get(&demo, "/cache/0?swr=30&sie=60&tag=a,b:1");
    assert_eq!(tagged.header("cache-control"), Some("max-age=0, stale-while-revalidate=30, stale-if-error=60"));
    assert_eq!(tagged.header("surrogate-key"), Some("a b:1"));
    assert_eq!(tagged.header("cache-tag"), Some("a,b:1"));
    for bad in
        ["/cache/", "/cache/x", "/cache/-1", "/cache/31536001", "/cache/1?swr=x", "/cache/1?tag=%0d", "/cache/1?tag="]
    {
        assert_eq!(get(&demo, bad).status, 400, "{bad}");
    }
}

#[test]
fn vary_answers_by_language() {
    let demo = start();
    for (accepted, language) in [("de-AT", "de"), ("fr;q=0.9, en;q=0.1", "fr"), ("xx", "en")] {
        let answer = get_with(&demo, "/vary", &format!("Accept-Language: {accepted}\r\n"));
        assert_eq!(answer.header("vary"), Some("accept-language"));
        assert_eq!(answer.header("content-language"), Some(language));
        assert_eq!(answer.json()["language"], language);
    }
    assert_eq!(get(&demo, "/vary").header("x-origin-count"), Some("4"));
}

#[test]
fn slow_waits_before_the_headers_and_between_chunks() {
    let demo = start();
    let mut stream = connect(&demo);
    let started = Instant::now();
    stream.write_all(b"GET /slow?ms=60&chunks=3&gap=60 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut first = [0; 16];
    stream.read_exact(&mut first).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(60));
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(started.elapsed() >= Duration::from_millis(180));
    let answer = Answer::parse(&[&first[..], &rest].concat());
    assert_eq!(answer.text(), "chunk 1 of 3\nchunk 2 of 3\nchunk 3 of 3\n");
    assert_eq!(answer.header("cache-control"), Some("public, max-age=60"));
    assert_eq!(answer.header("content-length"), None);

    for bad in ["ms=10001", "chunks=0", "chunks=101", "gap=1001", "ms=x"] {
        let answer = get(&demo, &format!("/slow?ms=0&{bad}").replace("ms=0&ms", "ms"));
        assert_eq!(answer.status, 400, "{bad}");
    }
}

#[test]
fn large_is_streamed_with_and_without_a_length() {
    let demo = start();
    let size: u64 = 3 * 1024 * 1024 + 5;
    let content = large_bytes(0..size);

    let full = get(&demo, &format!("/large?size={size}"));
    assert_eq!(full.header("content-length"), Some(&*size.to_string()));
    assert!(full.body == content);

    let chunked = get(&demo, &format!("/large?size={size}&chunked=1"));
    assert_eq!((chunked.header("content-length"), chunked.header("transfer-encoding")), (None, Some("chunked")));
    assert!(chunked.body == content);

    let part = get_with(&demo, &format!("/large?size={size}"), "Range: bytes=65533-196610\r\n");
    assert_eq!(part.status, 206);
    assert!(part.body == content[65_533..=196_610]);

    assert_eq!(get(&demo, "/large?size=0").body.len(), 0);
    for bad in ["size=1025MiB", "size=x", "size=1MiB&chunked=2"] {
        assert_eq!(get(&demo, &format!("/large?{bad}")).status, 400, "{bad}");
    }
}

/// A gigabyte starts at once, and a client that leaves half-way harms nobody.
#[test]
fn the_largest_answer_is_never_in_memory() {
    let demo = start();
    let mut stream = connect(&demo);
    stream.write_all(b"GET /large?size=1GiB HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut start = [0; 4096];
    stream.read_exact(&mut start).unwrap();
    assert!(String::from_utf8_lossy(&start).contains("content-length: 1073741824\r\n"));
    drop(stream);
    assert_eq!(get(&demo, "/upstream").status, 200);
}

#[test]
fn events_are_bounded_and_end() {
    let demo = start();
    let answer = get(&demo, "/sse?count=3&ms=1");
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(
        answer.text(),
        "id: 1\nevent: tick\ndata: 1 of 3\n\nid: 2\nevent: tick\ndata: 2 of 3\n\nid: 3\nevent: tick\ndata: 3 of 3\n\n"
    );
    assert_eq!(get(&demo, "/sse?count=1001").status, 400);
    assert_eq!(get(&demo, "/sse?ms=10001").status, 400);
}

#[test]
fn status_answers_with_what_was_asked() {
    let demo = start();
    for code in [200, 204, 205, 301, 304, 404, 418, 429, 500, 503, 599] {
        let answer = get(&demo, &format!("/status/{code}"));
        assert_eq!(answer.status, code);
        assert_eq!(answer.body.is_empty(), [204, 205, 304].contains(&code), "{code}");
    }
    for bad in ["100", "101", "199", "600", "0", "x", "", "200/x"] {
        assert_eq!(get(&demo, &format!("/status/{bad}")).status, 400, "{bad}");
    }
    let posted =
        send(&demo, "POST /status/503 HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi");
    assert_eq!(posted.status, 503);
}

/// RFC 9110, 6.5.1: trailers only for those who take them.
#[test]
fn trailers_are_sent_when_asked_for() {
    let demo = start();
    let with = get_with(&demo, "/trailers", "TE: trailers\r\n");
    assert_eq!(with.header("trailer"), Some("x-body-length, x-body-sha256"));
    assert_eq!(
        with.trailers,
        [
            ("x-body-length".to_owned(), with.body.len().to_string()),
            ("x-body-sha256".to_owned(), hex(&Sha256::digest(&with.body))),
        ]
    );
    let without = get(&demo, "/trailers");
    assert_eq!((without.trailers.len(), without.header("trailer")), (0, None));
    assert_eq!(without.body, with.body);
    let old = send(&demo, "GET /trailers HTTP/1.0\r\nHost: x\r\nTE: trailers\r\n\r\n");
    assert_eq!((old.status, old.header("transfer-encoding")), (200, None));
}

#[test]
fn private_shows_the_user_and_forbids_caching() {
    let demo = start();
    let known = get_with(&demo, "/private", "X-User: ada\r\n");
    assert_eq!(known.json()["user"], "ada");
    assert_eq!(known.header("cache-control"), Some("private, no-store"));
    assert_eq!(get(&demo, "/private").json()["user"], Value::Null);
}

#[test]
fn every_answer_says_which_origin_gave_it() {
    let demo = Demo::builder().name("demo-b").start(([127, 0, 0, 1], 0).into()).unwrap();
    assert_eq!(demo.requests(), 0);
    for (number, path) in ["/upstream", "/", "/nowhere", "/status/503", "/ws", "/large?size=x"].into_iter().enumerate()
    {
        let answer = get(&demo, path);
        assert_eq!(answer.header("x-origin"), Some("demo-b"), "{path}");
        assert_eq!(answer.header("x-origin-requests"), Some(&*(number + 1).to_string()));
    }
    assert_eq!(demo.requests(), 6);
    assert_eq!(get(&demo, "/upstream").json()["origin"], "demo-b");
    assert_eq!(get(&start(), "/upstream").header("x-origin"), Some("demo"));
    assert!(Demo::builder().name("a b").start(([127, 0, 0, 1], 0).into()).is_err());
}

#[test]
fn refusals_are_one_sentence() {
    let demo = start();
    let missing = get(&demo, "/nowhere/at/all");
    assert_eq!((missing.status, missing.text()), (404, "There is nothing at /nowhere/at/all; the list is at /.\n"));
    let posted = send(&demo, "POST /vary HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    assert_eq!((posted.status, posted.header("allow")), (405, Some("GET, HEAD")));
    assert_eq!(
        send(&demo, "POST /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").status,
        404
    );
    assert_eq!(send(&demo, "OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").status, 404);
    assert_eq!(get(&demo, &format!("/cache/1/{}", "x".repeat(600))).status, 414);
    assert_eq!(send(&demo, "NOT HTTP\r\n\r\n").status, 400);
    assert_eq!(get(&demo, "/upstream").status, 200, "it goes on");
}

#[test]
fn one_connection_serves_many_requests() {
    let demo = start();
    let mut stream = connect(&demo);
    stream
        .write_all(
            b"GET /status/200 HTTP/1.1\r\nHost: x\r\n\r\nGET /status/404 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.starts_with("HTTP/1.1 200 OK\r\n") && all.contains("\nHTTP/1.1 404 Not Found\r\n"), "{all}");
    assert_eq!(demo.requests(), 2);
}

#[tokio::test]
async fn http2_is_spoken_on_the_same_port() {
    let demo = start();
    let echo = h2(&demo, "/echo?a=1", b"hello").await;
    let value: Value = serde_json::from_slice(&echo.body).unwrap();
    assert_eq!(
        (&value["version"], &value["method"], &value["body"]),
        (&json!("HTTP/2.0"), &json!("POST"), &json!("hello"))
    );
    assert_eq!(value["authority"], demo.addr().to_string());
    assert_eq!(value["trailers"], json!([["x-end", "1"]]));

    let trailers = h2(&demo, "/trailers", b"").await;
    assert_eq!(trailers.trailers["x-body-length"], trailers.body.len().to_string());
    assert_eq!(trailers.trailers["x-body-sha256"], hex(&Sha256::digest(&trailers.body)));

    let large = h2(&demo, "/large?size=1MiB&chunked=1", b"").await;
    assert!(large.body == large_bytes(0..1 << 20));
    assert_eq!(h2(&demo, "/ws", b"").await.status, 426);
}

#[tokio::test]
async fn websocket_echoes_text_and_binary_and_answers_pings() {
    let demo = start();
    let mut socket = websocket(&demo).await;
    for message in [
        Message::text("grüß dich"),
        Message::text(""),
        Message::binary(vec![0, 255, 1]),
        Message::binary(large_bytes(0..1 << 20)),
    ] {
        socket.send(message.clone()).await.unwrap();
        assert!(socket.next().await.unwrap().unwrap() == message);
    }
    socket.send(Message::Ping(Bytes::from_static(b"there?"))).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Pong(Bytes::from_static(b"there?")));

    let goodbye = CloseFrame { code: CloseCode::Normal, reason: "done".into() };
    socket.close(Some(goodbye.clone())).await.unwrap();
    assert_eq!(socket.next().await.unwrap().unwrap(), Message::Close(Some(goodbye)));
    assert!(socket.next().await.is_none());
}

#[tokio::test]
async fn websocket_refuses_a_message_that_is_too_long() {
    let demo = start();
    let mut socket = websocket(&demo).await;
    // The origin closes on the frame's header; the rest of the message may find the connection gone.
    let _sent_or_reset = socket.send(Message::binary(vec![0; (1 << 20) + 1])).await;
    match socket.next().await {
        Some(Ok(Message::Close(Some(frame)))) => assert_eq!(frame.code, CloseCode::Size),
        Some(Err(Error::Io(_) | Error::Protocol(_))) => {}
        other => panic!("not closed: {other:?}"),
    }
    assert_eq!(get(&demo, "/upstream").status, 200);
}

#[test]
fn websocket_handshake_is_checked() {
    let demo = start();
    let plain = get(&demo, "/ws");
    assert_eq!((plain.status, plain.header("upgrade")), (426, Some("websocket")));
    let upgrade = "GET /ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n";
    let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(send(&demo, &format!("{upgrade}{key}Sec-WebSocket-Version: 8\r\n\r\n")).status, 400);
    assert_eq!(send(&demo, &format!("{upgrade}Sec-WebSocket-Version: 13\r\n\r\n")).status, 400);
}

#[tokio::test]
async fn stopping_says_goodbye_to_websockets() {
    let demo = start();
    let mut socket = websocket(&demo).await;
    socket.send(Message::text("hello")).await.unwrap();
    socket.next().await.unwrap().unwrap();
    drop(demo);
    match socket.next().await.unwrap().unwrap() {
        Message::Close(Some(frame)) => assert_eq!(frame.code, CloseCode::Away),
        other => panic!("not a close: {other:?}"),
    }
}

#[test]
fn stopping_closes_idle_connections_at_once() {
    let demo = start();
    let address = demo.addr();
    let mut silent = connect(&demo);
    let mut idle = connect(&demo);
    idle.write_all(b"GET /status/204 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = [0; 12];
    idle.read_exact(&mut head).unwrap();

    let started = Instant::now();
    drop(demo);
    assert!(started.elapsed() < serve::DRAIN, "there was nothing to wait for");
    idle.read_to_string(&mut String::new()).unwrap();
    assert_eq!(silent.read(&mut head).unwrap_or(0), 0);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn stopping_finishes_what_is_under_way() {
    let demo = start();
    let mut busy = connect(&demo);
    busy.write_all(b"GET /slow?ms=0&chunks=2&gap=200 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = [0; 12];
    busy.read_exact(&mut head).unwrap();
    drop(demo);
    let mut rest = String::new();
    busy.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("chunk 2 of 2\n"), "{rest}");
}

#[test]
fn stopping_does_not_wait_for_ever() {
    let demo = start();
    let mut endless = connect(&demo);
    endless.write_all(b"GET /sse?count=1000&ms=10000 HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut head = [0; 12];
    endless.read_exact(&mut head).unwrap();
    let started = Instant::now();
    drop(demo);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_bound_listener_can_be_served() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let demo = Demo::serve(listener).unwrap();
    assert_eq!(demo.addr(), address);
    assert_eq!(get(&demo, "/upstream").status, 200);
}

fn start() -> Demo {
    Demo::start(([127, 0, 0, 1], 0).into()).unwrap()
}

fn connect(demo: &Demo) -> TcpStream {
    let stream = TcpStream::connect(demo.addr()).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    stream
}

fn get(demo: &Demo, path: &str) -> Answer {
    get_with(demo, path, "")
}

fn get_with(demo: &Demo, path: &str, fields: &str) -> Answer {
    send(demo, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n"))
}

fn send(demo: &Demo, request: &str) -> Answer {
    exchange(demo, request.as_bytes())
}

fn exchange(demo: &Demo, request: &[u8]) -> Answer {
    let mut stream = connect(demo);
    stream.write_all(request).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Answer::parse(&bytes)
}

/// An HTTP/1 answer, taken apart by hand so that nothing is hidden.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    trailers: Vec<(String, String)>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Answer {
        let end = find(bytes, b"\r\n\r\n").expect("an end of the headers");
        let head = std::str::from_utf8(&bytes[..end]).unwrap();
        let (line, fields) = head.split_once("\r\n").unwrap_or((head, ""));
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, headers: split_fields(fields), body: Vec::new(), trailers: Vec::new() };

        let mut rest = &bytes[end + 4..];
        if answer.header("transfer-encoding") != Some("chunked") {
            answer.body = rest.to_vec();
            return answer;
        }
        loop {
            let line = find(rest, b"\r\n").unwrap();
            let size = usize::from_str_radix(std::str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
            rest = &rest[line + 2..];
            if size == 0 {
                let trailers = std::str::from_utf8(rest).unwrap().strip_suffix("\r\n").unwrap();
                answer.trailers = split_fields(trailers.trim_end());
                return answer;
            }
            answer.body.extend_from_slice(&rest[..size]);
            assert_eq!(&rest[size..size + 2], b"\r\n");
            rest = &rest[size + 2..];
        }
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(field, _)| field == name);
        let value = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} stands twice");
        value
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"));
        serde_json::from_slice(&self.body).unwrap()
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

fn split_fields(fields: &str) -> Vec<(String, String)> {
    let fields = fields.split("\r\n").filter(|line| !line.is_empty());
    fields.map(|line| line.split_once(": ").unwrap()).map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// An HTTP/2 answer.
struct H2Answer {
    status: u16,
    body: Bytes,
    trailers: HeaderMap,
}

/// A POST with a trailer if there is a body, else a GET.
async fn h2(demo: &Demo, path: &str, body: &'static [u8]) -> H2Answer {
    let stream = tokio::net::TcpStream::connect(demo.addr()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (method, body): (_, BoxBody<Bytes, Infallible>) = if body.is_empty() {
        ("GET", Full::default().boxed())
    } else {
        let trailers = HeaderMap::from_iter([(http::HeaderName::from_static("x-end"), http::HeaderValue::from(1))]);
        let frames = [Ok(Frame::data(Bytes::from_static(body))), Ok(Frame::trailers(trailers))];
        ("POST", BoxBody::new(StreamBody::new(futures::stream::iter(frames))))
    };
    let request = Request::builder().method(method).uri(format!("http://{}{path}", demo.addr())).body(body).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    let status = response.status().as_u16();
    let collected = response.into_body().collect().await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    H2Answer { status, body: collected.to_bytes(), trailers }
}

async fn websocket(demo: &Demo) -> tokio_tungstenite::WebSocketStream<tokio::net::TcpStream> {
    let stream = tokio::net::TcpStream::connect(demo.addr()).await.unwrap();
    let (socket, response) = tokio_tungstenite::client_async(format!("ws://{}/ws", demo.addr()), stream).await.unwrap();
    assert_eq!(response.headers()["x-origin"], "demo");
    socket
}
