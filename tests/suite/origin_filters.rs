//! Filters between the cache and the origin: they run when something is fetched, with all that filters can do, and what they make of it is
//! what is stored, and what everybody gets.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use selvedge_cache::{Purge, Scope};
use selvedge_tests::h2::H2Client;
use selvedge_tests::{Client, Edge, Origin, closed, soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

/// A node whose only route has these settings, and these filters.
fn node(filters: &str, route: &str, origins: &[(&str, SocketAddr)]) -> Edge {
    Edge::start(&yaml(filters, route, origins.len() > 1), origins)
}

fn yaml(filters: &str, route: &str, side: bool) -> String {
    let side = if side { "side: { endpoints: [\"127.0.0.1:${PORT_side}\"] }" } else { "" };
    format!(
        "cache: {{ memory: {{ size: 64MiB }} }}
upstreams:
  app: {{ endpoints: [\"127.0.0.1:${{PORT_app}}\"] }}
  {side}
filters:
  noop: {{ wasm: \"file:${{GUESTS}}/noop.wasm\", limits: {{ deadline: 10s }} }}
{filters}
sites: [{{ hosts: [\"*\"], routes: [{{ name: \"page-${{ID}}\", {route}, to: app }}] }}]"
    )
}

/// A filter that does what its script says.
fn script(name: &str, more: &str, script: &str) -> String {
    let lines: Vec<String> = script.lines().map(|line| line.trim().to_owned()).collect();
    format!(
        "  {name}: {{ wasm: \"file:${{GUESTS}}/script.wasm\", limits: {{ deadline: 10s }}, {more} config: \"{}\" }}",
        lines.join("\\n")
    )
}

const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=60"), ("etag", "\"1\"")];

/// What is stored is what the filter has made of it; hits do not pass it, over neither version of HTTP, with filters of the client's side
/// and without.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stored_is_what_the_filter_makes_of_it() {
    for (client_side, over_h2) in [("[]", false), ("[]", true), ("[noop]", false), ("[noop]", true)] {
        let what = format!("{client_side} {over_h2}");
        let origin = Origin::start(|_| Origin::reply(200, FRESH, "page")).await;
        let filters = script(
            "shout",
            "response_body: buffer,",
            "request_headers set request x-from-filter yes
             response_headers set response x-shouted yes
             response_end body response PAGE!",
        );
        let route = format!("cache: {{}}, filters: {client_side}, origin_filters: [shout]");
        let edge = node(&filters, &route, &[("app", origin.address())]);
        let connection = H2Client::connect(edge.web()).await;
        for (number, status) in [(0, "fwd=uri-miss"), (1, "hit"), (2, "hit")] {
            let response = if over_h2 {
                connection.request("GET", "/page", &[], b"").await.unwrap()
            } else {
                Client::get(edge.web(), "/page").await
            };
            assert_eq!((response.status, response.text().as_str()), (200, "PAGE!"), "{what} {number}");
            assert_eq!(response.header("x-shouted"), Some("yes"), "{what} {number}");
            assert_eq!(response.header("content-length"), Some("5"), "{what} {number}");
            let said = response.header("cache-status").unwrap_or_default();
            assert!(said.starts_with("edge; ") && said.contains(status), "{what} {number}: {said}");
            assert_eq!(response.headers.iter().filter(|(name, _)| name == "via").count(), 1, "{what} {number}");
            assert_ne!(response.header("connection"), Some("close"), "{what} {number}");
        }
        assert_eq!(origin.started(), 1, "{what}");
        let request = origin.last();
        let values = |name: &str| {
            let all = request.headers.iter().filter(|(known, _)| known == name);
            all.map(|(_, value)| value.clone()).collect::<Vec<_>>()
        };
        assert_eq!(values("x-from-filter"), ["yes"], "{what}");
        assert_eq!(values("x-forwarded-for"), ["127.0.0.1"], "{what}");
        assert_eq!(values("x-forwarded-proto"), ["http"], "{what}");
        assert_eq!(values("cdn-loop"), ["edge"], "{what}");
        assert_eq!(values("via"), [if over_h2 { "2 edge" } else { "1.1 edge" }], "{what}");
        let host = values("x-forwarded-host");
        assert_eq!(host.len(), 1, "{what}: {host:?}");
    }
}

/// Everybody who waits for the fetch gets what the filter made of it, which has run once.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_a_fetch_gets_what_the_filter_makes_of_it() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let origin = Origin::start_async(move |_| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("never closed").forget();
            Origin::reply(200, FRESH, "page")
        }
        .boxed()
    })
    .await;
    let edge = node(
        "  append: { wasm: \"file:${GUESTS}/append.wasm\", limits: { deadline: 10s } }",
        "cache: {}, origin_filters: [append]",
        &[("app", origin.address())],
    );
    let address = edge.web();
    let mut clients = JoinSet::new();
    for _ in 0..50 {
        clients.spawn(async move { Client::get(address, "/page").await.text() });
    }
    until("the fetch has begun", || origin.started() == 1).await;
    gate.add_permits(10);
    while let Some(text) = soon("all of them", clients.join_next()).await {
        assert_eq!(text.unwrap(), "page+app");
    }
    assert_eq!(origin.started(), 1);
}

/// A reply stands for the origin's answer: stored if its own fields say so.
#[tokio::test(flavor = "multi_thread")]
async fn a_filters_reply_is_stored_as_its_own_fields_say() {
    for (ttl, statuses) in [("{ \"418\": 60s }", ["fwd=uri-miss", "hit"]), ("1m", ["fwd=uri-miss", "fwd=uri-miss"])] {
        let origin = Origin::start(|_| Origin::reply(200, FRESH, "page")).await;
        let filters = script("teapot", "", "request_headers reply 418 teapot");
        let route = format!("cache: {{ ttl: {ttl} }}, origin_filters: [teapot]");
        let edge = node(&filters, &route, &[("app", origin.address())]);
        for status in statuses {
            let response = Client::get(edge.web(), "/page").await;
            assert_eq!((response.status, response.text().as_str()), (418, "teapot"), "{ttl}");
            let said = response.header("cache-status").unwrap_or_default();
            assert!(said.contains(status), "{ttl}: {said}");
            assert_eq!(response.header("x-replied"), Some("request_headers"));
        }
        assert_eq!(origin.started(), 0, "{ttl}");
    }
}

/// One from the response's side takes the place of what the origin has said, body and all.
#[tokio::test(flavor = "multi_thread")]
async fn a_reply_may_stand_for_a_response_that_has_come() {
    let origin = Origin::start(|_| Origin::reply(200, FRESH, "page")).await;
    let filters = script("teapot", "", "response_end reply 404 gone");
    let edge = node(
        &filters.replace("limits:", "response_body: buffer, limits:"),
        "cache: { ttl: { \"404\": 1m } }, origin_filters: [teapot]",
        &[("app", origin.address())],
    );
    for status in ["fwd=uri-miss", "hit"] {
        let response = Client::get(edge.web(), "/page").await;
        assert_eq!((response.status, response.text().as_str()), (404, "gone"));
        assert!(response.header("cache-status").unwrap_or_default().contains(status), "{:?}", response.headers);
    }
    assert_eq!(origin.started(), 1);
}

/// A filter may ask others before the request goes, and before the response is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_may_call_out() {
    for (phase, at_origin) in [("request_headers", true), ("response_headers", false)] {
        let origin = Origin::start(|_| Origin::reply(200, FRESH, "page")).await;
        let side = Origin::start(|_| Origin::reply(200, &[], "abc")).await;
        let filters = format!(
            "  ask: {{ wasm: \"file:${{GUESTS}}/callout.wasm\", limits: {{ deadline: 10s }}, config: \"{phase} side /ask\" }}"
        );
        let origins = [("app", origin.address()), ("side", side.address())];
        let edge = node(&filters, "cache: {}, origin_filters: [ask]", &origins);
        for _ in 0..2 {
            let response = Client::get(edge.web(), "/page").await;
            assert_eq!((response.status, response.text().as_str()), (200, "page"), "{phase}");
            assert_eq!(response.header("x-callout").is_some(), !at_origin, "{phase}");
        }
        assert_eq!(origin.last().header("x-callout"), at_origin.then_some("200:3"), "{phase}");
        assert_eq!((origin.started(), side.started()), (1, 1), "{phase}");
    }
}

/// A filter that fails is an origin that fails, or is left out, as it says.
#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_traps_fails_closed_or_open() {
    for phase in ["request_headers", "response_headers", "response_body"] {
        for (policy, status) in [("closed", 503), ("open", 200)] {
            let what = format!("{phase} {policy}");
            let origin = Origin::start(|_| Origin::reply(200, FRESH, "page")).await;
            let filters = format!(
                "  trap: {{ wasm: \"file:${{GUESTS}}/trap.wasm\", on_failure: {policy}, response_body: buffer, \
                 limits: {{ deadline: 10s }}, config: {phase} }}"
            );
            let edge = node(&filters, "cache: {}, origin_filters: [trap]", &[("app", origin.address())]);
            let response = Client::get(edge.web(), "/page").await;
            assert_eq!(response.status, status, "{what}");
            if status == 503 {
                let said = response.header("proxy-status");
                assert_eq!(said, Some("edge; error=proxy_internal_error; details=\"filter trap failed\""), "{what}");
            } else {
                assert_eq!(response.text(), "page", "{what}");
                let hit = Client::get(edge.web(), "/page").await;
                assert!(hit.header("cache-status").unwrap_or_default().starts_with("edge; hit"), "{what}");
            }
        }
    }
}

/// To the cache, a filter that fails is an origin that fails: what is stale stands in.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_stale_stands_in_for_a_filter_that_fails() {
    let stale = [("cache-control", "max-age=0, stale-if-error=60")];
    let origin = Origin::start(move |_| Origin::reply(200, &stale, "first")).await;
    let filters = "  trap: { wasm: \"file:${GUESTS}/trap.wasm\", limits: { deadline: 10s }, config: request_headers }";
    let mut edge = node(filters, "cache: {}", &[("app", origin.address())]);
    assert_eq!(Client::get(edge.web(), "/page").await.text(), "first");
    edge.reload(&yaml(filters, "cache: {}, origin_filters: [trap]", false)).unwrap();
    let response = Client::get(edge.web(), "/page").await;
    assert_eq!((response.status, response.text().as_str()), (200, "first"), "{:?}", response.headers);
    assert_eq!(origin.started(), 1);
    let other = Client::get(edge.web(), "/other").await;
    assert_eq!(other.status, 503);
}

