//! Which connections to upstreams are kept, and for how long: whatever way a request goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use selvedge_tests::grpc::GrpcServer;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// What an origin has seen of connections.
#[derive(Default)]
struct Seen {
    made: AtomicUsize,
    open: AtomicUsize,
    requests: AtomicUsize,
    /// Requests that said they were a connection's last.
    last: AtomicUsize,
}

struct Counted(SocketAddr, Arc<Seen>, JoinHandle<()>);

/// An origin that answers 200, and `held` requests only when `gate` lets them. It never closes a connection by itself.
async fn counting(gate: Option<Arc<Semaphore>>) -> Counted {
    let seen = Arc::new(Seen::default());
    let counts = Arc::clone(&seen);
    let (address, task) = Origin::raw(move |mut stream| {
        let (counts, gate) = (Arc::clone(&counts), gate.clone());
        async move {
            counts.made.fetch_add(1, Ordering::SeqCst);
            counts.open.fetch_add(1, Ordering::SeqCst);
            loop {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else {
                        counts.open.fetch_sub(1, Ordering::SeqCst);
                        return;
                    };
                    head.push(byte);
                }
                let head = String::from_utf8(head).expect("text").to_ascii_lowercase();
                if head.contains("content-length: 4\r\n") {
                    stream.read_exact(&mut [0; 4]).await.expect("the body");
                }
                counts.requests.fetch_add(1, Ordering::SeqCst);
                counts.last.fetch_add(usize::from(head.contains("connection: close\r\n")), Ordering::SeqCst);
                if let Some(gate) = &gate {
                    gate.acquire().await.expect("never closed").forget();
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            }
        }
    })
    .await;
    Counted(address, seen, task)
}

/// A node of one worker: bare requests without a body go by our own client, all others by Pingora's; those of `hedged` are in our own hands.
fn node(pool: &str) -> String {
    format!(
        "cache: {{}}
upstreams:
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], pool: {pool} }}
  hedged: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], hedge: {{ after: 20s }}, pool: {pool} }}
filters: {{ noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: bare, match: {{ path: /bare }}, to: app }}
      - {{ name: filtered, match: {{ path: /filtered }}, filters: [noop], to: app }}
      - {{ name: \"stored-${{ID}}\", match: {{ path: /stored }}, cache: {{}}, to: app }}
      - {{ name: hedged, match: {{ path: /hedged }}, to: hedged }}
"
    )
}

/// Every way to an upstream of HTTP/1.1.
const WAYS: [(&str, &str, bool); 6] = [
    ("GET", "/bare", false),
    ("PUT", "/bare", true),
    ("GET", "/filtered", false),
    ("PUT", "/filtered", true),
    ("GET", "/stored", false),
    ("GET", "/hedged", false),
];

