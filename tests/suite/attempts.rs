//! Attempts in our own hands: time limits towards HTTP/2 that end one stream, and a second endpoint that is asked while the first is
//! silent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use selvedge::upstream::TrafficStatus;
use selvedge_tests::grpc::GrpcServer;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, closed, soon, until};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// A message of gRPC.
fn frame(message: &str) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0], &length[..], message.as_bytes()].concat()
}

/// A node with an HTTP/2 upstream, and two ways to it: `/bare/`, and `/filtered/` through a filter.
fn shared(settings: &str) -> String {
    format!(
        "filters: {{ noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], protocol: h2, {settings} }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: bare, match: {{ path: /bare/* }}, to: app }}
      - {{ name: filtered, match: {{ path: /filtered/* }}, filters: [noop], to: app }}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_that_does_not_begin_in_time_ends_its_stream_and_no_other() {
    for way in ["bare", "filtered"] {
        let server = GrpcServer::start().await;
        let edge = Edge::start(&shared("timeouts: { first_byte: 1500ms }"), &[("app", server.address())]);
        let client = H2Client::connect(edge.web()).await;
        let (chat, mut say) = client.open("POST", &format!("/{way}/Chat"), &[], false).await.unwrap();
        say.send_data(Bytes::from(frame("one")), false).unwrap();
        let mut chat = soon("the answer begins", chat).await.unwrap().into_body();
        assert_eq!(soon("an answer", chat.data()).await.unwrap().unwrap(), frame("re one"));

        let begun = Instant::now();
        let late = client.request("POST", &format!("/{way}/Hang"), &[], &frame("x")).await.unwrap();
        assert_eq!((late.status, late.header("proxy-status")), (504, Some("edge; error=connection_read_timeout")));
        assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
        until("the stream is reset", || server.resets() == 1).await;

        // Longer than the limit after its response has begun, on the same connection.
        say.send_data(Bytes::from(frame("two")), true).unwrap();
        assert_eq!(soon("an answer", chat.data()).await.unwrap().unwrap(), frame("re two"));
        assert!(soon("the end", chat.data()).await.is_none());
        assert_eq!(soon("trailers", chat.trailers()).await.unwrap().unwrap()["grpc-status"], "0");
        assert_eq!(server.connections(), 1, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_is_not_over_in_time_is_cut_off_alone() {
    for way in ["bare", "filtered"] {
        let server = GrpcServer::start().await;
        let edge = Edge::start(&shared("timeouts: { total: 1500ms }"), &[("app", server.address())]);
        let client = H2Client::connect(edge.web()).await;
        for method in ["Silent", "Flood"] {
            let (answer, mut say) = client.open("POST", &format!("/{way}/{method}"), &[], false).await.unwrap();
            say.send_data(Bytes::from(frame("x")), false).unwrap();
            let answer = soon("the answer begins", answer).await.unwrap();
            assert_eq!(answer.status(), 200);
            let cut = H2Client::collect(answer).await.expect_err("cut off");
            assert!(cut.is_reset(), "{cut:?}");
        }
        until("the streams are reset", || server.resets() == 2).await;
        let whole = client.request("POST", &format!("/{way}/Unary"), &[], &frame("x")).await.unwrap();
        assert_eq!((whole.status, whole.body.as_ref()), (200, &frame("echo x")[..]));
        assert_eq!(server.connections(), 1, "{way}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_whose_upload_takes_too_long_is_ended_too() {
    let server = GrpcServer::start().await;
    let edge = Edge::start(&shared("timeouts: { total: 1500ms }"), &[("app", server.address())]);
    let client = H2Client::connect(edge.web()).await;
    let (answer, _say) = client.open("POST", "/bare/Hang", &[], false).await.unwrap();
    assert_eq!(soon("an answer", answer).await.unwrap().status(), 504);
    until("the stream is reset", || server.resets() == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_through_our_own_hands_arrives_as_it_is() {
    let origin = Origin::start(|request| {
        if request.method == "HEAD" {
            return Origin::reply(200, &[("content-length", "7")], "");
        }
        let told = format!(
            "{} {} {} te={} connection={}",
            request.method,
            request.target,
            request.body.len(),
            request.header("te").unwrap_or("none"),
            request.header("connection").unwrap_or("none"),
        );
        Origin::reply(200, &[("x-host", request.header("host").or(request.header(":authority")).unwrap_or("-"))], told)
    })
    .await;
    let edge = Edge::start(&shared("timeouts: { first_byte: 20s, total: 30s }"), &[("app", origin.address())]);
    let client = H2Client::connect(edge.web()).await;
    for way in ["bare", "filtered"] {
        let hops = "connection: keep-alive, x-gone\r\nx-gone: 1\r\nte: gzip\r\nproxy-connection: close\r\n";
        let response = Client::get_with(edge.web(), &format!("/{way}/a?b=c"), hops).await;
        assert_eq!(response.text(), format!("GET /{way}/a?b=c 0 te=none connection=none"));
        assert!(origin.last().header("x-gone").is_none() && origin.last().header("proxy-connection").is_none());
        let response = Client::post(edge.web(), &format!("/{way}/"), "", &vec![b'x'; 300_000]).await;
        assert_eq!(response.text(), format!("POST /{way}/ 300000 te=none connection=none"));
        let response = client.request("PUT", &format!("/{way}/"), &[], &vec![b'x'; 300_000]).await.unwrap();
        assert_eq!(response.text(), format!("PUT /{way}/ 300000 te=none connection=none"));
        let response = client.request("HEAD", &format!("/{way}/"), &[], b"").await.unwrap();
        assert_eq!((response.status, response.header("content-length"), response.body.len()), (200, Some("7"), 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_late_is_tried_elsewhere_and_a_fill_is_never_cut_short() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let origin = Origin::start_async(move |_| {
        let first = counter.fetch_add(1, Ordering::SeqCst) == 0;
        Box::pin(async move {
            if first {
                std::future::pending::<()>().await;
            }
            let (chunks, served) = Origin::streaming(200, &[("cache-control", "max-age=60")]);
            let _ = chunks.send(Bytes::from_static(b"some"));
            tokio::spawn(async move {
                let _held = chunks; // No more comes.
                std::future::pending::<()>().await;
            });
            served
        })
    })
    .await;
    let yaml = "cache: {}
upstreams:
  app:
    endpoints: [\"127.0.0.1:${PORT_app}\"]
    protocol: h2
    timeouts: { first_byte: 1500ms, total: 4s }
    retries: { when: [timeout], backoff: 0s }
sites: [{ hosts: [\"*\"], routes: [{ name: \"filled-${ID}\", cache: {}, to: app }] }]";
    let edge = Edge::start(yaml, &[("app", origin.address())]);
    for round in 1..=2 {
        let mut client = Client::connect(edge.web()).await;
        client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let cut = soon("the end", client.try_response("GET")).await;
        assert!(cut.is_err(), "{cut:?}");
        assert_eq!(
            asked.load(Ordering::SeqCst),
            round + 1,
            "once more for the silence, and what is cut off is not stored"
        );
    }
}

/// A node with two endpoints, `slow` first, and three ways to them.
fn two(settings: &str) -> String {
    format!(
        "cache: {{}}
filters: {{ noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_slow}}\", \"127.0.0.1:${{PORT_quick}}\"], {settings} }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: bare, match: {{ path: /bare/* }}, to: app }}
      - {{ name: filtered, match: {{ path: /filtered/* }}, filters: [noop], to: app }}
      - {{ name: \"cached-${{ID}}\", match: {{ path: /cached/* }}, cache: {{ ttl: 1m }}, to: app }}
"
    )
}

fn traffic(edge: &Edge) -> TrafficStatus {
    edge.plan().upstreams.get("app").expect("configured").traffic()
}

fn in_flight(edge: &Edge) -> u32 {
    edge.plan().upstreams.get("app").expect("configured").endpoints().iter().map(|one| one.in_flight).sum()
}

/// An origin that reads requests and never answers. Counts them, and those who have given up.
async fn silent() -> (SocketAddr, Arc<[AtomicUsize; 2]>, JoinHandle<()>) {
    let counts = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
    let seen = Arc::clone(&counts);
    let (address, task) = Origin::raw(move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => return,
                }
            }
            seen[0].fetch_add(1, Ordering::SeqCst);
            let _ = stream.read_u8().await;
            seen[1].fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    (address, counts, task)
}

/// An origin whose answers, of this status, wait for permits.
async fn gated(status: u16) -> (Origin, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let entrance = Arc::clone(&gate);
    let origin = Origin::start_async(move |_| {
        let entrance = Arc::clone(&entrance);
        Box::pin(async move {
            entrance.acquire().await.expect("open").forget();
            Origin::reply(status, &[], "slow")
        })
    })
    .await;
    (origin, gate)
}

async fn quick(status: u16) -> Origin {
    Origin::start(move |_| Origin::reply(status, &[], "quick")).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_endpoint_answers_when_the_first_is_silent() {
    let ((slow, seen, _origin), quick) = (silent().await, quick(200).await);
    let edge = Edge::start(
        &two("hedge: { after: 1s, share: 100% }, retries: { budget: 100% }"),
        &[("slow", slow), ("quick", quick.address())],
    );
    let (mut asked, mut hedged) = (0, 0);
    for way in ["/bare/", "/filtered/", "/cached/a", "/cached/b"] {
        for _ in 0..2 {
            let response = soon("an answer", Client::get(edge.web(), way)).await;
            assert_eq!((response.status, response.text().as_str()), (200, "quick"), "{way}");
            asked += 1;
        }
        hedged = seen[0].load(Ordering::SeqCst);
        until("the loser is given up", || seen[1].load(Ordering::SeqCst) == hedged).await;
    }
    // Every second one goes to the silent endpoint first; the cache answers two.
    assert_eq!((asked, hedged), (8, 3));
    let told = traffic(&edge);
    assert_eq!((told.hedges, told.hedges_won, told.hedges_refused), (3, 3, 0));
    until("nothing is under way", || in_flight(&edge) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn towards_http2_the_loser_is_reset_and_its_connection_stays() {
    let (server, quick) = (GrpcServer::start().await, quick(200).await);
    let edge = Edge::start(
        &two("protocol: h2, hedge: { after: 1s, share: 100% }, retries: { budget: 100% }"),
        &[("slow", server.address()), ("quick", quick.address())],
    );
    let client = H2Client::connect(edge.web()).await;
    for way in ["/bare/Hang", "/filtered/Hang"] {
        for _ in 0..4 {
            let response = client.request("GET", way, &[], b"").await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (200, "quick"));
        }
    }
    until("four were reset", || server.resets() == 4).await;
    assert_eq!((server.connections(), traffic(&edge).hedges_won), (1, 4));
    assert_eq!(in_flight(&edge), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_is_not_taken_while_the_other_endpoint_may_do_better() {
    for (slow_status, quick_status, expected) in
        [(200, 503, (200, "slow")), (503, 200, (200, "quick")), (503, 500, (503, "slow"))]
    {
        let ((slow, gate), (quick, second)) = (gated(slow_status).await, gated(quick_status).await);
        let edge = Edge::start(
            &two("hedge: { after: 50ms, share: 100% }"),
            &[("slow", slow.address()), ("quick", quick.address())],
        );
        let web = edge.web();
        let asked = tokio::spawn(async move { Client::get(web, "/bare/").await });
        until("both are asked", || slow.started() == 1 && quick.started() == 1).await;
        // The error comes first.
        let (first, other) = if slow_status == 503 { (gate, second) } else { (second, gate) };
        first.add_permits(1);
        until("the error is there", || first.available_permits() == 0).await;
        other.add_permits(1);
        let response = soon("an answer", asked).await.unwrap();
        let body = response.text().replace("slow", if expected.1 == "quick" { "quick" } else { "slow" });
        assert_eq!((response.status, body.as_str()), expected);
        until("nothing is under way", || in_flight(&edge) == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_reads_are_sent_twice_and_only_those_that_wait() {
    let ((slow, gate), quick) = (gated(200).await, quick(200).await);
    let edge =
        Edge::start(&two("hedge: { after: 1s, share: 100% }"), &[("slow", slow.address()), ("quick", quick.address())]);
    let web = edge.web();
    for head in [
        "POST /bare/ HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        "GET /bare/ HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx",
    ] {
        let asked = tokio::spawn(async move {
            let mut client = Client::connect(web).await;
            client.send(head.as_bytes()).await;
            client.response("GET").await.text()
        });
        let before = slow.started();
        until("it is there", || slow.started() > before || asked.is_finished()).await;
        let late = Instant::now() + Duration::from_secs(2); // Twice as long as it would take.
        let _ = tokio::time::timeout_at(late.into(), std::future::pending::<()>()).await;
        gate.add_permits(1);
        assert_eq!(soon("an answer", asked).await.unwrap(), "slow");
        assert_eq!(Client::get(web, "/bare/").await.text(), "quick", "the other's turn, and in time");
    }
    assert_eq!((traffic(&edge).hedges, traffic(&edge).hedges_refused), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_upstream_gets_no_more_than_the_share_on_top() {
    let ((slow, gate), (other, other_gate)) = (gated(200).await, gated(200).await);
    let edge =
        Edge::start(&two("hedge: { after: 20ms, share: 1% }"), &[("slow", slow.address()), ("quick", other.address())]);
    let web = edge.web();
    let asked: Vec<_> = (0..10).map(|_| tokio::spawn(async move { Client::get(web, "/bare/").await.status })).collect();
    until("nine were refused a second endpoint", || traffic(&edge).hedges_refused == 9).await;
    until("one was sent twice", || slow.started() + other.started() == 11).await;
    assert_eq!(traffic(&edge).hedges, 1);
    gate.add_permits(20);
    other_gate.add_permits(20);
    for one in asked {
        assert_eq!(soon("an answer", one).await.unwrap(), 200);
    }
    until("nothing is under way", || in_flight(&edge) == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hedging_takes_from_what_retries_may_take() {
    let ((slow, _seen, _origin), quick) = (silent().await, quick(200).await);
    let edge = Edge::start(
        &two("hedge: { after: 600ms, share: 100% }, retries: { budget: 0% }"),
        &[("slow", slow), ("quick", quick.address())],
    );
    for _ in 0..20 {
        assert_eq!(soon("an answer", Client::get(edge.web(), "/bare/")).await.status, 200);
    }
    // Ten retries are there from the start: the eleventh silent request waits.
    assert_eq!(traffic(&edge).hedges, 10);
    let web = edge.web();
    let waits = tokio::spawn(async move { Client::get(web, "/bare/").await.status });
    until("it is refused", || traffic(&edge).hedges_refused == 1).await;
    assert!(!waits.is_finished());
    waits.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_room_is_not_asked_and_who_breaks_off_is_waited_for_no_longer() {
    // The second endpoint refuses connections: the first is waited for, and the second is to blame.
    let (slow, gate) = gated(200).await;
    let closed = closed();
    let edge = Edge::start(
        &two("hedge: { after: 20ms, share: 100% }, outlier: { consecutive_connect: 1, ejected_max: 100% }, panic: 0%"),
        &[("slow", slow.address()), ("quick", closed)],
    );
    let web = edge.web();
    let asked = tokio::spawn(async move { Client::get(web, "/bare/").await.text() });
    until("the closed one is ejected", || edge.plan().upstreams.get("app").expect("configured").endpoints()[1].ejected)
        .await;
    gate.add_permits(1);
    assert_eq!(soon("an answer", asked).await.unwrap(), "slow");
    let asked = tokio::spawn(async move { Client::get(web, "/bare/").await.text() });
    until("there is nobody to ask", || traffic(&edge).hedges_refused == 1).await;
    gate.add_permits(1);
    assert_eq!(soon("an answer", asked).await.unwrap(), "slow");
    assert_eq!(traffic(&edge).hedges, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_endpoint_is_asked_after_what_most_answers_need() {
    // Both are quick, until one falls silent.
    let silent = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let falls = Arc::clone(&silent);
    let slow = Origin::start_async(move |_| {
        let silent = falls.load(Ordering::SeqCst);
        Box::pin(async move {
            if silent {
                std::future::pending::<()>().await;
            }
            Origin::reply(200, &[], "first")
        })
    })
    .await;
    let quick = quick(200).await;
    let yaml = two("hedge: { after: p95, floor: 1s, minimum: 40, share: 100% }, retries: { budget: 100% }");
    let yaml = format!(
        "version: 1
node: {{ name: edge, workers: 1 }}
telemetry: {{ access_log: {{ output: off }}, metrics: {{ bind: \"127.0.0.1:0\" }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
{yaml}"
    );
    let edge = Edge::start(&yaml, &[("slow", slow.address()), ("quick", quick.address())]);
    for _ in 0..30 {
        assert_eq!(Client::get(edge.web(), "/bare/").await.status, 200);
    }
    assert_eq!(traffic(&edge).hedge_after, None, "too few answers are known");
    // Nobody is hedged as long as nobody knows how long is long.
    silent.store(true, Ordering::SeqCst);
    let web = edge.web();
    let waits: Vec<_> = (0..2).map(|_| tokio::spawn(async move { Client::get(web, "/bare/").await.status })).collect();
    until("one of them waits", || slow.started() == 16).await;
    until("the other does not", || waits.iter().any(tokio::task::JoinHandle::is_finished)).await;
    assert_eq!((traffic(&edge).hedges, traffic(&edge).hedges_refused), (0, 0));
    waits.iter().for_each(tokio::task::JoinHandle::abort);
    silent.store(false, Ordering::SeqCst);

    let known = async {
        while traffic(&edge).hedge_after.is_none() {
            assert_eq!(Client::get(edge.web(), "/bare/").await.status, 200);
        }
    };
    soon("enough answers", known).await;
    silent.store(true, Ordering::SeqCst);
    let (before, begun) = (traffic(&edge).hedges, Instant::now());
    for _ in 0..2 {
        assert_eq!(soon("an answer", Client::get(edge.web(), "/filtered/")).await.status, 200);
    }
    let took = begun.elapsed();
    assert_eq!(traffic(&edge).hedges, before + 1, "the turn of the silent one");
    assert!(took >= Duration::from_secs(1), "not before the floor: {took:?}");
    let metrics = Client::get(edge.metrics(), "/metrics").await.text();
    assert!(metrics.contains("selvedge_upstream_hedge_after_seconds{upstream=\"app\"} 0."), "{metrics}");
}
