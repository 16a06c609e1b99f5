//! Requests without a body go to HTTP/1.1 upstreams by our own client, those with one by Pingora's. Whatever an upstream says, clients see
//! the same of both.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Routes without and with filters, and one with limits of time.
const YAML: &str = "cache: {}
upstreams:
  hedged: { endpoints: [\"127.0.0.1:${PORT_app}\"], retries: { attempts: 1 }, hedge: { after: 20s } }
  app: { endpoints: [\"127.0.0.1:${PORT_app}\"], retries: { attempts: 1 } }
  late: { endpoints: [\"127.0.0.1:${PORT_app}\"], retries: { attempts: 1 }, timeouts: { read: 300ms } }
filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 5s } } }
sites:
  - hosts: [\"*\"]
    routes:
      - { name: bare, match: { path: /bare }, to: app }
      - { name: filtered, match: { path: /filtered }, filters: [noop], to: app }
      - { name: \"stored-${ID}\", match: { path: /stored }, cache: {}, to: app }
      - { name: hedged, match: { path: /hedged }, to: hedged }
      - { name: late, match: { path: /late }, to: late }
";

/// Reads a request, with a body of four bytes if it announces one; `None` = the connection has ended.
async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
    if head.contains("content-length: 4") {
        stream.read_exact(&mut [0; 4]).await.ok()?;
    }
    Some(head)
}

/// An origin that answers everything with this; then the connection ends, if `ends`. Counts connections.
async fn origin(answer: &'static [u8], ends: bool) -> (SocketAddr, Arc<AtomicUsize>, JoinHandle<()>) {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let (address, task) = Origin::raw(move |mut stream| {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            while read_request(&mut stream).await.is_some() {
                if stream.write_all(answer).await.is_err() || ends {
                    return;
                }
            }
        }
    })
    .await;
    (address, connections, task)
}

