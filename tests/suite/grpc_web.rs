//! gRPC-Web towards clients, gRPC behind: framing, base64 cut anywhere, trailers as the last frame, HTTP/1.1 and HTTP/2.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use selvedge_tests::grpc::GrpcServer;
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, Response, soon};

const WEB: &str = "application/grpc-web+proto";
const TEXT: &str = "application/grpc-web-text+proto";

/// A message of gRPC.
fn frame(message: &str) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0], &length[..], message.as_bytes()].concat()
}

/// The messages of a body, and its trailers.
fn frames(body: &[u8]) -> (Vec<String>, Option<String>) {
    let (mut messages, mut trailers, mut rest) = (Vec::new(), None, body);
    while let Some((head, after)) = rest.split_at_checked(5) {
        let length = u32::from_be_bytes(head[1..].try_into().expect("four bytes")) as usize;
        let (data, after) = after.split_at_checked(length).expect("a whole frame");
        let text = String::from_utf8(data.to_vec()).expect("text");
        assert!(trailers.is_none(), "trailers are the last frame");
        match head[0] {
            0 => messages.push(text),
            0x80 => trailers = Some(text),
            other => panic!("a frame with flags {other:#x}"),
        }
        rest = after;
    }
    assert!(rest.is_empty(), "half a frame");
    (messages, trailers)
}

/// Base64 of pieces that are padded by themselves.
fn decoded(body: &[u8]) -> Vec<u8> {
    let groups = body.chunks(4).flat_map(|group| STANDARD.decode(group).expect("groups of four"));
    groups.collect()
}