/// Errors of the upstream are said as they are without such filters.
#[tokio::test(flavor = "multi_thread")]
async fn the_upstreams_errors_keep_their_names() {
    let refused = closed();
    let (cut, _serving) = Origin::raw(|mut stream| async move {
        let mut buffer = [0; 4096];
        let _ = stream.read(&mut buffer).await;
    })
    .await;
    for address in [refused, cut] {
        let mut said = Vec::new();
        for filters in ["[]", "[noop]"] {
            let route = format!("cache: {{}}, origin_filters: {filters}");
            let edge = node("", &route, &[("app", address)]);
            let response = Client::get(edge.web(), "/page").await;
            let status = response.header("proxy-status").map(str::to_owned);
            let cache = response.header("cache-status").map(str::to_owned);
            said.push((response.status, status, cache, response.text()));
        }
        assert_eq!(said[0], said[1]);
        assert!(said[0].1.is_some(), "{said:?}");
    }
}

/// A body that breaks off is an error to everybody, and is not kept.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_breaks_off_is_not_kept() {
    let served = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&served);
    let (address, _serving) = Origin::raw(move |mut stream| {
        let counted = Arc::clone(&counted);
        async move {
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            counted.fetch_add(1, Ordering::Relaxed);
            let head = "HTTP/1.1 200 OK\r\ncache-control: max-age=60\r\ncontent-length: 100\r\n\r\nonly this";
            let _ = stream.write_all(head.as_bytes()).await;
        }
    })
    .await;
    let edge = node("", "cache: {}, origin_filters: [noop]", &[("app", address)]);
    for number in 1..=2 {
        let mut client = Client::connect(edge.web()).await;
        client.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
        // Or 502, where the header had not left yet.
        let whole = client.try_response("GET").await.is_ok_and(|response| response.status != 502);
        assert!(!whole, "a short body passed for whole");
        assert_eq!(served.load(Ordering::Relaxed), number);
    }
}