/// All that a client is told in answer to this: interim responses, the final one, or how it is cut off; without what is as it is at the
/// moment.
async fn told(edge: &Edge, method: &str, path: &str, body: bool) -> Vec<String> {
    let mut client = Client::connect(edge.web()).await;
    let (length, body) = if body { ("content-length: 4\r\n", "body") } else { ("", "") };
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{length}\r\n{body}").as_bytes()).await;
    let mut told = Vec::new();
    loop {
        match client.try_response(method).await {
            Ok(response) => {
                let mut fields: Vec<_> =
                    response.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date")).collect();
                fields.sort();
                told.push(format!("{} {fields:?} {}", response.status, response.text()));
                if response.status >= 200 {
                    return told;
                }
            }
            Err(_) => {
                told.push("cut off".into());
                return told;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_an_upstream_answers_both_ways_tell_the_same() {
    let rows: &[(&[u8], bool)] = &[
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello", false),
        (
            b"HTTP/1.1 200 Fine So\r\nX-Mixed-Case: a\r\nx-mixed-case: b\r\nempty:\r\ncontent-length: 5\r\n\r\nhello",
            false,
        ),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n", false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n", false),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", true),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", true),
        (b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello", false),
        (b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 5\r\n\r\nhello", true),
        (b"HTTP/1.1 200 OK\r\nkeep-alive: timeout=5, max=9\r\ncontent-length: 5\r\n\r\nhello", false),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false),
        (b"HTTP/1.1 204 No Content\r\n\r\n", false),
        (b"HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\ncontent-length: 5\r\n\r\n", false),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\ngone", false),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno", false),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false),
    ];
    for (answer, ends) in rows {
        for path in ["/bare", "/filtered"] {
            let mut seen = Vec::new();
            for body in [false, true] {
                let (address, connections, _origin) = origin(answer, *ends).await;
                let edge = Edge::start(YAML, &[("app", address)]);
                let first = told(&edge, "DELETE", path, body).await;
                let second = told(&edge, "DELETE", path, body).await;
                seen.push((first, second, connections.load(Ordering::SeqCst)));
            }
            assert_eq!(seen[0], seen[1], "{path} {}", String::from_utf8_lossy(answer));
        }
    }
}

/// What ends before it is whole, and what is no HTTP, is never taken for whole. How much of it a client sees is a matter of moments.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_upstream_breaks_off_is_broken_off_for_the_client() {
    let rows: &[&[u8]] = &[
        b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"",
        b"what?\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\nhello",
    ];
    for answer in rows {
        let (address, _connections, _origin) = origin(answer, true).await;
        let edge = Edge::start(YAML, &[("app", address)]);
        for (path, body) in [("/bare", false), ("/bare", true), ("/filtered", false), ("/filtered", true)] {
            let told = told(&edge, "DELETE", path, body).await;
            let failed = told.len() == 1 && (told[0] == "cut off" || told[0].starts_with("502"));
            assert!(failed, "{path} {body} {}: {told:?}", String::from_utf8_lossy(answer));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_protocol_that_nobody_asked_for_is_a_fault_of_the_upstream() {
    let answer = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: other\r\nconnection: upgrade\r\n\r\n";
    let (address, _connections, _origin) = origin(answer, false).await;
    let edge = Edge::start(YAML, &[("app", address)]);
    for path in ["/bare", "/filtered", "/stored", "/hedged"] {
        let response = soon("an answer", Client::get(edge.web(), path)).await;
        let told = response.header("proxy-status");
        assert_eq!((response.status, told), (502, Some("edge; error=http_protocol_error")), "{path}");
    }
    for path in ["/bare", "/filtered"] {
        let response = soon("an answer", Client::post(edge.web(), path, "", b"body")).await;
        let told = response.header("proxy-status");
        assert_eq!((response.status, told), (502, Some("edge; error=http_protocol_error")), "{path} with a body");
        let h2 = H2Client::connect(edge.web()).await;
        for body in [&b""[..], b"body"] {
            let response = soon("an answer", h2.request("PUT", path, &[], body)).await.expect("answered");
            let told = response.header("proxy-status");
            assert_eq!((response.status, told), (502, Some("edge; error=http_protocol_error")), "{path} over HTTP/2");
        }
    }
}

/// What comes after a whole response belongs to no request: it is no answer to the next one.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_nobody_asked_for_is_given_to_nobody() {
    let answer =
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nfirstHTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled";
    let (address, connections, _origin) = origin(answer, false).await;
    let edge = Edge::start(YAML, &[("app", address)]);
    for _ in 0..3 {
        for path in ["/bare", "/filtered"] {
            assert_eq!(Client::get(edge.web(), path).await.text(), "first");
        }
    }
    assert_eq!(connections.load(Ordering::SeqCst), 6, "none of those connections is used again");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_that_falls_silent_is_waited_for_as_long_as_is_written() {
    let rows: &[(&[u8], &str)] = &[
        (b"", "504"),
        (b"HTTP/1.1 200 OK\r\ncontent-le", "504"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello", "cut off"),
    ];
    for (answer, expected) in rows {
        let (address, _connections, _origin) = origin(answer, false).await;
        let edge = Edge::start(YAML, &[("app", address)]);
        for body in [false, true] {
            let told = soon("an end", told(&edge, "PUT", "/late", body)).await;
            assert!(told.len() == 1 && told[0].starts_with(expected), "{body} {told:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_client_leaves_the_upstream_is_left_too() {
    for (path, begun) in [("/bare", false), ("/bare", true), ("/filtered", false), ("/filtered", true)] {
        let (asked, left) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (asking, leaving) = (Arc::clone(&asked), Arc::clone(&left));
        let (address, _origin) = Origin::raw(move |mut stream| {
            let (asked, left) = (Arc::clone(&asking), Arc::clone(&leaving));
            async move {
                if read_request(&mut stream).await.is_none() {
                    return;
                }
                if begun {
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello").await;
                }
                asked.fetch_add(1, Ordering::SeqCst);
                let _ = stream.read(&mut [0; 1]).await;
                left.fetch_add(1, Ordering::SeqCst);
            }
        })
        .await;
        let edge = Edge::start(YAML, &[("app", address)]);
        let mut client = Client::connect(edge.web()).await;
        client.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
        until("the origin is asked", || asked.load(Ordering::SeqCst) == 1).await;
        drop(client);
        until("the origin is left", || left.load(Ordering::SeqCst) == 1).await;
    }
}

/// Fields for one connection alone are not passed on.
#[tokio::test(flavor = "multi_thread")]
async fn upstreams_see_the_same_request_whichever_way_it_comes() {
    let heads = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let seen = Arc::clone(&heads);
    let (address, _origin) = Origin::raw(move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            while let Some(head) = read_request(&mut stream).await {
                seen.lock().push(head);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    let edge = Edge::start(YAML, &[("app", address)]);
    let fields = "keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nte: trailers\r\ntrailer: x\r\nproxy-authorization: secret\r\n\
                  connection: keep-alive\r\nhttp2-settings: a\r\nx-own: kept\r\ncookie: a=b\r\n";
    for path in ["/bare", "/filtered"] {
        for (length, body) in [("", ""), ("content-length: 4\r\n", "body")] {
            let mut client = Client::connect(edge.web()).await;
            let request = format!("DELETE {path}?q=%20 HTTP/1.1\r\nhost: test:80\r\n{fields}{length}\r\n{body}");
            assert_eq!(client.request(&request).await.status, 200);
        }
    }
    let heads = heads.lock();
    let lines = |head: &str| {
        let mut lines: Vec<_> =
            head.lines().filter(|line| !line.starts_with("content-length")).map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(heads.len(), 4);
    assert!(heads[0].contains("x-own: kept") && heads[0].contains("cookie: a=b") && !heads[0].contains("secret"));
    for pair in heads.chunks(2) {
        assert_eq!(lines(&pair[0]), lines(&pair[1]));
    }
}
