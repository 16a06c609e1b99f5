//! The admin API: who may ask, and what is answered.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use selvedge_tests::{Client, Edge, Origin, Process, Response};
use serde_json::json;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_selvedge-under-test");

/// A node whose admin API has these settings.
fn config(admin: &str) -> String {
    format!(
        "version: 1
node: {{ name: edge, workers: 1, shutdown_grace: 1s, module_cache: off }}
admin: {admin}
telemetry: {{ access_log: {{ output: off }} }}
listeners:
  web: {{ bind: \"127.0.0.1:0\" }}
sites:
  - hosts: [\"*\"]
    routes: [{{ name: all, respond: {{ status: 200 }} }}]
"
    )
}

const OPEN: &str = "{ bind: \"127.0.0.1:0\" }";
const CLOSED: &str = "{ bind: \"127.0.0.1:0\", token: operator-0123456789 }";
const BEARER: &str = "host: edge\r\nauthorization: Bearer operator-0123456789\r\n";
const LOCAL: &str = "host: localhost\r\n";

/// A request with these header lines.
async fn ask(edge: &Edge, method: &str, path: &str, headers: &str, body: &str) -> Response {
    let mut client = Client::connect(edge.admin()).await;
    client
        .send(format!("{method} {path} HTTP/1.1\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).as_bytes())
        .await;
    client.response(method).await
}

/// The title of a problem with this status.
fn problem(response: &Response, status: u16) -> String {
    assert_eq!(response.status, status, "{}", response.text());
    assert_eq!(response.header("content-type"), Some("application/problem+json"));
    let problem = response.json();
    assert_eq!(problem["status"], status);
    problem["title"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_need_no_token_and_everything_else_does() {
    let edge = Edge::start(&config(CLOSED), &[]);
    for (path, status) in [("/v1/live", "live"), ("/v1/ready", "ready")] {
        let answer = ask(&edge, "GET", path, "host: anything\r\n", "").await;
        assert_eq!((answer.status, answer.json()), (200, json!({ "status": status })));
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }

    let refused = ask(&edge, "GET", "/v1/node", LOCAL, "").await;
    assert_eq!(problem(&refused, 401), "A token is needed");
    assert_eq!(refused.header("www-authenticate"), Some("Bearer"));
    let wrong = ask(&edge, "GET", "/v1/node", "host: edge\r\nauthorization: Bearer operator-012345678\r\n", "").await;
    assert_eq!(problem(&wrong, 401), "This is not the token");
    assert!(!wrong.text().contains("operator-"));
    assert_eq!(problem(&ask(&edge, "GET", "/metrics", LOCAL, "").await, 401), "A token is needed");

    let node = ask(&edge, "GET", "/v1/node", BEARER, "").await;
    assert_eq!(node.status, 200);
    let node = node.json();
    assert_eq!((&node["name"], &node["generation"], &node["ready"]), (&json!("edge"), &json!(1), &json!(true)));
    let web = edge.web().to_string();
    assert_eq!(node["listeners"], json!([{ "name": "web", "address": web }]));
    assert_eq!(ask(&edge, "GET", "/metrics", BEARER, "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_token_a_web_page_cannot_ask() {
    let edge = Edge::start(&config(OPEN), &[]);
    assert_eq!(ask(&edge, "GET", "/v1/node", LOCAL, "").await.status, 200);
    let rebound = ask(&edge, "GET", "/v1/node", "host: evil.example\r\n", "").await;
    assert_eq!(problem(&rebound, 421), "Another host is meant");
    let page = "host: localhost\r\norigin: https://evil.example\r\ncontent-type: application/json\r\n";
    assert_eq!(problem(&ask(&edge, "PUT", "/v1/log", page, "{\"filter\":\"trace\"}").await, 403), "A web page asks");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_wrong_is_told_what_is_wrong() {
    let edge = Edge::start(&config(OPEN), &[]);
    assert_eq!(problem(&ask(&edge, "GET", "/v1/nothing", LOCAL, "").await, 404), "There is no such path");
    let wrong = ask(&edge, "DELETE", "/v1/log", LOCAL, "").await;
    assert_eq!(problem(&wrong, 405), "The path has other methods");
    assert_eq!(wrong.header("allow"), Some("GET, PUT"));
    let form = format!("{LOCAL}content-type: text/plain\r\n");
    assert_eq!(problem(&ask(&edge, "PUT", "/v1/log", &form, "{}").await, 415), "The body is not JSON");
    let sent_as_json = format!("{LOCAL}content-type: application/json; charset=utf-8\r\n");
    let empty = ask(&edge, "PUT", "/v1/log", &sent_as_json, "{}").await;
    assert_eq!(problem(&empty, 400), "The body is not what is expected");
    assert!(empty.json()["detail"].as_str().unwrap().contains("filter"), "{}", empty.text());
    let long = format!("{{\"filter\":\"{}\"}}", "x".repeat(70_000));
    assert_eq!(
        problem(&ask(&edge, "PUT", "/v1/log", &sent_as_json, &long).await, 413),
        "The body is larger than 64 KiB"
    );
    // In this process the tests decide what is logged.
    let other = ask(&edge, "PUT", "/v1/log", &sent_as_json, "{\"filter\":\"debug\"}").await;
    assert_eq!(problem(&other, 409), "The log is not the node's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_token_but_not_the_address() {
    let mut edge = Edge::start(&config(CLOSED), &[]);
    assert_eq!(edge.reload(&config(&CLOSED.replace("operator", "successor"))), Ok(2));
    assert_eq!(ask(&edge, "GET", "/v1/node", BEARER, "").await.status, 401);
    let new = BEARER.replace("operator", "successor");
    assert_eq!(ask(&edge, "GET", "/v1/node", &new, "").await.json()["generation"], 2);

    let moved = edge.reload(&config("{ bind: \"127.0.0.2:0\", token: operator-0123456789 }")).unwrap_err();
    assert!(moved.contains("admin.bind has changed: it needs a restart"), "{moved}");
    assert_eq!(ask(&edge, "GET", "/v1/node", &new, "").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_is_for_its_owner_and_gone_afterwards() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("admin.sock");
    // What a killed process leaves behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let mut edge = Edge::start(&config(&format!("{{ bind: \"unix:{}\" }}", path.display())), &[]);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);

    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"GET /v1/node HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\"generation\":1"), "{answer}");

    edge.stop().join().unwrap();
    assert!(!path.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_names_every_operation_and_the_shape_of_its_answer() {
    let edge = Edge::start(&config(OPEN), &[]);
    let document = ask(&edge, "GET", "/v1/openapi.json", LOCAL, "").await.json();
    assert_eq!(document["openapi"], "3.0.4");
    let schemas = document["components"]["schemas"].as_object().unwrap();
    let mut operations = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            operations += 1;
            assert!(!operation["summary"].as_str().unwrap().is_empty());
            for reference in operation.to_string().split("#/components/schemas/").skip(1) {
                let name = reference.split('"').next().unwrap();
                assert!(schemas.contains_key(name), "{method} {path} refers to {name}");
            }
            if method == "get" && !path.contains('{') {
                assert_eq!(ask(&edge, "GET", path, LOCAL, "").await.status == 409, path == "/v1/log", "{path}");
            }
        }
    }
    assert!(operations >= 8, "{operations}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_can_be_changed_while_the_node_runs() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("config.yaml");
    let socket = folder.path().join("admin.sock");
    std::fs::write(&path, config(&format!("{{ bind: \"unix:{}\" }}", socket.display()))).unwrap();
    let process = Process::run(PROGRAM, folder.path(), &path, 1).await;
    // Listeners are there a moment before the admin API.
    selvedge_tests::until("the admin API", || UnixStream::connect(&socket).is_ok()).await;

    let ask = |request: String| {
        let mut client = UnixStream::connect(&socket).unwrap();
        client.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        answer
    };
    let put = |filter: &str| {
        let body = json!({ "filter": filter }).to_string();
        ask(format!(
            "PUT /v1/log HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    assert!(put("selvedge=loud=no").starts_with("HTTP/1.1 400 "));
    assert!(put("info,selvedge::story=trace").starts_with("HTTP/1.1 200 "));
    let now = ask("GET /v1/log HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".into());
    assert!(now.contains("selvedge::story=trace"), "{now}");
    assert_eq!(Client::get(process.addresses()["web"], "/").await.status, 200);
    selvedge_tests::until("the request is told", || process.log().iter().any(|line| line.contains("selvedge::story")))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_listener_is_shown_where_it_is() {
    let yaml = config(OPEN).replace("listeners:\n", "listeners:\n  local: { bind: \"unix:web.sock\" }\n");
    let edge = Edge::start(&yaml, &[]);
    let shown = ask(&edge, "GET", "/v1/node", LOCAL, "").await.json();
    let socket = format!("unix:{}", edge.folder().join("web.sock").display());
    let expected =
        json!([{ "name": "local", "address": socket }, { "name": "web", "address": edge.web().to_string() }]);
    assert_eq!(shown["listeners"], expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_are_shown_and_drained() {
    let origin = Origin::start(|_| Origin::reply(200, &[], "fine")).await;
    let yaml = config(OPEN).replace("respond: { status: 200 }", "to: app").replace(
        "listeners:",
        "upstreams: { app: { endpoints: [{ addr: \"127.0.0.1:${PORT_app}\", weight: 3 }] } }\nlisteners:",
    );
    let mut edge = Edge::start(&yaml, &[("app", origin.address())]);
    assert_eq!(Client::get(edge.web(), "/").await.status, 200);
    let shown = ask(&edge, "GET", "/v1/upstreams", LOCAL, "").await.json();
    let endpoint = &shown["upstreams"][0]["endpoints"][0];
    assert_eq!((&shown["upstreams"][0]["name"], &endpoint["weight"]), (&json!("app"), &json!(3)));
    let address = origin.address().to_string();
    assert_eq!(
        (&endpoint["address"], &endpoint["requests"], &endpoint["in_use"]),
        (&json!(address), &json!(1), &json!(true))
    );

    let sent_as_json = format!("{LOCAL}content-type: application/json\r\n");
    let id = endpoint["id"].as_str().unwrap();
    for (name, draining, status) in [(id, true, 503), (address.as_str(), false, 200)] {
        let path = format!("/v1/upstreams/app/endpoints/{name}");
        let body = json!({ "draining": draining });
        let told = ask(&edge, "PUT", &path, &sent_as_json, &body.to_string()).await;
        assert_eq!((told.status, told.json()), (200, body), "{name}");
        // What was told outlives a reload.
        edge.reload(&yaml).unwrap();
        assert_eq!(Client::get(edge.web(), "/").await.status, status);
    }
    for path in ["/v1/upstreams/none/endpoints/x", "/v1/upstreams/app/endpoints/x"] {
        assert_eq!(ask(&edge, "PUT", path, &sent_as_json, "{\"draining\":true}").await.status, 404);
    }
}
