//! The main job in one test each: a plain route, a chain, a cached route.

use selvedge_tests::{Client, Edge, Origin, h2::H2Client};

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_route_forwards_and_answers() {
    let origin =
        Origin::start(|request| Origin::reply(200, &[("x-a", "b")], format!("{} {}", request.method, request.target)))
            .await;
    let edge = Edge::start(
        "upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, to: app }] }]",
        &[("app", origin.address())],
    );
    let response = Client::get(edge.web(), "/x?y=1").await;
    assert_eq!((response.status, response.text().as_str()), (200, "GET /x?y=1"));
    assert_eq!(response.header("x-a"), Some("b"));
    assert_eq!(origin.last().header("x-forwarded-for"), Some("127.0.0.1"));

    let h2 = H2Client::connect(edge.web()).await.request("GET", "/h2c", &[], b"").await.unwrap();
    assert_eq!(h2.text(), "GET /h2c");
    let tls =
        H2Client::connect_tls(edge.secure(), "localhost").await.request("POST", "/tls", &[], b"hello").await.unwrap();
    assert_eq!(tls.text(), "POST /tls");
    assert_eq!(origin.last().body, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_runs_over_a_route() {
    let origin = Origin::start(|request| Origin::reply(200, &[], request.body.clone())).await;
    let edge = Edge::start(
        "upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
filters:
  noop: { wasm: \"file:${GUESTS}/noop.wasm\", limits: { deadline: 10s } }
  hold: { wasm: \"file:${GUESTS}/hold.wasm\", limits: { deadline: 10s } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, filters: [noop, hold], to: app }] }]",
        &[("app", origin.address())],
    );
    let response = Client::post(edge.web(), "/", "", b"ping").await;
    assert_eq!(response.text(), "ping[held][held]");
    assert_eq!(origin.last().header("x-held-len"), Some("4"));
    assert_eq!(origin.last().body, "ping[held]");
}
