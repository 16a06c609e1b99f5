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
