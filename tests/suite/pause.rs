//! Pausing, holding and answering: in every phase, over every transport, from the origin and from the cache.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use selvedge_tests::{Client, Edge, Origin, Response, h2::H2Client, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::bodies::script;

const PHASES: [&str; 4] = ["request_headers", "request_body", "response_headers", "response_body"];

/// How a client talks to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    H1,
    H1Tls,
    H2,
    H2Tls,
}

pub(super) const TRANSPORTS: [Transport; 4] = [Transport::H1, Transport::H1Tls, Transport::H2, Transport::H2Tls];

impl Transport {
    pub(super) fn is_h2(self) -> bool {
        matches!(self, Self::H2 | Self::H2Tls)
    }

    /// One exchange over a connection of its own; the request's body comes in these chunks, `None` = it has no body. An error when no
    /// whole response comes back.
    pub(super) async fn ask(
        self,
        edge: &Edge,
        method: &str,
        path: &str,
        body: Option<&[&[u8]]>,
    ) -> Result<Response, String> {
        match self {
            Self::H1 => over_h1(Client::connect(edge.web()).await, method, path, body).await,
            Self::H1Tls => {
                let client = Client::connect_tls(edge.secure(), "localhost", &["http/1.1"]).await;
                over_h1(client, method, path, body).await
            }
            Self::H2 => over_h2(H2Client::connect(edge.web()).await, method, path, body).await,
            Self::H2Tls => over_h2(H2Client::connect_tls(edge.secure(), "localhost").await, method, path, body).await,
        }
    }

    pub(super) async fn get(self, edge: &Edge, path: &str) -> Response {
        self.ask(edge, "GET", path, None).await.unwrap_or_else(|error| panic!("{self:?} GET {path}: {error}"))
    }

    pub(super) async fn post(self, edge: &Edge, path: &str, body: &[u8]) -> Response {
        self.ask(edge, "POST", path, Some(&[body]))
            .await
            .unwrap_or_else(|error| panic!("{self:?} POST {path}: {error}"))
    }
}

/// A body in one piece has a length, one in several pieces is chunked.
async fn over_h1(mut client: Client, method: &str, path: &str, body: Option<&[&[u8]]>) -> Result<Response, String> {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n");
    match body {
        None => client.send(format!("{head}\r\n").as_bytes()).await,
        Some([whole]) => {
            client.send(format!("{head}content-length: {}\r\n\r\n", whole.len()).as_bytes()).await;
            client.send(whole).await;
        }
        Some(chunks) => {
            client.send(format!("{head}transfer-encoding: chunked\r\n\r\n").as_bytes()).await;
            for chunk in chunks {
                let chunk = [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat();
                client.send(&chunk).await;
            }
            client.send(b"0\r\n\r\n").await;
        }
    }
    loop {
        let response = client.try_response(method).await?;
        if response.status >= 200 {
            return Ok(response);
        }
    }
}

async fn over_h2(client: H2Client, method: &str, path: &str, body: Option<&[&[u8]]>) -> Result<Response, String> {
    let text = |error: h2::Error| error.to_string();
    let (response, mut upload) = client.open(method, path, &[], body.is_none()).await.map_err(text)?;
    if let Some(chunks) = body {
        // A stream that was answered meanwhile takes no more: its response says what there is to say.
        let sent = chunks.iter().try_for_each(|chunk| upload.send_data(Bytes::copy_from_slice(chunk), false));
        let _ = sent.and_then(|()| upload.send_data(Bytes::new(), true));
    }
    H2Client::collect(soon("h2 response", response).await.map_err(text)?).await.map_err(text)
}

/// Method, path and body of the request; everything under `/cached` may be stored.
pub(super) async fn echo() -> Origin {
    Origin::start(|request| {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let body = format!("{} {} {body}", request.method, request.target);
        match request.target.starts_with("/cached") {
            true => Origin::reply(200, &[("cache-control", "max-age=60")], body),
            false => Origin::reply(200, &[], body),
        }
    })
    .await
}

/// An origin that answers `yes`, one request for each permit of its gate.
pub(super) async fn gated() -> (Arc<Semaphore>, Origin) {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let origin = Origin::start_async(move |_| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.unwrap().forget();
            Origin::reply(200, &[], "yes")
        }
        .boxed()
    })
    .await;
    (gate, origin)
}

/// A node with the upstreams `app` (which is spoken to over `upstream`: `h1` or `h2`) and `side`, these filters (lines of YAML), and a route `/NAME/*` and a cached one `/cached/NAME/*`
/// for each of these chains.
pub(super) fn edge(
    upstream: &str,
    app: &Origin,
    side: Option<&Origin>,
    filters: &[String],
    chains: &[(&str, &str)],
) -> Edge {
    let mut yaml = format!(
        "cache: {{}}\nupstreams:\n  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"], protocol: {upstream} }}\n"
    );
    let mut origins = vec![("app", app.address())];
    if let Some(side) = side {
        yaml.push_str("  side: { endpoints: [\"127.0.0.1:${PORT_side}\"] }\n");
        origins.push(("side", side.address()));
    }
    yaml.push_str("filters:\n");
    for filter in filters {
        yaml.push_str(&format!("  {filter}\n"));
    }
    yaml.push_str("sites:\n- hosts: [\"*\"]\n  routes:\n");
    for (name, chain) in chains {
        yaml.push_str(&format!(
            "  - {{ name: \"{name}\", match: {{ path: \"/{name}/*\" }}, filters: [{chain}], to: app }}\n"
        ));
        yaml.push_str(&format!(
            "  - {{ name: \"cached-{name}-${{ID}}\", match: {{ path: \"/cached/{name}/*\" }}, filters: [{chain}], cache: {{}}, to: app }}\n"
        ));
    }
    Edge::start(&yaml, &origins)
}

