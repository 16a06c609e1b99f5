//! The handles of the SDK on a real node: its example `handles`, from outside.

use std::net::SocketAddr;

use selvedge_tests::{Client, Edge, Origin, Response, closed};
use serde_json::{Value, json};

async fn node(a: SocketAddr, b: SocketAddr) -> Edge {
    Edge::start(
        "version: 1
node: { name: edge-7, workers: 2, shutdown_grace: 1s, module_cache: off }
telemetry: { access_log: { output: off }, metrics: { bind: \"127.0.0.1:0\" } }
listeners: { web: { bind: \"127.0.0.1:0\" } }
upstreams:
  a: { endpoints: [\"127.0.0.1:${PORT_a}\"] }
  b: { endpoints: [\"127.0.0.1:${PORT_b}\"] }
filters:
  handles: { wasm: \"file:${GUESTS}/handles.wasm\", limits: { deadline: 60s } }
sites: [{ hosts: [\"*\"], routes: [{ name: shop, filters: [handles], to: a }] }]
",
        &[("a", a), ("b", b)],
    )
}

async fn origin(name: &'static str) -> Origin {
    Origin::start(move |request| match request.target.as_str() {
        "/first" if name == "a" => Origin::reply(404, &[], "a has nothing"),
        "/n1" => Origin::reply(200, &[], "{\"text\":\"from a\"}"),
        path => Origin::reply(200, &[], format!("{name} {path}")),
    })
    .await
}

fn json_of(response: &Response) -> Value {
    serde_json::from_slice(&response.body).unwrap_or_else(|error| panic!("{error}: {}", response.text()))
}

#[tokio::test(flavor = "multi_thread")]
async fn values_are_shared_by_all_workers() {
    let (a, b) = (origin("a").await, origin("b").await);
    let edge = node(a.address(), b.address()).await;
    let web = edge.web();
    assert_eq!(Client::get(web, "/note/put?key=one&text=hello").await.status, 204);
    for edits in 1..=20 {
        let note = Client::get(web, "/note/edit?key=one&text=again").await;
        assert_eq!(
            json_of(&note),
            json!({ "text": "again", "edits": edits }),
            "each connection may meet another worker"
        );
    }
    assert_eq!(json_of(&Client::get(web, "/note/list").await), json!(["one"]));
    assert_eq!(Client::get(web, "/note/delete?key=one").await.status, 204);
    assert_eq!(Client::get(web, "/note/get?key=one").await.status, 404);

    for sum in 1..=20 {
        assert_eq!(json_of(&Client::get(web, "/visit?key=x").await), json!([sum, sum]));
    }
    for _ in 0..2 {
        let note = Client::get(web, "/note/fetch?key=n1").await;
        assert_eq!(json_of(&note), json!({ "text": "from a", "edits": 0 }));
    }
    assert_eq!(a.started(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn upstreams_are_asked_at_once_and_failures_are_told_apart() {
    let (a, b) = (origin("a").await, origin("b").await);
    let edge = node(a.address(), b.address()).await;
    let nowhere = "upstream nowhere: the host has no such upstream, or the request is malformed";
    assert_eq!(json_of(&Client::get(edge.web(), "/all").await), json!(["a /all", "b /all", nowhere]));
    assert_eq!(Client::get(edge.web(), "/first").await.text(), "b /first");
    assert!(Client::get(edge.web(), "/race").await.text().ends_with(" /race"));

    let edge = node(a.address(), closed()).await;
    let first = Client::get(edge.web(), "/first").await;
    let errors = json_of(&first);
    let errors: Vec<&str> = errors.as_array().unwrap().iter().map(|error| error.as_str().unwrap()).collect();
    assert!(errors.contains(&"upstream a: answered with status 404"), "{errors:?}");
    assert!(errors.iter().any(|error| error.starts_with("upstream b: no connection: ")), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn facts_are_those_of_the_node_and_values_reach_the_response() {
    let (a, b) = (origin("a").await, origin("b").await);
    let edge = node(a.address(), b.address()).await;
    let told = json_of(&Client::get(edge.web(), "/facts?x=1+2").await);
    for (name, value) in [
        ("address", json!("127.0.0.1")),
        ("port", json!(true)),
        ("tls", json!(null)),
        ("started", json!(true)),
        ("protocol", json!("HTTP/1.1")),
        ("route", json!("shop")),
        ("site", json!("*")),
        ("listener", json!("web")),
        ("upstream", json!("a")),
        ("node", json!("edge-7")),
        ("plugin", json!("handles")),
        ("query", json!([["x", "1 2"]])),
    ] {
        assert_eq!(told[name], value, "{name} in {told}");
    }
    let response = Client::get(edge.web(), "/props?key=acme").await;
    assert_eq!((response.header("x-tenant"), response.header("x-upstream")), (Some("acme"), Some("a")));
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_labels_for_prometheus() {
    let (a, b) = (origin("a").await, origin("b").await);
    let edge = node(a.address(), b.address()).await;
    for tenant in ["acme", "acme", "b%22c"] {
        assert_eq!(Client::get(edge.web(), &format!("/page?tenant={tenant}")).await.status, 200);
    }
    for tenant in 0..1100 {
        Client::get(edge.web(), &format!("/note/put?key=k&text=t&tenant={tenant}")).await;
    }
    let name = "selvedge_filter_custom_handles_requests";
    let page = Client::get(edge.metrics(), "/metrics").await.text().to_owned();
    let has = |line: &str| page.lines().any(|other| other == line);
    assert!(has(&format!("# TYPE {name} counter")), "{page}");
    assert!(has(&format!("{name}{{path=\"/page\",tenant=\"acme\"}} 2")), "{page}");
    assert!(has(&format!("{name}{{path=\"/page\",tenant=\"b\\\"c\"}} 1")), "{page}");
    let series = page.lines().filter(|line| line.starts_with(&format!("{name}{{"))).count();
    // Each worker has a VM, or more when one was busy for long.
    let starts =
        page.lines().find_map(|line| line.strip_prefix("selvedge_filter_vm_starts_total{filter=\"handles\"} "));
    let starts: usize = starts.expect("counted").parse().expect("a number");
    assert!((3..=starts * 257).contains(&series), "{starts} VMs with 256 each: {series}");
    assert!(page.contains(&format!("{name}{{path=\"other\",tenant=\"other\"}} ")), "{page}");
    let timed = "selvedge_filter_custom_handles_exchange_microseconds_count{status=\"started\"} ";
    assert!(page.lines().any(|line| line.starts_with(timed)), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_workers_draw_from_one_bucket() {
    let (a, b) = (origin("a").await, origin("b").await);
    let edge = node(a.address(), b.address()).await;
    let asked = (0..20).map(|_| Client::get(edge.web(), "/question?key=one"));
    let statuses: Vec<u16> = futures::future::join_all(asked).await.iter().map(|answer| answer.status).collect();
    let granted = statuses.iter().filter(|status| **status == 200).count();
    // One token more for each second that the test takes.
    assert!((3..=6).contains(&granted) && statuses.contains(&429), "{statuses:?}");
    assert_eq!(json_of(&Client::get(edge.web(), "/question?key=two").await), json!(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn signatures_are_verified_by_the_node() {
    use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData, SigningKey};
    let (a, b) = (origin("a").await, origin("b").await);
    let edge = node(a.address(), b.address()).await;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
    let (public, signature) = (hex(&pair.subject_public_key_info()), hex(&pair.sign(b"x").unwrap()));
    for (key, public, status) in [("x", &*public, 200), ("y", &*public, 401), ("x", "0102", 401)] {
        let head = format!(
            "GET /verified?key={key} HTTP/1.1\r\nhost: test\r\nx-public-key: {public}\r\nx-signature: {signature}\r\n\r\n"
        );
        let answer = Client::connect(edge.web()).await.request(&head).await;
        assert_eq!(answer.status, status, "{key} {public}: {}", answer.text());
    }
    let told = json_of(&Client::get(edge.web(), "/random").await);
    assert_ne!(told[0], json_of(&Client::get(edge.web(), "/random").await)[0], "{told}");
}
