//! What clients of gRPC get that the origin has not said: a status in the header block that ends the stream, never an HTTP error.

use std::net::SocketAddr;

use selvedge_tests::{Client, Edge, Origin, Response, h2::H2Client, soon};

use super::bodies::script;
use super::pause::{TRANSPORTS, echo, edge, filter};

const MESSAGE: &[u8] = b"\x00\x00\x00\x00\x03abc";

/// Asks as clients of gRPC do; the answer has to be in its first header block, whole.
async fn ask(address: SocketAddr, path: &str, content_type: &str) -> Response {
    let client = H2Client::connect(address).await;
    let headers = [("content-type", content_type), ("te", "trailers")];
    let (response, mut upload) = client.open("POST", path, &headers, false).await.expect("a stream");
    // Some answers come before all has been sent.
    let _ = upload.send_data(MESSAGE.into(), true);
    let response = soon("the response", response).await.unwrap_or_else(|error| panic!("{path}: {error}"));
    if content_type != "application/grpc-web" {
        assert!(response.body().is_end_stream(), "{path}: the header block ends the stream");
    }
    H2Client::collect(response).await.unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn says(response: &Response) -> (u16, &str, &str) {
    let header = |name| response.header(name).unwrap_or("nothing");
    (response.status, header("grpc-status"), header("grpc-message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filters_reply_to_grpc_is_a_status_from_every_phase() {
    let origin = echo().await;
    let side = Origin::start(|_| Origin::reply(200, &[], "yes")).await;
    let cases = [
        ("request_headers", "request_headers reply 403 no-access:100%", ""),
        ("request_end", "request_end reply 403 no-access:100%", ""),
        ("whole", "request_end reply 403 no-access:100%", ", request_body: buffer"),
        ("asked", "request_headers call side /ask; request_headers pause; answer reply 403 no-access:100%", ""),
        ("response_headers", "response_headers reply 403 no-access:100%", ""),
        ("response_end", "response_end reply 403 no-access:100%", ", response_body: buffer"),
    ];
    let mut filters = vec![filter("signs", "headers", "response add x-signed yes", "")];
    let mut chains = Vec::new();
    for (name, lines, more) in cases {
        filters.push(script(name, lines, more));
        chains.push((name, format!("signs, {name}")));
    }
    let chains: Vec<(&str, &str)> = chains.iter().map(|(name, chain)| (*name, chain.as_str())).collect();
    for upstream in ["h1", "h2"] {
        let edge = edge(upstream, &origin, Some(&side), &filters, &chains);
        for (name, ..) in &cases {
            let path = format!("/{name}/x");
            for content_type in ["application/grpc", "application/grpc+proto"] {
                let response = ask(edge.web(), &path, content_type).await;
                assert_eq!(says(&response), (200, "7", "no-access:100%25"), "{upstream} {name}: {response:?}");
                assert_eq!(response.header("content-type"), Some("application/grpc"), "{upstream} {name}");
                assert_eq!(response.header("x-signed"), Some("yes"), "{upstream} {name}: it has passed the chain");
                assert!(response.body.is_empty() && response.header("content-length").is_none(), "{upstream} {name}");
            }
            // Others have their answer as ever, and nothing of gRPC in it; so has gRPC-Web, whose status is in the body.
            for transport in TRANSPORTS {
                let response = transport.post(&edge, &path, b"abc").await;
                assert_eq!(says(&response), (403, "nothing", "nothing"), "{upstream} {name}");
                assert_eq!(response.text(), "no-access:100%", "{upstream} {name}");
            }
            assert_eq!(ask(edge.web(), &path, "application/grpc-web").await.status, 403, "{upstream} {name}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http1_such_an_answer_has_an_end_too() {
    let origin = echo().await;
    let edge = edge("h1", &origin, None, &[script("reply", "request_end reply 429 slow", "")], &[("reply", "reply")]);
    for (path, status) in [("/reply/x", "14"), ("/nowhere", "12")] {
        let response = Client::post(edge.web(), path, "content-type: application/grpc\r\n", MESSAGE).await;
        assert_eq!((response.status, response.header("grpc-status")), (200, Some(status)), "{response:?}");
        assert_eq!(response.header("content-length"), Some("0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_of_the_node_are_statuses_to_grpc() {
    let edge = Edge::start(
        "upstreams:
  dead: { endpoints: [\"127.0.0.1:1\"] }
filters:
  noop: { wasm: \"file:${GUESTS}/noop.wasm\" }
  trap: { wasm: \"file:${GUESTS}/trap.wasm\", config: request_headers }
  late: { wasm: \"file:${GUESTS}/trap.wasm\", config: response_headers }
  small: { wasm: \"file:${GUESTS}/hold.wasm\", config: request, limits: { body: 4B } }
cache: {}
sites:
  - hosts: [\"test\"]
    routes:
      - { name: dead, match: { path: /dead }, to: dead }
      - { name: filtered, match: { path: /filtered }, filters: [noop], to: dead }
      - { name: trap, match: { path: /trap }, filters: [trap], respond: { status: 200 } }
      - { name: late, match: { path: /late }, filters: [late], respond: { status: 200, body: text } }
      - { name: small, match: { path: /small }, filters: [small], to: dead }
",
        &[],
    );
    for (path, status, http) in [
        ("/nowhere", "12", 404),
        ("/dead", "14", 502),
        ("/filtered", "14", 502),
        ("/trap", "14", 503),
        ("/late", "14", 503),
        ("/small", "2", 413),
    ] {
        let response = ask(edge.web(), path, "application/grpc").await;
        let (code, found, message) = says(&response);
        assert_eq!((code, found), (200, status), "{path}: {response:?}");
        assert!(!message.is_empty() && !message.ends_with("%0A"), "{path}: {message}");
        assert!(response.body.is_empty() && response.header("content-length").is_none(), "{path}");
        assert_eq!(
            response.header("proxy-status").is_some(),
            path != "/nowhere",
            "{path}: it still says who was to blame"
        );
        let plain = Client::post(edge.web(), path, "", MESSAGE).await;
        assert_eq!((plain.status, plain.header("grpc-status")), (http, None), "{path}");
    }
}