/// A filter of the configuration: a name, a guest, its configuration, and further keys. Its deadline is one that a busy machine keeps.
pub(super) fn filter(name: &str, guest: &str, config: &str, more: &str) -> String {
    let more = match more.contains("limits: { ") {
        true => more.replace("limits: { ", "limits: { deadline: 5s, "),
        false => format!("{more}, limits: {{ deadline: 5s }}"),
    };
    format!("{name}: {{ wasm: \"file:${{GUESTS}}/{guest}.wasm\", config: \"{config}\"{more} }}")
}

/// A filter of the same name and guest for each phase, and a chain of it alone.
fn per_phase(guest: &str, config: impl Fn(&str) -> String) -> (Vec<String>, Vec<(&'static str, &'static str)>) {
    let filters = PHASES.iter().map(|phase| filter(phase, guest, &config(phase), "")).collect();
    (filters, PHASES.iter().map(|phase| (*phase, *phase)).collect())
}

/// Runs the tests with an upstream that is spoken to over HTTP/1.1, and with one over HTTP/2.
macro_rules! with_each_upstream {
    ($($name:ident)*) => {
        mod from_h1 {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name("h1").await })*
        }
        mod from_h2 {
            $(#[tokio::test(flavor = "multi_thread")] async fn $name() { super::$name("h2").await })*
        }
    };
}

with_each_upstream! {
    a_pause_for_a_callout_resumes_in_every_phase
    a_failed_callout_is_answered_by_the_filter
    a_filter_holds_until_the_whole_body
    a_local_reply_takes_the_place_of_the_message
    a_reply_after_the_header_has_gone_ends_the_exchange_short
    nothing_is_forwarded_while_a_filter_waits
    nothing_is_forwarded_while_a_filter_holds
    a_request_passes_forwards_and_a_response_backwards
    bodies_in_chunks_of_one_byte_arrive_whole
    empty_bodies_pass_and_end
    responses_without_a_body_are_not_held
    a_filter_that_holds_more_than_its_limit_ends_the_exchange
    a_filter_that_never_resumes_fails_by_its_policy
}

fn is_hit(response: &Response) -> bool {
    response.header("cache-status").is_some_and(|status| status.contains("; hit"))
}

async fn a_pause_for_a_callout_resumes_in_every_phase(upstream: &str) {
    let origin = echo().await;
    let side = Origin::start(|_| Origin::reply(200, &[], "yes")).await;
    let (filters, chains) = per_phase("callout", |phase| format!("{phase} side /ask"));
    let edge = edge(upstream, &origin, Some(&side), &filters, &chains);
    for transport in TRANSPORTS {
        for phase in PHASES {
            let what = format!("{transport:?} {phase}");
            let (asked, forwarded) = (side.started(), origin.started());
            let path = format!("/{phase}/{transport:?}");
            let response = transport.post(&edge, &path, b"abc").await;
            assert_eq!((response.status, response.text()), (200, format!("POST {path} abc")), "{what}");
            // At the end of a body whose length the client was told, the filter asks when the client has it all.
            until("the filter asks", || side.started() == asked + 1).await;
            assert_eq!(origin.started(), forwarded + 1, "{what}");
            assert_eq!(origin.last().header("x-callout"), (phase == "request_headers").then_some("200:3"), "{what}");
            assert_eq!(response.header("x-callout"), (phase == "response_headers").then_some("200:3"), "{what}");

            let path = format!("/cached/{phase}/{transport:?}");
            let (asked, forwarded) = (side.started(), origin.started());
            for hit in [false, true] {
                let response = transport.get(&edge, &path).await;
                assert_eq!((response.status, response.text()), (200, format!("GET {path} ")), "{what} hit={hit}");
                assert_eq!(is_hit(&response), hit, "{what}: {:?}", response.header("cache-status"));
                assert_eq!(response.header("x-callout"), (phase == "response_headers").then_some("200:3"), "{what}");
            }
            // There is no request body to pause at.
            let asked = if phase == "request_body" { asked } else { asked + 2 };
            until("the filter asks", || side.started() == asked).await;
            assert_eq!(origin.started(), forwarded + 1, "{what}");
        }
    }
}

async fn a_failed_callout_is_answered_by_the_filter(upstream: &str) {
    let origin = echo().await;
    let side = Origin::start(|_| Origin::reply(200, &[], "yes")).await;
    let (filters, chains) = per_phase("callout", |phase| format!("{phase} side /ask"));
    let edge = edge(upstream, &origin, Some(&side), &filters, &chains);
    drop(side);
    for transport in TRANSPORTS {
        for phase in ["request_headers", "request_body", "response_headers"] {
            let response = transport.post(&edge, &format!("/{phase}/x"), b"abc").await;
            assert_eq!((response.status, response.text().as_str()), (503, "callout failed"), "{transport:?} {phase}");
        }
    }
    // Cut off in the other phases, if it was asked at all.
    let whole = |request: &selvedge_tests::Request| request.body == "abc";
    assert!(
        origin
            .received()
            .iter()
            .filter(|request| whole(request))
            .all(|request| request.target.starts_with("/response_headers"))
    );
}