/// A validation is seen by the filter, and what it has made of the body stays; what it says in the header of a 304 becomes the stored
/// header.
#[tokio::test(flavor = "multi_thread")]
async fn a_validation_keeps_the_body_that_the_filter_made() {
    let origin = Origin::start(|request| {
        let headers = [("cache-control", "max-age=0"), ("etag", "\"1\"")];
        if request.header("if-none-match") == Some("\"1\"") {
            Origin::reply(304, &headers, "")
        } else {
            Origin::reply(200, &headers, "page")
        }
    })
    .await;
    let filters = "  append: { wasm: \"file:${GUESTS}/append.wasm\", limits: { deadline: 10s } }\n".to_owned()
        + &script("mark", "", "response_headers set response x-marked yes");
    let edge = node(&filters, "cache: {}, origin_filters: [append, mark]", &[("app", origin.address())]);
    for number in 1..=3 {
        let response = Client::get(edge.web(), "/page").await;
        assert_eq!((response.status, response.text().as_str()), (200, "page+app"), "{number}");
        assert_eq!(response.header("x-marked"), Some("yes"), "{number}");
        assert_eq!(origin.started(), number);
        assert_eq!(origin.last().header("if-none-match").is_some(), number > 1, "{number}");
    }
}

/// A large body passes as it comes: the client has its beginning while the origin has not sent its end.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_body_streams() {
    for over_h2 in [false, true] {
        let gate = Arc::new(Semaphore::new(0));
        let opened = Arc::clone(&gate);
        let origin = Origin::start_async(move |_| {
            let gate = Arc::clone(&opened);
            async move {
                let (body, served) = Origin::streaming(200, FRESH);
                body.send(Bytes::from(vec![b'x'; 4 * MIB])).unwrap();
                tokio::spawn(async move {
                    gate.acquire().await.expect("never closed").forget();
                    body.send(Bytes::from_static(b"end")).unwrap();
                });
                served
            }
            .boxed()
        })
        .await;
        let filters = "  append: { wasm: \"file:${GUESTS}/append.wasm\", limits: { deadline: 10s, body: 64KiB } }";
        let edge = node(filters, "cache: {}, origin_filters: [append]", &[("app", origin.address())]);
        let mut received = 0;
        if over_h2 {
            let connection = H2Client::connect(edge.web()).await;
            let response = connection.open("GET", "/page", &[], true).await.unwrap().0;
            let mut response = soon("a header", response).await.unwrap();
            let stream = response.body_mut();
            while received < 4 * MIB {
                let chunk = soon("what has come", stream.data()).await.unwrap().unwrap();
                received += chunk.len();
                let _ = stream.flow_control().release_capacity(chunk.len());
            }
            gate.add_permits(1);
            let mut rest = Vec::new();
            while let Some(chunk) = soon("the rest", stream.data()).await {
                rest.extend_from_slice(&chunk.unwrap());
            }
            assert_eq!(rest, b"end+app");
        } else {
            let mut client = Client::connect(edge.web()).await;
            client.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
            client.head().await.unwrap();
            while received < 4 * MIB {
                received += soon("what has come", client.some()).await.unwrap().len();
            }
            gate.add_permits(1);
        }
        let hit = Client::get(edge.web(), "/page").await;
        assert_eq!(hit.body.len(), 4 * MIB + 7);
        assert!(hit.body.ends_with(b"end+app"));
        assert_eq!(origin.started(), 1);
    }
}

