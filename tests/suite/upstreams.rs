//! Endpoints of upstreams: whose turn it is, who is passed over, and what is known of each.

use std::net::SocketAddr;

use selvedge::upstream::EndpointStatus;
use selvedge_tests::{Client, Edge, Origin};

/// Origins that say who they are.
async fn origins<const N: usize>() -> [Origin; N] {
    let mut started = Vec::new();
    for index in 0..N {
        started.push(Origin::start(move |_| Origin::reply(200, &[], index.to_string())).await);
    }
    started.try_into().ok().expect("as many as asked for")
}

/// An address where nobody listens.
fn closed() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// A node with one route to `app`, which is given as YAML.
fn yaml(app: &str) -> String {
    format!("upstreams: {{ app: {app} }}\nsites: [{{ hosts: [\"*\"], routes: [{{ name: all, to: app }}] }}]")
}

fn endpoints(edge: &Edge) -> Vec<EndpointStatus> {
    edge.plan().upstreams.get("app").expect("configured").endpoints()
}

/// Who answered `requests` requests, in order.
async fn answers(edge: &Edge, requests: usize) -> String {
    let mut answers = String::new();
    let mut client = Client::connect(edge.web()).await;
    for _ in 0..requests {
        let response = client.request("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        answers.push_str(&if response.status == 200 { response.text() } else { response.status.to_string() });
    }
    answers
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_give_turns() {
    let [a, b] = origins().await;
    let app = "{ endpoints: [{ addr: \"127.0.0.1:${PORT_a}\", weight: 3 }, \"127.0.0.1:${PORT_b}\"] }";
    let edge = Edge::start(&yaml(app), &[("a", a.address()), ("b", b.address())]);
    assert_eq!(answers(&edge, 8).await, "00100010");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_endpoint_gets_no_new_requests_over_reloads_until_it_is_undrained() {
    let [a, b] = origins().await;
    let app = yaml("{ endpoints: [\"127.0.0.1:${PORT_a}\", \"127.0.0.1:${PORT_b}\"] }");
    let mut edge = Edge::start(&app, &[("a", a.address()), ("b", b.address())]);
    let first = endpoints(&edge)[0].id;
    assert_eq!(answers(&edge, 4).await, "0101");

    let drain = |edge: &Edge, on| edge.plan().upstreams.get("app").expect("configured").drain(first, on);
    assert!(drain(&edge, true));
    assert_eq!(answers(&edge, 3).await, "111");
    edge.reload(&app.replace("endpoints:", "timeouts: { read: 7s }, endpoints:")).expect("in order");
    assert_eq!(answers(&edge, 3).await, "111", "the state of an endpoint outlives a reload");
    let known = endpoints(&edge);
    assert_eq!(known.iter().map(|endpoint| endpoint.draining).collect::<Vec<_>>(), [true, false]);
    assert_eq!(known.iter().map(|endpoint| endpoint.requests).collect::<Vec<_>>(), [2, 8]);
    assert!(drain(&edge, false));
    assert_eq!(answers(&edge, 4).await.matches('0').count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_endpoint_drained_requests_are_answered_503() {
    let [a] = origins().await;
    let edge = Edge::start(&yaml("{ endpoints: [\"127.0.0.1:${PORT_a}\"] }"), &[("a", a.address())]);
    let upstream = edge.plan();
    let upstream = upstream.upstreams.get("app").expect("configured");
    assert!(upstream.drain(endpoints(&edge)[0].id, true));
    assert_eq!(Client::get(edge.web(), "/").await.status, 503);
    assert_eq!(a.started(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_counted_where_they_are_and_failures_where_they_happened() {
    let (sender, receiver) = tokio::sync::watch::channel(false);
    let slow = Origin::start_async(move |_| {
        let mut go = receiver.clone();
        Box::pin(async move {
            let _ = go.wait_for(|go| *go).await;
            Origin::reply(500, &[], "late")
        })
    })
    .await;
    let edge = Edge::start(
        &yaml("{ endpoints: [\"127.0.0.1:${PORT_closed}\", \"127.0.0.1:${PORT_slow}\"] }"),
        &[("closed", closed()), ("slow", slow.address())],
    );
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    selvedge_tests::until("the slow one is asked", || slow.started() == 1).await;
    let facts =
        |edge: &Edge| endpoints(edge).iter().map(|one| (one.in_flight, one.requests, one.failures)).collect::<Vec<_>>();
    assert_eq!(facts(&edge), [(0, 1, 1), (1, 1, 0)]);
    sender.send(true).expect("somebody waits");
    assert_eq!(client.response("GET").await.status, 500);
    selvedge_tests::until("it is over", || facts(&edge) == [(0, 1, 1), (0, 1, 1)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_leads_to_one_endpoint_and_keys_to_all() {
    let [a, b, c] = origins().await;
    for algorithm in ["maglev", "ketama"] {
        let edge = Edge::start(
            &yaml(&format!(
                "{{ endpoints: [\"127.0.0.1:${{PORT_a}}\", \"127.0.0.1:${{PORT_b}}\", \"127.0.0.1:${{PORT_c}}\"],
                balance: {{ consistent_hash: {{ by: \"header:X-User\", algorithm: {algorithm} }} }} }}"
            )),
            &[("a", a.address()), ("b", b.address()), ("c", c.address())],
        );
        let mut seen = std::collections::BTreeSet::new();
        for user in 0..40 {
            let header = format!("x-user: u{user}\r\n");
            let first = Client::get_with(edge.web(), "/1", &header).await.text();
            assert_eq!(Client::get_with(edge.web(), "/2", &header).await.text(), first, "{algorithm}");
            seen.insert(first);
        }
        assert_eq!(seen.len(), 3, "{algorithm}");
        // Without the header, the client's address decides.
        let anonymous = answers(&edge, 5).await;
        assert_eq!(anonymous, anonymous[..1].repeat(5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cookie_keeps_a_client_at_its_endpoint_until_that_is_drained() {
    let [a, b] = origins().await;
    let edge = Edge::start(
        &yaml("{ endpoints: [\"127.0.0.1:${PORT_a}\", \"127.0.0.1:${PORT_b}\"], sticky: { cookie: at, ttl: 1h } }"),
        &[("a", a.address()), ("b", b.address())],
    );
    let first = Client::get(edge.web(), "/").await;
    let cookie = first.header("set-cookie").expect("a cookie").to_owned();
    let id = endpoints(&edge)[0].id;
    assert_eq!(cookie, format!("at={id}; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600"));
    assert!(!cookie.contains("127"), "it does not tell the address");

    let header = format!("cookie: x=1; at={id}\r\n");
    for _ in 0..5 {
        let response = Client::get_with(edge.web(), "/", &header).await;
        assert_eq!((response.text().as_str(), response.header("set-cookie")), ("0", None));
    }
    assert!(edge.plan().upstreams.get("app").expect("configured").drain(id, true));
    let moved = Client::get_with(edge.web(), "/", &header).await;
    assert_eq!(moved.text(), "1");
    assert!(moved.header("set-cookie").is_some_and(|cookie| cookie.contains(&endpoints(&edge)[1].id.to_string())));
    for nonsense in ["at=", "at=0", "at=zzzzzzzzzzzzzzzz", "at=+000000000000000"] {
        let response = Client::get_with(edge.web(), "/", &format!("cookie: {nonsense}\r\n")).await;
        assert_eq!(response.status, 200, "{nonsense}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_answers_errors_is_ejected_and_comes_back() {
    let ill = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let state = std::sync::Arc::clone(&ill);
    let a = Origin::start(move |_| {
        let status = if state.load(std::sync::atomic::Ordering::SeqCst) { 500 } else { 200 };
        Origin::reply(status, &[], "0")
    })
    .await;
    let [_, b] = origins().await;
    let edge = Edge::start(
        &yaml(
            "{ endpoints: [\"127.0.0.1:${PORT_a}\", \"127.0.0.1:${PORT_b}\"],
            outlier: { consecutive_5xx: 3, eject: 5s } }",
        ),
        &[("a", a.address()), ("b", b.address())],
    );
    let begun = std::time::Instant::now();
    let mut failures = 0;
    while a.started() < 3 {
        failures += usize::from(Client::get(edge.web(), "/").await.status == 500);
    }
    assert_eq!(failures, 3);
    selvedge_tests::until("it is ejected", || endpoints(&edge)[0].ejected).await;
    ill.store(false, std::sync::atomic::Ordering::SeqCst);
    assert_eq!(answers(&edge, 5).await, "11111");
    assert!(begun.elapsed().as_secs() < 30, "the machine is too slow for this test");
    selvedge_tests::until("its time is over", || !endpoints(&edge)[0].ejected).await;
    assert!(begun.elapsed().as_secs() >= 5);
    assert_eq!(answers(&edge, 4).await.matches('0').count(), 2);
    assert_eq!(endpoints(&edge)[0].ejections, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_killed_is_ejected_at_once_and_nobody_notices() {
    let [a, b] = origins().await;
    let edge = Edge::start(
        &yaml(
            "{ endpoints: [\"127.0.0.1:${PORT_a}\", \"127.0.0.1:${PORT_b}\"],
            balance: least_request, outlier: { consecutive_connect: 2, eject: 1h, eject_max: 1h } }",
        ),
        &[("a", a.address()), ("b", b.address())],
    );
    drop(a);
    for _ in 0..40 {
        let response = Client::get(edge.web(), "/").await;
        assert_eq!((response.status, response.text().as_str()), (200, "1"));
    }
    let known = endpoints(&edge);
    assert!(known[0].ejected && known[0].requests < 5, "{known:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preferred_zone_is_used_until_it_is_full_or_gone() {
    let (sender, receiver) = tokio::sync::watch::channel(false);
    let near = Origin::start_async(move |request| {
        let mut go = receiver.clone();
        Box::pin(async move {
            if request.target == "/slow" {
                let _ = go.wait_for(|go| *go).await;
            }
            Origin::reply(200, &[], "near")
        })
    })
    .await;
    let far = Origin::start(|_| Origin::reply(200, &[], "far")).await;
    let edge = Edge::start(
        &yaml(
            "{ endpoints: [{ addr: \"127.0.0.1:${PORT_a}\", zone: here }, { addr: \"127.0.0.1:${PORT_b}\", zone: there }],
            prefer: { by: \"zone:here\", load_limit: 1 } }",
        ),
        &[("a", near.address()), ("b", far.address())],
    );
    for _ in 0..5 {
        assert_eq!(Client::get(edge.web(), "/").await.text(), "near");
        selvedge_tests::until("nothing is under way", || endpoints(&edge)[0].in_flight == 0).await;
    }
    let mut slow = Client::connect(edge.web()).await;
    slow.send(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    selvedge_tests::until("it is full", || endpoints(&edge)[0].in_flight == 1).await;
    assert_eq!(Client::get(edge.web(), "/").await.text(), "far");
    sender.send(true).expect("somebody waits");
    assert_eq!(slow.response("GET").await.text(), "near");
    selvedge_tests::until("there is room", || endpoints(&edge)[0].in_flight == 0).await;
    assert_eq!(Client::get(edge.web(), "/").await.text(), "near");
    assert!(edge.plan().upstreams.get("app").expect("configured").drain(endpoints(&edge)[0].id, true));
    assert_eq!(Client::get(edge.web(), "/").await.text(), "far");
}

/// Who answers a client with this address.
async fn answer_for(edge: &Edge, client: &str) -> String {
    let fields = format!("x-forwarded-for: {client}\r\n");
    let response = Client::get_with(edge.web(), "/", &fields).await;
    if response.status == 200 { response.text() } else { response.status.to_string() }
}

/// The country comes first, then the distance, then whoever is left; and who is full is passed over.
#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_is_in_the_country_and_then_at_the_least_distance() {
    let [munich, paris, new_york, nowhere] = origins().await;
    let app = "{ endpoints: [
        { addr: \"127.0.0.1:${PORT_a}\", country: DE, at: \"48.14,11.58\" },
        { addr: \"127.0.0.1:${PORT_b}\", country: FR, at: \"48.86,2.35\" },
        { addr: \"127.0.0.1:${PORT_c}\", country: US, at: \"40.71,-74.01\" },
        \"127.0.0.1:${PORT_d}\"], prefer: { by: nearest } }";
    let listeners = "version: 1
node: { name: edge, workers: 1, trusted_proxies: [127.0.0.1], module_cache: off }
telemetry: { access_log: { output: off } }
geo: { database: \"builtin:test\" }
listeners: { web: { bind: \"127.0.0.1:0\" } }
";
    let ports = [("a", &munich), ("b", &paris), ("c", &new_york), ("d", &nowhere)];
    let edge = Edge::start(&format!("{listeners}{}", yaml(app)), &ports.map(|(name, origin)| (name, origin.address())));
    let drain = |index: usize, on| {
        let id = endpoints(&edge)[index].id;
        assert!(edge.plan().upstreams.get("app").expect("configured").drain(id, on));
    };
    // From Berlin, Washington and Tokyo.
    for (client, nearest) in [("127.64.0.1", "0"), ("127.65.0.1", "2"), ("127.66.0.1", "0")] {
        for _ in 0..3 {
            assert_eq!(answer_for(&edge, client).await, nearest, "{client}");
        }
    }
    drain(0, true);
    for (client, nearest) in [("127.64.0.1", "1"), ("127.65.0.1", "2"), ("127.66.0.1", "1")] {
        assert_eq!(answer_for(&edge, client).await, nearest, "{client}");
    }
    drain(1, true);
    drain(2, true);
    assert_eq!(answer_for(&edge, "127.64.0.1").await, "3", "of which nobody knows where it is");
    (0..3).for_each(|index| drain(index, false));
    let mut anywhere = Vec::new();
    for _ in 0..40 {
        anywhere.push(answer_for(&edge, "10.9.9.9").await);
    }
    for index in ["0", "1", "2", "3"] {
        assert!(anywhere.iter().any(|answer| answer == index), "nobody knows where the client is: {anywhere:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_a_share_of_failures_ejects_whatever_stands_between() {
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let flaky = Origin::start(move |_| {
        let number = asked.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Origin::reply(if number.is_multiple_of(2) { 500 } else { 200 }, &[], "0")
    })
    .await;
    let [_, good] = origins().await;
    let rate = "failure_rate: { above: 40%, requests: 10, window: 1h }, consecutive_5xx: 3, consecutive_gateway: 0";
    let app = format!(
        "{{ endpoints: [\"127.0.0.1:${{PORT_a}}\", \"127.0.0.1:${{PORT_b}}\"], outlier: {{ {rate}, eject: 1h, eject_max: 1h }} }}"
    );
    let edge = Edge::start(&yaml(&app), &[("a", flaky.address()), ("b", good.address())]);
    answers(&edge, 18).await;
    assert!(!endpoints(&edge)[0].ejected, "nine requests are too few");
    answers(&edge, 6).await;
    let known = endpoints(&edge);
    assert!(known[0].ejected && !known[1].ejected, "{known:?}");
    assert_eq!(answers(&edge, 5).await, "11111");
}

/// What comes back begins with a tenth of its weight.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_is_back_begins_slowly() {
    let sick = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
    let seen = std::sync::Arc::clone(&sick);
    let back = Origin::start(move |_| {
        let status = if seen.load(std::sync::atomic::Ordering::SeqCst) { 500 } else { 200 };
        Origin::reply(status, &[], "0")
    })
    .await;
    let [_, steady] = origins().await;
    let app = "{ endpoints: [\"127.0.0.1:${PORT_a}\", \"127.0.0.1:${PORT_b}\"], slow_start: 1h, panic: 0%,
        health_check: { http: { path: / }, interval: 50ms, healthy: 1, unhealthy: 1 } }";
    let edge = Edge::start(&yaml(app), &[("a", back.address()), ("b", steady.address())]);
    selvedge_tests::until("it is found ill", || !endpoints(&edge)[0].in_use).await;
    sick.store(false, std::sync::atomic::Ordering::SeqCst);
    selvedge_tests::until("the other is back", || endpoints(&edge)[0].in_use).await;
    let answers = answers(&edge, 44).await;
    let its = answers.matches('0').count();
    assert!((2..=6).contains(&its), "a tenth of the other's, not the half: {answers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nearest_needs_a_geo_database() {
    let app = yaml("{ endpoints: [\"127.0.0.1:1\"], prefer: { by: nearest } }");
    let report = Edge::try_start(&app, &[]).err().expect("at fault").to_string();
    assert!(report.contains("`prefer: { by: nearest }` needs `geo`"), "{report}");
    let edge = Edge::start(&format!("geo: {{ database: \"builtin:test\" }}\n{app}"), &[]);
    assert_eq!(endpoints(&edge).len(), 1);
}