async fn a_filter_holds_until_the_whole_body(upstream: &str) {
    let origin = echo().await;
    let filters = [filter("request", "hold", "request", ""), filter("response", "hold", "response", "")];
    let edge = edge(upstream, &origin, None, &filters, &[("request", "request"), ("response", "response")]);
    for transport in TRANSPORTS {
        for chunks in [&[b"abc".as_slice()] as &[&[u8]], &[b"a", b"b", b"c"]] {
            let response = transport.ask(&edge, "POST", "/request/x", Some(chunks)).await.unwrap();
            assert_eq!(response.text(), "POST /request/x abc[held]", "{transport:?}");
            let last = origin.last();
            assert_eq!(
                (last.header("x-held-len"), last.header("content-length")),
                (Some("3"), Some("9")),
                "{transport:?}"
            );
            assert_eq!(last.header("transfer-encoding"), None);

            let response = transport.ask(&edge, "POST", "/response/x", Some(chunks)).await.unwrap();
            assert_eq!(response.text(), "POST /response/x abc[held]", "{transport:?}");
            let held = "POST /response/x abc".len();
            assert_eq!(response.header("x-held-len"), Some(held.to_string().as_str()));
            assert_eq!(response.header("content-length"), Some((held + 6).to_string().as_str()));
            assert_eq!(origin.last().header("x-held-len"), None);
        }

        let path = format!("/cached/response/{transport:?}");
        for hit in [false, true] {
            let response = transport.get(&edge, &path).await;
            assert_eq!(response.text(), format!("GET {path} [held]"), "{transport:?}");
            assert!(response.header("x-held-len").is_some());
            assert_eq!(is_hit(&response), hit, "{transport:?}: {:?}", response.header("cache-status"));
        }
    }
}

async fn a_local_reply_takes_the_place_of_the_message(upstream: &str) {
    let origin = echo().await;
    let (mut filters, mut chains) = per_phase("deny", str::to_owned);
    filters
        .extend([filter("judge-request", "judge", "request", ""), filter("judge-response", "judge", "response", "")]);
    chains.extend([("judge-request", "judge-request"), ("judge-response", "judge-response")]);
    let edge = edge(upstream, &origin, None, &filters, &chains);
    // Uploads that were cut off are noticed by the origin at some time or other: they do not count.
    let forwarded = || origin.received().iter().filter(|request| request.target != "/request_body/x").count();
    for transport in TRANSPORTS {
        let denied = |response: &Response, phase: &str| {
            assert_eq!((response.status, response.text()), (403, format!("denied in {phase}\n")), "{transport:?}");
            assert_eq!(response.header("x-denied-in"), Some(phase), "{transport:?}");
            assert_eq!(response.header("content-type"), Some("text/plain"), "{transport:?}");
        };
        let judged = |response: &Response, side: &str| {
            assert_eq!((response.status, response.text().as_str()), (403, "evil\n"), "{transport:?}");
            assert_eq!(response.header("x-judged"), Some(side), "{transport:?}");
        };

        // Before anything was forwarded: the origin hears nothing, and neither does the cache.
        let before = forwarded();
        denied(&transport.get(&edge, "/request_headers/x").await, "request_headers");
        denied(&transport.post(&edge, "/request_headers/x", b"abc").await, "request_headers");
        denied(&transport.get(&edge, &format!("/cached/request_headers/{transport:?}")).await, "request_headers");
        judged(&transport.post(&edge, "/judge-request/x", b"is evil").await, "request");
        judged(&transport.ask(&edge, "POST", "/judge-request/x", Some(&[b"ev", b"i", b"l"])).await.unwrap(), "request");
        assert_eq!(forwarded(), before, "{transport:?}");
        assert_eq!(transport.post(&edge, "/judge-request/x", b"fine").await.text(), "POST /judge-request/x fine");

        // While the body is on its way: the origin does not get all of it.
        let whole = origin.received().len();
        denied(&transport.post(&edge, "/request_body/x", b"abc").await, "request_body");
        assert_eq!(
            origin.received().iter().skip(whole).filter(|request| request.body == "abc").count(),
            0,
            "{transport:?}"
        );

        // In place of the origin's response, and of the stored one.
        let before = forwarded();
        denied(&transport.post(&edge, "/response_headers/x", b"abc").await, "response_headers");
        judged(&transport.post(&edge, "/judge-response/x", b"is evil").await, "response");
        assert_eq!(forwarded(), before + 2);
        for _ in 0..2 {
            denied(&transport.get(&edge, &format!("/cached/response_headers/{transport:?}")).await, "response_headers");
            judged(&transport.get(&edge, &format!("/cached/judge-response/{transport:?}/evil")).await, "response");
        }
        assert_eq!(forwarded(), before + 4, "{transport:?}: the second ones are hits");

        // A reply to HEAD has the fields and no body.
        let head = transport.ask(&edge, "HEAD", "/request_headers/x", None).await.unwrap();
        assert_eq!(
            (head.status, head.text().as_str(), head.header("content-length")),
            (403, "", Some("26")),
            "{transport:?}"
        );
        let head = transport.ask(&edge, "HEAD", "/response_headers/x", None).await.unwrap();
        assert_eq!(
            (head.status, head.text().as_str(), head.header("content-length")),
            (403, "", Some("27")),
            "{transport:?}"
        );
    }
}

async fn a_reply_after_the_header_has_gone_ends_the_exchange_short(upstream: &str) {
    let origin = echo().await;
    let (filters, chains) = per_phase("deny", str::to_owned);
    let edge = edge(upstream, &origin, None, &filters, &chains);
    for transport in TRANSPORTS {
        for path in ["/response_body/x", "/cached/response_body/x"] {
            let cut = transport.ask(&edge, "GET", path, None).await;
            assert!(cut.is_err(), "{transport:?} {path}: {cut:?}");
        }
    }
}

