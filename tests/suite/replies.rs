//! Local replies and closed streams: from every phase, and what the other filters see of them.

use bytes::Bytes;
use futures::future::join_all;
use selvedge_tests::{Client, Origin, Process, Response, guest, h2::H2Client, soon, until};

use super::bodies::script;
use super::pause::{TRANSPORTS, echo, edge, filter, gated};

/// A filter that signs what passes, with its name.
fn signs(name: &str) -> String {
    filter(name, "headers", &format!("request add x-order {name}\\nresponse add x-order {name}"), "")
}

fn order(response: &Response) -> String {
    let values = response.headers.iter().filter(|(name, _)| name == "x-order").map(|(_, value)| value.as_str());
    values.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_passes_every_filter_that_has_seen_no_response_once() {
    let origin = echo().await;
    let side = Origin::start(|_| Origin::reply(200, &[], "yes")).await;
    // Where it replies, what it needs for that, who then sees the reply, and whether its maker does.
    let cases = [
        ("request_headers", "request_headers reply 403 no", "", "a", true),
        ("request_end", "request_end reply 403 no", "", "ba", true),
        ("whole", "request_end reply 403 no", ", request_body: buffer", "a", true),
        ("answer", "request_headers call side /ask; request_headers pause; answer reply 403 no", "", "a", true),
        ("tick", "request_headers pause; request_body pause; tick reply 403 no", "", "a", true),
        ("stopped", "request_headers pause; tick reply 403 no", ", on_pause: stop_all", "a", true),
        ("response_headers", "response_headers reply 403 no", "", "a", false),
        ("response_end", "response_end reply 403 no", ", response_body: buffer", "a", false),
        ("late", "response_headers pause; response_body pause; tick reply 403 no", "", "a", false),
        ("asked", "response_headers call side /ask; response_headers pause; answer reply 403 no", "", "a", false),
    ];
    let mut filters = vec![signs("a"), signs("b")];
    let mut chains = Vec::new();
    for (name, lines, more, ..) in &cases {
        filters.push(script(name, &format!("{lines}; response_headers set response x-own {name}"), more));
        chains.push(((*name).to_owned(), format!("a, {name}, b")));
    }
    let chains: Vec<(&str, &str)> = chains.iter().map(|(name, chain)| (name.as_str(), chain.as_str())).collect();
    for upstream in ["h1", "h2"] {
        let edge = edge(upstream, &origin, Some(&side), &filters, &chains);
        for transport in TRANSPORTS {
            for (name, _, _, seen_by, own) in &cases {
                let what = format!("{upstream} {transport:?} {name}");
                let response = transport.post(&edge, &format!("/{name}/x"), b"abc").await;
                assert_eq!((response.status, response.text().as_str()), (403, "no"), "{what}");
                assert_eq!(order(&response), *seen_by, "{what}");
                assert_eq!(response.header("x-own"), own.then_some(*name), "{what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_replaces_its_own_reply_once() {
    let origin = echo().await;
    let filters = [
        signs("a"),
        script(
            "twice",
            "request_headers reply 403 first; response_headers reply 500 second; response_body reply 501 third",
            "",
        ),
        script("also", "request_headers set request x-a b; response_headers reply 502 other", ""),
    ];
    let edge = edge("h1", &origin, None, &filters, &[("own", "a, twice"), ("both", "a, also, twice")]);
    for transport in TRANSPORTS {
        let response = transport.post(&edge, "/own/x", b"abc").await;
        assert_eq!((response.status, response.text().as_str()), (500, "second"), "{transport:?}");
        assert_eq!(order(&response), "a", "{transport:?}: who has not seen the first sees the second");
        let response = transport.post(&edge, "/both/x", b"abc").await;
        assert_eq!((response.status, response.text().as_str()), (502, "other"), "{transport:?}");
        assert_eq!(order(&response), "a", "{transport:?}");
    }
    assert_eq!(origin.started(), 0);
    let mut client = Client::connect(edge.web()).await;
    for _ in 0..3 {
        let response = client.request("GET /own/x HTTP/1.1\r\nhost: test\r\n\r\n").await;
        assert_eq!(response.text(), "second", "the connection goes on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_takes_the_place_of_a_response_that_others_still_hold() {
    let origin = echo().await;
    let filters = [
        signs("a"),
        script("holds", "response_headers set response x-held yes", ", response_body: buffer"),
        script("replies", "response_end reply 451 no", ""),
    ];
    for upstream in ["h1", "h2"] {
        let edge = edge(upstream, &origin, None, &filters, &[("held", "a, holds, replies")]);
        for transport in TRANSPORTS {
            for path in ["/held/x", "/cached/held/x", "/cached/held/x"] {
                let response = transport.get(&edge, path).await;
                assert_eq!((response.status, response.text().as_str()), (451, "no"), "{upstream} {transport:?} {path}");
                assert_eq!((order(&response).as_str(), response.header("x-held")), ("a", None), "{transport:?} {path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_that_comes_when_the_header_is_out_cuts_the_response() {
    let (hand_over, mut bodies) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::start(move |request| match request.target.starts_with("/late") {
        true => {
            let (body, served) = Origin::streaming(200, &[("cache-control", "max-age=60")]);
            let _ = hand_over.send(body);
            served
        }
        false => Origin::reply(200, &[], "yes"),
    })
    .await;
    let side = Origin::start(|_| Origin::reply(200, &[], "yes")).await;
    let filters =
        [script("late", "response_headers call side /ask; answer reply 500 late", ""), filter("noop", "noop", "", "")];
    let edge = edge("h1", &origin, Some(&side), &filters, &[("late", "late"), ("noop", "noop")]);
    for turn in 1..3 {
        let mut h1 = Client::connect(edge.web()).await;
        h1.send(b"GET /late/x HTTP/1.1\r\nhost: test\r\n\r\n").await;
        let body = soon("the request", bodies.recv()).await.unwrap();
        assert_eq!(h1.head().await.expect("the header is not held").0, 200);
        until("the filter asks", || side.received().len() == 2 * turn - 1).await;
        for _ in 0..4 {
            assert_eq!(Client::get(edge.web(), "/noop/x").await.status, 200);
        }
        body.send(Bytes::from_static(b"never seen")).unwrap();
        assert!(h1.is_closed().await, "no byte, no end of body");

        let h2 = H2Client::connect(edge.web()).await;
        let (response, _) = h2.open("GET", "/late/x", &[], true).await.unwrap();
        let body = soon("the request", bodies.recv()).await.unwrap();
        let response = soon("the header", response).await.expect("the header is not held");
        until("the filter asks", || side.received().len() == 2 * turn).await;
        for _ in 0..4 {
            assert_eq!(h2.request("GET", "/noop/x", &[], b"").await.unwrap().status, 200);
        }
        body.send(Bytes::from_static(b"never seen")).unwrap();
        let error = H2Client::collect(response).await.expect_err("the stream is reset");
        assert!(error.is_reset(), "{error}");
        assert_eq!(h2.request("GET", "/noop/x", &[], b"").await.unwrap().status, 200, "other streams live");
    }
}

/// Where a filter closes the stream, and how.
const CLOSES: [(&str, &str, &str); 8] = [
    ("request-headers", "request_headers close request", ""),
    ("request-end", "request_end close request", ""),
    ("request-whole", "request_end close response", ", request_body: buffer"),
    ("tick", "request_headers pause; request_body pause; tick close request", ""),
    ("response-headers", "response_headers close response", ""),
    ("response-body", "response_body close response", ""),
    ("response-whole", "response_end close request", ", response_body: buffer"),
    // What it says besides does not count.
    ("with-reply", "response_headers reply 403 no; response_headers close response", ""),
];

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_stream_ends_without_an_answer_and_costs_no_other() {
    let origin = echo().await;
    let mut filters: Vec<String> = CLOSES.iter().map(|(name, lines, more)| script(name, lines, more)).collect();
    filters.push(filter("noop", "noop", "", ""));
    let mut chains: Vec<(&str, &str)> = CLOSES.iter().map(|(name, ..)| (*name, *name)).collect();
    chains.push(("noop", "noop"));
    for upstream in ["h1", "h2"] {
        let edge = edge(upstream, &origin, None, &filters, &chains);
        let h2 = H2Client::connect(edge.web()).await;
        for (name, ..) in CLOSES {
            let mut paths = vec![("POST", format!("/{name}/x"))];
            if !name.starts_with("request-") {
                // A miss, then what has become of it in the cache.
                paths.extend([("GET", format!("/cached/{name}/x")), ("GET", format!("/cached/{name}/x"))]);
            }
            for (method, path) in paths {
                let body: &[u8] = if method == "POST" { b"abc" } else { b"" };
                let mut h1 = Client::connect(edge.web()).await;
                h1.send(
                    format!("{method} {path} HTTP/1.1\r\nhost: test\r\ncontent-length: {}\r\n\r\n", body.len())
                        .as_bytes(),
                )
                .await;
                h1.send(body).await;
                if name == "response-body" {
                    // The header may be out by then; the end of the body is not.
                    assert!(h1.try_response(method).await.is_err(), "{upstream} {path}");
                } else {
                    assert!(h1.is_closed().await, "{upstream} {path}: not a byte");
                }
                let error = h2.request(method, &path, &[], body).await.expect_err(&path);
                // The client's body may meet a stream that has been reset already.
                let reset = error.is_reset() || error.to_string().contains("inactive stream");
                assert!(reset, "{upstream} {path}: {error}");
                let other = h2.request("GET", "/noop/x", &[], b"").await.unwrap();
                assert_eq!((other.status, other.text().as_str()), (200, "GET /noop/x "), "{upstream} {path}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_log_says_that_a_filter_closed_the_stream() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let guests = guest("script").parent().unwrap().display().to_string();
    let mut yaml = "version: 1
listeners: { web: { bind: \"127.0.0.1:0\", protocols: [h1, h2] } }
telemetry: { access_log: { format: json, output: stderr } }
filters:
"
    .to_owned();
    let mut routes = String::new();
    for (name, lines, more) in CLOSES {
        yaml.push_str(&format!("  {}\n", script(name, lines, more).replace("${GUESTS}", &guests)));
        routes.push_str(&format!(
            "  - {{ name: {name}, match: {{ path: /{name} }}, filters: [{name}], respond: {{ status: 200, body: yes }} }}\n"
        ));
    }
    yaml.push_str(&format!("sites:\n- hosts: [\"*\"]\n  routes:\n{routes}"));
    std::fs::write(&path, yaml).unwrap();
    let process = Process::run(env!("CARGO_BIN_EXE_selvedge-under-test"), folder.path(), &path, 1).await;
    let web = process.addresses()["web"];
    let names: Vec<&str> =
        CLOSES.iter().map(|(name, ..)| *name).filter(|name| !name.starts_with("request-end")).collect();
    join_all(names.iter().map(async |name| {
        let mut client = Client::connect(web).await;
        client.send(format!("POST /{name} HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc").as_bytes()).await;
        assert!(client.try_response("POST").await.is_err(), "{name}");
    }))
    .await;
    for name in names {
        let line = || {
            let lines = process.log();
            let line = lines.iter().find(|line| line.contains(&format!("\"path\":\"/{name}\"")));
            line.and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        };
        until("the line", || line().is_some()).await;
        let line = line().unwrap();
        assert_eq!(line["error"], "closed_by_filter", "{name}: {line}");
        let out = line["status"].as_u64().unwrap();
        assert!(out == 0 || name == "response-body", "{name}: {line}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_context_asks_for_reaches_a_stream_that_waits_for_nothing() {
    let (gate, origin) = gated().await;
    let side = echo().await;
    let lines = "request_headers enqueue item; told call side /told; queue";
    let filters = [
        script("replies", &format!("{lines} reply 451 no"), ""),
        script("closes", &format!("{lines} close response"), ""),
        script("resumes", &format!("{lines} resume response"), ""),
    ];
    let chains = [("replies", "replies"), ("closes", "closes"), ("resumes", "resumes")];
    for upstream in ["h1", "h2"] {
        let edge = edge(upstream, &origin, Some(&side), &filters, &chains);
        for transport in TRANSPORTS {
            for (name, _) in chains {
                let told = side.started();
                let path = format!("/{name}/x");
                // The root context has acted on the stream while the origin thought about its answer.
                let open = async {
                    until("the root context was told", || side.started() > told).await;
                    gate.add_permits(1);
                };
                let (response, ()) = tokio::join!(transport.ask(&edge, "GET", &path, None), open);
                let what = format!("{name} {transport:?} {upstream}");
                match name {
                    "replies" => {
                        let response = response.expect(&what);
                        assert_eq!((response.status, response.header("x-replied")), (451, Some("queue")), "{what}");
                    }
                    "closes" => assert!(!response.is_ok_and(|response| response.status == 200), "{what}"),
                    _ => assert_eq!(response.expect(&what).text(), "yes", "{what}"),
                }
            }
        }
    }
}
