//! Origins that are dead, hang, drip, break off or say they cannot: what is tried again, how often, how long it may take, and how much at
//! once.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, closed, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// A node with two endpoints, `bad` and then `good`, and two ways to them: `/bare/` and, through a filter, `/filtered/`.
fn two(settings: &str) -> String {
    format!(
        "filters: {{ noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_bad}}\", \"127.0.0.1:${{PORT_good}}\"], {settings} }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: bare, match: {{ path: /bare/* }}, to: app }}
      - {{ name: filtered, match: {{ path: /filtered/* }}, filters: [noop], to: app }}
"
    )
}

/// A node with one endpoint, and one route.
fn one(settings: &str) -> String {
    format!(
        "upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], {settings} }} }}
sites: [{{ hosts: [\"*\"], routes: [{{ name: all, to: app }}] }}]"
    )
}

async fn good() -> Origin {
    Origin::start(|request| Origin::reply(200, &[], format!("good {}", request.body.len()))).await
}

async fn answers(status: u16) -> Origin {
    Origin::start(move |_| Origin::reply(status, &[], "bad")).await
}

/// What an origin does with each request, in bytes.
#[derive(Clone, Copy)]
enum Fault {
    /// Closes without a word.
    Close,
    /// Closes within the header.
    HalfHeader,
    /// Says something that is no HTTP.
    Garbage,
    /// Says nothing, and stays.
    Hang,
    /// Sends a header that never ends, a byte at a time.
    DripHeader,
    /// Sends a body without length that never ends, a byte at a time.
    DripBody,
}

/// An origin with a fault. Counts requests.
async fn faulty(fault: Fault) -> (SocketAddr, Arc<AtomicUsize>, JoinHandle<()>) {
    let read = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&read);
    let (address, task) = Origin::raw(move |mut stream| {
        let counter = Arc::clone(&counter);
        async move {
            while read_header(&mut stream).await {
                counter.fetch_add(1, Ordering::SeqCst);
                if misbehave(&mut stream, fault).await.is_none() {
                    return;
                }
            }
        }
    })
    .await;
    (address, read, task)
}

async fn read_header(stream: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return false,
        }
    }
    true
}

async fn misbehave(stream: &mut TcpStream, fault: Fault) -> Option<()> {
    match fault {
        Fault::Close => None,
        Fault::HalfHeader => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-le").await;
            None
        }
        Fault::Garbage => {
            let _ = stream.write_all(b"SSH-2.0-nonsense\r\n\r\n").await;
            None
        }
        Fault::Hang => {
            // Until the other side goes.
            let _ = stream.read_u8().await;
            None
        }
        Fault::DripHeader => drip(stream, b"HTTP/1.1 200 OK\r\nx-long: ").await,
        Fault::DripBody => drip(stream, b"HTTP/1.1 200 OK\r\n\r\n").await,
    }
}

/// Sends this, and then a byte every few milliseconds, until the other side goes.
async fn drip(stream: &mut TcpStream, first: &[u8]) -> Option<()> {
    stream.write_all(first).await.ok()?;
    let mut beat = tokio::time::interval(Duration::from_millis(10));
    loop {
        beat.tick().await;
        stream.write_all(b"a").await.ok()?;
    }
}

fn proxy_status(response: &selvedge_tests::Response) -> Option<&str> {
    response.header("proxy-status")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_tried_again_at_another_endpoint() {
    let (bad, good) = (answers(503).await, good().await);
    let edge = Edge::start(&two("retries: { when: [503] }"), &[("bad", bad.address()), ("good", good.address())]);
    for way in ["bare", "filtered"] {
        for _ in 0..4 {
            let response = Client::get(edge.web(), &format!("/{way}/")).await;
            assert_eq!((response.status, response.text().as_str()), (200, "good 0"), "{way}");
        }
    }
    assert_eq!((bad.started(), good.started()), (4, 8), "the turns go to both, and from the bad one to the other");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_methods_that_may_be_are_sent_again_and_with_their_whole_body() {
    let (bad, good) = (answers(503).await, good().await);
    let origins = [("bad", bad.address()), ("good", good.address())];
    let careful = Edge::start(&two("retries: { when: [503] }"), &origins);
    let daring = Edge::start(&two("retries: { when: [503], methods: [POST] }"), &origins);
    for way in ["/bare/", "/filtered/"] {
        let statuses = [
            Client::post(careful.web(), way, "", b"body").await.status,
            Client::post(careful.web(), way, "", b"body").await.status,
        ];
        assert_eq!(statuses, [503, 200], "{way}");
        let mut bodies = Vec::new();
        for _ in 0..2 {
            bodies.push(Client::post(daring.web(), way, "", b"body").await.text());
        }
        // What a filter has let through chunk by chunk is not held.
        assert_eq!(bodies, if way == "/bare/" { ["good 4"; 2] } else { ["bad", "good 4"] }, "{way}");
        // More than is held: it cannot be sent again.
        let large = vec![b'x'; 200_000];
        let mut statuses = [0; 2];
        for status in &mut statuses {
            *status = Client::post(daring.web(), way, "", &large).await.status;
        }
        assert_eq!(statuses, [503, 200], "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_exchange_is_tried_again_when_asked_for_and_else_is_told() {
    let cases = [
        (Fault::Close, "edge; error=http_response_incomplete"),
        (Fault::HalfHeader, "edge; error=http_response_incomplete"),
        (Fault::Garbage, "edge; error=http_protocol_error"),
    ];
    for (fault, told) in cases {
        let (bad, asked, _origin) = faulty(fault).await;
        let good = good().await;
        let origins = [("bad", bad), ("good", good.address())];
        let edge = Edge::start(&two("retries: { when: [reset] }"), &origins);
        for way in ["/bare/", "/filtered/"] {
            for _ in 0..2 {
                assert_eq!(Client::get(edge.web(), way).await.status, 200, "{told} {way}");
            }
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2, "{told}");

        let edge = Edge::start(&one(""), &[("app", bad)]);
        let response = Client::get(edge.web(), "/").await;
        assert_eq!((response.status, proxy_status(&response)), (502, Some(told)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_attempts_answer_is_passed_on() {
    let bad = answers(503).await;
    let edge = Edge::start(&one("retries: { attempts: 4, when: [503], backoff: 1ms }"), &[("app", bad.address())]);
    let response = Client::get(edge.web(), "/").await;
    assert_eq!((response.status, response.text().as_str(), proxy_status(&response)), (503, "bad", None));
    assert_eq!(bad.started(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_over_http2_is_the_same() {
    let (bad, good) = (answers(502).await, good().await);
    let origins = [("bad", bad.address()), ("good", good.address())];
    let edge = Edge::start(&two("protocol: h2, retries: { when: [502] }"), &origins);
    let client = H2Client::connect(edge.web()).await;
    for way in ["/bare/", "/filtered/", "/bare/", "/filtered/"] {
        let response = client.request("GET", way, &[], b"").await.expect("answered");
        assert_eq!((response.status, response.text().as_str()), (200, "good 0"), "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_fail_are_tried_again_unless_one_attempt_is_all() {
    let good = good().await;
    let origins = [("bad", closed()), ("good", good.address())];
    let usual = Edge::start(&two("balance: round_robin"), &origins);
    let once = Edge::start(&two("retries: { attempts: 1 }"), &origins);
    let mut statuses = Vec::new();
    for edge in [usual, once] {
        for _ in 0..2 {
            statuses.push(Client::post(edge.web(), "/bare/", "", b"body").await.status);
        }
    }
    assert_eq!(statuses, [200, 200, 502, 200]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_bounds_what_a_failing_upstream_is_sent_on_top() {
    let bad = answers(500).await;
    let edge =
        Edge::start(&one("retries: { attempts: 2, when: [500], budget: 0%, backoff: 0s }"), &[("app", bad.address())]);
    let mut client = Client::connect(edge.web()).await;
    for _ in 0..30 {
        assert_eq!(client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.status, 500);
    }
    assert_eq!(bad.started(), 30 + 10, "ten are there from the start");
    let traffic = edge.plan().upstreams.get("app").expect("configured").traffic();
    assert_eq!((traffic.retries, traffic.retries_refused), (10, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_answered_in_time_is_given_up_or_tried_again() {
    for fault in [Fault::Hang, Fault::DripHeader] {
        let (bad, asked, _origin) = faulty(fault).await;
        let edge = Edge::start(&one("timeouts: { first_byte: 200ms }"), &[("app", bad)]);
        let begun = Instant::now();
        let response = soon("an answer", Client::get(edge.web(), "/")).await;
        assert_eq!((response.status, proxy_status(&response)), (504, Some("edge; error=connection_read_timeout")));
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(200) && took < Duration::from_secs(10), "{took:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 1);

        let good = good().await;
        // Long enough for the one that answers, on a machine that is busy.
        let settings = "timeouts: { first_byte: 1500ms }, retries: { when: [timeout] }";
        let edge = Edge::start(&two(settings), &[("bad", bad), ("good", good.address())]);
        for way in ["/bare/", "/filtered/", "/bare/", "/filtered/"] {
            assert_eq!(soon("an answer", Client::get(edge.web(), way)).await.status, 200, "{way}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_beginning_is_in_time_when_its_limit_is_not_reached() {
    let origin = Origin::start_async(|_| {
        Box::pin(async {
            let (body, response) = Origin::streaming(200, &[]);
            tokio::spawn(async move {
                // Longer than the limit for the first byte, which is over by then.
                let mut beat = tokio::time::interval(Duration::from_millis(500));
                for _ in 0..5 {
                    beat.tick().await;
                    let _ = body.send("x".into());
                }
            });
            response
        })
    })
    .await;
    let edge = Edge::start(&one("timeouts: { first_byte: 1500ms }"), &[("app", origin.address())]);
    let mut client = Client::connect(edge.web()).await;
    for _ in 0..2 {
        let response = client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert_eq!((response.status, response.text().as_str()), (200, "xxxxx"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_whole_exchange_is_bounded_with_all_its_attempts() {
    let (hangs, asked, _origin) = faulty(Fault::Hang).await;
    let settings =
        "timeouts: { first_byte: 1s, total: 2500ms }, retries: { attempts: 10, when: [timeout], backoff: 0s }";
    let edge = Edge::start(&one(settings), &[("app", hangs)]);
    let begun = Instant::now();
    let response = soon("an answer", Client::get(edge.web(), "/")).await;
    assert_eq!((response.status, proxy_status(&response)), (504, Some("edge; error=connection_read_timeout")));
    assert!(begun.elapsed() >= Duration::from_millis(2500), "{:?}", begun.elapsed());
    assert!((2..=3).contains(&asked.load(Ordering::SeqCst)), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_cut_off_by_its_time_is_never_taken_for_whole() {
    let (drips, asked, _origin) = faulty(Fault::DripBody).await;
    let yaml = "cache: {}
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"], timeouts: { total: 1500ms } } }
sites: [{ hosts: [\"*\"], routes: [{ name: \"total-${ID}\", cache: { ttl: 1m }, to: app }] }]";
    for yaml in [one("timeouts: { total: 1500ms }"), yaml.to_owned()] {
        asked.store(0, Ordering::SeqCst);
        let edge = Edge::start(&yaml, &[("app", drips)]);
        for request in 1..=2 {
            let mut client = Client::connect(edge.web()).await;
            client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            let cut = soon("the end", client.try_response("GET")).await;
            assert!(cut.is_err(), "the client is told that it is not whole: {cut:?}");
            assert_eq!(asked.load(Ordering::SeqCst), request, "it is not stored");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgraded_connection_lasts_as_long_as_both_want() {
    let (address, _origin) = Origin::raw(|mut stream| async move {
        if read_header(&mut stream).await {
            let _ = stream
                .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
                .await;
            let (mut read, mut write) = stream.split();
            let _ = tokio::io::copy(&mut read, &mut write).await;
        }
    })
    .await;
    let edge = Edge::start(&one("timeouts: { first_byte: 2s, total: 2s }"), &[("app", address)]);
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(soon("the upgrade", client.head()).await.expect("a header").0, 101);
    let begun = Instant::now();
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    while begun.elapsed() < Duration::from_millis(2400) {
        beat.tick().await;
        client.send(b"ping").await;
        assert_eq!(soon("an echo", client.exactly(4)).await.expect("open"), b"ping");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_after_a_retry_is_stored() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let origin = Origin::start(move |_| match counter.fetch_add(1, Ordering::SeqCst) {
        0 => Origin::reply(503, &[], "not yet"),
        _ => Origin::reply(200, &[("cache-control", "max-age=60")], "now"),
    })
    .await;
    let yaml = "cache: {}
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"], retries: { when: [503], backoff: 1ms } } }
sites: [{ hosts: [\"*\"], routes: [{ name: \"stored-${ID}\", cache: {}, to: app }] }]";
    let edge = Edge::start(yaml, &[("app", origin.address())]);
    for _ in 0..3 {
        let response = Client::get(edge.web(), "/").await;
        assert_eq!((response.status, response.text().as_str()), (200, "now"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

/// An origin whose answers wait for permits.
async fn gated() -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let entrance = Arc::clone(&gate);
    let origin = Origin::start_async(move |_| {
        let entrance = Arc::clone(&entrance);
        Box::pin(async move {
            entrance.acquire().await.expect("open").forget();
            Origin::reply(200, &[], "ok")
        })
    })
    .await;
    (origin, gate)
}

fn ask(edge: &Edge) -> JoinHandle<(u16, Option<String>)> {
    let address = edge.web();
    tokio::spawn(async move {
        let response = Client::get(address, "/").await;
        (response.status, response.header("proxy-status").map(ToOwned::to_owned))
    })
}

const FULL: (u16, Option<&str>) = (503, Some("edge; error=connection_limit_reached"));

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_limit_is_at_the_upstream_and_the_rest_is_refused() {
    let (origin, gate) = gated().await;
    let edge = Edge::start(&one("limits: { requests: 2 }"), &[("app", origin.address())]);
    let held = [ask(&edge), ask(&edge)];
    until("two are there", || origin.started() == 2).await;
    for _ in 0..3 {
        let (status, why) = soon("a refusal", ask(&edge)).await.expect("answered");
        assert_eq!((status, why.as_deref()), FULL);
    }
    gate.add_permits(3);
    for held in held {
        assert_eq!(soon("an answer", held).await.expect("answered").0, 200);
    }
    assert_eq!(soon("an answer", ask(&edge)).await.expect("answered").0, 200, "there is room again");
    assert_eq!(origin.started(), 3);
    assert_eq!(edge.plan().upstreams.get("app").expect("configured").traffic().refused, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_in_the_queue_get_the_room_that_becomes_free() {
    let (origin, gate) = gated().await;
    let edge = Edge::start(&one("limits: { requests: 1, queue: 2, wait: 30s }"), &[("app", origin.address())]);
    let upstream = Arc::clone(edge.plan().upstreams.get("app").expect("configured"));
    let first = ask(&edge);
    until("the first is there", || origin.started() == 1).await;
    let waiting = [ask(&edge), ask(&edge)];
    until("two wait", || upstream.traffic().waiting == 2).await;
    let (status, why) = soon("a refusal", ask(&edge)).await.expect("answered");
    assert_eq!((status, why.as_deref()), FULL, "the queue is full");
    assert_eq!(origin.started(), 1);
    gate.add_permits(3);
    for request in [first].into_iter().chain(waiting) {
        assert_eq!(soon("an answer", request).await.expect("answered").0, 200);
    }
    assert_eq!((origin.started(), upstream.traffic().waiting), (3, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_too_long_is_refused_and_who_leaves_makes_room() {
    let (origin, _gate) = gated().await;
    let edge = Edge::start(&one("limits: { requests: 1, queue: 1, wait: 200ms }"), &[("app", origin.address())]);
    let mut first = Client::connect(edge.web()).await;
    first.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    until("the first is there", || origin.started() == 1).await;
    let begun = Instant::now();
    let (status, why) = soon("a refusal", ask(&edge)).await.expect("answered");
    assert_eq!((status, why.as_deref()), FULL);
    assert!(begun.elapsed() >= Duration::from_millis(200), "{:?}", begun.elapsed());

    drop(first);
    let upstream = Arc::clone(edge.plan().upstreams.get("app").expect("configured"));
    until("its place is free", || upstream.endpoints()[0].in_flight == 0).await;
    let next = ask(&edge);
    until("the next is there", || origin.started() == 2).await;
    next.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_full_is_passed_over() {
    let (one, gate_one) = gated().await;
    let (other, gate_other) = gated().await;
    for balance in ["round_robin", "least_request", "ewma", "{ consistent_hash: { by: path } }"] {
        let app = format!("limits: {{ per_endpoint: 1, queue: 1, wait: 30s }}, balance: {balance}");
        let edge = Edge::start(
            &two(&app).replace("path: /bare/*", "path: /*"),
            &[("bad", one.address()), ("good", other.address())],
        );
        let (before_one, before_other) = (one.started(), other.started());
        let held = [ask(&edge), ask(&edge)];
        until("each has one", || one.started() == before_one + 1 && other.started() == before_other + 1).await;
        let upstream = Arc::clone(edge.plan().upstreams.get("app").expect("configured"));
        let waiting = ask(&edge);
        until("one waits", || upstream.traffic().waiting == 1).await;
        let (status, why) = soon("a refusal", ask(&edge)).await.expect("answered");
        assert_eq!((status, why.as_deref()), FULL, "{balance}");
        gate_one.add_permits(1);
        until("it has gone to the one that is free", || one.started() == before_one + 2).await;
        gate_one.add_permits(1);
        gate_other.add_permits(1);
        for request in held.into_iter().chain([waiting]) {
            assert_eq!(soon("an answer", request).await.expect("answered").0, 200, "{balance}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_and_refusals_are_in_the_metrics() {
    let (bad, good) = (answers(503).await, good().await);
    let yaml = format!(
        "telemetry: {{ metrics: {{ bind: \"127.0.0.1:0\" }}, access_log: {{ output: off }} }}\nversion: 1
node: {{ name: edge, workers: 1 }}\nlisteners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}\n{}",
        two(
            "retries: { when: [503] }, limits: { requests: 9 }, outlier: { consecutive_gateway: 1, eject: 1h, eject_max: 1h }"
        )
    );
    let edge = Edge::start(&format!("\n{yaml}"), &[("bad", bad.address()), ("good", good.address())]);
    for _ in 0..2 {
        assert_eq!(Client::get(edge.listener("web"), "/bare/").await.status, 200);
    }
    let page = Client::get(edge.metrics(), "/metrics").await.text();
    let ejections = |origin: &Origin, count: u8| {
        let endpoint = origin.address();
        format!("selvedge_upstream_ejections_total{{upstream=\"app\",endpoint=\"{endpoint}\"}} {count}")
    };
    for line in [
        &*ejections(&bad, 1),
        &*ejections(&good, 0),
        "selvedge_upstream_retries_total{upstream=\"app\"} 1",
        "selvedge_upstream_retries_refused_total{upstream=\"app\"} 0",
        "selvedge_upstream_refused_total{upstream=\"app\"} 0",
        "selvedge_upstream_waiting{upstream=\"app\"} 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
}