async fn nothing_is_forwarded_while_a_filter_waits(upstream: &str) {
    let origin = echo().await;
    let (gate, side) = gated().await;
    let (filters, chains) = per_phase("callout", |phase| format!("{phase} side /ask"));
    let edge = edge(upstream, &origin, Some(&side), &filters, &chains);
    for phase in PHASES {
        for path in [format!("/{phase}/x"), format!("/cached/{phase}/x")] {
            let (asked, begun, whole) = (side.started(), origin.started(), origin.received().len());
            let mut client = Client::connect(edge.web()).await;
            client.send(format!("POST {path} HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc").as_bytes()).await;
            until("the filter asks", || side.started() == asked + 1).await;
            match phase {
                "request_headers" => assert_eq!(origin.started(), begun),
                "request_body" => assert_eq!(origin.received().len(), whole),
                "response_headers" => assert_eq!(client.some().now_or_never(), None),
                // The header may be there; the end of the body is not.
                _ => assert!(client.try_response("POST").now_or_never().is_none()),
            }
            gate.add_permits(1);
            if phase != "response_body" {
                assert_eq!(client.response("POST").await.text(), format!("POST {path} abc"));
            }
        }
    }
}

async fn nothing_is_forwarded_while_a_filter_holds(upstream: &str) {
    let (body, served) = Origin::streaming(200, &[("x-origin", "yes")]);
    let served = Arc::new(parking_lot::Mutex::new(Some(served)));
    let origin = Origin::start(move |request| match request.target.as_str() {
        "/response/x" => served.lock().take().unwrap(),
        _ => Origin::reply(200, &[], request.body.clone()),
    })
    .await;
    let filters = [
        filter("request", "hold", "request", ""),
        filter("response", "hold", "response", ""),
        filter("noop", "noop", "", ""),
    ];
    let edge = edge(
        upstream,
        &origin,
        None,
        &filters,
        &[("request", "noop, request"), ("response", "response, noop"), ("noop", "noop")],
    );
    let others = async || {
        // The node's only worker has had its turn with whatever was sent before.
        for _ in 0..4 {
            assert_eq!(Client::get(edge.web(), "/noop/x").await.status, 200);
        }
    };

    let mut client = Client::connect(edge.web()).await;
    client.send(b"POST /request/x HTTP/1.1\r\nhost: test\r\ncontent-length: 6\r\n\r\nabc").await;
    others().await;
    assert!(origin.received().iter().all(|request| request.target == "/noop/x"));
    assert_eq!(origin.started(), 4);
    client.send(b"def").await;
    assert_eq!(client.response("POST").await.text(), "abcdef[held]");

    client.send(b"GET /response/x HTTP/1.1\r\nhost: test\r\n\r\n").await;
    until("the origin answers", || origin.received().iter().any(|request| request.target == "/response/x")).await;
    for chunk in ["one ", "two ", "three"] {
        body.send(Bytes::from_static(chunk.as_bytes())).unwrap();
        others().await;
        assert_eq!(client.some().now_or_never(), None);
    }
    drop(body);
    let response = client.response("GET").await;
    assert_eq!((response.text().as_str(), response.header("x-held-len")), ("one two three[held]", Some("13")));
    assert_eq!((response.header("content-length"), response.header("x-origin")), (Some("19"), Some("yes")));
}

async fn a_request_passes_forwards_and_a_response_backwards(upstream: &str) {
    let origin = echo().await;
    let (gate, side) = gated().await;
    let order =
        |name: &str| filter(name, "headers", &format!("request add x-order {name}\\nresponse add x-order {name}"), "");
    let filters = [
        order("a"),
        order("b"),
        order("c"),
        filter("hold", "hold", "", ""),
        filter("callout", "callout", "response_headers side /ask", ""),
        filter("append", "append", "request", ""),
        filter("append-response", "append", "response", ""),
        filter("deny", "deny", "response_headers", ""),
    ];
    let edge = edge(
        upstream,
        &origin,
        Some(&side),
        &filters,
        &[
            ("plain", "a, b, c"),
            ("held", "a, hold, b, callout, c"),
            ("bodies", "append, append-response, hold"),
            ("bodies-too", "hold, append, append-response"),
            ("denied", "a, b, deny, c"),
        ],
    );
    gate.add_permits(100);
    let values = |headers: &[(String, String)]| {
        headers
            .iter()
            .filter(|(name, _)| name == "x-order")
            .map(|(_, value)| value.clone())
            .collect::<Vec<_>>()
            .join("")
    };
    for transport in TRANSPORTS {
        for chain in ["plain", "held"] {
            let response = transport.post(&edge, &format!("/{chain}/x"), b"abc").await;
            assert_eq!(values(&response.headers), "cba", "{transport:?} {chain}");
            assert_eq!(values(&origin.last().headers), "abc", "{transport:?} {chain}");

            let path = format!("/cached/{chain}/{transport:?}");
            for hit in [false, true] {
                let response = transport.get(&edge, &path).await;
                assert_eq!(
                    (values(&response.headers).as_str(), is_hit(&response)),
                    ("cba", hit),
                    "{transport:?} {chain}"
                );
            }
        }
        let text = transport.post(&edge, "/bodies/x", b"abc").await.text();
        assert_eq!(text, "POST /bodies/x abc+app[held][held]+app", "{transport:?}");
        let text = transport.post(&edge, "/bodies-too/x", b"abc").await.text();
        assert_eq!(text, "POST /bodies-too/x abc[held]+app+app[held]", "{transport:?}");

        // The filters in front of the one that replies see its reply, those behind it have seen what it replaced.
        let response = transport.post(&edge, "/denied/x", b"abc").await;
        assert_eq!((response.status, values(&response.headers).as_str()), (403, "ba"), "{transport:?}");
    }
}

