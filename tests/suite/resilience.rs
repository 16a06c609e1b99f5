//! When an upstream breaks off or is not there: what is sent again, and what the client is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use selvedge_tests::{Client, Edge, Origin};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

/// Routes without and with filters; each has an upstream, so a pool of connections, of its own.
const YAML: &str = "upstreams:
  bare: { endpoints: [\"127.0.0.1:${PORT_bare}\"] }
  filtered: { endpoints: [\"127.0.0.1:${PORT_filtered}\"] }
filters: { noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 5s } } }
sites:
  - hosts: [\"*\"]
    routes:
      - { name: bare, match: { path: /bare/* }, to: bare }
      - { name: filtered, match: { path: /filtered/* }, filters: [noop], to: filtered }
";

/// Reads a request with a body of four bytes or none; whether there was one.
async fn read_request(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    !head.starts_with(b"POST") || stream.read_exact(&mut [0; 4]).await.is_ok()
}

/// An origin that answers the first request of each connection, and closes when it has read the second. Counts requests.
async fn breaks_off_at_the_second() -> (SocketAddr, Arc<AtomicUsize>, JoinHandle<()>) {
    let read = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    let (address, task) = Origin::raw(move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            if read_request(&mut stream).await {
                counter.fetch_add(1, Ordering::SeqCst);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                if read_request(&mut stream).await {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    })
    .await;
    (address, read, task)
}

/// What the second request, on the connection of the first, was answered with, and how many requests the origin has read.
async fn second(method: &str, way: &str) -> (u16, Option<String>, usize) {
    let (address, read, _origin) = breaks_off_at_the_second().await;
    let edge = Edge::start(YAML, &[("bare", address), ("filtered", address)]);
    let ask = || async {
        match method {
            "POST" => Client::post(edge.web(), &format!("/{way}/"), "", b"body").await,
            _ => Client::get(edge.web(), &format!("/{way}/")).await,
        }
    };
    assert_eq!(ask().await.status, 200);
    let response = ask().await;
    let plan = edge.plan();
    let traffic = plan.upstreams.get(way).expect("configured").traffic();
    assert_eq!(traffic.retries, 0, "a closed connection that was kept is no retry, and nothing is waited for");
    (response.status, response.header("proxy-status").map(ToOwned::to_owned), read.load(Ordering::SeqCst))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_is_not_sent_twice_when_a_reused_connection_is_closed() {
    for way in ["bare", "filtered"] {
        let (status, why, read) = second("POST", way).await;
        assert_eq!((status, why.as_deref()), (502, Some("edge; error=http_response_incomplete")), "{way}");
        assert_eq!(read, 2, "{way}: the first request, and the POST once");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_get_is_sent_again_when_a_reused_connection_is_closed() {
    for way in ["bare", "filtered"] {
        let (status, why, read) = second("GET", way).await;
        assert_eq!((status, why, read), (200, None, 3), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_the_destination_is_to_blame_not_the_request() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "ok")).await;
    let edge = Edge::start(YAML, &[("bare", origin.address()), ("filtered", origin.address())]);
    for way in ["bare", "filtered"] {
        let plan = edge.plan();
        let upstream = plan.upstreams.get(way).expect("configured");
        assert!(upstream.drain(upstream.endpoints()[0].id, true));
        let response = Client::get(edge.web(), &format!("/{way}/")).await;
        let why = response.header("proxy-status");
        assert_eq!((response.status, why), (503, Some("edge; error=destination_unavailable")), "{way}");
    }
    assert_eq!(origin.started(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_endpoint_a_stale_answer_stands_in_unless_it_must_not() {
    let origin = Origin::start(|request| {
        let fresh = if request.target == "/strict" { "max-age=60, must-revalidate" } else { "max-age=60" };
        Origin::reply(200, &[("cache-control", fresh), ("age", "100")], "old")
    })
    .await;
    let yaml = "cache: {}
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
sites: [{ hosts: [\"*\"], routes: [{ name: \"stale-${ID}\", cache: {}, to: app }] }]";
    let edge = Edge::start(yaml, &[("app", origin.address())]);
    for path in ["/silent", "/strict"] {
        assert_eq!(Client::get(edge.web(), path).await.status, 200);
    }
    let plan = edge.plan();
    let upstream = plan.upstreams.get("app").expect("configured");
    assert!(upstream.drain(upstream.endpoints()[0].id, true));
    let stale = Client::get(edge.web(), "/silent").await;
    assert_eq!((stale.status, stale.text().as_str()), (200, "old"));
    let strict = Client::get(edge.web(), "/strict").await;
    assert_eq!((strict.status, strict.header("proxy-status")), (503, Some("edge; error=destination_unavailable")));
}