async fn ask(edge: SocketAddr, (method, path, body): (&str, &str, bool)) {
    let (length, body) = if body { ("content-length: 4\r\n", "body") } else { ("", "") };
    let mut client = Client::connect(edge).await;
    client.send(format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{length}\r\n{body}").as_bytes()).await;
    assert_eq!(client.response(method).await.status, 200, "{method} {path}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_carries_no_more_requests_than_it_may() {
    for way in WAYS {
        let Counted(address, seen, _origin) = counting(None).await;
        let edge = Edge::start(&node("{ max_requests: 3 }"), &[("app", address)]);
        for _ in 0..7 {
            ask(edge.web(), way).await;
        }
        assert_eq!(seen.made.load(Ordering::SeqCst), 3, "{way:?}");
        assert_eq!(seen.last.load(Ordering::SeqCst), 2, "{way:?}: the third and the sixth");
        until("the worn ones are closed", || seen.open.load(Ordering::SeqCst) == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_too_old_carries_one_more_request() {
    for way in WAYS {
        let Counted(address, seen, _origin) = counting(None).await;
        let edge = Edge::start(&node("{ max_age: 1ms }"), &[("app", address)]);
        ask(edge.web(), way).await;
        let mut rounds = 1;
        // However quick this is, at some time it is a millisecond later.
        while seen.last.load(Ordering::SeqCst) == 0 {
            rounds += 1;
            assert!(rounds < 10_000);
            ask(edge.web(), way).await;
        }
        let made = seen.made.load(Ordering::SeqCst);
        ask(edge.web(), way).await;
        assert_eq!(seen.made.load(Ordering::SeqCst), made + 1, "{way:?}");

        let Counted(address, seen, _origin) = counting(None).await;
        let edge = Edge::start(&node("{ max_age: 1h }"), &[("app", address)]);
        for _ in 0..5 {
            ask(edge.web(), way).await;
        }
        assert_eq!((seen.made.load(Ordering::SeqCst), seen.last.load(Ordering::SeqCst)), (1, 0), "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_none_is_kept_each_request_has_its_own() {
    for way in WAYS {
        let Counted(address, seen, _origin) = counting(None).await;
        let edge = Edge::start(&node("{ idle: 0 }"), &[("app", address)]);
        for _ in 0..3 {
            ask(edge.web(), way).await;
        }
        assert_eq!((seen.made.load(Ordering::SeqCst), seen.last.load(Ordering::SeqCst)), (3, 3), "{way:?}");
        until("all are closed", || seen.open.load(Ordering::SeqCst) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_unused_connections_are_kept_than_may_be() {
    for way in WAYS {
        let gate = Arc::new(Semaphore::new(0));
        let Counted(address, seen, _origin) = counting(Some(Arc::clone(&gate))).await;
        let edge = Edge::start(&node("{ idle: 2 }"), &[("app", address)]);
        let web = edge.web();
        // What is stored is fetched once for all who ask: these are different objects.
        let paths: Vec<_> = (0..5).map(|number| format!("{}?{number}", way.1)).collect();
        let asked: Vec<_> = paths
            .iter()
            .cloned()
            .map(|path| tokio::spawn(async move { ask(web, (way.0, &path, way.2)).await }))
            .collect();
        until("all are at the origin", || seen.requests.load(Ordering::SeqCst) == 5).await;
        assert_eq!(seen.made.load(Ordering::SeqCst), 5, "{way:?}");
        gate.add_permits(100);
        for one in asked {
            soon("an answer", one).await.expect("answered");
        }
        until("two are left", || seen.open.load(Ordering::SeqCst) == 2).await;
        for number in 5..9 {
            ask(web, (way.0, &format!("{}?{number}", way.1), way.2)).await;
        }
        assert_eq!((seen.made.load(Ordering::SeqCst), seen.open.load(Ordering::SeqCst)), (5, 2), "{way:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_http2_wear_out_too_and_what_is_on_them_goes_on() {
    let yaml = |pool: &str| {
        format!(
            "upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], protocol: h2, pool: {pool} }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: all, to: app }}] }}]"
        )
    };
    let message = |text: &str| {
        let length = u32::try_from(text.len()).expect("short").to_be_bytes();
        bytes::Bytes::from([&[0], &length[..], text.as_bytes()].concat())
    };
    let server = GrpcServer::start().await;
    let edge = Edge::start(&yaml("{ max_requests: 3 }"), &[("app", server.address())]);
    let client = H2Client::connect(edge.web()).await;
    let (chat, mut say) = client.open("POST", "/a/Chat", &[], false).await.expect("opened");
    say.send_data(message("one"), false).expect("sent");
    let mut chat = soon("the answer begins", chat).await.expect("begun").into_body();
    assert_eq!(soon("an answer", chat.data()).await.expect("some").expect("whole"), message("re one"));
    for _ in 0..5 {
        let answer = client.request("POST", "/a/Unary", &[], &message("x")).await.expect("answered");
        assert_eq!(answer.status, 200);
    }
    assert_eq!(server.connections(), 2, "six requests, three on each");
    say.send_data(message("two"), true).expect("sent");
    assert_eq!(soon("an answer", chat.data()).await.expect("some").expect("whole"), message("re two"));

    let server = GrpcServer::start().await;
    let edge = Edge::start(&yaml("{ idle: 0 }"), &[("app", server.address())]);
    let client = H2Client::connect(edge.web()).await;
    let mut before = 0;
    until_asked(&client, &message("x"), || {
        let made = server.connections();
        std::mem::replace(&mut before, made) > 0 && made >= 3
    })
    .await;
}

/// Asks until it holds: an unused connection is closed at once, but by another task.
async fn until_asked(client: &H2Client, body: &[u8], mut holds: impl FnMut() -> bool) {
    let asking = async {
        while !holds() {
            assert_eq!(client.request("POST", "/a/Unary", &[], body).await.expect("answered").status, 200);
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asking).await.expect("connections are closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_with_one_endpoint_do_not_share_connections_that_have_rules() {
    let yaml = "upstreams:
  one: { endpoints: [\"127.0.0.1:${PORT_app}\"], pool: { max_age: 1h } }
  other: { endpoints: [\"127.0.0.1:${PORT_app}\"], pool: { max_age: 2h } }
sites: [{ hosts: [\"*\"], routes: [{ name: one, match: { path: /one }, to: one }, { name: other, to: other }] }]";
    let Counted(address, seen, _origin) = counting(None).await;
    let edge = Edge::start(yaml, &[("app", address)]);
    for _ in 0..2 {
        for way in [("GET", "/one", false), ("GET", "/other", false)] {
            ask(edge.web(), way).await;
        }
    }
    assert_eq!(seen.made.load(Ordering::SeqCst), 2);
}