async fn bodies_in_chunks_of_one_byte_arrive_whole(upstream: &str) {
    // Not more, because HTTP/2 ends connections that send many tiny frames.
    let text: String = ('a'..='z').cycle().take(60).collect();
    let origin = {
        let text = text.clone();
        Origin::start(move |_request| {
            let (body, served) = Origin::streaming(200, &[]);
            for byte in text.as_bytes() {
                body.send(Bytes::copy_from_slice(&[*byte])).unwrap();
            }
            served
        })
        .await
    };
    let filters = [
        filter("noop", "noop", "", ""),
        filter("hold", "hold", "", ""),
        filter("append", "append", "request", ""),
        filter("append-response", "append", "response", ""),
    ];
    let edge = edge(
        upstream,
        &origin,
        None,
        &filters,
        &[
            ("stream", "noop, append, append-response"),
            ("held", "noop, hold"),
            ("both", "append, append-response, hold, noop"),
        ],
    );
    let chunks: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
    for transport in TRANSPORTS {
        for (chain, up, down) in
            [("stream", "+app", "+app"), ("held", "[held]", "[held]"), ("both", "+app[held]", "[held]+app")]
        {
            let response = transport.ask(&edge, "POST", &format!("/{chain}/x"), Some(&chunks)).await;
            let response = response.unwrap_or_else(|error| panic!("{transport:?} {chain}: {error}"));
            assert_eq!(response.text(), format!("{text}{down}"), "{transport:?} {chain}");
            assert_eq!(origin.last().body, format!("{text}{up}"), "{transport:?} {chain}");
        }
    }
}

async fn empty_bodies_pass_and_end(upstream: &str) {
    let origin = Origin::start(|request| match request.target.ends_with("/streamed") {
        true => Origin::streaming(200, &[]).1,
        false => Origin::reply(200, &[], ""),
    })
    .await;
    let filters = [
        filter("hold", "hold", "", ""),
        filter("append", "append", "request", ""),
        filter("append-response", "append", "response", ""),
    ];
    let edge = edge(upstream, &origin, None, &filters, &[("hold", "hold"), ("append", "append, append-response")]);
    for transport in TRANSPORTS {
        // No body at all: nothing to hold, nothing to append to.
        let response = transport.get(&edge, "/hold/x").await;
        assert_eq!(
            (response.status, response.text().as_str(), response.header("x-held-len")),
            (200, "", None),
            "{transport:?}"
        );
        assert_eq!((origin.last().body.len(), origin.last().header("x-held-len")), (0, None), "{transport:?}");
        assert_eq!(transport.get(&edge, "/append/x").await.text(), "", "{transport:?}");

        // A body that turns out to be empty.
        let response = transport.ask(&edge, "POST", "/hold/streamed", Some(&[])).await.unwrap();
        assert_eq!((response.text().as_str(), response.header("x-held-len")), ("[held]", Some("0")), "{transport:?}");
        assert_eq!(
            (&*origin.last().body, origin.last().header("x-held-len")),
            (&b"[held]"[..], Some("0")),
            "{transport:?}"
        );
        let response = transport.ask(&edge, "POST", "/append/streamed", Some(&[])).await.unwrap();
        assert_eq!(response.text(), "+app", "{transport:?}");
        assert_eq!(origin.last().body, "+app", "{transport:?}");
    }
    // A length of zero is a body that is known to be empty.
    let response = Client::post(edge.web(), "/hold/x", "", b"").await;
    assert_eq!((response.status, response.text().as_str()), (200, ""));
    assert_eq!(origin.last().body, "");
}

async fn responses_without_a_body_are_not_held(upstream: &str) {
    let origin = Origin::start(|request| match request.target.rsplit('/').next() {
        Some("204") => Origin::reply(204, &[("cache-control", "max-age=60")], ""),
        Some("304") => Origin::reply(304, &[("etag", "\"a\"")], ""),
        _ => Origin::reply(200, &[("cache-control", "max-age=60"), ("etag", "\"a\"")], "body"),
    })
    .await;
    let filters = [
        filter("hold", "hold", "", ""),
        filter("append", "append", "", ""),
        filter("seen", "headers", "response add x-seen yes", ""),
    ];
    let edge = edge(upstream, &origin, None, &filters, &[("x", "append, hold, seen")]);
    for transport in TRANSPORTS {
        for (method, path, status) in [
            ("HEAD", "/x/200", 200),
            ("GET", "/x/204", 204),
            ("GET", "/x/304", 304),
            ("HEAD", "/x/204", 204),
            ("GET", "/cached/x/204", 204),
            ("GET", "/cached/x/204", 204),
        ] {
            let response = transport.ask(&edge, method, path, None).await.unwrap();
            assert_eq!((response.status, response.text().as_str()), (status, ""), "{transport:?} {method} {path}");
            let fields =
                (response.header("x-seen"), response.header("x-held-len"), response.header("transfer-encoding"));
            assert_eq!(fields, (Some("yes"), None, None), "{transport:?} {method} {path}");
        }
        // HEAD and 304 from the cache.
        let path = format!("/cached/x/{transport:?}");
        assert_eq!(transport.get(&edge, &path).await.text(), "body[held]+app", "{transport:?}");
        let head = transport.ask(&edge, "HEAD", &path, None).await.unwrap();
        assert_eq!((head.status, head.text().as_str(), is_hit(&head)), (200, "", true), "{transport:?}");
        if transport == Transport::H1 {
            let same = Client::get_with(edge.web(), &path, "if-none-match: \"a\"\r\n").await;
            assert_eq!((same.status, same.header("x-seen"), same.header("x-held-len")), (304, Some("yes"), None));
        }
    }
}

