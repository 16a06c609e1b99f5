//! Filters of the SDK on a real node, where their tester cannot show it: panics and what the operator is told, the beginning of an upload,
//! gRPC over the network.

use selvedge_tests::grpc::GrpcServer;
use selvedge_tests::{Client, Edge, Origin, Process, closed, guest, until};

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_the_failure_its_filter_is_configured_for_and_its_words_are_in_the_log() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let path = folder.path().join("config.yaml");
    let module = guest("obey").display().to_string();
    let text = format!(
        "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }}
telemetry: {{ access_log: {{ output: off }} }}
listeners: {{ web: {{ bind: \"127.0.0.1:0\" }} }}
filters:
  strict: {{ wasm: \"file:{module}\", on_failure: closed }}
  lax: {{ wasm: \"file:{module}\", on_failure: open }}
sites:
- hosts: [\"*\"]
  routes:
  - {{ name: strict, match: {{ path: /strict }}, filters: [strict], respond: {{ status: 200, body: fine }} }}
  - {{ name: lax, match: {{ path: /lax }}, filters: [lax], respond: {{ status: 200, body: fine }} }}
"
    );
    std::fs::write(&path, text).expect("written");
    let process = Process::run(PROGRAM, folder.path(), &path, 1).await;
    let web = process.addresses()["web"];

    for told in ["x-do: panic\r\n", "x-then: panic\r\n"] {
        let strict = Client::get_with(web, "/strict", told).await;
        assert_eq!((strict.status, strict.header("proxy-status").is_some()), (503, true), "{told}");
        let lax = Client::get_with(web, "/lax", told).await;
        assert_eq!((lax.status, lax.text().as_str()), (200, "fine"), "{told}");
    }
    // A new VM serves who comes next.
    assert_eq!(Client::get(web, "/strict").await.status, 200);
    until("the panics are in the log, with their place", || {
        let told = |who: &str| {
            process.log().iter().any(|line| line.contains(who) && line.contains("obey.rs:") && line.contains("told to"))
        };
        told("selvedge::filter") && told("filter failed")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_beginning_of_an_upload_is_seen_and_all_of_it_arrives() {
    let app = Origin::start(|request| {
        let seen = request.header("x-seen").unwrap_or("nothing").to_owned();
        Origin::reply(200, &[], format!("{seen} of {}", request.body.len()))
    })
    .await;
    let edge = Edge::start(
        "upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"] } }
filters: { obey: { wasm: \"file:${GUESTS}/obey.wasm\", limits: { deadline: 10s } } }
sites: [{ hosts: [\"*\"], routes: [{ name: all, filters: [obey], to: app }] }]
",
        &[("app", app.address())],
    );
    let body = vec![b'x'; 300_000];
    let response = Client::post(edge.web(), "/", "x-do: start 1000\r\n", &body).await;
    assert_eq!((response.status, response.text().as_str()), (200, "1000 of 300000"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_is_asked_over_grpc() {
    let (server, app) = (
        GrpcServer::start().await,
        Origin::start(|request| Origin::reply(200, &[], request.header("x-tenant").unwrap_or("nobody").to_owned()))
            .await,
    );
    let filter = |authz: &str, method: &str| {
        format!(
            "{{ wasm: \"file:${{GUESTS}}/unary.wasm\", limits: {{ deadline: 10s }}, config: {{ authz: {authz}, method: {method}, timeout: 5s }} }}"
        )
    };
    let edge = Edge::start(
        &format!(
            "upstreams:
  authz: {{ endpoints: [\"127.0.0.1:${{PORT_authz}}\"], protocol: h2 }}
  gone: {{ endpoints: [\"127.0.0.1:${{PORT_gone}}\"], protocol: h2 }}
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
filters:
  asks: {}
  denied: {}
  alone: {}
sites:
- hosts: [\"*\"]
  routes:
  - {{ name: asks, match: {{ path: /asks }}, filters: [asks], to: app }}
  - {{ name: denied, match: {{ path: /denied }}, filters: [denied], to: app }}
  - {{ name: alone, match: {{ path: /alone }}, filters: [alone], to: app }}
",
            filter("authz", "test.Echo/Unary"),
            filter("authz", "test.Echo/Denied"),
            filter("gone", "test.Echo/Unary")
        ),
        &[("authz", server.address()), ("app", app.address()), ("gone", closed())],
    );
    let ask = |path: &'static str| {
        let web = edge.web();
        async move {
            let response = Client::get_with(web, path, "x-api-key: ours\r\n").await;
            (response.status, response.text())
        }
    };
    assert_eq!(ask("/asks").await, (200, "echo ours".into()));
    assert_eq!(server.messages(), ["ours"]);
    assert_eq!(server.requests()[0].headers()["x-path"], "/asks");
    assert_eq!(ask("/denied").await, (403, "not you, €\n".into()));
    assert_eq!(ask("/alone").await, (503, "keys cannot be checked\n".into()));
    assert_eq!(Client::get(edge.web(), "/asks").await.status, 401);
}
