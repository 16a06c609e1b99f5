//! What filters are shown of bodies, and when: as a whole, their beginning, or chunk by chunk.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use parking_lot::Mutex;
use selvedge_tests::{Client, Edge, Origin, Response, h2::H2Client, soon, until};

use super::pause::{TRANSPORTS, echo, edge, filter};

/// A scripted filter (`tests/guests/examples/script.rs`), its lines separated by semicolons.
pub(super) fn script(name: &str, lines: &str, more: &str) -> String {
    filter(name, "script", &lines.replace("; ", "\\n"), more)
}

fn saw(response: &Response) -> &str {
    response.header("x-saw").unwrap_or_default()
}

fn is_hit(response: &Response) -> bool {
    response.header("cache-status").is_some_and(|status| status.contains("; hit"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_request_is_shown_once_and_whole() {
    for upstream in ["h1", "h2"] {
        let origin = echo().await;
        let filters = [
            script("whole", "response_headers tell response", ", request_body: buffer"),
            script("edits", "request_end body request new; response_headers tell response", ", request_body: buffer"),
        ];
        let edge = edge(upstream, &origin, None, &filters, &[("whole", "whole"), ("edits", "edits")]);
        for transport in TRANSPORTS {
            for chunks in [&[b"abc".as_slice()] as &[&[u8]], &[b"a", b"b", b"c"]] {
                let response = transport.ask(&edge, "POST", "/whole/x", Some(chunks)).await.unwrap();
                assert_eq!(response.text(), "POST /whole/x abc", "{transport:?}");
                assert_eq!(saw(&response), "request_headers request_body:3. response_headers", "{transport:?}");
                let last = origin.last();
                assert_eq!((last.header("content-length"), last.header("transfer-encoding")), (Some("3"), None));

                let response = transport.ask(&edge, "POST", "/edits/x", Some(chunks)).await.unwrap();
                assert_eq!(response.text(), "POST /edits/x new", "{transport:?}");
            }
            // No body, and one that turns out to be empty.
            let response = transport.get(&edge, "/whole/x").await;
            assert_eq!(saw(&response), "request_headers. response_headers", "{transport:?}");
            let response = transport.ask(&edge, "POST", "/whole/x", Some(&[])).await.unwrap();
            assert_eq!(saw(&response), "request_headers request_body:0. response_headers", "{transport:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_buffered_request_goes_on_before_its_end() {
    let origin = echo().await;
    let filters = [script("whole", "", ", request_body: buffer"), filter("noop", "noop", "", "")];
    let edge = edge("h1", &origin, None, &filters, &[("whole", "noop, whole, noop"), ("noop", "noop")]);
    let mut client = Client::connect(edge.web()).await;
    client.send(b"POST /whole/x HTTP/1.1\r\nhost: test\r\ncontent-length: 6\r\n\r\nabc").await;
    for _ in 0..4 {
        // The node's only worker has had its turn with what was sent before.
        assert_eq!(Client::get(edge.web(), "/noop/x").await.status, 200);
    }
    assert_eq!(origin.started(), 4, "the origin has heard of the others only");
    client.send(b"def").await;
    assert_eq!(client.response("POST").await.text(), "POST /whole/x abcdef");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_response_is_shown_once_and_whole_before_its_header_leaves() {
    for upstream in ["h1", "h2"] {
        let origin = echo().await;
        let filters = [
            script("whole", "response_end tell response", ", response_body: buffer"),
            script("edits", "response_end body response other; response_end tell response", ", response_body: buffer"),
            script("denies", "response_end reply 451 no", ", response_body: buffer"),
        ];
        let chains = [("whole", "whole"), ("edits", "edits"), ("denies", "denies"), ("both", "whole, edits")];
        let edge = edge(upstream, &origin, None, &filters, &chains);
        for transport in TRANSPORTS {
            for name in ["whole", "edits", "both"] {
                let path = format!("/cached/{name}/{transport:?}");
                for hit in [false, true] {
                    let response = transport.get(&edge, &path).await;
                    let whole = format!("GET {path} ");
                    let body = if name == "whole" { whole.clone() } else { "other".into() };
                    assert_eq!((response.text(), is_hit(&response)), (body.clone(), hit), "{transport:?}");
                    let length = body.len().to_string();
                    assert_eq!(response.header("content-length"), Some(length.as_str()), "{transport:?} {path}");
                    let shown = if name == "both" { body.len() } else { whole.len() };
                    let saw_it = format!("request_headers. response_headers response_body:{shown}.");
                    assert_eq!(saw(&response), saw_it, "{transport:?} {path}");
                }
            }
            for _ in 0..2 {
                let response = transport.get(&edge, &format!("/cached/denies/{transport:?}")).await;
                assert_eq!((response.status, response.text().as_str()), (451, "no"), "{transport:?}");
            }
            // Nothing to collect.
            let response = transport.ask(&edge, "HEAD", "/whole/x", None).await.unwrap();
            assert_eq!((response.status, response.header("x-saw")), (200, None), "{transport:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buffered_body_beyond_the_limit_is_refused() {
    for upstream in ["h1", "h2"] {
        let origin = Origin::start(|request| {
            let length = request.target.rsplit('/').next().and_then(|length| length.parse().ok()).unwrap_or(0);
            Origin::reply(200, &[("cache-control", "max-age=60")], vec![b'x'; length])
        })
        .await;
        let limits = "limits: { body: 1KiB }";
        let filters = [
            script("up", "", &format!(", request_body: buffer, {limits}")),
            script("down", "", &format!(", response_body: buffer, {limits}")),
            // Its policy is for failures of the filter: a body that is too large is none, and must not pass unseen.
            script("open", "", &format!(", request_body: buffer, response_body: buffer, on_failure: open, {limits}")),
        ];
        let edge = edge(upstream, &origin, None, &filters, &[("up", "up"), ("down", "down"), ("open", "open")]);
        for transport in TRANSPORTS {
            let exact = [b'x'; 1024];
            let chunks: Vec<&[u8]> = std::iter::repeat_n(b"0123456789".as_slice(), 103).collect();
            for name in ["up", "open"] {
                let path = format!("/{name}/3");
                assert_eq!(transport.post(&edge, &path, &exact).await.text(), "xxx", "{transport:?}");
                let asked = origin.started();
                for body in [&[[b'x'; 1025].as_slice()] as &[&[u8]], &chunks] {
                    let response = transport.ask(&edge, "POST", &path, Some(body)).await.unwrap();
                    assert_eq!(response.status, 413, "{transport:?}");
                    let status =
                        format!("edge; error=http_request_denied; details=\"body too large for filter {name}\"");
                    assert_eq!(response.header("proxy-status"), Some(status.as_str()), "{transport:?}");
                }
                assert_eq!(origin.started(), asked, "{transport:?}: the origin has heard nothing of it");
            }
            for name in ["down", "open"] {
                assert_eq!(transport.get(&edge, &format!("/{name}/1024")).await.status, 200, "{transport:?}");
                for path in [format!("/{name}/1025"), format!("/cached/{name}/1025"), format!("/cached/{name}/1025")] {
                    let response = transport.get(&edge, &path).await;
                    assert_eq!(response.status, 502, "{transport:?} {path}");
                    let status =
                        format!("edge; error=http_response_incomplete; details=\"body too large for filter {name}\"");
                    assert_eq!(response.header("proxy-status"), Some(status.as_str()), "{transport:?}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peeking_filter_sees_the_beginning_and_the_rest_passes_unseen() {
    for upstream in ["h1", "h2"] {
        let origin = echo().await;
        let filters = [
            script("up", "response_headers tell response", ", request_body: { peek: 4B }"),
            script("edits", "request_body body request <new>", ", request_body: { peek: 4B }"),
            script("denies", "request_body reply 403 no", ", request_body: { peek: 4B }"),
            script("down", "response_body tell response", ", response_body: { peek: 4B }"),
            script("trims", "response_body body response <new>", ", response_body: { peek: 4B }"),
        ];
        let names = ["up", "edits", "denies", "down", "trims"];
        let edge = edge(upstream, &origin, None, &filters, &names.map(|name| (name, name)));
        for transport in TRANSPORTS {
            let cases: [(&[&[u8]], &str, &str); 5] = [
                (&[b"abcdefgh"], "4", "efgh"),
                (&[b"a", b"b", b"c", b"d", b"e", b"f"], "4", "ef"),
                (&[b"ab", b"cdefgh", b"ij"], "4", "efghij"),
                (&[b"abcd"], "4.", ""),
                (&[b"abc"], "3.", ""),
            ];
            for (chunks, shown, rest) in cases {
                let whole = String::from_utf8(chunks.concat()).unwrap();
                let response = transport.ask(&edge, "POST", "/up/x", Some(chunks)).await.unwrap();
                assert_eq!(response.text(), format!("POST /up/x {whole}"), "{transport:?}");
                // Whether the last chunk is known to be the last when it comes depends on the transport.
                let seen = saw(&response).replace("request_body:4.", "request_body:4");
                let expected = format!("request_headers request_body:{shown} response_headers");
                assert_eq!(seen, expected.replace("request_body:4.", "request_body:4"), "{transport:?}");

                let response = transport.ask(&edge, "POST", "/edits/x", Some(chunks)).await.unwrap();
                assert_eq!(response.text(), format!("POST /edits/x <new>{rest}"), "{transport:?}");

                let asked = origin.started();
                let response = transport.ask(&edge, "POST", "/denies/x", Some(chunks)).await.unwrap();
                assert_eq!((response.status, response.text().as_str()), (403, "no"), "{transport:?}");
                assert_eq!(origin.started(), asked, "{transport:?}: the origin has heard nothing of it");
            }
            for hit in [false, true] {
                let path = format!("/cached/down/{transport:?}");
                let response = transport.get(&edge, &path).await;
                assert_eq!((response.text(), is_hit(&response)), (format!("GET {path} "), hit), "{transport:?}");
                assert_eq!(saw(&response), "request_headers. response_headers response_body:4", "{transport:?}");

                let path = format!("/cached/trims/{transport:?}");
                let response = transport.get(&edge, &path).await;
                assert_eq!(response.text(), format!("<new>{path} "), "{transport:?}");
                let length = response.text().len().to_string();
                assert_eq!(response.header("content-length"), Some(length.as_str()), "{transport:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_behind_a_peek_streams() {
    let (body, served) = Origin::streaming(200, &[("x-origin", "yes")]);
    let served = Arc::new(Mutex::new(Some(served)));
    let side = echo().await;
    let origin = Origin::start(move |request| match request.target.as_str() {
        "/both/down" => served.lock().take().unwrap(),
        _ => Origin::reply(200, &[], request.body.clone()),
    })
    .await;
    let filters = [script("both", "log report side", ", request_body: { peek: 4B }, response_body: { peek: 4B }")];
    let edge = edge("h1", &origin, Some(&side), &filters, &[("both", "both")]);

    let mut client = Client::connect(edge.web()).await;
    client.send(b"POST /both/up HTTP/1.1\r\nhost: test\r\ncontent-length: 8\r\n\r\nabcd").await;
    until("the request goes on", || origin.started() == 1).await;
    client.send(b"efgh").await;
    assert_eq!(client.response("POST").await.text(), "abcdefgh");
    assert_eq!(origin.last().header("content-length"), Some("8"));
    until("the record", || side.received().len() == 1).await;
    let seen = side.last().body;
    assert_eq!(seen, "request_headers request_body:4 response_headers response_body:4");

    client.send(b"GET /both/down HTTP/1.1\r\nhost: test\r\n\r\n").await;
    until("the origin answers", || origin.started() == 2).await;
    body.send(Bytes::from_static(b"abcd")).unwrap();
    let (status, headers) = client.head().await.expect("the header leaves when the beginning has been seen");
    assert_eq!((status, headers.iter().any(|(name, _)| name == "x-origin")), (200, true));
    let mut read = String::new();
    for (chunk, text) in [("", "abcd"), ("efgh", "efgh"), ("ij", "ij")] {
        body.send(chunk.into()).unwrap();
        while !read.contains(text) {
            read.push_str(&String::from_utf8_lossy(&client.some().await.expect("open")));
        }
    }
    drop(body);
    until("the record", || side.received().len() == 2).await;
    assert_eq!(side.last().body, "request_headers. response_headers response_body:4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_over_a_peek_or_a_whole_body_waits_for_its_resume() {
    let origin = echo().await;
    let side = echo().await;
    let up = "request_body call side /ask; request_body pause; answer resume request; response_headers tell response";
    let down = "response_body call side /ask; response_body pause; answer tell response; answer resume response";
    let mut filters = Vec::new();
    let mut chains = Vec::new();
    let names: Vec<(String, &str, &str)> = ["buffer", "{ peek: 4B }"]
        .iter()
        .flat_map(|mode| [("up", *mode), ("down", *mode)])
        .map(|(side, mode)| (format!("{side}-{}", mode.len()), side, mode))
        .collect();
    for (name, side, mode) in &names {
        let (lines, key) = if *side == "up" { (up, "request_body") } else { (down, "response_body") };
        filters.push(script(name, lines, &format!(", {key}: {mode}")));
        chains.push((name.as_str(), name.as_str()));
    }
    for upstream in ["h1", "h2"] {
        let edge = edge(upstream, &origin, Some(&side), &filters, &chains);
        for transport in TRANSPORTS {
            for (name, side, mode) in &names {
                let path = format!("/{name}/x");
                let response = transport.ask(&edge, "POST", &path, Some(&[b"ab", b"cdef"])).await.unwrap();
                assert_eq!(response.text(), format!("POST {path} abcdef"), "{transport:?} {name}");
                let len = if *mode != "buffer" {
                    "4".into()
                } else if *side == "up" {
                    "6.".into()
                } else {
                    format!("{}.", response.body.len())
                };
                let expected = match *side {
                    "up" => format!("request_headers request_body:{len} answer response_headers"),
                    _ => format!("response_headers response_body:{len} answer"),
                };
                assert!(saw(&response).ends_with(&expected), "{transport:?} {name}: {}", saw(&response));
            }
        }
    }
}

/// An origin over HTTP/2 whose responses have trailers.
async fn with_trailers() -> Origin {
    Origin::start(|_| Origin::with_trailers(200, &[], "body", &[("x-after", "1")])).await
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_do_not_hide_the_end_of_a_body_from_a_filter_that_collects_it() {
    let origin = with_trailers().await;
    let filters = [
        script("whole", "response_body tell response", ", response_body: buffer"),
        script("peek", "response_body tell response", ", response_body: { peek: 9B }"),
        script("late", "response_trailers tell response", ", response_body: buffer"),
        script("holds", "response_headers pause; response_body pause; response_trailers tell response", ""),
        script("denies", "response_headers pause; response_body pause; response_trailers reply 403 no", ""),
        filter("judge", "judge", "response", ", response_body: buffer"),
    ];
    let names = ["whole", "peek", "holds", "denies", "judge", "late"];
    let edge = edge("h2", &origin, None, &filters, &names.map(|name| (name, name)));
    let client = H2Client::connect(edge.web()).await;
    for (name, expected) in [
        ("whole", "request_headers. response_headers response_body:4."),
        ("peek", "request_headers. response_headers response_body:4."),
        ("holds", "request_headers. response_headers response_body:4 response_trailers:1"),
        ("judge", ""),
        // The body was collected to its end, so the header is still here when the trailers come.
        ("late", "request_headers. response_headers response_body:4. response_trailers:1"),
    ] {
        let response = client.request("GET", &format!("/{name}/x"), &[], b"").await;
        let response = response.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((response.status, response.text().as_str()), (200, "body"), "{name}");
        assert_eq!(saw(&response), expected, "{name}");
        assert_eq!(response.trailers, [("x-after".to_owned(), "1".to_owned())], "{name}");
    }
    let response = client.request("GET", "/denies/x", &[], b"").await.unwrap();
    assert_eq!((response.status, response.text().as_str(), response.trailers.len()), (403, "no", 0));
    assert_eq!(response.header("x-replied"), Some("response_trailers"));
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_may_be_added_over_the_end_of_the_body() {
    let origin = echo().await;
    let side = echo().await;
    let filters = [
        script("adds", "response_end trailer x-sum 1", ""),
        script("whole", "response_end trailer x-sum 1", ", response_body: buffer"),
        script("front", "response_trailers trailer x-more 2; log report side", ""),
    ];
    for upstream in ["h1", "h2"] {
        let edge =
            edge(upstream, &origin, Some(&side), &filters, &[("adds", "front, adds"), ("whole", "front, whole")]);
        for name in ["adds", "whole"] {
            for transport in TRANSPORTS {
                let path = format!("/cached/{name}/{transport:?}");
                for hit in [false, true] {
                    let reports = side.received().len();
                    let response = transport.get(&edge, &path).await;
                    assert_eq!((response.text(), is_hit(&response)), (format!("GET {path} "), hit), "{transport:?}");
                    let added = [("x-sum".to_owned(), "1".to_owned()), ("x-more".to_owned(), "2".to_owned())];
                    // HTTP/1 has no way to forward trailers here, and its message ends all the same.
                    let expected = if transport.is_h2() { &added[..] } else { &[] };
                    assert_eq!(response.trailers, expected, "{transport:?} {path}");
                    until("the record", || side.received().len() > reports).await;
                    let record = side.last().body;
                    let record = String::from_utf8_lossy(&record);
                    assert!(record.ends_with(" response_trailers:1"), "{transport:?} {path}: {record}");
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn request_trailers_end_a_body_and_are_not_shown() {
    let origin = echo().await;
    let filters = [
        script("whole", "response_headers tell response", ", request_body: buffer"),
        script("streams", "response_headers tell response", ""),
        script("holds", "request_headers pause; request_body pause; request_end resume request", ""),
    ];
    for upstream in ["h1", "h2"] {
        let chains = [("whole", "whole"), ("streams", "streams"), ("holds", "holds"), ("plain", "")];
        let edge = edge(upstream, &origin, None, &filters, &chains);
        for (name, _) in chains {
            let path = format!("/{name}/x");
            let h2 = H2Client::connect(edge.web()).await;
            let (response, mut upload) = h2.open("POST", &path, &[], false).await.unwrap();
            upload.send_data(Bytes::from_static(b"abc"), false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("x-after", "1".parse().unwrap());
            upload.send_trailers(trailers).unwrap();
            let response = H2Client::collect(soon("h2 response", response).await.unwrap()).await.unwrap();
            assert_eq!(response.text(), format!("POST {path} abc"), "{upstream}: {response:?}");
            assert!(!saw(&response).contains("trailers"), "{}", saw(&response));

            let mut h1 = Client::connect(edge.web()).await;
            let head = format!("POST {path} HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n");
            h1.send(format!("{head}3\r\nabc\r\n0\r\nx-after: 1\r\n\r\n").as_bytes()).await;
            let response = h1.response("POST").await;
            assert_eq!(response.text(), format!("POST {path} abc"), "{upstream}");
            assert!(!saw(&response).contains("trailers"), "{}", saw(&response));
            assert_eq!(origin.last().trailers, []);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_stops_all_sees_no_body_before_it_resumes() {
    let origin = echo().await;
    let side = echo().await;
    let record = "response_headers tell response; log report side";
    let request = format!("request_headers pause; tick resume request; {record}");
    let response = "response_headers pause; tick resume response; response_body tell response";
    let filters = [
        script("up", &request, ", on_pause: stop_all"),
        script("up-whole", &request, ", on_pause: stop_all, request_body: buffer"),
        script("down", response, ", on_pause: stop_all, response_body: buffer"),
        script("down-streams", "response_headers pause; tick resume response; log report side", ", on_pause: stop_all"),
    ];
    let names = ["up", "up-whole", "down", "down-streams"];
    for upstream in ["h1", "h2"] {
        let edge = edge(upstream, &origin, Some(&side), &filters, &names.map(|name| (name, name)));
        for transport in TRANSPORTS {
            for name in ["up", "up-whole"] {
                let path = format!("/{name}/x");
                let response = transport.post(&edge, &path, b"abc").await;
                assert_eq!(response.text(), format!("POST {path} abc"), "{transport:?}");
                let seen = saw(&response);
                assert!(seen.starts_with("request_headers request_body:3"), "{transport:?} {name}: {seen}");
            }
            let response = transport.post(&edge, "/down/x", b"abc").await;
            assert_eq!(response.text(), "POST /down/x abc", "{transport:?}");
            assert!(
                saw(&response).ends_with("response_headers response_body:16."),
                "{transport:?}: {}",
                saw(&response)
            );
            let response = transport.post(&edge, "/down-streams/x", b"abc").await;
            assert_eq!(response.text(), "POST /down-streams/x abc", "{transport:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_at_the_header_shows_the_body_or_not_as_configured() {
    let origin = echo().await;
    let lines = "request_headers pause; request_body resume request; response_headers tell response";
    let filters = [script("spec", lines, ""), script("stops", lines, ", limits: { wait: 300ms }, on_pause: stop_all")];
    let edge = edge("h1", &origin, None, &filters, &[("spec", "spec"), ("stops", "stops")]);
    for transport in TRANSPORTS {
        let response = transport.post(&edge, "/spec/x", b"abc").await;
        assert_eq!((response.status, response.text().as_str()), (200, "POST /spec/x abc"), "{transport:?}");
        // Nothing else would resume it.
        let response = transport.post(&edge, "/stops/x", b"abc").await;
        assert_eq!(response.status, 503, "{transport:?}");
        let status = "edge; error=proxy_internal_error; details=\"filter stops timed out\"";
        assert_eq!(response.header("proxy-status"), Some(status), "{transport:?}");
    }
}

#[test]
fn a_filter_that_never_looks_at_a_body_cannot_have_it_buffered() {
    let yaml = "filters:
  blind: { wasm: \"builtin:geo-routing\", request_body: buffer }
sites: [{ hosts: [\"*\"], routes: [{ name: all, filters: [blind], respond: { status: 200 } }] }]";
    let report = Edge::try_start(yaml, &[]).err().expect("a fault").to_string();
    assert!(report.contains("the module never looks at that body: it has no `proxy_on_request_body`"), "{report}");
}

/// A guest as the C++ SDK makes them: what it returns from its request's header, and from its body until that has ended.
fn returns(folder: &std::path::Path, headers: u32, body: u32) -> String {
    let text = format!(
        "(module
           (memory (export \"memory\") 1)
           (func (export \"proxy_abi_version_0_2_1\"))
           (func (export \"proxy_on_memory_allocate\") (param i32) (result i32) (i32.const 1024))
           (func (export \"proxy_on_context_create\") (param i32 i32))
           (func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32) (i32.const {headers}))
           (func (export \"proxy_on_request_body\") (param i32 i32 i32) (result i32)
             (select (i32.const 0) (i32.const {body}) (local.get 2))))"
    );
    let path = folder.join(format!("returns-{headers}-{body}.wasm"));
    std::fs::write(&path, wat::parse_str(text).unwrap()).unwrap();
    format!("r{headers}{body}: {{ wasm: \"file:{}\", limits: {{ wait: 1s, deadline: 5s }} }}", path.display())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_cpp_sdk_returns_beyond_pause_is_understood() {
    let folder = tempfile::tempdir().unwrap();
    let origin = echo().await;
    let guests = [(1, 1), (3, 1), (4, 1), (0, 1), (0, 2), (0, 3), (1, 3)];
    let filters = guests.map(|(headers, body)| returns(folder.path(), headers, body));
    let names = ["r11", "r31", "r41", "r01", "r02", "r03", "r13"];
    let edge = edge("h1", &origin, None, &filters, &names.map(|name| (name, name)));
    for transport in TRANSPORTS {
        for name in names {
            let path = format!("/{name}/x");
            let response = transport.ask(&edge, "POST", &path, Some(&[b"a", b"b", b"c"])).await.unwrap();
            let what = format!("{transport:?} {name}");
            match name {
                // StopAllIteration: the body is not shown, so nothing ends the pause.
                "r31" | "r41" => assert_eq!(response.status, 503, "{what}"),
                // StopIterationNoBuffer: only what comes last, if anything comes with the end, is not forgotten.
                "r03" | "r13" => {
                    let text = response.text();
                    let left = text.strip_prefix(&format!("POST {path} ")).unwrap_or("?");
                    assert!(["", "c"].contains(&left), "{what}: {text}");
                }
                _ => assert_eq!(response.text(), format!("POST {path} abc"), "{what}"),
            }
        }
    }
}