async fn a_filter_that_holds_more_than_its_limit_ends_the_exchange(upstream: &str) {
    let origin = Origin::start(|request| {
        let length = request.target.rsplit('/').next().and_then(|length| length.parse().ok()).unwrap_or(0);
        Origin::reply(200, &[("cache-control", "max-age=60")], vec![b'x'; length])
    })
    .await;
    let limits = ", limits: { body: 1KiB }";
    let filters = [
        filter("request", "hold", "request", limits),
        filter("response", "hold", "response", limits),
        filter("stuck", "stuck", "request_body", limits),
        filter("append", "append", "response", limits),
    ];
    let edge = edge(
        upstream,
        &origin,
        None,
        &filters,
        &[("request", "request"), ("response", "response"), ("stuck", "stuck"), ("append", "append")],
    );
    for transport in TRANSPORTS {
        let whole = || origin.received().iter().filter(|request| request.body.len() == 1024 + "[held]".len()).count();
        let before = whole();
        let exact = [b'x'; 1024];
        assert_eq!(transport.post(&edge, "/request/3", &exact).await.text(), "xxx", "{transport:?}");
        assert_eq!(origin.last().header("x-held-len"), Some("1024"), "{transport:?}");
        let chunks: Vec<&[u8]> = std::iter::repeat_n(b"0123456789".as_slice(), 103).collect();
        for body in [&[[b'x'; 1025].as_slice()] as &[&[u8]], &chunks] {
            let response = transport.ask(&edge, "POST", "/request/3", Some(body)).await.unwrap();
            assert_eq!(response.status, 413, "{transport:?}");
            let response = transport.ask(&edge, "POST", "/stuck/3", Some(body)).await.unwrap();
            assert_eq!(response.status, 413, "{transport:?}: the header has gone, the body is held");
        }
        assert_eq!(
            (whole(), origin.received().iter().all(|request| request.body.len() < 1024 + 7)),
            (before + 1, true)
        );

        let response = transport.get(&edge, "/response/1024").await;
        assert_eq!((response.status, response.header("x-held-len")), (200, Some("1024")), "{transport:?}");
        let response = transport.get(&edge, "/response/1025").await;
        assert_eq!((response.status, response.header("x-held-len")), (502, None), "{transport:?}");
        for _ in 0..2 {
            let response = transport.get(&edge, "/cached/response/1025").await;
            assert_eq!(response.status, 502, "{transport:?}");
            assert!(response.header("proxy-status").is_some(), "{transport:?}");
            let closes = matches!(transport, Transport::H1 | Transport::H1Tls).then_some("close");
            assert_eq!(response.header("connection"), closes, "{transport:?}");
        }
        // What only streams through is not held, however large.
        assert_eq!(transport.get(&edge, "/append/100000").await.body.len(), 100_004, "{transport:?}");
        assert_eq!(transport.get(&edge, "/cached/append/100000").await.body.len(), 100_004, "{transport:?}");
    }
}