/// The first client leaves: the fetch goes on, through the filter, and is stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_goes_on_when_its_client_leaves() {
    let gate = Arc::new(Semaphore::new(0));
    let opened = Arc::clone(&gate);
    let origin = Origin::start_async(move |_| {
        let gate = Arc::clone(&opened);
        async move {
            gate.acquire().await.expect("never closed").forget();
            Origin::reply(200, FRESH, "page")
        }
        .boxed()
    })
    .await;
    let filters = "  append: { wasm: \"file:${GUESTS}/append.wasm\", limits: { deadline: 10s } }";
    let edge = node(filters, "cache: {}, origin_filters: [append]", &[("app", origin.address())]);
    let mut first = Client::connect(edge.web()).await;
    first.send(b"GET /page HTTP/1.1\r\nhost: test\r\n\r\n").await;
    until("the fetch has begun", || origin.started() == 1).await;
    let address = edge.web();
    let second = tokio::spawn(async move { Client::get(address, "/page").await });
    drop(first);
    gate.add_permits(10);
    assert_eq!(soon("the second", second).await.unwrap().text(), "page+app");
    assert_eq!(Client::get(edge.web(), "/page").await.text(), "page+app");
    assert_eq!(origin.started(), 1);
}

/// What is not stored passes the filter too: uploads, with their bodies, and what the origin forbids to keep. A client that leaves takes
/// its request with it.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_not_stored_pass_the_filter() {
    for over_h2 in [false, true] {
        let origin = Origin::start(|request| Origin::reply(200, &[], request.body.clone())).await;
        let filters = "  append: { wasm: \"file:${GUESTS}/append.wasm\", limits: { deadline: 10s }, config: request }";
        let edge = node(filters, "cache: {}, origin_filters: [append]", &[("app", origin.address())]);
        let sent = vec![b'y'; 3 * MIB];
        let response = if over_h2 {
            H2Client::connect(edge.web()).await.request("POST", "/page", &[], &sent).await.unwrap()
        } else {
            Client::post(edge.web(), "/page", "", &sent).await
        };
        assert_eq!(response.status, 200);
        assert_eq!(response.body.len(), sent.len() + 4);
        assert!(response.body.ends_with(b"y+app"));
    }
}