fn node(settings: &str) -> String {
    format!(
        "filters: {{ noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 5s }} }} }}
upstreams: {{ app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], protocol: h2, {settings} }} }}
sites:
  - hosts: [\"*\"]
    routes:
      - {{ name: bare, match: {{ path: /bare/* }}, grpc_web: true, to: app }}
      - {{ name: filtered, match: {{ path: /filtered/* }}, grpc_web: true, filters: [noop], to: app }}
      - {{ name: pages, match: {{ path: /pages/* }}, grpc_web: true, cors: {{ origins: [\"https://a.test\"] }}, to: app }}
      - {{ name: plain, match: {{ path: /plain/* }}, to: app }}
"
    )
}

/// Asks over both versions of HTTP.
async fn ask(edge: &Edge, path: &str, kind: &str, body: &[u8]) -> [Response; 2] {
    let one = Client::post(edge.web(), path, &format!("content-type: {kind}\r\nx-grpc-web: 1\r\n"), body).await;
    let client = H2Client::connect(edge.web()).await;
    let two =
        client.request("POST", path, &[("content-type", kind), ("x-grpc-web", "1")], body).await.expect("answered");
    [one, two]
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_translated_both_ways() {
    let server = GrpcServer::start().await;
    // Once through Pingora's own sessions, once through ours.
    for settings in ["", "timeouts: { total: 30s }"] {
        let edge = Edge::start(&node(settings), &[("app", server.address())]);
        for way in ["bare", "filtered"] {
            for response in ask(&edge, &format!("/{way}/Unary"), WEB, &frame("hi")).await {
                assert_eq!((response.status, response.header("content-type")), (200, Some(WEB)), "{way}");
                let (messages, trailers) = frames(&response.body);
                assert_eq!(messages, ["echo hi"]);
                let trailers = trailers.expect("trailers");
                assert!(
                    trailers.contains("grpc-status:0\r\n") && trailers.contains("x-trailing:yes\r\n"),
                    "{trailers}"
                );
                assert!(response.trailers.is_empty(), "{:?}", response.trailers);
            }
            for response in ask(&edge, &format!("/{way}/Count"), TEXT, STANDARD.encode(frame("3")).as_bytes()).await {
                assert_eq!((response.status, response.header("content-type")), (200, Some(TEXT)), "{way}");
                let (messages, trailers) = frames(&decoded(&response.body));
                assert_eq!(messages, ["1", "2", "3"]);
                assert!(trailers.expect("trailers").contains("grpc-status:0\r\n"));
            }
        }
        let request = server.requests().pop().expect("asked");
        assert_eq!(
            (&request.headers()["content-type"], &request.headers()["te"]),
            (&"application/grpc+proto".parse().unwrap(), &"trailers".parse().unwrap())
        );
        assert!(!request.headers().contains_key("x-grpc-web"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn base64_may_be_cut_and_padded_anywhere() {
    let server = GrpcServer::start().await;
    let edge = Edge::start(&node(""), &[("app", server.address())]);
    let (one, two) = (frame("first"), frame("second"));
    // The second message begins in the middle of a padded piece.
    let body = [STANDARD.encode(&one[..4]), STANDARD.encode(&one[4..]), STANDARD.encode(&two)].concat();
    for way in ["bare", "filtered"] {
        for cut in [1, 2, 3, 5, body.len()] {
            let mut client = Client::connect(edge.web()).await;
            let head = format!(
                "POST /{way}/Collect HTTP/1.1\r\nhost: a\r\ncontent-type: {TEXT}\r\ntransfer-encoding: chunked\r\n\r\n"
            );
            client.send(head.as_bytes()).await;
            for part in body.as_bytes().chunks(cut) {
                client.send(format!("{:x}\r\n", part.len()).as_bytes()).await;
                client.send(part).await;
                client.send(b"\r\n").await;
            }
            client.send(b"0\r\n\r\n").await;
            let response = soon("an answer", client.response("POST")).await;
            let (messages, _) = frames(&decoded(&response.body));
            assert_eq!(messages, ["first+second"], "{way} {cut}");
            // The connection goes on.
            let again =
                format!("POST /{way}/Unary HTTP/1.1\r\nhost: a\r\ncontent-type: {WEB}\r\ncontent-length: 6\r\n\r\n");
            client.send(&[again.as_bytes(), &frame("x")].concat()).await;
            assert_eq!(frames(&soon("an answer", client.response("POST")).await.body).0, ["echo x"]);
        }
    }
    let bad = Client::post(edge.web(), "/bare/Unary", &format!("content-type: {TEXT}\r\n"), b"!!!!").await;
    assert_eq!(bad.header("grpc-status"), Some("13"), "{bad:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_is_told_wherever_it_comes_from() {
    let server = GrpcServer::start().await;
    let edge = Edge::start(&node(""), &[("app", server.address())]);
    for way in ["bare", "filtered"] {
        // In the header alone.
        for response in ask(&edge, &format!("/{way}/Denied"), WEB, &frame("x")).await {
            assert_eq!((response.status, response.header("grpc-status"), response.body.len()), (200, Some("7"), 0));
            assert_eq!(response.header("content-type"), Some(WEB));
        }
        // After messages.
        for response in ask(&edge, &format!("/{way}/Late"), WEB, &frame("x")).await {
            let (messages, trailers) = frames(&response.body);
            assert_eq!(
                (messages, trailers.as_deref().map(|text| text.contains("grpc-status:9\r\n"))),
                (vec!["almost".to_owned()], Some(true))
            );
        }
        // Nowhere.
        for response in ask(&edge, &format!("/{way}/Bare"), WEB, &frame("x")).await {
            let (messages, trailers) = frames(&response.body);
            assert_eq!(
                (messages.len(), trailers.as_deref()),
                (0, Some("grpc-status:2\r\ngrpc-message:the server sent no status\r\n"))
            );
        }
        // What is no gRPC is not translated.
        for response in ask(&edge, &format!("/{way}/Html"), WEB, &frame("x")).await {
            assert_eq!(
                (response.status, response.header("content-type"), response.text().as_str()),
                (503, Some("text/html"), "<h1>no</h1>")
            );
        }
        // The node's own.
        for response in ask(&edge, &format!("/{way}/Crash"), TEXT, STANDARD.encode(frame("x")).as_bytes()).await {
            assert_eq!(
                (response.status, response.header("content-type")),
                (200, Some("application/grpc-web-text+proto"))
            );
            assert!(response.header("grpc-status").is_some(), "{response:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_arrive_one_by_one() {
    let server = GrpcServer::start().await;
    let edge = Edge::start(&node(""), &[("app", server.address())]);
    for (kind, text) in [(WEB, false), (TEXT, true)] {
        let said = |message: &str| if text { STANDARD.encode(frame(message)).into_bytes() } else { frame(message) };
        let client = H2Client::connect(edge.web()).await;
        let (answer, mut say) = client.open("POST", "/filtered/Chat", &[("content-type", kind)], false).await.unwrap();
        say.send_data(said("one").into(), false).unwrap();
        let mut answer = soon("the answer begins", answer).await.unwrap().into_body();
        for (message, next) in [("re one", Some("two")), ("re two", None)] {
            let chunk = soon("an answer", answer.data()).await.unwrap().unwrap();
            let chunk = if text { decoded(&chunk) } else { chunk.to_vec() };
            assert_eq!(frames(&chunk).0, [message]);
            match next {
                Some(next) => say.send_data(said(next).into(), false).unwrap(),
                None => say.send_data(bytes::Bytes::new(), true).unwrap(),
            }
        }
        let last = soon("the trailers", answer.data()).await.unwrap().unwrap();
        let last = if text { decoded(&last) } else { last.to_vec() };
        assert!(frames(&last).1.expect("trailers").contains("grpc-status:0"));
        assert!(soon("the end", answer.data()).await.is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_may_read_the_status_and_others_are_not_concerned() {
    let server = GrpcServer::start().await;
    let edge = Edge::start(&node(""), &[("app", server.address())]);
    let head = format!("content-type: {WEB}\r\norigin: https://a.test\r\n");
    let response = Client::post(edge.web(), "/pages/Denied", &head, &frame("x")).await;
    assert_eq!(response.header("access-control-allow-origin"), Some("https://a.test"));
    assert!(
        response.header("access-control-expose-headers").is_some_and(|names| names.contains("grpc-status")),
        "{response:?}"
    );
    // gRPC itself, and routes without translation, are as they were.
    let client = H2Client::connect(edge.web()).await;
    let grpc =
        client.request("POST", "/bare/Unary", &[("content-type", "application/grpc")], &frame("x")).await.unwrap();
    assert_eq!((grpc.header("content-type"), grpc.body.as_ref()), (Some("application/grpc"), &frame("echo x")[..]));
    assert!(grpc.trailers.iter().any(|(name, value)| name == "grpc-status" && value == "0"));
    let plain = client.request("POST", "/plain/Unary", &[("content-type", WEB)], &frame("x")).await.unwrap();
    assert_eq!(plain.header("content-type"), Some("application/grpc"));

    let origin = Origin::start(|_| Origin::reply(200, &[], "")).await;
    let refused = Edge::try_start(&node("").replace("protocol: h2", "protocol: h1"), &[("app", origin.address())]);
    let refused = refused.err().expect("refused").to_string();
    assert!(refused.contains("`grpc_web` needs an upstream with `protocol: h2`"), "{refused}");
}