async fn a_filter_that_never_resumes_fails_by_its_policy(upstream: &str) {
    let origin = echo().await;
    let mut filters = Vec::new();
    let mut chains = Vec::new();
    let names: Vec<(String, &str, &str)> = ["closed", "open"]
        .into_iter()
        .flat_map(|policy| PHASES.map(|phase| (format!("{policy}-{phase}"), policy, phase)))
        .collect();
    for (name, policy, phase) in &names {
        filters.push(filter(name, "stuck", phase, &format!(", limits: {{ wait: 300ms }}, on_failure: {policy}")));
        chains.push((name.as_str(), name.as_str()));
    }
    let edge = edge(upstream, &origin, None, &filters, &chains);
    let ask = async |transport: Transport, name: &str, policy: &str, phase: &str| {
        let what = format!("{transport:?} {name}");
        let path = format!("/{name}/x");
        let post = transport.ask(&edge, "POST", &path, Some(&[b"ab", b"c"])).await;
        let cached = format!("/cached/{name}/{transport:?}");
        let gets = [transport.ask(&edge, "GET", &cached, None).await, transport.ask(&edge, "GET", &cached, None).await];
        if policy == "open" {
            assert_eq!(post.unwrap().text(), format!("POST {path} abc"), "{what}");
            for (get, hit) in gets.into_iter().zip([false, true]) {
                let get = get.unwrap();
                assert_eq!((get.text(), is_hit(&get)), (format!("GET {cached} "), hit), "{what}");
            }
        } else if phase == "response_body" {
            // When the header has gone, all that can be done is not to end the body.
            for response in gets.into_iter().chain([post]) {
                assert!(
                    response.as_ref().is_ok_and(|response| response.status == 503) || response.is_err(),
                    "{what}: {response:?}"
                );
            }
        } else {
            let post = post.unwrap();
            assert_eq!((post.status, post.text().as_str()), (503, "503 Service Unavailable\n"), "{what}");
            for get in gets {
                // A GET has no body to be stuck in.
                assert_eq!(get.unwrap().status, if phase == "request_body" { 200 } else { 503 }, "{what}");
            }
        }
    };
    let cases = TRANSPORTS.iter().flat_map(|transport| names.iter().map(move |name| (*transport, name)));
    join_all(cases.map(|(transport, (name, policy, phase))| ask(transport, name, policy, phase))).await;
    assert!(origin.received().iter().all(|request| !request.target.starts_with("/closed-request_headers")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_from_a_tick_does_not_wait_for_the_rest_of_the_body() {
    let origin = Origin::start(|request| Origin::reply(200, &[], request.body.clone())).await;
    let filters = [
        script(
            "all",
            "request_headers pause; request_body pause; tick resume request; response_headers tell response",
            "",
        ),
        filter("noop", "noop", "", ""),
    ];
    for upstream in ["h1", "h2"] {
        let edge = edge(upstream, &origin, None, &filters, &[("all", "noop, all, noop")]);
        let begun = origin.started();
        let mut h1 = Client::connect(edge.web()).await;
        h1.send(b"POST /all/x HTTP/1.1\r\nhost: test\r\ncontent-length: 6\r\n\r\nabc").await;
        until("the request goes on before its body has come", || origin.started() == begun + 1).await;
        h1.send(b"def").await;
        let response = h1.response("POST").await;
        assert_eq!(response.text(), "abcdef", "{upstream}");

        let h2 = H2Client::connect(edge.web()).await;
        let (response, mut upload) = h2.open("POST", "/all/x", &[], false).await.unwrap();
        until("the request goes on before its body has come", || origin.started() == begun + 2).await;
        upload.send_data(Bytes::from_static(b"abcdef"), true).unwrap();
        let response = H2Client::collect(soon("h2 response", response).await.unwrap()).await.unwrap();
        assert_eq!(response.text(), "abcdef", "{upstream}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_stream_and_a_tick_resume_in_every_phase() {
    let origin = echo().await;
    let mut filters = Vec::new();
    let mut chains: Vec<(String, String)> = Vec::new();
    for phase in PHASES {
        let side = phase.split('_').next().unwrap();
        let at = if phase.ends_with("body") { phase.replace("body", "end") } else { phase.to_owned() };
        let also = if phase.ends_with("headers") { format!("{side}_body pause; ") } else { String::new() };
        filters.push(script(&format!("tick-{phase}"), &format!("{at} pause; {also}tick resume {side}"), ""));
        chains.push((format!("tick-{phase}"), format!("tick-{phase}")));
        // Every stream resumes those that came before it.
        let others = format!("{at} pause; {also}request_headers resume-others {side}");
        filters.push(script(&format!("others-{phase}"), &others, ""));
        chains.push((format!("others-{phase}"), format!("others-{phase}")));
    }
    let chains: Vec<(&str, &str)> = chains.iter().map(|(name, chain)| (name.as_str(), chain.as_str())).collect();
    for upstream in ["h1", "h2"] {
        let edge = edge(upstream, &origin, None, &filters, &chains);
        for transport in TRANSPORTS {
            for phase in PHASES {
                let what = format!("{transport:?} {phase} {upstream}");
                let path = format!("/tick-{phase}/x");
                let response = transport.post(&edge, &path, b"abc").await;
                assert_eq!((response.status, response.text()), (200, format!("POST {path} abc")), "{what}");
            }
            for phase in PHASES {
                let what = format!("{transport:?} {phase} {upstream}");
                let path = format!("/others-{phase}/x");
                let held = transport.post(&edge, &path, b"abc");
                // When it has paused, nobody outside can see: streams that resume it come along until one has.
                let nudge = async {
                    let mut interval = tokio::time::interval(Duration::from_millis(20));
                    loop {
                        interval.tick().await;
                        let mut other = Client::connect(edge.web()).await;
                        other.send(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await;
                    }
                };
                let response = tokio::select! {
                    response = held => response,
                    () = nudge => unreachable!("it nudges without end"),
                };
                assert_eq!((response.status, response.text()), (200, format!("POST {path} abc")), "{what}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_before_the_pause_resumes_nothing() {
    let origin = echo().await;
    let side = Origin::start(|_| Origin::reply(200, &[], "yes")).await;
    let early = "request_headers call side /ask; request_headers pause; answer resume response; answer resume request";
    let filters = [
        script("self", "request_headers resume request; request_end pause", ", limits: { wait: 300ms }"),
        script(
            "answered",
            &format!("{early}; response_headers pause; response_body pause"),
            ", limits: { wait: 300ms }",
        ),
    ];
    let edge = edge("h1", &origin, Some(&side), &filters, &[("self", "self"), ("answered", "answered")]);
    for transport in TRANSPORTS {
        for path in ["/self/x", "/answered/x"] {
            let response = transport.post(&edge, path, b"abc").await;
            assert_eq!(response.status, 503, "{transport:?} {path}: the pause stands");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_of_several_answers_may_resume_and_the_others_are_still_delivered() {
    let (gate, side) = gated().await;
    let reports = echo().await;
    let calls = "call side /one; request_headers call side /two; request_headers call side /three";
    let lines = format!("request_headers {calls}; request_headers pause; answer resume request; log report app");
    let filters = [script("three", &lines, "")];
    let edge = edge("h1", &reports, Some(&side), &filters, &[("three", "three")]);
    for (turn, transport) in TRANSPORTS.into_iter().enumerate() {
        let response = transport.get(&edge, "/three/x");
        let asked = async {
            until("the filter asks three times", || side.started() == 3 * (turn + 1)).await;
            gate.add_permits(1);
        };
        let (response, ()) = futures::join!(response, asked);
        assert_eq!(response.text(), "GET /three/x ", "{transport:?}: one answer is enough");
        gate.add_permits(2);
        until("the record", || reports.received().iter().filter(|seen| seen.target == "/report").count() == turn + 1)
            .await;
        until("the others", || side.received().len() == 3 * (turn + 1)).await;
        let record = reports.received().into_iter().rfind(|seen| seen.target == "/report").unwrap().body;
        assert!(record.starts_with(b"request_headers. answer"), "{record:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_nobody_waits_for_is_delivered_before_the_next_event() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let origin = Origin::start_async(move |request| {
        let gate = Arc::clone(&opened);
        async move {
            if !request.target.starts_with("/noop") {
                gate.acquire().await.unwrap().forget();
            }
            Origin::reply(200, &[], "yes")
        }
        .boxed()
    })
    .await;
    let side = Origin::start(|_| Origin::reply(200, &[], "yes")).await;
    let filters = [
        script("tells", "request_headers call side /ask; response_headers tell response", ""),
        script("replies", "request_headers call side /ask; answer reply 451 no; response_headers tell response", ""),
        script("closes", "request_headers call side /ask; answer close request", ""),
        filter("noop", "noop", "", ""),
    ];
    let names = ["tells", "replies", "closes"];
    for upstream in ["h1", "h2"] {
        let yaml: Vec<(&str, &str)> = names.iter().map(|name| (*name, *name)).chain([("noop", "noop")]).collect();
        let edge = edge(upstream, &origin, Some(&side), &filters, &yaml);
        for transport in TRANSPORTS {
            for name in names {
                let (asked, begun) = (side.received().len(), origin.started());
                let path = format!("/{name}/x");
                let response = transport.ask(&edge, "POST", &path, Some(&[b"abc"]));
                let meanwhile = async {
                    until("the filter asks", || side.received().len() == asked + 1).await;
                    until("the origin is asked", || origin.started() == begun + 1).await;
                    // The node's only worker has had its turn with the answer.
                    for _ in 0..4 {
                        assert_eq!(Client::get(edge.web(), "/noop/x").await.status, 200);
                    }
                    gate.add_permits(1);
                };
                let (response, ()) = futures::join!(response, meanwhile);
                let what = format!("{upstream} {transport:?} {name}");
                match name {
                    "tells" => {
                        let response = response.unwrap_or_else(|error| panic!("{what}: {error}"));
                        let saw = response.header("x-saw").unwrap_or_default().to_owned();
                        assert!(saw.contains("answer"), "{what}: {saw}");
                    }
                    "replies" => {
                        let response = response.unwrap_or_else(|error| panic!("{what}: {error}"));
                        assert_eq!((response.status, response.text().as_str()), (451, "no"), "{what}");
                        assert_eq!(response.header("x-replied"), Some("answer"), "{what}");
                        // The filter that answers sees its answer, as every other filter does.
                        let saw = response.header("x-saw").unwrap_or_default();
                        assert!(saw.ends_with("answer response_headers"), "{what}: {saw}");
                    }
                    _ => assert!(response.is_err(), "{what}: {response:?}"),
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_request_event_does_to_a_held_response_is_not_lost() {
    // Answers while the request is still on its way, and ends the answer when the request has ended. One exchange per connection: it
    // begins to answer before it has read a whole request, so it does not know what belongs to the next one.
    let (app, app_task) = Origin::raw(|mut stream| async move {
        let mut read = Vec::new();
        let head = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 3\r\nx-origin: yes\r\n\r\ny";
        for (awaited, answer) in [("begin", head.as_slice()), ("end", b"es")] {
            while !read.windows(awaited.len()).any(|window| window == awaited.as_bytes()) {
                if !stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {
                    return;
                }
            }
            let _ = stream.write_all(answer).await;
        }
        while stream.read_buf(&mut read).await.is_ok_and(|count| count > 0) {}
    })
    .await;
    let yaml = |name: &str, line: &str| {
        let lines = "response_headers pause; response_body pause-once; response_body call side /seen";
        let lines = format!("{lines}; request_end {line}; log report side");
        script(name, &lines, ", on_failure: open, limits: { wait: 1h }")
    };
    let filters = [yaml("resumes", "resume response"), yaml("fails", "trap"), yaml("replies", "reply 451 no")];
    let side = echo().await;
    let mut text = "upstreams:
  app: { endpoints: [\"127.0.0.1:${PORT_app}\"] }
  side: { endpoints: [\"127.0.0.1:${PORT_side}\"] }
filters:
"
    .to_owned();
    for filter in &filters {
        text.push_str(&format!("  {filter}\n"));
    }
    text.push_str("sites:\n- hosts: [\"*\"]\n  routes:\n");
    for name in ["resumes", "fails", "replies"] {
        text.push_str(&format!("  - {{ name: {name}, match: {{ path: /{name} }}, filters: [{name}], to: app }}\n"));
    }
    let edge = Edge::start(&text, &[("app", app), ("side", side.address())]);
    let received =
        |path: &str| side.received().into_iter().filter(|request| request.target == path).collect::<Vec<_>>();
    for name in ["resumes", "fails", "replies"] {
        let seen = received("/seen").len();
        let client = H2Client::connect(edge.web()).await;
        let (response, mut upload) = client.open("POST", &format!("/{name}"), &[], false).await.unwrap();
        upload.send_data(Bytes::from_static(b"begin"), false).unwrap();
        // The call is over for the node before it looks at anything else of the exchange.
        until("the filter holds header and bytes", || received("/seen").len() > seen).await;
        upload.send_data(Bytes::from_static(b"end"), true).unwrap();
        let response = H2Client::collect(soon(name, response).await.unwrap()).await.unwrap();
        if name == "replies" {
            assert_eq!((response.status, response.text().as_str(), response.header("x-origin")), (451, "no", None));
        } else {
            let seen = (response.status, response.text(), response.header("x-origin"));
            assert_eq!(seen, (200, "yes".to_owned(), Some("yes")), "{name}");
        }
    }
    // What had come before the resume had gone on when the rest came.
    until("the records", || received("/report").len() == 2).await;
    let record = String::from_utf8_lossy(&received("/report")[0].body).into_owned();
    assert!(record.contains("response_body:1 answer request_body:3. response_body:2."), "{record}");
    app_task.abort();
}