/// Trailers come through, over HTTP/2, and pass the filter.
#[tokio::test(flavor = "multi_thread")]
async fn trailers_pass_the_filter() {
    let origin = Origin::start(|_| {
        Origin::with_trailers(200, &[("content-type", "application/grpc")], "page", &[("x-end", "1")])
    })
    .await;
    let yaml = "cache: { memory: { size: 64MiB } }
upstreams: { app: { endpoints: [\"127.0.0.1:${PORT_app}\"], protocol: h2 } }
filters: { trailers: { wasm: \"file:${GUESTS}/trailers.wasm\", limits: { deadline: 10s } } }
sites: [{ hosts: [\"*\"], routes: [{ name: \"page-${ID}\", cache: {}, origin_filters: [trailers], to: app }] }]";
    let edge = Edge::start(yaml, &[("app", origin.address())]);
    let response = H2Client::connect(edge.web()).await.request("GET", "/page", &[], b"").await.unwrap();
    assert_eq!(response.text(), "page");
    let trailer =
        |name: &str| response.trailers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    assert_eq!((trailer("x-end"), trailer("x-trailer-filtered")), (Some("1"), Some("yes")));
}

/// Upgrades pass: what is spoken afterwards is nobody's business.
#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_passes_the_filter() {
    let (address, _serving) = Origin::raw(|mut stream| async move {
        let mut buffer = [0; 4096];
        let count = stream.read(&mut buffer).await.unwrap_or(0);
        assert!(buffer[..count].to_ascii_lowercase().windows(18).any(|part| part == b"upgrade: websocket"));
        let head = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..count]).await.unwrap();
        }
    })
    .await;
    let edge = node("", "cache: {}, origin_filters: [noop]", &[("app", address)]);
    let mut client = Client::connect(edge.web()).await;
    client.send(b"GET /ws HTTP/1.1\r\nhost: test\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    assert_eq!(client.head().await.unwrap().0, 101);
    client.send(b"hello").await;
    let mut echo = Vec::new();
    while echo.len() < 5 {
        echo.extend(soon("the echo", client.some()).await.unwrap());
    }
    assert_eq!(echo, b"hello");
}

/// The filter knows the client, and what those in front of the cache have set; what the cache is to do it cannot say any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_filter_knows_what_those_in_front_of_the_cache_know() {
    let origin = Origin::start(|_| Origin::reply(200, FRESH, "page")).await;
    let filters = "  front: { wasm: \"file:${GUESTS}/properties.wasm\", limits: { deadline: 10s }, config: \"request_headers set a mine one\" }
  back: { wasm: \"file:${GUESTS}/properties.wasm\", limits: { deadline: 10s }, config: \"response_headers get address source/address\\nresponse_headers get mine mine\\nrequest_headers set ttl cache/ttl 5s\\nresponse_headers get status cache/status\" }";
    let edge = node(filters, "cache: {}, filters: [front], origin_filters: [back]", &[("app", origin.address())]);
    let response = Client::get(edge.web(), "/page").await;
    assert_eq!(response.text(), "page");
    let address = response.header("x-address").unwrap_or_default();
    assert!(address.starts_with("127.0.0.1:"), "{:?}", response.headers);
    assert_eq!(response.header("x-mine"), Some("one"), "{:?}", response.headers);
    assert!(response.header("x-ttl").is_some_and(|said| said.starts_with('!')), "{:?}", response.headers);
    assert_eq!(response.header("x-status"), Some("uri-miss"), "{:?}", response.headers);
}

/// What refreshes a stale response in the background passes the filters once, as the fetch did; a copy for another upstream is of what they
/// have made of the request, passes them no more, and none is made of refreshes.
#[tokio::test(flavor = "multi_thread")]
async fn refreshes_pass_the_filter_and_copies_do_not() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let origin = Origin::start(move |_| {
        let number = counted.fetch_add(1, Ordering::SeqCst) + 1;
        let fields = [("cache-control", "max-age=60, stale-while-revalidate=600")];
        Origin::reply(200, &fields, format!("page {number}"))
    })
    .await;
    let shadow = Origin::start(|_| Origin::reply(200, &[], "")).await;
    let filters = "  append: { wasm: \"file:${GUESTS}/append.wasm\", limits: { deadline: 10s } }\n".to_owned()
        + &script("mark", "", "request_headers set request x-from-filter yes");
    let origins = [("app", origin.address()), ("side", shadow.address())];
    let edge = node(&filters, "cache: {}, origin_filters: [append, mark], mirror: { to: side }", &origins);
    assert_eq!(Client::get(edge.web(), "/page").await.text(), "page 1+app");
    until("the copy comes", || shadow.started() == 1).await;
    let marked = shadow.last().headers.iter().filter(|(name, _)| name == "x-from-filter").count();
    assert_eq!(marked, 1, "the copy is of what the filters made");

    edge.plan().cache.expect("configured").purge(&[Scope::everything()], Purge::Soft);
    let stale = Client::get(edge.web(), "/page").await;
    assert_eq!(stale.text(), "page 1+app");
    assert!(stale.header("cache-status").unwrap().contains("stale-while-revalidate"), "{:?}", stale.headers);
    until("it is refreshed", || origin.started() == 2).await;
    let marked = origin.last().headers.iter().filter(|(name, _)| name == "x-from-filter").count();
    assert_eq!(marked, 1, "once");
    let refreshed = async { while Client::get(edge.web(), "/page").await.text() != "page 2+app" {} };
    soon("what the filters made of the refresh", refreshed).await;
    assert_eq!(origin.started(), 2);

    // Another one is copied, so that one of the refresh would have come before it.
    Client::get(edge.web(), "/other").await;
    until("its copy comes", || shadow.started() == 2).await;
    assert_eq!(
        shadow.received().iter().map(|request| request.target.as_str()).collect::<Vec<_>>(),
        ["/page", "/other"]
    );
}
